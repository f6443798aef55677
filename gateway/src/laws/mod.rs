//! The laws that every backend obeys, driven at the seam itself: a leaf, a gateway behind a wire, a federation and a tower of brokers run the same suite.
//!
//! A law speaks to a real backend through a [`Parent`] and says what it expects in words; the first that is broken ends the run. What must always hold
//! (events without gaps, each task of a placement ended or returned once, nothing said before a hello) the parent checks on every message.

mod array;
pub mod cloud;
mod each;
pub mod parent;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use intergrid_proto::link::Hop;
pub use parent::Parent;

use crate::backend::Backend;

/// Tasks of the large array, unless said otherwise.
pub const ARRAY_TASKS: u32 = 1_000;
/// How long a law waits for what must come.
pub const PATIENCE_MS: u64 = 20_000;
/// How long a law waits for what must not come.
pub const QUIET_MS: u64 = 300;

/// What the laws may assume of a backend.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long to wait for what must come.
    pub patience: Duration,
    /// How long to wait for what must not come.
    pub quiet: Duration,
    /// Tasks of the large array.
    pub array_tasks: u32,
    /// Outputs can be had from this backend.
    pub outputs: bool,
    /// Children that must attach before the first law.
    pub children: usize,
}

/// A run of the laws.
pub struct Laws {
    backend: Arc<dyn Backend>,
    me: Hop,
    options: Options,
}

/// A law's name, and how long it took.
pub type Kept = Vec<(&'static str, Duration)>;

type Law = for<'a> fn(&'a mut Parent, &'a Options) -> BoxFuture<'a, Result<(), String>>;

impl Laws {
    /// Of a backend that has not been started. `me` is the parent; where its children verify a certificate, it must be that of its holder.
    pub fn of(backend: Arc<dyn Backend>, me: Hop) -> Self {
        let options = Options {
            patience: Duration::from_millis(PATIENCE_MS),
            quiet: Duration::from_millis(QUIET_MS),
            array_tasks: ARRAY_TASKS,
            outputs: true,
            children: 1,
        };
        Laws { backend, me, options }
    }

    /// With other options.
    pub fn with(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(&mut self.options);
        self
    }

    /// Run them all, inside a tokio runtime. An error names the law and how it was broken.
    pub async fn run(self) -> Result<Kept, String> {
        let mut parent = Parent::start(self.backend, self.me);
        let mut kept = Vec::new();
        for (name, law) in each::ALL {
            let began = Instant::now();
            law(&mut parent, &self.options).await.map_err(|why| format!("law broken: {name}: {why}"))?;
            kept.push((*name, began.elapsed()));
        }
        Ok(kept)
    }
}
