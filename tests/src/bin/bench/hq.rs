//! HyperQueue beside us: one server and one worker with the machine's cores, as its users start them, in a directory of their own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::machine;
use crate::record::Result;
use crate::tree::until;

const READY_TIMEOUT: Duration = Duration::from_secs(20);
const END_TIMEOUT: Duration = Duration::from_secs(6);
/// What we could not end, ends by itself after this.
const IDLE: &str = "30m";

/// A server and, most of the time, workers.
pub struct Hq {
    program: PathBuf,
    dir: tempfile::TempDir,
    server: Option<Child>,
    /// By number of start.
    pub workers: Vec<Child>,
    journal: Option<String>,
}

impl Hq {
    /// Started. `journal`: how often it is flushed.
    pub fn start(program: &Path, work: &Path, workers: usize, journal: Option<&str>) -> Result<Hq> {
        let dir = tempfile::Builder::new().prefix("hq-").tempdir_in(work).map_err(|e| e.to_string())?;
        let mut hq = Hq { program: program.to_owned(), dir, server: None, workers: Vec::new(), journal: journal.map(String::from) };
        hq.start_server()?;
        (0..workers).try_for_each(|_| hq.start_worker())?;
        Ok(hq)
    }

    fn spawn(&self, words: &[&str], log: &str) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.dir.path().join(log)).map_err(|e| e.to_string())?;
        let mut command = self.verb(words);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(|e| e.to_string())?).stderr(log);
        command.spawn().map_err(|e| format!("{}: {e}", self.program.display()))
    }

    /// The server, until it answers.
    pub fn start_server(&mut self) -> Result<()> {
        let journal = self.dir.path().join("journal").display().to_string();
        let mut words = vec!["server", "start", "--idle-timeout", IDLE];
        if let Some(period) = &self.journal {
            words.extend(["--journal", &journal, "--journal-flush-period", period]);
        }
        self.server = Some(self.spawn(&words, "server.log")?);
        until("hq's server", READY_TIMEOUT, || if self.well(&["server", "info"]) { Ok(()) } else { Err("no answer".into()) })
    }

    /// One more worker, until the server knows it.
    pub fn start_worker(&mut self) -> Result<()> {
        let cpus = machine::cores().to_string();
        let child = self.spawn(&["worker", "start", "--idle-timeout", IDLE, "--cpus", &cpus], "worker.log")?;
        self.workers.push(child);
        let wanted = self.workers.len();
        until("hq's workers", READY_TIMEOUT, || {
            let said = self.verb(&["--output-mode", "json", "worker", "list"]).stderr(Stdio::null()).output().map_err(|e| e.to_string())?;
            let list: serde_json::Value = serde_json::from_slice(&said.stdout).map_err(|e| e.to_string())?;
            let n = list.as_array().map_or(0, Vec::len);
            if n >= wanted { Ok(()) } else { Err(format!("{n} workers")) }
        })
    }

    /// kill -9 of the server; its workers end by themselves, with their tasks.
    pub fn kill_server(&mut self) -> Result<()> {
        let mut server = self.server.take().ok_or("the server does not run")?;
        server.kill().and_then(|()| server.wait()).map_err(|e| e.to_string())?;
        for mut w in self.workers.drain(..) {
            let gone = until("the worker's end", END_TIMEOUT, || if matches!(w.try_wait(), Ok(None)) { Err(String::new()) } else { Ok(()) });
            if gone.is_err() {
                _ = w.kill();
            }
            _ = w.wait();
        }
        Ok(())
    }

    /// A verb, ready to be run.
    pub fn verb(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--server-dir").arg(self.dir.path().join("server")).args(words).current_dir(self.dir.path());
        command
    }

    /// A submission whose output is discarded.
    pub fn submit(&self, words: &[&str], payload: &[&str]) -> Command {
        self.verb(&[&["submit", "--stdout=none", "--stderr=none"], words, &["--"], payload].concat())
    }

    fn well(&self, words: &[&str]) -> bool {
        self.verb(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    }

    /// The server's process.
    pub fn server_pid(&self) -> u32 {
        self.server.as_ref().map_or(0, Child::id)
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// End all of it and keep its files.
    pub fn stop(&mut self) {
        self.well(&["server", "stop"]);
        let all = self.workers.drain(..).chain(self.server.take());
        for mut c in all {
            let gone = until("hq's end", END_TIMEOUT, || match c.try_wait() {
                Ok(Some(_)) | Err(_) => Ok(()),
                Ok(None) => Err(String::new()),
            });
            if gone.is_err() {
                _ = c.kill();
            }
            _ = c.wait();
        }
        _ = fs::remove_dir_all(self.dir.path().join("server"));
        sleep(Duration::from_millis(10));
    }
}

impl Drop for Hq {
    fn drop(&mut self) {
        self.stop();
    }
}
