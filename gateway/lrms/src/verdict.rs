//! How a started task ended, from the evidence there is: our exit record first, then the word of the LRMS. Pure.

use intergrid_agent::core::{Fault, Report};
use intergrid_proto::{Exit, ReasonKind};

use crate::limits::{KILL_MARGIN_MS, MISSING_MS, RAN_MS};
use crate::lrms::{How, Over, Used};
use crate::script::{ExitRecord, SIGNAL_BASE};

/// Exit codes of the wrapper that are not the payload's: its claim was taken; it could not begin.
pub const CLAIMED: Exit = Exit::Code(120);
/// See [`CLAIMED`].
pub const NOT_HERE: Exit = Exit::Code(NOT_HERE_CODE);
/// See [`CLAIMED`].
pub const NOT_HERE_CODE: u8 = 121;
const SIGNALS: u8 = 64;

/// What to tell the core.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It ran, and ended so.
    Exited(Report),
    /// It was claimed, and could not be run.
    NotStarted(Fault),
}

/// Do the books say that its payload ran, whether or not its claim is there? A script that can't claim says so at once, by codes of its own.
pub fn ran(over: &Over) -> bool {
    let is_payloads = |exit: Exit| ![CLAIMED, NOT_HERE, Exit::NotStarted, Exit::Unknown].contains(&exit);
    over.how == How::Exited && over.exit.is_some_and(is_payloads) && over.used.wall_ms.is_some_and(|ms| ms >= RAN_MS)
}

/// Do the books say that its script could not begin, where it ran? A payload's own code of this value is not in them.
pub fn not_here(over: &Over) -> bool {
    over.how == How::Exited && over.exit == Some(NOT_HERE)
}

/// Why it is open whether a payload that began, and is gone from the LRMS, still runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Doubt {
    /// The LRMS gave it up without having seen its end.
    GivenUp,
    /// It is to be started over there.
    Requeued,
    /// It was: a second copy has found the claim taken.
    SecondCopy,
    /// Nobody says how it ended.
    Untold,
}

/// What this word of the LRMS leaves open, or that there is none; None: nothing, it has ended.
pub fn doubt(said: Option<&Over>) -> Option<Doubt> {
    match said {
        None => Some(Doubt::Untold),
        Some(Over { how: How::Requeued, .. }) => Some(Doubt::Requeued),
        Some(Over { how: How::MachineLost | How::Forced, .. }) => Some(Doubt::GivenUp),
        Some(over) => (over.exit == Some(CLAIMED)).then_some(Doubt::SecondCopy),
    }
}

/// So long after a task was gone its own record is waited for, if it began, before the word of the LRMS counts, which lets what it kills live for
/// `kill_wait_ms`: a machine that it has given up may be well, and the payload be heeding the word that it is to end. Nothing starts beside it.
pub fn patience_ms(said: Option<&Over>, kill_wait_ms: u64) -> u64 {
    let killed_ms = kill_wait_ms.saturating_add(KILL_MARGIN_MS);
    match doubt(said) {
        // Who is to be started over may run on where his machine is cut off.
        Some(Doubt::Untold | Doubt::Requeued) => killed_ms.max(MISSING_MS),
        Some(Doubt::GivenUp | Doubt::SecondCopy) => killed_ms,
        None => 0,
    }
}

/// From the exit record, and what the LRMS says, with its words.
pub fn verdict(record: Option<&ExitRecord>, over: Option<(&Over, &str)>, lrms: &str) -> Verdict {
    if let Some(fault) = record.and_then(fault) {
        return Verdict::NotStarted(fault);
    }
    let words = over.map_or("", |(_, words)| words);
    let said = over.and_then(|(over, _)| over.exit);
    // A second copy's exit says nothing of the first, but that there was one; nor does what it used.
    let is_second = said == Some(CLAIMED) && record.is_none_or(|r| Exit::Code(r.code) != CLAIMED);
    let how = over.map(|(over, _)| if is_second { How::Requeued } else { over.how });
    let exit = match (record, said) {
        (Some(ExitRecord { exit: Some(exit), .. }), _) => *exit,
        (Some(r), _) => match r.code.checked_sub(SIGNAL_BASE).filter(|n| (1..=SIGNALS).contains(n)) {
            Some(signal) => Exit::Signal(signal),
            None => Exit::Code(r.code),
        },
        (None, Some(exit))
            if exit != CLAIMED && exit != NOT_HERE && !matches!(how, Some(How::MachineLost | How::Preempted | How::Requeued | How::NotStarted)) =>
        {
            exit
        }
        (None, _) => Exit::Unknown,
    };
    let by = |kind, text: &str| Some((kind, if words.is_empty() { text.to_string() } else { format!("{text} ({words})") }));
    let asked = record.is_none_or(ExitRecord::ended_by_another);
    let ended_by = match how {
        Some(How::TimeLimit) => by(ReasonKind::TimeLimit, &format!("{lrms} ended it at its time limit")),
        Some(How::Memory) => by(ReasonKind::MemoryLimit, &format!("{lrms} ended it at its memory limit")),
        Some(How::Limit) => by(ReasonKind::OverLimit, &format!("{lrms} ended it at a limit of its queue")),
        Some(How::Removed) if asked => by(ReasonKind::ExitSignal, &format!("somebody removed it from {lrms} while it ran")),
        Some(How::Preempted) if asked => by(ReasonKind::ExitUnknown, &format!("{lrms} took its machine for another")),
        Some(How::Requeued) if asked => by(ReasonKind::ExitUnknown, &format!("{lrms} requeued it while it ran, and it starts there only once")),
        Some(How::MachineLost) if asked => by(ReasonKind::ExitUnknown, &format!("{lrms} lost the machine that it ran on")),
        Some(How::Forced) if asked => by(ReasonKind::ExitUnknown, &format!("somebody removed it from {lrms} by force")),
        Some(How::NotStarted) if record.is_none() => by(ReasonKind::ExitUnknown, &format!("{lrms} says that it did not start, and it had begun")),
        Some(How::Broken) if record.is_none() => by(ReasonKind::StartFailed, &format!("it began, and left no record; {lrms} has it in error since")),
        Some(How::Removed | How::Preempted | How::Requeued | How::MachineLost | How::Forced | How::NotStarted | How::Broken | How::Exited) => None,
        None if record.is_none() => by(ReasonKind::ExitUnknown, &format!("it is gone from {lrms} without a record")),
        None => None,
    };
    let used = over.filter(|_| !is_second).map_or(Used::default(), |(over, _)| over.used);
    let (wall_ms, cpu_us) = (record.and_then(|r| r.wall_ms).or(used.wall_ms), record.and_then(|r| r.cpu_us).or(used.cpu_us));
    let peak = record.and_then(|r| r.peak_bytes).map(|bytes| (bytes, "largest-process")).or(used.peak);
    let by_itself = record.is_some_and(|r| !r.ended_by_another());
    Verdict::Exited(Report { exit, wall_ms, cpu_us, peak, ended_by, by_itself, ..Report::unseen() })
}

fn fault(r: &ExitRecord) -> Option<Fault> {
    let fault = |kind, text: &str, exit| Some(Fault { kind, text: text.to_string(), exit, elsewhere: false });
    match r.fault.as_str() {
        "" => None,
        "no-such-program" => fault(ReasonKind::NoSuchProgram, "the program does not exist on the machine that it was to run on", Exit::Code(127)),
        "not-executable" => fault(ReasonKind::NotExecutable, "the program is not an executable file", Exit::Code(126)),
        "less-slots" => fault(ReasonKind::StartFailed, "it was given fewer slots than it asked for", Exit::NotStarted),
        "less-gpus" => fault(ReasonKind::StartFailed, "it was given fewer GPUs than it asked for", Exit::NotStarted),
        "less-machines" => fault(ReasonKind::StartFailed, "it was given fewer machines than it asked for", Exit::NotStarted),
        "less-memory" => fault(ReasonKind::StartFailed, "it was given less memory than it asked for", Exit::NotStarted),
        "stage-in" => fault(ReasonKind::StageInFailed, "its inputs could not be copied to its directory", Exit::NotStarted),
        _ => fault(ReasonKind::StartFailed, "it could not be started", Exit::NotStarted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(code: u8, was_asked: bool) -> ExitRecord {
        ExitRecord { code, exit: None, peak_bytes: None, was_asked, wall_ms: Some(5), cpu_us: None, fault: String::new() }
    }

    fn of(record: Option<ExitRecord>, over: Option<(How, Option<Exit>)>) -> (Exit, Option<ReasonKind>) {
        let over = over.map(|(how, exit)| Over::new(how, exit));
        match verdict(record.as_ref(), over.as_ref().map(|o| (o, "W")), "slurm") {
            Verdict::Exited(r) => (r.exit, r.ended_by.map(|(kind, _)| kind)),
            Verdict::NotStarted(f) => (f.exit, Some(f.kind)),
        }
    }

    #[test]
    fn books_that_say_that_it_ran_a_while_are_believed() {
        let of = |how, exit, wall_ms| ran(&Over { used: Used { wall_ms: Some(wall_ms), ..Used::default() }, ..Over::new(how, Some(exit)) });
        assert!(of(How::Exited, Exit::Code(0), 9_000) && of(How::Exited, Exit::Signal(9), RAN_MS));
        assert!(!of(How::Exited, CLAIMED, 9_000) && !of(How::Exited, NOT_HERE, 9_000) && !of(How::Exited, Exit::Code(1), 1_000));
        let exited = |exit| not_here(&Over::new(How::Exited, Some(exit)));
        assert!(exited(NOT_HERE) && !exited(CLAIMED) && !exited(Exit::Code(1)) && !not_here(&Over::new(How::TimeLimit, Some(NOT_HERE))));
        // The machine's files may have hung before its claim.
        assert!(!of(How::TimeLimit, Exit::Signal(9), 9_000) && !ran(&Over::new(How::Exited, Some(Exit::Code(0)))));
    }

    #[test]
    fn what_may_live_is_waited_for_until_it_would_have_been_killed() {
        let of = |how, exit| patience_ms(Some(&Over::new(how, exit)), 60_000);
        let killed = 60_000 + KILL_MARGIN_MS;
        assert_eq!([killed; 3], [of(How::Forced, None), of(How::MachineLost, None), of(How::Exited, Some(CLAIMED))]);
        assert_eq!([0; 3], [of(How::Exited, Some(Exit::Code(0))), of(How::Removed, None), of(How::TimeLimit, None)]);
        assert_eq!([MISSING_MS; 2], [of(How::Requeued, None), patience_ms(None, 60_000)]);
        assert_eq!((600_000 + KILL_MARGIN_MS, u64::MAX), (patience_ms(None, 600_000), patience_ms(None, u64::MAX)));
        let why = |how, exit| doubt(Some(&Over::new(how, exit)));
        assert_eq!([Some(Doubt::GivenUp); 2], [why(How::Forced, None), why(How::MachineLost, Some(CLAIMED))]);
        assert_eq!([Some(Doubt::SecondCopy), Some(Doubt::Requeued)], [why(How::Exited, Some(CLAIMED)), why(How::Requeued, Some(CLAIMED))]);
        assert_eq!([None, Some(Doubt::Untold)], [why(How::Removed, None), doubt(None)]);
    }

    #[test]
    fn the_record_comes_first_and_the_verdict_of_the_lrms_is_heard() {
        use ReasonKind as K;
        assert_eq!((Exit::Code(3), None), of(Some(record(3, false)), None));
        assert_eq!((Exit::Signal(9), None), of(Some(record(137, false)), Some((How::Exited, Some(Exit::Code(137))))));
        let seen = ExitRecord { exit: Some(Exit::Code(137)), ..record(137, false) };
        assert_eq!((Exit::Code(137), None), of(Some(seen), None));
        // Exit 0 with a time-out is none.
        assert_eq!((Exit::Code(0), Some(K::TimeLimit)), of(Some(record(0, true)), Some((How::TimeLimit, Some(Exit::Code(0))))));
        assert_eq!((Exit::Code(0), Some(K::TimeLimit)), of(None, Some((How::TimeLimit, Some(Exit::Code(0))))));
        assert_eq!((Exit::Signal(15), Some(K::ExitSignal)), of(Some(record(143, true)), Some((How::Removed, None))));
        assert_eq!((Exit::Unknown, Some(K::OverLimit)), of(None, Some((How::Limit, None))));
        // It had ended before somebody removed what was left of it.
        assert_eq!((Exit::Code(0), None), of(Some(record(0, false)), Some((How::Removed, None))));
        assert_eq!((Exit::Unknown, Some(K::ExitUnknown)), of(None, Some((How::MachineLost, Some(Exit::Code(0))))));
        assert_eq!((Exit::Code(0), None), of(Some(record(0, false)), Some((How::MachineLost, None))));
        assert_eq!((Exit::Code(0), None), of(Some(record(0, false)), Some((How::Forced, None))));
        let forced = Over::new(How::Forced, None);
        let Verdict::Exited(r) = verdict(None, Some((&forced, "W")), "gridengine") else { panic!("it has started") };
        assert_eq!((Exit::Unknown, Some((K::ExitUnknown, "somebody removed it from gridengine by force (W)".to_string()))), (r.exit, r.ended_by));
        assert_eq!((Exit::Unknown, Some(K::ExitUnknown)), of(None, None));
        assert_eq!((Exit::Signal(9), None), of(None, Some((How::Exited, Some(Exit::Signal(9))))));
        // Slurm ends what runs in a partition that is removed, and says that its machine is lost.
        assert_eq!((Exit::Signal(15), Some(K::ExitUnknown)), of(Some(record(143, true)), Some((How::MachineLost, None))));
        // The payload's shell told how its command ended before the script heard of its own end.
        let first = ExitRecord { exit: Some(Exit::Code(143)), ..record(143, false) };
        assert!(first.ended_by_another());
        assert_eq!((Exit::Code(143), Some(K::ExitUnknown)), of(Some(first), Some((How::MachineLost, None))));
        // It was requeued: by the state of its job, or by the exit of its second copy, which found the claim taken.
        assert_eq!((Exit::Signal(15), Some(K::ExitUnknown)), of(Some(record(143, true)), Some((How::Requeued, None))));
        assert_eq!((Exit::Signal(15), Some(K::ExitUnknown)), of(Some(record(143, true)), Some((How::Exited, Some(CLAIMED)))));
        assert_eq!((Exit::Unknown, Some(K::ExitUnknown)), of(None, Some((How::Exited, Some(CLAIMED)))));
        assert_eq!((Exit::Code(0), None), of(Some(record(0, false)), Some((How::Exited, Some(CLAIMED)))));
        assert_eq!((Exit::Code(120), None), of(Some(record(120, true)), Some((How::Exited, Some(CLAIMED)))));
        // Not lost: it is not to run again by itself.
        assert_eq!((Exit::Unknown, Some(K::StartFailed)), of(None, Some((How::Broken, None))));
        assert_eq!((Exit::Code(100), None), of(Some(record(100, false)), Some((How::Broken, None))));
        // What was used is the record's, and where there is none, the books'.
        let used = Used { wall_ms: Some(2_000), cpu_us: Some(7), peak: Some((9, "sampled")) };
        let used_of = |record: Option<&ExitRecord>, exit| match verdict(record, Some((&Over { used, ..Over::new(How::Exited, exit) }, "")), "slurm") {
            Verdict::Exited(r) => (r.wall_ms, r.cpu_us, r.peak),
            Verdict::NotStarted(f) => panic!("{f:?}"),
        };
        assert_eq!((Some(2_000), Some(7), Some((9, "sampled"))), used_of(None, None));
        assert_eq!((Some(5), Some(7), Some((8, "largest-process"))), used_of(Some(&ExitRecord { peak_bytes: Some(8), ..record(0, false) }), None));
        // What a second copy used is none of the payload's, unless that ended so itself.
        assert_eq!((None, None, None), used_of(None, Some(CLAIMED)));
        assert_eq!((Some(5), None, None), used_of(Some(&record(143, true)), Some(CLAIMED)));
        assert_eq!((Some(5), Some(7), Some((9, "sampled"))), used_of(Some(&record(120, false)), Some(CLAIMED)));
        let missing = ExitRecord { fault: "no-such-program".into(), ..record(127, false) };
        assert_eq!((Exit::Code(127), Some(K::NoSuchProgram)), of(Some(missing), None));
    }
}
