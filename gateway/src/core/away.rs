//! A child that can't be reached, for people: since when, why, and what becomes of its tasks. Pure reads.

use intergrid_proto::SiteId;
use intergrid_proto::limits::REDIAL_MAX_MS;
use intergrid_proto::spec::OnLost;

use super::Core;

/// A child without a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Away {
    /// Its name.
    pub name: String,
    /// For how long, as far as this process knows; None: its machine has been ended.
    pub for_ms: Option<u64>,
    /// In one clause.
    pub why: String,
    /// Tasks there that are given to others, and after how many milliseconds the first of them.
    pub go: (u64, u64),
    /// Tasks there that wait for it.
    pub stay: u64,
    /// After how many milliseconds its machine is ended, and those tasks fail. None: they wait for as long as it takes.
    pub end_ms: Option<u64>,
}

impl Core {
    /// The child, if it has no session; with the tasks of this job only, where one is named.
    pub fn away(&self, child: SiteId, job: Option<u64>) -> Option<Away> {
        let (now, name) = (self.now.mono_ms, self.child_name(child));
        let away_max = self.rented_away_max(&name);
        let (lost_ms, why) = match self.children.get(&child) {
            Some(c) if c.attached => return None,
            Some(c) => (Some(c.lost_ms), c.why_lost.clone()),
            None if away_max == Some(0) => (None, "its machine has been ended".to_string()),
            None => (Some(self.started_ms), "not back since this site started".to_string()),
        };
        let for_ms = lost_ms.map(|ms| now.saturating_sub(ms));
        let end_ms = away_max.map(|most| most.saturating_sub(for_ms.unwrap_or(0)));
        let mut away = Away { name, for_ms, why, go: (0, u64::MAX), stay: 0, end_ms };
        let left = self.patience_from(child).map_or(0, |from| from.saturating_sub(now));
        let spent = now.saturating_sub(self.patience_from(child).unwrap_or(now));
        for (number, no) in self.state.placed_on.get(&child).into_iter().flatten().filter(|(_, no)| job.is_none_or(|j| j == **no)) {
            let Some(j) = self.state.jobs.get(no) else { continue };
            let Some(d) = j.downs.get(number).filter(|d| d.open > 0) else { continue };
            match j.spec.parsed.on_lost {
                OnLost::Requeue => {
                    let left = j.spec.parsed.disconnect_timeout_ms.saturating_add(left).saturating_sub(spent);
                    // With its machine all that is there is lost at once.
                    away.go = (away.go.0 + d.open, away.go.1.min(left).min(end_ms.unwrap_or(u64::MAX)));
                }
                OnLost::Wait => away.stay += d.open,
            }
        }
        Some(away)
    }

    /// From when a child's disconnect time-out counts; None: it is attached. A child that has not come since this process started may only not have dialled
    /// again yet: it has the longest pause between two attempts beyond the time-out.
    pub(super) fn patience_from(&self, child: SiteId) -> Option<u64> {
        match self.children.get(&child) {
            Some(c) if c.attached => None,
            Some(c) => Some(c.lost_ms),
            None => Some(self.started_ms + REDIAL_MAX_MS),
        }
    }
}

impl Away {
    /// What becomes of its tasks; empty where it has none.
    pub fn next(&self) -> String {
        let tasks = |n: u64, one: &str, more: &str| if n == 1 { format!("1 task there {one}") } else { format!("{n} tasks there {more}") };
        let go = match self.go {
            (0, _) => None,
            (n, 0) => Some(tasks(n, "goes", "go") + " elsewhere now"),
            (n, ms) => Some(tasks(n, "goes", "go") + &format!(" elsewhere within {} unless it comes back", yet(ms))),
        };
        let stay = match (self.stay, self.end_ms) {
            (0, _) => None,
            (n, None) => Some(tasks(n, "stays", "stay") + " unknown until it is back"),
            (n, Some(0)) => Some(tasks(n, "fails", "fail") + " now"),
            (n, Some(ms)) => Some(tasks(n, "fails", "fail") + &format!(" within {} unless it comes back", yet(ms))),
        };
        go.into_iter().chain(stay).collect::<Vec<_>>().join(", ")
    }

    /// As it follows "unreachable": since when, why, what next.
    pub fn text(&self) -> String {
        let next = self.next();
        let since = self.for_ms.map_or_else(String::new, |ms| format!("for {}: ", ago(ms)));
        format!("{since}{}{}{next}", self.why, if next.is_empty() { "" } else { "; " })
    }
}

/// How long ago.
fn ago(ms: u64) -> String {
    let (unit, name) = unit(ms);
    format!("{} {name}", ms / unit)
}

/// How long yet, and no shorter than it is.
fn yet(ms: u64) -> String {
    let (unit, name) = unit(ms);
    format!("{} {name}", ms.div_ceil(unit))
}

/// The largest unit that a time fills twice: milliseconds of it, and its name.
fn unit(ms: u64) -> (u64, &'static str) {
    match ms / 1_000 {
        0..120 => (1_000, "s"),
        120..7_200 => (60_000, "min"),
        7_200..172_800 => (3_600_000, "h"),
        _ => (86_400_000, "d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_since_when_why_and_what_next() {
        let of = |go, stay, end_ms| Away { name: "campus".into(), for_ms: Some(12_345), why: "connection refused".into(), go, stay, end_ms };
        let away = |go, stay| of(go, stay, None).text();
        assert_eq!("for 12 s: connection refused", away((0, u64::MAX), 0));
        assert_eq!("for 12 s: connection refused; 3 tasks there go elsewhere within 25 s unless it comes back", away((3, 24_100), 0));
        assert_eq!("for 12 s: connection refused; 1 task there goes elsewhere now, 2 tasks there stay unknown until it is back", away((1, 0), 2));
        assert_eq!("1 task there fails within 8 s unless it comes back", of((0, 0), 1, Some(7_500)).next());
        let ended = Away { for_ms: None, why: "its machine has been ended".into(), ..of((1, 0), 2, Some(0)) };
        assert_eq!("its machine has been ended; 1 task there goes elsewhere now, 2 tasks there fail now", ended.text());
        assert_eq!(["119 s", "2 min", "2 h", "3 d"], [119_000, 120_000, 7_200_000, 270_000_000].map(ago));
        assert_eq!(["1 s", "120 s", "5 min", "3 h"], [1, 119_001, 240_001, 7_200_001].map(yet));
    }
}
