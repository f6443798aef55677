//! Limits of the cluster and of the site, as typed reasons.

use intergrid_tests::slurm::{ACCOUNTS, Part};

use crate::site::{PATIENCE, Site};
use crate::tree::until;
use crate::user::User;

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

/// What runs in it is ended by Slurm, what waits goes back; when it is there again, all goes on.
#[test]
fn a_partition_that_is_removed_is_told_and_goes_on_when_it_is_back() {
    const PARTITION: &str = "PartitionName=short ";
    let site = Site::of(|_| {}, &["short"], "", 8);
    let ann = site.user("ann");
    let go = site.cluster.dir().join("shared/go");
    let submit = |more: &[&str], offset: u32| {
        let words = format!("GRID_TASK_ID=$((GRID_TASK_ID + {offset})); {}", site.counted(&format!("[ -e {} ] || sleep 600", go.display())));
        ann.submit(&[&["-n", "4"], more, &["--", "sh", "-c", &words]].concat())
    };
    let (once, again) = (submit(&["--no-requeue"], 0), submit(&[], 4));
    until("eight run", PATIENCE, || if site.starts_of_each().len() == 8 { Ok(()) } else { Err(format!("{:?}", site.starts_of_each())) });
    let waits = submit(&["--no-requeue"], 8);
    let there = |state: &str| site.cluster.run("squeue", &["-h", "-r", "-t", state, "-o", "%i"]).lines().count();
    until("four wait", PATIENCE, || if there("PD") == 4 { Ok(()) } else { Err(there("PD").to_string()) });
    site.cluster.reconfigure(PARTITION, "#PartitionName=short ");
    assert_eq!(1, ann.wait(&once), "{}", ann.run(&["explain", &once]).out);
    assert_eq!(4, ann.in_phase(&once, "failed"));
    let (kind, text, _) = last_attempt(&ann, &once);
    assert!(kind == "exit-unknown" && text.contains("slurm lost the machine"), "{kind}: {text}");
    for job in [&again, &waits] {
        until("it is said", PATIENCE, || {
            let said = ann.run(&["explain", job]).out;
            if said.contains("slurm has no queue \"short\"") { Ok(()) } else { Err(said) }
        });
    }
    std::fs::write(&go, "").unwrap();
    site.cluster.reconfigure("#PartitionName=short ", PARTITION);
    for job in [&again, &waits] {
        assert_eq!(0, ann.run(&["wait", "--timeout", "120s", job]).code, "{}", ann.run(&["explain", job]).out);
    }
    let expected = (0..12).map(|n| (n, if (4..8).contains(&n) { 2 } else { 1 })).collect();
    assert_eq!(site.starts_of_each(), expected);
}

/// Slurm's own command would try for two minutes; we look whether it was heard, and the tasks go back, with what it said.
#[test]
fn a_slurm_that_is_full_is_told_and_takes_them_when_there_is_room() {
    const JOBS: usize = 12;
    // It forgets those that are over once a minute.
    let site = Site::of(|o| o.more = format!("MaxJobCount={JOBS}\nMinJobAge=2\n"), &["batch"], "", 16);
    let ann = site.user("ann");
    let held: Vec<_> = (1..JOBS).map(|_| site.cluster.submit(ACCOUNTS[2], &["--hold"], "true")).collect();
    let job = ann.submit(&["-n", "6", "--no-requeue", "--", "sh", "-c", &site.counted("true")]);
    until("it is said", PATIENCE, || {
        let said = ann.run(&["explain", &job]).out;
        if said.contains("all-busy") && said.contains("Slurm temporarily unable to accept job") { Ok(()) } else { Err(said) }
    });
    assert!(site.starts_of_each().is_empty());
    held.iter().for_each(|id| _ = site.cluster.run("scancel", &[id]));
    assert_eq!(0, ann.run(&["wait", "--timeout", "180s", &job]).code, "{}", ann.run(&["explain", &job]).out);
    site.assert_each_started_once(6);
}

/// The gateway has asked for the bound before.
#[test]
fn arrays_that_slurm_takes_no_longer_go_as_smaller_ones() {
    let mut site = Site::start();
    site.cluster.reconfigure("MaxArraySize=2001", "MaxArraySize=4");
    site.cluster.until_saved();
    site.cluster.kill(Part::Controller);
    site.cluster.start_part(Part::Controller);
    site.cluster.until_up();
    let ann = site.user("ann");
    let job = ann.submit(&["-n", "8", "--", "sh", "-c", &site.counted("true")]);
    assert_eq!(0, ann.run(&["wait", "--timeout", "120s", &job]).code, "{}", ann.run(&["explain", &job]).out);
    site.tree.user("campus").until_returned(&["all-busy", "Invalid job array specification"]);
    site.assert_each_started_once(8);
}

#[test]
fn what_waits_too_long_goes_back_and_runs_when_there_is_room() {
    let site = Site::with("[slurm.limits]\nwait_max = \"2s\"\n");
    let ann = site.user("ann");
    let blocker = site.block();
    let job = ann.submit(&["--", "sh", "-c", &site.counted("true")]);
    site.tree.user("campus").until_returned(&["all-busy", "it waited 2s in slurm"]);
    site.cluster.run("scancel", &[&blocker]);
    assert_eq!(0, ann.wait(&job));
    site.assert_each_started_once(1);
}

/// At the broker, to whoever it stops.
#[test]
fn the_limits_of_the_site_are_named_above_with_their_numbers() {
    const FIRST: &str = "slots_per_principal_max = 2\nceiling_percent = 25";
    let mut site = Site::of(|_| {}, &["batch"], &format!("[slurm.limits]\n{FIRST}\n"), 4);
    let [ann, bob, me] = ["ann", "bob", "me"].map(|name| site.user(name));
    let shared = site.cluster.dir().join("shared");
    let until_file = |site: &Site, name: &str, offset: u32| {
        let waits = site.counted(&format!("while [ ! -e {}/{name} ]; do sleep 0.2; done", shared.display()));
        format!("GRID_TASK_ID=$((GRID_TASK_ID + {offset})); {waits}")
    };
    let anns = ann.submit(&["-n", "2", "-c", "2", "--", "sh", "-c", &until_file(&site, "first", 0)]);
    site.until_started(1);
    ann.until_reason(&anns, "this site allows 2 slots of one principal (slots_per_principal_max), and 2 are in use");
    let bobs = bob.submit(&["-c", "2", "--", "sh", "-c", &until_file(&site, "first", 2)]);
    site.until_started(2);
    let mine = me.submit(&["--", "sh", "-c", &until_file(&site, "first", 3)]);
    me.until_reason(&mine, "its site lets 4 of its 16 slots be used (ceiling_percent = 25)");
    assert_eq!(2, site.starts_of_each().len(), "{:?}", site.starts_of_each());
    std::fs::write(shared.join("first"), "").unwrap();
    for (user, job) in [(&ann, &anns), (&bob, &bobs), (&me, &mine)] {
        assert_eq!(0, user.wait(job), "{}", user.run(&["explain", job]).out);
    }
    let config = site.tree.config("campus");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(FIRST, "tasks_max = 2")).unwrap();
    site.tree.kill("campus");
    site.tree.start("campus");
    site.tree.user("eu").until_slots(16, PATIENCE);
    let job = ann.submit(&["-n", "3", "--", "sh", "-c", &until_file(&site, "second", 4)]);
    site.until_started(6);
    ann.until_reason(&job, "this site allows 2 tasks (tasks_max), and 2 are in use");
    std::fs::write(shared.join("second"), "").unwrap();
    assert_eq!(0, ann.wait(&job), "{}", ann.run(&["explain", &job]).out);
    site.assert_each_started_once(7);
}

/// Also where none of ours is there: just then somebody above chooses.
#[test]
fn what_waits_in_the_queue_and_about_how_long_is_told_above() {
    let site = Site::of(|_| {}, &["batch"], "", 16);
    let ann = site.user("ann");
    let share = || {
        let hosts = ann.json(&["hosts"]);
        let shares = hosts["below"][0]["below"][0]["shares"].as_array().cloned().unwrap_or_default();
        shares.into_iter().find(|s| s["share"].as_str().is_some_and(|key| key.contains("batch"))).ok_or(hosts.to_string())
    };
    until("all is free", PATIENCE, || share().and_then(|s| if s["wait_ms"] == 0 { Ok(()) } else { Err(s.to_string()) }));
    let jobs = [(); 2].map(|()| site.cluster.submit(ACCOUNTS[2], &["--nodes=4", "--exclusive"], "sleep 600"));
    let crowded = |s: &serde_json::Value| s["waiting"] == 1 && s["slots_free"] == 0 && s["wait_ms"].is_null();
    until("one waits", PATIENCE, || share().and_then(|s| if crowded(&s) { Ok(()) } else { Err(s.to_string()) }));
    let job = ann.submit(&["--", "sh", "-c", &site.counted("true")]);
    until("it is told", PATIENCE, || share().and_then(|s| if s["wait_ms"].as_u64() >= Some(5_000) { Ok(()) } else { Err(s.to_string()) }));
    let shown = ann.run(&["hosts"]).well();
    assert!(shown.lines().any(|l| l.contains("campus") && l.contains("starts in about ")), "{shown}");
    jobs.iter().for_each(|id| _ = site.cluster.run("scancel", &[id]));
    assert_eq!(0, ann.wait(&job));
    site.assert_each_started_once(1);
}
