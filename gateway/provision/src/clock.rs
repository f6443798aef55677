//! The provisioner's time: ms since 1970, and it never stands still. What is rented costs, whatever a clock says.

/// The wall clock, as long as that does not go back; then time goes on as the monotonic clock does, ahead of it, until the next start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// The wall clock less the monotonic one, at the most that it was.
    ahead_ms: u64,
}

impl Clock {
    /// Now, by both clocks. The wall clock is to be read first: a pause between the two would else put this one ahead for good.
    pub fn now_ms(&mut self, wall_ms: u64, mono_ms: u64) -> u64 {
        self.ahead_ms = self.ahead_ms.max(wall_ms.saturating_sub(mono_ms));
        self.ahead_ms + mono_ms
    }
}
