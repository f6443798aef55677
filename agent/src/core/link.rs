//! The child's end of the link: greeting, cursor, events. The shell asks with [`Core::next_up`] as long as the connection takes
//! messages, so that nothing piles up in it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use intergrid_proto::limits::EVENTS_IN_FLIGHT_MAX;
use intergrid_proto::link::{Attempts, Down, Event, EventKind, Events, Hello, Hint, Orphans, Resync, ResyncRange, Up};
use intergrid_proto::{BlobHash, Phase, Refusal, RefusalKind, TaskSet, pb};

use super::{Action, Core, Stage};
use crate::limits::*;
use crate::spool::record::{Bound, Counters, What};

/// Where the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Away,
    /// Connected; our hello is due.
    Connected,
    /// Our hello is sent.
    Greeted,
    /// Theirs has come.
    Open,
}

/// Specs that this connection has carried, the latest longest.
#[derive(Debug, Default)]
pub(super) struct Specs {
    bytes: BTreeMap<BlobHash, Vec<u8>>,
    order: VecDeque<BlobHash>,
    size: usize,
    dropped: bool,
}

impl Specs {
    pub fn get(&self, hash: &BlobHash) -> Option<&Vec<u8>> {
        self.bytes.get(hash)
    }

    pub fn has_dropped(&self) -> bool {
        self.dropped
    }

    pub fn put(&mut self, hash: BlobHash, bytes: &[u8]) {
        if self.bytes.insert(hash, bytes.to_vec()).is_none() {
            self.order.push_back(hash);
            self.size += bytes.len();
        }
        while self.size > SPECS_KEPT_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            self.size -= self.bytes.remove(&oldest).map_or(0, |b| b.len());
            self.dropped = true;
        }
    }
}

/// What is volatile of the link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) standing: Standing,
    fresh: u64,
    /// A new incarnation: nothing starts before the parent has been heard.
    hold: bool,
    hold_until_ms: u64,
    /// The highest event that the gateway may have seen: of what was loaded, and of what was sent since.
    told: u64,
    /// Highest event sent, durable, and in the batch that is on its way to the disk.
    sent: u64,
    durable: u64,
    committing: u64,
    resync: VecDeque<Resync>,
    pub(super) orphans: VecDeque<Orphans>,
    pub(super) hints: Vec<Hint>,
    pub advert_dirty: bool,
    pub(super) advert_ms: Option<u64>,
    pub(super) advert_version: u64,
    /// Windows advertised of late.
    pub(super) windows: VecDeque<(u64, u64)>,
    /// When events were sent last.
    events_ms: u64,
    /// Slots ended since the rate was last looked at; the rate, per second.
    pub ended_slots: u64,
    pub rate: f64,
    rate_ms: u64,
    pub(super) round_trip_ms: f64,
    probe: Option<(u64, u64)>,
    pub specs: Specs,
}

impl Link {
    pub fn new(now: u64) -> Self {
        Link {
            standing: Standing::Away,
            fresh: 1,
            hold: false,
            hold_until_ms: 0,
            told: 0,
            sent: 0,
            durable: 0,
            committing: 0,
            resync: VecDeque::new(),
            orphans: VecDeque::new(),
            hints: Vec::new(),
            advert_dirty: true,
            advert_ms: None,
            advert_version: 0,
            windows: VecDeque::new(),
            events_ms: 0,
            ended_slots: 0,
            rate: 0.0,
            rate_ms: now,
            round_trip_ms: 0.0,
            probe: None,
            specs: Specs::default(),
        }
    }

    pub fn connected(&mut self, fresh: u64) {
        self.standing = Standing::Connected;
        self.fresh = fresh.max(1);
        self.specs = Specs::default();
    }

    pub fn cut(&mut self, sequence: u64) {
        self.committing = sequence;
    }

    pub fn committed(&mut self) {
        self.durable = self.committing;
    }

    /// What a loaded spool holds is durable.
    pub fn loaded(&mut self, sequence: u64) {
        (self.durable, self.committing, self.told) = (sequence, sequence, sequence);
    }

    pub fn waits_for_open(&self, now: u64) -> bool {
        self.hold || now < self.hold_until_ms
    }

    /// Look at the rate of ends, on a machine of so many slots.
    pub fn measure(&mut self, now: u64, slots: u64) {
        let dt = now.saturating_sub(self.rate_ms);
        // Every slot was freed more than once: no burst, tasks are that short, and the way to a window that keeps up with them is not to be long.
        let is_fast = dt >= RATE_SAMPLE_MS && self.ended_slots > slots;
        if dt >= TICK_MS || is_fast {
            let seen = self.ended_slots as f64 * 1_000.0 / dt as f64;
            let weight = 1.0 - (-(dt as f64) / RATE_WINDOW_MS as f64).exp();
            self.rate = if is_fast && seen > self.rate { seen } else { self.rate + weight * (seen - self.rate) };
            (self.ended_slots, self.rate_ms) = (0, now);
        }
    }

    /// The widest window that the parent may still go by.
    pub fn window_max(&mut self, now: u64, current: u64) -> u64 {
        while self.windows.front().is_some_and(|(at, _)| at + WINDOW_MEMORY_MS < now) {
            self.windows.pop_front();
        }
        self.windows.iter().map(|(_, w)| *w).fold(current, u64::max)
    }
}

impl Core {
    /// Does the gateway hear us?
    pub fn is_attached(&self) -> bool {
        self.link.standing == Standing::Open
    }

    pub(super) fn disconnected(&mut self) {
        let link = &mut self.link;
        link.standing = Standing::Away;
        link.resync.clear();
        link.orphans.clear();
        link.hints.clear();
        link.probe = None;
        (link.advert_ms, link.advert_dirty) = (None, true);
        self.lives.values_mut().for_each(|l| l.hinted = false);
        self.opens.values_mut().for_each(|o| o.hinted_staging = false);
    }

    pub(super) fn down(&mut self, down: Down) {
        match (down, self.link.standing) {
            (Down::Hello(hello), Standing::Greeted) => self.greeted(hello),
            (Down::Hello(_), _) => self.actions.push(Action::Reconnect("the gateway said hello out of turn".into())),
            (_, Standing::Away | Standing::Connected | Standing::Greeted) => {
                self.actions.push(Action::Reconnect("the gateway did not say hello first".into()));
            }
            (Down::Stale(attempts), Standing::Open) => self.stale(attempts),
            (Down::Want(want), Standing::Open) => self.want(want),
            (Down::Place(place), Standing::Open) => self.place(*place),
            (Down::Ack { incarnation, sequence }, Standing::Open) => self.acked(incarnation, sequence),
            // One machine has nobody to tell of demand.
            (Down::Demand(_) | Down::Saw(_) | Down::Resent, Standing::Open) => {}
            (Down::Resync, Standing::Open) => self.resync(),
            (Down::Open(open), Standing::Open) => self.only(open),
        }
    }

    fn greeted(&mut self, hello: Hello) {
        let gateway = hello.hop.site;
        match self.state.gateway {
            Some(known) if known == gateway && *self.site == *hello.hop.name => {}
            Some(known) if known != gateway => {
                let message = format!("this spool belongs to gateway {known}, the one at the configured endpoint is {} ({gateway})", hello.hop.name);
                let remedy = "correct the endpoint; to abandon the tasks of the old gateway, remove the state directory";
                return self.actions.push(Action::Refuse(Refusal::new(RefusalKind::Conflict, message).remedy(remedy)));
            }
            _ => {
                self.site = Arc::from(hello.hop.name.as_str());
                let bound = Bound { gateway: gateway.0.to_vec(), machine: self.state.machine.clone(), name: hello.hop.name };
                self.record(What::Bound(bound));
            }
        }
        let c = self.state.counters;
        // What was found since this spool was read has numbers too, and was told to nobody.
        if hello.peer_incarnation == c.incarnation && hello.peer_sequence > self.link.told {
            return self.renew();
        }
        let renewed = c.peer != 0 && hello.incarnation != c.peer;
        if renewed {
            self.orphan_all(hello.incarnation);
        } else if hello.incarnation != c.peer {
            self.renumber(Counters { peer: hello.incarnation, ..c });
        }
        if self.link.hold {
            (self.link.hold, self.link.hold_until_ms) = (false, self.now + OPEN_WAIT_MS);
        }
        self.link.standing = Standing::Open;
        let cursor = if hello.peer_incarnation == c.incarnation { hello.peer_sequence } else { 0 };
        let strange = hello.peer_incarnation != 0 && hello.peer_incarnation != c.incarnation;
        self.forget(cursor);
        self.list_orphans(hello.recovering || renewed);
        if strange || cursor + 1 < self.state.sequence_low() { self.resync() } else { self.link.sent = cursor }
    }

    /// All that the gateway holds open here. What else an old store knows of was ended or given to others since: to start it would be once too often.
    fn only(&mut self, open: Vec<Attempts>) {
        let mut counts: BTreeMap<u64, TaskSet> = BTreeMap::new();
        for a in open {
            let tasks = counts.entry(a.number).or_default();
            *tasks = tasks.union(&a.tasks);
        }
        let rest = |number: &u64, all: &TaskSet| counts.get(number).map_or_else(|| all.clone(), |c| all.subtract(c));
        let all = self.state.placements.iter().flat_map(|(number, p)| self.names(*number, &p.open)).filter(|n| !n.is_orphan);
        let all = all.map(|n| Attempts { number: n.number, job: n.job, tasks: rest(&n.number, &n.tasks) });
        let gone = all.filter(|a| !a.tasks.is_empty()).collect();
        self.stale(gone);
        (self.link.hold, self.link.hold_until_ms) = (false, 0);
    }

    /// This store is older than what the gateway has seen of it: what it says from now on is said under another incarnation.
    fn renew(&mut self) {
        let fresh = Counters { incarnation: self.link.fresh, sequence: 0, acked: 0, ..self.state.counters };
        self.renumber(fresh);
        self.link.hold = true;
        self.actions.push(Action::Reconnect("this agent's store is older than what its gateway has seen: it takes a new incarnation".into()));
    }

    /// New counters, the kept events behind them.
    fn renumber(&mut self, counters: Counters) {
        let events: Vec<Event> = self.state.events.iter().cloned().collect();
        let same = counters.incarnation == self.state.counters.incarnation;
        let before = if same { counters.sequence - events.len() as u64 } else { 0 };
        self.record(What::Counters(Counters { sequence: before, ..counters }));
        events.into_iter().for_each(|e| self.record(What::Event(pb::Event::from(e))));
        if !same {
            (self.link.durable, self.link.sent, self.link.told) = (0, 0, 0);
            self.link.committing = 0;
        }
    }

    fn forget(&mut self, sequence: u64) {
        if sequence > self.state.counters.acked && sequence <= self.link.durable {
            self.record_lazily(What::Acked(sequence));
        }
    }

    fn acked(&mut self, incarnation: u64, sequence: u64) {
        if incarnation != self.state.counters.incarnation {
            return;
        }
        self.forget(sequence);
        if let Some((probe, at)) = self.link.probe
            && sequence >= probe
        {
            let measured = self.now.saturating_sub(at) as f64;
            let old = self.link.round_trip_ms;
            self.link.round_trip_ms = if old == 0.0 { measured } else { 0.8 * old + 0.2 * measured };
            self.link.probe = None;
        }
    }

    /// The full state as it was before the first event that is kept; those events follow, so that nothing is said twice and nothing is left out.
    fn resync(&mut self) {
        let (incarnation, sequence) = (self.state.counters.incarnation, self.state.sequence_low() - 1);
        let mut ranges: Vec<ResyncRange> = self.state.told().map(|of| range(of.clone(), Phase::Placed)).collect();
        for (number, p) in &self.state.placements {
            let mut phases: BTreeMap<Phase, TaskSet> = BTreeMap::new();
            let mut quiet = p.open.clone();
            for ((_, task), live) in self.lives.range((*number, 0)..=(*number, u32::MAX)) {
                let phase = match live.stage {
                    Stage::Claiming | Stage::Ready | Stage::Starting => continue,
                    Stage::Running(_) if live.suspended => Phase::Suspended,
                    Stage::Running(_) => Phase::Running,
                    Stage::Uploading => Phase::StagingOut,
                };
                quiet.remove(*task..*task + 1);
                phases.entry(phase).or_default().insert(*task..*task + 1);
            }
            if !quiet.is_empty() {
                phases.insert(Phase::Placed, quiet);
            }
            for (phase, tasks) in phases {
                let names = self.names(*number, &tasks).into_iter().filter(|n| !n.is_orphan);
                ranges.extend(names.map(|n| range(Attempts { number: n.number, job: n.job, tasks: n.tasks }, phase)));
            }
        }
        let mut parts: Vec<Vec<ResyncRange>> = ranges.chunks(RESYNC_RANGES_MAX).map(<[_]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let n = parts.len();
        self.link.resync = parts.into_iter().enumerate().map(|(i, ranges)| Resync { incarnation, sequence, ranges, last: i + 1 == n }).collect();
        (self.link.sent, self.link.told) = (sequence, self.link.told.max(sequence));
    }

    /// The next message to the gateway, where one is due.
    pub fn next_up(&mut self, now: u64) -> Option<Up> {
        self.now = now;
        match self.link.standing {
            Standing::Away | Standing::Greeted => return None,
            Standing::Connected => {
                self.link.standing = Standing::Greeted;
                return Some(Up::Hello(self.hello()));
            }
            Standing::Open => {}
        }
        if let Some(part) = self.link.orphans.pop_front() {
            return Some(Up::Orphans(part));
        }
        if let Some(part) = self.link.resync.pop_front() {
            return Some(Up::Resync(part));
        }
        if let Some(events) = self.next_events() {
            return Some(Up::Events(events));
        }
        if self.advert_due_in(now) == Some(0) {
            return Some(Up::Advert(self.advert()));
        }
        let hints = std::mem::take(&mut self.link.hints);
        (!hints.is_empty()).then_some(Up::Hints(hints))
    }

    fn hello(&self) -> Hello {
        let c = &self.state.counters;
        Hello {
            hop: self.me.clone(),
            incarnation: c.incarnation,
            peer_incarnation: c.peer,
            peer_sequence: c.acked,
            peer_placement: c.highest,
            placement: 0,
            sequence_low: self.state.sequence_low().min(self.link.durable + 1),
            sequence_high: self.link.durable,
            machine: self.state.machine.clone(),
            recovering: false,
        }
    }

    /// The first and the last event of the next message, where there is one.
    fn untold(&self) -> Option<(u64, u64)> {
        let first = (self.link.sent + 1).max(self.state.sequence_low());
        let last = self.link.durable.min(self.state.counters.acked + EVENTS_IN_FLIGHT_MAX).min(first + EVENTS_PER_MESSAGE_MAX as u64 - 1);
        (first <= last).then_some((first, last))
    }

    /// Between two messages of ends, in ms; 0 where ends are rare. Not long where a slot is idle and nothing is here for it.
    pub(super) fn told_pace_ms(&self) -> u64 {
        let rate = self.link.rate;
        let idle = self.used < self.slots() && self.ready.is_empty() && self.claims.is_empty() && self.committing_claims.is_empty();
        match rate < PACED_RATE_MIN {
            true => 0,
            false if idle => PACE_MS,
            false => ((1_000.0 * TOLD_SLOTS / rate) as u64).clamp(PACE_MS, TOLD_PACE_MAX_MS),
        }
    }

    /// Milliseconds until the gateway is told of ends that are durable; None: of none.
    pub fn events_due_in(&self, now: u64) -> Option<u64> {
        let untold = self.untold().filter(|_| self.is_attached())?;
        if self.are_many(untold) { Some(0) } else { Some((self.link.events_ms + self.told_pace_ms()).saturating_sub(now)) }
    }

    /// As many ends as are told at a time, whatever the pace: the gateway has no window left before it hears of them.
    fn are_many(&self, (first, last): (u64, u64)) -> bool {
        let low = self.state.sequence_low();
        let mut tasks = 0;
        self.state.events.range((first - low) as usize..=(last - low) as usize).filter(|e| matches!(e.what, EventKind::Ended(_))).any(|e| {
            tasks += e.of.tasks.len();
            tasks as f64 >= TOLD_SLOTS
        })
    }

    fn next_events(&mut self) -> Option<Events> {
        let (low, now) = (self.state.sequence_low(), self.now);
        if self.events_due_in(now)? > 0 {
            return None;
        }
        let (first, last) = self.untold()?;
        self.link.events_ms = now;
        let mut tasks = 0;
        let mut events = Vec::new();
        for event in self.state.events.range((first - low) as usize..=(last - low) as usize) {
            tasks += event.of.tasks.len() as usize;
            if tasks > TASKS_PER_EVENT_MAX && !events.is_empty() {
                break;
            }
            let mut event = event.clone();
            if let EventKind::Ended(e) = &mut event.what {
                e.age_ms.iter_mut().for_each(|at| *at = now.saturating_sub(*at));
            }
            events.push(event);
        }
        self.link.sent = first + events.len() as u64 - 1;
        self.link.told = self.link.told.max(self.link.sent);
        self.link.probe = self.link.probe.or(Some((self.link.sent, now)));
        Some(Events { incarnation: self.state.counters.incarnation, first, events })
    }
}

fn range(of: Attempts, phase: Phase) -> ResyncRange {
    ResyncRange { of, phase, ended: None }
}
