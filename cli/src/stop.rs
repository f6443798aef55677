//! How a verb ends: its exit code, or the refusal that ended it. Exit codes are part of the interface; scripts rely on them.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use intergrid_proto::{Refusal, RefusalKind};

use crate::env::Environment;
use crate::out::Out;

/// A verb that came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// What was asked for is so.
    Well,
    /// A job that was waited for failed or was cancelled.
    JobFailed,
    /// What was examined is not as it should be.
    NotWell,
    /// The time given with `--timeout` is over.
    TimedOut,
    /// What `run` ran ended with this code, as a shell would tell it.
    Payload(u8),
}

/// `run` tells all faults that are not its payload's by this one.
pub const RUN_FAULT: u8 = 125;

impl Ending {
    /// 0, 1 or 6; of a payload its own.
    pub fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Ending::Well => 0,
            Ending::JobFailed | Ending::NotWell => 1,
            Ending::TimedOut => 6,
            Ending::Payload(code) => code,
        })
    }
}

/// Why a verb did not come to its end.
#[derive(Debug)]
pub enum Stop {
    /// Refused, here or at the other end.
    Refused(Refusal),
    /// Nobody reads what we write: not an error.
    PipeClosed,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Stop::Refused(refusal)
    }
}

/// Only output goes through this: other I/O names its file with [`local`].
impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::BrokenPipe => Stop::PipeClosed,
            _ => Stop::Refused(local(format!("the output can't be written: {e}"))),
        }
    }
}

/// Result of a verb.
pub type Result<T, E = Stop> = std::result::Result<T, E>;

/// Something on this machine is not as it should be.
pub fn local(message: impl Into<String>) -> Refusal {
    Refusal::invalid(message)
}

/// The exit code that belongs to a refusal.
pub fn code(kind: RefusalKind) -> u8 {
    match kind {
        RefusalKind::NotAuthorised | RefusalKind::DuplicateIdentity => 3,
        RefusalKind::NotFound => 4,
        RefusalKind::OverLimit => 5,
        RefusalKind::Unavailable => 7,
        RefusalKind::Invalid
        | RefusalKind::Conflict
        | RefusalKind::Loop
        | RefusalKind::MustUnderstand
        | RefusalKind::MissingBlob
        | RefusalKind::Internal => 2,
    }
}

/// One word for scripts: the kind in an error object.
pub fn word(kind: RefusalKind) -> &'static str {
    match kind {
        RefusalKind::Invalid => "invalid",
        RefusalKind::Conflict => "conflict",
        RefusalKind::NotAuthorised => "not-authorised",
        RefusalKind::NotFound => "not-found",
        RefusalKind::OverLimit => "over-limit",
        RefusalKind::Unavailable => "unavailable",
        RefusalKind::Loop => "loop",
        RefusalKind::DuplicateIdentity => "duplicate-identity",
        RefusalKind::MustUnderstand => "must-understand",
        RefusalKind::MissingBlob => "missing-blob",
        RefusalKind::Internal => "internal",
    }
}

/// A command line that clap refused, or `--help` and `--version`.
pub fn usage(environment: &Environment, e: clap::Error) -> ExitCode {
    if !e.use_stderr() {
        // Fails only where nobody reads it.
        let _ = e.print();
        return ExitCode::SUCCESS;
    }
    if e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = e.print();
        return ExitCode::from(2);
    }
    let words: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).take_while(|a| a != "--").collect();
    let verb = words.iter().find(|w| ["submit", "run"].contains(&w.as_str()));
    let hint = verb.filter(|_| e.kind() == ErrorKind::UnknownArgument).and_then(|verb| Some(command_hint(verb, &stray(&e)?)));
    let text = e.render().to_string();
    if words.iter().any(|w| w == "--json") {
        let remedy = hint.unwrap_or_else(|| "see `grid --help`".to_owned());
        Out::new(environment, true).error(&Refusal::invalid(in_one_line(&text)).remedy(remedy));
    } else {
        let hint = hint.map_or(String::new(), |h| format!("  tip: {h}\n\n"));
        let (what, rest) = text.trim_start_matches("error: ").split_once("\n\n").unwrap_or((&text, ""));
        // Nobody reads it: then the exit code says enough.
        let _ = write!(io::stderr().lock(), "grid: {what}\n\n{hint}{rest}");
    }
    ExitCode::from(if verb.is_some_and(|v| v == "run") { RUN_FAULT } else { 2 })
}

/// The word that clap did not expect, where it is not an option.
fn stray(e: &clap::Error) -> Option<String> {
    match e.get(ContextKind::InvalidArg)? {
        ContextValue::String(word) if !word.starts_with('-') => Some(word.clone()),
        _ => None,
    }
}

fn command_hint(verb: &str, word: &str) -> String {
    format!("write the command after --, as in: grid {verb} -- {word}")
}

/// What is wrong, without usage and tips: the first paragraph.
fn in_one_line(text: &str) -> String {
    let lines = text.trim_start_matches("error: ").lines().take_while(|l| !l.trim().is_empty());
    lines.map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_as_documented() {
        for (kind, want) in [
            (RefusalKind::Invalid, 2),
            (RefusalKind::Conflict, 2),
            (RefusalKind::MissingBlob, 2),
            (RefusalKind::NotAuthorised, 3),
            (RefusalKind::NotFound, 4),
            (RefusalKind::OverLimit, 5),
            (RefusalKind::Unavailable, 7),
        ] {
            assert_eq!(want, code(kind), "{kind:?}");
        }
        assert_eq!(ExitCode::from(6), Ending::TimedOut.code());
        assert_eq!(ExitCode::from(1), Ending::JobFailed.code());
    }

    #[test]
    fn what_is_wrong_in_one_line() {
        let text = "error: the following required arguments were not provided:\n  <JOB>...\n\nUsage: grid wait <JOB>...\n";
        assert_eq!("the following required arguments were not provided: <JOB>...", in_one_line(text));
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        assert!(matches!(Stop::from(io::Error::from(io::ErrorKind::BrokenPipe)), Stop::PipeClosed));
        assert!(matches!(Stop::from(io::Error::from(io::ErrorKind::StorageFull)), Stop::Refused(_)));
    }
}
