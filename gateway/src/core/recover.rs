//! A store that is older than what its peers have seen of it, or empty. This site takes a new incarnation and asks: parents send again what they hold open
//! here, children list what they hold of older incarnations. What a child holds is placed on it anew under that name, and goes on.
//!
//! Invariant: what waited here when the store was found to be old is *in doubt* (Held, with a mark that is durable) and started by nobody until its parent
//! has confirmed it and the children have spoken or their time is over. Then what nobody claims is placed again if a lost attempt may be (`on_lost`), else
//! it stays, with the reason EvidenceLost, until a child claims it late or somebody ends it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use intergrid_proto::limits::{REDIAL_MAX_MS, SEQUENCE_MAX};
use intergrid_proto::link::{Attempts, Down, EventKind, Hello, Kind, Orphan, Orphans, WantValue};
use intergrid_proto::spec::OnLost;
use intergrid_proto::{Phase, Reason, ReasonKind, SiteId, TaskSet};

use super::change::{self, What};
use super::limits::*;
use super::planted::{Plant, planted};
use super::rows::pieces;
use super::state::{EXIT_FORGOTTEN, EXIT_LOST_BELOW, Job};
use super::{Action, Core};

impl Core {
    /// What a peer's hello says of this site: `high` of something of which this store has issued `known`. True: the store is an old copy, it has taken a new
    /// incarnation, and all peers are greeted anew.
    pub(super) fn hear_of_us(&mut self, hello: &Hello, high: u64, known: u64) -> bool {
        let (told, name) = (hello.peer_incarnation, &hello.hop.name);
        let why = if told == self.state.incarnation && high > known {
            format!("{name} has seen us at {high}, the last that we know of is {known}")
        } else if told != 0 && told != self.state.incarnation && !self.state.past.contains(&told) {
            format!("{name} knows our incarnation {told}, which we do not")
        } else {
            return false;
        };
        let Some(fresh) = self.fresh.take() else {
            // Born in this process: it can be empty, and not old, whatever is said of it.
            if told != self.state.incarnation {
                self.recover(&why, told);
            }
            return false;
        };
        self.renew(&why, fresh, told);
        true
    }

    /// This store is an old copy.
    fn renew(&mut self, why: &str, fresh: u64, told: u64) {
        let incarnation = if fresh == self.state.incarnation { fresh.wrapping_add(1).max(1) } else { fresh };
        self.actions.push(Action::Warn(format!("{why}: our store is an old copy; it takes incarnation {incarnation} and asks what it has missed")));
        self.record(What::Born(change::Born { incarnation, recovering: true, told }));
        self.recovering_from_ms = self.now.mono_ms;
        let may_be_elsewhere = |j: &Job| j.parent.is_some() || j.no <= self.loaded;
        let waiting: Vec<(u64, TaskSet)> =
            self.state.jobs.values().filter(|j| j.open() > 0 && may_be_elsewhere(j)).map(|j| (j.no, waits(j))).collect();
        waiting.into_iter().for_each(|(job, tasks)| self.doubt(job, &tasks));
        let peers = self.children.iter().filter(|(_, c)| c.attached).map(|(id, _)| *id);
        let peers: BTreeSet<SiteId> = peers.chain(self.parents.iter().filter(|(_, p)| p.attached).map(|(id, _)| *id)).collect();
        for peer in peers {
            if let Some(p) = self.parents.get_mut(&peer) {
                (p.attached, p.live) = (false, false);
            }
            self.child_gone(peer, "to be greeted anew".into(), 0);
            self.actions.push(Action::Leave(peer, "a new incarnation has to be told".into()));
        }
    }

    /// A store that was just loaded may be old: what waits is not started before those are back who would know, within bounds.
    pub(super) fn be_careful(&mut self) {
        self.missed = self.state.placed_on.iter().filter(|(_, p)| !p.is_empty()).map(|(id, _)| *id).collect();
        // One that was here, and idle as far as this store knows, may have been given work since.
        self.missed.extend(self.state.cursors.iter().filter(|(_, c)| c.here).map(|(id, _)| *id));
        for j in self.state.jobs.values_mut().filter(|j| !j.queued.is_empty()) {
            self.missed.extend(j.parent);
            j.unsure = true;
            // Since when those wait that have run before is not kept.
            if j.select(&j.queued, |c| c.attempts == 0).is_empty() {
                j.waits_ms = self.now.unix_ms;
            }
        }
        self.be_sure(|_| false);
    }

    /// A peer has said hello.
    pub(super) fn is_back(&mut self, peer: SiteId) {
        if self.missed.remove(&peer) {
            self.be_sure(|_| false);
        }
    }

    /// Whoever is not back by now: these jobs' waiting tasks are as they seem. All are, where nobody is missed.
    fn be_sure(&mut self, of: impl Fn(&Job) -> bool) {
        let all = self.missed.is_empty();
        for j in self.state.jobs.values_mut().filter(|j| j.unsure && (all || of(j))) {
            (j.unsure, j.moved_ms) = (false, self.now.mono_ms);
            self.schedule_due = true;
        }
    }

    /// This store was empty, and a peer knows this site.
    pub(super) fn recover(&mut self, why: &str, told: u64) {
        if !self.state.recovering {
            self.actions.push(Action::Warn(format!("{why}: our store was lost")));
            self.recovering_from_ms = self.now.mono_ms;
        }
        self.record(What::Born(change::Born { incarnation: self.state.incarnation, recovering: true, told }));
    }

    /// Numbers that a child has seen of any incarnation of ours are not given again.
    pub(super) fn go_on_behind(&mut self, child: SiteId, hello: &Hello) {
        let cursor = self.state.cursors.entry(child).or_default();
        let anew = planted(Plant::NumbersAnew);
        if hello.peer_incarnation != self.state.incarnation
            && !anew
            && hello.peer_placement > cursor.issued
            && hello.peer_placement <= SEQUENCE_MAX / 2
        {
            let (incarnation, number, issued) = (cursor.incarnation, cursor.sequence, hello.peer_placement);
            self.record(What::Cursor(change::Cursor { peer: child.0.to_vec(), incarnation, number, issued, ..Default::default() }));
        }
    }

    /// Has this parent not said yet what it holds open here, since our store was found to be old or lost? It is asked each time, also long after that:
    /// what it has placed here would else be said to be lost.
    pub(super) fn is_unheard(&self, parent: SiteId) -> bool {
        let heard = self.state.links.get(&parent).map_or(0, |l| l.heard);
        !self.state.past.is_empty() && heard != self.state.incarnation
    }

    /// Is this child to list what it holds of older incarnations?
    pub(super) fn asks_orphans(&self, child: SiteId) -> bool {
        let former = self.state.placed_on.get(&child).is_some_and(|p| p.keys().next().is_some_and(|n| *n <= self.state.former));
        former || self.state.recovering || self.state.cursors.get(&child).is_none_or(|c| c.incarnation == 0)
    }

    /// Nobody starts these any more, for the time being.
    pub(super) fn doubt(&mut self, job: u64, tasks: &TaskSet) {
        self.doubt_of(job, 0, tasks);
    }

    /// `number`: the placement of which its child has forgotten how it ended; 0: no child is known to have forgotten.
    fn doubt_of(&mut self, job: u64, number: u64, tasks: &TaskSet) {
        if tasks.is_empty() {
            return;
        }
        for t in pieces(tasks, u64::MAX, CHANGE_RANGES_MAX) {
            self.record(What::Doubted(change::OfPlacement { job, number, tasks: t.to_runs() }));
        }
        self.changed.insert(job);
        if !self.state.recovering {
            self.settle_doubts(job, true);
        }
    }

    /// Tasks that we have placed and of which the child knows nothing, or nothing any more.
    pub(super) fn doubt_placed(&mut self, job: u64, number: u64, tasks: &TaskSet, forgotten: bool) {
        let Some(j) = self.state.jobs.get(&job) else { return };
        let Some((attempts, most_micro)) = j.downs.get(&number).map(|d| (d.attempts, d.most_micro)) else { return };
        let most_micro = if j.parent.is_none() { most_micro } else { 0 };
        for t in pieces(tasks, u64::MAX, CHANGE_RANGES_MAX) {
            // What it has cost nobody knows.
            let spent_micro = most_micro.saturating_mul(t.len());
            self.record(What::Requeued(change::Requeued { job, number, tasks: t.to_runs(), attempts, held: false, spent_micro }));
        }
        self.doubt_of(job, if forgotten { number } else { 0 }, tasks);
        self.schedule_due = true;
    }

    /// A part of what a child holds of our older incarnations.
    pub(super) fn child_lists(&mut self, child: SiteId, list: Orphans) {
        let Some(c) = self.children.get_mut(&child) else { return };
        if c.listed.take().is_some() {
            c.orphans.clear();
        }
        let room = ORPHANS_MAX.saturating_sub(c.orphans.len());
        c.orphans.extend(list.orphans.into_iter().take(room));
        c.listed = list.last.then_some(list.complete_from);
        if !list.last {
            return;
        }
        self.claim(child);
        self.settle_ms = self.now.mono_ms;
        // Of what was placed there under older incarnations the list says all.
        let placed = self.state.placed_on.get(&child).into_iter().flat_map(|p| p.range(..=self.state.former));
        let placed: Vec<(u64, u64)> = placed.map(|(n, j)| (*n, *j)).collect();
        for (number, job) in placed {
            let Some(j) = self.state.jobs.get(&job) else { continue };
            let gone = j.select(&j.all(), |c| c.down == number && c.is_below());
            let fenced = j.downs.get(&number).map(|d| d.fenced.clone()).unwrap_or_default();
            if !gone.is_empty() {
                self.doubt_placed(job, number, &gone, list.complete_from > number);
            }
            if !fenced.is_empty() {
                self.record(What::Stopped(change::OfPlacement { job, number, tasks: fenced.to_runs() }));
            }
        }
        if let Some(c) = self.children.get(&child).filter(|c| c.orphans.iter().any(|o| !o.phase.is_terminal())) {
            let n: u64 = c.orphans.iter().filter(|o| !o.phase.is_terminal()).map(|o| o.tasks.len()).sum();
            let text = format!("child {} holds {n} tasks of older incarnations of this site that nobody here knows (yet): they run on", c.hop.name);
            self.actions.push(Action::Warn(text));
        }
    }

    /// See what all children have listed again: tasks have come of which they may be.
    pub(super) fn claim_all(&mut self) {
        let listed: Vec<SiteId> = self.children.iter().filter(|(_, c)| c.attached && c.listed.is_some()).map(|(id, _)| *id).collect();
        listed.into_iter().for_each(|child| self.claim(child));
    }

    /// Nothing is open of this job any more: of what children have listed of it, nothing ever will be.
    pub(super) fn claim_over(&mut self, job: u64) {
        let of = |o: &Orphan| o.former.job == job && !o.phase.is_terminal();
        let holders: Vec<SiteId> = self.children.iter().filter(|(_, c)| c.orphans.iter().any(of)).map(|(id, _)| *id).collect();
        holders.into_iter().for_each(|child| self.claim(child));
    }

    /// What a child holds and we miss is placed on it, under the name by which it knows it.
    fn claim(&mut self, child: SiteId) {
        let Some(c) = self.children.get_mut(&child).filter(|c| c.listed.is_some() && !c.orphans.is_empty()) else { return };
        let orphans = std::mem::take(&mut c.orphans);
        let named: BTreeSet<(SiteId, &str)> = orphans.iter().map(|o| (o.origin.site, o.origin.job.as_str())).collect();
        let mut jobs: HashMap<(SiteId, String), Vec<u64>> = HashMap::new();
        for j in self.state.jobs.values().filter(|j| named.contains(&(j.origin.site, j.origin.job.as_str()))) {
            jobs.entry((j.origin.site, j.origin.job.clone())).or_default().push(j.no);
        }
        let (mut left, mut over) = (Vec::new(), Vec::new());
        for mut orphan in orphans {
            for job in jobs.get(&(orphan.origin.site, orphan.origin.job.clone())).into_iter().flatten() {
                let tasks = self.claimable(child, *job, &orphan);
                if !tasks.is_empty() {
                    orphan.tasks = orphan.tasks.subtract(&tasks);
                    self.adopt_from(child, *job, &orphan, &tasks);
                }
                let tasks = self.over(*job, &orphan);
                if !tasks.is_empty() {
                    orphan.tasks = orphan.tasks.subtract(&tasks);
                    over.push(Attempts { number: orphan.former.number, job: orphan.former.job, tasks });
                }
            }
            if !orphan.tasks.is_empty() {
                left.push(orphan);
            }
        }
        for over in over.chunks(ATTEMPTS_PER_MESSAGE_MAX) {
            self.actions.push(Action::ToChild(child, Down::Stale(over.to_vec())));
        }
        if let Some(c) = self.children.get_mut(&child) {
            c.orphans = left;
        }
    }

    /// Tasks of this job that are over here, as far as it is for us to say, and open at the child: nobody will ever adopt them. Of a parent's job it is for
    /// us to say when the parent has sent again what it counts.
    fn over(&self, job: u64, o: &Orphan) -> TaskSet {
        let confirmed = |p: SiteId| !self.state.recovering && self.parents.get(&p).is_some_and(|p| p.attached && p.confirmed);
        let Some(j) = self.state.jobs.get(&job).filter(|j| is_of(j, o) && !o.phase.is_terminal() && j.parent.is_none_or(confirmed)) else {
            return TaskSet::new();
        };
        j.select(&o.tasks, |c| c.phase().is_some_and(Phase::is_terminal))
    }

    /// Tasks of this job that are what the child holds: in doubt here, or placed there (or, in a time that this store has forgotten, from elsewhere) under an
    /// older incarnation.
    fn claimable(&self, child: SiteId, job: u64, o: &Orphan) -> TaskSet {
        let Some(j) = self.state.jobs.get(&job).filter(|j| is_of(j, o)) else { return TaskSet::new() };
        let forgotten = o.former.number > self.state.former;
        let there: BTreeSet<u64> = j.downs.iter().filter(|(n, d)| **n <= self.state.former && d.child == child).map(|(n, _)| *n).collect();
        // Or were to be taken over under a name that it has not heard.
        let unheard = |n: u64| j.downs.get(&n).is_some_and(|d| d.adopt == Some(o.former));
        let mut tasks = j.select(&o.tasks, |c| match c.down {
            // An attempt that was counted as lost is not taken for the next one.
            _ if !c.is_open() || u32::from(c.attempts) > o.attempts && j.spec.parsed.on_lost == OnLost::Requeue => false,
            0 => c.is_doubtful() || j.parent.is_some() && c.phase() == Some(Phase::Queued),
            n if there.contains(&n) => n == o.former.number || forgotten || unheard(n),
            n => n <= self.state.former && forgotten,
        });
        // It was stopped because it had been given to others, unless somebody wished it.
        if o.phase == Phase::Cancelled && j.spec.parsed.on_lost == OnLost::Requeue {
            tasks = j.want.tasks(WantValue::Cancel, &tasks);
        }
        tasks
    }

    fn adopt_from(&mut self, child: SiteId, job: u64, o: &Orphan, tasks: &TaskSet) {
        let Some(j) = self.state.jobs.get(&job) else { return };
        let mut below: BTreeMap<u64, TaskSet> = BTreeMap::new();
        let mut attempts: BTreeMap<u8, TaskSet> = BTreeMap::new();
        j.each_run(tasks, |range, c| {
            if c.down != 0 {
                below.entry(c.down).or_default().insert(range.clone());
            }
            attempts.entry(c.attempts).or_default().insert(range);
        });
        let doubtful = j.select(tasks, |c| c.is_doubtful());
        for (number, tasks) in below {
            let Some((at, attempts)) = j_down(&self.state.jobs[&job], number) else { continue };
            for t in pieces(&tasks, u64::MAX, CHANGE_RANGES_MAX) {
                let r = change::Requeued { job, number, tasks: t.to_runs(), attempts, ..Default::default() };
                self.record(if at == child { What::Requeued(r) } else { What::Fenced(r) });
            }
        }
        // A parent may have been told that they are held.
        self.set_phase_and_tell(job, &doubtful, Phase::Queued);
        for (attempts, tasks) in attempts {
            for tasks in pieces(&tasks, PLACEMENT_TASKS_MAX, CHANGE_RANGES_MAX) {
                let (number, share, adopt) =
                    (self.state.next_number + 1, o.share.clone(), Some(o.former.into()).filter(|_| !planted(Plant::AdoptRestarts)));
                let most_micro = self.most_at(job, child, &share);
                let (child, cost, attempts) = (child.0.to_vec(), o.cost.max(1), attempts.into());
                self.record(What::Placed(change::Placed { job, number, child, share, tasks: tasks.to_runs(), cost, attempts, adopt, most_micro }));
                self.send_place(job, number);
            }
        }
        self.changed.insert(job);
        self.advert_due = true;
    }

    /// Time passes: a parent that does not send again what it holds, children that do not come.
    pub(super) fn recovery_goes_on(&mut self) {
        let now = self.now.mono_ms;
        let passed = now.saturating_sub(self.started_ms);
        if !self.missed.is_empty() && passed >= REDIAL_MAX_MS + TICK_MS {
            self.be_sure(|j| j.spec.parsed.on_lost == OnLost::Requeue);
            if passed >= RECOVERY_WAIT_MS {
                self.missed.clear();
                self.be_sure(|_| true);
            }
        }
        let silent = |p: &super::Parent| p.attached && p.resent.is_some() && now.saturating_sub(p.resent_from_ms) >= RECOVERY_WAIT_MS;
        let late: Vec<SiteId> = self.parents.iter().filter(|(_, p)| silent(p)).map(|(id, _)| *id).collect();
        for parent in late {
            if let Some(p) = self.parents.get_mut(&parent) {
                p.resent = None;
            }
            self.resync_soon(parent);
        }
        let passed = now.saturating_sub(self.recovering_from_ms);
        let all = self.all_have_listed();
        if !self.state.recovering || now < self.settle_ms || passed < RECOVERY_WAIT_MS && (passed < RECOVERY_WAIT_MIN_MS || !all) {
            return;
        }
        self.settle_ms = now + RECOVERY_PAUSE_MS;
        let doubted: Vec<u64> = self.state.jobs.values().filter(|j| j.count(Phase::Held) > 0).map(|j| j.no).collect();
        let waits = doubted.into_iter().filter(|job| !self.settle_doubts(*job, false)).count();
        if waits == 0 {
            self.record(What::Born(change::Born { incarnation: self.state.incarnation, ..Default::default() }));
            self.actions.push(Action::Warn("recovered: parents and children have said what they hold".into()));
            self.claim_all();
        }
    }

    /// Have those that may have had work of ours, as far as we know, said what they have?
    fn all_have_listed(&self) -> bool {
        let agent = intergrid_proto::pb::Kind::from(Kind::Agent) as i32;
        // Machines come and go; one that is missed had work.
        let missed = |id: &SiteId, kind: i32| kind != agent || self.state.placed_on.get(id).is_some_and(|p| !p.is_empty());
        self.state.cursors.iter().all(|(id, c)| self.has_listed(id, u64::MAX) || !missed(id, c.kind))
    }

    fn has_listed(&self, child: &SiteId, complete_from: u64) -> bool {
        self.children.get(child).is_some_and(|c| c.attached && c.listed.is_some_and(|from| from <= complete_from))
    }

    /// Is what no child claims known to have been placed nowhere? Every child that there is, as far as can be known, leaves nothing out.
    fn is_certain(&self) -> bool {
        if self.lists_less {
            return false;
        }
        let from = self.state.doubt_from + 1;
        let attached = || self.children.iter().filter(|(_, c)| c.attached).map(|(id, c)| (id, c.hop.name.as_str()));
        let expected = |names: &BTreeSet<String>| names.iter().all(|n| attached().any(|(id, name)| name == n && self.has_listed(id, from)));
        match &self.expected {
            Some(names) => expected(names),
            None => self.state.doubt_from > 0 && self.state.cursors.keys().all(|id| self.has_listed(id, from)),
        }
    }

    /// Doubtful tasks that nobody has claimed: placed again where a lost attempt may be or it is certain that there was none, else kept, with the reason.
    /// False: somebody may still have a word to say of them.
    fn settle_doubts(&mut self, job: u64, new: bool) -> bool {
        let Some(j) = self.state.jobs.get(&job) else { return true };
        let now = j.parent.and_then(|p| self.state.links.get(&p)).map_or(0, |l| l.peer_incarnation);
        let orphan = |up: u32| j.parent.is_some() && j.ups.get(&up).is_some_and(|e| e.incarnation != now);
        let tasks = j.select(&j.all(), |c| c.is_doubtful() && c.down == 0 && !orphan(c.up));
        if tasks.is_empty() {
            return true;
        }
        if self.state.recovering && j.parent.is_some_and(|p| !self.parents.get(&p).is_some_and(|p| p.confirmed)) {
            return false;
        }
        let forgotten = j.select(&tasks, |c| c.exit == EXIT_FORGOTTEN);
        let (again, lost) = match j.spec.parsed.on_lost {
            OnLost::Requeue => (tasks, TaskSet::new()),
            OnLost::Wait if planted(Plant::DoubtStarts) => (tasks, TaskSet::new()),
            OnLost::Wait if self.state.recovering && self.is_certain() => (tasks.subtract(&forgotten), forgotten),
            OnLost::Wait => (TaskSet::new(), tasks),
        };
        if !again.is_empty() {
            self.set_phase_and_tell(job, &again, Phase::Queued);
            self.arrived(job);
            self.enforce_want(job);
        }
        let uncertain = !lost.subtract(&self.state.jobs[&job].select(&lost, |c| c.exit == EXIT_FORGOTTEN)).is_empty();
        if !lost.is_empty() && (new || self.lost_told.insert(job)) {
            let reason = evidence_lost();
            self.emit_for(job, &lost, &|_| EventKind::Held(reason.clone()));
            if let Some(j) = self.state.jobs.get_mut(&job) {
                j.last_return = Some((self.now.mono_ms, reason));
            }
            self.changed.insert(job);
        }
        !uncertain
    }

    /// A full state says of a task that it is held, not that nobody knows what became of it: that is said again behind it.
    pub(super) fn say_lost_again(&mut self, parent: SiteId) {
        let jobs = self.state.jobs.values().filter(|j| j.parent == Some(parent) && j.count(Phase::Held) > 0);
        let jobs: Vec<(u64, TaskSet)> = jobs.map(|j| (j.no, j.all())).collect();
        jobs.into_iter().for_each(|(job, all)| self.say_lost_of(job, &all));
    }

    /// Of these tasks, those of which nobody below knows.
    pub(super) fn say_lost_of(&mut self, job: u64, tasks: &TaskSet) {
        let Some(j) = self.state.jobs.get(&job) else { return };
        let settled = self.is_settled(job);
        let lost = |c: super::state::Cell| c.phase() == Some(Phase::Held) && c.exit == EXIT_LOST_BELOW;
        let tasks = j.select(tasks, |c| c.is_doubtful() && settled || lost(c));
        let reason = evidence_lost();
        self.emit_for(job, &tasks, &|_| EventKind::Held(reason.clone()));
    }

    /// Have those below had their time to say what they hold of it?
    pub(super) fn is_settled(&self, job: u64) -> bool {
        !self.state.recovering || self.lost_told.contains(&job)
    }

    /// Tasks in doubt that are to be held.
    pub(super) fn doubted_on_hold(&self, job: u64) -> TaskSet {
        let settled = self.is_settled(job);
        let Some(j) = self.state.jobs.get(&job).filter(|_| settled) else { return TaskSet::new() };
        j.want.tasks(WantValue::Hold, &j.select(&j.all(), |c| c.is_doubtful()))
    }

    /// Somebody above held them and lets them go: he wants them run, whatever became of them before.
    pub(super) fn release_doubted(&mut self, job: u64, held: &TaskSet) {
        let Some(j) = self.state.jobs.get(&job) else { return };
        let released = j.want.tasks(WantValue::Run, held).intersect(held);
        self.set_phase_and_tell(job, &released, Phase::Queued);
    }

    /// Why tasks in doubt wait.
    pub(super) fn why_doubted(&self) -> Reason {
        match self.state.recovering {
            true => {
                Reason::new(ReasonKind::EvidenceLost, "this site's store was found to be old or lost; it waits for its peers to say what they hold")
            }
            false => evidence_lost(),
        }
    }
}

pub(super) fn evidence_lost() -> Reason {
    Reason::new(ReasonKind::EvidenceLost, "it was here before the store was lost, and nobody below claims it: it may have run")
        .remedy("hold and release it to run it (again), or cancel it by force")
}

fn is_of(j: &Job, o: &Orphan) -> bool {
    j.spec_hash == o.spec_hash && j.size == o.array_size && j.origin.is(&o.origin)
}

fn j_down(j: &Job, number: u64) -> Option<(SiteId, u32)> {
    j.downs.get(&number).map(|d| (d.child, d.attempts))
}

/// What waits at this site; held back for good only what has used up its attempts.
fn waits(j: &Job) -> TaskSet {
    let used_up = |attempts: u8| u32::from(attempts) >= j.spec.parsed.attempts_max;
    j.select(&j.all(), |c| c.is_open() && c.down == 0 && !(c.phase() == Some(Phase::Held) && used_up(c.attempts)))
}
