//! What a gateway costs a cluster, and how soon it knows: queries, submissions, processor time, ends. Measured from outside, on whatever machine this is.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use intergrid_tests::slurm::ACCOUNTS;

use crate::separate::{Cluster, go_down_together};
use crate::site::Site;
use crate::tree::until;

const JOBS: u64 = 2_000;
const WATCHED: Duration = Duration::from_secs(20);
/// Of a second, in /proc/PID/stat.
const TICKS: f64 = 100.0;

/// Numbers that a command in front of Slurm's own has written, one a line.
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
fn two_thousand_jobs_are_a_query_a_second_and_few_submissions() {
    let site = Site::with(&format!("[slurm.limits]\nwaiting_max = {JOBS}\n"));
    let ann = site.user("ann");
    let (asked, sent) = (site.cluster.dir().join("shared/asked"), site.cluster.dir().join("shared/sent"));
    site.command("squeue", &format!("date +%s%N >> {}; exec /usr/bin/squeue \"$@\"", asked.display()));
    let timed = format!("a=$(date +%s%N); out=$(/usr/bin/sbatch \"$@\") || exit; echo $(($(date +%s%N) - a)) >> {}; echo \"$out\"", sent.display());
    site.command("sbatch", &timed);
    for _ in 0..2 {
        ann.submit(&["-n", &(JOBS / 2).to_string(), "--", "sleep", "600"]);
    }
    let there = || site.cluster.run("squeue", &["-h", "-r", "-o", "%i"]).lines().count() as u64;
    until("all are in Slurm", Duration::from_secs(60), || Some(there()).filter(|n| *n == JOBS).map(drop).ok_or_else(|| there().to_string()));
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
    let site = Site::with("[slurm.limits]\nwaiting_max = 100\n");
    let (ann, sent) = (site.user("ann"), site.cluster.dir().join("shared/sent"));
    let slow = format!("sleep 2; out=$(/usr/bin/sbatch \"$@\") || exit; echo \"$out\" >> {}; echo \"$out\"", sent.display());
    site.command("sbatch", &slow);
    let blocker = site.block();
    let cluster = Cluster {
        counted: &|then| site.counted(then),
        starts: &|| site.starts_of_each(),
        there: &|| site.left().lines().filter(|l| l.contains(" ig")).count() as u64,
        unblock: &|| _ = site.cluster.run("scancel", &[&blocker]),
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

/// The same tasks by themselves, and through a broker and a gateway.
#[test]
fn tasks_go_through_at_a_rate_like_slurm_s_own() {
    const TASKS: u32 = 300;
    let site = Site::with(&format!("[slurm.limits]\nwaiting_max = {TASKS}\n"));
    let ann = site.user("ann");
    let began = Instant::now();
    site.cluster.submit(ACCOUNTS[0], &[&format!("--array=1-{TASKS}")], "exec /bin/true");
    let left = || site.cluster.run("squeue", &["-h", "-r", "-t", "PD,R,CG", "-o", "%i"]).lines().count();
    until("all have ended", Duration::from_secs(100), || if left() == 0 { Ok(()) } else { Err(left().to_string()) });
    let own = began.elapsed();
    let began = Instant::now();
    let job = ann.submit(&["-n", &TASKS.to_string(), "--", "/bin/true"]);
    assert_eq!(0, ann.run(&["wait", "--timeout", "200s", &job]).code);
    let ours = began.elapsed();
    eprintln!("{TASKS} tasks: {own:?} by themselves, {ours:?} through a broker");
    // Both take the same cores, and so does whatever else runs here.
    assert!(ours < own * 3, "{own:?} by themselves, {ours:?} through a broker");
}
