//! `explain`: why a task waits, from each hop.

use std::time::Duration;

use super::tree::{Tree, until};
use super::user::User;

fn explained(user: &User, job: &str, kind: &str, words: &[&str]) {
    until(&format!("{job} is explained by {kind}"), Duration::from_secs(20), || {
        let text = user.run(&["explain", job]).well();
        let good = text.contains(kind) && words.iter().all(|w| text.contains(w));
        if good { Ok(()) } else { Err(text) }
    });
}

#[test]
fn what_no_machine_could_ever_run_says_so() {
    let mut tree = Tree::flat();
    tree.add_broker();
    for site in ["campus", "eu"] {
        let user = tree.user(site);
        let wide = user.submit(&["-c", "64", "--", "true"]);
        explained(&user, &wide, "no-fit", &["64 slots", site]);
        let large = user.submit(&["--mem", "512G", "--", "true"]);
        explained(&user, &large, "no-fit", &["512"]);
        let object = user.json(&["explain", &wide]);
        assert_eq!((Some(wide.as_str()), Some(1)), (object["job"].as_str(), object["phases"]["queued"].as_u64()), "{object}");
        assert!(object["phase_reasons"][0]["reason"]["kind"] == "no-fit", "{object}");
        // Who waits is told once.
        let waited = user.run(&["wait", "--timeout", "1s", &wide]);
        assert_eq!((6, 1), (waited.code, waited.err.matches("no-fit: no machine could ever run it").count()), "{}", waited.err);
        user.run(&["cancel", &wide, &large]).well();
        assert_eq!(1, user.wait(&wide));
    }
}

#[test]
fn what_is_on_hold_says_so_until_it_is_released() {
    let mut tree = Tree::flat();
    tree.add_broker();
    for site in ["campus", "eu"] {
        let user = tree.user(site);
        let job = user.submit(&["--hold", "--", "true"]);
        explained(&user, &job, "held-by-user", &[]);
        assert_eq!(1, user.in_phase(&job, "held"));
        assert_eq!(6, user.run(&["wait", "--timeout", "300ms", &job]).code);
        user.run(&["release", &job]).well();
        assert_eq!(0, user.wait(&job));
    }
}

#[test]
fn what_waits_for_a_slot_says_so() {
    let mut tree = Tree::flat();
    tree.add_broker();
    for site in ["campus", "eu"] {
        let user = tree.user(site);
        let full = user.submit(&["-c", "2", "--", "sleep", "60"]);
        user.until_phase(&full, "running", 1);
        let waits = user.submit(&["-n", "40", "--", "true"]);
        explained(&user, &waits, "busy", &[site]);
        user.run(&["cancel", &full]).well();
        assert_eq!(0, user.wait(&waits));
    }
}

#[test]
fn a_site_without_machines_says_so() {
    let mut tree = Tree::new();
    tree.gateway("campus", None, "");
    let user = tree.user("campus");
    let job = user.submit(&["--", "true"]);
    explained(&user, &job, "no-resource", &["campus"]);
    tree.agent("campus-1", "campus", "slots = 1\n");
    assert_eq!(0, user.wait(&job));
}
