//! The disk of a gateway, and of an agent, is full in the middle of 2,000 tasks that may start once only: a real disk of 8 MiB, filled to its last byte.
//! What runs ends, nothing new is taken and it is said why; when there is room again all tasks are done, each started once.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use intergrid_lrms::books::Intent;
use intergrid_lrms::log::Log;

use super::tree::{Tree, until};
use super::user::User;

const TASKS: usize = 2_000;
const DISK_MIB: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(60);
const PAYLOAD: &str = r#"echo started >> "$STARTS/$GRID_TASK_ID"; exec sleep 0.01"#;

/// Takes all the room that is left.
fn fill(disk: &Path) -> PathBuf {
    let path = disk.join("filler");
    let mut file = File::options().create(true).append(true).open(&path).unwrap();
    for bytes in [64 << 10, 4 << 10, 1] {
        while file.write_all(&vec![7; bytes]).is_ok() {}
    }
    path
}

fn free(disk: &Path) -> u64 {
    let s = rustix::fs::statvfs(disk).unwrap();
    s.f_bavail * s.f_frsize
}

struct Array {
    user: User,
    job: String,
    starts: PathBuf,
}

impl Array {
    fn submit(tree: &Tree) -> Array {
        let (user, starts) = (tree.user("campus"), tree.path("starts"));
        let (n, at) = (TASKS.to_string(), format!("STARTS={}", starts.display()));
        let job = user.submit(&["-n", &n, "--no-requeue", "--env", &at, "--", "/bin/sh", "-c", PAYLOAD]);
        Array { user, job, starts }
    }

    fn started(&self) -> usize {
        fs::read_dir(&self.starts).unwrap().count()
    }

    fn until_started(&self, n: usize) {
        until(&format!("{n} tasks have started"), PATIENCE, || if self.started() >= n { Ok(()) } else { Err(self.started().to_string()) });
    }

    /// What runs has ended, and the end is known: as many are done as have started, and that stays so.
    fn until_quiet(&self) -> usize {
        let mut before = (usize::MAX, 0);
        until("all that runs has ended", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(700));
            let now = (self.started(), self.user.in_phase(&self.job, "done") as usize);
            let quiet = now == before && now.0 == now.1;
            before = now;
            if quiet { Ok(now.0) } else { Err(format!("{now:?} started and done")) }
        })
    }

    /// All are done, each started once.
    fn ends_well(&self) {
        assert_eq!(0, self.user.wait(&self.job));
        let starts: Vec<usize> =
            fs::read_dir(&self.starts).unwrap().map(|e| fs::read_to_string(e.unwrap().path()).unwrap().lines().count()).collect();
        assert_eq!((TASKS, TASKS), (starts.len(), starts.iter().sum()), "each started once");
        assert_eq!(TASKS as u64, self.user.in_phase(&self.job, "done"));
    }
}

#[test]
fn a_gateways_disk_is_full_and_each_task_is_done_once() {
    let mut tree = Tree::new();
    let disk = tree.small_disk("campus", DISK_MIB);
    tree.gateway("campus", None, "\n[limits]\nstore_free_min_bytes = \"1M\"\n");
    tree.agent("campus-1", "campus", "slots = 2\n");
    let user = tree.user("campus");
    user.until_slots(2, PATIENCE);
    println!("{} of {DISK_MIB} MiB are free at the beginning", free(&disk) >> 20);
    let said = user.run(&["submit", "--", "/bin/sh", "-c", "sleep 4; echo late words"]).well();
    let speaker = said.trim();
    let array = Array::submit(&tree);
    array.until_started(TASKS / 10);
    let filler = fill(&disk);
    assert!(free(&disk) < 64 << 10);

    let at_rest = array.until_quiet();
    println!("{at_rest} of {TASKS} tasks had started and were done with a full disk");
    assert!(at_rest < TASKS, "the disk was filled too late");
    let place = disk.display().to_string();
    user.run(&["submit", "--", "/bin/true"]).refused(5, &["takes no new work", &place, "bytes free", "free some space"]);
    let told = |words: &str| {
        let host = user.json(&["hosts"]);
        let why = host["draining"]["text"].as_str().unwrap_or_default().to_string();
        assert!(why.contains(&place) && why.contains(words), "{host}");
    };
    told("bytes free");

    // Wishes are still written down, as ends are: with what was laid ahead, then with what the ballast leaves.
    let odd = format!("{}[{}]", array.job, (1..TASKS).step_by(2).map(|t| t.to_string()).collect::<Vec<_>>().join(","));
    let until_logged = |words: &str| {
        until(&format!("the log says {words:?}"), PATIENCE, || {
            for verb in ["hold", "release"] {
                let mut asked = user.spawn(&[verb, &odd]);
                while !asked.has_ended() {
                    if tree.log("campus").contains(words) {
                        return Ok(asked);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                asked.end().well();
            }
            if tree.log("campus").contains(words) { Ok(user.spawn(&["release", &odd])) } else { Err("not yet".into()) }
        })
    };
    until_logged("the ballast of").end().well();
    // Now that is taken too. What comes next waits, all others are refused, and people are told.
    fill(&disk);
    let waits = until_logged("nothing is accepted until then");
    std::thread::sleep(Duration::from_secs(1));
    told("make room");
    user.run(&["show", &array.job]).refused(7, &["make room"]);
    fs::remove_file(&filler).unwrap();
    waits.end().well();
    user.run(&["release", &array.job]).well();
    array.ends_well();
    until("it is said that there is room", PATIENCE, || {
        let host = user.json(&["hosts"]);
        if host["draining"].is_null() { Ok(()) } else { Err(host.to_string()) }
    });
    assert_eq!(0, user.wait(speaker));
    assert_eq!("late words\n", user.run(&["logs", speaker]).well());
    assert!(disk.join("ballast").exists(), "it is there again");
    assert_eq!(Some(0), tree.terminate("campus"));
}

#[test]
fn an_agents_disk_is_full_and_each_task_is_done_once() {
    let mut tree = Tree::new();
    tree.gateway("campus", None, "");
    let disk = tree.small_disk("campus-1", DISK_MIB);
    tree.agent("campus-1", "campus", "slots = 2\nstate_free_min_bytes = \"1M\"\n");
    let user = tree.user("campus");
    user.until_slots(2, PATIENCE);
    let array = Array::submit(&tree);
    array.until_started(TASKS / 10);
    let filler = fill(&disk);
    let at_rest = array.until_quiet();
    println!("{at_rest} of {TASKS} tasks had started and were done with a full disk");
    assert!(at_rest < TASKS, "the disk was filled too late");
    let host = user.json(&["hosts"]);
    let agent = &host["below"][0]["draining"];
    let why = agent["text"].as_str().unwrap_or_default();
    assert!(why.contains(&*disk.display().to_string()) && why.contains("bytes free"), "{host}");
    let explained = user.run(&["explain", &array.job]).well();
    assert!(explained.contains("takes no new work") && explained.contains("bytes free"), "{explained}");
    fs::remove_file(&filler).unwrap();
    array.ends_well();
    assert_eq!(Some(0), tree.terminate("campus-1"));
}

/// Half of a note stands in the log of submissions when its disk is full: it is gone before anything is written behind it, and the gateway starts again.
#[test]
fn what_a_full_disk_took_of_a_note_is_cut_off_before_the_next() {
    const NOTES_MAX: u64 = 1_000;
    let mut tree = Tree::new();
    let disk = tree.small_disk("campus", 1);
    let path = disk.join("submissions");
    let intent =
        |n: u64| Intent { tag: format!("ig-{n}"), queue: "batch".into(), account: None, principal: "ann".into(), tasks: vec![(n, 1)], slots: 1 };
    let (mut log, _) = Log::open(&path).unwrap();
    let filler = fill(&disk);
    let mut begun: Vec<u64> = (0..NOTES_MAX).take_while(|n| log.begin(intent(*n)).is_ok()).collect();
    assert!(!fs::read(&path).unwrap().ends_with(b"\n"), "no note was torn: {} went in", begun.len());
    // Longer than the one that found no room: nor does it.
    let refused = log.begin(intent(NOTES_MAX)).unwrap_err().to_string();
    assert!(refused.contains(&*path.display().to_string()), "{refused}");
    fs::remove_file(&filler).unwrap();
    log.begin(intent(NOTES_MAX)).unwrap();
    begun.push(NOTES_MAX);
    drop(log);
    let (_, open) = Log::open(&path).unwrap();
    assert_eq!(begun, open.iter().map(|(intent, _)| intent.tasks[0].0).collect::<Vec<_>>());
}
