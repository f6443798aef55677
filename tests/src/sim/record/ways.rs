//! Ways: the placements that led to a process, from its machine up to its root, and who on its way still knows of them.

use intergrid_agent::core::Key;
use intergrid_proto::{SiteId, TaskSet};

use super::super::leaf::Uid;
use super::{Issued, JobKey, Process, Record};

impl Record {
    /// The site of this id; none for a leaf.
    pub fn site(&self, id: SiteId) -> Option<usize> {
        self.index.get(&id).copied()
    }

    pub fn origin(&self, site: usize, job: u64) -> JobKey {
        self.mirrors[site].jobs.get(&job).map(|j| j.origin.clone()).unwrap_or_default()
    }

    /// The placement of a parent's under which a site has tasks.
    pub fn issued_by(&self, site: usize, job: u64, number: u64) -> Option<usize> {
        let parent = self.mirrors[site].jobs.get(&job).and_then(|j| self.site(j.parent?))?;
        self.issued.named(parent, self.ids[site], number)
    }

    /// As that, of a leaf.
    pub fn issued_to_leaf(&self, leaf: usize, number: u64) -> Option<usize> {
        self.issued.named(self.gateway_of[leaf], self.leaf_ids[leaf], number)
    }

    /// The placement above one, as it is called now.
    fn above_of(&self, at: &Issued, task: u32) -> Option<usize> {
        self.issued.named(self.site(at.parent?)?, self.ids[at.site], *at.ups.get(&task)?)
    }

    /// The highest of a site's placements that a child has made durable.
    pub fn seen_by(&self, child: SiteId, site: usize) -> u64 {
        let seen = self.site(child).map_or_else(|| self.leaves_saw.get(&child), |c| self.mirrors[c].seen.get(&self.ids[site]));
        seen.copied().unwrap_or(0)
    }

    /// What led to a start: placements, the gateway's first, the root's last.
    pub fn way(&self, leaf: usize, (number, task): Key) -> Vec<usize> {
        let (mut way, mut next) = (Vec::new(), self.issued_to_leaf(leaf, number));
        while let Some(id) = next {
            let now = self.issued.now_is(id, task);
            let at = &self.issued.all[now];
            // As its child calls it, who may not have heard yet that it has another name.
            way.push(if self.seen_by(at.child, at.site) < at.number { id } else { now });
            next = self.above_of(at, task);
        }
        way
    }

    /// Does every site of its way know its placement there, and count it?
    pub fn counts(&self, p: &Process) -> bool {
        self.counts_below(p, usize::MAX)
    }

    /// As that, up to this site. What a store has forgotten, it can't answer for.
    pub fn counts_below(&self, p: &Process, site: usize) -> bool {
        for id in &p.path {
            let id = self.issued.now_is(*id, p.task.1);
            let at = &self.issued.all[id];
            if self.mirrors[at.site].placed.get(&at.number).is_none_or(|d| d.id != id || d.fenced.contains(p.task.1)) {
                return false;
            }
            if at.site == site {
                break;
            }
        }
        true
    }

    /// The processes of a task on this placement, as its site knows it, each with where on its way that is.
    pub fn on(&self, site: usize, number: u64, task: u32) -> impl Iterator<Item = (&Process, usize)> {
        let id = self.mirrors[site].id(number);
        let place = move |p: &Process| p.path.iter().position(|at| Some(self.issued.now_is(*at, task)) == id);
        self.processes.values().filter(move |p| p.task.1 == task).filter_map(move |p| Some((p, place(p)?)))
    }

    /// Was an attempt lost at the site below, for this placement, however it was called then?
    pub fn was_lost_below(&self, site: usize, number: u64, task: u32) -> bool {
        let Some(id) = self.mirrors[site].id(number) else { return false };
        let (child, now) = (self.issued.all[id].child, self.issued.now_is(id, task));
        let same = |up: &u64| self.issued.named(site, child, *up).is_some_and(|up| self.issued.now_is(up, task) == now);
        let ours = |p: &&Issued| Some(p.site) == self.site(child) && p.parent == Some(self.ids[site]) && p.ups.get(&task).is_some_and(same);
        self.issued.all.iter().filter(ours).any(|p| p.lost.contains(task))
    }

    /// Has the site that issued it, or one above it, forgotten it?
    fn forgotten(&self, id: usize, task: u32) -> bool {
        let id = self.issued.now_is(id, task);
        let at = &self.issued.all[id];
        self.mirrors[at.site].id(at.number) != Some(id) || self.above_of(at, task).is_some_and(|a| self.forgotten(a, task))
    }

    /// Does it run for somebody who has forgotten it?
    pub fn is_forgotten(&self, p: &Process) -> bool {
        p.path.first().is_some_and(|id| self.forgotten(*id, p.task.1))
    }

    /// Is a task here for a placement that is forgotten above?
    pub fn is_orphan(&self, site: usize, job: u64, task: u32) -> bool {
        let up = self.mirrors[site].cell(job, task).map_or(0, |c| c.up);
        self.issued_by(site, job, up).is_some_and(|id| self.forgotten(id, task))
    }

    /// As that, on a leaf.
    pub fn leaf_orphan(&self, leaf: usize, number: u64, task: u32) -> bool {
        self.issued_to_leaf(leaf, number).is_some_and(|id| self.forgotten(id, task))
    }

    /// Was this issued before its site knew that its store was replaced? What it had fenced is an orphan then, and nobody's to wait for.
    pub fn is_older(&self, site: usize, id: usize) -> bool {
        self.replaced.get(&site).is_some_and(|(_, issued)| id < *issued)
    }

    /// Has the store of a site of its way been replaced since it started, or found it again only then? An end that is told from a state has no usage.
    pub fn may_be_forgotten(&self, p: &Process) -> bool {
        let since = |id: &usize| self.replaced.get(&self.issued.all[*id].site).is_some_and(|(at, _)| *at >= p.since_ms);
        self.is_forgotten(p) || self.found_again(p) || p.path.iter().any(since)
    }

    /// Did a site of its way that had lost its store find it again under another name?
    fn found_again(&self, p: &Process) -> bool {
        p.path.iter().any(|id| self.issued.was_renamed(*id, p.task.1))
    }

    /// As that, by its id.
    pub fn was_found_again(&self, uid: Uid) -> bool {
        self.processes.get(&uid).is_some_and(|p| self.found_again(p))
    }

    /// Was each of these tasks of a job ever placed so?
    fn each_was(&self, site: usize, job: u64, tasks: &TaskSet, so: impl Fn(&Issued) -> bool) -> bool {
        let origin = self.origin(site, job);
        tasks.iter().all(|t| self.issued.all.iter().any(|i| i.origin == origin && i.ups.contains_key(&t) && so(i)))
    }

    /// Does a store that was replaced have had to do with each of these tasks of a user's job?
    pub fn led_to_replaced(&self, site: usize, job: u64, tasks: &TaskSet) -> bool {
        let replaced = |i: &Issued| self.site(i.child).is_some_and(|c| self.replaced.contains_key(&c));
        self.replaced.contains_key(&site) || self.each_was(site, job, tasks, replaced)
    }

    /// Was each of these tasks of a job placed on a machine before an empty one took its place?
    pub fn was_on_emptied(&self, site: usize, job: u64, tasks: &TaskSet) -> bool {
        let emptied = |i: &Issued| self.emptied.iter().any(|(leaf, (_, number, _))| self.leaf_ids[*leaf] == i.child && i.number <= *number);
        !self.emptied.is_empty() && self.each_was(site, job, tasks, emptied)
    }

    /// Is none of these tasks of a user's job on a machine, as gateways know it? Then they wait at some site below.
    pub fn on_no_machine(&self, site: usize, job: u64, tasks: &TaskSet) -> bool {
        let origin = self.origin(site, job);
        let mut machines = self.issued.all.iter().filter(|i| i.origin == origin && self.site(i.child).is_none());
        let there = |i: &Issued, t: u32| self.mirrors[i.site].cell(i.job, t).is_some_and(|c| c.is_open() && c.down == i.number);
        !machines.any(|i| tasks.iter().any(|t| there(i, t)))
    }
}
