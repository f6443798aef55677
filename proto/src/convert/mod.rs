//! The one place where wire types become domain types and back. A message that breaks a bound or a law of its fields is refused here, whole.

mod orphans;
mod up;

pub use up::ended_in;

use crate::error::{Refusal, RefusalKind, Result};
use crate::ids::{BlobHash, SiteId};
use crate::limits::*;
use crate::link::*;
use crate::pb;
use crate::phase::Phase;
use crate::share::Shape;
use crate::tasks::TaskSet;

fn bad(what: &str) -> Refusal {
    Refusal::invalid(format!("malformed message: {what}"))
}

fn site(bytes: &[u8], what: &str) -> Result<SiteId> {
    SiteId::from_slice(bytes).ok_or_else(|| bad(&format!("{what} is not a site id of 16 bytes")))
}

fn label(name: String, what: &str) -> Result<String> {
    let good = name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control);
    if good { Ok(name) } else { Err(bad(&format!("{what} is not a label of at most {NAME_BYTES_MAX} bytes"))) }
}

/// Task set to the wire.
pub fn tasks_out(t: &TaskSet) -> pb::Tasks {
    pb::Tasks { runs: t.to_runs() }
}

/// Task set from the wire; absent is an error.
pub fn tasks_in(t: Option<pb::Tasks>) -> Result<TaskSet> {
    t.and_then(|t| TaskSet::from_runs(&t.runs)).ok_or_else(|| bad("tasks"))
}

/// What one message says of attempts is bounded in number and in tasks.
fn attempts<'a>(n: usize, of: impl Iterator<Item = &'a Attempts>) -> Result<()> {
    let tasks = of.map(|a| a.tasks.len()).fold(0, u64::saturating_add);
    if n <= MESSAGE_ATTEMPTS_MAX && tasks <= MESSAGE_TASKS_MAX {
        return Ok(());
    }
    let message =
        format!("malformed message: it speaks of {n} attempts with {tasks} tasks, at most {MESSAGE_ATTEMPTS_MAX} with {MESSAGE_TASKS_MAX} are taken");
    Err(Refusal::new(RefusalKind::OverLimit, message))
}

/// A message with more attempts than may be is not even looked at.
fn few<T>(list: &[T]) -> Result<()> {
    if list.len() <= MESSAGE_ATTEMPTS_MAX { Ok(()) } else { attempts(list.len(), std::iter::empty()) }
}

/// An attempt's tasks.
fn attempt_tasks(t: Option<pb::Tasks>) -> Result<TaskSet> {
    let tasks = tasks_in(t)?;
    let n = tasks.len();
    if n <= ATTEMPT_TASKS_MAX { Ok(tasks) } else { Err(bad(&format!("an attempt of {n} tasks, at most {ATTEMPT_TASKS_MAX} are taken"))) }
}

/// Words that reach people's terminals: no control characters but line breaks and tabs.
fn printable(text: String) -> String {
    match text.chars().any(unprintable) {
        true => text.chars().map(|c| if unprintable(c) { '?' } else { c }).collect(),
        false => text,
    }
}

fn unprintable(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t')
}

/// Terminal or not, any phase.
pub fn phase_in(n: i32) -> Result<Phase> {
    Phase::from_number(n).ok_or_else(|| bad("phase"))
}

impl From<Kind> for pb::Kind {
    fn from(k: Kind) -> Self {
        match k {
            Kind::Broker => pb::Kind::Broker,
            Kind::Gateway => pb::Kind::Gateway,
            Kind::Agent => pb::Kind::Agent,
        }
    }
}

fn kind_in(n: i32) -> Result<Kind> {
    match pb::Kind::try_from(n) {
        Ok(pb::Kind::Broker) => Ok(Kind::Broker),
        Ok(pb::Kind::Gateway) => Ok(Kind::Gateway),
        Ok(pb::Kind::Agent) => Ok(Kind::Agent),
        Ok(pb::Kind::Unspecified) | Err(_) => Err(bad("kind of site")),
    }
}

impl From<Hop> for pb::Hop {
    fn from(h: Hop) -> Self {
        pb::Hop { site: h.site.0.to_vec(), name: h.name, kind: pb::Kind::from(h.kind).into() }
    }
}

impl TryFrom<pb::Hop> for Hop {
    type Error = Refusal;
    fn try_from(h: pb::Hop) -> Result<Self> {
        Ok(Hop { site: site(&h.site, "hop")?, name: label(h.name, "a hop's name")?, kind: kind_in(h.kind)? })
    }
}

fn hops(list: Vec<pb::Hop>, max: usize) -> Result<Vec<Hop>> {
    if list.len() > max {
        return Err(bad("too many hops"));
    }
    list.into_iter().map(Hop::try_from).collect()
}

impl From<Hello> for pb::Hello {
    fn from(h: Hello) -> Self {
        pb::Hello {
            protocol: crate::PROTOCOL,
            site: h.hop.site.0.to_vec(),
            name: h.hop.name,
            kind: pb::Kind::from(h.hop.kind).into(),
            incarnation: h.incarnation,
            peer_incarnation: h.peer_incarnation,
            peer_sequence: h.peer_sequence,
            peer_placement: h.peer_placement,
            placement: h.placement,
            sequence_low: h.sequence_low,
            sequence_high: h.sequence_high,
            machine: h.machine,
            recovering: h.recovering,
        }
    }
}

impl TryFrom<pb::Hello> for Hello {
    type Error = Refusal;
    fn try_from(h: pb::Hello) -> Result<Self> {
        if h.protocol != crate::PROTOCOL {
            let message = format!("the peer {:?} speaks protocol {}, this site {}", h.name, h.protocol, crate::PROTOCOL);
            return Err(Refusal::new(RefusalKind::MustUnderstand, message).remedy("bring both to the same version"));
        }
        if h.machine.len() > NAME_BYTES_MAX {
            return Err(bad("machine fingerprint"));
        }
        Ok(Hello {
            hop: Hop { site: site(&h.site, "hello")?, name: label(h.name, "the peer's name")?, kind: kind_in(h.kind)? },
            incarnation: h.incarnation,
            peer_incarnation: h.peer_incarnation,
            peer_sequence: h.peer_sequence,
            peer_placement: h.peer_placement,
            placement: h.placement,
            sequence_low: h.sequence_low,
            sequence_high: h.sequence_high,
            machine: h.machine,
            recovering: h.recovering,
        })
    }
}

impl From<Attempts> for pb::StaleAttempts {
    fn from(a: Attempts) -> Self {
        pb::StaleAttempts { number: a.number, job: a.job, tasks: Some(tasks_out(&a.tasks)) }
    }
}

impl TryFrom<pb::StaleAttempts> for Attempts {
    type Error = Refusal;
    fn try_from(a: pb::StaleAttempts) -> Result<Self> {
        Ok(Attempts { number: a.number, job: a.job, tasks: attempt_tasks(a.tasks)? })
    }
}

impl From<WantValue> for pb::WantValue {
    fn from(v: WantValue) -> Self {
        match v {
            WantValue::Run => pb::WantValue::WantRun,
            WantValue::Hold => pb::WantValue::WantHold,
            WantValue::Return => pb::WantValue::WantReturn,
            WantValue::Cancel => pb::WantValue::WantCancel,
        }
    }
}

/// A wish from its number.
pub fn want_value_in(n: i32) -> Result<WantValue> {
    match pb::WantValue::try_from(n) {
        Ok(pb::WantValue::WantRun) => Ok(WantValue::Run),
        Ok(pb::WantValue::WantHold) => Ok(WantValue::Hold),
        Ok(pb::WantValue::WantReturn) => Ok(WantValue::Return),
        Ok(pb::WantValue::WantCancel) => Ok(WantValue::Cancel),
        Err(_) => Err(bad("want")),
    }
}

impl From<Want> for pb::Want {
    fn from(w: Want) -> Self {
        let range = |(v, t): (WantValue, TaskSet)| pb::WantRange { value: pb::WantValue::from(v).into(), tasks: Some(tasks_out(&t)) };
        pb::Want { job: w.job, version: w.version, ranges: w.ranges.into_iter().map(range).collect() }
    }
}

impl TryFrom<pb::Want> for Want {
    type Error = Refusal;
    fn try_from(w: pb::Want) -> Result<Self> {
        if w.version > SEQUENCE_MAX || w.ranges.len() > WANT_RANGES_MAX {
            return Err(bad("a register's version, or too many of its ranges"));
        }
        let mut want = Want { job: w.job, version: w.version, ranges: Vec::new() };
        for r in w.ranges {
            want.set(want_value_in(r.value)?, &tasks_in(r.tasks)?);
        }
        let ranges = want.range_count();
        if ranges > TASK_RANGES_MAX {
            return Err(bad(&format!("a register of {ranges} ranges, at most {TASK_RANGES_MAX} are taken")));
        }
        Ok(want)
    }
}

impl From<Origin> for pb::Origin {
    fn from(o: Origin) -> Self {
        pb::Origin { site: o.site.0.to_vec(), job: o.job, principal: o.principal, submitted_ms: o.submitted_ms }
    }
}

impl TryFrom<pb::Origin> for Origin {
    type Error = Refusal;
    fn try_from(o: pb::Origin) -> Result<Self> {
        let (site, job) = (site(&o.site, "origin")?, label(o.job, "the origin's job")?);
        Ok(Origin { site, job, principal: label(o.principal, "the principal")?, submitted_ms: o.submitted_ms })
    }
}

impl From<Place> for pb::Place {
    fn from(p: Place) -> Self {
        pb::Place {
            number: p.number,
            job: p.job,
            origin: Some(p.origin.into()),
            spec_hash: p.spec_hash.0.to_vec(),
            spec: p.spec.into(),
            tasks: Some(tasks_out(&p.tasks)),
            share: p.share,
            attempts: p.attempts,
            want: Some(p.want.into()),
            route: p.route.iter().map(|s| s.0.to_vec()).collect(),
            hops_left: p.hops_left,
            chain: p.chain,
            array_size: p.array_size,
            attempt_cost_max: p.attempt_cost_max,
            again: p.known == Known::Perhaps,
            adopt: if let Known::As(f) = p.known { Some(f.into()) } else { None },
        }
    }
}

/// What a signed chain takes.
pub fn chain_bytes(chain: &[pb::ChainLink]) -> usize {
    chain.iter().map(|l| 16 + l.statement.len() + l.signature.len() + l.certificate.len()).sum()
}

impl TryFrom<pb::Place> for Place {
    type Error = Refusal;
    fn try_from(p: pb::Place) -> Result<Self> {
        let origin = p.origin.ok_or_else(|| bad("a placement without an origin"))?;
        if p.route.len() > HOPS_MAX as usize + 1
            || p.chain.len() > HOPS_MAX as usize + 1
            || chain_bytes(&p.chain) > CHAIN_BYTES_MAX
            || p.share.len() > 2 * NAME_BYTES_MAX
        {
            return Err(bad("a placement's route, chain or share is too long"));
        }
        let tasks = attempt_tasks(p.tasks)?;
        if p.number == 0 || tasks.is_empty() || p.array_size > TASKS_PER_JOB_MAX || tasks.end() > p.array_size {
            return Err(bad("a placement without number or tasks, or with tasks beyond its array"));
        }
        Ok(Place {
            number: p.number,
            job: p.job,
            origin: origin.try_into()?,
            spec_hash: BlobHash::from_slice(&p.spec_hash).ok_or_else(|| bad("spec hash"))?,
            spec: p.spec.into(),
            tasks,
            share: p.share,
            attempts: p.attempts,
            want: p.want.unwrap_or_default().try_into()?,
            route: p.route.iter().map(|s| site(s, "route")).collect::<Result<_>>()?,
            hops_left: p.hops_left.min(HOPS_MAX),
            chain: p.chain,
            array_size: p.array_size,
            attempt_cost_max: p.attempt_cost_max,
            known: match (p.adopt, p.again) {
                (Some(f), _) => Known::As(f.into()),
                (None, true) => Known::Perhaps,
                (None, false) => Known::Nothing,
            },
        })
    }
}

impl From<ShapeDemand> for pb::ShapeDemand {
    fn from(d: ShapeDemand) -> Self {
        let Shape { slots, memory_bytes, gpus, nodes } = d.shape;
        let (nodes, time_limit_ms) = (if nodes > 1 { nodes } else { 0 }, d.time_limit_ms.unwrap_or(0));
        pb::ShapeDemand { slots, memory_bytes, tasks: d.tasks, gpus, nodes, time_limit_ms }
    }
}

impl From<pb::ShapeDemand> for ShapeDemand {
    fn from(d: pb::ShapeDemand) -> Self {
        let shape = Shape { slots: d.slots, memory_bytes: d.memory_bytes, gpus: d.gpus, nodes: d.nodes.max(1) };
        ShapeDemand { shape, time_limit_ms: Some(d.time_limit_ms).filter(|ms| *ms > 0), tasks: d.tasks.min(COUNT_MAX) }
    }
}

impl From<Down> for pb::Down {
    fn from(d: Down) -> Self {
        use pb::down::What;
        let all = |list: Vec<Attempts>| list.into_iter().map(Into::into).collect();
        let what = match d {
            Down::Hello(h) => What::Hello(h.into()),
            Down::Stale(attempts) => What::Stale(pb::Stale { attempts: all(attempts) }),
            Down::Want(w) => What::Want(w.into()),
            Down::Place(p) => What::Place((*p).into()),
            Down::Ack { incarnation, sequence } => What::Ack(pb::Ack { incarnation, sequence }),
            Down::Demand(shapes) => What::Demand(pb::Demand { shapes: shapes.into_iter().map(Into::into).collect() }),
            Down::Saw(version) => What::Saw(pb::Saw { version }),
            Down::Resync => What::Resync(pb::ResyncRequest {}),
            Down::Open(open) => What::Open(pb::OpenPlacements { open: all(open) }),
            Down::Resent => What::Resent(pb::Resent {}),
        };
        pb::Down { what: Some(what) }
    }
}

impl TryFrom<pb::Down> for Down {
    type Error = Refusal;
    fn try_from(d: pb::Down) -> Result<Self> {
        use pb::down::What;
        let all = |list: Vec<pb::StaleAttempts>| {
            few(&list)?;
            let list = list.into_iter().map(Attempts::try_from).collect::<Result<Vec<_>>>()?;
            attempts(list.len(), list.iter()).map(|()| list)
        };
        Ok(match d.what.ok_or_else(|| bad("a message of a later version"))? {
            What::Hello(h) => Down::Hello(h.try_into()?),
            What::Stale(s) => Down::Stale(all(s.attempts)?),
            What::Want(w) => Down::Want(w.try_into()?),
            What::Place(p) => Down::Place(Box::new(p.try_into()?)),
            What::Ack(a) => Down::Ack { incarnation: a.incarnation, sequence: a.sequence },
            What::Demand(d) => Down::Demand(d.shapes.into_iter().take(SHARES_MAX).map(Into::into).collect()),
            What::Saw(s) => Down::Saw(s.version),
            What::Resync(_) => Down::Resync,
            What::Open(o) => Down::Open(all(o.open)?),
            What::Resent(_) => Down::Resent,
        })
    }
}

impl From<RefusalKind> for pb::ErrorKind {
    fn from(k: RefusalKind) -> Self {
        match k {
            RefusalKind::Invalid => pb::ErrorKind::Invalid,
            RefusalKind::Conflict => pb::ErrorKind::Conflict,
            RefusalKind::NotAuthorised => pb::ErrorKind::NotAuthorised,
            RefusalKind::NotFound => pb::ErrorKind::NotFound,
            RefusalKind::OverLimit => pb::ErrorKind::OverLimit,
            RefusalKind::Unavailable => pb::ErrorKind::Unavailable,
            RefusalKind::Loop => pb::ErrorKind::Loop,
            RefusalKind::DuplicateIdentity => pb::ErrorKind::DuplicateIdentity,
            RefusalKind::MustUnderstand => pb::ErrorKind::MustUnderstand,
            RefusalKind::MissingBlob => pb::ErrorKind::MissingBlob,
            RefusalKind::Internal => pb::ErrorKind::Internal,
        }
    }
}

impl From<Refusal> for pb::Error {
    fn from(r: Refusal) -> Self {
        pb::Error { kind: pb::ErrorKind::from(r.kind).into(), message: r.message, remedy: r.remedy }
    }
}

impl From<pb::Error> for Refusal {
    fn from(e: pb::Error) -> Self {
        let kind = match pb::ErrorKind::try_from(e.kind) {
            Ok(pb::ErrorKind::Invalid) => RefusalKind::Invalid,
            Ok(pb::ErrorKind::Conflict) => RefusalKind::Conflict,
            Ok(pb::ErrorKind::NotAuthorised) => RefusalKind::NotAuthorised,
            Ok(pb::ErrorKind::NotFound) => RefusalKind::NotFound,
            Ok(pb::ErrorKind::OverLimit) => RefusalKind::OverLimit,
            Ok(pb::ErrorKind::Unavailable) => RefusalKind::Unavailable,
            Ok(pb::ErrorKind::Loop) => RefusalKind::Loop,
            Ok(pb::ErrorKind::DuplicateIdentity) => RefusalKind::DuplicateIdentity,
            Ok(pb::ErrorKind::MustUnderstand) => RefusalKind::MustUnderstand,
            Ok(pb::ErrorKind::MissingBlob) => RefusalKind::MissingBlob,
            Ok(pb::ErrorKind::Internal | pb::ErrorKind::ErrorUnspecified) | Err(_) => RefusalKind::Internal,
        };
        Refusal { kind, message: e.message, remedy: e.remedy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::{Reason, ReasonKind};
    use proptest::prelude::*;
    use prost::Message;

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_taken(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = pb::Up::decode(&bytes[..]).map(Up::try_from);
            let _ = pb::Down::decode(&bytes[..]).map(Down::try_from);
        }

        #[test]
        fn events_come_back(tasks in proptest::collection::btree_set(0u32..99, 1..30), exit in proptest::collection::vec(0u32..300, 30), n in 1u64..9) {
            let tasks: TaskSet = tasks.into_iter().collect();
            let reason = Reason::new(ReasonKind::ExitNonZero, "exit 3").because(vec![Reason::new(ReasonKind::Other(777), "later")]);
            let mut ended = Ended::not_started(Phase::Failed, reason, 2);
            ended.exit = exit[..tasks.len() as usize].to_vec();
            ended.route = vec![Hop { site: SiteId([7; 16]), name: "a".into(), kind: Kind::Agent }];
            let event = Event { of: Attempts { number: n, job: 4, tasks }, what: EventKind::Ended(ended) };
            let up = Up::Events(Events { incarnation: 1, first: 2, events: vec![event] });
            let bytes = pb::Up::from(up.clone()).encode_to_vec();
            prop_assert_eq!(Up::try_from(pb::Up::decode(&bytes[..]).unwrap()).unwrap(), up);
        }
    }

    #[test]
    fn done_needs_evidence() {
        let done = |exit: Vec<u32>| pb::Ended { phase: Phase::Done as i32, exit, ..Default::default() };
        assert!(ended_in(done(vec![0]), 3).is_ok());
        for exit in [vec![], vec![1], vec![1025], vec![0, 0]] {
            assert!(ended_in(done(exit.clone()), 3).is_err(), "{exit:?}");
        }
    }

    /// What would overflow a sum or a successor is cut or refused at the door.
    #[test]
    fn absurd_numbers_do_not_come_in() {
        let up = |what| Up::try_from(pb::Up { what: Some(what) });
        let most =
            pb::Share { key: "a/b".into(), origin: vec![1; 16], slots_total: u64::MAX, window: u64::MAX, age_ms: u64::MAX, ..Default::default() };
        let most = pb::Share { not_rented: "\x1b[2J".repeat(1 << 18), ..most };
        let Ok(Up::Advert(advert)) = up(pb::up::What::Advert(pb::Advert { shares: vec![most], ..Default::default() })) else { panic!("an advert") };
        let share = &advert.shares[0];
        assert_eq!((share.slots_total, share.window, share.age_ms), (COUNT_MAX, COUNT_MAX, TIME_MS_MAX));
        assert!((1..=4 * NAME_BYTES_MAX).contains(&share.not_rented.len()) && !share.not_rented.contains('\x1b'), "{:?}", share.not_rented);
        for first in [0, u64::MAX] {
            assert!(up(pb::up::What::Events(pb::Events { incarnation: 1, first, events: vec![] })).is_err(), "{first}");
        }
        assert!(up(pb::up::What::Resync(pb::Resync { sequence: u64::MAX, last: true, ..Default::default() })).is_err());
        let want = |version, n| {
            Want::try_from(pb::Want { job: 1, version, ranges: vec![pb::WantRange { value: 1, tasks: Some(pb::Tasks { runs: vec![0, 1] }) }; n] })
        };
        assert!(want(1, 3).is_ok() && want(u64::MAX, 1).is_err() && want(1, WANT_RANGES_MAX + 1).is_err());
    }

    #[test]
    fn more_than_64_classes_are_refused_clearly() {
        let share = pb::Share { key: "a/b".into(), origin: vec![1; 16], ..Default::default() };
        let advert = |n| pb::Up { what: Some(pb::up::What::Advert(pb::Advert { shares: vec![share.clone(); n], ..Default::default() })) };
        assert!(Up::try_from(advert(64)).is_ok());
        let refused = Up::try_from(advert(65)).expect_err("65");
        assert!(refused.kind == RefusalKind::OverLimit && refused.message.contains("65"), "{refused}");
    }
}
