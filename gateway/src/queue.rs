//! A queue to a peer, bounded in messages and in bytes: a peer that does not read costs so much and no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use intergrid_proto::link::{Attempts, Down, EventKind, Up, Want};
use intergrid_proto::{Reason, Share, TaskSet};
use tokio::sync::mpsc;

/// What the messages of one queue take, about. One message is taken in any case.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// What a message takes beside its words and sets.
const MESSAGE_BYTES: usize = 256;

/// What a message takes in memory, about.
pub trait Weight {
    /// Bytes.
    fn weight(&self) -> usize;
}

fn set(t: &TaskSet) -> usize {
    8 * t.ranges().len()
}

fn wishes(w: &Want) -> usize {
    MESSAGE_BYTES + 8 * w.range_count()
}

fn attempts(list: &[Attempts]) -> usize {
    list.iter().map(|a| MESSAGE_BYTES + set(&a.tasks)).sum()
}

fn reason(r: &Reason) -> usize {
    MESSAGE_BYTES + r.text.len() + r.remedy.len() + r.because.iter().map(reason).sum::<usize>()
}

fn ended(e: &intergrid_proto::link::Ended) -> usize {
    let lists = e.exit.len() + e.wall_ms.len() + e.cpu_us.len() + e.peak_bytes.len() + e.age_ms.len();
    MESSAGE_BYTES * (1 + e.route.len()) + 8 * lists + e.reason.as_ref().map_or(0, reason)
}

/// What an event takes, as [`Weight`].
pub fn event(e: &intergrid_proto::link::Event) -> usize {
    let what = match &e.what {
        EventKind::Returned(r) | EventKind::Held(r) => reason(r),
        EventKind::Ended(e) => ended(e),
        EventKind::Accepted | EventKind::Released | EventKind::WantStored { .. } => 0,
    };
    MESSAGE_BYTES + set(&e.of.tasks) + what
}

fn share(s: &Share) -> usize {
    2 * MESSAGE_BYTES + s.key.len() + 16 * s.path.len()
}

impl Weight for Up {
    fn weight(&self) -> usize {
        let of = match self {
            Up::Advert(a) => a.shares.iter().map(share).sum::<usize>() + MESSAGE_BYTES * a.below.len(),
            Up::Events(e) => e.events.iter().map(event).sum(),
            Up::Hints(h) => h.iter().map(|h| MESSAGE_BYTES + set(&h.of.tasks)).sum(),
            Up::Resync(r) => r.ranges.iter().map(|r| MESSAGE_BYTES + set(&r.of.tasks) + r.ended.as_ref().map_or(0, ended)).sum(),
            _ => 0,
        };
        MESSAGE_BYTES + of
    }
}

impl Weight for Down {
    fn weight(&self) -> usize {
        let of = match self {
            Down::Stale(list) | Down::Open(list) => attempts(list),
            Down::Want(w) => wishes(w),
            Down::Place(p) => p.spec.len() + set(&p.tasks) + wishes(&p.want) + intergrid_proto::convert::chain_bytes(&p.chain) + 16 * p.route.len(),
            Down::Demand(d) => std::mem::size_of_val(&d[..]),
            _ => 0,
        };
        MESSAGE_BYTES + of
    }
}

/// The end that sends. Cheap to clone.
pub struct Sender<T> {
    messages: mpsc::Sender<(T, usize)>,
    bytes: Arc<AtomicUsize>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender { messages: self.messages.clone(), bytes: self.bytes.clone() }
    }
}

/// Why a message was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotTaken {
    /// Its peer does not keep up.
    Full,
    /// There is nobody at the other end.
    Closed,
}

/// The end that is read.
pub struct Receiver<T> {
    messages: mpsc::Receiver<(T, usize)>,
    bytes: Arc<AtomicUsize>,
}

/// A queue of at most so many messages, and of [`QUEUE_BYTES_MAX`].
pub fn queue<T: Weight>(messages_max: usize) -> (Sender<T>, Receiver<T>) {
    let (tx, rx) = mpsc::channel(messages_max);
    let bytes = Arc::<AtomicUsize>::default();
    (Sender { messages: tx, bytes: bytes.clone() }, Receiver { messages: rx, bytes })
}

impl<T: Weight> Sender<T> {
    /// Without waiting.
    pub fn try_send(&self, message: T) -> Result<(), NotTaken> {
        let weight = message.weight();
        let before = self.bytes.fetch_add(weight, Ordering::Relaxed);
        let sent = match before > 0 && before + weight > QUEUE_BYTES_MAX {
            true => Err(NotTaken::Full),
            false => self.messages.try_send((message, weight)).map_err(|e| match e {
                mpsc::error::TrySendError::Full(_) => NotTaken::Full,
                mpsc::error::TrySendError::Closed(_) => NotTaken::Closed,
            }),
        };
        if sent.is_err() {
            self.bytes.fetch_sub(weight, Ordering::Relaxed);
        }
        sent
    }

    /// Nobody is at the other end.
    pub fn is_closed(&self) -> bool {
        self.messages.is_closed()
    }

    /// Done when nobody is at the other end.
    pub async fn closed(&self) {
        self.messages.closed().await;
    }
}

impl<T> Receiver<T> {
    /// The next one; None: all senders are gone.
    pub async fn recv(&mut self) -> Option<T> {
        let (message, weight) = self.messages.recv().await?;
        self.bytes.fetch_sub(weight, Ordering::Relaxed);
        Some(message)
    }

    /// Take no more.
    pub fn close(&mut self) {
        self.messages.close();
    }

    /// All that come.
    pub fn stream(self) -> impl futures::Stream<Item = T> + Send + 'static
    where
        T: Send + 'static,
    {
        futures::stream::unfold(self, |mut rx| async move { rx.recv().await.map(|m| (m, rx)) })
    }
}
