//! Examines a configuration against the real system: what is asked of it, is it there, and does a test task run as each account.
//!
//! It changes nothing that stays: test tasks and their directories are removed. What differs between systems is examined beside each of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use intergrid_gateway::config::LrmsLimits;
use intergrid_proto::Shape;
use tokio::time::{Instant, sleep};

use crate::command::{Account, Call, Hands};
use crate::limits::{DOCTOR_CLOCK_MS_MAX, DOCTOR_LOOK_MS, DOCTOR_TASK_MS};
use crate::lrms::{Lrms, LrmsId, Queue, Refused, State, Submission, SubmitFailure, Wait};

/// Tasks that are not seen in the queue are taken for gone.
pub const BLIND_REMEDY: &str =
    "make the gateway's account an operator (sacctmgr modify user NAME set adminlevel=Operator), or take `jobs` out of PrivateData";

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Grade {
    /// As it should be.
    Good,
    /// It works, and something is worse than it could be.
    Warning,
    /// It does not work.
    Bad,
}

impl Grade {
    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Grade::Good => "good",
            Grade::Warning => "warning",
            Grade::Bad => "bad",
        }
    }
}

/// One thing that was examined.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What was looked at, in a word or two.
    pub what: String,
    /// How it is.
    pub grade: Grade,
    /// What was seen.
    pub seen: String,
    /// What to do; empty where it is good.
    pub remedy: String,
}

impl Finding {
    /// As it should be.
    pub fn good(what: impl Into<String>, seen: impl Into<String>) -> Self {
        Finding { what: what.into(), grade: Grade::Good, seen: seen.into(), remedy: String::new() }
    }

    /// It could be better.
    pub fn warning(what: impl Into<String>, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Finding { what: what.into(), grade: Grade::Warning, seen: seen.into(), remedy: remedy.into() }
    }

    /// It does not work.
    pub fn bad(what: impl Into<String>, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Finding { what: what.into(), grade: Grade::Bad, seen: seen.into(), remedy: remedy.into() }
    }
}

/// What a configuration asks of the system.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wish {
    /// Partitions or queues.
    pub queues: Vec<String>,
    /// Of these, those whose tasks are jobs, for which the limits are.
    pub direct: Vec<String>,
    /// What the site allows.
    pub limits: LrmsLimits,
    /// As whom tasks run, each with its directory on the shared file system.
    pub accounts: Vec<(Account, PathBuf)>,
}

/// Look at everything; a test task for each account. Takes as long as these wait, at most [`DOCTOR_TASK_MS`] each.
pub async fn examine(lrms: &dyn Lrms, wish: &Wish) -> Vec<Finding> {
    let mut found = Vec::new();
    let name = lrms.name();
    match lrms.tasks_max().await {
        Ok(n) => found.push(Finding::good("arrays", format!("{name} takes arrays of {n} tasks"))),
        Err(e) => {
            found.push(Finding::bad(
                "commands",
                e.to_string(),
                format!("install {name}'s commands on this machine, let them reach the controller, and say where they are in `commands`"),
            ));
            return found;
        }
    }
    // How many wait for a queue is known by a look at all jobs.
    let listed = lrms.entries("ig-", &BTreeSet::new()).await;
    found.extend(queues(lrms, wish).await);
    match listed {
        Ok(entries) => found.push(Finding::good("queue", format!("can be listed; {} tasks in it are named as ours", entries.len()))),
        Err(e) => found.push(Finding::bad("queue", e.to_string(), "let this account list all jobs")),
    }
    if wish.accounts.iter().any(|(account, _)| *account != Account::Own)
        && let Ok(Some(why)) = lrms.blind().await
    {
        found.push(Finding::bad("jobs of others", why, BLIND_REMEDY));
    }
    let open = found.iter().rev().find_map(|f| f.what.strip_prefix("queue ").filter(|_| f.grade == Grade::Good)).map(String::from);
    for (account, directory) in &wish.accounts {
        let mut of_account = account_and_directory(account, directory).await;
        if of_account.iter().all(|f| f.grade != Grade::Bad) {
            match &open {
                Some(queue) => of_account.extend(task(lrms, account, directory, queue).await),
                None => of_account.push(Finding::bad(format!("task as {account}"), "no queue is open for one", "open a queue, then ask again")),
            }
        }
        found.extend(of_account);
    }
    found
}

async fn queues(lrms: &dyn Lrms, wish: &Wish) -> Vec<Finding> {
    let there = match lrms.queues().await {
        Ok(there) => there,
        Err(e) => return vec![Finding::bad("queues", e.to_string(), "let this account ask for the queues")],
    };
    let names: Vec<&str> = there.iter().map(|q| q.name.as_str()).collect();
    let mut found = Vec::new();
    for name in &wish.queues {
        let what = format!("queue {name}");
        let queue = there.iter().find(|q| q.name == *name);
        found.push(match queue {
            None => Finding::bad(what, "is not there", format!("offer one of these: {}", names.join(", "))),
            Some(q) if q.closed.is_some() => Finding::warning(what, q.closed.clone().unwrap_or_default(), "open it, or wait until it is"),
            Some(q) if q.slots_total == 0 => Finding::warning(what, "none of its machines can be used", "bring one back into service"),
            Some(q) => {
                Finding::good(what, format!("{} slots on {} machines, {} free, {} tasks wait", q.slots_total, q.machines, q.slots_free, q.waiting))
            }
        });
        found.extend(queue.filter(|q| wish.direct.contains(&q.name)).and_then(|q| no_slot(q, &wish.limits)));
    }
    found
}

/// A ceiling under which a queue that has slots has none for us.
fn no_slot(queue: &Queue, limits: &LrmsLimits) -> Option<Finding> {
    let all = queue.slots_total;
    if all == 0 || limits.ceiling(all) > 0 {
        return None;
    }
    let seen = format!("ceiling_percent = {} of its {all} slots is less than one: nothing could ever run there", limits.ceiling_percent);
    let remedy = format!("write ceiling_percent = {} or more, or leave the queue out", 100_u64.div_ceil(all));
    Some(Finding::bad(format!("limits of queue {}", queue.name), seen, remedy))
}

/// As the account, from here: it can be used, its directory can be made, is its alone, and a claim there is exclusive.
async fn account_and_directory(account: &Account, directory: &Path) -> Vec<Finding> {
    let what = format!("account {account}");
    let hands = Hands;
    let user = match hands.run(account, Call::new("id").arg("-un")).await {
        Ok(out) if out.is_good() => out.stdout.trim().to_string(),
        Ok(out) => {
            return vec![Finding::bad(what, out.complaint(), "make the account, and let the gateway's account `sudo -n -u` it (see docs/slurm.md)")];
        }
        Err(e) => return vec![Finding::bad(what, e.to_string(), "install sudo, or use account = \"self\"")],
    };
    let mut found = vec![match account {
        Account::Own if user == "root" => Finding::warning(what, "is root: every task would be root's", "run the gateway as an account of its own"),
        Account::Named(name) if *name != user => Finding::bad(what, format!("sudo made us {user}"), "correct the sudo rule"),
        _ => Finding::good(what, format!("can be used ({user})")),
    }];
    let what = format!("directory {}", directory.display());
    let script = "umask 077; mkdir -p -- \"$1\" && stat -c '%U %a' -- \"$1\" && d=$(mktemp -d -- \"$1/doctor.XXXXXX\") && cd \"$d\" \
                  && (set -C; : > c) && ! (set -C; : > c) 2> /dev/null && echo exclusive; cd /; rm -rf -- \"$d\"";
    let made = hands.run(account, Call::new("sh").args(["-c", script, "doctor"]).arg(directory)).await;
    let out = match made {
        Ok(out) => out,
        Err(e) => {
            found.push(Finding::bad(what, e.to_string(), "see that the file system is there and answers"));
            return found;
        }
    };
    let lines: Vec<&str> = out.stdout.lines().collect();
    found.push(match lines[..] {
        [owner, "exclusive"] if owner == format!("{user} 700") => Finding::good(what, "is the account's alone; claims there are exclusive"),
        [owner, "exclusive"] => {
            Finding::bad(what, format!("owner and mode are {owner}"), format!("it must be {user}'s, with mode 700: chmod 700, or name another"))
        }
        [_] => Finding::bad(
            what,
            "two exclusive creates of one file both succeed",
            "use a file system with O_EXCL: NFS version 3 or later, Lustre, GPFS, Ceph",
        ),
        _ => Finding::bad(what, out.complaint(), "let the account make it, or name another `directory`"),
    });
    found
}

/// A real task, which looks at the directory from where tasks run.
async fn task(lrms: &dyn Lrms, account: &Account, directory: &Path, queue: &str) -> Vec<Finding> {
    let what = format!("task as {account} in {queue}");
    let tag = tag();
    let place = directory.join(format!("doctor-{tag}"));
    let hands = Hands;
    let run = async |script: &str| hands.run(account, Call::new("sh").args(["-c", script, "doctor"]).arg(&place)).await;
    if let Err(e) = run("umask 077; mkdir -- \"$1\" && : > \"$1/from-here\"").await {
        return vec![Finding::bad(what, e.to_string(), "see that the file system is there and answers")];
    }
    let submission = Submission {
        tag: format!("ig-doctor-{tag}"),
        account: account.clone(),
        queue: queue.to_string(),
        tasks: 1,
        shape: Shape::default(),
        time_limit_ms: Some(DOCTOR_TASK_MS),
        directory: place.clone(),
        complaints: None,
        script: "#!/bin/sh\n[ -e from-here ] || exit 121\n(set -C; : > claim) || exit 122\n(set -C; : > claim) 2> /dev/null && exit 123\n\
                 printf '%s %s %s\\n' \"$(date +%s)\" \"$(id -un)\" \"$(uname -n)\" > seen.new && mv seen.new seen\n"
            .to_string(),
    };
    let mut found = match lrms.submit(&submission).await {
        Err(e) => vec![Finding::bad(what, format!("submission to {queue}: {e}"), not_taken(&e))],
        Ok(id) => {
            let found = followed(lrms, &what, id, &submission.tag, async || {
                let out = run("cat -- \"$1/seen\"").await.ok()?;
                (out.is_good()).then_some(out.stdout)
            })
            .await;
            let _ = lrms.cancel(account, &[(id, vec![1])], true).await;
            found
        }
    };
    if run("rm -rf -- \"$1\"").await.is_err() {
        found.push(Finding::warning(format!("directory {}", place.display()), "can't be removed", "remove it"));
    }
    found
}

/// What helps where a test task is not taken.
fn not_taken(said: &SubmitFailure) -> &'static str {
    let (SubmitFailure::Refused(kind, _) | SubmitFailure::Doubtful(kind, _)) = said else {
        return "submit a job by hand, as this account, and see that the command says its number within half a minute";
    };
    match kind {
        Refused::Later => "ask again when there is room",
        Refused::Never | Refused::TooManyTasks => {
            "the task asks for one slot and two minutes: let the site's own rules (a verifier, default options) take it as the gateway submits it"
        }
        Refused::NotAuthorised => "let this account submit to this queue",
        Refused::NoQueue => "leave the queue out, or make it",
    }
}

/// Until its word is there, or it can't come any more.
async fn followed(lrms: &dyn Lrms, what: &str, id: LrmsId, tag: &str, mut seen: impl AsyncFnMut() -> Option<String>) -> Vec<Finding> {
    let deadline = Instant::now() + Duration::from_millis(DOCTOR_TASK_MS);
    let mut last = "it is not in the queue".to_string();
    let (mut over, mut renamed) = (None, None::<String>);
    let ids = BTreeSet::from([id]);
    while Instant::now() < deadline {
        if let Some(said) = seen().await {
            let ran = Finding::good(what, format!("ran as job {id}: {}", said.trim()));
            return [ran, clock(&said)].into_iter().chain(renamed.as_deref().map(other_name)).collect();
        }
        if over.is_some_and(|at: Instant| at.elapsed() > Duration::from_millis(DOCTOR_CLOCK_MS_MAX)) {
            break;
        }
        if let Some(entry) = lrms.entries(tag, &ids).await.unwrap_or_default().into_iter().find(|e| e.id == id) {
            last = format!("{:?}", entry.state);
            renamed = Some(entry.tag).filter(|name| name != tag).or(renamed);
            match entry.state {
                State::Ended(_) => over = over.or(Some(Instant::now())),
                State::Pending(Wait::Never | Wait::Held | Wait::Broken, _) => break,
                _ => {}
            }
        } else if over.is_none()
            && let Some(record) = lrms.records(&[id]).await.unwrap_or_default().into_iter().find(|r| r.tag == tag || Some(&r.tag) == renamed.as_ref())
        {
            // It is not listed any more.
            (last, over) = (format!("{:?} {}", record.over, record.words), Some(Instant::now()));
        }
        sleep(Duration::from_millis(DOCTOR_LOOK_MS)).await;
    }
    let remedy = match over {
        Some(_) => "its machine must see the same directory, under the same path, and may create files there",
        None => "see why the job waits; is the queue busy, ask again later",
    };
    vec![Finding::bad(what, format!("job {id}: {last}"), remedy)]
}

/// Of a site that renames jobs.
fn other_name(name: &str) -> Finding {
    let seen = format!("the site called the test job {name:?}: jobs are known by their numbers, but one whose number we were not told is not found");
    Finding::warning("job names", seen, "let the site's own rules (a verifier, a job_submit plugin) leave the names of these accounts' jobs alone")
}

/// Of the machine that it ran on, against ours.
fn clock(said: &str) -> Finding {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    match said.split_whitespace().next().and_then(|s| s.parse::<u64>().ok()) {
        Some(then) if now.abs_diff(then) * 1_000 <= DOCTOR_CLOCK_MS_MAX => Finding::good("clock", "of the machine and ours agree"),
        Some(then) => Finding::warning("clock", format!("of the machine is {} s from ours", now.abs_diff(then)), "keep the clocks in step with NTP"),
        None => Finding::warning("clock", "the machine did not say what time it is", "see that `date` is there"),
    }
}

/// A name that no other examination has.
fn tag() -> String {
    use std::hash::{BuildHasher, Hasher};
    format!("{:016x}", std::hash::RandomState::new().build_hasher().finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_own_directory_is_examined_for_real() {
        let dir = tempfile::tempdir().unwrap();
        let good = dir.path().join("a/b");
        let found = account_and_directory(&Account::Own, &good).await;
        assert!(found.len() == 2 && found[1].grade == Grade::Good, "{found:?}");
        assert_eq!(0, std::fs::read_dir(&good).unwrap().count(), "nothing is left");
        std::fs::set_permissions(&good, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let found = account_and_directory(&Account::Own, &good).await;
        assert!(found[1].grade == Grade::Bad && found[1].remedy.contains("700"), "{found:?}");
        std::fs::write(dir.path().join("file"), "").unwrap();
        let found = account_and_directory(&Account::Own, &dir.path().join("file/x")).await;
        assert!(found[1].grade == Grade::Bad && found[1].seen.contains("mkdir"), "{found:?}");
        let nobody = Account::Named("intergrid-nobody".into());
        assert_eq!(Grade::Bad, account_and_directory(&nobody, dir.path()).await[0].grade);
    }

    #[test]
    fn a_ceiling_of_less_than_a_slot_is_told_with_the_least_that_gives_one() {
        let of = |slots_total, ceiling_percent| {
            let (queue, limits) =
                (Queue { name: "q".into(), slots_total, ..Queue::default() }, LrmsLimits { ceiling_percent, ..LrmsLimits::default() });
            no_slot(&queue, &limits)
        };
        let bad = of(16, 6).unwrap();
        assert_eq!((Grade::Bad, "limits of queue q"), (bad.grade, bad.what.as_str()));
        assert!(bad.seen.contains("ceiling_percent = 6 of its 16 slots") && bad.remedy.contains("ceiling_percent = 7 "), "{bad:?}");
        assert_eq!([None, None, None], [of(16, 7), of(1, 100), of(0, 1)]);
    }

    #[test]
    fn clocks_are_compared() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(Grade::Good, clock(&format!("{now} me m1")).grade);
        assert!(clock(&format!("{} me m1", now - 90)).seen.contains("9"));
        assert_eq!(Grade::Warning, clock("").grade);
    }
}
