//! Shares: what a site offers, and the algebra of offers. An offer is a bounded list of shares, never one sum: two 8-slot machines are not a 16-slot
//! machine. The window that a parent is told, less what it has placed there and not seen end, is its credit.

use std::collections::BTreeMap;
use std::fmt;

use crate::ids::SiteId;
use crate::limits::LOOKAHEAD_SLOTS_MAX;
use crate::units::format_duration;

/// Key of the share of an agent, which is one machine.
pub const MACHINE: &str = "machine";

/// What one task needs of one machine: the autocluster's key. Tasks of one shape are matched once.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Shape {
    /// Slots of each of its machines; at least 1.
    pub slots: u32,
    /// Bytes of each of its machines; 0: not stated.
    pub memory_bytes: u64,
    /// GPUs of each of its machines.
    pub gpus: u32,
    /// Machines; at least 1.
    pub nodes: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Shape::new(1, 0)
    }
}

impl Shape {
    /// Of one machine, without GPUs.
    pub fn new(slots: u32, memory_bytes: u64) -> Self {
        Shape { slots, memory_bytes, gpus: 0, nodes: 1 }
    }
}

fn plural(n: u32) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// `2 slots, 4 GiB of memory and 1 GPU on each of 3 machines`
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut parts = vec![format!("{} slot{}", self.slots, plural(self.slots))];
        if self.memory_bytes > 0 {
            parts.push(format!("{} of memory", human_bytes(self.memory_bytes)));
        }
        if self.gpus > 0 {
            parts.push(format!("{} GPU{}", self.gpus, plural(self.gpus)));
        }
        let last = parts.pop().unwrap_or_default();
        let all = if parts.is_empty() { last } else { format!("{} and {last}", parts.join(", ")) };
        f.write_str(&all)?;
        if self.nodes > 1 { write!(f, " on each of {} machines", self.nodes) } else { Ok(()) }
    }
}

/// One machine, as far as tasks share it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Machine {
    /// Slots.
    pub slots: u32,
    /// Bytes.
    pub memory_bytes: u64,
    /// GPUs.
    pub gpus: u32,
}

impl Machine {
    /// Could it ever run a task of this shape, alone?
    pub fn holds(&self, shape: &Shape) -> bool {
        shape.nodes <= 1 && shape.slots <= self.slots && shape.memory_bytes <= self.memory_bytes && shape.gpus <= self.gpus
    }

    /// Slots that one task of this shape takes up on machines like this: of each the largest of its slots and its parts of the memory and the GPUs. As a
    /// sum of costs never exceeds a machine's slots, neither its memory nor its GPUs are ever overbooked.
    pub fn cost(&self, shape: &Shape) -> u64 {
        let part = |of: u64, all: u64| match all {
            0 => 0,
            all => u64::try_from((u128::from(of) * u128::from(self.slots)).div_ceil(u128::from(all))).unwrap_or(u64::MAX),
        };
        let by_memory = part(shape.memory_bytes, self.memory_bytes);
        let by_gpus = part(shape.gpus.into(), self.gpus.into());
        u64::from(shape.slots).max(by_memory).max(by_gpus).saturating_mul(shape.nodes.max(1).into())
    }
}

/// Could a share ever run a shape?
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fit {
    /// Yes, when it is free.
    Yes,
    /// Never; why, in words.
    No(String),
}

/// A named part of a resource that a task can be sent to (GLUE2 ComputingShare).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Share {
    /// Unique on its link: `<origin>/<class>`.
    pub key: String,
    /// The site whose machines these are; totals are summed by origin.
    pub origin: SiteId,
    /// Its label.
    pub origin_name: String,
    /// Every site this came through, the origin among them. A site is never told of a share that came through it.
    pub path: Vec<SiteId>,
    /// Moves when what could ever run here changes; load does not move it.
    pub fit_version: u64,
    /// Slots of one machine.
    pub machine_slots: u32,
    /// Bytes of one machine.
    pub machine_memory_bytes: u64,
    /// As `uname -m`.
    pub architecture: String,
    /// Slots in all.
    pub slots_total: u64,
    /// Machines in all.
    pub machines: u32,
    /// Slots free now, for people.
    pub slots_free: u64,
    /// Most slots free on one machine now.
    pub largest_free: u32,
    /// Slots that the receiver may have placed here and not ended.
    pub window: u64,
    /// How long the window holds without being renewed.
    pub credit_ms: u64,
    /// Tasks waiting here.
    pub waiting: u64,
    /// Millionths of `currency` per slot-hour.
    pub price_micro_per_slot_hour: u64,
    /// ISO 4217; empty: no price.
    pub currency: String,
    /// Since the origin last said this.
    pub age_ms: u64,
    /// Takes no new work.
    pub draining: bool,
    /// Who takes none, and why; for people.
    pub draining_reason: String,
    /// Milliseconds since then.
    pub draining_age_ms: u64,
    /// The longest that a task can take here, as long as the credit holds: milliseconds; 0: not limited.
    pub time_max_ms: u64,
    /// About how long a task waits in a cluster's queue before it starts, in milliseconds; None: not known, as of machines, where nothing waits.
    pub wait_ms: Option<u64>,
    /// GPUs of one machine.
    pub machine_gpus: u32,
    /// GPUs in all.
    pub gpus_total: u64,
    /// Most machines that one task can have here; 0: one.
    pub nodes_max: u32,
    /// Which limit forbids that more of these machines are rented; for people. Empty: none does, or none is rented.
    pub not_rented: String,
    /// Which limit of its site lets others have less than there is, in words; empty: none.
    pub bound: String,
    /// Most slots, as [`cost`](Share::cost) counts them, that a task can ever have here by a limit of its site; 0: not limited.
    pub task_slots_max: u64,
}

impl Share {
    /// Static fit.
    pub fn fit(&self, shape: &Shape) -> Fit {
        if shape.slots > self.machine_slots {
            Fit::No(format!("needs {} slots on one machine, the largest of {} has {}", shape.slots, self.key, self.machine_slots))
        } else if shape.memory_bytes > self.machine_memory_bytes {
            let (need, has) = (human_bytes(shape.memory_bytes), human_bytes(self.machine_memory_bytes));
            Fit::No(format!("needs {need} of memory on one machine, the largest of {} has {has}", self.key))
        } else if shape.gpus > self.machine_gpus {
            let has = if self.machine_gpus == 0 { "none".into() } else { format!("at most {}", self.machine_gpus) };
            Fit::No(format!("needs {} GPU{} on one machine, those of {} have {has}", shape.gpus, plural(shape.gpus), self.key))
        } else if shape.nodes > self.nodes_max.max(1) {
            Fit::No(format!("needs {} machines, {} gives a task at most {}", shape.nodes, self.key, self.nodes_max.max(1)))
        } else if self.task_slots_max > 0 && self.cost(shape) > self.task_slots_max {
            let bound = if self.bound.is_empty() { String::new() } else { format!("; {}", self.bound) };
            Fit::No(format!("needs {} slots in all, {} gives a task at most {}{bound}", self.cost(shape), self.key, self.task_slots_max))
        } else {
            Fit::Yes
        }
    }

    /// Is there so long here for a task with this time limit? One without a limit is asked nothing.
    pub fn fit_time(&self, limit_ms: Option<u64>) -> Fit {
        match limit_ms {
            Some(asked) if self.time_max_ms > 0 && asked > self.time_max_ms => {
                Fit::No(format!("asks for {}, {} has {} for a task", format_duration(asked), self.key, whole_seconds(self.time_max_ms)))
            }
            _ => Fit::Yes,
        }
    }

    /// Could it ever run such tasks, and is there so long for them?
    pub fn takes(&self, shape: &Shape, limit_ms: Option<u64>) -> bool {
        self.fit(shape) == Fit::Yes && self.fit_time(limit_ms) == Fit::Yes
    }

    /// Slots that one task of this shape takes up here, memory and GPUs counted as slots ([`Machine::cost`]). Both ends of a link count so. A queue of many
    /// machines gives out their GPUs itself: there they count for nothing, or a task that may wait for one would never be let into the queue.
    pub fn cost(&self, shape: &Shape) -> u64 {
        let gpus = if self.nodes_max > 0 { 0 } else { self.machine_gpus };
        Machine { gpus, ..self.machine() }.cost(shape)
    }

    /// The largest of its machines.
    pub fn machine(&self) -> Machine {
        Machine { slots: self.machine_slots, memory_bytes: self.machine_memory_bytes, gpus: self.machine_gpus }
    }

    /// Slots that are free for who has placed `used` slots of tasks here, of what a child of the kind `agent` offers. A machine has what its window leaves; the
    /// window of a queue of many machines is larger than what is free, by what may wait, and others are there too: it says itself what is free.
    pub fn free(&self, used: u64) -> u64 {
        if self.is_machine() { self.slots_total.min(self.window).saturating_sub(used) } else { self.slots_free.min(self.window.saturating_sub(used)) }
    }

    /// Is it of one machine, and no queue of many?
    pub fn is_machine(&self) -> bool {
        class(&self.key) == MACHINE
    }

    /// May this receiver be told of it? Never what came through it.
    pub fn visible_to(&self, receiver: SiteId) -> bool {
        !self.path.contains(&receiver)
    }

    /// The same share heard by another path: credits add up, totals do not (one origin counts once).
    pub fn merge(&mut self, other: &Share) {
        self.window += other.window;
        self.slots_total = self.slots_total.max(other.slots_total);
        self.machines = self.machines.max(other.machines);
        self.gpus_total = self.gpus_total.max(other.gpus_total);
        self.nodes_max = self.nodes_max.max(other.nodes_max);
        self.slots_free = self.slots_free.max(other.slots_free);
        self.largest_free = self.largest_free.max(other.largest_free);
        self.waiting = self.waiting.max(other.waiting);
        self.age_ms = self.age_ms.min(other.age_ms);
        self.credit_ms = self.credit_ms.min(other.credit_ms);
        self.time_max_ms = longer(self.time_max_ms, other.time_max_ms);
        self.task_slots_max = longer(self.task_slots_max, other.task_slots_max);
        self.wait_ms = shorter(self.wait_ms, other.wait_ms);
        // By one path it may be older.
        if other.bound > self.bound {
            self.bound.clone_from(&other.bound);
        }
        self.draining &= other.draining;
        if !self.draining {
            (self.draining_reason, self.draining_age_ms) = Default::default();
        }
        if self.not_rented < other.not_rented {
            self.not_rented.clone_from(&other.not_rented);
        }
        for site in &other.path {
            if !self.path.contains(site) {
                self.path.push(*site);
            }
        }
    }
}

/// The longer of two times, or the larger of two numbers, that may not be limited (0).
pub fn longer(a: u64, b: u64) -> u64 {
    if a == 0 || b == 0 { 0 } else { a.max(b) }
}

/// The shorter of two waits, where they are known: a task may go to either.
pub fn shorter(a_ms: Option<u64>, b_ms: Option<u64>) -> Option<u64> {
    a_ms.into_iter().chain(b_ms).min()
}

/// What has less than a second left has not more.
fn whole_seconds(ms: u64) -> String {
    format_duration(if ms >= 1_000 { ms / 1_000 * 1_000 } else { ms })
}

/// Sum over shares: each origin's class once, whatever the number of paths it was heard by.
pub fn totals<'a>(shares: impl IntoIterator<Item = &'a Share>) -> (u64, u64) {
    let mut by_key: BTreeMap<(SiteId, &str), (u64, u64)> = BTreeMap::new();
    for s in shares {
        let e = by_key.entry((s.origin, class(&s.key))).or_default();
        *e = (e.0.max(s.slots_total), e.1.max(s.slots_free));
    }
    by_key.values().fold((0, 0), |t, s| (t.0 + s.0, t.1 + s.1))
}

/// The part of a key behind the origin.
pub fn class(key: &str) -> &str {
    key.rsplit_once('/').map_or(key, |(_, class)| class)
}

/// Divide what is free among receivers: (outstanding, wanted, of that the slots of one task), all in slots, in a fixed order. Returns each one's window: what
/// it has outstanding already plus its part of `free`. Max-min fair over the windows: who wants and has least is served first, nobody gets more than it
/// wants; then the rest goes to the first that wants, or to the first of all, so that whoever comes first need not wait. Half a task's slots are of no use
/// to anybody: such parts go together to the first of whose tasks they make a whole one.
///
/// Law: the windows sum to outstanding + free at most (exactly, where there is a receiver).
pub fn divide_window(free: u64, receivers: &[(u64, u64, u64)]) -> Vec<u64> {
    let mut window: Vec<u64> = receivers.iter().map(|(outstanding, ..)| *outstanding).collect();
    let most = |i: usize| receivers[i].0.saturating_add(receivers[i].1);
    let mut left = free;
    while left > 0 {
        let hungry: Vec<usize> = (0..window.len()).filter(|i| window[*i] < most(*i)).collect();
        let Some(level) = hungry.iter().map(|i| window[*i]).min() else { break };
        let (lowest, higher): (Vec<usize>, Vec<usize>) = hungry.into_iter().partition(|i| window[*i] == level);
        let next = higher.iter().map(|i| window[*i]).chain(lowest.iter().map(|i| most(*i))).min().unwrap_or(level);
        let each = (left / lowest.len() as u64).clamp(1, next - level);
        for i in lowest {
            window[i] += each.min(left);
            left -= each.min(left);
        }
    }
    for (w, (outstanding, _, task)) in window.iter_mut().zip(receivers) {
        let part = (*w - outstanding) % (*task).max(1);
        (*w, left) = (*w - part, left + part);
    }
    // One task for each that has none, then as many as are wanted.
    for tasks_max in [1, u64::MAX] {
        for (i, (outstanding, _, task)) in receivers.iter().enumerate() {
            if tasks_max == 1 && window[i] > *outstanding {
                continue;
            }
            let task = (*task).max(1);
            let more = (left / task).min(most(i).saturating_sub(window[i]) / task).min(tasks_max) * task;
            (window[i], left) = (window[i] + more, left - more);
        }
    }
    let first = (0..window.len()).find(|i| receivers[*i].1 > 0).unwrap_or(0);
    if let Some(w) = window.get_mut(first) {
        *w = w.saturating_add(left);
    }
    window
}

/// Slots to place beyond the machines so that none waits for a round trip: completion rate x round trip (Little's law), twice, capped; 0 for work that
/// ends rarely.
pub fn lookahead(slots_ended_per_s: f64, round_trip_s: f64) -> u64 {
    let n = 2.0 * slots_ended_per_s * round_trip_s;
    if n < 0.5 { 0 } else { (n.ceil() as u64).min(LOOKAHEAD_SLOTS_MAX) }
}

/// `1.5 GiB`
pub fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value.fract() < 0.05 || unit == "B" { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share(key: &str, origin: u8, window: u64, total: u64, path: &[u8]) -> Share {
        Share {
            key: key.into(),
            origin: SiteId([origin; 16]),
            path: path.iter().map(|b| SiteId([*b; 16])).collect(),
            window,
            slots_total: total,
            slots_free: total,
            machine_slots: 8,
            machine_memory_bytes: 16 << 30,
            machine_gpus: 4,
            ..Share::default()
        }
    }

    /// A queue of 16 slots which others have, but for 3, and where 4 tasks may wait: 7 may be placed there.
    #[test]
    fn a_queue_says_itself_what_is_free_and_a_machine_has_what_its_window_leaves() {
        let queue = Share { slots_free: 3, ..share("batch", 1, 7, 16, &[]) };
        assert_eq!([3, 3, 1, 0, 0], [0, 4, 6, 7, 9].map(|used| queue.free(used)));
        assert_eq!(0, Share { slots_free: 0, ..queue }.free(0), "what may wait is not free");
        let machine = share("a1/machine", 1, 10, 8, &[]);
        assert_eq!([8, 3, 0, 0], [0, 5, 8, 10].map(|used| machine.free(used)));
    }

    #[test]
    fn a_diamond_counts_its_origin_once_and_its_credit_twice() {
        let (mut a, b) = (share("g/m", 1, 3, 8, &[1, 2]), share("g/m", 1, 5, 8, &[1, 3]));
        assert_eq!((8, 8), totals([&a, &b]));
        a.merge(&b);
        assert_eq!((a.window, a.slots_total), (8, 8));
        assert!([1, 2, 3].iter().all(|p| !a.visible_to(SiteId([*p; 16]))) && a.visible_to(SiteId([4; 16])));
    }

    #[test]
    fn memory_counts_as_slots() {
        let s = share("g/m", 1, 8, 8, &[]);
        assert_eq!(1, s.cost(&Shape::new(1, 2 << 30)));
        assert_eq!(2, s.cost(&Shape::new(1, (2 << 30) + 1)));
        assert_eq!(8, s.cost(&Shape::new(1, 16 << 30)));
        assert!(matches!(s.fit(&Shape::new(9, 0)), Fit::No(_)));
        assert!(matches!(s.fit(&Shape::new(1, 17 << 30)), Fit::No(_)));
        assert_eq!(Fit::Yes, s.fit(&Shape::new(8, 16 << 30)));
    }

    #[test]
    fn gpus_and_machines_count_as_slots() {
        let with = |gpus, nodes| Shape { gpus, nodes, ..Shape::new(1, 0) };
        let s = share("g/m", 1, 8, 8, &[]);
        assert_eq!((2, 6, 8), (s.cost(&with(1, 1)), s.cost(&with(3, 1)), s.cost(&with(4, 1))));
        let s = Share { nodes_max: 3, ..s };
        assert_eq!((1, 3, 3), (s.cost(&with(4, 1)), s.cost(&with(0, 3)), s.cost(&with(4, 3))));
        assert_eq!((Fit::Yes, Fit::Yes), (s.fit(&with(4, 1)), s.fit(&with(4, 3))));
        assert_eq!(Fit::No("needs 5 GPUs on one machine, those of g/m have at most 4".into()), s.fit(&with(5, 1)));
        assert_eq!(Fit::No("needs 1 GPU on one machine, those of g/m have none".into()), Share { machine_gpus: 0, ..s.clone() }.fit(&with(1, 1)));
        assert_eq!(Fit::No("needs 4 machines, g/m gives a task at most 3".into()), s.fit(&with(0, 4)));
        assert!(s.machine().holds(&with(4, 1)) && !s.machine().holds(&with(5, 1)) && !s.machine().holds(&with(1, 2)));
        assert_eq!("1 slot, 4 GiB of memory and 2 GPUs on each of 3 machines", Shape { gpus: 2, nodes: 3, ..Shape::new(1, 4 << 30) }.to_string());
        assert_eq!("2 slots", Shape::new(2, 0).to_string());
    }

    #[test]
    fn what_a_limit_of_the_site_never_lets_run_does_not_fit() {
        let over = |slots, nodes| Shape { nodes, ..Shape::new(slots, 0) };
        let mut s = Share { nodes_max: 4, task_slots_max: 6, bound: "its site lets 6".into(), ..share("g/m", 1, 6, 6, &[]) };
        assert_eq!((Fit::Yes, Fit::Yes), (s.fit(&over(6, 1)), s.fit(&over(3, 2))));
        assert_eq!(Fit::No("needs 8 slots in all, g/m gives a task at most 6; its site lets 6".into()), s.fit(&over(4, 2)));
        assert!(matches!(s.fit(&over(7, 1)), Fit::No(_)));
        s.merge(&Share { task_slots_max: 7, ..s.clone() });
        assert_eq!((7, Fit::Yes), (s.task_slots_max, s.fit(&over(7, 1))));
        s.merge(&Share { task_slots_max: 0, ..s.clone() });
        assert_eq!((0, Fit::Yes), (s.task_slots_max, s.fit(&over(4, 2))));
    }

    proptest! {
        #[test]
        fn windows_never_exceed_what_is_there(free in 0u64..1000, rs in proptest::collection::vec((0u64..100, 0u64..300), 1..6)) {
            let w = divide_window(free, &rs.iter().map(|r| (r.0, r.1, 1)).collect::<Vec<_>>());
            let outstanding: u64 = rs.iter().map(|r| r.0).sum();
            prop_assert_eq!(w.iter().sum::<u64>(), outstanding + free);
            prop_assert!(w.iter().zip(&rs).all(|(w, r)| *w >= r.0));
            // Who still wants has no less than anybody who was given something, but for the one that could not be divided.
            let rest = free.saturating_sub(rs.iter().map(|r| r.1).sum());
            for (i, r) in rs.iter().enumerate().filter(|(i, r)| w[*i] < r.0 + r.1) {
                prop_assert_eq!(rest, 0);
                prop_assert!(w.iter().zip(&rs).all(|(v, s)| *v == s.0 || *v <= w[i] + 1), "{} of {:?} is left behind: {:?}", i, r, w);
            }
        }

        #[test]
        fn windows_hold_whole_tasks(free in 0u64..100, rs in proptest::collection::vec((0u64..9, 0u64..30, 1u64..9), 1..6)) {
            let rs: Vec<_> = rs.into_iter().map(|(held, tasks, cost)| (held, tasks * cost, cost)).collect();
            let w = divide_window(free, &rs);
            prop_assert_eq!(w.iter().sum::<u64>(), rs.iter().map(|r| r.0).sum::<u64>() + free);
            let first = rs.iter().position(|r| r.1 > 0).unwrap_or(0);
            let part = |i: usize| (w[i] - rs[i].0).checked_sub(rs[i].1).filter(|_| i == first).unwrap_or((w[i] - rs[i].0) % rs[i].2);
            prop_assert!((0..rs.len()).all(|i| i == first || part(i) == 0), "{:?}: {:?}", rs, w);
            // Nobody waits for what lies with the first and makes no task there.
            prop_assert!((0..rs.len()).all(|i| w[i] >= rs[i].0 + rs[i].1 || part(first) < rs[i].2), "{:?}: {:?}", rs, w);
        }

        #[test]
        fn packing_by_cost_never_overbooks(tasks in proptest::collection::vec((1u32..9, 0u64..20 << 30, 0u32..6), 0..30)) {
            let s = share("g/m", 1, 8, 8, &[]);
            let (mut used, mut slots, mut memory, mut gpus) = (0, 0, 0, 0);
            for (n, m, g) in tasks {
                let shape = Shape { gpus: g, ..Shape::new(n, m) };
                if s.fit(&shape) == Fit::Yes && used + s.cost(&shape) <= 8 {
                    used += s.cost(&shape);
                    slots += n;
                    memory += m;
                    gpus += g;
                }
            }
            prop_assert!(slots <= 8 && memory <= 16 << 30 && gpus <= 4);
        }

        #[test]
        fn merge_commutes_in_what_counts(a in 0u64..99, b in 0u64..99, t in 0u64..99, u in 0u64..99) {
            let (mut x, mut y) = (share("g/m", 1, a, t, &[1, 2]), share("g/m", 1, b, u, &[1, 3]));
            (x.not_rented, y.not_rented) = ("slots".repeat(a as usize % 2), "budget".repeat(b as usize % 2));
            let (mut xy, mut yx) = (x.clone(), y.clone());
            xy.merge(&y);
            yx.merge(&x);
            xy.path.sort();
            yx.path.sort();
            prop_assert_eq!(xy, yx);
        }
    }

    #[test]
    fn long_work_gets_no_lookahead() {
        assert_eq!(0, lookahead(0.1, 0.02));
        assert_eq!(80, lookahead(2000.0, 0.02));
        assert_eq!(LOOKAHEAD_SLOTS_MAX, lookahead(1e9, 1.0));
        assert_eq!("1.5 GiB", human_bytes(3 << 29));
    }
}
