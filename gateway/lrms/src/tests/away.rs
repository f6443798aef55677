//! The shared directory is away where the gateway is, and nowhere else.

use std::os::unix::fs::DirBuilderExt;

use super::*;

/// Who has started elsewhere has left his claim there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_files_are_away_nothing_is_taken_back_and_nothing_new_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    local.wrong(|w| w.hold = true);
    let (mut p, child) = attached(pool(dir.path(), &local, |_| {})).await;
    let place = |p: &mut Parent| {
        let job = p.job(counting(dir.path(), "exit 0"), 1);
        p.place(child, "batch", job, TaskSet::one(0))
    };
    let first = place(&mut p);
    eventually(&mut p, || local.pending() == 1).await;
    p.settle(Duration::from_millis(500)).await.unwrap();
    let (shared, away) = (dir.path().join("shared"), dir.path().join("away"));
    std::fs::rename(&shared, &away).unwrap();
    // The mount point, in which an older gateway has worked.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(shared.join("run")).unwrap();
    local.end_all(How::Removed);
    let second = place(&mut p);
    over(&mut p, second).await;
    p.settle(Duration::from_secs(6)).await.unwrap();
    let why = &p.placements[&second].returned[0].1;
    assert!(why.kind == ReasonKind::StartFailed && why.text.contains("its files are away"), "{why:?}");
    assert_eq!((TaskSet::one(0), 1), (p.placements[&first].alive.clone(), local.submissions()));
    assert_eq!(0, std::fs::read_dir(shared.join("run")).unwrap().count());
    std::fs::remove_dir_all(&shared).unwrap();
    std::fs::rename(&away, &shared).unwrap();
    over(&mut p, first).await;
    assert!(p.placements[&first].returned[0].1.text.contains("before it started"), "{:?}", p.placements[&first]);
}
