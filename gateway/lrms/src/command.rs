//! Commands, run as this process's own account or as another one: argument lists only, never a shell line, with a time-out and a bound on what they print.
//!
//! A command that does not end in time is killed with its process group, and what it did is unknown.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::limits::{COMMAND_OUTPUT_BYTES_MAX, COMMAND_TIMEOUT_MS, COMPLAINT_CHARS_MAX};

/// Search path of programs whose configured name has no '/'.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// Whom a command runs as.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Account {
    /// Who this process is.
    Own,
    /// A local account, by `sudo -n -u`. Checked by [`Account::named`].
    Named(String),
}

impl Account {
    /// A portable account name: lower case letters, digits, `_`, `-`, not a digit or `-` first.
    pub fn named(name: &str) -> Result<Account, String> {
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
        let good = first && name.len() <= 32 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'));
        if good { Ok(Account::Named(name.to_string())) } else { Err(format!("{name:?} is not the name of an account")) }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Account::Own => "the gateway's own account",
            Account::Named(name) => name,
        })
    }
}

/// A command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// A path, or a name to be searched for.
    pub program: OsString,
    /// Its arguments, passed as they are.
    pub args: Vec<OsString>,
    /// Its environment beside PATH and LC_ALL=C; nothing else is passed on.
    pub env: Vec<(String, OsString)>,
    /// Its standard input.
    pub stdin: Vec<u8>,
    /// Then it is killed.
    pub timeout_ms: u64,
    /// One that complains so would try again, and again: it is killed.
    pub gives_up_at: Option<&'static str>,
}

impl Call {
    /// With the usual time-out and an empty standard input.
    pub fn new(program: impl Into<OsString>) -> Self {
        Call { program: program.into(), args: Vec::new(), env: Vec::new(), stdin: Vec::new(), timeout_ms: COMMAND_TIMEOUT_MS, gives_up_at: None }
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// More arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// This on standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }
}

/// A command that has ended by itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Output {
    /// None: killed by a signal.
    pub code: Option<i32>,
    /// As text; what is not UTF-8 is replaced.
    pub stdout: String,
    /// See `stdout`.
    pub stderr: String,
}

impl Output {
    /// Exit code 0.
    pub fn is_good(&self) -> bool {
        self.code == Some(0)
    }

    /// sudo refused to run it, before anything was done.
    pub fn is_refused_by_sudo(&self) -> bool {
        const COMPLAINTS: [&str; 5] =
            ["a password is required", "unknown user", "not allowed to execute", "is not in the sudoers file", "may not run sudo"];
        self.stderr.contains("sudo: ") && COMPLAINTS.iter().any(|c| self.stderr.contains(c))
    }

    /// What it complained of, in one short line.
    pub fn complaint(&self) -> String {
        let text = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(COMPLAINT_CHARS_MAX).collect();
        match (line.as_str(), self.code) {
            ("", Some(code)) => format!("exit code {code}, without a word"),
            ("", None) => "killed, without a word".to_string(),
            (text, _) => text.to_string(),
        }
    }
}

/// Why a command's answer can't be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CallFailure {
    /// It was never run: no such program, no process.
    NotRun(String),
    /// It was run, and said no.
    Failed(String),
    /// It was run, and what it did is not known: it took too long, was killed, or its answer can't be read.
    Unknown(String),
}

impl fmt::Display for CallFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (CallFailure::NotRun(text) | CallFailure::Failed(text) | CallFailure::Unknown(text)) = self;
        f.write_str(text)
    }
}

/// Runs commands. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Hands;

impl Hands {
    /// Run a command to its end.
    pub async fn run(&self, account: &Account, call: Call) -> Result<Output, CallFailure> {
        let (name, call) = by(account, call);
        run(&name, call).await
    }

    /// What a command prints that changes nothing, as our own account.
    pub async fn asked(&self, call: Call) -> Result<String, CallFailure> {
        let name = std::path::Path::new(&call.program).file_name().unwrap_or_default().display().to_string();
        let output = self.run(&Account::Own, call).await?;
        match output.is_good() {
            true => Ok(output.stdout),
            false => Err(CallFailure::Failed(format!("{name}: {}", output.complaint()))),
        }
    }
}

/// The name of this process's account.
pub async fn own_account() -> Result<String, CallFailure> {
    Ok(Hands.asked(Call::new("id").arg("-un")).await?.trim().to_string())
}

/// The home directory of this process's account.
pub async fn own_home() -> Result<PathBuf, CallFailure> {
    let said = Hands.asked(Call::new("getent").arg("passwd").arg(own_account().await?)).await?;
    let home = said.trim_end().split(':').nth(5).filter(|home| home.starts_with('/')).map(PathBuf::from);
    home.ok_or_else(|| CallFailure::Failed("getent: it names no home directory".to_string()))
}

/// What is run where an account asks for this, and what that is called.
fn by(account: &Account, call: Call) -> (String, Call) {
    let asked = call.program.to_string_lossy().into_owned();
    match account {
        Account::Own => (asked, call),
        Account::Named(name) => {
            let Call { program, args, env, .. } = call;
            let words = ["-n", "-u", name, "--", "env"].map(OsString::from).into_iter();
            let env: Vec<OsString> = env.into_iter().map(|(n, v)| pair(&n, &v)).collect();
            let args = words.chain(env).chain([program]).chain(args).collect();
            (format!("{asked} as {name}"), Call { program: "sudo".into(), args, env: Vec::new(), ..call })
        }
    }
}

fn pair(name: &str, value: &OsString) -> OsString {
    let mut pair = OsString::from(name);
    pair.push("=");
    pair.push(value);
    pair
}

async fn run(name: &str, call: Call) -> Result<Output, CallFailure> {
    let mut command = Command::new(&call.program);
    command.args(&call.args).env_clear().env("PATH", PATH).env("LC_ALL", "C").envs(call.env.iter().map(|(n, v)| (n, v)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| CallFailure::NotRun(format!("{} can't be run: {e}", call.program.display())))?;
    let group = child.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // One that does not read to the end has its reasons; its exit says more.
            let _ = stdin.write_all(&call.stdin).await;
        }
        Ok(())
    };
    let end = async { child.wait().await.map_err(|e| e.to_string()) };
    let work = async { tokio::try_join!(write, read(stdout, None), read(stderr, call.gives_up_at), end) };
    let why = match timeout(Duration::from_millis(call.timeout_ms), work).await {
        Ok(Ok(((), stdout, stderr, status))) => return Ok(Output { code: status.code(), stdout, stderr }),
        Ok(Err(why)) => format!("{name} was killed: {why}"),
        Err(_) => format!("{name} did not end within {} ms, and was killed", call.timeout_ms),
    };
    if let Some(group) = group {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    Err(CallFailure::Unknown(why))
}

/// To its end, or until these words are in it.
async fn read(from: Option<impl AsyncRead + Unpin>, stop_at: Option<&str>) -> Result<String, String> {
    let Some(mut from) = from else { return Ok(String::new()) };
    let mut bytes = Vec::new();
    while from.read_buf(&mut bytes).await.map_err(|e| format!("its answer can't be read: {e}"))? > 0 {
        if bytes.len() > COMMAND_OUTPUT_BYTES_MAX {
            return Err(format!("it prints more than {COMMAND_OUTPUT_BYTES_MAX} bytes"));
        }
        if stop_at.is_some_and(|words| String::from_utf8_lossy(&bytes).contains(words)) {
            let text = String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ");
            return Err(text.chars().take(COMPLAINT_CHARS_MAX).collect());
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Call {
        Call::new("sh").args(["-c", script])
    }

    #[tokio::test]
    async fn a_command_says_how_it_ended_and_is_fed() {
        let hands = Hands;
        let out = hands.run(&Account::Own, sh("cat; echo oh >&2; exit 3").stdin("hi")).await.unwrap();
        assert_eq!((Some(3), "hi", "oh\n", "oh"), (out.code, out.stdout.as_str(), out.stderr.as_str(), out.complaint().as_str()));
        let out = hands.run(&Account::Own, sh("kill -9 $$")).await.unwrap();
        assert_eq!((None, "killed, without a word"), (out.code, out.complaint().as_str()));
        let out = hands.run(&Account::Own, Call::new("env")).await.unwrap();
        assert_eq!(2, out.stdout.lines().count(), "{}", out.stdout);
        assert!(matches!(hands.run(&Account::Own, Call::new("/nowhere/none")).await, Err(CallFailure::NotRun(_))));
    }

    #[tokio::test]
    async fn our_own_home_is_known() {
        assert!(own_home().await.unwrap().is_absolute());
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("late");
        let mut call = sh(&format!("(sleep 1; touch {}) & wait", file.display()));
        call.timeout_ms = 200;
        let began = std::time::Instant::now();
        let failed = Hands.run(&Account::Own, call).await.unwrap_err();
        assert!(matches!(&failed, CallFailure::Unknown(why) if why.contains("200 ms")), "{failed}");
        assert!(began.elapsed() < Duration::from_millis(900));
        tokio::time::sleep(Duration::from_millis(1_300)).await;
        assert!(!file.exists());
    }

    #[tokio::test]
    async fn one_that_hangs_is_named_whoever_runs_it_for_us() {
        let (name, call) = by(&Account::Named("ann".into()), Call::new("qsub").arg("-terse"));
        assert_eq!(("qsub as ann", Some("sudo")), (name.as_str(), call.program.to_str()));
        let mut call = sh("sleep 1");
        call.timeout_ms = 50;
        let failed = run(&name, call).await.unwrap_err();
        assert_eq!("qsub as ann did not end within 50 ms, and was killed", failed.to_string());
    }

    #[tokio::test]
    async fn one_that_would_try_for_ever_is_not_waited_for() {
        let mut call = sh("echo 'no room, trying again' >&2; sleep 600");
        call.gives_up_at = Some("trying again");
        let failed = Hands.run(&Account::Own, call).await.unwrap_err();
        assert!(matches!(&failed, CallFailure::Unknown(why) if why.contains("no room, trying again")), "{failed}");
    }

    #[test]
    fn accounts_are_names_and_nothing_else() {
        for bad in ["", "-u", "a b", "A", "1a", "a/b", "a;b", &"a".repeat(33)] {
            assert!(Account::named(bad).is_err(), "{bad}");
        }
        assert!(["alice", "_grid", "grid-07"].iter().all(|good| Account::named(good).is_ok()));
    }
}
