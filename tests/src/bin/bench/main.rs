//! The benchmark: rows T1 to X1, each on real processes, beside the plain loop of the same minute and, where `HQ` names its binary, HyperQueue. Writes a CSV
//! file and a page with charts. It judges no number: goals stand beside what was measured, met or not.
//!
//! `tests/bench` builds everything and runs this.

mod goals;
mod hq;
mod machine;
mod page;
mod record;
mod rows;
mod svg;
mod tree;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use record::{LOOP, OURS, Record, Result, Sheet};
use rows::ROWS;
use tree::{Plan, Programs, Tree};

/// Tasks of one run of the plain loop.
const LOOP_TASKS: usize = 2_000;

/// Behind the commit of a measurement that proves nothing.
pub const QUICK: &str = " (quick)";

const USAGE: &str = "usage: tests/bench [ROW...] [--quick] [--out DIR]

  ROW      T1 T2 T3 T4 L1 L2 L3 C1 M1 M2 P1 F1 F2 F3 F4 R1 S1 G1 X1; without one: all. What other rows measured stays
  --quick  few tasks and one repetition of each: proves that it works, measures nothing
  --out    where bench.csv, benchmarks.md and its charts go [default: docs; with --quick a directory beside the build]

  HQ=      HyperQueue's `hq`, to be measured beside us
  HQ_ZERO= the same, built with RUSTFLAGS='--cfg zero_worker', for T4
";

/// What all rows share.
pub struct Bench {
    /// Ours.
    pub programs: Programs,
    /// HyperQueue's.
    pub hq: Option<PathBuf>,
    /// The same, with a worker that executes nothing.
    pub hq_zero: Option<PathBuf>,
    /// Only prove that it works.
    pub quick: bool,
    /// Everything of ours is below this, on a disk.
    pub work: PathBuf,
    sheet: Sheet,
    row: &'static str,
    commit: String,
    machine: String,
}

impl Bench {
    /// As much as is to be measured.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Keep a measurement of the row that is under way.
    pub fn keep(&mut self, record: Record) {
        let (commit, machine) = (self.commit.clone(), self.machine.clone());
        let r = Record { id: self.row.into(), load: machine::load(), commit, machine, date: today(), ..record };
        eprintln!("{:3} {:<11} {:<52} n={:<8} depth={} {:>12.2} {}", r.id, r.system, r.what, r.n, r.depth, r.value, r.unit);
        self.sheet.records.push(r);
    }

    /// The plain loop now; the fastest of its forms, tasks a second.
    pub fn baseline(&mut self, repetition: u32) -> Result<f64> {
        let tasks = self.pick(LOOP_TASKS, LOOP_TASKS / 8);
        let mut fastest = 0.0f64;
        for (what, rate) in machine::loops(&self.work, tasks)? {
            fastest = fastest.max(rate);
            let seconds = tasks as f64 / rate;
            let (system, unit) = (LOOP.to_string(), "tasks/s".to_string());
            self.keep(Record { system, what, n: tasks as u64, repetition, seconds, value: rate, unit, ..Record::default() });
        }
        Ok(fastest)
    }

    /// A tree with one agent.
    pub fn tree(&self, depth: u32, null: bool) -> Result<Tree> {
        Tree::start(&self.programs, self.plan(depth, null))
    }

    /// What that is.
    pub fn plan(&self, depth: u32, null: bool) -> Plan {
        Plan { depth, agents: 1, slots: u32::try_from(machine::cores()).unwrap_or(1), null, work: self.work.clone() }
    }
}

/// Of ours, with the durability that we always have.
pub fn ours(what: impl Into<String>, n: u64, depth: u32, repetition: u32) -> Record {
    let durability = "answer after fdatasync".to_string();
    Record { system: OURS.into(), what: what.into(), n, depth, repetition, durability, ..Record::default() }
}

/// The day, UTC.
fn today() -> String {
    let days = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 86_400;
    // From days to a date: https://howardhinnant.github.io/date_algorithms.html
    let z = days as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    format!("{}-{month:02}-{day:02}", yoe + era * 400 + i64::from(month <= 2))
}

struct Args {
    rows: Vec<&'static rows::Row>,
    quick: bool,
    out: PathBuf,
    work: PathBuf,
    programs: Programs,
    commit: String,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args> {
    let (mut rows, mut quick, mut out, mut work, mut grid, mut agent, mut commit) = (Vec::new(), false, None, None, None, None, String::new());
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--quick" => quick = true,
            "--out" => out = Some(PathBuf::from(value()?)),
            "--work" => work = Some(PathBuf::from(value()?)),
            "--grid" => grid = Some(PathBuf::from(value()?)),
            "--agent" => agent = Some(PathBuf::from(value()?)),
            "--commit" => commit = value()?,
            id => rows.push(ROWS.iter().find(|r| r.id == id).ok_or_else(|| format!("there is no row {id}"))?),
        }
    }
    if rows.is_empty() {
        rows = ROWS.iter().collect();
    }
    let (Some(out), Some(work), Some(grid), Some(agent)) = (out, work, grid, agent) else { return Err("run tests/bench".into()) };
    if quick {
        commit += QUICK;
    }
    Ok(Args { rows, quick, out, work, programs: Programs { grid, agent }, commit })
}

fn run(args: Args) -> Result<bool> {
    for dir in [&args.out, &args.work] {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    }
    // Children have a directory of their own.
    let whole = |p: &Path| p.canonicalize().map_err(|e| format!("{}: {e}", p.display()));
    let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(|p| whole(Path::new(&p))).transpose();
    let (hq, hq_zero) = (named("HQ")?, named("HQ_ZERO")?);
    let programs = Programs { grid: whole(&args.programs.grid)?, agent: whole(&args.programs.agent)? };
    let work = whole(&args.work)?;
    if hq.is_none() {
        eprintln!("HQ is not set: HyperQueue is left out");
    }
    let sheet = Sheet::open(&args.out.join("bench.csv"))?;
    let machine = machine::describe(&work, hq.as_deref());
    let mut bench = Bench { programs, hq, hq_zero, quick: args.quick, work, sheet, row: "", commit: args.commit, machine };
    let mut all_well = true;
    for row in args.rows {
        eprintln!("--- {} {}", row.id, row.title);
        let began = Instant::now();
        bench.row = row.id;
        bench.sheet.forget(row.id);
        // The tests' client panics where an answer is late; the other rows are measured all the same.
        let ended = catch_unwind(AssertUnwindSafe(|| (row.run)(&mut bench)));
        if let Err(why) = ended.unwrap_or_else(|_| Err("an answer came too late".into())) {
            all_well = false;
            eprintln!("--- {} FAILED: {why}", row.id);
            bench.keep(Record { failures: 1, unit: "rows failed".into(), value: 1.0, ..ours(format!("failed: {why}"), 0, 0, 0) });
        }
        eprintln!("--- {} took {:.1} s", row.id, began.elapsed().as_secs_f64());
        bench.sheet.save()?;
        page::write(&args.out, &bench.sheet)?;
    }
    Ok(all_well)
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Err(why) => {
            eprint!("{why}\n{USAGE}");
            ExitCode::from(2)
        }
        Ok(args) => match run(args) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(why) => {
                eprintln!("{why}");
                ExitCode::FAILURE
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_named() {
        let words = |w: &str| parse(format!("{w} --out o --work w --grid g --agent a").split(' ').map(String::from));
        assert_eq!(vec!["T4", "L2"], words("T4 L2 --quick").unwrap().rows.iter().map(|r| r.id).collect::<Vec<_>>());
        assert!(words("T9").err().unwrap().contains("no row T9"));
        assert!(today().starts_with("20") && today().len() == 10);
    }
}
