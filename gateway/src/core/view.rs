//! What people are told: pure reads of the core. A waiting phase always comes with its reason: the one constructor of a count asks for it.

use std::collections::{BTreeMap, BTreeSet};

use intergrid_proto::convert::tasks_out;
use intergrid_proto::limits::SHOW_RANGES_MAX;
use intergrid_proto::link::{Ended, Hop, Kind};
use intergrid_proto::share::totals;
use intergrid_proto::{Exit, JobNo, Phase, Reason, ReasonKind, SiteId, TaskSet, pb};

use super::Core;
use super::limits::FAILURES_MAX;
use super::state::{Cell, Job};

impl Core {
    /// Users' jobs in memory that a name may mean, at most two: an id, a prefix of one, or `last`. `all`: not only the caller's.
    pub fn find(&self, id: &str, caller: SiteId, all: bool) -> Vec<u64> {
        let jobs = || self.state.jobs.values().map(|j| &**j);
        if id == "last" {
            return jobs().rev().find(|j| is_of(j, caller, false)).map(|j| j.no).into_iter().collect();
        }
        if let Some(j) = JobNo::parse(id).and_then(|n| self.state.jobs.get(&n.0)).filter(|j| is_of(j, caller, all)) {
            return vec![j.no];
        }
        jobs().filter(|j| is_of(j, caller, all) && !id.is_empty() && JobNo(j.no).id().starts_with(id)).map(|j| j.no).take(2).collect()
    }

    /// Find the job that a parent placed, and under which of its incarnations it is looked for.
    pub fn find_placed(&self, parent: SiteId, job: u64) -> (Option<u64>, u64) {
        let incarnation = self.state.links.get(&parent).map_or(0, |l| l.peer_incarnation);
        (self.state.jobs_of(parent, incarnation, job).first().copied(), incarnation)
    }

    /// So many jobs of a caller (`all`: of everybody) in memory below this number, newest first.
    pub fn list(&self, caller: SiteId, all: bool, below: u64, limit: usize) -> Vec<(u64, pb::JobView)> {
        let found = self.state.jobs.range(..below).map(|(_, j)| j).rev().filter(|j| is_of(j, caller, all)).take(limit);
        found.map(|j| (j.no, self.view(j, false))).collect()
    }

    /// Is this placement the current one of this task, on this child?
    pub fn is_current(&self, child: SiteId, job: u64, number: u64, task: u32) -> bool {
        let ours = self.state.placed_on.get(&child).and_then(|p| p.get(&number)) == Some(&job);
        ours && self.state.jobs.get(&job).is_some_and(|j| j.cell(task).down == number && j.cell(task).is_below())
    }

    /// Files that a task brings back, where this placement is its current one.
    pub fn outputs_of(&self, child: SiteId, job: u64, number: u64, task: u32) -> Option<Vec<String>> {
        let j = self.state.jobs.get(&job).filter(|_| self.is_current(child, job, number, task))?;
        Some(j.spec.parsed.outputs.iter().map(|o| intergrid_proto::spec::substitute(o, task)).collect())
    }

    /// What a child is.
    pub fn child_kind(&self, child: SiteId) -> Kind {
        self.child_hop(child).kind
    }

    /// Is this parent's link up?
    pub fn has_parent(&self, parent: SiteId) -> bool {
        self.parents.get(&parent).is_some_and(|p| p.attached)
    }

    /// How many tasks are in each phase, and why; of these alone, with the reasons of all. What is below a child that is away counts by itself.
    pub fn counts(&self, j: &Job, only: Option<&TaskSet>) -> Vec<pb::PhaseCount> {
        let silent = self.silent(j);
        let mut found = BTreeMap::<(Phase, Option<SiteId>), u64>::new();
        match only {
            None if silent.is_empty() => found.extend(Phase::ALL.map(|p| ((p, None), j.count(p)))),
            _ => j.each_run(only.unwrap_or(&j.all()), |range, c| {
                if let Some(phase) = c.phase() {
                    let child = silent_at(&silent, c).filter(|_| phase != Phase::Held);
                    *found.entry((phase, child)).or_default() += range.len() as u64;
                }
            }),
        }
        found
            .into_iter()
            .filter(|(_, tasks)| *tasks > 0)
            .map(|((phase, child), tasks)| {
                let reason = match phase {
                    Phase::Queued => Some(self.why_waiting(j.no)),
                    Phase::Held => Some(self.why_held(j.no)),
                    Phase::Failed => why_failed(j),
                    Phase::Placed | Phase::StagingIn | Phase::Running | Phase::Suspended | Phase::StagingOut => {
                        child.and_then(|c| self.why_silent(j, c))
                    }
                    Phase::Done | Phase::Cancelled => None,
                };
                pb::PhaseCount { phase: phase as i32, tasks, reason: reason.map(Into::into) }
            })
            .collect()
    }

    /// Placements of a job on children that can't be reached.
    fn silent(&self, j: &Job) -> BTreeMap<u64, SiteId> {
        let away = |child: &SiteId| !self.children.get(child).is_some_and(|c| c.attached);
        j.downs.iter().filter(|(_, d)| d.open > 0 && away(&d.child)).map(|(n, d)| (*n, d.child)).collect()
    }

    /// Tasks are below a child that can't be reached: their phase is the last known.
    fn why_silent(&self, j: &Job, child: SiteId) -> Option<Reason> {
        let away = self.away(child, Some(j.no))?;
        let text = format!("{}: {}; {}; the phase is the last known", away.name, away.why, away.next());
        Some(Reason::new(ReasonKind::ContactLost, text).aged(away.for_ms.unwrap_or(0)))
    }

    /// One job in memory; None: there is none.
    pub fn job_view(&self, job: u64, whole: bool) -> Option<pb::JobView> {
        self.state.jobs.get(&job).map(|j| self.view(j, whole))
    }

    /// One job, in memory or past.
    pub fn view(&self, j: &Job, whole: bool) -> pb::JobView {
        let open = j.open();
        let mut sites: BTreeMap<SiteId, (u64, u64)> = j.ended_at.iter().map(|(s, n)| (*s, (0, *n))).collect();
        for d in j.downs.values() {
            sites.entry(d.child).or_default().0 += d.open;
        }
        sites.retain(|_, (active, ended)| *active + *ended > 0);
        pb::JobView {
            id: JobNo(j.no).id(),
            name: j.spec.parsed.name.clone(),
            owner: j.owner_name.clone(),
            tasks: j.size,
            age_ms: self.now.unix_ms.saturating_sub(j.created_ms),
            counts: self.counts(j, None),
            sites: sites
                .into_iter()
                .map(|(s, (active, ended))| pb::SiteCount { site: s.0.to_vec(), name: self.child_name(s), active, ended })
                .collect(),
            key: j.key.to_string(),
            spec_hash: j.spec_hash.0.to_vec(),
            spec: if whole { j.spec.bytes.clone() } else { Vec::new() },
            ended_age_ms: if open == 0 { self.now.unix_ms.saturating_sub(j.ended_ms).max(1) } else { 0 },
            ranges: if whole { ranges(j) } else { Vec::new() },
            want: j
                .want
                .ranges
                .iter()
                .max_by_key(|(_, t)| t.len())
                .filter(|(_, t)| t.len() * 2 > u64::from(j.size))
                .map_or(0, |(v, _)| pb::WantValue::from(*v).into()),
            tasks_at_once: j.tasks_at_once().unwrap_or(0),
            cost: self.cost_of(j),
        }
    }

    /// Why tasks of a job wait or failed, as far as this site knows; and the children that know more.
    pub fn explanation(&self, j: &Job, tasks: Option<&TaskSet>) -> (pb::Explanation, Vec<Hop>) {
        let job = j.no;
        let all = j.all();
        let concerned = tasks.unwrap_or(&all);
        let mut reasons = Vec::new();
        let any = |p: Phase| !j.select(concerned, |c| c.phase() == Some(p)).is_empty();
        if any(Phase::Queued) {
            reasons.push(self.why_waiting(job));
        }
        if any(Phase::Held) {
            reasons.push(self.why_held(job));
        }
        if any(Phase::Failed) {
            reasons.extend(why_failed(j));
        }
        reasons.extend(self.why_not_started(j, concerned));
        let (silent, mut lost) = (self.silent(j), BTreeSet::new());
        if !silent.is_empty() {
            j.each_run(concerned, |_, c| lost.extend(silent_at(&silent, c)));
        }
        reasons.extend(lost.into_iter().filter_map(|child| self.why_silent(j, child)));
        if let Some((at, r)) = &j.last_return
            && j.open() > 0
        {
            let text = format!("tasks came back here last with: {r}");
            let ms = self.now.mono_ms.saturating_sub(*at);
            reasons.push(Reason::new(r.kind, text).aged(ms).because(r.clone().later(ms).because));
        }
        let below = j.downs.values().filter(|d| d.open > 0).map(|d| d.child);
        let failed_at = j.ended_at.iter().filter(|(_, n)| **n > 0 && j.count(Phase::Failed) > 0).map(|(s, _)| *s);
        let mut children: Vec<SiteId> = below.chain(failed_at).collect();
        children.sort();
        children.dedup();
        children.truncate(intergrid_proto::limits::SHARES_MAX);
        let explanation = pb::Explanation {
            site: Some(self.me.clone().into()),
            counts: self.counts(j, tasks),
            reasons: reasons.into_iter().map(Into::into).collect(),
            ..Default::default()
        };
        (explanation, children.into_iter().map(|c| self.child_hop(c)).collect())
    }

    /// Tasks are at machines that have not said to have started them: where, and how many.
    fn why_not_started(&self, j: &Job, concerned: &TaskSet) -> Vec<Reason> {
        let mut at: BTreeMap<SiteId, u64> = BTreeMap::new();
        j.each_run(concerned, |range, c| {
            if let Some(d) = j.downs.get(&c.down).filter(|_| c.phase() == Some(Phase::Placed)) {
                *at.entry(d.child).or_default() += range.len() as u64;
            }
        });
        let of_machine = |(child, tasks): (SiteId, u64)| {
            let c = self.children.get(&child).filter(|c| c.attached && c.hop.kind == Kind::Agent)?;
            let shares = || c.shares.iter().map(|(_, s)| s).filter(|s| s.is_machine());
            let slots: u64 = shares().map(|s| s.slots_total).sum();
            // That a task has started is known here a moment later.
            let tasks = tasks.min(shares().map(|s| s.waiting).sum());
            let wait = if tasks == 1 { "task waits" } else { "tasks wait" };
            let text = format!("{tasks} {wait} at {} until slots come free there: it has {slots}", c.hop.name);
            (tasks > 0).then(|| Reason::new(ReasonKind::AllBusy, text))
        };
        at.into_iter().filter_map(of_machine).take(FAILURES_MAX).collect()
    }

    /// Names of children that something is placed on.
    pub fn busy_children(&self) -> BTreeSet<String> {
        let placed = |id: &SiteId| self.state.placed_on.get(id).is_some_and(|p| !p.is_empty());
        self.children.iter().filter(|(id, _)| placed(id)).map(|(_, c)| c.hop.name.clone()).collect()
    }

    /// This site, and its children with how they are: asked for more where they are attached. Agents are told in full from what they last said.
    pub fn host(&self) -> (pb::Host, Vec<(SiteId, pb::Host)>) {
        let (slots_total, _) = totals(self.children.values().flat_map(|c| c.shares.iter().map(|(_, s)| s)));
        let mut me = pb::Host { site: Some(self.me.clone().into()), version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
        let mut children = Vec::new();
        let (mut slots_free, mut not_started) = (0, 0);
        for (id, c) in &self.children {
            let used = |key: &std::sync::Arc<str>| self.state.outstanding.get(&(*id, key.clone())).copied().unwrap_or(0);
            let agent = c.hop.kind == Kind::Agent;
            let free: u64 = if self.is_closed(*id) {
                0
            } else if agent {
                c.shares.iter().map(|(k, s)| s.free(used(k))).sum()
            } else {
                totals(c.shares.iter().map(|(_, s)| s)).1
            };
            let (total, memory, gpus) = (
                totals(c.shares.iter().map(|(_, s)| s)).0,
                c.shares.iter().map(|(_, s)| s.machine_memory_bytes.saturating_mul(s.machines.into())).fold(0, u64::saturating_add),
                c.shares.iter().map(|(_, s)| s.gpus_total).fold(0, u64::saturating_add),
            );
            let age_ms = self.now.mono_ms.saturating_sub(if c.attached { c.heard_ms } else { c.lost_ms });
            slots_free += free;
            me.memory_bytes = me.memory_bytes.saturating_add(memory);
            me.gpus = me.gpus.saturating_add(gpus);
            let unreachable = self.away(*id, None).map_or_else(String::new, |a| a.text());
            let placed: u64 =
                self.state.placed_on.get(id).into_iter().flatten().filter_map(|(n, j)| self.state.jobs.get(j)?.downs.get(n)).map(|d| d.open).sum();
            // Of a machine's own it says how many it has not started. What others ask, the site answers that they ask.
            let waiting = if agent { c.shares.iter().filter(|(_, s)| s.is_machine()).map(|(_, s)| s.waiting).sum::<u64>().min(placed) } else { 0 };
            not_started += waiting;
            let host = pb::Host {
                site: Some(c.hop.clone().into()),
                slots_total: total,
                slots_free: free,
                memory_bytes: memory,
                gpus,
                running: placed - waiting,
                waiting,
                shares: c.shares.iter().map(|(_, s)| s.clone().into()).collect(),
                unreachable,
                age_ms,
                draining: self.host_draining(*id).or_else(|| self.own_word(c)),
                ..Default::default()
            };
            children.push((*id, host));
        }
        me.slots_total =
            if self.children.values().all(|c| c.hop.kind == Kind::Agent) { children.iter().map(|(_, h)| h.slots_total).sum() } else { slots_total };
        me.slots_free = slots_free.min(me.slots_total);
        for more in self.rentable() {
            me.slots_total += more.share.slots_total;
            me.slots_free += more.share.slots_free;
            me.gpus = me.gpus.saturating_add(more.share.gpus_total);
            me.memory_bytes = me.memory_bytes.saturating_add(more.share.machine_memory_bytes.saturating_mul(more.share.machines.into()));
            me.shares.push(more.share.into());
        }
        me.running = self.state.jobs.values().map(|j| j.downs.values().map(|d| d.open).sum::<u64>()).sum::<u64>().saturating_sub(not_started);
        me.waiting = not_started + self.state.waiting.values().flatten().filter_map(|n| self.state.jobs.get(n)).map(|j| j.queued.len()).sum::<u64>();
        me.done = self.state.ended;
        me.draining = self.host_draining(self.me.site).or_else(|| self.host_room());
        (me, children)
    }
}

/// May this caller see it? His own, as a user, or all.
pub fn is_of(j: &Job, caller: SiteId, all: bool) -> bool {
    all || (j.parent.is_none() && j.owner == caller)
}

/// The child that can't be reached which has this task.
fn silent_at(silent: &BTreeMap<u64, SiteId>, c: Cell) -> Option<SiteId> {
    silent.get(&c.down).filter(|_| c.is_below()).copied()
}

/// Why tasks of a job failed, and how many of each. What failed before the job was loaded is known by its exit alone.
pub fn failures(j: &Job) -> Vec<(Reason, u64)> {
    let mut known = j.failures.clone();
    let total = j.count(Phase::Failed);
    let rest = total.saturating_sub(known.iter().map(|(_, n)| n).sum());
    if rest > 0 && known.is_empty() {
        known = by_exit(j, &j.select(&j.all(), |c| c.phase() == Some(Phase::Failed)));
    } else if rest > 0 {
        known.push((Reason::new(ReasonKind::ExitUnknown, "failed earlier").remedy("see `grid history`"), rest));
    }
    known
}

/// Tasks that failed, known by their exits alone.
fn by_exit(j: &Job, failed: &TaskSet) -> Vec<(Reason, u64)> {
    let mut counts: BTreeMap<u16, u64> = Default::default();
    failed.iter().for_each(|t| *counts.entry(j.cell(t).exit).or_default() += 1);
    counts.into_iter().map(|(exit, n)| (of_exit(exit), n)).take(FAILURES_MAX).collect()
}

/// These tasks have ended just now: count why they failed, beside those that failed before the job was loaded.
pub(super) fn note_failed(j: &mut Job, tasks: &TaskSet, ended: &Ended) {
    let Some(reason) = ended.reason.as_ref().filter(|_| ended.phase == Phase::Failed) else { return };
    if j.failures.is_empty() && j.count(Phase::Failed) > tasks.len() {
        let earlier = j.select(&j.all(), |c| c.phase() == Some(Phase::Failed)).subtract(tasks);
        j.failures = by_exit(j, &earlier);
    }
    // Who is known by such an exit alone has failed for the same reason, which now has its words.
    let alone = one_exit(&ended.exit).map(of_exit).filter(|r| r.kind == reason.kind);
    let is_same = |r: &Reason| (r.kind, &r.text) == (reason.kind, &reason.text) || alone.as_ref() == Some(r);
    let known = j.failures.iter().position(|(r, _)| is_same(r));
    match known.or((j.failures.len() == FAILURES_MAX).then_some(FAILURES_MAX - 1)) {
        Some(k) => {
            j.failures[k].1 += tasks.len();
            if known.is_some() && j.failures[k].0.text != reason.text {
                j.failures[k].0 = reason.clone();
            }
        }
        None => j.failures.push((reason.clone(), tasks.len())),
    }
}

/// The exit that all of them have.
pub(super) fn one_exit(exits: &[u32]) -> Option<u16> {
    let first = exits.first().filter(|first| exits.iter().all(|e| e == *first))?;
    u16::try_from(*first).ok()
}

/// Why tasks of a job failed, the most frequent first.
fn why_failed(j: &Job) -> Option<Reason> {
    let (mut known, total) = (failures(j), j.count(Phase::Failed));
    known.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    match known.len() {
        0 => None,
        1 => known.pop().map(|(r, _)| r),
        _ => {
            let because: Vec<Reason> = known.into_iter().map(|(r, n)| Reason { text: format!("{n} of {total}: {}", r.text), ..r }).collect();
            Some(Reason::new(because[0].kind, format!("{total} tasks failed, for {} reasons", because.len())).because(because))
        }
    }
}

/// Why, as far as an exit says so.
pub(super) fn of_exit(exit: u16) -> Reason {
    let exit = Exit::from_number(exit.into());
    let kind = match exit {
        Exit::Code(_) => ReasonKind::ExitNonZero,
        Exit::Signal(_) => ReasonKind::ExitSignal,
        Exit::NotStarted => ReasonKind::StartFailed,
        Exit::Unknown => ReasonKind::ExitUnknown,
    };
    Reason::new(kind, exit.to_string())
}

/// Shown as one.
fn alike(a: &Cell, b: &Cell) -> bool {
    (a.phase, a.attempts, a.exit) == (b.phase, b.attempts, b.exit)
}

/// Phases by range; a job with more ranges than `SHOW_RANGES_MAX` shows its first ones.
fn ranges(j: &Job) -> Vec<pb::TaskRange> {
    let mut out: Vec<(std::ops::Range<u32>, Cell)> = Vec::new();
    j.each_run(&j.all(), |range, c| {
        let full = out.len() == SHOW_RANGES_MAX;
        match out.last_mut() {
            Some((last, of)) if last.end == range.start && alike(of, &c) => last.end = range.end,
            _ if full => {}
            _ => out.push((range, c)),
        }
    });
    out.into_iter()
        .filter(|(_, c)| c.phase != 0)
        .map(|(set, c)| pb::TaskRange {
            tasks: Some(tasks_out(&TaskSet::range(set))),
            phase: c.phase.into(),
            attempts: c.attempts.into(),
            exit: c.phase().filter(|p| p.is_terminal()).map(|_| c.exit.into()).into_iter().collect(),
        })
        .collect()
}
