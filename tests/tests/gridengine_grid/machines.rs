//! A cluster of several machines, one of which is lost in the middle, or is cut off for a while. Grid Engine lists what was there as running: so do we, and say
//! that it is not heard of.

use std::collections::BTreeSet;
use std::fs;

use intergrid_tests::gridengine::Part;
use intergrid_tests::starts::dir_of_all;

use crate::site::{PATIENCE, Site};
use crate::tree::until;
use crate::user::User;

/// Slots of all machines.
const SLOTS: u32 = 15;

struct Three {
    site: Site,
    ann: User,
}

impl Three {
    /// Machines of four slots in `batch`, and one in `short`.
    fn start() -> Self {
        let site = Site::with(|o| (o.machines, o.batch_slots, o.short_slots) = (3, 4, 1), "");
        dir_of_all(&site.cluster.dir().join("where"));
        let ann = site.user("ann");
        Three { site, ann }
    }

    /// An array whose tasks, counted from `first`, run until `go` is there, and say on which machine.
    fn submit(&self, tasks: u32, first: u32, more: &[&str]) -> String {
        let dir = self.site.cluster.dir().display();
        let wait = format!("uname -n >> {dir}/where/$GRID_TASK_ID; while [ ! -e {dir}/shared/go ]; do sleep 0.2; done");
        let words = format!("GRID_TASK_ID=$((GRID_TASK_ID + {first})); {}", self.site.starts.counted(&wait));
        self.ann.submit(&[&["-n", &tasks.to_string()][..], more, &["--", "sh", "-c", &words]].concat())
    }

    fn go(&self) {
        fs::write(self.site.cluster.dir().join("shared/go"), "").unwrap();
    }

    /// Machines that a task was started on.
    fn machines_of(&self, task: u32) -> Vec<String> {
        let text = fs::read_to_string(self.site.cluster.dir().join(format!("where/{task}"))).unwrap_or_default();
        text.lines().map(String::from).collect()
    }

    fn on(&self, machine: &str, tasks: std::ops::Range<u32>) -> BTreeSet<u32> {
        tasks.filter(|n| self.machines_of(*n).contains(&machine.to_string())).collect()
    }

    /// The first tasks run, as many as there are slots, and Grid Engine knows it.
    fn until_full(&self) {
        until("all slots are used", PATIENCE, || {
            let all = self.site.cluster.listed();
            let run = all.iter().filter(|l| l.contains(" r ")).count() == SLOTS as usize && (0..SLOTS).all(|n| !self.machines_of(n).is_empty());
            if run { Ok(()) } else { Err(format!("{all:?}")) }
        });
    }

    /// Above, the job says that so many of its tasks, over both queues, are on a machine that is not heard of.
    fn until_said(&self, job: &str, tasks: usize, machine: &str) {
        let words = format!(" of its tasks are on {machine}, which gridengine does not hear of");
        until("it is said", PATIENCE, || {
            let said = self.ann.run(&["explain", job]).out;
            let number = |l: &str| l.split_once(&words)?.0.rsplit_once("contact-lost: ")?.1.parse::<usize>().ok();
            if said.lines().filter_map(number).sum::<usize>() == tasks { Ok(()) } else { Err(said) }
        });
    }
}

#[test]
fn what_was_on_a_machine_that_is_lost_runs_elsewhere_or_is_unknown() {
    let mut three = Three::start();
    // 15 run: 7 of the one, 8 of the other.
    let again = three.submit(7, 0, &[]);
    three.site.until_started(7);
    let once = three.submit(8, 7, &["--no-requeue"]);
    three.until_full();
    let (lost_again, lost_once) = (three.on("m2", 0..7), three.on("m2", 7..15));
    assert_eq!(5, lost_again.len() + lost_once.len());
    three.site.cluster.lose_machine(2);
    if !lost_again.is_empty() {
        three.until_said(&again, lost_again.len(), "m2");
    }
    if !lost_once.is_empty() {
        three.until_said(&once, lost_once.len(), "m2");
    }
    // Nobody has started any of them again.
    three.site.starts.assert_each_once(15);
    three.go();
    // The administrator gives the machine up: its record then says `failed 0`, exit status 0.
    let gone = three.site.cluster.run("qstat", &["-u", "*", "-q", "*@m2", "-s", "r"]);
    for l in gone.lines().filter(|l| l.contains("@m2")) {
        let words: Vec<&str> = l.split_whitespace().collect();
        three.site.cluster.run("qdel", &["-f", words[0], "-t", words[words.len() - 1]]);
    }
    assert_eq!(0, three.ann.run(&["wait", "--timeout", "120s", &again]).code, "{}", three.ann.run(&["explain", &again]).out);
    let code = three.ann.run(&["wait", "--timeout", "120s", &once]).code;
    assert_eq!(i32::from(!lost_once.is_empty()), code, "{}", three.ann.run(&["explain", &once]).out);
    assert_eq!(lost_once.len() as u64, three.ann.in_phase(&once, "failed"));
    for attempt in three.ann.json_lines(&["history", &once]).iter().filter(|a| a["phase"] == "failed") {
        assert_eq!("exit-unknown", attempt["reason"]["kind"], "{attempt}");
    }
    for n in 0..15 {
        let machines = three.machines_of(n);
        let expected = if lost_again.contains(&n) { 2 } else { 1 };
        assert!(machines.len() == expected && machines[1..].iter().all(|m| m != "m2"), "task {n}, of {lost_again:?} and {lost_once:?}: {machines:?}");
    }
}

/// How its tasks end is known by their own records; Grid Engine hears of it when the machine is back.
#[test]
fn what_ends_on_a_machine_that_is_cut_off_counts() {
    let mut three = Three::start();
    let job = three.submit(SLOTS, 0, &["--no-requeue"]);
    three.until_full();
    three.site.cluster.join_machine(3, false);
    three.until_said(&job, 5, "m3");
    three.go();
    assert_eq!(0, three.ann.run(&["wait", "--timeout", "60s", &job]).code, "{}", three.ann.run(&["explain", &job]).out);
    // What is not heard of is not offered.
    three.ann.until_slots(10, PATIENCE);
    three.site.cluster.join_machine(3, true);
    three.ann.until_slots(15, PATIENCE);
    three.site.until_gone();
    // Its daemon is killed and started again.
    three.site.cluster.kill(Part::Machine(3));
    three.site.cluster.start_part(Part::Machine(3));
    three.site.cluster.until_takes_work(3);
    let next = three.submit(SLOTS, SLOTS, &["--no-requeue"]);
    assert_eq!(0, three.ann.run(&["wait", "--timeout", "120s", &next]).code, "{}", three.ann.run(&["explain", &next]).out);
    three.site.starts.assert_each_once(2 * SLOTS);
    assert!(!three.on("m3", SLOTS..2 * SLOTS).is_empty());
}
