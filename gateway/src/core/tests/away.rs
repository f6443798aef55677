//! Children that are away, or come back with an old store.

use intergrid_proto::limits::REDIAL_MAX_MS;
use intergrid_proto::link::{Attempts, Down, Hello, Hop, Kind, Up};
use intergrid_proto::spec::OnLost;
use intergrid_proto::{JobSpec, Phase, ReasonKind, SiteId, TaskSet, pb};

use super::orders::order;
use super::world::open;
use super::{Message, World, sleep};
use crate::backends::child_end::{ChildEnd, site_of};
use crate::core::Input;
use crate::core::orders::Order;
use crate::core::rent::ForRent;

/// A gateway with an agent of two slots; two tasks run that go elsewhere after a second, and one waits.
fn site() -> (World, SiteId, SiteId, u64) {
    let mut w = World::new();
    let (g, a) = (w.site("g"), w.agent("a1", 2, site_of("g")));
    let mut spec = sleep(60_000);
    spec.disconnect_timeout_ms = 1_000;
    w.pass(200);
    let (job, _) = w.submit(g, "k", spec, 3).unwrap();
    w.pass(500);
    assert_eq!(2, w.count(g, job, Phase::Running));
    (w, g, a, job)
}

/// The gateway dies and starts again; its agents have not noticed yet.
fn restart_alone(w: &mut World, g: SiteId, a: SiteId) {
    w.cut.push((a, g));
    w.wire.clear();
    w.agents.get_mut(&a).unwrap().detach();
    let (now, checkpoint) = (w.now, w.checkpoint);
    let s = w.sites.get_mut(&g).unwrap();
    s.core = open(&s.hop, &s.disk, now, checkpoint);
}

#[test]
fn a_restarted_gateway_gives_its_agents_time_to_dial_again() {
    let (mut w, g, a, job) = site();
    restart_alone(&mut w, g, a);
    w.pass(REDIAL_MAX_MS + 500);
    w.link(a, g);
    w.pass(130_000);
    w.check();
    assert_eq!(3, w.count(g, job, Phase::Done));
    assert_eq!(3, w.agents[&a].starts().len(), "none was fenced and started again");
}

#[test]
fn an_agent_that_does_not_come_back_is_given_up() {
    let (mut w, g, a, job) = site();
    restart_alone(&mut w, g, a);
    w.pass(REDIAL_MAX_MS + 900);
    let away = w.sites[&g].core.away(a, Some(job)).unwrap();
    assert_eq!("for 2 s: not back since this site started; 2 tasks there go elsewhere within 1 s unless it comes back", away.text());
    assert!(w.sites[&g].core.state().jobs[&job].downs.values().all(|d| d.fenced.is_empty()));
    w.pass(200);
    assert!(w.sites[&g].core.state().jobs[&job].downs.values().any(|d| !d.fenced.is_empty()));
    assert_eq!("for 3 s: not back since this site started", w.sites[&g].core.away(a, Some(job)).unwrap().text());
}

/// It is given up long before the job's time is over, and its tasks with it.
#[test]
fn of_a_rented_machine_that_is_away_it_is_told_when_it_is_ended_and_then_that_it_is() {
    let mut w = World::new();
    let g = w.site("g");
    let rents = |machines: &[&str], gone: &[&str]| {
        let (machines, gone) = (machines.iter().map(|m| m.to_string()).collect(), gone.iter().map(|m| m.to_string()).collect());
        Input::ForRent(ForRent { machines, away_ms: Some(8_000), gone, ..ForRent::default() })
    };
    w.input(g, rents(&["g-m1"], &[]));
    let a = w.agent("g-m1", 4, g);
    w.pass(200);
    let wait = || JobSpec { on_lost: OnLost::Wait, ..sleep(60_000) };
    let (done, _) = w.submit(g, "done", JobSpec::new(["false"]), 1).unwrap();
    w.pass(2_000);
    let (again, _) = w.submit(g, "again", sleep(60_000), 2).unwrap();
    let (fails, _) = w.submit(g, "fails", wait(), 2).unwrap();
    w.pass(500);
    let own = w.agent("own", 1, g);
    let (stays, _) = w.submit(g, "stays", wait(), 1).unwrap();
    w.pass(500);
    w.cut(a, g);
    w.cut(own, g);
    w.pass(2_000);
    let text = |w: &World, child, job| w.sites[&g].core.away(child, Some(job)).unwrap().text();
    assert_eq!("for 2 s: cut; 2 tasks there go elsewhere within 6 s unless it comes back", text(&w, a, again));
    assert_eq!("for 2 s: cut; 2 tasks there fail within 6 s unless it comes back", text(&w, a, fails));
    assert_eq!("for 2 s: cut; 1 task there stays unknown until it is back", text(&w, own, stays), "it is no rented one");
    order(&mut w, g, Order::Gone { site: "g-m1".into(), by: "provisioner".into() }).unwrap();
    assert_eq!(2, w.count(g, fails, Phase::Failed));
    w.input(g, rents(&[], &["g-m1"]));
    assert_eq!("its machine has been ended", text(&w, a, done), "it came and went while this site ran");
    restart_alone(&mut w, g, a);
    w.input(g, rents(&[], &[]));
    assert_eq!("its machine has been ended", text(&w, a, done));
    assert_eq!("for 0 s: not back since this site started; 1 task there stays unknown until it is back", text(&w, own, stays));
}

#[test]
fn a_person_is_told_what_becomes_of_tasks_that_are_out_of_sight() {
    let mut w = World::new();
    let (root, g) = (w.site("root"), w.site("g"));
    w.agent("a1", 4, g);
    w.link(g, root);
    w.pass(200);
    let (mut again, mut wait) = (sleep(60_000), sleep(60_000));
    again.disconnect_timeout_ms = 30_000;
    wait.on_lost = OnLost::Wait;
    let (again, _) = w.submit(root, "again", again, 3).unwrap();
    let (wait, _) = w.submit(root, "wait", wait, 1).unwrap();
    w.pass(500);
    assert_eq!(None, w.sites[&root].core.away(g, None));
    w.cut(g, root);
    w.pass(4_000);
    let text = |job| w.sites[&root].core.away(g, job).unwrap().text();
    assert_eq!("for 4 s: cut; 3 tasks there go elsewhere within 26 s unless it comes back", text(Some(again)));
    assert_eq!("for 4 s: cut; 1 task there stays unknown until it is back", text(Some(wait)));
    assert!(text(None).ends_with("unless it comes back, 1 task there stays unknown until it is back"));
    let (explained, _) = w.explanation(root, again);
    let said = &explained.reasons.last().unwrap().text;
    assert_eq!("g: cut; 3 tasks there go elsewhere within 26 s unless it comes back; the phase is the last known", said);
    let (_, children) = w.sites[&root].core.host();
    assert!(children[0].1.unreachable.starts_with("for 4 s: cut; "), "{children:?}");
}

#[test]
fn what_is_at_another_site_is_not_counted_as_lost() {
    let mut w = World::new();
    let sites = [("root", 0), ("campus", 4), ("partner", 2)].map(|(name, slots)| {
        let site = w.site(name);
        if slots > 0 {
            w.agent(&format!("{name}-1"), slots, site);
        }
        site
    });
    let [root, campus, partner] = sites;
    w.link(campus, root);
    w.link(partner, root);
    w.pass(500);
    let mut spec = sleep(600_000);
    spec.on_lost = OnLost::Wait;
    let (job, _) = w.submit(root, "k", spec, 6).unwrap();
    w.pass(3_000);
    assert_eq!(6, w.count(root, job, Phase::Running));
    w.cut(campus, root);
    let core = &w.sites[&root].core;
    let j = &core.state().jobs[&job];
    let told = |only: Option<&TaskSet>| {
        let said = |c: pb::PhaseCount| (c.tasks, c.reason.map(|r| r.text.split(':').next().unwrap_or_default().to_string()));
        let mut told: Vec<_> = core.counts(j, only).into_iter().map(said).collect();
        told.sort();
        told
    };
    assert_eq!(vec![(2, None), (4, Some("campus".to_string()))], told(None));
    let on = |child| j.select(&j.all(), |c| j.downs.get(&c.down).is_some_and(|d| d.child == child));
    assert_eq!(vec![(2, None)], told(Some(&on(partner))));
    assert_eq!(vec![(4, Some("campus".to_string()))], told(Some(&on(campus))));
    let lost = |tasks| core.explanation(j, Some(tasks)).0.reasons.iter().filter(|r| r.kind == ReasonKind::ContactLost.number()).count();
    assert_eq!((0, 1), (lost(&on(partner)), lost(&on(campus))));
}

#[test]
fn an_agent_with_an_old_store_is_told_what_counts() {
    let (mut w, g, a, job) = site();
    w.cut(a, g);
    let hop = Hop { site: a, name: "a1".into(), kind: Kind::Agent };
    let mut opened = |incarnation| {
        let Some(Up::Hello(hello)) = ChildEnd::new(hop.clone(), incarnation, 2, 8 << 30).attach().pop() else { panic!("a hello") };
        w.wire.clear();
        w.input(g, Input::ChildUp { child: a, hello: Hello { sequence_high: 1_000, ..hello } });
        let open = w.wire.iter().find_map(|(.., m)| if let Message::Down(Down::Open(open)) = m { Some(open.clone()) } else { None });
        w.input(g, Input::ChildGone { child: a, why: String::new(), silent_ms: 0 });
        open
    };
    assert_eq!(None, opened(77), "its store is the one that we know");
    let open: Vec<Attempts> = opened(78).unwrap();
    assert!(open.iter().all(|o| o.job == job));
    assert_eq!(TaskSet::range(0..2), open.iter().fold(TaskSet::new(), |all, o| all.union(&o.tasks)));
}
