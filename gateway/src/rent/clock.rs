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
        let (now, lead_ms) = self.read();
        p.leads_by(lead_ms);
        if let Some(by_ms) = self.clock.stepped_ms() {
            tracing::warn!(by_s = by_ms / 1_000, "the clock was set ahead");
            p.step(Input::Stepped(by_ms), now);
        }
        p.step(input, now);
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&mut self) -> u64 {
        self.read().0
    }

    /// Now, and how far that is ahead of the wall clock.
    fn read(&mut self) -> (u64, u64) {
        let wall_ms = wall_ms();
        let now = self.clock.now_ms(wall_ms, self.began.elapsed().as_millis() as u64);
        (now, now.saturating_sub(wall_ms))
    }
}

/// What the wall clock says: milliseconds since 1970.
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_time_is_ahead_of_a_wall_clock_that_was_set_back_is_known() {
        const HOURS_MS: u64 = 3 * 3_600_000;
        let mut time = Time::begin();
        assert!(time.read().1 < 60_000);
        time.clock.now_ms(wall_ms() + HOURS_MS, time.began.elapsed().as_millis() as u64);
        let (now, lead_ms) = time.read();
        assert!(lead_ms.abs_diff(HOURS_MS) < 60_000 && now.abs_diff(wall_ms() + HOURS_MS) < 60_000, "{lead_ms}");
    }
}
