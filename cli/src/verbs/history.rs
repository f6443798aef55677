//! `history`: every attempt of a job's tasks, as its site learnt of them: where, by which route, what it used, how it ended.

use std::time::Duration;

use intergrid_proto::limits::CALL_TIMEOUT_MS;
use intergrid_proto::net::refusal_of;
use intergrid_proto::{Phase, pb};

use crate::client::{Client, silent};
use crate::names::{JobName, reference};
use crate::out::{Out, Paint};
use crate::render::table::{Cell, Table};
use crate::render::{self, objects};
use crate::stop::{Ending, Result};
use crate::verbs::Context;

/// Rows for people; `--json` has them all, one per line as they come.
const ROWS_MAX: usize = 10_000;

/// Of a whole job.
pub fn whole(job: &str) -> pb::JobRequest {
    pb::JobRequest { job: reference(job), tasks: None, deadline_ms: 0 }
}

/// See every entry, in order, with the id of the job; returns that id.
pub async fn each(client: &Client, request: &pb::JobRequest, mut see: impl FnMut(&str, &pb::HistoryEntry) -> Result<()>) -> Result<String> {
    let mut stream = client.call("history", async |mut grid| grid.history(request.clone()).await).await?;
    let mut job = String::new();
    loop {
        let batch = tokio::time::timeout(Duration::from_millis(CALL_TIMEOUT_MS), stream.message()).await;
        match batch.map_err(|_| silent("history", CALL_TIMEOUT_MS))?.map_err(|status| refusal_of(&status))? {
            Some(batch) => {
                if !batch.job.is_empty() {
                    job = batch.job;
                }
                batch.entries.iter().try_for_each(|e| see(&job, e))?;
            }
            None => return Ok(job),
        }
    }
}

/// For people a table, for scripts an object per entry.
pub async fn run(context: &Context<'_>, job: &JobName) -> Result<Ending> {
    let out = context.out;
    if out.json {
        each(&context.client, &job.request(), |id, entry| out.object(objects::history(id, entry))).await?;
        return Ok(Ending::Well);
    }
    let mut table = new_table();
    let mut left_out = 0;
    let id = each(&context.client, &job.request(), |_, entry| {
        if table.len() < ROWS_MAX {
            table.row(row(entry))
        } else {
            left_out += 1
        }
        Ok(())
    })
    .await?;
    let job = &job.of(&id);
    if table.is_empty() {
        out.line(format!("no attempt of job {job} has ended yet"))?;
        out.next(format!("next: grid explain {id}"))?;
        return Ok(Ending::Well);
    }
    table.print(out)?;
    if left_out > 0 {
        out.line(format!("and {left_out} more; `grid history --json {job}` has them"))?;
    }
    hint(out, job)?;
    Ok(Ending::Well)
}

fn hint(out: &Out, job: &JobName) -> Result<()> {
    out.next(format!("next: grid logs {0}, grid fetch {0}", job.id))
}

fn new_table() -> Table {
    Table::new(&[">PLACEMENT", "TASKS", "ROUTE", "ENDED", "EXIT", ">WALL", ">CPU", ">MEMORY", ">AGE", "WHY"])
}

fn row(e: &pb::HistoryEntry) -> Vec<Cell> {
    let tasks = render::tasks(e.tasks.as_ref()).to_string();
    let stale = if e.stale { " (stale)" } else { "" };
    let age = render::duration(e.age_ms);
    let why = |r: Option<&pb::Reason>| r.map(render::reason).unwrap_or_default();
    let child = e.child.as_ref().map(|c| c.name.clone()).unwrap_or_default();
    let number = if e.number > 0 { e.number.to_string() } else { "-".into() };
    if let Some(ended) = &e.ended {
        let phase = Phase::from_number(ended.phase).map_or(Paint::Plain, Paint::of);
        let route = if ended.route.is_empty() { child } else { route(ended) };
        return vec![
            number.into(),
            tasks.into(),
            route.into(),
            Cell::painted(format!("{}{stale}", render::phase(ended.phase)), if e.stale { Paint::Dim } else { phase }),
            render::exits(&ended.exit).into(),
            span(&ended.wall_ms, render::duration).into(),
            span(&ended.cpu_us, |us| render::duration(us / 1_000)).into(),
            ended.peak_bytes.iter().max().map(|n| render::bytes(*n)).unwrap_or_default().into(),
            age.into(),
            why(ended.reason.as_ref()).into(),
        ];
    }
    let reason = why(e.returned.as_ref().and_then(|r| r.reason.as_ref()));
    let returned = Cell::painted(format!("returned{stale}"), Paint::Dim);
    vec![number.into(), tasks.into(), child.into(), returned, "".into(), "".into(), "".into(), "".into(), age.into(), reason.into()]
}

/// From the top to the machine: `eu/campus/campus-1`.
pub fn route(ended: &pb::Ended) -> String {
    ended.route.iter().rev().map(|h| h.name.as_str()).collect::<Vec<_>>().join("/")
}

/// One value, or the least and the greatest.
fn span(values: &[u64], words: impl Fn(u64) -> String) -> String {
    match (values.iter().min(), values.iter().max()) {
        (Some(least), Some(most)) if words(*least) == words(*most) => words(*most),
        (Some(least), Some(most)) => format!("{}..{}", words(*least), words(*most)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use intergrid_proto::TaskSet;
    use intergrid_proto::convert::tasks_out;

    #[test]
    fn attempts_for_people() {
        let hop = |name: &str| pb::Hop { name: name.into(), ..Default::default() };
        let ended = pb::Ended {
            phase: Phase::Failed as i32,
            exit: vec![0, 3],
            reason: Some(pb::Reason { kind: 32, text: "exit 3".into(), ..Default::default() }),
            route: vec![hop("campus-1"), hop("campus"), hop("eu")],
            wall_ms: vec![1_200, 2_300],
            cpu_us: vec![1_100_000],
            peak_bytes: vec![4 << 20, 3 << 20],
            ..Default::default()
        };
        let tasks = Some(tasks_out(&TaskSet::range(0..2)));
        let mut table = new_table();
        table.row(row(&pb::HistoryEntry { number: 3, tasks: tasks.clone(), ended: Some(ended), age_ms: 5_000, ..Default::default() }));
        let returned = Some(pb::Returned { reason: Some(pb::Reason { kind: 5, ..Default::default() }) });
        table.row(row(&pb::HistoryEntry { number: 2, tasks, returned, stale: true, child: Some(hop("eu")), ..Default::default() }));
        assert_eq!(
            vec![
                "PLACEMENT  TASKS  ROUTE               ENDED             EXIT                  WALL   CPU  MEMORY  AGE  WHY",
                "        3  0-1    eu/campus/campus-1  failed            exit 0, exit 3  1.2s..2.3s  1.1s      4M   5s  exit-code: exit 3",
                "        2  0-1    eu                  returned (stale)                                            0ms  over-credit",
            ],
            table.lines(&Out::new(&Default::default(), false))
        );
    }
}
