//! Tasks here: claimed in order of placement, started while there are slots, watched, ended.

use std::collections::BTreeMap;
use std::sync::Arc;

use intergrid_proto::convert::{ended_in, tasks_out};
use intergrid_proto::link::{Ended, WantValue};
use intergrid_proto::share::lookahead;
use intergrid_proto::units::format_duration;
use intergrid_proto::{Exit, Pace, Phase, Reason, ReasonKind, Refusal, TaskSet, pb};

use super::ends::ended_of;
use super::{Action, BlobHash, Core, Fate, Fault, Key, Live, Open, Report, Stage, Staged, Stop};
use crate::limits::*;
use crate::plan::{Plan, Task};
use crate::spool::record::{Claimed, Exited, Started, What};

impl Core {
    /// What is volatile of a placement that the state holds.
    pub(super) fn open(&mut self, number: u64) -> Result<(), Refusal> {
        let Some(p) = self.state.placements.get(&number) else { return Ok(()) };
        let (hash, job_id) = (p.spec, Arc::from(p.origin_job.as_str()));
        let (open, waiting) = (
            p.open.len(),
            p.claims.keys().fold(p.open.clone(), |mut w, t| {
                w.remove(*t..*t + 1);
                w
            }),
        );
        let (plan, here) = match self.plans.get(&hash) {
            Some(s) => (s.plan.clone(), s.here),
            None => {
                let bytes =
                    self.state.specs.get(&hash).ok_or_else(|| Refusal::invalid(format!("the spool has lost the spec of placement {number}")))?;
                let plan = Arc::new(Plan::new(bytes)?);
                let here = plan.is_bare();
                self.plans.insert(hash, Staged { plan: plan.clone(), here });
                if !here {
                    self.actions.push(Action::Fetch(plan.clone()));
                }
                (plan, here)
            }
        };
        let cost = self.cost(&plan.spec.shape);
        self.outstanding += cost * open;
        if here && !waiting.is_empty() {
            self.runnable.insert(number);
        }
        self.opens.insert(number, Open { plan, cost, waiting, held: TaskSet::new(), job_id, hinted_staging: false });
        Ok(())
    }

    /// The claimed tasks that a restart found, with what the spool knows of their process.
    pub fn claimed(&self) -> Vec<(Key, crate::state::Claim)> {
        let of = |(n, p): (&u64, &crate::state::Placement)| p.claims.iter().map(|(t, c)| ((*n, *t), c.clone())).collect::<Vec<_>>();
        self.state.placements.iter().flat_map(of).collect()
    }

    /// What became of a claimed task while the agent was away.
    pub fn resume(&mut self, key: Key, fate: Fate, now: u64) {
        self.now = now;
        let Some(p) = self.state.placements.get(&key.0) else { return };
        let Some(claim) = p.claims.get(&key.1).cloned() else { return };
        // As the gateway calls it now.
        let known = self.names(key.0, &TaskSet::one(key.1)).into_iter().find(|n| !n.is_orphan);
        let job = known.map_or(p.job, |n| n.job);
        // Gone is a confirmed stop.
        let stop = (fate == Fate::Gone && self.wish(job, key.1) == WantValue::Cancel).then_some(Stop::Cancel);
        let Some(open) = self.opens.get_mut(&key.0) else { return };
        let time_limit = open.plan.spec.time_limit_ms;
        let live = |stage, since_ms: u64| Live {
            stage,
            stop,
            kill_ms: None,
            since_ms,
            deadline_ms: time_limit.map(|t| since_ms + t),
            settled: true,
            hinted: false,
            suspended: false,
        };
        if let Some(e) = claim.exited {
            self.uploading += open.cost;
            self.lives.insert(key, live(Stage::Uploading, now));
            self.upload(key, e.files);
            return;
        }
        match fate {
            Fate::Alive { pid } => {
                self.used += open.cost;
                self.lives.insert(key, live(Stage::Running(pid), claim.started.map_or(now, |s| s.at_ms)));
            }
            Fate::Handed => {
                self.used += open.cost;
                self.lives.insert(key, live(Stage::Starting, now));
            }
            Fate::NeverStarted => {
                let task = TaskSet::one(key.1);
                open.waiting.insert(key.1..key.1 + 1);
                if self.plans.get(&open.plan.hash).is_some_and(|s| s.here) {
                    self.runnable.insert(key.0);
                }
                self.record(What::Unclaimed(Claimed { number: key.0, tasks: Some(tasks_out(&task)), boot: Vec::new() }));
                self.freeze_orphans();
            }
            Fate::Gone => {
                let cost = open.cost;
                self.used += cost;
                self.lives.insert(key, live(Stage::Running(0), now));
                self.exited(key, Report::unseen());
            }
        }
        self.obey(job);
    }

    /// Start what may start, and claim what comes next.
    pub(super) fn schedule(&mut self) {
        // What goes to a queue waits there, as far as it may.
        let slots = self.offer.as_ref().map_or(u64::from(self.capacity.slots), |o| o.handed_max.unwrap_or(u64::MAX));
        while let Some((at, cost)) = self.next_ready(slots) {
            let Some(key) = self.ready.remove(at) else { break };
            self.ahead = self.ahead.saturating_sub(cost);
            self.used += cost;
            self.moved_ms = self.now;
            if let Some((pace, _)) = &mut self.pace {
                pace.leaves(cost);
            }
            // It was told to wait.
            self.link.advert_dirty = true;
            match self.unfit(key) {
                Some(fault) => self.not_started(key, fault),
                None => self.start(key),
            }
        }
        if self.link.waits_for_open(self.now) || self.no_room.is_some() {
            return;
        }
        let stall_ms = if self.link.rate < PACED_RATE_MIN { 0 } else { SYNC_STALL_MS };
        let hidden = lookahead(self.link.rate, (self.commit_ms + (PACE_MS + stall_ms) as f64) / 1_000.0);
        let left = slots.saturating_sub(self.used);
        let mut ahead_max = left.saturating_add(hidden);
        // Of those that go by only what fits is claimed, beside what waits to have more.
        let goes_by = self.lets_by() && left > 0 && self.claims.is_empty() && self.committing_claims.is_empty();
        if goes_by {
            ahead_max = ahead_max.saturating_add(self.ahead);
        }
        while self.ahead < ahead_max {
            let fits = |number: &&u64| !goes_by || self.opens.get(number).is_none_or(|o| o.cost <= left);
            let Some(number) = self.runnable.iter().find(fits).copied() else { return };
            let Some(open) = self.opens.get_mut(&number) else {
                self.runnable.remove(&number);
                continue;
            };
            let tasks = open.waiting.take_first(((ahead_max - self.ahead) / open.cost.max(1)).max(1));
            if open.waiting.is_empty() {
                self.runnable.remove(&number);
            }
            self.ahead += tasks.len() * open.cost;
            for task in tasks.iter() {
                let live = Live {
                    stage: Stage::Claiming,
                    stop: None,
                    kill_ms: None,
                    since_ms: self.now,
                    deadline_ms: None,
                    settled: false,
                    hinted: false,
                    suspended: false,
                };
                self.lives.insert((number, task), live);
            }
            let claims = self.claims.entry(number).or_default();
            *claims = claims.union(&tasks);
        }
    }

    /// Which of those that are ready is the next to start, and its cost: the first, or, where it has waited for several slots long enough, one behind it.
    fn next_ready(&mut self, slots: u64) -> Option<(usize, u64)> {
        let is_ready = |lives: &BTreeMap<Key, Live>, key: &Key| lives.get(key).is_some_and(|l| l.stage == Stage::Ready);
        while self.ready.front().is_some_and(|key| !is_ready(&self.lives, key)) {
            self.ready.pop_front();
        }
        let first = self.ready.front().copied()?;
        let left = slots.saturating_sub(self.used);
        let cost = |key: &Key| self.opens.get(&key.0).map(|o| o.cost);
        let cost_of_first = cost(&first)?;
        // A task that is dearer than a machine that has shrunk runs alone.
        if cost_of_first <= left || self.used == 0 && self.offer.is_none() {
            return Some((0, cost_of_first));
        }
        if self.offer.is_some() || left == 0 {
            return None;
        }
        if self.blocked.is_none_or(|(key, _)| key != first) {
            self.blocked = Some((first, self.now));
        }
        if !self.lets_by() {
            return None;
        }
        let mut behind = self.ready.iter().enumerate().skip(1).filter(|(_, key)| is_ready(&self.lives, key));
        behind.find_map(|(at, key)| cost(key).filter(|c| *c <= left).map(|c| (at, c)))
    }

    /// Has the first of those that are ready waited long enough for several slots together?
    fn lets_by(&self) -> bool {
        self.blocked.is_some_and(|(key, since)| self.ready.front() == Some(&key) && self.now >= since + WIDE_WAIT_MS)
    }

    /// What it was placed for is not here any more: GPUs that went with a restart, time that went with its inputs.
    fn unfit(&self, key: Key) -> Option<Fault> {
        let spec = &self.opens.get(&key.0).filter(|_| self.offer.is_none())?.plan.spec;
        let elsewhere = |kind, text| Some(Fault { kind, text, exit: Exit::NotStarted, elsewhere: true });
        if spec.shape.gpus > self.capacity.gpus {
            return elsewhere(ReasonKind::NoFit, format!("it needs {} GPUs, and this machine has {} now", spec.shape.gpus, self.capacity.gpus));
        }
        let left_ms = self.ends_ms?.saturating_sub(self.now);
        let asked = spec.time_limit_ms.filter(|limit| *limit > left_ms)?;
        elsewhere(ReasonKind::OverLimit, format!("it asks for {}, and this machine has {} left", format_duration(asked), format_duration(left_ms)))
    }

    fn start(&mut self, key: Key) {
        let (Some(open), Some(p)) = (self.opens.get(&key.0), self.state.placements.get(&key.0)) else { return };
        let task = Task {
            number: key.0,
            index: key.1,
            attempt: p.attempts + 1,
            job: open.job_id.clone(),
            array_size: p.array_size,
            site: self.site.clone(),
        };
        let plan = open.plan.clone();
        if let Some(live) = self.lives.get_mut(&key) {
            live.stage = Stage::Starting;
        }
        self.actions.push(Action::Start(task, plan));
    }

    /// Claims made since the last batch, as records.
    pub(super) fn flush_claims(&mut self) {
        for (number, tasks) in std::mem::take(&mut self.claims) {
            self.record(What::Claimed(Claimed { number, tasks: Some(tasks_out(&tasks)), boot: self.boot.clone() }));
            self.committing_claims.insert(number, tasks);
        }
    }

    pub(super) fn committed(&mut self) {
        self.link.committed();
        self.link.measure(self.now, self.slots());
        self.tell_of_growth();
        self.commit_ms = 0.8 * self.commit_ms + 0.2 * self.now.saturating_sub(self.cut_ms) as f64;
        for (number, tasks) in std::mem::take(&mut self.committing_claims) {
            for task in tasks.iter() {
                if let Some(live) = self.lives.get_mut(&(number, task)).filter(|l| l.stage == Stage::Claiming) {
                    live.stage = Stage::Ready;
                    self.ready.push_back((number, task));
                }
            }
        }
        let removals = std::mem::take(&mut self.committing_removals);
        if !removals.is_empty() {
            self.actions.push(Action::Remove(removals));
        }
    }

    pub(super) fn started(&mut self, key: Key, pid: i32) {
        let Some(live) = self.lives.get_mut(&key) else { return };
        let limit = self.opens.get(&key.0).and_then(|o| o.plan.spec.time_limit_ms);
        live.stage = Stage::Running(pid);
        live.since_ms = self.now;
        live.deadline_ms = limit.map(|t| self.now + t);
        // What was wanted back has started: then it runs.
        if let Some(stop) = live.stop.take().filter(|s| !matches!(s, Stop::Hold | Stop::Return)) {
            self.stop(key, stop);
        }
    }

    pub(super) fn not_started(&mut self, key: Key, fault: Fault) {
        let Some(live) = self.lives.remove(&key) else { return };
        let Some(open) = self.opens.get(&key.0) else { return };
        self.used = self.used.saturating_sub(open.cost);
        let Some((job, attempts)) = self.state.placements.get(&key.0).map(|p| (p.job, p.attempts)) else { return };
        if fault.elsewhere && live.stop.is_none() {
            self.give_back(key.0, TaskSet::one(key.1), Reason::new(fault.kind, fault.text));
            return self.removals.push(key);
        }
        let (phase, reason) = match live.stop {
            Some(Stop::Cancel) => (Phase::Cancelled, Reason::new(ReasonKind::CancelledByUser, "cancelled before it started")),
            Some(Stop::Fenced) => (Phase::Cancelled, Reason::new(ReasonKind::Fenced, "the attempt no longer counts")),
            Some(Stop::Time | Stop::Memory(_) | Stop::Hold | Stop::Return) | None => (Phase::Failed, Reason::new(fault.kind, fault.text)),
        };
        let ended = Ended { exit: vec![fault.exit.to_number()], age_ms: vec![self.now], ..Ended::not_started(phase, reason, attempts + 1) };
        self.end(key, job, &ended);
        self.removals.push(key);
    }

    pub(super) fn exited(&mut self, key: Key, report: Report) {
        let Some(live) = self.lives.get_mut(&key) else { return };
        let (Some(open), Some(p)) = (self.opens.get(&key.0), self.state.placements.get(&key.0)) else { return };
        self.used = self.used.saturating_sub(open.cost);
        let ended = ended_of(live.stop, &report, &open.plan, p.attempts + 1, self.now);
        let job = p.job;
        if report.files.is_empty() {
            self.lives.remove(&key);
            self.end(key, job, &ended);
            self.removals.push(key);
            return;
        }
        live.stage = Stage::Uploading;
        (live.hinted, live.since_ms, live.kill_ms, live.deadline_ms) = (false, self.now, None, None);
        self.uploading += open.cost;
        let record = Exited { number: key.0, task: key.1, ended: Some(pb::Ended::from(ended)), files: report.files.clone() };
        self.record(What::Exited(record));
        self.upload(key, report.files);
        self.link.advert_dirty = true;
    }

    pub(super) fn uploaded(&mut self, key: Key, result: Result<(), String>) {
        if self.lives.get(&key).is_none_or(|l| l.stage != Stage::Uploading) {
            return;
        }
        // An orphan's outputs wait until somebody adopts it.
        if result.is_err() && self.names(key.0, &TaskSet::one(key.1)).iter().all(|n| n.is_orphan) {
            return;
        }
        self.lives.remove(&key);
        let Some(open) = self.opens.get(&key.0) else { return };
        self.uploading = self.uploading.saturating_sub(open.cost);
        let Some(p) = self.state.placements.get(&key.0) else { return };
        let (job, attempts) = (p.job, p.attempts + 1);
        let record = p.claims.get(&key.1).and_then(|c| c.exited.as_ref()).and_then(|e| e.ended.clone());
        // In our own record it is the time of the end, beyond what a peer's age may be.
        let at_ms = record.as_ref().map(|e| e.age_ms.clone()).filter(|at| !at.is_empty());
        let mut ended = record.and_then(|e| ended_in(e, 1).ok()).unwrap_or_else(|| ended_of(None, &Report::unseen(), &open.plan, attempts, self.now));
        ended.age_ms = at_ms.unwrap_or(ended.age_ms);
        if let (Err(why), Phase::Done) = (result, ended.phase) {
            ended.phase = Phase::Failed;
            ended.reason = Some(Reason::new(ReasonKind::StageOutFailed, why));
        }
        self.end(key, job, &ended);
        self.removals.push(key);
    }

    pub(super) fn fetched(&mut self, hash: BlobHash, result: Result<(), String>) {
        let Some(staged) = self.plans.get_mut(&hash) else { return };
        let numbers: Vec<u64> = self.opens.iter().filter(|(_, o)| o.plan.hash == hash).map(|(n, _)| *n).collect();
        match result {
            Ok(()) => {
                staged.here = true;
                let waits = |n: &u64| self.opens.get(n).is_some_and(|o| !o.waiting.is_empty());
                self.runnable.extend(numbers.into_iter().filter(waits));
            }
            Err(why) => {
                let reason = Reason::new(ReasonKind::StageInFailed, why);
                for number in numbers {
                    let Some(open) = self.opens.get_mut(&number) else { continue };
                    let tasks = std::mem::take(&mut open.waiting).union(&std::mem::take(&mut open.held));
                    self.end_unstarted(number, &tasks, Phase::Failed, &reason);
                }
                self.flush_ends();
            }
        }
    }

    /// A task that was handed on has not started and never will: what is wished of it is done here.
    pub(super) fn never_started(&mut self, key: Key, reason: Reason) {
        let Some(live) = self.lives.remove(&key) else { return };
        let Some(open) = self.opens.get_mut(&key.0) else { return };
        self.used = self.used.saturating_sub(open.cost);
        let task = TaskSet::one(key.1);
        match live.stop {
            Some(Stop::Cancel) => {
                self.end_unstarted(key.0, &task, Phase::Cancelled, &Reason::new(ReasonKind::CancelledByUser, "cancelled before it started"));
            }
            Some(Stop::Fenced) => {
                let reason = Reason::new(ReasonKind::Fenced, "the attempt no longer counts; it had not started");
                self.end_unstarted(key.0, &task, Phase::Cancelled, &reason);
            }
            Some(Stop::Hold) => {
                open.held = open.held.union(&task);
                self.link.advert_dirty = true;
                self.record(What::Unclaimed(Claimed { number: key.0, tasks: Some(tasks_out(&task)), boot: Vec::new() }));
            }
            Some(Stop::Return) => self.give_back(key.0, task, Reason::new(ReasonKind::AskedBack, "given back before it started")),
            Some(Stop::Time | Stop::Memory(_)) | None => self.give_back(key.0, task, reason),
        }
        self.removals.push(key);
        if let Some(p) = self.state.placements.get(&key.0) {
            // The wish may have changed while it was on its way back.
            self.obey(p.job);
        }
        self.flush_ends();
    }

    pub(super) fn suspended(&mut self, key: Key, suspended: bool) {
        if let Some(live) = self.lives.get_mut(&key).filter(|l| l.suspended != suspended) {
            (live.suspended, live.hinted) = (suspended, false);
        }
    }

    /// Want tasks back that were handed on, to wait here or to be given back; what no longer is to come back, is left where it is.
    pub(super) fn withdraw(&mut self, number: u64, tasks: &TaskSet, why: Stop) {
        if self.offer.is_none() {
            return;
        }
        for ((_, task), live) in self.lives.range_mut((number, 0)..=(number, u32::MAX)) {
            if live.stage == Stage::Starting && live.stop.is_none() && tasks.contains(*task) {
                live.stop = Some(why);
                self.actions.push(Action::Withdraw((number, *task)));
            }
        }
    }

    /// Begin to stop a task that has been handed to the executor.
    pub(super) fn stop(&mut self, key: Key, why: Stop) {
        let Some(live) = self.lives.get_mut(&key) else { return };
        match live.stage {
            Stage::Running(_) => {
                if live.stop.is_some() {
                    return;
                }
                let kill = matches!(why, Stop::Memory(_));
                live.stop = Some(why);
                live.kill_ms = (!kill).then_some(self.now + KILL_GRACE_MS);
                self.actions.push(Action::Signal { key, kill });
            }
            // Signalled as soon as its process is known.
            Stage::Starting => {
                let (asked, stopped) = (live.stop.is_some(), live.stop.filter(|s| !matches!(s, Stop::Hold | Stop::Return)));
                live.stop = stopped.or(Some(why));
                if self.offer.is_some() && !asked {
                    self.actions.push(Action::Withdraw(key));
                }
                // It leaves the queue now: that it has not started may be known later.
                if self.offer.is_some() && stopped.is_none() {
                    self.actions.push(Action::Signal { key, kill: false });
                }
            }
            Stage::Claiming | Stage::Ready | Stage::Uploading => {}
        }
    }

    /// Take claimed tasks that the executor has not got yet out again.
    pub(super) fn unclaim(&mut self, number: u64, tasks: &TaskSet) -> TaskSet {
        let stopped = |l: &Live| matches!(l.stage, Stage::Claiming | Stage::Ready);
        let mine: TaskSet =
            self.lives.range((number, 0)..=(number, u32::MAX)).filter(|((_, t), l)| tasks.contains(*t) && stopped(l)).map(|((_, t), _)| *t).collect();
        if mine.is_empty() {
            return mine;
        }
        for t in mine.iter() {
            self.lives.remove(&(number, t));
        }
        let cost = self.opens.get(&number).map_or(0, |o| o.cost);
        self.ahead = self.ahead.saturating_sub(cost * mine.len());
        if let Some(claims) = self.claims.get_mut(&number) {
            *claims = claims.subtract(&mine);
            if claims.is_empty() {
                self.claims.remove(&number);
            }
        }
        mine
    }

    pub(super) fn ticks(&mut self, list: Vec<(Key, u64)>) {
        for ((number, task), ticks) in list {
            let Some(live) = self.lives.get(&(number, task)) else { continue };
            if let Stage::Running(pid) = live.stage {
                self.record_lazily(What::Started(Started { number, task, pid, ticks, at_ms: live.since_ms }));
            }
        }
    }

    pub(super) fn tick(&mut self) {
        let now = self.now;
        let (mut settled, mut kill, mut late) = (Vec::new(), Vec::new(), Vec::new());
        for (key, live) in &mut self.lives {
            let Stage::Running(pid) = live.stage else { continue };
            if !live.settled && now >= live.since_ms + SETTLED_MS {
                live.settled = true;
                settled.push((*key, pid));
            }
            if live.kill_ms.is_some_and(|t| now >= t) {
                live.kill_ms = None;
                kill.push(*key);
            }
            if live.stop.is_none() && live.deadline_ms.is_some_and(|t| now >= t) {
                late.push(*key);
            }
        }
        if !settled.is_empty() {
            self.actions.push(Action::ReadTicks(settled));
        }
        kill.into_iter().for_each(|key| self.actions.push(Action::Signal { key, kill: true }));
        late.into_iter().for_each(|key| self.stop(key, Stop::Time));
        self.link.measure(now, self.slots());
        self.orphans = self.orphans && self.orphaned().0 > 0;
        self.gather_hints();
        self.give_back_what_lingers();
    }

    /// What came in the expectation of short tasks, and found long ones.
    fn give_back_what_lingers(&mut self) {
        let waits = !self.ready.is_empty() || !self.runnable.is_empty();
        let handed_max = self.offer.as_ref().and_then(|o| o.handed_max);
        let next = self.ready.front().map(|(number, _)| number).or(self.runnable.first());
        let cost = next.and_then(|number| self.opens.get(number)).map_or(0, |o| o.cost);
        // Where nothing of ours is, the next starts at once, unless a queue has no room for it.
        let starts = self.used == 0 && handed_max.is_none_or(|most| most >= cost);
        if !waits || starts || !self.is_attached() || self.link.waits_for_open(self.now) {
            (self.moved_ms, self.pace, self.blocked) = (self.now, None, None);
        }
        let after_ms = if handed_max.is_some() { GIVE_BACK_HANDED_MS } else { GIVE_BACK_AFTER_MS };
        let s = after_ms / 1_000;
        if self.now >= self.moved_ms + after_ms {
            (self.moved_ms, self.pace) = (self.now, None);
            return self.give_back_all_but(0, 0.0, u64::MAX, &format!("no slot came free here within {s} s"));
        }
        // Others went by, in slots that are too few for it: it may find as many elsewhere.
        if let Some((key, _)) = self.blocked.take_if(|(key, since)| self.ready.front() != Some(key) || self.now >= *since + after_ms)
            && self.ready.front() == Some(&key)
        {
            self.return_unstarted(key.0, &TaskSet::one(key.1), &format!("too few slots came free together here within {s} s"));
        }
        // On slots of our own all that waits is to have one soon. What is handed on to a queue waits there, and for that.
        if waits && self.offer.is_none() {
            let (pace, seen) = self.pace.get_or_insert((Pace::new(self.now), self.state.counters.highest));
            if let Some(started) = pace.take(self.now, PACE_PERIOD_MS) {
                // What has come since is looked at the next time.
                let seen = std::mem::replace(seen, self.state.counters.highest);
                let soon = started * (GIVE_BACK_AFTER_MS / PACE_PERIOD_MS);
                if started == 0 {
                    return;
                }
                self.give_back_all_but(soon, soon as f64 / s as f64, seen, &format!("slots come free too slowly here: {started} in a second"));
            }
        }
    }

    /// Of what waits for slots, all beyond the first so many slots' worth goes back, the last that came first, but none of placements above `seen`. Slots come
    /// free at `rate` a second.
    fn give_back_all_but(&mut self, kept: u64, rate: f64, seen: u64, text: &str) {
        let unclaimed = |number: &u64| self.opens.get(number).map_or(0, |o| o.cost * o.waiting.len());
        let mut beyond = (self.ahead + self.runnable.iter().map(unclaimed).sum::<u64>()).saturating_sub(kept);
        if beyond > 0 {
            self.link.rate = rate;
            self.link.advert_dirty = true;
        }
        let mut number = seen.saturating_add(1);
        while beyond > 0
            && let Some((last, open)) = self.opens.range(..number).next_back()
        {
            number = *last;
            let mut waiting = if self.runnable.contains(&number) { open.waiting.clone() } else { TaskSet::new() };
            let claimed = self.lives.range((number, 0)..=(number, u32::MAX)).filter(|(_, l)| matches!(l.stage, Stage::Claiming | Stage::Ready));
            claimed.for_each(|((_, task), _)| waiting.insert(*task..*task + 1));
            let back = waiting.take_last(beyond.div_ceil(open.cost.max(1)));
            beyond = beyond.saturating_sub(open.cost * back.len());
            self.return_unstarted(number, &back, text);
        }
    }

    /// What waits for a slot goes back.
    fn return_unstarted(&mut self, number: u64, tasks: &TaskSet, text: &str) {
        let taken = self.take_unstarted(number, tasks, false);
        if !taken.is_empty() {
            self.give_back(number, taken, Reason::new(ReasonKind::OverCredit, text));
        }
        self.queue(number);
    }

    /// The wish for one task.
    pub(super) fn wish(&self, job: u64, task: u32) -> WantValue {
        let named = |w: &intergrid_proto::link::Want| w.ranges.iter().find(|(_, t)| t.contains(task)).map(|(v, _)| *v);
        self.state.wants.get(&job).and_then(named).unwrap_or_default()
    }
}
