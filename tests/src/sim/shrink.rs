//! From a run that fails to the shortest one that fails alike: faults, deeds, machines and sites are left out, half of them first, then fewer.

use super::scenario::{Cut, Scenario};
use super::{Options, Run, world};

/// Runs that a search may take.
const TRIES_MAX: usize = 400;

/// The smallest part of this seed's run that breaks the same rule: what it is, and its run with its trace.
pub fn shortest(seed: u64, options: Options, invariant: &str) -> (String, Run) {
    let s = Scenario::of(seed, options);
    let mut cut = Cut::default();
    let mut tries = 0;
    let mut fails = |cut: &Cut| {
        tries += 1;
        tries <= TRIES_MAX && world(seed, options, cut, false).failure.is_some_and(|f| f.invariant == invariant)
    };
    for _ in 0..2 {
        drop_most(s.faults.len(), |i, c: &mut Cut| _ = c.faults.insert(i), &mut cut, &mut fails);
        drop_most(s.deeds.len(), |i, c: &mut Cut| _ = c.deeds.insert(i), &mut cut, &mut fails);
        drop_most(s.machines.len(), |i, c: &mut Cut| _ = c.machines.insert(i), &mut cut, &mut fails);
        drop_most(s.sites, |i, c: &mut Cut| _ = c.sites.insert(i), &mut cut, &mut fails);
    }
    let left = |all: usize, cut: &std::collections::BTreeSet<usize>| all - cut.len();
    let words = format!(
        "{} of {} faults, {} of {} deeds, {} of {} machines, {} of {} sites",
        left(s.faults.len(), &cut.faults),
        s.faults.len(),
        left(s.deeds.len(), &cut.deeds),
        s.deeds.len(),
        left(s.machines.len(), &cut.machines),
        s.machines.len(),
        left(s.sites, &cut.sites),
        s.sites
    );
    (words, world(seed, options, &cut, true))
}

/// Leave out blocks of items as long as it still fails, the blocks smaller and smaller.
fn drop_most(n: usize, leave_out: impl Fn(usize, &mut Cut), cut: &mut Cut, fails: &mut impl FnMut(&Cut) -> bool) {
    let mut block = n.div_ceil(2).max(1);
    loop {
        for from in (0..n).step_by(block) {
            let mut less = cut.clone();
            (from..(from + block).min(n)).for_each(|i| leave_out(i, &mut less));
            if less != *cut && fails(&less) {
                *cut = less;
            }
        }
        if block == 1 {
            return;
        }
        block /= 2;
    }
}
