//! Who runs as whom, and what a task gets of the cluster.

use intergrid_tests::slurm::ACCOUNTS;

use crate::site::Site;

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

#[test]
fn an_array_of_a_thousand_runs_through_a_broker() {
    let site = Site::start();
    let ann = site.user("ann");
    let job = ann.submit(&["-n", "1000", "--", "sh", "-c", &site.counted("echo $((GRID_TASK_ID * 2))")]);
    assert_eq!(0, ann.run(&["wait", "--timeout", "280s", &job]).code, "{}", ann.run(&["show", &job]).out);
    site.assert_each_started_once(1_000);
    assert_eq!("1998\n", ann.run(&["logs", &format!("{job}[999]")]).well());
}
