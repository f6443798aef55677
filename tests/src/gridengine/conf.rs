//! What a test cell is configured to be, as files. What is not said here is as Debian's packages have it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::GridEngine;
use crate::slurm::ended;
use crate::starts::dir_of_all;

/// What can be chosen.
#[derive(Clone, Debug)]
pub struct Options {
    /// One is `localhost`; several, at most four, are `m1`, `m2`, ...
    pub machines: usize,
    /// Of the queue `batch`, on each machine.
    pub batch_slots: u32,
    /// Of the queue `short`, on each machine.
    pub short_slots: u32,
    /// The longest that a task may run in it.
    pub short_time: String,
    /// What a slot of a queue may have of memory, `h_vmem`.
    pub memory: String,
    /// Of each machine, counted by the complex `gpu` (for each slot) and, once more, by `gpu_once` (once a job); there is no device.
    pub gpus: u32,
    /// Between the word that a job will be killed, and its end.
    pub notify_s: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            machines: 1,
            batch_slots: 16,
            short_slots: 4,
            short_time: "00:10:00".to_string(),
            memory: "INFINITY".to_string(),
            gpus: 0,
            notify_s: 3,
        }
    }
}

/// Where Debian has the rest of `$SGE_ROOT`.
const ROOT: &str = "/var/lib/gridengine";
const SHARE: &str = "/usr/share/gridengine";
/// Who the qmaster works as.
const ADMIN: &str = "sgeadmin";
/// One that gives the slots of a task on one machine.
const ENVIRONMENT: &str = "\
pe_name            smp
slots              999
user_lists         NONE
xuser_lists        NONE
start_proc_args    /bin/true
stop_proc_args     /bin/true
allocation_rule    $pe_slots
control_slaves     FALSE
job_is_first_task  TRUE
urgency_slots      min
accounting_summary FALSE
qsort_args         NONE
";

impl Options {
    /// All that sge_qmaster reads when it starts.
    pub(super) fn write_cell(&self, engine: &GridEngine) {
        let (dir, common) = (engine.dir(), engine.common());
        for name in ["spool/qmaster/job_scripts", "spool/execd", "spool/db"] {
            fs::create_dir_all(dir.join(name)).expect("a directory");
        }
        fs::create_dir_all(&common).expect("a directory");
        for name in ["bin", "lib", "util", "utilbin"] {
            symlink(Path::new(ROOT).join(name), dir.join("root").join(name)).expect("a link");
        }
        let own = fs::read_to_string("/proc/sys/kernel/hostname").expect("the name of this machine");
        let write = |name: &str, text: String| fs::write(common.join(name), text).expect(name);
        write("act_qmaster", "localhost\n".to_string());
        // This machine is one, whatever it is called.
        write("host_aliases", format!("localhost {}\n", own.trim()));
        write("settings.sh", engine.environment().map(|(name, value)| format!("{name}={value}; export {name}\n")).concat());
        engine.write_names();
        let dir = dir.display();
        write(
            "bootstrap",
            format!(
                "admin_user {ADMIN}\ndefault_domain none\nignore_fqdn false\nspooling_method berkeleydb\nspooling_lib libspoolb\n\
                 spooling_params {dir}/spool/db\nbinary_path /usr/sbin\nqmaster_spool_dir {dir}/spool/qmaster\nsecurity_mode none\n\
                 listener_threads 2\nworker_threads 2\nscheduler_threads 1\n"
            ),
        );
        let global = fs::read_to_string(format!("{SHARE}/default-configuration")).expect("Debian's configuration");
        let execd = format!("{dir}/spool/execd");
        let reporting = "accounting=true reporting=false flush_time=00:00:01 accounting_flush_time=00:00:01 joblog=false sharelog=00:00:00";
        let groups = engine.groups(1);
        let changed = [
            ("execd_spool_dir", execd.as_str()),
            ("gid_range", &groups),
            ("mailer", "/bin/true"),
            ("reporting_params", reporting),
            ("execd_params", "INHERIT_ENV=false"),
            ("load_report_time", "00:00:02"),
            ("max_unheard", "00:00:10"),
            // Some tests submit as root.
            ("min_uid", "0"),
            ("min_gid", "0"),
        ];
        fs::write(engine.dir().join("global"), with(&global, &changed)).expect("global");
        run(
            engine,
            std::process::Command::new("chown")
                .arg("-R")
                .arg(format!("{ADMIN}:{ADMIN}"))
                .arg(engine.dir().join("root"))
                .arg(engine.dir().join("spool")),
        );
        let (db, global) = (format!("{dir}/spool/db"), format!("{dir}/global"));
        let resources = format!("{SHARE}/util/resources");
        for (program, args) in [
            ("spoolinit", &["berkeleydb", "libspoolb", &db, "init"][..]),
            ("spooldefaults", &["configuration", &global]),
            ("spooldefaults", &["complexes", &format!("{resources}/centry")]),
            ("spooldefaults", &["usersets", &format!("{resources}/usersets")]),
            ("spooldefaults", &["managers", "root", ADMIN]),
        ] {
            let mut command = engine.command("setpriv");
            command.args([&format!("--reuid={ADMIN}"), &format!("--regid={ADMIN}"), "--clear-groups"]);
            run(engine, command.arg(Path::new(super::COMMANDS).join(program)).args(args));
        }
    }

    /// All that is told to an sge_qmaster that runs.
    pub(super) fn write_queues(&self, engine: &GridEngine) {
        let file = |name: &str, text: &str| {
            let path = engine.dir().join(name);
            fs::write(&path, text).expect(name);
            path.display().to_string()
        };
        // It may know this machine already.
        let _ = engine.try_run("qconf", &["-ah", "localhost"]);
        engine.add_machines();
        engine.run("qconf", &["-as", "localhost"]);
        let quick = [("schedule_interval", "0:0:1"), ("flush_submit_sec", "1"), ("flush_finish_sec", "1"), ("load_formula", "slots")];
        engine.run("qconf", &["-Msconf", &file("scheduler", &with(&engine.run("qconf", &["-ssconf"]), &quick))]);
        engine.run("qconf", &["-Ap", &file("smp", ENVIRONMENT)]);
        let template = engine.run("qconf", &["-sq"]);
        let temporary = dir_of_all(&engine.dir().join("tmp")).display().to_string();
        let notify = format!("00:00:{:02}", self.notify_s);
        let machines = (1..=self.machines).map(|n| engine.machine(n)).collect::<Vec<_>>().join(" ");
        for (name, slots, time) in [("batch", self.batch_slots, "INFINITY"), ("short", self.short_slots, &self.short_time)] {
            let slots = slots.to_string();
            let changed = [
                ("qname", name),
                ("hostlist", &machines),
                ("slots", &slots),
                ("h_rt", time),
                ("h_vmem", &self.memory),
                ("notify", &notify),
                ("tmpdir", &temporary),
                ("pe_list", "smp"),
                ("load_thresholds", "NONE"),
            ];
            engine.run("qconf", &["-Aq", &file(name, &with(&template, &changed))]);
        }
    }

    /// Of machines that are known.
    pub(super) fn write_gpus(&self, engine: &GridEngine) {
        let complexes = engine.run("qconf", &["-sc"]) + "gpu gpu INT <= YES YES 0 0\ngpu_once gpu_once INT <= YES JOB 0 0\n";
        let path = engine.dir().join("complexes");
        fs::write(&path, complexes).expect("complexes");
        engine.run("qconf", &["-Mc", path.to_str().expect("a path")]);
        let values = format!("gpu={0},gpu_once={0}", self.gpus);
        for n in 1..=self.machines {
            run(engine, engine.naming("qconf").args(["-aattr", "exechost", "complex_values", &values, &engine.machine(n)]));
        }
    }
}

impl GridEngine {
    /// Change a setting of the whole cell.
    pub fn set(&self, name: &str, value: &str) {
        let text: String = self.run("qconf", &["-sconf"]).lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect();
        assert!(text.lines().any(|l| l.split_whitespace().next() == Some(name)), "{name}: {text}");
        let file = self.dir().join("changed/global");
        fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
        fs::write(&file, with(&text, &[(name, value)])).expect("global");
        self.run("qconf", &["-Mconf", file.to_str().expect("a path")]);
    }

    /// The site's own verifier of submissions says no to all, in these words.
    pub fn refuse_all(&self, words: &str) {
        self.verify_all(&format!("echo 'RESULT STATE REJECT {words}'"));
    }

    /// It gives all this name.
    pub fn rename_all(&self, name: &str) {
        self.verify_all(&format!("echo 'PARAM N {name}'; echo 'RESULT STATE CORRECT'"));
    }

    fn verify_all(&self, answer: &str) {
        // What runs goes on as it was read, until another file is named.
        let file = (0..).map(|n| self.dir().join(format!("verifier{n}.sh"))).find(|f| !f.exists()).expect("a name");
        let answers = format!("START) echo STARTED ;; BEGIN) {answer} ;; QUIT) exit ;;");
        let script = format!("#!/bin/sh\nwhile read -r word rest; do case \"$word\" in {answers} esac; done\n");
        fs::write(&file, script).expect("a script");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("permissions");
        self.set("jsv_url", &format!("script:{}", file.display()));
    }
}

/// A configuration of a name and a value a line, with these instead, or at its end.
fn with(text: &str, changed: &[(&str, &str)]) -> String {
    let key = |l: &str| l.split_whitespace().next().unwrap_or_default().to_string();
    let kept = text.lines().filter(|l| changed.iter().all(|(name, _)| key(l) != *name)).map(|l| format!("{l}\n"));
    kept.chain(changed.iter().map(|(name, value)| format!("{name} {value}\n"))).collect()
}

fn run(engine: &GridEngine, command: &mut std::process::Command) {
    let output = ended(command, "");
    assert!(output.status.success(), "{command:?}: {}{}", String::from_utf8_lossy(&output.stderr), engine.log_ends());
}
