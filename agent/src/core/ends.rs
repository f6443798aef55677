//! Ends of tasks, gathered between two batches: many that are alike become one event with a list.

use std::collections::BTreeMap;

use intergrid_proto::convert::tasks_out;
use intergrid_proto::link::{Attempts, Ended, Event, EventKind, Hop, fold_equal};
use intergrid_proto::units::format_duration;
use intergrid_proto::{Exit, Phase, Reason, ReasonKind, TaskSet};

use super::{Core, Key, Report, Stop};
use crate::limits::TASKS_PER_EVENT_MAX;
use crate::spool::record::{Over, What};

/// What the tasks of one event have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    number: u64,
    job: u64,
    phase: Phase,
    reason: Option<(ReasonKind, String, String)>,
    attempts: u32,
    measured: &'static str,
    lost: bool,
    has_wall: bool,
    has_cpu: bool,
}

/// A task's own part.
#[derive(Clone, Copy, Debug)]
struct End {
    exit: u32,
    wall_ms: u64,
    cpu_us: u64,
    peak_bytes: u64,
    at_ms: u64,
}

/// Ends that wait for the next batch.
#[derive(Debug, Default)]
pub(super) struct Ends(BTreeMap<Class, BTreeMap<u32, End>>);

impl Ends {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Report {
    /// Of a task whose process is gone and was not ours to wait for.
    pub fn unseen() -> Report {
        let (files, missing) = (Vec::new(), Vec::new());
        Report { exit: Exit::Unknown, wall_ms: None, cpu_us: None, peak: None, oom: false, files, missing, ended_by: None, by_itself: false }
    }
}

/// The phase and reason of an attempt that started, from the evidence.
fn verdict(stop: Option<Stop>, r: &Report, memory_bytes: u64, time_ms: Option<u64>) -> (Phase, Option<Reason>) {
    use ReasonKind as K;
    let failed = |kind, text: String| (Phase::Failed, Some(Reason::new(kind, text)));
    let human = intergrid_proto::share::human_bytes;
    // When it ended nobody saw, and it was not stopped: what counts is how.
    match stop.filter(|s| *s != Stop::Time || !r.by_itself) {
        Some(Stop::Cancel) => {
            let text = if r.by_itself { "it ended by itself before the cancel reached it" } else { "stopped while it ran" };
            return (Phase::Cancelled, Some(Reason::new(K::CancelledByUser, text)));
        }
        Some(Stop::Fenced) => return (Phase::Cancelled, Some(Reason::new(K::Fenced, "the attempt no longer counts; it was stopped"))),
        Some(Stop::Time) => return failed(K::TimeLimit, format!("it ran longer than its limit of {}", format_duration(time_ms.unwrap_or_default()))),
        Some(Stop::Memory(used)) => return failed(K::MemoryLimit, format!("it used {}, its limit is {}", human(used), human(memory_bytes))),
        // A payload that got over the loss of one of its processes has ended well.
        Some(Stop::Hold | Stop::Return) | None if r.ended_by.is_some() => {
            let (kind, text) = r.ended_by.clone().unwrap_or((K::ExitUnknown, String::new()));
            return failed(kind, text);
        }
        Some(Stop::Hold | Stop::Return) | None if r.oom && r.exit != Exit::Code(0) => {
            return failed(K::MemoryLimit, format!("the kernel stopped it at its limit of {}", human(memory_bytes)));
        }
        Some(Stop::Hold | Stop::Return) | None => {}
    }
    match r.exit {
        Exit::Code(0) => match r.missing.first() {
            None => (Phase::Done, None),
            Some(_) => failed(K::StageOutFailed, format!("it did not make its declared output {}", r.missing.join(", "))),
        },
        Exit::Code(code) => failed(K::ExitNonZero, format!("exit code {code}")),
        Exit::Signal(signal) => failed(K::ExitSignal, format!("killed by signal {signal}")),
        Exit::Unknown | Exit::NotStarted => failed(K::ExitUnknown, "its process is gone; the agent was not there to see how it ended".into()),
    }
}

/// One task's end as the exit record holds it: `age_ms` is the Unix time of the end.
pub(super) fn ended_of(stop: Option<Stop>, r: &Report, plan: &crate::plan::Plan, attempts: u32, at_ms: u64) -> Ended {
    let (phase, reason) = verdict(stop, r, plan.spec.shape.memory_bytes, plan.spec.time_limit_ms);
    let lost = reason.as_ref().is_some_and(|r| r.kind == ReasonKind::ExitUnknown);
    Ended {
        phase,
        exit: vec![r.exit.to_number()],
        reason,
        attempts,
        wall_ms: r.wall_ms.into_iter().collect(),
        cpu_us: r.cpu_us.into_iter().collect(),
        peak_bytes: r.peak.iter().map(|(bytes, _)| *bytes).collect(),
        age_ms: vec![at_ms],
        measured: r.peak.map_or("", |(_, how)| how).to_string(),
        lost,
        ..Ended::not_started(phase, Reason::new(ReasonKind::ExitUnknown, ""), attempts)
    }
}

fn measured(word: &str) -> &'static str {
    ["cgroup", "sampled", "largest-process"].into_iter().find(|w| *w == word).unwrap_or("")
}

impl Core {
    /// A task has ended: as an event with others of the next batch.
    pub(super) fn end(&mut self, (number, task): Key, job: u64, ended: &Ended) {
        let reason = ended.reason.as_ref().map(|r| (r.kind, r.text.clone(), r.remedy.clone()));
        let class = Class {
            number,
            job,
            phase: ended.phase,
            reason,
            attempts: ended.attempts,
            measured: measured(&ended.measured),
            lost: ended.lost,
            has_wall: !ended.wall_ms.is_empty(),
            has_cpu: !ended.cpu_us.is_empty(),
        };
        let first = |list: &[u64]| list.first().copied().unwrap_or_default();
        let end = End {
            exit: ended.exit.first().copied().unwrap_or(Exit::Unknown.to_number()),
            wall_ms: first(&ended.wall_ms),
            cpu_us: first(&ended.cpu_us),
            peak_bytes: first(&ended.peak_bytes),
            at_ms: ended.age_ms.first().copied().unwrap_or(self.now),
        };
        self.ends.0.entry(class).or_default().insert(task, end);
        let cost = self.opens.get(&number).map_or(0, |o| o.cost);
        self.outstanding = self.outstanding.saturating_sub(cost);
        self.link.ended_slots += cost;
        self.link.advert_dirty = true;
    }

    /// The ends gathered so far, as events.
    pub(super) fn flush_ends(&mut self) {
        let hop: Vec<Hop> = vec![self.me.clone()];
        for (class, ends) in std::mem::take(&mut self.ends.0) {
            let mut ends = ends.into_iter().peekable();
            while ends.peek().is_some() {
                let part: Vec<(u32, End)> = ends.by_ref().take(TASKS_PER_EVENT_MAX).collect();
                let list = |has: bool, f: fn(&End) -> u64| fold_equal(part.iter().filter(|_| has).map(|(_, e)| f(e)).collect());
                let ended = Ended {
                    phase: class.phase,
                    exit: fold_equal(part.iter().map(|(_, e)| e.exit).collect()),
                    reason: class.reason.clone().map(|(kind, text, remedy)| Reason::new(kind, text).remedy(remedy)),
                    attempts: class.attempts,
                    route: hop.clone(),
                    wall_ms: list(class.has_wall, |e| e.wall_ms),
                    cpu_us: list(class.has_cpu, |e| e.cpu_us),
                    peak_bytes: list(!class.measured.is_empty(), |e| e.peak_bytes),
                    age_ms: list(true, |e| e.at_ms),
                    measured: class.measured.to_string(),
                    lost: class.lost,
                    stale: false,
                    cost_micro: Vec::new(),
                };
                let tasks: TaskSet = part.iter().map(|(t, _)| *t).collect();
                for name in self.names(class.number, &tasks) {
                    let part = ended.select(&tasks, &name.tasks);
                    let (number, job, tasks) = (name.number, name.job, name.tasks);
                    if name.is_orphan {
                        let over = Over { number, tasks: Some(tasks_out(&tasks)), ended: Some(part.into()), ..Over::default() };
                        self.record(What::Over(over));
                    } else {
                        self.event(Event { of: Attempts { number, job, tasks }, what: EventKind::Ended(part) });
                    }
                }
            }
            self.close(class.number);
        }
    }

    /// Tasks that were never started end without an attempt.
    pub(super) fn end_unstarted(&mut self, number: u64, tasks: &TaskSet, phase: Phase, reason: &Reason) {
        let Some((job, attempts)) = self.state.placements.get(&number).map(|p| (p.job, p.attempts)) else { return };
        for task in tasks.iter() {
            let ended = Ended { age_ms: vec![self.now], ..Ended::not_started(phase, reason.clone(), attempts) };
            self.end((number, task), job, &ended);
        }
    }

    /// Tasks that were never started go back.
    pub(super) fn give_back(&mut self, number: u64, tasks: TaskSet, reason: Reason) {
        let cost = self.opens.get(&number).map_or(0, |o| o.cost);
        self.outstanding = self.outstanding.saturating_sub(cost * tasks.len());
        for name in self.names(number, &tasks).into_iter().filter(|n| !n.is_orphan) {
            let of = Attempts { number: name.number, job: name.job, tasks: name.tasks };
            self.event(Event { of, what: EventKind::Returned(reason.clone()) });
        }
        self.close(number);
        self.link.advert_dirty = true;
    }

    /// Forget what is volatile of a placement that has nothing open any more.
    fn close(&mut self, number: u64) {
        if self.state.placements.contains_key(&number) {
            return;
        }
        self.runnable.remove(&number);
        let Some(open) = self.opens.remove(&number) else { return };
        let hash = open.plan.hash;
        drop(open);
        if self.opens.values().all(|o| o.plan.hash != hash) {
            self.plans.remove(&hash);
        }
    }
}
