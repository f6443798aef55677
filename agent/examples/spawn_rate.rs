//! How fast tasks are started: `cargo run --profile agent -p intergrid-agent --example spawn_rate -- [TASKS] [SLOTS] [PARTS]`, after `cargo build` of the same
//! profile. Rates of /bin/true, from a bare loop to the whole agent behind mTLS, durable claims and ends included. Run it on a quiet machine.

#[path = "../tests/pool/mod.rs"]
mod pool;

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use intergrid_agent::core::Input;
use intergrid_agent::exec::Executor;
use intergrid_agent::exec::dirs::Dirs;
use intergrid_agent::plan::{Plan, Task};
use intergrid_agent_sys::{CStrings, Command, Spawner};
use intergrid_proto::{JobSpec, Phase};
use rustix::process::{Pid, WaitOptions, waitpid};

/// CPU time of a process and of its reaped children, in ticks of 10 ms: unlike a rate it means something on a busy machine, too.
fn cpu(pid: &str) -> [u64; 2] {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    let ticks: Vec<u64> = fields.skip(11).take(4).filter_map(|f| f.parse().ok()).collect();
    [ticks[0] + ticks[1], ticks[2] + ticks[3]]
}

/// Of one task: our own time, and its own.
fn each(from: [u64; 2], to: [u64; 2], tasks: u32) -> String {
    let us = |i: usize| (to[i] - from[i]) * 10_000 / u64::from(tasks);
    format!("{} us of CPU each, payload {}", us(0), us(1))
}

fn plain(tasks: usize, threads: usize) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path, write: bool| std::fs::File::options().read(!write).write(write).open(path).unwrap();
    let null = std::path::Path::new("/dev/null");
    let (cwd, stdin, out) = (open(dir.path(), false), open(null, false), open(null, true));
    let began = Instant::now();
    std::thread::scope(|s| {
        for _ in 0..threads {
            s.spawn(|| {
                let mut argv = CStrings::default();
                argv.push(&[b"true"]).unwrap();
                let (env, mut spawner) = (CStrings::default(), Spawner::new().unwrap());
                for _ in 0..tasks / threads {
                    let (cwd, stdin, stdout, stderr) = (cwd.as_fd(), stdin.as_fd(), out.as_fd(), out.as_fd());
                    let command = Command { program: c"/bin/true", argv: &argv, env: &env, cwd, stdin, stdout, stderr };
                    let pid = spawner.spawn(&command).unwrap();
                    waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap();
                }
            });
        }
    });
    tasks as f64 / began.elapsed().as_secs_f64()
}

fn executor(tasks: u32, slots: u32) -> f64 {
    let state = tempfile::tempdir().unwrap();
    let (inputs, heard) = std::sync::mpsc::channel();
    let way: Arc<OnceLock<Weak<Mutex<Executor>>>> = Arc::default();
    let inside = way.clone();
    let door = Box::new(move |f: &mut dyn FnMut(&mut Executor)| {
        let Some(exec) = inside.get().and_then(Weak::upgrade) else { return false };
        let mut exec = exec.lock().unwrap();
        f(&mut exec);
        inputs.send(exec.inputs()).is_ok()
    });
    let exec = Arc::new(Mutex::new(Executor::new(Dirs::new(state.path()).unwrap(), None, Vec::new(), false, door).unwrap()));
    way.set(Arc::downgrade(&exec)).unwrap();
    let plan = Arc::new(Plan::new(&JobSpec::new(["/bin/true"]).encode()).unwrap());
    let (mut next, mut running, mut ended) = (0, 0, 0);
    let began = Instant::now();
    while ended < tasks {
        while running < slots && next < tasks {
            let task = Task { number: 1, index: next, attempt: 1, job: "abcdef".into(), array_size: tasks, site: "here".into() };
            exec.lock().unwrap().start(task, plan.clone());
            (next, running) = (next + 1, running + 1);
        }
        let mut gone = Vec::new();
        for input in heard.recv().unwrap() {
            match input {
                Input::Exited(key, _) => gone.push(key),
                Input::NotStarted(_, fault) => panic!("{fault:?}"),
                _ => {}
            }
        }
        ended += gone.len() as u32;
        running -= gone.len() as u32;
        exec.lock().unwrap().remove(gone);
    }
    f64::from(tasks) / began.elapsed().as_secs_f64()
}

/// From placing one task to hearing of its end: the median of many, one after another.
async fn latency(more: &str) -> Duration {
    let g = pool::Gateway::new().await;
    let _agent = g.agent(&format!("slots = 2\n{more}"));
    g.attached().await;
    let spec = JobSpec::new(["/bin/true"]);
    let mut all = Vec::new();
    for number in 1..=100 {
        let began = Instant::now();
        g.place(number, 0..1, &spec);
        while g.lock().end(number, 0).is_none() {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        all.push(began.elapsed());
    }
    all.sort();
    all[all.len() / 2]
}

/// Placed as the window allows, by a gateway that commits nothing.
async fn agent(tasks: u32, slots: u32, more: &str) -> (f64, String) {
    let g = pool::Gateway::new().await;
    let agent = g.agent(&format!("slots = {slots}\n{more}"));
    g.attached().await;
    let spec = JobSpec::new(["/bin/true"]);
    let began = Instant::now();
    let (mut next, mut number, mut window_max) = (0, 0, 0);
    let mut seen = (0, 0);
    while seen.0 < u64::from(tasks) {
        let window = {
            let k = g.lock();
            for e in &k.events[seen.1..] {
                if let intergrid_proto::link::EventKind::Ended(x) = &e.what {
                    assert_eq!(Phase::Done, x.phase);
                    seen.0 += e.of.tasks.len();
                }
            }
            seen.1 = k.events.len();
            k.shares.first().map_or(0, |s| s.window)
        };
        window_max = window.max(window_max);
        let room = window.saturating_sub(u64::from(next) - seen.0).min(u64::from(tasks - next)) as u32;
        if room > 0 {
            number += 1;
            g.place(number, next..next + room, &spec);
            next += room;
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    let each = each([0; 2], cpu(&agent.pid().to_string()), tasks);
    let rate = f64::from(tasks) / began.elapsed().as_secs_f64();
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let resident = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("").trim().to_string();
    (rate, format!("{each}, {number} placements, window up to {window_max}, agent's peak memory {resident}"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u32>().expect("a number"));
    let tasks = args.next().unwrap_or(10_000);
    let slots = args.next().unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u32));
    // 1: the loops, 2: the executor, 4: the agent, 8: without execution, 16: one task at a time.
    let parts = args.next().unwrap_or(31);
    for threads in [1, 2].into_iter().filter(|_| parts & 1 > 0) {
        let before = cpu("self");
        let rate = plain(tasks as usize, threads);
        println!("bare loop, {threads} threads: {rate:6.0} /s, {}", each(before, cpu("self"), tasks));
    }
    if parts & 2 > 0 {
        let before = cpu("self");
        let rate = executor(tasks, slots);
        println!("executor, {slots} slots:         {rate:6.0} /s, {}", each(before, cpu("self"), tasks));
    }
    if parts & 4 > 0 {
        let (rate, more) = agent(tasks, slots, "").await;
        println!("agent, {slots} slots:            {rate:6.0} /s, {more}");
    }
    if parts & 8 > 0 {
        let (rate, more) = agent(tasks, slots, "executor = \"null\"").await;
        println!("agent, null executor:     {rate:6.0} /s, {more}");
    }
    if parts & 16 > 0 {
        let (with, without) = (latency("").await, latency("executor = \"null\"").await);
        println!("one task at a time:       {with:?}, null executor {without:?}");
    }
}
