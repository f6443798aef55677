//! The gateway has a new store: what this machine holds of the older one is listed to it, and goes on under the names that it gives.
//!
//! Invariant: what runs, runs on; what was not started is not started before the gateway adopts it; an end is remembered until it is adopted, or longer than
//! is likely to matter (see `past`). Nobody is told of orphans' ends, and their outputs wait.

use std::collections::BTreeMap;

use intergrid_proto::convert::tasks_out;
use intergrid_proto::link::{Attempts, Ended, Event, EventKind, Former, Orphan, Orphans, Place};
use intergrid_proto::{Phase, Reason, ReasonKind, TaskSet};

use super::{Action, Core, Key, Stage, Stop};
use crate::limits::ORPHANS_PER_MESSAGE_MAX;
use crate::past::Name;
use crate::spool::record::{Adopted, Counters, What};

/// What the gateway calls some tasks of a placement, or called them before it lost its store.
pub(super) struct Named {
    pub number: u64,
    pub job: u64,
    pub incarnation: u64,
    pub tasks: TaskSet,
    /// It does not know them by this name any more.
    pub is_orphan: bool,
}

impl Core {
    /// The names of these tasks of a placement.
    pub(super) fn names(&self, number: u64, tasks: &TaskSet) -> Vec<Named> {
        let peer = self.state.counters.peer;
        let Some(p) = self.state.placements.get(&number) else { return Vec::new() };
        let named = |number, job, incarnation, tasks| Named { number, job, incarnation, tasks, is_orphan: incarnation != peer };
        let (mut out, mut rest) = (Vec::new(), tasks.clone());
        for (later, l) in self.state.past.labels.iter().filter(|(_, l)| l.placed == number) {
            out.push(named(*later, l.job, l.incarnation, rest.intersect(&l.tasks)));
            rest = rest.subtract(&l.tasks);
        }
        out.push(named(number, p.job, p.name.incarnation, rest));
        out.retain(|n| !n.tasks.is_empty());
        out
    }

    /// Open tasks that the gateway calls by this job, by placement.
    pub(super) fn named(&self, job: u64) -> Vec<(u64, TaskSet)> {
        let names = |(number, p): (&u64, &crate::state::Placement)| {
            let ours = self.names(*number, &p.open).into_iter().filter(|n| n.job == job && !n.is_orphan);
            (*number, ours.fold(TaskSet::new(), |all, n| all.union(&n.tasks)))
        };
        self.state.placements.iter().map(names).filter(|(_, t)| !t.is_empty()).collect()
    }

    /// The gateway's name of attempts, turned into that under which they came.
    pub(super) fn as_placed(&self, a: Attempts) -> Attempts {
        match self.state.past.labels.get(&a.number) {
            Some(l) => Attempts { number: l.placed, job: a.job, tasks: a.tasks.intersect(&l.tasks) },
            None => a,
        }
    }

    /// The gateway knows nothing here by its name any more.
    pub(super) fn orphan_all(&mut self, peer: u64) {
        self.flush_ends();
        let c = self.state.counters;
        self.record(What::Counters(Counters { peer, acked: c.sequence, ..c }));
        self.link.hints.clear();
        self.orphans = true;
        self.freeze_orphans();
        self.link.advert_dirty = true;
    }

    /// Slots that orphans take in all, and those of them that run: of neither the gateway knows, and only those that run are in its way.
    pub(super) fn orphaned(&self) -> (u64, u64) {
        let (mut all, mut run) = (0, 0);
        for (number, p) in self.state.placements.iter().filter(|_| self.orphans) {
            let cost = self.opens.get(number).map_or(0, |o| o.cost);
            for n in self.names(*number, &p.open).into_iter().filter(|n| n.is_orphan) {
                let runs = |t: &u32| self.lives.get(&(*number, *t)).is_some_and(|l| matches!(l.stage, Stage::Starting | Stage::Running(_)));
                all += cost * n.tasks.len();
                run += cost * n.tasks.iter().filter(runs).count() as u64;
            }
        }
        (all, run)
    }

    /// What of them was not started, is not started.
    pub(super) fn freeze_orphans(&mut self) {
        let orphans = |(number, p): (&u64, &crate::state::Placement)| {
            let names = self.names(*number, &p.open).into_iter().filter(|n| n.is_orphan);
            (*number, names.fold(TaskSet::new(), |all, n| all.union(&n.tasks)))
        };
        let orphans: Vec<(u64, TaskSet)> = self.state.placements.iter().map(orphans).filter(|(_, t)| !t.is_empty()).collect();
        for (number, tasks) in orphans {
            self.withdraw(number, &tasks, Stop::Hold);
            let frozen = self.take_unstarted(number, &tasks, true);
            if let Some(open) = self.opens.get_mut(&number) {
                open.held = open.held.union(&frozen);
            }
            self.queue(number);
        }
    }

    /// Say what is here of older incarnations; of what is over only where that is `asked` for.
    pub(super) fn list_orphans(&mut self, asked: bool) {
        let peer = self.state.counters.peer;
        let mut orphans = Vec::new();
        let mut tell = |name: &Name, former, tasks, phase, attempts| {
            let (origin, spec_hash, array_size) = (name.origin.clone(), name.spec, name.array_size);
            let (share, cost) = (self.share_key().into(), name.cost.max(1));
            orphans.push(Orphan { former, origin, spec_hash, array_size, tasks, phase, share, cost, attempts });
        };
        for (number, p) in &self.state.placements {
            for n in self.names(*number, &p.open).into_iter().filter(|n| n.is_orphan) {
                let mut phases: BTreeMap<Phase, TaskSet> = BTreeMap::new();
                for t in n.tasks.iter() {
                    phases.entry(self.phase_of((*number, t))).or_default().insert(t..t + 1);
                }
                let former = Former { incarnation: n.incarnation, number: n.number, job: n.job };
                phases.into_iter().for_each(|(phase, tasks)| tell(&p.name, former, tasks, phase, p.attempts));
            }
        }
        for e in self.state.past.ends.iter().filter(|e| asked && e.name.incarnation != peer) {
            let former = Former { incarnation: e.name.incarnation, number: e.number, job: e.name.job };
            tell(&e.name, former, e.tasks.clone(), e.ended.phase, e.ended.attempts.saturating_sub(1));
        }
        if orphans.is_empty() && !asked {
            return;
        }
        let mut parts: Vec<Vec<Orphan>> = orphans.chunks(ORPHANS_PER_MESSAGE_MAX).map(<[_]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let (n, complete_from) = (parts.len(), self.state.past.complete_from);
        let part = |(k, orphans)| Orphans { orphans, last: k + 1 == n, complete_from };
        self.link.orphans = parts.into_iter().enumerate().map(part).collect();
    }

    fn phase_of(&self, key: Key) -> Phase {
        match self.lives.get(&key).map(|l| l.stage) {
            Some(Stage::Running(_)) => Phase::Running,
            Some(Stage::Uploading) => Phase::StagingOut,
            Some(Stage::Claiming | Stage::Ready | Stage::Starting) | None => Phase::Placed,
        }
    }

    /// The gateway knows these tasks again: they go on under its new name. What is not known here, comes back.
    pub(super) fn adopt(&mut self, place: Place, former: Former) {
        self.flush_ends();
        self.carried(&place);
        let Place { number, job, tasks, spec_hash, .. } = place;
        let placed = self.state.past.placed(former.number);
        let ours = |n: &super::adopt::Named| (n.number, n.incarnation) == (former.number, former.incarnation);
        let good = self.state.placements.get(&placed).filter(|p| p.spec == spec_hash);
        let names = good.map(|p| self.names(placed, &tasks.intersect(&p.open))).unwrap_or_default();
        let alive = names.into_iter().find(ours).map(|n| n.tasks).unwrap_or_default();
        let mut over: Vec<(TaskSet, Ended)> = Vec::new();
        let mut known = alive.clone();
        for e in self.state.past.ends.iter().filter(|e| e.number == former.number && e.name.spec == spec_hash) {
            let t = e.tasks.intersect(&tasks).subtract(&known);
            if e.name.incarnation == former.incarnation && !t.is_empty() {
                known = known.union(&t);
                over.push((t.clone(), e.ended.select(&e.tasks, &t)));
            }
        }
        let incarnation = self.state.counters.peer;
        self.record(What::Adopted(Adopted { number, job, placed, tasks: Some(tasks_out(&alive)), incarnation }));
        if !known.is_empty() {
            self.event(Event { of: Attempts { number, job, tasks: known.clone() }, what: EventKind::Accepted });
        }
        for (tasks, ended) in over {
            self.event(Event { of: Attempts { number, job, tasks }, what: EventKind::Ended(ended) });
        }
        let unknown = tasks.subtract(&known);
        if !unknown.is_empty() {
            let reason = Reason::new(ReasonKind::EvidenceLost, "it is not known here any more");
            self.event(Event { of: Attempts { number, job, tasks: unknown }, what: EventKind::Returned(reason) });
        }
        if let Some(open) = self.opens.get_mut(&placed) {
            let thawed = open.held.intersect(&alive);
            open.waiting = open.waiting.union(&thawed);
            open.held = open.held.subtract(&thawed);
        }
        self.want(place.want);
        self.obey(job);
        self.queue(placed);
        for task in alive.iter() {
            if let Some(live) = self.lives.get_mut(&(placed, task)) {
                live.hinted = false;
                if live.stage == Stage::Uploading {
                    let claim = self.state.placements.get(&placed).and_then(|p| p.claims.get(&task));
                    let files = claim.and_then(|c| c.exited.as_ref()).map(|e| e.files.clone()).unwrap_or_default();
                    self.upload((placed, task), files);
                }
            }
        }
        self.link.advert_dirty = true;
    }

    /// Send a task's outputs, under the name by which the gateway knows it.
    pub(super) fn upload(&mut self, key: Key, files: Vec<String>) {
        if let Some(n) = self.names(key.0, &TaskSet::one(key.1)).into_iter().find(|n| !n.is_orphan) {
            self.actions.push(Action::Upload { key, number: n.number, job: n.job, files });
        }
    }
}
