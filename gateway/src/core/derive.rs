//! What is derived from the durable part of the state, computed anew after a load. Live it follows each change, in [`apply`](super::apply).

use intergrid_proto::Phase;

use super::state::*;

impl State {
    /// After a load: everything that is derived.
    pub fn derive(&mut self) {
        self.outstanding.clear();
        self.waiting.clear();
        self.placed_on.clear();
        let mut jobs = std::mem::take(&mut self.jobs);
        for job in jobs.values_mut() {
            self.index(job);
            job.counts = [0; 11];
            // A replay over newer rows can't say of which placement a task was that has gone since.
            job.ups.iter_mut().for_each(|(_, e)| e.open = 0);
            for (k, chunk) in job.chunks.iter().enumerate() {
                let n = (job.size - k as u32 * CHUNK_TASKS).min(CHUNK_TASKS);
                chunk.cells.runs(0, n, |a, b, c| {
                    job.counts[usize::from(c.phase.min(10))] += u64::from(b - a);
                    if let Some(e) = job.ups.get_mut(&c.up).filter(|_| c.is_open()) {
                        e.open += u64::from(b - a);
                    }
                });
            }
            job.queued = job.select(&job.all(), |c| c.phase() == Some(Phase::Queued));
            for (number, d) in &job.downs {
                *self.outstanding.entry((d.child, d.share.clone())).or_default() += d.cost * (d.open + d.fenced.len());
                self.placed_on.entry(d.child).or_default().insert(*number, job.no);
            }
            if !job.queued.is_empty() {
                self.waiting.entry(QueueKey::of(job)).or_default().insert(job.no);
            }
        }
        self.jobs = jobs;
        self.derive_held();
    }

    /// What is here for a parent, as it counts itself: of orphans it knows nothing.
    pub(super) fn derive_held(&mut self) {
        self.held_for.clear();
        for job in self.jobs.values() {
            let Some(parent) = job.parent else { continue };
            let now = self.links.get(&parent).map_or(0, |l| l.peer_incarnation);
            for e in job.ups.values().filter(|e| e.incarnation == now) {
                *self.held_for.entry((parent, e.share.clone())).or_default() += e.cost * e.open;
            }
        }
    }

    /// Is the job in the queue of its shape?
    pub(super) fn requeue_index(&mut self, job_no: u64) {
        let Some(job) = self.jobs.get(&job_no) else { return };
        let queue = QueueKey::of(job);
        if !job.queued.is_empty() {
            self.waiting.entry(queue).or_default().insert(job_no);
        } else if let Some(q) = self.waiting.get_mut(&queue) {
            q.remove(&job_no);
            if q.is_empty() {
                self.waiting.remove(&queue);
            }
        }
    }
}
