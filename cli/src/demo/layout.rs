//! The demo's grid of grids, as files: who there is, an identity for each, a configuration for each. The same files would serve on many machines.
//!
//! ```text
//! root (broker)
//! ├─ eu (broker)
//! │  ├─ campus (gateway)   campus-1, campus-2 (agents, started by the demo)
//! │  └─ partner (gateway)  partner-1 (agent, started by the demo)
//! └─ burst (gateway)       two agents, started by its `process` provider
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use intergrid_proto::Refusal;
use intergrid_proto::link::Kind;
use intergrid_proto::net::CertRole;
use intergrid_proto::net::issue::{self, Validity};

use crate::stop::local;

/// Slots of each agent.
pub const AGENT_SLOTS: u64 = 2;
/// Agents that `burst` starts.
pub const BURST_AGENTS: u64 = 2;
/// An agent has at least so much memory, even where the machine has less for each.
const AGENT_MEMORY_MIB_MIN: u64 = 256;
/// The gateway whose agents are started by its provider.
pub const BURST: &str = "burst";

/// One part of the grid; all but the provider's agents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// Its label.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Above it.
    pub parent: Option<&'static str>,
}

const fn part(name: &'static str, kind: Kind, parent: Option<&'static str>) -> Part {
    Part { name, kind, parent }
}

/// All of them, from the top.
pub const PARTS: [Part; 8] = [
    part("root", Kind::Broker, None),
    part("eu", Kind::Broker, Some("root")),
    part("campus", Kind::Gateway, Some("eu")),
    part("partner", Kind::Gateway, Some("eu")),
    part(BURST, Kind::Gateway, Some("root")),
    part("campus-1", Kind::Agent, Some("campus")),
    part("campus-2", Kind::Agent, Some("campus")),
    part("partner-1", Kind::Agent, Some("partner")),
];

/// In this order they find each other: a gateway needs nobody; an agent dials its gateway, and a broker its children.
pub const WAVES: [&[&str]; 3] = [&["campus", "partner", BURST], &["eu", "campus-1", "campus-2", "partner-1"], &["root"]];

/// Agents that attach.
pub fn agents() -> u64 {
    PARTS.iter().filter(|p| p.kind == Kind::Agent).count() as u64 + BURST_AGENTS
}

/// Memory of each agent: all of them share one machine, and together they don't say that they have more than it.
pub fn agent_memory_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|l| l.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    (total.unwrap_or(0) / 1_024 / agents()).max(AGENT_MEMORY_MIB_MIN)
}

/// The part of this name.
pub fn named(name: &str) -> Option<&'static Part> {
    PARTS.iter().find(|p| p.name == name)
}

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Of the whole demo.
    pub root: PathBuf,
}

impl Layout {
    /// What belongs to one part.
    pub fn dir(&self, name: &str) -> PathBuf {
        self.root.join("parts").join(name)
    }

    /// Its configuration.
    pub fn config(&self, name: &str) -> PathBuf {
        self.dir(name).join("config.toml")
    }

    /// What it says once it serves.
    pub fn ready(&self, name: &str) -> PathBuf {
        self.dir(name).join("ready.json")
    }

    /// What it logs.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir(name).join("log")
    }

    /// The user's home.
    pub fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    /// Outputs that came back.
    pub fn outputs(&self) -> PathBuf {
        self.root.join("outputs")
    }

    /// What is left running, for `--stop`.
    pub fn record(&self) -> PathBuf {
        self.root.join("demo.json")
    }

    /// An identity for each part: a site has a certificate authority of its own, an agent a certificate of its gateway's.
    pub fn make_identities(&self) -> Result<(), Refusal> {
        for part in PARTS.iter().filter(|p| p.kind != Kind::Agent) {
            let dir = self.dir(part.name);
            fs::create_dir_all(&dir).map_err(|e| local(format!("{} can't be made: {e}", dir.display())))?;
            issue::new_site(dir.join("identity"), part.name, &[])?;
        }
        for (part, gateway) in PARTS.iter().filter(|p| p.kind == Kind::Agent).filter_map(|p| Some((p, p.parent?))) {
            let site = self.dir(gateway).join("identity");
            let dir = self.dir(part.name);
            fs::create_dir_all(&dir).map_err(|e| local(format!("{} can't be made: {e}", dir.display())))?;
            issue::issue(site, CertRole::Agent, part.name, dir.join("identity"), Validity::default())?;
        }
        Ok(())
    }

    /// Write a part's configuration; `endpoint` knows where those are that it dials.
    pub fn write_config(&self, part: &Part, endpoint: impl Fn(&str) -> Option<String>) -> Result<(), Refusal> {
        let path = self.config(part.name);
        let text = config(part, endpoint)?;
        fs::write(&path, text).map_err(|e| local(format!("{} can't be written: {e}", path.display())))
    }
}

/// Paths are relative to the part's directory.
fn config(part: &Part, endpoint: impl Fn(&str) -> Option<String>) -> Result<String, Refusal> {
    let at = |name: &str| endpoint(name).ok_or_else(|| local(format!("{} dials {name}, which does not serve yet", part.name)));
    let name = part.name;
    let machine = format!("slots = {AGENT_SLOTS}\nmemory = \"{}M\"\n", agent_memory_mib());
    if part.kind == Kind::Agent {
        let gateway = at(part.parent.unwrap_or_default())?;
        return Ok(format!("name = \"{name}\"\ngateway = \"{gateway}\"\nidentity = \"identity\"\nstate = \"state\"\n{machine}"));
    }
    let mut text = format!("name = \"{name}\"\nlisten = \"127.0.0.1:0\"\nstate = \"state\"\nidentity = \"identity\"\n");
    let own = if part.kind == Kind::Gateway { r#""user", "admin", "agent""# } else { r#""user", "admin""# };
    text += &format!("\n[[trust]]\nca = \"identity/ca.pem\"\nmay = [{own}]\n");
    if let Some(parent) = part.parent {
        text += &format!("\n[[trust]]\nca = \"../{parent}/identity/ca.pem\"\nmay = [\"delegate\"]\non_behalf = [\"*\"]\n");
    }
    match part.kind {
        Kind::Gateway if name == BURST => {
            text += &format!("\n[agents]\nprovider = \"process\"\nagents = {BURST_AGENTS}\n{machine}");
        }
        Kind::Gateway => text += "\n[agents]\nprovider = \"static\"\n",
        Kind::Broker => {
            for child in PARTS.iter().filter(|p| p.parent == Some(name)) {
                let (child, at) = (child.name, at(child.name)?);
                text += &format!("\n[[child]]\nname = \"{child}\"\nendpoint = \"{at}\"\nca = \"../{child}/identity/ca.pem\"\n");
            }
        }
        Kind::Agent => {}
    }
    Ok(text)
}

/// A directory that holds nothing yet.
pub fn fresh(dir: Option<&Path>) -> Result<PathBuf, Refusal> {
    let dir = match dir {
        Some(dir) => dir.to_owned(),
        None => {
            let mut mark = [0u8; 5];
            let random = rustix::rand::getrandom(&mut mark[..], rustix::rand::GetRandomFlags::empty());
            random.map_err(|e| local(format!("no random name: {e}")))?;
            std::env::temp_dir().join(format!("intergrid-demo-{}", crate::render::hex(&mark)))
        }
    };
    let bad = |e: std::io::Error| local(format!("{} can't be made: {e}", dir.display())).remedy("give another --dir");
    fs::create_dir_all(&dir).map_err(bad)?;
    if fs::read_dir(&dir).map_err(bad)?.next().is_some() {
        let shown = dir.display();
        return Err(
            local(format!("{shown} is not empty")).remedy(format!("give another --dir; `grid demo --stop {shown}` stops a demo that runs there"))
        );
    }
    dir.canonicalize().map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_start_everybody_once_and_never_before_whom_they_dial() {
        let order: Vec<&str> = WAVES.iter().flat_map(|w| w.iter().copied()).collect();
        assert_eq!(PARTS.len(), order.len());
        let wave = |name: &str| WAVES.iter().position(|w| w.contains(&name)).unwrap();
        for p in PARTS {
            let Some(parent) = p.parent else { continue };
            match p.kind {
                Kind::Agent => assert!(wave(p.name) > wave(parent), "{}", p.name),
                Kind::Broker | Kind::Gateway => assert!(wave(p.name) < wave(parent), "{}", p.name),
            }
        }
    }

    #[test]
    fn identities_and_configurations_are_made() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { root: fresh(Some(&dir.path().join("new"))).unwrap() };
        layout.make_identities().unwrap();
        for p in &PARTS {
            layout.write_config(p, |name| Some(format!("127.0.0.1:{}", name.len()))).unwrap();
            let text = fs::read_to_string(layout.config(p.name)).unwrap();
            let table: toml::Table = text.parse().unwrap();
            assert_eq!(p.name, table["name"].as_str().unwrap());
            assert!(layout.dir(p.name).join("identity/key.pem").exists());
        }
        let eu: toml::Table = fs::read_to_string(layout.config("eu")).unwrap().parse().unwrap();
        assert_eq!((2, 2), (eu["child"].as_array().unwrap().len(), eu["trust"].as_array().unwrap().len()));
        assert!(fresh(Some(&layout.root)).unwrap_err().message.contains("not empty"));
        assert!(layout.write_config(&PARTS[0], |_| None).unwrap_err().message.contains("root dials eu"));
    }
}
