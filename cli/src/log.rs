//! Where the roles' log goes: stderr, a line each. On a terminal in colour; in a file with times; to systemd's journal without either, because that keeps
//! its own time, and with the priority in front, which it takes off again.

use std::io::{self, Stderr, Write};

use intergrid_proto::Refusal;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::env::Environment;

/// What is logged unless INTERGRID_LOG says otherwise.
const LOG_DEFAULT: &str = "info";

/// Set it up for this process.
pub fn init(environment: &Environment) -> Result<(), Refusal> {
    let wanted = environment.log.as_deref().unwrap_or(LOG_DEFAULT);
    let remedy = "write it like info, or intergrid_gateway=debug";
    let filter = EnvFilter::try_new(wanted).map_err(|e| Refusal::invalid(format!("INTERGRID_LOG {wanted:?}: {e}")).remedy(remedy))?;
    let ansi = environment.stderr_terminal && !environment.no_color;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi);
    let set = match environment.stderr_journal {
        true => lines.without_time().with_level(false).with_writer(Journal).try_init(),
        false => lines.with_writer(io::stderr).try_init(),
    };
    set.map_err(|e| Refusal::invalid(format!("the log can't be set up: {e}")))
}

/// Lines with their priority.
struct Journal;

/// As syslog numbers it.
fn priority(level: Level) -> &'static [u8] {
    match level {
        Level::ERROR => b"<3>",
        Level::WARN => b"<4>",
        Level::INFO => b"<6>",
        Level::DEBUG | Level::TRACE => b"<7>",
    }
}

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(priority(Level::INFO), io::stderr())
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line {
        Line(priority(*meta.level()), io::stderr())
    }
}

/// One event: written at once, each of its lines with the priority.
struct Line(&'static [u8], Stderr);

impl Write for Line {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let lines = text.split_inclusive(|b| *b == b'\n').flat_map(|line| [self.0, line]).collect::<Vec<_>>().concat();
        self.1.lock().write_all(&lines).map(|()| text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()
    }
}
