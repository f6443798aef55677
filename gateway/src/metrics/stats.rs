//! What the engine counts while it works: without locks, so that it costs nothing where nobody looks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::text::Text;
use crate::store::Batch;

/// Upper bounds of the buckets of commit times, in microseconds.
const BUCKETS_US: [u64; 12] = [250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000];
/// What waits for the engine.
const QUEUES: [&str; 3] = ["users", "parents", "children"];

/// Of one engine, since it started.
#[derive(Debug, Default)]
pub struct Stats {
    commits: AtomicU64,
    changes: AtomicU64,
    rows: AtomicU64,
    commit_us: AtomicU64,
    /// Commits of at most so long, and longer than the bucket before.
    buckets: [AtomicU64; BUCKETS_US.len()],
    queues: [AtomicU64; QUEUES.len()],
}

impl Stats {
    /// A batch is on disk.
    pub fn committed(&self, batch: &Batch, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.commits.fetch_add(1, Relaxed);
        self.changes.fetch_add(batch.changes.len() as u64, Relaxed);
        self.rows.fetch_add(batch.rows.len() as u64, Relaxed);
        self.commit_us.fetch_add(us, Relaxed);
        if let Some(k) = BUCKETS_US.iter().position(|bound| us <= *bound) {
            self.buckets[k].fetch_add(1, Relaxed);
        }
    }

    /// Messages that wait: of users, of parents, of children.
    pub fn waiting(&self, queues: [usize; QUEUES.len()]) {
        self.queues.iter().zip(queues).for_each(|(q, n)| q.store(n as u64, Relaxed));
    }

    /// On a page.
    pub fn write(&self, t: &mut Text) {
        t.counter("intergrid_changes_total", "Changes committed since this process started.").sample(&[], self.changes.load(Relaxed));
        t.counter("intergrid_rows_total", "Rows written since then.").sample(&[], self.rows.load(Relaxed));
        // Read first: while others count on, no bucket may hold more than all.
        let mut up_to = 0;
        let buckets: Vec<(f64, u64)> = BUCKETS_US
            .iter()
            .zip(&self.buckets)
            .map(|(us, n)| {
                up_to += n.load(Relaxed);
                (*us as f64 / 1e6, up_to)
            })
            .collect();
        let (count, sum_s) = (self.commits.load(Relaxed).max(up_to), self.commit_us.load(Relaxed) as f64 / 1e6);
        t.histogram("intergrid_commit_duration_seconds", "From a batch to its being on disk.", &buckets, count, sum_s);
        t.gauge("intergrid_queue_length", "Messages that wait for the engine.");
        QUEUES.iter().zip(&self.queues).for_each(|(name, n)| t.sample(&[("queue", name)], n.load(Relaxed)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_all_that_is_not_above_them() {
        let stats = Stats::default();
        for us in [100, 251, 900, 2_000_000] {
            stats.committed(&Batch::default(), Duration::from_micros(us));
        }
        let mut t = Text::default();
        stats.write(&mut t);
        let page = t.end();
        for line in
            ["_bucket{le=\"0.00025\"} 1", "_bucket{le=\"0.0005\"} 2", "_bucket{le=\"1\"} 3", "_bucket{le=\"+Inf\"} 4", "_count 4", "_sum 2.001251"]
        {
            assert!(page.contains(&format!("intergrid_commit_duration_seconds{line}\n")), "{line}: {page}");
        }
    }
}
