//! Questions that go down the tree: explain, hosts, outputs. Each hop leaves the next a little less time, and names those that do not answer.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use intergrid_proto::limits::TREE_CALL_TIMEOUT_MS;
use intergrid_proto::link::Kind;
use intergrid_proto::{Phase, Refusal, RefusalKind, SiteId, TaskSet, convert, pb};

use super::{Service, answers};
use crate::backend::{Configured, Content};
use crate::core::away::Away;

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

pub(super) fn less(deadline: Duration) -> Duration {
    deadline.saturating_sub(HOP_MARGIN).max(DEADLINE_MIN)
}

impl Service {
    pub(super) async fn explain_tree(&self, job: u64, tasks: Option<TaskSet>, deadline: Duration) -> Result<pb::Explanation, Refusal> {
        let asked = tasks.clone();
        let found = self.of_job(job, true, move |core, j| {
            let (own, children) = core.explanation(j, asked.as_ref());
            let children: Vec<_> = children.into_iter().map(|c| (core.away(c.site, Some(job)), c)).collect();
            (own, children)
        });
        let (mut own, children) = found.await?;
        let left = less(deadline);
        let causes = self.causes();
        let answers = children.into_iter().map(|(away, child)| {
            let call = self.backend.explain(child.site, job, tasks.clone(), left);
            let away = away.map(|a| told(a, &causes));
            async move {
                let answer = match away {
                    Some(why) => Err(why),
                    None => within(left, call).await,
                };
                match answer {
                    Ok(e) => answers::of_explanation(e, child.into()),
                    Err(why) => pb::Explanation { site: Some(child.into()), unreachable: why, ..Default::default() },
                }
            }
        });
        own.below = join_all(answers).await;
        answers::fit_explanations(&mut own.below);
        Ok(own)
    }

    pub(super) async fn hosts_tree(&self, deadline: Duration) -> Result<pb::Host, Refusal> {
        let causes = self.causes();
        let (mut me, children) = self
            .engine
            .look(move |core| {
                let (me, mut children) = core.host();
                for (id, host) in &mut children {
                    if let Some(away) = core.away(*id, None) {
                        host.unreachable = told(away, &causes);
                    }
                }
                (me, children)
            })
            .await?;
        me.backend = self.backend.kind().into();
        me.endpoint = self.endpoint.clone();
        let account = self.backend.account();
        (me.machines, me.spending, me.currency) = (account.machines, account.spending, account.currency);
        let left = less(deadline);
        let known: Vec<String> = children.iter().filter_map(|(_, h)| h.site.as_ref()).map(|s| s.name.clone()).collect();
        let asked = children.into_iter().map(|(id, seen)| self.host_of(id, seen, left));
        me.below = join_all(asked).await;
        answers::fit_hosts(&mut me.below);
        let kind = if self.backend.kind() == "federation" { pb::Kind::Gateway } else { pb::Kind::Agent };
        for Configured { name, endpoint, unreachable } in self.backend.configured() {
            if !known.contains(&name) {
                let site = Some(pb::Hop { name, kind: kind.into(), ..Default::default() });
                let unreachable =
                    format!("never since this site started: {}", if unreachable.is_empty() { "it says hello just now" } else { &unreachable });
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
        match within(left, self.backend.hosts(id, left)).await {
            Ok(host) => {
                let mut host = answers::of_host(host, seen.site);
                if seen.draining.is_some() {
                    (host.draining, host.slots_free) = (seen.draining, 0);
                }
                host
            }
            Err(unreachable) => pb::Host { unreachable, ..seen },
        }
    }

    /// What the backend has against configured children, by name: later than what the engine was told when contact was lost.
    fn causes(&self) -> BTreeMap<String, String> {
        self.backend.configured().into_iter().filter(|c| !c.unreachable.is_empty()).map(|c| (c.name, c.unreachable)).collect()
    }

    /// An output, from where its task ended last.
    pub(super) async fn output_of(&self, job: u64, task: u32, name: String) -> Result<Content, Refusal> {
        let phase = self.of_job(job, true, move |_, j| j.cell(task).phase()).await?;
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
        match self.backend.output(child, job, task, name).await {
            Err(r) if r.kind == RefusalKind::Unavailable => Err(self.output_away(child, task).await.unwrap_or(r)),
            answer => answer,
        }
    }

    /// The site that has an output is away.
    async fn output_away(&self, child: SiteId, task: u32) -> Option<Refusal> {
        let away = self.engine.read(move |core| core.away(child, None)).await.ok()??;
        // An ended machine is not back again.
        away.for_ms?;
        let (name, causes) = (away.name.clone(), self.causes());
        // What becomes of tasks that have not ended is of no use to who wants the output of one that has.
        let away = Away { go: (0, 0), stay: 0, ..away };
        let message = format!("the output of task {task} is at {name}, which is unreachable {}", told(away, &causes));
        Some(Refusal::new(RefusalKind::Unavailable, message).remedy(format!("ask again when {name} is back")))
    }
}

fn name(h: &pb::Host) -> &str {
    h.site.as_ref().map_or("", |s| &s.name)
}

fn told(away: Away, causes: &BTreeMap<String, String>) -> String {
    let why = causes.get(&away.name).cloned().unwrap_or_else(|| away.why.clone());
    Away { why, ..away }.text()
}

/// The answer of a child that is attached; else in one clause why there is none.
async fn within<T>(left: Duration, call: impl Future<Output = Result<T, Refusal>>) -> Result<T, String> {
    match tokio::time::timeout(left, call).await {
        Ok(answer) => answer.map_err(|r| r.message),
        Err(_) => Err(format!("attached, but no answer within {} ms", left.as_millis())),
    }
}
