//! The child's end of a link as a pure machine: what a perfect child answers to each message. One parent, one machine, one share.
//!
//! Invariants: a placement number at or below the highest seen changes nothing; event sequences have no gaps; each accepted task gets exactly one
//! `Returned` or `Ended`; no task starts that the register does not wish to run. Nothing runs here: payloads are a tiny set of programs (`true`, `false`,
//! `echo`, `sleep N`, `sh -c 'exit N'`) acted out on the caller's clock. It is what the fake backend and the tests' agents and gateways are made of.

mod orphans;
mod payload;
mod tasks;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use intergrid_proto::limits::{ADVERT_INTERVAL_MS, CREDIT_MS, EVENTS_IN_FLIGHT_MAX};
use intergrid_proto::link::{Advert, Attempts, Down, Ended, Event, EventKind, Events, Hello, Hint, Hop, Origin, Resync, ResyncRange, Up, Want};
use intergrid_proto::{BlobHash, Exit, JobSpec, Phase, Reason, ReasonKind, Share, SiteId, TaskSet};

use self::payload::file_name;

/// Placements that are over and are remembered, should the parent lose its store.
const OVER_KEPT_MAX: usize = 256;
/// Events of one message.
const EVENTS_PER_MESSAGE_MAX: usize = 512;

/// What the payloads do, beyond what they are told.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Acting {
    /// A payload that does not say how long it takes, takes so long.
    pub delay_ms: u64,
    /// The next so many starts end with this exit code.
    pub fail_next: Option<(u32, u8)>,
    /// Payloads that start from now on never end by themselves.
    pub never_end: bool,
}

#[derive(Debug, Default)]
struct Job {
    spec: Option<JobSpec>,
    want: Want,
}

#[derive(Debug)]
struct Run {
    started_ms: u64,
    due_ms: Option<u64>,
    exit: Exit,
}

#[derive(Debug)]
struct Placed {
    job: u64,
    attempts: u32,
    cost: u64,
    waiting: TaskSet,
    held: TaskSet,
    running: BTreeMap<u32, Run>,
    ended: Vec<(TaskSet, Ended)>,
    name: Name,
    /// Sequence of its latest event: acknowledged with nothing left alive, the placement is forgotten.
    last: u64,
}

/// By what a parent with a new store knows a placement again.
#[derive(Clone, Debug)]
struct Name {
    incarnation: u64,
    origin: Origin,
    spec_hash: BlobHash,
    array_size: u32,
}

impl Placed {
    fn alive(&self) -> u64 {
        self.waiting.len() + self.running.len() as u64
    }
}

/// A child with its durable state (here: in memory) and its connection's.
#[derive(Debug)]
pub struct ChildEnd {
    hop: Hop,
    slots: u32,
    memory_bytes: u64,
    /// Slots offered beyond the machine's.
    pub lookahead: u64,
    /// What it says of its tasks' time.
    pub time_max_ms: u64,
    /// How payloads behave.
    pub acting: Acting,
    incarnation: u64,
    parent: (u64, u64),
    jobs: BTreeMap<u64, Job>,
    /// Carried by this connection: each comes once.
    specs: BTreeMap<BlobHash, JobSpec>,
    placed: BTreeMap<u64, Placed>,
    /// Those of which all is over and acknowledged.
    over: BTreeMap<u64, Placed>,
    /// Placements below this number may be forgotten.
    complete_from: u64,
    events: VecDeque<Event>,
    low: u64,
    starts: Vec<(u64, u32)>,
    open: bool,
    sent: u64,
    hints: Vec<(u64, u32)>,
    advert: Option<(u64, Advert)>,
    versions: u64,
    now_ms: u64,
}

impl ChildEnd {
    /// A child of this name and size, with an empty store of this incarnation.
    pub fn new(hop: Hop, incarnation: u64, slots: u32, memory_bytes: u64) -> Self {
        ChildEnd {
            hop,
            slots,
            memory_bytes,
            lookahead: 0,
            time_max_ms: 0,
            acting: Acting::default(),
            incarnation,
            parent: (0, 0),
            jobs: BTreeMap::new(),
            specs: BTreeMap::new(),
            placed: BTreeMap::new(),
            over: BTreeMap::new(),
            complete_from: 0,
            events: VecDeque::new(),
            low: 1,
            starts: Vec::new(),
            open: false,
            sent: 0,
            hints: Vec::new(),
            advert: None,
            versions: 0,
            now_ms: 0,
        }
    }

    /// Who it is.
    pub fn hop(&self) -> &Hop {
        &self.hop
    }

    /// Every start of a payload, in order: placement and task.
    pub fn starts(&self) -> &[(u64, u32)] {
        &self.starts
    }

    /// Tasks that run now, by placement.
    pub fn running(&self) -> BTreeMap<u64, TaskSet> {
        self.placed.iter().filter(|(_, p)| !p.running.is_empty()).map(|(n, p)| (*n, p.running.keys().copied().collect())).collect()
    }

    /// Tasks of one job (the parent's number): waiting and running.
    pub fn counts(&self, job: u64) -> (u64, u64) {
        let of = self.placed.values().filter(|p| p.job == job);
        of.fold((0, 0), |c, p| (c.0 + p.waiting.len(), c.1 + p.running.len() as u64))
    }

    /// What a task of this job writes to stdout, where the job is known.
    pub fn stdout(&self, job: u64, task: u32) -> Option<Vec<u8>> {
        let spec = self.jobs.get(&job)?.spec.as_ref()?;
        let words: Vec<String> = spec.argv.iter().map(|a| intergrid_proto::spec::substitute(a, task)).collect();
        let (program, rest) = words.split_first()?;
        Some(if file_name(program) == "echo" { format!("{}\n", rest.join(" ")).into_bytes() } else { Vec::new() })
    }

    /// A connection is there: the child speaks first.
    pub fn attach(&mut self) -> Vec<Up> {
        self.detach();
        vec![Up::Hello(Hello {
            hop: self.hop.clone(),
            incarnation: self.incarnation,
            peer_incarnation: self.parent.0,
            peer_sequence: 0,
            peer_placement: self.parent.1,
            placement: 0,
            sequence_low: self.low,
            sequence_high: self.high(),
            machine: Vec::new(),
            recovering: false,
        })]
    }

    /// The connection is gone; payloads go on.
    pub fn detach(&mut self) {
        self.open = false;
        self.specs.clear();
        self.hints.clear();
        self.advert = None;
    }

    /// The parent says something.
    pub fn down(&mut self, message: Down, now_ms: u64) -> Vec<Up> {
        self.now_ms = self.now_ms.max(now_ms);
        let mut out = Vec::new();
        match message {
            Down::Hello(h) => self.open(&h, &mut out),
            Down::Stale(attempts) => attempts.iter().for_each(|a| self.fence(a)),
            Down::Want(want) => self.want(want, true),
            Down::Place(place) => self.place(*place),
            Down::Ack { incarnation, sequence } => self.acknowledged(incarnation, sequence),
            // One parent: all the credit is its already. An open placement that is not known here never came; the full state has said so.
            Down::Demand(_) | Down::Saw(_) | Down::Open(_) | Down::Resent => {}
            Down::Resync => self.resync(&mut out),
        }
        out.extend(self.tick(now_ms));
        out
    }

    /// Time passes, or a local command was given: start what may start, end what is due, say what is unsaid.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Up> {
        self.now_ms = self.now_ms.max(now_ms);
        self.finish_due();
        self.start_waiting();
        let mut out = Vec::new();
        if self.open {
            self.say(&mut out);
        }
        out
    }

    /// When `tick` has something to do next.
    pub fn next_due(&self) -> Option<u64> {
        let runs = self.placed.values().flat_map(|p| p.running.values()).filter_map(|r| r.due_ms).min();
        let advert = match &self.advert {
            Some((at, last)) if self.open => {
                let same = last.shares == vec![self.share()];
                Some(at + if same { CREDIT_MS / 3 } else { ADVERT_INTERVAL_MS })
            }
            Some(_) | None => None,
        };
        runs.into_iter().chain(advert).min()
    }

    /// Local command: all that runs ends now, so. Said at the next `tick`.
    pub fn end_running(&mut self, exit: Exit) {
        self.stop_where(|_, _| true, exit, None, false);
    }

    /// Local command: the machine that ran it is gone, without exit records.
    pub fn lose_running(&mut self) {
        let reason = Reason::new(ReasonKind::ExitUnknown, "the machine is gone");
        self.stop_where(|_, _| true, Exit::Unknown, Some((Phase::Failed, reason)), true);
    }

    /// Local command: the store is lost with all that ran; a new incarnation begins.
    pub fn wipe(&mut self) {
        let fresh = ChildEnd::new(self.hop.clone(), self.incarnation + 1, self.slots, self.memory_bytes);
        let old = std::mem::replace(self, fresh);
        (self.lookahead, self.acting, self.starts, self.now_ms) = (old.lookahead, old.acting, old.starts, old.now_ms);
    }

    fn high(&self) -> u64 {
        self.low + self.events.len() as u64 - 1
    }

    fn open(&mut self, h: &Hello, out: &mut Vec<Up>) {
        let renamed = self.parent.0 != 0 && h.incarnation != self.parent.0;
        self.parent.0 = h.incarnation;
        if renamed {
            self.orphan_all();
        }
        let mut resync = h.peer_incarnation != self.incarnation && h.peer_incarnation != 0;
        let mut cursor = if h.peer_incarnation == self.incarnation { h.peer_sequence } else { 0 };
        if cursor > self.high() {
            // The parent has seen events that this store never issued: it is an old copy.
            self.incarnation += 1;
            (self.events, self.low) = (VecDeque::new(), 1);
            (resync, cursor) = (true, 0);
        }
        self.open = true;
        self.sent = cursor;
        self.advert = None;
        self.hints =
            self.placed.iter().filter(|(_, p)| p.name.incarnation == h.incarnation).flat_map(|(n, p)| p.running.keys().map(|t| (*n, *t))).collect();
        self.advertise(out);
        self.list_orphans(h.recovering || renamed, out);
        if resync || cursor + 1 < self.low {
            self.resync(out);
        } else {
            self.acknowledged(self.incarnation, cursor);
        }
    }

    fn resync(&mut self, out: &mut Vec<Up>) {
        let mut ranges = Vec::new();
        for (number, p) in self.placed.iter().filter(|(_, p)| p.name.incarnation == self.parent.0) {
            let of = |tasks: TaskSet| Attempts { number: *number, job: p.job, tasks };
            let running: TaskSet = p.running.keys().copied().collect();
            for (tasks, phase) in [(p.waiting.clone(), Phase::Placed), (running, Phase::Running)] {
                if !tasks.is_empty() {
                    ranges.push(ResyncRange { of: of(tasks), phase, ended: None });
                }
            }
            ranges.extend(p.ended.iter().map(|(t, e)| ResyncRange { of: of(t.clone()), phase: e.phase, ended: Some(e.clone()) }));
        }
        self.sent = self.high();
        out.push(Up::Resync(Resync { incarnation: self.incarnation, sequence: self.sent, ranges, last: true }));
    }

    fn acknowledged(&mut self, incarnation: u64, sequence: u64) {
        if incarnation != self.incarnation {
            return;
        }
        while self.low <= sequence && self.events.pop_front().is_some() {
            self.low += 1;
        }
        let parent = self.parent.0;
        let (over, placed) =
            std::mem::take(&mut self.placed).into_iter().partition(|(_, p)| p.alive() == 0 && p.last <= sequence && p.name.incarnation == parent);
        self.placed = placed;
        self.over.extend::<BTreeMap<_, _>>(over);
        while self.over.len() > OVER_KEPT_MAX {
            self.complete_from = self.over.pop_first().map_or(self.complete_from, |(n, _)| n + 1);
        }
    }

    fn emit(&mut self, number: u64, job: u64, tasks: TaskSet, what: EventKind) {
        if tasks.is_empty() && number != 0 {
            return;
        }
        if let (Some(p), EventKind::Ended(e)) = (self.placed.get_mut(&number), &what) {
            p.ended.push((tasks.clone(), e.clone()));
        }
        if self.placed.get(&number).is_some_and(|p| p.name.incarnation != self.parent.0) {
            return; // An orphan: its parent has lost the name of it.
        }
        self.events.push_back(Event { of: Attempts { number, job, tasks }, what });
        let high = self.high();
        if let Some(p) = self.placed.get_mut(&number) {
            p.last = high;
        }
    }

    /// What it offers now.
    pub fn share(&self) -> Share {
        let used: u64 = self.placed.values().map(|p| p.cost * p.running.len() as u64).sum();
        let free = u64::from(self.slots).saturating_sub(used);
        Share {
            key: format!("{}/machine", self.hop.site),
            origin: self.hop.site,
            origin_name: self.hop.name.clone(),
            path: vec![self.hop.site],
            fit_version: 1,
            machine_slots: self.slots,
            machine_memory_bytes: self.memory_bytes,
            architecture: std::env::consts::ARCH.into(),
            slots_total: u64::from(self.slots),
            machines: 1,
            slots_free: free,
            largest_free: u32::try_from(free).unwrap_or(self.slots),
            window: u64::from(self.slots) + self.lookahead,
            credit_ms: CREDIT_MS,
            waiting: self.placed.values().map(|p| p.waiting.len()).sum(),
            time_max_ms: self.time_max_ms,
            ..Share::default()
        }
    }

    fn advertise(&mut self, out: &mut Vec<Up>) {
        self.versions += 1;
        let advert = Advert { version: self.versions, shares: vec![self.share()], below: Vec::new() };
        self.advert = Some((self.now_ms, advert.clone()));
        out.push(Up::Advert(advert));
    }

    fn say(&mut self, out: &mut Vec<Up>) {
        if self.next_due().is_some_and(|d| d <= self.now_ms) {
            self.advertise(out);
        }
        let hints = std::mem::take(&mut self.hints);
        let mut grouped: BTreeMap<u64, TaskSet> = BTreeMap::new();
        hints.into_iter().for_each(|(n, t)| grouped.entry(n).or_default().insert(t..t + 1));
        let hints = grouped.into_iter().filter_map(|(number, tasks)| {
            let p = self.placed.get(&number)?;
            Some(Hint { of: Attempts { number, job: p.job, tasks }, phase: Phase::Running })
        });
        let hints: Vec<Hint> = hints.collect();
        // Events before hints: a hint names only what has been accepted and has not ended.
        let until = self.high().min(self.low - 1 + EVENTS_IN_FLIGHT_MAX);
        while self.sent < until {
            let from = (self.sent + 1).saturating_sub(self.low) as usize;
            let n = ((until - self.sent) as usize).min(EVENTS_PER_MESSAGE_MAX);
            let events: Vec<Event> = self.events.iter().skip(from).take(n).cloned().collect();
            out.push(Up::Events(Events { incarnation: self.incarnation, first: self.sent + 1, events }));
            self.sent += n as u64;
        }
        if !hints.is_empty() {
            out.push(Up::Hints(hints));
        }
    }
}

/// A site id for tests and fakes: the hash of a name.
pub fn site_of(name: &str) -> SiteId {
    SiteId::of_public_key(name.as_bytes())
}
