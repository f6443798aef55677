//! What the threads that see tasks through have to do, and the few things they take turns with: pairs of files for streams, empty directories.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::core::Key;
use crate::limits::SPARE_DIRECTORIES_MAX;
use crate::plan::{Plan, Task};

/// A task to be started, and what it starts in.
pub struct Start {
    pub task: Task,
    pub plan: Arc<Plan>,
    /// Its streams' files.
    pub pair: u32,
    /// GPUs that are its own, with commas between; None: there are none here.
    pub gpus: Option<String>,
    /// A directory that may be empty and its own, of a task that has ended; or one that was kept.
    pub left: Option<Key>,
    pub spare: Option<u32>,
}

/// What a thread may have to do.
pub enum Work {
    Start(Start),
    /// Keep this directory under this number, if that may be.
    Keep(Key, u32),
    Clear(Key),
}

/// The work, and who is there to do it.
#[derive(Default)]
pub struct Queue {
    pub starts: VecDeque<(Task, Arc<Plan>)>,
    /// Directories of tasks whose ends are durable.
    pub left: Vec<Key>,
    /// Those of them that have something in them.
    pub soiled: Vec<Key>,
    pub closed: bool,
    /// Starts that have been taken and not told of.
    pub busy: usize,
    pub threads: usize,
    /// Threads that wait, how many of them are called, and how many will look for work before they wait.
    pub idle: usize,
    pub called: usize,
    pub coming: usize,
    /// Pairs of streams that no task writes to, and how many there are in all.
    pub pairs: Vec<u32>,
    pairs_made: u32,
    /// GPUs that no task has, and whose the others are.
    gpus: Vec<String>,
    gpus_of: BTreeMap<Key, Vec<String>>,
    /// Directories that were kept, and how many there have been.
    pub spares: Vec<u32>,
    spares_made: u32,
}

impl Queue {
    /// Of a machine with these GPUs.
    pub fn with(gpus: Vec<String>) -> Self {
        Queue { gpus, ..Queue::default() }
    }

    /// The first start for which there are GPUs.
    fn next_start(&mut self) -> Option<(Task, Arc<Plan>)> {
        let free = self.gpus.len();
        let at = self.starts.iter().position(|(_, plan)| plan.spec.shape.gpus as usize <= free)?;
        self.starts.remove(at)
    }

    /// Starts for which there is all they need.
    pub fn startable(&self) -> usize {
        let mut free = self.gpus.len();
        let mut fits = |(_, plan): &&(Task, Arc<Plan>)| free.checked_sub(plan.spec.shape.gpus as usize).inspect(|left| free = *left).is_some();
        self.starts.iter().filter(|s| fits(s)).count()
    }

    /// A task that was found running has these GPUs, as far as they are ours.
    pub fn give(&mut self, key: Key, names: &str) {
        let own: Vec<String> = self.gpus.extract_if(.., |g| names.split(',').any(|name| name == g)).collect();
        self.gpus_of.insert(key, own);
    }

    /// The task is over. True: it had GPUs.
    pub fn release(&mut self, key: Key, pair: Option<u32>) -> bool {
        self.pairs.extend(pair);
        let gpus = self.gpus_of.remove(&key).unwrap_or_default();
        let had = !gpus.is_empty();
        self.gpus.extend(gpus);
        had
    }

    /// The next thing to do; starts come first.
    pub fn take(&mut self) -> Option<Work> {
        if let Some((task, plan)) = self.next_start() {
            self.busy += 1;
            let pair = self.pairs.pop().unwrap_or_else(|| {
                self.pairs_made += 1;
                self.pairs_made - 1
            });
            let has_gpus = !(self.gpus.is_empty() && self.gpus_of.values().all(Vec::is_empty));
            let own: Vec<String> = self.gpus.drain(..plan.spec.shape.gpus as usize).collect();
            let gpus = has_gpus.then(|| own.join(","));
            if !own.is_empty() {
                self.gpus_of.insert((task.number, task.index), own);
            }
            let left = if plan.is_bare() { self.left.pop() } else { None };
            let spare = if plan.is_bare() && left.is_none() { self.spares.pop() } else { None };
            return Some(Work::Start(Start { task, plan, pair, gpus, left, spare }));
        }
        if self.closed {
            return None;
        }
        if let Some(key) = self.soiled.pop() {
            return Some(Work::Clear(key));
        }
        let key = self.left.pop()?;
        if self.spares.len() >= SPARE_DIRECTORIES_MAX {
            return Some(Work::Clear(key));
        }
        self.spares_made = self.spares_made.wrapping_add(1);
        Some(Work::Keep(key, self.spares_made))
    }
}

#[cfg(test)]
mod tests {
    use intergrid_proto::JobSpec;

    use super::*;

    /// The next start: its index, and its GPUs.
    fn next(queue: &mut Queue) -> Option<(u32, Option<String>)> {
        match queue.take() {
            Some(Work::Start(start)) => Some((start.task.index, start.gpus)),
            _ => None,
        }
    }

    fn add(queue: &mut Queue, index: u32, gpus: u32) {
        let mut spec = JobSpec::new(["true"]);
        spec.shape.gpus = gpus;
        let task = Task { number: 1, index, attempt: 1, job: "j".into(), array_size: 9, site: "s".into() };
        queue.starts.push_back((task, Arc::new(Plan::new(&spec.encode()).unwrap())));
    }

    #[test]
    fn a_gpu_is_one_tasks_at_a_time() {
        let mut queue = Queue::with(["0", "1", "5"].map(String::from).into());
        [2, 2, 0, 1].into_iter().zip(0..).for_each(|(gpus, index)| add(&mut queue, index, gpus));
        assert_eq!(3, queue.startable());
        assert_eq!(Some((0, Some("0,1".into()))), next(&mut queue));
        // The second waits for GPUs, and nobody for it.
        assert_eq!((Some((2, Some(String::new()))), Some((3, Some("5".into())))), (next(&mut queue), next(&mut queue)));
        assert_eq!((None, 0), (next(&mut queue), queue.startable()));
        queue.release((1, 3), None);
        queue.release((1, 2), None);
        assert_eq!(None, next(&mut queue));
        queue.release((1, 0), None);
        assert_eq!(Some((1, Some("5,0".into()))), next(&mut queue));
    }

    #[test]
    fn what_was_found_running_keeps_its_gpus() {
        let mut queue = Queue::with(["0", "1"].map(String::from).into());
        queue.give((7, 7), "1,9");
        [2, 1].into_iter().zip(0..).for_each(|(gpus, index)| add(&mut queue, index, gpus));
        assert_eq!((Some((1, Some("0".into()))), None), (next(&mut queue), next(&mut queue)));
        queue.release((1, 1), None);
        queue.release((7, 7), None);
        assert_eq!(Some((0, Some("0,1".into()))), next(&mut queue));
    }

    #[test]
    fn without_gpus_nothing_is_said_of_them() {
        let mut queue = Queue::default();
        queue.give((7, 7), "9");
        add(&mut queue, 0, 0);
        assert_eq!(Some((0, None)), next(&mut queue));
    }
}
