//! Both sides: the honest user who is served all the while, and peers that are acted out by hand, message by message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use intergrid_gateway::daemon::Running;
use intergrid_proto::link::{Hello, Hop, Kind, Up};
use intergrid_proto::net::Role;
use intergrid_proto::net::server::{Limits, grpc_server, incoming};
use intergrid_proto::net::trust::{Trust, TrustEntry};
use intergrid_proto::pb::grid_server::{Grid as GridService, GridServer};
use intergrid_proto::pb::pool_client::PoolClient;
use intergrid_proto::{BlobHash, JobSpec, PROTOCOL, Phase, Refusal, SiteId, pb};
use intergrid_tests::PATIENCE;
use intergrid_tests::client::{Client, answer, count};
use intergrid_tests::grid::Grid;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// An honest user's submission is answered within this, whatever goes on beside it; debug builds on busy machines included.
const SUBMIT_MAX: Duration = Duration::from_secs(4);
/// What a test may add to the process, unless it says otherwise.
pub const GROWTH_MIB_MAX: u64 = 400;

/// Of no duration.
pub fn quick() -> JobSpec {
    JobSpec::new(["sleep", "0"])
}

/// Resident memory of this process.
pub fn resident_mib() -> u64 {
    const PAGE_KIB: u64 = 4;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap() * PAGE_KIB / 1024
}

/// An honest user who submits, and waits for the end of what he submits, for as long as the attack lasts.
pub struct Beside {
    what: &'static str,
    stop: Arc<AtomicBool>,
    user: JoinHandle<Vec<Duration>>,
    before_mib: u64,
}

/// See [`Beside`].
pub fn beside(what: &'static str, ann: &Client, spec: &JobSpec) -> Beside {
    let (ann, spec, stop) = (ann.clone(), spec.clone(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let user = tokio::spawn(async move {
        let mut latencies = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            let began = Instant::now();
            let (job, _) = ann.submit(&format!("beside {what} {}", latencies.len()), &spec, 1).await.expect("an honest submission");
            latencies.push(began.elapsed());
            let view = ann.ended(&job).await;
            assert_eq!(1, count(&view, Phase::Done), "{view:?}");
        }
        latencies
    });
    Beside { what, stop, user, before_mib: resident_mib() }
}

impl Beside {
    /// The attack is over: he was served, in time, and memory is what it was, but for so much.
    pub async fn within(self, growth_mib_max: u64) {
        self.stop.store(true, Ordering::Relaxed);
        let mut latencies = timeout(3 * PATIENCE, self.user).await.expect("an honest user who is served").expect("an honest user's jobs");
        latencies.sort();
        let (middle, most) = (latencies[latencies.len() / 2], *latencies.last().unwrap());
        let grown = resident_mib().saturating_sub(self.before_mib);
        eprintln!("{}: {} honest jobs, submission {middle:?} in the middle, {most:?} at most; {grown} MiB more", self.what, latencies.len());
        assert!(most <= SUBMIT_MAX, "{}: a submission took {most:?}", self.what);
        assert!(grown <= growth_mib_max, "{}: memory grew by {grown} MiB, at most {growth_mib_max} are right", self.what);
    }

    /// As [`within`](Self::within) the usual bound.
    pub async fn served(self) {
        self.within(GROWTH_MIB_MAX).await;
    }
}

/// A site, and what is asked of it after an attack: an honest job is done.
pub async fn still_serves(grid: &Grid, site: &Running, spec: &JobSpec) {
    let ann = grid.user(site, "ann-after").await;
    ann.run(&format!("after {:?}", Instant::now()), spec, 3).await;
}

/// What a peer calls itself.
pub fn hop(id: SiteId, name: &str, kind: Kind) -> Hop {
    Hop { site: id, name: name.into(), kind }
}

/// A right first message.
pub fn hello(me: &Hop) -> pb::Hello {
    pb::Hello {
        protocol: PROTOCOL,
        site: me.site.0.to_vec(),
        name: me.name.clone(),
        kind: pb::Kind::from(me.kind).into(),
        incarnation: 5,
        sequence_low: 1,
        ..Default::default()
    }
}

/// A parent's end of a link.
pub struct Parent {
    pub me: Hop,
    pub say: mpsc::Sender<pb::Down>,
    pub hear: Streaming<pb::Up>,
    /// What the child has said first.
    pub child: Hello,
}

/// Its message.
pub fn down(what: pb::down::What) -> pb::Down {
    pb::Down { what: Some(what) }
}

/// A child's.
pub fn up(what: pb::up::What) -> pb::Up {
    pb::Up { what: Some(what) }
}

/// The wire's task set of these runs.
pub fn runs(runs: Vec<u32>) -> Option<pb::Tasks> {
    Some(pb::Tasks { runs })
}

/// Every other task, so many of them.
pub fn fragments(n: usize) -> Option<pb::Tasks> {
    runs([vec![0, 1], vec![1; 2 * (n - 1)]].concat())
}

impl Parent {
    /// Without its hello.
    pub async fn silent(c: &Client, me: Hop) -> Result<Parent, Refusal> {
        let (say, said) = mpsc::channel(16);
        let mut hear = answer(c.grid.clone().link(ReceiverStream::new(said))).await?;
        let first = timeout(PATIENCE, hear.message()).await.expect("a hello in time").map_err(|s| intergrid_proto::net::refusal_of(&s))?;
        let Some(Ok(Up::Hello(child))) = first.map(Up::try_from) else { panic!("no hello") };
        Ok(Parent { me, say, hear, child })
    }

    /// With it. A session that has just ended may linger for a moment.
    pub async fn open(c: &Client, me: Hop) -> Parent {
        let parent = intergrid_tests::until("a link", async || Parent::silent(c, me.clone()).await).await;
        parent.says(pb::down::What::Hello(pb::Hello { peer_incarnation: parent.child.incarnation, ..hello(&me) })).await;
        parent
    }

    /// False: the link is over.
    pub async fn says(&self, what: pb::down::What) -> bool {
        timeout(2 * PATIENCE, self.say.send(down(what))).await.expect("a site that reads").is_ok()
    }

    /// The share with this many slots to give, as the child has told of it.
    pub async fn share(&mut self, window: u64) -> pb::Share {
        let heard = async {
            loop {
                let message = self.hear.message().await.unwrap().expect("an open link");
                if let Some(pb::up::What::Advert(a)) = message.what
                    && let Some(s) = a.shares.into_iter().find(|s| s.window >= window)
                {
                    return s;
                }
            }
        };
        timeout(PATIENCE, heard).await.expect("an advert")
    }

    /// The site ends it, within the usual patience; what comes before is thrown away.
    pub async fn ends(&mut self) {
        let ended = async { while let Ok(Some(_)) = self.hear.message().await {} };
        timeout(PATIENCE, ended).await.expect("the end of the link");
    }

    /// A right placement of one task.
    pub fn place(&self, number: u64, share: &str) -> pb::Place {
        let spec = quick().encode();
        pb::Place {
            number,
            job: number,
            origin: Some(pb::Origin { site: self.me.site.0.to_vec(), job: "j".into(), principal: "somebody".into(), submitted_ms: 0 }),
            spec_hash: BlobHash::of(&spec).0.to_vec(),
            spec: spec.into(),
            tasks: runs(vec![0, 1]),
            share: share.into(),
            want: Some(pb::Want { job: number, ..Default::default() }),
            route: vec![self.me.site.0.to_vec()],
            hops_left: 8,
            array_size: 1,
            attempt_cost_max: 0,
            ..Default::default()
        }
    }
}

/// A child's end of a link: an agent that has attached, or a site that was dialled.
pub struct Child {
    pub me: Hop,
    pub say: mpsc::Sender<pb::Up>,
    pub hear: Streaming<pb::Down>,
}

impl Child {
    /// An agent, before its hello.
    pub async fn attach(c: &Client, me: Hop) -> Result<Child, Refusal> {
        let (say, said) = mpsc::channel(16);
        let hear = answer(PoolClient::new(c.channel.clone()).attach(ReceiverStream::new(said))).await?;
        Ok(Child { me, say, hear })
    }

    /// False: the link is over.
    pub async fn says(&self, what: pb::up::What) -> bool {
        timeout(2 * PATIENCE, self.say.send(up(what))).await.expect("a site that reads").is_ok()
    }

    /// Its hello.
    pub async fn greets(&self) -> bool {
        self.says(pb::up::What::Hello(hello(&self.me))).await
    }

    /// A share of its own; small machines, so that honest work that asks for memory stays away.
    pub fn share(&self, class: &str, memory_bytes: u64) -> pb::Share {
        pb::Share {
            key: format!("{}/{class}", self.me.name),
            origin: self.me.site.0.to_vec(),
            origin_name: self.me.name.clone(),
            path: vec![self.me.site.0.to_vec()],
            fit_version: 1,
            machine_slots: 4,
            machine_memory_bytes: memory_bytes,
            architecture: "x86_64".into(),
            slots_total: 4,
            machines: 1,
            slots_free: 4,
            largest_free: 4,
            window: 4,
            credit_ms: 30_000,
            ..Default::default()
        }
    }

    /// Tell of shares.
    pub async fn offers(&self, shares: Vec<pb::Share>) -> bool {
        self.says(pb::up::What::Advert(pb::Advert { version: 1, shares, ..Default::default() })).await
    }

    /// The next placement.
    pub async fn placed(&mut self) -> pb::Place {
        let heard = async {
            loop {
                if let Some(pb::down::What::Place(p)) = self.hear.message().await.unwrap().expect("an open link").what {
                    return p;
                }
            }
        };
        timeout(PATIENCE, heard).await.expect("a placement")
    }

    /// The site ends it, within the usual patience.
    pub async fn ends(&mut self) {
        let ended = async { while let Ok(Some(_)) = self.hear.message().await {} };
        timeout(PATIENCE, ended).await.expect("the end of the link");
    }
}

/// One event.
pub fn event(number: u64, job: u64, tasks: Option<pb::Tasks>, what: pb::event::What) -> pb::Event {
    pb::Event { number, job, tasks, what: Some(what) }
}

/// Events from this number on.
pub fn events(first: u64, events: Vec<pb::Event>) -> pb::up::What {
    pb::up::What::Events(pb::Events { incarnation: 5, first, events })
}

/// An end.
pub fn failed(exit: Vec<u32>) -> pb::Ended {
    let reason = Some(pb::Reason { kind: 32, text: "x".repeat(1_000), ..Default::default() });
    pb::Ended { phase: Phase::Failed as i32, exit, reason, attempts: 1, ..Default::default() }
}

/// What a site that is dialled answers beside the link.
#[derive(Clone, Default)]
pub struct Answers {
    pub host: Option<pb::Host>,
    pub explanation: Option<pb::Explanation>,
}

/// A site that a broker dials: each link comes out of `sessions`.
pub struct Evil {
    pub endpoint: String,
    me: Hop,
    sessions: mpsc::Receiver<(mpsc::Sender<pb::Up>, Streaming<pb::Down>)>,
    server: JoinHandle<()>,
}

impl Drop for Evil {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Evil {
    pub async fn start(grid: &Grid, name: &str, parent: &str, answers: Answers) -> Evil {
        let identity = grid.site_certificate(name);
        let entry = TrustEntry { ca_pem: grid.ca(parent), may: [Role::Delegate].into(), on_behalf: vec!["*".into()] };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let connections = incoming(listener, identity.clone(), Arc::new(Trust::new([entry]).unwrap()), Limits::default(), None).unwrap();
        let (tx, sessions) = mpsc::channel(1);
        let service = GridServer::new(Script { sessions: tx, answers });
        let server = tokio::spawn(async move { grpc_server().add_service(service).serve_with_incoming(connections).await.unwrap() });
        let me = hop(identity.id(), name, Kind::Gateway);
        Evil { endpoint, me, sessions, server }
    }

    /// The next link, before our hello.
    pub async fn session(&mut self) -> Child {
        let (say, hear) = timeout(PATIENCE, self.sessions.recv()).await.expect("a parent that dials").expect("a server");
        Child { me: self.me.clone(), say, hear }
    }
}

struct Script {
    sessions: mpsc::Sender<(mpsc::Sender<pb::Up>, Streaming<pb::Down>)>,
    answers: Answers,
}

type Parts<T> = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

fn no<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not this one"))
}

#[tonic::async_trait]
impl GridService for Script {
    type SubmitManyStream = Parts<pb::SubmitManyReply>;
    type WatchStream = Parts<pb::JobView>;
    type HistoryStream = Parts<pb::HistoryBatch>;
    type GetOutputStream = Parts<pb::BlobPart>;
    type LinkStream = Parts<pb::Up>;

    async fn submit(&self, _: Request<pb::SubmitRequest>) -> Result<Response<pb::SubmitReply>, Status> {
        no()
    }
    async fn submit_many(&self, _: Request<Streaming<pb::SubmitRequest>>) -> Result<Response<Self::SubmitManyStream>, Status> {
        no()
    }
    async fn set_want(&self, _: Request<pb::SetWantRequest>) -> Result<Response<pb::SetWantReply>, Status> {
        no()
    }
    async fn quote(&self, _: Request<pb::QuoteRequest>) -> Result<Response<pb::QuoteReply>, Status> {
        no()
    }
    async fn order(&self, _: Request<pb::OrderRequest>) -> Result<Response<pb::OrderReply>, Status> {
        no()
    }
    async fn list(&self, _: Request<pb::ListRequest>) -> Result<Response<pb::ListReply>, Status> {
        no()
    }
    async fn show(&self, _: Request<pb::JobRequest>) -> Result<Response<pb::JobView>, Status> {
        no()
    }
    async fn watch(&self, _: Request<pb::JobRequest>) -> Result<Response<Self::WatchStream>, Status> {
        no()
    }
    async fn history(&self, _: Request<pb::JobRequest>) -> Result<Response<Self::HistoryStream>, Status> {
        no()
    }
    async fn explain(&self, _: Request<pb::JobRequest>) -> Result<Response<pb::Explanation>, Status> {
        self.answers.explanation.clone().map_or_else(no, |e| Ok(Response::new(e)))
    }
    async fn hosts(&self, _: Request<pb::HostsRequest>) -> Result<Response<pb::Host>, Status> {
        self.answers.host.clone().map_or_else(no, |h| Ok(Response::new(h)))
    }
    /// Says more than was asked for.
    async fn peek(&self, _: Request<pb::PeekRequest>) -> Result<Response<pb::PeekReply>, Status> {
        let stdout = vec![0; intergrid_proto::limits::LIVE_BYTES_MAX + 1];
        Ok(Response::new(pb::PeekReply { attempt: vec![1], stdout, ..Default::default() }))
    }
    /// Says that it has three bytes, and never ends.
    async fn get_output(&self, _: Request<pb::OutputRequest>) -> Result<Response<Self::GetOutputStream>, Status> {
        let part = |n: u8| pb::BlobPart { hash: if n == 0 { vec![7; 32] } else { Vec::new() }, size: 3, data: vec![0; 64 * 1024].into() };
        let parts = tokio_stream::iter((0..=u8::MAX).chain(std::iter::repeat(1)).map(move |n| Ok(part(n))));
        Ok(Response::new(Box::pin(parts)))
    }
    async fn has_blobs(&self, _: Request<pb::BlobHashes>) -> Result<Response<pb::BlobHashes>, Status> {
        no()
    }
    async fn put_blob(&self, _: Request<Streaming<pb::BlobPart>>) -> Result<Response<pb::PutBlobReply>, Status> {
        no()
    }
    async fn link(&self, request: Request<Streaming<pb::Down>>) -> Result<Response<Self::LinkStream>, Status> {
        let (say, said) = mpsc::channel(16);
        self.sessions.send((say, request.into_inner())).await.map_err(|_| Status::unavailable("over"))?;
        Ok(Response::new(Box::pin(tokio_stream::StreamExt::map(ReceiverStream::new(said), Ok))))
    }
}

/// The version of the protocol, so that a wrong one can be made of it.
pub const VERSION: u32 = PROTOCOL;
