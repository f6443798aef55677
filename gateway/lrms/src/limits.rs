//! Bounds of this crate, the unit last. Those of the protocol are in `intergrid_proto::limits`.

/// A command of the LRMS that has not ended by then is killed, and what it did is unknown.
pub const COMMAND_TIMEOUT_MS: u64 = 30_000;
/// What a command may print; more ends it.
pub const COMMAND_OUTPUT_BYTES_MAX: usize = 64 << 20;
/// Of a command's complaint, in a reason.
pub const COMPLAINT_CHARS_MAX: usize = 300;
/// Tasks of one submission. Slurm's `MaxArraySize` may make it less.
pub const SUBMISSION_TASKS_MAX: usize = 1_000;
/// A test task of an examination has run by then.
pub const DOCTOR_TASK_MS: u64 = 120_000;
/// Its pause between two looks.
pub const DOCTOR_LOOK_MS: u64 = 300;
/// Clocks may differ by so much; a file may take so long to be seen on another machine.
pub const DOCTOR_CLOCK_MS_MAX: u64 = 10_000;
