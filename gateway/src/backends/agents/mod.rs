//! Machines that attach by themselves: each agent is a child with one share. A provider makes the machines, or they come by themselves.
//!
//! Invariant: one live session per id and per name; what reaches the sink comes from the agent that its certificate names, hello first. The pool decides
//! nothing about tasks. Outputs of agents live here, at the gateway, because machines go away.

pub(crate) mod left;
mod live;
pub(crate) mod process;
mod provider;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use intergrid_proto::link::{Down, Hop};
use intergrid_proto::pb::pool_server::PoolServer;
use intergrid_proto::{BlobHash, Refusal, RefusalKind, Share, SiteId, TaskSet, limits, pb};
use tokio::sync::oneshot;

pub use process::{ProcessConfig, ProcessProvider};
pub use provider::{Provider, StaticProvider};

use crate::backend::{Account, Backend, Configured, Content, Peek, Sink};
use crate::blobs::BlobStore;
use crate::joins::Joins;
use crate::outputs::OutputStore;
use crate::queue;

/// What the pool asks of the level above it.
pub trait Above: Send + Sync + 'static {
    /// An agent wants content that is not here. Done when it is here.
    fn need_blob(&self, hash: BlobHash) -> BoxFuture<'static, Result<(), Refusal>>;

    /// Does this attempt's output count? What a fenced attempt brings is taken and dropped: it must not replace what its successor made. Where it counts:
    /// the names of the files that the job wants back beside stdout and stderr. An error: it can't be said now.
    fn counts(&self, agent: SiteId, job: u64, number: u64, task: u32) -> BoxFuture<'static, Result<Option<Vec<String>>, Refusal>>;

    /// Why this child is given no new work here; None: it is, or that can't be said now.
    fn closed(&self, _child: SiteId) -> BoxFuture<'static, Option<String>> {
        Box::pin(std::future::ready(None))
    }
}

/// The agents of a gateway. Cheap to clone.
#[derive(Clone)]
pub struct AgentPool(Arc<Inner>);

struct Inner {
    provider: Arc<dyn Provider>,
    blobs: BlobStore,
    outputs: OutputStore,
    above: Arc<dyn Above>,
    sink: OnceLock<Sink>,
    joins: OnceLock<Joins>,
    sessions: Mutex<BTreeMap<SiteId, Session>>,
    asked: live::Asked,
}

struct Session {
    hop: Hop,
    addr: String,
    queue: queue::Sender<Down>,
    drop: Option<oneshot::Sender<String>>,
    shares: Vec<Share>,
    heard: Instant,
}

impl AgentPool {
    /// A pool whose machines come from `provider`.
    pub fn new(provider: Arc<dyn Provider>, blobs: BlobStore, outputs: OutputStore, above: Arc<dyn Above>) -> Arc<Self> {
        let (sink, joins, sessions, asked) = (OnceLock::new(), OnceLock::new(), Mutex::default(), live::Asked::default());
        Arc::new(AgentPool(Arc::new(Inner { provider, blobs, outputs, above, sink, joins, sessions, asked })))
    }

    /// What the listener serves to agents.
    pub fn service(&self) -> PoolServer<AgentPool> {
        PoolServer::new(self.clone()).max_decoding_message_size(limits::MESSAGE_BYTES_MAX).max_encoding_message_size(limits::MESSAGE_BYTES_MAX)
    }

    /// Machines may join from now on.
    pub fn let_join(&self, joins: Joins) {
        _ = self.0.joins.set(joins);
    }

    /// The listener is up, here: the provider may make its machines. Error: it can't go by what was written down.
    pub fn provide(&self, endpoint: &str) -> Result<(), Refusal> {
        self.0.provider.check()?;
        self.0.provider.start(endpoint.to_string());
        Ok(())
    }

    /// End the machines that the provider has made; those of `busy` run something.
    pub async fn end_machines(&self, busy: BTreeSet<String>) {
        self.0.provider.stop(busy).await;
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SiteId, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_session(&self, agent: SiteId, why: &str) {
        let drop = self.lock().get_mut(&agent).and_then(|s| s.drop.take());
        if let Some(drop) = drop {
            let _ = drop.send(why.to_string());
        }
    }

    fn seen<T>(&self, agent: SiteId, look: impl FnOnce(&Session) -> T) -> Result<T, Refusal> {
        let away = || Refusal::new(RefusalKind::Unavailable, format!("agent {agent} is not attached")).remedy("the call may be repeated");
        self.lock().get(&agent).map(look).ok_or_else(away)
    }
}

impl Backend for AgentPool {
    fn kind(&self) -> &'static str {
        "agents"
    }

    fn start(self: Arc<Self>, _me: Hop, sink: Sink) {
        let _ = self.0.sink.set(sink);
    }

    fn send(&self, child: SiteId, message: Down) -> bool {
        let Some(queue) = self.0.lock().get(&child).map(|s| s.queue.clone()) else { return false };
        match queue.try_send(message) {
            Ok(()) => true,
            Err(queue::NotTaken::Full) => {
                self.0.drop_session(child, &format!("it does not keep up: {} messages wait", super::LINK_QUEUE_MESSAGES_MAX));
                false
            }
            Err(queue::NotTaken::Closed) => false,
        }
    }

    fn disconnect(&self, child: SiteId, why: &str) {
        self.0.drop_session(child, why);
    }

    /// An agent is at the end of the tree: what it says of its tasks, its hints have said already.
    fn explain(&self, child: SiteId, _: u64, _: Option<TaskSet>, _: Duration) -> BoxFuture<'static, Result<pb::Explanation, Refusal>> {
        let explained = self.0.seen(child, |s| pb::Explanation { site: Some(s.hop.clone().into()), ..Default::default() });
        std::future::ready(explained).boxed()
    }

    fn hosts(&self, child: SiteId, _: Duration) -> BoxFuture<'static, Result<pb::Host, Refusal>> {
        let host = self.0.seen(child, |s| {
            let age_ms = u64::try_from(s.heard.elapsed().as_millis()).unwrap_or(u64::MAX);
            pb::Host { age_ms, endpoint: s.addr.clone(), ..super::host(&s.hop, "", &s.shares) }
        });
        std::future::ready(host).boxed()
    }

    fn output(&self, _: SiteId, job: u64, task: u32, name: String) -> BoxFuture<'static, Result<Content, Refusal>> {
        let outputs = self.0.outputs.clone();
        async move { outputs.get(job, task, &name).await }.boxed()
    }

    fn peek(&self, child: SiteId, what: Peek, deadline: Duration) -> BoxFuture<'static, Result<pb::PeekReply, Refusal>> {
        self.0.asked.ask(child, what, deadline)
    }

    /// Agents fetch for themselves.
    fn put_blob(&self, _: SiteId, _: BlobHash, _: PathBuf) -> BoxFuture<'static, Result<(), Refusal>> {
        std::future::ready(Ok(())).boxed()
    }

    fn account(&self) -> Account {
        self.0.provider.account()
    }

    fn configured(&self) -> Vec<Configured> {
        let attached: BTreeSet<String> = self.0.lock().values().map(|s| s.hop.name.clone()).collect();
        let child = |(name, fault): (String, String)| {
            let unreachable = match (attached.contains(&name), fault.is_empty()) {
                (true, _) => String::new(),
                (false, true) => "it has not attached yet".to_string(),
                (false, false) => fault,
            };
            Configured { name, endpoint: self.0.provider.name().to_string(), unreachable }
        };
        self.0.provider.machines().into_iter().map(child).collect()
    }
}
