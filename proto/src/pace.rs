//! How fast a queue moves, a period at a time.

/// What has left a queue since the period began: tasks or slots, as the caller counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Pace {
    since_ms: u64,
    left: u64,
}

impl Pace {
    /// A period begins.
    pub fn new(now: u64) -> Pace {
        Pace { since_ms: now, left: 0 }
    }

    /// So much has left the queue.
    pub fn leaves(&mut self, n: u64) {
        self.left = self.left.saturating_add(n);
    }

    /// So much has come back to it.
    pub fn returns(&mut self, n: u64) {
        self.left = self.left.saturating_sub(n);
    }

    /// How much left in a period that was at least `period_ms` long, as if it had been just that; a new one begins. None: it still lasts.
    pub fn take(&mut self, now: u64, period_ms: u64) -> Option<u64> {
        let passed = now.saturating_sub(self.since_ms);
        if passed < period_ms.max(1) {
            return None;
        }
        let left = self.left.saturating_mul(period_ms) / passed;
        *self = Pace::new(now);
        Some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_that_lasted_longer_counts_as_one_of_its_length() {
        let mut pace = Pace::new(1_000);
        pace.leaves(3);
        pace.leaves(6);
        assert_eq!(None, pace.take(2_999, 2_000));
        assert_eq!((Some(9), None), (pace.take(3_000, 2_000), pace.take(3_001, 2_000)));
        pace.leaves(12);
        pace.returns(3);
        assert_eq!((Some(3), Some(0)), (pace.take(9_000, 2_000), pace.take(11_000, 2_000)));
    }
}
