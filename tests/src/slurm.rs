//! A real Slurm on this machine: munged, slurmctld and a few slurmd on loopback, with a directory and ports of its own, so that several can follow one
//! another. It needs root, because a slurmd starts jobs as their users; munged and slurmctld run as their own accounts.
//!
//! It ends with the [`Slurm`], with all that its jobs have started, also when the test is killed: a guard holds the other end of our pipe. Nothing is
//! skipped: what is missing is said in a panic.

mod accounting;
mod conf;

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};

pub use conf::Options;

/// Local accounts that jobs run as; made where they are missing.
pub const ACCOUNTS: [&str; 3] = ["intergrid-t1", "intergrid-t2", "intergrid-t3"];

/// A cluster whose machines are not idle by then does not start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// One command of a user.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
/// All processes are gone by then.
const END_TIMEOUT: Duration = Duration::from_secs(15);
/// A controller writes what has changed within five seconds.
const SAVE_TIMEOUT: Duration = Duration::from_secs(7);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Of each log, where it does not start.
const LOG_TAIL_LINES: usize = 15;
/// Below the ports that the kernel gives to connections.
pub(crate) const PORTS: std::ops::Range<u16> = 20_000..30_000;
/// As many tests may run at the same time.
const SLOTS: u16 = 32;

/// What can be killed and started again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// munged.
    Munge,
    /// mariadbd, where there is accounting.
    Database,
    /// slurmdbd, where there is accounting.
    Accounting,
    /// slurmctld.
    Controller,
    /// slurmd of machine n1, n2, ...
    Machine(usize),
}

/// A running cluster.
pub struct Slurm {
    dir: tempfile::TempDir,
    machines: usize,
    parts: std::collections::BTreeMap<Part, Child>,
    guard: Child,
    /// One at a time in a process: each finds its ports free, and the machine is small. Fields are dropped in order, this one last.
    _alone: MutexGuard<'static, ()>,
}

/// See [`Slurm`].
static ALONE: Mutex<()> = Mutex::new(());

impl Slurm {
    /// Four machines of four CPUs and 4,000 MiB; partitions `batch` (all, the default one) and `short` (two of them, ten minutes).
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    /// With other options.
    pub fn with(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::default();
        change(&mut options);
        check_machine(options.accounting);
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        ACCOUNTS.iter().for_each(|name| make_account(name));
        let dir = tempfile::Builder::new().prefix("slurm-").tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("permissions");
        options.write(dir.path(), ports(options.machines + 3));
        let guard = guard(dir.path(), "SLURM_CONF");
        let mut slurm = Slurm { dir, machines: options.machines, parts: Default::default(), guard, _alone: alone };
        slurm.start_part(Part::Munge);
        slurm.until_there("munged listens", "munge/socket");
        if options.accounting {
            slurm.start_accounting();
        }
        [Part::Controller].into_iter().chain((1..=options.machines).map(Part::Machine)).for_each(|part| slurm.start_part(part));
        slurm.until_up();
        slurm
    }

    /// Its directory; jobs can read it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `slurm.conf`, for `SLURM_CONF`.
    pub fn conf(&self) -> PathBuf {
        self.dir.path().join("slurm.conf")
    }

    /// Where our completion program puts its records.
    pub fn records(&self) -> PathBuf {
        self.dir.path().join("jobcomp/records")
    }

    /// A command of this cluster, as root.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SLURM_CONF", self.conf()).env("TZ", "UTC").current_dir("/").stdin(Stdio::null());
        command
    }

    /// A daemon of this cluster that works as an account of its own.
    fn command_of_its_own(&self, account: &str, program: &str) -> Command {
        let mut command = self.command("setpriv");
        command.args([&format!("--reuid={account}"), &format!("--regid={account}"), "--clear-groups", program]);
        command
    }

    /// A command of this cluster as this account.
    pub fn command_as(&self, account: &str, program: &str) -> Command {
        let mut command = self.command("sudo");
        command.args(["-n", "-u", account, "--", "env"]).arg(format!("SLURM_CONF={}", self.conf().display())).args(["TZ=UTC", program]);
        command
    }

    /// What a command prints; panics where it fails.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        let output = ended(self.command(program).args(args), "");
        assert!(output.status.success(), "{program} {args:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// `sbatch --parsable` of a script, as an account, in a directory that it may write to; the job's number.
    pub fn submit(&self, account: &str, args: &[&str], script: &str) -> String {
        let mut command = self.command_as(account, "sbatch");
        command.args(["--parsable", "--chdir=/tmp", "--output=/dev/null"]).args(args);
        let output = ended(&mut command, &format!("#!/bin/sh\n{script}\n"));
        assert!(output.status.success(), "sbatch {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim().to_string()
    }

    /// kill -9 of one daemon, and of nothing that it has started.
    pub fn kill(&mut self, part: Part) {
        let mut child = self.parts.remove(&part).unwrap_or_else(|| panic!("{part:?} does not run"));
        child.kill().expect("a kill");
        child.wait().expect("its end");
    }

    /// SIGSTOP or SIGCONT to one daemon: it is there and does not answer.
    pub fn signal(&self, part: Part, signal: Signal) {
        let child = self.parts.get(&part).unwrap_or_else(|| panic!("{part:?} does not run"));
        kill_process(Pid::from_child(child), signal).expect("a signal");
    }

    /// Wait until the controller has saved what it knows now: it writes within five seconds. One that is killed earlier forgets jobs, starts some of them
    /// again, and gives their numbers to others.
    pub fn until_saved(&self) {
        let now = SystemTime::now();
        let file = self.dir.path().join("state/job_state");
        let saved = || fs::metadata(&file).and_then(|m| m.modified()).is_ok_and(|at| at > now);
        // Where nothing has changed since, nothing is written.
        let deadline = Instant::now() + SAVE_TIMEOUT;
        while Instant::now() < deadline && !saved() {
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Start a daemon that does not run.
    pub fn start_part(&mut self, part: Part) {
        assert!(!self.parts.contains_key(&part), "{part:?} runs");
        let path = |name: &str| self.dir.path().join(name);
        let mut command = match part {
            Part::Munge => {
                let mut command = self.command_of_its_own("munge", "munged");
                command.args(["--foreground", "--force", "--num-threads=4"]);
                for (option, file) in [("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed")] {
                    command.arg(format!("--{option}={}", path("munge").join(file).display()));
                }
                command
            }
            Part::Database => self.database(),
            Part::Accounting => self.accounting(),
            Part::Controller => {
                let mut command = self.command("slurmctld");
                command.arg("-D");
                command
            }
            Part::Machine(n) => {
                let mut command = self.command("slurmd");
                command.args(["-D", "-N", &format!("n{n}")]);
                command
            }
        };
        let log = File::options().create(true).append(true).open(path("daemons.log")).expect("a log");
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap_or_else(|e| panic!("{part:?}: {e}"));
        self.parts.insert(part, child);
    }

    /// Other words in its configuration, which the controller reads at once.
    pub fn reconfigure(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.conf()).expect("slurm.conf");
        assert!(text.contains(from), "{from:?} is not in {text}");
        fs::write(self.conf(), text.replace(from, to)).expect("slurm.conf");
        self.run("scontrol", &["reconfigure"]);
    }

    fn until_there(&self, what: &str, file: &str) {
        let path = self.dir.path().join(file);
        self.until(what, START_TIMEOUT, |_| path.exists().then_some(()).ok_or_else(|| format!("no {file}")));
    }

    /// Wait until every machine is idle.
    pub fn until_up(&self) {
        self.until("the machines are idle", START_TIMEOUT, |slurm| {
            let output = ended(slurm.command("sinfo").args(["-h", "-N", "-p", "batch", "-o", "%N %T"]), "");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let idle = text.lines().filter(|l| l.ends_with(" idle")).count();
            if idle == slurm.machines { Ok(()) } else { Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr))) }
        });
    }

    /// Look until it is there; panics with what was seen last, and the ends of the logs, where it does not come in time.
    pub fn until<T>(&self, what: &str, patience: Duration, mut look: impl FnMut(&Self) -> Result<T, String>) -> T {
        let deadline = Instant::now() + patience;
        loop {
            match look(self) {
                Ok(there) => return there,
                Err(seen) if Instant::now() > deadline => panic!("{what}: not within {patience:?}; last seen: {seen}\n{}", self.log_ends()),
                Err(_) => std::thread::sleep(LOOK_INTERVAL),
            }
        }
    }

    fn log_ends(&self) -> String {
        let mut out = String::new();
        let machines = (1..=self.machines).map(|n| format!("spool/n{n}.log"));
        for name in ["daemons.log", "munge/log", "log/slurmdbd.log", "log/slurmctld.log"].map(String::from).into_iter().chain(machines) {
            let text = fs::read_to_string(self.dir.path().join(&name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            out += &format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n"));
        }
        out
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        // The guard reads to the end, kills what belongs to this directory, and ends.
        drop(self.guard.stdin.take());
        let deadline = Instant::now() + END_TIMEOUT;
        while Instant::now() < deadline && !matches!(self.guard.try_wait(), Ok(Some(_)) | Err(_)) {
            // Killed daemons are ours to collect, else they look alive.
            self.parts.values_mut().for_each(|child| drop(child.try_wait()));
            std::thread::sleep(LOOK_INTERVAL);
        }
        for child in self.parts.values_mut().chain([&mut self.guard]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Run to its end, in [`COMMAND_TIMEOUT`].
pub fn ended(command: &mut Command, stdin: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    // A command that does not read its input has its own reasons.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
    let (mut out, mut err) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
    let read = |pipe: &mut dyn Read| {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).map(|_| bytes).unwrap_or_default()
    };
    std::thread::scope(|scope| {
        let (out, err) = (scope.spawn(move || read(&mut out)), scope.spawn(move || read(&mut err)));
        let status = waited(&mut child, command);
        Output { status, stdout: out.join().expect("stdout"), stderr: err.join().expect("stderr") }
    })
}

fn waited(child: &mut Child, command: &Command) -> ExitStatus {
    let deadline = Instant::now() + COMMAND_TIMEOUT;
    loop {
        match child.try_wait().expect("its end") {
            Some(status) => return status,
            None if Instant::now() > deadline => {
                child.kill().expect("a kill");
                panic!("{command:?}: not within {COMMAND_TIMEOUT:?}")
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Kills every process in whose environment this variable names the directory when its input ends. In a session of its own, so that a signal to the test is
/// none to it.
pub(crate) fn guard(dir: &Path, variable: &str) -> Child {
    const SCRIPT: &str = r#"
        trap '' TERM INT HUP
        cat > /dev/null
        n=0 found=yes
        while [ -n "$found" ] && [ $n -lt 100 ]; do
            found=
            for environ in $(grep -lsF "$2=$1/" /proc/[0-9]*/environ); do
                pid=${environ#/proc/}
                kill -9 "${pid%/environ}" 2> /dev/null && found=yes
            done
            n=$((n + 1))
            [ -z "$found" ] || sleep 0.05
        done
        rm -rf "$1""#;
    let mut command = Command::new("setsid");
    command.args(["sh", "-c", SCRIPT, "guard"]).arg(dir).arg(variable).current_dir("/").env_remove(variable);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a guard")
}

fn check_machine(accounting: bool) {
    assert!(rustix::process::geteuid().is_root(), "a test cluster needs root, because a slurmd starts jobs as their users; run the tests as root");
    let path = std::env::var("PATH").unwrap_or_default();
    let there = |name: &str| path.split(':').any(|dir| Path::new(dir).join(name).is_file());
    let all = ["munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scancel", "scontrol", "sudo", "setpriv", "setsid", "useradd"];
    let more = ["mariadbd", "slurmdbd", "sacctmgr", "sacct"];
    let missing: Vec<_> = all.into_iter().chain(more.into_iter().filter(|_| accounting)).filter(|name| !there(name)).collect();
    assert!(missing.is_empty(), "not on the path: {}; install them with `tests/run --prepare`", missing.join(", "));
}

pub(crate) fn make_account(name: &str) {
    let exists = || ended(Command::new("getent").args(["passwd", name]), "").status.success();
    // Another test may be making it at this moment, and one useradd locks out the other.
    let deadline = Instant::now() + COMMAND_TIMEOUT;
    while !exists() {
        let output = ended(Command::new("useradd").args(["--create-home", "--shell", "/bin/sh", name]), "");
        assert!(output.status.success() || Instant::now() < deadline || exists(), "useradd {name}: {}", String::from_utf8_lossy(&output.stderr));
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Ports that nobody listens at. Tests that run at the same time begin to look at different places: what is free now is taken later.
pub fn ports(count: usize) -> Vec<u16> {
    let span = PORTS.end - PORTS.start;
    let slot = std::env::var("NEXTEST_TEST_GLOBAL_SLOT").ok().and_then(|n| n.parse::<u16>().ok()).unwrap_or(0) % SLOTS;
    let first = slot * (span / SLOTS) + (std::process::id() % u32::from(span / SLOTS)) as u16;
    let candidates = (0..span).map(|n| PORTS.start + (first + n * 7) % span);
    let held: Vec<TcpListener> = candidates.filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok()).take(count).collect();
    assert_eq!(count, held.len(), "free ports");
    held.iter().map(|l| l.local_addr().expect("an address").port()).collect()
}
