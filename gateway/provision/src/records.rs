//! What of the provisioner is durable, as changes: live and in a replay, [`apply`] is the one way in which it changes.

use std::collections::BTreeMap;

use crate::budget::{Budget, Charge, Ledger, ROOT};
use crate::machine::{Machine, Need, Stage, Why};
use crate::market::{Billing, MachineType, OfferKey, Price};
use crate::money::{Money, Rate};

/// A change. Times are ms since 1970.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// A machine is to be rented; it is charged until `paid_ms`.
    Intended {
        /// Its number.
        number: u64,
        /// What.
        offer: OfferKey,
        /// Its size.
        kind: MachineType,
        /// For whom: a principal. Older versions wrote who paid then: his node, or the root where he had none.
        owner: String,
        /// What for; None: of a version that did not write it down.
        need: Option<Need>,
        /// Now, at most, and how billed.
        price: Price,
        /// Now.
        at_ms: u64,
        /// Charged until then.
        paid_ms: u64,
        /// It is written down when its agent comes; false: of a version that did not.
        awaited: bool,
    },
    /// The provider has named it.
    Named {
        /// Which.
        number: u64,
        /// The provider's name for it.
        id: String,
    },
    /// Its agent has come, for the first time.
    Came {
        /// Which.
        number: u64,
    },
    /// It is to be ended.
    Ending {
        /// Which.
        number: u64,
        /// Why.
        why: Why,
    },
    /// More of its time is charged; until now it cost less than what was.
    Leased {
        /// Which.
        number: u64,
        /// Now.
        at_ms: u64,
        /// The dearest rate since the last such record.
        rate_max: Rate,
        /// Charged until then.
        paid_ms: u64,
    },
    /// It was charged by a clock that was ahead: all that was counts as used, and its time goes on from the start that found it.
    SetBack {
        /// Which.
        number: u64,
        /// That start.
        at_ms: u64,
    },
    /// Its end is certain.
    Gone {
        /// Which.
        number: u64,
        /// Not billed from then on.
        at_ms: u64,
        /// It never was: nothing is billed.
        never: bool,
    },
    /// What is billed for it at least is over, too.
    Forgotten {
        /// Which.
        number: u64,
    },
    /// Of a checkpoint: a machine as it is; it has been charged.
    Kept {
        /// The durable part; how it does is found again.
        machine: Box<Machine>,
    },
    /// Of a checkpoint: what has been charged to a budget.
    Spent {
        /// The node's name.
        name: String,
        /// What has been charged.
        ledger: Ledger,
        /// Name of the node above, empty for the root; None: not known, of a checkpoint that did not say it.
        above: Option<String>,
    },
    /// Of a checkpoint: what has been charged to the root for an owner without a budget of his own.
    SpentFor {
        /// His name.
        name: String,
        /// What has been charged; no rate.
        ledger: Ledger,
    },
    /// Who stands below whom from now on. Machines count there, and what is left of their leases; what was spent stays where it was.
    Tree {
        /// Name of each node, and of the one above it, which stands before it; of the root: none.
        nodes: Vec<(String, String)>,
        /// Now; None: of a version that gave nothing back, or of a checkpoint.
        at_ms: Option<u64>,
    },
    /// Of a checkpoint: the number of the next machine.
    Next {
        /// It.
        number: u64,
    },
    /// What is charged is in this currency.
    Currency {
        /// ISO 4217.
        name: String,
    },
    /// Nothing is rented of an offer for a while.
    LeftAlone {
        /// Which.
        offer: OfferKey,
        /// Until then.
        until_ms: u64,
        /// How often in a row; 0: no longer, as a task has ended on one that came.
        times: u32,
        /// For people.
        why: String,
    },
}

/// What is durable.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct State {
    pub machines: BTreeMap<u64, Machine>,
    pub budget: Budget,
    /// The next machine's number.
    pub next: u64,
    /// Of all amounts; empty: not known.
    pub currency: String,
    /// Did the records say who stands below whom?
    pub has_tree: bool,
    /// The tree of the latest checkpoint: name, name above.
    pub was: BTreeMap<String, String>,
    /// Until when an offer is left alone, how often in a row, and why.
    pub back_off: BTreeMap<OfferKey, (u64, u32, String)>,
}

/// Apply a change. One that concerns a machine that is not there changes nothing.
pub(crate) fn apply(state: &mut State, record: &Record) {
    let State { machines, budget, next, currency, has_tree, was, back_off } = state;
    match record {
        Record::Intended { number, offer, kind, owner, need, price, at_ms, paid_ms, awaited } => {
            let new = machine(*number, offer, kind, owner, *price, *at_ms, *paid_ms);
            let machine = Machine { need: need.clone(), awaited: *awaited, ..new };
            charge(budget, &machine, Charge { rate: price.ceiling, days: machine.charge(*at_ms, *paid_ms) });
            machines.insert(*number, machine);
            *next = (*next).max(number + 1);
        }
        Record::Named { number, id } => {
            if let Some(m) = machines.get_mut(number) {
                (m.stage, m.id) = (Stage::Named, id.clone());
            }
        }
        Record::Came { number } => {
            if let Some(m) = machines.get_mut(number) {
                m.awaited = false;
            }
        }
        Record::Ending { number, why } => {
            if let Some(m) = machines.get_mut(number) {
                m.ending = Some(*why);
            }
        }
        Record::Leased { number, at_ms, rate_max, paid_ms } => {
            let Some(m) = machines.get_mut(number) else { return };
            refund(budget, m, Charge { rate: Rate(0), days: unspent(m, *rate_max, *at_ms) });
            charge(budget, m, Charge { rate: Rate(0), days: m.charge(m.paid_ms, *paid_ms) });
            (m.settled_ms, m.paid_ms) = (m.settled_ms.max(*at_ms), *paid_ms);
        }
        Record::SetBack { number, at_ms } => {
            if let Some(m) = machines.get_mut(number) {
                (m.since_ms, m.settled_ms, m.paid_ms) = (m.since_ms.min(*at_ms), *at_ms, *at_ms);
            }
        }
        Record::Gone { number, at_ms, never } => {
            let Some(m) = machines.get_mut(number) else { return };
            let least_ms = match m.price.billing {
                Billing::Hour => m.paid_ms,
                Billing::Second { min_s } => m.since_ms + u64::from(min_s) * 1_000,
            };
            // A rate stays used for as long as is billed at least: else machines that come and go would cost more than the cap in an hour.
            let keeps_rate = !never && least_ms > *at_ms && m.price.ceiling > Rate(0);
            let rate = if keeps_rate { Rate(0) } else { m.price.ceiling };
            let days = match m.price.billing {
                _ if *never => m.charge(m.settled_ms, m.paid_ms),
                Billing::Hour => Vec::new(),
                Billing::Second { .. } => rounded_down(m.charge((*at_ms).max(least_ms).max(m.settled_ms), m.paid_ms)),
            };
            refund(budget, m, Charge { rate, days });
            (m.stage, m.paid_ms) = (Stage::Ended, least_ms);
            if !keeps_rate {
                machines.remove(number);
            }
        }
        Record::Forgotten { number } => {
            if let Some(m) = machines.remove(number) {
                refund(budget, &m, Charge { rate: m.price.ceiling, days: Vec::new() });
            }
        }
        Record::Kept { machine: m } => {
            let mut m = (**m).clone();
            take_over(budget, &mut m, was, None);
            machines.insert(m.number, m);
        }
        Record::Tree { nodes, at_ms } => {
            let before: BTreeMap<String, String> = budget.tree().into_iter().collect();
            *budget = budget.replanted(nodes);
            machines.values_mut().for_each(|m| take_over(budget, m, &before, *at_ms));
            *has_tree = true;
        }
        Record::Spent { name, ledger, above } => {
            budget.restore(name, ledger);
            was.extend(above.clone().map(|above| (name.clone(), above)));
        }
        Record::SpentFor { name, ledger } => budget.restore_other(name, ledger),
        Record::Next { number } => *next = (*next).max(*number),
        Record::Currency { name } => currency.clone_from(name),
        Record::LeftAlone { offer, times: 0, .. } => _ = back_off.remove(offer),
        Record::LeftAlone { offer, until_ms, times, why } => _ = back_off.insert(offer.clone(), (*until_ms, *times, why.clone())),
    }
}

/// To who pays for it, and noted for whom it was rented.
fn charge(budget: &mut Budget, m: &Machine, charge: Charge) {
    let node = budget.node_of(&m.owner);
    budget.charge(node, &charge);
    budget.charge_other(node, m.principal(), &charge);
}

/// What was charged, and not used.
fn refund(budget: &mut Budget, m: &Machine, charge: Charge) {
    let node = budget.node_of(&m.owner);
    budget.refund(node, &charge);
    budget.refund_other(node, m.principal(), &charge.days);
}

/// A machine goes on where its owner stands now, by the tree before (name, name above; empty where that is not known): what is left of its lease moves
/// with it. Of what is gone nothing will be given back but its rate.
fn take_over(budget: &mut Budget, m: &mut Machine, was: &BTreeMap<String, String>, at_ms: Option<u64>) {
    let payer = was.get_key_value(m.owner.as_str()).or_else(|| was.get_key_value(ROOT));
    let paid: Vec<&str> = std::iter::successors(payer, |(_, above)| was.get_key_value(*above)).map(|(name, _)| name.as_str()).collect();
    if m.owner == ROOT && !m.principal().is_empty() {
        m.owner = m.principal().to_string();
    }
    let left_ms = at_ms.map_or(m.settled_ms, |at_ms| m.unused_ms(at_ms).min(m.paid_ms).max(m.settled_ms));
    let days = if m.may_exist() && !was.is_empty() { m.charge(left_ms, m.paid_ms) } else { Vec::new() };
    let back = if at_ms.is_some() { rounded_down(days.clone()) } else { Vec::new() };
    let left = Charge { rate: m.price.ceiling, days };
    if budget.take_over(&m.owner, &paid, &left, &back) {
        m.settled_ms = left_ms;
        budget.charge_other(budget.node_of(&m.owner), m.principal(), &left);
    }
}

impl State {
    /// From what was committed: charged as it was then, to whom the records say that it was. The first that names a tree speaks of those before it,
    /// too; where none does (older versions did not write it down), it is that of `budget`.
    pub fn again(budget: &Budget, records: impl IntoIterator<Item = Record>) -> State {
        let records: Vec<Record> = records.into_iter().collect();
        let first = records.iter().find_map(|r| if let Record::Tree { nodes, .. } = r { Some(nodes) } else { None });
        let budget = first.map_or_else(|| budget.clone(), |nodes| budget.replanted(nodes));
        let mut state = State { budget, next: 1, ..State::default() };
        records.iter().for_each(|r| apply(&mut state, r));
        state
    }

    /// All of it, as records that make it again.
    pub fn checkpoint(&self) -> Vec<Record> {
        let machines = self.machines.values().map(|m| Record::Kept { machine: Box::new(kept(m)) });
        let tree = Record::Tree { nodes: self.budget.tree(), at_ms: None };
        let nodes = self.budget.nodes().iter().zip(self.budget.tree());
        let spent = nodes.map(|(n, (name, above))| Record::Spent { name, ledger: n.ledger(), above: Some(above) });
        let others = self.budget.others().map(|n| Record::SpentFor { name: n.name.clone(), ledger: n.ledger() });
        let currency = (!self.currency.is_empty()).then(|| Record::Currency { name: self.currency.clone() });
        let left_alone = self.back_off.iter().map(|(offer, (until_ms, times, why))| Record::LeftAlone {
            offer: offer.clone(),
            until_ms: *until_ms,
            times: *times,
            why: why.clone(),
        });
        currency.into_iter().chain([Record::Next { number: self.next }, tree]).chain(spent).chain(others).chain(machines).chain(left_alone).collect()
    }
}

/// The durable part of a machine.
fn kept(m: &Machine) -> Machine {
    let again = machine(m.number, &m.offer, &m.kind, &m.owner, m.price, m.since_ms, m.paid_ms);
    Machine { stage: m.stage, id: m.id.clone(), ending: m.ending, settled_ms: m.settled_ms, need: m.need.clone(), awaited: m.awaited, ..again }
}

impl Machine {
    /// From its durable part.
    pub fn again(intended: &Record, stage: Stage, id: String, ending: Option<Why>, settled_ms: u64) -> Option<Machine> {
        let Record::Intended { number, offer, kind, owner, need, price, at_ms, paid_ms, awaited } = intended else { return None };
        let new = machine(*number, offer, kind, owner, *price, *at_ms, *paid_ms);
        Some(Machine { stage, id, ending, settled_ms, need: need.clone(), awaited: *awaited, ..new })
    }
}

/// What was charged beyond the dearest rate, up to a time.
fn unspent(m: &Machine, rate_max: Rate, until_ms: u64) -> Vec<(u64, Money)> {
    let rest = Rate(m.price.ceiling.0.saturating_sub(rate_max.0));
    rounded_down(Charge::lease(rest, m.price.billing, m.settled_ms, until_ms))
}

/// Parts were rounded up where they were charged: rounded down where they are given back, what stays is never less than what was spent.
fn rounded_down(days: Vec<(u64, Money)>) -> Vec<(u64, Money)> {
    days.into_iter().map(|(day, money)| (day, money.less(Money(1)))).collect()
}

fn machine(number: u64, offer: &OfferKey, kind: &MachineType, owner: &str, price: Price, at_ms: u64, paid_ms: u64) -> Machine {
    Machine {
        number,
        offer: offer.clone(),
        kind: kind.clone(),
        owner: owner.into(),
        need: None,
        price,
        stage: Stage::Asked,
        id: String::new(),
        ending: None,
        awaited: false,
        since_ms: at_ms,
        settled_ms: at_ms,
        paid_ms,
        unheard: false,
        ahead: false,
        said_ms: None,
        had_work: false,
        called: false,
        in_flight: false,
        calls: 0,
        call_ms: at_ms,
        doubt: String::new(),
        attached: false,
        unproven_ms: None,
        away_ms: at_ms,
        busy: 0,
        time_max_ms: 0,
        idle_ms: at_ms,
        marked: false,
        draining: None,
        in_the_way: false,
        word: String::new(),
        drained: false,
        closed: false,
        unlisted: false,
        wanted: true,
        useless: 0,
        missed: 0,
        word_ms: at_ms,
        terminate_ms: 0,
        rate_max: price.rate,
    }
}
