//! The roles: configurations that are refused, ports and stores that are taken, identities that are not there, a clean end.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use super::tree::{Tree, until};
use super::user::{Running, Said, grid};

fn role(role: &str, config: &Path, more: &[&str]) -> Said {
    let mut command = grid(&[role, "--config", config.to_str().unwrap()]);
    command.args(more);
    Running::spawn(command).end()
}

fn check(name: &str, config: &Path) -> Said {
    role(name, config, &["--check-config"])
}

#[test]
fn configurations_are_checked_with_file_line_and_column() {
    let tree = Tree::flat();
    let good = fs::read_to_string(tree.config("campus")).unwrap();
    let path = tree.path("campus").join("other.toml");
    let with = |role: &str, text: &str| {
        fs::write(&path, text).unwrap();
        check(role, &path)
    };
    assert!(with("gateway", &good).well().contains("other.toml is good"));
    with("gateway", &good.replace("listen", "lisen")).refused(2, &["other.toml:2:1", "lisen"]);
    with("gateway", &good.replace("\"127.0.0.1:0\"", "7411")).refused(2, &["other.toml:2:10"]);
    with("gateway", &good.replace("127.0.0.1:0", "here")).refused(2, &["other.toml:2:10", "host:port"]);
    with("gateway", &good.replace("\"user\"", "\"usr\"")).refused(2, &["other.toml:8:", "usr"]);
    with("gateway", &good.replace("name = \"campus\"\n", "")).refused(2, &["other.toml:1:1", "name"]);
    with("gateway", "name = ").refused(2, &["other.toml:1:"]);
    with("gateway", &format!("{good}\n[[child]]\nname = \"x\"\nca = \"x\"\n")).refused(2, &["child", "broker"]);
    with("broker", &format!("{good}\n[agents]\nprovider = \"static\"\n")).refused(2, &["agents", "gateway"]);
    with("gateway", &format!("{good}\n[agents]\nprovider = \"process\"\nagents = 0\n")).refused(2, &["other.toml:", "agents"]);
    with("gateway", &good.replace("identity = \"identity\"", "identity = \"nowhere\"")).refused(2, &["nowhere"]);
    with("gateway", &good.replace("ca = \"identity/ca.pem\"", "ca = \"nowhere.pem\"")).refused(2, &["nowhere.pem"]);
    check("gateway", Path::new("/no/such.toml")).refused(2, &["/no/such.toml"]);

    let agent = fs::read_to_string(tree.config("campus-1")).unwrap();
    let path = tree.path("campus-1").join("other.toml");
    let with = |text: &str| {
        fs::write(&path, text).unwrap();
        check("agent", &path)
    };
    assert_eq!(0, with(&agent).code);
    with(&format!("slts = 2\n{agent}")).refused(2, &["other.toml:1:1: ", "slts"]);
    with(&agent.replace("slots = 2", "slots = 0")).refused(2, &["slots"]);
}

#[test]
fn a_port_in_use_is_said_and_nothing_is_left_behind() {
    let tree = Tree::flat();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let text = fs::read_to_string(tree.config("campus")).unwrap();
    let path = tree.path("campus").join("other.toml");
    fs::write(&path, text.replace("127.0.0.1:0", &at).replace("state = \"state\"", "state = \"other\"")).unwrap();
    let ready = tree.path("campus").join("other.json");
    role("gateway", &path, &["--ready-file", ready.to_str().unwrap()]).refused(7, &[&at, "in use", "listen"]);
    assert!(!ready.exists());
}

#[test]
fn a_second_daemon_on_one_store_is_refused() {
    let mut tree = Tree::flat();
    let text = fs::read_to_string(tree.config("campus")).unwrap();
    role("gateway", &tree.config("campus"), &[]).refused(7, &["store"]);
    // Even where it would listen elsewhere.
    let path = tree.path("campus").join("other.toml");
    fs::write(&path, text.replace("127.0.0.1:0", "localhost:0")).unwrap();
    role("gateway", &path, &[]).refused(7, &["store"]);
    let user = tree.user("campus");
    assert_eq!(0, user.run(&["submit", "--wait", "--", "true"]).code);
    // After a kill the lock is free at once.
    tree.kill("campus");
    tree.start("campus");
    assert_eq!(0, user.run(&["submit", "--wait", "--", "true"]).code);
}

#[test]
fn a_second_agent_of_one_identity_is_refused_and_logged() {
    let tree = Tree::flat();
    let text = fs::read_to_string(tree.config("campus-1")).unwrap();
    // The same directory first: its spool is taken.
    role("agent", &tree.config("campus-1"), &["--die-with-parent"]).refused(7, &["state", "in use by another agent"]);
    let path = tree.path("campus-1").join("other.toml");
    fs::write(&path, text.replace("state = \"state\"", "state = \"other\"")).unwrap();
    let mut command = grid(&["agent", "--config", path.to_str().unwrap()]);
    let mut second = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    until("the refusal is logged", Duration::from_secs(20), || {
        let log = tree.log("campus");
        if log.contains("attached already") { Ok(()) } else { Err(log) }
    });
    second.kill().unwrap();
    second.wait().unwrap();
    let user = tree.user("campus");
    assert_eq!(0, user.run(&["submit", "--wait", "--", "true"]).code);
}

#[test]
fn a_daemon_ends_in_order_when_it_is_asked_to() {
    let mut tree = Tree::flat();
    let user = tree.user("campus");
    let job = user.submit(&["--", "true"]);
    assert_eq!(0, user.wait(&job));
    for part in ["campus", "campus-1"] {
        assert_eq!(Some(0), tree.terminate(part), "{part}: {}", tree.log(part));
        tree.start(part);
    }
    assert_eq!(1, user.in_phase(&job, "done"));
    assert_eq!(0, user.run(&["submit", "--wait", "--", "true"]).code);
}

#[test]
fn a_store_of_a_newer_format_is_refused_and_left_alone() {
    let mut tree = Tree::new();
    tree.gateway("campus", None, "");
    assert_eq!(Some(0), tree.terminate("campus"));
    let store = tree.path("campus").join("state/store");
    fs::write(store.join("format"), "intergrid store 5\n").unwrap();
    role("gateway", &tree.config("campus"), &[]).refused(2, &["format"]);
    assert_eq!("intergrid store 5\n", fs::read_to_string(store.join("format")).unwrap());
    fs::write(store.join("format"), "intergrid store 4\n").unwrap();
    tree.start("campus");
}
