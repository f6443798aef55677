//! Southward: children. Placements are sent and repeated until accepted, ends are taken in, lost contact is answered.
//!
//! An attempt counts only while its placement is the current one of its task: equality, no ordering. What is said of any other is acknowledged, kept in
//! history and usage, and changes no phase.

use std::collections::BTreeMap;

use intergrid_proto::link::{Attempts, Down, Ended, Event, EventKind, Events, Hello, Hop, Kind, Known, Place, Up, Want, WantValue, at};
use intergrid_proto::spec::OnLost;
use intergrid_proto::{Phase, Reason, ReasonKind, SiteId, TaskSet, pb};

use super::change::{self, What};
use super::limits::*;
use super::pauses::is_of_a_limit;
use super::planted::{Plant, planted};
use super::rows::pieces;
use super::state::QueueKey;
use super::{Action, Child, Core};

impl Core {
    pub(super) fn child_up(&mut self, child: SiteId, hello: Hello) {
        let cursor = self.state.cursors.entry(child).or_default();
        let kind = pb::Kind::from(hello.hop.kind).into();
        if (cursor.name.as_str(), cursor.kind) != (hello.hop.name.as_str(), kind) {
            let (incarnation, number) = (cursor.incarnation, cursor.sequence);
            self.record(What::Cursor(change::Cursor {
                peer: child.0.to_vec(),
                incarnation,
                number,
                name: hello.hop.name.clone(),
                kind,
                ..Default::default()
            }));
        }
        self.note_here(child, true);
        let cursor = &self.state.cursors[&child];
        if cursor.incarnation == hello.incarnation && hello.sequence_high < cursor.sequence {
            let text = format!(
                "child {} knows fewer events ({}) than it has sent ({}): its store is old",
                hello.hop.name, hello.sequence_high, cursor.sequence
            );
            self.actions.push(Action::Warn(text));
        }
        // What it was acknowledged was durable here, even where it has seen no later placement; and so was it itself before it was greeted.
        let acknowledged = match cursor.incarnation {
            0 => (1, 0),
            known if known == hello.incarnation => (hello.peer_sequence, cursor.sequence),
            _ => (0, 0),
        };
        let forgotten = cursor.incarnation == 0 && hello.peer_incarnation != 0;
        if !self.hear_of_us(&hello, hello.peer_placement, cursor.issued) {
            self.hear_of_us(&hello, acknowledged.0, acknowledged.1);
        }
        self.go_on_behind(child, &hello);
        self.is_back(child);
        let cursor = &self.state.cursors[&child];
        let (peer_incarnation, peer_sequence, issued) = (cursor.incarnation, cursor.sequence, cursor.issued);
        let peer_incarnation = if planted(Plant::IncarnationIgnored) { hello.incarnation } else { peer_incarnation };
        self.lists_less |= forgotten && self.expected.is_none() || peer_incarnation != 0 && peer_incarnation != hello.incarnation;
        self.stop_unseen(child, &hello);
        let asks = self.asks_orphans(child);
        self.note_store(child, &hello);
        // An agent that knows its store to be old must not start what was ended since. A site does not kill because its parent does not know a job.
        let renewed = peer_incarnation != 0 && peer_incarnation != hello.incarnation && hello.hop.kind == Kind::Agent;
        let seen = if hello.peer_incarnation == self.state.incarnation { hello.peer_placement } else { 0 };
        let fresh = Child {
            hop: hello.hop.clone(),
            seen,
            attached: true,
            lost_ms: self.now.mono_ms,
            why_lost: String::new(),
            shares: Vec::new(),
            away: self.children.get_mut(&child).map_or_else(Vec::new, |c| std::mem::take(&mut c.away)),
            below: Vec::new(),
            heard_ms: self.now.mono_ms,
            specs: Default::default(),
            back_off: Default::default(),
            returned: self.children.get(&child).map_or((0, 0), |c| c.returned),
            paused_until_ms: self.children.get(&child).map_or(0, |c| c.paused_until_ms),
            resync: BTreeMap::new(),
            resync_asked_ms: 0,
            resync_due: false,
            orphans: Vec::new(),
            listed: None,
            demand: Vec::new(),
            demand_told: Vec::new(),
            demand_ms: 0,
        };
        self.children.insert(child, fresh);
        let answer = Hello {
            hop: self.me.clone(),
            incarnation: self.state.incarnation,
            peer_incarnation,
            peer_sequence,
            peer_placement: 0,
            placement: issued,
            sequence_low: 0,
            sequence_high: 0,
            machine: Vec::new(),
            recovering: asks,
        };
        self.actions.push(Action::ToChild(child, Down::Hello(answer)));
        // What we do not know ourselves can't tell what counts.
        if renewed && !asks {
            self.actions.push(Action::ToChild(child, Down::Open(self.open_on(child))));
        }
        self.repeat_to(child, hello.recovering);
    }

    /// Which store it is that takes what is sent from here on. What was sent to another may have been taken, and started, before that was lost: it is as
    /// uncertain as what was accepted, and not sent again.
    fn note_store(&mut self, child: SiteId, hello: &Hello) {
        let cursor = self.state.cursors.entry(child).or_default();
        let (known, number) = (cursor.incarnation, cursor.sequence);
        if known == 0 {
            let incarnation = hello.incarnation;
            self.record(What::Cursor(change::Cursor { peer: child.0.to_vec(), incarnation, number, ..Default::default() }));
        } else if known != hello.incarnation && !planted(Plant::IncarnationIgnored) {
            let (incarnation, issued) = (known, cursor.issued);
            if issued > cursor.renewed_at {
                let complete_from = issued;
                self.record(What::Cursor(change::Cursor { peer: child.0.to_vec(), incarnation, number, complete_from, ..Default::default() }));
            }
            let sent: Vec<(u64, u64)> = self.state.placed_on.get(&child).into_iter().flatten().map(|(n, j)| (*n, *j)).collect();
            sent.into_iter().filter(|(n, _)| *n > self.state.former).collect::<Vec<_>>().into_iter().for_each(|(n, j)| self.accepted(j, n));
        }
    }

    /// All attempts on this child that count.
    fn open_on(&self, child: SiteId) -> Vec<Attempts> {
        let placed = self.state.placed_on.get(&child).into_iter().flatten();
        let open = placed.filter_map(|(number, job)| {
            let j = self.state.jobs.get(job)?;
            Some(Attempts { number: *number, job: *job, tasks: j.select(&j.all(), |c| c.down == *number && c.is_below()) })
        });
        open.filter(|a| !a.tasks.is_empty()).collect()
    }

    /// What is due for a child that has just come: stale attempts, registers, placements that it has not accepted.
    fn repeat_to(&mut self, child: SiteId, recovering: bool) {
        let placed: Vec<(u64, u64)> = self.state.placed_on.get(&child).into_iter().flatten().map(|(n, j)| (*n, *j)).collect();
        let mut stale = Vec::new();
        let mut jobs = std::collections::BTreeSet::new();
        let (mut unsent, mut ask) = (Vec::new(), false);
        for (number, job) in placed {
            let Some(d) = self.state.jobs.get(&job).and_then(|j| j.downs.get(&number)) else { continue };
            if !d.fenced.is_empty() {
                stale.push(Attempts { number, job, tasks: d.fenced.clone() });
                // Another store than the one that had them: only its full state says that they are gone.
                ask |= self.state.cursors.get(&child).is_some_and(|c| number <= c.renewed_at);
            }
            jobs.insert(job);
            // Those of older incarnations are no names any more: the child says what it holds of them.
            if (recovering || !d.accepted) && number > self.state.former {
                unsent.push((number, job));
            }
        }
        for stale in stale.chunks(ATTEMPTS_PER_MESSAGE_MAX) {
            self.actions.push(Action::ToChild(child, Down::Stale(stale.to_vec())));
        }
        if let Some(c) = self.children.get_mut(&child) {
            c.resync_due |= ask;
        }
        for job in jobs {
            if let Some(want) = self.want_for_children(job).filter(|w| w.version > 0) {
                self.actions.push(Action::ToChild(child, Down::Want(want)));
            }
        }
        for (number, job) in unsent {
            self.send_known(job, number, recovering);
        }
        if recovering {
            self.actions.push(Action::ToChild(child, Down::Resent));
        }
    }

    /// Our register of a job, in our own numbers.
    fn want_for_children(&self, job: u64) -> Option<Want> {
        let j = self.state.jobs.get(&job)?;
        Some(Want { job, version: j.want_version, ranges: j.want.ranges.clone() })
    }

    /// Tell every child that has tasks of this job what is wished of them.
    pub(super) fn send_wants(&mut self, job: u64) {
        let Some(want) = self.want_for_children(job).filter(|_| !planted(Plant::CancelLost)) else { return };
        let children: std::collections::BTreeSet<SiteId> = self.state.jobs[&job].downs.values().map(|d| d.child).collect();
        for child in children {
            if self.children.get(&child).is_some_and(|c| c.attached) {
                self.actions.push(Action::ToChild(child, Down::Want(want.clone())));
            }
        }
    }

    /// Send one placement as it stands now.
    pub(super) fn send_place(&mut self, job: u64, number: u64) {
        self.send_known(job, number, false);
    }

    /// `again`: the child may have had it, and lost its store.
    fn send_known(&mut self, job: u64, number: u64, again: bool) {
        let Some(j) = self.state.jobs.get(&job) else { return };
        let Some(d) = j.downs.get(&number) else { return };
        let Some(c) = self.children.get_mut(&d.child).filter(|c| c.attached) else { return };
        let tasks = j.select(&j.all(), |c| c.down == number && c.is_below());
        if tasks.is_empty() {
            return;
        }
        let want = Want { job, version: j.want_version, ranges: j.want.ranges.clone() };
        let spec = if c.specs.insert(j.spec_hash) { j.spec.bytes.clone() } else { Vec::new() };
        let place = Place {
            number,
            job,
            origin: j.origin.clone(),
            spec_hash: j.spec_hash,
            spec,
            tasks,
            share: d.share.to_string(),
            attempts: d.attempts,
            want,
            route: j.route.clone(),
            hops_left: j.hops_left,
            chain: j.chain.clone(),
            array_size: j.size,
            attempt_cost_max: d.most_micro,
            known: match d.adopt {
                _ if again => Known::Perhaps,
                Some(former) => Known::As(former),
                None => Known::Nothing,
            },
        };
        self.actions.push(Action::ToChild(d.child, Down::Place(Box::new(place))));
    }

    pub(super) fn child_gone(&mut self, child: SiteId, why: String, silent_ms: u64) {
        if let Some(c) = self.children.get_mut(&child).filter(|c| c.attached) {
            c.attached = false;
            c.lost_ms = self.now.mono_ms.saturating_sub(silent_ms);
            c.why_lost = why;
            c.take_shares(Vec::new(), self.now.mono_ms);
            c.below.clear();
            self.note_here(child, false);
        }
        self.advert_due = true;
    }

    /// Whom a restart has to wait for.
    fn note_here(&mut self, child: SiteId, here: bool) {
        let Some(c) = self.state.cursors.get(&child).filter(|c| c.here != here) else { return };
        let (incarnation, number, attached) = (c.incarnation, c.sequence, if here { 1 } else { 2 });
        self.record(What::Cursor(change::Cursor { peer: child.0.to_vec(), incarnation, number, attached, ..Default::default() }));
    }

    pub(super) fn child_says(&mut self, child: SiteId, message: Up) {
        if !self.children.get(&child).is_some_and(|c| c.attached) {
            return;
        }
        match message {
            Up::Hello(h) => self.child_up(child, h),
            Up::Advert(a) => {
                self.forget_names();
                let mut shares: Vec<_> = a.shares.into_iter().map(|s| (self.state.intern(&s.key), s)).collect();
                self.price_shares(&self.child_name(child), shares.iter_mut().map(|(_, s)| s));
                let now = self.now.mono_ms;
                if let Some(c) = self.children.get_mut(&child) {
                    let moved = |old: &[(_, super::Share)], new: &[(std::sync::Arc<str>, super::Share)]| {
                        old.len() != new.len() || old.iter().zip(new).any(|(a, b)| a.1.fit_version != b.1.fit_version)
                    };
                    if moved(&c.shares, &shares) {
                        c.back_off.clear();
                    }
                    c.take_shares(shares, now);
                    (c.below, c.heard_ms) = (a.below, now);
                }
                // An agent has one parent: nothing of it is divided.
                if self.children.get(&child).is_some_and(|c| c.hop.kind != Kind::Agent) {
                    self.actions.push(Action::ToChild(child, Down::Saw(a.version)));
                }
                self.schedule_due = true;
                self.advert_due = true;
            }
            Up::Events(e) => self.child_events(child, e),
            Up::Hints(hints) => hints.into_iter().for_each(|h| self.child_hint(child, h)),
            Up::Resync(r) => self.child_resync(child, r),
            Up::Orphans(o) => self.child_lists(child, o),
            // Content is the shell's concern.
            Up::NeedBlob(_) => {}
        }
    }

    fn child_events(&mut self, child: SiteId, e: Events) {
        let cursor = self.state.cursors.entry(child).or_default();
        let mut at = if cursor.incarnation == e.incarnation || planted(Plant::IncarnationIgnored) { cursor.sequence } else { 0 };
        if e.first > at + 1 {
            let now = self.now.mono_ms;
            if let Some(c) = self.children.get_mut(&child) {
                if c.resync_asked_ms > 0 && now.saturating_sub(c.resync_asked_ms) < RESYNC_PAUSE_MS {
                    c.resync_due = true;
                    return;
                }
                (c.resync_asked_ms, c.resync_due) = (now, false);
            }
            self.actions.push(Action::Warn(format!("child {child:?} skipped events {} to {}: asking for its full state", at + 1, e.first - 1)));
            self.actions.push(Action::ToChild(child, Down::Resync));
            return;
        }
        let skip = (at + 1 - e.first) as usize;
        for event in e.events.into_iter().skip(skip) {
            at += 1;
            self.child_event(child, event);
        }
        let cursor = &self.state.cursors[&child];
        if cursor.incarnation != e.incarnation || cursor.sequence < at {
            self.record(What::Cursor(change::Cursor { peer: child.0.to_vec(), incarnation: e.incarnation, number: at, ..Default::default() }));
        }
        self.actions.push(Action::ToChild(child, Down::Ack { incarnation: e.incarnation, sequence: at }));
    }

    /// The tasks of a placement of this child: current, and fenced.
    pub(super) fn split(&self, child: SiteId, of: &Attempts) -> (TaskSet, TaskSet) {
        let ours = self.state.placed_on.get(&child).and_then(|p| p.get(&of.number)) == Some(&of.job);
        let Some(j) = self.state.jobs.get(&of.job).filter(|_| ours) else { return Default::default() };
        let current = j.select(&of.tasks, |c| (c.down == of.number || planted(Plant::StaleCounts)) && c.is_below());
        let fenced = j.downs.get(&of.number).map(|d| d.fenced.intersect(&of.tasks)).unwrap_or_default();
        (current, fenced)
    }

    fn hop(&self, child: SiteId) -> Option<Hop> {
        self.children.get(&child).map(|c| c.hop.clone())
    }

    pub(super) fn child_event(&mut self, child: SiteId, event: Event) {
        let (job, number) = (event.of.job, event.of.number);
        let (current, fenced) = self.split(child, &event.of);
        match event.what {
            EventKind::Accepted => {
                if !current.is_empty() {
                    self.back_off_less(child, job, number);
                    self.accepted(job, number);
                }
            }
            EventKind::WantStored { .. } => {}
            EventKind::Returned(reason) => {
                if !fenced.is_empty() {
                    self.record(What::Stopped(change::OfPlacement { job, number, tasks: fenced.to_runs() }));
                }
                if !current.is_empty() {
                    self.returned(child, job, number, &current, reason);
                }
            }
            EventKind::Ended(ended) => self.child_ended(child, &event.of, &current, &fenced, ended),
            EventKind::Held(reason) => {
                if !current.is_empty() {
                    let lost = reason.kind == ReasonKind::EvidenceLost;
                    self.record(What::Phase(change::PhaseSet { job, tasks: current.to_runs(), phase: Phase::Held as i32, anew: false, lost }));
                    self.emit_for(job, &current, &|_| EventKind::Held(reason.clone()));
                    if let Some(j) = self.state.jobs.get_mut(&job) {
                        j.last_return = Some((self.now.mono_ms, reason));
                    }
                    self.changed.insert(job);
                }
            }
            EventKind::Released => {
                if !current.is_empty() {
                    self.record(What::Phase(change::PhaseSet { job, tasks: current.to_runs(), phase: Phase::Placed as i32, ..Default::default() }));
                    self.emit_for(job, &current, &|_| EventKind::Released);
                    self.changed.insert(job);
                }
            }
        }
    }

    /// The child has this placement; said again, it changes nothing.
    pub(super) fn accepted(&mut self, job: u64, number: u64) {
        if self.state.jobs.get(&job).and_then(|j| j.downs.get(&number)).is_some_and(|d| !d.accepted) {
            self.record(What::Accepted(change::OfPlacement { job, number, tasks: Vec::new() }));
        }
    }

    /// Never claimed below: they wait here again, unless somebody has wished otherwise meanwhile.
    fn returned(&mut self, child: SiteId, job: u64, number: u64, tasks: &TaskSet, reason: Reason) {
        let Some(j) = self.state.jobs.get(&job) else { return };
        let Some((share, attempts, adopts)) = j.downs.get(&number).map(|d| (d.share.clone(), d.attempts, d.adopt.is_some())) else { return };
        let (queue, spec_hash, placed_ms) = (QueueKey::of(j), j.spec_hash, j.moved_ms);
        let asked = !j.want.tasks(WantValue::Return, tasks).is_empty();
        let entry = pb::HistoryEntry {
            number,
            tasks: Some(intergrid_proto::convert::tasks_out(tasks)),
            returned: Some(pb::Returned { reason: Some(reason.clone().into()) }),
            child: self.hop(child).map(Into::into),
            ..Default::default()
        };
        self.history(job, entry);
        // What it gave back it may have dropped with its spec: the next placement brings it again.
        if let Some(c) = self.children.get_mut(&child) {
            c.specs.remove(&spec_hash);
        }
        if reason.kind == ReasonKind::EvidenceLost && adopts {
            return self.doubt_placed(job, number, tasks, true);
        }
        if !asked {
            self.count_return(child);
        }
        self.back_off(child, share, queue, &reason, asked);
        if let Some((pace, _)) = self.paces.get_mut(&job) {
            pace.returns(tasks.len());
        }
        // Who may not have more below would be in the way of others here, too: his time goes on, so that what is a parent's goes back up.
        let goes_on = is_of_a_limit(&reason);
        if let Some(j) = self.state.jobs.get_mut(&job) {
            j.last_return = Some((self.now.mono_ms, reason));
        }
        self.requeue(job, number, tasks, attempts + u32::from(planted(Plant::ReturnCounts)), false);
        if let Some(j) = self.state.jobs.get_mut(&job).filter(|j| goes_on && j.parent.is_some()) {
            j.moved_ms = placed_ms;
        }
    }

    /// Tasks leave their placement and wait here again; what is wished of them decides what follows.
    pub(super) fn requeue(&mut self, job: u64, number: u64, tasks: &TaskSet, attempts: u32, fence: bool) {
        let Some(j) = self.state.jobs.get(&job) else { return };
        // Whether there is money for another attempt is not decided here.
        let paid = j.parent.is_some() && j.downs.get(&number).is_some_and(|d| d.most_micro > 0 && attempts > d.attempts);
        let held = paid || attempts >= j.spec.parsed.attempts_max;
        let was_held = j.select(tasks, |c| c.phase() == Some(Phase::Held));
        if j.downs.get(&number).is_some_and(|d| attempts > d.attempts) {
            self.waits_anew(job);
        }
        for t in pieces(tasks, u64::MAX, CHANGE_RANGES_MAX) {
            let r = change::Requeued { job, number, tasks: t.to_runs(), attempts, held, ..Default::default() };
            self.record(if fence { What::Fenced(r) } else { What::Requeued(r) });
        }
        if let Some(j) = self.state.jobs.get_mut(&job) {
            j.moved_ms = self.now.mono_ms;
        }
        self.schedule_due = true;
        self.advert_due = true;
        self.changed.insert(job);
        if held {
            self.hand_up(job, tasks, attempts);
        }
        if change::wishes(&self.state.jobs[&job].want) {
            self.enforce_requeued(job, tasks);
        }
        // The parent knows them as what they were below.
        let j = &self.state.jobs[&job];
        let now_held = j.select(tasks, |c| c.phase() == Some(Phase::Held)).subtract(&was_held);
        let released = j.select(&was_held, |c| c.phase() == Some(Phase::Queued));
        let reason = Reason::new(ReasonKind::HeldByUser, "on hold");
        self.emit_for(job, &now_held, &|_| EventKind::Held(reason.clone()));
        self.emit_for(job, &released, &|_| EventKind::Released);
    }

    /// What a parent placed and has used up its attempts here is lost to it: it waits where its user can release it.
    pub(super) fn hand_up(&mut self, job: u64, tasks: &TaskSet, attempts: u32) {
        let Some(j) = self.state.jobs.get(&job) else { return };
        let Some(link) = j.parent.and_then(|p| self.state.links.get(&p)) else { return };
        let ours: Vec<u32> = j.ups.iter().filter(|(_, e)| e.incarnation == link.peer_incarnation).map(|(ord, _)| *ord).collect();
        // Of what has a price also what is cancelled: it may have cost something, and that is said where it is counted.
        let cancelled = if j.max_cost().is_some() { TaskSet::new() } else { j.want.tasks(WantValue::Cancel, tasks) };
        let lost = j.select(&tasks.subtract(&cancelled), |c| ours.contains(&c.up));
        let reason = Reason::new(ReasonKind::AttemptsUsed, format!("{attempts} attempts were lost"));
        let ended = Ended { lost: true, exit: vec![1025], route: vec![self.me.clone()], ..Ended::not_started(Phase::Failed, reason, attempts) };
        for t in pieces(&lost, CHANGE_TASKS_MAX, CHANGE_RANGES_MAX).into_iter().filter(|t| !t.is_empty()) {
            self.emit_for(job, &t, &|t| EventKind::Ended(ended.select(t, t)));
            self.record(What::GivenBack(change::OfPlacement { job, number: 0, tasks: t.to_runs() }));
        }
        self.note_end(job);
    }

    /// Of tasks that wait here again: cancelled ones end, others may go back or be held.
    fn enforce_requeued(&mut self, job: u64, tasks: &TaskSet) {
        let j = &self.state.jobs[&job];
        let tasks = &j.select(tasks, |c| c.phase != 0);
        let cancel = j.want.tasks(WantValue::Cancel, tasks);
        let back = if j.parent.is_some() { j.want.tasks(WantValue::Return, tasks) } else { TaskSet::new() };
        let hold = j.want.tasks(WantValue::Hold, tasks);
        if !cancel.is_empty() {
            let reason = Reason::new(ReasonKind::CancelledByUser, "cancelled");
            self.finish_by_attempts(job, &cancel, |a| Ended::not_started(Phase::Cancelled, reason.clone(), a));
        }
        if !back.is_empty() {
            self.give_back(job, &back, Reason::new(ReasonKind::AskedBack, "the parent asked for it back"));
        }
        if !hold.is_empty() {
            self.record(What::Phase(change::PhaseSet { job, tasks: hold.to_runs(), phase: Phase::Held as i32, ..Default::default() }));
        }
    }

    fn child_ended(&mut self, child: SiteId, of: &Attempts, current: &TaskSet, fenced: &TaskSet, mut ended: Ended) {
        let hop = self.hop(child);
        self.price_ends(child, of.job, of.number, &mut ended);
        if ended.stale {
            // An attempt below is over, while the placement went on. Only of a job that this child has had: others' history is not its to write.
            let Some(j) = self.state.jobs.get(&of.job).filter(|j| j.ended_at.contains_key(&child)) else { return };
            // The attempt with which a task ended was counted then: a child that went back to an old copy says it again, of what its older store had.
            let of_old = self.state.cursors.get(&child).is_some_and(|c| of.number <= c.renewed_at);
            let counted = |k: usize, t: u32| {
                let c = j.cell(t);
                of_old && c.phase == ended.phase as u8 && u32::from(c.attempts) == ended.attempts && at(&ended.exit, k) == Some(c.exit.into())
            };
            let all = of.tasks.iter().enumerate().take_while(|(_, t)| *t < j.size);
            let tasks: TaskSet = all.filter(|(k, t)| !counted(*k, *t)).map(|(_, t)| t).collect();
            if !tasks.is_empty() {
                self.note_stale(of.job, of.number, hop, &tasks, &ended.select(&of.tasks, &tasks));
            }
            return;
        }
        // What is neither current nor fenced has been told before, and was counted then.
        if !fenced.is_empty() {
            self.note_stale(of.job, of.number, hop.clone(), fenced, &ended.select(&of.tasks, fenced));
            self.record(What::Stopped(change::OfPlacement { job: of.job, number: of.number, tasks: fenced.to_runs() }));
            self.schedule_due = true;
        }
        if current.is_empty() {
            return;
        }
        let mut part = ended.select(&of.tasks, current);
        part.cpu_us.retain(|_| !planted(Plant::UsageDropped));
        let j = &self.state.jobs[&of.job];
        let cancelled = j.want.tasks(WantValue::Cancel, current);
        if part.lost && j.spec.parsed.on_lost == OnLost::Requeue {
            let again = current.subtract(&cancelled);
            if !again.is_empty() {
                self.note_stale(of.job, of.number, hop.clone(), &again, &part.select(current, &again));
                // A lost attempt was one, whatever is said of it: else tasks would be lost without end.
                let used = self.state.jobs[&of.job].downs.get(&of.number).map_or(0, |d| d.attempts + 1);
                self.requeue(of.job, of.number, &again, part.attempts.max(used), false);
            }
            if !cancelled.is_empty() {
                let mut part = part.select(current, &cancelled);
                part.phase = Phase::Cancelled;
                self.finish(of.job, of.number, hop, &cancelled, &part);
            }
            return;
        }
        part.lost = false;
        self.finish(of.job, of.number, hop, current, &part);
    }

    pub(super) fn child_name(&self, child: SiteId) -> String {
        self.state.cursors.get(&child).filter(|c| !c.name.is_empty()).map_or_else(|| format!("{child:?}"), |c| c.name.clone())
    }

    /// What a child is, as far as we know.
    pub(super) fn child_hop(&self, child: SiteId) -> Hop {
        self.hop(child).unwrap_or_else(|| {
            let kind = match self.state.cursors.get(&child).map(|c| c.kind) {
                Some(k) if k == pb::Kind::Broker as i32 => Kind::Broker,
                Some(k) if k == pb::Kind::Agent as i32 => Kind::Agent,
                _ => Kind::Gateway,
            };
            Hop { site: child, name: self.child_name(child), kind }
        })
    }
}
