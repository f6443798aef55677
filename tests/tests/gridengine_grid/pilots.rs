//! Agents as jobs of a real Grid Engine, which warns by signals, ends no group but the job's own, and forgets what is over.

use std::fs;

use crate::site::{PATIENCE, Site};
use crate::tree::until;

const PILOTS: &str = "[pilots]\nslots = 4\nmemory = \"128M\"\ntime = \"30m\"\npilots_max = 2\nidle = \"3s\"\n";

/// Jobs that are pilots: number, state and name.
fn jobs(site: &Site) -> Vec<String> {
    site.cluster.listed()
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
    // A short stop is no end.
    site.cluster.run("qmod", &["-sj", &number(&all[0])]);
    until("it is stopped", PATIENCE, || if jobs(&site).iter().any(|l| l.contains(" s ")) { Ok(()) } else { Err(format!("{:?}", jobs(&site))) });
    site.cluster.run("qmod", &["-usj", &number(&all[0])]);
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
