//! Bounds of the agent, the unit last. Those of the protocol are in `intergrid_proto::limits`.

/// Between SIGTERM and SIGKILL of a task.
pub const KILL_GRACE_MS: u64 = 5_000;
/// stdout and stderr of a task: what is longer is cut, and says so.
pub const STREAM_BYTES_MAX: u64 = 16 << 20;
/// Deadlines of tasks are looked at this often.
pub const TICK_MS: u64 = 100;
/// The same where nothing runs.
pub const IDLE_TICK_MS: u64 = 1_000;
/// A task that runs this long is worth a hint and a pid record; a shorter one is found by its directory, if need be.
pub const SETTLED_MS: u64 = 100;
/// What a machine that is alone runs last is killed after this.
pub const LAST_ACT_MAX_MS: u64 = 30_000;
/// Records that nobody waits for are synced after this time at the latest.
pub const LAZY_SYNC_MS: u64 = 200;
/// Syncs are at least this far apart where slots are freed at more than `PACED_RATE_MIN` a second.
pub const PACE_MS: u64 = 5;
/// See [`PACE_MS`].
pub const PACED_RATE_MIN: f64 = 200.0;
/// There a disk that is busy now and then, for many times what it takes on average, leaves no slot idle for twice so long: that much is claimed ahead.
pub const SYNC_STALL_MS: u64 = 50;
/// There the gateway is told of so many ends at a time, and every hop above has that much less to do for each: [`PACE_MS`] apart, or longer, where they are
/// fewer.
pub const TOLD_SLOTS: f64 = 160.0;
/// See [`TOLD_SLOTS`]. Who waits for a task hardly sees that.
pub const TOLD_PACE_MAX_MS: u64 = 50;
/// Resident memory is sampled this often, as long as that costs less than one part in `SAMPLE_COST_PART` of the time.
pub const SAMPLE_INTERVAL_MS: u64 = 200;
/// See [`SAMPLE_INTERVAL_MS`].
pub const SAMPLE_COST_PART: u32 = 50;
/// An agent whose tasks end with it tells of a task that ended by a signal, which it has not sent, only after so long: what ends a pilot or a machine signals
/// all its processes, in any order, and such a task has not failed but goes elsewhere.
pub const SIGNALLED_HELD_MS: u64 = 1_000;
/// Processes that are not our children, and groups that are being killed, are looked at this often.
pub const POLL_INTERVAL_MS: u64 = 50;
/// Cores and memory are read again this often.
pub const CAPACITY_INTERVAL_MS: u64 = 5_000;
/// The advertisement is renewed this often, well before the credit in it expires.
pub const ADVERT_RENEW_MS: u64 = intergrid_proto::limits::CREDIT_MS / 3;
/// A window that was advertised so long ago still counts: placements made with it may be on their way.
pub const WINDOW_MEMORY_MS: u64 = 5_000;
/// Time constant of the measured rate of ends.
pub const RATE_WINDOW_MS: u64 = 500;
/// Where all slots are freed more than once in this time, or a little more, their rate is believed at once.
pub const RATE_SAMPLE_MS: u64 = 20;
/// A store that was found to be old starts nothing before its gateway has said what it holds open; one that does not say so is not waited for longer.
pub const OPEN_WAIT_MS: u64 = 2_000;
/// A task of several slots keeps those that are free from the tasks behind it for so long, until there are enough for it.
pub const WIDE_WAIT_MS: u64 = 200;
/// The pace at which slots come free is looked at this often: what would wait for longer than [`GIVE_BACK_AFTER_MS`] at it goes back.
pub const PACE_PERIOD_MS: u64 = GIVE_BACK_AFTER_MS / 2;
/// Tasks for which no slot came free in this time go back to the gateway, where they can still go anywhere. It does the same to its parents.
pub const GIVE_BACK_AFTER_MS: u64 = 2_000;
/// The same, where a queue says how much is handed on: it knows of slots that came free only with its next look, which may be slow.
pub const GIVE_BACK_HANDED_MS: u64 = 10_000;
/// Ends that are remembered should the gateway lose its store, and their tasks.
pub const ENDS_KEPT_MAX: usize = 512;
/// See [`ENDS_KEPT_MAX`].
pub const ENDS_TASKS_KEPT_MAX: u64 = 8_192;
/// Orphans of one message.
pub const ORPHANS_PER_MESSAGE_MAX: usize = 256;
/// Registers kept for jobs of which no placement is here.
pub const WANTS_KEPT_MAX: usize = 4_096;
/// Specs kept for the rest of the connection though no placement needs them now.
pub const SPECS_KEPT_BYTES_MAX: usize = 16 << 20;
/// Events of one message, and tasks named in one event.
pub const EVENTS_PER_MESSAGE_MAX: usize = 256;
/// See [`EVENTS_PER_MESSAGE_MAX`].
pub const TASKS_PER_EVENT_MAX: usize = 8_192;
/// Ranges of one part of a resync.
pub const RESYNC_RANGES_MAX: usize = 1_024;
/// A spool beyond this size is compacted, once it is twice what it was after the last time.
pub const SPOOL_COMPACT_BYTES: u64 = 16 << 20;
/// The spool grows by this much at a time, written as zeros, so that a sync needs no change of the file's size.
pub const SPOOL_CHUNK_BYTES: u64 = 1 << 20;
/// One frame of the spool.
pub const SPOOL_FRAME_BYTES_MAX: usize = 256 << 20;
/// Threads for tasks that stay though there is nothing to do for `THREAD_IDLE_MS`.
pub const THREADS_KEPT: usize = 2;
/// See [`THREADS_KEPT`].
pub const THREAD_IDLE_MS: u64 = 5_000;
/// Of a thread that sees a task through.
pub const TASK_THREAD_STACK_BYTES: usize = 256 << 10;
/// How long a task's thread waits for the rest of its process group, which was killed; then it is looked at from time to time.
pub const LINGER_MS: u64 = 32;
/// Directories of ended tasks that may wait for a task that starts in one of them; beyond, they are cleared away at once.
pub const LEFT_DIRECTORIES_MAX: usize = 64;
/// Pairs of streams that stay open from task to task; more are opened for each task. A process may often have no more than 4,096 files open.
pub const OPEN_STREAMS_MAX: u32 = 64;
/// Inputs of the shell that may wait.
pub const INPUT_QUEUE_MAX: usize = 4_096;
/// Messages to the gateway that may wait in the connection.
pub const UP_QUEUE_MAX: usize = 64;
/// A program that is busy being written is tried again so often, with `BUSY_PAUSE_MS` between.
pub const BUSY_TRIES_MAX: u32 = 20;
/// See [`BUSY_TRIES_MAX`].
pub const BUSY_PAUSE_MS: u64 = 10;
/// Fetches of one file before its tasks fail.
pub const FETCH_TRIES_MAX: u32 = 3;
/// Refusals of one output before its task fails.
pub const UPLOAD_TRIES_MAX: u32 = 3;
/// An output that the gateway has no room for is sent again after this.
pub const NO_ROOM_PAUSE_MS: u64 = 2_000;
/// A spool that finds no room tries again this often.
pub const SPOOL_TRY_MS: u64 = 100;
/// Files that are uploaded and not acknowledged.
pub const UPLOADS_IN_FLIGHT_MAX: usize = 16;
/// An upload or a fetch that does not move for so long is tried again.
pub const BULK_STALL_MS: u64 = intergrid_proto::limits::BLOB_WAIT_MS + 30_000;
/// Cached content that no task needs is kept up to this size.
pub const BLOB_CACHE_BYTES_MAX: u64 = 8 << 30;
/// How long the last steps of an agent may take: the end of all tasks in the mode `--die-with-parent`, and the last write to the spool.
pub const DIE_WAIT_MS: u64 = 3_000;
/// A program of this size is shared with the cache by a hard link, a smaller one is copied.
pub const LINK_BYTES_MIN: u64 = 64 << 10;
/// Empty directories that are kept for the next tasks.
pub const SPARE_DIRECTORIES_MAX: usize = 1_024;
/// How long a new agent waits for the spool of an old one.
pub const LOCK_WAIT_MS: u64 = 2_000;
/// See [`LOCK_WAIT_MS`].
pub const LOCK_POLL_MS: u64 = 20;
