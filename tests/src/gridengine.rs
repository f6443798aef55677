//! A real Grid Engine on this machine: sge_qmaster and one sge_execd on loopback, or several in [`machines`], with a cell and ports of its own, so that several
//! can follow one another. It needs root, because sge_execd starts jobs as their users.
//!
//! It ends with the [`GridEngine`], with all that its jobs have started, also when the test is killed: a guard holds the other end of our pipe. Nothing is
//! skipped: what is missing is said in a panic.

mod conf;
mod machines;

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub use crate::slurm::ACCOUNTS;
use crate::slurm::{ended, guard, make_account, ports};
pub use conf::Options;

/// A cluster whose machine is not heard of by then does not start.
const START_TIMEOUT: Duration = Duration::from_secs(40);
/// All processes are gone by then.
const END_TIMEOUT: Duration = Duration::from_secs(15);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Of each log, where it does not start.
const LOG_TAIL_LINES: usize = 15;
/// Debian's; what is on the path is a script around these, that takes longer than they do.
pub const COMMANDS: &str = "/usr/lib/gridengine";
/// Nothing of the test's own is passed on to jobs.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// What can be killed and started again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// sge_qmaster.
    Master,
    /// sge_execd of machine 1, 2, ...
    Machine(usize),
}

/// A running cluster.
pub struct GridEngine {
    dir: tempfile::TempDir,
    ports: [u16; 2],
    machines: usize,
    parts: BTreeMap<Part, Child>,
    guard: Child,
    /// One at a time in a process. Fields are dropped in order, this one last.
    _alone: MutexGuard<'static, ()>,
}

/// See [`GridEngine`].
static ALONE: Mutex<()> = Mutex::new(());

impl GridEngine {
    /// One machine, `localhost`; queues `batch` (16 slots) and `short` (4 slots, ten minutes), and the parallel environment `smp` in both.
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    /// With other options.
    pub fn with(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::default();
        change(&mut options);
        check_machine();
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        ACCOUNTS.iter().for_each(|name| make_account(name));
        let dir = tempfile::Builder::new().prefix("sge-").tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("permissions");
        let [master, machine] = ports(2)[..] else { panic!("two ports") };
        let guard = guard(dir.path(), "SGE_ROOT");
        let (ports, machines) = ([master, machine], options.machines);
        let mut engine = GridEngine { dir, ports, machines, parts: BTreeMap::new(), guard, _alone: alone };
        options.write_cell(&engine);
        engine.start_part(Part::Master);
        engine.until("sge_qmaster answers", START_TIMEOUT, |engine| engine.try_run("qconf", &["-sh"]).map(drop));
        options.write_queues(&engine);
        (1..=machines).for_each(|n| engine.start_part(Part::Machine(n)));
        engine.until_up();
        if options.gpus > 0 {
            options.write_gpus(&engine);
        }
        engine
    }

    /// Its directory; jobs can read it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `$SGE_ROOT/$SGE_CELL/common`
    pub fn common(&self) -> PathBuf {
        self.dir.path().join("root/default/common")
    }

    /// `settings.sh`: what its commands need in their environment.
    pub fn conf(&self) -> PathBuf {
        self.common().join("settings.sh")
    }

    /// What its commands need in their environment.
    fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("SGE_ROOT", self.dir.path().join("root").display().to_string()),
            ("SGE_CELL", "default".to_string()),
            ("SGE_QMASTER_PORT", self.ports[0].to_string()),
            ("SGE_EXECD_PORT", self.ports[1].to_string()),
        ]
    }

    /// A command of this cluster, as root, with nothing else in its environment.
    pub fn command(&self, program: &str) -> Command {
        let own = Path::new(COMMANDS).join(program);
        let mut command = Command::new(if own.is_file() { own } else { program.into() });
        command.env_clear().env("PATH", PATH).env("LC_ALL", "C").envs(self.environment()).current_dir("/").stdin(Stdio::null());
        command
    }

    /// A command of this cluster as this account.
    pub fn command_as(&self, account: &str, program: &str) -> Command {
        let mut command = self.command("sudo");
        command.args(["-n", "-u", account, "--", "env"]).args(self.environment().map(|(name, value)| format!("{name}={value}")));
        command.arg(Path::new(COMMANDS).join(program));
        command
    }

    /// What a command prints, or what it complains of.
    pub fn try_run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let output = ended(self.command(program).args(args), "");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr) + &text(&output.stdout)) }
    }

    /// What a command prints; panics where it fails.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        self.try_run(program, args).unwrap_or_else(|why| panic!("{program} {args:?}: {why}"))
    }

    /// `qsub -terse` of a script, as an account, in a directory that it may write to; the job's number.
    pub fn submit(&self, account: &str, args: &[&str], script: &str) -> String {
        let mut command = self.command_as(account, "qsub");
        command.args(["-terse", "-wd", "/tmp", "-S", "/bin/sh", "-o", "/dev/null", "-e", "/dev/null"]).args(args);
        let output = ended(&mut command, &format!("{script}\n"));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "qsub {args:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        said.trim().split('.').next().expect("a number").to_string()
    }

    /// Tasks in the queue, one a line: number, state, and task.
    pub fn listed(&self) -> Vec<String> {
        let fields = |l: &str| -> Option<String> {
            let words: Vec<&str> = l.split_whitespace().collect();
            Some(format!("{} {} {}", words.first()?.parse::<u64>().ok()?, words.get(4)?, words.last()?))
        };
        self.run("qstat", &["-u", "*"]).lines().filter_map(fields).collect()
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

    /// Start a daemon that does not run.
    pub fn start_part(&mut self, part: Part) {
        assert!(!self.parts.contains_key(&part), "{part:?} runs");
        let name = match part {
            Part::Master => "sge_qmaster",
            Part::Machine(_) => "sge_execd",
        };
        let log = File::options().create(true).append(true).open(self.dir.path().join("daemons.log")).expect("a log");
        let mut command = match part {
            Part::Master => self.naming(name),
            Part::Machine(n) => self.on_machine(n, name),
        };
        // It stays our child.
        command.env("SGE_ND", "1").stdout(log.try_clone().expect("a log")).stderr(log);
        self.parts.insert(part, command.spawn().unwrap_or_else(|e| panic!("{name}: {e}")));
    }

    /// Wait until all machines are heard of and their queues are open.
    pub fn until_up(&self) {
        self.until("the queues are open", START_TIMEOUT, |engine| {
            let text = engine.try_run("qstat", &["-f"])?;
            let open = |l: &&str| l.contains('@') && l.split_whitespace().count() == 5 && !l.contains("-NA-");
            if text.lines().filter(open).count() == 2 * engine.machines { Ok(()) } else { Err(text) }
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
        let machines = (1..=self.machines).map(|n| format!("spool/execd/{}/messages", self.machine(n)));
        for name in ["daemons.log", "spool/qmaster/messages"].map(String::from).into_iter().chain(machines) {
            let text = fs::read_to_string(self.dir.path().join(&name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            out += &format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n"));
        }
        out
    }
}

impl Drop for GridEngine {
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

fn check_machine() {
    assert!(rustix::process::geteuid().is_root(), "a test cluster needs root, because sge_execd starts jobs as their users; run the tests as root");
    let own = ["sge_qmaster", "sge_execd", "qsub", "qstat", "qhost", "qconf", "qdel", "qmod", "spoolinit", "spooldefaults"];
    let mut missing: Vec<_> = own.into_iter().filter(|name| !Path::new(COMMANDS).join(name).is_file()).collect();
    let path = std::env::var("PATH").unwrap_or_default();
    let there = |name: &str| path.split(':').any(|dir| Path::new(dir).join(name).is_file());
    missing.extend(["sudo", "setpriv", "setsid", "useradd"].into_iter().filter(|name| !there(name)));
    assert!(missing.is_empty(), "not there: {}; install them with `tests/run --prepare`", missing.join(", "));
}
