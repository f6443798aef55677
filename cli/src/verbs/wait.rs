//! `wait`: follow jobs to their end. A stream of views that breaks is opened again; a job's end is known only by a view whose tasks are all terminal.

use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use indicatif::ProgressBar;
use intergrid_proto::limits::{CALL_TIMEOUT_MS, REDIAL_MAX_MS, REDIAL_MIN_MS};
use intergrid_proto::net::refusal_of;
use intergrid_proto::units::parse_duration;
use intergrid_proto::{Phase, ReasonKind, Refusal, RefusalKind, pb};
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
    jobs: Vec<JobName>,
    timeout: Option<Duration>,
}

impl Wish {
    /// Check every word.
    pub fn parse(jobs: &[String], timeout: Option<&str>) -> Result<Wish, Refusal> {
        Ok(Wish { jobs: JobName::parse_all(jobs)?, timeout: timeout.map(parse_duration).transpose()? })
    }

    /// One job, however long it takes.
    pub fn until_the_end(job: &str) -> Wish {
        Wish { jobs: vec![JobName::whole(job)], timeout: None }
    }
}

/// Wait, with a bar for each job.
pub async fn run(context: &Context<'_>, wish: Wish) -> Result<Ending> {
    let bars = context.out.bars();
    let mut ends: FuturesUnordered<_> = wish
        .jobs
        .iter()
        .map(|job| {
            let mut progress = Progress::new(bars.add(context.out.job_bar(&job.to_string())), job);
            let mut warning = Warning::new(context.out);
            async move {
                let see = |view: &pb::JobView| {
                    progress.see(view);
                    warning.see(view, Some(&progress.bar));
                };
                let end = follow(&context.client, job, see).await;
                progress.bar.finish_and_clear();
                (job, end)
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
        let Some((job, end)) = end else { break };
        let view = end?;
        if !went_well(&view) {
            ending = Ending::JobFailed;
        }
        bars.suspend(|| say(context.out, &job.of(&view.id), &view))?;
    }
    Ok(ending)
}

fn went_well(view: &pb::JobView) -> bool {
    view.counts.iter().all(|c| c.phase == Phase::Done as i32)
}

/// A job's bar.
pub struct Progress {
    bar: ProgressBar,
    job: JobName,
    pace: Pace,
}

impl Progress {
    /// Of a job, or of some of its tasks.
    pub fn new(bar: ProgressBar, job: &JobName) -> Self {
        Progress { bar, job: job.clone(), pace: Pace::default() }
    }

    /// A newer view.
    pub fn see(&mut self, view: &pb::JobView) {
        let (ended, total) = (render::ended(view), wanted(&self.job, view));
        self.bar.set_prefix(self.job.of(&view.id).to_string());
        self.bar.set_length(total);
        self.bar.set_position(ended);
        let left = self.pace.see(Instant::now().into_std(), ended, total, view.age_ms).map_or(String::new(), |ms| {
            // An estimate: more digits would promise too much.
            let ms = if ms < 10_000 { ms.div_ceil(1_000) * 1_000 } else { ms };
            format!(", about {} left", render::duration(ms))
        });
        self.bar.set_message(format!("{}{left}", render::phases(&view.counts)));
    }

    /// Take it off the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// Says once of a job that nothing of what waits could ever run: it goes on waiting all the same, as a machine may come.
pub struct Warning<'a> {
    out: &'a Out,
    said: bool,
}

impl<'a> Warning<'a> {
    /// Nothing has been said.
    pub fn new(out: &'a Out) -> Self {
        Warning { out, said: false }
    }

    /// A newer view. The bar is drawn again below what is said.
    pub fn see(&mut self, view: &pb::JobView, bar: Option<&ProgressBar>) {
        let Some(text) = never(view).filter(|_| !self.said) else { return };
        self.said = true;
        let say = || self.out.note(text);
        match bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }
}

/// That no machine could ever run what waits, if that is so of all of it.
fn never(view: &pb::JobView) -> Option<String> {
    let mut waiting = view.counts.iter().filter(|c| c.phase == Phase::Queued as i32 && c.tasks > 0).peekable();
    let why = waiting.peek()?.reason.clone()?;
    let fits = |c: &pb::PhaseCount| c.reason.as_ref().is_none_or(|r| r.kind != ReasonKind::NoFit.number());
    let id = &view.id;
    let tasks = render::in_phase(view, Phase::Queued);
    (!waiting.any(fits)).then(|| format!("job {id}: {tasks} queued: {}; it goes on waiting, `grid cancel {id}` ends it", render::reason(&why)))
}

/// How fast tasks end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Pace {
    first: Option<(std::time::Instant, u64)>,
}

impl Pace {
    /// Milliseconds until all have ended, at the rate of those that ended since we look; before one has, of those that ended since the job is here.
    fn see(&mut self, now: std::time::Instant, ended: u64, total: u64, age_ms: u64) -> Option<u64> {
        let (since, before) = *self.first.get_or_insert((now, ended));
        let (some, in_ms) = match ended - before.min(ended) {
            0 => (ended, age_ms),
            some => (some, now.duration_since(since).as_millis() as u64),
        };
        if some == 0 || ended >= total {
            return None;
        }
        u64::try_from(u128::from(total - ended) * u128::from(in_ms) / u128::from(some)).ok()
    }
}

/// Tasks whose end is waited for.
fn wanted(job: &JobName, view: &pb::JobView) -> u64 {
    job.tasks.as_ref().map_or(view.tasks.into(), intergrid_proto::TaskSet::len)
}

fn say(out: &Out, job: &JobName, view: &pb::JobView) -> Result<()> {
    if out.json {
        return out.object(objects::job(view));
    }
    if !out.terminal {
        return out.line(format!("{job} {}", render::phases(&view.counts)));
    }
    let phase = render::telling_phase(view);
    out.line(format!("job {job}: {}", out.paint(Paint::of(phase), &render::phases(&view.counts))))?;
    let id = &view.id;
    out.next(match phase {
        Phase::Failed => format!("next: grid explain {id}, grid logs --stderr {id}"),
        Phase::Cancelled => format!("next: grid history {id}"),
        _ => format!("next: grid history {id}, grid logs {id}, grid fetch {id}"),
    })
}

/// Follow one job, or some of its tasks, to the last view.
pub async fn follow(client: &Client, job: &JobName, mut see: impl FnMut(&pb::JobView)) -> Result<pb::JobView, Refusal> {
    let mut job = job.clone();
    let mut pause = REDIAL_MIN_MS;
    let mut away: Option<Instant> = None;
    loop {
        let broke = match watch(client, &mut job, &mut see, &mut away).await {
            Ok(Some(view)) => return Ok(view),
            Ok(None) => Refusal::new(RefusalKind::Unavailable, format!("job {job}: the stream of its views ended early")).remedy("wait again"),
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
    job: &mut JobName,
    see: &mut impl FnMut(&pb::JobView),
    away: &mut Option<Instant>,
) -> Result<Option<pb::JobView>, Refusal> {
    let request = job.request();
    let mut stream = client.call_once("watch", CALL_TIMEOUT_MS, async |mut grid| grid.watch(request.clone()).await).await?;
    // Unbounded between views, as a job may run for days; the connection's keepalive ends a dead one.
    while let Some(view) = stream.message().await.map_err(|status| refusal_of(&status))? {
        *away = None;
        *job = job.of(&view.id);
        see(&view);
        if render::ended(&view) >= wanted(job, &view) && view.tasks > 0 {
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
        assert!(Wish::parse(&["7k[3-7]".into()], None).is_ok());
        assert!(Wish::parse(&["7k".into()], Some("10")).is_err());
    }

    #[test]
    fn what_could_never_run_is_told_from_what_waits() {
        use ReasonKind::*;
        let count = |phase: Phase, tasks, kind: Option<ReasonKind>| pb::PhaseCount {
            phase: phase as i32,
            tasks,
            reason: kind.map(|k| pb::Reason { kind: k.number(), text: "too wide".into(), remedy: "ask for less".into(), ..Default::default() }),
        };
        let of = |counts| never(&pb::JobView { id: "7k".into(), counts, ..Default::default() });
        let text = "job 7k: 3 queued: no-fit: too wide; ask for less; it goes on waiting, `grid cancel 7k` ends it";
        assert_eq!(Some(text.to_string()), of(vec![count(Phase::Queued, 3, Some(NoFit)), count(Phase::Running, 1, None)]));
        assert_eq!(None, of(vec![count(Phase::Queued, 3, Some(AllBusy))]));
        assert_eq!(None, of(vec![count(Phase::Queued, 3, Some(NoFit)), count(Phase::Queued, 1, Some(AllBusy))]), "some of it may run");
        assert_eq!(None, of(vec![count(Phase::Running, 3, None), count(Phase::Failed, 1, Some(NoFit))]), "nothing waits");
    }

    #[test]
    fn the_time_left_is_by_the_rate_of_what_has_ended() {
        let began = std::time::Instant::now();
        let at = |s| began + Duration::from_secs(s);
        let mut pace = Pace::default();
        assert_eq!(None, pace.see(at(0), 0, 100, 7_000), "nothing is known");
        assert_eq!(Some(18_000), pace.see(at(2), 10, 100, 9_000));
        assert_eq!(Some(4_000), pace.see(at(4), 50, 100, 11_000));
        assert_eq!(None, pace.see(at(8), 100, 100, 15_000), "nothing is left");
        let mut late = Pace::default();
        assert_eq!(Some(60_000), late.see(at(0), 50, 100, 60_000), "before it was watched it had a rate, too");
        assert_eq!(Some(2_400), late.see(at(1), 75, 135, 61_000));
    }
}
