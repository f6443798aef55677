//! Northward: users and parents. A user's submission and a parent's placement do the same thing: tasks arrive.

use std::collections::BTreeMap;
use std::sync::Arc;

use intergrid_proto::limits::*;
use intergrid_proto::link::{Attempts, Down, Ended, Event, EventKind, Events, Hello, Known, Origin, Place, Up, Want, WantValue};
use intergrid_proto::share::Fit;
use intergrid_proto::{BlobHash, JobSpec, Phase, Reason, ReasonKind, RefusalKind, SiteId, TaskSet};

use super::change::{self, What};
use super::limits::*;
use super::planted::{Plant, planted};
use super::rows::{pieces, spec_key};
use super::state::Spec;
use super::steps::Step;
use super::{Action, Core, Parent};

impl Core {
    /// A job's record as far as its origin and spec go; the spec's row goes with the same commit.
    pub(super) fn new_job(&mut self, origin: &Origin, hash: BlobHash, spec: &Arc<Spec>) -> change::JobNew {
        if self.state.specs.get(&hash).is_none_or(|s| s.strong_count() == 0) {
            self.batch.rows.push((spec_key(hash), Some(spec.bytes.clone())));
            self.state.specs.insert(hash, Arc::downgrade(spec));
        }
        let created_ms = self.now.unix_ms;
        change::JobNew { origin: Some(origin.clone().into()), spec_hash: hash.0.to_vec(), created_ms, ..Default::default() }
    }

    /// Tasks have come to wait here.
    pub(super) fn arrived(&mut self, job: u64) {
        if let Some(j) = self.state.jobs.get_mut(&job) {
            j.moved_ms = self.now.mono_ms;
        }
        self.changed.insert(job);
        self.schedule_due = true;
        self.advert_due = true;
    }

    pub(super) fn set_phase(&mut self, job: u64, tasks: &TaskSet, phase: Phase, anew: bool) {
        if phase == Phase::Queued && !tasks.is_empty() {
            self.waits_anew(job);
        }
        for t in pieces(tasks, u64::MAX, CHANGE_RANGES_MAX) {
            if !t.is_empty() {
                self.record(What::Phase(change::PhaseSet { job, tasks: t.to_runs(), phase: phase as i32, anew, lost: false }));
            }
        }
        self.changed.insert(job);
        self.schedule_due = true;
    }

    /// Make the tasks that are here do what is wished; what is below is told by `send_wants`.
    pub(super) fn enforce_want(&mut self, job: u64) {
        let Some(j) = self.state.jobs.get(&job) else { return };
        let (all, want, attempts_max) = (j.all(), j.want.clone(), j.spec.parsed.attempts_max);
        // What is in doubt may run somewhere: nothing is decided of it here.
        let here = |t: &TaskSet| j.select(t, |c| c.down == 0 && matches!(c.phase(), Some(Phase::Queued | Phase::Held)) && !c.is_doubtful());
        let cancel = here(&want.tasks(WantValue::Cancel, &all));
        let give_back = if j.parent.is_some() { here(&want.tasks(WantValue::Return, &all)) } else { TaskSet::new() };
        let hold = j.select(&want.tasks(WantValue::Hold, &all), |c| c.phase() == Some(Phase::Queued));
        let run = want.tasks(WantValue::Run, &all);
        let release = j.select(&run, |c| c.phase() == Some(Phase::Held) && c.down == 0 && u32::from(c.attempts) < attempts_max && !c.is_doubtful());
        if !cancel.is_empty() {
            let reason = Reason::new(ReasonKind::CancelledByUser, "cancelled before it was started");
            self.finish_by_attempts(job, &cancel, |a| Ended::not_started(Phase::Cancelled, reason.clone(), a));
        }
        if !give_back.is_empty() {
            self.give_back(job, &give_back, Reason::new(ReasonKind::AskedBack, "the parent asked for it back"));
        }
        self.set_phase_and_tell(job, &hold, Phase::Held);
        self.set_phase_and_tell(job, &release, Phase::Queued);
        self.wants_due.insert(job);
    }

    /// Tasks of a job come to wait that have run, or were on hold: where no other waits, its time begins now.
    pub(super) fn waits_anew(&mut self, job: u64) {
        let now = self.now.unix_ms;
        if let Some(j) = self.state.jobs.get_mut(&job).filter(|j| j.queued.is_empty()) {
            j.waits_ms = now;
        }
    }

    pub(super) fn set_phase_and_tell(&mut self, job: u64, tasks: &TaskSet, phase: Phase) {
        if tasks.is_empty() {
            return;
        }
        self.set_phase(job, tasks, phase, false);
        let held = Reason::new(ReasonKind::HeldByUser, "on hold");
        self.emit_for(job, tasks, &|_| match phase {
            Phase::Held => EventKind::Held(held.clone()),
            _ => EventKind::Released,
        });
    }

    /// End waiting tasks, those with equal attempts together.
    pub(super) fn finish_by_attempts(&mut self, job: u64, tasks: &TaskSet, ended: impl Fn(u32) -> Ended) {
        let Some(j) = self.state.jobs.get(&job) else { return };
        let groups: Vec<(u32, TaskSet)> = (0..=u8::MAX)
            .scan(tasks.clone(), |rest, a| {
                (!rest.is_empty()).then(|| {
                    let t = j.select(rest, |c| c.attempts == a);
                    *rest = rest.subtract(&t);
                    (u32::from(a), t)
                })
            })
            .filter(|(_, t)| !t.is_empty())
            .collect();
        for (a, t) in groups {
            self.finish(job, 0, None, &t, &ended(a));
        }
    }

    /// Waiting tasks go back to the parent that placed them.
    pub(super) fn give_back(&mut self, job: u64, tasks: &TaskSet, reason: Reason) {
        for t in pieces(tasks, u64::MAX, CHANGE_RANGES_MAX) {
            self.emit_for(job, &t, &|_| EventKind::Returned(reason.clone()));
            self.record(What::GivenBack(change::OfPlacement { job, number: 0, tasks: t.to_runs() }));
        }
        self.note_end(job);
        self.changed.insert(job);
        self.advert_due = true;
    }

    pub(super) fn parent_up(&mut self, parent: SiteId, name: String) {
        let link = self.state.links.entry(parent).or_default();
        if link.name != name {
            let (incarnation, number) = (link.peer_incarnation, link.seen);
            self.record(What::Seen(change::Cursor { peer: parent.0.to_vec(), incarnation, number, name: name.clone(), ..Default::default() }));
        }
        let (round_trip_ms, resync_told_ms) = self.parents.get(&parent).map_or((10.0, 0), |p| (p.round_trip_ms, p.resync_told_ms));
        let fresh = Parent {
            name,
            attached: true,
            greeted: false,
            live: false,
            sent: 0,
            sent_at: Default::default(),
            demand: Vec::new(),
            advert: None,
            before: None,
            advert_ms: 0,
            advert_version: 0,
            round_trip_ms,
            asked: false,
            resent: None,
            resent_from_ms: self.now.mono_ms,
            confirmed: false,
            left_out: 0,
            resync_told_ms,
            resync_due: false,
        };
        self.parents.insert(parent, fresh);
        let link = &self.state.links[&parent];
        let hello = Hello {
            hop: self.me.clone(),
            incarnation: self.state.incarnation,
            peer_incarnation: link.peer_incarnation,
            peer_sequence: link.acked,
            peer_placement: link.seen,
            placement: 0,
            sequence_low: link.outbox.front().map_or(link.next + 1, |e| e.0),
            sequence_high: link.next,
            machine: Vec::new(),
            recovering: self.state.recovering || link.peer_incarnation == 0 || self.is_unheard(parent),
        };
        if let Some(p) = self.parents.get_mut(&parent) {
            p.asked = hello.recovering;
        }
        self.actions.push(Action::ToParent(parent, Up::Hello(hello)));
    }

    pub(super) fn parent_gone(&mut self, parent: SiteId) {
        if let Some(p) = self.parents.get_mut(&parent) {
            (p.attached, p.live) = (false, false);
        }
        self.advert_due = true;
    }

    pub(super) fn parent_says(&mut self, parent: SiteId, message: Down) {
        // What it decided before it knew of this session may come first. It says that again after its hello, and numbers are taken in order.
        let hello = matches!(message, Down::Hello(_));
        let Some(p) = self.parents.get_mut(&parent).filter(|p| p.attached && (p.greeted || hello)) else { return };
        p.greeted = true;
        match message {
            Down::Hello(h) => self.parent_hello(parent, h),
            Down::Place(p) => match p.known {
                Known::Nothing => self.place(parent, *p),
                Known::Perhaps => self.place_again(parent, *p),
                Known::As(former) => self.adopt(parent, *p, former),
            },
            Down::Resent => self.resent(parent),
            Down::Want(w) => self.parent_wants(parent, w),
            Down::Ack { incarnation, sequence } => self.parent_acks(parent, incarnation, sequence),
            Down::Stale(list) => {
                let unknown: Vec<Attempts> = list.into_iter().filter_map(|a| self.stop_stale(parent, a)).collect();
                self.let_orphans_go(parent, &unknown);
            }
            Down::Demand(d) => {
                if let Some(p) = self.parents.get_mut(&parent) {
                    p.demand = d;
                }
                (self.schedule_due, self.advert_due) = (true, true);
            }
            Down::Saw(version) => self.parent_saw(parent, version),
            Down::Resync => self.resync_soon(parent),
            // What a parent holds open decides nothing here yet: a child never kills because a parent does not know a job.
            Down::Open(_) => {}
        }
    }

    /// Its cursor: events go on from there, or the full state first where they are no longer kept.
    fn parent_hello(&mut self, parent: SiteId, h: Hello) {
        let link = self.state.links.entry(parent).or_default();
        let low = link.outbox.front().map_or(link.next + 1, |e| e.0);
        if self.hear_of_us(&h, h.peer_sequence, self.told.get(&parent).copied().unwrap_or(0)) {
            return;
        }
        let link = self.state.links.entry(parent).or_default();
        // One that has never committed anything of ours, and is the one for whom all events are kept, gets them all: among them what it got back.
        let never = h.peer_incarnation == 0 && low == 1 && link.peer_incarnation == h.incarnation;
        let fits = (never || h.peer_incarnation == self.state.incarnation) && h.peer_sequence <= link.next;
        let (sent, resync) = match fits {
            true if h.peer_sequence + 1 >= low => (h.peer_sequence, false),
            _ => (link.next, h.peer_incarnation != 0 || link.next > 0),
        };
        let (known, seen) = (link.peer_incarnation, link.seen);
        self.is_back(parent);
        // We have asked it to send again what it holds open here: before that our full state would say that it is lost.
        let forgotten = h.peer_incarnation != 0 && h.peer_incarnation != self.state.incarnation;
        let asked = (self.state.recovering || forgotten || self.is_unheard(parent)) && self.parents.get(&parent).is_some_and(|p| p.asked);
        if known != h.incarnation {
            // A new parent, or one that has lost its store: its numbers begin anew. What it placed before runs on, orphaned.
            if known != 0 {
                self.actions.push(Action::Warn(format!("parent {} has a new store (incarnation {known} -> {})", h.hop.name, h.incarnation)));
            }
            self.record(What::Seen(change::Cursor { peer: parent.0.to_vec(), incarnation: h.incarnation, number: seen, ..Default::default() }));
            if known != 0 {
                self.freeze_orphans(parent);
            }
        }
        if let Some(p) = self.parents.get_mut(&parent) {
            (p.live, p.sent, p.confirmed) = (!resync && !asked, sent, !asked);
            p.resent = asked.then(BTreeMap::new);
        }
        if fits && h.peer_sequence > 0 {
            self.parent_acks(parent, h.peer_incarnation, h.peer_sequence);
        }
        self.list_orphans(parent, h.recovering || known != 0 && known != h.incarnation);
        if resync && !asked {
            self.resync_soon(parent);
        }
        self.repeat_hints(parent);
        self.advert_due = true;
    }

    fn parent_acks(&mut self, parent: SiteId, incarnation: u64, sequence: u64) {
        let link = self.state.links.entry(parent).or_default();
        if incarnation != self.state.incarnation || sequence <= link.acked || sequence > link.next {
            return;
        }
        if let Some(p) = self.parents.get_mut(&parent) {
            while let Some((s, at)) = p.sent_at.front().copied().filter(|(s, _)| *s <= sequence) {
                p.sent_at.pop_front();
                if s == sequence || p.sent_at.is_empty() {
                    p.round_trip_ms = 0.8 * p.round_trip_ms + 0.2 * (self.now.mono_ms.saturating_sub(at)) as f64;
                }
            }
        }
        self.record(What::Acked(change::Cursor { peer: parent.0.to_vec(), incarnation, number: sequence, ..Default::default() }));
    }

    /// Is this placement new? Its number is seen from here on.
    pub(super) fn see(&mut self, parent: SiteId, number: u64) -> Option<u64> {
        let link = self.state.links.entry(parent).or_default();
        let incarnation = link.peer_incarnation;
        if number <= link.seen {
            return None;
        }
        self.record(What::Seen(change::Cursor { peer: parent.0.to_vec(), incarnation, number, ..Default::default() }));
        Some(incarnation)
    }

    pub(super) fn deny(&mut self, parent: SiteId, p: Place, reason: Reason) {
        if self.see(parent, p.number).is_some() {
            let of = Attempts { number: p.number, job: p.job, tasks: p.tasks };
            self.emit(parent, Event { of, what: EventKind::Returned(reason) });
        }
    }

    fn place(&mut self, parent: SiteId, p: Place) {
        let Some(incarnation) = self.see(parent, p.number) else { return };
        let of = |tasks: &TaskSet| Attempts { number: p.number, job: p.job, tasks: tasks.clone() };
        // It may be here already, as far as somebody below knows who is not back: nothing of it goes back before.
        let unsure = !self.missed.is_empty();
        if let Some((text, age)) = self.draining(self.me.site).filter(|_| !unsure) {
            return self.emit(parent, Event { of: of(&p.tasks), what: EventKind::Returned(Reason::new(ReasonKind::Draining, text).aged(age)) });
        }
        let spec = match self.admit(&p) {
            Ok(spec) => spec,
            Err(reason) => return self.emit(parent, Event { of: of(&p.tasks), what: EventKind::Returned(reason) }),
        };
        let cost = self.cost_at(&p.share, &spec.parsed.shape);
        let room = if unsure { u64::MAX } else { self.room_for(parent, &p.share) / cost.max(1) };
        let job = match self.state.jobs_of(parent, incarnation, p.job).first() {
            Some(n) => *n,
            // A job of which nothing can be here is not remembered.
            None if room == 0 => {
                let reason = Reason::new(ReasonKind::OverCredit, format!("0 of {} tasks fit the credit", p.tasks.len()));
                return self.emit(parent, Event { of: of(&p.tasks), what: EventKind::Returned(reason) });
            }
            None => self.job_for(parent, incarnation, &p, &spec),
        };
        let Some(j) = self.state.jobs.get(&job) else { return };
        if j.spec_hash != p.spec_hash || j.size != p.array_size {
            let reason = Reason::new(ReasonKind::InvalidSpec, format!("job {} came here before with another spec", p.origin.job));
            return self.emit(parent, Event { of: of(&p.tasks), what: EventKind::Returned(reason) });
        }
        let busy = j.select(&p.tasks, |c| c.phase().is_some_and(|p| !p.is_terminal()));
        let stopping = j.downs.values().fold(busy, |acc, d| acc.union(&d.fenced.intersect(&p.tasks)));
        let mut tasks = p.tasks.subtract(&stopping);
        let kept = tasks.take_first(room);
        let kept_len = kept.len();
        if !stopping.is_empty() {
            let reason = Reason::new(ReasonKind::StillStopping, "an older attempt of it has not stopped here yet");
            self.emit(parent, Event { of: of(&stopping), what: EventKind::Returned(reason) });
        }
        if !tasks.is_empty() {
            let reason = Reason::new(ReasonKind::OverCredit, format!("{kept_len} of {} tasks fit the credit", p.tasks.len()));
            self.emit(parent, Event { of: of(&tasks), what: EventKind::Returned(reason) });
        }
        if !kept.is_empty() {
            for t in pieces(&kept, u64::MAX, CHANGE_RANGES_MAX) {
                let (share, attempts) = (p.share.clone(), p.attempts);
                self.record(What::Tasks(change::TasksAdded {
                    job,
                    number: p.number,
                    share,
                    tasks: t.to_runs(),
                    attempts,
                    cost,
                    most_micro: p.attempt_cost_max,
                    ..self.label(job, incarnation, p.job)
                }));
            }
            self.emit(parent, Event { of: of(&kept), what: EventKind::Accepted });
        }
        // Both of us have forgotten it, and somebody below has it.
        let has = |o: &intergrid_proto::link::Orphan| o.spec_hash == p.spec_hash && o.origin.is(&p.origin) && !o.tasks.intersect(&kept).is_empty();
        if self.children.values().any(|c| c.orphans.iter().any(has)) {
            self.claim_all();
        }
        self.want_anew(job, p.want, &kept);
        self.arrived(job);
        if let Some(j) = self.state.jobs.get_mut(&job) {
            j.unsure |= unsure;
        }
    }

    /// A job of ours for a parent's.
    pub(super) fn job_for(&mut self, parent: SiteId, incarnation: u64, p: &Place, spec: &Arc<Spec>) -> u64 {
        let n = self.state.next_job + 1;
        let new = change::JobNew {
            job: n,
            parent: parent.0.to_vec(),
            parent_job: p.job,
            parent_incarnation: incarnation,
            owner: parent.0.to_vec(),
            owner_name: p.origin.principal.clone(),
            size: p.array_size,
            route: p.route.iter().chain([&self.me.site]).map(|s| s.0.to_vec()).collect(),
            hops_left: p.hops_left.saturating_sub(1),
            chain: p.chain.clone(),
            ..self.new_job(&p.origin, p.spec_hash, spec)
        };
        self.record(What::Job(new));
        self.step_of(n, Step::Accepted);
        if let Some(w) = self.state.links.get(&parent).and_then(|l| l.wants.get(&p.job)).filter(|_| !planted(Plant::LateSubmit)).cloned() {
            self.record(What::Want(change::WantSet { job: n, parent: parent.0.to_vec(), want: Some(w.into()) }));
        }
        n
    }

    /// May this come in at all? The spec, or why not.
    #[allow(clippy::result_large_err)] // Not an error path: the reason is the product.
    pub(super) fn admit(&mut self, p: &Place) -> Result<Arc<Spec>, Reason> {
        if p.route.contains(&self.me.site) || p.origin.site == self.me.site {
            return Err(Reason::new(ReasonKind::Loop, format!("it has passed {} already", self.me.name)));
        }
        if (p.route.len() > HOPS_MAX as usize || p.hops_left == 0) && !planted(Plant::NoHopLimit) {
            return Err(Reason::new(ReasonKind::Loop, format!("it has passed {} sites, at most {HOPS_MAX} are allowed", p.route.len())));
        }
        let known = self.state.specs.get(&p.spec_hash).and_then(|s| s.upgrade());
        let spec = match known {
            Some(spec) => spec,
            None if p.spec.is_empty() => return Err(Reason::new(ReasonKind::InvalidSpec, "its spec has not been sent")),
            None if BlobHash::of(&p.spec) != p.spec_hash => {
                return Err(Reason::new(ReasonKind::InvalidSpec, "its spec is not what its hash says"));
            }
            None => {
                let parsed = JobSpec::decode(&p.spec).map_err(|r| {
                    let kind = match r.kind {
                        RefusalKind::MustUnderstand => ReasonKind::MustUnderstand,
                        _ => ReasonKind::InvalidSpec,
                    };
                    Reason::new(kind, r.message)
                })?;
                Arc::new(Spec { bytes: p.spec.clone(), parsed })
            }
        };
        let shape = &spec.parsed.shape;
        let fits: Vec<Fit> = self.children.values().flat_map(|c| &c.shares).map(|(_, s)| s.fit(shape)).collect();
        if !fits.is_empty() && !fits.contains(&Fit::Yes) && self.missed.is_empty() && !self.is_for_rent(shape) {
            let because = fits.into_iter().filter_map(|f| match f {
                Fit::No(text) => Some(Reason::new(ReasonKind::NoFit, text)),
                Fit::Yes => None,
            });
            return Err(Reason::new(ReasonKind::NoFit, format!("no machine of {} could ever run it", self.me.name)).because(because.collect()));
        }
        Ok(spec)
    }

    fn parent_wants(&mut self, parent: SiteId, w: Want) {
        let (parent_job, version) = (w.job, w.version);
        let incarnation = self.state.links.entry(parent).or_default().peer_incarnation;
        let known = self.state.jobs_of(parent, incarnation, parent_job);
        let held = match known.first() {
            Some(job) => self.state.jobs[job].want.version,
            None => self.state.links.entry(parent).or_default().wants.get(&parent_job).map_or(0, |w| w.version),
        };
        if version > held {
            if known.is_empty() {
                self.record(What::Want(change::WantSet { job: 0, parent: parent.0.to_vec(), want: Some(w.clone().into()) }));
            }
            for job in known {
                self.want_anew(job, w.clone(), &TaskSet::new());
            }
            let of = Attempts { number: 0, job: parent_job, tasks: TaskSet::new() };
            self.emit(parent, Event { of, what: EventKind::WantStored { version } });
        }
    }

    /// A parent's register has come, by itself or with a placement, whichever is the first: what it wishes is done, and what it no longer wishes undone.
    pub(super) fn want_anew(&mut self, job: u64, want: Want, fresh: &TaskSet) {
        let held = self.doubted_on_hold(job);
        let before = self.state.jobs.get(&job).map_or(0, |j| j.want_version);
        self.take_want(job, want, fresh);
        self.release_doubted(job, &held);
        if self.state.jobs.get(&job).is_some_and(|j| j.want_version != before || change::wishes(&j.want)) {
            self.enforce_want(job);
        }
    }

    /// Take over a parent's register that is not older than ours. A cancel of an attempt that has not ended is never taken back (a stale one is ours, and
    /// not in the parent's register); `fresh` are tasks that have just arrived, of which only the parent's word counts.
    fn take_want(&mut self, job: u64, mut want: Want, fresh: &TaskSet) {
        let Some(j) = self.state.jobs.get(&job) else { return };
        let Some(parent) = j.parent.filter(|_| want.version >= j.want.version && (fresh.is_empty() || !planted(Plant::LateSubmit))) else { return };
        let open = j.select(&j.want.tasks(WantValue::Cancel, &j.all()), |c| c.phase().is_some_and(|p| !p.is_terminal()));
        want.set(WantValue::Cancel, &open.subtract(fresh));
        if want != j.want {
            self.record(What::Want(change::WantSet { job, parent: parent.0.to_vec(), want: Some(want.into()) }));
        }
    }

    /// The parent no longer counts these attempts: stop them, and say so when they have stopped. Given back: nothing is here under that name.
    fn stop_stale(&mut self, parent: SiteId, a: Attempts) -> Option<Attempts> {
        let incarnation = self.state.links.entry(parent).or_default().peer_incarnation;
        let named = |n: &u64| {
            let up = self.state.jobs.get(n)?.ups.iter().find(|(_, e)| e.number == a.number && e.incarnation == incarnation);
            up.map(|(ord, _)| (*n, *ord))
        };
        let Some((job, ord)) = self.state.jobs_of(parent, incarnation, a.job).iter().find_map(named) else { return Some(a) };
        let j = &self.state.jobs[&job];
        let open = j.select(&a.tasks, |c| c.up == ord && c.phase().is_some_and(|p| !p.is_terminal()));
        if open.is_empty() {
            return None;
        }
        // A cancel that is ours: the parent's register is for its current attempts, and a newer one replaces this.
        let mut want = j.want.clone();
        want.job = a.job;
        want.set(WantValue::Cancel, &open);
        // It has named them: what it sends again are only those that count.
        if let Some(list) = self.parents.get_mut(&parent).and_then(|p| p.resent.as_mut()) {
            let named = list.entry((a.job, a.number)).or_default();
            *named = named.union(&open);
        }
        self.record(What::Want(change::WantSet { job, parent: parent.0.to_vec(), want: Some(want.into()) }));
        self.enforce_want(job);
        None
    }

    /// Send what the parent has not got, within the window.
    pub(super) fn flush_events(&mut self) {
        let now = self.now;
        for (id, p) in self.parents.iter_mut().filter(|(_, p)| p.live) {
            let Some(link) = self.state.links.get(id) else { continue };
            while p.sent < link.next && p.sent.saturating_sub(link.acked) < EVENTS_IN_FLIGHT_MAX {
                let Some(low) = link.outbox.front().map(|e| e.0) else { break };
                let skip = (p.sent + 1).saturating_sub(low) as usize;
                let (mut events, mut tasks, mut first) = (Vec::new(), 0, 0);
                for (seq, _, at_ms, event) in link.outbox.iter().skip(skip).take(EVENTS_PER_MESSAGE_MAX) {
                    first = if first == 0 { *seq } else { first };
                    let mut event = event.clone();
                    if let EventKind::Ended(e) = &mut event.what {
                        let waited = now.unix_ms.saturating_sub(*at_ms);
                        e.age_ms.iter_mut().for_each(|a| *a += waited);
                    }
                    tasks += EVENT_COST
                        + event.of.tasks.ranges().len() as u64
                        + if let EventKind::Ended(_) = event.what { event.of.tasks.len() } else { 0 };
                    p.sent = *seq;
                    events.push(event);
                    if tasks > EVENT_TASKS_PER_MESSAGE_MAX {
                        break;
                    }
                }
                if events.is_empty() {
                    break;
                }
                p.sent_at.push_back((p.sent, now.mono_ms));
                let (incarnation, told) = (self.state.incarnation, self.told.entry(*id).or_default());
                *told = p.sent.max(*told);
                self.actions.push(Action::ToParent(*id, Up::Events(Events { incarnation, first, events })));
            }
        }
    }
}
