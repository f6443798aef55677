//! A tree of real processes: a chain of brokers over one gateway and its agents, as the release binaries, each with its own certificate, port and store.
//! Everything ends with the [`Tree`], also where the benchmark is killed: each part holds the other end of our pipe.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use intergrid_proto::net::issue::{self, Validity};
use intergrid_proto::net::{CertRole, Identity};
use intergrid_tests::client::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::machine;
use crate::record::Result;

/// A part serves, and all slots are known at the top, by then.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// What was told to end is killed after this.
const END_TIMEOUT: Duration = Duration::from_secs(6);
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// The gateway's label.
pub const GATEWAY: &str = "campus";

/// The binaries.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Every verb, gateways and brokers.
    pub grid: PathBuf,
    /// The agent.
    pub agent: PathBuf,
}

/// What a tree looks like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Brokers above the gateway.
    pub depth: u32,
    /// Its agents.
    pub agents: u32,
    /// Of each agent.
    pub slots: u32,
    /// Tasks end at once, without being executed.
    pub null: bool,
    /// Stores, spools and task directories below this.
    pub work: PathBuf,
}

#[derive(Debug)]
struct Part {
    name: String,
    role: &'static str,
    endpoint: String,
    child: Option<Child>,
}

/// The tree.
#[derive(Debug)]
pub struct Tree {
    programs: Programs,
    plan: Plan,
    dir: tempfile::TempDir,
    parts: Vec<Part>,
    /// Of the gateway's configuration, its end.
    section: String,
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> String {
    let path = path.display().to_string();
    move |e| format!("{path}: {e}")
}

/// Look until it is there.
pub fn until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match look() {
            Ok(there) => return Ok(there),
            Err(seen) if Instant::now() > deadline => return Err(format!("{what}: not within {patience:?}; last seen: {seen}")),
            Err(_) => sleep(LOOK_INTERVAL),
        }
    }
}

impl Tree {
    /// Made, started, and all slots known at the top.
    pub fn start(programs: &Programs, plan: Plan) -> Result<Tree> {
        let mut tree = Tree::prepare(programs, plan)?;
        tree.start_all()?;
        tree.until_slots(READY_TIMEOUT)?;
        Ok(tree)
    }

    /// Made, with nothing running.
    pub fn prepare(programs: &Programs, plan: Plan) -> Result<Tree> {
        let dir = tempfile::Builder::new().prefix("tree-").tempdir_in(&plan.work).map_err(io(&plan.work))?;
        let mut tree = Tree { programs: programs.clone(), plan, dir, parts: Vec::new(), section: String::new() };
        for level in 0..=tree.plan.depth {
            let name = tree.site(level);
            issue::new_site(tree.path(&name)?.join("identity"), &name, &[]).map_err(|r| r.to_string())?;
            tree.add(name, if level == 0 { "gateway" } else { "broker" });
        }
        for n in 1..=tree.plan.agents {
            let name = format!("a{n}");
            let to = tree.path(&name)?.join("identity");
            issue::issue(tree.path(GATEWAY)?.join("identity"), CertRole::Agent, &name, to, Validity::default()).map_err(|r| r.to_string())?;
            tree.add(name, "agent");
        }
        for level in 0..=tree.plan.depth {
            let name = tree.site(level);
            let (from, to) = (tree.path(&name)?.join("identity"), tree.dir.path().join(format!("home-{name}")));
            issue::issue(from, CertRole::Admin, "me", &to, Validity::default()).map_err(|r| r.to_string())?;
        }
        Ok(tree)
    }

    /// Its gateway has this section in its configuration.
    pub fn with_section(mut self, section: String) -> Tree {
        self.section = section;
        self
    }

    fn add(&mut self, name: String, role: &'static str) {
        self.parts.push(Part { name, role, endpoint: String::new(), child: None });
    }

    /// The site at a level: 0 is the gateway.
    pub fn site(&self, level: u32) -> String {
        if level == 0 { GATEWAY.into() } else { format!("b{level}") }
    }

    /// The site that users of the whole tree ask.
    pub fn root(&self) -> String {
        self.site(self.plan.depth)
    }

    /// All parts by name, from the gateway up, then agents.
    pub fn names(&self) -> Vec<String> {
        self.parts.iter().map(|p| p.name.clone()).collect()
    }

    /// A part's directory.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).map_err(io(&path))?;
        Ok(path)
    }

    fn part(&mut self, name: &str) -> Result<&mut Part> {
        self.parts.iter_mut().find(|p| p.name == name).ok_or_else(|| format!("no part {name}"))
    }

    fn endpoint(&self, name: &str) -> Result<String> {
        let part = self.parts.iter().find(|p| p.name == name && !p.endpoint.is_empty());
        part.map(|p| p.endpoint.clone()).ok_or_else(|| format!("{name} has not been started"))
    }

    /// Children before the parents that dial them.
    pub fn start_all(&mut self) -> Result<()> {
        self.names().iter().try_for_each(|n| self.start_part(n))
    }

    fn config(&self, name: &str, role: &str) -> Result<String> {
        let common = format!("name = \"{name}\"\nstate = \"state\"\nidentity = \"identity\"\n");
        if role == "agent" {
            let null = if self.plan.null { "executor = \"null\"\n" } else { "" };
            return Ok(format!("{common}gateway = \"{}\"\nslots = {}\n{null}", self.endpoint(GATEWAY)?, self.plan.slots));
        }
        let level = (0..=self.plan.depth).find(|l| self.site(*l) == name).ok_or("not a site")?;
        let own = if level == 0 { r#""user", "admin", "agent""# } else { r#""user", "admin""# };
        let mut text = format!("{common}listen = \"127.0.0.1:0\"\n\n[[trust]]\nca = \"identity/ca.pem\"\nmay = [{own}]\n");
        if level < self.plan.depth {
            let parent = self.site(level + 1);
            text += &format!("\n[[trust]]\nca = \"../{parent}/identity/ca.pem\"\nmay = [\"delegate\"]\non_behalf = [\"*\"]\n");
        }
        if level == 0 {
            text += &self.section;
        } else {
            let child = self.site(level - 1);
            let at = self.endpoint(&child)?;
            text += &format!("\n[[child]]\nname = \"{child}\"\nendpoint = \"{at}\"\nca = \"../{child}/identity/ca.pem\"\n");
        }
        Ok(text)
    }

    /// Start a part.
    pub fn spawn_part(&mut self, name: &str) -> Result<()> {
        let (dir, role) = (self.path(name)?, self.part(name)?.role);
        let (config, ready) = (dir.join("config.toml"), dir.join("ready.json"));
        fs::write(&config, self.config(name, role)?).map_err(io(&config))?;
        _ = fs::remove_file(&ready);
        let log = OpenOptions::new().create(true).append(true).open(dir.join("log")).map_err(io(&dir))?;
        let mut command = match role {
            "agent" => Command::new(&self.programs.agent),
            role => {
                let mut grid = Command::new(&self.programs.grid);
                grid.arg(role);
                grid
            }
        };
        command.arg("--config").arg(&config).arg("--ready-file").arg(&ready).arg("--die-with-parent");
        let log_too = log.try_clone().map_err(io(&dir))?;
        command.stdin(Stdio::piped()).stdout(log_too).stderr(log).env_clear();
        let child = command.spawn().map_err(io(&config))?;
        self.part(name)?.child = Some(child);
        Ok(())
    }

    /// Start a part and wait until it serves.
    pub fn start_part(&mut self, name: &str) -> Result<()> {
        self.spawn_part(name)?;
        let dir = self.path(name)?;
        let ready = dir.join("ready.json");
        let endpoint = until(&format!("{name} serves"), READY_TIMEOUT, || {
            let text = fs::read_to_string(&ready).map_err(|e| format!("{e}; see {}", dir.join("log").display()))?;
            let said: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
            Ok(said["endpoint"].as_str().unwrap_or_default().to_string())
        })?;
        self.part(name)?.endpoint = endpoint;
        Ok(())
    }

    /// Somebody else serves in a part's place.
    pub fn stands_for(&mut self, name: &str, endpoint: &str) -> Result<()> {
        self.part(name)?.endpoint = endpoint.to_string();
        Ok(())
    }

    /// Its process.
    pub fn pid(&self, name: &str) -> Result<u32> {
        let part = self.parts.iter().find(|p| p.name == name);
        part.and_then(|p| p.child.as_ref()).map(Child::id).ok_or_else(|| format!("{name} does not run"))
    }

    /// Send a signal to a part; after a kill it can be started again.
    pub fn signal(&mut self, name: &str, signal: Signal) -> Result<()> {
        let part = self.part(name)?;
        let child = part.child.as_mut().ok_or_else(|| format!("{name} does not run"))?;
        kill_process(Pid::from_child(child), signal).map_err(|e| format!("{name}: {e}"))?;
        if signal == Signal::KILL {
            _ = child.wait();
            part.child = None;
        }
        Ok(())
    }

    /// CPU seconds so far, by part.
    pub fn cpu(&self) -> Vec<(String, f64)> {
        self.parts.iter().filter_map(|p| Some((p.name.clone(), machine::cpu(p.child.as_ref()?.id())))).collect()
    }

    /// Resident memory of a part, MiB.
    pub fn resident(&self, name: &str) -> Result<f64> {
        self.pid(name).map(machine::resident)
    }

    /// A verb of a user of this site, ready to be run.
    pub fn verb(&self, site: &str, words: &[&str]) -> Result<Command> {
        let mut command = Command::new(&self.programs.grid);
        command.args(words).env_clear().env("INTERGRID_HOME", self.dir.path().join(format!("home-{site}")));
        command.env("INTERGRID_ENDPOINT", self.endpoint(site)?).current_dir(self.dir.path());
        Ok(command)
    }

    /// What a verb says at the top, as JSON of its last line.
    pub fn ask(&self, words: &[&str]) -> Result<Value> {
        let mut command = self.verb(&self.root(), &[&["--json"], words].concat())?;
        let out = command.stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&out.stdout);
        let last = text.lines().last().ok_or_else(|| format!("{words:?}: {}", String::from_utf8_lossy(&out.stderr)))?;
        serde_json::from_str(last).map_err(|e| format!("{words:?}: {e}: {last}"))
    }

    /// All slots are known at the top.
    pub fn until_slots(&self, patience: Duration) -> Result<()> {
        let slots = u64::from(self.plan.agents * self.plan.slots);
        until(&format!("{slots} slots at the top"), patience, || {
            let host = self.ask(&["hosts"])?;
            if host["slots_total"].as_u64() == Some(slots) { Ok(()) } else { Err(host.to_string()) }
        })
    }

    /// A client of this site over one connection.
    pub async fn client(&self, site: &str) -> Result<Client> {
        let home = self.dir.path().join(format!("home-{site}"));
        let identity = Identity::load(&home).map_err(|r| r.to_string())?;
        let ca = fs::read(home.join("ca.pem")).map_err(io(&home))?;
        Client::connect(&self.endpoint(site)?, &identity, &ca).await.map_err(|r| r.to_string())
    }

    /// End all parts and keep their state.
    pub fn stop_all(&mut self) {
        // All at once, so that each finds its end without waiting for the others.
        let mut children: Vec<Child> = self.parts.iter_mut().filter_map(|p| p.child.take()).collect();
        for c in &mut children {
            _ = kill_process(Pid::from_child(c), Signal::CONT);
            drop(c.stdin.take());
        }
        let deadline = Instant::now() + END_TIMEOUT;
        for c in &mut children {
            while Instant::now() < deadline && matches!(c.try_wait(), Ok(None)) {
                sleep(LOOK_INTERVAL);
            }
            _ = c.kill();
            _ = c.wait();
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.stop_all();
    }
}
