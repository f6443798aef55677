//! Some tasks of a job instead of all: views narrowed to them. Which tasks those may be is checked before; nothing is decided here.

use intergrid_proto::convert::tasks_out;
use intergrid_proto::limits::SHOW_RANGES_MAX;
use intergrid_proto::{JobNo, Phase, Refusal, RefusalKind, TaskSet, pb};

use crate::core::Core;
use crate::core::state::{Cell, Job};

/// Tasks end before `end`: does the job have them all?
pub(super) fn check(j: &Job, end: u32) -> Result<(), Refusal> {
    let (job, size) = (j.no, j.size);
    if end <= size {
        return Ok(());
    }
    let has = if size == 1 { "its only one is 0".to_string() } else { format!("its tasks are 0-{}", size.saturating_sub(1)) };
    Err(Refusal::new(RefusalKind::NotFound, format!("job {} has no task {}: {has}", JobNo(job), end - 1)))
}

/// A view whose counts, ranges and end are those of some tasks.
pub(super) fn narrowed(core: &Core, j: &Job, view: pb::JobView, only: Option<&TaskSet>) -> pb::JobView {
    let Some(only) = only else { return view };
    let counts = core.counts(j, Some(only));
    let open = counts.iter().any(|c| Phase::from_number(c.phase).is_some_and(|p| !p.is_terminal()));
    let ranges = if view.ranges.is_empty() { Vec::new() } else { ranges(j, only) };
    let ended_age_ms = if open { 0 } else { view.ended_age_ms.max(1) };
    pb::JobView { counts, ranges, ended_age_ms, ..view }
}

/// Phases by range, at most so many.
fn ranges(j: &Job, only: &TaskSet) -> Vec<pb::TaskRange> {
    let mut found: Vec<(TaskSet, Cell)> = Vec::new();
    j.each_run(only, |range, cell| {
        // One more than is told: what is like it is left out with it.
        let full = found.len() > SHOW_RANGES_MAX;
        match found.last_mut() {
            Some((set, last)) if (last.phase, last.attempts, last.exit) == (cell.phase, cell.attempts, cell.exit) => set.insert(range),
            _ if full => {}
            _ => found.push((TaskSet::range(range), cell)),
        }
    });
    found.truncate(SHOW_RANGES_MAX);
    let range = |(set, cell): (TaskSet, Cell)| {
        let phase = cell.phase()?;
        let exit = if phase.is_terminal() { vec![cell.exit.into()] } else { Vec::new() };
        Some(pb::TaskRange { tasks: Some(tasks_out(&set)), phase: phase as i32, attempts: cell.attempts.into(), exit })
    };
    found.into_iter().filter_map(range).collect()
}
