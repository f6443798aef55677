//! Placements, wishes, ends.

use super::*;

#[test]
fn a_placement_is_accepted_run_and_ended_in_one_event() {
    let mut a = Agent::attached(4);
    a.down(place(1, 0..4));
    assert_eq!(EventKind::Accepted, a.events()[0].what);
    assert_eq!(4, a.running().len());
    (0..4).for_each(|t| a.core.step(Input::Exited((1, t), Report { exit: Exit::Code(0), ..Report::unseen() }), a.now));
    a.settle();
    let ends = a.ends();
    assert_eq!(1, ends.len());
    assert_eq!((1, TaskSet::range(0..4), Phase::Done, vec![0]), (ends[0].0, ends[0].1.clone(), ends[0].2.phase, ends[0].2.exit.clone()));
    assert_eq!((1, 1, false), (ends[0].2.attempts, ends[0].2.route.len(), ends[0].2.lost));
    assert!(a.core.state.placements.is_empty() && a.core.state.specs.is_empty() && a.core.opens.is_empty() && a.core.plans.is_empty());
    assert_eq!((0, 0, 0), (a.core.used, a.core.ahead, a.core.outstanding));
}

#[test]
fn a_repeat_changes_nothing() {
    let mut a = Agent::attached(4);
    a.down(place(2, 0..1));
    a.exit((2, 0), Exit::Code(0));
    let before = (a.events(), a.core.state.clone());
    a.down(place(2, 0..1));
    a.down(place(1, 0..1));
    assert_eq!(before, (a.events(), a.core.state.clone()));
    assert!(a.running().is_empty());
}

#[test]
fn exits_are_mapped() {
    let mut a = Agent::attached(8);
    a.down(place(1, 0..5));
    let report = |exit| Report { exit, ..Report::unseen() };
    a.exit((1, 0), Exit::Code(3));
    a.exit((1, 1), Exit::Signal(9));
    a.exit_with((1, 2), Report { missing: vec!["picture.png".into()], ..report(Exit::Code(0)) });
    a.exit_with((1, 3), Report { oom: true, ..report(Exit::Signal(9)) });
    a.input(Input::Exited((1, 4), Report { peak: Some((7, "sampled")), ..report(Exit::Code(0)) }));
    let got: Vec<_> = a.ends().into_iter().map(|(_, _, e)| (e.phase, e.exit[0], e.reason.map(|r| r.kind))).collect();
    use ReasonKind as K;
    let failed = |exit, kind| (Phase::Failed, exit, Some(kind));
    assert_eq!(
        vec![
            failed(3, K::ExitNonZero),
            failed(256 + 9, K::ExitSignal),
            failed(0, K::StageOutFailed),
            failed(256 + 9, K::MemoryLimit),
            (Phase::Done, 0, None)
        ],
        got
    );
    let ends = a.ends();
    assert!(ends[2].2.reason.as_ref().unwrap().text.contains("picture.png"));
    assert_eq!((vec![7], "sampled"), (ends[4].2.peak_bytes.clone(), ends[4].2.measured.as_str()));
}

#[test]
fn slots_bound_what_runs_and_memory_counts_as_slots() {
    let mut a = Agent::attached(4);
    let mut heavy = spec();
    heavy.shape.memory_bytes = 2 << 30;
    a.down(Down::Place(Box::new(place_of(1, 1, TaskSet::range(0..2), &heavy))));
    assert_eq!(vec![(1, 0), (1, 1)], a.running());
    assert_eq!(4, a.core.used);
    let mut large = spec();
    large.shape.slots = 5;
    a.down(Down::Place(Box::new(place_of(2, 2, TaskSet::range(0..1), &large))));
    assert_eq!(vec![(2, TaskSet::one(0), ReasonKind::NoFit)], a.returns());
}

#[test]
fn what_finds_no_slot_goes_back() {
    let mut a = Agent::attached(4);
    // Short tasks widen the window: the gateway may place ahead.
    a.core.link.rate = 2_000.0;
    a.core.commit_ms = 20.0;
    a.down(place(1, 0..20));
    assert_eq!((4, vec![]), (a.running().len(), a.returns()));
    a.pass(1_900);
    a.input(Input::Tick);
    assert_eq!(0, a.returns().len(), "a slot may come free yet");
    a.pass(200);
    a.input(Input::Tick);
    assert_eq!(vec![(1, TaskSet::range(4..20), ReasonKind::OverCredit)], a.returns());
    assert_eq!((4, 4), (a.running().len(), a.core.window()), "what runs, runs on, and the window is what is there");
    a.exit((1, 0), Exit::Code(0));
    assert_eq!(3, a.running().len());
}

#[test]
fn beyond_the_window_comes_back_in_part() {
    let mut a = Agent::attached(4);
    a.down(place(1, 0..6));
    assert_eq!(vec![(1, TaskSet::range(4..6), ReasonKind::OverCredit)], a.returns());
    assert_eq!(4, a.running().len());
    a.down(place(2, 0..1));
    assert_eq!(2, a.returns().len());
    (0..4).for_each(|t| a.exit((1, t), Exit::Code(0)));
    assert_eq!(0, a.core.outstanding);
    a.down(place(3, 0..4));
    assert_eq!((2, 4), (a.returns().len(), a.running().len()));
}

#[test]
fn a_spec_comes_once_and_a_wrong_one_is_refused() {
    let mut a = Agent::attached(4);
    let bare = |n| Place { spec: vec![], ..place_of(n, n, TaskSet::one(0), &spec()) };
    a.down(Down::Place(Box::new(bare(1))));
    assert_eq!(vec![(1, TaskSet::one(0), ReasonKind::InvalidSpec)], a.returns());
    a.down(place(2, 0..1));
    a.exit((2, 0), Exit::Code(0));
    a.down(Down::Place(Box::new(bare(3))));
    assert_eq!(vec![(3, 0)], a.running());
    a.down(Down::Place(Box::new(Place { spec_hash: BlobHash::of(b"else"), ..place_of(4, 4, TaskSet::one(0), &spec()) })));
    assert_eq!(2, a.returns().len());
    // A refused number is a repeat, too.
    a.down(place(4, 0..1));
    assert_eq!((2, vec![(3, 0)]), (a.returns().len(), a.running()));
}

/// After a restart the gateway says again what it holds open here, and what follows comes without the spec that was among it.
#[test]
fn a_repeat_brings_its_spec_too() {
    let mut a = Agent::attached(4);
    a.down(place(1, 0..1));
    a.exit((1, 0), Exit::Code(0));
    a.input(Input::Disconnected);
    a.attach(0, 0);
    a.down(place(1, 0..1));
    a.down(Down::Place(Box::new(Place { spec: vec![], ..place_of(2, 1, TaskSet::one(1), &spec()) })));
    assert_eq!((vec![], vec![(2, 1)]), (a.returns(), a.running()));
}

#[test]
fn a_cancel_is_not_lost_whether_it_comes_before_or_after() {
    for before in [true, false] {
        let mut a = Agent::attached(2);
        if before {
            a.down(want(7, 3, WantValue::Cancel, 0..2));
        }
        a.down(Down::Place(Box::new(place_of(1, 7, TaskSet::range(0..2), &spec()))));
        if !before {
            assert_eq!(2, a.running().len());
            a.down(want(7, 3, WantValue::Cancel, 0..2));
            assert_eq!(vec![((1, 0), false), ((1, 1), false)], a.signals);
            assert!(a.ends().is_empty(), "only the end of the group is an end");
            a.exit((1, 0), Exit::Signal(15));
            a.pass(5_000);
            assert_eq!(Some(&((1, 1), true)), a.signals.last(), "killed after the grace");
            a.exit((1, 1), Exit::Signal(9));
        }
        assert!(a.running().is_empty());
        assert!(a.ends().iter().all(|(_, _, e)| e.phase == Phase::Cancelled && e.reason.as_ref().unwrap().kind == ReasonKind::CancelledByUser));
        assert_eq!(TaskSet::range(0..2), a.ends().iter().fold(TaskSet::new(), |s, (_, t, _)| s.union(t)));
        let attempts = a.ends()[0].2.attempts;
        assert_eq!(u32::from(!before), attempts, "what never started is no attempt");
        let stored = |e: &Event| matches!(e.what, EventKind::WantStored { version: 3 });
        assert_eq!(1, a.events().iter().filter(|e| stored(e)).count());
        // An older register changes nothing.
        a.down(want(7, 2, WantValue::Hold, 0..2));
        assert_eq!(3, a.core.state.wants[&7].version);
    }
}

#[test]
fn hold_keeps_return_gives_back_run_starts() {
    let mut a = Agent::attached(2);
    a.down(want(1, 1, WantValue::Hold, 0..2));
    a.down(place(1, 0..2));
    assert!(a.running().is_empty());
    let mut w = Want { job: 1, version: 2, ranges: vec![] };
    w.set(WantValue::Return, &TaskSet::one(1));
    a.down(Down::Want(w));
    assert_eq!(vec![(1, 0)], a.running());
    assert_eq!(vec![(1, TaskSet::one(1), ReasonKind::AskedBack)], a.returns());
    // What runs is not given back.
    a.down(want(1, 3, WantValue::Return, 0..2));
    assert_eq!((1, vec![(1, 0)]), (a.returns().len(), a.running()));
}

/// Seed 26823: who held what had been placed and not started had a machine to himself.
#[test]
fn what_is_on_hold_is_in_nobodys_way() {
    let mut a = Agent::attached(1);
    let told = |a: &mut Agent| {
        a.pass(300);
        let last = a.sent.iter().rev().find_map(|u| if let Up::Advert(x) = u { Some(x.shares[0].clone()) } else { None }).unwrap();
        (last.window, last.slots_free)
    };
    a.down(want(1, 1, WantValue::Hold, 0..1));
    a.down(place(1, 0..1));
    assert_eq!((2, 1), told(&mut a), "one more than there are, as one is taken and not used");
    a.down(place(2, 0..1));
    assert_eq!((vec![(2, 0)], 0), (a.running(), a.returns().len()));
    assert_eq!((2, 0), told(&mut a));
    a.restart(1, |_| Fate::Alive { pid: 100 });
    a.attach(77, 3);
    assert_eq!((2, 0), told(&mut a));
    a.down(want(1, 2, WantValue::Run, 0..1));
    assert_eq!((1, 0), told(&mut a), "it waits for the slot now");
    a.exit((2, 0), Exit::Code(0));
    assert_eq!(vec![(1, 0)], a.running());
}

#[test]
fn a_claim_that_is_not_used_is_taken_back() {
    let mut a = Agent::attached(2);
    a.core.link.rate = 1_000.0;
    a.core.commit_ms = 10.0;
    a.core.link.windows.push_back((a.now, 100));
    a.down(place(1, 0..10));
    assert_eq!(2, a.running().len());
    assert!(a.core.ahead > 0 && a.claimed((1, 2)), "claims are made ahead where tasks end fast");
    a.down(want(1, 1, WantValue::Hold, 0..10));
    assert_eq!((0, false), (a.core.ahead, a.claimed((1, 2))));
    a.exit((1, 0), Exit::Code(0));
    assert_eq!(1, a.running().len());
    a.down(want(1, 2, WantValue::Cancel, 2..10));
    assert_eq!(TaskSet::range(2..10), a.ends().last().unwrap().1);
    assert_eq!(1, a.core.outstanding);
}

#[test]
fn stale_attempts_are_stopped_and_reported_as_fenced() {
    let mut a = Agent::attached(1);
    a.core.link.windows.push_back((a.now, 9));
    a.down(place(1, 0..2));
    a.down(Down::Stale(vec![Attempts { number: 1, job: 1, tasks: TaskSet::range(0..2) }]));
    assert_eq!(vec![((1, 0), false)], a.signals);
    a.exit((1, 0), Exit::Signal(15));
    let got: Vec<_> = a.ends().into_iter().map(|(_, t, e)| (t, e.phase, e.exit[0], e.reason.unwrap().kind)).collect();
    let fenced = |t, exit| (TaskSet::one(t), Phase::Cancelled, exit, ReasonKind::Fenced);
    assert_eq!(vec![fenced(1, 1024), fenced(0, 256 + 15)], got);
}

#[test]
fn time_and_memory_limits_stop() {
    let mut a = Agent::attached(2);
    let mut s = spec();
    s.time_limit_ms = Some(1_000);
    s.shape.memory_bytes = 1 << 20;
    a.down(Down::Place(Box::new(place_of(1, 1, TaskSet::range(0..2), &s))));
    a.input(Input::OverMemory((1, 1), 2 << 20));
    assert_eq!(vec![((1, 1), true)], a.signals);
    a.exit((1, 1), Exit::Signal(9));
    a.pass(1_050);
    assert_eq!(Some(&((1, 0), false)), a.signals.last());
    a.exit((1, 0), Exit::Code(0));
    let kinds: Vec<_> = a.ends().into_iter().map(|(_, _, e)| (e.phase, e.reason.unwrap().kind)).collect();
    assert_eq!(vec![(Phase::Failed, ReasonKind::MemoryLimit), (Phase::Failed, ReasonKind::TimeLimit)], kinds);
}

/// As where the agent stood still meanwhile.
#[test]
fn what_ended_before_it_was_stopped_has_ended_as_it_did() {
    let mut a = Agent::attached(3);
    let mut s = spec();
    s.time_limit_ms = Some(1_000);
    a.down(Down::Place(Box::new(place_of(1, 1, TaskSet::range(0..3), &s))));
    a.pass(1_050);
    assert_eq!(3, a.signals.len());
    a.down(want(1, 1, WantValue::Cancel, 2..3));
    for (task, code) in [(0, 0), (1, 3)] {
        a.exit_with((1, task), Report { exit: Exit::Code(code), by_itself: true, ..Report::unseen() });
    }
    a.exit((1, 2), Exit::Code(0));
    let kinds: Vec<_> = a.ends().into_iter().map(|(_, _, e)| (e.phase, e.reason.map(|r| r.kind))).collect();
    let failed = |kind| (Phase::Failed, Some(kind));
    assert_eq!(vec![(Phase::Done, None), failed(ReasonKind::ExitNonZero), failed(ReasonKind::TimeLimit)], kinds);
}

/// Between its placement and its start its time has run out, or a GPU has gone.
#[test]
fn what_it_was_placed_for_is_looked_at_again_before_the_start() {
    let mut a = Agent::attached(4);
    a.core.ends_at(a.now + 100_000);
    a.input(Input::Capacity(Capacity { gpus: 2, ..capacity(4) }));
    let mut s = spec();
    s.inputs = vec![intergrid_proto::spec::File { name: "in".into(), hash: BlobHash::of(b"x"), size: 1, executable: false }];
    s.time_limit_ms = Some(60_000);
    let long = BlobHash::of(&s.encode());
    a.down(Down::Place(Box::new(place_of(1, 1, TaskSet::one(0), &s))));
    (s.time_limit_ms, s.shape.gpus) = (None, 1);
    let graphic = BlobHash::of(&s.encode());
    a.down(Down::Place(Box::new(place_of(2, 2, TaskSet::one(0), &s))));
    assert!(a.returns().is_empty());
    a.now += 50_000;
    a.input(Input::Capacity(capacity(4)));
    [long, graphic].into_iter().for_each(|hash| a.input(Input::Fetched(hash, Ok(()))));
    let back: Vec<_> = a.returns().into_iter().map(|r| (r.0, r.2)).collect();
    assert_eq!((vec![(1, ReasonKind::OverLimit), (2, ReasonKind::NoFit)], vec![]), (back, a.running()));
    assert_eq!((0, 0, 0, 0), (a.core.used, a.core.ahead, a.core.outstanding, a.core.lives.len()));
}

#[test]
fn content_comes_first_and_others_go_by() {
    let mut a = Agent::attached(2);
    let mut s = spec();
    s.inputs = vec![intergrid_proto::spec::File { name: "in".into(), hash: BlobHash::of(b"x"), size: 1, executable: false }];
    let hash = BlobHash::of(&s.encode());
    a.down(Down::Place(Box::new(place_of(1, 1, TaskSet::one(0), &s))));
    a.down(place(2, 0..1));
    assert_eq!((1, vec![(2, 0)]), (a.fetches, a.running()));
    a.pass(200);
    assert!(a.sent.iter().any(|u| matches!(u, Up::Hints(h) if h.iter().any(|h| h.phase == Phase::StagingIn && h.of.number == 1))));
    a.input(Input::Fetched(hash, Ok(())));
    assert_eq!(vec![(1, 0), (2, 0)], a.running());
    a.exit((2, 0), Exit::Code(0));
    a.exit((1, 0), Exit::Code(0));
    a.down(Down::Place(Box::new(place_of(3, 3, TaskSet::one(0), &s))));
    a.input(Input::Fetched(hash, Err("gone".into())));
    let (_, _, e) = a.ends().pop().unwrap();
    assert_eq!((Phase::Failed, ReasonKind::StageInFailed, 0), (e.phase, e.reason.unwrap().kind, e.attempts));
}

#[test]
fn outputs_come_before_the_end_and_free_the_slot() {
    let mut a = Agent::attached(1);
    a.down(place(1, 0..1));
    a.exit_with((1, 0), Report { exit: Exit::Code(0), files: vec!["stdout".into()], ..Report::unseen() });
    assert_eq!((vec![(1, 0)], 0, 2), (a.uploads.clone(), a.ends().len(), a.core.window()));
    a.down(place(2, 0..1));
    assert_eq!(vec![(2, 0)], a.running());
    // The exit record outlives the agent.
    a.restart(1, |k| if k == (2, 0) { Fate::Alive { pid: 100 } } else { Fate::Gone });
    assert_eq!(vec![(1, 0), (1, 0)], a.uploads);
    a.attach(77, 2);
    a.input(Input::Uploaded((1, 0), Ok(())));
    assert_eq!((Phase::Done, vec![0]), {
        let e = a.ends().pop().unwrap().2;
        (e.phase, e.exit)
    });
}

#[test]
fn ends_are_told_together_where_tasks_end_fast_and_no_slot_is_idle() {
    let mut a = Agent::attached(2);
    a.core.link.rate = 1_600.0;
    a.core.link.windows.push_back((a.now, 100));
    a.down(place(1, 0..10));
    let pace = |a: &mut Agent, rate: f64| {
        a.core.link.rate = rate;
        a.core.told_pace_ms()
    };
    let of = [100.0, 1_600.0, 6_400.0, 100_000.0];
    assert_eq!([0, TOLD_PACE_MAX_MS, 25, PACE_MS], of.map(|rate| pace(&mut a, rate)));
    a.core.link.rate = 1_600.0;
    (0..2).for_each(|t| a.exit((1, t), Exit::Code(0)));
    let due = a.core.events_due_in(a.now);
    assert!(a.ends().is_empty() && due.is_some_and(|ms| (1..=TOLD_PACE_MAX_MS).contains(&ms)), "durable, and not told yet: {due:?}");
    a.now += TOLD_PACE_MAX_MS;
    a.input(Input::Tick);
    assert_eq!((2, None), (a.ends().len(), a.core.events_due_in(a.now)));
    (2..10).for_each(|t| a.exit((1, t), Exit::Code(0)));
    assert_eq!([0, PACE_MS, PACE_MS, PACE_MS], of.map(|rate| pace(&mut a, rate)), "who is idle does not wait for long");
}

/// What a disk takes on average says nothing of the moments in which it is busy.
#[test]
fn claims_are_ahead_of_a_sync_that_takes_long_where_tasks_end_fast() {
    let ahead = |rate: f64| {
        let mut a = Agent::attached(2);
        a.core.link.rate = rate;
        a.core.link.windows.push_back((a.now, 400));
        a.down(place(1, 0..400));
        a.core.ahead
    };
    let worth = 2 * SYNC_STALL_MS;
    assert!((worth..2 * worth).contains(&ahead(1_000.0)), "{} of a task each ms", ahead(1_000.0));
    assert!(ahead(PACED_RATE_MIN / 2.0) < 4, "{}", ahead(PACED_RATE_MIN / 2.0));
}

/// Or tasks that end at once would wait for a window of which the gateway has used all.
#[test]
fn as_many_ends_as_are_told_at_a_time_wait_for_no_pace() {
    let many = TOLD_SLOTS as u32;
    let mut a = Agent::attached(many);
    a.core.link.windows.push_back((a.now, 3 * TOLD_SLOTS as u64));
    a.down(place(1, 0..3 * many));
    let mut told = |tasks: std::ops::Range<u32>| {
        for task in tasks {
            assert!(a.running.remove(&(1, task)).is_some());
            a.core.step(Input::Exited((1, task), Report { exit: Exit::Code(0), ..Report::unseen() }), a.now);
        }
        a.core.link.rate = 1_600.0;
        a.settle();
        a.ends().iter().map(|(_, tasks, _)| tasks.len()).sum::<u64>()
    };
    assert_eq!((0, u64::from(many)), (told(0..many - 1), told(many - 1..many)));
}

#[test]
fn a_window_that_has_doubled_is_told_at_once() {
    let mut a = Agent::attached(2);
    a.down(place(1, 0..2));
    a.pass(100);
    let due = |a: &mut Agent| {
        a.core.tell_of_growth();
        a.core.advert_due_in(a.now)
    };
    a.core.link.advert_dirty = true;
    a.input(Input::Tick);
    assert_ne!(Some(0), due(&mut a), "it was just told");
    (a.core.link.rate, a.core.link.round_trip_ms) = (1_000.0, 10.0);
    assert_eq!(Some(0), due(&mut a));
    a.input(Input::Tick);
    assert_ne!(Some(0), due(&mut a));
}
