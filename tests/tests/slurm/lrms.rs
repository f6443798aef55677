//! The trait `Lrms` over the real Slurm: each call, and each state and end that Slurm can be made to show.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use intergrid_lrms::command::Account;
use intergrid_lrms::lrms::{Entry, How, Lrms, LrmsId, Record, Refused, State, Submission, SubmitFailure, Wait};
use intergrid_lrms::slurm::{Books, Slurm, SlurmConfig};
use intergrid_proto::{Exit, Shape};
use intergrid_tests::slurm as fixture;
use intergrid_tests::slurm::{ACCOUNTS, Part};
use tokio::time::Instant;

/// What comes, comes by then.
const PATIENCE: Duration = Duration::from_secs(30);

fn backend(cluster: &fixture::Slurm, commands: Option<PathBuf>) -> Slurm {
    Slurm::new(SlurmConfig { commands, conf: Some(cluster.conf()), books: Books::Files(cluster.records()) })
}

fn submission(tag: &str, tasks: u32, script: &str) -> Submission {
    Submission {
        tag: tag.to_string(),
        account: Account::Named(ACCOUNTS[0].to_string()),
        queue: "batch".to_string(),
        tasks,
        shape: Shape::default(),
        time_limit_ms: None,
        directory: "/tmp".into(),
        complaints: None,
        script: format!("#!/bin/sh\n{script}\n"),
    }
}

async fn look<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(there) => return there,
            Err(seen) => assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}; last seen: {seen}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Entries by (tag, position).
async fn entries(slurm: &Slurm) -> Result<BTreeMap<(String, u32), Entry>, String> {
    let entries = slurm.entries("ig-", &BTreeSet::new()).await.map_err(|e| e.to_string())?;
    Ok(entries.into_iter().map(|e| ((e.tag.clone(), e.position), e)).collect())
}

async fn state(slurm: &Slurm, what: &str, tag: &str, position: u32, good: impl Fn(&State) -> bool) {
    look(what, async || {
        let entries = entries(slurm).await?;
        let found = entries.get(&(tag.to_string(), position)).map(|e| &e.state);
        if found.is_some_and(&good) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

async fn record(slurm: &Slurm, id: LrmsId, position: u32) -> Record {
    look("a record", async || {
        let records = slurm.records(&[id]).await.map_err(|e| e.to_string())?;
        records.iter().find(|r| r.position == position).cloned().ok_or(format!("{records:?}"))
    })
    .await
}

#[tokio::test]
async fn a_task_is_seen_in_each_state_and_found_in_the_books() {
    let cluster = fixture::Slurm::start();
    let slurm = backend(&cluster, None);
    assert_eq!(Ok(1_000), slurm.tasks_max().await);

    let queues = slurm.queues().await.unwrap();
    assert_eq!(vec!["batch", "short"], queues.iter().map(|q| q.name.as_str()).collect::<Vec<_>>());
    assert_eq!(
        (16, 16, 4, 4, Some(600_000)),
        (queues[0].slots_total, queues[0].slots_free, queues[0].largest_free, queues[0].machines, queues[1].time_max_ms)
    );

    // An array: each end, with its exit.
    let ends =
        slurm.submit(&submission("ig-ends", 4, "[ $SLURM_ARRAY_TASK_ID = 4 ] && kill -9 $$; exit $((SLURM_ARRAY_TASK_ID - 1))")).await.unwrap();
    for (position, exit) in [(1, Exit::Code(0)), (2, Exit::Code(1)), (3, Exit::Code(2)), (4, Exit::Signal(9))] {
        let record = record(&slurm, ends, position).await;
        assert_eq!((How::Exited, Some(exit), Some(true), "ig-ends"), (record.over.how, record.over.exit, record.started, record.tag.as_str()));
        state(&slurm, "the queue says so too", "ig-ends", position, |s| matches!(s, State::Ended(over) if over.exit == Some(exit))).await;
    }
    assert_eq!(Ok(vec![ends]), slurm.find("ig-ends").await);
    assert_eq!(Ok(vec![]), slurm.find("ig-end").await);

    // Waiting, running, suspended, held, requeued; removed in each.
    let all = slurm.submit(&Submission { shape: Shape::new(4, 0), ..submission("ig-all", 6, "sleep 600") }).await.unwrap();
    look("four run and two wait", async || {
        let entries = entries(&slurm).await?;
        let running: Vec<_> =
            entries.values().filter(|e| e.tag == "ig-all" && e.state == State::Running && e.slots == 4 && !e.machine.is_empty()).collect();
        if running.len() == 4 { Ok(()) } else { Err(format!("{entries:?}")) }
    })
    .await;
    state(&slurm, "the fifth waits", "ig-all", 5, |s| matches!(s, State::Pending(Wait::Turn, _))).await;
    assert_eq!((2, 0), {
        let q = &slurm.queues().await.unwrap()[0];
        (q.waiting, q.slots_free)
    });
    cluster.run("scontrol", &["hold", &format!("{all}_6")]);
    state(&slurm, "the sixth is held", "ig-all", 6, |s| matches!(s, State::Pending(Wait::Held, _))).await;
    assert_eq!(1, slurm.queues().await.unwrap()[0].waiting, "nobody waits behind the sixth");
    cluster.run("scontrol", &["suspend", &format!("{all}_1")]);
    state(&slurm, "the first is suspended", "ig-all", 1, |s| *s == State::Suspended).await;

    // Another account may not; nothing is removed.
    let other = Account::Named(ACCOUNTS[1].to_string());
    assert!(slurm.cancel(&other, &[(all, vec![2])], false).await.is_err());
    let owner = Account::Named(ACCOUNTS[0].to_string());
    slurm.cancel(&owner, &[(all, vec![2, 6]), (LrmsId(99_999), vec![1])], false).await.unwrap();
    let removed = record(&slurm, all, 2).await;
    assert_eq!((How::Removed, None), (removed.over.how, removed.started));
    slurm.cancel(&owner, &[(all, (1..=6).collect())], true).await.unwrap();
    slurm.cancel(&owner, &[(all, (1..=6).collect())], true).await.unwrap();
    look("nothing is left", async || {
        let left: Vec<_> = entries(&slurm).await?.into_values().filter(|e| e.tag == "ig-all" && !matches!(e.state, State::Ended(_))).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test]
async fn what_can_never_run_is_refused_or_says_why() {
    let cluster = fixture::Slurm::start();
    let slurm = backend(&cluster, None);
    let refused = async |change: &dyn Fn(&mut Submission)| {
        let mut s = submission("ig-no", 1, "true");
        change(&mut s);
        match slurm.submit(&s).await {
            Err(SubmitFailure::Refused(kind, _)) => kind,
            other => panic!("{s:?}: {other:?}"),
        }
    };
    assert_eq!(Refused::NoQueue, refused(&|s| s.queue = "gone".into()).await);
    assert_eq!(Refused::Never, refused(&|s| s.shape.memory_bytes = 99 << 30).await);
    assert_eq!(Refused::TooManyTasks, refused(&|s| s.tasks = 9_999).await);
    assert_eq!(Refused::NotAuthorised, refused(&|s| s.account = Account::Named("intergrid-nobody".into())).await);
    // These are taken, and wait for ever.
    slurm.submit(&Submission { shape: Shape::new(99, 0), ..submission("ig-slots", 1, "true") }).await.unwrap();
    slurm.submit(&Submission { queue: "short".into(), time_limit_ms: Some(3_600_000), ..submission("ig-time", 1, "true") }).await.unwrap();
    for tag in ["ig-slots", "ig-time"] {
        state(&slurm, tag, tag, 1, |s| matches!(s, State::Pending(Wait::Never, _))).await;
    }
    // A partition that is closed: what waits there says so, and the queue too.
    cluster.run("scontrol", &["update", "PartitionName=short", "State=DOWN"]);
    slurm.submit(&Submission { queue: "short".into(), ..submission("ig-down", 1, "true") }).await.unwrap();
    state(&slurm, "the partition is down", "ig-down", 1, |s| matches!(s, State::Pending(Wait::Never, why) if why == "PartitionDown")).await;
    assert!(slurm.queues().await.unwrap().iter().any(|q| q.name == "short" && q.closed.is_some()));
}

#[tokio::test]
async fn a_controller_that_is_killed_is_unknown_and_not_over() {
    let mut cluster = fixture::Slurm::start();
    let slurm = backend(&cluster, None);
    slurm.submit(&submission("ig-long", 1, "sleep 600")).await.unwrap();
    state(&slurm, "it runs", "ig-long", 1, |s| *s == State::Running).await;
    cluster.until_saved();
    cluster.kill(Part::Controller);
    assert!(slurm.entries("ig-", &BTreeSet::new()).await.is_err() && slurm.queues().await.is_err() && slurm.find("ig-long").await.is_err());
    assert!(matches!(
        slurm.submit(&submission("ig-no", 1, "true")).await,
        Err(SubmitFailure::Refused(Refused::Later, _) | SubmitFailure::Unknown(_))
    ));
    cluster.start_part(Part::Controller);
    state(&slurm, "it runs still", "ig-long", 1, |s| *s == State::Running).await;
}

/// slurmdbd keeps the name that a user gave: it is one field, whatever looks like a record in it, and says whose end it is.
#[tokio::test]
async fn a_name_in_the_accounts_is_no_record_and_says_whose_end_it_is() {
    let cluster = fixture::Slurm::with(|o| o.accounting = true);
    let slurm = Slurm::new(SlurmConfig { commands: None, conf: Some(cluster.conf()), books: Books::Sacct });
    let ours = slurm.submit(&submission("ig-ours", 1, "exit 3")).await.unwrap();
    let name = format!("--job-name=x\n{ours}_1|COMPLETED|0:0|2026-11-22T17:08:55|n1||0|00:00.002|ig-ours|");
    let other = LrmsId(cluster.submit(ACCOUNTS[1], &[&name], "exit 4").parse().unwrap());
    let records = look("both are in the books", async || {
        let records = slurm.records(&[ours, other]).await.map_err(|e| e.to_string())?;
        // Of a short job slurmdbd may hear the end before the name, and says `allocation` until then; or that it failed before how, and says 0:0.
        let is_whole = |r: &&Record| r.tag != "allocation" && r.over.exit.is_some();
        if records.iter().filter(is_whole).count() == 2 { Ok(records) } else { Err(format!("{records:?}")) }
    })
    .await;
    let of = |id| records.iter().find(|r| r.id == id).map(|r| (r.tag == "ig-ours", r.over.exit)).unwrap();
    assert_eq!(((true, Some(Exit::Code(3))), (false, Some(Exit::Code(4)))), (of(ours), of(other)), "{records:?}");
}

/// A program in front of the real one, in a directory that has the others as they are.
fn in_front(dir: &Path, script: &str) -> PathBuf {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let commands = dir.join("commands");
    std::fs::create_dir(&commands).unwrap();
    for name in ["squeue", "sinfo", "scancel", "scontrol"] {
        symlink(format!("/usr/bin/{name}"), commands.join(name)).unwrap();
    }
    let path = commands.join("sbatch");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    commands
}

#[tokio::test]
async fn an_answer_that_is_lost_or_wrong_is_unknown_and_the_job_is_found() {
    let cluster = fixture::Slurm::start();
    for (n, script) in [
        // Submitted, and it says that it was not.
        "/usr/bin/sbatch \"$@\" > /dev/null; echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1",
        // Submitted, and nobody can read the number.
        "/usr/bin/sbatch \"$@\" > /dev/null; echo Zvonek",
        // Submitted, and it says nothing.
        "/usr/bin/sbatch \"$@\" > /dev/null",
        // Submitted, and it was killed before it said so.
        "/usr/bin/sbatch \"$@\" > /dev/null; kill -9 $$",
    ]
    .into_iter()
    .enumerate()
    {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let slurm = backend(&cluster, Some(in_front(dir.path(), script)));
        let tag = format!("ig-lost-{n}");
        let failed = slurm.submit(&submission(&tag, 2, "true")).await.unwrap_err();
        assert!(matches!(failed, SubmitFailure::Unknown(_)), "{script}: {failed:?}");
        assert_eq!(1, slurm.find(&tag).await.unwrap().len(), "{script}");
    }
}
