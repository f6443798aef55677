//! What comes late where a store was lost or went back: each test is a seed of the simulator that once failed, by hand.

use intergrid_proto::link::{Attempts, Down, Hello, Hop, Kind, Known, Origin, Place, Up, Want};
use intergrid_proto::spec::OnLost;
use intergrid_proto::{BlobHash, JobSpec, Phase, ReasonKind, SiteId, TaskSet, pb};
use prost::Message as _;

use super::super::{Input, rows};
use super::{Message, World, greeting, sleep, tower};
use crate::backends::child_end::site_of;
use crate::core::limits::RECOVERY_WAIT_MS;
use crate::store::Reader;
use crate::store::mem::MemDisk;

fn spec(on_lost: OnLost, ms: u64) -> JobSpec {
    JobSpec { on_lost, ..sleep(ms) }
}

fn starts(w: &World) -> usize {
    w.agents.values().map(|a| a.starts().len()).sum()
}

/// Seeds 3023, 5681 and 6774: a full state said that it is held, and the word of why was skipped with the events before it.
#[test]
fn what_nobody_claims_is_said_so_behind_a_full_state() {
    let mut w = World::new();
    let sites = tower(&mut w, 2);
    let (job, _) = w.submit(sites[0], "k", spec(OnLost::Wait, 60_000), 2).unwrap();
    w.pass(500);
    w.agents.clear();
    w.above.retain(|c, _| w.sites.contains_key(c));
    w.restart_with(sites[2], MemDisk::new());
    w.pass(500);
    w.cut(sites[2], sites[1]);
    w.pass(2 * RECOVERY_WAIT_MS);
    w.link(sites[2], sites[1]);
    w.pass(2_000);
    assert_eq!(2, w.count(sites[0], job, Phase::Held));
    for site in sites {
        let core = &w.sites[&site].core;
        assert_eq!(ReasonKind::EvidenceLost, core.why_held(*core.state().jobs.keys().next().unwrap()).kind, "at {}", core.me().name);
    }
}

/// Seed 4794: before its parent was back it had taken in so much that it knew of as many events as the parent had seen.
#[test]
fn a_copy_that_has_gone_on_is_known_to_be_old() {
    let mut w = World::new();
    let sites = tower(&mut w, 1);
    let (job, _) = w.submit(sites[0], "k", spec(OnLost::Wait, 1_000), 2).unwrap();
    w.pass(300);
    let copy = w.sites[&sites[1]].disk.copy();
    // That is an event: the register was stored.
    w.want(sites[0], job, intergrid_proto::link::WantValue::Hold, Some(TaskSet::one(0)));
    w.pass(100);
    w.cut(sites[1], sites[0]);
    w.above.remove(&sites[1]);
    w.restart_with(sites[1], copy);
    w.pass(3_000);
    w.link(sites[1], sites[0]);
    w.pass(2 * RECOVERY_WAIT_MS);
    assert_eq!((2, 2), (w.count(sites[0], job, Phase::Done), starts(&w)), "{:#?}", w.warned);
}

/// Seeds 5748 and 7027: a copy gave a number again before anybody could tell it that it is old, and took the ends of the one for those of the other.
#[test]
fn a_number_given_again_is_another_job() {
    let mut w = World::new();
    let g = w.site("g");
    let a = w.agent("a", 2, g);
    w.pass(200);
    let copy = w.sites[&g].disk.copy();
    let (first, _) = w.submit(g, "k", spec(OnLost::Wait, 100), 2).unwrap();
    w.pass(1_000);
    assert_eq!(2, w.count(g, first, Phase::Done));
    w.cut(a, g);
    w.above.remove(&a);
    w.restart_with(g, copy);
    let (second, existed) = w.submit(g, "other", spec(OnLost::Wait, 100), 2).unwrap();
    assert_eq!((first, false), (second, existed), "the case that this is about");
    w.link(a, g);
    w.pass(2 * RECOVERY_WAIT_MS);
    assert_eq!((2, 4), (w.count(g, second, Phase::Done), starts(&w)), "{:#?}", w.warned);
}

/// Seeds 41422 and 41556: an empty machine listed nothing, completely, and what its predecessor had was started again.
#[test]
fn what_an_empty_machine_does_not_list_proves_nothing() {
    for replaced in [true, false] {
        let mut w = World::new();
        let (root, g) = (w.site("root"), w.site("g"));
        let a = w.agent("a", 1, g);
        w.link(g, root);
        w.pass(300);
        w.submit(root, "before", spec(OnLost::Wait, 100), 1).unwrap();
        w.pass(500);
        let copy = w.sites[&g].disk.copy();
        let (job, _) = w.submit(root, "k", spec(OnLost::Wait, 2_000), 1).unwrap();
        w.pass(500);
        assert_eq!(1, w.sites[&g].core.state().placed_on[&a].len(), "it has begun");
        w.cut(a, g);
        if replaced {
            w.agents.remove(&a);
            w.above.remove(&a);
            w.agent("a", 1, g);
        }
        w.restart_with(g, copy);
        w.link(a, g);
        w.pass(2 * RECOVERY_WAIT_MS);
        let phase = if replaced { Phase::Held } else { Phase::Done };
        assert_eq!((1, u64::from(!replaced)), (w.count(root, job, phase), starts(&w) as u64 / 2), "{:#?}", w.warned);
    }
}

/// Seed 3235: what a fenced attempt used was told under the first name that the parent had for the job, also where that was an older store's.
#[test]
fn late_word_of_what_went_back_is_told_under_a_name_that_the_parent_knows() {
    let mut w = World::new();
    let (root, b, g) = (w.site("root"), w.site("b"), w.site("g"));
    let a = w.agent("a", 1, g);
    w.link(g, b);
    w.link(b, root);
    w.pass(300);
    let patient = JobSpec { disconnect_timeout_ms: 500, ..spec(OnLost::Requeue, 60_000) };
    w.submit(root, "k", patient, 1).unwrap();
    w.pass(500);
    w.restart_with(b, MemDisk::new());
    w.pass(RECOVERY_WAIT_MS);
    w.cut(a, g);
    w.pass(5_000);
    assert!(w.sites[&g].core.state().jobs.values().all(|j| j.open() == 0), "it went back");
    w.link(a, g);
    w.pass(1_000);
    let stale = |site: SiteId| {
        let mut n = 0;
        let disk = w.sites[&site].disk.open().unwrap();
        for job in w.sites[&site].core.state().jobs.keys() {
            let each = |_: &[u8], bytes: &[u8]| {
                n += u32::from(pb::HistoryEntry::decode(bytes).unwrap().stale);
                true
            };
            disk.scan(&rows::history_prefix(*job), &mut { each }).unwrap();
        }
        n
    };
    assert_eq!((2, 2, 2), (stale(g), stale(b), stale(root)), "that it was lost, and how it ended");
}

/// A gateway over an agent, and a parent of it that is acted out by hand.
struct Below {
    w: World,
    g: SiteId,
    hop: Hop,
    /// As it was advertised to the parent.
    share: String,
}

impl Below {
    fn new() -> Below {
        let mut w = World::new();
        let g = w.site("g");
        w.agent("a", 2, g);
        w.pass(200);
        Below { w, g, hop: Hop { site: site_of("p"), name: "p".into(), kind: Kind::Broker }, share: String::new() }
    }

    /// The parent connects: what the site's hello says of itself.
    fn attach(&mut self, knows: u64) -> Hello {
        self.w.input(self.g, Input::ParentUp { parent: self.hop.site, name: "p".into() });
        let hello = |m: &Message| if let Message::Up(Up::Hello(h)) = m { Some(h.clone()) } else { None };
        let said = self.w.wire.iter().find_map(|(.., m)| hello(m)).unwrap();
        self.says(Down::Hello(Hello { peer_incarnation: knows, ..greeting(self.hop.clone(), 5) }));
        said
    }

    fn says(&mut self, message: Down) {
        self.w.input(self.g, Input::ParentSays { parent: self.hop.site, message });
        let told = |m: &Message| if let Message::Up(Up::Advert(a)) = m { a.shares.first().map(|s| s.key.clone()) } else { None };
        self.share = self.w.wire.iter().find_map(|(.., m)| told(m)).unwrap_or(std::mem::take(&mut self.share));
        self.w.settle();
    }

    fn place(&mut self, number: u64, attempts: u32, spec: &JobSpec, known: Known) {
        let spec = spec.encode();
        let origin = Origin { site: self.hop.site, job: "j".into(), principal: "ann".into(), submitted_ms: 7 };
        let (spec_hash, share) = (BlobHash::of(&spec), self.share.clone());
        let (tasks, want, route) = (TaskSet::one(0), Want { job: 1, ..Want::default() }, vec![self.hop.site]);
        let (hops_left, chain, array_size) = (8, Vec::new(), 1);
        let place = Place {
            number,
            job: 1,
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
        };
        self.says(Down::Place(Box::new(place)));
        self.w.pass(500);
    }
}

/// Seed 6731: it had recovered, as far as it knew, before its parent was back, and then said that what it had forgotten is lost.
#[test]
fn a_parent_that_did_not_get_to_say_what_it_holds_is_asked_again() {
    let mut b = Below::new();
    assert!(b.attach(0).recovering, "the first time: nothing is known of it");
    b.says(Down::Resent);
    b.says(Down::Hello(greeting(b.hop.clone(), 5)));
    let old = b.w.sites[&b.g].core.state().incarnation;
    b.w.restart_with(b.g, MemDisk::new());
    assert!(b.attach(old).recovering);
    // The link breaks before it has.
    b.w.input(b.g, Input::ParentGone { parent: b.hop.site });
    b.w.pass(2 * RECOVERY_WAIT_MS);
    assert!(!b.w.sites[&b.g].core.state().recovering);
    assert!(b.attach(old).recovering, "it is asked again");
    b.says(Down::Resent);
    b.w.restart(b.g);
    assert!(!b.attach(b.w.sites[&b.g].core.state().incarnation).recovering, "once is enough");
}

/// Seed 7313: an attempt that the parent had counted as lost was taken for the next one.
#[test]
fn a_lost_attempt_is_not_taken_for_the_next_one() {
    for (attempts, started) in [(1, 2), (0, 1)] {
        let mut b = Below::new();
        let spec = spec(OnLost::Requeue, 60_000);
        b.attach(0);
        b.says(Down::Resent);
        b.place(1, 0, &spec, Known::Nothing);
        assert_eq!(1, starts(&b.w), "{:#?}", b.w.sites[&b.g].core.state().jobs);
        let old = b.w.sites[&b.g].core.state().incarnation;
        b.w.restart_with(b.g, MemDisk::new());
        b.attach(old);
        b.says(Down::Stale(vec![Attempts { number: 1, job: 1, tasks: TaskSet::one(0) }]));
        b.says(Down::Resent);
        b.place(2, attempts, &spec, Known::Nothing);
        b.w.pass(1_000);
        assert_eq!(started, starts(&b.w), "{attempts} used");
    }
}

/// Seed 24847: the copy was made before its machines came, and of these the one that was back first had never been given anything.
#[test]
fn a_copy_is_known_to_be_old_by_a_child_that_it_does_not_know() {
    let mut w = World::new();
    let g = w.site("g");
    w.agent("a0", 1, g);
    w.pass(300);
    let (job, _) = w.submit(g, "k", spec(OnLost::Wait, 20_000), 2).unwrap();
    w.pass(300);
    let copy = w.sites[&g].disk.copy();
    let away = w.agent("a1", 1, g);
    w.pass(300);
    w.agent("a2", 1, g);
    w.pass(300);
    assert_eq!(2, starts(&w));
    w.cut(away, g);
    let (machine, above) = (w.agents.remove(&away).unwrap(), w.above.remove(&away).unwrap());
    w.restart_with(g, copy);
    assert!(w.sites[&g].core.state().recovering, "{:#?}", w.warned);
    w.pass(3 * RECOVERY_WAIT_MS);
    assert_eq!(1, starts(&w), "of those that are back, one: what the other has is on the one that is away");
    w.agents.insert(away, machine);
    w.above.insert(away, above);
    w.link(away, g);
    w.pass(30_000);
    assert_eq!((2, 2), (starts(&w), w.count(g, job, Phase::Done)), "{:#?}", w.warned);
}

/// Seed 35939: between the loss of its parent's store and its adoption it used up its attempts, and nobody above was told.
#[test]
fn what_used_up_its_attempts_as_an_orphan_is_known_above() {
    let mut w = World::new();
    let sites = tower(&mut w, 2);
    let (root, broker, gateway) = (sites[0], sites[1], sites[2]);
    let (attempts_max, disconnect_timeout_ms) = (1, 500);
    let (job, _) = w.submit(root, "k", JobSpec { attempts_max, disconnect_timeout_ms, ..spec(OnLost::Requeue, 60_000) }, 1).unwrap();
    w.pass(300);
    let agents: Vec<SiteId> = w.agents.keys().copied().collect();
    agents.iter().for_each(|a| w.cut(*a, gateway));
    w.pass(300);
    w.cut(broker, root);
    let above = w.above.remove(&broker).unwrap();
    w.restart_with(broker, MemDisk::new());
    w.pass(300);
    let state = |w: &World| w.sites[&gateway].core.state().jobs.values().map(|j| (j.count(Phase::Held), j.open())).collect::<Vec<_>>();
    assert_eq!(vec![(1, 1)], state(&w), "given up here, for a parent that does not know it");
    w.above.insert(broker, above);
    w.link(broker, root);
    w.pass(500);
    assert_eq!((1, vec![(0, 0)]), (w.count(root, job, Phase::Held), state(&w)), "{:#?}", w.warned);
    assert_eq!(ReasonKind::AttemptsUsed, w.sites[&root].core.why_held(job).kind);
    agents.iter().for_each(|a| w.link(*a, gateway));
    w.want(root, job, intergrid_proto::link::WantValue::Run, None);
    w.pass(2 * RECOVERY_WAIT_MS + 60_000);
    w.check();
    assert_eq!(1, w.count(root, job, Phase::Done), "{:#?}", w.warned);
}

/// Seed 47782: those below had said how it ended, under the name that the copy had for it, before its parent said the one that it had got since.
#[test]
fn what_has_ended_under_an_older_name_of_its_parent_is_not_started_again() {
    let mut b = Below::new();
    b.attach(0);
    b.says(Down::Resent);
    b.w.submit(b.g, "busy", spec(OnLost::Wait, 3_000), 2).unwrap();
    b.w.pass(100);
    b.place(1, 0, &spec(OnLost::Wait, 500), Known::Nothing);
    let of_parent =
        |w: &World, g: SiteId| w.sites[&g].core.state().jobs.values().find(|j| j.parent.is_some()).map(|j| (j.open(), j.count(Phase::Done)));
    assert_eq!(Some((1, 0)), of_parent(&b.w, b.g), "it waits");
    let (copy, knows) = (b.w.sites[&b.g].disk.copy(), b.w.sites[&b.g].core.state().incarnation);
    b.w.pass(3_500);
    assert_eq!(Some((0, 0)), of_parent(&b.w, b.g), "it went back");
    b.place(2, 0, &spec(OnLost::Wait, 500), Known::Nothing);
    b.w.pass(1_000);
    assert_eq!((3, Some((0, 1))), (starts(&b.w), of_parent(&b.w, b.g)));
    b.w.restart_with(b.g, copy);
    b.w.pass(1_000);
    assert!(b.attach(knows).recovering);
    b.place(2, 0, &spec(OnLost::Wait, 500), Known::Perhaps);
    b.w.wire.clear();
    b.says(Down::Resent);
    b.w.pass(2 * RECOVERY_WAIT_MS);
    assert_eq!((3, Some((0, 1))), (starts(&b.w), of_parent(&b.w, b.g)), "{:#?}", b.w.warned);
}
