//! The oracle: knows the truth (what started, what exited) and what every site has made durable, and says at once what must not be. It is a model of its
//! own, fed by the changes that are committed and by what passes between the parts; of the code under test it uses the record types and no logic.
//!
//! Names are those of the list of invariants: I1 nothing acknowledged is lost, I2 one unfenced start, I3 starts are accounted for, I4 keys, I5 no loops,
//! I9 terminal is terminal and has evidence, I10 only the current attempt counts, I11 usage once, I14 no start after a cancel, I16 what is advertised is
//! admitted, I18 a restart is the committed prefix; L1 all ends or says why, L2 nothing is left behind.

mod mirror;
mod truth;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use intergrid_proto::link::Want;
use intergrid_proto::{BlobHash, JobSpec, Refusal, RefusalKind, Shape, SiteId, TaskSet};

use super::leaf::Uid;
use super::scenario::Scenario;
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

/// What was told of a share: window, slots and memory of a machine.
type Told = BTreeMap<String, (u64, u32, u64)>;

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
    /// Usage that a root has counted.
    counted: BTreeSet<Uid>,
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
    /// Ends were told by a full state somewhere: their usage does not come with it.
    pub ends_resynced: bool,
    pub machines_replaced: bool,
    pub stores_replaced: bool,
}

impl Oracle {
    pub fn new(s: &Scenario, ids: Vec<SiteId>) -> Self {
        let index = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        let spec_hashes: Vec<BlobHash> = s.specs.iter().map(|s| BlobHash::of(&s.encode())).collect();
        let specs = spec_hashes.iter().copied().zip(s.specs.iter().cloned()).collect();
        let mirrors = ids.iter().map(|_| Mirror::default()).collect();
        let gateway_of = s.machines.iter().map(|m| m.gateway).collect();
        Oracle { ids, index, gateway_of, specs, spec_hashes, ended: vec![(0, 0); s.sites], mirrors, uids: 1_000, ..Oracle::default() }
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
        self.specs.get(&hash).map_or(Shape { slots: 1, memory_bytes: 0 }, |s| s.shape.clone())
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
        let durable = j.want.tasks(intergrid_proto::link::WantValue::Cancel, &all);
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
        self.counted.contains(&uid)
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

    pub fn store_replaced(&mut self, site: usize) {
        self.stores_replaced = true;
        self.mirrors[site] = Mirror::default();
    }

    /// A machine came in another's place, with an empty store.
    pub fn replaced(&mut self) {
        self.machines_replaced = true;
    }
}
