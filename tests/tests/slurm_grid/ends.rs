//! How tasks end: by themselves, by a signal, by their time limit, by their user in each phase, and behind our back.

use std::time::Duration;

use crate::site::Site;
use crate::tree::until;

#[test]
fn each_end_is_told_as_it_was() {
    let site = Site::start();
    let ann = site.user("ann");
    for (words, code) in [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        assert_eq!(code, ann.run(&["run", "--", "sh", "-c", words]).code, "{words}");
    }
    assert_eq!(127, ann.run(&["run", "--", "/nowhere/nothing"]).code);
    let late = ann.submit(&["-t", "2s", "--", "sh", "-c", &site.counted("sleep 600")]);
    assert_eq!(1, ann.wait(&late));
    assert!(ann.run(&["explain", &late]).out.contains("time-limit"), "{:?}", ann.run(&["explain", &late]));
    // More than any machine has: never sent, and it says why.
    let large = ann.submit(&["-c", "64", "--", "true"]);
    ann.until_reason(&large, "no-fit");
}

#[test]
fn a_cancel_ends_what_waits_and_what_runs() {
    let site = Site::start();
    let ann = site.user("ann");
    // 16 slots: four tasks run, the others wait, there or above.
    let job = ann.submit(&["-n", "12", "-c", "4", "--", "sh", "-c", &site.counted("sleep 600")]);
    until(
        "some run",
        Duration::from_secs(60),
        || if site.starts_of_each().len() >= 4 { Ok(()) } else { Err(format!("{:?}", site.starts_of_each())) },
    );
    ann.run(&["cancel", &job]).well();
    ann.until_phase(&job, "cancelled", 12);
    let left = || site.cluster.run("squeue", &["-h", "-t", "PD,R,CG,S", "-o", "%i %T"]);
    until("nothing is left in Slurm", Duration::from_secs(30), || if left().trim().is_empty() { Ok(()) } else { Err(left()) });
    assert!(site.starts_of_each().values().all(|n| *n == 1));
}

#[test]
fn what_is_done_to_a_job_behind_our_back_is_seen() {
    let site = Site::start();
    let ann = site.user("ann");
    let job = ann.submit(&["--", "sh", "-c", &site.counted("sleep 600")]);
    until("it runs", Duration::from_secs(60), || if site.starts_of_each().len() == 1 { Ok(()) } else { Err("no start".into()) });
    let id = site.cluster.run("squeue", &["-h", "-t", "R", "-o", "%i"]).trim().to_string();
    site.cluster.run("scontrol", &["suspend", &id]);
    ann.until_phase(&job, "suspended", 1);
    site.cluster.run("scontrol", &["resume", &id]);
    ann.until_phase(&job, "running", 1);
    site.cluster.run("scancel", &[&id]);
    assert_eq!(1, ann.wait(&job));
    let why = ann.run(&["explain", &job]).out;
    assert!(why.contains("removed"), "{why}");
    site.assert_each_started_once(1);
}
