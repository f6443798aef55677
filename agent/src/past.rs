//! What an agent remembers of names that its gateway may have lost: by what a placement is known again, its later numbers, and how tasks ended.
//!
//! Invariant: a placement keeps the number under which it came, as the name of its directories and processes; what the gateway calls it now is a label.
//! Numbers are never used twice on a link, so a label says which placement it is of. Not remembered for ever: ends up to a bound, the latest longest.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use intergrid_proto::convert::{ended_in, tasks_in, tasks_out};
use intergrid_proto::link::{Ended, Origin};
use intergrid_proto::{BlobHash, Refusal, SiteId, TaskSet, pb};

use crate::limits::{ENDS_KEPT_MAX, ENDS_TASKS_KEPT_MAX};
use crate::spool::record::{Adopted, Over, Placed, What};

/// By what a gateway with a new store knows a placement again.
#[derive(Clone, Debug, PartialEq)]
pub struct Name {
    /// Of the gateway, when it placed this.
    pub incarnation: u64,
    /// Its job then.
    pub job: u64,
    /// Who asked first.
    pub origin: Origin,
    /// Of the spec.
    pub spec: BlobHash,
    /// Tasks of the whole array.
    pub array_size: u32,
    /// Slots that each task counts for.
    pub cost: u64,
}

impl Name {
    /// As recorded; `peer`: the incarnation where the record says none.
    pub fn of(p: &Placed, peer: u64) -> Result<Name, Refusal> {
        Ok(Name {
            incarnation: if p.incarnation == 0 { peer } else { p.incarnation },
            job: p.job,
            origin: Origin {
                site: SiteId::from_slice(&p.origin_site).unwrap_or_default(),
                job: p.origin_job.clone(),
                principal: p.principal.clone(),
                submitted_ms: p.submitted_ms,
            },
            spec: BlobHash::from_slice(&p.spec_hash).ok_or_else(|| Refusal::invalid("a placement without the hash of its spec"))?,
            array_size: p.array_size,
            cost: p.cost,
        })
    }

    /// To be recorded.
    pub fn record(&self, number: u64, open: &TaskSet, attempts: u32) -> Placed {
        Placed {
            number,
            job: self.job,
            spec_hash: self.spec.0.to_vec(),
            open: Some(tasks_out(open)),
            attempts,
            origin_job: self.origin.job.clone(),
            array_size: self.array_size,
            origin_site: if self.origin.site == SiteId::default() { Vec::new() } else { self.origin.site.0.to_vec() },
            principal: self.origin.principal.clone(),
            submitted_ms: self.origin.submitted_ms,
            incarnation: self.incarnation,
            cost: self.cost,
        }
    }
}

/// What the gateway calls some tasks of a placement now.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// The number under which they were placed.
    pub placed: u64,
    /// The gateway's job now.
    pub job: u64,
    /// The gateway's incarnation.
    pub incarnation: u64,
    /// Which.
    pub tasks: TaskSet,
}

/// Tasks that have ended.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// The number under which they were known.
    pub number: u64,
    /// Of that number.
    pub name: Arc<Name>,
    /// Which.
    pub tasks: TaskSet,
    /// How; `age_ms` is the Unix time of the end.
    pub ended: Ended,
}

/// All that is remembered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Past {
    /// By the gateway's later number.
    pub labels: BTreeMap<u64, Label>,
    /// The oldest first.
    pub ends: VecDeque<End>,
    /// Placements below this number may be forgotten.
    pub complete_from: u64,
}

impl Past {
    /// The number under which a placement came that the gateway calls so.
    pub fn placed(&self, number: u64) -> u64 {
        self.labels.get(&number).map_or(number, |l| l.placed)
    }

    /// One more end.
    pub fn remember(&mut self, end: End) {
        self.ends.push_back(end);
        let mut tasks: u64 = self.ends.iter().map(|e| e.tasks.len()).sum();
        while self.ends.len() > ENDS_KEPT_MAX || tasks > ENDS_TASKS_KEPT_MAX {
            let Some(gone) = self.ends.pop_front() else { return };
            tasks -= gone.tasks.len();
            self.complete_from = self.complete_from.max(gone.number + 1);
        }
    }

    /// Some tasks have a new name; an older one is none any more.
    pub fn rename(&mut self, a: &Adopted) -> Result<(), Refusal> {
        let tasks = tasks_in(a.tasks.clone())?;
        for l in self.labels.values_mut().filter(|l| l.placed == a.placed) {
            l.tasks = l.tasks.subtract(&tasks);
        }
        self.labels.retain(|_, l| !l.tasks.is_empty());
        if !tasks.is_empty() {
            self.labels.insert(a.number, Label { placed: a.placed, job: a.job, incarnation: a.incarnation, tasks });
        }
        Ok(())
    }

    /// Of a snapshot.
    pub fn replay(&mut self, over: &Over, peer: u64) -> Result<(), Refusal> {
        let Some(of) = &over.of else {
            (self.ends, self.complete_from) = (VecDeque::new(), over.complete_from);
            return Ok(());
        };
        let tasks = tasks_in(over.tasks.clone())?;
        let ended = over.ended.clone().ok_or_else(|| Refusal::invalid("an end without how"))?;
        let ended = Ended { age_ms: ended.age_ms.clone(), ..ended_in(ended, tasks.len())? };
        self.ends.push_back(End { number: over.number, name: Arc::new(Name::of(of, peer)?), tasks, ended });
        Ok(())
    }

    /// Records that replay to it.
    pub fn snapshot(&self) -> Vec<What> {
        let mut out = Vec::new();
        for (number, l) in &self.labels {
            out.push(What::Adopted(Adopted {
                number: *number,
                job: l.job,
                placed: l.placed,
                tasks: Some(tasks_out(&l.tasks)),
                incarnation: l.incarnation,
            }));
        }
        if self.ends.is_empty() && self.complete_from == 0 {
            return out;
        }
        out.push(What::Over(Over { complete_from: self.complete_from, ..Over::default() }));
        for e in &self.ends {
            let of = Some(e.name.record(e.number, &TaskSet::new(), 0));
            let ended = Some(pb::Ended::from(e.ended.clone()));
            out.push(What::Over(Over { number: e.number, tasks: Some(tasks_out(&e.tasks)), ended, of, complete_from: 0 }));
        }
        out
    }
}
