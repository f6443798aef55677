//! The core alone, driven by hand: towers of cores over perfect children, messages passed by hand, restarts from a store that keeps what was committed.

mod archive;
mod away;
mod cost;
mod hand;
mod late;
mod linger;
mod orders;
mod recover;
mod rented;
mod room;
mod steps;
mod times;
mod told;
mod world;

use intergrid_proto::link::{Hello, Hop, WantValue};
use intergrid_proto::spec::OnLost;
use intergrid_proto::{JobSpec, Phase, SiteId, TaskSet};

use crate::backends::child_end::site_of;
use world::Message;
pub(super) use world::{World, sleep, tower};

/// A hello that knows nothing of its receiver.
fn greeting(hop: Hop, incarnation: u64) -> Hello {
    let (peer_incarnation, peer_sequence, peer_placement, placement, sequence_low, sequence_high) = (0, 0, 0, 0, 0, 0);
    let (machine, recovering) = (Vec::new(), false);
    Hello { hop, incarnation, peer_incarnation, peer_sequence, peer_placement, placement, sequence_low, sequence_high, machine, recovering }
}

#[test]
fn an_array_ends_at_every_depth() {
    for (depth, batched) in (0..=4).flat_map(|d| [(d, false), (d, true)]) {
        let mut w = World::new();
        let sites = tower(&mut w, depth);
        w.batched = batched;
        // Enough of them that many events come in one turn.
        for a in ["a3", "a4", "a5", "a6"] {
            w.agent(a, 1, sites[depth]);
        }
        let (job, existed) = w.submit(sites[0], "k", JobSpec::new(["true"]), 500).unwrap();
        assert!(!existed);
        w.pass(60_000);
        w.check();
        assert_eq!(500, w.count(sites[0], job, Phase::Done), "depth {depth}: {:?}", w.sites[&sites[0]].core.job_view(job, true));
        assert_eq!(Ok((job, true)), w.submit(sites[0], "k", JobSpec::new(["true"]), 500));
        assert!(w.submit(sites[0], "k", JobSpec::new(["false"]), 500).is_err());
        let starts: u64 = w.agents.values().map(|a| a.starts().len() as u64).sum();
        assert_eq!(500, starts, "depth {depth}");
        for site in sites {
            let jobs: Vec<u64> = w.sites[&site].core.state().jobs.keys().copied().collect();
            for job in jobs {
                assert_eq!(w.history_of(site, job), TaskSet::range(0..500), "every end has its history row, and outputs are found by it");
            }
        }
    }
}

#[test]
fn restarts_of_every_site_lose_nothing_and_double_nothing() {
    // With checkpoints at every few changes, and without.
    for (victim, checkpoint) in (0..3).flat_map(|v| [(v, 7), (v, 20_000)]) {
        let mut w = World::new();
        w.checkpoint = checkpoint;
        let sites = tower(&mut w, 2);
        let mut spec = sleep(100);
        spec.on_lost = OnLost::Wait;
        let (job, _) = w.submit(sites[0], "k", spec, 60).unwrap();
        for _ in 0..12 {
            w.pass(100);
            w.restart(sites[victim]);
            w.check();
        }
        w.pass(60_000);
        w.check();
        assert_eq!(60, w.count(sites[0], job, Phase::Done), "site {victim}: {:?}", w.sites[&sites[0]].core.job_view(job, true));
        let starts: u64 = w.agents.values().map(|a| a.starts().len() as u64).sum();
        assert_eq!(60, starts, "site {victim}");
    }
}

#[test]
fn a_cancel_reaches_every_level_and_needs_a_confirmed_stop() {
    let mut w = World::new();
    let sites = tower(&mut w, 2);
    let (job, _) = w.submit(sites[0], "k", sleep(3_600_000), 40).unwrap();
    w.pass(300);
    assert!(w.count(sites[0], job, Phase::Running) >= 4);
    w.cut(sites[2], sites[1]);
    w.want(sites[0], job, WantValue::Cancel, None);
    w.pass(500);
    assert!(w.count(sites[0], job, Phase::Cancelled) < 40, "stops are not confirmed while the link is cut");
    w.link(sites[2], sites[1]);
    w.pass(2_000);
    w.check();
    assert_eq!(40, w.count(sites[0], job, Phase::Cancelled), "{:?}", w.sites[&sites[0]].core.job_view(job, true));
}

#[test]
fn lost_contact_fences_and_one_result_counts() {
    let mut w = World::new();
    let root = w.site("root");
    let (g1, g2) = (w.site("g1"), w.site("g2"));
    w.agent("a1", 2, g1);
    w.link(g1, root);
    let mut spec = sleep(30_000);
    spec.disconnect_timeout_ms = 2_000;
    w.pass(200);
    let (job, _) = w.submit(root, "k", spec, 2).unwrap();
    w.pass(1_000);
    assert_eq!(2, w.count(root, job, Phase::Running));
    w.cut(g1, root);
    w.agent("a2", 2, g2);
    w.link(g2, root);
    w.pass(1_500);
    assert_eq!(2, w.count(root, job, Phase::Running), "not before the time-out");
    w.pass(1_500);
    let view = &w.sites[&root].core.state().jobs[&job];
    assert!(view.downs.values().any(|d| !d.fenced.is_empty()), "the old attempts are fenced");
    w.link(g1, root);
    w.pass(60_000);
    w.check();
    assert_eq!(2, w.count(root, job, Phase::Done));
    assert!(w.sites[&root].core.state().jobs[&job].downs.is_empty(), "fenced attempts were seen to stop");
    assert_eq!(0, w.agents[&site_of("a1")].running().len(), "stale attempts are stopped");
}

#[test]
fn wait_never_starts_twice_across_a_disconnect() {
    let mut w = World::new();
    let root = w.site("root");
    let (g1, g2) = (w.site("g1"), w.site("g2"));
    w.agent("a1", 2, g1);
    w.link(g1, root);
    w.agent("a2", 2, g2);
    w.pass(200);
    let mut spec = sleep(5_000);
    spec.disconnect_timeout_ms = 1_000;
    spec.on_lost = OnLost::Wait;
    let (job, _) = w.submit(root, "k", spec, 2).unwrap();
    w.pass(500);
    w.cut(g1, root);
    w.link(g2, root);
    w.pass(20_000);
    assert_eq!(0, w.count(root, job, Phase::Done) + w.count(root, job, Phase::Failed));
    w.link(g1, root);
    w.pass(1_000);
    assert_eq!(2, w.count(root, job, Phase::Done));
    assert!(w.agents[&site_of("a2")].starts().is_empty());
}

#[test]
fn two_brokers_that_list_each_other_converge() {
    let mut w = World::new();
    let (b1, b2, g1, g2) = (w.site("b1"), w.site("b2"), w.site("g1"), w.site("g2"));
    w.agent("a1", 2, g1);
    w.agent("a2", 3, g2);
    for (child, parent) in [(g1, b1), (g2, b2), (b1, b2), (b2, b1)] {
        w.link(child, parent);
    }
    w.pass(1_000);
    for b in [b1, b2] {
        assert_eq!(5, w.sites[&b].core.host().0.slots_total, "each sees both, and none twice");
    }
    let (job, _) = w.submit(b1, "k", JobSpec::new(["true"]), 200).unwrap();
    w.pass(60_000);
    w.check();
    assert_eq!(200, w.count(b1, job, Phase::Done));
    let foreign: Vec<_> = w.sites[&b1].core.state().jobs.values().filter(|j| j.parent.is_some()).collect();
    assert!(foreign.is_empty(), "no task of b1 came back to it");
}

#[test]
fn a_diamond_never_counts_twice() {
    let mut w = World::new();
    let (root, b1, b2, g) = (w.site("root"), w.site("b1"), w.site("b2"), w.site("g"));
    w.agent("a", 1, g);
    for (child, parent) in [(g, b1), (g, b2), (b1, root), (b2, root)] {
        w.link(child, parent);
    }
    w.pass(1_000);
    assert_eq!(1, w.sites[&root].core.host().0.slots_total);
    let (job, _) = w.submit(root, "k", sleep(1_000), 6).unwrap();
    for _ in 0..40 {
        w.pass(250);
        w.check();
        assert!(w.agents[&site_of("a")].running().len() <= 1);
        let at_g: u64 = w.sites[&g].core.state().jobs.values().map(|j| j.open()).sum();
        assert!(at_g <= 2, "{at_g} tasks at a gateway with one slot");
    }
    w.pass(60_000);
    assert_eq!(6, w.count(root, job, Phase::Done), "{:?}", w.sites[&root].core.job_view(job, true));
}

#[test]
fn what_never_fits_says_so_from_the_top() {
    let mut w = World::new();
    let sites = tower(&mut w, 1);
    let mut spec = JobSpec::new(["true"]);
    spec.shape.slots = 3;
    let (job, _) = w.submit(sites[0], "k", spec, 1).unwrap();
    w.pass(1_000);
    let (e, _) = w.explanation(sites[0], job);
    assert_eq!("no-fit", intergrid_proto::ReasonKind::from_number(e.reasons[0].kind).word(), "{e:?}");
}

#[test]
fn work_flows_to_every_branch_while_it_has_room() {
    let mut w = World::new();
    let (root, eu) = (w.site("root"), w.site("eu"));
    let (campus, partner, burst) = (w.site("campus"), w.site("partner"), w.site("burst"));
    for (gateway, agents) in [(campus, 2), (partner, 1), (burst, 2)] {
        for a in 0..agents {
            let name = format!("{}-{a}", w.sites[&gateway].hop.name);
            w.agent(&name, 2, gateway);
        }
    }
    for (child, parent) in [(campus, eu), (partner, eu), (eu, root), (burst, root)] {
        w.link(child, parent);
    }
    w.pass(500);
    let (job, _) = w.submit(root, "k", sleep(150), 200).unwrap();
    w.pass(20_000);
    assert_eq!(200, w.count(root, job, Phase::Done));
    let ended = |site: SiteId| w.sites[&site].core.state().ended;
    let (c, p, b) = (ended(campus), ended(partner), ended(burst));
    // Four, two and four slots of ten.
    assert!((60..=100).contains(&c) && (30..=50).contains(&p) && (60..=100).contains(&b), "campus {c}, partner {p}, burst {b}");
}
