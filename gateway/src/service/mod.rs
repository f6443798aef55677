//! The northbound service: the only one, for gateway and broker alike. Authorises each call by the caller's certificate, checks what it says once, and
//! hands it to the engine; reads are the core's views.

mod answers;
pub mod callers;
mod link;
mod live;
mod orders;
mod past;
mod some;
mod tree;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use intergrid_proto::limits::*;
use intergrid_proto::link::WantValue;
use intergrid_proto::net::identity::Role;
use intergrid_proto::net::trust::Peer;
use intergrid_proto::pb::grid_server::GridServer;
use intergrid_proto::{BlobHash, JobNo, JobSpec, Refusal, RefusalKind, TaskSet, convert, pb};
use prost::Message;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use crate::backend::Backend;
use crate::backends::bulk;
use crate::blobs::BlobStore;
use crate::core::state::Spec;
use crate::core::{Submission, rows};
use crate::engine::Engine;
use callers::{Callers, Guarded};

/// Submissions of one stream that are under way at once.
const SUBMITS_AT_ONCE: usize = 256;
/// Jobs of a list that are looked at in one turn of the engine.
const LIST_PAGE: usize = 100;
/// History entries of one message.
const HISTORY_BATCH: usize = 256;
/// Least time between two views of one watch.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);
/// A watch says something at least so often, so that a dead connection is noticed and ages stay fresh.
const WATCH_REPEAT: Duration = Duration::from_secs(5);

/// The service of one site.
#[derive(Clone)]
pub struct Service {
    pub(crate) engine: Engine,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) blobs: BlobStore,
    pub(crate) callers: Callers,
    /// Where this site listens; for people.
    pub(crate) endpoint: String,
}

type Answer<T> = Result<Response<T>, Status>;
type Parts<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Who calls; each handler begins with it.
pub(crate) fn caller<T>(request: &Request<T>) -> Result<Peer, Refusal> {
    let none = || Refusal::new(RefusalKind::NotAuthorised, "no certificate came with this connection");
    request.extensions().get::<Peer>().cloned().ok_or_else(none)
}

/// May this caller do that? Refusals are logged with who and why.
pub(crate) fn allow<T>(request: &Request<T>, roles: &[Role]) -> Result<Peer, Refusal> {
    let peer = caller(request)?;
    if let Err(r) = peer.require_any(roles) {
        tracing::warn!(caller = %peer.label, id = %peer.id, addr = ?peer.addr, "refused: {r}");
        return Err(r);
    }
    Ok(peer)
}

fn hash(bytes: &[u8]) -> Result<BlobHash, Refusal> {
    BlobHash::from_slice(bytes).ok_or_else(|| Refusal::invalid(format!("a hash has 32 bytes, not {}", bytes.len())))
}

impl Service {
    /// Over an engine.
    pub fn new(engine: Engine, backend: Arc<dyn Backend>, blobs: BlobStore, endpoint: String) -> Self {
        Service { engine, backend, blobs, callers: Callers::default(), endpoint }
    }

    /// What a listener serves: every caller within his bounds.
    pub fn server(&self) -> Guarded<GridServer<Service>> {
        let sized = |max| GridServer::new(self.clone()).max_decoding_message_size(max);
        Guarded::new(sized(MESSAGE_BYTES_MAX), sized(CALL_BYTES_MAX), self.callers.clone())
    }

    async fn submit_one(&self, peer: &Peer, r: pb::SubmitRequest) -> Result<pb::SubmitReply, Refusal> {
        if r.key.is_empty() || r.key.len() > NAME_BYTES_MAX || r.key.chars().any(char::is_control) {
            return Err(Refusal::invalid(format!("key: has to have 1 to {NAME_BYTES_MAX} bytes without control characters")));
        }
        if r.tasks == 0 || r.tasks > TASKS_PER_JOB_MAX {
            return Err(Refusal::invalid(format!("tasks: {} is not between 1 and {TASKS_PER_JOB_MAX}", r.tasks)));
        }
        if r.chain.len() > HOPS_MAX as usize || convert::chain_bytes(&r.chain) > CHAIN_BYTES_MAX {
            return Err(Refusal::invalid(format!("chain: at most {HOPS_MAX} links and {CHAIN_BYTES_MAX} bytes are taken")));
        }
        if BlobHash::from_slice(&r.spec_hash) != Some(BlobHash::of(&r.spec)) {
            return Err(Refusal::invalid("spec_hash: not the hash of the spec").remedy("hash the bytes that are sent, with blake3"));
        }
        let parsed = JobSpec::decode(&r.spec)?;
        if let Some(f) = parsed.blobs().find(|f| !self.blobs.has(f.hash)) {
            let message = format!("the content of {:?} is not here", f.name);
            return Err(Refusal::new(RefusalKind::MissingBlob, message).remedy("upload it, then submit again with the same key"));
        }
        let spec = Arc::new(Spec { bytes: r.spec, parsed });
        let (owner, owner_name) = (peer.id, peer.label.clone());
        let submission = Submission { owner, owner_name, key: r.key, spec, tasks: r.tasks, hold: r.want_hold == 1, chain: r.chain };
        let (job, existed) = self.engine.submit(submission).await?;
        Ok(pb::SubmitReply { job: JobNo(job).id(), existed })
    }

    /// As a whole, or of some of its tasks.
    async fn view(&self, job: u64, whole: bool, only: Option<TaskSet>) -> Result<pb::JobView, Refusal> {
        self.of_job(job, whole || only.is_some(), move |core, j| some::narrowed(core, j, core.view(j, whole), only.as_ref())).await
    }

    /// The tasks that a caller names, all of which the job must have.
    async fn some_of(&self, job: u64, tasks: Option<pb::Tasks>) -> Result<Option<TaskSet>, Refusal> {
        let Some(tasks) = tasks.map(|t| convert::tasks_in(Some(t))).transpose()? else { return Ok(None) };
        let end = tasks.end();
        self.of_job(job, false, move |_, j| some::check(j, end)).await??;
        Ok(Some(tasks))
    }
}

/// Is forgotten when the watch ends, however it ends.
struct Watched {
    engine: Engine,
    job: u64,
    changed: Arc<tokio::sync::Notify>,
}

impl Watched {
    fn new(engine: &Engine, job: u64) -> Self {
        Watched { engine: engine.clone(), job, changed: engine.watch(job) }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.engine.unwatch(self.job);
    }
}

fn is_over(view: &pb::JobView) -> bool {
    view.ended_age_ms > 0
}

#[tonic::async_trait]
impl pb::grid_server::Grid for Service {
    type SubmitManyStream = Parts<pb::SubmitManyReply>;
    type WatchStream = Parts<pb::JobView>;
    type HistoryStream = Parts<pb::HistoryBatch>;
    type GetOutputStream = Parts<pb::BlobPart>;
    type LinkStream = Parts<pb::Up>;

    async fn submit(&self, request: Request<pb::SubmitRequest>) -> Answer<pb::SubmitReply> {
        let peer = allow(&request, &[Role::User, Role::Admin])?;
        Ok(Response::new(self.submit_one(&peer, request.into_inner()).await?))
    }

    async fn quote(&self, request: Request<pb::QuoteRequest>) -> Answer<pb::QuoteReply> {
        allow(&request, &[Role::User, Role::Admin])?;
        let spec = JobSpec::decode(&request.into_inner().spec)?;
        let shares = self.engine.look(move |core| core.quote(&spec)).await?;
        Ok(Response::new(pb::QuoteReply { shares }))
    }

    async fn submit_many(&self, request: Request<Streaming<pb::SubmitRequest>>) -> Answer<Self::SubmitManyStream> {
        let peer = allow(&request, &[Role::User, Role::Admin])?;
        let service = self.clone();
        let answers = request.into_inner().map(move |r| {
            let (service, peer) = (service.clone(), peer.clone());
            async move {
                Ok(match service.submit_one(&peer, r?).await {
                    Ok(reply) => pb::SubmitManyReply { reply: Some(reply), error: None },
                    Err(r) => pb::SubmitManyReply { reply: None, error: Some(r.into()) },
                })
            }
        });
        Ok(Response::new(Box::pin(answers.buffered(SUBMITS_AT_ONCE))))
    }

    async fn set_want(&self, request: Request<pb::SetWantRequest>) -> Answer<pb::SetWantReply> {
        let peer = allow(&request, &[Role::User, Role::Admin])?;
        let r = request.into_inner();
        let value = convert::want_value_in(r.value)?;
        if value == WantValue::Return {
            return Err(Refusal::invalid("value: only a parent asks for tasks back").into());
        }
        let _turn = self.callers.turn(&peer).await?;
        let job = self.find(&peer, r.job).await?;
        let tasks = self.some_of(job, r.tasks).await?;
        let tasks = self.engine.set_want(job, value, tasks).await?;
        Ok(Response::new(pb::SetWantReply { tasks, job: JobNo(job).id() }))
    }

    async fn order(&self, request: Request<pb::OrderRequest>) -> Answer<pb::OrderReply> {
        let peer = allow(&request, &[Role::User, Role::Admin])?;
        let _turn = self.callers.tree_call(&peer).await?;
        Ok(Response::new(self.ordered(&peer, request.into_inner()).await?))
    }

    async fn list(&self, request: Request<pb::ListRequest>) -> Answer<pb::ListReply> {
        let peer = allow(&request, &[Role::User, Role::Admin])?;
        let limit = match request.into_inner().limit {
            0 => 1_000,
            n => n.min(LIST_MAX),
        } as usize;
        let (id, admin) = (peer.id, peer.roles.contains(&Role::Admin));
        let _turn = self.callers.turn(&peer).await?;
        let (mut jobs, mut below) = (Vec::new(), u64::MAX);
        // In pages, so that others come in between.
        while jobs.len() < limit {
            let n = (limit - jobs.len()).min(LIST_PAGE);
            let (page, next) = self.page(id, admin, below, n).await?;
            jobs.extend(page);
            match next {
                Some(next) => below = next,
                None => break,
            }
        }
        Ok(Response::new(pb::ListReply { jobs }))
    }

    async fn show(&self, request: Request<pb::JobRequest>) -> Answer<pb::JobView> {
        let peer = caller(&request)?;
        let r = request.into_inner();
        let _turn = self.callers.turn(&peer).await?;
        let job = self.find(&peer, r.job).await?;
        let only = self.some_of(job, r.tasks).await?;
        Ok(Response::new(self.view(job, true, only).await?))
    }

    async fn watch(&self, request: Request<pb::JobRequest>) -> Answer<Self::WatchStream> {
        let peer = caller(&request)?;
        let r = request.into_inner();
        let turn = self.callers.turn(&peer).await?;
        let job = self.find(&peer, r.job).await?;
        let only = self.some_of(job, r.tasks).await?;
        drop(turn);
        let service = self.clone();
        Ok(Response::new(Box::pin(async_stream::try_stream! {
            let changed = Watched::new(&service.engine, job);
            let mut last: Option<pb::JobView> = None;
            loop {
                let woken = changed.changed.notified();
                tokio::pin!(woken);
                // From here on no change is missed.
                woken.as_mut().enable();
                let turn = service.callers.turn(&peer).await?;
                let view = service.view(job, false, only.clone()).await?;
                drop(turn);
                let over = is_over(&view);
                if over || last.as_ref().is_none_or(|l| l.counts != view.counts) {
                    last = Some(view.clone());
                    yield view;
                }
                if over {
                    break;
                }
                let pause = tokio::time::sleep(WATCH_INTERVAL);
                if tokio::time::timeout(WATCH_REPEAT, woken).await.is_err() {
                    last = None;
                }
                // A change right after a quiet time is told at once, the next ones at most 20 a second; the last is never held back.
                let turn = service.callers.turn(&peer).await?;
                let goes_on = service.view(job, false, only.clone()).await.is_ok_and(|v| !is_over(&v));
                drop(turn);
                if goes_on {
                    pause.await;
                }
            }
        })))
    }

    async fn history(&self, request: Request<pb::JobRequest>) -> Answer<Self::HistoryStream> {
        let peer = caller(&request)?;
        let r = request.into_inner();
        let reading = self.callers.transfer(&peer).await?;
        let job = self.find(&peer, r.job).await?;
        let only = self.some_of(job, r.tasks).await?;
        let first = pb::HistoryBatch { job: JobNo(job).id(), ..Default::default() };
        let batches = tokio_stream::wrappers::ReceiverStream::new(self.history_of(job, only)).map(move |b| {
            let _until_read = &reading;
            b.map_err(Status::from)
        });
        Ok(Response::new(Box::pin(futures::stream::once(async { Ok(first) }).chain(batches))))
    }

    async fn explain(&self, request: Request<pb::JobRequest>) -> Answer<pb::Explanation> {
        let peer = caller(&request)?;
        let r = request.into_inner();
        let _turn = self.callers.tree_call(&peer).await?;
        let job = self.find(&peer, r.job).await?;
        let tasks = self.some_of(job, r.tasks).await?;
        let explained = self.explain_tree(job, tasks, tree::deadline(r.deadline_ms)).await?;
        Ok(Response::new(pb::Explanation { job: JobNo(job).id(), ..explained }))
    }

    async fn hosts(&self, request: Request<pb::HostsRequest>) -> Answer<pb::Host> {
        let peer = allow(&request, &[Role::User, Role::Admin, Role::Delegate])?;
        let _turn = self.callers.tree_call(&peer).await?;
        Ok(Response::new(self.hosts_tree(tree::deadline(request.into_inner().deadline_ms)).await?))
    }

    async fn get_output(&self, request: Request<pb::OutputRequest>) -> Answer<Self::GetOutputStream> {
        let peer = caller(&request)?;
        let r = request.into_inner();
        let reading = self.callers.transfer(&peer).await?;
        let job = self.find(&peer, r.job).await?;
        let content = self.output_of(job, r.task, r.name).await?;
        Ok(Response::new(Box::pin(bulk::parts(content).map(move |part| {
            let _until_read = &reading;
            part
        }))))
    }

    async fn peek(&self, request: Request<pb::PeekRequest>) -> Answer<pb::PeekReply> {
        let peer = caller(&request)?;
        let r = request.into_inner();
        let _turn = self.callers.tree_call(&peer).await?;
        let job = self.find(&peer, r.job.clone()).await?;
        Ok(Response::new(self.peek_of(job, r).await?))
    }

    async fn has_blobs(&self, request: Request<pb::BlobHashes>) -> Answer<pb::BlobHashes> {
        allow(&request, &[Role::User, Role::Admin, Role::Delegate])?;
        let asked = request.into_inner().hashes;
        if asked.len() > 2 * SPEC_ITEMS_MAX {
            return Err(Refusal::new(RefusalKind::OverLimit, format!("{} hashes in one call", asked.len())).into());
        }
        let mut hashes = Vec::new();
        for h in asked {
            if self.blobs.has(hash(&h)?) {
                hashes.push(h);
            }
        }
        Ok(Response::new(pb::BlobHashes { hashes }))
    }

    async fn put_blob(&self, request: Request<Streaming<pb::BlobPart>>) -> Answer<pb::PutBlobReply> {
        let peer = allow(&request, &[Role::User, Role::Admin, Role::Delegate])?;
        let _sending = self.callers.transfer(&peer).await?;
        let mut parts = request.into_inner();
        let wait = Duration::from_millis(CALL_TIMEOUT_MS);
        let late = |what: &str| Refusal::new(RefusalKind::Unavailable, format!("{what} did not come in time")).remedy("send it again");
        let first = timeout(wait, parts.message()).await.map_err(|_| late("the first part"))??;
        let first = first.ok_or_else(|| Refusal::invalid("no first part with hash and size"))?;
        let hash = hash(&first.hash)?;
        if first.size > BLOB_BYTES_MAX {
            return Err(Refusal::new(RefusalKind::OverLimit, format!("{} bytes, at most {BLOB_BYTES_MAX} are staged", first.size)).into());
        }
        let existed = self.blobs.has(hash);
        let head = futures::stream::iter((!first.data.is_empty()).then_some(Ok(first.data)));
        let rest = futures::stream::unfold(parts, move |mut parts| async move {
            let part = match timeout(wait, parts.message()).await {
                Ok(part) => part.map_err(|s| intergrid_proto::net::status::refusal_of(&s)).transpose()?,
                Err(_) => Err(late("the next part")),
            };
            Some((part.map(|p| p.data), parts))
        });
        let stored = self.blobs.put_stream(hash, first.size, Box::pin(head.chain(rest)));
        timeout(bulk::patience(first.size), stored).await.map_err(|_| late("the whole"))??;
        Ok(Response::new(pb::PutBlobReply { existed }))
    }

    async fn link(&self, request: Request<Streaming<pb::Down>>) -> Answer<Self::LinkStream> {
        let peer = allow(&request, &[Role::Delegate])?;
        Ok(Response::new(self.parent_link(peer, request.into_inner()).await?))
    }
}

impl Service {
    /// A job's history, oldest first; ages as of now.
    pub(crate) fn history_of(&self, job: u64, only: Option<TaskSet>) -> tokio::sync::mpsc::Receiver<Result<pb::HistoryBatch, Refusal>> {
        let reader = self.engine.reader();
        let (tx, rx) = tokio::sync::mpsc::channel(4);
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            // Who does not read does not keep a thread.
            let send = |batch| runtime.block_on(tx.send_timeout(batch, Duration::from_millis(CALL_TIMEOUT_MS))).is_ok();
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
            let mut batch = pb::HistoryBatch::default();
            let mut fault = None;
            let scanned = reader.scan(&rows::history_prefix(job), &mut |key, bytes| {
                let Ok(mut entry) = pb::HistoryEntry::decode(bytes) else {
                    fault = Some(Refusal::new(RefusalKind::Internal, format!("history row {key:02x?} is damaged")));
                    return false;
                };
                let wanted = only.as_ref().is_none_or(|o| convert::tasks_in(entry.tasks.clone()).is_ok_and(|t| !t.intersect(o).is_empty()));
                if wanted {
                    entry.age_ms = now.saturating_sub(entry.age_ms);
                    if let Some(e) = &mut entry.ended {
                        e.age_ms.iter_mut().for_each(|a| *a += entry.age_ms);
                    }
                    batch.entries.push(entry);
                }
                batch.entries.len() < HISTORY_BATCH || send(Ok(std::mem::take(&mut batch)))
            });
            if !batch.entries.is_empty() {
                send(Ok(batch));
            }
            let fault = fault.or_else(|| scanned.err().map(|e| Refusal::new(RefusalKind::Internal, e.to_string())));
            if let Some(r) = fault {
                send(Err(r));
            }
        });
        rx
    }
}
