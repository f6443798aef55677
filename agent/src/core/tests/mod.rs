//! The decisions, without a machine: each test says what happens and looks at what is done.

use std::collections::BTreeMap;

use intergrid_proto::link::{Attempts, Down, Ended, Event, EventKind, Events, Hello, Hop, Kind, Known, Origin, Place, Up, Want, WantValue};
use intergrid_proto::{BlobHash, Exit, JobSpec, Phase, ReasonKind, SiteId, TaskSet};

use super::*;
use crate::state::State;

mod adopt;
mod linger;
mod link;
mod queue;
mod room;
mod tasks;

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
    /// What is started waits in a queue.
    queues: bool,
    queued: Vec<Key>,
}

fn capacity(slots: u32) -> Capacity {
    Capacity { slots, memory_bytes: u64::from(slots) << 30, gpus: 0, architecture: "test".into() }
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
        let (disk, sent, running, signals, uploads, other, queues, queued) = Default::default();
        let mut a = Agent { core, now: 1_000, disk, sent, running, signals, fetches: 0, uploads, other, queues, queued };
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
            recovering: false,
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
                    Action::Start(task, _) if self.queues => self.queued.push((task.number, task.index)),
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
        origin: Origin { site: GATEWAY, job: "abcdef".into(), principal: "u".into(), submitted_ms: 0 },
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
        attempt_cost_max: 0,
        known: Known::default(),
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
