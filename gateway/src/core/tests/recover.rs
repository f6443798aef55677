//! Stores that are lost, or go back to an old copy: each level of a tower, in the middle of an array with ended, running and queued tasks.

use std::collections::BTreeMap;

use intergrid_proto::spec::OnLost;
use intergrid_proto::{JobSpec, Phase, SiteId, TaskSet};

use super::{World, sleep, tower};
use crate::backends::child_end::site_of;
use crate::core::limits::RECOVERY_WAIT_MS;
use crate::store::mem::MemDisk;

const TASKS: u32 = 24;

fn spec(on_lost: OnLost) -> JobSpec {
    let mut spec = sleep(1_000);
    spec.on_lost = on_lost;
    spec
}

/// How often each task was started.
fn starts(w: &World) -> BTreeMap<u32, u64> {
    let mut out = BTreeMap::new();
    w.agents.values().flat_map(|a| a.starts()).for_each(|(_, t)| *out.entry(*t).or_default() += 1);
    out
}

fn all_once(w: &World, root: SiteId, job: u64) {
    w.check();
    let view = w.sites[&root].core.job_view(job, true).unwrap();
    assert_eq!(u64::from(TASKS), w.count(root, job, Phase::Done), "{:?}\n{:#?}", view.counts, w.warned);
    let twice: Vec<_> = starts(w).into_iter().filter(|(_, n)| *n != 1).collect();
    assert!(twice.is_empty(), "started not once: {twice:?}\n{:#?}", w.warned);
    assert_eq!(TaskSet::range(0..TASKS), w.history_of(root, job));
    for s in w.sites.values() {
        for j in s.core.state().jobs.values() {
            assert_eq!((0, 0), (j.open(), j.downs.len()), "nothing is left at {}: {j:?}", s.hop.name);
        }
        let held: u64 = s.core.state().held_for.values().chain(s.core.state().outstanding.values()).sum();
        assert_eq!(0, held, "slots are counted as taken at {}", s.hop.name);
        assert!(!s.core.state().recovering, "{} still asks", s.hop.name);
    }
}

/// A tower of two brokers over a gateway; a copy of each store when a third is over, then on to two thirds: copies, root, job.
fn middle(w: &mut World, on_lost: OnLost) -> (Vec<SiteId>, Vec<MemDisk>, u64) {
    let sites = tower(w, 2);
    let (job, _) = w.submit(sites[0], "k", spec(on_lost), TASKS).unwrap();
    w.pass(1_700);
    let copies = sites.iter().map(|s| w.sites[s].disk.copy()).collect();
    w.pass(1_800);
    let done = w.count(sites[0], job, Phase::Done);
    assert!((8..=16).contains(&done), "{done} are done");
    (sites, copies, job)
}

fn rest(w: &mut World) {
    w.pass(RECOVERY_WAIT_MS + 30_000);
}

/// Which levels go back or are lost: true: to the copy; false: to nothing.
fn play(levels: &[(usize, bool)], on_lost: OnLost) -> (World, SiteId, u64) {
    let mut w = World::new();
    let (sites, copies, job) = middle(&mut w, on_lost);
    for (level, copy) in levels {
        w.restart_with(sites[*level], if *copy { copies[*level].copy() } else { MemDisk::new() });
    }
    rest(&mut w);
    (w, sites[0], job)
}

#[test]
fn a_broker_whose_store_goes_back_starts_nothing_twice() {
    for on_lost in [OnLost::Wait, OnLost::Requeue] {
        let (w, root, job) = play(&[(1, true)], on_lost);
        all_once(&w, root, job);
    }
}

#[test]
fn a_broker_that_loses_its_store_starts_nothing_twice() {
    for on_lost in [OnLost::Wait, OnLost::Requeue] {
        let (w, root, job) = play(&[(1, false)], on_lost);
        all_once(&w, root, job);
    }
}

#[test]
fn a_gateway_whose_store_goes_back_starts_nothing_twice() {
    for on_lost in [OnLost::Wait, OnLost::Requeue] {
        let (w, root, job) = play(&[(2, true)], on_lost);
        all_once(&w, root, job);
    }
}

#[test]
fn a_gateway_that_loses_its_store_starts_nothing_twice() {
    for on_lost in [OnLost::Wait, OnLost::Requeue] {
        let (w, root, job) = play(&[(2, false)], on_lost);
        all_once(&w, root, job);
    }
}

#[test]
fn a_root_whose_store_goes_back_starts_nothing_twice() {
    for on_lost in [OnLost::Wait, OnLost::Requeue] {
        let (w, root, job) = play(&[(0, true)], on_lost);
        all_once(&w, root, job);
    }
}

#[test]
fn a_root_over_agents_goes_back_and_starts_nothing_twice() {
    for on_lost in [OnLost::Wait, OnLost::Requeue] {
        let mut w = World::new();
        let g = w.site("g");
        w.agent("a1", 2, g);
        w.agent("a2", 2, g);
        w.pass(200);
        let (job, _) = w.submit(g, "k", spec(on_lost), TASKS).unwrap();
        w.pass(1_700);
        let copy = w.sites[&g].disk.copy();
        w.pass(1_800);
        w.restart_with(g, copy);
        rest(&mut w);
        all_once(&w, g, job);
    }
}

#[test]
fn two_levels_at_once() {
    for levels in [[(0, true), (1, true)], [(1, true), (2, true)], [(1, false), (2, true)], [(1, true), (2, false)]] {
        let (w, root, job) = play(&levels, OnLost::Wait);
        let view = w.sites[&root].core.job_view(job, true).unwrap();
        assert!(starts(&w).values().all(|n| *n <= 1), "{levels:?}: started twice: {:?}", starts(&w));
        let ended = w.count(root, job, Phase::Done) + w.count(root, job, Phase::Held);
        assert!(ended == u64::from(TASKS), "{levels:?}: {:?}\n{:#?}", view.counts, w.warned);
        assert_eq!(w.history_of(root, job).len(), w.count(root, job, Phase::Done));
    }
}

#[test]
fn two_recoveries_in_a_row() {
    for (first, second) in [(true, true), (true, false), (false, false), (false, true)] {
        let mut w = World::new();
        let (sites, copies, job) = middle(&mut w, OnLost::Wait);
        for back in [first, second] {
            w.restart_with(sites[1], if back { copies[1].copy() } else { MemDisk::new() });
            w.pass(700);
        }
        rest(&mut w);
        all_once(&w, sites[0], job);
    }
}

#[test]
fn a_crash_in_the_recovery_begins_it_again() {
    for back in [true, false] {
        let mut w = World::new();
        let (sites, copies, job) = middle(&mut w, OnLost::Wait);
        w.restart_with(sites[1], if back { copies[1].copy() } else { MemDisk::new() });
        for _ in 0..4 {
            w.pass(250);
            w.restart(sites[1]);
            w.check();
        }
        rest(&mut w);
        all_once(&w, sites[0], job);
    }
}

#[test]
fn a_child_that_comes_late_is_waited_for_and_then_claimed_from() {
    let mut w = World::new();
    let (sites, copies, job) = middle(&mut w, OnLost::Wait);
    w.cut(sites[2], sites[1]);
    w.restart_with(sites[1], copies[1].copy());
    w.cut(sites[2], sites[1]);
    w.pass(2 * RECOVERY_WAIT_MS);
    assert!(starts(&w).values().all(|n| *n == 1), "nothing is started meanwhile");
    w.link(sites[2], sites[1]);
    rest(&mut w);
    all_once(&w, sites[0], job);
}

#[test]
fn an_agent_that_loses_its_store_starts_nothing_twice_under_wait() {
    let mut w = World::new();
    let (sites, _, job) = middle(&mut w, OnLost::Wait);
    let a = site_of("a1");
    w.cut(a, sites[2]);
    w.agents.get_mut(&a).unwrap().wipe();
    w.link(a, sites[2]);
    rest(&mut w);
    assert!(starts(&w).values().all(|n| *n == 1));
    assert!(w.count(sites[0], job, Phase::Done) >= u64::from(TASKS) - 4);
}
