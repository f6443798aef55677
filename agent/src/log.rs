//! Log lines on stderr, for a program that has to stay small: `2026-11-21T04:46:15Z INFO message key=value`; to systemd's journal, which keeps its own
//! time, `<6>message key=value`.

use std::fmt::{self, Write};
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Send this process's log to stderr: our own lines from INFO, those of libraries from WARN. A second call, or one where another subscriber is set,
/// changes nothing.
pub fn init() {
    let _ = tracing::subscriber::set_global_default(Lines { journal: to_journal() });
}

/// `JOURNAL_STREAM` names the device and inode of stderr. One that was inherited, while stderr was sent elsewhere, is not ours.
fn to_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    rustix::fs::fstat(std::io::stderr()).is_ok_and(|s| stream == format!("{}:{}", s.st_dev, s.st_ino))
}

struct Lines {
    journal: bool,
}

/// As syslog numbers it.
fn priority(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

impl Subscriber for Lines {
    fn enabled(&self, m: &Metadata<'_>) -> bool {
        let most = if m.target().starts_with("intergrid") { Level::INFO } else { Level::WARN };
        m.is_event() && *m.level() <= most
    }

    fn event(&self, event: &Event<'_>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let level = event.metadata().level();
        let mut line = if self.journal { format!("<{}>", priority(level)) } else { format!("{} {level} ", utc(now)) };
        event.record(&mut Text(&mut line));
        line.push('\n');
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Text<'a>(&'a mut String);

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

/// Seconds since 1970 as people read it; civil date from days by Hinnant's algorithm.
fn utc(s: u64) -> String {
    let days = s / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let (d, month) = (day_of_year - (153 * m + 2) / 5 + 1, if m < 10 { m + 3 } else { m - 9 });
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{d:02}T{:02}:{:02}:{:02}Z", s / 3_600 % 24, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates_are_right() {
        for (s, text) in [(0, "1970-01-01T00:00:00Z"), (951_782_400, "2000-02-29T00:00:00Z"), (1_795_236_375, "2026-11-21T04:46:15Z")] {
            assert_eq!(text, super::utc(s));
        }
    }
}
