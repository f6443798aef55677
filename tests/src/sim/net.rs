//! A link as TCP makes it: within a session messages come whole and in order, each once; a cut loses the rest of a direction. Each end learns of the end of
//! a session in its own time, and a new one begins when both have. So a message is doubled only by being said again in a later session, and one of a
//! session that is over is never heard in the next, though an end may *say* in the next what it made up in the last.

use std::collections::VecDeque;

use intergrid_proto::link::{Down, Up};

use super::rng::Rng;

/// The lower end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lower {
    Site(usize),
    Leaf(usize),
}

/// A message on its way.
#[derive(Clone, Debug)]
pub enum Message {
    Up(Up),
    Down(Down),
}

/// One direction.
#[derive(Default)]
pub struct Wire {
    pub queue: VecDeque<Message>,
    last_ms: u64,
    /// Nothing more gets in.
    pub cut: bool,
}

/// A link and its session, if there is one.
pub struct Link {
    pub child: Lower,
    pub parent: usize,
    /// Counts sessions; 0: there was none.
    pub session: u64,
    /// Which ends take the session for alive.
    pub child_has: bool,
    pub parent_has: bool,
    /// The parent has heard the hello.
    pub greeted: bool,
    pub up: Wire,
    pub down: Wire,
    pub barred_until_ms: u64,
    pub slow_ms: u64,
    pub opening: bool,
    rng: Rng,
}

impl Link {
    pub fn new(child: Lower, parent: usize, rng: Rng) -> Self {
        let (up, down) = Default::default();
        Link {
            child,
            parent,
            session: 0,
            child_has: false,
            parent_has: false,
            greeted: false,
            up,
            down,
            barred_until_ms: 0,
            slow_ms: 0,
            opening: false,
            rng,
        }
    }

    /// Begin a session.
    pub fn open(&mut self) -> u64 {
        self.session += 1;
        (self.child_has, self.parent_has, self.greeted) = (true, true, false);
        (self.up, self.down) = Default::default();
        self.session
    }

    /// Put a message in; when it comes out. None: it is lost.
    pub fn send(&mut self, message: Message, now_ms: u64) -> Option<u64> {
        let delay = if self.rng.one_in(20) { self.rng.range(5, 120) } else { self.rng.range(0, 5) } + self.slow_ms;
        let wire = match &message {
            Message::Up(_) => &mut self.up,
            Message::Down(_) => &mut self.down,
        };
        if wire.cut {
            return None;
        }
        wire.queue.push_back(message);
        wire.last_ms = wire.last_ms.max(now_ms + delay);
        Some(wire.last_ms)
    }

    pub fn pause_ms(&mut self) -> u64 {
        self.rng.range(50, 400)
    }
}
