//! Content by hash: inputs and executables, each stored once per site as `blobs/ab/cdef...`.
//!
//! Invariant: a file under its final name is whole, verified and durable. Total bytes are bounded, with room reserved before a transfer begins. Whoever
//! needs content that is not here waits for its arrival. This module neither fetches nor decides what may be forgotten.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use intergrid_proto::limits::BLOB_BYTES_MAX;
use intergrid_proto::{BlobHash, Refusal, RefusalKind};
use tokio::sync::watch;

use crate::backend::Content;
use crate::durable::{Incoming, blocking, check_free, content, io_refusal, open_dir, sync_dir, temp_path};

/// What a store of blobs may take.
#[derive(Clone, Copy, Debug)]
pub struct BlobLimits {
    /// All blobs together.
    pub blobs_bytes_max: u64,
    /// The disk keeps so much free.
    pub free_min_bytes: u64,
}

/// The blobs of a site. Cheap to clone.
#[derive(Clone)]
pub struct BlobStore(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    limits: BlobLimits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sizes: HashMap<BlobHash, u64>,
    /// Stored and reserved.
    bytes: u64,
    /// Dropping the sender wakes who waits.
    waited_for: HashMap<BlobHash, watch::Sender<()>>,
}

impl BlobStore {
    /// Open a directory, or make it. Unfinished files of an earlier process are removed.
    pub fn open(dir: impl Into<PathBuf>, limits: BlobLimits) -> Result<BlobStore, Refusal> {
        let dir = dir.into();
        let mut state = State::default();
        let mut load = || {
            open_dir(&dir)?;
            for shelf in std::fs::read_dir(&dir)? {
                let shelf = shelf?;
                let name = shelf.file_name();
                let Some(first) = name.to_str().filter(|n| n.len() == 2) else { continue };
                for entry in std::fs::read_dir(shelf.path())? {
                    let entry = entry?;
                    if let Some(hash) = entry.file_name().to_str().and_then(|rest| parse_hash(&format!("{first}{rest}"))) {
                        let size = entry.metadata()?.len();
                        state.bytes += size;
                        state.sizes.insert(hash, size);
                    }
                }
            }
            Ok(())
        };
        load().map_err(|e| io_refusal("open the blobs in", &dir, e))?;
        Ok(BlobStore(Arc::new(Inner { dir, limits, state: Mutex::new(state) })))
    }

    /// Is it here?
    pub fn has(&self, hash: BlobHash) -> bool {
        self.size(hash).is_some()
    }

    /// Its size, where it is here.
    pub fn size(&self, hash: BlobHash) -> Option<u64> {
        self.0.state().sizes.get(&hash).copied()
    }

    /// Where it is, or would be.
    pub fn path(&self, hash: BlobHash) -> PathBuf {
        let hex = hash.to_string();
        self.0.dir.join(&hex[..2]).join(&hex[2..])
    }

    /// Bytes stored or reserved.
    pub fn bytes(&self) -> u64 {
        self.0.state().bytes
    }

    /// Begin to store content. What is here already is taken and discarded.
    pub fn writer(&self, hash: BlobHash, size: u64) -> Result<BlobWriter, Refusal> {
        if size > BLOB_BYTES_MAX {
            return Err(over(format!("content {hash} has {size} bytes, one file may have {BLOB_BYTES_MAX}")));
        }
        {
            let state = self.0.state();
            if let Some(here) = state.sizes.get(&hash) {
                if *here != size {
                    return Err(Refusal::invalid(format!("content {hash} has {here} bytes, not {size}")));
                }
                return Ok(BlobWriter { store: self.clone(), hash, reserved: 0, left: size, incoming: None });
            }
            let max = self.0.limits.blobs_bytes_max;
            if state.bytes.saturating_add(size) > max {
                return Err(over(format!("content {hash} of {size} bytes: blobs_bytes_max is {max}, {} are taken", state.bytes)));
            }
        }
        // Room is taken as content comes: what is only announced keeps nobody out.
        let mut writer = BlobWriter { store: self.clone(), hash, reserved: 0, left: size, incoming: None };
        check_free(&self.0.dir, size, self.0.limits.free_min_bytes)?;
        let temp = temp_path(&self.0.dir.join("new"), &hash.to_string());
        writer.incoming = Some(Incoming::create(temp, &[], hash, size)?);
        Ok(writer)
    }

    /// Store a stream to its end: verified and durable, or refused. True: it was here before. Content that is here already is read to its end all the same, because a peer that is
    /// cut off in the middle of sending sees an error and not the answer.
    pub async fn put_stream<S>(&self, hash: BlobHash, size: u64, parts: S) -> Result<bool, Refusal>
    where
        S: Stream<Item = Result<Bytes, Refusal>>,
    {
        let store = self.clone();
        let mut writer = blocking(move || store.writer(hash, size)).await?;
        let mut parts = std::pin::pin!(parts);
        while let Some(part) = parts.next().await {
            let part = part?;
            writer = blocking(move || writer.write(&part).map(|()| writer)).await?;
        }
        blocking(move || writer.finish()).await
    }

    /// Room for so many bytes more.
    fn reserve(&self, hash: BlobHash, bytes: u64) -> Result<u64, Refusal> {
        let max = self.0.limits.blobs_bytes_max;
        let mut state = self.0.state();
        if state.bytes.saturating_add(bytes) > max {
            return Err(over(format!("content {hash} has no room any more: blobs_bytes_max is {max}, {} are taken", state.bytes)));
        }
        state.bytes += bytes;
        Ok(bytes)
    }

    /// Its bytes, in parts of [`intergrid_proto::limits::BLOB_PART_BYTES`].
    pub async fn get_stream(&self, hash: BlobHash) -> Result<Content, Refusal> {
        let size = self.size(hash).ok_or_else(|| missing(hash))?;
        let path = self.path(hash);
        blocking(move || {
            let file = File::open(&path).map_err(|e| io_refusal("open", &path, e))?;
            Ok(content(file, path, hash, size))
        })
        .await
    }

    /// Wait until it is here; its size.
    pub async fn wait_for(&self, hash: BlobHash, timeout: Duration) -> Result<u64, Refusal> {
        let mut arrived = {
            let mut state = self.0.state();
            if let Some(size) = state.sizes.get(&hash) {
                return Ok(*size);
            }
            let sender = state.waited_for.entry(hash).or_insert_with(|| watch::channel(()).0);
            Waiter { inner: &self.0, hash, arrived: Some(sender.subscribe()) }
        };
        if let Some(arrived) = &mut arrived.arrived {
            // Never sent to: an error here is the dropped sender.
            let _ = tokio::time::timeout(timeout, arrived.changed()).await;
        }
        self.size(hash).ok_or_else(|| {
            let refusal = missing(hash);
            Refusal { message: format!("{}; waited {} ms", refusal.message, timeout.as_millis()), ..refusal }
        })
    }

    /// Content that somebody waits for.
    pub fn waited_for(&self) -> Vec<BlobHash> {
        self.0.state().waited_for.keys().copied().collect()
    }

    /// Forget it; who reads it reads on. False where it is not here.
    pub fn remove(&self, hash: BlobHash) -> Result<bool, Refusal> {
        let path = self.path(hash);
        let mut state = self.0.state();
        let Some(size) = state.sizes.get(&hash).copied() else { return Ok(false) };
        std::fs::remove_file(&path).map_err(|e| io_refusal("remove", &path, e))?;
        state.sizes.remove(&hash);
        state.bytes = state.bytes.saturating_sub(size);
        Ok(true)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that may panic runs under this lock, so a poisoned one is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes its hash out of the registry when it is the last one that waits.
struct Waiter<'a> {
    inner: &'a Inner,
    hash: BlobHash,
    arrived: Option<watch::Receiver<()>>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        self.arrived = None;
        if state.waited_for.get(&self.hash).is_some_and(|sender| sender.receiver_count() == 0) {
            state.waited_for.remove(&self.hash);
        }
    }
}

/// Content on its way in. Dropped unfinished, it leaves nothing.
pub struct BlobWriter {
    store: BlobStore,
    hash: BlobHash,
    reserved: u64,
    left: u64,
    /// None: it was here already.
    incoming: Option<Incoming>,
}

impl BlobWriter {
    /// The next part.
    pub fn write(&mut self, part: &[u8]) -> Result<(), Refusal> {
        match &mut self.incoming {
            Some(incoming) => {
                self.reserved += self.store.reserve(self.hash, part.len() as u64)?;
                incoming.write(part)
            }
            None => {
                let left = self.left.checked_sub(part.len() as u64);
                self.left = left.ok_or_else(|| Refusal::invalid(format!("content {} is longer than announced", self.hash)))?;
                Ok(())
            }
        }
    }

    /// Verify, sync, rename, sync the directory; then wake who waits. True: it was here before.
    pub fn finish(mut self) -> Result<bool, Refusal> {
        let Some(incoming) = self.incoming.take() else { return Ok(true) };
        let temp = incoming.verify()?;
        let path = self.store.path(self.hash);
        let shelf = path.parent().unwrap_or(Path::new(".")).to_path_buf();
        let place = || {
            temp.sync()?;
            if !shelf.is_dir() {
                std::fs::create_dir_all(&shelf)?;
                sync_dir(&self.store.0.dir)?;
            }
            temp.rename(&path)?;
            sync_dir(&shelf)
        };
        place().map_err(|e| io_refusal("store", &path, e))?;
        let mut state = self.store.0.state();
        // Two may bring the same content at once: it counts once, the other's reservation goes back when it is dropped.
        if state.sizes.insert(self.hash, self.reserved).is_none() {
            self.reserved = 0;
        }
        state.waited_for.remove(&self.hash);
        drop(state);
        Ok(false)
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        let mut state = self.store.0.state();
        state.bytes = state.bytes.saturating_sub(self.reserved);
    }
}

fn over(message: String) -> Refusal {
    Refusal::new(RefusalKind::OverLimit, message).remedy("remove jobs that need other content, or raise the limit")
}

fn missing(hash: BlobHash) -> Refusal {
    Refusal::new(RefusalKind::MissingBlob, format!("content {hash} is not here")).remedy("upload it, then retry")
}

fn parse_hash(hex: &str) -> Option<BlobHash> {
    blake3::Hash::from_hex(hex).ok().map(|h| BlobHash(*h.as_bytes()))
}
