//! The decisions, without a machine: each test says what happens and looks at what is done.

use std::collections::BTreeMap;

use intergrid_proto::link::{Attempts, Down, Ended, Event, EventKind, Events, Hello, Hop, Kind, Origin, Place, Up, Want, WantValue};
use intergrid_proto::{BlobHash, Exit, JobSpec, Phase, ReasonKind, SiteId, TaskSet};

use super::*;
use crate::state::State;

const GATEWAY: SiteId = SiteId([9; 16]);

fn hop(site: SiteId, kind: Kind) -> Hop {
    Hop { site, name: "x".into(), kind }
}

/// A core with its spool and clock.
struct Agent {
    core: Core,
    now: u64,
    disk: Vec<Record>,
    sent: Vec<Up>,
    running: BTreeMap<Key, i32>,
    signals: Vec<(Key, bool)>,
    fetches: usize,
    uploads: Vec<Key>,
    other: Vec<Action>,
}

fn capacity(slots: u32) -> Capacity {
    Capacity { slots, memory_bytes: u64::from(slots) << 30, architecture: "test".into() }
}

fn core(disk: &[Record], slots: u32, now: u64) -> Core {
    let state = State::replay(disk.iter().cloned()).unwrap();
    Core::new(state, hop(SiteId([1; 16]), Kind::Agent), vec![1], vec![2], capacity(slots), 77, now).unwrap()
}

impl Agent {
    fn new(slots: u32) -> Self {
        Self::with(core(&[], slots, 1_000))
    }

    fn with(core: Core) -> Self {
        let (disk, sent, running, signals, uploads, other) = Default::default();
        let mut a = Agent { core, now: 1_000, disk, sent, running, signals, fetches: 0, uploads, other };
        a.settle();
        a
    }

    fn attached(slots: u32) -> Self {
        let mut a = Self::new(slots);
        a.attach(0, 0);
        a
    }

    fn attach(&mut self, peer_incarnation: u64, peer_sequence: u64) {
        self.input(Input::Connected { fresh: 78 });
        let hello = Hello {
            hop: hop(GATEWAY, Kind::Gateway),
            incarnation: 5,
            peer_incarnation,
            peer_sequence,
            peer_placement: 0,
            placement: 0,
            sequence_low: 0,
            sequence_high: 0,
            machine: vec![],
        };
        self.down(Down::Hello(hello));
    }

    fn input(&mut self, input: Input) {
        self.core.step(input, self.now);
        self.settle();
    }

    fn down(&mut self, down: Down) {
        self.input(Input::Down(down));
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(50) {
            self.now += 50;
            self.input(Input::Tick);
        }
    }

    /// Do all that is due, with a disk that answers at once.
    fn settle(&mut self) {
        loop {
            for action in self.core.actions() {
                match action {
                    Action::Start(task, _) => {
                        let key = (task.number, task.index);
                        let pid = 100 + self.running.len() as i32;
                        assert!(self.claimed(key), "{key:?} starts without a durable claim");
                        assert!(self.running.insert(key, pid).is_none(), "{key:?} starts twice");
                        self.core.step(Input::Started(key, pid), self.now);
                    }
                    Action::Signal { key, kill } => self.signals.push((key, kill)),
                    Action::Fetch(_) => self.fetches += 1,
                    Action::Upload { key, .. } => self.uploads.push(key),
                    other => self.other.push(other),
                }
            }
            self.now += self.core.pause_ms(self.now);
            if let Some(records) = self.core.cut(self.now) {
                self.disk.extend(records);
                self.core.step(Input::Committed, self.now);
                continue;
            }
            while let Some(up) = self.core.next_up(self.now) {
                self.sent.push(up);
            }
            if self.core.actions.is_empty() && !self.core.urgent {
                return;
            }
        }
    }

    fn claimed(&self, (number, task): Key) -> bool {
        let state = State::replay(self.disk.iter().cloned()).unwrap();
        state.placements.get(&number).is_some_and(|p| p.claims.contains_key(&task))
    }

    fn exit(&mut self, key: Key, exit: Exit) {
        self.exit_with(key, Report { exit, wall_ms: Some(1), cpu_us: Some(2), ..Report::unseen() });
    }

    fn exit_with(&mut self, key: Key, report: Report) {
        assert!(self.running.remove(&key).is_some(), "{key:?} does not run");
        self.input(Input::Exited(key, report));
    }

    fn events(&self) -> Vec<Event> {
        let all = self.sent.iter().filter_map(|u| if let Up::Events(Events { events, .. }) = u { Some(events.clone()) } else { None });
        all.flatten().collect()
    }

    fn ends(&self) -> Vec<(u64, TaskSet, Ended)> {
        let end = |e: Event| if let EventKind::Ended(x) = e.what { Some((e.of.number, e.of.tasks, x)) } else { None };
        self.events().into_iter().filter_map(end).collect()
    }

    fn returns(&self) -> Vec<(u64, TaskSet, ReasonKind)> {
        let back = |e: Event| if let EventKind::Returned(r) = e.what { Some((e.of.number, e.of.tasks, r.kind)) } else { None };
        self.events().into_iter().filter_map(back).collect()
    }

    fn running(&self) -> Vec<Key> {
        self.running.keys().copied().collect()
    }

    fn forget(&mut self) {
        self.sent.clear();
        self.other.clear();
    }

    /// The agent dies; another one takes its spool.
    fn restart(&mut self, slots: u32, fate: impl Fn(Key) -> Fate) {
        self.core = core(&self.disk, slots, self.now);
        let keys: Vec<Key> = self.core.claimed().into_iter().map(|(k, _)| k).collect();
        for key in keys {
            let fate = fate(key);
            if !matches!(fate, Fate::Alive { .. }) {
                self.running.remove(&key);
            }
            self.core.resume(key, fate, self.now);
        }
        self.forget();
        self.input(Input::Tick);
    }
}

fn spec() -> JobSpec {
    JobSpec::new(["true"])
}

fn place_of(number: u64, job: u64, tasks: TaskSet, spec: &JobSpec) -> Place {
    let bytes = spec.encode();
    Place {
        number,
        job,
        origin: Origin { site: GATEWAY, job: "abcdef".into(), principal: "u".into() },
        spec_hash: BlobHash::of(&bytes),
        spec: bytes,
        tasks,
        share: "machine".into(),
        attempts: 0,
        want: Want::default(),
        route: vec![],
        hops_left: 1,
        chain: vec![],
        array_size: 1_000,
    }
}

fn place(number: u64, tasks: std::ops::Range<u32>) -> Down {
    Down::Place(Box::new(place_of(number, number, TaskSet::range(tasks), &spec())))
}

fn want(job: u64, version: u64, value: WantValue, tasks: std::ops::Range<u32>) -> Down {
    let mut w = Want { job, version, ranges: vec![] };
    w.set(value, &TaskSet::range(tasks));
    Down::Want(w)
}

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
    a.pass(OPEN_WAIT_MS);
    assert_eq!(vec![(2, 0)], a.running());
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
