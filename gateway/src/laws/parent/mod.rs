//! The parent's end of all links of a backend, as small as a perfect parent can be: it keeps cursors and registers, says again what is due after each
//! hello, and checks on every message what must always hold. No scheduling, no store.

mod hear;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use intergrid_proto::limits::HOPS_MAX;
use intergrid_proto::link::{Advert, Attempts, Down, Ended, EventKind, Hello, Hop, Known, Origin, Place, ResyncRange, Want, WantValue};
use intergrid_proto::{BlobHash, JobSpec, Reason, SiteId, TaskSet};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::backend::{Backend, FromChild};

const SINK_MESSAGES_MAX: usize = 1_024;

/// What is known of a child.
#[derive(Debug)]
pub struct View {
    /// Its latest hello.
    pub hello: Hello,
    /// Is its link up?
    pub attached: bool,
    /// Hellos so far.
    pub hellos: u64,
    /// What it offers.
    pub advert: Option<Advert>,
    /// Of its store, and the highest event that counts as committed here.
    pub cursor: (u64, u64),
    /// Events that came a second time.
    pub repeats: u64,
    /// Full states that came, and the ranges of the latest.
    pub resyncs: (u64, Vec<ResyncRange>),
    /// Highest register versions that it has stored, by job.
    pub wants_stored: BTreeMap<u64, u64>,
    /// Content that it asked for.
    pub needs: BTreeSet<BlobHash>,
    seen: u64,
    log: BTreeMap<u64, (Attempts, std::mem::Discriminant<EventKind>)>,
    carried: BTreeSet<BlobHash>,
    issued: u64,
    parts: Vec<ResyncRange>,
}

/// A placement and all that was said of it.
#[derive(Debug)]
pub struct Placement {
    /// Where it went.
    pub child: SiteId,
    /// As it was sent.
    pub place: Place,
    /// Slots of one task there.
    pub cost: u64,
    /// Durable at the child.
    pub accepted: TaskSet,
    /// Neither returned nor ended.
    pub alive: TaskSet,
    /// Given back.
    pub returned: Vec<(TaskSet, Reason)>,
    /// Ended.
    pub ended: Vec<(TaskSet, Ended)>,
    /// Said to run, at least once.
    pub ran: TaskSet,
    taken_back: usize,
}

struct Job {
    spec: Vec<u8>,
    hash: BlobHash,
    decoded: JobSpec,
    array_size: u32,
    want: Want,
    sent_to: BTreeSet<SiteId>,
}

/// The parent's end of all links of a backend.
pub struct Parent {
    /// What is driven.
    pub backend: Arc<dyn Backend>,
    /// Children that have ever said hello.
    pub children: BTreeMap<SiteId, View>,
    /// Every placement of this run.
    pub placements: BTreeMap<u64, Placement>,
    /// Acknowledge events as they come.
    pub acking: bool,
    me: Hop,
    incarnation: u64,
    heard: mpsc::Receiver<(SiteId, FromChild)>,
    jobs: BTreeMap<u64, Job>,
    number: u64,
    first_number: u64,
    faults: Vec<String>,
}

impl Parent {
    /// Start the backend, and listen.
    pub fn start(backend: Arc<dyn Backend>, me: Hop) -> Self {
        let (sink, heard) = mpsc::channel(SINK_MESSAGES_MAX);
        backend.clone().start(me.clone(), sink);
        let incarnation = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| u64::try_from(d.as_millis()).unwrap_or(1));
        Parent {
            backend,
            children: BTreeMap::new(),
            placements: BTreeMap::new(),
            acking: true,
            me,
            incarnation,
            heard,
            jobs: BTreeMap::new(),
            number: 0,
            first_number: 0,
            faults: Vec::new(),
        }
    }

    /// A new job; its number.
    pub fn job(&mut self, spec: JobSpec, array_size: u32) -> u64 {
        // A child may know jobs of an earlier run: the incarnation makes numbers that differ.
        let job = self.incarnation + self.jobs.len() as u64;
        let bytes = spec.encode();
        let want = Want { job, ..Want::default() };
        self.jobs.insert(job, Job { hash: BlobHash::of(&bytes), spec: bytes, decoded: spec, array_size, want, sent_to: BTreeSet::new() });
        job
    }

    /// Place tasks of a job on a share of a child; the placement's number.
    pub fn place(&mut self, child: SiteId, share: &str, job: u64, tasks: TaskSet) -> u64 {
        self.place_by_route(child, share, job, tasks, vec![self.me.site])
    }

    /// As `place`, with a route of the caller's choice.
    pub fn place_by_route(&mut self, child: SiteId, share: &str, job: u64, tasks: TaskSet, route: Vec<SiteId>) -> u64 {
        self.number += 1;
        let number = self.number;
        let Some(j) = self.jobs.get_mut(&job) else { return 0 };
        j.sent_to.insert(child);
        let origin = Origin { site: self.me.site, job: format!("law{job}"), principal: "laws".into(), submitted_ms: 0 };
        let place = Place {
            number,
            job,
            origin,
            spec_hash: j.hash,
            spec: j.spec.clone(),
            tasks: tasks.clone(),
            share: share.into(),
            attempts: 0,
            want: j.want.clone(),
            route,
            hops_left: HOPS_MAX,
            chain: Vec::new(),
            array_size: j.array_size,
            attempt_cost_max: 0,
            known: Known::Nothing,
        };
        let offered = self.children.get(&child).and_then(|c| c.advert.as_ref()).and_then(|a| a.shares.iter().find(|s| s.key == share));
        let cost = offered.map_or(1, |s| s.cost(&j.decoded.shape));
        let (accepted, returned, ended, ran) = (TaskSet::new(), Vec::new(), Vec::new(), TaskSet::new());
        self.placements.insert(number, Placement { child, place, cost, accepted, alive: tasks, returned, ended, ran, taken_back: 0 });
        self.send_place(number);
        number
    }

    /// Send a placement, again or for the first time.
    pub fn send_place(&mut self, number: u64) {
        let Some(p) = self.placements.get(&number) else { return };
        let Some(view) = self.children.get_mut(&p.child) else { return };
        let mut place = p.place.clone();
        if !view.carried.insert(place.spec_hash) {
            place.spec.clear();
        }
        view.issued = view.issued.max(number);
        self.backend.send(p.child, Down::Place(Box::new(place)));
    }

    /// Wish this of tasks of a job, and tell a child and all that have tasks of it.
    pub fn want(&mut self, child: SiteId, job: u64, value: WantValue, tasks: &TaskSet) -> u64 {
        let Some(j) = self.jobs.get_mut(&job) else { return 0 };
        j.want.version += 1;
        j.want.set(value, tasks);
        j.sent_to.insert(child);
        for c in &j.sent_to {
            self.backend.send(*c, Down::Want(j.want.clone()));
        }
        j.want.version
    }

    /// Forget the wishes of a job at this end, as an old copy of a submission would.
    pub fn forget_want(&mut self, job: u64) {
        if let Some(j) = self.jobs.get_mut(&job) {
            j.want = Want { job, ..Want::default() };
        }
    }

    /// Attached children with a share, its key, and the slots that may be placed there now.
    pub fn room(&self) -> Vec<(SiteId, String, u64)> {
        let mut out = Vec::new();
        for (id, c) in self.children.iter().filter(|(_, c)| c.attached) {
            for s in c.advert.iter().flat_map(|a| &a.shares).filter(|s| !s.draining) {
                let mine = self.placements.values().filter(|p| p.child == *id && p.place.share == s.key);
                let outstanding: u64 = mine.map(|p| p.cost * p.alive.len()).sum();
                out.push((*id, s.key.clone(), s.window.saturating_sub(outstanding)));
            }
        }
        out
    }

    /// What came back of placements from this number on, each time once: job and tasks.
    pub fn take_returned(&mut self, from: u64) -> Vec<(u64, TaskSet)> {
        let mut out = Vec::new();
        for p in self.placements.range_mut(from..).map(|(_, p)| p) {
            out.extend(p.returned.iter().skip(p.taken_back).map(|(tasks, _)| (p.place.job, tasks.clone())));
            p.taken_back = p.returned.len();
        }
        out
    }

    /// Tasks of placements from this number on that have neither ended nor come back.
    pub fn alive(&self, from: u64) -> u64 {
        self.placements.range(from..).map(|(_, p)| p.alive.len()).sum()
    }

    /// Go back to an older cursor of a child, as if its later events had not been committed here.
    pub fn rewind(&mut self, child: SiteId, sequence: u64) {
        if let Some(c) = self.children.get_mut(&child) {
            c.cursor.1 = sequence;
        }
    }

    /// Listen until this holds; what is awaited is named where it does not within the time, or where a child breaks a law.
    pub async fn until(&mut self, what: &str, patience: Duration, done: impl Fn(&Parent) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(fault) = self.faults.first() {
                return Err(fault.clone());
            }
            if done(self) {
                return Ok(());
            }
            match timeout_at(deadline, self.heard.recv()).await {
                Ok(Some((child, message))) => self.hear(child, message),
                Ok(None) => return Err(format!("{what}: the backend has ended")),
                Err(_) => return Err(format!("{what}: not within {} ms", patience.as_millis())),
            }
        }
    }

    /// Listen for a while: what must not come, does not come.
    pub async fn settle(&mut self, time: Duration) -> Result<(), String> {
        let _ = self.until("", time, |_| false).await;
        self.faults.first().map_or(Ok(()), |f| Err(f.clone()))
    }

    fn fault(&mut self, child: SiteId, text: String) {
        let name = self.children.get(&child).map_or("?", |c| c.hello.hop.name.as_str());
        self.faults.push(format!("{name}: {text}"));
    }
}
