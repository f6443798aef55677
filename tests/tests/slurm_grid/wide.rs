//! Tasks that need more than slots and memory of one machine: GPUs, several machines.

use crate::limits::last_attempt;
use crate::site::Site;
use crate::tree::until;

/// Without this word, sbatch never hears of it.
fn dropping(option: &str) -> String {
    format!("for a; do shift; case $a in {option}=*) ;; *) set -- \"$@\" \"$a\" ;; esac; done; exec /usr/bin/sbatch \"$@\"")
}

#[test]
fn gpus_are_slurms_and_each_is_one_tasks_at_a_time() {
    let site = Site::start();
    let ann = site.user("ann");
    let said = ann.run(&["run", "--gpus", "2", "--", "sh", "-c", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES $GRID_GPUS"]).well();
    let words: Vec<&str> = said.split_whitespace().collect();
    assert!(matches!(words[..], ["n1" | "n2", "0,1", "2"]), "{words:?}");
    // Two machines have two GPUs each, and four slots: more tasks than that never run at a time.
    let job = ann.submit(&["-n", "12", "--gpus", "1", "--", "sh", "-c", &site.counted("echo $SLURMD_NODENAME.$CUDA_VISIBLE_DEVICES; sleep 1")]);
    assert_eq!(0, ann.wait(&job));
    site.assert_each_started_once(12);
    let shown = ann.json(&["hosts"]);
    assert_eq!(serde_json::json!(8), shown["gpus"], "as many as its two partitions offer: {shown}");
    let never = ann.submit(&["--gpus", "3", "--", "true"]);
    until("it says why it waits", std::time::Duration::from_secs(30), || {
        let why = ann.run(&["explain", &never]);
        if why.out.contains("needs 3 GPUs on one machine, those of campus/batch have at most 2") { Ok(()) } else { Err(why.out) }
    });
    site.command("sbatch", &dropping("--gres"));
    let job = ann.submit(&["--gpus", "1", "--", "true"]);
    assert_eq!(1, ann.wait(&job));
    let (kind, text, _) = last_attempt(&ann, &job);
    assert_eq!(("start-failed", "it was given fewer GPUs than it asked for"), (kind.as_str(), text.as_str()));
}

/// The payload is on the first of its machines; `srun` starts a rank on each slot of all of them.
#[test]
fn a_task_of_several_machines_has_them_all() {
    let site = Site::start();
    let ann = site.user("ann");
    let ranks = "echo $SLURM_JOB_NUM_NODES $GRID_NODES $GRID_SLOTS; srun sh -c 'echo rank $SLURMD_NODENAME'";
    let said = ann.run(&["run", "--nodes", "3", "-c", "2", "--", "sh", "-c", ranks]);
    let mut lines: Vec<String> = said.well().lines().map(String::from).collect();
    assert_eq!("3 3 2", lines.remove(0));
    lines.sort();
    assert_eq!(6, lines.len(), "{lines:?}");
    lines.dedup();
    assert_eq!(3, lines.len(), "two ranks on each of three machines: {lines:?}");
    let never = ann.submit(&["-N", "5", "--", "true"]);
    until("it says why it waits", std::time::Duration::from_secs(30), || {
        let why = ann.run(&["explain", &never]);
        if why.out.contains("needs 5 machines, campus/batch gives a task at most 4") { Ok(()) } else { Err(why.out) }
    });
    site.command("sbatch", "for a; do shift; case $a in --nodes=*) a=--nodes=1 ;; esac; set -- \"$@\" \"$a\"; done; exec /usr/bin/sbatch \"$@\"");
    let job = ann.submit(&["-N", "2", "--", "true"]);
    assert_eq!(1, ann.wait(&job));
    let (kind, text, _) = last_attempt(&ann, &job);
    assert_eq!(("start-failed", "it was given fewer machines than it asked for"), (kind.as_str(), text.as_str()));
}
