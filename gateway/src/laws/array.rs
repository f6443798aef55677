//! The law of the large array.

use std::collections::BTreeMap;
use std::time::Duration;

use intergrid_proto::{Phase, TaskSet};
use tokio::time::Instant;

use super::each::{Kept, TRUE, check, sh, spec};
use super::{Options, Parent};

/// Each task may take so long, on average.
const TASK_PATIENCE_MS: u64 = 50;

/// Two jobs whose tasks go down in sets full of holes, of all sizes, on every share with room.
pub(super) fn array<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let size = (o.array_tasks / 2).max(1);
        let jobs = [p.job(spec(TRUE), size), p.job(sh("exit 0"), size)];
        let first = p.placements.keys().next_back().map_or(0, |n| n + 1);
        // Strides make holes; every index is there once.
        let mut todo: Vec<(u64, u32)> = (0..7).flat_map(|k| (k..size).step_by(7)).flat_map(|t| jobs.map(|j| (j, t))).rev().collect();
        let deadline = Instant::now() + o.patience + Duration::from_millis(TASK_PATIENCE_MS) * o.array_tasks;
        let mut turn = 0;
        loop {
            todo.extend(p.take_returned(first).into_iter().flat_map(|(job, tasks)| tasks.iter().map(|t| (job, t)).collect::<Vec<_>>()));
            for (child, share, room) in p.room() {
                turn += 1;
                let mut sets: BTreeMap<u64, TaskSet> = BTreeMap::new();
                for _ in 0..room.min([1, 3, 64][turn % 3]) {
                    if let Some((job, t)) = todo.pop() {
                        sets.entry(job).or_default().insert(t..t + 1);
                    }
                }
                for (job, tasks) in sets {
                    p.place(child, &share, job, tasks);
                }
            }
            let (alive, room) = (p.alive(first), p.room());
            if todo.is_empty() && alive == 0 {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let what = format!("the array's next step, with {} tasks to place and {alive} alive", todo.len());
            p.until(&what, left, |p| p.alive(first) != alive || p.room() != room).await?;
        }
        for job in jobs {
            let mut done = TaskSet::new();
            for placement in p.placements.range(first..).map(|(_, p)| p).filter(|p| p.place.job == job) {
                for (tasks, e) in &placement.ended {
                    check(e.phase == Phase::Done && done.intersect(tasks).is_empty(), || format!("{tasks} ended twice or badly: {e:?}"))?;
                    done = done.union(tasks);
                }
            }
            check(done == TaskSet::range(0..size), || format!("job {job}: only {done} ended"))?;
        }
        p.settle(o.quiet).await
    })
}
