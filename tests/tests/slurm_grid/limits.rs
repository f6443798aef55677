//! Limits of the cluster and of the site, as typed reasons.

use std::time::Duration;

use intergrid_tests::slurm::ACCOUNTS;

use crate::site::Site;
use crate::tree::until;
use crate::user::User;

const PATIENCE: Duration = Duration::from_secs(60);

/// Kind and words of the reason of the latest attempt of a job with one task, and what it used.
pub fn last_attempt(user: &User, job: &str) -> (String, String, serde_json::Value) {
    let attempts = user.json_lines(&["history", job]);
    let reason = &attempts[0]["reason"];
    let text = |name: &str| reason[name].as_str().unwrap_or_default().to_string();
    (text("kind"), text("text"), attempts[0]["usage"].clone())
}

/// Slurm kills the wrapper too, and says only: signal 9. What it wrote beside the output says why.
#[test]
fn memory_that_slurm_enforces_is_told_as_what_it_was() {
    let site = Site::start();
    let ann = site.user("ann");
    // tail keeps a line whole: as much as it is given without a line's end.
    let hog = "head -c 300000000 /dev/zero | tail -n 1 | { read -r x; sleep 60; }; sleep 60";
    let large = ann.submit(&["--mem", "64M", "--", "sh", "-c", hog]);
    assert_eq!(1, ann.wait(&large));
    let (kind, text, _) = last_attempt(&ann, &large);
    assert!(kind == "memory-limit" && text.contains("slurm ended it"), "{kind}: {text}");
}

#[test]
fn who_is_given_less_than_he_asked_for_does_not_begin() {
    let site = Site::start();
    let ann = site.user("ann");
    let said = ann.run(&["run", "--mem", "200M", "--", "sh", "-c", "head -c 60000000 /dev/zero | tail | wc -c"]);
    assert_eq!("60000000\n", said.well());
    let (.., usage) = last_attempt(&ann, "last");
    assert!(usage["peak_bytes"][0].as_u64().unwrap() >= 60_000_000 && usage["measured"] == "largest-process", "{usage}");
    site.command("sbatch", "for a; do shift; case $a in --cpus-per-task=*) ;; *) set -- \"$@\" \"$a\" ;; esac; done; exec /usr/bin/sbatch \"$@\"");
    let job = ann.submit(&["-c", "2", "--", "sh", "-c", &site.counted("true")]);
    assert_eq!(1, ann.wait(&job));
    let (kind, text, _) = last_attempt(&ann, &job);
    assert_eq!(("start-failed", "it was given fewer slots than it asked for"), (kind.as_str(), text.as_str()));
    assert!(site.starts_of_each().is_empty());
}

#[test]
fn what_waits_too_long_goes_back_and_runs_when_there_is_room() {
    let site = Site::with("[slurm.limits]\nwait_max = \"2s\"\n");
    let ann = site.user("ann");
    let blocker = site.cluster.submit(ACCOUNTS[2], &["--nodes=4", "--exclusive"], "sleep 600");
    let running = || site.cluster.run("squeue", &["-h", "-t", "R", "-o", "%i"]);
    until("the machines are taken", PATIENCE, || if running().trim().is_empty() { Err("no".into()) } else { Ok(()) });
    let job = ann.submit(&["--", "sh", "-c", &site.counted("true")]);
    let here = site.tree.user("campus");
    until(
        "it has come here",
        PATIENCE,
        || if here.json(&["ls"])["jobs"].as_array().is_some_and(|j| !j.is_empty()) { Ok(()) } else { Err("no".into()) },
    );
    let returned = || {
        // At the site: the broker has placed it once.
        let job = here.json(&["ls"])["jobs"][0]["job"].as_str().unwrap_or_default().to_string();
        let attempts = here.json_lines(&["history", &job]);
        let text = attempts.iter().find(|a| a["what"] == "returned").map(|a| a["reason"].to_string());
        text.ok_or_else(|| format!("{attempts:?}"))
    };
    let why = until("it goes back", PATIENCE, returned);
    assert!(why.contains("all-busy") && why.contains("it waited 2s in slurm"), "{why}");
    site.cluster.run("scancel", &[&blocker]);
    assert_eq!(0, ann.wait(&job));
    site.assert_each_started_once(1);
}
