//! What the LRMS has given up without having seen its end, and may still run: until its own record is there, or it would have been killed, it runs as far as
//! anybody above knows, so that nothing starts beside it.

use super::{Driver, Inner};
use crate::books::Watch;
use crate::limits::{KILL_MARGIN_MS, KILL_WAIT_MAX_MS, KILL_WAIT_UNKNOWN_MS};
use crate::lrms::Queue;
use crate::verdict::may_live;

/// How long a payload that is to end lives at most in this queue.
fn kill_wait_ms(queues: &[Queue], name: &str) -> u64 {
    let known = queues.iter().find(|q| q.name == name).and_then(|q| q.kill_wait_ms);
    // Of a queue that is gone: as long as anywhere.
    let longest = || queues.iter().filter_map(|q| q.kill_wait_ms).fold(KILL_WAIT_UNKNOWN_MS, u64::max);
    known.unwrap_or_else(longest).min(KILL_WAIT_MAX_MS)
}

/// Is it given up, and may still run?
fn is_given_up(w: &Watch) -> bool {
    !w.over && w.started && w.record_ms.is_none() && w.gone_ms.is_some() && w.verdict.as_ref().is_some_and(|(over, _)| may_live(over))
}

impl Inner {
    /// See [`kill_wait_ms`].
    pub(super) fn kill_wait_ms(&self, queue: &str) -> u64 {
        kill_wait_ms(&self.queues, queue)
    }
}

impl Driver {
    /// Tasks of a queue that the LRMS has given up, and that may still run: how many, and how long they are waited for.
    pub fn given_up(&self, queue: &str, is_asked: impl Fn(u64, u32) -> bool) -> Option<(u64, u64)> {
        let inner = self.lock();
        let of = |s: &crate::books::Sub| {
            let tasks = (1..).zip(&s.intent.tasks);
            tasks.filter(|(position, (number, index))| s.tasks.get(position).is_some_and(is_given_up) && is_asked(*number, *index)).count() as u64
        };
        let tasks: u64 = inner.books.subs().filter(|s| s.intent.queue == queue).map(of).sum();
        (tasks > 0).then(|| (tasks, inner.kill_wait_ms(queue) + KILL_MARGIN_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_is_not_known_kills_no_sooner_than_others() {
        let queue = |name: &str, kill_wait_ms| Queue { name: name.into(), kill_wait_ms, ..Queue::default() };
        let all = [queue("a", Some(2_000)), queue("b", None), queue("c", Some(90_000)), queue("d", Some(u64::MAX))];
        assert_eq!([2_000, 90_000, KILL_WAIT_MAX_MS], ["a", "c", "d"].map(|name| kill_wait_ms(&all, name)));
        assert_eq!([90_000, 90_000], ["b", "gone"].map(|name| kill_wait_ms(&all[..3], name)));
        assert_eq!(KILL_WAIT_UNKNOWN_MS, kill_wait_ms(&all[..2], "b"));
    }
}
