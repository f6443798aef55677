//! Agents as jobs of a real Slurm: many tasks, few jobs.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::site::Site;
use crate::tree::until;

const PATIENCE: Duration = Duration::from_secs(90);

fn pilots(more: &str) -> String {
    format!(
        "[pilots]\nslots = 4\nmemory = \"128M\"\npilots_max = 2\nidle = \"3s\"\nprogram = \"{}\"\n{more}",
        crate::tree::binary("grid-agent").display()
    )
}

/// Names of pilots that Slurm has, waiting or running.
fn jobs(site: &Site) -> Vec<String> {
    site.cluster.run("squeue", &["--noheader", "--format=%j"]).lines().filter(|l| l.starts_with("igp")).map(str::to_string).collect()
}

fn submissions(site: &Site) -> usize {
    fs::read_to_string(site.cluster.dir().join("submissions")).map_or(0, |text| text.lines().count())
}

/// Of this site's pilots, on their machines.
fn directories(site: &Site) -> Vec<std::path::PathBuf> {
    let paths = fs::read_dir(std::env::temp_dir()).unwrap().flatten().map(|e| e.path());
    let pilots = paths.filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("grid-pilot.")));
    let endpoint = site.tree.endpoint("campus");
    pilots.filter(|p| fs::read_to_string(p.join("agent.toml")).is_ok_and(|text| text.contains(&endpoint))).collect()
}

fn until_no_job(site: &Site) {
    until("Slurm has no job of ours", PATIENCE, || match jobs(site) {
        none if none.is_empty() => Ok(()),
        some => Err(format!("{some:?}\n{}", site.tree.log("campus"))),
    });
}

#[test]
fn many_tasks_cost_a_handful_of_jobs() {
    let mut site = Site::piloted(&pilots("time = \"30m\"\n"));
    let user = site.user("ann");
    let job = user.submit(&["-n", "300", "--no-requeue", "--", "sh", "-c", &site.counted("sleep 0.1")]);
    until("some have run", PATIENCE, || match site.starts_of_each().len() {
        n if n >= 30 => Ok(()),
        n => Err(format!("{n}; {:?}; {}\n{}", jobs(&site), user.run(&["explain", &job]).out, site.tree.log("campus"))),
    });
    let there = user.json(&["machines"])["machines"].as_array().unwrap().clone();
    assert!((1..=2).contains(&there.len()) && there[0]["type"] == "batch", "{there:?}");
    assert!(user.json(&["cost"])["budgets"].as_array().unwrap().is_empty(), "it is for no money");
    assert!(user.run(&["machines"]).well().contains(there[0]["machine"].as_str().unwrap()));
    assert!(!directories(&site).is_empty());
    // Their agents go on without it, and it finds them again.
    site.tree.kill("campus");
    std::thread::sleep(Duration::from_secs(1));
    site.tree.start("campus");
    assert_eq!(0, user.run(&["wait", "--timeout", "120s", &job]).code, "{}\n{}", user.run(&["explain", &job]).out, site.tree.log("campus"));
    site.assert_each_started_once(300);
    assert!(submissions(&site) <= 3, "{} jobs", submissions(&site));
    until_no_job(&site);
    let left = directories(&site);
    assert!(left.is_empty(), "{left:?}");
}

/// Jobs that Slurm has ever given a number.
fn jobs_ever(site: &Site) -> u64 {
    let said = site.cluster.run("scontrol", &["show", "config"]);
    let value = |name: &str| said.lines().find_map(|l| l.strip_prefix(name)?.trim_start().strip_prefix('=')?.trim().parse::<u64>().ok());
    match (value("FirstJobId"), value("NEXT_JOB_ID")) {
        (Some(first), Some(next)) => next - first,
        _ => panic!("{said}"),
    }
}

#[test]
fn ten_thousand_tasks_cost_a_handful_of_jobs() {
    const TASKS: usize = 10_000;
    let site = Site::piloted(&pilots("time = \"30m\"\n"));
    let user = site.user("ann");
    let file = site.cluster.dir().join("starts/all");
    let script = format!("echo $GRID_TASK_ID >> {}; exec /bin/true", file.display());
    let job = user.submit(&["-n", &TASKS.to_string(), "--no-requeue", "--", "sh", "-c", &script]);
    assert_eq!(0, user.run(&["wait", "--timeout", "150s", &job]).code, "{}\n{}", user.run(&["explain", &job]).out, site.tree.log("campus"));
    let text = fs::read_to_string(&file).unwrap();
    let starts: Vec<usize> = text.lines().map(|l| l.parse().unwrap_or_else(|_| panic!("{l:?} is no task"))).collect();
    let tasks: BTreeSet<usize> = starts.iter().copied().collect();
    assert_eq!((TASKS, TASKS, Some(&0), Some(&(TASKS - 1))), (starts.len(), tasks.len(), tasks.first(), tasks.last()), "each once");
    until_no_job(&site);
    let jobs = jobs_ever(&site);
    assert!((1..=8).contains(&jobs) && jobs == submissions(&site) as u64, "{jobs} jobs, {} submissions", submissions(&site));
}

#[test]
fn a_pilot_that_somebody_removes_costs_no_task() {
    let site = Site::piloted(&pilots("time = \"30m\"\n"));
    let user = site.user("ann");
    let job = user.submit(&["-n", "8", "--", "sh", "-c", &site.counted("sleep 6")]);
    user.until_phase(&job, "running", 8);
    let victim = site.cluster.run("squeue", &["--noheader", "--format=%A %j"]).lines().next().unwrap().split_once(' ').unwrap().0.to_string();
    site.cluster.run("scancel", &[&victim]);
    assert_eq!(0, user.run(&["wait", "--timeout", "120s", &job]).code, "{}\n{}", user.run(&["explain", &job]).out, site.tree.log("campus"));
    let starts = site.starts_of_each();
    assert_eq!((8, 12), (starts.len(), starts.values().sum::<usize>()), "the four of that pilot once more: {starts:?}");
    until_no_job(&site);
}

#[test]
fn a_pilot_takes_no_new_work_when_its_time_is_nearly_over() {
    let site = Site::piloted(&pilots("time = \"2m\"\ntask_time = \"112s\"\n"));
    let user = site.user("ann");
    let job = user.submit(&["-n", "60", "--no-requeue", "--", "sh", "-c", &site.counted("sleep 1.5")]);
    assert_eq!(0, user.run(&["wait", "--timeout", "120s", &job]).code, "{}\n{}", user.run(&["explain", &job]).out, site.tree.log("campus"));
    site.assert_each_started_once(60);
    assert!(submissions(&site) >= 3, "others have taken their places: {} jobs", submissions(&site));
    until_no_job(&site);
}

#[test]
fn one_array_runs_as_jobs_of_one_partition_and_under_pilots_of_another() {
    let site = Site::mixed(&pilots("time = \"30m\"\n"));
    let user = site.user("ann");
    let script = site.counted("sleep 1");
    let end = |job: &str| {
        assert_eq!(0, user.run(&["wait", "--timeout", "150s", job]).code, "{}\n{}", user.run(&["explain", job]).out, site.tree.log("campus"));
        let leaf = |attempt: &Value| attempt["route"].as_array().and_then(|r| r.last()?["name"].as_str().map(str::to_string)).unwrap_or_default();
        user.json_lines(&["history", job]).iter().map(leaf).filter(|l| !l.is_empty()).collect::<BTreeSet<String>>()
    };
    // All the time that `short` has, so that a job there asks for just that.
    let leaves = end(&user.submit(&["-n", "60", "-t", "10m", "--no-requeue", "--", "sh", "-c", &script]));
    site.assert_each_started_once(60);
    let (jobs, tasks): (Vec<_>, Vec<_>) = leaves.iter().partition(|l| *l == "short");
    assert!(jobs.len() == 1 && !tasks.is_empty() && tasks.iter().all(|l| l.starts_with("campus-m")), "{leaves:?}");
    // `short` has ten minutes, a new pilot half an hour less what its start and end take.
    let long = user.submit(&["-t", "2h", "--", "true"]);
    user.until_reason(&long, "over-limit");
    let why = user.json(&["explain", &long]).to_string();
    assert!(why.contains("asks for 2h, campus/short has 10m for a task") && why.contains("has 28m"), "{why}");
    let leaves = end(&user.submit(&["-n", "4", "-t", "20m", "--", "true"]));
    assert!(!leaves.is_empty() && leaves.iter().all(|l| l.starts_with("campus-m")), "{leaves:?}");
    let hosts = user.run(&["hosts"]).well();
    assert!(hosts.lines().any(|l| l.contains("campus/short") && l.contains("tasks of up to 10m00s")), "{hosts}");
    assert_eq!(1, user.in_phase(&long, "queued"));
    until_no_job(&site);
}

/// The LRMS knows nothing of it: only the gateway's configuration is another.
#[test]
fn what_runs_as_jobs_in_a_queue_that_gets_pilots_ends_there() {
    const TASKS: u32 = 8;
    let mut site = Site::mixed(&pilots("time = \"30m\"\n"));
    let user = site.user("ann");
    let go = site.cluster.dir().join("shared/go");
    let words = site.counted(&format!("while [ ! -e {} ]; do sleep 0.2; done", go.display()));
    let job = user.submit(&["-n", &TASKS.to_string(), "-t", "10m", "--no-requeue", "--", "sh", "-c", &words]);
    site.until_started(TASKS as usize);
    let names = site.cluster.run("squeue", &["-h", "-t", "R", "-o", "%j"]);
    assert!(names.lines().any(|l| l.starts_with("ig") && !l.starts_with("igp")), "none is a job: {names}");
    site.tree.terminate("campus");
    let config = site.tree.config("campus");
    let (text, direct) = (fs::read_to_string(&config).unwrap(), "mode.short = \"direct\"");
    assert!(text.contains(direct), "{text}");
    fs::write(&config, text.replace(direct, "mode.short = \"pilot\"")).unwrap();
    site.tree.start("campus");
    until("it is said", PATIENCE, || {
        let hosts = site.tree.user("campus").json(&["hosts"]).to_string();
        if hosts.contains("queue short is one of pilots now (mode.short)") { Ok(()) } else { Err(hosts) }
    });
    fs::write(&go, "").unwrap();
    assert_eq!(0, user.wait(&job), "{}\n{}", user.run(&["explain", &job]).out, site.tree.log("campus"));
    site.assert_each_started_once(TASKS);
}

/// It may have been submitted, and is asked for again: until it comes, users are told what stands in the way.
#[test]
fn what_sbatch_said_of_a_pilot_that_may_not_have_been_submitted_is_told_to_users() {
    const WORDS: &str = "not known whether it exists: no answer that can be read: sbatch: error: Zvonek says no";
    let site = Site::piloted(&pilots("time = \"30m\"\n"));
    site.command("sbatch", "echo 'sbatch: error: Zvonek says no' >&2; exit 1");
    let user = site.user("ann");
    let job = user.submit(&["-n", "4", "--", "true"]);
    until("explain says it", PATIENCE, || match user.run(&["explain", &job]).out {
        said if said.contains("not-rented") && said.contains(WORDS) => Ok(()),
        said => Err(format!("{said}\n{}", site.tree.log("campus"))),
    });
    let machines = user.json(&["machines"])["machines"].clone();
    assert!(machines[0]["unknown"] == true && machines[0]["state"] == WORDS, "{machines}");
    assert!(user.run(&["machines"]).well().contains(WORDS));
    site.command("sbatch", "exec /usr/bin/sbatch \"$@\"");
    assert_eq!(0, user.run(&["wait", "--timeout", "150s", &job]).code, "{}\n{}", user.run(&["explain", &job]).out, site.tree.log("campus"));
    until_no_job(&site);
}
