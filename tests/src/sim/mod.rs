//! The simulator: the real cores of sites and agents in a world of virtual time, drawn from a seed, with an oracle that knows the truth.
//!
//! One seed is one run, to the last message: no thread, no clock, no order of a hash table decides anything. It drives the cores of the gateway and of the
//! agent, not models of them; what it models is what is around them: shells, disks, links, machines, users. It does not cover the shells' own code, the
//! wire and the stores: those have tests on real processes.

mod disk;
mod leaf;
mod lie;
mod net;
mod oracle;
mod record;
mod rest;
mod rng;
mod scenario;
mod shrink;
mod site;
mod users;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

pub use intergrid_gateway::core::planted::Plant;
use intergrid_gateway::core::planted::plant;
pub use oracle::Failure;
use scenario::{Cut, Scenario};
pub use shrink::shortest;
use world::World;

/// What is simulated, beside the seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Stores are lost and go back.
    pub recovery: bool,
    /// Administrators and owners order: drains, losses, throttles, cancels by force; and not everybody is let in everywhere.
    pub orders: bool,
    /// Only what may not change any task's result.
    pub benign: bool,
    /// One more broker above the top.
    pub one_more_hop: bool,
    /// A fault of ours, to see whether it is found.
    pub plant: Option<Plant>,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Run {
    /// What must not be, and was.
    pub failure: Option<Failure>,
    /// Things that happened.
    pub events: u64,
    /// Payloads started.
    pub starts: u64,
    /// Virtual time.
    pub ms: u64,
    /// Phase and exit of every task, by deed.
    pub results: BTreeMap<(usize, u32), (u8, u16)>,
    /// What happened, where it was asked for.
    pub trace: Vec<String>,
}

fn world(seed: u64, options: Options, cut: &Cut, trace: bool) -> Run {
    let mut scenario = Scenario::of(seed, options);
    if options.one_more_hop {
        scenario = scenario.with_one_more_hop();
    }
    plant(options.plant);
    let mut w = World::new(scenario, cut.clone(), trace);
    // A panic is a finding like any other; the world is not looked at afterwards but for its trace.
    let panicked = catch_unwind(AssertUnwindSafe(|| w.run())).err();
    if let Some(p) = panicked {
        let text = p.downcast_ref::<String>().cloned().or_else(|| p.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default();
        w.oracle.fail("panic", text);
    }
    plant(None);
    let results = w.results();
    Run {
        failure: w.oracle.failure,
        events: w.events,
        starts: w.oracle.record.processes.len() as u64,
        ms: w.now,
        results,
        trace: w.trace.unwrap_or_default(),
    }
}

/// One run.
pub fn run(seed: u64, options: Options) -> Run {
    world(seed, options, &Cut::default(), false)
}

/// One run, with everything that happens in words.
pub fn trace(seed: u64, options: Options) -> Run {
    world(seed, options, &Cut::default(), true)
}

/// Many seeds on all cores, up to the first that fails, in their order. `each` is called with every seed and its run, from any thread.
pub fn first_failure(from: u64, seeds: u64, options: Options, each: &(dyn Fn(u64, &Run) + Sync)) -> Option<(u64, Failure)> {
    sweep(from, seeds, options, true, each)
}

/// As [`first_failure`], but for `stop`: without it all seeds are run.
pub fn sweep(from: u64, seeds: u64, options: Options, stop: bool, each: &(dyn Fn(u64, &Run) + Sync)) -> Option<(u64, Failure)> {
    let (next, found) = (AtomicU64::new(from), Mutex::new(None::<(u64, Failure)>));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let earlier = found.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|(s, _)| *s < seed);
            if seed >= from + seeds || earlier && stop {
                return;
            }
            let run = run(seed, options);
            each(seed, &run);
            if let Some(failure) = run.failure {
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                if found.as_ref().is_none_or(|(s, _)| seed < *s) {
                    *found = Some((seed, failure));
                }
            }
        }
    };
    std::thread::scope(|s| {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        (0..threads).for_each(|_| _ = s.spawn(work));
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What a failure's report says: seed, commit, and the shortest trace that was found.
pub fn report(seed: u64, options: Options, failure: &Failure) -> String {
    let git = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit = git.ok().map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string()).filter(|c| !c.is_empty());
    let (cut, run) = shortest(seed, options, &failure.invariant);
    let last = run.failure.unwrap_or_else(|| failure.clone());
    // What is repeated for ever fills a trace and explains little.
    let trace: Vec<&String> = run.trace.iter().filter(|l| !["Advert(", "Saw(", "Demand("].iter().any(|w| l.contains(w))).collect();
    let tail: Vec<&str> = trace[trace.len().saturating_sub(TRACE_LINES_MAX)..].iter().map(|l| l.as_str()).collect();
    let flags: String = [(options.recovery, " --recovery"), (options.orders, " --orders")].iter().filter(|f| f.0).map(|f| f.1).collect();
    format!(
        "seed {seed}, commit {}: {} is broken after {} ms: {}\nagain: tests/soak 1 {seed}{flags}\nshortest trace found ({cut}), in which: {}\nits last lines:\n{}",
        commit.unwrap_or_else(|| "unknown".into()),
        failure.invariant,
        failure.at_ms,
        failure.what,
        last.what,
        tail.join("\n")
    )
}

/// Lines of a trace that a report shows.
const TRACE_LINES_MAX: usize = 150;
