//! Bad input gets a clear error, an exit code of its own, and changes nothing.

use intergrid_proto::net::CertRole;
use serde_json::Value;

use super::tree::Tree;
use super::user::{Running, grid};

#[test]
fn usage_is_refused_before_anybody_is_asked() {
    // No home: whoever would ask first would say so.
    let run = |words: &[&str]| Running::spawn(grid(words)).end();
    for (words, says) in [
        (&["submit", "-n", "0", "--", "true"][..], "-n 0"),
        (&["submit", "-n", "many", "--", "true"], "many"),
        (&["submit", "-c", "0", "--", "true"], "-c 0"),
        (&["submit", "--mem", "4", "--", "true"], "512M"),
        (&["submit", "-t", "10", "--", "true"], "10m"),
        (&["submit", "--env", "A", "--", "true"], "NAME=VALUE"),
        (&["submit", "--env", "GRID_X=1", "--", "true"], "GRID_"),
        (&["submit", "--out", "../x", "--", "true"], "outputs"),
        (&["submit", "hostname"], "hostname"),
        (&["submit"], "CMD"),
        (&["show", "a/b"], "not a job"),
        (&["wait", "--timeout", "3", "last"], "300s"),
        (&["nonsense"], "nonsense"),
    ] {
        run(words).refused(2, &["grid: ", says]);
    }
    run(&["submit", "-n", "5000000", "--", "true"]).refused(5, &["4000000"]);
    run(&["ls"]).refused(2, &["grid init home"]);
    let said = run(&["--json", "submit", "-n", "0", "--", "true"]);
    let object: Value = serde_json::from_str(&said.err).unwrap();
    assert_eq!((2, "invalid", Some(1)), (said.code, object["error"]["kind"].as_str().unwrap(), object["version"].as_u64()), "{object}");
    for words in [&["--help"][..], &["submit", "--help"], &["help", "submit"], &["--version"]] {
        assert_eq!(0, run(words).code, "{words:?}");
    }
}

#[test]
fn one_key_is_one_job() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    let job = user.submit(&["--key", "k1", "--", "/bin/sh", "-c", "echo once"]);
    assert_eq!(job, user.submit(&["--key", "k1", "--", "/bin/sh", "-c", "echo once"]));
    assert_eq!(Some(true), user.json(&["submit", "--key", "k1", "--", "/bin/sh", "-c", "echo once"])["existed"].as_bool());
    user.run(&["submit", "--key", "k1", "--", "/bin/sh", "-c", "echo other"]).refused(2, &["k1"]);
    user.run(&["submit", "--key", "k1", "-n", "2", "--", "/bin/sh", "-c", "echo once"]).refused(2, &["k1"]);
    let object: Value = serde_json::from_str(&user.run(&["--json", "submit", "--key", "k1", "--", "false"]).err).unwrap();
    assert_eq!("conflict", object["error"]["kind"].as_str().unwrap());
    assert_eq!(1, user.json(&["ls"])["jobs"].as_array().unwrap().len());
    assert_eq!(0, user.wait(&job));
    assert_eq!(job, user.submit(&["--key", "k1", "--", "/bin/sh", "-c", "echo once"]));
}

#[test]
fn who_may_not_is_told_so() {
    let tree = Tree::flat();
    let (admin, ann, bob) = (tree.user("campus"), tree.user_as("campus", CertRole::User, "ann"), tree.user_as("campus", CertRole::User, "bob"));
    let job = ann.submit(&["--hold", "--", "true"]);
    // Another user's job is as good as none.
    for words in [&["show", &job][..], &["cancel", &job], &["logs", &job], &["history", &job]] {
        let said = bob.run(words);
        assert!([3, 4].contains(&said.code), "{words:?}: {said:?}");
    }
    assert_eq!(0, bob.json(&["ls"])["jobs"].as_array().unwrap().len());
    assert_eq!(Some(job.as_str()), admin.json(&["show", &job])["job"].as_str());
    assert_eq!(1, ann.in_phase(&job, "held"));
    // A certificate of another site's authority, and one that is no user's.
    let mut stranger = tree.user_as("campus", CertRole::User, "eve");
    let other = Tree::flat();
    let foreign = other.user("campus");
    stranger.home = foreign.home.clone();
    stranger.run(&["--endpoint", &tree.endpoint("campus"), "ls"]).refused(3, &["grid: "]);
    let agent = tree.user_as("campus", CertRole::Agent, "campus-9");
    agent.run(&["ls"]).refused(3, &["grid: "]);
    agent.run(&["submit", "--", "true"]).refused(3, &[]);
}

#[test]
fn what_is_not_there_and_who_is_not_there() {
    let mut tree = Tree::flat();
    let user = tree.user("campus");
    for verb in ["show", "wait", "cancel", "hold", "release", "logs", "fetch", "history", "explain"] {
        user.run(&[verb, "last"]).refused(4, &["grid: "]);
        user.run(&[verb, "zzzzzz"]).refused(4, &["zzzzzz"]);
    }
    tree.kill("campus");
    let endpoint = tree.endpoint("campus");
    user.run(&["ls"]).refused(7, &[&endpoint]);
    user.run(&["--endpoint", "127.0.0.1:1", "ls"]).refused(7, &["127.0.0.1:1"]);
    tree.start("campus");
    assert_eq!(0, user.run(&["ls"]).code);
}
