//! The store: what is durable at a site. A trait, so that the choice of the database is one file.
//!
//! Two kinds of things: *rows* (key to value, replaced and deleted) are checkpoints; *changes* are an append-only log with ascending numbers, and a
//! restart is rows plus the changes behind them. Law: when `commit` returns, all of the batch is durable, or (on an error) the process must end; after a
//! crash either all or none of a batch is there.

/// One batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Rows to put (Some) or delete (None). Keys are ours: a table's letter, then big-endian numbers.
    pub rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Changes to append: number, bytes. Numbers ascend over all batches.
    pub changes: Vec<(u64, Vec<u8>)>,
    /// Forget changes below this number.
    pub truncate_below: Option<u64>,
}

/// A row's or change's limit; larger ones are a fault of ours.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;

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
    /// Bytes that are not what was written.
    #[error("store {path} is damaged at {what}")]
    Damaged {
        /// Where.
        path: String,
        /// Which record.
        what: String,
    },
}

/// What is durable at a site. Used by one store thread.
pub trait Store: Send {
    /// All of it, durably, or nothing.
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError>;
    /// One row.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// Rows whose key begins so, ascending. The visitor says whether to go on.
    fn scan(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError>;
    /// Changes from this number on, ascending.
    fn changes(&self, from: u64, visit: &mut dyn FnMut(u64, &[u8]) -> bool) -> Result<(), StoreError>;
    /// A handle for reading rows (`get`, `scan`) from other threads while this one commits.
    fn reader(&self) -> Box<dyn Reader>;
}

/// Reads rows beside the store thread.
pub trait Reader: Send + Sync {
    /// One row.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// As [`Store::scan`].
    fn scan(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError>;
}
