//! Options that qstat takes from a file: what they hide is shown all the same, or it is said that it is hidden.

use std::collections::BTreeSet;
use std::time::Duration;

use intergrid_lrms::doctor::Grade;
use intergrid_lrms::gridengine::doctor;
use intergrid_lrms::lrms::{Lrms, State};
use intergrid_tests::gridengine as fixture;
use intergrid_tests::gridengine::ACCOUNTS;

use crate::lrms::{backend, config};

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_file_of_defaults_hides_nothing_or_is_named() {
    let cluster = fixture::GridEngine::start();
    let engine = backend(config(&cluster));
    let file = cluster.common().join("sge_qstat");
    cluster.submit(ACCOUNTS[0], &["-N", "ig-runs", "-q", "batch"], "sleep 600");
    cluster.submit(ACCOUNTS[0], &["-N", "ig-waits", "-q", "batch", "-h"], "true");
    cluster.until("one runs", PATIENCE, |cluster| {
        let listed = cluster.listed();
        if listed.iter().any(|l| l.contains(" r ")) { Ok(()) } else { Err(format!("{listed:?}")) }
    });
    let seen = async || {
        let entries = engine.entries("ig-", &BTreeSet::new()).await.map_err(|e| e.to_string())?;
        let mut seen: Vec<_> = entries.into_iter().map(|e| (e.tag, e.state == State::Running)).collect();
        seen.sort();
        Ok::<_, String>(seen)
    };
    let all = Ok(vec![("ig-runs".to_string(), true), ("ig-waits".to_string(), false)]);
    // States and accounts are said on the command line, and the rest shows more.
    for harmless in ["-s p", "-s r", "-s z -u nobody", "-ext -pri", "-f -F slots", "-g d", "# -q short\n-urg"] {
        std::fs::write(&file, format!("{harmless}\n")).unwrap();
        assert_eq!(all, seen().await, "{harmless}");
    }
    // What can't be taken back on a command line: qstat alone would not show what runs in batch.
    for (hiding, option) in
        [("-ext\n-q short", "-q"), ("-g c", "-g c"), ("-j", "-j"), ("-help", "-help"), ("-l arch=none", "-l"), ("-pe none", "-pe")]
    {
        std::fs::write(&file, format!("{hiding}\n")).unwrap();
        let said = seen().await.unwrap_err();
        assert!(said.contains(&format!("common/sge_qstat has {option},")), "{hiding}: {said}");
        // Nor is anything offered.
        assert!(engine.queues().await.unwrap_err().to_string().contains("sge_qstat"));
    }
    let found = doctor::examine(&engine).await;
    assert!(found.iter().any(|f| f.what == "qstat" && f.grade == Grade::Bad && f.seen.contains("has -pe,")), "{found:#?}");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(all, seen().await);
    assert_eq!(2, engine.queues().await.unwrap().len());
}
