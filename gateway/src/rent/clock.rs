//! The provisioner's time, by the clocks of this machine.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use intergrid_provision::Clock;

/// From a start on: see [`Clock`].
pub struct Time {
    clock: Clock,
    began: Instant,
}

impl Time {
    /// It is the wall clock's.
    pub fn begin() -> Time {
        Time { clock: Clock::default(), began: Instant::now() }
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
