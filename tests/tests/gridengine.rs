//! The real Grid Engine: what the tests stand on, and what a gateway in front of it has to hold.

#[path = "gridengine/defaults.rs"]
mod defaults;
#[path = "gridengine/doctor.rs"]
mod doctor;
#[path = "gridengine/fixture.rs"]
mod fixture;
#[path = "gridengine/lrms.rs"]
mod lrms;
