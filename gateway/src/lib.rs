//! The gateway.
#![forbid(unsafe_code)]
pub mod backend;
pub mod store;
