//! Room for work that no machine takes: idle machines that are only kept to the end of their paid hour go early where they are in its way.
//!
//! Law: none goes but for a machine that can be rented when it has ended, by all limits and budgets, and no more of them go than that takes. Slots and machines
//! are freed by it; its rate stays used until its hour is over, so that it is of no use where that is in the way. What went had no work in this round:
//! nothing of its kind is rented again for the same demand.

use std::cmp::{Ordering, Reverse};

use crate::Rate;
use crate::core::Provisioner;
use crate::machine::{Machine, Stage, Why};
use crate::market::{MachineType, Offer};
use crate::money::Money;
use crate::pack::{Demand, Fill, fill, is_better};

/// What machines hold of the limits that are not money.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Used {
    pub slots: u64,
    pub machines: u64,
    pub booting: u64,
}

/// What must be freed before one more machine can come.
#[derive(Clone, Copy, Debug)]
struct Short {
    slots: u64,
    machines: u64,
    /// Machines of its type.
    of_type: u64,
}

/// A machine that could go for it.
#[derive(Clone, Debug)]
struct Idle {
    number: u64,
    slots: u64,
    /// It is of the type that is to come.
    of_type: bool,
    /// What was paid for the rest of its hour.
    loss: Money,
}

impl Short {
    fn is_met(self, by: &[&Idle]) -> bool {
        let of_type = by.iter().filter(|m| m.of_type).count() as u64;
        by.iter().map(|m| m.slots).sum::<u64>() >= self.slots && by.len() as u64 >= self.machines && of_type >= self.of_type
    }
}

/// The fewest that are enough, and of as few rather those that lose less. None: all of them are not enough.
fn fewest(idle: &[Idle], short: Short) -> Option<Vec<u64>> {
    let mut go: Vec<&Idle> = idle.iter().collect();
    go.sort_by_key(|m| (Reverse(m.slots), m.loss, m.number));
    // Of its type as many as must, then the largest.
    let own: Vec<u64> = go.iter().filter(|m| m.of_type).take(short.of_type as usize).map(|m| m.number).collect();
    go.sort_by_key(|m| !own.contains(&m.number));
    let n = (0..=go.len()).find(|n| short.is_met(&go[..*n]))?;
    let mut stay = go.split_off(n);
    for at in 0..n {
        stay.sort_by_key(|m| (m.loss, m.number));
        let cheaper = stay.iter().position(|m| {
            m.loss < go[at].loss && {
                let mut other = go.clone();
                other[at] = *m;
                short.is_met(&other)
            }
        });
        if let Some(of) = cheaper {
            std::mem::swap(&mut go[at], &mut stay[of]);
        }
    }
    Some(go.into_iter().map(|m| m.number).collect())
}

/// Of what is used, for people.
pub(crate) fn and_going(n: u64) -> String {
    if n == 0 { String::new() } else { format!("; idle and going: {n}") }
}

impl Provisioner {
    /// What the machines of which this holds use.
    pub(crate) fn used(&self, of: impl Fn(&Machine) -> bool) -> Used {
        self.machines().filter(|m| m.may_exist() && of(m)).fold(Used::default(), |sum, m| Used {
            slots: sum.slots + u64::from(m.kind.slots),
            machines: sum.machines + 1,
            booting: sum.booting + u64::from(m.is_booting()),
        })
    }

    /// It goes anyway, and soon.
    pub(crate) fn is_going(&self, m: &Machine) -> bool {
        let drains = m.draining.is_some() || (m.is_idle(self.now, self.settings.idle_ms) && !m.is_kept());
        m.stage == Stage::Named && (m.ending.is_some() || (drains && m.attached && m.busy == 0))
    }

    /// What idle machines use that go.
    pub(crate) fn idle_and_going(&self) -> Used {
        self.used(|m| m.busy == 0 && self.is_going(m))
    }

    /// It is idle, and kept to the end of its hour only.
    fn is_kept_idle(&self, m: &Machine) -> bool {
        let stays = m.stage == Stage::Named && m.draining.is_none() && m.ending.is_none();
        stays && m.is_kept() && m.is_idle(self.now, self.settings.idle_ms)
    }

    /// It would go for other work, or does.
    pub(crate) fn makes_room(&self, m: &Machine) -> bool {
        (m.in_the_way && m.busy == 0) || self.is_kept_idle(m)
    }

    /// Demand is left, and nothing more was rented for it: where idle machines are in the way of one that could be rented, they go now; of several that
    /// could be, for the one for which the fewest go. Where those that go anyway are enough, no other does.
    pub(crate) fn make_room(&mut self, owner: &str, demand: &[Demand]) {
        // What is not freed.
        let stays_reached = self.curbs(owner).iter().any(|c| c.used >= c.max && c.name != "slots" && c.name != "machines");
        if stays_reached || self.blocked_by().is_some() {
            return;
        }
        let mut best: Option<(Vec<u64>, Rate, Fill)> = None;
        for offer in &self.catalogue.offers {
            let Some(kind) = self.catalogue.types.get(&offer.key.machine) else { continue };
            let Ok(price) = self.may_ask(offer) else { continue };
            let Some(fill) = fill(demand, kind, price.ceiling) else { continue };
            let Some(go) = self.in_the_way(offer, kind).filter(|_| self.may_begin(owner, offer, price).is_ok()) else { continue };
            if go.is_empty() {
                return;
            }
            let is_next = |(other, rate, of): &(Vec<u64>, Rate, Fill)| match go.len().cmp(&other.len()) {
                Ordering::Less => true,
                Ordering::Equal => is_better((price.ceiling, &fill), (*rate, of)),
                Ordering::Greater => false,
            };
            if best.as_ref().is_none_or(is_next) {
                best = Some((go, price.ceiling, fill));
            }
        }
        for number in best.into_iter().flat_map(|(go, ..)| go) {
            if let Some(m) = self.state.machines.get_mut(&number) {
                m.in_the_way = true;
            }
            self.drain(number, Why::Idle);
        }
    }

    /// The idle machines that have to go before one of an offer can come, beside those that go anyway. None: that would not be enough.
    fn in_the_way(&self, offer: &Offer, kind: &MachineType) -> Option<Vec<u64>> {
        let is_of_type = |m: &Machine| m.offer.machine == offer.key.machine;
        let stay = self.used(|m| !self.is_going(m));
        let of_type = self.used(|m| !self.is_going(m) && is_of_type(m)).machines;
        let short = Short {
            slots: (stay.slots + u64::from(kind.slots)).saturating_sub(self.settings.slots_max),
            machines: (stay.machines + 1).saturating_sub(u64::from(self.settings.machines_max)),
            of_type: kind.machines_max.map_or(0, |max| (of_type + 1).saturating_sub(u64::from(max))),
        };
        let idle = self.machines().filter(|m| self.is_kept_idle(m)).map(|m| Idle {
            number: m.number,
            slots: u64::from(m.kind.slots),
            of_type: is_of_type(m),
            loss: m.price.ceiling.over(m.paid_ms.saturating_sub(self.now)),
        });
        fewest(&idle.collect::<Vec<_>>(), short)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn idle(number: u64, slots: u64, of_type: bool, loss: u64) -> Idle {
        Idle { number, slots, of_type, loss: Money(loss) }
    }

    #[test]
    fn few_go_and_what_is_paid_for_longest_stays() {
        let short = |slots, machines, of_type| Short { slots, machines, of_type };
        let all = [idle(1, 1, true, 50), idle(2, 1, true, 10), idle(3, 2, false, 40), idle(4, 4, false, 90)];
        assert_eq!(Some(vec![]), fewest(&all, short(0, 0, 0)));
        assert_eq!(Some(vec![2]), fewest(&all, short(1, 1, 0)), "the one that loses the least");
        assert_eq!(Some(vec![3]), fewest(&all, short(2, 0, 0)), "one, and not two");
        assert_eq!(Some(vec![4]), fewest(&all, short(4, 1, 0)));
        assert_eq!(Some(vec![2]), fewest(&all, short(1, 1, 1)), "of its own type");
        assert_eq!(Some(vec![2, 3]), fewest(&all, short(3, 0, 1)));
        assert_eq!(None, fewest(&all, short(9, 0, 0)));
        assert_eq!(None, fewest(&all, short(0, 0, 3)));
    }

    proptest! {
        #[test]
        fn no_other_choice_is_smaller(
            of in proptest::collection::vec((1u64..5, any::<bool>(), 0u64..9), 0..8),
            slots in 0u64..16,
            machines in 0u64..5,
            of_type in 0u64..4,
        ) {
            let short = Short { slots, machines, of_type };
            let all: Vec<Idle> = of.iter().zip(1..).map(|((slots, of_type, loss), n)| idle(n, *slots, *of_type, *loss)).collect();
            let chosen = |bits: u32| all.iter().filter(|m| (bits >> m.number) & 1 == 1).collect::<Vec<_>>();
            let enough = (0..1u32 << (all.len() + 1)).step_by(2).map(chosen).filter(|some| short.is_met(some));
            let least = enough.map(|some| some.len()).min();
            let go = fewest(&all, short);
            prop_assert_eq!(least, go.as_ref().map(Vec::len));
            if let Some(go) = go {
                let go: Vec<&Idle> = all.iter().filter(|m| go.contains(&m.number)).collect();
                prop_assert!(short.is_met(&go));
                let alone = all.iter().filter(|m| short.is_met(&[*m])).map(|m| m.loss).min();
                prop_assert!(go.len() != 1 || alone == Some(go[0].loss), "where one is enough, the one that loses the least");
            }
        }
    }
}
