//! What costs goes on, whatever the clock does.

use super::*;

/// The clock of the machine is 20 minutes ahead for three seconds.
fn wall_ms(mono_ms: u64) -> u64 {
    TEN + mono_ms + if (2 * MINUTE..2 * MINUTE + 3_000).contains(&mono_ms) { 20 * MINUTE } else { 0 }
}

/// What people read is what their clocks say.
#[test]
fn a_time_that_is_told_is_the_wall_clock_s_also_where_that_was_set_back() {
    let mut p = Provisioner::new(settings(), catalogue(&[("m", 2)], vec![offer("m", "0.60", Billing::Second { min_s: 60 })]), per_hour("10"));
    p.step(Input::Demand(demand(2, 1)), TEN);
    p.step(Input::Answered(1, Outcome::Refused(Refused::Capacity, "no".into())), TEN);
    let mut told = |lead_ms: u64, now: u64| {
        p.leads_by(lead_ms);
        p.step(Input::Demand(demand(2, 1)), now);
        p.latest().unmet[0].why.evidence.rsplit_once(" at ").map(|(_, at)| at.to_string()).unwrap_or_default()
    };
    assert_eq!("10:01:00 UTC", told(0, TEN));
    assert_eq!("10:01:00 UTC", told(7, TEN + 1_000), "what reads differ by is not seen");
    assert_eq!("07:01:00 UTC", told(180 * MINUTE, TEN + 2_000));
    assert_eq!("07:01:00 UTC", told(180 * MINUTE + 9, TEN + 3_000));
    assert_eq!("10:01:00 UTC", told(0, TEN + 4_000), "it was set right");
    // For all that is asked again.
    p.step(Input::Demand(demand(2, 1)), TEN + MINUTE);
    p.step(Input::Answered(2, Outcome::Refused(Refused::Provider, "no".into())), TEN + MINUTE);
    p.leads_by(60 * MINUTE);
    p.step(Input::Demand(demand(2, 1)), TEN + MINUTE);
    assert_eq!("no; asked again at 09:06:00 UTC", p.latest().unmet[0].why.evidence);
}

#[test]
fn a_clock_that_goes_back_is_not_waited_for() {
    let mut clock = Clock::default();
    let of = |clock: &mut Clock, minute: u64| clock.now_ms(wall_ms(minute * MINUTE), minute * MINUTE) - TEN;
    assert_eq!([0, 1, 22, 23, 32], [0, 1, 2, 3, 12].map(|minute| of(&mut clock, minute) / MINUTE));
    assert_eq!([Some(20 * MINUTE), None], [clock.stepped_ms(), clock.stepped_ms()], "and a start is no step");
    // What it is ahead of that is told as well; what is not more than that is not.
    assert_eq!([45, 46], [(13, 45), (14, 30)].map(|(mono, wall)| (clock.now_ms(TEN + wall * MINUTE, mono * MINUTE) - TEN) / MINUTE));
    assert_eq!([Some(12 * MINUTE), None], [clock.stepped_ms(), clock.stepped_ms()]);

    let offers = vec![offer("m", "0.60", Billing::Second { min_s: 60 })];
    let mut p = Provisioner::new(settings(), catalogue(&[("m", 2)], offers), per_hour("10"));
    let (mut clock, mut ended) = (Clock::default(), None);
    for second in 0..12 * 60 {
        let now = clock.now_ms(wall_ms(second * 1_000), second * 1_000);
        match second {
            0 => p.step(Input::Demand(demand(2, 1)), now),
            300 => p.step(Input::Busy(1, 0), now),
            301 => p.step(Input::Demand(vec![]), now),
            _ => p.step(Input::Tick, now),
        }
        for action in p.take().1 {
            match action {
                Action::Launch { number, .. } => {
                    p.step(Input::Answered(number, Outcome::Launched("i-1".into())), now);
                    p.step(Input::Attached(number), now);
                    p.step(Input::Busy(number, 2), now);
                }
                Action::Drain(number, _) => p.step(Input::Drained(number), now),
                Action::Terminate { number, .. } => {
                    ended = Some(second);
                    p.step(Input::Terminated(number, Some(SeenState::Ended)), now);
                }
                _ => {}
            }
        }
    }
    assert_eq!(Some(601), ended, "five minutes after its task, and a second for its drain");
    assert_eq!((0, "0.00".to_string()), (p.machines().count(), p.budget().nodes()[0].rate().to_string()));
    let total = p.budget().nodes()[0].total();
    assert!((300_167..=300_180).contains(&total.0), "601 s at 0.60, and the 20 minutes: {total}");
}
