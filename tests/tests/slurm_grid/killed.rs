//! kill -9 and restart of the gateway, the controller and a machine's daemon in the middle of an array, and an `sbatch` that can't be trusted: nothing is
//! lost, nothing is run twice.

use std::time::Duration;

use intergrid_tests::slurm::Part;

use crate::site::Site;
use crate::tree::until;
use crate::user::User;

const TASKS: u32 = 60;
const PATIENCE: Duration = Duration::from_secs(90);

fn submitted(site: &Site, user: &User, then: &str) -> String {
    let job = user.submit(&["-n", &TASKS.to_string(), "--no-requeue", "--", "sh", "-c", &site.counted(then)]);
    until("a third has started", PATIENCE, || {
        let n = site.starts_of_each().len();
        if n >= TASKS as usize / 3 { Ok(()) } else { Err(n.to_string()) }
    });
    job
}

#[track_caller]
fn all_done(site: &Site, user: &User, job: &str) {
    let code = user.run(&["wait", "--timeout", "170s", job]).code;
    assert_eq!(0, code, "{}\n{}", user.run(&["show", job]).out, user.run(&["explain", job]).out);
    site.assert_each_started_once(TASKS);
}

#[test]
fn the_gateway() {
    let mut site = Site::start();
    let ann = site.user("ann");
    let job = submitted(&site, &ann, "sleep 1");
    site.tree.kill("campus");
    std::thread::sleep(Duration::from_secs(3));
    site.tree.start("campus");
    all_done(&site, &ann, &job);
}

#[test]
fn the_controller_once_it_has_saved() {
    let mut site = Site::start();
    let ann = site.user("ann");
    let job = submitted(&site, &ann, "sleep 8");
    site.cluster.until_saved();
    site.cluster.kill(Part::Controller);
    std::thread::sleep(Duration::from_secs(2));
    site.cluster.start_part(Part::Controller);
    all_done(&site, &ann, &job);
}

/// It forgets what it has taken since it wrote last, and starts tasks again that have ended: their claims are taken.
#[test]
fn the_controller_before_it_has_saved() {
    let mut site = Site::start();
    let ann = site.user("ann");
    let job = submitted(&site, &ann, "sleep 1");
    site.cluster.kill(Part::Controller);
    site.cluster.start_part(Part::Controller);
    ann.run(&["wait", "--timeout", "45s", &job]);
    let twice: Vec<_> = site.starts_of_each().into_iter().filter(|(_, n)| *n > 1).collect();
    assert!(twice.is_empty(), "started more than once: {twice:?}");
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
