//! The books, driven without a cluster.

use super::*;
use crate::lrms::{How, Record};

fn books() -> Books {
    let mut b = Books::default();
    for (tag, number) in [("a", 1), ("b", 2)] {
        let tasks = vec![(number, 4), (number, 7)];
        let intent = Intent { tag: tag.into(), queue: "q".into(), account: None, principal: "p".into(), tasks, slots: 2 };
        b.add(intent, Step::Sending, 100);
        b.sent(tag, LrmsId(number));
    }
    b
}

fn entry(tag: &str, id: u64, position: u32, state: State) -> Entry {
    Entry { id: LrmsId(id), position, tag: tag.into(), owner: String::new(), state, slots: 2, machine: String::new(), restarts: 0 }
}

fn place(tag: &str, position: u32) -> Place {
    (tag.to_string(), position)
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|n| n.to_string()).collect()
}

#[test]
fn claims_and_records_are_found_once_and_foreign_names_are_nothing() {
    let mut b = books();
    let list = names(&["a.1.x", "a.1.c", "a.2.c", "a.3.c", "a.0.c", "a.-1.c", "c.1.c", "a", ".", "a.1.n", "a.99999999999.c"]);
    let found = b.looked(None, &list, 200);
    let claims = [1, 2].map(|position| Found::Claim(place("a", position)));
    assert_eq!([&[Found::Started(place("a", 1))][..], &claims, &[Found::Record(place("a", 1))]].concat(), found);
    assert_eq!(None, b.claimed(&place("a", 1), "1 n1 4\n"));
    b.claimed_by(&place("a", 1), "1 n1 4\n", 5);
    assert_eq!((Some(Claimed::Started), None), (b.claimed(&place("a", 2), "7 n1 5\n"), b.claimed(&place("a", 2), "7 n1 5\n")));
    b.claimed_by(&place("a", 2), "", 5);
    assert_eq!(claims[1..], b.looked(None, &list, 300), "it was not written yet");
    b.claimed_by(&place("a", 2), "7 n1 5\n", 5);
    assert!(b.looked(None, &list, 300).is_empty(), "somebody is at it");
    assert!(b.looked(Some("alice"), &names(&["b.1.c"]), 300).is_empty(), "of another account");
    assert_eq!((Some((2, 7)), Some(&place("b", 1))), (b.key(&place("b", 2)), b.place("q", (2, 4))));
    assert_eq!([(4, 8), (4, 8)], b.load("p"));
    assert!(b.over(&place("a", 1)) && !b.over(&place("a", 1)));
    assert_eq!(([(0, 0), (3, 6)], None), (b.load("x"), b.watch(&place("a", 1))));
    assert_eq!((vec![place("a", 1)], vec![]), b.forget("q", &[(1, 4), (9, 9)]));
    assert_eq!((vec![], vec!["a".to_string()]), {
        let (p, gone) = b.forget("q", &[(1, 7)]);
        (p, gone.into_iter().map(|i| i.tag).collect())
    });
}

#[test]
fn tasks_of_several_placements_are_told_apart_by_position() {
    let mut b = books();
    let intent = Intent { tag: "m".into(), tasks: vec![(3, 0)], ..b.sub("a").unwrap().intent.clone() };
    b.add(intent, Step::Sending, 100);
    b.join("m", [(4, 0), (4, 2)]);
    assert_eq!((Some((3, 0)), Some((4, 2)), None), (b.key(&place("m", 1)), b.key(&place("m", 3)), b.key(&place("m", 4))));
    assert_eq!((Some(&place("m", 1)), Some(&place("m", 2))), (b.place("q", (3, 0)), b.place("q", (4, 0))));
    assert_eq!([(7, 14), (7, 14)], b.load("p"));
    // One is taken back, one stopped, and what is left of them goes: the third is wanted as ever.
    b.over(&place("m", 1));
    b.watch(&place("m", 2)).unwrap().stopped = true;
    assert_eq!((vec![1, 2], true), (b.unwanted("m", 3), b.is_wanted("m")));
    assert_eq!((vec![place("m", 1)], vec![]), b.forget("q", &[(3, 0)]));
    assert_eq!((vec![1, 2], Some((4, 2))), (b.unwanted("m", 3), b.key(&place("m", 3))));
    assert_eq!(vec![1, 2], b.unwanted("gone", 2));
}

#[test]
fn a_principal_is_here_until_his_files_are_gone() {
    let mut b = books();
    assert!(b.is_here("p") && !b.is_here("q"));
    b.forget("q", &[(1, 4), (1, 7), (2, 4), (2, 7)]);
    b.left("a");
    assert!(b.is_here("p"), "files of one are still there");
    b.left("b");
    assert!(!b.is_here("p"));
}

#[test]
fn a_claim_of_ours_is_no_start() {
    let mut b = books();
    let claim = place("a", 1);
    assert_eq!(Some(Claimed::Withdrawn), b.claimed(&claim, WITHDRAWN));
    b.watch(&claim).unwrap().taking = true;
    assert_eq!((None, None), (b.claimed(&claim, WITHDRAWN), b.claimed(&claim, "")));
    b.kept(&claim);
    // A script that was stopped before it had written.
    assert_eq!(Some(Claimed::Started), b.claimed(&claim, ""));
}

#[test]
fn what_should_not_be_there_any_more_is_removed_again_and_again() {
    let mut b = books();
    b.own = "grid".into();
    b.over(&place("a", 1));
    let stopped = b.watch(&place("a", 2)).unwrap();
    (stopped.started, stopped.stopped, stopped.unheard) = (true, true, Some(true));
    let pending = || State::Pending(Wait::Turn, "Resources".into());
    let of = |owner: &str, e| Entry { owner: owner.into(), ..e };
    let look = |b: &mut Books, now| {
        let all = [
            of("grid", entry("a", 1, 1, pending())),
            of("grid", entry("a", 1, 2, State::Running)),
            of("grid", entry("b", 2, 1, pending())),
            of("grid", entry("b", 2, 2, State::Running)),
            of("eve", entry("b", 3, 1, pending())),
            of("ann", entry("c", 4, 1, State::Running)),
            of("grid", entry("d", 5, 1, State::Ended(Over::new(How::Exited, None)))),
        ];
        b.surveyed(now - 10, all.into(), now);
        let due = b.strays_due(now).into_iter();
        due.map(|((id, position), s)| (id.0, position, s.account, s.known, s.kill)).collect::<Vec<_>>()
    };
    assert!(look(&mut b, 1_000).is_empty(), "it may just have been told");
    let (gone, killed) = ((1, 1, None, true, false), (1, 2, None, true, true));
    for now in [1_000 + CANCEL_AGAIN_MS, 1_000 + 2 * CANCEL_AGAIN_MS] {
        assert_eq!(vec![gone.clone(), killed.clone()], look(&mut b, now));
        assert!(look(&mut b, now + 1).is_empty());
    }
    // What was answered to a wish that it may end says nothing of the kill.
    b.heard(&[(LrmsId(1), vec![1, 2])], false);
    assert_eq!(Some(true), b.watch(&place("a", 2)).unwrap().unheard);
    b.heard(&[(LrmsId(1), vec![1, 2])], true);
    // Nobody knows of it, and it does not end by itself.
    assert_eq!(vec![gone, (4, 1, Some("ann".into()), false, false)], look(&mut b, 1_000 + STRAY_RUNS_MS));
    assert!(b.look_again());
    b.surveyed(90_000, vec![], 90_010);
    assert!(!b.look_again());
}

#[test]
fn a_record_that_is_never_whole_counts_as_none() {
    let mut b = books();
    let record = names(&["a.1.x"]);
    assert_eq!(2, b.looked(None, &record, 200).len());
    assert!(!b.unreadable(&place("a", 1), 200));
    // Looked at again until then.
    assert_eq!(vec![Found::Record(place("a", 1))], b.looked(None, &record, 300));
    assert!(b.unreadable(&place("a", 1), 200 + VERDICT_WAIT_MS));
    assert!(b.looked(None, &record, 300 + VERDICT_WAIT_MS).is_empty());
    assert!(b.watch(&place("a", 1)).is_some_and(|w| w.started && w.record_ms.is_none() && !w.busy));
}

#[test]
fn what_is_not_in_the_queue_is_a_question_after_a_while() {
    let mut b = books();
    let lost = b.sub_mut("b").unwrap();
    (lost.step, lost.told) = (Step::Lost(100), false);
    // Asked before it was submitted: says nothing.
    b.surveyed(100, vec![], 1_000);
    assert!(b.due(99_000).is_empty());
    b.surveyed(2_000, vec![entry("a", 1, 1, State::Running), entry("a", 1, 2, State::Suspended)], 2_010);
    assert_eq!((4, vec![]), (b.occupied("q"), b.due(99_000)));
    let over = Over::new(How::Exited, None);
    let seen = b.surveyed(3_000, vec![entry("a", 1, 1, State::Ended(over.clone())), entry("a", 1, 2, State::Running)], 3_010);
    assert_eq!(vec![Seen::Suspended(place("a", 2), false)], seen);
    assert_eq!((vec![], vec![place("a", 1)]), (b.due(3_010 + RECORD_GRACE_MS - 1), b.due(3_010 + RECORD_GRACE_MS)));
    // The books may tell of it while its claim can't be taken.
    b.watch(&place("a", 1)).unwrap().taking = true;
    assert!(b.due(3_010 + RECORD_GRACE_MS) == [place("a", 1)] && b.is_taking(&place("a", 1)));
    b.watch(&place("a", 1)).unwrap().started = true;
    assert!(!b.is_taking(&place("a", 1)) && !b.watch(&place("a", 1)).unwrap().taking);
    b.watch(&place("a", 1)).unwrap().started = false;
    assert_eq!(Some((over, String::new())), b.watch(&place("a", 1)).unwrap().verdict.clone());
    // A lost submission shows by its name.
    b.surveyed(4_000, vec![entry("b", 9, 1, State::Pending(Wait::Turn, "Priority".into()))], 4_010);
    assert_eq!((Step::Sent, vec![LrmsId(2), LrmsId(9)]), (b.sub("b").unwrap().step, b.sub("b").unwrap().ids.clone()));
    // It was only a controller that had just come back.
    b.surveyed(5_000, vec![entry("a", 1, 1, State::Running), entry("a", 1, 2, State::Running)], 5_010);
    assert_eq!(None, b.watch(&place("a", 1)).unwrap().gone_ms);
}

#[test]
fn a_job_of_another_account_with_our_name_is_none_of_ours() {
    let mut b = Books::default();
    let intent = Intent { account: Some("ann".into()), ..books().sub("a").unwrap().intent.clone() };
    b.add(intent, Step::Sending, 100);
    b.sent("a", LrmsId(1));
    let of = |owner: &str, id| Entry { owner: owner.into(), ..entry("a", id, 1, State::Pending(Wait::Broken, "Eqw".into())) };
    assert!(b.surveyed(2_000, vec![of("eve", 9)], 2_010).is_empty());
    assert_eq!(vec![LrmsId(1)], b.sub("a").unwrap().ids);
    assert_eq!(1, b.surveyed(3_000, vec![of("ann", 1), of("eve", 9)], 3_010).len());

    // Where all run as the gateway's own.
    let mut b = books();
    b.own = "grid".into();
    assert!(b.surveyed(2_000, vec![of("eve", 9)], 2_010).is_empty());
    assert_eq!(1, b.surveyed(3_000, vec![of("grid", 1)], 3_010).len());
}

#[test]
fn what_waits_too_long_lingers() {
    let mut b = books();
    let pending = || State::Pending(Wait::Turn, "Resources".into());
    b.surveyed(2_000, vec![entry("a", 1, 1, pending()), entry("a", 1, 2, pending())], 2_010);
    b.surveyed(3_000, vec![entry("a", 1, 1, pending()), entry("a", 1, 2, State::Running)], 3_010);
    assert!(b.lingering("q", 2_109, 100).is_empty());
    assert_eq!(vec![(place("a", 1), "Resources".to_string())], b.lingering("q", 2_110, 100).into_iter().collect::<Vec<_>>());
    assert!(b.lingering("short", 9_000, 0).is_empty(), "another queue");
    b.claimed(&place("a", 1), "7 n1 5\n");
    assert!(b.lingering("q", 9_000, 100).is_empty(), "it has started");
}

#[test]
fn a_number_given_twice_belongs_to_whom_it_was_told_of_last() {
    let mut b = books();
    let ids = |b: &Books| ["a", "b"].map(|tag| b.sub(tag).unwrap().ids.clone());
    b.sent("b", LrmsId(1));
    assert_eq!([vec![], vec![LrmsId(2), LrmsId(1)]], ids(&b));
    b.surveyed(2_000, vec![entry("a", 1, 1, State::Running), entry("b", 2, 1, State::Running)], 2_010);
    assert_eq!([vec![], vec![LrmsId(2), LrmsId(1)]], ids(&b));

    // Its answer was lost: whose it is, the claim tells as soon as there is one.
    let mut b = books();
    let lost = b.sub_mut("b").unwrap();
    (lost.step, lost.told, lost.ids) = (Step::Lost(100), false, vec![]);
    let look = |b: &mut Books| b.surveyed(2_000, vec![entry("b", 1, 1, State::Running)], 2_010);
    look(&mut b);
    assert_eq!([vec![LrmsId(1)], vec![]], ids(&b));
    b.claimed(&place("b", 1), "1 n1 5\n");
    b.claimed_by(&place("b", 1), "1 n1 5\n", 9_001);
    look(&mut b);
    assert_eq!([vec![], vec![LrmsId(1)]], ids(&b));
}

#[test]
fn a_job_that_has_the_name_of_another_of_ours_is_known_by_its_number() {
    let mut b = books();
    (b.own, b.prefix) = ("grid".into(), "ig-".into());
    // The answer of a third was lost.
    let third = Intent { tag: "c".into(), tasks: vec![(3, 1)], ..b.sub("a").unwrap().intent.clone() };
    b.add(third, Step::Lost(100), 100);
    let ids = |b: &Books| ["a", "b", "c"].map(|tag| b.sub(tag).unwrap().ids.clone());
    let run = |tag, id, position| Entry { owner: "grid".into(), ..entry(tag, id, position, State::Running) };
    for (at, name) in [(2_000, "b"), (3_000, "c"), (4_000, "ig-gone")] {
        b.surveyed(at, vec![run(name, 1, 1), run(name, 1, 2), run("b", 2, 1), run("b", 2, 2)], at + 10);
        assert_eq!([vec![LrmsId(1)], vec![LrmsId(2)], vec![]], ids(&b), "{name}");
        assert_eq!((vec![], 0), (b.due(at + 10 + RECORD_GRACE_MS), b.strays_due(at + 10 + STRAY_RUNS_MS).len()), "{name}");
    }
    // Nor is it found by that name, nor does one that nobody was told of count beside a number that was.
    assert!(!b.found("c", &[LrmsId(1)]) && b.sub("c").unwrap().step == Step::Lost(100));
    b.surveyed(5_000, vec![run("a", 9, 1), run("a", 9, 2), run("b", 2, 1), run("b", 2, 2)], 5_010);
    assert_eq!(vec![place("a", 1), place("a", 2)], b.due(5_010 + RECORD_GRACE_MS));
    assert_eq!([vec![LrmsId(1)], vec![LrmsId(2)], vec![]], ids(&b));
    // One that is nobody's is that of whose answer was lost, until it is told.
    assert!(b.found("c", &[LrmsId(1), LrmsId(8)]));
    b.surveyed(6_000, vec![run("c", 8, 1)], 6_010);
    assert_eq!((vec![LrmsId(8)], Step::Sent), (b.sub("c").unwrap().ids.clone(), b.sub("c").unwrap().step));
    b.sent("c", LrmsId(7));
    assert_eq!([1, 2, 7].map(LrmsId).to_vec(), b.known().into_iter().collect::<Vec<_>>());
    assert_eq!(vec![LrmsId(7)], b.sub("c").unwrap().ids);
}

#[test]
fn a_renamed_job_is_removed_when_its_submission_is_over_and_forgotten() {
    for is_forgotten in [false, true] {
        let mut b = books();
        (b.own, b.prefix) = ("grid".into(), "ig-".into());
        let held = |owner: &str| {
            let state = State::Pending(Wait::Held, "JobHeldUser".into());
            vec![Entry { owner: owner.into(), ..entry("site", 1, 1, state) }]
        };
        [("a", 1), ("a", 2), ("b", 1), ("b", 2)].iter().for_each(|(tag, position)| _ = b.over(&place(tag, *position)));
        if is_forgotten {
            b.forget("q", &[(1, 4), (1, 7)]);
        }
        let mut removed = 0;
        for at in [10_000, 20_000, 30_000, 40_000] {
            assert!(b.look_again() && b.known().contains(&LrmsId(1)) && b.is_known("a"));
            b.surveyed(at, held("grid"), at + 10);
            removed += b.strays_due(at + 10).iter().filter(|(key, s)| *key == (LrmsId(1), 1) && s.known && s.account.is_none()).count();
        }
        assert_eq!(3, removed, "again and again, forgotten: {is_forgotten}");
        // The other's is gone: two looks have said so. Then its number is anybody's; so is what another account has.
        assert!(!b.is_known("b"));
        for at in [50_000, 51_000] {
            assert!(b.is_known("a"));
            b.surveyed(at, held("eve"), at + 10);
        }
        assert!(!b.is_known("a") && !b.look_again());
        b.surveyed(60_000, held("grid"), 60_010);
        assert!(b.strays_due(90_000).is_empty());
    }
}

#[test]
fn a_job_that_somebody_has_renamed_is_known_by_its_number() {
    let mut b = books();
    (b.own, b.prefix) = ("grid".into(), "ig-".into());
    assert_eq!(vec![LrmsId(1), LrmsId(2)], b.known().into_iter().collect::<Vec<_>>());
    let of = |owner: &str, e| Entry { owner: owner.into(), ..e };
    let look = |b: &mut Books, at, tag: &str, owner: &str| {
        let job = |position| of(owner, entry(tag, 1, position, State::Running));
        b.surveyed(at, vec![job(1), job(2), of("grid", entry("b", 2, 1, State::Running)), of("grid", entry("b", 2, 2, State::Running))], at + 10);
        (b.due(at + 10 + RECORD_GRACE_MS), b.strays_due(at + 10 + STRAY_RUNS_MS).len())
    };
    assert_eq!((vec![], 0), look(&mut b, 2_000, "site", "grid"));
    assert_eq!(8, b.occupied("q"));
    // By that name the books tell of its end.
    let has = |b: &Books, id, name| b.sub("a").is_some_and(|s| s.has(LrmsId(id), name));
    assert!(has(&b, 1, "site") && has(&b, 1, "a") && has(&b, 1, "") && !has(&b, 1, "other") && !has(&b, 2, "site"));
    assert_eq!((vec![], 0), look(&mut b, 3_000, "ig-a-site", "grid"));
    // One that goes on is removed when it is stopped.
    b.watch(&place("a", 2)).unwrap().unheard = Some(true);
    assert_eq!(1, look(&mut b, 4_000, "site", "grid").1);
    b.watch(&place("a", 2)).unwrap().unheard = None;

    // The number was given twice: to another account. What nobody was told of is ours by its name.
    assert_eq!((vec![place("a", 1), place("a", 2)], 0), look(&mut b, 60_000, "site", "eve"));
    let long = Intent { tag: "ig-a".into(), tasks: vec![(3, 1), (3, 2)], ..b.sub("a").unwrap().intent.clone() };
    b.add(long, Step::Sending, 100);
    b.sent("ig-a", LrmsId(7));
    let entries = ["ig-x", "site"].into_iter().zip([9, 8]).map(|(tag, id)| of("grid", entry(tag, id, 1, State::Running)));
    b.surveyed(70_000, entries.collect(), 70_010);
    assert_eq!(vec![(LrmsId(9), 1)], b.strays_due(70_010 + STRAY_RUNS_MS).into_iter().map(|(key, _)| key).collect::<Vec<_>>());
    // What is over, and not there, keeps no number.
    [1, 2].iter().for_each(|position| _ = b.over(&place("a", *position)));
    [80_000, 81_000].iter().for_each(|at| _ = b.surveyed(*at, vec![], at + 10));
    assert!(!b.known().contains(&LrmsId(1)));
}

/// A process that has come after it was renamed, or after it ended, has never seen it listed.
#[test]
fn a_job_that_was_renamed_behind_our_back_is_known_by_the_number_in_its_task_s_claim() {
    let mut b = books();
    let record = |id, position, ran_s| Record {
        id: LrmsId(id),
        position,
        tag: "site".into(),
        over: Over::new(How::Removed, None),
        started: Some(true),
        ran_s,
        machine: String::new(),
        words: String::new(),
    };
    let is_end = |b: &Books, id, position, ran_s| b.sub("a").is_some_and(|s| s.is_end(&record(id, position, ran_s)));
    let ran = Some((9_000, 9_500));
    b.claimed_by(&place("a", 1), "1 n1 5\n", 9_001);
    assert!(!is_end(&b, 1, 1, ran), "it has not started");
    b.claimed(&place("a", 1), "1 n1 5\n");
    b.claimed_by(&place("a", 1), "1 n1 5\n", 9_001);
    assert!(is_end(&b, 1, 1, ran) && !is_end(&b, 1, 2, ran) && !is_end(&b, 2, 1, ran));
    // The number was given twice.
    assert!(!is_end(&b, 1, 1, Some((9_100, 9_500))) && !is_end(&b, 1, 1, Some((8_000, 8_900))) && !is_end(&b, 1, 1, None));
    // A claim of a job that is none of its.
    b.claimed(&place("a", 2), "7 n1 5\n");
    b.claimed_by(&place("a", 2), "7 n1 5\n", 9_001);
    assert!(!is_end(&b, 7, 2, ran));
}

#[test]
fn what_will_never_start_and_what_is_started_over_is_told() {
    let mut b = books();
    b.claimed(&place("a", 1), "7 n1 5\n");
    let pending = |wait| State::Pending(wait, "why".into());
    let entries = vec![entry("a", 1, 1, pending(Wait::Requeued)), entry("a", 1, 2, pending(Wait::Broken)), entry("b", 2, 1, pending(Wait::Held))];
    assert_eq!(vec![Seen::Hopeless(place("a", 2), Wait::Broken, "why".into())], b.surveyed(2_000, entries, 2_010));
    assert_eq!(Some(2_010), b.watch(&place("a", 1)).unwrap().gone_ms, "it began, and won't begin again");
}

/// Grid Engine takes the exit codes 99 and 100 of a script for words to itself: start it over, and keep it in error.
#[test]
fn what_began_and_is_in_error_or_waits_to_be_started_over_is_decided_on() {
    let mut b = books();
    b.sub_mut("b").unwrap().step = Step::Lost(100);
    [1, 2].iter().for_each(|position| _ = b.claimed(&place("a", *position), "7 n1 5\n"));
    let pending = |wait| State::Pending(wait, "why".into());
    let entries = || vec![entry("a", 1, 1, pending(Wait::Broken)), entry("a", 1, 2, pending(Wait::Requeued))];
    for at in [2_000, 3_000] {
        assert!(b.surveyed(at, entries(), at + 10).is_empty(), "their claims are taken");
    }
    let mut said = |position| b.watch(&place("a", position)).unwrap().verdict.clone().map(|(over, words)| (over.how, words));
    assert_eq!((Some((How::Broken, "why".into())), Some((How::Requeued, String::new()))), (said(1), said(2)));
    assert_eq!((vec![], vec![place("a", 1), place("a", 2)]), (b.due(2_010 + RECORD_GRACE_MS - 1), b.due(2_010 + RECORD_GRACE_MS)));
    // Over, it is still listed: it is removed.
    b.over(&place("a", 1));
    b.surveyed(9_000, entries(), 9_010);
    assert_eq!(vec![(LrmsId(1), 1)], b.strays_due(9_010 + CANCEL_AGAIN_MS).into_iter().map(|(key, _)| key).collect::<Vec<_>>());
}

#[test]
fn a_wait_is_known_by_those_that_started_and_those_that_wait() {
    let mut b = books();
    assert_eq!(None, b.wait_ms("q", 5_000));
    let pending = |wait| State::Pending(wait, "Resources".into());
    b.surveyed(2_000, vec![entry("a", 1, 1, pending(Wait::Turn)), entry("a", 1, 2, pending(Wait::Held))], 2_100);
    assert_eq!((Some(2_900), None), (b.wait_ms("q", 5_000), b.wait_ms("other", 5_000)));
    // Of those that started the middle one, unless somebody waits longer.
    [700, 3_100, 400].iter().for_each(|at| b.began(&place("b", 1), *at));
    assert_eq!((Some(600), Some(2_900)), (b.wait_ms("q", 2_200), b.wait_ms("q", 5_000)));
    b.claimed(&place("a", 1), "7 n1 5\n");
    // Its claim is seen at once after a restart, whatever it had waited.
    let intent = Intent { tag: "old".into(), tasks: vec![(3, 4), (3, 7)], ..b.sub("a").unwrap().intent.clone() };
    b.add(intent, Step::Lost(5_000), 5_000);
    (0..9).for_each(|_| b.began(&place("old", 1), 5_001));
    assert_eq!(Some(600), b.wait_ms("q", 60_000));
    assert_eq!(None, b.wait_ms("q", 3_100 + WAITS_KEPT_MS + 1), "that was long ago");
}
