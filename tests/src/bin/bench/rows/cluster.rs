//! What the rows of real clusters share: a gateway in front of a local resource manager; what is submitted goes to it, what is looked after comes through a
//! broker.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use intergrid_proto::JobSpec;
use intergrid_tests::slurm::ended;

use super::rate::stream;
use super::{runtime, to_the_end};
use crate::record::{Record, Result};
use crate::tree::{GATEWAY, Plan, Tree, until};
use crate::{Bench, machine, ours};

/// Tasks of the large array.
const ARRAY: u64 = 1_000;
/// Arrays that are looked after.
const ARRAYS: u64 = 2;
/// Submissions that are under way at once, beside us.
const AT_ONCE: u64 = 8;
/// Of the queue that is offered.
const SLOTS: u64 = 16;
/// What comes, comes by then.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at a cluster's queue.
const LOOK: Duration = Duration::from_millis(100);

/// How a local resource manager calls things.
pub struct Words {
    /// In records, and the section of a gateway's configuration.
    pub system: &'static str,
    /// In what is measured.
    pub name: &'static str,
    /// What its answer to a submission says of its disk.
    pub durability: &'static str,
    /// Directory of its commands.
    pub programs: &'static str,
    /// Takes a job.
    pub submit: &'static str,
    /// Its option of an array; what comes next is `1-N`.
    pub array: &'static str,
    /// Tells what is in the queue.
    pub query: &'static str,
    /// What else a gateway uses.
    pub others: &'static [&'static str],
}

/// A running cluster with one queue of [`SLOTS`] slots that is offered.
pub trait Cluster: Sync {
    /// Its words.
    fn words(&self) -> &'static Words;
    /// Its directory.
    fn dir(&self) -> &Path;
    /// Of a gateway's section, what no other cluster has.
    fn settings(&self) -> String;
    /// Tasks in its queue, of everybody.
    fn tasks(&self) -> u64;
    /// Its command that submits one job, whose script is its input.
    fn submit_one(&self) -> Command;
}

/// Nanoseconds since 1970, as `date +%s%N` has them.
fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// A tree over a cluster, and what the commands that its gateway runs have written down.
pub struct Site<'a> {
    /// The gateway, with no broker or one.
    pub tree: Tree,
    cluster: &'a dyn Cluster,
    dir: PathBuf,
}

impl<'a> Site<'a> {
    /// With so many brokers; one site of each depth in a cluster.
    pub fn start(b: &Bench, cluster: &'a dyn Cluster, depth: u32) -> Result<Site<'a>> {
        let (dir, words) = (cluster.dir().join(format!("bench{depth}")), cluster.words());
        let Words { system, programs, submit, array, query, .. } = words;
        let shown = dir.display();
        let io = |e: std::io::Error| format!("{shown}: {e}");
        for name in ["commands", "shared"] {
            fs::create_dir_all(dir.join(name)).map_err(io)?;
        }
        let submits = format!(
            "out=$({programs}/{submit} \"$@\") || exit\nat=$(date +%s%N) tasks=\" $* \"\ntasks=${{tasks#* {array}1-}}\n\
             echo \"$at ${{tasks%% *}}\" >> {shown}/answers\necho \"$out\""
        );
        let asks = format!("date +%s%N >> {shown}/asked\nexec {programs}/{query} \"$@\"");
        for (name, script) in [(submit, submits), (query, asks)] {
            let path = dir.join("commands").join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).map_err(io)?;
            fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(io)?;
        }
        for name in words.others {
            symlink(Path::new(programs).join(name), dir.join("commands").join(name)).map_err(io)?;
        }
        let section = format!(
            "\n[{system}]\naccount = \"self\"\ndirectory = \"{shown}/shared/own\"\ncommands = \"{shown}/commands\"\n{}\
             [{system}.limits]\nwaiting_max = {}\n",
            cluster.settings(),
            ARRAYS * ARRAY
        );
        let mut tree = Tree::prepare(&b.programs, Plan { agents: 0, ..b.plan(depth, false) })?.with_section(section);
        tree.start_all()?;
        until("the queue's slots", PATIENCE, || match tree.ask(&["hosts"])? {
            host if host["slots_total"] == SLOTS => Ok(()),
            host => Err(host.to_string()),
        })?;
        Ok(Site { tree, cluster, dir })
    }

    /// Tasks that the cluster has answered for, and when it did last.
    fn answered(&self) -> (u64, u64) {
        let text = fs::read_to_string(self.dir.join("answers")).unwrap_or_default();
        let lines = text.lines().filter_map(|l| l.split_once(' ')).filter_map(|(at, n)| Some((at.parse::<u64>().ok()?, n.parse::<u64>().ok()?)));
        lines.fold((0, 0), |(tasks, last), (at, n)| (tasks + n, last.max(at)))
    }

    /// All of so many tasks, from here on, are in the cluster: seconds to the last answer.
    fn until_answered(&self, tasks: u64, before: u64, began_ns: u64) -> Result<f64> {
        let last = until(&format!("{tasks} tasks in {}", self.cluster.words().name), PATIENCE, || match self.answered() {
            (n, last) if n >= before + tasks => Ok(last),
            (n, _) => Err(format!("{} are", n - before)),
        })?;
        Ok(last.saturating_sub(began_ns) as f64 / 1e9)
    }

    /// Looked at seldom: each look is work for the cluster.
    fn until_tasks(&self, tasks: u64) -> Result<()> {
        until(&format!("{tasks} tasks in the queue of {}", self.cluster.words().name), PATIENCE, || {
            sleep(LOOK);
            match self.cluster.tasks() {
                n if n == tasks => Ok(()),
                n => Err(format!("{n} tasks in it")),
            }
        })
    }

    /// Nothing is left in the cluster.
    pub fn until_empty(&self) -> Result<()> {
        self.until_tasks(0)
    }

    /// An array of tasks that take long, from the client's exec to the last answer; then it is taken back.
    fn array(&self) -> Result<(f64, bool)> {
        let (root, (before, _), began) = (self.tree.root(), self.answered(), now_ns());
        let (_, well) = to_the_end(self.tree.verb(&root, &["submit", "-n", &ARRAY.to_string(), "--", "/bin/sleep", "600"])?)?;
        let seconds = self.until_answered(ARRAY, before, began)?;
        to_the_end(self.tree.verb(&root, &["cancel", "last"])?)?;
        to_the_end(self.tree.verb(&root, &["wait", "last"])?)?;
        self.until_empty()?;
        Ok((seconds, well))
    }

    /// So many jobs by so many processes of the cluster's own command at once; seconds.
    fn separately(&self, jobs: u64) -> f64 {
        let (cluster, began) = (self.cluster, Instant::now());
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    for _ in 0..jobs / AT_ONCE {
                        let mut submit = cluster.submit_one();
                        let said = ended(&mut submit, "#!/bin/sh\nexec /bin/true\n");
                        assert!(said.status.success(), "{submit:?}: {}", String::from_utf8_lossy(&said.stderr));
                    }
                });
            }
        });
        began.elapsed().as_secs_f64()
    }

    /// One job: seconds from the end of its payload to the exit of the client that waits for it at the root, and whether that said that it went well.
    fn end(&self, i: u64) -> Result<(f64, bool)> {
        let file = self.dir.join(format!("ended{i}"));
        // Ends are out of step with whoever looks for them.
        let payload = format!("sleep 0.{:02}; date +%s%N > {}", i * 37 % 100, file.display());
        let (_, well) = to_the_end(self.tree.verb(&self.tree.root(), &["submit", "--wait", "--", "/bin/sh", "-c", &payload])?)?;
        let (now, io) = (now_ns(), |e: String| format!("{}: {e}", file.display()));
        let text = fs::read_to_string(&file).map_err(|e| io(e.to_string()))?;
        let ended: u64 = text.trim().parse().map_err(|_| io(format!("{text:?} is not a time")))?;
        Ok((now.saturating_sub(ended) as f64 / 1e9, well))
    }

    /// Queries a second since then.
    fn queries(&self, since_ns: u64) -> Result<f64> {
        let text = fs::read_to_string(self.dir.join("asked")).unwrap_or_default();
        let asked: Vec<u64> = text.lines().filter_map(|l| l.parse().ok()).filter(|at| *at >= since_ns).collect();
        rate(&asked).ok_or_else(|| format!("{} was asked {} times: that is no rate", self.cluster.words().query, asked.len()))
    }
}

/// Of events at these nanoseconds, in order: so many a second, the first not counted; None of fewer than two.
fn rate(events_ns: &[u64]) -> Option<f64> {
    let [first, .., last] = events_ns else { return None };
    Some((events_ns.len() - 1) as f64 * 1e9 / last.saturating_sub(*first).max(1) as f64)
}

/// A cluster by itself.
pub fn theirs(words: &Words, what: impl Into<String>, n: u64, repetition: u32) -> Record {
    Record { system: words.system.into(), what: what.into(), n, repetition, durability: words.durability.into(), ..Record::default() }
}

/// A large array, and separate jobs beside the cluster's own command.
pub fn submissions(b: &mut Bench, site: &Site<'_>) -> Result<()> {
    let ((arrays, repetitions), jobs, words) = (b.pick((5, 3), (1, 1)), b.pick(200, 16), site.cluster.words());
    let (mut samples, mut failures) = (Vec::new(), 0);
    for _ in 0..arrays {
        let (seconds, well) = site.array()?;
        samples.push(seconds);
        failures += u64::from(!well);
    }
    let array = format!("array of 1,000: the client's exec to the last answer of {}", words.submit);
    b.keep_samples(ours(array, 0, 0, 0), samples, failures);
    let separate = format!("separate jobs until {} has the last", words.name);
    let runtime = runtime()?;
    let client = runtime.block_on(site.tree.client(&site.tree.root()))?;
    for r in 0..repetitions {
        b.keep_rate(theirs(words, &separate, jobs, r), site.separately(jobs), 0, 0.0);
        site.until_empty()?;
        let (before, began) = (site.answered().0, now_ns());
        let failures = runtime.block_on(stream(&client, &JobSpec::new(["/bin/true"]), jobs, &format!("s{r}")))?;
        let seconds = site.until_answered(jobs, before, began)?;
        b.keep_rate(ours(&separate, jobs, 0, r), seconds, failures, 0.0);
        site.until_empty()?;
    }
    Ok(())
}

/// Through a broker: ends of payloads, one at a time, and what it costs to look after many tasks, which are left there.
pub fn looked_after(b: &mut Bench, cluster: &dyn Cluster) -> Result<()> {
    let (ends, each, watched) = b.pick((20, ARRAY, Duration::from_secs(30)), (3, 32, Duration::from_secs(5)));
    let site = Site::start(b, cluster, 1)?;
    let (mut samples, mut failures) = (Vec::new(), 0);
    for i in 0..ends {
        let (seconds, well) = site.end(i)?;
        samples.push(seconds);
        failures += u64::from(!well);
    }
    b.keep_samples(ours("end of a payload to its phase at the root", 0, 1, 0), samples, failures);
    site.until_empty()?;
    for _ in 0..ARRAYS {
        to_the_end(site.tree.verb(&site.tree.root(), &["submit", "-n", &each.to_string(), "--", "/bin/sleep", "600"])?)?;
    }
    let tasks = ARRAYS * each;
    site.until_tasks(tasks)?;
    let gateway = site.tree.pid(GATEWAY)?;
    let (since, before, began) = (now_ns(), machine::cpu(gateway), Instant::now());
    sleep(watched);
    let (used, seconds) = (machine::cpu(gateway) - before, began.elapsed().as_secs_f64());
    let queries = site.queries(since)?;
    let failures = tasks.saturating_sub(cluster.tasks());
    let asked = format!("looked after; queries by {}", cluster.words().query);
    for (what, value, unit) in [(asked.as_str(), queries, "queries/s"), ("looked after; CPU of the gateway", used / seconds * 100.0, "% of a core")] {
        b.keep(Record { seconds, value, unit: unit.into(), failures, ..ours(what, tasks, 1, 0) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_time_between_events() {
        assert_eq!(Some(0.5), rate(&[7_000_000_000, 8_000_000_000, 11_000_000_000]));
        assert_eq!((None, None), (rate(&[]), rate(&[1])));
    }
}
