//! Tasks that end as soon as they begin.

use super::*;

/// However fast they end: what waits in the LRMS can't go elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_tasks_wait_in_the_lrms_within_the_site_s_bound() {
    const SLOTS: u32 = 8;
    const WAITING: u64 = 4;
    const TASKS: u32 = 100;
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(SLOTS);
    let (mut p, child) = attached(pool(dir.path(), &local, |c| c.limits.waiting_max = Some(WAITING))).await;
    let job = p.job(counting(dir.path(), "exit 0"), TASKS);
    let most = u64::from(SLOTS) + WAITING;
    let (mut next, began) = (0, std::time::Instant::now());
    while next < TASKS || p.alive(0) > 0 {
        assert!(began.elapsed() < PATIENCE, "{next} are placed, {} alive", p.alive(0));
        let window = p.children[&child].advert.as_ref().map_or(0, |a| a.shares.iter().map(|s| s.window).sum::<u64>());
        assert!(window <= most && local.pending() as u64 <= most, "a window of {window}, {} wait", local.pending());
        let room = p.room().first().map_or(0, |(.., room)| *room);
        let tasks = next..TASKS.min(next + u32::try_from(room).unwrap());
        if !tasks.is_empty() {
            next = tasks.end;
            p.place(child, "batch", job, TaskSet::range(tasks));
        }
        p.settle(Duration::from_millis(10)).await.unwrap();
    }
    assert_eq!((0..TASKS).collect::<Vec<_>>(), starts(dir.path()));
}
