//! One offered queue as a child of the gateway: an agent's core and spool in this process, whose machine is the LRMS.
//!
//! One that was offered by an earlier configuration takes nothing new and gives back what waits; what runs there ends as ever.
//!
//! One task owns it. What was accepted, claimed and ended is durable in its spool before it is told, as with any agent.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use intergrid_agent::core::{Action, Core, Fate, Input, Key};
use intergrid_agent::dial::random;
use intergrid_agent::limits::TICK_MS;
use intergrid_agent::machine::{Capacity, Offer};
use intergrid_agent::spool::{Order, Spool, Written};
use intergrid_agent::state::State;
use intergrid_gateway::backend::{FromChild, Sink};
use intergrid_proto::link::{Down, Hop};
use intergrid_proto::{Phase, Refusal, RefusalKind, TaskSet};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, Instant, sleep_until};

use crate::driver::send::Start;
use crate::driver::{Clock, Driver};
use crate::limits::{COMES_BACK_MS, LEFT_EMPTY_MS};

/// Claims of ours outlive a boot: what they claim runs elsewhere.
const BOOT: &[u8] = b"lrms";
/// Beside the spool of a queue that is not offered any more: nothing is left in it.
const EMPTY_FILE: &str = "empty";

/// What is said to a child. Bounded by what is placed here: the gateway's messages have a queue of their own.
pub enum Say {
    /// Something happened to a task, or the queue.
    Input(Input),
    /// Drop the link: why.
    Drop(String),
    /// Of a job of the gateway: tasks by phase, and its open tasks by placement.
    Ask(u64, oneshot::Sender<Told>),
    /// Which task that is which the gateway calls by this placement and index, where it runs.
    Which(u64, u32, oneshot::Sender<Option<Key>>),
}

/// What a child tells of a job.
#[derive(Debug, Default)]
pub struct Told {
    /// Waiting, running and suspended.
    pub phases: Vec<(Phase, u64)>,
    /// By placement.
    pub tasks: Vec<(u64, TaskSet)>,
}

/// A child, before it runs.
pub struct Child {
    queue: String,
    /// Its spool's.
    dir: PathBuf,
    /// Else it takes nothing new.
    offered: bool,
    /// Of one that is not offered: nothing is left in it, since then.
    empty_since: Option<Instant>,
    /// And the next start knows it.
    let_go: bool,
    me: Hop,
    core: Core,
    driver: Arc<Driver>,
    clock: Clock,
    orders: mpsc::UnboundedSender<Order>,
    written: mpsc::Receiver<Written>,
    writing: bool,
    large: bool,
}

/// Queues of which something may be left, by their spools below `state`: also what their gateway has placed there, and they have not heard of yet.
pub fn in_use(state: &Path) -> io::Result<BTreeSet<String>> {
    let mut queues = BTreeSet::new();
    for entry in fs::read_dir(state)? {
        let entry = entry?;
        let dir = entry.path();
        if dir.is_dir() && !dir.join(EMPTY_FILE).try_exists()? {
            queues.extend(entry.file_name().into_string().ok());
        }
    }
    Ok(queues)
}

impl Child {
    /// From its spool, below `state`. What it had given to the LRMS is in the driver's hands again.
    pub fn open(queue: &str, me: Hop, state: &Path, driver: Arc<Driver>) -> Result<Child, Refusal> {
        let clock = driver.clock();
        let dir = state.join(queue);
        let (mut spool, records) = Spool::open(&dir)?;
        let broken = |e: std::io::Error| Refusal::new(RefusalKind::Internal, format!("{}: can't write the spool: {e}", dir.display()));
        let state = State::replay(records)?;
        // The same for ever: where the gateway runs does not matter to what runs elsewhere.
        let machine = [driver.name().as_bytes(), b"/", queue.as_bytes()].concat();
        let capacity = Capacity { slots: 1, memory_bytes: 0, gpus: 0, architecture: std::env::consts::ARCH.to_string() };
        let mut core = Core::new(state, me.clone(), machine, BOOT.to_vec(), capacity, random(), clock.now())?;
        let claims = core.claimed();
        for (key, claim) in &claims {
            let fate = match (driver.has(queue, *key), claim.exited.is_some()) {
                (true, _) | (_, true) => Fate::Handed,
                // The intent is durable before anything is submitted.
                (false, false) => Fate::NeverStarted,
            };
            core.resume(*key, fate, clock.now());
        }
        let claimed: Vec<(Key, bool)> = claims.iter().map(|(k, c)| (*k, c.exited.is_some())).collect();
        driver.resume(queue, &claimed, |number| core.plan(number));
        let closed = driver.not_offered(queue);
        let offered = closed.is_none();
        match closed {
            Some(why) => {
                tracing::info!("{why}: looking after what is left in it");
                // In this order: nothing that waits is handed on.
                core.step(Input::Room(Some(Refusal::new(RefusalKind::Unavailable, why.clone()))), clock.now());
                core.step(Input::Offer(Offer { key: queue.to_string(), closed: Some(why), ..Offer::default() }), clock.now());
            }
            None => match fs::remove_file(dir.join(EMPTY_FILE)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(broken(e)),
                _ => {}
            },
        }
        spool.replace(core.cut_all(clock.now())).map_err(broken)?;
        core.step(Input::Committed, clock.now());
        let (orders, order_queue) = mpsc::unbounded_channel();
        let (report, written) = mpsc::channel(4);
        spool.serve(order_queue, move |w| _ = report.blocking_send(w)).map_err(broken)?;
        Ok(Child {
            queue: queue.to_string(),
            dir,
            offered,
            empty_since: None,
            let_go: false,
            me,
            core,
            driver,
            clock,
            orders,
            written,
            writing: false,
            large: false,
        })
    }

    /// Its id.
    pub fn site(&self) -> intergrid_proto::SiteId {
        self.me.site
    }

    /// Until the gateway is gone. The first offer of the queue is waited for before it says hello.
    pub async fn run(
        mut self,
        mut said: mpsc::UnboundedReceiver<Say>,
        mut downs: mpsc::Receiver<Down>,
        attached: Arc<std::sync::atomic::AtomicBool>,
        sink: Sink,
    ) {
        use std::sync::atomic::Ordering::SeqCst;
        let (mut known, mut comes_back): (bool, Option<Instant>) = (!self.offered, None);
        let mut tick_at = Instant::now();
        loop {
            if Instant::now() >= tick_at {
                self.step(Input::Tick);
                if !self.offered && !self.let_go {
                    self.let_go(attached.load(SeqCst));
                }
                tick_at = Instant::now() + Duration::from_millis(TICK_MS);
            }
            if known && comes_back.is_none_or(|t| Instant::now() >= t) && !attached.load(SeqCst) {
                // What was sent to the link before is lost with it.
                while downs.try_recv().is_ok() {}
                comes_back = None;
                attached.store(true, SeqCst);
                self.step(Input::Connected { fresh: random() });
            }
            let dropped = self.perform();
            if let Err(refusal) = self.commit() {
                return tracing::error!(queue = %self.queue, "this queue can't go on: {refusal}");
            }
            if let Some(why) = dropped {
                comes_back = self.drop_link(&why, &attached, &sink).await;
            }
            while attached.load(SeqCst)
                && let Some(up) = self.core.next_up(self.clock.now())
            {
                if sink.send((self.me.site, FromChild::Up(up))).await.is_err() {
                    return;
                }
            }
            let advert = self.core.advert_due_in(self.clock.now()).map(|ms| Instant::now() + Duration::from_millis(ms.max(1)));
            let pause = Instant::now() + Duration::from_millis(self.core.pause_ms(self.clock.now()).max(1));
            let pause = (!self.writing && self.core.pause_ms(self.clock.now()) > 0).then_some(pause);
            let until = [advert, pause, comes_back].into_iter().flatten().fold(tick_at, Instant::min);
            tokio::select! {
                biased;
                () = sink.closed() => return,
                Some(written) = self.written.recv() => {
                    if let Err(e) = self.wrote(written) {
                        return tracing::error!(queue = %self.queue, "the spool can't be written: {e}; what was told before is safe, tasks run on");
                    }
                }
                Some(down) = downs.recv() => {
                    self.step(Input::Down(down));
                    while let Ok(down) = downs.try_recv() {
                        self.step(Input::Down(down));
                    }
                }
                say = said.recv() => match say {
                    None => return,
                    Some(say) => {
                        let mut next = Some(say);
                        while let Some(say) = next {
                            match say {
                                Say::Input(input) => {
                                    known |= matches!(input, Input::Offer(_));
                                    self.step(input);
                                }
                                Say::Drop(why) => comes_back = self.drop_link(&why, &attached, &sink).await.or(comes_back),
                                // Who no longer waits need not know.
                                Say::Ask(job, answer) => _ = answer.send(self.tell_of(job)),
                                Say::Which(number, task, answer) => _ = answer.send(self.core.live(number, task).map(|(key, _)| key)),
                            }
                            next = said.try_recv().ok();
                        }
                    }
                },
                () = sleep_until(until) => {}
            }
        }
    }

    async fn drop_link(&mut self, why: &str, attached: &std::sync::atomic::AtomicBool, sink: &Sink) -> Option<Instant> {
        if !attached.swap(false, std::sync::atomic::Ordering::SeqCst) {
            return None;
        }
        self.step(Input::Disconnected);
        let _ = sink.send((self.me.site, FromChild::Gone { why: why.to_string(), silent_ms: 0 })).await;
        Some(Instant::now() + Duration::from_millis(COMES_BACK_MS))
    }

    /// When nothing is left in it, and the gateway has had the time to say otherwise, the next start does without it.
    fn let_go(&mut self, attached: bool) {
        if !attached || !self.core.is_empty() || self.driver.queues_in_use().contains(&self.queue) {
            self.empty_since = None;
        } else if self.empty_since.get_or_insert_with(Instant::now).elapsed() >= Duration::from_millis(LEFT_EMPTY_MS) {
            self.let_go = fs::write(self.dir.join(EMPTY_FILE), "").is_ok();
        }
    }

    fn step(&mut self, input: Input) {
        self.core.step(input, self.clock.now());
    }

    /// Do what the core wants. Some: the link is to be dropped.
    fn perform(&mut self) -> Option<String> {
        let (mut starts, mut back, mut dropped) = (Vec::new(), Vec::new(), None);
        let (mut term, mut kill) = (Vec::new(), Vec::new());
        let mut actions = self.core.actions();
        while !actions.is_empty() {
            for action in actions {
                match action {
                    Action::Start(task, plan) => {
                        let principal = self.core.principal(task.number).unwrap_or_default().to_string();
                        starts.push(Start { task, plan, principal });
                    }
                    Action::Signal { key, kill: true } => kill.push(key),
                    Action::Signal { key, kill: false } => term.push(key),
                    Action::Withdraw(key) => back.push(key),
                    Action::Fetch(plan) => self.driver.fetch(&self.queue, plan),
                    Action::Upload { key, number, job, files } => self.driver.upload(&self.queue, key, number, job, files),
                    Action::Remove(keys) => self.driver.clear(&self.queue, keys),
                    // Their processes are elsewhere.
                    Action::ReadTicks(_) => {}
                    Action::Reconnect(why) => dropped = Some(why),
                    Action::Refuse(refusal) => dropped = Some(refusal.to_string()),
                }
            }
            actions = self.core.actions();
        }
        if !starts.is_empty() {
            self.driver.start(&self.queue, starts);
        }
        if !back.is_empty() {
            self.driver.withdraw(&self.queue, back);
        }
        for (keys, kill) in [(term, false), (kill, true)] {
            if !keys.is_empty() {
                self.driver.signal(&self.queue, keys, kill);
            }
        }
        dropped
    }

    /// Hand the next batch to the writer, where it is free.
    fn commit(&mut self) -> Result<(), Refusal> {
        if self.writing {
            return Ok(());
        }
        let now = self.clock.now();
        let order = if self.large { Some(Order::Replace(self.core.cut_all(now))) } else { self.core.cut(now).map(Order::Append) };
        if let Some(order) = order {
            (self.writing, self.large) = (true, false);
            self.orders.send(order).map_err(|_| Refusal::new(RefusalKind::Internal, "the spool's thread is gone"))?;
        }
        Ok(())
    }

    fn wrote(&mut self, written: Written) -> std::io::Result<()> {
        (self.writing, self.large) = (false, written.large);
        written.result?;
        self.step(Input::Committed);
        Ok(())
    }

    fn tell_of(&self, job: u64) -> Told {
        let tasks = self.core.tasks_of(job);
        let all: u64 = tasks.iter().map(|(_, t)| t.len()).sum();
        let is_of = |(n, t): Key| tasks.iter().any(|(m, set)| *m == n && set.contains(t));
        let (stopped, running): (Vec<Key>, Vec<Key>) =
            self.core.running().map(|(k, _)| k).filter(|k| is_of(*k)).partition(|k| self.core.is_suspended(*k));
        let (stopped, running) = (stopped.len() as u64, running.len() as u64);
        Told { phases: vec![(Phase::Placed, all - running - stopped), (Phase::Running, running), (Phase::Suspended, stopped)], tasks }
    }
}
