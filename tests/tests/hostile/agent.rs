//! An agent: what it attaches as, what it asks for, what it brings.

use std::time::Duration;

use intergrid_gateway::daemon::Running;
use intergrid_proto::link::{Hop, Kind};
use intergrid_proto::net::CertRole;
use intergrid_proto::pb::pool_client::PoolClient;
use intergrid_proto::pb::up::What;
use intergrid_proto::{BlobHash, JobSpec, Phase, RefusalKind, pb};
use intergrid_tests::client::{Client, answer};
use intergrid_tests::grid::Grid;
use intergrid_tests::until;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::side::*;

/// A gateway for agents, its user, and an agent that is acted out.
async fn world(grid: &Grid, name: &str) -> (Running, Client, Client, Hop) {
    let site = grid.pool(name, &[]).await;
    let identity = grid.certificate(name, CertRole::Agent, "m-evil");
    let agent = grid.call(&site, &identity).await.unwrap();
    let ann = grid.user(&site, "ann").await;
    (site, ann, agent, hop(identity.id(), "m-evil", Kind::Agent))
}

/// An honest machine, as small as can be: it takes what it is given and says that it is done.
fn honest_machine(agent: Client, me: Hop) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut child = Child::attach(&agent, me).await.unwrap();
        child.greets().await;
        let large = child.share("m", 1 << 40);
        child.offers(vec![large]).await;
        let mut first = 1;
        while let Ok(Some(message)) = child.hear.message().await {
            let Some(pb::down::What::Place(p)) = message.what else { continue };
            let done = pb::Ended { phase: Phase::Done as i32, exit: vec![0], attempts: 1, ..Default::default() };
            let of = |what| event(p.number, p.job, p.tasks.clone(), what);
            let said = vec![of(pb::event::What::Accepted(pb::Accepted {})), of(pb::event::What::Ended(done))];
            child.says(events(first, said)).await;
            first += 2;
        }
    })
}

/// As a test of its own, so that the machine above is known to be enough.
async fn honest(grid: &Grid, site: &Running) -> (tokio::task::JoinHandle<()>, JobSpec) {
    let identity = grid.certificate(&site.me.name, CertRole::Agent, "m-good");
    let agent = grid.call(site, &identity).await.unwrap();
    let mut spec = quick();
    spec.shape.memory_bytes = 1 << 30;
    (honest_machine(agent, hop(identity.id(), "m-good", Kind::Agent)), spec)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_is_not_it_cannot_say() {
    let grid = Grid::new();
    let (site, ann, agent, me) = world(&grid, "a-hello").await;
    let (_good, spec) = honest(&grid, &site).await;
    let beside = beside("an agent out of order", &ann, &spec);
    let ours = hello(&me);
    let cases = vec![
        vec![What::Advert(pb::Advert::default())],
        vec![What::Hello(pb::Hello { site: vec![3; 16], ..ours.clone() })],
        vec![What::Hello(pb::Hello { name: "m-good".into(), ..ours.clone() })],
        vec![What::Hello(pb::Hello { kind: 2, ..ours.clone() })],
        vec![What::Hello(pb::Hello { kind: 77, ..ours.clone() })],
        vec![What::Hello(pb::Hello { machine: vec![0; 1_000], ..ours.clone() })],
        vec![What::Hello(ours.clone()), What::Hello(ours.clone())],
        vec![],
    ];
    for said in cases {
        let mut child = Child::attach(&agent, me.clone()).await.unwrap();
        for m in said {
            child.says(m).await;
        }
        child.ends().await;
    }
    // Twice at once: the second is refused, the first goes on.
    let first = until("the first to be answered", async || {
        let mut first = Child::attach(&agent, me.clone()).await.unwrap();
        first.greets().await;
        match first.hear.message().await {
            Ok(Some(_)) => Ok(first),
            other => Err(other),
        }
    })
    .await;
    until("the second to be refused", async || {
        let mut second = Child::attach(&agent, me.clone()).await.unwrap();
        second.greets().await;
        match tokio::time::timeout(Duration::from_secs(5), second.hear.message()).await {
            Ok(Err(s)) if s.message().contains("attached already") => Ok(()),
            other => Err(other.map(|m| m.map(drop))),
        }
    })
    .await;
    assert!(first.offers(Vec::new()).await);
    beside.served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_does_not_exist_may_be_asked_for_in_bounds() {
    let grid = Grid::new();
    let (site, ann, agent, me) = world(&grid, "a-blobs").await;
    let (_good, spec) = honest(&grid, &site).await;
    let beside = beside("requests for content", &ann, &spec);
    let child = Child::attach(&agent, me).await.unwrap();
    child.greets().await;
    for n in 0..300_000u32 {
        let hash = BlobHash::of(&n.to_be_bytes()).0.to_vec();
        if !child.says(What::NeedBlob(pb::NeedBlob { hash })).await {
            break;
        }
    }
    let mut waiting = Vec::new();
    for n in 0..2_000u32 {
        let mut pool = PoolClient::new(agent.channel.clone());
        let hash = BlobHash::of(&(n, "x").0.to_le_bytes()).0.to_vec();
        waiting.push(tokio::spawn(async move { pool.get_blob(pb::BlobHash { hash }).await.map(drop) }));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert!(tasks < 8_000, "{tasks} tasks are alive");
    waiting.iter().for_each(|w| w.abort());
    beside.within(200).await;
}

/// Bring one file, in these parts; the answers.
async fn bring(agent: &Client, parts: Vec<pb::OutputPart>) -> Vec<Result<pb::OutputAck, RefusalKind>> {
    let mut pool = PoolClient::new(agent.channel.clone());
    let (tx, rx) = mpsc::channel(4);
    let sending = tokio::spawn(async move {
        for p in parts {
            if tx.send(p).await.is_err() {
                break;
            }
        }
    });
    let mut acks = answer(pool.put_outputs(ReceiverStream::new(rx))).await.unwrap();
    let mut got = Vec::new();
    loop {
        match tokio::time::timeout(intergrid_tests::PATIENCE, acks.message()).await.expect("an answer") {
            Ok(Some(ack)) => got.push(Ok(ack)),
            Ok(None) => break,
            Err(s) => {
                got.push(Err(intergrid_proto::net::refusal_of(&s).kind));
                break;
            }
        }
    }
    sending.abort();
    got
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_stay_in_their_place() {
    let grid = Grid::new();
    let (_site, ann, agent, me) = world(&grid, "a-outputs").await;
    let mut child = Child::attach(&agent, me).await.unwrap();
    child.greets().await;
    child.offers(vec![child.share("m", 1 << 20)]).await;
    let mut long = JobSpec::new(["sleep", "3600"]);
    long.outputs = vec!["result".into()];
    let (_job, _) = ann.submit("k", &long, 1).await.unwrap();
    let place = child.placed().await;
    child.says(events(1, vec![event(place.number, place.job, place.tasks.clone(), pb::event::What::Accepted(pb::Accepted {}))])).await;
    let data = b"data".to_vec();
    let part = |name: &str| pb::OutputPart {
        job: place.job,
        number: place.number,
        task: 0,
        name: name.into(),
        hash: BlobHash::of(&data).0.to_vec(),
        size: 4,
        data: data.clone().into(),
        last: true,
    };
    let outside = site_files(&grid);
    for name in ["", ".", "..", "out/", "out/..", "out/../../x", "/etc/passwd", "out/a\0b", "out/a/b", "out/stdout", "../stdout", "out/\n", "other"] {
        let got = bring(&agent, vec![part(name)]).await;
        assert!(matches!(&got[..], [Ok(a)] if !a.error.is_empty()) || matches!(&got[..], [Err(_)]), "{name:?}: {got:?}");
    }
    for name in ["out/".to_string() + &"n".repeat(1_000), "n".repeat(3_000_000)] {
        let got = bring(&agent, vec![part(&name); 4]).await;
        assert!(
            got.iter().all(|a| !matches!(a, Ok(a) if a.error.is_empty() || a.error.len() > 4_096 || a.name.len() > 4_096)),
            "{} names",
            got.len()
        );
    }
    let wrong = [
        pb::OutputPart { size: 3, ..part("stdout") },
        pb::OutputPart { size: 5, ..part("stdout") },
        pb::OutputPart { size: u64::MAX, ..part("stdout") },
        pb::OutputPart { hash: vec![1; 32], ..part("stdout") },
        pb::OutputPart { hash: vec![1; 31], ..part("stdout") },
        pb::OutputPart { hash: Vec::new(), ..part("stdout") },
    ];
    for p in wrong {
        let got = bring(&agent, vec![p.clone()]).await;
        assert!(matches!(&got[..], [Ok(a)] if !a.error.is_empty()) || matches!(&got[..], [Err(_)]), "{p:?}: {got:?}");
    }
    // Of an attempt that is not its own: taken and dropped.
    for p in
        [pb::OutputPart { task: 1, ..part("stdout") }, pb::OutputPart { number: 99, ..part("stdout") }, pb::OutputPart { job: 99, ..part("stdout") }]
    {
        bring(&agent, vec![p]).await;
    }
    assert_eq!(outside, site_files(&grid), "nothing but what was right is written");
    let endless = std::iter::once(pb::OutputPart { size: 4, last: false, ..part("stdout") });
    let more = std::iter::repeat_n(pb::OutputPart { data: vec![0; 100_000].into(), ..Default::default() }, 200);
    let got = bring(&agent, endless.chain(more).collect()).await;
    assert!(!matches!(&got[..], [Ok(a)] if a.error.is_empty()), "{got:?}");
    let got = bring(&agent, vec![part("stdout"), part("out/result")]).await;
    assert!(got.iter().all(|a| matches!(a, Ok(a) if a.error.is_empty())) && got.len() == 2, "{got:?}");
    // Names that the job has not asked for are not taken, however many.
    let many = (0..50).map(|n| part(&format!("out/{n}"))).collect();
    let got = bring(&agent, many).await;
    assert!(got.iter().all(|a| !matches!(a, Ok(a) if a.error.is_empty())), "{got:?}");
}

/// Every file of the test's sites but those of databases.
fn site_files(grid: &Grid) -> Vec<std::path::PathBuf> {
    fn walk(dir: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(t) if t.is_dir() && entry.file_name() != "store" => walk(&entry.path(), found),
                Ok(t) if t.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    walk(grid.dir(), &mut found);
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_that_are_never_read_are_bounded() {
    let grid = Grid::new();
    let (site, ann, agent, _) = world(&grid, "a-acks").await;
    let (_good, spec) = honest(&grid, &site).await;
    let beside = beside("acknowledgements never read", &ann, &spec);
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut pool = PoolClient::new(agent.channel.clone());
        let (tx, rx) = mpsc::channel(1);
        let part = pb::OutputPart { job: 1, number: 1, name: "n".repeat(500_000), hash: vec![0; 32], last: true, ..Default::default() };
        let sending = tokio::spawn(async move { while tx.send(part.clone()).await.is_ok() {} });
        held.push((answer(pool.put_outputs(ReceiverStream::new(rx))).await.unwrap(), sending));
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    held.iter().for_each(|(_, s)| s.abort());
    beside.served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_says_anything_at_all_ends_nothing_but_its_link() {
    let grid = Grid::new();
    let (site, ann, agent, me) = world(&grid, "a-random").await;
    let (_good, spec) = honest(&grid, &site).await;
    let beside = beside("an agent at random", &ann, &spec);
    let absurd =
        |child: &Child| pb::Share { machine_slots: u32::MAX, machine_memory_bytes: 1, slots_free: u64::MAX, slots_total: 1, ..child.share("x", 1) };
    for round in 0..10u64 {
        let child = until("a session", async || {
            let child = Child::attach(&agent, me.clone()).await.unwrap();
            child.greets().await;
            match child.offers(vec![absurd(&child)]).await {
                true => Ok(child),
                false => Err("refused"),
            }
        })
        .await;
        let range = pb::ResyncRange { number: round, job: round, tasks: runs(vec![0, 4_000_000]), phase: 8, ended: None };
        for k in 0..6 {
            let said = match (k + round) % 6 {
                0 => What::Resync(pb::Resync { incarnation: round, sequence: u64::MAX >> 2, ranges: vec![], last: true }),
                1 => What::Resync(pb::Resync { incarnation: round, sequence: 0, ranges: vec![range.clone()], last: true }),
                2 => events(u64::MAX, Vec::new()),
                3 => What::Hints(pb::Hints { hints: vec![pb::Hint { number: 1, job: 1, tasks: runs(vec![1]), phase: 5 }] }),
                4 => What::NeedBlob(pb::NeedBlob { hash: vec![1] }),
                _ => events(1, vec![pb::Event::default()]),
            };
            child.says(said).await;
        }
        let hosts = ann.hosts().await.unwrap();
        assert!(hosts.slots_free <= hosts.slots_total, "{} of {}", hosts.slots_free, hosts.slots_total);
    }
    beside.served().await;
}
