//! The part of `gateway.toml` that puts a local resource manager behind the gateway: `[slurm]` or `[gridengine]`, and `[[map]]`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use intergrid_proto::error::line_and_column;
use intergrid_proto::limits::{SHARES_MAX, TIME_MS_MAX};
use intergrid_proto::{Refusal, units};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::Source;

/// Slots that may wait in a queue of the LRMS beyond what is free, unless the site says otherwise.
const WAITING_DEFAULT: u64 = 4;
/// Where tasks are short, one in so many of the queue's slots may: those of 2 s then find no slot idle for the second or so that passes from an end to the
/// next submission, and those that are shorter mostly wait for the LRMS itself, which starts no more than some tens a second.
const WAITING_SHORT_PART: u64 = 2;

/// Which one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LrmsKind {
    /// Slurm.
    Slurm,
    /// Grid Engine.
    GridEngine,
}

impl LrmsKind {
    /// As the section is called.
    pub fn name(self) -> &'static str {
        match self {
            LrmsKind::Slurm => "slurm",
            LrmsKind::GridEngine => "gridengine",
        }
    }
}

/// A local resource manager as it is offered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LrmsConfig {
    /// Which one.
    pub kind: LrmsKind,
    /// Partitions or queues that are offered.
    pub queues: Vec<String>,
    /// Of these, those whose tasks run under agents that are jobs (`[pilots]`). In the others tasks are jobs, and each is a share.
    pub piloted: Vec<String>,
    /// On the file system that all machines share; `{account}` stands for the account's name.
    pub directory: String,
    /// Directory of its commands; absent: searched for.
    pub commands: Option<PathBuf>,
    /// Its configuration file (`slurm.conf`, or the `settings.sh` of a cell of Grid Engine); absent: the usual one.
    pub conf: Option<PathBuf>,
    /// Slurm: directory of the records of ended jobs that a program of ours in it writes. Grid Engine: its accounting file; absent: the usual one.
    pub records: Option<PathBuf>,
    /// Slurm keeps accounts that can be asked (sacct).
    pub accounting: bool,
    /// Grid Engine's, for tasks with several slots on one machine; absent: none can have them.
    pub parallel_environment: Option<String>,
    /// Grid Engine's resource, for each slot, that bounds memory; absent: it is not told of memory.
    pub memory: Option<String>,
    /// Grid Engine's complex by which GPUs are counted; absent: none are offered.
    pub gpu_complex: Option<String>,
    /// Whose tasks run as which account.
    pub accounts: AccountsConfig,
    /// What the site allows.
    pub limits: LrmsLimits,
}

impl LrmsConfig {
    /// Queues whose tasks are jobs.
    pub fn direct(&self) -> Vec<String> {
        self.queues.iter().filter(|queue| !self.piloted.contains(queue)).cloned().collect()
    }
}

/// What a task of a queue is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// A job.
    Direct,
    /// Something that an agent runs, which is a job.
    Pilot,
}

/// Who runs as whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AccountsConfig {
    /// All as the gateway's own account.
    Own,
    /// The first rule that fits; without one, refused.
    Map(Vec<MapRule>),
}

/// One `[[map]]`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapRule {
    /// A principal, or a prefix with a trailing `*`.
    pub principal: String,
    /// Its account.
    pub account: Option<String>,
    /// Or one of these, each of one principal at a time; none is the `account` of another rule.
    #[serde(default)]
    pub pool: Vec<String>,
}

/// `[slurm.limits]`: absent is not limited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LrmsLimits {
    /// Slots in use by all together.
    pub slots_max: Option<u64>,
    /// Tasks in the LRMS, of all together.
    pub tasks_max: Option<u64>,
    /// Slots in use by one principal.
    pub slots_per_principal_max: Option<u64>,
    /// Tasks in the LRMS of one principal.
    pub tasks_per_principal_max: Option<u64>,
    /// The longest that a task may ask for; one that does not say gets this.
    #[serde(rename = "time_max", deserialize_with = "some_time")]
    pub time_max_ms: Option<u64>,
    /// A task that has waited longer than this in the LRMS goes back, and may start elsewhere; absent: it keeps its place there.
    #[serde(rename = "wait_max", deserialize_with = "some_time")]
    pub wait_max_ms: Option<u64>,
    /// Of a queue's slots, at most so many per cent.
    pub ceiling_percent: u8,
    /// Slots that may wait in each queue beyond what is free there; absent: see [`waiting`](Self::waiting).
    pub waiting_max: Option<u64>,
}

impl LrmsLimits {
    /// Of so many slots of a queue, those that may be used.
    pub fn ceiling(&self, slots: u64) -> u64 {
        slots.saturating_mul(u64::from(self.ceiling_percent)) / 100
    }

    /// Slots that may wait in a queue of so many beyond what is free there: always, and as many more where tasks are short.
    pub fn waiting(&self, slots: u64) -> (u64, u64) {
        self.waiting_max.map_or((WAITING_DEFAULT, (slots / WAITING_SHORT_PART).saturating_sub(WAITING_DEFAULT)), |max| (max, 0))
    }
}

impl Default for LrmsLimits {
    fn default() -> Self {
        LrmsLimits {
            slots_max: None,
            tasks_max: None,
            slots_per_principal_max: None,
            tasks_per_principal_max: None,
            time_max_ms: None,
            wait_max_ms: None,
            ceiling_percent: 100,
            waiting_max: None,
        }
    }
}

/// The section as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    #[serde(alias = "partitions")]
    queues: Vec<String>,
    #[serde(default)]
    mode: BTreeMap<String, Spanned<Mode>>,
    directory: String,
    commands: Option<PathBuf>,
    conf: Option<PathBuf>,
    records: Option<PathBuf>,
    accounting: Option<bool>,
    parallel_environment: Option<String>,
    memory: Option<String>,
    gpu_complex: Option<String>,
    account: Option<String>,
    #[serde(default)]
    limits: LrmsLimits,
}

/// `pilots`: is there such a section?
pub(super) fn read(
    kind: LrmsKind,
    section: &Spanned<Section>,
    map: &[Spanned<MapRule>],
    pilots: bool,
    source: &Source,
) -> Result<LrmsConfig, Refusal> {
    let (s, name) = (section.get_ref(), kind.name());
    let refuse = |what: String| Err(source.refuse(section.span(), &format!("[{name}] {what}")));
    if s.queues.is_empty() || s.queues.len() > SHARES_MAX {
        return refuse(format!("offers {} queues; name 1 to {SHARES_MAX}", s.queues.len()));
    }
    for (n, queue) in s.queues.iter().enumerate() {
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if queue.is_empty() || queue.starts_with('-') || !queue.chars().all(word) || queue == intergrid_proto::share::MACHINE {
            return refuse(format!("{queue:?} can't be the name of a queue here: letters, digits, '_', '-', '.', and not \"machine\""));
        }
        if s.queues[..n].contains(queue) {
            return refuse(format!("names the queue {queue:?} twice"));
        }
    }
    for (queue, mode) in &s.mode {
        if !s.queues.contains(queue) {
            let text = format!("[{name}] mode.{queue}: {queue:?} is not offered here; these are: {}", s.queues.join(", "));
            return Err(source.refuse(mode.span(), &text));
        }
        if *mode.get_ref() == Mode::Pilot && !pilots {
            return Err(source.refuse(mode.span(), &format!("[{name}] mode.{queue} = \"pilot\" without [pilots], which says what a pilot is")));
        }
    }
    let mode = |queue: &String| s.mode.get(queue).map_or(if pilots { Mode::Pilot } else { Mode::Direct }, |mode| *mode.get_ref());
    let piloted = s.queues.iter().filter(|queue| mode(queue) == Mode::Pilot).cloned().collect();
    if !(1..=100).contains(&s.limits.ceiling_percent) {
        return refuse(format!("limits.ceiling_percent must be 1 to 100, not {}", s.limits.ceiling_percent));
    }
    let bounds = [
        ("slots_max", s.limits.slots_max),
        ("tasks_max", s.limits.tasks_max),
        ("slots_per_principal_max", s.limits.slots_per_principal_max),
        ("tasks_per_principal_max", s.limits.tasks_per_principal_max),
    ];
    if let Some((field, _)) = bounds.iter().find(|(_, max)| *max == Some(0)) {
        return refuse(format!("limits.{field} = 0: nothing could ever run"))
            .map_err(|r| r.remedy("leave it out, or take no new work with `grid drain`"));
    }
    let words = [("parallel_environment", &s.parallel_environment), ("memory", &s.memory), ("gpu_complex", &s.gpu_complex)];
    let foreign = match kind {
        LrmsKind::Slurm => words.iter().find(|(_, value)| value.is_some()).map(|(field, _)| *field),
        LrmsKind::GridEngine => s.accounting.map(|_| "accounting"),
    };
    if let Some(field) = foreign {
        return refuse(format!("{field} is none of its settings; leave it out"));
    }
    for (field, value) in words {
        let word = |v: &String| !v.is_empty() && !v.starts_with('-') && v.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
        if value.as_ref().is_some_and(|v| !word(v)) {
            return refuse(format!("{field} must be a name of letters, digits, '_', '-' and '.'"));
        }
    }
    let accounts = match (s.account.as_deref(), map) {
        (Some("self"), []) => AccountsConfig::Own,
        (Some("self"), [rule, ..]) => {
            return Err(source.refuse(rule.span(), "a [[map]] beside account = \"self\": all run as the gateway's own account"));
        }
        (Some(other), _) => {
            let remedy = "write account = \"self\", or [[map]] rules with `principal` and `account`";
            return refuse(format!("account = {other:?}: only \"self\" is one for all")).map_err(|r| r.remedy(remedy));
        }
        (None, []) => {
            let remedy = "write account = \"self\" to run all as the gateway's own account, or [[map]] rules with `principal` and `account`";
            return refuse("does not say as whom tasks run".into()).map_err(|r| r.remedy(remedy));
        }
        (None, rules) => {
            if !s.directory.contains("{account}") {
                return refuse("directory needs {account} in it: each account has one of its own, which is its alone".into());
            }
            for rule in rules {
                let r = rule.get_ref();
                if r.account.is_some() != r.pool.is_empty() || r.principal.is_empty() {
                    return Err(source.refuse(rule.span(), "a [[map]] needs `principal`, and either `account` or `pool`"));
                }
                let shares = |other: &&Spanned<MapRule>| other.get_ref().account.as_ref().is_some_and(|account| r.pool.contains(account));
                if let Some(other) = rules.iter().find(shares) {
                    let MapRule { principal, account, .. } = other.get_ref();
                    let (account, place) = (account.as_deref().unwrap_or_default(), line_and_column(&source.text, other.span().start));
                    let text = format!(
                        "the pool of {:?} has {account:?}, which the [[map]] at {place} gives to {principal:?}: it is of one principal at a time",
                        r.principal
                    );
                    return Err(source.refuse(rule.span(), &text).remedy("give one of them another account"));
                }
            }
            AccountsConfig::Map(rules.iter().map(|r| r.get_ref().clone()).collect())
        }
    };
    let absolute = |path: &PathBuf| {
        let mut path = path.clone();
        source.resolve(&mut path);
        path
    };
    let [commands, conf, records] = [&s.commands, &s.conf, &s.records].map(|path| path.as_ref().map(absolute));
    Ok(LrmsConfig {
        kind,
        queues: s.queues.clone(),
        piloted,
        directory: s.directory.clone(),
        commands,
        conf,
        records,
        accounting: s.accounting.unwrap_or(false),
        parallel_environment: s.parallel_environment.clone(),
        memory: s.memory.clone(),
        gpu_complex: s.gpu_complex.clone(),
        accounts,
        limits: s.limits,
    })
}

fn some_time<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(d)?;
    let time = units::parse_duration(&text).map_err(D::Error::custom)?;
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if (1..=TIME_MS_MAX).contains(&ms) { Ok(Some(ms)) } else { Err(D::Error::custom(format!("{text:?} is not between 1 ms and {TIME_MS_MAX} ms"))) }
}
