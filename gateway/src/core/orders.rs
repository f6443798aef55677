//! Orders: a site or child takes no new work, a child's attempts are declared lost, tasks end without a confirmed stop, an array is throttled.
//!
//! Each is one or more changes; said again it changes nothing more. What may still run below is fenced, so that its child stops it when it hears of that.

use std::collections::BTreeMap;

use intergrid_proto::link::{Attempts, Down, Ended, Hop, Kind, WantValue};
use intergrid_proto::spec::OnLost;
use intergrid_proto::{Exit, JobNo, Phase, Reason, ReasonKind, Refusal, RefusalKind, Share, SiteId, TaskSet, pb};

use super::change::{self, What};
use super::limits::*;
use super::rows::pieces;
use super::state::Drain;
use super::{Action, Core};

/// What is ordered. Who may is the service's concern.
#[allow(missing_docs)] // The fields: the variants say what they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// This site, or a child of it, takes no new work. By name or id; empty: this site.
    Drain { site: String, reason: String, by: String },
    /// It takes work again.
    Resume { site: String },
    /// Every open attempt of this child is lost: it runs elsewhere, or has failed.
    Lost { site: String, by: String },
    /// Who `Lost` would concern, and how many tasks: nothing is done.
    Look { site: String },
    /// As `Lost`, and it is certain that nothing of it runs any more: its machine is gone.
    Gone { site: String, by: String },
    /// Tasks end as cancelled, whatever still runs below. None: all.
    Cancel { job: u64, tasks: Option<TaskSet> },
    /// So many tasks of an array at a time; 0: as many as can be.
    Throttle { job: u64, at_once: u32 },
}

/// What an order did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Done {
    /// Whom it concerned.
    pub site: Option<Hop>,
    /// Tasks concerned.
    pub tasks: u64,
    /// Tasks declared lost that run elsewhere; the others have failed.
    pub elsewhere: u64,
    /// Where tasks may still run, and how many.
    pub at: Vec<(Hop, u64)>,
}

impl Core {
    pub(super) fn order(&mut self, order: Order) -> Result<Done, Refusal> {
        match order {
            Order::Drain { site, reason, by } => self.drain(&site, Some((reason, by))),
            Order::Resume { site } => self.drain(&site, None),
            Order::Lost { site, by } => self.declare_lost(&site, &by),
            Order::Look { site } => {
                let hop = self.child(&site)?;
                Ok(Done { tasks: self.open_at(&hop), site: Some(hop), ..Default::default() })
            }
            Order::Gone { site, by } => self.gone_for_good(&site, &by),
            Order::Cancel { job, tasks } => self.cancel_by_force(job, tasks),
            Order::Throttle { job, at_once } => self.throttle(job, at_once),
        }
    }

    /// This site, or a child that it knows.
    fn target(&self, name: &str) -> Result<Hop, Refusal> {
        let is = |id: &SiteId, label: &str| label == name || id.to_string() == name;
        if name.is_empty() || is(&self.me.site, &self.me.name) {
            return Ok(self.me.clone());
        }
        let mut known: BTreeMap<SiteId, Hop> =
            self.state.cursors.iter().filter(|(id, c)| is(id, &c.name)).map(|(id, _)| (*id, self.child_hop(*id))).collect();
        known.extend(self.children.iter().filter(|(id, c)| is(id, &c.hop.name)).map(|(id, c)| (*id, c.hop.clone())));
        // A machine that was set up anew has its name and another id: whoever is here is meant, or was here last and has work.
        if known.len() > 1 {
            let here = |id: &SiteId| self.children.get(id).is_some_and(|c| c.attached);
            let has_work = |id: &SiteId| self.state.placed_on.get(id).is_some_and(|p| !p.is_empty());
            let meant = known.keys().find(|id| here(id)).or_else(|| known.keys().find(|id| has_work(id))).copied();
            if known.keys().filter(|id| here(id) || has_work(id)).count() > 1 {
                let ids = known.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let message = format!("several are, or were, called {name:?} here: {ids}");
                return Err(Refusal::new(RefusalKind::Conflict, message).remedy("name one by its id"));
            }
            if let Some(id) = meant {
                known.retain(|k, _| *k == id);
            }
        }
        known.into_values().next().ok_or_else(|| {
            let message = format!("{name:?} is neither {} nor attached to it", self.me.name);
            Refusal::new(RefusalKind::NotFound, message).remedy("`grid hosts --tree` names them")
        })
    }

    /// A child that it knows, which may be lost.
    fn child(&self, name: &str) -> Result<Hop, Refusal> {
        let hop = self.target(name)?;
        if hop.site == self.me.site {
            return Err(Refusal::invalid(format!("{} can't declare itself lost", hop.name)).remedy("name an agent or a child of it"));
        }
        Ok(hop)
    }

    /// Has this agent left, with nothing of its work or of our word kept for it? One that was here when this process began may yet dial again.
    fn has_left(&self, hop: &Hop) -> bool {
        let (kept, s) = (self.children.contains_key(&hop.site), &self.state);
        let away = hop.kind == Kind::Agent && !kept && s.cursors.get(&hop.site).is_some_and(|c| !c.here);
        away && !s.drains.contains_key(&hop.site) && s.placed_on.get(&hop.site).is_none_or(BTreeMap::is_empty)
    }

    fn drain(&mut self, name: &str, why: Option<(String, String)>) -> Result<Done, Refusal> {
        let hop = self.target(name)?;
        if why.is_none() && self.has_left(&hop) {
            let message =
                format!("agent {} is no longer attached to {}, and is not drained: its machine has ended, or is away", hop.name, self.me.name);
            return Err(Refusal::new(RefusalKind::NotFound, message).remedy("`grid hosts --tree` names who is here"));
        }
        let now = self.state.drains.get(&hop.site);
        let same = match (&why, now) {
            (Some((reason, _)), Some(d)) => *reason == d.reason,
            (None, None) => true,
            _ => false,
        };
        if !same {
            if now.is_none() && self.state.drains.len() >= DRAINS_MAX {
                let message = format!("{DRAINS_MAX} sites and agents are drained here already");
                return Err(Refusal::new(RefusalKind::OverLimit, message).remedy("resume some, or end those that are gone"));
            }
            let since_ms = now.map_or(self.now.unix_ms, |d| d.since_ms);
            let (site, drained) = (hop.site.0.to_vec(), why.is_some());
            let (reason, by) = why.unwrap_or_default();
            self.record(What::Drained(change::Drained { site, drained, reason, by, since_ms }));
            self.schedule_due = true;
            self.advert_due = true;
            let waiting: Vec<u64> = self.state.waiting.values().flatten().copied().collect();
            self.changed.extend(waiting);
        }
        Ok(Done { tasks: self.open_at(&hop), site: Some(hop), ..Default::default() })
    }

    /// Tasks that are placed on this child and have not ended; of this site: on all of them.
    fn open_at(&self, hop: &Hop) -> u64 {
        let there = |d: &super::state::DownEntry| hop.site == self.me.site || d.child == hop.site;
        self.state.jobs.values().flat_map(|j| j.downs.values()).filter(|d| there(d)).map(|d| d.open).sum()
    }

    /// Whose word keeps work from this child: its own, or this site's.
    pub(super) fn drained(&self, child: SiteId) -> Option<(&str, &Drain)> {
        let own = self.state.drains.get(&child).filter(|_| child != self.me.site);
        let own = own.map(|d| (self.state.cursors.get(&child).map_or("a child", |c| c.name.as_str()), d));
        own.or_else(|| self.state.drains.get(&self.me.site).map(|d| (self.me.name.as_str(), d)))
    }

    /// Why, in words; and for how many milliseconds.
    pub(super) fn draining(&self, child: SiteId) -> Option<(String, u64)> {
        let ordered = |(name, d): (&str, &Drain)| (format!("{name} takes no new work: {}", d.reason), self.now.unix_ms.saturating_sub(d.since_ms));
        self.drained(child).map(ordered).or_else(|| self.no_room())
    }

    /// Why nothing is placed on this share: our own word, or that of somebody below.
    pub(super) fn why_draining(&self, child: SiteId, key: &str, share: &Share) -> Reason {
        let (text, age) = self.draining(child).unwrap_or_else(|| {
            let heard = self.children.get(&child).map_or(0, |c| self.now.mono_ms.saturating_sub(c.heard_ms));
            let text = if share.draining_reason.is_empty() { format!("{key} takes no new work") } else { share.draining_reason.clone() };
            (text, share.draining_age_ms + heard)
        });
        Reason::new(ReasonKind::Draining, text).aged(age)
    }

    /// As it is told of a host: only what was ordered of itself.
    pub(super) fn host_draining(&self, site: SiteId) -> Option<pb::Reason> {
        let d = self.state.drains.get(&site)?;
        let reason = Reason::new(ReasonKind::Draining, d.reason.clone()).aged(self.now.unix_ms.saturating_sub(d.since_ms));
        Some(Reason { site: Some((self.me.site, d.by.clone())), ..reason }.into())
    }

    /// As all of them stop to count, while their child may not have stopped.
    fn fence(&mut self, job: u64, number: u64, tasks: &TaskSet, attempts: u32) {
        for t in pieces(tasks, u64::MAX, CHANGE_RANGES_MAX) {
            self.record(What::Fenced(change::Requeued { job, number, tasks: t.to_runs(), attempts, ..Default::default() }));
        }
    }

    /// A child that is here is told at once; one that is not, when it is back.
    fn tell_stale(&mut self, told: BTreeMap<SiteId, Vec<Attempts>>) {
        for (child, stale) in told {
            if self.children.get(&child).is_some_and(|c| c.attached) {
                for stale in stale.chunks(ATTEMPTS_PER_MESSAGE_MAX) {
                    self.actions.push(Action::ToChild(child, Down::Stale(stale.to_vec())));
                }
            }
            // What it knows nothing of it does not stop either: its full state says so.
            if let Some(c) = self.children.get_mut(&child) {
                c.resync_due = true;
            }
        }
    }

    fn declare_lost(&mut self, name: &str, by: &str) -> Result<Done, Refusal> {
        let hop = self.child(name)?;
        let placed: Vec<(u64, u64)> = self.state.placed_on.get(&hop.site).into_iter().flatten().map(|(n, j)| (*n, *j)).collect();
        let (kind, how) = match self.children.get(&hop.site) {
            Some(c) if c.attached => (ReasonKind::EvidenceLost, "is attached"),
            _ => (ReasonKind::ContactLost, "is away"),
        };
        let drained = self.state.drains.get(&hop.site).map_or_else(String::new, |d| format!("; it took no new work: {}", d.reason));
        let text = format!("{by} declared all attempts at {} lost, which {how}{drained}", hop.name);
        let mut done = Done { site: Some(hop.clone()), ..Default::default() };
        let mut told: BTreeMap<SiteId, Vec<Attempts>> = BTreeMap::new();
        for (number, job) in placed {
            let Some(j) = self.state.jobs.get(&job) else { continue };
            let Some(attempts) = j.downs.get(&number).map(|d| d.attempts + 1) else { continue };
            let tasks = j.select(&j.all(), |c| c.down == number && c.is_below());
            if tasks.is_empty() {
                continue;
            }
            done.tasks += tasks.len();
            told.entry(hop.site).or_default().push(Attempts { number, job, tasks: tasks.clone() });
            let lost = unknown_end(Phase::Failed, Reason::new(kind, text.clone()), attempts);
            match j.spec.parsed.on_lost {
                OnLost::Requeue => {
                    done.elsewhere += tasks.len();
                    self.note_stale(job, number, Some(hop.clone()), &tasks, &Ended { lost: true, ..lost });
                    self.requeue(job, number, &tasks, attempts, true);
                }
                OnLost::Wait => {
                    let cancelled = j.want.tasks(WantValue::Cancel, &tasks);
                    let failed = tasks.subtract(&cancelled);
                    self.fence(job, number, &tasks, attempts);
                    for (tasks, phase) in [(cancelled, Phase::Cancelled), (failed, Phase::Failed)] {
                        if !tasks.is_empty() {
                            self.finish(job, 0, Some(hop.clone()), &tasks, &Ended { phase, ..lost.clone() });
                        }
                    }
                }
            }
        }
        if done.tasks > 0 {
            done.at.push((hop, done.tasks));
        }
        self.tell_stale(told);
        Ok(done)
    }

    fn gone_for_good(&mut self, name: &str, by: &str) -> Result<Done, Refusal> {
        let done = self.declare_lost(name, by)?;
        let Some(site) = done.site.as_ref().map(|s| s.site) else { return Ok(done) };
        let placed: Vec<(u64, u64)> = self.state.placed_on.get(&site).into_iter().flatten().map(|(n, j)| (*n, *j)).collect();
        for (number, job) in placed {
            let fenced = self.state.jobs.get(&job).and_then(|j| j.downs.get(&number)).map(|d| d.fenced.clone()).unwrap_or_default();
            for tasks in pieces(&fenced, u64::MAX, CHANGE_RANGES_MAX) {
                self.record(What::Stopped(change::OfPlacement { job, number, tasks: tasks.to_runs() }));
            }
            self.changed.insert(job);
        }
        self.schedule_due = true;
        Ok(done)
    }

    fn cancel_by_force(&mut self, job: u64, tasks: Option<TaskSet>) -> Result<Done, Refusal> {
        let open = |core: &Core| core.state.jobs.get(&job).map_or(0, |j| j.select(&tasks.clone().unwrap_or_else(|| j.all()), |c| c.is_open()).len());
        let before = open(self);
        self.user_wants(job, WantValue::Cancel, tasks.clone())?;
        let Some(j) = self.state.jobs.get(&job) else { return Ok(Done::default()) };
        let wanted = tasks.clone().unwrap_or_else(|| j.all());
        let below: Vec<(u64, SiteId, u32, TaskSet)> = j
            .downs
            .iter()
            .map(|(n, d)| (*n, d.child, d.attempts + 1, j.select(&wanted, |c| c.down == *n && c.is_below())))
            .filter(|(.., t)| !t.is_empty())
            .collect();
        let (mut told, mut at): (BTreeMap<SiteId, Vec<Attempts>>, BTreeMap<SiteId, u64>) = Default::default();
        for (number, child, attempts, tasks) in below {
            self.fence(job, number, &tasks, attempts);
            let reason = Reason::new(ReasonKind::CancelledByUser, "cancelled by force: its stop has not been confirmed");
            let hop = self.child_hop(child);
            self.finish(job, 0, Some(hop), &tasks, &unknown_end(Phase::Cancelled, reason, attempts));
            *at.entry(child).or_default() += tasks.len();
            told.entry(child).or_default().push(Attempts { number, job, tasks });
        }
        self.tell_stale(told);
        let doubtful = self.state.jobs[&job].select(&wanted, |c| c.is_doubtful());
        if !doubtful.is_empty() {
            let reason = Reason::new(ReasonKind::CancelledByUser, "cancelled by force: whether it ran is not known");
            self.finish(job, 0, None, &doubtful, &unknown_end(Phase::Cancelled, reason, 0));
        }
        let at = at.into_iter().map(|(child, n)| (self.child_hop(child), n)).collect();
        Ok(Done { tasks: before.saturating_sub(open(self)), at, ..Default::default() })
    }

    fn throttle(&mut self, job: u64, at_once: u32) -> Result<Done, Refusal> {
        let unknown = || Refusal::new(RefusalKind::NotFound, format!("no job {} here", JobNo(job)));
        let j = self.state.jobs.get(&job).ok_or_else(unknown)?;
        if j.parent.is_some() {
            let message = format!("job {} was placed here, as job {}", JobNo(job), j.origin.job);
            return Err(Refusal::new(RefusalKind::NotAuthorised, message).remedy("ask where it was submitted"));
        }
        if j.tasks_at_once() != (at_once > 0).then_some(at_once) {
            self.record(What::Throttled(change::Throttled { job, at_once }));
            self.schedule_due = true;
            self.changed.insert(job);
        }
        Ok(Done { tasks: self.state.jobs[&job].open(), ..Default::default() })
    }
}

/// Nobody saw how it ended.
fn unknown_end(phase: Phase, reason: Reason, attempts: u32) -> Ended {
    Ended { exit: vec![Exit::Unknown.to_number()], ..Ended::not_started(phase, reason, attempts) }
}
