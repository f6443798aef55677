//! Machines that are not there and could be rented: offered upward like those that are, so that work comes for which they are then rented.
//!
//! Not durable: the provisioner says it again after a start. It decides about machines, this core about tasks; what each must know of the other is here.

use std::collections::{BTreeMap, BTreeSet};

use intergrid_proto::link::Kind;
use intergrid_proto::money::human_micro;
use intergrid_proto::share::{Fit, Machine};
use intergrid_proto::{Reason, ReasonKind, Shape, Share, SiteId};

use super::advert::{Upward, machine_class};
use super::limits::RENT_DEMANDS_MAX;
use super::state::{Job, QueueKey};
use super::{Action, Core};

/// What the provisioner says.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ForRent {
    /// By type of machine.
    pub types: Vec<Rentable>,
    /// Why no more is rented for what waits: shape, principal, reason.
    pub unmet: Vec<(Shape, String, Reason)>,
    /// Agents whose machines are gone for good: those that have nothing here are no longer listed.
    pub gone: Vec<String>,
    /// What machines cost at most, by the agent's name.
    pub prices: BTreeMap<String, MachinePrice>,
    /// The longest that a task can take on a new machine: milliseconds; 0: not limited.
    pub time_max_ms: u64,
    /// Agents whose machines may exist.
    pub machines: BTreeSet<String>,
    /// A machine whose agent is away for so long is ended: milliseconds. None: none is rented here.
    pub away_ms: Option<u64>,
}

/// Of a rented machine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MachinePrice {
    /// Its type, as the configuration names it.
    pub kind: String,
    /// Its size, as the type had it when it was rented.
    pub machine: Machine,
    /// At most: millionths of `currency` per slot and hour.
    pub micro_per_slot_hour: u64,
    /// ISO 4217.
    pub currency: String,
}

/// Machines of one type that are not there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rentable {
    /// As the configuration names it.
    pub kind: String,
    /// One of them.
    pub machine: Machine,
    /// As `uname -m`.
    pub architecture: String,
    /// How many could come. With none of them left the type is still told of: work that fits it may wait above.
    pub machines: u64,
    /// Millionths of `currency` per slot and hour.
    pub price_micro_per_slot_hour: u64,
    /// ISO 4217; empty: it costs no money.
    pub currency: String,
    /// Which limit forbids one more than these; empty: none does. It goes up the tree: each change of it is an advertisement.
    pub no_more: String,
    /// The first of its machines of which nobody knows whether it exists, and what the provider said; empty: there is none. It goes up with `no_more`.
    pub in_doubt: String,
}

/// What the provisioner must know: what waits, and how its machines do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Renting {
    /// Waiting tasks, the oldest jobs first counted.
    pub waiting: Vec<Waiting>,
    /// Every agent that this process has seen, or that has work.
    pub agents: Vec<Agent>,
}

/// Tasks of one shape and principal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// What each needs.
    pub shape: Shape,
    /// Whose.
    pub principal: String,
    /// How many.
    pub tasks: u64,
    /// What one of them may cost in an hour: millionths. None: not limited.
    pub task_rate_max: Option<u64>,
    /// The time limit of one, where machines have an end: milliseconds.
    pub time_limit_ms: Option<u64>,
}

/// How an agent is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Agent {
    /// Its label.
    pub name: String,
    /// It has a session.
    pub attached: bool,
    /// Slots with work.
    pub busy: u64,
    /// Tasks that have ended there, as far as this process knows.
    pub ended: u64,
    /// The longest that a task can take there: milliseconds; 0: not limited.
    pub time_max_ms: u64,
    /// Tasks that are placed there and have not ended, or whose stop is not confirmed.
    pub open: u64,
    /// Who ordered that it takes no new work; empty: nobody.
    pub drained_by: String,
    /// The same was ordered of the whole gateway.
    pub drained_with_us: bool,
    /// Why it takes no new work of its own accord: its time is nearly over, its disk is full; empty: it does.
    pub leaving: String,
}

/// A machine's name, which is its agent's: `burst-m17`.
pub fn label(gateway: &str, number: u64) -> String {
    format!("{gateway}-m{number}")
}

/// The number in a label.
pub fn number(gateway: &str, label: &str) -> Option<u64> {
    label.strip_prefix(gateway)?.strip_prefix("-m")?.parse().ok()
}

/// A type that costs money, as a part of its share's name: `small-rented`. Types of which this is the same would be one share.
pub fn type_class(kind: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() || "._-".contains(c) { c } else { '-' };
    kind.chars().map(plain).chain("-rented".chars()).collect()
}

impl Core {
    /// The same of a machine that is there, by its agent's name; None: it costs no money. A share has the size and the price of its machines, and work is
    /// placed by them: where the type offers others by now, or is no longer listed, the machine's own are told as well, `small-rented-1c-1024m-0.10`.
    pub(super) fn rented_class(&self, agent: &str) -> Option<String> {
        let rented = self.for_rent.prices.get(agent).filter(|p| p.micro_per_slot_hour > 0)?;
        let now = self.for_rent.types.iter().find(|t| t.kind == rented.kind);
        let mut class = type_class(&rented.kind);
        if now.is_none_or(|t| t.machine != rented.machine) {
            let Machine { slots, memory_bytes, gpus } = rented.machine;
            class += &format!("-{slots}c-{}m", memory_bytes >> 20);
            class += &if gpus > 0 { format!("-{gpus}gpu") } else { String::new() };
        }
        if now.is_none_or(|t| t.price_micro_per_slot_hour != rented.micro_per_slot_hour) {
            class += &format!("-{}", human_micro(rented.micro_per_slot_hour));
        }
        Some(class)
    }

    pub(super) fn hear_of(&mut self, mut offer: ForRent) {
        std::mem::take(&mut offer.gone).iter().for_each(|name| self.forget_agent(name));
        if self.for_rent == offer {
            return;
        }
        self.advert_due = true;
        let priced = self.for_rent.prices != offer.prices;
        let doubts = |o: &ForRent| o.types.iter().map(|t| t.in_doubt.clone()).collect::<Vec<_>>();
        if self.for_rent.unmet != offer.unmet || doubts(&self.for_rent) != doubts(&offer) {
            let waiting: Vec<u64> = self.state.waiting.values().flatten().copied().collect();
            self.changed.extend(waiting);
        }
        self.for_rent = offer;
        if priced {
            let mut children = std::mem::take(&mut self.children);
            for c in children.values_mut().filter(|c| c.hop.kind == Kind::Agent) {
                self.price_shares(&c.hop.name, c.shares.iter_mut().map(|(_, s)| s));
            }
            self.children = children;
            self.schedule_due = true;
        }
    }

    /// See [`Renting`].
    pub fn renting(&self) -> Renting {
        let mut waiting: BTreeMap<(Shape, String, Option<u64>, Option<u64>), u64> = BTreeMap::new();
        // Nothing is rented for what would find no time there, and nothing at all where nothing is placed.
        let is_wanted = |queue: &QueueKey| !self.is_closed(self.me.site) && self.is_rented_for(queue.time_limit_ms);
        for (queue, jobs) in self.state.waiting.iter().filter(|(queue, _)| is_wanted(queue)) {
            let mut tasks: u64 = jobs.iter().filter_map(|n| self.state.jobs.get(n)).map(|j| j.placeable()).sum();
            let mut rate = None;
            if let Some(j) = queue.capped.and_then(|n| self.state.jobs.get(&n)) {
                // Nothing is rented for what could not run there.
                let Some((paid, most)) = self.rentable_for(j) else { continue };
                (tasks, rate) = (tasks.min(paid), Some(most));
            }
            // Where machines have no end, times make no difference.
            let time = queue.time_limit_ms.filter(|_| self.for_rent.time_max_ms > 0);
            let whose = (queue.shape.clone(), queue.principal.clone(), rate, time);
            // What is beyond that waits for the next look.
            if tasks > 0 && (waiting.len() < RENT_DEMANDS_MAX || waiting.contains_key(&whose)) {
                *waiting.entry(whose).or_default() += tasks;
            }
        }
        let children = self.children.iter().filter(|(_, c)| c.hop.kind == Kind::Agent);
        let mut agents: BTreeMap<String, Agent> = BTreeMap::new();
        let placed = self.state.placed_on.iter().filter(|(_, p)| !p.is_empty()).map(|(id, _)| id);
        let mut busy: BTreeMap<SiteId, u64> = BTreeMap::new();
        for ((child, _), slots) in &self.state.outstanding {
            *busy.entry(*child).or_default() += slots;
        }
        let others = placed.chain(self.state.drains.keys().filter(|id| **id != self.me.site)).map(|id| (*id, false));
        for (id, attached) in children.map(|(id, c)| (*id, c.attached)).chain(others) {
            let name = self.child_name(id);
            let agent = agents.entry(name.clone()).or_insert_with(|| Agent { name, ..Agent::default() });
            if agent.attached {
                continue;
            }
            agent.attached = attached;
            agent.busy = busy.get(&id).copied().unwrap_or(0);
            agent.ended = self.state.ended_on.get(&id).copied().unwrap_or(0);
            agent.time_max_ms = self.children.get(&id).and_then(|c| c.shares.first()).map_or(0, |(_, s)| s.time_max_ms);
            agent.open = self.state.placed_on.get(&id).map_or(0, |p| p.len() as u64);
            let word = self.children.get(&id).filter(|c| c.attached).and_then(|c| self.own_word(c));
            agent.leaving = word.map(|r| r.text).unwrap_or_default();
            agent.drained_by = self.state.drains.get(&id).map(|d| d.by.clone()).unwrap_or_default();
            agent.drained_with_us = self.state.drains.contains_key(&self.me.site);
        }
        let one = |((shape, principal, task_rate_max, time_limit_ms), tasks)| Waiting { shape, principal, tasks, task_rate_max, time_limit_ms };
        Renting { waiting: waiting.into_iter().map(one).collect(), agents: agents.into_values().collect() }
    }

    /// Its machine is gone: nothing more is placed there, and it is not listed once it has nothing here.
    fn forget_agent(&mut self, name: &str) {
        let here = self.children.iter().filter(|(_, c)| c.attached && c.hop.kind == Kind::Agent && c.hop.name == name).map(|(id, _)| *id);
        for agent in here.collect::<Vec<_>>() {
            let why = "its machine has been ended".to_string();
            self.child_gone(agent, why.clone(), 0);
            self.actions.push(Action::Leave(agent, why));
        }
        let gone = |id: &SiteId| self.state.placed_on.get(id).is_none_or(BTreeMap::is_empty);
        self.children.retain(|id, c| c.hop.name != name || c.attached || c.hop.kind != Kind::Agent || !gone(id));
        self.state.ended_on.retain(|id, _| self.children.contains_key(id));
    }

    /// This agent's machine is ended when it is away for so long: milliseconds; 0: it has been ended. None: it is no rented one.
    pub(super) fn rented_away_max(&self, agent: &str) -> Option<u64> {
        let away_ms = self.for_rent.away_ms.filter(|_| number(&self.me.name, agent).is_some())?;
        Some(if self.for_rent.machines.contains(agent) { away_ms.max(1) } else { 0 })
    }

    /// What could be rented, as shares of this site.
    pub(super) fn rentable(&self) -> Vec<Upward> {
        // Tasks of our own users take what comes, too.
        let own = self.state.waiting.values().flatten().filter_map(|n| self.state.jobs.get(n)).filter(|j| j.parent.is_none());
        let paid = |j: &Job| j.max_cost().map_or(u64::MAX, |_| self.rentable_for(j).map_or(0, |(tasks, _)| tasks));
        let own = own.filter(|j| self.is_rented_for(j.spec.parsed.time_limit_ms));
        let mut own: Vec<(Shape, u64)> = own.map(|j| (j.shape().clone(), j.placeable().min(paid(j)))).collect();
        let placed = self.queued_for_parents();
        self.for_rent.types.iter().map(|t| self.upward_of(t, &mut own, &placed)).collect()
    }

    fn upward_of(&self, t: &Rentable, own: &mut [(Shape, u64)], placed: &BTreeMap<String, u64>) -> Upward {
        let slots = t.machines.saturating_mul(u64::from(t.machine.slots));
        let mut share = Share {
            origin: self.me.site,
            origin_name: self.me.name.clone(),
            path: vec![self.me.site],
            machine_slots: t.machine.slots,
            machine_memory_bytes: t.machine.memory_bytes,
            machine_gpus: t.machine.gpus,
            gpus_total: t.machines.saturating_mul(u64::from(t.machine.gpus)),
            architecture: t.architecture.clone(),
            slots_total: slots,
            machines: u32::try_from(t.machines).unwrap_or(u32::MAX),
            price_micro_per_slot_hour: t.price_micro_per_slot_hour,
            currency: t.currency.clone(),
            not_rented: if t.no_more.is_empty() { String::new() } else { with_doubt(&t.no_more, &t.in_doubt) },
            time_max_ms: self.for_rent.time_max_ms,
            ..Share::default()
        };
        let class = if t.price_micro_per_slot_hour > 0 { type_class(&t.kind) } else { machine_class(&share) };
        share.key = format!("{}/{class}", self.me.name);
        let mut room = slots;
        for (shape, tasks) in own.iter_mut().filter(|(shape, _)| share.fit(shape) == Fit::Yes) {
            let cost = share.cost(shape).max(1);
            let n = (*tasks).min(room / cost);
            (*tasks, room) = (*tasks - n, room - n * cost);
        }
        if let Some((text, age)) = self.draining(self.me.site) {
            (share.draining, share.draining_reason, share.draining_age_ms) = (true, text, age);
            room = 0;
        }
        share.slots_free = room.saturating_sub(placed.get(&share.key).copied().unwrap_or(0));
        share.largest_free = u32::try_from(share.slots_free).unwrap_or(u32::MAX).min(t.machine.slots);
        Upward { share, room, is_queue: false }
    }

    /// Is there so long on a new machine?
    fn is_rented_for(&self, time_limit_ms: Option<u64>) -> bool {
        let most = self.for_rent.time_max_ms;
        most == 0 || time_limit_ms.is_none_or(|asked| asked <= most)
    }

    /// What could be rented would have less time than this queue asks for.
    pub(super) fn too_long_to_rent(&self, queue: &QueueKey) -> Vec<Reason> {
        if self.is_rented_for(queue.time_limit_ms) {
            return Vec::new();
        }
        let fitting = self.rentable().into_iter().map(|u| u.share).filter(|s| s.fit(&queue.shape) == Fit::Yes);
        fitting
            .filter_map(|s| match s.fit_time(queue.time_limit_ms) {
                Fit::No(text) => Some(Reason::new(ReasonKind::OverLimit, format!("a new machine: {text}"))),
                Fit::Yes => None,
            })
            .collect()
    }

    /// Is there a type of machine that it fits?
    pub(super) fn is_for_rent(&self, shape: &Shape) -> bool {
        self.for_rent.types.iter().any(|t| t.machine.holds(shape))
    }

    /// Could a machine come that this job's tasks fit, with time for them, and at a price that they can pay?
    pub(super) fn may_be_rented(&self, job: u64) -> bool {
        let Some(j) = self.state.jobs.get(&job) else { return false };
        self.is_for_rent(j.shape()) && self.is_rented_for(j.spec.parsed.time_limit_ms) && (j.max_cost().is_none() || self.rentable_for(j).is_some())
    }

    /// Why nothing (more) is rented for this queue, where anything could be.
    pub(super) fn why_not_rented(&self, queue: &QueueKey) -> Option<Reason> {
        if !self.is_for_rent(&queue.shape) || !self.is_rented_for(queue.time_limit_ms) {
            return None;
        }
        if let Some((text, _)) = self.draining(self.me.site) {
            return Some(Reason::new(ReasonKind::Draining, text));
        }
        if let Some(j) = queue.capped.and_then(|n| self.state.jobs.get(&n)).filter(|j| self.rentable_for(j).is_none()) {
            return Some(self.why_not_paid(j));
        }
        let of = |u: &&(Shape, String, Reason)| u.0 == queue.shape && u.1 == queue.principal;
        let said = self.for_rent.unmet.iter().find(of).map(|u| u.2.clone());
        let said = said.unwrap_or_else(|| Reason::new(ReasonKind::NotRented, "a machine is on its way for it, or will be asked for"));
        let doubt = self.for_rent.types.iter().find(|t| t.machine.holds(&queue.shape) && !t.in_doubt.is_empty());
        Some(Reason { text: with_doubt(&said.text, doubt.map_or("", |t| &t.in_doubt)), ..said })
    }
}

/// What stands in the way may be a machine that never comes.
fn with_doubt(text: &str, doubt: &str) -> String {
    if doubt.is_empty() { text.into() } else { format!("{text}; {doubt}") }
}
