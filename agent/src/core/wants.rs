//! What is wished: registers, stale attempts, and new placements, in whatever order they come.

use intergrid_proto::convert::tasks_out;
use intergrid_proto::link::{Attempts, Event, EventKind, Known, Place, Want, WantValue};
use intergrid_proto::share::{Fit, human_bytes};
use intergrid_proto::{BlobHash, Phase, Reason, ReasonKind, RefusalKind, TaskSet, pb};

use super::{Action, Core, Stop};
use crate::past::Name;
use crate::plan::Plan;
use crate::spool::record::{Claimed, Placed, What};

impl Core {
    /// A register: kept where it is newer, also for a job that was never here.
    pub(super) fn want(&mut self, want: Want) {
        let known = self.state.wants.get(&want.job).map_or(0, |w| w.version);
        if want.version <= known {
            return;
        }
        let (job, version) = (want.job, want.version);
        self.record(What::Want(pb::Want::from(want)));
        self.obey(job);
        self.event(Event { of: Attempts { number: 0, job, tasks: TaskSet::new() }, what: EventKind::WantStored { version } });
    }

    /// Do what the register of this job says.
    pub(super) fn obey(&mut self, job: u64) {
        for (number, tasks) in self.named(job) {
            self.obey_placement(job, number, &tasks);
        }
        self.flush_ends();
    }

    fn obey_placement(&mut self, job: u64, number: u64, all: &TaskSet) {
        let Some(want) = self.state.wants.get(&job) else { return };
        let (cancel, back, hold) = (want.tasks(WantValue::Cancel, all), want.tasks(WantValue::Return, all), want.tasks(WantValue::Hold, all));

        let held = self.take_unstarted(number, &hold, true);
        self.withdraw(number, &hold, Stop::Hold);
        if let Some(open) = self.opens.get_mut(&number) {
            // Released ones wait again; held ones don't.
            let released = open.held.intersect(all).subtract(&hold);
            open.waiting = open.waiting.union(&released);
            open.held = open.held.subtract(&released).union(&held);
            self.link.advert_dirty |= !(released.is_empty() && held.is_empty());
        }
        let cancelled = self.take_unstarted(number, &cancel, false);
        self.end_unstarted(number, &cancelled, Phase::Cancelled, &Reason::new(ReasonKind::CancelledByUser, "cancelled before it started"));
        let running: Vec<u32> = self.lives.range((number, 0)..=(number, u32::MAX)).map(|((_, t), _)| *t).filter(|t| cancel.contains(*t)).collect();
        running.into_iter().for_each(|t| self.stop((number, t), Stop::Cancel));
        self.withdraw(number, &back, Stop::Return);
        let returned = self.take_unstarted(number, &back, false);
        if !returned.is_empty() {
            self.give_back(number, returned, Reason::new(ReasonKind::AskedBack, "given back before it started"));
        }
        self.queue(number);
    }

    /// Is there something to claim in this placement?
    pub(super) fn queue(&mut self, number: u64) {
        let waits = self.opens.get(&number).is_some_and(|o| !o.waiting.is_empty() && self.plans.get(&o.plan.hash).is_some_and(|s| s.here));
        if waits {
            self.runnable.insert(number)
        } else {
            self.runnable.remove(&number)
        };
    }

    /// Take those of these tasks that no process was started for out of all queues. Where they stay here, claims already made are taken back.
    pub(super) fn take_unstarted(&mut self, number: u64, tasks: &TaskSet, stay: bool) -> TaskSet {
        if tasks.is_empty() {
            return TaskSet::new();
        }
        let claimed = self.unclaim(number, tasks);
        let durable: TaskSet = match self.state.placements.get(&number) {
            Some(p) if stay => claimed.iter().filter(|t| p.claims.contains_key(t)).collect(),
            _ => TaskSet::new(),
        };
        if !durable.is_empty() {
            self.record(What::Unclaimed(Claimed { number, tasks: Some(tasks_out(&durable)), boot: Vec::new() }));
        }
        let Some(open) = self.opens.get_mut(&number) else { return claimed };
        let mut taken = open.waiting.intersect(tasks).union(&claimed);
        open.waiting = open.waiting.subtract(tasks);
        if !stay {
            taken = taken.union(&open.held.intersect(tasks));
            open.held = open.held.subtract(tasks);
        }
        taken
    }

    /// Attempts that no longer count: stopped, and their end reported.
    pub(super) fn stale(&mut self, attempts: Vec<Attempts>) {
        for a in attempts {
            let a = self.as_placed(a);
            let taken = self.take_unstarted(a.number, &a.tasks, false);
            self.end_unstarted(
                a.number,
                &taken,
                Phase::Cancelled,
                &Reason::new(ReasonKind::Fenced, "the attempt no longer counts; it had not started"),
            );
            let running: Vec<u32> =
                self.lives.range((a.number, 0)..=(a.number, u32::MAX)).map(|((_, t), _)| *t).filter(|t| a.tasks.contains(*t)).collect();
            running.into_iter().for_each(|t| self.stop((a.number, t), Stop::Fenced));
            self.queue(a.number);
        }
        self.flush_ends();
    }

    /// A placement: taken on, or given back with the reason. A repeat changes nothing.
    pub(super) fn place(&mut self, place: Place) {
        if place.number <= self.state.counters.highest {
            self.carried(&place);
            return self.want(place.want);
        }
        if let Known::As(former) = place.known {
            return self.adopt(place, former);
        }
        let bytes = match self.spec_bytes(&place) {
            Ok(bytes) => bytes,
            Err(None) => return self.actions.push(Action::Reconnect("a spec that this end has dropped is needed again".into())),
            Err(Some(reason)) => return self.refuse(&place, reason),
        };
        let plan = match Plan::new(&bytes) {
            Ok(plan) => plan,
            Err(e) => {
                let kind = if e.kind == RefusalKind::MustUnderstand { ReasonKind::MustUnderstand } else { ReasonKind::InvalidSpec };
                return self.refuse(&place, Reason::new(kind, e.message).remedy(e.remedy));
            }
        };
        if let Some((why, _)) = &self.no_room {
            let reason = Reason::new(ReasonKind::Draining, why.clone());
            return self.refuse(&place, reason);
        }
        let share = self.share();
        if let Fit::No(why) = share.fit(&plan.spec.shape) {
            return self.refuse(&place, Reason::new(ReasonKind::NoFit, why));
        }
        if !self.state.specs.contains_key(&place.spec_hash) {
            self.record(What::Spec(bytes));
        }
        let Place { number, job, tasks, .. } = place;
        let cost = self.cost(&plan.spec.shape);
        let (incarnation, origin, spec, array_size) = (self.state.counters.peer, place.origin, place.spec_hash, place.array_size);
        let name = Name { incarnation, job, origin, spec, array_size, cost };
        self.record(What::Placed(name.record(number, &tasks, place.attempts)));
        // The plan is made from the same bytes again: that can't fail now.
        let _ = self.open(number);
        self.event(Event { of: Attempts { number, job, tasks: tasks.clone() }, what: EventKind::Accepted });
        let room = self.link.window_max(self.now, self.window());
        let outstanding = self.outstanding.saturating_sub(self.orphaned().0);
        if outstanding > room {
            let cost = self.opens.get(&number).map_or(1, |o| o.cost.max(1));
            let over = (outstanding - room).div_ceil(cost).min(tasks.len());
            let mut beyond = tasks;
            beyond.take_first(beyond.len() - over);
            let text = format!("{outstanding} slots are placed here, the window is {room}");
            self.take_unstarted(number, &beyond, false);
            self.give_back(number, beyond, Reason::new(ReasonKind::OverCredit, text));
        }
        self.want(place.want);
        self.obey(job);
        self.link.advert_dirty = true;
    }

    /// What follows on this connection comes without this placement's spec, whatever becomes of it itself.
    pub(super) fn carried(&mut self, place: &Place) {
        if !place.spec.is_empty() && BlobHash::of(&place.spec) == place.spec_hash {
            self.link.specs.put(place.spec_hash, &place.spec);
        }
    }

    /// The bytes of a placement's spec. Err(None): had and dropped, a new connection brings them again.
    #[allow(clippy::result_large_err)] // Not an error path: the reason is the product.
    fn spec_bytes(&mut self, place: &Place) -> Result<Vec<u8>, Option<Reason>> {
        if place.spec.is_empty() {
            let kept = self.state.specs.get(&place.spec_hash).or_else(|| self.link.specs.get(&place.spec_hash));
            return kept.cloned().ok_or_else(|| {
                let reason = Reason::new(ReasonKind::InvalidSpec, "the placement came without its spec, which this connection has not carried");
                (!self.link.specs.has_dropped()).then_some(reason)
            });
        }
        if BlobHash::of(&place.spec) != place.spec_hash {
            return Err(Some(Reason::new(ReasonKind::InvalidSpec, "the spec's bytes are not what their hash says")));
        }
        self.link.specs.put(place.spec_hash, &place.spec);
        Ok(place.spec.clone())
    }

    /// Not taken on at all. Its number is remembered, so that a repeat is known as one.
    fn refuse(&mut self, place: &Place, reason: Reason) {
        let (number, job, tasks) = (place.number, place.job, place.tasks.clone());
        // A placement without open tasks only raises the highest number.
        let none = Some(pb::Tasks { runs: Vec::new() });
        let spec_hash = place.spec_hash.0.to_vec();
        self.record(What::Placed(Placed { number, job, spec_hash, open: none, ..Placed::default() }));
        self.event(Event { of: Attempts { number, job, tasks }, what: EventKind::Returned(reason) });
        self.want(place.want.clone());
    }

    /// In words, for logs.
    pub fn describe(&self) -> String {
        let c = &self.capacity;
        let gpus = if c.gpus > 0 { format!(", {} GPUs", c.gpus) } else { String::new() };
        format!("{} slots, {} of memory{gpus}, {}", c.slots, human_bytes(c.memory_bytes), c.architecture)
    }
}
