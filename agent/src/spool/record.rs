//! What the spool holds: records of durable change, in the agent's own format. Field numbers never change their meaning; a golden file guards them.

use intergrid_proto::pb;
use prost::{Message, Oneof};

/// One frame: all of it is durable, or none.
#[derive(Clone, PartialEq, Message)]
pub struct Batch {
    /// In order.
    #[prost(message, repeated, tag = "1")]
    pub records: Vec<Record>,
}

/// One durable change.
#[derive(Clone, PartialEq, Message)]
pub struct Record {
    /// None: of a later version.
    #[prost(oneof = "What", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13")]
    pub what: Option<What>,
}

/// Which change.
#[derive(Clone, PartialEq, Oneof)]
pub enum What {
    /// Whose spool this is.
    #[prost(message, tag = "1")]
    Bound(Bound),
    /// A new incarnation, or the counters of a snapshot.
    #[prost(message, tag = "2")]
    Counters(Counters),
    /// The bytes of a spec, before the first placement that needs them.
    #[prost(bytes, tag = "3")]
    Spec(Vec<u8>),
    /// A placement was taken on.
    #[prost(message, tag = "4")]
    Placed(Placed),
    /// Tasks are about to be started.
    #[prost(message, tag = "5")]
    Claimed(Claimed),
    /// Claimed tasks that were not started after all, and wait again.
    #[prost(message, tag = "6")]
    Unclaimed(Claimed),
    /// A task's process.
    #[prost(message, tag = "7")]
    Started(Started),
    /// A task's process group is gone; its outputs are still to be sent.
    #[prost(message, tag = "8")]
    Exited(Exited),
    /// An event for the parent. Its sequence is one more than the last.
    #[prost(message, tag = "9")]
    Event(pb::Event),
    /// The register of a job.
    #[prost(message, tag = "10")]
    Want(pb::Want),
    /// The parent has committed events up to here.
    #[prost(uint64, tag = "11")]
    Acked(u64),
    /// Tasks go on under another number: the gateway has lost the store by which it knew the old one.
    #[prost(message, tag = "12")]
    Adopted(Adopted),
    /// Tasks have ended, and are remembered beyond the gateway's acknowledgement.
    #[prost(message, tag = "13")]
    Over(Over),
}

/// A new name.
#[derive(Clone, PartialEq, Message)]
pub struct Adopted {
    /// The gateway's number now.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The gateway's job now.
    #[prost(uint64, tag = "2")]
    pub job: u64,
    /// The number under which they were placed.
    #[prost(uint64, tag = "3")]
    pub placed: u64,
    /// Which tasks; none: they have all ended, and only the number counts.
    #[prost(message, optional, tag = "4")]
    pub tasks: Option<pb::Tasks>,
    /// The gateway's incarnation.
    #[prost(uint64, tag = "5")]
    pub incarnation: u64,
}

/// How tasks ended.
#[derive(Clone, PartialEq, Message)]
pub struct Over {
    /// The number under which they were known at their end.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Which of them.
    #[prost(message, optional, tag = "2")]
    pub tasks: Option<pb::Tasks>,
    /// How; `age_ms` is the Unix time of the end.
    #[prost(message, optional, tag = "3")]
    pub ended: Option<pb::Ended>,
    /// Of a snapshot: forget what is remembered so far; all placements below this number may be forgotten.
    #[prost(uint64, tag = "4")]
    pub complete_from: u64,
    /// Of a snapshot: the placement, which is over.
    #[prost(message, optional, tag = "5")]
    pub of: Option<Placed>,
}

/// Whose spool this is.
#[derive(Clone, PartialEq, Message)]
pub struct Bound {
    /// The gateway's id; empty: not known yet.
    #[prost(bytes = "vec", tag = "1")]
    pub gateway: Vec<u8>,
    /// Fingerprint of the machine.
    #[prost(bytes = "vec", tag = "2")]
    pub machine: Vec<u8>,
    /// The gateway's name.
    #[prost(string, tag = "3")]
    pub name: String,
}

/// What only ever counts up.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Counters {
    /// Of this spool; never 0.
    #[prost(uint64, tag = "1")]
    pub incarnation: u64,
    /// Highest event sequence issued.
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    /// Highest event sequence that the parent has committed; the log holds those above.
    #[prost(uint64, tag = "3")]
    pub acked: u64,
    /// Highest placement number seen.
    #[prost(uint64, tag = "4")]
    pub highest: u64,
    /// The gateway's incarnation as last seen.
    #[prost(uint64, tag = "5")]
    pub peer: u64,
}

/// A placement.
#[derive(Clone, PartialEq, Message)]
pub struct Placed {
    /// The gateway's number.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The gateway's job.
    #[prost(uint64, tag = "2")]
    pub job: u64,
    /// Of the spec.
    #[prost(bytes = "vec", tag = "3")]
    pub spec_hash: Vec<u8>,
    /// Its tasks that have not ended.
    #[prost(message, optional, tag = "4")]
    pub open: Option<pb::Tasks>,
    /// Attempts used before.
    #[prost(uint32, tag = "5")]
    pub attempts: u32,
    /// The job's id as its user knows it.
    #[prost(string, tag = "6")]
    pub origin_job: String,
    /// Tasks of the whole array.
    #[prost(uint32, tag = "7")]
    pub array_size: u32,
    /// Where its user submitted.
    #[prost(bytes = "vec", tag = "8")]
    pub origin_site: Vec<u8>,
    /// The user.
    #[prost(string, tag = "9")]
    pub principal: String,
    /// The gateway's incarnation; 0: the one that the counters say.
    #[prost(uint64, tag = "10")]
    pub incarnation: u64,
    /// Slots that each task counts for.
    #[prost(uint64, tag = "11")]
    pub cost: u64,
    /// When its user submitted, by the clock there; 0: not known.
    #[prost(uint64, tag = "12")]
    pub submitted_ms: u64,
}

/// Tasks of one placement.
#[derive(Clone, PartialEq, Message)]
pub struct Claimed {
    /// The placement.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Which tasks.
    #[prost(message, optional, tag = "2")]
    pub tasks: Option<pb::Tasks>,
    /// The boot in which they are claimed.
    #[prost(bytes = "vec", tag = "3")]
    pub boot: Vec<u8>,
}

/// A task's process.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Started {
    /// The placement.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The task.
    #[prost(uint32, tag = "2")]
    pub task: u32,
    /// Its process, and process group.
    #[prost(int32, tag = "3")]
    pub pid: i32,
    /// The process's start in clock ticks since boot: with the boot, it tells it from a later one of the same pid.
    #[prost(uint64, tag = "4")]
    pub ticks: u64,
    /// Unix time, milliseconds.
    #[prost(uint64, tag = "5")]
    pub at_ms: u64,
}

/// The exit record of a task.
#[derive(Clone, PartialEq, Message)]
pub struct Exited {
    /// The placement.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The task.
    #[prost(uint32, tag = "2")]
    pub task: u32,
    /// The end that will be reported when its outputs have arrived; `age_ms` is the Unix time of the end.
    #[prost(message, optional, tag = "3")]
    pub ended: Option<pb::Ended>,
    /// Files to send.
    #[prost(string, repeated, tag = "4")]
    pub files: Vec<String>,
}
