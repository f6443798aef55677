//! Packing tasks into machines: into those that are there or on their way first, then into new ones, the cheapest for what it takes.

use intergrid_proto::share::Shape;

use crate::market::{MachineType, OfferKey};
use crate::money::Rate;

/// Tasks of one shape and one owner that wait, and have nowhere to go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Demand {
    /// What one of them needs.
    pub shape: Shape,
    /// How many.
    pub tasks: u64,
    /// Who pays.
    pub owner: String,
    /// The most that one of them may cost in an hour; None: whatever the budget allows.
    pub task_rate_max: Option<Rate>,
    /// The time limit of one of them: milliseconds. A new machine has so long. None: it is asked nothing.
    pub time_limit_ms: Option<u64>,
}

impl Demand {
    /// May one of them run on a machine of this kind at this rate? Its part of the rate is by the slots that it takes.
    fn pays(&self, kind: &MachineType, rate: Rate) -> bool {
        let slot_rate = rate.0.div_ceil(u64::from(kind.slots.max(1)));
        let task = kind.cost(&self.shape).map(|slots| slot_rate.saturating_mul(slots));
        self.task_rate_max.is_none_or(|max| task.is_some_and(|task| task <= max.0))
    }

    /// Has a machine so long for one of them?
    fn has_time(&self, time_max_ms: u64) -> bool {
        time_max_ms == 0 || self.time_limit_ms.is_none_or(|asked| asked <= time_max_ms)
    }

    /// Slots in all.
    pub fn slots(&self) -> u64 {
        self.tasks.saturating_mul(u64::from(self.shape.slots))
    }
}

/// A machine that is there or on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Supply {
    /// Its number.
    pub machine: u64,
    /// What it is.
    pub kind: MachineType,
    /// Slots without work.
    pub free: u64,
    /// What it costs at most.
    pub rate: Rate,
    /// The longest that a task can take there: milliseconds; 0: not limited.
    pub time_max_ms: u64,
}

/// Put demand into what is there, large tasks first. Returns the machines that got something; what is left stays in `demand`.
pub fn into_supply(demand: &mut [Demand], supply: &[Supply]) -> Vec<u64> {
    let order = large_first(demand);
    let mut used = Vec::new();
    for machine in supply {
        let mut free = machine.free;
        for at in &order {
            // What can't pay for it, or has no time there, does not go there, and is no reason to keep it.
            let may = |d: &Demand| d.pays(&machine.kind, machine.rate) && d.has_time(machine.time_max_ms);
            let Some(cost) = machine.kind.cost(&demand[*at].shape).filter(|_| may(&demand[*at])) else { continue };
            let tasks = demand[*at].tasks.min(free / cost);
            demand[*at].tasks -= tasks;
            free -= tasks * cost;
        }
        if free < machine.free {
            used.push(machine.machine);
        }
    }
    used
}

/// A machine's worth of tasks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fill {
    /// (index of the demand, tasks).
    pub tasks: Vec<(usize, u64)>,
    /// Slots that these tasks asked for.
    pub slots: u64,
}

/// What of the demand would go into one new machine of a kind, at a rate; large tasks first. None: nothing.
pub fn fill(demand: &[Demand], kind: &MachineType, rate: Rate) -> Option<Fill> {
    let (mut free, mut tasks, mut slots) = (u64::from(kind.slots), Vec::new(), 0);
    for at in large_first(demand) {
        let d = &demand[at];
        let Some(cost) = kind.cost(&d.shape).filter(|_| d.pays(kind, rate)) else { continue };
        let n = d.tasks.min(free / cost);
        if n > 0 {
            free -= n * cost;
            slots += n * u64::from(d.shape.slots);
            tasks.push((at, n));
        }
    }
    (slots > 0).then_some(Fill { tasks, slots })
}

/// Is the first cheaper for what it takes? Rates by slots that are really used; of equals, the one that takes more.
pub fn is_better(a: (Rate, &Fill), b: (Rate, &Fill)) -> bool {
    let (left, right) = (u128::from(a.0.0) * u128::from(b.1.slots), u128::from(b.0.0) * u128::from(a.1.slots));
    left < right || (left == right && a.1.slots > b.1.slots)
}

/// Why no offer takes this demand, when none does for reasons that do not pass: shapes and prices.
pub fn never_fits(demand: &Demand, offers: &[(&OfferKey, &MachineType, Option<Rate>)], currency: &str) -> Option<String> {
    let shape = &demand.shape;
    if !offers.iter().any(|(_, kind, _)| kind.cost(shape).is_some()) {
        let largest = offers.iter().map(|(_, kind, _)| kind.slots).max().unwrap_or(0);
        return Some(format!("{shape} fit no type of machine; the largest has {largest} slots"));
    }
    let max = demand.task_rate_max?;
    let any = offers.iter().any(|(_, kind, rate)| kind.cost(shape).is_some() && rate.is_some_and(|r| demand.pays(kind, r)));
    (!any).then(|| format!("on no type does a task cost at most {max} {currency} per hour"))
}

fn large_first(demand: &[Demand]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..demand.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse((demand[*at].shape.gpus, demand[*at].shape.slots, demand[*at].shape.memory_bytes)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(slots: u32, gib: u64, tasks: u64) -> Demand {
        Demand { shape: Shape::new(slots, gib << 30), tasks, owner: "alice".into(), task_rate_max: None, time_limit_ms: None }
    }

    fn kind(slots: u32, gib: u64) -> MachineType {
        MachineType { slots, memory_bytes: gib << 30, gpus: 0, architecture: "x86_64".into(), machines_max: None }
    }

    #[test]
    fn what_is_there_is_used_first() {
        let mut d = vec![demand(1, 0, 5), demand(4, 0, 2)];
        let machine = |machine, free| Supply { machine, kind: kind(8, 16), free, rate: Rate(800), time_max_ms: 0 };
        let supply = [machine(1, 6), machine(2, 0)];
        assert_eq!(vec![1], into_supply(&mut d, &supply));
        assert_eq!([3, 1], [d[0].tasks, d[1].tasks]);
        // Where a task has no time it does not go, and one without a limit is asked nothing.
        let timed = |tasks, time_limit_ms| Demand { time_limit_ms, ..demand(1, 0, tasks) };
        let mut d = vec![timed(1, Some(601)), timed(1, Some(600)), timed(1, None)];
        assert_eq!(vec![1], into_supply(&mut d, &[Supply { time_max_ms: 600, ..machine(1, 8) }]));
        assert_eq!([1, 0, 0], [d[0].tasks, d[1].tasks, d[2].tasks]);
    }

    #[test]
    fn the_cheapest_for_what_it_takes() {
        let (small, large) = (kind(1, 2), kind(8, 16));
        let one = [demand(1, 0, 1)];
        let (a, b) = (fill(&one, &small, Rate(100)).unwrap(), fill(&one, &large, Rate(680)).unwrap());
        assert!(is_better((Rate(100), &a), (Rate(680), &b)), "one task is cheapest on the small one");
        let many = [demand(1, 0, 20)];
        let (a, b) = (fill(&many, &small, Rate(100)).unwrap(), fill(&many, &large, Rate(680)).unwrap());
        assert!(is_better((Rate(680), &b), (Rate(100), &a)), "many are on the large one");
    }

    #[test]
    fn memory_counts() {
        assert_eq!(2, fill(&[demand(1, 8, 20)], &kind(8, 16), Rate(1)).unwrap().slots);
        assert_eq!(None, fill(&[demand(1, 17, 20)], &kind(8, 16), Rate(1)));
        let key = OfferKey { machine: "m".into(), zone: String::new(), spot: false };
        let large = kind(8, 16);
        assert!(never_fits(&demand(9, 0, 1), &[(&key, &large, Some(Rate(8)))], "EUR").is_some());
        let cheap = Demand { task_rate_max: Some(Rate(1)), ..demand(1, 0, 1) };
        assert_eq!(None, never_fits(&cheap, &[(&key, &large, Some(Rate(8)))], "EUR"));
        let never = never_fits(&cheap, &[(&key, &large, Some(Rate(9)))], "EUR");
        assert_eq!(Some("on no type does a task cost at most 0.000001 EUR per hour".to_string()), never);
    }
}
