//! What is kept, given up and left alone: by demand, by an administrator, by what a provider says.

use super::promised::launch;
use super::*;

const SECOND: Billing = Billing::Second { min_s: 60 };

fn drains(p: &mut Provisioner) -> Vec<u64> {
    p.take().1.into_iter().filter_map(|a| if let Action::Drain(number, _) = a { Some(number) } else { None }).collect()
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
