//! kill -9 and restart of the gateway, the master and the machine's daemon in the middle of an array: nothing is lost, nothing is run twice.

use std::time::Duration;

use intergrid_tests::gridengine::Part;

use crate::site::{PATIENCE, Site};
use crate::tree::until;
use crate::user::User;

const TASKS: u32 = 60;

fn submitted(site: &Site, user: &User) -> String {
    let job = user.submit(&["-n", &TASKS.to_string(), "--no-requeue", "--", "sh", "-c", &site.starts.counted("sleep 1")]);
    site.until_started(TASKS as usize / 3);
    job
}

#[track_caller]
fn all_done(site: &Site, user: &User, job: &str, tasks: u32) {
    let code = user.run(&["wait", "--timeout", "170s", job]).code;
    assert_eq!(0, code, "{}\n{}", user.run(&["show", job]).out, user.run(&["explain", job]).out);
    site.starts.assert_each_once(tasks);
    site.until_gone();
}

#[test]
fn the_gateway() {
    let mut site = Site::start();
    let ann = site.user("ann");
    let job = submitted(&site, &ann);
    site.tree.kill("campus");
    std::thread::sleep(Duration::from_secs(3));
    site.tree.start("campus");
    all_done(&site, &ann, &job, TASKS);
}

/// What it was just giving to a machine (`t`) when it was killed, it gives again five minutes after the first time, which is fixed, and till then its slots are
/// taken. So it is killed when it is at nothing of that. Machines are heard of again within half a minute.
#[test]
fn the_master() {
    const FEW: u32 = 24;
    let mut site = Site::start();
    let ann = site.user("ann");
    let job = ann.submit(&["-n", &FEW.to_string(), "--no-requeue", "--", "sh", "-c", &site.starts.counted("sleep 10")]);
    until("all slots are used", PATIENCE, || {
        let all = site.cluster.listed();
        let running = all.iter().filter(|l| l.contains(" r ")).count();
        if running == 20 { Ok(()) } else { Err(format!("{all:?}")) }
    });
    site.cluster.kill(Part::Master);
    std::thread::sleep(Duration::from_secs(2));
    site.cluster.start_part(Part::Master);
    all_done(&site, &ann, &job, FEW);
}

/// Its shepherds go on without it, and it finds them again.
#[test]
fn the_daemon_of_the_machine() {
    let mut site = Site::start();
    let ann = site.user("ann");
    let job = submitted(&site, &ann);
    site.cluster.kill(Part::Machine(1));
    std::thread::sleep(Duration::from_secs(2));
    site.cluster.start_part(Part::Machine(1));
    all_done(&site, &ann, &job, TASKS);
}
