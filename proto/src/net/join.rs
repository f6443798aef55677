//! What a machine needs to become one: a key that it makes itself, a request for a certificate, and the token that lets it ask once.
//!
//! A token is one PEM file: a certificate of role `join` in the machine's name, its key, and the CA of the site to be called. It is good for one call of
//! [`Pool.Join`](crate::pb::pool_client::PoolClient::join), by one key, until it expires. The machine's own key never leaves it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use crate::error::{Refusal, RefusalKind, Result};

/// A SubjectPublicKeyInfo of a P-256 key begins so (RFC 5480); the point follows, uncompressed.
const P256_SPKI: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03,
    0x42, 0x00,
];
/// AlgorithmIdentifier of ecdsa-with-SHA256 (RFC 5758).
const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
/// Version 0, and a subject without names.
const VERSION_AND_SUBJECT: &[u8] = &[0x02, 0x01, 0x00, 0x30, 0x00];
/// No attributes.
const ATTRIBUTES: &[u8] = &[0xa0, 0x00];

/// The key in `dir`, made where there is none: a join that was interrupted goes on with the same one. Then a request (PKCS#10, RFC 2986, in DER) that is
/// signed with it.
pub fn request(dir: &Path) -> Result<Vec<u8>> {
    let path = dir.join("key.pem");
    let named = |e: &dyn std::fmt::Display| Refusal::invalid(format!("{}: {e}", path.display()));
    let random = SystemRandom::new();
    if !path.exists() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| named(&e))?;
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).map_err(|_| named(&"no key could be made"))?;
        replace(&path, &pem("PRIVATE KEY", made.as_ref()), 0o600).map_err(|e| named(&e))?;
    }
    let text = fs::read(&path).map_err(|e| named(&e))?;
    let PrivateKeyDer::Pkcs8(key) = PrivateKeyDer::from_pem_slice(&text).map_err(|e| named(&format!("{e:?}")))? else {
        return Err(named(&"not a key in PKCS#8").remedy("remove it, where the machine has not joined yet"));
    };
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.secret_pkcs8_der(), &random).map_err(|e| named(&e))?;
    let info = der(SEQUENCE, &[VERSION_AND_SUBJECT, P256_SPKI, key.public_key().as_ref(), ATTRIBUTES]);
    let signature = key.sign(&random, &info).map_err(|_| Refusal::new(RefusalKind::Internal, "a request could not be signed"))?;
    Ok(der(SEQUENCE, &[&info, ECDSA_SHA256, &der(BIT_STRING, &[&[0], signature.as_ref()])]))
}

/// Put `cert.pem` and `ca.pem` beside the key, durably, the certificate last: with it the machine has joined.
pub fn keep(dir: &Path, cert_pem: &str, ca_pem: &[u8]) -> Result<()> {
    let written = replace(&dir.join("ca.pem"), ca_pem, 0o644).and_then(|()| replace(&dir.join("cert.pem"), cert_pem.as_bytes(), 0o644));
    written.map_err(|e| Refusal::new(RefusalKind::Internal, format!("{}: the certificate can't be kept: {e}", dir.display())))
}

/// Write a file, durably, as a whole or not at all, with these permissions from its first byte on.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Tag, length, and what is in it: less than 64 KiB.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let [.., high, low] = body.len().to_be_bytes();
    let head = match (high, low) {
        (0, 0..0x80) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [head, body].concat()
}

/// In PEM (RFC 7468).
fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = format!("-----BEGIN {label}-----\n").into_bytes();
    for (i, three) in der.chunks(3).enumerate() {
        let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for at in 0..4 {
            out.push(if at <= three.len() { LETTERS[(bits >> (18 - 6 * at)) as usize & 63] } else { b'=' });
        }
        // Lines of 64.
        if i % 16 == 15 {
            out.push(b'\n');
        }
    }
    if !out.ends_with(b"\n") {
        out.push(b'\n');
    }
    out.extend(format!("-----END {label}-----\n").into_bytes());
    out
}
