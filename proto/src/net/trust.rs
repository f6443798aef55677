//! Whom we trust, and with what.
//!
//! A caller's roles are what the entries of its CA allow, cut to what its certificate's role can be. A chain is verified against each CA on its own, so
//! that it is always known which CA vouches for a peer: a CA never gives more than its own entries say.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, Error};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::identity::{CertRole, PeerCert, Role, certificates};
use super::io::Heard;
use super::tls;
use crate::error::{Refusal, RefusalKind, Result};
use crate::ids::SiteId;

/// What the holders of one CA's certificates may be: one `[[trust]]` of a configuration, its file read.
#[derive(Clone, Debug)]
pub struct TrustEntry {
    /// One CA's certificate or several, in PEM.
    pub ca_pem: Vec<u8>,
    /// At most this.
    pub may: BTreeSet<Role>,
    /// The principals for whom its delegates may act: exact, or a prefix with a trailing `*`.
    pub on_behalf: Vec<String>,
}

/// A CA: the BLAKE3 hash of its certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CaId([u8; 32]);

impl CaId {
    fn of(der: &CertificateDer<'_>) -> Self {
        CaId(*blake3::hash(der).as_bytes())
    }

    /// Of all certificates in a PEM text.
    pub fn all(ca_pem: &[u8]) -> Result<Vec<Self>> {
        Ok(certificates(ca_pem)?.iter().map(Self::of).collect())
    }
}

/// A peer whose certificate has been verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Hash of its public key.
    pub id: SiteId,
    /// Its name among people.
    pub label: String,
    /// What its certificate says that it is.
    pub cert_role: CertRole,
    /// What it may be here.
    pub roles: BTreeSet<Role>,
    /// For whom it may act, if it is a delegate.
    pub on_behalf: Vec<String>,
    /// Its certificate's last moment.
    pub not_after: SystemTime,
    /// Who vouches for it.
    pub ca: CaId,
    /// Where it calls from.
    pub addr: Option<SocketAddr>,
    /// When this connection of its was last read from.
    pub heard: Heard,
}

impl Peer {
    /// Refused unless it may be this.
    pub fn require(&self, role: Role) -> Result<()> {
        self.require_any(&[role])
    }

    /// Refused unless it may be one of these.
    pub fn require_any(&self, roles: &[Role]) -> Result<()> {
        if roles.iter().any(|r| self.roles.contains(r)) {
            return Ok(());
        }
        let (needed, has) = (names(roles, " or "), names(&self.roles, ", "));
        let allow: Vec<String> = roles.iter().map(|r| format!("{:?}", r.in_may().name())).collect();
        Err(Refusal::new(RefusalKind::NotAuthorised, format!("{self} may not do this: it needs the role {needed}, and has {has}")).remedy(format!(
            "use a certificate with that role, or add {} to `may` of its CA in [[trust]] (a {} can be {})",
            allow.join(" or "),
            self.cert_role.name(),
            names(self.cert_role.may_be(), ", ")
        )))
    }

    /// Refused unless it may act for this principal.
    pub fn require_on_behalf(&self, principal: &str) -> Result<()> {
        self.require(Role::Delegate)?;
        let covers = |p: &String| p.strip_suffix('*').map_or(p == principal, |prefix| principal.starts_with(prefix));
        match self.on_behalf.iter().any(covers) {
            true => Ok(()),
            false => Err(Refusal::new(RefusalKind::NotAuthorised, format!("{self} may not act on behalf of {}", principal.escape_default()))
                .remedy("add it to `on_behalf` of its CA in [[trust]]")),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({:?})", self.cert_role.name(), self.label, self.id)
    }
}

fn names<'a>(roles: impl IntoIterator<Item = &'a Role>, between: &str) -> String {
    let names: Vec<_> = roles.into_iter().map(|r| r.name()).collect();
    if names.is_empty() { "none".into() } else { names.join(between) }
}

/// Why a peer is not let in: for the log, and for the TLS alert.
#[derive(Clone, Debug)]
pub(super) struct Denied {
    pub who: String,
    pub why: String,
    pub error: CertificateError,
}

/// All entries of a listener.
pub struct Trust {
    cas: Vec<Ca>,
}

struct Ca {
    der: CertificateDer<'static>,
    verifier: Arc<dyn ClientCertVerifier>,
    entries: Vec<(BTreeSet<Role>, Vec<String>)>,
}

impl Trust {
    /// Refused where an entry's PEM holds no CA. Several entries of one CA add up.
    pub fn new(entries: impl IntoIterator<Item = TrustEntry>) -> Result<Self> {
        let mut cas: Vec<Ca> = Vec::new();
        for (i, entry) in entries.into_iter().enumerate() {
            let named = |e: Refusal| Refusal::invalid(format!("[[trust]] number {}: ca: {e}", i + 1));
            for der in certificates(&entry.ca_pem).map_err(named)? {
                let grant = (entry.may.clone(), entry.on_behalf.clone());
                match cas.iter_mut().find(|ca| ca.der == der) {
                    Some(ca) => ca.entries.push(grant),
                    None => cas.push(Ca { verifier: verifier(&der).map_err(named)?, der, entries: vec![grant] }),
                }
            }
        }
        Ok(Trust { cas })
    }

    /// Who presents this chain (end entity first), and what it may be.
    pub fn decide(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Peer> {
        self.judge(chain, now, None).map_err(|d| Refusal::new(RefusalKind::NotAuthorised, format!("{} is refused: {}", d.who, d.why)))
    }

    /// As `decide`; a peer without `need`, or without any role, is denied.
    pub(super) fn judge(&self, chain: &[CertificateDer<'_>], now: UnixTime, need: Option<Role>) -> Result<Peer, Denied> {
        let Some((cert, intermediates)) = chain.split_first() else {
            return Err(Denied { who: "unknown".into(), why: "it presented no certificate".into(), error: CertificateError::BadEncoding });
        };
        let claimed = PeerCert::parse(cert);
        let claims = || claimed.as_ref().map_or_else(|_| "unknown".into(), |c| format!("who claims to be {c}"));
        let ca = self.issuer(cert, intermediates, now).map_err(|error| Denied { who: claims(), why: tls::why(&error), error })?;
        let denied = |who, why| Denied { who, why, error: CertificateError::ApplicationVerificationFailure };
        let cert = claimed.as_ref().map_err(|e| denied("unknown".into(), e.to_string()))?;
        let (id, label, cert_role, not_after) = (cert.id, cert.label.clone(), cert.role, cert.not_after);
        let mut peer = Peer {
            id,
            label,
            cert_role,
            roles: BTreeSet::new(),
            on_behalf: Vec::new(),
            not_after,
            ca: CaId::of(&ca.der),
            addr: None,
            heard: Heard::default(),
        };
        for (may, on_behalf) in &ca.entries {
            let allowed = |r: &Role| may.contains(&r.in_may());
            let roles: Vec<Role> = cert.role.may_be().iter().copied().filter(allowed).collect();
            // Only an entry that allows delegates says for whom they may act.
            if roles.contains(&Role::Delegate) {
                peer.on_behalf.extend(on_behalf.iter().cloned());
            }
            peer.roles.extend(roles);
        }
        let checked = match need {
            Some(role) => peer.require(role),
            None if peer.roles.is_empty() => peer.require_any(cert.role.may_be()),
            None => Ok(()),
        };
        checked.map(|()| peer).map_err(|e| denied(cert.to_string(), e.to_string()))
    }

    /// The CA that vouches for it, or the most telling of the reasons why none does.
    fn issuer(&self, cert: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>], now: UnixTime) -> Result<&Ca, CertificateError> {
        let mut reason = CertificateError::UnknownIssuer;
        for ca in &self.cas {
            match ca.verifier.verify_client_cert(cert, intermediates, now) {
                Ok(_) => return Ok(ca),
                Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {}
                Err(Error::InvalidCertificate(e)) => reason = e,
                Err(_) => reason = CertificateError::BadEncoding,
            }
        }
        Err(reason)
    }
}

fn verifier(ca: &CertificateDer<'static>) -> Result<Arc<dyn ClientCertVerifier>> {
    let roots = tls::roots(std::slice::from_ref(ca))?;
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(tls::provider())).build().map_err(tls::broken)
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trust({} CAs)", self.cas.len())
    }
}
