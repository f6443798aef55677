//! A site of the tests: a cluster, a gateway `campus` in front of it, and a broker `eu` above.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use intergrid_proto::net::CertRole;
use intergrid_tests::slurm::{ACCOUNTS, Options, Slurm, ended};

use crate::tree::{Tree, binary, until};
use crate::user::User;

/// What comes, comes by then.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Slurm's commands that a gateway uses.
const COMMANDS: [&str; 6] = ["sbatch", "squeue", "sinfo", "scancel", "scontrol", "sacct"];
/// Offered by the partitions `batch` (16) and `short` (8, the same machines).
const SLOTS: u64 = 24;

/// Ends with the tree first, then the cluster.
pub struct Site {
    /// The gateway and the broker.
    pub tree: Tree,
    /// Below them.
    pub cluster: Slurm,
    /// What lets the gateway act as others, where it is not root.
    rule: Option<Rule>,
}

/// A file of sudo's, while a test runs.
struct Rule(PathBuf);

impl Rule {
    fn new(text: &str) -> Self {
        let rule = Rule("/etc/sudoers.d/intergrid-tests".into());
        let new = rule.0.with_extension("new");
        fs::write(&new, text).expect("/etc/sudoers.d: install sudo with `tests/run --prepare`");
        fs::set_permissions(&new, Permissions::from_mode(0o440)).unwrap();
        fs::rename(new, &rule.0).unwrap();
        rule
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.0);
    }
}

/// `ann` and `me` are the first account, `bob` is the second.
fn map() -> String {
    let rule = |(principal, account): (&str, usize)| format!("\n[[map]]\nprincipal = \"{principal}\"\naccount = \"{}\"\n", ACCOUNTS[account]);
    [("ann", 0), ("me", 0), ("bob", 1)].map(rule).concat()
}

impl Site {
    /// `ann` and `me` run as the first account, `bob` as the second; nobody else may.
    pub fn start() -> Self {
        Self::with("")
    }

    /// The same, with more in the gateway's configuration.
    pub fn with(more: &str) -> Self {
        Self::of(|_| {}, &["batch", "short"], more, SLOTS)
    }

    /// The same, with another cluster, of which some partitions are offered.
    pub fn of(change: impl FnOnce(&mut Options), partitions: &[&str], more: &str, slots: u64) -> Self {
        Self::over(change, partitions, "{account}", &format!("{more}{}", map()), slots, |_, _| {})
    }

    /// The same, where the state of the gateway is on a disk of so many MiB, of which it keeps one free.
    pub fn on_disk(mib: u32) -> Self {
        let more = format!("\n[limits]\nstore_free_min_bytes = \"1M\"\n{}", map());
        Self::over(|_| {}, &["batch"], "{account}", &more, 16, |tree, _| _ = tree.small_disk("campus", mib))
    }

    /// A gateway that works as the third account, which sudo lets act as the first two and as nobody else, with these rules.
    pub fn unprivileged(map: &str) -> Self {
        let [first, second, own] = ACCOUNTS;
        let rule = Rule::new(&format!("{own} ALL=({first},{second}) NOPASSWD: ALL\n"));
        let prepare = |tree: &mut Tree, programs: &Path| {
            let [campus, eu] = ["campus", "eu"].map(|site| tree.identity(site).parent().unwrap().to_path_buf());
            // It reads its parent's CA.
            let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
            [campus.parent().unwrap(), &eu, &eu.join("identity")].into_iter().for_each(|dir| open(dir, 0o711));
            open(&eu.join("identity/ca.pem"), 0o644);
            let output = ended(Command::new("chown").args(["-R", &format!("{own}:{own}")]).arg(&campus), "");
            assert!(output.status.success(), "{output:?}");
            // Its role alone.
            let (grid, real) = (programs.join("grid"), programs.join("real"));
            fs::create_dir(&real).unwrap();
            fs::rename(&grid, real.join("grid")).unwrap();
            let (real, as_own) = (real.join("grid"), format!("setpriv --reuid={own} --regid={own} --clear-groups"));
            let real = real.display();
            fs::write(&grid, format!("#!/bin/sh\n[ \"$1\" = gateway ] && exec {as_own} {real} \"$@\"\nexec {real} \"$@\"\n")).unwrap();
            open(&grid, 0o755);
        };
        let mut site = Self::over(|_| {}, &["batch"], "{account}", map, 16, prepare);
        site.rule = Some(rule);
        site
    }

    /// Two agents of four slots, at most, as jobs of the gateway's own account; submissions are counted.
    pub fn piloted(pilots: &str) -> Self {
        Self::over(|_| {}, &["batch"], "self", &format!("account = \"self\"\n{pilots}"), 8, |_, _| {})
    }

    /// The same in `batch`; in `short` tasks are jobs.
    pub fn mixed(pilots: &str) -> Self {
        Self::over(|_| {}, &["batch", "short"], "self", &format!("account = \"self\"\nmode.short = \"direct\"\n{pilots}"), 16, |_, _| {})
    }

    /// Before anything of the tree is started, something is done with it and the directory of its programs.
    fn over(
        change: impl FnOnce(&mut Options),
        partitions: &[&str],
        directory: &str,
        more: &str,
        slots: u64,
        prepare: impl FnOnce(&mut Tree, &Path),
    ) -> Self {
        let cluster = Slurm::with(change);
        let shared = dir_of_all(&cluster.dir().join("shared"));
        dir_of_all(&cluster.dir().join("starts"));
        let programs = cluster.dir().join("bin");
        fs::create_dir(&programs).unwrap();
        // Accounts run it too, and may not see into the build's directory.
        let grid = programs.join("grid");
        fs::hard_link(binary("grid"), &grid).or_else(|_| fs::copy(binary("grid"), &grid).map(drop)).unwrap();
        let commands = cluster.dir().join("commands");
        fs::create_dir(&commands).unwrap();
        let mut site = Site { tree: Tree::new().with_programs(&programs), cluster, rule: None };
        COMMANDS.iter().for_each(|name| site.command(name, &format!("exec /usr/bin/{name} \"$@\"")));
        let counter = site.cluster.dir().join("submissions");
        site.command("sbatch", &format!("echo >> {}; exec /usr/bin/sbatch \"$@\"", counter.display()));
        let books = match site.cluster.keeps_accounts() {
            true => "accounting = true".to_string(),
            false => format!("records = \"{}\"", site.cluster.records().display()),
        };
        let config = format!(
            "\n[slurm]\npartitions = {partitions:?}\ndirectory = \"{}/{directory}\"\ncommands = \"{}\"\n{books}\n{more}",
            shared.display(),
            commands.display(),
        );
        prepare(&mut site.tree, &programs);
        site.tree.gateway("campus", Some("eu"), &config);
        site.tree.broker("eu", &["campus"], None);
        site.tree.user("eu").until_slots(slots, PATIENCE);
        site
    }

    /// What the gateway runs as this command of Slurm: a shell's words, in front of the real one.
    pub fn command(&self, name: &str, script: &str) {
        let path = self.cluster.dir().join("commands").join(name);
        let new = path.with_extension("new");
        fs::write(&new, format!("#!/bin/sh\nexport SLURM_CONF={}\n{script}\n", self.cluster.conf().display())).unwrap();
        fs::set_permissions(&new, Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// A user at the broker.
    pub fn user(&self, name: &str) -> User {
        self.tree.user_as("eu", CertRole::User, name)
    }

    /// A shell's words that count this start, with others after them.
    pub fn counted(&self, then: &str) -> String {
        format!("echo \"$(date +%s.%N) $SLURM_JOB_ID\" >> {}/$GRID_TASK_ID; {then}", self.starts().display())
    }

    /// Starts of each task.
    pub fn starts_of_each(&self) -> BTreeMap<u32, usize> {
        let count = |e: fs::DirEntry| (e.file_name().to_str().unwrap().parse().unwrap(), fs::read_to_string(e.path()).unwrap().lines().count());
        fs::read_dir(self.starts()).unwrap().flatten().map(count).collect()
    }

    /// So many tasks have started.
    #[track_caller]
    pub fn until_started(&self, tasks: usize) {
        let started = || self.starts_of_each();
        until(&format!("{tasks} have started"), PATIENCE, || if started().len() >= tasks { Ok(()) } else { Err(format!("{:?}", started())) });
    }

    /// What is in Slurm and not over, of everybody: number, state, why it waits, name.
    pub fn left(&self) -> String {
        self.cluster.run("squeue", &["-h", "-r", "-t", "PD,R,CG,S", "-o", "%i %T %r %j"])
    }

    /// Nothing is left in Slurm.
    #[track_caller]
    pub fn until_gone(&self) {
        until("nothing is left in Slurm", PATIENCE, || if self.left().trim().is_empty() { Ok(()) } else { Err(self.left()) });
    }

    /// Numbers of tasks of ours in these states, when there are some.
    #[track_caller]
    pub fn until_ours(&self, states: &str) -> Vec<String> {
        until(&format!("ours are {states}"), PATIENCE, || {
            let all = self.cluster.run("squeue", &["-h", "-r", "-t", states, "-o", "%i %j"]);
            let ours: Vec<String> = all.lines().filter_map(|l| l.split_once(" ig").map(|(id, _)| id.to_string())).collect();
            if ours.is_empty() { Err(self.left()) } else { Ok(ours) }
        })
    }

    /// A job of somebody else has all machines.
    #[track_caller]
    pub fn block(&self) -> String {
        let blocker = self.cluster.submit(ACCOUNTS[2], &["--nodes=4", "--exclusive"], "sleep 600");
        until("the machines are taken", PATIENCE, || {
            let all = self.cluster.run("squeue", &["-h", "-t", "R", "-o", "%i"]);
            if all.trim() == blocker { Ok(()) } else { Err(all) }
        });
        blocker
    }

    /// Every one of so many tasks was started exactly once.
    #[track_caller]
    pub fn assert_each_started_once(&self, tasks: u32) {
        let starts = self.starts_of_each();
        let odd: Vec<_> = (0..tasks).map(|n| (n, starts.get(&n).copied().unwrap_or(0))).filter(|(_, n)| *n != 1).collect();
        assert!(odd.is_empty(), "of {tasks} tasks, not started exactly once (task, starts): {odd:?}");
    }

    fn starts(&self) -> PathBuf {
        self.cluster.dir().join("starts")
    }
}

fn dir_of_all(path: &Path) -> PathBuf {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o1777)).unwrap();
    path.to_path_buf()
}
