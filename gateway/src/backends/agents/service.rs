//! What agents call: the link, content in, outputs out.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use intergrid_proto::limits::{BLOB_WAIT_MS, CALL_TIMEOUT_MS, CONNECT_TIMEOUT_MS, NAME_BYTES_MAX};
use intergrid_proto::link::{Hello, Kind, Up};
use intergrid_proto::net::status::cause;
use intergrid_proto::net::{Peer, Role, refusal_of};
use intergrid_proto::pb::pool_server::Pool;
use intergrid_proto::{BlobHash, Refusal, RefusalKind, pb};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{AgentPool, Inner, Session};
use crate::backend::{FromChild, Sink};
use crate::backends::{LINK_QUEUE_MESSAGES_MAX, bulk};
use crate::durable::blocking;
use crate::joins::Joins;
use crate::outputs::{OutputStore, OutputWriter, Received};
use crate::queue;

/// Received outputs of one agent that wait to become durable.
const SETTLING_FILES_MAX: usize = 1_024;
/// Acknowledgements that wait to be sent.
const ACKS_MAX: usize = 1_024;
/// Attempts of one upload whose standing is remembered.
const STANDINGS_MAX: usize = 4_096;

type Parts<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The caller, if it is an agent; others are refused and logged.
fn agent<T>(request: &Request<T>) -> Result<Peer, Refusal> {
    caller(request, Role::Agent)
}

fn caller<T>(request: &Request<T>, role: Role) -> Result<Peer, Refusal> {
    let none = || Refusal::new(RefusalKind::NotAuthorised, "no certificate came with this connection");
    let peer = request.extensions().get::<Peer>().cloned().ok_or_else(none)?;
    if let Err(refusal) = peer.require(role) {
        tracing::warn!(caller = %peer, addr = ?peer.addr, why = %refusal, "refused a caller of the agents' service");
        return Err(refusal);
    }
    Ok(peer)
}

#[tonic::async_trait]
impl Pool for AgentPool {
    type AttachStream = Parts<pb::Down>;
    type GetBlobStream = Parts<pb::BlobPart>;
    type PutOutputsStream = Parts<pb::OutputAck>;
    type PeeksStream = Parts<pb::PeekQuestion>;

    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinReply>, Status> {
        let token = caller(&request, Role::Join)?;
        let certified = match self.0.provider.admits_anew(&token.label) {
            Ok(()) => self.0.joins()?.join(&token, &request.into_inner().csr).await,
            Err(why) => Err(why),
        };
        self.0.certified(&token, certified)
    }

    async fn renew(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinReply>, Status> {
        let peer = agent(&request)?;
        let certified = match self.0.provider.admits(&peer.label) {
            Ok(()) => self.0.joins()?.renew(&peer, &request.into_inner().csr).await,
            Err(why) => Err(why),
        };
        self.0.certified(&peer, certified)
    }

    async fn peeks(&self, request: Request<Streaming<pb::PeekAnswer>>) -> Result<Response<Self::PeeksStream>, Status> {
        let peer = self.0.machine(&request)?;
        let questions = self.0.asked.open(peer.id, request.into_inner());
        Ok(Response::new(Box::pin(ReceiverStream::new(questions).map(Ok))))
    }

    async fn attach(&self, request: Request<Streaming<pb::Up>>) -> Result<Response<Self::AttachStream>, Status> {
        let peer = agent(&request)?;
        let sink = self.0.sink.get().cloned();
        let sink = sink.ok_or_else(|| Refusal::new(RefusalKind::Unavailable, "this gateway has not begun yet").remedy("attach again"))?;
        // The answer begins at once, so that it does not matter whether an agent waits for it before it says hello; a refusal ends the stream.
        let (queue, messages) = queue::queue(LINK_QUEUE_MESSAGES_MAX);
        let (refused, refusal) = oneshot::channel::<Refusal>();
        let inner = self.0.clone();
        tokio::spawn(async move {
            let who = (peer.to_string(), peer.addr);
            if let Err(why) = inner.session(peer, request.into_inner(), queue, sink).await {
                tracing::warn!(agent = %who.0, addr = ?who.1, %why, "refused an agent");
                let _ = refused.send(why);
            }
        });
        let last = futures::stream::once(refusal).filter_map(|r| std::future::ready(r.ok().map(|r| Err(Status::from(r)))));
        Ok(Response::new(Box::pin(messages.stream().map(|m| Ok(pb::Down::from(m))).chain(last))))
    }

    async fn get_blob(&self, request: Request<pb::BlobHash>) -> Result<Response<Self::GetBlobStream>, Status> {
        self.0.machine(&request)?;
        let hash = BlobHash::from_slice(&request.into_inner().hash).ok_or_else(|| Refusal::invalid("malformed message: not a hash of 32 bytes"))?;
        if !self.0.blobs.has(hash) {
            let late =
                |_| Refusal::new(RefusalKind::MissingBlob, format!("content {hash} did not come within {BLOB_WAIT_MS} ms")).remedy("ask again");
            timeout(Duration::from_millis(BLOB_WAIT_MS), self.0.above.need_blob(hash)).await.map_err(late)??;
        }
        Ok(Response::new(bulk::parts(self.0.blobs.get_stream(hash).await?)))
    }

    async fn put_outputs(&self, request: Request<Streaming<pb::OutputPart>>) -> Result<Response<Self::PutOutputsStream>, Status> {
        let peer = self.0.machine(&request)?;
        let (acks, answers) = mpsc::channel(ACKS_MAX);
        let inner = self.0.clone();
        tokio::spawn(async move {
            let mut upload = Upload { inner, peer, acks, settling: Arc::new(Semaphore::new(SETTLING_FILES_MAX)), standings: BTreeMap::new() };
            if let Err(why) = upload.run(request.into_inner()).await {
                tracing::warn!(agent = %upload.peer, %why, "an agent's upload of outputs ended");
                let _ = upload.acks.send(Err(why.into())).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

impl Inner {
    /// The caller, if it is an agent whose machine may exist.
    fn machine<T>(&self, request: &Request<T>) -> Result<Peer, Refusal> {
        let peer = agent(request)?;
        if let Err(why) = self.provider.admits(&peer.label) {
            tracing::warn!(caller = %peer, addr = ?peer.addr, %why, "refused a caller of the agents' service");
            return Err(why);
        }
        Ok(peer)
    }

    fn joins(&self) -> Result<&Joins, Refusal> {
        self.joins.get().ok_or_else(|| Refusal::new(RefusalKind::Unavailable, "this gateway has not begun yet").remedy("ask again"))
    }

    /// Who got a certificate, and who did not, is logged.
    fn certified(&self, peer: &Peer, certificate: Result<String, Refusal>) -> Result<Response<pb::JoinReply>, Status> {
        match certificate {
            Ok(certificate) => {
                tracing::info!(machine = %peer, addr = ?peer.addr, "certified");
                Ok(Response::new(pb::JoinReply { certificate }))
            }
            Err(why) => {
                tracing::warn!(machine = %peer, addr = ?peer.addr, %why, "refused a certificate");
                Err(why.into())
            }
        }
    }

    /// One session, from hello to end. An error refuses it before it began.
    async fn session(
        &self,
        peer: Peer,
        mut says: Streaming<pb::Up>,
        queue: queue::Sender<intergrid_proto::link::Down>,
        sink: Sink,
    ) -> Result<(), Refusal> {
        let first = timeout(Duration::from_millis(CONNECT_TIMEOUT_MS), says.message()).await;
        let first =
            first.map_err(|_| Refusal::invalid(format!("it did not say hello within {CONNECT_TIMEOUT_MS} ms")))?.map_err(|s| refusal_of(&s))?;
        let hello = match first.map(Up::try_from).transpose()? {
            Some(Up::Hello(hello)) => hello,
            Some(_) => return Err(Refusal::invalid("its first message is not a hello")),
            None => return Err(Refusal::invalid("it ended the link before it said hello")),
        };
        let (drop, mut dropped) = oneshot::channel();
        self.admit(&peer, &hello, queue.clone(), drop)?;
        tracing::info!(agent = %peer, addr = ?peer.addr, "attached");
        let mut next = Some(Up::Hello(hello));
        let why = loop {
            if let Some(up) = next.take()
                && sink.send((peer.id, FromChild::Up(up))).await.is_err()
            {
                break "this gateway stops".to_string();
            }
            tokio::select! {
                () = queue.closed() => break "its connection is lost".to_string(),
                () = sink.closed() => break "this gateway stops".to_string(),
                why = &mut dropped => break why.unwrap_or_else(|_| "the link was dropped".to_string()),
                up = says.message() => match up.map(|up| up.map(Up::try_from)) {
                    Ok(Some(Ok(Up::Hello(_)))) => break "it said hello twice".to_string(),
                    Ok(Some(Ok(up))) => {
                        if let Up::Advert(advert) = &up
                            && let Some(session) = self.lock().get_mut(&peer.id)
                        {
                            session.shares.clone_from(&advert.shares);
                            session.heard = Instant::now();
                        }
                        next = Some(up);
                    }
                    Ok(Some(Err(refusal))) => break refusal.message,
                    Ok(None) => break "it ended the link".to_string(),
                    Err(status) => break cause(&status),
                },
            }
        };
        tracing::info!(agent = %peer, %why, "detached");
        // Gone first: the next session of this id must not say hello before.
        let _ = sink.send((peer.id, FromChild::Gone { why, silent_ms: peer.heard.silent_ms() })).await;
        self.lock().remove(&peer.id);
        Ok(())
    }

    fn admit(
        &self,
        peer: &Peer,
        hello: &Hello,
        queue: queue::Sender<intergrid_proto::link::Down>,
        drop: oneshot::Sender<String>,
    ) -> Result<(), Refusal> {
        let denied = |message| Err(Refusal::new(RefusalKind::NotAuthorised, message));
        let hop = &hello.hop;
        if hop.site != peer.id {
            return denied(format!("its hello says {}, its certificate {}", hop.site, peer.id));
        }
        if hop.kind != Kind::Agent || hop.name != peer.label {
            return denied(format!("its hello says {} {:?}, its certificate agent {:?}", hop.kind.name(), hop.name, peer.label));
        }
        self.provider.admits_anew(&hop.name)?;
        let mut sessions = self.lock();
        if let Some(other) = sessions.values().find(|s| s.hop.site == peer.id || s.hop.name == hop.name) {
            let message = format!("agent {} ({:?}) is attached already, from {}", other.hop.name, other.hop.site, other.addr);
            let remedy = "give each machine its own certificate and name; after a lost connection it is let in again when the old one has timed out";
            return Err(Refusal::new(RefusalKind::DuplicateIdentity, message).remedy(remedy));
        }
        let addr = peer.addr.map(|a| a.to_string()).unwrap_or_default();
        sessions.insert(peer.id, Session { hop: hop.clone(), addr, queue, drop: Some(drop), shares: Vec::new(), heard: Instant::now() });
        Ok(())
    }
}

/// Of an attempt that counts: the files that it may bring.
type Standing = Option<Arc<[String]>>;

/// One stream of outputs: files one after the other, acknowledged in groups as they become durable.
struct Upload {
    inner: Arc<Inner>,
    peer: Peer,
    acks: mpsc::Sender<Result<pb::OutputAck, Status>>,
    settling: Arc<Semaphore>,
    standings: BTreeMap<(u64, u64, u32), Standing>,
}

/// A file on its way in.
struct Incoming {
    ack: pb::OutputAck,
    /// None: taken and dropped, because its attempt does not count. An error is told when the file is over.
    writer: Result<Option<OutputWriter>, Refusal>,
    /// Where the disk has room.
    fits: bool,
}

impl Upload {
    async fn run(&mut self, mut parts: Streaming<pb::OutputPart>) -> Result<(), Refusal> {
        let mut current: Option<Incoming> = None;
        loop {
            let part = match current {
                // Between files an agent may be silent for as long as it likes.
                None => parts.message().await,
                Some(_) => timeout(Duration::from_millis(CALL_TIMEOUT_MS), parts.message())
                    .await
                    .map_err(|_| Refusal::new(RefusalKind::Unavailable, format!("no part of an output came within {CALL_TIMEOUT_MS} ms")))?,
            };
            let Some(part) = part.map_err(|s| refusal_of(&s))? else { return Ok(()) };
            let last = part.last;
            let file = match current.take() {
                Some(mut file) => {
                    if let Ok(Some(mut writer)) = std::mem::replace(&mut file.writer, Ok(None)) {
                        file.writer = blocking(move || writer.write(&part.data).map(|()| Some(writer))).await;
                    }
                    file
                }
                None => self.begin(part).await?,
            };
            if last { self.finish(file).await? } else { current = Some(file) }
        }
    }

    async fn begin(&mut self, part: pb::OutputPart) -> Result<Incoming, Refusal> {
        // Its machine may have been ended since the stream began.
        self.inner.provider.admits(&self.peer.label)?;
        let pb::OutputPart { job, number, task, name, .. } = part;
        if name.len() > NAME_BYTES_MAX + "out/".len() {
            return Err(Refusal::invalid(format!("the name of an output has {} bytes, at most {NAME_BYTES_MAX} are taken", name.len())));
        }
        let ack = pb::OutputAck { job, number, task, name: name.clone(), ..Default::default() };
        let hash = BlobHash::from_slice(&part.hash).ok_or_else(|| Refusal::invalid("malformed message: an output's first part has no hash"))?;
        let standing = match self.counts(job, number, task).await {
            Ok(standing) => standing,
            Err(refusal) => return Ok(Incoming { ack, writer: Err(refusal), fits: true }),
        };
        match standing {
            None => return Ok(Incoming { ack, writer: Ok(None), fits: true }),
            Some(wanted) => {
                if !matches!(name.as_str(), "stdout" | "stderr") && !name.strip_prefix("out/").is_some_and(|file| wanted.iter().any(|w| w == file)) {
                    let refused = Refusal::invalid(format!("output {name:?} is not one that the job asked for"));
                    return Ok(Incoming { ack, writer: Err(refused), fits: false });
                }
            }
        }
        let (outputs, fits) = (self.inner.outputs.clone(), self.inner.outputs.could_hold(part.size));
        let begin = move || {
            let mut writer = OutputStore::writer(&outputs, job, task, &name, hash, part.size)?;
            writer.write(&part.data)?;
            Ok(Some(writer))
        };
        Ok(Incoming { ack, writer: blocking(begin).await, fits })
    }

    async fn counts(&mut self, job: u64, number: u64, task: u32) -> Result<Standing, Refusal> {
        if self.standings.len() >= STANDINGS_MAX {
            self.standings.clear();
        }
        Ok(match self.standings.entry((job, number, task)) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(new) => new.insert(self.inner.above.counts(self.peer.id, job, number, task).await?.map(Into::into)).clone(),
        })
    }

    async fn finish(&self, file: Incoming) -> Result<(), Refusal> {
        let stops = |_| Refusal::new(RefusalKind::Unavailable, "this gateway stops");
        let turn = self.settling.clone().acquire_owned().await.map_err(stops)?;
        let (outputs, acks, mut ack) = (self.inner.outputs.clone(), self.acks.clone(), file.ack);
        let received: Result<Option<Received>, Refusal> = match file.writer {
            Ok(Some(writer)) => blocking(move || writer.verify().map(Some)).await,
            Ok(None) => Ok(None),
            Err(refusal) => Err(refusal),
        };
        // The next file comes in while this one becomes durable.
        tokio::spawn(async move {
            let _turn = turn;
            let stored = match received {
                Ok(Some(received)) => outputs.settle(received).await,
                Ok(None) => Ok(()),
                Err(refusal) => Err(refusal),
            };
            if let Err(refusal) = stored {
                let later = matches!(refusal.kind, RefusalKind::OverLimit | RefusalKind::Unavailable);
                (ack.error, ack.no_room) = (refusal.to_string(), file.fits && later);
            }
            let _ = acks.send(Ok(ack)).await;
        });
        Ok(())
    }
}
