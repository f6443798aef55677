//! What a job may cost at most (`max_cost`), over the whole tree.
//!
//! The site where it was submitted keeps the job's account: what is spent, and what its open attempts may cost at most. No placement is issued that could
//! make the sum of both more than the cap. A placement carries what one attempt may cost; each hop places it only where that holds, and narrows it to
//! what it costs there. A lost attempt that could cost something goes back up: whether there is money for another is decided where the account is.
//!
//! What is not known counts at its most: an attempt that is fenced, lost or ends without its cost. What no cap can hold are the seconds that a stop takes
//! at the time limit, a machine's own time without tasks (which is its owner's), and what a store that has gone back has forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use intergrid_proto::limits::SHARES_MAX;
use intergrid_proto::link::{Ended, Kind, at};
use intergrid_proto::money::{Money, human_micro, over, rate_within};
use intergrid_proto::share::Fit;
use intergrid_proto::{Exit, JobSpec, Reason, ReasonKind, Share, SiteId, TaskSet, pb};

use super::change::What;
use super::limits::PRICES_KEPT_MS;
use super::rent::Rentable;
use super::state::{Job, State};
use super::{Child, Core};

/// What one attempt of one task costs at most, and how many tasks that is enough for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Afford {
    pub most_micro: u64,
    pub tasks: u64,
}

impl Job {
    /// What it may cost.
    pub fn max_cost(&self) -> Option<&Money> {
        self.spec.parsed.max_cost.as_ref()
    }

    /// Of what is placed and has not ended: millionths.
    pub fn reserved_micro(&self) -> u64 {
        self.downs.values().map(|d| d.most_micro.saturating_mul(d.open)).fold(0, u64::saturating_add)
    }

    /// What may still be placed, all of it together where it was submitted, else the attempt of those waiting tasks that may cost most: millionths. None: it
    /// has no cap.
    fn left_micro(&self) -> Option<u64> {
        let cap = self.max_cost()?.micro;
        Some(match self.parent {
            None => cap.saturating_sub(self.spent_micro).saturating_sub(self.reserved_micro()),
            Some(_) => self.by_up(&self.queued).keys().filter_map(|up| self.ups.get(up)).map(|e| e.most_micro).max().unwrap_or(0).min(cap),
        })
    }

    /// Of the waiting tasks, those of which an attempt may cost so much.
    pub(super) fn payable(&self, most_micro: u64) -> TaskSet {
        if self.parent.is_none() || most_micro == 0 {
            return self.queued.clone();
        }
        let may = |up: &u32| self.ups.get(up).is_some_and(|e| e.most_micro >= most_micro);
        self.by_up(&self.queued).into_iter().filter(|(up, _)| may(up)).fold(TaskSet::new(), |all, (_, tasks)| all.union(&tasks))
    }

    /// What one attempt costs at this price, by its time limit; or why it can't be paid.
    fn afford(&self, key: &str, price_micro: u64, currency: &str, slots: u64) -> Result<Afford, String> {
        let (Some(left), Some(cap)) = (self.left_micro(), self.max_cost()) else { return Ok(Afford { most_micro: 0, tasks: u64::MAX }) };
        let most = attempt_micro(&self.spec.parsed, price_micro, slots);
        match most {
            Some(0) => Ok(Afford { most_micro: 0, tasks: u64::MAX }),
            _ if cap.micro == 0 => Err(format!("{key} costs money, and the job may cost nothing (--max-cost)")),
            _ if cap.currency != currency => Err(format!("{key} has its price in {currency}, the job's --max-cost is in {}", cap.currency)),
            Some(most) if most <= left => Ok(Afford { most_micro: most, tasks: if self.parent.is_none() { left / most } else { u64::MAX } }),
            Some(most) => {
                let of = if self.parent.is_none() {
                    format!("of --max-cost {cap}, {} is left", human_micro(left))
                } else {
                    format!("{} is allowed", human_micro(left))
                };
                Err(format!("{key}: one task costs up to {} {currency}, {of}", human_micro(most)))
            }
            None => Err(format!("{key} costs money, and without a time limit nobody can say how much")),
        }
    }
}

/// What one attempt of one task costs at most: price per slot-hour x slots x time limit, rounded up. None: it costs money and has no time limit.
fn attempt_micro(spec: &JobSpec, price_micro: u64, slots: u64) -> Option<u64> {
    match spec.time_limit_ms {
        _ if price_micro == 0 => Some(0),
        limit => limit.map(|ms| over(price_micro.saturating_mul(slots), ms)),
    }
}

/// Attempts leave the count without an end of their own: what they are charged.
pub(super) fn charge(state: &State, what: &mut What) {
    let (r, fenced) = match what {
        What::Requeued(r) => (r, false),
        What::Fenced(r) => (r, true),
        _ => return,
    };
    let Some(d) = state.jobs.get(&r.job).filter(|j| j.parent.is_none()).and_then(|j| j.downs.get(&r.number)) else { return };
    if d.most_micro > 0 && (fenced || r.attempts > d.attempts) {
        r.spent_micro = d.most_micro.saturating_mul(super::change::tasks(&r.tasks).len());
    }
}

impl Child {
    /// Others in place of its shares. What costs money and is not among them is away.
    pub(super) fn take_shares(&mut self, new: Vec<(Arc<str>, Share)>, now_ms: u64) {
        let Child { shares, away, hop, .. } = self;
        // A machine of our own that is away is another one when it comes.
        let priced = |s: &Share| s.price_micro_per_slot_hour > 0 && hop.kind != Kind::Agent;
        let old = std::mem::replace(shares, new);
        away.extend(old.into_iter().map(|(_, s)| (now_ms, s)).filter(|(_, s)| priced(s)));
        away.retain(|(_, s)| !shares.iter().any(|(_, told)| told.key == s.key));
        away.truncate(SHARES_MAX);
    }
}

impl Core {
    /// May the job's tasks go to this share? What one of them costs there at most, and how many can be paid.
    #[allow(clippy::result_large_err)] // Not an error path: the reason is the product.
    pub(super) fn afford(&self, job: u64, share: &Share, key: &str) -> Result<Afford, Reason> {
        let Some(j) = self.state.jobs.get(&job) else { return Ok(Afford { most_micro: 0, tasks: u64::MAX }) };
        j.afford(key, share.price_micro_per_slot_hour, &share.currency, share.cost(j.shape()).max(1))
            .map_err(|text| Reason::new(ReasonKind::CostLimit, text))
    }

    /// Nothing that fits can be paid.
    pub(super) fn why_not_paid(&self, j: &Job) -> Reason {
        let cap = j.max_cost().cloned().unwrap_or_default();
        let (reserved, higher) = (j.reserved_micro(), "cancel it, and submit it with a higher --max-cost");
        let limit = |text: String| Reason::new(ReasonKind::CostLimit, text);
        if cap.micro == 0 {
            limit("all that fits costs money, and the job may cost nothing (--max-cost)".into()).remedy(higher)
        } else if let Some(others) = self.other_currencies(j) {
            let text = format!("no price of what fits is in {}, as --max-cost {cap} is, but in {others}", cap.currency);
            limit(text).remedy(format!("cancel it, and submit it with a --max-cost in {others}"))
        } else if j.parent.is_some() {
            limit("all that fits costs more than one attempt is allowed to".into())
        } else if reserved > 0 {
            let text = format!("what is left of --max-cost {cap} is not enough for one more task; {} of it", human_micro(reserved));
            limit(format!("{text} are reserved for tasks that run, and are there again as far as these do not need them"))
        } else {
            limit(format!("what is left of --max-cost {cap} is not enough for one more task")).remedy(higher)
        }
    }

    /// In which currencies the prices are of what it fits here, where none is in its cap's.
    fn other_currencies(&self, j: &Job) -> Option<String> {
        let cap = j.max_cost()?;
        let shares = self.children.values().filter(|c| c.attached).flat_map(|c| c.shares.iter().map(|(_, s)| s));
        let there = shares.filter(|s| s.price_micro_per_slot_hour > 0 && s.fit(j.shape()) == Fit::Yes).map(|s| s.currency.as_str());
        let rentable = self.for_rent.types.iter().filter(|t| t.price_micro_per_slot_hour > 0 && t.machine.holds(j.shape()));
        let all: BTreeSet<&str> = there.chain(rentable.map(|t| t.currency.as_str())).filter(|c| !c.is_empty()).collect();
        (!all.is_empty() && !all.contains(cap.currency.as_str())).then(|| all.into_iter().collect::<Vec<_>>().join(" or "))
    }

    /// The same where it is placed without having been asked: at what the share costs, as far as that is known; else all that is left.
    pub(super) fn most_at(&self, job: u64, child: SiteId, key: &str) -> u64 {
        let Some((j, left)) = self.state.jobs.get(&job).and_then(|j| Some((j, j.left_micro()?))) else { return 0 };
        let share = self.children.get(&child).and_then(|c| c.shares.iter().find(|(k, _)| &**k == key)).map(|(_, s)| s);
        share.and_then(|s| attempt_micro(&j.spec.parsed, s.price_micro_per_slot_hour, s.cost(j.shape()).max(1))).unwrap_or(left)
    }

    /// What these ends of a placement's attempts are charged to the job: what they cost, and their most where that is not known.
    pub(super) fn charge_ends(&self, job: u64, number: u64, tasks: &TaskSet, ended: &Ended) -> u64 {
        let placed = self.state.jobs.get(&job).filter(|j| j.parent.is_none()).and_then(|j| j.downs.get(&number));
        let Some(most) = placed.map(|d| d.most_micro).filter(|most| *most > 0) else { return 0 };
        let one = |k: usize| match at(&ended.cost_micro, k) {
            Some(cost) => cost,
            None if ended.exit_at(k) == Exit::NotStarted => 0,
            None => most,
        };
        (0..tasks.len() as usize).map(one).fold(0, u64::saturating_add)
    }

    /// An agent does not say what its time costs: its gateway does, by the machine's price.
    pub(super) fn price_ends(&self, child: SiteId, job: u64, number: u64, ended: &mut Ended) {
        if self.child_hop(child).kind != Kind::Agent {
            return;
        }
        ended.cost_micro.clear();
        let Some((j, d)) = self.state.jobs.get(&job).and_then(|j| Some((j, j.downs.get(&number)?))) else { return };
        match self.for_rent.prices.get(&self.child_name(child)) {
            Some(p) => ended.cost_micro = ended.wall_ms.iter().map(|ms| over(p.micro_per_slot_hour.saturating_mul(d.cost), *ms)).collect(),
            // It was placed for nothing: an own machine. Above more may be reserved for it.
            None if j.max_cost().is_some() && d.most_micro == 0 => ended.cost_micro = vec![0],
            None => {}
        }
    }

    /// The shares of a rented machine have its price.
    pub(super) fn price_shares<'a>(&self, name: &str, shares: impl IntoIterator<Item = &'a mut Share>) {
        if let Some(p) = self.for_rent.prices.get(name) {
            shares.into_iter().for_each(|s| (s.price_micro_per_slot_hour, s.currency) = (p.micro_per_slot_hour, p.currency.clone()));
        }
    }

    /// Of a waiting job with a cap: how many of its tasks could be paid on what can be rented, and what one may cost in an hour.
    pub(super) fn rentable_for(&self, j: &Job) -> Option<(u64, u64)> {
        let fits = |t: &&Rentable| t.machine.holds(j.shape());
        let slots = |t: &Rentable| t.machine.cost(j.shape()).max(1);
        let afford =
            |t: &Rentable| j.afford("", t.price_micro_per_slot_hour, &t.currency, slots(t)).ok().map(|a| (t.machines == 0, a.most_micro, a.tasks));
        // Of the cheapest that could come. What each of so many may cost is its part: together they never cost more than what is left.
        let (_, most, tasks) = self.for_rent.types.iter().filter(fits).filter_map(afford).min()?;
        let tasks = tasks.min(j.placeable()).min(j.payable(most).len()).max(1);
        let each = j.left_micro().unwrap_or(0) / if j.parent.is_none() { tasks } else { 1 };
        Some((tasks, j.spec.parsed.time_limit_ms.map_or(0, |ms| rate_within(each, ms))))
    }

    /// Where a job of this spec would go from here, and what it costs there: as parents are told.
    pub fn quote(&self, spec: &JobSpec) -> Vec<pb::QuotedShare> {
        let fits = |s: &Share| s.fit(&spec.shape) == Fit::Yes && s.fit_time(spec.time_limit_ms) == Fit::Yes;
        let upward = self.upward();
        // A job may wait for what is away: what it would cost there is asked about now or never.
        let is_young = |since: u64| self.now.mono_ms.saturating_sub(since) < PRICES_KEPT_MS;
        let gone = self.children.values().flat_map(|c| &c.away).filter(|(since, s)| is_young(*since) && !upward.contains_key(&s.key));
        let gone: BTreeMap<&str, &Share> = gone.map(|(_, s)| (s.key.as_str(), s)).collect();
        let gone: Vec<(Share, bool)> = gone.into_values().map(|s| (Share { slots_free: 0, ..s.clone() }, true)).collect();
        let shares = upward.into_values().map(|u| (u.share, false)).chain(gone).filter(|(s, _)| fits(s));
        let row = |(s, away): (Share, bool)| {
            let slots = s.cost(&spec.shape).max(1);
            pb::QuotedShare {
                slots,
                attempt_micro: attempt_micro(spec, s.price_micro_per_slot_hour, slots),
                key: s.key,
                origin_name: s.origin_name,
                price_micro_per_slot_hour: s.price_micro_per_slot_hour,
                currency: s.currency,
                slots_free: s.slots_free,
                slots_total: s.slots_total,
                away,
            }
        };
        shares.map(row).collect()
    }

    /// For people: what the job may cost, has cost, and may still cost.
    pub(super) fn cost_of(&self, j: &Job) -> Option<pb::Cost> {
        let max = j.max_cost().filter(|_| j.parent.is_none())?;
        let max = pb::Money { micro: max.micro, currency: max.currency.clone() };
        Some(pb::Cost { max: Some(max), spent_micro: j.spent_micro, reserved_micro: j.reserved_micro() })
    }
}
