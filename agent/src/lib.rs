//! The agent: measures a machine, runs tasks, dials its gateway.
//!
//! It is the child end of the link protocol, with one share: this machine. What it accepted is durable in its spool before it says so, a task is claimed
//! before it starts, and its end is durable before it is reported; so it can die at any moment and go on. It knows no other job than those placed here,
//! and schedules nothing beyond its own slots.
//!
//! `core` decides, `shell` waits and `desk` acts, `exec` runs processes, `spool` and `state` are what is durable, `dial`, `fetch` and `upload` are the wire.

#![forbid(unsafe_code)]

mod alone;
pub mod config;
pub mod core;
mod desk;
pub mod dial;
pub mod exec;
pub mod fetch;
mod join;
pub mod left;
pub mod limits;
mod live;
pub mod log;
pub mod machine;
pub mod notice;
pub mod past;
pub mod plan;
pub mod shell;
pub mod spool;
mod start;
pub mod state;
pub mod upload;

pub use config::AgentConfig;
pub use shell::{Options, run};
