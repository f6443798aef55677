//! The phases of a task, with their table and diagram. Names are DRMAA2's where they exist.
//!
//! ```text
//!            +-------- returned, fenced, lost ---------+
//!            v                                         |
//!  Queued <-----> Held     Queued -> Placed -> StagingIn -> Running <-> Suspended
//!    |              |                   |          |           |
//!    |              |                   |          |           v
//!    |              |                   |          |       StagingOut -> Done | Failed
//!    +--------------+-------------------+----------+-> Cancelled | Failed
//! ```
//!
//! Queued, Held, Placed and the terminal phases are durable; StagingIn, Running, Suspended and StagingOut are hints from below and repeated after a
//! reconnect. *Unknown* is about the observer, not the task: a view shows the last known phase and its age.

/// Where a task is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Waits to be placed.
    Queued = 1,
    /// Waits for somebody to release it.
    Held = 2,
    /// Sent down; nothing heard of its start yet.
    Placed = 3,
    /// Its inputs are on their way.
    StagingIn = 4,
    /// Its payload runs.
    Running = 5,
    /// Its payload is stopped and may go on.
    Suspended = 6,
    /// Its outputs are on their way.
    StagingOut = 7,
    /// Ended well: exit code 0, by its exit record.
    Done = 8,
    /// Ended otherwise.
    Failed = 9,
    /// Stopped because somebody wished it; the stop is confirmed, or the attempt fenced.
    Cancelled = 10,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Phase; 10] = {
        use Phase::*;
        [Queued, Held, Placed, StagingIn, Running, Suspended, StagingOut, Done, Failed, Cancelled]
    };

    /// From its number on the wire and in the store.
    pub fn from_number(n: i32) -> Option<Phase> {
        Phase::ALL.into_iter().find(|p| *p as i32 == n)
    }

    /// Will never change again.
    pub fn is_terminal(self) -> bool {
        match self {
            Phase::Done | Phase::Failed | Phase::Cancelled => true,
            Phase::Queued | Phase::Held | Phase::Placed | Phase::StagingIn | Phase::Running | Phase::Suspended | Phase::StagingOut => false,
        }
    }

    /// Somebody below has it.
    pub fn is_below(self) -> bool {
        match self {
            Phase::Placed | Phase::StagingIn | Phase::Running | Phase::Suspended | Phase::StagingOut => true,
            Phase::Queued | Phase::Held | Phase::Done | Phase::Failed | Phase::Cancelled => false,
        }
    }

    /// The table: may a task go from here to there?
    pub fn may_become(self, to: Phase) -> bool {
        match self {
            Phase::Queued => matches!(to, Phase::Held | Phase::Placed | Phase::Failed | Phase::Cancelled),
            Phase::Held => matches!(to, Phase::Queued | Phase::Failed | Phase::Cancelled),
            Phase::Placed | Phase::StagingIn | Phase::Running | Phase::Suspended | Phase::StagingOut => to != self,
            Phase::Done | Phase::Failed | Phase::Cancelled => false,
        }
    }

    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Queued => "queued",
            Phase::Held => "held",
            Phase::Placed => "placed",
            Phase::StagingIn => "staging-in",
            Phase::Running => "running",
            Phase::Suspended => "suspended",
            Phase::StagingOut => "staging-out",
            Phase::Done => "done",
            Phase::Failed => "failed",
            Phase::Cancelled => "cancelled",
        }
    }
}

/// How an attempt's payload ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Exit {
    /// exit(2) with this code.
    Code(u8),
    /// Killed by this signal.
    Signal(u8),
    /// Never started: 127-like failures before the payload, or a cancel.
    NotStarted,
    /// The process is gone and nobody saw how.
    Unknown,
}

impl Exit {
    /// By a signal with which others end a process (HUP, INT, KILL, USR1, USR2, TERM, XCPU), as itself or as a shell says it: 128 and the signal.
    pub fn may_be_by_others(self) -> bool {
        let signal = match self {
            Exit::Signal(signal) => signal,
            Exit::Code(code) => code.saturating_sub(128),
            Exit::NotStarted | Exit::Unknown => 0,
        };
        matches!(signal, 1 | 2 | 9 | 10 | 12 | 15 | 24)
    }

    /// One number: 0..=255 code, 256 + signal, 1024 not started, 1025 unknown.
    pub fn to_number(self) -> u32 {
        match self {
            Exit::Code(c) => u32::from(c),
            Exit::Signal(s) => 256 + u32::from(s),
            Exit::NotStarted => 1024,
            Exit::Unknown => 1025,
        }
    }

    /// From [`to_number`](Self::to_number); anything else is Unknown.
    pub fn from_number(n: u32) -> Exit {
        match n {
            0..=255 => Exit::Code(n as u8),
            256..=511 => Exit::Signal((n - 256) as u8),
            1024 => Exit::NotStarted,
            _ => Exit::Unknown,
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(c) => write!(f, "exit {c}"),
            Exit::Signal(s) => write!(f, "signal {s}"),
            Exit::NotStarted => f.write_str("not started"),
            Exit::Unknown => f.write_str("exit unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_never_changes_and_waiting_never_jumps_to_done() {
        for from in Phase::ALL {
            for to in Phase::ALL {
                if from.is_terminal() || from == to {
                    assert!(!from.may_become(to), "{from:?} -> {to:?}");
                }
                if to == Phase::Done && from.may_become(to) {
                    assert!(from.is_below(), "{from:?} -> Done without having been placed");
                }
            }
        }
    }

    #[test]
    fn numbers_come_back() {
        for p in Phase::ALL {
            assert_eq!(Some(p), Phase::from_number(p as i32));
        }
        for n in (0..512).chain([1024, 1025]) {
            assert_eq!(n, Exit::from_number(n).to_number());
        }
    }
}
