//! Rest: after the last fault every task ends or says why it does not, and nothing is left behind.

use std::collections::BTreeSet;

use intergrid_gateway::core::state::{DownEntry, Job};
use intergrid_proto::limits::HOPS_MAX;
use intergrid_proto::link::WantValue;
use intergrid_proto::spec::OnLost;
use intergrid_proto::{Phase, Reason, ReasonKind, TaskSet};

use super::record::Process;
use super::scenario::{Machine, STRANGER};
use super::world::World;

impl World {
    /// What keeps the world from being at rest: the rule that is broken if it stays so, and what is seen. None: it rests.
    pub fn unrest(&self) -> Option<(&'static str, String)> {
        for (i, u) in self.users.iter().enumerate().filter(|(i, _)| !self.cut.deeds.contains(i)) {
            if u.answer.is_none() && self.may_be_answered(i) {
                return Some(("L1", format!("deed {i} is never answered")));
            }
        }
        let mut waits = false;
        for (site, job) in self.oracle.acknowledged() {
            match self.job_rests(site, job) {
                Ok(waiting) => waits |= waiting,
                Err(what) => return Some(("L1", what)),
            }
        }
        if waits { None } else { self.leftovers().map(|what| ("L2", what)).or_else(|| self.missing_usage().map(|what| ("I11", what))) }
    }

    fn may_be_answered(&self, deed: usize) -> bool {
        use super::scenario::Deed;
        match &self.scenario.deeds[deed].1 {
            Deed::Submit { site, .. } | Deed::Order { site, .. } => !self.cut.sites.contains(site),
            Deed::Want { submit, .. } | Deed::OrderOf { submit, .. } => {
                !self.cut.deeds.contains(submit) && self.may_be_answered(*submit) && !matches!(self.users[*submit].answer, Some(Err(_)))
            }
        }
    }

    /// Have all tasks of a user's job ended? Ok(true): some wait, and rightly so.
    fn job_rests(&self, site: usize, no: u64) -> Result<bool, String> {
        let Some(core) = &self.sites[site].core else { return Err(format!("site {site} is down")) };
        let Some(job) = core.state().jobs.get(&no) else {
            // Past is what has ended.
            let open = self.sites[site].job(no, |j| j.open());
            return if open == Some(0) { Ok(false) } else { Err(format!("site {site} has no job {no}, or a past one with open tasks: {open:?}")) };
        };
        let view = core.job_view(no, false).map(|v| v.counts).unwrap_or_default();
        let mut waits = false;
        for phase in Phase::ALL.into_iter().filter(|p| !p.is_terminal() && job.count(*p) > 0) {
            let reason = view.iter().find(|c| c.phase == phase as i32).and_then(|c| c.reason.clone()).map(Reason::from);
            let tasks = job.select(&job.all(), |c| c.phase() == Some(phase));
            let cancelled = job.want.tasks(WantValue::Cancel, &tasks);
            let held = job.want.tasks(WantValue::Hold, &tasks);
            let waits_for_ever = job.spec.parsed.on_lost == OnLost::Wait;
            let lost = waits_for_ever && self.oracle.record.was_on_emptied(site, no, &tasks.subtract(&held));
            // What may have started, and nobody can say so.
            let in_doubt = waits_for_ever && reason.as_ref().is_some_and(|r| says(r, ReasonKind::EvidenceLost));
            let in_doubt = in_doubt && self.oracle.record.led_to_replaced(site, no, &tasks.subtract(&held));
            // Slots of tasks that nobody knows any more are taken until somebody declares them lost.
            let taken = self.any_lost() || self.any_orphan() || self.any_in_doubt();
            let rightly = match phase {
                _ if !cancelled.is_empty() && !lost && !in_doubt => false,
                _ if !self.could_run(site, job) => true,
                // Or its attempts are used up, and it says so.
                Phase::Held => held == tasks || in_doubt || !waits_for_ever && reason.as_ref().is_some_and(|r| says(r, ReasonKind::AttemptsUsed)),
                Phase::Queued => taken,
                Phase::Placed if taken && self.oracle.record.on_no_machine(site, no, &tasks) => true,
                _ => lost || held == tasks,
            };
            let waiting_without = matches!(phase, Phase::Queued | Phase::Held) && reason.is_none();
            if !rightly || waiting_without {
                let why = reason.map_or("no reason".to_string(), |r| r.to_string());
                return Err(format!("site {site}, job {no}: tasks {tasks} stay {}, cancelled {cancelled}, held {held}: {why}", phase.name()));
            }
            waits = true;
        }
        Ok(waits)
    }

    /// Is some task that may start once below, and not going to end?
    fn any_lost(&self) -> bool {
        self.any_below(|site, job, tasks| self.oracle.record.was_on_emptied(site, job.no, tasks), |_| true)
    }

    /// Does something run that its user's site has forgotten? Its slots are taken until it ends.
    fn any_orphan(&self) -> bool {
        self.oracle.record.processes.values().any(|p| p.alive && self.oracle.record.is_forgotten(p))
    }

    /// Is some task that may start once in doubt below? What it may use is kept for it.
    fn any_in_doubt(&self) -> bool {
        self.any_below(|site, job, tasks| self.oracle.record.led_to_replaced(site, job.no, tasks), |phase| phase == Phase::Held)
    }

    /// Is some task that may start once below, in such a phase, and of such a kind?
    fn any_below(&self, good: impl Fn(usize, &Job, &TaskSet) -> bool, phase: impl Fn(Phase) -> bool) -> bool {
        let jobs = self.sites.iter().enumerate().filter_map(|(i, s)| Some((i, s.core.as_ref()?)));
        let jobs = jobs.flat_map(|(i, c)| c.state().jobs.values().map(move |j| (i, j))).filter(|(_, j)| j.spec.parsed.on_lost == OnLost::Wait);
        let below = |j: &Job| j.select(&j.all(), |c| c.is_below() && c.phase().is_some_and(&phase));
        jobs.into_iter().any(|(i, j)| below(j).iter().any(|t| good(i, j, &TaskSet::one(t))))
    }

    /// Is there a machine for this shape within the hops that a job may pass, that takes new work of its user?
    fn could_run(&self, site: usize, job: &Job) -> bool {
        let (shape, strange) = (job.shape(), job.origin.principal == STRANGER);
        let takes = |c: usize, p: usize| !(self.oracle.is_drained(p, self.sites[c].hop.site) || strange && self.scenario.denies.contains(&c));
        let (mut reached, mut edge) = (BTreeSet::from([site]), vec![site]);
        for _ in 0..HOPS_MAX {
            let next: Vec<usize> = self
                .scenario
                .links
                .iter()
                .filter(|(c, p)| edge.contains(p) && !self.cut.sites.contains(c) && takes(*c, *p))
                .map(|(c, _)| *c)
                .collect();
            edge = next.into_iter().filter(|c| reached.insert(*c)).collect();
        }
        let fits = |slots: u32| shape.slots <= slots && shape.memory_bytes <= u64::from(slots) << 30;
        let on = |i: usize, m: &Machine| !self.cut.machines.contains(&i) && !self.oracle.is_drained(m.gateway, self.leaves[i].hop.site);
        self.scenario.machines.iter().enumerate().any(|(i, m)| on(i, m) && reached.contains(&m.gateway) && fits(m.slots))
    }

    /// Everything is over: nothing may be outstanding anywhere.
    fn leftovers(&self) -> Option<String> {
        for (i, site) in self.sites.iter().enumerate() {
            let Some(core) = &site.core else { continue };
            let state = core.state();
            if let Some((parent, link)) = state.links.iter().find(|(_, l)| !l.outbox.is_empty()) {
                return Some(format!("site {i} keeps {} events for {parent:?}", link.outbox.len()));
            }
            // Or a machine had it that is no more, and nobody can say whether it has started.
            let lost = |j: &Job, t: u32| j.spec.parsed.on_lost == OnLost::Wait && self.oracle.record.was_on_emptied(i, j.no, &TaskSet::one(t));
            let orphaned = |j: &Job, t: u32| self.oracle.record.is_orphan(i, j.no, t) || lost(j, t);
            let mut orphans = false;
            for j in state.jobs.values() {
                let open = j.select(&j.all(), |c| c.is_open());
                let rest: TaskSet = open.iter().filter(|t| !orphaned(j, *t)).collect();
                if !rest.is_empty() {
                    return Some(format!("site {i}: job {} has open tasks {rest}, and its user's has none", j.no));
                }
                let stays = |d: &DownEntry| if d.fenced.is_empty() { open.is_empty() } else { !d.fenced.iter().all(|t| lost(j, t)) };
                if let Some((number, d)) = j.downs.iter().find(|(_, d)| stays(d)) {
                    return Some(format!("site {i}: placement {number} of job {} stays: {d:?}", j.no));
                }
                orphans |= !open.is_empty() || !j.downs.is_empty();
            }
            let all: u64 = state.held_for.values().chain(state.outstanding.values()).sum();
            if all > 0 && !orphans {
                return Some(format!("site {i} counts {all} slots as taken, and nothing runs: {:?}, {:?}", state.held_for, state.outstanding));
            }
        }
        for (i, leaf) in self.leaves.iter().enumerate().filter(|(_, l)| l.core.is_some()) {
            let open = |s: &intergrid_agent::state::State| -> Vec<u64> {
                let stays = |(n, p): (&u64, &intergrid_agent::state::Placement)| {
                    p.open.iter().any(|t| !self.oracle.record.leaf_orphan(i, *n, t)).then_some(*n)
                };
                s.placements.iter().filter_map(stays).collect()
            };
            match leaf.spool() {
                Ok(s) if open(&s).is_empty() && (leaf.liar.is_some() || s.events.len() <= 1) => {}
                Ok(s) => return Some(format!("leaf {i} keeps placements {:?} and {} events", open(&s), s.events.len())),
                Err(why) => return Some(format!("leaf {i}: {why}")),
            }
        }
        let runs = self.oracle.record.processes.iter().find(|(_, p)| p.alive && !self.oracle.record.is_forgotten(p));
        runs.map(|(uid, p)| format!("process {uid} of {:?} runs on leaf {}", p.task, p.leaf))
    }

    /// Every end that a machine made durable is in the history of its job's root, with its usage.
    fn missing_usage(&self) -> Option<String> {
        let (o, resynced) = (&self.oracle.record, &self.oracle.resynced);
        let emptied = |p: &Process| o.emptied.get(&p.leaf).is_some_and(|(at, ..)| *at >= p.since_ms);
        let excused = |p: &Process| resynced.contains(&p.task) || emptied(p) || o.may_be_forgotten(p);
        let missing = o.processes.iter().find(|(uid, p)| p.evident && !o.mirrors.iter().any(|m| m.counted.contains(uid)) && !excused(p));
        missing.map(|(uid, p)| format!("usage of process {uid}, {:?} on leaf {}, is nowhere in its root's history", p.task, p.leaf))
    }
}

fn says(reason: &Reason, kind: ReasonKind) -> bool {
    reason.kind == kind || reason.because.iter().any(|r| says(r, kind))
}
