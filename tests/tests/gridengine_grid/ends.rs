//! How tasks end: by themselves, by a signal, by a time limit, and by their user in each phase.

use crate::site::{PATIENCE, Site};
use crate::tree::until;
use crate::user::User;

/// Kind and words of the reason of the latest attempt of a job with one task.
pub fn last_attempt(user: &User, job: &str) -> (String, String) {
    let attempts = user.json_lines(&["history", job]);
    let text = |name: &str| attempts[0]["reason"][name].as_str().unwrap_or_default().to_string();
    (text("kind"), text("text"))
}

#[test]
fn each_end_is_told_as_it_was() {
    let site = Site::with(|o| o.short_time = "00:00:06".to_string(), "");
    let ann = site.user("ann");
    let ends = [
        ("exit 0", 0, "exit 0"),
        ("exit 3", 3, "exit 3"),
        ("exit 137", 137, "exit 137"),
        ("kill -9 $$", 137, "signal 9"),
        ("kill -TERM $$", 143, "signal 15"),
    ];
    for (words, code, exit) in ends {
        assert_eq!(code, ann.run(&["run", "--", "sh", "-c", words]).code, "{words}");
        assert_eq!(exit, ann.json_lines(&["history", "last"])[0]["exit"][0].as_str().unwrap(), "{words}");
    }
    assert_eq!(127, ann.run(&["run", "--", "/nowhere/nothing"]).code);
    // A time limit of the task, and one of the queue.
    let late = ann.submit(&["-t", "2s", "--", "sh", "-c", "sleep 600"]);
    assert_eq!((1, "time-limit".to_string()), (ann.wait(&late), last_attempt(&ann, &late).0));
    site.cluster.run("qmod", &["-d", "batch"]);
    until("batch is closed to us", PATIENCE, || {
        let hosts = ann.json(&["hosts"])["slots_total"].as_u64();
        if hosts == Some(4) { Ok(()) } else { Err(format!("{hosts:?}")) }
    });
    let late = ann.submit(&["--", "sh", "-c", "sleep 600"]);
    assert_eq!(1, ann.wait(&late));
    let (kind, text) = last_attempt(&ann, &late);
    assert!(kind == "time-limit" && text.contains("gridengine ended it"), "{kind}: {text}");
    // More than any machine has: never sent, and it says why.
    let large = ann.submit(&["-c", "64", "--", "true"]);
    ann.until_reason(&large, "no-fit");
}

#[test]
fn each_principal_has_his_account_and_slots_and_a_third_is_refused() {
    let site = Site::start();
    for (name, account) in [("ann", intergrid_tests::gridengine::ACCOUNTS[0]), ("bob", intergrid_tests::gridengine::ACCOUNTS[1])] {
        let said = site.user(name).run(&["run", "-c", "4", "--", "sh", "-c", "id -un; echo $NSLOTS $GRID_SLOTS $SECRET_OF_THE_AGENT"]);
        assert_eq!(format!("{account}\n4 4\n"), said.clone().well(), "{said:?}");
    }
    let eve = site.user("eve");
    let job = eve.submit(&["--", "id"]);
    eve.until_reason(&job, "not-authorised");
    // Neither can look into the other's directory.
    let shared = site.cluster.dir().join("shared").join(intergrid_tests::gridengine::ACCOUNTS[0]);
    let said = site.user("bob").run(&["run", "--", "ls", shared.to_str().unwrap()]);
    assert!(said.code != 0 && said.err.contains("Permission denied"), "{said:?}");
}

#[test]
fn a_cancel_ends_what_waits_and_what_runs() {
    let site = Site::start();
    let ann = site.user("ann");
    let job = ann.submit(&["-n", "12", "-c", "4", "--", "sh", "-c", &site.starts.counted("sleep 600")]);
    site.until_started(4);
    ann.run(&["cancel", &job]).well();
    ann.until_phase(&job, "cancelled", 12);
    site.until_gone();
    assert!(site.starts.of_each().values().all(|lines| lines.len() == 1));
}

#[test]
fn a_cancel_ends_what_is_held_what_ignores_it_and_what_is_being_submitted() {
    let site = Site::start();
    let ann = site.user("ann");
    let words = site.starts.counted("sleep 600");
    // Held above: Grid Engine never hears of it.
    let held = ann.submit(&["--hold", "--", "sh", "-c", &words]);
    ann.run(&["cancel", &held]).well();
    ann.until_phase(&held, "cancelled", 1);
    // Held there, by its administrator.
    let blockers = site.block();
    let waits = ann.submit(&["--", "sh", "-c", &words]);
    let ours = site.until_listed("qw")[0].split(' ').next().unwrap().to_string();
    site.cluster.run("qhold", &["-h", "o", &ours]);
    ann.until_reason(&waits, "hqw");
    let said = ann.run(&["explain", &waits]).out;
    assert!(said.contains("waits-below") && !said.contains("draining"), "{said}");
    ann.run(&["cancel", &waits]).well();
    ann.until_phase(&waits, "cancelled", 1);
    blockers.iter().for_each(|id| _ = site.cluster.run("qdel", &[id]));
    site.until_gone();
    assert!(site.starts.of_each().is_empty());
    // What does not listen is killed when the queue's `notify` is over.
    let deaf = ann.submit(&["--", "sh", "-c", &site.starts.counted("trap '' TERM; while :; do sleep 1; done")]);
    site.until_started(1);
    ann.run(&["cancel", &deaf]).well();
    ann.until_phase(&deaf, "cancelled", 1);
    site.until_gone();
    // While qsub is at it.
    let begun = site.cluster.dir().join("shared/begun");
    site.command("qsub", &format!("touch {}; sleep 3; exec /usr/lib/gridengine/qsub \"$@\"", begun.display()));
    let sent = ann.submit(&["-n", "3", "--", "sh", "-c", &words]);
    until("qsub has begun", PATIENCE, || if begun.exists() { Ok(()) } else { Err("no".into()) });
    ann.run(&["cancel", &sent]).well();
    ann.until_phase(&sent, "cancelled", 3);
    std::thread::sleep(std::time::Duration::from_secs(4));
    site.until_gone();
    assert_eq!(1, site.starts.of_each().len(), "{:?}", site.starts.of_each());
}
