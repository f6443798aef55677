//! What could be rented now, by type of machine: it is offered upward before it is there, so that work can come for which it is then rented.

use std::collections::BTreeMap;

use crate::Rate;
use crate::budget::Charge;
use crate::core::Provisioner;
use crate::machine::Stage;
use crate::market::{MachineType, Price};

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
}

/// What is left of the limits on all types together.
struct Left {
    slots: u64,
    machines: u64,
    rate: u64,
}

impl Provisioner {
    /// One entry for each type on offer, in their order; with 0 machines where none is left. The limits are shared: of every type but the cheapest (by slot)
    /// one machine is promised, so that work that only fits there can come; all the rest is of the cheapest.
    pub fn promises(&self) -> Vec<Promise> {
        let mut cheapest: BTreeMap<&str, (bool, Price)> = BTreeMap::new();
        for offer in &self.catalogue.offers {
            let Some(price) = offer.price else { continue };
            // While its provider has none of the cheaper offer, the next one's price is what it costs: else work that may cost that much would never come.
            let is_left_alone = self.back_off.get(&offer.key).is_some_and(|(until, ..)| *until > self.now);
            let best = cheapest.entry(&offer.key.machine).or_insert((is_left_alone, price));
            if (is_left_alone, price.ceiling) < (best.0, best.1.ceiling) {
                *best = (is_left_alone, price);
            }
        }
        let mut promises: Vec<Promise> = Vec::new();
        for name in self.catalogue.offers.iter().map(|o| &o.key.machine) {
            if let Some(kind) = self.catalogue.types.get(name).filter(|_| !promises.iter().any(|p| p.name == *name)) {
                let price = cheapest.get(name.as_str()).map(|c| c.1);
                promises.push(Promise { name: name.clone(), kind: kind.clone(), price, machines: self.booting_of(name) });
            }
        }
        let by_slot = |p: &Promise| p.price.map_or(u64::MAX, |price| price.ceiling.0 / u64::from(p.kind.slots.max(1)));
        let mut order: Vec<usize> = (0..promises.len()).collect();
        order.sort_by_key(|i| by_slot(&promises[*i]));
        let mut left = self.left();
        for i in order.iter().skip(1).copied() {
            promises[i].machines += self.some_of(&promises[i], &mut left, 1);
        }
        if let Some(first) = order.first().copied() {
            promises[first].machines += self.some_of(&promises[first], &mut left, u64::MAX);
        }
        promises
    }

    fn booting_of(&self, name: &str) -> u64 {
        self.machines().filter(|m| m.offer.machine == name && m.is_booting()).count() as u64
    }

    fn left(&self) -> Left {
        let exist = self.machines().filter(|m| m.may_exist());
        let (slots, machines) = exist.fold((0, 0), |(s, n), m| (s + u64::from(m.kind.slots), n + 1));
        // Of an owner's own caps, only he can be told.
        let rate = self.budget().nodes().first().and_then(|root| root.caps.hour.map(|cap| cap.0.saturating_sub(root.rate().0)));
        Left {
            slots: self.settings.slots_max.saturating_sub(slots),
            machines: u64::from(self.settings.machines_max).saturating_sub(machines),
            rate: rate.unwrap_or(u64::MAX),
        }
    }

    /// So many of a type, at most, and of what is left.
    fn some_of(&self, of: &Promise, left: &mut Left, most: u64) -> u64 {
        let Some(price) = of.price else { return 0 };
        if self.blocked.as_ref().is_some_and(|(until, _)| *until > self.now) {
            return 0;
        }
        let days = Charge::lease(price.ceiling, price.billing, self.now, self.now + price.billing.first_ms());
        if self.budget().allows(0, &Charge { rate: Rate(0), days }).is_err() {
            return 0;
        }
        let there = self.machines().filter(|m| m.offer.machine == of.name && m.stage != Stage::Ended).count() as u64;
        let of_type = of.kind.machines_max.map_or(u64::MAX, |max| u64::from(max).saturating_sub(there));
        let by_rate = left.rate.checked_div(price.ceiling.0).unwrap_or(u64::MAX);
        let n = most.min(of_type).min(left.machines).min(left.slots / u64::from(of.kind.slots.max(1))).min(by_rate);
        left.slots -= n * u64::from(of.kind.slots);
        left.machines -= n;
        left.rate = left.rate.saturating_sub(n.saturating_mul(price.ceiling.0));
        n
    }
}
