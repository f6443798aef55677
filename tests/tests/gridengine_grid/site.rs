//! A site of the tests: a cluster, a gateway `campus` in front of it, and a broker `eu` above.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use intergrid_proto::net::CertRole;
use intergrid_tests::gridengine::{ACCOUNTS, COMMANDS, GridEngine, Options};
use intergrid_tests::starts::{Starts, dir_of_all};

use crate::tree::{Tree, binary, until};
use crate::user::User;

/// What comes, comes by then.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Commands that a gateway uses.
const USED: [&str; 5] = ["qsub", "qstat", "qhost", "qconf", "qdel"];

/// Ends with the tree first, then the cluster.
pub struct Site {
    /// The gateway and the broker.
    pub tree: Tree,
    /// Below them.
    pub cluster: GridEngine,
    /// What ran.
    pub starts: Starts,
    /// Of `batch` and `short`, on each machine.
    slots: [u32; 2],
}

impl Site {
    /// `ann` and `me` run as the first account, `bob` as the second; nobody else may.
    pub fn start() -> Self {
        Self::with(|_| {}, "")
    }

    /// The same, with another cluster, and with more in the gateway's configuration.
    pub fn with(change: impl FnOnce(&mut Options), more: &str) -> Self {
        let mut options = Options::default();
        change(&mut options);
        let slots = options.machines as u64 * u64::from(options.batch_slots + options.short_slots);
        Self::mapped(options, more, slots)
    }

    /// Under limits of the site: as many slots as these let it offer are known above.
    pub fn bounded(limits: &str, slots: u64) -> Self {
        Self::mapped(Options::default(), &format!("[gridengine.limits]\n{limits}\n"), slots)
    }

    fn mapped(options: Options, more: &str, slots: u64) -> Self {
        let mut map = String::new();
        for (principal, account) in [("ann", 0), ("me", 0), ("bob", 1)] {
            map += &format!("\n[[map]]\nprincipal = \"{principal}\"\naccount = \"{}\"\n", ACCOUNTS[account]);
        }
        Self::over(options, &["batch", "short"], "{account}", &format!("{more}{map}"), slots)
    }

    /// Two agents of four slots, at most, as jobs of the gateway's own account.
    pub fn piloted(pilots: &str) -> Self {
        Self::over(Options::default(), &["batch"], "self", &format!("account = \"self\"\n{pilots}"), 8)
    }

    fn over(options: Options, queues: &[&str], directory: &str, more: &str, slots: u64) -> Self {
        let of_each = [options.batch_slots, options.short_slots];
        let cluster = GridEngine::with(|o| *o = options);
        let starts = Starts::new(&cluster.dir().join("starts"));
        let programs = programs(&cluster.dir().join("programs"));
        fs::create_dir(cluster.dir().join("commands")).unwrap();
        let mut site = Site { tree: Tree::new().with_programs(&programs), cluster, starts, slots: of_each };
        USED.iter().for_each(|name| site.command(name, &format!("exec {COMMANDS}/{name} \"$@\"")));
        let config = format!("{}{more}", section(&site.cluster, queues, directory));
        site.tree.gateway("campus", Some("eu"), &config);
        site.tree.broker("eu", &["campus"], None);
        site.tree.user("eu").until_slots(slots, PATIENCE);
        site
    }

    /// What the gateway runs as this command of Grid Engine: a shell's words, in front of the real one.
    pub fn command(&self, name: &str, script: &str) {
        let path = self.cluster.dir().join("commands").join(name);
        let new = path.with_extension("new");
        fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&new, Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// A user at the broker.
    pub fn user(&self, name: &str) -> User {
        self.tree.user_as("eu", CertRole::User, name)
    }

    /// Nothing is left in Grid Engine.
    #[track_caller]
    pub fn until_gone(&self) {
        let listed = || self.cluster.listed();
        until("nothing is left in Grid Engine", PATIENCE, || if listed().is_empty() { Ok(()) } else { Err(format!("{:?}", listed())) });
    }

    /// Number, state and task of those in this state, when there are some.
    #[track_caller]
    pub fn until_listed(&self, state: &str) -> Vec<String> {
        until(&format!("{state} in Grid Engine"), PATIENCE, || {
            let all = self.cluster.listed();
            let found: Vec<_> = all.iter().filter(|l| l.split(' ').nth(1) == Some(state)).cloned().collect();
            if found.is_empty() { Err(format!("{all:?}")) } else { Ok(found) }
        })
    }

    /// Tasks of ours that have a machine, and that wait.
    pub fn ours(&self) -> (u64, u64) {
        let all = self.cluster.run("qstat", &["-u", "*", "-g", "d"]);
        let states: Vec<_> = all.lines().filter(|l| l.contains(" ig")).filter_map(|l| l.split_whitespace().nth(4)).collect();
        let waiting = states.iter().filter(|s| s.contains('q')).count() as u64;
        (states.len() as u64 - waiting, waiting)
    }

    /// Others take all slots; their jobs.
    pub fn block(&self) -> [String; 2] {
        let block = |queue, slots: u32| self.cluster.submit(ACCOUNTS[2], &["-q", queue, "-pe", "smp", &slots.to_string()], "sleep 600");
        let blockers = [block("batch", self.slots[0]), block("short", self.slots[1])];
        until("the machine is taken", PATIENCE, || {
            let all = self.cluster.listed();
            if all.iter().filter(|l| l.contains(" r ")).count() == 2 { Ok(()) } else { Err(format!("{all:?}")) }
        });
        blockers
    }

    /// So many tasks have started.
    #[track_caller]
    pub fn until_started(&self, tasks: usize) {
        until(&format!("{tasks} have started"), PATIENCE, || {
            let n = self.starts.of_each().len();
            if n >= tasks { Ok(()) } else { Err(format!("{n}: {:?}", self.cluster.listed())) }
        });
    }
}

/// Of a gateway's configuration.
pub fn section(cluster: &GridEngine, queues: &[&str], account: &str) -> String {
    let shared = dir_of_all(&cluster.dir().join("shared"));
    format!(
        "\n[gridengine]\nqueues = {queues:?}\ndirectory = \"{}/{account}\"\ncommands = \"{}\"\nconf = \"{}\"\nparallel_environment = \"smp\"\n",
        shared.display(),
        cluster.dir().join("commands").display(),
        cluster.conf().display()
    )
}

/// Accounts run them too, and may not see into the build's directory.
pub fn programs(dir: &Path) -> std::path::PathBuf {
    fs::create_dir(dir).unwrap();
    for name in ["grid", "grid-agent"] {
        fs::hard_link(binary(name), dir.join(name)).or_else(|_| fs::copy(binary(name), dir.join(name)).map(drop)).unwrap();
    }
    dir.to_path_buf()
}
