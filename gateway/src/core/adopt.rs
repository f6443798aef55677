//! A child towards a parent when one of the two has lost its store: what this site holds of older incarnations of the parent is listed to it and goes on
//! under the names that the parent gives it; and what the parent sends again because this site has forgotten is taken in as doubtful.
//!
//! Invariants: an orphan that runs, runs on; one that waits is not started before somebody adopts it. A task that is sent again is started only after
//! those below have said what they hold (see `recover`).

use std::collections::BTreeMap;
use std::sync::Arc;

use intergrid_proto::link::{Attempts, Down, Event, EventKind, Former, Orphan, Orphans, Place, Up, WantValue};
use intergrid_proto::spec::OnLost;
use intergrid_proto::{JobSpec, Phase, Reason, ReasonKind, SiteId, TaskSet};

use super::change::{self, What};
use super::limits::*;
use super::rows::pieces;
use super::state::Spec;
use super::{Action, Core};

impl Core {
    /// Under which label tasks arrive in a job, where it is not that of the job's record.
    pub(super) fn label(&self, job: u64, incarnation: u64, parent_job: u64) -> change::TasksAdded {
        let plain = self.state.jobs.get(&job).is_none_or(|j| (j.parent_incarnation, j.parent_job) == (incarnation, parent_job));
        let (incarnation, parent_job) = if plain { (0, 0) } else { (incarnation, parent_job) };
        change::TasksAdded { incarnation, parent_job, ..Default::default() }
    }

    /// The parent's store is a new one: what of its tasks waits here is not started any more, unless the parent adopts it.
    pub(super) fn freeze_orphans(&mut self, parent: SiteId) {
        let now = self.state.links.get(&parent).map_or(0, |l| l.peer_incarnation);
        let mut due = Vec::new();
        for j in self.state.jobs.values().filter(|j| j.parent == Some(parent) && j.open() > 0) {
            let orphan = |up: u32| j.ups.get(&up).is_some_and(|e| e.incarnation != now);
            due.push((j.no, j.select(&j.all(), |c| c.is_open() && c.down == 0 && !c.is_doubtful() && orphan(c.up))));
        }
        due.into_iter().for_each(|(job, tasks)| self.doubt(job, &tasks));
    }

    /// Say what is here of older incarnations: all that runs or waits, and, where it is `asked` for, what has ended of late.
    pub(super) fn list_orphans(&mut self, parent: SiteId, asked: bool) {
        let now = self.state.links.get(&parent).map_or(0, |l| l.peer_incarnation);
        let since = self.now.unix_ms.saturating_sub(ORPHANS_ENDED_MS);
        let mut orphans: Vec<Orphan> = Vec::new();
        let mut complete_from = match self.state.recovering {
            true => u64::MAX,
            false => self.state.links.get(&parent).map_or(0, |l| l.complete_from),
        };
        complete_from = complete_from.max(self.parents.get(&parent).filter(|p| p.left_out > 0).map_or(0, |p| p.left_out + 1));
        let told = self.state.jobs.values().rev().filter(|j| j.parent == Some(parent) && j.ups.values().any(|e| e.incarnation != now));
        for j in told {
            if j.open() == 0 && (!asked || j.ended_ms < since || orphans.len() > ORPHANS_MAX) {
                let last = j.ups.values().filter(|e| e.incarnation != now).map(|e| e.number).max();
                complete_from = complete_from.max(last.map_or(0, |n| n + 1));
                continue;
            }
            let mut parts: BTreeMap<(u32, u8, u8), TaskSet> = BTreeMap::new();
            for (range, c) in j.runs(|c| (c.up, c.phase, c.attempts)) {
                if c.phase != 0 && (asked || c.is_open()) {
                    // The attempt that ended is one of them.
                    parts.entry((c.up, c.phase, c.attempts.saturating_sub(u8::from(!c.is_open())))).or_default().insert(range);
                }
            }
            for ((up, phase, attempts), tasks) in parts {
                let Some(e) = j.ups.get(&up).filter(|e| e.incarnation != now) else { continue };
                for tasks in pieces(&tasks, PLACEMENT_TASKS_MAX, CHANGE_RANGES_MAX) {
                    orphans.push(Orphan {
                        former: Former { incarnation: e.incarnation, number: e.number, job: e.job },
                        origin: j.origin.clone(),
                        spec_hash: j.spec_hash,
                        array_size: j.size,
                        tasks,
                        phase: Phase::from_number(i32::from(phase)).unwrap_or(Phase::Placed),
                        share: e.share.to_string(),
                        cost: e.cost,
                        attempts: attempts.into(),
                    });
                }
            }
        }
        if orphans.is_empty() && !asked {
            return;
        }
        let mut parts: Vec<Vec<Orphan>> = orphans.chunks(ORPHANS_PER_MESSAGE_MAX).map(<[_]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let n = parts.len();
        for (k, orphans) in parts.into_iter().enumerate() {
            self.actions.push(Action::ToParent(parent, Up::Orphans(Orphans { orphans, last: k + 1 == n, complete_from })));
        }
    }

    /// The parent knows these tasks again: they go on under its new name. What is not known here, comes back.
    pub(super) fn adopt(&mut self, parent: SiteId, p: Place, former: Former) {
        let Some(incarnation) = self.see(parent, p.number) else { return };
        let of = |tasks: &TaskSet| Attempts { number: p.number, job: p.job, tasks: tasks.clone() };
        let named = |n: &u64| {
            let j = self.state.jobs.get(n).filter(|j| j.spec_hash == p.spec_hash && j.size == p.array_size)?;
            let up = j.ups.iter().find(|(_, e)| (e.incarnation, e.number) == (former.incarnation, former.number));
            up.map(|(ord, _)| (*n, *ord))
        };
        let found = self.state.jobs_of(parent, former.incarnation, former.job).iter().find_map(named);
        let known = found.map(|(job, ord)| self.state.jobs[&job].select(&p.tasks, |c| c.up == ord && c.phase != 0)).unwrap_or_default();
        let unknown = p.tasks.subtract(&known);
        if let Some((job, ord)) = found.filter(|_| !known.is_empty()) {
            let waits = self.state.jobs[&job].select(&known, |c| c.is_doubtful());
            self.relabel(job, ord, &known, incarnation, &p);
            // What those below may hold, as far as this store can't know, the parent does not know either.
            if !self.is_settled(job) {
                self.doubt(job, &waits);
            }
            self.emit(parent, Event { of: of(&known), what: EventKind::Accepted });
            self.say_lost_of(job, &known);
            for phase in [Phase::Done, Phase::Failed, Phase::Cancelled] {
                let ended = self.state.jobs[&job].select(&known, |c| c.phase() == Some(phase));
                for t in pieces(&ended, CHANGE_TASKS_MAX, CHANGE_RANGES_MAX).into_iter().filter(|t| !t.is_empty()) {
                    let ended = self.told_again(&self.state.jobs[&job], &t, phase);
                    self.emit(parent, Event { of: of(&t), what: EventKind::Ended(ended) });
                }
            }
            // The parent counts the versions of its register anew.
            let j = &self.state.jobs[&job];
            let mut want = p.want.clone();
            let stopping = j.select(&j.want.tasks(WantValue::Cancel, &j.all()), |c| c.is_open());
            want.set(WantValue::Cancel, &stopping.subtract(&known).union(&want.tasks(WantValue::Cancel, &j.all())));
            self.record(What::Want(change::WantSet { job, parent: parent.0.to_vec(), want: Some(want.into()) }));
            self.hand_up_late(job, &known);
            self.enforce_want(job);
            self.repeat_hints(parent);
            self.arrived(job);
        }
        if !unknown.is_empty() {
            let reason = Reason::new(ReasonKind::EvidenceLost, "it is not known here any more");
            self.emit(parent, Event { of: of(&unknown), what: EventKind::Returned(reason) });
        }
    }

    /// Tasks of one parent's placement are of another from now on.
    fn relabel(&mut self, job: u64, from: u32, tasks: &TaskSet, incarnation: u64, p: &Place) {
        let Some(e) = self.state.jobs.get(&job).and_then(|j| j.ups.get(&from)) else { return };
        let (share, cost) = (e.share.to_string(), e.cost);
        for t in pieces(tasks, u64::MAX, CHANGE_RANGES_MAX) {
            let open = self.state.jobs[&job].select(&t, |c| c.is_open()).len();
            let (share, tasks, number, parent_job, most_micro) = (share.clone(), t.to_runs(), p.number, p.job, p.attempt_cost_max);
            let attempts = 0;
            self.record(What::Adopted(change::TasksAdded {
                job,
                number,
                share,
                tasks,
                attempts,
                cost,
                incarnation,
                parent_job,
                from,
                open,
                most_micro,
            }));
        }
    }

    /// Of tasks that their parent knows again, those that used up their attempts while they were nobody's: it could not be told then.
    fn hand_up_late(&mut self, job: u64, tasks: &TaskSet) {
        let Some(j) = self.state.jobs.get(&job) else { return };
        let (attempts_max, capped) = (j.spec.parsed.attempts_max, j.max_cost().is_some());
        let mut used: BTreeMap<u8, TaskSet> = BTreeMap::new();
        // Where each attempt has its price, one that was lost is enough; what is held by a wish may have lost none.
        let by_wish = if capped { j.want.tasks(WantValue::Hold, tasks) } else { TaskSet::new() };
        j.each_run(&tasks.subtract(&by_wish), |range, c| {
            let waits = c.phase() == Some(Phase::Held) && c.down == 0 && !c.is_doubtful();
            if waits && (capped || u32::from(c.attempts) >= attempts_max) {
                used.entry(c.attempts).or_default().insert(range);
            }
        });
        used.into_iter().for_each(|(attempts, tasks)| self.hand_up(job, &tasks, attempts.into()));
    }

    /// A placement that we may have had: what we know of it stays as it is, what we don't is in doubt.
    pub(super) fn place_again(&mut self, parent: SiteId, p: Place) {
        let Some(incarnation) = self.state.links.get(&parent).map(|l| l.peer_incarnation) else { return };
        self.see(parent, p.number);
        if !self.state.recovering {
            let text = format!("{} sends again what it has placed here", self.parents.get(&parent).map_or("a parent", |q| &q.name));
            self.recover(&text, 0);
        }
        if let Some(q) = self.parents.get_mut(&parent) {
            // Not asked for in the hello: this store was found to be empty only now.
            let list = q.resent.get_or_insert_default().entry((p.job, p.number)).or_default();
            *list = list.union(&p.tasks);
        }
        let served = self.state.jobs_of(parent, incarnation, p.job);
        let orphaned = || self.state.jobs.values().find(|j| j.parent == Some(parent) && j.origin.is(&p.origin) && same(j, &p)).map(|j| j.no);
        let job = served.into_iter().find(|n| self.state.jobs.get(n).is_some_and(|j| same(j, &p))).or_else(orphaned);
        let job = match job {
            Some(job) => job,
            None => match self.spec_again(&p) {
                Ok(spec) => self.job_for(parent, incarnation, &p, &spec),
                Err(reason) => {
                    let of = Attempts { number: p.number, job: p.job, tasks: p.tasks };
                    return self.emit(parent, Event { of, what: EventKind::Returned(reason) });
                }
            },
        };
        let j = &self.state.jobs[&job];
        let ours = j.ups.iter().find(|(_, e)| (e.incarnation, e.number) == (incarnation, p.number)).map(|(ord, _)| *ord);
        // Here under an older name, and not over: it is the same task. So is one that may start once only, if it is over: somebody below was here with its end
        // before the parent with its later name.
        let once = j.spec.parsed.on_lost == OnLost::Wait;
        let renamed = j.select(&p.tasks, |c| c.phase != 0 && Some(c.up) != ours && (once || c.is_open()));
        let fresh = j.select(&p.tasks, |c| c.phase == 0 || Some(c.up) != ours && !c.is_open()).subtract(&renamed);
        let renamed = j.by_up(&renamed);
        for (from, tasks) in renamed {
            let waits = self.state.jobs[&job].select(&tasks, |c| c.is_doubtful());
            self.relabel(job, from, &tasks, incarnation, &p);
            self.doubt(job, &waits);
            self.hand_up_late(job, &tasks);
        }
        if !fresh.is_empty() {
            let cost = self.cost_at(&p.share, self.state.jobs[&job].shape());
            for t in pieces(&fresh, u64::MAX, CHANGE_RANGES_MAX) {
                let (share, attempts) = (p.share.clone(), p.attempts);
                let label = change::TasksAdded { most_micro: p.attempt_cost_max, ..self.label(job, incarnation, p.job) };
                self.record(What::Tasks(change::TasksAdded { job, number: p.number, share, tasks: t.to_runs(), attempts, cost, ..label }));
            }
            self.doubt(job, &fresh);
        }
        self.want_anew(job, p.want, &TaskSet::new());
        self.arrived(job);
    }

    /// It was let in before: only its bytes are looked at.
    #[allow(clippy::result_large_err)] // Not an error path: the reason is the product.
    fn spec_again(&self, p: &Place) -> Result<Arc<Spec>, Reason> {
        if let Some(spec) = self.state.specs.get(&p.spec_hash).and_then(|s| s.upgrade()) {
            return Ok(spec);
        }
        if intergrid_proto::BlobHash::of(&p.spec) != p.spec_hash {
            return Err(Reason::new(ReasonKind::InvalidSpec, "its spec is not what its hash says"));
        }
        let parsed = JobSpec::decode(&p.spec).map_err(|r| Reason::new(ReasonKind::InvalidSpec, r.message))?;
        Ok(Arc::new(Spec { bytes: p.spec.clone(), parsed }))
    }

    /// The parent has said all that it holds open here: what else is open here of its present incarnation, it has settled without us.
    pub(super) fn resent(&mut self, parent: SiteId) {
        let (now, seen) = self.state.links.get(&parent).map_or((0, 0), |l| (l.peer_incarnation, l.seen));
        let Some(p) = self.parents.get_mut(&parent) else { return };
        let Some(list) = p.resent.take() else { return };
        p.confirmed = true;
        // All that is open is known again; of what has ended some may be forgotten.
        let (incarnation, number, complete_from) = (now, seen, seen + 1);
        self.record(What::Seen(change::Cursor {
            peer: parent.0.to_vec(),
            incarnation,
            number,
            complete_from,
            heard: self.state.incarnation,
            ..Default::default()
        }));
        let mut due = Vec::new();
        for j in self.state.jobs.values().filter(|j| j.parent == Some(parent) && j.open() > 0) {
            for (up, e) in j.ups.iter().filter(|(_, e)| e.incarnation == now && e.open > 0) {
                let open = j.select(&j.all(), |c| c.up == *up && c.is_open());
                let settled = list.get(&(e.job, e.number)).map_or(open.clone(), |l| open.subtract(l));
                if !settled.is_empty() {
                    due.push((j.no, settled));
                }
            }
        }
        for (job, tasks) in due {
            self.let_go(job, &tasks);
        }
        self.resync_soon(parent);
        self.repeat_hints(parent);
        self.claim_all();
        self.settle_ms = self.now.mono_ms;
        self.advert_due = true;
    }

    /// Attempts that a parent no longer counts, where they are here under the names of its older incarnations. It gives no number twice to one child.
    pub(super) fn let_orphans_go(&mut self, parent: SiteId, list: &[Attempts]) {
        let now = self.state.links.get(&parent).map_or(0, |l| l.peer_incarnation);
        let named: BTreeMap<(u64, u64), &TaskSet> = list.iter().map(|a| ((a.number, a.job), &a.tasks)).collect();
        let mut due = Vec::new();
        for j in self.state.jobs.values().filter(|j| !named.is_empty() && j.parent == Some(parent) && j.open() > 0) {
            for (up, e) in j.ups.iter().filter(|(_, e)| e.incarnation != now) {
                let tasks = named.get(&(e.number, e.job)).map(|t| j.select(t, |c| c.up == *up && c.is_open()));
                due.extend(tasks.filter(|t| !t.is_empty()).map(|t| (j.no, t)));
            }
        }
        due.into_iter().for_each(|(job, tasks)| self.let_go(job, &tasks));
    }

    /// Tasks that no longer count: what may run below is fenced, and all of it leaves without a word.
    fn let_go(&mut self, job: u64, tasks: &TaskSet) {
        let Some(j) = self.state.jobs.get(&job) else { return };
        let mut below: BTreeMap<u64, TaskSet> = BTreeMap::new();
        j.each_run(tasks, |range, c| {
            if c.is_below() {
                below.entry(c.down).or_default().insert(range);
            }
        });
        for (number, tasks) in below {
            let Some((child, attempts)) = self.state.jobs[&job].downs.get(&number).map(|d| (d.child, d.attempts)) else { continue };
            for t in pieces(&tasks, u64::MAX, CHANGE_RANGES_MAX) {
                self.record(What::Fenced(change::Requeued { job, number, tasks: t.to_runs(), attempts, ..Default::default() }));
            }
            if self.children.get(&child).is_some_and(|c| c.attached) {
                self.actions.push(Action::ToChild(child, Down::Stale(vec![Attempts { number, job, tasks }])));
            }
        }
        for t in pieces(tasks, u64::MAX, CHANGE_RANGES_MAX) {
            self.record(What::GivenBack(change::OfPlacement { job, number: 0, tasks: t.to_runs() }));
        }
        self.changed.insert(job);
        self.schedule_due = true;
    }
}

fn same(j: &super::state::Job, p: &Place) -> bool {
    j.spec_hash == p.spec_hash && j.size == p.array_size
}
