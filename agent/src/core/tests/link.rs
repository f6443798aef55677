//! Cursors, restarts, hints, advertisements.

use super::*;

#[test]
fn running_is_hinted_late_and_again_after_a_reconnect() {
    let mut a = Agent::attached(1);
    a.down(place(1, 0..1));
    let hints = |a: &Agent| a.sent.iter().filter(|u| matches!(u, Up::Hints(h) if h[0].phase == Phase::Running)).count();
    assert_eq!(0, hints(&a));
    a.pass(200);
    assert_eq!(1, hints(&a));
    assert!(a.other.iter().any(|x| matches!(x, Action::ReadTicks(l) if l[0].0 == (1, 0))));
    a.input(Input::Disconnected);
    a.attach(77, 1);
    a.pass(100);
    assert_eq!(2, hints(&a));
}

#[test]
fn events_go_on_from_the_cursor_and_acks_forget() {
    let mut a = Agent::attached(4);
    a.down(place(1, 0..1));
    a.exit((1, 0), Exit::Code(0));
    assert_eq!(2, a.core.state.events.len());
    a.down(Down::Ack { incarnation: 77, sequence: 1 });
    a.down(Down::Ack { incarnation: 76, sequence: 2 });
    assert_eq!((1, 2), (a.core.state.events.len(), a.core.state.sequence_low()));
    a.input(Input::Disconnected);
    a.forget();
    a.attach(77, 1);
    let firsts: Vec<u64> = a.sent.iter().filter_map(|u| if let Up::Events(e) = u { Some(e.first) } else { None }).collect();
    assert_eq!(vec![2], firsts);
    assert!(!a.sent.iter().any(|u| matches!(u, Up::Resync(_))));
    let Some(Up::Hello(hello)) = a.sent.first() else { panic!("no hello") };
    assert_eq!((77, 2, 2, 1, 5), (hello.incarnation, hello.sequence_low, hello.sequence_high, hello.peer_placement, hello.peer_incarnation));
}

#[test]
fn a_gateway_that_has_forgotten_gets_the_full_state_first() {
    let mut a = Agent::attached(2);
    a.down(place(1, 0..1));
    a.exit((1, 0), Exit::Code(0));
    a.down(Down::Ack { incarnation: 77, sequence: 2 });
    a.down(place(2, 0..3));
    a.exit((2, 0), Exit::Code(0));
    a.input(Input::Disconnected);
    a.forget();
    a.attach(77, 0);
    let at = a.sent.iter().position(|u| matches!(u, Up::Resync(_))).unwrap();
    let Up::Resync(r) = &a.sent[at] else { unreachable!() };
    assert_eq!((2, true), (r.sequence, r.last));
    let known = r.ranges.iter().fold(TaskSet::new(), |s, x| s.union(&x.of.tasks));
    assert_eq!(TaskSet::range(0..3), known, "ended ones and returned ones too: their events follow");
    assert!(matches!(&a.sent[at + 1], Up::Events(e) if e.first == 3));
    // On demand as well.
    a.forget();
    a.down(Down::Resync);
    assert!(matches!(&a.sent[0], Up::Resync(r) if r.sequence == 2));
    assert!(matches!(&a.sent[1], Up::Events(e) if e.first == 3));
}

#[test]
fn an_old_store_takes_a_new_incarnation_and_listens_first() {
    let mut a = Agent::attached(2);
    a.down(place(1, 0..1));
    a.exit((1, 0), Exit::Code(0));
    a.down(Down::Ack { incarnation: 77, sequence: 1 });
    a.input(Input::Disconnected);
    a.forget();
    a.attach(77, 50);
    assert!(a.other.iter().any(|x| matches!(x, Action::Reconnect(_))));
    a.input(Input::Disconnected);
    a.forget();
    a.attach(77, 50);
    assert!(a.sent.iter().any(|u| matches!(u, Up::Hello(h) if h.incarnation == 78)));
    assert!(a.sent.iter().any(|u| matches!(u, Up::Resync(r) if r.incarnation == 78 && r.sequence == 0)));
    assert_eq!(1, a.ends().len(), "what was not acknowledged is told again");
    a.down(place(2, 0..1));
    assert!(a.running().is_empty());
    // A gateway that does not say what it holds open is not waited for for ever.
    a.pass(OPEN_WAIT_MS);
    assert_eq!(vec![(2, 0)], a.running());
}

/// Before its gateway was back it had found out so much that it knew of as many events as the gateway had seen.
#[test]
fn a_copy_that_has_gone_on_is_known_to_be_old() {
    let mut a = Agent::attached(2);
    a.down(place(1, 0..1));
    let (copy, known) = (a.disk.clone(), a.events().len() as u64);
    a.exit((1, 0), Exit::Code(0));
    assert_eq!(1, a.ends().len());
    a.disk = copy;
    a.restart(2, |_| Fate::Gone);
    a.forget();
    a.attach(77, known + 1);
    assert!(a.other.iter().any(|x| matches!(x, Action::Reconnect(_))), "its own end of it is event {}, too", known + 1);
}

#[test]
fn what_an_old_store_knows_and_the_gateway_does_not_hold_open_is_not_started() {
    let mut a = Agent::attached(2);
    a.core.link.windows.push_back((a.now, 9));
    a.down(place(1, 0..4));
    assert_eq!(vec![(1, 0), (1, 1)], a.running());
    // The copy is from here; since then the gateway has seen 50 events, and holds 1 and 3 open.
    a.restart(2, |k| Fate::Alive { pid: 100 + k.1 as i32 });
    a.attach(77, 50);
    a.input(Input::Disconnected);
    a.forget();
    a.attach(77, 50);
    a.down(Down::Open(vec![Attempts { number: 1, job: 1, tasks: [1, 3].into_iter().collect() }]));
    assert_eq!(vec![((1, 0), false)], a.signals, "it runs and does not count");
    a.exit_with((1, 0), Report::unseen());
    assert_eq!(vec![(1, 1), (1, 3)], a.running(), "3 starts without a pause, 2 never");
    let ends: Vec<(TaskSet, Phase)> = a.ends().into_iter().map(|(_, t, e)| (t, e.phase)).collect();
    assert_eq!(vec![(TaskSet::one(2), Phase::Cancelled), (TaskSet::one(0), Phase::Cancelled)], ends);
}

#[test]
fn another_gateway_or_machine_is_refused() {
    let mut a = Agent::attached(1);
    a.input(Input::Disconnected);
    a.input(Input::Connected { fresh: 1 });
    let mut hello = Hello {
        hop: hop(SiteId([8; 16]), Kind::Gateway),
        incarnation: 5,
        peer_incarnation: 0,
        peer_sequence: 0,
        peer_placement: 0,
        placement: 0,
        sequence_low: 0,
        sequence_high: 0,
        machine: vec![],
        recovering: false,
    };
    a.down(Down::Hello(hello.clone()));
    assert!(a.other.iter().any(|x| matches!(x, Action::Refuse(_))));
    hello.hop.site = GATEWAY;
    let state = State::replay(a.disk.iter().cloned()).unwrap();
    assert!(Core::new(state, hop(SiteId([1; 16]), Kind::Agent), vec![9], vec![2], capacity(1), 1, 1).is_err());
}

#[test]
fn after_a_restart_the_living_are_adopted_and_the_lost_are_told() {
    let mut a = Agent::attached(4);
    a.down(place(1, 0..4));
    a.pass(200);
    let fate = |k: Key| match k.1 {
        0 => Fate::Alive { pid: 100 },
        1 => Fate::Gone,
        2 => Fate::NeverStarted,
        _ => Fate::Alive { pid: 103 },
    };
    a.restart(4, fate);
    assert_eq!(vec![(1, 0), (1, 2), (1, 3)], a.running(), "what never started is started now");
    assert_eq!(3, a.core.used);
    a.attach(77, 1);
    let lost = a.ends();
    assert_eq!((TaskSet::one(1), Phase::Failed, true, vec![1025]), (lost[0].1.clone(), lost[0].2.phase, lost[0].2.lost, lost[0].2.exit.clone()));
    a.exit_with((1, 0), Report::unseen());
    assert_eq!(ReasonKind::ExitUnknown, a.ends().pop().unwrap().2.reason.unwrap().kind);
    // A cancel reaches an adopted one, and its end is then confirmed.
    a.down(want(1, 1, WantValue::Cancel, 3..4));
    assert_eq!(vec![((1, 3), false)], a.signals);
    a.exit_with((1, 3), Report::unseen());
    let (_, _, e) = a.ends().pop().unwrap();
    assert_eq!((Phase::Cancelled, false), (e.phase, e.lost));
}

#[test]
fn what_was_accepted_survives_without_a_claim() {
    let mut a = Agent::attached(1);
    a.core.link.windows.push_back((a.now, 9));
    a.down(place(1, 0..3));
    a.down(want(1, 1, WantValue::Hold, 2..3));
    a.restart(2, |_| Fate::Alive { pid: 100 });
    assert_eq!(vec![(1, 0), (1, 1)], a.running());
    assert_eq!(3, a.core.outstanding);
}

#[test]
fn the_advertisement_says_what_is_free() {
    let mut a = Agent::attached(4);
    let last = |a: &Agent| a.sent.iter().rev().find_map(|u| if let Up::Advert(x) = u { Some(x.shares[0].clone()) } else { None }).unwrap();
    assert_eq!(("machine".to_string(), 4, 4, 4), {
        let s = last(&a);
        (s.key.clone(), s.slots_free, s.window, s.machine_slots)
    });
    a.down(place(1, 0..3));
    a.pass(50);
    assert_eq!((1, 4), (last(&a).slots_free, last(&a).window));
    a.input(Input::Capacity(capacity(2)));
    a.pass(50);
    assert_eq!((0, 2, 2), (last(&a).slots_free, last(&a).window, last(&a).fit_version));
    let n = a.sent.len();
    a.pass(1_000);
    assert!(a.sent[n..].iter().all(|u| !matches!(u, Up::Advert(_))), "nothing has changed");
    a.pass(ADVERT_RENEW_MS);
    assert!(a.sent[n..].iter().any(|u| matches!(u, Up::Advert(_))), "credit is renewed before it expires");
}
