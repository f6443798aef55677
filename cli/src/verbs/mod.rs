//! What users can do: one file per group. Each parses its words into checked types, asks, and renders the answer.

pub mod explain;
#[cfg(test)]
mod fake;
pub mod fetch;
pub mod history;
pub mod hosts;
pub mod jobs;
pub mod submit;
#[cfg(test)]
mod tests;
pub mod wait;

use crate::args::{Cli, Command};
use crate::client::{Client, Home};
use crate::env::Environment;
use crate::out::Out;
use crate::stop::{Ending, Result};

/// What every verb that asks a grid needs.
pub struct Context<'a> {
    /// Where the answer goes.
    pub out: &'a Out,
    /// Whom to ask.
    pub client: Client,
}

/// Run the verb of this command line.
pub async fn run(cli: Cli, environment: Environment, out: &Out) -> Result<Ending> {
    let endpoint = cli.endpoint.as_deref();
    // Words are checked before anybody is asked.
    let connect = async || -> Result<Context<'_>> { Ok(Context { out, client: Home::load(&environment, endpoint)?.connect().await? }) };
    match cli.command {
        Command::Submit(args) => {
            let plan = submit::Plan::parse(&args)?;
            let submission = plan.prepare(out).await?;
            submit::run(&connect().await?, submission).await
        }
        Command::Ls(args) => jobs::ls(&connect().await?, args.limit).await,
        Command::Show(args) => {
            let job = crate::names::JobName::parse(&args.job)?;
            jobs::show(&connect().await?, &job).await
        }
        Command::Wait(args) => {
            let wish = wait::Wish::parse(&args.jobs, args.timeout.as_deref())?;
            wait::run(&connect().await?, wish).await
        }
        Command::Cancel(args) => jobs::set_want(&connect, &args.jobs, jobs::Wish::Cancel).await,
        Command::Hold(args) => jobs::set_want(&connect, &args.jobs, jobs::Wish::Hold).await,
        Command::Release(args) => jobs::set_want(&connect, &args.jobs, jobs::Wish::Run).await,
        Command::Logs(args) => {
            let job = crate::names::JobName::parse(&args.job)?;
            let task = job.one_task()?.unwrap_or(0);
            fetch::logs(&connect().await?, &job, task, if args.stderr { "stderr" } else { "stdout" }).await
        }
        Command::Fetch(args) => {
            let wish = fetch::Wish::parse(&args)?;
            fetch::run(&connect().await?, wish).await
        }
        Command::History(args) => {
            let job = crate::names::JobName::parse(&args.job)?;
            history::run(&connect().await?, &job).await
        }
        Command::Explain(args) => {
            let job = crate::names::JobName::parse(&args.job)?;
            explain::run(&connect().await?, &job).await
        }
        Command::Hosts(args) => hosts::run(&connect().await?, args.tree).await,
        Command::Demo(args) => crate::demo::run(args, out).await,
        Command::DemoTile(args) => crate::demo::tile::run(&args),
        Command::Init(args) => crate::init::run(args, endpoint, &environment, out),
        Command::Gateway(args) => crate::roles::gateway(args, &environment, out).await,
        Command::Broker(args) => crate::roles::broker(args, &environment, out).await,
        Command::Agent(args) => crate::roles::agent(args, &environment, out).await,
    }
}
