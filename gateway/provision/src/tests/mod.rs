//! The provisioner on a simulated clock: first as its users were promised, then against a cloud that lies.

mod absence;
mod clock;
mod cloud;
mod demand;
mod failed;
mod ledger;
mod offered;
mod promised;
mod room;
mod terms;

use std::collections::BTreeMap;

use intergrid_proto::share::Shape;

use crate::*;

/// 2026-01-15 10:00 UTC.
const TEN: u64 = 1_768_471_200_000;
const MINUTE: u64 = 60_000;

fn settings() -> Settings {
    Settings { slots_max: 10_000, machines_max: 1_000, booting_max: 1_000, idle_ms: 5 * MINUTE, away_ms: 10 * MINUTE, alone_ms: None }
}

fn offer(machine: &str, rate: &str, billing: Billing) -> Offer {
    let rate: Rate = rate.parse().unwrap();
    Offer { key: OfferKey { machine: machine.into(), zone: String::new(), spot: false }, price: Some(Price { rate, ceiling: rate, billing }) }
}

fn catalogue(types: &[(&str, u32)], offers: Vec<Offer>) -> Catalogue {
    let kind = |slots: u32| MachineType { slots, memory_bytes: u64::from(slots) << 31, gpus: 0, architecture: "x86_64".into(), machines_max: None };
    let types: BTreeMap<String, MachineType> = types.iter().map(|(name, slots)| (name.to_string(), kind(*slots))).collect();
    Catalogue { currency: "USD".into(), types, offers }
}

fn demand(slots: u32, tasks: u64) -> Vec<Demand> {
    vec![Demand { shape: Shape::new(slots, 0), tasks, owner: "alice".into(), task_rate_max: None, time_limit_ms: None }]
}

fn per_hour(cap: &str) -> Budget {
    Budget::new(Caps { hour: Some(cap.parse().unwrap()), ..Caps::default() }, &[]).unwrap()
}
