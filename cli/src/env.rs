//! The environment, read in this one place; everything else is given what it needs.

use std::io::IsTerminal;
use std::path::PathBuf;

/// What the process finds around it.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `INTERGRID_HOME`, else `~/.config/intergrid`; None where there is no home directory either.
    pub home: Option<PathBuf>,
    /// `INTERGRID_ENDPOINT`.
    pub endpoint: Option<String>,
    /// `INTERGRID_LOG`: what the roles log, in the form of `tracing`'s filters.
    pub log: Option<String>,
    /// `TRACEPARENT`, where it is one: the trace that this belongs to.
    pub trace_parent: Option<String>,
    /// `NO_COLOR` is set to something.
    pub no_color: bool,
    /// Somebody reads the answer.
    pub stdout_terminal: bool,
    /// Somebody reads errors and progress.
    pub stderr_terminal: bool,
    /// systemd's journal does: `JOURNAL_STREAM` names the device and inode of stderr.
    pub stderr_journal: bool,
}

impl Environment {
    /// Read it.
    pub fn read() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let home = text("INTERGRID_HOME").map(PathBuf::from).or_else(|| text("HOME").map(|h| PathBuf::from(h).join(".config/intergrid")));
        Environment {
            home,
            endpoint: text("INTERGRID_ENDPOINT"),
            log: text("INTERGRID_LOG"),
            trace_parent: text("TRACEPARENT").filter(|t| intergrid_proto::spec::is_traceparent(t)),
            no_color: text("NO_COLOR").is_some(),
            stdout_terminal: std::io::stdout().is_terminal(),
            stderr_terminal: std::io::stderr().is_terminal(),
            stderr_journal: text("JOURNAL_STREAM").is_some_and(|stream| {
                // A stream that was inherited, while stderr was sent elsewhere, is not ours.
                rustix::fs::fstat(std::io::stderr()).is_ok_and(|s| stream == format!("{}:{}", s.st_dev, s.st_ino))
            }),
        }
    }
}
