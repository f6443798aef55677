//! Brokers over brokers, in the shapes that go wrong elsewhere: rings, diamonds, towers that are too high, children that dial.

use std::sync::Arc;
use std::time::Duration;

use intergrid_broker::federation::Federation;
use intergrid_gateway::backend::Backend;
use intergrid_gateway::backends::fake::Fake;
use intergrid_gateway::daemon::Running;
use intergrid_proto::convert::tasks_in;
use intergrid_proto::limits::{HOPS_MAX, SHARES_MAX};
use intergrid_proto::link::{Kind, WantValue};
use intergrid_proto::net::Role;
use intergrid_proto::spec::OnLost;
use intergrid_proto::{Exit, JobSpec, Phase, ReasonKind, pb};
use intergrid_tests::client::{Client, count};
use intergrid_tests::grid::{Grid, at, dials, machines};
use intergrid_tests::{always, logs, until};

fn sleep(seconds: &str) -> JobSpec {
    JobSpec::new(["sleep", seconds])
}

fn starts(fake: &Fake, machines: usize) -> usize {
    (0..machines).map(|i| fake.with(i, |c| c.starts().len())).sum()
}

async fn has_slots(c: &Client, slots: u64) -> pb::Host {
    until(&format!("{slots} slots"), async || match c.hosts().await.unwrap() {
        h if h.slots_total == slots => Ok(h),
        h => Err((h.slots_total, h.below)),
    })
    .await
}

/// Tasks that are at a site and have not ended.
async fn open_at(site: &Running) -> u64 {
    site.engine.read(|core| core.state().jobs.values().map(|j| j.open()).sum()).await.unwrap()
}

/// Every reason in an explanation, with those that it rests on.
fn reasons(e: &pb::Explanation) -> Vec<(ReasonKind, String)> {
    fn walk(r: &pb::Reason, found: &mut Vec<(ReasonKind, String)>) {
        found.push((ReasonKind::from_number(r.kind), r.text.clone()));
        r.because.iter().for_each(|b| walk(b, found));
    }
    let mut found = Vec::new();
    e.reasons.iter().for_each(|r| walk(r, &mut found));
    found.extend(e.below.iter().flat_map(reasons));
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_brokers_that_list_each_other_share_and_never_bounce() {
    let grid = Grid::new();
    let (m1, m2) = (machines("g1", 1, 2), machines("g2", 1, 3));
    let g1 = grid.gateway("g1", &["ring1"], m1.clone()).await;
    let g2 = grid.gateway("g2", &["ring2"], m2.clone()).await;
    // Each has to know where the other listens: the first gets its port, and keeps it.
    let first = grid.broker("ring1", &["ring2"], &[at(&g1)]).await;
    let to_first = at(&first);
    first.stop().await;
    let ring2 = grid.broker("ring2", &["ring1"], &[at(&g2), to_first]).await;
    let ring1 = grid.broker("ring1", &["ring2"], &[at(&g1), at(&ring2)]).await;
    let (ann, bob) = (grid.user(&ring1, "ann").await, grid.user(&ring2, "bob").await);
    has_slots(&ann, 5).await;
    has_slots(&bob, 5).await;
    let (a, _) = ann.submit("a", &sleep("0.02"), 150).await.unwrap();
    let (b, _) = bob.submit("b", &sleep("0.02"), 150).await.unwrap();
    for (client, job) in [(&ann, &a), (&bob, &b)] {
        assert_eq!(150, count(&client.ended(job).await, Phase::Done));
    }
    assert_eq!(300, starts(&m1, 1) + starts(&m2, 1), "each task was started once");
    assert!(starts(&m1, 1) >= 40 && starts(&m2, 1) >= 60, "both gateways have worked");
    for site in [&ring1, &ring2] {
        let me = site.me.site;
        let bounced = site.engine.read(move |core| core.state().jobs.values().filter(|j| j.parent.is_some() && j.origin.site == me).count()).await;
        assert_eq!(0, bounced.unwrap(), "no task of {} came back to it", site.me.name);
    }
    // Quiet again: nothing is left of either, and nobody has counted anything twice.
    has_slots(&ann, 5).await;
    assert_eq!(0, open_at(&g1).await + open_at(&g2).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diamond_is_counted_once() {
    let grid = Grid::new();
    let fake = machines("gem", 1, 2);
    let gem = grid.gateway("gem", &["left", "right"], fake.clone()).await;
    let left = grid.broker("left", &["apex"], &[at(&gem)]).await;
    let right = grid.broker("right", &["apex"], &[at(&gem)]).await;
    let apex = grid.broker("apex", &[], &[at(&left), at(&right)]).await;
    let ann = grid.user(&apex, "ann").await;
    until("both paths", async || match ann.hosts().await.unwrap() {
        h if h.slots_total == 2 && h.below.len() == 2 && h.below.iter().all(|b| b.slots_total == 2) => Ok(()),
        h => Err(h),
    })
    .await;
    // Work that never ends earns no lookahead: beyond the two slots nothing gets to the gateway by either way, whatever is on its way to it.
    let (job, _) = ann.submit("long", &sleep("3600"), 40).await.unwrap();
    let look = async || {
        let (at_gem, view, total) = (open_at(&gem).await, ann.show(&job).await.unwrap(), ann.hosts().await.unwrap().slots_total);
        (at_gem, 40 - count(&view, Phase::Queued), total)
    };
    always(Duration::from_millis(1_500), async || match look().await {
        (at_gem, _, 2) if at_gem <= 2 => Ok(()),
        (at_gem, _, total) => Err(format!("{at_gem} tasks at a gateway with two slots, {total} slots in all")),
    })
    .await;
    until("two below the top", async || match look().await {
        (2, 2, 2) => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(40, ann.want(&job, WantValue::Cancel).await.unwrap());
    assert_eq!(40, count(&ann.ended(&job).await, Phase::Cancelled));
    ann.run("short", &sleep("0.02"), 60).await;
    assert_eq!(62, starts(&fake, 1), "each task was started once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_lists_itself_is_refused_and_works_on() {
    let grid = Grid::new();
    let g = grid.gateway("honest", &["narcissus"], machines("honest", 1, 2)).await;
    let first = grid.broker("narcissus", &[], &[at(&g)]).await;
    let itself = at(&first);
    first.stop().await;
    let broker = grid.broker("narcissus", &["narcissus"], &[at(&g), itself]).await;
    let ann = grid.user(&broker, "ann").await;
    logs::wait(&["narcissus", "own child"]).await;
    let host = has_slots(&ann, 2).await;
    let own = host.below.iter().find(|h| h.site.as_ref().unwrap().name == "narcissus").unwrap();
    assert!(!own.unreachable.is_empty(), "{own:?}");
    ann.run("k", &sleep("0"), 20).await;
    assert_eq!(0, broker.engine.read(|core| core.state().jobs.values().filter(|j| j.parent.is_some()).count()).await.unwrap());
}

/// A tower of this many brokers over one gateway with two slots, the top last.
async fn tower(grid: &Grid, brokers: u32) -> Vec<Running> {
    let name = |d: u32| if d == 0 { "base".to_string() } else { format!("floor{d}") };
    let mut sites = vec![grid.gateway("base", &[&name(1)], machines("base", 1, 2)).await];
    for d in 1..=brokers {
        let child = at(sites.last().unwrap());
        sites.push(grid.broker(&name(d), &[&name(d + 1)], &[child]).await);
    }
    sites
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tower_that_is_too_high_says_so() {
    let grid = Grid::new();
    let sites = tower(&grid, HOPS_MAX + 1).await;
    let (top, below) = (&sites[HOPS_MAX as usize + 1], &sites[HOPS_MAX as usize]);
    // From the eighth broker everything is in reach.
    let bob = grid.user(below, "bob").await;
    has_slots(&bob, 2).await;
    bob.run("k", &sleep("0"), 4).await;
    // From the ninth it is one hop too far: it does not set out.
    let ann = grid.user(top, "ann").await;
    has_slots(&ann, 2).await;
    let (job, _) = ann.submit("k", &sleep("0"), 2).await.unwrap();
    let why = until("the reason", async || {
        let e = ann.explain(&job).await.unwrap();
        let found = reasons(&e).into_iter().find(|(kind, _)| *kind == ReasonKind::Loop);
        found.ok_or(e)
    })
    .await;
    assert!(why.1.contains(&format!("at most {HOPS_MAX}")), "{}", why.1);
    assert_eq!(0, count(&ann.show(&job).await.unwrap(), Phase::Done));
    assert_eq!(2, ann.want(&job, WantValue::Cancel).await.unwrap());
    assert_eq!(2, count(&ann.ended(&job).await, Phase::Cancelled));
}

/// Machines of so many sizes.
fn classes(name: &str, n: usize) -> Arc<dyn Backend> {
    let of_size = |i: usize| Fake::new(&format!("{name}-{i}-"), Kind::Agent, 1, i as u32, 8 << 30) as Arc<dyn Backend>;
    Federation::new((1..=n).map(of_size).collect()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_share_classes_than_are_told_are_refused() {
    let grid = Grid::new();
    let full = grid.gateway("full", &["classy"], classes("full", SHARES_MAX)).await;
    let over = grid.gateway("over", &["classy"], classes("over", SHARES_MAX + 1)).await;
    let broker = grid.broker("classy", &[], &[at(&full), at(&over)]).await;
    let ann = grid.user(&broker, "ann").await;
    let all: u64 = (1..=SHARES_MAX as u64).sum();
    has_slots(&ann, all).await;
    logs::wait(&["65 share classes", "at most 64", "classy"]).await;
    // The site itself can use all that it has; from above it offers nothing.
    let mut large = sleep("0");
    large.shape.slots = SHARES_MAX as u32 + 1;
    grid.user(&over, "bob").await.run("k", &large, 2).await;
    has_slots(&ann, all).await;
    let (job, _) = ann.submit("k", &large, 1).await.unwrap();
    let why = reasons(&ann.explain(&job).await.unwrap());
    assert_eq!(ReasonKind::NoFit, why[0].0, "{why:?}");
    ann.run("fits", &sleep("0"), 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_dials_serves_across_restarts_of_both_ends() {
    let grid = Grid::new();
    let fake = machines("shy", 1, 2);
    let config = grid.broker_config("hub", &[], &[dials("shy")]);
    let hub = grid.broker_of(config.clone()).await;
    let child = grid.dialling(grid.config("shy", &["hub"]), "hub", &hub.endpoint);
    let shy = grid.gateway_of(child.clone(), fake.clone()).await;
    let ann = grid.user(&hub, "ann").await;
    has_slots(&ann, 2).await;
    let job = ann.run("k", &JobSpec::new(["echo", "task", "{i}"]), 10).await;
    assert_eq!(b"task 7\n", &*ann.output(&job, 7, "stdout").await.unwrap());
    // The parent restarts in the middle of work: the child's tasks go on, and it dials again.
    let (first, _) = ann.submit("first", &sleep("0.1"), 30).await.unwrap();
    until("work", async || if starts(&fake, 1) > 12 { Ok(()) } else { Err(starts(&fake, 1)) }).await;
    hub.stop().await;
    let hub = grid.broker_of(config).await;
    let ann = grid.user(&hub, "ann").await;
    assert_eq!(30, count(&ann.ended(&first).await, Phase::Done));
    // The child restarts.
    let (second, _) = ann.submit("second", &sleep("0.1"), 30).await.unwrap();
    until("work", async || if starts(&fake, 1) > 42 { Ok(()) } else { Err(starts(&fake, 1)) }).await;
    shy.stop().await;
    let shy = grid.gateway_of(child, fake.clone()).await;
    assert_eq!(30, count(&ann.ended(&second).await, Phase::Done));
    assert_eq!(70, starts(&fake, 1), "each task was started once");
    assert_eq!(0, open_at(&shy).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_of_an_unknown_name_is_not_taken() {
    let grid = Grid::new();
    // Its CA is trusted, its name is not configured.
    let mut config = grid.broker_config("picky", &[], &[dials("expected")]);
    config.site.trust.push(grid.trust("uninvited", &[Role::Child], ""));
    let hub = grid.broker_of(config).await;
    let child = grid.dialling(grid.config("uninvited", &["picky"]), "picky", &hub.endpoint);
    let _uninvited = grid.gateway_of(child, machines("uninvited", 1, 2)).await;
    logs::wait(&["uninvited", "no child of this name"]).await;
    assert_eq!(0, grid.user(&hub, "ann").await.hosts().await.unwrap().slots_total);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_is_refused_somewhere_holds_up_nobody_else() {
    let grid = Grid::new();
    let mut config = grid.config("strict", &[]);
    config.trust.push(grid.trust("faculty", &[Role::Delegate], "ann"));
    let strict = grid.gateway_of(config, machines("strict", 1, 2)).await;
    let broker = grid.broker("faculty", &[], &[at(&strict)]).await;
    let (ann, bob) = (grid.user(&broker, "ann").await, grid.user(&broker, "bob").await);
    has_slots(&ann, 2).await;
    let (job, _) = bob.submit("k", &sleep("0"), 2).await.unwrap();
    let why = until("the refusal", async || {
        let e = bob.explain(&job).await.unwrap();
        let found = reasons(&e).into_iter().find(|(kind, _)| *kind == ReasonKind::NotAuthorised);
        found.ok_or(e)
    })
    .await;
    assert!(why.1.contains("bob"), "{}", why.1);
    // Of the same shape, and at once.
    let began = std::time::Instant::now();
    ann.run("k", &sleep("0"), 20).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(2, count(&bob.show(&job).await.unwrap(), Phase::Queued));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_of_every_site_start_no_task_twice() {
    const TASKS: u32 = 240;
    let grid = Grid::new();
    let fake = machines("leaf", 2, 4);
    let leaf_config = grid.config("leaf", &["stem"]);
    let mut leaf = grid.gateway_of(leaf_config.clone(), fake.clone()).await;
    let stem_config = grid.broker_config("stem", &["crown"], &[at(&leaf)]);
    let mut stem = grid.broker_of(stem_config.clone()).await;
    let crown_config = grid.broker_config("crown", &[], &[at(&stem)]);
    let mut crown = grid.broker_of(crown_config.clone()).await;
    has_slots(&grid.user(&crown, "ann").await, 8).await;
    let mut spec = sleep("0.05");
    spec.on_lost = OnLost::Wait;
    let (job, _) = grid.user(&crown, "ann").await.submit("k", &spec, TASKS).await.unwrap();
    for round in 1..=6 {
        until("progress", async || if starts(&fake, 2) > round * 30 { Ok(()) } else { Err(starts(&fake, 2)) }).await;
        match round % 3 {
            0 => {
                crown.stop().await;
                crown = grid.broker_of(crown_config.clone()).await;
            }
            1 => {
                stem.stop().await;
                stem = grid.broker_of(stem_config.clone()).await;
            }
            _ => {
                leaf.stop().await;
                leaf = grid.gateway_of(leaf_config.clone(), fake.clone()).await;
            }
        }
    }
    let ann = grid.user(&crown, "ann").await;
    assert_eq!(u64::from(TASKS), count(&ann.ended(&job).await, Phase::Done));
    assert_eq!(TASKS as usize, starts(&fake, 2), "each task was started once");
    let history = ann.history(&job).await;
    let done: u64 = history.iter().filter(|h| h.ended.is_some() && !h.stale).map(|h| tasks_in(h.tasks.clone()).unwrap().len()).sum();
    assert_eq!(u64::from(TASKS), done, "each end is in the history once");
    let stale: Vec<_> = history.iter().filter(|h| h.stale).collect();
    assert!(stale.is_empty(), "{stale:?}");
    assert_eq!(0, open_at(&leaf).await + open_at(&stem).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_contact_is_fenced_and_one_result_counts() {
    let grid = Grid::new();
    let (m1, m2) = (machines("isle", 1, 1), machines("main", 1, 1));
    let config = grid.config("isle", &["ferry"]);
    let isle = grid.gateway_of(config.clone(), m1.clone()).await;
    let ferry = grid.broker("ferry", &[], &[at(&isle), dials("main")]).await;
    let ann = grid.user(&ferry, "ann").await;
    has_slots(&ann, 1).await;
    let mut spec = sleep("3600");
    spec.disconnect_timeout_ms = 500;
    let (job, _) = ann.submit("k", &spec, 1).await.unwrap();
    until("it to run", async || if count(&ann.show(&job).await.unwrap(), Phase::Running) == 1 { Ok(()) } else { Err(()) }).await;
    isle.stop().await;
    // Another comes, and after the time-out the task is started there; the first copy goes on where nobody can see it.
    let child = grid.dialling(grid.config("main", &["ferry"]), "ferry", &ferry.endpoint);
    let main = grid.gateway_of(child, m2.clone()).await;
    until("a second start", async || if starts(&m2, 1) == 1 { Ok(()) } else { Err(starts(&m2, 1)) }).await;
    assert_eq!((1, 1), (m1.with(0, |c| c.running().len()), m2.with(0, |c| c.running().len())));
    // Back again it is told to stop the copy that no longer counts, and the other one is the result.
    let isle = grid.gateway_of(config, m1.clone()).await;
    until("the stale copy to stop", async || if m1.with(0, |c| c.running().is_empty()) { Ok(()) } else { Err("it runs") }).await;
    m2.with(0, |c| c.end_running(Exit::Code(0)));
    assert_eq!(1, count(&ann.ended(&job).await, Phase::Done));
    let by = |h: &pb::HistoryEntry| (h.child.as_ref().map(|c| c.name.clone()).unwrap_or_default(), h.stale);
    let history: Vec<_> = until("the stale copy in the history", async || {
        let h = ann.history(&job).await;
        if h.iter().any(|h| by(h) == ("isle".into(), true)) { Ok(h) } else { Err(h) }
    })
    .await;
    assert_eq!(1, history.iter().filter(|h| by(h) == ("main".into(), false) && h.ended.is_some()).count(), "{history:?}");
    assert_eq!((1, 1), (starts(&m1, 1), starts(&m2, 1)));
    assert_eq!(0, open_at(&isle).await + open_at(&main).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_waits_for_a_confirmed_stop() {
    let grid = Grid::new();
    let fake = machines("deaf", 1, 2);
    let config = grid.config("deaf", &["boss"]);
    let deaf = grid.gateway_of(config.clone(), fake.clone()).await;
    let boss = grid.broker("boss", &[], &[at(&deaf)]).await;
    let ann = grid.user(&boss, "ann").await;
    let (job, _) = ann.submit("k", &sleep("3600"), 5).await.unwrap();
    until("two to run", async || match ann.show(&job).await.unwrap() {
        v if count(&v, Phase::Running) == 2 => Ok(()),
        v => Err(v.counts),
    })
    .await;
    deaf.stop().await;
    assert_eq!(5, ann.want(&job, WantValue::Cancel).await.unwrap());
    always(Duration::from_millis(500), async || match count(&ann.show(&job).await.unwrap(), Phase::Cancelled) {
        3 => Ok(()),
        n => Err(format!("{n} are said to be cancelled, while two run where nobody can see them")),
    })
    .await;
    let _deaf = grid.gateway_of(config, fake.clone()).await;
    assert_eq!(5, count(&ann.ended(&job).await, Phase::Cancelled));
    assert!(fake.with(0, |c| c.running().is_empty()));
}
