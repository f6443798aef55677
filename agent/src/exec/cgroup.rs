//! A memory cgroup per task, below one that is delegated to the agent: version 2, or the memory controller of version 1, by writing its files.
//!
//! In version 1 the thread that starts a process enters the cgroup first, and the process is born in it. In version 2 a thread can't: the process enters
//! right after it was started, and what it allocated before is counted above. Where a step fails the task runs on and is sampled instead. Both versions are
//! tested on real kernels (`tests/cgroup.rs`), as root; below a delegated cgroup of systemd they were not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use intergrid_proto::{Refusal, RefusalKind};

use crate::core::Key;

/// The delegated cgroup.
#[derive(Clone, Debug)]
pub struct Cgroup {
    root: PathBuf,
    unified: bool,
}

/// What a task's cgroup says at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// Peak, with all of its processes.
    pub peak_bytes: u64,
    /// The kernel killed something in it.
    pub oom: bool,
}

impl Cgroup {
    /// Use this one, which must exist and be ours to write to.
    pub fn open(root: &Path) -> Result<Self, Refusal> {
        let unified = root.join("cgroup.controllers").exists();
        let usable = match unified {
            true => has_memory(root).and_then(|()| fs::write(root.join("cgroup.subtree_control"), "+memory")),
            false => fs::metadata(root.join("memory.limit_in_bytes")).map(|_| ()),
        };
        let probe = usable.and_then(|()| {
            let probe = root.join("probe");
            fs::create_dir(&probe)?;
            fs::remove_dir(&probe)
        });
        let refused = |e| {
            Refusal::new(RefusalKind::Invalid, format!("cgroup {}: not usable as a memory cgroup: {e}", root.display()))
                .remedy("delegate one to the agent (systemd: Delegate=memory), or leave `cgroup` out: memory is then sampled")
        };
        probe.map(|()| Cgroup { root: root.into(), unified }).map_err(refused)
    }

    fn of(&self, key: Key) -> PathBuf {
        self.root.join(format!("task-{}-{}", key.0, key.1))
    }

    /// Start the process of a task in a cgroup of its own; 0 bytes: no limit.
    pub fn start<E>(&self, key: Key, limit_bytes: u64, start: impl FnOnce() -> Result<i32, E>) -> Result<i32, E> {
        let dir = self.of(key);
        let failed = |e: io::Error| {
            tracing::warn!("cgroup {}: {e}; the task's memory is sampled", dir.display());
            let _ = fs::remove_dir(&dir);
        };
        if let Err(e) = self.make(&dir, limit_bytes) {
            failed(e);
            return start();
        }
        // In `tasks`, 0 is the thread that writes.
        let entered = if self.unified { Ok(()) } else { fs::write(dir.join("tasks"), "0") };
        let started = start();
        let left = if self.unified { Ok(()) } else { fs::write(self.root.join("tasks"), "0") };
        let moved = match &started {
            Ok(pid) if self.unified => fs::write(dir.join("cgroup.procs"), pid.to_string()),
            _ => Ok(()),
        };
        entered.and(left).and(moved).unwrap_or_else(failed);
        if started.is_err() {
            let _ = fs::remove_dir(&dir);
        }
        started
    }

    fn make(&self, dir: &Path, limit_bytes: u64) -> io::Result<()> {
        fs::create_dir(dir)?;
        let put = |file: &str, text: &str| fs::write(dir.join(file), text);
        match (limit_bytes, self.unified) {
            (0, _) => Ok(()),
            (n, true) => {
                // Absent where swap is not accounted.
                let _ = put("memory.swap.max", "0");
                let _ = put("memory.oom.group", "1");
                put("memory.max", &n.to_string())
            }
            (n, false) => put("memory.limit_in_bytes", &n.to_string()),
        }
    }

    /// Has this task a cgroup?
    pub fn holds(&self, key: Key) -> bool {
        self.of(key).exists()
    }

    /// What it used; its cgroup is removed.
    pub fn leave(&self, key: Key) -> Option<Use> {
        let dir = self.of(key);
        let number = |file: &str| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
        let peak = number(if self.unified { "memory.peak" } else { "memory.max_usage_in_bytes" });
        let (file, word) = if self.unified { ("memory.events", "oom_kill ") } else { ("memory.oom_control", "oom_kill ") };
        let events = fs::read_to_string(dir.join(file)).unwrap_or_default();
        let oom = events.lines().find_map(|l| l.strip_prefix(word)).is_some_and(|n| n.trim() != "0");
        let _ = fs::remove_dir(&dir);
        // Zero: it was gone before it could enter.
        peak.filter(|n| *n > 0).map(|peak_bytes| Use { peak_bytes, oom })
    }
}

/// A kernel that has its memory controller in version 1, or a parent that does not pass it on, leaves it out.
fn has_memory(root: &Path) -> io::Result<()> {
    let here = fs::read_to_string(root.join("cgroup.controllers"))?;
    match here.split_whitespace().any(|c| c == "memory") {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::Unsupported, format!("the memory controller is not here; there are: {}", here.trim()))),
    }
}
