//! How a verb ends: its exit code, or the refusal that ended it. Exit codes are part of the interface; scripts rely on them.

use std::io::{self, Write};
use std::process::ExitCode;

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
    /// The time given with `--timeout` is over.
    TimedOut,
}

impl Ending {
    /// 0, 1 or 6.
    pub fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Ending::Well => 0,
            Ending::JobFailed => 1,
            Ending::TimedOut => 6,
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
    let json = std::env::args_os().skip(1).take_while(|a| a != "--").any(|a| a == "--json");
    if json && e.use_stderr() {
        let text = e.render().to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        return Out::new(environment, true).refused(&Refusal::invalid(message).remedy("see `grid --help`"));
    }
    if !e.use_stderr() {
        // Fails only where nobody reads it.
        let _ = e.print();
        return ExitCode::SUCCESS;
    }
    let text = e.render().to_string();
    let _ = write!(io::stderr().lock(), "grid: {}", text.trim_start_matches("error: "));
    ExitCode::from(2)
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
    fn a_closed_pipe_is_no_error() {
        assert!(matches!(Stop::from(io::Error::from(io::ErrorKind::BrokenPipe)), Stop::PipeClosed));
        assert!(matches!(Stop::from(io::Error::from(io::ErrorKind::StorageFull)), Stop::Refused(_)));
    }
}
