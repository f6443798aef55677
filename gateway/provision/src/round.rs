//! One round: demand against what is there, on its way, and for rent.

use std::collections::BTreeMap;

use crate::absence::{BEHIND, UNCLEAR};
use crate::ask::{Ask, Curb, ask};
use crate::budget::{Charge, RATE};
use crate::core::Provisioner;
use crate::limits::{ABSENT_MS, ROUND_MACHINES_MAX, STEP_MIN_MS, UNMET_MAX};
use crate::machine::{Machine, Need, Why};
use crate::market::{MachineType, Offer, Price};
use crate::pack::{Demand, Fill, Supply, fill, into_supply, is_better, never_fits};
use crate::records::Record;
use crate::room::{Used, and_going};
use crate::{OfferKey, Rate};

/// Why demand is not met, and nothing (more) was rented for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnmetWhy {
    /// Which limit, in the words of the configuration: `budget rate`, `slots`, `no fit`, `ramp-up`, ...
    pub limit: String,
    /// Numbers.
    pub evidence: String,
    /// A cap of the owner, or of those that he is of: others may have what he may not.
    pub own: bool,
}

impl UnmetWhy {
    /// A limit that holds for all.
    pub(crate) fn new(limit: impl Into<String>, evidence: impl Into<String>) -> UnmetWhy {
        UnmetWhy { limit: limit.into(), evidence: evidence.into(), own: false }
    }
}

/// Demand that is not met.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unmet {
    /// What is left of it.
    pub demand: Demand,
    /// Why.
    pub why: UnmetWhy,
}

/// What the latest round came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Round {
    /// Slots that were asked for, by owner, and what damped it.
    pub asks: BTreeMap<String, Ask>,
    /// Machines that it rented.
    pub rented: Vec<u64>,
    /// Demand that is left.
    pub unmet: Vec<Unmet>,
}

/// What could be rented now, or why not.
type Choice<'a> = (&'a OfferKey, &'a MachineType, Price);

impl Provisioner {
    /// Meet demand: with what is there, then with what is rented for it.
    pub(crate) fn round(&mut self, mut demand: Vec<Demand>) {
        demand.retain(|d| d.tasks > 0);
        self.use_what_is_there(&mut demand);
        let mut round = Round::default();
        let mut by_owner: BTreeMap<String, Vec<Demand>> = BTreeMap::new();
        demand.into_iter().filter(|d| d.tasks > 0).for_each(|d| by_owner.entry(d.owner.clone()).or_default().push(d));
        for (owner, mut demand) in by_owner {
            let asked = ask(demand.iter().map(Demand::slots).sum(), &self.curbs(&owner));
            let why = self.rent(&owner, &mut demand, &asked, &mut round);
            self.make_room(&owner, &demand);
            for d in demand.into_iter().filter(|d| d.tasks > 0) {
                let why = self.never(&d).unwrap_or_else(|| why.clone());
                round.unmet.push(Unmet { demand: d, why });
            }
            round.asks.insert(owner, asked);
        }
        round.unmet.truncate(UNMET_MAX);
        self.latest = round;
    }

    /// What works or boots takes what it can; of what is idle, what goes last, last. What is away takes nothing, so that another is rented; it may be
    /// back before that has come, and is kept for what it would take.
    fn use_what_is_there(&mut self, demand: &mut [Demand]) {
        let mut machines: Vec<_> = self.state.machines.values().filter(|m| m.free() > 0).collect();
        machines.sort_by_key(|m| (m.draining.is_some(), !m.attached, m.busy == 0, m.number));
        let supply =
            |m: &&Machine| Supply { machine: m.number, kind: m.kind.clone(), free: m.free(), rate: m.price.ceiling, time_max_ms: m.time_max_ms };
        let all: Vec<Supply> = machines.iter().map(supply).collect();
        let mut used = into_supply(&mut demand.to_vec(), &all);
        machines.retain(|m| m.is_supply(self.now));
        let there: Vec<Supply> = machines.iter().map(supply).collect();
        used.extend(into_supply(demand, &there));
        for m in self.state.machines.values_mut() {
            m.wanted = used.contains(&m.number);
            m.useless = if m.wanted { 0 } else { m.useless.saturating_add(1) };
            if m.wanted {
                m.marked = false;
            }
        }
        let again: Vec<u64> = self.state.machines.values().filter(|m| m.wanted && m.draining == Some(Why::Idle)).map(|m| m.number).collect();
        again.into_iter().for_each(|number| self.undrain(number));
    }

    pub(crate) fn curbs(&self, owner: &str) -> Vec<Curb> {
        let Used { slots, machines, booting } = self.used(|_| true);
        let s = &self.settings;
        let mut curbs = vec![
            Curb { name: "slots".into(), used: slots, max: s.slots_max },
            Curb { name: "machines".into(), used: machines, max: u64::from(s.machines_max) },
            Curb { name: "booting machines".into(), used: booting, max: u64::from(s.booting_max) },
        ];
        let budget = &self.state.budget;
        curbs.extend(budget.rate_used(budget.node_of(owner)).map(|(name, used, cap)| Curb { name, used: used.0, max: cap.0 }));
        curbs
    }

    /// Rent for an owner, until what was asked for is there. Returns why no more was.
    fn rent(&mut self, owner: &str, demand: &mut [Demand], asked: &Ask, round: &mut Round) -> UnmetWhy {
        if let Some(hard) = &asked.hard {
            let Some(whose) = hard.name.strip_prefix(RATE) else {
                let going = match hard.name.as_str() {
                    "slots" => self.idle_and_going().slots,
                    "machines" => self.idle_and_going().machines,
                    _ => 0,
                };
                return UnmetWhy::new(&hard.name, format!("{} of {} are used{}", hard.used, hard.max, and_going(going)));
            };
            let evidence = format!("{} of {} {} per hour are used", Rate(hard.used), Rate(hard.max), self.catalogue.currency);
            return UnmetWhy { own: !whose.is_empty(), ..UnmetWhy::new(&hard.name, evidence) };
        }
        if let Some((until, text)) = self.blocked_by() {
            return UnmetWhy::new("provider", format!("{text}; asked again at {}", self.clock(until)));
        }
        let mut left = asked.amount;
        while left > 0 {
            if round.rented.len() as u32 >= ROUND_MACHINES_MAX {
                return UnmetWhy::new("machines of one round", format!("{ROUND_MACHINES_MAX} were rented"));
            }
            let (offer, kind, price, fill) = match self.choose(owner, demand) {
                Ok((offer, kind, price, fill)) => (offer.clone(), kind.clone(), price, fill),
                Err(why) => return why,
            };
            let largest = |(at, tasks): &(usize, u64)| Need { shape: demand[*at].shape.clone(), tasks: *tasks, principal: owner.to_string() };
            let need = fill.tasks.first().map(largest);
            for (at, tasks) in &fill.tasks {
                demand[*at].tasks -= tasks;
            }
            left = left.saturating_sub(fill.slots);
            let number = self.state.next;
            let paid_ms = self.now + price.billing.first_ms();
            let owner = owner.to_string();
            self.record(Record::Intended { number, offer, kind, owner, need, price, at_ms: self.now, paid_ms, awaited: true });
            round.rented.push(number);
        }
        let near: Vec<&str> = asked.near.iter().map(|c| c.name.as_str()).collect();
        let near = if near.is_empty() { String::new() } else { format!(", halved as it is near: {}", near.join(", ")) };
        UnmetWhy::new("ramp-up", format!("{} slots were asked for in this round, a third of what is unmet{near}", asked.amount))
    }

    /// The cheapest offer for what it takes of the demand, that may be rented now; or what stands in the way of the cheapest that may not.
    fn choose(&self, owner: &str, demand: &[Demand]) -> Result<(&OfferKey, &MachineType, Price, Fill), UnmetWhy> {
        let mut best: Option<(Choice<'_>, Fill)> = None;
        let mut in_the_way: Option<(Rate, Fill, UnmetWhy)> = None;
        for offer in &self.catalogue.offers {
            let Some(kind) = self.catalogue.types.get(&offer.key.machine) else { continue };
            let rate = offer.price.map_or(Rate(u64::MAX), |p| p.ceiling);
            let Some(fill) = fill(demand, kind, rate) else { continue };
            match self.may_rent(owner, offer, kind) {
                Ok(price) => {
                    if best.as_ref().is_none_or(|((_, _, p), f)| is_better((rate, &fill), (p.ceiling, f))) {
                        best = Some(((&offer.key, kind, price), fill));
                    }
                }
                Err(why) => {
                    if in_the_way.as_ref().is_none_or(|(r, f, _)| is_better((rate, &fill), (*r, f))) {
                        in_the_way = Some((rate, fill, why));
                    }
                }
            }
        }
        match (best, in_the_way) {
            (Some(((key, kind, price), fill)), _) => Ok((key, kind, price, fill)),
            (None, Some((.., why))) => Err(why),
            (None, None) => Err(UnmetWhy::new("no fit", "no type on offer takes any of it")),
        }
    }

    fn may_rent(&self, owner: &str, offer: &Offer, kind: &MachineType) -> Result<Price, UnmetWhy> {
        let price = self.may_ask(offer)?;
        let why = |limit: &str, evidence: String, going: u64| Err(UnmetWhy::new(limit, evidence + &and_going(going)));
        let is_of_type = |m: &Machine| m.offer.machine == offer.key.machine;
        let of_type = self.used(is_of_type).machines;
        if let Some(max) = kind.machines_max.filter(|max| of_type >= u64::from(*max)) {
            let going = self.used(|m| m.busy == 0 && self.is_going(m) && is_of_type(m)).machines;
            return why("machines of a type", format!("{of_type} of {max} {} are there", offer.key.machine), going);
        }
        let (Used { slots, machines, .. }, s) = (self.used(|_| true), &self.settings);
        if slots + u64::from(kind.slots) > s.slots_max {
            let evidence = format!("{slots} of {} are used, one {} has {}", s.slots_max, offer.key.machine, kind.slots);
            return why("slots", evidence, self.idle_and_going().slots);
        }
        if machines >= u64::from(s.machines_max) {
            return why("machines", format!("{machines} of {} are there", s.machines_max), self.idle_and_going().machines);
        }
        self.may_begin(owner, offer, price)
    }

    /// Before what is there is looked at: its price is known, and it is not left alone.
    pub(crate) fn may_ask(&self, offer: &Offer) -> Result<Price, UnmetWhy> {
        let why = |limit: &str, evidence: String| Err(UnmetWhy::new(limit, evidence));
        let Some(price) = offer.price else {
            return why("price", format!("{}: its price is not known", offer.key));
        };
        if let Some((until, because)) = self.left_alone(&offer.key) {
            return why("capacity", format!("{}: {because}; asked again at {}", offer.key, self.clock(until)));
        }
        Ok(price)
    }

    /// Where there is room for it: not too many boot, and its first lease can be paid.
    pub(crate) fn may_begin(&self, owner: &str, offer: &Offer, price: Price) -> Result<Price, UnmetWhy> {
        let (booting, max) = (self.used(|_| true).booting, self.settings.booting_max);
        if booting >= u64::from(max) {
            return Err(UnmetWhy::new("booting machines", format!("{booting} of {max} are booting")));
        }
        let days = Charge::lease(price.ceiling, price.billing, self.now, self.now + price.billing.first_ms());
        let node = self.state.budget.node_of(owner);
        match self.state.budget.allows(node, &Charge { rate: price.ceiling, days }) {
            Ok(()) => Ok(price),
            Err(over) => {
                let evidence = format!("{}: {}", offer.key, over.evidence(&self.catalogue.currency));
                Err(UnmetWhy { own: over.own, ..UnmetWhy::new(over.limit, evidence) })
            }
        }
    }

    /// Nothing can be launched for now: until when, and what the provider said.
    pub(crate) fn blocked_by(&self) -> Option<(u64, &str)> {
        let unclear = self.machines().find(|m| m.is_unclear(self.now)).map(|m| (self.now.max(m.word_ms + ABSENT_MS), UNCLEAR));
        let behind = self.machines().any(|m| m.ahead).then_some((self.start.set_ms, BEHIND));
        behind.or(unclear).or(self.blocked.as_ref().filter(|(until, _)| *until > self.now).map(|(until, text)| (*until, text.as_str())))
    }

    fn never(&self, demand: &Demand) -> Option<UnmetWhy> {
        let offers = self.catalogue.offers.iter();
        let offers: Vec<_> =
            offers.filter_map(|o| self.catalogue.types.get(&o.key.machine).map(|k| (&o.key, k, o.price.map(|p| p.ceiling)))).collect();
        never_fits(demand, &offers, &self.catalogue.currency).map(|evidence| UnmetWhy::new("no fit", evidence))
    }

    /// Time is ahead of the wall clock by so much: people are told that one's. Less than a second of difference is none, so that what is told stays the same.
    pub fn leads_by(&mut self, lead_ms: u64) {
        if lead_ms.abs_diff(self.lead_ms) >= STEP_MIN_MS {
            self.lead_ms = lead_ms;
        }
    }

    /// A time of the day: what goes back up with it is told there for a while, where seconds that are left would be wrong the next moment.
    fn clock(&self, at_ms: u64) -> String {
        let s = at_ms.saturating_sub(self.lead_ms).div_ceil(1_000);
        format!("{:02}:{:02}:{:02} UTC", s / 3_600 % 24, s / 60 % 60, s % 60)
    }
}
