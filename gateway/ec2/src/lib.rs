//! Machines rented at EC2, or at what speaks its language: the contract of [`Cloud`](intergrid_gateway::rent::Cloud), and the gateway that uses it.
//!
//! It does as it is told, and tells the truth of what it saw: which machines, when, and for how much is the provisioner's to say.

pub mod cloud;
pub mod daemon;
pub mod doctor;
mod outcome;
mod tokens;
pub mod user_data;
