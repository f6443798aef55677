//! Tasks that run under a restarting site go on: the same process, one start, the true exit code.

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
