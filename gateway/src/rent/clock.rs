//! The provisioner's time, by the clocks of this machine.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use intergrid_provision::{Clock, Input, Provisioner};

/// From a start on: see [`Clock`].
pub struct Time {
    clock: Clock,
    began: Instant,
}

impl Time {
    /// It is the wall clock's.
    pub fn begin() -> Time {
        let mut time = Time { clock: Clock::default(), began: Instant::now() };
        time.now_ms();
        time
    }

    /// Something happened now; before that, the clock may have been set.
    pub fn step(&mut self, p: &mut Provisioner, input: Input) {
        let now = self.now_ms();
        if let Some(by_ms) = self.clock.stepped_ms() {
            tracing::warn!(by_s = by_ms / 1_000, "the clock was set ahead");
            p.step(Input::Stepped(by_ms), now);
        }
        p.step(input, now);
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&mut self) -> u64 {
        let wall_ms = wall_ms();
        self.clock.now_ms(wall_ms, self.began.elapsed().as_millis() as u64)
    }
}

/// What the wall clock says: milliseconds since 1970.
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
