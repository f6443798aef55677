//! What the configuration says, and what becomes of what is rented when it says something else.
//!
//! What is reserved stays reserved: a machine keeps the price that it was rented at, and is charged for at its most until its lease is over. What is decided
//! from then on, the next lease of a machine among it, is decided by the new terms.

use std::collections::{BTreeMap, BTreeSet};

use crate::budget::Budget;
use crate::core::{Provisioner, Settings};
use crate::machine::{Machine, Stage, Why};
use crate::market::{Catalogue, Offer};
use crate::money::Rate;
use crate::records::Record;

/// What may be rented, and for how much in all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Terms {
    /// Limits.
    pub settings: Settings,
    /// Types and prices.
    pub catalogue: Catalogue,
    /// Caps.
    pub budget: Budget,
}

impl Terms {
    /// What is different in others, in one clause each, for people.
    pub fn changes(&self, new: &Terms) -> Vec<String> {
        let currency = &new.catalogue.currency;
        let price = |o: &Offer| o.price.map_or("an unknown price".into(), |p| format!("{} {currency} per hour", p.ceiling));
        let there = |c: &Catalogue, o: &Offer| c.offers.iter().find(|other| other.key == o.key).cloned();
        let removed = self.catalogue.offers.iter().filter(|o| there(&new.catalogue, o).is_none());
        let mut out: Vec<String> = removed.map(|o| format!("{} is no longer rented", o.key)).collect();
        for offer in &new.catalogue.offers {
            match there(&self.catalogue, offer) {
                None => out.push(format!("{} is rented at {}", offer.key, price(offer))),
                Some(old) if old.price != offer.price => out.push(format!("{}: {}, was {}", offer.key, price(offer), price(&old))),
                Some(_) => {}
            }
        }
        let resized = self.catalogue.types.iter().filter(|(name, kind)| new.catalogue.types.get(*name).is_some_and(|k| k != *kind));
        out.extend(resized.map(|(name, _)| format!("type {name} is another")));
        let caps = |b: &Budget| b.nodes().iter().map(|n| (n.name.clone(), n.caps)).collect::<BTreeMap<_, _>>();
        let old = caps(&self.budget);
        out.extend(caps(&new.budget).into_iter().filter(|(name, caps)| old.get(name) != Some(caps)).map(|(name, _)| format!("caps of {name}")));
        if self.settings != new.settings {
            out.push("limits".into());
        }
        out
    }
}

impl Machine {
    /// What it costs now: on demand what it was rented at; on the spot market what is asked there, never above the bid, and the bid where that is not known.
    pub(crate) fn rate_now(&self, spot: &BTreeMap<String, Rate>) -> Rate {
        match self.offer.spot {
            true => spot.get(&self.offer.machine).map_or(self.price.ceiling, |rate| self.price.ceiling.min(*rate)),
            false => self.price.rate,
        }
    }
}

impl Provisioner {
    /// Go by other terms from now on.
    pub(crate) fn go_by(&mut self, terms: Terms) {
        self.settings = terms.settings;
        self.catalogue = terms.catalogue.with_spot(&self.spot);
        self.budget_is(terms.budget);
        // What was decided and not asked for yet is decided again.
        let decided = self.machines().filter(|m| m.stage == Stage::Asked && !m.called).map(|m| m.number).collect::<Vec<_>>();
        decided.into_iter().for_each(|number| self.gone(number, true, None));
        self.note_listed();
    }

    /// Which machines are of an offer that is no longer in the catalogue.
    pub(crate) fn note_listed(&mut self) {
        let offers = &self.catalogue.offers;
        self.state.machines.values_mut().for_each(|m| m.unlisted = !offers.iter().any(|o| o.key == m.offer));
    }

    /// Owners and caps from now on. Who stands below whom is written down, so that what was charged until now is never charged anew by it.
    pub(crate) fn budget_is(&mut self, budget: Budget) {
        let nodes = budget.tree();
        if !self.state.has_tree || self.state.budget.tree() != nodes {
            // What they cost less than was charged is given back to who paid for it.
            let named: Vec<u64> = self.machines().filter(|m| m.stage == Stage::Named).map(|m| m.number).collect();
            named.into_iter().for_each(|number| self.settle(number, self.now));
            self.record(Record::Tree { nodes, at_ms: Some(self.now) });
        }
        self.state.budget = self.state.budget.recapped(budget);
    }

    /// On the spot market its last lease cost less than the bid until then.
    pub(crate) fn settle(&mut self, number: u64, at_ms: u64) {
        let Some(m) = self.state.machines.get(&number).filter(|m| m.rate_max < m.price.ceiling) else { return };
        let (rate_max, paid_ms) = (m.rate_max, m.paid_ms);
        self.record(Record::Leased { number, at_ms: at_ms.min(paid_ms), rate_max, paid_ms });
    }

    /// Prices of the spot market now, by type.
    pub(crate) fn spot_is(&mut self, now: BTreeMap<String, Rate>) {
        self.catalogue = self.catalogue.with_spot(&now);
        for m in self.state.machines.values_mut() {
            m.rate_max = m.rate_max.max(m.rate_now(&now));
        }
        self.spot = now;
    }

    /// Types whose price on the spot market matters: on offer, or rented.
    pub fn spot_types(&self) -> BTreeSet<String> {
        let rented = self.machines().filter(|m| m.offer.spot && m.may_exist()).map(|m| m.offer.machine.clone());
        self.catalogue.spot_types().into_iter().chain(rented).collect()
    }

    /// Would what stays, this machine among it, cost more in an hour than a cap allows, as it can be where a cap was lowered? What goes for that reason does
    /// not count, so that no more goes than must.
    pub(crate) fn is_above_rate(&self, number: u64) -> bool {
        let budget = &self.state.budget;
        let Some(own) = self.state.machines.get(&number).map(|m| budget.node_of(&m.owner)) else { return false };
        let goes = |m: &Machine| !m.may_exist() || m.ending.is_some() || m.draining == Some(Why::Budget);
        let staying: Vec<&Machine> = self.machines().filter(|m| m.number == number || !goes(m)).collect();
        budget.path(own).filter_map(|at| budget.nodes()[at].caps.hour.map(|cap| (at, cap))).any(|(at, cap)| {
            let paid = staying.iter().filter(|m| budget.path(budget.node_of(&m.owner)).any(|n| n == at));
            paid.fold(Rate(0), |sum, m| sum.plus(m.price.ceiling)) > cap
        })
    }
}
