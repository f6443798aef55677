//! From a configuration to an agent that runs: everything that can refuse to be one is asked here, in order, before anything is changed.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use intergrid_proto::link::{Hop, Kind};
use intergrid_proto::net::disk::{Disk, is_full};
use intergrid_proto::net::http_authority;
use intergrid_proto::{Refusal, RefusalKind};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::alone::Alone;
use crate::config::{AgentConfig, Executor as ExecutorKind};
use crate::core::{Core, Input};
use crate::desk::{Desk, SharedDesk};
use crate::dial::{Dial, random};
use crate::exec::Executor;
use crate::exec::cgroup::Cgroup;
use crate::exec::dirs::Dirs;
use crate::fetch::Fetcher;
use crate::join::renew;
use crate::limits::*;
use crate::machine::{self, Capacity};
use crate::notice::watch;
use crate::plan::GPU_VARIABLES;
use crate::shell::{Options, Shell, Sources};
use crate::spool::Spool;
use crate::state::State;
use crate::upload::Uploader;

/// Unix milliseconds that never go back within one run.
pub(crate) struct Clock {
    pub began: Instant,
    began_ms: u64,
}

impl Clock {
    fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { began: Instant::now(), began_ms: u64::try_from(since.as_millis()).unwrap_or(0) }
    }

    pub fn now(&self) -> u64 {
        self.began_ms + u64::try_from(self.began.elapsed().as_millis()).unwrap_or(0)
    }
}

/// All parts, started.
pub(crate) fn start(config: AgentConfig, options: Options, began: Instant) -> Result<(Shell, Sources), Refusal> {
    let broken = |what: &str, e: std::io::Error| Refusal::new(RefusalKind::Internal, format!("can't {what}: {e}"));
    let identity = config.identity()?;
    let me = Hop { site: identity.id(), name: config.name.clone(), kind: Kind::Agent };
    let cgroup = config.cgroup.as_deref().map(Cgroup::open).transpose()?;
    let clock = Clock::new();
    let (mut spool, records) = Spool::open(&config.state)?;
    let disk =
        Disk::open(&config.state, config.state_free_min_bytes, "state_free_min_bytes").map_err(|e| broken("look at the disk of the state", e))?;
    spool = spool.on(disk.clone());
    let dirs = Dirs::new(&config.state).map_err(|e| broken("make directories in the state directory", e))?;
    let state = State::replay(records)?;
    // A batch system, or whoever started us, may have left us some of the machine's.
    let visible = GPU_VARIABLES.iter().find_map(|name| std::env::var(name).ok());
    let gpus = machine::gpus(config.gpus, visible.as_deref(), Path::new("/dev"));
    let capacity = Capacity::measure(config.slots, config.memory, gpus.len());
    let boot = machine::boot_id();
    let mut core = Core::new(state, me.clone(), machine::fingerprint(), boot.clone(), capacity, random(), clock.now())?;
    if let Some(after) = config.ends_after {
        core.ends_at((clock.now() + after).saturating_sub(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)));
    }
    let null = config.executor == ExecutorKind::Null;
    let way: Arc<OnceLock<Weak<SharedDesk>>> = Arc::default();
    let inside = way.clone();
    let door = Box::new(move |f: &mut dyn FnMut(&mut Executor)| inside.get().and_then(Weak::upgrade).map(|desk| desk.with(f)).is_some());
    let mut exec = Executor::new(dirs.clone(), cgroup, gpus.clone(), null, door).map_err(|e| broken("start the executor", e))?;
    let claims = core.claimed();
    for (key, fate) in exec.adopt(&claims, &boot) {
        tracing::info!("task {}.{} was claimed before: {fate:?}", key.0, key.1);
        core.resume(key, fate, clock.now());
    }
    let in_use = core.blobs_in_use();
    dirs.sweep(|key| claims.iter().any(|(k, _)| *k == key));
    dirs.shrink(BLOB_CACHE_BYTES_MAX, |hash| in_use.iter().any(|b| b.to_string() == hash));
    let records = core.cut_all(clock.now());
    let written = match spool.replace(records.clone()) {
        Err(e) if is_full(&e) && disk.give_up() => spool.replace(records),
        written => written,
    };
    core.step(Input::Room(disk.look()), clock.now());
    written.map_err(|e| broken("write the spool", e))?;
    core.step(Input::Committed, clock.now());

    let (orders, order_queue) = mpsc::unbounded_channel();
    let (report, written) = mpsc::channel(4);
    spool.serve(order_queue, move |w| _ = report.blocking_send(w)).map_err(|e| broken("start the spool's thread", e))?;
    let dial = Dial::new(config.gateway.clone(), identity);
    let (say, said) = mpsc::channel(INPUT_QUEUE_MAX);
    tokio::spawn(dial.clone().keep(say));
    if config.token.is_some() {
        tokio::spawn(renew(config.clone(), dial.clone()));
    }
    let (uploads, requests) = mpsc::unbounded_channel();
    let (done, uploaded) = mpsc::channel(INPUT_QUEUE_MAX);
    tokio::spawn(Uploader::new(dial.clone(), dirs.clone(), requests, done).run());
    let (fetched, fetched_source) = mpsc::channel(INPUT_QUEUE_MAX);
    let parent_gone = match options.die_with_parent {
        true => {
            let (gone, parent_gone) = oneshot::channel();
            watch_stdin(gone).map_err(|e| broken("watch stdin", e))?;
            Some(parent_gone)
        }
        false => None,
    };
    let fetcher = Fetcher::new(dial, dirs.clone());
    tracing::info!("agent {} ({}): {}", config.name, me.site, core.describe());
    let (connection, ended) = (None, None);
    let holds_signalled = config.stop_ends_tasks;
    let (writing, spool_is_large, is_closed, now) = (false, false, false, Instant::now());
    let (left, held, asleep_until, tick_at) = (Vec::new(), VecDeque::new(), now, now);
    let desk = Desk { core, exec, clock, orders, writing, spool_is_large, left, asleep_until, tick_at, is_closed, holds_signalled, held };
    let desk = Arc::new(SharedDesk::new(desk));
    let _ = way.set(Arc::downgrade(&desk));
    let (alone, notice) = (Alone::new(config.alone_max), Arc::default());
    if let Some(at) = config.notices.as_deref().and_then(http_authority) {
        let shared = desk.clone();
        tokio::spawn(watch(at, Arc::clone(&notice), move || {
            shared.lock().tick_at = Instant::now();
            shared.call.notify_one();
        }));
    }
    let shell = Shell {
        config,
        options,
        desk,
        dirs,
        connection,
        fetcher,
        fetched,
        uploads,
        ended,
        me,
        gpus: gpus.len(),
        capacity_read: 0,
        disk,
        alone,
        began,
        notice,
    };
    Ok((shell, Sources { written, said, fetched: fetched_source, uploaded, parent_gone }))
}

/// A thread that reads to the end of stdin, which the parent holds open as long as it lives.
fn watch_stdin(gone: oneshot::Sender<()>) -> std::io::Result<()> {
    let watch = move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = gone.send(());
    };
    std::thread::Builder::new().name("stdin".into()).stack_size(64 << 10).spawn(watch).map(|_| ())
}
