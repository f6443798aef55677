//! What all threads of the agent work on: the core and the executor, behind one lock.
//!
//! Whoever has news steps the core and does what follows, as far as that can be done in any thread: so a task's end frees its slot and the next task is
//! started without waking anybody. The rest is left to the shell's loop, which is woken where it would sleep too long. Nothing blocks under the lock.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use intergrid_proto::{Refusal, RefusalKind};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::core::{Action, Core, Input};
use crate::exec::Executor;
use crate::limits::*;
use crate::spool::Order;
use crate::start::Clock;

/// The core, its executor, and when to look again.
pub(crate) struct Desk {
    pub core: Core,
    pub exec: Executor,
    pub clock: Clock,
    /// At most one is on its way.
    pub orders: mpsc::UnboundedSender<Order>,
    /// A batch is on its way to the disk.
    pub writing: bool,
    pub spool_is_large: bool,
    /// Actions for the shell's loop.
    pub left: Vec<Action>,
    /// Until then it sleeps, if nothing else wakes it.
    pub asleep_until: Instant,
    pub tick_at: Instant,
    /// Nothing is started any more.
    pub is_closed: bool,
    /// See [`SIGNALLED_HELD_MS`].
    pub holds_signalled: bool,
    /// Ends that are held, until then.
    pub held: VecDeque<(Instant, Input)>,
}

/// A desk that threads share.
pub(crate) struct SharedDesk {
    desk: Mutex<Desk>,
    /// For the shell's loop.
    pub call: Notify,
}

impl SharedDesk {
    pub fn new(desk: Desk) -> Self {
        SharedDesk { desk: Mutex::new(desk), call: Notify::new() }
    }

    pub fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The executor's door: see [`crate::exec::worker::Door`].
    pub fn with(&self, f: &mut dyn FnMut(&mut Executor)) {
        let mut desk = self.lock();
        f(&mut desk.exec);
        desk.perform();
        desk.commit();
        if desk.oversleeps() {
            drop(desk);
            self.call.notify_one();
        }
    }
}

impl Desk {
    pub fn step(&mut self, input: Input) {
        self.core.step(input, self.clock.now());
    }

    /// Do what the core wants, and tell it what came of it at once, until nothing is left to do here.
    pub fn perform(&mut self) {
        loop {
            let (actions, inputs) = (self.core.actions(), self.heard());
            if actions.is_empty() && inputs.is_empty() {
                return;
            }
            if !self.is_closed {
                actions.into_iter().for_each(|a| self.act(a));
            }
            inputs.into_iter().for_each(|i| self.step(i));
        }
    }

    /// What the executor says, and what was held for long enough.
    fn heard(&mut self) -> Vec<Input> {
        let mut inputs = self.exec.inputs();
        if self.holds_signalled {
            let now = Instant::now();
            let signalled = |i: &mut Input| match i {
                Input::Exited(key, report) => report.exit.may_be_by_others() && self.core.ended_by_itself(*key),
                _ => false,
            };
            let until = now + Duration::from_millis(SIGNALLED_HELD_MS);
            self.held.extend(inputs.extract_if(.., signalled).map(|i| (until, i)));
            while !self.is_closed && self.held.front().is_some_and(|(until, _)| *until <= now) {
                inputs.extend(self.held.pop_front().map(|(_, input)| input));
            }
        }
        inputs
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start(task, plan) => self.exec.start(task, plan),
            Action::Signal { key, kill } => self.exec.signal(key, kill),
            Action::Remove(keys) => self.exec.remove(keys),
            Action::ReadTicks(list) => {
                let input = self.exec.ticks(list);
                self.step(input);
            }
            // Nothing of this machine waits elsewhere.
            Action::Withdraw(_) => {}
            Action::Fetch(_) | Action::Upload { .. } | Action::Reconnect(_) | Action::Refuse(_) => self.left.push(action),
        }
    }

    /// Hand the next batch to the writer, where it is free.
    pub fn commit(&mut self) {
        if self.writing || self.is_closed {
            return;
        }
        let now = self.clock.now();
        // To write all of it anew takes room.
        let order = match self.spool_is_large && !self.core.lacks_room() {
            true => Some(Order::Replace(self.core.cut_all(now))),
            false => self.core.cut(now).map(Order::Append),
        };
        if let Some(order) = order {
            self.writing = true;
            self.spool_is_large = false;
            if self.orders.send(order).is_err() {
                self.left.push(Action::Refuse(Refusal::new(RefusalKind::Internal, "the spool's thread is gone")));
            }
        }
    }

    /// Would the shell's loop, as it sleeps now, be late for something?
    fn oversleeps(&mut self) -> bool {
        // Times are counted in whole milliseconds.
        let slack = Duration::from_millis(1);
        !self.left.is_empty() || self.core.advert_due_in(self.clock.now()) == Some(0) || self.wake() + slack < self.asleep_until
    }

    pub fn tick_interval(&self) -> Duration {
        Duration::from_millis(match self.exec.must_poll() {
            true => POLL_INTERVAL_MS,
            false if self.core.is_idle() => IDLE_TICK_MS,
            false => TICK_MS,
        })
    }

    /// When to look again though nothing happens.
    pub fn wake(&mut self) -> Instant {
        let now = Instant::now();
        self.tick_at = self.tick_at.min(now + self.tick_interval());
        let ms = self.clock.now();
        let advert = self.core.advert_due_in(ms).filter(|ms| *ms > 0);
        let pause = Some(self.core.pause_ms(ms)).filter(|ms| *ms > 0 && !self.writing);
        let events = self.core.events_due_in(ms).filter(|ms| *ms > 0);
        let tick_at = self.held.front().map_or(self.tick_at, |(until, _)| self.tick_at.min(*until));
        advert.into_iter().chain(pause).chain(events).fold(tick_at, |at, ms| at.min(now + Duration::from_millis(ms)))
    }
}
