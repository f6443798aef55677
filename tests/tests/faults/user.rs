//! A user at the command line: runs `grid` with a home of its own and no terminal, and gets back what it said.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::tree::{binary, until};

/// No verb of a test takes longer.
const VERB_TIMEOUT: Duration = Duration::from_secs(180);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What a verb said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// stdout of a verb that went well.
    pub fn well(self) -> String {
        assert_eq!(0, self.code, "{self:?}");
        self.out
    }

    /// One object on stdout.
    pub fn json(self) -> Value {
        let text = self.well();
        let object: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(Some(1), object["version"].as_u64(), "{object}");
        object
    }

    /// It ended with this code and said all of these words on stderr.
    #[track_caller]
    pub fn refused(self, code: i32, words: &[&str]) {
        assert_eq!(code, self.code, "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in {self:?}");
        }
    }
}

/// A verb under way.
pub struct Running {
    child: Child,
    words: String,
    out: Reader,
    err: Reader,
}

/// Reads to the end; what has come is there before.
struct Reader {
    come: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn new(mut from: impl Read + Send + 'static) -> Reader {
        let come = Arc::new(Mutex::new(Vec::new()));
        let to = come.clone();
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            loop {
                match from.read(&mut bytes).unwrap() {
                    0 => return,
                    n => to.lock().unwrap().extend_from_slice(&bytes[..n]),
                }
            }
        });
        Reader { come, thread }
    }

    /// What has come until now.
    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.come.lock().unwrap()).into_owned()
    }

    fn end(self) -> String {
        self.thread.join().unwrap();
        String::from_utf8_lossy(&self.come.lock().unwrap()).into_owned()
    }
}

impl Running {
    /// Start it; everything it says is kept.
    pub fn spawn(mut command: Command) -> Running {
        let words = format!("{command:?}");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (Reader::new(child.stdout.take().unwrap()), Reader::new(child.stderr.take().unwrap()));
        Running { child, words, out, err }
    }

    /// Has it?
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Until it has ended.
    pub fn end(mut self) -> Said {
        let deadline = Instant::now() + VERB_TIMEOUT;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                _ = self.child.kill();
                panic!("{} did not end within {VERB_TIMEOUT:?}", self.words);
            }
            std::thread::sleep(LOOK_INTERVAL);
        };
        Said { code: status.code().unwrap_or(-1), out: self.out.end(), err: self.err.end() }
    }

    /// Until this is on its stdout.
    pub fn until_out(&self, text: &str) {
        let deadline = Instant::now() + VERB_TIMEOUT;
        while !self.out.so_far().contains(text) {
            assert!(Instant::now() < deadline, "{} did not say {text:?} within {VERB_TIMEOUT:?}", self.words);
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

/// `grid` with these words and no home.
pub fn grid(words: &[&str]) -> Command {
    let mut command = Command::new(binary("grid"));
    command.args(words).env_clear();
    command
}

/// With a home, and a directory to work in.
#[derive(Clone, Debug)]
pub struct User {
    pub home: PathBuf,
    pub dir: PathBuf,
}

impl User {
    pub fn new(home: PathBuf, dir: PathBuf) -> Self {
        User { home, dir }
    }

    /// A verb, under way.
    pub fn spawn(&self, words: &[&str]) -> Running {
        let mut command = grid(words);
        command.env("INTERGRID_HOME", &self.home).current_dir(&self.dir);
        Running::spawn(command)
    }

    /// A verb, to its end.
    pub fn run(&self, words: &[&str]) -> Said {
        self.spawn(words).end()
    }

    /// Submit; the job's id.
    #[track_caller]
    pub fn submit(&self, words: &[&str]) -> String {
        let out = self.run(&[&["submit"][..], words].concat()).well();
        let id = out.trim_end_matches('\n');
        assert!(!id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric()), "a bare id, not {out:?}");
        id.to_string()
    }

    /// One object.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> Value {
        self.run(&[&["--json"], words].concat()).json()
    }

    /// Objects, one per line.
    #[track_caller]
    pub fn json_lines(&self, words: &[&str]) -> Vec<Value> {
        let text = self.run(&[&["--json"], words].concat()).well();
        text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
    }

    /// Tasks of the job in this phase.
    pub fn in_phase(&self, job: &str, phase: &str) -> u64 {
        self.json(&["show", job])["phases"][phase].as_u64().unwrap_or(0)
    }

    /// Look until so many of the job's tasks are in this phase.
    #[track_caller]
    pub fn until_phase(&self, job: &str, phase: &str, tasks: u64) {
        until(&format!("{tasks} tasks {phase}"), Duration::from_secs(60), || {
            let view = self.json(&["show", job]);
            if view["phases"][phase].as_u64() == Some(tasks) { Ok(()) } else { Err(view["phases"].to_string()) }
        });
    }

    /// Look until the job is explained by this kind of reason.
    #[track_caller]
    pub fn until_reason(&self, job: &str, kind: &str) {
        until(&format!("{kind} explains it"), Duration::from_secs(60), || {
            let said = self.run(&["explain", job]);
            if said.out.contains(kind) { Ok(()) } else { Err(format!("{said:?}")) }
        });
    }

    /// Look until a task of the latest job here has come back from below, with a reason that says all of this.
    #[track_caller]
    pub fn until_returned(&self, words: &[&str]) {
        until(&format!("it comes back: {words:?}"), Duration::from_secs(60), || {
            let job = self.json(&["ls"])["jobs"][0]["job"].as_str().unwrap_or_default().to_string();
            let attempts = if job.is_empty() { Vec::new() } else { self.json_lines(&["history", &job]) };
            let mut reasons = attempts.iter().filter(|a| a["what"] == "returned").map(|a| a["reason"].to_string());
            if reasons.any(|r| words.iter().all(|w| r.contains(w))) { Ok(()) } else { Err(format!("{attempts:?}")) }
        });
    }

    /// Look until so many slots are known here, and free.
    pub fn until_slots(&self, slots: u64, patience: Duration) {
        until(&format!("{slots} slots"), patience, || {
            let said = self.run(&["hosts", "--json"]);
            let host: Value = serde_json::from_str(&said.out).map_err(|e| format!("{e}: {said:?}"))?;
            if host["slots_total"].as_u64() == Some(slots) { Ok(()) } else { Err(host.to_string()) }
        });
    }

    /// Wait for the job; the exit code.
    pub fn wait(&self, job: &str) -> i32 {
        self.run(&["wait", "--timeout", "120s", job]).code
    }

    /// A file in the working directory.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The same, executable.
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.write(name, text);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// What is in a file of the working directory.
    pub fn read(&self, name: impl AsRef<Path>) -> String {
        std::fs::read_to_string(self.dir.join(name)).unwrap()
    }
}
