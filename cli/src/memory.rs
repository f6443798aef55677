//! A site's freed memory goes back to the system. The C library keeps what lies between things that are still in use: a gateway whose 100,000 jobs were over
//! would keep the memory of them all for good. So does the part of the program that only a start, or the work that is over, has needed: most of what an idle
//! site has in memory. Looked at from a thread of its own, seldom; nothing waits for it.

use std::thread::{Builder, sleep};
use std::time::Duration;

use intergrid_agent_sys::memory::{forget_programs, free_bytes, give_back};

/// What is free is looked at this often.
const LOOK_INTERVAL_MS: u64 = 1_000;
/// Less than this is left to be used again.
const FREE_BYTES_MIN: usize = 4 << 20;
const STACK_BYTES: usize = 64 << 10;

/// Bytes.
#[derive(Clone, Copy, Default)]
struct Memory {
    /// Free in the C library, whether the system has the pages or not.
    free: usize,
    /// Resident, and not a file's; 0: the system does not say.
    resident: usize,
}

impl Memory {
    fn now() -> Memory {
        let kib = std::fs::read_to_string("/proc/self/status").ok().as_deref().and_then(resident_kib).unwrap_or(0);
        Memory { free: free_bytes(), resident: kib << 10 }
    }
}

/// From what the system says of a process.
fn resident_kib(status: &str) -> Option<usize> {
    status.lines().find_map(|l| l.strip_prefix("RssAnon:"))?.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// The least of both since it was given back last.
#[derive(Default)]
struct Given(Memory);

impl Given {
    /// Is so much free by now that it is worth giving back? What was given back and used again for a moment is as free as it was, and resident again.
    fn falls_short_of(&mut self, now: Memory) -> bool {
        self.0 = Memory { free: self.0.free.min(now.free), resident: self.0.resident.min(now.resident) };
        let (freed, came) = (now.free - self.0.free, now.resident - self.0.resident);
        freed >= FREE_BYTES_MIN || came.min(now.free) >= FREE_BYTES_MIN
    }
}

/// From now on.
pub fn keep_small() {
    let look = || {
        let (mut given, mut is_new) = (Given::default(), true);
        loop {
            sleep(Duration::from_millis(LOOK_INTERVAL_MS));
            let falls_short = given.falls_short_of(Memory::now());
            if falls_short {
                give_back();
                given = Given(Memory::now());
            }
            if falls_short || is_new {
                forget_programs();
                is_new = false;
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

    const MIN: usize = FREE_BYTES_MIN;

    fn memory(free: usize, resident: usize) -> Memory {
        Memory { free, resident }
    }

    #[test]
    fn what_was_given_back_is_not_given_again() {
        let mut given = Given::default();
        assert!(!given.falls_short_of(memory(MIN - 1, 0)) && given.falls_short_of(memory(MIN, 0)));
        given = Given(memory(3 * MIN, 0));
        assert!(!given.falls_short_of(memory(3 * MIN + 1, 0)));
        // Used again, and freed again.
        assert!(!given.falls_short_of(memory(MIN, 0)));
        assert!(given.falls_short_of(memory(2 * MIN, 0)));
    }

    #[test]
    fn what_was_used_for_a_moment_is_given_back_too() {
        let mut given = Given(memory(30 * MIN, 10 * MIN));
        assert!(!given.falls_short_of(memory(30 * MIN, 11 * MIN - 1)) && given.falls_short_of(memory(30 * MIN, 11 * MIN)));
        // What is resident and in use can't be given back.
        given = Given(memory(MIN - 1, 10 * MIN));
        assert!(!given.falls_short_of(memory(MIN - 1, 30 * MIN)));
        // It is the least since then that counts.
        given = Given(memory(30 * MIN, 10 * MIN));
        assert!(!given.falls_short_of(memory(30 * MIN, 8 * MIN)) && given.falls_short_of(memory(30 * MIN, 9 * MIN)));
    }

    #[test]
    fn the_system_says_what_is_resident() {
        assert_eq!(Some(1_234), resident_kib("VmRSS:\t    5678 kB\nRssAnon:\t    1234 kB\nRssFile:\t    4444 kB\n"));
        assert_eq!(None, resident_kib("VmRSS:\t    5678 kB\n"));
        let all: Vec<u8> = std::hint::black_box(vec![1; 8 * MIN]);
        let now = Memory::now();
        assert!(now.resident >= all.len(), "{} bytes", now.resident);
    }
}
