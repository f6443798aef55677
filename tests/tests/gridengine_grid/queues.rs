//! Queues that are closed, or removed, under what waits and runs in them, and a Grid Engine that takes no more jobs.

use intergrid_tests::gridengine::ACCOUNTS;

use crate::site::{PATIENCE, Site};
use crate::tree::until;
use crate::user::User;

/// So many tasks, numbered from an offset, each until a file is there.
fn submitted(site: &Site, user: &User, tasks: u32, offset: u32) -> String {
    let go = site.cluster.dir().join("shared/go");
    let waits = site.starts.counted(&format!("while [ ! -e {} ]; do sleep 0.2; done", go.display()));
    let words = format!("GRID_TASK_ID=$((GRID_TASK_ID + {offset})); {waits}");
    user.submit(&["-n", &tasks.to_string(), "--no-requeue", "--", "sh", "-c", &words])
}

#[test]
fn queues_that_are_closed_or_removed_in_the_middle_lose_nothing() {
    const FIRST: u32 = 40;
    const SECOND: u32 = 24;
    let site = Site::start();
    let ann = site.user("ann");
    let first = submitted(&site, &ann, FIRST, 0);
    site.until_started(20);
    site.until_listed("qw");
    // Disabled: what runs, runs on; what waits, there or above, waits, and it is said why.
    site.cluster.run("qmod", &["-d", "*"]);
    until("it is said", PATIENCE, || {
        let said = ann.run(&["explain", &first]).out;
        if said.contains("draining") && said.contains("disabled") { Ok(()) } else { Err(said) }
    });
    std::fs::write(site.cluster.dir().join("shared/go"), "").unwrap();
    ann.until_phase(&first, "done", 20);
    assert_eq!(20, site.starts.of_each().len());
    site.cluster.run("qmod", &["-e", "*"]);
    assert_eq!(0, ann.wait(&first), "{}", ann.run(&["explain", &first]).out);
    site.starts.assert_each_once(FIRST);
    // Removed, when nothing runs in it: what waits there would wait for ever, and goes back.
    site.until_gone();
    let [batch, short] = site.block();
    let second = submitted(&site, &ann, SECOND, FIRST);
    // Beside the blocker.
    until("some wait in short", PATIENCE, || {
        let all = site.cluster.run("qstat", &["-u", "*", "-r"]);
        let asking = all.lines().filter(|l| l.contains("Hard requested queues") && l.contains("short")).count();
        if asking >= 2 { Ok(()) } else { Err(all) }
    });
    site.cluster.run("qmod", &["-d", "short"]);
    site.cluster.run("qdel", &[&short]);
    until("it is removed", PATIENCE, || site.cluster.try_run("qconf", &["-dq", "short"]).map(drop));
    site.tree.user("campus").until_returned(&["no-resource", "gridengine has no queue", "any more"]);
    assert_eq!(FIRST as usize, site.starts.of_each().len());
    site.cluster.run("qdel", &[&batch]);
    assert_eq!(0, ann.wait(&second), "{}", ann.run(&["explain", &second]).out);
    site.starts.assert_each_once(FIRST + SECOND);
    site.until_gone();
}

#[test]
fn a_grid_engine_that_is_full_is_told_and_takes_them_when_there_is_room() {
    const JOBS: usize = 3;
    let site = Site::start();
    let ann = site.user("ann");
    let text = site.cluster.run("qconf", &["-sconf"]);
    assert!(text.contains("max_jobs "), "{text}");
    let line = |l: &str| if l.starts_with("max_jobs ") { format!("max_jobs {JOBS}\n") } else { format!("{l}\n") };
    let file = site.cluster.dir().join("changed/global");
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    std::fs::write(&file, text.lines().filter(|l| !l.starts_with('#')).map(line).collect::<String>()).unwrap();
    site.cluster.run("qconf", &["-Mconf", file.to_str().unwrap()]);
    let held: Vec<_> = (0..JOBS).map(|_| site.cluster.submit(ACCOUNTS[2], &["-h"], "true")).collect();
    let job = ann.submit(&["-n", "6", "--no-requeue", "--", "sh", "-c", &site.starts.counted("true")]);
    site.tree.user("campus").until_returned(&["all-busy", "jobs are allowed per cluster"]);
    assert!(site.starts.of_each().is_empty());
    held.iter().for_each(|id| _ = site.cluster.run("qdel", &[id]));
    assert_eq!(0, ann.wait(&job), "{}", ann.run(&["explain", &job]).out);
    site.starts.assert_each_once(6);
}

/// Grid Engine adds up what all processes of a task have, and kills them without a word. No one of these is refused anything.
#[test]
fn memory_that_grid_engine_enforces_is_told_as_what_it_was() {
    let site = Site::with(|_| {}, "memory = \"h_vmem\"\n");
    let ann = site.user("ann");
    let hog = "for n in 1 2 3 4 5; do perl -e 'my $n = 60_000_000; my $x = \"x\" x $n; sleep 60' & done; wait; sleep 60";
    let large = ann.submit(&["--mem", "256M", "--", "sh", "-c", hog]);
    assert_eq!(1, ann.wait(&large));
    let (kind, text) = crate::ends::last_attempt(&ann, &large);
    assert!(kind == "memory-limit" && text.contains("gridengine ended it at its memory limit"), "{kind}: {text}");
    // Who stays within it, and is removed by somebody, was removed.
    let small = ann.submit(&["--mem", "256M", "--", "sh", "-c", &site.starts.counted("sleep 600")]);
    site.until_started(1);
    let task = site.until_listed("r")[0].replacen(" r ", ".", 1);
    site.cluster.run("qdel", &[&task]);
    assert_eq!(1, ann.wait(&small));
    assert_eq!("signal", crate::ends::last_attempt(&ann, &small).0);
}
