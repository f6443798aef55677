//! Every part killed, or frozen for 20 s, singly and in pairs; every link cut in four ways: at random points of arrays of 2,000 tasks. Nothing that was
//! acknowledged is lost, each attempt starts once, and under `--no-requeue` each task starts once at most.
//!
//! Points and pauses are random: FAULT_SEED (printed) gives the same ones again, as far as clocks and processes do.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::killed;
use super::proxy::{FAULTS, Fault, Proxy};
use super::tree::{Tree, until};
use super::user::{Running, User};

const TASKS: usize = 2_000;
const PATIENCE: Duration = Duration::from_secs(60);
const WAIT: &str = "170s";
/// All kinds of parts; the second agent sees to it that there is always something to run on.
const PARTS: [&str; 4] = ["root", "eu", "campus", "campus-1"];
/// What the agent that is killed runs at a time.
const SLOTS: u64 = 2;
const FROZEN: Duration = Duration::from_secs(20);

/// Xorshift: a test's choices, again from the same seed.
struct Dice(u64);

impl Dice {
    fn new() -> Dice {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("FAULT_SEED").map_or_else(|_| now(), |s| s.parse().expect("FAULT_SEED is a number"));
        println!("FAULT_SEED={seed}");
        Dice(seed | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }

    fn shuffled<T: Clone>(&mut self, list: &[T]) -> Vec<T> {
        let mut list = list.to_vec();
        (1..list.len()).for_each(|k| list.swap(k, self.below(k as u64 + 1) as usize));
        list
    }
}

/// Each part, and each pair of parts, in any order.
fn singles_and_pairs(dice: &mut Dice) -> Vec<Vec<&'static str>> {
    let pairs = (0..PARTS.len()).flat_map(|a| (a + 1..PARTS.len()).map(move |b| vec![PARTS[a], PARTS[b]]));
    dice.shuffled(&PARTS.iter().map(|p| vec![*p]).chain(pairs).collect::<Vec<_>>())
}

/// An array under way, and single jobs that are submitted meanwhile.
struct Array {
    user: User,
    job: String,
    starts: PathBuf,
    waiting: Running,
    /// Under way while something is broken.
    asked: Vec<Running>,
    faults: usize,
}

impl Array {
    /// Each task takes so long.
    fn submit(tree: &Tree, sleep: &str, no_requeue: bool) -> Array {
        let (user, starts) = (tree.user("root"), tree.path("starts"));
        let payload = format!(r#"echo "$GRID_TASK_ID $GRID_ATTEMPT" >> "$STARTS/$GRID_TASK_ID"; exec sleep {sleep}"#);
        let (n, at) = (TASKS.to_string(), format!("STARTS={}", starts.display()));
        let mut words = vec!["-n", &n, "--env", &at];
        words.extend(no_requeue.then_some("--no-requeue"));
        words.extend(["--", "/bin/sh", "-c", &payload]);
        let job = user.submit(&words);
        let waiting = user.spawn(&["wait", "--timeout", WAIT, "--json", &job]);
        Array { user, job, starts, waiting, asked: Vec::new(), faults: 0 }
    }

    fn started(&self) -> usize {
        fs::read_dir(&self.starts).unwrap().count()
    }

    /// Before a fault: something has moved since the last one, and somebody submits just now.
    fn moves(&mut self, what: &str) {
        let before = self.started();
        until("tasks go on", PATIENCE, || if self.started() > before || before == TASKS { Ok(()) } else { Err(before.to_string()) });
        println!("{what} with {} of {TASKS} started", self.started());
        self.faults += usize::from(self.started() < TASKS);
        self.asked.push(self.user.spawn(&["submit", "--", "/bin/true"]));
    }

    /// All have ended as they should. `killed`: how often an agent was killed, with what it ran.
    fn ends_well(self, no_requeue: bool, killed: u64) {
        let Array { user, job, starts, waiting, asked, faults } = self;
        let said = waiting.end();
        let taken: Vec<String> = asked.into_iter().map(Running::end).filter(|s| s.code == 0).map(|s| s.out.trim().to_string()).collect();
        let starts = killed::starts(&starts);
        let view = user.json(&["show", &job]);
        let (phases, total) = (&view["phases"], starts.values().map(Vec::len).sum::<usize>());
        let in_phase = |phase: &str| phases[phase].as_u64().unwrap_or(0);
        println!("N = {TASKS} tasks, {faults} faults, no requeue {no_requeue}: {total} starts; {phases}; {} jobs taken meanwhile", taken.len());
        for (task, attempts) in &starts {
            let mut once = attempts.clone();
            once.sort_unstable();
            once.dedup();
            assert_eq!(once.len(), attempts.len(), "task {task}: an attempt has started twice: {attempts:?}");
            assert!(!no_requeue || attempts.len() == 1, "task {task} started more than once: {attempts:?}");
        }
        if no_requeue {
            let failed = in_phase("failed");
            assert_eq!(TASKS as u64, in_phase("done") + failed, "{said:?} {phases}");
            assert!(failed <= killed * SLOTS, "{failed} failed, {killed} times an agent of {SLOTS} slots was killed: {phases}");
            let reasons = user.json_lines(&["history", &job]).into_iter().filter(|e| e["phase"] == "failed");
            reasons.for_each(|e| assert_eq!(Some("exit-unknown"), e["reason"]["kind"].as_str(), "{e}"));
        } else {
            assert_eq!((0, TASKS as u64, TASKS), (said.code, in_phase("done"), starts.len()), "{said:?} {phases}");
        }
        for job in taken {
            assert_eq!(0, user.wait(&job), "job {job} was acknowledged");
        }
    }
}

/// kill -9 of each part and each pair; each comes back after 0 to 5 s of its own.
fn kill_all(no_requeue: bool) {
    let (mut dice, mut tree) = (Dice::new(), Tree::deep());
    let mut array = Array::submit(&tree, "0.09", no_requeue);
    let rounds = singles_and_pairs(&mut dice);
    for parts in &rounds {
        std::thread::sleep(dice.ms(100, 1_000));
        array.moves(&format!("kill {parts:?}"));
        let mut back: Vec<(Duration, &str)> = Vec::new();
        for part in dice.shuffled(parts) {
            tree.kill(part);
            back.push((dice.ms(0, 5_000), part));
            std::thread::sleep(dice.ms(0, 300));
        }
        back.sort();
        let mut slept = Duration::ZERO;
        for (at, part) in &back {
            std::thread::sleep(*at - slept);
            slept = *at;
            tree.launch(part);
        }
        back.iter().for_each(|(_, part)| tree.until_ready(part));
    }
    assert!(array.faults * 2 > rounds.len(), "most of them were too late: {} of {}", array.faults, rounds.len());
    let killed = rounds.iter().flatten().filter(|p| **p == "campus-1").count() as u64;
    array.ends_well(no_requeue, killed);
}

#[test]
fn each_part_and_each_pair_is_killed_and_every_task_is_done() {
    kill_all(false);
}

#[test]
fn each_part_and_each_pair_is_killed_and_each_task_starts_at_most_once() {
    kill_all(true);
}

/// SIGSTOP of these, one after the other; a pair overlaps, and is frozen at moments of its own. Each task takes `sleep`.
fn freeze_all(mut dice: Dice, rounds: &[Vec<&'static str>], sleep: &str, no_requeue: bool) {
    let tree = Tree::deep();
    let mut array = Array::submit(&tree, sleep, no_requeue);
    for parts in rounds {
        std::thread::sleep(dice.ms(100, 1_000));
        array.moves(&format!("freeze {parts:?}"));
        let apart = dice.ms(0, 4_000);
        for (k, part) in parts.iter().enumerate() {
            if k > 0 {
                std::thread::sleep(apart);
            }
            tree.freeze(part, true);
        }
        let (mut left, last) = (FROZEN, parts.len() - 1);
        for (k, part) in parts.iter().enumerate() {
            // The first one has been frozen for a while.
            let more = if k == 0 && last > 0 { left - apart } else { left };
            std::thread::sleep(more);
            tree.freeze(part, false);
            left = apart;
        }
    }
    assert!(array.faults * 2 > rounds.len(), "most of them were too late: {} of {}", array.faults, rounds.len());
    array.ends_well(no_requeue, 0);
}

#[test]
fn each_part_and_each_pair_is_frozen_for_20_s_and_each_task_starts_once() {
    let mut dice = Dice::new();
    let (single, pairs): (Vec<_>, Vec<_>) = singles_and_pairs(&mut dice).into_iter().partition(|parts| parts.len() == 1);
    let (first, second) = (Dice(dice.below(u64::MAX) | 1), dice);
    // They wait for most of the time: both at once. Below a single frozen site, or beside a frozen agent, tasks go on: four slots do 800 of them in 20 s.
    std::thread::scope(|s| {
        let single = s.spawn(|| freeze_all(first, &single, "0.1", false));
        freeze_all(second, &pairs, "0.03", true);
        single.join().unwrap();
    });
}

#[test]
fn each_link_is_cut_in_each_way_and_each_task_starts_once() {
    let mut dice = Dice::new();
    let mut tree = Tree::new();
    tree.gateway("campus", Some("eu"), "");
    let to_campus = Proxy::to(tree.endpoint("campus"));
    tree.broker_of("eu", &[("campus", Some(to_campus.endpoint().to_string()))], Some("root"));
    let to_eu = Proxy::to(tree.endpoint("eu"));
    tree.broker_of("root", &[("eu", Some(to_eu.endpoint().to_string()))], None);
    let from_agent = Proxy::to(tree.endpoint("campus"));
    tree.agent_at("campus-1", "campus", from_agent.endpoint(), "slots = 2\n");
    tree.agent("campus-2", "campus", "slots = 2\n");
    tree.user("root").until_slots(4, PATIENCE);
    let mut array = Array::submit(&tree, "0.06", true);
    until("tasks run", PATIENCE, || if array.started() > TASKS / 20 { Ok(()) } else { Err(array.started().to_string()) });
    let links = [("root-eu", &to_eu), ("eu-campus", &to_campus), ("campus-agent", &from_agent)];
    array.moves("links break");
    let ended_early = std::thread::scope(|s| {
        let hands: Vec<_> = links
            .map(|(name, proxy)| {
                let (faults, array) = (dice.shuffled(&FAULTS), &array);
                let mut dice = Dice(dice.below(u64::MAX) | 1);
                s.spawn(move || {
                    let mut late = 0;
                    for fault in faults {
                        std::thread::sleep(dice.ms(2_000, 6_000));
                        let length = dice.ms(500, 6_000);
                        println!("{name}: {fault:?} for {length:?} with {} of {TASKS} started", array.started());
                        late += usize::from(array.started() == TASKS);
                        proxy.set(fault);
                        std::thread::sleep(length);
                        proxy.set(Fault::None);
                    }
                    late
                })
            })
            .into_iter()
            .collect();
        hands.into_iter().map(|h| h.join().unwrap()).sum::<usize>()
    });
    let all = links.len() * FAULTS.len();
    assert!(ended_early * 2 < all, "{ended_early} of {all} faults were too late");
    array.faults += all - ended_early;
    array.ends_well(true, 0);
}
