//! A gateway whose link is served by a perfect child; the rest of its service is as small as the laws need it.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::{Stream, StreamExt};
use intergrid_proto::link::Down;
use intergrid_proto::net::{Peer, Role};
use intergrid_proto::pb::grid_server::{Grid, GridServer};
use intergrid_proto::{BlobHash, Refusal, RefusalKind, pb};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::act;
use crate::backends::child_end::ChildEnd;
use crate::backends::host;

#[derive(Clone)]
pub struct TestGrid {
    end: Arc<Mutex<ChildEnd>>,
    began: Instant,
    blobs: Arc<Mutex<Blobs>>,
    link: Arc<Mutex<Option<tokio::task::AbortHandle>>>,
}

impl TestGrid {
    pub fn new(end: Arc<Mutex<ChildEnd>>) -> Self {
        TestGrid { end, began: Instant::now(), blobs: Arc::default(), link: Arc::default() }
    }

    pub fn service(&self) -> GridServer<Self> {
        GridServer::new(self.clone())
    }

    pub fn replace(&self, end: ChildEnd) {
        *self.end.lock().unwrap() = end;
    }

    pub fn puts(&self) -> usize {
        self.blobs.lock().unwrap().0
    }

    pub fn blob(&self, hash: BlobHash) -> Option<Vec<u8>> {
        self.blobs.lock().unwrap().1.get(&hash).cloned()
    }

    pub fn drop_link(&self) {
        self.link.lock().unwrap().take().unwrap().abort();
    }

    pub fn assert_started_once(&self) {
        let starts = self.end.lock().unwrap().starts().to_vec();
        let once: std::collections::BTreeSet<_> = starts.iter().collect();
        assert_eq!(once.len(), starts.len());
    }
}

/// How many came, and what is here.
type Blobs = (usize, BTreeMap<BlobHash, Vec<u8>>);
type Parts<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

fn placed(job: Option<pb::JobRef>) -> u64 {
    match job.and_then(|j| j.what) {
        Some(pb::job_ref::What::Placed(n)) => n,
        _ => 0,
    }
}

fn not_here<T>() -> Answer<T> {
    Err(Status::unimplemented("not in this test"))
}

#[tonic::async_trait]
impl Grid for TestGrid {
    type SubmitManyStream = Parts<pb::SubmitManyReply>;
    type WatchStream = Parts<pb::JobView>;
    type HistoryStream = Parts<pb::HistoryBatch>;
    type GetOutputStream = Parts<pb::BlobPart>;
    type LinkStream = Parts<pb::Up>;

    async fn link(&self, request: Request<Streaming<pb::Down>>) -> Answer<Self::LinkStream> {
        request.extensions().get::<Peer>().unwrap().require(Role::Delegate)?;
        let (ups, out) = mpsc::channel(64);
        let says = request.into_inner().take_while(|d| std::future::ready(d.is_ok())).map(|d| Down::try_from(d.unwrap()).unwrap());
        let acting = tokio::spawn(act(self.end.clone(), Box::pin(says), ups, self.began));
        *self.link.lock().unwrap() = Some(acting.abort_handle());
        Ok(Response::new(Box::pin(ReceiverStream::new(out).map(|u| Ok(u.into())))))
    }

    async fn explain(&self, request: Request<pb::JobRequest>) -> Answer<pb::Explanation> {
        let end = self.end.lock().unwrap();
        assert_ne!(0, placed(request.into_inner().job));
        Ok(Response::new(pb::Explanation { site: Some(end.hop().clone().into()), ..Default::default() }))
    }

    async fn hosts(&self, _: Request<pb::HostsRequest>) -> Answer<pb::Host> {
        let end = self.end.lock().unwrap();
        Ok(Response::new(host(end.hop(), "test", &[end.share()])))
    }

    async fn peek(&self, _: Request<pb::PeekRequest>) -> Answer<pb::PeekReply> {
        Err(Status::unimplemented("nobody follows"))
    }

    async fn get_output(&self, request: Request<pb::OutputRequest>) -> Answer<Self::GetOutputStream> {
        let r = request.into_inner();
        let bytes = self.end.lock().unwrap().stdout(placed(r.job), r.task).filter(|_| r.name == "stdout");
        let bytes = bytes.ok_or_else(|| Refusal::new(RefusalKind::NotFound, "no such output"))?;
        let first = pb::BlobPart { hash: BlobHash::of(&bytes).0.to_vec(), size: bytes.len() as u64, data: Default::default() };
        let rest = pb::BlobPart { data: bytes.into(), ..Default::default() };
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(first), Ok(rest)]))))
    }

    async fn has_blobs(&self, request: Request<pb::BlobHashes>) -> Answer<pb::BlobHashes> {
        let here = self.blobs.lock().unwrap().1.clone();
        let hashes = request.into_inner().hashes.into_iter().filter(|h| here.contains_key(&BlobHash::from_slice(h).unwrap())).collect();
        Ok(Response::new(pb::BlobHashes { hashes }))
    }

    async fn put_blob(&self, request: Request<Streaming<pb::BlobPart>>) -> Answer<pb::PutBlobReply> {
        let mut parts = request.into_inner();
        let first = parts.message().await?.unwrap();
        let mut bytes = first.data.to_vec();
        while let Some(part) = parts.message().await? {
            bytes.extend_from_slice(&part.data);
        }
        let hash = BlobHash::from_slice(&first.hash).unwrap();
        if hash != BlobHash::of(&bytes) || first.size != bytes.len() as u64 {
            return Err(Refusal::invalid("not what its hash says").into());
        }
        let mut blobs = self.blobs.lock().unwrap();
        blobs.0 += 1;
        let existed = blobs.1.insert(hash, bytes).is_some();
        Ok(Response::new(pb::PutBlobReply { existed }))
    }

    async fn submit(&self, _: Request<pb::SubmitRequest>) -> Answer<pb::SubmitReply> {
        not_here()
    }
    async fn quote(&self, _: Request<pb::QuoteRequest>) -> Answer<pb::QuoteReply> {
        not_here()
    }
    async fn order(&self, _: Request<pb::OrderRequest>) -> Answer<pb::OrderReply> {
        not_here()
    }
    async fn submit_many(&self, _: Request<Streaming<pb::SubmitRequest>>) -> Answer<Self::SubmitManyStream> {
        not_here()
    }
    async fn set_want(&self, _: Request<pb::SetWantRequest>) -> Answer<pb::SetWantReply> {
        not_here()
    }
    async fn list(&self, _: Request<pb::ListRequest>) -> Answer<pb::ListReply> {
        not_here()
    }
    async fn show(&self, _: Request<pb::JobRequest>) -> Answer<pb::JobView> {
        not_here()
    }
    async fn watch(&self, _: Request<pb::JobRequest>) -> Answer<Self::WatchStream> {
        not_here()
    }
    async fn history(&self, _: Request<pb::JobRequest>) -> Answer<Self::HistoryStream> {
        not_here()
    }
}
