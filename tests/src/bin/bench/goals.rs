//! The goals that the numbers are held against.

use crate::record::{GRIDENGINE, HQ, OURS, Record, SLURM, spread};
use crate::svg::number;

/// How a measure is judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Must {
    /// At least so much.
    AtLeast(f64),
    /// At most so much.
    AtMost(f64),
    /// At least this part of the plain loop of the same minute.
    OfLoop(f64),
    /// At least so many times what this system has.
    Times(&'static str, f64),
    /// What each broker adds to the measure of none, at most.
    EachHop(f64),
}

/// One goal.
pub struct Goal {
    /// In words.
    pub text: &'static str,
    /// Of which row.
    pub id: &'static str,
    what: &'static str,
    depth: u32,
    /// The size that it speaks of; 0: whichever.
    n: u64,
    must: Must,
}

/// What was found.
pub struct Found {
    /// In words.
    pub measured: String,
    /// Held against the goal.
    pub met: bool,
    /// Of how many tasks, where that is not what the goal speaks of.
    pub other_n: Option<u64>,
}

const fn goal(text: &'static str, id: &'static str, what: &'static str, depth: u32, n: u64, must: Must) -> Goal {
    Goal { text, id, what, depth, n, must }
}

const TRUE: &str = "array of /bin/true";
const NULL: &str = "array, null executor";
const FRAGMENTED: &str = "one array half done, out of order and with many exit codes; the broker";

/// All of them.
pub const GOALS: &[Goal] = &[
    goal("10,000 x /bin/true: 0.9 of the plain loop", "T1", TRUE, 0, 10_000, Must::OfLoop(0.9)),
    goal("10,000 x /bin/true: 3 times HyperQueue", "T1", TRUE, 0, 10_000, Must::Times(HQ, 3.0)),
    goal("the same through three brokers: 0.8 of the plain loop", "T1", TRUE, 3, 10_000, Must::OfLoop(0.8)),
    goal("null executor, 100,000 tasks: 100,000/s", "T4", NULL, 0, 100_000, Must::AtLeast(100_000.0)),
    goal("the same through three brokers: 50,000/s", "T4", NULL, 3, 100_000, Must::AtLeast(50_000.0)),
    goal("1,000,000 tasks without slowing: 100,000/s", "T4", NULL, 0, 1_000_000, Must::AtLeast(100_000.0)),
    goal("the same through three brokers: 50,000/s", "T4", NULL, 3, 1_000_000, Must::AtLeast(50_000.0)),
    goal("submit and wait of one job, idle: p50 under 10 ms", "L2", "submit and wait of one job; p50", 0, 0, Must::AtMost(10.0)),
    goal("each further hop: under 2 ms", "C1", "submit and wait of one job; p50", 4, 0, Must::EachHop(2.0)),
    goal("a 10,000-task array acknowledged: under 15 ms", "L1", "submit of an array of 10,000; p50", 0, 0, Must::AtMost(15.0)),
    goal("1,000 separate jobs over one stream: 5,000/s", "T3", "one stream, tasks executed beside", 0, 1_000, Must::AtLeast(5_000.0)),
    goal("1,000,000 queued in one array: under 48 MiB", "M1", "queued as one array", 0, 1_000_000, Must::AtMost(48.0)),
    goal("half of it finished out of order, mixed exits: under 48 MiB", "M1", FRAGMENTED, 1, 1_000_000, Must::AtMost(48.0)),
    goal("100,000 separate jobs: under 200 MiB", "M1", "queued as separate jobs", 0, 100_000, Must::AtMost(200.0)),
    goal("memory returns after the drain (taken as: under 24 MiB)", "M1", "all done, 2 s later", 0, 1_000_000, Must::AtMost(24.0)),
    goal("the same after separate jobs", "M1", "separate jobs, all cancelled", 0, 100_000, Must::AtMost(24.0)),
    goal("gateway, idle: under 16 MiB", "M1", "idle; the gateway", 1, 0, Must::AtMost(16.0)),
    goal("broker, idle: under 16 MiB", "M1", "idle; the broker", 1, 0, Must::AtMost(16.0)),
    goal("grid-agent: under 3 MB", "M2", "size of grid-agent", 0, 0, Must::AtMost(3.0)),
    goal("attached and idle: under 6 MB resident", "M2", "idle; the agent", 0, 0, Must::AtMost(5.72)),
    goal("attached and idle: under 0.1 % CPU", "M2", "idle; CPU of the agent", 0, 0, Must::AtMost(0.1)),
    goal("capacity change to the root at depth 4: p50 under 20 ms", "P1", "an agent is killed; p50", 4, 0, Must::AtMost(20.0)),
    goal("a killed agent's task runs within 1 s of its restart", "F1", F1, 0, 0, Must::AtMost(1_000.0)),
    goal("a stopped agent's task runs elsewhere within its time-out + 1 s", "F2", F2, 0, 0, Must::AtMost(1_000.0)),
    goal(
        "a rented machine's row at the root within 100 ms of its attach",
        "R1",
        "a machine attaches; until its row is at the root; p99",
        1,
        0,
        Must::AtMost(100.0),
    ),
    goal("its first task started within 200 ms", "R1", "the same, until its first task runs; p99", 1, 0, Must::AtMost(200.0)),
    goal("an array of 1,000 into Slurm: under 0.5 s", "S1", INTO_SLURM, 0, 0, Must::AtMost(500.0)),
    goal("/bin/true through Slurm: 0.9 of Slurm's own rate", "S1", "array of /bin/true through Slurm", 0, 1_000, Must::Times(SLURM, 0.9)),
    goal("200 separate jobs: as fast as 8 parallel sbatch", "S1", "separate jobs until Slurm has the last", 0, 200, Must::Times(SLURM, 1.0)),
    goal("2,000 tasks in Slurm: at most one query a second", "S1", "looked after; queries by squeue", 1, 2_000, Must::AtMost(1.0)),
    goal("and the gateway under 5 % of a core", "S1", LOOKED_AFTER, 1, 2_000, Must::AtMost(5.0)),
    goal("end of a payload in Slurm to its phase at the root: p50 under 1.5 s", "S1", END, 1, 0, Must::AtMost(1_500.0)),
    goal("an array of 1,000 into Grid Engine: under 0.5 s", "G1", INTO_GRIDENGINE, 0, 0, Must::AtMost(500.0)),
    goal("200 separate jobs: as fast as 8 parallel qsub", "G1", "separate jobs until Grid Engine has the last", 0, 200, Must::Times(GRIDENGINE, 1.0)),
    goal("2,000 tasks in Grid Engine: at most one query a second", "G1", "looked after; queries by qstat", 1, 2_000, Must::AtMost(1.0)),
    goal("and the gateway under 5 % of a core", "G1", LOOKED_AFTER, 1, 2_000, Must::AtMost(5.0)),
    goal("end of a payload in Grid Engine to its phase at the root: p50 under 1.5 s", "G1", END, 1, 0, Must::AtMost(1_500.0)),
    goal("a killed gateway loses no task", "F3", "tasks lost", 0, 100_000, Must::AtMost(0.0)),
    goal("and starts none twice", "F3", "tasks started twice", 0, 100_000, Must::AtMost(0.0)),
    goal("a killed broker loses no task", "F4", "tasks lost", 2, 100_000, Must::AtMost(0.0)),
    goal("and starts none twice", "F4", "tasks started twice", 2, 100_000, Must::AtMost(0.0)),
];
const INTO_SLURM: &str = "array of 1,000: the client's exec to the last answer of sbatch; p50";
const INTO_GRIDENGINE: &str = "array of 1,000: the client's exec to the last answer of qsub; p50";
const LOOKED_AFTER: &str = "looked after; CPU of the gateway";
const END: &str = "end of a payload to its phase at the root; p50";
const F1: &str = "agent and task killed; from the agent's restart to the task's; p99";
const F2: &str = "from SIGSTOP to the task's start elsewhere, less its disconnect time-out; p99";

impl Goal {
    /// Hold it against what there is; None: not measured.
    pub fn find(&self, records: &[Record]) -> Option<Found> {
        let of = |system: &'static str, depth: u32| {
            let (id, what) = (self.id, self.what);
            records.iter().filter(move |r| r.id == id && r.system == system && r.depth == depth && r.what == what)
        };
        let sizes: Vec<u64> = of(OURS, self.depth).map(|r| r.n).collect();
        let n = if sizes.contains(&self.n) { self.n } else { *sizes.iter().max()? };
        let mine = || of(OURS, self.depth).filter(move |r| r.n == n);
        let median = |values: Vec<f64>| spread(values).map(|s| s.median);
        let value = median(mine().map(|r| r.value).collect())?;
        let unit = mine().next().map(|r| r.unit.clone()).unwrap_or_default();
        let (measured, met) = match self.must {
            Must::AtLeast(bound) => (format!("{} {unit}", number(value)), value >= bound),
            Must::AtMost(bound) => (format!("{} {unit}", number(value)), value <= bound),
            Must::OfLoop(part) => {
                let found = median(mine().filter(|r| r.baseline > 0.0).map(|r| r.value / r.baseline).collect())?;
                (format!("{found:.2} of it ({} {unit})", number(value)), found >= part)
            }
            Must::Times(system, times) => {
                let theirs = median(of(system, 0).filter(|r| r.n == n).map(|r| r.value).collect())?;
                (format!("{:.2} times ({} and {} {unit})", value / theirs, number(value), number(theirs)), value / theirs >= times)
            }
            Must::EachHop(bound) => {
                let none = median(of(OURS, 0).filter(|r| r.n == n).map(|r| r.value).collect())?;
                let each = (value - none) / f64::from(self.depth);
                (format!("{} {unit} each, over {} brokers", number(each), self.depth), each <= bound)
            }
        };
        Some(Found { measured, met, other_n: (self.n > 0 && n != self.n).then_some(n) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_held_against_what_was_measured() {
        let record = |system: &str, depth, value, baseline| Record {
            id: "T1".into(),
            system: system.into(),
            what: TRUE.into(),
            n: 500,
            depth,
            value,
            unit: "tasks/s".into(),
            baseline,
            ..Record::default()
        };
        let records = [record(OURS, 0, 900.0, 1_000.0), record(HQ, 0, 400.0, 1_000.0)];
        let found: Vec<Option<(bool, Option<u64>)>> = GOALS[..3].iter().map(|g| g.find(&records).map(|f| (f.met, f.other_n))).collect();
        assert_eq!(vec![Some((true, Some(500))), Some((false, Some(500))), None], found);
    }
}
