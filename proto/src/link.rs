//! What a parent and a child say to each other, as types that cannot be wrong. An agent is a child with one share, so that a gateway and its agents
//! speak the same protocol as a broker and its gateways. Order and laws: `link.proto`.

use crate::ids::{BlobHash, SiteId};
use crate::phase::{Exit, Phase};
use crate::reason::Reason;
use crate::share::{Shape, Share};
use crate::tasks::TaskSet;

/// What a peer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A gateway over a federation.
    Broker,
    /// A gateway over anything else.
    Gateway,
    /// A machine.
    Agent,
}

impl Kind {
    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Broker => "broker",
            Kind::Gateway => "gateway",
            Kind::Agent => "agent",
        }
    }
}

/// A site or agent on a route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hop {
    /// Its id.
    pub site: SiteId,
    /// Its label.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

/// First message of either end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The sender.
    pub hop: Hop,
    /// Of the sender's store.
    pub incarnation: u64,
    /// The receiver's incarnation as the sender last saw it; 0: never.
    pub peer_incarnation: u64,
    /// Parent: highest event sequence of the child that is committed here. Child: highest that was acknowledged.
    pub peer_sequence: u64,
    /// Child: highest placement number of this parent that is committed here.
    pub peer_placement: u64,
    /// Parent: highest placement number issued on this link.
    pub placement: u64,
    /// Child: lowest event sequence still kept (`sequence_high + 1`: none).
    pub sequence_low: u64,
    /// Child: highest event sequence issued.
    pub sequence_high: u64,
    /// Agent: fingerprint of its machine; else empty.
    pub machine: Vec<u8>,
    /// The sender's store may lack what it once knew of this link: tell it all.
    pub recovering: bool,
}

/// Tasks of one placement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempts {
    /// The parent's placement.
    pub number: u64,
    /// The parent's job.
    pub job: u64,
    /// Which tasks of it.
    pub tasks: TaskSet,
}

/// Parent to child.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Down {
    /// The answer to the child's hello.
    Hello(Hello),
    /// Attempts that no longer count.
    Stale(Vec<Attempts>),
    /// The register of one job.
    Want(Want),
    /// One attempt of a task set.
    Place(Box<Place>),
    /// Committed at the parent up to here.
    Ack {
        /// Of the child's store.
        incarnation: u64,
        /// Highest committed.
        sequence: u64,
    },
    /// What the parent would use beyond what it has placed.
    Demand(Vec<ShapeDemand>),
    /// It has taken in the advert of this version: nothing placed on the word of an older one follows.
    Saw(u64),
    /// Send your full state.
    Resync,
    /// All that the parent holds open here.
    Open(Vec<Attempts>),
    /// All that the parent holds open here has been sent again.
    Resent,
}

/// Tasks of one shape and time limit that a parent would place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShapeDemand {
    /// What each needs.
    pub shape: Shape,
    /// Milliseconds; None: it has no limit, or its parent does not tell.
    pub time_limit_ms: Option<u64>,
    /// How many.
    pub tasks: u64,
}

/// Child to parent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Up {
    /// The child's first message.
    Hello(Hello),
    /// What it offers this parent.
    Advert(Advert),
    /// Durable changes.
    Events(Events),
    /// Not durable, not numbered.
    Hints(Vec<Hint>),
    /// It wants this content.
    NeedBlob(BlobHash),
    /// Its full state.
    Resync(Resync),
    /// What it holds of older incarnations of the parent.
    Orphans(Orphans),
}

/// Who asked first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Where the user submitted.
    pub site: SiteId,
    /// The job's id there.
    pub job: String,
    /// The user.
    pub principal: String,
    /// When, milliseconds since 1970 by that site's clock; 0: not known.
    pub submitted_ms: u64,
}

impl Origin {
    /// Is it the same job? A site that went back to an old copy of its store may give a number again, but not at the same time.
    pub fn is(&self, other: &Origin) -> bool {
        let same_time = self.submitted_ms == other.submitted_ms || self.submitted_ms == 0 || other.submitted_ms == 0;
        (self.site, &self.job) == (other.site, &other.job) && same_time
    }
}

/// What is wished of a task. The register travels with a placement and stands alone, so that a cancel can neither be lost nor overtaken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default, PartialOrd, Ord)]
pub enum WantValue {
    /// Run it.
    #[default]
    Run,
    /// Do not start it.
    Hold,
    /// Give it back if it was never claimed.
    Return,
    /// Stop it.
    Cancel,
}

/// The register of a job on a link; tasks it does not name are `Run`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Want {
    /// The parent's job.
    pub job: u64,
    /// Replaces lower ones.
    pub version: u64,
    /// Disjoint.
    pub ranges: Vec<(WantValue, TaskSet)>,
}

impl Want {
    /// The tasks of which this is wished; for `Run`, those of `all` that no range names.
    pub fn tasks(&self, value: WantValue, all: &TaskSet) -> TaskSet {
        let named =
            |v: Option<WantValue>| self.ranges.iter().filter(|(x, _)| v.is_none_or(|v| *x == v)).fold(TaskSet::new(), |acc, (_, t)| acc.union(t));
        match value {
            WantValue::Run => all.subtract(&named(None)).union(&named(Some(WantValue::Run)).intersect(all)),
            v => named(Some(v)).intersect(all),
        }
    }

    /// Ranges of all wishes together.
    pub fn range_count(&self) -> usize {
        self.ranges.iter().map(|(_, t)| t.ranges().len()).sum()
    }

    /// Wish this of these tasks from now on. The version is the caller's to raise.
    pub fn set(&mut self, value: WantValue, tasks: &TaskSet) {
        for (_, t) in &mut self.ranges {
            *t = t.subtract(tasks);
        }
        if value != WantValue::Run {
            match self.ranges.iter_mut().find(|(v, _)| *v == value) {
                Some((_, t)) => *t = t.union(tasks),
                None => self.ranges.push((value, tasks.clone())),
            }
        }
        self.ranges.retain(|(_, t)| !t.is_empty());
    }
}

/// A placement on the wire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Ascending on a link.
    pub number: u64,
    /// The parent's job.
    pub job: u64,
    /// Who asked first.
    pub origin: Origin,
    /// Of the spec's bytes.
    pub spec_hash: BlobHash,
    /// The user's bytes; empty where this connection has carried them already.
    pub spec: Vec<u8>,
    /// Indices are the origin's.
    pub tasks: TaskSet,
    /// Key of the share this was meant for.
    pub share: String,
    /// Attempts already used over the whole tree.
    pub attempts: u32,
    /// The register at the time of sending.
    pub want: Want,
    /// Sites passed, origin first, sender last.
    pub route: Vec<SiteId>,
    /// Hops that it may still pass.
    pub hops_left: u32,
    /// The signed chain, as received.
    pub chain: Vec<crate::pb::ChainLink>,
    /// Tasks of the whole array.
    pub array_size: u32,
    /// Of a job with `max_cost`: what one attempt of one of these tasks may cost at most, in millionths of its currency.
    pub attempt_cost_max: u64,
    /// What the child may know of them already.
    pub known: Known,
}

/// What a child may know of the tasks of a placement although its number is a new one to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Known {
    /// Nothing.
    #[default]
    Nothing,
    /// The child may have had it before it lost its store: nothing of it is started before those below have said what they hold.
    Perhaps,
    /// The child holds them under an older name: they go on under the new one, and what it does not know comes back.
    As(Former),
}

/// A placement as it was named by an older incarnation of the parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash, PartialOrd, Ord)]
pub struct Former {
    /// Of the parent's store.
    pub incarnation: u64,
    /// Its number.
    pub number: u64,
    /// The parent's job.
    pub job: u64,
}

/// A part of what a child holds of older incarnations of its parent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Orphans {
    /// In any order.
    pub orphans: Vec<Orphan>,
    /// The last part.
    pub last: bool,
    /// Nothing is left out of placements with this number and higher ones.
    pub complete_from: u64,
}

/// Tasks of one older placement in one phase. They run on until somebody adopts them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Orphan {
    /// Its name then.
    pub former: Former,
    /// Who asked first: by this the parent knows them again.
    pub origin: Origin,
    /// Of the spec's bytes.
    pub spec_hash: BlobHash,
    /// Tasks of the whole array.
    pub array_size: u32,
    /// Which.
    pub tasks: TaskSet,
    /// Their phase at the child.
    pub phase: Phase,
    /// Key of the share that they count on.
    pub share: String,
    /// Slots that each counts for there.
    pub cost: u64,
    /// Attempts that were used before this one.
    pub attempts: u32,
}

/// What a child offers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Advert {
    /// Ascending.
    pub version: u64,
    /// At most `SHARES_MAX`.
    pub shares: Vec<Share>,
    /// Every site below, itself not among them.
    pub below: Vec<Hop>,
}

/// Durable changes of a child, numbered `first`, `first + 1`, ...
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Events {
    /// Of the child's store.
    pub incarnation: u64,
    /// Sequence of the first.
    pub first: u64,
    /// In order.
    pub events: Vec<Event>,
}

/// One durable change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// The placement (or, for `WantStored`, only the job) and its tasks.
    pub of: Attempts,
    /// What happened.
    pub what: EventKind,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// The placement is durable at the child.
    Accepted,
    /// Never claimed, given back; not an attempt.
    Returned(Reason),
    /// An attempt ended.
    Ended(Ended),
    /// Waits at the child for somebody to release it.
    Held(Reason),
    /// No longer held.
    Released,
    /// The register is durable at the child.
    WantStored {
        /// Its version.
        version: u64,
    },
}

/// The end of an attempt of each of a set of tasks. A list has one entry a task in ascending order, or one entry for all, or none: not known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// Done, Failed or Cancelled.
    pub phase: Phase,
    /// As [`Exit::to_number`].
    pub exit: Vec<u32>,
    /// Set unless Done.
    pub reason: Option<Reason>,
    /// Used over the whole tree, this one included where it started.
    pub attempts: u32,
    /// Leaf first; each hop appends itself.
    pub route: Vec<Hop>,
    /// Milliseconds from start to end.
    pub wall_ms: Vec<u64>,
    /// User + system, microseconds.
    pub cpu_us: Vec<u64>,
    /// Peak resident memory.
    pub peak_bytes: Vec<u64>,
    /// Milliseconds since the end, as of the message that carries it.
    pub age_ms: Vec<u64>,
    /// How the peak was measured.
    pub measured: String,
    /// Ended without an exit record: `on_lost` decides what follows.
    pub lost: bool,
    /// A fenced or lost attempt below this placement, which itself goes on: history and usage only. Never said by an agent.
    pub stale: bool,
    /// Millionths of the share's currency. Never said by an agent.
    pub cost_micro: Vec<u64>,
}

impl Ended {
    /// Without evidence of a start: cancelled or failed before.
    pub fn not_started(phase: Phase, reason: Reason, attempts: u32) -> Self {
        Ended {
            phase,
            exit: vec![Exit::NotStarted.to_number()],
            reason: Some(reason),
            attempts,
            route: Vec::new(),
            wall_ms: Vec::new(),
            cpu_us: Vec::new(),
            peak_bytes: Vec::new(),
            age_ms: Vec::new(),
            measured: String::new(),
            lost: false,
            stale: false,
            cost_micro: Vec::new(),
        }
    }

    /// The part of it that concerns `part`, a subset of `all`, the tasks it was said of.
    pub fn select(&self, all: &TaskSet, part: &TaskSet) -> Ended {
        if all == part {
            return self.clone();
        }
        let positions = || all.iter().enumerate().filter(|(_, t)| part.contains(*t)).map(|(k, _)| k);
        fn pick<T: Copy>(list: &[T], positions: impl Iterator<Item = usize>) -> Vec<T> {
            if list.len() <= 1 { list.to_vec() } else { positions.filter_map(|k| list.get(k).copied()).collect() }
        }
        Ended {
            phase: self.phase,
            exit: pick(&self.exit, positions()),
            reason: self.reason.clone(),
            attempts: self.attempts,
            route: self.route.clone(),
            wall_ms: pick(&self.wall_ms, positions()),
            cpu_us: pick(&self.cpu_us, positions()),
            peak_bytes: pick(&self.peak_bytes, positions()),
            age_ms: pick(&self.age_ms, positions()),
            measured: self.measured.clone(),
            lost: self.lost,
            stale: self.stale,
            cost_micro: pick(&self.cost_micro, positions()),
        }
    }

    /// The exit of the `k`-th task.
    pub fn exit_at(&self, k: usize) -> Exit {
        at(&self.exit, k).map_or(Exit::Unknown, Exit::from_number)
    }
}

/// The `k`-th entry of a per-task list: one entry stands for all.
pub fn at<T: Copy>(list: &[T], k: usize) -> Option<T> {
    if list.len() == 1 { list.first().copied() } else { list.get(k).copied() }
}

/// A per-task list, written as one entry where all are equal.
pub fn fold_equal<T: PartialEq + Copy>(list: Vec<T>) -> Vec<T> {
    match list.first() {
        Some(first) if list.iter().all(|x| x == first) => vec![*first],
        _ => list,
    }
}

/// Not durable, repeated after a reconnect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hint {
    /// Which attempts.
    pub of: Attempts,
    /// StagingIn, Running, Suspended or StagingOut.
    pub phase: Phase,
}

/// A child's full state as of `sequence`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resync {
    /// Of the child's store.
    pub incarnation: u64,
    /// Events follow from the next.
    pub sequence: u64,
    /// Every placement of this parent that the child knows, by phase.
    pub ranges: Vec<ResyncRange>,
    /// The last part.
    pub last: bool,
}

/// Tasks of one placement in one phase.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResyncRange {
    /// Which attempts.
    pub of: Attempts,
    /// Their phase at the child.
    pub phase: Phase,
    /// Set where it is terminal.
    pub ended: Option<Ended>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tasks() -> impl Strategy<Value = TaskSet> {
        proptest::collection::btree_set(0u32..30, 0..20).prop_map(|s| s.into_iter().collect())
    }

    fn value() -> impl Strategy<Value = WantValue> {
        prop_oneof![Just(WantValue::Run), Just(WantValue::Hold), Just(WantValue::Return), Just(WantValue::Cancel)]
    }

    proptest! {
        #[test]
        fn each_task_has_one_wish_and_the_last_wins(sets in proptest::collection::vec((value(), tasks()), 0..6)) {
            let all = TaskSet::range(0..30);
            let mut want = Want::default();
            let mut model = [WantValue::Run; 30];
            for (v, t) in &sets {
                want.set(*v, t);
                t.iter().for_each(|i| model[i as usize] = *v);
            }
            for v in [WantValue::Run, WantValue::Hold, WantValue::Return, WantValue::Cancel] {
                let expected: TaskSet = (0..30).filter(|i| model[*i as usize] == v).collect();
                prop_assert_eq!(want.tasks(v, &all), expected);
            }
        }

        #[test]
        fn select_keeps_each_task_its_own(all in tasks(), part in tasks()) {
            let part = part.intersect(&all);
            let mut e = Ended::not_started(Phase::Failed, Reason::new(crate::ReasonKind::Fenced, ""), 1);
            e.wall_ms = all.iter().map(u64::from).collect();
            e.exit = vec![3];
            let got = e.select(&all, &part);
            for (k, t) in part.iter().enumerate() {
                prop_assert_eq!(at(&got.wall_ms, k), Some(u64::from(t)));
                prop_assert_eq!(got.exit_at(k), Exit::Code(3));
            }
        }
    }
}
