//! How tasks end: by themselves, by a signal, by their time limit, by their user in each phase, and behind our back.

use std::collections::BTreeMap;
use std::time::Duration;

use intergrid_tests::slurm::Part;

use crate::limits::last_attempt;
use crate::site::{PATIENCE, Site};
use crate::tree::until;

#[test]
fn each_end_is_told_as_it_was() {
    let site = Site::start();
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
    site.until_started(4);
    ann.run(&["cancel", &job]).well();
    ann.until_phase(&job, "cancelled", 12);
    site.until_gone();
    assert!(site.starts_of_each().values().all(|n| *n == 1));
}

/// What is left is a regular stride, of which `squeue --array` forgets the last.
#[test]
fn what_a_cancel_leaves_of_an_array_that_waits_stays_in_the_queue() {
    const TASKS: u32 = 40;
    let site = Site::of(|_| {}, &["batch"], &format!("[slurm.limits]\nwaiting_max = {TASKS}\n"), 16);
    let ann = site.user("ann");
    let counter = site.cluster.dir().join("shared/sent");
    site.command("sbatch", &format!("echo >> {}; exec /usr/bin/sbatch \"$@\"", counter.display()));
    let blocker = site.block();
    let job = ann.submit(&["-n", &TASKS.to_string(), "--", "sh", "-c", &site.counted("true")]);
    until("all wait", PATIENCE, || if site.left().matches(" PENDING ").count() == TASKS as usize { Ok(()) } else { Err(site.left()) });
    let every_second: Vec<String> = (0..TASKS).step_by(2).map(|task| task.to_string()).collect();
    ann.run(&["cancel", &format!("{job}[{}]", every_second.join(","))]).well();
    ann.until_phase(&job, "cancelled", u64::from(TASKS / 2));
    let waits = || site.cluster.run("squeue", &["-h", "-t", "PD", "-o", "%i"]);
    until("every second waits", PATIENCE, || if waits().contains(":2]") { Ok(()) } else { Err(waits()) });
    let sent = || std::fs::read_to_string(&counter).unwrap().len();
    let (left, before) = (waits(), sent());
    // What is not listed is taken back after three seconds, and sent again.
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!((left, before), (waits(), sent()));
    site.cluster.run("scancel", &[&blocker]);
    ann.until_phase(&job, "done", u64::from(TASKS / 2));
    site.until_gone();
    assert_eq!((1..TASKS).step_by(2).map(|task| (task, 1)).collect::<BTreeMap<u32, usize>>(), site.starts_of_each());
}

#[test]
fn a_cancel_ends_what_is_held_and_what_is_being_submitted() {
    let site = Site::start();
    let ann = site.user("ann");
    let words = site.counted("sleep 600");
    // Held above: Slurm never hears of it.
    let held = ann.submit(&["--hold", "--", "sh", "-c", &words]);
    ann.run(&["cancel", &held]).well();
    ann.until_phase(&held, "cancelled", 1);
    // Held in Slurm, by its administrator.
    let blocker = site.block();
    let waits = ann.submit(&["--", "sh", "-c", &words]);
    let ours = site.until_ours("PD").remove(0);
    site.cluster.run("scontrol", &["hold", &ours]);
    until("it is held", PATIENCE, || if site.left().contains("JobHeldAdmin") { Ok(()) } else { Err(site.left()) });
    ann.until_reason(&waits, "JobHeldAdmin");
    ann.run(&["cancel", &waits]).well();
    ann.until_phase(&waits, "cancelled", 1);
    site.cluster.run("scancel", &[&blocker]);
    site.until_gone();
    // While sbatch is at it.
    let begun = site.cluster.dir().join("shared/begun");
    site.command("sbatch", &format!("touch {}; sleep 3; exec /usr/bin/sbatch \"$@\"", begun.display()));
    let sent = ann.submit(&["-n", "3", "--", "sh", "-c", &words]);
    until("sbatch has begun", PATIENCE, || if begun.exists() { Ok(()) } else { Err("no".into()) });
    ann.run(&["cancel", &sent]).well();
    ann.until_phase(&sent, "cancelled", 3);
    std::thread::sleep(Duration::from_secs(4));
    site.until_gone();
    assert!(site.starts_of_each().is_empty(), "{:?}", site.starts_of_each());
}

/// It has ended, and its outputs wait for room at the gateway: a cancel changes nothing of that, and it does not run again.
#[test]
fn a_cancel_of_what_is_staging_out_leaves_it_what_it_was() {
    const LEFT_BYTES: u64 = 600 << 10;
    let site = Site::on_disk(64);
    let ann = site.user("ann");
    let go = site.cluster.dir().join("shared/go");
    let words = format!("while [ ! -e {} ]; do sleep 0.2; done; head -c 200000 /dev/zero > made-$GRID_TASK_ID", go.display());
    let job = ann.submit(&["-n", "2", "--out", "made-{i}", "--", "sh", "-c", &site.counted(&words)]);
    site.until_started(2);
    let disk = site.tree.path("campus").join("state");
    let free = rustix::fs::statvfs(&disk).map(|s| s.f_bavail * s.f_frsize).unwrap();
    std::fs::write(disk.join("filler"), vec![7; usize::try_from(free - LEFT_BYTES).unwrap()]).unwrap();
    std::fs::write(&go, "").unwrap();
    ann.until_phase(&job, "staging-out", 2);
    ann.run(&["cancel", &job]).well();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(2, ann.in_phase(&job, "staging-out"), "{}", ann.run(&["show", &job]).out);
    std::fs::remove_file(disk.join("filler")).unwrap();
    ann.until_phase(&job, "done", 2);
    let to = site.tree.path("back");
    ann.run(&["fetch", "--dir", to.to_str().unwrap(), &job]).well();
    assert_eq!(200_000, std::fs::metadata(to.join("made-1")).unwrap().len());
    site.until_gone();
    site.assert_each_started_once(2);
}

#[test]
fn what_a_task_prints_is_seen_while_it_runs() {
    let site = Site::start();
    let ann = site.user("ann");
    let go = site.cluster.dir().join("shared/go");
    let words = format!("echo first; echo aside >&2; while [ ! -e {} ]; do sleep 0.1; done; echo last; exit 3", go.display());
    let run = ann.spawn(&["run", "--", "sh", "-c", &words]);
    run.until_out("first\n");
    ann.until_phase("last", "running", 1);
    std::fs::write(go, "").unwrap();
    let said = run.end();
    assert_eq!((3, "first\nlast\n"), (said.code, said.out.as_str()), "{said:?}");
    assert!(said.err.contains("aside\n"), "{said:?}");
}

#[test]
fn what_is_done_to_a_job_behind_our_back_is_seen() {
    let site = Site::start();
    let ann = site.user("ann");
    let job = ann.submit(&["--", "sh", "-c", &site.counted("sleep 600")]);
    site.until_started(1);
    let id = site.until_ours("R").remove(0);
    site.cluster.run("scontrol", &["suspend", &id]);
    ann.until_phase(&job, "suspended", 1);
    site.cluster.run("scontrol", &["resume", &id]);
    ann.until_phase(&job, "running", 1);
    site.cluster.run("scancel", &[&id]);
    assert_eq!(1, ann.wait(&job));
    let why = ann.run(&["explain", &job]).out;
    assert!(why.contains("removed"), "{why}");
    // Who cancels what is suspended there need not resume it first.
    let job = ann.submit(&["--", "sh", "-c", &format!("GRID_TASK_ID=1; {}", site.counted("sleep 600"))]);
    site.until_started(2);
    let id = site.until_ours("R").remove(0);
    site.cluster.run("scontrol", &["suspend", &id]);
    ann.until_phase(&job, "suspended", 1);
    ann.run(&["cancel", &job]).well();
    ann.until_phase(&job, "cancelled", 1);
    site.until_gone();
    site.assert_each_started_once(2);
}

/// What takes the wrapper with it leaves no exit record, and these have left the queue soon: slurmdbd has their ends, and what they used.
#[test]
fn ends_that_only_sacct_knows_are_told_with_what_was_used() {
    let mut site = Site::of(|o| (o.accounting, o.job_age_s) = (true, 2), &["batch"], "", 16);
    let ann = site.user("ann");
    let counted = |site: &Site, task: u32, then: &str| format!("GRID_TASK_ID={task}; {}", site.counted(then));
    let submit = |words: &str, more: &[&str]| ann.submit(&[&["--no-requeue"][..], more, &["--", "sh", "-c", words]].concat());

    // sbatch gives no answer, and when it ends the job has left the queue.
    let asked = site.cluster.dir().join("shared/asked");
    let gone = "while [ -n \"$(/usr/bin/squeue --noheader --states=all)\" ]; do sleep 0.2; done";
    site.command("sbatch", &format!("/usr/bin/sbatch \"$@\" > /dev/null; {gone}; touch {}; kill -9 $$", asked.display()));
    let lost = submit(&counted(&site, 0, "kill -9 0"), &[]);
    assert_eq!(1, ann.wait(&lost), "{}", ann.run(&["explain", &lost]).out);
    assert!(asked.exists(), "sbatch was not heard to its end");
    let attempt = &ann.json_lines(&["history", &lost])[0];
    assert_eq!(("failed", "signal 9"), (attempt["phase"].as_str().unwrap(), attempt["exit"][0].as_str().unwrap()), "{attempt}");
    site.command("sbatch", "exec /usr/bin/sbatch \"$@\"");

    // Each has a machine of its own. One is beyond its memory, and the others don't hear that they are to end.
    let shared = site.cluster.dir().join("shared");
    let deaf = |task: u32| {
        let place = shared.join(task.to_string());
        counted(&site, task, &format!("trap '' TERM; echo $SLURMD_NODENAME $SLURM_JOB_ID > {}; while :; do sleep 1; done", place.display()))
    };
    let hog = counted(&site, 1, "head -c 300000000 /dev/zero | tail -n 1 | { read -r x; sleep 60; }; sleep 60");
    let large = submit(&hog, &["-c", "4", "--mem", "64M"]);
    let [late, removed, on_lost] = [2, 3, 4].map(|task| submit(&deaf(task), &["-c", "4"]));
    site.until_started(5);
    let place = |task: u32| {
        let read = || std::fs::read_to_string(shared.join(task.to_string())).ok().filter(|t| t.ends_with('\n')).ok_or(String::new());
        let text = until("it says where it is", PATIENCE, read);
        let (machine, id) = text.trim_end().split_once(' ').unwrap();
        (machine[1..].parse::<usize>().unwrap(), id.to_string())
    };
    let ((_, late_id), (_, removed_id), (machine, _)) = (place(2), place(3), place(4));
    // Slurm looks every two seconds at what they have.
    std::thread::sleep(Duration::from_secs(3));
    site.cluster.run("scontrol", &["update", &format!("JobId={late_id}"), "EndTime=now"]);
    site.cluster.run("scancel", &["--full", "--signal=KILL", &removed_id]);
    site.cluster.kill(Part::Machine(machine));
    for (job, kind, text) in [
        (&large, "memory-limit", "slurm ended it at its memory limit (FAILED)"),
        (&late, "time-limit", "slurm ended it at its time limit (TIMEOUT)"),
        (&removed, "signal", "somebody removed it from slurm while it ran (CANCELLED"),
        (&on_lost, "exit-unknown", "slurm lost the machine that it ran on (NODE_FAIL)"),
    ] {
        assert_eq!(1, ann.wait(job), "{}", ann.run(&["explain", job]).out);
        assert_eq!(1, ann.in_phase(job, "failed"));
        let (said_kind, said, usage) = last_attempt(&ann, job);
        assert!(said_kind == kind && said.contains(text), "{said_kind}: {said}, not {kind}: {text}");
        assert!(job == &large || usage["wall_ms"][0].as_u64() >= Some(1_000), "{said}: {usage}");
        if job == &large || job == &late {
            let least = if job == &large { 64 << 20 } else { 1 << 20 };
            assert!(usage["peak_bytes"][0].as_u64() >= Some(least) && usage["measured"] == "sampled", "{said}: {usage}");
        }
    }
    site.assert_each_started_once(5);
}
