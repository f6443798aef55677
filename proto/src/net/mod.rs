//! TLS, identity and connections: what every end of a link uses.
//!
//! Invariant: nothing is served to, or asked of, a peer whose certificate has not been verified (TLS 1.3, ring, certificates at both ends; there is no
//! other mode). Who a peer is comes from its certificate alone; what it may do comes from the [`trust`] of the end that asks. This module knows no
//! job and no message: it ends where a gRPC channel or a served connection begins.

pub mod client;
pub mod disk;
pub mod identity;
mod io;
#[cfg(feature = "issue")]
pub mod issue;
pub mod join;
pub mod reverse;
pub mod server;
pub mod status;
mod tls;
pub mod trust;

pub use identity::{CertRole, Identity, PeerCert, Role};
pub use io::{Heard, Io};
pub use status::refusal_of;
pub use trust::{Peer, Trust, TrustEntry};

/// The DNS name in every site's certificate, and in no other: verifying it proves "a site of this CA". No host names are checked.
pub const SITE_NAME: &str = "site.intergrid.internal";
/// ALPN of a connection whose dialler calls.
pub const ALPN_CALL: &[u8] = b"h2";
/// ALPN of a connection whose dialler serves: a child that dials its parent.
pub const ALPN_SERVE: &[u8] = b"intergrid-serve/1";

/// `host:port` of a service that is written as `http://host[:port]`: the only one that is asked without TLS is a machine's own metadata service.
pub fn http_authority(url: &str) -> Option<String> {
    let host = url.strip_prefix("http://")?.trim_end_matches('/');
    let (name, port) = host.rsplit_once(':').unwrap_or((host, "80"));
    let good = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '[' | ']' | ':'));
    (good && port.parse::<u16>().is_ok()).then(|| format!("{name}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_plain_http() {
        assert_eq!(Some("169.254.169.254:80".into()), http_authority("http://169.254.169.254"));
        assert_eq!(Some("127.0.0.1:8080".into()), http_authority("http://127.0.0.1:8080/"));
        for bad in ["", "https://x", "http://", "http://a b", "http://a:99999", "http://a/b", "x:80"] {
            assert_eq!(None, http_authority(bad), "{bad}");
        }
    }
}
