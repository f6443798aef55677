//! Bounds of this crate, the unit last. Those of the protocol are in `intergrid_proto::limits`.

/// A command of the LRMS that has not ended by then is killed, and what it did is unknown.
pub const COMMAND_TIMEOUT_MS: u64 = 30_000;
/// What a command may print; more ends it.
pub const COMMAND_OUTPUT_BYTES_MAX: usize = 64 << 20;
/// Of a command's complaint, in a reason.
pub const COMPLAINT_CHARS_MAX: usize = 300;
/// Tasks of one submission. Slurm's `MaxArraySize` may make it less.
pub const SUBMISSION_TASKS_MAX: usize = 1_000;
