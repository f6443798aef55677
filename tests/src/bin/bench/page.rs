//! The page: goals, charts, tables, and what they were measured on.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::QUICK;
use crate::goals::GOALS;
use crate::record::{LOOP, Record, Result, Sheet, Spread, spread};
use crate::rows::{ROWS, Row};
use crate::svg::{Bar, bars, number};

/// More are not readable.
const BARS_MAX: usize = 16;

/// Repetitions of one measurement.
struct Group<'a> {
    first: &'a Record,
    spread: Spread,
    /// Parts of the plain loop of the same minute, where that says something.
    of_loop: Option<Spread>,
    failures: u64,
    repetitions: usize,
}

fn groups<'a>(records: &'a [Record], id: &str) -> Vec<Group<'a>> {
    let mut all: Vec<Vec<&Record>> = Vec::new();
    let key = |r: &'a Record| (&r.system, &r.what, r.n, r.depth, &r.unit);
    for r in records.iter().filter(|r| r.id == id) {
        match all.iter_mut().find(|g| key(g[0]) == key(r)) {
            Some(group) => group.push(r),
            None => all.push(vec![r]),
        }
    }
    let group = |g: Vec<&'a Record>| {
        Some(Group {
            first: g.first()?,
            spread: spread(g.iter().map(|r| r.value))?,
            of_loop: spread(g.iter().filter(|r| r.baseline > 0.0).map(|r| r.value / r.baseline)),
            failures: g.iter().map(|r| r.failures).sum(),
            repetitions: g.len(),
        })
    };
    all.into_iter().filter_map(group).collect()
}

/// Write the page and its charts.
pub fn write(out: &Path, sheet: &Sheet) -> Result<()> {
    let file = |name: &str, text: String| fs::write(out.join(name), text).map_err(|e| format!("{}: {e}", out.join(name).display()));
    let records = &sheet.records;
    let mut page = String::from(
        "# Benchmarks\n\nWritten by `tests/bench`; the same numbers, one line a measurement, are in [bench.csv](bench.csv). Rows where we lose stay.\n\n\
         - *Everything is real*: release binaries, each part a process with a store and a certificate of its own, TLS 1.3 both ways, answers after fdatasync.\n\
         - *The limit* is the plain loop, run in the same minute: mkdir, posix_spawn of `/bin/true` there in a process group of its own, wait, rmdir; with as\n\
         \x20 many threads as is fastest, directories on disk or in memory, whichever is faster.\n\
         - *HyperQueue* runs on the same machine in the same minutes: its server, one worker with all cores, its own client, output discarded.\n\
         - Warm, after a run that does not count, unless said otherwise; median with minimum and maximum.\n",
    );
    if records.iter().any(|r| r.commit.ends_with(QUICK)) {
        page +=
            "\n**Rows whose commit is marked as quick were measured with `--quick`: that proves that the benchmark works, and measures nothing.**\n";
    }
    page += &measured_on(records);
    page += &goals(records);
    for row in ROWS {
        let groups = groups(records, row.id);
        if groups.is_empty() {
            continue;
        }
        let _ = write!(page, "\n## {}: {}\n\n{}.\n", row.id, row.title, capital(row.how));
        if let Some(svg) = chart(row, &groups) {
            let name = format!("bench-{}.svg", row.id.to_lowercase());
            file(&name, svg)?;
            _ = write!(page, "\n![{}: {}]({name})\n", row.id, row.title);
        }
        page += &table(&groups);
    }
    file("benchmarks.md", page)
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect())
}

/// Rows that were measured together, a line: pages are made of several runs.
fn measured_on(records: &[Record]) -> String {
    let key = |r: &'_ Record| (r.machine.clone(), r.commit.clone(), r.date.clone());
    let mut runs: Vec<(_, Vec<&Record>)> = Vec::new();
    for r in records {
        match runs.iter_mut().find(|(k, _)| *k == key(r)) {
            Some((_, run)) => run.push(r),
            None => runs.push((key(r), vec![r])),
        }
    }
    let mut out = String::from("\n## Measured on\n\n| rows | commit | date | load average | machine |\n|---|---|---|---|---|\n");
    for ((machine, commit, date), run) in runs {
        let ids: Vec<&str> = ROWS.iter().map(|row| row.id).filter(|id| run.iter().any(|r| r.id == *id)).collect();
        let load = spread(run.iter().map(|r| r.load)).unwrap_or_default();
        let load = format!("{:.1} ({:.1} to {:.1})", load.median, load.min, load.max);
        _ = writeln!(out, "| {} | {commit} | {date} | {load} | {machine} |", ids.join(" "));
    }
    out
}

fn goals(records: &[Record]) -> String {
    let mut out = String::from("\n## Goals\n\n| row | goal | measured | |\n|---|---|---|---|\n");
    for g in GOALS {
        let Some(found) = g.find(records) else { continue };
        let verdict = match (found.other_n, found.met) {
            (Some(n), _) => format!("not judged: only {} tasks", number(n as f64)),
            (None, true) => "met".into(),
            (None, false) => "**missed**".into(),
        };
        _ = writeln!(out, "| {} | {} | {} | {verdict} |", g.id, g.text, found.measured);
    }
    out
}

fn table(groups: &[Group<'_>]) -> String {
    let mut out = String::from(
        "\n| system | what | N | brokers | median | min | max | unit | of the loop | failures | repetitions | durability |\n\
         |---|---|--:|--:|--:|--:|--:|---|--:|--:|--:|---|\n",
    );
    for g in groups {
        let (r, s) = (g.first, g.spread);
        let of_loop = g.of_loop.map_or(String::new(), |s| format!("{:.2}", s.median));
        let n = if r.n == 0 { String::new() } else { number(r.n as f64) };
        _ = writeln!(
            out,
            "| {} | {} | {n} | {} | {} | {} | {} | {} | {of_loop} | {} | {} | {} |",
            r.system,
            r.what,
            r.depth,
            number(s.median),
            number(s.min),
            number(s.max),
            r.unit,
            g.failures,
            g.repetitions,
            r.durability
        );
    }
    out
}

/// The measures of a row that share its first unit: of each only the largest size, and of latencies the medians.
fn chart(row: &Row, groups: &[Group<'_>]) -> Option<String> {
    let ours = groups.iter().find(|g| g.first.system != LOOP)?;
    let unit = &ours.first.unit;
    let shown = groups.iter().filter(|g| &g.first.unit == unit && !g.first.what.ends_with("p99"));
    let mut largest: Vec<&Group<'_>> = Vec::new();
    for g in shown {
        let same = |o: &&mut &Group<'_>| {
            let (o, g) = (o.first, g.first);
            (&o.system, &o.what, o.depth) == (&g.system, &g.what, g.depth)
        };
        match largest.iter_mut().find(same) {
            Some(old) if old.first.n < g.first.n => *old = g,
            Some(_) => {}
            None => largest.push(g),
        }
    }
    let bar = |g: &&Group<'_>| {
        let r = g.first;
        let depth = if r.depth == 0 { String::new() } else { format!(", {} broker{}", r.depth, if r.depth == 1 { "" } else { "s" }) };
        let n = if r.n == 0 { String::new() } else { format!("; N {}", number(r.n as f64)) };
        let times = if g.repetitions == 1 { String::new() } else { format!(", {} times", g.repetitions) };
        Bar { label: format!("{}: {}{depth}{n}{times}", r.system, r.what), system: r.system.clone(), spread: g.spread }
    };
    let list: Vec<Bar> = largest.iter().take(BARS_MAX).map(bar).collect();
    (list.len() > 1).then(|| bars(&format!("{} {}", row.id, row.title), unit, &list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_one_line() {
        let record = |what: &str, n, value, baseline| Record {
            id: "T1".into(),
            system: "intergrid".into(),
            what: what.into(),
            n,
            value,
            baseline,
            unit: "tasks/s".into(),
            ..Record::default()
        };
        let records = [record("a", 10, 1.0, 2.0), record("a", 10, 3.0, 2.0), record("a", 100, 5.0, 0.0), record("b", 1, 1.0, 0.0)];
        let groups = groups(&records, "T1");
        assert_eq!(vec![(2, 2.0), (1, 5.0), (1, 1.0)], groups.iter().map(|g| (g.repetitions, g.spread.median)).collect::<Vec<_>>());
        assert!(table(&groups).contains("| intergrid | a | 10 | 0 | 2 | 1 | 3 | tasks/s | 1.00 | 0 | 2 |  |"));
        let svg = chart(&ROWS[0], &groups).unwrap();
        assert_eq!(2, svg.matches("<rect").count());
        assert!(svg.contains(">intergrid: a; N 100<") && svg.contains(">intergrid: b; N 1<"), "of each the largest: {svg}");
    }

    #[test]
    fn each_run_says_what_it_was_measured_on() {
        let record = |id: &str, commit: &str, load| Record {
            id: id.into(),
            commit: commit.into(),
            load,
            date: "2026-01-02".into(),
            machine: "m".into(),
            ..Record::default()
        };
        let text = measured_on(&[record("L1", "aa", 1.0), record("M1", "bb", 0.5), record("T1", "aa", 3.0), record("T1", "aa", 2.0)]);
        let lines: Vec<&str> = text.lines().skip(5).collect();
        assert_eq!(vec!["| T1 L1 | aa | 2026-01-02 | 2.0 (1.0 to 3.0) | m |", "| M1 | bb | 2026-01-02 | 0.5 (0.5 to 0.5) | m |"], lines);
    }
}
