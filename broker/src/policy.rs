//! How a broker chooses among children: the cheapest first, then the nearest, then where most is free in proportion. Small on purpose: it orders, the
//! common `fill` keeps the properties of a plan. What costs money is used when the rest has been waited for long enough.

use std::collections::BTreeSet;

use intergrid_gateway::core::schedule::{Burst, Plan, Policy, Problem, fill};
use intergrid_proto::Share;

/// The broker's policy.
#[derive(Default)]
pub struct Spread {
    /// When shares that have a price may be used.
    pub burst: Burst,
}

impl Policy for Spread {
    fn burst(&self) -> Burst {
        self.burst
    }

    fn plan(&self, problem: &Problem<'_>) -> Plan {
        fill(problem, |left, allowed| {
            let mut order = allowed.to_vec();
            order.sort_by_cached_key(|i| {
                let share = problem.offers[*i].share;
                let free_permille = (left[*i] * 1_000).checked_div(share.slots_total).unwrap_or(0);
                let among = allowed.iter().map(|i| problem.offers[*i].share);
                (share.price_micro_per_slot_hour > 0, cheaper(share, among), share.path.len(), std::cmp::Reverse(free_permille))
            });
            order
        })
    }
}

/// How many lower prices there are in this share's currency: amounts of two currencies say nothing of each other.
fn cheaper<'a>(share: &Share, among: impl Iterator<Item = &'a Share>) -> usize {
    let lower = |s: &&Share| (1..share.price_micro_per_slot_hour).contains(&s.price_micro_per_slot_hour) && s.currency == share.currency;
    among.filter(lower).map(|s| s.price_micro_per_slot_hour).collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use intergrid_gateway::core::schedule::{Demand, Offer};
    use intergrid_proto::{Shape, SiteId};

    fn share(price: u64, hops: usize, total: u64) -> Share {
        Share { machine_slots: 8, slots_total: total, price_micro_per_slot_hour: price, path: vec![SiteId::default(); hops], ..Share::default() }
    }

    /// Of each share four slots are free.
    fn plan(shares: &[Share], tasks: u64) -> Plan {
        let offers = shares.iter().map(|share| Offer { child: SiteId::default(), share, credit: 4, free: 4 }).collect();
        let demands = vec![Demand { shape: Shape::default(), tasks, oldest: 1, allowed: (0..shares.len()).collect() }];
        Spread::default().plan(&Problem { demands, offers })
    }

    #[test]
    fn cheap_then_near_then_idle() {
        let shares = [share(5, 1, 8), share(0, 2, 8), share(0, 1, 16), share(0, 1, 8)];
        assert_eq!(plan(&shares, 13), vec![(0, 0, 1), (0, 1, 4), (0, 2, 4), (0, 3, 4)]);
    }

    #[test]
    fn prices_of_two_currencies_are_not_compared() {
        let of = |price, hops, currency: &str| Share { currency: currency.into(), ..share(price, hops, 8) };
        // First what is the cheapest in its own money, the nearest of these before the others; then what is dearer.
        let shares = [of(5, 2, "USD"), of(700, 1, "JPY"), of(6, 1, "USD"), of(701, 1, "JPY"), of(0, 3, "")];
        assert_eq!(plan(&shares, 5), vec![(0, 1, 1), (0, 4, 4)], "what costs nothing, and the nearer one");
        assert_eq!(plan(&shares, 12), vec![(0, 0, 4), (0, 1, 4), (0, 4, 4)]);
        assert_eq!(plan(&shares, 18), vec![(0, 0, 4), (0, 1, 4), (0, 2, 4), (0, 3, 2), (0, 4, 4)]);
    }
}
