//! The real Slurm: what the tests stand on, and what a gateway in front of it has to hold.

#[path = "slurm/doctor.rs"]
mod doctor;
#[path = "slurm/fixture.rs"]
mod fixture;
#[path = "slurm/lrms.rs"]
mod lrms;
