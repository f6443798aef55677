//! Content on its way down the tree: who below asks for what is not here makes this site ask above, once; when it comes, all who asked get it.
//!
//! Holds nothing durable: a child that still wants it asks again after a reconnect.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use intergrid_proto::limits::BLOB_WAIT_MS;
use intergrid_proto::{BlobHash, SiteId};

use crate::backend::Backend;
use crate::blobs::BlobStore;
use crate::engine::Engine;

/// Content that one child may wait for at once; it asks again for what it still needs.
const NEEDS_PER_CHILD_MAX: usize = 2_048;
/// How often the level above is asked again for what has not come.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Fetches for those below.
#[derive(Clone)]
pub struct Staging(Arc<Inner>);

struct Inner {
    blobs: BlobStore,
    engine: OnceLock<Engine>,
    under_way: Mutex<HashMap<SiteId, HashSet<BlobHash>>>,
}

impl Staging {
    /// Over a store; the engine comes later, as it needs us first.
    pub fn new(blobs: BlobStore) -> Self {
        Staging(Arc::new(Inner { blobs, engine: OnceLock::new(), under_way: Mutex::default() }))
    }

    /// The engine through which parents are asked.
    pub fn connect(&self, engine: Engine) {
        _ = self.0.engine.set(engine);
    }

    /// Ask above for content that is not here, and again until it comes or `BLOB_WAIT_MS` have passed.
    pub async fn fetch(&self, hash: BlobHash) -> Result<(), intergrid_proto::Refusal> {
        let start = tokio::time::Instant::now();
        loop {
            if !self.0.blobs.has(hash)
                && let Some(engine) = self.0.engine.get()
            {
                engine.ask_above(hash);
            }
            match self.0.blobs.wait_for(hash, ASK_AGAIN).await {
                Ok(_) => return Ok(()),
                Err(r) if start.elapsed() >= Duration::from_millis(BLOB_WAIT_MS) => return Err(r),
                Err(_) => {}
            }
        }
    }

    /// A child wants content: give it, once it is here.
    pub fn need(&self, backend: Arc<dyn Backend>, child: SiteId, hash: BlobHash) {
        let mut under_way = self.0.under_way.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let of_child = under_way.entry(child).or_default();
        if of_child.len() >= NEEDS_PER_CHILD_MAX || !of_child.insert(hash) {
            return;
        }
        let staging = self.clone();
        tokio::spawn(async move {
            let result = match staging.fetch(hash).await {
                Ok(()) => backend.put_blob(child, hash, staging.0.blobs.path(hash)).await,
                Err(r) => Err(r),
            };
            if let Err(r) = result {
                tracing::warn!(?child, %hash, "content not delivered: {r}");
            }
            let mut under_way = staging.0.under_way.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(of_child) = under_way.get_mut(&child) {
                of_child.remove(&hash);
                if of_child.is_empty() {
                    under_way.remove(&child);
                }
            }
        });
    }
}
