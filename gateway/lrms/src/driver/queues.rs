//! What the LRMS's queues offer, told to their children.

use std::collections::BTreeSet;
use std::sync::Arc;

use intergrid_agent::core::Input;
use intergrid_agent::machine::{Capacity, Offer};
use intergrid_gateway::config::LrmsLimits;

use super::handed::held;
use super::{Driver, Inner, pause};
use crate::limits::*;
use crate::lrms::Queue;

/// How long a payload that is to end lives at most in this queue.
fn kill_wait_ms(queues: &[Queue], name: &str) -> u64 {
    let known = queues.iter().find(|q| q.name == name).and_then(|q| q.kill_wait_ms);
    // Of a queue that is gone: as long as anywhere.
    let longest = || queues.iter().filter_map(|q| q.kill_wait_ms).fold(KILL_WAIT_UNKNOWN_MS, u64::max);
    known.unwrap_or_else(longest).min(KILL_WAIT_MAX_MS)
}

impl Inner {
    /// See [`kill_wait_ms`].
    pub(super) fn kill_wait_ms(&self, queue: &str) -> u64 {
        kill_wait_ms(&self.queues, queue)
    }
}

impl Driver {
    /// What the queues offer.
    pub(super) async fn watch_queues(self: Arc<Self>) {
        let mut heard = self.clock.now();
        loop {
            let is_due = self.lock().bound.is_due(self.clock.now());
            if is_due {
                let said = self.lrms.tasks_max().await.ok();
                self.lock().bound.heard(said, self.clock.now());
            }
            if self.lock().books.is_idle() {
                // Nobody else asks what waits in the queues, just when somebody above chooses among them.
                _ = self.lrms.entries(&self.prefix, &BTreeSet::new()).await;
            }
            match self.lrms.queues().await {
                Ok(queues) => {
                    heard = self.clock.now();
                    self.lock().queues = queues;
                    self.config.queues.iter().for_each(|name| self.offer(name));
                }
                Err(why) if self.clock.now() >= heard + QUEUES_OLD_MS => {
                    let closed = format!("{} does not answer: {why}", self.lrms.name());
                    self.config.queues.iter().for_each(|name| self.close(name, closed.clone()));
                }
                Err(why) => tracing::debug!("the queues of {}: {why}", self.lrms.name()),
            }
            let idle = self.lock().books.is_idle();
            pause(if idle { QUEUES_IDLE_INTERVAL_MS } else { QUEUES_INTERVAL_MS }).await;
        }
    }

    fn offer(&self, name: &str) {
        let (queue, ours, wait_ms) = {
            let inner = self.lock();
            let ours = inner.books.occupied(name) + held(&inner.books, name, self.clock.now()).values().sum::<u64>();
            (inner.queues.iter().find(|q| q.name == name).cloned(), ours, inner.books.wait_ms(name, self.clock.now()))
        };
        match queue {
            Some(queue) => {
                let architecture = if queue.architecture.is_empty() { std::env::consts::ARCH.to_string() } else { queue.architecture.clone() };
                let (slots, memory_bytes, gpus) = (queue.machine_slots, queue.machine_memory_bytes, queue.machine_gpus);
                let capacity = Capacity { slots, memory_bytes, gpus, architecture };
                self.tell_queue(name, Input::Capacity(capacity));
                let offer = offer(&queue, ours, wait_ms, &self.config.limits);
                if self.config.limits.waiting_max.is_none() {
                    return self.tell_queue(name, Input::Offer(offer));
                }
                let mut guard = self.lock();
                let inner = &mut *guard;
                inner.handed.offer(&inner.books, &queue, offer, self.clock.now());
                inner.offer_again(name);
            }
            None => self.close(name, format!("{} has no queue {name:?}", self.lrms.name())),
        }
    }

    fn close(&self, name: &str, why: String) {
        self.lock().handed.close(name);
        // What waits for its turn to be handed on goes back.
        let handed_max = self.config.limits.waiting_max.map(|_| 0);
        self.tell_queue(name, Input::Offer(Offer { key: name.to_string(), closed: Some(why), handed_max, ..Offer::default() }));
    }

    /// The queues as the LRMS told of them last.
    pub fn queues(&self) -> Vec<Queue> {
        self.lock().queues.clone()
    }
}

/// What is offered of a queue in which our tasks occupy so many slots, or would if it had not given them up.
fn offer(queue: &Queue, ours: u64, wait_ms: Option<u64>, limits: &LrmsLimits) -> Offer {
    let ceiling = limits.ceiling(queue.slots_total);
    let bounded = limits.ceiling_percent < 100 || limits.slots_max.is_some();
    let most = ceiling.min(limits.slots_max.unwrap_or(u64::MAX));
    let bound = match limits.slots_max {
        Some(max) if max <= ceiling => format!("its site lets {max} slots of all its queues be used (slots_max)"),
        _ if limits.ceiling_percent < 100 => {
            format!("its site lets {ceiling} of its {} slots be used (ceiling_percent = {})", queue.slots_total, limits.ceiling_percent)
        }
        _ => String::new(),
    };
    let room = (ours + queue.slots_free).min(most);
    let slots_total = queue.slots_total.min(most);
    let (ahead, ahead_short) = limits.waiting(slots_total);
    Offer {
        key: queue.name.clone(),
        slots_total,
        machines: queue.machines,
        gpus_total: queue.gpus_total,
        nodes_max: queue.nodes_max,
        room,
        ahead,
        ahead_short,
        handed_max: None,
        largest_free: queue.largest_free,
        // Beyond a ceiling nothing may even wait: it would be started.
        window_max: if bounded { most } else { u64::MAX },
        bound,
        // By the machines that are out of order, too: they come back.
        task_slots_max: if bounded { limits.ceiling(queue.slots_all).min(limits.slots_max.unwrap_or(u64::MAX)).max(1) } else { 0 },
        waiting: queue.waiting,
        turnaround_ms: TURNAROUND_MS,
        closed: queue.closed.clone(),
        time_max_ms: queue.time_max_ms(limits),
        // Whoever waits behind nobody for what is free starts.
        wait_ms: if queue.slots_free > 0 && queue.waiting == 0 { Some(0) } else { wait_ms.map(roughly) },
    }
}

/// A time as it is told: it is no more exact than that, and what is told anew with each second is told to everybody above.
fn roughly(ms: u64) -> u64 {
    let steps = [0, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, 1_800].map(|s| s * 1_000);
    steps.into_iter().find(|step| *step >= ms).unwrap_or_else(|| ms.next_multiple_of(3_600_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ceiling_bounds_what_runs_and_what_waits() {
        let queue = Queue { name: "q".into(), slots_total: 100, slots_all: 200, slots_free: 60, ..Queue::default() };
        let mut limits = LrmsLimits::default();
        let all = offer(&queue, 15, None, &limits);
        assert_eq!((75, 4, u64::MAX, 100), (all.room, all.ahead, all.window_max, all.slots_total));
        // Half of the queue's slots where tasks are short, unless the site says how many.
        let ahead = |slots_total, waiting_max| {
            let few = Queue { slots_total, ..queue.clone() };
            let offer = offer(&few, 0, None, &LrmsLimits { waiting_max, ..limits });
            (offer.ahead, offer.ahead_short)
        };
        assert_eq!([(4, 46), (4, 0), (40, 0), (0, 0)], [ahead(100, None), ahead(6, None), ahead(12, Some(40)), ahead(100, Some(0))]);
        limits.ceiling_percent = 20;
        let part = offer(&queue, 15, None, &limits);
        assert_eq!((20, 20, 20), (part.room, part.window_max, part.slots_total));
        assert_eq!(("", "its site lets 20 of its 100 slots be used (ceiling_percent = 20)"), (all.bound.as_str(), part.bound.as_str()));
        // A task that fits when all machines are in order is not refused for ever.
        assert_eq!((0, 40), (all.task_slots_max, part.task_slots_max));
        (limits.slots_max, limits.time_max_ms) = (Some(7), Some(60_000));
        assert_eq!(7, offer(&queue, 0, None, &limits).task_slots_max);
        assert_eq!((None, Some(60_000)), (all.time_max_ms, offer(&queue, 0, None, &limits).time_max_ms));
        let short = Queue { time_max_ms: Some(30_000), ..queue.clone() };
        assert_eq!(Some(30_000), offer(&short, 0, None, &limits).time_max_ms);
        assert_eq!(Some(0), all.wait_ms);
        let crowded = Queue { waiting: 3, ..queue.clone() };
        let wait = |wait_ms| offer(&crowded, 0, wait_ms, &limits).wait_ms;
        assert_eq!((None, Some(0), Some(1_000), Some(300_000), Some(7_200_000)), {
            (wait(None), wait(Some(0)), wait(Some(7)), wait(Some(120_001)), wait(Some(3_600_001)))
        });
        let few = offer(&queue, 0, None, &limits);
        assert_eq!((7, 7, true), (few.room, few.window_max, few.bound.contains("7 slots of all its queues")));
    }

    #[test]
    fn a_queue_that_is_not_known_kills_no_sooner_than_others() {
        let queue = |name: &str, kill_wait_ms| Queue { name: name.into(), kill_wait_ms, ..Queue::default() };
        let all = [queue("a", Some(2_000)), queue("b", None), queue("c", Some(90_000)), queue("d", Some(u64::MAX))];
        assert_eq!([2_000, 90_000, KILL_WAIT_MAX_MS], ["a", "c", "d"].map(|name| kill_wait_ms(&all, name)));
        assert_eq!([90_000, 90_000], ["b", "gone"].map(|name| kill_wait_ms(&all[..3], name)));
        assert_eq!(KILL_WAIT_UNKNOWN_MS, kill_wait_ms(&all[..2], "b"));
    }
}
