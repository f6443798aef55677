//! The embedded store: sled, made durable by our own `fdatasync`.
//!
//! One tree holds everything, so that one `sled::Batch` is one atomic step over rows, changes and what is forgotten:
//!
//! ```text
//! r <row key>                 a row                   value: 0, bytes | 1, part id (u64), parts (u16)
//! c <number, u64>             a change                as a row's
//! p <part id, u64> <n, u16>   a part of a value       bytes
//! m forget                    changes below are gone  number (u64)
//! ```
//!
//! Numbers are big-endian. A value longer than [`PART_BYTES`] is cut into parts with an id of their own, because sled moves a page (up to some 20 values)
//! of more than 128 KiB into a file that it never syncs. A row's new value takes a new part id, so a reader sees the old one or the new one whole.
//!
//! In the directory: `lock`, `format` (`intergrid store 1`) and `sled/`. A `format` that this program doesn't know is refused before sled is opened.
//! sled's own flush is `sync_file_range`, which survives kill -9 and not a power cut (sled#1452); so `commit` syncs the database file itself.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::{Batch, Reader, Store, StoreError};

/// The format that this program writes.
pub const FORMAT: u32 = 1;
/// What a `format` file begins with.
const FORMAT_WORDS: &str = "intergrid store ";
/// A longer value is cut: 20 of these and their keys stay well below sled's 128 KiB.
pub const PART_BYTES: usize = 4 * 1024;
/// Changes whose space one commit frees at most, so that a large truncation delays no commit for long.
pub const FORGET_PER_COMMIT_MAX: usize = 2_048;
/// sled's page cache.
const CACHE_BYTES: u64 = 8 << 20;
/// sled's threads may hold its file a moment longer than the store that was dropped.
const SLED_LOCK_WAIT_MS: u64 = 3_000;
/// A reader starts over when a row is replaced while it reads its parts.
const READ_TRIES_MAX: usize = 1_000;

const FORGET_KEY: &[u8] = b"mforget";
const INLINE: u8 = 0;
const PARTED: u8 = 1;

/// The database, and what keeps others out of it for as long as anybody reads.
#[derive(Clone)]
struct Shared {
    db: ::sled::Db,
    path: Arc<str>,
    _lock: Arc<File>,
}

/// sled behind [`Store`].
pub struct SledStore {
    shared: Shared,
    file: File,
    last: Option<u64>,
    forget: u64,
    forgetting: bool,
    next_part: u64,
    failed: bool,
}

impl SledStore {
    /// Open it, or make an empty one where there is none. Refused at once while another process has it open, and where its format is newer.
    pub fn open(dir: impl AsRef<Path>) -> Result<SledStore, StoreError> {
        let dir = dir.as_ref();
        let path: Arc<str> = dir.display().to_string().into();
        let io = |source| StoreError::Io { path: path.to_string(), source };
        std::fs::create_dir_all(dir).map_err(io)?;
        let lock = File::options().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(io)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StoreError::Locked { path: path.to_string() }),
            Err(e) => return Err(io(e.into())),
        }
        check_format(dir, &path)?;
        let home = dir.join("sled");
        let db = open_sled(&home, &path)?;
        let file = File::open(home.join("db")).map_err(io)?;
        file.sync_all().map_err(io)?;
        sync_dirs(&[&home, dir, dir.parent().unwrap_or(dir)]).map_err(io)?;
        let shared = Shared { db, path, _lock: Arc::new(lock) };

        let forget = match shared.db.get(FORGET_KEY).map_err(|e| shared.error(e))? {
            None => 0,
            Some(bytes) => u64::from_be_bytes(bytes.as_ref().try_into().map_err(|_| shared.damaged("the number of the first change"))?),
        };
        let last = shared.last_number(b'c')?.max(forget.checked_sub(1));
        let next_part = shared.last_number(b'p')?.map_or(0, |n| n + 1);
        Ok(SledStore { shared, file, last, forget, forgetting: true, next_part, failed: false })
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

    /// Take the parts of the value that is there now, if it has any.
    fn drop_parts(&self, out: &mut ::sled::Batch, head: &[u8]) {
        if let Some((id, parts)) = parts_of(head) {
            (0..parts).for_each(|n| out.remove(&part_key(id, n)));
        }
    }

    fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let db = self.shared.db.clone();
        let mut out = ::sled::Batch::default();
        // Of a key that comes twice, the last counts; its parts must not be left behind by the one before.
        let rows: std::collections::BTreeMap<_, _> = batch.rows.iter().map(|(key, value)| (key, value)).collect();
        for (key, value) in rows {
            let key = [b"r", key.as_slice()].concat();
            if let Some(old) = db.get(&key).map_err(|e| self.shared.error(e))? {
                self.drop_parts(&mut out, &old);
            }
            match value {
                Some(value) => self.put(&mut out, &key, value),
                None => out.remove(key),
            }
        }
        if let Some(below) = batch.truncate_below.filter(|below| *below > self.forget) {
            out.insert(FORGET_KEY, &below.to_be_bytes());
            self.forget = below;
            self.last = self.last.max(below.checked_sub(1));
            self.forgetting = true;
        }
        let forget = self.forget;
        for (number, bytes) in batch.changes.iter().filter(|(number, _)| *number >= forget) {
            self.put(&mut out, &change_key(*number), bytes);
        }
        if self.forgetting {
            let mut freed = 0;
            for entry in db.range(change_key(0)..change_key(self.forget)).take(FORGET_PER_COMMIT_MAX) {
                let (key, head) = entry.map_err(|e| self.shared.error(e))?;
                self.drop_parts(&mut out, &head);
                out.remove(key);
                freed += 1;
            }
            self.forgetting = freed == FORGET_PER_COMMIT_MAX;
        }
        db.apply_batch(out).map_err(|e| self.shared.error(e))?;
        db.flush().map_err(|e| self.shared.error(e))?;
        rustix::fs::fdatasync(&self.file).map_err(|e| self.shared.error(::sled::Error::Io(e.into())))
    }
}

impl Store for SledStore {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.failed {
            return Err(self.shared.error(::sled::Error::Io(io::Error::other("an earlier commit failed"))));
        }
        let last = batch.check(&self.shared.path, self.last)?;
        if batch.is_empty() && !self.forgetting {
            return Ok(());
        }
        self.last = last;
        // A sync that failed once may succeed later without having written anything: there is no second try.
        self.write(batch).inspect_err(|_| self.failed = true)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Reader::get(&self.shared, key)
    }

    fn scan(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError> {
        Reader::scan(&self.shared, prefix, visit)
    }

    fn changes(&self, from: u64, visit: &mut dyn FnMut(u64, &[u8]) -> bool) -> Result<(), StoreError> {
        for entry in self.shared.db.range(change_key(from.max(self.forget)).as_slice()..b"d".as_slice()) {
            let (key, head) = entry.map_err(|e| self.shared.error(e))?;
            let number = number_in(&key).ok_or_else(|| self.shared.damaged("a change's number"))?;
            let bytes = self.shared.value(&head)?.ok_or_else(|| self.shared.damaged(&format!("change {number}")))?;
            if !visit(number, &bytes) {
                break;
            }
        }
        Ok(())
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(self.shared.clone())
    }
}

impl Reader for Shared {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let key = [b"r", key].concat();
        for _ in 0..READ_TRIES_MAX {
            let Some(head) = self.db.get(&key).map_err(|e| self.error(e))? else { return Ok(None) };
            if let Some(value) = self.value(&head)? {
                return Ok(Some(value));
            }
        }
        Err(self.damaged(&format!("row {:?}", String::from_utf8_lossy(&key[1..]))))
    }

    fn scan(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError> {
        for entry in self.db.scan_prefix([b"r", prefix].concat()) {
            let (key, head) = entry.map_err(|e| self.error(e))?;
            let value = match self.value(&head)? {
                Some(value) => Some(value),
                None => Reader::get(self, &key[1..])?,
            };
            if value.is_some_and(|value| !visit(&key[1..], &value)) {
                break;
            }
        }
        Ok(())
    }
}

impl Shared {
    /// The value behind a head; None where a part is missing: it has been replaced, or the store is damaged.
    fn value(&self, head: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some((&INLINE, bytes)) = head.split_first() {
            return Ok(Some(bytes.to_vec()));
        }
        let (id, parts) = parts_of(head).ok_or_else(|| self.damaged("the head of a value"))?;
        let mut value = Vec::with_capacity(usize::from(parts) * PART_BYTES);
        for n in 0..parts {
            match self.db.get(part_key(id, n)).map_err(|e| self.error(e))? {
                Some(part) => value.extend_from_slice(&part),
                None => return Ok(None),
            }
        }
        Ok(Some(value))
    }

    /// The highest number behind a letter.
    fn last_number(&self, letter: u8) -> Result<Option<u64>, StoreError> {
        let last = self.db.range([letter]..[letter + 1]).next_back().transpose().map_err(|e| self.error(e))?;
        last.map(|(key, _)| number_in(&key).ok_or_else(|| self.damaged("a number"))).transpose()
    }

    fn damaged(&self, what: &str) -> StoreError {
        StoreError::Damaged { path: self.path.to_string(), what: what.to_string() }
    }

    fn error(&self, e: ::sled::Error) -> StoreError {
        sled_error(&self.path, e)
    }
}

fn sled_error(path: &str, e: ::sled::Error) -> StoreError {
    match e {
        ::sled::Error::Io(source) => StoreError::Io { path: path.to_string(), source },
        ::sled::Error::Corruption { at, .. } => StoreError::Damaged { path: path.to_string(), what: format!("{at:?}") },
        other => StoreError::Io { path: path.to_string(), source: io::Error::other(other) },
    }
}

fn open_sled(home: &PathBuf, path: &str) -> Result<::sled::Db, StoreError> {
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

/// Read the `format` file, or write it where the store is new.
fn check_format(dir: &Path, path: &str) -> Result<(), StoreError> {
    let file = dir.join("format");
    let io = |source| StoreError::Io { path: path.to_string(), source };
    let damaged = || StoreError::Damaged { path: path.to_string(), what: "its file `format`".into() };
    match std::fs::read_to_string(&file) {
        Ok(text) => match text.strip_prefix(FORMAT_WORDS).and_then(|n| n.trim_end().parse().ok()) {
            Some(FORMAT) => Ok(()),
            Some(found) if found > FORMAT => Err(StoreError::NewerFormat { path: path.to_string(), found, known: FORMAT }),
            Some(_) | None => Err(damaged()),
        },
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(damaged()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if dir.join("sled").exists() {
                return Err(damaged());
            }
            let new = dir.join("format.new");
            let write = || {
                let mut f = File::create(&new)?;
                writeln!(f, "{FORMAT_WORDS}{FORMAT}")?;
                f.sync_all()?;
                std::fs::rename(&new, &file)?;
                sync_dirs(&[dir])
            };
            write().map_err(io)
        }
        Err(e) => Err(io(e)),
    }
}

fn sync_dirs(dirs: &[&Path]) -> io::Result<()> {
    dirs.iter().filter(|d| !d.as_os_str().is_empty()).try_for_each(|d| File::open(d)?.sync_all())
}

fn change_key(number: u64) -> [u8; 9] {
    let mut key = [b'c'; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout of format 1, byte by byte. When this must change, so must FORMAT, and a store of format 1 must still open.
    #[test]
    fn golden_layout() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = SledStore::open(dir.path()).unwrap();
        let long = vec![7; PART_BYTES + 1];
        store
            .commit(&Batch {
                rows: vec![(b"j1".to_vec(), Some(b"row".to_vec()))],
                changes: vec![(258, long), (259, b"x".to_vec())],
                truncate_below: Some(2),
            })
            .unwrap();
        let hex = |bytes: &[u8]| bytes.iter().take(12).map(|b| format!("{b:02x}")).collect::<String>();
        let found: Vec<String> = store.shared.db.iter().map(|e| e.unwrap()).map(|(k, v)| format!("{} = {} {}", hex(&k), v.len(), hex(&v))).collect();
        let want = [
            "630000000000000102 = 11 0100000000000000000002",
            "630000000000000103 = 2 0078",
            "6d666f72676574 = 8 0000000000000002",
            "7000000000000000000000 = 4096 070707070707070707070707",
            "7000000000000000000001 = 1 07",
            "726a31 = 4 00726f77",
        ];
        assert_eq!(want.as_slice(), found);
        assert_eq!("intergrid store 1\n", std::fs::read_to_string(dir.path().join("format")).unwrap());
    }

    #[test]
    fn a_large_truncation_is_spread_over_commits() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = SledStore::open(dir.path()).unwrap();
        let n = FORGET_PER_COMMIT_MAX as u64 * 2 + 10;
        store.commit(&Batch { changes: (1..=n).map(|i| (i, vec![1; 8])).collect(), ..Batch::default() }).unwrap();
        store.commit(&Batch { truncate_below: Some(n), ..Batch::default() }).unwrap();
        let left = |store: &SledStore| store.shared.db.scan_prefix(b"c").count();
        assert_eq!(n as usize - FORGET_PER_COMMIT_MAX, left(&store));
        let mut seen = Vec::new();
        store
            .changes(0, &mut |number, _| {
                seen.push(number);
                true
            })
            .unwrap();
        assert_eq!(vec![n], seen);
        // A restart goes on where it was.
        drop(store);
        let mut store = SledStore::open(dir.path()).unwrap();
        (0..2).for_each(|_| store.commit(&Batch::default()).unwrap());
        assert_eq!(1, left(&store));
    }

    #[test]
    fn replaced_and_forgotten_values_leave_no_parts_and_no_page_leaves_the_synced_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = SledStore::open(dir.path()).unwrap();
        let big = vec![3; 64 * 1024];
        for round in 0..8u64 {
            let rows = (0..20u8).map(|k| (vec![k], Some(big.clone()))).chain([(vec![0], Some(big.clone()))]).collect();
            let changes = (0..20).map(|i| (round * 20 + i, big.clone())).collect();
            store.commit(&Batch { rows, changes, truncate_below: Some(round * 20) }).unwrap();
        }
        assert_eq!(0, std::fs::read_dir(dir.path().join("sled/blobs")).unwrap().count(), "a page outside of the synced file");
        store.commit(&Batch { rows: (0..20u8).map(|k| (vec![k], None)).collect(), truncate_below: Some(1_000), ..Batch::default() }).unwrap();
        assert_eq!(1, store.shared.db.iter().count(), "only the number of the first change is left");
    }
}
