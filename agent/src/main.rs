//! `grid-agent`: the agent as a small program of its own.

use std::path::PathBuf;
use std::process::ExitCode;

use intergrid_agent::{AgentConfig, Options, log, run};
use intergrid_proto::{Refusal, RefusalKind};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: grid-agent --config FILE [--check-config] [--ready-file FILE] [--die-with-parent]";

#[derive(Default)]
struct Args {
    config: Option<PathBuf>,
    check: bool,
    /// Is all that is asked for.
    say: Option<String>,
    options: Options,
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut out = Args::default();
    while let Some(arg) = args.next() {
        let mut value = || args.next().map(PathBuf::from).ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--config" => out.config = Some(value()?),
            "--ready-file" => out.options.ready_file = Some(value()?),
            "--check-config" => out.check = true,
            "--die-with-parent" => out.options.die_with_parent = true,
            "--version" => out.say = Some(format!("grid-agent {}", env!("CARGO_PKG_VERSION"))),
            "--help" => out.say = Some(USAGE.into()),
            _ => return Err(format!("{arg:?} is not known")),
        }
    }
    Ok(out)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let (args, config) = match parse(std::env::args().skip(1)) {
        Ok(Args { say: Some(text), .. }) => return say(&text),
        Ok(Args { config: Some(config), check, options, .. }) => ((check, options), config),
        Ok(_) => return usage("name a configuration with --config"),
        Err(message) => return usage(&message),
    };
    let (check, options) = args;
    log::init();
    let file = config.display().to_string();
    let config = match AgentConfig::load(config) {
        Ok(config) => config,
        Err(refusal) => return usage(&refusal.to_string()),
    };
    if check {
        return config.check_identity().map_or_else(|refusal| refused(&refusal), |()| say(&format!("{file} is good")));
    }
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        eprintln!("grid-agent: can't listen for signals");
        return ExitCode::FAILURE;
    };
    let shutdown = async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    };
    match run(config, options, shutdown).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => refused(&refusal),
    }
}

/// As `grid` tells it, and the unit for systemd has it: after 2 and 4 a restart is of no use.
fn refused(refusal: &Refusal) -> ExitCode {
    eprintln!("grid-agent: {refusal}");
    match refusal.kind {
        RefusalKind::Invalid => ExitCode::from(2),
        RefusalKind::NotFound => ExitCode::from(4),
        RefusalKind::Unavailable => ExitCode::from(7),
        _ => ExitCode::FAILURE,
    }
}

fn say(text: &str) -> ExitCode {
    let written = rustix::io::write(std::io::stdout(), format!("{text}\n").as_bytes());
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage(message: &str) -> ExitCode {
    eprintln!("grid-agent: {message}\n{USAGE}");
    ExitCode::from(2)
}
