//! Files: staged to the task and back, verified at both ends; programs of ours and of the site; outputs that were not made.

use std::fs;

use super::tree::Tree;

#[test]
fn a_program_and_files_go_there_and_outputs_come_back() {
    let mut tree = Tree::flat();
    tree.add_broker();
    for site in ["campus", "eu"] {
        let user = tree.user(site);
        user.script("prog", "#!/bin/sh\ncat scene more > \"tile-$1\"; printf '%s' \"$1\" > index; test -x tool && ./tool\n");
        user.script("tool", "#!/bin/sh\necho tool ran\n");
        let scene: Vec<u8> = (0..700_000u32).flat_map(|n| n.to_le_bytes()).collect();
        user.write("scene.dat", &scene);
        user.write("more", "");
        let ins = ["--in", "scene.dat=scene", "--in", "more", "--in", "tool"];
        let job = user.submit(&[&["-n", "3"][..], &ins, &["--out", "tile-{i}", "--out", "index", "--", "./prog", "{i}"]].concat());
        assert_eq!(0, user.wait(&job), "{:?}", user.run(&["explain", &job]));
        let to = tree.path(&format!("back-{site}"));
        let said = user.run(&["fetch", "--dir", to.to_str().unwrap(), &job]).well();
        assert_eq!(6, said.lines().count(), "{said}");
        for task in 0..3 {
            assert!(fs::read(to.join(format!("tile-{task}"))).unwrap() == scene, "{site} {task}");
            assert_eq!(task.to_string(), fs::read_to_string(to.join(format!("{task}/index"))).unwrap());
        }
        assert_eq!("tool ran\n", user.run(&["logs", &job]).well());
        let one = tree.path(&format!("one-{site}"));
        let fetched = user.json(&["fetch", "--task", "2", "--dir", one.to_str().unwrap(), &job]);
        assert_eq!(2, fetched["files"].as_array().unwrap().len(), "{fetched}");
        assert!(fs::read(one.join("tile-2")).unwrap() == scene && !one.join("tile-1").exists());
    }
}

#[test]
fn a_program_that_is_not_here_is_said_before_anything_is_sent() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    user.run(&["submit", "--", "./absent"]).refused(2, &["./absent", "does not exist"]);
    user.write("plain", "#!/bin/sh\n");
    user.run(&["submit", "--", "./plain"]).refused(2, &["plain", "not executable", "chmod +x"]);
    user.run(&["submit", "--", "bin/prog"]).refused(2, &["./bin/prog"]);
    user.run(&["submit", "--in", "absent", "--", "true"]).refused(2, &["absent", "does not exist"]);
    user.run(&["submit", "--in", ".", "--", "true"]).refused(2, &["--in"]);
    assert_eq!(0, user.json(&["ls"])["jobs"].as_array().unwrap().len());
}

#[test]
fn a_program_that_is_not_there_fails_the_task_as_a_shell_would() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    user.script("orphan", "#!/no/such/interpreter\n");
    user.script("noise", "neither a binary nor a script\n");
    let cases: [(&[&str], &str, &str, &str); 5] = [
        (&["--", "no-such-program-anywhere"], "no-such-program", "exit 127", "no-such-program-anywhere"),
        (&["--", "/no/such/program"], "no-such-program", "exit 127", "/no/such/program"),
        (&["--", "./orphan"], "no-such-program", "exit 127", "interpreter"),
        (&["--", "/etc/passwd"], "not-executable", "exit 126", "/etc/passwd"),
        (&["--", "./noise"], "not-executable", "exit 126", "noise"),
    ];
    for (words, kind, exit, says) in cases {
        let job = user.submit(words);
        assert_eq!(1, user.wait(&job), "{words:?}");
        let attempts = user.json_lines(&["history", &job]);
        let reason = &attempts[0]["reason"];
        assert_eq!((kind, exit), (reason["kind"].as_str().unwrap(), attempts[0]["exit"][0].as_str().unwrap()), "{words:?} {attempts:?}");
        assert!(reason["text"].as_str().unwrap().contains(says), "{reason}");
        let explained = user.run(&["explain", &job]).well();
        assert!(explained.contains(kind) && explained.contains(says), "{explained}");
    }
}

#[test]
fn an_output_that_was_not_made_fails_the_task() {
    let mut tree = Tree::flat();
    tree.add_broker();
    for site in ["campus", "eu"] {
        let user = tree.user(site);
        let job = user.submit(&["-n", "2", "--out", "made", "--", "/bin/sh", "-c", "echo ran; test {i} = 1 || echo x > made"]);
        assert_eq!(1, user.wait(&job));
        assert_eq!((1, 1), (user.in_phase(&job, "done"), user.in_phase(&job, "failed")));
        let attempts = user.json_lines(&["history", &job]);
        let failed = attempts.iter().find(|a| a["phase"] == "failed").unwrap();
        assert_eq!(("stage-out-failed", "1"), (failed["reason"]["kind"].as_str().unwrap(), failed["tasks"].as_str().unwrap()), "{failed}");
        assert!(failed["reason"]["text"].as_str().unwrap().contains("made"), "{failed}");
        assert_eq!("ran\n", user.run(&["logs", &format!("{job}[1]")]).well());
        let to = tree.path(&format!("back-{site}"));
        user.run(&["fetch", "--dir", to.to_str().unwrap(), &job]).well();
        assert_eq!("x\n", fs::read_to_string(to.join("0/made")).or_else(|_| fs::read_to_string(to.join("made"))).unwrap());
    }
}

#[test]
fn nothing_to_fetch_is_said() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    let job = user.submit(&["--", "true"]);
    assert_eq!(0, user.wait(&job));
    user.run(&["fetch", &job]).refused(4, &["declares no outputs"]);
    user.run(&["logs", &format!("{job}[7]")]).refused(4, &[]);
}
