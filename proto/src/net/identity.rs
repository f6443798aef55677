//! Who we are, and who a certificate says its holder is.
//!
//! A certificate names one role and label, in a URI `intergrid:<role>/<label>` among its alternative names; its holder's id is the hash of its public key.
//! Parsing proves nothing: [`super::trust`] and TLS verify.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::nom::Parser;
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::prelude::{FromDer, GeneralName, SubjectAlternativeName, X509CertificateParser, X509Error};

use super::tls;
use crate::error::{Refusal, Result};
use crate::ids::SiteId;
use crate::limits::NAME_BYTES_MAX;

/// What a certificate says that its holder is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub enum CertRole {
    /// A gateway or broker.
    Site,
    /// A person or program that submits jobs.
    User,
    /// A user who may see and end the jobs of others.
    Admin,
    /// A machine.
    Agent,
    /// A machine that is to be: a token, good for one call, once.
    Join,
}

impl CertRole {
    /// As in the certificate.
    pub fn name(self) -> &'static str {
        match self {
            CertRole::Site => "site",
            CertRole::User => "user",
            CertRole::Admin => "admin",
            CertRole::Agent => "agent",
            CertRole::Join => "join",
        }
    }

    /// What a listener can allow its holder to be.
    pub fn may_be(self) -> &'static [Role] {
        match self {
            CertRole::Site => &[Role::Delegate, Role::Child],
            CertRole::User => &[Role::User],
            CertRole::Admin => &[Role::User, Role::Admin],
            CertRole::Agent => &[Role::Agent],
            CertRole::Join => &[Role::Join],
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [CertRole::Site, CertRole::User, CertRole::Admin, CertRole::Agent, CertRole::Join].into_iter().find(|r| r.name() == name)
    }
}

/// What a caller may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Submits, and sees its own jobs.
    User,
    /// Sees and ends everybody's.
    Admin,
    /// A parent: places work here on behalf of others.
    Delegate,
    /// A machine that runs work.
    Agent,
    /// A site that dials us and serves us over that connection.
    Child,
    /// Asks for the certificate of a machine, and may do nothing else: wherever agents may come.
    #[serde(skip)]
    Join,
}

impl Role {
    /// As in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Role::User => "user",
            Role::Admin => "admin",
            Role::Delegate => "delegate",
            Role::Agent => "agent",
            Role::Child => "child",
            Role::Join => "join",
        }
    }

    /// What a `may` has to have for it: who may join is let in where agents are.
    pub fn in_may(self) -> Role {
        if self == Role::Join { Role::Agent } else { self }
    }
}

/// What a certificate says of its holder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerCert {
    /// Hash of its public key.
    pub id: SiteId,
    /// Its name among people.
    pub label: String,
    /// What it is.
    pub role: CertRole,
    /// The certificate's last moment.
    pub not_after: SystemTime,
}

impl PeerCert {
    /// From a certificate in DER; says nothing about whether it is genuine.
    pub fn parse(der: &[u8]) -> Result<Self> {
        // Of its extensions the names alone are read: a stranger's bytes meet few parsers, and an agent has no room for the others.
        let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
        let (_, cert) = parser.parse(der).map_err(|e| Refusal::invalid(format!("not a certificate: {e}")))?;
        let names = match cert.get_extension_unique(&OID_X509_EXT_SUBJECT_ALT_NAME) {
            Ok(Some(names)) => SubjectAlternativeName::from_der(names.value).map_or(Err(X509Error::InvalidExtensions), |(_, n)| Ok(Some(n))),
            Ok(None) => Ok(None),
            Err(e) => Err(e),
        };
        let names = names.map_err(|e| Refusal::invalid(format!("the certificate's alternative names: {e}")))?;
        let mut ours = names.iter().flat_map(|n| &n.general_names).filter_map(|n| match n {
            GeneralName::URI(uri) => uri.strip_prefix("intergrid:"),
            _ => None,
        });
        let (Some(name), None) = (ours.next(), ours.next()) else {
            return Err(
                Refusal::invalid("the certificate does not have exactly one name `intergrid:<role>/<label>`").remedy("use one that `grid` made")
            );
        };
        let role_and_label = name.split_once('/').and_then(|(role, label)| Some((CertRole::parse(role)?, label)));
        let Some((role, label)) = role_and_label else {
            return Err(Refusal::invalid(format!("the certificate's name intergrid:{} has no known role", printable(name))));
        };
        check_label(label)?;
        let not_after = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
        let not_after = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(not_after)).unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(PeerCert { id: SiteId::of_public_key(cert.public_key().raw), label: label.to_owned(), role, not_after })
    }
}

impl fmt::Display for PeerCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({:?})", self.role.name(), self.label, self.id)
    }
}

/// Labels stand in certificates, logs and patterns: letters, digits and `. _ - @ +`.
pub fn check_label(label: &str) -> Result<()> {
    let plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@+".contains(&b));
    match plain && (1..=NAME_BYTES_MAX).contains(&label.len()) {
        true => Ok(()),
        false => Err(Refusal::invalid(format!("the label \"{}\" is not allowed", printable(label)))
            .remedy(format!("use 1 to {NAME_BYTES_MAX} of the characters a-z A-Z 0-9 . _ - @ +"))),
    }
}

/// Words of a stranger, fit for a log.
fn printable(text: &str) -> String {
    text.chars().take(NAME_BYTES_MAX).flat_map(char::escape_default).collect()
}

/// Our own certificate and key, as `grid init` made them.
#[derive(Clone)]
pub struct Identity {
    cert: PeerCert,
    key: Arc<CertifiedKey>,
    ca_pem: Option<Vec<u8>>,
    dir: PathBuf,
}

impl Identity {
    /// Read `cert.pem` (with its chain), `key.pem` and, where it is there, `ca.pem`.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let (cert_path, key_path, ca_path) = (dir.join("cert.pem"), dir.join("key.pem"), dir.join("ca.pem"));
        let chain = certificates(&read(&cert_path)?).map_err(within(&cert_path))?;
        private(&key_path)?;
        let ca_pem = if ca_path.exists() { Some(read(&ca_path)?) } else { None };
        Self::of(chain, (&cert_path, &key_path), ca_pem, dir)
    }

    /// Read a token: one PEM file with its certificate, its key, and the CA of the site to be called.
    pub fn load_token(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let pem = read(path)?;
        let mut chain = certificates(&pem).map_err(within(path))?;
        private(path)?;
        if chain.len() < 2 {
            return Err(
                Refusal::invalid(format!("{}: it has no CA after its certificate", path.display())).remedy("use the whole token, as it was made")
            );
        }
        chain.truncate(1);
        // The order is that in which tokens are made: certificate, key, CA.
        let ca_pem = String::from_utf8_lossy(&pem).rfind("-----BEGIN CERTIFICATE-----").map(|at| pem[at..].to_vec());
        let token = Self::of(chain, (path, path), ca_pem, path)?;
        match token.role() {
            CertRole::Join => Ok(token),
            other => {
                Err(Refusal::invalid(format!("{}: it is of a {}, and no token", path.display(), other.name())).remedy("make one with `grid token`"))
            }
        }
    }

    fn of(chain: Vec<CertificateDer<'static>>, (cert, key): (&Path, &Path), ca_pem: Option<Vec<u8>>, dir: &Path) -> Result<Self> {
        let first = chain.first().map(|c| PeerCert::parse(c)).transpose().map_err(within(cert))?;
        let parsed = first.ok_or_else(|| Refusal::invalid(format!("{}: no certificate in it", cert.display())))?;
        let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|e| Refusal::invalid(format!("{}: {e:?}", key.display())))?;
        let of = cert.file_name().unwrap_or_default().display();
        let secret = CertifiedKey::from_der(chain, secret, &tls::provider())
            .map_err(|e| Refusal::invalid(format!("{}: not the key of {of}: {e}", key.display())))?;
        Ok(Identity { cert: parsed, key: Arc::new(secret), ca_pem, dir: dir.to_owned() })
    }

    /// Hash of our public key.
    pub fn id(&self) -> SiteId {
        self.cert.id
    }

    /// Our name among people.
    pub fn label(&self) -> &str {
        &self.cert.label
    }

    /// What our certificate says that we are.
    pub fn role(&self) -> CertRole {
        self.cert.role
    }

    /// What our certificate says.
    pub fn cert(&self) -> &PeerCert {
        &self.cert
    }

    /// The CA beside our certificate: a site's own; for others, that of the site they call.
    pub fn ca_pem(&self) -> Result<&[u8]> {
        let path = self.dir.join("ca.pem");
        self.ca_pem
            .as_deref()
            .ok_or_else(|| Refusal::invalid(format!("{}: no such file", path.display())).remedy("copy it from the site to be called"))
    }

    pub(super) fn key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} from {})", self.cert, self.dir.display())
    }
}

/// All certificates of a PEM file; at least one.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(Refusal::invalid("no certificate in it").remedy("a PEM file with BEGIN CERTIFICATE is needed")),
        Err(e) => Err(Refusal::invalid(format!("not PEM: {e:?}"))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let remedy = "make an identity with `grid init`, or correct the directory";
    fs::read(path).map_err(|e| Refusal::invalid(format!("{}: {e}", path.display())).remedy(remedy))
}

/// A key that everybody on the machine can read is no secret.
#[cfg(unix)]
fn private(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(path).map(|m| m.permissions().mode() & 0o777).unwrap_or(0);
    match mode & 0o007 {
        0 => Ok(()),
        _ => Err(Refusal::invalid(format!("{}: mode {mode:04o}, open to everybody", path.display())).remedy(format!("chmod 600 {}", path.display()))),
    }
}

#[cfg(not(unix))]
fn private(_: &Path) -> Result<()> {
    Ok(())
}

pub(super) fn within(path: &Path) -> impl Fn(Refusal) -> Refusal {
    move |e| Refusal { message: format!("{}: {}", path.display(), e.message), ..e }
}

#[cfg(all(test, feature = "issue"))]
mod tests {
    use rcgen::{CertificateParams, CustomExtension, KeyPair, SanType};

    use super::*;

    const OURS: &str = "intergrid:user/kim";
    const ALTERNATIVE_NAMES: &[u64] = &[2, 5, 29, 17];
    const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
    const GARBAGE: &[u8] = b"\x30\x82garbage";

    fn uri(uri: &str) -> SanType {
        SanType::URI(uri.try_into().unwrap())
    }

    fn parsed(names: &[SanType], extensions: &[(&[u64], &[u8])]) -> Result<PeerCert> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.custom_extensions = extensions.iter().map(|(oid, content)| CustomExtension::from_oid_content(oid, content.to_vec())).collect();
        PeerCert::parse(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der())
    }

    #[test]
    fn our_name_is_found_among_others_and_only_once() {
        let others = [SanType::DnsName("x.example".try_into().unwrap()), uri("spiffe://x/y"), SanType::IpAddress([127, 0, 0, 1].into())];
        let kim = parsed(&[&others[..], &[uri(OURS)]].concat(), &[]).unwrap();
        assert_eq!((CertRole::User, "kim"), (kim.role, kim.label.as_str()));
        for names in [&[], &others[..], &[uri(OURS), uri(OURS)]] {
            assert!(parsed(names, &[]).unwrap_err().message.contains("exactly one name"), "{names:?}");
        }
        assert!(parsed(&[uri("intergrid:king/kim")], &[]).unwrap_err().message.contains("no known role"));
        assert!(parsed(&[uri("intergrid:user/k m")], &[]).unwrap_err().message.contains("the label \"k m\""));
    }

    #[test]
    fn names_that_are_broken_or_come_twice_are_refused_and_other_extensions_not_read() {
        let why = |names: &[SanType], content: &[u8]| parsed(names, &[(ALTERNATIVE_NAMES, content)]).unwrap_err().message;
        assert_eq!("the certificate's alternative names: invalid extensions", why(&[], GARBAGE));
        assert_eq!("the certificate's alternative names: duplicate extensions", why(&[uri(OURS)], GARBAGE));
        assert_eq!("kim", parsed(&[uri(OURS)], &[(BASIC_CONSTRAINTS, GARBAGE)]).unwrap().label);
    }
}
