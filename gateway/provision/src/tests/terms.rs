//! Terms that change while machines run.

use std::collections::BTreeSet;

use super::promised::{ends, launch};
use super::*;

const SECOND: Billing = Billing::Second { min_s: 60 };

fn terms(offers: Vec<Offer>, hour: &str) -> Box<Terms> {
    let types: Vec<(&str, u32)> = offers.iter().map(|o| (o.key.machine.as_str(), 1)).collect();
    let catalogue = catalogue(&types, offers.clone());
    Box::new(Terms { settings: settings(), catalogue, budget: per_hour(hour) })
}

fn begun(terms: &Terms) -> Provisioner {
    Provisioner::new(terms.settings.clone(), terms.catalogue.clone(), terms.budget.clone())
}

fn rate(p: &Provisioner) -> String {
    p.budget().nodes()[0].rate().to_string()
}

/// A machine for each task, all at work.
fn working(p: &mut Provisioner, tasks: u64, mut now: u64) -> Vec<u64> {
    let mut all = Vec::new();
    while (all.len() as u64) < tasks {
        now += 1;
        p.step(Input::Demand(demand(1, tasks - all.len() as u64)), now);
        let new = launch(p, now);
        new.iter().for_each(|number| p.step(Input::Busy(*number, 1), now));
        all.extend(new);
    }
    p.step(Input::Demand(vec![]), now + 1);
    all
}

/// Launches that are asked for, first ones and repeats.
fn launches(p: &mut Provisioner) -> usize {
    p.take().1.iter().filter(|a| matches!(a, Action::Launch { .. })).count()
}

#[test]
fn a_changed_price_is_for_what_is_rented_from_then_on() {
    for new in ["0.30", "0.05"] {
        let mut p = begun(&terms(vec![offer("m", "0.10", SECOND)], "10"));
        working(&mut p, 1, TEN);
        p.step(Input::Terms(terms(vec![offer("m", new, SECOND)], "10")), TEN + MINUTE);
        working(&mut p, 1, TEN + MINUTE);
        let prices: Vec<String> = p.machines().map(|m| m.price.ceiling.to_string()).collect();
        assert_eq!(vec!["0.10", new], prices);
        p.step(Input::End(2), TEN + MINUTE);
        p.step(Input::Terminated(2, Some(SeenState::Ended)), TEN + MINUTE);
        let before = p.budget().nodes()[0].total();
        for minute in 2..=121 {
            p.step(Input::Tick, TEN + minute * MINUTE);
        }
        let charged = p.budget().nodes()[0].total().less(before).0;
        assert!((200_000..220_000).contains(&charged), "two hours more at 0.10, leases of ten minutes: {charged}");
    }
}

#[test]
fn a_type_that_is_no_longer_offered_ends_as_idle_machines_do() {
    let (old, new) = (terms(vec![offer("old", "0.10", SECOND)], "10"), terms(vec![offer("new", "0.20", SECOND)], "10"));
    let mut p = begun(&old);
    working(&mut p, 2, TEN);
    p.step(Input::Terms(new.clone()), TEN + MINUTE);
    assert_eq!(vec!["old is no longer rented", "new is rented at 0.20 USD per hour"], old.changes(&new));
    p.step(Input::Demand(demand(1, 1)), TEN + MINUTE);
    assert_eq!(vec![3], p.latest().rented, "another for what waits");
    assert_eq!("new", p.machines().last().unwrap().offer.machine);
    assert!(p.promises().iter().all(|promise| promise.name == "new"));
    launch(&mut p, TEN + MINUTE);
    p.step(Input::Busy(3, 1), TEN + MINUTE);
    p.step(Input::Demand(vec![]), TEN + MINUTE);
    p.step(Input::Busy(1, 0), TEN + 2 * MINUTE);
    p.step(Input::Tick, TEN + 7 * MINUTE);
    let drained: Vec<Action> = p.take().1.into_iter().filter(|a| matches!(a, Action::Drain(..) | Action::Terminate { .. })).collect();
    assert_eq!(vec![Action::Drain(1, Why::Idle)], drained, "the one without work, and no other");
}

/// Where the hour is billed, too: it is not kept to the end of that, and what boots for nobody is given up.
#[test]
fn an_hourly_machine_of_a_type_that_is_no_longer_offered_goes_when_it_is_idle() {
    let goes = |new: &str| {
        let (old, new) = (terms(vec![offer("old", "0.10", Billing::Hour)], "10"), terms(vec![offer(new, "0.10", Billing::Hour)], "10"));
        let mut p = begun(&old);
        assert_eq!(vec![1], working(&mut p, 1, TEN));
        p.step(Input::Demand(demand(1, 1)), TEN + 1_000);
        p.step(Input::Terms(new), TEN + MINUTE);
        p.step(Input::Busy(1, 0), TEN + 2 * MINUTE);
        for round in 0..u64::from(limits::SURPLUS_ROUNDS) {
            p.step(Input::Demand(vec![]), TEN + 2 * MINUTE + round * 1_000);
        }
        let given_up = p.machines().filter(|m| m.ending == Some(Why::Surplus)).map(|m| m.number).collect::<Vec<_>>();
        p.take();
        p.step(Input::Tick, TEN + 7 * MINUTE);
        (given_up, p.take().1.contains(&Action::Drain(1, Why::Idle)))
    };
    assert_eq!((vec![2], true), goes("new"));
    assert_eq!((vec![], false), goes("old"));
}

#[test]
fn a_lowered_cap_rents_nothing_and_lets_go_what_it_must() {
    let offers = || vec![offer("m", "0.10", SECOND)];
    let mut p = begun(&terms(offers(), "1"));
    assert_eq!(10, working(&mut p, 10, TEN).len());
    let charged = p.budget().nodes()[0].total();
    p.step(Input::Terms(terms(offers(), "0.50")), TEN + MINUTE);
    assert_eq!(("1.00".to_string(), charged), (rate(&p), p.budget().nodes()[0].total()), "what is reserved stays so");
    p.step(Input::Demand(demand(1, 5)), TEN + MINUTE);
    assert_eq!((0, "budget rate"), (p.latest().rented.len(), p.latest().unmet[0].why.limit.as_str()));
    assert_eq!(0, launches(&mut p));
    let mut gone = Vec::new();
    for second in 60..1_200 {
        let now = TEN + second * 1_000;
        p.step(Input::Demand(demand(1, 5)), now);
        let (_, actions) = p.take();
        assert!(!actions.iter().any(|a| matches!(a, Action::Launch { .. })), "nothing is launched: {actions:?}");
        for action in actions {
            if let Action::Terminate { number, .. } = action {
                gone.push((number, second / 60));
                p.step(Input::Terminated(number, Some(SeenState::Ended)), now);
            }
        }
    }
    assert_eq!((5, "0.50".to_string()), (gone.len(), rate(&p)), "{gone:?}");
    assert!(gone.iter().all(|(_, minute)| (7..=8).contains(minute)), "when their leases are over, and not before: {gone:?}");
}

#[test]
fn what_was_not_asked_for_yet_is_decided_again() {
    let offers = || vec![offer("m", "0.10", SECOND)];
    let mut p = begun(&terms(offers(), "100"));
    p.step(Input::Demand(demand(1, 90)), TEN);
    assert_eq!((30, limits::CALLS_MAX), (p.latest().rented.len(), launches(&mut p)));
    p.step(Input::Terms(terms(offers(), "0.20")), TEN + 1);
    assert_eq!((0, "0.80".to_string()), (launches(&mut p), rate(&p)), "calls that were made are charged, and no other is made");
    for number in 1..=limits::CALLS_MAX as u64 {
        p.step(Input::Answered(number, Outcome::Launched(format!("i-{number}"))), TEN + 2);
        p.step(Input::Demand(demand(1, 90)), TEN + 2);
        assert_eq!(0, launches(&mut p));
    }
}

#[test]
fn a_raised_cap_lets_waiting_work_start() {
    let offers = || vec![offer("m", "0.10", SECOND)];
    let mut p = begun(&terms(offers(), "0.10"));
    working(&mut p, 1, TEN);
    p.step(Input::Demand(demand(1, 1)), TEN + 1);
    assert_eq!("budget rate", p.latest().unmet[0].why.limit);
    let more = Terms { settings: Settings { slots_max: 1, ..settings() }, ..*terms(offers(), "0.20") };
    p.step(Input::Terms(Box::new(more)), TEN + 2);
    p.step(Input::Demand(demand(1, 1)), TEN + 2);
    assert_eq!("slots", p.latest().unmet[0].why.limit, "limits change, too");
    p.step(Input::Terms(terms(offers(), "0.20")), TEN + 3);
    p.step(Input::Demand(demand(1, 1)), TEN + 3);
    assert_eq!((1, "0.20".to_string()), (launches(&mut p), rate(&p)));
}

#[test]
fn an_owner_who_gets_caps_of_his_own_is_charged_for_what_runs_too() {
    let offers = || vec![offer("m", "0.10", SECOND)];
    let mut p = begun(&terms(offers(), "1"));
    working(&mut p, 2, TEN);
    let caps = |hour: &str| Caps { hour: Some(hour.parse().unwrap()), ..Caps::default() };
    let budget = || Budget::new(caps("1"), &[("alice".into(), None, caps("0.30"))]).unwrap();
    p.step(Input::Terms(Box::new(Terms { budget: budget(), ..*terms(offers(), "1") })), TEN + MINUTE);
    let rates = |p: &Provisioner| p.budget().nodes().iter().map(|n| n.rate().to_string()).collect::<Vec<_>>();
    assert_eq!(vec!["0.20", "0.20"], rates(&p), "what runs counts where its owner stands now");
    working(&mut p, 1, TEN + MINUTE);
    assert_eq!(vec!["0.30", "0.30"], rates(&p));
    let why = |p: &mut Provisioner, owner: &str, now| {
        p.step(Input::Demand(vec![Demand { owner: owner.into(), ..demand(1, 99)[0].clone() }]), now);
        let why = p.latest().unmet[0].why.clone();
        (why.limit, why.evidence, why.own)
    };
    let used = "0.30 of 0.30 USD per hour are used".to_string();
    assert_eq!(("budget rate of alice".into(), used, true), why(&mut p, "alice", TEN + MINUTE));
    p.step(Input::End(1), TEN + 2 * MINUTE);
    assert_eq!(vec![1], ends(&mut p));
    p.step(Input::Terminated(1, Some(SeenState::Ended)), TEN + 2 * MINUTE);
    assert_eq!(vec!["0.20", "0.20"], rates(&p), "and given back there");
}

#[test]
fn a_spot_machine_follows_its_market_and_not_the_bids_of_others() {
    let spot = |bid: &str| {
        let mut o = offer("m", bid, SECOND);
        o.key.spot = true;
        vec![o]
    };
    let market = |rate: &str| Input::SpotPrices(BTreeMap::from([("m".to_string(), rate.parse().unwrap())]));
    let mut p = begun(&terms(spot("0.60"), "10"));
    p.step(market("0.30"), TEN);
    working(&mut p, 1, TEN);
    // A lower bid, while what runs costs more than that.
    p.step(Input::Terms(terms(spot("0.06"), "10")), TEN + MINUTE);
    assert_eq!("0.06", p.catalogue().offers[0].price.unwrap().rate.to_string(), "prices of the market are still known");
    p.step(market("0.30"), TEN + MINUTE);
    for minute in 2..=60 {
        p.step(Input::Tick, TEN + minute * MINUTE);
    }
    let charged = p.budget().nodes()[0].total().0;
    // 56 minutes at 0.30, and at the bid the 14 that are charged ahead.
    assert!((420_000..420_100).contains(&charged), "{charged}");
    p.step(Input::Terms(terms(vec![offer("other", "0.10", SECOND)], "10")), TEN + 60 * MINUTE);
    assert_eq!(BTreeSet::from(["m".to_string()]), p.spot_types(), "while it runs");
    p.step(Input::Terminated(1, Some(SeenState::Ended)), TEN + 60 * MINUTE);
    let charged = p.budget().nodes()[0].total().0;
    assert!((300_000..300_100).contains(&charged), "an hour at 0.30, when all is settled: {charged}");
}
