//! What is charged, over restarts.

use super::promised::{ends, launch, rent_in_vain};
use super::*;

const SECOND: Billing = Billing::Second { min_s: 60 };

fn caps(hour: &str) -> Caps {
    Caps { hour: Some(hour.parse().unwrap()), ..Caps::default() }
}

fn tree(owners: &[(&str, Option<&str>, &str)]) -> Budget {
    let owners: Vec<_> = owners.iter().map(|(name, of, hour)| (name.to_string(), of.map(String::from), caps(hour))).collect();
    Budget::new(caps("10"), &owners).unwrap()
}

fn terms(currency: &str) -> (Settings, Catalogue) {
    (settings(), Catalogue { currency: currency.into(), ..catalogue(&[("m", 2)], vec![offer("m", "0.10", SECOND)]) })
}

fn again(budget: Budget, records: Vec<Record>, now: u64) -> Provisioner {
    let (s, c) = terms("USD");
    Provisioner::resume(s, c, budget, records, now)
}

fn rent(p: &mut Provisioner, owner: &str, machines: u64, now: u64) -> usize {
    let before = p.machines().count();
    for n in 1..20 {
        p.step(Input::Demand(vec![Demand { owner: owner.into(), ..demand(2, machines)[0].clone() }]), now + n);
        launch(p, now + n).into_iter().for_each(|number| p.step(Input::Busy(number, 2), now + n));
        let rented = (p.machines().count() - before) as u64;
        if rented == machines {
            break;
        }
    }
    p.machines().count() - before
}

fn end(p: &mut Provisioner, numbers: &[u64], now: u64) {
    for number in numbers {
        p.step(Input::End(*number), now);
        p.step(Input::Terminated(*number, Some(SeenState::Ended)), now);
    }
}

fn wanted(owner: &str) -> Input {
    Input::Demand(vec![Demand { owner: owner.into(), ..demand(2, 1)[0].clone() }])
}

/// A machine for an owner comes at ten, and is ended so long after that.
fn come_and_go(p: &mut Provisioner, owner: &str, after_ms: u64) {
    p.step(wanted(owner), TEN);
    let number = p.latest().rented[0];
    p.step(Input::Answered(number, Outcome::Launched("i-1".into())), TEN);
    p.step(Input::Attached(number), TEN);
    end(p, &[number], TEN + after_ms);
}

fn rates(p: &Provisioner) -> Vec<(&str, String)> {
    p.budget().nodes().iter().map(|n| (n.name.as_str(), n.rate().to_string())).collect()
}

#[test]
fn numbers_of_a_new_ledger_are_not_those_of_one_that_was_lost() {
    let new = |random| {
        let mut p = again(per_hour("10"), Vec::new(), TEN);
        p.begin_at(random);
        let no_machine = p.take().0;
        p.step(Input::Demand(demand(2, 1)), TEN);
        let first = p.latest().rented[0];
        (first, [no_machine.clone(), p.take().0].concat(), no_machine, p.checkpoint())
    };
    let ((lost, ..), (first, records, no_machine, checkpoint)) = (new(416), new(7));
    assert_eq!((4_170_001, 80_001), (lost, first));
    // They go on where they were, also when the start is another one; and begin anew where none was given.
    let next = |records: Vec<Record>| {
        let mut p = again(per_hour("10"), records, TEN);
        p.begin_at(3);
        p.step(Input::Demand(demand(2, 2)), TEN);
        p.latest().rented[0]
    };
    assert_eq!([80_002, 80_002, 40_001], [records, checkpoint, no_machine].map(next));
}

/// An old copy gives numbers again.
#[test]
fn what_a_number_has_launched_of_another_type_is_a_stranger() {
    let mut p = again(per_hour("10"), Vec::new(), TEN);
    p.step(Input::Demand(demand(2, 1)), TEN);
    let seen = |kind: &str| Seen { id: "i-7".into(), number: Some(1), machine: Some(kind.into()), state: SeenState::Exists, ended_ms: None };
    for look in 1..=u64::from(limits::STRANGER_LOOKS) {
        p.step(Input::Listed(TEN + look, Some(vec![seen("large")])), TEN + look);
    }
    assert!(p.take().1.contains(&Action::TerminateStranger("i-7".into())));
    assert_eq!(Some(""), p.machines().next().map(|m| m.id.as_str()), "nobody knows yet what came of the launch");
    p.step(Input::Listed(TEN + 10, Some(vec![seen("m")])), TEN + 10);
    assert_eq!(Some("i-7"), p.machines().next().map(|m| m.id.as_str()), "one of its type is the one");
}

#[test]
fn an_owner_who_is_put_below_another_does_not_make_room_there() {
    let (s, c) = terms("USD");
    let mut p = Provisioner::new(s, c, tree(&[("lab", None, "0.20"), ("ann", None, "1")]));
    assert_eq!((1, 2), (rent(&mut p, "lab", 1, TEN), rent(&mut p, "ann", 2, TEN)));
    let mut p = again(tree(&[("lab", None, "0.20"), ("ann", Some("lab"), "1")]), p.checkpoint(), TEN + MINUTE);
    p.step(Input::Tick, TEN + MINUTE);
    [1, 2, 3].into_iter().for_each(|number| p.step(Input::Attached(number), TEN + MINUTE));
    assert_eq!(rates(&p), [("budget", "0.30".into()), ("lab", "0.30".into()), ("ann", "0.20".into())]);
    let charged = |p: &Provisioner| p.budget().nodes().iter().map(|n| n.total().0).collect::<Vec<_>>();
    let before = charged(&p);
    end(&mut p, &[2, 3], TEN + 2 * MINUTE);
    assert_eq!(rates(&p), [("budget", "0.10".into()), ("lab", "0.10".into()), ("ann", "0.00".into())]);
    assert_eq!(1, rent(&mut p, "lab", 3, TEN + 3 * MINUTE), "0.20 an hour, and no more");
    // What the two were given back they had been charged, nine minutes of each lease: each node still has the first one's.
    assert!(before[1] >= 46_666 && charged(&p)[1] >= 33_333, "{before:?}, {:?}", charged(&p));
}

#[test]
fn what_is_left_of_a_lease_goes_where_its_owner_goes_and_what_was_spent_stays() {
    let of = |above: &str| tree(&[("lab", None, "1"), ("lab2", None, "1"), ("ann", Some(above), "1")]);
    // Does a checkpoint take the place of the records?
    for is_whole in [false, true] {
        let (s, c) = terms("USD");
        let mut p = Provisioner::new(s, c, of("lab"));
        assert_eq!(2, rent(&mut p, "ann", 2, TEN));
        let (mut records, _) = (p.checkpoint(), p.take());
        let mut begun = |p: &mut Provisioner, budget: Budget, now: u64| {
            records.extend(p.take().0);
            if is_whole {
                records = p.checkpoint();
            }
            *p = again(budget, records.clone(), now);
        };
        let charged = |p: &Provisioner, name: &str| p.budget().nodes().iter().find(|n| n.name == name).map_or(0, |n| n.total().0);
        begun(&mut p, of("lab2"), TEN + 2 * MINUTE);
        let left = [charged(&p, "lab"), charged(&p, "lab2")];
        assert!(
            (6_660..6_700).contains(&left[0]) && (26_660..26_700).contains(&left[1]),
            "two minutes of two, and the eight that are left: {left:?}"
        );
        begun(&mut p, of("lab"), TEN + 4 * MINUTE);
        begun(&mut p, tree(&[("bob", None, "1"), ("lab", Some("bob"), "1"), ("lab2", None, "1")]), TEN + 5 * MINUTE);
        assert_eq!(0, charged(&p, "bob"));
        let others: Vec<&str> = p.budget().others().map(|n| n.name.as_str()).collect();
        assert_eq!(vec!["ann"], others, "she is listed: machines work for her");
        let back = tree(&[("bob", None, "1"), ("lab", Some("bob"), "1"), ("lab2", None, "1"), ("ann", Some("lab"), "1")]);
        let (settings, catalogue) = terms("USD");
        p.step(Input::Terms(Box::new(Terms { settings, catalogue, budget: back.clone() })), TEN + 6 * MINUTE);
        end(&mut p, &[1, 2], TEN + 8 * MINUTE);
        begun(&mut p, back, TEN + 9 * MINUTE);
        assert_eq!(0, p.machines().count());
        // A minute of the two is 3,333. What is given back is rounded down.
        for (name, minutes) in [("budget", 8), ("lab", 5), ("lab2", 2), ("bob", 2), ("ann", 2)] {
            let spent = minutes * 10_000 / 3;
            assert!((spent - 5..spent + 40).contains(&charged(&p, name)), "{name}: {minutes} minutes, {}", charged(&p, name));
        }
    }
}

#[test]
fn an_hour_that_has_begun_is_spent_where_its_owner_stood_then() {
    let resume = |budget: Budget, records: Vec<Record>, now: u64| {
        let catalogue = catalogue(&[("m", 2)], vec![offer("m", "0.10", Billing::Hour)]);
        Provisioner::resume(settings(), catalogue, budget, records, now)
    };
    let of = |above: &str| tree(&[("lab", None, "1"), ("lab2", None, "1"), ("ann", Some(above), "1")]);
    let mut p = resume(of("lab"), Vec::new(), TEN);
    assert_eq!(1, rent(&mut p, "ann", 1, TEN));
    let mut p = resume(of("lab2"), p.checkpoint(), TEN + 30 * MINUTE);
    let charged = |p: &Provisioner| ["lab", "lab2"].map(|name| p.budget().nodes()[p.budget().node_of(name)].total().0);
    assert_eq!([100_000, 0], charged(&p));
    p.step(Input::Attached(1), TEN + 31 * MINUTE);
    p.step(Input::Busy(1, 2), TEN + 31 * MINUTE);
    p.step(Input::Tick, TEN + 58 * MINUTE);
    assert_eq!([100_000, 100_000], charged(&p), "her next one");
}

#[test]
fn machines_that_run_count_for_an_owner_who_gets_a_budget() {
    let (with, without) = (|| tree(&[("bob", None, "0.20")]), || tree(&[]));
    let (s, c) = terms("USD");
    let mut p = Provisioner::new(s, c, without());
    assert_eq!(2, rent(&mut p, "bob", 2, TEN));
    // Older versions wrote that the root paid.
    let old = |records: Vec<Record>| -> Vec<Record> {
        let one = |record| match record {
            Record::Kept { mut machine } => {
                machine.owner = "budget".into();
                Record::Kept { machine }
            }
            other => other,
        };
        records.into_iter().map(one).collect()
    };
    let records = p.checkpoint();
    let later = TEN + MINUTE;
    let (settings, catalogue) = terms("USD");
    p.step(Input::Terms(Box::new(Terms { settings, catalogue, budget: with() })), later);
    // They left him where he was when he got his budget, and a checkpoint says that he has one.
    let mut left = again(with(), records.clone(), later).checkpoint();
    for record in &mut left {
        if let Record::Spent { name, ledger, .. } = record
            && *name == "bob"
        {
            *ledger = Ledger::default();
        }
    }
    for mut p in [p, again(with(), records.clone(), later), again(with(), old(records), later), again(with(), old(left), later)] {
        assert_eq!(rates(&p), [("budget", "0.20".into()), ("bob", "0.20".into())]);
        [1, 2].into_iter().for_each(|number| p.step(Input::Busy(number, 2), later));
        p.step(wanted("bob"), later);
        assert_eq!((0, "budget rate of bob"), (p.latest().rented.len(), p.latest().unmet[0].why.limit.as_str()));
        end(&mut p, &[1, 2], TEN + 2 * MINUTE);
        let charged: Vec<u64> = p.budget().nodes().iter().map(|n| n.total().0).collect();
        assert!((6_660..6_700).contains(&charged[0]) && (3_330..3_400).contains(&charged[1]), "a minute of two is his: {charged:?}");
    }
}

#[test]
fn an_owner_who_is_removed_leaves_no_rate_behind() {
    let (s, c) = terms("USD");
    let mut p = Provisioner::new(s, c, tree(&[("lab", None, "0.20"), ("ann", Some("lab"), "0.20")]));
    assert_eq!(2, rent(&mut p, "ann", 2, TEN));
    let mut p = again(tree(&[("lab", None, "0.20")]), p.checkpoint(), TEN + MINUTE);
    p.step(Input::Tick, TEN + MINUTE);
    assert_eq!(rates(&p), [("budget", "0.20".into()), ("lab", "0.00".into())]);
    end(&mut p, &[1, 2], TEN + 2 * MINUTE);
    assert_eq!(rates(&p), [("budget", "0.00".into()), ("lab", "0.00".into())]);
    assert_eq!(2, rent(&mut p, "lab", 2, TEN + 3 * MINUTE));
}

#[test]
fn what_was_spent_below_an_owner_stays_spent_whoever_goes() {
    let tree = |owners: &[(&str, Option<&str>)]| {
        let caps = |name: &str| Caps { total: Some(if name == "lab" { "0.02" } else { "5" }.parse().unwrap()), ..Caps::default() };
        let owners: Vec<_> = owners.iter().map(|(name, of)| (name.to_string(), of.map(String::from), caps(name))).collect();
        Budget::new(caps("budget"), &owners).unwrap()
    };
    let all = || tree(&[("lab", None), ("ann", Some("lab")), ("me", Some("lab"))]);
    let of_lab = |p: &Provisioner| p.budget().nodes().iter().find(|n| n.name == "lab").map(Node::total);
    let mut p = again(all(), Vec::new(), TEN);
    come_and_go(&mut p, "ann", 6 * MINUTE);
    let (records, checkpoint, spent, later) = (p.take().0, p.checkpoint(), of_lab(&p), TEN + 10 * MINUTE);
    assert_eq!(Some(Money(10_001)), spent, "six minutes at 0.10");
    // Rows of a version that did not write down who stood below whom, and what the first start since then adds to them.
    let mut old: Vec<Record> = records.iter().filter(|r| !matches!(r, Record::Tree { .. })).cloned().collect();
    old.extend(again(all(), old.clone(), later).take().0);
    let removed = tree(&[("lab", None), ("me", Some("lab"))]);
    let moved = tree(&[("ann", None), ("lab", Some("ann")), ("me", Some("lab"))]);
    for budget in [removed, moved, all()] {
        for mut records in [records.clone(), checkpoint.clone(), old.clone()] {
            let mut p = again(budget.clone(), records.clone(), later);
            p.step(wanted("me"), later);
            assert_eq!((spent, 0, "budget in all of lab"), (of_lab(&p), p.latest().rented.len(), p.latest().unmet[0].why.limit.as_str()));
            records.extend(p.take().0);
            assert_eq!(spent, of_lab(&again(all(), records, later)), "and back again");
        }
    }
}

#[test]
fn a_machine_that_is_gone_holds_its_rate_for_as_long_as_is_billed_at_least() {
    // With the lease of the next one: an hour each; a minute, and ten.
    for (min_s, in_all) in [(3_600, "0.20"), (60, "0.018335")] {
        let resume = |records: Vec<Record>, now: u64| {
            let catalogue = catalogue(&[("m", 2)], vec![offer("m", "0.10", Billing::Second { min_s })]);
            Provisioner::resume(settings(), catalogue, per_hour("0.10"), records, now)
        };
        let (mut p, over) = (resume(Vec::new(), TEN), TEN + u64::from(min_s) * 1_000);
        come_and_go(&mut p, "me", MINUTE / 2);
        for records in [p.take().0, p.checkpoint()] {
            let mut p = resume(records, TEN + MINUTE / 2);
            p.step(wanted("me"), over - 1);
            assert_eq!((0, "budget rate"), (p.latest().rented.len(), p.latest().unmet[0].why.limit.as_str()));
            assert_eq!(rates(&p), [("budget", "0.10".into())]);
            p.step(Input::Tick, over);
            assert_eq!((rates(&p), p.machines().count()), (vec![("budget", "0.00".into())], 0));
            p.step(wanted("me"), over);
            assert_eq!((1, in_all.to_string()), (p.latest().rented.len(), p.budget().nodes()[0].total().to_string()));
        }
    }
}

#[test]
fn hours_in_which_the_gateway_was_away_are_charged_as_they_are_billed() {
    let hourly = || (settings(), catalogue(&[("m", 2)], vec![offer("m", "1", Billing::Hour)]));
    let (s, c) = hourly();
    let mut p = Provisioner::new(s, c, per_hour("10"));
    p.step(Input::Demand(demand(2, 1)), TEN);
    launch(&mut p, TEN);
    let (s, c) = hourly();
    let mut p = Provisioner::resume(s, c, per_hour("10"), p.checkpoint(), TEN + 90 * MINUTE);
    p.step(Input::Attached(1), TEN + 90 * MINUTE);
    p.step(Input::Busy(1, 2), TEN + 90 * MINUTE);
    let paid = |p: &Provisioner| (p.budget().nodes()[0].total().to_string(), p.machines().next().unwrap().paid_ms - TEN);
    assert_eq!(("2.00".to_string(), 120 * MINUTE), paid(&p), "its second hour is over when the provider says so");
    p.step(Input::Tick, TEN + 115 * MINUTE);
    assert_eq!(("3.00".to_string(), 180 * MINUTE), paid(&p));
    // What can't be paid for any longer is charged all the same, at once, and ended.
    let (s, c) = hourly();
    let day = Budget::new(Caps { day: Some("3".parse().unwrap()), ..Caps::default() }, &[]).unwrap();
    let mut p = Provisioner::resume(s, c, day, p.checkpoint(), TEN + 200 * MINUTE);
    p.step(Input::Attached(1), TEN + 200 * MINUTE);
    assert_eq!((vec![1], "4.00".to_string(), 240 * MINUTE), (ends(&mut p), paid(&p).0, paid(&p).1));
}

#[test]
fn what_nobody_pays_for_any_more_is_named_and_its_end_is_found() {
    let (s, c) = terms("USD");
    let mut p = Provisioner::new(s, c, per_hour("10"));
    assert_eq!(1, rent(&mut p, "ann", 1, TEN));
    let paid = p.machines().next().unwrap().paid_ms;
    assert_eq!((vec![], vec!["i-1".to_string()]), (p.unpaid(paid - 1), p.unpaid(paid)));
    // Nothing was written down for a while, and it was ended meanwhile.
    let back = paid + 20 * MINUTE;
    p.step(Input::Listed(back, Some(vec![Seen { id: "i-1".into(), number: Some(1), machine: None, state: SeenState::Ended, ended_ms: None }])), back);
    assert_eq!((vec!["0.00".to_string()], Vec::<String>::new()), (rates(&p).into_iter().map(|r| r.1).collect(), p.unpaid(back)));
    // A pilot costs nothing, however long it runs.
    let free = catalogue(&[("m", 2)], vec![offer("m", "0", SECOND)]);
    let nothing = Caps { total: Some(Money(0)), ..Caps::default() };
    let mut p = Provisioner::new(settings(), free, Budget::new(nothing, &[]).unwrap());
    assert_eq!(1, rent(&mut p, "ann", 1, TEN));
    assert!(p.unpaid(u64::MAX).is_empty());
}

#[test]
fn what_is_left_alone_stays_so_over_a_restart() {
    let mut p = again(per_hour("10"), Vec::new(), TEN);
    rent_in_vain(&mut p, &demand(2, 18), TEN);
    let mut records = p.take().0;
    let why = |p: &mut Provisioner, now: u64| {
        p.step(Input::Demand(demand(2, 18)), now);
        (p.latest().rented.len(), p.latest().unmet[0].why.evidence.clone())
    };
    let failed = "m: the last one ended before its agent came; asked again at";
    for records in [records.clone(), p.checkpoint()] {
        let mut p = again(per_hour("10"), records, TEN + 20_000);
        assert_eq!((0, format!("{failed} 10:01:00 UTC")), why(&mut p, TEN + 20_000));
        assert_eq!((6, format!("{failed} 10:03:00 UTC")), rent_in_vain(&mut p, &demand(2, 18), TEN + MINUTE), "how often is known, too");
    }
    let mut before = again(per_hour("10"), records.clone(), TEN - 24 * 60 * MINUTE);
    let believed = TEN - 24 * 60 * MINUTE + limits::CLOCK_SET_MS;
    before.step(Input::Tick, believed);
    assert_eq!((0, format!("{failed} 10:30:00 UTC")), why(&mut before, believed), "the clock was wrong");
    p.step(Input::Demand(demand(2, 1)), TEN + MINUTE);
    let number = p.latest().rented[0];
    p.step(Input::Answered(number, Outcome::Launched("i-7".into())), TEN + MINUTE);
    p.step(Input::Attached(number), TEN + MINUTE);
    p.step(Input::Worked(number), TEN + MINUTE);
    records.extend(p.take().0);
    for records in [records, p.checkpoint()] {
        assert!(again(per_hour("10"), records, TEN + MINUTE).state.back_off.is_empty(), "a task has ended on one");
    }
}

#[test]
fn a_machine_that_had_come_is_no_failed_offer_whoever_finds_that_it_is_gone() {
    let mut p = again(per_hour("10"), Vec::new(), TEN);
    p.step(Input::Demand(demand(2, 1)), TEN);
    let number = p.latest().rented[0];
    p.step(Input::Answered(number, Outcome::Launched("i-1".into())), TEN);
    let (booting, before) = (p.take().0, p.clone());
    // It went while nobody was here, and the next one finds that: twice, as a checkpoint of a checkpoint says the same.
    let failed = |records: Vec<Record>| {
        let later = TEN + 2 * MINUTE;
        let mut p = again(per_hour("10"), again(per_hour("10"), records, TEN + MINUTE).checkpoint(), later);
        let seen = Seen { id: "i-1".into(), number: Some(number), machine: None, state: SeenState::Ended, ended_ms: None };
        p.step(Input::Listed(later, Some(vec![seen])), later);
        p.step(Input::Demand(demand(2, 1)), later);
        assert_eq!(p.state.back_off.is_empty(), p.latest().rented == [number + 1], "another is rented at once, unless it failed");
        !p.state.back_off.is_empty()
    };
    assert_eq!([true, true], [booting.clone(), p.checkpoint()].map(failed), "its agent never came");
    p.step(Input::Attached(number), TEN + MINUTE);
    let came = p.take().0;
    p.step(Input::Attached(number), TEN + MINUTE);
    assert_eq!((vec![Record::Came { number }], vec![]), (came.clone(), p.take().0), "once");
    assert_eq!([false, false], [[booting.clone(), came].concat(), p.checkpoint()].map(failed));
    // One that we have ended ourselves says nothing, either.
    let mut p = before;
    p.step(Input::EndsWithUs(number), TEN + MINUTE);
    let ended = p.take().0;
    assert_eq!(vec![Record::Ending { number, why: Why::Idle }], ended);
    assert_eq!([false, false], [[booting.clone(), ended].concat(), p.checkpoint()].map(failed));
    // Nor does one of a version that did not write down who came.
    let old = booting.into_iter().map(|record| match record {
        Record::Intended { number, offer, kind, owner, need, price, at_ms, paid_ms, .. } => {
            Record::Intended { number, offer, kind, owner, need, price, at_ms, paid_ms, awaited: false }
        }
        other => other,
    });
    assert!(!failed(old.collect()));
}

#[test]
fn a_ledger_is_read_in_its_own_currency_only() {
    let mut p = again(per_hour("10"), Vec::new(), TEN);
    let records = p.take().0;
    let read = |currency: &str, records: Vec<Record>| {
        let (s, c) = terms(currency);
        Provisioner::resume(s, c, per_hour("10"), records, TEN)
    };
    let empty = read("EUR", records.clone());
    assert_eq!(None, empty.other_currency(), "nothing has been charged");
    assert!(empty.checkpoint().contains(&Record::Currency { name: "EUR".into() }));
    p.step(Input::Demand(demand(2, 1)), TEN);
    let all = [records, p.take().0].concat();
    for records in [all, p.checkpoint()] {
        assert_eq!(Some("USD"), read("EUR", records.clone()).other_currency());
        assert_eq!(None, read("USD", records).other_currency());
    }
}
