//! Slurm's books of jobs that are over: the records of our own completion program (`deploy/slurm/jobcomp`), or sacct. Parsers are pure and take any text.
//!
//! Of an array, tasks that were removed before they started have no record of their own; nobody may conclude anything from its absence.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::{squeue, words};
use crate::lrms::{How, LrmsId, Record};
use crate::records::{Records, bytes};

/// Days of records that are read; older ones are left alone.
pub const RECORD_FILES_MAX: usize = 14;
/// What one look reads of one file; the next look goes on.
const READ_BYTES_MAX: u64 = 64 << 20;
/// Version of a record's line.
const VERSION: &str = "1";

/// The records of the completion program, followed. A copy in memory; the files are the truth.
#[derive(Debug, Default)]
pub struct Files {
    read: BTreeMap<PathBuf, u64>,
    records: Records,
}

impl Files {
    /// Read what is new in this directory. A line without its end is read when it has one.
    pub fn follow(&mut self, dir: &Path) -> Result<(), String> {
        let failed = |path: &Path, e: std::io::Error| format!("completion records {}: {e}", path.display());
        let entries = std::fs::read_dir(dir).map_err(|e| failed(dir, e))?;
        let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| is_day(p)).collect();
        files.sort();
        let old = files.len().saturating_sub(RECORD_FILES_MAX);
        self.read.retain(|path, _| files[old..].contains(path));
        for path in &files[old..] {
            let at = self.read.get(path).copied().unwrap_or(0);
            let mut bytes = Vec::new();
            let read = File::open(path).and_then(|mut f| {
                f.seek(SeekFrom::Start(at))?;
                f.take(READ_BYTES_MAX).read_to_end(&mut bytes)
            });
            read.map_err(|e| failed(path, e))?;
            let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
            self.read.insert(path.clone(), at + whole as u64);
            String::from_utf8_lossy(&bytes[..whole]).lines().filter_map(record).for_each(|r| self.records.insert(r));
        }
        Ok(())
    }

    /// Of these jobs.
    pub fn of(&self, ids: &[LrmsId]) -> Vec<Record> {
        self.records.of(ids)
    }

    /// Jobs with this name.
    pub fn named(&self, tag: &str) -> Vec<LrmsId> {
        self.records.named(tag)
    }
}

/// `2026-11-21`
fn is_day(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    name.len() == 10 && name.bytes().enumerate().all(|(n, b)| if matches!(n, 4 | 7) { b == b'-' } else { b.is_ascii_digit() })
}

/// One line of the completion program; None for what is no end of one task: a job that is started over, an array's rest, another version, nonsense.
pub fn record(line: &str) -> Option<Record> {
    let fields: Vec<&str> = line.split(' ').collect();
    let [VERSION, job, array, task, exit, state, _start, _end, machines, name] = fields[..] else { return None };
    let (job, array, task): (u64, u64, u32) = (job.parse().ok()?, array.parse().ok()?, task.parse().ok()?);
    if array != 0 && task == words::NO_TASK {
        return None;
    }
    let machine = if machines == "-" { "" } else { machines };
    let over = words::over(state, "", words::exit(exit))?;
    Some(Record {
        id: LrmsId(if array == 0 { job } else { array }),
        position: if array == 0 { 1 } else { task },
        tag: if name == "-" { String::new() } else { name.to_string() },
        started: began(over.how, machine),
        over,
        machine: machine.to_string(),
        words: state.to_string(),
        peak_bytes: None,
    })
}

/// Did the script begin? One that had a machine and was removed may have.
fn began(how: How, machine: &str) -> Option<bool> {
    match how {
        _ if machine.is_empty() => Some(false),
        How::NotStarted => Some(false),
        How::Exited | How::TimeLimit | How::Memory => Some(true),
        How::MachineLost | How::Removed | How::Preempted | How::Requeued => None,
    }
}

/// What sacct prints of jobs and their steps. A step's peak memory counts for its task.
pub fn sacct(text: &str) -> Result<Vec<Record>, String> {
    let mut records: Vec<Record> = Vec::new();
    let mut places: BTreeMap<(LrmsId, u32), usize> = BTreeMap::new();
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        let unreadable = || format!("sacct: {:?} is not a line of it", line.chars().take(80).collect::<String>());
        let fields: Vec<&str> = line.split('|').collect();
        let [job, state, exit, start, machines, peak] = fields[..] else { return Err(unreadable()) };
        let (name, step) = job.split_once('.').map_or((job, None), |(name, step)| (name, Some(step)));
        let (id, task) = name.split_once('_').unwrap_or((name, ""));
        // `7_[3-5]`: what waits of an array.
        if task.starts_with('[') {
            continue;
        }
        let key = (LrmsId(id.parse().map_err(|_| unreadable())?), squeue::position(task).ok_or_else(unreadable)?);
        if step.is_some() {
            if let (Some(place), Some(bytes)) = (places.get(&key), bytes(peak)) {
                let record = &mut records[*place];
                record.peak_bytes = record.peak_bytes.max(Some(bytes));
            }
            continue;
        }
        let Some(over) = words::over(state, "", words::exit(exit)) else { continue };
        let had_machine = !matches!(start, "" | "None" | "Unknown") && !machines.starts_with("None");
        let machine = if had_machine { machines } else { "" };
        let record = Record {
            id: key.0,
            position: key.1,
            tag: String::new(),
            started: began(over.how, machine),
            over,
            machine: machine.to_string(),
            words: state.to_string(),
            peak_bytes: None,
        };
        match places.get(&key) {
            Some(place) => records[*place] = record,
            None => {
                places.insert(key, records.len());
                records.push(record);
            }
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use intergrid_proto::Exit;
    use proptest::prelude::*;

    use super::*;

    /// Of Slurm 22.05.8 and our completion program.
    const RECORDED: &str = include_str!("recorded/jobcomp.txt");

    #[test]
    fn recorded_ends_are_read() {
        let records: Vec<Record> = RECORDED.lines().filter_map(record).collect();
        // Of six lines, one is of a job that was started over, and one of an array's rest.
        assert_eq!(4, records.len());
        let of = |id| records.iter().find(|r| r.id == LrmsId(id)).unwrap();
        assert_eq!((1, How::Removed, None, "ig-arr"), (of(20).position, of(20).over.how, of(20).started, of(20).tag.as_str()));
        assert_eq!((Some(Exit::Code(0)), "n1", ""), (of(26).over.exit, of(26).machine.as_str(), of(26).tag.as_str()));
        assert_eq!((Some(Exit::Code(7)), How::Exited), (of(27).over.exit, of(27).over.how));
        assert_eq!((How::NotStarted, Some(false), Some(Exit::NotStarted)), (of(14).over.how, of(14).started, of(14).over.exit));
    }

    #[test]
    fn files_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("2026-11-21");
        let mut file = File::create(&path).unwrap();
        std::fs::write(dir.path().join("notes"), "1 5 0 4294967294 0:0 COMPLETED 1 2 n1 ig-5\n").unwrap();
        let mut files = Files::default();
        write!(file, "1 7 7 2 3:0 FAILED 1 2 n1 ig-7\n1 8 0 4294967294 0:0 COMPL").unwrap();
        files.follow(dir.path()).unwrap();
        assert_eq!((1, 0), (files.of(&[LrmsId(7)]).len(), files.of(&[LrmsId(8), LrmsId(5)]).len()));
        write!(file, "ETED 1 2 n1 ig-8\n1 7 7 2 0:0 COMPLETED 3 4 n2 ig-7\n").unwrap();
        files.follow(dir.path()).unwrap();
        assert_eq!(Some(Exit::Code(0)), files.of(&[LrmsId(7)])[0].over.exit, "started over, the last word counts");
        assert_eq!((vec![LrmsId(8)], 1), (files.named("ig-8"), files.of(&[LrmsId(8)]).len()));
        assert!(files.follow(&dir.path().join("none")).is_err());
    }

    #[test]
    fn sacct_is_read_with_its_steps() {
        let text = "2_1|COMPLETED|0:0|2026-11-21T09:43:11|n1|\n2_1.batch|COMPLETED|0:0|2026-11-21T09:43:11|n1|2048K\n\
                    2_2|CANCELLED by 1001|0:0|None|None assigned|\n3|TIMEOUT|0:0|2026-11-21T09:43:11|n2|\n3.batch|CANCELLED|0:15|x|n2|1.50M\n\
                    4|RUNNING|0:0|2026-11-21T09:43:11|n2|\n5_[3-9]|PENDING|0:0|Unknown|None assigned|\n";
        let records = sacct(text).unwrap();
        assert_eq!(vec![(2, 1), (2, 2), (3, 1)], records.iter().map(|r| (r.id.0, r.position)).collect::<Vec<_>>());
        assert_eq!((Some(2 << 20), Some(true)), (records[0].peak_bytes, records[0].started));
        assert_eq!((How::Removed, Some(false), ""), (records[1].over.how, records[1].started, records[1].machine.as_str()));
        assert_eq!((How::TimeLimit, None, Some(3 << 19)), (records[2].over.how, records[2].over.exit, records[2].peak_bytes));
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "(?s).{0,200}", more in "[0-9|a-zA-Z_. :\n-]{0,200}") {
            for text in [&text, &more, &format!("1 {more}")] {
                let _ = (record(text), sacct(text), bytes(text));
            }
        }
    }
}
