//! Latencies: L1, L2, L3.

use std::time::{Duration, Instant};

use intergrid_proto::JobSpec;

use super::{runtime, samples, to_the_end};
use crate::hq::Hq;
use crate::record::{HQ, Record, Result};
use crate::tree::{Tree, until};
use crate::{Bench, ours};

const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
const TRUE: &[&str] = &["/bin/true"];

/// Nothing waits and nothing runs.
pub fn until_idle(tree: &Tree) -> Result<()> {
    until("an idle tree", IDLE_TIMEOUT, || {
        let host = tree.ask(&["hosts"])?;
        match (host["waiting"].as_u64(), host["running"].as_u64()) {
            (Some(0), Some(0)) => Ok(()),
            _ => Err(host.to_string()),
        }
    })
}

fn theirs(what: &str) -> Record {
    Record { system: HQ.into(), what: what.into(), durability: "answer before it is durable".into(), ..Record::default() }
}

/// L1.
pub fn submit(b: &mut Bench) -> Result<()> {
    let (tree, deep) = (b.tree(0, false)?, b.tree(3, false)?);
    let (n, arrays) = b.pick((200, 50), (20, 5));
    for (depth, tree) in [(0, &tree), (3, &deep)] {
        let root = tree.root();
        let (times, failures) = samples(n, |_| tree.verb(&root, &["submit", "--", "/bin/true"]))?;
        b.keep_samples(ours("submit of one job", 0, depth, 0), times, failures);
        until_idle(tree)?;
        let (mut times, mut failures) = (Vec::new(), 0);
        for _ in 0..arrays {
            let (seconds, well) = to_the_end(tree.verb(&root, &["submit", "-n", "10000", "--", "/bin/true"])?)?;
            times.push(seconds);
            failures += u64::from(!well);
            to_the_end(tree.verb(&root, &["cancel", "last"])?)?;
            until_idle(tree)?;
        }
        b.keep_samples(ours("submit of an array of 10,000", 0, depth, 0), times, failures);
    }
    if let Some(program) = b.hq.clone() {
        let hq = Hq::start(&program, &b.work, 1, None)?;
        let (times, failures) = samples(n, |_| Ok(hq.submit(&[], TRUE)))?;
        b.keep_samples(theirs("submit of one job"), times, failures);
        let (mut times, mut failures) = (Vec::new(), 0);
        for _ in 0..arrays {
            let (seconds, well) = to_the_end(hq.submit(&["--array", "0-9999"], TRUE))?;
            times.push(seconds);
            failures += u64::from(!well);
            to_the_end(hq.verb(&["job", "cancel", "all"]))?;
            to_the_end(hq.verb(&["job", "wait", "all"]))?;
        }
        b.keep_samples(theirs("submit of an array of 10,000"), times, failures);
    }
    Ok(())
}

/// Submit and wait of one job, idle, as a process and over an open connection.
pub fn jobs(b: &mut Bench, tree: &Tree, depth: u32) -> Result<()> {
    let (n, root) = (b.pick(200, 20), tree.root());
    until_idle(tree)?;
    let (times, failures) = samples(n, |_| tree.verb(&root, &["submit", "--wait", "--", "/bin/true"]))?;
    b.keep_samples(ours("submit and wait of one job", 0, depth, 0), times, failures);
    let runtime = runtime()?;
    let client = runtime.block_on(tree.client(&root))?;
    let (spec, mut times) = (JobSpec::new(["/bin/true"]), Vec::new());
    for i in 0..n {
        let began = Instant::now();
        runtime.block_on(async {
            let (job, _) = client.submit(&format!("l{depth}-{i}"), &spec, 1).await.map_err(|r| r.to_string())?;
            client.ended(&job).await;
            Ok::<_, String>(())
        })?;
        times.push(began.elapsed().as_secs_f64());
        std::thread::sleep(Duration::from_millis(5));
    }
    b.keep_samples(ours("submit and wait of one job, open connection", 0, depth, 0), times, 0);
    Ok(())
}

/// L2.
pub fn job(b: &mut Bench) -> Result<()> {
    for depth in [0, 1, 3] {
        let tree = b.tree(depth, false)?;
        jobs(b, &tree, depth)?;
    }
    if let Some(program) = b.hq.clone() {
        let hq = Hq::start(&program, &b.work, 1, None)?;
        let (times, failures) = samples(b.pick(200, 20), |_| Ok(hq.submit(&["--wait"], TRUE)))?;
        b.keep_samples(theirs("submit and wait of one job"), times, failures);
    }
    Ok(())
}

/// L3.
pub fn cold(b: &mut Bench) -> Result<()> {
    let n = b.pick(20, 3);
    for depth in [0, 3] {
        let mut tree = b.tree(depth, false)?;
        let (mut times, mut failures) = (Vec::new(), 0);
        for _ in 0..n {
            tree.stop_all();
            let began = Instant::now();
            tree.start_all()?;
            let (_, well) = to_the_end(tree.verb(&tree.root(), &["submit", "--wait", "--", "/bin/true"])?)?;
            times.push(began.elapsed().as_secs_f64());
            failures += u64::from(!well);
        }
        b.keep_samples(ours("daemons started to first job done", 0, depth, 0), times, failures);
    }
    if let Some(program) = b.hq.clone() {
        let mut hq = Hq::start(&program, &b.work, 1, None)?;
        let (mut times, mut failures) = (Vec::new(), 0);
        for _ in 0..n {
            hq.stop();
            let began = Instant::now();
            hq.start_server()?;
            hq.start_worker()?;
            let (_, well) = to_the_end(hq.submit(&["--wait"], TRUE))?;
            times.push(began.elapsed().as_secs_f64());
            failures += u64::from(!well);
        }
        b.keep_samples(theirs("daemons started to first job done"), times, failures);
    }
    Ok(())
}
