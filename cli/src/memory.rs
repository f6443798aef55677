//! A site's freed memory goes back to the system. The C library keeps what lies between things that are still in use: a gateway whose 100,000 jobs were over
//! would keep the memory of them all for good. Looked at from a thread of its own, seldom; nothing waits for it.

use std::thread::{Builder, sleep};
use std::time::Duration;

use intergrid_agent_sys::memory::{free_bytes, give_back};

/// What is free is looked at this often.
const LOOK_INTERVAL_MS: u64 = 1_000;
/// Less than this is left to be used again.
const FREE_BYTES_MIN: usize = 4 << 20;
const STACK_BYTES: usize = 64 << 10;

/// What was free when it was given back last, less what was used again since.
#[derive(Default)]
struct Given(usize);

impl Given {
    /// Is so much free by now that it is worth giving back?
    fn falls_short_of(&mut self, free: usize) -> bool {
        self.0 = self.0.min(free);
        free - self.0 >= FREE_BYTES_MIN
    }
}

/// From now on.
pub fn keep_small() {
    let look = || {
        let mut given = Given::default();
        loop {
            sleep(Duration::from_millis(LOOK_INTERVAL_MS));
            if given.falls_short_of(free_bytes()) {
                give_back();
                given = Given(free_bytes());
            }
        }
    };
    if let Err(e) = Builder::new().name("memory".into()).stack_size(STACK_BYTES).spawn(look) {
        tracing::warn!("freed memory is kept: no thread to give it back: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_is_not_given_again() {
        let mut given = Given::default();
        assert!(!given.falls_short_of(FREE_BYTES_MIN - 1) && given.falls_short_of(FREE_BYTES_MIN));
        given = Given(3 * FREE_BYTES_MIN);
        assert!(!given.falls_short_of(3 * FREE_BYTES_MIN + 1));
        // Used again, and freed again.
        assert!(!given.falls_short_of(FREE_BYTES_MIN));
        assert!(given.falls_short_of(2 * FREE_BYTES_MIN));
    }
}
