//! Makes a site's certificate authority, and certificates and tokens of it: ECDSA P-256, in PEM. Existing files are never overwritten, but by a renewal; keys are for their owner only.

use std::fmt;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use x509_parser::parse_x509_certificate;

use super::SITE_NAME;
use super::identity::{CertRole, Identity, certificates, check_label, within};
use crate::error::{Refusal, RefusalKind, Result};
use crate::ids::SiteId;
use crate::limits::CSR_BYTES_MAX;

const KEY_BACK: &str = "put the CA's key back from where it is kept; `grid init` would make another CA, which nobody trusts yet";
const DAY: Duration = Duration::from_secs(86_400);
/// Clocks of a federation may differ by this much, and one that was ahead may be set back by it: who has a certificate is let in again all the same.
const SKEW: Duration = DAY;
const CA_DAYS: u32 = 3_653;
const CERT_DAYS: u32 = 366;

/// When a certificate is valid.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// Its first moment.
    pub not_before: SystemTime,
    /// Its last moment.
    pub not_after: SystemTime,
}

impl Validity {
    /// From now on.
    pub fn days(days: u32) -> Self {
        Self::of(DAY * days)
    }

    /// From now on, so long.
    pub fn of(time: Duration) -> Self {
        let now = SystemTime::now();
        Validity { not_before: now - SKEW, not_after: now + time }
    }

    /// Over since an hour ago: for tests.
    pub fn expired() -> Self {
        let now = SystemTime::now();
        Validity { not_before: now - DAY, not_after: now - Duration::from_secs(3_600) }
    }
}

impl Default for Validity {
    /// One year.
    fn default() -> Self {
        Self::days(CERT_DAYS)
    }
}

/// A new site: `ca.pem`, `ca.key`, `cert.pem`, `key.pem`. The hosts stand in the certificate for other people's tools; ours do not look at them.
pub fn new_site(dir: impl AsRef<Path>, label: &str, hosts: &[String]) -> Result<()> {
    let dir = dir.as_ref();
    check_label(label)?;
    absent(dir, &["ca.pem", "ca.key", "cert.pem", "key.pem"])?;
    let key = new_key()?;
    let mut params = CertificateParams::default();
    // Two sites of one label must not share their CA's name.
    let mark: String = blake3::hash(key.public_key_raw()).to_hex().chars().take(8).collect();
    params.distinguished_name = name(&format!("Intergrid CA of {label} {mark}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set(&mut params, Validity::days(CA_DAYS));
    let ca = params.self_signed(&key).map_err(failed)?;
    let (ca_pem, ca_key) = (ca.pem(), key.serialize_pem());
    let (cert, cert_key) = certify(&Issuer::new(params, key), CertRole::Site, label, hosts, Validity::default())?;
    make(dir)?;
    write(dir, "ca.key", &ca_key, 0o600)?;
    write(dir, "key.pem", &cert_key, 0o600)?;
    write(dir, "ca.pem", &ca_pem, 0o644)?;
    write(dir, "cert.pem", &cert, 0o644)
}

/// A certificate of the site's CA: `ca.pem`, `cert.pem`, `key.pem`.
pub fn issue(site_dir: impl AsRef<Path>, role: CertRole, label: &str, out_dir: impl AsRef<Path>, validity: Validity) -> Result<()> {
    let (site_dir, out_dir) = (site_dir.as_ref(), out_dir.as_ref());
    check_label(label)?;
    absent(out_dir, &["ca.pem", "cert.pem", "key.pem"])?;
    let (ca_pem, issuer) = issuer(site_dir)?;
    let (cert, key) = certify(&issuer, role, label, &[], validity)?;
    make(out_dir)?;
    write(out_dir, "key.pem", &key, 0o600)?;
    write(out_dir, "ca.pem", &ca_pem, 0o644)?;
    write(out_dir, "cert.pem", &cert, 0o644)
}

/// A new certificate for whom this site's CA has certified, also itself, in `dir`: with his key, label and role, so that he is who he was. The old one is
/// replaced at once or not at all.
pub fn renew(site_dir: impl AsRef<Path>, dir: impl AsRef<Path>, validity: Validity) -> Result<()> {
    let (site_dir, dir) = (site_dir.as_ref(), dir.as_ref());
    let known = Identity::load(dir)?;
    let (ca_pem, issuer) = issuer(site_dir)?;
    if known.ca_pem()? != ca_pem.as_bytes() {
        let message = format!("{}: not of the CA in {}", dir.join("ca.pem").display(), site_dir.display());
        return Err(Refusal::new(RefusalKind::Conflict, message).remedy("name the site that made it with --site"));
    }
    let key_path = dir.join("key.pem");
    let bad = |e: &dyn fmt::Display| Refusal::invalid(format!("{}: {e}", key_path.display()));
    let key = std::fs::read_to_string(&key_path).map_err(|e| bad(&e))?;
    let key = KeyPair::from_pem(&key).map_err(|e| bad(&e))?;
    let cert = params(known.role(), known.label(), &[], validity)?.signed_by(&key, &issuer).map_err(failed)?;
    // Where it is a link, its target.
    let path = dir.join("cert.pem");
    let path = path.canonicalize().map_err(|e| not_made(&path, &e))?;
    let dir = path.parent().unwrap_or(dir);
    let new = dir.join("cert.pem.new");
    // Of an attempt that was cut short.
    let _ = std::fs::remove_file(&new);
    write(dir, "cert.pem.new", &cert.pem(), 0o600)?;
    // For whom the old one was, the new one is.
    let moved = std::fs::metadata(&path).and_then(|old| {
        let made = std::fs::metadata(&new)?;
        if (old.uid(), old.gid()) != (made.uid(), made.gid()) {
            chown(&new, Some(old.uid()), Some(old.gid()))?;
        }
        std::fs::set_permissions(&new, old.permissions())?;
        std::fs::rename(&new, &path)?;
        std::fs::File::open(dir)?.sync_all()
    });
    moved.map_err(|e| not_made(&path, &e))
}

/// A token for a machine of this label: certificate, key and CA in one PEM text. It is secret.
pub fn token(site_dir: impl AsRef<Path>, label: &str, validity: Validity) -> Result<String> {
    check_label(label)?;
    let (ca_pem, issuer) = issuer(site_dir.as_ref())?;
    let (cert, key) = certify(&issuer, CertRole::Join, label, &[], validity)?;
    Ok([cert, key, ca_pem].concat())
}

/// A request for a certificate, whose signature is that of its key.
pub struct Csr(CertificateSigningRequestParams);

impl Csr {
    /// From DER, as a peer sent it.
    pub fn read(der: &[u8]) -> Result<Self> {
        if der.len() > CSR_BYTES_MAX {
            return Err(Refusal::invalid(format!("a request for a certificate has {} bytes, at most {CSR_BYTES_MAX}", der.len())));
        }
        let read = CertificateSigningRequestParams::from_der(&der.into());
        read.map(Csr).map_err(|e| Refusal::invalid(format!("not a request for a certificate: {e}")))
    }

    /// Of its key.
    pub fn id(&self) -> SiteId {
        SiteId::of_public_key(&self.0.public_key.subject_public_key_info())
    }

    /// A certificate of the site's CA for its key; what it asks for itself is not looked at.
    pub fn sign(mut self, site_dir: impl AsRef<Path>, role: CertRole, label: &str, validity: Validity) -> Result<String> {
        check_label(label)?;
        let (_, issuer) = issuer(site_dir.as_ref())?;
        self.0.params = params(role, label, &[], validity)?;
        Ok(self.0.signed_by(&issuer).map_err(failed)?.pem())
    }
}

/// A site's CA: its certificate, and what signs. Error, too: the key is another CA's, whose certificates everybody would take for forged.
fn issuer(site_dir: &Path) -> Result<(String, Issuer<'static, KeyPair>)> {
    let (pem_path, key_path) = (site_dir.join("ca.pem"), site_dir.join("ca.key"));
    let bad = |path: &Path, what: &dyn fmt::Display| Refusal::invalid(format!("{}: {what}", path.display()));
    let read = |path: &Path, remedy: &str| std::fs::read_to_string(path).map_err(|e| bad(path, &e).remedy(remedy));
    let ca_pem = read(&pem_path, "make a site with `grid init` first")?;
    let ca_key = read(&key_path, KEY_BACK)?;
    let key = KeyPair::from_pem(&ca_key).map_err(|e| bad(&key_path, &format!("not a private key: {e}")).remedy(KEY_BACK))?;
    let certs = certificates(ca_pem.as_bytes()).map_err(within(&pem_path))?;
    let (_, ca) = parse_x509_certificate(&certs[0]).map_err(|e| bad(&pem_path, &e))?;
    if ca.validity().not_after.timestamp() < x509_parser::time::ASN1Time::now().timestamp() {
        return Err(bad(&pem_path, &"the CA has expired").remedy("make another with `grid init site`, and have it trusted"));
    }
    if *ca.public_key().subject_public_key.data != *key.public_key_raw() {
        return Err(bad(&key_path, &format!("not the key of the CA in {}", pem_path.display())).remedy(KEY_BACK));
    }
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).map_err(|e| bad(&pem_path, &e))?;
    Ok((ca_pem, issuer))
}

fn certify(issuer: &Issuer<'_, KeyPair>, role: CertRole, label: &str, hosts: &[String], validity: Validity) -> Result<(String, String)> {
    let key = new_key()?;
    let cert = params(role, label, hosts, validity)?.signed_by(&key, issuer).map_err(failed)?;
    Ok((cert.pem(), key.serialize_pem()))
}

fn params(role: CertRole, label: &str, hosts: &[String], validity: Validity) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(hosts.to_vec()).map_err(|e| Refusal::invalid(format!("hosts {}: {e}", hosts.join(", "))))?;
    params.distinguished_name = name(&format!("{} {label}", role.name()));
    params.subject_alt_names.push(SanType::URI(ia5(&format!("intergrid:{}/{label}", role.name()))?));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if role == CertRole::Site {
        params.subject_alt_names.push(SanType::DnsName(ia5(SITE_NAME)?));
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    set(&mut params, validity);
    Ok(params)
}

fn new_key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)
}

fn set(params: &mut CertificateParams, validity: Validity) {
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn ia5(text: &str) -> Result<Ia5String> {
    text.try_into().map_err(failed)
}

fn failed(e: rcgen::Error) -> Refusal {
    Refusal::new(RefusalKind::Internal, format!("cannot make a certificate: {e}"))
}

fn absent(dir: &Path, files: &[&str]) -> Result<()> {
    match files.iter().map(|f| dir.join(f)).find(|p| p.symlink_metadata().is_ok()) {
        None => Ok(()),
        Some(path) => Err(Refusal::new(RefusalKind::Conflict, format!("{} exists already", path.display())).remedy("choose another directory")),
    }
}

fn make(dir: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| not_made(dir, &e))
}

fn write(dir: &Path, file: &str, text: &str, mode: u32) -> Result<()> {
    let path = dir.join(file);
    let written = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).and_then(|mut f| {
        f.write_all(text.as_bytes())?;
        f.sync_all()
    });
    written.map_err(|e| not_made(&path, &e))
}

/// A full disk is a limit.
fn not_made(path: &Path, e: &io::Error) -> Refusal {
    let is_full = matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    Refusal::new(if is_full { RefusalKind::OverLimit } else { RefusalKind::Invalid }, format!("{}: {e}", path.display()))
}
