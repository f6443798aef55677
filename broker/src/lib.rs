//! The broker: a gateway whose backend is a federation of gateways and brokers. Small on purpose.
#![forbid(unsafe_code)]

pub mod daemon;
pub mod federation;
pub mod policy;

pub use federation::Federation;
