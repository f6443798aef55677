//! The trait `Lrms` over the real Grid Engine: each call, and each state and end that it can be made to show.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use intergrid_lrms::command::Account;
use intergrid_lrms::gridengine::calls::Terms;
use intergrid_lrms::gridengine::settings::Settings;
use intergrid_lrms::gridengine::{GridEngine, GridEngineConfig};
use intergrid_lrms::lrms::{Entry, How, Lrms, LrmsId, Record, Refused, State, Submission, SubmitFailure, Wait};
use intergrid_lrms::verdict::NOT_HERE;
use intergrid_proto::{Exit, Shape};
use intergrid_tests::gridengine as fixture;
use intergrid_tests::gridengine::{ACCOUNTS, COMMANDS, Part};
use tokio::time::Instant;

/// What comes, comes by then.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn config(cluster: &fixture::GridEngine) -> GridEngineConfig {
    let settings = Settings::parse(&std::fs::read_to_string(cluster.conf()).unwrap());
    GridEngineConfig {
        commands: Some(COMMANDS.into()),
        accounting: settings.accounting(),
        settings,
        terms: Terms { environment: Some("smp".into()), memory: Some("h_vmem".into()), gpu_complex: None },
        queues: vec!["batch".into(), "short".into()],
        accounts: Vec::new(),
    }
}

pub fn backend(config: GridEngineConfig) -> GridEngine {
    GridEngine::new(config)
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
async fn entries(engine: &GridEngine) -> Result<BTreeMap<(String, u32), Entry>, String> {
    let entries = engine.entries("ig-", &BTreeSet::new()).await.map_err(|e| e.to_string())?;
    Ok(entries.into_iter().map(|e| ((e.tag.clone(), e.position), e)).collect())
}

async fn state(engine: &GridEngine, what: &str, tag: &str, position: u32, good: impl Fn(&State) -> bool) {
    look(what, async || {
        let entries = entries(engine).await?;
        let found = entries.get(&(tag.to_string(), position)).map(|e| &e.state);
        if found.is_some_and(&good) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

async fn record(engine: &GridEngine, id: LrmsId, position: u32) -> Record {
    look("a record", async || {
        let records = engine.records(&[id]).await.map_err(|e| e.to_string())?;
        records.iter().find(|r| r.position == position).cloned().ok_or(format!("{records:?}"))
    })
    .await
}

#[tokio::test]
async fn a_task_is_seen_in_each_state_and_found_in_the_books() {
    let cluster = fixture::GridEngine::start();
    let engine = backend(config(&cluster));
    assert_eq!(Ok(1_000), engine.tasks_max().await);

    let queues = engine.queues().await.unwrap();
    assert_eq!(vec!["batch", "short"], queues.iter().map(|q| q.name.as_str()).collect::<Vec<_>>());
    assert_eq!(
        (16, 16, 16, 1, Some(600_000)),
        (queues[0].slots_total, queues[0].slots_free, queues[0].largest_free, queues[0].machines, queues[1].time_max_ms)
    );

    // An array: each end, with its exit. The signal is the script's own.
    let ends = engine.submit(&submission("ig-ends", 4, "[ $SGE_TASK_ID = 4 ] && kill -9 $$; exit $((SGE_TASK_ID - 1))")).await.unwrap();
    for (position, how, exit) in
        [(1, How::Exited, Exit::Code(0)), (2, How::Exited, Exit::Code(1)), (3, How::Exited, Exit::Code(2)), (4, How::Removed, Exit::Signal(9))]
    {
        let record = record(&engine, ends, position).await;
        assert_eq!((how, Some(exit), Some(true), "ig-ends"), (record.over.how, record.over.exit, record.started, record.tag.as_str()));
    }
    assert_eq!(Ok(vec![ends]), engine.find("ig-ends").await);
    assert_eq!(Ok(vec![]), engine.find("ig-end").await);

    // Waiting, running, suspended, held; removed in each.
    let all = engine.submit(&Submission { shape: Shape::new(4, 0), ..submission("ig-all", 6, "trap '' USR1; sleep 600; sleep 600") }).await.unwrap();
    look("four run and two wait", async || {
        let entries = entries(&engine).await?;
        let running: Vec<_> =
            entries.values().filter(|e| e.tag == "ig-all" && e.state == State::Running && e.slots == 4 && e.machine == "localhost").collect();
        if running.len() == 4 { Ok(()) } else { Err(format!("{entries:?}")) }
    })
    .await;
    state(&engine, "the fifth waits", "ig-all", 5, |s| matches!(s, State::Pending(Wait::Turn, _))).await;
    assert_eq!((2, 0), {
        let q = &engine.queues().await.unwrap()[0];
        (q.waiting, q.slots_free)
    });
    cluster.run("qhold", &["-h", "o", &format!("{all}.6")]);
    state(&engine, "the sixth is held", "ig-all", 6, |s| matches!(s, State::Pending(Wait::Held, _))).await;
    // Nobody waits behind it; who asks for a pattern waits for each queue that is called so.
    let waiting = async || engine.queues().await.unwrap().iter().map(|q| (q.name.clone(), q.waiting)).collect::<Vec<_>>();
    assert_eq!(vec![("batch".to_string(), 1), ("short".to_string(), 0)], waiting().await);
    let wild = cluster.submit(ACCOUNTS[1], &["-N", "ig-wild", "-q", "b*"], "true");
    state(&engine, "it waits", "ig-wild", 1, |s| matches!(s, State::Pending(Wait::Turn, _))).await;
    assert_eq!(vec![("batch".to_string(), 2), ("short".to_string(), 0)], waiting().await);
    cluster.run("qdel", &[&wild]);
    cluster.run("qmod", &["-sj", &format!("{all}.1")]);
    state(&engine, "the first is suspended", "ig-all", 1, |s| *s == State::Suspended).await;

    // Another account may not; nothing is removed.
    let other = Account::Named(ACCOUNTS[1].to_string());
    assert!(engine.cancel(&other, &[(all, vec![2])], false).await.is_err());
    let owner = Account::Named(ACCOUNTS[0].to_string());
    engine.cancel(&owner, &[(all, vec![2, 6]), (LrmsId(99_999), vec![1])], false).await.unwrap();
    let removed = record(&engine, all, 2).await;
    assert!(removed.over.how == How::Removed && removed.started != Some(false), "{removed:?}");
    engine.cancel(&owner, &[(all, (1..=6).collect())], true).await.unwrap();
    engine.cancel(&owner, &[(all, (1..=6).collect())], true).await.unwrap();
    look("nothing is left", async || {
        let left = entries(&engine).await?;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;

    // Beyond its time; and in error, with its reason.
    let late = engine.submit(&Submission { time_limit_ms: Some(2_000), ..submission("ig-late", 1, "sleep 600") }).await.unwrap();
    let away = engine.submit(&Submission { directory: "/nowhere/at/all".into(), ..submission("ig-away", 1, "true") }).await.unwrap();
    let broken = cluster.submit(ACCOUNTS[0], &["-N", "ig-broken", "-t", "1-2", "-wd", "/nowhere/at/all"], "true");
    assert_eq!(How::TimeLimit, record(&engine, late, 1).await.over.how);
    assert_eq!(Some(NOT_HERE), record(&engine, away, 1).await.over.exit);
    for position in [1, 2] {
        let said = |s: &State| matches!(s, State::Pending(Wait::Broken, why) if why.contains("can't chdir to /nowhere/at/all"));
        state(&engine, "it is in error", "ig-broken", position, said).await;
    }
    let record = record(&engine, LrmsId(broken.parse().unwrap()), 1).await;
    assert_eq!((How::NotStarted, Some(false)), (record.over.how, record.started));
}

#[tokio::test]
async fn what_can_never_run_is_refused_or_says_why() {
    let cluster = fixture::GridEngine::start();
    let engine = backend(config(&cluster));
    let refused = async |engine: &GridEngine, change: &dyn Fn(&mut Submission)| {
        let mut s = submission("ig-no", 1, "true");
        change(&mut s);
        match engine.submit(&s).await {
            Err(SubmitFailure::Refused(kind, _)) => kind,
            other => panic!("{s:?}: {other:?}"),
        }
    };
    assert_eq!(Refused::NoQueue, refused(&engine, &|s| s.queue = "gone".into()).await);
    assert_eq!(Refused::Never, refused(&engine, &|s| s.shape.slots = 99).await);
    assert_eq!(Refused::TooManyTasks, refused(&engine, &|s| s.tasks = 99_999).await);
    assert_eq!(Refused::Never, refused(&engine, &|s| (s.queue, s.time_limit_ms) = ("short".into(), Some(3_600_000))).await);
    assert_eq!(Refused::NotAuthorised, refused(&engine, &|s| s.account = Account::Named("intergrid-nobody".into())).await);
    let mut other = config(&cluster);
    other.terms.environment = Some("nope".into());
    assert_eq!(Refused::Never, refused(&backend(other.clone()), &|s| s.shape.slots = 2).await);
    other.terms.environment = None;
    let single = backend(other);
    assert_eq!(Refused::Never, refused(&single, &|s| s.shape.slots = 2).await);
    assert!(single.queues().await.unwrap().iter().all(|q| q.machine_slots == 1));
    assert!(engine.entries("ig-no", &BTreeSet::new()).await.unwrap().is_empty(), "nothing was submitted");
    // A queue that is closed: what waits there waits, and the queue says why.
    cluster.run("qmod", &["-d", "short"]);
    engine.submit(&Submission { queue: "short".into(), ..submission("ig-down", 1, "true") }).await.unwrap();
    state(&engine, "it waits", "ig-down", 1, |s| matches!(s, State::Pending(Wait::Turn, _))).await;
    let queues = engine.queues().await.unwrap();
    assert!(queues.iter().any(|q| q.name == "short" && q.closed.as_deref() == Some("disabled") && q.waiting == 1), "{queues:?}");
}

#[tokio::test]
async fn gpus_are_asked_for_as_the_complex_counts_them() {
    let cluster = fixture::GridEngine::with(|o| o.gpus = 2);
    let with = |complex: Option<&str>| {
        let mut config = config(&cluster);
        config.terms.gpu_complex = complex.map(String::from);
        backend(config)
    };
    let [by_slot, once, nope, none] = [Some("gpu"), Some("gpu_once"), Some("nope"), None].map(with);
    for engine in [&by_slot, &once] {
        let queues = engine.queues().await.unwrap();
        assert_eq!(vec![(2, 2), (2, 2)], queues.iter().map(|q| (q.machine_gpus, q.gpus_total)).collect::<Vec<_>>());
    }
    for engine in [&nope, &none] {
        let queues = engine.queues().await.unwrap();
        assert!(queues.iter().all(|q| q.machine_gpus == 0 && q.slots_total > 0), "{queues:?}");
    }
    let asked = |gpus, slots| Submission { shape: Shape { gpus, ..Shape::new(slots, 0) }, ..submission("ig-gpus", 1, "sleep 600") };
    for (engine, gpus, slots, words) in
        [(&by_slot, 1, 2, "for each slot"), (&by_slot, 4, 1, "no suitable queues"), (&once, 4, 2, "no suitable queues"), (&nope, 1, 1, "no complex")]
    {
        match engine.submit(&asked(gpus, slots)).await {
            Err(SubmitFailure::Refused(Refused::Never, why)) => assert!(why.contains(words), "{why}"),
            other => panic!("{gpus} GPUs, {slots} slots: {other:?}"),
        }
    }
    assert!(matches!(none.submit(&asked(1, 1)).await, Err(SubmitFailure::Refused(Refused::Never, _))));
    for (engine, complex) in [(&by_slot, "gpu"), (&once, "gpu_once")] {
        let left = || cluster.run("qhost", &["-F", complex]);
        assert!(left().contains(&format!("hc:{complex}=2.000000")), "{}", left());
        engine.submit(&asked(2, 2)).await.unwrap();
        look("both are taken", async || if left().contains(&format!("hc:{complex}=0.000000")) { Ok(()) } else { Err(left()) }).await;
    }
}

#[tokio::test]
async fn a_master_that_is_killed_is_unknown_and_not_over() {
    let mut cluster = fixture::GridEngine::start();
    let engine = backend(config(&cluster));
    engine.submit(&submission("ig-long", 1, "sleep 600")).await.unwrap();
    state(&engine, "it runs", "ig-long", 1, |s| *s == State::Running).await;
    cluster.kill(Part::Master);
    assert!(engine.entries("ig-", &BTreeSet::new()).await.is_err() && engine.queues().await.is_err() && engine.find("ig-long").await.is_err());
    assert!(engine.cancel(&Account::Named(ACCOUNTS[0].into()), &[(LrmsId(1), vec![1])], false).await.is_err());
    assert!(matches!(
        engine.submit(&submission("ig-no", 1, "true")).await,
        Err(SubmitFailure::Refused(Refused::Later, _) | SubmitFailure::Unknown(_))
    ));
    cluster.start_part(Part::Master);
    state(&engine, "it runs still", "ig-long", 1, |s| *s == State::Running).await;
}

/// A program in front of the real one, in a directory that has the others as they are.
fn in_front(dir: &Path, script: &str) -> PathBuf {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let commands = dir.join("commands");
    std::fs::create_dir(&commands).unwrap();
    for name in ["qstat", "qhost", "qconf", "qdel"] {
        symlink(Path::new(COMMANDS).join(name), commands.join(name)).unwrap();
    }
    let path = commands.join("qsub");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    commands
}

#[tokio::test]
async fn an_answer_that_is_lost_or_wrong_is_unknown_and_the_job_is_found() {
    let cluster = fixture::GridEngine::start();
    for (n, script) in [
        "/usr/lib/gridengine/qsub \"$@\" > /dev/null; echo 'Unable to run job: failed receiving gdi request response' >&2; exit 1",
        "/usr/lib/gridengine/qsub \"$@\" > /dev/null; echo Zvonek",
        "/usr/lib/gridengine/qsub \"$@\"; echo 17",
        "/usr/lib/gridengine/qsub \"$@\" > /dev/null; kill -9 $$",
    ]
    .into_iter()
    .enumerate()
    {
        let dir = tempfile::tempdir_in(cluster.dir()).unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let engine = backend(GridEngineConfig { commands: Some(in_front(dir.path(), script)), ..config(&cluster) });
        let tag = format!("ig-front-{n}");
        assert!(matches!(engine.submit(&submission(&tag, 2, "true")).await, Err(SubmitFailure::Unknown(_))), "{script}");
        // In the queue, and when it is over, in the books.
        let found = look("it is found", async || engine.find(&tag).await.map_err(|e| e.to_string())).await;
        assert_eq!(1, found.len(), "{script}");
        record(&engine, found[0], 2).await;
        assert_eq!(Ok(found), engine.find(&tag).await, "{script}");
    }
}

#[tokio::test]
async fn slots_of_a_machine_for_all_its_queues_together_are_what_there_is() {
    let cluster = fixture::GridEngine::start();
    let engine = backend(config(&cluster));
    let seen = async || engine.queues().await.unwrap().iter().map(|q| (q.slots_total, q.machine_slots, q.slots_free)).collect::<Vec<_>>();
    assert_eq!(vec![(16, 16, 16), (4, 4, 4)], seen().await);
    cluster.run("qconf", &["-aattr", "exechost", "complex_values", "slots=5", "localhost"]);
    look("the machine has five", async || {
        let seen = seen().await;
        if seen == [(5, 5, 5), (4, 4, 4)] { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    (0..3).for_each(|_| _ = cluster.submit(ACCOUNTS[0], &["-q", "short"], "sleep 600"));
    look("three are taken, from both", async || {
        let seen = seen().await;
        if seen == [(5, 5, 2), (4, 4, 1)] { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}
