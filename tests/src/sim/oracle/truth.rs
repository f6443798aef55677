//! The truth: processes on machines, and the way by which each came there.

use intergrid_agent::core::Key;
use intergrid_proto::{Exit, Phase, TaskSet};

use super::{Oracle, TaskKey};
use crate::sim::leaf::Uid;

/// One start of a payload.
#[derive(Clone, Debug)]
pub struct Process {
    pub task: TaskKey,
    pub leaf: usize,
    /// Placements that led to it, the gateway's first, the root's last: site and number.
    pub path: Vec<(usize, u64)>,
    pub alive: bool,
    /// How it ended, where it did so by itself.
    pub exit: Option<Exit>,
    /// Its end, with its usage, is durable at its agent.
    pub evident: bool,
}

impl Oracle {
    /// A payload begins.
    pub fn started(&mut self, leaf: usize, key: Key) -> Uid {
        self.uids += 1;
        let uid = self.uids;
        let (mut site, mut number, task) = (self.gateway_of[leaf], key.0, key.1);
        let mut path = Vec::new();
        let origin = loop {
            path.push((site, number));
            let m = &self.mirrors[site];
            let Some((p, j)) = m.placed.get(&number).and_then(|p| Some((p, m.jobs.get(&p.job)?))) else {
                if !self.stores_replaced {
                    self.fail("I1", format!("leaf {leaf} starts {key:?}, and placement {number} of site {site} is not durable"));
                }
                break Default::default();
            };
            let (Some(up), Some(parent)) = (p.ups.get(&task), j.parent.and_then(|p| self.site(p))) else { break j.origin.clone() };
            (site, number) = (parent, *up);
        };
        let task: TaskKey = (origin.0, origin.1, task);
        let spec =
            path.last().and_then(|(s, n)| self.mirrors[*s].jobs.get(&self.mirrors[*s].placed.get(n)?.job)).and_then(|j| self.specs.get(&j.hash));
        let waits = spec.is_some_and(|s| s.on_lost == intergrid_proto::spec::OnLost::Wait);
        let starts = 1 + self.processes.values().filter(|p| p.task == task).count() as u64;
        let excused = self.excused.get(&task).copied().unwrap_or(0);
        if waits && starts > 1 {
            self.fail("I3", format!("task {task:?} may start once, and starts for the {starts}. time, on leaf {leaf}"));
        } else if starts > 1 + excused {
            self.fail("I3", format!("task {task:?} starts for the {starts}. time, on leaf {leaf}, after {excused} losses"));
        }
        let other = self.processes.iter().find(|(_, p)| p.alive && p.task == task && self.counts(p)).map(|(uid, p)| (*uid, p.leaf));
        self.processes.insert(uid, Process { task, leaf, path, alive: true, exit: None, evident: false });
        if let Some(other) = other.filter(|_| self.counts(&self.processes[&uid])) {
            let task = &self.processes[&uid].task;
            self.fail("I2", format!("task {task:?} starts on leaf {leaf}, while process {} of it on leaf {} runs and counts", other.0, other.1));
        }
        uid
    }

    /// Is no placement of its way fenced?
    fn counts(&self, p: &Process) -> bool {
        self.counts_below(p, usize::MAX)
    }

    /// Is none fenced up to this site's?
    fn counts_below(&self, p: &Process, site: usize) -> bool {
        for (s, n) in &p.path {
            if self.mirrors[*s].placed.get(n).is_some_and(|d| d.fenced.contains(p.task.2)) {
                return false;
            }
            if *s == site {
                break;
            }
        }
        true
    }

    /// Of a placement that is said to be over nothing may run, but for what was fenced below it.
    pub(super) fn must_be_over(&mut self, site: usize, number: u64, task: u32, (invariant, what): (&str, &str), was_fenced: bool) {
        let runs = |p: &&Process| {
            let below = p.path.iter().position(|at| *at == (site, number));
            let Some(below) = below.filter(|_| p.alive && p.task.2 == task) else { return false };
            // The fence of this placement itself is what ends here.
            was_fenced && (below == 0 || self.counts_below(p, p.path[below - 1].0)) || !was_fenced && self.counts_below(p, site)
        };
        if let Some(p) = self.processes.values().find(runs) {
            let (leaf, name) = (p.leaf, p.task.clone());
            self.fail(invariant, format!("site {site}: task {name:?} on placement {number} is {what}, and runs on leaf {leaf}"));
        }
    }

    /// Started, or claimed: from then on an attempt counts, as nobody may be left to say whether it started.
    pub(super) fn was_started(&self, site: usize, number: u64, task: u32) -> bool {
        let key = self.mirrors[site].placed.get(&number).map(|p| self.task(site, p.job, task));
        key.is_some_and(|k| self.claimed.contains(&k)) || self.processes.values().any(|p| p.task.2 == task && p.path.contains(&(site, number)))
    }

    /// An exit that is told must have been.
    pub(super) fn must_have_evidence(&mut self, site: usize, number: u64, task: u32, phase: i32, exit: Exit) {
        let of = |p: &&Process| p.task.2 == task && p.path.contains(&(site, number));
        let found = self.processes.values().filter(of).any(|p| p.exit == Some(exit));
        let told = matches!(exit, Exit::Code(_) | Exit::Signal(_));
        if told && !found || phase == Phase::Done as i32 && exit != Exit::Code(0) {
            let all: Vec<_> = self.processes.values().filter(of).map(|p| (p.leaf, p.exit)).collect();
            self.fail("I9", format!("site {site}: task {task} on placement {number} is said to have ended with {exit}; in truth: {all:?}"));
        }
    }

    pub fn exited(&mut self, uid: Uid, exit: Exit) {
        self.exited_ms = self.now_ms;
        if let Some(p) = self.processes.get_mut(&uid) {
            (p.alive, p.exit) = (false, Some(exit));
        }
    }

    /// Gone with its machine.
    pub fn vanished(&mut self, uid: Uid) {
        if let Some(p) = self.processes.get_mut(&uid) {
            p.alive = false;
        }
    }

    /// An agent is about to start these.
    pub fn claimed(&mut self, leaf: usize, number: u64, tasks: &TaskSet) {
        let gateway = self.gateway_of[leaf];
        let Some(job) = self.mirrors[gateway].placed.get(&number).map(|p| p.job) else { return };
        let keys: Vec<TaskKey> = tasks.iter().map(|t| self.task(gateway, job, t)).collect();
        self.claimed.extend(keys);
    }

    /// Its end is durable at its agent.
    pub fn evidence(&mut self, uid: Uid) {
        if let Some(p) = self.processes.get_mut(&uid) {
            p.evident = true;
        }
    }
}
