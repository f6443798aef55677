//! Who runs as whom, and what a task gets of the cluster.

use std::time::Duration;

use intergrid_tests::slurm::ACCOUNTS;

use crate::limits::last_attempt;
use crate::site::Site;
use crate::tree::until;

#[test]
fn each_principal_has_his_account_and_a_third_is_refused() {
    let site = Site::start();
    for (name, account) in [("ann", ACCOUNTS[0]), ("bob", ACCOUNTS[1])] {
        let said =
            site.user(name).run(&["run", "-c", "4", "--", "sh", "-c", "id -un; echo $SLURM_CPUS_ON_NODE $GRID_SLOTS; ls -ld ../../.. | cut -c1-10"]);
        assert_eq!(format!("{account}\n4 4\n"), said.clone().well().lines().take(2).map(|l| format!("{l}\n")).collect::<String>(), "{said:?}");
    }
    let eve = site.user("eve");
    let job = eve.submit(&["--", "id"]);
    eve.until_reason(&job, "not-authorised");
    // Neither can look into the other's directory.
    let shared = site.cluster.dir().join("shared").join(ACCOUNTS[0]);
    let said = site.user("bob").run(&["run", "--", "ls", shared.to_str().unwrap()]);
    assert!(said.code != 0 && said.err.contains("Permission denied"), "{said:?}");
}

/// Meanwhile a task runs into Slurm's own time limit, which is a minute at least, and is looked at every half a minute.
#[test]
fn an_array_of_a_thousand_runs_through_a_broker_beside_one_that_slurm_ends() {
    let site = Site::start();
    let ann = site.user("ann");
    let late = ann.submit(&["--", "sleep", "600"]);
    let running = || site.cluster.run("squeue", &["-h", "-t", "R", "-o", "%i"]).trim().to_string();
    let id = until("it runs", Duration::from_secs(60), || Some(running()).filter(|id| !id.is_empty()).ok_or("no".to_string()));
    site.cluster.run("scontrol", &["update", &format!("JobId={id}"), "EndTime=now"]);
    let job = ann.submit(&["-n", "1000", "--", "sh", "-c", &site.counted("echo $((GRID_TASK_ID * 2))")]);
    assert_eq!(0, ann.run(&["wait", "--timeout", "280s", &job]).code, "{}", ann.run(&["show", &job]).out);
    site.assert_each_started_once(1_000);
    assert_eq!("1998\n", ann.run(&["logs", &format!("{job}[999]")]).well());
    assert_eq!(1, ann.wait(&late));
    let (kind, text, _) = last_attempt(&ann, &late);
    assert!(kind == "time-limit" && text.contains("slurm ended it"), "{kind}: {text}");
}
