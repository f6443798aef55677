//! The one seam: what runs tasks for a gateway.
//!
//! A backend has children (agents of a pool, gateways behind a wire, one local resource manager) and carries messages between them and the engine; it
//! decides nothing and holds no durable state. Its laws are in [`crate::laws`], and every implementation passes them.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use futures::future::BoxFuture;
use intergrid_proto::link::{Down, Hop, Up};
use intergrid_proto::{BlobHash, Refusal, RefusalKind, SiteId, TaskSet, pb};
use tokio::sync::mpsc;

/// What a child says, or that it has gone.
#[derive(Clone, PartialEq, Debug)]
pub enum FromChild {
    /// A message; the first of a session is `Up::Hello`, whose id and kind the backend has checked against the peer's certificate.
    Up(Up),
    /// Contact lost: why, and for how long nothing had been heard then. Nothing follows but a new hello.
    Gone {
        /// In one clause.
        why: String,
        /// Milliseconds.
        silent_ms: u64,
    },
}

/// Where a backend puts what its children say; bounded, so that a fast child waits for the engine.
pub type Sink = mpsc::Sender<(SiteId, FromChild)>;

/// Bytes of an output: hash and size first, verified by who reads to the end.
pub struct Content {
    /// Of the whole.
    pub hash: BlobHash,
    /// Bytes.
    pub size: u64,
    /// In order; an error ends it.
    pub parts: Pin<Box<dyn Stream<Item = Result<bytes::Bytes, Refusal>> + Send>>,
}

/// A child that is named by the configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Configured {
    /// Its label.
    pub name: String,
    /// Where it is dialled; in words, where it is not.
    pub endpoint: String,
    /// Why it is not attached, in one clause; empty: it is, or nothing is known against it.
    pub unreachable: String,
}

/// What is rented, and what that costs: see the messages.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Account {
    /// Machines that exist, or may.
    pub machines: Vec<pb::Machine>,
    /// Budgets, the root first.
    pub spending: Vec<pb::Spending>,
    /// ISO 4217.
    pub currency: String,
}

/// What a running task has printed is asked for: from where on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Peek {
    /// Our number of the job.
    pub job: u64,
    /// And of the placement.
    pub number: u64,
    /// Its index.
    pub task: u32,
    /// As [`pb::PeekRequest`]: whose output the offsets are of.
    pub attempt: Vec<u8>,
    /// Bytes that are known.
    pub stdout: u64,
    /// The same of stderr.
    pub stderr: u64,
}

/// What runs tasks for a gateway.
pub trait Backend: Send + Sync + 'static {
    /// One word: `agents`, `federation`, `slurm`, ...
    fn kind(&self) -> &'static str;

    /// Begin, once, inside a tokio runtime. `me` is the site that this backend works for.
    fn start(self: Arc<Self>, me: Hop, sink: Sink);

    /// Hand a message to a child, in order, without waiting. False: the child is not attached, or does not keep up and has been dropped; the message is
    /// lost, and the engine says what is due again when the child is back.
    fn send(&self, child: SiteId, message: Down) -> bool;

    /// Drop the link to a child, which broke the protocol or must be greeted anew. `FromChild::Gone` follows; the child comes back by itself.
    fn disconnect(&self, child: SiteId, why: &str);

    /// Why a job's tasks wait or failed at this child and below. `job` is our number of it.
    fn explain(&self, child: SiteId, job: u64, tasks: Option<TaskSet>, deadline: Duration) -> BoxFuture<'static, Result<pb::Explanation, Refusal>>;

    /// The child and everything below it.
    fn hosts(&self, child: SiteId, deadline: Duration) -> BoxFuture<'static, Result<pb::Host, Refusal>>;

    /// An output of an ended task. `job` is our number of it. Where the child that has it is away, `Unavailable`; nobody else is asked.
    fn output(&self, child: SiteId, job: u64, task: u32, name: String) -> BoxFuture<'static, Result<Content, Refusal>>;

    /// What a running task has printed. A leaf that can't look at what runs says so.
    fn peek(&self, _child: SiteId, what: Peek, _deadline: Duration) -> BoxFuture<'static, Result<pb::PeekReply, Refusal>> {
        let message = format!("what task {} has printed is seen when it has ended: it runs in {}", what.task, self.kind());
        Box::pin(std::future::ready(Err(Refusal::new(RefusalKind::NotFound, message))))
    }

    /// Give a child content that it asked for. A leaf whose children fetch for themselves does nothing.
    fn put_blob(&self, child: SiteId, hash: BlobHash, file: PathBuf) -> BoxFuture<'static, Result<(), Refusal>>;

    /// Children that are configured, attached or not.
    fn configured(&self) -> Vec<Configured>;

    /// What is rented here, and what that costs; empty where nothing is.
    fn account(&self) -> Account {
        Account::default()
    }
}
