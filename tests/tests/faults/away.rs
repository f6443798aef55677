//! A gateway that stays away longer than the job's disconnect time-out, while its task runs on: by default the task runs elsewhere and one result counts;
//! with `--no-requeue` it is waited for.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::tree::{Tree, touch, until};
use super::user::User;

const PATIENCE: Duration = Duration::from_secs(60);
const PAYLOAD: &str = r#"echo "$GRID_SITE $GRID_ATTEMPT" >> "$DIR/starts-$1"
n=0; while [ ! -e "$DIR/go-$1" ] && [ $n -lt 1200 ]; do sleep 0.05; n=$((n+1)); done; echo "$GRID_SITE""#;

struct Away {
    tree: Tree,
    user: User,
    dir: PathBuf,
    job: String,
    /// Where task 0 runs; it has been killed.
    gone: String,
}

impl Away {
    fn starts(&self, task: u32) -> Vec<(String, String)> {
        let text = fs::read_to_string(self.dir.join(format!("starts-{task}"))).unwrap_or_default();
        text.lines().map(|l| l.split_once(' ').unwrap()).map(|(site, attempt)| (site.into(), attempt.into())).collect()
    }

    /// Two gateways of one slot, each with one of two tasks; then the gateway of task 0 is killed, and the slot of the other is free.
    fn new(more: &[&str]) -> Away {
        let mut tree = Tree::new();
        for name in ["north", "south"] {
            tree.gateway(name, Some("root"), "");
            tree.agent(&format!("{name}-1"), name, "slots = 1\n");
        }
        tree.broker("root", &["north", "south"], None);
        let (user, dir) = (tree.user("root"), tree.path("dir"));
        user.until_slots(2, PATIENCE);
        let env = format!("DIR={}", dir.display());
        let words = ["-n", "2", "--env", &env, "--disconnect-timeout", "1s"];
        let job = user.submit(&[&words[..], more, &["--", "/bin/sh", "-c", PAYLOAD, "sh", "{i}"]].concat());
        let mut away = Away { tree, user, dir, job, gone: String::new() };
        away.user.until_phase(&away.job, "running", 2);
        let sites = [0, 1].map(|task| until("both run", PATIENCE, || away.starts(task).first().map(|s| s.0.clone()).ok_or("not yet".into())));
        assert_ne!(sites[0], sites[1], "one slot each");
        away.gone = sites[0].clone();
        away.tree.kill(&away.gone);
        touch(&away.dir.join("go-1"));
        away
    }
}

#[test]
fn a_task_runs_elsewhere_and_one_result_counts() {
    let mut away = Away::new(&[]);
    until("it starts once more", PATIENCE, || if away.starts(0).len() == 2 { Ok(()) } else { Err(format!("{:?}", away.starts(0))) });
    touch(&away.dir.join("go-0"));
    assert_eq!(0, away.user.wait(&away.job));
    let (first, second) = (away.starts(0)[0].clone(), away.starts(0)[1].clone());
    assert_eq!((away.gone.as_str(), "1", "2"), (first.0.as_str(), first.1.as_str(), second.1.as_str()));
    assert_ne!(first.0, second.0);
    away.tree.start(&away.gone);
    let stale = until("history shows both", PATIENCE, || {
        let ended = away.user.json_lines(&["history", &format!("{}[0]", away.job)]);
        // A fence is a row of its own; what the fenced attempt used comes when its gateway and agent are back.
        let used = |e: &&serde_json::Value| e["stale"] == true && e["usage"]["wall_ms"].as_array().is_some_and(|l| !l.is_empty());
        let stale = ended.iter().find(used).cloned();
        stale.ok_or(format!("{ended:?}"))
    });
    assert!(stale["route"].as_array().unwrap().iter().any(|h| h["name"] == away.gone.as_str()), "{stale}");
    let view = away.user.json(&["show", &away.job]);
    assert_eq!(Some(2), view["phases"]["done"].as_u64(), "{view}");
    assert_eq!(2, away.starts(0).len());
    assert_eq!(format!("{}\n", second.0), away.user.run(&["logs", &away.job]).well(), "the result that counts");
}

#[test]
fn without_requeue_it_is_waited_for() {
    let mut away = Away::new(&["--no-requeue"]);
    until("that contact is lost is said", PATIENCE, || {
        let text = away.user.run(&["explain", &away.job]).well();
        if text.contains("contact-lost") { Ok(()) } else { Err(text) }
    });
    // Well beyond the time-out.
    assert_eq!(6, away.user.run(&["wait", "--timeout", "3s", &away.job]).code);
    assert_eq!(1, away.starts(0).len());
    touch(&away.dir.join("go-0"));
    away.tree.start(&away.gone);
    assert_eq!(0, away.user.wait(&away.job));
    assert_eq!(vec![(away.gone.clone(), "1".to_string())], away.starts(0));
    assert_eq!(format!("{}\n", away.gone), away.user.run(&["logs", &away.job]).well());
}

/// What people read: which site, since when, why, and what becomes of its tasks. Never an id, nor a wall of what the transport says.
#[test]
fn it_is_said_who_is_away_since_when_why_and_what_next() {
    let mut tree = Tree::new();
    tree.gateway("north", Some("root"), "");
    tree.agent("north-1", "north", "slots = 1\n");
    tree.gateway("south", Some("root"), "");
    // Nobody ever listened on port 1.
    let children = [("north", Some(tree.endpoint("north"))), ("south", Some(tree.endpoint("south"))), ("never", Some("127.0.0.1:1".to_string()))];
    tree.broker_of("root", &children, None);
    let user = tree.user("root");
    user.until_slots(1, PATIENCE);
    let done = user.submit(&["--", "/bin/sh", "-c", "echo made in the north"]);
    assert_eq!(0, user.wait(&done));
    let running = user.submit(&["--disconnect-timeout", "5m", "--", "sleep", "1000"]);
    user.until_phase(&running, "running", 1);
    tree.kill("north");
    let said = |words: &[&str]| {
        let said = user.run(words);
        let id = |w: &str| w.len() >= 8 && w.chars().all(|c| c.is_ascii_hexdigit()) && w.chars().any(|c| c.is_ascii_digit());
        let text = said.out + &said.err;
        assert!(!text.split(|c: char| !c.is_alphanumeric()).any(id), "an id: {text}");
        text
    };
    let has = |text: &str, words: &[&str]| words.iter().all(|w| text.contains(w));
    let north = ["north", "connection refused", "1 task there goes elsewhere within 5 min unless it comes back"];
    let tree_of = until("the tree says so", PATIENCE, || {
        let text = said(&["hosts", "--tree"]);
        let line = text.lines().find(|l| l.contains("north")).unwrap_or_default().to_string();
        if has(&line, &north) && line.contains("unreachable, for ") { Ok(text) } else { Err(text) }
    });
    let never = tree_of.lines().find(|l| l.contains("never ")).unwrap();
    assert!(has(never, &["unreachable, never since this site started: cannot reach 127.0.0.1:1: connection refused"]), "{tree_of}");
    let explained = said(&["explain", &running]);
    assert!(has(&explained, &north) && explained.contains("unreachable, for "), "{explained}");
    assert!(!explained.contains("south"), "{explained}");
    let logs = said(&["logs", &done]);
    assert!(
        has(&logs, &["the output of task 0 is at north, which is unreachable for ", "connection refused", "ask again when north is back"]),
        "{logs}"
    );
    assert!(!has(&logs, &["south"]), "a live site is not blamed: {logs}");
    println!("{tree_of}{explained}{logs}");
    tree.start("north");
    let back = until("it is back", PATIENCE, || {
        let said = user.run(&["logs", &done]);
        if said.code == 0 { Ok(said.out) } else { Err(said.err) }
    });
    assert_eq!("made in the north\n", back);
}
