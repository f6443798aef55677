//! Machines that join: a token is a certificate of role `join`, good for one machine, once. For which key it was used is durable before the answer; the same
//! key may ask again, as its answer may have been lost.
//!
//! It does not look at who may attach: that a machine is still wanted is asked of its provider, here and whenever it attaches.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use intergrid_proto::limits::JOINED_CERT_MS;
use intergrid_proto::net::issue::{Csr, Validity};
use intergrid_proto::net::trust::CaId;
use intergrid_proto::net::{CertRole, Peer};
use intergrid_proto::{Refusal, RefusalKind};
use prost::Message;
use tokio::sync::Mutex;

use crate::durable::blocking;
use crate::engine::{Engine, Rows};
use crate::store::StoreError;

/// The table's letter; keys are ids of tokens.
const TABLE: u8 = b't';
/// Rows of tokens that have expired, and that nobody can come with any more, are deleted so many at a time.
const SWEEP_ROWS_MAX: usize = 1_000;

/// They are kept for so long after it, whatever a clock does meanwhile.
const KEPT_MS: u64 = 7 * 86_400_000;

/// What a token was used for.
#[derive(Clone, PartialEq, Message)]
struct Row {
    /// Id of the key that it was used for.
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    /// The token's last moment, in Unix milliseconds.
    #[prost(uint64, tag = "2")]
    until_ms: u64,
}

/// Certifies machines.
pub struct Joins {
    engine: Engine,
    /// The site's, with its CA's key.
    identity: PathBuf,
    /// That CA.
    ours: Vec<CaId>,
    /// One at a time: two keys that come with one token at once are told apart.
    one: Mutex<()>,
}

impl Joins {
    /// With the CA in this directory, whose certificate this is.
    pub fn new(engine: Engine, identity: PathBuf, ca_pem: &[u8]) -> Result<Self, Refusal> {
        Ok(Joins { engine, identity, ours: CaId::all(ca_pem)?, one: Mutex::default() })
    }

    /// A certificate for the machine that came with this token; in PEM.
    pub async fn join(&self, token: &Peer, csr: &[u8]) -> Result<String, Refusal> {
        token.require(intergrid_proto::net::Role::Join)?;
        self.of_ours(token)?;
        // The handshake has looked at that, but a connection can be held open.
        if token.not_after <= SystemTime::now() {
            let message = format!("the token of {} has expired", token.label);
            return Err(Refusal::new(RefusalKind::NotAuthorised, message).remedy("make a new one with `grid token`"));
        }
        let csr = Csr::read(csr)?;
        let _one = self.one.lock().await;
        let reader = self.engine.reader();
        let damaged = |e: StoreError| Refusal::new(RefusalKind::Internal, e.to_string());
        match reader.get(&row_key(&token.id.0)).map_err(damaged)?.map(|row| Row::decode(&row[..])) {
            None => {
                let mut rows = Rows::new();
                let sweep = |key: &[u8], row: &[u8]| {
                    if Row::decode(row).is_ok_and(|row| row.until_ms.saturating_add(KEPT_MS) < unix_ms(SystemTime::now())) {
                        rows.push((key.to_vec(), None));
                    }
                    rows.len() < SWEEP_ROWS_MAX
                };
                reader.scan(&[TABLE], &mut { sweep }).map_err(damaged)?;
                let row = Row { key: csr.id().0.to_vec(), until_ms: unix_ms(token.not_after) };
                rows.push((row_key(&token.id.0), Some(row.encode_to_vec())));
                self.engine.put(rows).await?;
            }
            Some(Ok(row)) if row.key == csr.id().0 => {}
            Some(_) => {
                let message = format!("the token of {} was used before, for another key", token.label);
                let remedy = "if it was not this machine, somebody has read the token: end that machine; make a new one with `grid token`";
                return Err(Refusal::new(RefusalKind::NotAuthorised, message).remedy(remedy));
            }
        }
        self.sign(csr, token.label.clone()).await
    }

    /// The certificate of a machine again, with a later end; in PEM.
    pub async fn renew(&self, agent: &Peer, csr: &[u8]) -> Result<String, Refusal> {
        agent.require(intergrid_proto::net::Role::Agent)?;
        self.of_ours(agent)?;
        let csr = Csr::read(csr)?;
        if csr.id() != agent.id {
            return Err(Refusal::new(RefusalKind::NotAuthorised, format!("the request is of another key than the certificate of {}", agent.label)));
        }
        self.sign(csr, agent.label.clone()).await
    }

    /// What another CA vouches for gets no certificate of ours, which would outlive our trust in that CA.
    fn of_ours(&self, peer: &Peer) -> Result<(), Refusal> {
        match self.ours.contains(&peer.ca) {
            true => Ok(()),
            false => {
                let message = format!("{peer} has its certificate from another CA than this site's");
                Err(Refusal::new(RefusalKind::NotAuthorised, message).remedy("let the CA that issued it renew it, or make a token here"))
            }
        }
    }

    async fn sign(&self, csr: Csr, label: String) -> Result<String, Refusal> {
        let identity = self.identity.clone();
        blocking(move || csr.sign(identity, CertRole::Agent, &label, Validity::of(Duration::from_millis(JOINED_CERT_MS)))).await
    }
}

fn row_key(token: &[u8]) -> Vec<u8> {
    [&[TABLE], token].concat()
}

fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
