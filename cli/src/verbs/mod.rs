//! What users can do: one file per group. Each parses its words into checked types, asks, and renders the answer.

pub mod admin;
pub mod doctor;
pub mod explain;
#[cfg(test)]
mod fake;
pub mod fetch;
pub mod history;
pub mod hosts;
pub mod jobs;
pub mod live;
pub mod logs;
pub mod quote;
pub mod rented;
pub mod run;
pub mod submit;
#[cfg(test)]
mod tests;
pub mod wait;
pub mod watch;

use std::sync::Arc;

use crate::args::{AgentArgs, AgentWhat, Cli, Command};
use crate::client::{Client, Home};
use crate::env::Environment;
use crate::names::JobName;
use crate::out::Out;
use crate::stop::{Ending, Result};

/// What every verb that asks a grid needs.
pub struct Context<'a> {
    /// Where the answer goes.
    pub out: &'a Out,
    /// Whom to ask.
    pub client: Arc<Client>,
}

/// Run the verb of this command line.
pub async fn run(cli: Cli, environment: Environment, out: &Out) -> Result<Ending> {
    let endpoint = cli.endpoint.as_deref();
    // Words are checked before anybody is asked.
    let connect = async || -> Result<Context<'_>> { Ok(Context { out, client: Home::load(&environment, endpoint)?.connect().await?.into() }) };
    match cli.command {
        Command::Submit(args) => {
            let plan = submit::Plan::parse(&args.spec, args.hold)?.traced(environment.trace_parent.as_deref())?;
            let submission = plan.prepare(out).await?;
            let context = connect().await?;
            quote::agreed(&context, &submission, args.spec.yes).await?;
            submit::run(&context, submission, args.wait).await
        }
        Command::Run(args) => {
            let submission = submit::Plan::parse(&args.spec, false)?.traced(environment.trace_parent.as_deref())?.prepare(out).await?;
            let context = connect().await?;
            quote::agreed(&context, &submission, args.spec.yes).await?;
            run::run(&context, submission).await
        }
        Command::Ls(args) => {
            let context = connect().await?;
            asked(out, args.watch, async |out| jobs::ls(&context, out, args.limit).await.map(|_| false)).await
        }
        Command::Show(args) => {
            let job = JobName::parse(&args.job)?;
            let context = connect().await?;
            asked(out, args.watch, async |out| jobs::show(&context, out, &job).await).await
        }
        Command::Wait(args) => {
            let wish = wait::Wish::parse(&args.jobs, args.timeout.as_deref())?;
            wait::run(&connect().await?, wish).await
        }
        Command::Cancel(args) if args.force => {
            let jobs = JobName::parse_all(&args.jobs)?;
            admin::cancel(&connect().await?, &jobs).await
        }
        Command::Throttle(args) => {
            let job = admin::whole_job(&args.job)?;
            admin::throttle(&connect().await?, &args, &job).await
        }
        Command::Drain(args) => admin::drain(&connect().await?, args).await,
        Command::Resume(args) => admin::resume(&connect().await?, args.site).await,
        Command::Agent(AgentArgs { what: Some(AgentWhat::DeclareLost(args)), .. }) => admin::declare_lost(&connect, args).await,
        Command::Cancel(args) => jobs::set_want(&connect, &args.jobs, jobs::Wish::Cancel).await,
        Command::Hold(args) => jobs::set_want(&connect, &args.jobs, jobs::Wish::Hold).await,
        Command::Release(args) => jobs::set_want(&connect, &args.jobs, jobs::Wish::Run).await,
        Command::Logs(args) => {
            let wish = logs::Wish::parse(&args)?;
            logs::run(&connect().await?, wish).await.map(|()| Ending::Well)
        }
        Command::Fetch(args) => {
            let wish = fetch::Wish::parse(&args)?;
            fetch::run(&connect().await?, wish).await
        }
        Command::History(args) => {
            let job = JobName::parse(&args.job)?;
            history::run(&connect().await?, &job).await
        }
        Command::Explain(args) => {
            let job = JobName::parse(&args.job)?;
            explain::run(&connect().await?, &job).await
        }
        Command::Hosts(args) => {
            let context = connect().await?;
            asked(out, args.watch, async |out| hosts::run(&context, out, args.tree).await.map(|_| false)).await
        }
        Command::Token(args) => crate::init::token(&args, out),
        Command::Doctor(args) => doctor::run(args, out).await,
        Command::Machines(args) => {
            let context = connect().await?;
            asked(out, args.watch, async |out| rented::machines(&context, out).await.map(|_| false)).await
        }
        Command::Cost(args) => {
            let context = connect().await?;
            asked(out, args.live, async |out| rented::cost(&context, out).await.map(|_| false)).await
        }
        Command::Demo(args) => crate::demo::run(args, out).await,
        Command::DemoTile(args) => crate::demo::tile::run(&args),
        Command::LrmsHand(args) => crate::roles::hand(&args),
        Command::Completion(args) => crate::help::completion(args.shell, out),
        Command::Man(args) => crate::help::man(&args.dir, out),
        Command::Init(args) => crate::init::run(args, endpoint, &environment, out).await,
        Command::Gateway(args) => crate::roles::gateway(args, &environment, out).await,
        Command::Broker(args) => crate::roles::broker(args, &environment, out).await,
        Command::Agent(AgentArgs { role: Some(args), .. }) => crate::roles::agent(args.into(), &environment, out).await,
        Command::Agent(AgentArgs { role: None, what: None }) => {
            Err(intergrid_proto::Refusal::invalid("agent: neither a configuration nor an order").remedy("see `grid agent --help`").into())
        }
    }
}

/// Once, or again and again until the answer is final.
async fn asked(out: &Out, watch: bool, mut ask: impl AsyncFnMut(&Out) -> Result<bool>) -> Result<Ending> {
    if watch {
        watch::repeat(out, ask).await?;
    } else {
        ask(out).await?;
    }
    Ok(Ending::Well)
}
