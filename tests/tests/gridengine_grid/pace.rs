//! What a gateway costs a cluster, and how soon it knows: queries, submissions, processor time, ends. Measured from outside, on whatever machine this is.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::separate::{Cluster, go_down_together};
use crate::site::Site;
use crate::tree::until;

const JOBS: u64 = 2_000;
const WATCHED: Duration = Duration::from_secs(20);
/// Of a second, in /proc/PID/stat.
const TICKS: f64 = 100.0;

/// Numbers that a command in front of Grid Engine's own has written, one a line.
fn numbers(file: &Path) -> Vec<u64> {
    std::fs::read_to_string(file).unwrap_or_default().lines().map(|l| l.parse().unwrap()).collect()
}

/// Seconds of processor time of a process itself.
fn cpu_s(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit_once(") ").unwrap().1.split(' ').collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS
}

#[test]
fn two_thousand_tasks_are_a_query_a_second_and_few_submissions() {
    let site = Site::with(|_| {}, &format!("[gridengine.limits]\nwaiting_max = {JOBS}\n"));
    let ann = site.user("ann");
    let (asked, sent) = (site.cluster.dir().join("shared/asked"), site.cluster.dir().join("shared/sent"));
    site.command("qstat", &format!("date +%s%N >> {}; exec /usr/lib/gridengine/qstat \"$@\"", asked.display()));
    let timed = "a=$(date +%s%N); out=$(/usr/lib/gridengine/qsub \"$@\") || exit; echo $(($(date +%s%N) - a))";
    site.command("qsub", &format!("{timed} >> {}; echo \"$out\"", sent.display()));
    for _ in 0..2 {
        ann.submit(&["-n", &(JOBS / 2).to_string(), "--", "sleep", "600"]);
    }
    let there = || site.cluster.run("qstat", &["-u", "*", "-g", "d"]).lines().filter(|l| l.contains(" ig")).count() as u64;
    until("all are in Grid Engine", Duration::from_secs(60), || Some(there()).filter(|n| *n == JOBS).map(drop).ok_or_else(|| there().to_string()));
    let sent: Vec<u64> = numbers(&sent).into_iter().map(|ns| ns / 1_000_000).collect();
    let gateway = site.tree.pid("campus");
    let (before, cpu, began) = (numbers(&asked).len(), cpu_s(gateway), Instant::now());
    std::thread::sleep(WATCHED);
    let (queries, cpu, took) = ((numbers(&asked).len() - before) as f64, cpu_s(gateway) - cpu, began.elapsed().as_secs_f64());
    eprintln!("submissions, ms: {sent:?}; {queries} queries and {cpu} s of a core in {took} s");
    assert!(queries >= 2.0 && queries <= took + 1.0, "{queries} queries in {took} s");
    assert!(cpu < took * 0.05, "{cpu} s of a core in {took} s");
    assert!(sent.len() <= 8, "submissions of {JOBS} tasks, ms: {sent:?}");
}

#[test]
fn separate_jobs_go_down_together_as_few_arrays() {
    let site = Site::with(|_| {}, "[gridengine.limits]\nwaiting_max = 100\n");
    let (ann, sent) = (site.user("ann"), site.cluster.dir().join("shared/sent"));
    let slow = format!("sleep 2; out=$(/usr/lib/gridengine/qsub \"$@\") || exit; echo \"$out\" >> {}; echo \"$out\"", sent.display());
    site.command("qsub", &slow);
    let blockers = site.block();
    let cluster = Cluster {
        counted: &|then| site.starts.counted(then),
        starts: &|| site.starts.of_each().into_iter().map(|(task, lines)| (task, lines.len())).collect(),
        there: &|| site.ours().1,
        unblock: &|| blockers.iter().for_each(|id| _ = site.cluster.run("qdel", &[id])),
        sent: &sent,
    };
    go_down_together(&ann, &site.tree.endpoint("eu"), &cluster);
    site.until_gone();
}

#[test]
fn the_end_of_a_payload_is_known_at_the_top_soon() {
    let site = Site::start();
    let ann = site.user("ann");
    let file = site.cluster.dir().join("shared/ended");
    let mut late: Vec<u64> = Vec::new();
    for _ in 0..9 {
        let job = ann.submit(&["--", "sh", "-c", &format!("date +%s%N > {}", file.display())]);
        assert_eq!(0, ann.wait(&job));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        late.push(now - numbers(&file)[0] / 1_000_000);
    }
    late.sort();
    eprintln!("from the end of a payload to the end of `grid wait`, ms: {late:?}");
    assert!(late[late.len() / 2] < 1_500, "{late:?} ms");
}
