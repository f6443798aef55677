//! What the parent hears, and the laws that it checks on every message.

use std::collections::{BTreeMap, BTreeSet};

use intergrid_proto::link::{Attempts, Down, Event, EventKind, Hello, Kind, Known, Resync, Up, at};
use intergrid_proto::{Phase, SiteId, TaskSet};

use super::{Parent, Placement, View};
use crate::backend::FromChild;

impl Parent {
    pub(super) fn hear(&mut self, child: SiteId, message: FromChild) {
        let up = match message {
            FromChild::Up(Up::Hello(hello)) => return self.hello(child, hello),
            FromChild::Gone { .. } => {
                if let Some(c) = self.children.get_mut(&child) {
                    c.attached = false;
                }
                return;
            }
            FromChild::Up(up) => up,
        };
        let Some(view) = self.children.get_mut(&child).filter(|c| c.attached) else {
            return self.fault(child, format!("spoke before its hello, or after it had gone: {up:?}"));
        };
        match up {
            Up::Hello(_) | Up::Orphans(_) => {}
            Up::Advert(advert) => {
                self.backend.send(child, Down::Saw(advert.version));
                view.advert = Some(advert);
            }
            Up::NeedBlob(hash) => {
                view.needs.insert(hash);
            }
            Up::Hints(hints) => {
                for h in hints.into_iter().filter(|h| h.phase == Phase::Running) {
                    if let Some(p) = self.placements.get_mut(&h.of.number) {
                        p.ran = p.ran.union(&h.of.tasks);
                    }
                }
            }
            Up::Resync(r) => self.resync(child, r),
            Up::Events(e) => {
                if e.incarnation != view.cursor.0 || e.first != view.cursor.1 + 1 {
                    let text = format!("events {} of incarnation {} follow the cursor {:?}", e.first, e.incarnation, view.cursor);
                    return self.fault(child, text);
                }
                let sequence = e.first + e.events.len() as u64 - 1;
                view.cursor.1 = sequence;
                for (seq, event) in (e.first..).zip(e.events) {
                    self.event(child, seq, event);
                }
                if self.acking {
                    self.backend.send(child, Down::Ack { incarnation: e.incarnation, sequence });
                }
            }
        }
    }

    fn hello(&mut self, child: SiteId, hello: Hello) {
        if hello.hop.site != child {
            return self.fault(child, format!("said hello as {:?}", hello.hop));
        }
        self.number = self.number.max(hello.peer_placement);
        if self.placements.is_empty() {
            self.first_number = self.number + 1;
        }
        let fresh = || View {
            hello: hello.clone(),
            attached: true,
            hellos: 0,
            advert: None,
            cursor: (0, 0),
            repeats: 0,
            resyncs: (0, Vec::new()),
            wants_stored: BTreeMap::new(),
            needs: BTreeSet::new(),
            seen: 0,
            log: BTreeMap::new(),
            carried: BTreeSet::new(),
            issued: 0,
            parts: Vec::new(),
        };
        let view = self.children.entry(child).or_insert_with(fresh);
        if view.hellos > 0 && view.attached {
            return self.fault(child, "said hello twice in one session".into());
        }
        view.hellos += 1;
        view.attached = true;
        view.carried.clear();
        let answer = Hello {
            hop: self.me.clone(),
            incarnation: self.incarnation,
            peer_incarnation: view.cursor.0,
            peer_sequence: view.cursor.1,
            peer_placement: 0,
            placement: view.issued.max(hello.peer_placement),
            sequence_low: 0,
            sequence_high: 0,
            machine: Vec::new(),
            recovering: false,
        };
        if view.cursor.0 != hello.incarnation {
            (view.cursor, view.seen) = ((hello.incarnation, 0), 0);
            view.log.clear();
        }
        view.hello = hello;
        self.backend.send(child, Down::Hello(answer));
        for j in self.jobs.values().filter(|j| j.want.version > 0 && j.sent_to.contains(&child)) {
            self.backend.send(child, Down::Want(j.want.clone()));
        }
        let again = view.hello.recovering;
        let due = |p: &Placement| p.child == child && (again || p.accepted.is_empty()) && !p.alive.is_empty();
        let due: Vec<u64> = self.placements.iter().filter(|(_, p)| due(p)).map(|(n, _)| *n).collect();
        for n in due {
            if let Some(p) = self.placements.get_mut(&n) {
                p.place.known = if again { Known::Perhaps } else { Known::Nothing };
            }
            self.send_place(n);
        }
        if again {
            self.backend.send(child, Down::Resent);
        }
    }

    fn resync(&mut self, child: SiteId, r: Resync) {
        let Some(view) = self.children.get_mut(&child) else { return };
        view.parts.extend(r.ranges);
        if !r.last {
            return;
        }
        view.cursor = (r.incarnation, r.sequence);
        view.seen = view.seen.max(r.sequence);
        let ranges = std::mem::take(&mut view.parts);
        view.resyncs = (view.resyncs.0 + 1, ranges.clone());
        for range in ranges {
            let Some(p) = self.placements.get_mut(&range.of.number) else { continue };
            p.accepted = p.accepted.union(&range.of.tasks);
            let news = range.of.tasks.intersect(&p.alive);
            if let Some(e) = range.ended.filter(|_| !news.is_empty()) {
                p.alive = p.alive.subtract(&news);
                p.ended.push((news.clone(), e.select(&range.of.tasks, &news)));
            }
        }
        if self.acking {
            self.backend.send(child, Down::Ack { incarnation: r.incarnation, sequence: r.sequence });
        }
    }

    fn event(&mut self, child: SiteId, seq: u64, event: Event) {
        let Some(view) = self.children.get_mut(&child) else { return };
        let mark = (event.of.clone(), std::mem::discriminant(&event.what));
        if seq <= view.seen {
            view.repeats += 1;
            if view.log.get(&seq).is_some_and(|m| *m != mark) {
                self.fault(child, format!("event {seq} came again as another: {event:?}"));
            }
            return;
        }
        view.seen = seq;
        view.log.insert(seq, mark.clone());
        if let EventKind::WantStored { version } = event.what {
            let stored = view.wants_stored.entry(event.of.job).or_default();
            *stored = version.max(*stored);
            return;
        }
        let Attempts { number, tasks, .. } = event.of.clone();
        let leaf_below = self.children.get(&child).is_some_and(|c| c.hello.hop.kind != Kind::Agent);
        let Some(p) = self.placements.get_mut(&number) else {
            if number >= self.first_number {
                self.fault(child, format!("speaks of a placement that is not there: {event:?}"));
            }
            return;
        };
        let within = |set: &TaskSet| tasks.subtract(set).is_empty();
        let good = match event.what {
            EventKind::Accepted => {
                let good = within(&p.place.tasks) && p.accepted.intersect(&tasks).is_empty();
                p.accepted = p.accepted.union(&tasks);
                good
            }
            EventKind::Returned(reason) => {
                let good = within(&p.alive);
                p.alive = p.alive.subtract(&tasks);
                p.returned.push((tasks, reason));
                // What it gave back it may have dropped with its spec.
                let hash = p.place.spec_hash;
                self.children.get_mut(&child).map(|c| c.carried.remove(&hash));
                good
            }
            // History of an attempt below that was replaced there: this placement goes on.
            EventKind::Ended(e) if e.stale => leaf_below,
            EventKind::Ended(e) => {
                let routed = e.route.last().is_some_and(|h| h.site == child) && at(&e.exit, 0).is_some();
                let good = within(&p.alive) && within(&p.accepted) && routed;
                p.alive = p.alive.subtract(&tasks);
                p.ended.push((tasks, e));
                good
            }
            EventKind::Held(_) | EventKind::Released => within(&p.alive),
            EventKind::WantStored { .. } => true,
        };
        if p.child != child || p.place.job != event.of.job || !good {
            let text = format!("event {seq} breaks a law: {:?}, placement now {:?}", mark.0, self.placements.get(&number));
            self.fault(child, text);
        }
    }
}
