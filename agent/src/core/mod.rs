//! What the agent decides: `(state, input, now) -> actions`. No clock, no random, no I/O in here, so that tests drive it without a machine.
//!
//! Invariants: a task is started only after its claim is durable; an event is sent only after it is durable; a placement number at or below the highest
//! seen changes nothing; a task that is stopped ends only when its process group is gone. The shell steps inputs at any time, performs actions at once,
//! and takes the records with [`Core::cut`] whenever the spool's writer is free: one batch is in flight while the next is made.

mod adopt;
mod ends;
mod link;
mod offer;
mod room;
mod tasks;
#[cfg(test)]
mod tests;
mod wants;
mod words;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use intergrid_proto::link::{Attempts, Hop};
use intergrid_proto::share::{Machine, Shape};
use intergrid_proto::{BlobHash, Pace, Refusal, TaskSet, pb};

use crate::limits::*;
use crate::machine::{Capacity, Offer};
use crate::plan::Plan;
use crate::spool::record::{Counters, Record, What};
use crate::state::State;
use ends::Ends;
use link::Link;
pub use words::{Action, Fate, Fault, Input, Key, Report};

/// Where a claimed task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its claim is on its way to the disk.
    Claiming,
    /// It may start.
    Ready,
    /// The executor has it.
    Starting,
    /// Its process lives.
    Running(i32),
    /// Its process is gone, its outputs are on their way.
    Uploading,
}

/// Why a task is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Cancel,
    Fenced,
    Time,
    Memory(u64),
    /// Handed on, and wanted back unless it has started: to wait here, or to be given back.
    Hold,
    Return,
}

/// A claimed task.
#[derive(Debug)]
struct Live {
    stage: Stage,
    stop: Option<Stop>,
    /// SIGKILL is due.
    kill_ms: Option<u64>,
    since_ms: u64,
    /// Its time is over.
    deadline_ms: Option<u64>,
    /// Pid record and hint are made.
    settled: bool,
    hinted: bool,
    suspended: bool,
}

/// What is volatile of a placement.
#[derive(Debug)]
struct Open {
    plan: Arc<Plan>,
    cost: u64,
    /// Neither claimed nor held.
    waiting: TaskSet,
    held: TaskSet,
    job_id: Arc<str>,
    hinted_staging: bool,
}

/// A spec in use.
#[derive(Debug)]
struct Staged {
    plan: Arc<Plan>,
    here: bool,
}

/// The agent's decisions.
#[derive(Debug)]
pub struct Core {
    state: State,
    me: Hop,
    boot: Vec<u8>,
    capacity: Capacity,
    offer: Option<Offer>,
    /// The machine goes away then.
    ends_ms: Option<u64>,
    fit_version: u64,
    now: u64,
    opens: BTreeMap<u64, Open>,
    /// Placements with waiting tasks whose content is here.
    runnable: BTreeSet<u64>,
    plans: BTreeMap<BlobHash, Staged>,
    lives: BTreeMap<Key, Live>,
    ready: VecDeque<Key>,
    /// The first of these, where it needs more slots than are free, and since when.
    blocked: Option<(Key, u64)>,
    /// Nothing waited for a slot then, or one was found.
    moved_ms: u64,
    /// Slots' worth of what was started while others waited, and the newest placement when that began to be counted.
    pace: Option<(Pace, u64)>,
    /// Cost of what runs, of what is claimed and does not run yet, of all that is open, of what waits for its upload.
    used: u64,
    ahead: u64,
    outstanding: u64,
    uploading: u64,
    /// Some of that may be orphaned.
    orphans: bool,
    actions: Vec<Action>,
    records: Vec<Record>,
    /// Somebody waits for these records.
    urgent: bool,
    lazy_since_ms: Option<u64>,
    claims: BTreeMap<u64, TaskSet>,
    committing_claims: BTreeMap<u64, TaskSet>,
    cut_ms: u64,
    commit_ms: f64,
    ends: Ends,
    removals: Vec<Key>,
    committing_removals: Vec<Key>,
    link: Link,
    /// Name of the gateway.
    site: Arc<str>,
    /// There is no room for new work on the disk: why, and since when.
    no_room: Option<(String, u64)>,
}

impl Core {
    /// From a spool's state. The claims in it must be [`resume`](Self::resume)d before anything else is stepped. `fresh` is random: a new spool's
    /// incarnation.
    pub fn new(state: State, me: Hop, machine: Vec<u8>, boot: Vec<u8>, capacity: Capacity, fresh: u64, now: u64) -> Result<Core, Refusal> {
        let site = Arc::from(state.gateway_name.as_str());
        let mut core = Core {
            site,
            state,
            me,
            boot,
            capacity,
            offer: None,
            ends_ms: None,
            fit_version: 1,
            now,
            opens: BTreeMap::new(),
            runnable: BTreeSet::new(),
            plans: BTreeMap::new(),
            lives: BTreeMap::new(),
            ready: VecDeque::new(),
            blocked: None,
            moved_ms: now,
            pace: None,
            used: 0,
            ahead: 0,
            outstanding: 0,
            uploading: 0,
            orphans: true,
            actions: Vec::new(),
            records: Vec::new(),
            urgent: false,
            lazy_since_ms: None,
            claims: BTreeMap::new(),
            committing_claims: BTreeMap::new(),
            cut_ms: now,
            commit_ms: 0.0,
            ends: Ends::default(),
            removals: Vec::new(),
            committing_removals: Vec::new(),
            link: Link::new(now),
            no_room: None,
        };
        if core.state.counters.incarnation == 0 {
            core.record(What::Bound(crate::spool::record::Bound { machine, ..Default::default() }));
            core.record(What::Counters(Counters { incarnation: fresh.max(1), ..Counters::default() }));
        } else if core.state.machine != machine {
            let refused = Refusal::new(
                intergrid_proto::RefusalKind::Conflict,
                "this spool was written on another machine: a clone can't speak for its original",
            );
            return Err(refused.remedy("give this machine a state directory and an identity of its own"));
        }
        core.link.loaded(core.state.counters.sequence);
        let numbers: Vec<u64> = core.state.placements.keys().copied().collect();
        for number in numbers {
            core.open(number)?;
        }
        core.freeze_orphans();
        let jobs: Vec<u64> = core.state.wants.keys().copied().collect();
        jobs.into_iter().for_each(|job| core.obey(job));
        Ok(core)
    }

    /// The machine goes away then, by the clock of [`step`](Self::step).
    pub fn ends_at(&mut self, at_ms: u64) {
        self.ends_ms = Some(at_ms);
    }

    /// One thing that happened. What is to be done comes from [`actions`](Self::actions).
    pub fn step(&mut self, input: Input, now: u64) {
        self.now = now;
        match input {
            Input::Down(down) => self.down(down),
            Input::Connected { fresh } => self.link.connected(fresh),
            Input::Disconnected => self.disconnected(),
            Input::Committed => self.committed(),
            Input::Started(key, pid) => self.started(key, pid),
            Input::NotStarted(key, fault) => self.not_started(key, fault),
            Input::Exited(key, report) => self.exited(key, report),
            Input::OverMemory(key, bytes) => self.stop(key, Stop::Memory(bytes)),
            Input::Ticks(list) => self.ticks(list),
            Input::Fetched(hash, result) => self.fetched(hash, result),
            Input::Uploaded(key, result) => self.uploaded(key, result),
            Input::Capacity(capacity) => self.set_capacity(capacity),
            Input::Offer(offer) => self.set_offer(offer),
            Input::NeverStarted(key, reason) => self.never_started(key, reason),
            Input::Suspended(key, suspended) => self.suspended(key, suspended),
            Input::Room(why) => self.room(why),
            Input::Tick => self.tick(),
        }
        self.schedule();
    }

    /// What is to be done, in order.
    pub fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// The next batch of records, where there is one that should be made durable now. The caller answers with `Input::Committed`, and does not cut again
    /// before.
    pub fn cut(&mut self, now: u64) -> Option<Vec<Record>> {
        self.now = now;
        let late = self.lazy_since_ms.is_some_and(|t| now.saturating_sub(t) >= LAZY_SYNC_MS);
        if !self.urgent && !late && self.claims.is_empty() && self.ends.is_empty() || self.pause_ms(now) > 0 {
            return None;
        }
        self.flush_ends();
        self.flush_claims();
        self.link.cut(self.state.counters.sequence);
        self.committing_removals.append(&mut self.removals);
        (self.urgent, self.lazy_since_ms, self.cut_ms) = (false, None, now);
        Some(std::mem::take(&mut self.records))
    }

    /// How long the next batch waits for company: where tasks end fast, many share one sync. Never while a slot waits for a claim.
    pub fn pause_ms(&self, now: u64) -> u64 {
        let starved = !self.claims.is_empty() && self.ready.is_empty() && self.used < u64::from(self.capacity.slots);
        if starved || self.link.rate < PACED_RATE_MIN { 0 } else { (self.cut_ms + PACE_MS).saturating_sub(now) }
    }

    /// Records that say all: for compaction, in place of [`cut`](Self::cut).
    pub fn cut_all(&mut self, now: u64) -> Vec<Record> {
        self.urgent = true;
        self.cut_ms = 0;
        self.cut(now);
        self.state.snapshot()
    }

    /// Is there anything that a tick could move soon?
    pub fn is_idle(&self) -> bool {
        self.lives.is_empty() && self.lazy_since_ms.is_none()
    }

    /// Has anything been started here, or is it about to be, that has not ended?
    pub fn works(&self) -> bool {
        self.lives.values().any(|l| !matches!(l.stage, Stage::Uploading))
    }

    /// A task's process is gone, and how it ended is said later: its limits are watched no more. Has nobody here wanted it to end?
    pub fn ended_by_itself(&mut self, key: Key) -> bool {
        let Some(live) = self.lives.get_mut(&key).filter(|l| l.stop.is_none()) else { return false };
        (live.deadline_ms, live.kill_ms) = (None, None);
        true
    }

    /// Is nothing left here that the gateway has placed, and all acknowledged that was said of it?
    pub fn is_empty(&self) -> bool {
        self.state.placements.is_empty() && self.state.events.is_empty()
    }

    /// Content that tasks here still need.
    pub fn blobs_in_use(&self) -> BTreeSet<BlobHash> {
        self.plans.values().flat_map(|s| s.plan.spec.blobs()).map(|f| f.hash).collect()
    }

    /// A task that has started and not been told to have ended, as its gateway calls it: its key, and its process where that runs.
    pub fn live(&self, number: u64, task: u32) -> Option<(Key, Option<i32>)> {
        let at = self.as_placed(Attempts { number, job: 0, tasks: TaskSet::one(task) });
        let key = (at.number, at.tasks.first()?);
        match self.lives.get(&key)?.stage {
            Stage::Running(pid) => Some((key, Some(pid))),
            Stage::Uploading => Some((key, None)),
            Stage::Claiming | Stage::Ready | Stage::Starting => None,
        }
    }

    /// Process groups that live, by task.
    pub fn running(&self) -> impl Iterator<Item = (Key, i32)> {
        self.lives.iter().filter_map(|(k, l)| if let Stage::Running(pid) = l.stage { Some((*k, pid)) } else { None })
    }

    /// Is this one stopped for now?
    pub fn is_suspended(&self, key: Key) -> bool {
        self.lives.get(&key).is_some_and(|l| l.suspended)
    }

    /// For whom a placement's tasks run.
    pub fn principal(&self, number: u64) -> Option<&str> {
        self.state.placements.get(&number).map(|p| p.name.origin.principal.as_str())
    }

    /// The open tasks that the gateway calls by this job, by placement.
    pub fn tasks_of(&self, job: u64) -> Vec<(u64, TaskSet)> {
        self.named(job)
    }

    /// The plan of a placement that is open.
    pub fn plan(&self, number: u64) -> Option<Arc<Plan>> {
        self.opens.get(&number).map(|o| o.plan.clone())
    }

    /// A durable change that somebody waits for.
    fn record(&mut self, what: What) {
        self.urgent = true;
        self.record_lazily(what);
    }

    /// A durable change that may wait for others.
    fn record_lazily(&mut self, what: What) {
        // Our own records are lawful: a refusal here would be one on every later load.
        if let Err(e) = self.state.apply(&what) {
            debug_assert!(false, "a record of ours is refused: {e}");
            return;
        }
        self.records.push(Record { what: Some(what) });
        self.lazy_since_ms.get_or_insert(self.now);
    }

    fn event(&mut self, e: intergrid_proto::link::Event) {
        self.record(What::Event(pb::Event::from(e)));
    }

    fn cost(&self, shape: &Shape) -> u64 {
        // As those who are told of the share count.
        let gpus = if self.offer.as_ref().is_some_and(|o| o.nodes_max > 0) { 0 } else { self.capacity.gpus };
        Machine { gpus, ..self.capacity.machine() }.cost(shape)
    }

    fn set_capacity(&mut self, capacity: Capacity) {
        if capacity == self.capacity {
            return;
        }
        self.capacity = capacity;
        self.fit_version += 1;
        self.count_anew();
    }

    /// What a task costs has changed.
    pub(super) fn count_anew(&mut self) {
        for number in self.opens.keys().copied().collect::<Vec<_>>() {
            let cost = self.opens.get(&number).map(|o| self.cost(&o.plan.spec.shape)).unwrap_or_default();
            if let Some(o) = self.opens.get_mut(&number) {
                o.cost = cost;
            }
        }
        self.flush_ends();
        let cost = |number: &u64| self.opens.get(number).map_or(0, |o| o.cost);
        self.outstanding = self.state.placements.iter().map(|(n, p)| p.open.len() * cost(n)).sum();
        let sum = |f: fn(Stage) -> bool| self.lives.iter().filter(|(_, l)| f(l.stage)).map(|((n, _), _)| cost(n)).sum();
        self.used = sum(|s| matches!(s, Stage::Starting | Stage::Running(_)));
        self.ahead = sum(|s| matches!(s, Stage::Claiming | Stage::Ready));
        self.uploading = sum(|s| s == Stage::Uploading);
        self.link.advert_dirty = true;
    }
}
