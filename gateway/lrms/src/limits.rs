//! Bounds of this crate, the unit last. Those of the protocol are in `intergrid_proto::limits`.

/// A command of the LRMS that has not ended by then is killed, and what it did is unknown.
pub const COMMAND_TIMEOUT_MS: u64 = 30_000;
/// What a command may print; more ends it.
pub const COMMAND_OUTPUT_BYTES_MAX: usize = 64 << 20;
/// Of a command's complaint, in a reason.
pub const COMPLAINT_CHARS_MAX: usize = 300;
/// Tasks of one submission, of one job or of several that go down together. Slurm's `MaxArraySize` may make it less.
pub const SUBMISSION_TASKS_MAX: usize = 1_000;
/// Words of a submission's tasks that a hand is given at a time, and files for them: those of one job are never divided.
pub const WORDS_BYTES_MAX: usize = 4 << 20;
/// See [`WORDS_BYTES_MAX`].
pub const WORDS_FILES_MAX: usize = 200;
/// A test task of an examination has run by then.
pub const DOCTOR_TASK_MS: u64 = 120_000;
/// Its pause between two looks.
pub const DOCTOR_LOOK_MS: u64 = 300;
/// Clocks may differ by so much; a file may take so long to be seen on another machine.
pub const DOCTOR_CLOCK_MS_MAX: u64 = 10_000;
/// Between the clocks of an LRMS and of the file system: what ran under a number longer before or after a claim was written is another's.
pub const CLOCKS_DIFFER_MS_MAX: u64 = 10_000;
/// What a hand is asked has an answer by then, or the shared file system is away.
pub const HAND_TIMEOUT_MS: u64 = 30_000;
/// A question to a hand, or its answer.
pub const HAND_FRAME_BYTES_MAX: usize = 64 << 20;
/// A claim or an exit record.
pub const RECORD_BYTES_MAX: u64 = 4_096;
/// stdout and stderr of a task: what is longer is cut, and says so.
pub const STREAM_BYTES_MAX: u64 = intergrid_agent::limits::STREAM_BYTES_MAX;
/// Submissions that are under way at once; one of a kind, but for those that are full.
pub const SUBMISSIONS_AT_ONCE_MAX: usize = 8;
/// Where the LRMS had no room for several jobs together, each goes by itself for so long.
pub const CROWDED_MS: u64 = 60_000;
/// The LRMS is asked this often how many tasks a submission may have.
pub const BOUND_INTERVAL_MS: u64 = 300_000;
/// Claims and exit records are looked for this often while anything is open.
pub const LOOK_INTERVAL_MS: u64 = 250;
/// The LRMS is asked for all tasks of ours this often while anything is open: never more than one query a second.
pub const SURVEY_INTERVAL_MS: u64 = 1_000;
/// The LRMS is asked for its queues this often while anything is open, and where nothing is.
pub const QUEUES_INTERVAL_MS: u64 = 2_000;
/// See [`QUEUES_INTERVAL_MS`].
pub const QUEUES_IDLE_INTERVAL_MS: u64 = 10_000;
/// Waits of tasks that have started are believed so long, and so many of a queue's, to tell how long the next one waits.
pub const WAITS_KEPT_MS: u64 = 3_600_000;
/// See [`WAITS_KEPT_MS`].
pub const WAITS_KEPT_MAX: usize = 32;
/// After this without an answer about its queues, nothing new is taken.
pub const QUEUES_OLD_MS: u64 = 30_000;
/// A task that the LRMS says is over may still have an exit record on its way through the shared file system: so long it is waited for.
pub const RECORD_GRACE_MS: u64 = 3_000;
/// A payload that somebody else may have ended: so long the LRMS's word on why is waited for.
pub const VERDICT_WAIT_MS: u64 = 15_000;
/// A script that the books say ended by itself after so long has run its payload: what can't begin says so at once.
pub const RAN_MS: u64 = 5_000;
/// A task that was started, is not in the queue, and of which neither its own record nor the books say anything: after so long, during which the LRMS
/// answered, it is over and its exit unknown.
pub const MISSING_MS: u64 = 120_000;
/// A payload that the LRMS has given up, and not seen end, may live for as long as it lets one live that it kills, and so long more: that is on its way to the
/// machine, and clocks are coarse there.
pub const KILL_MARGIN_MS: u64 = 10_000;
/// How long the LRMS lets one live, where that is not known: Grid Engine's own minute, and twice Slurm's `KillWait`.
pub const KILL_WAIT_UNKNOWN_MS: u64 = 60_000;
/// No more is believed of that, whatever a queue says.
pub const KILL_WAIT_MAX_MS: u64 = 24 * 3_600_000;
/// A submission whose answer was lost is looked for by its tag this often.
pub const FIND_INTERVAL_MS: u64 = 2_000;
/// When the LRMS has answered so long after it that there is none, it is taken back.
pub const FIND_MS: u64 = 10_000;
/// The LRMS enforces a time limit so much later than we do, so that our word comes first.
pub const TIME_LIMIT_SLACK_MS: u64 = 30_000;
/// From the end of a task to the start of the next in its place, about.
pub const TURNAROUND_MS: u64 = 2_000;
/// A link that was dropped comes back after this.
pub const COMES_BACK_MS: u64 = 50;
/// A queue that is not offered any more, and in which nothing has been left for so long, is not served by the next start.
pub const LEFT_EMPTY_MS: u64 = 10_000;
/// Messages for one child that wait.
pub const CHILD_QUEUE_MAX: usize = 8_192;
/// Tasks whose outputs are being brought in at once.
pub const UPLOADS_AT_ONCE_MAX: usize = 4;
/// A file that can't be brought in is tried so often.
pub const UPLOAD_TRIES_MAX: u32 = 3;
/// Outputs that find no room at this site wait so long; then their task has failed to stage out.
pub const ROOM_WAIT_MS: u64 = 24 * 3_600_000;
/// That they wait is said this often.
pub const ROOM_TOLD_INTERVAL_MS: u64 = 300_000;
/// Directories of tasks that are removed at a time.
pub const CLEARED_AT_ONCE: usize = 50;
/// They wait so long for submissions that are under way, and look so often: what comes without end does not keep them.
pub const CLEAR_WAIT_MAX_MS: u64 = 250;
/// See [`CLEAR_WAIT_MAX_MS`].
pub const CLEAR_LOOK_MS: u64 = 20;
/// A submission's directory that can't be removed is tried again after so long.
pub const REMOVE_AGAIN_MS: u64 = 10_000;
/// The number of a submission that is over is forgotten when so many looks in a row have not shown it: the first may have been asked for before.
pub const NUMBER_LOOKS_MAX: u32 = 2;
/// A task that is over for us and still listed takes its slots from what may be handed on for so long: it was removed again by then, and what still runs has
/// its slots by the LRMS's own word.
pub const LEFT_MAX_MS: u64 = 60_000;
/// What should not be in the LRMS any more, and is, is removed again after so long.
pub const CANCEL_AGAIN_MS: u64 = 5_000;
/// What runs there and is over for us may just be ending: so long it is let.
pub const STRAY_RUNS_MS: u64 = 30_000;
/// Content that does not come is asked for so often.
pub const FETCH_TRIES_MAX: u32 = 3;
/// Records of ended jobs are asked for, for so many jobs at once.
pub const RECORDS_JOBS_MAX: usize = 500;
/// A pilot may wait in its queue for so long: then the token that it joins with has expired.
pub const PILOT_TOKEN_MS: u64 = 7 * 86_400_000;
/// What a pilot asks for beside the memory of its tasks: its agent's own.
pub const PILOT_OWN_BYTES: u64 = 64 << 20;
/// Of a pilot's time, what is not its tasks': its script before its agent, their stop and outputs after.
pub const PILOT_OWN_MS: u64 = 30_000;
/// A pilot's agent has joined so long after its start: a task that asks for all the time that a new pilot has then finds it.
pub const PILOT_JOIN_MS: u64 = 30_000;
/// Pilots' numbers in their directories are waited for so long; then the ones that were found last do.
pub const PILOT_LOOK_MS: u64 = 5_000;
/// Directories of pilots that are over are kept for so long, with their agents' logs.
pub const PILOT_DIRS_KEPT_MS: u64 = 30 * 86_400_000;
