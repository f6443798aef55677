//! Slurm's words: states, reasons, complaints and exit codes, as ours. Pure; any text is taken, and what is not known is said to be so.

use intergrid_proto::Exit;

use crate::command::Output;
use crate::lrms::{How, Over, Refused, State, SubmitFailure, Wait};

/// Array task number of a job that is no array.
pub const NO_TASK: u32 = 4_294_967_294;
/// What slurmstepd says where it could not start the script: no directory, no account there. No signal has this number in practice.
const LAUNCH_FAILED_SIGNAL: u8 = 53;

/// Where a task is: state, reason and raw exit status as squeue has them.
pub fn state(word: &str, reason: &str, status: Option<u32>, restarts: u32) -> State {
    match word {
        "PENDING" | "REQUEUED" => State::Pending(wait(reason, restarts), reason.to_string()),
        "REQUEUE_HOLD" | "SPECIAL_EXIT" | "RESV_DEL_HOLD" => State::Pending(Wait::Held, word.to_string()),
        "CONFIGURING" | "RUNNING" | "COMPLETING" | "STAGE_OUT" | "SIGNALING" | "RESIZING" | "STOPPED" => State::Running,
        "SUSPENDED" => State::Suspended,
        _ => over(word, reason, status.map(exit_of_status)).map_or_else(|| State::Unknown(word.to_string()), State::Ended),
    }
}

/// How it ended; None: the word is none of an end.
pub fn over(word: &str, reason: &str, exit: Option<Exit>) -> Option<Over> {
    let over = |how, exit| Some(Over::new(how, exit));
    // sacct writes "CANCELLED by 1001".
    match word.split_whitespace().next().unwrap_or_default() {
        "COMPLETED" => over(How::Exited, Some(Exit::Code(0))),
        // Exit code 0 is said of a failure too, where the script never ran; it is no evidence of success.
        "FAILED" => match exit {
            _ if reason == "BadConstraints" => over(How::NotStarted, Some(Exit::NotStarted)),
            Some(Exit::Signal(LAUNCH_FAILED_SIGNAL)) => over(How::NotStarted, Some(Exit::NotStarted)),
            Some(Exit::Code(0)) | None => over(How::Exited, None),
            exit => over(How::Exited, exit),
        },
        "TIMEOUT" | "DEADLINE" => over(How::TimeLimit, None),
        "OUT_OF_MEMORY" => over(How::Memory, None),
        "NODE_FAIL" | "BOOT_FAIL" => over(How::MachineLost, None),
        "CANCELLED" | "REVOKED" => over(How::Removed, None),
        "PREEMPTED" => over(How::Preempted, None),
        _ => None,
    }
}

/// What slurmstepd writes beside a task's output when it kills it, or sees it killed.
pub fn complaint(text: &str) -> Option<How> {
    let said = |words: &str| text.lines().any(|l| l.starts_with("slurmstepd") && l.contains(words));
    match () {
        () if said("exceeded memory limit") || said("Exceeded job memory limit") || said("oom-kill event") => Some(How::Memory),
        () if said("DUE TO TIME LIMIT") => Some(How::TimeLimit),
        () => None,
    }
}

/// A wait status, as squeue prints it.
fn exit_of_status(status: u32) -> Exit {
    match (status & 0x7f, (status >> 8) & 0xff) {
        (0, code) => Exit::Code(code as u8),
        (signal, _) => Exit::Signal(signal as u8),
    }
}

/// `code:signal`, as the books have it.
pub fn exit(text: &str) -> Option<Exit> {
    let (code, signal) = text.split_once(':')?;
    match (code.parse::<u8>().ok()?, signal.parse::<u8>().ok()?) {
        (code, 0) => Some(Exit::Code(code)),
        (_, signal) => Some(Exit::Signal(signal)),
    }
}

/// Why a task waits.
pub fn wait(reason: &str, restarts: u32) -> Wait {
    let has = |parts: &[&str]| parts.iter().any(|part| reason.contains(part));
    if reason.starts_with("JobHeld") || reason == "JobHoldMaxRequeue" || has(&["held"]) {
        return Wait::Held;
    }
    if restarts > 0 {
        return Wait::Requeued;
    }
    match reason {
        "None"
        | "Priority"
        | "Resources"
        | "Dependency"
        | "BeginTime"
        | "Licenses"
        | "Reservation"
        | "Cleaning"
        | "Prolog"
        | "NodeDown"
        | "FrontEndDown"
        | "ReqNodeNotAvail"
        | "WaitingForScheduling"
        | "Resizing"
        | "" => Wait::Turn,
        "JobArrayTaskLimit" => Wait::Limit,
        "DependencyNeverSatisfied"
        | "BadConstraints"
        | "PartitionDown"
        | "PartitionInactive"
        | "PartitionNodeLimit"
        | "PartitionTimeLimit"
        | "PartitionConfig"
        | "InvalidAccount"
        | "InvalidQOS"
        | "AccountNotAllowed"
        | "QOSNotAllowed"
        | "AccountingPolicy"
        | "FedJobLock" => Wait::Never,
        "JobLaunchFailure" | "SystemFailure" | "NonZeroExitCode" => Wait::Broken,
        _ if has(&["PerJob", "WallDurationPerJob", "PerNode"]) && has(&["QOS", "Assoc"]) => Wait::Never,
        _ if reason.starts_with("QOS") || reason.starts_with("Assoc") || reason.starts_with("Max") => Wait::Limit,
        _ if has(&["UnavailableNodes", "DOWN, DRAINED or reserved", "ReqNodeNotAvail"]) => Wait::Turn,
        _ => Wait::Other,
    }
}

/// Do others wait behind it? Not behind what is held, nor what may not begin yet, for its time or for what it depends on.
pub fn is_in_line(wait: Wait, reason: &str) -> bool {
    wait != Wait::Held && reason != "BeginTime" && !reason.starts_with("Dependency")
}

/// What sbatch complains of, beside what that means. Anything else may have been submitted.
const COMPLAINTS: &[(&str, Refused)] = &[
    ("invalid partition specified", Refused::NoQueue),
    ("Invalid partition name specified", Refused::NoQueue),
    ("Requested node configuration is not available", Refused::Never),
    ("Memory specification can not be satisfied", Refused::Never),
    ("Requested time limit is invalid", Refused::Never),
    ("Requested partition configuration not available now", Refused::Never),
    ("More processors requested than permitted", Refused::Never),
    ("Node count specification invalid", Refused::Never),
    ("CPU count", Refused::Never),
    ("Invalid feature specification", Refused::Never),
    ("Invalid generic resource (gres) specification", Refused::Never),
    ("Invalid job array specification", Refused::TooManyTasks),
    ("Invalid numeric value", Refused::Never),
    ("Invalid account or account/partition combination", Refused::NotAuthorised),
    ("User's group not permitted to use this partition", Refused::NotAuthorised),
    ("Access/permission denied", Refused::NotAuthorised),
    ("Invalid user id", Refused::NotAuthorised),
    ("Invalid qos specification", Refused::NotAuthorised),
    ("Job violates accounting/QOS policy", Refused::Later),
    ("Slurm temporarily unable to accept job", Refused::Later),
    ("Resource temporarily unavailable", Refused::Later),
    ("Required partition not available", Refused::Later),
    ("Unable to contact slurm controller (connect failure)", Refused::Later),
    ("Slurm controller in standby mode", Refused::Later),
    ("slurm_load", Refused::Later),
];

/// Where there is no room for a job sbatch tries for two minutes, and says so.
pub const TRIES_ON: &str = "sleeping and retrying";

/// What became of a submission whose sbatch was not heard to its end.
pub fn unheard(why: String) -> SubmitFailure {
    if why.contains(TRIES_ON) { SubmitFailure::Doubtful(Refused::Later, why) } else { SubmitFailure::Unknown(why) }
}

/// Why a submission has no number: the exit of sbatch and what it printed.
pub fn refusal(output: &Output) -> SubmitFailure {
    let text = output.complaint();
    if output.is_refused_by_sudo() {
        return SubmitFailure::Refused(Refused::NotAuthorised, text);
    }
    match COMPLAINTS.iter().find(|(complaint, _)| output.code.is_some() && !output.is_good() && output.stderr.contains(complaint)) {
        Some((_, kind)) => SubmitFailure::Refused(*kind, text),
        None => SubmitFailure::Unknown(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exit_code_0_alone_is_no_success() {
        let ended = |word, reason, status| match state(word, reason, Some(status), 0) {
            State::Ended(over) => (over.how, over.exit),
            other => panic!("{other:?}"),
        };
        assert_eq!((How::Exited, Some(Exit::Code(0))), ended("COMPLETED", "None", 0));
        assert_eq!((How::Exited, Some(Exit::Code(3))), ended("FAILED", "NonZeroExitCode", 768));
        assert_eq!((How::Exited, Some(Exit::Signal(9))), ended("FAILED", "JobLaunchFailure", 9));
        assert_eq!((How::NotStarted, Some(Exit::NotStarted)), ended("FAILED", "JobLaunchFailure", 4_021));
        assert_eq!((How::NotStarted, Some(Exit::NotStarted)), ended("FAILED", "BadConstraints", 1));
        assert_eq!((How::Exited, None), ended("FAILED", "None", 0));
        assert_eq!((How::TimeLimit, None), ended("TIMEOUT", "TimeLimit", 0));
        assert_eq!((How::MachineLost, None), ended("NODE_FAIL", "NodeDown", 0));
        assert_eq!((How::Removed, None), ended("CANCELLED", "None", 15));
        assert_eq!((How::Memory, None), ended("OUT_OF_MEMORY", "OutOfMemory", 0));
        assert_eq!(State::Unknown("SOMETHING_NEW".into()), state("SOMETHING_NEW", "None", Some(0), 0));
        assert_eq!(Some(How::Removed), over("CANCELLED by 1001", "", None).map(|o| o.how));
        assert_eq!(None, over("PENDING", "", exit("0:0")));
    }

    #[test]
    fn each_wait_has_its_kind() {
        for (reason, kind) in [
            ("Resources", Wait::Turn),
            ("Priority", Wait::Turn),
            ("BeginTime", Wait::Turn),
            ("JobHeldUser", Wait::Held),
            ("JobHeldAdmin", Wait::Held),
            ("job requeued in held state", Wait::Held),
            ("launch failed requeued held", Wait::Held),
            ("DependencyNeverSatisfied", Wait::Never),
            ("PartitionDown", Wait::Never),
            ("PartitionConfig", Wait::Never),
            ("PartitionTimeLimit", Wait::Never),
            ("QOSMaxJobsPerUserLimit", Wait::Limit),
            ("AssocGrpCpuLimit", Wait::Limit),
            ("QOSMaxCpuPerJobLimit", Wait::Never),
            ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions", Wait::Turn),
            ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", Wait::Turn),
            ("SomethingNew", Wait::Other),
        ] {
            assert_eq!(kind, wait(reason, 0), "{reason}");
        }
        assert_eq!(Wait::Requeued, wait("BeginTime", 1));
        assert_eq!(Wait::Held, wait("JobHeldAdmin", 1));
    }

    #[test]
    fn nobody_waits_behind_what_is_held_or_may_not_begin_yet() {
        let in_line = |word: &str, reason: &str| match state(word, reason, None, 0) {
            State::Pending(wait, why) => is_in_line(wait, &why),
            other => panic!("{other:?}"),
        };
        assert!(["None", "Priority", "Resources", "QOSMaxJobsPerUserLimit", "PartitionDown", "SomethingNew"].iter().all(|r| in_line("PENDING", r)));
        for reason in ["JobHeldUser", "JobHeldAdmin", "launch failed requeued held", "BeginTime", "Dependency", "DependencyNeverSatisfied"] {
            assert!(!in_line("PENDING", reason), "{reason}");
        }
        assert!(!in_line("REQUEUE_HOLD", "None") && !in_line("SPECIAL_EXIT", "None"));
    }

    #[test]
    fn a_no_is_told_from_what_is_not_known() {
        let said = |code, stderr: &str| refusal(&Output { code, stdout: String::new(), stderr: stderr.into() });
        let failed = |why: &str| format!("sbatch: error: Batch job submission failed: {why}\n");
        for (text, kind) in [
            ("Requested node configuration is not available", Refused::Never),
            ("Invalid partition name specified", Refused::NoQueue),
            ("Invalid job array specification", Refused::TooManyTasks),
            ("Requested time limit is invalid (missing or exceeds some limit)", Refused::Never),
            ("Unable to contact slurm controller (connect failure)", Refused::Later),
            ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", Refused::Later),
            ("User's group not permitted to use this partition", Refused::NotAuthorised),
        ] {
            assert!(matches!(said(Some(1), &failed(text)), SubmitFailure::Refused(k, _) if k == kind), "{text}");
        }
        assert!(matches!(said(Some(1), "sudo: a password is required\n"), SubmitFailure::Refused(Refused::NotAuthorised, _)));
        for (code, text) in [(Some(1), "Socket timed out on send/recv operation"), (Some(1), "Zero Bytes were transmitted or received"), (None, "")] {
            assert!(matches!(said(code, &failed(text)), SubmitFailure::Unknown(_)), "{text}");
        }
        let tries = "sbatch was killed: sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying";
        assert!(matches!(unheard(tries.into()), SubmitFailure::Doubtful(Refused::Later, _)));
        assert!(matches!(unheard("sbatch did not end within 30000 ms, and was killed".into()), SubmitFailure::Unknown(_)));
        // It said yes, and nobody can read which number.
        assert!(matches!(said(Some(0), &failed("Invalid partition name specified")), SubmitFailure::Unknown(_)));
    }

    #[test]
    fn what_slurmstepd_complains_of_is_read() {
        // Of Slurm 22.05.8, and of a site with cgroups.
        let killed = "slurmstepd: error: StepId=2.batch exceeded memory limit (312345678 > 67108864), being killed\n";
        assert_eq!(Some(How::Memory), complaint(killed));
        assert_eq!(
            Some(How::Memory),
            complaint("x\nslurmstepd: error: Detected 1 oom-kill event(s) in StepId=4.batch. Some of your processes ...\n")
        );
        assert_eq!(Some(How::TimeLimit), complaint("slurmstepd: error: *** JOB 3 ON n1 CANCELLED AT 2026-11-21T09:43:11 DUE TO TIME LIMIT ***\n"));
        assert_eq!(None, complaint("slurmstepd: error: *** JOB 3 ON n1 CANCELLED AT 2026-11-21T09:43:11 ***\nit exceeded memory limit\n"));
    }

    proptest! {
        #[test]
        fn any_words_are_taken(word in "\\PC*", reason in "\\PC*", status in any::<Option<u32>>(), restarts in any::<u32>()) {
            let _ = (state(&word, &reason, status, restarts), exit(&word), wait(&reason, restarts));
            let _ = refusal(&Output { code: Some(1), stdout: word, stderr: reason });
        }
    }
}
