//! What running tasks have printed, for who follows them: the gateway asks, one look at the file is the answer. Nothing is read while nobody asks.
//!
//! Invariant: the bytes are of the attempt that the answer names. A task that was found running after a restart of the agent writes to a file that has no name
//! any more: of it nothing is shown.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use intergrid_proto::limits::LIVE_BYTES_MAX;
use intergrid_proto::{SiteId, pb};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::core::Key;
use crate::desk::{Desk, SharedDesk};
use crate::dial::Pool;
use crate::exec::dirs::Dirs;
use crate::limits::STREAM_BYTES_MAX;

/// Answers that wait to be sent.
const ANSWERS_MAX: usize = 4;
/// A look that finds the task elsewhere than a moment before is taken again.
const LOOKS_MAX: usize = 3;

/// Answer until the connection ends.
pub(crate) async fn serve(mut pool: Pool, desk: Arc<SharedDesk>, dirs: Dirs, me: SiteId) {
    let (answers, outgoing) = mpsc::channel(ANSWERS_MAX);
    // A gateway that knows no such questions refuses.
    let Ok(questions) = pool.peeks(ReceiverStream::new(outgoing)).await else { return };
    let mut questions = questions.into_inner();
    while let Ok(Some(question)) = questions.message().await {
        let (desk, dirs, id) = (desk.clone(), dirs.clone(), question.id);
        let Ok(reply) = tokio::task::spawn_blocking(move || look(&desk, &dirs, me, &question)).await else { return };
        if answers.send(pb::PeekAnswer { id, reply: Some(reply) }).await.is_err() {
            return;
        }
    }
}

/// Where a task's stream is now.
fn place(desk: &Desk, dirs: &Dirs, number: u64, task: u32, name: &str) -> Option<(Key, PathBuf)> {
    let (key, pid) = desk.core.live(number, task)?;
    let path = match pid {
        Some(pid) => dirs.stream(desk.exec.pair(pid)?, name),
        None => dirs.file(key, name),
    };
    Some((key, path))
}

fn look(desk: &SharedDesk, dirs: &Dirs, me: SiteId, q: &pb::PeekQuestion) -> pb::PeekReply {
    let Some((key, _)) = place(&desk.lock(), dirs, q.number, q.task, "stdout") else { return pb::PeekReply::default() };
    let attempt = [me.0.as_slice(), &key.0.to_be_bytes()].concat();
    let known = |bytes: u64| if q.attempt == attempt || bytes == u64::MAX { bytes } else { 0 };
    let read = |name: &str, from: u64| -> Option<Vec<u8>> {
        for _ in 0..LOOKS_MAX {
            let at = place(&desk.lock(), dirs, q.number, q.task, name)?;
            let mut bytes = vec![0; STREAM_BYTES_MAX.saturating_sub(from).min(LIVE_BYTES_MAX as u64) as usize];
            let read = File::open(&at.1).and_then(|file| file.read_at(&mut bytes, from));
            // The file may have become another task's meanwhile.
            if place(&desk.lock(), dirs, q.number, q.task, name)? == at {
                bytes.truncate(read.ok()?);
                return Some(bytes);
            }
        }
        None
    };
    let stdout = read("stdout", known(q.stdout)).unwrap_or_default();
    let stderr = read("stderr", known(q.stderr)).unwrap_or_default();
    pb::PeekReply { attempt, stdout, stderr, ended: false }
}
