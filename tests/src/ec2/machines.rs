//! What EC2 does with an instance: it starts a machine with its user data, ends it when it is terminated, and terminates it when it switches itself off. Here a
//! machine is a directory in which the script runs as on a fresh disk.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{MARK, Moto};

const LOOK: Duration = Duration::from_millis(200);

/// The machines of all instances of a moto.
pub struct Machines {
    over: Arc<AtomicBool>,
    logs: Arc<Mutex<BTreeMap<String, PathBuf>>>,
    task: Option<JoinHandle<()>>,
}

impl Machines {
    /// From now on; each starts so long after its launch, with the programs of this directory in its image.
    pub fn of(moto: &Arc<Moto>, boot: Duration, image: &Path) -> Machines {
        let path = format!("{}:{}", image.display(), std::env::var("PATH").unwrap_or_default());
        let over = Arc::new(AtomicBool::new(false));
        let logs: Arc<Mutex<BTreeMap<String, PathBuf>>> = Arc::default();
        let (moto, ends, kept) = (moto.clone(), over.clone(), logs.clone());
        let task = std::thread::spawn(move || {
            let mut machines: BTreeMap<String, Option<Child>> = BTreeMap::new();
            while !ends.load(Ordering::SeqCst) {
                for (id, state) in moto.instances() {
                    let root = moto.dir.join(&id);
                    match machines.get_mut(&id) {
                        None if state == "running" => {
                            std::thread::sleep(boot);
                            kept.lock().unwrap().insert(id.clone(), root.join("log"));
                            machines.insert(id.clone(), Some(start(&moto, &id, &root, &path)));
                        }
                        Some(Some(_)) if state == "running" && root.join("off").exists() => {
                            moto.ask("TerminateInstances", &[("InstanceId.1", &id)]);
                        }
                        Some(machine) if state != "running" => {
                            if let Some(mut child) = machine.take() {
                                end(&root);
                                _ = child.wait();
                            }
                        }
                        _ => {}
                    }
                }
                std::thread::sleep(LOOK);
            }
            for (id, child) in machines {
                end(&moto.dir.join(id));
                child.into_iter().for_each(|mut child| _ = child.wait());
            }
        });
        Machines { over, logs, task: Some(task) }
    }

    /// What they have said, by instance.
    pub fn logs(&self) -> BTreeMap<String, String> {
        self.logs.lock().unwrap().iter().map(|(id, path)| (id.clone(), fs::read_to_string(path).unwrap_or_default())).collect()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        _ = self.task.take().map(JoinHandle::join);
        if std::thread::panicking() {
            self.logs().iter().for_each(|(id, log)| eprintln!("--- machine {id} said:\n{log}"));
        }
    }
}

fn start(moto: &Moto, id: &str, root: &Path, path: &str) -> Child {
    fs::create_dir_all(root.join("sbin")).unwrap();
    let (script, off) = (root.join("user-data"), root.join("sbin/poweroff"));
    fs::write(&script, moto.user_data(id)).unwrap();
    fs::write(&off, format!("#!/bin/sh\n: > {}\n", root.join("off").display())).unwrap();
    fs::set_permissions(&off, fs::Permissions::from_mode(0o755)).unwrap();
    let log = fs::File::create(root.join("log")).unwrap();
    let mut command = Command::new("setsid");
    command.arg("sh").arg(&script).current_dir(root).env_clear().env("PATH", path).env(MARK, root);
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

/// No process of this machine is left: those that bear its mark, and those that are in its directories.
fn end(root: &Path) {
    let mark = format!("{MARK}={}", root.display());
    let is_its = |pid: &Path| {
        let environ = fs::read(pid.join("environ")).unwrap_or_default();
        environ.split(|b| *b == 0).any(|word| word == mark.as_bytes()) || fs::read_link(pid.join("cwd")).is_ok_and(|cwd| cwd.starts_with(root))
    };
    for _ in 0..100 {
        let pids = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.file_name().is_some_and(|n| n.as_encoded_bytes()[0].is_ascii_digit()));
        let found: Vec<PathBuf> = pids.filter(|pid| is_its(pid)).collect();
        if found.is_empty() {
            return;
        }
        for pid in found {
            _ = Command::new("kill").arg("-9").arg(pid.file_name().unwrap()).stderr(Stdio::null()).status();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
