//! The service of one site, called from outside: who may call what, what bad input does (nothing), and what each answer says.

use intergrid_gateway::daemon::Running;
use intergrid_proto::limits::{MESSAGE_BYTES_MAX, NAME_BYTES_MAX, TASKS_PER_JOB_MAX};
use intergrid_proto::link::{Attempts, Down, Event, EventKind, Hello, Hop, Kind, Origin, Place, Up, Want, WantValue};
use intergrid_proto::net::{CertRole, refusal_of};
use intergrid_proto::pb::pool_client::PoolClient;
use intergrid_proto::spec::File;
use intergrid_proto::{BlobHash, JobSpec, Phase, ReasonKind, Refusal, RefusalKind, SiteId, TaskSet, pb};
use intergrid_tests::client::{Client, about, answer, by_id, count, placed, submission};
use intergrid_tests::grid::{Grid, at, machines, try_gateway};
use intergrid_tests::{PATIENCE, logs, until};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

fn sleep(seconds: &str) -> JobSpec {
    JobSpec::new(["sleep", seconds])
}

/// Every call, and who may make it: user, admin, delegate, agent. A delegate names jobs by its own numbers, all others by id.
const MAY: &[(&str, [bool; 4])] = &[
    ("submit", [true, true, false, false]),
    ("submit_many", [true, true, false, false]),
    ("quote", [true, true, false, false]),
    ("set_want", [true, true, false, false]),
    ("order", [true, true, false, false]),
    ("order drain", [false, true, false, false]),
    ("order lost", [false, true, false, false]),
    ("order look", [false, true, false, false]),
    ("list", [true, true, false, false]),
    ("show", [true, true, false, false]),
    ("show placed", [false, false, true, false]),
    ("watch", [true, true, false, false]),
    ("watch placed", [false, false, true, false]),
    ("history", [true, true, false, false]),
    ("history placed", [false, false, true, false]),
    ("explain", [true, true, false, false]),
    ("explain placed", [false, false, true, false]),
    ("get_output", [true, true, false, false]),
    ("get_output placed", [false, false, true, false]),
    ("peek", [true, true, false, false]),
    ("peek placed", [false, false, true, false]),
    ("hosts", [true, true, true, false]),
    ("has_blobs", [true, true, true, false]),
    ("put_blob", [true, true, true, false]),
    ("link", [false, false, true, false]),
    ("attach", [false, false, false, true]),
    ("get_blob", [false, false, false, true]),
    ("put_outputs", [false, false, false, true]),
    ("peeks", [false, false, false, true]),
];

/// Make a call, as right as the caller can: what it says when it is let through does not matter.
async fn call(c: &Client, what: &str, blob: &[u8]) -> Result<(), Refusal> {
    let (mut grid, mut pool) = (c.grid.clone(), PoolClient::new(c.channel.clone()));
    let (call, job) = match what.split_once(' ') {
        Some((call, _)) => (call, placed(1)),
        None => (what, by_id("last")),
    };
    let hash = BlobHash::of(blob).0.to_vec();
    let part = pb::BlobPart { hash: hash.clone(), size: blob.len() as u64, data: blob.to_vec().into() };
    match call {
        "submit" => answer(grid.submit(submission("k", &sleep("0"), 1))).await.map(drop),
        "submit_many" => answer(grid.submit_many(tokio_stream::iter([submission("k", &sleep("0"), 1)]))).await.map(drop),
        "quote" => answer(grid.quote(pb::QuoteRequest { spec: sleep("0").encode() })).await.map(drop),
        "set_want" => {
            let request = pb::SetWantRequest { job, value: pb::WantValue::from(WantValue::Cancel).into(), tasks: None };
            answer(grid.set_want(request)).await.map(drop)
        }
        "order" => {
            use pb::order_request::What;
            let what = match what {
                "order drain" => What::Resume(String::new()),
                "order lost" => What::Lost("nobody".into()),
                "order look" => What::Look("nobody".into()),
                _ => What::Throttle(pb::Throttle { job, tasks_at_once: 1 }),
            };
            answer(grid.order(pb::OrderRequest { what: Some(what) })).await.map(drop)
        }
        "list" => answer(grid.list(pb::ListRequest::default())).await.map(drop),
        "show" => answer(grid.show(about(job))).await.map(drop),
        "watch" => answer(grid.watch(about(job))).await.map(drop),
        "history" => answer(grid.history(about(job))).await.map(drop),
        "explain" => answer(grid.explain(about(job))).await.map(drop),
        "get_output" => answer(grid.get_output(pb::OutputRequest { job, task: 0, name: "stdout".into() })).await.map(drop),
        "peek" => answer(grid.peek(pb::PeekRequest { job, ..Default::default() })).await.map(drop),
        "hosts" => answer(grid.hosts(pb::HostsRequest::default())).await.map(drop),
        "has_blobs" => answer(grid.has_blobs(pb::BlobHashes { hashes: vec![hash] })).await.map(drop),
        "put_blob" => answer(grid.put_blob(tokio_stream::iter([part]))).await.map(drop),
        "link" => answer(grid.link(tokio_stream::iter(Vec::<pb::Down>::new()))).await.map(drop),
        "attach" => answer(pool.attach(tokio_stream::iter(Vec::<pb::Up>::new()))).await.map(drop),
        "get_blob" => answer(pool.get_blob(pb::BlobHash { hash })).await.map(drop),
        "put_outputs" => answer(pool.put_outputs(tokio_stream::iter(Vec::<pb::OutputPart>::new()))).await.map(drop),
        "peeks" => answer(pool.peeks(tokio_stream::iter(Vec::<pb::PeekAnswer>::new()))).await.map(drop),
        other => panic!("no call {other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_may_make_its_calls_and_no_other() {
    let grid = Grid::new();
    let site = grid.pool("roles", &["roles-parent"]).await;
    let callers = [
        ("user", grid.user(&site, "ann").await),
        ("admin", grid.caller(&site, CertRole::Admin, "root").await),
        ("delegate", grid.call(&site, &grid.site_certificate("roles-parent")).await.unwrap()),
        ("agent", grid.caller(&site, CertRole::Agent, "m1").await),
    ];
    let blob = b"content";
    call(&callers[0].1, "put_blob", blob).await.unwrap();
    for (what, may) in MAY {
        for ((role, caller), may) in callers.iter().zip(may) {
            let got = call(caller, what, blob).await;
            let denied = matches!(&got, Err(r) if r.kind == RefusalKind::NotAuthorised);
            assert_eq!(*may, !denied, "{role} calls {what}: {got:?}");
        }
    }
    // A certificate of a CA that is trusted for something else gives no role, and without a role nobody gets as far as a call.
    let stranger = grid.certificate("roles-parent", CertRole::User, "eve");
    let refused = grid.call(&site, &stranger).await.err().expect("no role");
    assert_eq!(RefusalKind::NotAuthorised, refused.kind, "{refused}");
    logs::wait(&["refused", "user eve"]).await;
}

async fn gateway(grid: &Grid, name: &str) -> Running {
    grid.gateway(name, &[&format!("{name}-parent")], machines(name, 1, 2)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_submissions_change_nothing() {
    let grid = Grid::new();
    let site = gateway(&grid, "bad").await;
    let ann = grid.user(&site, "ann").await;
    let good = || submission("k", &sleep("0"), 3);
    let spec = |bytes: Vec<u8>| pb::SubmitRequest { spec_hash: BlobHash::of(&bytes).0.to_vec(), spec: bytes, ..good() };
    let mut staged = sleep("0");
    staged.inputs = vec![File { name: "in".into(), hash: BlobHash::of(b"not here"), size: 8, executable: false }];
    let bad = [
        ("no key", pb::SubmitRequest { key: String::new(), ..good() }, RefusalKind::Invalid, "key"),
        ("long key", pb::SubmitRequest { key: "k".repeat(NAME_BYTES_MAX + 1), ..good() }, RefusalKind::Invalid, "key"),
        ("control key", pb::SubmitRequest { key: "a\nb".into(), ..good() }, RefusalKind::Invalid, "key"),
        ("no tasks", pb::SubmitRequest { tasks: 0, ..good() }, RefusalKind::Invalid, "tasks"),
        ("too many tasks", pb::SubmitRequest { tasks: TASKS_PER_JOB_MAX + 1, ..good() }, RefusalKind::Invalid, "tasks"),
        ("wrong hash", pb::SubmitRequest { spec_hash: vec![7; 32], ..good() }, RefusalKind::Invalid, "spec_hash"),
        ("short hash", pb::SubmitRequest { spec_hash: vec![7; 31], ..good() }, RefusalKind::Invalid, "spec_hash"),
        ("garbage", spec(vec![0xff; 64]), RefusalKind::Invalid, "spec"),
        ("empty spec", spec(Vec::new()), RefusalKind::Invalid, "argv"),
        ("large spec", spec(vec![0; 61 * 1024]), RefusalKind::OverLimit, "spec"),
        ("missing blob", submission("k", &staged, 1), RefusalKind::MissingBlob, "in"),
        ("long chain", pb::SubmitRequest { chain: vec![pb::ChainLink::default(); 9], ..good() }, RefusalKind::Invalid, "chain"),
    ];
    for (what, request, kind, named) in bad {
        let refused = ann.send(request).await.expect_err(what);
        assert!(refused.kind == kind && refused.message.contains(named), "{what}: {refused:?}");
    }
    // Beyond the message limit the connection's own bound answers, before anything is decoded.
    let refused = ann.send(spec(vec![0; MESSAGE_BYTES_MAX + 1])).await.expect_err("an oversized message");
    assert_eq!(RefusalKind::OverLimit, refused.kind, "{refused:?}");
    // One bad submission of a stream does not end it.
    let three = vec![good(), pb::SubmitRequest { tasks: 0, ..good() }, submission("k2", &sleep("0"), 1)];
    let mut answers = answer(ann.grid.clone().submit_many(tokio_stream::iter(three))).await.unwrap();
    let mut got = Vec::new();
    while let Some(a) = answers.message().await.unwrap() {
        got.push(a.error.map(|e| Refusal::from(e).kind));
    }
    assert_eq!(got, [None, Some(RefusalKind::Invalid), None]);
    // Nothing else is there; and the same key is the same job, unless it has another spec or size.
    let jobs = answer(ann.grid.clone().list(pb::ListRequest::default())).await.unwrap().jobs;
    assert_eq!(2, jobs.len(), "{jobs:?}");
    let (job, existed) = ann.submit("k", &sleep("0"), 3).await.unwrap();
    assert!(existed && jobs.iter().any(|j| j.id == job));
    for (spec, tasks) in [(sleep("1"), 3), (sleep("0"), 4)] {
        let refused = ann.submit("k", &spec, tasks).await.expect_err("another spec");
        assert!(refused.kind == RefusalKind::Conflict && refused.message.contains(&job), "{refused:?}");
    }
    // Another user's key is another key.
    let bob = grid.user(&site, "bob").await;
    assert!(!bob.submit("k", &sleep("1"), 1).await.unwrap().1);
    assert_eq!(3, count(&ann.ended(&job).await, Phase::Done));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_are_their_owners() {
    let grid = Grid::new();
    let site = gateway(&grid, "owners").await;
    let (ann, bob) = (grid.user(&site, "ann").await, grid.user(&site, "bob").await);
    let admin = grid.caller(&site, CertRole::Admin, "root").await;
    let (job, _) = ann.submit("k", &sleep("3600"), 2).await.unwrap();
    let not_found = |r: Result<(), Refusal>| assert_eq!(RefusalKind::NotFound, r.expect_err("not bob's").kind);
    not_found(bob.show(&job).await.map(drop));
    not_found(bob.show(&job[..2]).await.map(drop));
    not_found(bob.show("last").await.map(drop));
    not_found(bob.explain(&job).await.map(drop));
    not_found(bob.want(&job, WantValue::Cancel).await.map(drop));
    not_found(answer(bob.grid.clone().watch(about(by_id(&job)))).await.map(drop));
    not_found(answer(bob.grid.clone().history(about(by_id(&job)))).await.map(drop));
    not_found(answer(bob.grid.clone().get_output(pb::OutputRequest { job: by_id(&job), task: 0, name: "stdout".into() })).await.map(drop));
    assert!(answer(bob.grid.clone().list(pb::ListRequest::default())).await.unwrap().jobs.is_empty());
    assert_eq!(1, answer(admin.grid.clone().list(pb::ListRequest::default())).await.unwrap().jobs.len());
    assert_eq!("ann", admin.show(&job).await.unwrap().owner);
    assert_eq!(2, admin.want(&job, WantValue::Cancel).await.unwrap());
    assert_eq!(2, count(&ann.ended(&job).await, Phase::Cancelled));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_say_what_is() {
    let grid = Grid::new();
    let site = gateway(&grid, "views").await;
    let ann = grid.user(&site, "ann").await;
    let mut jobs = Vec::new();
    for i in 0..40 {
        jobs.push(ann.submit(&format!("k{i}"), &sleep("0"), 1).await.unwrap().0);
    }
    // Names: whole, unique prefix, not unique prefix, unknown, nonsense, last.
    let last = jobs.last().unwrap();
    assert_eq!(*last, ann.show("last").await.unwrap().id);
    let unique = (1..=6).map(|n| &last[..n]).find(|p| jobs.iter().filter(|j| j.starts_with(p)).count() == 1).unwrap();
    assert_eq!(*last, ann.show(unique).await.unwrap().id);
    let shared = (b'0'..=b'z').map(|c| (c as char).to_string()).find(|p| jobs.iter().filter(|j| j.starts_with(p.as_str())).count() > 1).unwrap();
    assert_eq!(RefusalKind::Conflict, ann.show(&shared).await.expect_err("not unique").kind);
    for unknown in ["", "zzzzzzzz", "no such job", "ÄÖ€", &"0".repeat(10_000)] {
        assert_eq!(RefusalKind::NotFound, ann.show(unknown).await.expect_err("unknown").kind, "{unknown:?}");
    }
    let listed = answer(ann.grid.clone().list(pb::ListRequest { limit: 7 })).await.unwrap().jobs;
    assert_eq!(listed.iter().map(|j| &j.id).collect::<Vec<_>>(), jobs.iter().rev().take(7).collect::<Vec<_>>(), "newest first");
    for j in &jobs {
        ann.ended(j).await;
    }
    // A job that fails: phase, exit, reason; its history says where.
    let (job, _) = ann.submit("fails", &JobSpec::new(["/bin/sh", "-c", "exit 3"]), 2).await.unwrap();
    let view = ann.ended(&job).await;
    let failed = view.counts.iter().find(|c| c.phase == Phase::Failed as i32).unwrap();
    let kind = failed.reason.as_ref().map(|r| ReasonKind::from_number(r.kind));
    assert!(failed.tasks == 2 && kind == Some(ReasonKind::ExitNonZero) && view.ended_age_ms > 0, "{view:?}");
    let whole = ann.show(&job).await.unwrap();
    assert_eq!(JobSpec::new(["/bin/sh", "-c", "exit 3"]).encode(), whole.spec);
    assert!(whole.ranges.iter().all(|r| r.exit == [3]) && !whole.ranges.is_empty(), "{:?}", whole.ranges);
    let history = ann.history(&job).await;
    let ended: u64 = history.iter().filter(|h| h.ended.is_some()).map(|h| tasks(&h.tasks).len()).sum();
    let at_child = history.iter().all(|h| h.child.as_ref().is_some_and(|c| c.name == "views-m0") && h.number > 0);
    assert!(ended == 2 && at_child, "{history:?}");
    let why = ann.explain(&job).await.unwrap();
    assert_eq!("views", why.site.unwrap().name);
    assert!(why.reasons.iter().any(|r| ReasonKind::from_number(r.kind) == ReasonKind::ExitNonZero), "{:?}", why.reasons);
    // What waits says why, and a cancel ends it.
    let mut large = sleep("0");
    large.shape.slots = 3;
    let (job, _) = ann.submit("large", &large, 1).await.unwrap();
    let view = ann.show(&job).await.unwrap();
    let why = view.counts.iter().find(|c| c.phase == Phase::Queued as i32).and_then(|c| c.reason.clone()).unwrap();
    assert_eq!(ReasonKind::NoFit, ReasonKind::from_number(why.kind), "{why:?}");
    assert_eq!(1, ann.want(&job, WantValue::Cancel).await.unwrap());
    assert_eq!(1, count(&ann.ended(&job).await, Phase::Cancelled));
    assert_eq!(0, ann.want(&job, WantValue::Cancel).await.unwrap(), "what is over is not concerned");
    let returned = ann.want(&job, WantValue::Return).await.expect_err("only parents");
    assert_eq!(RefusalKind::Invalid, returned.kind);
    // Held, released.
    let held = pb::SubmitRequest { want_hold: 1, ..submission("held", &sleep("0"), 2) };
    let (job, _) = ann.send(held).await.unwrap();
    assert_eq!(2, count(&ann.show(&job).await.unwrap(), Phase::Held));
    assert_eq!(2, ann.want(&job, WantValue::Run).await.unwrap());
    assert_eq!(2, count(&ann.ended(&job).await, Phase::Done));
}

fn tasks(t: &Option<pb::Tasks>) -> TaskSet {
    intergrid_proto::convert::tasks_in(t.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tree_is_told_and_who_is_away_is_named() {
    let grid = Grid::new();
    let near = grid.gateway("near", &["tree"], machines("near", 2, 2)).await;
    let far = grid.gateway("far", &["tree"], machines("far", 1, 4)).await;
    let root = grid.broker("tree", &[], &[at(&near), at(&far), ("never".into(), Some("127.0.0.1:9".into()))]).await;
    let ann = grid.user(&root, "ann").await;
    let host = until("both children", async || match ann.hosts().await.unwrap() {
        h if h.slots_total == 8 => Ok(h),
        h => Err(h),
    })
    .await;
    let name = |h: &pb::Host| h.site.as_ref().unwrap().name.clone();
    assert_eq!(["far", "near", "never"], *host.below.iter().map(name).collect::<Vec<_>>());
    assert_eq!(["near-m0", "near-m1"], *host.below[1].below.iter().map(name).collect::<Vec<_>>());
    assert!(
        host.below[2].unreachable.contains("never since this site started") && host.below[0].unreachable.is_empty() && host.backend == "federation"
    );
    let (job, _) = ann.submit("k", &sleep("3600"), 8).await.unwrap();
    until("all to run", async || match ann.show(&job).await.unwrap() {
        v if count(&v, Phase::Running) == 8 => Ok(()),
        v => Err(v.counts),
    })
    .await;
    far.stop().await;
    let why = until("the lost child in explain", async || {
        let e = ann.explain(&job).await.unwrap();
        let lost = e.below.iter().find(|b| !b.unreachable.is_empty()).cloned();
        lost.ok_or(e)
    })
    .await;
    assert_eq!("far", why.site.unwrap().name);
    let host = ann.hosts().await.unwrap();
    assert!(!host.below[0].unreachable.is_empty() && host.below[1].unreachable.is_empty(), "{host:?}");
    // Unknown is about the observer: they are shown as they were last seen.
    assert_eq!(8, count(&ann.show(&job).await.unwrap(), Phase::Running));
}

/// The parent's end of a link, by hand.
struct Link {
    say: mpsc::Sender<pb::Down>,
    hear: tonic::Streaming<pb::Up>,
    hello: Hello,
}

impl Link {
    async fn open(c: &Client, me: Hop) -> Result<Link, Refusal> {
        let (say, said) = mpsc::channel(16);
        let mut hear = answer(c.grid.clone().link(ReceiverStream::new(said))).await?;
        let first = hear.message().await.map_err(|s| refusal_of(&s))?;
        let Some(Ok(Up::Hello(hello))) = first.map(Up::try_from) else { panic!("no hello") };
        let answer = Hello { hop: me, incarnation: 5, peer_incarnation: hello.incarnation, peer_sequence: 0, ..hello.clone() };
        say.send(Down::Hello(answer).into()).await.unwrap();
        Ok(Link { say, hear, hello })
    }

    async fn event(&mut self) -> Event {
        let heard = async {
            loop {
                match Up::try_from(self.hear.message().await.unwrap().expect("an open link")).unwrap() {
                    Up::Events(e) => return e.events[0].clone(),
                    _ => continue,
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.expect("an event")
    }
}

fn hop(id: SiteId, name: &str) -> Hop {
    Hop { site: id, name: name.into(), kind: Kind::Broker }
}

fn place(me: &Hop, number: u64, principal: &str) -> Place {
    let spec = sleep("0").encode();
    Place {
        number,
        job: number,
        origin: Origin { site: me.site, job: "j".into(), principal: principal.into(), submitted_ms: 0 },
        spec_hash: BlobHash::of(&spec),
        spec,
        tasks: TaskSet::one(0),
        share: "s".into(),
        attempts: 0,
        want: Want { job: number, ..Want::default() },
        route: vec![me.site],
        hops_left: 8,
        chain: Vec::new(),
        array_size: 1,
        attempt_cost_max: 0,
        known: Default::default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_session_a_parent_and_only_for_whom_it_may() {
    let grid = Grid::new();
    let mut config = grid.config("links", &[]);
    config.trust.push(grid.trust("links-parent", &[intergrid_proto::net::Role::Delegate], "physics-*"));
    let site = grid.gateway_of(config, machines("links", 1, 2)).await;
    let identity = grid.site_certificate("links-parent");
    let me = hop(identity.id(), "links-parent");
    let parent = grid.call(&site, &identity).await.unwrap();
    let mut link = Link::open(&parent, me.clone()).await.unwrap();
    assert_eq!(site.me, link.hello.hop);
    // A second session of one id, over another connection.
    let twin = grid.call(&site, &identity).await.unwrap();
    let refused = Link::open(&twin, me.clone()).await.err().expect("a second session");
    assert_eq!(RefusalKind::DuplicateIdentity, refused.kind, "{refused:?}");
    logs::wait(&["refused", "links-parent", "connected already"]).await;
    // On behalf of whom it may not act: given back, and why.
    link.say.send(Down::Place(Box::new(place(&me, 1, "biology-bob"))).into()).await.unwrap();
    let Event { of, what: EventKind::Returned(why) } = link.event().await else { panic!("not returned") };
    assert_eq!((Attempts { number: 1, job: 1, tasks: TaskSet::one(0) }, ReasonKind::NotAuthorised), (of, why.kind), "{}", why.text);
    // For whom it may, it is let through to the credit (this share has none).
    link.say.send(Down::Place(Box::new(place(&me, 2, "physics-ann"))).into()).await.unwrap();
    let Event { what: EventKind::Returned(why), .. } = link.event().await else { panic!("not returned") };
    assert_eq!(ReasonKind::OverCredit, why.kind, "{}", why.text);
    // A message that breaks the protocol ends the link and nothing else.
    link.say.send(pb::Down::default()).await.unwrap();
    let ended = async { while let Ok(Some(_)) = link.hear.message().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the end of the link");
    logs::wait(&["link dropped", "links-parent"]).await;
    let ann = grid.user(&site, "ann").await;
    ann.run("k", &sleep("0"), 3).await;
    // The parent may come back; one that says that it is somebody else is dropped again.
    let stolen = hop(SiteId([9; 16]), "links-parent");
    let mut link = until("the session to be over", async || Link::open(&parent, stolen.clone()).await).await;
    let ended = async { while let Ok(Some(_)) = link.hear.message().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the end of the link");
    until("the session to be over", async || Link::open(&parent, me.clone()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_jobs_and_port_and_a_store_has_one_daemon() {
    let grid = Grid::new();
    let (config, fake) = (grid.config("again", &[]), machines("again", 2, 2));
    let site = grid.gateway_of(config.clone(), fake.clone()).await;
    let ann = grid.user(&site, "ann").await;
    let done = ann.run("done", &sleep("0"), 10).await;
    let (long, _) = ann.submit("long", &sleep("0.05"), 100).await.unwrap();
    // A second daemon on this store is refused, and the first goes on.
    let refused = try_gateway(config.clone(), machines("again2", 1, 1)).await.err().expect("a second daemon");
    assert!(refused.kind == RefusalKind::Unavailable && refused.message.contains("again"), "{refused:?}");
    let endpoint = site.endpoint.clone();
    until("work to be under way", async || match fake.with(0, |c| c.starts().len()) {
        n if n > 10 => Ok(()),
        n => Err(n),
    })
    .await;
    site.stop().await;
    let site = grid.gateway_of(config, fake.clone()).await;
    assert_eq!(endpoint, site.endpoint, "the port");
    let ann = grid.user(&site, "ann").await;
    assert_eq!(10, count(&ann.show(&done).await.unwrap(), Phase::Done));
    assert_eq!((done.clone(), true), ann.submit("done", &sleep("0"), 10).await.unwrap());
    assert!(!ann.history(&done).await.is_empty());
    assert_eq!(100, count(&ann.ended(&long).await, Phase::Done));
    let starts: usize = (0..2).map(|i| fake.with(i, |c| c.starts().len())).sum();
    assert_eq!(110, starts, "each task was started once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_is_what_its_hash_says_or_is_not_taken() {
    let grid = Grid::new();
    let site = gateway(&grid, "blobs").await;
    let ann = grid.user(&site, "ann").await;
    let (content, hash) = (b"input".to_vec(), BlobHash::of(b"input").0.to_vec());
    let mut spec = sleep("0");
    spec.inputs = vec![File { name: "in".into(), hash: BlobHash::of(&content), size: 5, executable: false }];
    let has = async || answer(ann.grid.clone().has_blobs(pb::BlobHashes { hashes: vec![hash.clone()] })).await.map(|h| h.hashes.len());
    let put = async |size: u64, data: &[u8]| {
        let (head, rest) = data.split_at(data.len() / 2);
        let first = pb::BlobPart { hash: hash.clone(), size, data: head.to_vec().into() };
        let second = pb::BlobPart { data: rest.to_vec().into(), ..Default::default() };
        answer(ann.grid.clone().put_blob(tokio_stream::iter([first, second]))).await.map(|r| r.existed)
    };
    assert_eq!(RefusalKind::MissingBlob, ann.submit("k", &spec, 1).await.expect_err("not uploaded").kind);
    for (size, data) in [(5, &b"ouput"[..]), (5, b"inpu"), (5, b"input!"), (4, b"input"), (6, b"input"), (u64::MAX, b"input"), (0, b"")] {
        let refused = put(size, data).await.expect_err("wrong content");
        assert!(matches!(refused.kind, RefusalKind::Invalid | RefusalKind::OverLimit), "{size} {data:?}: {refused:?}");
        assert_eq!(Ok(0), has().await);
    }
    assert_eq!((Ok(false), Ok(1)), (put(5, &content).await, has().await));
    assert_eq!(Ok(true), put(5, &content).await);
    for (hashes, kind) in [(vec![vec![1; 31]], RefusalKind::Invalid), (vec![hash.clone(); 2_001], RefusalKind::OverLimit)] {
        let refused = answer(ann.grid.clone().has_blobs(pb::BlobHashes { hashes })).await.expect_err("bad hashes");
        assert_eq!(kind, refused.kind);
    }
    ann.run("k", &spec, 1).await;
}
