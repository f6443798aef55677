//! What a task finds around it, and the limits it meets.

use super::tree::Tree;

#[test]
fn the_environment_is_clean_and_says_who_the_task_is() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    let job = user.submit(&["-n", "2", "-c", "2", "--env", "MINE=a b=c", "--env", "EACH=t{i}", "--", "/usr/bin/env"]);
    assert_eq!(0, user.wait(&job));
    let text = user.run(&["logs", &format!("{job}[1]")]).well();
    let mut names = Vec::new();
    for line in text.lines() {
        let (name, value) = line.split_once('=').unwrap();
        names.push(name);
        match name {
            "MINE" => assert_eq!("a b=c", value),
            "EACH" => assert_eq!("t1", value),
            "GRID_TASK_ID" => assert_eq!("1", value),
            "GRID_JOB_ID" => assert_eq!(job, value),
            "GRID_ATTEMPT" => assert_eq!("1", value),
            "GRID_SITE" => assert_eq!("campus", value),
            "GRID_SLOTS" => assert_eq!("2", value),
            "GRID_GPUS" => assert_eq!("0", value),
            "GRID_NODES" => assert_eq!("1", value),
            "GRID_TASK_COUNT" => assert_eq!("2", value),
            "TRACEPARENT" => assert!(intergrid_proto::spec::is_traceparent(value), "{line}"),
            "PATH" | "HOME" | "TMPDIR" | "LANG" | "GRID_TASK_DIR" => assert!(!value.is_empty(), "{line}"),
            other => panic!("{other} is the agent's own: {line}"),
        }
    }
    for name in ["MINE", "EACH", "GRID_TASK_ID", "GRID_JOB_ID", "GRID_ATTEMPT", "GRID_SITE", "GRID_SLOTS", "PATH"] {
        assert!(names.contains(&name), "{name} is missing: {text}");
    }
}

#[test]
fn the_index_is_put_into_arguments_and_nothing_is_left_to_a_shell() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    let job = user.submit(&["-n", "2", "--", "/usr/bin/printf", "%s|", "a{i}b{i}", "$(id) ; `id` \"'*", "{j}", ""]);
    assert_eq!(0, user.wait(&job));
    assert_eq!("a1b1|$(id) ; `id` \"'*|{j}||", user.run(&["logs", &format!("{job}[1]")]).well());
}

#[test]
fn the_time_limit_is_kept_by_a_whole_process_group() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    let job = user.submit(&["-t", "500ms", "--", "/bin/sh", "-c", "echo begun; sleep 61.25 & sleep 61.25; wait"]);
    assert_eq!(1, user.wait(&job));
    let attempts = user.json_lines(&["history", &job]);
    let reason = &attempts[0]["reason"];
    assert_eq!(("time-limit", true), (reason["kind"].as_str().unwrap(), reason["text"].as_str().unwrap().contains("limit of 500ms")), "{attempts:?}");
    let wall = attempts[0]["usage"]["wall_ms"][0].as_u64().unwrap();
    assert!((500..20_000).contains(&wall), "{wall} ms");
    assert_eq!("begun\n", user.run(&["logs", &job]).well());
    assert!(user.run(&["explain", &job]).well().contains("time-limit"));
    let alive = std::fs::read_dir("/proc").unwrap().filter_map(|e| std::fs::read(e.ok()?.path().join("cmdline")).ok());
    assert_eq!(0, alive.filter(|c| c == b"sleep\x0061.25\0").count(), "its child lives on");
}

#[test]
fn the_memory_limit_is_kept() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    // tail keeps a line whole: as much as it is given without a line's end.
    let hog = "head -c 300000000 /dev/zero | tail -n 1 | { read -r x; sleep 20; }; sleep 20";
    let job = user.submit(&["--mem", "48M", "--", "/bin/sh", "-c", hog]);
    assert_eq!(1, user.wait(&job));
    let attempts = user.json_lines(&["history", &job]);
    assert_eq!("memory-limit", attempts[0]["reason"]["kind"].as_str().unwrap(), "{attempts:?}");
    assert!(attempts[0]["reason"]["text"].as_str().unwrap().contains("48"), "{attempts:?}");
    assert!(attempts[0]["usage"]["peak_bytes"][0].as_u64().unwrap() >= 48 << 20, "{attempts:?}");
    assert!(["sampled", "cgroup"].contains(&attempts[0]["usage"]["measured"].as_str().unwrap()), "{attempts:?}");
}
