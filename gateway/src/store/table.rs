//! Rows in sled, made durable by our own `fdatasync`.
//!
//! ```text
//! r <row key>                 a row                   value: 0, bytes | 1, part id (u64), parts (u16)
//! p <part id, u64> <n, u16>   a part of a value       bytes
//! ```
//!
//! Numbers are big-endian. A value longer than [`PART_BYTES`] is cut into parts with an id of their own, because sled moves a page (up to some 20 values)
//! of more than 128 KiB into a file that it never syncs. A row's new value takes a new part id, so a reader sees the old one or the new one whole.
//!
//! sled's own flush is `sync_file_range`, which survives kill -9 and not a power cut (sled#1452); so [`Table::apply`] syncs the database file itself. It is
//! slow, some threads and system calls for each step: that is why the log stands in front of it.
//!
//! Format 1 had changes here too: `c <number>` as rows, and `m forget`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::StoreError;
use super::disk::{sync_data, sync_dir};

/// A longer value is cut: 20 of these and their keys stay well below sled's 128 KiB.
pub const PART_BYTES: usize = 4 * 1024;
/// sled's page cache, by its own count: by what pages take in its file. In memory pages of small rows take two to four times that. What is evicted and
/// asked for again is read from the kernel's cache; a shard of sled's evicts once in 64 looks, so that pages looked at all the time stay.
const CACHE_BYTES: u64 = 2 << 20;
/// sled's threads may hold its file a moment longer than the store that was dropped.
const SLED_LOCK_WAIT_MS: u64 = 3_000;
/// A reader starts over when a row is replaced while it reads its parts.
const READ_TRIES_MAX: usize = 1_000;
/// Changes of format 1 deleted in one step.
const OLD_CHANGES_PER_STEP_MAX: usize = 2_048;

const FORGET_KEY: &[u8] = b"mforget";
const INLINE: u8 = 0;
const PARTED: u8 = 1;

/// A row's key and value; None: deleted.
pub type Row = (Vec<u8>, Option<Arc<[u8]>>);

/// Reads rows, from any thread.
#[derive(Clone)]
pub struct Rows {
    /// None: it could not be opened anew.
    db: Arc<RwLock<Option<::sled::Db>>>,
    path: Arc<str>,
}

/// The table; one writer.
pub struct Table {
    rows: Rows,
    file: File,
    home: PathBuf,
    next_part: u64,
}

impl Table {
    /// Open it, or make an empty one. `path` is the store's, for errors.
    pub fn open(home: &Path, path: &Arc<str>) -> Result<Table, StoreError> {
        let rows = Rows { db: Arc::new(RwLock::new(Some(open_sled(home, path)?))), path: path.clone() };
        let (file, next_part) = rows.look(home)?;
        Ok(Table { rows, file, home: home.into(), next_part })
    }

    /// Close it, and open it again: after a write that found no room it takes nothing more.
    pub fn reopen(&mut self) -> Result<(), StoreError> {
        {
            let mut db = self.rows.db.write().unwrap_or_else(PoisonError::into_inner);
            drop(db.take());
            *db = Some(open_sled(&self.home, &self.rows.path)?);
        }
        (self.file, self.next_part) = self.rows.look(&self.home)?;
        Ok(())
    }

    /// For reading.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Put and delete, each key once, durably and in one step.
    pub fn apply(&mut self, rows: &[Row]) -> Result<(), StoreError> {
        let mut out = ::sled::Batch::default();
        for (key, value) in rows {
            let key = [b"r", key.as_slice()].concat();
            if let Some(old) = self.rows.db()?.get(&key).map_err(|e| self.rows.error(e))? {
                drop_parts(&mut out, &old);
            }
            match value {
                Some(value) => self.put(&mut out, &key, value),
                None => out.remove(key),
            }
        }
        self.write(out)
    }

    /// Put a value: inline, or as parts. The key is the tree's.
    fn put(&mut self, out: &mut ::sled::Batch, key: &[u8], value: &[u8]) {
        let mut head = Vec::with_capacity(1 + value.len().min(PART_BYTES));
        if value.len() <= PART_BYTES {
            head.push(INLINE);
            head.extend_from_slice(value);
        } else {
            let parts = value.chunks(PART_BYTES);
            head.push(PARTED);
            head.extend_from_slice(&self.next_part.to_be_bytes());
            head.extend_from_slice(&(parts.len() as u16).to_be_bytes());
            for (n, part) in parts.enumerate() {
                out.insert(&part_key(self.next_part, n as u16), part);
            }
            self.next_part += 1;
        }
        out.insert(key, head);
    }

    fn write(&self, out: ::sled::Batch) -> Result<(), StoreError> {
        self.rows.db()?.apply_batch(out).map_err(|e| self.rows.error(e))?;
        self.rows.db()?.flush().map_err(|e| self.rows.error(e))?;
        sync_data(&self.file, &self.home.join("db")).map_err(|e| self.rows.error(::sled::Error::Io(e)))
    }

    /// Of format 1: changes below this number are forgotten.
    pub fn old_forget(&self) -> Result<u64, StoreError> {
        let Some(bytes) = self.rows.db()?.get(FORGET_KEY).map_err(|e| self.rows.error(e))? else { return Ok(0) };
        Ok(u64::from_be_bytes(bytes.as_ref().try_into().map_err(|_| self.rows.damaged("the number of the first change"))?))
    }

    /// Of format 1: the changes from this number on.
    pub fn old_changes(&self, from: u64, visit: &mut dyn FnMut(u64, Vec<u8>) -> Result<(), StoreError>) -> Result<(), StoreError> {
        for entry in self.rows.db()?.range([b"c", from.to_be_bytes().as_slice()].concat().as_slice()..b"d".as_slice()) {
            let (key, head) = entry.map_err(|e| self.rows.error(e))?;
            let number = number_in(&key).ok_or_else(|| self.rows.damaged("a change's number"))?;
            visit(number, self.rows.value(&head)?.ok_or_else(|| self.rows.damaged(&format!("change {number}")))?)?;
        }
        Ok(())
    }

    /// Of format 1: take out what the log has now.
    pub fn drop_old(&mut self) -> Result<(), StoreError> {
        loop {
            let mut out = ::sled::Batch::default();
            let mut keys = 0;
            for entry in self.rows.db()?.range(b"c".as_slice()..b"n".as_slice()).take(OLD_CHANGES_PER_STEP_MAX) {
                let (key, head) = entry.map_err(|e| self.rows.error(e))?;
                drop_parts(&mut out, &head);
                out.remove(key);
                keys += 1;
            }
            if keys == 0 {
                return Ok(());
            }
            self.write(out)?;
        }
    }
}

impl Rows {
    fn db(&self) -> Result<::sled::Db, StoreError> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let gone = || StoreError::Io { path: self.path.to_string(), source: io::Error::other("the table could not be opened again") };
        db.clone().ok_or_else(gone)
    }

    /// What was just opened: its file, synced, and the next id of a part.
    fn look(&self, home: &Path) -> Result<(File, u64), StoreError> {
        let path = home.join("db");
        let sync = || {
            let file = File::open(&path)?;
            sync_data(&file, &path)?;
            sync_dir(home)?;
            Ok(file)
        };
        let file = sync().map_err(|source| StoreError::Io { path: path.display().to_string(), source })?;
        let last = self.db()?.range(b"p".as_slice()..b"q".as_slice()).next_back().transpose().map_err(|e| self.error(e))?;
        let next_part = match last {
            None => 0,
            Some((key, _)) => number_in(&key).ok_or_else(|| self.damaged("a part's number"))? + 1,
        };
        Ok((file, next_part))
    }

    /// One row.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let key = [b"r", key].concat();
        for _ in 0..READ_TRIES_MAX {
            let Some(head) = self.db()?.get(&key).map_err(|e| self.error(e))? else { return Ok(None) };
            if let Some(value) = self.value(&head)? {
                return Ok(Some(value));
            }
        }
        Err(self.damaged(&format!("row {:?}", String::from_utf8_lossy(&key[1..]))))
    }

    /// Rows whose key begins so, ascending, from this key on. The visitor says whether to go on.
    pub fn scan(&self, prefix: &[u8], from: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError> {
        for entry in self.db()?.range([b"r", from].concat()..) {
            let (key, head) = entry.map_err(|e| self.error(e))?;
            if key.first() != Some(&b'r') || !key[1..].starts_with(prefix) {
                break;
            }
            let value = match self.value(&head)? {
                Some(value) => Some(value),
                None => self.get(&key[1..])?,
            };
            if value.is_some_and(|value| !visit(&key[1..], &value)) {
                break;
            }
        }
        Ok(())
    }

    /// The value behind a head; None where a part is missing: it has been replaced, or the store is damaged.
    fn value(&self, head: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some((&INLINE, bytes)) = head.split_first() {
            return Ok(Some(bytes.to_vec()));
        }
        let (id, parts) = parts_of(head).ok_or_else(|| self.damaged("the head of a value"))?;
        let mut value = Vec::with_capacity(usize::from(parts) * PART_BYTES);
        for n in 0..parts {
            match self.db()?.get(part_key(id, n)).map_err(|e| self.error(e))? {
                Some(part) => value.extend_from_slice(&part),
                None => return Ok(None),
            }
        }
        Ok(Some(value))
    }

    fn damaged(&self, what: &str) -> StoreError {
        StoreError::Damaged { path: self.path.to_string(), what: what.to_string() }
    }

    fn error(&self, e: ::sled::Error) -> StoreError {
        sled_error(&self.path, e)
    }
}

pub fn sled_error(path: &str, e: ::sled::Error) -> StoreError {
    match e {
        ::sled::Error::Io(source) => StoreError::Io { path: path.to_string(), source },
        ::sled::Error::Corruption { at, .. } => {
            let what = at.map_or_else(|| "its table, in a place that sled does not name".to_string(), |at| format!("its table, {at:?}"));
            StoreError::Damaged { path: path.to_string(), what }
        }
        other => StoreError::Io { path: path.to_string(), source: io::Error::other(other) },
    }
}

/// sled alone, with the settings that the table needs.
pub fn open_sled(home: &Path, path: &str) -> Result<::sled::Db, StoreError> {
    let patience = Instant::now() + Duration::from_millis(SLED_LOCK_WAIT_MS);
    loop {
        match ::sled::Config::new().path(home).cache_capacity(CACHE_BYTES).flush_every_ms(None).open() {
            // We hold the lock of this store, so whoever holds sled's is about to end.
            Err(::sled::Error::Io(e)) if e.to_string().contains("could not acquire lock") => {
                if Instant::now() >= patience {
                    return Err(StoreError::Locked { path: path.to_string() });
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other.map_err(|e| sled_error(path, e)),
        }
    }
}

/// Take the parts of a value, if it has any.
fn drop_parts(out: &mut ::sled::Batch, head: &[u8]) {
    if let Some((id, parts)) = parts_of(head) {
        (0..parts).for_each(|n| out.remove(&part_key(id, n)));
    }
}

fn part_key(id: u64, n: u16) -> [u8; 11] {
    let mut key = [b'p'; 11];
    key[1..9].copy_from_slice(&id.to_be_bytes());
    key[9..].copy_from_slice(&n.to_be_bytes());
    key
}

/// The number behind a key's letter.
fn number_in(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(1..9)?.try_into().ok()?))
}

/// Part id and number of parts, where a value has them.
fn parts_of(head: &[u8]) -> Option<(u64, u16)> {
    let (tag, rest) = head.split_first()?;
    let (id, parts) = rest.split_at_checked(8)?;
    (*tag == PARTED).then_some((u64::from_be_bytes(id.try_into().ok()?), u16::from_be_bytes(parts.try_into().ok()?)))
}
