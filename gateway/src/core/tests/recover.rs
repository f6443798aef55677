//! Stores that are lost, or go back to an old copy: each level of a tower, in the middle of an array with ended, running and queued tasks.

use std::collections::BTreeMap;

use intergrid_proto::link::WantValue;
use intergrid_proto::spec::OnLost;
use intergrid_proto::{JobSpec, Phase, SiteId, TaskSet};

use super::{World, sleep, tower};
use crate::backends::child_end::site_of;
use crate::core::Input;
use crate::core::limits::RECOVERY_WAIT_MS;
use crate::core::orders::Order;
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

/// The child that was idle in the time that the store has forgotten is back first: it can't say that the store is old, and gets nothing before the others
/// are back.
#[test]
fn an_old_copy_is_found_out_before_anything_is_placed() {
    let mut w = World::new();
    let (root, g1, g2) = (w.site("root"), w.site("g1"), w.site("g2"));
    w.agent("a1", 2, g1);
    w.link(g1, root);
    w.pass(200);
    let (job, _) = w.submit(root, "k", spec(OnLost::Wait), TASKS).unwrap();
    w.pass(300);
    w.agent("a2", 2, g2);
    let copy = w.sites[&root].disk.copy();
    w.pass(3_000);
    w.above.insert(g2, vec![root]);
    w.cut(g1, root);
    w.cut(g2, root);
    w.restart_with(root, copy);
    w.cut(g1, root);
    w.pass(4_000);
    assert!(w.agents[&site_of("a2")].starts().is_empty(), "g1 may know better");
    w.link(g1, root);
    rest(&mut w);
    all_once(&w, root, job);
}

/// What was over was remembered, but not for ever.
#[test]
fn what_a_machine_has_forgotten_stays_and_is_not_started_again_under_wait() {
    let mut w = World::new();
    let g = w.site("g");
    let a = w.agent("a", 1, g);
    w.pass(200);
    let mut short = sleep(10);
    short.on_lost = OnLost::Wait;
    let copy = w.sites[&g].disk.copy();
    let (job, _) = w.submit(g, "k", short.clone(), 10).unwrap();
    w.pass(100);
    let later = w.sites[&g].disk.copy();
    w.pass(3_000);
    assert_eq!(10, w.count(g, job, Phase::Done));
    let (many, _) = w.submit(g, "many", sleep(10), 400).unwrap();
    w.pass(60_000);
    assert_eq!(400, w.count(g, many, Phase::Done));
    let before = w.agents[&a].starts().len();
    w.restart_with(g, later);
    rest(&mut w);
    assert_eq!(before, w.agents[&a].starts().len(), "nobody knows whether they ran");
    assert_eq!(intergrid_proto::ReasonKind::EvidenceLost, w.sites[&g].core.why_held(job).kind);
    // Somebody decides.
    let held = w.count(g, job, Phase::Held);
    assert!(held > 0);
    w.want(g, job, WantValue::Run, None);
    w.pass(5_000);
    assert_eq!(10, w.count(g, job, Phase::Done));
    assert_eq!(before + held as usize, w.agents[&a].starts().len());
    // A job that the copy does not know is nobody's; numbers that it had are not given again.
    w.restart_with(g, copy);
    rest(&mut w);
    let (new, existed) = w.submit(g, "k", short, 1).unwrap();
    assert!(!existed && new > job + 1_000);
}

#[test]
fn a_hostile_child_can_make_a_site_ask_once_and_no_more() {
    let (mut w, root, _) = play(&[], OnLost::Wait);
    w.restart(root);
    let lie = |w: &mut World, peer_incarnation: u64, peer_placement: u64| {
        let child = site_of("liar");
        let hop = intergrid_proto::link::Hop { site: child, name: "liar".into(), kind: intergrid_proto::link::Kind::Gateway };
        let mut end = crate::backends::child_end::ChildEnd::new(hop, 3, 2, 8 << 30);
        let Some(intergrid_proto::link::Up::Hello(hello)) = end.attach().pop() else { panic!("a hello") };
        let hello = intergrid_proto::link::Hello { peer_incarnation, peer_placement, ..hello };
        w.input(root, crate::core::Input::ChildUp { child, hello });
        w.input(root, crate::core::Input::ChildGone { child, why: String::new(), silent_ms: 0 });
        w.settle();
        w.sites[&root].core.state().incarnation
    };
    let first = w.sites[&root].core.state().incarnation;
    let second = lie(&mut w, first, u64::MAX);
    assert_ne!(first, second);
    for k in 0..200 {
        assert_eq!(second, lie(&mut w, if k % 2 == 0 { second } else { 1_000_000 + k }, u64::MAX));
    }
    assert!(w.sites[&root].core.state().past.len() <= crate::core::limits::INCARNATIONS_KEPT_MAX);
    let (job, _) = w.submit(root, "later", sleep(100), 4).unwrap();
    w.pass(5_000);
    assert_eq!(4, w.count(root, job, Phase::Done), "{:#?}", w.warned.last());
}

#[test]
fn what_nobody_claims_is_let_go_by_a_hold_and_a_release_from_above() {
    let mut w = World::new();
    let (sites, _, job) = middle(&mut w, OnLost::Wait);
    for a in ["a1", "a2"] {
        w.cut(site_of(a), sites[2]);
    }
    w.sites.get_mut(&sites[2]).unwrap().disk = MemDisk::new();
    w.cut.extend(["a1", "a2"].map(|a| (site_of(a), sites[2])));
    let above = std::mem::take(&mut w.above);
    w.above = above.iter().filter(|(c, _)| w.sites.contains_key(c)).map(|(c, p)| (*c, p.clone())).collect();
    w.agents.clear();
    w.restart(sites[2]);
    rest(&mut w);
    let held = w.count(sites[0], job, Phase::Held);
    assert!(held >= 4, "{held}\n{:#?}", w.warned);
    for value in [WantValue::Hold, WantValue::Run] {
        w.want(sites[0], job, value, None);
        w.pass(1_000);
    }
    w.pass(5_000);
    assert_eq!(0, w.count(sites[0], job, Phase::Held));
    w.check();
}

/// What is here for a store that is no more takes nothing of what the new one may place here.
#[test]
fn orphans_take_nothing_of_a_parents_window() {
    let mut w = World::new();
    let (sites, _, _) = middle(&mut w, OnLost::Wait);
    w.restart_with(sites[0], MemDisk::new());
    w.pass(100);
    let held = |w: &World| w.sites[&sites[1]].core.state().held_for.values().sum::<u64>();
    let open: u64 = w.sites[&sites[1]].core.state().jobs.values().map(|j| j.open()).sum();
    assert!(open > 0 && held(&w) == 0, "{open} open, {} held", held(&w));
    w.restart(sites[1]);
    assert_eq!(0, held(&w), "nor after a restart");
    let (job, _) = w.submit(sites[0], "another", sleep(100), 40).unwrap();
    rest(&mut w);
    assert_eq!(40, w.count(sites[0], job, Phase::Done), "{:#?}", w.warned);
}

/// A parent is told that what was in doubt is not held any more: hints are not durable.
#[test]
fn what_is_found_again_is_not_said_to_be_held() {
    let mut w = World::new();
    let (sites, _, job) = middle(&mut w, OnLost::Wait);
    w.restart_with(sites[1], MemDisk::new());
    w.pass(500);
    let root = &w.sites[&sites[0]];
    let loaded = super::world::open(&root.hop, &root.disk, w.now, w.checkpoint);
    assert!(loaded.state().jobs[&job].count(Phase::Placed) > 0);
    assert_eq!(0, loaded.state().jobs[&job].count(Phase::Held), "{:#?}", w.warned);
}

/// What is open of a job, at all sites of a tower.
fn open(w: &World) -> Vec<u64> {
    w.sites.values().map(|s| s.core.state().jobs.values().map(|j| j.open()).sum()).collect()
}

/// A tower in which four tasks run, and will for hours: sites, job.
fn hours(w: &mut World, on_lost: OnLost) -> (Vec<SiteId>, u64) {
    let sites = tower(w, 2);
    let (job, _) = w.submit(sites[0], "k", JobSpec { on_lost, ..sleep(36_000_000) }, 4).unwrap();
    w.pass(2_000);
    (sites, job)
}

/// Those above the gateway go back a little, and know that they have before it comes.
fn go_back_above(w: &mut World, sites: &[SiteId]) {
    let copies: Vec<MemDisk> = sites[..2].iter().map(|s| w.sites[s].disk.copy()).collect();
    w.submit(sites[0], "later", sleep(10), 4).unwrap();
    w.pass(1_000);
    w.cut(sites[2], sites[1]);
    w.above.remove(&sites[2]);
    sites.iter().zip(copies).for_each(|(s, copy)| w.restart_with(*s, copy));
    w.pass(1_000);
}

/// A gateway goes back to before a cancel. What is in doubt there nobody above adopts: it is over.
#[test]
fn what_is_over_above_does_not_stay_in_doubt_below() {
    for on_lost in [OnLost::Wait, OnLost::Requeue] {
        let mut w = World::new();
        let (sites, job) = hours(&mut w, on_lost);
        let before = w.sites[&sites[2]].disk.copy();
        w.want(sites[0], job, WantValue::Cancel, None);
        w.pass(3_000);
        go_back_above(&mut w, &sites);
        w.restart_with(sites[2], before);
        w.link(sites[2], sites[1]);
        rest(&mut w);
        w.check();
        assert_eq!([0, 0, 0], *open(&w), "{on_lost:?}: {:#?}", w.warned);
    }
}

/// A root with a gateway that it does not hear, on which tasks run for hours, and another one by which it finds out that it has gone back: root, gateway, job.
fn unheard(on_lost: OnLost) -> (World, SiteId, SiteId, u64) {
    let mut w = World::new();
    let (root, g1, g2) = (w.site("root"), w.site("g1"), w.site("g2"));
    w.agent("a1", 2, g1);
    w.link(g1, root);
    w.pass(200);
    let (job, _) = w.submit(root, "k", JobSpec { on_lost, ..sleep(36_000_000) }, 2).unwrap();
    w.pass(500);
    w.agent("a2", 2, g2);
    w.link(g2, root);
    w.cut(g1, root);
    w.above.remove(&g1);
    (w, root, g1, job)
}

fn go_back(w: &mut World, root: SiteId, copy: MemDisk) {
    w.submit(root, "later", sleep(10), 2).unwrap();
    w.pass(1_000);
    w.restart_with(root, copy);
    w.pass(1_000);
}

fn nothing_is_left(mut w: World, root: SiteId, g1: SiteId) {
    w.link(g1, root);
    rest(&mut w);
    w.check();
    assert_eq!([0, 0, 0], *open(&w), "{:#?}", w.warned);
    assert!(w.agents.values().all(|a| a.running().is_empty()));
}

/// A job is ended without its stop being confirmed; then the root goes back, after which it can name what is to stop by an older name only.
#[test]
fn what_runs_of_what_is_over_above_is_stopped() {
    for on_lost in [OnLost::Wait, OnLost::Requeue] {
        let (mut w, root, g1, job) = unheard(on_lost);
        w.input(root, Input::Order { token: 1, order: Order::Cancel { job, tasks: None } });
        w.pass(1_000);
        assert_eq!(2, w.count(root, job, Phase::Cancelled));
        let copy = w.sites[&root].disk.copy();
        go_back(&mut w, root, copy);
        nothing_is_left(w, root, g1);
    }
}
