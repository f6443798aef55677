//! What the disk of a state directory has left, and its ballast: a file that is given up when the disk is full, so that what runs can still end.
//!
//! Invariant: below the floor there is no room for new work, and the ballast is not counted as free while it is missing. It decides nothing else; who
//! writes gives the ballast up, [`Disk::look`] makes it again. It does not watch quotas of single users: those are found by the write that fails.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::{Refusal, RefusalKind};

/// A ballast.
pub const BALLAST_BYTES: u64 = 16 << 20;
/// And at most this part of its disk.
pub const BALLAST_DISK_PART: u64 = 8;
/// Kept free where nothing else is said, and at most one part of its disk as for the ballast.
pub const FREE_MIN_BYTES_DEFAULT: u64 = 64 << 20;
/// A disk without fallocate gets it written in parts of this size.
const PART_BYTES: usize = 64 << 10;
const FILE: &str = "ballast";

/// Is it that there is no room?
pub fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The disk of a directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    ballast: PathBuf,
    ballast_bytes: u64,
    free_min_bytes: u64,
    /// What to lower, in the words of the configuration.
    key: &'static str,
}

impl Disk {
    /// Of a directory that is there: so much stays free, as configured by `key`. The ballast is made where there is room.
    pub fn open(dir: &Path, free_min_bytes: Option<u64>, key: &'static str) -> io::Result<Disk> {
        let disk = statvfs(dir)?;
        let part = disk.f_blocks.saturating_mul(disk.f_frsize) / BALLAST_DISK_PART;
        let (ballast_bytes, free_min_bytes) = (BALLAST_BYTES.min(part), free_min_bytes.unwrap_or(FREE_MIN_BYTES_DEFAULT.min(part)));
        let disk = Disk(Arc::new(Inner { dir: dir.into(), ballast: dir.join(FILE), ballast_bytes, free_min_bytes, key }));
        disk.look();
        Ok(disk)
    }

    /// Bytes free, and bytes of the whole.
    pub fn size(&self) -> io::Result<(u64, u64)> {
        let disk = statvfs(&self.0.dir)?;
        Ok((disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize)))
    }

    /// Why no new work may be taken, if so. A ballast that was given up is made again where there is room for it above the floor.
    pub fn look(&self) -> Option<Refusal> {
        let d = &*self.0;
        let (free, _) = self.size().ok()?;
        let missing = if self.has_ballast() { 0 } else { d.ballast_bytes };
        let needed = d.free_min_bytes.saturating_add(missing);
        if free < needed {
            let again = if missing > 0 { format!(", and {missing} for the ballast that was given up") } else { String::new() };
            let message = format!("{} has {free} bytes free; {} are kept free{again}", d.dir.display(), d.free_min_bytes);
            return Some(Refusal::new(RefusalKind::OverLimit, message).remedy(format!("free some space on that disk, or lower {}", d.key)));
        }
        if missing > 0
            && let Err(e) = self.make()
        {
            _ = fs::remove_file(&d.ballast);
            tracing::warn!("ballast {}: {e}", d.ballast.display());
        }
        None
    }

    /// Is there something to give up?
    pub fn has_ballast(&self) -> bool {
        fs::metadata(&self.0.ballast).is_ok_and(|m| m.len() >= self.0.ballast_bytes)
    }

    /// Give the ballast up. False: it was not there.
    pub fn give_up(&self) -> bool {
        let gone = fs::remove_file(&self.0.ballast).is_ok();
        if gone {
            tracing::warn!(
                "{} is full: the ballast of {} bytes is given up, so that running work can end",
                self.0.dir.display(),
                self.0.ballast_bytes
            );
        }
        gone
    }

    fn make(&self) -> io::Result<()> {
        let d = &*self.0;
        let mut file = File::create(&d.ballast)?;
        match fallocate(&file, FallocateFlags::empty(), 0, d.ballast_bytes) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                // Not zeros: a disk that compresses would take them for nothing.
                let mut part = vec![0; PART_BYTES];
                blake3::Hasher::new().update(d.dir.as_os_str().as_encoded_bytes()).finalize_xof().fill(&mut part);
                let mut left = d.ballast_bytes as usize;
                while left > 0 {
                    let n = left.min(PART_BYTES);
                    file.write_all(&part[..n])?;
                    left -= n;
                }
                file.sync_data()
            }
            made => Ok(made?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_that_is_not_there_is_said_and_the_ballast_comes_back_with_room() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), Some(1), "limits.x").unwrap();
        let (bytes, path) = (disk.0.ballast_bytes, dir.path().join(FILE));
        assert!(disk.has_ballast() && fs::metadata(&path).unwrap().len() == bytes);
        assert!(disk.give_up() && !disk.give_up() && !path.exists());
        assert!(disk.look().is_none() && disk.has_ballast(), "there is room");
        let full = Disk::open(dir.path(), Some(u64::MAX), "limits.x").unwrap();
        let said = full.look().unwrap().to_string();
        assert!(said.contains("bytes free") && said.contains("lower limits.x") && said.contains(&*dir.path().to_string_lossy()), "{said}");
        assert!(full.give_up());
        assert!(full.look().unwrap().message.contains("for the ballast") && !full.has_ballast(), "no room for it below the floor");
    }
}
