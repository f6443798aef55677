//! kill -9 and restart of the gateway, the master and the machine's daemon in the middle of an array: nothing is lost, nothing is run twice.

use std::time::Duration;

use intergrid_tests::gridengine::Part;

use crate::site::Site;
use crate::user::User;

const TASKS: u32 = 60;

fn submitted(site: &Site, user: &User) -> String {
    let job = user.submit(&["-n", &TASKS.to_string(), "--no-requeue", "--", "sh", "-c", &site.starts.counted("sleep 1")]);
    site.until_started(TASKS as usize / 3);
    job
}

#[track_caller]
fn all_done(site: &Site, user: &User, job: &str) {
    let code = user.run(&["wait", "--timeout", "170s", job]).code;
    assert_eq!(0, code, "{}\n{}", user.run(&["show", job]).out, user.run(&["explain", job]).out);
    site.starts.assert_each_once(TASKS);
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
    all_done(&site, &ann, &job);
}

#[test]
fn the_master() {
    let mut site = Site::start();
    let ann = site.user("ann");
    let job = submitted(&site, &ann);
    site.cluster.kill(Part::Master);
    std::thread::sleep(Duration::from_secs(2));
    site.cluster.start_part(Part::Master);
    all_done(&site, &ann, &job);
}

/// Its shepherds go on without it, and it finds them again.
#[test]
fn the_daemon_of_the_machine() {
    let mut site = Site::start();
    let ann = site.user("ann");
    let job = submitted(&site, &ann);
    site.cluster.kill(Part::Machine);
    std::thread::sleep(Duration::from_secs(2));
    site.cluster.start_part(Part::Machine);
    all_done(&site, &ann, &job);
}
