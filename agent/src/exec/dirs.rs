//! Directories of tasks, their streams, and the cache of content, all below `state`. A task's directory is there from just before its process starts until
//! its end is durable: in one boot, a claimed task without one has never been started.
//!
//! The files that stdout and stderr go to are kept and used again as long as nothing is written to them, and so are directories that were left empty: to
//! create and delete inodes costs more than all else that is done for a short task (ext4 without a journal looks at every one deleted in the last
//! seconds). A stream with something in it moves into its task's directory. Some of these files stay open, too: to find, open and empty three for each
//! task costs as much as to start it.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use intergrid_proto::BlobHash;
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, fcntl_getfl, fstat, ftruncate, openat, renameat, statat};

use crate::core::Key;
use crate::limits::{LINK_BYTES_MIN, OPEN_STREAMS_MAX};
use crate::plan::Plan;

/// The files that a task's stdout and stderr go to.
pub const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// The same, open.
#[derive(Debug)]
pub struct Streams {
    /// Of stdout and stderr.
    pub files: [OwnedFd; 2],
    inodes: [u64; 2],
    flags: [OFlags; 2],
}

/// Of a task's directory.
const DIRECTORY_MODE: u32 = 0o755;
const STREAM: OFlags = OFlags::WRONLY.union(OFlags::APPEND).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const NEW: OFlags = OFlags::CREATE.union(OFlags::TRUNC);

/// Where things are.
#[derive(Clone, Debug)]
pub struct Dirs {
    tasks: PathBuf,
    streams: PathBuf,
    blobs: PathBuf,
    /// Which GPUs a task has, where it has some: for an agent that finds it running.
    gpus: PathBuf,
    /// Kept open, so that a rename or a look need not walk the whole path.
    tasks_fd: Arc<OwnedFd>,
    streams_fd: Arc<OwnedFd>,
    /// By their pair's number.
    open: Arc<Mutex<Vec<Option<Arc<Streams>>>>>,
}

impl Dirs {
    /// Below this directory, which is made absolute; makes what is missing.
    pub fn new(state: &Path) -> io::Result<Self> {
        let state = state.canonicalize()?;
        let (tasks, streams, blobs) = (state.join("tasks"), state.join("streams"), state.join("blobs"));
        // A task that an agent before us started may still hold one of these open.
        match fs::remove_dir_all(&streams) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => fs::create_dir_all(&streams)?,
        }
        fs::create_dir_all(&tasks)?;
        fs::create_dir_all(&blobs)?;
        let open = |dir: &Path| fs::File::open(dir).map(|f| Arc::new(OwnedFd::from(f)));
        let (tasks_fd, streams_fd) = (open(&tasks)?, open(&streams)?);
        Ok(Dirs { tasks, streams, blobs, gpus: state.join("gpus"), tasks_fd, streams_fd, open: Arc::default() })
    }

    /// A task's own directory.
    pub fn task(&self, key: Key) -> PathBuf {
        self.tasks.join(Self::name(key))
    }

    /// Of some name in it.
    pub fn file(&self, key: Key, name: &str) -> PathBuf {
        self.task(key).join(name.strip_prefix("out/").unwrap_or(name))
    }

    /// A file for a stream, by the number of its pair and its name.
    pub fn stream(&self, pair: u32, name: &str) -> PathBuf {
        self.streams.join(Self::stream_name(pair, name))
    }

    fn stream_name(pair: u32, name: &str) -> String {
        format!("{pair}.{name}")
    }

    fn open(&self) -> MutexGuard<'_, Vec<Option<Arc<Streams>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files of a pair, empty. Whoever has the pair is alone with them, but for what an earlier task has left running outside of its group.
    pub fn streams(&self, pair: u32) -> io::Result<Arc<Streams>> {
        let known = self.open().get(pair as usize).cloned().flatten();
        if let Some(streams) = known.filter(|streams| self.are_in_place(pair, streams)) {
            return Ok(streams);
        }
        let one = |name: &str| openat(&*self.streams_fd, Self::stream_name(pair, name), STREAM | NEW, Mode::from_raw_mode(0o644));
        let files = [one(STREAMS[0])?, one(STREAMS[1])?];
        let inode = |i: usize| fstat(&files[i]).map(|s| s.st_ino);
        let flags = |i: usize| fcntl_getfl(&files[i]);
        let (inodes, flags) = ([inode(0)?, inode(1)?], [flags(0)?, flags(1)?]);
        let streams = Arc::new(Streams { files, inodes, flags });
        if pair < OPEN_STREAMS_MAX {
            let mut open = self.open();
            if open.len() <= pair as usize {
                open.resize(pair as usize + 1, None);
            }
            open[pair as usize] = Some(streams.clone());
        }
        Ok(streams)
    }

    /// Are these still the files of a pair? Now they are empty.
    fn are_in_place(&self, pair: u32, streams: &Streams) -> bool {
        let is = |(i, name): (usize, &str)| {
            let stat = statat(&*self.streams_fd, Self::stream_name(pair, name), AtFlags::SYMLINK_NOFOLLOW);
            stat.is_ok_and(|s| s.st_ino == streams.inodes[i] && (s.st_size == 0 || ftruncate(&streams.files[i], 0).is_ok()))
        };
        STREAMS.into_iter().enumerate().all(is)
    }

    /// Move streams into their task's directory where they have something in them: which ones have.
    pub fn keep_streams(&self, pair: u32, key: Key) -> Vec<String> {
        let open = self.open().get_mut(pair as usize).and_then(Option::take);
        let (mut kept, mut as_opened) = (Vec::new(), open.is_some());
        for (i, name) in STREAMS.into_iter().enumerate() {
            let size = match &open {
                Some(open) => fstat(&open.files[i]),
                None => statat(&*self.streams_fd, Self::stream_name(pair, name), AtFlags::SYMLINK_NOFOLLOW),
            };
            let size = size.map_or(0, |s| s.st_size);
            // The flags are one for all who have it open.
            as_opened &= size == 0 && open.as_ref().is_some_and(|open| fcntl_getfl(&open.files[i]).is_ok_and(|now| now == open.flags[i]));
            if size > 0 && self.keep_stream(pair, key, name) {
                kept.push(name.to_string());
            }
        }
        if as_opened && let Some(place) = self.open().get_mut(pair as usize) {
            *place = open;
        }
        kept
    }

    fn keep_stream(&self, pair: u32, key: Key, name: &str) -> bool {
        let (from, to) = (self.stream(pair, name), self.file(key, name));
        if to.is_dir() {
            let _ = fs::remove_dir_all(&to);
        }
        fs::rename(&from, &to).inspect_err(|e| tracing::warn!("{name} of task {}.{} is lost: {e}", key.0, key.1)).is_ok()
    }

    /// Note the GPUs that a task is about to have.
    pub fn hold_gpus(&self, key: Key, names: &str) -> io::Result<()> {
        fs::create_dir_all(&self.gpus)?;
        fs::write(self.gpus.join(Self::name(key)), names)
    }

    /// The GPUs that were noted for a task.
    pub fn held_gpus(&self, key: Key) -> String {
        fs::read_to_string(self.gpus.join(Self::name(key))).unwrap_or_default()
    }

    /// The task is over.
    pub fn free_gpus(&self, key: Key) {
        let _ = fs::remove_file(self.gpus.join(Self::name(key)));
    }

    /// Content in the cache. Programs are kept apart, so that their mode is right where they are linked to.
    pub fn blob(&self, hash: BlobHash, executable: bool) -> PathBuf {
        self.blobs.join(if executable { format!("{hash}.x") } else { hash.to_string() })
    }

    /// Where content is written before it has been verified.
    pub fn incoming(&self, hash: BlobHash) -> PathBuf {
        self.blobs.join(format!("{hash}.part"))
    }

    fn name(key: Key) -> String {
        format!("{}.{}", key.0, key.1)
    }

    fn spare(n: u32) -> String {
        format!("spare.{n}")
    }

    /// Keep the directory of a task that has ended, for another one. False: it is not as it was made.
    pub fn keep(&self, key: Key, n: u32) -> bool {
        self.hand_on(&Self::name(key), &Self::spare(n)).is_some()
    }

    /// Give the directory of a task that has ended to a task that is about to start: it is open. None: it is not as it was made.
    pub fn give(&self, from: Key, to: Key) -> Option<OwnedFd> {
        self.hand_on(&Self::name(from), &Self::name(to))
    }

    fn hand_on(&self, from: &str, to: &str) -> Option<OwnedFd> {
        // To note when it was read would be a write.
        let dir = openat(&*self.tasks_fd, from, DIRECTORY | OFlags::RDONLY | OFlags::NOATIME, Mode::empty()).ok()?;
        let moved = Self::is_as_made(&dir) && renameat(&*self.tasks_fd, from, &*self.tasks_fd, to).is_ok();
        moved.then_some(dir)
    }

    /// A task's directory, to start in.
    pub fn open_task(&self, key: Key) -> io::Result<OwnedFd> {
        Ok(openat(&*self.tasks_fd, Self::name(key), DIRECTORY | OFlags::PATH, Mode::empty())?)
    }

    /// Its mode, and nothing in it.
    fn is_as_made(dir: &OwnedFd) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 512];
        let mut entries = RawDir::new(dir, &mut buffer);
        while let Some(entry) = entries.next() {
            if !entry.is_ok_and(|e| matches!(e.file_name().to_bytes(), b"." | b"..")) {
                return false;
            }
        }
        fstat(dir).is_ok_and(|s| s.st_mode & 0o7777 == DIRECTORY_MODE)
    }

    fn create(path: &Path) -> io::Result<()> {
        fs::create_dir(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(DIRECTORY_MODE))
    }

    /// Make a task's directory, with its files in it. It has its name only when it is whole. `spare`: one that was kept.
    pub fn make(&self, key: Key, plan: &Plan, spare: Option<u32>) -> io::Result<PathBuf> {
        let dir = self.task(key);
        if let Some(n) = spare
            && renameat(&*self.tasks_fd, Self::spare(n), &*self.tasks_fd, Self::name(key)).is_ok()
        {
            return Ok(dir);
        }
        if plan.is_bare() {
            Self::create(&dir)?;
            return Ok(dir);
        }
        let new = self.tasks.join(format!("{}.{}.new", key.0, key.1));
        match Self::create(&new) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_dir_all(&new)?;
                Self::create(&new)?;
            }
            other => other?,
        }
        for (file, executable) in plan.files() {
            let (from, to) = (self.blob(file.hash, executable), new.join(&file.name));
            // Large programs are shared: nothing can write to a binary that runs. All else is copied, because a task may change what is its own.
            let linked = executable && file.size >= LINK_BYTES_MIN && fs::hard_link(&from, &to).is_ok();
            if !linked {
                fs::copy(&from, &to)?;
            }
        }
        fs::rename(&new, &dir)?;
        Ok(dir)
    }

    /// Remove a task's directory, with whatever is in it.
    pub fn remove(&self, key: Key) {
        let dir = self.task(key);
        match fs::remove_dir(&dir) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(_) => {
                if let Err(e) = fs::remove_dir_all(&dir) {
                    tracing::warn!("can't remove {}: {e}", dir.display());
                }
            }
        }
    }

    /// Remove directories that no task in `keep` owns, and half-fetched content: what a crash left.
    pub fn sweep(&self, keep: impl Fn(Key) -> bool) {
        for entry in fs::read_dir(&self.tasks).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let key = name.split_once('.').and_then(|(n, t)| Some((n.parse().ok()?, t.parse().ok()?)));
            if !key.is_some_and(&keep) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        for entry in fs::read_dir(&self.blobs).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|x| x == "part") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Remove the content least recently fetched beyond `bytes_max`, but nothing in use.
    pub fn shrink(&self, bytes_max: u64, in_use: impl Fn(&str) -> bool) {
        let entries = fs::read_dir(&self.blobs).into_iter().flatten().flatten();
        let mut files: Vec<_> =
            entries.filter_map(|e| e.metadata().ok().map(|m| (m.modified().ok(), m.len(), e.file_name().to_string_lossy().into_owned()))).collect();
        files.sort();
        let mut size: u64 = files.iter().map(|f| f.1).sum();
        for (_, len, name) in files.iter().filter(|f| !in_use(f.2.split('.').next().unwrap_or(""))) {
            if size <= bytes_max {
                return;
            }
            if fs::remove_file(self.blobs.join(name)).is_ok() {
                size -= len;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use intergrid_proto::JobSpec;
    use intergrid_proto::spec::File;

    #[test]
    fn a_directory_has_its_files_and_goes_whole() {
        let state = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(state.path()).unwrap();
        let (program, input) = (BlobHash::of(b"#!/bin/sh\n"), BlobHash::of(b"data"));
        fs::write(dirs.blob(program, true), "#!/bin/sh\n").unwrap();
        fs::set_permissions(dirs.blob(program, true), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dirs.blob(input, false), "data").unwrap();
        let mut spec = JobSpec::new(["x"]);
        spec.executable = Some(File { name: "run".into(), hash: program, size: 10, executable: true });
        spec.inputs = vec![File { name: "in".into(), hash: input, size: 4, executable: false }];
        let plan = Plan::new(&spec.encode()).unwrap();
        let dir = dirs.make((1, 2), &plan, None).unwrap();
        assert_eq!(0o755, fs::metadata(dir.join("run")).unwrap().permissions().mode() & 0o777);
        fs::write(dir.join("in"), "changed").unwrap();
        assert_eq!("data", fs::read_to_string(dirs.blob(input, false)).unwrap());
        fs::create_dir(dir.join("more")).unwrap();
        dirs.remove((1, 2));
        assert!(!dir.exists());
        let bare = Plan::new(&JobSpec::new(["x"]).encode()).unwrap();
        let dir = dirs.make((1, 2), &bare, None).unwrap();
        fs::write(dir.join("x"), "").unwrap();
        assert!(!dirs.keep((1, 2), 0));
        fs::remove_file(dir.join("x")).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!dirs.keep((1, 2), 0));
        fs::set_permissions(&dir, fs::Permissions::from_mode(DIRECTORY_MODE)).unwrap();
        fs::create_dir(dir.join("x")).unwrap();
        assert!(dirs.give((1, 2), (1, 9)).is_none());
        fs::remove_dir(dir.join("x")).unwrap();
        assert!(dirs.give((1, 2), (1, 9)).is_some() && dirs.give((1, 9), (1, 2)).is_some() && dirs.give((1, 9), (1, 2)).is_none());
        assert!(dirs.keep((1, 2), 0) && !dir.exists());
        assert!(dirs.make((1, 5), &bare, Some(0)).unwrap().exists());
        dirs.remove((1, 5));
        dirs.make((1, 3), &plan, None).unwrap();
        dirs.make((1, 4), &plan, None).unwrap();
        fs::write(dirs.incoming(input), "da").unwrap();
        dirs.sweep(|k| k == (1, 4));
        assert_eq!((false, true, false), (dirs.task((1, 3)).exists(), dirs.task((1, 4)).exists(), dirs.incoming(input).exists()));
        dirs.shrink(5, |h| h == program.to_string());
        assert_eq!((true, false), (dirs.blob(program, true).exists(), dirs.blob(input, false).exists()));
    }

    #[test]
    fn streams_are_used_again_until_something_is_in_them() {
        let state = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(state.path()).unwrap();
        let bare = Plan::new(&JobSpec::new(["x"]).encode()).unwrap();
        // One that is kept open, and one that is not.
        for pair in [0, OPEN_STREAMS_MAX] {
            let key = (1, pair);
            dirs.make(key, &bare, None).unwrap();
            let kept = |key| dirs.keep_streams(pair, key);
            let number = || dirs.streams(pair).unwrap().files[1].as_raw_fd();
            let (first, again) = (number(), number());
            assert!((pair > 0 || first == again) && kept(key).is_empty() && (pair > 0 || number() == first));
            let write = |name: &str| fs::write(dirs.stream(pair, name), "oh").unwrap();
            // By something that an earlier task has left running.
            write("stdout");
            dirs.streams(pair).unwrap();
            assert!(kept(key).is_empty());
            write("stderr");
            assert_eq!(vec!["stderr"], kept(key));
            assert_eq!((true, false), (dirs.stream(pair, "stdout").exists(), dirs.stream(pair, "stderr").exists()));
            assert_eq!("oh", fs::read_to_string(dirs.file(key, "stderr")).unwrap());
            // Whole and empty again, as files that are linked and appended to.
            let streams = dirs.streams(pair).unwrap();
            rustix::fs::fcntl_setfl(&streams.files[0], OFlags::APPEND | OFlags::NONBLOCK).unwrap();
            assert!(dirs.stream(pair, "stderr").exists() && kept(key).is_empty());
            assert!(!fcntl_getfl(&dirs.streams(pair).unwrap().files[0]).unwrap().contains(OFlags::NONBLOCK));
            // What somebody has taken away is no file of a pair.
            fs::rename(dirs.stream(pair, "stdout"), dirs.stream(pair, "away")).unwrap();
            let streams = dirs.streams(pair).unwrap();
            rustix::io::write(&streams.files[0], b"oh").unwrap();
            assert_eq!((vec!["stdout".to_string()], 0), (kept(key), fs::metadata(dirs.stream(pair, "away")).unwrap().len()));
        }
    }
}
