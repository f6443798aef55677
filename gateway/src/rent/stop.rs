//! The end of a gateway in order: machines that end with it are written down as gone, so that the next start pays for none of them until it has looked.

use std::collections::BTreeSet;
use std::time::Duration;

use intergrid_provision::{Input, Provisioner, SeenState, Stage};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::book::Book;
use super::{COMMIT_AGAIN_MS, Shell, show};
use crate::core::rent::number;

/// What is written down at the end has so long.
const COMMIT_MAX: Duration = Duration::from_millis(2 * COMMIT_AGAIN_MS);

const LATE: &str = "what ends with this gateway could not be written down in time: the next start finds it";

/// What is left of the shell that has ended.
pub(super) struct Left {
    pub(super) shell: Shell,
    pub(super) book: Book,
    pub(super) p: Provisioner,
}

/// Of one that was told to stop. None: it could not write down all in time.
pub(super) async fn left(task: Option<JoinHandle<Option<Left>>>) -> Option<Left> {
    let mut task = task?;
    let left = timeout(COMMIT_MAX, &mut task).await.ok().and_then(Result::ok).flatten();
    if left.is_none() {
        task.abort();
        tracing::warn!("{LATE}");
    }
    left
}

impl Left {
    /// The machines of these labels have ended. Where that can't be written down in time, the next start finds it.
    pub(super) async fn ended(mut self, labels: BTreeSet<String>) {
        let (gateway, now) = (self.shell.config.gateway.clone(), self.shell.time.now_ms());
        for number in labels.iter().filter_map(|label| number(&gateway, label)) {
            // One that is not named yet may still be launched.
            if self.p.machines().any(|m| m.number == number && m.stage == Stage::Named) {
                self.p.step(Input::Terminated(number, Some(SeenState::Ended)), now);
            }
        }
        let records = self.p.take().0;
        if !records.is_empty() {
            records.iter().for_each(|r| show::log(&gateway, r, &self.p));
            let rows = self.book.rows(&records, || self.p.checkpoint());
            if !matches!(timeout(COMMIT_MAX, self.shell.engine.put(rows)).await, Ok(Ok(()))) {
                tracing::warn!("{LATE}");
            }
        }
    }
}
