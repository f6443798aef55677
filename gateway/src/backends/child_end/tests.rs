//! A child is perfect whatever is said to it.

use std::collections::BTreeMap;

use intergrid_proto::limits::{EVENTS_IN_FLIGHT_MAX, HOPS_MAX};
use intergrid_proto::link::{Attempts, Down, EventKind, Hello, Hop, Kind, Known, Origin, Place, Up, Want, WantValue};
use intergrid_proto::{BlobHash, Exit, JobSpec, Phase, TaskSet};
use proptest::prelude::*;

use super::{ChildEnd, site_of};

fn hop(name: &str) -> Hop {
    Hop { site: site_of(name), name: name.into(), kind: Kind::Gateway }
}

fn child(slots: u32) -> ChildEnd {
    ChildEnd::new(hop("child"), 1, slots, 8 << 30)
}

fn hello(cursor: (u64, u64)) -> Down {
    Down::Hello(Hello {
        hop: hop("parent"),
        incarnation: 5,
        peer_incarnation: cursor.0,
        peer_sequence: cursor.1,
        peer_placement: 0,
        placement: 0,
        sequence_low: 0,
        sequence_high: 0,
        machine: Vec::new(),
        recovering: false,
    })
}

fn place(number: u64, job: u64, tasks: TaskSet, argv: &[&str]) -> Down {
    let spec = JobSpec::new(argv.iter().copied()).encode();
    Down::Place(Box::new(Place {
        number,
        job,
        origin: Origin { site: site_of("parent"), job: "j".into(), principal: "p".into(), submitted_ms: 0 },
        spec_hash: BlobHash::of(&spec),
        spec,
        array_size: tasks.end(),
        attempt_cost_max: 0,
        tasks,
        share: "s".into(),
        attempts: 0,
        want: Want { job, ..Want::default() },
        route: vec![site_of("parent")],
        hops_left: HOPS_MAX,
        chain: Vec::new(),
        known: Known::Nothing,
    }))
}

fn attached(slots: u32) -> ChildEnd {
    let mut c = child(slots);
    assert!(matches!(&c.attach()[..], [Up::Hello(_)]));
    assert!(matches!(&c.down(hello((0, 0)), 0)[..], [Up::Advert(_)]));
    c
}

fn events(ups: &[Up]) -> Vec<(u64, EventKind)> {
    let batches = ups.iter().filter_map(|u| if let Up::Events(e) = u { Some(e) } else { None });
    batches.flat_map(|e| (e.first..).zip(e.events.iter().map(|e| e.what.clone()))).collect()
}

#[test]
fn an_old_parent_or_an_old_child_is_told_everything() {
    let mut c = attached(2);
    c.down(place(1, 1, TaskSet::range(0..2), &["sleep", "9"]), 0);
    c.down(Down::Ack { incarnation: 1, sequence: 1 }, 0);
    let state = |ups: Vec<Up>| ups.into_iter().find_map(|u| if let Up::Resync(r) = u { Some(r) } else { None });
    c.attach();
    let full = state(c.down(hello((0, 0)), 1)).expect("event 1 is no longer kept");
    assert_eq!((full.sequence, full.ranges.len(), full.ranges[0].phase), (1, 1, Phase::Running));
    c.attach();
    assert_eq!(None, state(c.down(hello((1, 1)), 2)));
    c.attach();
    let full = state(c.down(hello((1, 77)), 3)).expect("the parent knows more than this store issued");
    assert_eq!((2, 0), (full.incarnation, full.sequence));
    assert!(c.down(Down::Stale(vec![Attempts { number: 44, job: 1, tasks: TaskSet::one(0) }]), 3).is_empty(), "unknown");
    c.wipe();
    assert!(matches!(&c.attach()[..], [Up::Hello(h)] if (h.incarnation, h.peer_placement, h.sequence_high) == (3, 0, 0)));
}

#[test]
fn events_wait_for_acknowledgements() {
    let mut c = attached(1);
    let mut said = Vec::new();
    let n = EVENTS_IN_FLIGHT_MAX + 10;
    for job in 1..=n {
        said.extend(events(&c.down(Down::Want(Want { job, version: 1, ranges: Vec::new() }), 0)));
    }
    assert_eq!(EVENTS_IN_FLIGHT_MAX, said.len() as u64);
    said.extend(events(&c.down(Down::Ack { incarnation: 1, sequence: 10 }, 0)));
    assert_eq!((1..=n).collect::<Vec<_>>(), said.iter().map(|e| e.0).collect::<Vec<_>>());
}

#[test]
fn local_commands_end_what_runs() {
    let mut c = attached(2);
    c.acting.never_end = true;
    c.down(place(1, 1, TaskSet::range(0..2), &["true"]), 0);
    assert_eq!(None, events(&c.tick(1_000_000)).first());
    c.lose_running();
    let ups = c.tick(1_000_001);
    assert!(matches!(&events(&ups)[..], [(2, EventKind::Ended(e))] if e.lost && e.phase == Phase::Failed), "{ups:?}");
    c.acting = super::Acting { fail_next: Some((1, 9)), ..Default::default() };
    let mut ups = c.down(place(2, 1, TaskSet::range(2..4), &["true"]), 1_000_002);
    ups.extend(c.tick(1_000_003));
    let exits: Vec<u32> = events(&ups).iter().filter_map(|(_, e)| if let EventKind::Ended(e) = e { Some(e.exit[0]) } else { None }).collect();
    assert_eq!(vec![0, 9], exits);
    c.down(place(3, 1, TaskSet::one(9), &["sleep", "9"]), 1_000_004);
    c.end_running(Exit::Signal(9));
    assert!(matches!(&events(&c.tick(1_000_005))[..], [.., (_, EventKind::Ended(e))] if e.exit == [265]));
}

#[derive(Clone, Debug)]
enum Step {
    Place(u64, u32, u32),
    Want(u64, WantValue, u32),
    Stale(u64),
    Reconnect,
    Ack,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let value = prop_oneof![Just(WantValue::Run), Just(WantValue::Hold), Just(WantValue::Return), Just(WantValue::Cancel)];
    prop_oneof![
        4 => (1u64..4, 0u32..20, 1u32..4).prop_map(|(j, from, n)| Step::Place(j, from, n)),
        2 => (1u64..4, value, 1u32..25).prop_map(|(j, v, n)| Step::Want(j, v, n)),
        1 => (1u64..9).prop_map(Step::Stale),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Ack),
        4 => (0u64..30).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Whatever is said, in whatever order: sequences have no gap, each task of a placement is accepted or returned, and what was accepted is returned or
    /// ends once; no more run than there are slots; nothing starts that is not wished to run.
    #[test]
    fn each_task_has_one_end(steps in proptest::collection::vec(step(), 1..60)) {
        let mut c = attached(3);
        let (mut now, mut number, mut cursor, mut version) = (0, 0, 0, 0);
        let mut barred: BTreeMap<u64, TaskSet> = BTreeMap::new();
        let mut state: BTreeMap<u64, (u64, TaskSet, TaskSet)> = BTreeMap::new();
        let mut starts = 0;
        let end = (1..4).map(|j| Step::Want(j, WantValue::Run, 99)).chain([Step::Pass(9_999), Step::Pass(9_999)]);
        for s in steps.into_iter().chain(end) {
            let ups = match s {
                Step::Place(job, from, n) => {
                    number += 1;
                    let tasks = TaskSet::range(from..from + n);
                    state.insert(number, (job, tasks.clone(), TaskSet::new()));
                    c.down(place(number, job, tasks, &["sleep", "0.010"]), now)
                }
                Step::Want(job, value, n) => {
                    version += 1;
                    let mut want = Want { job, version, ranges: Vec::new() };
                    want.set(value, &TaskSet::range(0..n));
                    let all = TaskSet::range(0..99);
                    barred.insert(job, all.subtract(&want.tasks(WantValue::Run, &all)));
                    c.down(Down::Want(want), now)
                }
                Step::Stale(number) => c.down(Down::Stale(vec![Attempts { number, job: 1, tasks: TaskSet::range(0..99) }]), now),
                Step::Reconnect => {
                    c.detach();
                    c.attach();
                    c.down(hello((1, cursor)), now)
                }
                Step::Ack => c.down(Down::Ack { incarnation: 1, sequence: cursor }, now),
                Step::Pass(ms) => {
                    now += ms;
                    c.tick(now)
                }
            };
            for up in ups {
                let Up::Events(e) = up else { continue };
                prop_assert_eq!(e.first, cursor + 1);
                cursor += e.events.len() as u64;
                for event in e.events {
                    let Some((_, waiting, alive)) = state.get_mut(&event.of.number) else { continue };
                    let tasks = event.of.tasks;
                    match event.what {
                        EventKind::Accepted => {
                            prop_assert!(tasks.subtract(waiting).is_empty());
                            *waiting = waiting.subtract(&tasks);
                            *alive = alive.union(&tasks);
                        }
                        EventKind::Returned(_) => {
                            prop_assert!(tasks.subtract(&waiting.union(alive)).is_empty());
                            (*waiting, *alive) = (waiting.subtract(&tasks), alive.subtract(&tasks));
                        }
                        EventKind::Ended(_) => {
                            prop_assert!(tasks.subtract(alive).is_empty());
                            *alive = alive.subtract(&tasks);
                        }
                        EventKind::Held(_) | EventKind::Released | EventKind::WantStored { .. } => {}
                    }
                }
            }
            for (n, t) in &c.starts()[starts..] {
                prop_assert!(!barred.get(&state[n].0).is_some_and(|b| b.contains(*t)), "a task started that is not wished to run");
            }
            starts = c.starts().len();
            prop_assert!(c.running().values().map(TaskSet::len).sum::<u64>() <= 3);
        }
        let mut once = c.starts().to_vec();
        once.sort();
        once.dedup();
        prop_assert_eq!(once.len(), c.starts().len());
        for (n, (_, waiting, alive)) in state {
            prop_assert!(waiting.is_empty() && alive.is_empty(), "placement {} has no end: {} {}", n, waiting, alive);
        }
    }
}
