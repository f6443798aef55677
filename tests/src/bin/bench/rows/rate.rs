//! Rates: T1, T2, T3, T4, C1, X1.

use std::path::PathBuf;
use std::time::Instant;

use intergrid_proto::{JobSpec, pb};
use intergrid_tests::client::{Client, submission};
use tokio_stream::StreamExt;

use super::{burst, runtime, samples, to_the_end};
use crate::hq::Hq;
use crate::record::{HQ, OURS, Record, Result};
use crate::tree::{Plan, Tree};
use crate::{Bench, machine, ours};

const WARM_UP: u64 = 1_000;
/// Brokers that the goals of T1 and T4 speak of.
const THREE: u32 = 3;
/// Brokers of each chain of C1.
const CHAINS: [u32; 5] = [0, 1, 2, 4, 8];
const TRUE: &[&str] = &["/bin/true"];

/// Of HyperQueue.
fn theirs(what: &str, n: u64, repetition: u32, durability: &str) -> Record {
    Record { system: HQ.into(), what: what.into(), n, repetition, durability: durability.into(), ..Record::default() }
}

fn hq_burst(hq: &Hq, n: u64) -> Result<(f64, u64)> {
    let (seconds, well) = to_the_end(hq.submit(&["--wait", "--array", &format!("0-{}", n - 1)], TRUE))?;
    Ok((seconds, if well { 0 } else { n }))
}

/// T1.
pub fn throughput(b: &mut Bench) -> Result<()> {
    let trees = [(0, b.tree(0, false)?), (THREE, b.tree(THREE, false)?)];
    let hq = b.hq.clone().map(|p| Hq::start(&p, &b.work, 1, None)).transpose()?;
    for (_, tree) in &trees {
        burst(tree, WARM_UP)?;
    }
    hq.as_ref().map(|hq| hq_burst(hq, WARM_UP)).transpose()?;
    for (n, repetitions) in b.pick(vec![(1_000, 5), (10_000, 5), (100_000, 3)], vec![(500, 1), (2_000, 1)]) {
        for r in 0..repetitions {
            let baseline = b.baseline(r)?;
            for (depth, tree) in &trees {
                let done = burst(tree, n)?;
                b.keep_burst(ours("array of /bin/true", n, *depth, r), done, baseline);
            }
            if let Some(hq) = &hq {
                let before = hq.workers.first().map_or(0.0, |w| machine::cpu(w.id()));
                let (seconds, failures) = hq_burst(hq, n)?;
                let used = hq.workers.first().map_or(0.0, |w| machine::cpu(w.id())) - before;
                b.keep_rate(theirs("array of /bin/true", n, r, "answer before it is durable"), seconds, failures, baseline);
                let cpu =
                    Record { value: used * 1e6 / n as f64, unit: "us/task".into(), ..theirs("array of /bin/true; CPU of the worker", n, r, "") };
                b.keep(cpu);
            }
        }
    }
    Ok(())
}

/// T2.
pub fn durable(b: &mut Bench) -> Result<()> {
    let tree = b.tree(0, false)?;
    burst(&tree, WARM_UP)?;
    let mut hqs = Vec::new();
    if let Some(program) = b.hq.clone() {
        for (period, what) in [("30s", "journal, flushed every 30 s"), ("10ms", "journal, flushed every 10 ms")] {
            let hq = Hq::start(&program, &b.work, 1, Some(period))?;
            hq_burst(&hq, WARM_UP)?;
            hqs.push((hq, what));
        }
    }
    let (n, repetitions) = b.pick((5_000, 3), (1_000, 1));
    for r in 0..repetitions {
        let baseline = b.baseline(r)?;
        let done = burst(&tree, n)?;
        b.keep_rate(ours("array of /bin/true", n, 0, r), done.seconds, done.failures, baseline);
        for (hq, what) in &hqs {
            let (seconds, failures) = hq_burst(hq, n)?;
            b.keep_rate(theirs(&format!("array of /bin/true, {what}"), n, r, what), seconds, failures, baseline);
        }
    }
    Ok(())
}

/// All of them over one stream; how many were refused.
pub(super) async fn stream(client: &Client, spec: &JobSpec, n: u64, key: &str) -> Result<u64> {
    let requests: Vec<pb::SubmitRequest> = (0..n).map(|i| submission(&format!("{key}-{i}"), spec, 1)).collect();
    let answers = client.grid.clone().submit_many(tokio_stream::iter(requests)).await.map_err(|e| e.to_string())?;
    let (mut taken, mut answers) = (0, answers.into_inner());
    while let Some(answer) = answers.next().await {
        taken += u64::from(answer.map_err(|e| e.to_string())?.reply.is_some());
    }
    Ok(n - taken)
}

/// T3.
pub fn separate(b: &mut Bench) -> Result<()> {
    let runtime = runtime()?;
    let spec = JobSpec::new(["/bin/true"]);
    let (n, repetitions) = b.pick((1_000, 3), (200, 1));
    let hq = b.hq.clone().map(|p| Hq::start(&p, &b.work, 1, None)).transpose()?;
    for (null, what) in [(true, "null executor"), (false, "tasks executed beside")] {
        let tree = b.tree(0, null)?;
        let client = runtime.block_on(tree.client(&tree.root()))?;
        runtime.block_on(stream(&client, &spec, n, "warm"))?;
        super::latency::until_idle(&tree)?;
        for r in 0..repetitions {
            let began = Instant::now();
            let failures = runtime.block_on(stream(&client, &spec, n, &format!("s{r}")))?;
            b.keep_rate(ours(format!("one stream, {what}"), n, 0, r), began.elapsed().as_secs_f64(), failures, 0.0);
            super::latency::until_idle(&tree)?;
            let (mut failures, began) = (0, Instant::now());
            for i in 0..n {
                let answer = runtime.block_on(client.submit(&format!("c{r}-{i}"), &spec, 1));
                failures += u64::from(answer.is_err());
            }
            b.keep_rate(ours(format!("one call after another, {what}"), n, 0, r), began.elapsed().as_secs_f64(), failures, 0.0);
            super::latency::until_idle(&tree)?;
            if !null {
                let root = tree.root();
                let each = b.pick(300, 50);
                let (times, failures) = samples(each, |_| tree.verb(&root, &["submit", "--", "/bin/true"]))?;
                b.keep_rate(ours("a client process each", each as u64, 0, r), times.iter().sum(), failures, 0.0);
                if let Some(hq) = &hq {
                    let (times, failures) = samples(each, |_| Ok(hq.submit(&[], TRUE)))?;
                    b.keep_rate(theirs("a client process each", each as u64, r, "answer before it is durable"), times.iter().sum(), failures, 0.0);
                }
            }
        }
    }
    Ok(())
}

/// T4.
pub fn dispatch(b: &mut Bench) -> Result<()> {
    let trees = [(0, b.tree(0, true)?), (THREE, b.tree(THREE, true)?)];
    for (_, tree) in &trees {
        burst(tree, WARM_UP)?;
    }
    let hq = b.hq_zero.clone().map(|p| Hq::start(&p, &b.work, 1, None)).transpose()?;
    hq.as_ref().map(|hq| hq_burst(hq, WARM_UP)).transpose()?;
    for (n, repetitions) in b.pick([(100_000, 5), (1_000_000, 5)], [(20_000, 1), (100_000, 1)]) {
        for r in 0..repetitions {
            for (depth, tree) in &trees {
                let done = burst(tree, n)?;
                b.keep_burst(ours("array, null executor", n, *depth, r), done, 0.0);
            }
            if let Some(hq) = &hq {
                let (seconds, failures) = hq_burst(hq, n)?;
                b.keep_rate(theirs("array, zero worker", n, r, "answer before it is durable"), seconds, failures, 0.0);
            }
        }
    }
    Ok(())
}

/// C1.
pub fn chain(b: &mut Bench) -> Result<()> {
    for (null, what, (n, repetitions)) in
        [(false, "array of /bin/true", b.pick((5_000, 3), (1_000, 1))), (true, "array, null executor", b.pick((100_000, 3), (20_000, 1)))]
    {
        let trees = CHAINS.into_iter().map(|depth| Ok((depth, b.tree(depth, null)?))).collect::<Result<Vec<_>>>()?;
        for (_, tree) in &trees {
            burst(tree, WARM_UP)?;
        }
        for r in 0..repetitions {
            let baseline = if null { 0.0 } else { b.baseline(r)? };
            for (depth, tree) in &trees {
                let done = burst(tree, n)?;
                b.keep_burst(ours(what, n, *depth, r), done, baseline);
            }
        }
        for (depth, tree) in trees.iter().filter(|_| !null) {
            super::latency::jobs(b, tree, *depth)?;
        }
    }
    Ok(())
}

/// X1.
pub fn unsynced(b: &mut Bench) -> Result<()> {
    let memory = PathBuf::from(machine::IN_MEMORY);
    if !memory.is_dir() {
        return Err(format!("{} is not there", memory.display()));
    }
    let disk = b.tree(0, false)?;
    let tmpfs = Tree::start(&b.programs, Plan { work: memory, ..b.plan(0, false) })?;
    let (n, repetitions) = b.pick((5_000, 3), (1_000, 1));
    for tree in [&disk, &tmpfs] {
        burst(tree, WARM_UP)?;
    }
    for r in 0..repetitions {
        let baseline = b.baseline(r)?;
        for (tree, what, durability) in [(&disk, "stores on disk", "answer after fdatasync"), (&tmpfs, "stores in memory", "none: tmpfs")] {
            let done = burst(tree, n)?;
            let record = Record { system: OURS.into(), durability: durability.into(), ..ours(format!("array of /bin/true, {what}"), n, 0, r) };
            b.keep_burst(record, done, baseline);
        }
    }
    Ok(())
}
