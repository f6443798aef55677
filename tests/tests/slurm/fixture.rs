//! The cluster of the tests: it starts, runs jobs as their accounts, writes completion records, and leaves nothing behind.

use std::time::Duration;

use intergrid_tests::slurm::{ACCOUNTS, Part, Slurm};

const PATIENCE: Duration = Duration::from_secs(20);

/// Processes that belong to this cluster.
fn processes(dir: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environ.split(|b| *b == 0).any(|v| v.starts_with(format!("SLURM_CONF={dir}/").as_bytes())) {
            found.push(format!("{} {}", entry.file_name().display(), std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim()));
        }
    }
    found
}

#[test]
fn a_cluster_starts_runs_jobs_and_leaves_nothing() {
    let mut slurm = Slurm::start();
    let dir = slurm.dir().to_str().unwrap().to_string();
    let good = slurm.submit(ACCOUNTS[0], &["--array=0-1"], "exit $SLURM_ARRAY_TASK_ID");
    let long = slurm.submit(ACCOUNTS[1], &["--job-name=a\n1 1 0 0 0:0 COMPLETED 0 0"], "sleep 600");
    let ended = slurm.until("two records", PATIENCE, |slurm| {
        let mut lines = Vec::new();
        for file in std::fs::read_dir(slurm.records()).map_err(|e| e.to_string())?.flatten() {
            lines.extend(std::fs::read_to_string(file.path()).map_err(|e| e.to_string())?.lines().map(String::from));
        }
        if lines.len() == 2 { Ok(lines) } else { Err(format!("{lines:?}")) }
    });
    for (task, what) in [(0, "0:0 COMPLETED"), (1, "1:0 FAILED")] {
        let found = ended.iter().any(|line| line.contains(&format!(" {good} {task} {what} ")));
        assert!(found, "task {task} of {good}: {ended:?}");
    }
    slurm.until("it runs", PATIENCE, |slurm| {
        let state = slurm.run("squeue", &["-h", "-j", &long, "-o", "%T %u"]);
        if state.trim() == format!("RUNNING {}", ACCOUNTS[1]) { Ok(()) } else { Err(state) }
    });
    // A controller that is killed finds its jobs again.
    slurm.until_saved();
    slurm.kill(Part::Controller);
    slurm.start_part(Part::Controller);
    slurm.until("the controller is back", PATIENCE, |slurm| {
        let state = intergrid_tests::slurm::ended(slurm.command("squeue").args(["-h", "-j", &long, "-o", "%T"]), "");
        let state = String::from_utf8_lossy(&state.stdout).into_owned();
        if state.trim() == "RUNNING" { Ok(()) } else { Err(state) }
    });
    slurm.until("the payload is there", PATIENCE, |_| {
        let seen = processes(&dir);
        let there = |name: &str| seen.iter().any(|p| p.ends_with(name));
        if there(" sleep") && there(" slurmstepd") { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    drop(slurm);
    assert_eq!(Vec::<String>::new(), processes(&dir));
    assert!(!std::path::Path::new(&dir).exists());
}
