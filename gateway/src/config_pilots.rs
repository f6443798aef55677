//! The part of `gateway.toml` that runs agents as jobs of a local resource manager: `[pilots]`, beside `[slurm]` or `[gridengine]`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use intergrid_proto::Refusal;
use intergrid_proto::limits::{MEMORY_PER_TASK_BYTES_MAX, SLOTS_PER_TASK_MAX};
use intergrid_provision::{Billing, Budget, Caps, Catalogue, MachineType, Money, Offer, OfferKey, Price, Rate, Settings};
use serde::Deserialize;
use toml::Spanned;

use super::cloud::{ALONE_MS_DEFAULT, BOOTING_MAX_DEFAULT, IDLE_MS_DEFAULT};
use super::{AccountsConfig, LrmsConfig, LrmsKind, Source};

/// A pilot may wait in the queue for so long, unless the site says otherwise.
const AWAY_MS_DEFAULT: u64 = 86_400_000;
/// A pilot is at least so long.
const TIME_MS_MIN: u64 = 120_000;

/// Agents as jobs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PilotsConfig {
    /// Limits.
    pub settings: Settings,
    /// One type for each queue, for no money.
    pub catalogue: Catalogue,
    /// No money.
    pub budget: Budget,
    /// Wall clock of each, as the queue is asked for.
    pub time_ms: u64,
    /// So long before its end a pilot takes no new work.
    pub task_time_ms: u64,
    /// Without its gateway and without work, it ends after so long.
    pub alone_ms: u64,
    /// Where machines of the cluster reach this gateway; absent: where it listens.
    pub gateway: Option<String>,
    /// The agent's binary, as machines of the cluster see it; absent: the one beside ours.
    pub program: Option<PathBuf>,
}

/// The section as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    slots: u32,
    #[serde(deserialize_with = "super::bytes")]
    memory: u64,
    #[serde(default, deserialize_with = "super::gpus")]
    gpus: Option<u32>,
    #[serde(deserialize_with = "super::some_time")]
    time: Option<u64>,
    #[serde(default, deserialize_with = "super::some_time")]
    task_time: Option<u64>,
    pilots_max: u32,
    waiting_max: Option<u32>,
    #[serde(default, deserialize_with = "super::some_time")]
    idle: Option<u64>,
    #[serde(default, deserialize_with = "super::some_time")]
    away: Option<u64>,
    #[serde(default, deserialize_with = "super::some_time")]
    alone: Option<u64>,
    #[serde(default, deserialize_with = "super::some_endpoint")]
    gateway: Option<String>,
    program: Option<PathBuf>,
}

pub(super) fn read(section: &Spanned<Section>, lrms: Option<&LrmsConfig>, source: &Source) -> Result<PilotsConfig, Refusal> {
    let s = section.get_ref();
    let refuse = |what: String| Err(source.refuse(section.span(), &format!("[pilots] {what}")));
    let Some(lrms) = lrms else { return refuse("without [slurm] or [gridengine]: they are jobs of a cluster".into()) };
    if lrms.accounts != AccountsConfig::Own {
        return refuse("need `account = \"self\"`, for all queues: tasks of all users run as the account that submits them".into());
    }
    if lrms.piloted.is_empty() {
        return refuse(format!("without a queue: each has the mode \"direct\" in [{}]", lrms.kind.name()));
    }
    if !(1..=SLOTS_PER_TASK_MAX).contains(&s.slots) || !(1..=MEMORY_PER_TASK_BYTES_MAX).contains(&s.memory) {
        return refuse(format!("slots must be 1 to {SLOTS_PER_TASK_MAX}, memory 1 to {MEMORY_PER_TASK_BYTES_MAX} bytes"));
    }
    if lrms.kind == LrmsKind::GridEngine && s.gpus.is_some_and(|n| n > 0) {
        return refuse("gpus: Grid Engine is not asked for any".into());
    }
    if s.pilots_max == 0 {
        return refuse("pilots_max = 0: there would never be one".into());
    }
    let time_ms = s.time.unwrap_or(0);
    if time_ms < TIME_MS_MIN {
        return refuse(format!("time must be {} s or more", TIME_MS_MIN / 1_000));
    }
    let task_time_ms = s.task_time.unwrap_or(time_ms / 4);
    if task_time_ms >= time_ms {
        return refuse("task_time must be less than time: a pilot would never take work".into());
    }
    let mut catalogue = Catalogue { currency: String::new(), types: BTreeMap::new(), offers: Vec::new() };
    for queue in &lrms.piloted {
        let architecture = std::env::consts::ARCH.to_string();
        let kind = MachineType { slots: s.slots, memory_bytes: s.memory, gpus: s.gpus.unwrap_or(0), architecture, machines_max: None };
        catalogue.types.insert(queue.clone(), kind);
        let key = OfferKey { machine: queue.clone(), zone: String::new(), spot: false };
        let price = Price { rate: Rate(0), ceiling: Rate(0), billing: Billing::Second { min_s: 0 } };
        catalogue.offers.push(Offer { key, price: Some(price) });
    }
    let nothing = Caps { total: Some(Money(0)), ..Caps::default() };
    let budget = Budget::new(nothing, &[]).map_err(|what| source.refuse(section.span(), &format!("[pilots] {what}")))?;
    let alone_ms = s.alone.unwrap_or(ALONE_MS_DEFAULT);
    let settings = Settings {
        slots_max: u64::from(s.pilots_max) * u64::from(s.slots),
        machines_max: s.pilots_max,
        booting_max: s.waiting_max.unwrap_or(BOOTING_MAX_DEFAULT),
        idle_ms: s.idle.unwrap_or(IDLE_MS_DEFAULT),
        away_ms: s.away.unwrap_or(AWAY_MS_DEFAULT),
        alone_ms: Some(alone_ms),
    };
    let program = s.program.clone().map(|mut p| {
        source.resolve(&mut p);
        p
    });
    Ok(PilotsConfig { settings, catalogue, budget, time_ms, task_time_ms, alone_ms, gateway: s.gateway.clone(), program })
}
