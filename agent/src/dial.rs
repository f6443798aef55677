//! Connections to the gateway: one for the link, one for bulk data as soon as there is any, so that a large file never delays a start or an end.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use intergrid_proto::limits::{CONNECT_TIMEOUT_MS, MESSAGE_BYTES_MAX, REDIAL_MAX_MS, REDIAL_MIN_MS};
use intergrid_proto::link::{Down, Up};
use intergrid_proto::net::identity::Identity;
use intergrid_proto::net::{client, refusal_of};
use intergrid_proto::pb::pool_client::PoolClient;
use intergrid_proto::{Refusal, RefusalKind, SiteId, pb};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::limits::UP_QUEUE_MAX;

/// The service that an agent dials.
pub type Pool = PoolClient<Channel>;

/// How to reach the gateway.
pub struct Dial {
    endpoint: String,
    identity: RwLock<Identity>,
    bulk: Mutex<Option<Pool>>,
}

/// What a link says to the shell.
#[derive(Debug)]
pub enum Said {
    /// Connected: messages go here; dropping `end` ends the session.
    Connected {
        /// Counts sessions.
        session: u64,
        /// To the gateway.
        up: mpsc::Sender<Up>,
        /// The connection.
        pool: Pool,
        /// Held as long as the session is wanted.
        end: oneshot::Sender<()>,
    },
    /// The gateway says.
    Down(u64, Down),
    /// The session is over, or did not come about.
    Gone(u64),
}

impl Dial {
    /// Nothing is dialled yet.
    pub fn new(endpoint: String, identity: Identity) -> Arc<Self> {
        Arc::new(Dial { endpoint, identity: RwLock::new(identity), bulk: Mutex::new(None) })
    }

    /// What it shows to the gateway.
    pub fn identity(&self) -> Identity {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From the next connection on.
    pub fn is_now(&self, identity: Identity) {
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    async fn connect(&self) -> Result<(Pool, SiteId), Refusal> {
        let identity = self.identity();
        let (channel, peer, _) = client::connect(&self.endpoint, &identity, identity.ca_pem()?, None).await?;
        let pool = PoolClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok((pool, peer.id))
    }

    /// The connection for bulk data; dialled where there is none.
    pub async fn bulk(&self) -> Result<Pool, Refusal> {
        let mut bulk = self.bulk.lock().await;
        if let Some(pool) = &*bulk {
            return Ok(pool.clone());
        }
        let (pool, _) = self.connect().await?;
        *bulk = Some(pool.clone());
        Ok(pool)
    }

    /// A call on the bulk connection has failed: the next one dials anew.
    pub async fn bulk_failed(&self) {
        self.bulk.lock().await.take();
    }

    /// Keep a link up for ever: dial, greet, listen, dial again.
    pub async fn keep(self: Arc<Self>, say: mpsc::Sender<Said>) {
        let mut backoff = Backoff::default();
        let mut last = String::new();
        for session in 1.. {
            let (began, mut heard) = (Instant::now(), false);
            let why = match self.session(session, &say, &mut heard).await {
                Ok(()) => "the gateway ended the link".to_string(),
                Err(e) => e.to_string(),
            };
            if heard {
                tracing::info!("detached from {}: {why}", self.endpoint);
            } else if why != last {
                tracing::warn!("can't attach to {}: {why}; trying on", self.endpoint);
            }
            last = why;
            if say.send(Said::Gone(session)).await.is_err() {
                return;
            }
            if heard && began.elapsed() > Duration::from_millis(REDIAL_MAX_MS) {
                backoff = Backoff::default();
            }
            backoff.pause().await;
        }
    }

    async fn session(&self, session: u64, say: &mpsc::Sender<Said>, heard: &mut bool) -> Result<(), Refusal> {
        let (mut pool, site) = self.connect().await?;
        let (up, ups) = mpsc::channel::<Up>(UP_QUEUE_MAX);
        let (end, mut ended) = oneshot::channel();
        let closed = |_| Refusal::new(RefusalKind::Unavailable, "this agent stops");
        say.send(Said::Connected { session, up, pool: pool.clone(), end }).await.map_err(closed)?;
        let patience = Duration::from_millis(CONNECT_TIMEOUT_MS);
        let silent = |_| Refusal::new(RefusalKind::Unavailable, format!("the gateway did not answer within {CONNECT_TIMEOUT_MS} ms"));
        let attached = timeout(patience, pool.attach(ReceiverStream::new(ups).map(pb::Up::from))).await.map_err(silent)?;
        let mut downs = attached.map_err(|s| refusal_of(&s))?.into_inner();
        loop {
            let message = tokio::select! {
                message = downs.message() => message,
                _ = &mut ended => return Err(Refusal::new(RefusalKind::Unavailable, "this agent wants a new connection")),
                () = sleep(patience), if !*heard => return Err(silent_hello()),
            };
            let Some(down) = message.map_err(|s| refusal_of(&s))? else { return Ok(()) };
            let down = Down::try_from(down)?;
            if let Down::Hello(hello) = &down {
                if hello.hop.site != site {
                    let message = format!("the gateway's hello says {}, its certificate {site}", hello.hop.site);
                    return Err(Refusal::new(RefusalKind::NotAuthorised, message));
                }
                *heard = true;
                tracing::info!("attached to {} at {}", hello.hop.name, self.endpoint);
            }
            say.send(Said::Down(session, down)).await.map_err(closed)?;
        }
    }
}

fn silent_hello() -> Refusal {
    Refusal::new(RefusalKind::Unavailable, format!("the gateway did not say hello within {CONNECT_TIMEOUT_MS} ms"))
}

/// Pauses between attempts: doubling, with jitter, so that a thousand agents don't come back at once.
#[derive(Debug)]
pub struct Backoff(u64);

impl Default for Backoff {
    fn default() -> Self {
        Backoff(REDIAL_MIN_MS)
    }
}

impl Backoff {
    /// Wait, and wait longer the next time.
    pub async fn pause(&mut self) {
        let jitter = random() % (self.0 / 2 + 1);
        sleep(Duration::from_millis(self.0 / 2 + jitter)).await;
        self.0 = (self.0 * 2).min(REDIAL_MAX_MS);
    }
}

/// A number that nobody has to be unable to guess; never 0. The standard library seeds its hash maps from the system's random source.
pub fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish().max(1)
}
