//! 500 tasks, and one part killed in the middle: with the default each ends Done; with `--no-requeue` each starts at most once, and what can't be known
//! is said to be so.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::tree::{Tree, until};

const TASKS: usize = 500;
/// So many short tasks have started well before this.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// The part is away so long: longer than a task runs.
const AWAY: Duration = Duration::from_millis(700);
/// A start is written down, then the work is done.
const PAYLOAD: &str = r#"echo "$GRID_TASK_ID $GRID_ATTEMPT" >> "$STARTS/$GRID_TASK_ID"; sleep 0.04"#;

/// Attempts that each task has started, in order.
pub fn starts(dir: &Path) -> BTreeMap<u32, Vec<u32>> {
    let file = |e: fs::DirEntry| {
        let task: u32 = e.file_name().into_string().unwrap().parse().unwrap();
        let text = fs::read_to_string(e.path()).unwrap();
        let attempts = text.lines().map(|l| {
            let (its, attempt) = l.split_once(' ').unwrap();
            assert_eq!(task, its.parse::<u32>().unwrap());
            attempt.parse().unwrap()
        });
        (task, attempts.collect())
    };
    fs::read_dir(dir).unwrap().map(|e| file(e.unwrap())).collect()
}

fn run(parts: &[&str], no_requeue: bool) {
    run_on(Tree::deep(), "root", TASKS, parts, no_requeue);
}

/// Run a job of so many tasks from this site; meanwhile kill and restart each of `parts`, one after the other.
pub fn run_on(mut tree: Tree, from: &str, tasks: usize, parts: &[&str], no_requeue: bool) {
    let user = tree.user(from);
    let dir = tree.path("starts");
    let starts_at = format!("STARTS={}", dir.display());
    let n = tasks.to_string();
    let mut words = vec!["-n", &n, "--env", &starts_at];
    if no_requeue {
        words.push("--no-requeue");
    }
    words.extend(["--", "/bin/sh", "-c", PAYLOAD]);
    let job = user.submit(&words);
    let waiting = user.spawn(&["wait", "--timeout", "150s", "--json", &job]);
    for (k, part) in parts.iter().enumerate() {
        let so_far = tasks * (k + 1) / (parts.len() + 1);
        until(&format!("{so_far} tasks have started"), START_TIMEOUT, || match fs::read_dir(&dir).unwrap().count() {
            n if n >= so_far => Ok(()),
            n => Err(format!("{n} have")),
        });
        tree.kill(part);
        std::thread::sleep(AWAY);
        let before = fs::read_dir(&dir).unwrap().count();
        tree.start(part);
        assert!(before < tasks, "{part} was killed too late: all tasks had started");
        println!("{part} was killed; {before} of {tasks} had started when it came back");
    }
    let said = waiting.end();
    let starts = starts(&dir);
    let view = user.json(&["show", &job]);
    let phases = &view["phases"];
    let in_phase = |phase: &str| phases[phase].as_u64().unwrap_or(0) as usize;
    let total: usize = starts.values().map(Vec::len).sum();
    let most = starts.values().map(Vec::len).max().unwrap_or(0);
    println!("{parts:?}, no requeue {no_requeue}: {total} starts, at most {most} of one task; {phases}");
    for (task, attempts) in &starts {
        let mut unique = attempts.clone();
        unique.dedup();
        assert_eq!(&unique, attempts, "task {task}: an attempt has started twice");
    }
    if !no_requeue {
        assert_eq!((0, tasks, tasks), (said.code, in_phase("done"), starts.len()), "{said:?} {phases}");
        return;
    }
    assert_eq!(1, most, "started more than once: {:?}", starts.iter().filter(|(_, a)| a.len() > 1).collect::<Vec<_>>());
    assert_eq!(tasks, in_phase("done") + in_phase("failed"), "{phases}");
    if parts.contains(&"campus-1") {
        assert!((0..=1).contains(&said.code), "{said:?}");
        assert!(in_phase("failed") <= 2, "more failed than its two slots hold: {phases}");
        let ended = user.json_lines(&["history", &job]);
        for failed in ended.iter().filter(|e| e["phase"] == "failed") {
            let reason = &failed["reason"];
            assert_eq!("exit-unknown", reason["kind"].as_str().unwrap(), "{failed}");
            assert!(reason["text"].as_str().unwrap().contains("not there to see"), "{failed}");
        }
    } else {
        assert_eq!((0, tasks, tasks), (said.code, in_phase("done"), total), "{said:?} {phases}");
    }
}

#[test]
fn the_root_is_killed_and_every_task_is_done() {
    run(&["root"], false);
}

#[test]
fn the_middle_broker_is_killed_and_every_task_is_done() {
    run(&["eu"], false);
}

#[test]
fn the_gateway_is_killed_and_every_task_is_done() {
    run(&["campus"], false);
}

#[test]
fn an_agent_is_killed_and_every_task_is_done() {
    run(&["campus-1"], false);
}

#[test]
fn the_root_is_killed_and_each_task_starts_once() {
    run(&["root"], true);
}

#[test]
fn the_middle_broker_is_killed_and_each_task_starts_once() {
    run(&["eu"], true);
}

#[test]
fn the_gateway_is_killed_and_each_task_starts_once() {
    run(&["campus"], true);
}

#[test]
fn an_agent_is_killed_and_each_task_starts_at_most_once() {
    run(&["campus-1"], true);
}

#[test]
fn all_are_killed_one_after_the_other_and_every_task_is_done() {
    run(&["root", "eu", "campus", "campus-1"], false);
}

#[test]
fn all_are_killed_one_after_the_other_and_each_task_starts_at_most_once() {
    run(&["campus-1", "campus", "eu", "root"], true);
}
