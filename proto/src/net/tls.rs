//! The TLS of both ends: what they offer, and errors in words. TLS 1.3 only, ring always explicit, no resumption: a resumed session would skip the check
//! of a certificate that has expired since.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;

use super::identity::{CertRole, Identity, PeerCert, certificates};
use super::{ALPN_CALL, ALPN_SERVE};
use crate::error::{Refusal, RefusalKind, Result};

/// Ours, never the process's default.
pub(super) fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// A server that asks `verifier` about each caller.
pub(super) fn server_config(identity: &Identity, verifier: Arc<dyn ClientCertVerifier>, takes_children: bool) -> Result<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::new(provider())).with_protocol_versions(&[&TLS13]).map_err(broken)?;
    let mut config = builder.with_client_cert_verifier(verifier).with_cert_resolver(Arc::new(SingleCertAndKey::from((*identity.key()).clone())));
    config.alpn_protocols = vec![ALPN_CALL.to_vec()];
    if takes_children {
        config.alpn_protocols.push(ALPN_SERVE.to_vec());
    }
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A client that takes any site of this CA.
pub(super) fn client_config(identity: &Identity, server_ca_pem: &[u8], alpn: &[u8]) -> Result<ClientConfig> {
    let roots = Arc::new(roots(&certificates(server_ca_pem).map_err(|e| Refusal::invalid(format!("the server's ca.pem: {e}")))?)?);
    let provider = Arc::new(provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build().map_err(broken)?;
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]).map_err(broken)?;
    let resolver = Arc::new(SingleCertAndKey::from((*identity.key()).clone()));
    let mut config = builder.with_webpki_verifier(verifier).with_client_cert_resolver(resolver);
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

pub(super) fn roots(cas: &[CertificateDer<'static>]) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for ca in cas {
        store.add(ca.clone()).map_err(|e| Refusal::invalid(format!("not the certificate of a CA: {e}")))?;
    }
    Ok(store)
}

pub(super) fn broken(e: impl std::fmt::Display) -> Refusal {
    Refusal::new(RefusalKind::Internal, format!("TLS cannot be set up: {e}"))
}

/// The rustls error inside an I/O error.
pub(super) fn cause(e: &io::Error) -> Option<&rustls::Error> {
    e.get_ref().and_then(|e| e.downcast_ref())
}

/// Why a certificate was not accepted.
pub(super) fn why(e: &CertificateError) -> String {
    match e {
        CertificateError::ExpiredContext { time, not_after } => {
            format!("its certificate expired {} ago", age(time.as_secs().saturating_sub(not_after.as_secs())))
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            format!("its certificate begins in {}: look at both clocks", age(not_before.as_secs().saturating_sub(time.as_secs())))
        }
        CertificateError::UnknownIssuer => "no CA that is trusted here signed its certificate".into(),
        CertificateError::NotValidForNameContext { .. } => "its certificate is not a site's".into(),
        CertificateError::BadSignature => "its certificate is forged: the signature is not its CA's".into(),
        e => format!("its certificate is not accepted: {e}"),
    }
}

/// What the other end told us when it refused our certificate, and what to do.
pub(super) fn alert(a: AlertDescription, ours: &PeerCert) -> Option<(String, &'static str)> {
    let expired = SystemTime::now().duration_since(ours.not_after).ok();
    Some(match (a, expired) {
        (AlertDescription::CertificateExpired, Some(since)) => {
            let remedy = if ours.role == CertRole::Join { "ask for a new token (`grid token`)" } else { "ask for a new certificate" };
            (format!("it expired {} ago", age(since.as_secs())), remedy)
        }
        (AlertDescription::CertificateExpired, None) => ("by the server's clock it is not valid now".into(), "set both clocks"),
        (AlertDescription::UnknownCA, _) => ("its CA is not trusted there".into(), "have our ca.pem added to the server's [[trust]]"),
        (AlertDescription::AccessDenied, _) => ("it has no right there".into(), "have the right added to `may` of our CA in the server's [[trust]]"),
        (AlertDescription::CertificateRequired, _) => ("none was presented".into(), "look into the server's log"),
        (
            AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::DecryptError,
            _,
        ) => (format!("{a:?}"), "look into the server's log"),
        _ => return None,
    })
}

/// Seconds as people say them.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}
