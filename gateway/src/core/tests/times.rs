//! A task goes where there is time for it, by its time limit, and waits alone where there is none.

use intergrid_proto::share::Machine;
use intergrid_proto::{JobSpec, Phase, ReasonKind, SiteId};

use super::{World, sleep};
use crate::core::Input;
use crate::core::rent::{ForRent, Rentable};

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

/// Tasks of a tenth of a second that may take so long.
fn limited(limit_ms: u64) -> JobSpec {
    let mut spec = sleep(100);
    spec.time_limit_ms = Some(limit_ms);
    spec
}

/// An agent that says that tasks have so long there.
pub(super) fn agent(w: &mut World, name: &str, slots: u32, parent: SiteId, time_max_ms: u64) -> SiteId {
    let id = w.agent(name, slots, parent);
    w.agents.get_mut(&id).unwrap().time_max_ms = time_max_ms;
    w.cut(id, parent);
    w.link(id, parent);
    id
}

fn why(w: &World, site: SiteId, job: u64) -> (ReasonKind, String) {
    let reason = w.explanation(site, job).0.reasons.remove(0);
    let words = reason.because.iter().map(|b| b.text.clone()).fold(reason.text, |all, text| format!("{all}; {text}"));
    (ReasonKind::from_number(reason.kind), words)
}

fn time_at(w: &World, parent: SiteId, child: SiteId) -> Vec<u64> {
    w.sites[&parent].core.children[&child].shares.iter().map(|(_, s)| s.time_max_ms).collect()
}

#[test]
fn a_task_goes_to_a_machine_that_has_so_long_and_what_finds_none_waits_alone() {
    let mut w = World::new();
    let (root, g) = (w.site("root"), w.site("g"));
    w.link(g, root);
    let short = agent(&mut w, "short", 4, g, HOUR);
    let long = agent(&mut w, "long", 4, g, 3 * HOUR);
    w.pass(500);
    assert_eq!(vec![3 * HOUR], time_at(&w, root, g), "one class, the most of both");
    // The first is the oldest, and has no place anywhere: it is in nobody's way.
    let (never, _) = w.submit(root, "never", limited(3 * HOUR + 1), 8).unwrap();
    let (two, _) = w.submit(root, "two", limited(2 * HOUR), 12).unwrap();
    let (half, _) = w.submit(root, "half", limited(HOUR), 12).unwrap();
    let (any, _) = w.submit(root, "any", sleep(100), 12).unwrap();
    let (mut on_short, mut on_long) = (Vec::new(), Vec::new());
    for _ in 0..400 {
        w.pass(50);
        let state = w.sites[&g].core.state();
        for (child, limits) in [(short, &mut on_short), (long, &mut on_long)] {
            let placed = state.placed_on.get(&child).into_iter().flatten();
            limits.extend(placed.filter_map(|(_, job)| Some(state.jobs.get(job)?.spec.parsed.time_limit_ms)));
        }
    }
    assert_eq!([0, 12, 12, 12], [never, two, half, any].map(|job| w.count(root, job, Phase::Done)), "{:?}", why(&w, root, two));
    assert!(on_short.contains(&Some(HOUR)) && !on_short.contains(&Some(2 * HOUR)), "{on_short:?}");
    assert!(on_long.contains(&Some(2 * HOUR)), "{on_long:?}");
    let (kind, words) = why(&w, root, never);
    assert_eq!(ReasonKind::OverLimit, kind, "{words}");
    assert!(words.contains("asks for 3h1ms, g/") && words.contains("has 3h for a task"), "{words}");
    assert!(w.sites[&root].core.state().jobs[&never].downs.is_empty());
    // With more time it goes.
    agent(&mut w, "longer", 4, g, 0);
    w.pass(20_000);
    assert_eq!((8, vec![0]), (w.count(root, never, Phase::Done), time_at(&w, root, g)));
}

#[test]
fn what_fits_by_the_most_and_finds_the_others_only_comes_back_and_holds_up_nobody() {
    let mut w = World::new();
    let (root, g) = (w.site("root"), w.site("g"));
    w.link(g, root);
    agent(&mut w, "short", 4, g, HOUR);
    agent(&mut w, "long", 1, g, 3 * HOUR);
    w.pass(500);
    let mut endless = limited(2 * HOUR);
    endless.argv = sleep(HOUR).argv;
    let (two, _) = w.submit(root, "two", endless, 5).unwrap();
    w.pass(5_000);
    let (half, _) = w.submit(root, "half", limited(HOUR), 40).unwrap();
    w.pass(10_000);
    assert_eq!((1, 40), (w.count(root, two, Phase::Running), w.count(root, half, Phase::Done)), "{:?}", why(&w, root, half));
}

#[test]
fn time_that_passes_is_no_news() {
    let told = |passes: bool| {
        let mut w = World::new();
        let (root, g) = (w.site("root"), w.site("g"));
        w.link(g, root);
        let mut agents = Vec::new();
        for k in 0..5 {
            agents.push(agent(&mut w, &format!("a{k}"), 1, g, HOUR));
            w.pass(1_000);
        }
        let before = w.sites[&g].core.parents[&root].advert_version;
        for s in 0..60 {
            let left = if passes { HOUR - s * 1_000 } else { HOUR };
            agents.iter().for_each(|a| w.agents.get_mut(a).unwrap().time_max_ms = left);
            w.pass(1_000);
        }
        (w.sites[&g].core.parents[&root].advert_version - before, time_at(&w, root, g)[0])
    };
    let ((idle, still), (adverts, left)) = (told(false), told(true));
    assert_eq!((idle, HOUR), (adverts, still));
    assert!((HOUR - MINUTE..HOUR - MINUTE / 2).contains(&left), "{left}");
}

#[test]
fn nothing_is_rented_for_what_a_new_machine_has_no_time_for() {
    let mut w = World::new();
    let (root, g) = (w.site("root"), w.site("g"));
    w.link(g, root);
    let kind =
        Rentable { machine: Machine { slots: 4, memory_bytes: 8 << 30, gpus: 0 }, architecture: "x86_64".into(), machines: 3, ..Rentable::default() };
    w.input(g, Input::ForRent(ForRent { types: vec![kind], time_max_ms: HOUR, ..ForRent::default() }));
    w.pass(500);
    assert_eq!(vec![HOUR], time_at(&w, root, g));
    let (far, _) = w.submit(root, "two", limited(2 * HOUR), 4).unwrap();
    let (long, _) = w.submit(g, "two", limited(2 * HOUR), 4).unwrap();
    let (short, _) = w.submit(g, "one", limited(HOUR), 2).unwrap();
    w.pass(500);
    let told = w.sites[&g].core.renting();
    assert_eq!(vec![(2, Some(HOUR))], told.waiting.iter().map(|w| (w.tasks, w.time_limit_ms)).collect::<Vec<_>>());
    assert_eq!(ReasonKind::NotRented, why(&w, g, short).0);
    for (site, job) in [(root, far), (g, long)] {
        let (kind, words) = why(&w, site, job);
        assert_eq!(ReasonKind::OverLimit, kind, "{words}");
        assert!(words.contains("asks for 2h") && words.contains("has 1h for a task"), "{words}");
    }
    // What a machine has that is there counts, too.
    agent(&mut w, "own", 4, g, 0);
    w.pass(5_000);
    assert_eq!((4, 4), (w.count(root, far, Phase::Done), w.count(g, long, Phase::Done)));
    // What is left on each is told, so that another can be rented for what finds no time.
    agent(&mut w, "short", 1, g, HOUR);
    w.pass(500);
    let left = w.sites[&g].core.renting().agents.into_iter().map(|a| (a.name, a.time_max_ms)).collect::<Vec<_>>();
    assert_eq!(vec![("own".to_string(), 0), ("short".to_string(), HOUR)], left);
}

#[test]
fn so_many_time_limits_of_one_user_may_wait() {
    let mut w = World::new();
    let root = w.site("root");
    // In all one user's jobs wait in so many shapes; one more shape is refused, and one more job of an old one is not.
    let mut n = 0;
    let refused = loop {
        n += 1;
        if let Err(why) = w.submit(root, &format!("k{n}"), limited(n * 30 * MINUTE), 1) {
            break why;
        }
        assert!(n < 2_000);
    };
    assert!(refused.message.contains("time limits"), "{refused}");
    assert!(w.submit(root, "again", limited(30 * MINUTE), 1).is_ok());
}
