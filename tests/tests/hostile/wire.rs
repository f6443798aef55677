//! Below the calls: bytes that are no TLS, bytes that are no HTTP/2, connections that are only held, and certificates that are no longer good.

use std::sync::Arc;
use std::time::Duration;

use intergrid_gateway::daemon::Running;
use intergrid_proto::net::issue::{self, Validity};
use intergrid_proto::net::{CertRole, Identity, SITE_NAME};
use intergrid_proto::{Refusal, RefusalKind};
use intergrid_tests::client::Client;
use intergrid_tests::grid::{Grid, at, machines};
use intergrid_tests::{logs, until};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::side::*;

async fn world(grid: &Grid, name: &str) -> (Running, Client) {
    let site = grid.gateway(name, &[], machines(name, 2, 2)).await;
    let ann = grid.user(&site, "ann").await;
    (site, ann)
}

/// The same bytes for the same seed, and no pattern in them.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A TLS connection as a user has it, before the first byte of HTTP/2.
async fn tls(grid: &Grid, site: &Running, label: &str) -> TlsStream<TcpStream> {
    grid.certificate(&site.me.name, CertRole::User, label);
    let dir = grid.dir().join(&site.me.name).join(format!("user-{label}"));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let (cert, key) = (CertificateDer::from_pem_file(dir.join("cert.pem")).unwrap(), PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap());
    let mut config = builder.with_root_certificates(roots).with_client_auth_cert(vec![cert], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(&site.endpoint).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(SITE_NAME).unwrap(), tcp).await.unwrap()
}

/// Write, then read what comes until the other end hangs up, or for a moment.
async fn throw(mut at: impl AsyncReadExt + AsyncWriteExt + Unpin, bytes: &[u8]) {
    let _ = at.write_all(bytes).await;
    let _ = at.flush().await;
    let mut sink = vec![0; 4_096];
    let _ = tokio::time::timeout(Duration::from_millis(50), async { while at.read(&mut sink).await.is_ok_and(|n| n > 0) {} }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_instead_of_tls_or_http_ends_only_its_connection() {
    let grid = Grid::new();
    let (site, ann) = world(&grid, "w-noise").await;
    let beside = beside("noise", &ann, &quick());
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    for seed in 0..60 {
        let bytes = noise(seed, 1 << (seed % 18));
        throw(TcpStream::connect(&site.endpoint).await.unwrap(), &bytes).await;
        // As if it were TLS: a record's header, then noise.
        throw(TcpStream::connect(&site.endpoint).await.unwrap(), &[&[22, 3, 1, 0x3f, 0xff][..], &bytes].concat()).await;
        throw(tls(&grid, &site, "eve").await, &bytes).await;
        throw(tls(&grid, &site, "eve").await, &[&preface[..], &bytes].concat()).await;
        // Frames that are well formed and make no sense: type and flags at random, on stream 1.
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let frames: Vec<u8> = bytes.chunks(64).flat_map(|c| [&[0, 0, c.len() as u8, c[0] % 12, c[0], 0, 0, 0, c[0] % 3], c].concat()).collect();
        throw(tls(&grid, &site, "eve").await, &[&preface[..], &settings, &frames].concat()).await;
    }
    beside.served().await;
    still_serves(&grid, &site, &quick()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_opened_and_reset_end_in_goaway() {
    let grid = Grid::new();
    let (site, ann) = world(&grid, "w-resets").await;
    let beside = beside("streams opened and reset", &ann, &quick());
    for _ in 0..5 {
        let mut said = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
        for n in 0..20_000u32 {
            let id = (2 * n + 1).to_be_bytes();
            // HEADERS with `:method POST`, `:scheme http`, `:path /`, END_HEADERS; then RST_STREAM.
            said.extend([&[0, 0, 3, 1, 4][..], &id, &[0x83, 0x86, 0x84], &[0, 0, 4, 3, 0], &id, &[0, 0, 0, 8]].concat());
        }
        throw(tls(&grid, &site, "eve").await, &said).await;
    }
    beside.served().await;
    still_serves(&grid, &site, &quick()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_never_end_keep_nobody_out() {
    let grid = Grid::new();
    let (site, ann) = world(&grid, "w-slow").await;
    let beside = beside("handshakes that never end", &ann, &quick());
    let mut held = Vec::new();
    for round in 0..4 {
        for _ in 0..200 {
            held.push(TcpStream::connect(&site.endpoint).await.unwrap());
        }
        let began = std::time::Instant::now();
        let bob = grid.user(&site, &format!("bob{round}")).await;
        assert!(began.elapsed() < Duration::from_secs(3), "{:?} to connect", began.elapsed());
        bob.run("k", &quick(), 1).await;
    }
    beside.served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_one_caller_do_not_use_up_those_of_all() {
    let grid = Grid::new();
    let (site, ann) = world(&grid, "w-many").await;
    let beside = beside("many connections", &ann, &quick());
    let eve = grid.certificate("w-many", CertRole::User, "eve");
    let (mut held, mut refused) = (Vec::new(), None);
    for _ in 0..400 {
        match grid.call(&site, &eve).await {
            Ok(c) => held.push(c),
            Err(r) => {
                refused = Some(r);
                break;
            }
        }
    }
    assert!(refused.is_some(), "{} connections of one caller", held.len());
    logs::wait(&["refused a connection", "user eve", "connections"]).await;
    grid.user(&site, "bob").await.run("k", &quick(), 1).await;
    // When some end there is room again.
    drop(held);
    until("room again", async || grid.call(&site, &eve).await.map(drop)).await;
    beside.served().await;
}

fn says(refused: &Refusal, words: &[&str]) {
    assert!(refused.kind == RefusalKind::NotAuthorised && words.iter().all(|w| refused.to_string().contains(w)), "{refused}");
}

/// A certificate of this site's CA that was good until an hour ago.
fn expired(grid: &Grid, site: &str, role: CertRole, label: &str) -> std::path::PathBuf {
    let dir = grid.dir().join(format!("expired-{}-{label}", role.name()));
    issue::issue(grid.identity(site), role, label, &dir, Validity::expired()).unwrap();
    dir
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_an_expired_certificate_is_told_and_named() {
    let grid = Grid::new();
    let name = "w-expired";
    let old = "w-expired-old";
    let good = grid.gateway("w-expired-good", &[name], machines("w-expired-good", 1, 2)).await;
    // A child that listens with a certificate that has expired: its parent does not take it, and says so.
    let dir = expired(&grid, old, CertRole::Site, old);
    let mut config = grid.config(old, &[name]);
    config.identity = dir.clone();
    let late = grid.gateway_of(config, machines(old, 1, 2)).await;
    let root = grid.broker(name, &[], &[at(&good), at(&late)]).await;
    logs::wait(&["no link to a child", old, "its certificate expired 60 min ago"]).await;
    // As a parent: refused, told, and logged by whom it called.
    let identity = Identity::load(expired(&grid, name, CertRole::Site, name)).unwrap();
    let refused = grid.call(&good, &identity).await.err().expect("an expired parent");
    says(&refused, &[name, "expired 60 min ago", "new certificate"]);
    logs::wait(&["refused a connection", "site w-expired ", "its certificate expired 60 min ago"]).await;
    // A user, an admin, an agent.
    for role in [CertRole::User, CertRole::Admin, CertRole::Agent] {
        let identity = Identity::load(expired(&grid, name, role, "eve")).unwrap();
        let refused = grid.call(&root, &identity).await.err().expect("an expired caller");
        says(&refused, &["eve", "expired 60 min ago", "new certificate"]);
        logs::wait(&["refused a connection", &format!("{} eve", role.name()), "its certificate expired 60 min ago"]).await;
    }
    // Who calls a site whose certificate has expired is told that it is the site's.
    let ann = grid.certificate(old, CertRole::User, "ann");
    let refused = grid.call(&late, &ann).await.err().expect("an expired site");
    says(&refused, &["its certificate expired 60 min ago"]);
    // A site that begins with one says so itself, where its administrator looks.
    logs::wait(&["certificate", old, "expired", "serving"]).await;
    // All others go on.
    let ann = grid.user(&root, "ann").await;
    ann.run("k", &quick(), 3).await;
}
