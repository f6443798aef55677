//! What passes between the parts: what is told, what is promised, and what is done about it.

use std::collections::BTreeMap;

use intergrid_agent::core::Key;
use intergrid_gateway::core::change::{self, Change, What};
use intergrid_gateway::core::state::State;
use intergrid_gateway::core::{Action, Input, Output};
use intergrid_proto::link::{Down, Event, EventKind, Place, Up, Want, WantValue};
use intergrid_proto::share::Machine;
use intergrid_proto::{ReasonKind, Share, SiteId, TaskSet};
use prost::Message;

use super::{Offer, Oracle, Told};

/// So long after the last end of a task nothing is promised ahead of what is free.
const AHEAD_MS: u64 = 5_000;

impl Oracle {
    /// A site is about to take an input.
    pub fn stepping(&mut self, site: usize, state: &State, input: &Input) {
        let me = self.ids[site];
        self.ordering(state, input);
        match input {
            Input::ParentSays { parent, message: Down::Want(w) } => self.register(me, *parent, w),
            Input::ParentSays { parent, message: Down::Place(p) } => {
                self.register(me, *parent, &p.want);
                if self.fits(site, state, *parent, p) {
                    self.fitting.insert((site, *parent, p.number));
                }
            }
            Input::ParentUp { parent, .. } | Input::ParentGone { parent } => {
                self.adverts.remove(&(site, *parent));
                self.befores.remove(&(site, *parent));
            }
            Input::ParentSays { parent, message: Down::Saw(version) } if self.befores.get(&(site, *parent)).is_some_and(|b| b.1 == *version) => {
                self.befores.remove(&(site, *parent));
            }
            Input::ChildUp { child, .. } | Input::ChildGone { child, .. } => {
                self.offers.remove(&(site, *child));
                let leaf = self.leaf_ids.iter().position(|id| id == child).filter(|_| matches!(input, Input::ChildUp { .. }));
                // Until it hears from the new one, a site places on the old.
                if let Some((_, number, known @ false)) = leaf.and_then(|l| self.emptied.get_mut(&l)) {
                    (*number, *known) = (state.next_number, true);
                }
            }
            Input::ChildSays { child, message: Up::Advert(a) } => {
                let offer = |s: &Share| Offer { key: s.key.clone(), window: s.window, machine_slots: s.machine_slots };
                self.offers.insert((site, *child), a.shares.iter().map(offer).collect());
            }
            Input::ChildSays { child, message: Up::Resync(r) } => {
                for r in r.ranges.iter().filter(|r| r.ended.is_some()) {
                    let Some(id) = self.issued_to(site, *child, r.of.number) else { continue };
                    let (origin, job) = self.issued[id].origin.clone();
                    self.resynced.extend(r.of.tasks.iter().map(|t| (origin, job.clone(), t)));
                }
            }
            _ => {}
        }
    }

    fn register(&mut self, me: SiteId, parent: SiteId, w: &Want) {
        let known = self.registers.entry((me, parent, w.job)).or_default();
        if w.version >= known.version {
            *known = w.clone();
        }
    }

    /// Is this within what this parent was last told?
    fn fits(&self, site: usize, state: &State, parent: SiteId, p: &Place) -> bool {
        let told = self.adverts.get(&(site, parent)).and_then(|t| t.get(&p.share));
        let Some((window, machine)) = told else { return false };
        held(state, parent, &p.share) + machine.cost(&self.shape(p.spec_hash)).max(1) * p.tasks.len() <= *window
    }

    /// The largest window of a share that this parent may go by.
    fn told(&self, site: usize, parent: SiteId, key: &str) -> u64 {
        let all = self.adverts.get(&(site, parent)).into_iter().chain(self.befores.get(&(site, parent)).map(|b| &b.0));
        all.filter_map(|t| t.get(key)).map(|t| t.0).max().unwrap_or(0)
    }

    /// Parents have been promised more of a share: all promises of it that are not used are covered by what is free, and by slots that are about to be.
    fn must_have_room(&mut self, site: usize, state: &State, key: &str, machine_slots: u32) {
        if self.now_ms < self.ended[site].1 + AHEAD_MS {
            return;
        }
        // Machines of one kind are one share of their gateway; what sites below offer is passed on under its name.
        let passed_on = key.split('/').next() != Some(&*format!("s{site}"));
        let of = |child: &SiteId, o: &Offer| if passed_on { o.key == key } else { self.site(*child).is_none() && o.machine_slots == machine_slots };
        let offers = self.offers.iter().filter(|((s, _), _)| *s == site).flat_map(|((_, child), all)| all.iter().map(move |o| (child, o)));
        let used = |child: &SiteId, key: &str| state.outstanding.get(&(*child, key.into())).copied().unwrap_or(0);
        let free: u64 = offers.filter(|(child, o)| of(child, o)).map(|(child, o)| o.window.saturating_sub(used(child, &o.key))).sum();
        let parents: Vec<SiteId> = self.adverts.keys().filter(|(s, _)| *s == site).map(|(_, p)| *p).collect();
        let promised: u64 = parents.iter().map(|p| self.told(site, *p, key).saturating_sub(held(state, *p, key))).sum();
        if promised > free {
            self.fail("I16", format!("site {site} promises {promised} slots of {key} to {} parents, and {free} are free", parents.len()));
        }
    }

    /// What a turn of a site is going to make durable and do.
    pub fn output(&mut self, site: usize, state: &State, output: &Output) {
        for (_, bytes) in &output.batch.changes {
            match Change::decode(&bytes[..]).ok().and_then(|c| c.what) {
                // What its child has already is not started by that.
                Some(What::Placed(p)) if p.adopt.is_none() => self.may_place(site, state, &p),
                Some(What::Emit(e)) => self.may_return(site, &e),
                _ => {}
            }
        }
        if self.ended[site].0 != state.ended {
            self.ended[site] = (state.ended, self.now_ms);
        }
        let mut promised: BTreeMap<String, u32> = BTreeMap::new();
        for action in &output.actions {
            match action {
                Action::ToParent(parent, Up::Advert(a)) => {
                    let told: Told = a.shares.iter().map(|s| (s.key.clone(), (s.window, s.machine()))).collect();
                    let more =
                        |(key, (window, _)): (&String, &(u64, Machine))| *window > self.told(site, *parent, key).max(held(state, *parent, key));
                    promised.extend(told.iter().filter(|t| more(*t)).map(|(key, (_, machine))| (key.clone(), machine.slots)));
                    if let Some(last) = self.adverts.insert((site, *parent), told) {
                        self.befores.insert((site, *parent), (last, a.version));
                    }
                }
                Action::ToParent(parent, Up::Resync(r)) => {
                    let named = self.resyncs.entry((site, *parent)).or_default();
                    for range in &r.ranges {
                        let tasks = named.entry(range.of.number).or_default();
                        *tasks = tasks.union(&range.of.tasks);
                    }
                    if r.last {
                        self.must_name_all(site, *parent, state, output);
                    }
                }
                _ => {}
            }
        }
        promised.into_iter().for_each(|(key, slots)| self.must_have_room(site, state, &key, slots));
        if !output.batch.is_empty() || !output.actions.is_empty() {
            self.fitting.retain(|(s, ..)| *s != site);
        }
    }

    /// Nothing is placed that was cancelled before.
    fn may_place(&mut self, site: usize, state: &State, p: &change::Placed) {
        let (tasks, me) = (change::tasks(&p.tasks), self.ids[site]);
        let Some(j) = state.jobs.get(&p.job) else { return };
        let cancelled = match j.parent {
            None => self.cancelled.get(&(site, p.job)).map(|c| c.intersect(&tasks)),
            Some(parent) => self.registers.get(&(me, parent, j.parent_job)).map(|w| w.tasks(WantValue::Cancel, &tasks)),
        };
        if let Some(cancelled) = cancelled.filter(|c| !c.is_empty()) {
            self.fail("I14", format!("site {site} places task {cancelled} of job {}, which was cancelled before", p.job));
        }
    }

    /// What fitted the advertised window is not sent back for want of room.
    fn may_return(&mut self, site: usize, e: &change::Emit) {
        let Some(Event { of, what: EventKind::Returned(reason) }) = e.event.clone().and_then(|e| Event::try_from(e).ok()) else { return };
        let parent = change::site(&e.parent);
        let full = reason.kind == ReasonKind::OverCredit;
        if full && self.fitting.contains(&(site, parent, of.number)) {
            self.fail(
                "I16",
                format!("site {site} returns placement {} of {parent:?} for want of room, and it fitted the last advertisement", of.number),
            );
        }
    }

    /// A full state leaves nothing out that is open here for this parent.
    fn must_name_all(&mut self, site: usize, parent: SiteId, state: &State, output: &Output) {
        // What came in later in the same turn is told by its events.
        let fresh = |bytes: &[u8]| match Change::decode(bytes).ok().and_then(|c| c.what) {
            Some(What::Tasks(t) | What::Adopted(t)) => Some((t.number, change::tasks(&t.tasks))),
            _ => None,
        };
        let fresh: Vec<(u64, TaskSet)> = output.batch.changes.iter().filter_map(|(_, bytes)| fresh(bytes)).collect();
        let named = self.resyncs.remove(&(site, parent)).unwrap_or_default();
        let incarnation = state.links.get(&parent).map_or(0, |l| l.peer_incarnation);
        for j in state.jobs.values().filter(|j| j.parent == Some(parent)) {
            for (ord, up) in j.ups.iter().filter(|(_, up)| up.incarnation == incarnation) {
                let open: TaskSet = j.select(&j.all(), |c| c.up == *ord && c.phase().is_some_and(|p| !p.is_terminal()));
                let missing = named.get(&up.number).map_or(open.clone(), |n| open.subtract(n));
                let missing = fresh.iter().filter(|(number, _)| *number == up.number).fold(missing, |m, (_, tasks)| m.subtract(tasks));
                if !missing.is_empty() {
                    self.fail("I1", format!("site {site}: its full state leaves out tasks {missing} of placement {} of {parent:?}", up.number));
                }
            }
        }
    }

    /// A site says something to a child: what it acknowledges is durable, and so is what it places.
    pub fn saying(&mut self, site: usize, child: SiteId, message: &Down) {
        let mirror = &self.mirrors[site];
        match message {
            Down::Ack { incarnation, sequence } => {
                let at = mirror.cursors.get(&child).copied().unwrap_or_default();
                if at.0 != *incarnation && *sequence > 0 || at.1 < *sequence {
                    self.fail("I1", format!("site {site} acknowledges event {sequence} of {child:?}, and {at:?} is durable"));
                }
            }
            Down::Place(p) if mirror.placed.get(&p.number).map(|d| &self.issued[d.id]).is_none_or(|d| d.job != p.job || d.child != child) => {
                self.fail("I1", format!("site {site} sends placement {} to {child:?}, which is not durable", p.number));
            }
            _ => {}
        }
    }

    /// A leaf has been told.
    pub fn heard(&mut self, leaf: usize, parent: usize, message: &Down) {
        let (me, parent) = (self.leaf_ids[leaf], self.ids[parent]);
        match message {
            Down::Want(w) => self.register(me, parent, w),
            Down::Place(p) => self.register(me, parent, &p.want),
            _ => {}
        }
    }

    /// A leaf decides to start a task.
    pub fn starting(&mut self, leaf: usize, key: Key) {
        let gateway = self.gateway_of[leaf];
        let Some(id) = self.issued_to(gateway, self.leaf_ids[leaf], key.0) else { return };
        let job = self.issued[self.now_is(id, key.1)].job;
        let register = self.registers.get(&(self.leaf_ids[leaf], self.ids[gateway], job));
        if register.is_some_and(|w| !w.tasks(WantValue::Cancel, &TaskSet::one(key.1)).is_empty()) {
            self.fail("I14", format!("leaf {leaf} starts {key:?}, which it was told is cancelled"));
        }
    }
}

/// Slots that a parent's tasks take.
fn held(state: &State, parent: SiteId, key: &str) -> u64 {
    state.held_for.get(&(parent, key.into())).copied().unwrap_or(0)
}
