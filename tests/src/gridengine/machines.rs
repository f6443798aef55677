//! Several machines of one cell: each is a network and a name of its own, joined to ours by a pair of virtual interfaces. They share processes, files and
//! accounts. Who asks for `localhost` there means us: the master is called so everywhere.
//!
//! Grid Engine knows the processes of a job by a group that its sge_execd gives it, and kills all that have it when the job is over: where processes are
//! shared, groups must not be. So each machine has a range of groups to itself.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{ACCOUNTS, GridEngine, LOOK_INTERVAL, Part};
use crate::slurm::{PORTS, ended};

/// What a machine is given begins and ends within so many looks, a machine does so by then.
const PROBE_LOOKS: u32 = 200;
const TAKES_WORK_TIMEOUT: Duration = Duration::from_secs(60);

/// Each cluster has addresses for so many.
const MACHINES_MAX: usize = 4;
/// Addresses for tests of networks, by RFC 2544.
const NETWORK: u32 = u32::from_be_bytes([198, 18, 0, 0]);
/// Groups of the first machine of the first cluster begin here. No account has such a group.
const GROUPS: u32 = 1_000_000;
/// Jobs that one machine can run.
const GROUPS_OF_EACH: u32 = 200;

/// A machine begins: `NAME HOSTS INTERFACE ADDRESS OUR-ADDRESS PROGRAM`. An earlier one's interface may still be there.
const BEGIN: &str = r#"
    set -e
    ours() { nsenter --target "$PPID" --net ip "$@"; }
    hostname "$1"
    mount --bind "$2" /etc/hosts
    ours link delete "$3" 2> /dev/null || true
    ip link set lo up
    ip link add up0 type veth peer name "$3" netns "$PPID"
    ip address add "$4/31" dev up0
    ours address add "$5/31" dev "$3"
    ours link set "$3" up
    ip link set up0 up
    exec "$6""#;

impl GridEngine {
    /// What Grid Engine calls a machine.
    pub fn machine(&self, n: usize) -> String {
        if self.machines == 1 { "localhost".to_string() } else { format!("m{n}") }
    }

    /// Cut a machine off, or join it again: what runs there goes on.
    pub fn join_machine(&self, n: usize, joined: bool) {
        let output = ended(Command::new("ip").args(["link", "set", &self.interface(n), if joined { "up" } else { "down" }]), "");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A machine runs what it is given. Until its daemon has said that it is there again, it may be given work that nobody begins, and Grid Engine looks at
    /// that again after five minutes.
    pub fn until_takes_work(&self, n: usize) {
        self.until(&format!("machine {n} takes work"), TAKES_WORK_TIMEOUT, |engine| {
            let id = engine.submit(ACCOUNTS[0], &["-l", &format!("hostname={}", engine.machine(n))], "true");
            for _ in 0..PROBE_LOOKS {
                if !engine.listed().iter().any(|l| l.starts_with(&format!("{id} "))) {
                    return Ok(());
                }
                std::thread::sleep(LOOK_INTERVAL);
            }
            let left = engine.listed();
            engine.run("qdel", &["-f", &id]);
            Err(format!("{left:?}"))
        });
    }

    /// A machine's power is lost: all that runs there is killed. Of several.
    pub fn lose_machine(&mut self, n: usize) {
        let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let child = self.parts.get(&Part::Machine(n)).unwrap_or_else(|| panic!("machine {n} does not run"));
        let there = network(&child.id().to_string());
        assert!(there.is_some() && there != network("self"), "machine {n} is the only one");
        self.join_machine(n, false);
        // Who is being started while we look is found by the next look.
        loop {
            let found: Vec<i32> = fs::read_dir("/proc")
                .expect("/proc")
                .flatten()
                .filter_map(|e| e.file_name().to_str()?.parse().ok())
                .filter(|pid: &i32| network(&pid.to_string()) == there)
                .collect();
            if found.is_empty() {
                break;
            }
            found.into_iter().filter_map(Pid::from_raw).for_each(|pid| _ = kill_process(pid, Signal::KILL));
            let _ = self.parts.get_mut(&Part::Machine(n)).map(|child| child.try_wait());
        }
        self.parts.remove(&Part::Machine(n));
    }

    /// Groups that a machine gives to its jobs, `1000000-1000199`.
    pub(super) fn groups(&self, n: usize) -> String {
        let first = GROUPS + (self.place() + n as u32 - 1) * GROUPS_OF_EACH;
        format!("{first}-{}", first + GROUPS_OF_EACH - 1)
    }

    /// Names of all machines, for the master and for each machine, where there are several.
    pub(super) fn write_names(&self) {
        assert!((1..=MACHINES_MAX).contains(&self.machines), "{} machines", self.machines);
        if self.machines == 1 {
            return;
        }
        let ours = fs::read_to_string("/etc/hosts").expect("/etc/hosts");
        let all: String = (1..=self.machines).map(|n| format!("{} {}\n", self.addresses(n)[0], self.machine(n))).collect();
        fs::write(self.hosts(0), format!("{ours}{all}")).expect("names");
        for n in 1..=self.machines {
            let [address, master] = self.addresses(n);
            fs::write(self.hosts(n), format!("{master} localhost\n{address} {}\n", self.machine(n))).expect("names");
        }
    }

    /// Where there are several, each has groups of its own.
    pub(super) fn add_machines(&self) {
        for n in (1..=self.machines).filter(|_| self.machines > 1) {
            let file = self.dir().join(self.machine(n));
            fs::write(&file, format!("gid_range {}\n", self.groups(n))).expect("a configuration");
            for args in [["-ah", &self.machine(n)], ["-Aconf", file.to_str().expect("a path")]] {
                let output = ended(self.naming("qconf").args(args), "");
                assert!(output.status.success(), "qconf {args:?}: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }

    /// A program of ours that knows the machines by name.
    pub(super) fn naming(&self, program: &str) -> Command {
        if self.machines == 1 {
            return self.command(program);
        }
        let mut command = self.command("unshare");
        let path = self.command(program).get_program().to_owned();
        command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]).arg(self.hosts(0)).arg(path);
        command
    }

    /// A program that is on this machine.
    pub(super) fn on_machine(&self, n: usize, program: &str) -> Command {
        if self.machines == 1 {
            return self.command(program);
        }
        let mut command = self.command("unshare");
        let path = self.command(program).get_program().to_owned();
        let [address, master] = self.addresses(n).map(|a| a.to_string());
        command.args(["--net", "--uts", "--mount", "sh", "-c", BEGIN, "machine", &self.machine(n)]).arg(self.hosts(n));
        command.args([&self.interface(n), &address, &master]).arg(path);
        command
    }

    /// Of this cluster's first machine among those of all clusters.
    fn place(&self) -> u32 {
        u32::from(self.ports[0] - PORTS.start) * MACHINES_MAX as u32
    }

    /// A machine's, and ours at the other end.
    fn addresses(&self, n: usize) -> [std::net::Ipv4Addr; 2] {
        let first = NETWORK + 2 * (self.place() + n as u32 - 1);
        [first, first + 1].map(std::net::Ipv4Addr::from)
    }

    /// Our end.
    fn interface(&self, n: usize) -> String {
        format!("sge{}m{n}", self.ports[0])
    }

    /// What a machine takes for `/etc/hosts`; 0: we.
    fn hosts(&self, n: usize) -> PathBuf {
        self.dir().join(format!("hosts.{n}"))
    }
}
