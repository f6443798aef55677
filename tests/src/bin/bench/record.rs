//! What was measured: one record a measurement, kept in a CSV file that later runs replace row by row, so that a page can be made of several runs.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// What can go wrong, in words: a row that fails is told of, and the others go on.
pub type Result<T> = std::result::Result<T, String>;

/// The systems that are measured.
pub const OURS: &str = "intergrid";
/// See [`OURS`].
pub const HQ: &str = "hyperqueue";
/// Slurm, without us.
pub const SLURM: &str = "slurm";
/// Grid Engine, without us.
pub const GRIDENGINE: &str = "gridengine";
/// The loop that spawns and waits, and nothing else.
pub const LOOP: &str = "plain loop";

const COLUMNS: &str = "id,system,what,n,depth,repetition,seconds,value,unit,failures,durability,baseline,load,commit,date,machine";

/// One measurement.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// The row it belongs to: T1, L2, ...
    pub id: String,
    /// Who was measured.
    pub system: String,
    /// What of him.
    pub what: String,
    /// Tasks, samples or rounds.
    pub n: u64,
    /// Brokers between client and gateway.
    pub depth: u32,
    /// From 0.
    pub repetition: u32,
    /// Wall clock of all of it.
    pub seconds: f64,
    /// The measure.
    pub value: f64,
    /// Of the measure.
    pub unit: String,
    /// Tasks, or rounds, that did not go well.
    pub failures: u64,
    /// When an answer leaves.
    pub durability: String,
    /// The plain loop of the same minute, tasks a second; 0 where it says nothing about the row.
    pub baseline: f64,
    /// Load average of the machine, one minute, when this was written.
    pub load: f64,
    /// What was built, and whether it was only looked at quickly.
    pub commit: String,
    /// Of the measurement, UTC.
    pub date: String,
    /// What it was measured on and with: see [`crate::machine::describe`].
    pub machine: String,
}

impl Record {
    fn line(&self) -> String {
        // Words that we give ourselves: no quotes in them.
        let word = |w: &str| match w.replace(['\n', '"'], " ") {
            w if w.contains(',') => format!("\"{w}\""),
            w => w,
        };
        let r = self;
        format!(
            "{},{},{},{},{},{},{:.6},{:.4},{},{},{},{:.1},{:.2},{},{},{}",
            word(&r.id),
            word(&r.system),
            word(&r.what),
            r.n,
            r.depth,
            r.repetition,
            r.seconds,
            r.value,
            word(&r.unit),
            r.failures,
            word(&r.durability),
            r.baseline,
            r.load,
            word(&r.commit),
            word(&r.date),
            word(&r.machine)
        )
    }

    fn parse(line: &str) -> Option<Record> {
        let mut quoted = false;
        let f: Vec<&str> = line
            .split(|c| {
                quoted ^= c == '"';
                c == ',' && !quoted
            })
            .map(|w| w.trim_matches('"'))
            .collect();
        let [id, system, what, n, depth, repetition, seconds, value, unit, failures, durability, baseline, load, commit, date, machine] =
            f.as_slice()
        else {
            return None;
        };
        Some(Record {
            id: id.to_string(),
            system: system.to_string(),
            what: what.to_string(),
            n: n.parse().ok()?,
            depth: depth.parse().ok()?,
            repetition: repetition.parse().ok()?,
            seconds: seconds.parse().ok()?,
            value: value.parse().ok()?,
            unit: unit.to_string(),
            failures: failures.parse().ok()?,
            durability: durability.to_string(),
            baseline: baseline.parse().ok()?,
            load: load.parse().ok()?,
            commit: commit.to_string(),
            date: date.to_string(),
            machine: machine.to_string(),
        })
    }
}

/// All records of a file.
pub struct Sheet {
    path: PathBuf,
    /// In the order of measuring.
    pub records: Vec<Record>,
}

impl Sheet {
    /// What is there already, or nothing.
    pub fn open(path: &Path) -> Result<Sheet> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(format!("{}: {e}", path.display())),
        };
        let mut records = Vec::new();
        for (n, line) in text.lines().enumerate().skip(1) {
            records.push(Record::parse(line).ok_or_else(|| format!("{}, line {}: not a record; move the file away", path.display(), n + 1))?);
        }
        Ok(Sheet { path: path.to_owned(), records })
    }

    /// A row is measured anew.
    pub fn forget(&mut self, id: &str) {
        self.records.retain(|r| r.id != id);
    }

    /// Write all of it.
    pub fn save(&self) -> Result<()> {
        let mut text = format!("{COLUMNS}\n");
        for r in &self.records {
            _ = writeln!(text, "{}", r.line());
        }
        fs::write(&self.path, text).map_err(|e| format!("{}: {e}", self.path.display()))
    }
}

/// Median, minimum and maximum.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

/// Of some values; None of none.
pub fn spread(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let mut v: Vec<f64> = values.into_iter().collect();
    v.sort_by(f64::total_cmp);
    let (min, max) = (*v.first()?, *v.last()?);
    Some(Spread { median: percentile(&v, 50.0), min, max })
}

/// Of sorted values; 0 of none.
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let at = ((sorted.len() as f64 - 1.0) * percent / 100.0).max(0.0);
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    let value = |i: usize| sorted.get(i).copied().unwrap_or(0.0);
    value(low) + (value(high) - value(low)) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.csv");
        let mut sheet = Sheet::open(&path).unwrap();
        let record = |id: &str| Record { id: id.into(), what: "a, b".into(), n: 3, value: 1.5, unit: "ms".into(), ..Record::default() };
        sheet.records.extend([record("T1"), record("T2")]);
        sheet.save().unwrap();
        let mut again = Sheet::open(&path).unwrap();
        assert_eq!(("a, b", 1.5), (again.records[0].what.as_str(), again.records[0].value));
        again.forget("T1");
        assert_eq!(1, again.records.len());
        fs::write(&path, "x\nT1,2\n").unwrap();
        assert!(Sheet::open(&path).err().unwrap().contains("line 2"));
    }

    #[test]
    fn spreads() {
        assert_eq!(Some(Spread { median: 2.5, min: 1.0, max: 4.0 }), spread([4.0, 1.0, 2.0, 3.0]));
        assert_eq!(None, spread([]));
        assert_eq!(3.0, percentile(&[1.0, 2.0, 3.0], 100.0));
    }
}
