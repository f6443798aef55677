//! From messages to JSON objects for scripts. Field names are the project's words; a field, once written, keeps its name and meaning within a version.

use intergrid_proto::money::human_micro;
use intergrid_proto::phase::Exit;
use intergrid_proto::spec::OnLost;
use intergrid_proto::{JobSpec, ReasonKind, pb};
use serde_json::{Map, Value, json};

use super::{hex, kind, phase, tasks, want};

/// Why.
pub fn reason(r: &pb::Reason) -> Value {
    let because: Vec<Value> = r.because.iter().map(reason).collect();
    json!({
        "kind": ReasonKind::from_number(r.kind).word(),
        "text": r.text,
        "remedy": r.remedy,
        "age_ms": r.age_ms,
        "site": r.site_name,
        "because": because,
    })
}

fn counts(list: &[pb::PhaseCount]) -> (Value, Value) {
    let mut sums = Map::new();
    for c in list.iter().filter(|c| c.tasks > 0) {
        let sum = sums.get(&phase(c.phase)).and_then(Value::as_u64).unwrap_or(0) + c.tasks;
        sums.insert(phase(c.phase), json!(sum));
    }
    let reasons = list.iter().filter_map(|c| Some((c, c.reason.as_ref()?)));
    let reasons: Vec<Value> = reasons.map(|(c, r)| json!({"phase": phase(c.phase), "tasks": c.tasks, "reason": reason(r)})).collect();
    (Value::Object(sums), json!(reasons))
}

/// A job.
pub fn job(v: &pb::JobView) -> Value {
    let (phases, reasons) = counts(&v.counts);
    let sites: Vec<Value> = v.sites.iter().map(|s| json!({"site": hex(&s.site), "name": s.name, "active": s.active, "ended": s.ended})).collect();
    let mut object = json!({
        "job": v.id,
        "name": v.name,
        "owner": v.owner,
        "tasks": v.tasks,
        "phases": phases,
        "reasons": reasons,
        "sites": sites,
        "want": want(v.want),
        "tasks_at_once": v.tasks_at_once,
        "key": v.key,
        "age_ms": v.age_ms,
        "ended_age_ms": v.ended_age_ms,
        "spec_hash": hex(&v.spec_hash),
    });
    if let Some((cost, max)) = v.cost.as_ref().and_then(|c| Some((c, c.max.as_ref()?))) {
        object["cost"] = json!({
            "max": human_micro(max.micro), "spent": human_micro(cost.spent_micro), "reserved": human_micro(cost.reserved_micro), "currency": max.currency,
        });
    }
    if !v.ranges.is_empty() {
        let ranges: Vec<Value> = v.ranges.iter().map(range).collect();
        object["ranges"] = json!(ranges);
    }
    if let Ok(s) = JobSpec::decode(&v.spec) {
        object["spec"] = spec(&s);
    }
    object
}

fn range(r: &pb::TaskRange) -> Value {
    json!({"tasks": tasks(r.tasks.as_ref()).to_string(), "phase": phase(r.phase), "attempts": r.attempts, "exit": exits(&r.exit)})
}

fn exits(numbers: &[u32]) -> Value {
    json!(numbers.iter().map(|n| Exit::from_number(*n).to_string()).collect::<Vec<_>>())
}

fn spec(s: &JobSpec) -> Value {
    let file = |f: &intergrid_proto::spec::File| json!({"name": f.name, "hash": f.hash.to_string(), "size": f.size});
    json!({
        "argv": s.argv,
        "executable": s.executable.as_ref().map(file),
        "env": s.env.iter().map(|(n, v)| (n.clone(), json!(v))).collect::<Map<_, _>>(),
        "inputs": s.inputs.iter().map(file).collect::<Vec<_>>(),
        "outputs": s.outputs,
        "slots": s.shape.slots,
        "memory_bytes": s.shape.memory_bytes,
        "gpus": s.shape.gpus,
        "nodes": s.shape.nodes,
        "time_limit_ms": s.time_limit_ms,
        "on_lost": match s.on_lost { OnLost::Requeue => "requeue", OnLost::Wait => "wait" },
        "disconnect_timeout_ms": s.disconnect_timeout_ms,
        "attempts_max": s.attempts_max,
        "tasks_at_once": s.tasks_at_once,
        "max_cost": s.max_cost.as_ref().map(ToString::to_string),
        "trace_parent": s.trace_parent,
    })
}

/// One attempt that ended or was given back.
pub fn history(job: &str, e: &pb::HistoryEntry) -> Value {
    let mut object = json!({
        "job": job,
        "placement": e.number,
        "tasks": tasks(e.tasks.as_ref()).to_string(),
        "stale": e.stale,
        "age_ms": e.age_ms,
        "site": e.child.as_ref().map(hop),
    });
    if let Some(ended) = &e.ended {
        object["what"] = json!("ended");
        object["phase"] = json!(phase(ended.phase));
        object["exit"] = exits(&ended.exit);
        object["reason"] = ended.reason.as_ref().map_or(Value::Null, reason);
        object["attempts"] = json!(ended.attempts);
        object["lost"] = json!(ended.lost);
        object["route"] = json!(ended.route.iter().rev().map(hop).collect::<Vec<_>>());
        object["usage"] = json!({
            "wall_ms": ended.wall_ms,
            "cpu_us": ended.cpu_us,
            "peak_bytes": ended.peak_bytes,
            "measured": ended.measured,
            "cost": ended.cost_micro.iter().map(|m| human_micro(*m)).collect::<Vec<_>>(),
        });
        object["ended_age_ms"] = json!(ended.age_ms);
    } else if let Some(returned) = &e.returned {
        object["what"] = json!("returned");
        object["reason"] = returned.reason.as_ref().map_or(Value::Null, reason);
    }
    object
}

/// A site or agent.
pub fn hop(h: &pb::Hop) -> Value {
    json!({"site": hex(&h.site), "name": h.name, "kind": kind(h.kind)})
}

/// Why, from each hop.
pub fn explanation(e: &pb::Explanation) -> Value {
    let (phases, reasons_by_phase) = counts(&e.counts);
    json!({
        "site": e.site.as_ref().map(hop),
        "phases": phases,
        "phase_reasons": reasons_by_phase,
        "reasons": e.reasons.iter().map(reason).collect::<Vec<_>>(),
        "unreachable": e.unreachable,
        "below": e.below.iter().map(explanation).collect::<Vec<_>>(),
    })
}

/// A site and everything below it. What has ended is counted by sites, for all of their agents together, and so is what waits, but for what has been given
/// to a machine that has not started it; `done` counts whatever has ended,
/// as it did from the start: also what failed or was cancelled.
pub fn host(h: &pb::Host) -> Value {
    let counts = h.site.as_ref().is_none_or(|s| s.kind() != pb::Kind::Agent);
    json!({
        "site": h.site.as_ref().map(hop),
        "backend": h.backend,
        "endpoint": h.endpoint,
        "software": h.version,
        "slots_total": h.slots_total,
        "slots_free": h.slots_free,
        "memory_bytes": h.memory_bytes,
        "gpus": h.gpus,
        "running": h.running,
        "waiting": (counts || h.waiting > 0).then_some(h.waiting),
        "done": counts.then_some(h.done),
        "age_ms": h.age_ms,
        "unreachable": h.unreachable,
        "draining": h.draining.as_ref().map(reason),
        "shares": h.shares.iter().map(share).collect::<Vec<_>>(),
        "below": h.below.iter().map(host).collect::<Vec<_>>(),
    })
}

fn share(s: &pb::Share) -> Value {
    json!({
        "share": s.key,
        "origin": s.origin_name,
        "route": s.path.iter().map(|p| hex(p)).collect::<Vec<_>>(),
        "machines": s.machines,
        "machine_slots": s.machine_slots,
        "machine_memory_bytes": s.machine_memory_bytes,
        "machine_gpus": s.machine_gpus,
        "gpus_total": s.gpus_total,
        "nodes_max": s.nodes_max.max(1),
        "architecture": s.architecture,
        "slots_total": s.slots_total,
        "slots_free": s.slots_free,
        "largest_free": s.largest_free,
        "waiting": s.waiting,
        "draining": s.draining,
        "draining_reason": s.draining_reason,
        "not_rented": s.not_rented,
        "bound": s.bound,
        "time_max_ms": (s.time_max_ms > 0).then_some(s.time_max_ms),
        "wait_ms": s.wait_ms,
        "age_ms": s.age_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use intergrid_proto::Phase;

    #[test]
    fn a_job_has_its_words() {
        let spec = JobSpec::new(["true"]).encode();
        let counts = vec![pb::PhaseCount { phase: Phase::Queued as i32, tasks: 3, reason: Some(pb::Reason { kind: 4, ..Default::default() }) }];
        let object = job(&pb::JobView { id: "7k2m9p".into(), tasks: 3, counts, spec, ..Default::default() });
        assert_eq!(json!({"queued": 3}), object["phases"]);
        assert_eq!(("all-busy", "requeue"), (object["reasons"][0]["reason"]["kind"].as_str().unwrap(), object["spec"]["on_lost"].as_str().unwrap()));
    }

    #[test]
    fn an_attempt_tells_its_route_from_the_top() {
        let hop = |name: &str| pb::Hop { name: name.into(), ..Default::default() };
        let ended =
            pb::Ended { phase: Phase::Done as i32, exit: vec![0], route: vec![hop("campus-1"), hop("campus"), hop("eu")], ..Default::default() };
        let object = history("7k", &pb::HistoryEntry { number: 3, ended: Some(ended), ..Default::default() });
        let route: Vec<&str> = object["route"].as_array().unwrap().iter().map(|h| h["name"].as_str().unwrap()).collect();
        assert_eq!((vec!["eu", "campus", "campus-1"], "exit 0"), (route, object["exit"][0].as_str().unwrap()));
    }
}
