//! Ends of tasks as an LRMS's books tell them, kept in memory. The files are the truth; what is too old is forgotten.

use std::collections::{BTreeMap, VecDeque};

use crate::lrms::{LrmsId, Record};

/// Records that are kept in memory; the oldest go first.
pub const RECORDS_MAX: usize = 200_000;

/// Ends by job and position.
#[derive(Debug, Default)]
pub struct Records {
    tasks: BTreeMap<LrmsId, BTreeMap<u32, Record>>,
    order: VecDeque<(LrmsId, u32)>,
}

impl Records {
    /// One more. A task that was started over is over again: the last word counts.
    pub fn insert(&mut self, record: Record) {
        let key = (record.id, record.position);
        if self.tasks.entry(key.0).or_default().insert(key.1, record).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > RECORDS_MAX {
            let Some((id, position)) = self.order.pop_front() else { break };
            if let Some(tasks) = self.tasks.get_mut(&id) {
                tasks.remove(&position);
                if tasks.is_empty() {
                    self.tasks.remove(&id);
                }
            }
        }
    }

    /// Of these jobs.
    pub fn of(&self, ids: &[LrmsId]) -> Vec<Record> {
        ids.iter().filter_map(|id| self.tasks.get(id)).flat_map(|tasks| tasks.values().cloned()).collect()
    }

    /// Jobs with this name.
    pub fn named(&self, tag: &str) -> Vec<LrmsId> {
        self.tasks.iter().filter(|(_, tasks)| tasks.values().any(|r| r.tag == tag)).map(|(id, _)| *id).collect()
    }
}

/// `1024K`, `1.50M`, and by thousands `2m`; a number without a unit has bytes.
pub fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = match text.char_indices().next_back()? {
        (n, 'K') => (&text[..n], 1u64 << 10),
        (n, 'M') => (&text[..n], 1 << 20),
        (n, 'G') => (&text[..n], 1 << 30),
        (n, 'T') => (&text[..n], 1 << 40),
        (n, 'k') => (&text[..n], 1_000),
        (n, 'm') => (&text[..n], 1_000_000),
        (n, 'g') => (&text[..n], 1_000_000_000),
        _ => (text, 1),
    };
    let number: f64 = number.parse().ok()?;
    // A cast of what is negative, too large or no number stays within bounds.
    (number.is_finite() && number >= 0.0).then_some((number * unit as f64) as u64)
}
