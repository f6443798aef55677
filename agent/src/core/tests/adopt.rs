//! The gateway loses its store, or goes back to an old one.

use intergrid_proto::link::{Former, Orphan};

use super::*;

const LATER: u64 = 6;

/// The gateway comes back with another incarnation.
fn renewed(a: &mut Agent, incarnation: u64, recovering: bool) {
    a.input(Input::Disconnected);
    a.forget();
    a.input(Input::Connected { fresh: 78 });
    let hello = Hello {
        hop: hop(GATEWAY, Kind::Gateway),
        incarnation,
        peer_incarnation: 0,
        peer_sequence: 0,
        peer_placement: 0,
        placement: 0,
        sequence_low: 0,
        sequence_high: 0,
        machine: vec![],
        recovering,
    };
    a.down(Down::Hello(hello));
}

fn listed(a: &Agent) -> Vec<Orphan> {
    let parts = a.sent.iter().filter_map(|u| if let Up::Orphans(o) = u { Some(o.orphans.clone()) } else { None });
    parts.flatten().collect()
}

fn adopt(number: u64, job: u64, tasks: TaskSet, incarnation: u64, old: u64, old_job: u64) -> Down {
    let known = Known::As(Former { incarnation, number: old, job: old_job });
    Down::Place(Box::new(Place { known, want: Want { job, ..Want::default() }, ..place_of(number, job, tasks, &spec()) }))
}

/// Of a placement of six tasks: 0 has ended, 1 and 2 run, 3 to 5 wait.
fn middle() -> Agent {
    let mut a = Agent::attached(2);
    a.core.link.windows.push_back((a.now, 9));
    a.down(place(1, 0..6));
    a.exit((1, 0), Exit::Code(0));
    a.pass(300);
    assert_eq!(vec![(1, 1), (1, 2)], a.running());
    a
}

#[test]
fn orphans_are_listed_run_on_and_start_nothing() {
    let mut a = middle();
    renewed(&mut a, LATER, true);
    let by: BTreeMap<Phase, TaskSet> = listed(&a).into_iter().map(|o| (o.phase, o.tasks)).collect();
    let expected = [(Phase::Done, 0..1), (Phase::Running, 1..3), (Phase::Placed, 3..6)];
    assert_eq!(expected.map(|(p, r)| (p, TaskSet::range(r))).into_iter().collect::<BTreeMap<_, _>>(), by);
    let o = &listed(&a)[0];
    assert_eq!((Former { incarnation: 5, number: 1, job: 1 }, "abcdef", GATEWAY), (o.former, o.origin.job.as_str(), o.origin.site));
    a.exit((1, 1), Exit::Code(3));
    a.pass(1_000);
    assert_eq!(vec![(1, 2)], a.running(), "nothing is started for nobody");
    assert!(a.ends().is_empty(), "nobody knows it by that name");
    assert!(a.signals.is_empty());
    // It has not forgotten, a restart later.
    a.restart(2, |_| Fate::Alive { pid: 100 });
    a.pass(500);
    assert_eq!(vec![(1, 2)], a.running());
    renewed(&mut a, LATER, true);
    let over: TaskSet = listed(&a).into_iter().filter(|o| o.phase.is_terminal()).fold(TaskSet::new(), |all, o| all.union(&o.tasks));
    assert_eq!(TaskSet::range(0..2), over);
}

#[test]
fn what_is_adopted_goes_on_under_its_new_name() {
    let mut a = middle();
    renewed(&mut a, LATER, true);
    a.exit((1, 1), Exit::Code(3));
    let all = TaskSet::range(0..5);
    a.down(adopt(40, 9, all.union(&TaskSet::one(77)), 5, 1, 1));
    let ends: Vec<(u64, TaskSet, Vec<u32>)> = a.ends().into_iter().map(|(n, t, e)| (n, t, e.exit)).collect();
    assert_eq!(vec![(40, TaskSet::one(0), vec![0]), (40, TaskSet::one(1), vec![3])], ends, "what has ended is told");
    assert_eq!(vec![(40, TaskSet::one(77), ReasonKind::EvidenceLost)], a.returns());
    assert!(a.events().iter().any(|e| (e.of.number, e.of.job, &e.of.tasks, &e.what) == (40, 9, &all, &EventKind::Accepted)));
    assert_eq!(vec![(1, 2), (1, 3)], a.running(), "and what waits is started, under the name of its directory");
    a.pass(1_000);
    assert!(a.sent.iter().any(|u| matches!(u, Up::Hints(h) if h.iter().all(|h| (h.of.number, h.of.job) == (40, 9)))));
    // A repeat changes nothing; the register is of the new job; 5 was not adopted.
    let n = a.events().len();
    a.down(adopt(40, 9, all, 5, 1, 1));
    assert_eq!(n, a.events().len());
    a.down(want(1, 9, WantValue::Cancel, 0..1_000));
    assert!(a.signals.is_empty(), "an old job of that number is no more");
    a.down(want(9, 1, WantValue::Cancel, 2..3));
    assert_eq!(vec![((1, 2), false)], a.signals);
    a.exit((1, 2), Exit::Signal(15));
    let (number, tasks, e) = a.ends().pop().unwrap();
    assert_eq!((40, TaskSet::one(2), Phase::Cancelled), (number, tasks, e.phase));
    a.exit((1, 3), Exit::Code(0));
    a.pass(500);
    assert_eq!(vec![(1, 4)], a.running());
    a.exit((1, 4), Exit::Code(0));
    a.pass(500);
    assert!(a.running().is_empty(), "5 waits for somebody who knows it");
    let state = State::replay(a.disk.iter().cloned()).unwrap();
    assert_eq!(state, State::replay(state.snapshot()).unwrap());
    assert!(state.past.labels.is_empty(), "{:?}", state.past.labels);
}

#[test]
fn a_second_loss_is_adopted_from_the_first() {
    let mut a = middle();
    renewed(&mut a, LATER, true);
    a.down(adopt(40, 9, TaskSet::range(0..6), 5, 1, 1));
    renewed(&mut a, LATER + 1, true);
    let alive: Vec<Orphan> = listed(&a).into_iter().filter(|o| !o.phase.is_terminal()).collect();
    assert!(alive.iter().all(|o| o.former == Former { incarnation: LATER, number: 40, job: 9 }), "{alive:?}");
    a.down(adopt(50, 2, TaskSet::range(1..6), LATER, 40, 9));
    a.exit((1, 1), Exit::Code(0));
    assert_eq!((50, TaskSet::one(1)), a.ends().pop().map(|(n, t, _)| (n, t)).unwrap());
    a.restart(2, |_| Fate::Alive { pid: 100 });
    a.exit((1, 2), Exit::Code(0));
    let last = a.core.state.events.back().map(|e| (e.of.number, e.of.tasks.clone()));
    assert_eq!(Some((50, TaskSet::one(2))), last);
}

#[test]
fn outputs_of_an_orphan_wait_for_its_new_name() {
    let mut a = middle();
    renewed(&mut a, LATER, true);
    a.exit_with((1, 1), Report { exit: Exit::Code(0), files: vec!["stdout".into()], ..Report::unseen() });
    assert!(a.uploads.is_empty());
    assert!(listed(&a).iter().any(|o| o.phase == Phase::Running));
    a.down(adopt(40, 9, TaskSet::range(1..3), 5, 1, 1));
    assert_eq!(vec![(1, 1)], a.uploads);
    a.input(Input::Uploaded((1, 1), Ok(())));
    assert_eq!((40, TaskSet::one(1), Phase::Done), a.ends().pop().map(|(n, t, e)| (n, t, e.phase)).unwrap());
}

#[test]
fn ends_are_remembered_within_bounds() {
    let mut a = Agent::attached(1);
    for n in 1..ENDS_KEPT_MAX as u64 + 20 {
        a.down(place(n, 0..1));
        a.exit((n, 0), Exit::Code(0));
    }
    let past = &a.core.state.past;
    assert_eq!((ENDS_KEPT_MAX, 20), (past.ends.len(), past.complete_from));
    renewed(&mut a, LATER, true);
    assert_eq!(ENDS_KEPT_MAX, listed(&a).len());
    assert!(a.sent.iter().any(|u| matches!(u, Up::Orphans(o) if o.last && o.complete_from == 20)));
    renewed(&mut a, LATER, false);
    assert!(listed(&a).is_empty(), "nobody asks");
}

/// Seed 284: what waits for somebody who knows it takes no slot from those who are known.
#[test]
fn orphans_that_wait_are_in_nobodys_way() {
    let mut a = middle();
    renewed(&mut a, LATER, true);
    assert_eq!((0, 0), (a.core.share().window, a.core.share().slots_free), "two run");
    a.exit((1, 1), Exit::Code(0));
    a.exit((1, 2), Exit::Code(0));
    a.core.link.windows.clear();
    assert_eq!((2, 2), (a.core.share().window, a.core.share().slots_free), "three wait");
    a.down(place(50, 0..2));
    assert!(a.returns().is_empty(), "{:?}", a.returns());
    assert_eq!(vec![(50, 0), (50, 1)], a.running());
}

/// Seed 1036: a gateway sends a spec once on a connection, with whatever placement is the first.
#[test]
fn a_spec_that_comes_with_an_adoption_is_kept() {
    let mut a = Agent::attached(2);
    a.down(adopt(40, 9, TaskSet::range(0..1), 5, 1, 1));
    assert_eq!(1, a.returns().len());
    let later = Place { spec: Vec::new(), ..place_of(41, 9, TaskSet::range(1..2), &spec()) };
    a.down(Down::Place(Box::new(later)));
    assert_eq!((1, vec![(41, 1)]), (a.returns().len(), a.running()));
}

/// Seed 1935: a cancel of an adopted task outlives the agent.
#[test]
fn an_adopted_task_is_stopped_after_a_restart_too() {
    let mut a = middle();
    renewed(&mut a, LATER, true);
    a.down(adopt(40, 9, TaskSet::range(0..6), 5, 1, 1));
    a.down(want(9, 1, WantValue::Cancel, 1..2));
    assert_eq!(vec![((1, 1), false)], std::mem::take(&mut a.signals));
    a.restart(2, |_| Fate::Alive { pid: 100 });
    assert_eq!(vec![((1, 1), false)], a.signals, "it was deaf, and nobody is left who would have killed it");
}
