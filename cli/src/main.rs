//! The binary `grid`: every user verb and every role of a grid of grids.
//!
//! Configuration in, one verb run, an exit code out. Nothing is decided here.

mod args;
mod ask;
mod client;
mod cluster;
mod demo;
mod env;
mod files;
mod help;
mod init;
mod log;
mod memory;
mod names;
mod out;
mod render;
mod roles;
mod stop;
mod verbs;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::args::{Cli, Command};
use crate::env::Environment;
use crate::out::Out;
use crate::stop::{Ending, Stop};

fn main() -> ExitCode {
    let environment = Environment::read();
    // `grid help VERB` is understood; as a verb of its own it would have a manual page for each.
    let words = Cli::command().disable_help_subcommand(false).try_get_matches();
    let cli = match words.and_then(|mut words| Cli::from_arg_matches_mut(&mut words)) {
        Ok(cli) => cli,
        Err(e) => return stop::usage(&environment, e),
    };
    let out = Out::new(&environment, cli.json);
    let own_codes = matches!(cli.command, Command::Run(_));
    let ending = run(cli, environment, &out);
    match ending {
        Ok(ending) => ending.code(),
        Err(Stop::PipeClosed) => ExitCode::SUCCESS,
        Err(Stop::Refused(refusal)) if own_codes => {
            out.error(&refusal);
            ExitCode::from(stop::RUN_FAULT)
        }
        Err(Stop::Refused(refusal)) => out.refused(&refusal),
    }
}

fn run(cli: Cli, environment: Environment, out: &Out) -> Result<Ending, Stop> {
    let runtime = match &cli.command {
        Command::DemoTile(tile) => return demo::tile::run(tile),
        Command::LrmsHand(args) => return roles::hand(args),
        command if command.is_site() => tokio::runtime::Builder::new_multi_thread().enable_all().build(),
        _ => tokio::runtime::Builder::new_current_thread().enable_all().build(),
    };
    let runtime = runtime.map_err(|e| stop::local(format!("no runtime: {e}")))?;
    let ending = runtime.block_on(verbs::run(cli, environment, out));
    // Reads of stdin by a role would otherwise hold the process.
    runtime.shutdown_background();
    ending
}
