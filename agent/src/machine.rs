//! What this machine is: capacity, fingerprint, boot. Reads /proc and /etc, decides nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use intergrid_proto::limits::GPUS_PER_MACHINE_MAX;
use intergrid_proto::share::Machine;

/// What it offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Cores, unless configured.
    pub slots: u32,
    /// All of its memory, unless configured.
    pub memory_bytes: u64,
    /// GPUs, unless configured those that it can see.
    pub gpus: u32,
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
    /// GPUs of all machines.
    pub gpus_total: u64,
    /// Most machines of one task; 0: one.
    pub nodes_max: u32,
    /// Slots that are ours or nobody's: what may be in use by us.
    pub room: u64,
    /// Slots that may wait there beyond the room.
    pub ahead: u64,
    /// And more of them where tasks end fast: at most.
    pub ahead_short: u64,
    /// Most free slots on one machine.
    pub largest_free: u32,
    /// Slots of tasks that are handed on at a time and have not ended; what is accepted beyond waits here. None: not limited.
    pub handed_max: Option<u64>,
    /// Never more than this, whatever hides a turnaround.
    pub window_max: u64,
    /// Which limit of the site makes it so little, in words; empty: none.
    pub bound: String,
    /// Most slots that one task can ever have by such a limit, also when all machines are in order; 0: not limited.
    pub task_slots_max: u64,
    /// Tasks of others that wait there.
    pub waiting: u64,
    /// From the end of a task to the start of the next, about: hidden by placing ahead, within the bounds of that.
    pub turnaround_ms: u64,
    /// Takes no new work: why.
    pub closed: Option<String>,
    /// The longest that a task may ask for; None: not limited.
    pub time_max_ms: Option<u64>,
    /// About how long a task waits there before it starts; None: not known.
    pub wait_ms: Option<u64>,
}

impl Capacity {
    /// What tasks share of it.
    pub fn machine(&self) -> Machine {
        Machine { slots: self.slots, memory_bytes: self.memory_bytes, gpus: self.gpus }
    }

    /// As measured now; what is configured wins.
    pub fn measure(slots: Option<u32>, memory_bytes: Option<u64>, gpus: usize) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
        Capacity {
            slots: slots.unwrap_or_else(cores),
            memory_bytes: memory_bytes.unwrap_or_else(memory),
            gpus: u32::try_from(gpus).unwrap_or(u32::MAX),
            architecture: std::env::consts::ARCH.to_string(),
        }
    }
}

/// The names of its GPUs, as CUDA_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES have them: those that are left to this process where somebody says so (a batch
/// system does), else as many as the kernel has NVIDIA devices, counted from 0. `configured`: so many of these, or so many that are counted from 0.
pub fn gpus(configured: Option<u32>, visible: Option<&str>, devices: &Path) -> Vec<String> {
    let number = |name: &str| name.strip_prefix("nvidia")?.parse::<u32>().ok();
    let mut names: Vec<String> = match (visible, configured) {
        (Some(list), _) => {
            // What names none, as `NoDevFiles` or -1, ends the list.
            let is_name = |n: &&str| n.starts_with("GPU-") || n.starts_with("MIG-") || n.parse::<u32>().is_ok();
            let mut seen = BTreeSet::new();
            list.split(',').map(str::trim).take_while(is_name).filter(|name| seen.insert(*name)).map(String::from).collect()
        }
        (None, Some(n)) => (0..n).map(|i| i.to_string()).collect(),
        (None, None) => {
            let found = fs::read_dir(devices).into_iter().flatten().flatten();
            // Their numbers are the kernel's, not those that a process counts by.
            let found = found.filter(|e| e.file_name().to_str().and_then(number).is_some()).count();
            (0..found).map(|i| i.to_string()).collect()
        }
    };
    names.truncate(configured.unwrap_or(GPUS_PER_MACHINE_MAX) as usize);
    names
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
        let c = Capacity::measure(None, None, 0);
        assert!(c.slots >= 1 && c.memory_bytes > 64 << 20 && !c.architecture.is_empty(), "{c:?}");
        let c = Capacity::measure(Some(3), Some(5), 2);
        assert_eq!((3, 5, 2), (c.slots, c.memory_bytes, c.gpus));
        assert_eq!((16, fingerprint()), (boot_id().len(), fingerprint()));
    }

    #[test]
    fn gpus_are_found_or_told() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "null"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let gpus = |configured, visible| gpus(configured, visible, dir.path()).join(",");
        assert_eq!(("0,1,2".into(), "0,2".into()), (gpus(None, None), gpus(Some(3), Some("0,2"))));
        assert_eq!(("", "", "3,1"), (&*gpus(Some(1), Some("NoDevFiles")), &*gpus(None, Some("-1,0")), &*gpus(None, Some("3,1,3"))));
        assert_eq!(("0,1,2,3", "", ""), (&*gpus(Some(4), None), &*gpus(None, Some("")), &*gpus(Some(0), None)));
        assert_eq!("GPU-5a,GPU-7b", gpus(Some(2), Some("GPU-5a, GPU-7b,GPU-9c")));
    }
}
