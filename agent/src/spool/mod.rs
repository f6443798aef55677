//! The spool: the agent's own log, made durable by one writer thread.
//!
//! Invariant: when a batch is reported durable, all of it survives a power cut; after a crash either all or none of a batch is there. One process has a
//! spool at a time. It knows no record's meaning: that is `state`'s.

pub mod frame;
pub mod record;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use intergrid_proto::net::disk::{Disk, is_full};
use intergrid_proto::{Refusal, RefusalKind};
use tokio::sync::mpsc;

use crate::limits::{LOCK_POLL_MS, LOCK_WAIT_MS, SPOOL_CHUNK_BYTES, SPOOL_COMPACT_BYTES, SPOOL_TRY_MS};
use frame::Fault;
use record::{Batch, Record};

const FILE: &str = "spool";
const NEW_FILE: &str = "spool.new";
/// In a state directory: locked, and kept open, by the agent that has it.
pub const LOCK_FILE: &str = "lock";

/// An open spool.
pub struct Spool {
    dir: PathBuf,
    file: File,
    /// Where the next frame goes.
    end: u64,
    /// Zeros are written up to here.
    reserved: u64,
    /// Size after the last compaction.
    compacted: u64,
    buffer: Vec<u8>,
    disk: Option<Disk>,
    /// Held as long as the spool is.
    _lock: File,
}

/// What the writer thread is asked to do.
#[derive(Debug)]
pub enum Order {
    /// Make these durable as one frame.
    Append(Vec<Record>),
    /// Replace all by these.
    Replace(Vec<Record>),
}

/// What the writer thread says.
#[derive(Debug)]
pub struct Written {
    /// An error is the end: nothing can be promised any more.
    pub result: io::Result<()>,
    /// The file is worth compacting.
    pub large: bool,
}

impl Spool {
    /// Lock the directory and read what is there. A torn tail is cut. The caller must [`replace`](Self::replace) before it appends: so every start compacts.
    pub fn open(dir: &Path) -> Result<(Spool, Vec<Record>), Refusal> {
        let path = dir.join(FILE);
        let failed = |what: &str, e: io::Error| failed(dir, what, e);
        // What users gave their tasks is nobody else's.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| failed("make the directory", e))?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(LOCK_FILE)).map_err(|e| failed("open the lock", e))?;
        let patience = Instant::now() + Duration::from_millis(LOCK_WAIT_MS);
        loop {
            match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                // A task that was just being started when its agent was killed holds the lock until its exec is done: from then on it can be found.
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < patience => std::thread::sleep(Duration::from_millis(LOCK_POLL_MS)),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let message = format!("state {} is in use by another agent", dir.display());
                    return Err(Refusal::new(RefusalKind::Unavailable, message).remedy("stop it, or give this one a directory of its own"));
                }
                Err(e) => return Err(failed("lock it", e.into())),
            }
        }
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(|e| failed("open the spool", e))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| failed("read the spool", e))?;
        let records = decode(&bytes, &path)?;
        Ok((Spool { dir: dir.into(), file, end: 0, reserved: 0, compacted: 0, buffer: Vec::new(), disk: None, _lock: lock }, records))
    }

    /// On this disk, the ballast of which is given up where there is no room.
    pub fn on(mut self, disk: Disk) -> Spool {
        self.disk = Some(disk);
        self
    }

    /// Everything anew: a file beside, then renamed over.
    pub fn replace(&mut self, records: Vec<Record>) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.extend(frame::header());
        frame::encode(&Batch { records }, &mut self.buffer);
        let new = self.dir.join(NEW_FILE);
        let mut file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&new)?;
        if let Err(e) = file.write_all(&self.buffer).and_then(|()| file.sync_all()) {
            // What is left of it takes the room that it lacked.
            _ = std::fs::remove_file(&new);
            return Err(e);
        }
        std::fs::rename(&new, self.dir.join(FILE))?;
        File::open(&self.dir)?.sync_all()?;
        self.end = file.seek(SeekFrom::End(0))?;
        (self.file, self.reserved, self.compacted) = (file, self.end, self.end);
        Ok(())
    }

    /// Append as one frame and sync.
    pub fn append(&mut self, records: Vec<Record>) -> io::Result<()> {
        self.buffer.clear();
        frame::encode(&Batch { records }, &mut self.buffer);
        let end = self.end + self.buffer.len() as u64;
        match self.reserve(end) {
            // For the frame alone there may be room.
            Err(e) if is_full(&e) => self.file.write_all_at(&self.buffer, self.end).and_then(|()| self.file.sync_all())?,
            reserved => {
                reserved?;
                self.file.write_all_at(&self.buffer, self.end)?;
                self.file.sync_data()?;
            }
        }
        self.end = end;
        Ok(())
    }

    /// Zeros ahead.
    fn reserve(&mut self, end: u64) -> io::Result<()> {
        if end <= self.reserved {
            return Ok(());
        }
        let zeros = vec![0; SPOOL_CHUNK_BYTES as usize];
        // What was written without them is behind their beginning.
        self.reserved = self.reserved.max(self.end);
        while self.reserved < end {
            self.file.write_all_at(&zeros, self.reserved)?;
            self.reserved += SPOOL_CHUNK_BYTES;
        }
        self.file.sync_all()
    }

    /// Carry out an order. Where there is no room the ballast is given up, and then room is waited for: what has been told rests on it.
    fn carry_out(&mut self, order: &Order) -> io::Result<()> {
        let mut waits = false;
        loop {
            let done = match order {
                Order::Append(records) => self.append(records.clone()),
                Order::Replace(records) => self.replace(records.clone()),
            };
            match done {
                Err(e) if is_full(&e) => {
                    if self.disk.as_ref().is_some_and(Disk::give_up) {
                        continue;
                    }
                    if !waits {
                        tracing::error!("state {}: can't write the spool: {e}; make room, tasks run on and are told of then", self.dir.display());
                    }
                    waits = true;
                    std::thread::sleep(Duration::from_millis(SPOOL_TRY_MS));
                }
                done => {
                    if waits && done.is_ok() {
                        tracing::info!("there is room again: the spool goes on");
                    }
                    return done;
                }
            }
        }
    }

    /// Is it worth compacting?
    pub fn is_large(&self) -> bool {
        self.end > SPOOL_COMPACT_BYTES.max(2 * self.compacted)
    }

    /// Serve orders on a thread of its own until their sender is gone. One order is answered by one report.
    pub fn serve(mut self, mut orders: mpsc::UnboundedReceiver<Order>, report: impl Fn(Written) + Send + 'static) -> io::Result<()> {
        let work = move || {
            while let Some(order) = orders.blocking_recv() {
                let result = self.carry_out(&order);
                report(Written { result, large: self.is_large() });
            }
        };
        std::thread::Builder::new().name("spool".into()).spawn(work).map(|_| ())
    }
}

/// What the spool of this directory says; nothing where there is none. It changes nothing and takes no lock.
pub fn read(dir: &Path) -> Result<Vec<Record>, Refusal> {
    let path = dir.join(FILE);
    match std::fs::read(&path) {
        Ok(bytes) => decode(&bytes, &path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(failed(dir, "read the spool", e)),
    }
}

fn failed(dir: &Path, what: &str, e: io::Error) -> Refusal {
    Refusal::new(RefusalKind::Internal, format!("state {}: can't {what}: {e}", dir.display())).remedy("check the directory and its disk")
}

/// An empty file is one that has just been made.
fn decode(bytes: &[u8], path: &Path) -> Result<Vec<Record>, Refusal> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    frame::decode(bytes).map(|(batches, _)| batches.into_iter().flat_map(|b| b.records).collect()).map_err(|fault| {
        let path = path.display();
        match fault {
            Fault::NotASpool => {
                Refusal::invalid(format!("{path} is not an agent's spool")).remedy("give the agent a directory of its own as `state`")
            }
            Fault::Newer(v) => {
                Refusal::new(RefusalKind::MustUnderstand, format!("spool {path} has format {v}, this agent knows up to {}", frame::VERSION))
                    .remedy("use the version that wrote it")
            }
            Fault::Damaged(at) => Refusal::invalid(format!("spool {path} is damaged at byte {at}"))
                .remedy("check the disk; to give up what it knows, remove the state directory"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::record::What;
    use super::*;

    fn acked(n: u64) -> Vec<Record> {
        vec![Record { what: Some(What::Acked(n)) }]
    }

    #[test]
    fn comes_back_in_order_and_without_its_torn_tail() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spool, records) = Spool::open(dir.path()).unwrap();
        assert!(records.is_empty());
        spool.replace(acked(1)).unwrap();
        (2..10).for_each(|n| spool.append(acked(n)).unwrap());
        let end = spool.end;
        drop(spool);
        // A frame that was being written when the power went: its length is there, its body is not.
        let file = OpenOptions::new().write(true).open(dir.path().join(FILE)).unwrap();
        file.write_all_at(&[40, 0, 0, 0, 1, 2, 3, 4, 99], end).unwrap();
        let (mut spool, records) = Spool::open(dir.path()).unwrap();
        assert_eq!((1..10).flat_map(acked).collect::<Vec<_>>(), records);
        spool.replace(records).unwrap();
        spool.append(acked(10)).unwrap();
        drop(spool);
        assert_eq!((1..11).flat_map(acked).collect::<Vec<_>>(), Spool::open(dir.path()).unwrap().1);
    }

    #[test]
    fn one_agent_a_directory_and_no_foreign_file() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spool, _) = Spool::open(dir.path()).unwrap();
        spool.replace(acked(1)).unwrap();
        let refused = Spool::open(dir.path()).err().unwrap();
        assert_eq!(RefusalKind::Unavailable, refused.kind);
        drop(spool);
        std::fs::write(dir.path().join(FILE), "hello, world").unwrap();
        assert!(Spool::open(dir.path()).err().unwrap().message.contains("not an agent's spool"));
        let mut newer = frame::header();
        newer[8] = 2;
        std::fs::write(dir.path().join(FILE), newer).unwrap();
        assert_eq!(RefusalKind::MustUnderstand, Spool::open(dir.path()).err().unwrap().kind);
    }

    #[test]
    fn the_writer_thread_answers_each_order() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, _) = Spool::open(dir.path()).unwrap();
        let (orders, receiver) = mpsc::unbounded_channel();
        let (reports, written) = std::sync::mpsc::channel();
        spool.serve(receiver, move |w| reports.send(w.result.is_ok()).unwrap()).unwrap();
        orders.send(Order::Replace(acked(1))).unwrap();
        (2..50).for_each(|n| orders.send(Order::Append(acked(n))).unwrap());
        assert!((1..50).all(|_| written.recv_timeout(std::time::Duration::from_secs(20)).unwrap()));
        drop(orders);
        assert!(written.recv_timeout(std::time::Duration::from_secs(20)).is_err(), "the thread ends with its orders");
        assert_eq!(49, Spool::open(dir.path()).unwrap().1.len());
    }
}
