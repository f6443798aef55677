//! Jobs that are over and have left memory: every verb shows them as before, also after the site was killed and started again.

use std::fs;
use std::time::Duration;

use super::tree::{Tree, until};
use super::user::User;
use super::watched::{get, metrics_at, value};

/// Nothing of what is over is in the gateway's memory any more.
fn until_forgotten(tree: &Tree) {
    until("no job in memory", Duration::from_secs(40), || {
        let page = get(&metrics_at(tree, "campus"), "GET /metrics").1;
        if value(&page, "intergrid_jobs") == Some(0.0) { Ok(()) } else { Err(page) }
    });
}

fn shown_as_before(user: &User, good: &str, bad: &str) {
    let listed = user.json(&["ls"]);
    let ids: Vec<&str> = listed["jobs"].as_array().unwrap().iter().map(|j| j["job"].as_str().unwrap()).collect();
    assert_eq!(vec![bad, good], ids, "newest first");
    assert_eq!(1, user.json(&["ls", "--limit", "1"])["jobs"].as_array().unwrap().len());
    let shared = good.bytes().zip(bad.bytes()).take_while(|(a, b)| a == b).count();
    for name in [good, &good[..5], &good[..shared + 1]] {
        let view = user.json(&["show", name]);
        assert_eq!((Some(good), Some(3), Some("k1")), (view["job"].as_str(), view["phases"]["done"].as_u64(), view["key"].as_str()), "{view}");
    }
    assert_eq!(Some(bad), user.json(&["show", "last"])["job"].as_str());
    assert_eq!((1, 1), (user.in_phase(bad, "failed"), user.in_phase(&format!("{good}[1]"), "done")));
    assert_ne!(0, user.run(&["show", &format!("{good}[7]")]).code, "it has no such task");
    assert_eq!(0, user.wait(good));
    assert_ne!(0, user.wait(bad));
    assert!(user.run(&["explain", bad]).well().contains('3'), "its exit code");
    assert_eq!("hello 2\n", user.run(&["logs", &format!("{good}[2]")]).well());
    assert!(!user.json_lines(&["history", good]).is_empty());
    let same = ["--key", "k1", "-n", "3", "--", "/bin/sh", "-c", "echo hello {i}"];
    assert_eq!(good, user.submit(&same));
    let other = user.run(&["submit", "--key", "k1", "-n", "4", "--", "/bin/sh", "-c", "echo hello {i}"]);
    assert!(other.code != 0 && other.err.contains("k1"), "{other:?}");
    user.run(&["cancel", good]);
    assert_eq!(3, user.in_phase(good, "done"), "what is over stays as it is");
}

#[test]
fn jobs_that_have_left_memory_are_shown_as_before() {
    let mut tree = Tree::new();
    tree.gateway("campus", Some("eu"), "");
    let config = fs::read_to_string(tree.config("campus")).unwrap();
    fs::write(tree.config("campus"), format!("metrics = \"127.0.0.1:0\"\n{config}")).unwrap();
    assert_eq!(Some(0), tree.terminate("campus"));
    tree.start("campus");
    tree.agent("campus-1", "campus", "slots = 2\n");
    tree.add_broker();
    let user = tree.user("campus");
    let good = user.submit(&["--key", "k1", "-n", "3", "--", "/bin/sh", "-c", "echo hello {i}"]);
    assert_eq!(0, user.wait(&good));
    let bad = user.submit(&["--", "/bin/sh", "-c", "exit 3"]);
    assert_ne!(0, user.wait(&bad));
    until_forgotten(&tree);
    shown_as_before(&user, &good, &bad);
    tree.kill("campus");
    tree.start("campus");
    until_forgotten(&tree);
    shown_as_before(&user, &good, &bad);
    // What came from a parent is found by the parent's name for it.
    let above = tree.user("eu");
    let job = above.submit(&["-n", "2", "--", "/bin/sh", "-c", "echo from above {i}"]);
    assert_eq!(0, above.wait(&job));
    until_forgotten(&tree);
    assert_eq!("from above 1\n", above.run(&["logs", &format!("{job}[1]")]).well());
}
