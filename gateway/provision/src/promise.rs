//! What could be rented now, by type of machine: it is offered upward before it is there, so that work can come for which it is then rented.
//!
//! The limits are of all types together, and nobody knows what work will come. So of each type one machine is promised as if nothing else were: what fits only
//! there can come as long as there is room for that one. What is left beside all of these is promised once, as machines of the cheapest (by slot). So of
//! each type at most one machine is promised too much. Idle machines that are only kept to the end of their hour are in no such one's way: they go for it.
//!
//! It keeps no room: what comes first may fill a limit, as at this gateway itself, and a type's own `machines_max` leaves room for the others. Nor is
//! it relied on: each launch is held against all limits and budgets. Work for which there is no room by then waits for that reason, goes back to where it
//! came from (`GIVE_BACK_AFTER_MS`), and comes again when a machine for it is promised, which is when one could be rented.

use std::collections::BTreeMap;

use crate::Rate;
use crate::budget::{Charge, Over};
use crate::core::Provisioner;
use crate::machine::{Machine, Stage};
use crate::market::{MachineType, Price};
use crate::room::Used;
use crate::round::UnmetWhy;

/// Machines of one type that are not there yet and could be: those that boot, and those that no limit forbids.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Promise {
    /// The type's name.
    pub name: String,
    /// Its size.
    pub kind: MachineType,
    /// The cheapest that could come now, and where none could, the cheapest; None: no price is known.
    pub price: Option<Price>,
    /// How many.
    pub machines: u64,
    /// The limit that forbids one more. None: another could come, or no price is known.
    pub no_more: Option<UnmetWhy>,
}

/// What is left of the limits on all types together.
#[derive(Clone, Copy)]
struct Left {
    slots: u64,
    machines: u64,
    rate: u64,
}

impl Left {
    /// Beside so many of a type.
    fn beside(self, n: u64, of: &Promise) -> Left {
        Left {
            slots: self.slots.saturating_sub(n.saturating_mul(u64::from(of.kind.slots))),
            machines: self.machines.saturating_sub(n),
            rate: self.rate.saturating_sub(n.saturating_mul(of.price.map_or(0, |price| price.ceiling.0))),
        }
    }
}

impl Provisioner {
    /// One entry for each type on offer, in their order; with 0 machines where none is left. See above; the cheapest is one that is not left alone.
    pub fn promises(&self) -> Vec<Promise> {
        let mut cheapest: BTreeMap<&str, (bool, Price)> = BTreeMap::new();
        for offer in &self.catalogue.offers {
            let Some(price) = offer.price else { continue };
            // While its provider has none of the cheaper offer, the next one's price is what it costs: else work that may cost that much would never come.
            let is_left_alone = self.left_alone(&offer.key).is_some();
            let best = cheapest.entry(&offer.key.machine).or_insert((is_left_alone, price));
            if (is_left_alone, price.ceiling) < (best.0, best.1.ceiling) {
                *best = (is_left_alone, price);
            }
        }
        let mut promises: Vec<Promise> = Vec::new();
        for name in self.catalogue.offers.iter().map(|o| &o.key.machine) {
            if let Some(kind) = self.catalogue.types.get(name).filter(|_| !promises.iter().any(|p| p.name == *name)) {
                let price = cheapest.get(name.as_str()).map(|c| c.1);
                promises.push(Promise { name: name.clone(), kind: kind.clone(), price, machines: self.booting_of(name), no_more: None });
            }
        }
        let by_slot = |p: &Promise| p.price.map_or(u64::MAX, |price| price.ceiling.0 / u64::from(p.kind.slots.max(1)));
        let mut order: Vec<usize> = (0..promises.len()).collect();
        order.sort_by_key(|i| (self.type_left_alone(&promises[*i].name).is_some(), by_slot(&promises[*i])));
        // Idle machines are in the way of what comes only until it has come.
        let (all, mut rest) = (self.left(|m| !self.makes_room(m)), self.left(|_| true));
        for i in order.iter().skip(1).copied() {
            let n = self.some_of(&promises[i], all, 1);
            rest = rest.beside(n, &promises[i]);
            promises[i].machines += n;
        }
        if let Some(cheapest) = order.first().copied() {
            let n = self.some_of(&promises[cheapest], all, 1).max(self.some_of(&promises[cheapest], rest, u64::MAX));
            rest = rest.beside(n, &promises[cheapest]);
            promises[cheapest].machines += n;
        }
        for i in order {
            promises[i].no_more = self.why_no_more(&promises[i], rest);
        }
        promises
    }

    fn booting_of(&self, name: &str) -> u64 {
        self.machines().filter(|m| m.offer.machine == name && m.is_booting()).count() as u64
    }

    /// Beside those machines of which this holds.
    fn left(&self, of: impl Fn(&Machine) -> bool) -> Left {
        let Used { slots, machines, .. } = self.used(of);
        // Of an owner's own caps only he is told, by what comes back.
        let rate = self.budget().nodes().first().and_then(|root| root.caps.hour.map(|cap| cap.0.saturating_sub(root.rate().0)));
        Left {
            slots: self.settings.slots_max.saturating_sub(slots),
            machines: u64::from(self.settings.machines_max).saturating_sub(machines),
            rate: rate.unwrap_or(u64::MAX),
        }
    }

    /// Of a machine at this price.
    fn pays_first_lease(&self, price: Price) -> Result<(), Over> {
        let days = Charge::lease(price.ceiling, price.billing, self.now, self.now + price.billing.first_ms());
        self.budget().allows(0, &Charge { rate: Rate(0), days })
    }

    /// Why no more of a type is promised, when so much is left beside all promises. Numbers that change with every machine are left out: it is told to all
    /// sites above, and again whenever it changes.
    fn why_no_more(&self, of: &Promise, left: Left) -> Option<UnmetWhy> {
        let why = |limit: &str, evidence: String| Some(UnmetWhy::new(limit, evidence));
        let (price, settings, currency) = (of.price?, &self.settings, &self.catalogue.currency);
        if let Some((_, text)) = self.blocked_by() {
            return why("provider", text.into());
        }
        if let Some(text) = self.type_left_alone(&of.name) {
            return why("capacity", text);
        }
        let there = self.machines().filter(|m| m.offer.machine == of.name && m.may_exist() && !m.is_booting()).count() as u64;
        if let Some(max) = of.kind.machines_max.filter(|max| there + of.machines >= u64::from(*max)) {
            return why("machines of a type", format!("no more than {max} {}", of.name));
        }
        if left.slots < u64::from(of.kind.slots) {
            return why("slots", format!("no more than {}", settings.slots_max));
        }
        if left.machines == 0 {
            return why("machines", format!("no more than {}", settings.machines_max));
        }
        if let Err(over) = self.pays_first_lease(price) {
            let cap = if over.cap.is_empty() { over.evidence(currency) } else { format!("no more than {} {currency}{}", over.cap, over.per) };
            return why(&over.limit, cap);
        }
        let cap = self.budget().nodes().first().and_then(|root| root.caps.hour).filter(|_| left.rate < price.ceiling.0)?;
        why("budget rate", format!("no more than {cap} {currency} per hour"))
    }

    /// So many of a type, at most, and of what is left.
    fn some_of(&self, of: &Promise, left: Left, most: u64) -> u64 {
        let Some(price) = of.price else { return 0 };
        if self.blocked_by().is_some() || self.type_left_alone(&of.name).is_some() || self.pays_first_lease(price).is_err() {
            return 0;
        }
        let there = self.machines().filter(|m| m.offer.machine == of.name && m.stage != Stage::Ended).count() as u64;
        let of_type = of.kind.machines_max.map_or(u64::MAX, |max| u64::from(max).saturating_sub(there));
        let by_rate = left.rate.checked_div(price.ceiling.0).unwrap_or(u64::MAX);
        most.min(of_type).min(left.machines).min(left.slots / u64::from(of.kind.slots.max(1))).min(by_rate)
    }
}
