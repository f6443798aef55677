//! The store: what is durable at a site. A trait, so that the choice of the database is one file.
//!
//! Two kinds of things: *rows* (key to value, replaced and deleted) are checkpoints; *changes* are an append-only log with ascending numbers, and a
//! restart is rows plus the changes behind them. Law: when `commit` returns, all of the batch is durable, or (on an error) the process must end; after a
//! crash either all or none of a batch is there.

mod disk;
mod log;
pub mod mem;
pub mod sled;
mod table;
#[cfg(test)]
mod tests;

use intergrid_proto::net::disk::is_full;

pub use self::mem::{MemDisk, MemStore};
pub use self::sled::SledStore;

/// One batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Rows to put (Some) or delete (None). Keys are ours: a table's letter, then big-endian numbers.
    pub rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Changes to append: number, bytes. Numbers ascend over all batches.
    pub changes: Vec<(u64, Vec<u8>)>,
    /// Forget changes below this number. They are out of sight at once; their space comes back later, in bounded steps.
    pub truncate_below: Option<u64>,
}

impl Batch {
    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.changes.is_empty() && self.truncate_below.is_none()
    }

    /// The bounds that every store refuses to break, before it changes anything. `last` is the highest change number so far; returns the new one.
    fn check(&self, path: &str, last: Option<u64>) -> Result<Option<u64>, StoreError> {
        let refuse = |what: String| Err(StoreError::Refused { path: path.to_string(), what });
        for (key, value) in &self.rows {
            if key.is_empty() || key.len() > KEY_BYTES_MAX {
                return refuse(format!("a row's key of {} bytes (1 to {KEY_BYTES_MAX} are allowed)", key.len()));
            }
            if let Some(bytes) = value.as_ref().map(Vec::len).filter(|n| *n > RECORD_BYTES_MAX) {
                return refuse(format!("a row of {bytes} bytes (at most {RECORD_BYTES_MAX})"));
            }
        }
        let rows: usize = self.rows.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum();
        let bytes = rows + self.changes.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
        if bytes > BATCH_BYTES_MAX {
            return refuse(format!("{bytes} bytes (at most {BATCH_BYTES_MAX})"));
        }
        let mut last = last;
        for (number, bytes) in &self.changes {
            if last.is_some_and(|last| *number <= last) {
                return refuse(format!("change {number} after change {}", last.unwrap_or_default()));
            }
            if bytes.len() > RECORD_BYTES_MAX {
                return refuse(format!("change {number} of {} bytes (at most {RECORD_BYTES_MAX})", bytes.len()));
            }
            last = Some(*number);
        }
        Ok(last)
    }
}

/// A row's or change's limit, above anything that one message of a peer can make; what is larger is a fault of ours. Most are below 64 KiB; the store
/// cuts them as it needs.
pub const RECORD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// All of a batch; far above what one turn can make.
pub const BATCH_BYTES_MAX: usize = 1 << 30;
/// A row's key.
pub const KEY_BYTES_MAX: usize = 256;

/// What the store says when it can't.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database itself.
    #[error("store {path}: {source}; check the disk, then start again")]
    Io {
        /// Where.
        path: String,
        /// What.
        source: std::io::Error,
    },
    /// There is no room: nothing of the batch counts, and the very same batch may be committed again, any number of times.
    #[error("store {path}: {source}; make room on its disk: it goes on by itself")]
    Full {
        /// Where.
        path: String,
        /// What.
        source: std::io::Error,
    },
    /// Written by a later version of this program.
    #[error("store {path} has format {found}, this program knows up to {known}; use the version that wrote it")]
    NewerFormat {
        /// Where.
        path: String,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Another process has it open.
    #[error("store {path} is in use by another process; two daemons can't share one store")]
    Locked {
        /// Where.
        path: String,
    },
    /// A batch that breaks a bound; nothing of it was written, the store goes on.
    #[error("store {path} refuses a batch with {what}; this is a fault of this program, please report it")]
    Refused {
        /// Where.
        path: String,
        /// The record.
        what: String,
    },
    /// Bytes that are not what was written.
    #[error("store {path} is damaged at {what}; restore it from a copy, or move it away and start with an empty one")]
    Damaged {
        /// Where.
        path: String,
        /// Which record.
        what: String,
    },
}

impl StoreError {
    /// Is it that there is no room?
    pub fn is_full(&self) -> bool {
        matches!(self, StoreError::Io { source, .. } | StoreError::Full { source, .. } if is_full(source))
    }
}

/// What is durable at a site. Used by one store thread.
pub trait Store: Reader + Send {
    /// All of it, durably, or nothing. After `Full` the same batch may come again, and no other; after any other error but `Refused` the store takes no
    /// further batch: the process must end and recover.
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError>;
    /// Changes from this number on, ascending.
    fn changes(&self, from: u64, visit: &mut dyn FnMut(u64, &[u8]) -> bool) -> Result<(), StoreError>;
    /// A handle for reading rows from other threads while this one commits.
    fn reader(&self) -> Box<dyn Reader + Send + Sync>;
}

/// Reads rows, also beside the store thread. One row is always whole; two rows may be from either side of a batch.
pub trait Reader {
    /// One row.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// Rows whose key begins so, ascending, from this key on. The visitor says whether to go on.
    fn scan_from(&self, prefix: &[u8], from: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError>;
    /// All of them.
    fn scan(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError> {
        self.scan_from(prefix, prefix, visit)
    }
}
