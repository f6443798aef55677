//! A gateway that rents its machines, under a root broker: real processes as machines, real certificates, real budgets; only the prices are made up.
//!
//! Starts are counted by the payload itself, machines by /proc.

#[allow(dead_code)]
#[path = "faults/tree.rs"]
mod tree;
#[allow(dead_code)]
#[path = "faults/user.rs"]
mod user;

#[path = "cloud/ends.rs"]
mod ends;
#[path = "cloud/failing.rs"]
mod failing;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use intergrid_proto::net::CertRole;
use serde_json::Value;

use tree::{Tree, until};
use user::User;

const PATIENCE: Duration = Duration::from_secs(60);

/// Types of one slot, 0.10 an hour; `hour` is the cap.
fn cloud(slots_max: u32, hour: &str, more: &str) -> String {
    format!(
        "\n[cloud]\nprovider = \"process\"\nslots_max = {slots_max}\nidle = \"2s\"\ncurrency = \"EUR\"\nbudget = {{ hour = \"{hour}\" }}\n{more}\n\
         [[cloud.type]]\nname = \"small\"\nslots = 1\nmemory = \"64M\"\nprice = \"0.10\"\nbilling = \"second\"\nmin_seconds = 1\n"
    )
}

/// A root broker over `burst`, and its user.
fn world(config: &str) -> (Tree, User) {
    let mut tree = Tree::new().alone();
    tree.gateway("burst", Some("root"), config);
    tree.broker("root", &["burst"], None);
    let user = tree.user("root");
    (tree, user)
}

fn machines(user: &User) -> Vec<Value> {
    user.json(&["machines"])["machines"].as_array().unwrap().clone()
}

fn starts(tree: &Tree) -> Vec<String> {
    let dir = fs::read_dir(tree.path("dir")).unwrap().flatten();
    dir.flat_map(|e| fs::read_to_string(e.path()).unwrap().lines().map(str::to_string).collect::<Vec<_>>()).collect()
}

/// Each task appends a line to a file of its own.
fn submit(tree: &Tree, user: &User, tasks: u32, more: &[&str], sleep: &str) -> String {
    let env = format!("DIR={}", tree.path("dir").display());
    let script = format!("echo \"$GRID_TASK_ID\" >> \"$DIR/$GRID_TASK_ID\"; sleep {sleep}");
    let tasks = tasks.to_string();
    let words: Vec<&str> =
        ["--yes", "-n", &tasks, "--env", &env].into_iter().chain(more.iter().copied()).chain(["--", "/bin/sh", "-c", &script]).collect();
    user.submit(&words)
}

fn number(value: &Value) -> f64 {
    value.as_str().and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{value} is not an amount"))
}

#[test]
fn machines_come_work_and_go() {
    let (tree, user) = world(&cloud(3, "1.00", ""));
    user.until_slots(3, PATIENCE);
    assert!(machines(&user).is_empty() && tree.below("burst").is_empty(), "offered, and not there");
    let job = submit(&tree, &user, 6, &[], "1");
    assert_eq!(0, user.wait(&job), "{:?}", user.run(&["explain", &job]));
    assert_eq!(6, starts(&tree).len());
    let there = machines(&user);
    assert!((1..=3).contains(&there.len()), "{there:?}");
    for m in &there {
        assert_eq!(("small", "0.10"), (m["type"].as_str().unwrap(), m["price_per_hour"].as_str().unwrap()), "{m}");
        let number: Option<u64> = m["machine"].as_str().and_then(|name| name.strip_prefix("burst-m")?.parse().ok());
        assert!(number > Some(10_000), "those of a store that was lost are others: {m}");
        let need = &m["rented_for"];
        assert_eq!((1, 1, "me"), (need["tasks"].as_u64().unwrap(), need["slots"].as_u64().unwrap(), need["principal"].as_str().unwrap()), "{m}");
    }
    let cost = &user.json(&["cost"])["budgets"][0];
    assert_eq!(
        ("budget", "EUR", "1.00"),
        (cost["budget"].as_str().unwrap(), cost["currency"].as_str().unwrap(), cost["per_hour_cap"].as_str().unwrap())
    );
    assert!(number(&cost["per_hour"]) <= 0.30 && number(&cost["today"]) > 0.0, "{cost}");
    // For people, too.
    assert!(user.run(&["machines"]).well().contains(there[0]["machine"].as_str().unwrap()));
    assert!(user.run(&["cost"]).well().contains("1.00"));

    until("all machines are gone", PATIENCE, || match (machines(&user).len(), tree.below("burst").len()) {
        (0, 0) => Ok(()),
        n => Err(format!("{n:?} are there")),
    });
    user.until_slots(3, PATIENCE);
    let cost = &user.json(&["cost"])["budgets"][0];
    assert_eq!(("0.00", "0.00"), (cost["per_hour"].as_str().unwrap(), cost["reserved"].as_str().unwrap()), "{cost}");
    assert!(number(&cost["today"]) > 0.0, "what was spent stays charged: {cost}");
    until("machines that are gone are not listed", PATIENCE, || match user.json(&["hosts"])["below"][0]["below"].as_array().unwrap().len() {
        0 => Ok(()),
        n => Err(format!("{n} are")),
    });
}

#[test]
fn a_cap_holds_and_says_so() {
    let (mut tree, user) = world(&cloud(50, "0.20", ""));
    user.until_slots(2, PATIENCE);
    let job = submit(&tree, &user, 2, &[], "600");
    user.until_phase(&job, "running", 2);
    let needs = || machines(&user).iter().map(|m| (m["machine"].to_string(), m["rented_for"].clone())).collect::<Vec<_>>();
    let (before, _) = (needs(), tree.kill("burst"));
    tree.start("burst");
    until("it knows over a restart what its machines were rented for", PATIENCE, || match needs() {
        after if after == before => Ok(()),
        after => Err(format!("{after:?}, were {before:?}")),
    });
    let more = submit(&tree, &tree.user("burst"), 5, &[], "600");
    let local = tree.user("burst");
    let said = until("the cap is named", PATIENCE, || match local.run(&["explain", &more]).well() {
        said if said.contains("budget rate") => Ok(said),
        said => Err(said),
    });
    assert!(said.contains("not-rented") && said.contains("0.20"), "{said}");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(2, tree.below("burst").len(), "not one more");
    let budgets = user.json(&["cost"])["budgets"].clone();
    let [all, mine] = &budgets.as_array().unwrap()[..] else { panic!("{budgets}") };
    for (budget, name, above, cap) in [(all, "budget", "", Some("0.20")), (mine, "me", "budget", None)] {
        let words = ["budget", "above", "per_hour", "per_hour_unknown"].map(|key| budget[key].as_str().unwrap());
        assert_eq!([name, above, "0.20", "0.00"], words, "{budget}");
        assert_eq!(cap, budget["per_hour_cap"].as_str(), "{budget}");
        // Two leases of ten minutes at the most, rounded up.
        let reserved = number(&budget["reserved"]);
        assert!(reserved > 0.0 && reserved <= 0.033_4 && reserved < number(&budget["today"]), "{budget}");
    }
    let table = user.run(&["cost"]).well();
    assert!(table.contains("RESERVED") && table.contains("me (of budget)"), "{table}");
    for (user, job) in [(&user, &job), (&local, &more)] {
        user.run(&["cancel", job]).well();
    }
    until("all machines are gone", PATIENCE, || match tree.below("burst").len() {
        0 => Ok(()),
        n => Err(format!("{n} are there")),
    });
}

/// What has no credit waits at the root, and is explained there by what the gateway tells of its shares; what its owner alone may not have comes back with that, and
/// holds no room for others.
#[test]
fn two_brokers_above_the_cap_is_named() {
    let mut tree = Tree::new().alone();
    tree.gateway("burst", Some("eu"), &cloud(50, "0.20", "[[cloud.owner]]\nname = \"bob\"\nhour = \"0.10\"\n"));
    tree.broker("eu", &["burst"], Some("root"));
    tree.broker("root", &["eu"], None);
    let (user, bob) = (tree.user("root"), tree.user_as("root", CertRole::User, "bob"));
    user.until_slots(2, PATIENCE);
    let his = submit(&tree, &bob, 2, &[], "600");
    bob.until_phase(&his, "running", 1);
    let job = submit(&tree, &user, 5, &[], "600");
    user.until_phase(&job, "running", 1);
    until("his own cap is named", PATIENCE, || match bob.run(&["explain", &his]).well() {
        said if said.contains("budget rate of bob: 0.10 of 0.10 EUR per hour are used") => Ok(()),
        said => Err(said),
    });
    let is_named = |line: &str| {
        let of = |part: &str| line.contains(part);
        of("not-rented: burst/") && of("budget rate: no more than 0.20 EUR per hour") && of("0 of 2 slots are free for us") && of("[eu]")
    };
    until("the cap is named", PATIENCE, || match user.run(&["explain", &job]).well() {
        said if said.lines().any(is_named) => Ok(()),
        said => Err(said),
    });
    assert_eq!(2, tree.below("burst").len());
    for (user, job) in [(&bob, &his), (&user, &job)] {
        user.run(&["cancel", job]).well();
    }
}

#[test]
fn what_costs_money_is_used_when_the_rest_has_been_waited_for() {
    let mut tree = Tree::new().alone();
    tree.gateway("campus", Some("root"), "\n[agents]\nprovider = \"process\"\nagents = 1\nslots = 1\nmemory = \"64M\"\n");
    tree.gateway("burst", Some("root"), &cloud(2, "1.00", ""));
    tree.broker("root", &["campus", "burst"], None);
    tree.kill("root");
    let config = fs::read_to_string(tree.config("root")).unwrap();
    fs::write(tree.config("root"), format!("{config}\n[burst]\nafter = \"6s\"\n")).unwrap();
    tree.start("root");
    let user = tree.user("root");
    user.until_slots(3, PATIENCE);
    let first = submit(&tree, &user, 1, &[], "600");
    user.until_phase(&first, "running", 1);
    let second = submit(&tree, &user, 2, &[], "600");
    let said = user.run(&["explain", &second]).well();
    assert!(said.contains("not-rented") && said.contains("after 6 s of waiting"), "{said}");
    std::thread::sleep(Duration::from_secs(2));
    assert!(machines(&user).is_empty(), "not yet");
    user.until_phase(&second, "running", 2);
    assert_eq!(2, machines(&user).len());
    for job in [&first, &second] {
        user.run(&["cancel", job]).well();
    }
}

#[test]
fn a_gateway_that_is_killed_finds_its_machines_again() {
    let (mut tree, user) = world(&cloud(3, "1.00", ""));
    user.until_slots(3, PATIENCE);
    let job = submit(&tree, &user, 12, &["--no-requeue"], "1.5");
    until("a machine is on its way", PATIENCE, || if tree.below("burst").is_empty() { Err("none".into()) } else { Ok(()) });
    let mut seen: BTreeSet<i32> = tree.below("burst");
    for pause in [0, 300, 900, 1_700] {
        std::thread::sleep(Duration::from_millis(pause));
        tree.kill("burst");
        let left = tree.below("burst");
        tree.start("burst");
        seen.extend(&left);
    }
    assert_eq!(0, user.wait(&job), "{:?}", user.run(&["explain", &job]));
    let mut starts = starts(&tree);
    starts.sort();
    starts.dedup();
    assert_eq!(12, starts.len());
    assert_eq!(12, self::starts(&tree).len(), "each once");
    seen.extend(tree.below("burst"));
    assert!(seen.len() <= 3, "more machines than slots: {seen:?}\n{}", tree.log("burst"));
    until("all machines are gone", PATIENCE, || match tree.below("burst").len() {
        0 => Ok(()),
        n => Err(format!("{n} are there: {:?}", machines(&user))),
    });
}

/// What had worked, and what was on its way and went with its gateway, says nothing of its type.
#[test]
fn a_gateway_that_was_stopped_rents_again_and_blames_nobody() {
    let (mut tree, _root) = world(&cloud(1, "1.00", ""));
    let user = tree.user("burst");
    user.until_slots(1, PATIENCE);
    let first = submit(&tree, &user, 1, &[], "0");
    assert_eq!(0, user.wait(&first), "{:?}", user.run(&["explain", &first]));
    assert_eq!(Some(0), tree.terminate("burst"));
    tree.start("burst");
    let user = tree.user("burst");
    let second = submit(&tree, &user, 1, &[], "0");
    let comes = |tree: &Tree, user: &User| {
        until("a machine comes, and none is said to have failed", PATIENCE, || {
            let said = user.run(&["explain", &second]).well();
            assert!(!said.contains("before its agent came"), "{said}");
            if tree.below("burst").is_empty() && user.in_phase(&second, "done") == 0 { Err(said) } else { Ok(()) }
        })
    };
    comes(&tree, &user);
    assert_eq!(Some(0), tree.terminate("burst"));
    tree.start("burst");
    let user = tree.user("burst");
    comes(&tree, &user);
    assert_eq!(0, user.wait(&second), "{:?}", user.run(&["explain", &second]));
}

#[test]
fn machines_end_by_themselves_when_nobody_is_left() {
    let (mut tree, user) = world(&cloud(2, "1.00", "alone = \"3s\""));
    user.until_slots(2, PATIENCE);
    let job = submit(&tree, &user, 2, &[], "6");
    user.until_phase(&job, "running", 2);
    tree.kill("burst");
    tree.kill("root");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(2, tree.below("burst").len(), "their work goes on");
    until("all machines are gone", PATIENCE, || match tree.below("burst").len() {
        0 => Ok(()),
        n => Err(format!("{n} are there")),
    });
    assert_eq!(2, starts(&tree).len());
}

#[test]
fn a_machine_that_dies_is_replaced_and_its_task_runs_elsewhere() {
    let (mut tree, user) = world(&cloud(2, "1.00", ""));
    user.until_slots(2, PATIENCE);
    let job = submit(&tree, &user, 2, &["--disconnect-timeout", "2s"], "4");
    user.until_phase(&job, "running", 2);
    let victim = *tree.below("burst").first().unwrap();
    assert!(std::process::Command::new("kill").args(["-9", &victim.to_string()]).status().unwrap().success());
    assert_eq!(0, user.wait(&job), "{:?}\n{}", user.run(&["explain", &job]), tree.log("burst"));
    for stops in 1.. {
        assert_eq!(Some(0), tree.terminate("burst"));
        assert!(tree.below("burst").is_empty(), "idle machines end with their gateway");
        let log = tree.log("burst");
        let said = ["the provider has launched it", "its end is certain", "could not be written down in time"];
        let [launched, ended, late] = said.map(|what| log.matches(what).count());
        assert!(launched <= ended + 2 * late, "and that is written down, or said of the two that there can be: {log}");
        if late < stops {
            break;
        }
        // The disk was too slow for it: once more.
        assert!(stops < 4, "it is never in time: {log}");
        tree.start("burst");
        let user = tree.user("burst");
        let job = submit(&tree, &user, 1, &[], "0");
        assert_eq!(0, user.wait(&job), "{:?}", user.run(&["explain", &job]));
    }
}

#[test]
fn a_machine_that_an_administrator_drains_is_replaced_and_goes() {
    let (tree, _user) = world(&cloud(2, "1.00", ""));
    let local = tree.user("burst");
    local.until_slots(2, PATIENCE);
    let first = submit(&tree, &local, 1, &[], "4");
    local.until_phase(&first, "running", 1);
    let name = machines(&local)[0]["machine"].as_str().unwrap().to_string();
    local.run(&["drain", &name, "--reason", "looked at"]).well();
    let said = local.run(&["machines"]).well();
    assert!(said.contains("; draining for ") && said.contains(": looked at"), "{said}");
    let second = submit(&tree, &local, 1, &[], "600");
    local.until_phase(&second, "running", 1);
    assert_eq!(2, machines(&local).len(), "another has come for it");
    until("the first is gone, idle as it is", PATIENCE, || match machines(&local) {
        left if left.len() == 1 && left[0]["machine"] != name.as_str() => Ok(()),
        left => Err(format!("{left:?}\n{}", tree.log("burst"))),
    });
    local.run(&["cancel", &second]).well();
}

/// At a terminal: what is asked on it is answered by this line. The exit code, what was seen on the terminal, and stdout.
fn at_a_terminal(user: &User, words: &[&str], answer: &str) -> (i32, String, String) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let terminal = fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let mut command = user::grid(words);
    command.env("INTERGRID_HOME", &user.home).current_dir(&user.dir);
    command.stdin(terminal.try_clone().unwrap()).stderr(terminal).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // With it goes our end of the terminal, so that reading ends with the child.
    drop(command);
    let mut master = fs::File::from(master);
    let mut to = master.try_clone().unwrap();
    let (say, said) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4_096];
        // Linux says EIO when nobody has the other end any more.
        while let Ok(n @ 1..) = master.read(&mut bytes) {
            if say.send(String::from_utf8_lossy(&bytes[..n]).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut seen = String::new();
    while !seen.contains("[y/N]") {
        match said.recv_timeout(PATIENCE) {
            Ok(more) => seen += &more,
            Err(why) => {
                _ = child.kill();
                panic!("it does not ask: {why}: {seen}");
            }
        }
    }
    to.write_all(answer.as_bytes()).unwrap();
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    (child.wait().unwrap().code().unwrap_or(-1), seen, out)
}

#[test]
fn what_a_job_may_cost_is_shown_before_it_is_submitted() {
    let (mut tree, user) = world(&cloud(8, "1.00", ""));
    user.until_slots(8, PATIENCE);
    let job = ["-n", "10", "-t", "1m", "--", "/bin/true"];
    let submit = |first: &[&'static str]| [&["submit"][..], first, &job[..]].concat();
    let jobs = || user.json(&["ls"])["jobs"].as_array().unwrap().len();
    let is_shown = |text: &str| {
        for part in ["this job may cost money: 10 tasks", "WHERE", "burst/", "0.10 EUR", "0.001667 EUR", "worst case", "0.08335 EUR"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    };
    // Nobody can be asked.
    let refused = user.run(&submit(&[]));
    is_shown(&refused.err);
    assert_eq!((2, 0, ""), (refused.code, jobs(), refused.out.as_str()), "{}", refused.err);
    // Asked, and not agreed.
    for answer in ["n\n", "\n", "perhaps\n"] {
        let (code, seen, out) = at_a_terminal(&user, &submit(&[]), answer);
        is_shown(&seen);
        assert_eq!((2, 0, ""), (code, jobs(), out.as_str()), "{answer:?}: {seen}");
    }
    // Agreed.
    let (code, seen, out) = at_a_terminal(&user, &submit(&[]), "y\n");
    is_shown(&seen);
    assert_eq!((0, 1), (code, jobs()), "{seen}");
    // Agreed before.
    let said = user.run(&submit(&["--yes"]));
    is_shown(&said.err);
    assert_eq!((0, 2), (said.code, jobs()), "{}", said.err);
    for id in [&out, &said.out] {
        assert_eq!(0, user.wait(id.trim()), "{:?}", tree.log("burst"));
    }
    // A job may wait for what is away.
    tree.kill("burst");
    until("it is asked about although it is away", PATIENCE, || match user.run(&submit(&[])) {
        said if said.code == 2 && said.err.contains("away") => {
            is_shown(&said.err);
            Ok(())
        }
        said => Err(said.err),
    });
    assert_eq!(2, jobs());
}

/// 0.10 an hour are 0.001667 a minute, rounded up.
#[test]
fn a_job_that_may_cost_money_is_asked_about_and_its_cap_holds() {
    let (tree, user) = world(&cloud(8, "1.00", ""));
    user.until_slots(8, PATIENCE);
    let refused = user.run(&["submit", "-n", "10", "-t", "1m", "--", "/bin/true"]);
    assert_eq!(2, refused.code, "{}", refused.err);
    let said = &refused.err;
    assert!(said.contains("may cost money") && said.contains("in the worst case: 0.08335 EUR") && said.contains("--yes"), "{said}");
    let unbounded = user.run(&["submit", "--", "/bin/true"]);
    assert!(unbounded.err.contains("no limit: give each task a time limit"), "{}", unbounded.err);
    assert!(user.json(&["ls"])["jobs"].as_array().unwrap().is_empty(), "nothing was submitted");

    // What costs nothing need not be asked about; it finds nothing here.
    let none = user.submit(&["--max-cost", "0EUR", "--", "/bin/true"]);
    let less = submit(&tree, &user, 1, &["-t", "1m", "--max-cost", "0.0016EUR"], "0");
    for job in [&none, &less] {
        let said = user.run(&["explain", job]).well();
        assert!(said.contains("cost-limit") && said.contains("--max-cost"), "{said}");
    }
    assert!(machines(&user).is_empty(), "nothing is rented for what can't be paid");

    let job = submit(&tree, &user, 6, &["-t", "1m", "--max-cost", "0.004EUR"], "1");
    let mut most = 0;
    until("all of it is done", PATIENCE, || {
        let view = user.json(&["show", &job]);
        let cost = &view["cost"];
        assert!(number(&cost["spent"]) + number(&cost["reserved"]) <= 0.004, "{cost}");
        most = most.max(tree.below("burst").len());
        if view["phases"]["done"] == 6 { Ok(()) } else { Err(view["phases"].to_string()) }
    });
    assert!((1..=2).contains(&most), "{most} machines, two could be paid at a time");
    let cost = &user.json(&["show", &job])["cost"];
    assert_eq!("EUR", cost["currency"]);
    // Six seconds, and what a start takes.
    assert!((0.000166..0.0006).contains(&number(&cost["spent"])) && number(&cost["reserved"]) == 0.0, "{cost}");
    let ends = user.json_lines(&["history", &job]);
    assert!(ends.iter().any(|e| e["usage"]["cost"].as_array().is_some_and(|c| !c.is_empty())), "{ends:?}");
    assert!(user.run(&["show", &job]).well().contains("of at most 0.004 EUR spent"));
    for job in [&none, &less] {
        user.run(&["cancel", job]).well();
    }
}

#[test]
fn prices_and_caps_change_while_it_runs_all_of_it_or_nothing() {
    let (tree, user) = world(&cloud(4, "0.10", ""));
    let file = tree.config("burst");
    let config = fs::read_to_string(&file).unwrap();
    let read_again = |text: &str, says: &str| {
        fs::write(&file, text).unwrap();
        let before = tree.log("burst").len();
        assert!(std::process::Command::new("kill").args(["-HUP", &tree.pid("burst").to_string()]).status().unwrap().success());
        until("it says that it has read it", PATIENCE, || match &tree.log("burst")[before..] {
            new if new.contains("the configuration was read again") => {
                assert!(new.contains(says), "{says}: {new}");
                Ok(())
            }
            new => Err(new.to_string()),
        });
    };
    let budget = || user.json(&["cost"])["budgets"][0].clone();
    user.until_slots(1, PATIENCE);
    let first = submit(&tree, &user, 1, &[], "600");
    user.until_phase(&first, "running", 1);
    let local = tree.user("burst");
    let second = submit(&tree, &local, 1, &[], "600");
    until("the cap is named", PATIENCE, || match local.run(&["explain", &second]).well() {
        said if said.contains("budget rate") => Ok(()),
        said => Err(said),
    });

    // Wrong, or not to be changed: nothing is taken, what is right in it neither.
    let raised = config.replace("hour = \"0.10\"", "hour = \"0.40\"");
    let line = config.lines().position(|l| l.starts_with("price")).unwrap() + 1;
    read_again(&raised.replace("price = \"0.10\"", "price = 0.20"), &format!("config.toml:{line}:9: invalid type"));
    read_again(&raised.replace("price = \"0.10\"", "price = 0.20"), "in `price`");
    read_again(&raised.replace("EUR", "USD"), "can't change while the gateway runs: cloud.currency");
    read_again(&raised.replace("listen = \"", "listen = \"0"), "listen");
    read_again(&config, "nothing has changed");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((1, "0.10"), (tree.below("burst").len(), budget()["per_hour_cap"].as_str().unwrap()));

    // What waits starts, at the new price; what runs keeps its own.
    read_again(&raised.replace("price = \"0.10\"", "price = \"0.20\""), "small: 0.20 EUR per hour, was 0.10 EUR per hour; caps of budget");
    local.until_phase(&second, "running", 1);
    let mut prices: Vec<String> = machines(&user).iter().map(|m| m["price_per_hour"].as_str().unwrap().to_string()).collect();
    prices.sort();
    assert_eq!(vec!["0.10", "0.20"], prices);
    let cost = budget();
    assert_eq!(("0.30", "0.40"), (cost["per_hour"].as_str().unwrap(), cost["per_hour_cap"].as_str().unwrap()));
    until("the new price is told at the root", PATIENCE, || match user.run(&["submit", "-t", "1h", "--", "/bin/true"]).err {
        said if said.contains("worst case: 1.00 EUR") => Ok(()),
        said => Err(said),
    });

    // A cap below what runs: it runs on, as what is reserved is paid for.
    read_again(&raised.replace("0.40", "0.05"), "caps of budget");
    until("the new cap is shown", PATIENCE, || if budget()["per_hour_cap"] == "0.05" { Ok(()) } else { Err(budget().to_string()) });
    assert_eq!((2, "0.30"), (tree.below("burst").len(), budget()["per_hour"].as_str().unwrap()));
    for (user, job) in [(&user, &first), (&local, &second)] {
        user.run(&["cancel", job]).well();
    }
    until("all machines are gone", PATIENCE, || match tree.below("burst").len() {
        0 => Ok(()),
        n => Err(format!("{n} are there")),
    });
}
