//! `--watch`: the same question again and again, until it is answered for good or somebody stops it.

use std::time::Duration;

use intergrid_proto::RefusalKind;

use crate::out::Out;
use crate::stop::{Result, Stop};

/// Between an answer and the next question.
const INTERVAL_MS: u64 = 1_000;

/// Ask until the answer is final. A site that is away for a while is said to be, and asked again; only its first answer has to come.
pub async fn repeat(out: &Out, mut ask: impl AsyncFnMut(&Out) -> Result<bool>) -> Result<()> {
    let mut first = true;
    loop {
        let frame = out.framed();
        let over = match ask(&frame).await {
            Err(Stop::Refused(r)) if !first && r.kind == RefusalKind::Unavailable => {
                out.error(&r);
                false
            }
            asked => {
                let over = asked?;
                frame.show_frame(first)?;
                over
            }
        };
        if over {
            return Ok(());
        }
        first = false;
        tokio::time::sleep(Duration::from_millis(INTERVAL_MS)).await;
    }
}
