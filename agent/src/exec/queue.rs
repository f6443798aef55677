//! What the threads that see tasks through have to do, and the few things they take turns with: pairs of files for streams, empty directories.

use std::collections::VecDeque;
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
    /// Directories that were kept, and how many there have been.
    pub spares: Vec<u32>,
    spares_made: u32,
}

impl Queue {
    /// The next thing to do; starts come first.
    pub fn take(&mut self) -> Option<Work> {
        if let Some((task, plan)) = self.starts.pop_front() {
            self.busy += 1;
            let pair = self.pairs.pop().unwrap_or_else(|| {
                self.pairs_made += 1;
                self.pairs_made - 1
            });
            let left = if plan.is_bare() { self.left.pop() } else { None };
            let spare = if plan.is_bare() && left.is_none() { self.spares.pop() } else { None };
            return Some(Work::Start(Start { task, plan, pair, left, spare }));
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
