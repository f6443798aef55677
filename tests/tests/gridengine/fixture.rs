//! The cluster of the tests: it starts, runs jobs as their accounts, writes its accounting, and leaves nothing behind.

use std::time::Duration;

use intergrid_tests::gridengine::{ACCOUNTS, GridEngine, Part};

const PATIENCE: Duration = Duration::from_secs(30);

/// Processes that belong to this cluster.
fn processes(dir: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environ.split(|b| *b == 0).any(|v| v.starts_with(format!("SGE_ROOT={dir}/").as_bytes())) {
            found.push(format!("{} {}", entry.file_name().display(), std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim()));
        }
    }
    found
}

#[test]
fn a_cluster_starts_runs_jobs_and_leaves_nothing() {
    let mut engine = GridEngine::start();
    let dir = engine.dir().to_str().unwrap().to_string();
    let good = engine.submit(ACCOUNTS[0], &["-t", "1-2"], "exit $((SGE_TASK_ID - 1))");
    let long = engine.submit(ACCOUNTS[1], &["-N", "long"], "sleep 600");
    let accounting = engine.common().join("accounting");
    engine.until("two records", PATIENCE, |_| {
        let text = std::fs::read_to_string(&accounting).unwrap_or_default();
        let lines = text.lines().filter(|l| l.contains(&format!(":{}:STDIN:{good}:", ACCOUNTS[0]))).count();
        if lines == 2 { Ok(()) } else { Err(text) }
    });
    let listed = |state: &str| {
        engine.until("it is listed", PATIENCE, |engine| {
            let listed = engine.try_run("qstat", &["-u", "*"])?;
            let there = |l: &str| l.split_whitespace().next() == Some(&long) && l.split_whitespace().nth(4) == Some(state);
            if listed.lines().any(there) { Ok(()) } else { Err(listed) }
        });
    };
    listed("r");
    // A master that is killed finds its jobs again.
    engine.kill(Part::Master);
    assert!(engine.try_run("qstat", &["-u", "*"]).is_err());
    engine.start_part(Part::Master);
    engine.until("it runs still", PATIENCE, |engine| {
        let listed = engine.try_run("qstat", &["-u", "*"])?;
        if listed.contains(" r ") { Ok(()) } else { Err(listed) }
    });
    engine.until("the payload is there", PATIENCE, |_| {
        let seen = processes(&dir);
        let there = |name: &str| seen.iter().any(|p| p.ends_with(name));
        if there(" sleep") && there(" sge_execd") && there(" sge_qmaster") { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    drop(engine);
    assert_eq!(Vec::<String>::new(), processes(&dir));
    assert!(!std::path::Path::new(&dir).exists());
}
