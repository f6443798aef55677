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
/// Of one line of sacct.
const SACCT_FIELDS: usize = 9;

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
    let [VERSION, job, array, task, exit, state, start, end, machines, name] = fields[..] else { return None };
    let (job, array, task): (u64, u64, u32) = (job.parse().ok()?, array.parse().ok()?, task.parse().ok()?);
    if array != 0 && task == words::NO_TASK {
        return None;
    }
    let machine = if machines == "-" { "" } else { machines };
    let mut over = words::over(state, "", words::exit(exit))?;
    let ran_s = start.parse::<u64>().ok().zip(end.parse::<u64>().ok()).filter(|_| !machine.is_empty());
    over.used.wall_ms = ran_s.and_then(|(start, end)| end.checked_sub(start)?.checked_mul(1_000));
    Some(Record {
        id: LrmsId(if array == 0 { job } else { array }),
        position: if array == 0 { 1 } else { task },
        tag: if name == "-" { String::new() } else { name.to_string() },
        started: began(over.how, machine),
        over,
        ran_s,
        machine: machine.to_string(),
        words: state.to_string(),
    })
}

/// Did the script begin? One that had a machine and was removed may have.
fn began(how: How, machine: &str) -> Option<bool> {
    match how {
        _ if machine.is_empty() => Some(false),
        How::NotStarted => Some(false),
        How::Exited | How::TimeLimit | How::Memory | How::Limit | How::Broken => Some(true),
        How::MachineLost | How::Forced | How::Removed | How::Preempted | How::Requeued => None,
    }
}

/// What sacct prints of jobs and their steps, each field with `mark` behind it. A step's peak memory counts for its task.
pub fn sacct(text: &str, mark: &str) -> Result<Vec<Record>, String> {
    let mut records: Vec<Record> = Vec::new();
    let mut places: BTreeMap<(LrmsId, u32), usize> = BTreeMap::new();
    let mut fields: Vec<&str> = text.split(mark).collect();
    let rest = fields.pop().unwrap_or_default();
    if !rest.trim().is_empty() {
        return Err(format!("sacct: its answer is cut off in {:?}", squeue::short(rest)));
    }
    for line in fields.chunks(SACCT_FIELDS) {
        // The end of the line before it stands before its first field.
        let job = line.first().map_or("", |job| job.trim_start());
        let unreadable = || format!("sacct: {:?} is not a line of it", squeue::short(job));
        let &[_, state, exit, start, machines, peak, elapsed, cpu, tag] = line else { return Err(unreadable()) };
        let (name, step) = job.split_once('.').map_or((job, None), |(name, step)| (name, Some(step)));
        let (id, task) = name.split_once('_').unwrap_or((name, ""));
        // `7_[3-5]`: what waits of an array.
        if task.starts_with('[') {
            continue;
        }
        let key = (LrmsId(id.parse().map_err(|_| unreadable())?), squeue::position(task).ok_or_else(unreadable)?);
        if step.is_some() {
            if let (Some(place), Some(bytes)) = (places.get(&key), bytes(peak)) {
                let used = &mut records[*place].over.used;
                used.peak = used.peak.max(Some((bytes, "sampled")));
            }
            continue;
        }
        let Some(mut over) = words::over(state, "", words::exit(exit)) else { continue };
        let had_machine = !matches!(start, "" | "None" | "Unknown") && !machines.starts_with("None");
        let machine = if had_machine { machines } else { "" };
        if had_machine {
            over.used.wall_ms = elapsed.parse::<u64>().ok().and_then(|s| s.checked_mul(1_000));
            // Of what is lost with its machine nobody has told.
            over.used.cpu_us = cpu_us(cpu).filter(|us| *us > 0);
        }
        let record = Record {
            id: key.0,
            position: key.1,
            tag: tag.to_string(),
            started: began(over.how, machine),
            ran_s: start.parse::<u64>().ok().zip(elapsed.parse::<u64>().ok()).map(|(start, ran)| (start, start.saturating_add(ran))),
            over,
            machine: machine.to_string(),
            words: state.to_string(),
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

/// `[DD-][HH:]MM:SS[.mmm]`
fn cpu_us(text: &str) -> Option<u64> {
    let (days, time) = text.split_once('-').unwrap_or(("0", text));
    let (whole, millis) = time.split_once('.').unwrap_or((time, "0"));
    let minutes_and_seconds = |sum: u64, part: &str| sum.checked_mul(60)?.checked_add(part.parse().ok()?);
    let seconds = whole.split(':').try_fold(0, minutes_and_seconds)?;
    let seconds = days.parse::<u64>().ok()?.checked_mul(86_400)?.checked_add(seconds)?;
    seconds.checked_mul(1_000_000)?.checked_add(millis.parse::<u64>().ok()?.checked_mul(1_000)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use intergrid_proto::Exit;
    use proptest::prelude::*;

    use super::*;
    use crate::lrms::Used;

    /// Of Slurm 22.05.8 and our completion program.
    const RECORDED: &str = include_str!("recorded/jobcomp.txt");
    /// Of Slurm 22.05.8 and its slurmdbd, by [`super::super::calls::sacct`], with bars between the fields and without the names.
    const SACCT: &str = include_str!("recorded/sacct.txt");
    const MARK: &str = "Z1Z";

    /// The same with marks and this name.
    fn named(text: &str, name: &str) -> String {
        text.lines().map(|line| format!("{}{MARK}{name}{MARK}\n", line.replace('|', MARK))).collect()
    }

    #[test]
    fn recorded_ends_are_read() {
        let records: Vec<Record> = RECORDED.lines().filter_map(record).collect();
        // Of six lines, one is of a job that was started over, and one of an array's rest.
        assert_eq!(4, records.len());
        let of = |id| records.iter().find(|r| r.id == LrmsId(id)).unwrap();
        assert_eq!((1, How::Removed, None, "ig-arr"), (of(20).position, of(20).over.how, of(20).started, of(20).tag.as_str()));
        assert_eq!((Some(Exit::Code(0)), "n1", ""), (of(26).over.exit, of(26).machine.as_str(), of(26).tag.as_str()));
        assert_eq!(Some((1_795_255_229, 1_795_255_259)), of(26).ran_s);
        assert_eq!((Some(30_000), None), (of(26).over.used.wall_ms, of(26).over.used.cpu_us));
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
    fn recorded_answers_of_sacct_are_read_with_their_steps() {
        let records = sacct(&named(SACCT, "ig-1"), MARK).unwrap();
        let of = |id, position| records.iter().find(|r| r.id == LrmsId(id) && r.position == position).unwrap();
        let end = |id, position| (of(id, position).over.how, of(id, position).over.exit, of(id, position).started);
        assert_eq!((How::Exited, Some(Exit::Code(0)), Some(true)), end(1, 1));
        assert_eq!((How::Exited, Some(Exit::Code(2)), Some(true)), end(1, 3));
        assert_eq!((How::Exited, Some(Exit::Signal(9)), Some(true)), end(1, 4));
        assert_eq!((How::Removed, None, None), end(2, 1));
        assert_eq!((How::TimeLimit, None, Some(true)), end(13, 1));
        assert_eq!((How::MachineLost, None, None, "n2"), (end(14, 1).0, end(14, 1).1, end(14, 1).2, of(14, 1).machine.as_str()));
        // What it used: by its task, and by the step that had most memory.
        let used = of(3, 1).over.used;
        assert_eq!((Some(2_000), Some(1_157_000), Some((298_100 << 10, "sampled"))), (used.wall_ms, used.cpu_us, used.peak));
        let lost = of(14, 1).over.used;
        assert_eq!((None, None), (lost.cpu_us, lost.peak), "{lost:?}");
        // What runs, what waits, and the rest of an array, which nobody says more of, are no ends.
        assert_eq!(11, records.len(), "{records:?}");
        assert!(records.iter().all(|r| r.tag == "ig-1"));
    }

    #[test]
    fn a_name_in_sacct_is_no_record() {
        let name = "x|y\n8|COMPLETED|0:0|2026-11-21T09:43:11|n1||1|00:00.002|ig-8|";
        let text =
            named("7|FAILED|3:0|2026-11-21T09:43:11|n1||1|00:00.002", name) + &named("8|FAILED|4:0|2026-11-21T09:43:11|n1||1|00:00.002", "ig-8");
        let ends: Vec<_> = sacct(&text, MARK).unwrap().into_iter().map(|r| (r.id.0, r.tag, r.over.exit)).collect();
        assert_eq!(vec![(7, name.to_string(), Some(Exit::Code(3))), (8, "ig-8".to_string(), Some(Exit::Code(4)))], ends);
    }

    #[test]
    fn odd_answers_of_sacct_are_read() {
        let text = "2_2|CANCELLED by 1001|0:0|None|None assigned||0|00:00:00\n3|TIMEOUT|0:0|2026-11-21T09:43:11|n2||60|1-00:00:01\n\
                    3.batch|CANCELLED|0:15|x|n2|1.50M|60|1-00:00:01\n3.extern|COMPLETED|0:0|x|n2|1K|60|00:00:00\n4|RUNNING|0:0|x|n2||1|00:00:00\n";
        let records = sacct(&named(text, "ig"), MARK).unwrap();
        assert_eq!(vec![(2, 2), (3, 1)], records.iter().map(|r| (r.id.0, r.position)).collect::<Vec<_>>());
        assert_eq!((How::Removed, Some(false), "", Used::default()), {
            let r = &records[0];
            (r.over.how, r.started, r.machine.as_str(), r.over.used)
        });
        assert_eq!((Some(60_000), Some(86_401_000_000), Some((3 << 19, "sampled"))), {
            let used = records[1].over.used;
            (used.wall_ms, used.cpu_us, used.peak)
        });
        let text = named("7|COMPLETED|0:0|1795255229|n1||30|00:00:00", "ig");
        assert_eq!((Some((1_795_255_229, 1_795_255_259)), None), (sacct(&text, MARK).unwrap()[0].ran_s, records[1].ran_s));
        assert!(sacct(&named("7|COMPLETED|0:0|x|n1|", "ig"), MARK).is_err(), "a line of another format");
        assert!(sacct(&named("7|COMPLETED|0:0|x|n1||1|0", "ig").replace(&format!("{MARK}\n"), ""), MARK).is_err(), "cut off");
        assert_eq!((Some(3_723_000_000), Some(4_000), None), (cpu_us("01:02:03"), cpu_us("00:00.004"), cpu_us("x")));
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "(?s).{0,200}", more in "[0-9|a-zA-Z_. :\n-]{0,200}") {
            for text in [&text, &more, &format!("1 {more}")] {
                let _ = (record(text), sacct(text, "|"), bytes(text), cpu_us(text));
            }
        }
    }
}
