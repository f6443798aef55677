//! Tasks that need more than slots and memory of one machine: GPUs.

use crate::limits::most_at_a_time;
use crate::site::{PATIENCE, Site};
use crate::tree::until;

#[test]
fn gpus_are_a_complex_and_each_is_one_tasks_at_a_time() {
    let site = Site::with(|o| o.gpus = 2, "gpu_complex = \"gpu\"\n");
    let ann = site.user("ann");
    let shown = ann.json(&["hosts"]);
    assert_eq!(serde_json::json!(4), shown["gpus"], "as many as its two queues offer: {shown}");
    assert_eq!(2, most_at_a_time(&site, 6, &["--gpus", "1"]), "of two GPUs");
    // More than any machine has: never sent, and it says why.
    let never = ann.submit(&["--gpus", "4", "--", "true"]);
    ann.until_reason(&never, "needs 4 GPUs on one machine, those of campus/batch have at most 2");
    ann.run(&["cancel", &never]).well();
    // One for each of two slots is both.
    let go = site.cluster.dir().join("shared/go");
    let words = format!("echo $GRID_GPUS; while [ ! -e {} ]; do sleep 0.2; done", go.display());
    let both = ann.submit(&["-c", "2", "--gpus", "2", "--", "sh", "-c", &words]);
    let left = || site.cluster.run("qhost", &["-F", "gpu"]);
    until("both are taken", PATIENCE, || if left().contains("hc:gpu=0.000000") { Ok(()) } else { Err(left()) });
    std::fs::write(&go, "").unwrap();
    assert_eq!(0, ann.wait(&both), "{}", ann.run(&["explain", &both]).out);
    assert_eq!("2\n", ann.run(&["logs", &both]).well());
    // Which it is, the site says, and not the user.
    let prolog = site.cluster.dir().join("prolog");
    std::fs::write(&prolog, "#!/bin/sh\necho CUDA_VISIBLE_DEVICES=7 >> \"$SGE_JOB_SPOOL_DIR/environment\"\n").unwrap();
    std::fs::set_permissions(&prolog, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for queue in ["batch", "short"] {
        site.cluster.run("qconf", &["-mattr", "queue", "prolog", &format!("sgeadmin@{}", prolog.display()), queue]);
    }
    let said = ann.run(&["run", "--gpus", "1", "--env", "CUDA_VISIBLE_DEVICES=0", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES $GRID_GPUS"]);
    assert_eq!("7 1\n", said.well());
    // One for two slots can't be said.
    ann.submit(&["-c", "2", "--gpus", "1", "--", "true"]);
    site.tree.user("campus").until_returned(&["no-fit", "Grid Engine counts GPUs for each slot here"]);
}
