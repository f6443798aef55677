//! Budgets: a tree of caps, and what has been charged to each of its nodes.
//!
//! A machine is charged ahead for its lease, at the most that it can cost. What is charged to a node is therefore never less than what was spent, and a
//! charge that would go above a cap of the node or of any node above it is refused before money is. Days and months are those of UTC; a charge that goes
//! over midnight is charged to both days.

use std::collections::BTreeMap;

use time::OffsetDateTime;

use crate::limits::{DAYS_KEPT_MAX, OTHERS_MAX};
use crate::market::Billing;
use crate::money::{Money, Rate};

const DAY_MS: u64 = 86_400_000;
/// The cap of an hour, as people are told of it; that of an owner has his name behind it.
pub(crate) const RATE: &str = "budget rate";
/// The root's name.
pub(crate) const ROOT: &str = "budget";

/// The caps of one node; None: no cap of this kind here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Caps {
    /// What all machines together may cost in an hour.
    pub hour: Option<Rate>,
    /// What may be charged to one day.
    pub day: Option<Money>,
    /// What may be charged to one month.
    pub month: Option<Money>,
    /// What may be charged ever.
    pub total: Option<Money>,
}

impl Caps {
    fn any(&self) -> bool {
        self.hour.is_some() || self.day.is_some() || self.month.is_some() || self.total.is_some()
    }
}

/// A node of the tree.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// `budget`, or an owner's name.
    pub name: String,
    /// Index of the node above; None: the root.
    pub above: Option<usize>,
    /// Its caps.
    pub caps: Caps,
    /// Rate of all machines that may exist.
    rate: Rate,
    /// Charged, by day (days since 1970).
    days: BTreeMap<u64, Money>,
    /// Charged to days that are no longer kept.
    before: Money,
}

/// An amount that is charged, or given back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Charge {
    /// Added to the rate.
    pub rate: Rate,
    /// Added to days (days since 1970).
    pub days: Vec<(u64, Money)>,
}

impl Charge {
    /// A lease from one time to another (ms since 1970). An hour that is billed as a whole belongs to the day in which it begins.
    pub fn lease(rate: Rate, billing: Billing, from_ms: u64, until_ms: u64) -> Vec<(u64, Money)> {
        let mut days = Vec::new();
        let mut at = from_ms;
        while at < until_ms {
            let day = at / DAY_MS;
            let end = match billing {
                Billing::Hour => (at + 3_600_000).min(until_ms),
                Billing::Second { .. } => ((day + 1) * DAY_MS).min(until_ms),
            };
            days.push((day, rate.over(end - at)));
            at = end;
        }
        days
    }

    /// All of it.
    pub fn money(&self) -> Money {
        self.days.iter().fold(Money(0), |sum, (_, m)| sum.plus(*m))
    }
}

/// A cap that a charge would break.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Over {
    /// Which: `budget rate`, `budget of the day`, ...; with the node's name where it is not the root.
    pub limit: String,
    /// What would be charged, in the catalogue's currency.
    pub would: String,
    /// The cap; empty: there is none.
    pub cap: String,
    /// Of both: ` per hour`, or nothing.
    pub per: &'static str,
    /// It is an owner's, and not that of all.
    pub own: bool,
}

impl Over {
    /// For people.
    pub fn evidence(&self, currency: &str) -> String {
        let Over { would, cap, per, .. } = self;
        if cap.is_empty() {
            return "no cap is set, so nothing is rented".into();
        }
        format!("{would} {currency}{per} would be charged, the cap is {cap} {currency}{per}")
    }
}

/// What has been charged to a node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ledger {
    /// Rate of all machines that may exist.
    pub rate: Rate,
    /// By day (days since 1970).
    pub days: Vec<(u64, Money)>,
    /// To days that are no longer kept.
    pub before: Money,
}

/// The tree.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Budget {
    nodes: Vec<Node>,
    /// What was charged to the root for owners who have no node: for people. It allows nothing and forbids nothing.
    others: BTreeMap<String, Node>,
}

fn month(day: u64) -> (i32, u8) {
    let at = i64::try_from(day.saturating_mul(86_400)).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    at.map_or((0, 0), |t| (t.year(), u8::from(t.month())))
}

impl Budget {
    /// A tree of a root and owners directly or indirectly below it: name, name of the node above, caps. Errors: a name twice, or a node above that is not
    /// there before it.
    pub fn new(root: Caps, owners: &[(String, Option<String>, Caps)]) -> Result<Budget, String> {
        let mut nodes = vec![Node { name: ROOT.into(), caps: root, ..Node::default() }];
        for (name, above, caps) in owners {
            if nodes.iter().any(|n| n.name == *name) {
                return Err(format!("budget of `{name}`: there are two"));
            }
            let above = match above {
                None => 0,
                Some(a) => {
                    nodes.iter().position(|n| n.name == *a).ok_or(format!("budget of `{name}`: it is below `{a}`, and there is none before it"))?
                }
            };
            nodes.push(Node { name: name.clone(), above: Some(above), caps: *caps, ..Node::default() });
        }
        Ok(Budget { nodes, others: BTreeMap::new() })
    }

    /// Owners who are not in another tree, or not below the same one there: while machines run, what was charged to them could not be given back where it
    /// was charged.
    pub fn moved(&self, new: &Budget) -> Vec<String> {
        let above = |b: &Budget, n: &Node| n.above.map(|at| b.nodes[at].name.clone());
        let is_moved = |n: &&Node| !new.nodes.iter().any(|other| other.name == n.name && above(new, other) == above(self, n));
        self.nodes.iter().filter(is_moved).map(|n| n.name.clone()).collect()
    }

    /// Name of each node, and of the one above it, which stands before it; of the root: none.
    pub(crate) fn tree(&self) -> Vec<(String, String)> {
        let above = |n: &Node| n.above.map_or_else(String::new, |at| self.nodes[at].name.clone());
        self.nodes.iter().map(|n| (n.name.clone(), above(n))).collect()
    }

    /// With the nodes of another tree (what is none changes nothing), no caps, and no rate: who stays keeps what was charged to him.
    pub(crate) fn replanted(&self, tree: &[(String, String)]) -> Budget {
        let owners = tree.iter().filter(|(_, above)| !above.is_empty());
        let owners: Vec<_> = owners.map(|(name, above)| (name.clone(), Some(above.clone()), Caps::default())).collect();
        let mut new = Budget::new(Caps::default(), &owners).map_or_else(|_| self.clone(), |new| self.recapped(new));
        new.nodes.iter_mut().for_each(|n| n.rate = Rate(0));
        new
    }

    /// Keep what was charged, under new caps: by name; what was charged to an owner who is no longer named stays charged above him.
    pub fn recapped(&self, mut caps: Budget) -> Budget {
        for node in &mut caps.nodes {
            if let Some(old) = self.nodes.iter().find(|n| n.name == node.name) {
                (node.rate, node.days, node.before) = (old.rate, old.days.clone(), old.before);
            }
        }
        caps.others = self.others.iter().filter(|(name, _)| !caps.has(name)).map(|(name, node)| (name.clone(), node.clone())).collect();
        caps
    }

    /// Put back what was charged to a node; one that is no longer there has been charged above it. Its rate is that of the machines that it pays
    /// for now, which come one by one: see [`Budget::take_over`].
    pub(crate) fn restore(&mut self, name: &str, ledger: &Ledger) {
        if let Some(node) = self.nodes.iter_mut().find(|n| n.name == name) {
            (node.rate, node.days, node.before) = (Rate(0), ledger.days.iter().copied().collect(), ledger.before);
        }
    }

    /// Put back what was charged to the root for an owner without a node.
    pub(crate) fn restore_other(&mut self, name: &str, ledger: &Ledger) {
        if !self.has(name) {
            let node =
                Node { name: name.into(), above: Some(0), days: ledger.days.iter().copied().collect(), before: ledger.before, ..Node::default() };
            self.others.insert(name.into(), node);
        }
    }

    fn has(&self, name: &str) -> bool {
        self.nodes.iter().any(|n| n.name == name)
    }

    /// A machine goes on where its owner stands now: there it counts. Of who paid until now, those who no longer do are given something back, and of
    /// who pays now, those who did not are charged what is left of its lease. The root always pays. Was it moved?
    pub(crate) fn take_over(&mut self, owner: &str, paid: &[&str], left: &Charge, back: &[(u64, Money)]) -> bool {
        let now: Vec<usize> = self.path(self.node_of(owner)).collect();
        let moved = !now.iter().map(|at| self.nodes[*at].name.as_str()).eq(paid.iter().copied());
        for (at, node) in self.nodes.iter_mut().enumerate() {
            let paid = at == 0 || paid.contains(&node.name.as_str());
            match (paid, now.contains(&at)) {
                (true, true) => node.add(&Charge { rate: left.rate, days: Vec::new() }),
                (false, true) => node.add(left),
                (true, false) => node.give_back(&Charge { rate: Rate(0), days: back.to_vec() }),
                (false, false) => {}
            }
        }
        moved
    }

    /// The node that pays for an owner: his own, or the root.
    pub fn node_of(&self, owner: &str) -> usize {
        self.nodes.iter().position(|n| n.name == owner).unwrap_or(0)
    }

    /// Owners who have no node, and for whom something was charged to the root. Their rate is not kept.
    pub fn others(&self) -> impl Iterator<Item = &Node> {
        self.others.values()
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// From a node to the root.
    pub(crate) fn path(&self, node: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(node.min(self.nodes.len().saturating_sub(1))), |n| self.nodes.get(*n).and_then(|n| n.above))
    }

    /// May this be charged to a node? Without a cap on the way to the root, nothing may.
    pub fn allows(&self, node: usize, charge: &Charge) -> Result<(), Over> {
        if !self.path(node).any(|n| self.nodes[n].caps.any()) {
            return Err(Over { limit: "no budget".into(), would: String::new(), cap: String::new(), per: "", own: false });
        }
        for at in self.path(node) {
            self.nodes[at].allows(charge)?;
        }
        Ok(())
    }

    /// Charge it, to the node and all above it.
    pub fn charge(&mut self, node: usize, charge: &Charge) {
        let path: Vec<usize> = self.path(node).collect();
        path.into_iter().for_each(|at| self.nodes[at].add(charge));
    }

    /// Of what a node is charged, note for whom: where the root pays, as he has no node.
    pub(crate) fn charge_other(&mut self, node: usize, whose: &str, charge: &Charge) {
        let is_free = charge.rate == Rate(0) && charge.money() == Money(0);
        if node != 0 || whose.is_empty() || self.has(whose) || is_free {
            return;
        }
        if !self.others.contains_key(whose) && self.others.len() >= OTHERS_MAX {
            let last = self.others.iter().min_by_key(|(name, n)| (n.days.keys().next_back().copied(), (*name).clone())).map(|(name, _)| name.clone());
            last.into_iter().for_each(|name| _ = self.others.remove(&name));
        }
        let new = || Node { name: whose.into(), above: Some(0), ..Node::default() };
        self.others.entry(whose.into()).or_insert_with(new).add(&Charge { rate: Rate(0), days: charge.days.clone() });
    }

    /// Of what a node is given back, for whom it was charged.
    pub(crate) fn refund_other(&mut self, node: usize, whose: &str, days: &[(u64, Money)]) {
        if let Some(other) = self.others.get_mut(whose).filter(|_| node == 0) {
            other.give_back(&Charge { rate: Rate(0), days: days.to_vec() });
        }
    }

    /// Give back what was charged and not used.
    pub fn refund(&mut self, node: usize, charge: &Charge) {
        let path: Vec<usize> = self.path(node).collect();
        path.into_iter().for_each(|at| self.nodes[at].give_back(charge));
    }

    /// How near a node's path is to its caps of the hour: the largest (which, used, cap).
    pub fn rate_used(&self, node: usize) -> Option<(String, Rate, Rate)> {
        let used = self.path(node).map(|n| &self.nodes[n]).filter_map(|n| n.caps.hour.map(|cap| (n.named(RATE), n.rate, cap)));
        used.max_by(|a, b| (u128::from(a.1.0) * u128::from(b.2.0)).cmp(&(u128::from(b.1.0) * u128::from(a.2.0))))
    }
}

impl Node {
    /// What has been charged.
    pub fn ledger(&self) -> Ledger {
        Ledger { rate: self.rate, days: self.days.iter().map(|(d, m)| (*d, *m)).collect(), before: self.before }
    }

    /// Rate of all machines that may exist.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Charged to a day (days since 1970).
    pub fn of_day(&self, day: u64) -> Money {
        self.days.get(&day).copied().unwrap_or_default()
    }

    /// Charged to a day's month.
    pub fn of_month(&self, day: u64) -> Money {
        let this = month(day);
        self.days.iter().filter(|(d, _)| month(**d) == this).fold(Money(0), |sum, (_, m)| sum.plus(*m))
    }

    /// Charged ever.
    pub fn total(&self) -> Money {
        self.days.values().fold(self.before, |sum, m| sum.plus(*m))
    }

    fn add(&mut self, charge: &Charge) {
        self.rate = self.rate.plus(charge.rate);
        for (day, money) in &charge.days {
            let sum = self.days.entry(*day).or_default();
            *sum = sum.plus(*money);
        }
        // By their age: today and what comes stay, of however many days a charge is.
        let kept_from = charge.days.iter().map(|(day, _)| day.saturating_sub(DAYS_KEPT_MAX)).min().unwrap_or(0);
        while let Some(oldest) = self.days.first_entry().filter(|oldest| *oldest.key() < kept_from) {
            self.before = self.before.plus(oldest.remove());
        }
    }

    fn give_back(&mut self, charge: &Charge) {
        self.rate = Rate(self.rate.0.saturating_sub(charge.rate.0));
        for (day, money) in &charge.days {
            match self.days.get_mut(day) {
                Some(sum) => *sum = sum.less(*money),
                None => self.before = self.before.less(*money),
            }
        }
    }

    /// A limit of this node, for people.
    fn named(&self, limit: &str) -> String {
        if self.above.is_none() { limit.into() } else { format!("{limit} of {}", self.name) }
    }

    fn allows(&self, charge: &Charge) -> Result<(), Over> {
        let over = |what: &str, would: String, cap: String| {
            let per = if what == RATE { " per hour" } else { "" };
            Err(Over { limit: self.named(what), would, cap, per, own: self.above.is_some() })
        };
        if let Some(cap) = self.caps.hour.filter(|cap| charge.rate.0 > 0 && self.rate.plus(charge.rate) > *cap) {
            return over(RATE, self.rate.plus(charge.rate).to_string(), cap.to_string());
        }
        let mut by_month: BTreeMap<(i32, u8), (u64, Money)> = BTreeMap::new();
        let mut by_day: BTreeMap<u64, Money> = BTreeMap::new();
        for (day, money) in &charge.days {
            let sum = by_day.entry(*day).or_default();
            *sum = sum.plus(*money);
            let of_month = by_month.entry(month(*day)).or_insert((*day, Money(0)));
            of_month.1 = of_month.1.plus(*money);
        }
        for (day, money) in by_day {
            let would = self.of_day(day).plus(money);
            if let Some(cap) = self.caps.day.filter(|cap| would > *cap) {
                return over("budget of the day", would.to_string(), cap.to_string());
            }
        }
        for (day, money) in by_month.values() {
            let would = self.of_month(*day).plus(*money);
            if let Some(cap) = self.caps.month.filter(|cap| would > *cap) {
                return over("budget of the month", would.to_string(), cap.to_string());
            }
        }
        let would = self.total().plus(charge.money());
        match self.caps.total.filter(|cap| would > *cap) {
            Some(cap) => over("budget in all", would.to_string(), cap.to_string()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(hour: u64, day: u64) -> Caps {
        Caps { hour: Some(Rate(hour)), day: Some(Money(day)), ..Caps::default() }
    }

    #[test]
    fn a_charge_counts_at_every_node_above() {
        let owners = [("lab".into(), None, caps(50, 1_000)), ("alice".into(), Some("lab".into()), Caps::default())];
        let mut budget = Budget::new(caps(100, 60), &owners).unwrap();
        let alice = budget.node_of("alice");
        let charge = Charge { rate: Rate(40), days: vec![(3, Money(40))] };
        assert_eq!(Ok(()), budget.allows(alice, &charge));
        budget.charge(alice, &charge);
        assert_eq!("budget rate of lab", budget.allows(alice, &charge).unwrap_err().limit);
        let cheap = Charge { rate: Rate(1), days: vec![(3, Money(21))] };
        let over = budget.allows(alice, &cheap).unwrap_err();
        assert_eq!("budget of the day", over.limit);
        assert_eq!("0.000061 EUR would be charged, the cap is 0.00006 EUR", over.evidence("EUR"));
        assert_eq!(Ok(()), budget.allows(alice, &Charge { days: vec![(4, Money(21))], ..cheap }));
        budget.refund(alice, &charge);
        assert!(budget.nodes().iter().all(|n| n.total() == Money(0) && n.rate() == Rate(0)));
        assert_eq!("no budget", Budget::new(Caps::default(), &[]).unwrap().allows(0, &charge).unwrap_err().limit);
    }

    #[test]
    fn a_lease_over_midnight_is_charged_to_both_days() {
        let second = Billing::Second { min_s: 60 };
        assert_eq!(vec![(0, Money(50)), (1, Money(150))], Charge::lease(Rate(100), second, DAY_MS - 1_800_000, DAY_MS + 5_400_000));
        assert_eq!(vec![(0, Money(100))], Charge::lease(Rate(100), Billing::Hour, DAY_MS - 1_800_000, DAY_MS + 1_800_000));
        assert_eq!((2024, 2), month(19_782));
        assert_eq!((2024, 3), month(19_783));
    }

    #[test]
    fn an_owner_is_moved_or_not() {
        let tree = |owners: &[(&str, Option<&str>, u64)]| {
            let owners: Vec<_> = owners.iter().map(|(name, of, hour)| (name.to_string(), of.map(String::from), caps(*hour, 1))).collect();
            Budget::new(caps(100, 60), &owners).unwrap()
        };
        let old = tree(&[("lab", None, 50), ("alice", Some("lab"), 5)]);
        let more = tree(&[("bob", None, 1), ("lab", Some("bob"), 50), ("alice", Some("lab"), 70)]);
        assert_eq!(vec!["lab"], old.moved(&more));
        assert_eq!(Vec::<String>::new(), old.moved(&tree(&[("lab", None, 1), ("bob", None, 1), ("alice", Some("lab"), 1)])));
        assert_eq!(vec!["lab", "alice"], old.moved(&tree(&[("alice", None, 5)])));
    }

    #[test]
    fn who_has_no_budget_is_noted_and_how_many_is_bounded() {
        let mut budget = Budget::new(caps(100, 60), &[("alice".into(), None, caps(50, 60))]).unwrap();
        let five = |day| Charge { rate: Rate(0), days: vec![(day, Money(5))] };
        for n in 0..OTHERS_MAX as u64 + 10 {
            budget.charge_other(0, &format!("o{n}"), &five(n));
        }
        budget.charge_other(0, "alice", &five(1));
        budget.charge_other(1, "bob", &five(1));
        budget.charge_other(0, "free", &Charge::default());
        let names: Vec<&str> = budget.others().map(|n| n.name.as_str()).collect();
        assert_eq!(OTHERS_MAX, names.len());
        let has = ["o9", "o10", "alice", "bob"].map(|name| names.contains(&name));
        assert_eq!([false, true, false, false], has, "who was charged for last, and pays from no budget of his own");
        budget.refund_other(0, "o10", &[(10, Money(2))]);
        budget.refund_other(0, "o9", &[(9, Money(2))]);
        assert_eq!(Some(Money(3)), budget.others().find(|n| n.name == "o10").map(Node::total));
        assert!(budget.nodes().iter().all(|n| n.total() == Money(0)), "nothing is charged by that");
        let named = budget.recapped(Budget::new(caps(100, 60), &[("o10".into(), None, caps(1, 1))]).unwrap());
        assert!(named.others().count() == OTHERS_MAX - 1 && named.others().all(|n| n.name != "o10"), "one who gets a budget has his own row");
    }

    #[test]
    fn old_days_stay_charged() {
        let mut budget = Budget::new(Caps { total: Some(Money(1_000)), ..Caps::default() }, &[]).unwrap();
        for day in 0..200 {
            budget.charge(0, &Charge { rate: Rate(0), days: vec![(day, Money(5))] });
        }
        assert_eq!(Money(1_000), budget.nodes()[0].total());
        assert_eq!(Some(&(199 - DAYS_KEPT_MAX)), budget.nodes()[0].days.keys().next(), "one by one no more of them than are of use");
        assert_eq!("budget in all", budget.allows(0, &Charge { rate: Rate(0), days: vec![(200, Money(1))] }).unwrap_err().limit);
    }

    #[test]
    fn a_charge_of_many_days_leaves_each_day_its_own() {
        let caps = Caps { day: Some(Money(60)), month: Some(Money(1_140)), ..Caps::default() };
        let mut budget = Budget::new(caps, &[]).unwrap();
        budget.charge(0, &Charge { rate: Rate(0), days: (3..203).map(|day| (day, Money(40))).collect() });
        let more = |day, money| budget.allows(0, &Charge { rate: Rate(0), days: vec![(day, Money(money))] }).map_err(|over| over.limit);
        assert_eq!([Ok(()), Err("budget of the day".into()), Err("budget of the day".into())], [more(3, 20), more(3, 21), more(202, 21)]);
        assert_eq!(Money(28 * 40), budget.nodes()[0].of_month(3), "of 1970-01-04 to 31, in January");
        budget.charge(0, &Charge { rate: Rate(0), days: vec![(3, Money(20))] });
        assert_eq!("budget of the month", budget.allows(0, &Charge { rate: Rate(0), days: vec![(4, Money(1))] }).unwrap_err().limit);
    }
}
