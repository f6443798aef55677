//! Outputs of ended tasks, as `outputs/<job>/<task>/<name>`, where the name is `stdout`, `stderr` or `out/<file>`.
//!
//! A file begins with a header (magic, hash, size), so that a reader at any level can verify what it passes on. A later upload for the same task and name
//! replaces the file as a whole. Small files are many: verified uploads are made durable in groups, see [`OutputStore::settle`].

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use intergrid_proto::limits::BLOB_BYTES_MAX;
use intergrid_proto::spec::check_file_name;
use intergrid_proto::{BlobHash, Refusal, RefusalKind};
use tokio::sync::oneshot;

use crate::backend::Content;
use crate::durable::{Incoming, TempFile, blocking, check_free, content, io_refusal, open_dir, sync_dirs, temp_path};

/// Format 1 of the header.
const MAGIC: &[u8; 8] = b"igout001";
const HEADER_BYTES: usize = 8 + 32 + 8;
/// A group of more files than this is synced by `syncfs`, once for the data and once for the names; a smaller one file by file, so that a single output
/// need not wait for whatever else is dirty on the disk.
const SYNC_EACH_FILES_MAX: usize = 4;
/// One group of uploads.
const GROUP_FILES_MAX: usize = 4_096;

/// The outputs of a site. Cheap to clone.
#[derive(Clone)]
pub struct OutputStore(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    free_min_bytes: u64,
    group: Mutex<Group>,
}

/// Uploads that wait for the next sync; bounded by the uploads in flight, as each is waited for.
#[derive(Default)]
struct Group {
    waiting: Vec<(Received, oneshot::Sender<Result<(), Refusal>>)>,
    running: bool,
}

impl OutputStore {
    /// Open a directory, or make it. Unfinished files of an earlier process are removed.
    pub fn open(dir: impl Into<PathBuf>, free_min_bytes: u64) -> Result<OutputStore, Refusal> {
        let dir = dir.into();
        open_dir(&dir).map_err(|e| io_refusal("open the outputs in", &dir, e))?;
        Ok(OutputStore(Arc::new(Inner { dir, free_min_bytes, group: Mutex::default() })))
    }

    /// Would it fit if nothing else were there?
    pub fn could_hold(&self, size: u64) -> bool {
        let disk = rustix::fs::statvfs(&self.0.dir).map_or(0, |d| d.f_blocks.saturating_mul(d.f_frsize));
        size <= BLOB_BYTES_MAX && size.saturating_add(self.0.free_min_bytes) <= disk
    }

    /// Begin to receive one output.
    pub fn writer(&self, job: u64, task: u32, name: &str, hash: BlobHash, size: u64) -> Result<OutputWriter, Refusal> {
        let place = self.path(job, task, name)?;
        if size > BLOB_BYTES_MAX {
            return Err(Refusal::new(RefusalKind::OverLimit, format!("output {name:?} has {size} bytes, one file may have {BLOB_BYTES_MAX}")));
        }
        check_free(&self.0.dir, size, self.0.free_min_bytes)?;
        let header = [MAGIC.as_slice(), &hash.0, &size.to_be_bytes()].concat();
        let temp = temp_path(&self.0.dir.join("new"), "output");
        Ok(OutputWriter { place, incoming: Incoming::create(temp, &header, hash, size)? })
    }

    /// Make received outputs durable and visible, all with one pair of syncs. Blocking.
    pub fn finish(&self, received: Vec<Received>) -> Result<(), Refusal> {
        let each = received.len() <= SYNC_EACH_FILES_MAX;
        let root = &self.0.dir;
        let place = || -> io::Result<()> {
            let disk = File::open(root)?;
            if each {
                received.iter().try_for_each(|r| r.temp.sync())?;
            } else {
                rustix::fs::syncfs(&disk)?;
            }
            let mut touched = BTreeSet::new();
            for Received { temp, place } in received {
                let dir = place.parent().unwrap_or(root);
                if !touched.contains(dir) {
                    std::fs::create_dir_all(dir)?;
                    touched.extend(dir.ancestors().take_while(|d| d.starts_with(root)).map(Path::to_path_buf));
                }
                temp.rename(&place)?;
            }
            if each { sync_dirs(&touched) } else { Ok(rustix::fs::syncfs(&disk)?) }
        };
        place().map_err(|e| io_refusal("store outputs in", root, e))
    }

    /// Make a received output durable, together with all others that come while the disk is busy with the group before.
    pub async fn settle(&self, received: Received) -> Result<(), Refusal> {
        let (done, answer) = oneshot::channel();
        let begin = {
            let mut group = self.0.group();
            group.waiting.push((received, done));
            !std::mem::replace(&mut group.running, true)
        };
        if begin {
            let store = self.clone();
            tokio::task::spawn_blocking(move || store.settle_groups());
        }
        answer.await.unwrap_or_else(|_| Err(Refusal::new(RefusalKind::Unavailable, "the store of outputs has stopped").remedy("send it again")))
    }

    fn settle_groups(&self) {
        loop {
            let (received, answers): (Vec<_>, Vec<_>) = {
                let mut group = self.0.group();
                if group.waiting.is_empty() {
                    group.running = false;
                    return;
                }
                let n = group.waiting.len().min(GROUP_FILES_MAX);
                group.waiting.drain(..n).unzip()
            };
            let result = self.finish(received);
            // Who no longer waits need not know.
            answers.into_iter().for_each(|answer| drop(answer.send(result.clone())));
        }
    }

    /// Hash and size of an output, where it is here.
    pub fn head(&self, job: u64, task: u32, name: &str) -> Result<Option<(BlobHash, u64)>, Refusal> {
        let path = self.path(job, task, name)?;
        Ok(open(&path)?.map(|(_, hash, size)| (hash, size)))
    }

    /// An output, to be verified by who reads it to the end.
    pub async fn get(&self, job: u64, task: u32, name: &str) -> Result<Content, Refusal> {
        let path = self.path(job, task, name)?;
        let what = format!("task {task} has no output {name:?} here");
        blocking(move || match open(&path)? {
            Some((file, hash, size)) => Ok(content(file, path, hash, size)),
            None => Err(Refusal::new(RefusalKind::NotFound, what)),
        })
        .await
    }

    /// Forget all outputs of a job. Blocking.
    pub fn remove_job(&self, job: u64) -> Result<(), Refusal> {
        let dir = self.0.dir.join(job.to_string());
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_refusal("remove", &dir, e)),
            _ => Ok(()),
        }
    }

    /// The place of an output. A name can't lead out of its task's directory.
    fn path(&self, job: u64, task: u32, name: &str) -> Result<PathBuf, Refusal> {
        match name {
            "stdout" | "stderr" => {}
            _ => match name.strip_prefix("out/") {
                Some(file) => check_file_name("output", file)?,
                None => return Err(Refusal::invalid(format!("output {name:?} is not stdout, stderr or out/<file>"))),
            },
        }
        Ok(self.0.dir.join(job.to_string()).join(task.to_string()).join(name))
    }
}

impl Inner {
    fn group(&self) -> MutexGuard<'_, Group> {
        // No code that may panic runs under this lock.
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One output on its way in. Dropped unfinished, it leaves nothing.
#[derive(Debug)]
pub struct OutputWriter {
    place: PathBuf,
    incoming: Incoming,
}

impl OutputWriter {
    /// The next part.
    pub fn write(&mut self, part: &[u8]) -> Result<(), Refusal> {
        self.incoming.write(part)
    }

    /// All of it is here and has its hash; durable and visible only after [`OutputStore::settle`] or [`OutputStore::finish`].
    pub fn verify(self) -> Result<Received, Refusal> {
        Ok(Received { temp: self.incoming.verify()?, place: self.place })
    }
}

/// A verified output that is not yet durable.
#[derive(Debug)]
pub struct Received {
    temp: TempFile,
    place: PathBuf,
}

/// The file, behind its header; None where there is none.
fn open(path: &Path) -> Result<Option<(File, BlobHash, u64)>, Refusal> {
    let read = || -> io::Result<_> {
        let mut file = File::open(path)?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact(&mut header)?;
        let length = file.metadata()?.len();
        Ok((file, header, length))
    };
    let (file, header, length) = match read() {
        Ok(read) => read,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_refusal("open", path, e)),
    };
    let (magic, rest) = header.split_at(MAGIC.len());
    let (hash, size) = rest.split_at(32);
    let size = size.try_into().map(u64::from_be_bytes);
    match (BlobHash::from_slice(hash), size) {
        (Some(hash), Ok(size)) if magic == MAGIC && length.checked_sub(HEADER_BYTES as u64) == Some(size) => Ok(Some((file, hash, size))),
        _ => Err(Refusal::new(RefusalKind::Internal, format!("{} is damaged", path.display()))
            .remedy("fetch it from a level below, or run the task again")),
    }
}
