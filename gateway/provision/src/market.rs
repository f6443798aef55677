//! What can be rented: types of machines, where, how, and for how much. The catalogue may change while machines run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use intergrid_proto::share::{Machine, Shape};

use crate::limits::LEASE_MS;
use crate::money::Rate;

/// A type of machine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MachineType {
    /// Slots of one machine.
    pub slots: u32,
    /// Bytes of one machine.
    pub memory_bytes: u64,
    /// GPUs of one machine.
    pub gpus: u32,
    /// As `uname -m`.
    pub architecture: String,
    /// Machines of this type that may exist at a time, whatever the budget says; None: no such limit.
    pub machines_max: Option<u32>,
}

impl MachineType {
    /// Slots that a task takes here; None: it never fits.
    pub fn cost(&self, shape: &Shape) -> Option<u64> {
        let machine = self.machine();
        machine.holds(shape).then(|| machine.cost(shape))
    }

    /// What tasks share of one.
    pub fn machine(&self) -> Machine {
        Machine { slots: self.slots, memory_bytes: self.memory_bytes, gpus: self.gpus }
    }
}

/// How time is billed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Billing {
    /// By the second, and at least so many.
    Second {
        /// Seconds.
        min_s: u32,
    },
    /// By the hour that has begun, counted from the launch.
    Hour,
}

impl Billing {
    /// What is charged ahead at a launch: milliseconds.
    pub fn first_ms(self) -> u64 {
        match self {
            Billing::Second { min_s } => LEASE_MS.max(u64::from(min_s) * 1_000),
            Billing::Hour => 3_600_000,
        }
    }

    /// What is charged ahead each further time: milliseconds.
    pub fn next_ms(self) -> u64 {
        match self {
            Billing::Second { .. } => LEASE_MS,
            Billing::Hour => 3_600_000,
        }
    }
}

/// What an offer costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Price {
    /// Now.
    pub rate: Rate,
    /// The most that it can become: on demand the same, spot the bid.
    pub ceiling: Rate,
    /// How time is billed.
    pub billing: Billing,
}

/// Names an offer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OfferKey {
    /// Of machine.
    pub machine: String,
    /// Where; empty: the provider chooses.
    pub zone: String,
    /// May be taken away at short notice.
    pub spot: bool,
}

impl fmt::Display for OfferKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spot = if self.spot { " (spot)" } else { "" };
        match self.zone.as_str() {
            "" => write!(f, "{}{spot}", self.machine),
            zone => write!(f, "{} in {zone}{spot}", self.machine),
        }
    }
}

/// A type of machine at a price.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Its name.
    pub key: OfferKey,
    /// None: not known, so it is not rented.
    pub price: Option<Price>,
}

/// All that can be rented from one provider.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Catalogue {
    /// ISO 4217; of all prices and caps.
    pub currency: String,
    /// By name.
    pub types: BTreeMap<String, MachineType>,
    /// In the order in which equal ones are preferred.
    pub offers: Vec<Offer>,
}

impl Catalogue {
    /// As it is with these prices of the spot market, by type of machine: never above the bid, and the bid where none is known.
    pub fn with_spot(&self, now: &BTreeMap<String, Rate>) -> Catalogue {
        let mut catalogue = self.clone();
        for offer in catalogue.offers.iter_mut().filter(|o| o.key.spot) {
            if let Some(price) = &mut offer.price {
                price.rate = now.get(&offer.key.machine).map_or(price.ceiling, |rate| price.ceiling.min(*rate));
            }
        }
        catalogue
    }

    /// Types that are rented on the spot market.
    pub fn spot_types(&self) -> BTreeSet<String> {
        self.offers.iter().filter(|o| o.key.spot).map(|o| o.key.machine.clone()).collect()
    }

    /// An offer's price now.
    pub fn price(&self, key: &OfferKey) -> Option<Price> {
        self.offers.iter().find(|o| o.key == *key).and_then(|o| o.price)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spot_price_moves_below_its_bid_and_an_unknown_one_is_the_bid() {
        let offer = |machine: &str, spot| {
            let price = Price { rate: Rate(100), ceiling: Rate(100), billing: Billing::Hour };
            Offer { key: OfferKey { machine: machine.into(), zone: String::new(), spot }, price: Some(price) }
        };
        let offers = vec![offer("a", true), offer("b", true), offer("c", true), offer("a", false)];
        let catalogue = Catalogue { offers, ..Catalogue::default() };
        assert_eq!(BTreeSet::from(["a", "b", "c"].map(String::from)), catalogue.spot_types());
        let rates = |c: &Catalogue| c.offers.iter().map(|o| o.price.map(|p| (p.rate.0, p.ceiling.0))).collect::<Option<Vec<_>>>();
        let now = BTreeMap::from([("a".to_string(), Rate(30)), ("b".to_string(), Rate(170))]);
        let moved = catalogue.with_spot(&now);
        assert_eq!(Some(vec![(30, 100), (100, 100), (100, 100), (100, 100)]), rates(&moved));
        assert_eq!(rates(&catalogue), rates(&moved.with_spot(&BTreeMap::new())));
    }
}
