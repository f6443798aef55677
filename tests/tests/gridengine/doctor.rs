//! The examination of a cluster: a good one, and what is said of one that is not.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use intergrid_lrms::command::Account;
use intergrid_lrms::doctor::{Finding, Grade, Wish, examine};
use intergrid_lrms::gridengine::doctor;
use intergrid_tests::gridengine as fixture;
use intergrid_tests::gridengine::ACCOUNTS;

use crate::lrms::{backend, config};

fn worst(found: &[Finding]) -> Vec<&Finding> {
    found.iter().filter(|f| f.grade != Grade::Good).collect()
}

#[tokio::test]
async fn a_good_cluster_is_good_and_a_bad_wish_is_named() {
    let cluster = fixture::GridEngine::start();
    let shared = cluster.dir().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o1777)).unwrap();
    let engine = backend(config(&cluster));
    let named = |name: &str| (Account::Named(name.to_string()), shared.join(name));
    let queues: Vec<String> = vec!["batch".into(), "short".into()];
    let accounts = ACCOUNTS[..2].iter().map(|name| named(name)).collect();
    let mut wish = Wish { direct: queues.clone(), queues, accounts, ..Wish::default() };

    let mut found = doctor::examine(&engine).await;
    found.extend(examine(&engine, &wish).await);
    assert!(worst(&found).is_empty(), "{found:#?}");
    assert!(found.iter().any(|f| f.what == "version" && f.seen.contains("known to work: SGE 8.1.9")), "{found:#?}");
    assert_eq!(2, found.iter().filter(|f| f.what.starts_with("task as") && f.seen.contains("ran as job")).count(), "{found:#?}");
    for name in &ACCOUNTS[..2] {
        assert_eq!(0, fs::read_dir(shared.join(name)).unwrap().count(), "nothing is left");
    }

    // A queue that is not there, and an account that is not there.
    wish.queues.push("gone".into());
    wish.accounts = vec![named("intergrid-nobody")];
    let found = examine(&engine, &wish).await;
    let bad: Vec<_> = worst(&found).into_iter().map(|f| (f.grade, f.what.as_str(), !f.remedy.is_empty())).collect();
    assert_eq!(vec![(Grade::Bad, "queue gone", true), (Grade::Bad, "account intergrid-nobody", true)], bad);

    // An environment and a complex that are not there, books that are not there, and a master that is not.
    let mut other = config(&cluster);
    other.terms.environment = Some("nope".into());
    other.terms.gpu_complex = Some("nope".into());
    other.accounting = "/nowhere/accounting".into();
    let found = doctor::examine(&backend(other)).await;
    assert_eq!(vec!["slots", "gpus", "books"], worst(&found).iter().map(|f| f.what.as_str()).collect::<Vec<_>>(), "{found:#?}");
    let mut away = config(&cluster);
    away.commands = Some("/nowhere".into());
    assert_eq!(vec![Grade::Bad], doctor::examine(&backend(away)).await.iter().map(|f| f.grade).collect::<Vec<_>>());
}
