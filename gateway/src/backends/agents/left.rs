//! What an agent has left running. Tasks outlive their agent, for the next one to find; where there will be none, they are ended here.
//!
//! A process is a task's where it was started with a task's directory in its environment, or writes to a task's stream; all of its process group goes with
//! it. It asks /proc, and trusts no file for a pid. Processes of other accounts are not seen.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpgid, getpgrp, kill_process, kill_process_group};

use super::process::{STATE_DIR, pids};

/// What was killed has so long to be gone.
const GONE_WAIT_MS: u64 = 5_000;
/// So often it is looked at.
const LOOK_INTERVAL_MS: u64 = 25;
/// Of a task's environment: its directory.
const TASK_DIR: &[u8] = b"GRID_TASK_DIR=";
/// stdout, stderr.
const STREAMS: [u32; 2] = [1, 2];

/// Kill the tasks of agents that have ended, by their directories, until nothing of them runs. Gives the directories where something still does.
/// Blocking, for no longer than `GONE_WAIT_MS`.
pub fn end_tasks(agents: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    // As an agent names it to its tasks, and the kernel all files. One without a state has run nothing.
    let states: Vec<(PathBuf, &PathBuf)> = agents.iter().filter_map(|dir| Some((dir.join(STATE_DIR).canonicalize().ok()?, dir))).collect();
    if states.is_empty() {
        return BTreeSet::new();
    }
    let deadline = Instant::now() + Duration::from_millis(GONE_WAIT_MS);
    loop {
        let mut left = BTreeSet::new();
        for pid in pids() {
            let places = places(pid);
            if let Some((_, dir)) = states.iter().find(|(state, _)| places.iter().any(|p| p.starts_with(state))) {
                left.insert((*dir).clone());
                kill(pid);
            }
        }
        if left.is_empty() {
            return left;
        }
        if Instant::now() >= deadline {
            tracing::warn!("tasks below {left:?} were killed and are still there: does a file system hang that they use?");
            return left;
        }
        sleep(Duration::from_millis(LOOK_INTERVAL_MS));
    }
}

/// What says whose a process is. A zombie has none of it.
fn places(pid: Pid) -> Vec<PathBuf> {
    let proc = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    let environ = fs::read(proc.join("environ")).unwrap_or_default();
    let directory = environ.split(|b| *b == 0).find_map(|v| v.strip_prefix(TASK_DIR)).map(|dir| PathBuf::from(OsStr::from_bytes(dir)));
    directory.into_iter().chain(STREAMS.iter().filter_map(|n| fs::read_link(proc.join(format!("fd/{n}"))).ok())).collect()
}

/// With its group, which is never ours, nor that of process 1: its number stands for all processes.
fn kill(pid: Pid) {
    _ = match getpgid(Some(pid)) {
        Ok(group) if group != getpgrp() && !group.is_init() => kill_process_group(group, Signal::KILL),
        _ => kill_process(pid, Signal::KILL),
    };
}
