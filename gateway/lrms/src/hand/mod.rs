//! A hand: what works in an account's directory, as that account. For our own account it is this process; for another one a process of its own, started by
//! `sudo -n -u` and kept, so that a file never changes its owner by path.
//!
//! One question at a time; one that is not answered in time ends the process, and the next question starts another.

pub mod files;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::command::Account;
use crate::limits::{HAND_FRAME_BYTES_MAX, HAND_TIMEOUT_MS};
use files::{Answer, Ask};

/// The account's directory, and who works in it.
pub struct Hand {
    base: PathBuf,
    account: Account,
    /// Our own program, which knows how to be a hand.
    program: PathBuf,
    process: Mutex<Option<Child>>,
}

impl Hand {
    /// Nothing is started yet.
    pub fn new(account: Account, base: PathBuf, program: PathBuf) -> Arc<Hand> {
        Arc::new(Hand { base, account, program, process: Mutex::new(None) })
    }

    /// Where it works.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Have one thing done.
    pub async fn ask(&self, ask: Ask, data: Vec<u8>) -> Result<(Answer, Vec<u8>), String> {
        let patience = Duration::from_millis(HAND_TIMEOUT_MS);
        let late = |_| format!("{}: nothing was heard of it within {HAND_TIMEOUT_MS} ms; is the shared file system there?", self.base.display());
        let failed = |e: String| format!("{} (as {}): {e}", self.base.display(), self.account);
        let name = match &self.account {
            Account::Own => {
                let base = self.base.clone();
                let work = tokio::task::spawn_blocking(move || files::serve(&base, ask, &data));
                return timeout(patience, work).await.map_err(late)?.map_err(|e| e.to_string())?.map_err(|e| failed(e.to_string()));
            }
            Account::Named(name) => name,
        };
        let mut process = self.process.lock().await;
        // Taken out while it works: where it fails or is late, it is gone.
        let mut child = match process.take() {
            Some(child) => child,
            None => self.start(name).map_err(|e| failed(format!("sudo can't be run: {e}")))?,
        };
        let answer = timeout(patience, talk(&mut child, &ask, &data)).await.map_err(late)?;
        let (answer, bytes) = answer.map_err(|e| failed(format!("{e}; may this process `sudo -n -u {name} {}`?", self.program.display())))?;
        *process = Some(child);
        answer.map(|a| (a, bytes)).map_err(failed)
    }

    fn start(&self, name: &str) -> io::Result<Child> {
        let mut command = Command::new("sudo");
        command.args(["-n", "-u", name, "--"]).arg(&self.program).arg("lrms-hand").arg(&self.base);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn()
    }
}

type Replied = Result<Answer, String>;

async fn talk(child: &mut Child, ask: &Ask, data: &[u8]) -> io::Result<(Replied, Vec<u8>)> {
    let none = || io::Error::other("it has no pipe");
    let out = child.stdin.as_mut().ok_or_else(none)?;
    out.write_all(&frame(ask, data)?).await?;
    out.flush().await?;
    let from = child.stdout.as_mut().ok_or_else(none)?;
    let mut sizes = [0; 8];
    from.read_exact(&mut sizes).await?;
    let (head, body) = lengths(sizes)?;
    let (mut text, mut bytes) = (vec![0; head], vec![0; body]);
    from.read_exact(&mut text).await?;
    from.read_exact(&mut bytes).await?;
    Ok((parse(&text)?, bytes))
}

fn frame(what: &impl Serialize, data: &[u8]) -> io::Result<Vec<u8>> {
    let head = serde_json::to_vec(what)?;
    let length = |n: usize| u32::try_from(n).map(u32::to_be_bytes).map_err(io::Error::other);
    Ok([&length(head.len())?[..], &length(data.len())?, &head, data].concat())
}

fn lengths(sizes: [u8; 8]) -> io::Result<(usize, usize)> {
    let [a, b, c, d, e, f, g, h] = sizes;
    let (head, body) = (u32::from_be_bytes([a, b, c, d]) as usize, u32::from_be_bytes([e, f, g, h]) as usize);
    if head + body > HAND_FRAME_BYTES_MAX {
        return Err(io::Error::other(format!("a message of {} bytes, at most {HAND_FRAME_BYTES_MAX} are taken", head + body)));
    }
    Ok((head, body))
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> io::Result<T> {
    Ok(serde_json::from_slice(text)?)
}

/// Be the hand of the account that this process runs as, until standard input ends.
pub fn serve(base: &Path, mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    loop {
        let mut sizes = [0; 8];
        match from.read_exact(&mut sizes) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        let (head, body) = lengths(sizes)?;
        let (mut text, mut data) = (vec![0; head], vec![0; body]);
        from.read_exact(&mut text)?;
        from.read_exact(&mut data)?;
        let (answer, bytes): (Replied, Vec<u8>) = match files::serve(base, parse(&text)?, &data) {
            Ok((answer, bytes)) => (Ok(answer), bytes),
            Err(e) => (Err(e.to_string()), Vec::new()),
        };
        to.write_all(&frame(&answer, &bytes)?)?;
        to.flush()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_answers_each_question_and_ends_with_its_input() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("h");
        let questions =
            [frame(&Ask::Open, b"").unwrap(), frame(&Ask::Read(vec!["../x".into()]), b"").unwrap(), frame(&Ask::Look, b"").unwrap()].concat();
        let mut said = Vec::new();
        serve(&base, &questions[..], &mut said).unwrap();
        let mut answers: Vec<Replied> = Vec::new();
        let mut rest = &said[..];
        while let Some((sizes, more)) = rest.split_first_chunk::<8>() {
            let (head, body) = lengths(*sizes).unwrap();
            answers.push(parse(&more[..head]).unwrap());
            rest = &more[head + body..];
        }
        assert_eq!((Ok(Answer::Done), Ok(Answer::Names(vec![]))), (answers[0].clone(), answers[2].clone()));
        assert!(answers[1].is_err() && serve(&base, &[0xff; 8][..], io::sink()).is_err());
    }
}
