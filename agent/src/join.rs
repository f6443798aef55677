//! How a machine becomes one of a grid: with a token it asks its gateway for a certificate, once, for a key that it made itself; from then on it has that
//! renewed in time.
//!
//! Invariant: the key never leaves the machine, and the token is deleted when it has been used. Whether the gateway still wants the machine is the gateway's
//! to say, at each of these calls and whenever it attaches.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use intergrid_proto::limits::{CONNECT_TIMEOUT_MS, JOINED_CERT_MS};
use intergrid_proto::net::identity::Identity;
use intergrid_proto::net::join::{keep, request};
use intergrid_proto::net::refusal_of;
use intergrid_proto::{Refusal, RefusalKind, pb};
use tokio::time::{Instant, sleep, timeout};

use crate::config::AgentConfig;
use crate::dial::{Backoff, Dial};

/// A renewal that failed is tried again after so long.
const RENEW_AGAIN_MS: u64 = 60_000;

/// Where there is a token, and no certificate yet: until there is one, or it is refused, or the machine has been alone for too long.
pub(crate) async fn join(config: &AgentConfig) -> Result<(), Refusal> {
    let Some(path) = &config.token else { return Ok(()) };
    // One that has expired opens nothing any more, not even a renewal: then a new token helps, and nothing else does.
    let has_cert = config.identity.join("cert.pem").exists();
    let is_good = || Identity::load(&config.identity).map_or(true, |known| known.cert().not_after > SystemTime::now());
    if has_cert && (is_good() || !path.exists()) {
        // Used, and left behind by an end in between.
        if path.exists() {
            _ = fs::remove_file(path);
        }
        return Ok(());
    }
    let token = Identity::load_token(path)?;
    if token.label() != config.name {
        let message = format!("{}: it is a token for {}, not for {}", path.display(), token.label(), config.name);
        return Err(Refusal::new(RefusalKind::NotAuthorised, message).remedy("correct `name` or `token`"));
    }
    let csr = request(&config.identity)?;
    let dial = Dial::new(config.gateway.clone(), token.clone());
    let (mut backoff, began, mut last) = (Backoff::default(), Instant::now(), String::new());
    let cert = loop {
        match ask(&dial, &csr, true).await {
            Ok(cert) => break cert,
            Err(why) if why.kind != RefusalKind::Unavailable => return Err(why),
            Err(why) if config.alone_max.is_some_and(|max| began.elapsed() >= Duration::from_millis(max)) => return Err(why),
            Err(why) => {
                let why = why.to_string();
                if why != last {
                    tracing::warn!("can't join at {}: {why}; trying on", config.gateway);
                    last = why;
                }
            }
        }
        backoff.pause().await;
    };
    keep(&config.identity, &cert, token.ca_pem()?)?;
    tracing::info!("joined as {}", config.name);
    if let Err(e) = fs::remove_file(path) {
        tracing::warn!("{}: the token is used, and can't be deleted: {e}", path.display());
    }
    Ok(())
}

async fn ask(dial: &Dial, csr: &[u8], first: bool) -> Result<String, Refusal> {
    let mut pool = dial.bulk().await?;
    let request = pb::JoinRequest { csr: csr.to_vec() };
    let call = async {
        match first {
            true => pool.join(request).await,
            false => pool.renew(request).await,
        }
    };
    let silent = |_| Refusal::new(RefusalKind::Unavailable, format!("the gateway did not answer within {CONNECT_TIMEOUT_MS} ms"));
    match timeout(Duration::from_millis(CONNECT_TIMEOUT_MS), call).await.map_err(silent).and_then(|r| r.map_err(|s| refusal_of(&s))) {
        Ok(reply) => Ok(reply.into_inner().certificate),
        Err(why) => {
            dial.bulk_failed().await;
            Err(why)
        }
    }
}

/// For as long as the agent runs, where it has joined: a new certificate when half of the time of the last is over.
pub(crate) async fn renew(config: AgentConfig, dial: Arc<Dial>) {
    loop {
        let left = dial.identity().cert().not_after.duration_since(SystemTime::now()).unwrap_or_default();
        sleep(renewal_due(left)).await;
        if let Err(why) = renewed(&config, &dial).await {
            tracing::warn!("the certificate could not be renewed: {why}; trying on");
            sleep(Duration::from_millis(RENEW_AGAIN_MS)).await;
        }
    }
}

/// When a certificate is renewed that is good for so long: when half of a new one's time is left. Of one that has less, as it was short or the machine was off,
/// while some of that is left. Whatever this machine's clock says, not without a pause, and not later than it is due.
fn renewal_due(left: Duration) -> Duration {
    let (half, again) = (Duration::from_millis(JOINED_CERT_MS / 2), Duration::from_millis(RENEW_AGAIN_MS));
    let pause = if left.is_zero() { again } else { again.min(left / 2) };
    left.saturating_sub(half).clamp(pause, half)
}

async fn renewed(config: &AgentConfig, dial: &Dial) -> Result<(), Refusal> {
    let cert = ask(dial, &request(&config.identity)?, false).await?;
    keep(&config.identity, &cert, dial.identity().ca_pem()?)?;
    dial.is_now(Identity::load(&config.identity)?);
    // The next connection comes with it.
    dial.bulk_failed().await;
    tracing::info!("the certificate is renewed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_while_it_opens_something() {
        let due = |left_s: u64| renewal_due(Duration::from_secs(left_s)).as_secs();
        let whole = JOINED_CERT_MS / 1_000;
        assert_eq!(whole / 2, due(whole), "when half of it is over");
        assert_eq!(whole / 2 - 1_000, due(whole - 1_000));
        assert_eq!(60, due(whole / 2 - 1), "it is due");
        assert_eq!((60, 30, 5), (due(120), due(60), due(10)), "before it is over");
        assert_eq!(whole / 2, due(100 * whole), "this clock is years behind");
        assert_eq!(60, due(0), "or ahead");
    }
}
