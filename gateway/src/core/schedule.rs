//! Placing waiting tasks: a pure Problem -> Plan.
//!
//! Properties (tests below): a plan never gives a share more than its credit, never places more tasks than wait, never a shape where it does not fit,
//! and leaves no task waiting that some allowed share had credit for. A pass costs shapes x shares, not tasks.

use std::collections::BTreeMap;
use std::sync::Arc;

use intergrid_proto::limits::{HOPS_MAX, SHARES_MAX};
use intergrid_proto::link::{Kind, ShapeDemand};
use intergrid_proto::share::Fit;
use intergrid_proto::units::format_duration;
use intergrid_proto::{Phase, Reason, ReasonKind, Shape, Share, SiteId, TaskSet};

use super::Core;
use super::change::{self, What};
use super::limits::*;
use super::planted::{Plant, planted};
use super::state::QueueKey;
use super::steps::Step;

/// Waiting tasks of one shape that may go to the same shares.
#[derive(Clone, Debug)]
pub struct Demand {
    /// What each needs.
    pub shape: Shape,
    /// How many wait (at least; not more than could be placed are counted).
    pub tasks: u64,
    /// Number of the oldest job: the lower, the earlier it is served.
    pub oldest: u64,
    /// Offers that may take it, by index.
    pub allowed: Vec<usize>,
}

/// What a share can take now.
#[derive(Clone, Debug)]
pub struct Offer<'a> {
    /// Whose.
    pub child: SiteId,
    /// As advertised.
    pub share: &'a Share,
    /// Slots that may be placed: window less outstanding.
    pub credit: u64,
    /// Of these, slots that are free; the rest is lookahead.
    pub free: u64,
}

/// A scheduling problem.
#[derive(Clone, Debug, Default)]
pub struct Problem<'a> {
    /// Ordered by `oldest`.
    pub demands: Vec<Demand>,
    /// All of them.
    pub offers: Vec<Offer<'a>>,
}

/// Demand, offer (both by index), tasks.
pub type Plan = Vec<(usize, usize, u64)>;

/// Chooses among offers.
pub trait Policy: Send + Sync {
    /// See the properties above.
    fn plan(&self, problem: &Problem<'_>) -> Plan;

    /// When shares that have a price may be used.
    fn burst(&self) -> Burst {
        Burst::default()
    }
}

/// Work goes to shares that have a price once it has waited so long, or so much of it waits: whatever comes first. By default at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Burst {
    /// Since the oldest of them began to wait: milliseconds.
    pub after_ms: u64,
    /// Tasks of one shape and principal; None: however many.
    pub tasks: Option<u64>,
}

impl Burst {
    /// May tasks that have waited so long, so many of them, cost money? Else: when.
    fn may(&self, waited_ms: u64, tasks: u64) -> Result<(), String> {
        if waited_ms >= self.after_ms || self.tasks.is_some_and(|most| tasks >= most) {
            return Ok(());
        }
        let time =
            (self.after_ms < u64::MAX).then(|| format!("after {} s of waiting ({} s so far)", self.after_ms.div_ceil(1_000), waited_ms / 1_000));
        let many = self.tasks.map(|most| format!("when {most} tasks wait ({tasks} do)"));
        let when: Vec<String> = time.into_iter().chain(many).collect();
        Err(format!("what costs money is used {}", when.join(", or ")))
    }
}

/// In order of the demands: to the offer with the most free slots first; lookahead only when no slot is free anywhere.
pub struct FirstFit;

impl Policy for FirstFit {
    fn plan(&self, problem: &Problem<'_>) -> Plan {
        let order = |free: &[u64], allowed: &[usize]| {
            let mut order = allowed.to_vec();
            order.sort_by_key(|i| std::cmp::Reverse(free[*i]));
            order
        };
        fill(problem, order)
    }
}

/// The common part of policies: two rounds over the demands, first what is free, then what the credit has beyond it; `order` says which offer is served
/// first, given what is left of each.
pub fn fill(problem: &Problem<'_>, order: impl Fn(&[u64], &[usize]) -> Vec<usize>) -> Plan {
    let mut used = vec![0u64; problem.offers.len()];
    let mut waiting: Vec<u64> = problem.demands.iter().map(|d| d.tasks).collect();
    let mut plan: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    for first in [true, false] {
        for (d, demand) in problem.demands.iter().enumerate().filter(|(_, demand)| !demand.allowed.is_empty()) {
            if waiting[d] == 0 {
                continue;
            }
            let bound = |o: &Offer<'_>| if first { o.free.min(o.credit) } else { o.credit };
            let left: Vec<u64> = problem.offers.iter().zip(&used).map(|(o, used)| bound(o).saturating_sub(*used)).collect();
            for o in order(&left, &demand.allowed) {
                let share = problem.offers[o].share;
                let cost = share.cost(&demand.shape).max(1);
                let n = (left[o] / cost).min(waiting[d]);
                if n == 0 || share.fit(&demand.shape) != Fit::Yes {
                    continue;
                }
                used[o] += n * cost;
                waiting[d] -= n;
                *plan.entry((d, o)).or_default() += n;
                if waiting[d] == 0 {
                    break;
                }
            }
        }
    }
    plan.into_iter().map(|((d, o), n)| (d, o, n)).collect()
}

impl Core {
    /// Credit and free slots of a child's share, as of now.
    fn credit(&self, child: SiteId, key: &Arc<str>, share: &Share, heard_ms: u64) -> (u64, u64) {
        if share.draining || self.is_closed(child) || self.now.mono_ms.saturating_sub(heard_ms) > share.credit_ms.max(1) {
            return (0, 0);
        }
        let out = self.state.outstanding.get(&(child, key.clone())).copied().unwrap_or(0);
        (share.window.saturating_sub(out), share.window.min(share.slots_total).saturating_sub(out))
    }

    /// Place what can be placed.
    pub(super) fn schedule(&mut self) {
        let placed = {
            let mut problem = Problem::default();
            let mut keys: Vec<Arc<str>> = Vec::new();
            for (id, c) in self.children.iter().filter(|(_, c)| c.attached) {
                for (key, share) in &c.shares {
                    let (credit, free) = self.credit(*id, key, share, c.heard_ms);
                    problem.offers.push(Offer { child: *id, share, credit, free });
                    keys.push(key.clone());
                }
            }
            let room: u64 = problem.offers.iter().map(|o| o.credit).sum();
            if room == 0 || self.state.waiting.is_empty() {
                self.note_demand();
                return;
            }
            let mut queues: Vec<&QueueKey> = Vec::new();
            for (queue, jobs) in &self.state.waiting {
                let mut tasks = 0;
                for n in jobs {
                    tasks += self.state.jobs.get(n).map_or(0, |j| j.placeable());
                    if tasks >= room {
                        break;
                    }
                }
                let bursts = self.may_burst(queue).is_ok();
                let may = |i: &usize| {
                    let offer = &problem.offers[*i];
                    (bursts || offer.share.price_micro_per_slot_hour == 0) && self.may_go(queue, offer, &keys[*i]).is_ok()
                };
                let allowed = (0..problem.offers.len()).filter(may).collect();
                let oldest = jobs.first().copied().unwrap_or(0);
                problem.demands.push(Demand { shape: queue.shape.clone(), tasks: tasks.min(room), oldest, allowed });
                queues.push(queue);
            }
            let mut order: Vec<usize> = (0..queues.len()).collect();
            order.sort_by_key(|i| problem.demands[*i].oldest);
            problem.demands = order.iter().map(|i| problem.demands[*i].clone()).collect();
            let plan = self.policy.plan(&problem);
            plan.into_iter()
                .map(|(d, o, n)| {
                    let offer = &problem.offers[o];
                    (queues[order[d]].clone(), offer.child, keys[o].clone(), offer.share.cost(&problem.demands[d].shape).max(1), n)
                })
                .collect::<Vec<_>>()
        };
        for (queue, child, key, cost, n) in placed {
            self.draw(&queue, child, &key, cost, n);
        }
        self.note_demand();
    }

    /// May tasks of this queue go there? Never where the job has passed, nor to a share that came through such a site.
    #[allow(clippy::result_large_err)] // Not an error path: the reason is the product.
    fn may_go(&self, queue: &QueueKey, offer: &Offer<'_>, key: &Arc<str>) -> Result<(), Reason> {
        if queue.route.contains(&offer.child) || offer.share.path.iter().any(|s| queue.route.contains(s)) {
            return Err(Reason::new(ReasonKind::Loop, format!("it came from there: {key}")));
        }
        // It would be refused at the end of the way, having been taken by everybody before.
        let hops = queue.route.len() + offer.share.path.len();
        if self.children.get(&offer.child).is_some_and(|c| c.hop.kind != Kind::Agent) && hops > HOPS_MAX as usize + 1 && !planted(Plant::NoHopLimit) {
            return Err(Reason::new(
                ReasonKind::Loop,
                format!("{key} is {} sites away, at most {HOPS_MAX} hops are allowed", offer.share.path.len()),
            ));
        }
        if let Fit::No(text) = offer.share.fit(&queue.shape) {
            return Err(Reason::new(ReasonKind::NoFit, text));
        }
        if let Fit::No(text) = offer.share.fit_time(queue.time_limit_ms) {
            return Err(Reason::new(ReasonKind::OverLimit, text));
        }
        if let Some(job) = queue.capped {
            self.afford(job, offer.share, key)?;
        }
        if let Some(c) = self.children.get(&offer.child).filter(|c| c.paused_until_ms > self.now.mono_ms) {
            let text = format!("{} gives back too much of what it gets, it is left alone for a moment", c.hop.name);
            return Err(Reason::new(ReasonKind::BackOff, text));
        }
        let pauses = self.children.get(&offer.child).map(|c| &c.back_off).filter(|p| !p.is_empty());
        let pause = pauses.and_then(|p| {
            let of = |q| p.get(&(key.clone(), q)).filter(|(until, ..)| *until > self.now.mono_ms);
            of(queue.anybody()).or_else(|| of(queue.clone()))
        });
        if let Some((until, pause, reason)) = pause {
            let text = format!("{key} gave work back, it is left alone for {} ms more", until - self.now.mono_ms);
            let since = self.now.mono_ms.saturating_sub(until.saturating_sub(*pause));
            return Err(Reason::new(ReasonKind::BackOff, text).because(vec![reason.clone().later(since)]));
        }
        Ok(())
    }

    /// May tasks of this queue go where they cost money? Else: why not yet.
    fn may_burst(&self, queue: &QueueKey) -> Result<(), String> {
        let burst = self.policy.burst();
        if burst == Burst::default() {
            return Ok(());
        }
        // Each job with a cap is a queue of its own, and so is each time limit; they wait together.
        let first = QueueKey { time_limit_ms: None, capped: None, ..queue.clone() };
        let last = QueueKey { time_limit_ms: Some(u64::MAX), capped: Some(u64::MAX), ..queue.clone() };
        let jobs = || self.state.waiting.range(&first..=&last).flat_map(|(_, jobs)| jobs).filter_map(|n| self.state.jobs.get(n));
        let waited_ms = jobs().map(|j| self.now.unix_ms.saturating_sub(j.waits_ms)).max().unwrap_or(0);
        burst.may(waited_ms, jobs().map(|j| j.placeable()).sum())
    }

    /// Take tasks from a queue, oldest job first, and place them.
    fn draw(&mut self, queue: &QueueKey, child: SiteId, key: &Arc<str>, cost: u64, mut n: u64) {
        while n > 0 {
            // A throttled job may have all that it may have: the next one's turn.
            let room = |n: &&u64| self.state.jobs.get(n).is_some_and(|j| j.placeable() > 0);
            let Some(job) = self.state.waiting.get(queue).and_then(|q| q.iter().find(room).copied()) else { return };
            let (mut most_micro, mut payable) = (0, None);
            if queue.capped.is_some() {
                let share = self.children.get(&child).and_then(|c| c.shares.iter().find(|(k, _)| k == key)).map(|(_, s)| s);
                let Some(afford) = share.and_then(|s| self.afford(job, s, key).ok()) else { return self.schedule_due = true };
                if afford.tasks < n {
                    // The others find what costs less at the next pass.
                    (n, self.schedule_due) = (afford.tasks, true);
                }
                (most_micro, payable) = (afford.most_micro, self.state.jobs.get(&job).map(|j| j.payable(afford.most_micro)));
            }
            let Some(j) = self.state.jobs.get_mut(&job) else { return };
            let mut tasks = payable.unwrap_or_else(|| j.queued.clone()).take_first(n.min(j.placeable()).min(PLACEMENT_TASKS_MAX));
            let Some(attempts) = tasks.first().map(|t| j.cell(t).attempts) else { return };
            if attempts > 0 || j.select(&tasks, |c| c.attempts != attempts).first().is_some() {
                tasks = j.select(&tasks, |c| c.attempts == attempts);
            }
            j.moved_ms = self.now.mono_ms;
            if let Some((pace, _)) = self.paces.get_mut(&job) {
                pace.leaves(tasks.len());
            }
            n -= tasks.len();
            for tasks in super::rows::pieces(&tasks, PLACEMENT_TASKS_MAX, CHANGE_RANGES_MAX) {
                let n = tasks.len();
                let number = if planted(Plant::NumberReused) { self.state.next_number.max(1) } else { self.state.next_number + 1 };
                self.step_of(job, Step::Placed { child, number, tasks: n });
                let (child, share) = (child.0.to_vec(), key.to_string());
                self.record(What::Placed(change::Placed {
                    job,
                    number,
                    child,
                    share,
                    tasks: tasks.to_runs(),
                    cost,
                    attempts: attempts.into(),
                    adopt: None,
                    most_micro,
                }));
                self.send_place(job, number);
            }
            self.changed.insert(job);
            self.advert_due = true;
        }
    }

    /// Waiting tasks as demand toward one child each: equal parts to those that fit. What parents would use beyond what they have placed here is passed on
    /// in the same way, never back: or a share that several sites see would be given to whoever asks directly.
    fn note_demand(&mut self) {
        // By shape and time limit.
        let mut demand: BTreeMap<SiteId, BTreeMap<(Shape, Option<u64>), u64>> = BTreeMap::new();
        // Shape, tasks, route, the job where it has a cap, time limit.
        type Wanted<'a> = (Shape, u64, &'a [SiteId], Option<u64>, Option<u64>);
        let mut wanted: Vec<Wanted> = Vec::new();
        for (queue, jobs) in &self.state.waiting {
            let tasks = jobs.iter().take(1_000).filter_map(|n| self.state.jobs.get(n)).map(|j| j.placeable()).sum();
            wanted.push((queue.shape.clone(), tasks, &queue.route, queue.capped, queue.time_limit_ms));
        }
        for (id, p) in self.parents.iter().filter(|(_, p)| p.live) {
            wanted.extend(p.demand.iter().map(|d| (d.shape.clone(), d.tasks, std::slice::from_ref(id), None, d.time_limit_ms)));
        }
        for (shape, tasks, route, capped, time) in wanted {
            let paid = |key: &str, share: &Share| capped.is_none_or(|job| self.afford(job, share, key).is_ok());
            let fitting: Vec<SiteId> = self
                .children
                .iter()
                .filter(|(id, c)| c.attached && c.hop.kind != Kind::Agent && !route.contains(id))
                .filter(|(_, c)| c.shares.iter().any(|(k, s)| s.takes(&shape, time) && !s.path.iter().any(|p| route.contains(p)) && paid(k, s)))
                .map(|(id, _)| *id)
                .collect();
            for (k, child) in fitting.iter().enumerate() {
                let (n, rest) = (tasks / fitting.len() as u64, tasks % fitting.len() as u64);
                let of = demand.entry(*child).or_default().entry((shape.clone(), time)).or_default();
                *of = of.saturating_add(n + u64::from((k as u64) < rest));
            }
        }
        for (id, c) in &mut self.children {
            // Never more than there is, so that in a ring it does not grow without end. Coarse, so that it does not change with every task: powers of two.
            let most = |shape: &Shape, time: Option<u64>| {
                c.shares.iter().filter(|(_, s)| s.takes(shape, time)).map(|(_, s)| s.slots_total).fold(0, u64::saturating_add)
            };
            let coarse = |n: u64| if n == 0 { 0 } else { n.min(1 << 62).next_power_of_two() };
            let mut all = demand.remove(id).unwrap_or_default();
            if all.len() > SHARES_MAX {
                // Too many to be told apart: a shape is better told without its times than not at all.
                for ((shape, _), n) in std::mem::take(&mut all) {
                    let of: &mut u64 = all.entry((shape, None)).or_default();
                    *of = of.saturating_add(n);
                }
            }
            let told = |((shape, time_limit_ms), n)| ShapeDemand { tasks: coarse(u64::min(n, most(&shape, time_limit_ms))), shape, time_limit_ms };
            c.demand = all.into_iter().take(SHARES_MAX).map(told).collect();
        }
    }

    /// Why the tasks of a job wait: every share's answer.
    pub(super) fn why_waiting(&self, job: u64) -> Reason {
        let Some(j) = self.state.jobs.get(&job) else { return Reason::new(ReasonKind::NotYetScheduled, "") };
        let age = self.now.mono_ms.saturating_sub(j.moved_ms);
        let queue = QueueKey::of(j);
        let attached = self.children.values().filter(|c| c.attached).count();
        let mut because = Vec::new();
        let later = self.may_burst(&queue).err();
        let mut fits = false;
        for (id, c) in self.children.iter().filter(|(_, c)| c.attached) {
            for (key, share) in &c.shares {
                let (credit, free) = self.credit(*id, key, share, c.heard_ms);
                let mut reason = match self.may_go(&queue, &Offer { child: *id, share, credit, free }, key) {
                    Err(r) => r,
                    Ok(()) if share.price_micro_per_slot_hour > 0 && later.is_some() => {
                        Reason::new(ReasonKind::NotRented, format!("{key}: {}", later.clone().unwrap_or_default()))
                    }
                    Ok(()) if share.draining || self.is_closed(*id) => self.why_draining(*id, key, share),
                    Ok(()) if credit < share.cost(&queue.shape) && !share.not_rented.is_empty() => {
                        let text = format!("{key}: {}; {credit} of {} slots are free for us", share.not_rented, share.slots_total);
                        Reason::new(ReasonKind::NotRented, text)
                    }
                    Ok(()) if credit < share.cost(&queue.shape) => {
                        let bound = if share.bound.is_empty() { String::new() } else { format!("; {}", share.bound) };
                        Reason::new(ReasonKind::AllBusy, format!("{key}: {credit} of {} slots are free for us{bound}", share.slots_total))
                    }
                    Ok(()) => Reason::new(ReasonKind::NotYetScheduled, format!("{key} has room")),
                };
                fits |= !matches!(reason.kind, ReasonKind::NoFit | ReasonKind::Loop | ReasonKind::OverLimit);
                reason.site = Some((*id, c.hop.name.clone()));
                // A drain is of all shares of a child.
                if !because.iter().any(|b: &Reason| (b.kind, &b.text, &b.site) == (reason.kind, &reason.text, &reason.site)) {
                    because.push(reason);
                }
            }
        }
        for c in self.children.values().filter(|c| !c.attached) {
            let age = self.now.mono_ms.saturating_sub(c.lost_ms);
            because.push(Reason::new(ReasonKind::ContactLost, format!("{}: {}", c.hop.name, c.why_lost)).aged(age));
        }
        because.extend(self.too_long_to_rent(&queue));
        because.truncate(intergrid_proto::limits::SHARES_MAX);
        let too_long = because.iter().any(|b| b.kind == ReasonKind::OverLimit);
        let rented = self.why_not_rented(&queue);
        // Those that could never run it aside.
        let refused = |b: &Reason, kind| b.kind == kind || matches!(b.kind, ReasonKind::NoFit | ReasonKind::OverLimit | ReasonKind::Loop);
        let top = if attached == 0 && rented.is_none() && !too_long {
            let away = self.expected.as_ref().is_some_and(|names| !names.is_empty());
            let remedy = if away { "`grid hosts` says why what is below is not there" } else { "start an agent, or a gateway below" };
            Reason::new(ReasonKind::NoResource, format!("nothing is attached to {}", self.me.name)).remedy(remedy)
        } else if j.unsure {
            Reason::new(ReasonKind::NotYetScheduled, format!("{} has just started, and waits until its peers are back", self.me.name))
        } else if because.is_empty() && rented.is_none() {
            Reason::new(ReasonKind::NoResource, format!("what is attached to {} offers nothing", self.me.name))
        } else if !fits && too_long && rented.is_none() {
            let asked = format_duration(queue.time_limit_ms.unwrap_or(0));
            Reason::new(ReasonKind::OverLimit, format!("what fits has less time than the {asked} that it asks for")).remedy("ask for less time")
        } else if !fits && rented.is_none() {
            Reason::new(ReasonKind::NoFit, format!("no machine could ever run it: it needs {}", needs(&queue.shape))).remedy("ask for less of it")
        } else if j.want.tasks(intergrid_proto::link::WantValue::Hold, &j.queued).len() == j.queued.len() && !j.queued.is_empty() {
            Reason::new(ReasonKind::HeldByUser, "on hold")
        } else if let Some(n) = j.tasks_at_once().filter(|_| j.placeable() == 0) {
            let below: u64 = j.downs.values().map(|d| d.open).sum();
            let text = format!("{below} of its tasks are placed or running, at most {n} may be at a time");
            // Where there is room does not matter.
            because.clear();
            Reason::new(ReasonKind::Throttled, text).remedy("`grid throttle` changes that")
        } else if let Some(why) = rented {
            why
        } else if j.max_cost().is_some() && because.iter().all(|b| refused(b, ReasonKind::CostLimit)) {
            self.why_not_paid(j)
        } else if only_drained(&because) {
            Reason::new(ReasonKind::Draining, "every share that fits takes no new work")
        } else if because.iter().all(|b| refused(b, ReasonKind::NotRented)) {
            let why = if later.is_some() { "costs money, and is used later" } else { "is full, and no more of it is rented" };
            Reason::new(ReasonKind::NotRented, format!("every share that fits {why}"))
        } else {
            Reason::new(ReasonKind::AllBusy, "every share that fits is full")
        };
        top.aged(age).because(because).bounded()
    }

    /// Why held tasks are held.
    pub(super) fn why_held(&self, job: u64) -> Reason {
        let Some(j) = self.state.jobs.get(&job) else { return Reason::new(ReasonKind::HeldByUser, "") };
        let held = j.select(&j.all(), |c| c.phase() == Some(Phase::Held));
        let by_user: TaskSet = j.want.tasks(intergrid_proto::link::WantValue::Hold, &held);
        if !j.select(&held, |c| c.is_doubtful()).is_empty() {
            return self.why_doubted();
        }
        let mut reasons = Vec::new();
        if !by_user.is_empty() {
            reasons.push(Reason::new(ReasonKind::HeldByUser, "on hold").remedy("release it"));
        }
        let rest = held.subtract(&by_user);
        let used_up = j.select(&rest, |c| c.down == 0);
        if let Some(t) = used_up.first() {
            let text = format!("{} attempts were lost", j.cell(t).attempts);
            reasons.push(Reason::new(ReasonKind::AttemptsUsed, text).remedy("release it to try again, or cancel it"));
        }
        if used_up != rest {
            reasons.push(match &j.last_return {
                Some((at, r)) if r.kind == ReasonKind::EvidenceLost => r.clone().aged(self.now.mono_ms.saturating_sub(*at)),
                _ if j.select(&rest, |c| c.exit == super::state::EXIT_LOST_BELOW && c.down != 0).first().is_some() => super::recover::evidence_lost(),
                _ => Reason::new(ReasonKind::NotYetScheduled, "released here; the site below has not confirmed it yet"),
            });
        }
        // Tasks of one job may be held for more than one reason: the first is the user's own.
        let because = reasons.split_off(reasons.len().min(1));
        reasons.pop().unwrap_or_else(|| Reason::new(ReasonKind::HeldByUser, "on hold")).because(because)
    }
}

/// Nothing but a drain keeps it from those that are here.
fn only_drained(because: &[Reason]) -> bool {
    use ReasonKind::*;
    because.iter().any(|r| r.kind == Draining) && because.iter().all(|r| matches!(r.kind, Draining | NoFit | OverLimit | Loop | ContactLost))
}

/// `2 slots and 4 GiB of memory on one`
fn needs(shape: &Shape) -> String {
    if shape.nodes > 1 { shape.to_string() } else { format!("{shape} on one") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn money_is_spent_after_a_while_or_when_much_waits() {
        let burst = |after_ms, tasks| Burst { after_ms, tasks };
        assert!(Burst::default().may(0, 1).is_ok());
        let both = burst(120_000, Some(4));
        assert!(both.may(120_000, 1).is_ok() && both.may(0, 4).is_ok());
        let later = "what costs money is used after 120 s of waiting (119 s so far), or when 4 tasks wait (3 do)";
        assert_eq!(Err(later.to_string()), both.may(119_999, 3));
        assert_eq!(Err("what costs money is used when 4 tasks wait (3 do)".to_string()), burst(u64::MAX, Some(4)).may(u64::MAX - 1, 3));
    }

    fn share(slots: u32) -> Share {
        Share { machine_slots: slots, machine_memory_bytes: u64::from(slots) << 30, slots_total: 64, window: 64, ..Share::default() }
    }

    proptest! {
        #[test]
        fn a_plan_keeps_its_properties(
            offers in proptest::collection::vec((1u32..9, 0u64..40, 0u64..40), 0..6),
            demands in proptest::collection::vec((1u32..10, 0u64..10, 0u64..50, proptest::collection::vec(any::<bool>(), 6)), 0..5),
        ) {
            let shares: Vec<Share> = offers.iter().map(|o| share(o.0)).collect();
            let problem = Problem {
                offers: offers.iter().zip(&shares).map(|(o, share)| Offer { child: SiteId::default(), share, credit: o.1.max(o.2), free: o.2 }).collect(),
                demands: demands.iter().enumerate().map(|(k, d)| Demand {
                    shape: Shape::new(d.0, d.1 << 29),
                    tasks: d.2,
                    oldest: k as u64,
                    allowed: (0..offers.len()).filter(|i| d.3[*i]).collect(),
                }).collect(),
            };
            let plan = FirstFit.plan(&problem);
            let mut used = vec![0; shares.len()];
            let mut placed = vec![0; problem.demands.len()];
            for (d, o, n) in &plan {
                let demand = &problem.demands[*d];
                prop_assert!(*n > 0 && demand.allowed.contains(o));
                prop_assert_eq!(shares[*o].fit(&demand.shape), Fit::Yes);
                used[*o] += n * shares[*o].cost(&demand.shape);
                placed[*d] += n;
            }
            for (o, offer) in problem.offers.iter().enumerate() {
                prop_assert!(used[o] <= offer.credit, "offer {} over its credit: {} > {}", o, used[o], offer.credit);
            }
            for (d, demand) in problem.demands.iter().enumerate() {
                prop_assert!(placed[d] <= demand.tasks);
                if placed[d] < demand.tasks {
                    for o in &demand.allowed {
                        let room = problem.offers[*o].credit - used[*o];
                        prop_assert!(shares[*o].fit(&demand.shape) != Fit::Yes || room < shares[*o].cost(&demand.shape), "{} waits though {} has room", d, o);
                    }
                }
            }
        }
    }
}
