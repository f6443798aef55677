//! Files that are whole or not there: written beside their place, checked, synced, renamed, and the directory synced. Blocking; callers that are async
//! go through [`blocking`].

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures::stream;
use intergrid_proto::limits::BLOB_PART_BYTES;
use intergrid_proto::{BlobHash, Refusal, RefusalKind};

use crate::backend::Content;

/// A refusal that names the file. A full disk is a limit, all else a fault of the machine.
pub fn io_refusal(what: &str, path: &Path, e: io::Error) -> Refusal {
    let kind = match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => RefusalKind::OverLimit,
        _ => RefusalKind::Internal,
    };
    let refusal = Refusal::new(kind, format!("{what} {}: {e}", path.display()));
    if kind == RefusalKind::OverLimit { refusal.remedy("free some space on that disk") } else { refusal }
}

/// Run blocking file work beside the async threads.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(Refusal::new(RefusalKind::Internal, format!("file work was cut off: {e}"))),
    }
}

/// What a directory says of its files is on disk.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Replace a small file as a whole, durably.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = parent(path);
    let new = temp_path(dir, &path.file_name().unwrap_or_default().to_string_lossy());
    let new = TempFile(new);
    let mut file = File::create(&new.0)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    new.rename(path)?;
    sync_dir(dir)
}

/// The directory of a file; `.` for a bare name.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A name that no other file of this process has, in this directory.
pub fn temp_path(dir: &Path, name: &str) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    dir.join(format!(".{name}.{}.{}.new", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// A directory that only its owner enters, with an empty one, `new`, for unfinished files in it, whatever an earlier process left there.
pub fn open_dir(dir: &Path) -> io::Result<()> {
    let new = dir.join("new");
    match std::fs::remove_dir_all(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => std::fs::create_dir_all(&new)?,
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
}

/// Refuses when the disk would have less than `free_min_bytes` left after taking `bytes`.
pub fn check_free(dir: &Path, bytes: u64, free_min_bytes: u64) -> Result<(), Refusal> {
    let disk = rustix::fs::statvfs(dir).map_err(|e| io_refusal("ask for the free space of", dir, e.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free >= bytes.saturating_add(free_min_bytes) {
        return Ok(());
    }
    let message = format!("{} has {free} bytes free, {bytes} are asked for, and store_free_min_bytes is {free_min_bytes}", dir.display());
    Err(Refusal::new(RefusalKind::OverLimit, message).remedy("free some space on that disk, or lower the limit"))
}

/// An unfinished file; gone when dropped.
#[derive(Debug)]
pub struct TempFile(pub(crate) PathBuf);

impl TempFile {
    /// To its place. The data must be synced before, the directory afterwards.
    pub fn rename(mut self, place: &Path) -> io::Result<()> {
        std::fs::rename(&self.0, place)?;
        self.0 = PathBuf::new();
        Ok(())
    }

    /// Its data to disk.
    pub fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_data()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

/// Content on its way in: hashed as it comes, refused when it is not what was announced.
#[derive(Debug)]
pub struct Incoming {
    temp: TempFile,
    file: File,
    hasher: blake3::Hasher,
    hash: BlobHash,
    size: u64,
    got: u64,
}

impl Incoming {
    /// Begin, with a header of ours before the content.
    pub fn create(path: PathBuf, header: &[u8], hash: BlobHash, size: u64) -> Result<Self, Refusal> {
        let temp = TempFile(path);
        let create = || {
            let mut file = File::options().write(true).create_new(true).open(&temp.0)?;
            file.write_all(header).map(|()| file)
        };
        let file = create().map_err(|e| io_refusal("make", &temp.0, e))?;
        Ok(Incoming { temp, file, hasher: blake3::Hasher::new(), hash, size, got: 0 })
    }

    /// The next part.
    pub fn write(&mut self, part: &[u8]) -> Result<(), Refusal> {
        self.got += part.len() as u64;
        if self.got > self.size {
            return Err(Refusal::invalid(format!("content {} is longer than the {} bytes announced", self.hash, self.size)));
        }
        self.hasher.update(part);
        self.file.write_all(part).map_err(|e| io_refusal("write", &self.temp.0, e))
    }

    /// All of it is here and has the hash that was announced. Not synced.
    pub fn verify(self) -> Result<TempFile, Refusal> {
        if self.got != self.size {
            let message = format!("content {} ended after {} of {} bytes", self.hash, self.got, self.size);
            return Err(Refusal::invalid(message).remedy("send it again"));
        }
        let found = BlobHash(*self.hasher.finalize().as_bytes());
        if found != self.hash {
            let message = format!("content announced as {} has hash {found}", self.hash);
            return Err(Refusal::invalid(message).remedy("it changed while it was read, or on its way; send it again"));
        }
        Ok(self.temp)
    }
}

/// Directories to sync after their names changed.
pub fn sync_dirs(dirs: &BTreeSet<PathBuf>) -> io::Result<()> {
    dirs.iter().try_for_each(|d| sync_dir(d))
}

/// A file's bytes from where it stands, in parts; an error where it is shorter than `size`.
pub fn content(file: File, path: PathBuf, hash: BlobHash, size: u64) -> Content {
    let parts = stream::try_unfold((file, path, size), |(mut file, path, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        blocking(move || {
            let mut part = BytesMut::zeroed(left.min(BLOB_PART_BYTES as u64) as usize);
            file.read_exact(&mut part).map_err(|e| io_refusal("read", &path, e))?;
            let left = left - part.len() as u64;
            Ok(Some((Bytes::from(part), (file, path, left))))
        })
        .await
    });
    Content { hash, size, parts: Box::pin(parts) }
}
