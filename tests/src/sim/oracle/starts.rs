//! Starts and ends: a process counts while every site of its way knows its placement there.

use std::collections::BTreeMap;

use intergrid_agent::core::Key;
use intergrid_proto::{Exit, Phase, TaskSet};

use super::Oracle;
use crate::sim::leaf::Uid;
use crate::sim::record::{Process, TaskKey};

impl Oracle {
    /// A payload begins.
    pub fn started(&mut self, leaf: usize, key: Key) -> Uid {
        let (record, path) = (&self.record, self.record.way(leaf, key));
        let Some(top) = path.last().map(|id| &record.issued.all[*id]) else {
            self.fail("I1", format!("leaf {leaf} starts {key:?}, and its placement was never durable"));
            return 0;
        };
        let (task, waits) = ((top.origin.clone(), key.1), self.waits(top.hash));
        let known = |p: &&Process| p.task == task && !p.path.iter().any(|id| self.gone.contains(&record.issued.now_is(*id, key.1)));
        let starts = 1 + record.processes.values().filter(known).count() as u64;
        let count = |of: &BTreeMap<TaskKey, u64>| of.get(&task).copied().unwrap_or(0);
        let (excused, released) = (count(&self.excused), count(&self.released));
        let new = Process { task: task.clone(), leaf, path, since_ms: self.now_ms, alive: true, exit: None, evident: false };
        let other = record.processes.iter().find(|(_, p)| p.alive && p.task == task && record.counts(p)).filter(|_| record.counts(&new));
        let other = other.map(|(uid, p)| (*uid, p.leaf));
        if waits {
            let once = starts <= 1 + released;
            self.must(once, "I3", format_args!("task {task:?} may start once, and starts for the {starts}. time, on leaf {leaf}"));
        } else {
            let just = starts <= 1 + excused + released;
            self.must(just, "I3", format_args!("task {task:?} starts for the {starts}. time, on leaf {leaf}, after {excused} losses"));
        }
        if let Some((other, on)) = other {
            self.fail("I2", format!("task {task:?} starts on leaf {leaf}, while process {other} of it on leaf {on} runs and counts"));
        }
        self.record.started(new)
    }

    /// Of a placement that is said to be over nothing may run, but for what was fenced below it.
    pub(super) fn must_be_over(&mut self, site: usize, number: u64, task: u32, (invariant, what): (&str, &str), was_fenced: bool) {
        let record = &self.record;
        // The fence of this placement itself is what ends here.
        let below = |p: &Process, at: usize| at == 0 || record.counts_below(p, record.issued.all[p.path[at - 1]].site);
        let runs = |(p, at): &(&Process, usize)| p.alive && if was_fenced { below(p, *at) } else { record.counts_below(p, site) };
        let found = record.on(site, number, task).find(runs).map(|(p, _)| (p.leaf, p.task.clone()));
        if let Some((leaf, name)) = found {
            self.fail(invariant, format!("site {site}: task {name:?} on placement {number} is {what}, and runs on leaf {leaf}"));
        }
    }

    /// Started, or claimed: from then on an attempt counts, as nobody may be left to say whether it started.
    pub(super) fn was_started(&self, site: usize, number: u64, task: u32) -> bool {
        let key = self.record.mirrors[site].id(number).map(|id| (self.record.issued.all[id].origin.clone(), task));
        key.is_some_and(|k| self.claimed.contains(&k)) || self.record.on(site, number, task).next().is_some()
    }

    /// An exit that is told must have been.
    pub(super) fn must_have_evidence(&mut self, site: usize, number: u64, task: u32, phase: i32, exit: Exit) {
        let found = self.record.on(site, number, task).any(|(p, _)| p.exit == Some(exit));
        let told = matches!(exit, Exit::Code(_) | Exit::Signal(_));
        if told && !found || phase == Phase::Done as i32 && exit != Exit::Code(0) {
            let all: Vec<_> = self.record.on(site, number, task).map(|(p, _)| (p.leaf, p.exit)).collect();
            self.fail("I9", format!("site {site}: task {task} on placement {number} is said to have ended with {exit}; in truth: {all:?}"));
        }
    }

    /// An agent is about to start these.
    pub fn claimed(&mut self, leaf: usize, number: u64, tasks: &TaskSet) {
        let Some(id) = self.record.issued_to_leaf(leaf, number) else { return };
        let origin = &self.record.issued.all[id].origin;
        self.claimed.extend(tasks.iter().map(|t| (origin.clone(), t)));
    }
}
