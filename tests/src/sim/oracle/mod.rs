//! The oracle: knows the truth (what started, what exited) and what every site has made durable, and says at once what must not be. It is a model of its
//! own, fed by the changes that are committed and by what passes between the parts; of the code under test it uses the record types and no logic.
//!
//! Names are those of the list of invariants: I1 nothing acknowledged is lost, I2 one unfenced start, I3 starts are accounted for, I4 keys, I5 no loops,
//! I9 terminal is terminal and has evidence, I10 only the current attempt counts, I11 usage once, I14 no start after a cancel, I16 what is advertised is
//! admitted, I18 a restart is the committed prefix; L1 all ends or says why, L2 nothing is left behind.
//!
//! A store that is lost, or put back to an old copy, takes with it what that store alone knew, and nothing else is excused:
//! - I1, I4, I14: of its own users, jobs that the copy does not have and cancels that it does not have. A user asks again. No other site forgets anything.
//! - I2, I9: a process counts while every site of its way knows its placement there; a site that has forgotten it can't answer for it.
//!   What is found again under a new name (a placement that adopts, a task that gets another label) is the same process, and counts again.
//! - I3: under `wait` there is one start, whatever is lost, and one more each time that the user himself lets the task go again; but a start of which
//!   both ends of a link have forgotten the placement is one that nobody can know of. Under `requeue` there is one more for each time that a task in
//!   doubt is placed again.
//! - I10: a number that its child has durably seen is never issued again, by whatever store. What the site had fenced before is let go as soon as its
//!   child has said what it has: if it runs, it runs on as an orphan.
//! - I11: a root that went back counts again what its copy had not counted. What was counted as a lost attempt's is counted once more where a store that
//!   was lost finds it again, as the end of the attempt that replaced it: only that store knew which of the two it was. Usage may be missing if a store of its way was replaced, or
//!   found it again, after the start.
//! - L1: a `wait` task may stay held for good if its way led to or through the store, and if it says so (EvidenceLost). All else ends.
//! - L2: what is here for a placement that the parent has forgotten may stay: orphans are nobody's to end but an administrator's.

mod mirror;
mod orders;
mod truth;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use intergrid_gateway::backends::child_end::site_of;
use intergrid_proto::link::{Want, WantValue};
use intergrid_proto::share::Machine;
use intergrid_proto::{BlobHash, JobSpec, Refusal, RefusalKind, Shape, SiteId, TaskSet};

use super::leaf::Uid;
use super::scenario::Scenario;
use mirror::Issued;
pub use mirror::Mirror;
pub use truth::Process;

/// What must not be, and was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which rule.
    pub invariant: String,
    /// What was seen.
    pub what: String,
    /// Virtual time.
    pub at_ms: u64,
}

/// An origin's task.
pub type TaskKey = (SiteId, String, u32);

/// What was told of a share: window, and what a machine has.
type Told = BTreeMap<String, (u64, Machine)>;

/// Of a share that a child offers.
struct Offer {
    key: String,
    window: u64,
    machine_slots: u32,
}

#[derive(Default)]
pub struct Oracle {
    pub now_ms: u64,
    pub failure: Option<Failure>,
    pub ids: Vec<SiteId>,
    index: BTreeMap<SiteId, usize>,
    gateway_of: Vec<usize>,
    pub specs: BTreeMap<BlobHash, JobSpec>,
    spec_hashes: Vec<BlobHash>,
    pub mirrors: Vec<Mirror>,
    pub processes: BTreeMap<Uid, Process>,
    uids: Uid,
    /// When a payload last ended.
    pub exited_ms: u64,
    /// Attempts that were lost or fenced: each may be followed by one more start.
    excused: BTreeMap<TaskKey, u64>,
    /// Tasks that were claimed: whether they started may never be known.
    claimed: BTreeSet<TaskKey>,
    /// One more start for each time that its user let it go, after a store was lost.
    released: BTreeMap<TaskKey, u64>,
    /// All placements ever, and which of them was the last of its name: site, child, number.
    issued: Vec<Issued>,
    named: BTreeMap<(usize, SiteId, u64), usize>,
    /// Under which later placement of the same site a task goes on.
    later: BTreeMap<(usize, u32), usize>,
    /// Those that neither end of their link knows of any more.
    pub gone: BTreeSet<usize>,
    /// How many jobs have had this name.
    roots: BTreeMap<(SiteId, String), usize>,
    /// Of the batch that is being committed: what leaves a placement for a new name of it.
    found_again: Vec<(usize, TaskSet)>,
    leaf_ids: Vec<SiteId>,
    /// The highest placement that an agent has made durable.
    leaf_seen: BTreeMap<SiteId, u64>,
    /// (site, key) to job, spec and size of the first that was acknowledged.
    keys: BTreeMap<(usize, usize), (u64, usize, u32)>,
    cancelled: BTreeMap<(usize, u64), TaskSet>,
    /// The register of a parent's job that a site or leaf has last been told.
    registers: BTreeMap<(SiteId, SiteId, u64), Want>,
    adverts: BTreeMap<(usize, SiteId), Told>,
    /// The one before it, and the latest's version, until that was seen.
    befores: BTreeMap<(usize, SiteId), (Told, u64)>,
    /// What a child offers.
    offers: BTreeMap<(usize, SiteId), Vec<Offer>>,
    /// Tasks ended at a site since its start, and when the last of them did.
    ended: Vec<(u64, u64)>,
    /// Placements that fitted what was advertised when they came: site, parent, number.
    fitting: BTreeSet<(usize, SiteId, u64)>,
    /// Open tasks that a full state has named so far: site and parent.
    resyncs: BTreeMap<(usize, SiteId), BTreeMap<u64, TaskSet>>,
    /// Tasks whose end was told by a full state somewhere: their usage does not come with it.
    pub resynced: BTreeSet<TaskKey>,
    /// Machines that an empty one took the place of: when the last did, and the last placement that its gateway had decided when it knew, if it does.
    pub emptied: BTreeMap<usize, (u64, u64, bool)>,
    names: BTreeMap<SiteId, String>,
    /// Sites that let no stranger's work in.
    denies: BTreeSet<usize>,
    /// What a site had placed when it was told, by this deed, that a child is lost.
    placed_before: BTreeMap<usize, u64>,
    /// Sites whose store was lost or is an old copy: when that was, and how many placements had been issued before it knew.
    pub replaced: BTreeMap<usize, (u64, usize)>,
}

impl Oracle {
    pub fn new(s: &Scenario, ids: Vec<SiteId>) -> Self {
        let index = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        let spec_hashes: Vec<BlobHash> = s.specs.iter().map(|s| BlobHash::of(&s.encode())).collect();
        let specs = spec_hashes.iter().copied().zip(s.specs.iter().cloned()).collect();
        let mirrors = ids.iter().map(|_| Mirror::default()).collect();
        let gateway_of = s.machines.iter().map(|m| m.gateway).collect();
        let leaf_ids = (0..s.machines.len()).map(|i| site_of(&format!("a{i}"))).collect();
        let (denies, ended) = (s.denies.clone(), vec![(0, 0); s.sites]);
        let names = (0..s.sites).map(|i| format!("s{i}")).chain((0..s.machines.len()).map(|i| format!("a{i}")));
        let names = names.map(|n| (site_of(&n), n)).collect();
        Oracle { ids, index, gateway_of, leaf_ids, specs, spec_hashes, ended, mirrors, names, denies, uids: 1_000, ..Oracle::default() }
    }

    /// The first failure counts.
    pub fn fail(&mut self, invariant: &str, what: String) {
        let at_ms = self.now_ms;
        self.failure.get_or_insert(Failure { invariant: invariant.into(), what, at_ms });
    }

    fn site(&self, id: SiteId) -> Option<usize> {
        self.index.get(&id).copied()
    }

    fn shape(&self, hash: BlobHash) -> Shape {
        self.specs.get(&hash).map_or(Shape::default(), |s| s.shape.clone())
    }

    /// A user has his answer.
    pub fn answered(&mut self, site: usize, key: usize, spec: usize, tasks: u32, answer: &Result<(u64, bool), Refusal>) {
        let first = self.keys.get(&(site, key)).copied();
        match (answer, first) {
            (Ok((job, existed)), None) => {
                self.keys.insert((site, key), (*job, spec, tasks));
                let known = self.mirrors[site].jobs.get(job);
                if known.is_none_or(|j| j.hash != self.spec_hashes[spec] || j.size() != tasks) {
                    self.fail("I1", format!("site {site} acknowledges job {job} (existed: {existed}), which is not durable there"));
                }
            }
            (Ok((job, existed)), Some(first)) => {
                if (*job, spec, tasks) != first || !existed {
                    self.fail("I4", format!("site {site}, key {key}: job {job}, spec {spec}, existed {existed}; before it was {first:?}"));
                }
            }
            (Err(r), first) => {
                if r.kind != RefusalKind::Conflict || first.is_some_and(|f| f.1 == spec && f.2 == tasks) {
                    self.fail("I4", format!("site {site}, key {key}: refused with {r}; before it was {first:?}"));
                }
            }
        }
    }

    /// A user's cancel is acknowledged.
    pub fn cancel_acknowledged(&mut self, site: usize, job: u64, tasks: Option<TaskSet>) {
        let Some(j) = self.mirrors[site].jobs.get(&job) else { return };
        let all = TaskSet::range(0..j.size());
        let tasks = tasks.unwrap_or_else(|| all.clone()).intersect(&all);
        let open: TaskSet = tasks.iter().filter(|t| !j.cells[*t as usize].is_terminal()).collect();
        let durable = j.want.tasks(WantValue::Cancel, &all);
        if !open.subtract(&durable).is_empty() {
            self.fail("I1", format!("site {site} acknowledges a cancel of {open} of job {job}, durable is {durable}"));
        }
        let known = self.cancelled.entry((site, job)).or_default();
        *known = known.union(&open);
    }

    /// All user jobs that were acknowledged: site and number.
    pub fn acknowledged(&self) -> Vec<(usize, u64)> {
        self.keys.iter().map(|((site, _), (job, ..))| (*site, *job)).collect()
    }

    pub fn is_counted(&self, uid: Uid) -> bool {
        self.mirrors.iter().any(|m| m.counted.contains(&uid))
    }

    pub fn crashed(&mut self, site: usize) {
        self.adverts.retain(|(s, _), _| *s != site);
        self.befores.retain(|(s, _), _| *s != site);
        self.offers.retain(|(s, _), _| *s != site);
        self.fitting.retain(|(s, ..)| *s != site);
        self.resyncs.retain(|(s, _), _| *s != site);
        let me = self.ids[site];
        self.registers.retain(|(s, ..), _| *s != me);
    }

    /// A site has an old copy of its store, or an empty one: what it promised since is forgotten, and nothing else. True of its users' jobs and cancels;
    /// what others have made durable stays true of them.
    pub fn store_replaced(&mut self, site: usize, copy: Option<Mirror>) {
        self.replaced.insert(site, (self.now_ms, self.issued.len()));
        let mirror = copy.unwrap_or_default();
        self.keys.retain(|(s, _), _| *s != site);
        for (no, j) in mirror.jobs.iter().filter(|(_, j)| j.parent.is_none()) {
            if let (Some(key), Some(spec)) =
                (j.key.strip_prefix("key ").and_then(|k| k.parse().ok()), self.spec_hashes.iter().position(|h| *h == j.hash))
            {
                self.keys.insert((site, key), (*no, spec, j.size()));
            }
        }
        for ((_, job), tasks) in self.cancelled.iter_mut().filter(|((s, _), _)| *s == site) {
            *tasks = mirror.jobs.get(job).map(|j| j.want.tasks(WantValue::Cancel, tasks)).unwrap_or_default();
        }
        let me = self.ids[site];
        self.registers.retain(|(_, parent, _), _| *parent != me);
        self.mirrors[site] = mirror;
        let forgotten = |i: &Issued| {
            let seen = self.site(i.child).map_or_else(|| self.leaf_seen.get(&i.child), |c| self.mirrors[c].seen.get(&self.ids[i.site]));
            self.mirrors[i.site].placed.get(&i.number).is_none_or(|p| self.issued[p.id].child != i.child) && seen.is_none_or(|s| *s < i.number)
        };
        let gone: Vec<usize> = self.issued.iter().enumerate().filter(|(_, i)| forgotten(i)).map(|(id, _)| id).collect();
        self.gone.extend(gone);
    }

    /// What a user's key stands for.
    pub fn job_of(&self, site: usize, key: usize, spec: usize, tasks: u32) -> Option<u64> {
        self.keys.get(&(site, key)).filter(|(_, s, n)| (*s, *n) == (spec, tasks)).map(|(job, ..)| *job)
    }

    /// A machine came in another's place, with an empty store.
    pub fn machine_replaced(&mut self, leaf: usize) {
        self.emptied.insert(leaf, (self.now_ms, u64::MAX, false));
        self.leaf_seen.remove(&self.leaf_ids[leaf]);
    }
}
