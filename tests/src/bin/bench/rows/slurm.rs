//! A real Slurm behind a gateway: S1. It needs root, and what `tests/run --prepare` installs.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use intergrid_tests::slurm::{ACCOUNTS, Slurm};

use super::burst;
use super::cluster::{self, Cluster, Site, Words, theirs};
use crate::record::{Result, SLURM};
use crate::{Bench, ours};

const WORDS: Words = Words {
    system: SLURM,
    name: "Slurm",
    durability: "answer before it is durable",
    programs: "/usr/bin",
    submit: "sbatch",
    array: "--array=",
    query: "squeue",
    others: &["sinfo", "scancel", "scontrol", "sacct"],
};

impl Cluster for Slurm {
    fn words(&self) -> &'static Words {
        &WORDS
    }

    fn dir(&self) -> &Path {
        self.dir()
    }

    fn settings(&self) -> String {
        format!("partitions = [\"batch\"]\nconf = \"{}\"\nrecords = \"{}\"\n", self.conf().display(), self.records().display())
    }

    fn tasks(&self) -> u64 {
        self.run("squeue", &["-h", "-r", "-t", "PD,R,CG", "-o", "%i"]).lines().count() as u64
    }

    fn submit_one(&self) -> Command {
        let mut sbatch = self.command("sbatch");
        sbatch.args(["--parsable", "--chdir=/tmp", "--output=/dev/null"]);
        sbatch
    }
}

/// S1.
pub fn site(b: &mut Bench) -> Result<()> {
    let (tasks, repetitions) = b.pick((1_000, 3), (32, 1));
    let slurm = Slurm::start();
    let site = Site::start(b, &slurm, 0)?;
    cluster::submissions(b, &site)?;
    for r in 0..repetitions {
        let began = Instant::now();
        slurm.submit(ACCOUNTS[0], &[&format!("--array=1-{tasks}")], "exec /bin/true");
        site.until_empty()?;
        b.keep_rate(theirs(&WORDS, TRUE, tasks, r), began.elapsed().as_secs_f64(), 0, 0.0);
        b.keep_burst(ours(TRUE, tasks, 0, r), burst(&site.tree, tasks)?, 0.0);
        site.until_empty()?;
    }
    drop(site);
    cluster::looked_after(b, &slurm)
}

const TRUE: &str = "array of /bin/true through Slurm";
