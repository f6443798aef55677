//! An administrator's first minutes: `grid init gateway`, `grid doctor`.

use intergrid_tests::gridengine::{ACCOUNTS, COMMANDS};
use serde_json::Value;

use crate::site::Site;
use crate::user::{Running, grid};

#[test]
fn what_init_writes_doctor_finds_good() {
    let site = Site::with(|o| o.gpus = 2, "");
    let (dir, conf, shared) = (site.cluster.dir().join("new"), site.cluster.conf(), site.cluster.dir().join("shared/new"));
    let (dir, conf, shared) = (dir.to_str().unwrap(), conf.to_str().unwrap(), shared.to_str().unwrap());
    let place = ["--commands", COMMANDS, "--conf", conf, "--shared", shared];
    let words = [&["init", "gateway", dir, "--name", "new", "--backend", "gridengine"][..], &place].concat();
    Running::spawn(grid(&words)).end().well();
    Running::spawn(grid(&words)).end().refused(2, &["exists already"]);
    let config = format!("{dir}/gateway.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    for line in ["queues = [\"batch\", \"short\"]", "parallel_environment = \"smp\"", "gpu_complex = \"gpu\"", "tasks of up to 10m"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let said = Running::spawn(grid(&["--json", "doctor", "--config", &config])).end();
    assert_eq!(0, said.code, "{said:?}");
    let found: Value = serde_json::from_str(&said.out).unwrap();
    let findings = found["findings"].as_array().unwrap();
    assert!(findings.iter().any(|f| f["what"].as_str().unwrap().starts_with("task as") && f["grade"] == "good"), "{found}");
    assert!(
        findings.iter().any(|f| f["what"] == "gpus" && f["grade"] == "good" && f["seen"].as_str().unwrap().contains("2 on 1 machines")),
        "{found}"
    );
    // What this account may not use, or no batch job, is left out, and it is said why.
    site.cluster.run("qconf", &["-au", ACCOUNTS[0], "physics"]);
    site.cluster.run("qconf", &["-aattr", "queue", "user_lists", "physics", "short"]);
    let other = |name: &str| {
        let dir = site.cluster.dir().join(name);
        let words = [&["init", "gateway", dir.to_str().unwrap(), "--name", "new", "--backend", "gridengine"][..], &place].concat();
        Running::spawn(grid(&words)).end().well();
        std::fs::read_to_string(dir.join("gateway.toml")).unwrap()
    };
    let refused = other("refused");
    assert!(refused.contains("queues = [\"batch\"]") && refused.contains("none of its user_lists: physics"), "{refused}");
    site.cluster.run("qconf", &["-dattr", "queue", "user_lists", "physics", "short"]);
    site.cluster.run("qconf", &["-rattr", "queue", "qtype", "INTERACTIVE", "batch"]);
    let interactive = other("interactive");
    assert!(interactive.contains("queues = [\"short\"]") && interactive.contains("# batch is left out: it takes no batch jobs"), "{interactive}");
    site.cluster.run("qconf", &["-rattr", "queue", "qtype", "BATCH INTERACTIVE", "batch"]);
    // A queue that is gone is said to be, and what else there is.
    std::fs::write(&config, text.replace("\"short\"", "\"gone\"")).unwrap();
    let said = Running::spawn(grid(&["doctor", "--config", &config])).end();
    assert!(said.code == 1 && said.out.contains("queue gone") && said.out.contains("batch, short"), "{said:?}");
}
