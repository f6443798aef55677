//! The provisioner's time: ms since 1970, and it never stands still. What is rented costs, whatever a clock says.

use crate::limits::STEP_MIN_MS;

/// The wall clock, as long as that does not go back; then time goes on as the monotonic clock does, ahead of it, until the next start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// The wall clock less the monotonic one, at the most that it was.
    ahead_ms: u64,
    /// As it was when that was told last.
    told_ms: u64,
}

impl Clock {
    /// Now, by both clocks. The wall clock is to be read first: a pause between the two would else put this one ahead for good.
    pub fn now_ms(&mut self, wall_ms: u64, mono_ms: u64) -> u64 {
        let ahead_ms = self.ahead_ms.max(wall_ms.saturating_sub(mono_ms));
        if self.ahead_ms == 0 {
            self.told_ms = ahead_ms;
        }
        self.ahead_ms = ahead_ms;
        ahead_ms + mono_ms
    }

    /// By how much it was set ahead since this was asked; None: it was not.
    pub fn stepped_ms(&mut self) -> Option<u64> {
        let by_ms = self.ahead_ms - self.told_ms;
        (by_ms >= STEP_MIN_MS).then(|| {
            self.told_ms = self.ahead_ms;
            by_ms
        })
    }
}
