//! A job's life at the command line: submit, ls, show, wait, logs, history, cancel, hosts.

use super::tree::Tree;

#[test]
fn a_job_from_submit_to_history() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    let job = user.submit(&["-n", "3", "-J", "greet", "--", "/bin/sh", "-c", "echo hello {i}; echo aside >&2"]);
    let said = user.run(&["wait", "--timeout", "60s", &job]);
    assert_eq!((0, format!("{job} done 3\n")), (said.code, said.out));

    let listed = user.json(&["ls"]);
    assert_eq!((Some(job.as_str()), Some("greet")), (listed["jobs"][0]["job"].as_str(), listed["jobs"][0]["name"].as_str()));
    assert!(user.run(&["ls"]).well().contains("greet"));
    let view = user.json(&["show", &job]);
    assert_eq!((Some(3), Some(3)), (view["tasks"].as_u64(), view["phases"]["done"].as_u64()), "{view}");
    assert_eq!("requeue", view["spec"]["on_lost"].as_str().unwrap());
    assert!(user.run(&["show", &job]).well().contains("done"));

    assert_eq!("hello 0\n", user.run(&["logs", &job]).well());
    assert_eq!("hello 2\n", user.run(&["logs", &format!("{job}[2]")]).well());
    assert_eq!("aside\n", user.run(&["logs", "--stderr", &format!("{job}.1")]).well());
    let object = user.json(&["logs", &format!("{job}[1]")]);
    assert_eq!((Some("hello 1\n"), Some(8)), (object["text"].as_str(), object["size"].as_u64()), "{object}");

    let attempts = user.json_lines(&["history", &job]);
    let mut tasks = 0;
    for attempt in &attempts {
        assert_eq!(Some(1), attempt["version"].as_u64(), "{attempt}");
        assert_eq!(("ended", "done"), (attempt["what"].as_str().unwrap(), attempt["phase"].as_str().unwrap()), "{attempt}");
        let route: Vec<&str> = attempt["route"].as_array().unwrap().iter().map(|h| h["name"].as_str().unwrap()).collect();
        assert_eq!(Some(&"campus-1"), route.last(), "{attempt}");
        assert!(!attempt["usage"]["wall_ms"].as_array().unwrap().is_empty(), "{attempt}");
        assert!(!attempt["usage"]["cpu_us"].as_array().unwrap().is_empty(), "{attempt}");
        let ages = attempt["ended_age_ms"].as_array().unwrap();
        assert!(!ages.is_empty() && ages.iter().all(|a| a.as_u64().unwrap() < 600_000), "{attempt}");
        let (first, last) = attempt["tasks"].as_str().unwrap().split_once('-').unwrap_or(("0", "0"));
        tasks += last.parse::<u32>().unwrap() - first.parse::<u32>().unwrap() + 1;
    }
    assert_eq!(3, tasks, "{attempts:?}");
    assert!(user.run(&["history", &job]).well().contains("campus-1"));
}

#[test]
fn submit_says_a_bare_id_or_an_object_and_can_wait() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    let object = user.json(&["submit", "-c", "2", "--mem", "64M", "-t", "10m", "--key", "mine", "--", "true"]);
    let job = object["job"].as_str().unwrap();
    assert_eq!((Some(1), Some("mine"), Some(false)), (object["tasks"].as_u64(), object["key"].as_str(), object["existed"].as_bool()));
    let spec = user.json(&["show", job])["spec"].clone();
    assert_eq!((Some(2), Some(64 << 20), Some(600_000)), (spec["slots"].as_u64(), spec["memory_bytes"].as_u64(), spec["time_limit_ms"].as_u64()));

    let waited = user.run(&["submit", "--wait", "--", "true"]);
    let (id, rest) = waited.out.split_once('\n').unwrap();
    assert_eq!((0, format!("{id} done 1\n")), (waited.code, rest.to_string()));
    assert_eq!(1, user.run(&["submit", "--wait", "--", "false"]).code);
}

#[test]
fn jobs_are_named_by_prefix_and_last() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    let first = user.submit(&["--", "true"]);
    let last = user.submit(&["--", "true"]);
    assert_ne!(first, last);
    assert_eq!(Some(last.as_str()), user.json(&["show", "last"])["job"].as_str());
    let unique = (1..=first.len()).map(|n| &first[..n]).find(|p| !last.starts_with(p)).unwrap();
    assert_eq!(Some(first.as_str()), user.json(&["show", unique])["job"].as_str());
    assert_eq!(0, user.wait(unique));
    if first[..1] == last[..1] {
        user.run(&["show", &first[..1]]).refused(2, &[&first[..1]]);
    }
    user.run(&["show", "zzzzzzzz"]).refused(4, &["zzzzzzzz"]);
}

#[test]
fn wait_says_how_it_ended_by_its_exit_code() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    let well = user.submit(&["--", "true"]);
    let badly = user.submit(&["--", "/bin/sh", "-c", "exit 3"]);
    assert_eq!(0, user.wait(&well));
    assert_eq!(1, user.wait(&badly));
    assert_eq!(1, user.run(&["wait", &well, &badly]).code);
    let view = user.json(&["show", &badly]);
    assert_eq!(("failed", "exit 3"), (view["ranges"][0]["phase"].as_str().unwrap(), view["ranges"][0]["exit"][0].as_str().unwrap()));

    let long = user.submit(&["--", "sleep", "60"]);
    user.run(&["wait", "--timeout", "300ms", &long]).refused(6, &["timed out after 300ms"]);
    user.until_phase(&long, "running", 1);
    assert!(user.run(&["cancel", &long]).well().contains("to be cancelled"));
    assert_eq!(1, user.wait(&long));
    assert_eq!(1, user.in_phase(&long, "cancelled"));
    let attempts = user.json_lines(&["history", &long]);
    assert_eq!("cancelled", attempts[0]["reason"]["kind"].as_str().unwrap(), "{attempts:?}");
    assert!(user.run(&["cancel", &long]).well().contains("nothing to do"));
}

#[test]
fn some_tasks_are_cancelled_and_the_others_go_on() {
    let tree = Tree::flat();
    let user = tree.user("campus");
    // Two run at once; the others are still queued when they are cancelled.
    let job = user.submit(&["-n", "10", "--", "sleep", "0.3"]);
    assert!(user.run(&["cancel", &format!("{job}[8-9]")]).well().contains("2 tasks"));
    assert_eq!(1, user.wait(&job));
    assert_eq!((8, 2), (user.in_phase(&job, "done"), user.in_phase(&job, "cancelled")));
}

#[test]
fn through_a_broker_the_route_shows_every_hop() {
    let mut tree = Tree::flat();
    tree.add_broker();
    let user = tree.user("eu");
    let job = user.submit(&["-n", "2", "--", "/bin/sh", "-c", "echo $GRID_SITE"]);
    assert_eq!(0, user.wait(&job));
    assert_eq!("campus\n", user.run(&["logs", &job]).well());
    let attempts = user.json_lines(&["history", &job]);
    let route: Vec<&str> = attempts[0]["route"].as_array().unwrap().iter().map(|h| h["name"].as_str().unwrap()).collect();
    assert_eq!(["campus", "campus-1"], route[route.len() - 2..], "{attempts:?}");

    let text = user.run(&["hosts", "--tree"]).well();
    for word in ["eu", "broker", "└─ campus", "gateway (agents)", "   └─ campus-1", "agent"] {
        assert!(text.contains(word), "{word:?} is not in\n{text}");
    }
    let host = user.json(&["hosts"]);
    let gateway = &host["below"][0];
    assert_eq!(("broker", "campus"), (host["site"]["kind"].as_str().unwrap(), gateway["site"]["name"].as_str().unwrap()));
    assert_eq!((Some("campus-1"), Some(2)), (gateway["below"][0]["site"]["name"].as_str(), host["slots_total"].as_u64()), "{host}");

    // A long one is cancelled through both.
    let long = user.submit(&["--", "sleep", "60"]);
    user.until_phase(&long, "running", 1);
    user.run(&["cancel", &long]).well();
    assert_eq!(1, user.wait(&long));
    assert_eq!(1, user.in_phase(&long, "cancelled"));
}
