//! The gateway: exposes a whole local grid or cloud account as one resource over one service.
//!
//! The engine is a pure [`core`] in a thin shell ([`engine`]); what runs tasks is a [`backend`]; the northbound [`service`] is the only one there is,
//! for a broker too, which is this over a federation.

#![forbid(unsafe_code)]

pub mod backend;
pub mod backends;
pub mod blobs;
pub mod config;
pub mod core;
pub mod daemon;
pub mod daemon_files;
pub mod durable;
pub mod engine;
mod heard;
pub mod joins;
pub mod laws;
pub mod metrics;
pub mod outputs;
pub mod queue;
pub mod reload;
pub mod rent;
pub mod room;
pub mod service;
pub mod staging;
pub mod store;
pub mod traces;
