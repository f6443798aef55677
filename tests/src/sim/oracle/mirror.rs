//! What every site has made durable, as told by its changes, and what a change may do to it.

use std::collections::{BTreeMap, BTreeSet};

use intergrid_gateway::core::archive;
use intergrid_gateway::core::change::{self, Change, What};
use intergrid_gateway::core::state::{EXIT_DOUBTFUL, State};
use intergrid_gateway::store::Batch;
use intergrid_proto::limits::HOPS_MAX;
use intergrid_proto::link::{Want, WantValue, at};
use intergrid_proto::spec::OnLost;
use intergrid_proto::{BlobHash, Exit, Phase, SiteId, TaskSet, pb};
use prost::Message;

use super::super::disk::Disk;
use super::{Oracle, TaskKey};
use crate::sim::leaf::Uid;

/// A task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// 0: not here.
    pub phase: u8,
    pub attempts: u8,
    pub exit: u16,
    /// The parent's placement.
    pub up: u64,
    /// Ours.
    pub down: u64,
}

impl Cell {
    pub fn is_terminal(self) -> bool {
        self.phase >= Phase::Done as u8
    }

    pub fn is_open(self) -> bool {
        self.phase != 0 && !self.is_terminal()
    }

    fn is_doubtful(self) -> bool {
        self.phase == Phase::Held as u8 && self.exit == EXIT_DOUBTFUL
    }
}

#[derive(Clone, Debug)]
pub struct Job {
    pub parent: Option<SiteId>,
    pub key: String,
    pub origin: (SiteId, String),
    pub hash: BlobHash,
    pub cells: Vec<Cell>,
    pub want: Want,
    /// How many at a time, as it was ordered one after the other.
    pub throttles: Vec<u32>,
}

impl Job {
    pub fn size(&self) -> u32 {
        self.cells.len() as u32
    }
}

/// A placement that was issued, whether its site still knows of it or not.
#[derive(Clone, Debug)]
pub struct Issued {
    pub site: usize,
    pub number: u64,
    pub job: u64,
    pub child: SiteId,
    pub parent: Option<SiteId>,
    pub origin: (SiteId, String),
    pub hash: BlobHash,
    /// Each task's placement above.
    pub ups: BTreeMap<u32, u64>,
    above: BTreeMap<u32, usize>,
    /// The child had these tasks already.
    adopted: bool,
    /// Fenced, or come back as a lost attempt.
    pub lost: TaskSet,
}

/// A placement that a site knows of.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Which of all that were issued.
    pub id: usize,
    pub fenced: TaskSet,
}

/// One site.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    pub jobs: BTreeMap<u64, Job>,
    pub placed: BTreeMap<u64, Placed>,
    pub incarnation: u64,
    /// Children's events: incarnation and sequence.
    pub cursors: BTreeMap<SiteId, (u64, u64)>,
    /// The highest number of each parent's placements.
    pub seen: BTreeMap<SiteId, u64>,
    /// Who takes no new work, and why; and why anybody ever was, or who was resumed.
    pub drains: BTreeMap<SiteId, String>,
    pub reasons: BTreeSet<String>,
    /// Usage that this root has counted.
    pub counted: BTreeSet<Uid>,
    emitted: BTreeMap<SiteId, u64>,
}

impl Oracle {
    /// A batch is durable at a site.
    pub fn committed(&mut self, site: usize, batch: &Batch) {
        let found = batch.changes.iter().filter_map(|(_, bytes)| match Change::decode(&bytes[..]).ok()?.what? {
            What::Placed(p) => Some((self.issued_to(site, change::site(&p.child), p.adopt?.number)?, change::tasks(&p.tasks))),
            _ => None,
        });
        self.found_again = found.collect();
        for (seq, bytes) in &batch.changes {
            match Change::decode(&bytes[..]).ok().and_then(|c| c.what) {
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

    pub(super) fn origin(&self, site: usize, job: u64) -> (SiteId, String) {
        self.mirrors[site].jobs.get(&job).map(|j| j.origin.clone()).unwrap_or_default()
    }

    fn task(&self, site: usize, job: u64, task: u32) -> TaskKey {
        let (site, job) = self.origin(site, job);
        (site, job, task)
    }

    fn change(&mut self, site: usize, what: What) {
        match what {
            What::Job(j) => self.job(site, j),
            What::Tasks(t) => self.arrive(site, t),
            What::Want(w) => self.wanted(site, w),
            What::Placed(p) => self.place(site, p),
            What::Seen(c) => _ = self.mirrors[site].seen.insert(change::site(&c.peer), c.number),
            What::Drained(d) => self.drained(site, d),
            What::Throttled(t) => self.throttled(site, t),
            What::Born(b) => {
                let was = std::mem::replace(&mut self.mirrors[site].incarnation, b.incarnation);
                if let Some(r) = self.replaced.get_mut(&site).filter(|_| was != b.incarnation) {
                    r.1 = self.issued.len();
                }
            }
            What::Accepted(_) | What::Acked(_) => {}
            What::Ended(e) => self.end(site, e),
            What::Requeued(r) => self.requeue(site, r, false),
            What::Fenced(r) => self.requeue(site, r, true),
            What::Stopped(s) => {
                // An orphan (again): what was fenced under an older incarnation, and what was to be adopted and fenced before the child heard of it.
                let unheard = |id: usize| self.issued[id].adopted && self.seen_by(self.issued[id].child, site) < s.number;
                if self.mirrors[site].placed.get(&s.number).is_some_and(|p| self.is_older(site, p.id) || unheard(p.id)) {
                    self.mirrors[site].placed.remove(&s.number);
                }
                for t in change::tasks(&s.tasks).iter() {
                    self.must_be_over(site, s.number, t, ("I10", "seen to have stopped"), true);
                }
            }
            What::GivenBack(g) => self.each(site, g.job, &g.tasks, |o, t, c| {
                if c.down != 0 || !c.is_open() {
                    o.fail("I9", format!("site {site} gives back task {t} of job {}, which is {c:?}", g.job));
                }
                Cell::default()
            }),
            What::Phase(p) => self.each(site, p.job, &p.tasks, |o, t, c| {
                if !c.is_open() {
                    o.fail("I9", format!("site {site}: task {t} of job {} is {c:?} and becomes phase {}", p.job, p.phase));
                }
                let attempts = if p.anew { 0 } else { c.attempts };
                // Somebody may have it, and it is placed again nevertheless: at most where more than one start may be.
                if c.is_doubtful() && p.phase == Phase::Queued as i32 && !o.waits(site, p.job) {
                    *o.excused.entry(o.task(site, p.job, t)).or_default() += 1;
                }
                Cell { phase: p.phase as u8, attempts, ..c }
            }),
            What::Adopted(a) => self.each(site, a.job, &a.tasks, |o, t, c| {
                let phase = if c.is_doubtful() { Phase::Queued as u8 } else { c.phase };
                o.relabel(site, a.job, t, c, a.number);
                Cell { up: a.number, phase, ..c }
            }),
            What::Doubted(d) => self.each(site, d.job, &d.tasks, |o, t, c| {
                if c.down != 0 || !c.is_open() {
                    o.fail("I9", format!("site {site} doubts task {t} of job {}, which is {c:?}", d.job));
                }
                Cell { phase: Phase::Held as u8, exit: EXIT_DOUBTFUL, ..c }
            }),
            What::Cursor(c) => {
                let (peer, at) = (change::site(&c.peer), (c.incarnation, c.number));
                let before = self.mirrors[site].cursors.insert(peer, at).unwrap_or_default();
                if before.0 == at.0 && at.1 < before.1 {
                    self.fail("I18", format!("site {site}: the cursor of {peer:?} goes back from {before:?} to {at:?}"));
                }
            }
            What::Emit(e) => {
                let parent = change::site(&e.parent);
                let last = self.mirrors[site].emitted.insert(parent, e.sequence).unwrap_or(0);
                if e.sequence != last + 1 {
                    self.fail("I18", format!("site {site}: event {} to {parent:?} after {last}", e.sequence));
                }
            }
        }
    }

    pub(super) fn cell(&self, site: usize, job: u64, task: u32) -> Option<Cell> {
        self.mirrors[site].jobs.get(&job).and_then(|j| j.cells.get(task as usize)).copied()
    }

    /// Each of these tasks becomes what is made of it.
    fn each(&mut self, site: usize, job: u64, tasks: &[u32], mut to: impl FnMut(&mut Self, u32, Cell) -> Cell) {
        for t in change::tasks(tasks).iter() {
            let Some(c) = self.cell(site, job, t) else { continue };
            let cell = to(self, t, c);
            if let Some(c) = self.mirrors[site].jobs.get_mut(&job).and_then(|j| j.cells.get_mut(t as usize)) {
                *c = cell;
            }
        }
    }

    fn job(&mut self, site: usize, j: change::JobNew) {
        self.may_come_in(site, &j);
        let mut route = j.route.clone();
        route.sort();
        route.dedup();
        if route.len() != j.route.len() || route.len() > HOPS_MAX as usize + 1 {
            self.fail("I5", format!("site {site} takes in job {} with a route of {} sites, {} different", j.job, j.route.len(), route.len()));
        }
        let mut origin = j.origin.map(|o| (change::site(&o.site), o.job)).unwrap_or_default();
        if j.parent.is_empty() {
            // A number that a lost store had given is another job's.
            let lives = self.roots.entry(origin.clone()).or_default();
            *lives += 1;
            origin.1 += &"'".repeat(*lives - 1);
        }
        let job = Job {
            parent: SiteId::from_slice(&j.parent),
            key: j.key,
            origin,
            hash: BlobHash::from_slice(&j.spec_hash).unwrap_or(BlobHash([0; 32])),
            cells: vec![Cell::default(); j.size as usize],
            want: Want::default(),
            throttles: Vec::new(),
        };
        if self.mirrors[site].jobs.insert(j.job, job).is_some() {
            self.fail("I1", format!("site {site} gives number {} to a second job", j.job));
        }
    }

    fn wanted(&mut self, site: usize, w: change::WantSet) {
        let Some(j) = self.mirrors[site].jobs.get_mut(&w.job) else { return };
        let (was, origin) = (std::mem::replace(&mut j.want, change::want(&w.want)), j.origin.clone());
        let all = TaskSet::range(0..j.size());
        if j.parent.is_none() && !self.replaced.is_empty() {
            // He wants it run, whatever became of it before.
            for t in was.tasks(WantValue::Hold, &all).intersect(&j.want.tasks(WantValue::Run, &all)).iter() {
                *self.released.entry((origin.0, origin.1.clone(), t)).or_default() += 1;
            }
        }
    }

    /// May its tasks start once only?
    fn waits(&self, site: usize, job: u64) -> bool {
        let spec = self.mirrors[site].jobs.get(&job).and_then(|j| self.specs.get(&j.hash));
        spec.is_some_and(|s| s.on_lost == OnLost::Wait)
    }

    /// The placement that a site issued to this child under this number, the last if there were several.
    pub(super) fn issued_to(&self, site: usize, child: SiteId, number: u64) -> Option<usize> {
        self.named.get(&(site, child, number)).copied()
    }

    /// As that, of a parent's.
    pub(super) fn issued_by(&self, site: usize, job: u64, number: u64) -> Option<usize> {
        let parent = self.mirrors[site].jobs.get(&job).and_then(|j| self.site(j.parent?))?;
        self.issued_to(parent, self.ids[site], number)
    }

    /// A task is here under another placement of the parent: it is the same task, and so is what runs of it.
    fn relabel(&mut self, site: usize, job: u64, task: u32, c: Cell, number: u64) {
        if let Some(p) = self.mirrors[site].placed.get(&c.down).map(|p| p.id) {
            self.issued[p].ups.insert(task, number);
        }
        if let (Some(was), Some(is)) = (self.issued_by(site, job, c.up), self.issued_by(site, job, number)) {
            self.renamed(was, is, task);
        }
    }

    fn renamed(&mut self, was: usize, is: usize, task: u32) {
        let (was, end) = (self.now_is(was, task), self.now_is(is, task));
        // A parent that has gone back may call it by an earlier name again.
        if was == end {
            self.later.remove(&(is, task));
        }
        if was != is {
            self.later.insert((was, task), if was == end { is } else { end });
            let above = |id: usize| self.issued[id].above.get(&task).copied();
            if let (Some(was), Some(is)) = (above(was), above(is)) {
                self.renamed(was, is, task);
            }
        }
    }

    fn arrive(&mut self, site: usize, t: change::TasksAdded) {
        if let Some(id) = self.issued_by(site, t.job, t.number)
            && let Some(j) = self.mirrors[site].jobs.get_mut(&t.job)
        {
            j.origin = self.issued[id].origin.clone();
        }
        self.each(site, t.job, &t.tasks, |o, task, c| {
            if c.is_open() {
                o.fail("I2", format!("site {site}: task {task} of job {} comes in again while it is {c:?}", t.job));
            }
            Cell { phase: Phase::Queued as u8, attempts: t.attempts as u8, exit: 0, up: t.number, down: 0 }
        });
    }

    /// The highest of a site's placements that a child has made durable.
    pub(super) fn seen_by(&self, child: SiteId, site: usize) -> u64 {
        let below = self.site(child).map(|c| self.mirrors[c].seen.get(&self.ids[site]).copied().unwrap_or(0));
        below.or_else(|| self.leaf_seen.get(&child).copied()).unwrap_or(0)
    }

    fn place(&mut self, site: usize, p: change::Placed) {
        let (child, tasks) = (change::site(&p.child), change::tasks(&p.tasks));
        if p.number <= self.seen_by(child, site) || self.mirrors[site].placed.keys().next_back().is_some_and(|last| p.number <= *last) {
            self.fail("I10", format!("site {site} issues placement number {} again", p.number));
        }
        let Some(job) = self.mirrors[site].jobs.get(&p.job) else { return };
        let (parent, origin, hash, mut ups, id) = (job.parent, job.origin.clone(), job.hash, BTreeMap::new(), self.issued.len());
        self.each(site, p.job, &p.tasks, |o, t, c| {
            if c.phase != Phase::Queued as u8 || c.down != 0 {
                o.fail("I2", format!("site {site} places task {t} of job {}, which is {c:?}", p.job));
            }
            ups.insert(t, c.up);
            Cell { phase: Phase::Placed as u8, down: p.number, ..c }
        });
        if p.adopt.is_none() {
            self.may_be_placed(site, &p);
        }
        let above = ups.iter().filter_map(|(t, up)| Some((*t, self.issued_by(site, p.job, *up)?))).collect();
        self.issued.push(Issued {
            site,
            number: p.number,
            job: p.job,
            child,
            parent,
            origin,
            hash,
            ups,
            above,
            adopted: p.adopt.is_some(),
            lost: TaskSet::new(),
        });
        let former = p.adopt.and_then(|f| self.issued_to(site, child, f.number));
        tasks.iter().for_each(|t| former.into_iter().for_each(|f| self.renamed(f, id, t)));
        self.named.insert((site, child, p.number), id);
        self.mirrors[site].placed.insert(p.number, Placed { id, fenced: TaskSet::new() });
    }

    fn end(&mut self, site: usize, e: change::TasksEnded) {
        let mut k = 0;
        self.each(site, e.job, &e.tasks, |o, t, c| {
            if !c.is_open() {
                o.fail("I9", format!("site {site}: task {t} of job {} is {c:?} and ends again", e.job));
            }
            if c.down != e.number {
                o.fail("I10", format!("site {site}: task {t} of job {} is on placement {} and ends on {}", e.job, c.down, e.number));
            }
            let exit = Exit::from_number(at(&e.exit, k).unwrap_or(1025));
            k += 1;
            if e.number != 0 {
                o.must_be_over(site, e.number, t, ("I9", "said to have ended"), false);
                o.must_have_evidence(site, e.number, t, e.phase, exit);
            } else if e.phase == Phase::Done as i32 {
                o.fail("I9", format!("site {site}: task {t} of job {} is done without having been placed", e.job));
            }
            Cell { phase: e.phase as u8, exit: exit.to_number() as u16, attempts: e.attempts as u8, ..c }
        });
    }

    fn requeue(&mut self, site: usize, r: change::Requeued, fence: bool) {
        self.each(site, r.job, &r.tasks, |o, t, c| {
            if c.down != r.number || !c.is_open() {
                o.fail("I10", format!("site {site}: task {t} of job {} is {c:?} and comes back from placement {}", r.job, r.number));
            }
            // What a site below hands up was counted there.
            let counted = u32::from(c.attempts) < r.attempts && (fence || !o.was_lost_below(site, r.number, t));
            if counted {
                *o.excused.entry(o.task(site, r.job, t)).or_default() += 1;
            }
            let placed = o.mirrors[site].placed.get(&r.number).map(|p| p.id);
            if fence {
                if let Some(p) = o.mirrors[site].placed.get_mut(&r.number) {
                    p.fenced.insert(t..t + 1);
                }
            } else if !o.found_again.iter().any(|(id, tasks)| tasks.contains(t) && placed == Some(o.now_is(*id, t))) {
                o.must_be_over(site, r.number, t, ("I2", "said to have come back"), false);
                if counted && !o.was_started(site, r.number, t) {
                    o.fail("I3", format!("site {site}: task {t} of job {} was given back unstarted, and counted as an attempt", r.job));
                }
            }
            if let Some(id) = placed.filter(|_| u32::from(c.attempts) < r.attempts) {
                o.issued[id].lost.insert(t..t + 1);
            }
            let phase = if r.held { Phase::Held } else { Phase::Queued };
            Cell { phase: phase as u8, attempts: r.attempts as u8, down: 0, ..c }
        });
    }

    /// Was an attempt lost at the site below, for this placement, however it was called then?
    fn was_lost_below(&self, site: usize, number: u64, task: u32) -> bool {
        let Some(id) = self.mirrors[site].placed.get(&number).map(|p| p.id) else { return false };
        let child = self.issued[id].child;
        let same = |up: &u64| self.issued_to(site, child, *up).is_some_and(|up| self.now_is(up, task) == self.now_is(id, task));
        let ours = |p: &&Issued| Some(p.site) == self.site(child) && p.parent == Some(self.ids[site]) && p.ups.get(&task).is_some_and(same);
        self.issued.iter().filter(ours).any(|p| p.lost.contains(task))
    }

    /// A root's history: each usage once.
    fn history(&mut self, site: usize, job: u64, bytes: &[u8]) {
        if self.mirrors[site].jobs.get(&job).is_none_or(|j| j.parent.is_some()) {
            return;
        }
        let Ok(entry) = pb::HistoryEntry::decode(bytes) else {
            return self.fail("I11", format!("site {site}: an entry of the history of job {job} can't be read"));
        };
        let tasks = intergrid_proto::convert::tasks_in(entry.tasks).unwrap_or_default();
        for (task, uid) in tasks.iter().zip(entry.ended.iter().flat_map(|e| &e.cpu_us)) {
            let key = self.task(site, job, task);
            if self.processes.get(uid).is_none_or(|p| p.task != key) {
                self.fail("I11", format!("site {site}: usage of process {uid} is counted for task {task} of job {job}, which it never was"));
            }
            if !self.mirrors[site].counted.insert(*uid) && !self.was_found_again(*uid) {
                self.fail("I11", format!("site {site}: usage of process {uid}, task {task} of job {job}, is counted twice"));
            }
        }
    }

    /// After a restart: neither less nor more than was committed.
    pub fn loaded(&mut self, site: usize, state: &State, disk: &Disk) {
        // It may end as many as it had in its last life.
        self.ended[site].0 = state.ended;
        let mirror = &self.mirrors[site];
        let mut wrong = None;
        if let Some(no) = state.jobs.keys().find(|no| !mirror.jobs.contains_key(no)) {
            wrong = Some(format!("job {no}, which was never committed"));
        }
        for (no, job) in &mirror.jobs {
            // What is not loaded is past.
            let past = if state.jobs.contains_key(no) { None } else { archive::read(disk, *no, true).ok().flatten() };
            let Some(found) = state.jobs.get(no).map(|j| &**j).or(past.as_ref()) else {
                wrong = Some(format!("job {no} is missing"));
                continue;
            };
            if past.as_ref().is_some_and(|j| j.open() > 0) || archive::is_past(disk, *no).ok() != Some(past.is_some()) {
                wrong = Some(format!("job {no} is past and has open tasks, or is past and loaded"));
            }
            for (t, c) in job.cells.iter().enumerate() {
                let f = found.cell(t as u32);
                let up = found.ups.get(&f.up).map_or(0, |u| u.number);
                // Hints are not durable, and may be in a row.
                let phase = |p: u8| if (Phase::StagingIn as u8..=Phase::StagingOut as u8).contains(&p) { Phase::Placed as u8 } else { p };
                let is = Cell { phase: phase(f.phase), attempts: f.attempts, exit: f.exit, up, down: f.down };
                let same = (is.phase, is.attempts) == (c.phase, c.attempts) && (c.is_terminal() || is.down == c.down);
                let same = same && (c.phase == 0 || job.parent.is_none() || is.up == c.up) && (!c.is_terminal() || is.exit == c.exit);
                if !same {
                    wrong = Some(format!("task {t} of job {no} is {is:?} instead of {c:?}"));
                }
            }
            if found.want.ranges != job.want.ranges {
                wrong = Some(format!("the register of job {no} is {:?} instead of {:?}", found.want, job.want));
            }
            let (open, counted) = (job.cells.iter().filter(|c| c.is_open()).count() as u64, found.ups.values().map(|u| u.open).sum::<u64>());
            if open != counted {
                wrong = Some(format!("{open} tasks of job {no} are open, and {counted} are counted"));
            }
            if found.at_once != job.throttles.last().copied() {
                wrong = Some(format!("the throttle of job {no} is {:?} instead of {:?}", found.at_once, job.throttles.last()));
            }
        }
        if !state.drains.iter().map(|(id, d)| (*id, &d.reason)).eq(mirror.drains.iter().map(|(id, reason)| (*id, reason))) {
            wrong = Some(format!("who is drained is {:?} instead of {:?}", state.drains, mirror.drains));
        }
        for (child, at) in &mirror.cursors {
            let found = state.cursors.get(child).map(|c| (c.incarnation, c.sequence)).unwrap_or_default();
            if found != *at {
                wrong = Some(format!("the cursor of {child:?} is {found:?} instead of {at:?}"));
            }
        }
        if let Some(what) = wrong {
            self.fail("I18", format!("site {site} after its restart: {what}"));
        }
    }
}
