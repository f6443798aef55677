//! The examination of a cluster: a good one, and what is said of one that is not.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use intergrid_lrms::command::Account;
use intergrid_lrms::doctor::{Finding, Grade, Wish, examine};
use intergrid_lrms::slurm::{Books, Slurm, SlurmConfig, doctor};
use intergrid_tests::slurm as fixture;
use intergrid_tests::slurm::ACCOUNTS;

fn worst(found: &[Finding]) -> Vec<&Finding> {
    found.iter().filter(|f| f.grade != Grade::Good).collect()
}

#[tokio::test]
async fn a_good_cluster_is_good_and_a_bad_wish_is_named() {
    let cluster = fixture::Slurm::start();
    let shared = cluster.dir().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o1777)).unwrap();
    let slurm = Slurm::new(SlurmConfig { commands: None, conf: Some(cluster.conf()), books: Books::Files(cluster.records()) });
    let named = |name: &str| (Account::Named(name.to_string()), shared.join(name));
    let queues: Vec<String> = vec!["batch".into(), "short".into()];
    let accounts = ACCOUNTS[..2].iter().map(|name| named(name)).collect();
    let mut wish = Wish { direct: queues.clone(), queues, accounts, ..Wish::default() };

    let mut found = doctor::examine(&slurm).await;
    found.extend(examine(&slurm, &wish).await);
    assert!(worst(&found).is_empty(), "{found:#?}");
    assert_eq!(2, found.iter().filter(|f| f.what.starts_with("task as") && f.seen.contains("ran as job")).count(), "{found:#?}");
    for name in &ACCOUNTS[..2] {
        assert_eq!(0, fs::read_dir(shared.join(name)).unwrap().count(), "nothing is left");
    }

    // A queue without a slot for us, one that is not there, an account that is not there, a directory that the account may not make.
    wish.limits.ceiling_percent = 10;
    wish.queues.push("gone".into());
    wish.accounts = vec![named("intergrid-nobody"), (Account::Named(ACCOUNTS[0].into()), PathBuf::from("/root/no"))];
    let found = examine(&slurm, &wish).await;
    let bad: Vec<_> = worst(&found).into_iter().map(|f| (f.grade, f.what.as_str(), !f.remedy.is_empty())).collect();
    let all = ["limits of queue short", "queue gone", "account intergrid-nobody", "directory /root/no"];
    assert_eq!(all.map(|what| (Grade::Bad, what, true)).to_vec(), bad);

    // Books that can't be read, and a controller that is away.
    let books = Slurm::new(SlurmConfig { commands: None, conf: Some(cluster.conf()), books: Books::Files("/nowhere".into()) });
    assert!(worst(&doctor::examine(&books).await).iter().any(|f| f.what == "books" && f.grade == Grade::Bad));
    let away = Slurm::new(SlurmConfig { commands: Some("/nowhere".into()), ..SlurmConfig::default() });
    assert_eq!(vec![Grade::Bad], examine(&away, &wish).await.iter().map(|f| f.grade).collect::<Vec<_>>());
}
