//! Rented machines: R1.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use intergrid_proto::{JobSpec, pb};
use intergrid_tests::client::Client;
use tokio::runtime::Runtime;

use super::runtime;
use crate::record::{Result, spread};
use crate::tree::{GATEWAY, Plan, Tree, until};
use crate::{Bench, ours};

/// A machine is rented, boots and runs its task by then.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the root.
const LOOK: Duration = Duration::from_millis(2);
const DAY_NS: u64 = 86_400_000_000_000;

/// Machines of one slot, which are processes; as many as are asked for.
fn catalogue(agent: &Path, machines: u32) -> String {
    format!(
        "\n[cloud]\nprovider = \"process\"\nprogram = \"{}\"\nslots_max = {machines}\nidle = \"1h\"\ncurrency = \"EUR\"\nbudget = {{ hour = \"1000\" }}\n\n\
         [[cloud.type]]\nname = \"small\"\nslots = 1\nmemory = \"64M\"\nprice = \"0.10\"\nbilling = \"second\"\n",
        agent.display()
    )
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// When the gateway's log says that an agent has attached, before the engine hears of it: nanoseconds of the day.
fn attached_ns(log: &str, name: &str) -> Option<u64> {
    let line = log.lines().find(|l| l.contains(" attached ") && l.contains(&format!(" {name} ")))?;
    let (h, rest) = line.split_once('T')?.1.split_once('Z')?.0.split_once(':')?;
    let (m, s) = rest.split_once(':')?;
    let minutes = h.parse::<u64>().ok()? * 60 + m.parse::<u64>().ok()?;
    let seconds: f64 = s.parse().ok()?;
    Some(minutes * 60_000_000_000 + (seconds * 1e9) as u64)
}

/// From an attach to a time after it; seconds.
fn since(attached: u64, at: u64) -> f64 {
    ((at % DAY_NS + DAY_NS - attached) % DAY_NS) as f64 / 1e9
}

/// What the root shows of a machine of this tree that is not known yet: its name once its row is there with its slots, and once it is listed as up.
fn shown(root: &pb::Host, known: &BTreeSet<String>) -> (Option<String>, bool) {
    let name = |h: &pb::Host| h.site.as_ref().map(|s| s.name.clone()).unwrap_or_default();
    let Some(gateway) = std::iter::successors(root.below.first(), |h| h.below.first()).find(|h| name(h) == GATEWAY) else { return (None, false) };
    let row = gateway.below.iter().find(|h| !known.contains(&name(h)) && h.slots_total > 0 && h.unreachable.is_empty()).map(name);
    let listed = row.as_ref().is_some_and(|row| gateway.machines.iter().any(|m| m.name == *row && (m.state == "idle" || m.state == "working")));
    (row, listed)
}

/// Seconds from a machine's attach.
struct Times {
    row: f64,
    listed: f64,
    task: f64,
}

/// One task comes, for which one machine is rented.
fn one(tree: &Tree, runtime: &Runtime, client: &Client, known: &mut BTreeSet<String>) -> Result<Times> {
    let file = tree.path("marks")?.join(known.len().to_string());
    let spec = JobSpec::new(["/bin/sh".to_string(), "-c".into(), format!("date +%s%N > '{}'; exec sleep 3600", file.display())]);
    runtime.block_on(client.submit(&format!("r{}", known.len()), &spec, 1)).map_err(|r| r.to_string())?;
    let (began, mut row, mut listed) = (Instant::now(), None, None);
    while listed.is_none() {
        let host = runtime.block_on(client.grid.clone().hosts(pb::HostsRequest::default())).map_err(|e| e.to_string())?.into_inner();
        let (at, (name, up)) = (now_ns(), shown(&host, known));
        if let (Some(name), None) = (name, &row) {
            row = Some((name, at));
        }
        if up {
            listed = Some(at);
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("no machine within {PATIENCE:?}; the root shows {host:?}"));
        }
        sleep(LOOK);
    }
    let ((name, row), listed) = row.zip(listed).ok_or("no row")?;
    let task: u64 = until("the task's mark", PATIENCE, || {
        fs::read_to_string(&file).map_err(|e| e.to_string())?.trim().parse().map_err(|_| "half of it".to_string())
    })?;
    let log = tree.path(GATEWAY)?.join("log");
    let log = fs::read_to_string(&log).map_err(|e| format!("{}: {e}", log.display()))?;
    let attached = attached_ns(&log, &name).ok_or_else(|| format!("the log does not say when {name} attached"))?;
    known.insert(name);
    Ok(Times { row: since(attached, row), listed: since(attached, listed), task: since(attached, task) })
}

/// R1.
pub fn attached(b: &mut Bench) -> Result<()> {
    let n: u32 = b.pick(30, 3);
    for depth in [1, 3] {
        let plan = Plan { agents: 0, ..b.plan(depth, false) };
        let mut tree = Tree::prepare(&b.programs, plan)?.with_section(catalogue(&b.programs.agent, n));
        tree.start_all()?;
        let runtime = runtime()?;
        let client = runtime.block_on(tree.client(&tree.root()))?;
        let (mut known, mut rows, mut listed, mut tasks) = (BTreeSet::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..n {
            // Out of step with everything that is periodic.
            sleep(Duration::from_millis(103));
            let times = one(&tree, &runtime, &client, &mut known)?;
            rows.push(times.row);
            listed.push(times.listed);
            tasks.push(times.task);
        }
        for (what, samples) in [(ROW, rows), (LISTED, listed), (TASK, tasks)] {
            if let Some(s) = spread(samples.clone()) {
                eprintln!("    {what}: median {:.1}, {:.1} to {:.1} ms", s.median * 1e3, s.min * 1e3, s.max * 1e3);
            }
            b.keep_samples(ours(what, 0, depth, 0), samples, 0);
        }
    }
    Ok(())
}

const ROW: &str = "a machine attaches; until its row is at the root";
const LISTED: &str = "the same, until `grid machines` lists it as up";
const TASK: &str = "the same, until its first task runs";

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, slots_total: u64, below: Vec<pb::Host>) -> pb::Host {
        let site = Some(pb::Hop { name: name.into(), ..Default::default() });
        pb::Host { site, slots_total, below, ..Default::default() }
    }

    #[test]
    fn a_machine_is_found_below_any_number_of_brokers() {
        let mut gateway = host(GATEWAY, 1, vec![host("burst-m1", 1, Vec::new())]);
        gateway.machines = vec![pb::Machine { name: "burst-m1".into(), state: "idle".into(), ..Default::default() }];
        let root = host("b2", 1, vec![host("b1", 1, vec![gateway])]);
        assert_eq!((Some("burst-m1".to_string()), true), shown(&root, &BTreeSet::new()));
        assert_eq!((None, false), shown(&root, &BTreeSet::from(["burst-m1".to_string()])));
    }

    #[test]
    fn the_log_s_clock_is_the_system_s() {
        let log = "2026-11-22T00:00:01.250000Z  INFO service: attached agent=agent burst-m1 (0a) addr=None\n\
                   2026-11-22T23:59:59.750000Z  INFO service: attached agent=agent burst-m12 (0b) addr=None\n";
        assert_eq!(Some(1_250_000_000), attached_ns(log, "burst-m1"));
        let late = attached_ns(log, "burst-m12").unwrap();
        assert_eq!(0.5, since(late, 20_000 * DAY_NS + 250_000_000), "over midnight");
        assert_eq!(None, attached_ns(log, "burst-m2"));
    }
}
