//! What is charged for the time in which the gateway was away.

use super::promised::launch;
use super::*;

const SECOND: Billing = Billing::Second { min_s: 60 };
const ALONE: Option<u64> = Some(15 * MINUTE);
const DAY: u64 = 24 * 60 * MINUTE;

fn begun(alone_ms: Option<u64>, billing: Billing, records: Vec<Record>, now: u64) -> Provisioner {
    let catalogue = catalogue(&[("m", 2)], vec![offer("m", "0.60", billing)]);
    Provisioner::resume(Settings { alone_ms, ..settings() }, catalogue, per_hour("10"), records, now)
}

/// One machine that has come, without work. It costs 0.01 a minute.
fn one(billing: Billing, now: u64) -> Provisioner {
    let mut p = begun(None, billing, Vec::new(), now);
    p.step(Input::Demand(demand(2, 1)), now);
    assert_eq!(vec![1], launch(&mut p, now));
    p
}

fn listed(state: SeenState, ended_ms: Option<u64>, now: u64) -> Input {
    Input::Listed(now, Some(vec![Seen { id: "i-1".into(), number: Some(1), machine: None, state, ended_ms }]))
}

fn total(p: &Provisioner) -> u64 {
    p.budget().nodes()[0].total().0
}

fn rate(p: &Provisioner) -> u64 {
    p.budget().nodes()[0].rate().0
}

#[test]
fn what_is_found_after_an_absence_is_charged_to_its_end_and_nothing_before_it_is_found() {
    let back = TEN + DAY;
    let found = |alone_ms: Option<u64>, billing: Billing, before: &[Input], found: Input| {
        let left = one(billing, TEN);
        let (mut p, charged) = (begun(alone_ms, billing, left.checkpoint(), back), total(&left));
        before.iter().for_each(|input| p.step(input.clone(), back));
        p.step(Input::Demand(demand(2, 3)), back);
        let why = p.latest().unmet[0].why.evidence.clone();
        assert!(why.contains("is not known yet; asked again at 10:05:00 UTC") && p.promises()[0].machines == 0, "{why}");
        assert_eq!((charged, rate(&left)), (total(&p), rate(&p)), "it may be there, and is not paid for");
        let again = begun(alone_ms, billing, [left.checkpoint(), p.take().0].concat(), back);
        p.step(found, back);
        let spent = total(&p);
        let mut same = again;
        before.iter().for_each(|input| same.step(input.clone(), back));
        same.step(listed(SeenState::Exists, None, back), back);
        assert!(total(&same) >= spent, "no more than where it is there");
        assert_eq!(p.machines().filter(|m| m.may_exist()).count() as u64 * 600_000, rate(&p), "what is gone holds nothing");
        p.step(Input::Demand(demand(2, 3)), back);
        assert_eq!(1, p.latest().rented.len(), "another is rented");
        spent
    };
    let ended = |said_ms| listed(SeenState::Ended, said_ms, back);
    // As the provider says; never before it began, nor later than now.
    assert_eq!(40_001, found(None, SECOND, &[], ended(Some(TEN + 4 * MINUTE))));
    assert_eq!(40_001, found(ALONE, SECOND, &[Input::Busy(1, 2)], ended(Some(TEN + 4 * MINUTE))));
    assert_eq!(600_000, found(None, SECOND, &[], ended(Some(TEN + 60 * MINUTE))));
    assert_eq!([10_001, 14_400_000], [TEN - MINUTE, back + MINUTE].map(|said| found(None, SECOND, &[], ended(Some(said)))));
    assert_eq!(1_800_000, found(None, Billing::Hour, &[], ended(Some(TEN + 130 * MINUTE))), "hours that have begun");
    // Nobody says it: what had nothing to do was alone after its lease at the latest. Of what had work it is not known.
    assert_eq!(270_000, found(ALONE, SECOND, &[], ended(None)));
    assert_eq!([14_400_000; 2], [Input::Busy(1, 2), Input::Open(1)].map(|input| found(ALONE, SECOND, &[input], ended(None))));
    assert_eq!(14_400_000, found(None, SECOND, &[], ended(None)), "it does not end by itself");
    // It is there: all of it, and its next lease.
    assert_eq!([14_500_000; 2], [listed(SeenState::Exists, None, back), Input::Attached(1)].map(|input| found(ALONE, SECOND, &[], input)));
}

#[test]
fn what_ended_with_the_gateway_costs_nothing_in_its_absence() {
    let mut p = one(SECOND, TEN);
    p.step(Input::EndsWithUs(1), TEN + 5 * MINUTE);
    p.step(Input::Terminated(1, Some(SeenState::Ended)), TEN + 5 * MINUTE);
    let mut p = begun(None, SECOND, p.checkpoint(), TEN + DAY);
    p.step(Input::Tick, TEN + DAY);
    assert_eq!((0, 0, 50_001), (p.machines().count(), rate(&p), total(&p)));
}

#[test]
fn the_end_that_a_provider_tells_counts_unless_the_machine_was_heard_of_later() {
    let charged = |said_ms| {
        let mut p = one(SECOND, TEN);
        p.step(listed(SeenState::Exists, None, TEN + 4 * MINUTE), TEN + 4 * MINUTE);
        p.step(listed(SeenState::Ended, Some(said_ms), TEN + 6 * MINUTE), TEN + 6 * MINUTE);
        total(&p)
    };
    assert_eq!([50_001, 60_001], [TEN + 5 * MINUTE, TEN + 3 * MINUTE].map(charged));
}

#[test]
fn a_cap_that_an_absence_exceeds_is_told_and_ends_what_is_there() {
    let (left, back) = (one(SECOND, TEN), TEN + 3 * 60 * MINUTE);
    let caps = Caps { day: Some("1".parse().unwrap()), ..Caps::default() };
    let catalogue = catalogue(&[("m", 2)], vec![offer("m", "0.60", SECOND)]);
    let mut p = Provisioner::resume(settings(), catalogue, Budget::new(caps, &[]).unwrap(), left.checkpoint(), back);
    p.step(Input::Tick, back);
    assert_eq!(None, p.machines().next().and_then(|m| m.ending), "it may have gone long ago");
    p.step(Input::Attached(1), back);
    assert_eq!(Some(Why::Budget), p.machines().next().and_then(|m| m.ending));
    assert_eq!(1_810_000, total(&p), "three hours, and the minute in which it goes");
    p.step(Input::Demand(demand(2, 3)), back);
    assert_eq!("budget of the day", p.latest().unmet[0].why.limit);
}

#[test]
fn times_of_a_clock_that_was_ahead_are_set_back_when_the_next_start_believes_its_clock() {
    let (ahead, now) = (TEN + 120 * MINUTE, TEN + 7 * MINUTE);
    for billing in [SECOND, Billing::Hour] {
        let left = one(billing, ahead);
        let mut p = begun(None, billing, left.checkpoint(), now);
        let of = |p: &Provisioner| p.machines().next().map(|m| (m.since_ms - TEN, m.paid_ms - TEN));
        p.step(Input::Attached(1), now);
        p.step(Input::Busy(1, 2), now);
        p.step(Input::Tick, now + 9 * MINUTE);
        assert_eq!((total(&left), of(&left)), (total(&p), of(&p)), "not yet");
        p.step(Input::Demand(demand(2, 3)), now + 9 * MINUTE);
        let why = p.latest().unmet[0].why.evidence.clone();
        assert!(why.contains("it may be behind, and be set soon; asked again at 10:17:00 UTC"), "{why}");
        let believed = now + limits::CLOCK_SET_MS;
        p.step(Input::Tick, believed);
        let mut records = [left.checkpoint(), p.take().0].concat();
        for mut p in [begun(None, billing, records.clone(), believed), begun(None, billing, p.checkpoint(), believed), p.clone()] {
            assert_eq!(total(&left) + [600_000, 200_000][usize::from(billing == SECOND)], total(&p), "from the start on, and its lease, once");
            assert_eq!(Some((7 * MINUTE, believed - TEN + [50, 10][usize::from(billing == SECOND)] * MINUTE)), of(&p));
            p.step(Input::Attached(1), believed);
            p.step(Input::End(1), believed + 3 * MINUTE);
            p.step(Input::Terminated(1, Some(SeenState::Ended)), believed + 3 * MINUTE);
            p.step(Input::Tick, believed + 60 * MINUTE);
            assert_eq!((0, 0), (p.machines().count(), rate(&p)), "it holds nothing when it is gone");
            assert!(total(&p) >= total(&left) + 130_000, "thirteen minutes since the start");
        }
        // A clock that is right sets nothing back.
        let mut again = begun(None, billing, records.clone(), believed + MINUTE);
        again.step(Input::Tick, believed + MINUTE + limits::CLOCK_SET_MS);
        records.extend(again.take().0);
        assert_eq!(1, records.iter().filter(|r| matches!(r, Record::SetBack { .. })).count());
    }
}

/// Its machine has worked all the time, and its agent comes three minutes after the start, when the clock is set.
#[test]
fn a_start_whose_clock_is_set_later_charges_what_one_with_a_right_clock_does() {
    let (start, set) = (TEN + 7 * MINUTE, TEN + 10 * MINUTE);
    for (billing, to_its_end) in [(SECOND, 60_001), (Billing::Hour, 600_000)] {
        let begins = |behind: u64| {
            let mut p = begun(None, billing, one(billing, TEN).checkpoint(), start - behind);
            p.step(Input::Tick, start - behind);
            p.step(Input::Tick, set - 1 - behind);
            p
        };
        let charged = |mut p: Provisioner, behind: u64| {
            if behind > 0 {
                p.step(Input::Stepped(behind), set);
            }
            assert_eq!(vec![(None, None)], p.machines().map(|m| (m.ending, m.draining)).collect::<Vec<_>>(), "it was not waited for so long");
            p.step(Input::Attached(1), set);
            p.step(Input::Busy(1, 2), set);
            (0..120).for_each(|minute| p.step(Input::Tick, set + minute * MINUTE));
            assert!(!p.take().0.iter().any(|r| matches!(r, Record::SetBack { .. })));
            total(&p)
        };
        for behind in [20 * MINUTE, 180 * MINUTE, 6 * 365 * DAY] {
            assert_eq!(charged(begins(0), 0), charged(begins(behind), behind));
            // What is found gone meanwhile is so when the clock is set, and nothing is rented by a wrong one.
            let mut p = begins(behind);
            let ended = listed(SeenState::Ended, Some(TEN + 6 * MINUTE), set - 1 - behind);
            p.step(ended.clone(), set - 1 - behind);
            p.step(Input::Demand(demand(2, 3)), set - 1 - behind);
            assert_eq!((1, 600_000, 0), (p.machines().count(), rate(&p), p.latest().rented.len()));
            p.step(Input::Stepped(behind), set);
            p.step(ended, set);
            assert_eq!(to_its_end, total(&p));
            p.step(Input::Demand(demand(2, 3)), set);
            assert_eq!(1, p.latest().rented.len());
        }
    }
}

#[test]
fn a_clock_that_is_set_in_two_steps_is_waited_for_twice() {
    let start = TEN + 7 * MINUTE;
    let mut p = begun(None, SECOND, one(SECOND, TEN).checkpoint(), start - 180 * MINUTE);
    p.step(Input::Attached(1), start - 180 * MINUTE);
    p.step(Input::Busy(1, 2), start - 180 * MINUTE);
    p.step(Input::Stepped(120 * MINUTE), start - 51 * MINUTE);
    p.step(Input::Tick, start - 42 * MINUTE);
    p.step(Input::Stepped(60 * MINUTE), start + 18 * MINUTE);
    assert!(!p.take().0.iter().any(|r| matches!(r, Record::SetBack { .. })));
    assert_eq!(350_000, total(&p), "to now, and its next lease");
}

#[test]
fn a_clock_that_is_less_than_a_minute_behind_charges_no_lease_twice() {
    for billing in [SECOND, Billing::Hour] {
        let left = one(billing, TEN);
        let mut p = begun(None, billing, left.checkpoint(), TEN - MINUTE);
        p.step(Input::Attached(1), TEN - MINUTE);
        p.step(Input::Busy(1, 2), TEN - MINUTE);
        p.step(Input::Tick, TEN + 4 * MINUTE);
        assert_eq!(total(&left), total(&p));
        p.step(Input::Tick, TEN + 9 * MINUTE);
        assert_eq!([600_000, 200_000][usize::from(billing == SECOND)], total(&p));
    }
}

#[test]
fn one_that_has_ended_before_it_was_named_is_charged_to_its_end() {
    let asked = || {
        let mut p = begun(None, SECOND, Vec::new(), TEN);
        p.step(Input::Demand(demand(2, 1)), TEN);
        p
    };
    let ended = |at_ms: u64| listed(SeenState::Ended, Some(TEN + 4 * MINUTE), at_ms);
    // Its launch is not asked for again: looks miss it.
    let back = TEN + DAY;
    let mut p = begun(ALONE, SECOND, asked().checkpoint(), back);
    for look in 0..=2 * u64::from(limits::ABSENT_LOOKS) {
        p.step(ended(back + look * MINUTE), back + look * MINUTE);
    }
    assert_eq!((0, 40_001), (p.machines().count(), total(&p)));
    // Its launch is asked for again, and has the first word, or the second.
    let back = TEN + 9 * MINUTE;
    let spent = || Input::Answered(1, Outcome::Refused(Refused::TokenSpent, "it has ended".into()));
    let launches = |p: &mut Provisioner| p.take().1.iter().filter(|a| matches!(a, Action::Launch { .. })).count();
    for is_first in [true, false] {
        let mut p = begun(ALONE, SECOND, asked().checkpoint(), back);
        p.step(Input::Tick, back);
        assert_eq!(1, launches(&mut p));
        if is_first {
            p.step(spent(), back);
        }
        p.step(ended(back), back);
        p.step(Input::Tick, back + limits::TERMINATE_AGAIN_MS);
        assert_eq!(usize::from(is_first), launches(&mut p));
        p.step(spent(), back + limits::TERMINATE_AGAIN_MS);
        assert_eq!((0, 40_001), (p.machines().count(), total(&p)));
    }
}

#[test]
fn one_that_is_gone_and_still_billed_has_no_work() {
    let mut p = one(Billing::Hour, TEN);
    p.step(Input::Busy(1, 2), TEN + MINUTE);
    p.step(listed(SeenState::Ended, None, TEN + 2 * MINUTE), TEN + 2 * MINUTE);
    assert_eq!(vec![(false, 0)], p.machines().map(|m| (m.may_exist(), m.busy())).collect::<Vec<_>>());
}
