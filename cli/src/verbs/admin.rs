//! What administrators order: `drain`, `resume`, `agent declare-lost`; and what owners may too: `cancel --force`, `throttle`.

use intergrid_proto::{Refusal, RefusalKind, pb};
use pb::order_request::What;
use serde_json::json;

use crate::args::{DeclareLostArgs, DrainArgs, ThrottleArgs};
use crate::ask;
use crate::names::JobName;
use crate::render::{self, count};
use crate::stop::{Ending, Result};
use crate::verbs::Context;

async fn order(context: &Context<'_>, what: What) -> Result<pb::OrderReply, Refusal> {
    let request = pb::OrderRequest { what: Some(what) };
    context.client.call("order", async |mut grid| grid.order(request.clone()).await).await.map_err(|r| match r.kind {
        RefusalKind::Unavailable => r.remedy("repeat it: ordering the same twice does no harm"),
        _ => r,
    })
}

fn name(reply: &pb::OrderReply) -> (&str, &'static str) {
    reply.site.as_ref().map_or(("?", "site"), |s| (s.name.as_str(), render::kind(s.kind)))
}

/// No new work for a site or agent.
pub async fn drain(context: &Context<'_>, args: DrainArgs) -> Result<Ending> {
    let reply = order(context, What::Drain(pb::Drain { site: args.site, reason: args.reason.clone() })).await?;
    let ((name, kind), out) = (name(&reply), context.out);
    if out.json {
        out.object(json!({"site": name, "kind": kind, "draining": true, "reason": args.reason, "tasks": reply.tasks}))?;
        return Ok(Ending::Well);
    }
    let left = if reply.tasks == 0 { "nothing runs there".into() } else { format!("{} there may go on to the end", count(reply.tasks, "task")) };
    out.line(format!("{kind} {name} takes no new work; {left}"))?;
    out.next(format!("next: grid hosts --tree, grid resume {name}"))?;
    Ok(Ending::Well)
}

/// New work again.
pub async fn resume(context: &Context<'_>, site: String) -> Result<Ending> {
    let reply = order(context, What::Resume(site)).await?;
    let ((name, kind), out) = (name(&reply), context.out);
    if out.json {
        out.object(json!({"site": name, "kind": kind, "draining": false, "tasks": reply.tasks}))?;
    } else {
        out.line(format!("{kind} {name} takes new work"))?;
    }
    Ok(Ending::Well)
}

/// Is that what is wanted? Asked when it is known who it is, and how much he has.
async fn confirmed(context: &Context<'_>, agent: &str) -> Result<bool, Refusal> {
    let all = match order(context, What::Look(agent.to_owned())).await {
        Ok(reply) => {
            let (name, kind) = name(&reply);
            format!("{} at {kind} {name}", count(reply.tasks, "task"))
        }
        // A site of an earlier version can't say.
        Err(r) if r.kind == RefusalKind::MustUnderstand => format!("all tasks at {agent}"),
        Err(r) => return Err(r),
    };
    ask::yes(&format!("{all}: they run elsewhere, or have failed where --no-requeue was given, even if they still run there. Go on?"))
}

/// Whatever an agent or child has is lost. Where nobody can be asked, that it is meant has to be said on the command line.
pub async fn declare_lost<'a>(connect: impl AsyncFn() -> Result<Context<'a>>, args: DeclareLostArgs) -> Result<Ending> {
    if !args.yes && !ask::can_ask() {
        return Err(Refusal::invalid(format!("declare-lost {}: nobody can be asked here", args.agent)).remedy("give --yes if you are sure").into());
    }
    let context = connect().await?;
    if !args.yes && !confirmed(&context, &args.agent).await? {
        return Err(Refusal::invalid(format!("declare-lost {}: nothing was done", args.agent)).into());
    }
    let reply = order(&context, What::Lost(args.agent)).await?;
    let ((name, kind), out) = (name(&reply), context.out);
    let failed = reply.tasks.saturating_sub(reply.elsewhere);
    if out.json {
        out.object(json!({"site": name, "kind": kind, "tasks": reply.tasks, "elsewhere": reply.elsewhere, "failed": failed}))?;
    } else if reply.tasks == 0 {
        out.line(format!("{kind} {name} had no open tasks: nothing to do"))?;
    } else {
        let parts = [(reply.elsewhere, "to run elsewhere"), (failed, "failed or cancelled, their exit unknown")];
        let parts: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        out.line(format!("{} at {kind} {name} declared lost: {}", count(reply.tasks, "task"), parts.join(", ")))?;
        out.line("what still runs there is stopped when it is back")?;
    }
    Ok(Ending::Well)
}

/// Tasks end without a confirmed stop.
pub async fn cancel(context: &Context<'_>, jobs: &[JobName]) -> Result<Ending> {
    let out = context.out;
    for job in jobs {
        let tasks = job.tasks.as_ref().map(intergrid_proto::convert::tasks_out);
        let reply = order(context, What::Cancel(pb::ForcedCancel { job: job.reference(), tasks })).await?;
        let running: u64 = reply.at.iter().map(|s| s.active).sum();
        if out.json {
            let at: Vec<_> = reply.at.iter().map(|s| json!({"site": render::hex(&s.site), "name": s.name, "tasks": s.active})).collect();
            out.object(json!({"job": reply.job, "want": "cancel", "force": true, "tasks": reply.tasks, "running": running, "at": at}))?;
            continue;
        }
        let job = job.of(&reply.job);
        if reply.tasks == 0 {
            out.line(format!("job {job}: nothing to do, {}", if job.tasks.is_some() { "these have ended" } else { "all its tasks have ended" }))?;
            continue;
        }
        out.line(format!("job {job}: {} cancelled", count(reply.tasks, "task")))?;
        if running > 0 {
            let at: Vec<String> = reply.at.iter().map(|s| format!("{} at {}", s.active, s.name)).collect();
            out.line(format!("{running} of them may still run, unconfirmed: {}; they are stopped as soon as they are reached", at.join(", ")))?;
        }
    }
    Ok(Ending::Well)
}

/// So many tasks of an array at a time.
pub async fn throttle(context: &Context<'_>, args: &ThrottleArgs, job: &JobName) -> Result<Ending> {
    let reply = order(context, What::Throttle(pb::Throttle { job: job.reference(), tasks_at_once: args.tasks })).await?;
    let (out, id) = (context.out, &reply.job);
    if out.json {
        out.object(json!({"job": id, "tasks_at_once": args.tasks, "tasks": reply.tasks}))?;
    } else if reply.tasks == 0 {
        out.line(format!("job {id}: nothing to do, all its tasks have ended"))?;
    } else if args.tasks == 0 {
        out.line(format!("job {id}: as many tasks at a time as there is room for"))?;
    } else {
        out.line(format!("job {id}: at most {} at a time; what runs goes on to its end", count(args.tasks.into(), "task")))?;
    }
    Ok(Ending::Well)
}

/// One job, as a whole.
pub fn whole_job(text: &str) -> Result<JobName, Refusal> {
    let job = JobName::parse(text)?;
    match job.tasks {
        None => Ok(job),
        Some(_) => Err(Refusal::invalid(format!("throttle {text}: it is of a whole job")).remedy(format!("write {}", job.id))),
    }
}

/// For people: what a host says of its drain.
pub fn draining(reason: &pb::Reason) -> String {
    let by = if reason.site_name.is_empty() { String::new() } else { format!(" by {}", reason.site_name) };
    format!("draining for {}{by}: {}", render::duration(reason.age_ms), reason.text)
}
