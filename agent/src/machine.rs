//! What this machine is: capacity, fingerprint, boot. Reads /proc and /etc, decides nothing.

use std::fs;

/// What it offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Cores, unless configured.
    pub slots: u32,
    /// All of its memory, unless configured.
    pub memory_bytes: u64,
    /// As `uname -m`.
    pub architecture: String,
}

/// What a queue of several machines offers, as somebody outside counts it; with it, the [`Capacity`] is that of the largest machine, and what is accepted
/// is handed on at once: who starts it has a queue of his own.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Offer {
    /// Key of the share.
    pub key: String,
    /// Slots of all machines.
    pub slots_total: u64,
    /// Machines.
    pub machines: u32,
    /// Slots that are ours or nobody's: what may be in use by us.
    pub room: u64,
    /// Slots that may wait there beyond the room.
    pub ahead: u64,
    /// Most free slots on one machine.
    pub largest_free: u32,
    /// Never more than this, whatever hides a turnaround.
    pub window_max: u64,
    /// Tasks of others that wait there.
    pub waiting: u64,
    /// From the end of a task to the start of the next, about: hidden by placing ahead.
    pub turnaround_ms: u64,
    /// Takes no new work: why.
    pub closed: Option<String>,
}

impl Capacity {
    /// As measured now; what is configured wins.
    pub fn measure(slots: Option<u32>, memory_bytes: Option<u64>) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
        Capacity {
            slots: slots.unwrap_or_else(cores),
            memory_bytes: memory_bytes.unwrap_or_else(memory),
            architecture: std::env::consts::ARCH.to_string(),
        }
    }
}

fn memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

/// Tells this machine from a clone of its disk, as far as a machine's id does; the same after a reboot.
pub fn fingerprint() -> Vec<u8> {
    let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let name = || fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let text = if id.trim().is_empty() { format!("host {}", name().trim()) } else { format!("machine {}", id.trim()) };
    blake3::hash(text.as_bytes()).as_bytes()[..16].to_vec()
}

/// Changes with each boot, so that a pid and its start time name one process for ever.
pub fn boot_id() -> Vec<u8> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    blake3::hash(text.trim().as_bytes()).as_bytes()[..16].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_something_to_offer() {
        let c = Capacity::measure(None, None);
        assert!(c.slots >= 1 && c.memory_bytes > 64 << 20 && !c.architecture.is_empty(), "{c:?}");
        let c = Capacity::measure(Some(3), Some(5));
        assert_eq!((3, 5), (c.slots, c.memory_bytes));
        assert_eq!((16, fingerprint()), (boot_id().len(), fingerprint()));
    }
}
