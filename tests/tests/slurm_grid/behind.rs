//! Commands that hang, and what is done to our jobs in Slurm while nobody looks.

use std::time::Duration;

use intergrid_tests::slurm::ACCOUNTS;

use crate::limits::last_attempt;
use crate::site::Site;
use crate::tree::until;

const PATIENCE: Duration = Duration::from_secs(60);

/// Ours in Slurm, in these states: the ids of its array's tasks.
fn ours(site: &Site, states: &str) -> String {
    let all = site.cluster.run("squeue", &["-h", "-r", "-t", states, "-o", "%i %j"]);
    all.lines().filter_map(|l| l.split_once(" ig").map(|(id, _)| id)).next().unwrap_or_default().to_string()
}

fn until_ours(site: &Site, states: &str) -> String {
    until("ours in Slurm", PATIENCE, || Some(ours(site, states)).filter(|id| !id.is_empty()).ok_or_else(|| site.cluster.run("squeue", &["-r"])))
}

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

#[test]
fn a_dependency_that_somebody_adds_and_nobody_can_meet_is_told() {
    let site = Site::start();
    let ann = site.user("ann");
    let fails = site.cluster.submit(ACCOUNTS[2], &[], "exit 1");
    let blocker = site.cluster.submit(ACCOUNTS[2], &["--nodes=4", "--exclusive"], "sleep 600");
    until("the machines are taken", PATIENCE, || {
        let all = site.cluster.run("squeue", &["-h", "-t", "R", "-o", "%i"]);
        if all.trim() == blocker { Ok(()) } else { Err(all) }
    });
    let job = ann.submit(&["--", "sh", "-c", &site.counted("true")]);
    let waits = until_ours(&site, "PD");
    site.cluster.run("scontrol", &["update", &format!("JobId={waits}"), &format!("Dependency=afterok:{fails}")]);
    let here = site.tree.user("campus");
    let told = || {
        let job = here.json(&["ls"])["jobs"][0]["job"].as_str().unwrap_or_default().to_string();
        let text = here.json_lines(&["history", &job]).iter().find(|a| a["what"] == "returned").map(|a| a["reason"].to_string());
        text.ok_or_else(|| site.cluster.run("squeue", &["-r"]))
    };
    let why = until("it goes back", PATIENCE, told);
    assert!(why.contains("no-fit") && why.contains("DependencyNeverSatisfied"), "{why}");
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
        until("it has started", PATIENCE, || if site.starts_of_each().contains_key(&offset) { Ok(()) } else { Err("no".into()) });
        let id = until_ours(&site, "R");
        site.cluster.run("scontrol", &["update", &format!("JobId={id}"), "Requeue=1"]);
        site.cluster.run("scontrol", &["requeue", &id]);
        job
    };
    let once = requeued(&["--no-requeue"], 0);
    assert_eq!(1, ann.wait(&once), "{}", ann.run(&["explain", &once]).out);
    let (kind, text, _) = last_attempt(&ann, &once);
    assert_eq!(("exit-unknown", "slurm requeued it while it ran, and it starts there only once"), (kind.as_str(), text.as_str()));
    // Slurm lets it wait two minutes, unless somebody is in a hurry; it may be gone by our hand.
    let again = ours(&site, "PD,R");
    if !again.is_empty() {
        site.cluster.run("scontrol", &["update", &format!("JobId={again}"), "StartTime=now"]);
    }
    until("nothing is left in Slurm", PATIENCE, || if ours(&site, "PD,R,CG").is_empty() { Ok(()) } else { Err(site.cluster.run("squeue", &["-r"])) });
    let again = requeued(&[], 1);
    assert_eq!(0, ann.wait(&again), "{}", ann.run(&["explain", &again]).out);
    assert_eq!(std::collections::BTreeMap::from([(0, 1), (1, 2)]), site.starts_of_each());
}
