//! What `explain` has of a queue.

use intergrid_gateway::backend::Backend;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_suspended_queue_keeps_what_it_has_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(2);
    let pool = pool(dir.path(), &local, |c| c.limits.waiting_max = Some(8));
    let (mut p, child) = attached(pool.clone()).await;
    let go = dir.path().canonicalize().unwrap().join("go");
    let job = p.job(counting(dir.path(), &format!("while [ ! -e {} ]; do sleep 0.1; done", go.display())), 3);
    let n = p.place(child, "batch", job, TaskSet::range(0..3));
    let mut told = async |phase: Phase, words: &[(ReasonKind, &str)]| {
        let began = std::time::Instant::now();
        loop {
            let said = pool.explain(child, job, None, PATIENCE).await.unwrap();
            let counts: Vec<_> = said.counts.iter().map(|c| (c.phase, c.tasks)).collect();
            let reasons: Vec<_> = said.reasons.iter().map(|r| (ReasonKind::from_number(r.kind), r.text.as_str())).collect();
            if counts == [(Phase::Placed as i32, 1), (phase as i32, 2)] && reasons == words {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{said:?}");
            p.settle(Duration::from_millis(50)).await.unwrap();
        }
    };
    told(Phase::Running, &[(ReasonKind::AllBusy, "1 of its tasks wait in local (batch): Resources")]).await;
    local.wrong(|w| w.suspended = true);
    let both = [
        (ReasonKind::Draining, "1 of its tasks wait in local (batch, closed: suspended): Resources"),
        (ReasonKind::Draining, "2 of its tasks are suspended in local (batch, closed: suspended)"),
    ];
    told(Phase::Suspended, &both).await;
    local.wrong(|w| w.suspended = false);
    std::fs::write(go, "").unwrap();
    over(&mut p, n).await;
}
