//! Hints: phases between placed and ended, not durable, told again after every reconnect.

use std::collections::BTreeMap;

use intergrid_proto::link::{Attempts, Hint, Up};
use intergrid_proto::{Phase, SiteId, TaskSet};

use super::limits::*;
use super::state::CHUNK_TASKS;
use super::{Action, Core};

/// Phases that are not durable.
const HINTED: [Phase; 4] = [Phase::StagingIn, Phase::Running, Phase::Suspended, Phase::StagingOut];

impl Core {
    pub(super) fn child_hint(&mut self, child: SiteId, hint: Hint) {
        let (current, _) = self.split(child, &hint.of);
        let Some(j) = self.state.jobs.get_mut(&hint.of.job).filter(|_| !current.is_empty()) else { return };
        set_hint(j, &current, hint.phase);
        self.changed.insert(hint.of.job);
        self.hint_up(hint.of.job, &current);
    }

    /// The parent is to be told of their phase, as it is at the end of the turn.
    pub(super) fn hint_up(&mut self, job: u64, tasks: &TaskSet) {
        let j = &self.state.jobs[&job];
        let Some(parent) = j.parent.filter(|p| self.parents.get(p).is_some_and(|p| p.live)) else { return };
        let due = self.hints.entry((parent, job)).or_default();
        *due = if due.is_empty() { tasks.clone() } else { due.union(tasks) };
    }

    /// After a parent's reconnect: hints are not durable, so they are said again.
    pub(super) fn repeat_hints(&mut self, parent: SiteId) {
        let mut due = Vec::new();
        for j in self.state.jobs.values().filter(|j| j.parent == Some(parent) && j.open() > 0) {
            for phase in HINTED {
                if j.count(phase) > 0 {
                    due.push((j.no, j.select(&j.all(), |c| c.phase() == Some(phase))));
                }
            }
        }
        for (job, tasks) in due {
            self.hint_up(job, &tasks);
        }
    }

    pub(super) fn flush_hints(&mut self) {
        let mut by_parent: BTreeMap<SiteId, Vec<Hint>> = BTreeMap::new();
        for ((parent, job), due) in std::mem::take(&mut self.hints) {
            let Some(j) = self.state.jobs.get(&job) else { continue };
            for phase in HINTED {
                for (up, tasks) in j.by_up(&j.select(&due, |c| c.phase() == Some(phase))) {
                    let now = self.state.links.get(&parent).map_or(0, |l| l.peer_incarnation);
                    if let Some(e) = j.ups.get(&up).filter(|e| e.incarnation == now) {
                        let of = Attempts { number: e.number, job: e.job, tasks };
                        by_parent.entry(parent).or_default().push(Hint { of, phase });
                    }
                }
            }
        }
        for (parent, hints) in by_parent {
            for hints in hints.chunks(ATTEMPTS_PER_MESSAGE_MAX) {
                self.actions.push(Action::ToParent(parent, Up::Hints(hints.to_vec())));
            }
        }
    }
}

/// A hint changes a phase without a change: it is not durable.
fn set_hint(j: &mut super::state::Job, tasks: &TaskSet, phase: Phase) {
    for r in tasks.ranges() {
        let mut i = r.start;
        while i < r.end.min(j.size) {
            let (at, first) = ((i / CHUNK_TASKS) as usize, i / CHUNK_TASKS * CHUNK_TASKS);
            let to = (first + CHUNK_TASKS).min(r.end).min(j.size);
            let counts = &mut j.counts;
            j.chunks[at].cells.change(i - first, to - first, |c, n| {
                counts[usize::from(c.phase)] -= u64::from(n);
                c.phase = phase as u8;
                counts[usize::from(c.phase)] += u64::from(n);
            });
            i = to;
        }
    }
}
