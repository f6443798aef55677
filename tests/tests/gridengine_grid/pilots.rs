//! Agents as jobs of a real Grid Engine, which warns by signals, ends no group but the job's own, and forgets what is over.

use std::fs;
use std::path::Path;

use crate::site::{PATIENCE, Site};
use crate::tree::until;

const PILOTS: &str = "[pilots]\nslots = 4\nmemory = \"128M\"\ntime = \"30m\"\npilots_max = 2\nidle = \"3s\"\n";

/// Jobs that are pilots: number, state and name.
fn jobs(site: &Site) -> Vec<String> {
    site.cluster.listed()
}

/// What the kernel says of the agent that this job runs: `T` is stopped. None: there is none.
fn agent_state(site: &Site, job: &str) -> Option<char> {
    let root = site.cluster.dir().to_str().unwrap();
    let (job, root) = (format!("JOB_ID={job}"), format!("SGE_ROOT={root}/"));
    let ours = |process: &Path| {
        let environ = fs::read(process.join("environ")).unwrap_or_default();
        let is_there = |is: &dyn Fn(&[u8]) -> bool| environ.split(|b| *b == 0).any(is);
        let program = fs::read(process.join("cmdline")).unwrap_or_default();
        let is_agent = program.split(|b| *b == 0).next().is_some_and(|p| p.ends_with(b"grid-agent"));
        is_agent && is_there(&|word| word == job.as_bytes()) && is_there(&|word| word.starts_with(root.as_bytes()))
    };
    let process = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).find(|p| ours(p))?;
    // Its name, in brackets, may hold anything.
    fs::read_to_string(process.join("stat")).ok()?.rsplit(") ").next()?.chars().next()
}

#[test]
fn a_pilot_that_is_stopped_for_a_while_or_removed_leaves_nothing_running() {
    let site = Site::piloted(PILOTS);
    let user = site.user("ann");
    // A second start of a task while its first one runs is seen by the lock.
    let odd = site.cluster.dir().join("starts.odd");
    let script = format!("exec 9>>{0}.$GRID_TASK_ID; flock -n 9 || echo $GRID_TASK_ID >>{0}; {1}", odd.display(), site.starts.counted("sleep 8"));
    let job = user.submit(&["-n", "8", "--", "sh", "-c", &script]);
    user.until_phase(&job, "running", 8);
    let all = jobs(&site);
    assert_eq!(2, all.len(), "{all:?}");
    let number = |line: &str| line.split(' ').next().unwrap().split('.').next().unwrap().to_string();
    // A short stop is no end. Listed as stopped is what the master has asked for; the machine stops it the queue's `notify` later, and may do so although
    // the master has called the stop off before that: seen once, a job in state `r` whose processes stood still for good.
    let stopped = number(&all[0]);
    site.cluster.run("qmod", &["-sj", &stopped]);
    until("its agent stands still", PATIENCE, || if agent_state(&site, &stopped) == Some('T') { Ok(()) } else { Err(format!("{:?}", jobs(&site))) });
    site.cluster.run("qmod", &["-usj", &stopped]);
    until("its agent goes on", PATIENCE, || if agent_state(&site, &stopped) == Some('S') { Ok(()) } else { Err(format!("{:?}", jobs(&site))) });
    site.cluster.run("qdel", &[&number(&all[1])]);
    assert_eq!(0, user.run(&["wait", "--timeout", "150s", &job]).code, "{}\n{}", user.run(&["explain", &job]).out, site.tree.log("campus"));
    let starts = site.starts.of_each();
    assert_eq!((8, 12), (starts.len(), starts.values().map(Vec::len).sum::<usize>()), "the four of that pilot once more: {starts:?}");
    assert!(!odd.exists(), "two at a time: {:?}", fs::read_to_string(&odd));
    site.until_gone();
    // Their places are free again: what is over is not listed, and is known to be over.
    let again = user.submit(&["-n", "8", "--", "true"]);
    assert_eq!(0, user.run(&["wait", "--timeout", "60s", &again]).code, "{}\n{}", user.run(&["explain", &again]).out, site.tree.log("campus"));
    site.until_gone();
}
