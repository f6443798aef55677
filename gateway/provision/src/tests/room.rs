//! Idle machines with a paid hour, and work that they do not take.

use std::collections::BTreeSet;

use super::cloud::Random;
use super::promised::{ends, launch};
use super::*;

const HOUR: Billing = Billing::Hour;
const SECOND: Billing = Billing::Second { min_s: 60 };

fn one_and_two() -> Catalogue {
    catalogue(&[("one", 1), ("two", 2)], vec![offer("one", "0.10", HOUR), offer("two", "0.20", HOUR)])
}

/// One machine, `one`, is there, and nothing waits.
fn one_is_there(limits: Settings, hour: &str) -> Provisioner {
    let mut p = Provisioner::new(limits, one_and_two(), per_hour(hour));
    p.step(Input::Demand(demand(1, 1)), TEN);
    assert_eq!(vec![1], launch(&mut p, TEN));
    assert_eq!("one", p.machines().next().unwrap().offer.machine);
    p.step(Input::Demand(vec![]), TEN);
    p
}

fn slots(slots_max: u64) -> Settings {
    Settings { slots_max, ..settings() }
}

fn drains(p: &mut Provisioner) -> Vec<u64> {
    p.take().1.into_iter().filter_map(|a| if let Action::Drain(number, _) = a { Some(number) } else { None }).collect()
}

fn why(p: &Provisioner) -> String {
    p.latest().unmet.first().map_or_else(String::new, |u| format!("{}: {}", u.why.limit, u.why.evidence))
}

#[test]
fn an_idle_machine_goes_before_its_hour_is_over_for_work_that_it_does_not_take() {
    let mut p = one_is_there(slots(2), "10");
    p.step(Input::Demand(demand(2, 1)), TEN + 4 * MINUTE);
    assert_eq!((vec![], "slots: 1 of 2 are used, one two has 2".to_string()), (drains(&mut p), why(&p)), "it is not idle for long yet");
    p.step(Input::Demand(demand(2, 1)), TEN + 5 * MINUTE);
    assert_eq!(vec![1], drains(&mut p));
    let words = "it has nothing to do, and is in the way of other work";
    assert_eq!(format!("takes no new work: {words}"), p.machines().next().unwrap().state());

    // Work that it takes after all keeps it.
    let mut taken = p.clone();
    taken.step(Input::Demand(demand(1, 1)), TEN + 5 * MINUTE + 1);
    assert!(taken.take().1.contains(&Action::Undrain(1)));
    assert_eq!("idle", taken.machines().next().unwrap().state());
    taken.step(Input::Demand(vec![]), TEN + 5 * MINUTE + 2);
    assert_eq!((vec![], "idle, kept to the end of its hour".into()), (drains(&mut taken), taken.machines().next().unwrap().state()));

    let mut now = TEN + 5 * MINUTE + 1_000;
    p.step(Input::Demand(demand(2, 1)), now);
    assert_eq!("slots: 1 of 2 are used, one two has 2; idle and going: 1", why(&p));
    p.step(Input::Drained(1), now);
    assert_eq!(vec![1], ends(&mut p));
    assert_eq!(format!("ending: {words}"), p.machines().next().unwrap().state());
    p.step(Input::Terminated(1, Some(SeenState::Ending)), now);
    now += 1_000;
    p.step(Input::Demand(demand(2, 1)), now);
    assert_eq!(vec![2], launch(&mut p, now));
    assert_eq!(vec!["one", "two"], p.machines().map(|m| m.offer.machine.as_str()).collect::<Vec<_>>());
    assert_eq!("0.30", p.budget().nodes()[0].rate().to_string(), "its hour counts to its end");
    // Nor is it rented again while the other has work.
    p.step(Input::Busy(2, 2), now);
    p.step(Input::Demand(vec![]), now + 10 * MINUTE);
    assert_eq!((vec![], 1), (drains(&mut p), p.machines().filter(|m| m.may_exist()).count()));
}

/// Where the other could not be rented after all, it is kept.
#[test]
fn an_idle_machine_goes_only_where_that_helps() {
    let goes = |mut p: Provisioner, wanted: Vec<Demand>| {
        p.step(Input::Demand(wanted.clone()), TEN + 5 * MINUTE);
        let gone = drains(&mut p);
        p.step(Input::Demand(wanted), TEN + 5 * MINUTE + 1_000);
        (gone, why(&p))
    };
    let one = Settings { machines_max: 1, ..settings() };
    assert_eq!((vec![1], "machines: 1 of 1 are used; idle and going: 1".into()), goes(one_is_there(one, "10"), demand(2, 1)));
    // Its rate is used up to the end of its hour.
    let rate = "two: 0.30 USD per hour would be charged, the cap is 0.25 USD per hour";
    assert_eq!((vec![], "slots: 1 of 2 are used, one two has 2".into()), goes(one_is_there(slots(2), "0.25"), demand(2, 1)));
    assert_eq!((vec![], format!("budget rate: {rate}")), goes(one_is_there(settings(), "0.25"), demand(2, 1)));
    let reached = "budget rate: 0.10 of 0.10 USD per hour are used";
    assert_eq!((vec![], reached.into()), goes(one_is_there(settings(), "0.10"), demand(2, 1)));
    assert_eq!((vec![], String::new()), goes(one_is_there(slots(2), "10"), demand(1, 1)), "it takes that itself");
    assert_eq!(vec![0; 0], goes(one_is_there(slots(2), "10"), demand(3, 1)).0, "no type takes that");
    // The other is left alone.
    let mut alone = one_is_there(slots(2), "10");
    alone.leave_alone(&[OfferKey { machine: "two".into(), zone: String::new(), spot: false }], "no".into());
    alone.state.back_off.values_mut().for_each(|(until, ..)| *until += 10 * MINUTE);
    assert_eq!(vec![0; 0], goes(alone, demand(2, 1)).0);
}

#[test]
fn an_idle_machine_goes_for_another_of_a_type_of_which_no_more_may_be_there() {
    let mut all = catalogue(&[("m", 1)], vec![offer("m", "0.10", HOUR)]);
    all.types.get_mut("m").unwrap().machines_max = Some(1);
    let mut p = Provisioner::new(settings(), all, per_hour("10"));
    p.step(Input::Demand(demand(1, 1)), TEN);
    assert_eq!(vec![1], launch(&mut p, TEN));
    p.step(Input::Time(1, 15 * MINUTE), TEN);
    let long = || vec![Demand { time_limit_ms: Some(20 * MINUTE), ..demand(1, 1)[0].clone() }];
    p.step(Input::Demand(long()), TEN);
    p.step(Input::Demand(long()), TEN + 5 * MINUTE);
    assert_eq!(vec![1], drains(&mut p), "it has no time for it");
    p.step(Input::Demand(long()), TEN + 5 * MINUTE + 1_000);
    assert_eq!("machines of a type: 1 of 1 m are there; idle and going: 1", why(&p));
}

#[test]
fn what_goes_anyway_makes_room_first() {
    for is_busy in [false, true] {
        let offers = vec![offer("sec", "0.10", SECOND), offer("gpu", "0.50", HOUR), offer("two", "0.90", HOUR)];
        let mut all = catalogue(&[("sec", 1), ("gpu", 1), ("two", 2)], offers);
        all.types.get_mut("gpu").unwrap().gpus = 1;
        let mut p = Provisioner::new(slots(3), all, per_hour("10"));
        p.step(Input::Demand(demand(1, 1)), TEN);
        assert_eq!(vec![1], launch(&mut p, TEN));
        p.step(Input::Demand(vec![Demand { shape: Shape { gpus: 1, ..Shape::new(1, 0) }, ..demand(1, 1)[0].clone() }]), TEN);
        assert_eq!(vec![2], launch(&mut p, TEN));
        p.step(Input::Busy(1, u64::from(is_busy)), TEN);
        p.step(Input::Demand(demand(2, 1)), TEN + 5 * MINUTE);
        assert_eq!(if is_busy { vec![2] } else { vec![1] }, drains(&mut p), "by the second, if it has nothing to do");
    }
}

/// Else what fits only there would not come: of its type none would be offered.
#[test]
fn what_idle_machines_are_in_the_way_of_is_offered() {
    let mut p = one_is_there(slots(2), "10");
    let promised = |p: &Provisioner| p.promises().iter().map(|p| p.machines).collect::<Vec<_>>();
    assert_eq!(vec![1, 0], promised(&p));
    p.step(Input::Tick, TEN + 5 * MINUTE);
    assert_eq!(vec![1, 1], promised(&p), "it is idle");
    p.step(Input::Demand(demand(2, 1)), TEN + 5 * MINUTE);
    assert_eq!(vec![1, 1], promised(&p), "it goes");
    p.step(Input::Busy(1, 1), TEN + 5 * MINUTE + 1);
    p.step(Input::Demand(demand(1, 1)), TEN + 5 * MINUTE + 1);
    assert_eq!(0, promised(&p)[1], "it has work");
}

/// What drains, or is to end, has ended.
fn all_end(p: &mut Provisioner, now: u64) {
    let numbers: Vec<u64> = p.machines().filter(|m| m.stage == Stage::Named).map(|m| m.number).collect();
    for number in numbers {
        if p.machines().any(|m| m.number == number && m.draining.is_some() && m.busy == 0) {
            p.step(Input::Drained(number), now);
        }
        if p.machines().any(|m| m.number == number && m.ending.is_some()) {
            p.step(Input::Terminated(number, Some(SeenState::Ended)), now);
        }
    }
}

fn those_in_the_way(p: &Provisioner) -> BTreeSet<u64> {
    p.machines().filter(|m| m.in_the_way && m.may_exist()).map(|m| m.number).collect()
}

/// Machines that go early, or none, in one round of any state.
fn check(p: &Provisioner, was: &BTreeSet<u64>, wanted: &[Demand], now: u64) -> u64 {
    let early: Vec<&Machine> = p.machines().filter(|m| m.in_the_way && m.may_exist() && !was.contains(&m.number)).collect();
    let rents = |mut p: Provisioner| {
        all_end(&mut p, now);
        p.step(Input::Demand(wanted.to_vec()), now);
        !p.latest().rented.is_empty()
    };
    let other_goes = p.machines().any(|m| p.is_going(m) && !early.iter().any(|e| e.number == m.number));
    for m in &early {
        assert!(m.attached && m.busy == 0 && !m.wanted && m.price.billing == HOUR, "{m:?}");
        // One less would not be enough.
        let mut kept = p.clone();
        kept.undrain(m.number);
        kept.state.machines.get_mut(&m.number).unwrap().idle_ms = now;
        assert!(other_goes || !rents(kept), "{} goes for nothing", m.number);
    }
    assert!(early.is_empty() || rents(p.clone()), "{early:?} go, and nothing can be rented for {wanted:?}");
    let waits = early.is_empty() && !other_goes && !p.latest().unmet.is_empty() && p.latest().rented.is_empty();
    if waits {
        let mut without = p.clone();
        let idle: Vec<u64> = p.machines().filter(|m| p.makes_room(m)).map(|m| m.number).collect();
        idle.iter().for_each(|number| without.step(Input::End(*number), now));
        assert!(!rents(without), "{idle:?} are in the way of {wanted:?}");
    }
    early.len() as u64
}

#[test]
fn as_few_go_as_must_for_a_machine_that_can_then_be_rented_and_where_some_would_do_they_go() {
    let mut sum = 0;
    for seed in 0..400 {
        let mut random = Random(seed);
        let offers = vec![
            offer("one", "0.10", HOUR),
            offer("two", "0.20", HOUR),
            offer("sec", "0.25", SECOND),
            offer("four", "0.50", HOUR),
            offer("gpu", "0.30", HOUR),
        ];
        let mut all = catalogue(&[("one", 1), ("two", 2), ("sec", 2), ("four", 4), ("gpu", 1)], offers);
        all.types.get_mut("gpu").unwrap().gpus = 1;
        all.types.get_mut("two").unwrap().machines_max = random.chance(30).then_some(1);
        let limits = Settings { slots_max: 4 + random.below(5), machines_max: 2 + random.below(5) as u32, ..settings() };
        let mut p = Provisioner::new(limits, all, per_hour(["0.80", "2", "10"][random.below(3) as usize]));
        let (mut now, mut wanted) = (TEN, demand(1, 1));
        for _ in 0..60 {
            now += 1 + random.below(3 * MINUTE);
            if random.chance(40) {
                wanted = demand([1, 2, 4][random.below(3) as usize], random.below(4));
                wanted[0].shape.gpus = u32::from(random.chance(20));
            }
            let numbers: Vec<u64> = p.machines().filter(|m| m.stage == Stage::Named).map(|m| m.number).collect();
            if let Some(number) = numbers.get(random.below(numbers.len().max(1) as u64) as usize).filter(|_| random.chance(50)) {
                p.step(Input::Busy(*number, random.below(2)), now);
            }
            // What is due by now is done before the round, and not after it.
            p.step(Input::Tick, now);
            let was = those_in_the_way(&p);
            p.step(Input::Demand(wanted.clone()), now);
            sum += check(&p, &was, &wanted, now);
            if random.chance(70) {
                all_end(&mut p, now);
            }
            launch(&mut p, now);
        }
    }
    assert!(sum > 100, "the test does nothing: {sum}");
}
