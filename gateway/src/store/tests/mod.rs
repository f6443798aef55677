//! What the store's files go through: torn tails, damage, power cuts, a full disk, an older format. The laws of every store are in the crate's own tests.

mod log;
mod power;
mod store;

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::{Batch, Store};

/// What is in a store: rows and changes.
pub type Content = (BTreeMap<Vec<u8>, Vec<u8>>, BTreeMap<u64, Vec<u8>>);

/// What a store should hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    pub content: Content,
    forget: u64,
}

impl Model {
    pub fn take(&mut self, batch: &Batch) {
        for (key, value) in &batch.rows {
            match value {
                Some(value) => self.content.0.insert(key.clone(), value.clone()),
                None => self.content.0.remove(key),
            };
        }
        self.content.1.extend(batch.changes.iter().cloned());
        self.forget = self.forget.max(batch.truncate_below.unwrap_or(0));
        self.content.1.retain(|n, _| *n >= self.forget);
    }
}

pub fn content(store: &dyn Store) -> Content {
    let mut found = Content::default();
    let mut row = |k: &[u8], v: &[u8]| found.0.insert(k.to_vec(), v.to_vec()).is_none();
    store.scan(b"", &mut row).unwrap();
    for (key, value) in &found.0 {
        assert_eq!(Some(value), store.get(key).unwrap().as_ref());
    }
    store.changes(0, &mut |n, v| found.1.insert(n, v.to_vec()).is_none()).unwrap();
    found
}

/// A place that needs no disk: what is tested is what we do, not what it does.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// A batch; its changes are to follow those before.
#[derive(Clone, Debug)]
pub struct Draft {
    rows: Vec<(u8, Option<usize>)>,
    changes: Vec<usize>,
    truncate: Option<u64>,
    fill: u8,
}

impl Draft {
    pub fn batch(&self, next: &mut u64) -> Batch {
        let rows = self.rows.iter().map(|(key, bytes)| (vec![*key], bytes.map(|n| vec![self.fill; n]))).collect();
        let first = *next;
        *next += self.changes.len() as u64;
        let changes = (first..).zip(&self.changes).map(|(n, bytes)| (n, vec![self.fill ^ 1; *bytes])).collect();
        Batch { rows, changes, truncate_below: self.truncate.map(|back| next.saturating_sub(back)) }
    }
}

/// Batches that are not empty, and their largest row, about.
pub fn drafts(most: usize, bytes: usize) -> impl Strategy<Value = Vec<Draft>> {
    let rows = proptest::collection::vec((0u8..40, proptest::option::weighted(0.8, prop_oneof![9 => 0usize..300, 1 => bytes / 2..bytes])), 0..5);
    let parts = (rows, proptest::collection::vec(0usize..200, 0..4), proptest::option::weighted(0.3, 0u64..12), any::<u8>());
    let draft = parts.prop_map(|(rows, changes, truncate, fill)| Draft { rows, changes, truncate, fill });
    proptest::collection::vec(draft.prop_filter("empty", |d| !d.batch(&mut 1).is_empty()), 1..most)
}
