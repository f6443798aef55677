//! Commands that hang, and what is done to our jobs in Slurm while nobody looks.

use intergrid_tests::slurm::ACCOUNTS;

use crate::limits::last_attempt;
use crate::site::{PATIENCE, Site};
use crate::tree::until;

#[test]
fn commands_that_hang_lose_and_double_nothing() {
    let site = Site::start();
    let ann = site.user("ann");
    // It does nothing, then it does it and does not answer: each once, and each is killed in its time.
    let shared = site.cluster.dir().join("shared");
    let (first, second) = (shared.join("first"), shared.join("second"));
    let once = |file: &std::path::Path| format!("[ -e {0} ] || {{ touch {0}; ", file.display());
    let script = format!(
        "{}exec sleep 600; }}; {}/usr/bin/sbatch \"$@\" > /dev/null; exec sleep 600; }}; exec /usr/bin/sbatch \"$@\"",
        once(&first),
        once(&second)
    );
    site.command("sbatch", &script);
    let job = ann.submit(&["-n", "6", "--no-requeue", "--", "sh", "-c", &site.counted("true")]);
    assert_eq!(0, ann.run(&["wait", "--timeout", "200s", &job]).code, "{}", ann.run(&["explain", &job]).out);
    site.assert_each_started_once(6);
    assert!(first.exists() && second.exists());
    // How tasks end is known without Slurm.
    for name in ["squeue", "sinfo"] {
        site.command(name, "exec sleep 600");
    }
    let words = format!("GRID_TASK_ID=$((GRID_TASK_ID + 6)); {}", site.counted("exit 3"));
    let next = ann.submit(&["-n", "2", "--", "sh", "-c", &words]);
    assert_eq!(1, ann.wait(&next));
    assert_eq!(2, ann.in_phase(&next, "failed"));
    site.assert_each_started_once(8);
}

/// What has not started may start elsewhere, whoever keeps it from that here, and whether he leaves a word or not.
#[test]
fn what_waits_and_is_removed_or_can_never_start_is_placed_again() {
    let site = Site::start();
    let ann = site.user("ann");
    let fails = site.cluster.submit(ACCOUNTS[2], &[], "exit 1");
    let blocker = site.block();
    let job = ann.submit(&["--", "sh", "-c", &site.counted("true")]);
    let waits = site.until_ours("PD").remove(0);
    site.cluster.run("scancel", &[&waits]);
    site.tree.user("campus").until_returned(&["start-failed", "somebody removed it from slurm before it started"]);
    let again = until("it waits again", PATIENCE, || {
        let ours = site.until_ours("PD");
        ours.iter().find(|id| **id != waits).cloned().ok_or_else(|| site.left())
    });
    site.cluster.run("scontrol", &["update", &format!("JobId={again}"), &format!("Dependency=afterok:{fails}")]);
    site.tree.user("campus").until_returned(&["no-fit", "DependencyNeverSatisfied"]);
    assert!(site.starts_of_each().is_empty(), "{:?}", site.starts_of_each());
    site.cluster.run("scancel", &[&blocker]);
    assert_eq!(0, ann.wait(&job), "{}", ann.run(&["explain", &job]).out);
    site.assert_each_started_once(1);
}

/// Slurm ends it and starts it over: the second copy finds the claim taken. What may run again is placed again.
#[test]
fn a_job_that_somebody_requeues_does_not_run_twice_unless_it_may() {
    let site = Site::start();
    let ann = site.user("ann");
    let requeued = |more: &[&str], offset: u32| {
        let words = format!("GRID_TASK_ID={offset}; {}", site.counted("[ $GRID_ATTEMPT != 1 ] || sleep 600"));
        let job = ann.submit(&[more, &["--", "sh", "-c", &words]].concat());
        site.until_started(offset as usize + 1);
        let id = site.until_ours("R").remove(0);
        site.cluster.run("scontrol", &["update", &format!("JobId={id}"), "Requeue=1"]);
        site.cluster.run("scontrol", &["requeue", &id]);
        job
    };
    let once = requeued(&["--no-requeue"], 0);
    assert_eq!(1, ann.wait(&once), "{}", ann.run(&["explain", &once]).out);
    let (kind, text, _) = last_attempt(&ann, &once);
    assert_eq!(("exit-unknown", "slurm requeued it while it ran, and it starts there only once"), (kind.as_str(), text.as_str()));
    // Slurm lets it wait two minutes, unless somebody is in a hurry; it may be gone by our hand.
    if let Some((id, _)) = site.left().lines().find_map(|l| l.split_once(" PENDING ")) {
        site.cluster.run("scontrol", &["update", &format!("JobId={id}"), "StartTime=now"]);
    }
    site.until_gone();
    let again = requeued(&[], 1);
    assert_eq!(0, ann.wait(&again), "{}", ann.run(&["explain", &again]).out);
    assert_eq!(std::collections::BTreeMap::from([(0, 1), (1, 2)]), site.starts_of_each());
}
