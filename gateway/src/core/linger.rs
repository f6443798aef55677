//! A parent's tasks that can't start here within a while go back up, where they can still go anywhere: nothing is queued silently.

use std::collections::BTreeMap;

use intergrid_proto::{Pace, Reason, ReasonKind, TaskSet};

use super::Core;
use super::limits::GIVE_BACK_AFTER_MS;

impl Core {
    /// Of a job of which nothing is placed for a while, or where this site is drained, all that waits; of one that moves, what won't have its turn in as long
    /// again at its pace, as where long tasks follow short ones.
    pub(super) fn give_back_stuck(&mut self) {
        let (now, drained) = (self.now.mono_ms, self.is_closed(self.me.site));
        let mut stuck: Vec<(u64, TaskSet)> = Vec::new();
        let mut paces = BTreeMap::new();
        let waiting = self.state.waiting.values().flatten().filter_map(|n| self.state.jobs.get(n));
        for j in waiting.filter(|j| j.parent.is_some() && !j.unsure) {
            if drained || now.saturating_sub(j.moved_ms) >= GIVE_BACK_AFTER_MS {
                stuck.push((j.no, j.queued.clone()));
            } else if j.queued.len() > 1 {
                let (mut pace, mut seen) = self.paces.remove(&j.no).unwrap_or_else(|| (Pace::new(now), j.queued.clone()));
                if let Some(placed) = pace.take(now, GIVE_BACK_AFTER_MS) {
                    // What has come since is looked at the next time.
                    let mut waited = std::mem::replace(&mut seen, j.queued.clone()).intersect(&j.queued);
                    let back = waited.take_last(waited.len().saturating_sub(placed));
                    // Where nothing moves, it is looked at above for how long.
                    if placed > 0 && !back.is_empty() {
                        stuck.push((j.no, back));
                    }
                }
                paces.insert(j.no, (pace, seen));
            }
        }
        self.paces = paces;
        for (job, tasks) in stuck {
            let why = self.why_waiting(job);
            let busy = if why.kind == ReasonKind::Draining { ReasonKind::Draining } else { ReasonKind::OverCredit };
            // Where a machine can come for it, those that are there do not speak for all: it is to come again soon, or that machine would come for nothing.
            let kind = if self.may_be_rented(job) { busy } else { refused_by_all(&why).unwrap_or(busy) };
            self.give_back(job, &tasks, Reason::new(kind, "could not be started here in time").because(vec![why]));
        }
    }
}

/// Where every share below refuses it for what it is, waiting would not help: as what.
fn refused_by_all(why: &Reason) -> Option<ReasonKind> {
    use ReasonKind::*;
    let mut refused = None;
    for r in &why.because {
        // Of those that gave it back, a limit in numbers keeps it only until something there has ended.
        let kind = if r.kind == BackOff { r.because.first().map(|b| b.kind).filter(|k| *k != OverLimit)? } else { r.kind };
        if !matches!(kind, NotAuthorised | Loop | MustUnderstand | InvalidSpec | NoFit | CostLimit | OverLimit) {
            return None;
        }
        refused = refused.filter(|k| *k != Loop).or(Some(kind));
    }
    refused
}
