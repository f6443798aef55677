//! One part of the demo as a process: started in a role, ready when it says so, ended with the demo. A process is never signalled by its pid alone: pid
//! and start time together name it, so that a pid in new hands is left alone.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use intergrid_proto::Refusal;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::layout::{Layout, Part};
use crate::stop::local;

/// A part that has not said that it serves by then does not.
const READY_TIMEOUT_MS: u64 = 20_000;
/// Between two looks.
const LOOK_INTERVAL_MS: u64 = 20;
/// After this, what was asked to end is killed.
const END_TIMEOUT_MS: u64 = 5_000;
/// Of a part's log, when it failed.
const LOG_TAIL_LINES: usize = 15;
/// Larger logs are not read as a whole.
const LOG_TAIL_BYTES: u64 = 64 << 10;

/// What a part writes once it serves.
#[derive(Clone, Debug, Deserialize)]
pub struct Ready {
    /// `host:port`; an agent has none.
    #[serde(default)]
    pub endpoint: String,
    /// Its process.
    pub pid: u32,
    /// Its label; may be left out.
    #[serde(default)]
    pub name: String,
}

/// A process that we may end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Proc {
    /// Its pid.
    pub pid: u32,
    /// In ticks since boot: with the pid, it names a process for ever.
    pub started: u64,
}

impl Proc {
    /// The process that has this pid now.
    pub fn of(pid: u32) -> Option<Proc> {
        started(pid).map(|started| Proc { pid, started })
    }

    /// It, and no other, is there and not only waits for its parent to look.
    pub fn lives(&self) -> bool {
        started(self.pid) == Some(self.started)
    }

    /// Signal it, if it is still the same.
    pub fn signal(&self, signal: Signal) {
        if let (true, Some(pid)) = (self.lives(), i32::try_from(self.pid).ok().and_then(Pid::from_raw)) {
            // Gone meanwhile: as wished.
            let _ = kill_process(pid, signal);
        }
    }
}

/// Start time of a process that is not a zombie.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold blanks and parentheses: what follows its last one does not.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// A part that was started here.
#[derive(Debug)]
pub struct Running {
    /// Which.
    pub part: &'static Part,
    /// Where it serves; empty for an agent, and before it is ready.
    pub endpoint: String,
    child: Child,
    log: PathBuf,
    ready: PathBuf,
}

impl Running {
    /// Start it in its role. Unless it is to be kept it ends when we do: we hold its stdin, and nothing is ever written there.
    pub fn start(program: &Path, layout: &Layout, part: &'static Part, keep: bool) -> Result<Running, Refusal> {
        let bad = |e: std::io::Error| local(format!("{} can't be started: {e}", part.name));
        let (log, ready) = (layout.log(part.name), layout.ready(part.name));
        let out = File::create(&log).map_err(bad)?;
        let mut command = Command::new(program);
        command.arg(part.kind.name()).arg("--config").arg(layout.config(part.name)).arg("--ready-file").arg(&ready);
        if !keep {
            command.arg("--die-with-parent");
        }
        command.stdin(if keep { Stdio::null() } else { Stdio::piped() }).stdout(out.try_clone().map_err(bad)?).stderr(out);
        // A group of its own: Ctrl-C comes to the demo alone, which then ends its parts.
        command.process_group(0).current_dir(&layout.root);
        Ok(Running { part, endpoint: String::new(), child: command.spawn().map_err(bad)?, log, ready })
    }

    /// Wait until it serves.
    pub async fn ready(&mut self) -> Result<(), Refusal> {
        let deadline = Instant::now() + Duration::from_millis(READY_TIMEOUT_MS);
        loop {
            if let Some(ready) = read_ready(&self.ready) {
                self.endpoint = ready.endpoint;
                return Ok(());
            }
            self.check()?;
            if Instant::now() > deadline {
                return Err(self.failed(&format!("did not start within {}", crate::render::duration(READY_TIMEOUT_MS))));
            }
            sleep(Duration::from_millis(LOOK_INTERVAL_MS)).await;
        }
    }

    /// An error where it has ended.
    pub fn check(&mut self) -> Result<(), Refusal> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.failed(&format!("ended: {status}"))),
            Err(e) => Err(self.failed(&format!("can't be waited for: {e}"))),
        }
    }

    /// With the last lines of its log.
    fn failed(&self, why: &str) -> Refusal {
        let (name, kind) = (self.part.name, self.part.kind.name());
        local(format!("{kind} {name} {why}; its log, {}, ends:\n{}", self.log.display(), tail(&self.log)))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ask it to end.
    fn release(&mut self) {
        // End of file on its stdin.
        drop(self.child.stdin.take());
    }
}

/// What a part has written, if it is complete.
pub fn read_ready(path: &Path) -> Option<Ready> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

/// The last lines of a log.
pub fn tail(path: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].iter().map(|l| format!("  | {l}")).collect::<Vec<_>>().join("\n")
}

/// End every part and everything else of this demo; returns when nothing is left.
pub async fn end(parts: &mut [Running], others: &[Proc], root: &Path) {
    parts.iter_mut().for_each(Running::release);
    let mut deadline = Instant::now() + Duration::from_millis(END_TIMEOUT_MS);
    for signal in [None, Some(Signal::KILL)] {
        if let Some(signal) = signal {
            for part in parts.iter_mut() {
                // An error means that it has ended.
                let _ = part.child.kill();
            }
            others.iter().for_each(|p| p.signal(signal));
            payloads(root).iter().for_each(|p| p.signal(signal));
        }
        while Instant::now() < deadline {
            let parts_live = parts.iter_mut().filter_map(|p| p.child.try_wait().ok()).any(|s| s.is_none());
            if !parts_live && !others.iter().any(Proc::lives) && payloads(root).is_empty() {
                return;
            }
            sleep(Duration::from_millis(LOOK_INTERVAL_MS)).await;
        }
        deadline += Duration::from_millis(END_TIMEOUT_MS);
    }
}

/// End processes that another demo left running; true when nothing is left.
pub async fn end_kept(procs: &[Proc], root: &Path) -> bool {
    let mut deadline = Instant::now();
    for signal in [Signal::TERM, Signal::KILL] {
        let mut told: Vec<Proc> = Vec::new();
        deadline += Duration::from_millis(END_TIMEOUT_MS);
        while Instant::now() < deadline {
            // A gateway that still ends may have started an agent again; what agents ran outlives them by design.
            let mut left: Vec<Proc> = procs.iter().filter(|p| p.lives()).cloned().collect();
            left.extend(parts_below(root).into_iter().filter(|p| !procs.contains(p)));
            let mut signal = signal;
            if left.is_empty() {
                (left, signal) = (payloads(root), Signal::KILL);
            }
            if left.is_empty() {
                return true;
            }
            left.retain(|p| !told.contains(p));
            left.iter().for_each(|p| p.signal(signal));
            told.extend(left);
            sleep(Duration::from_millis(LOOK_INTERVAL_MS)).await;
        }
    }
    false
}

/// Parts of the demo below this directory, whoever started them: processes that were told to use a configuration there.
pub fn parts_below(root: &Path) -> Vec<Proc> {
    let is_part = |pid: u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<PathBuf> = words.split(|b| *b == 0).map(|w| PathBuf::from(OsStr::from_bytes(w))).collect();
        let config = words.windows(2).find(|w| w[0] == Path::new("--config")).map(|w| w[1].clone());
        let here = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        config.and_then(|c| here.join(c).canonicalize().ok()).is_some_and(|c| c.starts_with(root))
    };
    pids().into_iter().filter(|pid| is_part(*pid)).filter_map(Proc::of).collect()
}

fn pids() -> Vec<u32> {
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    all.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// What agents below this directory have started: programs that were staged there, and tasks in their directories. It outlives its agent by design.
fn payloads(root: &Path) -> Vec<Proc> {
    let below = |pid: u32, link: &str| fs::read_link(format!("/proc/{pid}/{link}")).is_ok_and(|path| path.starts_with(root));
    let is_task = |pid: u32| fs::read(format!("/proc/{pid}/environ")).is_ok_and(|e| e.split(|b| *b == 0).any(|v| v.starts_with(b"GRID_ATTEMPT=")));
    pids().into_iter().filter(|pid| below(*pid, "exe") || (below(*pid, "cwd") && is_task(*pid))).filter_map(Proc::of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_pid_and_start() {
        let me = Proc::of(std::process::id()).unwrap();
        assert!(me.lives());
        assert!(!Proc { started: me.started + 1, ..me.clone() }.lives());
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let proc = Proc::of(child.id()).unwrap();
        Proc { started: proc.started + 1, ..proc.clone() }.signal(Signal::KILL);
        assert!(child.try_wait().unwrap().is_none() && proc.lives());
        proc.signal(Signal::KILL);
        child.wait().unwrap();
        assert!(!proc.lives());
    }

    /// A part in the shape of a script: ready at once, gone at the end of its stdin.
    fn script(dir: &Path, text: &str) -> (Layout, PathBuf) {
        let layout = Layout { root: dir.to_owned() };
        fs::create_dir_all(layout.dir("campus")).unwrap();
        let program = dir.join("program");
        let written = dir.join("text");
        fs::write(&written, format!("#!/bin/sh\n{text}\n")).unwrap();
        // Written by another process: while a test beside this one forks, what we have open for writing can't be executed.
        assert!(Command::new("install").args(["-m", "755"]).args([&written, &program]).status().unwrap().success());
        (layout, program)
    }

    const SERVES: &str = r#"echo '{"endpoint":"127.0.0.1:1","pid":'$$',"site":"00","name":"campus"}' > "$5"; read _"#;

    #[tokio::test]
    async fn parts_end_with_the_demo() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, program) = script(dir.path(), SERVES);
        let mut part = Running::start(&program, &layout, super::super::layout::named("campus").unwrap(), false).unwrap();
        part.ready().await.unwrap();
        assert_eq!("127.0.0.1:1", part.endpoint);
        let proc = Proc::of(part.pid()).unwrap();
        part.check().unwrap();
        let began = Instant::now();
        end(&mut [part], std::slice::from_ref(&proc), dir.path()).await;
        assert!(!proc.lives() && began.elapsed() < Duration::from_millis(END_TIMEOUT_MS), "gently");
    }

    #[tokio::test]
    async fn what_was_kept_is_ended_by_its_record() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, program) = script(dir.path(), &SERVES.replace("read _", "exec sleep 60"));
        let mut part = Running::start(&program, &layout, super::super::layout::named("campus").unwrap(), true).unwrap();
        part.ready().await.unwrap();
        let proc = Proc::of(part.pid()).unwrap();
        assert!(proc.lives());
        assert!(end_kept(std::slice::from_ref(&proc), dir.path()).await && !proc.lives());
        part.child.wait().unwrap();
    }

    #[tokio::test]
    async fn parts_are_found_by_their_configuration_whoever_started_them() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (layout, program) = script(&root, SERVES);
        fs::write(layout.config("campus"), "").unwrap();
        let mut part = Running::start(&program, &layout, super::super::layout::named("campus").unwrap(), false).unwrap();
        part.ready().await.unwrap();
        let proc = Proc::of(part.pid()).unwrap();
        assert_eq!(vec![proc.clone()], parts_below(&root));
        assert!(parts_below(&root.join("other")).is_empty());
        end(&mut [part], &[proc], &root).await;
        assert!(parts_below(&root).is_empty());
    }

    #[tokio::test]
    async fn a_part_that_fails_shows_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, program) = script(dir.path(), "echo the port is in use >&2; exit 2");
        let mut part = Running::start(&program, &layout, super::super::layout::named("campus").unwrap(), false).unwrap();
        let refused = part.ready().await.unwrap_err().to_string();
        assert!(refused.contains("gateway campus ended: exit status: 2") && refused.ends_with("  | the port is in use"), "{refused}");
    }

    #[test]
    fn a_tail_is_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!("", tail(&path));
        fs::write(&path, (0..10_000).map(|i| format!("line {i}\n")).collect::<String>()).unwrap();
        let tail = tail(&path);
        assert!(tail.ends_with("  | line 9999") && tail.lines().count() == LOG_TAIL_LINES);
    }
}
