//! A user: what he sends, how much, how slowly, and what he never reads.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use intergrid_gateway::daemon::Running;
use intergrid_proto::link::WantValue;
use intergrid_proto::spec::File;
use intergrid_proto::{BlobHash, JobSpec, Refusal, RefusalKind, pb};
use intergrid_tests::client::{Client, about, answer, by_id, submission};
use intergrid_tests::grid::{Grid, machines};
use intergrid_tests::until;
use prost::bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::{Service as _, http};

use super::side::*;

async fn world(grid: &Grid, name: &str) -> (Running, Client, Client) {
    let site = grid.gateway(name, &[], machines(name, 2, 2)).await;
    let (ann, eve) = (grid.user(&site, "ann").await, grid.user(&site, "eve").await);
    (site, ann, eve)
}

async fn put(c: &Client, content: &[u8]) -> Result<bool, Refusal> {
    let part = pb::BlobPart { hash: BlobHash::of(content).0.to_vec(), size: content.len() as u64, data: content.to_vec().into() };
    answer(c.grid.clone().put_blob(tokio_stream::iter([part]))).await.map(|r| r.existed)
}

/// Fits no machine here.
fn never() -> JobSpec {
    let mut spec = quick();
    spec.shape.slots = 3;
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_submissions_are_refused_by_name() {
    let grid = Grid::new();
    let (site, ann, eve) = world(&grid, "u-specs").await;
    let beside = beside("absurd submissions", &ann, &quick());
    let file = |name: &str| vec![File { name: name.into(), hash: BlobHash::of(b""), size: 0, executable: false }];
    put(&eve, b"").await.unwrap();
    let base = quick();
    let cases: Vec<(&str, JobSpec)> = vec![
        ("argv", JobSpec { argv: vec![], ..base.clone() }),
        ("argv", JobSpec { argv: vec![String::new()], ..base.clone() }),
        ("argv", JobSpec { argv: vec!["a".into(); 1_001], ..base.clone() }),
        ("argv", JobSpec { argv: vec!["a".into(), "b\0".into()], ..base.clone() }),
        ("spec", JobSpec { argv: vec!["a".repeat(61 * 1024)], ..base.clone() }),
        ("name", JobSpec { name: "n".repeat(129), ..base.clone() }),
        ("name", JobSpec { name: "\x1b[2J".into(), ..base.clone() }),
        ("inputs", JobSpec { inputs: file("../x"), ..base.clone() }),
        ("inputs", JobSpec { inputs: file(".."), ..base.clone() }),
        ("inputs", JobSpec { inputs: file("a\0b"), ..base.clone() }),
        ("inputs", JobSpec { inputs: file("a/b"), ..base.clone() }),
        ("inputs", JobSpec { inputs: file(""), ..base.clone() }),
        ("outputs", JobSpec { outputs: vec!["..".into()], ..base.clone() }),
        ("outputs", JobSpec { outputs: vec!["a\0".into()], ..base.clone() }),
        ("outputs", JobSpec { outputs: vec!["o".into(); 1_001], ..base.clone() }),
        ("env", JobSpec { env: vec![("A=B".into(), "x".into())], ..base.clone() }),
        ("env", JobSpec { env: vec![("A".into(), "x".into()); 2], ..base.clone() }),
        ("slots", JobSpec { shape: intergrid_proto::Shape::new(u32::MAX, 0), ..base.clone() }),
        ("memory", JobSpec { shape: intergrid_proto::Shape::new(1, u64::MAX), ..base.clone() }),
        ("time", JobSpec { time_limit_ms: Some(u64::MAX), ..base.clone() }),
    ];
    for (k, (field, spec)) in cases.into_iter().enumerate() {
        let refused = eve.submit(&format!("k{k}"), &spec, 1).await.expect_err(field);
        assert!(refused.message.contains(field), "{field}: {refused}");
    }
    // Names of jobs that are none, in every call that takes one; and task sets that are none.
    let refs = ["", "..", "../../etc", "a\0b", "last ", "zzzzzzz", "-1", "%s%n", &"9".repeat(100_000)];
    for name in refs {
        let refused = eve.show(name).await.expect_err("no job");
        assert!(refused.kind == RefusalKind::NotFound && refused.message.len() < 4_096, "{name:.20?}: {refused:.100}");
        for out in ["stdout", "out/../x", "\0"] {
            let request = pb::OutputRequest { job: by_id(name), task: u32::MAX, name: out.into() };
            answer(eve.grid.clone().get_output(request)).await.expect_err("no job");
        }
    }
    let (job, _) = eve.submit("mine", &quick(), 1).await.unwrap();
    eve.ended(&job).await;
    for bad in [vec![1], vec![0, 0], vec![0, 1, 0, 1], vec![u32::MAX, 1], vec![0, u32::MAX], vec![1; 200_000]] {
        let request = pb::SetWantRequest { job: by_id(&job), value: 3, tasks: runs(bad.clone()) };
        answer(eve.grid.clone().set_want(request)).await.expect_err("no tasks");
        let request = pb::JobRequest { tasks: runs(bad), ..about(by_id(&job)) };
        answer(eve.grid.clone().explain(request)).await.expect_err("no tasks");
    }
    for task in [1, u32::MAX] {
        let request = pb::OutputRequest { job: by_id(&job), task, name: "stdout".into() };
        answer(eve.grid.clone().get_output(request)).await.expect_err("no task");
    }
    for task in [1, u32::MAX] {
        let request = pb::PeekRequest { job: by_id(&job), task, stdout: u64::MAX - 1, attempt: vec![9; 100_000], ..Default::default() };
        answer(eve.grid.clone().peek(request)).await.expect_err("no task");
    }
    for value in [2, 9, i32::MIN] {
        answer(eve.grid.clone().set_want(pb::SetWantRequest { job: by_id(&job), value, tasks: None })).await.expect_err("no wish");
    }
    answer(eve.grid.clone().list(pb::ListRequest { limit: u32::MAX })).await.unwrap();
    answer(eve.grid.clone().hosts(pb::HostsRequest { deadline_ms: u32::MAX })).await.unwrap();
    beside.served().await;
    still_serves(&grid, &site, &quick()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_do_not_go_on_keep_nobody_from_his() {
    let grid = Grid::new();
    let mut config = grid.config("u-uploads", &[]);
    config.limits.blobs_bytes_max = 1 << 20;
    let site = grid.gateway_of(config, machines("u-uploads", 1, 2)).await;
    let (ann, eve) = (grid.user(&site, "ann").await, grid.user(&site, "eve").await);
    let beside = beside("uploads that do not go on", &ann, &quick());
    let mut held = Vec::new();
    for n in 0..700u32 {
        // All that there is, announced; then a byte, then nothing.
        let (tx, rx) = mpsc::channel(2);
        let mut grid = eve.grid.clone();
        let first = pb::BlobPart { hash: BlobHash::of(&n.to_be_bytes()).0.to_vec(), size: (1 << 20) - 64 * 1024, data: vec![1].into() };
        tx.send(first).await.unwrap();
        held.push((tx, tokio::spawn(async move { grid.put_blob(ReceiverStream::new(rx)).await.map(drop) })));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!put(&ann, &vec![7; 400 * 1024]).await.unwrap(), "an honest upload");
    // What he says is larger than there is room for is refused at once.
    let first = pb::BlobPart { hash: vec![1; 32], size: 10 << 20, data: vec![1].into() };
    let refused = answer(ann.grid.clone().put_blob(tokio_stream::iter([first]))).await.expect_err("too large");
    assert_eq!(RefusalKind::OverLimit, refused.kind, "{refused}");
    held.iter().for_each(|(_, t)| t.abort());
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < 1_000, "{open} files are open");
    beside.served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_that_are_never_read_hold_up_nobody() {
    let grid = Grid::new();
    let (site, ann, eve) = world(&grid, "u-histories").await;
    let job = {
        let (job, _) = eve.submit("long", &quick(), 3_000).await.unwrap();
        while eve.show(&job).await.unwrap().ended_age_ms == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        job
    };
    eprintln!("{} rows", eve.history(&job).await.len());
    let beside = beside("histories never read", &ann, &quick());
    let mut held = Vec::new();
    for _ in 0..700 {
        let mut grid = eve.grid.clone();
        let request = about(by_id(&job));
        held.push(tokio::spawn(async move {
            let stream = grid.history(request).await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(stream);
        }));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let uploaded = tokio::time::timeout(Duration::from_secs(5), put(&ann, b"an honest upload")).await;
    assert!(matches!(uploaded, Ok(Ok(false))), "{uploaded:?}");
    held.iter().for_each(|h| h.abort());
    beside.served().await;
    still_serves(&grid, &site, &quick()).await;
}

/// A message that is announced and never ends.
struct Half(Option<Bytes>);

impl http_body::Body for Half {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, tonic::Status>>> {
        match self.0.take() {
            Some(bytes) => Poll::Ready(Some(Ok(http_body::Frame::data(bytes)))),
            None => Poll::Pending,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_never_end_take_bounded_memory() {
    let grid = Grid::new();
    let (site, ann, eve) = world(&grid, "u-halves").await;
    let beside = beside("calls that never end", &ann, &quick());
    let clients = [eve.clone(), grid.user(&site, "eve").await, grid.user(&site, "eve").await];
    let mut held = Vec::new();
    const SAID: usize = 4 * 1024 * 1024 - 64;
    let body = Bytes::from([&[0][..], &(SAID as u32).to_be_bytes()[..], &vec![0; SAID - 1_000][..]].concat());
    for n in 0..900 {
        let mut channel = clients[n % 3].channel.clone();
        let call = ["Submit", "SetWant", "HasBlobs", "Explain", "PutBlob", "SubmitMany"][n % 6];
        let request = http::Request::post(format!("http://site.intergrid.internal/intergrid.v1.Grid/{call}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(tonic::body::Body::new(Half(Some(body.clone()))))
            .unwrap();
        held.push(tokio::spawn(async move {
            std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
            let _ = channel.call(request).await;
            tokio::time::sleep(Duration::from_secs(60)).await;
        }));
    }
    tokio::time::sleep(Duration::from_secs(8)).await;
    // Both ends are in this process: what the client has not sent is counted too, though all its bodies are one.
    beside.within(900).await;
    held.iter().for_each(|h| h.abort());
    still_serves(&grid, &site, &quick()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_larger_decoded_than_sent_are_bounded() {
    let grid = Grid::new();
    let (site, ann, eve) = world(&grid, "u-swollen").await;
    let beside = beside("swollen messages", &ann, &quick());
    // Two bytes on the wire, a hundred in memory.
    let chain = vec![pb::ChainLink::default(); 1_900_000];
    let request = pb::SubmitRequest { chain, ..submission("k", &quick(), 1) };
    let mut calls = Vec::new();
    for _ in 0..4 {
        let (mut grid, request) = (eve.grid.clone(), request.clone());
        calls.push(tokio::spawn(async move { grid.submit(request).await.map(drop) }));
    }
    drop(request);
    for c in calls {
        assert!(c.await.unwrap().is_err());
    }
    beside.within(900).await;
    still_serves(&grid, &site, &quick()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_shapes_do_not_slow_the_site_down() {
    let grid = Grid::new();
    let (site, ann, eve) = world(&grid, "u-shapes").await;
    let beside = beside("thousands of shapes", &ann, &quick());
    let job = |n: u64| {
        let mut spec = never();
        spec.shape.memory_bytes = 1_000 + n;
        submission(&format!("k{n}"), &spec, 1)
    };
    let mut answers = answer(eve.grid.clone().submit_many(tokio_stream::iter((0..20_000).map(job)))).await.unwrap();
    let (mut taken, mut refused) = (0, None);
    while let Some(a) = tokio::time::timeout(2 * intergrid_tests::PATIENCE, answers.message()).await.expect("in time").unwrap() {
        match a.error {
            None => taken += 1,
            Some(e) => refused = Some(Refusal::from(e)),
        }
    }
    eprintln!("{taken} taken; {refused:?}");
    beside.served().await;
    let refused = refused.expect("there is a bound");
    assert!(refused.kind == RefusalKind::OverLimit && refused.message.contains("shapes"), "{refused}");
    still_serves(&grid, &site, &quick()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_without_end_leave_room_for_others() {
    let grid = Grid::new();
    let (site, ann, eve) = world(&grid, "u-questions").await;
    let (large, _) = eve.submit("large", &never(), 4_000_000).await.unwrap();
    let spread = pb::SetWantRequest { job: by_id(&large), value: 3, tasks: runs([vec![100, 1], [4_095, 1].repeat(975)].concat()) };
    answer(eve.grid.clone().set_want(spread)).await.unwrap();
    let many = (0..3_000).map(|n| submission(&format!("k{n}"), &never(), 1));
    let mut answers = answer(eve.grid.clone().submit_many(tokio_stream::iter(many.collect::<Vec<_>>()))).await.unwrap();
    while answers.message().await.unwrap().is_some() {}
    let beside = beside("questions without end", &ann, &quick());
    let mut asking = Vec::new();
    for n in 0..300usize {
        let (mut grid, large) = (eve.grid.clone(), by_id(&large));
        asking.push(tokio::spawn(async move {
            loop {
                let done = match n % 4 {
                    0 => grid.list(pb::ListRequest { limit: 10_000 }).await.map(drop),
                    1 => grid.explain(about(large.clone())).await.map(drop),
                    2 => grid.show(about(large.clone())).await.map(drop),
                    _ => grid.show(about(by_id("00"))).await.map(drop),
                };
                if done.is_err() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }));
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    asking.iter().for_each(|a| a.abort());
    beside.served().await;
    still_serves(&grid, &site, &quick()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_are_dropped_are_forgotten_and_many_are_refused() {
    let grid = Grid::new();
    let (site, ann, eve) = world(&grid, "u-watches").await;
    let (job, _) = eve.submit("long", &never(), 1).await.unwrap();
    let beside = beside("watches", &ann, &quick());
    let mut held = Vec::new();
    let mut refused = None;
    for _ in 0..900 {
        match tokio::time::timeout(Duration::from_secs(5), eve.grid.clone().watch(about(by_id(&job)))).await.expect("an answer") {
            Ok(stream) => held.push(stream),
            Err(s) => refused = Some(intergrid_proto::net::refusal_of(&s)),
        }
    }
    let refused = refused.expect("there is a bound");
    assert!(refused.kind == RefusalKind::OverLimit && refused.message.contains("calls"), "{refused}");
    drop(held);
    until("room again", async || eve.grid.clone().watch(about(by_id(&job))).await.map(drop)).await;
    beside.served().await;
    still_serves(&grid, &site, &quick()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wishes_in_many_pieces_are_bounded_and_a_cancel_is_not_lost() {
    let grid = Grid::new();
    let (site, ann, eve) = world(&grid, "u-wishes").await;
    let (job, _) = eve.submit("large", &never(), 4_000_000).await.unwrap();
    let beside = beside("wishes in many pieces", &ann, &quick());
    let wish = async |value: i32, at: u32| {
        // Every other task of 120,000, from here on.
        let tasks = runs([vec![at, 1], [1, 1].repeat(59_999)].concat());
        answer(eve.grid.clone().set_want(pb::SetWantRequest { job: by_id(&job), value, tasks })).await.map(|r| r.tasks)
    };
    let mut refused = None;
    for n in 0..20 {
        match wish(pb::WantValue::WantHold.into(), n * 130_000).await {
            Ok(n) => assert_eq!(60_000, n),
            Err(r) => refused = Some(r),
        }
    }
    let refused = refused.expect("there is a bound");
    assert!(refused.kind == RefusalKind::OverLimit && refused.message.contains("ranges"), "{refused}");
    // What was wished before stands, and all of it can be cancelled.
    let view = eve.show(&job).await.unwrap();
    assert!(intergrid_tests::client::count(&view, intergrid_proto::Phase::Held) >= 60_000, "{:?}", view.counts);
    assert_eq!(4_000_000, eve.want(&job, WantValue::Cancel).await.unwrap());
    beside.served().await;
    still_serves(&grid, &site, &quick()).await;
}
