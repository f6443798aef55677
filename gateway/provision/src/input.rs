//! What the provisioner is told, and what it wants done.

use std::collections::BTreeMap;

use intergrid_proto::{Refusal, RefusalKind};

use crate::machine::Why;
use crate::market::{OfferKey, Price};
use crate::money::Rate;
use crate::pack::Demand;
use crate::terms::Terms;

/// What came of a call that launches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The provider's name for it.
    Launched(String),
    /// It is certain that nothing was launched.
    Refused(Refused, String),
    /// No answer, or one that says nothing: it may have been launched. For people, what is known of why.
    Unknown(String),
}

/// Why a launch was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// No capacity of this offer.
    Capacity,
    /// This offer can't be launched as it is written: its type, its place, what they have to do with the image.
    Offer,
    /// The account's limit for this type of machine.
    Limit,
    /// Nothing can be launched: credentials, a bad image, the configuration.
    Provider,
    /// There is no room on a disk of ours for what it writes: nothing is wrong with the provider.
    NoRoom,
    /// Asked too often: nothing is wrong with it.
    Throttled,
    /// What the token launched is gone already.
    TokenSpent,
}

impl Refused {
    /// It failed on our side, before the provider was asked.
    pub fn by_us(why: &Refusal) -> Refused {
        if why.kind == RefusalKind::OverLimit { Refused::NoRoom } else { Refused::Provider }
    }
}

/// A machine that bears our tag, as the provider lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The provider's name for it.
    pub id: String,
    /// The number in its tag; None: not readable.
    pub number: Option<u64>,
    /// Its type; None: not said.
    pub machine: Option<String>,
    /// How it is.
    pub state: SeenState,
    /// When it ended, by the provider's word: ms since 1970. None: it has not, or that is not said.
    pub ended_ms: Option<u64>,
}

/// How a provider sees a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeenState {
    /// It exists, and costs.
    Exists,
    /// It goes, and no longer costs.
    Ending,
    /// It is gone.
    Ended,
}

/// What may happen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// Tasks that wait and have nowhere to go, all of them; those of another time are forgotten.
    Demand(Vec<Demand>),
    /// A launch call has ended.
    Answered(u64, Outcome),
    /// A terminate call has ended: how the machine is now, if that was said.
    Terminated(u64, Option<SeenState>),
    /// All machines that bear our tag, as of a look that began then; None: the look failed.
    Listed(u64, Option<Vec<Seen>>),
    /// Its agent is there.
    Attached(u64),
    /// Its agent is away.
    Detached(u64),
    /// Slots with work.
    Busy(u64, u64),
    /// Tasks are placed there that have not ended, or may run on.
    Open(u64),
    /// A task has ended there.
    Worked(u64),
    /// The longest that a task can take there now: milliseconds; 0: not limited.
    Time(u64, u64),
    /// It is drained: no work is there, and none will come.
    Drained(u64),
    /// It takes no new work of its own accord, in its own words: its time is nearly over, its provider takes it back, its disk is full.
    Leaving(u64, String),
    /// An administrator keeps new work from it, or from the whole gateway, or no longer does.
    Closed(u64, bool),
    /// An administrator wants it ended.
    End(u64),
    /// The gateway stops, and ends it.
    EndsWithUs(u64),
    /// The configuration says something else. Nobody may be missing in its budget, or be below somebody else: see [`crate::Budget::moved`].
    Terms(Box<Terms>),
    /// Prices of the spot market, by type of machine.
    SpotPrices(BTreeMap<String, Rate>),
    /// The clock was set ahead by so much: ms. To be told before anything else is by it.
    Stepped(u64),
    /// Time has passed.
    Tick,
}

/// What is to be done, after the records of the same step are durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Launch a machine; the number is the idempotency token and the tag. An `Answered` follows, in bounded time.
    Launch {
        /// Its number.
        number: u64,
        /// What.
        offer: OfferKey,
        /// Its price, the bid among it.
        price: Price,
    },
    /// End a machine. A `Terminated` follows.
    Terminate {
        /// Its number.
        number: u64,
        /// The provider's name for it.
        id: String,
    },
    /// End a machine of ours that nobody knows. Nothing follows but the next look.
    TerminateStranger(String),
    /// Place no more work there; say `Drained` when none is left.
    Drain(u64, Why),
    /// Work may be placed there again.
    Undrain(u64),
    /// List all machines that bear our tag. A `Listed` follows, in bounded time.
    Look,
}
