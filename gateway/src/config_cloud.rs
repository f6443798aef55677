//! The part of `gateway.toml` that rents machines: `[cloud]`, its types with their prices, and the budget.

use std::collections::BTreeMap;
use std::path::PathBuf;

use intergrid_proto::Refusal;
use intergrid_proto::limits::{MEMORY_PER_TASK_BYTES_MAX, SLOTS_PER_TASK_MAX};
use intergrid_provision::{Billing, Budget, Caps, Catalogue, MachineType, Money, Offer, OfferKey, Price, Rate, Settings, Terms};
use serde::Deserialize;
use toml::Spanned;

use super::Source;
use crate::core::rent::type_class;

#[path = "config_ec2.rs"]
mod ec2;

pub use ec2::{AgentProgram, Ec2Config};

/// Machines that boot at a time, unless the site says otherwise.
pub(super) const BOOTING_MAX_DEFAULT: u32 = 16;
/// Machines, unless the site says otherwise.
const MACHINES_MAX_DEFAULT: u32 = 1_000;
/// A machine without work is kept for so long, unless the site says otherwise.
pub(super) const IDLE_MS_DEFAULT: u64 = 60_000;
/// A machine without its agent, likewise.
const AWAY_MS_DEFAULT: u64 = 600_000;
/// A machine whose gateway does not come back ends by itself after so long, unless the site says otherwise.
pub(super) const ALONE_MS_DEFAULT: u64 = 900_000;
/// Types of machines.
const TYPES_MAX: usize = 64;
/// Seconds that are billed at least, where a type is billed by the second.
const MIN_SECONDS_DEFAULT: u32 = 60;
/// No more than a day of them: each is charged before the machine is asked for.
const MIN_SECONDS_MAX: u32 = 86_400;

/// What can be rented, and for how much in all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CloudConfig {
    /// From whom.
    pub provider: CloudProvider,
    /// Limits.
    pub settings: Settings,
    /// Types and prices.
    pub catalogue: Catalogue,
    /// Caps.
    pub budget: Budget,
    /// A machine that has been without this gateway, and without work, for so long ends by itself.
    pub alone_ms: u64,
}

impl CloudConfig {
    /// What may change while machines run.
    pub fn terms(&self) -> Terms {
        Terms { settings: self.settings.clone(), catalogue: self.catalogue.clone(), budget: self.budget.clone() }
    }

    /// What differs in another and may not, by its name in the file.
    pub(crate) fn fixed(&self, new: &CloudConfig) -> Vec<String> {
        let mut out: Vec<String> = match (&self.provider, &new.provider) {
            (CloudProvider::Process { program: old }, CloudProvider::Process { program }) if old != program => vec!["cloud.program".into()],
            (CloudProvider::Ec2(old), CloudProvider::Ec2(new)) => old.fixed(new).map(|field| format!("cloud.ec2.{field}")).collect(),
            (old, new) if old != new => vec!["cloud.provider".into()],
            _ => Vec::new(),
        };
        if self.alone_ms != new.alone_ms {
            out.push("cloud.alone".into());
        }
        if self.catalogue.currency != new.catalogue.currency {
            out.push("cloud.currency".into());
        }
        let moved = self.budget.moved(&new.budget).into_iter();
        out.extend(moved.map(|name| format!("cloud.owner {name:?}, whose caps may change, but neither `name` nor `of`")));
        out
    }
}

/// Who rents machines out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CloudProvider {
    /// Agents as processes of this machine; the prices are fictitious.
    Process {
        /// The agent's binary; absent: the one beside ours.
        program: Option<PathBuf>,
    },
    /// Machines of an account at EC2.
    Ec2(Box<Ec2Config>),
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum ProviderName {
    Process,
    Ec2,
}

/// The section as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    provider: ProviderName,
    program: Option<PathBuf>,
    ec2: Option<Spanned<ec2::Section>>,
    slots_max: u64,
    machines_max: Option<u32>,
    booting_max: Option<u32>,
    #[serde(default, deserialize_with = "super::some_time")]
    idle: Option<u64>,
    #[serde(default, deserialize_with = "super::some_time")]
    away: Option<u64>,
    #[serde(default, deserialize_with = "super::some_time")]
    alone: Option<u64>,
    currency: String,
    #[serde(rename = "type", default)]
    types: Vec<Spanned<Type>>,
    budget: CapsSection,
    #[serde(default)]
    owner: Vec<Spanned<Owner>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Type {
    name: String,
    slots: Option<u32>,
    #[serde(default, deserialize_with = "super::memory")]
    memory: Option<u64>,
    #[serde(default, deserialize_with = "super::gpus")]
    gpus: Option<u32>,
    architecture: Option<String>,
    /// Of one machine, for an hour.
    price: Rate,
    billing: BillingName,
    min_seconds: Option<u32>,
    machines_max: Option<u32>,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum BillingName {
    Hour,
    Second,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CapsSection {
    hour: Option<Rate>,
    day: Option<Money>,
    month: Option<Money>,
    total: Option<Money>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Owner {
    name: String,
    of: Option<String>,
    hour: Option<Rate>,
    day: Option<Money>,
    month: Option<Money>,
    total: Option<Money>,
}

pub(super) fn read(section: &Spanned<Section>, source: &Source) -> Result<CloudConfig, Refusal> {
    let s = section.get_ref();
    let refuse = |what: String| Err(source.refuse(section.span(), &format!("[cloud] {what}")));
    if s.types.is_empty() || s.types.len() > TYPES_MAX {
        return refuse(format!("has {} types of machines; write 1 to {TYPES_MAX} [[cloud.type]]", s.types.len()));
    }
    if s.currency.len() != 3 || !s.currency.bytes().all(|b| b.is_ascii_uppercase()) {
        return refuse(format!("currency = {:?}: write its three letters, as \"USD\"", s.currency));
    }
    let bounds = [
        ("slots_max", Some(s.slots_max)),
        ("machines_max", s.machines_max.map(u64::from)),
        ("booting_max", s.booting_max.map(u64::from)),
        ("budget.hour", s.budget.hour.map(|cap| cap.0)),
        ("budget.day", s.budget.day.map(|cap| cap.0)),
        ("budget.month", s.budget.month.map(|cap| cap.0)),
        ("budget.total", s.budget.total.map(|cap| cap.0)),
    ];
    if let Some((key, _)) = bounds.iter().find(|(_, bound)| *bound == Some(0)) {
        return refuse(format!("{key} = 0: nothing could ever be rented"));
    }
    let root = Caps { hour: s.budget.hour, day: s.budget.day, month: s.budget.month, total: s.budget.total };
    if root == Caps::default() {
        return refuse("budget has no cap, and without one nothing is rented; set `hour`, `day`, `month` or `total`".into());
    }
    let mut provider = match (s.provider, &s.ec2) {
        (ProviderName::Process, None) => CloudProvider::Process { program: s.program.clone() },
        (ProviderName::Process, Some(ec2)) => return Err(source.refuse(ec2.span(), "[cloud.ec2] belongs to provider = \"ec2\"")),
        (ProviderName::Ec2, _) if s.program.is_some() => return refuse("program belongs to provider = \"process\"".into()),
        (ProviderName::Ec2, Some(ec2)) => CloudProvider::Ec2(Box::new(ec2::read(ec2, &s.currency, source)?)),
        (ProviderName::Ec2, None) => {
            return refuse("provider = \"ec2\" needs [cloud.ec2] with `region`, `gateway`, and `ami` or `launch_template`".into());
        }
    };
    let mut catalogue = Catalogue { currency: s.currency.clone(), types: BTreeMap::new(), offers: Vec::new() };
    let spot = s.ec2.as_ref().is_some_and(|ec2| ec2.get_ref().is_spot());
    let zones = match &provider {
        CloudProvider::Ec2(ec2) if !ec2.subnets.is_empty() => ec2.subnets.clone(),
        _ => vec![String::new()],
    };
    for spanned in &s.types {
        let t = spanned.get_ref();
        let wrong = |what: String| Err(source.refuse(spanned.span(), &format!("type {:?}: {what}", t.name)));
        if t.name.is_empty() || t.name.chars().any(char::is_control) || catalogue.types.contains_key(&t.name) {
            return wrong("names are unique, and not empty".into());
        }
        if let Some(other) = catalogue.types.keys().find(|other| type_class(other) == type_class(&t.name)) {
            return wrong(format!("its share would have the name of that of {other:?}, `{}`; give one of them another name", type_class(other)));
        }
        let gpus = t.gpus.unwrap_or(0);
        let (slots, memory_bytes) = match (t.slots, t.memory, &mut provider) {
            (Some(slots), Some(memory), _) => (slots, memory),
            (None, None, CloudProvider::Ec2(ec2)) if t.gpus.is_none() => {
                ec2.measure.insert(t.name.clone());
                (1, 1)
            }
            (_, _, CloudProvider::Ec2(_)) => return wrong("give `slots` and `memory` (and `gpus`), or none of them: then EC2 is asked".into()),
            (_, _, CloudProvider::Process { .. }) => return wrong("needs `slots` and `memory`".into()),
        };
        if !(1..=SLOTS_PER_TASK_MAX).contains(&slots) || !(1..=MEMORY_PER_TASK_BYTES_MAX).contains(&memory_bytes) {
            return wrong(format!("slots must be 1 to {SLOTS_PER_TASK_MAX}, memory 1 to {MEMORY_PER_TASK_BYTES_MAX} bytes"));
        }
        if t.machines_max == Some(0) {
            return wrong("machines_max = 0: none could ever be rented; leave the type out".into());
        }
        let billing = match (&t.billing, t.min_seconds) {
            (BillingName::Hour, None) => Billing::Hour,
            (BillingName::Hour, Some(_)) => return wrong("min_seconds belongs to billing = \"second\"".into()),
            (BillingName::Second, Some(s)) if s > MIN_SECONDS_MAX => return wrong(format!("min_seconds = {s}: at most {MIN_SECONDS_MAX}, a day")),
            (BillingName::Second, min_s) => Billing::Second { min_s: min_s.unwrap_or(MIN_SECONDS_DEFAULT) },
        };
        let architecture = t.architecture.clone().unwrap_or_else(|| std::env::consts::ARCH.to_string());
        let kind = MachineType { slots, memory_bytes, gpus, architecture, machines_max: t.machines_max };
        catalogue.types.insert(t.name.clone(), kind);
        for zone in zones.iter().cloned() {
            let key = OfferKey { machine: t.name.clone(), zone, spot };
            catalogue.offers.push(Offer { key, price: Some(Price { rate: t.price, ceiling: t.price, billing }) });
        }
    }
    // Sizes that EC2 is asked for are 1 until then.
    let fits = |o: &Offer| u64::from(catalogue.types[&o.key.machine].slots) <= s.slots_max;
    // A cap below every price is how renting is stopped while the gateway runs.
    if !catalogue.offers.iter().any(fits) {
        return refuse(format!("no type has at most slots_max = {} slots: nothing could ever be rented", s.slots_max));
    }
    let owners: Vec<(String, Option<String>, Caps)> = s
        .owner
        .iter()
        .map(|o| o.get_ref())
        .map(|o| (o.name.clone(), o.of.clone(), Caps { hour: o.hour, day: o.day, month: o.month, total: o.total }))
        .collect();
    let of_owner = |at: usize, what: &str| source.refuse(s.owner.get(at).map(Spanned::span), &format!("[[cloud.owner]] {what}"));
    if let Some(at) = owners.iter().position(|(name, ..)| name.is_empty() || name.chars().any(char::is_control)) {
        return Err(of_owner(at, &format!("name = {:?}: write a principal, or a name that others are `of`", owners[at].0)));
    }
    let budget = Budget::new(root, &owners).map_err(|what| {
        // Wrong is he with whom it fails first.
        let counts: Vec<usize> = (1..=owners.len()).collect();
        of_owner(counts.partition_point(|n| Budget::new(root, &owners[..*n]).is_ok()), &what)
    })?;
    let alone_ms = s.alone.unwrap_or(ALONE_MS_DEFAULT);
    let settings = Settings {
        slots_max: s.slots_max,
        machines_max: s.machines_max.unwrap_or(MACHINES_MAX_DEFAULT),
        booting_max: s.booting_max.unwrap_or(BOOTING_MAX_DEFAULT),
        idle_ms: s.idle.unwrap_or(IDLE_MS_DEFAULT),
        away_ms: s.away.unwrap_or(AWAY_MS_DEFAULT),
        alone_ms: Some(alone_ms),
    };
    Ok(CloudConfig { provider, settings, catalogue, budget, alone_ms })
}
