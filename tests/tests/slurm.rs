//! The real Slurm: what the tests stand on, and what a gateway in front of it has to hold.

#[path = "slurm/fixture.rs"]
mod fixture;
