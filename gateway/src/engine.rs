//! The shell around the core: drains what has come, steps the core, commits the whole turn with one flush on the store thread, and only then does what
//! the turn said. One batch is in flight while the next is stepped; so the load itself makes the batches.
//!
//! It decides nothing. Where the store finds no room it is waited for ([`room`]). If it fails, the engine ends, and the process with it: what is not
//! durable must not be acted on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use intergrid_proto::link::{Hop, Up, WantValue};
use intergrid_proto::{BlobHash, Refusal, RefusalKind, SiteId, TaskSet};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::backend::{Backend, FromChild};
use crate::core::orders::{Done, Order};
use crate::core::steps::{Line, Step};
use crate::core::{Action, Core, Input, Now, Output, Submission};
use crate::heard::{Heard, INPUTS_AT_ONCE};
use crate::metrics::Stats;
use crate::queue;
use crate::room::{self, Stuck};
use crate::store::{Batch, Reader, Store, StoreError};
use crate::traces::Traces;

/// Commands that may wait for the engine.
const COMMANDS_MAX: usize = 8_192;
/// Messages that may wait for a parent that reads slowly; beyond it his link is dropped.
const PARENT_MESSAGES_MAX: usize = 16_384;
/// What parents say and waits for the engine; beyond it their links wait.
const PARENT_INPUTS_MAX: usize = 512;
/// Inputs of one turn: while so many wait for a commit, no more are taken.
const TURN_INPUTS_MAX: usize = 4_096;
/// Changes of one turn in bytes: while so much waits for a commit, nothing more is looked at, so that no commit takes long.
const TURN_BYTES_MAX: usize = 16 << 20;
/// Looks that may wait.
const LOOKS_MAX: usize = 64;
/// How often time is told to the core.
const TICK: Duration = Duration::from_millis(50);

/// Done after the commit of the turn that read it: what is seen is durable.
type After = Box<dyn FnOnce() + Send>;

enum Command {
    Input(Input),
    Submit { submission: Submission, reply: Reply<(u64, bool)> },
    SetWant { job: u64, value: WantValue, tasks: Option<TaskSet>, reply: Reply<u64> },
    Order { order: Order, reply: Reply<Done> },
    Rows { rows: Rows, reply: Reply<()> },
    Read(Box<dyn FnOnce(&Core) -> After + Send>),
    Parent { parent: SiteId, name: String, link: queue::Sender<Up>, session: u64 },
    ParentGone { parent: SiteId, session: u64 },
}

/// Rows to put, or to delete.
pub type Rows = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Seen and done at once, whatever waits for a commit.
type Look = Box<dyn FnOnce(&mut Core, Now) + Send>;

type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// Links to parents: session and queue.
type Parents = Arc<Mutex<HashMap<SiteId, (u64, queue::Sender<Up>)>>>;

/// A handle to a running engine.
#[derive(Clone)]
pub struct Engine {
    commands: mpsc::Sender<Command>,
    /// What parents say has a queue of its own, so that it does not stand in the way of users.
    said: mpsc::Sender<Command>,
    looks: mpsc::Sender<Look>,
    stuck: Stuck,
    reader: Arc<dyn Reader + Send + Sync>,
    watchers: Arc<Mutex<HashMap<u64, Arc<Notify>>>>,
    parents: Parents,
    children: Arc<Notify>,
    stats: Arc<Stats>,
    me: Hop,
}

fn stopped() -> Refusal {
    Refusal::new(RefusalKind::Unavailable, "this site is stopping").remedy("try again")
}

impl Engine {
    /// Start. The future ends when the engine does: an error is the store's.
    pub fn start(
        core: Core,
        store: Box<dyn Store>,
        backend: Arc<dyn Backend>,
        children: mpsc::Receiver<(SiteId, FromChild)>,
        need_blob: impl Fn(SiteId, BlobHash) + Send + Sync + 'static,
        traces: Option<Traces>,
    ) -> (Engine, tokio::task::JoinHandle<Result<(), StoreError>>) {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (said, parents) = mpsc::channel(PARENT_INPUTS_MAX);
        let (looks, looked) = mpsc::channel(LOOKS_MAX);
        let engine = Engine {
            commands,
            said,
            looks,
            stuck: Stuck::default(),
            reader: store.reader().into(),
            watchers: Arc::default(),
            parents: Arc::default(),
            children: Arc::default(),
            stats: Arc::default(),
            me: core.me().clone(),
        };
        let shell = Shell {
            core,
            backend,
            parents: engine.parents.clone(),
            children: engine.children.clone(),
            greeted: HashMap::new(),
            traces,
            stats: engine.stats.clone(),
            watchers: engine.watchers.clone(),
            need_blob: Box::new(need_blob),
            submits: HashMap::new(),
            wants: HashMap::new(),
            orders: HashMap::new(),
            tokens: 0,
            after: Vec::new(),
            rows: Rows::new(),
            reader: engine.reader.clone(),
            fault: None,
            start: Instant::now(),
            stuck: engine.stuck.clone(),
        };
        let task = tokio::spawn(shell.run(store, inbox, parents, children, looked));
        (engine, task)
    }

    /// This site.
    pub fn me(&self) -> &Hop {
        &self.me
    }

    /// What it counts.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Rows, as committed.
    pub fn reader(&self) -> Arc<dyn Reader + Send + Sync> {
        self.reader.clone()
    }

    async fn call<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Refusal> {
        // It would wait for as long as the disk is full.
        if let Some(why) = self.stuck.why() {
            return Err(why);
        }
        let (tx, rx) = oneshot::channel();
        self.commands.send(make(tx)).await.map_err(|_| stopped())?;
        rx.await.map_err(|_| stopped())
    }

    /// A user's job; answered when it is durable. Number, and whether it was here before.
    pub async fn submit(&self, submission: Submission) -> Result<(u64, bool), Refusal> {
        self.call(|reply| Command::Submit { submission, reply }).await?
    }

    /// A user's wish; answered when it is durable.
    pub async fn set_want(&self, job: u64, value: WantValue, tasks: Option<TaskSet>) -> Result<u64, Refusal> {
        self.call(|reply| Command::SetWant { job, value, tasks, reply }).await?
    }

    /// An order; answered when it is durable.
    pub async fn order(&self, order: Order) -> Result<Done, Refusal> {
        self.call(|reply| Command::Order { order, reply }).await?
    }

    /// Put rows of a table that is not the core's; answered when they are durable, all of them or none.
    pub async fn put(&self, rows: Rows) -> Result<(), Refusal> {
        self.call(|reply| Command::Rows { rows, reply }).await?
    }

    /// Read the core; what is read is durable when the answer comes.
    pub async fn read<T: Send + 'static>(&self, f: impl FnOnce(&Core) -> T + Send + 'static) -> Result<T, Refusal> {
        self.call(|tx| {
            Command::Read(Box::new(move |core| {
                let value = f(core);
                Box::new(move || _ = tx.send(value))
            }))
        })
        .await
    }

    /// Read the core as it is now, though what is read may not be durable yet, and answered while the store waits for room: for views that people look at.
    pub async fn look<T: Send + 'static>(&self, f: impl FnOnce(&Core) -> T + Send + 'static) -> Result<T, Refusal> {
        let (tx, rx) = oneshot::channel();
        let look: Look = Box::new(move |core, _| _ = tx.send(f(core)));
        self.looks.send(look).await.map_err(|_| stopped())?;
        rx.await.map_err(|_| stopped())
    }

    /// Tell the core something that changes nothing durable, whatever waits for a commit.
    pub async fn tell(&self, input: Input) -> Result<(), Refusal> {
        self.looks.send(Box::new(move |core, now| core.step(input, now))).await.map_err(|_| stopped())
    }

    /// Why the store can't write just now, if so.
    pub fn stuck(&self) -> Option<Refusal> {
        self.stuck.why()
    }

    /// Woken whenever the job's view may have changed.
    pub fn watch(&self, job: u64) -> Arc<Notify> {
        lock(&self.watchers).entry(job).or_default().clone()
    }

    /// One who waits is woken when a child has come or gone since he was last.
    pub fn children_moved(&self) -> Arc<Notify> {
        self.children.clone()
    }

    /// Forget watchers that nobody holds.
    pub fn unwatch(&self, job: u64) {
        let mut watchers = lock(&self.watchers);
        if watchers.get(&job).is_some_and(|n| Arc::strong_count(n) <= 2) {
            watchers.remove(&job);
        }
    }

    /// A parent's link is open. Refused while one of his is: one live session per id.
    pub async fn parent_up(&self, parent: SiteId, name: String) -> Result<ParentLink, Refusal> {
        static SESSIONS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let session = SESSIONS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (link, messages) = queue::queue(PARENT_MESSAGES_MAX);
        {
            let mut parents = lock(&self.parents);
            if parents.get(&parent).is_some_and(|(_, l)| !l.is_closed()) {
                let message = format!("a parent with the id of {name} ({parent:?}) is connected already");
                return Err(
                    Refusal::new(RefusalKind::DuplicateIdentity, message).remedy("end the other session, or give this site an identity of its own")
                );
            }
            parents.insert(parent, (session, link.clone()));
        }
        self.said.send(Command::Parent { parent, name, link, session }).await.map_err(|_| stopped())?;
        Ok(ParentLink { engine: self.clone(), parent, session, messages })
    }

    /// Ask every attached parent for content.
    pub fn ask_above(&self, hash: BlobHash) {
        for (_, link) in lock(&self.parents).values() {
            // A queue that is full is about to be dropped; he is asked again when he is back.
            _ = link.try_send(Up::NeedBlob(hash));
        }
    }

    /// Something a parent says.
    pub async fn input(&self, input: Input) -> Result<(), Refusal> {
        self.said.send(Command::Input(input)).await.map_err(|_| stopped())
    }
}

/// A parent's link: what he is told comes out of `messages`. Dropping it ends the session.
pub struct ParentLink {
    engine: Engine,
    parent: SiteId,
    session: u64,
    /// To be sent to the parent, in order.
    pub messages: queue::Receiver<Up>,
}

impl Drop for ParentLink {
    fn drop(&mut self) {
        self.messages.close();
        let mut parents = lock(&self.engine.parents);
        if parents.get(&self.parent).is_some_and(|(s, _)| *s == self.session) {
            parents.remove(&self.parent);
        }
        let (commands, gone) = (self.engine.said.clone(), Command::ParentGone { parent: self.parent, session: self.session });
        if let Err(mpsc::error::TrySendError::Full(gone)) = commands.try_send(gone)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { _ = commands.send(gone).await });
        }
    }
}

/// A lock whose holder never panics while holding it.
pub(crate) fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Shell {
    core: Core,
    traces: Option<Traces>,
    backend: Arc<dyn Backend>,
    parents: Parents,
    children: Arc<Notify>,
    /// Sessions of parents that have had our hello.
    greeted: HashMap<SiteId, u64>,
    stats: Arc<Stats>,
    watchers: Arc<Mutex<HashMap<u64, Arc<Notify>>>>,
    need_blob: Box<dyn Fn(SiteId, BlobHash) + Send + Sync>,
    submits: HashMap<u64, Reply<(u64, bool)>>,
    wants: HashMap<u64, Reply<u64>>,
    orders: HashMap<u64, Reply<Done>>,
    tokens: u64,
    after: Vec<After>,
    /// Of tables that are not the core's, for the next commit.
    rows: Rows,
    reader: Arc<dyn Reader + Send + Sync>,
    /// The store can't be read: the engine ends.
    fault: Option<StoreError>,
    start: Instant,
    stuck: Stuck,
}

impl Drop for Shell {
    /// Links to parents end with the engine, whatever else still holds them.
    fn drop(&mut self) {
        lock(&self.parents).clear();
    }
}

impl Shell {
    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Not 0: a time of 0 means never.
        Now { mono_ms: 1 + self.start.elapsed().as_millis() as u64, unix_ms: unix.as_millis() as u64 }
    }

    async fn run(
        mut self,
        mut store: Box<dyn Store>,
        mut inbox: mpsc::Receiver<Command>,
        mut parents: mpsc::Receiver<Command>,
        mut children: mpsc::Receiver<(SiteId, FromChild)>,
        mut looks: mpsc::Receiver<Look>,
    ) -> Result<(), StoreError> {
        let (to_store, batches) = std::sync::mpsc::channel::<Batch>();
        let (done_tx, mut done) = mpsc::channel::<Result<(), StoreError>>(1);
        let (stats, stuck) = (self.stats.clone(), self.stuck.clone());
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || {
            while let Ok(batch) = batches.recv() {
                let began = Instant::now();
                let committed = room::commit(&mut *store, &batch, &stuck, || done_tx.is_closed());
                stats.committed(&batch, began.elapsed());
                if done_tx.blocking_send(committed).is_err() {
                    return;
                }
            }
        });
        if let Err(source) = thread {
            return Err(StoreError::Io { path: "(thread)".into(), source });
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let (mut commands, mut from_children, mut from_parents) = (Vec::new(), Heard::default(), Heard::default());
        let mut in_flight: Option<(Vec<Action>, Vec<After>)> = None;
        let (mut taken, mut next_turn) = (0, tokio::time::Instant::now());
        loop {
            let full = self.core.turn_bytes() >= TURN_BYTES_MAX;
            let room = if full { 0 } else { TURN_INPUTS_MAX.saturating_sub(taken) };
            // Until then peers wait, and users don't.
            let mut rests = tokio::time::Instant::now() < next_turn;
            tokio::select! {
                biased;
                result = done.recv(), if in_flight.is_some() => match result {
                    Some(Ok(())) => {
                        if let Some((actions, after)) = in_flight.take() {
                            self.perform(actions, after);
                        }
                    }
                    Some(Err(e)) => return Err(e),
                    None => return Err(StoreError::Damaged { path: "(thread)".into(), what: "the store thread has ended".into() }),
                },
                _ = tick.tick() => {
                    let now = self.now();
                    self.core.step(Input::Tick, now);
                }
                Some(look) = looks.recv() => {
                    let now = self.now();
                    look(&mut self.core, now);
                }
                () = tokio::time::sleep_until(next_turn), if rests => rests = false,
                () = std::future::ready(()), if !full && !rests && (!from_children.is_empty() || !from_parents.is_empty()) => {}
                n = from_children.some(&mut children, room), if room > 0 && !rests => {
                    taken += n;
                    if n == 0 {
                        return Ok(());
                    }
                }
                n = from_parents.some(&mut parents, room), if room > 0 && !rests => {
                    taken += n;
                    if n == 0 {
                        return Ok(());
                    }
                }
                n = inbox.recv_many(&mut commands, room), if room > 0 => {
                    taken += n;
                    (rests, next_turn) = (false, tokio::time::Instant::now());
                    if n == 0 {
                        return Ok(());
                    }
                }
            }
            if rests {
                continue;
            }
            // Whoever was heard, the others are heard too: one who never stops keeps nobody waiting.
            if room > 0 {
                taken += from_children.more(&mut children) + from_parents.more(&mut parents);
                while commands.len() < INPUTS_AT_ONCE
                    && let Ok(command) = inbox.try_recv()
                {
                    commands.push(command);
                    taken += 1;
                }
            }
            if !full {
                from_children.for_a_while(|(child, what)| self.child(child, what));
                from_parents.for_a_while(|command| self.command(command));
            }
            for command in commands.drain(..) {
                self.command(command);
            }
            commands.shrink_to(INPUTS_AT_ONCE);
            if let Some(e) = self.fault.take() {
                return Err(e);
            }
            self.stats.waiting([inbox.len(), parents.len(), children.len()]);
            if in_flight.is_none() {
                taken = 0;
                let now = self.now();
                let Output { mut batch, actions } = self.core.turn(now);
                batch.rows.append(&mut self.rows);
                let after = std::mem::take(&mut self.after);
                if batch.is_empty() {
                    self.perform(actions, after);
                } else if to_store.send(batch).is_ok() {
                    in_flight = Some((actions, after));
                    next_turn = tokio::time::Instant::now() + Duration::from_millis(self.core.turn_pace_ms());
                }
            }
        }
    }

    fn child(&mut self, child: SiteId, what: FromChild) {
        let now = self.now();
        let input = match what {
            FromChild::Up(Up::Hello(hello)) => {
                tracing::info!(child = %hello.hop.name, kind = hello.hop.kind.name(), "attached");
                Input::ChildUp { child, hello }
            }
            FromChild::Up(Up::NeedBlob(hash)) => return (self.need_blob)(child, hash),
            FromChild::Up(message) => Input::ChildSays { child, message },
            FromChild::Gone { why, silent_ms } => {
                tracing::info!(?child, %why, "gone");
                Input::ChildGone { child, why, silent_ms }
            }
        };
        let moved = matches!(input, Input::ChildUp { .. } | Input::ChildGone { .. });
        self.step(input, now);
        if moved {
            self.children.notify_one();
        }
    }

    fn step(&mut self, input: Input, now: Now) {
        match self.core.recall(&input, &*self.reader) {
            Ok(()) => self.core.step(input, now),
            Err(e) => self.fault = Some(e),
        }
    }

    fn command(&mut self, command: Command) {
        let now = self.now();
        self.tokens += 1;
        let token = self.tokens;
        let input = match command {
            Command::Input(input) => input,
            Command::Submit { submission, reply } => {
                self.submits.insert(token, reply);
                Input::Submit { token, submission }
            }
            Command::SetWant { job, value, tasks, reply } => {
                self.wants.insert(token, reply);
                Input::SetWant { token, job, value, tasks }
            }
            Command::Order { order, reply } => {
                tracing::info!(?order, "ordered");
                self.orders.insert(token, reply);
                Input::Order { token, order }
            }
            Command::Rows { rows, reply } => {
                self.rows.extend(rows);
                return self.after.push(Box::new(move || _ = reply.send(Ok(()))));
            }
            Command::Read(f) => {
                let after = f(&self.core);
                return self.after.push(after);
            }
            Command::Parent { parent, name, link, session } => {
                if lock(&self.parents).get(&parent).is_none_or(|(s, _)| *s != session) {
                    return drop(link);
                }
                tracing::info!(parent = %name, "parent attached");
                Input::ParentUp { parent, name }
            }
            Command::ParentGone { parent, session } => {
                // A newer session of his may be open by now.
                if lock(&self.parents).get(&parent).is_some_and(|(s, _)| *s > session) {
                    return;
                }
                tracing::info!(?parent, "parent gone");
                Input::ParentGone { parent }
            }
        };
        self.step(input, now);
    }

    fn log(&mut self, job: u64, step: Step) {
        if let Some(traces) = &mut self.traces {
            traces.step(job, &step, || self.core.line(job, step));
        }
        let placed = matches!(step, Step::Placed { .. });
        // Placements are many: who wants to see them asks for debug.
        if placed && !tracing::enabled!(tracing::Level::DEBUG) || !tracing::enabled!(tracing::Level::INFO) {
            return;
        }
        let Some(Line { job, origin, principal, trace, what, .. }) = self.core.line(job, step) else { return };
        match placed {
            true => tracing::debug!(%job, %origin, %principal, %trace, "{what}"),
            false => tracing::info!(%job, %origin, %principal, %trace, "{what}"),
        }
    }

    fn perform(&mut self, actions: Vec<Action>, after: Vec<After>) {
        for action in actions {
            match action {
                Action::Submitted(token, answer) => _ = self.submits.remove(&token).map(|r| r.send(answer)),
                Action::Ordered(token, answer) => _ = self.orders.remove(&token).map(|r| r.send(answer)),
                Action::Wanted(token, answer) => _ = self.wants.remove(&token).map(|r| r.send(answer)),
                Action::ToParent(parent, message) => {
                    let mut parents = lock(&self.parents);
                    let Some((session, link)) = parents.get(&parent) else { continue };
                    // What was said to an earlier session of his is not for this one, which begins with a hello.
                    if matches!(message, Up::Hello(_)) {
                        self.greeted.insert(parent, *session);
                    } else if self.greeted.get(&parent) != Some(session) {
                        continue;
                    }
                    if let Err(why) = link.try_send(message) {
                        // His link ends, and he gets what is due when he is back.
                        if why == queue::NotTaken::Full {
                            tracing::warn!(?parent, "link dropped: the parent does not read what it is told");
                        }
                        parents.remove(&parent);
                    }
                }
                Action::ToChild(child, message) => _ = self.backend.send(child, message),
                Action::Changed(job) => {
                    if let Some(n) = lock(&self.watchers).get(&job) {
                        n.notify_waiters();
                    }
                }
                Action::Step(job, step) => self.log(job, step),
                Action::Warn(text) => tracing::warn!("{text}"),
                Action::Leave(peer, why) => {
                    lock(&self.parents).remove(&peer);
                    self.backend.disconnect(peer, &why);
                }
            }
        }
        after.into_iter().for_each(|f| f());
    }
}
