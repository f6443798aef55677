//! What operators watch: numbers for Prometheus, and the log in each of its forms.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::tree::{Tree, binary, until};
use super::user::{Running, grid};

/// Where this part says that its numbers are.
pub fn metrics_at(tree: &Tree, name: &str) -> String {
    let log = tree.log(name);
    let (_, rest) = log.rsplit_once("metrics at http://").unwrap_or_else(|| panic!("no metrics in {log}"));
    rest.split('/').next().unwrap().to_string()
}

pub fn get(at: &str, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_string(), body.to_string())
}

/// The value of a sample; every line is looked at.
pub fn value(page: &str, sample: &str) -> Option<f64> {
    let mut found = None;
    for line in page.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            assert!(comment.starts_with("HELP ") || comment.starts_with("TYPE "), "{line}");
            continue;
        }
        let (name, number) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let number: f64 = number.parse().unwrap_or_else(|e| panic!("{line}: {e}"));
        if name == sample {
            assert!(found.is_none(), "{sample} twice");
            found = Some(number);
        }
    }
    found
}

#[test]
fn prometheus_is_told_what_a_site_has_and_does() {
    let mut tree = Tree::new();
    tree.gateway("campus", Some("eu"), "");
    let config = fs::read_to_string(tree.config("campus")).unwrap();
    fs::write(tree.config("campus"), format!("metrics = \"127.0.0.1:0\"\n{config}")).unwrap();
    assert_eq!(Some(0), tree.terminate("campus"));
    tree.start("campus");
    tree.agent("campus-1", "campus", "slots = 2\n");
    tree.add_broker();
    let user = tree.user("eu");
    let job = user.submit(&["--name", "secret-name", "-n", "3", "--", "true"]);
    assert_eq!(0, user.wait(&job));
    let held = tree.user("campus").submit(&["--hold", "--", "true"]);
    let at = metrics_at(&tree, "campus");
    let (head, page) = get(&at, "GET /metrics");
    assert!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    for (sample, want) in [
        ("intergrid_tasks{phase=\"done\"}", 3.0),
        ("intergrid_tasks{phase=\"held\"}", 1.0),
        ("intergrid_tasks{phase=\"running\"}", 0.0),
        ("intergrid_jobs", 2.0),
        ("intergrid_tasks_ended_total", 3.0),
        ("intergrid_child_up{child=\"campus-1\",kind=\"agent\"}", 1.0),
        ("intergrid_child_slots{child=\"campus-1\",kind=\"agent\"}", 2.0),
        ("intergrid_child_slots_free{child=\"campus-1\",kind=\"agent\"}", 2.0),
        ("intergrid_parent_up{parent=\"eu\"}", 1.0),
        ("intergrid_draining", 0.0),
    ] {
        assert_eq!(Some(want), value(&page, sample), "{sample}: {page}");
    }
    for sample in [
        "intergrid_changes_total",
        "intergrid_commit_duration_seconds_count",
        "intergrid_store_bytes",
        "intergrid_disk_free_bytes",
        "process_resident_memory_bytes",
    ] {
        assert!(value(&page, sample).is_some_and(|n| n > 0.0), "{sample}: {page}");
    }
    for secret in ["secret-name", &job, &held, "BEGIN"] {
        assert!(!page.contains(secret), "{secret}: {page}");
    }
    assert!(get(&at, "GET /").0.starts_with("HTTP/1.1 404") && get(&at, "POST /metrics").0.starts_with("HTTP/1.1 405"));
    // What is away is told as that, and one who says nothing keeps nobody else waiting.
    let silent: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(&at).unwrap()).collect();
    tree.kill("campus-1");
    until("the agent is away", Duration::from_secs(20), || {
        let page = get(&at, "GET /metrics").1;
        if value(&page, "intergrid_child_up{child=\"campus-1\",kind=\"agent\"}") == Some(0.0) { Ok(()) } else { Err(page) }
    });
    drop(silent);
}

#[test]
fn numbers_are_for_this_machine_unless_it_is_said() {
    let mut tree = Tree::new();
    tree.gateway("campus", None, "");
    let config = fs::read_to_string(tree.config("campus")).unwrap();
    let check = |more: &str| {
        let path = tree.path("campus").join("other.toml");
        fs::write(&path, format!("{more}\n{config}")).unwrap();
        Running::spawn(grid(&["gateway", "--check-config", "--config", path.to_str().unwrap()])).end()
    };
    check("metrics = \"0.0.0.0:9\"").refused(2, &["other.toml:1:11", "0.0.0.0:9", "metrics_beyond_loopback"]);
    check("metrics = \"here\"").refused(2, &["other.toml:1:11"]);
    check("metrics = \"0.0.0.0:9\"\nmetrics_beyond_loopback = true").well();
    check("metrics = \"[::1]:9\"").well();
    assert!(!tree.log("campus").contains("metrics"), "off by default");
}

#[test]
fn a_journal_gets_lines_without_times_and_colours() {
    let mut tree = Tree::new();
    tree.gateway("campus", None, "");
    tree.agent("campus-1", "campus", "");
    tree.kill("campus-1");
    assert_eq!(Some(0), tree.terminate("campus"));
    let (home, log) = (tree.path("work"), tree.path("work").join("log"));
    for (program, role, name) in [("grid", Some("gateway"), "campus"), ("grid", Some("agent"), "campus-1"), ("grid-agent", None, "campus-1")] {
        for journal in [true, false] {
            let file = File::create(&log).unwrap();
            let stat = file.metadata().unwrap();
            let stream = if journal { format!("{}:{}", stat.dev(), stat.ino()) } else { "7:7".into() };
            let mut command = Command::new(binary(program));
            command.args(role).arg("--config").arg(tree.config(name)).arg("--die-with-parent").env_clear().env("JOURNAL_STREAM", stream);
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(file).current_dir(&home).spawn().unwrap();
            let line = until("it logs", Duration::from_secs(20), || {
                let text = fs::read_to_string(&log).unwrap();
                text.lines().next().map(str::to_string).filter(|_| text.ends_with('\n')).ok_or(text)
            });
            drop(child.stdin.take());
            child.wait().unwrap();
            assert!(!line.contains('\x1b'), "{line}");
            assert_eq!(journal, line.starts_with("<6>"), "{program} {role:?}: {line}");
            assert_eq!(!journal, line.starts_with("20"), "{program} {role:?}: {line}");
        }
    }
}

#[test]
fn one_trace_goes_from_the_client_to_the_payload() {
    let mut tree = Tree::flat();
    tree.add_broker();
    let user = tree.user("eu");
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let run = |parent: &str, words: &[&str]| {
        let mut command = grid(words);
        command.env("INTERGRID_HOME", &user.home).env("TRACEPARENT", parent).current_dir(&user.dir);
        Running::spawn(command).end()
    };
    assert_eq!(format!("{parent}\n"), run(&parent, &["run", "--", "/bin/sh", "-c", "echo $TRACEPARENT"]).well());
    let job = user.json(&["show", "last"])["job"].as_str().unwrap().to_string();
    for site in ["eu", "campus"] {
        until("its steps are logged", Duration::from_secs(20), || {
            let log = tree.log(site);
            let lines: Vec<&str> = log.lines().filter(|l| l.contains(trace)).collect();
            let good = ["accepted, of 1 tasks", "ended here: done 1"]
                .iter()
                .all(|w| lines.iter().any(|l| l.contains(w) && l.contains(&format!("origin={job}"))));
            if good { Ok(()) } else { Err(log) }
        });
    }
    // Without one, or with nonsense, it is a new one each time; the key decides what is the same job.
    let new = |parent: &str| run(parent, &["run", "--", "/bin/sh", "-c", "echo $TRACEPARENT"]).well();
    let (a, b) = (new("nonsense"), new(""));
    assert!(a != b && [&a, &b].iter().all(|t| intergrid_proto::spec::is_traceparent(t.trim())), "{a} {b}");
    let submit = |parent: &str| run(parent, &["submit", "--key", "once", "--", "true"]).well();
    assert_eq!(submit(&parent), submit(""));
    assert_eq!("mine\n", run(&parent, &["run", "--env", "TRACEPARENT=mine", "--", "/bin/sh", "-c", "echo $TRACEPARENT"]).well());
}
