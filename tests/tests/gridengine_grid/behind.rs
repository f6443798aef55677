//! What is done to our jobs in Grid Engine while nobody looks, tasks that can't be started there, and commands that can't be trusted.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use intergrid_tests::gridengine::ACCOUNTS;

use crate::ends::last_attempt;
use crate::site::{PATIENCE, Site};
use crate::tree::until;

#[test]
fn what_is_done_to_a_job_behind_our_back_is_seen() {
    let site = Site::start();
    let ann = site.user("ann");
    let job = ann.submit(&["--", "sh", "-c", &site.starts.counted("sleep 600")]);
    site.until_started(1);
    let task = site.until_listed("r")[0].replacen(" r ", ".", 1);
    site.cluster.run("qmod", &["-sj", &task]);
    ann.until_phase(&job, "suspended", 1);
    let said = ann.run(&["explain", &job]).out;
    assert!(said.contains("waits-below: 1 of its tasks are suspended in gridengine"), "{said}");
    site.cluster.run("qmod", &["-usj", &task]);
    ann.until_phase(&job, "running", 1);
    site.cluster.run("qdel", &[&task]);
    assert_eq!(1, ann.wait(&job));
    let (kind, text) = last_attempt(&ann, &job);
    assert!(kind == "signal" && text.contains("somebody removed it from gridengine"), "{kind}: {text}");
    // Who cancels what is suspended there need not resume it first.
    let job = ann.submit(&["--", "sh", "-c", &format!("GRID_TASK_ID=1; {}", site.starts.counted("sleep 600"))]);
    site.until_started(2);
    let task = site.until_listed("r")[0].replacen(" r ", ".", 1);
    site.cluster.run("qmod", &["-sj", &task]);
    ann.until_phase(&job, "suspended", 1);
    ann.run(&["cancel", &job]).well();
    ann.until_phase(&job, "cancelled", 1);
    site.until_gone();
    site.starts.assert_each_once(2);
}

/// By an administrator while it runs, or by the site's verifier when it is submitted. That it is suspended is seen of what is looked after, and how it ended
/// is in the books under the other name.
#[test]
fn a_job_that_is_renamed_is_looked_after_by_its_number() {
    let site = Site::start();
    let ann = site.user("ann");
    for verifier in [false, true] {
        if verifier {
            site.cluster.rename_all("sitename");
        }
        let job =
            ann.submit(&["--no-requeue", "--", "sh", "-c", &format!("GRID_TASK_ID={}; {}", u8::from(verifier), site.starts.counted("sleep 600"))]);
        site.until_started(1 + usize::from(verifier));
        let task = site.until_listed("r")[0].replacen(" r ", ".", 1);
        if !verifier {
            site.cluster.run("qalter", &["-N", "other", task.split('.').next().unwrap()]);
        }
        site.cluster.run("qmod", &["-sj", &task]);
        ann.until_phase(&job, "suspended", 1);
        site.cluster.run("qmod", &["-usj", &task]);
        ann.until_phase(&job, "running", 1);
        site.cluster.run("qdel", &[&task]);
        assert_eq!(1, ann.wait(&job));
        let (kind, text) = last_attempt(&ann, &job);
        assert!(kind == "signal" && text.contains("somebody removed it from gridengine"), "{kind}: {text}");
        site.until_gone();
    }
}

#[test]
fn books_that_can_t_be_read_are_told_while_an_end_waits_for_them() {
    let site = Site::start();
    let ann = site.user("ann");
    // Nothing has ended yet, so that there are none: a directory in their place can't be read.
    let books = site.cluster.common().join("accounting");
    std::fs::create_dir(&books).unwrap();
    let job = ann.submit(&["--no-requeue", "--", "sh", "-c", &site.starts.counted("sleep 600")]);
    site.until_started(1);
    let task = site.until_listed("r")[0].replacen(" r ", ".", 1);
    site.cluster.run("qdel", &[&task]);
    ann.until_reason(&job, "can't be read: accounting");
    std::fs::remove_dir(&books).unwrap();
    assert_eq!(1, ann.wait(&job));
    site.starts.assert_each_once(1);
}

/// It leaves no record of that: what has not started may start elsewhere, as with Slurm, which has one.
#[test]
fn a_job_that_somebody_removes_while_it_waits_is_placed_again() {
    let site = Site::start();
    let ann = site.user("ann");
    let blockers = site.block();
    let job = ann.submit(&["--", "sh", "-c", &site.starts.counted("true")]);
    let waits = site.until_listed("qw")[0].split(' ').next().unwrap().to_string();
    site.cluster.run("qdel", &[&waits]);
    site.tree
        .user("campus")
        .until_returned(&["start-failed", "it is gone from gridengine without a record, as what somebody removes, and had not started"]);
    until("it is there again", PATIENCE, || {
        let all = site.cluster.listed();
        let again = all.iter().any(|l| l.contains(" qw ") && !l.starts_with(&format!("{waits} ")));
        if again { Ok(()) } else { Err(format!("{all:?}")) }
    });
    assert!(site.starts.of_each().is_empty());
    blockers.iter().for_each(|id| _ = site.cluster.run("qdel", &[id]));
    assert_eq!(0, ann.wait(&job), "{}", ann.run(&["explain", &job]).out);
    site.starts.assert_each_once(1);
}

#[test]
fn a_task_that_goes_into_error_has_failed_with_the_words_of_grid_engine() {
    let site = Site::start();
    let ann = site.user("ann");
    site.command("qsub", "exec /usr/lib/gridengine/qsub \"$@\" -wd /nowhere/at/all");
    let job = ann.submit(&["-n", "3", "--", "sh", "-c", &site.starts.counted("true")]);
    assert_eq!(1, ann.wait(&job));
    assert_eq!(3, ann.in_phase(&job, "failed"));
    let (kind, text) = last_attempt(&ann, &job);
    assert!(kind == "start-failed" && text.contains("Eqw: can't chdir to /nowhere/at/all"), "{kind}: {text}");
    site.until_gone();
    assert!(site.starts.of_each().is_empty());
}

/// To Grid Engine the exit code of 100 says that it is to keep the job, in error.
#[test]
fn an_exit_code_of_100_whose_record_can_not_be_written_is_an_end() {
    let site = Site::start();
    let ann = site.user("ann");
    let job = ann.submit(&["--", "sh", "-c", &site.starts.counted("chmod 500 ../../../run; exit 100")]);
    assert_eq!(1, ann.wait(&job), "{}", ann.run(&["explain", &job]).out);
    let (kind, text) = last_attempt(&ann, &job);
    assert!(kind == "start-failed" && text.contains("it began, and left no record; gridengine has it in error since"), "{kind}: {text}");
    let run = site.cluster.dir().join("shared").join(ACCOUNTS[0]).join("run");
    std::fs::set_permissions(run, Permissions::from_mode(0o700)).unwrap();
    site.until_gone();
    site.starts.assert_each_once(1);
}

/// Grid Engine starts it over: the second copy finds the claim taken.
#[test]
fn a_job_that_somebody_reschedules_does_not_run_twice() {
    let site = Site::start();
    let ann = site.user("ann");
    let job = ann.submit(&["--no-requeue", "--", "sh", "-c", &site.starts.counted("sleep 600")]);
    site.until_started(1);
    let task = site.until_listed("r")[0].replacen(" r ", ".", 1);
    site.cluster.run("qmod", &["-f", "-rj", &task]);
    assert_eq!(1, ann.wait(&job), "{}", ann.run(&["explain", &job]).out);
    site.until_gone();
    site.starts.assert_each_once(1);
}

#[test]
fn a_qsub_that_answers_late_wrongly_or_not_at_all() {
    let site = Site::start();
    let ann = site.user("ann");
    let shared = site.cluster.dir().join("shared");
    for (n, script) in [
        "/usr/lib/gridengine/qsub \"$@\" > /dev/null; echo 'Unable to run job: failed receiving gdi request response' >&2; exit 1",
        "/usr/lib/gridengine/qsub \"$@\" > /dev/null; echo Zvonek",
        "/usr/lib/gridengine/qsub \"$@\" > /dev/null; kill -9 $$",
        "out=$(/usr/lib/gridengine/qsub \"$@\"); sleep 5; echo \"$out\"",
        // Nothing at all, once; then as it should.
        &format!("[ -e {0} ] || {{ touch {0}; exec sleep 600; }}; exec /usr/lib/gridengine/qsub \"$@\"", shared.join("silent").display()),
    ]
    .into_iter()
    .enumerate()
    {
        site.command("qsub", script);
        // One job each, counted together: its tasks are told apart by an offset.
        let words = format!("GRID_TASK_ID=$((GRID_TASK_ID + {})); {}", 6 * n, site.starts.counted("true"));
        let job = ann.submit(&["-n", "6", "--no-requeue", "--", "sh", "-c", &words]);
        assert_eq!(0, ann.run(&["wait", "--timeout", "120s", &job]).code, "{script}: {}", ann.run(&["explain", &job]).out);
        site.starts.assert_each_once(6 * (n as u32 + 1));
    }
}

#[test]
fn a_queue_that_is_closed_takes_nothing_and_one_that_opens_does() {
    let site = Site::start();
    let ann = site.user("ann");
    site.cluster.run("qmod", &["-d", "*"]);
    until("it is known above", PATIENCE, || {
        let slots = ann.json(&["hosts"])["slots_total"].as_u64();
        if slots == Some(0) { Ok(()) } else { Err(format!("{slots:?}")) }
    });
    let job = ann.submit(&["--", "sh", "-c", &site.starts.counted("true")]);
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(site.starts.of_each().is_empty() && site.cluster.listed().is_empty());
    site.cluster.run("qmod", &["-e", "*"]);
    assert_eq!(0, ann.wait(&job), "{}", ann.run(&["explain", &job]).out);
    site.starts.assert_each_once(1);
}

#[test]
fn commands_that_hang_lose_and_double_nothing() {
    let site = Site::start();
    let ann = site.user("ann");
    // It does it and does not answer, once: it is killed in its time, and its job is looked for.
    let once = site.cluster.dir().join("shared/once");
    let real = "/usr/lib/gridengine/qsub \"$@\"";
    site.command("qsub", &format!("[ -e {0} ] || {{ touch {0}; {real} > /dev/null; exec sleep 600; }}; exec {real}", once.display()));
    let job = ann.submit(&["-n", "6", "--no-requeue", "--", "sh", "-c", &site.starts.counted("true")]);
    assert_eq!(0, ann.run(&["wait", "--timeout", "170s", &job]).code, "{}", ann.run(&["explain", &job]).out);
    site.starts.assert_each_once(6);
    // How tasks end is known without Grid Engine.
    for name in ["qstat", "qhost"] {
        site.command(name, "exec sleep 600");
    }
    let words = format!("GRID_TASK_ID=$((GRID_TASK_ID + 6)); {}", site.starts.counted("exit 3"));
    let next = ann.submit(&["-n", "2", "--", "sh", "-c", &words]);
    assert_eq!(1, ann.wait(&next));
    assert_eq!(2, ann.in_phase(&next, "failed"));
    site.starts.assert_each_once(8);
}

#[test]
fn who_is_given_less_than_he_asked_for_does_not_begin() {
    let site = Site::start();
    let ann = site.user("ann");
    let script = "n=$#; while [ $n -gt 0 ]; do a=$1; shift; n=$((n - 1)); \
                  if [ \"$a\" = -pe ]; then shift 2; n=$((n - 2)); else set -- \"$@\" \"$a\"; fi; done; exec /usr/lib/gridengine/qsub \"$@\"";
    site.command("qsub", script);
    let job = ann.submit(&["-c", "2", "--", "sh", "-c", &site.starts.counted("true")]);
    assert_eq!(1, ann.wait(&job));
    let (kind, text) = last_attempt(&ann, &job);
    assert_eq!(("start-failed", "it was given fewer slots than it asked for"), (kind.as_str(), text.as_str()));
    assert!(site.starts.of_each().is_empty());
}
