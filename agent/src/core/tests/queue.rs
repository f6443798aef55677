//! Tasks that are handed on to a queue of somebody else's, and what comes back from it.

use super::*;
use crate::machine::Offer;
use intergrid_proto::limits::CREDIT_MS;

fn offer(room: u64) -> Offer {
    Offer { key: "batch".into(), slots_total: 40, machines: 5, room, ahead: 2, largest_free: 3, window_max: u64::MAX, ..Offer::default() }
}

/// A queue of machines with 8 slots each.
fn queue(room: u64) -> Agent {
    let mut a = Agent::new(8);
    a.queues = true;
    a.input(Input::Offer(offer(room)));
    a.attach(0, 0);
    a
}

fn withdrawn(a: &mut Agent) -> Vec<Key> {
    let all = std::mem::take(&mut a.other);
    all.into_iter().filter_map(|x| if let Action::Withdraw(key) = x { Some(key) } else { None }).collect()
}

fn never(a: &mut Agent, task: u32, kind: ReasonKind) {
    a.input(Input::NeverStarted((1, task), intergrid_proto::Reason::new(kind, "x")));
}

fn hinted(a: &Agent) -> Vec<(Phase, TaskSet)> {
    a.sent
        .iter()
        .filter_map(|u| if let Up::Hints(h) = u { Some(h.iter().map(|h| (h.phase, h.of.tasks.clone())).collect::<Vec<_>>()) } else { None })
        .flatten()
        .collect()
}

#[test]
fn several_machines_are_one_share_and_what_is_accepted_is_handed_on() {
    let mut a = queue(20);
    let share = a.core.share();
    assert_eq!(
        ("batch", 8, 40, 5, 20, 3, 22),
        (share.key.as_str(), share.machine_slots, share.slots_total, share.machines, share.slots_free, share.largest_free, share.window)
    );
    a.down(place(1, 0..22));
    assert_eq!((22, 0), (a.queued.len(), a.core.share().slots_free));
    // Somebody else takes slots: what was accepted stays where it is, and nothing more comes.
    a.input(Input::Offer(offer(5)));
    assert_eq!((7, vec![]), (a.core.share().window, a.returns()));
    a.input(Input::Offer(Offer { closed: Some("drained".into()), ..offer(5) }));
    let share = a.core.share();
    assert_eq!((0, true, "drained"), (share.window, share.draining, share.draining_reason.as_str()));
    assert_eq!(0, share.time_max_ms);
    let capped = Offer { window_max: 6, time_max_ms: Some(60_000), ..offer(20) };
    a.input(Input::Offer(capped));
    assert_eq!((6, 60_000), (a.core.share().window, a.core.share().time_max_ms));
}

/// Their ends come in bunches, as its records are looked at now and then.
#[test]
fn short_tasks_wait_there_within_its_bounds() {
    let mut a = queue(20);
    a.down(place(1, 0..22));
    for task in 0..22 {
        a.input(Input::Started((1, task), 0));
        a.input(Input::Exited((1, task), Report { exit: Exit::Code(0), ..Report::unseen() }));
    }
    a.pass(50);
    assert!(a.core.link.rate > 100.0, "{}", a.core.link.rate);
    let mut window = |rate, ahead_short| {
        a.core.link.rate = rate;
        a.input(Input::Offer(Offer { ahead_short, turnaround_ms: 2_000, ..offer(20) }));
        a.core.share().window
    };
    assert_eq!([22, 22], [0.0, 5_000.0].map(|rate| window(rate, 0)));
    assert_eq!([22, 30], [0.0, 5_000.0].map(|rate| window(rate, 8)));
    assert!((23..30).contains(&window(1.0, 8)), "no more than their rate makes of it");
}

/// Their slots come free there later than they end for us: each end is told together with that.
#[test]
fn no_more_are_handed_on_than_may_be() {
    let mut a = queue(20);
    let handed = |a: &mut Agent, most| a.input(Input::Offer(Offer { handed_max: Some(most), ..offer(20) }));
    handed(&mut a, 3);
    a.down(place(1, 0..6));
    assert_eq!(3, a.queued.len());
    handed(&mut a, 2);
    a.input(Input::Started((1, 0), 0));
    a.input(Input::Exited((1, 0), Report { exit: Exit::Code(0), ..Report::unseen() }));
    a.pass(50);
    assert_eq!((3, 1), (a.queued.len(), a.ends().len()));
    handed(&mut a, 4);
    assert_eq!(5, a.queued.len());
    // What waits here can go elsewhere at once.
    a.down(want(1, 1, WantValue::Return, 5..6));
    assert_eq!((vec![], 1), (withdrawn(&mut a), a.returns().len()));
}

/// Others have taken the slots.
#[test]
fn what_may_not_be_handed_on_goes_back() {
    // With nothing of ours at work there: nothing may be handed on, or less than one task has.
    for (most, slots) in [(0, 1), (3, 8)] {
        let mut a = queue(20);
        a.input(Input::Offer(Offer { handed_max: Some(most), ..offer(20) }));
        let mut wide = spec();
        wide.shape.slots = slots;
        a.down(Down::Place(Box::new(place_of(1, 1, TaskSet::range(0..2), &wide))));
        // A slow look at the queue may show room yet.
        a.pass(GIVE_BACK_HANDED_MS - 500);
        assert_eq!((vec![], vec![]), (a.queued.clone(), a.returns()));
        a.pass(1_000);
        assert_eq!((vec![], vec![(1, TaskSet::range(0..2), ReasonKind::OverCredit)]), (a.queued.clone(), a.returns()));
    }
    // As when the queue closes: what is there stays there.
    let mut a = queue(20);
    a.input(Input::Offer(Offer { handed_max: Some(2), ..offer(20) }));
    a.down(place(1, 0..3));
    a.input(Input::Offer(Offer { handed_max: Some(0), closed: Some("x".into()), ..offer(20) }));
    a.pass(GIVE_BACK_HANDED_MS + 200);
    assert_eq!((2, vec![(1, TaskSet::one(2), ReasonKind::OverCredit)]), (a.queued.len(), a.returns()));
}

/// A gateway of a cluster starts again: what is there is known before its queues are.
#[test]
fn gpus_count_for_nothing_in_a_queue_whenever_it_is_told_of() {
    let mut a = Agent::attached(8);
    a.queues = true;
    a.input(Input::Capacity(Capacity { gpus: 2, ..capacity(8) }));
    let mut spec = spec();
    spec.shape.gpus = 1;
    a.down(Down::Place(Box::new(place_of(1, 1, TaskSet::range(0..2), &spec))));
    assert_eq!(8, a.core.outstanding);
    a.input(Input::Offer(Offer { nodes_max: 3, ..offer(20) }));
    assert_eq!((2, 18), (a.core.outstanding, a.core.share().slots_free));
}

#[test]
fn a_machine_says_what_is_left_of_its_time_as_long_as_its_credit_holds() {
    let mut a = Agent::attached(2);
    assert_eq!(0, a.core.share().time_max_ms);
    a.core.ends_at(a.now + 100_000);
    assert_eq!(100_000 - CREDIT_MS, a.core.share().time_max_ms);
    a.pass(50_000);
    assert_eq!(50_000 - CREDIT_MS, a.core.share().time_max_ms);
    a.pass(100_000);
    assert_eq!(1, a.core.share().time_max_ms, "0 would be no limit");
}

#[test]
fn what_waits_there_is_taken_back_as_it_is_wished() {
    let mut a = queue(20);
    a.down(place(1, 0..6));
    a.down(want(1, 1, WantValue::Return, 0..1));
    a.down(want(1, 2, WantValue::Cancel, 1..2));
    a.down(want(1, 3, WantValue::Hold, 2..3));
    // A later register names only its own tasks: 0 and 1 are on their way back all the same.
    assert_eq!(vec![(1, 0), (1, 1), (1, 2)], withdrawn(&mut a));
    (0..3).for_each(|t| never(&mut a, t, ReasonKind::AllBusy));
    assert_eq!(vec![(1, TaskSet::one(0), ReasonKind::AskedBack)], a.returns());
    let ends = a.ends();
    assert_eq!((TaskSet::one(1), Phase::Cancelled, 0), (ends[0].1.clone(), ends[0].2.phase, ends[0].2.attempts));
    assert_eq!(6, a.queued.len(), "the one on hold waits here");
    a.down(want(1, 4, WantValue::Run, 2..3));
    assert_eq!(Some(&(1, 2)), a.queued.last());
    // Refused by the queue: its reason goes up with it.
    never(&mut a, 3, ReasonKind::OverLimit);
    assert_eq!(Some(&(1, TaskSet::one(3), ReasonKind::OverLimit)), a.returns().last());
}

#[test]
fn what_has_started_before_it_could_be_taken_back_runs() {
    let mut a = queue(20);
    a.down(place(1, 0..2));
    a.down(want(1, 1, WantValue::Return, 0..1));
    a.input(Input::Started((1, 0), 0));
    assert_eq!((vec![(1, 0)], vec![]), (withdrawn(&mut a), a.returns()));
    a.pass(300);
    assert_eq!(vec![(Phase::Running, TaskSet::one(0))], hinted(&a));
    a.input(Input::Suspended((1, 0), true));
    a.pass(100);
    assert_eq!(Some(&(Phase::Suspended, TaskSet::one(0))), hinted(&a).last());
    a.down(want(1, 2, WantValue::Cancel, 0..2));
    assert_eq!((vec![((1, 0), false), ((1, 1), false)], vec![(1, 1)]), (a.signals.clone(), withdrawn(&mut a)));
    // Once more wanted back, but stopped in the end.
    a.down(want(1, 3, WantValue::Return, 0..1));
    a.input(Input::Exited((1, 0), Report { exit: Exit::Signal(15), ..Report::unseen() }));
    assert_eq!((Phase::Cancelled, 1), (a.ends()[0].2.phase, a.ends()[0].2.attempts));
}

/// Whether it has started is known when its claim can be seen.
#[test]
fn a_cancel_removes_what_waits_there_and_says_what_it_has_stopped() {
    let mut a = queue(20);
    a.down(place(1, 0..3));
    a.down(want(1, 1, WantValue::Return, 0..1));
    assert_eq!((vec![], vec![(1, 0)]), (a.signals.clone(), withdrawn(&mut a)));
    for version in 2..4 {
        a.down(want(1, version, WantValue::Cancel, 0..3));
    }
    assert_eq!(([0, 1, 2].map(|t| ((1, t), false)).to_vec(), vec![(1, 1), (1, 2)]), (a.signals.clone(), withdrawn(&mut a)));
    never(&mut a, 0, ReasonKind::AllBusy);
    for (task, by_itself) in [(1, true), (2, false)] {
        a.input(Input::Started((1, task), 0));
        a.input(Input::Exited((1, task), Report { exit: Exit::Code(0), by_itself, ..Report::unseen() }));
    }
    let ends: BTreeMap<_, _> = a.ends().into_iter().map(|(_, t, e)| (t.to_string(), (e.phase, e.reason.unwrap().text))).collect();
    let texts = ["cancelled before it started", "it ended by itself before the cancel reached it", "stopped while it ran"];
    assert_eq!((0..3).map(|t| t.to_string()).zip(texts.map(|text| (Phase::Cancelled, text.to_string()))).collect::<BTreeMap<_, _>>(), ends);
}

#[test]
fn who_ended_it_is_heard_before_an_exit_of_0() {
    let mut a = queue(20);
    a.down(place(1, 0..2));
    for (task, kind) in [(0, ReasonKind::TimeLimit), (1, ReasonKind::ExitUnknown)] {
        a.input(Input::Started((1, task), 0));
        let report = Report { exit: Exit::Code(0), ended_by: Some((kind, "by others".into())), ..Report::unseen() };
        a.input(Input::Exited((1, task), report));
    }
    let ends: Vec<_> = a.ends().into_iter().map(|(_, t, e)| (t, e.phase, e.reason.map(|r| r.kind), e.lost)).collect();
    let failed = |t, kind, lost| (TaskSet::one(t), Phase::Failed, Some(kind), lost);
    assert_eq!(2, ends.len());
    assert!(ends.contains(&failed(0, ReasonKind::TimeLimit, false)) && ends.contains(&failed(1, ReasonKind::ExitUnknown, true)), "{ends:?}");
}

#[test]
fn after_a_restart_what_was_handed_on_still_is() {
    let mut a = queue(20);
    a.down(place(1, 0..3));
    a.queued.clear();
    a.restart(8, |(_, t)| if t == 2 { Fate::NeverStarted } else { Fate::Handed });
    a.input(Input::Offer(offer(20)));
    a.attach(5, 1);
    a.input(Input::Tick);
    assert_eq!(vec![(1, 2)], a.queued, "only what was never handed on is started now");
    never(&mut a, 0, ReasonKind::StartFailed);
    a.input(Input::Started((1, 1), 0));
    a.input(Input::Exited((1, 1), Report { exit: Exit::Code(0), ..Report::unseen() }));
    assert_eq!(Some(&(1, TaskSet::one(0), ReasonKind::StartFailed)), a.returns().last());
    assert_eq!(Phase::Done, a.ends().last().unwrap().2.phase);
}
