//! The tiny set of programs that a payload can be.

use intergrid_proto::{Exit, ReasonKind};

/// The program without its directory.
pub(super) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The kind of reason for a failed exit.
pub(super) fn failure(exit: Exit) -> ReasonKind {
    match exit {
        Exit::Code(127) => ReasonKind::NoSuchProgram,
        Exit::Code(_) => ReasonKind::ExitNonZero,
        Exit::Signal(_) => ReasonKind::ExitSignal,
        Exit::NotStarted => ReasonKind::StartFailed,
        Exit::Unknown => ReasonKind::ExitUnknown,
    }
}

/// How long a payload takes and how it ends.
pub(super) fn act(argv: &[String], task: u32, delay_ms: u64) -> (u64, Exit) {
    let words: Vec<String> = argv.iter().map(|a| intergrid_proto::spec::substitute(a, task)).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let seconds = |s: &str| s.parse::<f64>().ok().filter(|s| *s >= 0.0).map(|s| (s * 1000.0) as u64);
    match words.split_first().map(|(p, rest)| (file_name(p), rest)) {
        Some(("true" | "echo", _)) => (delay_ms, Exit::Code(0)),
        Some(("false", _)) => (delay_ms, Exit::Code(1)),
        Some(("sleep", [s])) => (seconds(s).unwrap_or(0), Exit::Code(0)),
        Some(("sh", ["-c", script])) => match script.split_whitespace().collect::<Vec<_>>()[..] {
            ["exit", n] => (delay_ms, Exit::Code(n.parse().unwrap_or(2))),
            ["sleep", s] => (seconds(s).unwrap_or(0), Exit::Code(0)),
            _ => (delay_ms, Exit::Code(0)),
        },
        Some(_) | None => (0, Exit::Code(127)),
    }
}
