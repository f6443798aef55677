//! The shell around the core: waits for what happens, steps the core, performs the actions that need the network, tells what is durable.
//!
//! One task. The desk's lock is never held while it waits. It waits for the spool's writer only before it tells anybody anything (the core sees to that),
//! never with its hands full.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use intergrid_proto::link::{Hop, Up};
use intergrid_proto::net::disk::Disk;
use intergrid_proto::{BlobHash, Refusal, RefusalKind};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use crate::alone::Alone;
use crate::config::AgentConfig;
use crate::core::{Action, Input};
use crate::desk::{Desk, SharedDesk};
use crate::dial::{Said, random};
use crate::exec::dirs::Dirs;
use crate::fetch::Fetcher;
use crate::join::join;
use crate::limits::*;
use crate::live;
use crate::machine::Capacity;
use crate::spool::{Order, Written};
use crate::start::start;
use crate::upload;

/// How the agent is run, beside its configuration.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Written when the gateway has answered for the first time.
    pub ready_file: Option<PathBuf>,
    /// At the end of stdin, kill all tasks and end.
    pub die_with_parent: bool,
}

/// Why the loop is left.
pub(crate) enum End {
    /// Tasks run on, for the next agent to find.
    Stopped,
    /// Nobody is left who wants them, or the machine goes away.
    WithTasks,
    /// Nothing runs, and nobody has been there for too long.
    Alone,
    Refused(Refusal),
}

pub(crate) struct Connection {
    session: u64,
    up: mpsc::Sender<Up>,
    _end: oneshot::Sender<()>,
    _live: AbortOnDrop,
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The agent's parts.
pub(crate) struct Shell {
    pub config: AgentConfig,
    pub options: Options,
    pub desk: Arc<SharedDesk>,
    pub dirs: Dirs,
    pub connection: Option<Connection>,
    pub fetcher: Arc<Fetcher>,
    pub fetched: mpsc::Sender<(BlobHash, Result<(), String>)>,
    pub uploads: mpsc::UnboundedSender<upload::Request>,
    pub ended: Option<End>,
    pub me: Hop,
    /// How many.
    pub gpus: usize,
    /// In which interval the capacity was read last.
    pub capacity_read: u64,
    pub disk: Disk,
    pub alone: Alone,
    /// Before it joined.
    pub began: Instant,
    /// That the provider takes this machine back.
    pub notice: Arc<OnceLock<String>>,
}

/// Where news come from.
pub(crate) struct Sources {
    pub written: mpsc::Receiver<Written>,
    pub said: mpsc::Receiver<Said>,
    pub fetched: mpsc::Receiver<(BlobHash, Result<(), String>)>,
    pub uploaded: mpsc::Receiver<upload::Done>,
    /// None: not tied to a parent.
    pub parent_gone: Option<oneshot::Receiver<()>>,
}

/// Run an agent until `shutdown`, which leaves its tasks running. Errors: what keeps it from being one at all.
pub async fn run(config: AgentConfig, options: Options, shutdown: impl Future<Output = ()>) -> Result<(), Refusal> {
    let (mut shutdown, began) = (std::pin::pin!(shutdown), Instant::now());
    let joined = tokio::select! {
        joined = join(&config) => joined,
        () = &mut shutdown => return Ok(()),
    };
    if let Err(why) = joined {
        // Nobody wants this machine, or nobody is there: what it costs is for nothing.
        let last = if config.alone_max.is_some() { last_act(&config.on_alone).await } else { Ok(()) };
        return last.and(Err(why));
    }
    let (mut shell, mut sources) = start(config, options, began)?;
    let shared = shell.desk.clone();
    let end = loop {
        let (until, blocked) = {
            let mut desk = shared.lock();
            if Instant::now() >= desk.tick_at {
                shell.tick(&mut desk);
            }
            shell.perform(&mut desk);
            desk.commit();
            shell.tell(&mut desk);
            if let Some(end) = shell.ended.take() {
                break end;
            }
            desk.asleep_until = desk.wake();
            (desk.asleep_until, shell.blocked_on())
        };
        tokio::select! {
            biased;
            () = &mut shutdown => break if shell.config.stop_ends_tasks { End::WithTasks } else { End::Stopped },
            () = gone(&mut sources.parent_gone) => break End::WithTasks,
            () = shared.call.notified() => {}
            Some(written) = sources.written.recv() => shell.written(&mut shared.lock(), written),
            Some(said) = sources.said.recv() => {
                let mut desk = shared.lock();
                shell.said(&mut desk, said);
                while let Ok(said) = sources.said.try_recv() {
                    shell.said(&mut desk, said);
                }
            }
            Some((hash, result)) = sources.fetched.recv() => shell.fetched(hash, result),
            Some((key, result)) = sources.uploaded.recv() => shared.lock().step(Input::Uploaded(key, result)),
            () = room(blocked) => {}
            () = sleep_until(until) => {}
        }
    };
    let last = if matches!(end, End::Alone) { shell.config.on_alone.clone() } else { Vec::new() };
    shell.finish(end, &mut sources).await?;
    last_act(&last).await
}

/// Of a machine that is alone: what its configuration says, as `systemctl poweroff`.
async fn last_act(words: &[String]) -> Result<(), Refusal> {
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    tracing::warn!("running {words:?}");
    let failed = |what: String| Refusal::new(RefusalKind::Internal, format!("on_alone: {program}: {what}"));
    // It may end this process, and all others, before it ends.
    let mut child = std::process::Command::new(program).args(arguments).spawn().map_err(|e| failed(e.to_string()))?;
    let until = Instant::now() + Duration::from_millis(LAST_ACT_MAX_MS);
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(failed(status.to_string())),
            Ok(None) if Instant::now() < until => sleep(Duration::from_millis(POLL_INTERVAL_MS)).await,
            Ok(None) => {
                let _ = child.kill();
                return Err(failed(format!("it did not end within {LAST_ACT_MAX_MS} ms, and was killed")));
            }
            Err(e) => return Err(failed(e.to_string())),
        }
    }
}

/// Until the parent has gone; for ever where there is none.
async fn gone(parent: &mut Option<oneshot::Receiver<()>>) {
    match parent {
        Some(gone) => _ = gone.await,
        None => std::future::pending().await,
    }
}

/// Until the connection takes a message again; for ever where it does.
async fn room(blocked: Option<mpsc::Sender<Up>>) {
    match blocked {
        Some(up) => drop(up.reserve().await),
        None => std::future::pending().await,
    }
}

impl Shell {
    /// All that is to be done now.
    fn perform(&mut self, desk: &mut Desk) {
        loop {
            desk.perform();
            let left = std::mem::take(&mut desk.left);
            if left.is_empty() {
                return;
            }
            left.into_iter().for_each(|action| self.act(desk, action));
        }
    }

    fn act(&mut self, desk: &mut Desk, action: Action) {
        match action {
            Action::Fetch(plan) => {
                let (fetcher, fetched) = (self.fetcher.clone(), self.fetched.clone());
                tokio::spawn(async move {
                    let result = fetcher.all(&plan).await;
                    let _ = fetched.send((plan.hash, result)).await;
                });
            }
            // Its receiver lives as long as we do.
            Action::Upload { key, number, job, files } => _ = self.uploads.send(upload::Request { key, number, job, files }),
            Action::Reconnect(why) => {
                tracing::warn!("{why}");
                self.disconnect(desk);
            }
            Action::Refuse(refusal) => self.ended = Some(End::Refused(refusal)),
            Action::Start(..) | Action::Signal { .. } | Action::Withdraw(_) | Action::Remove(_) | Action::ReadTicks(_) => {}
        }
    }

    fn disconnect(&mut self, desk: &mut Desk) {
        if self.connection.take().is_some() {
            desk.step(Input::Disconnected);
        }
    }

    fn written(&mut self, desk: &mut Desk, written: Written) {
        desk.writing = false;
        desk.spool_is_large = written.large;
        match written.result {
            Ok(()) => desk.step(Input::Committed),
            Err(e) => {
                let message = format!("state {}: can't write the spool: {e}", self.config.state.display());
                let refusal = Refusal::new(RefusalKind::Internal, message).remedy("make room or mend the disk, then start again: tasks run on");
                self.ended = Some(End::Refused(refusal));
            }
        }
    }

    /// Send as much as the connection takes.
    fn tell(&mut self, desk: &mut Desk) {
        let Some(c) = &self.connection else { return };
        while c.up.capacity() > 0 {
            let Some(up) = desk.core.next_up(desk.clock.now()) else { return };
            if c.up.try_send(up).is_err() {
                return self.disconnect(desk);
            }
        }
    }

    fn blocked_on(&self) -> Option<mpsc::Sender<Up>> {
        self.connection.as_ref().filter(|c| c.up.capacity() == 0).map(|c| c.up.clone())
    }

    fn said(&mut self, desk: &mut Desk, said: Said) {
        let current = self.connection.as_ref().map(|c| c.session);
        match said {
            Said::Connected { session, up, pool, end } => {
                self.disconnect(desk);
                let live = tokio::spawn(live::serve(pool, self.desk.clone(), self.dirs.clone(), self.me.site));
                self.connection = Some(Connection { session, up, _end: end, _live: AbortOnDrop(live.abort_handle()) });
                desk.step(Input::Connected { fresh: random() });
                self.tell(desk);
            }
            Said::Down(session, down) if current == Some(session) => {
                desk.step(Input::Down(down));
                if desk.core.is_attached() {
                    self.ready();
                }
            }
            Said::Gone(session) if current == Some(session) => self.disconnect(desk),
            Said::Down(..) | Said::Gone(_) => {}
        }
    }

    fn fetched(&mut self, hash: BlobHash, result: Result<(), String>) {
        let in_use = {
            let mut desk = self.desk.lock();
            desk.step(Input::Fetched(hash, result));
            desk.core.blobs_in_use()
        };
        self.dirs.shrink(BLOB_CACHE_BYTES_MAX, |hash| in_use.iter().any(|b| b.to_string() == hash));
    }

    /// Say once that the gateway has answered.
    fn ready(&mut self) {
        let Some(path) = self.options.ready_file.take() else { return };
        let (pid, site, name) = (std::process::id(), self.me.site, &self.config.name);
        let text = format!("{{\"endpoint\":\"\",\"pid\":{pid},\"site\":\"{site}\",\"name\":{}}}\n", quoted(name));
        let beside = path.with_extension("new");
        if let Err(e) = std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, &path)) {
            tracing::warn!("ready file {}: {e}", path.display());
        }
    }

    fn tick(&mut self, desk: &mut Desk) {
        // Then all children of ours are known, and another one was left behind by a task that had left its group.
        if desk.exec.is_quiet() {
            desk.exec.reap_strangers();
        }
        desk.exec.poll();
        desk.exec.sample(std::time::Instant::now());
        desk.exec.tidy();
        if self.config.slots.is_none() || self.config.memory.is_none() {
            let now = desk.clock.began.elapsed().as_millis() as u64 / CAPACITY_INTERVAL_MS;
            if now != self.capacity_read {
                self.capacity_read = now;
                desk.step(Input::Capacity(Capacity::measure(self.config.slots, self.config.memory, self.gpus)));
            }
        }
        let why = self.retired().or_else(|| self.disk.look());
        if why.is_some() != desk.core.lacks_room() {
            match &why {
                Some(why) => tracing::warn!("no new task is begun: {why}"),
                None => tracing::info!("there is room on the disk: tasks are begun again"),
            }
        }
        desk.step(Input::Room(why));
        desk.step(Input::Tick);
        if self.alone.is_over(desk.core.is_attached(), desk.core.works(), desk.clock.now()) {
            self.ended = Some(End::Alone);
        }
        desk.tick_at = Instant::now() + desk.tick_interval();
    }

    /// Why nothing new is begun on a machine whose time is nearly over.
    fn retired(&self) -> Option<Refusal> {
        if let Some(text) = self.notice.get() {
            return Some(Refusal::new(RefusalKind::OverLimit, text.clone()));
        }
        let after = self.config.retire_after.filter(|ms| self.began.elapsed() >= Duration::from_millis(*ms))?;
        let text = format!("its time is nearly over: it was to take new work for {} s", after / 1_000);
        Some(Refusal::new(RefusalKind::OverLimit, text))
    }

    /// Write down what is known; tasks run on, unless they are to end too.
    async fn finish(mut self, end: End, sources: &mut Sources) -> Result<(), Refusal> {
        let until = Instant::now() + Duration::from_millis(DIE_WAIT_MS);
        // Nothing new is started, and no batch is cut: only what is known is kept.
        self.desk.lock().is_closed = true;
        let with_tasks = match &end {
            End::Refused(_) => self.config.stop_ends_tasks,
            End::Stopped | End::Alone => false,
            End::WithTasks => true,
        };
        match &end {
            End::Refused(_) => {}
            End::Stopped => tracing::info!("stopping; tasks run on"),
            End::Alone => tracing::warn!("nothing runs here, and the gateway has been away for {} ms: ending", self.config.alone_max.unwrap_or(0)),
            End::WithTasks => tracing::info!("ending, and all tasks with it"),
        }
        while with_tasks && !self.desk.lock().exec.kill_all() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if let End::Refused(refusal) = end {
            return Err(refusal);
        }
        loop {
            let writing = {
                let mut desk = self.desk.lock();
                desk.perform();
                let last = !desk.writing;
                if last {
                    let now = desk.clock.now();
                    let records = desk.core.cut_all(now);
                    desk.writing = desk.orders.send(Order::Replace(records)).is_ok();
                }
                !last
            };
            let written = tokio::time::timeout_at(until, sources.written.recv()).await;
            match written {
                Ok(Some(written)) if writing => self.written(&mut self.desk.clone().lock(), written),
                Ok(Some(Written { result: Ok(()), .. })) => return Ok(()),
                _ => return Err(Refusal::new(RefusalKind::Internal, "the spool could not be written at the end; what was told before is safe")),
            }
        }
    }
}

/// A JSON string; labels have no control characters.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
