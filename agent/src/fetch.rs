//! Content of specs, fetched once by hash into the cache, verified, then renamed into place.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use intergrid_proto::net::refusal_of;
use intergrid_proto::{BlobHash, Refusal, RefusalKind, pb, spec};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

use crate::dial::{Backoff, Dial};
use crate::exec::dirs::Dirs;
use crate::limits::{BULK_STALL_MS, FETCH_TRIES_MAX};
use crate::plan::Plan;

/// Files fetched at once.
const FETCHES_MAX: usize = 4;

/// What is being fetched, one at a time each: content, and whether it is a program.
type Flights = HashMap<(BlobHash, bool), Arc<Mutex<()>>>;

/// Fetches content.
pub struct Fetcher {
    dial: Arc<Dial>,
    dirs: Dirs,
    turns: Semaphore,
    /// One fetch of a file at a time.
    flights: Mutex<Flights>,
}

impl Fetcher {
    /// Nothing is fetched yet.
    pub fn new(dial: Arc<Dial>, dirs: Dirs) -> Arc<Self> {
        Arc::new(Fetcher { dial, dirs, turns: Semaphore::new(FETCHES_MAX), flights: Mutex::default() })
    }

    /// All content of a plan. Waits as long as the gateway is away; an error is one that waiting does not help.
    pub async fn all(&self, plan: &Plan) -> Result<(), String> {
        for (file, executable) in plan.files() {
            let key = (file.hash, executable);
            let flight = self.flights.lock().await.entry(key).or_default().clone();
            let result = {
                let _alone = flight.lock().await;
                self.one(file, executable).await
            };
            drop(flight);
            self.flights.lock().await.retain(|_, f| Arc::strong_count(f) > 1);
            result.map_err(|e| format!("input {:?}: {e}", file.name))?;
        }
        Ok(())
    }

    async fn one(&self, file: &spec::File, executable: bool) -> Result<(), Refusal> {
        let path = self.dirs.blob(file.hash, executable);
        let mut backoff = Backoff::default();
        let mut tries = 0;
        loop {
            if path.exists() {
                return Ok(());
            }
            let turn = self.turns.acquire().await;
            let fetched = self.try_one(file, executable).await;
            drop(turn);
            let Err(e) = fetched else { return Ok(()) };
            self.dial.bulk_failed().await;
            match e.kind {
                RefusalKind::Unavailable => {}
                _ if tries + 1 >= FETCH_TRIES_MAX => return Err(e),
                _ => tries += 1,
            }
            tracing::info!("fetching {:?}: {e}; trying on", file.name);
            backoff.pause().await;
        }
    }

    async fn try_one(&self, file: &spec::File, executable: bool) -> Result<(), Refusal> {
        let mut pool = self.dial.bulk().await?;
        let stall = Duration::from_millis(BULK_STALL_MS);
        let silent = |_| Refusal::new(RefusalKind::Unavailable, format!("nothing came within {BULK_STALL_MS} ms"));
        let asked = pool.get_blob(pb::BlobHash { hash: file.hash.0.to_vec() });
        let mut parts = timeout(stall, asked).await.map_err(silent)?.map_err(|s| refusal_of(&s))?.into_inner();
        let incoming = self.dirs.incoming(file.hash);
        let disk = |e: io::Error| Refusal::new(RefusalKind::Internal, format!("can't write it here: {e}"));
        let mut out = File::create(&incoming).map_err(disk)?;
        let (mut hasher, mut size) = (blake3::Hasher::new(), 0);
        while let Some(part) = timeout(stall, parts.message()).await.map_err(silent)?.map_err(|s| refusal_of(&s))? {
            size += part.data.len() as u64;
            if size > file.size {
                break;
            }
            hasher.update(&part.data);
            out.write_all(&part.data).map_err(disk)?;
        }
        if size != file.size || *hasher.finalize().as_bytes() != file.hash.0 {
            let _ = fs::remove_file(&incoming);
            return Err(Refusal::invalid(format!("what came is not the content of hash {:?}", file.hash)));
        }
        let mode = fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 });
        out.set_permissions(mode).map_err(disk)?;
        let path = self.dirs.blob(file.hash, executable);
        // Durable before it has its name: a name is trusted after a restart.
        let kept = tokio::task::spawn_blocking(move || out.sync_all().and_then(|()| fs::rename(incoming, path)));
        kept.await.map_err(io::Error::other).and_then(|r| r).map_err(disk)
    }
}
