//! Who runs as whom, and what a task gets of the cluster.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use intergrid_tests::slurm::ACCOUNTS;

use crate::limits::last_attempt;
use crate::site::Site;
use crate::tree::until;
use crate::user::User;

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

/// What it may do as others is what one rule of sudo lets it, as docs/slurm.md has it; each account of a pool is one principal's at a time.
#[test]
fn a_gateway_that_is_not_root_acts_as_the_accounts_of_its_pool_alone() {
    let [first, second, _] = ACCOUNTS;
    let site = Site::unprivileged(&format!(
        "\n[[map]]\nprincipal = \"phys-*\"\npool = [\"{first}\", \"{second}\"]\n\n[[map]]\nprincipal = \"eve\"\naccount = \"daemon\"\n"
    ));
    assert_ne!(0, std::fs::metadata(format!("/proc/{}", site.tree.pid("campus"))).unwrap().uid());
    let go = site.cluster.dir().join("shared/go");
    let [a, b, c, eve] = ["phys-a", "phys-b", "phys-c", "eve"].map(|name| site.user(name));
    let submit = |user: &User, task: u32| {
        let waits = format!("id -un | tee whose; while [ ! -e {} ]; do sleep 0.2; done", go.display());
        user.submit(&["--out", "whose", "--", "sh", "-c", &format!("GRID_TASK_ID={task}; {}", site.counted(&waits))])
    };
    let jobs = [(&a, submit(&a, 0)), (&b, submit(&b, 1))];
    site.until_started(2);
    let no = eve.submit(&["--", "true"]);
    eve.until_reason(&no, "sudo -n -u daemon");
    let long = a.submit(&["--", "sh", "-c", &format!("GRID_TASK_ID=3; {}", site.counted("sleep 600"))]);
    site.until_started(3);
    a.run(&["cancel", &long]).well();
    a.until_phase(&long, "cancelled", 1);
    let third = submit(&c, 2);
    c.until_reason(&third, "all 2 accounts of the pool for phys-* are in use");
    assert_eq!(vec![0, 1, 3], site.starts_of_each().into_keys().collect::<Vec<_>>());
    std::fs::write(&go, "").unwrap();
    let mut whose = Vec::new();
    for (user, job) in &jobs {
        assert_eq!(0, user.wait(job), "{}", user.run(&["explain", job]).out);
        let to = site.tree.path(job);
        user.run(&["fetch", "--dir", to.to_str().unwrap(), job]).well();
        whose.push(std::fs::read_to_string(to.join("whose")).unwrap());
        assert_eq!(whose.last(), Some(&user.run(&["logs", job]).well()));
    }
    whose.sort();
    assert_eq!(vec![format!("{first}\n"), format!("{second}\n")], whose);
    assert_eq!(0, c.wait(&third), "{}", c.run(&["explain", &third]).out);
    site.until_gone();
    site.assert_each_started_once(4);
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
