//! The tokens of machines that are on their way: one file a machine, `<state>/tokens/<label>.pem`, for its owner only.
//!
//! Invariant: a file is durable before the call that sends it, and stays until no repeat of that call can come, so that each repeat sends the same bytes. When the
//! machine's end is certain it is emptied, and says that its number is spent. A token opens nothing after that time, nor after it was used.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use intergrid_gateway::durable::io_refusal;
use intergrid_proto::Refusal;
use intergrid_proto::net::issue::{Validity, token};
use intergrid_proto::net::join::replace;

/// What nobody has heard of for so long is swept.
const KEPT_MS: u64 = 25 * 3_600_000;
/// A repeat of a launch sends the same token: it is good for as long as repeats may come.
const TOKEN_MS: u64 = KEPT_MS;

/// The token of a machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Token {
    /// Made now: its launch was never asked for.
    New(String),
    /// It was there: its launch may have been asked for before.
    Again(String),
    /// Its machine has ended.
    Spent,
}

/// A directory of tokens.
#[derive(Clone, Debug)]
pub struct Tokens {
    dir: PathBuf,
    /// The site's, with its CA's key.
    identity: PathBuf,
}

impl Tokens {
    /// Under the state directory of a gateway.
    pub fn new(state: &Path, identity: PathBuf) -> Self {
        Tokens { dir: state.join("tokens"), identity }
    }

    /// The token of a machine, made where there is none.
    pub fn of(&self, label: &str) -> Result<Token, Refusal> {
        let path = self.path(label);
        match fs::read_to_string(&path) {
            Ok(text) if text.is_empty() => Ok(Token::Spent),
            Ok(text) => Ok(Token::Again(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let text = token(&self.identity, label, Validity::of(Duration::from_millis(TOKEN_MS)))?;
                self.write(&path, text.as_bytes()).map_err(|e| io_refusal("write", &path, e))?;
                Ok(Token::New(text))
            }
            Err(e) => Err(io_refusal("read", &path, e)),
        }
    }

    /// Its machine has ended. Where there is no file, none was launched from here, or it is long ago.
    pub fn spend(&self, label: &str) {
        let path = self.path(label);
        if fs::metadata(&path).is_ok_and(|file| file.len() > 0)
            && let Err(e) = self.write(&path, b"")
        {
            tracing::warn!("{}: the token of a machine that has ended can't be emptied: {e}", path.display());
        }
    }

    /// Its launch was refused: there is nothing to remember.
    pub fn remove(&self, label: &str) {
        _ = fs::remove_file(self.path(label));
    }

    /// Remove those of which nobody has heard for so long that no repeat will come.
    pub fn sweep(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
            if age > Duration::from_millis(KEPT_MS) {
                _ = fs::remove_file(entry.path());
            }
        }
    }

    fn path(&self, label: &str) -> PathBuf {
        self.dir.join(format!("{label}.pem"))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        replace(path, bytes, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    use intergrid_proto::net::issue::new_site;

    use super::*;

    #[test]
    fn a_token_is_the_same_until_it_is_removed_and_old_ones_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        new_site(dir.path().join("id"), "burst", &[]).unwrap();
        let tokens = Tokens::new(dir.path(), dir.path().join("id"));
        let Token::New(first) = tokens.of("burst-m1").unwrap() else { panic!("there was none") };
        assert_eq!(Token::Again(first.clone()), tokens.of("burst-m1").unwrap());
        assert_eq!(0o600, fs::metadata(dir.path().join("tokens/burst-m1.pem")).unwrap().permissions().mode() & 0o777);
        tokens.sweep();
        assert_eq!(Token::Again(first.clone()), tokens.of("burst-m1").unwrap(), "a young one stays");
        let old = fs::File::options().write(true).open(dir.path().join("tokens/burst-m1.pem")).unwrap();
        old.set_modified(SystemTime::now() - Duration::from_millis(KEPT_MS + 1_000)).unwrap();
        tokens.sweep();
        assert!(matches!(tokens.of("burst-m1").unwrap(), Token::New(second) if second != first));
        tokens.spend("burst-m1");
        assert_eq!(Token::Spent, tokens.of("burst-m1").unwrap());
        tokens.spend("burst-m2");
        assert!(matches!(tokens.of("burst-m2").unwrap(), Token::New(_)));
        tokens.remove("burst-m2");
        assert!(matches!(tokens.of("burst-m2").unwrap(), Token::New(_)));
    }
}
