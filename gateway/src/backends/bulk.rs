//! Content on the wire: files out in parts, parts in as content. It verifies nothing: who reads to the end does.

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use intergrid_proto::limits::{BLOB_BYTES_MAX, BLOB_PART_BYTES, CALL_TIMEOUT_MS, MESSAGE_BYTES_MAX};
use intergrid_proto::net::refusal_of;
use intergrid_proto::pb::grid_client::GridClient;
use intergrid_proto::{BlobHash, Refusal, RefusalKind, pb};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;

use crate::backend::Content;

/// A transfer may take its call's time-out, and a second more for each of these.
const BULK_BYTES_PER_S_MIN: u64 = 256 * 1024;

/// How long a transfer of this size may take.
pub(crate) fn patience(size: u64) -> Duration {
    Duration::from_millis(CALL_TIMEOUT_MS) + Duration::from_secs(size / BULK_BYTES_PER_S_MIN)
}

pub(super) fn client(channel: Channel) -> GridClient<Channel> {
    GridClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// Parts as they come; each has to come within a call's time-out.
pub(super) async fn receive(mut parts: tonic::Streaming<pb::BlobPart>) -> Result<Content, Refusal> {
    let late = || Refusal::new(RefusalKind::Unavailable, format!("no part of the content came within {CALL_TIMEOUT_MS} ms"));
    let wait = Duration::from_millis(CALL_TIMEOUT_MS);
    let first = timeout(wait, parts.message()).await.map_err(|_| late())?.map_err(|s| refusal_of(&s))?;
    let first = first.ok_or_else(|| Refusal::new(RefusalKind::Unavailable, "the content ended before its first part"))?;
    let hash = BlobHash::from_slice(&first.hash).ok_or_else(|| Refusal::invalid("malformed message: the content's first part has no hash"))?;
    if first.size > BLOB_BYTES_MAX {
        return Err(Refusal::new(RefusalKind::OverLimit, format!("the content has {} bytes, at most {BLOB_BYTES_MAX} are taken", first.size)));
    }
    let left = (first.size as usize).checked_sub(first.data.len());
    let longer = move || Refusal::invalid(format!("the content is longer than the {} bytes announced", first.size));
    let left = left.ok_or_else(longer)?;
    let rest = futures::stream::unfold(Some((parts, left)), move |parts| async move {
        let (mut parts, left) = parts?;
        match timeout(wait, parts.message()).await {
            // Who reads to the end verifies; here it is only cut where it should have ended.
            Ok(Ok(Some(part))) => Some(match left.checked_sub(part.data.len()) {
                Some(left) => (Ok(part.data), Some((parts, left))),
                None => (Err(longer()), None),
            }),
            Ok(Ok(None)) => None,
            Ok(Err(status)) => Some((Err(refusal_of(&status)), None)),
            Err(_) => Some((Err(Refusal::new(RefusalKind::Unavailable, format!("no part of the content came within {CALL_TIMEOUT_MS} ms"))), None)),
        }
    });
    let parts = futures::stream::once(std::future::ready(Ok(first.data))).chain(rest);
    Ok(Content { hash, size: first.size, parts: Box::pin(parts) })
}

/// A file in parts, and its size. Where reading fails the stream ends early: the receiver finds the size wrong and refuses it.
pub(super) async fn file(hash: BlobHash, path: PathBuf) -> Result<(impl Stream<Item = pb::BlobPart> + Send + use<>, u64), Refusal> {
    let unreadable = |e: std::io::Error| Refusal::new(RefusalKind::MissingBlob, format!("{}: {e}", path.display()));
    let file = tokio::fs::File::open(&path).await.map_err(unreadable)?;
    let size = file.metadata().await.map_err(unreadable)?.len();
    let first = pb::BlobPart { hash: hash.0.to_vec(), size, data: Default::default() };
    let rest = futures::stream::unfold((file, path), |(mut file, path)| async move {
        let mut data = Vec::with_capacity(BLOB_PART_BYTES);
        match (&mut file).take(BLOB_PART_BYTES as u64).read_to_end(&mut data).await {
            Ok(0) => None,
            Ok(_) => Some((pb::BlobPart { hash: Vec::new(), size: 0, data: data.into() }, (file, path))),
            Err(e) => {
                tracing::warn!(path = %path.display(), error = %e, "a blob can't be read to its end");
                None
            }
        }
    });
    Ok((futures::stream::once(std::future::ready(first)).chain(rest), size))
}

/// Content as the parts of an answer: hash and size first.
pub(crate) fn parts(content: Content) -> Pin<Box<dyn Stream<Item = Result<pb::BlobPart, Status>> + Send>> {
    let first = pb::BlobPart { hash: content.hash.0.to_vec(), size: content.size, data: Default::default() };
    let rest = content.parts.map(|part| part.map(|data| pb::BlobPart { hash: Vec::new(), size: 0, data }).map_err(Status::from));
    Box::pin(futures::stream::once(std::future::ready(Ok(first))).chain(rest))
}
