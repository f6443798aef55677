//! Rented machines and budgets as messages and in the log, for people.

use intergrid_proto::pb;
use intergrid_provision::{Budget, Machine, Need, Node, Provisioner, Record};

use super::is_unknown;
use crate::backend::Account;
use crate::core::rent::label;

const DAY_MS: u64 = 86_400_000;

/// All of it, as of `now_ms` since 1970.
pub fn account(gateway: &str, p: &Provisioner, now_ms: u64) -> Account {
    let currency = &p.catalogue().currency;
    let machines = p.machines().map(|m| machine(gateway, m, p.budget(), now_ms)).collect();
    // What asks for no money has no budget to show.
    let spending = if currency.is_empty() { Vec::new() } else { budgets(p, now_ms) };
    Account { machines, spending, currency: currency.clone() }
}

/// Those of the configuration, and then who has rented this month, or rents, without one of his own.
fn budgets(p: &Provisioner, now_ms: u64) -> Vec<pb::Spending> {
    let (budget, nodes) = (p.budget(), p.budget().nodes());
    let path = move |m: &Machine| std::iter::successors(Some(budget.node_of(&m.owner)), move |n: &usize| nodes[*n].above);
    let above = |n: &Node| n.above.map_or("", |at| &nodes[at].name).to_string();
    let own = nodes.iter().enumerate().map(|(at, n)| {
        let of: Vec<&Machine> = p.machines().filter(|m| path(m).any(|n| n == at)).collect();
        pb::Spending { rate_micro: n.rate().0, ..spending(n, above(n), &of, now_ms) }
    });
    let others = budget.others().map(|n| {
        let of: Vec<&Machine> = p.machines().filter(|m| budget.node_of(&m.owner) == 0 && m.principal() == n.name).collect();
        spending(n, above(n), &of, now_ms)
    });
    own.chain(others.filter(|s| s.rate_micro > 0 || s.month_micro > 0)).collect()
}

fn machine(gateway: &str, m: &Machine, budget: &Budget, now_ms: u64) -> pb::Machine {
    let payer = budget.nodes().get(budget.node_of(&m.owner));
    pb::Machine {
        name: label(gateway, m.number),
        id: m.id.clone(),
        r#type: m.offer.machine.clone(),
        zone: m.offer.zone.clone(),
        spot: m.offer.spot,
        state: m.state(),
        owner: payer.map_or_else(String::new, |n| n.name.clone()),
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

/// Of a node and the machines that it pays for.
fn spending(n: &Node, above: String, of: &[&Machine], now_ms: u64) -> pb::Spending {
    let (sum, today) = (|all: &mut dyn Iterator<Item = u64>| all.fold(0, u64::saturating_add), now_ms / DAY_MS);
    pb::Spending {
        name: n.name.clone(),
        above,
        rate_micro: sum(&mut of.iter().map(|m| m.price.ceiling.0)),
        rate_cap_micro: n.caps.hour.map(|c| c.0),
        today_micro: n.of_day(today).0,
        today_cap_micro: n.caps.day.map(|c| c.0),
        month_micro: n.of_month(today).0,
        month_cap_micro: n.caps.month.map(|c| c.0),
        total_micro: n.total().0,
        total_cap_micro: n.caps.total.map(|c| c.0),
        unknown_micro: sum(&mut of.iter().filter(|m| is_unknown(m)).map(|m| m.price.ceiling.0)),
        reserved_micro: sum(&mut of.iter().map(|m| m.reserved(now_ms).0)),
    }
}

/// The main steps of each machine.
pub fn log(gateway: &str, record: &Record, p: &Provisioner) {
    match record {
        Record::Intended { number, offer, owner, price, .. } => {
            tracing::info!(machine = %label(gateway, *number), %offer, %owner, per_hour = %price.ceiling, "a machine is rented");
        }
        Record::Named { number, id } => tracing::info!(machine = %label(gateway, *number), %id, "the provider has launched it"),
        Record::Ending { number, why } => {
            let why = p.machines().find(|m| m.number == *number).map_or_else(|| why.to_string(), |m| m.why(*why));
            tracing::info!(machine = %label(gateway, *number), %why, "a machine is ended");
        }
        Record::Gone { number, never, .. } => {
            tracing::info!(machine = %label(gateway, *number), "{}", if *never { "it never was" } else { "its end is certain" });
        }
        Record::SetBack { number, .. } => {
            tracing::warn!(machine = %label(gateway, *number), "its times were ahead of the clock: they go on from this start")
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use intergrid_proto::Shape;
    use intergrid_provision::{Billing, Caps, Catalogue, Demand, Input, MachineType, Offer, OfferKey, Outcome, Price, Settings, Terms};

    use super::*;
    use crate::rent::{RentConfig, for_rent};

    /// 2026-01-15 10:00 UTC.
    const TEN: u64 = 1_768_471_200_000;
    const MINUTE: u64 = 60_000;

    fn settings() -> Settings {
        Settings { slots_max: 10, machines_max: 10, booting_max: 10, idle_ms: MINUTE, away_ms: 10 * MINUTE, alone_ms: None }
    }

    fn provisioner(billing: Billing) -> Provisioner {
        let rate = "0.60".parse().unwrap();
        let key = OfferKey { machine: "m".into(), zone: String::new(), spot: false };
        let kind = MachineType { slots: 1, architecture: "x86_64".into(), ..MachineType::default() };
        let offers = vec![Offer { key, price: Some(Price { rate, ceiling: rate, billing }) }];
        let catalogue = Catalogue { currency: "EUR".into(), types: [("m".to_string(), kind)].into(), offers };
        let caps = |hour: &str| Caps { hour: Some(hour.parse().unwrap()), ..Caps::default() };
        let budget = Budget::new(caps("6"), &[("alice".into(), None, caps("0.60"))]).unwrap();
        Provisioner::new(settings(), catalogue, budget)
    }

    fn shown(p: &Provisioner, now_ms: u64) -> Vec<(String, [u64; 4])> {
        let one = |s: &pb::Spending| (s.name.clone(), [s.rate_micro, s.unknown_micro, s.reserved_micro, s.today_micro].map(|micro| micro / 10_000));
        account("burst", p, now_ms).spending.iter().map(one).collect()
    }

    fn of(rows: &[(&str, [u64; 4])]) -> Vec<(String, [u64; 4])> {
        rows.iter().map(|(name, cents)| (name.to_string(), *cents)).collect()
    }

    #[test]
    fn what_is_reserved_is_told_of_each_owner_with_and_without_a_cap() {
        let mut p = provisioner(Billing::Second { min_s: 60 });
        let demand = |owner: &str, tasks| Demand { shape: Shape::new(1, 0), tasks, owner: owner.into(), task_rate_max: None, time_limit_ms: None };
        p.step(Input::Demand(vec![demand("alice", 1), demand("bob", 3)]), TEN);
        assert_eq!(2, p.machines().count());
        // Rate, of it unknown, reserved, charged today: hundredths. A lease of ten minutes is 0.10.
        assert_eq!(of(&[("budget", [120, 120, 20, 20]), ("alice", [60, 60, 10, 10]), ("bob", [60, 60, 10, 10])]), shown(&p, TEN));
        p.step(Input::Answered(2, Outcome::Launched("i-2".into())), TEN);
        let later = TEN + 4 * MINUTE;
        assert_eq!(of(&[("budget", [120, 60, 16, 20]), ("alice", [60, 60, 10, 10]), ("bob", [60, 0, 6, 10])]), shown(&p, later));
        let bob = account("burst", &p, later).spending.pop().unwrap();
        assert_eq!(("budget", None), (bob.above.as_str(), bob.rate_cap_micro));

        // The same of what was committed, and of a checkpoint.
        for records in [p.take().0, p.checkpoint()] {
            let again = provisioner(Billing::Second { min_s: 60 });
            let resumed = Provisioner::resume(settings(), again.catalogue().clone(), again.budget().clone(), records, later);
            assert_eq!(shown(&p, later), shown(&resumed, later));
        }

        // One who has no budget any more is listed likewise, below the one that pays now.
        let root = Budget::new(p.budget().nodes()[0].caps, &[]).unwrap();
        let without = Provisioner::resume(settings(), p.catalogue().clone(), root, p.checkpoint(), later);
        assert_eq!(of(&[("budget", [120, 60, 16, 20]), ("alice", [60, 60, 10, 10]), ("bob", [60, 0, 6, 10])]), shown(&without, later));
        assert_eq!(vec!["budget", "budget"], account("burst", &without, later).machines.iter().map(|m| m.owner.as_str()).collect::<Vec<_>>());

        // What was not used is given back; what was is still his.
        p.step(Input::End(2), later);
        p.step(Input::Terminated(2, Some(intergrid_provision::SeenState::Ended)), later);
        assert_eq!(of(&[("budget", [60, 60, 10, 14]), ("alice", [60, 60, 10, 10]), ("bob", [0, 0, 0, 4])]), shown(&p, later));
        let next_month = TEN + 20 * DAY_MS;
        assert!(!shown(&p, next_month).iter().any(|(name, _)| name == "bob"), "nothing was charged for him this month");
    }

    #[test]
    fn of_an_hour_that_has_begun_nothing_is_reserved() {
        let mut p = provisioner(Billing::Hour);
        let demand = Demand { shape: Shape::new(1, 0), tasks: 1, owner: "alice".into(), task_rate_max: None, time_limit_ms: None };
        p.step(Input::Demand(vec![demand]), TEN);
        assert_eq!(60, shown(&p, TEN)[1].1[2], "it may never come");
        p.step(Input::Answered(1, Outcome::Launched("i-1".into())), TEN);
        assert_eq!([60, 0, 0, 60], shown(&p, TEN + MINUTE)[1].1);
    }

    #[test]
    fn that_nobody_knows_whether_a_machine_exists_is_told_with_the_provider_s_words() {
        let mut p = provisioner(Billing::Hour);
        let demand = Demand { shape: Shape::new(1, 0), tasks: 1, owner: "alice".into(), task_rate_max: None, time_limit_ms: None };
        p.step(Input::Demand(vec![demand]), TEN);
        let terms = Terms { settings: settings(), catalogue: p.catalogue().clone(), budget: p.budget().clone() };
        let config = RentConfig { gateway: "burst".into(), terms, new_terms: None, time_max_ms: 0 };
        let in_doubt = |p: &Provisioner| for_rent(p, &config, Vec::new()).types.remove(0).in_doubt;
        assert_eq!("", in_doubt(&p), "it is asked for");
        p.step(Input::Answered(1, Outcome::Unknown("no answer".into())), TEN);
        let machine = account("burst", &p, TEN).machines.remove(0);
        assert_eq!((true, "not known whether it exists: no answer"), (machine.unknown, machine.state.as_str()));
        assert_eq!("burst-m1: not known whether it exists: no answer", in_doubt(&p));
        p.step(Input::Answered(1, Outcome::Launched("i-1".into())), TEN);
        assert_eq!("", in_doubt(&p));
    }
}
