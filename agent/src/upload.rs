//! Outputs of ended tasks, sent before their ends are told. One stream carries all files; what was not acknowledged when it broke is sent again.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use intergrid_proto::limits::BLOB_PART_BYTES;
use intergrid_proto::net::refusal_of;
use intergrid_proto::{Refusal, RefusalKind, pb};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::core::Key;
use crate::dial::{Backoff, Dial};
use crate::exec::dirs::Dirs;
use crate::limits::{BULK_STALL_MS, NO_ROOM_PAUSE_MS, STREAM_BYTES_MAX, UPLOAD_TRIES_MAX, UPLOADS_IN_FLIGHT_MAX};

/// Room for the line that says that a stream was cut.
const CUT_NOTE_BYTES: u64 = 128;
/// Parts that wait in the stream.
const PARTS_QUEUE_MAX: usize = 4;

/// A task's files.
#[derive(Debug)]
pub struct Request {
    /// The task.
    pub key: Key,
    /// The gateway's number of its placement.
    pub number: u64,
    /// The gateway's job.
    pub job: u64,
    /// `stdout`, `stderr`, `out/<name>`.
    pub files: Vec<String>,
}

/// All files of a task are durable at the gateway, or one can't be had there: why.
pub type Done = (Key, Result<(), String>);

struct Pending {
    number: u64,
    job: u64,
    files: Vec<String>,
    tries: u32,
}

/// Sends outputs.
pub struct Uploader {
    dial: Arc<Dial>,
    dirs: Dirs,
    requests: mpsc::UnboundedReceiver<Request>,
    done: mpsc::Sender<Done>,
    pending: BTreeMap<Key, Pending>,
}

impl Uploader {
    /// Requests are bounded by the window: each is a task that has not ended.
    pub fn new(dial: Arc<Dial>, dirs: Dirs, requests: mpsc::UnboundedReceiver<Request>, done: mpsc::Sender<Done>) -> Self {
        Uploader { dial, dirs, requests, done, pending: BTreeMap::new() }
    }

    /// Until nobody asks any more.
    pub async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            while self.pending.is_empty() {
                let Some(request) = self.requests.recv().await else { return };
                self.take(request);
            }
            let before = self.pending.len();
            let Err(e) = self.session().await else { return };
            self.dial.bulk_failed().await;
            tracing::info!("sending outputs: {e}; trying on");
            if self.pending.len() < before {
                backoff = Backoff::default();
            }
            backoff.pause().await;
        }
    }

    fn take(&mut self, r: Request) {
        self.pending.insert(r.key, Pending { number: r.number, job: r.job, files: r.files, tries: 0 });
    }

    /// One stream, until it breaks. Ok: nobody asks any more.
    async fn session(&mut self) -> Result<(), Refusal> {
        let mut pool = self.dial.bulk().await?;
        let (parts, outgoing) = mpsc::channel(PARTS_QUEUE_MAX);
        let stall = Duration::from_millis(BULK_STALL_MS);
        let silent = |_| Refusal::new(RefusalKind::Unavailable, format!("nothing was acknowledged within {BULK_STALL_MS} ms"));
        let mut acks =
            timeout(stall, pool.put_outputs(ReceiverStream::new(outgoing))).await.map_err(silent)?.map_err(|s| refusal_of(&s))?.into_inner();
        let (files, queue) = mpsc::channel(UPLOADS_IN_FLIGHT_MAX);
        let (failed, mut failures) = mpsc::channel(UPLOADS_IN_FLIGHT_MAX);
        let sender = tokio::spawn(send_files(self.dirs.clone(), queue, parts, failed));
        let _ends_with_us = Abort(sender.abort_handle());
        let mut unsent: VecDeque<(Key, String)> = VecDeque::new();
        self.pending.iter().for_each(|(k, p)| unsent.extend(p.files.iter().map(|f| (*k, f.clone()))));
        let mut in_flight = 0;
        // What the gateway has no room for just now, and when to try again.
        let (mut later, mut again_at) = (Vec::new(), Instant::now());
        loop {
            while in_flight < UPLOADS_IN_FLIGHT_MAX
                && let Some((key, name)) = unsent.pop_front()
            {
                let Some(p) = self.pending.get(&key) else { continue };
                files.try_send((key, (p.number, p.job), name)).map_err(|_| Refusal::new(RefusalKind::Unavailable, "the stream is gone"))?;
                in_flight += 1;
            }
            tokio::select! {
                request = self.requests.recv() => {
                    let Some(request) = request else { return Ok(()) };
                    unsent.extend(request.files.iter().map(|f| (request.key, f.clone())));
                    self.take(request);
                }
                ack = next_ack(&mut acks, in_flight > 0) => {
                    let ack = ack?;
                    in_flight = in_flight.saturating_sub(1);
                    if ack.no_room && let Some(file) = self.named(&ack) {
                        if later.is_empty() {
                            tracing::warn!("output {} of task {} waits: {}", ack.name, ack.task, ack.error);
                            again_at = Instant::now() + Duration::from_millis(NO_ROOM_PAUSE_MS);
                        }
                        later.push(file);
                        continue;
                    }
                    self.acknowledged(ack, &mut unsent).await;
                }
                () = sleep_until(again_at), if !later.is_empty() => unsent.extend(later.drain(..)),
                Some((key, why)) = failures.recv() => {
                    in_flight = in_flight.saturating_sub(1);
                    self.finish(key, Err(why)).await;
                }
            }
        }
    }

    /// Of which task it is.
    fn named(&self, ack: &pb::OutputAck) -> Option<(Key, String)> {
        let named = |(k, p): &(&Key, &Pending)| (p.number, k.1) == (ack.number, ack.task) && p.files.contains(&ack.name);
        self.pending.iter().find(named).map(|(key, _)| (*key, ack.name.clone()))
    }

    async fn acknowledged(&mut self, ack: pb::OutputAck, unsent: &mut VecDeque<(Key, String)>) {
        // Where the gateway has lost its store, a file may have been sent under the old name, and is sent again under the new one.
        let Some((key, _)) = self.named(&ack) else { return };
        let Some(p) = self.pending.get_mut(&key) else { return };
        if ack.error.is_empty() {
            p.files.retain(|f| *f != ack.name);
            if p.files.is_empty() {
                self.finish(key, Ok(())).await;
            }
        } else if p.tries + 1 < UPLOAD_TRIES_MAX {
            p.tries += 1;
            unsent.push_back((key, ack.name));
        } else {
            self.finish(key, Err(format!("{}: the gateway did not take it: {}", ack.name, ack.error))).await;
        }
    }

    async fn finish(&mut self, key: Key, result: Result<(), String>) {
        if self.pending.remove(&key).is_some() {
            // Nobody listens when the agent stops.
            let _ = self.done.send((key, result)).await;
        }
    }
}

struct Abort(tokio::task::AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn next_ack(acks: &mut Streaming<pb::OutputAck>, expected: bool) -> Result<pb::OutputAck, Refusal> {
    let patience = if expected { Duration::from_millis(BULK_STALL_MS) } else { Duration::MAX };
    match timeout(patience, acks.message()).await {
        Err(_) => Err(Refusal::new(RefusalKind::Unavailable, format!("nothing was acknowledged within {BULK_STALL_MS} ms"))),
        Ok(Ok(Some(ack))) => Ok(ack),
        Ok(Ok(None)) => Err(Refusal::new(RefusalKind::Unavailable, "the gateway ended the stream")),
        Ok(Err(status)) => Err(refusal_of(&status)),
    }
}

type Queued = (Key, (u64, u64), String);

async fn send_files(dirs: Dirs, mut queue: mpsc::Receiver<Queued>, parts: mpsc::Sender<pb::OutputPart>, failed: mpsc::Sender<(Key, String)>) {
    while let Some((key, (number, job), name)) = queue.recv().await {
        let path = dirs.file(key, &name);
        let stream = matches!(name.as_str(), "stdout" | "stderr");
        let opened = tokio::task::spawn_blocking(move || open(&path, stream)).await.map_err(io::Error::other).and_then(|r| r);
        let (mut file, hash, size, mut buffer) = match opened {
            Ok(opened) => opened,
            Err(e) => {
                let _ = failed.send((key, format!("{name} can't be read: {e}"))).await;
                continue;
            }
        };
        let mut part = pb::OutputPart { job, number, task: key.1, name: name.clone(), hash: hash.to_vec(), size, ..Default::default() };
        let mut left = size;
        loop {
            let chunk = usize::try_from(left).unwrap_or(usize::MAX).min(BLOB_PART_BYTES);
            if buffer.len() != chunk {
                let read = tokio::task::spawn_blocking(move || {
                    let mut data = vec![0; chunk];
                    file.read_exact(&mut data).map(|()| (file, data))
                });
                match read.await.map_err(io::Error::other).and_then(|r| r) {
                    Ok((f, data)) => (file, buffer) = (f, data),
                    // It has become shorter: the stream can't be right any more.
                    Err(_) => return,
                }
            }
            left -= chunk as u64;
            part.data = std::mem::take(&mut buffer).into();
            part.last = left == 0;
            if parts.send(std::mem::take(&mut part)).await.is_err() {
                return;
            }
            if left == 0 {
                break;
            }
        }
    }
}

/// Open and hash; a small file is read whole. A stream of a task that is too long is cut first, and says so.
fn open(path: &std::path::Path, stream: bool) -> io::Result<(File, [u8; 32], u64, Vec<u8>)> {
    let mut size = std::fs::symlink_metadata(path)?.len();
    if stream && size > STREAM_BYTES_MAX + CUT_NOTE_BYTES {
        let mut file = OpenOptions::new().append(true).open(path)?;
        file.set_len(STREAM_BYTES_MAX)?;
        file.write_all(format!("\n[intergrid: cut after {STREAM_BYTES_MAX} of {size} bytes]\n").as_bytes())?;
        size = std::fs::metadata(path)?.len();
    }
    let mut file = File::open(path)?;
    if size <= BLOB_PART_BYTES as u64 {
        let mut data = Vec::with_capacity(size as usize);
        Read::by_ref(&mut file).take(size).read_to_end(&mut data)?;
        let hash = *blake3::hash(&data).as_bytes();
        return Ok((file, hash, data.len() as u64, data));
    }
    let mut hasher = blake3::Hasher::new();
    let mut data = vec![0; BLOB_PART_BYTES];
    let mut left = size;
    while left > 0 {
        let n = file.read(&mut data[..usize::try_from(left).unwrap_or(usize::MAX).min(BLOB_PART_BYTES)])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&data[..n]);
        left -= n as u64;
    }
    Ok((File::open(path)?, *hasher.finalize().as_bytes(), size, Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_cut_once_and_outputs_never() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout");
        std::fs::write(&path, vec![b'x'; STREAM_BYTES_MAX as usize + 1_000]).unwrap();
        assert_eq!(STREAM_BYTES_MAX + 1_000, open(&path, false).unwrap().2);
        let (_, hash, size, _) = open(&path, true).unwrap();
        assert!(size > STREAM_BYTES_MAX && size < STREAM_BYTES_MAX + CUT_NOTE_BYTES);
        assert_eq!((hash, size), (open(&path, true).unwrap().1, open(&path, true).unwrap().2));
        let text = std::fs::read(&path).unwrap();
        assert!(text.ends_with(b"bytes]\n"));
        assert_eq!(hash, *blake3::hash(&text).as_bytes());
        std::fs::write(&path, "hi").unwrap();
        assert_eq!((2, b"hi".to_vec()), {
            let o = open(&path, true).unwrap();
            (o.2, o.3)
        });
    }
}
