//! Grid Engine's words: states, complaints and the codes of its accounting, as ours. Pure; any text is taken, and what is not known is said to be so.

use intergrid_proto::Exit;

use crate::command::Output;
use crate::lrms::{How, Over, Refused, State, SubmitFailure, Wait};

/// A shell says so much more than a signal's number, and so do the books.
const SIGNAL_BASE: u32 = 128;
/// Of signals.
const SIGNALS: u32 = 64;

/// Where a task is: the letters of its state, `why` where it is in error.
pub fn state(letters: &str, why: Option<&str>) -> State {
    let has = |some: &[char]| letters.contains(some);
    match () {
        () if letters.is_empty() || !letters.chars().all(|c| "dEhrRsSTtwqN".contains(c)) => State::Unknown(letters.to_string()),
        () if has(&['E']) => State::Pending(Wait::Broken, why.unwrap_or(letters).to_string()),
        // What is being removed is there until it is not.
        () if has(&['d']) && has(&['q']) => State::Pending(Wait::Other, letters.to_string()),
        () if has(&['d']) => State::Running,
        () if has(&['s', 'S', 'T', 'N']) => State::Suspended,
        () if has(&['q']) && has(&['h']) => State::Pending(Wait::Held, letters.to_string()),
        () if has(&['q']) && has(&['R']) => State::Pending(Wait::Requeued, letters.to_string()),
        () if has(&['q']) => State::Pending(Wait::Turn, letters.to_string()),
        () if has(&['r', 't']) => State::Running,
        () => State::Unknown(letters.to_string()),
    }
}

/// How a task ended, by the fields `failed` and `exit_status` of its record, and whether its script began; None: it did not, but goes back to the queue.
pub fn over(failed: u32, status: u32) -> Option<(Over, bool)> {
    let over = |how, exit, began| Some((Over::new(how, exit), began));
    let code = u8::try_from(status).ok().map(Exit::Code);
    let signal = status.checked_sub(SIGNAL_BASE).filter(|n| (1..=SIGNALS).contains(n)).map(|n| Exit::Signal(n as u8));
    match failed {
        // After the script: what failed then is no matter of the task.
        0 | 12..=16 => over(How::Exited, code, true),
        37 => over(How::TimeLimit, None, true),
        // The script was killed, and it is its caller who ends otherwise: somebody has removed the job.
        100 => over(How::Removed, signal, true),
        // It migrates, is rescheduled, or asked for that.
        24 | 25 | 30 => None,
        1..=11 | 21 | 26..=29 | 31..=36 | 38 => over(How::NotStarted, Some(Exit::NotStarted), false),
        // The shepherd failed, or wrote no exit: nobody knows.
        _ => over(How::MachineLost, None, true),
    }
}

/// The code of an end in words, as `qacct` has it.
pub fn failure(failed: u32) -> &'static str {
    match failed {
        0 => "no failure",
        1..=11 | 21 => "before the job",
        12..=16 => "after the job",
        17..=19 => "no exit status",
        26 => "opening an input or output file",
        27 => "searching the requested shell",
        28 => "changing into the working directory",
        37 => "beyond a limit",
        100 => "killed by a signal",
        _ => "failed",
    }
}

/// What qsub complains of, beside what that means.
const COMPLAINTS: &[(&str, Refused)] = &[
    ("requests unknown queue", Refused::NoQueue),
    ("no suitable queues", Refused::Never),
    ("the requested parallel environment", Refused::Never),
    ("unknown resource", Refused::Never),
    ("submit a job with more than", Refused::TooManyTasks),
    ("jobs are allowed per user", Refused::Later),
    ("jobs are allowed per cluster", Refused::Later),
    ("exceed the maximum allowed number of jobs", Refused::Later),
    ("is no submit host", Refused::NotAuthorised),
    ("has no permission", Refused::NotAuthorised),
    ("no access to project", Refused::NotAuthorised),
    ("job rejected: your user id", Refused::NotAuthorised),
    ("job rejected: only user", Refused::NotAuthorised),
    ("denied: user", Refused::NotAuthorised),
    ("Connection refused", Refused::Later),
    ("can't resolve hostname", Refused::Later),
    // The site's verifier is away.
    ("got no response from JSV", Refused::Later),
    // A site's own rules, or a limit that we do not know: nothing was submitted.
    ("job rejected", Refused::Never),
    ("Job was rejected", Refused::Never),
];

/// A master that was not heard to its end: it may have taken the job. Each is qsub's own, as a verifier's words are in the same place.
const UNHEARD: [&str; 6] = [
    "gdi request",
    "commlib error: ",
    "unable to send message to qmaster",
    "unable to contact qmaster",
    "got select timeout",
    "expired while waiting on socket",
];

/// qsub says no to what it was asked, in words of its own or of the site's: a verifier's (JSV) may be any.
fn says_no(output: &Output) -> bool {
    let no = output.stderr.contains("Unable to run job: ") || output.stderr.lines().any(|l| l.starts_with("qsub: "));
    no && output.code.is_some_and(|c| c != 0) && !UNHEARD.iter().any(|words| output.stderr.contains(words))
}

/// Why a submission has no number: the exit of qsub and what it printed.
pub fn refusal(output: &Output) -> SubmitFailure {
    let text = output.complaint();
    if output.is_refused_by_sudo() {
        return SubmitFailure::Refused(Refused::NotAuthorised, text);
    }
    let said = |complaint: &str| output.stderr.contains("Unable to run job") && output.stderr.contains(complaint);
    match COMPLAINTS.iter().find(|(complaint, _)| output.code.is_some_and(|c| c != 0) && said(complaint)) {
        Some((_, kind)) => SubmitFailure::Refused(*kind, text),
        None if says_no(output) => SubmitFailure::Doubtful(Refused::Never, text),
        None => SubmitFailure::Unknown(text),
    }
}

/// What qdel says of tasks that are removed, or are gone already.
const REMOVED: [&str; 5] = ["has registered the job", "has deleted job", "is already in deletion", "does not exist", "comprises no tasks"];

/// Of a removal: the first line that says that something was not removed.
pub fn not_removed(output: &Output) -> Option<String> {
    let bad = |line: &&str| !line.trim().is_empty() && !REMOVED.iter().any(|word| line.contains(word));
    output.stdout.lines().chain(output.stderr.lines()).find(bad).map(|line| line.chars().take(crate::limits::COMPLAINT_CHARS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_state_has_its_kind() {
        for (letters, kind) in [
            ("qw", State::Pending(Wait::Turn, "qw".into())),
            ("hqw", State::Pending(Wait::Held, "hqw".into())),
            ("hRwq", State::Pending(Wait::Held, "hRwq".into())),
            ("Rq", State::Pending(Wait::Requeued, "Rq".into())),
            ("Eqw", State::Pending(Wait::Broken, "can't chdir".into())),
            ("EhRqw", State::Pending(Wait::Broken, "can't chdir".into())),
            ("t", State::Running),
            ("r", State::Running),
            ("Rr", State::Running),
            ("dr", State::Running),
            ("ds", State::Running),
            ("dqw", State::Pending(Wait::Other, "dqw".into())),
            ("s", State::Suspended),
            ("S", State::Suspended),
            ("T", State::Suspended),
            ("Rs", State::Suspended),
            ("x", State::Unknown("x".into())),
            ("", State::Unknown("".into())),
        ] {
            assert_eq!(kind, state(letters, Some("can't chdir")), "{letters}");
        }
        assert_eq!(State::Pending(Wait::Broken, "Eqw".into()), state("Eqw", None));
    }

    #[test]
    fn each_end_has_its_kind() {
        let end = |failed, status| over(failed, status).map(|(over, began)| (over.how, over.exit, began));
        assert_eq!(Some((How::Exited, Some(Exit::Code(3)), true)), end(0, 3));
        assert_eq!(Some((How::Removed, Some(Exit::Signal(9)), true)), end(100, 137));
        assert_eq!(Some((How::TimeLimit, None, true)), end(37, 137));
        assert_eq!(Some((How::NotStarted, Some(Exit::NotStarted), false)), end(28, 0));
        assert_eq!(Some((How::MachineLost, None, true)), end(19, 0));
        assert_eq!(None, end(25, 0));
        assert_eq!(Some((How::Exited, None, true)), end(0, 999));
    }

    #[test]
    fn a_no_is_told_from_what_is_not_known() {
        let said = |code, stderr: &str| refusal(&Output { code, stdout: String::new(), stderr: stderr.into() });
        let failed = |why: &str| format!("Unable to run job: {why}\nExiting.\n");
        for (text, kind) in [
            ("Job was rejected because job requests unknown queue \"gone\"", Refused::NoQueue),
            ("error: no suitable queues", Refused::Never),
            ("job rejected: the requested parallel environment \"nope\" does not exist", Refused::Never),
            ("job rejected: you tried to submit a job with more than 75000 tasks", Refused::TooManyTasks),
            ("job rejected: only 3 jobs are allowed per cluster", Refused::Later),
            ("job rejected: only 3 jobs are allowed per user (current job count: 3)", Refused::Later),
            ("error: commlib error: got select error (Connection refused)", Refused::Later),
            ("job rejected: your user id 0 is lower than minimum user id 100 of cluster configuration", Refused::NotAuthorised),
            ("job rejected: by the site", Refused::Never),
            ("got no response from JSV script \"/opt/jsv.sh\"", Refused::Later),
        ] {
            assert!(matches!(said(Some(1), &failed(text)), SubmitFailure::Refused(k, _) if k == kind), "{text}");
        }
        // Words that nobody foresaw, of several lines: nothing was submitted, most likely.
        let rule = "Please name a project with -P:\nsee https://intranet/hpc";
        let timeout = "Jobs need a project with -P: see https://intranet/hpc, and a timeout";
        for (code, text) in [(1, failed(rule)), (1, failed(timeout)), (2, "qsub: command required for a binary job\n".to_string())] {
            let SubmitFailure::Doubtful(Refused::Never, why) = said(Some(code), &text) else { panic!("{text}: {:?}", said(Some(code), &text)) };
            assert!(why.contains("with -P: see https") || why.contains("binary job"), "{why}");
        }
        assert!(matches!(said(Some(1), "sudo: a password is required\n"), SubmitFailure::Refused(Refused::NotAuthorised, _)));
        for (code, text) in [
            (Some(1), "failed receiving gdi request response for mid=1 (got syncron message receive timeout error)."),
            (Some(1), "unable to send message to qmaster using port 6444 on host \"m1\": got send timeout"),
            (Some(1), "unable to contact qmaster using port 6444 on host \"m1\""),
            (Some(1), "error: commlib error: got select timeout"),
            (Some(0), "no suitable queues"),
            (None, "no suitable queues"),
            (None, rule),
            (Some(0), rule),
        ] {
            assert!(matches!(said(code, &failed(text)), SubmitFailure::Unknown(_)), "{text}");
        }
    }

    #[test]
    fn what_is_gone_is_removed() {
        let said = |stdout: &str| not_removed(&Output { code: Some(1), stdout: stdout.into(), stderr: String::new() });
        let good = "a has registered the job-array task 13.1 for deletion\na has deleted job-array tasks 3,4 of job 14\na has deleted job 3\n\
                    a has deleted job-array task 14.9\ndenied: job \"999\" does not exist\njob 13 is already in deletion\n\
                    job \"13\" task id range \"1-2:1\" comprises no tasks\njob \"14\" task \"3\" does not exist\n";
        assert_eq!((None, None), (said(good), said("")));
        assert!(said(&format!("{good}b - you do not have the necessary privileges to delete the job \"13\"\n")).unwrap().contains("privileges"));
        assert!(said("error: commlib error: got select error (Connection refused)\n").is_some());
    }

    proptest! {
        #[test]
        fn any_words_are_taken(word in "\\PC*", letters in "[dEhrRsSTtwqN]{0,6}", failed in any::<u32>(), status in any::<u32>()) {
            let _ = (state(&word, Some(&word)), state(&letters, None), over(failed, status), failure(failed));
            let output = Output { code: Some(1), stdout: word.clone(), stderr: word };
            let _ = (refusal(&output), not_removed(&output));
        }
    }
}
