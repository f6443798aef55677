//! Fences: attempts that no longer count, and when they are known to have stopped.

use intergrid_proto::link::{Ended, Hello};
use intergrid_proto::spec::OnLost;
use intergrid_proto::{Phase, Reason, ReasonKind, SiteId};

use super::Core;
use super::change::{self, What};
use super::planted::{Plant, planted};

impl Core {
    /// A placement that was fenced before it ever reached its child has nothing to stop. The child takes numbers in order and says the highest that it
    /// has; what it has not seen was lost with an older session, and is not sent again.
    pub(super) fn stop_unseen(&mut self, child: SiteId, hello: &Hello) {
        let known = self.state.cursors.get(&child).map_or(0, |c| c.incarnation);
        let same_store = known == 0 || known == hello.incarnation;
        let seen = match hello.peer_incarnation {
            0 if same_store => 0,
            i if i == self.state.incarnation && same_store => hello.peer_placement,
            _ => return,
        };
        let placed = self.state.placed_on.get(&child).into_iter().flatten();
        let unseen: Vec<(u64, u64)> = placed.filter(|(number, _)| **number > seen).map(|(n, j)| (*n, *j)).collect();
        for (number, job) in unseen {
            let fenced = self.state.jobs.get(&job).and_then(|j| j.downs.get(&number)).filter(|d| !d.accepted).map(|d| d.fenced.clone());
            if let Some(fenced) = fenced.filter(|f| !f.is_empty()) {
                self.record(What::Stopped(change::OfPlacement { job, number, tasks: fenced.to_runs() }));
                self.schedule_due = true;
            }
        }
    }

    /// Contact lost for longer than a job's disconnect time-out: fence, where the job allows it. The time counts only while this process was listening.
    pub(super) fn fence_lost(&mut self) {
        let now = self.now.mono_ms;
        let mut due = Vec::new();
        for (child, placed) in &self.state.placed_on {
            let Some(lost_ms) = self.patience_from(*child) else { continue };
            for (number, job) in placed {
                let Some(j) = self.state.jobs.get(job) else { continue };
                let late = now.saturating_sub(lost_ms) >= j.spec.parsed.disconnect_timeout_ms;
                if late && j.spec.parsed.on_lost == OnLost::Requeue && j.downs.get(number).is_some_and(|d| d.open > 0) {
                    due.push((*child, *job, *number));
                }
            }
        }
        for (child, job, number) in due {
            let j = &self.state.jobs[&job];
            let tasks = j.select(&j.all(), |c| c.down == number && c.is_below());
            let attempts = j.downs[&number].attempts + 1;
            let text = format!("contact with {} was lost for longer than the job's disconnect time-out", self.child_name(child));
            let lost =
                Ended { lost: true, exit: vec![1025], ..Ended::not_started(Phase::Failed, Reason::new(ReasonKind::ContactLost, text), attempts) };
            self.note_stale(job, number, Some(self.child_hop(child)), &tasks, &lost);
            self.requeue(job, number, &tasks, attempts, !planted(Plant::NoFence));
        }
    }
}
