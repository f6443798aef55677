//! Sites that are killed under a large array: F3, F4. What became of its tasks is counted by their payloads.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::fault::PATIENCE;
use super::to_the_end;
use crate::hq::Hq;
use crate::record::{HQ, Record, Result};
use crate::tree::{GATEWAY, Tree, until};
use crate::{Bench, ours};

/// The parts of all starts that have been made when the site is killed.
const KILLED_AT: [f64; 5] = [0.02, 0.2, 0.4, 0.6, 0.8];
/// The array takes no longer from one kill to the next.
const ARRAY_TIMEOUT: Duration = Duration::from_secs(600);
/// No start for so long: what could go on without the site has ended.
const STILL: Duration = Duration::from_millis(300);
/// Bytes of a line of [`Marks`].
const LINE_BYTES: u64 = 8;

/// A file to which each payload appends its number, in lines of one length: how many there are is seen without reading it.
struct Marks(PathBuf);

impl Marks {
    /// What a shell runs; `number` is what it knows its task by.
    fn payload(&self, number: &str) -> String {
        format!("printf '%07d\\n' {number} >> '{}'", self.0.display())
    }

    fn starts(&self) -> u64 {
        fs::metadata(&self.0).map_or(0, |m| m.len() / LINE_BYTES)
    }

    fn until(&self, starts: u64, patience: Duration) -> Result<()> {
        until(&format!("{starts} starts"), patience, || match self.starts() {
            seen if seen >= starts => Ok(()),
            seen => Err(format!("{seen} starts")),
        })
    }

    /// Starts, when no more are made.
    fn settled(&self) -> u64 {
        let (mut seen, mut since) = (self.starts(), Instant::now());
        while since.elapsed() < STILL {
            sleep(STILL / 30);
            let now = self.starts();
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
        seen
    }
}

/// Tasks of so many that never ran, and starts beyond the first.
fn lost_and_doubled(text: &str, n: u64) -> (u64, u64) {
    let distinct = text.lines().collect::<BTreeSet<_>>().len() as u64;
    (n - distinct.min(n), text.lines().count() as u64 - distinct)
}

/// Kill and restart it again and again under the array; seconds from each restart to the next start.
fn under_kills<S>(
    of: &mut S,
    marks: &Marks,
    n: u64,
    kill: impl Fn(&mut S) -> Result<()>,
    restart: impl Fn(&mut S) -> Result<()>,
) -> Result<Vec<f64>> {
    let mut resumed = Vec::new();
    for part in KILLED_AT {
        marks.until((n as f64 * part) as u64, ARRAY_TIMEOUT)?;
        kill(of)?;
        let still = marks.settled();
        let began = Instant::now();
        restart(of)?;
        marks.until(still + 1, PATIENCE)?;
        resumed.push(began.elapsed().as_secs_f64());
    }
    Ok(resumed)
}

impl Bench {
    fn keep_counts(&mut self, record: Record, resumed: Vec<f64>, marks: &Marks) -> Result<()> {
        let text = fs::read_to_string(&marks.0).map_err(|e| format!("{}: {e}", marks.0.display()))?;
        let (lost, doubled) = lost_and_doubled(&text, record.n);
        for (what, value) in [("tasks lost", lost), ("tasks started twice", doubled)] {
            self.keep(Record { what: what.into(), value: value as f64, unit: "tasks".into(), failures: lost, ..record.clone() });
        }
        self.keep_samples(Record { what: "from restart to the next start".into(), ..record }, resumed, 0);
        Ok(())
    }
}

/// Ours: the victim is a part of a tree of this depth.
fn killed(b: &mut Bench, depth: u32, victim: &str) -> Result<()> {
    let n = b.pick(100_000, 2_000);
    let mut tree = b.tree(depth, false)?;
    let (root, marks) = (tree.root(), Marks(tree.path("marks")?.join("all")));
    to_the_end(tree.verb(&root, &["submit", "-n", &n.to_string(), "--", "/bin/sh", "-c", &marks.payload("{i}")])?)?;
    let resumed = under_kills(&mut tree, &marks, n, |t: &mut Tree| t.signal(victim, Signal::KILL), |t| t.start_part(victim))?;
    let (_, well) = to_the_end(tree.verb(&root, &["wait", "last"])?)?;
    let record = ours("", n, depth, 0);
    b.keep_counts(record.clone(), resumed, &marks)?;
    b.keep(Record { what: "the job's end is well".into(), value: f64::from(u8::from(well)), unit: "1: yes".into(), ..record });
    Ok(())
}

/// F3.
pub fn gateway(b: &mut Bench) -> Result<()> {
    killed(b, 0, GATEWAY)?;
    let Some(program) = b.hq.clone() else { return Ok(()) };
    let n = b.pick(10_000, 2_000);
    let mut hq = Hq::start(&program, &b.work, 1, Some("10ms"))?;
    let marks = Marks(hq.dir().join("marks"));
    let payload = marks.payload("$HQ_TASK_ID");
    to_the_end(hq.submit(&["--crash-limit", "10", "--array", &format!("0-{}", n - 1)], &["/bin/sh", "-c", &payload]))?;
    let resumed = under_kills(&mut hq, &marks, n, Hq::kill_server, |hq| hq.start_server().and_then(|()| hq.start_worker()))?;
    to_the_end(hq.verb(&["job", "wait", "all"]))?;
    let durability = "journal, flushed every 10 ms".to_string();
    b.keep_counts(Record { system: HQ.into(), n, durability, ..Record::default() }, resumed, &marks)
}

/// F4: the broker in the middle.
pub fn broker(b: &mut Bench) -> Result<()> {
    killed(b, 2, "b1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_counted_by_lines() {
        let dir = tempfile::tempdir().unwrap();
        let marks = Marks(dir.path().join("all"));
        assert_eq!(0, marks.starts());
        for number in ["3", "999999", "3"] {
            assert!(std::process::Command::new("/bin/sh").args(["-c", &marks.payload(number)]).status().unwrap().success());
        }
        assert_eq!((3, 3), (marks.starts(), marks.settled()));
        assert_eq!((2, 1), lost_and_doubled(&fs::read_to_string(&marks.0).unwrap(), 4));
    }
}
