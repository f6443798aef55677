//! Agents as processes on this machine. Each has its directory `<state>/agents/<name>` with its identity, its configuration, its log and its own state.
//!
//! Invariant: at most one process for each name, also across restarts of the gateway: a process that has our configuration on its command line, however
//! its path is spelled there, is adopted, not doubled, so that tasks go on while a gateway is away: killed, or stopped in order while they run something. One
//! whose state was moved from under it is found by the lock that it holds, and ended: for it its files are where they were. It asks /proc, and trusts no file
//! for a pid.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use intergrid_agent::spool::LOCK_FILE;
use intergrid_proto::limits::{REDIAL_MAX_MS, REDIAL_MIN_MS};
use intergrid_proto::net::issue::{Validity, issue};
use intergrid_proto::net::{CertRole, Identity};
use intergrid_proto::{Refusal, RefusalKind};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::Provider;
use crate::durable::{blocking, io_refusal, write_atomic};

/// How often an adopted process is looked at: it is not ours to wait for.
const LOOK_INTERVAL_MS: u64 = 250;
/// An agent that is asked to end has so long.
const STOP_WAIT_MS: u64 = 5_000;
/// The small binary of its own, where it is installed beside this one.
const AGENT_PROGRAM: &str = "grid-agent";
pub const CONFIG_FILE: &str = "agent.toml";
/// In its directory, the agent's own.
pub(super) const STATE_DIR: &str = "state";
/// A longer log becomes `agent.log.old` when its agent is started again.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// Agents of one gateway.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// Prefix of their names: `<gateway>-0`, `<gateway>-1`, ...
    pub gateway: String,
    /// How many.
    pub agents: u32,
    /// Slots of each; None: as measured.
    pub slots: Option<u32>,
    /// Memory of each; None: as measured.
    pub memory_bytes: Option<u64>,
    /// GPUs of each; None: as found.
    pub gpus: Option<u32>,
    /// The agent's program; None: `grid-agent` beside this executable, else this executable as `agent`.
    pub program: Option<PathBuf>,
    /// The gateway's state directory.
    pub state: PathBuf,
    /// The gateway's identity directory, with its CA's key.
    pub identity: PathBuf,
    /// Agents end when this process does.
    pub die_with_parent: bool,
    /// An agent ends when it has been without a gateway, and without work, for so long; None: never.
    pub alone_ms: Option<u64>,
    /// The tasks of an agent that is stopped end with it. Else they run on, for the next one of its name.
    pub stop_ends_tasks: bool,
}

/// Agents as processes.
pub struct ProcessProvider {
    config: Arc<ProcessConfig>,
    stop: watch::Sender<Stop>,
    keepers: Mutex<Vec<JoinHandle<()>>>,
    faults: Faults,
}

/// None: go on. Else whom to leave: they run something.
type Stop = Option<Arc<BTreeSet<String>>>;

/// Why an agent is not up, by name; an entry for each that is not.
type Faults = Arc<Mutex<BTreeMap<String, String>>>;

#[derive(serde::Serialize)]
struct AgentToml<'a> {
    name: &'a str,
    gateway: &'a str,
    identity: &'a Path,
    state: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    slots: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpus: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alone_max: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stop_ends_tasks: bool,
}

impl ProcessProvider {
    /// With this configuration; nothing runs before `start`.
    pub fn new(config: ProcessConfig) -> Arc<Self> {
        Arc::new(ProcessProvider { config: Arc::new(config), stop: watch::Sender::new(None), keepers: Mutex::default(), faults: Faults::default() })
    }

    fn names(&self) -> Vec<String> {
        (0..self.config.agents).map(|i| format!("{}-{i}", self.config.gateway)).collect()
    }
}

impl Provider for ProcessProvider {
    fn name(&self) -> &'static str {
        "process"
    }

    fn machines(&self) -> Vec<(String, String)> {
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        self.names().into_iter().map(|name| (name.clone(), faults.get(&name).cloned().unwrap_or_default())).collect()
    }

    fn start(&self, endpoint: String) {
        let keeper =
            |name| Keeper { config: self.config.clone(), name, endpoint: endpoint.clone(), stop: self.stop.subscribe(), faults: self.faults.clone() };
        let keepers = self.names().into_iter().map(|name| tokio::spawn(keeper(name).run()));
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner).extend(keepers);
    }

    fn stop(&self, busy: BTreeSet<String>) -> BoxFuture<'static, ()> {
        // An agent that dies with us ends its tasks in order, and says so while it can.
        let left = if self.config.die_with_parent { BTreeSet::new() } else { busy };
        self.stop.send_replace(Some(Arc::new(left)));
        let keepers = std::mem::take(&mut *self.keepers.lock().unwrap_or_else(PoisonError::into_inner));
        join_all(keepers).map(drop).boxed()
    }
}

/// Keeps one agent there.
struct Keeper {
    config: Arc<ProcessConfig>,
    name: String,
    endpoint: String,
    stop: watch::Receiver<Stop>,
    faults: Faults,
}

/// A process of ours.
pub enum Process {
    /// With its stdin, which a child that dies with us watches.
    Ours(Box<Child>, Option<ChildStdin>),
    /// Started by an earlier process of this gateway.
    Adopted(Pid),
}

impl Keeper {
    async fn run(mut self) {
        let (mut pause, mut said) = (REDIAL_MIN_MS, String::new());
        while self.stop.borrow().is_none() {
            let began = Instant::now();
            let why = match self.up().await {
                Ok(process) => {
                    self.fault(None);
                    self.watch(process).await
                }
                Err(refusal) => refusal.to_string(),
            };
            self.fault(Some(&why));
            if self.stop.borrow().is_some() {
                return;
            }
            if why != said {
                tracing::warn!(agent = %self.name, %why, "an agent is not there; will start it again");
                said = why;
            }
            if began.elapsed() > Duration::from_millis(REDIAL_MAX_MS) {
                (pause, said) = (REDIAL_MIN_MS, String::new());
            }
            let _ = timeout(Duration::from_millis(pause), self.stop.changed()).await;
            pause = (pause * 2).min(REDIAL_MAX_MS);
        }
    }

    fn fault(&self, why: Option<&str>) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => _ = faults.insert(self.name.clone(), why.to_string()),
            None => _ = faults.remove(&self.name),
        }
    }

    /// Its process: the one that is there, or a new one.
    async fn up(&self) -> Result<Process, Refusal> {
        let plan = Plan::new(&self.config, &self.name, &self.endpoint)?;
        let same = fs::read_to_string(&plan.file).is_ok_and(|old| old == plan.text);
        match find(&plan.file) {
            Some(pid) if same => {
                tracing::info!(agent = %self.name, pid = pid.as_raw_nonzero(), "adopted a running agent");
                return Ok(Process::Adopted(pid));
            }
            // It was told another endpoint, size or place: it would never find us, offer what it should not, or not find its files.
            Some(pid) => end(Process::Adopted(pid)).await,
            None => {}
        }
        let (plan, config) = (plan.clone(), self.config.clone());
        blocking(move || plan.prepare(&config).map(|()| plan)).await?.spawn(&self.config)
    }

    /// Is it to be left as it is?
    fn is_left(&self) -> bool {
        let left = self.stop.borrow().as_ref().is_some_and(|busy| busy.contains(&self.name));
        if left {
            tracing::info!(agent = %self.name, "left running: it has work, and the next start of this gateway adopts it");
        }
        left
    }

    /// Until it ends, which is told, or shall end.
    async fn watch(&mut self, process: Process) -> String {
        match process {
            Process::Ours(mut child, stdin) => {
                let ended = tokio::select! {
                    ended = child.wait() => ended,
                    _ = self.stop.changed() => {
                        if !self.is_left() {
                            end(Process::Ours(child, stdin)).await;
                        }
                        return String::new();
                    }
                };
                match ended {
                    Ok(status) => format!("its process ended with {status}; see agent.log"),
                    Err(e) => format!("its process can't be waited for: {e}"),
                }
            }
            Process::Adopted(pid) => {
                let file = self.config.dir(&self.name).join(CONFIG_FILE);
                while runs_with(pid, &file) {
                    if timeout(Duration::from_millis(LOOK_INTERVAL_MS), self.stop.changed()).await.is_ok() {
                        if !self.is_left() {
                            end(Process::Adopted(pid)).await;
                        }
                        return String::new();
                    }
                }
                "its process, which was adopted, has ended; see agent.log".to_string()
            }
        }
    }
}

impl ProcessConfig {
    /// An agent's directory: the same however the state's path is spelled.
    pub fn dir(&self, name: &str) -> PathBuf {
        let state = self.state.canonicalize().or_else(|_| std::path::absolute(&self.state));
        state.unwrap_or_else(|_| self.state.clone()).join("agents").join(name)
    }
}

/// All that one start needs.
#[derive(Clone)]
pub struct Plan {
    name: String,
    dir: PathBuf,
    /// Its configuration.
    pub file: PathBuf,
    text: String,
}

impl Plan {
    /// For an agent of this name.
    pub fn new(config: &ProcessConfig, name: &str, endpoint: &str) -> Result<Self, Refusal> {
        let dir = config.dir(name);
        let memory = config.memory_bytes.map(|b| format!("{b}B"));
        let alone_max = config.alone_ms.map(|ms| format!("{ms}ms"));
        let (identity, state) = (dir.join("identity"), dir.join(STATE_DIR));
        let toml = AgentToml {
            name,
            gateway: endpoint,
            identity: &identity,
            state: &state,
            slots: config.slots,
            memory,
            gpus: config.gpus,
            alone_max,
            stop_ends_tasks: config.stop_ends_tasks,
        };
        let text = toml::to_string(&toml).map_err(|e| Refusal::new(RefusalKind::Internal, format!("the configuration of agent {name}: {e}")))?;
        Ok(Plan { name: name.to_string(), file: dir.join(CONFIG_FILE), dir, text })
    }

    /// Directory, identity, configuration. Blocking.
    pub fn prepare(&self, config: &ProcessConfig) -> Result<(), Refusal> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.map_err(|e| io_refusal("make", &self.dir, e))?;
        let identity = self.dir.join("identity");
        if Identity::load(&identity).is_err() {
            // Absent, or cut off while it was made: nobody has seen its id.
            match fs::remove_dir_all(&identity) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io_refusal("remove", &identity, e)),
                _ => issue(&config.identity, CertRole::Agent, &self.name, &identity, Validity::default())?,
            }
        }
        write_atomic(&self.file, self.text.as_bytes()).map_err(|e| io_refusal("write", &self.file, e))
    }

    /// Start it.
    pub fn spawn(&self, config: &ProcessConfig) -> Result<Process, Refusal> {
        let (program, role) = program(config)?;
        let log = self.dir.join("agent.log");
        if fs::metadata(&log).is_ok_and(|m| m.len() > LOG_BYTES_MAX) {
            let _ = fs::rename(&log, self.dir.join("agent.log.old"));
        }
        let open = || fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&log);
        let (out, err) = open().and_then(|out| Ok((out, open()?))).map_err(|e| io_refusal("open", &log, e))?;
        let mut command = Command::new(&program);
        command.args(role).arg("--config").arg(&self.file).arg("--ready-file").arg(self.dir.join("ready.json"));
        command.stdout(Stdio::from(out)).stderr(Stdio::from(err)).stdin(Stdio::null());
        // A terminal's ^C is for the gateway, which then ends its agents in order.
        command.process_group(0);
        if config.die_with_parent {
            command.arg("--die-with-parent").stdin(Stdio::piped());
        }
        let mut child = command.spawn().map_err(|e| io_refusal("start", &program, e))?;
        tracing::info!(agent = %self.name, pid = child.id(), "started an agent");
        let stdin = child.stdin.take();
        Ok(Process::Ours(Box::new(child), stdin))
    }
}

/// The agent's program, and the role that makes it one.
fn program(config: &ProcessConfig) -> Result<(PathBuf, Option<&'static str>), Refusal> {
    if let Some(program) = &config.program {
        return Ok((program.clone(), None));
    }
    let me = std::env::current_exe().map_err(|e| io_refusal("find", Path::new("our own executable"), e))?;
    let beside = me.with_file_name(AGENT_PROGRAM);
    Ok(if beside.is_file() { (beside, None) } else { (me, Some("agent")) })
}

/// The process that runs with this configuration, or did before it was moved.
pub fn find(file: &Path) -> Option<Pid> {
    pids().find(|pid| runs_with(*pid, file)).or_else(|| moved(file))
}

/// The process that has the state beside this configuration, and was started when both were elsewhere.
pub fn moved(file: &Path) -> Option<Pid> {
    let lock = inode(&file.with_file_name(STATE_DIR).join(LOCK_FILE))?;
    let open = |pid: Pid| fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).into_iter().flatten().flatten();
    pids().find(|pid| config_of(*pid).is_some() && !runs_with(*pid, file) && open(*pid).any(|fd| inode(&fd.path()) == Some(lock)))
}

fn runs_with(pid: Pid, file: &Path) -> bool {
    config_of(pid).is_some_and(|config| config == file || inode(&config).is_some_and(|it| inode(file) == Some(it)))
}

/// Which of these configurations a process runs with: one look at /proc for all.
pub fn running(files: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let inodes: BTreeMap<(u64, u64), &PathBuf> = files.iter().filter_map(|file| Some((inode(file)?, file))).collect();
    let named = |config: PathBuf| files.get(&config).or_else(|| inodes.get(&inode(&config)?).copied()).cloned();
    pids().filter_map(config_of).filter_map(named).collect()
}

/// A file, by whatever path: an agent may have been started when the state was spelled otherwise. None: there is none.
fn inode(file: &Path) -> Option<(u64, u64)> {
    fs::metadata(file).ok().map(|m| (m.dev(), m.ino()))
}

pub(super) fn pids() -> impl Iterator<Item = Pid> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|e| Pid::from_raw(e.file_name().to_str()?.parse().ok()?))
}

/// Of a process that was started as our agents are: `--config <file> --ready-file`. A zombie has none.
fn config_of(pid: Pid) -> Option<PathBuf> {
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
    let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
    let config = words.windows(3).find(|w| w[0] == b"--config" && w[2] == b"--ready-file")?[1];
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(config)))
}

/// Ask it to end; when it does not, kill it, and wait until it is gone, for as long again.
pub async fn end(process: Process) {
    let file_of = |pid: Pid| fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    match process {
        Process::Ours(mut child, stdin) => {
            if let Some(pid) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
                let _ = kill_process(pid, Signal::TERM);
            }
            if timeout(Duration::from_millis(STOP_WAIT_MS), child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
            drop(stdin);
        }
        Process::Adopted(pid) => {
            let line = file_of(pid);
            for signal in [Signal::TERM, Signal::KILL] {
                let _ = kill_process(pid, signal);
                let deadline = Instant::now() + Duration::from_millis(STOP_WAIT_MS);
                while Instant::now() < deadline {
                    if line.is_empty() || file_of(pid) != line {
                        return;
                    }
                    sleep(Duration::from_millis(LOOK_INTERVAL_MS / 10)).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use intergrid_proto::net::issue::new_site;

    /// An agent that only waits.
    fn provider(dir: &Path, die_with_parent: bool) -> Arc<ProcessProvider> {
        let program = dir.join("waits.sh");
        fs::write(
            &program,
            "#!/bin/sh\ncd \"${2%/*}\"; mkdir -p state; exec 9> state/lock\necho started >> \"${0%/*}/starts\"\nwhile :; do sleep 0.05; done\n",
        )
        .unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let config = ProcessConfig {
            gateway: "g".into(),
            agents: 2,
            slots: Some(2),
            memory_bytes: Some(1 << 30),
            gpus: Some(0),
            program: Some(program),
            state: dir.join("state"),
            identity: dir.join("site"),
            die_with_parent,
            alone_ms: None,
            stop_ends_tasks: false,
        };
        ProcessProvider::new(config)
    }

    fn starts(dir: &Path) -> usize {
        fs::read_to_string(dir.join("starts")).unwrap_or_default().lines().count()
    }

    async fn until(what: &str, done: impl Fn() -> bool) {
        for _ in 0..500 {
            if done() {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("{what}: not within 10 s");
    }

    #[tokio::test]
    async fn starts_restarts_adopts_and_ends() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        new_site(dir.join("site"), "g", &[]).unwrap();
        let config = |i| dir.join(format!("state/agents/g-{i}/agent.toml"));
        let first = provider(dir, false);
        first.start("127.0.0.1:7".into());
        until("two agents", || starts(dir) == 2).await;
        let text = fs::read_to_string(config(0)).unwrap();
        assert!(text.contains("name = \"g-0\"") && text.contains("memory = \"1073741824B\"") && text.contains("127.0.0.1:7"), "{text}");
        assert!(!text.contains("stop_ends_tasks"), "tasks of a pool outlive their agent: {text}");
        assert_eq!("g-0", Identity::load(dir.join("state/agents/g-0/identity")).unwrap().label());
        let id = Identity::load(dir.join("state/agents/g-0/identity")).unwrap().id();

        let killed = find(&config(0)).unwrap();
        kill_process(killed, Signal::KILL).unwrap();
        until("a third start", || starts(dir) == 3 && find(&config(0)).is_some_and(|p| p != killed)).await;
        assert_eq!(id, Identity::load(dir.join("state/agents/g-0/identity")).unwrap().id(), "a restarted agent keeps its identity");

        // A gateway that is killed leaves its agents; the next one finds them.
        let pids = [find(&config(0)).unwrap(), find(&config(1)).unwrap()];
        first.keepers.lock().unwrap().drain(..).for_each(|k| k.abort());
        let second = provider(dir, false);
        second.start("127.0.0.1:7".into());
        sleep(Duration::from_millis(500)).await;
        assert_eq!((3, pids), (starts(dir), [find(&config(0)).unwrap(), find(&config(1)).unwrap()]));
        let busy = BTreeSet::from(["g-1".to_string()]);
        second.stop(busy).await;
        until("the idle one is gone", || find(&config(0)).is_none()).await;
        assert_eq!(Some(pids[1]), find(&config(1)), "the busy one is left");
        let link = dir.join("link");
        std::os::unix::fs::symlink(dir, &link).unwrap();
        let linked = link.join("state/agents/g-1/agent.toml");
        assert_eq!((Some(pids[1]), BTreeSet::from([linked.clone()])), (find(&linked), running(&BTreeSet::from([linked.clone()]))));
        let third = provider(&link, false);
        third.start("127.0.0.1:7".into());
        until("a fourth start", || starts(dir) == 4).await;
        assert_eq!(Some(pids[1]), find(&config(1)), "adopted again, by another path of the state");
        third.stop(BTreeSet::new()).await;
        until("no agents", || find(&config(0)).is_none() && find(&config(1)).is_none()).await;
    }

    #[tokio::test]
    async fn one_whose_state_was_moved_is_found_and_started_anew() {
        let tmp = tempfile::tempdir().unwrap();
        let (old, new) = (tmp.path().join("old"), tmp.path().join("new"));
        fs::create_dir(&old).unwrap();
        new_site(old.join("site"), "g", &[]).unwrap();
        let config = |dir: &Path, i| dir.join(format!("state/agents/g-{i}/agent.toml"));
        let first = provider(&old, false);
        first.start("127.0.0.1:7".into());
        until("two agents", || starts(&old) == 2).await;
        let pids = [0, 1].map(|i| find(&config(&old, i)));
        assert!(pids.iter().all(Option::is_some));
        first.keepers.lock().unwrap().drain(..).for_each(|k| k.abort());
        fs::rename(&old, &new).unwrap();
        assert_eq!(pids, [0, 1].map(|i| find(&config(&new, i))));
        let second = provider(&new, false);
        second.start("127.0.0.1:7".into());
        until("each is started where it is now", || starts(&new) == 4).await;
        assert!(pids.into_iter().flatten().all(|pid| config_of(pid).is_none()), "those before have ended");
        second.stop(BTreeSet::new()).await;
        until("no agents", || [0, 1].into_iter().all(|i| find(&config(&new, i)).is_none())).await;
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_tried_again_and_given_up_on_stop() {
        let tmp = tempfile::tempdir().unwrap();
        new_site(tmp.path().join("site"), "g", &[]).unwrap();
        let provider = provider(tmp.path(), true);
        fs::remove_file(tmp.path().join("waits.sh")).unwrap();
        provider.start("127.0.0.1:7".into());
        let are_said =
            |faults: &[(String, String)]| faults.len() == 2 && faults.iter().all(|(_, why)| why.contains("waits.sh") && why.contains("start"));
        for _ in 0..100 {
            sleep(Duration::from_millis(100)).await;
            if are_said(&provider.machines()) {
                break;
            }
        }
        let faults = provider.machines();
        assert!(are_said(&faults), "it is said why: {faults:?}");
        timeout(Duration::from_secs(2), provider.stop(BTreeSet::new())).await.expect("stops at once");
    }
}
