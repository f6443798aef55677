//! Machines that come, and on which no task ends.

use super::promised::launch;
use super::*;

const SECOND: Billing = Billing::Second { min_s: 60 };

fn terms() -> (Settings, Catalogue, Budget) {
    (settings(), catalogue(&[("m", 2)], vec![offer("m", "0.10", SECOND)]), per_hour("10"))
}

fn provisioner() -> Provisioner {
    let (s, c, b) = terms();
    Provisioner::new(s, c, b)
}

/// Why nothing is rented for a task that waits; None: it has its machine.
fn why_not(p: &mut Provisioner, now: u64) -> Option<String> {
    p.step(Input::Demand(demand(2, 1)), now);
    p.latest().unmet.first().map(|u| u.why.evidence.clone())
}

/// One that is rented for a task, and comes.
fn comes(p: &mut Provisioner, now: u64) -> u64 {
    assert_eq!(None, why_not(p, now));
    launch(p, now)[0]
}

fn ends(p: &mut Provisioner, number: u64, now: u64) {
    p.step(Input::Detached(number), now);
    p.step(Input::Terminated(number, Some(SeenState::Ended)), now);
}

fn is_left_alone(p: &Provisioner) -> bool {
    !p.state.back_off.is_empty()
}

#[test]
fn a_machine_that_takes_no_work_is_not_replaced_at_once_and_its_word_is_told() {
    let (mut p, mut now, full) = (provisioner(), TEN, "/state has 7 bytes free");
    for (left_s, again) in [(60, "10:01:00"), (120, "10:03:00"), (240, "10:07:00")] {
        let number = comes(&mut p, now);
        p.step(Input::Leaving(number, full.into()), now);
        let why = Some(format!("m: the last one did no work: {full}; asked again at {again} UTC"));
        assert_eq!(why, why_not(&mut p, now));
        p.step(Input::Drained(number), now);
        ends(&mut p, number, now);
        assert_eq!(why, why_not(&mut p, now), "its end is no second failure");
        now += left_s * 1_000;
    }
    let number = comes(&mut p, now);
    assert!(is_left_alone(&p), "that it has come says nothing yet");
    p.step(Input::Busy(number, 2), now);
    p.step(Input::Worked(number), now);
    assert!(!is_left_alone(&p));
    p.step(Input::Leaving(number, full.into()), now);
    assert_eq!(None, why_not(&mut p, now), "it has done what it came for: another is rented at once");
}

#[test]
fn a_type_whose_machines_come_and_die_is_left_alone_for_longer_each_time() {
    let (mut p, mut now) = (provisioner(), TEN);
    let old = comes(&mut p, now);
    p.step(Input::Busy(old, 2), now);
    p.step(Input::Worked(old), now);
    for (left_s, again) in [(60, "10:01:00"), (120, "10:03:00"), (240, "10:07:00")] {
        let number = comes(&mut p, now);
        p.step(Input::Busy(number, 2), now);
        ends(&mut p, number, now);
        p.step(Input::Worked(old), now);
        let why = format!("m: the last one ended before a task had ended there; asked again at {again} UTC");
        assert_eq!(Some(why), why_not(&mut p, now), "whatever an old one does");
        now += left_s * 1_000;
    }
}

/// However long its provider takes to end it.
#[test]
fn a_type_is_left_alone_from_when_its_machine_is_given_up() {
    type Does = fn(&mut Provisioner);
    let never_came: Does = |p| p.step(Input::Answered(1, Outcome::Launched("i-1".into())), TEN);
    let stays_away: Does = |p| {
        launch(p, TEN);
        p.step(Input::Busy(1, 2), TEN);
        p.step(Input::Detached(1), TEN);
    };
    let away = TEN + settings().away_ms;
    for (does, word) in [(never_came, "its agent came"), (stays_away, "a task had ended there")] {
        let mut p = provisioner();
        p.step(Input::Demand(demand(2, 1)), TEN);
        does(&mut p);
        assert!(!is_left_alone(&p));
        p.step(Input::Tick, away);
        assert_eq!(vec![Some(Why::Away)], p.machines().map(|m| m.ending).collect::<Vec<_>>());
        let why = Some(format!("m: the last one ended before {word}; asked again at 10:11:00 UTC"));
        for second in 0..60 {
            assert_eq!(why, why_not(&mut p, away + second * 1_000), "after {second} s");
        }
        let mut late = p.clone();
        p.step(Input::Terminated(1, Some(SeenState::Ending)), away + 59_000);
        assert_eq!(why, why_not(&mut p, away + 59_000), "its end is no second failure");
        // Nor where that comes when the type is no longer left alone.
        late.step(Input::Terminated(1, Some(SeenState::Ending)), away + MINUTE);
        assert_eq!(None, why_not(&mut late, away + MINUTE));
    }
    // One that nobody knew of, and that is found when it was given up.
    let mut p = provisioner();
    p.step(Input::Demand(demand(2, 1)), TEN);
    p.step(Input::Answered(1, Outcome::Unknown("no answer".into())), TEN);
    p.step(Input::Tick, away);
    assert!(!is_left_alone(&p), "there may be none");
    let seen = Seen { id: "i-1".into(), number: Some(1), machine: None, state: SeenState::Exists, ended_ms: None };
    p.step(Input::Listed(away, Some(vec![seen])), away);
    assert!(is_left_alone(&p));
}

#[test]
fn only_what_had_work_or_would_have_had_some_and_did_none_has_failed() {
    type Does = fn(&mut Provisioner, u64);
    let busy: Does = |p, number| p.step(Input::Busy(number, 2), TEN);
    let leaving: Does = |p, number| p.step(Input::Leaving(number, "it is full".into()), TEN);
    let drained: Does = |p, number| p.step(Input::Drained(number), TEN);
    let free: Does = |p, number| p.step(Input::Busy(number, 0), TEN);
    let worked: Does = |p, number| p.step(Input::Worked(number), TEN);
    let unwanted: Does = |p, _| p.step(Input::Demand(vec![]), TEN);
    let ordered: Does = |p, number| p.step(Input::End(number), TEN);
    let again: Does = |p, _| {
        let (s, c, b) = terms();
        *p = Provisioner::resume(s, c, b, p.checkpoint(), TEN);
    };
    let failed = |does: &[Does], end: u64| {
        let mut p = provisioner();
        let number = comes(&mut p, TEN);
        does.iter().for_each(|does| does(&mut p, number));
        ends(&mut p, number, end);
        assert!(p.machines().all(|m| !m.may_exist()));
        is_left_alone(&p)
    };
    let (soon, late) = (TEN + 1_000, TEN + limits::BACK_OFF_MAX_MS);
    assert!(failed(&[], soon), "it was wanted");
    assert!(failed(&[busy, unwanted], soon), "and where it had work");
    assert!(failed(&[busy, leaving, free, drained], soon), "which it gave back");
    assert!(!failed(&[busy, worked], soon), "a task has ended");
    assert!(!failed(&[busy, unwanted], late), "it has lasted");
    assert!(!failed(&[unwanted], soon), "nobody needed it");
    assert!(!failed(&[unwanted, leaving, drained], soon), "nor when its time was over");
    assert!(!failed(&[busy, unwanted, leaving], soon), "its provider has taken it back");
    assert!(!failed(&[busy, ordered], soon), "an administrator ended it");
    assert!(!failed(&[busy, again], soon), "what it did before a restart nobody knows");
}

#[test]
fn of_a_type_that_is_left_alone_no_more_is_promised_than_boots() {
    let two = catalogue(&[("m", 2), ("n", 2)], vec![offer("m", "0.10", SECOND), offer("n", "0.20", SECOND)]);
    let mut p = Provisioner::new(Settings { slots_max: 10, ..settings() }, two, per_hour("10"));
    let promised = |p: &Provisioner| p.promises().iter().map(|p| p.machines).collect::<Vec<_>>();
    assert_eq!(vec![4, 1], promised(&p));
    p.step(Input::Demand(demand(2, 6)), TEN);
    let rented = p.latest().rented.clone();
    assert_eq!(2, rented.len());
    let refuse = |p: &mut Provisioner, number: u64| p.step(Input::Answered(number, Outcome::Refused(Refused::Capacity, "no".into())), TEN);
    refuse(&mut p, rented[0]);
    assert_eq!(vec![1, 4], promised(&p), "the cheapest that could come has the rest");
    refuse(&mut p, rented[1]);
    assert_eq!(vec![0, 5], promised(&p));
    let why = p.promises()[0].no_more.clone().unwrap();
    assert_eq!(("capacity", "m: the provider had none: no"), (why.limit.as_str(), why.evidence.as_str()));
    p.step(Input::Tick, TEN + MINUTE);
    assert_eq!(vec![4, 1], promised(&p), "when that is over");
}
