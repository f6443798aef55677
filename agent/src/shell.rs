//! The shell around the core: waits for what happens, steps the core, performs its actions, commits its records.
//!
//! One task, no lock. It waits for the spool's writer only before it tells anybody anything (the core sees to that), never with its hands full.

use std::path::PathBuf;
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::Duration;

use intergrid_proto::link::{Hop, Up};
use intergrid_proto::{BlobHash, Refusal, RefusalKind};
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::config::AgentConfig;
use crate::core::{Action, Core, Input};
use crate::dial::{Said, random};
use crate::exec::Executor;
use crate::exec::dirs::Dirs;
use crate::exec::worker::Told;
use crate::fetch::Fetcher;
use crate::limits::*;
use crate::machine::Capacity;
use crate::spool::{Order, Written};
use crate::start::{Clock, start};
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
    /// Nobody is left who wants them.
    ParentGone,
    Refused(Refusal),
}

pub(crate) struct Connection {
    session: u64,
    up: mpsc::Sender<Up>,
    _end: oneshot::Sender<()>,
}

/// The agent's parts.
pub(crate) struct Shell {
    pub config: AgentConfig,
    pub options: Options,
    pub clock: Clock,
    pub core: Core,
    pub exec: Executor,
    pub dirs: Dirs,
    pub orders: std_mpsc::Sender<Order>,
    pub writing: bool,
    pub spool_is_large: bool,
    pub connection: Option<Connection>,
    pub fetcher: Arc<Fetcher>,
    pub fetched: mpsc::Sender<(BlobHash, Result<(), String>)>,
    pub uploads: mpsc::UnboundedSender<upload::Request>,
    pub ended: Option<End>,
    pub me: Hop,
    /// In which interval the capacity was read last.
    pub capacity_read: u64,
    pub tick_at: Instant,
}

/// Where news come from.
pub(crate) struct Sources {
    pub written: mpsc::Receiver<Written>,
    pub said: mpsc::Receiver<Said>,
    pub told: mpsc::Receiver<Told>,
    pub fetched: mpsc::Receiver<(BlobHash, Result<(), String>)>,
    pub uploaded: mpsc::Receiver<upload::Done>,
    pub child: Signal,
    /// None: not tied to a parent.
    pub parent_gone: Option<oneshot::Receiver<()>>,
}

/// Run an agent until `shutdown`, which leaves its tasks running. Errors: what keeps it from being one at all.
pub async fn run(config: AgentConfig, options: Options, shutdown: impl Future<Output = ()>) -> Result<(), Refusal> {
    let (mut shell, mut sources) = start(config, options)?;
    let mut shutdown = std::pin::pin!(shutdown);
    let end = loop {
        if Instant::now() >= shell.tick_at {
            shell.tick(&mut sources.told);
        }
        shell.perform();
        shell.commit();
        shell.tell();
        if let Some(end) = shell.ended.take() {
            break end;
        }
        let until = shell.wake();
        let blocked = shell.blocked_on();
        tokio::select! {
            biased;
            () = &mut shutdown => break End::Stopped,
            () = gone(&mut sources.parent_gone) => break End::ParentGone,
            _ = sources.child.recv() => shell.exec.reap(),
            Some(told) = sources.told.recv() => {
                shell.exec.told(told);
                while let Ok(told) = sources.told.try_recv() {
                    shell.exec.told(told);
                }
            }
            Some(written) = sources.written.recv() => shell.written(written),
            Some(said) = sources.said.recv() => {
                shell.said(said);
                while let Ok(said) = sources.said.try_recv() {
                    shell.said(said);
                }
            }
            Some((hash, result)) = sources.fetched.recv() => shell.fetched(hash, result),
            Some((key, result)) = sources.uploaded.recv() => shell.step(Input::Uploaded(key, result)),
            () = room(blocked) => {}
            () = sleep_until(until) => {}
        }
    };
    shell.finish(end, &mut sources).await
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
    fn step(&mut self, input: Input) {
        self.core.step(input, self.clock.now());
    }

    /// Do what the core wants, and tell it what came of it at once, until nothing is left to do.
    fn perform(&mut self) {
        loop {
            let (actions, inputs) = (self.core.actions(), self.exec.inputs());
            if actions.is_empty() && inputs.is_empty() {
                return;
            }
            actions.into_iter().for_each(|a| self.act(a));
            inputs.into_iter().for_each(|i| self.step(i));
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start(task, plan) => self.exec.start(task, plan),
            Action::Signal { key, kill } => self.exec.signal(key, kill),
            Action::Fetch(plan) => {
                let (fetcher, fetched) = (self.fetcher.clone(), self.fetched.clone());
                tokio::spawn(async move {
                    let result = fetcher.all(&plan).await;
                    let _ = fetched.send((plan.hash, result)).await;
                });
            }
            // Its receiver lives as long as we do.
            Action::Upload { key, number, job, files } => _ = self.uploads.send(upload::Request { key, number, job, files }),
            Action::Remove(keys) => self.exec.remove(keys),
            Action::ReadTicks(list) => {
                let input = self.exec.ticks(list);
                self.step(input);
            }
            Action::Reconnect(why) => {
                tracing::warn!("{why}");
                self.disconnect();
            }
            Action::Refuse(refusal) => self.ended = Some(End::Refused(refusal)),
        }
    }

    fn disconnect(&mut self) {
        if self.connection.take().is_some() {
            self.step(Input::Disconnected);
        }
    }

    /// Hand the next batch to the writer, where it is free.
    fn commit(&mut self) {
        if self.writing {
            return;
        }
        let now = self.clock.now();
        let order = match self.spool_is_large {
            true => Some(Order::Replace(self.core.cut_all(now))),
            false => self.core.cut(now).map(Order::Append),
        };
        if let Some(order) = order {
            self.writing = true;
            self.spool_is_large = false;
            if self.orders.send(order).is_err() {
                self.ended = Some(End::Refused(Refusal::new(RefusalKind::Internal, "the spool's thread is gone")));
            }
        }
    }

    fn written(&mut self, written: Written) {
        self.writing = false;
        self.spool_is_large = written.large;
        match written.result {
            Ok(()) => self.step(Input::Committed),
            Err(e) => {
                let message = format!("state {}: can't write the spool: {e}", self.config.state.display());
                let refusal = Refusal::new(RefusalKind::Internal, message).remedy("make room or mend the disk, then start again: tasks run on");
                self.ended = Some(End::Refused(refusal));
            }
        }
    }

    /// Send as much as the connection takes.
    fn tell(&mut self) {
        let Some(c) = &self.connection else { return };
        while c.up.capacity() > 0 {
            let Some(up) = self.core.next_up(self.clock.now()) else { return };
            if c.up.try_send(up).is_err() {
                return self.disconnect();
            }
        }
    }

    fn blocked_on(&self) -> Option<mpsc::Sender<Up>> {
        self.connection.as_ref().filter(|c| c.up.capacity() == 0).map(|c| c.up.clone())
    }

    fn said(&mut self, said: Said) {
        let current = self.connection.as_ref().map(|c| c.session);
        match said {
            Said::Connected { session, up, end } => {
                self.disconnect();
                self.connection = Some(Connection { session, up, _end: end });
                self.step(Input::Connected { fresh: random() });
                self.tell();
            }
            Said::Down(session, down) if current == Some(session) => {
                self.step(Input::Down(down));
                if self.core.is_attached() {
                    self.ready();
                }
            }
            Said::Gone(session) if current == Some(session) => self.disconnect(),
            Said::Down(..) | Said::Gone(_) => {}
        }
    }

    fn fetched(&mut self, hash: BlobHash, result: Result<(), String>) {
        self.step(Input::Fetched(hash, result));
        let in_use = self.core.blobs_in_use();
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

    fn tick(&mut self, told: &mut mpsc::Receiver<Told>) {
        if self.exec.is_quiet() {
            // All children of ours are known now; another one was left behind by a task that had left its group.
            while let Ok(told) = told.try_recv() {
                self.exec.told(told);
            }
            self.exec.reap_strangers();
        }
        self.exec.poll();
        self.exec.sample(std::time::Instant::now());
        if self.config.slots.is_none() || self.config.memory.is_none() {
            let now = self.clock.began.elapsed().as_millis() as u64 / CAPACITY_INTERVAL_MS;
            if now != self.capacity_read {
                self.capacity_read = now;
                self.step(Input::Capacity(Capacity::measure(self.config.slots, self.config.memory)));
            }
        }
        self.step(Input::Tick);
        self.tick_at = Instant::now() + self.tick_interval();
    }

    fn tick_interval(&self) -> Duration {
        Duration::from_millis(match self.exec.must_poll() {
            true => POLL_INTERVAL_MS,
            false if self.core.is_idle() => IDLE_TICK_MS,
            false => TICK_MS,
        })
    }

    /// When to look again though nothing happens.
    fn wake(&mut self) -> Instant {
        let now = Instant::now();
        self.tick_at = self.tick_at.min(now + self.tick_interval());
        let ms = self.clock.now();
        let advert = self.core.advert_due_in(ms).filter(|ms| *ms > 0);
        let pause = Some(self.core.pause_ms(ms)).filter(|ms| *ms > 0 && !self.writing);
        advert.into_iter().chain(pause).fold(self.tick_at, |at, ms| at.min(now + Duration::from_millis(ms)))
    }

    /// Write down what is known; tasks run on, unless their parent is gone.
    async fn finish(mut self, end: End, sources: &mut Sources) -> Result<(), Refusal> {
        let until = Instant::now() + Duration::from_millis(DIE_WAIT_MS);
        match end {
            End::Refused(refusal) => return Err(refusal),
            End::Stopped => tracing::info!("stopping; tasks run on"),
            End::ParentGone => {
                tracing::info!("the parent is gone; ending all tasks");
                while !self.exec.kill_all() && Instant::now() < until {
                    while let Ok(told) = sources.told.try_recv() {
                        self.exec.told(told);
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
        loop {
            self.exec.inputs().into_iter().for_each(|i| self.core.step(i, self.clock.now()));
            // Nothing new is started: only what is known is kept.
            self.core.actions();
            if !self.writing {
                let records = self.core.cut_all(self.clock.now());
                self.writing = self.orders.send(Order::Replace(records)).is_ok();
                let written = tokio::time::timeout_at(until, sources.written.recv()).await;
                return match written {
                    Ok(Some(Written { result: Ok(()), .. })) => Ok(()),
                    _ => Err(Refusal::new(RefusalKind::Internal, "the spool could not be written at the end; what was told before is safe")),
                };
            }
            match tokio::time::timeout_at(until, sources.written.recv()).await {
                Ok(Some(written)) => self.written(written),
                _ => return Err(Refusal::new(RefusalKind::Internal, "the spool could not be written at the end; what was told before is safe")),
            }
        }
    }
}

/// A JSON string; labels have no control characters.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
