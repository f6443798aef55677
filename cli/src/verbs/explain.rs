//! `explain`: why tasks wait or failed, from each hop. A hop that could not be asked is named, with since when.

use intergrid_proto::limits::TREE_CALL_TIMEOUT_MS;
use intergrid_proto::{ReasonKind, pb};

use crate::names::JobName;
use crate::out::{Out, Paint};
use crate::render::tree::Tree;
use crate::render::{self, objects};
use crate::stop::{Ending, Result};
use crate::verbs::Context;

/// Deeper reasons and sites are left out.
const DEPTH_MAX: usize = 32;

/// Ask through every hop.
pub async fn run(context: &Context<'_>, job: &JobName) -> Result<Ending> {
    let request = pb::JobRequest { deadline_ms: TREE_CALL_TIMEOUT_MS as u32, ..job.request() };
    let answer = context.client.call("explain", async |mut grid| grid.explain(request.clone()).await).await?;
    let out = context.out;
    if out.json {
        let mut object = objects::explanation(&answer);
        object["job"] = serde_json::json!(answer.job);
        out.object(object)?;
        return Ok(Ending::Well);
    }
    for (branch, line) in tree(out, &answer, &[], 0).rows() {
        out.line(branch + &line)?;
    }
    out.next(format!("next: grid show {0}, grid history {0}", answer.job))?;
    Ok(Ending::Well)
}

/// What a hop above has said already is not said again: an end's reason comes up through every hop.
fn tree(out: &Out, e: &pb::Explanation, above: &[&pb::Reason], depth: usize) -> Tree<String> {
    let (name, kind) = e.site.as_ref().map_or(("?", "site"), |s| (s.name.as_str(), render::kind(s.kind)));
    let site = format!("{} ({kind})", out.paint(Paint::Bold, name));
    if !e.unreachable.is_empty() {
        return Tree { node: format!("{site}: {}", out.paint(Paint::Bad, &format!("unreachable, {}", e.unreachable))), below: Vec::new() };
    }
    let phases = render::phases(&e.counts);
    let node = if phases.is_empty() { site } else { format!("{site}: {phases}") };
    if depth > DEPTH_MAX {
        return Tree { node, below: Vec::new() };
    }
    let counted = e.counts.iter().filter_map(|c| Some((c, c.reason.as_ref()?))).filter(|(_, r)| !above.iter().any(|s| render::same_reason(s, r)));
    let counted: Vec<Tree<String>> = counted
        .map(|(c, r)| {
            let mut why = why(out, r, 0);
            why.node = format!("{} {}: {}", c.tasks, render::phase(c.phase), why.node);
            why
        })
        .collect();
    let mut said = above.to_vec();
    said.extend(e.counts.iter().filter_map(|c| c.reason.as_ref()));
    let mut others = Vec::new();
    for r in &e.reasons {
        // That somebody holds tasks is said of those that are held; that such tasks came back here is of no use to him.
        if r.kind != ReasonKind::HeldByUser.number() && !said.iter().any(|s| render::same_reason(s, r)) {
            others.push(why(out, r, 0));
            said.push(r);
        }
    }
    let hops = e.below.iter().filter(|b| tells(b, depth)).map(|b| tree(out, b, &said, depth + 1));
    let below = counted.into_iter().chain(others).chain(hops).collect();
    Tree { node, below }
}

/// Whoever has nothing to say, nor anybody below, is left out.
fn tells(e: &pb::Explanation, depth: usize) -> bool {
    let own = !(e.unreachable.is_empty() && e.counts.is_empty() && e.reasons.is_empty());
    own || depth <= DEPTH_MAX && e.below.iter().any(|b| tells(b, depth + 1))
}

fn why(out: &Out, r: &pb::Reason, depth: usize) -> Tree<String> {
    let since = if r.age_ms >= 1_000 { format!(" (for {})", render::duration(r.age_ms)) } else { String::new() };
    let node = format!("{}{}", out.paint(Paint::Warn, &render::reason(r)), out.paint(Paint::Dim, &since));
    let below = if depth > DEPTH_MAX { Vec::new() } else { r.because.iter().map(|b| why(out, b, depth + 1)).collect() };
    Tree { node, below }
}

#[cfg(test)]
mod tests {
    use super::*;
    use intergrid_proto::Phase;

    #[test]
    fn reasons_of_every_hop() {
        let hop = |name: &str, kind: pb::Kind| Some(pb::Hop { name: name.into(), kind: kind.into(), ..Default::default() });
        let reason = |kind, text: &str, age_ms| pb::Reason { kind, text: text.into(), age_ms, ..Default::default() };
        let busy = pb::Reason { because: vec![reason(6, "", 0)], ..reason(4, "10 of 10 slots are used", 3_000) };
        let failed = reason(32, "exit code 3", 0);
        let count = |phase: Phase, tasks, reason| pb::PhaseCount { phase: phase as i32, tasks, reason };
        let explanation = pb::Explanation {
            site: hop("root", pb::Kind::Broker),
            reasons: vec![pb::Reason { age_ms: 3_001, ..busy.clone() }],
            counts: vec![count(Phase::Queued, 58, Some(busy)), count(Phase::Failed, 2, Some(failed.clone())), count(Phase::Running, 6, None)],
            below: vec![
                pb::Explanation {
                    site: hop("eu", pb::Kind::Broker),
                    counts: vec![
                        count(Phase::Running, 6, None),
                        count(Phase::Failed, 2, Some(failed.clone())),
                        count(Phase::Queued, 1, Some(reason(4, "2 of 2", 0))),
                    ],
                    ..Default::default()
                },
                pb::Explanation { site: hop("idle", pb::Kind::Agent), ..Default::default() },
                pb::Explanation { site: hop("burst", pb::Kind::Gateway), unreachable: "no answer since 12s".into(), ..Default::default() },
            ],
            ..Default::default()
        };
        let out = Out::new(&Default::default(), false);
        let lines: Vec<String> = tree(&out, &explanation, &[], 0).rows().into_iter().map(|(b, l)| b + &l).collect();
        assert_eq!(
            vec![
                "root (broker): failed 2, running 6, queued 58",
                "├─ 58 queued: all-busy: 10 of 10 slots are used (for 3s)",
                "│  └─ back-off",
                "├─ 2 failed: exit-code: exit code 3",
                "├─ eu (broker): failed 2, running 6, queued 1",
                "│  └─ 1 queued: all-busy: 2 of 2",
                "└─ burst (gateway): unreachable, no answer since 12s",
            ],
            lines
        );
    }
}
