//! A gateway that starts its agents itself, as processes, and is no test's child that dies with it: after kill -9 its agents live on, and the next gateway
//! adopts them instead of starting others. A stop in order ends those that are idle, and leaves those that run something in the same way.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::tree::{Tree, touch, until};

const PATIENCE: Duration = Duration::from_secs(60);
const TASKS: u32 = 40;
const AGENTS: &str = "\n[agents]\nprovider = \"process\"\nagents = 2\nslots = 1\nmemory = \"512M\"\n";
/// The first two wait for a file; the others are short.
const PAYLOAD: &str = r#"echo "$$" >> "$DIR/starts-$GRID_TASK_ID"
n=0; while [ $GRID_TASK_ID -lt 2 ] && [ ! -e "$DIR/go" ] && [ $n -lt 1200 ]; do sleep 0.05; n=$((n+1)); done; sleep 0.05; echo "said at the end""#;

fn starts(dir: &Path, task: u32) -> Vec<i32> {
    let text = fs::read_to_string(dir.join(format!("starts-{task}"))).unwrap_or_default();
    text.lines().map(|pid| pid.parse().unwrap()).collect()
}

fn lives(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn agents_outlive_their_gateway_and_are_adopted() {
    let mut tree = Tree::new().alone();
    tree.gateway("campus", None, AGENTS);
    let user = tree.user("campus");
    user.until_slots(2, PATIENCE);
    let agents = tree.below("campus");
    assert_eq!(2, agents.len());
    let dir = tree.path("dir");
    let env = format!("DIR={}", dir.display());
    let job = user.submit(&["-n", &TASKS.to_string(), "--env", &env, "--no-requeue", "--", "/bin/sh", "-c", PAYLOAD]);
    user.until_phase(&job, "running", 2);
    let running: BTreeSet<i32> = [0, 1].iter().flat_map(|t| starts(&dir, *t)).collect();
    assert_eq!(2, running.len(), "one on each");

    tree.kill("campus");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(agents, tree.below("campus"), "they live on");
    assert!(running.iter().all(|pid| lives(*pid)), "and so do their tasks");
    tree.start("campus");
    user.until_phase(&job, "running", 2);
    user.until_slots(2, PATIENCE);
    assert_eq!(agents, tree.below("campus"), "adopted, not doubled");
    assert_eq!(2, tree.log("campus").matches("adopted a running agent").count());
    assert_eq!(2, tree.log("campus").matches("started an agent").count(), "those of the beginning");
    assert!(running.iter().all(|pid| lives(*pid)));

    // Once more, while short tasks come and go.
    touch(&dir.join("go"));
    until("half have started", PATIENCE, || match fs::read_dir(&dir).unwrap().count() as u32 {
        n if n > TASKS / 2 => Ok(()),
        n => Err(format!("{n} have")),
    });
    assert_eq!(Some(0), tree.terminate("campus"));
    assert_eq!(agents, tree.below("campus"), "busy ones are left by a stop in order, too");
    std::thread::sleep(Duration::from_millis(300));
    tree.start("campus");
    assert_eq!(0, user.wait(&job), "{:?}", user.run(&["explain", &job]));
    assert_eq!(agents, tree.below("campus"));
    let all: Vec<usize> = (0..TASKS).map(|t| starts(&dir, t).len()).collect();
    assert!(all.iter().all(|n| *n == 1), "starts of each task: {all:?}");
    for task in [0, 1, TASKS - 1] {
        assert_eq!("said at the end\n", user.run(&["logs", &format!("{job}[{task}]")]).well());
    }

    assert_eq!(Some(0), tree.terminate("campus"));
    assert_eq!(BTreeSet::new(), tree.below("campus"), "agents that were adopted are ended, too");
}

#[test]
fn an_adopted_agent_that_dies_is_started_again() {
    let mut tree = Tree::new().alone();
    tree.gateway("campus", None, AGENTS);
    let user = tree.user("campus");
    user.until_slots(2, PATIENCE);
    let agents = tree.below("campus");
    tree.kill("campus");
    tree.start("campus");
    user.until_slots(2, PATIENCE);
    assert_eq!(agents, tree.below("campus"));
    let victim = *agents.first().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(victim).unwrap(), rustix::process::Signal::KILL).unwrap();
    until("another in its place", PATIENCE, || match tree.below("campus") {
        now if now.len() == 2 && !now.contains(&victim) => Ok(()),
        now => Err(format!("{now:?}")),
    });
    let job = user.submit(&["-n", "8", "--", "/bin/sh", "-c", "sleep 0.2"]);
    assert_eq!(0, user.wait(&job), "{:?}", user.run(&["explain", &job]));
    assert_eq!(Some(0), tree.terminate("campus"));
    assert_eq!(BTreeSet::new(), tree.below("campus"));
}
