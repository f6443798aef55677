//! The laws over real wires: a gateway and an agent, each a perfect child behind mTLS on loopback.

mod agent;
mod grid;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use intergrid_proto::limits::{KEEPALIVE_INTERVAL_MS, KEEPALIVE_TIMEOUT_MS};
use intergrid_proto::link::{Down, Hop, Kind, Up};
use intergrid_proto::net::issue::{Validity, issue, new_site};
use intergrid_proto::net::reverse::{self, ReverseConn};
use intergrid_proto::net::server::{Limits, grpc_server, incoming};
use intergrid_proto::net::{CertRole, Identity, Role, Trust, TrustEntry};
use intergrid_proto::{BlobHash, Refusal, RefusalKind, SiteId, pb};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use self::agent::{Alone, TestAgent};
use self::grid::TestGrid;
use super::agents::{AgentPool, Provider, StaticProvider};
use super::child_end::ChildEnd;
use super::remote::{Remote, Source};
use crate::backend::{Backend, Configured, FromChild};
use crate::blobs::{BlobLimits, BlobStore};
use crate::laws::Laws;
use crate::outputs::OutputStore;

/// Identities on disk.
pub struct Fixture {
    tmp: tempfile::TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        Fixture { tmp: tempfile::tempdir().unwrap() }
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    pub fn site(&self, label: &str) -> Arc<Identity> {
        new_site(self.dir(label), label, &[]).unwrap();
        Arc::new(Identity::load(self.dir(label)).unwrap())
    }

    pub fn agent(&self, of: &str, label: &str) -> Arc<Identity> {
        let dir = self.dir(&format!("{of}-{label}-{:?}", Instant::now()));
        issue(self.dir(of), CertRole::Agent, label, &dir, Validity::default()).unwrap();
        Arc::new(Identity::load(dir).unwrap())
    }
}

pub fn trust(of: &Identity, may: &[Role]) -> Arc<Trust> {
    let entry = TrustEntry { ca_pem: of.ca_pem().unwrap().to_vec(), may: may.iter().copied().collect(), on_behalf: vec!["*".into()] };
    Arc::new(Trust::new([entry]).unwrap())
}

pub fn hop(identity: &Identity, kind: Kind) -> Hop {
    Hop { site: identity.id(), name: identity.label().into(), kind }
}

/// Act out a child over a connection until one of its directions ends.
pub async fn act(end: Arc<Mutex<ChildEnd>>, mut says: impl Stream<Item = Down> + Unpin, ups: mpsc::Sender<Up>, began: Instant) {
    let now = || began.elapsed().as_millis() as u64;
    let mut said = end.lock().unwrap().attach();
    loop {
        for up in said {
            if ups.send(up).await.is_err() {
                return end.lock().unwrap().detach();
            }
        }
        let due = end.lock().unwrap().next_due().unwrap_or(now() + 60_000);
        said = tokio::select! {
            down = says.next() => match down {
                Some(down) => end.lock().unwrap().down(down, now()),
                None => return end.lock().unwrap().detach(),
            },
            () = tokio::time::sleep_until(began + Duration::from_millis(due)) => end.lock().unwrap().tick(now()),
            () = ups.closed() => return end.lock().unwrap().detach(),
        };
    }
}

fn a_child(identity: &Identity, kind: Kind, slots: u32) -> Arc<Mutex<ChildEnd>> {
    let mut end = ChildEnd::new(hop(identity, kind), 7, slots, 8 << 30);
    end.acting.delay_ms = 1;
    Arc::new(Mutex::new(end))
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    (listener, endpoint)
}

/// A gateway that serves its link by a perfect child; where it listens.
async fn serve_gateway(identity: Arc<Identity>, parent: &Identity, slots: u32) -> (TestGrid, String) {
    let grid = TestGrid::new(a_child(&identity, Kind::Gateway, slots));
    let (listener, endpoint) = listen().await;
    let connections = incoming(listener, identity, trust(parent, &[Role::Delegate]), Limits::default(), None).unwrap();
    tokio::spawn(grpc_server().serve_with_incoming(grid.service(), connections));
    (grid, endpoint)
}

/// Start a backend and wait for its child's hello.
async fn linked(backend: Arc<dyn Backend>, me: Hop) -> (SiteId, mpsc::Receiver<(SiteId, FromChild)>) {
    let (sink, mut heard) = mpsc::channel(64);
    backend.start(me, sink);
    let (child, first) = timeout(Duration::from_secs(10), heard.recv()).await.unwrap().unwrap();
    assert!(matches!(first, FromChild::Up(Up::Hello(_))), "{first:?}");
    (child, heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_gateway_obeys_the_laws() {
    let fixture = Fixture::new();
    let (me, child) = (fixture.site("top"), fixture.site("campus"));
    let (grid, endpoint) = serve_gateway(child.clone(), &me, 8).await;
    let remote = Remote::new("campus", child.ca_pem().unwrap().to_vec(), me.clone(), Source::Dial { endpoint: endpoint.clone() });
    let configured = |unreachable: &str| vec![Configured { name: "campus".into(), endpoint: endpoint.clone(), unreachable: unreachable.into() }];
    assert_eq!(configured("not reached yet"), remote.configured());
    Laws::of(remote, hop(&me, Kind::Broker)).run().await.unwrap_or_else(|why| panic!("{why}"));
    grid.assert_started_once();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_dials_its_parent_obeys_the_laws() {
    let fixture = Fixture::new();
    let (me, child) = (fixture.site("top"), fixture.site("burst"));
    let (listener, endpoint) = listen().await;
    let (children, arrivals) = mpsc::channel::<ReverseConn>(8);
    let _held = incoming(listener, me.clone(), trust(&child, &[Role::Child]), Limits::default(), Some(children)).unwrap();
    let grid = TestGrid::new(a_child(&child, Kind::Gateway, 4));
    let dial = || reverse::parent(endpoint.clone(), child.clone(), me.ca_pem().unwrap().to_vec(), trust(&me, &[Role::Delegate]));
    let both = futures::stream::select(dial(), dial());
    tokio::spawn(grpc_server().serve_with_incoming(grid.service(), both));
    let remote = Remote::new("burst", Vec::new(), me.clone(), Source::Accepted(arrivals));
    Laws::of(remote, hop(&me, Kind::Broker)).with(|o| o.array_tasks = 200).run().await.unwrap_or_else(|why| panic!("{why}"));
    grid.assert_started_once();
}

#[tokio::test]
async fn a_remote_gateway_gets_content() {
    let fixture = Fixture::new();
    let (me, child) = (fixture.site("top"), fixture.site("campus"));
    let (grid, endpoint) = serve_gateway(child.clone(), &me, 1).await;
    let remote = Remote::new("campus", child.ca_pem().unwrap().to_vec(), me.clone(), Source::Dial { endpoint });
    let (id, _heard) = linked(remote.clone(), hop(&me, Kind::Broker)).await;
    let bytes: Vec<u8> = (0..1_000_000u32).flat_map(|i| i.to_le_bytes()).collect();
    let (hash, file) = (BlobHash::of(&bytes), fixture.dir("blob"));
    std::fs::write(&file, &bytes).unwrap();
    for _ in 0..2 {
        remote.put_blob(id, hash, file.clone()).await.unwrap();
    }
    assert_eq!((1, Some(bytes)), (grid.puts(), grid.blob(hash)), "sent once, whole");
    let absent = remote.put_blob(id, BlobHash::of(b"other"), fixture.dir("nothing")).await.unwrap_err();
    assert_eq!(RefusalKind::MissingBlob, absent.kind, "{absent}");
    let wrong = remote.put_blob(id, BlobHash::of(b"other"), file).await.unwrap_err();
    assert_eq!(RefusalKind::Invalid, wrong.kind, "{wrong}");
    assert_eq!(RefusalKind::Unavailable, remote.hosts(SiteId::default(), Duration::from_secs(1)).await.unwrap_err().kind);
}

#[tokio::test]
async fn a_peer_that_is_not_who_it_should_be_is_not_linked() {
    let fixture = Fixture::new();
    let (me, child, other) = (fixture.site("top"), fixture.site("campus"), fixture.site("other"));
    let (grid, endpoint) = serve_gateway(child.clone(), &me, 1).await;
    let cases = [("another label", "partner", child.ca_pem().unwrap()), ("another CA", "campus", other.ca_pem().unwrap())];
    for (what, name, ca) in cases {
        let remote = Remote::new(name, ca.to_vec(), me.clone(), Source::Dial { endpoint: endpoint.clone() });
        let (sink, mut heard) = mpsc::channel(8);
        remote.start(hop(&me, Kind::Broker), sink);
        assert!(timeout(Duration::from_millis(500), heard.recv()).await.is_err(), "{what}");
    }
    // A hello that does not match the certificate.
    for lie in [hop(&other, Kind::Gateway), hop(&child, Kind::Agent), Hop { name: "partner".into(), ..hop(&child, Kind::Gateway) }] {
        grid.replace(ChildEnd::new(lie.clone(), 1, 1, 1));
        let remote = Remote::new("campus", child.ca_pem().unwrap().to_vec(), me.clone(), Source::Dial { endpoint: endpoint.clone() });
        let (sink, mut heard) = mpsc::channel(8);
        remote.start(hop(&me, Kind::Broker), sink);
        assert!(timeout(Duration::from_millis(500), heard.recv()).await.is_err(), "{lie:?}");
    }
}

#[tokio::test]
async fn a_child_that_restarts_is_found_again() {
    let fixture = Fixture::new();
    let (me, child) = (fixture.site("top"), fixture.site("campus"));
    let (listener, endpoint) = listen().await;
    drop(listener);
    let remote = Remote::new("campus", child.ca_pem().unwrap().to_vec(), me.clone(), Source::Dial { endpoint: endpoint.clone() });
    let (sink, mut heard) = mpsc::channel(64);
    remote.clone().start(hop(&me, Kind::Broker), sink);
    sleep(Duration::from_millis(300)).await;
    for _ in 0..2 {
        let listener = TcpListener::bind(&endpoint).await.unwrap();
        let grid = TestGrid::new(a_child(&child, Kind::Gateway, 1));
        let connections = incoming(listener, child.clone(), trust(&me, &[Role::Delegate]), Limits::default(), None).unwrap();
        let server = tokio::spawn(grpc_server().serve_with_incoming(grid.service(), connections));
        let (id, first) = timeout(Duration::from_secs(10), heard.recv()).await.unwrap().unwrap();
        assert!(matches!(first, FromChild::Up(Up::Hello(_))), "{first:?}");
        assert!(remote.send(id, Down::Resync));
        server.abort();
        grid.drop_link();
        let gone = async { while !matches!(heard.recv().await, Some((_, FromChild::Gone { .. }))) {} };
        timeout(Duration::from_secs(10), gone).await.unwrap();
        assert!(!remote.send(id, Down::Resync));
    }
}

/// A gateway's side of a pool, and where it listens.
async fn serve_pool(fixture: &Fixture, gateway: &Arc<Identity>, above: Arc<Alone>) -> (Arc<AgentPool>, String) {
    serve_pool_of(Arc::new(StaticProvider), fixture, gateway, above).await
}

async fn serve_pool_of(provider: Arc<dyn Provider>, fixture: &Fixture, gateway: &Arc<Identity>, above: Arc<Alone>) -> (Arc<AgentPool>, String) {
    let limits = BlobLimits { blobs_bytes_max: 1 << 30, free_min_bytes: 0 };
    let blobs = BlobStore::open(fixture.dir("blobs"), limits).unwrap();
    above.knows(blobs.clone());
    let outputs = OutputStore::open(fixture.dir("outputs"), 0).unwrap();
    let pool = AgentPool::new(provider, blobs, outputs, above);
    let (listener, endpoint) = listen().await;
    let connections = incoming(listener, gateway.clone(), trust(gateway, &[Role::Agent, Role::User]), Limits::default(), None).unwrap();
    tokio::spawn(grpc_server().serve_with_incoming(pool.service(), connections));
    (pool, endpoint)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_of_agents_obeys_the_laws() {
    let fixture = Fixture::new();
    let gateway = fixture.site("campus");
    let (pool, endpoint) = serve_pool(&fixture, &gateway, Arc::new(Alone::default())).await;
    let agents: Vec<TestAgent> = (0..3).map(|i| TestAgent::start(fixture.agent("campus", &format!("a{i}")), &endpoint, 2)).collect();
    let kept = Laws::of(pool.clone(), hop(&gateway, Kind::Gateway)).with(|o| o.children = 3).run().await;
    kept.unwrap_or_else(|why| panic!("{why}"));
    agents.iter().for_each(TestAgent::assert_started_once);
}

#[tokio::test]
async fn one_session_per_identity_and_per_name() {
    let fixture = Fixture::new();
    let gateway = fixture.site("campus");
    let (pool, endpoint) = serve_pool(&fixture, &gateway, Arc::new(Alone::default())).await;
    let identity = fixture.agent("campus", "a0");
    let first = TestAgent::start(identity.clone(), &endpoint, 1);
    let (_, mut heard) = linked(pool.clone(), hop(&gateway, Kind::Gateway)).await;
    let refused = agent::attach_once(&identity, &endpoint, hop(&identity, Kind::Agent)).await.unwrap_err();
    assert!(refused.kind == RefusalKind::DuplicateIdentity && refused.message.contains("127.0.0.1"), "{refused}");
    let namesake = fixture.agent("campus", "a0");
    let refused = agent::attach_once(&namesake, &endpoint, hop(&namesake, Kind::Agent)).await.unwrap_err();
    assert_eq!(RefusalKind::DuplicateIdentity, refused.kind, "{refused}");
    let other = fixture.agent("campus", "a1");
    for lie in [hop(&identity, Kind::Agent), hop(&other, Kind::Gateway), Hop { name: "a7".into(), ..hop(&other, Kind::Agent) }] {
        let refused = agent::attach_once(&other, &endpoint, lie).await.unwrap_err();
        assert_eq!(RefusalKind::NotAuthorised, refused.kind, "{refused}");
    }
    let user = fixture.dir("user");
    issue(fixture.dir("campus"), CertRole::User, "u", &user, Validity::default()).unwrap();
    let user = Identity::load(user).unwrap();
    let refused = agent::attach_once(&user, &endpoint, hop(&user, Kind::Agent)).await.unwrap_err();
    assert_eq!(RefusalKind::NotAuthorised, refused.kind, "{refused}");
    // The first is undisturbed, and when it is gone its name is free.
    assert!(!first.ended());
    drop(first);
    let gone = async { while !matches!(heard.recv().await, Some((_, FromChild::Gone { .. }))) {} };
    timeout(Duration::from_secs(10), gone).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    agent::attach_once(&namesake, &endpoint, hop(&namesake, Kind::Agent)).await.unwrap();
}

/// A way to an endpoint on which nothing comes through any more, once it is told so; it is closed so much later.
async fn a_way_that_falls_silent(endpoint: &str, closed_after: Duration) -> (String, oneshot::Sender<()>) {
    let (listener, way) = listen().await;
    let (silent, told) = oneshot::channel();
    let to = endpoint.to_string();
    tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = TcpStream::connect(to).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => (),
            _ = told => sleep(closed_after).await,
        }
    });
    (way, silent)
}

/// Its way falls silent: why its child is gone then, and for how long nothing had been heard, milliseconds.
async fn gone_when_silent(silent: oneshot::Sender<()>, mut heard: mpsc::Receiver<(SiteId, FromChild)>) -> (String, u64) {
    silent.send(()).unwrap();
    let gone = async {
        loop {
            if let Some((_, FromChild::Gone { why, silent_ms })) = heard.recv().await {
                break (why, silent_ms);
            }
        }
    };
    timeout(Duration::from_secs(20), gone).await.unwrap()
}

#[tokio::test]
async fn a_gateway_that_falls_silent_is_gone_since_it_was_heard() {
    let fixture = Fixture::new();
    let (me, child) = (fixture.site("top"), fixture.site("campus"));
    let (_grid, endpoint) = serve_gateway(child.clone(), &me, 1).await;
    // Before keepalives notice: what is seen is the end of the connection, and what counts is the silence before.
    let (way, silent) = a_way_that_falls_silent(&endpoint, Duration::from_millis(KEEPALIVE_TIMEOUT_MS / 2)).await;
    let remote = Remote::new("campus", child.ca_pem().unwrap().to_vec(), me.clone(), Source::Dial { endpoint: way });
    let (_, heard) = linked(remote, hop(&me, Kind::Broker)).await;
    let (why, silent_ms) = gone_when_silent(silent, heard).await;
    assert!(silent_ms >= KEEPALIVE_TIMEOUT_MS / 4, "{why}: {silent_ms} ms");
}

#[tokio::test]
async fn an_agent_that_falls_silent_is_gone_since_it_was_heard() {
    let fixture = Fixture::new();
    let gateway = fixture.site("campus");
    let (pool, endpoint) = serve_pool(&fixture, &gateway, Arc::new(Alone::default())).await;
    let (way, silent) = a_way_that_falls_silent(&endpoint, Duration::from_secs(60)).await;
    let _agent = TestAgent::start(fixture.agent("campus", "a0"), &way, 1);
    let (_, mut heard) = linked(pool.clone(), hop(&gateway, Kind::Gateway)).await;
    // Longer than all that may be silent: keepalives are heard.
    sleep(Duration::from_millis(KEEPALIVE_INTERVAL_MS + KEEPALIVE_TIMEOUT_MS + 500)).await;
    while let Ok((_, said)) = heard.try_recv() {
        assert!(!matches!(said, FromChild::Gone { .. }), "{said:?}");
    }
    let (why, silent_ms) = gone_when_silent(silent, heard).await;
    assert!(silent_ms >= KEEPALIVE_TIMEOUT_MS, "{why}: {silent_ms} ms");
}

/// Machines that come by themselves, and are ended at a word.
#[derive(Default)]
struct Revoked {
    ending: AtomicBool,
    ended: AtomicBool,
}

impl Revoked {
    fn unless(is: &AtomicBool, what: &str) -> Result<(), Refusal> {
        if is.load(Ordering::SeqCst) { Err(Refusal::new(RefusalKind::NotAuthorised, format!("it {what}"))) } else { Ok(()) }
    }
}

impl Provider for Revoked {
    fn name(&self) -> &'static str {
        "revoked"
    }

    fn machines(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn admits(&self, _: &str) -> Result<(), Refusal> {
        Self::unless(&self.ended, "has been ended")
    }

    fn admits_anew(&self, label: &str) -> Result<(), Refusal> {
        Self::unless(&self.ending, "is being ended").and_then(|()| self.admits(label))
    }

    fn start(&self, _: String) {}

    fn stop(&self, _: BTreeSet<String>) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}

#[tokio::test]
async fn the_certificate_of_a_machine_that_has_been_ended_opens_nothing() {
    let fixture = Fixture::new();
    let gateway = fixture.site("campus");
    let above = Arc::new(Alone::default());
    let bytes = vec![7u8; 1_000];
    let hash = above.will_bring(bytes.clone());
    let provider = Arc::new(Revoked::default());
    let (pool, endpoint) = serve_pool_of(provider.clone(), &fixture, &gateway, above).await;
    let identity = fixture.agent("campus", "a0");
    let agent = TestAgent::start(identity.clone(), &endpoint, 1);
    let (id, mut heard) = linked(pool.clone(), hop(&gateway, Kind::Gateway)).await;
    let stdout = || {
        vec![pb::OutputPart {
            job: 5,
            number: 1,
            name: "stdout".into(),
            hash: BlobHash::of(b"x").0.to_vec(),
            size: 1,
            data: vec![b'x'].into(),
            last: true,
            ..Default::default()
        }]
    };

    // While it is being ended, what it has comes home; nothing new comes of its name.
    provider.ending.store(true, Ordering::SeqCst);
    assert_eq!(Ok(bytes), agent.get_blob(hash).await);
    assert_eq!("", agent.put_outputs(stdout()).await.unwrap()[0].error);
    let other = fixture.agent("campus", "a1");
    let refused = agent::attach_once(&other, &endpoint, hop(&other, Kind::Agent)).await.unwrap_err();
    assert!(refused.kind == RefusalKind::NotAuthorised && refused.message.contains("is being ended"), "{refused}");

    provider.ended.store(true, Ordering::SeqCst);
    for refused in [agent.get_blob(hash).await.unwrap_err(), agent.put_outputs(stdout()).await.unwrap_err(), agent.peeks().await.unwrap_err()] {
        assert!(refused.kind == RefusalKind::NotAuthorised && refused.message.contains("has been ended"), "{refused}");
    }
    pool.disconnect(id, "its machine has been ended");
    let gone = async { while !matches!(heard.recv().await, Some((_, FromChild::Gone { .. }))) {} };
    timeout(Duration::from_secs(10), gone).await.unwrap();
    let refused = agent::attach_once(&identity, &endpoint, hop(&identity, Kind::Agent)).await.unwrap_err();
    assert_eq!(RefusalKind::NotAuthorised, refused.kind, "it does not come back: {refused}");
}

#[tokio::test]
async fn agents_get_content_that_comes_later() {
    let fixture = Fixture::new();
    let gateway = fixture.site("campus");
    let above = Arc::new(Alone::default());
    let bytes = vec![7u8; 700_000];
    let hash = above.will_bring(bytes.clone());
    let (pool, endpoint) = serve_pool(&fixture, &gateway, above).await;
    let agent = TestAgent::start(fixture.agent("campus", "a0"), &endpoint, 1);
    let _linked = linked(pool, hop(&gateway, Kind::Gateway)).await;
    assert_eq!(Ok(bytes), agent.get_blob(hash).await);
    assert_eq!(RefusalKind::MissingBlob, agent.get_blob(BlobHash::of(b"never")).await.unwrap_err().kind);
}

#[tokio::test]
async fn outputs_are_verified_and_those_of_fenced_attempts_dropped() {
    let fixture = Fixture::new();
    let gateway = fixture.site("campus");
    let above = Arc::new(Alone::default());
    above.fence(9);
    let (pool, endpoint) = serve_pool(&fixture, &gateway, above).await;
    let agent = TestAgent::start(fixture.agent("campus", "a0"), &endpoint, 1);
    let (id, _heard) = linked(pool.clone(), hop(&gateway, Kind::Gateway)).await;
    let part = |number, name: &str, data: &[u8], hash: &[u8]| pb::OutputPart {
        job: 5,
        number,
        task: 3,
        name: name.into(),
        hash: BlobHash::of(hash).0.to_vec(),
        size: data.len() as u64,
        data: data.to_vec().into(),
        last: true,
    };
    let two = vec![
        pb::OutputPart { last: false, size: 6, hash: BlobHash::of(b"abcdef").0.to_vec(), ..part(10, "out/two", b"abc", b"") },
        pb::OutputPart { data: b"def".to_vec().into(), last: true, ..Default::default() },
    ];
    let mut parts = vec![part(10, "stdout", b"good", b"good"), part(10, "stderr", b"bad", b"other"), part(10, "../x", b"x", b"x")];
    parts.extend(two);
    parts.push(part(9, "stdout", b"old", b"old"));
    let acks = agent.put_outputs(parts).await.unwrap();
    let said: Vec<(u64, &str, bool)> = acks.iter().map(|a| (a.number, a.name.as_str(), a.error.is_empty())).collect();
    let mut said_sorted = said.clone();
    said_sorted.sort();
    let expected = vec![(9, "stdout", true), (10, "../x", false), (10, "out/two", true), (10, "stderr", false), (10, "stdout", true)];
    assert_eq!(expected, said_sorted);
    for (name, bytes) in [("stdout", "good"), ("out/two", "abcdef")] {
        let mut content = pool.output(id, 5, 3, name.into()).await.unwrap();
        let mut all = Vec::new();
        while let Some(part) = content.parts.next().await {
            all.extend_from_slice(&part.unwrap());
        }
        assert_eq!(bytes.as_bytes(), all);
    }
    assert_eq!(RefusalKind::NotFound, pool.output(id, 5, 3, "stderr".into()).await.err().unwrap().kind);
}
