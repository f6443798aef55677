//! What a task prints is seen while it runs, three hops away; each byte once, also over a reconnect, and to the last one when it has ended.

use std::fs;
use std::time::Duration;

use super::tree::{Tree, touch, until};

const LINES: usize = 400;
/// Numbered lines on both streams, some of them slowly; the last of them, without an end, after a file is there.
const PAYLOAD: &str = r#"i=0; while [ $i -lt 400 ]; do echo "out $i"; echo "err $i" >&2; i=$((i+1)); [ $((i%8)) -eq 0 ] && sleep 0.1; done
n=0; while [ ! -e "$GO" ] && [ $n -lt 1200 ]; do sleep 0.05; n=$((n+1)); done; printf 'the end'; exit 3"#;

fn expected(what: &str) -> String {
    (0..LINES).map(|i| format!("{what} {i}\n")).collect()
}

#[test]
fn a_run_prints_as_its_task_does_also_over_a_reconnect() {
    let mut tree = Tree::deep();
    let user = tree.user("root");
    let go = tree.path("dir").join("go");
    let env = format!("GO={}", go.display());
    let run = user.spawn(&["run", "--env", &env, "--", "/bin/sh", "-c", PAYLOAD]);
    run.until_out("out 20\n");
    assert_eq!(1, user.in_phase("last", "running"), "it is seen while it runs");
    // A second follower, and the one hop in the middle away for a while.
    let job = user.json(&["ls"])["jobs"][0]["job"].as_str().unwrap().to_string();
    let aside = user.spawn(&["logs", "-f", "--stderr", &job]);
    tree.kill("eu");
    std::thread::sleep(Duration::from_millis(700));
    tree.start("eu");
    run.until_out(&format!("out {}\n", LINES - 1));
    aside.until_out(&format!("err {}\n", LINES - 1));
    assert_eq!(1, user.in_phase(&job, "running"), "all of it was seen before the end");
    touch(&go);
    let (said, aside) = (run.end(), aside.end());
    assert_eq!((3, expected("out") + "the end"), (said.code, said.out), "{}", said.err);
    let err: String = said.err.lines().filter(|l| l.starts_with("err ")).map(|l| format!("{l}\n")).collect();
    assert_eq!(expected("err"), err);
    assert_eq!((0, expected("err")), (aside.code, aside.out));
}

#[test]
fn a_task_that_starts_again_is_said_to_and_shown_from_its_beginning() {
    let mut tree = Tree::flat();
    let user = tree.user("campus");
    let dir = tree.path("dir");
    let env = format!("DIR={}", dir.display());
    let payload =
        r#"echo "attempt $GRID_ATTEMPT"; echo x >> "$DIR/starts"; n=0; while [ ! -e "$DIR/go" ] && [ $n -lt 600 ]; do sleep 0.05; n=$((n+1)); done"#;
    let following = user.spawn(&["run", "--env", &env, "--", "/bin/sh", "-c", payload]);
    following.until_out("attempt 1\n");
    // Its process ends with nobody there to see how, so that it runs once more.
    tree.kill("campus-1");
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    for pid in pids.filter(|pid| fs::read(format!("/proc/{pid}/environ")).is_ok_and(|e| String::from_utf8_lossy(&e).contains(&env))) {
        _ = rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL);
    }
    tree.start("campus-1");
    following.until_out("attempt 2\n");
    touch(&dir.join("go"));
    let said = following.end();
    assert_eq!((0, "attempt 1\nattempt 2\n"), (said.code, said.out.as_str()), "{said:?}");
    assert!(said.err.contains("started again"), "{said:?}");
    until("two starts", Duration::from_secs(1), || match fs::read_to_string(dir.join("starts")).unwrap().lines().count() {
        2 => Ok(()),
        n => Err(n.to_string()),
    });
}

#[test]
fn a_task_that_prints_faster_than_it_is_looked_at_loses_nothing() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    let program = r#"i=0; while [ $i -lt 6 ]; do head -c 1000000 /dev/zero | tr '\0' "$i"; sleep 0.4; i=$((i+1)); done; echo over"#;
    let said = user.run(&["run", "--", "/bin/sh", "-c", program]).well();
    let whole: String = (0..6).map(|i| i.to_string().repeat(1_000_000)).collect::<String>() + "over\n";
    assert!(whole == said, "{} bytes of {}, or others", said.len(), whole.len());
}
