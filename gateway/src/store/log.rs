//! The write-ahead log: each batch is one checksummed record, appended with one write and one `fdatasync`. Changes live only here; rows live here until the
//! table has them durably. It does not know what a row or a change means.
//!
//! ```text
//! log/0000000007     a segment: its header, then records, then zeros; the highest number is the one that is written
//! header (64 bytes)  magic | segment | first record | forget below | last change + 1 | rows in the table up to record | salt | check
//! record             magic (4) | body's length (u32) | record (u64) | check (u64) | body
//! body               truncate below (u64) | rows (u32): key's length (u16), key, 0 or value's length + 1 (u32), value | changes (u32): number (u64),
//!                    length (u32), bytes
//! ```
//!
//! Numbers are big-endian; a check is 8 bytes of blake3, a record's is keyed with the header, so that no record passes for one of another segment. Zeros are
//! written ahead in chunks, because an `fdatasync` that has to record a new length costs the file system a transaction.
//!
//! One record is under way at a time, and none follows a failure. So only the last one of the last segment can be torn: it is cut off. A good record, or
//! a segment, behind a bad one is damage and refused. Segments go oldest first, one synced step each.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use intergrid_proto::net::disk::is_full;

use super::disk::{sync_data, sync_dir};
use super::{Batch, StoreError};

/// A segment that has reached this size is followed by a new one.
pub const SEGMENT_BYTES: u64 = 4 << 20;
/// Zeros written ahead.
const CHUNK_BYTES: u64 = 256 << 10;
/// Each deletion is a sync of the directory.
const DELETED_PER_COMMIT_MAX: usize = 4;
/// Places at which a good record is looked for behind a bad one: what users write may look like the beginning of many.
const SEARCHES_MAX: usize = 256;

const SEGMENT_MAGIC: &[u8; 8] = b"iglog\0\0\x01";
const RECORD_MAGIC: &[u8; 4] = b"igr\x01";
const HEADER_BYTES: usize = 64;
const FRAME_BYTES: usize = 24;
/// A segment before it is whole.
const NEW_FILE: &str = "new";

/// A segment's header: where it stands, so that those before it may go.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Header {
    number: u64,
    first: u64,
    forget: u64,
    last: Option<u64>,
    applied: u64,
    salt: u64,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(SEGMENT_MAGIC);
        let last = self.last.map_or(0, |n| n.saturating_add(1));
        for (k, n) in [self.number, self.first, self.forget, last, self.applied, self.salt].into_iter().enumerate() {
            out[8 + 8 * k..16 + 8 * k].copy_from_slice(&n.to_be_bytes());
        }
        let check = blake3::hash(&out[..HEADER_BYTES - 8]);
        out[HEADER_BYTES - 8..].copy_from_slice(&check.as_bytes()[..8]);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Header> {
        let n = |k: usize| be64(bytes, 8 + 8 * k);
        let header = Header { number: n(0)?, first: n(1)?, forget: n(2)?, last: n(3)?.checked_sub(1), applied: n(4)?, salt: n(5)? };
        (header.encode() == bytes.get(..HEADER_BYTES)?).then_some(header)
    }

    fn key(&self) -> [u8; 32] {
        *blake3::hash(&self.encode()).as_bytes()
    }
}

/// A segment that is there.
#[derive(Clone, Copy, Debug)]
struct Segment {
    number: u64,
    first: u64,
    /// Behind its last record.
    end: u64,
    /// Highest change in it.
    top: Option<u64>,
}

/// What a record says.
#[derive(Debug, Default, PartialEq)]
pub struct Body<'a> {
    truncate_below: u64,
    /// Rows put and deleted, in order.
    pub rows: Vec<(&'a [u8], Option<&'a [u8]>)>,
    changes: Vec<(u64, &'a [u8])>,
}

/// An open log; it is the only writer of its directory.
pub struct Log {
    dir: PathBuf,
    store: String,
    /// Those before the newest, oldest first.
    closed: VecDeque<Segment>,
    newest: Segment,
    file: File,
    key: [u8; 32],
    reserved: u64,
    segment_bytes: u64,
    next: u64,
    forget: u64,
    last: Option<u64>,
    buffer: Vec<u8>,
}

impl Log {
    /// An empty one, in place of whatever is there. `store` is the path to name in errors.
    pub fn create(dir: &Path, store: &str, forget: u64) -> Result<Log, StoreError> {
        let make = || {
            if dir.exists() {
                std::fs::remove_dir_all(dir)?;
            }
            std::fs::create_dir(dir)
        };
        make().map_err(|source| StoreError::Io { path: dir.display().to_string(), source })?;
        let last = forget.checked_sub(1);
        let (newest, file, key) = begin(dir, Header { number: 1, first: 1, forget, last, ..Header::default() }, CHUNK_BYTES)?;
        let (dir, store, closed, buffer) = (dir.into(), store.into(), VecDeque::new(), Vec::new());
        Ok(Log { dir, store, closed, newest, file, key, reserved: CHUNK_BYTES, segment_bytes: SEGMENT_BYTES, next: 1, forget, last, buffer })
    }

    /// Read what is there, cut a torn tail off, and sync the rest: what is seen now is durable. `take` gets the records whose rows the table may lack.
    pub fn open(dir: &Path, store: &str, take: &mut dyn FnMut(u64, Body<'_>)) -> Result<Log, StoreError> {
        let io = |path: &Path, source| StoreError::Io { path: path.display().to_string(), source };
        let damaged = |what: String| StoreError::Damaged { path: store.into(), what };
        let numbers = numbers(dir).map_err(|e| io(dir, e))?;
        let none = || damaged("log: no segment is there".into());
        let applied = read(dir, *numbers.last().ok_or_else(none)?, store)?.1.applied;
        let (mut segments, mut next, mut forget, mut last, mut key) = (VecDeque::<Segment>::new(), 0, 0, None, [0; 32]);
        let mut before = None;
        for number in numbers {
            let (bytes, header) = read(dir, number, store)?;
            match segments.back() {
                None => (next, forget, last, before) = (header.first, header.forget, header.last, header.last),
                Some(s) if s.number + 1 != number => return Err(damaged(format!("log/{:010}, which is missing", s.number + 1))),
                Some(s) if header.first != next => return Err(damaged(format!("log/{:010}, byte {}: a record", s.number, s.end))),
                Some(_) => {}
            }
            key = header.key();
            let mut segment = Segment { number, first: next, end: HEADER_BYTES as u64, top: None };
            while let Some((body, end)) = record(&bytes, segment.end as usize, &key, Some(next)) {
                let body = decode(body).ok_or_else(|| damaged(format!("log/{number:010}, byte {}: a record's inside", segment.end)))?;
                if let Some((top, _)) = body.changes.last() {
                    (segment.top, last) = (Some(*top), last.max(Some(*top)));
                }
                (forget, last) = (forget.max(body.truncate_below), last.max(body.truncate_below.checked_sub(1)));
                if next > applied {
                    take(next, body);
                }
                (segment.end, next) = (end as u64, next + 1);
            }
            let bad = segment.end as usize;
            let mut behind = (bad + 1..bytes.len()).filter(|at| bytes[*at..].starts_with(RECORD_MAGIC)).take(SEARCHES_MAX);
            if behind.any(|at| record(&bytes, at, &key, None).is_some()) {
                return Err(damaged(format!("log/{number:010}, byte {bad}: a record with good ones behind it")));
            }
            segments.push_back(segment);
        }
        // A segment goes only when its changes are forgotten.
        if let Some(lost) = before.filter(|n| *n >= forget) {
            return Err(damaged(format!("log: the segment with change {lost} is missing")));
        }
        let newest = segments.pop_back().ok_or_else(none)?;
        let path = path(dir, newest.number);
        let finish = || {
            let file = File::options().write(true).open(&path)?;
            // What is left of a torn record must never be taken for a part of what is written over it.
            file.set_len(newest.end)?;
            sync_data(&file, &path)?;
            sync_dir(dir)?;
            Ok(file)
        };
        let file = finish().map_err(|e| io(&path, e))?;
        let (dir, store, reserved, buffer) = (dir.into(), store.into(), newest.end, Vec::new());
        Ok(Log { dir, store, closed: segments, newest, file, key, reserved, segment_bytes: SEGMENT_BYTES, next, forget, last, buffer })
    }

    /// Highest change number so far.
    pub fn last(&self) -> Option<u64> {
        self.last
    }

    /// The last record.
    pub fn written(&self) -> u64 {
        self.next - 1
    }

    /// The last record of a segment that could go.
    pub fn closed(&self) -> u64 {
        self.newest.first - 1
    }

    /// Begin a new segment after so many bytes; for tests.
    #[cfg(test)]
    pub fn segment_bytes(&mut self, bytes: u64) {
        self.segment_bytes = bytes;
    }

    /// Where the record of the last batch begins and ends; for tests.
    #[cfg(test)]
    pub fn last_record_bytes(&mut self, batch: &Batch) -> (usize, usize) {
        encode(batch, 0, &self.key, &mut self.buffer);
        let end = self.newest.end as usize;
        (end - self.buffer.len(), end)
    }

    /// Write somewhere else; for tests.
    #[cfg(test)]
    pub fn swap_file(&mut self, file: File) -> File {
        std::mem::replace(&mut self.file, file)
    }

    /// Make the batch durable; returns its record's number. `applied`: the table has the rows of the records up to this one. The caller has checked the
    /// batch, and after an error appends no more.
    pub fn append(&mut self, batch: &Batch, applied: u64) -> Result<u64, StoreError> {
        if self.newest.end >= self.segment_bytes {
            self.roll(applied)?;
        }
        encode(batch, self.next, &self.key, &mut self.buffer);
        let (start, end) = (self.newest.end, self.newest.end + self.buffer.len() as u64);
        if end > self.reserved {
            self.reserved = end.next_multiple_of(self.chunk_bytes());
            self.buffer.resize((self.reserved - start) as usize, 0);
        }
        let path = path(&self.dir, self.newest.number);
        let mut write = self.file.write_all_at(&self.buffer, start).and_then(|()| sync_data(&self.file, &path));
        // Without zeros ahead there may be room for it. All of it is written again, so a sync that failed before does not matter.
        if write.as_ref().is_err_and(is_full) {
            self.buffer.truncate((end - start) as usize);
            self.reserved = end;
            write = self.file.write_all_at(&self.buffer, start).and_then(|()| sync_data(&self.file, &path));
        }
        if write.is_err() {
            // Another try lays zeros anew.
            self.reserved = start;
        }
        write.map_err(|source| StoreError::Io { path: path.display().to_string(), source })?;
        // One large batch must not stay in memory for good.
        self.buffer.clear();
        self.buffer.shrink_to(CHUNK_BYTES as usize);
        self.newest.end = end;
        if let Some((top, _)) = batch.changes.last() {
            (self.newest.top, self.last) = (Some(*top), self.last.max(Some(*top)));
        }
        let below = batch.truncate_below.unwrap_or(0);
        (self.forget, self.last) = (self.forget.max(below), self.last.max(below.checked_sub(1)));
        self.next += 1;
        Ok(self.next - 1)
    }

    /// Delete segments that nobody needs: the table has their rows, and their changes are forgotten.
    pub fn release(&mut self, applied: u64) -> Result<(), StoreError> {
        for _ in 0..DELETED_PER_COMMIT_MAX {
            let Some(oldest) = self.closed.front() else { return Ok(()) };
            let second = self.closed.get(1).unwrap_or(&self.newest);
            if second.first > applied + 1 || oldest.top.is_some_and(|top| top >= self.forget) {
                return Ok(());
            }
            let path = path(&self.dir, oldest.number);
            // A power cut must not keep this one and lose a younger one: that would be a hole.
            std::fs::remove_file(&path)
                .and_then(|()| sync_dir(&self.dir))
                .map_err(|source| StoreError::Io { path: path.display().to_string(), source })?;
            self.closed.pop_front();
        }
        Ok(())
    }

    /// Changes from this number on that are not forgotten, ascending.
    pub fn changes(&self, from: u64, visit: &mut dyn FnMut(u64, &[u8]) -> bool) -> Result<(), StoreError> {
        let from = from.max(self.forget);
        for segment in self.closed.iter().chain([&self.newest]).filter(|s| s.top.is_some_and(|top| top >= from)) {
            let (bytes, header) = read(&self.dir, segment.number, &self.store)?;
            let (key, mut at, mut next) = (header.key(), HEADER_BYTES, segment.first);
            while at < segment.end as usize {
                let found = record(&bytes, at, &key, Some(next)).and_then(|(body, end)| Some((decode(body)?, end)));
                let Some((body, end)) = found else {
                    let what = format!("log/{:010}, byte {at}: a record", segment.number);
                    return Err(StoreError::Damaged { path: self.store.clone(), what });
                };
                for (number, bytes) in body.changes.iter().filter(|(number, _)| *number >= from) {
                    if !visit(*number, bytes) {
                        return Ok(());
                    }
                }
                (at, next) = (end, next + 1);
            }
        }
        Ok(())
    }

    fn chunk_bytes(&self) -> u64 {
        CHUNK_BYTES.min(self.segment_bytes)
    }

    fn roll(&mut self, applied: u64) -> Result<(), StoreError> {
        let (number, first) = (self.newest.number + 1, self.next);
        let header = Header { number, first, forget: self.forget, last: self.last, applied, salt: 0 };
        let (mut bytes, begun) = (self.chunk_bytes(), begin(&self.dir, header, self.chunk_bytes()));
        let (newest, file, key) = match begun {
            // For the header alone there may be room.
            Err(e) if e.is_full() => {
                bytes = HEADER_BYTES as u64;
                begin(&self.dir, header, bytes)?
            }
            begun => begun?,
        };
        self.closed.push_back(std::mem::replace(&mut self.newest, newest));
        (self.file, self.key, self.reserved) = (file, key, bytes);
        Ok(())
    }
}

/// A new segment, under its name only when it is whole; its file, and the key of its records. Its salt is chosen here.
fn begin(dir: &Path, header: Header, bytes: u64) -> Result<(Segment, File, [u8; 32]), StoreError> {
    // Seeded from the system's source of random numbers.
    let header = Header { salt: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), header.number), ..header };
    let (new, path) = (dir.join(NEW_FILE), path(dir, header.number));
    let make = || {
        let file = File::create(&new)?;
        let mut zeros = vec![0; bytes as usize];
        zeros[..HEADER_BYTES].copy_from_slice(&header.encode());
        file.write_all_at(&zeros, 0)?;
        sync_data(&file, &new)?;
        std::fs::rename(&new, &path)?;
        sync_dir(dir)?;
        Ok(file)
    };
    let file = make().map_err(|source| {
        // What is left of it takes the room that it lacked.
        _ = std::fs::remove_file(&new);
        StoreError::Io { path: path.display().to_string(), source }
    })?;
    Ok((Segment { number: header.number, first: header.first, end: HEADER_BYTES as u64, top: None }, file, header.key()))
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:010}"))
}

/// The segments that are there, ascending.
fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn read(dir: &Path, number: u64, store: &str) -> Result<(Vec<u8>, Header), StoreError> {
    let path = path(dir, number);
    let bytes = std::fs::read(&path).map_err(|source| StoreError::Io { path: path.display().to_string(), source })?;
    let header = Header::decode(&bytes).filter(|h| h.number == number && h.first > 0);
    let header = header.ok_or_else(|| StoreError::Damaged { path: store.into(), what: format!("log/{number:010}, byte 0: its header") })?;
    Ok((bytes, header))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn check(key: &[u8; 32], place: &[u8], body: &[u8]) -> [u8; 8] {
    let mut out = [0; 8];
    blake3::Hasher::new_keyed(key).update(place).update(body).finalize_xof().fill(&mut out);
    out
}

/// The record at this place, where there is a good one: its body, and where the next one begins. `number`: it must be this one.
fn record<'a>(bytes: &'a [u8], at: usize, key: &[u8; 32], number: Option<u64>) -> Option<(&'a [u8], usize)> {
    let frame = bytes.get(at..at + FRAME_BYTES).filter(|f| f.starts_with(RECORD_MAGIC))?;
    let end = at + FRAME_BYTES + be32(frame, 4)? as usize;
    let body = bytes.get(at + FRAME_BYTES..end)?;
    (number.is_none_or(|n| be64(frame, 8) == Some(n)) && check(key, &frame[4..16], body) == frame[16..]).then_some((body, end))
}

/// One record, alone in `out`. Its lengths were checked with the batch.
fn encode(batch: &Batch, number: u64, key: &[u8; 32], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&[0; FRAME_BYTES]);
    out.extend_from_slice(&batch.truncate_below.unwrap_or(0).to_be_bytes());
    out.extend_from_slice(&(batch.rows.len() as u32).to_be_bytes());
    for (key, value) in &batch.rows {
        out.extend_from_slice(&(key.len() as u16).to_be_bytes());
        out.extend_from_slice(key);
        out.extend_from_slice(&value.as_ref().map_or(0, |v| v.len() as u32 + 1).to_be_bytes());
        out.extend_from_slice(value.as_deref().unwrap_or_default());
    }
    out.extend_from_slice(&(batch.changes.len() as u32).to_be_bytes());
    for (number, bytes) in &batch.changes {
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        out.extend_from_slice(bytes);
    }
    let (frame, body) = out.split_at_mut(FRAME_BYTES);
    frame[..4].copy_from_slice(RECORD_MAGIC);
    frame[4..8].copy_from_slice(&(body.len() as u32).to_be_bytes());
    frame[8..16].copy_from_slice(&number.to_be_bytes());
    let check = check(key, &frame[4..16], body);
    frame[16..].copy_from_slice(&check);
}

fn decode(mut bytes: &[u8]) -> Option<Body<'_>> {
    let mut take = |n: usize| {
        let (head, rest) = bytes.split_at_checked(n)?;
        bytes = rest;
        Some(head)
    };
    let mut body = Body { truncate_below: be64(take(8)?, 0)?, ..Body::default() };
    for _ in 0..be32(take(4)?, 0)? {
        let key_bytes = u16::from_be_bytes(take(2)?.try_into().ok()?);
        let key = take(key_bytes.into())?;
        let value = match be32(take(4)?, 0)?.checked_sub(1) {
            Some(n) => Some(take(n as usize)?),
            None => None,
        };
        body.rows.push((key, value));
    }
    for _ in 0..be32(take(4)?, 0)? {
        let (number, length) = (be64(take(8)?, 0)?, be32(take(4)?, 0)?);
        body.changes.push((number, take(length as usize)?));
    }
    bytes.is_empty().then_some(body)
}
