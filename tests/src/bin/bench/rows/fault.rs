//! Change and failure: P1, F1, F2, F3.

use std::collections::BTreeSet;
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

const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks at a site's own count.
const LOOK: Duration = Duration::from_micros(500);
/// Of a task whose agent is stopped.
const DISCONNECT: Duration = Duration::from_secs(2);

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
        let times = elsewhere_hq(b, &program, n, Signal::STOP)?;
        b.keep_samples(Record { system: HQ.into(), what: "from SIGSTOP to the task's start elsewhere".into(), ..Record::default() }, times, 0);
    }
    Ok(())
}

/// What payloads wrote: tasks that never ran, starts beyond the first.
fn lost_and_doubled(marks: &Path, n: u64) -> (u64, u64) {
    let lines = lines(marks);
    let distinct = lines.iter().collect::<BTreeSet<_>>().len() as u64;
    (n - distinct.min(n), lines.len() as u64 - distinct)
}

impl Bench {
    fn keep_counts(&mut self, record: &Record, resumed: f64, marks: &Path) {
        let (lost, doubled) = lost_and_doubled(marks, record.n);
        let all = [
            ("tasks lost", lost as f64, "tasks"),
            ("tasks started twice", doubled as f64, "tasks"),
            ("from restart to the next start", resumed, "ms"),
        ];
        for (what, value, unit) in all {
            self.keep(Record { what: what.into(), value, unit: unit.into(), failures: lost, ..record.clone() });
        }
    }
}

/// F3.
pub fn gateway(b: &mut Bench) -> Result<()> {
    let (n, repetitions) = b.pick((100_000, 5), (2_000, 1));
    for r in 0..repetitions {
        let mut tree = b.tree(0, false)?;
        let marks = tree.path("marks")?.join("all");
        let payload = format!("echo {{i}} >> '{}'", marks.display());
        to_the_end(tree.verb(GATEWAY, &["submit", "-n", &n.to_string(), "--", "/bin/sh", "-c", &payload])?)?;
        let half = half(&marks, n)?;
        tree.signal(GATEWAY, Signal::KILL)?;
        // What its agent still had runs on; that is not what is waited for.
        let still = settled(&marks, half);
        let began = Instant::now();
        tree.start_part(GATEWAY)?;
        until("a start", PATIENCE, || if lines(&marks).len() > still { Ok(()) } else { Err("none".into()) })?;
        let resumed = began.elapsed().as_secs_f64() * 1e3;
        let (_, well) = to_the_end(tree.verb(GATEWAY, &["wait", "last"])?)?;
        let record = ours("", n, 0, r);
        b.keep_counts(&record, resumed, &marks);
        b.keep(Record { what: "the job's end is well".into(), value: f64::from(u8::from(well)), unit: "1: yes".into(), ..record });
        if let Some(program) = b.hq.clone() {
            gateway_hq(b, &program, n, r)?;
        }
    }
    Ok(())
}

fn half(marks: &Path, n: u64) -> Result<usize> {
    until("half of the starts", PATIENCE * 10, || {
        sleep(Duration::from_millis(20));
        let seen = lines(marks).len();
        if seen as u64 >= n / 2 { Ok(seen) } else { Err(format!("{seen} starts")) }
    })
}

/// Starts, when no more are made.
fn settled(marks: &Path, mut seen: usize) -> usize {
    loop {
        sleep(Duration::from_millis(300));
        let now = lines(marks).len();
        if now == seen {
            return now;
        }
        seen = now;
    }
}

fn gateway_hq(b: &mut Bench, program: &Path, n: u64, r: u32) -> Result<()> {
    let mut hq = Hq::start(program, &b.work, 1, Some("10ms"))?;
    let marks = hq.dir().join("marks");
    let payload = format!("echo $HQ_TASK_ID >> '{}'", marks.display());
    to_the_end(hq.submit(&["--crash-limit", "10", "--array", &format!("0-{}", n - 1)], &["/bin/sh", "-c", &payload]))?;
    half(&marks, n)?;
    hq.kill_server()?;
    let still = settled(&marks, 0);
    let began = Instant::now();
    hq.start_server()?;
    hq.start_worker()?;
    until("a start", PATIENCE, || if lines(&marks).len() > still { Ok(()) } else { Err("none".into()) })?;
    let resumed = began.elapsed().as_secs_f64() * 1e3;
    to_the_end(hq.verb(&["job", "wait", "all"]))?;
    let durability = "journal, flushed every 10 ms".to_string();
    b.keep_counts(&Record { system: HQ.into(), n, repetition: r, durability, ..Record::default() }, resumed, &marks);
    Ok(())
}
