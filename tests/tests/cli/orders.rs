//! What administrators order, and owners of jobs: throttles, drains, losses, cancels by force.

use std::time::Duration;

use intergrid_proto::net::CertRole;

use super::tree::{Tree, until};
use super::user::User;

/// Look until `explain` says all of this.
fn explained(user: &User, job: &str, words: &[&str]) {
    until(&format!("{job} is explained by {words:?}"), Duration::from_secs(20), || {
        let text = user.run(&["explain", job]).well();
        if words.iter().all(|w| text.contains(w)) { Ok(()) } else { Err(text) }
    });
}

#[test]
fn an_array_has_so_many_tasks_at_a_time() {
    let mut tree = Tree::flat();
    tree.add_broker();
    for site in ["campus", "eu"] {
        let user = tree.user(site);
        let job = user.submit(&["--array", "0-5%1", "--", "sleep", "0.4"]);
        explained(&user, &job, &["throttled", "1 of its tasks", "grid throttle"]);
        let view = user.json(&["show", &job]);
        assert_eq!((Some(6), Some(1), Some(1)), (view["tasks"].as_u64(), view["tasks_at_once"].as_u64(), view["spec"]["tasks_at_once"].as_u64()));
        until("it ends", Duration::from_secs(60), || {
            let phases = user.json(&["show", &job])["phases"].clone();
            let under_way: u64 = ["placed", "staging-in", "running", "staging-out"].iter().filter_map(|p| phases[p].as_u64()).sum();
            assert!(under_way <= 1, "{phases}");
            if phases["done"] == 6 { Ok(()) } else { Err(phases.to_string()) }
        });
        let job = user.submit(&["--array", "0-3%1", "--", "sleep", "60"]);
        user.until_phase(&job, "running", 1);
        assert!(user.run(&["throttle", "last", "2"]).well().contains(&format!("job {job}: at most 2 tasks")));
        user.until_phase(&job, "running", 2);
        user.run(&["cancel", &job]).well();
        assert_eq!(1, user.wait(&job));
    }
    let user = tree.user("campus");
    user.run(&["submit", "--array", "3-9", "--", "true"]).refused(2, &["3-9", "from 0"]);
    user.run(&["throttle", "last[2]", "2"]).refused(2, &["whole job"]);
}

#[test]
fn what_is_drained_takes_no_new_work_and_says_why() {
    let mut tree = Tree::flat();
    tree.add_broker();
    let (campus, eu) = (tree.user("campus"), tree.user("eu"));
    let runs = campus.submit(&["--", "sleep", "1.5"]);
    campus.until_phase(&runs, "running", 1);
    let said = campus.run(&["drain", "campus-1", "--reason", "new disk"]).well();
    assert!(said.contains("agent campus-1 takes no new work; 1 task there"), "{said}");
    let job = campus.submit(&["--", "true"]);
    explained(&campus, &job, &["draining", "campus-1 takes no new work: new disk"]);
    assert_eq!(0, campus.wait(&runs), "what ran has ended well");
    assert!(campus.run(&["hosts", "--tree"]).well().contains("by me: new disk"));
    // It holds over a restart.
    tree.kill("campus");
    tree.start("campus");
    explained(&campus, &job, &["draining", "new disk"]);
    let above = eu.submit(&["--", "true"]);
    explained(&eu, &above, &["draining", "campus-1 takes no new work: new disk"]);
    // Who asks too far above is told where to ask.
    eu.run(&["resume", "campus-1"]).refused(4, &["eu/campus/campus-1", &format!("--endpoint {}", tree.endpoint("campus"))]);
    eu.run(&["drain", "nobody", "--reason", "x"]).refused(4, &["nobody", "hosts --tree"]);
    campus.run(&["drain", "campus-1", "--reason", " "]).refused(2, &["reason"]);
    campus.run(&["resume", "campus-1"]).well();
    assert_eq!((0, 0), (campus.wait(&job), eu.wait(&above)));
    // A whole site, by itself and by its parent.
    for (user, word) in [(&campus, "campus"), (&eu, "campus"), (&eu, "eu")] {
        assert_eq!(Some(true), user.json(&["drain", word, "--reason", "moved"])["draining"].as_bool());
        let job = eu.submit(&["--", "true"]);
        explained(&eu, &job, &["draining", &format!("{word} takes no new work: moved")]);
        user.run(&["resume", word]).well();
        assert_eq!(0, eu.wait(&job));
    }
    let ann = tree.user_as("campus", CertRole::User, "ann");
    for words in [&["drain", "campus-1", "--reason", "x"][..], &["resume", "campus-1"], &["agent", "declare-lost", "campus-1", "--yes"]] {
        ann.run(words).refused(3, &["ann"]);
    }
}

/// Tasks that say so in a file when they have started, and run for a long time.
fn long(user: &User, tree: &Tree, tasks: u64, more: &[&str]) -> String {
    let line = format!("echo $$ >> {}; exec sleep 300", tree.path("work").join("started").display());
    let job = user.submit(&[more, &["-n", &tasks.to_string(), "--", "/bin/sh", "-c", &line]].concat());
    user.until_phase(&job, "running", tasks);
    job
}

/// Those of them that live.
fn alive(user: &User) -> usize {
    user.read("started").lines().filter(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists()).count()
}

#[test]
fn what_is_declared_lost_runs_elsewhere_or_has_failed() {
    let mut tree = Tree::flat();
    let user = tree.user("campus");
    let (once, again) = (long(&user, &tree, 1, &["--no-requeue"]), long(&user, &tree, 1, &[]));
    user.run(&["agent", "declare-lost", "campus-1"]).refused(2, &["--yes"]);
    tree.kill("campus-1");
    let said = user.run(&["agent", "declare-lost", "campus-1", "--yes"]).well();
    assert!(said.contains("2 tasks at agent campus-1 declared lost: 1 to run elsewhere, 1 failed"), "{said}");
    assert_eq!(1, user.wait(&once));
    let view = user.json(&["show", &once]);
    assert_eq!(Some("exit unknown"), view["ranges"][0]["exit"][0].as_str().map(|e| if e.contains("unknown") { "exit unknown" } else { e }), "{view}");
    explained(&user, &once, &["contact-lost", "me declared", "campus-1"]);
    assert_eq!(2, alive(&user), "they outlive their agent");
    tree.agent("campus-2", "campus", "slots = 1\n");
    user.until_phase(&again, "running", 1);
    tree.start("campus-1");
    until("the old attempts are stopped", Duration::from_secs(20), || match alive(&user) {
        1 => Ok(()),
        n => Err(format!("{n} live")),
    });
    assert_eq!((1, 1), (user.in_phase(&once, "failed"), user.in_phase(&again, "running")));
    user.run(&["cancel", &again]).well();
    assert_eq!(1, user.wait(&again));
}

#[test]
fn a_cancel_by_force_says_what_may_still_run() {
    let mut tree = Tree::flat();
    tree.add_broker();
    for site in ["campus", "eu"] {
        let user = tree.user(site);
        let job = long(&user, &tree, 2, &[]);
        tree.kill("campus-1");
        user.run(&["cancel", &job]).well();
        assert_eq!(6, user.run(&["wait", "--timeout", "500ms", &job]).code, "a stop has to be confirmed");
        let below = if site == "campus" { "campus-1" } else { "campus" };
        let said = user.run(&["cancel", "--force", &format!("{job}[1]")]).well();
        assert!(said.contains("1 task cancelled") && said.contains(&format!("1 of them may still run, unconfirmed: 1 at {below}")), "{said}");
        let object = user.json(&["cancel", "--force", &job]);
        assert_eq!((Some(1), Some(1), Some(below)), (object["tasks"].as_u64(), object["running"].as_u64(), object["at"][0]["name"].as_str()));
        assert_eq!(1, user.wait(&job));
        assert_eq!(2, user.in_phase(&job, "cancelled"));
        assert_eq!(2, alive(&user));
        assert!(user.run(&["cancel", "--force", &job]).well().contains("nothing to do"));
        tree.start("campus-1");
        until("they are stopped", Duration::from_secs(20), || match alive(&user) {
            0 => Ok(()),
            n => Err(format!("{n} live")),
        });
    }
}
