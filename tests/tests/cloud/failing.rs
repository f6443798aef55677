//! Machines whose program fails, which are not rented one after the other, and machines whose agents are away.

use std::os::unix::fs::PermissionsExt;

use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// A gateway with one slot for rent, whose machines run this instead of the agent: `$AGENT` is that, `$STARTS` is where tasks say that they have begun.
fn world_of(program: &str) -> (Tree, User) {
    let mut tree = Tree::new().alone();
    let file = tree.path("programs").join("agent");
    let (agent, starts) = (tree::binary("grid-agent"), tree.path("dir"));
    fs::write(&file, format!("#!/bin/sh\nAGENT={}\nSTARTS={}\n{program}\n", agent.display(), starts.display())).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    tree.gateway("burst", Some("root"), &cloud(1, "1.00", &format!("program = \"{}\"", file.display())));
    tree.broker("root", &["burst"], None);
    let user = tree.user("root");
    user.until_slots(1, PATIENCE);
    (tree, user)
}

/// Until this is said of the job; a look for the end of a machine is every half a minute.
fn until_said(tree: &Tree, user: &User, job: &str, text: &str) {
    until(text, 2 * PATIENCE, || match user.run(&["explain", job]).well() {
        said if said.contains(text) => Ok(()),
        said => Err(format!("{said}\n{}", tree.log("burst"))),
    });
}

fn rented(tree: &Tree) -> usize {
    tree.log("burst").matches("a machine is rented").count()
}

#[test]
fn a_machine_whose_disk_is_full_is_not_replaced_at_once() {
    let (tree, _root) = world_of("echo 'state_free_min_bytes = \"1000000G\"' >> \"$2\"\nexec $AGENT \"$@\"");
    let user = tree.user("burst");
    let job = submit(&tree, &user, 2, &[], "0");
    until_said(&tree, &user, &job, "the last one did no work: ");
    let said = user.run(&["explain", &job]).well();
    assert!(said.contains("not-rented: capacity: small: ") && said.contains("bytes free; "), "{said}");
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!((1, 0), (rented(&tree), starts(&tree).len()), "{}", tree.log("burst"));
    user.run(&["cancel", &job]).well();
}

#[test]
fn a_machine_that_dies_before_a_task_has_ended_there_is_not_replaced_at_once() {
    let dies = "$AGENT \"$@\" &\nuntil [ -n \"$(ls $STARTS)\" ]; do kill -0 $! || exit 1; sleep 0.1; done\nkill -9 $!";
    let (tree, _root) = world_of(dies);
    let user = tree.user("burst");
    let job = submit(&tree, &user, 1, &[], "600");
    until_said(&tree, &user, &job, "not-rented: capacity: small: the last one ended before a task had ended there");
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!((1, 1), (rented(&tree), starts(&tree).len()), "{}", tree.log("burst"));
    user.run(&["cancel", &job]).well();
}

/// What ends a pilot or a machine signals all of its processes, in any order.
#[test]
fn a_task_that_is_signalled_before_its_agent_has_not_failed() {
    let ends = "[ ! -e $STARTS.ended ] || exec $AGENT \"$@\"\n$AGENT \"$@\" &\nuntil [ -e $STARTS/1 ]; do kill -0 $! || exit 1; sleep 0.1; done\n\
                touch $STARTS.ended; for task in $(cat /proc/$!/task/*/children); do kill -TERM -$task; done; sleep 0.3; kill -TERM $!; wait";
    let (tree, _root) = world_of(ends);
    let user = tree.user("burst");
    let job = submit(&tree, &user, 2, &[], "1");
    assert_eq!(0, user.wait(&job), "{}\n{}", user.run(&["explain", &job]).well(), tree.log("burst"));
    let mut starts = starts(&tree);
    starts.sort();
    assert_eq!((vec!["0", "1", "1"], true), (starts.iter().map(|s| &**s).collect(), tree.path("dir").with_extension("ended").exists()));
}

/// For as long as that can't be known, its limits are not watched: it has ended.
#[test]
fn a_task_that_was_signalled_shortly_before_its_limit_has_not_met_it() {
    let (tree, user) = world(&cloud(2, "1.00", ""));
    user.until_slots(2, PATIENCE);
    let ends = |signal: &str| user.submit(&["--yes", "-t", "2s", "--no-requeue", "--", "/bin/sh", "-c", &format!("sleep 1.6; kill -{signal} $$")]);
    let jobs = ["TERM", "SEGV"].map(|signal| (signal, ends(signal)));
    for (signal, job) in jobs {
        assert_eq!(1, user.wait(&job), "{signal}: {}", tree.log("burst"));
        let said = user.run(&["explain", &job]).well();
        assert!(said.contains("killed by signal") && !said.contains("time-limit"), "{signal}: {said}");
    }
}

#[test]
fn of_a_type_that_fails_nothing_is_promised_and_its_work_waits_above() {
    let (tree, user) = world_of("sleep 1; exit 1");
    let job = submit(&tree, &user, 1, &[], "600");
    until_said(&tree, &user, &job, "capacity: small: the last one ended before its agent came");
    user.until_slots(0, PATIENCE);
    let waits = || user.json(&["show", &job])["phases"]["queued"] == 1 && user.run(&["explain", &job]).well().contains("not-rented: burst/");
    until("it waits at the root, and why is told there", PATIENCE, || if waits() { Ok(()) } else { Err(user.run(&["explain", &job]).well()) });
    for _ in 0..20 {
        assert!(waits(), "it is placed in vain: {}", user.run(&["explain", &job]).well());
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(1, rented(&tree), "{}", tree.log("burst"));
    user.run(&["cancel", &job]).well();
}

#[test]
fn machines_whose_agents_are_away_are_neither_free_nor_on_their_way() {
    let (tree, user) = world(&cloud(2, "1.00", ""));
    user.until_slots(2, PATIENCE);
    let first = submit(&tree, &user, 2, &[], "600");
    user.until_phase(&first, "running", 2);
    let signal = |signal| tree.below("burst").into_iter().for_each(|pid| kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap());
    let until_all = |state: &str| {
        until(state, PATIENCE, || match machines(&user) {
            all if all.len() == 2 && all.iter().all(|m| m["state"] == state && m["busy"] == 1) => Ok(()),
            all => Err(format!("{all:?}")),
        });
    };
    until_all("working");
    signal(Signal::STOP);
    until_all("its agent is away");
    let second = submit(&tree, &user, 2, &[], "600");
    let waits = || user.in_phase(&second, "queued") == 2;
    until("what comes then waits at the root", PATIENCE, || if waits() { Ok(()) } else { Err(user.json(&["show", &second]).to_string()) });
    for _ in 0..20 {
        assert!(waits(), "it is placed in vain: {}", user.run(&["explain", &second]).well());
        std::thread::sleep(Duration::from_millis(300));
    }
    signal(Signal::CONT);
    until_all("working");
    assert_eq!(2, rented(&tree), "{}", tree.log("burst"));
    for job in [&first, &second] {
        user.run(&["cancel", job]).well();
    }
}
