//! No room on the disk: nothing new is claimed, what waits goes back, and the gateway is told why. What runs goes on and ends as ever.

use intergrid_proto::{Reason, ReasonKind, Refusal};

use super::Core;

impl Core {
    /// Hear how it is now.
    pub(super) fn room(&mut self, why: Option<Refusal>) {
        if why.is_some() == self.no_room.is_some() {
            return;
        }
        self.no_room = why.map(|w| (w.to_string(), self.now));
        self.link.advert_dirty = true;
        let Some((text, _)) = self.no_room.clone() else { return };
        let numbers: Vec<u64> = self.opens.keys().copied().collect();
        for number in numbers {
            let Some(all) = self.state.placements.get(&number).map(|p| p.open.clone()) else { continue };
            // What is orphaned waits here for who adopts it.
            for name in self.names(number, &all).into_iter().filter(|n| !n.is_orphan) {
                let waiting = self.take_unstarted(number, &name.tasks, false);
                if !waiting.is_empty() {
                    self.give_back(number, waiting, Reason::new(ReasonKind::Draining, text.clone()));
                }
            }
            self.queue(number);
        }
    }

    /// Is nothing new begun?
    pub fn lacks_room(&self) -> bool {
        self.no_room.is_some()
    }
}
