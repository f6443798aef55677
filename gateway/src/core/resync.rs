//! Full states: told to a parent that has missed events, taken in from a child. Both cost what the tasks of a link are, so neither is asked for or told more
//! often than once in a while, whoever asks.

use std::collections::BTreeMap;

use intergrid_proto::link::{Attempts, Down, Ended, Event, EventKind, Hint, Resync, ResyncRange, Up};
use intergrid_proto::spec::OnLost;
use intergrid_proto::{Phase, Reason, ReasonKind, SiteId, TaskSet};

use super::change::{self, What};
use super::limits::*;
use super::planted::{Plant, planted};
use super::rows::pieces;
use super::state::Job;
use super::view::{of_exit, one_exit};
use super::{Action, Core};

impl Core {
    /// At once, or when the last time is long enough ago: it costs what all of the parent's tasks are.
    pub(super) fn resync_soon(&mut self, parent: SiteId) {
        let now = self.now.mono_ms;
        let Some(p) = self.parents.get_mut(&parent).filter(|p| p.attached) else { return };
        p.resync_due = p.resync_told_ms > 0 && now.saturating_sub(p.resync_told_ms) < RESYNC_PAUSE_MS;
        if !p.resync_due {
            p.resync_told_ms = now;
            // What it gave back, or what an attempt used, is in no full state: events that wait to be sent go first.
            if std::mem::replace(&mut p.live, true) {
                self.flush_events();
            }
            self.resync_parent(parent);
            self.say_lost_again(parent);
        }
    }

    /// Full states that were put off: told to parents, asked of children.
    pub(super) fn resyncs_due(&mut self) {
        let parents: Vec<SiteId> = self.parents.iter().filter(|(_, p)| p.resync_due).map(|(id, _)| *id).collect();
        for parent in parents {
            self.resync_soon(parent);
            if self.parents.get(&parent).is_some_and(|p| p.live) {
                self.repeat_hints(parent);
            }
        }
        let now = self.now.mono_ms;
        for (id, c) in self.children.iter_mut().filter(|(_, c)| c.resync_due && now.saturating_sub(c.resync_asked_ms) >= RESYNC_PAUSE_MS) {
            (c.resync_asked_ms, c.resync_due) = (now, false);
            if c.attached {
                self.actions.push(Action::ToChild(*id, Down::Resync));
            }
        }
    }

    /// All that this parent has placed here, by phase. Ends are told again from the state; their usage is in the history of this site.
    pub(super) fn resync_parent(&mut self, parent: SiteId) {
        let mut ranges = Vec::new();
        let now = self.state.links.get(&parent).map_or(0, |l| l.peer_incarnation);
        for j in self.state.jobs.values().filter(|j| j.parent == Some(parent) && j.ups.values().any(|e| e.incarnation == now)) {
            let mut told: BTreeMap<(u32, u8), TaskSet> = BTreeMap::new();
            for (range, c) in j.runs(|c| (c.up, c.phase)) {
                told.entry((c.up, c.phase)).or_default().insert(range);
            }
            for (up, e) in j.ups.iter().filter(|(_, e)| e.incarnation == now) {
                for phase in Phase::ALL {
                    let tasks = told.remove(&(*up, phase as u8)).unwrap_or_default();
                    for tasks in pieces(&tasks, CHANGE_TASKS_MAX, CHANGE_RANGES_MAX).into_iter().filter(|t| !t.is_empty()) {
                        let ended = phase.is_terminal().then(|| self.told_again(j, &tasks, phase));
                        ranges.push(ResyncRange { of: Attempts { number: e.number, job: e.job, tasks }, phase, ended });
                    }
                }
            }
        }
        ranges.truncate(ranges.len().saturating_sub(planted(Plant::ResyncSkips).into()));
        let sequence = self.state.links.get(&parent).map_or(0, |l| l.next);
        let incarnation = self.state.incarnation;
        let mut parts: Vec<Vec<ResyncRange>> = ranges.chunks(EVENTS_PER_MESSAGE_MAX / 16).map(<[_]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let n = parts.len();
        for (k, ranges) in parts.into_iter().enumerate() {
            self.actions.push(Action::ToParent(parent, Up::Resync(Resync { incarnation, sequence, ranges, last: k + 1 == n })));
        }
        if let Some(p) = self.parents.get_mut(&parent) {
            p.sent = sequence;
        }
        let told = self.told.entry(parent).or_default();
        *told = sequence.max(*told);
    }

    /// How tasks ended, as far as the state knows.
    pub(super) fn told_again(&self, j: &Job, tasks: &TaskSet, phase: Phase) -> Ended {
        let exit: Vec<u32> = tasks.iter().map(|t| u32::from(j.cell(t).exit)).collect();
        let reason = (phase != Phase::Done).then(|| {
            let known = j.failures.first().map(|(r, _)| r.clone());
            // An exit of 0 says nothing of a failure.
            let known = known.or_else(|| one_exit(&exit).filter(|exit| *exit > 0).map(of_exit)).filter(|_| phase == Phase::Failed);
            known.unwrap_or_else(|| Reason::new(ReasonKind::ExitUnknown, "told again from the state"))
        });
        let attempts = tasks.first().map_or(0, |t| u32::from(j.cell(t).attempts));
        let lists = Ended::not_started(phase, Reason::new(ReasonKind::ExitUnknown, ""), attempts);
        Ended { exit, reason, route: vec![self.me.clone()], ..lists }
    }

    /// The child's full state, part by part. What we hold open there and it does not know is lost.
    pub(super) fn child_resync(&mut self, child: SiteId, r: Resync) {
        // Each part is taken in as it comes: of what it knows only what is ours is remembered.
        for range in r.ranges {
            let (current, fenced) = self.split(child, &range.of);
            if !(current.is_empty() && fenced.is_empty())
                && let Some(c) = self.children.get_mut(&child)
            {
                let known = c.resync.entry(range.of.number).or_default();
                current.ranges().iter().chain(fenced.ranges()).for_each(|t| known.insert(t.clone()));
            }
            if !current.is_empty() {
                self.accepted(range.of.job, range.of.number);
            }
            match range.ended {
                Some(ended) => self.child_event(child, Event { of: range.of, what: EventKind::Ended(ended) }),
                None if range.phase == Phase::Held => self.held_below(range.of.job, &current),
                None if range.phase == Phase::Queued || range.phase == Phase::Placed => self.released_below(range.of.job, &current),
                None => self.child_hint(child, Hint { of: range.of, phase: range.phase }),
            }
        }
        if !r.last {
            return;
        }
        let known = self.children.get_mut(&child).map(|c| std::mem::take(&mut c.resync)).unwrap_or_default();
        let cursor = self.state.cursors.get(&child).filter(|c| c.incarnation == r.incarnation);
        let taken_after = cursor.map_or(u64::MAX, |c| c.renewed_at);
        let placed: Vec<(u64, u64)> = self.state.placed_on.get(&child).into_iter().flatten().map(|(n, j)| (*n, *j)).collect();
        for (number, job) in placed {
            let Some(j) = self.state.jobs.get(&job) else { continue };
            // It is this store that was told of it.
            let same = number > taken_after;
            // Of older incarnations the child's list of orphans says what it has.
            let Some(d) = j.downs.get(&number).filter(|_| number > self.state.former) else { continue };
            if !d.accepted {
                // Another store than the one that this was sent to knows nothing of it: nobody will ever say that it has stopped.
                let gone = d.fenced.subtract(known.get(&number).unwrap_or(&TaskSet::new()));
                if !same && !gone.is_empty() {
                    self.record(What::Stopped(change::OfPlacement { job, number, tasks: gone.to_runs() }));
                    self.schedule_due = true;
                }
                let Some((j, d)) = self.state.jobs.get(&job).and_then(|j| Some((j, j.downs.get(&number)?))) else { continue };
                // It had seen this before it said hello, and does not have it: it gave it back, and that word was not kept.
                let seen = self.children.get(&child).is_some_and(|c| number <= c.seen);
                let back = j.select(&j.all(), |c| c.down == number && c.is_below()).subtract(known.get(&number).unwrap_or(&TaskSet::new()));
                let attempts = d.attempts;
                if seen && !back.is_empty() {
                    self.requeue(job, number, &back, attempts, false);
                }
                continue;
            }
            let (attempts, on_lost) = (d.attempts + 1, j.spec.parsed.on_lost);
            let told = known.get(&number).cloned().unwrap_or_default();
            let fenced_gone = d.fenced.subtract(&told);
            let lost = j.select(&j.all(), |c| c.down == number && c.is_below()).subtract(&told);
            if !fenced_gone.is_empty() {
                self.record(What::Stopped(change::OfPlacement { job, number, tasks: fenced_gone.to_runs() }));
            }
            if lost.is_empty() {
                continue;
            }
            match on_lost {
                // Its store is the one that took them: they were given back, and that word was not kept.
                _ if same => self.requeue(job, number, &lost, attempts - 1, false),
                OnLost::Requeue => {
                    self.requeue(job, number, &lost, attempts, true);
                    // It does not know of them: nobody will ever say that they have stopped.
                    self.record(What::Stopped(change::OfPlacement { job, number, tasks: lost.to_runs() }));
                }
                OnLost::Wait => {
                    let reason = Reason::new(ReasonKind::EvidenceLost, format!("{} no longer knows of it", self.child_name(child)))
                        .remedy("an administrator can declare it lost");
                    if let Some(j) = self.state.jobs.get_mut(&job) {
                        j.last_return = Some((self.now.mono_ms, reason));
                    }
                }
            }
        }
        // It may be as of an earlier event than we have taken in: that stays so, and what follows is said again.
        let at = self.state.cursors.get(&child).filter(|c| c.incarnation == r.incarnation).map_or(0, |c| c.sequence);
        let sequence = if planted(Plant::IncarnationIgnored) { r.sequence } else { r.sequence.max(at) };
        self.record(What::Cursor(change::Cursor { peer: child.0.to_vec(), incarnation: r.incarnation, number: sequence, ..Default::default() }));
        self.actions.push(Action::ToChild(child, Down::Ack { incarnation: r.incarnation, sequence }));
    }

    /// Held somewhere below, whose word of that was lost with its events.
    fn held_below(&mut self, job: u64, tasks: &TaskSet) {
        let Some(j) = self.state.jobs.get(&job) else { return };
        let tasks = j.select(tasks, |c| c.phase() != Some(Phase::Held));
        self.set_phase_and_tell(job, &tasks, Phase::Held);
    }

    /// Not held below any more.
    fn released_below(&mut self, job: u64, tasks: &TaskSet) {
        let Some(j) = self.state.jobs.get(&job) else { return };
        let tasks = j.select(tasks, |c| c.phase() == Some(Phase::Held));
        self.set_phase_and_tell(job, &tasks, Phase::Placed);
    }
}
