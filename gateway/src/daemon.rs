//! A site as a process: identity, store, engine, backend and service put together, served until it is asked to end.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use intergrid_proto::link::{Hop, Kind};
use intergrid_proto::net::disk::Disk;
use intergrid_proto::net::identity::Identity;
use intergrid_proto::net::reverse::{self, ReverseConn};
use intergrid_proto::net::server;
use intergrid_proto::net::trust::Trust;
use intergrid_proto::{BlobHash, Refusal, RefusalKind, SiteId};
use tokio::sync::{OnceCell, mpsc};
use tokio::time::timeout;
use tokio_stream::StreamExt;

use crate::backend::Backend;
use crate::backends::agents::{Above, AgentPool, ProcessConfig, ProcessProvider, Provider, StaticProvider};
use crate::blobs::BlobStore;
use crate::config::{AgentsConfig, CloudConfig, CloudProvider, GatewayConfig, SiteConfig, read_ca};
use crate::core::schedule::{FirstFit, Policy};
use crate::core::{Core, Now};
use crate::daemon_files::{self, Ready};
use crate::engine::Engine;
use crate::joins::Joins;
use crate::metrics;
use crate::outputs::OutputStore;
use crate::rent::{Cloud, NewTerms, ProcessCloud, RentConfig, Rented};
use crate::room;
use crate::service::Service;
use crate::service::callers::Guarded;
use crate::staging::Staging;
use crate::store::StoreError;
use crate::store::sled::SledStore;
use crate::traces::Traces;

/// Messages of children that may wait for the engine.
const CHILD_MESSAGES_MAX: usize = 4_096;
/// Connections of children that dial us, waiting to be taken.
const REVERSE_MAX: usize = 64;
/// How long open calls may take to end.
const DRAIN: std::time::Duration = std::time::Duration::from_millis(500);

/// An end in order takes no longer; then the process ends all the same.
const END_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// What a program says that was built without the EC2 part.
pub const NEEDS_EC2: &str = "build it with `cargo build --release --features ec2`, or use provider = \"process\"";

/// How a daemon was started.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    /// Written once it serves.
    pub ready_file: Option<std::path::PathBuf>,
    /// End when standard input does: the parent holds the pipe.
    pub die_with_parent: bool,
    /// Of a gateway that rents: other terms, while it runs.
    pub new_terms: Option<NewTerms>,
}

/// What a backend is built from.
pub struct Parts {
    /// This site.
    pub me: Hop,
    /// Its identity.
    pub identity: Arc<Identity>,
    /// Content.
    pub blobs: BlobStore,
    /// Outputs of tasks that ended at this site's agents.
    pub outputs: OutputStore,
    /// Asks above.
    pub above: Arc<dyn Above>,
    /// The engine, once it runs.
    pub engine: Arc<OnceCell<Engine>>,
    /// Ends with its parent.
    pub die_with_parent: bool,
    /// Of a gateway that rents: other terms, while it runs.
    pub new_terms: Option<NewTerms>,
}

/// What a site runs its tasks with.
pub struct Built {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// How tasks are placed.
    pub policy: Box<dyn Policy>,
    /// Where it has agents: what serves them.
    pub pool: Option<Arc<AgentPool>>,
    /// Where children dial: who takes their connections.
    pub children: Option<mpsc::Sender<ReverseConn>>,
}

/// What the pool asks of the rest of the site; the engine comes after the pool.
struct SiteAbove {
    staging: Staging,
    engine: Arc<OnceCell<Engine>>,
}

impl Above for SiteAbove {
    fn need_blob(&self, hash: BlobHash) -> BoxFuture<'static, Result<(), Refusal>> {
        let staging = self.staging.clone();
        Box::pin(async move { staging.fetch(hash).await })
    }

    fn counts(&self, agent: SiteId, job: u64, number: u64, task: u32) -> BoxFuture<'static, Result<Option<Vec<String>>, Refusal>> {
        let engine = self.engine.clone();
        Box::pin(async move {
            match engine.get() {
                Some(e) => e.read(move |core| core.outputs_of(agent, job, number, task)).await,
                None => Err(Refusal::new(RefusalKind::Unavailable, "this gateway has not begun yet")),
            }
        })
    }

    fn closed(&self, child: SiteId) -> BoxFuture<'static, Option<String>> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.get()?.look(move |core| core.why_closed(child)).await.ok()? })
    }
}

fn store_refusal(e: StoreError) -> Refusal {
    let kind = match e {
        StoreError::Locked { .. } => RefusalKind::Unavailable,
        _ => RefusalKind::Internal,
    };
    Refusal::new(kind, e.to_string())
}

/// A gateway over agents.
pub async fn run(config: GatewayConfig, options: DaemonOptions) -> Result<(), Refusal> {
    let (agents, cloud) = (config.agents.clone(), config.cloud.clone());
    let (state, identity) = (config.site.state.clone(), config.site.identity.clone());
    run_site(Kind::Gateway, config.site, options, move |parts| {
        let (gateway, die_with_parent) = (parts.me.name.clone(), parts.die_with_parent);
        let processes = |agents, slots, memory_bytes, gpus, program, alone_ms| ProcessConfig {
            gateway: gateway.clone(),
            agents,
            slots,
            memory_bytes,
            gpus,
            program,
            state,
            identity,
            die_with_parent,
            alone_ms,
            stop_ends_tasks: false,
        };
        let provider: Arc<dyn Provider> = match (cloud, agents) {
            (Some(cloud), _) => match &cloud.provider {
                CloudProvider::Process { program } => {
                    let processes = ProcessCloud::new(processes(0, None, None, None, program.clone(), Some(cloud.alone_ms)));
                    return Ok(over_rented(cloud, processes, parts));
                }
                CloudProvider::Ec2(_) => return Err(Refusal::invalid("this program can't speak to EC2").remedy(NEEDS_EC2)),
            },
            (None, AgentsConfig::Static) => Arc::new(StaticProvider),
            (None, AgentsConfig::Process { agents, slots, memory_bytes, gpus, program }) => {
                ProcessProvider::new(processes(agents, slots, memory_bytes, gpus, program, None))
            }
        };
        Ok(over_agents(provider, parts))
    })
    .await
}

/// What a gateway is made of whose agents run on machines of this cloud.
pub fn over_rented(config: CloudConfig, cloud: Arc<dyn Cloud>, parts: &Parts) -> Built {
    let rent = RentConfig { gateway: parts.me.name.clone(), terms: config.terms(), new_terms: parts.new_terms.clone(), time_max_ms: 0 };
    over_agents(Rented::new(rent, cloud, parts.engine.clone()), parts)
}

/// What a gateway is made of whose agents come from this provider.
pub fn over_agents(provider: Arc<dyn Provider>, parts: &Parts) -> Built {
    let pool = AgentPool::new(provider, parts.blobs.clone(), parts.outputs.clone(), parts.above.clone());
    Built { backend: pool.clone(), policy: Box::new(FirstFit), pool: Some(pool), children: None }
}

/// Any site, until it is asked to end.
pub async fn run_site(
    kind: Kind,
    site: SiteConfig,
    options: DaemonOptions,
    build: impl FnOnce(&Parts) -> Result<Built, Refusal> + Send + 'static,
) -> Result<(), Refusal> {
    let end = daemon_files::stop(options.die_with_parent)?;
    let running = Running::start(kind, site, options.clone(), build).await?;
    if let Some(file) = &options.ready_file {
        Ready::new(&running.endpoint, running.me.site, &running.me.name).write(file)?;
    }
    tracing::info!(name = %running.me.name, kind = kind.name(), endpoint = %running.endpoint, "serving");
    let end = async {
        let why = end.await;
        tracing::info!(?why, "ending");
        daemon_files::end_by_force_after(END_PATIENCE);
    };
    running.until(end).await
}

type Builder = Box<dyn FnOnce(&Parts) -> Result<Built, Refusal> + Send>;

/// A site that serves. Dropping it ends it; [`stop`](Running::stop) ends it in order.
pub struct Running {
    /// This site.
    pub me: Hop,
    /// `host:port`
    pub endpoint: String,
    /// For reading.
    pub engine: Engine,
    pool: Option<Arc<AgentPool>>,
    failed: tokio::task::JoinHandle<Result<(), StoreError>>,
    servers: Vec<tokio::task::JoinHandle<()>>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Running {
    /// Put it together and serve. Boxed, so that a whole site is compiled here, once, and not again in each program that starts one.
    pub fn start(
        kind: Kind,
        site: SiteConfig,
        options: DaemonOptions,
        build: impl FnOnce(&Parts) -> Result<Built, Refusal> + Send + 'static,
    ) -> BoxFuture<'static, Result<Running, Refusal>> {
        Self::boxed(kind, site, options, Box::new(build))
    }

    fn boxed(kind: Kind, site: SiteConfig, options: DaemonOptions, build: Builder) -> BoxFuture<'static, Result<Running, Refusal>> {
        Self::put_together(kind, site, options, build).boxed()
    }

    async fn put_together(kind: Kind, site: SiteConfig, options: DaemonOptions, build: Builder) -> Result<Running, Refusal> {
        site.check()?;
        let identity = Arc::new(Identity::load(&site.identity)?);
        let trust = Arc::new(Trust::new(site.trust_entries()?)?);
        if identity.label() != site.name {
            let message = format!("the site is called {:?}, and its certificate says {:?}", site.name, identity.label());
            return Err(Refusal::invalid(message).remedy("make `name` the certificate's"));
        }
        if let Ok(since) = std::time::SystemTime::now().duration_since(identity.cert().not_after) {
            let text = format!("the certificate of {} expired {} s ago: serving, but its peers will refuse it", identity.cert(), since.as_secs());
            tracing::warn!(name = %site.name, dir = %site.identity.display(), "{text}");
        }
        let me = Hop { site: identity.id(), name: site.name.clone(), kind };
        std::fs::create_dir_all(&site.state).map_err(|e| Refusal::invalid(format!("{}: {e}", site.state.display())))?;
        let min = Some(site.limits.store_free_min_bytes);
        let disk =
            Disk::open(&site.state, min, "limits.store_free_min_bytes").map_err(|e| Refusal::invalid(format!("{}: {e}", site.state.display())))?;
        let store = match SledStore::open(site.state.join("store")) {
            Err(e) if e.is_full() && disk.give_up() => SledStore::open(site.state.join("store")),
            opened => opened,
        };
        let store = store.map_err(store_refusal)?.on(disk.clone());
        let blobs = BlobStore::open(site.state.join("blobs"), site.limits.into())?;
        let outputs = OutputStore::open(site.state.join("outputs"), site.limits.store_free_min_bytes)?;
        let staging = Staging::new(blobs.clone());
        let cell = Arc::new(OnceCell::new());
        let above = Arc::new(SiteAbove { staging: staging.clone(), engine: cell.clone() });
        let parts = Parts {
            me: me.clone(),
            identity: identity.clone(),
            blobs: blobs.clone(),
            outputs,
            above,
            engine: cell.clone(),
            die_with_parent: options.die_with_parent,
            new_terms: options.new_terms,
        };
        let Built { backend, policy, pool, children } = build(&parts)?;
        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let now = Now { mono_ms: 1, unix_ms: unix.as_millis() as u64 };
        let fresh = fresh_incarnation(identity.id(), unix);
        let mut core = Core::load(me.clone(), &store, policy, now, fresh).map_err(store_refusal)?;
        if pool.is_none() {
            // No other child can be; machines come as they like.
            core.expect(backend.configured().into_iter().map(|c| c.name));
        }
        let (listener, endpoint) = daemon_files::bind(&site.listen, &site.state).await?;
        let (sink, said) = mpsc::channel(CHILD_MESSAGES_MAX);
        let (down, from) = (backend.clone(), staging.clone());
        let traces = site.traces.map(|collector| Traces::new(collector, &me)).transpose()?;
        let need = move |child, hash| from.need(down.clone(), child, hash);
        let (engine, failed) = Engine::start(core, Box::new(store), backend.clone(), said, need, traces);
        staging.connect(engine.clone());
        _ = cell.set(engine.clone());
        backend.clone().start(me.clone(), sink);
        let service = Service::new(engine.clone(), backend, blobs, endpoint.clone());
        let incoming = server::incoming(listener, identity.clone(), trust.clone(), server::Limits::default(), children)?;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut servers = vec![tokio::spawn(room::watch(disk, engine.clone(), stopped.clone()))];
        servers.push(serve(service.clone(), pool.clone(), incoming, stopped.clone()));
        if let Some(p) = &site.parent {
            // Two connections of one child: control, and bulk beside it.
            for _ in 0..2 {
                let conns = reverse::parent(p.endpoint.clone(), identity.clone(), read_ca(&p.ca)?, trust.clone());
                servers.push(serve(service.clone(), None, conns, stopped.clone()));
            }
        }
        if let Some(address) = site.metrics {
            servers.push(metrics::serve(address, metrics::Source::new(engine.clone(), site.state.join("store")), stopped.clone()).await?);
        }
        if let Some(pool) = &pool {
            // Where it has no CA of its own, nobody joins.
            if let Ok(ca_pem) = identity.ca_pem() {
                pool.let_join(Joins::new(engine.clone(), site.identity.clone(), ca_pem)?);
            }
            pool.provide(&endpoint)?;
        }
        Ok(Running { me, endpoint, engine, pool, failed, servers, stop })
    }

    /// Serve until `end`, or until the store fails.
    pub async fn until(mut self, end: impl Future<Output = ()>) -> Result<(), Refusal> {
        let fault = tokio::select! {
            () = end => None,
            result = &mut self.failed => Some(match result {
                Ok(Err(e)) => store_refusal(e),
                Ok(Ok(())) => Refusal::new(RefusalKind::Internal, "the engine has ended"),
                Err(e) => Refusal::new(RefusalKind::Internal, format!("the engine has failed: {e}")),
            }),
        };
        self.stop().await;
        fault.map_or(Ok(()), Err)
    }

    /// End in order: no new calls, links closed, machines of a provider ended unless they run something.
    pub async fn stop(mut self) {
        // Where the engine does not say so in time, all may be busy.
        let busy = timeout(DRAIN, self.engine.look(|core| core.busy_children())).await.ok().and_then(Result::ok);
        _ = self.stop.send(true);
        for server in &mut self.servers {
            if timeout(DRAIN, &mut *server).await.is_err() {
                server.abort();
            }
        }
        if let Some(pool) = &self.pool {
            pool.end_machines(busy.unwrap_or_else(|| pool.configured().into_iter().map(|c| c.name).collect())).await;
        }
        self.failed.abort();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.servers.iter().for_each(|s| s.abort());
        self.failed.abort();
    }
}

fn serve<S>(
    service: Service,
    pool: Option<Arc<AgentPool>>,
    incoming: S,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) -> tokio::task::JoinHandle<()>
where
    S: tokio_stream::Stream<Item = std::io::Result<intergrid_proto::net::Io>> + Send + Unpin + 'static,
{
    let router = server::grpc_server()
        .add_service(service.server())
        .add_optional_service(pool.map(|p| Guarded::new(p.service(), p.service(), service.callers.clone())));
    tokio::spawn(async move {
        let end = async move { _ = stopped.wait_for(|s| *s).await };
        if let Err(e) = router.serve_with_incoming_shutdown(incoming.map(|io| io), end).await {
            tracing::error!("the listener has ended: {e}");
        }
    })
}

/// Not 0, and another each time: from the clock, the process and the site.
fn fresh_incarnation(site: SiteId, unix: std::time::Duration) -> u64 {
    let mut h = blake3::Hasher::new();
    h.update(&site.0).update(&unix.as_nanos().to_be_bytes()).update(&std::process::id().to_be_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&h.finalize().as_bytes()[..8]);
    u64::from_be_bytes(bytes).max(1)
}

/// Hands the connections of children that dial to who waits for each, by label.
pub fn by_label(takers: std::collections::BTreeMap<String, mpsc::Sender<ReverseConn>>) -> mpsc::Sender<ReverseConn> {
    let (tx, mut rx) = mpsc::channel::<ReverseConn>(REVERSE_MAX);
    tokio::spawn(async move {
        while let Some(conn) = rx.recv().await {
            match takers.get(&conn.peer.label) {
                Some(taker) => {
                    if taker.try_send(conn).is_err() {
                        tracing::warn!("a child dials faster than it is taken");
                    }
                }
                None => tracing::warn!(who = %conn.peer.label, id = %conn.peer.id, "refused: no child of this name is configured to dial"),
            }
        }
    });
    tx
}
