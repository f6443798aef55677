//! What the end of a machine is: that nothing of it runs. Payloads are counted by /proc, and end with their test, however it ends.

use std::fs;
use std::time::Duration;

use intergrid_agent::left::recorded;
use rustix::process::{Pid, Signal, kill_process};

use super::{PATIENCE, cloud, machines, starts, submit, world};
use crate::tree::until;

/// Processes that have this on their command line.
fn with_word(word: &str) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(word))).collect()
}

fn running(word: &str) -> usize {
    with_word(word).len()
}

/// A word of this test's own that payloads have on their command line: what of them is left is killed with it. To be made before its tree, which ends first
/// then, and starts no other.
struct Payloads(String);

impl Drop for Payloads {
    fn drop(&mut self) {
        with_word(&self.0).into_iter().filter_map(Pid::from_raw).for_each(|pid| _ = kill_process(pid, Signal::KILL));
    }
}

/// However its agent ends, and also where the gateway is away then: a job that must not run twice fails when nothing of it runs any more.
#[test]
fn a_machine_that_has_ended_leaves_no_process_of_its_tasks() {
    for (seconds, ways, is_restarted) in [(900, ["-TERM", "-STOP", "-KILL"], false), (901, ["-KILL"; 3], true)] {
        let word = format!("{seconds}.{:07}", std::process::id());
        let _payloads = Payloads(word.clone());
        let (mut tree, user) = world(&cloud(3, "1.00", "away = \"4s\""));
        user.until_slots(3, PATIENCE);
        // Beside what stays in its group: what has left it, and what has left its environment, too.
        let job = submit(&tree, &user, 3, &["--no-requeue"], &format!("{word} & setsid sleep {word} & setsid env -i sleep {word} & wait"));
        user.until_phase(&job, "running", 3);
        until("a shell and three others of each task run", PATIENCE, || match running(&word) {
            12 => Ok(()),
            n => Err(format!("{n} do")),
        });
        let agents = tree.below("burst");
        assert_eq!(3, agents.len(), "{agents:?}");
        if is_restarted {
            tree.kill("burst");
        }
        for (way, agent) in ways.into_iter().zip(&agents) {
            assert!(std::process::Command::new("kill").args([way, &agent.to_string()]).status().unwrap().success());
            if way == "-TERM" {
                until("it ends", PATIENCE, || if tree.below("burst").contains(agent) { Err("it is there".into()) } else { Ok(()) });
                let left = running(&word);
                assert!(left <= 10, "it has ended its task's group before: {left} run");
            }
        }
        if is_restarted {
            tree.start("burst");
        }
        let (code, left) = (user.wait(&job), running(&word));
        assert_eq!((1, 0), (code, left), "{:?}\n{}", user.run(&["explain", &job]), tree.log("burst"));
        assert_eq!(3, user.in_phase(&job, "failed"));
    }
}

/// Nothing of it shows whose it is: its agent had recorded it.
#[test]
fn a_task_that_has_put_off_environment_and_streams_ends_with_its_machine() {
    let word = format!("902.{:07}", std::process::id());
    let _payloads = Payloads(word.clone());
    let (tree, user) = world(&cloud(2, "1.00", "away = \"4s\""));
    user.until_slots(2, PATIENCE);
    let job = submit(&tree, &user, 2, &["--no-requeue"], &format!("0; exec env -i sleep {word} > /dev/null 2>&1"));
    user.until_phase(&job, "running", 2);
    until("both are without an environment, and recorded", PATIENCE, || {
        let bare = with_word(&word).into_iter().filter(|pid| fs::read(format!("/proc/{pid}/environ")).is_ok_and(|e| e.is_empty())).count();
        let agents = fs::read_dir(tree.path("burst").join("state/agents")).map_err(|e| e.to_string())?.flatten();
        let recorded: usize = agents.map(|agent| recorded(&agent.path().join("state")).map_or(0, |r| r.len())).sum();
        if (bare, recorded) == (2, 2) { Ok(()) } else { Err(format!("{bare} are, and {recorded}")) }
    });
    for (way, agent) in [Signal::KILL, Signal::STOP].into_iter().zip(tree.below("burst")) {
        kill_process(Pid::from_raw(agent).unwrap(), way).unwrap();
    }
    let (code, left) = (user.wait(&job), running(&word));
    assert_eq!((1, 0), (code, left), "{:?}\n{}", user.run(&["explain", &job]), tree.log("burst"));
    assert_eq!(2, user.in_phase(&job, "failed"));
}

/// Else it would end its tasks, call its end certain, and leave its agent.
#[test]
fn a_machine_is_found_again_however_the_state_is_spelled() {
    let goes_on = tempfile::NamedTempFile::new().unwrap();
    let word = goes_on.path().to_str().unwrap().to_string();
    let _payloads = Payloads(word.clone());
    let (mut tree, user) = world(&cloud(1, "1.00", "alone = \"20s\""));
    user.until_slots(1, PATIENCE);
    let job = submit(&tree, &user, 1, &["--no-requeue"], &format!("0; n=0; while [ -e {word} -a $n -lt 1200 ]; do sleep 0.1; n=$((n+1)); done"));
    user.until_phase(&job, "running", 1);
    let (agents, config) = (tree.below("burst"), tree.config("burst"));
    std::os::unix::fs::symlink("state", tree.path("burst").join("linked")).unwrap();
    let local = tree.user("burst");
    for (old, new) in [("state", "../burst/state"), ("../burst/state", "linked")] {
        tree.kill("burst");
        let text = fs::read_to_string(&config).unwrap();
        let (old, new) = (format!("state = \"{old}\"\n"), format!("state = \"{new}\"\n"));
        assert!(text.contains(&old), "{text}");
        fs::write(&config, text.replace(&old, &new)).unwrap();
        tree.start("burst");
        until("its agent is back", PATIENCE, || match machines(&local) {
            there if there.len() == 1 && there[0]["state"] == "working" => Ok(()),
            there => Err(format!("{there:?}\n{}", tree.log("burst"))),
        });
        // The first look at what runs is in the first round, of a second.
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(agents, tree.below("burst"));
    }
    drop(goes_on);
    assert_eq!(0, user.wait(&job), "{:?}\n{}", user.run(&["explain", &job]), tree.log("burst"));
    assert_eq!(1, starts(&tree).len());
    until("no agent is left", PATIENCE, || if tree.below("burst").is_empty() { Ok(()) } else { Err("one is".into()) });
}

/// Its agents would not find their files, and what the tasks write would be lost: machines end as a whole, and none of their agents is forgotten.
#[test]
fn machines_of_a_state_that_was_moved_end_with_their_agents_and_tasks() {
    let word = format!("903.{:07}", std::process::id());
    let _payloads = Payloads(word.clone());
    let (mut tree, user) = world(&cloud(2, "1.00", ""));
    user.until_slots(2, PATIENCE);
    let job = submit(&tree, &user, 2, &["--no-requeue"], &word);
    user.until_phase(&job, "running", 2);
    assert_eq!(2, tree.below("burst").len());
    tree.kill("burst");
    let (dir, config) = (tree.path("burst"), tree.config("burst"));
    fs::rename(dir.join("state"), dir.join("moved")).unwrap();
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains("state = \"state\"\n"), "{text}");
    fs::write(&config, text.replace("state = \"state\"\n", "state = \"moved\"\n")).unwrap();
    tree.start("burst");
    let (code, left) = (user.wait(&job), running(&word));
    assert_eq!((1, 0), (code, left), "{:?}\n{}", user.run(&["explain", &job]), tree.log("burst"));
    assert_eq!((2, 0), (user.in_phase(&job, "failed"), tree.below("burst").len()));
}
