//! Tasks that run, followed: what they have printed since the last look is pulled down the tree, by offset, while somebody follows them.
//!
//! Invariant: each byte is shown once. How much was shown is known by length and hash; the whole, which comes when the task has ended, goes on behind it where
//! it begins so, and is shown anew where it does not. A look that fails is left out: the next one, or the end, brings what it would have brought.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use intergrid_proto::limits::{LIVE_BYTES_MAX, TREE_CALL_TIMEOUT_MS};
use intergrid_proto::{Phase, TaskSet, pb};

use super::jobs;
use super::logs::{Lines, Printer};
use crate::names::{JobName, reference};
use crate::render;
use crate::stop::Result;

/// Running tasks that are shown at a time: the first of those that are followed.
const TASKS_MAX: usize = 16;
/// Looks in one round, where a task prints faster than it is looked at.
const LOOKS_MAX: usize = 64;

/// A stream as far as it was shown.
#[derive(Debug)]
pub struct Shown {
    bytes: u64,
    hash: blake3::Hasher,
    /// Of the whole: so much has been compared.
    compared: (u64, blake3::Hasher),
    /// A line that has begun.
    pub(super) lines: Lines,
}

impl Shown {
    /// Nothing yet.
    pub fn new(task: Option<u32>) -> Self {
        Shown { bytes: 0, hash: blake3::Hasher::new(), compared: (0, blake3::Hasher::new()), lines: Lines::new(task) }
    }

    fn put(&mut self, data: &[u8]) -> Vec<u8> {
        self.hash.update(data);
        self.bytes += data.len() as u64;
        self.lines.take(data)
    }

    /// The next part of the whole, without what was shown. None: the whole begins otherwise.
    pub fn behind<'a>(&mut self, data: &'a [u8]) -> Option<&'a [u8]> {
        let (known, fresh) = data.split_at(data.len().min((self.bytes - self.compared.0) as usize));
        self.compared.0 += known.len() as u64;
        self.compared.1.update(known);
        let same = self.compared.0 < self.bytes || self.compared.1.finalize() == self.hash.finalize();
        same.then_some(fresh)
    }

    /// The whole was not shorter than what was shown.
    pub fn is_whole(&self) -> bool {
        self.compared.0 == self.bytes
    }
}

/// What was shown of tasks that run.
#[derive(Debug)]
pub struct Live {
    tasks: BTreeMap<u32, (Vec<u8>, BTreeMap<&'static str, Shown>)>,
    looked: Instant,
}

impl Default for Live {
    fn default() -> Self {
        Live { tasks: BTreeMap::new(), looked: Instant::now() }
    }
}

impl Live {
    /// When to look again.
    pub fn due_in(&self, interval: Duration) -> Duration {
        interval.saturating_sub(self.looked.elapsed())
    }

    /// What was shown of a stream, once.
    pub fn take(&mut self, task: u32, name: &str) -> Option<Shown> {
        let (_, streams) = self.tasks.get_mut(&task)?;
        streams.remove(name).filter(|s| s.bytes > 0)
    }

    /// Show what those of these tasks that run have printed. `before` is called before anything is printed.
    pub async fn round(&mut self, printer: &Printer<'_>, tasks: &TaskSet, before: &impl Fn()) -> Result<()> {
        if !printer.out.json {
            for _ in 0..LOOKS_MAX {
                if !self.look(printer, tasks, before).await? {
                    break;
                }
            }
        }
        self.looked = Instant::now();
        Ok(())
    }

    /// One look. True: there is more.
    async fn look(&mut self, printer: &Printer<'_>, tasks: &TaskSet, before: &impl Fn()) -> Result<bool> {
        let job = JobName { id: printer.job.clone(), tasks: Some(tasks.clone()) };
        let Ok(view) = jobs::view(printer.client, &job).await else { return Ok(false) };
        let runs = |r: &&pb::TaskRange| Phase::from_number(r.phase).is_some_and(|p| !p.is_terminal() && !matches!(p, Phase::Queued | Phase::Held));
        let running = view.ranges.iter().filter(runs).fold(TaskSet::new(), |set, r| set.union(&render::tasks(r.tasks.as_ref()))).intersect(tasks);
        let requests = running.iter().take(TASKS_MAX).map(|task| {
            let (attempt, streams) = self.tasks.get(&task).map_or((Vec::new(), None), |(a, s)| (a.clone(), Some(s)));
            let known = |name| match printer.streams.names().contains(&name) {
                true => streams.and_then(|s| s.get(name)).map_or(0, |s| s.bytes),
                false => u64::MAX,
            };
            let (stdout, stderr) = (known("stdout"), known("stderr"));
            let request = pb::PeekRequest { job: reference(&printer.job), task, attempt, stdout, stderr, deadline_ms: 0 };
            async move { (task, printer.client.call_once("peek", TREE_CALL_TIMEOUT_MS, async |mut grid| grid.peek(request.clone()).await).await) }
        });
        let mut more = false;
        for (task, reply) in join_all(requests).await {
            let Ok(pb::PeekReply { attempt, stdout, stderr, .. }) = reply else { continue };
            if attempt.is_empty() {
                continue;
            }
            let (known, streams) = self.tasks.entry(task).or_default();
            if *known != attempt {
                if streams.values().any(|s| s.bytes > 0) {
                    printer.out.note(format!("task {task} was started again: what follows is of its new attempt"));
                }
                (*known, *streams) = (attempt, BTreeMap::new());
            }
            for (name, data) in printer.streams.names().iter().map(|n| (*n, if *n == "stdout" { &stdout } else { &stderr })) {
                if !data.is_empty() {
                    before();
                    let shown = streams.entry(name).or_insert_with(|| Shown::new(printer.label.then_some(task)));
                    printer.write(name, &shown.put(data))?;
                    more |= data.len() >= LIVE_BYTES_MAX;
                }
            }
        }
        printer.out.flush()?;
        Ok(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &[u8]) -> Shown {
        let mut s = Shown::new(None);
        s.put(text);
        s
    }

    #[test]
    fn the_whole_goes_on_behind_what_was_shown_however_it_is_cut() {
        let whole = b"one\ntwo\nthree\n";
        for n in 0..=whole.len() {
            for part in 1..=whole.len() {
                let mut s = shown(&whole[..n]);
                let rest: Vec<u8> = whole.chunks(part).flat_map(|p| s.behind(p).unwrap().to_vec()).collect();
                assert!(s.is_whole());
                assert_eq!(&whole[n..], rest);
            }
        }
    }

    #[test]
    fn another_text_is_known_as_one() {
        let mut s = shown(b"one\n");
        assert!(s.behind(b"on").is_some() && s.behind(b"ce\n").is_none());
        let mut s = shown(b"one\n");
        assert!(s.behind(b"one").is_some() && !s.is_whole(), "it is shorter");
    }
}
