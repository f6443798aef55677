//! Bounds of a site's engine; the unit is the last word. Those of the protocol are in `intergrid_proto::limits`.

/// Registers kept for jobs that were never seen; beyond it the lowest job numbers are forgotten.
pub const WANTS_UNKNOWN_MAX: usize = 4_096;
/// Ranges of these registers together.
pub const WANTS_RANGES_MAX: usize = 131_072;
/// Tasks of one placement.
pub const PLACEMENT_TASKS_MAX: u64 = 4_096;
/// Tasks of one change that carries an entry for each (exit, usage): keeps a record below the store's 64 KiB.
pub const CHANGE_TASKS_MAX: u64 = 1_024;
/// Ranges of one change.
pub const CHANGE_RANGES_MAX: usize = 4_096;
/// Changes after which rows are written and the log is cut.
pub const CHECKPOINT_CHANGES: u64 = 20_000;
/// The same in bytes: a change counts for one more for each of these.
pub const CHECKPOINT_CHANGE_BYTES: u64 = 16 * 1024;
/// Rows written with one commit while a checkpoint goes on.
pub const CHECKPOINT_ROWS_PER_COMMIT: usize = 64;
/// The rate of ends is looked at this often.
pub const ENDS_SAMPLE_MS: u64 = 200;
/// The same where so many have ended, and faster than before.
pub const ENDS_SAMPLE_MIN_MS: u64 = 20;
/// See [`ENDS_SAMPLE_MIN_MS`].
pub const ENDS_SAMPLE_MIN: u64 = 16;
/// Where tasks end at a rate between these, a second, turns that only peers ask for are at least `TURN_PACE_MS` apart: what each costs is mostly its own and
/// not that of what is in it. Where more end, a turn is full of them.
pub const PACED_RATE: std::ops::Range<f64> = 200.0..20_000.0;
/// See [`PACED_RATE`].
pub const TURN_PACE_MS: u64 = 10;
/// Events kept for a parent that does not acknowledge; beyond it he gets a resync.
pub const OUTBOX_EVENTS_MAX: usize = 200_000;
/// What they take, about.
pub const OUTBOX_BYTES_MAX: usize = 128 << 20;
/// A full state is asked for, and told, at most so often.
pub const RESYNC_PAUSE_MS: u64 = 1_000;
/// Hints, and fenced attempts, of one message.
pub const ATTEMPTS_PER_MESSAGE_MAX: usize = 128;
/// Returns and stale ends of one job that are kept in its history; beyond it they are counted and not kept.
pub const HISTORY_NOTES_MAX: u64 = 10_000;
/// Names of shares kept before those that nobody uses any more are forgotten.
pub const NAMES_MAX: usize = 4_096;
/// Placements that a child may give back: at once, and a second; beyond it it is left alone for `RETURNS_PAUSE_MS`.
pub const RETURNS_MAX: u64 = 1_024;
/// See [`RETURNS_MAX`].
pub const RETURNS_PER_S: u64 = 128;
/// See [`RETURNS_MAX`].
pub const RETURNS_PAUSE_MS: u64 = 1_000;
/// Shapes of one user's waiting jobs: a pass costs what they are.
pub const SHAPES_WAITING_MAX: usize = 512;
/// Events and tasks of one message to a parent.
pub const EVENTS_PER_MESSAGE_MAX: usize = 512;
/// An event counts for so many tasks beside its own: its reason has at most `REASON_TREE_BYTES_MAX`.
pub const EVENT_COST: u64 = 256;
/// See [`EVENTS_PER_MESSAGE_MAX`].
pub const EVENT_TASKS_PER_MESSAGE_MAX: u64 = 32_768;
/// Jobs with waiting tasks.
pub const JOBS_WAITING_MAX: usize = 200_000;
/// A task that a parent placed and that can't start is given back after this.
pub const GIVE_BACK_AFTER_MS: u64 = 2_000;
/// A share that gave work back is left alone for so long; doubles up to the next.
pub const BACK_OFF_MIN_MS: u64 = 50;
/// Where a limit of some keeps these from it, the first pause: longer than a tick, so that a parent's go back up before they are tried again.
pub const BACK_OFF_LIMIT_MS: u64 = 250;
/// Where it will not change its mind soon, the first pause.
pub const BACK_OFF_REFUSED_MS: u64 = 5_000;
/// See [`BACK_OFF_MIN_MS`].
pub const BACK_OFF_MAX_MS: u64 = 60_000;
/// Pauses kept for one child; beyond it those that are over are forgotten.
pub const BACK_OFFS_MAX: usize = 4_096;
/// Reasons of failures kept apart for one job.
pub const FAILURES_MAX: usize = 8;
/// Where it only had no room, the longest pause: room comes and goes.
pub const BACK_OFF_BUSY_MAX_MS: u64 = 1_000;
/// Advertisements are repeated after this, so that credit does not run out.
pub const ADVERT_RENEW_MS: u64 = 10_000;
/// How often due things are looked for.
pub const TICK_MS: u64 = 100;
/// Changes that may wait for a commit that is due for another reason.
pub const LAZY_CHANGES_MAX: usize = 64;
/// After its store was found to be old or lost, a site waits so long for its children to say what they hold, and for a parent to say what it holds open.
pub const RECOVERY_WAIT_MS: u64 = 30_000;
/// So long even where all children that it knows have spoken: it may have had others.
pub const RECOVERY_WAIT_MIN_MS: u64 = 6_000;
/// While a site waits longer for some of them, it looks again after this.
pub const RECOVERY_PAUSE_MS: u64 = 1_000;
/// Job numbers that are left out by a new incarnation: more than were given since the copy was made.
pub const JOBS_SKIPPED: u64 = 1 << 20;
/// A new store begins at one of so many multiples of that: ids of jobs stay at six letters.
pub const JOBS_BEGIN_MAX: u64 = 1_000;
/// What a child may list of older incarnations, and what is listed to a parent: ranges of tasks.
pub const ORPHANS_MAX: usize = 65_536;
/// Ends are listed so long, by this site's clock.
pub const ORPHANS_ENDED_MS: u64 = 7 * 86_400_000;
/// Older incarnations of this site that are remembered.
pub const INCARNATIONS_KEPT_MAX: usize = 64;
/// Of one message.
pub const ORPHANS_PER_MESSAGE_MAX: usize = 256;
/// A user's job of which nothing is open leaves memory after this.
pub const AWAY_AFTER_MS: u64 = 1_000;
/// A parent's, which may bring more tasks of it.
pub const AWAY_PLACED_AFTER_MS: u64 = 10_000;
/// One that is over and can't leave yet is looked at again after this.
pub const AWAY_RETRY_MS: u64 = 1_000;
/// Rows written with one commit for jobs that leave.
pub const AWAY_ROWS_PER_COMMIT: usize = 512;
/// A past job is one row where it has at most so many chunks and parents' placements together,
pub const PARTS_INSIDE_MAX: usize = 4;
/// so many runs of equal tasks,
pub const RUNS_INSIDE_MAX: usize = 16;
/// and names of shares that are so long together.
pub const WORDS_INSIDE_BYTES_MAX: usize = 512;
/// Who may be told to take no new work, at one site.
pub const DRAINS_MAX: usize = 4_096;
/// A parent's job that has had nothing open for so long has ended here, as far as the log goes.
pub const END_SAID_AFTER_MS: u64 = 1_000;
/// What costs money and is away is quoted so long as what a job may cost.
pub const PRICES_KEPT_MS: u64 = 24 * 3_600_000;
/// Shapes and principals for whose waiting tasks machines are rented at a time.
pub const RENT_DEMANDS_MAX: usize = 1_024;
/// Machines with less memory are of one kind only where they have the same number of quarters of a GiB; with more: of GiB.
pub const CLASS_FINE_BELOW_BYTES: u64 = 8 << 30;
