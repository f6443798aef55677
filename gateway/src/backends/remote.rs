//! The client of any gateway, as a backend with one child. A broker of brokers needs nothing else.
//!
//! Invariant: what reaches the sink comes from the peer that the certificate names, hello first and in order; a message that breaks the protocol ends the
//! link. Two connections: control carries the link and small questions, bulk carries content. Either end may have dialled. It keeps no state of the
//! protocol: what was lost with a link, the engine says again.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use intergrid_proto::limits::{CALL_TIMEOUT_MS, CONNECT_TIMEOUT_MS, MESSAGE_BYTES_MAX, REDIAL_MAX_MS, REDIAL_MIN_MS};
use intergrid_proto::link::{Down, Hop, Kind, Up};
use intergrid_proto::net::reverse::ReverseConn;
use intergrid_proto::net::status::cause;
use intergrid_proto::net::{Heard, Identity, client, refusal_of};
use intergrid_proto::pb::grid_client::GridClient;
use intergrid_proto::{BlobHash, Refusal, RefusalKind, SiteId, TaskSet, convert, pb};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tonic::transport::Channel;

use super::{LINK_QUEUE_MESSAGES_MAX, bulk};
use crate::backend::{Backend, Configured, Content, FromChild, Peek, Sink};
use crate::queue::{self, QUEUE_BYTES_MAX};

/// Files that are sent to one child at once.
const PUTS_MAX: usize = 4;
const CALL_TIMEOUT: Duration = Duration::from_millis(CALL_TIMEOUT_MS);

/// Where connections come from.
pub enum Source {
    /// We dial.
    Dial {
        /// `host:port`
        endpoint: String,
    },
    /// The child dials, twice; the listener hands its connections on. The first is control, one that comes beside it is bulk.
    Accepted(mpsc::Receiver<ReverseConn>),
}

/// A child that is a gateway or broker.
pub struct Remote(Arc<Inner>);

struct Inner {
    name: String,
    endpoint: Option<String>,
    ca_pem: Vec<u8>,
    identity: Arc<Identity>,
    source: Mutex<Option<Source>>,
    link: Mutex<Link>,
    dialling_bulk: tokio::sync::Mutex<()>,
    puts: Semaphore,
}

#[derive(Default)]
struct Link {
    child: Option<SiteId>,
    queue: Option<queue::Sender<Down>>,
    drop: Option<oneshot::Sender<String>>,
    control: Option<Channel>,
    bulk: Option<Channel>,
    /// Why there is no link, in one clause; empty: there is.
    down: String,
}

type Dialled = (Channel, SiteId, Heard);

impl Remote {
    /// The child with this label, whose certificate is of this CA. `identity` is our own site's.
    pub fn new(name: impl Into<String>, ca_pem: Vec<u8>, identity: Arc<Identity>, source: Source) -> Arc<Self> {
        let endpoint = match &source {
            Source::Dial { endpoint } => Some(endpoint.clone()),
            Source::Accepted(_) => None,
        };
        let down = if endpoint.is_some() { "not reached yet" } else { "it has not dialled us yet" };
        let link = Mutex::new(Link { down: down.into(), ..Link::default() });
        let (source, dialling_bulk, puts) = (Mutex::new(Some(source)), tokio::sync::Mutex::new(()), Semaphore::new(PUTS_MAX));
        Arc::new(Remote(Arc::new(Inner { name: name.into(), endpoint, ca_pem, identity, source, link, dialling_bulk, puts })))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unavailable(&self, why: &str) -> Refusal {
        let at = self.endpoint.as_deref().map(|e| format!(" at {e}")).unwrap_or_default();
        Refusal::new(RefusalKind::Unavailable, format!("{}{at} can't be reached: {why}", self.name)).remedy("the call may be repeated")
    }

    /// This child has no link; another one may have it, under the same name.
    fn not_linked(&self, link: &Link) -> Refusal {
        self.unavailable(if link.down.is_empty() { "another site answers there now" } else { &link.down })
    }

    fn drop_link(&self, why: String) {
        if let Some(drop) = self.lock().drop.take() {
            let _ = drop.send(why);
        }
    }

    async fn dial(&self, endpoint: &str) -> Result<Dialled, Refusal> {
        let (channel, cert, heard) = client::connect(endpoint, &self.identity, &self.ca_pem, Some(&self.name)).await?;
        Ok((channel, cert.id, heard))
    }

    async fn over(&self, conn: ReverseConn) -> Result<Dialled, Refusal> {
        if conn.peer.label != self.name {
            return Err(Refusal::new(RefusalKind::NotAuthorised, format!("{} dialled as {}", conn.peer, self.name)));
        }
        let id = conn.peer.id;
        let (channel, heard) = client::over(conn.io).await?;
        Ok((channel, id, heard))
    }

    async fn run(self: Arc<Self>, me: Hop, sink: Sink, mut source: Source) {
        let (mut pause, mut said) = (REDIAL_MIN_MS, String::new());
        while !sink.is_closed() {
            let began = Instant::now();
            let connected = match &mut source {
                Source::Dial { endpoint } => self.dial(&endpoint.clone()).await,
                Source::Accepted(arrivals) => {
                    let arrived = tokio::select! {
                        () = sink.closed() => return,
                        arrived = arrivals.recv() => arrived,
                    };
                    let Some(conn) = arrived else { return };
                    self.over(conn).await
                }
            };
            let why = match connected {
                Ok(dialled) => {
                    let arrivals = match &mut source {
                        Source::Dial { .. } => None,
                        Source::Accepted(arrivals) => Some(arrivals),
                    };
                    self.session(&me, &sink, dialled, arrivals).await
                }
                Err(refusal) => refusal.message,
            };
            // One line for each new cause, not for each attempt.
            if why != said {
                tracing::warn!(child = %self.name, endpoint = self.endpoint.as_deref().unwrap_or("dials us"), %why, "no link to a child; will try again");
                said.clone_from(&why);
            }
            self.lock().down = why;
            if began.elapsed() > Duration::from_millis(REDIAL_MAX_MS) {
                (pause, said) = (REDIAL_MIN_MS, String::new());
            }
            tokio::time::sleep(Duration::from_millis(super::jitter(pause))).await;
            pause = (pause * 2).min(REDIAL_MAX_MS);
        }
    }

    /// One link, from its opening to its end; says why it ended.
    async fn session(self: &Arc<Self>, me: &Hop, sink: &Sink, dialled: Dialled, mut arrivals: Option<&mut mpsc::Receiver<ReverseConn>>) -> String {
        let (channel, child, last_heard) = dialled;
        if child == me.site {
            return "it is this site itself: a site can't be its own child".into();
        }
        let (queue, messages) = queue::queue(LINK_QUEUE_MESSAGES_MAX);
        let (drop, mut dropped) = oneshot::channel();
        let mut grid = GridClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX);
        let opened = async {
            let mut ups = grid.link(messages.stream().map(pb::Down::from)).await.map_err(|s| refusal_of(&s))?.into_inner();
            let first = ups.message().await.map_err(|s| refusal_of(&s))?;
            Ok::<_, Refusal>((ups, first))
        };
        let (mut ups, first) = match timeout(Duration::from_millis(CONNECT_TIMEOUT_MS), opened).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(refusal)) => return refusal.message,
            Err(_) => return format!("it did not say hello within {CONNECT_TIMEOUT_MS} ms"),
        };
        let hello = match first.map(Up::try_from) {
            Some(Ok(Up::Hello(h))) if h.hop.site != child => return format!("its hello says {}, its certificate {child}", h.hop.site),
            Some(Ok(Up::Hello(h))) if h.hop.kind == Kind::Agent => return "it says that it is an agent: agents attach to a gateway's pool".into(),
            Some(Ok(Up::Hello(h))) if h.hop.name != self.name => return format!("it calls itself {:?}, not {:?}", h.hop.name, self.name),
            Some(Ok(hello @ Up::Hello(_))) => hello,
            Some(Ok(_)) => return "its first message is not a hello".into(),
            Some(Err(refusal)) => return refusal.message,
            None => return "it ended the link before it said hello".into(),
        };
        {
            let mut link = self.lock();
            (link.child, link.queue, link.drop, link.control, link.down) = (Some(child), Some(queue), Some(drop), Some(channel), String::new());
        }
        tracing::info!(child = %self.name, id = %child, "linked");
        let mut next = Some(hello);
        let why = loop {
            if let Some(up) = next.take()
                && sink.send((child, FromChild::Up(up))).await.is_err()
            {
                break "this site stops".to_string();
            }
            let beside = async {
                match &mut arrivals {
                    Some(arrivals) => arrivals.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sink.closed() => break "this site stops".to_string(),
                why = &mut dropped => break why.unwrap_or_else(|_| "the link was dropped".to_string()),
                conn = beside => match conn {
                    Some(conn) => _ = tokio::spawn(self.clone().take_bulk(conn, child)),
                    None => arrivals = None,
                },
                up = ups.message() => match up.map(|up| up.map(Up::try_from)) {
                    Ok(Some(Ok(Up::Hello(_)))) => break "it said hello twice".to_string(),
                    Ok(Some(Ok(up))) => next = Some(up),
                    Ok(Some(Err(refusal))) => break refusal.message,
                    Ok(None) => break "it ended the link".to_string(),
                    Err(status) => break cause(&status),
                },
            }
        };
        {
            let mut link = self.lock();
            (link.queue, link.drop, link.control) = (None, None, None);
            if self.endpoint.is_some() {
                link.bulk = None;
            }
            link.down.clone_from(&why);
        }
        let _ = sink.send((child, FromChild::Gone { why: why.clone(), silent_ms: last_heard.silent_ms() })).await;
        why
    }

    /// A second connection of a child that dials.
    async fn take_bulk(self: Arc<Self>, conn: ReverseConn, child: SiteId) {
        match self.over(conn).await {
            Ok((channel, id, _)) if id == child => self.lock().bulk = Some(channel),
            Ok((_, id, _)) => tracing::warn!(child = %self.name, %id, "another site dialled under the name of a child; dropped"),
            Err(why) => tracing::warn!(child = %self.name, %why, "a child's second connection failed"),
        }
    }

    fn control(&self, child: SiteId) -> Result<GridClient<Channel>, Refusal> {
        let link = self.lock();
        match &link.control {
            Some(c) if link.child == Some(child) => Ok(GridClient::new(c.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)),
            _ => Err(self.not_linked(&link)),
        }
    }

    /// The bulk connection: dialled when first needed, and again when it was lost.
    async fn bulk(&self, child: SiteId) -> Result<Channel, Refusal> {
        let control = {
            let link = self.lock();
            match (&link.control, &link.bulk) {
                (Some(_), Some(bulk)) if link.child == Some(child) => return Ok(bulk.clone()),
                (Some(control), None) if link.child == Some(child) => control.clone(),
                _ => return Err(self.not_linked(&link)),
            }
        };
        // A child that dials brings its second connection itself; until then one has to do.
        let Some(endpoint) = &self.endpoint else { return Ok(control) };
        let _one_dials = self.dialling_bulk.lock().await;
        if let Some(bulk) = &self.lock().bulk {
            return Ok(bulk.clone());
        }
        let (channel, id, _) = self.dial(endpoint).await?;
        if id != child {
            return Err(self.unavailable(&format!("it is {id} now, and was {child}")));
        }
        self.lock().bulk = Some(channel.clone());
        Ok(channel)
    }

    /// A call on the bulk connection failed: where the connection is to blame, the next call has a new one.
    fn bulk_failed(&self, refusal: Refusal) -> Refusal {
        if refusal.kind == RefusalKind::Unavailable {
            self.lock().bulk = None;
        }
        refusal
    }

    /// Ask a question that goes down the tree; a hop leaves those below it a little less time than it has.
    async fn ask<T>(&self, deadline: Duration, call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, Refusal> {
        match timeout(deadline, call).await {
            Ok(answer) => answer.map(tonic::Response::into_inner).map_err(|s| refusal_of(&s)),
            Err(_) => Err(self.unavailable(&format!("no answer within {} ms", deadline.as_millis()))),
        }
    }
}

/// What a question leaves to the next hop.
fn left_ms(deadline: Duration) -> u32 {
    u32::try_from(deadline.as_millis() * 9 / 10).unwrap_or(u32::MAX)
}

fn placed(job: u64) -> Option<pb::JobRef> {
    Some(pb::JobRef { what: Some(pb::job_ref::What::Placed(job)) })
}

impl Backend for Remote {
    fn kind(&self) -> &'static str {
        "remote"
    }

    fn start(self: Arc<Self>, me: Hop, sink: Sink) {
        let source = self.0.source.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(source) = source {
            tokio::spawn(self.0.clone().run(me, sink, source));
        }
    }

    fn send(&self, child: SiteId, message: Down) -> bool {
        let queue = {
            let link = self.0.lock();
            link.queue.as_ref().filter(|_| link.child == Some(child)).cloned()
        };
        let Some(queue) = queue else { return false };
        match queue.try_send(message) {
            Ok(()) => true,
            Err(queue::NotTaken::Full) => {
                self.0.drop_link(format!("it does not keep up: {LINK_QUEUE_MESSAGES_MAX} messages wait, or {QUEUE_BYTES_MAX} bytes"));
                false
            }
            Err(queue::NotTaken::Closed) => false,
        }
    }

    fn disconnect(&self, child: SiteId, why: &str) {
        if self.0.lock().child == Some(child) {
            self.0.drop_link(why.to_string());
        }
    }

    fn explain(&self, child: SiteId, job: u64, tasks: Option<TaskSet>, deadline: Duration) -> BoxFuture<'static, Result<pb::Explanation, Refusal>> {
        let inner = self.0.clone();
        async move {
            let mut grid = inner.control(child)?;
            let tasks = tasks.as_ref().map(convert::tasks_out);
            inner.ask(deadline, grid.explain(pb::JobRequest { job: placed(job), tasks, deadline_ms: left_ms(deadline) })).await
        }
        .boxed()
    }

    fn hosts(&self, child: SiteId, deadline: Duration) -> BoxFuture<'static, Result<pb::Host, Refusal>> {
        let inner = self.0.clone();
        async move {
            let mut grid = inner.control(child)?;
            inner.ask(deadline, grid.hosts(pb::HostsRequest { deadline_ms: left_ms(deadline) })).await
        }
        .boxed()
    }

    fn output(&self, child: SiteId, job: u64, task: u32, name: String) -> BoxFuture<'static, Result<Content, Refusal>> {
        let inner = self.0.clone();
        async move {
            let mut grid = bulk::client(inner.bulk(child).await?);
            let got = inner.ask(CALL_TIMEOUT, grid.get_output(pb::OutputRequest { job: placed(job), task, name })).await;
            bulk::receive(got.map_err(|r| inner.bulk_failed(r))?).await
        }
        .boxed()
    }

    fn peek(&self, child: SiteId, what: Peek, deadline: Duration) -> BoxFuture<'static, Result<pb::PeekReply, Refusal>> {
        let inner = self.0.clone();
        async move {
            let mut grid = inner.control(child)?;
            let Peek { job, task, attempt, stdout, stderr, .. } = what;
            let request = pb::PeekRequest { job: placed(job), task, attempt, stdout, stderr, deadline_ms: left_ms(deadline) };
            inner.ask(deadline, grid.peek(request)).await
        }
        .boxed()
    }

    fn put_blob(&self, child: SiteId, hash: BlobHash, file: PathBuf) -> BoxFuture<'static, Result<(), Refusal>> {
        let inner = self.0.clone();
        async move {
            let _turn = inner.puts.acquire().await.map_err(|_| inner.unavailable("this site stops"))?;
            let mut grid = bulk::client(inner.bulk(child).await?);
            let hashes = vec![hash.0.to_vec()];
            let has = inner.ask(CALL_TIMEOUT, grid.has_blobs(pb::BlobHashes { hashes })).await.map_err(|r| inner.bulk_failed(r))?;
            if has.hashes.iter().any(|h| h[..] == hash.0) {
                return Ok(());
            }
            let (parts, size) = bulk::file(hash, file).await?;
            inner.ask(bulk::patience(size), grid.put_blob(parts)).await.map(drop).map_err(|r| inner.bulk_failed(r))
        }
        .boxed()
    }

    fn configured(&self) -> Vec<Configured> {
        let endpoint = self.0.endpoint.clone().unwrap_or_else(|| "dials us".to_string());
        vec![Configured { name: self.0.name.clone(), endpoint, unreachable: self.0.lock().down.clone() }]
    }
}
