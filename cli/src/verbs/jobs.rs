//! `ls`, `show`, and the wishes `cancel`, `hold` and `release`.

use intergrid_proto::limits::LIST_MAX;
use intergrid_proto::money::human_micro;
use intergrid_proto::{JobSpec, Phase, Refusal, RefusalKind, TaskSet, pb};
use serde_json::json;

use crate::client::Client;
use crate::names::JobName;
use crate::out::{Out, Paint};
use crate::render::table::{Cell, Table};
use crate::render::{self, objects};
use crate::stop::{Ending, Result};
use crate::verbs::Context;

/// Ranges of tasks that `show` prints for people; `--json` has them all.
const SHOW_LINES_MAX: usize = 40;

/// The caller's jobs.
pub async fn ls(context: &Context<'_>, out: &Out, limit: u32) -> Result<Ending> {
    if limit == 0 || limit > LIST_MAX {
        return Err(Refusal::invalid(format!("-n {limit}: 1 to {LIST_MAX} jobs are listed")).into());
    }
    let jobs = context.client.call("list", async |mut grid| grid.list(pb::ListRequest { limit }).await).await?.jobs;
    if out.json {
        out.object(json!({"jobs": jobs.iter().map(objects::job).collect::<Vec<_>>()}))?;
        return Ok(Ending::Well);
    }
    if jobs.is_empty() {
        out.next("no jobs yet; try: grid submit -- hostname")?;
        return Ok(Ending::Well);
    }
    list(&jobs).print(out)?;
    if jobs.len() == limit as usize {
        out.note(format!("the newest {limit}; -n LIMIT lists more, at most {LIST_MAX}"));
    }
    out.next(format!("next: grid show {}", jobs[0].id))?;
    Ok(Ending::Well)
}

fn list(jobs: &[pb::JobView]) -> Table {
    let mut table = Table::new(&["JOB", "NAME", "OWNER", ">TASKS", ">DONE", ">AGE", "SITES", "PHASES"]);
    for v in jobs {
        table.row(vec![
            Cell::painted(&v.id, Paint::Bold),
            dash(&v.name),
            dash(&v.owner),
            render::size(v).into(),
            render::in_phase(v, Phase::Done).into(),
            render::duration(v.age_ms).into(),
            dash(&v.sites.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(",")),
            Cell::painted(render::phases(&v.counts), Paint::of(render::telling_phase(v))),
        ]);
    }
    table
}

fn dash(text: &str) -> Cell {
    if text.is_empty() { Cell::painted("-", Paint::Dim) } else { text.into() }
}

/// What a job is, and how it is; of some of its tasks where they are named.
pub async fn view(client: &Client, job: &JobName) -> Result<pb::JobView, Refusal> {
    client.call("show", async |mut grid| grid.show(job.request()).await).await
}

/// One job, or some of its tasks; returns whether all of them have ended.
pub async fn show(context: &Context<'_>, out: &Out, job: &JobName) -> Result<bool> {
    let view = view(&context.client, job).await?;
    let over = view.ended_age_ms > 0;
    if out.json {
        out.object(objects::job(&view))?;
        return Ok(over);
    }
    print(out, &view, job.tasks.as_ref())?;
    let id = &view.id;
    out.next(match render::telling_phase(&view) {
        Phase::Done => format!("next: grid logs {id}, grid fetch {id}, grid history {id}"),
        Phase::Failed => format!("next: grid explain {id}, grid logs --stderr {id}"),
        Phase::Cancelled => format!("next: grid history {id}"),
        Phase::Held => format!("next: grid release {id}"),
        Phase::Queued | Phase::Placed => format!("next: grid explain {id}"),
        Phase::StagingIn | Phase::Running | Phase::Suspended | Phase::StagingOut => format!("next: grid wait {id}"),
    })?;
    Ok(over)
}

fn print(out: &Out, v: &pb::JobView, only: Option<&TaskSet>) -> Result<()> {
    let mut facts: Vec<(&str, String)> = vec![("job", v.id.clone()), ("name", v.name.clone()), ("owner", v.owner.clone())];
    if let Ok(s) = JobSpec::decode(&v.spec) {
        let staged = s.executable.as_ref().map_or(String::new(), |f| format!("  (staged, {})", render::bytes(f.size)));
        facts.push(("command", format!("{}{staged}", render::command(&s.argv))));
        let limit = s.time_limit_ms.map_or(String::new(), |ms| format!(", at most {}", render::duration(ms)));
        facts.push(("each task", format!("{}{limit}", s.shape)));
        facts.push(("inputs", s.inputs.iter().map(|f| f.name.as_str()).collect::<Vec<_>>().join(" ")));
        facts.push(("trace", s.trace_parent.split('-').nth(1).unwrap_or_default().to_owned()));
        facts.push(("outputs", s.outputs.join(" ")));
    }
    let sites = v.sites.iter().map(|s| format!("{} ({} active, {} ended)", s.name, s.active, s.ended));
    let since = |ms: u64| format!("{} ago", render::duration(ms));
    let wish = render::want(v.want);
    let size = only.map_or_else(|| render::size(v), |t| format!("{} of {} ({t})", t.len(), v.tasks));
    facts.extend([
        ("tasks", format!("{size}: {}", render::phases(&v.counts))),
        ("sites", sites.collect::<Vec<_>>().join(", ")),
        ("at a time", if v.tasks_at_once > 0 { format!("at most {}", v.tasks_at_once) } else { String::new() }),
        ("cost", v.cost.as_ref().map_or(String::new(), cost)),
        ("wish", if wish == "run" { String::new() } else { wish.to_owned() }),
        ("accepted", since(v.age_ms)),
        ("ended", if v.ended_age_ms > 0 && only.is_none() { since(v.ended_age_ms) } else { String::new() }),
        ("key", v.key.clone()),
    ]);
    for (what, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        out.line(format!("{}{value}", out.paint(Paint::Dim, &format!("{what:<11}"))))?;
    }
    for c in &v.counts {
        if let Some(r) = &c.reason {
            out.line(format!("{}{} {}: {}", out.paint(Paint::Dim, "why        "), c.tasks, render::phase(c.phase), render::reason(r)))?;
        }
    }
    if v.ranges.len() < 2 && v.tasks < 2 && v.ended_age_ms == 0 {
        return Ok(());
    }
    out.line("")?;
    let mut table = Table::new(&["TASKS", "PHASE", ">ATTEMPTS", "EXIT"]);
    for r in v.ranges.iter().take(SHOW_LINES_MAX) {
        let paint = Phase::from_number(r.phase).map_or(Paint::Plain, Paint::of);
        let tasks = render::tasks(r.tasks.as_ref()).to_string();
        table.row(vec![tasks.into(), Cell::painted(render::phase(r.phase), paint), r.attempts.into(), render::exits(&r.exit).into()]);
    }
    table.print(out)?;
    if v.ranges.len() > SHOW_LINES_MAX {
        out.line(format!("and {} more ranges; `grid show --json {}` has them", v.ranges.len() - SHOW_LINES_MAX, v.id))?;
    }
    Ok(())
}

/// Against what it may cost.
fn cost(c: &pb::Cost) -> String {
    let max = c.max.clone().unwrap_or_default();
    let (spent, reserved) = (human_micro(c.spent_micro), human_micro(c.reserved_micro));
    format!("{spent} of at most {} {} spent, {reserved} more reserved", human_micro(max.micro), max.currency)
}

/// What the user wants of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// That it stops.
    Cancel,
    /// That it does not start.
    Hold,
    /// That it goes on.
    Run,
}

impl Wish {
    fn value(self) -> pb::WantValue {
        match self {
            Wish::Cancel => pb::WantValue::WantCancel,
            Wish::Hold => pb::WantValue::WantHold,
            Wish::Run => pb::WantValue::WantRun,
        }
    }

    /// What is said of tasks that have not ended, some of which run.
    fn said(self, tasks: u64, running: u64) -> String {
        match (self, tasks.saturating_sub(running)) {
            (Wish::Cancel, _) => format!("{} to be cancelled", render::count(tasks, "task")),
            (Wish::Run, _) => format!("{} may run", render::count(tasks, "task")),
            (Wish::Hold, 0) => "nothing to hold; what has started goes on to its end".to_owned(),
            (Wish::Hold, held) => format!("{} on hold; what has started goes on to its end", render::count(held, "task")),
        }
    }
}

/// Tasks that have started: a hold comes too late for them.
fn started(view: &pb::JobView) -> u64 {
    [Phase::Running, Phase::Suspended, Phase::StagingOut].into_iter().map(|p| render::in_phase(view, p)).sum()
}

/// Say what is wanted of each job; the first that is refused ends it, after those before it.
pub async fn set_want<'a>(connect: impl AsyncFn() -> Result<Context<'a>>, jobs: &[String], wish: Wish) -> Result<Ending> {
    let jobs = JobName::parse_all(jobs)?;
    let context = connect().await?;
    let out = context.out;
    for job in &jobs {
        let request = pb::SetWantRequest {
            job: job.reference(),
            value: wish.value().into(),
            tasks: job.tasks.as_ref().map(intergrid_proto::convert::tasks_out),
        };
        let reply = context.client.call("set-want", async |mut grid| grid.set_want(request.clone()).await).await;
        let (id, tasks) = match reply {
            Ok(reply) => (reply.job, reply.tasks),
            Err(r) if r.kind == RefusalKind::Unavailable => return Err(r.remedy("repeat it: wishing the same twice does no harm").into()),
            Err(r) => return Err(r.into()),
        };
        let job = job.of(&id);
        let running = if tasks > 0 { started(&view(&context.client, &job).await?) } else { 0 };
        if out.json {
            out.object(json!({"job": id, "want": render::want(wish.value().into()), "tasks": tasks, "running": running}))?;
        } else if tasks == 0 {
            out.line(format!("job {job}: nothing to do, {}", if job.tasks.is_some() { "these have ended" } else { "all its tasks have ended" }))?;
        } else {
            out.line(format!("job {job}: {}", wish.said(tasks, running)))?;
        }
        if jobs.len() == 1 {
            out.next(format!("next: grid show {id}"))?;
        }
    }
    Ok(Ending::Well)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_for_people() {
        let count = |phase: Phase, tasks| pb::PhaseCount { phase: phase as i32, tasks, reason: None };
        let jobs = [
            pb::JobView {
                id: "7k2m9p".into(),
                name: "render".into(),
                owner: "alice".into(),
                tasks: 64,
                age_ms: 65_000,
                counts: vec![count(Phase::Running, 10), count(Phase::Done, 54)],
                sites: vec![pb::SiteCount { name: "eu".into(), ..Default::default() }, pb::SiteCount { name: "burst".into(), ..Default::default() }],
                ..Default::default()
            },
            pb::JobView { id: "b8zzzz".into(), tasks: 1, counts: vec![count(Phase::Queued, 1)], ..Default::default() },
            // A part that a parent placed here.
            pb::JobView { id: "c9zzzz".into(), tasks: 10, counts: vec![count(Phase::Done, 6)], ..Default::default() },
        ];
        let out = Out::new(&Default::default(), false);
        assert_eq!(
            vec![
                "JOB     NAME    OWNER    TASKS  DONE    AGE  SITES     PHASES",
                "7k2m9p  render  alice       64    54  1m05s  eu,burst  done 54, running 10",
                "b8zzzz  -       -            1     0    0ms  -         queued 1",
                "c9zzzz  -       -      6 of 10     6    0ms  -         done 6",
            ],
            list(&jobs).lines(&out)
        );
    }
}
