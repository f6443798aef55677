//! The provisioner: which machines to rent, which to keep, which to end, under budgets that can't be broken.
//!
//! Pure: `(state, input, now) -> records and actions`. It knows no provider, no network and no clock. The shell commits the records of a step before it
//! performs the step's actions; after a crash it applies what was committed, and [`Provisioner::resume`] says what is due.
//!
//! Invariants, each a property test (`tests`):
//! - a machine is charged to its budget, at the most it can cost, before the call that may launch it, and until its end is certain;
//! - what is charged to a budget is never above its cap, for every node of the tree, every day and every month, except for what a machine costs that does
//!   not end although it was told to, and what ran while nobody was here (then nothing new is rented);
//! - where a cap is lowered under what is charged, nothing is rented, and nothing more is charged, until it is below the cap again;
//! - no machine is rented that demand does not ask for, those that boot counted;
//! - a machine that exists and that no intent knows is ended.
//!
//! Sources of the rules: the budget rate and the marked machine at the end of its hour, the GridWay EC2 service manager; the damped ramp-up and the ladder
//! of removals, glideinWMS; the ceiling by types, OpenNebula's EC2 driver.

#![forbid(unsafe_code)]

mod absence;
mod ask;
mod budget;
mod clock;
mod core;
mod input;
mod left_alone;
pub mod limits;
mod machine;
mod market;
mod money;
mod pack;
mod promise;
mod records;
mod room;
mod round;
mod terms;
#[cfg(test)]
mod tests;

pub use ask::{Ask, Curb, ask};
pub use budget::{Budget, Caps, Charge, Ledger, Node, Over};
pub use clock::Clock;
pub use core::{Provisioner, Settings};
pub use input::{Action, Input, Outcome, Refused, Seen, SeenState};
pub use machine::{Machine, Need, Stage, Why};
pub use market::{Billing, Catalogue, MachineType, Offer, OfferKey, Price};
pub use money::{Money, Rate};
pub use pack::{Demand, Supply};
pub use promise::Promise;
pub use records::Record;
pub use round::{Round, Unmet, UnmetWhy};
pub use terms::Terms;
