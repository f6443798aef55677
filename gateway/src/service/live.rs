//! What a running task has printed, asked of where it runs.

use intergrid_proto::limits::LIVE_BYTES_MAX;
use intergrid_proto::{Phase, Refusal, RefusalKind, pb};

use super::{Service, tree};
use crate::backend::Peek;

/// What names an attempt.
const ATTEMPT_BYTES_MAX: usize = 64;

impl Service {
    pub(super) async fn peek_of(&self, job: u64, r: pb::PeekRequest) -> Result<pb::PeekReply, Refusal> {
        let task = r.task;
        if r.attempt.len() > ATTEMPT_BYTES_MAX {
            return Err(Refusal::invalid(format!("attempt: has {} bytes, at most {ATTEMPT_BYTES_MAX} are taken", r.attempt.len())));
        }
        let place = self.engine.read(move |core| {
            let j = core.state().jobs.get(&job)?;
            let cell = j.cell(task);
            Some((cell.phase()?, cell.down, j.downs.get(&cell.down).map(|d| d.child)))
        });
        let none = || Refusal::new(RefusalKind::NotFound, format!("the job has no task {task}"));
        let (phase, number, child) = place.await?.ok_or_else(none)?;
        match (phase, child) {
            (Phase::Done | Phase::Failed | Phase::Cancelled, _) => Ok(pb::PeekReply { ended: true, ..Default::default() }),
            (_, None) => Ok(pb::PeekReply::default()),
            (_, Some(child)) => {
                let what = Peek { job, number, task, attempt: r.attempt, stdout: r.stdout, stderr: r.stderr };
                let left = tree::less(tree::deadline(r.deadline_ms));
                let reply = tokio::time::timeout(left, self.backend.peek(child, what, left)).await;
                let late = |_| Refusal::new(RefusalKind::Unavailable, format!("no answer from below within {} ms", left.as_millis()));
                let reply = reply.map_err(late)??;
                if reply.stdout.len().max(reply.stderr.len()) > LIVE_BYTES_MAX || reply.attempt.len() > ATTEMPT_BYTES_MAX {
                    let message = format!("an answer from below is longer than {LIVE_BYTES_MAX} bytes");
                    return Err(Refusal::new(RefusalKind::Internal, message));
                }
                // Whether it has ended is what this site knows.
                Ok(pb::PeekReply { ended: false, ..reply })
            }
        }
    }
}
