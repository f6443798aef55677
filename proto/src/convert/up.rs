//! What a child says, from the wire and to it: reasons, ends, events, shares.

use super::{attempt_tasks, attempts, bad, few, hops, label, phase_in, printable, site, tasks_out};
use crate::error::{Refusal, RefusalKind, Result};
use crate::ids::{BlobHash, SiteId};
use crate::limits::*;
use crate::link::*;
use crate::pb;
use crate::phase::{Exit, Phase};
use crate::reason::{Audience, Reason, ReasonKind};
use crate::share::Share;

/// Processor time of one task.
const CPU_US_MAX: u64 = TIME_MS_MAX * 1_000 * 1_024;

impl From<Reason> for pb::Reason {
    fn from(r: Reason) -> Self {
        let (site, site_name) = r.site.map_or((Vec::new(), String::new()), |(id, name)| (id.0.to_vec(), name));
        pb::Reason {
            kind: r.kind.number(),
            text: r.text,
            remedy: r.remedy,
            age_ms: r.age_ms,
            audience: match r.audience {
                Audience::User => pb::Audience::User.into(),
                Audience::Operator => pb::Audience::Operator.into(),
            },
            site,
            site_name,
            because: r.because.into_iter().map(Into::into).collect(),
        }
    }
}

/// Never refused: evidence is cut to its bounds rather than lost.
impl From<pb::Reason> for Reason {
    fn from(r: pb::Reason) -> Self {
        fn cut(mut s: String) -> String {
            if s.len() > REASON_TEXT_BYTES_MAX {
                let mut end = REASON_TEXT_BYTES_MAX;
                while !s.is_char_boundary(end) {
                    end -= 1;
                }
                s.truncate(end);
            }
            printable(s)
        }
        fn convert(r: pb::Reason, depth: usize) -> Reason {
            let because = if depth >= REASON_DEPTH_MAX { Vec::new() } else { r.because };
            Reason {
                kind: ReasonKind::from_number(r.kind),
                text: cut(r.text),
                remedy: cut(r.remedy),
                age_ms: r.age_ms.min(TIME_MS_MAX),
                audience: if r.audience == pb::Audience::User as i32 { Audience::User } else { Audience::Operator },
                site: SiteId::from_slice(&r.site).map(|id| (id, cut(r.site_name))),
                because: because.into_iter().take(SHARES_MAX).map(|r| convert(r, depth + 1)).collect(),
            }
        }
        convert(r, 0).bounded()
    }
}

impl From<Ended> for pb::Ended {
    fn from(e: Ended) -> Self {
        pb::Ended {
            phase: e.phase as i32,
            exit: e.exit,
            reason: e.reason.map(Into::into),
            attempts: e.attempts,
            route: e.route.into_iter().map(Into::into).collect(),
            wall_ms: e.wall_ms,
            cpu_us: e.cpu_us,
            peak_bytes: e.peak_bytes,
            age_ms: e.age_ms,
            measured: e.measured,
            lost: e.lost,
            stale: e.stale,
            cost_micro: e.cost_micro,
        }
    }
}

/// An end, which was said of `tasks` tasks: a list of another length is refused.
pub fn ended_in(e: pb::Ended, tasks: u64) -> Result<Ended> {
    let phase = phase_in(e.phase)?;
    if !phase.is_terminal() {
        return Err(bad("an end in a phase that is not terminal"));
    }
    let right = |n: usize| n <= 1 || n as u64 == tasks;
    if ![e.exit.len(), e.wall_ms.len(), e.cpu_us.len(), e.peak_bytes.len(), e.age_ms.len(), e.cost_micro.len()].into_iter().all(right) {
        return Err(bad("an end whose lists do not match its tasks"));
    }
    let well = e.exit.iter().all(|x| *x == Exit::Code(0).to_number()) && !e.exit.is_empty();
    if (phase == Phase::Done) != (well && e.reason.is_none() && phase == Phase::Done) {
        return Err(bad("an end called done without exit code 0"));
    }
    Ok(Ended {
        phase,
        // What is no exit is unknown: cut to 16 bits it could be taken for another.
        exit: e.exit.into_iter().map(|x| Exit::from_number(x).to_number()).collect(),
        reason: e.reason.map(Into::into),
        attempts: e.attempts.min(u8::MAX.into()),
        route: hops(e.route, HOPS_MAX as usize + 2)?,
        wall_ms: e.wall_ms.into_iter().map(|a| a.min(TIME_MS_MAX)).collect(),
        cpu_us: e.cpu_us.into_iter().map(|a| a.min(CPU_US_MAX)).collect(),
        peak_bytes: e.peak_bytes.into_iter().map(|a| a.min(MEMORY_PER_TASK_BYTES_MAX)).collect(),
        age_ms: e.age_ms.into_iter().map(|a| a.min(TIME_MS_MAX)).collect(),
        measured: label(e.measured, "measured")?,
        lost: e.lost,
        stale: e.stale,
        cost_micro: e.cost_micro,
    })
}

impl From<Event> for pb::Event {
    fn from(e: Event) -> Self {
        use pb::event::What;
        let what = match e.what {
            EventKind::Accepted => What::Accepted(pb::Accepted {}),
            EventKind::Returned(r) => What::Returned(pb::Returned { reason: Some(r.into()) }),
            EventKind::Ended(e) => What::Ended(e.into()),
            EventKind::Held(r) => What::Held(pb::Held { reason: Some(r.into()) }),
            EventKind::Released => What::Released(pb::Released {}),
            EventKind::WantStored { version } => What::WantStored(pb::WantStored { version }),
        };
        pb::Event { number: e.of.number, job: e.of.job, tasks: Some(tasks_out(&e.of.tasks)), what: Some(what) }
    }
}

impl TryFrom<pb::Event> for Event {
    type Error = Refusal;
    fn try_from(e: pb::Event) -> Result<Self> {
        use pb::event::What;
        let of = Attempts { number: e.number, job: e.job, tasks: attempt_tasks(e.tasks)? };
        let reason = |r: Option<pb::Reason>| r.map(Reason::from).ok_or_else(|| bad("an event without its reason"));
        let what = match e.what.ok_or_else(|| bad("an event of a later version"))? {
            What::Accepted(_) => EventKind::Accepted,
            What::Returned(r) => EventKind::Returned(reason(r.reason)?),
            What::Ended(x) => EventKind::Ended(ended_in(x, of.tasks.len())?),
            What::Held(h) => EventKind::Held(reason(h.reason)?),
            What::Released(_) => EventKind::Released,
            What::WantStored(w) => EventKind::WantStored { version: w.version },
        };
        Ok(Event { of, what })
    }
}

/// In words that a terminal can show, and not too many.
fn words(text: String) -> String {
    let mut left = NAME_BYTES_MAX * 4;
    let fits = |c: &char| {
        left = left.saturating_sub(c.len_utf8());
        left > 0
    };
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take_while(fits).collect()
}

impl From<Share> for pb::Share {
    fn from(s: Share) -> Self {
        pb::Share {
            key: s.key,
            origin: s.origin.0.to_vec(),
            origin_name: s.origin_name,
            path: s.path.iter().map(|p| p.0.to_vec()).collect(),
            fit_version: s.fit_version,
            machine_slots: s.machine_slots,
            machine_memory_bytes: s.machine_memory_bytes,
            architecture: s.architecture,
            slots_total: s.slots_total,
            machines: s.machines,
            slots_free: s.slots_free,
            largest_free: s.largest_free,
            window: s.window,
            credit_ms: s.credit_ms,
            waiting: s.waiting,
            price_micro_per_slot_hour: s.price_micro_per_slot_hour,
            currency: s.currency,
            age_ms: s.age_ms,
            draining: s.draining,
            draining_reason: s.draining_reason,
            draining_age_ms: s.draining_age_ms,
            time_max_ms: s.time_max_ms,
            wait_ms: s.wait_ms,
            machine_gpus: s.machine_gpus,
            gpus_total: s.gpus_total,
            nodes_max: s.nodes_max,
            not_rented: s.not_rented,
            bound: s.bound,
            task_slots_max: s.task_slots_max,
        }
    }
}

impl TryFrom<pb::Share> for Share {
    type Error = Refusal;
    fn try_from(s: pb::Share) -> Result<Self> {
        if s.key.is_empty() || s.key.len() > 2 * NAME_BYTES_MAX || s.key.chars().any(char::is_control) || s.path.len() > SITES_BELOW_MAX {
            return Err(bad("a share's key or path"));
        }
        let slots_total = s.slots_total.min(COUNT_MAX);
        Ok(Share {
            key: s.key,
            origin: site(&s.origin, "a share's origin")?,
            origin_name: label(s.origin_name, "a share's origin")?,
            path: s.path.iter().map(|p| site(p, "a share's path")).collect::<Result<_>>()?,
            fit_version: s.fit_version,
            machine_slots: s.machine_slots.min(SLOTS_PER_TASK_MAX),
            machine_memory_bytes: s.machine_memory_bytes.min(MEMORY_PER_TASK_BYTES_MAX),
            architecture: label(s.architecture, "architecture")?,
            slots_total,
            machines: s.machines,
            slots_free: s.slots_free.min(slots_total),
            largest_free: s.largest_free,
            window: s.window.min(COUNT_MAX),
            credit_ms: s.credit_ms.min(TIME_MS_MAX),
            waiting: s.waiting.min(COUNT_MAX),
            price_micro_per_slot_hour: s.price_micro_per_slot_hour,
            currency: label(s.currency, "currency")?,
            age_ms: s.age_ms.min(TIME_MS_MAX),
            draining: s.draining,
            draining_reason: words(s.draining_reason),
            draining_age_ms: s.draining_age_ms.min(TIME_MS_MAX),
            time_max_ms: s.time_max_ms.min(TIME_MS_MAX),
            wait_ms: s.wait_ms.map(|ms| ms.min(TIME_MS_MAX)),
            machine_gpus: s.machine_gpus.min(GPUS_PER_MACHINE_MAX),
            gpus_total: s.gpus_total.min(COUNT_MAX),
            nodes_max: s.nodes_max.min(NODES_PER_TASK_MAX),
            not_rented: words(s.not_rented),
            bound: words(s.bound),
            task_slots_max: s.task_slots_max.min(COUNT_MAX),
        })
    }
}

impl From<Up> for pb::Up {
    fn from(u: Up) -> Self {
        use pb::up::What;
        let what = match u {
            Up::Hello(h) => What::Hello(h.into()),
            Up::Advert(a) => What::Advert(pb::Advert {
                version: a.version,
                shares: a.shares.into_iter().map(Into::into).collect(),
                rest: None,
                below: a.below.into_iter().map(Into::into).collect(),
            }),
            Up::Events(e) => {
                What::Events(pb::Events { incarnation: e.incarnation, first: e.first, events: e.events.into_iter().map(Into::into).collect() })
            }
            Up::Hints(hints) => What::Hints(pb::Hints {
                hints: hints
                    .into_iter()
                    .map(|h| pb::Hint { number: h.of.number, job: h.of.job, tasks: Some(tasks_out(&h.of.tasks)), phase: h.phase as i32 })
                    .collect(),
            }),
            Up::NeedBlob(h) => What::NeedBlob(pb::NeedBlob { hash: h.0.to_vec() }),
            Up::Resync(r) => What::Resync(pb::Resync {
                incarnation: r.incarnation,
                sequence: r.sequence,
                ranges: r
                    .ranges
                    .into_iter()
                    .map(|r| pb::ResyncRange {
                        number: r.of.number,
                        job: r.of.job,
                        tasks: Some(tasks_out(&r.of.tasks)),
                        phase: r.phase as i32,
                        ended: r.ended.map(Into::into),
                    })
                    .collect(),
                last: r.last,
            }),
            Up::Orphans(o) => What::Orphans(o.into()),
        };
        pb::Up { what: Some(what) }
    }
}

impl TryFrom<pb::Up> for Up {
    type Error = Refusal;
    fn try_from(u: pb::Up) -> Result<Self> {
        use pb::up::What;
        Ok(match u.what.ok_or_else(|| bad("a message of a later version"))? {
            What::Hello(h) => Up::Hello(h.try_into()?),
            What::Advert(a) => {
                if a.shares.len() > SHARES_MAX {
                    let message = format!("{} share classes are advertised, at most {SHARES_MAX} are taken", a.shares.len());
                    return Err(Refusal::new(RefusalKind::OverLimit, message).remedy("merge machine classes, or put a broker between"));
                }
                Up::Advert(Advert {
                    version: a.version,
                    shares: a.shares.into_iter().map(Share::try_from).collect::<Result<_>>()?,
                    below: hops(a.below, SITES_BELOW_MAX)?,
                })
            }
            What::Events(e) if e.first == 0 || e.first > SEQUENCE_MAX => return Err(bad("the number of the first event")),
            What::Events(e) => {
                few(&e.events)?;
                let events = e.events.into_iter().map(Event::try_from).collect::<Result<Vec<_>>>()?;
                attempts(events.len(), events.iter().map(|e| &e.of))?;
                Up::Events(Events { incarnation: e.incarnation, first: e.first, events })
            }
            What::Hints(h) => {
                few(&h.hints)?;
                let hints = h
                    .hints
                    .into_iter()
                    .map(|h| {
                        let phase = phase_in(h.phase)?;
                        match phase {
                            Phase::StagingIn | Phase::Running | Phase::Suspended | Phase::StagingOut => {}
                            Phase::Queued | Phase::Held | Phase::Placed | Phase::Done | Phase::Failed | Phase::Cancelled => {
                                return Err(bad("a hint of a durable phase"));
                            }
                        }
                        Ok(Hint { of: Attempts { number: h.number, job: h.job, tasks: attempt_tasks(h.tasks)? }, phase })
                    })
                    .collect::<Result<Vec<_>>>()?;
                attempts(hints.len(), hints.iter().map(|h| &h.of))?;
                Up::Hints(hints)
            }
            What::NeedBlob(n) => Up::NeedBlob(BlobHash::from_slice(&n.hash).ok_or_else(|| bad("blob hash"))?),
            What::Resync(r) if r.sequence > SEQUENCE_MAX => return Err(bad("the sequence of a resync")),
            What::Resync(r) => {
                few(&r.ranges)?;
                let ranges = r
                    .ranges
                    .into_iter()
                    .map(|r| {
                        let of = Attempts { number: r.number, job: r.job, tasks: attempt_tasks(r.tasks)? };
                        let phase = phase_in(r.phase)?;
                        let ended = r.ended.map(|e| ended_in(e, of.tasks.len())).transpose()?;
                        if phase.is_terminal() != ended.is_some() {
                            return Err(bad("a resync range whose phase and end disagree"));
                        }
                        Ok(ResyncRange { of, phase, ended })
                    })
                    .collect::<Result<Vec<_>>>()?;
                attempts(ranges.len(), ranges.iter().map(|r| &r.of))?;
                Up::Resync(Resync { incarnation: r.incarnation, sequence: r.sequence, ranges, last: r.last })
            }
            What::Orphans(o) => Up::Orphans(o.try_into()?),
        })
    }
}
