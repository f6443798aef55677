//! The truth: processes on machines, and the way by which each came there.

use intergrid_agent::core::Key;
use intergrid_proto::{Exit, Phase, TaskSet};

use super::mirror::Issued;
use super::{Oracle, TaskKey};
use crate::sim::leaf::Uid;

/// One start of a payload.
#[derive(Clone, Debug)]
pub struct Process {
    pub task: TaskKey,
    pub leaf: usize,
    /// Placements that led to it, the gateway's first, the root's last, as they were called then below.
    pub path: Vec<usize>,
    pub since_ms: u64,
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
        let task = key.1;
        let mut path = Vec::new();
        let mut next = self.issued_to(self.gateway_of[leaf], self.leaf_ids[leaf], key.0);
        while let Some(id) = next {
            let now = self.now_is(id, task);
            let at = &self.issued[now];
            // As its child calls it, who may not have heard yet that it has another name.
            path.push(if self.seen_by(at.child, at.site) < at.number { id } else { now });
            let above = at.parent.and_then(|p| Some((self.site(p)?, *at.ups.get(&task)?)));
            next = above.and_then(|(parent, up)| self.issued_to(parent, self.ids[at.site], up));
        }
        let Some(top) = path.last().map(|id| &self.issued[*id]) else {
            self.fail("I1", format!("leaf {leaf} starts {key:?}, and its placement was never durable"));
            return uid;
        };
        let task: TaskKey = (top.origin.0, top.origin.1.clone(), task);
        let waits = self.specs.get(&top.hash).is_some_and(|s| s.on_lost == intergrid_proto::spec::OnLost::Wait);
        let known = |p: &&Process| p.task == task && !p.path.iter().any(|id| self.gone.contains(&self.now_is(*id, task.2)));
        let starts = 1 + self.processes.values().filter(known).count() as u64;
        let excused = self.excused.get(&task).copied().unwrap_or(0);
        let released = self.released.get(&task).copied().unwrap_or(0);
        if waits && starts > 1 + released {
            self.fail("I3", format!("task {task:?} may start once, and starts for the {starts}. time, on leaf {leaf}"));
        } else if !waits && starts > 1 + excused + released {
            self.fail("I3", format!("task {task:?} starts for the {starts}. time, on leaf {leaf}, after {excused} losses"));
        }
        let other = self.processes.iter().find(|(_, p)| p.alive && p.task == task && self.counts(p)).map(|(uid, p)| (*uid, p.leaf));
        self.processes.insert(uid, Process { task, leaf, path, since_ms: self.now_ms, alive: true, exit: None, evident: false });
        if let Some(other) = other.filter(|_| self.counts(&self.processes[&uid])) {
            let task = &self.processes[&uid].task;
            self.fail("I2", format!("task {task:?} starts on leaf {leaf}, while process {} of it on leaf {} runs and counts", other.0, other.1));
        }
        uid
    }

    /// What this placement of a task is called now: a site that had lost its store may have found it again.
    pub(super) fn now_is(&self, mut id: usize, task: u32) -> usize {
        while let Some(later) = self.later.get(&(id, task)) {
            id = *later;
        }
        id
    }

    /// Does every site of its way know its placement there, and count it?
    pub fn counts(&self, p: &Process) -> bool {
        self.counts_below(p, usize::MAX)
    }

    /// As that, up to this site. What a store has forgotten, it can't answer for.
    fn counts_below(&self, p: &Process, site: usize) -> bool {
        for id in &p.path {
            let id = self.now_is(*id, p.task.2);
            let at = &self.issued[id];
            if self.mirrors[at.site].placed.get(&at.number).is_none_or(|d| d.id != id || d.fenced.contains(p.task.2)) {
                return false;
            }
            if at.site == site {
                break;
            }
        }
        true
    }

    /// Has the site that issued it, or one above it, forgotten it?
    fn forgotten(&self, id: usize, task: u32) -> bool {
        let id = self.now_is(id, task);
        let at = &self.issued[id];
        let above = at.parent.and_then(|p| self.issued_to(self.site(p)?, self.ids[at.site], *at.ups.get(&task)?));
        self.mirrors[at.site].placed.get(&at.number).is_none_or(|p| p.id != id) || above.is_some_and(|a| self.forgotten(a, task))
    }

    /// Does it run for somebody who has forgotten it?
    pub fn is_forgotten(&self, p: &Process) -> bool {
        p.path.first().is_some_and(|id| self.forgotten(*id, p.task.2))
    }

    /// Is a task here for a placement that is forgotten above?
    pub fn is_orphan(&self, site: usize, job: u64, task: u32) -> bool {
        let up = self.cell(site, job, task).map_or(0, |c| c.up);
        self.issued_by(site, job, up).is_some_and(|id| self.forgotten(id, task))
    }

    /// As that, on a leaf.
    pub fn leaf_orphan(&self, leaf: usize, number: u64, task: u32) -> bool {
        self.issued_to(self.gateway_of[leaf], self.leaf_ids[leaf], number).is_some_and(|id| self.forgotten(id, task))
    }

    /// Was this issued before its site knew that its store was replaced? What it had fenced is an orphan then, and nobody's to wait for.
    pub(super) fn is_older(&self, site: usize, id: usize) -> bool {
        self.replaced.get(&site).is_some_and(|(_, issued)| id < *issued)
    }

    /// Has the store of a site of its way been replaced since it started, or found it again only then? An end that is told from a state has no usage.
    pub fn may_be_forgotten(&self, p: &Process) -> bool {
        let since = |id: &usize| self.replaced.get(&self.issued[*id].site).is_some_and(|(at, _)| *at >= p.since_ms);
        self.is_forgotten(p) || p.path.iter().any(|id| since(id) || self.later.contains_key(&(*id, p.task.2)))
    }

    /// Did a site of its way that had lost its store find it again under another name?
    pub(super) fn was_found_again(&self, uid: Uid) -> bool {
        self.processes.get(&uid).is_some_and(|p| p.path.iter().any(|id| self.later.contains_key(&(*id, p.task.2))))
    }

    /// Does a store that was replaced have had to do with each of these tasks of a user's job?
    pub fn led_to_replaced(&self, site: usize, job: u64, tasks: &TaskSet) -> bool {
        let origin = self.origin(site, job);
        let passed =
            |i: &Issued, t: u32| i.origin == origin && i.ups.contains_key(&t) && self.site(i.child).is_some_and(|c| self.replaced.contains_key(&c));
        self.replaced.contains_key(&site) || tasks.iter().all(|t| self.issued.iter().any(|i| passed(i, t)))
    }

    /// Was each of these tasks of a job placed on a machine before an empty one took its place?
    pub fn was_on_emptied(&self, site: usize, job: u64, tasks: &TaskSet) -> bool {
        let origin = self.origin(site, job);
        let emptied = |i: &Issued| self.emptied.iter().any(|(leaf, (_, number, _))| self.leaf_ids[*leaf] == i.child && i.number <= *number);
        let passed = |i: &Issued, t: u32| i.origin == origin && i.ups.contains_key(&t) && emptied(i);
        !self.emptied.is_empty() && tasks.iter().all(|t| self.issued.iter().any(|i| passed(i, t)))
    }

    /// Is none of these tasks of a user's job on a machine, as gateways know it? Then they wait at some site below.
    pub fn on_no_machine(&self, site: usize, job: u64, tasks: &TaskSet) -> bool {
        let origin = self.origin(site, job);
        let machines = || self.issued.iter().filter(|i| i.origin == origin && self.site(i.child).is_none());
        let there = |i: &Issued, t: u32| self.cell(i.site, i.job, t).is_some_and(|c| c.is_open() && c.down == i.number);
        !machines().any(|i| tasks.iter().any(|t| there(i, t)))
    }

    /// Where on its way this placement is, as its site knows it.
    fn on(&self, p: &Process, site: usize, number: u64) -> Option<usize> {
        let id = self.mirrors[site].placed.get(&number)?.id;
        p.path.iter().position(|at| self.now_is(*at, p.task.2) == id)
    }

    /// Of a placement that is said to be over nothing may run, but for what was fenced below it.
    pub(super) fn must_be_over(&mut self, site: usize, number: u64, task: u32, (invariant, what): (&str, &str), was_fenced: bool) {
        let runs = |p: &&Process| {
            if !p.alive || p.task.2 != task {
                return false;
            }
            let Some(at) = self.on(p, site, number) else { return false };
            // The fence of this placement itself is what ends here.
            was_fenced && (at == 0 || self.counts_below(p, self.issued[p.path[at - 1]].site)) || !was_fenced && self.counts_below(p, site)
        };
        if let Some(p) = self.processes.values().find(runs) {
            let (leaf, name) = (p.leaf, p.task.clone());
            self.fail(invariant, format!("site {site}: task {name:?} on placement {number} is {what}, and runs on leaf {leaf}"));
        }
    }

    /// Started, or claimed: from then on an attempt counts, as nobody may be left to say whether it started.
    pub(super) fn was_started(&self, site: usize, number: u64, task: u32) -> bool {
        let key = self.mirrors[site].placed.get(&number).map(|p| self.issued[p.id].origin.clone()).map(|o| (o.0, o.1, task));
        key.is_some_and(|k| self.claimed.contains(&k)) || self.processes.values().any(|p| p.task.2 == task && self.on(p, site, number).is_some())
    }

    /// An exit that is told must have been.
    pub(super) fn must_have_evidence(&mut self, site: usize, number: u64, task: u32, phase: i32, exit: Exit) {
        let of = |p: &&Process| p.task.2 == task && self.on(p, site, number).is_some();
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
        let Some(id) = self.issued_to(self.gateway_of[leaf], self.leaf_ids[leaf], number) else { return };
        let origin = self.issued[id].origin.clone();
        self.claimed.extend(tasks.iter().map(|t| (origin.0, origin.1.clone(), t)));
    }

    /// An agent has made a placement durable, whatever it is.
    pub fn leaf_saw(&mut self, leaf: usize, number: u64) {
        let seen = self.leaf_seen.entry(self.leaf_ids[leaf]).or_default();
        *seen = (*seen).max(number);
    }

    /// Its end is durable at its agent.
    pub fn evidence(&mut self, uid: Uid) {
        if let Some(p) = self.processes.get_mut(&uid) {
            p.evident = true;
        }
    }
}
