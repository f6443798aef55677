//! A real Slurm behind a gateway: S1. It needs root, and what `tests/run --prepare` installs.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use intergrid_proto::JobSpec;
use intergrid_tests::slurm::{ACCOUNTS, Slurm, ended};

use super::rate::stream;
use super::{burst, runtime, to_the_end};
use crate::record::{Record, Result, SLURM};
use crate::tree::{Plan, Tree, until};
use crate::{Bench, ours};

/// Tasks of the large array.
const ARRAY: u64 = 1_000;
/// Submissions that are under way at once, beside us.
const AT_ONCE: u64 = 8;
/// What comes, comes by then.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at Slurm's queue.
const LOOK: Duration = Duration::from_millis(100);
/// Commands of Slurm that a gateway uses, but for sbatch.
const COMMANDS: [&str; 5] = ["squeue", "sinfo", "scancel", "scontrol", "sacct"];

/// A cluster, a gateway in front of it, and what its sbatch has written down: when each answered, and how many tasks it had.
struct Site {
    tree: Tree,
    slurm: Slurm,
    answers: PathBuf,
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

impl Site {
    fn start(b: &Bench) -> Result<Site> {
        let slurm = Slurm::start();
        let (dir, answers) = (slurm.dir().join("bench"), slurm.dir().join("bench/answers"));
        let io = |e: std::io::Error| format!("{}: {e}", dir.display());
        for name in ["commands", "shared"] {
            fs::create_dir_all(dir.join(name)).map_err(io)?;
        }
        let script = format!(
            "#!/bin/sh\nout=$(/usr/bin/sbatch \"$@\") || exit\nat=$(date +%s%N)\n\
             for a; do case $a in --array=1-*) echo \"$at ${{a#--array=1-}}\" >> {} ;; esac; done\necho \"$out\"\n",
            answers.display()
        );
        let sbatch = dir.join("commands/sbatch");
        fs::write(&sbatch, script).map_err(io)?;
        fs::set_permissions(&sbatch, Permissions::from_mode(0o755)).map_err(io)?;
        for name in COMMANDS {
            symlink(Path::new("/usr/bin").join(name), dir.join("commands").join(name)).map_err(io)?;
        }
        let section = format!(
            "\n[slurm]\npartitions = [\"batch\"]\naccount = \"self\"\ndirectory = \"{0}/shared/own\"\ncommands = \"{0}/commands\"\nconf = \"{1}\"\nrecords = \"{2}\"\n\
             [slurm.limits]\nwaiting_max = {ARRAY}\n",
            dir.display(),
            slurm.conf().display(),
            slurm.records().display()
        );
        let mut tree = Tree::prepare(&b.programs, Plan { agents: 0, ..b.plan(0, false) })?.with_section(section);
        tree.start_all()?;
        until("the partition's slots", PATIENCE, || match tree.ask(&["hosts"])? {
            host if host["slots_total"] == 16 => Ok(()),
            host => Err(host.to_string()),
        })?;
        Ok(Site { tree, slurm, answers })
    }

    /// Tasks that sbatch has answered for, and when it did last.
    fn answered(&self) -> (u64, u64) {
        let text = fs::read_to_string(&self.answers).unwrap_or_default();
        let lines = text.lines().filter_map(|l| l.split_once(' ')).filter_map(|(at, n)| Some((at.parse::<u64>().ok()?, n.parse::<u64>().ok()?)));
        lines.fold((0, 0), |(tasks, last), (at, n)| (tasks + n, last.max(at)))
    }

    /// All of so many tasks, from here on, are in Slurm: seconds to the last answer.
    fn until_answered(&self, tasks: u64, before: u64, began_ns: u64) -> Result<f64> {
        let last = until(&format!("{tasks} tasks in Slurm"), PATIENCE, || match self.answered() {
            (n, last) if n >= before + tasks => Ok(last),
            (n, _) => Err(format!("{} are", n - before)),
        })?;
        Ok(last.saturating_sub(began_ns) as f64 / 1e9)
    }

    /// Looked at seldom: each look is work for the controller.
    fn until_empty(&self) -> Result<()> {
        until("an empty Slurm", PATIENCE, || {
            std::thread::sleep(LOOK);
            match self.slurm.run("squeue", &["-h", "-r", "-t", "PD,R,CG", "-o", "%i"]).lines().count() {
                0 => Ok(()),
                n => Err(format!("{n} tasks in it")),
            }
        })
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

    /// An array of /bin/true by sbatch itself, from its exec until Slurm is empty; seconds.
    fn directly(&self, tasks: u64) -> Result<f64> {
        let began = Instant::now();
        self.slurm.submit(ACCOUNTS[0], &[&format!("--array=1-{tasks}")], "exec /bin/true");
        self.until_empty()?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// So many jobs by so many processes of sbatch at once; seconds.
    fn separately(&self, jobs: u64) -> f64 {
        let began = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    for _ in 0..jobs / AT_ONCE {
                        let mut sbatch = self.slurm.command("sbatch");
                        sbatch.args(["--parsable", "--chdir=/tmp", "--output=/dev/null"]);
                        let said = ended(&mut sbatch, "#!/bin/sh\nexec /bin/true\n");
                        assert!(said.status.success(), "sbatch: {}", String::from_utf8_lossy(&said.stderr));
                    }
                });
            }
        });
        began.elapsed().as_secs_f64()
    }
}

/// Slurm by itself.
fn theirs(what: &str, n: u64, repetition: u32) -> Record {
    Record { system: SLURM.into(), what: what.into(), n, repetition, durability: "answer before it is durable".into(), ..Record::default() }
}

/// S1.
pub fn submissions(b: &mut Bench) -> Result<()> {
    let ((arrays, repetitions), tasks, jobs) = (b.pick((5, 3), (1, 1)), b.pick(1_000, 32), b.pick(200, 16));
    let site = Site::start(b)?;
    let (mut samples, mut failures) = (Vec::new(), 0);
    for _ in 0..arrays {
        let (seconds, well) = site.array()?;
        samples.push(seconds);
        failures += u64::from(!well);
    }
    b.keep_samples(ours("array of 1,000: the client's exec to the last answer of sbatch", 0, 0, 0), samples, failures);
    for r in 0..repetitions {
        b.keep_rate(theirs(TRUE, tasks, r), site.directly(tasks)?, 0, 0.0);
        b.keep_burst(ours(TRUE, tasks, 0, r), burst(&site.tree, tasks)?, 0.0);
        site.until_empty()?;
    }
    let runtime = runtime()?;
    let client = runtime.block_on(site.tree.client(&site.tree.root()))?;
    for r in 0..repetitions {
        b.keep_rate(theirs(SEPARATE, jobs, r), site.separately(jobs), 0, 0.0);
        site.until_empty()?;
        let (before, began) = (site.answered().0, now_ns());
        let failures = runtime.block_on(stream(&client, &JobSpec::new(["/bin/true"]), jobs, &format!("s{r}")))?;
        let seconds = site.until_answered(jobs, before, began)?;
        b.keep_rate(ours(SEPARATE, jobs, 0, r), seconds, failures, 0.0);
        site.until_empty()?;
    }
    Ok(())
}

const TRUE: &str = "array of /bin/true through Slurm";
const SEPARATE: &str = "separate jobs until Slurm has the last";
