//! Grid Engine's books: the accounting file, which `qacct` reads too, followed as it grows. The parser is pure and takes any text.
//!
//! A task that was removed before it started has no record; nobody may conclude anything from that.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::qhost::{Configured, Ends, time_ms};
use super::words;
use crate::lrms::{How, LrmsId, Over, Record, Used};
use crate::records::{Records, bytes};

/// Of a file that was there before us, so much of its end is read. It has what has ended while a gateway was away.
pub const TAIL_BYTES_MAX: u64 = 64 << 20;
/// What one look reads; the next look goes on.
const READ_BYTES_MAX: u64 = 64 << 20;
/// Fields up to the last that we read; what users can write is in none of these but the name, which has no colon.
const FIELDS: usize = 37;
/// What it used, `ru_wallclock` to `ru_nivcsw`.
const USAGE: std::ops::Range<usize> = 13..31;
/// Of a script that was killed, or whose payload was.
const KILLED_STATUS: u64 = 128 + 9;
/// Ended by Grid Engine, beyond a limit.
const FAILED_LIMIT: u32 = 37;

/// The file, open, and what was read from it.
#[derive(Debug, Default)]
pub struct Accounting {
    open: Option<File>,
    /// Up to here whole lines were read.
    at: u64,
    records: Records,
}

impl Accounting {
    /// Read what is new. A line without its end is read when it has one; one file that takes the place of another is read from its beginning. `queues`: what
    /// they are configured to be, as far as that is known.
    pub fn follow(&mut self, path: &Path, queues: &BTreeMap<String, Configured>) -> Result<(), String> {
        let failed = |e: io::Error| format!("accounting {}: {e}", path.display());
        let there = match File::open(path) {
            // Before the first task has ended there is none.
            Err(e) if e.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::is_dir) => return Ok(()),
            other => other.map_err(failed)?,
        };
        let new = there.metadata().map_err(failed)?;
        match self.open.take() {
            None => {
                self.at = new.len().saturating_sub(TAIL_BYTES_MAX);
                self.begin(&there).map_err(failed)?;
            }
            Some(old) => {
                let was = old.metadata().map_err(failed)?;
                if (was.dev(), was.ino()) != (new.dev(), new.ino()) {
                    self.read(&old, queues).map_err(failed)?;
                    self.at = 0;
                } else if new.len() < self.at {
                    self.at = 0;
                }
            }
        }
        self.read(&there, queues).map_err(failed)?;
        self.open = Some(there);
        Ok(())
    }

    /// In the middle of a line: go on to the next.
    fn begin(&mut self, mut file: &File) -> io::Result<()> {
        if self.at > 0 {
            let mut bytes = vec![0; 1 << 16];
            file.seek(SeekFrom::Start(self.at))?;
            let n = file.read(&mut bytes)?;
            self.at += bytes[..n].iter().position(|b| *b == b'\n').map_or(0, |n| n as u64 + 1);
        }
        Ok(())
    }

    fn read(&mut self, mut file: &File, queues: &BTreeMap<String, Configured>) -> io::Result<()> {
        file.seek(SeekFrom::Start(self.at))?;
        let mut bytes = Vec::new();
        file.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
        self.at += whole as u64;
        String::from_utf8_lossy(&bytes[..whole]).lines().filter_map(|l| record(l, queues)).for_each(|r| self.records.insert(r));
        Ok(())
    }

    /// What was read.
    pub fn records(&self) -> &Records {
        &self.records
    }
}

/// One line; None for what is no end of a task: a comment, one that goes back to the queue, a part of a parallel task, nonsense. `queues`: what they
/// are configured to be, as far as that is known.
pub fn record(line: &str, queues: &BTreeMap<String, Configured>) -> Option<Record> {
    let fields: Vec<&str> = line.splitn(FIELDS, ':').collect();
    let machine = fields.get(1)?.to_string();
    let tag = fields.get(4)?.to_string();
    let number = |n: usize| fields.get(n)?.parse::<u64>().ok();
    let (id, start, end, failed, status, task) = (number(5)?, number(9)?, number(10)?, number(11)?, number(12)?, number(35)?);
    let last: Vec<&str> = fields.get(36)?.rsplitn(5, ':').collect();
    // `pe_taskid`: what a task has started on other machines has records of its own.
    if last.get(3).is_some_and(|part| *part != "NONE") {
        return None;
    }
    let failed = u32::try_from(failed).ok()?;
    let (mut over, began) = words::over(failed, u32::try_from(status).ok()?)?;
    // What runs has pages and uses time. A task that was removed by force has a record all the same, of the master's own making: exit status 0, and nothing used.
    let unseen = over.how == How::Exited && fields[USAGE].iter().all(|f| f.bytes().all(|b| b"0.".contains(&b)));
    if unseen {
        over = Over::new(How::Forced, None);
    }
    // Kilobytes, with a fraction of zeros.
    let peak = fields.get(16)?.split('.').next()?.parse::<u64>().ok().filter(|kib| *kib > 0).map(|kib| kib.saturating_mul(1_024));
    // Seconds, of a task that ran with a fraction.
    let micros = |field: Option<&str>| field?.parse::<f64>().ok().filter(|s| (0.0..1e12).contains(s)).map(|s| (s * 1e6).round() as u64);
    let wall_us = micros(fields.get(13).copied());
    let killed = failed != 0 || status == KILLED_STATUS;
    if began && killed {
        let asked = last.get(4).copied().unwrap_or_default();
        let ends = least(asked, queues.get(fields[0]).map(|q| q.ends).unwrap_or_default());
        let slots = number(34).unwrap_or(1).max(1);
        let is_beyond = |used: Option<u64>, limit: Option<u64>| used.zip(limit).is_some_and(|(used, limit)| used > limit);
        let of_all = |each: Option<u64>| each.map(|each| each.saturating_mul(slots));
        // Up to a second less is as long: the books have whole ones.
        let is_late = |us: Option<u64>, limit: Option<u64>| is_beyond(us.map(|us| us / 1_000 + 1_001), limit);
        if is_beyond(last.get(2).and_then(|most| bytes(most)), of_all(ends.memory_bytes)) {
            over.how = How::Memory;
        } else if failed == FAILED_LIMIT && !is_late(micros(asked.split(':').next()), of_all(ends.cpu_ms)) && !is_late(wall_us, ends.time_ms) {
            over.how = How::Limit;
        }
    }
    if began && !unseen {
        let cpu_us = micros(fields.get(14).copied()).zip(micros(fields.get(15).copied())).map(|(user, system)| user + system);
        over.used = Used { wall_ms: wall_us.map(|us| us / 1_000), cpu_us, peak: peak.map(|bytes| (bytes, "largest-process")) };
    }
    Some(Record {
        id: LrmsId(id),
        position: u32::try_from(task.max(1)).ok()?,
        tag,
        // Of a task that is removed when it has just begun, Grid Engine may not know when that was.
        started: if began && start == 0 { None } else { Some(began) },
        ran_s: (began && start > 0).then_some((start, end)),
        over,
        machine,
        words: match unseen {
            true => "nobody saw its end".to_string(),
            false => format!("failed {failed}: {}, exit status {status}", words::failure(failed)),
        },
    })
}

/// At what a task is killed that asked for this in its queue, for each slot. Grid Engine says the same words for all of these; the books have what was used.
fn least(asked: &str, queue: Ends) -> Ends {
    let asked = |names: [&'static str; 2]| {
        let words = asked.split([' ', ',', ':']).filter_map(|word| word.split_once('='));
        words.filter(move |(name, _)| names.contains(name)).map(|(_, value)| value)
    };
    Ends {
        time_ms: asked(["h_rt", "s_rt"]).filter_map(time_ms).chain(queue.time_ms).min(),
        cpu_ms: asked(["h_cpu", "s_cpu"]).filter_map(time_ms).chain(queue.cpu_ms).min(),
        memory_bytes: asked(["h_vmem", "s_vmem"]).filter_map(bytes).filter(|each| *each > 0).chain(queue.memory_bytes).min(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use intergrid_proto::Exit;
    use proptest::prelude::*;

    use super::*;

    /// Of Son of Grid Engine 8.1.9.
    const RECORDED: &str = include_str!("recorded/accounting.txt");

    /// Of queues, nothing is known.
    fn none() -> BTreeMap<String, Configured> {
        BTreeMap::new()
    }

    #[test]
    fn recorded_ends_are_read() {
        let mut records = Records::default();
        RECORDED.lines().filter_map(|l| record(l, &none())).for_each(|r| records.insert(r));
        let of = |tag: &str, position| {
            let id = records.named(tag)[0];
            records.of(&[id]).into_iter().find(|r| r.position == position).unwrap()
        };
        let end = |tag, position| {
            let r = of(tag, position);
            (r.over.how, r.over.exit, r.started)
        };
        assert_eq!((How::Exited, Some(Exit::Code(0)), Some(true)), end("ig-ends", 1));
        assert_eq!((How::Exited, Some(Exit::Code(2)), Some(true)), end("ig-ends", 3));
        assert_eq!((How::Removed, Some(Exit::Signal(9)), Some(true)), end("ig-sig", 1));
        assert_eq!((How::NotStarted, Some(Exit::NotStarted), Some(false)), end("ig-bad", 2));
        assert_eq!((How::TimeLimit, None, Some(true)), end("ig-rt", 1));
        assert_eq!((How::Exited, Some(Exit::Code(0)), Some(true)), end("a<x>&amp;\"b", 1));
        let ended = of("ig-ends", 1);
        assert!(ended.machine == "localhost" && ended.over.used.peak > Some((1 << 20, "")), "{ended:?}");
        assert_eq!((Some(5_000), Some(14_819)), (of("ig-rt", 1).over.used.wall_ms, of("ig-rt", 1).over.used.cpu_us));
        assert_eq!((Used::default(), None), (of("ig-bad", 1).over.used, of("ig-bad", 1).ran_s));
        let ran = of("ig-sig", 1);
        let at = [1_795_283_272, 1_795_283_273, 1_795_283_293, 1_795_283_294].map(|at_s| ran.ran_at(at_s));
        assert_eq!((Some((1_795_283_283, 1_795_283_283)), [false, true, true, false]), (ran.ran_s, at));
        assert!(of("ig-bad", 1).words.contains("changing into the working directory"));
        let line = RECORDED.lines().find(|l| l.contains(":ig-sig:")).unwrap();
        assert_eq!(None, record(&line.replacen(":1795283283:1795283283:100:", ":0:1795283283:100:", 1), &none()).unwrap().started);
        // It was killed for its memory, and not removed: the books have both numbers.
        let how = |most: &str| {
            let had = line.replacen(":-q batch:", ":-l h_vmem=32M,h_rt=60 -q batch -pe smp 2:", 1).replacen(":1:1:", ":2:1:", 1);
            let end = format!(":NONE:{most}:0:0");
            record(&had.replacen(":NONE:0.000000:0:0", &end, 1), &none()).map(|r| r.over.how)
        };
        assert_eq!((Some(How::Memory), Some(How::Removed)), (how("67108865.000000"), how("67108864.000000")));
        // Its record says exit status 0, and nobody saw how it ended.
        assert_eq!((How::Forced, None, Some(true)), end("ig-forced", 1));
    }

    /// A task that asked for nothing and was killed after five seconds, which Grid Engine calls beyond a limit whichever it was.
    #[test]
    fn a_limit_of_the_queue_is_told_as_what_it_was() {
        let line = RECORDED.lines().find(|l| l.contains(":ig-rt:")).unwrap().replace(":-q batch -l h_rt=2:", ":-q batch:");
        let how = |queue: &str, most: &str| {
            let queues = super::super::qhost::configured(&format!("qname batch\n{queue}"));
            record(&line.replace(":3760128.000000:", &format!(":{most}:")), &queues).map(|r| r.over.how).unwrap()
        };
        let (little, much) = ("3760128.000000", "425000000.000000");
        assert_eq!((How::Memory, How::Limit), (how("h_vmem 200M\n", much), how("h_vmem 200M\n", little)));
        assert_eq!(How::Memory, how("h_rt 0:10:0\ns_vmem 200M\n", much));
        assert_eq!((How::TimeLimit, How::TimeLimit), (how("h_rt 5\n", little), how("s_rt 0:0:6\n", little)), "whole seconds");
        assert_eq!((How::Limit, How::TimeLimit), (how("h_rt 7\n", much), how("h_rt 7,[localhost=5]\nh_vmem 1G\n", much)));
        assert_eq!((How::TimeLimit, How::Limit), (how("h_cpu 1\n", little), how("h_cpu 0:1:0\n", little)));
        // Of a queue that is not known.
        assert_eq!(How::Limit, record(&line, &none()).unwrap().over.how);
        // Somebody removed it, whatever the queue lets it have.
        let removed = line.replace(":37:137:", ":100:137:");
        assert_eq!(How::Removed, record(&removed, &super::super::qhost::configured("qname batch\nh_rt 5\nh_vmem 200M\n")).unwrap().over.how);
    }

    #[test]
    fn a_file_is_followed_and_one_in_its_place_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accounting");
        let mut books = Accounting::default();
        books.follow(&path, &none()).unwrap();
        let lines: Vec<&str> = RECORDED.lines().filter(|l| l.contains(":ig-ends:")).collect();
        let mut file = File::create(&path).unwrap();
        let (half, rest) = lines[1].split_at(30);
        write!(file, "# Version\n{}\n{half}", lines[0]).unwrap();
        books.follow(&path, &none()).unwrap();
        let count = |books: &Accounting| books.records().of(&books.records().named("ig-ends")).len();
        assert_eq!(1, count(&books));
        writeln!(file, "{rest}").unwrap();
        std::fs::rename(&path, dir.path().join("accounting.0")).unwrap();
        std::fs::write(&path, format!("{}\n", lines[2])).unwrap();
        books.follow(&path, &none()).unwrap();
        assert_eq!(3, count(&books), "the rest of the old one, and the new one");
        assert!(Accounting::default().follow(&dir.path().join("none/accounting"), &none()).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "(?s).{0,200}", more in "[0-9:.a-zA-Z]{0,300}", n in 0..12usize, with in "[0-9:.-]{0,20}") {
            for text in [&text, &more] {
                let _ = record(text, &none());
            }
            let line = RECORDED.lines().find(|l| l.contains(":ig-ends:")).unwrap();
            let _ = record(&line.replacen(&n.to_string(), &with, 3), &none());
        }
    }
}
