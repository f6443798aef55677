//! Change and failure: P1, F1, F2.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use intergrid_proto::pb;
use intergrid_tests::client::Client;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::runtime::Runtime;

use super::latency::until_idle;
use super::{runtime, to_the_end};
use crate::hq::Hq;
use crate::record::{HQ, Record, Result};
use crate::tree::{GATEWAY, Plan, Tree, until};
use crate::{Bench, ours};

/// What has to come, comes in this time.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks at a site's own count.
const LOOK: Duration = Duration::from_micros(500);
/// Of a task whose agent is stopped.
const DISCONNECT: Duration = Duration::from_secs(2);
/// HyperQueue takes 24 s to notice that a worker is stopped.
const HQ_STOPS: u32 = 2;

/// Until the site's own count of slots is this; seconds from `began`.
fn until_slots(runtime: &Runtime, client: &Client, slots: u64, began: Instant) -> Result<f64> {
    loop {
        // It answers for itself; who is below has no time to.
        let host = runtime.block_on(client.grid.clone().hosts(pb::HostsRequest { deadline_ms: 1 })).map_err(|e| e.to_string())?.into_inner();
        if host.slots_total == slots {
            return Ok(began.elapsed().as_secs_f64());
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("{slots} slots at the root: not within {PATIENCE:?}; it shows {}", host.slots_total));
        }
        sleep(LOOK);
    }
}

/// P1.
pub fn capacity(b: &mut Bench) -> Result<()> {
    let n = b.pick(100, 5);
    let runtime = runtime()?;
    for depth in [1, 2, 4, 8] {
        let plan = Plan { agents: 2, ..b.plan(depth, false) };
        let each = u64::from(plan.slots);
        let mut tree = Tree::start(&b.programs, plan)?;
        let client = runtime.block_on(tree.client(&tree.root()))?;
        let (mut lost, mut won) = (Vec::new(), Vec::new());
        for _ in 0..n {
            // Out of step with everything that is periodic.
            sleep(Duration::from_millis(103));
            let began = Instant::now();
            tree.signal("a2", Signal::KILL)?;
            lost.push(until_slots(&runtime, &client, each, began)?);
            let began = Instant::now();
            tree.spawn_part("a2")?;
            won.push(until_slots(&runtime, &client, each * 2, began)?);
        }
        b.keep_samples(ours("an agent is killed", 0, depth, 0), lost, 0);
        b.keep_samples(ours("an agent attaches, its exec included", 0, depth, 0), won, 0);
    }
    Ok(())
}

/// Lines of a file that payloads append to.
fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(String::from).collect()
}

/// A payload that says its pid and stays.
fn stays(marks: &Path) -> String {
    format!("echo $$ >> '{}'; exec sleep 600", marks.display())
}

/// Until the payload has been started so often; the pid of the latest.
fn until_started(marks: &Path, times: usize) -> Result<i32> {
    until(&format!("start {times}"), PATIENCE, || {
        let lines = lines(marks);
        match lines.len() >= times {
            true => lines.last().and_then(|l| l.parse().ok()).ok_or_else(|| format!("{lines:?}")),
            false => Err(format!("{} starts", lines.len())),
        }
    })
}

fn parent_of(pid: i32) -> u32 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok()).unwrap_or(0)
}

fn kill_group(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        _ = kill_process_group(pid, Signal::KILL);
    }
}

/// F1.
pub fn killed(b: &mut Bench) -> Result<()> {
    let n = b.pick(20, 3);
    let mut tree = b.tree(0, false)?;
    let mut times = Vec::new();
    for i in 0..n {
        let marks = tree.path("marks")?.join(i.to_string());
        to_the_end(tree.verb(GATEWAY, &["submit", "--", "/bin/sh", "-c", &stays(&marks)])?)?;
        let payload = until_started(&marks, 1)?;
        tree.signal("a1", Signal::KILL)?;
        kill_group(payload);
        let began = Instant::now();
        tree.spawn_part("a1")?;
        until_started(&marks, 2)?;
        times.push(began.elapsed().as_secs_f64());
        to_the_end(tree.verb(GATEWAY, &["cancel", "last"])?)?;
        until_idle(&tree)?;
    }
    b.keep_samples(ours("agent and task killed; from the agent's restart to the task's", 0, 0, 0), times, 0);
    if let Some(program) = b.hq.clone() {
        let times = elsewhere_hq(b, &program, n, Signal::KILL)?;
        let what = "worker killed, another is there; from the kill to the task's restart".to_string();
        b.keep_samples(Record { system: HQ.into(), what, ..Record::default() }, times, 0);
    }
    Ok(())
}

/// A signal to the worker that runs a task, until another one runs it.
fn elsewhere_hq(b: &Bench, program: &Path, n: u32, signal: Signal) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for _ in 0..n {
        let mut hq = Hq::start(program, &b.work, 2, None)?;
        let marks = hq.dir().join("marks");
        to_the_end(hq.submit(&["--crash-limit", "10"], &["/bin/sh", "-c", &stays(&marks)]))?;
        let payload = until_started(&marks, 1)?;
        let at = hq.workers.iter().position(|w| w.id() == parent_of(payload)).ok_or("no worker runs the task")?;
        let mut worker = hq.workers.remove(at);
        let began = Instant::now();
        let sent = kill_process(Pid::from_child(&worker), signal).map_err(|e| e.to_string());
        let again = until_started(&marks, 2);
        times.push(began.elapsed().as_secs_f64());
        _ = worker.kill();
        _ = worker.wait();
        sent?;
        kill_group(payload);
        to_the_end(hq.verb(&["job", "cancel", "all"]))?;
        kill_group(again?);
    }
    Ok(times)
}

/// F2.
pub fn stopped(b: &mut Bench) -> Result<()> {
    let n = b.pick(10, 1);
    let mut tree = Tree::start(&b.programs, Plan { agents: 2, slots: 1, ..b.plan(0, false) })?;
    let mut times = Vec::new();
    let timeout = format!("{}s", DISCONNECT.as_secs());
    for i in 0..n {
        let marks = tree.path("marks")?.join(i.to_string());
        to_the_end(tree.verb(GATEWAY, &["submit", "--disconnect-timeout", &timeout, "--", "/bin/sh", "-c", &stays(&marks)])?)?;
        let payload = until_started(&marks, 1)?;
        let agent = ["a1", "a2"].into_iter().find(|a| tree.pid(a) == Ok(parent_of(payload))).ok_or("no agent runs the task")?;
        let began = Instant::now();
        tree.signal(agent, Signal::STOP)?;
        let again = until_started(&marks, 2);
        times.push((began.elapsed().saturating_sub(DISCONNECT)).as_secs_f64());
        tree.signal(agent, Signal::CONT)?;
        again?;
        to_the_end(tree.verb(GATEWAY, &["cancel", "last"])?)?;
        until_idle(&tree)?;
        tree.until_slots(PATIENCE)?;
    }
    b.keep_samples(ours("from SIGSTOP to the task's start elsewhere, less its disconnect time-out", 0, 0, 0), times, 0);
    if let Some(program) = b.hq.clone() {
        let times = elsewhere_hq(b, &program, b.pick(HQ_STOPS, 1), Signal::STOP)?;
        b.keep_samples(Record { system: HQ.into(), what: "from SIGSTOP to the task's start elsewhere".into(), ..Record::default() }, times, 0);
    }
    Ok(())
}
