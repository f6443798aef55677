//! What people and scripts read. People get tables, colour on a terminal and the next useful command; scripts get JSON objects with a version, or bare
//! words. A reader that goes away ends the verb quietly.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use intergrid_proto::{Phase, Refusal};
use serde_json::{Value, json};

use crate::env::Environment;
use crate::stop::{self, Result};

/// Of every JSON object that is written.
const JSON_VERSION: u32 = 1;

/// How a word stands out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Paint {
    /// As all else.
    #[default]
    Plain,
    /// A heading.
    Bold,
    /// Beside the point.
    Dim,
    /// As it should be.
    Good,
    /// On its way.
    Busy,
    /// Waits for somebody.
    Warn,
    /// Went wrong.
    Bad,
}

impl Paint {
    fn code(self) -> &'static str {
        match self {
            Paint::Plain => "",
            Paint::Bold => "1",
            Paint::Dim => "2",
            Paint::Good => "32",
            Paint::Busy => "36",
            Paint::Warn => "33",
            Paint::Bad => "31",
        }
    }

    /// Of a phase.
    pub fn of(phase: Phase) -> Paint {
        match phase {
            Phase::Queued | Phase::Placed => Paint::Dim,
            Phase::Held | Phase::Suspended | Phase::Cancelled => Paint::Warn,
            Phase::StagingIn | Phase::Running | Phase::StagingOut => Paint::Busy,
            Phase::Done => Paint::Good,
            Phase::Failed => Paint::Bad,
        }
    }
}

/// Where a verb writes.
#[derive(Clone, Debug)]
pub struct Out {
    /// Objects for scripts instead of words for people.
    pub json: bool,
    /// A person reads stdout.
    pub terminal: bool,
    colour: bool,
    progress: bool,
    /// Lines that are shown together, see [`framed`](Self::framed).
    frame: Option<Arc<Mutex<String>>>,
}

/// Home, and from there to the end of the screen.
const SCREEN_HOME: &str = "\x1b[H";
const SCREEN_CLEAR: &str = "\x1b[2J\x1b[H";
const LINE_CLEAR_REST: &str = "\x1b[K";
const SCREEN_CLEAR_REST: &str = "\x1b[J";

impl Out {
    /// For this environment.
    pub fn new(environment: &Environment, json: bool) -> Self {
        let terminal = environment.stdout_terminal && !json;
        Out { json, terminal, colour: terminal && !environment.no_color, progress: environment.stderr_terminal && !json, frame: None }
    }

    /// A line.
    pub fn line(&self, text: impl AsRef<str>) -> Result<()> {
        if let Some(frame) = &self.frame {
            let mut frame = frame.lock().unwrap_or_else(PoisonError::into_inner);
            frame.push_str(text.as_ref());
            frame.push('\n');
            return Ok(());
        }
        Ok(writeln!(io::stdout().lock(), "{}", text.as_ref())?)
    }

    /// The same, but its lines are kept until they are shown, all at once.
    pub fn framed(&self) -> Out {
        Out { frame: Some(Arc::default()), ..self.clone() }
    }

    /// Show the lines of a frame: on a terminal over those before, as many as fit; else after them, apart from them unless they are objects.
    pub fn show_frame(&self, first: bool) -> Result<()> {
        let Some(frame) = &self.frame else { return Ok(()) };
        let text = std::mem::take(&mut *frame.lock().unwrap_or_else(PoisonError::into_inner));
        let mut stdout = io::stdout().lock();
        if !self.terminal {
            let apart = if first || self.json { "" } else { "\n" };
            write!(stdout, "{apart}{text}")?;
            return Ok(stdout.flush()?);
        }
        let rows = rustix::termios::tcgetwinsize(&stdout).map_or(usize::MAX, |size| lines_of(size.ws_row));
        let mut screen = String::from(if first { SCREEN_CLEAR } else { SCREEN_HOME });
        for line in text.lines().take(rows) {
            screen.extend([line, LINE_CLEAR_REST, "\n"]);
        }
        screen.push_str(SCREEN_CLEAR_REST);
        stdout.write_all(screen.as_bytes())?;
        Ok(stdout.flush()?)
    }

    /// Bytes as they are, on stderr.
    pub fn error_bytes(&self, bytes: &[u8]) -> Result<()> {
        Ok(io::stderr().lock().write_all(bytes)?)
    }

    /// Bytes as they are.
    pub fn bytes(&self, bytes: &[u8]) -> Result<()> {
        Ok(io::stdout().lock().write_all(bytes)?)
    }

    /// All that was written is with its reader.
    pub fn flush(&self) -> Result<()> {
        Ok(io::stdout().lock().flush()?)
    }

    /// One object, on one line, with its version.
    pub fn object(&self, mut value: Value) -> Result<()> {
        if let Value::Object(fields) = &mut value {
            fields.insert("version".into(), json!(JSON_VERSION));
        }
        self.line(value.to_string())
    }

    /// The next useful command; for people only.
    pub fn next(&self, text: impl AsRef<str>) -> Result<()> {
        if !self.terminal || self.frame.is_some() {
            return Ok(());
        }
        self.line(self.paint(Paint::Dim, text.as_ref()))
    }

    /// Words, coloured where that is wanted.
    pub fn paint(&self, paint: Paint, text: &str) -> String {
        match self.colour && paint != Paint::Plain && !text.is_empty() {
            true => format!("\x1b[{}m{text}\x1b[0m", paint.code()),
            false => text.to_owned(),
        }
    }

    /// In any colour, where colour is wanted.
    pub fn rgb(&self, r: u8, g: u8, b: u8, text: &str) -> String {
        if self.colour { format!("\x1b[38;2;{r};{g};{b}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A person watches what goes on.
    pub fn watched(&self) -> bool {
        self.progress
    }

    /// Something that does not end the verb. In a frame, a line of it.
    pub fn note(&self, text: impl AsRef<str>) {
        if let (Some(frame), false) = (&self.frame, self.json) {
            frame.lock().unwrap_or_else(PoisonError::into_inner).push_str(&format!("{}\n", text.as_ref()));
        } else if !self.json {
            // Nobody reads it: then it need not be said.
            let _ = writeln!(io::stderr().lock(), "grid: {}", text.as_ref());
        }
    }

    /// The end of a verb that was refused.
    pub fn refused(&self, refusal: &Refusal) -> ExitCode {
        self.error(refusal);
        ExitCode::from(stop::code(refusal.kind))
    }

    /// What went wrong, on stderr.
    pub fn error(&self, refusal: &Refusal) {
        let text = match self.json {
            true => {
                let error = json!({"kind": stop::word(refusal.kind), "message": refusal.message, "remedy": refusal.remedy});
                json!({"version": JSON_VERSION, "error": error}).to_string()
            }
            false => format!("grid: {refusal}"),
        };
        // Nobody reads it: then the exit code says enough.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Several bars; drawn only on a terminal.
    pub fn bars(&self) -> MultiProgress {
        MultiProgress::with_draw_target(self.target())
    }

    /// A bar that counts; drawn only on a terminal.
    pub fn bar(&self, length: u64, what: &str) -> ProgressBar {
        styled(ProgressBar::with_draw_target(Some(length), self.target()), "{msg:24} [{bar:32}] {pos}/{len}  {elapsed}", what)
    }

    /// A bar of a job: what it is before, how it goes on after; drawn only on a terminal.
    pub fn job_bar(&self, job: &str) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(None, self.target()).with_prefix(job.to_owned());
        styled(bar, "{prefix} [{bar:24}] {pos}/{len}  {msg}", "")
    }

    /// A bar that counts bytes; drawn only on a terminal.
    pub fn byte_bar(&self, bytes: u64, what: &str) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(bytes), self.target());
        styled(bar, "{msg:24} [{bar:32}] {bytes}/{total_bytes}  {binary_bytes_per_sec}", what)
    }

    /// Nothing to count, but somebody waits.
    pub fn spinner(&self, what: &str) -> ProgressBar {
        let bar = styled(ProgressBar::with_draw_target(None, self.target()), "{spinner} {msg}  {elapsed}", what);
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        bar
    }

    fn target(&self) -> ProgressDrawTarget {
        if self.progress { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
    }
}

/// How many lines are shown on a terminal of so many rows: one is left for the cursor. A terminal that says 0 does not know.
fn lines_of(rows: u16) -> usize {
    match rows {
        0 => usize::MAX,
        rows => usize::from(rows.max(2)) - 1,
    }
}

/// With a template; a template that indicatif refuses leaves its own.
pub fn styled(bar: ProgressBar, template: &str, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).map(|s| s.progress_chars("=> "));
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what.to_owned());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_that_does_not_know_its_rows_shows_all_lines() {
        assert_eq!([usize::MAX, 1, 1, 23], [0, 1, 2, 24].map(lines_of));
    }
}
