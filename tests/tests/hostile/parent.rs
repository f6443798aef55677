//! A parent: a delegate's certificate, and a link by hand.

use std::time::Duration;

use intergrid_gateway::daemon::Running;
use intergrid_proto::link::{Hop, Kind};
use intergrid_proto::pb;
use intergrid_proto::pb::down::What;
use intergrid_tests::client::Client;
use intergrid_tests::grid::{Grid, machines};
use intergrid_tests::{PATIENCE, logs, until};

use super::side::*;

/// A gateway of four slots, its user, and its parent.
async fn world(grid: &Grid, name: &str) -> (Running, Client, Client, Hop) {
    let above = format!("{name}-above");
    let site = grid.gateway(name, &[&above], machines(name, 2, 2)).await;
    let identity = grid.site_certificate(&above);
    let parent = grid.call(&site, &identity).await.unwrap();
    let ann = grid.user(&site, "ann").await;
    (site, ann, parent, hop(identity.id(), &above, Kind::Broker))
}

/// Jobs of parents that the site keeps.
async fn jobs_of_parents(site: &Running) -> usize {
    site.engine.read(|core| core.state().jobs.values().filter(|j| j.parent.is_some()).count()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_out_of_order_ends_the_link() {
    let grid = Grid::new();
    let (site, _, parent, me) = world(&grid, "order").await;
    let ours = hello(&me);
    let cases: Vec<(&str, Vec<pb::Down>)> = vec![
        ("no hello", vec![down(What::Demand(pb::Demand::default()))]),
        ("placed before hello", vec![down(What::Ack(pb::Ack { incarnation: 1, sequence: 1 }))]),
        ("two hellos", vec![down(What::Hello(ours.clone())), down(What::Hello(pb::Hello { incarnation: 6, ..ours.clone() }))]),
        ("another's name for itself", vec![down(What::Hello(pb::Hello { site: vec![9; 16], ..ours.clone() }))]),
        ("another version", vec![down(What::Hello(pb::Hello { protocol: VERSION + 1, ..ours.clone() }))]),
        ("nothing", vec![down(What::Hello(ours.clone())), pb::Down::default()]),
        ("a long name", vec![down(What::Hello(pb::Hello { name: "n".repeat(1_000), ..ours.clone() }))]),
        ("a name with a line break", vec![down(What::Hello(pb::Hello { name: "a\nb".into(), ..ours.clone() }))]),
    ];
    for (what, messages) in cases {
        let mut link = until("a link", async || Parent::silent(&parent, me.clone()).await).await;
        for m in messages {
            let _ = link.say.send(m).await;
        }
        let ended = tokio::time::timeout(PATIENCE, link.ends()).await;
        assert!(ended.is_ok(), "{what}: the link goes on");
    }
    assert!(logs::lines(&["link dropped", "order-above"]).len() >= 6);
    // A parent that says nothing at all does not hold his place for ever.
    let mut mute = until("a link", async || Parent::silent(&parent, me.clone()).await).await;
    mute.ends().await;
    still_serves(&grid, &site, &quick()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_numbers_change_nothing() {
    let grid = Grid::new();
    let (site, ann, parent, me) = world(&grid, "numbers").await;
    let honest = beside("absurd numbers", &ann, &quick());
    let most = u64::MAX;
    for k in 0..12 {
        let link = Parent::open(&parent, me.clone()).await;
        let good = link.place(1 + k, "numbers/none");
        let messages = vec![
            What::Ack(pb::Ack { incarnation: link.child.incarnation, sequence: most }),
            What::Ack(pb::Ack { incarnation: most, sequence: most }),
            What::Saw(pb::Saw { version: most }),
            What::Demand(pb::Demand {
                shapes: vec![
                    pb::ShapeDemand {
                        slots: u32::MAX,
                        memory_bytes: most,
                        tasks: most,
                        gpus: u32::MAX,
                        nodes: u32::MAX,
                        time_limit_ms: most
                    };
                    1_000
                ],
            }),
            What::Place(pb::Place { job: most, attempts: u32::MAX, hops_left: u32::MAX, ..good.clone() }),
            What::Stale(pb::Stale { attempts: vec![pb::StaleAttempts { number: most, job: most, tasks: runs(vec![0, 4_000_000]) }; 10] }),
            What::Open(pb::OpenPlacements { open: vec![pb::StaleAttempts { number: most, job: most, tasks: runs(vec![0, 1]) }; 10] }),
            What::Want(pb::Want { job: most, version: 1, ranges: vec![pb::WantRange { value: 3, tasks: runs(vec![0, 4_000_000]) }] }),
            match k {
                0 => What::Place(pb::Place { array_size: u32::MAX, ..good }),
                1 => What::Place(pb::Place { tasks: runs(vec![u32::MAX, u32::MAX]), ..good }),
                2 => What::Place(pb::Place { tasks: runs(vec![0, 2]), ..good }),
                3 => What::Place(pb::Place { number: 0, ..good }),
                4 => What::Place(pb::Place { route: vec![vec![1; 16]; 1_000], ..good }),
                5 => What::Place(pb::Place { share: "s".repeat(10_000), ..good }),
                6 => What::Place(pb::Place { chain: vec![pb::ChainLink::default(); 1_000], ..good }),
                7 => What::Want(pb::Want { job: 1, version: most, ranges: Vec::new() }),
                8 => What::Want(pb::Want { job: 1, version: 2, ranges: vec![pb::WantRange { value: 77, tasks: runs(vec![0, 1]) }] }),
                9 => What::Place(pb::Place { origin: None, ..good }),
                10 => What::Place(pb::Place { spec_hash: vec![1], ..good }),
                _ => What::Place(pb::Place { number: most, ..good }),
            },
        ];
        for m in messages {
            link.says(m).await;
        }
    }
    honest.served().await;
    // His numbers were used up by himself; he is heard all the same, and nobody else is harmed.
    let _link = Parent::open(&parent, me.clone()).await;
    still_serves(&grid, &site, &quick()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_for_which_there_is_no_room_leave_nothing_behind() {
    let grid = Grid::new();
    let (site, ann, parent, me) = world(&grid, "roomless").await;
    let link = Parent::open(&parent, me).await;
    let honest = beside("jobs without room", &ann, &quick());
    for n in 1..=3_000 {
        let p = link.place(n, "roomless/none");
        assert!(link.says(What::Place(pb::Place { array_size: 4_000_000, ..p })).await);
    }
    honest.served().await;
    assert_eq!(0, jobs_of_parents(&site).await);
    still_serves(&grid, &site, &quick()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demands_for_the_full_state_are_answered_now_and_then() {
    let grid = Grid::new();
    let (site, ann, parent, me) = world(&grid, "resyncs").await;
    let mut link = Parent::open(&parent, me.clone()).await;
    // Something to tell: arrays of four million, of which a task each is here.
    let share = link.share(1).await.key;
    for n in 1..=20 {
        let p = link.place(n, &share);
        link.says(What::Place(pb::Place { array_size: 4_000_000, tasks: runs(vec![3_999_999, 1]), ..p })).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let honest = beside("demands for the full state", &ann, &quick());
    for _ in 0..20_000 {
        if !link.says(What::Resync(pb::ResyncRequest {})).await {
            break;
        }
    }
    // The same by coming and going.
    drop(link);
    for k in 0..30 {
        let link = until("a link", async || Parent::silent(&parent, me.clone()).await).await;
        link.says(What::Hello(pb::Hello { peer_incarnation: 77 + k, ..hello(&me) })).await;
    }
    honest.served().await;
    still_serves(&grid, &site, &quick()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_that_never_reads_costs_a_bounded_queue() {
    let grid = Grid::new();
    let (site, ann, parent, me) = world(&grid, "unread").await;
    let honest = beside("a parent that never reads", &ann, &quick());
    let began = std::time::Instant::now();
    let mut number = 0;
    // Each placement comes back, with all its ranges; acknowledged blindly, so that events are sent on.
    'links: for _ in 0..3 {
        let link = Parent::open(&parent, me.clone()).await;
        for _ in 0..1_500 {
            number += 1;
            let p = pb::Place { array_size: 4_000_000, tasks: fragments(20_000), ..link.place(number, "unread/none") };
            if !link.says(What::Place(p)).await {
                break;
            }
            if number % 64 == 0 {
                link.says(What::Ack(pb::Ack { incarnation: link.child.incarnation, sequence: number - 1 })).await;
            }
            if began.elapsed() > 2 * PATIENCE {
                break 'links;
            }
        }
    }
    // Both ends are in this process: what waits here for a reader, and what he has not read.
    honest.within(600).await;
    still_serves(&grid, &site, &quick()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registers_without_end_are_forgotten() {
    let grid = Grid::new();
    let (site, ann, parent, me) = world(&grid, "registers").await;
    let link = Parent::open(&parent, me).await;
    let honest = beside("registers", &ann, &quick());
    for job in 0..20_000 {
        let range = pb::WantRange { value: 3, tasks: runs(vec![0, 1]) };
        link.says(What::Want(pb::Want { job, version: 1, ranges: vec![range] })).await;
    }
    for job in 0..100 {
        // All of it in one register: more ranges than one may have.
        let range = |k: u32| pb::WantRange { value: 3, tasks: runs([vec![4 * k + 1, 1], [3, 1].repeat(29_999)].concat()) };
        if !link.says(What::Want(pb::Want { job, version: 2, ranges: (0..8).map(range).collect() })).await {
            break;
        }
    }
    honest.served().await;
    let kept = site.engine.read(|core| core.state().links.values().map(|l| l.wants.len()).sum::<usize>()).await.unwrap();
    assert!(kept <= intergrid_gateway::core::limits::WANTS_UNKNOWN_MAX, "{kept}");
    still_serves(&grid, &site, &quick()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_task_sets_do_not_hold_up_others() {
    let grid = Grid::new();
    let (site, ann, parent, me) = world(&grid, "sets").await;
    let mut link = Parent::open(&parent, me).await;
    let share = link.share(1).await.key;
    let mut slow = intergrid_proto::JobSpec::new(["sleep", "3600"]);
    slow.name = "slow".into();
    let spec = slow.encode();
    let hash = intergrid_proto::BlobHash::of(&spec).0.to_vec();
    let p = link.place(1, &share);
    link.says(What::Place(pb::Place { spec: spec.into(), spec_hash: hash, array_size: 4_000_000, ..p })).await;
    until("the job", async || match jobs_of_parents(&site).await {
        1 => Ok(()),
        n => Err(n),
    })
    .await;
    let honest = beside("huge task sets", &ann, &quick());
    for _ in 0..20 {
        let one = pb::StaleAttempts { number: 1, job: 1, tasks: runs(vec![1, 3_999_999]) };
        if !link.says(What::Stale(pb::Stale { attempts: vec![one; 50_000] })).await {
            break;
        }
    }
    honest.served().await;
    still_serves(&grid, &site, &quick()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn millions_of_tiny_messages_starve_nobody() {
    let grid = Grid::new();
    let (site, ann, parent, me) = world(&grid, "tiny").await;
    drop(parent);
    let identity = grid.site_certificate("tiny-above");
    let honest = beside("tiny messages", &ann, &quick());
    let end = std::time::Instant::now() + Duration::from_secs(8);
    let (mut said, mut links) = (0u64, 0);
    // The connection is ended where he does not wait for the site to read; he comes back.
    while std::time::Instant::now() < end {
        let parent = grid.call(&site, &identity).await.unwrap();
        let link = Parent::open(&parent, me.clone()).await;
        links += 1;
        while std::time::Instant::now() < end && link.says(What::Demand(pb::Demand::default())).await {
            said += 1;
        }
    }
    eprintln!("{said} tiny messages on {links} links");
    honest.served().await;
    still_serves(&grid, &site, &quick()).await;
}
