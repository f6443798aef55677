//! The oracle: knows the truth (what started, what exited) and what every site has made durable, and says at once what must not be. It is a model of
//! its own, fed by the changes that are committed and by what passes between the parts; of the code under test it uses the record types and no logic.
//! What has happened it keeps in a record beside it, which judges nothing; whether all is at rest (L1, L2) is asked in `rest.rs`.
//!
//! Names are those of the list of invariants: I1 nothing acknowledged is lost, I2 one unfenced start, I3 starts are accounted for, I4 keys, I5 no
//! loops, I9 terminal is terminal and has evidence, I10 only the current attempt counts, I11 usage once, I14 no start after a cancel, I16 what is
//! advertised is admitted, I18 a restart is the committed prefix; L1 all ends or says why, L2 nothing is left behind.
//!
//! A store that is lost, or put back to an old copy, takes with it what that store alone knew, and nothing else is excused:
//! - I1, I4, I14: of its own users, jobs that the copy does not have and cancels that it does not have. A user asks again. No other site forgets
//!   anything.
//! - I2, I9: a process counts while every site of its way knows its placement there; a site that has forgotten it can't answer for it.
//!   What is found again under a new name (a placement that adopts, a task that gets another label) is the same process, and counts again.
//! - I3: under `wait` there is one start, whatever is lost, and one more each time that the user himself lets the task go again; but a start of which
//!   both ends of a link have forgotten the placement is one that nobody can know of. Under `requeue` there is one more for each time that a task in
//!   doubt is placed again.
//! - I10: a number that its child has durably seen is never issued again, by whatever store. What the site had fenced before is let go as soon as its
//!   child has said what it has: if it runs, it runs on as an orphan.
//! - I11: a root that went back counts again what its copy had not counted. What was counted as a lost attempt's is counted once more where a store
//!   that was lost finds it again, as the end of the attempt that replaced it: only that store knew which of the two it was. Usage may be missing
//!   if a store of its way was replaced, or found it again, after the start.
//! - L1: a `wait` task may stay held for good if its way led to or through the store, and if it says so (EvidenceLost). All else ends.
//! - L2: what is here for a placement that the parent has forgotten may stay: orphans are nobody's to end but an administrator's.

mod changes;
mod orders;
mod starts;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use intergrid_gateway::core::change::{Change, What};
use intergrid_proto::link::{Want, WantValue};
use intergrid_proto::spec::OnLost;
use intergrid_proto::{BlobHash, JobSpec, Refusal, RefusalKind, SiteId, TaskSet};
use prost::Message;

use super::record::{Issued, JobKey, Mirror, Record, TaskKey};
use super::scenario::Scenario;
use words::{Above, Offer};

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

#[derive(Default)]
pub struct Oracle {
    pub now_ms: u64,
    pub failure: Option<Failure>,
    pub record: Record,
    specs: BTreeMap<BlobHash, JobSpec>,
    spec_hashes: Vec<BlobHash>,
    /// Sites that let no stranger's work in.
    denies: BTreeSet<usize>,
    /// Those that neither end of their link knows of any more.
    gone: BTreeSet<usize>,
    /// Of the batch that is being committed: what leaves a placement for a new name of it.
    found_again: Vec<(usize, TaskSet)>,
    /// Attempts that were lost or fenced: each may be followed by one more start.
    excused: BTreeMap<TaskKey, u64>,
    /// One more start for each time that its user let it go, after a store was lost.
    released: BTreeMap<TaskKey, u64>,
    /// Tasks that were claimed: whether they started may never be known.
    claimed: BTreeSet<TaskKey>,
    /// How many jobs have had this name.
    roots: BTreeMap<JobKey, usize>,
    /// (site, key) to job, spec and size of the first that was acknowledged.
    keys: BTreeMap<(usize, usize), (u64, usize, u32)>,
    cancelled: BTreeMap<(usize, u64), TaskSet>,
    /// The register of a parent's job that a site or leaf has last been told.
    registers: BTreeMap<(SiteId, SiteId, u64), Want>,
    /// Of each site, what passed between it and a parent since it is up, and what a child offers.
    above: Vec<BTreeMap<SiteId, Above>>,
    offers: Vec<BTreeMap<SiteId, Vec<Offer>>>,
    /// Tasks ended at a site since its start, and when the last of them did.
    ended: Vec<(u64, u64)>,
    /// Tasks whose end was told by a full state somewhere: their usage does not come with it.
    pub resynced: BTreeSet<TaskKey>,
    /// What a site had placed when it was told, by this deed, that a child is lost.
    placed_before: BTreeMap<usize, u64>,
}

impl Oracle {
    pub fn new(s: &Scenario, ids: Vec<SiteId>) -> Self {
        let spec_hashes: Vec<BlobHash> = s.specs.iter().map(|s| BlobHash::of(&s.encode())).collect();
        Oracle {
            specs: spec_hashes.iter().copied().zip(s.specs.iter().cloned()).collect(),
            spec_hashes,
            denies: s.denies.clone(),
            above: (0..s.sites).map(|_| BTreeMap::new()).collect(),
            offers: (0..s.sites).map(|_| BTreeMap::new()).collect(),
            ended: vec![(0, 0); s.sites],
            record: Record::new(s, ids),
            ..Oracle::default()
        }
    }

    /// The first failure counts.
    pub fn fail(&mut self, invariant: &str, what: String) {
        let at_ms = self.now_ms;
        self.failure.get_or_insert(Failure { invariant: invariant.into(), what, at_ms });
    }

    /// A rule, and what is said where it does not hold.
    fn must(&mut self, holds: bool, invariant: &str, what: fmt::Arguments<'_>) {
        if !holds {
            self.fail(invariant, what.to_string());
        }
    }

    /// May tasks of this spec start once only?
    fn waits(&self, spec: BlobHash) -> bool {
        self.specs.get(&spec).is_some_and(|s| s.on_lost == OnLost::Wait)
    }

    /// A user has his answer.
    pub fn answered(&mut self, site: usize, key: usize, spec: usize, tasks: u32, answer: &Result<(u64, bool), Refusal>) {
        let first = self.keys.get(&(site, key)).copied();
        match (answer, first) {
            (Ok((job, existed)), None) => {
                self.keys.insert((site, key), (*job, spec, tasks));
                let durable = self.record.mirrors[site].jobs.get(job).is_some_and(|j| j.hash == self.spec_hashes[spec] && j.size() == tasks);
                self.must(durable, "I1", format_args!("site {site} acknowledges job {job} (existed: {existed}), which is not durable there"));
            }
            (Ok((job, existed)), Some(first)) => {
                let same = (*job, spec, tasks) == first && *existed;
                self.must(same, "I4", format_args!("site {site}, key {key}: job {job}, spec {spec}, existed {existed}; before it was {first:?}"));
            }
            (Err(r), first) => {
                let conflict = r.kind == RefusalKind::Conflict && first.is_none_or(|(_, s, n)| (s, n) != (spec, tasks));
                self.must(conflict, "I4", format_args!("site {site}, key {key}: refused with {r}; before it was {first:?}"));
            }
        }
    }

    /// A user's cancel is acknowledged.
    pub fn cancel_acknowledged(&mut self, site: usize, job: u64, tasks: Option<TaskSet>) {
        let Some(j) = self.record.mirrors[site].jobs.get(&job) else { return };
        let tasks = tasks.unwrap_or_else(|| j.all()).intersect(&j.all());
        let open: TaskSet = tasks.iter().filter(|t| !j.cells[*t as usize].is_terminal()).collect();
        let durable = j.want.tasks(WantValue::Cancel, &j.all());
        let all = open.subtract(&durable).is_empty();
        self.must(all, "I1", format_args!("site {site} acknowledges a cancel of {open} of job {job}, durable is {durable}"));
        let known = self.cancelled.entry((site, job)).or_default();
        *known = known.union(&open);
    }

    /// All user jobs that were acknowledged: site and number.
    pub fn acknowledged(&self) -> Vec<(usize, u64)> {
        self.keys.iter().map(|((site, _), (job, ..))| (*site, *job)).collect()
    }

    /// What a user's key stands for.
    pub fn job_of(&self, site: usize, key: usize, spec: usize, tasks: u32) -> Option<u64> {
        self.keys.get(&(site, key)).filter(|(_, s, n)| (*s, *n) == (spec, tasks)).map(|(job, ..)| *job)
    }

    pub fn crashed(&mut self, site: usize) {
        self.above[site].clear();
        self.offers[site].clear();
        let me = self.record.ids[site];
        self.registers.retain(|(s, ..), _| *s != me);
    }

    /// A site has an old copy of its store, or an empty one: what it promised since is forgotten, and nothing else. True of its users' jobs and
    /// cancels; what others have made durable stays true of them.
    pub fn store_replaced(&mut self, site: usize, copy: Option<Mirror>) {
        self.record.replaced.insert(site, (self.now_ms, self.record.issued.all.len()));
        let mirror = copy.unwrap_or_default();
        self.keys.retain(|(s, _), _| *s != site);
        for (no, j) in mirror.jobs.iter().filter(|(_, j)| j.parent.is_none()) {
            let key = j.key.strip_prefix("key ").and_then(|k| k.parse().ok());
            if let (Some(key), Some(spec)) = (key, self.spec_hashes.iter().position(|h| *h == j.hash)) {
                self.keys.insert((site, key), (*no, spec, j.size()));
            }
        }
        for ((_, job), tasks) in self.cancelled.iter_mut().filter(|((s, _), _)| *s == site) {
            *tasks = mirror.jobs.get(job).map(|j| j.want.tasks(WantValue::Cancel, tasks)).unwrap_or_default();
        }
        let me = self.record.ids[site];
        self.registers.retain(|(_, parent, _), _| *parent != me);
        self.record.mirrors[site] = mirror;
        let known = |i: &Issued| self.record.mirrors[i.site].id(i.number).is_some_and(|id| self.record.issued.all[id].child == i.child);
        let forgotten = |i: &Issued| !known(i) && self.record.seen_by(i.child, i.site) < i.number;
        let gone: Vec<usize> = self.record.issued.all.iter().enumerate().filter(|(_, i)| forgotten(i)).map(|(id, _)| id).collect();
        self.gone.extend(gone);
    }
}

/// What a record says, if it can be read.
fn decoded(bytes: &[u8]) -> Option<What> {
    Change::decode(bytes).ok()?.what
}
