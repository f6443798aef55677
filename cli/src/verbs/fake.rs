//! A small Grid service over real mTLS, for the tests of verbs. It keeps what it is sent and answers from a script; it schedules nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::Stream;
use futures::stream::{self, StreamExt};
use intergrid_proto::convert::tasks_out;
use intergrid_proto::net::server::{self, Limits};
use intergrid_proto::net::{CertRole, Identity, Role, Trust, TrustEntry, issue};
use intergrid_proto::pb::grid_server::{Grid, GridServer};
use intergrid_proto::{BlobHash, Phase, Refusal, RefusalKind, TaskSet, pb};
use tonic::{Request, Response, Status, Streaming};

use crate::client::Home;
use crate::env::Environment;
use crate::out::Out;
use crate::verbs::Context;

/// What the service has, and how it misbehaves.
#[derive(Default)]
pub struct State {
    /// By hash.
    pub blobs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// PutBlob calls.
    pub puts: u32,
    /// Every Submit, in order.
    pub submits: Vec<pb::SubmitRequest>,
    /// So many calls of Submit are refused as unavailable first.
    pub submits_unavailable: u32,
    /// Watch: streams that end after their first view, which is not the last.
    pub watches_broken: u32,
    /// Watch never ends.
    pub watch_hangs: bool,
    /// How the one job ended.
    pub phase: Option<Phase>,
    /// Its tasks' exit code.
    pub exit: u32,
    /// By task and name; hash as announced, then content.
    pub outputs: BTreeMap<(u32, String), (BlobHash, Vec<u8>)>,
    /// SetWant calls.
    pub wants: Vec<pb::SetWantRequest>,
    /// What the History tells.
    pub history: Vec<pb::HistoryEntry>,
    /// Where jobs could go.
    pub shares: Vec<pb::QuotedShare>,
}

/// The service, with a home that may ask it.
pub struct Fake {
    /// Shared with the service.
    pub state: Arc<Mutex<State>>,
    /// Of an administrator.
    pub home: Home,
    /// Holds the identities.
    pub dir: tempfile::TempDir,
}

impl Fake {
    /// Listen on a port of its own.
    pub async fn start() -> Fake {
        let dir = tempfile::tempdir().unwrap();
        let site = dir.path().join("site");
        issue::new_site(&site, "root", &[]).unwrap();
        let ca_pem = std::fs::read(site.join("ca.pem")).unwrap();
        let may = BTreeSet::from([Role::User, Role::Admin]);
        let trust = Trust::new([TrustEntry { ca_pem, may, on_behalf: vec![] }]).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let home = dir.path().join("home");
        crate::init::home(&site, &home, &endpoint, CertRole::Admin, "me").unwrap();
        let identity = Arc::new(Identity::load(&site).unwrap());
        let incoming = server::incoming(listener, identity, Arc::new(trust), Limits::default(), None).unwrap();
        let state = Arc::new(Mutex::new(State { phase: Some(Phase::Done), ..Default::default() }));
        let service = GridServer::new(Service { state: state.clone() });
        tokio::spawn(async move { server::grpc_server().serve_with_incoming(service, incoming).await });
        Fake { state, home: Home { dir: home, endpoint }, dir }
    }

    /// What it has.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A connection, and output that nobody looks at as a person.
    pub async fn context<'a>(&self, out: &'a Out) -> Context<'a> {
        Context { out, client: self.home.connect().await.unwrap().into() }
    }
}

/// Not a terminal.
pub fn out() -> Out {
    Out::new(&Environment::default(), false)
}

struct Service {
    state: Arc<Mutex<State>>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    fn view(&self, phase: Phase) -> Result<pb::JobView, Status> {
        let state = self.state.lock().unwrap();
        let job = state.submits.last().ok_or_else(|| Refusal::new(RefusalKind::NotFound, "there is no such job"))?;
        let range = pb::TaskRange { tasks: Some(tasks_out(&TaskSet::range(0..job.tasks))), phase: phase as i32, attempts: 1, exit: vec![state.exit] };
        Ok(pb::JobView {
            id: "7k2m9p".into(),
            tasks: job.tasks,
            counts: vec![pb::PhaseCount { phase: phase as i32, tasks: job.tasks.into(), reason: None }],
            spec: job.spec.clone(),
            ranges: vec![range],
            ..Default::default()
        })
    }
}

#[tonic::async_trait]
impl Grid for Service {
    type SubmitManyStream = Answers<pb::SubmitManyReply>;
    type WatchStream = Answers<pb::JobView>;
    type HistoryStream = Answers<pb::HistoryBatch>;
    type GetOutputStream = Answers<pb::BlobPart>;
    type LinkStream = Answers<pb::Up>;

    async fn submit(&self, request: Request<pb::SubmitRequest>) -> Result<Response<pb::SubmitReply>, Status> {
        let request = request.into_inner();
        let mut state = self.state.lock().unwrap();
        let existed = state.submits.iter().any(|s| s.key == request.key);
        state.submits.push(request);
        if state.submits_unavailable > 0 {
            state.submits_unavailable -= 1;
            return Err(Refusal::new(RefusalKind::Unavailable, "not now").into());
        }
        Ok(Response::new(pb::SubmitReply { job: "7k2m9p".into(), existed }))
    }

    async fn quote(&self, _: Request<pb::QuoteRequest>) -> Result<Response<pb::QuoteReply>, Status> {
        Ok(Response::new(pb::QuoteReply { shares: self.state.lock().unwrap().shares.clone() }))
    }

    async fn submit_many(&self, _: Request<Streaming<pb::SubmitRequest>>) -> Result<Response<Self::SubmitManyStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn set_want(&self, request: Request<pb::SetWantRequest>) -> Result<Response<pb::SetWantReply>, Status> {
        self.state.lock().unwrap().wants.push(request.into_inner());
        Ok(Response::new(pb::SetWantReply { tasks: 3, job: "7k2m9p".into() }))
    }

    async fn order(&self, _: Request<pb::OrderRequest>) -> Result<Response<pb::OrderReply>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list(&self, _: Request<pb::ListRequest>) -> Result<Response<pb::ListReply>, Status> {
        Ok(Response::new(pb::ListReply { jobs: self.view(Phase::Running).into_iter().collect() }))
    }

    async fn show(&self, _: Request<pb::JobRequest>) -> Result<Response<pb::JobView>, Status> {
        let phase = self.state.lock().unwrap().phase.unwrap();
        Ok(Response::new(self.view(phase)?))
    }

    async fn watch(&self, _: Request<pb::JobRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (broken, hangs, phase) = {
            let mut state = self.state.lock().unwrap();
            let broken = state.watches_broken > 0;
            state.watches_broken = state.watches_broken.saturating_sub(1);
            (broken, state.watch_hangs, state.phase.unwrap())
        };
        let first = stream::iter([Ok(self.view(Phase::Running)?)]);
        Ok(Response::new(match (broken, hangs) {
            (true, _) => Box::pin(first),
            (_, true) => Box::pin(first.chain(stream::pending())),
            _ => Box::pin(first.chain(stream::iter([Ok(self.view(phase)?)]))),
        }))
    }

    async fn history(&self, _: Request<pb::JobRequest>) -> Result<Response<Self::HistoryStream>, Status> {
        let entries = self.state.lock().unwrap().history.clone();
        Ok(Response::new(Box::pin(stream::iter([Ok(pb::HistoryBatch { entries, job: "7k2m9p".into() })]))))
    }

    async fn explain(&self, _: Request<pb::JobRequest>) -> Result<Response<pb::Explanation>, Status> {
        Ok(Response::new(pb::Explanation::default()))
    }

    async fn hosts(&self, _: Request<pb::HostsRequest>) -> Result<Response<pb::Host>, Status> {
        Ok(Response::new(pb::Host { slots_total: 2, ..Default::default() }))
    }

    async fn peek(&self, _: Request<pb::PeekRequest>) -> Result<Response<pb::PeekReply>, Status> {
        Ok(Response::new(pb::PeekReply::default()))
    }

    async fn get_output(&self, request: Request<pb::OutputRequest>) -> Result<Response<Self::GetOutputStream>, Status> {
        let request = request.into_inner();
        let found = self.state.lock().unwrap().outputs.get(&(request.task, request.name.clone())).cloned();
        let (hash, content) = found.ok_or_else(|| Refusal::new(RefusalKind::NotFound, format!("no output {}", request.name)))?;
        let first = pb::BlobPart { hash: hash.0.to_vec(), size: content.len() as u64, data: Default::default() };
        let rest: Vec<_> = content.chunks(3).map(|c| Ok(pb::BlobPart { data: c.to_vec().into(), ..Default::default() })).collect();
        Ok(Response::new(Box::pin(stream::iter([Ok(first)]).chain(stream::iter(rest)))))
    }

    async fn has_blobs(&self, request: Request<pb::BlobHashes>) -> Result<Response<pb::BlobHashes>, Status> {
        let state = self.state.lock().unwrap();
        let hashes = request.into_inner().hashes.into_iter().filter(|h| state.blobs.contains_key(h)).collect();
        Ok(Response::new(pb::BlobHashes { hashes }))
    }

    async fn put_blob(&self, request: Request<Streaming<pb::BlobPart>>) -> Result<Response<pb::PutBlobReply>, Status> {
        let mut parts = request.into_inner();
        let (mut hash, mut size, mut data) = (Vec::new(), 0, Vec::new());
        while let Some(part) = parts.message().await? {
            if hash.is_empty() {
                (hash, size) = (part.hash, part.size);
            }
            data.extend_from_slice(&part.data);
        }
        if BlobHash::of(&data).0[..] != hash[..] || size != data.len() as u64 {
            return Err(Refusal::invalid("the content is not what its hash says").into());
        }
        let mut state = self.state.lock().unwrap();
        state.puts += 1;
        let existed = state.blobs.insert(hash, data).is_some();
        Ok(Response::new(pb::PutBlobReply { existed }))
    }

    async fn link(&self, _: Request<Streaming<pb::Down>>) -> Result<Response<Self::LinkStream>, Status> {
        Err(Status::unimplemented(""))
    }
}
