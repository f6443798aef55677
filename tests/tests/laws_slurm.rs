//! The one suite of laws over a real Slurm: the backend itself, and a gateway over it, driven over TCP and mTLS. And the laws of a provider of machines, kept by
//! pilots: real agents, as jobs.

#[allow(dead_code)]
#[path = "faults/tree.rs"]
mod tree;
#[allow(dead_code)]
#[path = "faults/user.rs"]
mod user;

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use intergrid_gateway::backends::agents::Above;
use intergrid_gateway::blobs::{BlobLimits, BlobStore};
use intergrid_gateway::config::{AccountsConfig, GatewayConfig, LrmsConfig, LrmsKind, LrmsLimits, PilotsConfig};
use intergrid_gateway::core::schedule::FirstFit;
use intergrid_gateway::daemon::{Built, DaemonOptions, Running};
use intergrid_gateway::laws::{Laws, cloud};
use intergrid_gateway::outputs::OutputStore;
use intergrid_gateway::rent::Cloud;
use intergrid_lrms::pilot::Pilots;
use intergrid_lrms::slurm::{Books, Slurm as Commands, SlurmConfig};
use intergrid_lrms::{LrmsPool, Parts};
use intergrid_proto::link::{Hop, Kind};
use intergrid_proto::net::issue::new_site;
use intergrid_proto::{BlobHash, Refusal, SiteId};
use intergrid_tests::grid::Grid;
use intergrid_tests::logs;
use intergrid_tests::slurm::Slurm;

/// Tasks of the law's large array: this Slurm does some ten a second.
const ARRAY_TASKS: u32 = 120;
/// A start takes Slurm up to a second or two, a stop some more.
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

fn config(cluster: &Slurm, shared: &Path) -> LrmsConfig {
    LrmsConfig {
        kind: LrmsKind::Slurm,
        queues: vec!["batch".into()],
        piloted: Vec::new(),
        directory: shared.to_str().expect("a path in UTF-8").to_string(),
        commands: None,
        conf: Some(cluster.conf()),
        records: Some(cluster.records()),
        accounting: false,
        parallel_environment: None,
        memory: None,
        gpu_complex: None,
        accounts: AccountsConfig::Own,
        limits: LrmsLimits { waiting_max: Some(16), ..LrmsLimits::default() },
    }
}

fn commands(cluster: &Slurm) -> Arc<Commands> {
    Arc::new(Commands::new(SlurmConfig { commands: None, conf: Some(cluster.conf()), books: Books::Files(cluster.records()) }))
}

fn shared(cluster: &Slurm) -> std::path::PathBuf {
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
    let cluster = Slurm::start();
    let dir = tempfile::tempdir().expect("a directory");
    let me = Hop { site: SiteId([7; 16]), name: "campus".into(), kind: Kind::Gateway };
    let parts = Parts {
        lrms: commands(&cluster),
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
    let cluster = Slurm::start();
    let grid = Grid::new();
    let site = grid.config("campus", &["top"]);
    let (lrms, state) = ((config(&cluster, &shared(&cluster)), commands(&cluster)), site.state.clone());
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

/// Pilots of a gateway on this cluster.
struct Piloted {
    cluster: Slurm,
    dir: tempfile::TempDir,
    pilots: PilotsConfig,
}

impl Piloted {
    fn new() -> Self {
        let (cluster, dir) = (Slurm::start(), tempfile::tempdir().expect("a directory"));
        new_site(dir.path().join("id"), cloud::GATEWAY, &[]).expect("an identity");
        let (path, program) = (dir.path().join("config.toml"), tree::binary("grid-agent"));
        let text = format!(
            "name = \"{}\"\nlisten = \"127.0.0.1:0\"\nstate = \"state\"\nidentity = \"id\"\n[[trust]]\nca = \"id/ca.pem\"\nmay = [\"user\", \"agent\"]\n\
             [slurm]\npartitions = [\"batch\"]\ndirectory = \"{}\"\naccount = \"self\"\n\
             [pilots]\nslots = 1\nmemory = \"64M\"\ntime = \"30m\"\npilots_max = 2\nprogram = \"{}\"\n",
            cloud::GATEWAY,
            shared(&cluster).display(),
            program.display()
        );
        std::fs::write(&path, text).expect("a file");
        let pilots = GatewayConfig::load(&path).expect("a configuration").pilots.expect("pilots");
        Piloted { cluster, dir, pilots }
    }
}

impl cloud::Place for Piloted {
    fn machine_type(&self) -> String {
        "batch".into()
    }

    /// The other one is of the same account, and has the same directory.
    fn open(&self, other: bool) -> Pin<Box<dyn Future<Output = Arc<dyn Cloud>> + Send + '_>> {
        let site = SiteId([if other { 8 } else { 7 }; 16]);
        let config = config(&self.cluster, &shared(&self.cluster));
        let pilots = Pilots::new(commands(&self.cluster), &config, self.pilots.clone(), site, self.dir.path().join("id")).expect("pilots");
        Box::pin(std::future::ready(pilots as Arc<dyn Cloud>))
    }

    /// Jobs that wait, run or end, of whichever gateway.
    fn running(&self) -> usize {
        self.cluster.run("squeue", &["--noheader", "--format=%j"]).lines().filter(|name| name.starts_with("igp")).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pilots_keep_the_laws_of_every_provider() {
    logs::keep();
    let place = Piloted::new();
    cloud::check(&place).await.unwrap_or_else(|why| panic!("{why}\n{}", logs::lines(&[]).join("\n")));
}
