//! Rented machines and budgets as messages, for people.

use intergrid_proto::pb;
use intergrid_provision::{Machine, Need, Node, Provisioner};

use super::{is_unknown, label};
use crate::backend::Account;

const DAY_MS: u64 = 86_400_000;

/// All of it, as of `now_ms` since 1970.
pub fn account(gateway: &str, p: &Provisioner, now_ms: u64) -> Account {
    let currency = &p.catalogue().currency;
    let machines = p.machines().map(|m| machine(gateway, m, now_ms)).collect();
    let nodes = p.budget().nodes();
    let unknown = |at: usize| {
        let pays = |m: &&Machine| {
            let own = p.budget().node_of(&m.owner);
            std::iter::successors(Some(own), |n| nodes[*n].above).any(|n| n == at)
        };
        p.machines().filter(|m| is_unknown(m)).filter(pays).map(|m| m.price.ceiling.0).fold(0, u64::saturating_add)
    };
    // What asks for no money has no budget to show.
    let nodes_shown = if currency.is_empty() { &[] } else { nodes };
    let spending =
        nodes_shown.iter().enumerate().map(|(at, n)| spending(n, n.above.map_or("", |a| &nodes[a].name), unknown(at), now_ms / DAY_MS)).collect();
    Account { machines, spending, currency: currency.clone() }
}

fn machine(gateway: &str, m: &Machine, now_ms: u64) -> pb::Machine {
    pb::Machine {
        name: label(gateway, m.number),
        id: m.id.clone(),
        r#type: m.offer.machine.clone(),
        zone: m.offer.zone.clone(),
        spot: m.offer.spot,
        state: m.state(),
        owner: m.owner.clone(),
        rate_micro: m.price.ceiling.0,
        age_ms: now_ms.saturating_sub(m.since_ms),
        paid_ms: m.paid_ms.saturating_sub(now_ms),
        slots: m.kind.slots,
        busy: m.busy(),
        unknown: is_unknown(m),
        need: m.need.as_ref().map(need),
    }
}

fn need(n: &Need) -> pb::Need {
    let Need { shape, tasks, principal } = n;
    pb::Need { slots: shape.slots, memory_bytes: shape.memory_bytes, gpus: shape.gpus, tasks: *tasks, principal: principal.clone() }
}

fn spending(n: &Node, above: &str, unknown_micro: u64, today: u64) -> pb::Spending {
    pb::Spending {
        name: n.name.clone(),
        above: above.to_string(),
        rate_micro: n.rate().0,
        rate_cap_micro: n.caps.hour.map(|c| c.0),
        today_micro: n.of_day(today).0,
        today_cap_micro: n.caps.day.map(|c| c.0),
        month_micro: n.of_month(today).0,
        month_cap_micro: n.caps.month.map(|c| c.0),
        total_micro: n.total().0,
        total_cap_micro: n.caps.total.map(|c| c.0),
        unknown_micro,
    }
}
