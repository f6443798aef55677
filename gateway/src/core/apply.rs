//! How a change alters the state: the only place that does, alike when it happens and when it is replayed. An entity that a row has brought
//! beyond a change's number is left alone. Derived values are kept up to date live, and computed anew after a load.

use std::collections::BTreeSet;
use std::sync::Arc;

use intergrid_proto::{BlobHash, Phase, SiteId, TaskSet};

use super::change::{self, What};
use super::planted::{Plant, planted};
use super::state::*;

/// What has to be written as a row at the next checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RowKey {
    /// Incarnation and counters.
    Meta,
    /// A job's header.
    Job(u64),
    /// 4,096 tasks of it.
    Chunk(u64, u32),
    /// A parent's placement, by the job's own count.
    Up(u64, u32),
    /// Our placement, by number.
    Down(u64, u64),
    /// A parent.
    Link(SiteId),
    /// A child.
    Child(SiteId),
    /// Who takes no new work.
    Drain(SiteId),
}

/// Rows that lag behind the changes.
pub type Dirty = BTreeSet<RowKey>;

/// How a set of cells changes.
struct CellChange<'a> {
    phase: Phase,
    f: &'a dyn Fn(&mut Cell, usize),
    /// `f` does not look at the position, so that a chunk of equal cells stays one.
    uniform: bool,
}

impl State {
    /// Apply one change. `live`: derived values follow.
    pub fn apply(&mut self, seq: u64, what: &What, dirty: &mut Dirty, live: bool) {
        match what {
            What::Born(b) if seq < self.meta_from => _ = b,
            What::Born(b) => {
                if self.incarnation != 0 && self.incarnation != b.incarnation {
                    self.past.push(self.incarnation);
                    self.former = self.former.max(self.next_number);
                    if !self.recovering {
                        self.doubt_from = self.next_number;
                    }
                    // Numbers of jobs are names that users and other sites know: those that this store has forgotten are not given again.
                    self.next_job += super::limits::JOBS_SKIPPED;
                    // Events of an older incarnation are no longer asked for.
                    for link in self.links.values_mut() {
                        while link.outbox.front().is_some_and(|e| e.1 < seq) {
                            link.forget_first();
                        }
                    }
                }
                if self.incarnation == 0 {
                    // Nor those of a store that was here before this one, as far as chance goes.
                    self.next_job = self.next_job.max((b.incarnation >> 24) % super::limits::JOBS_BEGIN_MAX * super::limits::JOBS_SKIPPED);
                }
                if self.incarnation == b.incarnation && b.recovering && !self.recovering {
                    self.doubt_from = 0;
                }
                if b.told != 0 && !self.past.contains(&b.told) {
                    self.past.push(b.told);
                }
                let many = self.past.len().saturating_sub(super::limits::INCARNATIONS_KEPT_MAX);
                self.past.drain(..many);
                (self.incarnation, self.recovering) = (b.incarnation, b.recovering);
                dirty.insert(RowKey::Meta);
            }
            What::Job(j) => self.apply_job(seq, j, dirty),
            What::Tasks(t) => self.apply_tasks(seq, t, dirty, live),
            What::Want(w) => {
                let want = change::want(&w.want);
                match self.jobs.get_mut(&w.job) {
                    Some(job) if seq > job.seq && (live || !planted(Plant::ReplayForgets)) => {
                        job.seq = seq;
                        job.want = want;
                        job.want_version += 1;
                        dirty.insert(RowKey::Job(w.job));
                    }
                    Some(_) => {}
                    // It is past: its row has this.
                    None if w.job != 0 => {}
                    None => {
                        let id = change::site(&w.parent);
                        let link = self.links.entry(id).or_default();
                        if seq > link.wants_seq {
                            link.wants_seq = seq;
                            link.wants.insert(want.job, want);
                            while link.wants.len() > super::limits::WANTS_UNKNOWN_MAX || ranges(&link.wants) > super::limits::WANTS_RANGES_MAX {
                                link.wants.pop_first();
                            }
                            dirty.insert(RowKey::Link(id));
                        }
                    }
                }
            }
            What::Placed(p) => self.apply_placed(seq, p, dirty, live),
            What::Accepted(p) => {
                if let Some(d) = self.jobs.get_mut(&p.job).and_then(|j| j.downs.get_mut(&p.number)).filter(|d| seq > d.seq) {
                    (d.seq, d.accepted) = (seq, true);
                    dirty.insert(RowKey::Down(p.job, p.number));
                }
            }
            What::Ended(e) => {
                let tasks = change::tasks(&e.tasks);
                let phase = Phase::from_number(e.phase).unwrap_or(Phase::Failed);
                self.leave_down(seq, e.job, e.number, &tasks, false, dirty, live);
                let exit = |k: usize| intergrid_proto::link::at(&e.exit, k).unwrap_or(1025) as u16;
                // Where it was is in the history. Ends that are alike take the room of one.
                let f = |c: &mut Cell, k: usize| (c.exit, c.attempts, c.down) = (exit(k), e.attempts.min(255) as u8, 0);
                self.set_cells(seq, e.job, &tasks, CellChange { phase, f: &f, uniform: e.exit.len() <= 1 }, dirty, live);
                self.leave_up(seq, e.job, &tasks, dirty, live);
                if let Some(job) = self.jobs.get_mut(&e.job).filter(|j| seq > j.seq) {
                    job.seq = seq;
                    job.ended_ms = job.ended_ms.max(e.at_ms);
                    job.spent_micro = job.spent_micro.saturating_add(e.spent_micro);
                    if let Some(child) = SiteId::from_slice(&e.child) {
                        *job.ended_at.get_or_default(child) += tasks.len();
                        *self.ended_on.entry(child).or_default() += tasks.len();
                    }
                    dirty.insert(RowKey::Job(e.job));
                }
                self.ended += tasks.len();
            }
            What::Requeued(r) | What::Fenced(r) => {
                let tasks = change::tasks(&r.tasks);
                self.leave_down(seq, r.job, r.number, &tasks, matches!(what, What::Fenced(_)), dirty, live);
                if let Some(job) = self.jobs.get_mut(&r.job).filter(|j| r.spent_micro > 0 && seq > j.seq) {
                    (job.seq, job.spent_micro) = (seq, job.spent_micro.saturating_add(r.spent_micro));
                    dirty.insert(RowKey::Job(r.job));
                }
                let phase = if r.held { Phase::Held } else { Phase::Queued };
                let f = |c: &mut Cell, _: usize| (c.down, c.attempts) = (0, r.attempts.min(255) as u8);
                self.set_cells(seq, r.job, &tasks, CellChange { phase, f: &f, uniform: true }, dirty, live);
            }
            What::Stopped(s) => {
                let tasks = change::tasks(&s.tasks);
                if let Some(job) = self.jobs.get_mut(&s.job)
                    && let Some(d) = job.downs.get_mut(&s.number).filter(|d| seq > d.seq)
                {
                    d.seq = seq;
                    let gone = d.fenced.intersect(&tasks);
                    d.fenced = d.fenced.subtract(&gone);
                    let (child, share, slots) = (d.child, d.share.clone(), d.cost * gone.len());
                    dirty.insert(RowKey::Down(s.job, s.number));
                    self.outstanding_less(live, child, share, slots);
                    self.drop_down_if_over(s.job, s.number);
                }
            }
            What::GivenBack(g) => {
                let tasks = change::tasks(&g.tasks);
                self.leave_up(seq, g.job, &tasks, dirty, live);
                self.set_absent(seq, g.job, &tasks, dirty, live);
            }
            What::Phase(p) => {
                let tasks = change::tasks(&p.tasks);
                let phase = Phase::from_number(p.phase).unwrap_or(Phase::Queued);
                let f = |c: &mut Cell, _: usize| {
                    if p.anew {
                        c.attempts = 0;
                    }
                    no_doubt(c);
                    if p.lost {
                        c.exit = EXIT_LOST_BELOW;
                    }
                };
                self.set_cells(seq, p.job, &tasks, CellChange { phase, f: &f, uniform: true }, dirty, live);
            }
            What::Cursor(c) => {
                let id = change::site(&c.peer);
                let cursor = self.cursors.entry(id).or_default();
                if seq > cursor.seq {
                    (cursor.seq, cursor.incarnation, cursor.sequence) = (seq, c.incarnation, c.number);
                    if !c.name.is_empty() {
                        (cursor.name, cursor.kind) = (c.name.clone(), c.kind);
                    }
                    cursor.here = if c.attached > 0 { c.attached == 1 } else { cursor.here };
                    dirty.insert(RowKey::Child(id));
                }
                cursor.renewed_at = cursor.renewed_at.max(c.complete_from);
                if c.issued > 0 {
                    (cursor.issued, self.next_number) = (cursor.issued.max(c.issued), self.next_number.max(c.issued));
                    dirty.extend([RowKey::Child(id), RowKey::Meta]);
                }
            }
            What::Adopted(t) => self.apply_adopted(seq, t, dirty, live),
            What::Doubted(d) => {
                // A number names the placement that the child has forgotten.
                let f = |c: &mut Cell, _: usize| c.exit = if d.number > 0 { EXIT_FORGOTTEN } else { EXIT_DOUBTFUL };
                self.set_cells(seq, d.job, &change::tasks(&d.tasks), CellChange { phase: Phase::Held, f: &f, uniform: true }, dirty, live);
            }
            // The last word counts; a log is never cut behind it.
            What::Drained(d) => {
                let site = change::site(&d.site);
                match d.drained {
                    true => _ = self.drains.insert(site, Drain { reason: d.reason.clone(), by: d.by.clone(), since_ms: d.since_ms }),
                    false => _ = self.drains.remove(&site),
                }
                dirty.insert(RowKey::Drain(site));
            }
            What::Throttled(t) => {
                if let Some(job) = self.jobs.get_mut(&t.job) {
                    job.at_once = Some(t.at_once);
                    dirty.insert(RowKey::Job(t.job));
                }
            }
            What::Seen(c) => {
                let id = change::site(&c.peer);
                let link = self.links.entry(id).or_default();
                let renewed = live && seq > link.seq && link.peer_incarnation != c.incarnation;
                if seq > link.seq {
                    if link.peer_incarnation != c.incarnation {
                        // Events and registers were for a store that is no more.
                        link.outbox = Default::default();
                        link.outbox_bytes = 0;
                        link.wants.clear();
                    }
                    (link.seq, link.peer_incarnation, link.seen) = (seq, c.incarnation, c.number);
                    link.complete_from = link.complete_from.max(c.complete_from);
                    link.heard = if c.heard > 0 { c.heard } else { link.heard };
                    if !c.name.is_empty() {
                        link.name = c.name.clone();
                    }
                    dirty.insert(RowKey::Link(id));
                }
                if renewed {
                    self.derive_held();
                }
            }
            What::Emit(e) => {
                let id = change::site(&e.parent);
                let link = self.links.entry(id).or_default();
                link.next = link.next.max(e.sequence);
                if let Some(event) = e.event.clone().and_then(|e| e.try_into().ok())
                    && e.sequence > link.acked
                    && link.outbox.back().is_none_or(|b| b.0 < e.sequence)
                {
                    link.keep(e.sequence, seq, e.at_ms, event);
                }
                dirty.insert(RowKey::Link(id));
            }
            What::Acked(c) => {
                let id = change::site(&c.peer);
                let link = self.links.entry(id).or_default();
                link.acked = link.acked.max(c.number);
                while link.outbox.front().is_some_and(|e| e.0 <= link.acked) {
                    link.forget_first();
                }
                dirty.insert(RowKey::Link(id));
            }
        }
    }

    fn apply_job(&mut self, seq: u64, j: &change::JobNew, dirty: &mut Dirty) {
        self.next_job = self.next_job.max(j.job);
        dirty.insert(RowKey::Meta);
        let Some(hash) = BlobHash::from_slice(&j.spec_hash) else { return };
        let Some(spec) = self.specs.get(&hash).and_then(|s| s.upgrade()) else { return };
        if self.jobs.contains_key(&j.job) {
            return;
        }
        let job = Job::new(seq, j, hash, spec);
        self.index(&job);
        self.jobs.insert(j.job, Box::new(job));
        dirty.insert(RowKey::Job(j.job));
    }

    /// Names by which a job is found.
    pub fn index(&mut self, job: &Job) {
        match job.parent {
            Some(p) => {
                self.by_parent.insert((p, job.parent_incarnation, job.parent_job), job.no);
                for e in job.ups.values().filter(|e| (e.incarnation, e.job) != (job.parent_incarnation, job.parent_job)) {
                    self.adopted.entry((p, e.incarnation, e.job)).or_default().insert(job.no);
                }
            }
            None => _ = self.by_key.insert((job.owner, job.key.clone()), job.no),
        }
    }

    fn apply_tasks(&mut self, seq: u64, t: &change::TasksAdded, dirty: &mut Dirty, live: bool) {
        let share = self.intern(&t.share);
        let tasks = change::tasks(&t.tasks);
        let Some(job) = self.jobs.get_mut(&t.job) else { return };
        // A placement that is added in several changes is one entry.
        let (incarnation, parent_job) = match t.incarnation {
            0 => (job.parent_incarnation, job.parent_job),
            i => (i, t.parent_job),
        };
        let (open, most_micro) = (tasks.len(), t.most_micro);
        let entry = UpEntry { seq, number: t.number, share, incarnation, job: parent_job, cost: t.cost, open, most_micro };
        let up = enter_up(job, entry);
        dirty.insert(RowKey::Up(t.job, up));
        dirty.insert(RowKey::Job(t.job));
        if live {
            self.hold(t.job, up, tasks.len(), true);
        }
        let f = |c: &mut Cell, _: usize| *c = Cell { phase: c.phase, attempts: t.attempts.min(255) as u8, exit: 0, up, down: 0 };
        self.set_cells(seq, t.job, &tasks, CellChange { phase: Phase::Queued, f: &f, uniform: true }, dirty, live);
    }

    /// As they are, under another placement of the parent; what was in doubt waits to be started.
    fn apply_adopted(&mut self, seq: u64, t: &change::TasksAdded, dirty: &mut Dirty, live: bool) {
        let (share, tasks) = (self.intern(&t.share), change::tasks(&t.tasks));
        let Some(job) = self.jobs.get_mut(&t.job) else { return };
        let (number, incarnation, of) = (t.number, t.incarnation, t.parent_job);
        let (open, most_micro) = (t.open, t.most_micro);
        let ord = enter_up(job, UpEntry { seq, number, share, incarnation, job: of, cost: t.cost, open, most_micro });
        let mut left = false;
        if let Some(e) = job.ups.get_mut(&t.from).filter(|e| seq > e.seq) {
            (e.seq, e.open, left) = (seq, e.open.saturating_sub(t.open), true);
        }
        let parent = job.parent;
        dirty.extend([RowKey::Up(t.job, ord), RowKey::Up(t.job, t.from), RowKey::Job(t.job)]);
        let freed = job.select(&tasks, Cell::is_doubtful);
        each_cell(job, seq, &tasks, true, dirty, &|c, _| {
            c.up = ord;
            if c.is_doubtful() {
                (c.phase, c.exit) = (Phase::Queued as u8, 0);
            }
        });
        if let Some(parent) = parent {
            self.adopted.entry((parent, t.incarnation, t.parent_job)).or_default().insert(t.job);
            if live {
                self.hold(t.job, ord, t.open, true);
            }
            if live && left {
                self.hold(t.job, t.from, t.open, false);
            }
        }
        if live && let Some(job) = self.jobs.get_mut(&t.job) {
            job.queued = job.queued.union(&freed);
            self.requeue_index(t.job);
        }
    }

    fn apply_placed(&mut self, seq: u64, p: &change::Placed, dirty: &mut Dirty, live: bool) {
        self.next_number = self.next_number.max(p.number);
        dirty.insert(RowKey::Meta);
        let (child, share, tasks) = (change::site(&p.child), self.intern(&p.share), change::tasks(&p.tasks));
        let cursor = self.cursors.entry(child).or_default();
        if p.number > cursor.issued {
            cursor.issued = p.number;
            dirty.insert(RowKey::Child(child));
        }
        let Some(job) = self.jobs.get_mut(&p.job) else { return };
        let entry = DownEntry {
            seq,
            child,
            share: share.clone(),
            accepted: false,
            cost: p.cost,
            attempts: p.attempts,
            open: tasks.len(),
            fenced: TaskSet::new(),
            adopt: p.adopt.map(Into::into),
            most_micro: p.most_micro,
        };
        job.downs.entry(p.number).or_insert(entry);
        // From here on this child has had the job: late word of it is taken.
        job.ended_at.get_or_default(child);
        dirty.insert(RowKey::Job(p.job));
        dirty.insert(RowKey::Down(p.job, p.number));
        self.placed_on.entry(child).or_default().insert(p.number, p.job);
        if live {
            *self.outstanding.entry((child, share)).or_default() += p.cost * tasks.len();
        }
        let f = |c: &mut Cell, _: usize| {
            c.down = p.number;
            no_doubt(c);
        };
        self.set_cells(seq, p.job, &tasks, CellChange { phase: Phase::Placed, f: &f, uniform: true }, dirty, live);
    }

    /// Tasks leave their current placement: ended, back, or fenced.
    #[allow(clippy::too_many_arguments)]
    fn leave_down(&mut self, seq: u64, job_no: u64, number: u64, tasks: &TaskSet, fence: bool, dirty: &mut Dirty, live: bool) {
        let Some(job) = self.jobs.get_mut(&job_no) else { return };
        let Some(d) = job.downs.get_mut(&number).filter(|d| seq > d.seq) else { return };
        d.seq = seq;
        d.open = d.open.saturating_sub(tasks.len());
        dirty.insert(RowKey::Down(job_no, number));
        if fence {
            d.fenced = d.fenced.union(tasks);
        } else {
            let (child, share, slots) = (d.child, d.share.clone(), d.cost * tasks.len());
            self.outstanding_less(live, child, share, slots);
        }
        self.drop_down_if_over(job_no, number);
    }

    fn drop_down_if_over(&mut self, job_no: u64, number: u64) {
        let Some(job) = self.jobs.get_mut(&job_no) else { return };
        if job.downs.get(&number).is_some_and(|d| d.open == 0 && d.fenced.is_empty())
            && let Some(d) = job.downs.remove(&number)
            && let Some(on) = self.placed_on.get_mut(&d.child)
        {
            on.remove(&number);
        }
    }

    fn outstanding_less(&mut self, live: bool, child: SiteId, share: Arc<str>, slots: u64) {
        let of = (child, share);
        if live
            && !planted(Plant::CreditKept)
            && let Some(o) = self.outstanding.get_mut(&of)
        {
            *o = o.saturating_sub(slots);
            if *o == 0 {
                self.outstanding.remove(&of);
            }
        }
    }

    /// Tasks are no longer the parent's concern: ended or given back.
    fn leave_up(&mut self, seq: u64, job_no: u64, tasks: &TaskSet, dirty: &mut Dirty, live: bool) {
        let Some(job) = self.jobs.get_mut(&job_no) else { return };
        let groups = if job.ups.len() == 1 {
            job.ups.keys().map(|k| (*k, tasks.len())).collect::<Vec<_>>()
        } else {
            job.by_up(tasks).into_iter().map(|(k, t)| (k, t.len())).collect()
        };
        for (up, n) in groups {
            let Some(e) = self.jobs.get_mut(&job_no).and_then(|j| j.ups.get_mut(&up)).filter(|e| seq > e.seq) else { continue };
            (e.seq, e.open) = (seq, e.open.saturating_sub(n));
            dirty.insert(RowKey::Up(job_no, up));
            if live {
                self.hold(job_no, up, n, false);
            }
        }
    }

    /// As [`derive_held`](Self::derive_held) counts: so many tasks of a parent's placement are here, or are no longer. It has the share that it came with first,
    /// whatever share the orphans had that are adopted under it.
    fn hold(&mut self, job_no: u64, up: u32, tasks: u64, come: bool) {
        let Some(job) = self.jobs.get(&job_no) else { return };
        let (Some(parent), Some(e)) = (job.parent, job.ups.get(&up)) else { return };
        if self.links.get(&parent).is_none_or(|l| l.peer_incarnation != e.incarnation) {
            return;
        }
        let held = self.held_for.entry((parent, e.share.clone())).or_default();
        *held = if come { *held + e.cost * tasks } else { held.saturating_sub(e.cost * tasks) };
    }

    fn set_absent(&mut self, seq: u64, job_no: u64, tasks: &TaskSet, dirty: &mut Dirty, live: bool) {
        let Some(job) = self.jobs.get_mut(&job_no) else { return };
        each_cell(job, seq, tasks, true, dirty, &|c, _| *c = Cell::default());
        if live {
            job.queued = job.queued.subtract(tasks);
            self.requeue_index(job_no);
        }
    }

    fn set_cells(&mut self, seq: u64, job_no: u64, tasks: &TaskSet, change: CellChange<'_>, dirty: &mut Dirty, live: bool) {
        let Some(job) = self.jobs.get_mut(&job_no) else { return };
        each_cell(job, seq, tasks, change.uniform, dirty, &|c, k| {
            (change.f)(c, k);
            c.phase = change.phase as u8;
        });
        if !live {
            return;
        }
        match change.phase {
            Phase::Queued => job.queued = job.queued.union(tasks),
            _ => {
                // The scheduler takes from the front: this is the common, cheap case.
                job.queued = if job.queued.is_empty() { TaskSet::new() } else { job.queued.subtract(tasks) }
            }
        }
        self.requeue_index(job_no);
    }
}

/// A parent's placement, which may be known already: open tasks more. Its place in the job.
fn enter_up(job: &mut Job, new: UpEntry) -> u32 {
    let same = |(_, e): &(&u32, &UpEntry)| (e.number, e.incarnation) == (new.number, new.incarnation);
    // Mostly it is the last.
    let known = job.ups.iter().rev().find(same).map(|(ord, _)| *ord);
    let ord = known.unwrap_or_else(|| job.next_up.max(job.ups.keys().next_back().map_or(0, |k| k + 1)));
    match job.ups.get_mut(&ord) {
        Some(e) if new.seq > e.seq => (e.seq, e.open) = (new.seq, e.open + new.open),
        Some(_) => {}
        None => {
            job.next_up = ord + 1;
            job.ups.insert(ord, new);
        }
    }
    ord
}

/// An exit is that of an end.
fn no_doubt(c: &mut Cell) {
    if matches!(c.exit, EXIT_DOUBTFUL | EXIT_FORGOTTEN | EXIT_LOST_BELOW) {
        c.exit = 0;
    }
}

/// Ranges of all registers together.
fn ranges(wants: &std::collections::BTreeMap<u64, intergrid_proto::link::Want>) -> usize {
    wants.values().flat_map(|w| &w.ranges).map(|(_, t)| t.ranges().len()).sum()
}

/// Alter the cells of these tasks in chunks that are older than `seq`. The counts follow.
fn each_cell(job: &mut Job, seq: u64, tasks: &TaskSet, uniform: bool, dirty: &mut Dirty, f: &dyn Fn(&mut Cell, usize)) {
    let mut k = 0usize;
    let (size, counts) = (job.size, &mut job.counts);
    // Wrapping: while changes are replayed over rows, counts are of no account; they are derived afterwards.
    let mut count = |phase: u8, n: u64| counts[usize::from(phase)] = counts[usize::from(phase)].wrapping_add(n);
    for r in tasks.ranges() {
        let mut i = r.start;
        while i < r.end.min(size) {
            let at = i / CHUNK_TASKS;
            let (first, to) = (at * CHUNK_TASKS, ((at + 1) * CHUNK_TASKS).min(r.end));
            let n = to - i;
            let chunk = &mut job.chunks[at as usize];
            if seq > chunk.seq {
                dirty.insert(RowKey::Chunk(job.no, at));
                let mut one = |c: &mut Cell, n: u32, k: usize| {
                    count(c.phase, u64::from(n).wrapping_neg());
                    f(c, k);
                    count(c.phase, n.into());
                };
                if uniform {
                    chunk.cells.change(i - first, to - first, |c, n| one(c, n, k));
                } else {
                    chunk.cells.change_each(i - first, to - first, |c, at| one(c, 1, k + (first + at - i) as usize));
                }
            }
            k += n as usize;
            i = to;
        }
    }
    // Only now: several ranges of one change may touch one chunk.
    for r in tasks.ranges() {
        for at in r.start / CHUNK_TASKS..=(r.end.min(size).max(1) - 1) / CHUNK_TASKS {
            if let Some(c) = job.chunks.get_mut(at as usize) {
                c.seq = c.seq.max(seq);
            }
        }
    }
}
