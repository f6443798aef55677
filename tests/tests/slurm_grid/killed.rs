//! kill -9 and restart of the gateway, the controller and a machine's daemon in the middle of an array, and an `sbatch` that can't be trusted: nothing is
//! lost, nothing is run twice.

use std::time::Duration;

use intergrid_tests::slurm::Part;

use crate::site::Site;
use crate::tree::until;
use crate::user::User;

const TASKS: u32 = 60;
/// Of those that take long.
const FEW: u32 = 24;
const PATIENCE: Duration = Duration::from_secs(90);

fn submitted(site: &Site, user: &User, tasks: u32, then: &str) -> String {
    let job = user.submit(&["-n", &tasks.to_string(), "--no-requeue", "--", "sh", "-c", &site.counted(then)]);
    until("a third has started", PATIENCE, || {
        let n = site.starts_of_each().len();
        if n >= tasks as usize / 3 { Ok(()) } else { Err(n.to_string()) }
    });
    job
}

#[track_caller]
fn all_done(site: &Site, user: &User, job: &str, tasks: u32) {
    let code = user.run(&["wait", "--timeout", "170s", job]).code;
    assert_eq!(0, code, "{}\n{}", user.run(&["show", job]).out, user.run(&["explain", job]).out);
    site.assert_each_started_once(tasks);
}

#[test]
fn the_gateway() {
    let mut site = Site::start();
    let ann = site.user("ann");
    let job = submitted(&site, &ann, TASKS, "sleep 1");
    site.tree.kill("campus");
    std::thread::sleep(Duration::from_secs(3));
    site.tree.start("campus");
    all_done(&site, &ann, &job, TASKS);
}

#[test]
fn the_controller_once_it_has_saved() {
    let mut site = Site::start();
    let ann = site.user("ann");
    let job = submitted(&site, &ann, FEW, "sleep 8");
    site.cluster.until_saved();
    site.cluster.kill(Part::Controller);
    std::thread::sleep(Duration::from_secs(2));
    site.cluster.start_part(Part::Controller);
    all_done(&site, &ann, &job, FEW);
}

/// It forgets what it has taken since it wrote last, and starts tasks again that have ended: their claims are taken.
#[test]
fn the_controller_before_it_has_saved() {
    let mut site = Site::start();
    let ann = site.user("ann");
    let job = submitted(&site, &ann, TASKS, "sleep 1");
    site.cluster.kill(Part::Controller);
    site.cluster.start_part(Part::Controller);
    ann.run(&["wait", "--timeout", "45s", &job]);
    let twice: Vec<_> = site.starts_of_each().into_iter().filter(|(_, n)| *n > 1).collect();
    assert!(twice.is_empty(), "started more than once: {twice:?}");
}

/// Its processes live on, and nobody can say what becomes of them: under `requeue` a task runs elsewhere, without it has failed and never starts again.
#[test]
fn the_daemon_of_a_machine() {
    let mut site = Site::start();
    let ann = site.user("ann");
    let dir = site.cluster.dir().join("shared");
    let submit = |name: &str, more: &[&str], offset: u32| {
        let long = format!("[ $GRID_TASK_ID.$GRID_ATTEMPT = 0.1 ] && {{ echo $SLURMD_NODENAME > {}/{name}; sleep 600; }}; sleep 2", dir.display());
        // Both are counted together.
        let words = format!("task=$GRID_TASK_ID; GRID_TASK_ID=$((task + {offset})); {}", site.counted(&format!("GRID_TASK_ID=$task; {long}")));
        ann.submit(&[&["-n", "6"][..], more, &["--", "sh", "-c", &words]].concat())
    };
    let (again, once) = (submit("again", &[], 0), submit("once", &["--no-requeue"], 6));
    let machine = |name: &str| {
        let text =
            until("it runs somewhere", PATIENCE, || std::fs::read_to_string(dir.join(name)).ok().filter(|t| t.ends_with('\n')).ok_or(String::new()));
        text.trim_end()[1..].parse::<usize>().unwrap()
    };
    let machines = std::collections::BTreeSet::from([machine("again"), machine("once")]);
    machines.into_iter().for_each(|n| site.cluster.kill(Part::Machine(n)));
    assert_eq!(0, ann.wait(&again), "{}", ann.run(&["explain", &again]).out);
    assert_eq!(1, ann.wait(&once), "{}", ann.run(&["explain", &once]).out);
    assert_eq!((5, 1), (ann.in_phase(&once, "done"), ann.in_phase(&once, "failed")));
    let attempts = ann.json_lines(&["history", &once]);
    let failed = attempts.iter().find(|a| a["phase"] == "failed").unwrap();
    assert_eq!(("exit-unknown", "0"), (failed["reason"]["kind"].as_str().unwrap(), failed["tasks"].as_str().unwrap()), "{failed}");
    assert!(failed["reason"]["text"].as_str().unwrap().contains("lost the machine"), "{failed}");
    let starts = site.starts_of_each();
    let expected = (0..12).map(|n| (n, if n == 0 { 2 } else { 1 })).collect();
    assert_eq!(starts, expected);
}

/// It finds what runs there again; what it was just giving to a step is started elsewhere, or there again, and its claim tells which copy counts.
#[test]
fn the_daemon_of_a_machine_that_comes_back() {
    let mut site = Site::start();
    let ann = site.user("ann");
    let job = submitted(&site, &ann, TASKS, "sleep 1");
    for machine in [1, 3] {
        site.cluster.kill(Part::Machine(machine));
    }
    std::thread::sleep(Duration::from_secs(2));
    for machine in [1, 3] {
        site.cluster.start_part(Part::Machine(machine));
    }
    all_done(&site, &ann, &job, TASKS);
}

#[test]
fn an_sbatch_that_answers_late_wrongly_or_not_at_all() {
    let site = Site::start();
    let ann = site.user("ann");
    for (n, script) in [
        "/usr/bin/sbatch \"$@\" > /dev/null; echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1",
        "/usr/bin/sbatch \"$@\" > /dev/null; echo Zvonek",
        "/usr/bin/sbatch \"$@\" > /dev/null; kill -9 $$",
        "out=$(/usr/bin/sbatch \"$@\"); sleep 5; echo \"$out\"",
    ]
    .into_iter()
    .enumerate()
    {
        site.command("sbatch", script);
        let tasks = 8 * (n as u32 + 1);
        // One job each, counted together: its tasks are told apart by an offset.
        let words = format!("GRID_TASK_ID=$((GRID_TASK_ID + {})); {}", 8 * n, site.counted("true"));
        let job = ann.submit(&["-n", "8", "--no-requeue", "--", "sh", "-c", &words]);
        assert_eq!(0, ann.run(&["wait", "--timeout", "120s", &job]).code, "{script}: {}", ann.run(&["explain", &job]).out);
        site.assert_each_started_once(tasks);
    }
}
