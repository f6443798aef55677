//! What peers have said and the engine has not looked at yet: so much is taken at once, and looked at for so long, before others are heard.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

/// Messages of children, and of parents, that are taken at once; and how long they are looked at before others are heard.
pub const INPUTS_AT_ONCE: usize = 256;
/// See [`INPUTS_AT_ONCE`].
const SLICE: Duration = Duration::from_millis(10);

/// What peers have said and the engine has not looked at yet, in order.
pub struct Heard<T> {
    fresh: Vec<T>,
    waiting: VecDeque<T>,
}

impl<T> Default for Heard<T> {
    fn default() -> Self {
        Heard { fresh: Vec::new(), waiting: VecDeque::new() }
    }
}

impl<T> Heard<T> {
    /// Is there nothing to look at?
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Waits for some, at most `room` of them: how many have come, 0 when nobody is left who could say anything.
    pub async fn some(&mut self, from: &mut mpsc::Receiver<T>, room: usize) -> usize {
        from.recv_many(&mut self.fresh, room.min(INPUTS_AT_ONCE)).await
    }

    /// Where there is nothing left: what has come meanwhile.
    pub fn more(&mut self, from: &mut mpsc::Receiver<T>) -> usize {
        let mut n = 0;
        while self.waiting.is_empty()
            && self.fresh.len() < INPUTS_AT_ONCE
            && let Ok(t) = from.try_recv()
        {
            self.fresh.push(t);
            n += 1;
        }
        n
    }

    /// Look at some of it.
    pub fn for_a_while(&mut self, mut f: impl FnMut(T)) {
        self.waiting.extend(self.fresh.drain(..));
        let began = Instant::now();
        while let Some(t) = self.waiting.pop_front() {
            f(t);
            if began.elapsed() >= SLICE {
                return;
            }
        }
    }
}
