//! Faults that a test plants, one at a time, to see that the simulator finds them. Without the feature `planted`, which only the tests' crate asks for,
//! every question below is `false` when it is compiled, and nothing of this is in the program.

use super::change::What;

/// What can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// A submission is answered while it waits for a commit.
    AnswerBeforeCommit,
    /// A child's events are acknowledged while they wait for a commit.
    AckBeforeCommit,
    /// Lost attempts are placed again without a fence.
    NoFence,
    /// A register that came before its placement, or with it, is not looked at.
    LateSubmit,
    /// A placement gets the number of the last one.
    NumberReused,
    /// Hops are not counted.
    NoHopLimit,
    /// Children are not told of wishes.
    CancelLost,
    /// What a child gave back counts as an attempt.
    ReturnCounts,
    /// Slots of ended tasks stay taken.
    CreditKept,
    /// A full state leaves its last range out.
    ResyncSkips,
    /// Usage is not kept.
    UsageDropped,
    /// A child's events are counted on from its last store's.
    IncarnationIgnored,
    /// An end is taken whatever placement it is of.
    StaleCounts,
    /// One slot less is admitted than was advertised.
    AdmitsLess,
    /// A key is good for any spec.
    AnySpec,
    /// A restart forgets registers.
    ReplayForgets,
    /// What is in doubt after the loss of a store is started.
    DoubtStarts,
    /// What a child is found to have is placed on it as something new.
    AdoptRestarts,
    /// Numbers that an older store has given are given again.
    NumbersAnew,
}

impl Plant {
    /// All of them.
    pub const ALL: [Plant; 19] = {
        use Plant::*;
        [
            AnswerBeforeCommit,
            AckBeforeCommit,
            NoFence,
            LateSubmit,
            NumberReused,
            NoHopLimit,
            CancelLost,
            ReturnCounts,
            CreditKept,
            ResyncSkips,
            UsageDropped,
            IncarnationIgnored,
            StaleCounts,
            AdmitsLess,
            AnySpec,
            ReplayForgets,
            DoubtStarts,
            AdoptRestarts,
            NumbersAnew,
        ]
    };
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Plant>> = const { std::cell::Cell::new(None) };
}

/// Plant this in all cores that this thread drives from now on, or nothing.
#[cfg(feature = "planted")]
pub fn plant(what: Option<Plant>) {
    PLANTED.set(what);
}

/// Is this planted?
#[cfg(feature = "planted")]
#[inline]
pub(super) fn planted(what: Plant) -> bool {
    PLANTED.get() == Some(what)
}

/// Is this planted? Never.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub(super) fn planted(_: Plant) -> bool {
    false
}

/// Does this record wait for another's commit, though it should not?
#[inline]
pub(super) fn is_late(what: &What) -> bool {
    match what {
        What::Job(_) | What::Tasks(_) => planted(Plant::AnswerBeforeCommit),
        What::Cursor(_) | What::Accepted(_) | What::Ended(_) | What::Emit(_) => planted(Plant::AckBeforeCommit),
        _ => false,
    }
}
