//! What is done in an account's directory on the shared file system, by that account: the hand's own work, the same in this process and in one that runs as
//! somebody else. Blocking; decides nothing.
//!
//! Layout, all below the account's directory, which is its alone (0700):
//!
//! ```text
//! run/<tag>.<position>.c      the claim, created exclusively: by the task's script, or by us to keep it from ever starting
//! run/<tag>.<position>.x      the exit record, renamed into place
//! run/<tag>.<position>.e      what the LRMS itself said of it
//! <tag>/w.<part>, in/<file>   environment and arguments, of each placement that has tasks in it; inputs, of all
//! <tag>/<position>/w          the task's working directory; stdout and stderr beside it
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use intergrid_proto::limits::{BLOB_PART_BYTES, LIVE_BYTES_MAX};
use serde::{Deserialize, Serialize};

use crate::limits::{RECORD_BYTES_MAX, STREAM_BYTES_MAX};

/// Room for the line that says that a stream was cut.
const CUT_NOTE_BYTES: u64 = 128;
const O_NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();

/// A task of a submission: its tag and position.
pub type Place = (String, u32);

/// What is asked of a hand.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Make the account's directory, where it is not there, and look whether it is good.
    Open,
    /// Make a submission's own directory, the account's first; not where nothing is there of these others, which are open: the account's files are away.
    Begin(String, Vec<String>),
    /// Make a submission's directories, the account's first, and small files in it: names, and how many bytes of what is beside it each has, in order.
    Prepare(String, u32, Vec<(String, u64)>),
    /// Write a part of a file of a submission: its name, mode, and offset.
    Put(String, String, u32, u64),
    /// The names of all claims and exit records.
    Look,
    /// Claims or exit records, whole.
    Read(Vec<String>),
    /// Take these claims, so that the tasks never start.
    Claim(Vec<Place>),
    /// Which files a task has made: its streams where there is something in them, and these.
    Made(Place, Vec<String>),
    /// A part of one, from this offset.
    Part(Place, String, u64),
    /// What a running task has printed, from these offsets in stdout and stderr.
    Peek(Place, u64, u64),
    /// Remove what tasks have left, but for their claims.
    Clear(Vec<Place>),
    /// Remove a submission with all of it. Where its directory was made, these others are open: not while the account's files are away.
    Remove(String, u32, Option<Vec<String>>),
}

/// What a hand answers; bytes come beside it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Done; a part's bytes are beside it.
    Done,
    /// Names.
    Names(Vec<String>),
    /// One for each asked for, and when it was written, in seconds since 1970; None: not there.
    Texts(Vec<Option<(String, u64)>>),
    /// For each: was it ours to take? None: nothing of its submission is there, so that nothing is known.
    Won(Vec<Option<bool>>),
    /// There, and not there.
    Made(Vec<String>, Vec<String>),
    /// So many bytes of stdout are beside it, then those of stderr.
    Peeked(u64),
}

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::other(what.into())
}

/// A submission's directory. The tag can't lead anywhere else.
fn within(base: &Path, tag: &str) -> io::Result<PathBuf> {
    let good = !tag.is_empty() && tag.len() <= 40 && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && tag != "run";
    if good { Ok(base.join(tag)) } else { Err(bad(format!("{tag:?} is not a submission's tag"))) }
}

fn in_run(base: &Path, (tag, position): &Place, kind: &str) -> io::Result<PathBuf> {
    within(base, tag)?;
    Ok(base.join("run").join(format!("{tag}.{position}.{kind}")))
}

/// A file that a task has made: `stdout`, `stderr` or `out/<name>`.
fn made(base: &Path, (tag, position): &Place, name: &str) -> io::Result<PathBuf> {
    let dir = within(base, tag)?.join(position.to_string());
    match name.strip_prefix("out/") {
        Some(file) => {
            intergrid_proto::spec::check_file_name("output", file).map_err(|e| bad(e.message))?;
            Ok(dir.join("w").join(file))
        }
        None if matches!(name, "stdout" | "stderr") => Ok(dir.join(name)),
        None => Err(bad(format!("{name:?} is not an output"))),
    }
}

/// Has a task of this submission a claim here? Whoever took it did so by way of its directory: what is not there has been removed.
fn has_claim(base: &Path, tag: &str) -> bool {
    let is_its = |name: &str| name.strip_prefix(tag).is_some_and(|rest| rest.starts_with('.') && rest.ends_with(".c"));
    fs::read_dir(base.join("run")).into_iter().flatten().flatten().any(|e| e.file_name().to_str().is_some_and(is_its))
}

/// Are the files of a submission that was begun here? Its payload, or the account's owner, may have removed its directory.
fn is_here(base: &Path, tag: &str) -> bool {
    within(base, tag).is_ok_and(|dir| dir.is_dir() || has_claim(base, tag))
}

/// Of submissions that were begun, one is here at least; where there is none, nothing is known.
fn not_away(base: &Path, tags: &[String]) -> io::Result<()> {
    match tags.first().filter(|_| !tags.iter().any(|tag| is_here(base, tag))) {
        Some(tag) => Err(bad(format!("the directory of submission {tag}, which is open, is not there: its files are away"))),
        None => Ok(()),
    }
}

fn directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Do one thing. `base` is the account's directory.
pub fn serve(base: &Path, ask: Ask, data: &[u8]) -> io::Result<(Answer, Vec<u8>)> {
    let done = Ok((Answer::Done, Vec::new()));
    match ask {
        Ask::Open => open(base).and(done),
        Ask::Begin(tag, others) => {
            // What is made in a mount point without its file system is found by no machine.
            not_away(base, &others)?;
            open(base)?;
            directory(&within(base, &tag)?)?;
            File::open(base)?.sync_all().and(done)
        }
        Ask::Prepare(tag, positions, files) => {
            open(base)?;
            let dir = within(base, &tag)?;
            directory(&dir)?;
            for position in 1..=positions {
                let task = dir.join(position.to_string());
                directory(&task)?;
                directory(&task.join("w"))?;
            }
            let mut rest = data;
            for (name, length) in files {
                let short = || bad(format!("{name:?} of {length} bytes is not whole"));
                let (bytes, more) = usize::try_from(length).ok().and_then(|n| rest.split_at_checked(n)).ok_or_else(short)?;
                put(base, &tag, &name, 0o600, 0, bytes)?;
                rest = more;
            }
            done
        }
        Ask::Put(tag, name, mode, offset) => put(base, &tag, &name, mode, offset, data).and(done),
        Ask::Look => {
            let names = fs::read_dir(base.join("run"))?.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()));
            Ok((Answer::Names(names.collect::<io::Result<_>>()?), Vec::new()))
        }
        Ask::Read(names) => {
            let text = |name: &String| -> io::Result<Option<(String, u64)>> {
                if name.contains('/') || name.starts_with('.') {
                    return Err(bad(format!("{name:?} is neither a claim nor a record")));
                }
                match OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(base.join("run").join(name)) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(e),
                    Ok(file) => {
                        let (mut bytes, at_s) = (Vec::new(), file.metadata()?.mtime());
                        file.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
                        Ok(Some((String::from_utf8_lossy(&bytes).into_owned(), u64::try_from(at_s).unwrap_or(0))))
                    }
                }
            };
            Ok((Answer::Texts(names.iter().map(text).collect::<io::Result<_>>()?), Vec::new()))
        }
        Ask::Claim(places) => {
            let create = |path: PathBuf| -> io::Result<Option<bool>> {
                let say = |file: &mut File| file.write_all(WITHDRAWN.as_bytes()).and_then(|()| file.sync_all());
                match create_whole(&path, say) {
                    Ok(()) => Ok(Some(true)),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                    // Ours from before a restart: still nobody has started it.
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(Some(fs::read_to_string(path)? == WITHDRAWN)),
                    Err(e) => Err(e),
                }
            };
            let take = |place: &Place| -> io::Result<Option<bool>> {
                // As its script does, by way of the submission's directory: a `run` that was made anew while the files are away has no claims.
                match create(within(base, &place.0)?.join(format!("../run/{}.{}.c", place.0, place.1)))? {
                    None if has_claim(base, &place.0) => create(in_run(base, place, "c")?),
                    known => Ok(known),
                }
            };
            let won: Vec<Option<bool>> = places.iter().map(take).collect::<io::Result<_>>()?;
            if won.contains(&Some(true)) {
                File::open(base.join("run"))?.sync_all()?;
            }
            Ok((Answer::Won(won), Vec::new()))
        }
        Ask::Made(place, wanted) => {
            // What is away is not what was never made.
            if !in_run(base, &place, "x")?.exists() {
                not_away(base, std::slice::from_ref(&place.0))?;
            }
            let (mut there, mut missing) = (Vec::new(), Vec::new());
            for name in ["stdout", "stderr"] {
                let path = made(base, &place, name)?;
                if fs::symlink_metadata(&path).is_ok_and(|m| m.is_file() && m.len() > 0) {
                    cut(&path)?;
                    there.push(name.to_string());
                }
            }
            for name in wanted {
                // A link could lead anywhere: only what the task itself made is sent.
                let is_there = fs::symlink_metadata(made(base, &place, &format!("out/{name}"))?).is_ok_and(|m| m.is_file());
                if is_there { there.push(format!("out/{name}")) } else { missing.push(name) }
            }
            Ok((Answer::Made(there, missing), Vec::new()))
        }
        Ask::Part(place, name, offset) => {
            let mut file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(made(base, &place, &name)?)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::new();
            file.take(BLOB_PART_BYTES as u64).read_to_end(&mut bytes)?;
            Ok((Answer::Done, bytes))
        }
        Ask::Peek(place, stdout, stderr) => {
            let mut bytes = printed(&made(base, &place, "stdout")?, stdout)?;
            let n = bytes.len() as u64;
            bytes.extend(printed(&made(base, &place, "stderr")?, stderr)?);
            Ok((Answer::Peeked(n), bytes))
        }
        Ask::Clear(places) => {
            for place in &places {
                gone(fs::remove_dir_all(within(base, &place.0)?.join(place.1.to_string())))?;
            }
            done
        }
        Ask::Remove(tag, positions, others) => {
            // What is away is not removed. Of what was removed just before a restart nothing is here.
            if let Some(others) = others.filter(|_| !is_here(base, &tag)) {
                File::open(base.join("run"))?;
                not_away(base, &others)?;
            }
            gone(fs::remove_dir_all(within(base, &tag)?))?;
            for position in 1..=positions {
                for kind in ["c", "n", "x", "e"] {
                    gone(fs::remove_file(in_run(base, &(tag.clone(), position), kind)?))?;
                }
            }
            done
        }
    }
}

/// What a claim of ours says.
pub const WITHDRAWN: &str = "withdrawn\n";

/// A part of a submission's file.
fn put(base: &Path, tag: &str, name: &str, mode: u32, offset: u64, data: &[u8]) -> io::Result<()> {
    let dir = within(base, tag)?;
    let file = match name.strip_prefix("in/") {
        Some(file) => {
            intergrid_proto::spec::check_file_name("input", file).map_err(|e| bad(e.message))?;
            directory(&dir.join("in"))?;
            dir.join("in").join(file)
        }
        None if name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.') && name.starts_with(|c: char| c.is_ascii_alphabetic()) => dir.join(name),
        None => return Err(bad(format!("{name:?} is not a submission's file"))),
    };
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(offset == 0).mode(mode & 0o777).custom_flags(O_NOFOLLOW);
    let mut out = options.open(file)?;
    out.seek(SeekFrom::Start(offset))?;
    out.write_all(data)
}

/// A file that was not there. One that can't be written is not there afterwards either: half a claim would be nobody's.
fn create_whole(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    write(&mut file).inspect_err(|_| _ = fs::remove_file(path))
}

/// The account's directory is there, a directory, and the account's alone.
fn open(base: &Path) -> io::Result<()> {
    if !base.is_absolute() || base.components().any(|c| matches!(c, std::path::Component::ParentDir)) {
        return Err(bad("it is not an absolute path without `..`"));
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(base)?;
    let (found, me) = (fs::symlink_metadata(base)?, rustix::process::geteuid().as_raw());
    if !found.is_dir() || found.uid() != me || found.mode() & 0o077 != 0 {
        return Err(bad(format!(
            "it must be a directory of uid {me} alone (mode 0700), and has uid {} and mode {:o}",
            found.uid(),
            found.mode() & 0o7777
        )));
    }
    directory(&base.join("run"))
}

/// What one look shows of a stream; nothing where it is not there yet.
fn printed(path: &Path, from: u64) -> io::Result<Vec<u8>> {
    let mut file = match OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let from = from.min(STREAM_BYTES_MAX);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take((STREAM_BYTES_MAX - from).min(LIVE_BYTES_MAX as u64)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A stream that is too long is cut, and says so.
fn cut(path: &Path) -> io::Result<()> {
    let size = fs::symlink_metadata(path)?.len();
    if size > STREAM_BYTES_MAX + CUT_NOTE_BYTES {
        let mut file = OpenOptions::new().append(true).custom_flags(O_NOFOLLOW).open(path)?;
        file.set_len(STREAM_BYTES_MAX)?;
        file.write_all(format!("\n[intergrid: cut after {STREAM_BYTES_MAX} of {size} bytes]\n").as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_can_t_be_written_can_be_taken_later() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("a");
        serve(&base, Ask::Begin("t-1".into(), vec![]), b"").unwrap();
        let place = ("t-1".to_string(), 1);
        let path = in_run(&base, &place, "c").unwrap();
        let full = create_whole(&path, |file| file.write_all(b"with").and(Err(io::ErrorKind::StorageFull.into())));
        assert_eq!((io::ErrorKind::StorageFull, false), (full.unwrap_err().kind(), path.exists()));
        assert_eq!(Answer::Won(vec![Some(true)]), serve(&base, Ask::Claim(vec![place]), b"").unwrap().0);
        // What is there is not touched.
        assert_eq!(io::ErrorKind::AlreadyExists, create_whole(&path, |_| Err(io::ErrorKind::StorageFull.into())).unwrap_err().kind());
        assert_eq!(WITHDRAWN, fs::read_to_string(&path).unwrap());
    }

    #[test]
    fn while_files_are_away_nothing_is_taken_told_or_made() {
        let dir = tempfile::tempdir().unwrap();
        let (base, away) = (dir.path().join("a"), dir.path().join("away"));
        let ask = |ask| serve(&base, ask, b"");
        ask(Ask::Prepare("t-1".into(), 1, vec![])).unwrap();
        fs::rename(&base, &away).unwrap();
        // Whatever else is in their place.
        ask(Ask::Prepare("t-2".into(), 1, vec![])).unwrap();
        let both = || vec![("t-1".to_string(), 1), ("t-2".to_string(), 1)];
        assert_eq!(Answer::Won(vec![None, Some(true)]), ask(Ask::Claim(both())).unwrap().0);
        assert!(!base.join("run/t-1.1.c").exists());
        let made = || ask(Ask::Made(both()[0].clone(), vec![]));
        assert!(made().unwrap_err().to_string().contains("away"));
        let begin = |others: &[&str]| ask(Ask::Begin("t-3".into(), others.iter().map(|t| t.to_string()).collect()));
        assert!(begin(&["t-1", "t-0"]).unwrap_err().to_string().contains("t-1") && !base.join("t-3").exists());
        assert!(begin(&["t-1", "t-2"]).is_ok() && base.join("t-3").is_dir());
        fs::remove_dir_all(&base).unwrap();
        assert!(begin(&["t-1"]).is_err() && !base.exists());
        fs::rename(&away, &base).unwrap();
        assert!(made().is_ok());
        assert_eq!(Answer::Won(vec![Some(true)]), ask(Ask::Claim(vec![both()[0].clone()])).unwrap().0);
        // What is away is not removed, and what was is no more.
        let remove = |others: &[&str]| ask(Ask::Remove("t-1".into(), 1, Some(others.iter().map(|t| t.to_string()).collect())));
        fs::rename(&base, &away).unwrap();
        assert!(remove(&[]).is_err());
        ask(Ask::Prepare("t-2".into(), 1, vec![])).unwrap();
        assert!(remove(&["t-0"]).is_err() && remove(&["t-2"]).is_ok() && ask(Ask::Remove("t-9".into(), 1, None)).is_ok());
        fs::remove_dir_all(&base).unwrap();
        fs::rename(&away, &base).unwrap();
        // With its record it is over: what somebody has removed is missing.
        fs::remove_dir_all(base.join("t-1")).unwrap();
        fs::write(base.join("run/t-1.1.x"), "v2").unwrap();
        assert!(made().is_ok());
        assert!(remove(&[]).is_ok() && !base.join("run/t-1.1.c").exists());
    }

    #[test]
    fn a_claim_tells_that_a_directory_was_removed_and_is_not_away() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("a");
        let ask = |ask| serve(&base, ask, b"");
        ask(Ask::Prepare("t-1".into(), 2, vec![])).unwrap();
        fs::remove_dir_all(base.join("t-1")).unwrap();
        let claim = || ask(Ask::Claim(vec![("t-1".into(), 2)])).unwrap().0;
        let made = || ask(Ask::Made(("t-1".into(), 1), vec!["o".into()]));
        let begin = || ask(Ask::Begin("t-2".into(), vec!["t-1".into()]));
        // Of another, whose tag begins as its does.
        fs::write(base.join("run/t-12.1.c"), "77 n1 5\n").unwrap();
        assert!(claim() == Answer::Won(vec![None]) && made().is_err() && begin().is_err());
        fs::write(base.join("run/t-1.1.c"), "78 n1 5\n").unwrap();
        assert_eq!(Answer::Made(vec![], vec!["o".into()]), made().unwrap().0);
        assert!(claim() == Answer::Won(vec![Some(true)]) && begin().is_ok());
        ask(Ask::Remove("t-1".into(), 2, Some(vec![]))).unwrap();
        assert_eq!(Answer::Names(vec!["t-12.1.c".into()]), ask(Ask::Look).unwrap().0);
    }

    #[test]
    fn a_claim_is_taken_once_and_names_lead_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("a");
        let ask = |ask, data: &[u8]| serve(&base, ask, data);
        let words = |lengths: [u64; 2]| Ask::Prepare("t-1".into(), 2, vec![("w.1".into(), lengths[0]), ("w.2".into(), lengths[1])]);
        ask(words([3, 2]), b"onetw").unwrap();
        assert_eq!((b"one".to_vec(), b"tw".to_vec()), (fs::read(base.join("t-1/w.1")).unwrap(), fs::read(base.join("t-1/w.2")).unwrap()));
        assert!(ask(words([3, 3]), b"onetw").is_err_and(|e| e.to_string().contains("w.2")));
        fs::write(base.join("run/t-1.2.c"), "77 n1 5\n").unwrap();
        let both = || vec![("t-1".to_string(), 1), ("t-1".to_string(), 2)];
        for _ in 0..2 {
            assert_eq!(Answer::Won(vec![Some(true), Some(false)]), ask(Ask::Claim(both()), b"").unwrap().0);
        }
        ask(Ask::Put("t-1".into(), "w.2".into(), 0o600, 0), b"x").unwrap();
        for (tag, name) in [("../t", "a"), ("run", "a"), ("t-1", "../a"), ("t-1", "in/../a"), ("t-1", "in/.."), ("t-1", ".a")] {
            assert!(ask(Ask::Put(tag.into(), name.into(), 0o600, 0), b"x").is_err(), "{tag} {name}");
        }
        assert!(ask(Ask::Read(vec!["../t-1/w.2".into()]), b"").is_err());
        let place = ("t-1".to_string(), 1);
        let peek = |from, more| ask(Ask::Peek(place.clone(), from, more), b"").unwrap();
        assert_eq!((Answer::Peeked(0), vec![]), peek(0, 0));
        fs::write(base.join("t-1/1/stdout"), "one two").unwrap();
        fs::write(base.join("t-1/1/stderr"), "three").unwrap();
        assert_eq!((Answer::Peeked(3), b"twothree".to_vec()), peek(4, 0));
        assert_eq!((Answer::Peeked(0), vec![]), peek(99, u64::MAX));
        fs::write(base.join("t-1/1/stdout"), vec![b'x'; STREAM_BYTES_MAX as usize + 1_000]).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", base.join("t-1/1/w/link")).unwrap();
        fs::write(base.join("t-1/1/w/o"), "hello").unwrap();
        let made = ask(Ask::Made(place.clone(), vec!["o".into(), "link".into()]), b"").unwrap().0;
        assert_eq!(Answer::Made(vec!["stdout".into(), "stderr".into(), "out/o".into()], vec!["link".into()]), made);
        assert!(fs::metadata(base.join("t-1/1/stdout")).unwrap().len() < STREAM_BYTES_MAX + CUT_NOTE_BYTES);
        assert!(ask(Ask::Part(place.clone(), "out/link".into(), 0), b"").is_err());
        let part = |from| ask(Ask::Part(place.clone(), "out/o".into(), from), b"").unwrap().1;
        assert_eq!((b"llo".to_vec(), vec![]), (part(2), part(5)));
        // No question takes longer than its part does, however large the file is.
        File::create(base.join("t-1/1/w/large")).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(BLOB_PART_BYTES, ask(Ask::Part(place.clone(), "out/large".into(), 1 << 39), b"").unwrap().1.len());
        ask(Ask::Remove("t-1".into(), 2, Some(vec![])), b"").unwrap();
        assert_eq!((Answer::Names(vec![]), vec![]), ask(Ask::Look, b"").unwrap());
        fs::set_permissions(&base, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert!(ask(Ask::Open, b"").unwrap_err().to_string().contains("mode 755"));
    }
}
