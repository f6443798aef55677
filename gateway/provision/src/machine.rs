//! One machine, from the intent to rent it until its end is certain.

use std::fmt;

use intergrid_proto::share::Shape;

use crate::budget::Charge;
use crate::limits::AWAY_SUPPLY_MS;
use crate::market::{Billing, MachineType, OfferKey, Price};
use crate::money::{Money, Rate};

/// How far a machine has come, as far as is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// It is to be rented. The call has not been made, or is on its way, or nobody knows what came of it.
    Asked,
    /// The provider has named it.
    Named,
    /// It is gone, and what is billed for it at least, its hour or its `min_seconds`, is not over.
    Ended,
}

/// Why a machine is to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Nothing to do.
    Idle,
    /// A cap forbids its next lease.
    Budget,
    /// Its agent did not come in time, or stayed away for too long.
    Away,
    /// The provider takes it back. Machines say so themselves since (see `Leaving`); stored rows may have it.
    Interrupted,
    /// Its agent is not there, and it is no longer wanted.
    Surplus,
    /// Somebody said so.
    Ordered,
    /// It takes no new work of its own accord.
    Leaving,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Idle => "it has nothing to do",
            Why::Budget => "the budget does not pay for more of its time",
            Why::Away => "its agent is away",
            Why::Interrupted => "the provider takes it back",
            Why::Surplus => "it was not there yet, and is no longer wanted",
            Why::Ordered => "an administrator ended it",
            Why::Leaving => "it takes no new work any more",
        })
    }
}

/// What a machine was rented for: of the tasks that it was packed with, the largest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Need {
    /// What one of them asked for.
    pub shape: Shape,
    /// How many of them.
    pub tasks: u64,
    /// Whose.
    pub principal: String,
}

/// A machine. The first part is durable, the second is found again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    /// Of the intent: ascends, never given twice; the idempotency token and the tag of the launch.
    pub number: u64,
    /// What was rented.
    pub offer: OfferKey,
    /// Its size.
    pub kind: MachineType,
    /// For whom, whose budget pays as the tree is now: a principal; of an older version the root's name, until he moves.
    pub owner: String,
    /// What it was rented for; None: it was not written down.
    pub need: Option<Need>,
    /// As of the launch.
    pub price: Price,
    /// How far it is.
    pub stage: Stage,
    /// The provider's name for it; empty: not known.
    pub id: String,
    /// It is to be ended now, whatever it does.
    pub ending: Option<Why>,
    /// Its agent has not come yet; false, too, where nobody wrote down whether it has.
    pub awaited: bool,
    /// When the intent was made: ms since 1970.
    pub since_ms: u64,
    /// To who pays now it is charged at the most it can cost from then (before: at the dearest that it did cost, or to who paid then) ...
    pub settled_ms: u64,
    /// ... until then.
    pub paid_ms: u64,

    /// This process found it in the records, and neither its provider nor its agent has said that it is there.
    pub(crate) unheard: bool,
    /// Its times are ahead of the clock of this start, and nobody knows yet which of them is wrong.
    pub(crate) ahead: bool,
    /// It was not named yet, and has ended then, as its provider says.
    pub(crate) said_ms: Option<u64>,
    /// Something was placed there when this process began, or since.
    pub(crate) had_work: bool,
    /// Was a call made, in this process or before it?
    pub(crate) called: bool,
    pub(crate) in_flight: bool,
    pub(crate) calls: u32,
    pub(crate) call_ms: u64,
    /// What the provider said last of a launch of which nobody knows what came; empty: nothing yet.
    pub(crate) doubt: String,
    pub(crate) attached: bool,
    /// Its agent came then, and no task has ended there since. None: one has, or nobody knows, as after a restart.
    pub(crate) unproven_ms: Option<u64>,
    /// Waits for its agent since then.
    pub(crate) away_ms: u64,
    pub(crate) busy: u64,
    pub(crate) time_max_ms: u64,
    pub(crate) idle_ms: u64,
    /// Idle, and kept to the end of its hour only.
    pub(crate) marked: bool,
    pub(crate) draining: Option<Why>,
    /// It goes, though its hour is not over, so that others can be rented.
    pub(crate) in_the_way: bool,
    /// Why it takes no new work of its own accord; empty: it has not said so.
    pub(crate) word: String,
    pub(crate) drained: bool,
    /// An administrator keeps new work from it, or from the whole gateway.
    pub(crate) closed: bool,
    /// Its offer is no longer in the catalogue.
    pub(crate) unlisted: bool,
    /// The latest round had work for it.
    pub(crate) wanted: bool,
    /// Rounds that had none.
    pub(crate) useless: u32,
    pub(crate) missed: u32,
    /// Of the provider, or of its agent.
    pub(crate) word_ms: u64,
    pub(crate) terminate_ms: u64,
    /// The dearest since then.
    pub(crate) rate_max: Rate,
}

impl Machine {
    /// What is charged from one time to another, at the most it can cost.
    pub(crate) fn charge(&self, from_ms: u64, until_ms: u64) -> Vec<(u64, Money)> {
        Charge::lease(self.price.ceiling, self.price.billing, from_ms, until_ms)
    }

    /// For whom it was rented; empty: not known.
    pub fn principal(&self) -> &str {
        self.need.as_ref().map_or("", |n| &n.principal)
    }

    /// Of what it has been charged, what it has not used: from now to the end of its lease, of hours that are billed as a whole those that have not begun.
    /// All of it where nobody knows whether it exists.
    pub fn reserved(&self, now_ms: u64) -> Money {
        let days = if self.may_exist() { self.charge(self.unused_ms(now_ms), self.paid_ms) } else { Vec::new() };
        Charge { days, ..Charge::default() }.money()
    }

    /// From then on nothing is used yet of what it has been charged.
    pub(crate) fn unused_ms(&self, now_ms: u64) -> u64 {
        match self.price.billing {
            _ if self.id.is_empty() => self.since_ms,
            Billing::Hour => self.since_ms + (now_ms.saturating_sub(self.since_ms) / 3_600_000 + 1) * 3_600_000,
            Billing::Second { min_s } => now_ms.max(self.since_ms + u64::from(min_s) * 1_000),
        }
    }

    /// May it exist, and cost?
    pub fn may_exist(&self) -> bool {
        self.stage != Stage::Ended
    }

    /// Slots with work.
    pub fn busy(&self) -> u64 {
        if self.may_exist() { self.busy } else { 0 }
    }

    /// Is it on its way? One whose agent has come, and is away, no longer is.
    pub fn is_booting(&self) -> bool {
        self.may_exist() && self.ending.is_none() && self.awaited
    }

    /// Slots without work, now or when it is there.
    pub(crate) fn free(&self) -> u64 {
        let stays = self.may_exist() && self.ending.is_none() && self.draining.is_none_or(|why| why == Why::Idle);
        let may_take = stays && !self.drained && !self.closed;
        if may_take { u64::from(self.kind.slots).saturating_sub(self.busy) } else { 0 }
    }

    /// Are its free slots there for what waits, or will they be? Nobody knows it of one whose agent had come, and stays away.
    pub(crate) fn is_supply(&self, now_ms: u64) -> bool {
        self.attached || self.awaited || now_ms < self.away_ms + AWAY_SUPPLY_MS
    }

    /// It has had no work, and is wanted for none, for so long.
    pub(crate) fn is_idle(&self, now_ms: u64, for_ms: u64) -> bool {
        self.attached && self.busy == 0 && !self.wanted && now_ms >= self.idle_ms + for_ms
    }

    /// Is it kept to the end of its paid hour where it is idle? Not where nothing can come for the rest of that, nor where its type is no longer rented.
    pub(crate) fn is_kept(&self) -> bool {
        self.price.billing == Billing::Hour && !self.closed && !self.unlisted
    }

    /// Why, for people: of one that leaves in its own words.
    pub fn why(&self, why: Why) -> String {
        match why {
            Why::Idle if self.in_the_way => format!("{why}, and is in the way of other work"),
            Why::Leaving if !self.word.is_empty() => self.word.clone(),
            Why::Surplus if !self.awaited && !self.attached => "it has nothing to do, and its agent is away".into(),
            Why::Surplus if self.unlisted => "it was not there yet, and its type is no longer rented".into(),
            why => why.to_string(),
        }
    }

    /// Nobody knows whether it exists: for people, with what the provider said last; also while it is asked again. None, too, where it has said nothing yet.
    pub fn doubt(&self) -> Option<String> {
        let words = Some(&self.doubt).filter(|_| self.stage == Stage::Asked && !self.doubt.is_empty())?;
        Some(format!("not known whether it exists: {words}"))
    }

    /// In one clause, for people.
    pub fn state(&self) -> String {
        if let Some(doubt) = self.doubt() {
            return doubt;
        }
        match (self.stage, self.ending.or(self.draining)) {
            (Stage::Ended, _) => "ended; the least that is billed is not over".into(),
            (Stage::Asked, None) if !self.called || self.in_flight => "asked for".into(),
            (Stage::Asked, _) => "not known whether it exists".into(),
            (_, Some(why)) if self.ending.is_some() => format!("ending: {}", self.why(why)),
            (_, Some(why)) => format!("takes no new work: {}", self.why(why)),
            (_, None) if self.awaited => "booting".into(),
            (_, None) if !self.attached => Why::Away.to_string(),
            (_, None) if self.marked => "idle, kept to the end of its hour".into(),
            (_, None) if self.busy == 0 => "idle".into(),
            (_, None) => "working".into(),
        }
    }
}
