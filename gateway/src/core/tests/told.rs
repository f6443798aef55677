//! What parents and people are told: windows that never promise the same slot twice, and reasons that say what is so.

use intergrid_proto::link::{Advert, Down, Hello, Hop, Kind, Known, Origin, Place, ShapeDemand, Up, Want, WantValue};
use intergrid_proto::spec::OnLost;
use intergrid_proto::{BlobHash, JobSpec, Phase, ReasonKind, Shape, Share, SiteId, TaskSet};

use super::{Message, World, greeting, sleep, tower};
use crate::backends::child_end::{ChildEnd, site_of};
use crate::core::Input;

/// A parent acted out by hand: says hello, and nothing else of itself.
fn parent(w: &mut World, site: SiteId, name: &str) -> SiteId {
    let hop = Hop { site: site_of(name), name: name.into(), kind: Kind::Broker };
    let parent = hop.site;
    let hello = greeting(hop, 5);
    w.input(site, Input::ParentUp { parent, name: name.into() });
    w.input(site, Input::ParentSays { parent, message: Down::Hello(hello) });
    parent
}

/// The last advert to this parent since the wire was last looked at for him.
fn told(w: &mut World, parent: SiteId) -> Option<Advert> {
    let mut last = None;
    w.wire.retain(|(_, to, m)| match m {
        Message::Up(up) if *to == parent => {
            if let Up::Advert(a) = up {
                last = Some(a.clone());
            }
            false
        }
        _ => true,
    });
    last
}

fn window(a: &Advert) -> u64 {
    a.shares.iter().map(|s| s.window).sum()
}

/// Time passes at one site, and nothing is delivered.
fn ticks(w: &mut World, site: SiteId, ms: u64) {
    for _ in 0..ms / 50 {
        w.now.mono_ms += 50;
        w.input(site, Input::Tick);
    }
}

#[test]
fn what_is_taken_from_one_parent_is_given_to_another_only_when_the_first_knows() {
    let mut w = World::new();
    let gem = w.site("gem");
    w.agent("a", 4, gem);
    w.pass(200);
    // What nobody has asked for is with the first of them.
    let mut names = ["left", "right"];
    names.sort_by_key(|n| site_of(n));
    let (left, right) = (parent(&mut w, gem, names[0]), parent(&mut w, gem, names[1]));
    ticks(&mut w, gem, 200);
    let (of_left, of_right) = (told(&mut w, left).unwrap(), told(&mut w, right).unwrap());
    assert_eq!((4, 0), (window(&of_left), window(&of_right)), "all of it to the first");
    let says = |w: &mut World, parent, message| w.input(gem, Input::ParentSays { parent, message });
    says(&mut w, left, Down::Saw(of_left.version));
    says(&mut w, right, Down::Saw(of_right.version));
    says(&mut w, right, Down::Demand(vec![ShapeDemand { shape: Shape::default(), time_limit_ms: None, tasks: 4 }]));
    ticks(&mut w, gem, 1_000);
    let smaller = told(&mut w, left).unwrap();
    assert_eq!(0, window(&smaller));
    assert_eq!(None, told(&mut w, right).map(|a| window(&a)), "the first may be placing on it at this moment");
    says(&mut w, left, Down::Saw(of_left.version));
    ticks(&mut w, gem, 200);
    assert_eq!(None, told(&mut w, right).map(|a| window(&a)), "an older advert was seen, not this one");
    says(&mut w, left, Down::Saw(smaller.version));
    ticks(&mut w, gem, 200);
    assert_eq!(Some(4), told(&mut w, right).map(|a| window(&a)));
}

#[test]
fn who_asks_for_more_time_than_there_is_takes_no_credit_from_another() {
    const HOUR: u64 = 3_600_000;
    let mut w = World::new();
    let gem = w.site("gem");
    super::times::agent(&mut w, "a", 4, gem, HOUR);
    w.pass(200);
    let parents = ["left", "right"].map(|name| parent(&mut w, gem, name));
    let mut divided = |limits: [Option<u64>; 2]| {
        for (parent, time_limit_ms) in parents.into_iter().zip(limits) {
            let demand = Down::Demand(vec![ShapeDemand { shape: Shape::default(), time_limit_ms, tasks: 8 }]);
            w.input(gem, Input::ParentSays { parent, message: demand });
        }
        let mut windows = [0, 0];
        // Each says that it has seen what it is told.
        for _ in 0..6 {
            ticks(&mut w, gem, 200);
            for (parent, now) in parents.into_iter().zip(&mut windows) {
                if let Some(advert) = told(&mut w, parent) {
                    *now = window(&advert);
                    w.input(gem, Input::ParentSays { parent, message: Down::Saw(advert.version) });
                }
            }
        }
        windows
    };
    assert_eq!([0, 4], divided([Some(2 * HOUR), Some(HOUR)]));
    assert_eq!([2, 2], divided([None, Some(HOUR)]));
}

#[test]
fn failures_of_several_kinds_are_told_apart_and_known_by_their_exits_after_a_restart() {
    let mut w = World::new();
    let g = w.site("g");
    w.agent("a", 6, g);
    w.pass(200);
    let why = |w: &World, job| {
        let view = w.sites[&g].core.job_view(job, true).unwrap();
        let reason = view.counts.into_iter().find(|c| c.phase == Phase::Failed as i32).and_then(|c| c.reason).unwrap();
        (ReasonKind::from_number(reason.kind), reason.text, reason.because.into_iter().map(|r| r.text).collect::<Vec<_>>())
    };
    let (one, _) = w.submit(g, "one", JobSpec::new(["false"]), 3).unwrap();
    let (many, _) = w.submit(g, "many", JobSpec::new(["sh", "-c", "exit {i}"]), 3).unwrap();
    w.pass(2_000);
    assert_eq!((ReasonKind::ExitNonZero, 0), (why(&w, one).0, why(&w, one).2.len()), "one reason is told as it is");
    let (kind, text, because) = why(&w, many);
    assert_eq!((ReasonKind::ExitNonZero, "2 tasks failed, for 2 reasons"), (kind, text.as_str()));
    assert!(because.len() == 2 && because.iter().all(|b| b.starts_with("1 of 2: ")), "{because:?}");
    w.restart(g);
    assert_eq!(vec!["1 of 2: exit 1", "1 of 2: exit 2"], why(&w, many).2);
    assert_eq!("exit 1", why(&w, one).1);
}

#[test]
fn what_failed_before_a_restart_and_after_it_for_one_reason_is_told_as_one() {
    let told = |argv: &[&str]| {
        let mut w = World::new();
        let g = w.site("g");
        let a = w.agent("a", 2, g);
        w.agents.get_mut(&a).unwrap().acting.delay_ms = 300;
        w.pass(200);
        let (job, _) = w.submit(g, "k", JobSpec::new(argv.iter().copied()), 6).unwrap();
        let failed = |w: &World| w.count(g, job, Phase::Failed);
        for _ in 0..100 {
            if failed(&w) < 2 {
                w.pass(50);
            }
        }
        let before = failed(&w);
        w.restart(g);
        w.pass(10_000);
        assert!((2..failed(&w)).contains(&before), "{before} of {}", failed(&w));
        let view = w.sites[&g].core.job_view(job, true).unwrap();
        let reason = view.counts.into_iter().find(|c| c.phase == Phase::Failed as i32).and_then(|c| c.reason).unwrap();
        (ReasonKind::from_number(reason.kind), reason.because.into_iter().map(|b| b.text).collect::<Vec<_>>())
    };
    assert_eq!((ReasonKind::ExitNonZero, Vec::<String>::new()), told(&["false"]));
    let (kind, because) = told(&["sh", "-c", "exit {i}"]);
    assert_eq!((ReasonKind::ExitNonZero, 5), (kind, because.len()));
    assert!(because.iter().all(|b| b.starts_with("1 of 5: exit ")), "{because:?}");
}

/// A placement of that parent's job 1.
fn placement(number: u64, tasks: TaskSet, want: Want) -> Box<Place> {
    let spec = sleep(3_600_000).encode();
    let origin = Origin { site: site_of("top"), job: "1".into(), principal: "ann".into(), submitted_ms: 0 };
    let (spec_hash, route, share) = (BlobHash::of(&spec), vec![site_of("top")], "none".to_string());
    let (job, attempts, hops_left, chain, array_size, known) = (1, 0, 8, Vec::new(), 8, Known::Nothing);
    Box::new(Place {
        number,
        job,
        origin,
        spec_hash,
        spec,
        tasks,
        share,
        attempts,
        want,
        route,
        hops_left,
        chain,
        array_size,
        attempt_cost_max: 0,
        known,
    })
}

/// What a site holds of that job.
fn held(w: &World, site: SiteId) -> (u64, u64) {
    w.sites[&site].core.state().jobs.values().fold((0, 0), |(open, held), j| (open + j.open(), held + j.count(Phase::Held)))
}

/// Seed 2028: a parent that decides something before it knows of a session says it first in it. Numbers are taken in order, so that an earlier placement,
/// which is repeated after the hello, would never be looked at.
#[test]
fn nothing_counts_before_a_hello() {
    let mut w = World::new();
    let gem = w.site("gem");
    w.agent("a", 4, gem);
    w.pass(200);
    let top = parent(&mut w, gem, "top");
    ticks(&mut w, gem, 200);
    let advert = told(&mut w, top).unwrap();
    let place = |number, tasks| Place { share: advert.shares[0].key.clone(), ..*placement(number, tasks, Want::default()) };
    let says = |w: &mut World, place| w.input(gem, Input::ParentSays { parent: top, message: Down::Place(Box::new(place)) });
    w.input(gem, Input::ParentGone { parent: top });
    w.input(gem, Input::ParentUp { parent: top, name: "top".into() });
    says(&mut w, place(2, TaskSet::one(1)));
    assert_eq!(0, w.sites[&gem].core.state().links[&top].seen, "not yet");
    parent(&mut w, gem, "top");
    ticks(&mut w, gem, 200);
    says(&mut w, place(1, TaskSet::one(0)));
    says(&mut w, place(2, TaskSet::one(1)));
    assert_eq!((2, 0), held(&w, gem));
}

/// Seed 8817: the register of a placement is as good as one that comes by itself.
#[test]
fn a_release_that_comes_with_a_placement_releases_what_is_held() {
    let mut w = World::new();
    let gem = w.site("gem");
    w.agent("a", 4, gem);
    w.pass(200);
    let top = parent(&mut w, gem, "top");
    ticks(&mut w, gem, 200);
    let advert = told(&mut w, top).unwrap();
    let says = |w: &mut World, message| w.input(gem, Input::ParentSays { parent: top, message });
    let mut hold = Want { job: 1, version: 1, ..Want::default() };
    hold.set(WantValue::Hold, &TaskSet::range(0..8));
    let place = |number, tasks, want| Down::Place(Box::new(Place { share: advert.shares[0].key.clone(), ..*placement(number, tasks, want) }));
    says(&mut w, place(1, TaskSet::range(0..2), hold));
    assert_eq!((2, 2), held(&w, gem));
    says(&mut w, place(2, TaskSet::one(2), Want { job: 1, version: 2, ..Want::default() }));
    assert_eq!((3, 0), held(&w, gem), "the register of the placement says so");
}

/// What has used up its attempts is held where its user can release it, with that reason, whatever comes back of other tasks.
#[test]
fn attempts_that_are_used_up_below_are_known_above() {
    let mut w = World::new();
    let sites = tower(&mut w, 2);
    let mut spec = sleep(3_000);
    (spec.attempts_max, spec.disconnect_timeout_ms, spec.on_lost) = (1, 500, OnLost::Requeue);
    let (job, _) = w.submit(sites[0], "k", spec, 2).unwrap();
    w.pass(500);
    let agents: Vec<SiteId> = w.agents.keys().copied().collect();
    agents.iter().for_each(|a| w.cut(*a, sites[2]));
    w.pass(1_500);
    w.check();
    assert_eq!(2, w.count(sites[0], job, Phase::Held));
    assert_eq!(ReasonKind::AttemptsUsed, w.sites[&sites[0]].core.why_held(job).kind);
    assert_eq!(0, held(&w, sites[1]).0 + held(&w, sites[2]).0, "nothing of it waits below");
    agents.iter().for_each(|a| w.link(*a, sites[2]));
    w.want(sites[0], job, WantValue::Run, None);
    w.pass(60_000);
    w.check();
    assert_eq!(2, w.count(sites[0], job, Phase::Done));
}

/// What a load has counted did not end just now: it would promise a thousand slots that are not there.
#[test]
fn a_restart_promises_nothing_ahead() {
    let mut w = World::new();
    let gem = w.site("gem");
    w.agent("a", 4, gem);
    w.pass(200);
    w.submit(gem, "k", JobSpec::new(["true"]), 300).unwrap();
    w.pass(30_000);
    w.restart(gem);
    w.pass(400);
    let top = parent(&mut w, gem, "top");
    ticks(&mut w, gem, 200);
    assert_eq!(4, window(&told(&mut w, top).unwrap()));
}

/// Seed 23676: what is given back in the turn in which a parent asks for the full state is no part of that, and has to be said before it.
#[test]
fn what_waits_to_be_said_goes_before_a_full_state() {
    let mut w = World::new();
    let gem = w.site("gem");
    w.agent("a", 4, gem);
    w.pass(200);
    let top = parent(&mut w, gem, "top");
    ticks(&mut w, gem, 200);
    told(&mut w, top).unwrap();
    // One turn: no share of this name is here.
    let now = w.now;
    let core = &mut w.sites.get_mut(&gem).unwrap().core;
    core.step(Input::ParentSays { parent: top, message: Down::Place(placement(1, TaskSet::one(0), Want::default())) }, now);
    core.step(Input::ParentSays { parent: top, message: Down::Resync }, now);
    let said: Vec<&str> = core.turn(now).actions.iter().filter_map(said_up).collect();
    assert_eq!(["events", "full state"], *said);
}

fn said_up(action: &crate::core::Action) -> Option<&'static str> {
    match action {
        crate::core::Action::ToParent(_, Up::Events(_)) => Some("events"),
        crate::core::Action::ToParent(_, Up::Resync(_)) => Some("full state"),
        _ => None,
    }
}

/// Seed 27832: behind the rows of a checkpoint a task that went back has no placement any more, and was counted off the first that the job has.
#[test]
fn what_a_parent_has_here_is_the_same_after_a_restart() {
    let mut w = World::new();
    w.checkpoint = 1;
    let gem = w.site("gem");
    w.agent("a", 4, gem);
    w.pass(200);
    let top = parent(&mut w, gem, "top");
    ticks(&mut w, gem, 200);
    let advert = told(&mut w, top).unwrap();
    let mut place = |number: u64, wish: WantValue| {
        let tasks = TaskSet::one(number as u32);
        let mut want = Want { job: 1, version: number, ..Want::default() };
        want.set(WantValue::Hold, &TaskSet::range(0..8));
        want.set(wish, &tasks);
        let place = Place { share: advert.shares[0].key.clone(), ..*placement(number, tasks, want) };
        w.input(gem, Input::ParentSays { parent: top, message: Down::Place(Box::new(place)) });
    };
    place(1, WantValue::Hold);
    place(2, WantValue::Return);
    ticks(&mut w, gem, 200);
    let slots = |w: &World| w.sites[&gem].core.state().held_for.values().sum::<u64>();
    assert_eq!(((1, 1), 1), (held(&w, gem), slots(&w)));
    w.restart(gem);
    w.check();
    assert_eq!(((1, 1), 1), (held(&w, gem), slots(&w)));
}

/// A gateway over a queue of 16 slots which others have, but for `free`; 4 tasks may wait there.
fn queue(free: u64) -> (World, SiteId) {
    let mut w = World::new();
    let g = w.site("g");
    let hop = Hop { site: site_of("batch"), name: "batch".into(), kind: Kind::Agent };
    let child = hop.site;
    let mut end = ChildEnd::new(hop, 3, 16, 8 << 30);
    let Some(Up::Hello(hello)) = end.attach().pop() else { panic!("a hello") };
    w.input(g, Input::ChildUp { child, hello: hello.clone() });
    for mut message in end.down(Down::Hello(Hello { peer_incarnation: 3, ..hello }), 1) {
        if let Up::Advert(a) = &mut message {
            a.shares = vec![Share { key: "batch".into(), slots_free: free, window: free + 4, ..a.shares[0].clone() }];
        }
        w.input(g, Input::ChildSays { child, message });
    }
    (w, g)
}

/// The window of the queue has what may wait in it.
#[test]
fn however_fast_tasks_end_no_more_are_asked_for_than_a_queue_takes() {
    let (mut w, g) = queue(3);
    w.sites.get_mut(&g).unwrap().core.ended_rate = 1e6;
    let above = parent(&mut w, g, "above");
    ticks(&mut w, g, 200);
    assert_eq!(Some(7), told(&mut w, above).map(|a| window(&a)));
}

#[test]
fn what_may_wait_in_a_queue_is_not_shown_as_free() {
    for free in [0, 3] {
        let (w, g) = queue(free);
        let core = &w.sites[&g].core;
        let (me, children) = core.host();
        assert_eq!((16, free, free), (me.slots_total, me.slots_free, children[0].1.slots_free));
        let told: Vec<_> = core.upward().into_values().map(|u| (u.share.slots_free, u.room)).collect();
        assert_eq!(vec![(free, free + 4)], told, "parents are told the same, and may place more");
    }
}
