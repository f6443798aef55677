//! How a broker chooses among children: the cheapest first, then the nearest, then where most is free in proportion. Small on purpose: it orders, the
//! common `fill` keeps the properties of a plan. What costs money is used when the rest has been waited for long enough.

use intergrid_gateway::core::schedule::{Burst, Plan, Policy, Problem, fill};

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
            order.sort_by_key(|i| {
                let share = problem.offers[*i].share;
                let free_permille = (left[*i] * 1_000).checked_div(share.slots_total).unwrap_or(0);
                (share.price_micro_per_slot_hour, share.path.len(), std::cmp::Reverse(free_permille))
            });
            order
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use intergrid_gateway::core::schedule::{Demand, Offer};
    use intergrid_proto::{Shape, Share, SiteId};

    #[test]
    fn cheap_then_near_then_idle() {
        let share = |price: u64, hops: usize, total: u64| Share {
            machine_slots: 8,
            slots_total: total,
            price_micro_per_slot_hour: price,
            path: vec![SiteId::default(); hops],
            ..Share::default()
        };
        let shares = [share(5, 1, 8), share(0, 2, 8), share(0, 1, 16), share(0, 1, 8)];
        let offers = shares.iter().map(|share| Offer { child: SiteId::default(), share, credit: 4, free: 4 }).collect();
        let demands = vec![Demand { shape: Shape::default(), tasks: 13, oldest: 1, allowed: vec![0, 1, 2, 3] }];
        assert_eq!(Spread::default().plan(&Problem { demands, offers }), vec![(0, 0, 1), (0, 1, 4), (0, 2, 4), (0, 3, 4)]);
    }
}
