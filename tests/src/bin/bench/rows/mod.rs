//! The rows, and what they share: runs of a client to its end, and samples of its latency.

mod cluster;
mod fault;
mod gridengine;
mod latency;
mod memory;
mod rate;
mod rented;
mod sites;
mod slurm;

use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;

use crate::Bench;
use crate::record::{Record, Result, percentile};
use crate::tree::Tree;

/// No client runs longer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(1_800);

/// A row of the table.
pub struct Row {
    /// Its name.
    pub id: &'static str,
    /// What it is about.
    pub title: &'static str,
    /// How it is measured, for the page.
    pub how: &'static str,
    /// Measure it.
    pub run: fn(&mut Bench) -> Result<()>,
}

/// All of them.
pub const ROWS: &[Row] = &[
    Row {
        id: "T1",
        title: "throughput",
        how: "the client's exec to its exit: an array of /bin/true with `--wait`, output discarded, warm",
        run: rate::throughput,
    },
    Row { id: "T2", title: "durable throughput", how: "as T1; HyperQueue with its journal, flushed every 30 s and every 10 ms", run: rate::durable },
    Row {
        id: "T3",
        title: "separate submissions",
        how: "single-task jobs: over one stream of one client, one call after another, one client process each",
        run: rate::separate,
    },
    Row {
        id: "T4",
        title: "dispatch",
        how: "as T1 with an agent that executes nothing: its null executor ends each task at once",
        run: rate::dispatch,
    },
    Row {
        id: "L1",
        title: "latency of a submission",
        how: "the client's exec to its exit, idle; one job, and an array of 10,000",
        run: latency::submit,
    },
    Row {
        id: "L2",
        title: "latency of a job",
        how: "submit and wait of one /bin/true, idle: as a process, and over an open connection",
        run: latency::job,
    },
    Row { id: "L3", title: "cold start", how: "all daemons started to the first job waited for; HyperQueue: server and worker", run: latency::cold },
    Row {
        id: "C1",
        title: "a chain of brokers",
        how: "T1, T4 and L2 through 0, 1, 2, 4 and 8 brokers, each a process with a store of its own; the chains take turns",
        run: rate::chain,
    },
    Row { id: "M1", title: "memory of a site", how: "resident memory of the gateway", run: memory::site },
    Row { id: "M2", title: "the agent", how: "size of the binaries; attached and idle for a minute: resident memory and CPU", run: memory::agent },
    Row { id: "P1", title: "capacity", how: "an agent is killed, or attaches: until the root's own count of slots shows it", run: fault::capacity },
    Row {
        id: "F1",
        title: "an agent is killed",
        how: "agent and payload get SIGKILL and the agent is started again: from its start until the task runs again",
        run: fault::killed,
    },
    Row {
        id: "F2",
        title: "an agent is stopped",
        how: "SIGSTOP of one of two agents: until its task runs at the other, less its disconnect time-out of 2 s",
        run: fault::stopped,
    },
    Row {
        id: "F3",
        title: "the gateway is killed",
        how: "SIGKILL five times under one array, when 2, 20, 40, 60 and 80 % of it have started; started again when nothing starts any more. \
              Starts are counted by the payloads' own file",
        run: sites::gateway,
    },
    Row { id: "F4", title: "a broker in the middle is killed", how: "as F3, under the root and over the gateway", run: sites::broker },
    Row {
        id: "R1",
        title: "a rented machine",
        how: "from the gateway's log of its attach: until a look at the root shows it (one each 2 ms), and until its first task writes down its own time",
        run: rented::attached,
    },
    Row {
        id: "S1",
        title: "a Slurm cluster",
        how: "a real Slurm of 4 machines of 4 CPUs on this machine, under a gateway; arrays of /bin/true, and separate jobs, in turn by `sbatch` itself (8 at once) \
              and through the gateway. Through a broker: ends, from the time that the payload itself writes down last to the exit of `grid submit --wait` at the \
              root, one at a time; two arrays of 1,000 looked after for 30 s, with each `squeue` counted. Goals are those of a machine that Slurm has for itself; \
              here both share its cores",
        run: slurm::site,
    },
    Row {
        id: "G1",
        title: "a Grid Engine cluster",
        how: "as S1, without arrays of /bin/true: a real Grid Engine of 16 slots on this machine, with `qsub` and `qstat`",
        run: gridengine::site,
    },
    Row {
        id: "X1",
        title: "what fdatasync costs",
        how: "T1 with stores and spools in memory (tmpfs), where a sync is free; the same program",
        run: rate::unsynced,
    },
];

/// Run a client to its end, output discarded: seconds, and whether it said that all went well.
pub fn to_the_end(mut command: Command) -> Result<(f64, bool)> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    let mut child = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
    let pid = Pid::from_child(&child);
    let (ended, wait) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if wait.recv_timeout(CLIENT_TIMEOUT) == Err(mpsc::RecvTimeoutError::Timeout) {
            _ = kill_process(pid, Signal::KILL);
        }
    });
    let status = child.wait().map_err(|e| e.to_string())?;
    let seconds = began.elapsed().as_secs_f64();
    drop(ended);
    _ = watch.join();
    Ok((seconds, status.success()))
}

/// An array at the top of a tree, submitted and waited for.
pub struct Burst {
    /// The client's time.
    pub seconds: f64,
    /// Tasks that are not done.
    pub failures: u64,
    /// CPU of each part, microseconds a task.
    pub cpu: Vec<(String, f64)>,
}

/// Run one.
pub fn burst(tree: &Tree, n: u64) -> Result<Burst> {
    let before = tree.cpu();
    let root = tree.root();
    let (seconds, well) = to_the_end(tree.verb(&root, &["submit", "-n", &n.to_string(), "--wait", "--", "/bin/true"])?)?;
    let failures = match well {
        true => 0,
        false => n - tree.ask(&["show", "last"])?["phases"]["done"].as_u64().unwrap_or(0).min(n),
    };
    let used = tree.cpu().into_iter().zip(before).map(|((name, now), (_, then))| (name, (now - then) * 1e6 / n as f64));
    Ok(Burst { seconds, failures, cpu: used.collect() })
}

impl Bench {
    /// Keep a rate.
    pub fn keep_rate(&mut self, record: Record, seconds: f64, failures: u64, baseline: f64) {
        let value = record.n as f64 / seconds;
        self.keep(Record { seconds, value, unit: "tasks/s".into(), failures, baseline, ..record });
    }

    /// Keep a burst: its rate, and what each part used.
    pub fn keep_burst(&mut self, record: Record, burst: Burst, baseline: f64) {
        self.keep_rate(record.clone(), burst.seconds, burst.failures, baseline);
        for (part, us) in burst.cpu {
            let what = format!("{}; CPU of {}", record.what, role(&part));
            self.keep(Record { what, seconds: burst.seconds, value: us, unit: "us/task".into(), ..record.clone() });
        }
    }

    /// Keep samples, in seconds, as their 50th and 99th percentile in milliseconds.
    pub fn keep_samples(&mut self, record: Record, mut samples: Vec<f64>, failures: u64) {
        let seconds = samples.iter().sum();
        samples.sort_by(f64::total_cmp);
        for p in [50.0, 99.0] {
            let (what, value) = (format!("{}; p{p:.0}", record.what), percentile(&samples, p) * 1e3);
            self.keep(Record { what, n: samples.len() as u64, seconds, value, unit: "ms".into(), failures, ..record.clone() });
        }
    }
}

/// What a part is, by its name in the tree.
fn role(part: &str) -> String {
    match part.split_at(1) {
        ("b", level) if level.parse::<u32>().is_ok() => format!("broker {level}"),
        ("a", n) if n.parse::<u32>().is_ok() => "the agent".into(),
        _ => "the gateway".into(),
    }
}

/// Samples of a client, some milliseconds apart; and how many did not go well.
pub fn samples(n: usize, mut client: impl FnMut(usize) -> Result<Command>) -> Result<(Vec<f64>, u64)> {
    let (mut times, mut failures) = (Vec::new(), 0);
    for i in 0..n {
        let (seconds, well) = to_the_end(client(i)?)?;
        times.push(seconds);
        failures += u64::from(!well);
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok((times, failures))
}

/// For a client in this process. It answers its server also while we wait for something else: who answers nothing for some seconds is left.
pub fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(|e| e.to_string())
}
