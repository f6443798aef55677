//! What the LRMS gives up, and runs on.

use intergrid_gateway::backend::Backend;

use super::*;

/// Its own end counts, and nothing starts beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_up_and_lives_ends_by_its_own_record() {
    for how in [How::Forced, How::MachineLost] {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::new(2);
        local.wrong(|w| w.kill_wait_ms = 600_000);
        let pool = pool(dir.path(), &local, |_| {});
        let (mut p, child) = attached(pool.clone()).await;
        let go = dir.path().canonicalize().unwrap().join("go");
        let job = p.job(counting(dir.path(), &format!("while [ ! -e {} ]; do sleep 0.1; done; exit 3", go.display())), 1);
        let n = p.place(child, "batch", job, TaskSet::one(0));
        p.until("it to run", PATIENCE, |p| !p.placements[&n].ran.is_empty()).await.unwrap();
        local.give_up_all(how);
        let began = std::time::Instant::now();
        loop {
            let said = pool.explain(child, job, None, PATIENCE).await.unwrap();
            if said.reasons.iter().any(|r| r.text.starts_with("1 of its tasks may still run: local has given them up")) {
                assert_eq!(vec![(Phase::Running as i32, 1)], said.counts.iter().map(|c| (c.phase, c.tasks)).collect::<Vec<_>>());
                break;
            }
            assert!(began.elapsed() < PATIENCE && p.placements[&n].ended.is_empty(), "{said:?}");
            p.settle(Duration::from_millis(50)).await.unwrap();
        }
        std::fs::write(go, "").unwrap();
        over(&mut p, n).await;
        let (tasks, end) = &p.placements[&n].ended[0];
        assert_eq!(("0".to_string(), Phase::Failed, false), (tasks.to_string(), end.phase, end.lost));
        assert_eq!(vec![0], starts(dir.path()));
    }
}
