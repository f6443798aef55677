//! What a change that a site has made durable may do to what was durable there, and what a restart has to find.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use intergrid_gateway::core::archive;
use intergrid_gateway::core::change::{self, What};
use intergrid_gateway::core::state::{EXIT_DOUBTFUL, State};
use intergrid_gateway::store::Batch;
use intergrid_proto::limits::HOPS_MAX;
use intergrid_proto::link::{Want, WantValue, at};
use intergrid_proto::{BlobHash, Exit, Phase, SiteId, TaskSet, pb};
use prost::Message;

use super::super::disk::Disk;
use super::super::record::{Cell, Issued, Job, Placed};
use super::{Oracle, decoded};

impl Oracle {
    /// A batch is durable at a site.
    pub fn committed(&mut self, site: usize, batch: &Batch) {
        let changes: Vec<(u64, Option<What>)> = batch.changes.iter().map(|(seq, bytes)| (*seq, decoded(bytes))).collect();
        let found = changes.iter().filter_map(|(_, what)| match what {
            Some(What::Placed(p)) => {
                Some((self.record.issued.named(site, change::site(&p.child), p.adopt.as_ref()?.number)?, change::tasks(&p.tasks)))
            }
            _ => None,
        });
        self.found_again = found.collect();
        for (seq, what) in changes {
            match what {
                Some(what) => self.change(site, what),
                None => self.fail("I18", format!("site {site}: change {seq} can't be read")),
            }
        }
        for (key, value) in &batch.rows {
            if let (Some(b'h'), Some(bytes)) = (key.first(), value) {
                let job = key.get(1..9).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes).unwrap_or(0);
                self.history(site, job, bytes);
            }
        }
    }

    /// One more start of this task is no fault.
    fn excuse(&mut self, site: usize, job: u64, task: u32) {
        *self.excused.entry((self.record.origin(site, job), task)).or_default() += 1;
    }

    fn change(&mut self, site: usize, what: What) {
        match what {
            What::Job(j) => self.job(site, j),
            What::Tasks(t) => self.arrive(site, t),
            What::Want(w) => self.wanted(site, w),
            What::Placed(p) => self.place(site, p),
            What::Seen(c) => _ = self.record.mirrors[site].seen.insert(change::site(&c.peer), c.number),
            What::Drained(d) => self.drained(site, d),
            What::Throttled(t) => self.throttled(site, t),
            What::Born(b) => {
                let was = std::mem::replace(&mut self.record.mirrors[site].incarnation, b.incarnation);
                if let Some(r) = self.record.replaced.get_mut(&site).filter(|_| was != b.incarnation) {
                    r.1 = self.record.issued.all.len();
                }
            }
            What::Accepted(_) | What::Acked(_) => {}
            What::Ended(e) => self.end(site, e),
            What::Requeued(r) => self.requeue(site, r, false),
            What::Fenced(r) => self.requeue(site, r, true),
            What::Stopped(s) => {
                // An orphan (again): what was fenced under an older incarnation, and what was to be adopted and fenced before the child heard of it.
                let unheard = |i: &Issued| i.adopted && self.record.seen_by(i.child, site) < s.number;
                if self.record.mirrors[site].id(s.number).is_some_and(|id| self.record.is_older(site, id) || unheard(&self.record.issued.all[id])) {
                    self.record.mirrors[site].placed.remove(&s.number);
                }
                for t in change::tasks(&s.tasks).iter() {
                    self.must_be_over(site, s.number, t, ("I10", "seen to have stopped"), true);
                }
            }
            What::GivenBack(g) => self.each(site, g.job, &g.tasks, |o, t, c| {
                o.must(c.down == 0 && c.is_open(), "I9", format_args!("site {site} gives back task {t} of job {}, which is {c:?}", g.job));
                Cell::default()
            }),
            What::Phase(p) => self.each(site, p.job, &p.tasks, |o, t, c| {
                o.must(c.is_open(), "I9", format_args!("site {site}: task {t} of job {} is {c:?} and becomes phase {}", p.job, p.phase));
                // Somebody may have it, and it is placed again nevertheless: at most where more than one start may be.
                let waits = o.record.mirrors[site].jobs.get(&p.job).is_some_and(|j| o.waits(j.hash));
                if c.is_doubtful() && p.phase == Phase::Queued as i32 && !waits {
                    o.excuse(site, p.job, t);
                }
                Cell { phase: p.phase as u8, attempts: if p.anew { 0 } else { c.attempts }, ..c }
            }),
            What::Adopted(a) => self.each(site, a.job, &a.tasks, |o, t, c| {
                let phase = if c.is_doubtful() { Phase::Queued as u8 } else { c.phase };
                o.record.relabel(site, a.job, t, c, a.number);
                Cell { up: a.number, phase, ..c }
            }),
            What::Doubted(d) => self.each(site, d.job, &d.tasks, |o, t, c| {
                o.must(c.down == 0 && c.is_open(), "I9", format_args!("site {site} doubts task {t} of job {}, which is {c:?}", d.job));
                Cell { phase: Phase::Held as u8, exit: EXIT_DOUBTFUL, ..c }
            }),
            What::Cursor(c) => {
                let (peer, at) = (change::site(&c.peer), (c.incarnation, c.number));
                let was = self.record.mirrors[site].cursors.insert(peer, at).unwrap_or_default();
                let onward = was.0 != at.0 || at.1 >= was.1;
                self.must(onward, "I18", format_args!("site {site}: the cursor of {peer:?} goes back from {was:?} to {at:?}"));
            }
            What::Emit(e) => {
                let parent = change::site(&e.parent);
                let last = self.record.mirrors[site].emitted.insert(parent, e.sequence).unwrap_or(0);
                self.must(e.sequence == last + 1, "I18", format_args!("site {site}: event {} to {parent:?} after {last}", e.sequence));
            }
        }
    }

    /// Each of these tasks becomes what is made of it.
    fn each(&mut self, site: usize, job: u64, tasks: &[u32], mut to: impl FnMut(&mut Self, u32, Cell) -> Cell) {
        for t in change::tasks(tasks).iter() {
            let Some(c) = self.record.mirrors[site].cell(job, t) else { continue };
            let cell = to(self, t, c);
            self.record.mirrors[site].set(job, t, cell);
        }
    }

    fn job(&mut self, site: usize, j: change::JobNew) {
        self.may_come_in(site, &j);
        let (sites, different) = (j.route.len(), j.route.iter().collect::<BTreeSet<_>>().len());
        let short = different == sites && sites <= HOPS_MAX as usize + 1;
        self.must(short, "I5", format_args!("site {site} takes in job {} with a route of {sites} sites, {different} different", j.job));
        let mut origin = j.origin.map(|o| (change::site(&o.site), o.job)).unwrap_or_default();
        if j.parent.is_empty() {
            // A number that a lost store had given is another job's.
            let lives = self.roots.entry(origin.clone()).or_default();
            *lives += 1;
            origin.1 += &"'".repeat(*lives - 1);
        }
        let hash = BlobHash::from_slice(&j.spec_hash).unwrap_or(BlobHash([0; 32]));
        let (parent, cells) = (SiteId::from_slice(&j.parent), vec![Cell::default(); j.size as usize]);
        let job = Job { parent, key: j.key, origin, hash, cells, want: Want::default(), throttles: Vec::new() };
        let other = self.record.mirrors[site].jobs.insert(j.job, job);
        self.must(other.is_none(), "I1", format_args!("site {site} gives number {} to a second job", j.job));
    }

    fn wanted(&mut self, site: usize, w: change::WantSet) {
        let Some(j) = self.record.mirrors[site].jobs.get_mut(&w.job) else { return };
        let was = std::mem::replace(&mut j.want, change::want(&w.want));
        if j.parent.is_none() && !self.record.replaced.is_empty() {
            // He wants it run, whatever became of it before.
            for t in was.tasks(WantValue::Hold, &j.all()).intersect(&j.want.tasks(WantValue::Run, &j.all())).iter() {
                *self.released.entry((j.origin.clone(), t)).or_default() += 1;
            }
        }
    }

    fn arrive(&mut self, site: usize, t: change::TasksAdded) {
        if let Some(id) = self.record.issued_by(site, t.job, t.number)
            && let Some(j) = self.record.mirrors[site].jobs.get_mut(&t.job)
        {
            j.origin = self.record.issued.all[id].origin.clone();
        }
        self.each(site, t.job, &t.tasks, |o, task, c| {
            o.must(!c.is_open(), "I2", format_args!("site {site}: task {task} of job {} comes in again while it is {c:?}", t.job));
            Cell { phase: Phase::Queued as u8, attempts: t.attempts as u8, exit: 0, up: t.number, down: 0 }
        });
    }

    fn place(&mut self, site: usize, p: change::Placed) {
        let (child, adopted, number) = (change::site(&p.child), p.adopt.is_some(), p.number);
        let last = self.record.mirrors[site].placed.keys().next_back().copied().unwrap_or(0).max(self.record.seen_by(child, site));
        self.must(number > last, "I10", format_args!("site {site} issues placement number {number} again"));
        let Some(job) = self.record.mirrors[site].jobs.get(&p.job) else { return };
        let (parent, origin, hash, mut ups, lost) = (job.parent, job.origin.clone(), job.hash, BTreeMap::new(), TaskSet::new());
        self.each(site, p.job, &p.tasks, |o, t, c| {
            let waits = c.phase == Phase::Queued as u8 && c.down == 0;
            o.must(waits, "I2", format_args!("site {site} places task {t} of job {}, which is {c:?}", p.job));
            ups.insert(t, c.up);
            Cell { phase: Phase::Placed as u8, down: number, ..c }
        });
        if !adopted {
            self.may_be_placed(site, &p);
        }
        let above = ups.iter().filter_map(|(t, up)| Some((*t, self.record.issued_by(site, p.job, *up)?))).collect();
        let former = p.adopt.and_then(|f| self.record.issued.named(site, child, f.number));
        let id = self.record.issued.issue(Issued { site, number, job: p.job, child, parent, origin, hash, ups, above, adopted, lost });
        change::tasks(&p.tasks).iter().for_each(|t| former.into_iter().for_each(|f| self.record.issued.renamed(f, id, t)));
        self.record.mirrors[site].placed.insert(number, Placed { id, fenced: TaskSet::new() });
    }

    fn end(&mut self, site: usize, e: change::TasksEnded) {
        let mut k = 0;
        self.each(site, e.job, &e.tasks, |o, t, c| {
            o.must(c.is_open(), "I9", format_args!("site {site}: task {t} of job {} is {c:?} and ends again", e.job));
            let current = c.down == e.number;
            o.must(current, "I10", format_args!("site {site}: task {t} of job {} is on placement {} and ends on {}", e.job, c.down, e.number));
            let exit = Exit::from_number(at(&e.exit, k).unwrap_or(1025));
            k += 1;
            if e.number != 0 {
                o.must_be_over(site, e.number, t, ("I9", "said to have ended"), false);
                o.must_have_evidence(site, e.number, t, e.phase, exit);
            } else {
                let not_done = e.phase != Phase::Done as i32;
                o.must(not_done, "I9", format_args!("site {site}: task {t} of job {} is done without having been placed", e.job));
            }
            Cell { phase: e.phase as u8, exit: exit.to_number() as u16, attempts: e.attempts as u8, ..c }
        });
    }

    fn requeue(&mut self, site: usize, r: change::Requeued, fence: bool) {
        self.each(site, r.job, &r.tasks, |o, t, c| {
            let current = c.down == r.number && c.is_open();
            o.must(current, "I10", format_args!("site {site}: task {t} of job {} is {c:?} and comes back from placement {}", r.job, r.number));
            let attempt = u32::from(c.attempts) < r.attempts;
            // What a site below hands up was counted there.
            let counted = attempt && (fence || !o.record.was_lost_below(site, r.number, t));
            if counted {
                o.excuse(site, r.job, t);
            }
            let id = o.record.mirrors[site].id(r.number);
            if fence {
                if let Some(p) = o.record.mirrors[site].placed.get_mut(&r.number) {
                    p.fenced.insert(t..t + 1);
                }
            } else if !o.found_again.iter().any(|(found, tasks)| tasks.contains(t) && id == Some(o.record.issued.now_is(*found, t))) {
                o.must_be_over(site, r.number, t, ("I2", "said to have come back"), false);
                let just = !counted || o.was_started(site, r.number, t);
                o.must(just, "I3", format_args!("site {site}: task {t} of job {} was given back unstarted, and counted as an attempt", r.job));
            }
            if let Some(id) = id.filter(|_| attempt) {
                o.record.issued.all[id].lost.insert(t..t + 1);
            }
            let phase = if r.held { Phase::Held } else { Phase::Queued };
            Cell { phase: phase as u8, attempts: r.attempts as u8, down: 0, ..c }
        });
    }

    /// A root's history: each usage once.
    fn history(&mut self, site: usize, job: u64, bytes: &[u8]) {
        if self.record.mirrors[site].jobs.get(&job).is_none_or(|j| j.parent.is_some()) {
            return;
        }
        let Ok(entry) = pb::HistoryEntry::decode(bytes) else {
            return self.fail("I11", format!("site {site}: an entry of the history of job {job} can't be read"));
        };
        let (origin, tasks) = (self.record.origin(site, job), intergrid_proto::convert::tasks_in(entry.tasks).unwrap_or_default());
        for (task, uid) in tasks.iter().zip(entry.ended.iter().flat_map(|e| &e.cpu_us)) {
            let its = self.record.processes.get(uid).is_some_and(|p| p.task.1 == task && p.task.0 == origin);
            self.must(its, "I11", format_args!("site {site}: usage of process {uid} is counted for task {task} of job {job}, which it never was"));
            let once = self.record.mirrors[site].counted.insert(*uid) || self.record.was_found_again(*uid);
            self.must(once, "I11", format_args!("site {site}: usage of process {uid}, task {task} of job {job}, is counted twice"));
        }
    }

    /// After a restart: neither less nor more than was committed.
    pub fn loaded(&mut self, site: usize, state: &State, disk: &Disk) {
        // It may end as many as it had in its last life.
        self.ended[site].0 = state.ended;
        let (mirror, mut wrong) = (&self.record.mirrors[site], None);
        let mut must = |holds: bool, what: fmt::Arguments<'_>| {
            if !holds {
                wrong = Some(what.to_string());
            }
        };
        for no in state.jobs.keys() {
            must(mirror.jobs.contains_key(no), format_args!("job {no}, which was never committed"));
        }
        for (no, job) in &mirror.jobs {
            // What is not loaded is past.
            let past = if state.jobs.contains_key(no) { None } else { archive::read(disk, *no, true).ok().flatten() };
            let Some(found) = state.jobs.get(no).map(|j| &**j).or(past.as_ref()) else {
                must(false, format_args!("job {no} is missing"));
                continue;
            };
            let rightly = past.as_ref().is_none_or(|j| j.open() == 0) && archive::is_past(disk, *no).ok() == Some(past.is_some());
            must(rightly, format_args!("job {no} is past and has open tasks, or is past and loaded"));
            for (t, c) in job.cells.iter().enumerate() {
                let f = found.cell(t as u32);
                let up = found.ups.get(&f.up).map_or(0, |u| u.number);
                // Hints are not durable, and may be in a row.
                let phase = |p: u8| if (Phase::StagingIn as u8..=Phase::StagingOut as u8).contains(&p) { Phase::Placed as u8 } else { p };
                let is = Cell { phase: phase(f.phase), attempts: f.attempts, exit: f.exit, up, down: f.down };
                let same = (is.phase, is.attempts) == (c.phase, c.attempts) && (c.is_terminal() || is.down == c.down);
                let same = same && (c.phase == 0 || job.parent.is_none() || is.up == c.up) && (!c.is_terminal() || is.exit == c.exit);
                must(same, format_args!("task {t} of job {no} is {is:?} instead of {c:?}"));
            }
            must(found.want.ranges == job.want.ranges, format_args!("the register of job {no} is {:?} instead of {:?}", found.want, job.want));
            let (open, counted) = (job.cells.iter().filter(|c| c.is_open()).count() as u64, found.ups.values().map(|u| u.open).sum::<u64>());
            must(open == counted, format_args!("{open} tasks of job {no} are open, and {counted} are counted"));
            let (throttle, ordered) = (found.at_once, job.throttles.last().copied());
            must(throttle == ordered, format_args!("the throttle of job {no} is {throttle:?} instead of {ordered:?}"));
        }
        let drained = state.drains.iter().map(|(id, d)| (id, &d.reason)).eq(&mirror.drains);
        must(drained, format_args!("who is drained is {:?} instead of {:?}", state.drains, mirror.drains));
        for (child, at) in &mirror.cursors {
            let found = state.cursors.get(child).map(|c| (c.incarnation, c.sequence)).unwrap_or_default();
            must(found == *at, format_args!("the cursor of {child:?} is {found:?} instead of {at:?}"));
        }
        if let Some(what) = wrong {
            self.fail("I18", format!("site {site} after its restart: {what}"));
        }
    }
}
