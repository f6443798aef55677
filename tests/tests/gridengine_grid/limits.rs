//! Limits of the site, under arrays that want more.

use std::time::{Duration, Instant};

use crate::site::{PATIENCE, Site};
use crate::tree::until;

/// So long nothing more comes.
const STAYS: Duration = Duration::from_secs(6);
/// Of each queue.
const WAITING: u64 = 30;
/// Of both.
const SLOTS: u64 = 50;

/// Beyond what is free, no more wait in a queue than the site lets; then all of them run, and end as soon as they begin.
#[test]
fn an_array_of_a_thousand_waits_within_bounds_and_runs_through_a_broker() {
    let site = Site::with(|o| (o.batch_slots, o.short_slots) = (40, 10), &format!("[gridengine.limits]\nwaiting_max = {WAITING}\n"));
    let ann = site.user("ann");
    let blockers = site.block();
    until("it is known above", PATIENCE, || {
        let free = ann.json(&["hosts"])["slots_free"].clone();
        if free == 0 { Ok(()) } else { Err(free.to_string()) }
    });
    assert_eq!(0, site.tree.user("campus").json(&["hosts"])["slots_free"], "what may wait there is not free");
    let job = ann.submit(&["-n", "1000", "--", "sh", "-c", &site.starts.counted("echo $((GRID_TASK_ID * 2))")]);
    let waiting = || site.ours().1;
    until("as many wait as may", PATIENCE, || if waiting() >= 2 * WAITING { Ok(()) } else { Err(waiting().to_string()) });
    let began = Instant::now();
    while began.elapsed() < STAYS {
        assert_eq!((0, 2 * WAITING), site.ours());
    }
    blockers.iter().for_each(|id| _ = site.cluster.run("qdel", &[id]));
    // Slots that have just come free are filled at Grid Engine's pace.
    let mut most = 0;
    until("all have ended", Duration::from_secs(200), || {
        most = most.max(waiting());
        let done = ann.in_phase(&job, "done");
        if done == 1_000 { Ok(()) } else { Err(format!("{done} are done: {}", ann.run(&["show", &job]).out)) }
    });
    assert!(most <= 2 * WAITING + SLOTS, "{most} waited at a time");
    site.starts.assert_each_once(1_000);
    assert_eq!("1998\n", ann.run(&["logs", &format!("{job}[999]")]).well());
    site.until_gone();
}

/// Of more tasks than the site lets in, all run, and never more payloads at a time than this. Grid Engine lists a task for a while after its end: what it
/// lists may be more.
fn never_more(limits: &str, offered: u64, most: u64) {
    const TASKS: u32 = 30;
    let site = Site::bounded(limits, offered);
    assert_eq!(most, most_at_a_time(&site, TASKS, &[]), "what may be used is, and no more");
}

/// So many tasks with these wishes all run, each once: the most payloads at a time.
pub fn most_at_a_time(site: &Site, tasks: u32, wishes: &[&str]) -> u64 {
    let ann = site.user("ann");
    let all = site.cluster.dir().join("shared/all");
    std::fs::write(&all, "").unwrap();
    std::fs::set_permissions(&all, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let words = format!("echo 1 >> {0}; sleep 2; echo -1 >> {0}", all.display());
    let job = ann.submit(&[&["-n", &tasks.to_string()][..], wishes, &["--", "sh", "-c", &site.starts.counted(&words)]].concat());
    assert_eq!(0, ann.run(&["wait", "--timeout", "200s", &job]).code, "{}", ann.run(&["show", &job]).out);
    site.starts.assert_each_once(tasks);
    let steps = std::fs::read_to_string(&all).unwrap();
    let at_a_time = steps.lines().scan(0i64, |now, step| {
        *now += step.parse::<i64>().unwrap();
        Some(*now)
    });
    u64::try_from(at_a_time.max().unwrap()).unwrap()
}

#[test]
fn a_ceiling_in_per_cent_holds() {
    // 4 of 16 and 1 of 4.
    never_more("ceiling_percent = 25", 5, 5);
}

#[test]
fn a_ceiling_in_slots_holds_over_all_queues() {
    // Each queue offers as many.
    never_more("slots_max = 3", 6, 3);
}

#[test]
fn what_waits_too_long_goes_back_and_runs_when_there_is_room() {
    let site = Site::with(|_| {}, "[gridengine.limits]\nwait_max = \"2s\"\n");
    let ann = site.user("ann");
    let blockers = site.block();
    let job = ann.submit(&["--", "sh", "-c", &site.starts.counted("true")]);
    site.tree.user("campus").until_returned(&["all-busy", "it waited 2s in gridengine"]);
    blockers.iter().for_each(|id| _ = site.cluster.run("qdel", &[id]));
    assert_eq!(0, ann.wait(&job));
    site.starts.assert_each_once(1);
}
