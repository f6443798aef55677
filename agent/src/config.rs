//! The agent's configuration file: TOML, every key known, relative paths relative to the file.

use std::fs;
use std::path::{Path, PathBuf};

use intergrid_proto::error::line_and_column;
use intergrid_proto::limits::{GPUS_PER_MACHINE_MAX, MEMORY_PER_TASK_BYTES_MAX, SLOTS_PER_TASK_MAX};
use intergrid_proto::net::http_authority;
use intergrid_proto::net::identity::{CertRole, Identity};
use intergrid_proto::{Refusal, RefusalKind};
use serde::{Deserialize, Deserializer, de};

/// How tasks are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Executor {
    /// As processes.
    #[default]
    Process,
    /// Not at all: each ends at once with exit code 0. For measuring everything but the execution; never for work.
    Null,
}

/// What an agent is told.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// Its label, as in its certificate.
    pub name: String,
    /// Where its gateway listens: `host:port`.
    pub gateway: String,
    /// Directory of its certificate, key, and its gateway's CA.
    pub identity: PathBuf,
    /// With which it asks for a certificate where `identity` has none: a file of `grid token`; deleted when it has been used.
    #[serde(default)]
    pub token: Option<PathBuf>,
    /// Directory of its spool, task directories and cached content. On a local disk; one agent a directory.
    pub state: PathBuf,
    /// Slots it offers; absent: one a core.
    #[serde(default)]
    pub slots: Option<u32>,
    /// Memory it offers, as `"2G"`; absent: the machine's.
    #[serde(default, deserialize_with = "bytes")]
    pub memory: Option<u64>,
    /// GPUs it offers; absent: those that it finds.
    #[serde(default)]
    pub gpus: Option<u32>,
    /// A memory cgroup that is delegated to it; absent: memory is sampled.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// With less free on the disk of `state` no task is begun, as `"64M"`; absent: 64 MiB, or an eighth of a small disk.
    #[serde(default, deserialize_with = "bytes")]
    pub state_free_min_bytes: Option<u64>,
    /// Without its gateway and with nothing that runs, it ends after so long, as `"10m"`; absent: never.
    #[serde(default, deserialize_with = "time")]
    pub alone_max: Option<u64>,
    /// What it runs as its last act then, program and arguments, as `["systemctl", "poweroff"]`.
    #[serde(default)]
    pub on_alone: Vec<String>,
    /// So long after its start it takes no new work, as `"3h"`: of a machine whose time is limited; absent: never.
    #[serde(default, deserialize_with = "time")]
    pub retire_after: Option<u64>,
    /// So long after its start the machine goes away, as `"4h"`: tasks whose time limit is longer than what is left go elsewhere; absent: it stays.
    #[serde(default, deserialize_with = "time")]
    pub ends_after: Option<u64>,
    /// Where the machine's provider says that it takes it back, as `"http://169.254.169.254"` (EC2); absent: nobody is asked.
    #[serde(default)]
    pub notices: Option<String>,
    /// When it is stopped, its tasks end with it: of a machine that goes away then. Else they run on, and its next start finds them.
    #[serde(default)]
    pub stop_ends_tasks: bool,
    /// How tasks are run.
    #[serde(default)]
    pub executor: Executor,
}

impl AgentConfig {
    /// Read and check a file. Errors name it, with line and column.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Refusal> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|e| {
            Refusal::new(RefusalKind::NotFound, format!("configuration {}: {e}", path.display())).remedy("name an agent's file with --config")
        })?;
        let directory = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, directory).map_err(|e| {
            // `LINE:COLUMN: what`, where the place is known, goes on as a sites' does: `FILE:LINE:COLUMN: what`.
            let gap = if e.message.starts_with(|c: char| c.is_ascii_digit()) { "" } else { " " };
            Refusal::invalid(format!("{}:{gap}{}", path.display(), e.message)).remedy(e.remedy)
        })
    }

    /// From text; relative paths are relative to `directory`. Errors begin with line and column where they are known.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, Refusal> {
        let mut config: AgentConfig = toml::from_str(text).map_err(|e| {
            let place = e.span().map_or(String::new(), |span| format!("{}: ", line_and_column(text, span.start)));
            Refusal::invalid(format!("{place}{}", e.message()))
        })?;
        config.identity = directory.join(&config.identity);
        config.state = directory.join(&config.state);
        config.token = config.token.map(|token| directory.join(token));
        config.check()?;
        Ok(config)
    }

    /// Its identity, which is that of an agent of this name.
    pub fn identity(&self) -> Result<Identity, Refusal> {
        let identity = Identity::load(&self.identity)?;
        if identity.role() != CertRole::Agent || identity.label() != self.name {
            let message = format!("identity {}: it is that of {}, not of agent {:?}", self.identity.display(), identity.cert(), self.name);
            return Err(Refusal::new(RefusalKind::NotAuthorised, message).remedy("correct `name` or `identity`"));
        }
        Ok(identity)
    }

    /// Is there with what it can be an agent: its identity, or a token for which it gets one?
    pub fn check_identity(&self) -> Result<(), Refusal> {
        match &self.token {
            Some(token) if token.exists() => Identity::load_token(token).map(drop),
            _ => self.identity().map(drop),
        }
    }

    fn check(&self) -> Result<(), Refusal> {
        let wrong = |message: String| Err(Refusal::invalid(message));
        if self.name.is_empty() || self.name.len() > intergrid_proto::limits::NAME_BYTES_MAX || self.name.chars().any(char::is_control) {
            return wrong(format!("name: {:?} is not a label", self.name));
        }
        if self.gateway.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
            return wrong(format!("gateway: {:?} is not an endpoint; write host:port", self.gateway));
        }
        if let Some(url) = self.notices.as_ref().filter(|url| http_authority(url).is_none()) {
            return wrong(format!("notices: {url:?} is not the address of a service; write http://host or http://host:port"));
        }
        if let Some(n) = self.slots.filter(|n| !(1..=SLOTS_PER_TASK_MAX).contains(n)) {
            return wrong(format!("slots: {n} is not between 1 and {SLOTS_PER_TASK_MAX}"));
        }
        if let Some(n) = self.gpus.filter(|n| *n > GPUS_PER_MACHINE_MAX) {
            return wrong(format!("gpus: {n} is not between 0 and {GPUS_PER_MACHINE_MAX}"));
        }
        Ok(())
    }
}

fn time<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(d)?;
    let time = intergrid_proto::units::parse_duration(&text).map_err(|e| de::Error::custom(e.to_string()))?;
    Ok(Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)))
}

fn bytes<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(d)?;
    let wrong = || de::Error::custom(format!("{text:?} is not a size: write a number with K, M, G or T, as \"2G\""));
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(wrong()),
    };
    let n = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << unit));
    n.filter(|n| (1..=MEMORY_PER_TASK_BYTES_MAX).contains(n)).map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"a1\"\ngateway = \"127.0.0.1:7411\"\nidentity = \"id\"\nstate = \"/s\"\n";

    #[test]
    fn paths_are_relative_to_the_file_and_the_rest_has_defaults() {
        let c = AgentConfig::parse(&format!("{GOOD}slots = 2\nmemory = \"2G\"\n"), Path::new("/etc/ig")).unwrap();
        let alone = AgentConfig::parse(&format!("{GOOD}alone_max = \"10m\"\non_alone = [\"poweroff\"]\n"), Path::new("")).unwrap();
        assert_eq!((Some(600_000), vec!["poweroff".to_string()], None), (alone.alone_max, alone.on_alone, c.alone_max));
        assert_eq!((PathBuf::from("/etc/ig/id"), PathBuf::from("/s")), (c.identity, c.state));
        assert_eq!((Some(2), Some(2 << 30), None, Executor::Process), (c.slots, c.memory, c.cgroup, c.executor));
    }

    #[test]
    fn bad_input_is_named() {
        let refused = |text: String| AgentConfig::parse(&text, Path::new("")).unwrap_err().message;
        let cases = [
            (format!("{GOOD}slts = 2\n"), "slts"),
            (format!("{GOOD}slts = 2\n"), "5:1: "),
            (format!("{GOOD}slots = 0\n"), "slots: 0"),
            (format!("{GOOD}slots = \"two\"\n"), "5:9: "),
            (format!("{GOOD}memory = \"2X\"\n"), "\"2X\" is not a size"),
            (format!("{GOOD}memory = \"0\"\n"), "is not a size"),
            (format!("{GOOD}memory = \"99999999999T\"\n"), "is not a size"),
            (GOOD.replace("127.0.0.1:7411", "there"), "gateway: \"there\" is not an endpoint"),
            (GOOD.replace("a1", ""), "name"),
            ("name = \"x\"".to_string(), "missing field"),
        ];
        for (text, expected) in cases {
            let message = refused(text);
            assert!(message.contains(expected), "{expected}: {message}");
        }
        assert!(AgentConfig::load("/no/such/file").unwrap_err().message.contains("/no/such/file"));
    }
}
