//! No room on the disk: nothing new is taken and nothing is placed, as in a drain of this site, so that what runs can end. Not durable: the disk says it again.

use intergrid_proto::link::Kind;
use intergrid_proto::{Reason, ReasonKind, Refusal, RefusalKind, SiteId, pb};

use super::{Child, Core};

impl Core {
    /// Hear how it is now.
    pub(super) fn room(&mut self, why: Option<Refusal>) {
        let since = self.no_room.as_ref().map_or(self.now.unix_ms, |n| n.1);
        if why.is_some() == self.no_room.is_some() {
            // The numbers change all the time; who asks is told the latest.
            self.no_room = why.map(|w| (w, since));
            return;
        }
        self.no_room = why.map(|w| (w, since));
        (self.schedule_due, self.advert_due) = (true, true);
        let waiting: Vec<u64> = self.state.waiting.values().flatten().copied().collect();
        self.changed.extend(waiting);
    }

    /// Is there no room for new work?
    pub fn lacks_room(&self) -> bool {
        self.no_room.is_some()
    }

    /// Is nothing to be placed on this child, by order or for want of room?
    pub(super) fn is_closed(&self, child: SiteId) -> bool {
        self.no_room.is_some() || self.drained(child).is_some()
    }

    /// Why, in words; None: it is not.
    pub fn why_closed(&self, child: SiteId) -> Option<String> {
        self.draining(child).map(|(why, _)| why)
    }

    /// For how long there has been no room, and why, in words.
    pub(super) fn no_room(&self) -> Option<(String, u64)> {
        let (why, since) = self.no_room.as_ref()?;
        Some((format!("{} takes no new work: {}", self.me.name, why.message), self.now.unix_ms.saturating_sub(*since)))
    }

    /// As this site tells it of itself.
    pub(super) fn host_room(&self) -> Option<pb::Reason> {
        let (why, since) = self.no_room.as_ref()?;
        let reason = Reason::new(ReasonKind::Draining, why.message.clone()).remedy(why.remedy.clone());
        Some(reason.aged(self.now.unix_ms.saturating_sub(*since)).into())
    }

    /// What an agent says that takes nothing new.
    pub(super) fn own_word(&self, child: &Child) -> Option<pb::Reason> {
        let (_, share) = child.shares.iter().find(|(_, s)| child.hop.kind == Kind::Agent && s.draining)?;
        let age = share.draining_age_ms + self.now.mono_ms.saturating_sub(child.heard_ms);
        Some(Reason::new(ReasonKind::Draining, share.draining_reason.clone()).aged(age).into())
    }

    /// May a user's job come in?
    pub(super) fn room_for_new(&self) -> Result<(), Refusal> {
        let refused = |(why, _): &(Refusal, u64)| {
            let message = format!("{} takes no new work: {}", self.me.name, why.message);
            Refusal::new(RefusalKind::OverLimit, message).remedy(why.remedy.clone())
        };
        self.no_room.as_ref().map_or(Ok(()), |n| Err(refused(n)))
    }
}
