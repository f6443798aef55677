//! Orders of the gateway's administrator over a real Slurm.

use crate::site::{PATIENCE, Site};
use crate::tree::until;

/// What runs ends; what waits in Slurm, or would, is with the broker again, until the gateway takes work. A restart does not forget that.
#[test]
fn a_gateway_that_is_drained_takes_back_what_waits_in_slurm() {
    const TASKS: u32 = 24;
    let mut site = Site::of(|_| {}, &["batch"], "", 16);
    let (ann, campus) = (site.user("ann"), site.tree.user("campus"));
    let go = site.cluster.dir().join("shared/go");
    let words = site.counted(&format!("while [ ! -e {} ]; do sleep 0.2; done", go.display()));
    let job = ann.submit(&["-n", &TASKS.to_string(), "--no-requeue", "--", "sh", "-c", &words]);
    site.until_started(16);
    site.until_ours("PD");
    campus.run(&["drain", "campus", "--reason", "new disks"]).well();
    let waiting = |site: &Site| site.left().lines().filter(|l| l.contains(" PENDING ")).count();
    until("nothing waits in Slurm", PATIENCE, || if waiting(&site) == 0 { Ok(()) } else { Err(site.left()) });
    ann.until_phase(&job, "queued", u64::from(TASKS) - 16);
    ann.until_reason(&job, "campus takes no new work: new disks");
    site.tree.kill("campus");
    site.tree.start("campus");
    std::fs::write(&go, "").unwrap();
    ann.until_phase(&job, "done", 16);
    assert_eq!((16, 0), (site.starts_of_each().len(), waiting(&site)), "{}", site.left());
    campus.run(&["resume", "campus"]).well();
    assert_eq!(0, ann.wait(&job), "{}", ann.run(&["explain", &job]).out);
    site.assert_each_started_once(TASKS);
}
