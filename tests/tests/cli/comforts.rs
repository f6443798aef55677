//! What a daily user would miss: `run`, `logs -f`, `--watch`, some tasks in every verb, completion and manual pages.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::tree::{Tree, until};
use super::user::{Running, User, grid};

#[test]
fn run_ends_as_the_command_did() {
    let mut tree = Tree::flat();
    tree.add_broker();
    for site in ["campus", "eu"] {
        let user = tree.user(site);
        let said = user.run(&["run", "--", "/bin/sh", "-c", "echo out; echo aside >&2; exit 3"]);
        assert_eq!((3, "out\n"), (said.code, said.out.as_str()), "{said:?}");
        assert!(said.err.contains("aside\n"), "{said:?}");
        assert_eq!("well\n", user.run(&["run", "--", "echo", "well"]).well());
        user.run(&["run", "--", "/bin/sh", "-c", "kill -9 $$"]).refused(137, &["signal 9"]);
        user.run(&["run", "--", "no-such-program-anywhere"]).refused(127, &["no-such-program"]);
        user.run(&["run", "--out", "never-made", "--", "true"]).refused(125, &["stage-out-failed", "never-made"]);
    }
    let user = tree.user("campus");
    let said = user.run(&["run", "-n", "3", "--", "/bin/sh", "-c", "echo a{i}; printf b; exit {i}"]);
    let mut lines: Vec<&str> = said.out.lines().collect();
    lines.sort();
    assert_eq!((1, vec!["[0] a0", "[0] b", "[1] a1", "[1] b", "[2] a2", "[2] b"]), (said.code, lines), "{said:?}");
    let said = user.run(&["--json", "run", "--", "/bin/sh", "-c", "echo x; exit 4"]);
    let objects: Vec<serde_json::Value> = said.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((4, "x\n"), (said.code, objects[0]["text"].as_str().unwrap()), "{objects:?}");
    assert_eq!(Some(4), objects.last().unwrap()["exit_code"].as_u64(), "{objects:?}");
}

#[test]
fn faults_that_are_not_the_command_s_are_125() {
    let run = |words: &[&str]| Running::spawn(grid(words)).end();
    run(&["run", "--", "true"]).refused(125, &["grid init home"]);
    run(&["run", "-n", "0", "--", "true"]).refused(125, &["-n 0"]);
    run(&["run", "hostname"]).refused(125, &["grid run -- hostname"]);
    run(&["submit", "hostname"]).refused(2, &["grid submit -- hostname"]);
    run(&["submit", "-n", "abc", "--", "x"]).refused(2, &["abc", "whole number"]);
    run(&["--json", "wait"]).refused(2, &["<JOB>"]);
    let tree = Tree::flat();
    tree.user("campus").run(&["--endpoint", "127.0.0.1:1", "run", "--", "true"]).refused(125, &["127.0.0.1:1"]);
}

#[test]
fn a_run_that_is_interrupted_cancels_its_job() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut command = grid(&["run", "--", "sleep", "60"]);
        command.env("INTERGRID_HOME", &user.home).stdout(Stdio::null()).stderr(Stdio::null());
        let before = user.json(&["ls"])["jobs"].as_array().unwrap().len();
        let mut child = command.spawn().unwrap();
        until("it is submitted", Duration::from_secs(20), || {
            let jobs = user.json(&["ls"])["jobs"].as_array().unwrap().len();
            if jobs > before { Ok(()) } else { Err(format!("{jobs} jobs")) }
        });
        // Its handler stands before the answer to the submission is here.
        user.until_phase("last", "running", 1);
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(Some(code), child.wait().unwrap().code());
        assert_eq!(1, user.wait("last"));
        assert_eq!(1, user.in_phase("last", "cancelled"));
    }
}

#[test]
fn logs_follow_tasks_to_their_end() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    let job = user.submit(&["-n", "3", "--hold", "--", "/bin/sh", "-c", "echo task {i}"]);
    user.run(&["logs", &job]).refused(4, &["has not ended", "logs -f"]);
    let following = user.spawn(&["logs", "-f", &format!("{job}[0,2]")]);
    user.run(&["release", &format!("{job}[2]")]).well();
    following.until_out("[2] task 2\n");
    user.run(&["release", &format!("{job}[0]")]).well();
    assert_eq!("[2] task 2\n[0] task 0\n", following.end().well());
    // One that never starts has no output; nobody waits for it for ever.
    let following = user.spawn(&["logs", "-f", &format!("{job}[1]")]);
    user.run(&["cancel", &job]).well();
    let said = following.end();
    assert!(said.code == 0 && said.out.is_empty() && said.err.contains("grid explain"), "{said:?}");
    // Nothing printed is no error, but worth a word.
    let quiet = user.submit(&["--", "true"]);
    assert_eq!(0, user.wait(&quiet));
    let said = user.run(&["logs", &quiet]);
    assert!(said.code == 0 && said.out.is_empty() && said.err.contains(&format!("grid show {quiet}")), "{said:?}");
}

#[test]
fn some_tasks_are_named_in_every_verb() {
    let mut tree = Tree::flat();
    tree.add_broker();
    for site in ["campus", "eu"] {
        let user = tree.user(site);
        let job = user.submit(&["-n", "10", "--hold", "--out", "o{i}", "--", "/bin/sh", "-c", "echo t{i}; echo x > o{i}"]);
        let some = |tasks: &str| format!("last[{tasks}]");
        assert!(user.run(&["release", &some("0-4")]).well().contains(&format!("job {job}[0-4]: 5 tasks")));
        let waited = user.run(&["wait", "--timeout", "60s", &some("0-4")]);
        assert_eq!((0, format!("{job}[0-4] done 5\n")), (waited.code, waited.out));
        assert_eq!(6, user.run(&["wait", "--timeout", "200ms", &job]).code, "the others are on hold");
        let view = user.json(&["show", &some("3,5-9")]);
        assert_eq!((Some(1), Some(5)), (view["phases"]["done"].as_u64(), view["phases"]["held"].as_u64()), "{view}");
        assert_eq!(("3", "5-9"), (view["ranges"][0]["tasks"].as_str().unwrap(), view["ranges"][1]["tasks"].as_str().unwrap()), "{view}");
        assert!(user.run(&["show", &some("3,5-9")]).well().contains("6 of 10 (3,5-9): done 1, held 5"));
        let why = user.json(&["explain", &some("5-6")]);
        assert_eq!((Some(2), true), (why["phases"]["held"].as_u64(), why["phases"]["done"].is_null()), "{why}");
        assert!(user.run(&["explain", &some("5-6")]).well().contains("2 held: held-by-user"));
        let attempts = user.json_lines(&["history", &some("3")]);
        assert!(!attempts.is_empty() && attempts.iter().all(|a| a["job"] == job.as_str()), "{attempts:?}");
        assert_eq!("[1] t1\n[2] t2\n", user.run(&["logs", &some("1-2")]).well());
        let to = tree.path(&format!("back-{site}"));
        assert_eq!(2, user.run(&["fetch", "--dir", to.to_str().unwrap(), &some("2-3")]).well().lines().count());
        assert!(user.run(&["hold", &some("5-6")]).well().contains(&format!("job {job}[5-6]: 2 tasks on hold")));
        assert!(user.run(&["cancel", &some("7-9")]).well().contains("3 tasks to be cancelled"));
        assert_eq!(1, user.wait(&some("7-9")));
        assert_eq!((5, 2, 3), (user.in_phase(&job, "done"), user.in_phase(&job, "held"), user.in_phase(&job, "cancelled")));
        for verb in ["show", "wait", "cancel", "hold", "release", "logs", "fetch", "history", "explain"] {
            user.run(&[verb, &some("4,10")]).refused(4, &["no task 10", "its tasks are 0-9"]);
        }
        user.run(&["cancel", &job]).well();
        assert_eq!(1, user.wait(&job));
    }
}

#[test]
fn answers_name_the_job_however_it_was_asked_for() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    let job = user.submit(&["--hold", "--", "echo", "hello"]);
    let named = |user: &User, words: &[&str]| user.json(&[words, &["last"]].concat())["job"].as_str().unwrap().to_string();
    for verb in ["show", "hold", "explain", "release"] {
        assert_eq!(job, named(&user, &[verb]), "{verb}");
    }
    assert_eq!(0, user.wait("last"));
    for words in [&["logs"][..], &["history"], &["cancel"], &["wait"]] {
        assert_eq!(job, named(&user, words), "{words:?}");
    }
}

#[test]
fn what_is_watched_is_asked_again() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    let job = user.submit(&["--", "sleep", "1.5"]);
    let views = user.json_lines(&["show", "--watch", &job]);
    assert!(views.len() >= 2 && views.last().unwrap()["phases"]["done"] == 1, "{views:?}");
    let all = [&["--json", "hosts", "--watch"][..], &["--json", "ls", "-w"], &["--json", "cost", "--live"], &["--json", "machines", "--watch"]];
    let watching = all.map(|words| (words, grid(words).env("INTERGRID_HOME", &user.home).stdout(Stdio::piped()).spawn().unwrap()));
    std::thread::sleep(Duration::from_millis(2_500));
    for (words, mut child) in watching {
        child.kill().unwrap();
        let out = child.wait_with_output().unwrap().stdout;
        assert!(out.iter().filter(|b| **b == b'\n').count() >= 2, "{words:?}");
    }
}

#[test]
fn completion_and_manual_pages_know_every_verb() {
    let run = |words: &[&str]| Running::spawn(grid(words)).end();
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completion", shell]).well();
        for word in ["submit", "run", "explain", "completion"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        assert!(!script.is_empty());
    }
    run(&["completion", "tcsh"]).refused(2, &["tcsh", "bash"]);
    let dir = tempfile::tempdir().unwrap();
    run(&["man", dir.path().join("pages").to_str().unwrap()]).well();
    for page in ["grid.1", "grid-submit.1", "grid-run.1", "grid-hosts.1"] {
        assert!(fs::read_to_string(dir.path().join("pages").join(page)).unwrap().contains(".TH"), "{page}");
    }
    run(&["man", "/proc/nowhere"]).refused(2, &["/proc/nowhere"]);
}
