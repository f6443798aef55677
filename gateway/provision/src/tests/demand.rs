//! What is kept, given up and left alone: by demand, by an administrator, by what a provider says.

use super::promised::{ends, launch};
use super::*;

const SECOND: Billing = Billing::Second { min_s: 60 };

fn provisioner(slots: u32, price: &str) -> Provisioner {
    Provisioner::new(settings(), catalogue(&[("m", slots)], vec![offer("m", price, SECOND)]), per_hour("10"))
}

fn drains(p: &mut Provisioner) -> Vec<u64> {
    p.take().1.into_iter().filter_map(|a| if let Action::Drain(number, _) = a { Some(number) } else { None }).collect()
}

fn there(p: &Provisioner) -> Vec<u64> {
    p.machines().filter(|m| m.may_exist() && m.ending.is_none()).map(|m| m.number).collect()
}

#[test]
fn an_idle_machine_that_a_task_can_not_pay_for_is_not_kept_for_it() {
    let offers = vec![offer("cheap", "0.20", SECOND), offer("dear", "4", SECOND)];
    let mut p = Provisioner::new(settings(), catalogue(&[("cheap", 2), ("dear", 8)], offers), per_hour("10"));
    p.step(Input::Demand(demand(8, 1)), TEN);
    assert_eq!(vec![1], launch(&mut p, TEN), "only a dear one is large enough");
    let poor = || vec![Demand { task_rate_max: Some("0.10".parse().unwrap()), ..demand(1, 1)[0].clone() }];
    p.step(Input::Demand(poor()), TEN + MINUTE);
    let rented: Vec<&str> = p.machines().map(|m| m.offer.machine.as_str()).collect();
    assert_eq!(vec!["dear", "cheap"], rented);
    launch(&mut p, TEN + MINUTE);
    p.step(Input::Demand(poor()), TEN + 6 * MINUTE);
    assert_eq!(vec![1], drains(&mut p), "the dear one has nothing to do");
    // Who can pay for it keeps it.
    p.step(Input::Demand(demand(8, 1)), TEN + 6 * MINUTE);
    assert!(p.take().1.contains(&Action::Undrain(1)));
}

#[test]
fn a_machine_without_time_for_a_task_is_not_kept_for_it_and_another_is_rented() {
    let mut p = provisioner(2, "0.10");
    let long = || vec![Demand { time_limit_ms: Some(20 * MINUTE), ..demand(1, 1)[0].clone() }];
    p.step(Input::Demand(long()), TEN);
    assert_eq!(vec![1], launch(&mut p, TEN), "a new one has the time");
    p.step(Input::Time(1, 15 * MINUTE), TEN);
    p.step(Input::Demand(long()), TEN + 1_000);
    assert_eq!(vec![2], p.latest().rented);
    launch(&mut p, TEN + 1_000);
    for minute in 1..=5 {
        p.step(Input::Demand(long()), TEN + minute * MINUTE);
    }
    assert_eq!(vec![1], drains(&mut p), "it has nothing to do");
}

#[test]
fn a_machine_that_an_administrator_drains_is_replaced_and_goes() {
    let mut p = provisioner(2, "0.10");
    p.step(Input::Demand(demand(1, 1)), TEN);
    assert_eq!(vec![1], launch(&mut p, TEN));
    p.step(Input::Closed(1, true), TEN);
    p.step(Input::Demand(demand(1, 1)), TEN + 1_000);
    assert_eq!(vec![2], p.latest().rented, "nothing can be placed on the first");
    launch(&mut p, TEN + 1_000);
    for minute in 1..=5 {
        p.step(Input::Demand(demand(1, 1)), TEN + minute * MINUTE);
    }
    assert_eq!(vec![1], drains(&mut p));
    p.step(Input::Drained(1), TEN + 5 * MINUTE);
    assert_eq!(vec![1], ends(&mut p));
    // One that is opened again takes what comes.
    p.step(Input::Closed(2, true), TEN + 6 * MINUTE);
    p.step(Input::Closed(2, false), TEN + 6 * MINUTE);
    p.step(Input::Demand(demand(1, 2)), TEN + 6 * MINUTE);
    assert!(p.latest().rented.is_empty() && p.latest().unmet.is_empty());
}

/// Nothing can come for the rest of its hour.
#[test]
fn an_hourly_machine_that_an_administrator_drains_goes_when_it_has_no_work() {
    let after = |closed: bool| {
        let mut p = Provisioner::new(settings(), catalogue(&[("m", 2)], vec![offer("m", "0.60", Billing::Hour)]), per_hour("10"));
        p.step(Input::Demand(demand(2, 1)), TEN);
        launch(&mut p, TEN);
        p.step(Input::Busy(1, 2), TEN);
        p.step(Input::Demand(vec![]), TEN);
        p.step(Input::Closed(1, closed), TEN);
        p.step(Input::Tick, TEN + 10 * MINUTE);
        assert!(drains(&mut p).is_empty(), "what it has it ends");
        p.step(Input::Busy(1, 0), TEN + 10 * MINUTE);
        p.step(Input::Tick, TEN + 15 * MINUTE);
        drains(&mut p)
    };
    assert_eq!((vec![1], vec![]), (after(true), after(false)));
}

#[test]
fn an_offer_that_is_refused_stands_in_no_other_s_way_and_is_named_with_its_remedy() {
    let offers = vec![offer("arm", "0.10", SECOND), offer("x86", "0.20", SECOND)];
    let mut p = Provisioner::new(settings(), catalogue(&[("arm", 2), ("x86", 2)], offers), per_hour("10"));
    for (minute, again) in [(0, "10:01:00"), (5, "10:07:00")] {
        let now = TEN + minute * MINUTE;
        p.step(Input::Demand(demand(2, 1)), now);
        let first = p.latest().rented[0];
        assert_eq!("arm", p.machines().find(|m| m.number == first).unwrap().offer.machine, "the cheapest");
        p.step(Input::Answered(first, Outcome::Refused(Refused::Offer, "InvalidParameterValue: arm64; correct the type".into())), now);
        p.step(Input::Demand(demand(2, 1)), now + 1_000);
        let other = p.latest().rented[0];
        assert_eq!("x86", p.machines().find(|m| m.number == other).unwrap().offer.machine);
        p.step(Input::Answered(other, Outcome::Refused(Refused::Capacity, "the subnet has no free address".into())), now + 1_000);
        for seconds in [2, 3] {
            p.step(Input::Demand(demand(2, 1)), now + seconds * 1_000);
        }
        let said = &p.latest().unmet[0].why;
        let want = format!("arm: the provider refuses it: InvalidParameterValue: arm64; correct the type; asked again at {again} UTC");
        assert_eq!(("capacity", want.as_str()), (said.limit.as_str(), said.evidence.as_str()), "for longer each time");
    }
    let of = |refused, text: &str| {
        let mut p = provisioner(2, "0.10");
        p.step(Input::Demand(demand(2, 1)), TEN);
        p.step(Input::Answered(1, Outcome::Refused(refused, text.into())), TEN);
        p.step(Input::Demand(demand(2, 1)), TEN);
        p.latest().unmet[0].why.evidence.clone()
    };
    assert!(of(Refused::Capacity, "raise the type's `price`").contains("the provider had none: raise the type's `price`"));
    assert!(of(Refused::Limit, "ask AWS for a higher quota").contains("no more of this type: ask AWS for a higher quota"));
}

#[test]
fn no_capacity_is_of_one_place_and_a_quota_of_all() {
    let place = |zone: &str| {
        let mut o = offer("m", "0.10", SECOND);
        o.key.zone = zone.into();
        o
    };
    for (refused, next) in [(Refused::Capacity, Some("b")), (Refused::Limit, None)] {
        let mut p = Provisioner::new(settings(), catalogue(&[("m", 2)], vec![place("a"), place("b")]), per_hour("10"));
        p.step(Input::Demand(demand(2, 1)), TEN);
        p.step(Input::Answered(1, Outcome::Refused(refused, "no".into())), TEN);
        p.step(Input::Demand(demand(2, 1)), TEN + 1_000);
        assert_eq!(next, p.machines().next().map(|m| m.offer.zone.as_str()), "{refused:?}");
    }
}

#[test]
fn what_is_launched_after_it_was_given_up_is_ended() {
    let mut p = provisioner(2, "0.10");
    p.step(Input::Demand(demand(2, 1)), TEN);
    assert!(p.take().1.iter().any(|a| matches!(a, Action::Launch { number: 1, .. })));
    // Its demand is gone while the call is on its way: that is where it stays wanted no more, and charged.
    for round in 1..=u64::from(limits::SURPLUS_ROUNDS) {
        assert_eq!(vec![1], there(&p), "round {round}");
        p.step(Input::Demand(vec![]), TEN + round * 1_000);
    }
    assert_eq!(Some(Why::Surplus), p.machines().next().unwrap().ending);
    // Work that comes now is for another.
    p.step(Input::Demand(demand(2, 1)), TEN + 10_000);
    assert_eq!((vec![2], "0.20".to_string()), (p.latest().rented.clone(), p.budget().nodes()[0].rate().to_string()));
    let actions = p.take().1;
    assert!(!actions.iter().any(|a| matches!(a, Action::Terminate { .. } | Action::Launch { number: 1, .. })), "{actions:?}");
    p.step(Input::Answered(1, Outcome::Launched("i-1".into())), TEN + 20_000);
    assert_eq!(vec![1], ends(&mut p), "a late success");
    p.step(Input::Terminated(1, Some(SeenState::Ending)), TEN + MINUTE);
    assert_eq!((vec![2], "0.10".to_string()), (there(&p), p.budget().nodes()[0].rate().to_string()));
}

#[test]
fn what_is_no_longer_wanted_ends_for_a_reason_that_is_true_of_it() {
    type Does = fn(&mut Provisioner);
    let idle: Does = |p| {
        p.step(Input::Attached(1), TEN);
        p.step(Input::Busy(1, 2), TEN);
        p.step(Input::Busy(1, 0), TEN);
        p.step(Input::Detached(1), TEN);
    };
    let other: Does = |p| {
        let catalogue = catalogue(&[("n", 2)], vec![offer("n", "0.10", SECOND)]);
        p.step(Input::Terms(Box::new(Terms { settings: settings(), catalogue, budget: per_hour("10") })), TEN);
    };
    let words = [
        (None, "it was not there yet, and is no longer wanted"),
        (Some(idle), "it has nothing to do, and its agent is away"),
        (Some(other), "it was not there yet, and its type is no longer rented"),
    ];
    for (does, words) in words {
        let mut p = provisioner(2, "0.10");
        p.step(Input::Demand(demand(2, 1)), TEN);
        p.step(Input::Answered(1, Outcome::Launched("i-1".into())), TEN);
        does.into_iter().for_each(|does| does(&mut p));
        (1..=u64::from(limits::SURPLUS_ROUNDS)).for_each(|round| p.step(Input::Demand(vec![]), TEN + round * 1_000));
        let m = p.machines().next().unwrap();
        assert_eq!((Some(Why::Surplus), format!("ending: {words}")), (m.ending, m.state()));
        // The next start says the same.
        let again = Provisioner::resume(settings(), p.catalogue().clone(), per_hour("10"), p.checkpoint(), TEN + MINUTE);
        assert_eq!(format!("ending: {words}"), again.machines().next().unwrap().state());
    }
}

#[test]
fn what_has_come_least_far_goes_first() {
    let mut p = provisioner(2, "0.01");
    p.step(Input::Demand(demand(2, 1)), TEN);
    assert_eq!(vec![1], launch(&mut p, TEN));
    // As many calls as can be on their way, and one machine more.
    let calls = limits::CALLS_MAX as u64;
    let mut now = TEN;
    while (there(&p).len() as u64) < calls + 2 {
        now += 1;
        p.step(Input::Demand(demand(2, calls + 2)), now);
    }
    assert_eq!(calls, p.machines().filter(|m| m.in_flight).count() as u64);
    let rounds = |p: &mut Provisioner, tasks: u64, from: u64| {
        for round in 1..=u64::from(limits::SURPLUS_ROUNDS) {
            p.step(Input::Demand(demand(2, tasks)), from + round * 1_000);
        }
        there(p)
    };
    let uncalled = calls + 2;
    let left = rounds(&mut p, calls + 1, now);
    assert_eq!((1..uncalled).collect::<Vec<_>>(), left, "what was not asked for yet");
    assert!(p.machines().all(|m| m.number != uncalled), "it never was, and costs nothing");
    assert_eq!(vec![1], rounds(&mut p, 1, now + 10_000), "then what boots");
    assert_eq!(vec![1], rounds(&mut p, 0, now + 20_000), "what is there is kept");
    p.take();
    p.step(Input::Demand(vec![]), now + 20_000 + 5 * MINUTE);
    assert_eq!(vec![1], drains(&mut p), "for a while");
}

/// Nor does it after a restart.
#[test]
fn what_is_free_where_the_agent_is_away_holds_up_no_work_for_long() {
    let terms = || (Settings { slots_max: 8, ..settings() }, catalogue(&[("m", 4)], vec![offer("m", "0.10", SECOND)]));
    let wanted = |p: &mut Provisioner, tasks: u64, now: u64| {
        p.step(Input::Demand(demand(1, tasks)), now);
        (p.latest().rented.clone(), p.latest().unmet.first().map(|u| u.why.limit.clone()))
    };
    let (s, c) = terms();
    let mut p = Provisioner::new(s, c, per_hour("10"));
    p.step(Input::Demand(demand(1, 1)), TEN);
    assert_eq!(vec![1], launch(&mut p, TEN));
    p.step(Input::Busy(1, 1), TEN);
    p.step(Input::Detached(1), TEN + MINUTE);
    let (s, c) = terms();
    let again = Provisioner::resume(s, c, per_hour("10"), p.checkpoint(), TEN + MINUTE);
    for mut p in [p, again] {
        let late = TEN + MINUTE + limits::AWAY_SUPPLY_MS;
        assert_eq!((vec![], None), wanted(&mut p, 3, late - 1), "it may be back at once");
        assert_eq!((vec![2], None), wanted(&mut p, 3, late));
        p.step(Input::Busy(1, 0), late);
        let rounds = u64::from(limits::SURPLUS_ROUNDS);
        (1..=rounds).for_each(|round| assert_eq!((vec![], None), wanted(&mut p, 3, late + round * 1_000), "what boots is for it"));
        assert_eq!((vec![], Some("slots".to_string())), wanted(&mut p, 5, late + 10_000), "it is there, and costs");
        assert_eq!(vec![1, 2], there(&p), "it may be back before the other comes");
        let mut back = p.clone();
        back.step(Input::Attached(1), late + 11_000);
        assert_eq!((vec![], None), wanted(&mut back, 8, late + 11_000));
        assert_eq!(vec![2], launch(&mut p, late + 11_000));
        (1..=rounds).for_each(|round| _ = wanted(&mut p, 3, late + 11_000 + round * 1_000));
        assert_eq!(vec![2], there(&p), "then nobody needs it");
    }
}

/// Nor is it after a restart.
#[test]
fn a_machine_whose_agent_is_away_is_none_that_is_on_its_way() {
    let terms = || (Settings { slots_max: 10, booting_max: 1, ..settings() }, catalogue(&[("m", 2)], vec![offer("m", "0.10", SECOND)]));
    let (s, c) = terms();
    let mut p = Provisioner::new(s, c, per_hour("10"));
    let promised = |p: &Provisioner| p.promises()[0].machines;
    let states = |p: &Provisioner| p.machines().map(Machine::state).collect::<Vec<_>>();
    p.step(Input::Demand(demand(2, 1)), TEN);
    p.step(Input::Answered(1, Outcome::Launched("i-1".into())), TEN);
    assert_eq!((5, vec!["booting".to_string()]), (promised(&p), states(&p)));
    p.step(Input::Attached(1), TEN);
    p.step(Input::Busy(1, 2), TEN);
    p.step(Input::Detached(1), TEN + 1_000);
    assert_eq!((4, vec!["its agent is away".to_string()]), (promised(&p), states(&p)), "what it has is not free");
    p.step(Input::Demand(demand(2, 1)), TEN + 2_000);
    p.step(Input::Answered(2, Outcome::Launched("i-2".into())), TEN + 2_000);
    let both = vec!["its agent is away".to_string(), "booting".to_string()];
    assert_eq!((4, &both), (promised(&p), &states(&p)), "it is none of those that may boot at a time");
    let (s, c) = terms();
    let again = Provisioner::resume(s, c, per_hour("10"), p.checkpoint(), TEN + 3_000);
    assert_eq!((4, &both), (promised(&again), &states(&again)));
}
