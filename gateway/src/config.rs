//! The configuration of a gateway and of a broker, in TOML.
//!
//! Unknown keys, wrong types and values out of bounds are refused with file, line and column. Relative paths are relative to the file. Loading reads one
//! file; [`SiteConfig::check`] also looks at what it names.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use intergrid_proto::limits::{GPUS_PER_MACHINE_MAX, MEMORY_PER_TASK_BYTES_MAX, SLOTS_PER_TASK_MAX};
use intergrid_proto::net::identity::check_label;
use intergrid_proto::net::issue::{self, Validity};
use intergrid_proto::net::trust::CaId;
use intergrid_proto::net::{CertRole, Identity, Role, Trust, TrustEntry};
use intergrid_proto::{Refusal, RefusalKind, units};
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, de::DeserializeOwned};
use toml::Spanned;

use crate::blobs::BlobLimits;
use crate::core::schedule::Burst;

#[path = "config_cloud.rs"]
mod cloud;
#[path = "config_lrms.rs"]
mod lrms;
#[path = "config_pilots.rs"]
mod pilots;

pub use cloud::{AgentProgram, CloudConfig, CloudProvider, Ec2Config};
pub use lrms::{AccountsConfig, LrmsConfig, LrmsKind, LrmsLimits, MapRule};
pub use pilots::PilotsConfig;

/// All inputs of a site together, unless it says otherwise.
const BLOBS_BYTES_MAX_DEFAULT: u64 = 100 << 30;
/// The disk keeps so much free, unless the site says otherwise.
const STORE_FREE_MIN_BYTES_DEFAULT: u64 = 256 << 20;
/// Agents that one gateway starts itself.
const PROCESS_AGENTS_MAX: u32 = 1_024;
/// A configuration file.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// What a gateway and a broker have in common.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SiteConfig {
    /// Its label.
    pub name: String,
    /// Where it listens, `host:port`; port 0 is any, the same one after a restart.
    pub listen: String,
    /// Directory of everything durable.
    pub state: PathBuf,
    /// Directory with `ca.pem`, `cert.pem`, `key.pem`.
    pub identity: PathBuf,
    /// Who may call.
    pub trust: Vec<TrustConfig>,
    /// The parent that this site dials, and serves over that connection.
    pub parent: Option<PeerConfig>,
    /// What it may take.
    pub limits: LimitsConfig,
    /// Where Prometheus is answered; absent: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Where an OpenTelemetry collector listens, on this machine; absent: nowhere.
    pub traces: Option<SocketAddr>,
}

/// `gateway.toml`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayConfig {
    /// As every site.
    pub site: SiteConfig,
    /// Where its agents come from.
    pub agents: AgentsConfig,
    /// A local resource manager in place of agents.
    pub lrms: Option<LrmsConfig>,
    /// Agents that run as jobs of some of its queues, or all, and tasks under them; absent: each task is a job.
    pub pilots: Option<PilotsConfig>,
    /// Machines that are rented.
    pub cloud: Option<CloudConfig>,
    /// Where `[cloud]` or `[pilots]` is written: the section whose machines are given certificates.
    pub joined_by: Option<String>,
}

/// `broker.toml`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrokerConfig {
    /// As every site.
    pub site: SiteConfig,
    /// The gateways and brokers below.
    pub children: Vec<ChildConfig>,
    /// When shares that have a price are used.
    pub burst: Burst,
}

/// One `[[trust]]`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustConfig {
    /// A CA's certificate.
    pub ca: PathBuf,
    /// What holders of its certificates may be, at most.
    #[serde(deserialize_with = "some_roles")]
    pub may: BTreeSet<Role>,
    /// For whom its delegates may act: principals, or prefixes with a trailing `*`.
    #[serde(default)]
    pub on_behalf: Vec<String>,
}

/// Another site that is dialled.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// `host:port`.
    #[serde(deserialize_with = "endpoint")]
    pub endpoint: String,
    /// The CA of its certificate.
    pub ca: PathBuf,
}

/// One `[[child]]`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChildConfig {
    /// Its label, as in its certificate.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// Where it is dialled; absent: it dials us.
    #[serde(default, deserialize_with = "some_endpoint")]
    pub endpoint: Option<String>,
    /// The CA of its certificate.
    pub ca: PathBuf,
}

/// `[limits]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// All inputs together.
    #[serde(deserialize_with = "bytes")]
    pub blobs_bytes_max: u64,
    /// Nothing new is taken that would leave less free on the disk.
    #[serde(deserialize_with = "bytes")]
    pub store_free_min_bytes: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        LimitsConfig { blobs_bytes_max: BLOBS_BYTES_MAX_DEFAULT, store_free_min_bytes: STORE_FREE_MIN_BYTES_DEFAULT }
    }
}

impl From<LimitsConfig> for BlobLimits {
    fn from(limits: LimitsConfig) -> Self {
        BlobLimits { blobs_bytes_max: limits.blobs_bytes_max, free_min_bytes: limits.store_free_min_bytes }
    }
}

/// `[agents]`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum AgentsConfig {
    /// They attach by themselves.
    #[default]
    Static,
    /// The gateway starts them on its own machine.
    Process {
        /// How many.
        agents: u32,
        /// Slots of each; absent: what the machine has.
        slots: Option<u32>,
        /// Memory of each; absent: what the machine has.
        memory_bytes: Option<u64>,
        /// GPUs of each; None: as found.
        gpus: Option<u32>,
        /// The agent's binary; absent: the one beside ours.
        program: Option<PathBuf>,
    },
}

impl GatewayConfig {
    /// Read it.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Refusal> {
        let source = Source::read(path.as_ref())?;
        let file: File = source.parse()?;
        if let Some(child) = file.child.first() {
            return Err(source.refuse(child.span(), "`child` belongs to a broker's configuration"));
        }
        if let Some(burst) = &file.burst {
            return Err(source.refuse(burst.span(), "`burst` belongs to a broker's configuration: it says when its priced shares are used"));
        }
        let lrms = file.lrms(&source)?;
        let mut agents = file.agents(&source)?;
        if let AgentsConfig::Process { program: Some(program), .. } = &mut agents {
            source.resolve(program);
        }
        let mut cloud = file.cloud(&source)?;
        if let Some(CloudConfig { provider: CloudProvider::Process { program: Some(program) }, .. }) = &mut cloud {
            source.resolve(program);
        }
        let pilots = file.pilots.as_ref().map(|section| pilots::read(section, lrms.as_ref(), &source)).transpose()?;
        let joined_by = [("cloud", file.cloud.as_ref().map(Spanned::span)), ("pilots", file.pilots.as_ref().map(Spanned::span))];
        let joined_by = joined_by.into_iter().find_map(|(name, span)| Some(format!("{}: [{name}]", source.place(span?))));
        Ok(GatewayConfig { site: file.site(&source)?, agents, lrms, pilots, cloud, joined_by })
    }

    /// What it names is there and fits.
    pub fn check(&self) -> Result<(), Refusal> {
        self.site.check()?;
        if let Some(section) = &self.joined_by {
            self.site.check_joins(section)?;
        }
        // Agents that have their certificates need no key.
        let has_key = || self.site.identity.join("ca.key").exists();
        if matches!(self.agents, AgentsConfig::Process { .. }) && has_key() {
            self.site.check_issues()?;
        }
        if let Some(CloudConfig { provider: CloudProvider::Process { program: Some(program) }, .. }) = &self.cloud {
            check_program(program)?;
        }
        if let Some(PilotsConfig { program: Some(program), .. }) = &self.pilots
            && !program.is_file()
        {
            return Err(absent("the agent's program", program));
        }
        match &self.agents {
            AgentsConfig::Process { program: Some(program), .. } => check_program(program),
            AgentsConfig::Process { .. } | AgentsConfig::Static => Ok(()),
        }
    }
}

impl BrokerConfig {
    /// Read it.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Refusal> {
        let source = Source::read(path.as_ref())?;
        let file: File = source.parse()?;
        if let Some(agents) = &file.agents {
            return Err(source.refuse(agents.span(), "`agents` belongs to a gateway's configuration"));
        }
        if let Some(cloud) = &file.cloud {
            return Err(source.refuse(cloud.span(), "`cloud` belongs to a gateway's configuration"));
        }
        if let Some(lrms) = file.slurm.as_ref().or(file.gridengine.as_ref()) {
            return Err(source.refuse(lrms.span(), "a local resource manager belongs to a gateway's configuration"));
        }
        if let Some(pilots) = &file.pilots {
            return Err(source.refuse(pilots.span(), "`pilots` belongs to a gateway's configuration"));
        }
        let mut children: Vec<ChildConfig> = Vec::new();
        for child in &file.child {
            let mut new = child.get_ref().clone();
            if children.iter().any(|c| c.name == new.name) {
                return Err(source.refuse(child.span(), &format!("a second child {:?}; names are unique within one broker", new.name)));
            }
            source.resolve(&mut new.ca);
            children.push(new);
        }
        let burst = file.burst.as_ref().map(|b| b.get_ref().clone()).unwrap_or_default();
        let burst = Burst { after_ms: burst.after.unwrap_or(if burst.tasks.is_some() { u64::MAX } else { 0 }), tasks: burst.tasks };
        Ok(BrokerConfig { site: file.site(&source)?, children, burst })
    }

    /// What it names is there and fits.
    pub fn check(&self) -> Result<(), Refusal> {
        self.site.check()?;
        self.children.iter().try_for_each(|child| check_ca(&child.ca))
    }
}

impl SiteConfig {
    /// Who may call, with the CAs' files read.
    pub fn trust_entries(&self) -> Result<Vec<TrustEntry>, Refusal> {
        self.trust.iter().map(|t| Ok(TrustEntry { ca_pem: read_ca(&t.ca)?, may: t.may.clone(), on_behalf: t.on_behalf.clone() })).collect()
    }

    /// The identity and every CA are there and can be used, and the state can be a directory.
    pub fn check(&self) -> Result<(), Refusal> {
        let identity = Identity::load(&self.identity)?;
        if identity.role() != CertRole::Site {
            let message = format!("{} has a certificate of {}, and a site needs one of a site", self.identity.display(), identity.cert());
            return Err(Refusal::invalid(message).remedy("make one with `grid init site`"));
        }
        Trust::new(self.trust_entries()?)?;
        self.parent.iter().try_for_each(|parent| check_ca(&parent.ca))?;
        match self.state.exists() && !self.state.is_dir() {
            true => Err(Refusal::invalid(format!("{}: the state must be a directory", self.state.display()))),
            false => Ok(()),
        }
    }

    /// Machines can be given certificates.
    fn check_issues(&self) -> Result<(), Refusal> {
        // Made as for a machine, and dropped: what is missing for it is said now, and not when a machine is paid.
        issue::token(&self.identity, &self.name, Validity::of(Duration::ZERO)).map(drop)
    }

    /// Machines that are rented, or are jobs, can be given certificates, and are let in with them.
    fn check_joins(&self, section: &str) -> Result<(), Refusal> {
        self.check_issues()?;
        let ours = CaId::all(Identity::load(&self.identity)?.ca_pem()?)?;
        for trust in self.trust.iter().filter(|t| t.may.contains(&Role::Agent)) {
            if CaId::all(&read_ca(&trust.ca)?)?.iter().any(|ca| ours.contains(ca)) {
                return Ok(());
            }
        }
        let ca = self.identity.join("ca.pem");
        let message = format!("{section} no [[trust]] of this site's own CA, {}, has \"agent\" in `may`: no machine could ever attach", ca.display());
        Err(Refusal::invalid(message).remedy("write \"agent\" into `may` of the [[trust]] with this CA"))
    }
}

/// The file as it is written: both roles, so that a key of the other one can be named as such.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(deserialize_with = "name")]
    name: String,
    #[serde(deserialize_with = "listen")]
    listen: String,
    state: PathBuf,
    identity: PathBuf,
    #[serde(default)]
    trust: Vec<TrustConfig>,
    parent: Option<PeerConfig>,
    #[serde(default)]
    limits: LimitsConfig,
    metrics: Option<Spanned<SocketAddr>>,
    #[serde(default)]
    metrics_beyond_loopback: bool,
    traces: Option<Spanned<SocketAddr>>,
    agents: Option<Spanned<Agents>>,
    slurm: Option<Spanned<lrms::Section>>,
    gridengine: Option<Spanned<lrms::Section>>,
    pilots: Option<Spanned<pilots::Section>>,
    cloud: Option<Spanned<cloud::Section>>,
    burst: Option<Spanned<BurstSection>>,
    #[serde(default)]
    map: Vec<Spanned<MapRule>>,
    #[serde(default)]
    child: Vec<Spanned<ChildConfig>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Agents {
    provider: Provider,
    #[serde(default, deserialize_with = "agent_count")]
    agents: Option<u32>,
    #[serde(default, deserialize_with = "slots")]
    slots: Option<u32>,
    #[serde(default, deserialize_with = "memory")]
    memory: Option<u64>,
    #[serde(default, deserialize_with = "gpus")]
    gpus: Option<u32>,
    program: Option<PathBuf>,
}

#[derive(Deserialize, Clone, Default)]
#[serde(deny_unknown_fields)]
struct BurstSection {
    #[serde(default, deserialize_with = "some_time")]
    after: Option<u64>,
    #[serde(default, deserialize_with = "burst_tasks")]
    tasks: Option<u64>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Provider {
    Static,
    Process,
}

impl File {
    fn lrms(&self, source: &Source) -> Result<Option<LrmsConfig>, Refusal> {
        let (kind, section) = match (&self.slurm, &self.gridengine) {
            (Some(_), Some(both)) => return Err(source.refuse(both.span(), "[slurm] and [gridengine] in one gateway; give each one of its own")),
            (Some(slurm), None) => (LrmsKind::Slurm, slurm),
            (None, Some(gridengine)) => (LrmsKind::GridEngine, gridengine),
            (None, None) => match self.map.first() {
                Some(rule) => return Err(source.refuse(rule.span(), "a [[map]] without [slurm] or [gridengine]: agents have no accounts")),
                None => return Ok(None),
            },
        };
        if let Some(agents) = &self.agents {
            return Err(source.refuse(agents.span(), "[agents] beside a local resource manager; give each a gateway of its own"));
        }
        lrms::read(kind, section, &self.map, self.pilots.is_some(), source).map(Some)
    }

    fn cloud(&self, source: &Source) -> Result<Option<CloudConfig>, Refusal> {
        let Some(section) = &self.cloud else { return Ok(None) };
        let beside = [
            ("slurm", self.slurm.as_ref().map(Spanned::span)),
            ("gridengine", self.gridengine.as_ref().map(Spanned::span)),
            ("agents", self.agents.as_ref().map(Spanned::span)),
        ];
        match beside.into_iter().find_map(|(name, span)| Some((name, span?))) {
            Some((name, span)) => Err(source.refuse(span, &format!("[{name}] beside [cloud]; give each a gateway of its own"))),
            None => cloud::read(section, source).map(Some),
        }
    }

    fn agents(&self, source: &Source) -> Result<AgentsConfig, Refusal> {
        let Some(spanned) = &self.agents else { return Ok(AgentsConfig::Static) };
        let a = spanned.get_ref();
        match (a.provider, a.agents) {
            (Provider::Process, Some(agents)) if agents > 1 && a.gpus.is_some_and(|n| n > 0) => {
                Err(source.refuse(spanned.span(), "several agents on one machine would share its GPUs; give them to one agent, or none"))
            }
            (Provider::Process, Some(agents)) => {
                let gpus = if agents > 1 { Some(0) } else { a.gpus };
                Ok(AgentsConfig::Process { agents, slots: a.slots, memory_bytes: a.memory, gpus, program: a.program.clone() })
            }
            (Provider::Process, None) => Err(source.refuse(spanned.span(), "provider \"process\" needs `agents`, how many to start")),
            (Provider::Static, None) if a.slots.is_none() && a.memory.is_none() && a.gpus.is_none() && a.program.is_none() => {
                Ok(AgentsConfig::Static)
            }
            (Provider::Static, _) => {
                Err(source.refuse(spanned.span(), "provider \"static\" takes no other key; agents that attach by themselves say what they have"))
            }
        }
    }

    fn site(self, source: &Source) -> Result<SiteConfig, Refusal> {
        if self.trust.is_empty() && self.parent.is_none() {
            let refusal = source.refuse(None, "neither a [[trust]] nor a [parent], so nobody could ever call this site");
            return Err(refusal.remedy("add [[trust]] with `ca` and `may`"));
        }
        if let Some(m) = self.metrics.as_ref().filter(|m| !m.get_ref().ip().is_loopback() && !self.metrics_beyond_loopback) {
            let what = format!("metrics at {}, which others can reach: nobody is asked there who he is", m.get_ref());
            let remedy = "write 127.0.0.1 and a port, or add `metrics_beyond_loopback = true` if your network keeps strangers out";
            return Err(source.refuse(m.span(), &what).remedy(remedy));
        }
        if let Some(t) = self.traces.as_ref().filter(|t| !t.get_ref().ip().is_loopback()) {
            let what = format!("traces to {}, which is not this machine: they would go there unprotected", t.get_ref());
            let remedy = "run a collector on this machine, write its 127.0.0.1 and port, and let it pass them on under TLS";
            return Err(source.refuse(t.span(), &what).remedy(remedy));
        }
        let metrics = self.metrics.map(Spanned::into_inner);
        let traces = self.traces.map(Spanned::into_inner);
        let File { name, listen, state, identity, trust, parent, limits, .. } = self;
        let mut site = SiteConfig { name, listen, state, identity, trust, parent, limits, metrics, traces };
        source.resolve(&mut site.state);
        source.resolve(&mut site.identity);
        site.trust.iter_mut().map(|t| &mut t.ca).chain(site.parent.as_mut().map(|p| &mut p.ca)).for_each(|path| source.resolve(path));
        Ok(site)
    }
}

/// A configuration's text and where it is from.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    fn read(path: &Path) -> Result<Self, Refusal> {
        let refuse = |what: String| Refusal::invalid(format!("configuration {}: {what}", path.display()));
        let size = std::fs::metadata(path).map_err(|e| refuse(e.to_string()))?.len();
        if size > CONFIG_BYTES_MAX {
            return Err(refuse(format!("{size} bytes, at most {CONFIG_BYTES_MAX} are read")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| refuse(e.to_string()))?;
        Ok(Source { path: path.to_path_buf(), text })
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        toml::from_str(&self.text).map_err(|e| match e.span().and_then(|span| self.field(span.start)) {
            Some(field) => self.refuse(e.span(), &format!("{}, in `{field}`", e.message())),
            None => self.refuse(e.span(), e.message()),
        })
    }

    /// The key whose value begins here.
    fn field(&self, at: usize) -> Option<&str> {
        let line = self.text.get(..at)?.rsplit('\n').next()?;
        let key = line.trim_end().strip_suffix('=')?.trim_end();
        key.rsplit([' ', '\t', '{', ',']).next().filter(|key| !key.is_empty())
    }

    fn refuse(&self, span: impl Into<Option<Range<usize>>>, what: &str) -> Refusal {
        Refusal::invalid(format!("{}: {what}", self.place(span)))
    }

    fn place(&self, span: impl Into<Option<Range<usize>>>) -> String {
        let place = span.into().map_or(String::new(), |span| {
            let before = self.text.get(..span.start).unwrap_or(&self.text);
            let line_start = before.rfind('\n').map_or(0, |n| n + 1);
            format!(":{}:{}", before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
        });
        format!("{}{place}", self.path.display())
    }

    fn resolve(&self, path: &mut PathBuf) {
        *path = crate::durable::parent(&self.path).join(&path);
    }
}

/// The CA's file.
pub fn read_ca(path: &Path) -> Result<Vec<u8>, Refusal> {
    std::fs::read(path).map_err(|e| Refusal::invalid(format!("ca {}: {e}", path.display())))
}

/// A CA's file is there and is one.
fn check_ca(path: &Path) -> Result<(), Refusal> {
    let entry = TrustEntry { ca_pem: read_ca(path)?, may: BTreeSet::from([Role::Child]), on_behalf: Vec::new() };
    Trust::new([entry]).map(drop).map_err(|e| Refusal { message: format!("ca {}: {}", path.display(), e.message), ..e })
}

/// The agent's program is there, and may be executed by us.
fn check_program(program: &Path) -> Result<(), Refusal> {
    if !program.is_file() {
        return Err(absent("the agent's program", program));
    }
    let may = rustix::fs::access(program, rustix::fs::Access::EXEC_OK);
    may.map_err(|e| {
        let refused = Refusal::invalid(format!("the agent's program, {}, can't be executed: {e}", program.display()));
        refused.remedy(format!("chmod +x {}, or correct the path", program.display()))
    })
}

fn absent(what: &str, path: &Path) -> Refusal {
    Refusal::new(RefusalKind::NotFound, format!("{what}, {}, is not there", path.display())).remedy("correct the path")
}

fn name<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    checked(d, |name: &String| check_label(name).map_err(|e| e.to_string()))
}

fn listen<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    checked(d, |text: &String| host_port(text).map(drop))
}

fn endpoint<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    checked(d, |text: &String| match host_port(text)? {
        0 => Err(format!("endpoint {text:?} has port 0")),
        _ => Ok(()),
    })
}

fn some_endpoint<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    endpoint(d).map(Some)
}

fn some_roles<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeSet<Role>, D::Error> {
    checked(d, |roles: &BTreeSet<Role>| if roles.is_empty() { Err("`may` is empty; leave the whole [[trust]] out") } else { Ok(()) })
}

fn agent_count<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u32>, D::Error> {
    checked(d, |n: &u32| within(*n, PROCESS_AGENTS_MAX, "agents")).map(Some)
}

fn burst_tasks<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    checked(d, |n: &u64| within(*n, u64::MAX, "tasks")).map(Some)
}

fn slots<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u32>, D::Error> {
    checked(d, |n: &u32| within(*n, SLOTS_PER_TASK_MAX, "slots")).map(Some)
}

fn gpus<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u32>, D::Error> {
    let n = u32::deserialize(d)?;
    within(n, GPUS_PER_MACHINE_MAX, "gpus").map_err(D::Error::custom).map(|()| Some(n))
}

fn memory<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let bytes = bytes(d)?;
    within(bytes, MEMORY_PER_TASK_BYTES_MAX, "memory (bytes)").map_err(D::Error::custom).map(|()| Some(bytes))
}

fn bytes<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    units::parse_bytes(&String::deserialize(d)?).map_err(D::Error::custom)
}

fn some_time<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(d)?;
    let time = units::parse_duration(&text).map_err(D::Error::custom)?;
    match u64::try_from(time.as_millis()) {
        Ok(ms) if ms > 0 => Ok(Some(ms)),
        _ => Err(D::Error::custom(format!("{text:?} is not a time above 0"))),
    }
}

/// The port of `host:port`.
fn host_port(text: &str) -> Result<u16, String> {
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.contains(char::is_whitespace));
    parts.and_then(|(_, port)| port.parse().ok()).ok_or_else(|| format!("{text:?} is not host:port, as in \"127.0.0.1:7411\""))
}

fn within<T: PartialOrd + From<u8> + fmt::Display>(n: T, max: T, what: &str) -> Result<(), String> {
    if n >= T::from(1) && n <= max { Ok(()) } else { Err(format!("{what} must be 1 to {max}, not {n}")) }
}

fn checked<'de, D: Deserializer<'de>, T: Deserialize<'de>, E: fmt::Display>(d: D, check: impl Fn(&T) -> Result<(), E>) -> Result<T, D::Error> {
    let value = T::deserialize(d)?;
    check(&value).map_err(D::Error::custom).map(|()| value)
}
