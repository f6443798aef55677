//! A real Grid Engine behind a gateway: G1. It needs root, and what `tests/run --prepare` installs.

use std::path::Path;
use std::process::Command;

use intergrid_tests::gridengine::{COMMANDS, GridEngine};

use super::cluster::{self, Cluster, Site, Words};
use crate::Bench;
use crate::record::{GRIDENGINE, Result};

const WORDS: Words = Words {
    system: GRIDENGINE,
    name: "Grid Engine",
    durability: "its own spool (Berkeley DB)",
    programs: COMMANDS,
    submit: "qsub",
    array: "-t ",
    query: "qstat",
    others: &["qhost", "qconf", "qdel"],
};

impl Cluster for GridEngine {
    fn words(&self) -> &'static Words {
        &WORDS
    }

    fn dir(&self) -> &Path {
        self.dir()
    }

    fn settings(&self) -> String {
        format!("queues = [\"batch\"]\nconf = \"{}\"\n", self.conf().display())
    }

    fn tasks(&self) -> u64 {
        let numbered = |l: &&str| l.split_whitespace().next().is_some_and(|word| word.parse::<u64>().is_ok());
        self.run("qstat", &["-u", "*", "-g", "d"]).lines().filter(numbered).count() as u64
    }

    fn submit_one(&self) -> Command {
        let mut qsub = self.command("qsub");
        qsub.args(["-terse", "-wd", "/tmp", "-S", "/bin/sh", "-o", "/dev/null", "-e", "/dev/null"]);
        qsub
    }
}

/// G1.
pub fn site(b: &mut Bench) -> Result<()> {
    let engine = GridEngine::start();
    let site = Site::start(b, &engine, 0)?;
    cluster::submissions(b, &site)?;
    drop(site);
    cluster::looked_after(b, &engine)
}
