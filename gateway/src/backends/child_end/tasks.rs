//! What happens to tasks: placed, wished for, fenced, started, ended.

use std::collections::BTreeMap;

use intergrid_proto::link::{Attempts, Ended, EventKind, Known, Place, Want, WantValue, fold_equal};
use intergrid_proto::share::Fit;
use intergrid_proto::{BlobHash, Exit, JobSpec, Phase, Reason, ReasonKind, TaskSet};

use super::payload::{act, failure};
use super::{ChildEnd, Name, Placed, Run};

impl ChildEnd {
    pub(super) fn want(&mut self, want: Want, say: bool) {
        let (job, version) = (want.job, want.version);
        let entry = self.jobs.entry(job).or_default();
        if version <= entry.want.version {
            return;
        }
        entry.want = want;
        if say {
            self.emit(0, job, TaskSet::new(), EventKind::WantStored { version });
        }
        let numbers: Vec<u64> = self.placed.iter().filter(|(_, p)| p.job == job && p.name.incarnation == self.parent.0).map(|(n, _)| *n).collect();
        numbers.into_iter().for_each(|n| self.obey(n));
    }

    /// Make one placement's tasks what the register wishes.
    pub(super) fn obey(&mut self, number: u64) {
        let Some(p) = self.placed.get_mut(&number) else { return };
        let (job, attempts) = (p.job, p.attempts);
        let Some(want) = self.jobs.get(&job).map(|j| &j.want) else { return };
        let cancelled = want.tasks(WantValue::Cancel, &p.waiting);
        let back = want.tasks(WantValue::Return, &p.waiting);
        p.waiting = p.waiting.subtract(&cancelled).subtract(&back);
        let hold = want.tasks(WantValue::Hold, &p.waiting);
        let (held, released) = (hold.subtract(&p.held), p.held.intersect(&p.waiting).subtract(&hold));
        p.held = hold;
        let running: TaskSet = p.running.keys().copied().collect();
        let stop = want.tasks(WantValue::Cancel, &running);
        let reason = || Reason::new(ReasonKind::CancelledByUser, "cancelled");
        let mut never = Ended::not_started(Phase::Cancelled, reason(), attempts);
        never.route = vec![self.hop.clone()];
        self.emit(number, job, cancelled, EventKind::Ended(never));
        self.emit(number, job, back, EventKind::Returned(Reason::new(ReasonKind::AskedBack, "asked back before a start")));
        self.emit(number, job, held, EventKind::Held(Reason::new(ReasonKind::HeldByUser, "on hold")));
        self.emit(number, job, released, EventKind::Released);
        self.stop_where(|n, t| n == number && stop.contains(t), Exit::Signal(15), Some((Phase::Cancelled, reason())), false);
    }

    pub(super) fn fence(&mut self, a: &Attempts) {
        let Some(p) = self.placed.get_mut(&a.number) else { return };
        let job = p.job;
        let back = p.waiting.intersect(&a.tasks);
        p.waiting = p.waiting.subtract(&back);
        p.held = p.held.subtract(&back);
        self.emit(a.number, job, back, EventKind::Returned(Reason::new(ReasonKind::Fenced, "fenced before a start")));
        let reason = Reason::new(ReasonKind::Fenced, "fenced");
        self.stop_where(|n, t| n == a.number && a.tasks.contains(t), Exit::Signal(15), Some((Phase::Cancelled, reason)), false);
    }

    pub(super) fn place(&mut self, place: Place) {
        if place.number <= self.parent.1 {
            return;
        }
        self.parent.1 = place.number;
        if let Known::As(former) = place.known {
            return self.adopt(place, former);
        }
        let name = Name { incarnation: self.parent.0, origin: place.origin.clone(), spec_hash: place.spec_hash, array_size: place.array_size };
        let Place { number, job, tasks, attempts, .. } = place;
        let entry = self.jobs.entry(job).or_default();
        if BlobHash::of(&place.spec) == place.spec_hash {
            self.specs.extend(JobSpec::decode(&place.spec).ok().map(|s| (place.spec_hash, s)));
        }
        let spec = self.specs.get(&place.spec_hash).cloned();
        entry.spec = entry.spec.take().or_else(|| spec.clone());
        self.want(Want { job, ..place.want }, false);
        let returned = |kind, text: String| EventKind::Returned(Reason::new(kind, text));
        let Some(spec) = spec else {
            let what = returned(ReasonKind::InvalidSpec, "the job's spec did not come, or is not what its hash says".into());
            return self.emit(number, job, tasks, what);
        };
        if place.route.contains(&self.hop.site) {
            return self.emit(number, job, tasks, returned(ReasonKind::Loop, "it has passed here already".into()));
        }
        let share = self.share();
        if let Fit::No(why) = share.fit(&spec.shape) {
            return self.emit(number, job, tasks, returned(ReasonKind::NoFit, why));
        }
        let cost = share.cost(&spec.shape);
        let outstanding: u64 = self.placed.values().map(|p| p.cost * p.alive()).sum();
        let mut beyond = tasks;
        let taken = beyond.take_first(share.window.saturating_sub(outstanding) / cost);
        if !taken.is_empty() {
            let (waiting, held) = (taken.clone(), TaskSet::new());
            self.placed.insert(number, Placed { job, attempts, cost, waiting, held, running: BTreeMap::new(), ended: Vec::new(), name, last: 0 });
            self.emit(number, job, taken, EventKind::Accepted);
        }
        let text = format!("{outstanding} of {} slots are taken", share.window);
        self.emit(number, job, beyond, returned(ReasonKind::OverCredit, text));
        self.obey(number);
    }

    pub(super) fn start_waiting(&mut self) {
        let mut used: u64 = self.placed.values().map(|p| p.cost * p.running.len() as u64).sum();
        let parent = self.parent.0;
        for (number, p) in self.placed.iter_mut().filter(|(_, p)| p.name.incarnation == parent) {
            let Some(spec) = self.jobs.get(&p.job).and_then(|j| j.spec.as_ref()) else { continue };
            let mut may = p.waiting.subtract(&p.held);
            let starting = may.take_first(u64::from(self.slots).saturating_sub(used) / p.cost.max(1));
            p.waiting = p.waiting.subtract(&starting);
            used += p.cost * starting.len();
            for t in starting.iter() {
                let (mut takes_ms, mut exit) = act(&spec.argv, t, self.acting.delay_ms);
                if let Some((left, code)) = &mut self.acting.fail_next {
                    exit = Exit::Code(*code);
                    takes_ms = self.acting.delay_ms;
                    *left = left.saturating_sub(1);
                    if *left == 0 {
                        self.acting.fail_next = None;
                    }
                }
                let due_ms = (!self.acting.never_end).then(|| self.now_ms.saturating_add(takes_ms));
                p.running.insert(t, Run { started_ms: self.now_ms, due_ms, exit });
                self.starts.push((*number, t));
                self.hints.push((*number, t));
            }
        }
    }

    pub(super) fn finish_due(&mut self) {
        let now = self.now_ms;
        let mut due: BTreeMap<(u64, u32), TaskSet> = BTreeMap::new();
        for (n, p) in &self.placed {
            for (t, r) in p.running.iter().filter(|(_, r)| r.due_ms.is_some_and(|d| d <= now)) {
                due.entry((*n, r.exit.to_number())).or_default().insert(*t..*t + 1);
            }
        }
        for ((number, exit), tasks) in due {
            self.stop_where(|n, t| n == number && tasks.contains(t), Exit::from_number(exit), None, false);
        }
    }

    pub(super) fn stop_where(&mut self, which: impl Fn(u64, u32) -> bool, exit: Exit, as_what: Option<(Phase, Reason)>, lost: bool) {
        let (phase, reason) = match as_what {
            Some((phase, reason)) => (phase, Some(reason)),
            None if exit == Exit::Code(0) => (Phase::Done, None),
            None => (Phase::Failed, Some(Reason::new(failure(exit), exit.to_string()))),
        };
        let mut said = Vec::new();
        for (number, p) in &mut self.placed {
            let tasks: TaskSet = p.running.keys().copied().filter(|t| which(*number, *t)).collect();
            let runs: Vec<Run> = tasks.iter().filter_map(|t| p.running.remove(&t)).collect();
            let wall_ms = fold_equal(runs.iter().map(|r| self.now_ms.saturating_sub(r.started_ms)).collect());
            let mut ended = Ended::not_started(phase, Reason::new(failure(exit), ""), p.attempts + 1);
            ended.exit = vec![exit.to_number()];
            (ended.reason, ended.wall_ms, ended.lost) = (reason.clone(), wall_ms, lost);
            (ended.cpu_us, ended.age_ms, ended.route) = (vec![1_000], vec![0], vec![self.hop.clone()]);
            said.push((*number, p.job, tasks, ended));
        }
        self.hints.retain(|(n, t)| !which(*n, *t) || self.placed.get(n).is_some_and(|p| p.running.contains_key(t)));
        said.into_iter().for_each(|(n, job, tasks, e)| self.emit(n, job, tasks, EventKind::Ended(e)));
    }
}
