//! Questions that go down the tree: explain, hosts, outputs. Each hop leaves the next a little less time, and names those that do not answer.

use std::time::Duration;

use futures::future::join_all;
use intergrid_proto::limits::TREE_CALL_TIMEOUT_MS;
use intergrid_proto::link::Kind;
use intergrid_proto::{Phase, Refusal, RefusalKind, SiteId, TaskSet, convert, pb};

use super::Service;
use crate::backend::Content;

/// What a hop keeps for itself.
const HOP_MARGIN: Duration = Duration::from_millis(100);
/// The least that a hop leaves the next.
const DEADLINE_MIN: Duration = Duration::from_millis(50);

/// What is left; 0: the whole.
pub(super) fn deadline(ms: u32) -> Duration {
    match u64::from(ms) {
        0 => Duration::from_millis(TREE_CALL_TIMEOUT_MS),
        n => Duration::from_millis(n.min(10 * TREE_CALL_TIMEOUT_MS)),
    }
}

fn less(deadline: Duration) -> Duration {
    deadline.saturating_sub(HOP_MARGIN).max(DEADLINE_MIN)
}

impl Service {
    pub(super) async fn explain_tree(&self, job: u64, tasks: Option<TaskSet>, deadline: Duration) -> Result<pb::Explanation, Refusal> {
        let asked = tasks.clone();
        let found = self.engine.read(move |core| core.explanation(job, asked.as_ref())).await?;
        let (mut own, children) = found.ok_or_else(|| Refusal::new(RefusalKind::NotFound, "the job is gone"))?;
        let left = less(deadline);
        let answers = children.iter().map(|child| {
            let call = self.backend.explain(child.site, job, tasks.clone(), left);
            async move { (child, tokio::time::timeout(left, call).await) }
        });
        for (child, answer) in join_all(answers).await {
            own.below.push(match answer {
                Ok(Ok(e)) => e,
                Ok(Err(r)) => unreachable_hop(child.clone().into(), r.to_string()),
                Err(_) => unreachable_hop(child.clone().into(), format!("no answer within {} ms", left.as_millis())),
            });
        }
        Ok(own)
    }

    pub(super) async fn hosts_tree(&self, deadline: Duration) -> Result<pb::Host, Refusal> {
        let (mut me, children) = self.engine.read(|core| core.host()).await?;
        me.backend = self.backend.kind().into();
        me.endpoint = self.endpoint.clone();
        let left = less(deadline);
        let known: Vec<String> = children.iter().filter_map(|(_, h)| h.site.as_ref()).map(|s| s.name.clone()).collect();
        let asked = children.into_iter().map(|(id, seen)| self.host_of(id, seen, left));
        me.below = join_all(asked).await;
        for (name, endpoint) in self.backend.configured() {
            if !known.contains(&name) {
                let site = Some(pb::Hop { name, kind: pb::Kind::Gateway.into(), ..Default::default() });
                let unreachable = "not reached since the start".to_string();
                me.below.push(pb::Host { site, endpoint, unreachable, ..Default::default() });
            }
        }
        me.below.sort_by(|a, b| name(a).cmp(name(b)));
        Ok(me)
    }

    /// A child as it tells of itself; where it does not answer, as it was last seen.
    async fn host_of(&self, id: SiteId, seen: pb::Host, left: Duration) -> pb::Host {
        let agent = seen.site.as_ref().is_some_and(|s| s.kind == pb::Kind::from(Kind::Agent) as i32);
        if agent || !seen.unreachable.is_empty() {
            return seen;
        }
        match tokio::time::timeout(left, self.backend.hosts(id, left)).await {
            Ok(Ok(host)) => host,
            Ok(Err(r)) => pb::Host { unreachable: r.to_string(), ..seen },
            Err(_) => pb::Host { unreachable: format!("no answer within {} ms", left.as_millis()), ..seen },
        }
    }

    /// An output, from where its task ended last.
    pub(super) async fn output_of(&self, job: u64, task: u32, name: String) -> Result<Content, Refusal> {
        let phase = self.engine.read(move |core| core.state().jobs.get(&job).and_then(|j| j.cell(task).phase())).await?;
        let not_found = |text: String| Refusal::new(RefusalKind::NotFound, text);
        match phase {
            None => return Err(not_found(format!("the job has no task {task}"))),
            Some(Phase::Done | Phase::Failed | Phase::Cancelled) => {}
            Some(p) => {
                let message = format!("task {task} is {}: its output is here when it has ended", p.name());
                return Err(not_found(message).remedy("wait for it"));
            }
        }
        let mut history = self.history_of(job, Some(TaskSet::one(task)));
        let mut child = None;
        while let Some(batch) = history.recv().await {
            for e in batch?.entries {
                let holds = convert::tasks_in(e.tasks).is_ok_and(|t| t.contains(task));
                if holds
                    && e.ended.is_some()
                    && !e.stale
                    && let Some(hop) = e.child
                {
                    child = SiteId::from_slice(&hop.site);
                }
            }
        }
        let child = child.ok_or_else(|| not_found(format!("task {task} was never started: it has no output")))?;
        self.backend.output(child, job, task, name).await
    }
}

fn name(h: &pb::Host) -> &str {
    h.site.as_ref().map_or("", |s| &s.name)
}

fn unreachable_hop(site: pb::Hop, why: String) -> pb::Explanation {
    pb::Explanation { site: Some(site), unreachable: why, ..Default::default() }
}
