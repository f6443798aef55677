//! What could be rented, as the core tells it, and what the provisioner is told.

use std::sync::Arc;

use intergrid_proto::link::{Hop, Kind, ShapeDemand, WantValue};
use intergrid_proto::share::Machine;
use intergrid_proto::{JobSpec, Money, Phase, Reason, ReasonKind, RefusalKind, SiteId};

use super::orders::order;
use super::room::full;
use super::{World, site_of, sleep};
use crate::backends::child_end::ChildEnd;
use crate::core::Input;
use crate::core::orders::Order;
use crate::core::rent::{ForRent, MachinePrice, Rentable};
use crate::core::schedule::{Burst, FirstFit, Plan, Policy, Problem};
use crate::core::state::Spec;

fn kind(slots: u32, machines: u64, currency: &str) -> Rentable {
    Rentable {
        kind: format!("m{slots}"),
        machine: Machine { slots, memory_bytes: 8 << 30, gpus: 0 },
        architecture: "x86_64".into(),
        machines,
        price_micro_per_slot_hour: if currency.is_empty() { 0 } else { 25_000 },
        currency: currency.into(),
        no_more: String::new(),
        in_doubt: String::new(),
    }
}

/// The price of a machine, per slot and hour.
pub(super) fn price_of(kind: &str, micro_per_slot_hour: u64, currency: &str) -> MachinePrice {
    MachinePrice { kind: kind.into(), micro_per_slot_hour, currency: currency.into(), ..MachinePrice::default() }
}

/// A machine that was rented as this.
fn rented_as(t: &Rentable) -> MachinePrice {
    MachinePrice { machine: t.machine, ..price_of(&t.kind, t.price_micro_per_slot_hour, &t.currency) }
}

fn wide(slots: u32) -> JobSpec {
    let mut spec = sleep(100);
    spec.shape.slots = slots;
    spec
}

#[test]
fn what_could_be_rented_is_offered_upward_before_it_is_there() {
    let mut w = World::new();
    let (root, g) = (w.site("root"), w.site("g"));
    w.link(g, root);
    w.input(g, Input::ForRent(ForRent { types: vec![kind(4, 3, "EUR")], ..ForRent::default() }));
    w.pass(500);
    let shares: Vec<_> = w.sites[&root].core.children[&g].shares.iter().map(|(_, s)| s).collect();
    let [share] = shares[..] else { panic!("{shares:?}") };
    assert_eq!((12, 12, 4), (share.slots_total, share.slots_free, share.largest_free));
    assert_eq!((25_000, "EUR"), (share.price_micro_per_slot_hour, share.currency.as_str()));

    let (job, _) = w.submit(root, "k", wide(4), 2).unwrap();
    let (odd, _) = w.submit(root, "odd", wide(64), 1).unwrap();
    w.pass(500);
    assert_eq!(2, w.sites[&root].core.state().jobs[&job].downs.values().map(|d| d.open).sum::<u64>(), "it came for them");
    let told = w.sites[&g].core.renting();
    assert_eq!(vec![(4, 2)], told.waiting.iter().map(|w| (w.shape.slots, w.tasks)).collect::<Vec<_>>());
    let reason = |site, job| ReasonKind::from_number(w.explanation(site, job).0.reasons[0].kind);
    assert_eq!(ReasonKind::NoFit, reason(root, odd));
    let below = *w.sites[&g].core.state().jobs.keys().next().unwrap();
    assert_eq!(ReasonKind::NotRented, reason(g, below));
}

/// A job may wait for it: it is to be asked about when it is submitted.
#[test]
fn what_is_away_is_quoted_at_what_it_cost() {
    let (mut w, [root, eu, g], offer) = two_hops("");
    let quoted = |w: &World| {
        let shares = w.sites[&root].core.quote(&wide(4));
        shares.into_iter().map(|s| (s.price_micro_per_slot_hour, s.slots_free, s.away)).collect::<Vec<_>>()
    };
    let (there, away) = (vec![(25_000, 8, false)], vec![(25_000, 0, true)]);
    assert_eq!(there, quoted(&w));
    for (child, parent) in [(g, eu), (eu, root)] {
        w.cut(child, parent);
        w.pass(500);
        assert_eq!(away, quoted(&w));
        w.link(child, parent);
        w.input(g, offer("slots: no more than 8", ""));
        w.pass(500);
        assert_eq!(there, quoted(&w));
    }
    w.cut(eu, root);
    w.now.mono_ms += 25 * 3_600_000;
    w.input(root, Input::Tick);
    assert!(quoted(&w).is_empty(), "not for ever");
}

/// `root` over `eu` over `g`, which could rent two machines, and tells which limit forbids a third.
fn two_hops(limit: &str) -> (World, [SiteId; 3], impl Fn(&str, &str) -> Input) {
    let mut w = World::new();
    let (root, eu, g) = (w.site("root"), w.site("eu"), w.site("g"));
    w.link(g, eu);
    w.link(eu, root);
    let offer = |limit: &str, evidence: &str| {
        let types = vec![Rentable { no_more: limit.into(), ..kind(4, 2, "EUR") }];
        let unmet = vec![(wide(4).shape, "user".to_string(), Reason::new(ReasonKind::NotRented, evidence))];
        Input::ForRent(ForRent { types, unmet, ..ForRent::default() })
    };
    w.input(g, offer(limit, ""));
    w.pass(500);
    (w, [root, eu, g], offer)
}

#[test]
fn the_limit_that_is_in_the_way_is_told_through_every_hop() {
    let (mut w, [root, eu, g], offer) = two_hops("budget rate: no more than 0.20 EUR per hour");
    let (job, _) = w.submit(root, "k", wide(4), 5).unwrap();
    w.pass(500);
    assert_eq!(3, w.sites[&root].core.state().jobs[&job].queued.len(), "what has no credit waits above");
    let why = w.explanation(root, job).0.reasons[0].clone();
    let kinds = |r: &intergrid_proto::pb::Reason| (ReasonKind::from_number(r.kind), r.site_name.clone());
    assert_eq!((ReasonKind::NotRented, String::new()), kinds(&why), "{why:?}");
    let [because] = &why.because[..] else { panic!("{why:?}") };
    assert_eq!((ReasonKind::NotRented, "eu".to_string()), kinds(because));
    assert_eq!("g/m4-rented: budget rate: no more than 0.20 EUR per hour; 0 of 8 slots are free for us", because.text);
    let told = |w: &World| w.sites[&root].core.children[&eu].shares.iter().map(|(_, s)| s.not_rented.clone()).collect::<Vec<_>>();
    for now in ["slots: no more than 8", ""] {
        w.input(g, offer(now, ""));
        w.pass(200);
        assert_eq!(vec![now], told(&w), "another limit is told at once, and that none is");
    }
    let why = w.explanation(root, job).0.reasons[0].clone();
    assert_ne!(ReasonKind::NotRented, ReasonKind::from_number(why.because[0].kind), "{why:?}");
}

/// Two that could rent for the same task would rent twice.
#[test]
fn a_waiting_task_counts_toward_one_child() {
    let mut w = World::new();
    let root = w.site("root");
    let gateways = ["g1", "g2"].map(|name| w.site(name));
    for g in gateways {
        w.link(g, root);
        w.input(g, Input::ForRent(ForRent { types: vec![kind(4, 2, "EUR")], ..ForRent::default() }));
    }
    w.pass(500);
    let (job, _) = w.submit(root, "k", wide(4), 12).unwrap();
    w.pass(500);
    assert_eq!(8, w.count(root, job, Phase::Queued), "beyond two machines each");
    let wanted = gateways.map(|g| w.sites[&root].core.children[&g].demand.clone());
    let four = vec![ShapeDemand { shape: wide(4).shape, time_limit_ms: None, tasks: 4 }];
    assert_eq!([four.clone(), four], wanted);
}

/// Else his tasks would hold the room of others on every link, come back from below, and hold it again.
#[test]
fn what_an_owner_s_own_cap_forbids_goes_back_up_and_leaves_the_room_to_others() {
    let (mut w, [root, _, g], _) = two_hops("");
    let own = Reason::new(ReasonKind::OverLimit, "budget rate of ann: 0.20 of 0.20 EUR per hour are used");
    let unmet = vec![(wide(4).shape, "ann".to_string(), own)];
    w.input(g, Input::ForRent(ForRent { types: vec![kind(4, 2, "EUR")], unmet, ..ForRent::default() }));
    let spec = Arc::new(Spec { bytes: wide(4).encode(), parsed: wide(4) });
    let submit = |w: &mut World, who: &str| {
        let token = w.submit_as(root, who, "k", spec.clone(), 2);
        w.pass(500);
        w.submitted.remove(&token).unwrap().unwrap().0
    };
    let at_g = |w: &World, who: &str| w.sites[&g].core.renting().waiting.iter().filter(|d| d.principal == who).map(|d| d.tasks).sum::<u64>();
    let hers = submit(&mut w, "ann");
    assert_eq!(2, at_g(&w, "ann"), "all that could come is asked for by her");
    let his = submit(&mut w, "bob");
    for _ in 0..50 {
        w.pass(100);
        if at_g(&w, "bob") == 2 {
            let said = format!("{:?}", w.explanation(root, hers).0);
            return assert!(said.contains("budget rate of ann"), "{said}");
        }
    }
    panic!("{:?}", w.explanation(root, his));
}

/// What is said of demand may change every second; above, nobody hears of that.
#[test]
fn numbers_that_change_are_no_advertisements() {
    let adverts = |changes: bool| {
        let (mut w, [root, eu, g], offer) = two_hops("capacity: none is left");
        let count = |w: &World| (w.sites[&g].core.parents[&eu].advert_version, w.sites[&eu].core.parents[&root].advert_version);
        let before = count(&w);
        for s in 0..30 {
            w.input(g, offer("capacity: none is left", &format!("asked again in {} s", if changes { 30 - s } else { 30 })));
            w.pass(1_000);
        }
        let after = count(&w);
        (after.0 - before.0, after.1 - before.1)
    };
    assert_eq!(adverts(false), adverts(true));
}

#[test]
fn an_agent_whose_machine_is_gone_is_no_longer_listed() {
    let mut w = World::new();
    let g = w.site("g");
    let agent = w.agent("g-m1", 1, g);
    let gone = || Input::ForRent(ForRent { gone: vec!["g-m1".into()], ..ForRent::default() });
    w.submit(g, "k", sleep(60_000), 1).unwrap();
    w.pass(500);
    let listed = |w: &World| w.sites[&g].core.renting().agents.iter().map(|a| (a.name.clone(), a.attached, a.busy, a.open)).collect::<Vec<_>>();
    w.input(g, gone());
    assert_eq!(vec![("g-m1".into(), false, 1, 1)], listed(&w), "its link is ended, and it has work");
    w.cut(agent, g);
    w.input(g, gone());
    assert_eq!(vec![("g-m1".into(), false, 1, 1)], listed(&w));
    w.link(agent, g);
    let ended = |w: &World| w.sites[&g].core.renting().agents.iter().map(|a| a.ended).sum::<u64>();
    assert_eq!(0, ended(&w));
    w.pass(61_000);
    w.cut(agent, g);
    assert_eq!((vec![("g-m1".into(), false, 0, 0)], 1), (listed(&w), ended(&w)));
    let resume = |w: &mut World| order(w, g, Order::Resume { site: "g-m1".into() }).map(|_| ()).map_err(|r| r.kind);
    assert_eq!(Ok(()), resume(&mut w), "it may come back");
    w.input(g, gone());
    assert!(listed(&w).is_empty());
    assert_eq!(Err(RefusalKind::NotFound), resume(&mut w), "nothing takes new work there");
    order(&mut w, g, Order::Drain { site: "g-m1".into(), reason: "x".into(), by: "root".into() }).unwrap();
    assert_eq!((Ok(()), Err(RefusalKind::NotFound)), (resume(&mut w), resume(&mut w)), "a drain can always be taken back");
}

/// What is there is no machine for it, and one that would be could come: it stays demand here, until that has come.
fn waits_for_another(mut w: World, g: SiteId, root: SiteId, offer: ForRent, spec: JobSpec, comes: impl Fn(&mut World)) {
    w.link(g, root);
    w.input(g, Input::ForRent(offer));
    w.pass(500);
    let (job, _) = w.submit(root, "k", spec, 1).unwrap();
    let (mut seen, mut unwanted) = (0, 0);
    for look in 0..60 {
        w.pass(1_000);
        let waits = w.sites[&g].core.renting().waiting.iter().any(|w| w.tasks == 1);
        (seen, unwanted) = if waits { (seen + 1, 0) } else { (seen, unwanted + 1) };
        // A machine on its way that five rounds have no work for is given up.
        assert!(unwanted < 4, "after {look} s: {:?}", w.explanation(root, job));
    }
    assert!(seen > 30, "{seen}");
    comes(&mut w);
    w.pass(5_000);
    assert_eq!(1, w.count(root, job, Phase::Done), "{:?}", w.explanation(root, job));
}

#[test]
fn what_fits_no_machine_that_is_there_waits_for_one_that_comes() {
    let mut w = World::new();
    let (root, g) = (w.site("root"), w.site("g"));
    w.agent("g-m1", 1, g);
    let offer = ForRent { types: vec![kind(1, 3, "EUR"), kind(4, 1, "EUR")], ..ForRent::default() };
    waits_for_another(w, g, root, offer, wide(4), |w| _ = w.agent("g-m2", 4, site_of("g")));
}

#[test]
fn what_can_not_pay_for_a_machine_that_is_there_waits_for_one_that_comes() {
    let mut w = World::new();
    let (root, g) = (w.site("root"), w.site("g"));
    w.agent("g-m1", 8, g);
    let prices = [("g-m1", "m8", 900_000), ("g-m2", "m4", 25_000)].map(|(name, kind, price)| (name.to_string(), price_of(kind, price, "EUR")));
    let offer = ForRent { types: vec![kind(4, 1, "EUR")], prices: prices.into(), ..ForRent::default() };
    let capped = JobSpec { time_limit_ms: Some(3_600_000), max_cost: Some(Money { micro: 60_000, currency: "EUR".into() }), ..wide(2) };
    waits_for_another(w, g, root, offer, capped, |w| _ = w.agent("g-m2", 4, site_of("g")));
}

#[test]
fn what_has_no_time_on_a_machine_that_is_there_waits_for_one_that_comes() {
    let mut w = World::new();
    let (root, g) = (w.site("root"), w.site("g"));
    let old = w.agent("g-m1", 4, g);
    w.agents.get_mut(&old).unwrap().time_max_ms = 60_000;
    w.cut(old, g);
    w.link(old, g);
    let offer = ForRent { types: vec![kind(4, 1, "")], time_max_ms: 7_200_000, ..ForRent::default() };
    let long = JobSpec { time_limit_ms: Some(3_600_000), ..wide(2) };
    waits_for_another(w, g, root, offer, long, |w| _ = w.agent("g-m2", 4, site_of("g")));
}

/// Types of about one size, as a broker above sees them: each has its own memory and price, whether its machine is there or not.
#[test]
fn a_type_has_the_memory_and_the_price_of_no_other() {
    let mut w = World::new();
    let g = w.site("g");
    let mib = |n: u64| n << 20;
    let of = |name: &str, memory_bytes, price| {
        let machine = Machine { slots: 1, memory_bytes, gpus: 0 };
        Rentable { kind: name.into(), machine, price_micro_per_slot_hour: price, ..kind(1, 1, "EUR") }
    };
    let types = vec![of("small", mib(512), 100_000), of("mid/1", mib(1024), 4_000_000)];
    w.input(g, Input::ForRent(ForRent { types: types.clone(), ..ForRent::default() }));
    let told = |w: &World| -> Vec<_> {
        let upward = w.sites[&g].core.upward();
        upward.into_iter().map(|(key, u)| (key, u.share.machine_memory_bytes, u.share.price_micro_per_slot_hour, u.share.slots_total)).collect()
    };
    let expected = vec![("g/mid-1-rented".to_string(), mib(1024), 4_000_000, 1), ("g/small-rented".to_string(), mib(512), 100_000, 1)];
    assert_eq!(expected, told(&w));
    // Now both are there.
    for (name, memory) in [("g-m1", mib(512)), ("g-m2", mib(1024))] {
        let hop = Hop { site: site_of(name), name: name.to_string(), kind: Kind::Agent };
        w.agents.insert(hop.site, ChildEnd::new(hop.clone(), 77, 1, memory));
        w.link(hop.site, g);
    }
    let prices = ["g-m1", "g-m2"].into_iter().map(str::to_string).zip(types.iter().map(rented_as)).collect();
    let none_left = types.into_iter().map(|t| Rentable { machines: 0, ..t }).collect();
    w.input(g, Input::ForRent(ForRent { types: none_left, prices, ..ForRent::default() }));
    w.pass(200);
    assert_eq!(expected, told(&w));
}

/// The configuration was read again while a machine is there, which is free.
#[test]
fn a_machine_of_what_its_type_was_is_a_share_of_its_own() {
    let of = |slots, price| Rentable { kind: "small".into(), price_micro_per_slot_hour: price, ..kind(slots, 2, "EUR") };
    // As a broker above sees them.
    let changed = |to: Vec<Rentable>| {
        let mut w = World::new();
        let (root, g) = (w.site("root"), w.site("g"));
        w.link(g, root);
        w.agent("g-m1", 1, g);
        let offer =
            |types| Input::ForRent(ForRent { types, prices: [("g-m1".to_string(), rented_as(&of(1, 100_000)))].into(), ..ForRent::default() });
        w.input(g, offer(vec![of(1, 100_000)]));
        w.pass(1_000);
        let shares = |w: &World| -> Vec<_> {
            let shares = w.sites[&root].core.children[&g].shares.iter();
            shares.map(|(_, s)| (s.key.clone(), s.machine_slots, s.price_micro_per_slot_hour, s.slots_total)).collect()
        };
        assert_eq!(vec![("g/small-rented".to_string(), 1, 100_000, 3)], shares(&w), "one that is there, and two that could come");
        w.input(g, offer(to));
        w.pass(1_000);
        let told = shares(&w);
        (w, root, g, told)
    };
    let share = |key: &str, slots, price, total| (key.to_string(), slots, price, total);

    let (mut w, root, g, told) = changed(vec![of(4, 100_000)]);
    assert_eq!(vec![share("g/small-rented", 4, 100_000, 8), share("g/small-rented-1c-8192m", 1, 100_000, 1)], told);
    w.submit(root, "k", wide(4), 1).unwrap();
    w.pass(1_000);
    let waiting: Vec<_> = w.sites[&g].core.renting().waiting.iter().map(|d| (d.shape.slots, d.tasks)).collect();
    assert_eq!(vec![(4, 1)], waiting, "what only the new size takes is rented for");

    let (mut w, root, _, told) = changed(vec![of(1, 400_000)]);
    assert_eq!(vec![share("g/small-rented", 1, 400_000, 2), share("g/small-rented-0.10", 1, 100_000, 1)], told);
    let cap = Money { micro: 100_000, currency: "EUR".into() };
    let (job, _) = w.submit(root, "k", JobSpec { time_limit_ms: Some(3_600_000), max_cost: Some(cap), ..wide(1) }, 1).unwrap();
    w.pass(5_000);
    assert_eq!(1, w.count(root, job, Phase::Done), "the old price can be paid: {:?}", w.explanation(root, job));

    let (.., told) = changed(Vec::new());
    assert_eq!(vec![share("g/small-rented-1c-8192m-0.10", 1, 100_000, 1)], told, "no longer listed");
}

/// Own machines of little memory are of different kinds, too.
#[test]
fn a_machine_of_half_the_memory_is_of_another_kind() {
    let mut w = World::new();
    let g = w.site("g");
    for (name, memory) in [("a", 512 << 20), ("b", 1 << 30), ("c", 23_900 << 20), ("d", 24_200 << 20)] {
        let hop = Hop { site: site_of(name), name: name.to_string(), kind: Kind::Agent };
        w.agents.insert(hop.site, ChildEnd::new(hop.clone(), 77, 1, memory));
        w.link(hop.site, g);
    }
    w.pass(200);
    let told: Vec<_> = w.sites[&g].core.upward().into_values().map(|u| (u.share.key, u.share.machine_memory_bytes >> 20, u.share.machines)).collect();
    let arch = std::env::consts::ARCH;
    let expected = [("0.5g", 512, 1), ("1g", 1_024, 1), ("23g", 23_900, 1), ("24g", 24_200, 1)];
    assert_eq!(expected.map(|(gib, memory, n)| (format!("g/{arch}-1c-{gib}"), memory, n)).to_vec(), told);
}

/// Five machines of 1 slot and 1.7 GiB.
#[test]
fn five_small_machines_are_five_slots_whether_they_are_there_or_not() {
    let mut w = World::new();
    let g = w.site("g");
    let memory_bytes = 17 * (1 << 30) / 10;
    let small = |machines| {
        let machine = Machine { slots: 1, memory_bytes, gpus: 0 };
        let kind = Rentable { machine, architecture: "x86_64".into(), machines, price_micro_per_slot_hour: 85_000, ..kind(1, 0, "USD") };
        let kind = Rentable { no_more: "slots: no more than 5".into(), ..kind };
        let prices = (1..=5).map(|n| (format!("g-m{n}"), rented_as(&kind))).collect();
        Input::ForRent(ForRent { types: vec![kind], prices, ..ForRent::default() })
    };
    let shown = |w: &World| {
        let (core, host) = (&w.sites[&g].core, w.sites[&g].core.host().0);
        assert!(core.upward().values().all(|u| u.share.not_rented == "slots: no more than 5"), "whether or not one is there");
        let upward: Vec<_> = core.upward().into_values().map(|u| (u.share.slots_total, u.share.slots_free, u.share.largest_free)).collect();
        let [(total, free, largest)] = upward[..] else { panic!("{upward:?}") };
        assert_eq!((host.slots_total, host.slots_free), (total, free), "people are shown what parents are told");
        (total, free, host.memory_bytes, largest)
    };
    w.input(g, small(5));
    assert_eq!((5, 5, 5 * memory_bytes, 1), shown(&w), "as soon as it starts");
    w.submit(g, "two", sleep(60_000), 2).unwrap();
    for n in 0..=5u64 {
        if n > 0 {
            let hop = Hop { site: site_of(&format!("g-m{n}")), name: format!("g-m{n}"), kind: Kind::Agent };
            let agent = hop.site;
            w.agents.insert(agent, ChildEnd::new(hop, 77, 1, memory_bytes));
            w.link(agent, g);
            w.input(g, small(5 - n));
            w.pass(200);
        }
        assert_eq!((5, 3, 5 * memory_bytes, 1), shown(&w), "two are taken, {n} are there");
    }
    w.pass(61_000);
    assert_eq!((5, 5, 5 * memory_bytes, 1), shown(&w), "all are there, and idle");
}

/// One of a type may be rented, and none of another.
#[test]
fn a_type_of_which_none_may_be_rented_has_no_memory_above() {
    let mut w = World::new();
    let (root, g) = (w.site("root"), w.site("g"));
    w.link(g, root);
    let types = [1, 0].map(|machines: u32| kind(1 + machines, machines.into(), "USD"));
    w.input(g, Input::ForRent(ForRent { types: types.into(), ..ForRent::default() }));
    w.pass(500);
    let (own, above) = (w.sites[&g].core.host().0, w.sites[&root].core.host());
    assert_eq!(2, above.1[0].1.shares.len());
    assert!(own.memory_bytes > 0);
    assert_eq!([own.memory_bytes; 2], [above.1[0].1.memory_bytes, above.0.memory_bytes]);
}

#[test]
fn a_machine_that_is_gone_gets_nothing_more_although_its_link_is_open() {
    let mut w = World::new();
    let g = w.site("g");
    let agent = w.agent("g-m1", 1, g);
    w.pass(300);
    w.input(g, Input::ForRent(ForRent { gone: vec!["g-m1".into()], ..ForRent::default() }));
    assert_eq!(vec![(g, agent)], w.left, "its link is ended");
    w.left.clear();
    w.submit(g, "k", sleep(100), 1).unwrap();
    w.pass(1_000);
    assert!(w.agents[&agent].starts().is_empty() && w.sites[&g].core.renting().agents.is_empty());
}

/// Machines would come for its own queue, and idle, for money, until it is opened.
#[test]
fn where_nothing_is_placed_nothing_is_rented_and_it_is_said_why() {
    let drain = |w: &mut World, g| _ = order(w, g, Order::Drain { site: "g".into(), reason: "maint".into(), by: "root".into() }).unwrap();
    let resume = |w: &mut World, g| _ = order(w, g, Order::Resume { site: "g".into() }).unwrap();
    type Act<'a> = &'a dyn Fn(&mut World, SiteId);
    let ways: [(Act, Act, &str); 2] =
        [(&drain, &resume, "maint"), (&|w, g| w.input(g, full()), &|w, g| w.input(g, Input::Room(None)), "7 bytes free")];
    for (close, open, why) in ways {
        let mut w = World::new();
        let (root, g) = (w.site("root"), w.site("g"));
        w.link(g, root);
        w.input(g, Input::ForRent(ForRent { types: vec![kind(4, 3, "EUR")], ..ForRent::default() }));
        let (own, _) = w.submit(g, "own", wide(4), 2).unwrap();
        w.pass(500);
        let waiting = |w: &World| w.sites[&g].core.renting().waiting.iter().map(|d| d.tasks).sum::<u64>();
        let offered =
            |w: &World| w.sites[&root].core.children[&g].shares.iter().map(|(_, s)| (s.slots_free, s.window, s.draining)).collect::<Vec<_>>();
        assert_eq!((2, vec![(4, 4, false)]), (waiting(&w), offered(&w)));
        close(&mut w, g);
        w.pass(500);
        assert_eq!((0, vec![(0, 0, true)]), (waiting(&w), offered(&w)), "{why}");
        // With a machine there that is too small, it is the same; by order it is kept for nothing.
        for small in [false, true] {
            if small {
                w.agent("g-m1", 1, g);
                w.pass(500);
                let agents: Vec<_> = w.sites[&g].core.renting().agents.iter().map(|a| (a.drained_with_us, a.drained_by.clone())).collect();
                assert_eq!(vec![(why == "maint", String::new())], agents);
            }
            let said = w.explanation(g, own).0.reasons[0].clone();
            assert!(said.kind == ReasonKind::Draining.number() && said.text.contains(why), "{said:?}");
        }
        let (above, _) = w.submit(root, "k", wide(4), 1).unwrap();
        w.pass(5_000);
        assert_eq!((0, 1), (waiting(&w), w.sites[&g].core.state().jobs.len()), "nothing came from above");
        let said = format!("{:?}", w.explanation(root, above).0.reasons[0]);
        assert!(said.contains(why), "{said}");
        open(&mut w, g);
        w.pass(1_000);
        assert_eq!(3, waiting(&w));
    }
}

/// What costs money is used after ten seconds.
struct Later;

impl Policy for Later {
    fn plan(&self, problem: &Problem<'_>) -> Plan {
        FirstFit.plan(problem)
    }

    fn burst(&self) -> Burst {
        Burst { after_ms: 10_000, tasks: None }
    }
}

#[test]
fn what_has_run_or_was_on_hold_begins_to_wait_anew_before_it_costs_money() {
    // A task has run for a minute where that costs nothing, and its machine is lost.
    let lost = || {
        let mut w = World::new();
        let (root, own, burst) = (w.site("root"), w.site("own"), w.site("burst"));
        w.sites.get_mut(&root).unwrap().core.policy = Box::new(Later);
        w.agent("own-1", 1, own);
        w.link(own, root);
        w.link(burst, root);
        w.input(burst, Input::ForRent(ForRent { types: vec![kind(4, 3, "EUR")], ..ForRent::default() }));
        w.pass(500);
        let spec = JobSpec { disconnect_timeout_ms: 1_000, ..sleep(600_000) };
        let (job, _) = w.submit(root, "k", spec, 1).unwrap();
        w.pass(60_000);
        assert_eq!(1, w.count(root, job, Phase::Running));
        w.cut(own, root);
        w.pass(10_000);
        assert_eq!(1, w.count(root, job, Phase::Queued), "it waits for what costs nothing: {:?}", w.explanation(root, job));
        (w, root, job)
    };
    let waits = |w: &World, site: SiteId, job| w.sites[&site].core.state().jobs[&job].waits_ms;
    let (mut w, root, job) = lost();
    let began = waits(&w, root, job);
    w.pass(2_000);
    assert_eq!((0, began), (w.count(root, job, Phase::Queued), waits(&w, root, job)));
    // That it comes back from there, as no machine comes, does not take its time from it.
    w.pass(30_000);
    assert_eq!(began, waits(&w, root, job));

    let (held, _) = w.submit(root, "held", wide(2), 1).unwrap();
    w.want(root, held, WantValue::Hold, None);
    w.pass(60_000);
    w.want(root, held, WantValue::Run, None);
    w.pass(9_000);
    assert_eq!(1, w.count(root, held, Phase::Queued));
    w.pass(2_000);
    assert_eq!(0, w.count(root, held, Phase::Queued));

    // Since when it waits is not kept, and a restart is no reason to spend money.
    let (mut w, root, job) = lost();
    let before = w.now.unix_ms;
    w.restart(root);
    assert!(waits(&w, root, job) >= before, "{before}");
}

/// Else it seems to be on its way.
#[test]
fn that_nobody_knows_whether_a_machine_exists_is_told_of_what_waits_for_it() {
    let mut w = World::new();
    let (root, g) = (w.site("root"), w.site("g"));
    w.link(g, root);
    let doubt = "g-m1: not known whether it exists: no answer";
    let offer = |in_doubt: &str, unmet: &[&str]| {
        let types = vec![Rentable { no_more: "machines: no more than 1".into(), in_doubt: in_doubt.into(), ..kind(4, 1, "") }];
        let unmet = unmet.iter().map(|text| (wide(4).shape, "user".to_string(), Reason::new(ReasonKind::NotRented, *text)));
        Input::ForRent(ForRent { types, unmet: unmet.collect(), ..ForRent::default() })
    };
    w.input(g, offer("", &[]));
    w.pass(500);
    let (job, _) = w.submit(root, "k", wide(4), 2).unwrap();
    w.pass(500);
    let below = *w.sites[&g].core.state().jobs.keys().next().unwrap();
    let said = |w: &World, site, job| w.explanation(site, job).0.reasons[0].clone();
    let on_its_way = "a machine is on its way for it, or will be asked for";
    assert_eq!(on_its_way, said(&w, g, below).text);
    w.input(g, offer(doubt, &[]));
    w.pass(500);
    assert_eq!(format!("{on_its_way}; {doubt}"), said(&w, g, below).text);
    let above = said(&w, root, job).because;
    assert!(above.iter().any(|r| r.text.contains(&format!("machines: no more than 1; {doubt}; 0 of 4 slots"))), "{above:?}");
    w.input(g, offer(doubt, &["slots: 4 of 4 are used"]));
    assert_eq!(format!("slots: 4 of 4 are used; {doubt}"), said(&w, g, below).text);
}
