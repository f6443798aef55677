//! Tasks that run under a restarting site go on: the same process, one start, the true exit code. Under a restarting agent they go on too, but nobody sees
//! how they end: that is said, and with the default they run once more.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::tree::{Tree, touch, until};

const PATIENCE: Duration = Duration::from_secs(60);
/// Waits for the file GO, half a minute at most, and ends with a code of its own.
const PAYLOAD: &str = r#"echo "$$" >> "$DIR/pid-$GRID_TASK_ID"
n=0; while [ ! -e "$DIR/go" ] && [ $n -lt 1200 ]; do sleep 0.05; n=$((n+1)); done
echo "said at the end"; exit $((GRID_TASK_ID * 3))"#;

fn pid(dir: &Path, task: u32) -> Result<u32, String> {
    let text = fs::read_to_string(dir.join(format!("pid-{task}"))).map_err(|e| e.to_string())?;
    let pids: Vec<&str> = text.lines().collect();
    assert!(pids.len() < 2, "started {} times", pids.len());
    pids.first().ok_or("nothing yet")?.parse().map_err(|e| format!("{e}"))
}

/// Each of `parts` is killed and restarted, one after the other, under two running tasks.
fn run(parts: &[&str], no_requeue: bool) {
    let mut tree = Tree::deep();
    let user = tree.user("root");
    let dir = tree.path("dir");
    let env = format!("DIR={}", dir.display());
    let mut words = vec!["-n", "2", "--env", &env];
    if no_requeue {
        words.push("--no-requeue");
    }
    words.extend(["--", "/bin/sh", "-c", PAYLOAD]);
    let job = user.submit(&words);
    let pids = [0, 1].map(|task| until("the tasks run", PATIENCE, || pid(&dir, task)));
    user.until_phase(&job, "running", 2);
    for part in parts {
        tree.kill(part);
        std::thread::sleep(Duration::from_millis(500));
        tree.start(part);
        user.until_phase(&job, "running", 2);
    }
    for (task, before) in pids.iter().enumerate() {
        assert_eq!(Ok(*before), pid(&dir, task as u32));
        assert!(Path::new(&format!("/proc/{before}")).exists(), "task {task} was stopped");
    }
    touch(&dir.join("go"));
    assert_eq!(1, user.wait(&job));
    let view = user.json(&["show", &job]);
    let ended: Vec<(&str, &str, u64)> = view["ranges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| (r["phase"].as_str().unwrap(), r["exit"][0].as_str().unwrap(), r["attempts"].as_u64().unwrap()))
        .collect();
    assert_eq!(vec![("done", "exit 0", 1), ("failed", "exit 3", 1)], ended);
    assert_eq!("said at the end\n", user.run(&["logs", &job]).well());
    for task in [0, 1] {
        assert_eq!(Ok(pids[task as usize]), pid(&dir, task), "one start");
    }
}

#[test]
fn tasks_go_on_under_each_site_that_restarts() {
    run(&["root", "eu", "campus"], false);
}

#[test]
fn tasks_go_on_under_each_site_that_restarts_without_requeue() {
    run(&["campus", "eu", "root"], true);
}

/// One running task, whose agent is killed and comes back; then it may end.
fn under_an_agent(no_requeue: bool) -> (Tree, String) {
    let mut tree = Tree::flat();
    let user = tree.user("campus");
    let dir = tree.path("dir");
    let env = format!("DIR={}", dir.display());
    let mut words = vec!["--env", &env];
    if no_requeue {
        words.push("--no-requeue");
    }
    let payload = r#"echo "$GRID_ATTEMPT $$" >> "$DIR/starts"; n=0; while [ ! -e "$DIR/go" ] && [ $n -lt 1200 ]; do sleep 0.05; n=$((n+1)); done"#;
    words.extend(["--", "/bin/sh", "-c", payload]);
    let job = user.submit(&words);
    user.until_phase(&job, "running", 1);
    tree.kill("campus-1");
    std::thread::sleep(Duration::from_millis(500));
    tree.start("campus-1");
    user.until_phase(&job, "running", 1);
    let starts = fs::read_to_string(dir.join("starts")).unwrap();
    let (attempt, pid) = starts.trim_end().split_once(' ').unwrap();
    assert_eq!(("1", true), (attempt, Path::new(&format!("/proc/{pid}")).exists()), "{starts}");
    // It runs on while the agent has found it again.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(starts, fs::read_to_string(dir.join("starts")).unwrap());
    touch(&dir.join("go"));
    (tree, job)
}

#[test]
fn a_task_that_outlives_its_agent_ends_unknown_without_requeue() {
    let (tree, job) = under_an_agent(true);
    let user = tree.user("campus");
    assert_eq!(1, user.wait(&job));
    let ended = user.json_lines(&["history", &job]);
    assert_eq!(("failed", "exit-unknown"), (ended[0]["phase"].as_str().unwrap(), ended[0]["reason"]["kind"].as_str().unwrap()), "{ended:?}");
    assert_eq!(1, fs::read_to_string(tree.path("dir").join("starts")).unwrap().lines().count());
    assert!(user.run(&["explain", &job]).well().contains("exit-unknown"));
}

#[test]
fn a_task_that_outlives_its_agent_runs_once_more_with_requeue() {
    let (tree, job) = under_an_agent(false);
    let user = tree.user("campus");
    assert_eq!(0, user.wait(&job));
    let starts = fs::read_to_string(tree.path("dir").join("starts")).unwrap();
    let attempts: Vec<&str> = starts.lines().map(|l| l.split_once(' ').unwrap().0).collect();
    assert_eq!(vec!["1", "2"], attempts);
    let ended = user.json_lines(&["history", &job]);
    let kinds: Vec<&str> = ended.iter().filter_map(|e| e["reason"]["kind"].as_str()).collect();
    assert_eq!(vec!["exit-unknown"], kinds, "{ended:?}");
}
