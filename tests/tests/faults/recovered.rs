//! A site's store is replaced by an older copy, or is gone, in the middle of 200 tasks that may start once only: all of them are done, each started once.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::tree::{Tree, until};

const TASKS: usize = 200;
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Held at first are all that wait; those that are claimed go on as soon as their agents are back.
const HELD_FOR_GOOD: Duration = Duration::from_secs(6);
const PAYLOAD: &str = r#"echo started >> "$STARTS/$GRID_TASK_ID"; sleep 0.15"#;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// `back`: to a copy that is older by a third of the tasks; else to nothing but its port.
fn play(part: &str, back: bool) {
    let mut tree = Tree::deep();
    let user = tree.user("root");
    let dir = tree.path("starts");
    let started = |n: usize| {
        until(&format!("{n} tasks have started"), START_TIMEOUT, || match fs::read_dir(&dir).unwrap().count() {
            seen if seen >= n => Ok(()),
            seen => Err(format!("{seen} have")),
        });
    };
    let (n, starts_at) = (TASKS.to_string(), format!("STARTS={}", dir.display()));
    let job = user.submit(&["-n", &n, "--no-requeue", "--env", &starts_at, "--", "/bin/sh", "-c", PAYLOAD]);
    let (state, old) = (tree.path(part).join("state"), tree.path(part).join("old"));
    started(TASKS / 4);
    tree.kill(part);
    copy(&state, &old);
    tree.start(part);
    started(TASKS / 2);
    tree.kill(part);
    if !back {
        let port = fs::read(state.join("port")).unwrap();
        fs::remove_dir_all(&old).unwrap();
        fs::create_dir_all(&old).unwrap();
        fs::write(old.join("port"), port).unwrap();
    }
    fs::remove_dir_all(&state).unwrap();
    fs::rename(&old, &state).unwrap();
    tree.start(part);
    // What nobody claims is held for good, and is not waited for.
    let mut seen = (Vec::new(), Instant::now());
    until("all have ended or are held", START_TIMEOUT, || {
        let now: Vec<u64> = ["done", "failed", "cancelled", "held"].map(|p| user.in_phase(&job, p)).into();
        if now != seen.0 {
            seen = (now, Instant::now());
        }
        let over = seen.0[..3].iter().sum::<u64>() == TASKS as u64;
        let rests = seen.0.iter().sum::<u64>() == TASKS as u64 && seen.1.elapsed() > HELD_FOR_GOOD;
        if over || rests { Ok(()) } else { Err(format!("{:?}", seen.0)) }
    });
    let mut said = user.spawn(&["wait", "--timeout", "1s", "--json", &job]).end();
    let held = user.in_phase(&job, "held");
    if held > 0 {
        // Only a gateway can't know all machines that there were: what it was sent and none of them claims is not started before somebody says so.
        assert_eq!(("campus", false), (part, back), "{said:?}");
        println!("{held} tasks wait for somebody's word");
        user.run(&["hold", &job]).well();
        user.until_phase(&job, "held", held);
        std::thread::sleep(Duration::from_secs(1));
        user.run(&["release", &job]).well();
        said = user.spawn(&["wait", "--timeout", "60s", "--json", &job]).end();
    }
    let phases = user.json(&["show", &job])["phases"].clone();
    let starts: Vec<usize> = fs::read_dir(&dir).unwrap().map(|e| fs::read_to_string(e.unwrap().path()).unwrap().lines().count()).collect();
    let total: usize = starts.iter().sum();
    println!("{part}, back {back}: {total} starts of {} tasks; {phases}", starts.len());
    assert!(starts.iter().all(|n| *n == 1), "a task started twice");
    assert_eq!((0, Some(TASKS as u64), TASKS), (said.code, phases["done"].as_u64(), total), "{said:?} {phases}");
    let words = if back { "our store is an old copy" } else { "our store was lost" };
    assert!(tree.log(part).contains(words), "it says so");
}

#[test]
fn a_broker_goes_back() {
    play("eu", true);
}

#[test]
fn a_broker_loses_its_store() {
    play("eu", false);
}

#[test]
fn a_gateway_goes_back() {
    play("campus", true);
}

#[test]
fn a_gateway_loses_its_store() {
    play("campus", false);
}

#[test]
fn a_root_goes_back() {
    play("root", true);
}
