//! A store in memory with the semantics of the durable ones, for tests and the simulator: what was committed survives a "crash", nothing else does.
//!
//! [`MemDisk`] is the disk. A test opens a [`MemStore`] on it, drops that in the middle of anything, and opens the next one.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Batch, Reader, Store, StoreError};

const PATH: &str = "(memory)";

#[derive(Default)]
struct State {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    changes: BTreeMap<u64, Vec<u8>>,
    last: Option<u64>,
    forget: u64,
    open: bool,
    commits: u64,
    commits_left: Option<u64>,
}

/// What survives.
#[derive(Clone, Default)]
pub struct MemDisk(Arc<Mutex<State>>);

impl MemDisk {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// As a daemon does at its start; refused while another store is open on this disk.
    pub fn open(&self) -> Result<MemStore, StoreError> {
        let mut state = self.state();
        if state.open {
            return Err(StoreError::Locked { path: PATH.into() });
        }
        state.open = true;
        state.commits_left = None;
        Ok(MemStore { disk: self.clone() })
    }

    /// A copy, as a backup is one.
    pub fn copy(&self) -> MemDisk {
        let s = self.state();
        let (rows, changes, last, forget) = (s.rows.clone(), s.changes.clone(), s.last, s.forget);
        MemDisk(Arc::new(Mutex::new(State { rows, changes, last, forget, ..State::default() })))
    }

    /// After so many more commits the disk fails: later ones change nothing and return an error, until it is opened again.
    pub fn fail_after(&self, commits: u64) {
        self.state().commits_left = Some(commits);
    }

    /// Commits so far, over all openings.
    pub fn commits(&self) -> u64 {
        self.state().commits
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked elsewhere has not torn a batch: commits check first, then apply.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open [`MemDisk`]; closing is dropping.
pub struct MemStore {
    disk: MemDisk,
}

impl MemStore {
    /// On a disk of its own.
    pub fn new() -> Self {
        let disk = MemDisk::new();
        disk.state().open = true;
        MemStore { disk }
    }

    /// The disk below, to open again later.
    pub fn disk(&self) -> MemDisk {
        self.disk.clone()
    }
}

impl Default for MemStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for MemStore {
    fn drop(&mut self) {
        self.disk.state().open = false;
    }
}

impl Store for MemStore {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let mut state = self.disk.state();
        let last = batch.check(PATH, state.last)?;
        match &mut state.commits_left {
            Some(0) => return Err(StoreError::Io { path: PATH.into(), source: std::io::Error::other("failed on request") }),
            Some(n) => *n -= 1,
            None => {}
        }
        state.commits += 1;
        state.last = last;
        for (key, value) in &batch.rows {
            match value {
                Some(value) => state.rows.insert(key.clone(), value.clone()),
                None => state.rows.remove(key),
            };
        }
        state.changes.extend(batch.changes.iter().cloned());
        if let Some(below) = batch.truncate_below {
            state.forget = state.forget.max(below);
            state.last = state.last.max(below.checked_sub(1));
        }
        let forget = state.forget;
        let kept = state.changes.split_off(&forget);
        state.changes = kept;
        Ok(())
    }

    fn changes(&self, from: u64, visit: &mut dyn FnMut(u64, &[u8]) -> bool) -> Result<(), StoreError> {
        let mut next = Some(from);
        while let Some(at) = next {
            // One at a time, so that the visitor may read rows.
            let found = self.disk.state().changes.range(at..).next().map(|(n, bytes)| (*n, bytes.clone()));
            next = found.and_then(|(n, bytes)| if visit(n, &bytes) { n.checked_add(1) } else { None });
        }
        Ok(())
    }

    fn reader(&self) -> Box<dyn Reader + Send + Sync> {
        Box::new(self.disk.clone())
    }
}

impl Reader for MemStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.disk.get(key)
    }

    fn scan_from(&self, prefix: &[u8], from: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError> {
        self.disk.scan_from(prefix, from, visit)
    }
}

impl Reader for MemDisk {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.state().rows.get(key).cloned())
    }

    fn scan_from(&self, prefix: &[u8], from: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError> {
        let mut from = Bound::Included(from.max(prefix).to_vec());
        loop {
            let found = self.state().rows.range((from, Bound::Unbounded)).next().map(|(k, v)| (k.clone(), v.clone()));
            match found {
                Some((key, value)) if key.starts_with(prefix) && visit(&key, &value) => from = Bound::Excluded(key),
                _ => return Ok(()),
            }
        }
    }
}
