//! An administrator's first minutes: `grid init gateway`, `grid doctor`.

use intergrid_tests::gridengine::COMMANDS;
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
    // A queue that is gone is said to be, and what else there is.
    std::fs::write(&config, text.replace("\"short\"", "\"gone\"")).unwrap();
    let said = Running::spawn(grid(&["doctor", "--config", &config])).end();
    assert!(said.code == 1 && said.out.contains("queue gone") && said.out.contains("batch, short"), "{said:?}");
}
