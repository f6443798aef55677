//! A cluster of which some queues are children themselves, and under others' machines run agents: each message goes to the backend whose child it is for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use intergrid_gateway::backend::{Account, Backend, Configured, Content, Peek, Sink};
use intergrid_proto::link::{Down, Hop};
use intergrid_proto::{BlobHash, Refusal, SiteId, TaskSet, pb};

use crate::LrmsPool;

/// Queues whose tasks are jobs, and agents that are jobs.
pub struct Mixed {
    queues: Arc<LrmsPool>,
    agents: Arc<dyn Backend>,
}

impl Mixed {
    /// Of both.
    pub fn new(queues: Arc<LrmsPool>, agents: Arc<dyn Backend>) -> Arc<Self> {
        Arc::new(Mixed { queues, agents })
    }

    fn of(&self, child: SiteId) -> &dyn Backend {
        if self.queues.has(child) { &*self.queues } else { &*self.agents }
    }
}

impl Backend for Mixed {
    fn kind(&self) -> &'static str {
        self.queues.kind()
    }

    fn start(self: Arc<Self>, me: Hop, sink: Sink) {
        self.queues.clone().start(me.clone(), sink.clone());
        self.agents.clone().start(me, sink);
    }

    fn send(&self, child: SiteId, message: Down) -> bool {
        self.of(child).send(child, message)
    }

    fn disconnect(&self, child: SiteId, why: &str) {
        self.of(child).disconnect(child, why);
    }

    fn explain(&self, child: SiteId, job: u64, tasks: Option<TaskSet>, deadline: Duration) -> BoxFuture<'static, Result<pb::Explanation, Refusal>> {
        self.of(child).explain(child, job, tasks, deadline)
    }

    fn hosts(&self, child: SiteId, deadline: Duration) -> BoxFuture<'static, Result<pb::Host, Refusal>> {
        self.of(child).hosts(child, deadline)
    }

    fn output(&self, child: SiteId, job: u64, task: u32, name: String) -> BoxFuture<'static, Result<Content, Refusal>> {
        self.of(child).output(child, job, task, name)
    }

    fn peek(&self, child: SiteId, what: Peek, deadline: Duration) -> BoxFuture<'static, Result<pb::PeekReply, Refusal>> {
        self.of(child).peek(child, what, deadline)
    }

    fn put_blob(&self, child: SiteId, hash: BlobHash, file: PathBuf) -> BoxFuture<'static, Result<(), Refusal>> {
        self.of(child).put_blob(child, hash, file)
    }

    fn configured(&self) -> Vec<Configured> {
        [self.queues.configured(), self.agents.configured()].concat()
    }

    fn account(&self) -> Account {
        self.agents.account()
    }
}
