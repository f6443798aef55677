//! What passes between the parts: what is told, what is promised, and what is done about it.

use std::collections::{BTreeMap, BTreeSet};

use intergrid_agent::core::Key;
use intergrid_gateway::core::change::{self, What};
use intergrid_gateway::core::orders::Order;
use intergrid_gateway::core::state::State;
use intergrid_gateway::core::{Action, Input, Output};
use intergrid_proto::link::{Down, Event, EventKind, Place, Up, WantValue};
use intergrid_proto::share::Machine;
use intergrid_proto::{ReasonKind, Shape, Share, SiteId, TaskSet};

use super::{Oracle, decoded};

/// So long after the last end of a task nothing is promised ahead of what is free.
const AHEAD_MS: u64 = 5_000;

/// What was told of each share: window, and what a machine has.
type Told = BTreeMap<String, (u64, Machine)>;

/// Between a site and a parent of it.
#[derive(Default)]
pub(super) struct Above {
    /// What the site last advertised.
    told: Told,
    /// The one before it, and the latest's version, until that was seen.
    before: Option<(Told, u64)>,
    /// Placements that fitted what was advertised when they came.
    fitting: BTreeSet<u64>,
    /// Open tasks that a full state has named so far, by placement.
    named: BTreeMap<u64, TaskSet>,
}

impl Above {
    /// The largest window of a share that this parent may go by.
    fn window(&self, key: &str) -> u64 {
        let all = [Some(&self.told), self.before.as_ref().map(|b| &b.0)];
        all.into_iter().flatten().filter_map(|t| t.get(key)).map(|t| t.0).max().unwrap_or(0)
    }
}

/// Of a share that a child offers.
pub(super) struct Offer {
    key: String,
    window: u64,
    machine_slots: u32,
}

impl Oracle {
    /// A site is about to take an input.
    pub fn stepping(&mut self, site: usize, state: &State, input: &Input) {
        if let Input::ParentSays { parent, message } = input {
            self.register(self.record.ids[site], *parent, message);
        }
        match input {
            // What it has placed until then.
            Input::Order { token, order: Order::Lost { .. } } => _ = self.placed_before.insert(*token as usize, state.next_number),
            Input::ParentSays { parent, message: Down::Place(p) } if self.fits(site, state, *parent, p) => {
                self.above[site].entry(*parent).or_default().fitting.insert(p.number);
            }
            Input::ParentUp { parent, .. } | Input::ParentGone { parent } => {
                let above = self.above[site].entry(*parent).or_default();
                (above.told, above.before) = Default::default();
            }
            Input::ParentSays { parent, message: Down::Saw(version) } => {
                let above = self.above[site].entry(*parent).or_default();
                above.before = above.before.take().filter(|(_, latest)| latest != version);
            }
            Input::ChildUp { child, .. } | Input::ChildGone { child, .. } => {
                self.offers[site].remove(child);
                let leaf = self.record.leaf_ids.iter().position(|id| id == child).filter(|_| matches!(input, Input::ChildUp { .. }));
                // Until it hears from the new one, a site places on the old.
                if let Some((_, number, known @ false)) = leaf.and_then(|l| self.record.emptied.get_mut(&l)) {
                    (*number, *known) = (state.next_number, true);
                }
            }
            Input::ChildSays { child, message: Up::Advert(a) } => {
                let offer = |s: &Share| Offer { key: s.key.clone(), window: s.window, machine_slots: s.machine_slots };
                self.offers[site].insert(*child, a.shares.iter().map(offer).collect());
            }
            Input::ChildSays { child, message: Up::Resync(r) } => {
                for r in r.ranges.iter().filter(|r| r.ended.is_some()) {
                    let Some(id) = self.record.issued.named(site, *child, r.of.number) else { continue };
                    let origin = &self.record.issued.all[id].origin;
                    self.resynced.extend(r.of.tasks.iter().map(|t| (origin.clone(), t)));
                }
            }
            _ => {}
        }
    }

    /// A site or leaf has been told what is wanted of a job.
    fn register(&mut self, me: SiteId, parent: SiteId, message: &Down) {
        let w = match message {
            Down::Want(w) => w,
            Down::Place(p) => &p.want,
            _ => return,
        };
        let known = self.registers.entry((me, parent, w.job)).or_default();
        if w.version >= known.version {
            *known = w.clone();
        }
    }

    /// Is this within what this parent was last told?
    fn fits(&self, site: usize, state: &State, parent: SiteId, p: &Place) -> bool {
        let Some((window, machine)) = self.above[site].get(&parent).and_then(|a| a.told.get(&p.share)) else { return false };
        let shape = self.specs.get(&p.spec_hash).map_or(Shape::default(), |s| s.shape.clone());
        held(state, parent, &p.share) + machine.cost(&shape).max(1) * p.tasks.len() <= *window
    }

    /// Parents have been promised more of a share: all promises of it that are not used are covered by what is free, and by slots that are about to
    /// be.
    fn must_have_room(&mut self, site: usize, state: &State, key: &str, machine_slots: u32) {
        if self.now_ms < self.ended[site].1 + AHEAD_MS {
            return;
        }
        // Machines of one kind are one share of their gateway; what sites below offer is passed on under its name.
        let passed_on = key.split('/').next() != Some(&*format!("s{site}"));
        let of =
            |child: &SiteId, o: &Offer| if passed_on { o.key == key } else { self.record.site(*child).is_none() && o.machine_slots == machine_slots };
        let offers = self.offers[site].iter().flat_map(|(child, all)| all.iter().map(move |o| (child, o)));
        let used = |child: &SiteId, key: &str| state.outstanding.get(&(*child, key.into())).copied().unwrap_or(0);
        let free: u64 = offers.filter(|(child, o)| of(child, o)).map(|(child, o)| o.window.saturating_sub(used(child, &o.key))).sum();
        let promised: u64 = self.above[site].iter().map(|(parent, a)| a.window(key).saturating_sub(held(state, *parent, key))).sum();
        let parents = self.above[site].len();
        let enough = promised <= free;
        self.must(enough, "I16", format_args!("site {site} promises {promised} slots of {key} to {parents} parents, and {free} are free"));
    }

    /// What a turn of a site is going to make durable and do.
    pub fn output(&mut self, site: usize, state: &State, output: &Output) {
        for (_, bytes) in &output.batch.changes {
            match decoded(bytes) {
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
                    let above = self.above[site].entry(*parent).or_default();
                    let told: Told = a.shares.iter().map(|s| (s.key.clone(), (s.window, s.machine()))).collect();
                    let more = |(key, (window, _)): &(&String, &(u64, Machine))| *window > above.window(key).max(held(state, *parent, key));
                    promised.extend(told.iter().filter(more).map(|(key, (_, machine))| (key.clone(), machine.slots)));
                    above.before = Some((std::mem::replace(&mut above.told, told), a.version));
                }
                Action::ToParent(parent, Up::Resync(r)) => {
                    let named = &mut self.above[site].entry(*parent).or_default().named;
                    for range in &r.ranges {
                        let tasks = named.entry(range.of.number).or_default();
                        *tasks = tasks.union(&range.of.tasks);
                    }
                    if r.last {
                        let named = std::mem::take(named);
                        self.must_name_all(site, *parent, state, output, &named);
                    }
                }
                _ => {}
            }
        }
        promised.into_iter().for_each(|(key, slots)| self.must_have_room(site, state, &key, slots));
        if !output.batch.is_empty() || !output.actions.is_empty() {
            self.above[site].values_mut().for_each(|a| a.fitting.clear());
        }
    }

    /// Nothing is placed that was cancelled before.
    fn may_place(&mut self, site: usize, state: &State, p: &change::Placed) {
        let (tasks, me) = (change::tasks(&p.tasks), self.record.ids[site]);
        let Some(j) = state.jobs.get(&p.job) else { return };
        let cancelled = match j.parent {
            None => self.cancelled.get(&(site, p.job)).map(|c| c.intersect(&tasks)),
            Some(parent) => self.registers.get(&(me, parent, j.parent_job)).map(|w| w.tasks(WantValue::Cancel, &tasks)),
        };
        let cancelled = cancelled.unwrap_or_default();
        self.must(cancelled.is_empty(), "I14", format_args!("site {site} places task {cancelled} of job {}, which was cancelled before", p.job));
    }

    /// What fitted the advertised window is not sent back for want of room.
    fn may_return(&mut self, site: usize, e: &change::Emit) {
        let Some(Event { of, what: EventKind::Returned(reason) }) = e.event.clone().and_then(|e| Event::try_from(e).ok()) else { return };
        let (parent, number) = (change::site(&e.parent), of.number);
        let fitted = self.above[site].get(&parent).is_some_and(|a| a.fitting.contains(&number));
        let rightly = !fitted || reason.kind != ReasonKind::OverCredit;
        let what = "for want of room, and it fitted the last advertisement";
        self.must(rightly, "I16", format_args!("site {site} returns placement {number} of {parent:?} {what}"));
    }

    /// A full state leaves nothing out that is open here for this parent.
    fn must_name_all(&mut self, site: usize, parent: SiteId, state: &State, output: &Output, named: &BTreeMap<u64, TaskSet>) {
        // What came in later in the same turn is told by its events.
        let fresh = output.batch.changes.iter().filter_map(|(_, bytes)| match decoded(bytes)? {
            What::Tasks(t) | What::Adopted(t) => Some((t.number, change::tasks(&t.tasks))),
            _ => None,
        });
        let fresh: Vec<(u64, TaskSet)> = fresh.collect();
        let incarnation = state.links.get(&parent).map_or(0, |l| l.peer_incarnation);
        for j in state.jobs.values().filter(|j| j.parent == Some(parent)) {
            for (ord, up) in j.ups.iter().filter(|(_, up)| up.incarnation == incarnation) {
                let open: TaskSet = j.select(&j.all(), |c| c.up == *ord && c.phase().is_some_and(|p| !p.is_terminal()));
                let fresh = fresh.iter().filter(|(number, _)| *number == up.number).map(|(_, tasks)| tasks);
                let missing = named.get(&up.number).into_iter().chain(fresh).fold(open, |m, tasks| m.subtract(tasks));
                let all = missing.is_empty();
                self.must(all, "I1", format_args!("site {site}: its full state leaves out tasks {missing} of placement {} of {parent:?}", up.number));
            }
        }
    }

    /// A site says something to a child: what it acknowledges is durable, and so is what it places.
    pub fn saying(&mut self, site: usize, child: SiteId, message: &Down) {
        let mirror = &self.record.mirrors[site];
        match message {
            Down::Ack { incarnation, sequence } => {
                let at = mirror.cursors.get(&child).copied().unwrap_or_default();
                let durable = (at.0 == *incarnation || *sequence == 0) && at.1 >= *sequence;
                self.must(durable, "I1", format_args!("site {site} acknowledges event {sequence} of {child:?}, and {at:?} is durable"));
            }
            Down::Place(p) => {
                let durable = mirror.id(p.number).map(|id| &self.record.issued.all[id]).is_some_and(|i| i.job == p.job && i.child == child);
                self.must(durable, "I1", format_args!("site {site} sends placement {} to {child:?}, which is not durable", p.number));
            }
            _ => {}
        }
    }

    /// A leaf has been told.
    pub fn heard(&mut self, leaf: usize, parent: usize, message: &Down) {
        self.register(self.record.leaf_ids[leaf], self.record.ids[parent], message);
    }

    /// A leaf decides to start a task.
    pub fn starting(&mut self, leaf: usize, key: Key) {
        let Some(id) = self.record.issued_to_leaf(leaf, key.0) else { return };
        let job = self.record.issued.all[self.record.issued.now_is(id, key.1)].job;
        let register = self.registers.get(&(self.record.leaf_ids[leaf], self.record.ids[self.record.gateway_of[leaf]], job));
        let cancelled = register.is_some_and(|w| !w.tasks(WantValue::Cancel, &TaskSet::one(key.1)).is_empty());
        self.must(!cancelled, "I14", format_args!("leaf {leaf} starts {key:?}, which it was told is cancelled"));
    }
}

/// Slots that a parent's tasks take.
fn held(state: &State, parent: SiteId, key: &str) -> u64 {
    state.held_for.get(&(parent, key.into())).copied().unwrap_or(0)
}
