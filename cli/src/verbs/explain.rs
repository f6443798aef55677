//! `explain`: why tasks wait or failed, from each hop. A hop that could not be asked is named, with since when.

use intergrid_proto::limits::TREE_CALL_TIMEOUT_MS;
use intergrid_proto::pb;

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
        object["job"] = serde_json::json!(job.id);
        out.object(object)?;
        return Ok(Ending::Well);
    }
    for (branch, line) in tree(out, &answer, 0).rows() {
        out.line(branch + &line)?;
    }
    out.next(format!("next: grid show {0}, grid history {0}", job.id))?;
    Ok(Ending::Well)
}

fn tree(out: &Out, e: &pb::Explanation, depth: usize) -> Tree<String> {
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
    let counted = e.counts.iter().filter_map(|c| {
        let mut why = why(out, c.reason.as_ref()?, 0);
        why.node = format!("{} {}: {}", c.tasks, render::phase(c.phase), why.node);
        Some(why)
    });
    let said: Vec<&pb::Reason> = e.counts.iter().filter_map(|c| c.reason.as_ref()).collect();
    let others = e.reasons.iter().filter(|r| !said.contains(r)).map(|r| why(out, r, 0));
    // A machine that has nothing to say is left out.
    let telling = e.below.iter().filter(|b| !(b.unreachable.is_empty() && b.counts.is_empty() && b.reasons.is_empty() && b.below.is_empty()));
    let below = counted.chain(others).chain(telling.map(|b| tree(out, b, depth + 1))).collect();
    Tree { node, below }
}

fn why(out: &Out, r: &pb::Reason, depth: usize) -> Tree<String> {
    let since = if r.age_ms >= 1_000 { format!(" (since {})", render::duration(r.age_ms)) } else { String::new() };
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
        let count = |phase: Phase, tasks, reason| pb::PhaseCount { phase: phase as i32, tasks, reason };
        let explanation = pb::Explanation {
            site: hop("root", pb::Kind::Broker),
            counts: vec![count(Phase::Queued, 58, Some(busy)), count(Phase::Running, 6, None)],
            below: vec![
                pb::Explanation { site: hop("eu", pb::Kind::Broker), counts: vec![count(Phase::Running, 6, None)], ..Default::default() },
                pb::Explanation { site: hop("idle", pb::Kind::Agent), ..Default::default() },
                pb::Explanation { site: hop("burst", pb::Kind::Gateway), unreachable: "no answer since 12s".into(), ..Default::default() },
            ],
            ..Default::default()
        };
        let out = Out::new(&Default::default(), false);
        let lines: Vec<String> = tree(&out, &explanation, 0).rows().into_iter().map(|(b, l)| b + &l).collect();
        assert_eq!(
            vec![
                "root (broker): running 6, queued 58",
                "├─ 58 queued: all-busy: 10 of 10 slots are used (since 3s)",
                "│  └─ back-off",
                "├─ eu (broker): running 6",
                "└─ burst (gateway): unreachable, no answer since 12s",
            ],
            lines
        );
    }
}
