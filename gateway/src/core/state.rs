//! What a site knows: the durable part, which only [`apply`](super::apply) changes, and what is derived from it.
//!
//! Invariants: a task is *below* exactly when it has a placement (`down != 0`) and is not terminal; `queued` holds exactly the Queued tasks;
//! `counts` agree with the cells. Every entity carries the number of the last change that touched it, so that a replay over newer rows changes nothing
//! twice.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use intergrid_proto::link::{Event, Former, Origin, Want};
use intergrid_proto::{BlobHash, JobSpec, Phase, Shape, SiteId, TaskSet, pb};

use super::cells::Cells;
use super::small::Small;

/// Tasks of a chunk.
pub const CHUNK_TASKS: u32 = 4_096;

/// In place of an exit: the task is in doubt.
pub const EXIT_DOUBTFUL: u16 = 1_026;

/// As that, and who had it has forgotten how it ended.
pub const EXIT_FORGOTTEN: u16 = 1_027;

/// Somebody below has it in doubt, for good.
pub const EXIT_LOST_BELOW: u16 = 1_028;

/// One task: 16 bytes, so that a million fit in 16 MB.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Cell {
    /// A `Phase`, or 0: not here.
    pub phase: u8,
    pub attempts: u8,
    /// As `Exit::to_number`; of the last end.
    pub exit: u16,
    /// Which of the job's parent placements; 0: a user's submission.
    pub up: u32,
    /// Our current placement; 0: none.
    pub down: u64,
}

impl Cell {
    /// Its phase; None: not here.
    pub fn phase(self) -> Option<Phase> {
        Phase::from_number(i32::from(self.phase))
    }

    /// It waits here, and may have been started by somebody below while this store did not know.
    pub fn is_doubtful(self) -> bool {
        matches!(self.exit, EXIT_DOUBTFUL | EXIT_FORGOTTEN) && self.phase == Phase::Held as u8
    }

    /// It has neither ended nor gone.
    pub fn is_open(self) -> bool {
        self.phase().is_some_and(|p| !p.is_terminal())
    }

    /// Somebody below has it.
    pub fn is_below(self) -> bool {
        self.down != 0 && self.phase().is_some_and(|p| !p.is_terminal())
    }
}

/// 4,096 tasks.
#[derive(Clone, Debug)]
pub struct Chunk {
    pub seq: u64,
    pub cells: Cells,
}

/// A parent's placement on us (or, with number 0, a user's submission).
#[derive(Clone, Debug)]
pub struct UpEntry {
    pub seq: u64,
    pub number: u64,
    pub share: Arc<str>,
    /// The incarnation of the parent that issued it: orphaned where that is no more.
    pub incarnation: u64,
    /// The parent's job.
    pub job: u64,
    /// Slots that each task counts for in the parent's window.
    pub cost: u64,
    /// Tasks not terminal and not given back.
    pub open: u64,
    /// What an attempt of one of them may cost at most, where the job has a cap: millionths.
    pub most_micro: u64,
}

/// Our placement on a child.
#[derive(Clone, Debug)]
pub struct DownEntry {
    pub seq: u64,
    pub child: SiteId,
    pub share: Arc<str>,
    /// The child has said so; before, it is sent again at each attach.
    pub accepted: bool,
    pub cost: u64,
    pub attempts: u32,
    /// Current tasks.
    pub open: u64,
    /// Tasks whose attempt here no longer counts and has not been seen to stop.
    pub fenced: TaskSet,
    /// The child held them under this name when we placed them.
    pub adopt: Option<Former>,
    /// What an attempt of one of them costs there at most, where the job has a cap: millionths.
    pub most_micro: u64,
}

/// Takes no new work: why, who said so, since when (milliseconds since 1970).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drain {
    pub reason: String,
    pub by: String,
    pub since_ms: u64,
}

/// A spec, shared by all jobs that have it.
#[derive(Debug)]
pub struct Spec {
    pub bytes: Vec<u8>,
    pub parsed: JobSpec,
}

#[derive(Debug)]
pub struct Job {
    pub no: u64,
    pub seq: u64,
    pub parent: Option<SiteId>,
    pub parent_job: u64,
    /// Of the parent's store when it placed this: orphaned where that store is no more.
    pub parent_incarnation: u64,
    pub key: Arc<str>,
    pub owner: SiteId,
    pub owner_name: String,
    pub origin: Origin,
    pub spec_hash: BlobHash,
    pub spec: Arc<Spec>,
    pub size: u32,
    pub created_ms: u64,
    pub ended_ms: u64,
    pub route: Vec<SiteId>,
    pub hops_left: u32,
    pub chain: Vec<pb::ChainLink>,
    /// The register. `job` and `version` are those of who sets it (a parent's; a user's are ours).
    pub want: Want,
    /// Our own version of it, for our children.
    pub want_version: u64,
    pub next_up: u32,
    pub ups: Small<u32, UpEntry>,
    pub downs: BTreeMap<u64, DownEntry>,
    pub chunks: Vec<Chunk>,
    /// Tasks at a time, where that was changed after the submission; 0: not limited.
    pub at_once: Option<u32>,
    /// Tasks ended, by every child that has had any.
    pub ended_at: Small<SiteId, u64>,
    /// What was charged to it, where it was submitted and has a cap: millionths.
    pub spent_micro: u64,
    // Derived.
    pub counts: [u64; 11],
    pub queued: TaskSet,
    /// Loaded with waiting tasks, and not all peers are back that could say that this store is old.
    pub unsure: bool,
    /// When tasks last came to wait or were placed: how long they wait without progress.
    pub moved_ms: u64,
    /// Since when the oldest of its waiting tasks waits, in milliseconds since 1970: what has run, or was on hold, begins anew; what only came back does not.
    pub waits_ms: u64,
    /// Returns and stale ends since the start of this process.
    pub notes: u64,
    /// The last reason why tasks came back, for people.
    pub last_return: Option<(u64, intergrid_proto::Reason)>,
    /// Why tasks failed, and how many of each: since it was loaded, the rarer ones beyond `FAILURES_MAX` under the last.
    pub failures: Vec<(intergrid_proto::Reason, u64)>,
    /// Since when nothing of it is open, and the last event for its parent as of then.
    pub over_ms: u64,
    pub told: u64,
    /// It is to be put away when that is due.
    pub leaves: bool,
    /// It is past, and all of it is in its header: its chunks and parents' placements have no rows.
    pub inside: bool,
}

impl Job {
    /// As it is recorded; none of its tasks is here.
    pub fn new(seq: u64, j: &super::change::JobNew, hash: BlobHash, spec: Arc<Spec>) -> Job {
        let site = super::change::site;
        let origin = j.origin.clone().unwrap_or_default();
        let blank = |at: u32| Chunk { seq: 0, cells: Cells::same(Cell::default(), (j.size - at * CHUNK_TASKS).min(CHUNK_TASKS)) };
        Job {
            no: j.job,
            seq,
            parent: SiteId::from_slice(&j.parent),
            parent_job: j.parent_job,
            parent_incarnation: j.parent_incarnation,
            key: j.key.as_str().into(),
            owner: site(&j.owner),
            owner_name: j.owner_name.clone(),
            origin: Origin { site: site(&origin.site), job: origin.job, principal: origin.principal, submitted_ms: origin.submitted_ms },
            spec_hash: hash,
            spec,
            size: j.size,
            created_ms: j.created_ms,
            ended_ms: 0,
            route: j.route.iter().map(|s| site(s)).collect(),
            hops_left: j.hops_left,
            chain: j.chain.clone(),
            want: Default::default(),
            want_version: 0,
            next_up: 0,
            ups: Default::default(),
            downs: Default::default(),
            chunks: (0..j.size.div_ceil(CHUNK_TASKS)).map(blank).collect(),
            at_once: None,
            ended_at: Default::default(),
            spent_micro: 0,
            counts: {
                let mut counts = [0; 11];
                counts[0] = u64::from(j.size);
                counts
            },
            queued: TaskSet::new(),
            unsure: false,
            moved_ms: 0,
            waits_ms: j.created_ms,
            notes: 0,
            last_return: None,
            failures: Vec::new(),
            over_ms: 0,
            told: 0,
            leaves: false,
            inside: false,
        }
    }

    pub fn shape(&self) -> &Shape {
        &self.spec.parsed.shape
    }

    pub fn cell(&self, task: u32) -> Cell {
        // A chunk that is one cell has that for tasks beyond the array too.
        self.chunks.get((task / CHUNK_TASKS) as usize).filter(|_| task < self.size).map(|c| c.cells.get(task % CHUNK_TASKS)).unwrap_or_default()
    }

    /// Tasks of it that may be placed or running at a time: counted where it was submitted.
    pub fn tasks_at_once(&self) -> Option<u32> {
        self.at_once.or(self.spec.parsed.tasks_at_once).filter(|n| *n > 0 && self.parent.is_none())
    }

    /// Of its waiting tasks, those that may be placed now.
    pub fn placeable(&self) -> u64 {
        if self.unsure {
            return 0;
        }
        let below = || self.downs.values().map(|d| d.open).sum::<u64>();
        self.queued.len().min(self.tasks_at_once().map_or(u64::MAX, |n| u64::from(n).saturating_sub(below())))
    }

    pub fn count(&self, phase: Phase) -> u64 {
        self.counts[phase as usize]
    }

    /// Tasks that are here.
    pub fn present(&self) -> u64 {
        self.counts[1..].iter().sum()
    }

    pub fn open(&self) -> u64 {
        Phase::ALL.iter().filter(|p| !p.is_terminal()).map(|p| self.count(*p)).sum()
    }

    /// Those of `within` for which this holds.
    pub fn select(&self, within: &TaskSet, good: impl Fn(Cell) -> bool) -> TaskSet {
        let mut out = TaskSet::new();
        self.each_run(within, |range, c| {
            if good(c) {
                out.insert(range);
            }
        });
        out
    }

    /// Ranges of equal cells, ascending.
    pub fn each_run(&self, within: &TaskSet, mut each: impl FnMut(std::ops::Range<u32>, Cell)) {
        for r in within.ranges() {
            let mut i = r.start;
            while i < r.end.min(self.size) {
                let first = i / CHUNK_TASKS * CHUNK_TASKS;
                let to = (first + CHUNK_TASKS).min(r.end).min(self.size);
                self.chunks[(i / CHUNK_TASKS) as usize].cells.runs(i - first, to - first, |a, b, c| each(first + a..first + b, c));
                i = to;
            }
        }
    }

    /// All tasks in ascending ranges of cells that are alike in this.
    pub fn runs<K: PartialEq>(&self, key: impl Fn(&Cell) -> K) -> Vec<(std::ops::Range<u32>, Cell)> {
        let mut out: Vec<(std::ops::Range<u32>, Cell)> = Vec::new();
        self.each_run(&self.all(), |range, c| match out.last_mut() {
            Some((last, of)) if key(of) == key(&c) => last.end = range.end,
            _ => out.push((range, c)),
        });
        out
    }

    /// Every task of the array.
    pub fn all(&self) -> TaskSet {
        TaskSet::range(0..self.size)
    }

    /// Group tasks by their parent placement.
    pub fn by_up(&self, tasks: &TaskSet) -> BTreeMap<u32, TaskSet> {
        let mut out: BTreeMap<u32, TaskSet> = BTreeMap::new();
        self.each_run(tasks, |range, c| out.entry(c.up).or_default().insert(range));
        out
    }
}

/// A parent, durable part and event log.
#[derive(Debug, Default)]
pub struct Link {
    pub seq: u64,
    pub name: String,
    /// Next event sequence to issue; the first is 1.
    pub next: u64,
    pub acked: u64,
    pub peer_incarnation: u64,
    /// Highest placement number seen.
    pub seen: u64,
    /// Of placements below this number we may have forgotten some.
    pub complete_from: u64,
    /// The incarnation of ours to which it has said all that it holds open here; 0: never asked.
    pub heard: u64,
    /// Registers of jobs that we do not know (yet).
    pub wants: BTreeMap<u64, Want>,
    pub wants_seq: u64,
    /// Events not acknowledged: sequence, number of the change, when, what.
    pub outbox: VecDeque<(u64, u64, u64, Event)>,
    /// What they take, about.
    pub outbox_bytes: usize,
}

impl Link {
    /// One more event; beyond what may be kept the first ones go, and the parent gets his full state instead.
    pub fn keep(&mut self, sequence: u64, change: u64, at_ms: u64, event: Event) {
        self.outbox_bytes += crate::queue::event(&event);
        self.outbox.push_back((sequence, change, at_ms, event));
        while self.outbox_bytes > super::limits::OUTBOX_BYTES_MAX && self.outbox.len() > 1 {
            self.forget_first();
        }
    }

    /// The first event is acknowledged, or too old.
    pub fn forget_first(&mut self) {
        if let Some((.., event)) = self.outbox.pop_front() {
            self.outbox_bytes -= crate::queue::event(&event);
        }
        super::fit::fit(&mut self.outbox);
    }
}

/// A child, durable part.
#[derive(Debug, Default, Clone)]
pub struct ChildCursor {
    pub seq: u64,
    pub name: String,
    pub kind: i32,
    pub incarnation: u64,
    pub sequence: u64,
    /// Highest placement number issued to it.
    pub issued: u64,
    /// Placements up to this number were sent to a store of its that is no more.
    pub renewed_at: u64,
    /// It is attached, or was when this process began.
    pub here: bool,
}

/// All of it.
#[derive(Debug, Default)]
pub struct State {
    pub incarnation: u64,
    /// Something that this site once knew may be missing, and its peers have not all said what they know.
    pub recovering: bool,
    /// Placements up to this number were issued under older incarnations.
    pub former: u64,
    /// Of placements above this number this store may have forgotten some; while it recovers.
    pub doubt_from: u64,
    /// The row that was loaded knows of all changes below this one.
    pub meta_from: u64,
    /// Older incarnations, as far as they are known.
    pub past: Vec<u64>,
    pub next_job: u64,
    pub next_number: u64,
    pub jobs: BTreeMap<u64, Box<Job>>,
    /// Put away with the batch that is under way: not yet to be read from the store.
    pub leaving: BTreeMap<u64, Box<Job>>,
    pub links: BTreeMap<SiteId, Link>,
    pub cursors: BTreeMap<SiteId, ChildCursor>,
    /// Who takes no new work: this site, children.
    pub drains: BTreeMap<SiteId, Drain>,
    // Derived.
    pub by_key: HashMap<(SiteId, Arc<str>), u64>,
    pub by_parent: HashMap<(SiteId, u64, u64), u64>,
    /// Jobs that serve a parent's job by adoption.
    pub adopted: HashMap<(SiteId, u64, u64), BTreeSet<u64>>,
    /// Open placements of each child: number to job.
    pub placed_on: BTreeMap<SiteId, BTreeMap<u64, u64>>,
    /// Slots outstanding on each child's shares.
    pub outstanding: HashMap<(SiteId, Arc<str>), u64>,
    /// Tasks ended by each child, as far as this process knows.
    pub ended_on: BTreeMap<SiteId, u64>,
    /// Slots outstanding of each parent by share.
    pub held_for: HashMap<(SiteId, Arc<str>), u64>,
    pub waiting: BTreeMap<QueueKey, BTreeSet<u64>>,
    pub specs: HashMap<BlobHash, std::sync::Weak<Spec>>,
    pub names: HashMap<Arc<str>, ()>,
    /// Tasks ended since the start of this process.
    pub ended: u64,
}

impl State {
    /// Our jobs that serve this job of a parent, the one that takes in new tasks first.
    pub fn jobs_of(&self, parent: SiteId, incarnation: u64, job: u64) -> Vec<u64> {
        let key = (parent, incarnation, job);
        let first = self.by_parent.get(&key).copied();
        first.into_iter().chain(self.adopted.get(&key).into_iter().flatten().copied().filter(|n| Some(*n) != first)).collect()
    }

    /// One copy of each share's key.
    pub fn intern(&mut self, s: &str) -> Arc<str> {
        match self.names.get_key_value(s) {
            Some((k, ())) => k.clone(),
            None => {
                let k: Arc<str> = s.into();
                self.names.insert(k.clone(), ());
                k
            }
        }
    }
}

/// Jobs that wait together: one shape, one route (a job never goes where it came from), one user (who may not be let in everywhere), one time limit (there
/// may be less time on a machine than it asks for).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct QueueKey {
    pub shape: Shape,
    pub route: Vec<SiteId>,
    pub principal: String,
    pub time_limit_ms: Option<u64>,
    /// The job, where it has a cap: what is left of that decides where it may go.
    pub capped: Option<u64>,
}

impl QueueKey {
    pub fn of(j: &Job) -> Self {
        let (capped, time_limit_ms) = (j.max_cost().map(|_| j.no), j.spec.parsed.time_limit_ms);
        QueueKey { shape: j.shape().clone(), route: j.route.clone(), principal: j.origin.principal.clone(), time_limit_ms, capped }
    }

    /// Everybody's jobs of this shape and time limit.
    pub fn anybody(&self) -> Self {
        QueueKey { shape: self.shape.clone(), time_limit_ms: self.time_limit_ms, route: Vec::new(), principal: String::new(), capped: None }
    }
}
