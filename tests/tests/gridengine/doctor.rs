//! The examination of a cluster: a good one, and what is said of one that is not.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use intergrid_lrms::command::Account;
use intergrid_lrms::doctor::{Finding, Grade, Wish, examine};
use intergrid_lrms::gridengine::{GridEngineConfig, access, doctor};
use intergrid_lrms::lrms::Lrms;
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

    // A rule of the site that we do not know.
    cluster.refuse_all("Please name a project with -P");
    wish.queues.pop();
    wish.accounts = vec![named(ACCOUNTS[0])];
    let found = examine(&engine, &wish).await;
    let [bad] = worst(&found)[..] else { panic!("{found:#?}") };
    assert!(bad.what == format!("task as {} in short", ACCOUNTS[0]) && bad.seen.contains("Please name a project with -P"), "{bad:?}");
    assert!(bad.remedy.contains("verifier") && !bad.seen.contains("Doubtful"), "{bad:?}");

    // One that gives each job a name of the site's.
    cluster.rename_all("sitename");
    let found = examine(&engine, &wish).await;
    let [renamed] = worst(&found)[..] else { panic!("{found:#?}") };
    assert!(renamed.grade == Grade::Warning && renamed.what == "job names" && renamed.seen.contains("sitename"), "{renamed:?}");
    cluster.set("jsv_url", "none");

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

#[tokio::test]
async fn who_may_not_use_a_queue_and_what_takes_no_batch_jobs_is_named() {
    let cluster = fixture::GridEngine::start();
    let accounts = ACCOUNTS[..2].iter().map(|name| Account::Named(name.to_string())).collect::<Vec<_>>();
    assert_eq!(Vec::<Finding>::new(), access::examine(&backend(config(&cluster)), &accounts).await, "no queue has lists");
    cluster.run("qconf", &["-au", ACCOUNTS[0], "physics"]);
    cluster.run("qconf", &["-aattr", "queue", "user_lists", "physics", "batch"]);
    cluster.run("qconf", &["-rattr", "queue", "qtype", "INTERACTIVE", "short"]);
    let engine = backend(config(&cluster));
    let found = access::examine(&engine, &accounts).await;
    let [found] = &found[..] else { panic!("{found:?}") };
    assert_eq!((Grade::Bad, format!("queue batch as {}", ACCOUNTS[1])), (found.grade, found.what.clone()));
    assert!(found.seen.contains("none of its user_lists: physics") && found.remedy.contains("qconf -au"), "{found:?}");
    let queues = engine.queues().await.unwrap();
    let of = |name: &str| queues.iter().find(|q| q.name == name).unwrap();
    assert!(of("batch").closed.is_none() && of("batch").slots_free == 16, "{queues:?}");
    assert!(of("short").machine_slots == 0 && of("short").closed.as_deref().is_some_and(|why| why.contains("qtype")), "{queues:?}");
    // A gateway whose tasks run as these knows it, too: it is closed where nobody may use it.
    for (as_whom, closed) in [(&accounts[..], false), (&accounts[1..], true), (&accounts[..1], false)] {
        let told = backend(GridEngineConfig { accounts: as_whom.to_vec(), ..config(&cluster) }).queues().await.unwrap();
        let batch = told.iter().find(|q| q.name == "batch").unwrap();
        assert_eq!(as_whom.contains(&accounts[1]), batch.denied.get(&accounts[1]).is_some_and(|why| why.contains("physics")), "{batch:?}");
        assert!(!batch.denied.contains_key(&accounts[0]), "{batch:?}");
        let why = batch.closed.as_ref().map(|why| why.contains("none of its user_lists: physics"));
        assert_eq!((closed.then_some(true), if closed { 0 } else { 16 }), (why, batch.slots_free), "{batch:?}");
    }
    // Grid Engine is of the same mind: by the time that the last one runs, the scheduler has passed over the two before it.
    let submit = |account: &str, queue: &str| cluster.submit(account, &["-w", "n", "-q", queue], "sleep 600");
    let never = [submit(ACCOUNTS[1], "batch"), submit(ACCOUNTS[0], "short")];
    let runs = submit(ACCOUNTS[0], "batch");
    cluster.until("who may runs", Duration::from_secs(30), |cluster| {
        let all = cluster.listed();
        if all.iter().any(|l| l.starts_with(&format!("{runs} r "))) { Ok(()) } else { Err(format!("{all:?}")) }
    });
    let all = cluster.listed();
    assert!(never.iter().all(|id| all.iter().any(|l| l.starts_with(&format!("{id} qw ")))), "{all:?}");
}
