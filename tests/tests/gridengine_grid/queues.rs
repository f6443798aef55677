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

/// Submissions of which some tasks wait, for this queue.
fn waiting_for(site: &Site, queue: &str) -> usize {
    let (mut state, mut waiting) = (String::new(), 0);
    for line in site.cluster.run("qstat", &["-u", "*", "-r"]).lines() {
        let mut words = line.split_whitespace();
        if line.contains("Hard requested queues") {
            waiting += usize::from(state.contains('q') && line.contains(queue));
        } else if words.next().is_some_and(|number| number.parse::<u64>().is_ok()) {
            state = words.nth(3).unwrap_or_default().to_string();
        }
    }
    waiting
}

/// As many as run and wait in both queues, and some more.
#[test]
fn what_is_in_a_queue_that_is_no_longer_offered_ends_there_or_goes_back() {
    const TASKS: u32 = 32;
    let mut site = Site::start();
    let (ann, campus) = (site.user("ann"), site.tree.user("campus"));
    let job = submitted(&site, &ann, TASKS, 0);
    site.until_started(20);
    until("some wait for batch", PATIENCE, || if waiting_for(&site, "batch") > 0 { Ok(()) } else { Err(format!("{:?}", site.cluster.listed())) });
    site.tree.terminate("campus");
    let config = site.tree.config("campus");
    let (text, both) = (std::fs::read_to_string(&config).unwrap(), r#"queues = ["batch", "short"]"#);
    assert!(text.contains(both), "{text}");
    std::fs::write(&config, text.replace(both, r#"queues = ["short"]"#)).unwrap();
    site.tree.start("campus");
    let why = "queue batch is no longer in `queues` of [gridengine]";
    campus.until_returned(&["draining", why]);
    until(
        "nothing waits for batch",
        PATIENCE,
        || if waiting_for(&site, "batch") == 0 { Ok(()) } else { Err(format!("{:?}", site.cluster.listed())) },
    );
    let hosts = campus.json(&["hosts"]).to_string();
    assert!(hosts.contains(why), "{hosts}");
    // What runs, ran on; nothing has failed, or started beside it.
    assert_eq!((20, 20), (site.starts.of_each().len(), site.ours().0), "{}", ann.run(&["explain", &job]).out);
    std::fs::write(site.cluster.dir().join("shared/go"), "").unwrap();
    assert_eq!(0, ann.wait(&job), "{}", ann.run(&["explain", &job]).out);
    site.starts.assert_each_once(TASKS);
    site.until_gone();
    // Nothing is left in it: the next start does without it.
    let empty = site.tree.path("campus").join("state/lrms/batch/empty");
    until("it is known to be empty", PATIENCE, || if empty.exists() { Ok(()) } else { Err(site.tree.log("campus")) });
    site.tree.terminate("campus");
    site.tree.start("campus");
    campus.until_slots(4, PATIENCE);
    let hosts = campus.json(&["hosts"]).to_string();
    assert!(hosts.contains("\"short\"") && !hosts.contains("\"batch\""), "{hosts}");
}

/// As many as both queues have slots: some come to the one that refuses their account.
#[test]
fn what_a_queues_access_lists_refuse_runs_elsewhere_and_is_told() {
    const TASKS: u32 = 20;
    let mut site = Site::start();
    let (ann, bob, campus) = (site.user("ann"), site.user("bob"), site.tree.user("campus"));
    let lets_in = |site: &mut Site, account: &str, list: &str| {
        site.tree.terminate("campus");
        site.cluster.run("qconf", &["-au", account, list]);
        site.cluster.run("qconf", &["-rattr", "queue", "user_lists", list, "batch"]);
        site.tree.start("campus");
    };
    lets_in(&mut site, ACCOUNTS[0], "physics");
    campus.until_slots(20, PATIENCE);
    let job = submitted(&site, &bob, TASKS, 0);
    campus.until_returned(&["not-authorised", "may not use batch", ACCOUNTS[1], "none of its user_lists: physics"]);
    std::fs::write(site.cluster.dir().join("shared/go"), "").unwrap();
    assert_eq!(0, bob.wait(&job), "{}", bob.run(&["explain", &job]).out);
    site.starts.assert_each_once(TASKS);
    // Who is in the list has both queues.
    let wide = ["--slots", "8", "--", "true"];
    assert_eq!(0, ann.wait(&ann.submit(&wide)));
    site.until_gone();
    // Nobody of ours is: it takes nothing.
    lets_in(&mut site, ACCOUNTS[2], "chemistry");
    campus.until_slots(4, PATIENCE);
    let hosts = campus.json(&["hosts"]).to_string();
    assert!(hosts.contains("it takes no account of this site") && hosts.contains("none of its user_lists: chemistry"), "{hosts}");
    let waits = ann.submit(&wide);
    ann.until_reason(&waits, "none of its user_lists: chemistry");
    assert!(site.cluster.listed().is_empty(), "{:?}", site.cluster.listed());
    ann.run(&["cancel", &waits]);
    ann.until_phase(&waits, "cancelled", 1);
}

#[test]
fn a_grid_engine_that_is_full_is_told_and_takes_them_when_there_is_room() {
    const JOBS: usize = 3;
    let site = Site::start();
    let ann = site.user("ann");
    site.cluster.set("max_jobs", &JOBS.to_string());
    let held: Vec<_> = (0..JOBS).map(|_| site.cluster.submit(ACCOUNTS[2], &["-h"], "true")).collect();
    let job = ann.submit(&["-n", "6", "--no-requeue", "--", "sh", "-c", &site.starts.counted("true")]);
    site.tree.user("campus").until_returned(&["all-busy", "jobs are allowed per cluster"]);
    assert!(site.starts.of_each().is_empty());
    held.iter().for_each(|id| _ = site.cluster.run("qdel", &[id]));
    assert_eq!(0, ann.wait(&job), "{}", ann.run(&["explain", &job]).out);
    site.starts.assert_each_once(6);
}

#[test]
fn what_the_sites_own_rules_refuse_is_told_in_its_words() {
    let site = Site::start();
    let ann = site.user("ann");
    site.cluster.refuse_all("Please name a project with -P, see https://intranet/hpc");
    let refused = ann.submit(&["--no-requeue", "--", "sh", "-c", &site.starts.counted("true")]);
    site.tree.user("campus").until_returned(&["no-fit", "Please name a project with -P, see https://intranet/hpc"]);
    ann.run(&["cancel", &refused]);
    ann.until_phase(&refused, "cancelled", 1);
    assert!(site.starts.of_each().is_empty() && site.cluster.listed().is_empty());
    // Without that rule it goes.
    site.cluster.set("jsv_url", "none");
    assert_eq!(0, ann.wait(&ann.submit(&["--no-requeue", "--", "sh", "-c", &site.starts.counted("true")])));
    site.starts.assert_each_once(1);
}

/// 300 MB, of which no one process has more than 60.
const HOG: &str = "for n in 1 2 3 4 5; do perl -e 'my $n = 60_000_000; my $x = \"x\" x $n; sleep 60' & done; wait; sleep 60";

/// The queue bounds the memory of who asks for nothing.
#[test]
fn memory_that_a_queue_bounds_by_itself_is_told_as_what_it_was() {
    let site = Site::with(|o| o.memory = "256M".to_string(), "");
    let ann = site.user("ann");
    assert_eq!("small\n", ann.run(&["run", "--", "echo", "small"]).well());
    let large = ann.submit(&["--", "sh", "-c", HOG]);
    assert_eq!(1, ann.wait(&large));
    let (kind, text) = crate::ends::last_attempt(&ann, &large);
    assert!(kind == "memory-limit" && text.contains("gridengine ended it at its memory limit"), "{kind}: {text}");
}

/// Grid Engine adds up what all processes of a task have, and kills them without a word. No one of these is refused anything.
#[test]
fn memory_that_grid_engine_enforces_is_told_as_what_it_was() {
    let site = Site::with(|_| {}, "memory = \"h_vmem\"\n");
    let ann = site.user("ann");
    let large = ann.submit(&["--mem", "256M", "--", "sh", "-c", HOG]);
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
