//! What waits in the LRMS and is not to wait there any longer goes back, and may start elsewhere.

use std::sync::Arc;

use intergrid_proto::units::format_duration;
use intergrid_proto::{Reason, ReasonKind, SiteId};

use super::send::Back;
use super::{Driver, account};

impl Driver {
    /// Take back what has not started of a queue that is given no new work here, or is not offered any more, of one that is gone or refuses its account,
    /// and what has waited for longer than this site lets it.
    pub(super) async fn recall(self: &Arc<Self>) {
        let (name, wait_max) = (self.lrms.name(), self.config.limits.wait_max_ms);
        let queues: Vec<(String, SiteId, bool)> = {
            let inner = self.lock();
            // Without any, the LRMS has not told of its queues yet.
            let is_gone = |queue: &str| !inner.queues.is_empty() && inner.queues.iter().all(|q| q.name != queue);
            inner.children.iter().map(|(queue, (child, _))| (queue.clone(), *child, is_gone(queue))).collect()
        };
        for (queue, child, is_gone) in queues {
            let lingering = |wait_ms| self.lock().books.lingering(&queue, self.clock.now(), wait_ms);
            let waiting = lingering(0);
            if waiting.is_empty() {
                continue;
            }
            let denied = |tag: &str| {
                let inner = self.lock();
                inner.books.sub(tag).and_then(|s| inner.denied(&queue, &account(&s.intent)))
            };
            self.take_back(waiting.into_keys().filter_map(|place| denied(&place.0).map(|why| (place, Back::Unstarted(why)))).collect());
            let gone = || is_gone.then(|| (ReasonKind::NoResource, format!("{name} has no queue {queue:?} any more")));
            let closed = self.above.closed(child).await.or_else(|| self.not_offered(&queue)).map(|why| (ReasonKind::Draining, why));
            let (waiting, all) = match (closed.or_else(gone), wait_max) {
                (Some(all), _) => (lingering(0), Some(all)),
                (None, Some(max)) => (lingering(max), None),
                (None, None) => continue,
            };
            let reason = |why: &str| match &all {
                Some((kind, text)) => Reason::new(*kind, text.clone()),
                None => Reason::new(ReasonKind::AllBusy, format!("it waited {} in {name}: {why}", format_duration(wait_max.unwrap_or(0)))),
            };
            self.take_back(waiting.into_iter().map(|(place, why)| (place, Back::Unstarted(reason(&why)))).collect());
        }
    }
}
