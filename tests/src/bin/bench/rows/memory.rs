//! Memory: M1 of a site, M2 of the agent.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use intergrid_gateway::backends::fake::Fake;
use intergrid_gateway::config::{LimitsConfig, SiteConfig, TrustConfig};
use intergrid_proto::JobSpec;
use intergrid_proto::link::{Kind, WantValue};
use intergrid_proto::net::Role;
use intergrid_tests::client::submission;
use intergrid_tests::grid::try_gateway;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;

use super::{burst, runtime, to_the_end};
use crate::hq::Hq;
use crate::record::{HQ, Record, Result};
use crate::tree::{GATEWAY, Plan, Tree, until};
use crate::{Bench, machine, ours};

/// What was freed is given back by then.
const SETTLE: Duration = Duration::from_secs(2);
/// More than any machine here has: such a task waits for ever.
const NOWHERE: &str = "900G";
/// The same in bytes.
const NOWHERE_BYTES: u64 = 900 << 30;
/// Machines of the fake gateway, and slots of each.
const MACHINES: usize = 512;
const MACHINE_SLOTS: u32 = 8;
/// Its payloads take up to this.
const DELAY_MS_MAX: u64 = 400;
const HALF_TIMEOUT: Duration = Duration::from_secs(600);
/// One after the other waits for the disk each time.
const CANCELS_AT_ONCE: usize = 64;

impl Bench {
    fn keep_memory(&mut self, record: Record, mib: f64) {
        self.keep(Record { value: mib, unit: "MiB".into(), ..record });
    }
}

/// M1. What is idle varies from start to start; what waits is that much more, and is measured once.
pub fn site(b: &mut Bench) -> Result<()> {
    let (million, hundred) = b.pick((1_000_000, 100_000), (100_000, 5_000));
    (0..b.pick(3, 1)).try_for_each(|r| idle(b, r))?;
    for n in [hundred, million] {
        let tree = b.tree(0, true)?;
        to_the_end(tree.verb(GATEWAY, &["submit", "-n", &n.to_string(), "--mem", NOWHERE, "--", "/bin/true"])?)?;
        sleep(SETTLE);
        b.keep_memory(ours("queued as one array", n, 0, 0), tree.resident(GATEWAY)?);
    }
    fragmented(b, million)?;
    drained(b, million)?;
    separate(b, hundred)?;
    let Some(program) = b.hq.clone() else { return Ok(()) };
    let theirs = |what: &str, n| Record { system: HQ.into(), what: what.into(), n, ..Record::default() };
    let hq = Hq::start(&program, &b.work, 0, None)?;
    sleep(SETTLE);
    b.keep_memory(theirs("idle; the server", 0), machine::resident(hq.server_pid()));
    for n in [hundred, million] {
        let hq = Hq::start(&program, &b.work, 0, None)?;
        to_the_end(hq.submit(&["--array", &format!("0-{}", n - 1)], &["/bin/true"]))?;
        sleep(SETTLE);
        b.keep_memory(theirs("queued as one array", n), machine::resident(hq.server_pid()));
    }
    Ok(())
}

fn idle(b: &mut Bench, r: u32) -> Result<()> {
    let tree = b.tree(1, false)?;
    sleep(SETTLE);
    b.keep_memory(ours("idle; the gateway", 0, 1, r), tree.resident(GATEWAY)?);
    b.keep_memory(ours("idle; the broker", 0, 1, r), tree.resident("b1")?);
    burst(&tree, b.pick(10_000, 1_000))?;
    sleep(SETTLE);
    b.keep_memory(ours("idle after 10,000 x /bin/true; the gateway", 0, 1, r), tree.resident(GATEWAY)?);
    b.keep_memory(ours("idle after 10,000 x /bin/true; the broker", 0, 1, r), tree.resident("b1")?);
    Ok(())
}

fn drained(b: &mut Bench, n: u64) -> Result<()> {
    let tree = b.tree(0, true)?;
    let done = burst(&tree, n)?;
    b.keep_memory(Record { failures: done.failures, ..ours("all done, at once", n, 0, 0) }, tree.resident(GATEWAY)?);
    sleep(SETTLE);
    b.keep_memory(ours("all done, 2 s later", n, 0, 0), tree.resident(GATEWAY)?);
    Ok(())
}

fn separate(b: &mut Bench, n: u64) -> Result<()> {
    let (tree, runtime) = (b.tree(0, true)?, runtime()?);
    let client = runtime.block_on(tree.client(GATEWAY))?;
    let mut spec = JobSpec::new(["/bin/true"]);
    spec.shape.memory_bytes = NOWHERE_BYTES;
    let jobs: Vec<String> = runtime.block_on(async {
        let requests: Vec<_> = (0..n).map(|i| submission(&format!("m{i}"), &spec, 1)).collect();
        let answers = client.grid.clone().submit_many(tokio_stream::iter(requests)).await.map_err(|e| e.to_string())?;
        let answers: Vec<_> = answers.into_inner().collect().await;
        Ok::<_, String>(answers.into_iter().filter_map(|a| Some(a.ok()?.reply?.job)).collect())
    })?;
    let failures = n - jobs.len() as u64;
    sleep(SETTLE);
    b.keep_memory(Record { failures, ..ours("queued as separate jobs", n, 0, 0) }, tree.resident(GATEWAY)?);
    let began = Instant::now();
    runtime.block_on(async {
        for some in jobs.chunks(CANCELS_AT_ONCE) {
            let mut cancels = JoinSet::new();
            for job in some {
                let (client, job) = (client.clone(), job.clone());
                cancels.spawn(async move { client.want(&job, WantValue::Cancel).await.map_err(|r| format!("cancel: {r}")) });
            }
            while let Some(cancelled) = cancels.join_next().await {
                cancelled.map_err(|e| e.to_string())??;
            }
        }
        Ok::<_, String>(())
    })?;
    let seconds = began.elapsed().as_secs_f64();
    sleep(SETTLE);
    b.keep_memory(Record { seconds, ..ours("separate jobs, all cancelled", n, 0, 0) }, tree.resident(GATEWAY)?);
    Ok(())
}

/// A pseudo-random sequence: the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// A broker over a gateway of many small machines, in this process, that end tasks in no order and with many exit codes; half of the array ends.
fn fragmented(b: &mut Bench, n: u64) -> Result<()> {
    let mut tree = Tree::prepare(&b.programs, Plan { agents: 0, ..b.plan(1, true) })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    let fake = Fake::new("m", Kind::Agent, MACHINES, MACHINE_SLOTS, 8 << 30);
    let trust = TrustConfig { ca: tree.path("b1")?.join("identity/ca.pem"), may: [Role::Delegate].into(), on_behalf: vec!["*".into()] };
    let config = SiteConfig {
        name: GATEWAY.into(),
        listen: "127.0.0.1:0".into(),
        state: tree.path(GATEWAY)?.join("state"),
        identity: tree.path(GATEWAY)?.join("identity"),
        trust: vec![trust],
        parent: None,
        limits: LimitsConfig { store_free_min_bytes: 1 << 20, ..LimitsConfig::default() },
        metrics: None,
        traces: None,
    };
    let gateway = runtime.block_on(try_gateway(config, fake.clone())).map_err(|r| r.to_string())?;
    tree.stands_for(GATEWAY, &gateway.endpoint)?;
    tree.start_part("b1")?;
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    act(&fake, &mut random, false);
    to_the_end(tree.verb("b1", &["submit", "-n", &n.to_string(), "--", "/bin/true"])?)?;
    let client = runtime.block_on(tree.client("b1"))?;
    let mut ended = 0;
    let half = until("half of the array", HALF_TIMEOUT, || {
        act(&fake, &mut random, false);
        let host = runtime.block_on(client.hosts()).map_err(|r| r.to_string())?;
        ended = host.done;
        if host.done >= n / 2 { Ok(()) } else { Err(format!("{} ended", host.done)) }
    });
    act(&fake, &mut random, true);
    half?;
    sleep(SETTLE);
    b.keep_memory(ours("one array half done, out of order and with many exit codes; the broker", n, 1, 0), tree.resident("b1")?);
    drop(tree);
    runtime.shutdown_timeout(SETTLE);
    Ok(())
}

/// How the next payloads of each machine behave.
fn act(fake: &Arc<Fake>, random: &mut Random, never_end: bool) {
    for i in 0..MACHINES {
        fake.with(i, |c| {
            c.acting.delay_ms = 1 + random.below(DELAY_MS_MAX);
            c.acting.fail_next = Some((random.below(5) as u32, 1 + random.below(7) as u8));
            c.acting.never_end = never_end;
        });
    }
}

/// M2. All repetitions are idle at once.
pub fn agent(b: &mut Bench) -> Result<()> {
    for (what, path) in [("size of grid-agent", b.programs.agent.clone()), ("size of grid", b.programs.grid.clone())] {
        let size = std::fs::metadata(&path).map_err(|e| format!("{}: {e}", path.display()))?.len();
        b.keep(Record { value: size as f64 / 1e6, unit: "MB".into(), ..ours(what, 0, 0, 0) });
    }
    let (seconds, repetitions) = b.pick((60, 3), (10, 1));
    let (mut trees, mut hqs, mut idle) = (Vec::new(), Vec::new(), Vec::new());
    for r in 0..repetitions {
        let tree = b.tree(0, false)?;
        idle.push((ours("the agent", 0, 0, r), tree.pid("a1")?));
        idle.push((ours("the gateway", 0, 0, r), tree.pid(GATEWAY)?));
        trees.push(tree);
        if let Some(program) = b.hq.clone() {
            let hq = Hq::start(&program, &b.work, 1, None)?;
            let theirs = |what: &str| Record { system: HQ.into(), what: what.into(), repetition: r, ..Record::default() };
            idle.extend(hq.workers.first().map(|w| (theirs("the worker"), w.id())));
            idle.push((theirs("the server"), hq.server_pid()));
            hqs.push(hq);
        }
    }
    sleep(SETTLE);
    let before: Vec<f64> = idle.iter().map(|(_, pid)| machine::cpu(*pid)).collect();
    sleep(Duration::from_secs(seconds));
    for ((record, pid), before) in idle.into_iter().zip(before) {
        let percent = (machine::cpu(pid) - before) / seconds as f64 * 100.0;
        let (memory, cpu) = (format!("idle; {}", record.what), format!("idle; CPU of {}", record.what));
        b.keep_memory(Record { what: memory, ..record.clone() }, machine::resident(pid));
        b.keep(Record { what: cpu, seconds: seconds as f64, value: percent, unit: "% of a core".into(), ..record });
    }
    drop(hqs);
    if let Some(tree) = trees.first() {
        burst(tree, b.pick(10_000, 1_000))?;
        sleep(SETTLE);
        b.keep_memory(ours("idle after 10,000 x /bin/true; the agent", 0, 0, 0), tree.resident("a1")?);
    }
    Ok(())
}
