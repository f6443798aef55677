//! An agent that is a perfect child over a real connection, and a level above its gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use intergrid_proto::link::{Down, EventKind, Hop, Kind, Up};
use intergrid_proto::net::{Identity, client, refusal_of};
use intergrid_proto::pb::pool_client::PoolClient;
use intergrid_proto::{BlobHash, Refusal, RefusalKind, SiteId, pb};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{act, hop};
use crate::backends::agents::Above;
use crate::backends::child_end::ChildEnd;
use crate::blobs::BlobStore;

/// A level above that brings what it was told to, and knows which placements are fenced.
#[derive(Default)]
pub struct Alone {
    blobs: OnceLock<BlobStore>,
    brings: Mutex<BTreeMap<BlobHash, Vec<u8>>>,
    fenced: Mutex<BTreeSet<u64>>,
}

impl Alone {
    pub fn knows(&self, blobs: BlobStore) {
        assert!(self.blobs.set(blobs).is_ok());
    }

    pub fn will_bring(&self, bytes: Vec<u8>) -> BlobHash {
        let hash = BlobHash::of(&bytes);
        self.brings.lock().unwrap().insert(hash, bytes);
        hash
    }

    pub fn fence(&self, number: u64) {
        self.fenced.lock().unwrap().insert(number);
    }
}

impl Above for Alone {
    fn need_blob(&self, hash: BlobHash) -> BoxFuture<'static, Result<(), Refusal>> {
        let (bytes, blobs) = (self.brings.lock().unwrap().get(&hash).cloned(), self.blobs.get().unwrap().clone());
        async move {
            sleep(Duration::from_millis(50)).await;
            let bytes = bytes.ok_or_else(|| Refusal::new(RefusalKind::MissingBlob, "not to be had"))?;
            let parts = futures::stream::iter([Ok(bytes::Bytes::from(bytes.clone()))]);
            blobs.put_stream(hash, bytes.len() as u64, parts).await.map(drop)
        }
        .boxed()
    }

    fn counts(&self, _: SiteId, _: u64, number: u64, _: u32) -> BoxFuture<'static, Result<Option<Vec<String>>, Refusal>> {
        std::future::ready(Ok((!self.fenced.lock().unwrap().contains(&number)).then(|| vec!["two".into()]))).boxed()
    }
}

pub struct TestAgent {
    end: Arc<Mutex<ChildEnd>>,
    identity: Arc<Identity>,
    endpoint: String,
    running: JoinHandle<()>,
}

async fn pool(identity: &Identity, endpoint: &str) -> Result<PoolClient<Channel>, Refusal> {
    let (channel, ..) = client::connect(endpoint, identity, identity.ca_pem()?, None).await?;
    Ok(PoolClient::new(channel))
}

/// Attach with this hello; Ok when the gateway lets it in.
pub async fn attach_once(identity: &Identity, endpoint: &str, hop: Hop) -> Result<(), Refusal> {
    let hello = ChildEnd::new(hop, 1, 1, 1).attach().into_iter().map(pb::Up::from);
    let hello = futures::stream::iter(hello).chain(futures::stream::pending());
    let mut downs = pool(identity, endpoint).await?.attach(hello).await.map_err(|s| refusal_of(&s))?.into_inner();
    match tokio::time::timeout(Duration::from_millis(300), downs.message()).await {
        Ok(Err(status)) => Err(refusal_of(&status)),
        Ok(Ok(None)) => Err(Refusal::invalid("ended")),
        Ok(Ok(Some(_))) | Err(_) => Ok(()),
    }
}

impl TestAgent {
    pub fn start(identity: Arc<Identity>, endpoint: &str, slots: u32) -> Self {
        let mut end = ChildEnd::new(hop(&identity, Kind::Agent), 7, slots, 4 << 30);
        end.acting.delay_ms = 1;
        let end = Arc::new(Mutex::new(end));
        let running = tokio::spawn(run(end.clone(), identity.clone(), endpoint.to_string()));
        TestAgent { end, identity, endpoint: endpoint.to_string(), running }
    }

    pub fn ended(&self) -> bool {
        self.running.is_finished()
    }

    pub fn assert_started_once(&self) {
        let starts = self.end.lock().unwrap().starts().to_vec();
        assert!(!starts.is_empty(), "this agent had nothing to do");
        assert_eq!(starts.iter().collect::<BTreeSet<_>>().len(), starts.len());
    }

    pub async fn get_blob(&self, hash: BlobHash) -> Result<Vec<u8>, Refusal> {
        let mut pool = pool(&self.identity, &self.endpoint).await?;
        let mut parts = pool.get_blob(pb::BlobHash { hash: hash.0.to_vec() }).await.map_err(|s| refusal_of(&s))?.into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = parts.message().await.map_err(|s| refusal_of(&s))? {
            bytes.extend_from_slice(&part.data);
        }
        Ok(bytes)
    }

    pub async fn peeks(&self) -> Result<(), Refusal> {
        let mut pool = pool(&self.identity, &self.endpoint).await?;
        pool.peeks(futures::stream::pending()).await.map(drop).map_err(|s| refusal_of(&s))
    }

    pub async fn put_outputs(&self, parts: Vec<pb::OutputPart>) -> Result<Vec<pb::OutputAck>, Refusal> {
        put_outputs(&mut pool(&self.identity, &self.endpoint).await?, parts).await
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn put_outputs(pool: &mut PoolClient<Channel>, parts: Vec<pb::OutputPart>) -> Result<Vec<pb::OutputAck>, Refusal> {
    let mut acks = pool.put_outputs(futures::stream::iter(parts)).await.map_err(|s| refusal_of(&s))?.into_inner();
    let mut all = Vec::new();
    while let Some(ack) = acks.message().await.map_err(|s| refusal_of(&s))? {
        all.push(ack);
    }
    Ok(all)
}

/// Attach, and again when the link is lost. Outputs go up before the end of their task is told.
async fn run(end: Arc<Mutex<ChildEnd>>, identity: Arc<Identity>, endpoint: String) {
    let began = Instant::now();
    loop {
        let mut pool = pool(&identity, &endpoint).await.unwrap();
        let (ups, mut said) = mpsc::channel(64);
        let (out, checked) = mpsc::channel(64);
        let mut bulk = pool.clone();
        let stdout = end.clone();
        let forward = tokio::spawn(async move {
            while let Some(up) = said.recv().await {
                if let Up::Events(e) = &up {
                    let ended = e.events.iter().filter(|e| matches!(&e.what, EventKind::Ended(e) if e.exit == [0]));
                    let of = |job, number, task| {
                        let bytes = stdout.lock().unwrap().stdout(job, task).filter(|b| !b.is_empty())?;
                        let (hash, size) = (BlobHash::of(&bytes).0.to_vec(), bytes.len() as u64);
                        Some(pb::OutputPart { job, number, task, name: "stdout".into(), hash, size, data: bytes.into(), last: true })
                    };
                    let parts: Vec<_> =
                        ended.flat_map(|e| e.of.tasks.iter().filter_map(|t| of(e.of.job, e.of.number, t)).collect::<Vec<_>>()).collect();
                    if !parts.is_empty() {
                        let acks = put_outputs(&mut bulk, parts).await.unwrap();
                        assert!(acks.iter().all(|a| a.error.is_empty()), "{acks:?}");
                    }
                }
                if out.send(pb::Up::from(up)).await.is_err() {
                    return;
                }
            }
        });
        let downs = pool.attach(ReceiverStream::new(checked)).await;
        if let Ok(downs) = downs {
            let says = downs.into_inner().take_while(|d| std::future::ready(d.is_ok())).map(|d| Down::try_from(d.unwrap()).unwrap());
            act(end.clone(), Box::pin(says), ups, began).await;
        }
        forward.abort();
        sleep(Duration::from_millis(20)).await;
    }
}
