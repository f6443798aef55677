//! `wait`: follow jobs to their end. A stream of views that breaks is opened again; a job's end is known only by a view whose tasks are all terminal.

use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use indicatif::ProgressBar;
use intergrid_proto::limits::{CALL_TIMEOUT_MS, REDIAL_MAX_MS, REDIAL_MIN_MS};
use intergrid_proto::net::refusal_of;
use intergrid_proto::units::parse_duration;
use intergrid_proto::{Phase, Refusal, RefusalKind, pb};
use tokio::time::Instant;

use crate::client::Client;
use crate::names::JobName;
use crate::out::{Out, Paint};
use crate::render::{self, objects};
use crate::stop::{Ending, Result};
use crate::verbs::Context;

/// An endpoint that stays away longer than this while a job is followed is unreachable.
const AWAY_MAX_MS: u64 = 120_000;

/// Which jobs, and how long.
#[derive(Debug)]
pub struct Wish {
    jobs: Vec<String>,
    timeout: Option<Duration>,
}

impl Wish {
    /// Check every word.
    pub fn parse(jobs: &[String], timeout: Option<&str>) -> Result<Wish, Refusal> {
        let jobs = JobName::parse_all(jobs)?;
        if let Some(job) = jobs.iter().find(|j| j.tasks.is_some()) {
            return Err(Refusal::invalid(format!("{job}: whole jobs are waited for")).remedy(format!("grid wait {}", job.id)));
        }
        Ok(Wish { jobs: jobs.into_iter().map(|j| j.id).collect(), timeout: timeout.map(parse_duration).transpose()? })
    }

    /// One job, however long it takes.
    pub fn until_the_end(job: &str) -> Wish {
        Wish { jobs: vec![job.to_owned()], timeout: None }
    }
}

/// Wait, with a bar for each job.
pub async fn run(context: &Context<'_>, wish: Wish) -> Result<Ending> {
    let bars = context.out.bars();
    let mut ends: FuturesUnordered<_> = wish
        .jobs
        .iter()
        .map(|job| {
            let bar = bars.add(context.out.bar(1, job));
            async move {
                let end = follow(&context.client, job, |view| progress(&bar, view)).await;
                bar.finish_and_clear();
                end
            }
        })
        .collect();
    let deadline = wish.timeout.map(|t| Instant::now() + t);
    let mut ending = Ending::Well;
    while !ends.is_empty() {
        let next = async {
            match deadline {
                Some(deadline) => tokio::time::timeout_at(deadline, ends.next()).await.ok(),
                None => Some(ends.next().await),
            }
        };
        let Some(end) = next.await else {
            drop(ends);
            let _ = bars.clear();
            let after = render::duration(wish.timeout.unwrap_or_default().as_millis() as u64);
            context.out.note(format!("timed out after {after}; the job goes on, wait again with `grid wait`"));
            return Ok(Ending::TimedOut);
        };
        let Some(view) = end.transpose()? else { break };
        if !went_well(&view) {
            ending = Ending::JobFailed;
        }
        bars.suspend(|| say(context.out, &view))?;
    }
    Ok(ending)
}

fn went_well(view: &pb::JobView) -> bool {
    render::in_phase(view, Phase::Done) == u64::from(view.tasks)
}

/// A job's bar.
pub fn progress(bar: &ProgressBar, view: &pb::JobView) {
    bar.set_length(view.tasks.into());
    bar.set_position(render::ended(view));
    bar.set_message(format!("{} {}", view.id, render::phases(&view.counts)));
}

fn say(out: &Out, view: &pb::JobView) -> Result<()> {
    if out.json {
        return out.object(objects::job(view));
    }
    if !out.terminal {
        return out.line(format!("{} {}", view.id, render::phases(&view.counts)));
    }
    let phase = render::telling_phase(view);
    out.line(format!("job {}: {}", view.id, out.paint(Paint::of(phase), &render::phases(&view.counts))))?;
    let id = &view.id;
    out.next(match phase {
        Phase::Failed => format!("next: grid explain {id}, grid logs --stderr {id}"),
        Phase::Cancelled => format!("next: grid history {id}"),
        _ => format!("next: grid history {id}, grid logs {id}, grid fetch {id}"),
    })
}

/// Follow one job to its last view.
pub async fn follow(client: &Client, job: &str, mut see: impl FnMut(&pb::JobView)) -> Result<pb::JobView, Refusal> {
    let mut id = job.to_owned();
    let mut pause = REDIAL_MIN_MS;
    let mut away: Option<Instant> = None;
    loop {
        let broke = match watch(client, &mut id, &mut see, &mut away).await {
            Ok(Some(view)) => return Ok(view),
            Ok(None) => Refusal::new(RefusalKind::Unavailable, format!("job {id}: the stream of its views ended early")).remedy("wait again"),
            Err(r) if r.kind == RefusalKind::Unavailable => r,
            Err(r) => return Err(r),
        };
        let since = *away.get_or_insert_with(|| {
            pause = REDIAL_MIN_MS;
            Instant::now()
        });
        if since.elapsed() > Duration::from_millis(AWAY_MAX_MS) {
            return Err(broke);
        }
        tokio::time::sleep(Duration::from_millis(pause)).await;
        pause = (pause * 2).min(REDIAL_MAX_MS);
    }
}

/// One stream of views, to its end. The first view names the job: a prefix or `last` means the same job after a reconnect.
async fn watch(
    client: &Client,
    id: &mut String,
    see: &mut impl FnMut(&pb::JobView),
    away: &mut Option<Instant>,
) -> Result<Option<pb::JobView>, Refusal> {
    let request = pb::JobRequest { job: crate::names::reference(id), tasks: None, deadline_ms: 0 };
    let mut stream = client.call_once("watch", CALL_TIMEOUT_MS, async |mut grid| grid.watch(request.clone()).await).await?;
    // Unbounded between views, as a job may run for days; the connection's keepalive ends a dead one.
    while let Some(view) = stream.message().await.map_err(|status| refusal_of(&status))? {
        *away = None;
        id.clone_from(&view.id);
        see(&view);
        if render::ended(&view) == u64::from(view.tasks) && view.tasks > 0 {
            return Ok(Some(view));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_checked() {
        assert!(Wish::parse(&["7k".into(), "last".into()], Some("10m")).is_ok());
        assert!(Wish::parse(&["7k[3]".into()], None).unwrap_err().remedy.contains("grid wait 7k"));
        assert!(Wish::parse(&["7k".into()], Some("10")).is_err());
    }
}
