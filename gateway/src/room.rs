//! Room on the disk of a site's state, seen from the shell: the core is told when there is none for new work, and a store that can't write is waited for.
//!
//! Invariant: a batch that found no room is committed later as it is, or never; meanwhile nothing that waits for it is done, callers are refused at once, and
//! [looks](crate::engine::Engine::look) are answered. It frees nothing but the ballast.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use intergrid_proto::net::disk::Disk;
use intergrid_proto::{Refusal, RefusalKind};
use tokio::sync::watch;

use crate::core::Input;
use crate::engine::Engine;
use crate::store::{Batch, Store, StoreError};

/// How often the free space is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often a batch that found no room is tried again.
const TRY_INTERVAL: Duration = Duration::from_millis(100);

/// Why the store can't write just now.
#[derive(Clone, Default)]
pub struct Stuck(Arc<Mutex<Option<Refusal>>>);

impl Stuck {
    /// Why, if so.
    pub fn why(&self) -> Option<Refusal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, why: Option<Refusal>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }
}

/// Commit a batch, and wait for room where there is none, until nobody wants it any more.
pub fn commit(store: &mut dyn Store, batch: &Batch, stuck: &Stuck, is_over: impl Fn() -> bool) -> Result<(), StoreError> {
    let mut waits = false;
    loop {
        match store.commit(batch) {
            Err(e) if e.is_full() && !is_over() => {
                if !waits {
                    tracing::error!("{e}; nothing is accepted until then");
                    waits = true;
                }
                let refusal = Refusal::new(RefusalKind::Unavailable, e.to_string()).remedy("free some space on that disk, then try again");
                stuck.set(Some(refusal));
                std::thread::sleep(TRY_INTERVAL);
            }
            done => {
                if waits && done.is_ok() {
                    tracing::info!("there is room again: the store goes on");
                }
                stuck.set(None);
                return done;
            }
        }
    }
}

/// Tell the engine whenever it is otherwise than before, until the site stops.
pub async fn watch(disk: Disk, engine: Engine, mut stopped: watch::Receiver<bool>) {
    let mut told = false;
    loop {
        let looked = disk.clone();
        let low = tokio::task::spawn_blocking(move || looked.look()).await.unwrap_or_default();
        let why = engine.stuck().or(low);
        if why.is_some() != told {
            match &why {
                Some(why) => tracing::warn!("no new work is taken: {why}"),
                None => tracing::info!("there is room on the disk: new work is taken again"),
            }
        }
        if why.is_some() || told {
            told = why.is_some();
            if engine.tell(Input::Room(why)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            _ = stopped.wait_for(|s| *s) => return,
        }
    }
}
