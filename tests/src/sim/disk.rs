//! A site's disk: what was committed is there after a crash, and nothing else; a batch that was under way is there as a whole or not at all, which is the
//! store's law (the real store is held to it by its own crash tests). It can be copied, so that a run can go back to an old one.

use std::collections::BTreeMap;
use std::ops::Bound;

use intergrid_gateway::store::{Batch, Reader, Store, StoreError};

/// Rows and changes.
#[derive(Clone, Default)]
pub struct Disk {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    changes: BTreeMap<u64, Vec<u8>>,
    last: u64,
    forget: u64,
}

impl Store for Disk {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        for (number, bytes) in &batch.changes {
            if *number <= self.last {
                return Err(StoreError::Refused { path: "(simulated)".into(), what: format!("change {number} after change {}", self.last) });
            }
            self.last = *number;
            self.changes.insert(*number, bytes.clone());
        }
        for (key, value) in &batch.rows {
            match value {
                Some(value) => self.rows.insert(key.clone(), value.clone()),
                None => self.rows.remove(key),
            };
        }
        if let Some(below) = batch.truncate_below.filter(|b| *b > self.forget) {
            self.forget = below;
            self.changes = self.changes.split_off(&below);
        }
        Ok(())
    }

    fn changes(&self, from: u64, visit: &mut dyn FnMut(u64, &[u8]) -> bool) -> Result<(), StoreError> {
        for (number, bytes) in self.changes.range(from..) {
            if !visit(*number, bytes) {
                break;
            }
        }
        Ok(())
    }

    fn reader(&self) -> Box<dyn Reader + Send + Sync> {
        Box::new(self.clone())
    }
}

impl Reader for Disk {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.rows.get(key).cloned())
    }

    fn scan_from(&self, prefix: &[u8], from: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), StoreError> {
        let from = (Bound::Included(from.max(prefix)), Bound::Unbounded);
        for (key, value) in self.rows.range::<[u8], _>(from).take_while(|(k, _)| k.starts_with(prefix)) {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}
