//! The one suite of laws over a real Grid Engine: the backend itself, and a gateway over it, driven over TCP and mTLS.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use intergrid_gateway::backends::agents::Above;
use intergrid_gateway::blobs::{BlobLimits, BlobStore};
use intergrid_gateway::config::{AccountsConfig, LrmsConfig, LrmsKind, LrmsLimits};
use intergrid_gateway::core::schedule::FirstFit;
use intergrid_gateway::daemon::{Built, DaemonOptions, Running};
use intergrid_gateway::laws::Laws;
use intergrid_gateway::outputs::OutputStore;
use intergrid_lrms::gridengine::{GridEngine as Commands, GridEngineConfig};
use intergrid_lrms::{LrmsPool, Parts};
use intergrid_proto::link::{Hop, Kind};
use intergrid_proto::{BlobHash, Refusal, SiteId};
use intergrid_tests::grid::Grid;
use intergrid_tests::gridengine::{COMMANDS, GridEngine};
use intergrid_tests::logs;

/// Tasks of the law's large array: this Grid Engine does some ten a second.
const ARRAY_TASKS: u32 = 120;
/// A start takes Grid Engine up to a second or two, a stop some more.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than it takes to start something.
const QUIET: Duration = Duration::from_secs(3);

/// Nobody is above, and every attempt counts.
struct Alone;

impl Above for Alone {
    fn need_blob(&self, _: BlobHash) -> Boxed<Result<(), Refusal>> {
        Box::pin(std::future::ready(Err(Refusal::invalid("nobody is above"))))
    }

    fn counts(&self, _: SiteId, _: u64, _: u64, _: u32) -> Boxed<Result<Option<Vec<String>>, Refusal>> {
        Box::pin(std::future::ready(Ok(Some(Vec::new()))))
    }
}

/// What the seam returns.
type Boxed<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

fn config(cluster: &GridEngine, shared: &Path) -> LrmsConfig {
    LrmsConfig {
        kind: LrmsKind::GridEngine,
        queues: vec!["batch".into()],
        piloted: Vec::new(),
        directory: shared.to_str().expect("a path in UTF-8").to_string(),
        commands: Some(COMMANDS.into()),
        conf: Some(cluster.conf()),
        records: None,
        accounting: false,
        parallel_environment: Some("smp".into()),
        memory: None,
        gpu_complex: None,
        accounts: AccountsConfig::Own,
        limits: LrmsLimits { waiting_max: Some(16), ..LrmsLimits::default() },
    }
}

fn commands(cluster: &GridEngine, shared: &Path) -> Arc<Commands> {
    Arc::new(Commands::new(GridEngineConfig::of(&config(cluster, shared)).expect("a configuration")))
}

fn shared(cluster: &GridEngine) -> std::path::PathBuf {
    cluster.dir().canonicalize().expect("a directory").join("shared")
}

async fn obeyed(laws: Laws, what: &str) {
    let laws = laws.with(|o| (o.array_tasks, o.patience, o.quiet) = (ARRAY_TASKS, PATIENCE, QUIET));
    let kept = laws.run().await.unwrap_or_else(|why| panic!("{what}: {why}\n{}", logs::lines(&[]).join("\n")));
    for (law, took) in kept {
        println!("{what}: {:5} ms: {law}", took.as_millis());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backend_obeys() {
    logs::keep();
    let cluster = GridEngine::start();
    let dir = tempfile::tempdir().expect("a directory");
    let me = Hop { site: SiteId([7; 16]), name: "campus".into(), kind: Kind::Gateway };
    let parts = Parts {
        lrms: commands(&cluster, &shared(&cluster)),
        config: config(&cluster, &shared(&cluster)),
        site: me.site,
        state: dir.path().join("lrms"),
        program: "grid".into(),
        blobs: BlobStore::open(dir.path().join("blobs"), BlobLimits { blobs_bytes_max: 1 << 30, free_min_bytes: 0 }).expect("a store"),
        outputs: OutputStore::open(dir.path().join("outputs"), 0).expect("a store"),
        above: Arc::new(Alone),
    };
    obeyed(Laws::of(LrmsPool::open(parts).expect("a backend"), me), "the backend").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_over_it_obeys() {
    let cluster = GridEngine::start();
    let grid = Grid::new();
    let site = grid.config("campus", &["top"]);
    let (lrms, state) = ((config(&cluster, &shared(&cluster)), commands(&cluster, &shared(&cluster))), site.state.clone());
    let build = move |parts: &intergrid_gateway::daemon::Parts| {
        let (config, lrms) = lrms;
        let pool = LrmsPool::open(Parts {
            lrms,
            config,
            site: parts.me.site,
            state: state.join("lrms"),
            program: "grid".into(),
            blobs: parts.blobs.clone(),
            outputs: parts.outputs.clone(),
            above: parts.above.clone(),
        })?;
        Ok(Built { backend: pool, policy: Box::new(FirstFit), pool: None, children: None })
    };
    let campus = Running::start(Kind::Gateway, site, DaemonOptions::default(), build).await.expect("a gateway");
    let (remote, me) = grid.remote(&campus, "top");
    obeyed(Laws::of(remote, me), "a gateway").await;
}
