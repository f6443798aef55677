//! The shared directory is away where the gateway is, and nowhere else.

use std::os::unix::fs::DirBuilderExt;

use intergrid_gateway::backend::Backend;

use super::*;

/// Who has started elsewhere has left his claim there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_files_are_away_nothing_is_taken_back_and_nothing_new_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    local.wrong(|w| w.hold = true);
    let pool = pool(dir.path(), &local, |_| {});
    let (mut p, child) = attached(pool.clone()).await;
    let place = |p: &mut Parent| {
        let job = p.job(counting(dir.path(), "exit 0"), 1);
        (job, p.place(child, "batch", job, TaskSet::one(0)))
    };
    let (job, first) = place(&mut p);
    eventually(&mut p, || local.pending() == 1).await;
    p.settle(Duration::from_millis(500)).await.unwrap();
    let (shared, away) = (dir.path().join("shared"), dir.path().join("away"));
    std::fs::rename(&shared, &away).unwrap();
    // The mount point, in which an older gateway has worked.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(shared.join("run")).unwrap();
    local.end_all(How::Removed);
    let (_, second) = place(&mut p);
    over(&mut p, second).await;
    p.settle(Duration::from_secs(6)).await.unwrap();
    let why = &p.placements[&second].returned[0].1;
    assert!(why.kind == ReasonKind::StartFailed && why.text.contains("its files are away"), "{why:?}");
    assert_eq!((TaskSet::one(0), 1), (p.placements[&first].alive.clone(), local.submissions()));
    assert_eq!(0, std::fs::read_dir(shared.join("run")).unwrap().count());
    let said = pool.explain(child, job, None, PATIENCE).await.unwrap();
    assert!(said.reasons.iter().any(|r| r.text.starts_with("nothing is known of 1 of its tasks: their files are away")), "{said:?}");
    std::fs::remove_dir_all(&shared).unwrap();
    std::fs::rename(&away, &shared).unwrap();
    over(&mut p, first).await;
    assert!(p.placements[&first].returned[0].1.text.contains("before it started"), "{:?}", p.placements[&first]);
}

/// Its claim is there: neither its end nor what comes after it waits for a directory that is gone for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_that_removes_its_submission_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    let (mut p, child) = attached(pool(dir.path(), &local, |_| {})).await;
    let go = dir.path().canonicalize().unwrap().join("go");
    let mut place = async |run: &str| {
        let job = p.job(counting(dir.path(), run), 1);
        let n = p.place(child, "batch", job, TaskSet::one(0));
        eventually(&mut p, || !starts(dir.path()).is_empty()).await;
        n
    };
    let first = place(&format!("rm -rf ../../../ig*; while [ ! -e {} ]; do sleep 0.1; done; exit 3", go.display())).await;
    let shared = dir.path().join("shared");
    let is_removed = || std::fs::read_dir(&shared).unwrap().count() == 1;
    let began = std::time::Instant::now();
    while !is_removed() {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let second = place("exit 0").await;
    over(&mut p, second).await;
    std::fs::write(go, "").unwrap();
    over(&mut p, first).await;
    assert_eq!([Phase::Failed, Phase::Done], [first, second].map(|n| phases(&p, n)[0].1));
    let log = || std::fs::read_to_string(dir.path().join("state/submissions")).unwrap();
    eventually(&mut p, || log().matches("{\"over\"").count() == 2).await;
}

/// As where the gateway starts before its mount, and makes it in the mount point.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_finds_no_directory_where_it_runs_has_not_begun() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    let (mut p, _, _, n) = one_waits(dir.path(), &local, 1, |_| {}).await;
    let shared = dir.path().join("shared");
    std::fs::remove_dir_all(&shared).unwrap();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(shared.join("run")).unwrap();
    local.wrong(|w| w.hold = false);
    over(&mut p, n).await;
    let why = &p.placements[&n].returned[0].1;
    assert!(why.text.contains("does not have the shared directory") && starts(dir.path()).is_empty(), "{why:?}");
    let log = || std::fs::read_to_string(dir.path().join("state/submissions")).unwrap();
    eventually(&mut p, || log().contains("{\"over\"")).await;
}

/// What is not seen to start is not told as stopped while it ran.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_removes_what_waits_while_files_are_away() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    let (mut p, child, job, n) = one_waits(dir.path(), &local, 1, |_| {}).await;
    p.settle(Duration::from_millis(500)).await.unwrap();
    let (shared, away) = (dir.path().join("shared"), dir.path().join("away"));
    std::fs::rename(&shared, &away).unwrap();
    p.want(child, job, WantValue::Cancel, &TaskSet::one(0));
    eventually(&mut p, || local.pending() == 0).await;
    p.settle(Duration::from_secs(5)).await.unwrap();
    assert_eq!(TaskSet::one(0), p.placements[&n].alive, "its claim is not taken yet");
    std::fs::rename(&away, &shared).unwrap();
    over(&mut p, n).await;
    let end = &p.placements[&n].ended[0].1;
    assert_eq!((Phase::Cancelled, Some("cancelled before it started")), (end.phase, end.reason.as_ref().map(|r| r.text.as_str())));
    assert!(starts(dir.path()).is_empty());
}

/// The LRMS does not hear of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_before_a_cancel_reaches_it_is_not_told_as_stopped() {
    for (deaf, words) in [(true, "it ended by itself before the cancel reached it"), (false, "stopped while it ran")] {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::new(8);
        let (mut p, child) = attached(pool(dir.path(), &local, |_| {})).await;
        let go = dir.path().canonicalize().unwrap().join("go");
        let job = p.job(counting(dir.path(), &format!("while [ ! -e {} ]; do sleep 0.1; done", go.display())), 1);
        let n = p.place(child, "batch", job, TaskSet::one(0));
        p.until("it to run", PATIENCE, |p| !p.placements[&n].ran.is_empty()).await.unwrap();
        local.wrong(|w| w.deaf = deaf);
        p.want(child, job, WantValue::Cancel, &TaskSet::one(0));
        if deaf {
            p.settle(Duration::from_secs(1)).await.unwrap();
            std::fs::write(go, "").unwrap();
        }
        over(&mut p, n).await;
        let end = &p.placements[&n].ended[0].1;
        assert_eq!((Phase::Cancelled, Some(words)), (end.phase, end.reason.as_ref().map(|r| r.text.as_str())));
    }
}
