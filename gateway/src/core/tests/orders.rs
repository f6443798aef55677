//! What administrators order: throttles, drains, losses, cancels by force. Each is durable.

use intergrid_proto::spec::OnLost;
use intergrid_proto::{Phase, ReasonKind, RefusalKind, SiteId, TaskSet};

use super::{World, sleep, tower};
use crate::backends::child_end::site_of;
use crate::core::Input;
use crate::core::orders::{Done, Order};
use crate::store::Reader;

pub(super) fn order(w: &mut World, site: SiteId, order: Order) -> Result<Done, intergrid_proto::Refusal> {
    w.token += 1;
    let token = w.token;
    w.input(site, Input::Order { token, order });
    w.settle();
    w.ordered.remove(&token).expect("an answer")
}

fn drain(w: &mut World, at: SiteId, site: &str) -> Done {
    order(w, at, Order::Drain { site: site.into(), reason: "new kernel".into(), by: "root".into() }).unwrap()
}

fn why(w: &World, site: SiteId, job: u64) -> (ReasonKind, String) {
    let (e, _) = w.explanation(site, job);
    (ReasonKind::from_number(e.reasons[0].kind), format!("{:?}", e.reasons))
}

/// Tasks that an agent runs now.
fn at(w: &World, agent: SiteId) -> u64 {
    w.agents[&agent].running().values().map(TaskSet::len).sum()
}

/// All of them.
fn running(w: &World) -> u64 {
    w.agents.keys().map(|a| at(w, *a)).sum()
}

#[test]
fn a_throttled_array_never_has_more_than_it_may() {
    for depth in [0, 2] {
        let mut w = World::new();
        // By rows, and by the log alone.
        w.checkpoint = if depth == 0 { 1 } else { 20_000 };
        let sites = tower(&mut w, depth);
        let mut spec = sleep(400);
        spec.tasks_at_once = Some(3);
        let (job, _) = w.submit(sites[0], "k", spec, 30).unwrap();
        // Others go past it.
        let (other, _) = w.submit(sites[0], "other", sleep(100), 4).unwrap();
        for k in 0..40 {
            w.pass(50);
            let j = &w.sites[&sites[0]].core.state().jobs[&job];
            let below: u64 = j.downs.values().map(|d| d.open).sum();
            assert!(below <= 3, "{below} below at depth {depth}");
            if k == 10 {
                w.restart(sites[0]);
                w.pass(200);
            }
        }
        assert_eq!(4, w.count(sites[0], other, Phase::Done));
        let (kind, text) = why(&w, sites[0], job);
        assert!(kind == ReasonKind::Throttled && text.contains("3 of its tasks are placed or running, at most 3"), "{text}");
        order(&mut w, sites[0], Order::Throttle { job, at_once: 1 }).unwrap();
        let text = why(&w, sites[0], job).1;
        assert!(text.contains("3 of its tasks are placed or running, at most 1 may be at a time"), "what runs goes on: {text}");
        w.restart(sites[0]);
        w.pass(1_000);
        assert!(running(&w) <= 1, "changed, and kept over a restart");
        assert_eq!(1, w.sites[&sites[0]].core.job_view(job, true).unwrap().tasks_at_once);
        order(&mut w, sites[0], Order::Throttle { job, at_once: 0 }).unwrap();
        w.pass(500);
        assert!(running(&w) > 3, "as many as there is room for");
        w.pass(20_000);
        w.check();
        assert_eq!(30, w.count(sites[0], job, Phase::Done));
    }
}

#[test]
fn a_throttle_is_set_where_the_job_was_submitted() {
    let mut w = World::new();
    let sites = tower(&mut w, 1);
    w.submit(sites[0], "k", sleep(60_000), 4).unwrap();
    w.pass(500);
    let placed = *w.sites[&sites[1]].core.state().jobs.keys().next().unwrap();
    let refused = order(&mut w, sites[1], Order::Throttle { job: placed, at_once: 1 }).unwrap_err();
    assert_eq!(RefusalKind::NotAuthorised, refused.kind, "{refused}");
    assert_eq!(RefusalKind::NotFound, order(&mut w, sites[0], Order::Throttle { job: 77, at_once: 1 }).unwrap_err().kind);
}

#[test]
fn a_drained_agent_ends_what_it_runs_and_gets_no_more() {
    for checkpoint in [1, 20_000] {
        let mut w = World::new();
        w.checkpoint = checkpoint;
        let sites = tower(&mut w, 0);
        let (job, _) = w.submit(sites[0], "k", sleep(500), 40).unwrap();
        w.pass(300);
        let done = drain(&mut w, sites[0], "a1");
        assert!(done.tasks >= 2 && done.site.unwrap().name == "a1");
        let had = w.agents[&site_of("a1")].starts().len();
        w.pass(1_500);
        w.restart(sites[0]);
        w.pass(1_500);
        assert!(w.agents[&site_of("a1")].running().is_empty());
        assert!(w.agents[&site_of("a1")].starts().len() <= had + 4, "no more than was under way");
        let (_, hosts) = w.sites[&sites[0]].core.host();
        let a1 = &hosts.iter().find(|(id, _)| *id == site_of("a1")).unwrap().1;
        assert_eq!((0, "new kernel"), (a1.slots_free, a1.draining.as_ref().unwrap().text.as_str()));
        drain(&mut w, sites[0], "a2");
        w.pass(1_000);
        let (kind, text) = why(&w, sites[0], job);
        assert!(kind == ReasonKind::Draining && text.contains("a1 takes no new work: new kernel"), "{text}");
        let waits = w.count(sites[0], job, Phase::Queued);
        assert!(waits > 0);
        w.pass(5_000);
        assert_eq!(waits, w.count(sites[0], job, Phase::Queued));
        for name in ["a1", "a2"] {
            order(&mut w, sites[0], Order::Resume { site: name.into() }).unwrap();
        }
        w.restart(sites[0]);
        w.pass(20_000);
        w.check();
        assert_eq!(40, w.count(sites[0], job, Phase::Done));
        assert_eq!(40, w.agents.values().map(|a| a.starts().len()).sum::<usize>(), "each was started once");
    }
}

#[test]
fn a_drained_site_gives_back_what_has_not_started_and_says_why_at_the_top() {
    let mut w = World::new();
    let (root, g1, g2) = (w.site("root"), w.site("g1"), w.site("g2"));
    w.agent("a1", 2, g1);
    w.agent("a2", 2, g2);
    w.link(g1, root);
    w.link(g2, root);
    w.pass(300);
    let (job, _) = w.submit(root, "k", sleep(400), 60).unwrap();
    w.pass(300);
    drain(&mut w, g1, "");
    w.restart(g1);
    w.pass(1_500);
    let started = w.agents[&site_of("a1")].starts().len();
    w.pass(3_000);
    assert_eq!(started, w.agents[&site_of("a1")].starts().len(), "what ran has ended, nothing more was started");
    assert!(w.sites[&g1].core.state().jobs.values().all(|j| j.open() == 0), "what had not started went back");
    let host = w.sites[&g1].core.host().0;
    assert_eq!("new kernel", host.draining.unwrap().text);
    // The other goes on; with both drained the top says why.
    drain(&mut w, g2, "g2");
    w.pass(2_000);
    let (kind, text) = why(&w, root, job);
    assert!(kind == ReasonKind::Draining && text.contains("g1 takes no new work: new kernel") && text.contains("g2 takes no new work"), "{text}");
    let (e, _) = w.explanation(root, job);
    let since: Vec<u64> = e.reasons[0].because.iter().map(|b| b.age_ms).collect();
    assert!(since.iter().all(|age| (1_900..7_000).contains(age)), "since when: {since:?}");
    // A job of its own waits there, with the reason.
    let (own, _) = w.submit(g1, "own", sleep(100), 1).unwrap();
    w.pass(500);
    assert_eq!(ReasonKind::Draining, why(&w, g1, own).0);
    order(&mut w, g1, Order::Resume { site: String::new() }).unwrap();
    w.pass(60_000);
    w.check();
    assert_eq!((60, 1), (w.count(root, job, Phase::Done), w.count(g1, own, Phase::Done)));
    assert_eq!(61, w.agents.values().map(|a| a.starts().len()).sum::<usize>());
}

#[test]
fn a_broker_drains_a_child_by_its_name() {
    let mut w = World::new();
    let sites = tower(&mut w, 1);
    let done = drain(&mut w, sites[0], "gateway");
    assert_eq!("gateway", done.site.unwrap().name);
    let (job, _) = w.submit(sites[0], "k", sleep(100), 3).unwrap();
    w.pass(3_000);
    assert_eq!(3, w.count(sites[0], job, Phase::Queued));
    assert_eq!(ReasonKind::Draining, why(&w, sites[0], job).0);
    assert_eq!(RefusalKind::NotFound, order(&mut w, sites[0], Order::Resume { site: "a1".into() }).unwrap_err().kind);
    order(&mut w, sites[0], Order::Resume { site: site_of("gateway").to_string() }).unwrap();
    w.pass(3_000);
    assert_eq!(3, w.count(sites[0], job, Phase::Done));
}

#[test]
fn a_drain_of_a_child_with_two_shares_is_told_once() {
    let mut w = World::new();
    let (root, g) = (w.site("root"), w.site("g"));
    w.agent("small", 1, g);
    w.agent("large", 4, g);
    w.link(g, root);
    w.pass(500);
    assert_eq!(2, w.sites[&root].core.children[&g].shares.len());
    drain(&mut w, root, "g");
    let (job, _) = w.submit(root, "k", sleep(100), 1).unwrap();
    w.pass(500);
    let why = w.explanation(root, job).0.reasons[0].clone();
    let told: Vec<_> = why.because.iter().map(|b| (ReasonKind::from_number(b.kind), b.text.as_str(), b.site_name.as_str())).collect();
    assert_eq!(vec![(ReasonKind::Draining, "g takes no new work: new kernel", "g")], told);
}

/// Two gateways below a root, one of them cut off with two running tasks.
fn cut_off(on_lost: OnLost) -> (World, SiteId, SiteId, u64) {
    let mut w = World::new();
    let (root, g1) = (w.site("root"), w.site("g1"));
    w.agent("a1", 2, g1);
    w.link(g1, root);
    w.pass(300);
    let mut spec = sleep(30_000);
    (spec.on_lost, spec.disconnect_timeout_ms) = (on_lost, 3_600_000);
    let (job, _) = w.submit(root, "k", spec, 2).unwrap();
    w.pass(500);
    assert_eq!(2, w.count(root, job, Phase::Running));
    w.cut(g1, root);
    let g2 = w.site("g2");
    w.agent("a2", 2, g2);
    w.link(g2, root);
    w.pass(500);
    (w, root, g1, job)
}

/// The root dies and starts again; this child of it stays away.
fn restart_without(w: &mut World, root: SiteId, child: SiteId) {
    let above = w.above.insert(child, Vec::new()).unwrap();
    w.restart(root);
    w.above.insert(child, above);
}

#[test]
fn what_is_declared_lost_runs_elsewhere_and_the_old_attempt_is_stopped() {
    let (mut w, root, g1, job) = cut_off(OnLost::Requeue);
    // Who asks before learns whom it concerns, and changes nothing.
    for _ in 0..2 {
        let look = order(&mut w, root, Order::Look { site: "g1".into() }).unwrap();
        assert_eq!((2, Some(g1)), (look.tasks, look.site.map(|s| s.site)));
    }
    let unknown = order(&mut w, root, Order::Look { site: "g7".into() }).unwrap_err();
    assert!(unknown.kind == RefusalKind::NotFound && unknown.message.contains("g7"), "{unknown}");
    let done = order(&mut w, root, Order::Lost { site: "g1".into(), by: "root".into() }).unwrap();
    assert_eq!((2, 2), (done.tasks, done.elsewhere));
    restart_without(&mut w, root, g1);
    w.pass(1_000);
    assert_eq!(2, at(&w, site_of("a2")));
    w.link(g1, root);
    w.pass(2_000);
    assert!(w.agents[&site_of("a1")].running().is_empty(), "stale attempts are stopped");
    assert_eq!(0, order(&mut w, root, Order::Lost { site: "g1".into(), by: "root".into() }).unwrap().tasks);
    w.pass(40_000);
    w.check();
    assert_eq!(2, w.count(root, job, Phase::Done));
    assert!(w.sites[&root].core.state().jobs[&job].downs.is_empty());
}

#[test]
fn a_machine_that_is_gone_leaves_nothing_behind() {
    for (on_lost, phase) in [(OnLost::Requeue, Phase::Running), (OnLost::Wait, Phase::Failed)] {
        let (mut w, root, g1, job) = cut_off(on_lost);
        let done = order(&mut w, root, Order::Gone { site: "g1".into(), by: "root".into() }).unwrap();
        assert_eq!(2, done.tasks);
        w.pass(1_000);
        assert_eq!(2, w.count(root, job, phase));
        let state = w.sites[&root].core.state();
        assert!(state.jobs[&job].downs.values().all(|d| d.child != g1), "nothing waits for its word");
        assert!(state.outstanding.keys().all(|(child, _)| *child != g1));
        assert_eq!(0, order(&mut w, root, Order::Gone { site: "g1".into(), by: "root".into() }).unwrap().tasks);
        restart_without(&mut w, root, g1);
        w.pass(1_000);
        assert_eq!(2, w.count(root, job, phase), "durable");
    }
}

#[test]
fn what_may_start_once_only_has_failed_when_it_is_declared_lost() {
    let (mut w, root, g1, job) = cut_off(OnLost::Wait);
    let done = order(&mut w, root, Order::Lost { site: "g1".into(), by: "root".into() }).unwrap();
    assert_eq!((2, 0), (done.tasks, done.elsewhere));
    restart_without(&mut w, root, g1);
    w.pass(1_000);
    assert_eq!(2, w.count(root, job, Phase::Failed));
    let cell = w.sites[&root].core.state().jobs[&job].cell(0);
    assert_eq!((1025, 1), (cell.exit, cell.attempts), "unknown, and it was an attempt");
    w.link(g1, root);
    w.pass(2_000);
    w.check();
    assert!(w.agents[&site_of("a1")].running().is_empty() && w.agents[&site_of("a2")].starts().is_empty());
    assert_eq!(2, w.count(root, job, Phase::Failed), "late word changes nothing");
    assert!(w.sites[&root].core.state().jobs[&job].downs.is_empty(), "their stop was seen");
    assert_eq!(TaskSet::range(0..2), w.history_of(root, job), "one counting end of each");
}

#[test]
fn a_child_that_is_here_may_be_declared_lost_too() {
    let mut w = World::new();
    let sites = tower(&mut w, 0);
    let mut spec = sleep(30_000);
    spec.on_lost = OnLost::Wait;
    let (job, _) = w.submit(sites[0], "k", spec, 4).unwrap();
    w.pass(500);
    let done = order(&mut w, sites[0], Order::Lost { site: "a1".into(), by: "root".into() }).unwrap();
    assert_eq!(2, done.tasks);
    w.pass(1_000);
    assert!(w.agents[&site_of("a1")].running().is_empty(), "it is told at once");
    assert_eq!((2, 2), (w.count(sites[0], job, Phase::Failed), w.count(sites[0], job, Phase::Running)));
    assert!(w.sites[&sites[0]].core.state().jobs[&job].downs.values().all(|d| d.fenced.is_empty()));
    for itself in [Order::Lost { site: "gateway".into(), by: "root".into() }, Order::Look { site: "gateway".into() }] {
        assert_eq!(RefusalKind::Invalid, order(&mut w, sites[0], itself).unwrap_err().kind);
    }
}

#[test]
fn a_cancel_by_force_needs_no_confirmed_stop() {
    for on_lost in [OnLost::Requeue, OnLost::Wait] {
        let (mut w, root, g1, job) = cut_off(on_lost);
        let (waits, _) = w.submit(root, "more", sleep(60_000), 3).unwrap();
        w.pass(300);
        let done = order(&mut w, root, Order::Cancel { job, tasks: Some(TaskSet::one(1)) }).unwrap();
        assert_eq!((1, vec![("g1", 1)]), (done.tasks, done.at.iter().map(|(h, n)| (h.name.as_str(), *n)).collect::<Vec<_>>()));
        assert_eq!((1, 1), (w.count(root, job, Phase::Cancelled), w.count(root, job, Phase::Running)));
        restart_without(&mut w, root, g1);
        assert_eq!(1, order(&mut w, root, Order::Cancel { job, tasks: None }).unwrap().tasks);
        assert_eq!(2, w.count(root, job, Phase::Cancelled));
        assert_eq!(3, order(&mut w, root, Order::Cancel { job: waits, tasks: None }).unwrap().tasks);
        w.pass(500);
        assert!(w.agents[&site_of("a2")].running().is_empty(), "who is here is told at once");
        assert_eq!(2, at(&w, site_of("a1")));
        w.link(g1, root);
        w.pass(2_000);
        w.check();
        assert!(w.agents[&site_of("a1")].running().is_empty());
        assert_eq!((2, 3), (w.count(root, job, Phase::Cancelled), w.count(root, waits, Phase::Cancelled)));
        assert!(w.sites[&root].core.state().jobs[&job].downs.is_empty());
        assert_eq!(0, order(&mut w, root, Order::Cancel { job, tasks: None }).unwrap().tasks);
    }
}

#[test]
fn records_of_orders_are_written_as_they_were() {
    use crate::core::change::{self, Change, What};
    use prost::Message;
    let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let drained = change::Drained { site: vec![7; 16], drained: true, reason: "new disk".into(), by: "ann".into(), since_ms: 1_000_000 };
    let change = |what| Change { what: Some(what) }.encode_to_vec();
    let site = "07".repeat(16);
    let of_drain = format!("0a10{site}10011a086e6577206469736b2203616e6e28c0843d");
    assert_eq!(format!("9a0127{of_drain}"), hex(change(What::Drained(drained.clone()))));
    assert_eq!("a2010408031002", hex(change(What::Throttled(change::Throttled { job: 3, at_once: 2 }))));
    // The row is the last record.
    let mut w = World::new();
    w.checkpoint = 1;
    let site = w.site("g");
    drain(&mut w, site, "");
    w.pass(200);
    let row = w.sites[&site].disk.open().unwrap().get(&[&b"n"[..], &site.0].concat()).unwrap().expect("a row");
    let row = change::Drained::decode(&row[..]).unwrap();
    assert_eq!((true, "new kernel", "root", &site.0[..]), (row.drained, row.reason.as_str(), row.by.as_str(), &row.site[..]));
    order(&mut w, site, Order::Resume { site: String::new() }).unwrap();
    w.pass(200);
    assert_eq!(None, w.sites[&site].disk.open().unwrap().get(&[&b"n"[..], &site.0].concat()).unwrap());
}
