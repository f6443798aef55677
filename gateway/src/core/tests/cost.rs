//! What a job may cost holds over the whole tree, whatever is lost on the way.

use std::collections::BTreeMap;

use intergrid_proto::link::{Down, EventKind, Hop, Kind, Known, Origin, Place, Up, Want, WantValue};
use intergrid_proto::share::Machine;
use intergrid_proto::spec::OnLost;
use intergrid_proto::{BlobHash, JobSpec, Money, Phase, ReasonKind, Share, SiteId, TaskSet, pb};
use proptest::prelude::*;

use super::rented::price_of;
use super::world::Message;
use super::{World, greeting, sleep};
use crate::backends::child_end::site_of;
use crate::core::Input;
use crate::core::orders::Order;
use crate::core::rent::{ForRent, Rentable};

/// One slot costs 1 USD in a second: 3,600 an hour.
const PRICE: u64 = 3_600_000_000;
const USD: u64 = 1_000_000;

/// Tasks of 200 ms, which may take 1 s: each costs 0.20 USD, and 1 at most.
fn capped(micro: u64) -> JobSpec {
    let mut spec = sleep(200);
    spec.time_limit_ms = Some(1_000);
    spec.max_cost = Some(Money { micro, currency: "USD".into() });
    spec
}

fn priced(w: &mut World, gateway: SiteId, prices: &[(&str, u64)]) {
    let prices: BTreeMap<_, _> = prices.iter().map(|(name, price)| (name.to_string(), price_of("small", *price, "USD"))).collect();
    w.input(gateway, Input::ForRent(ForRent { prices, ..ForRent::default() }));
}

/// A broker over brokers over a gateway with a rented machine of so many slots.
fn tower(w: &mut World, depth: usize, slots: u32) -> Vec<SiteId> {
    let gateway = w.site("g");
    w.agent("g-m1", slots, gateway);
    let mut sites = vec![gateway];
    for d in 0..depth {
        let broker = w.site(&format!("broker{d}"));
        w.link(sites[0], broker);
        sites.insert(0, broker);
    }
    priced(w, gateway, &[("g-m1", PRICE)]);
    w.pass(300);
    sites
}

fn cost(w: &World, site: SiteId, job: u64) -> pb::Cost {
    w.sites[&site].core.job_view(job, false).unwrap().cost.unwrap()
}

fn charged(w: &World, site: SiteId, job: u64) -> u64 {
    let cost = cost(w, site, job);
    cost.spent_micro + cost.reserved_micro
}

/// A gateway is told its machines' prices before it lets them in.
fn restart(w: &mut World, site: SiteId, gateway: SiteId) {
    let machine = site_of("g-m1");
    if site == gateway {
        w.above.remove(&machine);
    }
    w.restart(site);
    priced(w, gateway, &[("g-m1", PRICE)]);
    if site == gateway {
        w.link(machine, gateway);
    }
    w.pass(300);
}

fn why(w: &World, site: SiteId, job: u64) -> ReasonKind {
    ReasonKind::from_number(w.explanation(site, job).0.reasons[0].kind)
}

#[test]
fn no_more_is_placed_than_can_be_paid_and_what_is_not_used_is_there_again() {
    for depth in 0..3 {
        let mut w = World::new();
        let root = tower(&mut w, depth, 8)[0];
        let (job, _) = w.submit(root, "k", capped(3 * USD + USD / 2), 10).unwrap();
        w.pass(50);
        assert_eq!((0, 3 * USD), (cost(&w, root, job).spent_micro, cost(&w, root, job).reserved_micro), "depth {depth}");
        for _ in 0..100 {
            w.pass(50);
            assert!(charged(&w, root, job) <= 3 * USD + USD / 2);
            assert!(w.agents.values().all(|a| a.running().values().map(|t| t.len()).sum::<u64>() <= 3));
        }
        assert_eq!(10, w.count(root, job, Phase::Done), "depth {depth}: {:?}", w.explanation(root, job));
        let spent = cost(&w, root, job);
        assert!((2 * USD..=3 * USD).contains(&spent.spent_micro) && spent.reserved_micro == 0, "{spent:?}");
    }
}

#[test]
fn what_can_not_be_paid_waits_and_says_so() {
    let mut w = World::new();
    let root = tower(&mut w, 1, 8)[0];
    let (job, _) = w.submit(root, "k", capped(USD + USD / 2), 10).unwrap();
    w.pass(10_000);
    let done = w.count(root, job, Phase::Done);
    assert!((2..=3).contains(&done), "one after the other, until less than 1 USD is left: {done}");
    assert_eq!((ReasonKind::CostLimit, 10 - done), (why(&w, root, job), w.count(root, job, Phase::Queued)));
    for (key, cap) in [("free", 0), ("other", 100)] {
        let mut spec = capped(cap * USD);
        spec.max_cost.as_mut().unwrap().currency = if cap > 0 { "EUR".into() } else { "USD".into() };
        let (job, _) = w.submit(root, key, spec, 1).unwrap();
        w.pass(500);
        assert_eq!((ReasonKind::CostLimit, 1), (why(&w, root, job), w.count(root, job, Phase::Queued)), "{key}");
        let reason = w.explanation(root, job).0.reasons[0].clone();
        let told = (reason.text.contains("in EUR, as --max-cost 100.00 EUR is, but in USD"), reason.remedy.ends_with("with a --max-cost in USD"));
        assert_eq!((cap > 0, cap > 0), told, "{reason:?}");
    }
    // What costs nothing takes them all.
    let campus = w.site("campus");
    w.agent("c1", 2, campus);
    w.link(campus, root);
    w.pass(10_000);
    assert_eq!(10, w.count(root, job, Phase::Done));
}

#[test]
fn a_lost_attempt_counts_at_its_most_and_is_decided_of_where_the_account_is() {
    let mut w = World::new();
    let sites = tower(&mut w, 2, 8);
    let (root, gateway) = (sites[0], sites[2]);
    let (job, _) = w.submit(root, "k", capped(2 * USD + USD / 2), 1).unwrap();
    for spent in [USD, 2 * USD] {
        w.pass(100);
        assert_eq!(USD, cost(&w, root, job).reserved_micro);
        w.input(gateway, Input::Order { token: 1, order: Order::Gone { site: "g-m1".into(), by: "me".into() } });
        w.settle();
        assert_eq!(spent, cost(&w, root, job).spent_micro, "{:?}", w.explanation(root, job));
    }
    w.pass(5_000);
    assert_eq!((1, ReasonKind::CostLimit), (w.count(root, job, Phase::Queued), why(&w, root, job)));
    assert!(w.sites[&gateway].core.state().jobs.values().all(|j| j.open() == 0), "nothing waits below for another attempt");
}

/// A parent that is acted out by hand, and the share that it was told of.
fn acted_parent(w: &mut World, gateway: SiteId) -> (SiteId, Share) {
    let hop = Hop { site: site_of("p"), name: "p".into(), kind: Kind::Broker };
    let parent = hop.site;
    w.input(gateway, Input::ParentUp { parent, name: "p".into() });
    w.input(gateway, Input::ParentSays { parent, message: Down::Hello(greeting(hop, 5)) });
    let told = w.wire.iter().find_map(|(.., m)| if let Message::Up(Up::Advert(a)) = m { Some(a.shares[0].clone()) } else { None }).unwrap();
    (parent, told)
}

/// Placement `number` of its job on this share: what one attempt of these tasks may cost.
fn place(parent: SiteId, share: &Share, (number, job): (u64, u64), tasks: TaskSet, attempt_cost_max: u64) -> Input {
    let spec = capped(100 * USD).encode();
    let message = Down::Place(Box::new(Place {
        number,
        job,
        origin: Origin { site: parent, job: "j".into(), principal: "ann".into(), submitted_ms: 0 },
        spec_hash: BlobHash::of(&spec),
        spec,
        tasks,
        share: share.key.clone(),
        attempts: 0,
        want: Want { job, ..Want::default() },
        route: vec![parent],
        hops_left: 8,
        chain: Vec::new(),
        array_size: 10,
        attempt_cost_max,
        known: Known::Nothing,
    }));
    Input::ParentSays { parent, message }
}

#[test]
fn nothing_is_rented_for_what_may_cost_nothing() {
    let mut w = World::new();
    let gateway = w.site("g");
    let machine = Machine { slots: 4, memory_bytes: 1 << 34, gpus: 0 };
    let rented = Rentable { machine, machines: 2, price_micro_per_slot_hour: PRICE, currency: "USD".into(), ..Rentable::default() };
    w.input(gateway, Input::ForRent(ForRent { types: vec![rented], ..ForRent::default() }));
    w.pass(300);
    let (parent, share) = acted_parent(&mut w, gateway);
    for (number, tasks, attempt_cost_max) in [(1, TaskSet::range(0..3), 0), (2, TaskSet::one(9), USD)] {
        w.input(gateway, place(parent, &share, (number, 5), tasks, attempt_cost_max));
    }
    let waiting: Vec<u64> = w.sites[&gateway].core.renting().waiting.iter().map(|d| d.tasks).collect();
    assert_eq!(vec![1], waiting);
}

#[test]
fn a_machine_that_costs_more_than_the_parent_allows_is_not_used() {
    let mut w = World::new();
    let gateway = w.site("g");
    let agent = w.agent("g-m1", 4, gateway);
    priced(&mut w, gateway, &[("g-m1", PRICE)]);
    w.pass(300);
    let (parent, share) = acted_parent(&mut w, gateway);
    assert_eq!((PRICE, "USD"), (share.price_micro_per_slot_hour, share.currency.as_str()), "an attached machine has its price");
    for (number, attempt_cost_max) in [(1, USD - 1), (2, USD)] {
        w.input(gateway, place(parent, &share, (number, number), TaskSet::one(0), attempt_cost_max));
        w.pass(3_000);
        // The parent acknowledges nothing.
        let said: Vec<_> = w.sites[&gateway].core.state().links[&parent].outbox.iter().map(|e| e.3.what.clone()).collect();
        assert_eq!(number - 1, w.agents[&agent].starts().len() as u64);
        let back = said.iter().any(|e| matches!(e, EventKind::Returned(r) if r.kind == ReasonKind::CostLimit));
        let cost = said.iter().find_map(|e| if let EventKind::Ended(e) = e { e.cost_micro.first().copied() } else { None });
        assert_eq!((true, number == 2), (back, cost.is_some_and(|c| (USD / 5..USD / 3).contains(&c))), "{said:?}");
    }
    // One that may cost nothing does not keep another of its job.
    for (number, attempt_cost_max) in [(3, 0), (4, USD)] {
        w.input(gateway, place(parent, &share, (number, 3), TaskSet::one(number as u32 - 3), attempt_cost_max));
    }
    w.pass(100);
    assert_eq!(2, w.agents[&agent].starts().len());
}

/// The end of what was cancelled is not known either, where its machine is gone.
#[test]
fn what_is_lost_after_its_cancel_counts_at_its_most() {
    let mut w = World::new();
    let sites = tower(&mut w, 2, 8);
    let (root, gateway) = (sites[0], sites[2]);
    let (job, _) = w.submit(root, "k", capped(2 * USD), 3).unwrap();
    w.pass(50);
    w.cut(site_of("g-m1"), gateway);
    w.want(root, job, WantValue::Cancel, Some(TaskSet::one(0)));
    w.input(gateway, Input::Order { token: 1, order: Order::Gone { site: "g-m1".into(), by: "me".into() } });
    w.pass(500);
    assert_eq!((2 * USD, 1), (cost(&w, root, job).spent_micro, w.count(root, job, Phase::Cancelled)));
    assert_eq!(2, w.count(root, job, Phase::Queued));
}

/// Machines of one size, one of them rented.
#[test]
fn what_costs_nothing_is_told_apart_from_what_is_rented() {
    let mut w = World::new();
    let sites = tower(&mut w, 1, 2);
    let (root, gateway) = (sites[0], sites[1]);
    w.agent("own", 2, gateway);
    w.pass(300);
    let (free, _) = w.submit(root, "free", capped(0), 4).unwrap();
    w.pass(2_000);
    assert_eq!((4, 0), (w.count(root, free, Phase::Done), charged(&w, root, free)));
    assert!(w.agents[&site_of("g-m1")].starts().is_empty());
}

#[test]
fn an_account_survives_restarts_of_every_site() {
    for victim in 0..3 {
        let mut w = World::new();
        w.checkpoint = 7;
        let sites = tower(&mut w, 2, 8);
        let (root, gateway) = (sites[0], sites[2]);
        let (job, _) = w.submit(root, "k", capped(3 * USD), 12).unwrap();
        for _ in 0..60 {
            w.pass(150);
            let before = charged(&w, root, job);
            restart(&mut w, sites[victim], gateway);
            assert!(before <= 3 * USD && charged(&w, root, job) <= 3 * USD, "site {victim}");
        }
        let starts: usize = w.agents.values().map(|a| a.starts().len()).sum();
        assert!(starts as u64 * USD / 5 <= 3 * USD && w.count(root, job, Phase::Done) >= 2, "site {victim}: {starts}");
    }
}

#[derive(Clone, Debug)]
enum Deed {
    Pass(u64),
    Cut(usize),
    Gone,
    Restart(usize),
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![(1u64..20).prop_map(|n| Deed::Pass(n * 50)), (0usize..3).prop_map(Deed::Cut), Just(Deed::Gone), (0usize..3).prop_map(Deed::Restart),]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_cap_holds_whatever_is_lost(cap in 0u64..8, tasks in 1u32..20, free in any::<bool>(), requeue in any::<bool>(), deeds in proptest::collection::vec(deed(), 1..25)) {
        let cap = cap * USD;
        let mut w = World::new();
        let sites = tower(&mut w, 2, 4);
        let (root, gateway) = (sites[0], sites[2]);
        let paid = *w.agents.keys().next().unwrap();
        if free {
            w.agent("own", 1, gateway);
        }
        let mut spec = capped(cap);
        spec.on_lost = if requeue { OnLost::Requeue } else { OnLost::Wait };
        spec.disconnect_timeout_ms = 400;
        let (job, _) = w.submit(root, "k", spec, tasks).unwrap();
        for deed in deeds {
            match deed {
                Deed::Pass(ms) => w.pass(ms),
                Deed::Gone => {
                    w.input(gateway, Input::Order { token: 1, order: Order::Gone { site: "g-m1".into(), by: "me".into() } });
                    w.settle();
                }
                Deed::Cut(at) => {
                    let (child, parent) = [(sites[1], sites[0]), (sites[2], sites[1]), (paid, sites[2])][at];
                    w.cut(child, parent);
                    w.pass(600);
                    w.link(child, parent);
                }
                Deed::Restart(at) => restart(&mut w, sites[at], gateway),
            }
            prop_assert!(charged(&w, root, job) <= cap, "{:?} of {cap}", cost(&w, root, job));
            let starts = w.agents[&paid].starts().len() as u64;
            prop_assert!(starts * USD / 5 <= cap, "{starts} starts that cost 0.20 each, of {cap}");
        }
    }
}
