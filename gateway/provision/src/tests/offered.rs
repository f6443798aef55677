//! What is told upward of machines that are not there.

use proptest::prelude::*;

use super::promised::launch;
use super::*;

const SECOND: Billing = Billing::Second { min_s: 60 };

/// Machines, in the order of the offers.
fn promised(p: &Provisioner) -> Vec<u64> {
    p.promises().iter().map(|p| p.machines).collect()
}

/// Four slots for 6 an hour, 1.50 a slot; one for 3; and where its price is given, a GPU's machine.
fn types(limits: Settings, hour: &str, gpu: Option<&str>) -> Provisioner {
    let offers = [("big", "6"), ("small", "3")].into_iter().chain(gpu.map(|price| ("gpu", price)));
    let mut all = catalogue(&[("big", 4), ("small", 1), ("gpu", 1)], offers.map(|(name, price)| offer(name, price, SECOND)).collect());
    all.types.get_mut("gpu").unwrap().gpus = 1;
    Provisioner::new(limits, all, per_hour(hour))
}

fn of_gpu() -> Vec<Demand> {
    vec![Demand { shape: Shape { gpus: 1, ..Shape::new(1, 0) }, ..demand(1, 1)[0].clone() }]
}

#[test]
fn one_of_each_type_is_promised_where_it_fits_by_itself() {
    let slots = |slots_max| Settings { slots_max, ..settings() };
    let one = Settings { machines_max: 1, ..settings() };
    let cases: [(Settings, &str, [u64; 2]); 8] = [
        (slots(4), "100", [1, 1]),
        (one, "100", [1, 1]),
        (settings(), "8", [1, 1]),
        (settings(), "9", [1, 1]),
        (settings(), "15", [2, 1]),
        (slots(9), "100", [2, 1]),
        (slots(3), "100", [0, 1]),
        (settings(), "5", [0, 1]),
    ];
    for (limits, hour, expected) in cases {
        let mut p = types(limits, hour, None);
        assert_eq!(expected.to_vec(), promised(&p), "{hour}, {:?}", p.settings());
        p.step(Input::Demand(demand(4, 1)), TEN);
        assert_eq!(expected[0].min(1), p.latest().rented.len() as u64, "what fits only there");
    }
    // What could be placed of eight tasks of one slot.
    let mut p = types(slots(4), "100", None);
    p.step(Input::Demand(demand(1, 5)), TEN);
    assert_eq!(vec!["big"], p.machines().map(|m| m.offer.machine.as_str()).collect::<Vec<_>>(), "the cheapest by slot");
}

#[test]
fn what_has_filled_a_limit_is_in_the_way_of_the_others_until_it_is_gone() {
    let mut p = types(settings(), "12", Some("9"));
    assert_eq!(vec![1, 1, 1], promised(&p));
    p.step(Input::Demand(demand(4, 1)), TEN);
    assert_eq!(vec![1], launch(&mut p, TEN));
    assert_eq!(vec![1, 1, 0], promised(&p), "another big one, or a small one");
    // Its work came at the same time.
    p.step(Input::Demand([demand(4, 1), of_gpu()].concat()), TEN);
    let why = &p.latest().unmet[0].why;
    assert_eq!((vec![], "budget rate"), (p.latest().rented.clone(), why.limit.as_str()));
    let gpu = p.promises().pop().unwrap().no_more.unwrap();
    assert_eq!("budget rate: no more than 12.00 USD per hour", format!("{}: {}", gpu.limit, gpu.evidence));
    p.step(Input::End(1), TEN + MINUTE);
    p.step(Input::Terminated(1, Some(SeenState::Ended)), TEN + MINUTE);
    assert_eq!(vec![1, 1, 1], promised(&p));
    p.step(Input::Demand(of_gpu()), TEN + MINUTE);
    assert_eq!(vec![2], p.latest().rented);
}

proptest! {
    /// By slots and price.
    #[test]
    fn of_each_type_at_most_one_is_promised_too_much_and_no_limit_is_broken_by_it(
        kinds in proptest::collection::vec((1u32..6, 1u64..8), 1..5),
        slots_max in 1u64..16,
        machines_max in 1u32..6,
        hour in 1u64..24,
    ) {
        let names: Vec<String> = (0..kinds.len()).map(|k| format!("m{k}")).collect();
        let of_slots: Vec<(&str, u32)> = names.iter().zip(&kinds).map(|(name, (slots, _))| (name.as_str(), *slots)).collect();
        let offers = names.iter().zip(&kinds).map(|(name, (_, price))| offer(name, &price.to_string(), SECOND)).collect();
        let mut p = Provisioner::new(Settings { slots_max, machines_max, ..settings() }, catalogue(&of_slots, offers), per_hour(&hour.to_string()));
        let promised = promised(&p);
        // So many of each, together.
        let fit = |machines: &[u64]| {
            let sum = |of: &dyn Fn(&(u32, u64)) -> u64| kinds.iter().zip(machines).map(|(kind, n)| of(kind) * n).sum::<u64>();
            sum(&|kind| u64::from(kind.0)) <= slots_max && sum(&|_| 1) <= u64::from(machines_max) && sum(&|kind| kind.1) <= hour
        };
        let firsts: Vec<u64> = (0..kinds.len()).map(|k| u64::from(fit(&[vec![0; k], vec![1]].concat()))).collect();
        for (first, n) in firsts.iter().zip(&promised) {
            prop_assert_eq!(*first, (*n).min(1), "where it fits by itself: {:?}", promised);
        }
        let beyond: Vec<u64> = promised.iter().map(|n| n.saturating_sub(1)).collect();
        prop_assert!(fit(&beyond), "{:?}", promised);
        prop_assert!(fit(&promised) || !fit(&firsts), "nothing too much where one of each fits beside the others: {:?}", promised);

        // Work comes for all of them.
        let wanted: Vec<Demand> = kinds.iter().zip(&promised).flat_map(|((slots, _), n)| demand(*slots, *n)).collect();
        for second in 0..10 {
            p.step(Input::Demand(wanted.clone()), TEN + second * 1_000);
            let there: Vec<u64> = names.iter().map(|name| p.machines().filter(|m| m.offer.machine == *name).count() as u64).collect();
            prop_assert!(fit(&there) && p.budget().nodes()[0].rate() <= Rate(hour * 1_000_000), "{:?}", there);
            prop_assert!(there.iter().any(|n| *n > 0) || firsts.iter().all(|n| *n == 0), "{:?}", promised);
        }
    }
}
