//! What users were promised, in numbers.

use intergrid_proto::{Refusal, RefusalKind};

use super::*;

const HOUR: Billing = Billing::Hour;
const SECOND: Billing = Billing::Second { min_s: 60 };

/// Launches all that is asked for, and attaches it.
pub(super) fn launch(p: &mut Provisioner, now: u64) -> Vec<u64> {
    let mut all = Vec::new();
    loop {
        let launches: Vec<u64> =
            p.take().1.into_iter().filter_map(|a| if let Action::Launch { number, .. } = a { Some(number) } else { None }).collect();
        if launches.is_empty() {
            return all;
        }
        for number in launches {
            p.step(Input::Answered(number, Outcome::Launched(format!("i-{number}"))), now);
            p.step(Input::Attached(number), now);
            all.push(number);
        }
    }
}

pub(super) fn ends(p: &mut Provisioner) -> Vec<u64> {
    let actions = p.take().1.into_iter();
    actions.filter_map(|a| if let Action::Terminate { number, .. } = a { Some(number) } else { None }).collect()
}

#[test]
fn ten_an_hour_buys_fourteen_machines() {
    let mut p = Provisioner::new(settings(), catalogue(&[("c1.xlarge", 8)], vec![offer("c1.xlarge", "0.68", HOUR)]), per_hour("10"));
    p.step(Input::Demand(demand(8, 200)), TEN);
    assert_eq!(14, p.latest().rented.len());
    assert_eq!("budget rate", p.latest().unmet[0].why.limit);
    assert_eq!("c1.xlarge: 10.20 USD per hour would be charged, the cap is 10.00 USD per hour", p.latest().unmet[0].why.evidence);
    p.step(Input::Demand(demand(8, 200)), TEN + MINUTE);
    assert_eq!((0, 186), (p.latest().rented.len(), p.latest().unmet[0].demand.tasks), "those that boot are counted");
    assert_eq!(14, launch(&mut p, TEN + MINUTE).len());
    assert_eq!("9.52", p.budget().nodes()[0].rate().to_string());
}

#[test]
fn an_hourly_machine_goes_at_the_end_of_its_hour() {
    let started = || {
        let mut p = Provisioner::new(settings(), catalogue(&[("c1.xlarge", 8)], vec![offer("c1.xlarge", "0.68", HOUR)]), per_hour("10"));
        p.step(Input::Demand(demand(8, 1)), TEN);
        assert_eq!(vec![1], launch(&mut p, TEN));
        p.step(Input::Busy(1, 8), TEN);
        p.step(Input::Demand(vec![]), TEN);
        p.step(Input::Busy(1, 0), TEN + 20 * MINUTE);
        p
    };
    let run = |p: &mut Provisioner, from: u64, to: u64| {
        (from..=to).find(|m| {
            p.step(Input::Demand(vec![]), TEN + m * MINUTE);
            !ends(p).is_empty()
        })
    };

    let mut idle = started();
    assert_eq!(None, run(&mut idle, 21, 50), "alive at 10:50");
    assert_eq!("idle, kept to the end of its hour", idle.machines().next().unwrap().state());
    assert_eq!(Some(58), run(&mut idle, 51, 60), "gone before 11:00");

    let mut again = started();
    run(&mut again, 21, 40);
    again.step(Input::Busy(1, 8), TEN + 40 * MINUTE);
    assert_eq!("working", again.machines().next().unwrap().state());
    assert_eq!(None, run(&mut again, 41, 110), "its second hour is paid for");
    again.step(Input::Busy(1, 0), TEN + 110 * MINUTE);
    assert_eq!(Some(118), run(&mut again, 111, 120));

    let mut drained = started();
    run(&mut drained, 21, 54);
    drained.step(Input::Demand(vec![]), TEN + 55 * MINUTE);
    assert_eq!(vec![Action::Drain(1, Why::Idle)], drained.take().1.into_iter().filter(|a| *a != Action::Look).collect::<Vec<_>>());
    drained.step(Input::Drained(1), TEN + 55 * MINUTE);
    assert_eq!(vec![1], ends(&mut drained), "as soon as nothing more can be placed there");
    drained.step(Input::Terminated(1, Some(SeenState::Ending)), TEN + 55 * MINUTE);
    assert_eq!("0.68", drained.budget().nodes()[0].rate().to_string(), "its hour counts to its end");
    drained.step(Input::Tick, TEN + 60 * MINUTE);
    assert_eq!((0, "0.00".into()), (drained.machines().count(), drained.budget().nodes()[0].rate().to_string()));
    assert_eq!("0.68", drained.budget().nodes()[0].total().to_string());
}

#[test]
fn a_machine_that_leaves_is_drained_and_ends_for_the_reason_that_it_gave() {
    let mut p = Provisioner::new(settings(), catalogue(&[("m", 2)], vec![offer("m", "0.60", SECOND)]), per_hour("10"));
    p.step(Input::Demand(demand(1, 1)), TEN);
    launch(&mut p, TEN);
    p.step(Input::Busy(1, 1), TEN + MINUTE);
    p.step(Input::Leaving(1, "the provider takes it back at 10:03".into()), TEN + MINUTE);
    assert!(p.take().1.contains(&Action::Drain(1, Why::Leaving)));
    assert_eq!("takes no new work: the provider takes it back at 10:03", p.machines().next().unwrap().state());
    p.step(Input::Busy(1, 0), TEN + 2 * MINUTE);
    p.step(Input::Drained(1), TEN + 2 * MINUTE);
    assert_eq!(vec![1], ends(&mut p));
    assert_eq!("ending: the provider takes it back at 10:03", p.machines().next().unwrap().state());
}

#[test]
fn a_machine_by_the_second_goes_when_it_is_idle() {
    let mut p = Provisioner::new(settings(), catalogue(&[("m", 2)], vec![offer("m", "0.60", SECOND)]), per_hour("10"));
    p.step(Input::Demand(demand(1, 1)), TEN);
    launch(&mut p, TEN);
    p.step(Input::Demand(vec![]), TEN + MINUTE);
    p.step(Input::Tick, TEN + 4 * MINUTE);
    assert!(!p.take().1.iter().any(|a| matches!(a, Action::Drain(..))));
    p.step(Input::Tick, TEN + 5 * MINUTE);
    assert!(p.take().1.contains(&Action::Drain(1, Why::Idle)));
    p.step(Input::Demand(demand(1, 1)), TEN + 5 * MINUTE);
    assert!(p.take().1.contains(&Action::Undrain(1)), "work that comes in time keeps it");
    p.step(Input::Demand(vec![]), TEN + 6 * MINUTE);
    p.step(Input::Drained(1), TEN + 6 * MINUTE);
    assert_eq!(vec![1], ends(&mut p));
    p.step(Input::Terminated(1, Some(SeenState::Ended)), TEN + 6 * MINUTE);
    let total = p.budget().nodes()[0].total();
    assert!((60_000..=60_010).contains(&total.0), "six minutes at 0.60: {total}");
}

#[test]
fn a_day_s_cap_ends_what_runs_before_it_is_broken() {
    let caps = Caps { day: Some("0.25".parse().unwrap()), ..Caps::default() };
    let mut p = Provisioner::new(settings(), catalogue(&[("m", 2)], vec![offer("m", "0.60", SECOND)]), Budget::new(caps, &[]).unwrap());
    p.step(Input::Demand(demand(2, 4)), TEN);
    assert_eq!(2, p.latest().rented.len(), "0.10 is charged ahead for each");
    assert_eq!(2, launch(&mut p, TEN).len());
    let mut ended = BTreeMap::new();
    for s in 0..3_600 {
        let now = TEN + s * 1_000;
        for number in [1, 2] {
            p.step(Input::Busy(number, 2), now);
        }
        for number in ends(&mut p) {
            ended.insert(number, s / 60);
            p.step(Input::Terminated(number, Some(SeenState::Ending)), now);
        }
        assert!(p.budget().nodes()[0].total() <= "0.25".parse().unwrap());
    }
    assert_eq!(BTreeMap::from([(1, 8), (2, 8)]), ended, "two minutes before what is paid for is over");
    p.step(Input::Demand(demand(2, 4)), TEN + 70 * MINUTE);
    assert_eq!("budget of the day", p.latest().unmet[0].why.limit);
}

#[test]
fn an_unknown_price_is_not_paid() {
    let offers = vec![Offer { price: None, ..offer("m", "1", SECOND) }];
    let mut p = Provisioner::new(settings(), catalogue(&[("m", 2)], offers), per_hour("10"));
    p.step(Input::Demand(demand(1, 1)), TEN);
    assert_eq!((0, "price"), (p.latest().rented.len(), p.latest().unmet[0].why.limit.as_str()));
    let mut p = Provisioner::new(settings(), catalogue(&[("m", 2)], vec![offer("m", "1", SECOND)]), Budget::new(Caps::default(), &[]).unwrap());
    p.step(Input::Demand(demand(1, 1)), TEN);
    assert_eq!((0, "no budget"), (p.latest().rented.len(), p.latest().unmet[0].why.limit.as_str()));
    assert_eq!("m: no cap is set, so nothing is rented", p.latest().unmet[0].why.evidence);
}

#[test]
fn no_capacity_sends_it_elsewhere() {
    let offers = vec![offer("cheap", "0.10", SECOND), offer("dear", "0.20", SECOND)];
    let mut p = Provisioner::new(settings(), catalogue(&[("cheap", 2), ("dear", 2)], offers), per_hour("10"));
    p.step(Input::Demand(demand(2, 1)), TEN);
    p.step(Input::Answered(1, Outcome::Refused(Refused::Capacity, "InsufficientInstanceCapacity".into())), TEN);
    assert_eq!((0, Money(0)), (p.machines().count(), p.budget().nodes()[0].total()), "what never was costs nothing");
    p.step(Input::Demand(demand(2, 1)), TEN + 1_000);
    assert_eq!("dear", p.machines().next().unwrap().offer.machine);
    p.step(Input::Answered(2, Outcome::Refused(Refused::Provider, "AuthFailure".into())), TEN + 2_000);
    p.step(Input::Demand(demand(2, 1)), TEN + 3_000);
    assert_eq!(
        ("provider", "AuthFailure; asked again at 10:05:02 UTC"),
        (p.latest().unmet[0].why.limit.as_str(), p.latest().unmet[0].why.evidence.as_str())
    );
    p.step(Input::Demand(demand(2, 1)), TEN + 30 * MINUTE);
    assert_eq!("cheap", p.machines().next().unwrap().offer.machine);
}

#[test]
fn a_launch_for_which_we_have_no_room_is_tried_again_soon() {
    let mut p = Provisioner::new(settings(), catalogue(&[("m", 2)], vec![offer("m", "0.10", SECOND)]), per_hour("10"));
    p.step(Input::Demand(demand(2, 1)), TEN);
    let why = Refusal::new(RefusalKind::OverLimit, "key.pem: no space left");
    p.step(Input::Answered(1, Outcome::Refused(Refused::by_us(&why), why.to_string())), TEN);
    p.step(Input::Demand(demand(2, 1)), TEN + 1_000);
    assert!(p.latest().rented.is_empty() && p.state.back_off.is_empty());
    assert_eq!("key.pem: no space left; asked again at 10:00:05 UTC", p.latest().unmet[0].why.evidence);
    p.step(Input::Demand(demand(2, 1)), TEN + 5_000);
    assert_eq!(vec![2], p.latest().rented);
}

#[test]
fn limits_are_named() {
    let tight = Settings { slots_max: 10, ..settings() };
    let mut p = Provisioner::new(tight, catalogue(&[("m", 4)], vec![offer("m", "0.10", SECOND)]), per_hour("10"));
    p.step(Input::Demand(demand(4, 30)), TEN);
    assert_eq!((2, "slots"), (p.latest().rented.len(), p.latest().unmet[0].why.limit.as_str()));
    p.step(Input::Demand([demand(5, 1), demand(4, 4)].concat()), TEN);
    let why: Vec<&str> = p.latest().unmet.iter().map(|u| u.why.limit.as_str()).collect();
    assert_eq!(vec!["no fit", "slots"], why);
    let two = Settings { machines_max: 2, ..settings() };
    let terms = Terms { settings: two, catalogue: catalogue(&[("m", 4)], vec![offer("m", "0.10", SECOND)]), budget: per_hour("10") };
    p.step(Input::Terms(Box::new(terms)), TEN);
    p.step(Input::Demand(demand(4, 30)), TEN);
    assert_eq!(Some("machines"), p.latest().asks["alice"].hard.as_ref().map(|c| c.name.as_str()));
}

#[test]
fn a_checkpoint_is_all_that_was_committed() {
    let one = || (settings(), catalogue(&[("c1.xlarge", 8)], vec![offer("c1.xlarge", "0.68", SECOND)]));
    let (s, c) = one();
    let mut p = Provisioner::new(s, c, per_hour("10"));
    p.step(Input::Demand(demand(8, 20)), TEN);
    let mut records = p.take().0;
    p.step(Input::Answered(1, Outcome::Launched("i-1".into())), TEN);
    p.step(Input::Answered(2, Outcome::Launched("i-2".into())), TEN);
    p.step(Input::End(2), TEN + MINUTE);
    p.step(Input::Terminated(2, Some(SeenState::Ended)), TEN + 2 * MINUTE);
    p.step(Input::Tick, TEN + 9 * MINUTE);
    records.extend(p.take().0);
    let resumed = |records: Vec<Record>| {
        let (s, c) = one();
        Provisioner::resume(s, c, per_hour("10"), records, TEN + 9 * MINUTE)
    };
    let (from_records, from_checkpoint) = (resumed(records), resumed(p.checkpoint()));
    assert_eq!(from_records.checkpoint(), from_checkpoint.checkpoint());
    assert_eq!(from_records.machines().collect::<Vec<_>>(), from_checkpoint.machines().collect::<Vec<_>>());
    assert_eq!(from_records.budget(), from_checkpoint.budget());
    assert!(from_checkpoint.budget().nodes()[0].total() > Money(0));
}

#[test]
fn what_could_be_rented_is_promised() {
    let five = Settings { slots_max: 5, ..settings() };
    let mut p = Provisioner::new(five.clone(), catalogue(&[("m1.small", 1)], vec![offer("m1.small", "0.085", HOUR)]), per_hour("10"));
    let promised = |p: &Provisioner| p.promises().iter().map(|p| p.machines).collect::<Vec<_>>();
    assert_eq!(vec![5], promised(&p), "as soon as it starts");
    p.step(Input::Demand(demand(1, 6)), TEN);
    assert_eq!(vec![5], promised(&p), "what boots is not there yet");
    assert_eq!(2, launch(&mut p, TEN).len());
    assert_eq!(vec![3], promised(&p), "what is there says so itself");
    // Of two types, one of the dearer, and the rest of the cheaper.
    let two = catalogue(&[("m1.small", 1), ("c1.xlarge", 8)], vec![offer("c1.xlarge", "0.68", HOUR), offer("m1.small", "0.05", HOUR)]);
    let q = Provisioner::new(Settings { slots_max: 12, ..settings() }, two.clone(), per_hour("10"));
    assert_eq!(vec![1, 4], promised(&q));
    // Money is a limit, too; and nothing is promised without a cap.
    assert_eq!(vec![1, 6], promised(&Provisioner::new(settings(), two.clone(), per_hour("1"))));
    assert_eq!(vec![0, 0], promised(&Provisioner::new(settings(), two, Budget::new(Caps::default(), &[]).unwrap())));
}

#[test]
fn a_machine_knows_what_it_was_rented_for() {
    let of = |slots, tasks, owner: &str| Demand { owner: owner.into(), ..demand(slots, tasks)[0].clone() };
    let two = || catalogue(&[("m1.small", 1), ("c1.xlarge", 8)], vec![offer("c1.xlarge", "0.68", HOUR), offer("m1.small", "0.10", HOUR)]);
    let mut p = Provisioner::new(settings(), two(), per_hour("10"));
    p.step(Input::Demand(vec![of(1, 2, "alice"), of(3, 2, "alice"), of(1, 1, "bob")]), TEN);
    let needs = |p: &Provisioner| p.machines().map(|m| m.need.as_ref().map(|n| (n.shape.slots, n.tasks, n.principal.clone()))).collect::<Vec<_>>();
    let want = vec![Some((3, 2, "alice".to_string())), Some((1, 1, "bob".to_string()))];
    assert_eq!(want, needs(&p), "the largest of what it is for");
    for records in [p.take().0, p.checkpoint()] {
        assert_eq!(want, needs(&Provisioner::resume(settings(), two(), per_hour("10"), records, TEN)));
    }
}

#[test]
fn the_limit_that_forbids_more_is_named_in_words_that_stay() {
    let named = |p: &Provisioner| {
        let why = |p: Promise| p.no_more.map_or_else(String::new, |w| format!("{}: {}", w.limit, w.evidence));
        p.promises().into_iter().map(why).collect::<Vec<_>>()
    };
    let xlarge = || catalogue(&[("c1.xlarge", 8)], vec![offer("c1.xlarge", "0.68", HOUR)]);
    let mut p = Provisioner::new(settings(), xlarge(), per_hour("10"));
    let rate = vec!["budget rate: no more than 10.00 USD per hour"];
    assert_eq!(rate, named(&p), "as soon as it starts");
    p.step(Input::Demand(demand(8, 200)), TEN);
    assert_eq!(rate, named(&p), "and while they boot");
    assert_eq!(14, launch(&mut p, TEN).len());
    assert_eq!(rate, named(&p), "and when all are there");
    assert_eq!(0, p.promises()[0].machines);

    let of = |s: Settings, c: Catalogue, caps: Caps| named(&Provisioner::new(s, c, Budget::new(caps, &[]).unwrap()));
    let much = || Caps { hour: Some("100000".parse().unwrap()), ..Caps::default() };
    assert_eq!(vec!["slots: no more than 12"], of(Settings { slots_max: 12, ..settings() }, xlarge(), much()));
    assert_eq!(vec!["machines: no more than 3"], of(Settings { machines_max: 3, ..settings() }, xlarge(), much()));
    let mut two = xlarge();
    two.types.get_mut("c1.xlarge").unwrap().machines_max = Some(2);
    assert_eq!(vec!["machines of a type: no more than 2 c1.xlarge"], of(settings(), two, much()));
    let day = Caps { day: Some("0.50".parse().unwrap()), ..Caps::default() };
    assert_eq!(vec!["budget of the day: no more than 0.50 USD"], of(settings(), xlarge(), day));
    for (refused, said) in [(Refused::Provider, "provider: no"), (Refused::Capacity, "capacity: c1.xlarge: the provider had none: no")] {
        let mut p = Provisioner::new(settings(), xlarge(), per_hour("10"));
        p.step(Input::Demand(demand(8, 1)), TEN);
        p.step(Input::Answered(1, Outcome::Refused(refused, "no".into())), TEN);
        for second in 0..3 {
            p.step(Input::Tick, TEN + second * 1_000);
            assert_eq!(vec![said], named(&p));
        }
        p.step(Input::Tick, TEN + 30 * MINUTE);
        assert_eq!(vec!["budget rate: no more than 10.00 USD per hour"], named(&p), "when that is over");
    }
}

#[test]
fn while_spot_has_no_capacity_the_price_on_demand_is_told() {
    let mut spot = offer("m", "0.10", SECOND);
    spot.key.spot = true;
    let mut p = Provisioner::new(settings(), catalogue(&[("m", 2)], vec![offer("m", "0.30", SECOND), spot]), per_hour("10"));
    let told = |p: &Provisioner| p.promises()[0].price.unwrap().ceiling.to_string();
    let refuse = |p: &mut Provisioner, number: u64, now: u64| {
        p.step(Input::Answered(number, Outcome::Refused(Refused::Capacity, "InsufficientInstanceCapacity".into())), now)
    };
    assert_eq!("0.10", told(&p));
    // A task that may cost as much as a spot machine does.
    let wanted = |rate: &str| vec![Demand { task_rate_max: Some(rate.parse().unwrap()), ..demand(2, 1)[0].clone() }];
    p.step(Input::Demand(wanted("0.10")), TEN);
    refuse(&mut p, 1, TEN);
    assert_eq!("0.30", told(&p), "what could come");
    p.step(Input::Demand(wanted("0.10")), TEN + 1);
    assert_eq!((0, "capacity"), (p.latest().rented.len(), p.latest().unmet[0].why.limit.as_str()), "it is not rented what it can't pay");
    p.step(Input::Demand(wanted("0.30")), TEN + 2);
    assert_eq!(vec![false], p.machines().map(|m| m.offer.spot).collect::<Vec<_>>(), "and what comes for that price, is");
    refuse(&mut p, 2, TEN + 2);
    assert_eq!("0.10", told(&p), "where neither could come, the cheaper one");
    p.step(Input::Tick, TEN + 2 * MINUTE);
    assert_eq!("0.10", told(&p), "and when it is asked again");
}

#[test]
fn a_machine_that_its_provider_has_forgotten_is_gone_although_nothing_is_said_of_it() {
    let mut p = Provisioner::new(settings(), catalogue(&[("m", 2)], vec![offer("m", "0.10", SECOND)]), per_hour("10"));
    p.step(Input::Demand(demand(2, 1)), TEN);
    p.step(Input::Answered(1, Outcome::Launched("i-1".into())), TEN);
    p.step(Input::Attached(1), TEN);
    p.step(Input::End(1), TEN + 1_000);
    p.step(Input::Detached(1), TEN + 1_000);
    let mut now = TEN + 1_000;
    while p.machines().any(|m| m.may_exist()) {
        now += 15_000;
        assert!(now < TEN + 20 * MINUTE, "{:?}", p.machines().collect::<Vec<_>>());
        for action in p.take().1 {
            match action {
                Action::Terminate { number, .. } => p.step(Input::Terminated(number, None), now),
                Action::Look => p.step(Input::Listed(now, Some(vec![])), now + 100),
                _ => {}
            }
        }
        p.step(Input::Tick, now + 200);
    }
}

#[test]
fn a_type_whose_machines_never_come_up_is_left_alone_for_longer_each_time() {
    let mut p = Provisioner::new(settings(), catalogue(&[("m", 2)], vec![offer("m", "0.10", SECOND)]), per_hour("10"));
    let (mut now, mut launched) = (TEN, Vec::new());
    while now < TEN + 60 * MINUTE {
        now += 1_000;
        p.step(Input::Demand(demand(2, 1)), now);
        for action in p.take().1 {
            if let Action::Launch { number, .. } = action {
                launched.push(now);
                p.step(Input::Answered(number, Outcome::Launched(format!("i-{number}"))), now);
                p.step(Input::Terminated(number, Some(SeenState::Ended)), now + 100);
            }
        }
    }
    assert!((3..=8).contains(&launched.len()), "{launched:?}");
    assert!(p.latest().unmet[0].why.evidence.contains("ended before its agent came"), "{:?}", p.latest());
}

/// Rents what is wanted, of which no machine ever comes, until none is rented for it; says when another is.
pub(super) fn rent_in_vain(p: &mut Provisioner, wanted: &[Demand], now: u64) -> (usize, String) {
    p.step(Input::Demand(wanted.to_vec()), now);
    let rented = p.latest().rented.clone();
    for number in &rented {
        p.step(Input::Answered(*number, Outcome::Launched(format!("i-{number}"))), now);
    }
    for number in &rented {
        p.step(Input::Terminated(*number, Some(SeenState::Ended)), now);
    }
    p.step(Input::Demand(wanted.to_vec()), now);
    assert!(p.latest().rented.is_empty() && p.machines().all(|m| !m.may_exist()));
    (rented.len(), p.latest().unmet[0].why.evidence.clone())
}

#[test]
fn machines_that_fail_together_count_once() {
    let mut p = Provisioner::new(settings(), catalogue(&[("m", 2)], vec![offer("m", "0.10", SECOND)]), per_hour("10"));
    let mut now = TEN;
    for (left_s, again) in [(60, "10:01:00"), (120, "10:03:00"), (240, "10:07:00")] {
        let (rented, why) = rent_in_vain(&mut p, &demand(2, 18), now);
        assert!(rented == 6 && why.ends_with(&format!("asked again at {again} UTC")), "{rented}: {why}");
        now += left_s * 1_000;
    }
}

#[test]
fn a_launch_of_which_nothing_is_ever_known_holds_its_place_for_so_long_only() {
    let mut p = Provisioner::new(settings(), catalogue(&[("m", 2)], vec![offer("m", "0.10", SECOND)]), per_hour("10"));
    let away_ms = settings().away_ms;
    let mut now = TEN;
    while p.machines().all(|m| m.number == 1 && m.may_exist()) {
        now += 1_000;
        assert!(now < TEN + away_ms + 20 * MINUTE, "{:?}", p.machines().collect::<Vec<_>>());
        p.step(Input::Demand(demand(2, 1)), now);
        for action in p.take().1 {
            match action {
                Action::Launch { number, .. } => p.step(Input::Answered(number, Outcome::Unknown("no answer".into())), now),
                Action::Look => p.step(Input::Listed(now, Some(vec![])), now + 100),
                _ => {}
            }
        }
    }
    assert!(now >= TEN + away_ms, "until then it is asked for again");
}

#[test]
fn of_a_launch_in_doubt_the_provider_s_latest_words_are_told_until_it_is_known() {
    let mut p = Provisioner::new(settings(), catalogue(&[("m", 2)], vec![offer("m", "0.10", SECOND)]), per_hour("10"));
    let state = |p: &Provisioner| p.machines().next().unwrap().state();
    let mut now = TEN;
    p.step(Input::Demand(demand(2, 1)), now);
    assert_eq!("asked for", state(&p));
    for (outcome, words) in
        [(Outcome::Unknown("no answer".into()), "no answer"), (Outcome::Refused(Refused::Throttled, "too often".into()), "too often")]
    {
        p.step(Input::Answered(1, outcome), now);
        p.take();
        now += MINUTE;
        for _ in 0..2 {
            assert_eq!(format!("not known whether it exists: {words}"), state(&p), "also while it is asked for again");
            p.step(Input::Tick, now);
        }
        assert!(p.take().1.iter().any(|a| matches!(a, Action::Launch { number: 1, .. })));
    }
    let mut refused = p.clone();
    refused.step(Input::Answered(1, Outcome::Refused(Refused::Limit, "no more".into())), now);
    assert_eq!("not known whether it exists: no more", state(&refused), "an earlier call may have launched it");
    p.step(Input::Answered(1, Outcome::Launched("i-1".into())), now);
    assert_eq!(("booting".to_string(), None), (state(&p), p.machines().next().unwrap().doubt()));
}
