//! The verbs and the roles of `grid`, as a user meets them: real processes, one gateway with one agent of two slots, where it matters below a broker.

#[allow(dead_code)]
#[path = "faults/tree.rs"]
mod tree;
#[allow(dead_code)]
#[path = "faults/user.rs"]
mod user;

#[path = "cli/comforts.rs"]
mod comforts;
#[path = "cli/daemons.rs"]
mod daemons;
#[path = "cli/demo.rs"]
mod demo;
#[path = "cli/environment.rs"]
mod environment;
#[path = "cli/jobs.rs"]
mod jobs;
#[path = "cli/live.rs"]
mod live;
#[path = "cli/orders.rs"]
mod orders;
#[path = "cli/past.rs"]
mod past;
#[path = "cli/refusals.rs"]
mod refusals;
#[path = "cli/staging.rs"]
mod staging;
#[path = "cli/watched.rs"]
mod watched;
#[path = "cli/why.rs"]
mod why;
