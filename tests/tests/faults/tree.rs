//! A grid of real processes: each part is `grid` or `grid-agent` in a role, with its own certificate, configuration, state and log, and can be killed
//! and started again. Everything ends with the [`Tree`], also when the test itself is killed: each part holds the other end of our pipe, but for those that
//! are started [alone](Tree::alone).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use intergrid_proto::net::CertRole;
use intergrid_proto::net::issue::{self, Validity};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::user::User;

/// A part that does not serve by then does not.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// An agent is attached, and its slots are known at the top, by then.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);
/// What was told to end is killed after this.
const END_TIMEOUT: Duration = Duration::from_secs(6);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Of each log, where a test fails.
const LOG_TAIL_LINES: usize = 25;

/// Look until it is there; panics with what was seen last where it does not come in time.
pub fn until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match look() {
            Ok(there) => return there,
            Err(seen) if Instant::now() > deadline => panic!("{what}: not within {patience:?}; last seen: {seen}"),
            Err(_) => std::thread::sleep(LOOK_INTERVAL),
        }
    }
}

/// A binary beside this test.
pub fn binary(name: &str) -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let path = me.parent().and_then(Path::parent).unwrap().join(name);
    assert!(path.is_file(), "{} is missing; build it with `cargo build -p intergrid-cli -p intergrid-agent` in the same profile", path.display());
    path
}

struct Part {
    role: &'static str,
    /// Its end is not tied to ours.
    alone: bool,
    endpoint: String,
    child: Option<Child>,
}

/// Parts in a temporary directory.
pub struct Tree {
    dir: tempfile::TempDir,
    parts: BTreeMap<String, Part>,
    alone: bool,
    /// Where small disks are mounted.
    disks: Vec<PathBuf>,
    /// Where its programs are; None: beside this test.
    programs: Option<PathBuf>,
    /// Of sites and agents; they have no other.
    environment: Vec<(String, String)>,
    /// Where sites listen that are not to choose.
    listen: BTreeMap<String, String>,
}

impl Tree {
    /// With nothing in it.
    pub fn new() -> Self {
        Tree {
            dir: tempfile::tempdir().unwrap(),
            parts: BTreeMap::new(),
            alone: false,
            disks: Vec::new(),
            programs: None,
            environment: Vec::new(),
            listen: BTreeMap::new(),
        }
    }

    /// With programs of this directory.
    pub fn with_programs(mut self, dir: &Path) -> Self {
        self.programs = Some(dir.to_path_buf());
        self
    }

    /// With these in the environment.
    pub fn with_environment(mut self, pairs: &[(&str, &str)]) -> Self {
        self.environment = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        self
    }

    /// A site that is not there yet listens here.
    pub fn listen(&mut self, name: &str, at: &str) {
        self.listen.insert(name.to_string(), at.to_string());
    }

    /// What is added from now on does not end with its parent, as a daemon of a site.
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// A broker, and under it a gateway that dials it and serves it over that connection; two agents of two slots.
    pub fn dialling() -> Self {
        let mut tree = Tree::new();
        tree.broker_of("eu", &[("campus", None)], None);
        let (endpoint, ca) = (tree.endpoint("eu"), tree.identity("eu").join("ca.pem"));
        tree.gateway("campus", Some("eu"), &format!("\n[parent]\nendpoint = \"{endpoint}\"\nca = \"{}\"\n", ca.display()));
        tree.agent("campus-1", "campus", "slots = 2\n");
        tree.agent("campus-2", "campus", "slots = 2\n");
        tree.user("eu").until_slots(4, ATTACH_TIMEOUT);
        tree
    }

    /// root broker, middle broker, gateway, two agents of two slots; ready when the root knows all slots.
    pub fn deep() -> Self {
        let mut tree = Tree::new();
        tree.gateway("campus", Some("eu"), "");
        tree.broker("eu", &["campus"], Some("root"));
        tree.broker("root", &["eu"], None);
        tree.agent("campus-1", "campus", "slots = 2\n");
        tree.agent("campus-2", "campus", "slots = 2\n");
        tree.user("root").until_slots(4, ATTACH_TIMEOUT);
        tree
    }

    /// A gateway with one agent of two slots.
    pub fn flat() -> Self {
        let mut tree = Tree::new();
        tree.gateway("campus", Some("eu"), "");
        tree.agent("campus-1", "campus", "slots = 2\nmemory = \"1G\"\n");
        tree.user("campus").until_slots(2, ATTACH_TIMEOUT);
        tree
    }

    /// A broker above [`flat`](Self::flat)'s gateway.
    pub fn add_broker(&mut self) {
        self.broker("eu", &["campus"], None);
        self.user("eu").until_slots(2, ATTACH_TIMEOUT);
    }

    /// A directory of its own, made when asked for first.
    pub fn path(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// A disk of this many MiB for the state of a part that is not there yet.
    pub fn small_disk(&mut self, name: &str, mib: u32) -> PathBuf {
        let at = self.path(name).join("state");
        fs::create_dir(&at).unwrap();
        let size = format!("size={mib}m,mode=0700");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "intergrid-test"]).arg(&at).output().expect("`mount` is missing");
        let said = String::from_utf8_lossy(&mount.stderr).into_owned();
        assert!(mount.status.success(), "a tmpfs can't be mounted at {}: {said}this test needs root (CAP_SYS_ADMIN)", at.display());
        self.disks.push(at.clone());
        at
    }

    pub fn identity(&self, site: &str) -> PathBuf {
        let dir = self.path(site).join("identity");
        if !dir.exists() {
            issue::new_site(&dir, site, &[]).unwrap();
        }
        dir
    }

    /// Write a gateway's configuration, with `more` at its end, and start it.
    pub fn gateway(&mut self, name: &str, parent: Option<&str>, more: &str) {
        let text = self.site(name, parent, r#""user", "admin", "agent""#);
        self.add(name, "gateway", &(text + more));
    }

    /// Write a broker's configuration and start it; its children are there already.
    pub fn broker(&mut self, name: &str, children: &[&str], parent: Option<&str>) {
        let children: Vec<(&str, Option<String>)> = children.iter().map(|c| (*c, Some(self.endpoint(c)))).collect();
        self.broker_of(name, &children, parent);
    }

    /// The same, with children where they are said to be; without an endpoint they dial.
    pub fn broker_of(&mut self, name: &str, children: &[(&str, Option<String>)], parent: Option<&str>) {
        let mut text = self.site(name, parent, r#""user", "admin""#);
        for (child, endpoint) in children {
            let ca = self.identity(child).join("ca.pem");
            let (at, ca) = (endpoint.as_ref().map(|e| format!("endpoint = \"{e}\"\n")).unwrap_or_default(), ca.display());
            text += &format!("\n[[child]]\nname = \"{child}\"\n{at}ca = \"{ca}\"\n");
            if at.is_empty() {
                text += &format!("\n[[trust]]\nca = \"{ca}\"\nmay = [\"child\"]\n");
            }
        }
        self.add(name, "broker", &text);
    }

    /// Write an agent's configuration and start it.
    pub fn agent(&mut self, name: &str, gateway: &str, more: &str) {
        self.agent_at(name, gateway, &self.endpoint(gateway), more);
    }

    /// The same, where the gateway is said to be elsewhere.
    pub fn agent_at(&mut self, name: &str, gateway: &str, endpoint: &str, more: &str) {
        issue::issue(self.identity(gateway), CertRole::Agent, name, self.path(name).join("identity"), Validity::default()).unwrap();
        self.add(name, "agent", &format!("name = \"{name}\"\ngateway = \"{endpoint}\"\nidentity = \"identity\"\nstate = \"state\"\n{more}"));
    }

    /// An agent that has a token instead of an identity, as `token` beside its configuration; launched only.
    pub fn joining(&mut self, dir: &str, name: &str, gateway: &str, more: &str) {
        let words = "identity = \"identity\"\nstate = \"state\"\ntoken = \"token\"";
        let config = format!("name = \"{name}\"\ngateway = \"{}\"\n{words}\n{more}", self.endpoint(gateway));
        fs::write(self.config(dir), config).unwrap();
        self.parts.insert(dir.to_string(), Part { role: "agent", alone: self.alone, endpoint: String::new(), child: None });
        self.launch(dir);
    }

    /// Does it end by itself?
    pub fn ended(&mut self, name: &str) -> bool {
        let mut child = self.parts.get_mut(name).unwrap().child.take().unwrap();
        await_end(&mut child)
    }

    fn site(&self, name: &str, parent: Option<&str>, own: &str) -> String {
        self.identity(name);
        let listen = self.listen.get(name).map_or("127.0.0.1:0", String::as_str);
        let mut text = format!("name = \"{name}\"\nlisten = \"{listen}\"\nstate = \"state\"\nidentity = \"identity\"\n");
        text += &format!("\n[[trust]]\nca = \"identity/ca.pem\"\nmay = [{own}]\n");
        if let Some(parent) = parent {
            let ca = self.identity(parent).join("ca.pem");
            text += &format!("\n[[trust]]\nca = \"{}\"\nmay = [\"delegate\"]\non_behalf = [\"*\"]\n", ca.display());
        }
        text
    }

    fn add(&mut self, name: &str, role: &'static str, config: &str) {
        fs::write(self.config(name), config).unwrap();
        self.parts.insert(name.to_string(), Part { role, alone: self.alone, endpoint: String::new(), child: None });
        self.start(name);
    }

    /// Its configuration.
    pub fn config(&self, name: &str) -> PathBuf {
        self.path(name).join("config.toml")
    }

    /// Its log.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(name).join("log")).unwrap_or_default()
    }

    /// Where it listens.
    pub fn endpoint(&self, name: &str) -> String {
        self.parts[name].endpoint.clone()
    }

    /// Its process.
    pub fn pid(&self, name: &str) -> u32 {
        self.parts[name].child.as_ref().unwrap().id()
    }

    /// Start it, with the configuration it had, and wait until it serves.
    pub fn start(&mut self, name: &str) {
        self.launch(name);
        self.until_ready(name);
    }

    /// Start it. An agent is ready when its gateway has answered.
    pub fn launch(&mut self, name: &str) {
        let (config, ready) = (self.config(name), self.path(name).join("ready.json"));
        _ = fs::remove_file(&ready);
        let log = OpenOptions::new().create(true).append(true).open(self.path(name).join("log")).unwrap();
        let programs = self.programs.clone();
        let program = |name: &str| programs.as_ref().map_or_else(|| binary(name), |dir| dir.join(name));
        let part = self.parts.get_mut(name).unwrap();
        assert!(part.child.is_none(), "{name} runs already");
        let mut command = match part.role {
            "agent" => Command::new(program("grid-agent")),
            role => {
                let mut grid = Command::new(program("grid"));
                grid.arg(role);
                grid
            }
        };
        command.arg("--config").arg(config).arg("--ready-file").arg(&ready);
        if !part.alone {
            command.arg("--die-with-parent");
        }
        command.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log).env_clear();
        // What a task must not see.
        command.env("SECRET_OF_THE_AGENT", "1").envs(self.environment.iter().map(|(k, v)| (k, v)));
        part.child = Some(command.spawn().unwrap());
    }

    /// Wait until it serves.
    pub fn until_ready(&mut self, name: &str) {
        let ready = self.path(name).join("ready.json");
        let part = self.parts.get_mut(name).unwrap();
        let child = part.child.as_mut().unwrap();
        let said: Value = until(&format!("{name} serves"), READY_TIMEOUT, || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{name} ended with {status}: {}", fs::read_to_string(ready.with_file_name("log")).unwrap_or_default());
            }
            let text = fs::read_to_string(&ready).map_err(|e| e.to_string())?;
            serde_json::from_str(&text).map_err(|e| e.to_string())
        });
        assert_eq!(Some(u64::from(child.id())), said["pid"].as_u64(), "{said}");
        let endpoint = said["endpoint"].as_str().unwrap_or_default().to_string();
        assert!(part.endpoint.is_empty() || part.endpoint == endpoint, "{name} keeps its port");
        part.endpoint = endpoint;
    }

    /// SIGSTOP, or SIGCONT.
    pub fn freeze(&self, name: &str, frozen: bool) {
        let child = self.parts[name].child.as_ref().unwrap();
        kill_process(Pid::from_child(child), if frozen { Signal::STOP } else { Signal::CONT }).unwrap();
    }

    /// kill -9.
    pub fn kill(&mut self, name: &str) {
        let mut child = self.parts.get_mut(name).unwrap().child.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; its exit code, None where it did not end by itself.
    pub fn terminate(&mut self, name: &str) -> Option<i32> {
        let mut child = self.parts.get_mut(name).unwrap().child.take().unwrap();
        _ = kill_process(Pid::from_child(&child), Signal::TERM);
        await_end(&mut child).then(|| child.wait().unwrap().code()).flatten()
    }

    /// Processes with a configuration below this part's directory, itself not among them: those that it has started, and not ended.
    pub fn below(&self, name: &str) -> BTreeSet<i32> {
        let (state, mut found) = (self.path(name).canonicalize().unwrap().join("state"), BTreeSet::new());
        for pid in fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()) {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<String> = line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
            if words.windows(2).any(|w| w[0] == "--config" && Path::new(&w[1]).starts_with(&state)) {
                found.insert(pid);
            }
        }
        found
    }

    /// A user of this site, with an administrator's rights.
    pub fn user(&self, site: &str) -> User {
        self.user_as(site, CertRole::Admin, "me")
    }

    /// A user of this site; the home is made when asked for first.
    pub fn user_as(&self, site: &str, role: CertRole, name: &str) -> User {
        let home = self.dir.path().join(format!("home-{site}-{name}"));
        if !home.exists() {
            issue::issue(self.identity(site), role, name, &home, Validity::default()).unwrap();
        }
        fs::write(home.join("config.toml"), format!("endpoint = \"{}\"\n", self.endpoint(site))).unwrap();
        User::new(home, self.path("work"))
    }
}

/// Has it ended by itself? It is killed where it has not.
fn await_end(child: &mut Child) -> bool {
    let deadline = Instant::now() + END_TIMEOUT;
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(LOOK_INTERVAL),
            Ok(Some(_)) | Err(_) => return true,
        }
    }
    _ = child.kill();
    _ = child.wait();
    false
}

impl Drop for Tree {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in self.parts.keys() {
                let log = self.log(name);
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("--- the log of {name} ends:\n{}", lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n"));
            }
        }
        // What is left of those that do not end with us.
        let alone: Vec<String> = self.parts.iter().filter(|(_, p)| p.alone).map(|(name, _)| name.clone()).collect();
        for name in alone {
            if self.parts[&name].child.is_some() {
                _ = self.terminate(&name);
            }
            self.below(&name).into_iter().filter_map(Pid::from_raw).for_each(|pid| _ = kill_process(pid, Signal::KILL));
        }
        // All at once, so that each finds its end without waiting for the others.
        let mut children: Vec<Child> = std::mem::take(&mut self.parts).into_values().filter_map(|p| p.child).collect();
        children.iter_mut().for_each(|c| {
            // A test that failed may have left it frozen.
            _ = kill_process(Pid::from_child(c), Signal::CONT);
            drop(c.stdin.take());
        });
        children.iter_mut().for_each(|c| _ = await_end(c));
        for disk in &self.disks {
            _ = Command::new("umount").arg("-l").arg(disk).status();
        }
    }
}

/// A file that is there.
pub fn touch(path: &Path) {
    drop(File::create(path).unwrap());
}
