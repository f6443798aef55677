//! Sites, callers and a service that says who called.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use intergrid_proto::net::issue::{self, Validity};
use intergrid_proto::net::server::{self, Limits};
use intergrid_proto::net::{CertRole, Identity, Peer, Role, Trust, TrustEntry};
use intergrid_proto::pb::{self, grid_client::GridClient, grid_server};
use intergrid_proto::{Refusal, net};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Sites in a directory of their own.
pub struct World(TempDir);

impl World {
    pub fn new(sites: &[&str]) -> Self {
        record_log();
        let world = World(TempDir::new().unwrap());
        for site in sites {
            issue::new_site(world.path(site), site, &["localhost".into(), "127.0.0.1".into()]).unwrap();
        }
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn site(&self, label: &str) -> Arc<Identity> {
        Arc::new(Identity::load(self.path(label)).unwrap())
    }

    /// A new certificate of this site's CA.
    pub fn member(&self, site: &str, role: CertRole, label: &str, validity: Validity) -> Identity {
        issue::issue(self.path(site), role, label, self.path(label), validity).unwrap();
        Identity::load(self.path(label)).unwrap()
    }

    pub fn user(&self, site: &str, label: &str) -> Identity {
        self.member(site, CertRole::User, label, Validity::default())
    }

    pub fn trust(&self, entries: &[(&str, &[Role])]) -> Arc<Trust> {
        let entry = |(site, may): &(&str, &[Role])| TrustEntry {
            ca_pem: std::fs::read(self.path(site).join("ca.pem")).unwrap(),
            may: BTreeSet::from_iter(may.iter().copied()),
            on_behalf: vec!["alice".into(), "lab-*".into()],
        };
        Arc::new(Trust::new(entries.iter().map(entry)).unwrap())
    }

    /// The site `campus` listens, and trusts these; the endpoint.
    pub async fn campus(&self, trust: &[(&str, &[Role])], limits: Limits) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let incoming = server::incoming(listener, self.site("campus"), self.trust(trust), limits, None).unwrap();
        tokio::spawn(server::grpc_server().serve_with_incoming(grid_server::GridServer::new(WhoCalls), incoming));
        endpoint
    }
}

/// Connect as somebody who trusts the CA beside his certificate, and ask who we are there.
pub async fn ask(endpoint: &str, identity: &Identity) -> Result<String, Refusal> {
    let (channel, ..) = net::client::connect(endpoint, identity, identity.ca_pem()?, None).await?;
    who_am_i(channel).await
}

pub async fn who_am_i(channel: Channel) -> Result<String, Refusal> {
    let reply = GridClient::new(channel).has_blobs(pb::BlobHashes::default()).await.map_err(|s| net::refusal_of(&s))?;
    Ok(String::from_utf8(reply.into_inner().hashes.concat()).unwrap())
}

type Stream_<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Reply<T> = Result<Response<T>, Status>;

/// Answers `HasBlobs` of a user, admin or delegate with the caller's name; a call for the hash `big` with a refusal that is too long.
pub struct WhoCalls;

fn no<T>() -> Reply<T> {
    Err(Status::unimplemented("not in this test"))
}

#[tonic::async_trait]
impl grid_server::Grid for WhoCalls {
    type SubmitManyStream = Stream_<pb::SubmitManyReply>;
    type WatchStream = Stream_<pb::JobView>;
    type HistoryStream = Stream_<pb::HistoryBatch>;
    type GetOutputStream = Stream_<pb::BlobPart>;
    type LinkStream = Stream_<pb::Up>;

    async fn has_blobs(&self, request: Request<pb::BlobHashes>) -> Reply<pb::BlobHashes> {
        let peer = request.extensions().get::<Peer>().unwrap();
        peer.require_any(&[Role::User, Role::Admin, Role::Delegate])?;
        if request.get_ref().hashes.first().is_some_and(|h| h == b"big") {
            return Err(Refusal::invalid("é".repeat(100_000)).remedy("shorten it".repeat(10_000)).into());
        }
        assert!(peer.addr.is_some());
        Ok(Response::new(pb::BlobHashes { hashes: vec![peer.to_string().into_bytes()] }))
    }

    async fn submit(&self, _: Request<pb::SubmitRequest>) -> Reply<pb::SubmitReply> {
        no()
    }
    async fn quote(&self, _: Request<pb::QuoteRequest>) -> Reply<pb::QuoteReply> {
        no()
    }
    async fn peek(&self, _: Request<pb::PeekRequest>) -> Reply<pb::PeekReply> {
        no()
    }
    async fn order(&self, _: Request<pb::OrderRequest>) -> Reply<pb::OrderReply> {
        no()
    }
    async fn submit_many(&self, _: Request<Streaming<pb::SubmitRequest>>) -> Reply<Self::SubmitManyStream> {
        no()
    }
    async fn set_want(&self, _: Request<pb::SetWantRequest>) -> Reply<pb::SetWantReply> {
        no()
    }
    async fn list(&self, _: Request<pb::ListRequest>) -> Reply<pb::ListReply> {
        no()
    }
    async fn show(&self, _: Request<pb::JobRequest>) -> Reply<pb::JobView> {
        no()
    }
    async fn watch(&self, _: Request<pb::JobRequest>) -> Reply<Self::WatchStream> {
        no()
    }
    async fn history(&self, _: Request<pb::JobRequest>) -> Reply<Self::HistoryStream> {
        no()
    }
    async fn explain(&self, _: Request<pb::JobRequest>) -> Reply<pb::Explanation> {
        no()
    }
    async fn hosts(&self, _: Request<pb::HostsRequest>) -> Reply<pb::Host> {
        no()
    }
    async fn get_output(&self, _: Request<pb::OutputRequest>) -> Reply<Self::GetOutputStream> {
        no()
    }
    async fn put_blob(&self, _: Request<Streaming<pb::BlobPart>>) -> Reply<pb::PutBlobReply> {
        no()
    }
    async fn link(&self, _: Request<Streaming<pb::Down>>) -> Reply<Self::LinkStream> {
        no()
    }
}

static LOG: OnceLock<Arc<Mutex<Vec<String>>>> = OnceLock::new();

/// A warning that holds all of these words; waits for it, for the server logs when it likes.
pub async fn logged(words: &[&str]) -> String {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let lines = LOG.get().unwrap().lock().unwrap().clone();
        if let Some(line) = lines.iter().find(|l| words.iter().all(|w| l.contains(w))) {
            return line.clone();
        }
        assert!(Instant::now() < until, "no line with {words:?} in {lines:#?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn record_log() {
    LOG.get_or_init(|| {
        let log = Arc::new(Mutex::new(Vec::new()));
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Warnings(log.clone()))).unwrap();
        log
    });
}

struct Warnings(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == tracing::Level::WARN {
            let mut line = Line(String::new());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}
