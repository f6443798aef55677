//! A whole cluster behind a gateway: tasks run under a local resource manager (LRMS), which this crate speaks to by its own commands.
//!
//! One child per offered queue: the agent's core and spool with another executor, in this process. So claims, holds, returns, fences, full states and the
//! adoption after a lost store are those of an agent. What is common to all LRMS is here; what differs is behind [`Lrms`], one module for each.
//!
//! Invariants: a payload starts at most once per claim, whatever the LRMS does, because the wrapper script takes an exclusive claim on the shared file
//! system first; a task ends only on evidence (its exit record, the LRMS's record, or a claim that we hold ourselves); what is not in the queue is unknown.

pub mod accounts;
pub mod batches;
pub mod books;
pub mod bound;
pub mod child;
pub mod command;
pub mod daemon;
pub mod doctor;
pub mod driver;
pub mod gridengine;
pub mod hand;
pub mod limits;
pub mod log;
pub mod lrms;
pub mod mixed;
pub mod pilot;
pub mod pool;
pub mod positions;
pub mod records;
pub mod script;
pub mod slurm;
#[cfg(test)]
mod tests;
pub mod verdict;

pub use driver::Parts;
pub use lrms::Lrms;
pub use pool::LrmsPool;
