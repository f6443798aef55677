//! What an agent has left running. Tasks outlive their agent, for the next one to find; where there will be none, they are ended here.
//!
//! A process is a task's where its agent has recorded it, or it was started with a task's directory in its environment, or writes to a task's stream; all of
//! its process group goes with it. A recorded pid counts only where that very process is there: of this boot, and with the start time that was recorded.
//! Processes of other accounts are not seen, but those that are recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use intergrid_agent::exec::proc;
use intergrid_agent::left::recorded;
use intergrid_agent::spool::record::Started;
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
    let recorded: Vec<(Started, &PathBuf)> = states.iter().flat_map(|(state, dir)| firsts(state).into_iter().map(|s| (s, *dir))).collect();
    // Seen with their first process: from then on the number is theirs as long as anything of them lives.
    let mut groups: BTreeMap<i32, &PathBuf> = BTreeMap::new();
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
        groups.extend(recorded.iter().filter(|(s, _)| proc::began(s.pid, s.ticks).is_some()).map(|(s, dir)| (s.pid, *dir)));
        if !groups.is_empty() {
            let living: BTreeSet<i32> = proc::all().filter(|s| !s.zombie).map(|s| s.group).collect();
            groups.retain(|group, _| living.contains(group));
            left.extend(groups.values().map(|dir| (*dir).clone()));
            groups.keys().filter_map(|group| Pid::from_raw(*group)).for_each(|group| _ = kill_process_group(group, Signal::KILL));
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

/// What an agent has recorded of its tasks' processes.
fn firsts(state: &Path) -> Vec<Started> {
    recorded(state).unwrap_or_else(|why| {
        tracing::warn!("which processes its tasks had is not known: {why}; those are ended that show it themselves");
        Vec::new()
    })
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use intergrid_agent::machine::boot_id;
    use intergrid_agent::spool::Spool;
    use intergrid_agent::spool::record::{Claimed, Placed, Record, What};
    use intergrid_proto::convert::tasks_out;
    use intergrid_proto::{BlobHash, TaskSet};

    use super::*;

    /// Two processes in a group of their own that show nothing of a task. They end with it.
    struct Payload(Child);

    impl Payload {
        fn start() -> Self {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", "/bin/sleep 60 & wait"]).env_clear().process_group(0);
            Payload(shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
        }

        fn pid(&self) -> Pid {
            Pid::from_child(&self.0)
        }
    }

    impl Drop for Payload {
        fn drop(&mut self) {
            // Not reaped before, so that the number is its own.
            _ = kill_process_group(self.pid(), Signal::KILL);
            _ = self.0.wait();
        }
    }

    /// An agent's directory, with a task that has this process.
    fn record(agent: &Path, boot: Vec<u8>, pid: i32, ticks: u64) {
        let (mut spool, _) = Spool::open(&agent.join(STATE_DIR)).unwrap();
        let tasks = Some(tasks_out(&TaskSet::one(0)));
        let spec_hash = BlobHash::of(b"spec").0.to_vec();
        let placed = Placed { number: 1, job: 1, spec_hash, open: tasks.clone(), array_size: 1, ..Placed::default() };
        let claimed = Claimed { number: 1, tasks, boot };
        let started = Started { number: 1, task: 0, pid, ticks, at_ms: 1 };
        let all = [What::Spec(b"spec".to_vec()), What::Placed(placed), What::Claimed(claimed), What::Started(started)];
        spool.replace(all.map(|what| Record { what: Some(what) }).to_vec()).unwrap();
    }

    #[test]
    fn a_recorded_process_goes_with_its_group_and_a_later_one_of_its_pid_stays() {
        let dir = tempfile::tempdir().unwrap();
        let agents = BTreeSet::from([dir.path().to_path_buf()]);
        let payload = Payload::start();
        let pid = payload.pid().as_raw_nonzero().get();
        let ticks = proc::stat(pid).unwrap().ticks;
        for (boot, ticks, is_its) in [(boot_id(), ticks - 1, false), (vec![0; 16], ticks, false), (boot_id(), ticks, true)] {
            record(dir.path(), boot, pid, ticks);
            assert!(end_tasks(&agents).is_empty());
            assert_eq!(!is_its, proc::group_lives(pid));
        }
    }
}
