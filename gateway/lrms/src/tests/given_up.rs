//! What the LRMS gives up, requeues or forgets, and runs on.

use intergrid_gateway::backend::Backend;

use super::*;

/// Its own end counts, and nothing starts beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_up_and_lives_ends_by_its_own_record() {
    let given_up = "has given them up without having seen their end";
    let all = [
        (How::Forced, false, given_up),
        (How::MachineLost, false, given_up),
        (How::Requeued, false, "requeued them without having seen their end"),
        (How::Exited, true, ", which does not say how they ended"),
    ];
    for (how, forgetful, words) in all {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::new(2);
        local.wrong(|w| (w.kill_wait_ms, w.forgetful) = (600_000, forgetful));
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
            let is_told = |text: &str| text.starts_with("1 of its tasks may still run: ") && text.contains(words) && text.ends_with(", up to 10m10s");
            if said.reasons.iter().any(|r| is_told(&r.text)) {
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
