//! A leaf that lies: it says again what it said before, as something new, and speaks of what is over. Nothing of it may change what is known. Its own
//! truth (starts, exits, stops) stays as its agent has it; only words are added.

use std::collections::BTreeMap;

use intergrid_proto::link::{Down, Event, EventKind, Events, Hint, Up};
use intergrid_proto::{Phase, Reason, ReasonKind};

/// One lie after so many events.
const EVENTS_PER_LIE: u64 = 3;

/// Words added to an agent's, and the numbering that hides them.
#[derive(Debug, Default)]
pub struct Liar {
    /// The lies, by the agent's own sequence behind which they stand.
    lies: BTreeMap<u64, Event>,
    seen: u64,
}

impl Liar {
    /// An agent's sequence as it is said.
    fn said(&self, own: u64) -> u64 {
        own + self.lies.range(..own).count() as u64
    }

    /// What was said, as the agent's own sequence.
    fn own(&self, said: u64) -> u64 {
        (0..=said).rev().find(|own| self.said(*own) + u64::from(self.lies.contains_key(own)) <= said || *own == 0).unwrap_or(0)
    }

    pub fn disconnected(&mut self) {}

    pub fn up(&mut self, up: Up) -> Vec<Up> {
        match up {
            Up::Hello(mut h) => {
                (h.sequence_low, h.peer_sequence) = (self.said(h.sequence_low), self.said(h.peer_sequence));
                h.sequence_high = self.said(h.sequence_high) + u64::from(self.lies.contains_key(&h.sequence_high));
                vec![Up::Hello(h)]
            }
            Up::Resync(mut r) => {
                r.sequence = self.said(r.sequence) + u64::from(self.lies.contains_key(&r.sequence));
                vec![Up::Resync(r)]
            }
            Up::Events(e) => self.events(e),
            other => vec![other],
        }
    }

    fn events(&mut self, e: Events) -> Vec<Up> {
        let Events { incarnation, first, events } = e;
        let (mut out, mut hints) = (Vec::new(), Vec::new());
        for (own, event) in (first..).zip(events) {
            if own > self.seen {
                self.seen = own;
                if own.is_multiple_of(EVENTS_PER_LIE)
                    && let Some(lie) = lie(&event)
                {
                    self.lies.insert(own, lie);
                }
            }
            if let EventKind::Ended(_) = event.what {
                hints.push(Hint { of: event.of.clone(), phase: Phase::Running });
            }
            out.push(event);
            out.extend(self.lies.get(&own).cloned());
        }
        // Running, of what has just been said to be over.
        vec![Up::Events(Events { incarnation, first: self.said(first), events: out }), Up::Hints(hints)]
    }

    pub fn down(&mut self, down: Down) -> Down {
        match down {
            Down::Hello(mut h) => {
                h.peer_sequence = self.own(h.peer_sequence);
                Down::Hello(h)
            }
            Down::Ack { incarnation, sequence } => Down::Ack { incarnation, sequence: self.own(sequence) },
            other => other,
        }
    }
}

/// Something false about what is over, or about another's placement.
fn lie(event: &Event) -> Option<Event> {
    let of = event.of.clone();
    match &event.what {
        EventKind::Ended(e) => {
            let mut e = e.clone();
            (e.exit, e.cpu_us, e.wall_ms) = (vec![99], Vec::new(), Vec::new());
            e.phase = Phase::Failed;
            e.reason = Some(Reason::new(ReasonKind::ExitNonZero, "a lie"));
            e.lost = of.number.is_multiple_of(2);
            Some(Event { of, what: EventKind::Ended(e) })
        }
        EventKind::Returned(_) => Some(event.clone()),
        EventKind::Accepted => {
            let mut of = of;
            of.number += 1_000_000;
            Some(Event { of, what: EventKind::Returned(Reason::new(ReasonKind::OverCredit, "a lie about another's placement")) })
        }
        EventKind::Held(_) | EventKind::Released | EventKind::WantStored { .. } => None,
    }
}
