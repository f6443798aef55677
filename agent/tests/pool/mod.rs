//! A gateway's end of the link for tests: real mTLS, real messages, and laws that it checks on everything an agent says.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use intergrid_proto::link::*;
use intergrid_proto::net::issue::{self, Validity};
use intergrid_proto::net::server::{Limits, grpc_server, incoming};
use intergrid_proto::net::{CertRole, Identity, Role, Trust, TrustEntry};
use intergrid_proto::pb::pool_server::{Pool, PoolServer};
use intergrid_proto::{BlobHash, JobSpec, Phase, SiteId, TaskSet, pb};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub const PATIENCE: Duration = Duration::from_secs(30);

/// What the gateway knows; survives its restarts.
#[derive(Default)]
pub struct Known {
    pub hello: Option<Hello>,
    pub incarnation: u64,
    pub sequence: u64,
    pub events: Vec<Event>,
    pub hints: Vec<Hint>,
    pub resyncs: Vec<Resync>,
    pub shares: Vec<intergrid_proto::Share>,
    pub blobs: BTreeMap<BlobHash, Vec<u8>>,
    pub outputs: BTreeMap<(u64, u32, String), Vec<u8>>,
    pub calls: usize,
    /// Keep acks back.
    pub deaf: bool,
    /// Refuse outputs with this error.
    pub refuse: String,
    link: Option<mpsc::Sender<Result<pb::Down, Status>>>,
}

#[derive(Clone)]
pub struct Gateway {
    pub dir: Arc<tempfile::TempDir>,
    known: Arc<Mutex<Known>>,
    me: Hop,
    port: u16,
    server: Arc<Mutex<Option<tokio::task::JoinHandle<()>>>>,
}

impl Gateway {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let site = dir.path().join("site");
        issue::new_site(&site, "campus", &[]).unwrap();
        issue::issue(&site, CertRole::Agent, "a1", dir.path().join("a1"), Validity::days(1)).unwrap();
        let me = Hop { site: Identity::load(&site).unwrap().id(), name: "campus".into(), kind: Kind::Gateway };
        let mut g = Gateway { dir: Arc::new(dir), known: Arc::default(), me, port: 0, server: Arc::default() };
        g.up().await;
        g
    }

    /// Listen, at the same port as before.
    pub async fn up(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        self.port = listener.local_addr().unwrap().port();
        let site = self.dir.path().join("site");
        let entry = TrustEntry { ca_pem: std::fs::read(site.join("ca.pem")).unwrap(), may: [Role::Agent].into(), on_behalf: vec![] };
        let (identity, trust) = (Arc::new(Identity::load(&site).unwrap()), Arc::new(Trust::new([entry]).unwrap()));
        let connections = incoming(listener, identity, trust, Limits::default(), None).unwrap();
        let service = PoolServer::new(self.clone());
        let serve = async move { grpc_server().serve_with_incoming(service, connections).await.unwrap() };
        let task = tokio::spawn(serve);
        *self.server.lock().unwrap() = Some(task);
    }

    /// Drop the link; with `down`, the listener too.
    pub fn cut(&self, down: bool) {
        if down && let Some(server) = self.server.lock().unwrap().take() {
            server.abort();
        }
        if let Some(link) = self.lock().link.take() {
            let _ = link.try_send(Err(Status::unavailable("cut")));
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Write an agent's configuration.
    pub fn config(&self, more: &str) -> PathBuf {
        let file = self.dir.path().join("agent.toml");
        let text = format!("name = \"a1\"\ngateway = \"127.0.0.1:{}\"\nidentity = \"a1\"\nstate = \"state\"\n{more}\n", self.port);
        std::fs::write(&file, text).unwrap();
        file
    }

    pub fn agent(&self, more: &str) -> Agent {
        Agent::start(&self.config(more), false)
    }

    pub fn send(&self, down: Down) {
        let link = self.lock().link.clone().expect("an agent is attached");
        link.try_send(Ok(pb::Down::from(down))).unwrap();
    }

    /// Wait until this holds of what is known.
    pub async fn until(&self, what: &str, holds: impl Fn(&Known) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(&self.lock()) {
            if Instant::now() > end {
                let k = self.lock();
                panic!("waited in vain until {what}; events {:?}, hints {:?}", k.events, k.hints);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// As [`until`](Self::until); false: the agent went away first.
    pub async fn until_or_gone(&self, holds: impl Fn(&Known) -> bool) -> bool {
        self.until("it holds or the agent is gone", |k| holds(k) || !k.link_is_up()).await;
        holds(&self.lock())
    }

    pub async fn attached(&self) {
        self.until("an agent is attached", |k| k.link.is_some() && !k.shares.is_empty()).await;
    }

    pub fn put(&self, content: &[u8]) -> BlobHash {
        let hash = BlobHash::of(content);
        self.lock().blobs.insert(hash, content.to_vec());
        hash
    }

    pub fn place(&self, number: u64, tasks: std::ops::Range<u32>, spec: &JobSpec) {
        let bytes = spec.encode();
        self.send(Down::Place(Box::new(Place {
            number,
            job: number,
            origin: Origin { site: self.me.site, job: "abc123".into(), principal: "u".into(), submitted_ms: 0 },
            spec_hash: BlobHash::of(&bytes),
            spec: bytes,
            tasks: TaskSet::range(tasks.clone()),
            share: "machine".into(),
            attempts: 0,
            want: Want::default(),
            route: vec![self.me.site],
            hops_left: 1,
            chain: vec![],
            array_size: tasks.end,
            attempt_cost_max: 0,
            known: intergrid_proto::link::Known::default(),
        })));
    }

    pub fn cancel(&self, job: u64, tasks: std::ops::Range<u32>) {
        let mut want = Want { job, version: 1, ranges: vec![] };
        want.set(WantValue::Cancel, &TaskSet::range(tasks));
        self.send(Down::Want(want));
    }

    /// Place one task and wait for its end.
    pub async fn run(&self, number: u64, spec: &JobSpec) -> Ended {
        self.place(number, 0..1, spec);
        self.end(number, 0).await
    }

    pub async fn end(&self, number: u64, task: u32) -> Ended {
        self.until(&format!("task {number}.{task} ends"), |k| k.end(number, task).is_some()).await;
        self.lock().end(number, task).unwrap()
    }

    pub fn output(&self, number: u64, name: &str) -> String {
        self.lock().outputs.get(&(number, 0, name.into())).map(|b| String::from_utf8_lossy(b).into_owned()).unwrap_or_default()
    }
}

impl Known {
    /// One task's own part of the end; each task ends at most once.
    pub fn end(&self, number: u64, task: u32) -> Option<Ended> {
        let one = TaskSet::one(task);
        let mut ends = self.events.iter().filter_map(|e| match &e.what {
            EventKind::Ended(x) if e.of.number == number && e.of.tasks.contains(task) => Some(x.select(&e.of.tasks, &one)),
            _ => None,
        });
        let end = ends.next();
        assert!(ends.next().is_none(), "task {number}.{task} ended twice");
        end
    }

    pub fn link_is_up(&self) -> bool {
        self.link.is_some()
    }

    pub fn accepted(&self, number: u64) -> bool {
        self.events.iter().any(|e| e.of.number == number && e.what == EventKind::Accepted)
    }

    pub fn gave_back(&self, number: u64) -> bool {
        self.events.iter().any(|e| e.of.number == number && matches!(e.what, EventKind::Returned(_)))
    }

    /// All tasks that were given back, in order.
    pub fn returned(&self) -> Vec<u32> {
        self.events.iter().filter(|e| matches!(e.what, EventKind::Returned(_))).flat_map(|e| e.of.tasks.iter()).collect()
    }

    pub fn ended(&self, phase: Phase) -> u64 {
        self.events.iter().filter(|e| matches!(&e.what, EventKind::Ended(x) if x.phase == phase)).map(|e| e.of.tasks.len()).sum()
    }

    pub fn hinted(&self, number: u64, phase: Phase) -> bool {
        self.hints.iter().any(|h| h.of.number == number && h.phase == phase)
    }
}

type Parts<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl Pool for Gateway {
    type PeeksStream = Parts<pb::PeekQuestion>;
    type AttachStream = Parts<pb::Down>;
    type GetBlobStream = Parts<pb::BlobPart>;
    type PutOutputsStream = Parts<pb::OutputAck>;

    async fn attach(&self, request: Request<Streaming<pb::Up>>) -> Result<Response<Self::AttachStream>, Status> {
        let (link, downs) = mpsc::channel(1_024);
        let (me, mut ups) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(up)) = ups.message().await {
                me.heard(Up::try_from(up).unwrap(), &link);
            }
            let mut known = me.lock();
            if known.link.as_ref().is_some_and(|l| l.same_channel(&link)) {
                known.link = None;
                known.shares.clear();
            }
        });
        Ok(Response::new(ReceiverStream::new(downs)))
    }

    /// Its agents come with certificates.
    async fn join(&self, _: Request<pb::JoinRequest>) -> Result<Response<pb::JoinReply>, Status> {
        Err(Status::permission_denied("nobody joins here"))
    }

    async fn renew(&self, _: Request<pb::JoinRequest>) -> Result<Response<pb::JoinReply>, Status> {
        Err(Status::permission_denied("nobody joins here"))
    }

    async fn get_blob(&self, request: Request<pb::BlobHash>) -> Result<Response<Self::GetBlobStream>, Status> {
        self.lock().calls += 1;
        let hash = BlobHash::from_slice(&request.into_inner().hash).unwrap();
        let content = self.lock().blobs.get(&hash).cloned().ok_or_else(|| Status::not_found("no such content"))?;
        let (parts, out) = mpsc::channel(content.len() / 1_000 + 2);
        let mut first = Some((hash.0.to_vec(), content.len() as u64));
        for data in content.chunks(1_000) {
            let (hash, size) = first.take().unwrap_or_default();
            parts.try_send(Ok(pb::BlobPart { hash, size, data: data.to_vec().into() })).unwrap();
        }
        Ok(Response::new(ReceiverStream::new(out)))
    }

    async fn peeks(&self, _: Request<Streaming<pb::PeekAnswer>>) -> Result<Response<Self::PeeksStream>, Status> {
        Err(Status::unimplemented("nobody follows"))
    }

    async fn put_outputs(&self, request: Request<Streaming<pb::OutputPart>>) -> Result<Response<Self::PutOutputsStream>, Status> {
        self.lock().calls += 1;
        let (acks, out) = mpsc::channel(64);
        let (me, mut parts) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            let mut file: Option<(pb::OutputPart, Vec<u8>)> = None;
            while let Ok(Some(part)) = parts.message().await {
                let (data, last) = (part.data.clone(), part.last);
                let (first, mut all) = file.take().unwrap_or((part, vec![]));
                all.extend_from_slice(&data);
                if !last {
                    file = Some((first, all));
                    continue;
                }
                assert_eq!((first.size, first.hash.clone()), (all.len() as u64, blake3::hash(&all).as_bytes().to_vec()));
                let error = me.lock().refuse.clone();
                let (job, number, task, name) = (first.job, first.number, first.task, first.name);
                if error.is_empty() {
                    assert!(me.lock().end(number, task).is_none(), "an output after the end");
                    me.lock().outputs.insert((number, task, name.clone()), all);
                }
                let _ = acks.send(Ok(pb::OutputAck { job, number, task, name, error, no_room: false })).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(out)))
    }
}

impl Gateway {
    fn heard(&self, up: Up, link: &mpsc::Sender<Result<pb::Down, Status>>) {
        let mut k = self.lock();
        let send = |down: Down| _ = link.try_send(Ok(pb::Down::from(down)));
        match up {
            Up::Hello(hello) => {
                // Those of an agent that is no more.
                k.shares.clear();
                let answer = Hello {
                    hop: self.me.clone(),
                    incarnation: 42,
                    peer_incarnation: k.incarnation,
                    peer_sequence: k.sequence,
                    peer_placement: 0,
                    placement: 0,
                    sequence_low: 0,
                    sequence_high: 0,
                    machine: vec![],
                    recovering: false,
                };
                send(Down::Hello(answer));
                k.hello = Some(hello);
                k.link = Some(link.clone());
            }
            Up::Advert(a) => k.shares = a.shares,
            Up::Events(e) => {
                let at = if k.incarnation == e.incarnation { k.sequence } else { 0 };
                assert!(e.first <= at + 1, "events {}.. after {at}: a gap", e.first);
                let new = e.events.into_iter().skip((at + 1 - e.first) as usize).collect::<Vec<_>>();
                (k.incarnation, k.sequence) = (e.incarnation, at + new.len() as u64);
                k.events.extend(new);
                if !k.deaf {
                    send(Down::Ack { incarnation: e.incarnation, sequence: k.sequence });
                }
            }
            Up::Hints(hints) => k.hints.extend(hints),
            Up::Resync(r) => {
                (k.incarnation, k.sequence) = (r.incarnation, r.sequence);
                k.resyncs.push(r);
            }
            Up::NeedBlob(_) | Up::Orphans(_) => panic!("an agent asks by GetBlob, and has one gateway"),
        }
    }
}

/// The agent's binary: cargo names it to tests; an example finds it one directory up.
pub fn program() -> PathBuf {
    match option_env!("CARGO_BIN_EXE_grid-agent") {
        Some(path) => path.into(),
        None => std::env::current_exe().unwrap().parent().and_then(Path::parent).unwrap().join("grid-agent"),
    }
}

/// A running grid-agent; killed when dropped, and its tasks with it, by the end of its stdin.
pub struct Agent(Child);

impl Agent {
    pub fn start(config: &Path, die_with_parent: bool) -> Agent {
        let mut command = Command::new(program());
        command.arg("--config").arg(config).args(die_with_parent.then_some("--die-with-parent")).stdin(Stdio::piped());
        Agent(command.spawn().unwrap())
    }

    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub fn terminate(&mut self) -> Option<i32> {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), rustix::process::Signal::TERM).unwrap();
        self.wait()
    }

    pub fn close_stdin(&mut self) -> Option<i32> {
        self.0.stdin.take();
        self.wait()
    }

    pub fn wait(&mut self) -> Option<i32> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the agent does not end");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A spec that runs a shell script.
pub fn sh(script: &str) -> JobSpec {
    JobSpec::new(["sh", "-c", script])
}

/// Does this process live?
pub fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// The pid that a script has written to this file.
pub async fn pid_in(file: &Path) -> i32 {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(pid) = std::fs::read_to_string(file).ok().and_then(|t| t.trim().parse().ok()) {
            return pid;
        }
        assert!(Instant::now() < end, "{} is not written", file.display());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn site_of(g: &Gateway) -> SiteId {
    g.me.site
}
