//! Files to and from a grid, by content: hashed here, sent once, verified at the end. Nothing is ever held in memory as a whole, and a file that is
//! brought back appears under its name only when all of it is there and is what its hash says.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use indicatif::ProgressBar;
use intergrid_proto::limits::{BLOB_BYTES_MAX, BLOB_PART_BYTES, BLOB_WAIT_MS, CALL_TIMEOUT_MS};
use intergrid_proto::net::refusal_of;
use intergrid_proto::{BlobHash, Refusal, RefusalKind, pb};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Streaming};

use crate::client::{Client, Grid, silent};
use crate::out::Out;
use crate::stop::local;

/// Files above this get a bar.
const BAR_BYTES_MIN: u64 = 8 << 20;
/// Parts that are read ahead of the wire.
const PARTS_AHEAD_MAX: usize = 4;
/// An upload slower than this ends.
const UPLOAD_BYTES_PER_MS_MIN: u64 = 50;
/// Hashes of one question.
const HASHES_PER_CALL_MAX: usize = 1_000;

/// A file of this machine and its content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Local {
    /// Where it is.
    pub path: PathBuf,
    /// Of its content, when it was hashed.
    pub hash: BlobHash,
    /// Bytes.
    pub size: u64,
}

/// Hash a file. It must exist, be a plain file, be readable, and be small enough.
pub async fn hash(out: &Out, what: &str, path: &Path) -> Result<Local, Refusal> {
    let shown = path.display();
    let remedy = "name a file that exists and can be read";
    let bad = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => local(format!("{what}: {shown} does not exist")).remedy(remedy),
        _ => local(format!("{what}: {shown} can't be read: {e}")).remedy(remedy),
    };
    let meta = std::fs::metadata(path).map_err(bad)?;
    if !meta.is_file() {
        return Err(local(format!("{what}: {shown} is not a plain file")).remedy("pack a directory into one file"));
    }
    if meta.len() > BLOB_BYTES_MAX {
        let message =
            format!("{what}: {shown} has {}, at most {} are staged", crate::render::bytes(meta.len()), crate::render::bytes(BLOB_BYTES_MAX));
        return Err(Refusal::new(RefusalKind::OverLimit, message).remedy("split it"));
    }
    let bar = bar(out, meta.len(), "hashing");
    let from = path.to_owned();
    let hashed = tokio::task::spawn_blocking(move || {
        let mut hasher = blake3::Hasher::new();
        let mut file = bar.wrap_read(std::fs::File::open(&from)?);
        let mut buffer = vec![0; BLOB_PART_BYTES];
        let mut size = 0;
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                bar.finish_and_clear();
                return Ok((BlobHash(*hasher.finalize().as_bytes()), size));
            }
            hasher.update(&buffer[..n]);
            size += n as u64;
        }
    });
    let (hash, size) = hashed.await.map_err(|e| local(format!("{what}: {shown} was not hashed: {e}")))?.map_err(bad)?;
    Ok(Local { path: path.to_owned(), hash, size })
}

fn bar(out: &Out, bytes: u64, what: &str) -> ProgressBar {
    if bytes >= BAR_BYTES_MIN { out.byte_bar(bytes, what) } else { ProgressBar::hidden() }
}

/// Send what is not there yet; each content once.
pub async fn upload(out: &Out, client: &Client, files: &[Local]) -> Result<(), Refusal> {
    let mut wanted: Vec<&Local> = files.iter().collect();
    wanted.sort_by_key(|f| f.hash);
    wanted.dedup_by_key(|f| f.hash);
    for some in wanted.chunks(HASHES_PER_CALL_MAX) {
        let hashes: Vec<Vec<u8>> = some.iter().map(|f| f.hash.0.to_vec()).collect();
        let there = client.call("has-blobs", async |mut grid| grid.has_blobs(pb::BlobHashes { hashes: hashes.clone() }).await).await?.hashes;
        for file in some.iter().filter(|f| !there.iter().any(|h| h[..] == f.hash.0[..])) {
            put(out, client, file).await?;
        }
    }
    Ok(())
}

async fn put(out: &Out, client: &Client, file: &Local) -> Result<(), Refusal> {
    let timeout_ms = BLOB_WAIT_MS + file.size / UPLOAD_BYTES_PER_MS_MIN;
    // A file that can't be read explains more than the other end's view of a stream that broke off.
    let unreadable = std::sync::Mutex::new(None);
    let answer = client.call_within("put-blob", timeout_ms, async |mut grid: Grid| {
        let bar = bar(out, file.size, "staging");
        let (send, receive) = mpsc::channel(PARTS_AHEAD_MAX);
        let (answer, read) = tokio::join!(grid.put_blob(ReceiverStream::new(receive)), parts(file, send, &bar));
        bar.finish_and_clear();
        if let (Err(refusal), Ok(mut slot)) = (read, unreadable.lock()) {
            *slot = Some(refusal);
            return Err(tonic::Status::invalid_argument("the file can't be read"));
        }
        answer
    });
    let answer = answer.await.map(|_| ());
    match unreadable.into_inner() {
        Ok(Some(refusal)) => Err(refusal),
        _ => answer,
    }
}

async fn parts(file: &Local, send: mpsc::Sender<pb::BlobPart>, bar: &ProgressBar) -> Result<(), Refusal> {
    let bad = |e: std::io::Error| local(format!("{} can't be read: {e}", file.path.display()));
    let mut from = tokio::fs::File::open(&file.path).await.map_err(bad)?.take(file.size);
    let mut part = pb::BlobPart { hash: file.hash.0.to_vec(), size: file.size, data: Bytes::new() };
    let mut left = file.size;
    loop {
        let mut data = vec![0; BLOB_PART_BYTES.min(usize::try_from(left).unwrap_or(BLOB_PART_BYTES))];
        if !data.is_empty() && from.read_exact(&mut data).await.is_err() {
            return Err(local(format!("{} changed while it was sent", file.path.display())).remedy("submit again when nobody writes to it"));
        }
        left -= data.len() as u64;
        bar.inc(data.len() as u64);
        part.data = data.into();
        match send.send_timeout(part, Duration::from_millis(CALL_TIMEOUT_MS)).await {
            Ok(()) => {}
            // The other end gave up: its answer says why.
            Err(mpsc::error::SendTimeoutError::Closed(_)) => return Ok(()),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Err(silent("put-blob", CALL_TIMEOUT_MS)),
        }
        if left == 0 {
            return Ok(());
        }
        part = pb::BlobPart::default();
    }
}

/// An output on its way.
pub struct Incoming {
    /// Of the whole.
    pub hash: BlobHash,
    /// Bytes.
    pub size: u64,
    first: Option<Bytes>,
    seen: u64,
    hasher: blake3::Hasher,
    stream: Streaming<pb::BlobPart>,
}

impl Incoming {
    /// Ask for an output of an ended task.
    pub async fn open(client: &Client, job: &str, task: u32, name: &str) -> Result<Incoming, Refusal> {
        let request = pb::OutputRequest { job: crate::names::reference(job), task, name: name.to_owned() };
        let asked = client.call_within("get-output", BLOB_WAIT_MS, async |mut grid: Grid| match grid.get_output(request.clone()).await {
            // Its answer, not its silence: asking again would change nothing.
            Err(status) if !status.details().is_empty() => Ok(Response::new(Err(refusal_of(&status)))),
            other => other.map(|response| Response::new(Ok(response.into_inner()))),
        });
        let mut stream = asked.await??;
        let first = next(&mut stream, BLOB_WAIT_MS).await?.ok_or_else(|| broken("it came without its hash"))?;
        let hash = BlobHash::from_slice(&first.hash).ok_or_else(|| broken("it came without its hash"))?;
        Ok(Incoming { hash, size: first.size, first: Some(first.data), seen: 0, hasher: blake3::Hasher::new(), stream })
    }

    /// The next bytes; None at its end, where size and hash have been checked.
    pub async fn part(&mut self) -> Result<Option<Bytes>, Refusal> {
        let data = match self.first.take() {
            Some(data) => Some(data),
            None => next(&mut self.stream, CALL_TIMEOUT_MS).await?.map(|p| p.data),
        };
        match &data {
            Some(data) => {
                self.hasher.update(data);
                self.seen += data.len() as u64;
                if self.seen > self.size {
                    return Err(broken("it is longer than announced"));
                }
            }
            None if self.seen < self.size => return Err(broken("it broke off")),
            None if self.hasher.finalize().as_bytes() != &self.hash.0 => return Err(broken("its content is not what its hash says")),
            None => {}
        }
        Ok(data)
    }

    /// Into a file, which appears only when it is complete.
    pub async fn save(mut self, to: &Path) -> Result<u64, Refusal> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = crate::names::file_name(to).unwrap_or_default();
        let part = to.with_file_name(format!(".{name}.{}-{}.part", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
        let saved = self.write(&part, to).await;
        if saved.is_err() {
            // The error that brought us here says more.
            let _ = std::fs::remove_file(&part);
        }
        saved
    }

    async fn write(&mut self, part: &Path, to: &Path) -> Result<u64, Refusal> {
        let bad = |e: std::io::Error| local(format!("{} can't be written: {e}", to.display())).remedy("choose another --dir");
        let mut file = tokio::fs::File::create(part).await.map_err(bad)?;
        while let Some(data) = self.part().await? {
            file.write_all(&data).await.map_err(bad)?;
        }
        file.flush().await.map_err(bad)?;
        drop(file);
        std::fs::rename(part, to).map_err(bad)?;
        Ok(self.size)
    }
}

async fn next(stream: &mut Streaming<pb::BlobPart>, timeout_ms: u64) -> Result<Option<pb::BlobPart>, Refusal> {
    let message = tokio::time::timeout(Duration::from_millis(timeout_ms), stream.message()).await.map_err(|_| silent("get-output", timeout_ms))?;
    message.map_err(|status| refusal_of(&status))
}

fn broken(what: &str) -> Refusal {
    Refusal::new(RefusalKind::Unavailable, format!("an output did not arrive whole: {what}")).remedy("fetch it again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Environment;

    fn out() -> Out {
        Out::new(&Environment::default(), false)
    }

    #[tokio::test]
    async fn files_are_hashed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"hello").unwrap();
        let file = hash(&out(), "--in", &path).await.unwrap();
        assert_eq!((BlobHash::of(b"hello"), 5), (file.hash, file.size));
        for (path, says) in [(dir.path().join("no"), "does not exist"), (dir.path().to_owned(), "not a plain file")] {
            let refused = hash(&out(), "--in", &path).await.unwrap_err();
            assert!(refused.message.contains(says) && refused.message.starts_with("--in"), "{refused}");
        }
    }

    #[tokio::test]
    async fn parts_carry_hash_and_size_once_even_of_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for size in [0, 1, BLOB_PART_BYTES, BLOB_PART_BYTES * 2 + 1] {
            std::fs::write(&path, vec![7; size]).unwrap();
            let file = hash(&out(), "--in", &path).await.unwrap();
            let (send, mut receive) = mpsc::channel(64);
            parts(&file, send, &ProgressBar::hidden()).await.unwrap();
            let mut seen = Vec::new();
            while let Some(p) = receive.recv().await {
                seen.push(p);
            }
            assert_eq!((file.hash.0.to_vec(), size as u64), (seen[0].hash.clone(), seen[0].size));
            assert!(seen[1..].iter().all(|p| p.hash.is_empty() && p.size == 0 && !p.data.is_empty()));
            assert_eq!(size, seen.iter().map(|p| p.data.len()).sum::<usize>());
        }
    }

    #[tokio::test]
    async fn a_file_that_shrinks_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"hello").unwrap();
        let file = hash(&out(), "--in", &path).await.unwrap();
        std::fs::write(&path, b"he").unwrap();
        let (send, _receive) = mpsc::channel(64);
        assert!(parts(&file, send, &ProgressBar::hidden()).await.unwrap_err().message.contains("changed"));
    }
}
