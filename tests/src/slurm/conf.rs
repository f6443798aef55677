//! What a test cluster is configured to be, as files.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use super::{accounting, ended};

/// What can be chosen.
#[derive(Clone, Debug)]
pub struct Options {
    /// n1, n2, ...; at least two.
    pub machines: usize,
    /// Of each.
    pub cpus: u32,
    /// Of each.
    pub memory_mib: u32,
    /// With slurmdbd, which sacct asks.
    pub accounting: bool,
    /// So long the queue lists what is over (`MinJobAge`), seconds.
    pub job_age_s: u32,
    /// More lines of `slurm.conf`; they come last.
    pub more: String,
}

impl Default for Options {
    fn default() -> Self {
        Options { machines: 4, cpus: 4, memory_mib: 4_000, accounting: false, job_age_s: 60, more: String::new() }
    }
}

/// What the first half of the machines have for GPUs: Slurm asks that each be a device, and no more of it.
const GPUS: [&str; 2] = ["/dev/null", "/dev/zero"];
/// Our completion program, as sites install it.
const JOBCOMP: &str = include_str!("../../../deploy/slurm/jobcomp");

impl Options {
    /// All that the daemons read, in this directory.
    pub(super) fn write(&self, dir: &Path, ports: Vec<u16>) {
        for (name, owner) in [("munge", Some("munge")), ("state", Some("slurm")), ("log", Some("slurm")), ("spool", None), ("jobcomp", None)] {
            make_dir(&dir.join(name), owner);
        }
        make_dir(&dir.join("jobcomp/records"), Some("slurm"));
        fs::write(dir.join("jobcomp/jobcomp"), JOBCOMP).expect("jobcomp");
        fs::set_permissions(dir.join("jobcomp/jobcomp"), Permissions::from_mode(0o755)).expect("permissions");
        let key = dir.join("munge/key");
        fs::write(&key, rand_key()).expect("a key");
        fs::set_permissions(&key, Permissions::from_mode(0o400)).expect("permissions");
        own(&key, "munge");
        let [controller, machine, accounts, machines @ ..] = &ports[..] else { panic!("{} ports", ports.len()) };
        let accounts = self.accounting.then_some(*accounts);
        if let Some(port) = accounts {
            let database = dir.join("database");
            make_dir(&database, Some("slurm"));
            fs::set_permissions(&database, Permissions::from_mode(0o700)).expect("permissions");
            accounting::write(dir, port, own);
        }
        let machines: Vec<String> = machines.iter().map(u16::to_string).collect();
        let text = self.text(dir, *controller, *machine, &machines, &accounting::settings(dir, accounts));
        fs::write(dir.join("slurm.conf"), text).expect("slurm.conf");
        let gpu = |device: &&str| format!("NodeName=n[1-{}] Name=gpu File={device}\n", self.machines / 2);
        fs::write(dir.join("gres.conf"), GPUS.iter().map(gpu).collect::<String>()).expect("gres.conf");
    }

    /// Without systemd and cgroups; quick to schedule, and quick to notice what is lost.
    fn text(&self, dir: &Path, controller: u16, machine: u16, ports: &[String], accounting: &str) -> String {
        let Options { machines, cpus, memory_mib, job_age_s, more, .. } = self;
        let (dir, half, gpus) = (dir.display(), machines / 2, GPUS.len());
        let (first, others, next) = (ports[..half].join(","), ports[half..].join(","), half + 1);
        let each = format!("NodeHostname=localhost NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mib}");
        format!(
            "\
ClusterName=intergrid-test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={machine}
SlurmUser=slurm
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge/socket
CredType=cred/munge
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/state/pid
SlurmdPidFile={dir}/spool/%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/spool/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=5
{accounting}
JobCompType=jobcomp/script
JobCompLoc={dir}/jobcomp/jobcomp
MinJobAge={job_age_s}
MaxArraySize=2001
MailProg=/bin/true
KillWait=2
SlurmdTimeout=10
SlurmctldTimeout=10
GresTypes=gpu
NodeName=n[1-{half}] {each} Port=[{first}] Gres=gpu:{gpus}
NodeName=n[{next}-{machines}] {each} Port=[{others}]
PartitionName=batch Nodes=n[1-{machines}] Default=YES MaxTime=1-00:00:00 State=UP
PartitionName=short Nodes=n[1-{half}] MaxTime=10 State=UP
{more}
"
        )
    }
}

fn make_dir(path: &Path, owner: Option<&str>) {
    fs::create_dir_all(path).expect("a directory");
    fs::set_permissions(path, Permissions::from_mode(0o755)).expect("permissions");
    owner.into_iter().for_each(|owner| own(path, owner));
}

fn own(path: &Path, account: &str) {
    let number = |option: &str| -> u32 {
        let output = ended(Command::new("id").args([option, account]), "");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.trim().parse().unwrap_or_else(|_| panic!("no account {account}: install munge and slurm-wlm with `tests/run --prepare`"))
    };
    chown(path, Some(number("-u")), Some(number("-g"))).expect("an owner");
}

/// Nobody else's munge key.
fn rand_key() -> Vec<u8> {
    use std::io::Read;
    let mut key = vec![0; 64];
    fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut key)).expect("random bytes");
    key
}
