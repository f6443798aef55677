//! `run`: submit, print what the tasks write, exit as the command did. Ctrl-C cancels the job.

use std::pin::pin;
use std::time::Duration;

use intergrid_proto::{Phase, Refusal, TaskSet, pb};
use serde_json::json;

use crate::names::JobName;
use crate::render::{self, objects};
use crate::stop::{Ending, RUN_FAULT, Result};
use crate::verbs::logs::{self, Printer, Streams};
use crate::verbs::{Context, jobs, submit, wait};

/// A job that was cancelled by Ctrl-C is left alone after this.
const CANCEL_TIMEOUT_MS: u64 = 10_000;

/// To its end.
pub async fn run(context: &Context<'_>, submission: submit::Submission) -> Result<Ending> {
    let (out, client) = (context.out, &context.client);
    // From here on: what is interrupted does not leave a job behind unsaid.
    let mut interrupted = pin!(crate::roles::interrupted_by());
    let reply = tokio::select! {
        reply = submit::send(out, client, &submission) => reply?,
        (_, code) = &mut interrupted => {
            out.note(format!("interrupted before the answer; the job may have been taken, with key {}: see grid ls", submission.key));
            return Ok(Ending::Payload(code));
        }
    };
    let tasks = TaskSet::range(0..submission.tasks);
    let printer = Printer { out, client, job: reply.job.clone(), streams: Streams::Both, label: submission.tasks > 1 };
    let waiting = out.watched().then(|| out.spinner(&format!("job {}; Ctrl-C cancels it", reply.job)));
    let mut warning = wait::Warning::new(out);
    let clear = || waiting.iter().for_each(|w| w.finish_and_clear());
    let printed = tokio::select! {
        printed = logs::follow(&printer, &tasks, clear, |view| warning.see(view, waiting.as_ref())) => printed,
        (_, code) = &mut interrupted => {
            clear();
            cancel(context, &reply.job).await?;
            return Ok(Ending::Payload(code));
        }
    };
    printed?;
    let view = jobs::view(client, &JobName::whole(&reply.job)).await?;
    let code = logs::exit_code(client, &view).await?;
    if out.json {
        let mut object = objects::job(&view);
        object["exit_code"] = json!(code.unwrap_or(RUN_FAULT));
        out.object(object)?;
    } else {
        say(context, &view, code);
    }
    Ok(Ending::Payload(code.unwrap_or(RUN_FAULT)))
}

/// What the exit code does not say.
fn say(context: &Context<'_>, view: &pb::JobView, code: Option<u8>) {
    use intergrid_proto::ReasonKind::ExitNonZero;
    let done = render::in_phase(view, Phase::Done);
    let why = view.counts.iter().filter_map(|c| c.reason.as_ref()).find(|r| r.kind != ExitNonZero.number());
    let text = match why {
        _ if done == u64::from(view.tasks) => return,
        Some(reason) => render::reason(reason),
        None if view.tasks > 1 || code.is_none() => render::phases(&view.counts),
        None => return,
    };
    context.out.note(format!("job {}: {text}; grid explain {0}", view.id));
}

async fn cancel(context: &Context<'_>, job: &str) -> Result<(), Refusal> {
    let request = pb::SetWantRequest { job: crate::names::reference(job), value: pb::WantValue::WantCancel.into(), tasks: None };
    let ask = context.client.call("set-want", async |mut grid| grid.set_want(request.clone()).await);
    let asked = tokio::time::timeout(Duration::from_millis(CANCEL_TIMEOUT_MS), ask).await;
    let remedy = format!("cancel it with: grid cancel {job}");
    match asked {
        Ok(Ok(_)) => {
            context.out.note(format!("job {job} is to be cancelled"));
            Ok(())
        }
        Ok(Err(r)) => Err(r.remedy(remedy)),
        Err(_) => Err(crate::client::silent("set-want", CANCEL_TIMEOUT_MS).remedy(remedy)),
    }
}
