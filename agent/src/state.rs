//! The durable state of an agent: what its spool says.
//!
//! Invariant: it changes by [`State::apply`] alone, so that replaying the records gives the same state, and [`State::snapshot`] gives records that replay
//! to it. What a process does right now is not in it: see `core`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use intergrid_proto::convert::{ended_in, tasks_in, tasks_out};
use intergrid_proto::link::{Attempts, Ended, Event, EventKind, Want};
use intergrid_proto::{BlobHash, Refusal, SiteId, TaskSet, pb};

use crate::limits::WANTS_KEPT_MAX;
use crate::past::{End, Name, Past};
use crate::spool::record::{Bound, Claimed, Counters, Placed, Record, Started, What};

/// The durable state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Whose spool this is: None: it never attached.
    pub gateway: Option<SiteId>,
    /// The gateway's name.
    pub gateway_name: String,
    /// Fingerprint of the machine.
    pub machine: Vec<u8>,
    /// Counters.
    pub counters: Counters,
    /// Bytes of the specs that placements need.
    pub specs: BTreeMap<BlobHash, Vec<u8>>,
    /// Placements with tasks that have not ended.
    pub placements: BTreeMap<u64, Placement>,
    /// Registers by job.
    pub wants: BTreeMap<u64, Want>,
    /// Events above `counters.acked`. `age_ms` of an end is the Unix time of that end.
    pub events: VecDeque<Event>,
    /// What is remembered of names that the gateway may have lost.
    pub past: Past,
}

/// A placement.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// The gateway's job.
    pub job: u64,
    /// Of its spec.
    pub spec: BlobHash,
    /// Not ended.
    pub open: TaskSet,
    /// Used before.
    pub attempts: u32,
    /// As its user knows it.
    pub origin_job: String,
    /// Tasks of the whole array.
    pub array_size: u32,
    /// Which of `open` are claimed.
    pub claims: BTreeMap<u32, Claim>,
    /// By what a gateway with a new store knows it again.
    pub name: Arc<Name>,
}

/// A start claim, and what is known of what followed.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Claim {
    /// The boot in which it was made.
    pub boot: Vec<u8>,
    /// Its process.
    pub started: Option<Started>,
    /// Its exit record.
    pub exited: Option<crate::spool::record::Exited>,
}

impl State {
    /// From the records of a spool. Error: a record that this version does not know, or that breaks a law.
    pub fn replay(records: impl IntoIterator<Item = Record>) -> Result<Self, Refusal> {
        let mut state = State::default();
        for r in records {
            let what = r.what.ok_or_else(|| Refusal::invalid("a record of a later version; use the version that wrote it"))?;
            state.apply(&what)?;
        }
        Ok(state)
    }

    /// One change.
    pub fn apply(&mut self, what: &What) -> Result<(), Refusal> {
        match what {
            What::Bound(b) => {
                self.gateway = SiteId::from_slice(&b.gateway);
                self.gateway_name = b.name.clone();
                self.machine = b.machine.clone();
            }
            What::Counters(c) => {
                if self.counters.peer != 0 && self.counters.peer != c.peer {
                    // Registers are of jobs as an older incarnation numbered them.
                    self.wants.clear();
                }
                self.counters = *c;
                self.events.clear();
            }
            What::Spec(bytes) => {
                self.specs.insert(BlobHash::of(bytes), bytes.clone());
            }
            What::Placed(p) => self.placed(p)?,
            What::Claimed(c) => {
                let tasks = tasks_in(c.tasks.clone())?;
                if let Some(p) = self.placements.get_mut(&c.number) {
                    let claim = Claim { boot: c.boot.clone(), ..Claim::default() };
                    p.claims.extend(tasks.intersect(&p.open).iter().map(|t| (t, claim.clone())));
                }
            }
            What::Unclaimed(c) => {
                let tasks = tasks_in(c.tasks.clone())?;
                if let Some(p) = self.placements.get_mut(&c.number) {
                    p.claims.retain(|t, _| !tasks.contains(*t));
                }
            }
            What::Started(s) => {
                if let Some(c) = self.claim(s.number, s.task) {
                    c.started = Some(*s);
                }
            }
            What::Exited(e) => {
                if let Some(c) = self.claim(e.number, e.task) {
                    c.exited = Some(e.clone());
                }
            }
            What::Event(e) => {
                let mut event = Event::try_from(e.clone())?;
                if let (EventKind::Ended(ended), Some(pb::event::What::Ended(said))) = (&mut event.what, &e.what) {
                    // Here it is the time of the end, beyond what a peer's age may be.
                    ended.age_ms.clone_from(&said.age_ms);
                }
                self.counters.sequence += 1;
                self.ended(&event);
                self.events.push_back(event);
            }
            What::Want(w) => {
                let want = Want::try_from(w.clone())?;
                self.wants.insert(want.job, want);
                self.forget_wants();
            }
            What::Acked(sequence) => {
                let forget = sequence.saturating_sub(self.counters.acked).min(self.events.len() as u64);
                self.events.drain(..forget as usize);
                self.counters.acked += forget;
            }
            What::Adopted(a) => {
                self.counters.highest = self.counters.highest.max(a.number);
                self.past.rename(a)?;
            }
            What::Over(o) => match (&o.of, &o.tasks, &o.ended) {
                (None, Some(tasks), Some(ended)) => {
                    let tasks = tasks_in(Some(tasks.clone()))?;
                    let ended = Ended { age_ms: ended.age_ms.clone(), ..ended_in(ended.clone(), tasks.len())? };
                    self.over(o.number, &tasks, Some(&ended));
                }
                _ => self.past.replay(o, self.counters.peer)?,
            },
        }
        Ok(())
    }

    fn placed(&mut self, p: &Placed) -> Result<(), Refusal> {
        let name = Arc::new(Name::of(p, self.counters.peer)?);
        let placement = Placement {
            job: p.job,
            spec: name.spec,
            open: tasks_in(p.open.clone())?,
            attempts: p.attempts,
            origin_job: p.origin_job.clone(),
            array_size: p.array_size,
            claims: BTreeMap::new(),
            name,
        };
        self.counters.highest = self.counters.highest.max(p.number);
        if !placement.open.is_empty() {
            self.placements.insert(p.number, placement);
        }
        Ok(())
    }

    fn claim(&mut self, number: u64, task: u32) -> Option<&mut Claim> {
        self.placements.get_mut(&number)?.claims.get_mut(&task)
    }

    /// An event that ends tasks takes them out; the last one takes the placement and its spec.
    fn ended(&mut self, event: &Event) {
        match &event.what {
            EventKind::Ended(e) => self.over(event.of.number, &event.of.tasks, Some(e)),
            EventKind::Returned(_) => self.over(event.of.number, &event.of.tasks, None),
            EventKind::Accepted | EventKind::Held(_) | EventKind::Released | EventKind::WantStored { .. } => {}
        }
    }

    /// Tasks of what the gateway calls (or called) so are no longer here.
    fn over(&mut self, number: u64, tasks: &TaskSet, ended: Option<&Ended>) {
        let placed = self.past.placed(number);
        let Some(p) = self.placements.get_mut(&placed) else { return };
        let mut name = p.name.clone();
        if let Some(l) = self.past.labels.get_mut(&number) {
            name = Arc::new(Name { incarnation: l.incarnation, job: l.job, ..(*name).clone() });
            l.tasks = l.tasks.subtract(tasks);
            if l.tasks.is_empty() {
                self.past.labels.remove(&number);
            }
        }
        if let Some(ended) = ended {
            self.past.remember(End { number, name, tasks: tasks.clone(), ended: ended.clone() });
        }
        p.open = p.open.subtract(tasks);
        if !p.open.is_empty() {
            let open = &p.open;
            p.claims.retain(|t, _| open.contains(*t));
            return;
        }
        let spec = p.spec;
        self.placements.remove(&placed);
        if self.placements.values().all(|p| p.spec != spec) {
            self.specs.remove(&spec);
        }
    }

    /// Registers of jobs that have nothing here are kept up to a bound, the latest jobs longest: a placement carries its register with it anyway.
    fn forget_wants(&mut self) {
        if self.wants.len() <= WANTS_KEPT_MAX {
            return;
        }
        let idle = self.wants.keys().copied().find(|job| self.placements.values().all(|p| p.job != *job));
        if let Some(job) = idle {
            self.wants.remove(&job);
        }
    }

    /// Sequence of the first event that is kept; one above the highest issued where there is none.
    pub fn sequence_low(&self) -> u64 {
        self.counters.sequence + 1 - self.events.len() as u64
    }

    /// What the parent has been told to have ended or been given back, but may not know yet.
    pub fn told(&self) -> impl Iterator<Item = &Attempts> {
        self.events.iter().filter(|e| matches!(e.what, EventKind::Ended(_) | EventKind::Returned(_))).map(|e| &e.of)
    }

    /// Records that replay to this state.
    pub fn snapshot(&self) -> Vec<Record> {
        let mut out = Vec::new();
        let mut put = |what| out.push(Record { what: Some(what) });
        let gateway = self.gateway.map(|g| g.0.to_vec()).unwrap_or_default();
        put(What::Bound(Bound { gateway, machine: self.machine.clone(), name: self.gateway_name.clone() }));
        // Each event counts the sequence up by one again.
        put(What::Counters(Counters { sequence: self.counters.sequence - self.events.len() as u64, ..self.counters }));
        self.specs.values().for_each(|s| put(What::Spec(s.clone())));
        for (number, p) in &self.placements {
            let number = *number;
            put(What::Placed(p.name.record(number, &p.open, p.attempts)));
            let mut by_boot: BTreeMap<&[u8], TaskSet> = BTreeMap::new();
            p.claims.iter().for_each(|(t, c)| by_boot.entry(&c.boot).or_default().insert(*t..*t + 1));
            for (boot, tasks) in by_boot {
                put(What::Claimed(Claimed { number, tasks: Some(tasks_out(&tasks)), boot: boot.to_vec() }));
            }
            for c in p.claims.values() {
                c.started.into_iter().for_each(|s| put(What::Started(s)));
                c.exited.iter().for_each(|e| put(What::Exited(e.clone())));
            }
        }
        self.wants.values().for_each(|w| put(What::Want(pb::Want::from(w.clone()))));
        self.events.iter().for_each(|e| put(What::Event(pb::Event::from(e.clone()))));
        self.past.snapshot().into_iter().for_each(put);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use intergrid_proto::link::WantValue;
    use intergrid_proto::{Phase, Reason, ReasonKind};
    use proptest::prelude::*;

    fn some(what: What) -> Record {
        Record { what: Some(what) }
    }

    /// A few laws-abiding records from a seed.
    fn records() -> impl Strategy<Value = Vec<Record>> {
        proptest::collection::vec((0u8..8, 1u64..5, 0u32..6, 1u32..4), 0..40).prop_map(|list| {
            let mut number = 0;
            let mut out = vec![some(What::Counters(Counters { incarnation: 7, ..Counters::default() }))];
            for (kind, n, task, len) in list {
                // Nothing is said of a placement that has not come yet.
                let (kind, n) = if number == 0 { (0, n) } else { (kind, if kind == 0 { n } else { n.min(number) }) };
                let tasks = TaskSet::range(task..task + len);
                let wire = Some(tasks_out(&tasks));
                let of = Attempts { number: n, job: n, tasks: tasks.clone() };
                let event = |what| What::Event(pb::Event::from(Event { of: of.clone(), what }));
                let what = match kind {
                    0 => {
                        number += 1;
                        let spec = vec![number as u8; 3];
                        out.push(some(What::Spec(spec.clone())));
                        let spec_hash = BlobHash::of(&spec).0.to_vec();
                        What::Placed(Placed { number, job: n, spec_hash, open: wire, array_size: 10, ..Placed::default() })
                    }
                    1 => What::Claimed(Claimed { number: n, tasks: wire, boot: vec![1] }),
                    2 => What::Unclaimed(Claimed { number: n, tasks: wire, boot: vec![] }),
                    3 => What::Started(Started { number: n, task, pid: 5, ticks: 9, at_ms: 1 }),
                    4 => event(EventKind::Ended(Ended::not_started(Phase::Cancelled, Reason::new(ReasonKind::Fenced, "x"), 1))),
                    5 => event(EventKind::Accepted),
                    6 => {
                        let mut want = Want { job: n, version: u64::from(len), ranges: vec![] };
                        want.set(WantValue::Hold, &tasks);
                        What::Want(want.into())
                    }
                    _ => What::Acked(n),
                };
                out.push(some(what));
            }
            out
        })
    }

    proptest! {
        #[test]
        fn a_snapshot_replays_to_the_state(records in records()) {
            let state = State::replay(records).unwrap();
            prop_assert_eq!(State::replay(state.snapshot()).unwrap(), state);
        }
    }

    #[test]
    fn registers_are_bounded() {
        let mut s = State::default();
        for job in 1..WANTS_KEPT_MAX as u64 + 10 {
            s.apply(&What::Want(pb::Want { job, version: 1, ranges: vec![] })).unwrap();
        }
        assert_eq!((WANTS_KEPT_MAX, None), (s.wants.len(), s.wants.get(&1)));
    }
}
