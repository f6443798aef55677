//! Accounting of a test cluster: mariadbd and slurmdbd as ordinary processes, with all that they have in the cluster's directory. They take two seconds to
//! start, so that only who asks for them has them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::{Part, START_TIMEOUT, Slurm, ended};

/// What makes an empty database one that can keep procedures, as slurmdbd has some.
const SYSTEM_TABLES: &str = "/usr/share/mysql/mysql_system_tables.sql";
/// Small, quick, and reached by nobody else: its socket is in a directory that only its own account can enter.
const DATABASE: [&str; 10] = [
    "--no-defaults",
    "--skip-networking",
    "--skip-grant-tables",
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=4M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--innodb-doublewrite=0",
    "--key-buffer-size=1M",
    "--aria-pagecache-buffer-size=1M",
];

impl Slurm {
    /// Does it have accounting?
    pub fn keeps_accounts(&self) -> bool {
        self.parts.contains_key(&Part::Accounting)
    }

    /// The database first, then who keeps it. A controller that finds nobody at its first start does not go on.
    pub(super) fn start_accounting(&mut self) {
        let tables = fs::read_to_string(SYSTEM_TABLES).unwrap_or_else(|e| panic!("{SYSTEM_TABLES}: {e}; install it with `tests/run --prepare`"));
        let output = ended(self.database().arg("--bootstrap"), &format!("create database mysql;\nuse mysql;\n{tables}"));
        assert!(output.status.success(), "mariadbd --bootstrap: {}", String::from_utf8_lossy(&output.stderr));
        self.start_part(Part::Database);
        self.until_there("mariadbd listens", "database/socket");
        self.start_part(Part::Accounting);
        self.until("slurmdbd answers", START_TIMEOUT, |slurm| {
            let output = ended(slurm.command("sacctmgr").args(["--noheader", "list", "cluster"]), "");
            if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
        });
    }

    /// mariadbd on the database of this cluster.
    pub(super) fn database(&self) -> Command {
        let dir = self.dir().join("database");
        let mut command = self.command_of_its_own("slurm", "mariadbd");
        command.args(DATABASE).arg(format!("--datadir={}", dir.display())).arg(format!("--socket={}/socket", dir.display()));
        command
    }

    /// slurmdbd, which finds the database by the environment.
    pub(super) fn accounting(&self) -> Command {
        let mut command = self.command_of_its_own("slurm", "slurmdbd");
        command.arg("-D").env("MYSQL_UNIX_PORT", self.dir().join("database/socket"));
        command
    }
}

/// `slurmdbd.conf`, which nobody but its own account may read. `own` gives a file to an account.
pub(super) fn write(dir: &Path, port: u16, own: impl Fn(&Path, &str)) {
    let (path, dir) = (dir.join("slurmdbd.conf"), dir.display());
    let text = format!(
        "\
AuthType=auth/munge
AuthInfo=socket={dir}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=slurm
LogFile={dir}/log/slurmdbd.log
PidFile={dir}/state/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StorageLoc=slurm_acct
"
    );
    fs::write(&path, text).expect("slurmdbd.conf");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("permissions");
    own(&path, "slurm");
}

/// Of `slurm.conf`. Who keeps accounts is told which munged to believe by what is called a password.
pub(super) fn settings(dir: &Path, port: Option<u16>) -> String {
    match port {
        None => "AccountingStorageType=accounting_storage/none".to_string(),
        Some(port) => format!(
            "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\nAccountingStoragePort={port}\n\
             AccountingStoragePass={}/munge/socket",
            dir.display()
        ),
    }
}
