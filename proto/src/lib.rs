//! The contract of Intergrid: what sites say to each other, and the laws of the words they use.
//!
//! `pb` holds the generated wire types. They stop at [`convert`]: everything else speaks the domain types, which are parsed once and then cannot be
//! wrong. The default features have no async, clock or I/O; feature `net` adds TLS, identity and the typed client, which all ends share.

#![forbid(unsafe_code)]

pub mod convert;
pub mod error;
pub mod ids;
pub mod limits;
pub mod link;
pub mod money;
#[cfg(feature = "net")]
pub mod net;
pub mod pace;
pub mod phase;
pub mod reason;
pub mod share;
pub mod spec;
pub mod tasks;
pub mod units;

/// Generated wire types and services (package `intergrid.v1`).
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/intergrid.v1.rs"));
}

pub use error::{Refusal, RefusalKind};
pub use ids::{BlobHash, JobNo, SiteId};
pub use money::Money;
pub use pace::Pace;
pub use phase::{Exit, Phase};
pub use reason::{Reason, ReasonKind};
pub use share::{Shape, Share};
pub use spec::JobSpec;
pub use tasks::TaskSet;

/// The protocol spoken on every link; a peer with another number is refused.
pub const PROTOCOL: u32 = 1;
