//! Every bound of the protocol in one place; the unit is the last word of the name. What a site may choose lower is in its configuration.

/// Tasks of one job array.
pub const TASKS_PER_JOB_MAX: u32 = 4_000_000;
/// Ranges of one task set on the wire.
pub const TASK_RANGES_MAX: usize = 65_536;
/// Encoded job spec.
pub const SPEC_BYTES_MAX: usize = 60 * 1024;
/// Arguments of one job, environment variables, inputs and outputs: each.
pub const SPEC_ITEMS_MAX: usize = 1_000;
/// Any name that a user gives: a job, a file, an environment variable, a key.
pub const NAME_BYTES_MAX: usize = 128;
/// A request for a certificate, in DER.
pub const CSR_BYTES_MAX: usize = 4_096;
/// A machine's certificate, issued when it joined: it is renewed when half of this is over.
pub const JOINED_CERT_MS: u64 = 7 * 86_400_000;
/// Slots of one task.
pub const SLOTS_PER_TASK_MAX: u32 = 65_536;
/// GPUs of one task on one machine.
pub const GPUS_PER_MACHINE_MAX: u32 = 1_024;
/// Machines of one task.
pub const NODES_PER_TASK_MAX: u32 = 65_536;
/// Memory of one task.
pub const MEMORY_PER_TASK_BYTES_MAX: u64 = 1 << 50;
/// Time limit of one task, and the disconnect time-out: 10 years.
pub const TIME_MS_MAX: u64 = 10 * 366 * 86_400_000;
/// Attempts of one task over the whole tree, unless its spec says less.
pub const ATTEMPTS_MAX: u32 = 5;
/// Contact lost for longer: `on_lost` decides.
pub const DISCONNECT_TIMEOUT_DEFAULT_MS: u64 = 300_000;
/// Hops that a submission may pass.
pub const HOPS_MAX: u32 = 8;
/// Slots or tasks that a peer may speak of; more is taken as this, so that sums of them don't overflow.
pub const COUNT_MAX: u64 = 1 << 40;
/// A sequence, or a version of a register, that a peer may speak of.
pub const SEQUENCE_MAX: u64 = 1 << 62;
/// Entries of one register: one for each wish, and room. All its ranges together: `TASK_RANGES_MAX`.
pub const WANT_RANGES_MAX: usize = 16;
/// Tasks of one attempt, as a message may speak of it.
pub const ATTEMPT_TASKS_MAX: u64 = 65_536;
/// Attempts that one message speaks of.
pub const MESSAGE_ATTEMPTS_MAX: usize = 65_536;
/// Their tasks together: each may have to be looked at.
pub const MESSAGE_TASKS_MAX: u64 = 1 << 20;
/// Share classes of one advertisement.
pub const SHARES_MAX: usize = 64;
/// Sites named below an advertiser.
pub const SITES_BELOW_MAX: usize = 1_024;
/// Depth of a tree of reasons, and children of one.
pub const REASON_DEPTH_MAX: usize = 12;
/// Characters of one reason's text; longer evidence is cut.
pub const REASON_TEXT_BYTES_MAX: usize = 1_024;
/// One tree of reasons, words and all; what is beyond is left out.
pub const REASON_TREE_BYTES_MAX: usize = 8 * 1024;
/// The signed chain of one job.
pub const CHAIN_BYTES_MAX: usize = 16 * 1024;
/// One message on a link or of content.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What a user's call may send at once: a spec, a chain, a set of tasks.
pub const CALL_BYTES_MAX: usize = 1024 * 1024;
/// One file that is staged.
pub const BLOB_BYTES_MAX: u64 = 64 << 30;
/// One part of a file on the wire.
pub const BLOB_PART_BYTES: usize = 256 * 1024;
/// Of each stream of a running task, in one answer to who follows it.
pub const LIVE_BYTES_MAX: usize = 64 * 1024;
/// How long a site waits for content from the level above.
pub const BLOB_WAIT_MS: u64 = 120_000;
/// Events that may be on their way on one link without an acknowledgement.
pub const EVENTS_IN_FLIGHT_MAX: u64 = 4_096;
/// Advertisements: at most one a link in this time.
pub const ADVERT_INTERVAL_MS: u64 = 50;
/// Credit that is not renewed within this time is gone at its holder; the issuer counts it a little longer.
pub const CREDIT_MS: u64 = 30_000;
/// Slots that may be placed on a share beyond its machines, to hide the round trip.
pub const LOOKAHEAD_SLOTS_MAX: u64 = 1_024;
/// A connection that has been silent for so long is asked whether it lives, and how long the answer may take: together, how long a stopped peer goes
/// unnoticed. Short, as a job whose disconnect time-out is over waits for it; a link that is cut by mistake costs one reconnect.
pub const KEEPALIVE_INTERVAL_MS: u64 = 500;
/// See [`KEEPALIVE_INTERVAL_MS`].
pub const KEEPALIVE_TIMEOUT_MS: u64 = 2_000;
/// A connection, its TLS handshake and its first answer.
pub const CONNECT_TIMEOUT_MS: u64 = 5_000;
/// TLS handshakes that a listener has under way at once.
pub const HANDSHAKES_MAX: usize = 256;
/// Connections of one listener; one more is closed at once.
pub const CONNECTIONS_MAX: usize = 8_192;
/// Of these, connections of one peer.
pub const CONNECTIONS_PER_PEER_MAX: usize = 128;
/// Calls of one connection at once.
pub const CALLS_PER_CONNECTION_MAX: u32 = 1_024;
/// Calls of one caller at once, over all his connections.
pub const CALLS_PER_CALLER_MAX: usize = 256;
/// What one call may send before it is read, and what all calls of a connection may. Fixed: HTTP/2 takes many small messages that are not yet read for an
/// attack, and ends the connection, the sooner the smaller its window is; one that adapts begins at 64 KiB, which is some hundred messages of a link.
pub const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// See [`STREAM_WINDOW_BYTES`].
pub const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// How long a refused connection stays half open, so that its end can read why.
pub const REFUSED_LINGER_MS: u64 = 500;
/// One small call.
pub const CALL_TIMEOUT_MS: u64 = 30_000;
/// A question that is asked through all hops (explain, hosts); each hop leaves the next a little less.
pub const TREE_CALL_TIMEOUT_MS: u64 = 3_000;
/// First pause before a link is dialled again; doubles up to the next.
pub const REDIAL_MIN_MS: u64 = 100;
/// See [`REDIAL_MIN_MS`].
pub const REDIAL_MAX_MS: u64 = 2_000;
/// Ranges that a job's view lists.
pub const SHOW_RANGES_MAX: usize = 1_000;
/// Views of jobs in one list.
pub const LIST_MAX: u32 = 10_000;
