//! One core and a child that is acted out by hand, message by message: what a perfect child would never say.

use std::sync::Arc;

use intergrid_proto::link::{
    Attempts, Down, Ended, Event, EventKind, Events, Former, Hello, Hop, Kind, Known, Origin, Orphan, Orphans, Place, Resync, ResyncRange, Up, Want,
    WantValue,
};
use intergrid_proto::spec::OnLost;
use intergrid_proto::{BlobHash, JobSpec, Phase, Reason, ReasonKind, RefusalKind, SiteId, TaskSet};

use super::super::state::Spec;
use super::super::{Input, rows};
use super::{Message, World, greeting, tower};
use crate::backends::child_end::{ChildEnd, site_of};
use crate::store::Reader;

/// A gateway acted out by hand, with room for two.
struct Hand {
    root: SiteId,
    me: SiteId,
    sequence: u64,
}

impl Hand {
    fn attach(w: &mut World, root: SiteId) -> Hand {
        let hop = Hop { site: site_of("g"), name: "g".into(), kind: Kind::Gateway };
        let me = hop.site;
        let mut end = ChildEnd::new(hop, 3, 2, 8 << 30);
        let Some(Up::Hello(hello)) = end.attach().pop() else { panic!("a hello") };
        w.input(root, Input::ChildUp { child: me, hello: hello.clone() });
        let adverts = end.down(Down::Hello(Hello { peer_incarnation: 3, ..hello }), 1);
        adverts.into_iter().for_each(|message| w.input(root, Input::ChildSays { child: me, message }));
        Hand { root, me, sequence: 0 }
    }

    /// What the root places there, once it does.
    fn place(&self, w: &mut World) -> Place {
        for _ in 0..200 {
            let placed = w.wire.drain(..).find_map(|(.., m)| if let Message::Down(Down::Place(p)) = m { Some(p) } else { None });
            match placed {
                Some(p) => return *p,
                None => w.now.mono_ms += 50,
            }
            w.input(self.root, Input::Tick);
        }
        panic!("nothing was placed within 10 s");
    }

    fn says(&mut self, w: &mut World, place: &Place, what: EventKind) {
        self.sequence += 1;
        let of = Attempts { number: place.number, job: place.job, tasks: place.tasks.clone() };
        let events = Events { incarnation: 3, first: self.sequence, events: vec![Event { of, what }] };
        w.input(self.root, Input::ChildSays { child: self.me, message: Up::Events(events) });
    }
}

fn returned(kind: ReasonKind) -> EventKind {
    EventKind::Returned(Reason::new(kind, ""))
}

/// A child that gives work back may have dropped the spec with it: a placement without its bytes would then be refused for ever.
#[test]
fn a_placement_after_a_return_brings_its_spec_again() {
    let mut w = World::new();
    let root = w.site("root");
    let mut g = Hand::attach(&mut w, root);
    let spec = Arc::new(Spec { bytes: JobSpec::new(["true"]).encode(), parsed: JobSpec::new(["true"]) });
    w.submit_as(root, "user", "k", spec, 1);
    let first = g.place(&mut w);
    g.says(&mut w, &first, returned(ReasonKind::NoFit));
    let second = g.place(&mut w);
    assert!(second.number > first.number && !first.spec.is_empty() && second.spec == first.spec);
}

#[test]
fn pauses_grow_with_each_return_and_end_with_success() {
    let mut w = World::new();
    let root = w.site("root");
    let mut g = Hand::attach(&mut w, root);
    let spec = Arc::new(Spec { bytes: JobSpec::new(["true"]).encode(), parsed: JobSpec::new(["true"]) });
    w.submit_as(root, "user", "k", spec, 1_000);
    let mut pauses = |w: &mut World, takes: bool| -> Vec<u64> {
        let mut pause = |_| {
            let p = g.place(w);
            if takes {
                g.says(w, &p, EventKind::Accepted);
            }
            let since = w.now.mono_ms;
            g.says(w, &p, returned(ReasonKind::OverCredit));
            while w.now.mono_ms < since + 5_000 && !w.wire.iter().any(|(.., m)| matches!(m, Message::Down(Down::Place(_)))) {
                w.now.mono_ms += 10;
                w.input(root, Input::Tick);
            }
            w.now.mono_ms - since
        };
        (0..6).map(&mut pause).collect()
    };
    assert_eq!([50, 100, 200, 400, 800, 1_000], *pauses(&mut w, false));
    assert_eq!([50; 6], *pauses(&mut w, true));
}

/// All that was under way when a share was found full comes back at once: that is one pause, not one for each, doubled.
#[test]
fn placements_that_come_back_together_make_one_pause() {
    let mut w = World::new();
    let root = w.site("root");
    let mut g = Hand::attach(&mut w, root);
    let spec = Arc::new(Spec { bytes: JobSpec::new(["true"]).encode(), parsed: JobSpec::new(["true"]) });
    let both = ["ann", "bob"].map(|user| {
        w.submit_as(root, user, "k", spec.clone(), 1);
        g.place(&mut w)
    });
    let since = w.now.mono_ms;
    both.iter().for_each(|p| g.says(&mut w, p, returned(ReasonKind::OverCredit)));
    g.place(&mut w);
    assert_eq!(50, w.now.mono_ms - since);
}

/// Work of one shape waits together. That one user is refused there must not keep the others away; nor that his limit is reached somewhere below: what it
/// leaves free is for others, who are not to wait until those who came first have had enough.
#[test]
fn a_refusal_or_a_limit_of_one_user_keeps_nobody_else_away() {
    let limit =
        Reason::new(ReasonKind::BackOff, "batch gave work back").because(vec![Reason::new(ReasonKind::OverLimit, "2 slots of one principal")]);
    let why = Reason::new(ReasonKind::AllBusy, "every share that fits is full").because(vec![limit]);
    let limit = EventKind::Returned(Reason::new(ReasonKind::OverCredit, "could not be started here in time").because(vec![why]));
    // A limit lasts until something there has ended.
    for (back, again_ms) in [(returned(ReasonKind::NotAuthorised), 5_000..=u64::MAX), (limit, 1..=1_000)] {
        let mut w = World::new();
        let root = w.site("root");
        let mut g = Hand::attach(&mut w, root);
        let spec = Arc::new(Spec { bytes: JobSpec::new(["true"]).encode(), parsed: JobSpec::new(["true"]) });
        w.submit_as(root, "bob", "k", spec.clone(), 1);
        let of_bob = g.place(&mut w);
        g.says(&mut w, &of_bob, back);
        w.submit_as(root, "ann", "k", spec, 1);
        let since = w.now.mono_ms;
        assert_eq!("ann", g.place(&mut w).origin.principal);
        assert_eq!(since, w.now.mono_ms, "at once");
        assert_eq!("bob", g.place(&mut w).origin.principal, "he is tried again later");
        assert!(again_ms.contains(&(w.now.mono_ms - since)), "{}", w.now.mono_ms - since);
    }
}

/// A full state names every end again: what is known already must not be counted a second time, here or above.
#[test]
fn a_full_state_adds_nothing_to_history_that_is_there() {
    let mut w = World::new();
    let sites = tower(&mut w, 2);
    let (job, _) = w.submit(sites[0], "k", JobSpec::new(["true"]), 20).unwrap();
    w.pass(5_000);
    assert_eq!(20, w.count(sites[0], job, Phase::Done));
    let history = |w: &World| {
        let mut entries = Vec::new();
        for s in w.sites.values() {
            let mut n = 0;
            let mut count = |_: &[u8], _: &[u8]| {
                n += 1;
                true
            };
            for j in s.core.state().jobs.keys() {
                s.disk.open().unwrap().scan(&rows::history_prefix(*j), &mut count).unwrap();
            }
            entries.push(n);
        }
        entries
    };
    let before = history(&w);
    for (child, parent) in [(sites[2], sites[1]), (sites[1], sites[0])] {
        w.input(child, Input::ParentSays { parent, message: Down::Resync });
        w.settle();
    }
    w.pass(1_000);
    assert_eq!(before, history(&w));
}

#[test]
fn no_history_row_takes_the_place_of_another() {
    let mut w = World::new();
    let site = w.site("root");
    let mut keys = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let now = w.now;
        let core = &mut w.sites.get_mut(&site).unwrap().core;
        (0..3).for_each(|_| core.history(1, Default::default()));
        keys.extend(core.turn(now).batch.rows.into_iter().map(|(key, _)| key));
    }
    assert_eq!(9, keys.len());
}

/// A parent that has lost its store never asks for its old jobs again: they run on, and whoever runs the site can end them.
#[test]
fn an_orphan_runs_on_until_it_is_ended_here() {
    let mut w = World::new();
    let g = w.site("g");
    let a = w.agent("a", 2, g);
    w.pass(200);
    let hop = Hop { site: site_of("p"), name: "p".into(), kind: Kind::Broker };
    let parent = hop.site;
    let attach = |w: &mut World, incarnation: u64| {
        let hello = greeting(hop.clone(), incarnation);
        w.input(g, Input::ParentUp { parent, name: "p".into() });
        w.input(g, Input::ParentSays { parent, message: Down::Hello(hello) });
        w.wire.iter().find_map(|(.., m)| if let Message::Up(Up::Advert(a)) = m { Some(a.shares[0].key.clone()) } else { None }).unwrap()
    };
    let share = attach(&mut w, 5);
    let spec = JobSpec::new(["sleep", "3600"]).encode();
    let place = Place {
        number: 1,
        job: 1,
        origin: Origin { site: parent, job: "j".into(), principal: "ann".into(), submitted_ms: 0 },
        spec_hash: BlobHash::of(&spec),
        spec,
        tasks: TaskSet::one(0),
        share,
        attempts: 0,
        want: Want { job: 1, ..Want::default() },
        route: vec![parent],
        hops_left: 8,
        chain: Vec::new(),
        array_size: 1,
        attempt_cost_max: 0,
        known: Known::Nothing,
    };
    w.input(g, Input::ParentSays { parent, message: Down::Place(Box::new(place)) });
    w.pass(200);
    assert_eq!(1, w.agents[&a].running().len());
    let end = |w: &mut World| {
        w.input(g, Input::SetWant { token: 9, job: 1, value: WantValue::Cancel, tasks: None });
        w.pass(500);
        w.wanted.remove(&9).unwrap().map_err(|r| r.kind)
    };
    assert_eq!(Err(RefusalKind::NotAuthorised), end(&mut w), "it is its parent's");
    w.input(g, Input::ParentGone { parent });
    attach(&mut w, 6);
    w.pass(5_000);
    assert_eq!(1, w.agents[&a].running().len(), "it runs on");
    assert_eq!(Ok(1), end(&mut w));
    assert_eq!((0, 1), (w.agents[&a].running().len(), w.count(g, 1, Phase::Cancelled)));
}

/// Seed 4740: a full state may be as of an event that was taken in before; and seeds 1367 and 1752: what is held there is in it, and what is not any more.
#[test]
fn a_full_state_moves_no_cursor_back_and_says_what_is_held() {
    let mut w = World::new();
    let root = w.site("root");
    let mut g = Hand::attach(&mut w, root);
    let spec = Arc::new(Spec { bytes: JobSpec::new(["true"]).encode(), parsed: JobSpec::new(["true"]) });
    w.submit_as(root, "user", "k", spec, 1);
    let place = g.place(&mut w);
    g.says(&mut w, &place, EventKind::Accepted);
    g.says(&mut w, &place, EventKind::WantStored { version: 1 });
    let full = |w: &mut World, phase| {
        let of = Attempts { number: place.number, job: place.job, tasks: place.tasks.clone() };
        let resync = Resync { incarnation: 3, sequence: 1, ranges: vec![ResyncRange { of, phase, ended: None }], last: true };
        w.input(root, Input::ChildSays { child: g.me, message: Up::Resync(resync) });
        (w.sites[&root].core.state().cursors[&g.me].sequence, w.count(root, place.job, Phase::Held))
    };
    assert_eq!((2, 1), full(&mut w, Phase::Held));
    assert_eq!((2, 0), full(&mut w, Phase::Placed));
}

/// Seed 7071: that a machine's new store has said all that it knows does not make it the store that took what came before.
#[test]
fn a_second_full_state_of_a_new_store_gives_nothing_back() {
    let mut w = World::new();
    w.checkpoint = 1;
    let root = w.site("root");
    let mut g = Hand::attach(&mut w, root);
    let mut spec = JobSpec::new(["true"]);
    spec.on_lost = OnLost::Wait;
    w.submit_as(root, "user", "k", Arc::new(Spec { bytes: spec.encode(), parsed: spec }), 1);
    let place = g.place(&mut w);
    g.says(&mut w, &place, EventKind::Accepted);
    let again = |w: &mut World| {
        let hop = Hop { site: g.me, name: "g".into(), kind: Kind::Agent };
        let Some(Up::Hello(hello)) = ChildEnd::new(hop, 4, 2, 8 << 30).attach().pop() else { panic!("a hello") };
        w.input(root, Input::ChildUp { child: g.me, hello });
        for _ in 0..2 {
            let resync = Resync { incarnation: 4, sequence: 0, ranges: Vec::new(), last: true };
            w.input(root, Input::ChildSays { child: g.me, message: Up::Resync(resync) });
        }
        w.count(root, place.job, Phase::Placed)
    };
    assert_eq!(1, again(&mut w), "it may have started");
    w.restart(root);
    assert_eq!(1, again(&mut w), "nor after a restart");
}

/// What was released here and is held below is told as that until the site below has said otherwise.
#[test]
fn a_released_task_is_not_said_to_be_lost() {
    let mut w = World::new();
    let root = w.site("root");
    let mut g = Hand::attach(&mut w, root);
    let spec = Arc::new(Spec { bytes: JobSpec::new(["true"]).encode(), parsed: JobSpec::new(["true"]) });
    w.submit_as(root, "user", "k", spec, 1);
    let place = g.place(&mut w);
    g.says(&mut w, &place, EventKind::Accepted);
    let kind = |w: &World| (w.count(root, place.job, Phase::Held), w.sites[&root].core.why_held(place.job).kind);
    w.input(root, Input::SetWant { token: 98, job: place.job, value: WantValue::Hold, tasks: None });
    g.says(&mut w, &place, EventKind::Held(Reason::new(ReasonKind::HeldByUser, "on hold")));
    assert_eq!((1, ReasonKind::HeldByUser), kind(&w));
    w.input(root, Input::SetWant { token: 99, job: place.job, value: WantValue::Run, tasks: None });
    assert_eq!((1, ReasonKind::NotYetScheduled), kind(&w));
    g.says(&mut w, &place, EventKind::Released);
    assert_eq!(0, w.count(root, place.job, Phase::Held));
    // And what is lost below says so, whatever else comes back, and after a restart.
    g.says(&mut w, &place, EventKind::Held(Reason::new(ReasonKind::EvidenceLost, "nobody claims it")));
    assert_eq!((1, ReasonKind::EvidenceLost), kind(&w));
    w.restart(root);
    assert_eq!((1, ReasonKind::EvidenceLost), kind(&w));
}

/// A copy that lacks nothing but what it had acknowledged: the last end of a child.
#[test]
fn an_old_copy_is_known_by_what_it_acknowledged() {
    for (acknowledged, old) in [(1, false), (2, true)] {
        let mut w = World::new();
        let root = w.site("root");
        let mut g = Hand::attach(&mut w, root);
        let spec = Arc::new(Spec { bytes: JobSpec::new(["true"]).encode(), parsed: JobSpec::new(["true"]) });
        w.submit_as(root, "user", "k", spec, 1);
        let place = g.place(&mut w);
        g.says(&mut w, &place, EventKind::Accepted);
        w.restart(root);
        let incarnation = w.sites[&root].core.state().incarnation;
        let hop = Hop { site: g.me, name: "g".into(), kind: Kind::Gateway };
        let (peer_sequence, peer_placement) = (acknowledged, place.number);
        let hello = Hello { peer_incarnation: incarnation, peer_sequence, peer_placement, sequence_low: 3, sequence_high: 2, ..greeting(hop, 3) };
        w.input(root, Input::ChildUp { child: g.me, hello });
        let state = w.sites[&root].core.state();
        assert_eq!((old, old), (state.recovering, state.incarnation != incarnation), "acknowledged up to {acknowledged}");
    }
}

/// Seed 2795: a site that went back to an old copy says an end again that its parent has counted, as one of an attempt that counts no more.
#[test]
fn the_end_that_a_task_ended_with_is_counted_once() {
    let mut w = World::new();
    let root = w.site("root");
    let mut g = Hand::attach(&mut w, root);
    let spec = Arc::new(Spec { bytes: JobSpec::new(["true"]).encode(), parsed: JobSpec::new(["true"]) });
    w.submit_as(root, "user", "k", spec, 1);
    let place = g.place(&mut w);
    let ended = |attempts, stale| {
        let ended = Ended::not_started(Phase::Done, Reason::new(ReasonKind::ExitUnknown, ""), attempts);
        EventKind::Ended(Ended { exit: vec![0], cpu_us: vec![7], reason: None, stale, ..ended })
    };
    let counted = |w: &World| {
        let (mut n, store) = (0, w.sites[&root].disk.open().unwrap());
        store
            .scan(&rows::history_prefix(place.job), &mut |_, _| {
                n += 1;
                true
            })
            .unwrap();
        n
    };
    g.says(&mut w, &place, ended(2, false));
    assert_eq!(1, counted(&w));
    let hop = Hop { site: g.me, name: "g".into(), kind: Kind::Gateway };
    w.input(root, Input::ChildUp { child: g.me, hello: greeting(hop, 4) });
    let again = |w: &mut World, first, what| {
        let of = Attempts { number: place.number, job: place.job, tasks: place.tasks.clone() };
        let events = Events { incarnation: 4, first, events: vec![Event { of, what }] };
        w.input(root, Input::ChildSays { child: g.me, message: Up::Events(events) });
    };
    again(&mut w, 1, ended(2, true));
    assert_eq!(1, counted(&w), "it is the same");
    again(&mut w, 2, ended(1, true));
    assert_eq!(2, counted(&w), "an earlier attempt's is another");
}

/// Seed 697: a number that a lost store had given to a job is not given to the first job of the new one.
#[test]
fn a_new_store_does_not_begin_with_the_numbers_of_the_last() {
    let first = |fresh: u64| {
        let hop = Hop { site: site_of("root"), name: "root".into(), kind: Kind::Gateway };
        let disk = crate::store::mem::MemDisk::new();
        let policy = Box::new(crate::core::schedule::FirstFit);
        let core = crate::core::Core::load(hop, &disk.open().unwrap(), policy, Default::default(), fresh).unwrap();
        core.state().next_job
    };
    let (a, b) = (first(77 << 24), first(78 << 24));
    assert!(a.abs_diff(b) >= crate::core::limits::JOBS_SKIPPED, "{a} {b}");
    assert_eq!(6, intergrid_proto::JobNo(first(u64::MAX) + 1).id().len());
}

/// Seed 46488: a crash lost a placement that was to take over what runs, and before it was sent again the site had another incarnation.
#[test]
fn what_is_taken_over_is_taken_over_again_where_its_child_has_not_heard_of_it() {
    let mut w = World::new();
    let root = w.site("root");
    let mut g = Hand::attach(&mut w, root);
    let spec = Arc::new(Spec { bytes: JobSpec::new(["true"]).encode(), parsed: JobSpec::new(["true"]) });
    w.submit_as(root, "user", "k", spec, 1);
    let copy = w.sites[&root].disk.copy();
    let place = g.place(&mut w);
    g.says(&mut w, &place, EventKind::Accepted);
    let incarnation = |w: &World| w.sites[&root].core.state().incarnation;
    let former = Former { incarnation: incarnation(&w), number: place.number, job: place.job };
    let list = |w: &mut World, peer_incarnation: u64, peer_placement: u64| {
        let hop = Hop { site: g.me, name: "g".into(), kind: Kind::Gateway };
        let hello = Hello { peer_incarnation, peer_placement, ..greeting(hop, 3) };
        // The first finds out that the store is old.
        (0..2).for_each(|_| w.input(root, Input::ChildUp { child: g.me, hello: hello.clone() }));
        let (origin, spec_hash, share, tasks) = (place.origin.clone(), place.spec_hash, place.share.clone(), place.tasks.clone());
        let orphan = Orphan { former, origin, spec_hash, array_size: 1, tasks, phase: Phase::Running, share, cost: 1, attempts: 0 };
        let list = Orphans { orphans: vec![orphan], last: true, complete_from: 0 };
        w.input(root, Input::ChildSays { child: g.me, message: Up::Orphans(list) });
        let placed = w.wire.drain(..).filter_map(|(.., m)| if let Message::Down(Down::Place(p)) = m { Some(p.known) } else { None });
        placed.collect::<Vec<_>>()
    };
    w.restart_with(root, copy);
    assert_eq!(vec![Known::As(former)], list(&mut w, former.incarnation, 1_000));
    let second = incarnation(&w);
    assert_ne!(former.incarnation, second);
    w.restart(root);
    assert_eq!(vec![Known::As(former)], list(&mut w, second, 2_000));
    assert_ne!(second, incarnation(&w));
}
