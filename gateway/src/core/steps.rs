//! The main steps of a job at this site, for its log: each line names the job as it is known here and where it was submitted, and its trace.

use intergrid_proto::{JobNo, Phase, SiteId};

use super::limits::END_SAID_AFTER_MS;
use super::{Action, Core};

/// What happened to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It has come here, by a user or a parent.
    Accepted,
    /// Tasks of it were placed on a child.
    Placed {
        /// Which.
        child: SiteId,
        /// Our number of the placement.
        number: u64,
        /// How many.
        tasks: u64,
    },
    /// None of its tasks is open here any more.
    Ended,
}

/// A step in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The job's id here.
    pub job: String,
    /// Its id where it was submitted.
    pub origin: String,
    /// Who submitted it.
    pub principal: String,
    /// The trace that it belongs to; empty: none.
    pub trace: String,
    /// As the client or the client's program gave it; empty: none.
    pub trace_parent: String,
    /// Where it was submitted.
    pub origin_site: SiteId,
    /// The parent that it came from; None: a user of this site.
    pub from: Option<SiteId>,
    /// Has a task failed here?
    pub failed: bool,
    /// What happened.
    pub what: String,
}

impl Core {
    pub(super) fn step_of(&mut self, job: u64, step: Step) {
        self.actions.push(Action::Step(job, step));
    }

    /// Tasks of it have ended, or gone back. A parent's come and go, a few at a time: of those it is said when nothing has followed for a while.
    pub(super) fn note_end(&mut self, job: u64) {
        let Some(j) = self.state.jobs.get(&job).filter(|j| j.open() == 0) else { return };
        match j.parent {
            None => self.step_of(job, Step::Ended),
            Some(_) => _ = self.ending.insert(job, self.now.mono_ms),
        }
        self.claim_over(job);
    }

    /// What has been quiet for long enough.
    pub(super) fn say_ends(&mut self) {
        let now = self.now.mono_ms;
        let due: Vec<u64> = self.ending.iter().filter(|(_, at)| now.saturating_sub(**at) >= END_SAID_AFTER_MS).map(|(job, _)| *job).collect();
        for job in due {
            self.ending.remove(&job);
            if self.state.jobs.get(&job).is_some_and(|j| j.open() == 0) {
                self.step_of(job, Step::Ended);
            }
        }
    }

    /// In words, with the counts as they are now; None: the job is gone.
    pub fn line(&self, job: u64, step: Step) -> Option<Line> {
        let j = self.state().jobs.get(&job)?;
        let what = match step {
            Step::Accepted => format!("accepted, of {} tasks", j.size),
            Step::Placed { child, number, tasks } => format!("placed {tasks} tasks on {}, as placement {number}", self.child_name(child)),
            Step::Ended => {
                let ended = [Phase::Done, Phase::Failed, Phase::Cancelled].map(|p| (p.name(), j.count(p)));
                let ended: Vec<String> = ended.iter().filter(|(_, n)| *n > 0).map(|(p, n)| format!("{p} {n}")).collect();
                format!("ended here: {}", if ended.is_empty() { "all tasks went back".to_string() } else { ended.join(", ") })
            }
        };
        let (origin, principal) = (j.origin.job.clone(), j.origin.principal.clone());
        let trace_parent = j.spec.parsed.trace_parent.clone();
        let trace = trace_id(&trace_parent).to_string();
        let (origin_site, from, failed) = (j.origin.site, j.parent, j.count(Phase::Failed) > 0);
        Some(Line { job: JobNo(job).id(), origin, principal, trace, trace_parent, origin_site, from, failed, what })
    }
}

/// The trace of a traceparent, which was checked when it came.
fn trace_id(parent: &str) -> &str {
    parent.split('-').nth(1).unwrap_or_default()
}
