//! The embedded store: a write-ahead log in front of rows in sled.
//!
//! A commit is one record of the [log](super::log), synced. Its rows are then held in memory, on top of the [table](super::table); they move there in bounded
//! steps when they have become many or a segment of the log is full, and until then the log has them. So whatever sled has, a row is there only after its
//! batch is durable, and a restart puts the rows of the log on top again, in order: the last value of each key wins, whatever sled kept.
//!
//! In the directory: `lock`, `format` (`intergrid store 4`), `log/` and `sled/`. A `format` that this program doesn't know is refused before anything else is
//! opened. Format 1 had changes in sled; they are copied into a log once. Format 2 had no tables of past jobs, which a program that knows it would not see;
//! with format 3 all chunks of past jobs were rows, and a program that knows it would not see those that are in a header. A new store begins as an empty one
//! of format 1.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use intergrid_proto::net::disk::{Disk, is_full};
use rustix::fs::{FlockOperation, flock};

use super::disk::{sync_data, sync_dir};
use super::log::Log;
use super::table::{Row, Rows, Table};
use super::{Batch, Reader, Store, StoreError};

/// The format that this program writes.
pub const FORMAT: u32 = 4;
/// The first one, which is migrated.
const FORMAT_1: u32 = 1;
/// What a `format` file begins with.
const FORMAT_WORDS: &str = "intergrid store ";
/// Rows in memory beyond which they begin to move.
pub const RECENT_BYTES_MAX: usize = 1 << 20;
/// What a row in memory takes beside its key and value, about.
const ROW_BYTES: usize = 96;
/// Rows moved with one commit; or twice what it brings, so that the end is reached.
pub const MOVED_ROWS_MAX: usize = 256;
/// See [`MOVED_ROWS_MAX`].
pub const MOVED_BYTES_MAX: usize = 256 << 10;
/// With less free no rows are moved: a step, and the segments that sled takes for it.
const MOVE_FREE_MIN_BYTES: u64 = 3 << 20;
/// Changes of a format 1 store copied with one record.
const MIGRATED_BYTES: usize = 1 << 20;

/// Rows that the table may lack. None: deleted.
#[derive(Default)]
struct Recent {
    rows: BTreeMap<Vec<u8>, Option<Arc<[u8]>>>,
    bytes: usize,
}

impl Recent {
    fn put(&mut self, key: &[u8], value: Option<&[u8]>) {
        self.take(key);
        self.bytes += row_bytes(key, value);
        self.rows.insert(key.to_vec(), value.map(Arc::from));
    }

    fn take(&mut self, key: &[u8]) {
        if let Some(old) = self.rows.remove(key) {
            self.bytes -= row_bytes(key, old.as_deref());
        }
    }
}

fn row_bytes(key: &[u8], value: Option<&[u8]>) -> usize {
    ROW_BYTES + key.len() + value.map_or(0, <[u8]>::len)
}

/// All rows, and what keeps others out of them for as long as anybody reads.
#[derive(Clone)]
struct Shared {
    recent: Arc<RwLock<Recent>>,
    table: Rows,
    _lock: Arc<File>,
}

/// The rows of the records up to one of them are on their way into the table.
struct Move {
    upto: u64,
    /// Keys up to this one are there.
    behind: Bound<Vec<u8>>,
}

/// Log and table behind [`Store`].
pub struct SledStore {
    path: Arc<str>,
    shared: Shared,
    log: Log,
    table: Table,
    /// The table has the rows of the records up to this one.
    applied: u64,
    moving: Option<Move>,
    recent_bytes_max: usize,
    moved_rows_max: usize,
    failed: bool,
    disk: Option<Disk>,
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
        let format = read_format(dir, &path)?;
        let mut table = Table::open(&dir.join("sled"), &path)?;
        [dir, dir.parent().unwrap_or(dir)].into_iter().try_for_each(sync_dir).map_err(io)?;
        let home = dir.join("log");
        if format == FORMAT_1 {
            // A log under its name is whole, whatever the file says.
            if !home.exists() {
                migrate(&table, &dir.join("log.new"), &path)?;
                std::fs::rename(dir.join("log.new"), &home).and_then(|()| sync_dir(dir)).map_err(io)?;
            }
        }
        if format < FORMAT {
            write_format(dir, FORMAT).map_err(io)?;
        }
        table.drop_old()?;
        let mut recent = Recent::default();
        let mut first = None;
        let log = Log::open(&home, &path, &mut |record, body| {
            first.get_or_insert(record);
            body.rows.into_iter().for_each(|(key, value)| recent.put(key, value));
        })?;
        let shared = Shared { recent: Arc::new(RwLock::new(recent)), table: table.rows().clone(), _lock: Arc::new(lock) };
        let applied = first.map_or(log.written(), |n| n - 1);
        let (recent_bytes_max, moved_rows_max) = (RECENT_BYTES_MAX, MOVED_ROWS_MAX);
        Ok(SledStore { path, shared, log, table, applied, moving: None, recent_bytes_max, moved_rows_max, failed: false, disk: None })
    }

    /// On this disk, the ballast of which is given up where the log finds no room.
    pub fn on(mut self, disk: Disk) -> SledStore {
        self.disk = Some(disk);
        self
    }

    /// Smaller bounds; for tests.
    #[cfg(test)]
    pub(super) fn bounds(&mut self, segment_bytes: u64, recent_bytes_max: usize, moved_rows_max: usize) {
        self.log.segment_bytes(segment_bytes);
        (self.recent_bytes_max, self.moved_rows_max) = (recent_bytes_max, moved_rows_max);
    }

    #[cfg(test)]
    pub(super) fn last_change(&self) -> Option<u64> {
        self.log.last()
    }

    #[cfg(test)]
    pub(super) fn log_mut(&mut self) -> &mut Log {
        &mut self.log
    }

    fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let record = self.log.append(batch, self.applied)?;
        {
            let mut recent = self.shared.recent.write().unwrap_or_else(PoisonError::into_inner);
            batch.rows.iter().for_each(|(key, value)| recent.put(key, value.as_deref()));
        }
        // The batch is durable; what is left to do can wait for room.
        if self.has_room()
            && let Err(e) = self.move_rows(record, batch)
        {
            self.await_room(e)?;
        }
        match self.log.release(self.applied) {
            Err(e) if e.is_full() => Ok(()),
            released => released,
        }
    }

    /// Rows stay in memory and in the log while the table might not find room: it does not get over an error in the middle of a write.
    fn has_room(&self) -> bool {
        self.disk.as_ref().is_none_or(|d| d.size().is_ok_and(|(free, _)| free >= MOVE_FREE_MIN_BYTES))
    }

    /// The table found no room: it is opened anew. All that it lacks is in the log.
    fn await_room(&mut self, e: StoreError) -> Result<(), StoreError> {
        if !e.is_full() {
            return Err(e);
        }
        tracing::warn!("{e}; rows stay in the log until there is room");
        self.give_up();
        self.moving = None;
        self.table.reopen()
    }

    fn give_up(&self) -> bool {
        self.disk.as_ref().is_some_and(Disk::give_up)
    }

    /// Move some rows into the table, where that is due. What changes behind the step is left for the next time; what changes before it moves as it is then:
    /// it is durable already.
    fn move_rows(&mut self, record: u64, batch: &Batch) -> Result<(), StoreError> {
        let recent = self.shared.recent.read().unwrap_or_else(PoisonError::into_inner);
        if self.moving.is_none() && (recent.bytes > self.recent_bytes_max || self.log.closed() > self.applied) {
            self.moving = Some(Move { upto: record, behind: Bound::Unbounded });
        }
        let Some(Move { upto, behind }) = self.moving.take() else { return Ok(()) };
        let brought: usize = batch.rows.iter().map(|(key, value)| row_bytes(key, value.as_deref())).sum();
        let (rows_max, bytes_max) = (self.moved_rows_max.max(2 * batch.rows.len()), MOVED_BYTES_MAX.max(2 * brought));
        let (mut step, mut bytes) = (Vec::<Row>::new(), 0);
        for (key, value) in recent.rows.range((behind, Bound::Unbounded)) {
            if step.len() == rows_max || bytes >= bytes_max {
                break;
            }
            bytes += row_bytes(key, value.as_deref());
            step.push((key.clone(), value.clone()));
        }
        drop(recent);
        let at_end = step.len() < rows_max && bytes < bytes_max;
        if !step.is_empty() {
            self.table.apply(&step)?;
        }
        match step.last().filter(|_| !at_end) {
            Some((last, _)) => self.moving = Some(Move { upto, behind: Bound::Excluded(last.clone()) }),
            None => self.applied = upto,
        }
        // Only now: a reader looks here first, and then into the table.
        let mut recent = self.shared.recent.write().unwrap_or_else(PoisonError::into_inner);
        step.iter().for_each(|(key, _)| recent.take(key));
        Ok(())
    }
}

impl Store for SledStore {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::Io { path: self.path.to_string(), source: io::Error::other("an earlier commit failed") });
        }
        batch.check(&self.path, self.log.last())?;
        if batch.is_empty() {
            return Ok(());
        }
        loop {
            match self.write(batch) {
                Err(e) if e.is_full() && self.give_up() => {}
                Err(StoreError::Io { path, source }) if is_full(&source) => return Err(StoreError::Full { path, source }),
                // A sync that failed otherwise may succeed later without having written anything: there is no second try.
                written => return written.inspect_err(|_| self.failed = true),
            }
        }
    }

    fn changes(&self, from: u64, visit: &mut dyn FnMut(u64, &[u8]) -> bool) -> Result<(), StoreError> {
        self.log.changes(from, visit)
    }

    fn reader(&self) -> Box<dyn Reader + Send + Sync> {
        Box::new(self.shared.clone())
    }
}

impl Reader for SledStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.shared.get(key)
    }

    fn scan_from(&self, prefix: &[u8], from: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError> {
        self.shared.scan_from(prefix, from, visit)
    }
}

impl Reader for Shared {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.recent.read().unwrap_or_else(PoisonError::into_inner).rows.get(key).cloned();
        found.map_or_else(|| self.table.get(key), |value| Ok(value.map(|v| v.to_vec())))
    }

    fn scan_from(&self, prefix: &[u8], from: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError> {
        let from = from.max(prefix);
        // All of them before the table is looked at: what leaves memory meanwhile might be behind a cursor there.
        let recent: Vec<Row> = {
            let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
            let rows = recent.rows.range::<[u8], _>((Bound::Included(from), Bound::Unbounded));
            rows.take_while(|(key, _)| key.starts_with(prefix)).map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let mut recent = recent.into_iter().peekable();
        let mut go_on = true;
        self.table.scan(prefix, from, &mut |key, value| {
            while go_on && let Some((first, other)) = recent.next_if(|(k, _)| k.as_slice() < key) {
                go_on = other.is_none_or(|v| visit(&first, &v));
            }
            go_on = go_on
                && match recent.next_if(|(k, _)| k == key) {
                    Some((_, other)) => other.is_none_or(|v| visit(key, &v)),
                    None => visit(key, value),
                };
            go_on
        })?;
        while go_on && let Some((key, value)) = recent.next() {
            go_on = value.is_none_or(|v| visit(&key, &v));
        }
        Ok(())
    }
}

/// A store of format 1: its changes into a new log. Its rows stay where they are.
fn migrate(table: &Table, home: &Path, path: &str) -> Result<(), StoreError> {
    let forget = table.old_forget()?;
    let mut log = Log::create(home, path, forget)?;
    let (mut batch, mut bytes) = (Batch::default(), 0);
    table.old_changes(forget, &mut |number, change| {
        bytes += change.len();
        batch.changes.push((number, change));
        if bytes >= MIGRATED_BYTES {
            log.append(&std::mem::take(&mut batch), 0)?;
            bytes = 0;
        }
        Ok(())
    })?;
    if batch.is_empty() { Ok(()) } else { log.append(&batch, 0).map(|_| ()) }
}

/// The format of what is there; a new store is begun.
fn read_format(dir: &Path, path: &str) -> Result<u32, StoreError> {
    let damaged = || StoreError::Damaged { path: path.to_string(), what: "its file `format`".into() };
    let io = |source| StoreError::Io { path: path.to_string(), source };
    match std::fs::read_to_string(dir.join("format")) {
        Ok(text) => match text.strip_prefix(FORMAT_WORDS).and_then(|n| n.trim_end().parse().ok()) {
            Some(found @ FORMAT_1..=FORMAT) => Ok(found),
            Some(found) if found > FORMAT => Err(StoreError::NewerFormat { path: path.to_string(), found, known: FORMAT }),
            Some(_) | None => Err(damaged()),
        },
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(damaged()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if dir.join("sled").exists() || dir.join("log").exists() {
                return Err(damaged());
            }
            write_format(dir, FORMAT_1).map_err(io)?;
            Ok(FORMAT_1)
        }
        Err(e) => Err(io(e)),
    }
}

fn write_format(dir: &Path, format: u32) -> io::Result<()> {
    let new = dir.join("format.new");
    let mut f = File::create(&new)?;
    writeln!(f, "{FORMAT_WORDS}{format}")?;
    sync_data(&f, &new)?;
    std::fs::rename(&new, dir.join("format"))?;
    sync_dir(dir)
}
