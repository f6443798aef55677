//! The changes: everything durable that ever happens at a site, as records that are appended and replayed. Tags never change their meaning; the
//! golden test keeps the form.

use intergrid_proto::link::{Want, WantValue};
use intergrid_proto::{SiteId, TaskSet, pb};
use prost::Message;

/// A numbered change, as stored.
#[derive(Clone, PartialEq, Message)]
pub struct Change {
    #[prost(oneof = "What", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20")]
    pub what: Option<What>,
}

/// What happened.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum What {
    /// The store is new, or was found to be old: its incarnation from here on.
    #[prost(message, tag = "1")]
    Born(Born),
    /// A job that this site did not know.
    #[prost(message, tag = "2")]
    Job(JobNew),
    /// Tasks have arrived here, by a user's submission or a parent's placement.
    #[prost(message, tag = "3")]
    Tasks(TasksAdded),
    /// The register of a job.
    #[prost(message, tag = "4")]
    Want(WantSet),
    /// A placement was issued: it may be sent from now on.
    #[prost(message, tag = "5")]
    Placed(Placed),
    /// The child has it.
    #[prost(message, tag = "6")]
    Accepted(OfPlacement),
    /// Tasks are in a terminal phase.
    #[prost(message, tag = "7")]
    Ended(TasksEnded),
    /// Tasks of a placement wait here again.
    #[prost(message, tag = "8")]
    Requeued(Requeued),
    /// As Requeued (or ended), but the old attempt may still run: it no longer counts.
    #[prost(message, tag = "9")]
    Fenced(Requeued),
    /// Fenced attempts have stopped.
    #[prost(message, tag = "10")]
    Stopped(OfPlacement),
    /// Tasks went back to the parent.
    #[prost(message, tag = "11")]
    GivenBack(OfPlacement),
    /// Queued to Held or back; Held below or back.
    #[prost(message, tag = "12")]
    Phase(PhaseSet),
    /// Events of a child are committed up to here.
    #[prost(message, tag = "13")]
    Cursor(Cursor),
    /// An event for a parent.
    #[prost(message, tag = "14")]
    Emit(Emit),
    /// A placement number of a parent was seen.
    #[prost(message, tag = "15")]
    Seen(Cursor),
    /// A parent has committed our events up to here.
    #[prost(message, tag = "16")]
    Acked(Cursor),
    /// Tasks that were here for an older incarnation of the parent are here for this placement from now on.
    #[prost(message, tag = "17")]
    Adopted(TasksAdded),
    /// Tasks that wait here and may have been started by somebody below, or ended, while this store did not know: nobody starts them.
    #[prost(message, tag = "18")]
    Doubted(OfPlacement),
    /// This site or a child takes no new work, or takes it again.
    #[prost(message, tag = "19")]
    Drained(Drained),
    /// So many tasks of an array at a time.
    #[prost(message, tag = "20")]
    Throttled(Throttled),
}

#[derive(Clone, PartialEq, Message)]
pub struct Born {
    #[prost(uint64, tag = "1")]
    pub incarnation: u64,
    /// Something that this site once knew may be missing: its peers are asked.
    #[prost(bool, tag = "2")]
    pub recovering: bool,
    /// An incarnation of ours that only a peer knew of.
    #[prost(uint64, tag = "3")]
    pub told: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Drained {
    #[prost(bytes = "vec", tag = "1")]
    pub site: Vec<u8>,
    #[prost(bool, tag = "2")]
    pub drained: bool,
    #[prost(string, tag = "3")]
    pub reason: String,
    #[prost(string, tag = "4")]
    pub by: String,
    /// Milliseconds since 1970, this site's clock.
    #[prost(uint64, tag = "5")]
    pub since_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Throttled {
    #[prost(uint64, tag = "1")]
    pub job: u64,
    /// 0: as many as can be.
    #[prost(uint32, tag = "2")]
    pub at_once: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct JobNew {
    #[prost(uint64, tag = "1")]
    pub job: u64,
    /// Empty: a user's.
    #[prost(bytes = "vec", tag = "2")]
    pub parent: Vec<u8>,
    #[prost(uint64, tag = "3")]
    pub parent_job: u64,
    #[prost(string, tag = "4")]
    pub key: String,
    #[prost(bytes = "vec", tag = "5")]
    pub owner: Vec<u8>,
    #[prost(string, tag = "6")]
    pub owner_name: String,
    #[prost(message, optional, tag = "7")]
    pub origin: Option<pb::Origin>,
    #[prost(bytes = "vec", tag = "8")]
    pub spec_hash: Vec<u8>,
    #[prost(uint32, tag = "9")]
    pub size: u32,
    /// Milliseconds since 1970, this site's clock.
    #[prost(uint64, tag = "10")]
    pub created_ms: u64,
    #[prost(bytes = "vec", repeated, tag = "11")]
    pub route: Vec<Vec<u8>>,
    #[prost(uint32, tag = "12")]
    pub hops_left: u32,
    #[prost(message, repeated, tag = "13")]
    pub chain: Vec<pb::ChainLink>,
    #[prost(uint64, tag = "14")]
    pub parent_incarnation: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct TasksAdded {
    #[prost(uint64, tag = "1")]
    pub job: u64,
    /// The parent's placement; 0: a user's submission.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    #[prost(string, tag = "3")]
    pub share: String,
    #[prost(uint32, repeated, tag = "4")]
    pub tasks: Vec<u32>,
    #[prost(uint32, tag = "5")]
    pub attempts: u32,
    #[prost(uint64, tag = "6")]
    pub cost: u64,
    /// The parent's incarnation and job, where they are not those of the job's record.
    #[prost(uint64, tag = "7")]
    pub incarnation: u64,
    #[prost(uint64, tag = "8")]
    pub parent_job: u64,
    /// Adopted: which of the job's parent placements they leave, and how many of them are open.
    #[prost(uint32, tag = "9")]
    pub from: u32,
    #[prost(uint64, tag = "10")]
    pub open: u64,
    /// What an attempt of one of them may cost at most: millionths.
    #[prost(uint64, tag = "11")]
    pub most_micro: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct WantSet {
    /// Ours; 0 where we do not know the job (yet).
    #[prost(uint64, tag = "1")]
    pub job: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub parent: Vec<u8>,
    /// `want.job` is the parent's number; for a user's job it is ours.
    #[prost(message, optional, tag = "3")]
    pub want: Option<pb::Want>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Placed {
    #[prost(uint64, tag = "1")]
    pub job: u64,
    #[prost(uint64, tag = "2")]
    pub number: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub child: Vec<u8>,
    #[prost(string, tag = "4")]
    pub share: String,
    #[prost(uint32, repeated, tag = "5")]
    pub tasks: Vec<u32>,
    /// Slots that each task takes up there.
    #[prost(uint64, tag = "6")]
    pub cost: u64,
    #[prost(uint32, tag = "7")]
    pub attempts: u32,
    /// The child holds them already, under this name.
    #[prost(message, optional, tag = "8")]
    pub adopt: Option<pb::Former>,
    /// What an attempt of one of them costs there at most: millionths. Of jobs with a cap alone.
    #[prost(uint64, tag = "9")]
    pub most_micro: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct OfPlacement {
    #[prost(uint64, tag = "1")]
    pub job: u64,
    #[prost(uint64, tag = "2")]
    pub number: u64,
    #[prost(uint32, repeated, tag = "3")]
    pub tasks: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TasksEnded {
    #[prost(uint64, tag = "1")]
    pub job: u64,
    /// Ours; 0: they were not placed.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    #[prost(uint32, repeated, tag = "3")]
    pub tasks: Vec<u32>,
    #[prost(int32, tag = "4")]
    pub phase: i32,
    #[prost(uint32, repeated, tag = "5")]
    pub exit: Vec<u32>,
    #[prost(uint32, tag = "6")]
    pub attempts: u32,
    #[prost(uint64, tag = "7")]
    pub at_ms: u64,
    #[prost(bytes = "vec", tag = "8")]
    pub child: Vec<u8>,
    /// What these attempts are charged to the job: millionths.
    #[prost(uint64, tag = "9")]
    pub spent_micro: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Requeued {
    #[prost(uint64, tag = "1")]
    pub job: u64,
    #[prost(uint64, tag = "2")]
    pub number: u64,
    #[prost(uint32, repeated, tag = "3")]
    pub tasks: Vec<u32>,
    /// Used from now on.
    #[prost(uint32, tag = "4")]
    pub attempts: u32,
    /// Held instead of Queued: they are used up.
    #[prost(bool, tag = "5")]
    pub held: bool,
    /// As of TasksEnded. Filled in where it is recorded.
    #[prost(uint64, tag = "6")]
    pub spent_micro: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct PhaseSet {
    #[prost(uint64, tag = "1")]
    pub job: u64,
    #[prost(uint32, repeated, tag = "2")]
    pub tasks: Vec<u32>,
    #[prost(int32, tag = "3")]
    pub phase: i32,
    /// Attempts start anew (somebody released tasks that had used them up).
    #[prost(bool, tag = "4")]
    pub anew: bool,
    /// Held below, where nobody knows what became of it.
    #[prost(bool, tag = "5")]
    pub lost: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Cursor {
    #[prost(bytes = "vec", tag = "1")]
    pub peer: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    #[prost(uint64, tag = "3")]
    pub number: u64,
    /// The peer's label and kind, where they are new.
    #[prost(string, tag = "4")]
    pub name: String,
    #[prost(int32, tag = "5")]
    pub kind: i32,
    /// A child has seen placements of ours up to here: numbers go on behind it.
    #[prost(uint64, tag = "6")]
    pub issued: u64,
    /// Of a parent's placements below this number we may have forgotten some. Of a child: up to here they were sent to a store that is no more.
    #[prost(uint64, tag = "7")]
    pub complete_from: u64,
    /// Seen: the parent has said all that it holds open here to this incarnation of ours.
    #[prost(uint64, tag = "8")]
    pub heard: u64,
    /// Of a child: 1: it is attached from here on, 2: it is gone, 0: as before.
    #[prost(uint32, tag = "9")]
    pub attached: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Emit {
    #[prost(bytes = "vec", tag = "1")]
    pub parent: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    #[prost(message, optional, tag = "3")]
    pub event: Option<pb::Event>,
    /// When, so that ages can be told when it is sent.
    #[prost(uint64, tag = "4")]
    pub at_ms: u64,
}

/// A site's id from a record; a record of ours always has 16 bytes.
pub fn site(bytes: &[u8]) -> SiteId {
    SiteId::from_slice(bytes).unwrap_or_default()
}

/// A task set from a record.
pub fn tasks(runs: &[u32]) -> TaskSet {
    TaskSet::from_runs(runs).unwrap_or_default()
}

/// A register from a record.
pub fn want(w: &Option<pb::Want>) -> Want {
    w.clone().and_then(|w| Want::try_from(w).ok()).unwrap_or_default()
}

/// Anything but `Run` is wished of somebody.
pub fn wishes(w: &Want) -> bool {
    w.ranges.iter().any(|(v, _)| *v != WantValue::Run)
}
