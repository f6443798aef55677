//! Who is let in, who is not, and what both ends are told: over real sockets.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use intergrid_proto::net::issue::{self, Validity};
use intergrid_proto::net::join;
use intergrid_proto::net::server::{self, Limits};
use intergrid_proto::net::{CertRole, Identity, PeerCert, Role, SITE_NAME, client, refusal_of, reverse};
use intergrid_proto::pb::{self, grid_client::GridClient, grid_server::GridServer};
use intergrid_proto::{Refusal, RefusalKind};
use rustls_pki_types::ServerName;
use rustls_pki_types::pem::PemObject;
use support::{WhoCalls, World, ask, logged, who_am_i};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const USERS: &[Role] = &[Role::User, Role::Admin];

fn says(refusal: &Refusal, kind: RefusalKind, words: &[&str]) {
    let text = refusal.to_string();
    assert!(refusal.kind == kind && words.iter().all(|w| text.contains(w)), "{:?}: {text}", refusal.kind);
}

#[tokio::test]
async fn an_allowed_caller_is_let_in_and_known() {
    let world = World::new(&["campus"]);
    let endpoint = world.campus(&[("campus", USERS)], Limits::default()).await;
    let alice = world.user("campus", "alice");
    assert_eq!(ask(&endpoint, &alice).await.unwrap(), format!("user alice ({:?})", alice.id()));
    let (_, server, _) = client::connect(&endpoint, &alice, alice.ca_pem().unwrap(), Some("campus")).await.unwrap();
    assert_eq!((server.id, server.role, server.label.as_str()), (world.site("campus").id(), CertRole::Site, "campus"));
}

#[tokio::test]
async fn a_caller_without_a_certificate_is_refused() {
    let world = World::new(&["campus"]);
    let endpoint = world.campus(&[("campus", USERS)], Limits::default()).await;
    let (error, addr) = bare_tls(&world, &endpoint, &rustls::version::TLS13).await;
    assert!(error.contains("CertificateRequired"), "{error}");
    logged(&[&addr, "who=unknown", "presented no certificate"]).await;
}

#[tokio::test]
async fn an_older_tls_is_refused() {
    let world = World::new(&["campus"]);
    let endpoint = world.campus(&[("campus", USERS)], Limits::default()).await;
    let (error, addr) = bare_tls(&world, &endpoint, &rustls::version::TLS12).await;
    assert!(error.contains("ProtocolVersion"), "{error}");
    logged(&[&addr, "who=unknown", "does not speak TLS 1.3"]).await;
}

/// What a client without a certificate reads, and its address.
async fn bare_tls(world: &World, endpoint: &str, version: &'static rustls::SupportedProtocolVersion) -> (String, String) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_file(world.path("campus").join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(endpoint).await.unwrap();
    let addr = tcp.local_addr().unwrap().to_string();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(SITE_NAME).unwrap(), tcp).await;
    let error = match tls {
        // A client may speak at length before it reads; the refusal must reach it all the same.
        Ok(mut tls) => {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(5)).await;
                tls.write_all(&[0; 4096]).await.unwrap();
            }
            tls.read_u8().await.unwrap_err()
        }
        Err(e) => e,
    };
    (error.to_string(), addr)
}

#[tokio::test]
async fn an_untrusted_ca_is_refused() {
    let world = World::new(&["campus", "elsewhere"]);
    let endpoint = world.campus(&[("campus", USERS)], Limits::default()).await;
    let mallory = world.user("elsewhere", "mallory");
    let campus_ca = std::fs::read(world.path("campus").join("ca.pem")).unwrap();
    let refusal = client::connect(&endpoint, &mallory, &campus_ca, None).await.unwrap_err();
    says(&refusal, RefusalKind::NotAuthorised, &["refused our certificate, user mallory", "its CA is not trusted there", "[[trust]]"]);
    logged(&["who=who claims to be user mallory", "no CA that is trusted here"]).await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let world = World::new(&["campus"]);
    let endpoint = world.campus(&[("campus", USERS)], Limits::default()).await;
    let late = world.member("campus", CertRole::User, "late", Validity::expired());
    says(&ask(&endpoint, &late).await.unwrap_err(), RefusalKind::NotAuthorised, &["user late", "it expired 60 min ago", "new certificate"]);
    logged(&["user late", "its certificate expired 60 min ago"]).await;
}

/// Who is renewed is who he was, and nobody else has to hear of it.
#[tokio::test]
async fn a_renewed_certificate_is_of_the_same_key() {
    let world = World::new(&["campus", "other"]);
    let endpoint = world.campus(&[("campus", USERS)], Limits::default()).await;
    let late = world.member("campus", CertRole::User, "late", Validity::expired());
    let (site, dir) = (world.path("campus"), world.path("late"));
    // One of another CA would be good nowhere.
    let before = std::fs::read(dir.join("cert.pem")).unwrap();
    says(&issue::renew(world.path("other"), &dir, Validity::default()).unwrap_err(), RefusalKind::Conflict, &["late/ca.pem", "other", "--site"]);
    says(&issue::renew(&dir, &dir, Validity::default()).unwrap_err(), RefusalKind::Invalid, &["late/ca.key"]);
    assert_eq!(before, std::fs::read(dir.join("cert.pem")).unwrap());
    std::fs::write(dir.join("cert.pem.new"), "half of one").unwrap();
    std::fs::set_permissions(dir.join("cert.pem"), std::fs::Permissions::from_mode(0o640)).unwrap();
    issue::renew(&site, &dir, Validity::default()).unwrap();
    let renewed = Identity::load(&dir).unwrap();
    assert_eq!((late.id(), "late", CertRole::User, false), (renewed.id(), renewed.label(), renewed.role(), dir.join("cert.pem.new").exists()));
    assert_eq!(0o640, std::fs::metadata(dir.join("cert.pem")).unwrap().permissions().mode() & 0o777);
    ask(&endpoint, &renewed).await.unwrap();
    // A site's own, by its own CA; who trusted it, trusts it.
    let known = world.site("campus");
    issue::renew(&site, &site, Validity::days(800)).unwrap();
    let renewed = world.site("campus");
    assert_eq!((known.id(), CertRole::Site), (renewed.id(), renewed.role()));
    assert!(renewed.cert().not_after > known.cert().not_after);
    let endpoint = world.campus(&[("campus", USERS)], Limits::default()).await;
    ask(&endpoint, &world.user("campus", "ann")).await.unwrap();
}

/// The clock that it was made by was ahead, and has been set back since.
#[tokio::test]
async fn a_certificate_of_a_clock_that_was_up_to_a_day_ahead_is_good() {
    let world = World::new(&["campus"]);
    let endpoint = world.campus(&[("campus", USERS)], Limits::default()).await;
    let ahead = |hours: u64| {
        let (now, by) = (Validity::default(), Duration::from_secs(3_600 * hours));
        Validity { not_before: now.not_before + by, not_after: now.not_after + by }
    };
    ask(&endpoint, &world.member("campus", CertRole::User, "early", ahead(23))).await.unwrap();
    let earlier = world.member("campus", CertRole::User, "earlier", ahead(25));
    says(&ask(&endpoint, &earlier).await.unwrap_err(), RefusalKind::NotAuthorised, &["user earlier"]);
    logged(&["user earlier", "its certificate begins in ", " min: look at both clocks"]).await;
}

#[tokio::test]
async fn a_ca_gives_no_more_than_its_entry_says() {
    let world = World::new(&["campus", "parent"]);
    let endpoint = world.campus(&[("campus", &[Role::Agent, Role::User]), ("parent", &[Role::User, Role::Child])], Limits::default()).await;
    // A site whose CA may not have delegates here is let in as what else it can be, and refused by the call.
    let campus_ca = std::fs::read(world.path("campus").join("ca.pem")).unwrap();
    let (channel, ..) = client::connect(&endpoint, &world.site("parent"), &campus_ca, None).await.unwrap();
    let refusal = who_am_i(channel).await.unwrap_err();
    says(&refusal, RefusalKind::NotAuthorised, &["site parent", "needs the role user or admin or delegate, and has child"]);
    // An agent can't be a user, whatever the entry says.
    let agent = world.member("campus", CertRole::Agent, "node-1", Validity::default());
    says(&ask(&endpoint, &agent).await.unwrap_err(), RefusalKind::NotAuthorised, &["agent node-1", "has agent"]);
    // Who can be nothing at all does not get past TLS.
    let site = world.site("campus");
    says(&ask(&endpoint, &site).await.unwrap_err(), RefusalKind::NotAuthorised, &["refused our certificate, site campus", "no right there", "`may`"]);
    logged(&["who=site campus", "it needs the role delegate or child, and has none"]).await;
}

#[tokio::test]
async fn entries_of_one_ca_add_up_and_name_principals() {
    let world = World::new(&["parent"]);
    let trust = world.trust(&[("parent", &[Role::Delegate]), ("parent", &[Role::Child])]);
    let cert = rustls_pki_types::CertificateDer::from_pem_file(world.path("parent").join("cert.pem")).unwrap();
    let peer = trust.decide(std::slice::from_ref(&cert), rustls_pki_types::UnixTime::now()).unwrap();
    assert_eq!(peer.roles, [Role::Delegate, Role::Child].into());
    for (principal, allowed) in [("alice", true), ("lab-7", true), ("lab-", true), ("alice2", false), ("lab", false), ("", false)] {
        assert_eq!(peer.require_on_behalf(principal).is_ok(), allowed, "{principal}");
    }
    let child = world.trust(&[("parent", &[Role::Child])]).decide(&[cert], rustls_pki_types::UnixTime::now()).unwrap();
    says(&child.require_on_behalf("alice").unwrap_err(), RefusalKind::NotAuthorised, &["needs the role delegate"]);
    assert!(child.on_behalf.is_empty());
}

#[tokio::test]
async fn a_server_of_another_ca_or_label_is_not_believed() {
    let world = World::new(&["campus", "elsewhere"]);
    let endpoint = world.campus(&[("campus", USERS), ("elsewhere", USERS)], Limits::default()).await;
    let bob = world.user("elsewhere", "bob");
    says(&ask(&endpoint, &bob).await.unwrap_err(), RefusalKind::NotAuthorised, &["not the site we trust", "`ca`"]);
    logged(&["it does not accept us: UnknownCA"]).await;
    let carol = world.user("campus", "carol");
    let refusal = client::connect(&endpoint, &carol, carol.ca_pem().unwrap(), Some("partner")).await.unwrap_err();
    says(&refusal, RefusalKind::NotAuthorised, &["is site campus", "not partner"]);
}

#[tokio::test]
async fn only_a_site_can_pose_as_one() {
    let world = World::new(&["campus"]);
    let agent = Arc::new(world.member("campus", CertRole::Agent, "node-2", Validity::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let trust = world.trust(&[("campus", USERS)]);
    let refused = server::incoming(listener, agent, trust, Limits::default(), None).err().unwrap();
    says(&refused, RefusalKind::Invalid, &["agent node-2", "not a site's"]);

    // One that does not stop itself is found out by its caller.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let chain: Vec<_> = rustls_pki_types::CertificateDer::pem_file_iter(world.path("node-2").join("cert.pem")).unwrap().map(|c| c.unwrap()).collect();
    let key = rustls_pki_types::PrivateKeyDer::from_pem_file(world.path("node-2").join("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let _ = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(tcp).await;
    });
    says(&ask(&endpoint, &world.user("campus", "dave")).await.unwrap_err(), RefusalKind::NotAuthorised, &["not the site we trust"]);
}

#[tokio::test]
async fn nobody_can_hold_up_the_listener() {
    let world = World::new(&["campus"]);
    let limits = Limits { handshakes_max: 3, handshake_timeout: Duration::from_millis(300), ..Limits::default() };
    let endpoint = world.campus(&[("campus", USERS)], limits).await;
    let mut garbage = TcpStream::connect(&endpoint).await.unwrap();
    garbage.write_all(&[0xff; 4096]).await.unwrap();
    logged(&[&garbage.local_addr().unwrap().to_string(), "does not speak TLS"]).await;
    let mut http = TcpStream::connect(&endpoint).await.unwrap();
    http.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let _ = TcpStream::connect(&endpoint).await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(TcpStream::connect(&endpoint).await.unwrap());
    }
    let began = Instant::now();
    ask(&endpoint, &world.user("campus", "erin")).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    for tcp in &mut silent {
        // Too late, or the oldest where one more came.
        logged(&[&tcp.local_addr().unwrap().to_string(), "refused a connection", "TLS handshake"]).await;
        assert_eq!(tcp.read(&mut [0; 16]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn connections_are_bounded_and_their_places_come_back() {
    let world = World::new(&["campus"]);
    let endpoint = world.campus(&[("campus", USERS)], Limits { connections_max: 1, ..Limits::default() }).await;
    let frank = world.user("campus", "frank");
    let first = client::connect(&endpoint, &frank, frank.ca_pem().unwrap(), None).await.unwrap();
    let second = client::connect(&endpoint, &frank, frank.ca_pem().unwrap(), None).await;
    says(&second.err().unwrap(), RefusalKind::Unavailable, &[&endpoint]);
    logged(&["1 connections are open"]).await;
    drop(first);
    let until = Instant::now() + Duration::from_secs(5);
    while ask(&endpoint, &frank).await.is_err() {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_cannot_be_reached_says_so() {
    let world = World::new(&["campus"]);
    let grace = world.user("campus", "grace");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    drop(listener);
    says(&ask(&endpoint, &grace).await.unwrap_err(), RefusalKind::Unavailable, &["cannot reach", &endpoint]);
    for bad in ["campus", ":7411", "campus:port", ""] {
        says(&ask(bad, &grace).await.unwrap_err(), RefusalKind::Invalid, &["host:port"]);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(b"220 mail.example.org ESMTP\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
    });
    says(&ask(&endpoint, &grace).await.unwrap_err(), RefusalKind::Unavailable, &["does not answer as a site does"]);
}

#[tokio::test]
async fn a_lost_connection_is_unavailable() {
    let world = World::new(&["campus"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let incoming = server::incoming(listener, world.site("campus"), world.trust(&[("campus", USERS)]), Limits::default(), None).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = server::grpc_server().serve_with_incoming_shutdown(GridServer::new(WhoCalls), incoming, async {
        let _ = stopped.await;
    });
    let server = tokio::spawn(server);
    let heidi = world.user("campus", "heidi");
    let (channel, ..) = client::connect(&endpoint, &heidi, heidi.ca_pem().unwrap(), None).await.unwrap();
    who_am_i(channel.clone()).await.unwrap();
    drop(stop);
    server.await.unwrap().unwrap();
    for _ in 0..3 {
        says(&who_am_i(channel.clone()).await.unwrap_err(), RefusalKind::Unavailable, &["no answer from the peer"]);
    }
    TcpListener::bind(&endpoint).await.expect("the port is free again");
}

#[tokio::test]
async fn refusals_cross_the_wire_whole_but_for_their_length() {
    let world = World::new(&["campus"]);
    let endpoint = world.campus(&[("campus", USERS)], Limits::default()).await;
    let ivan = world.user("campus", "ivan");
    let (channel, ..) = client::connect(&endpoint, &ivan, ivan.ca_pem().unwrap(), None).await.unwrap();
    let mut grid = GridClient::new(channel);
    let long = refusal_of(&grid.has_blobs(pb::BlobHashes { hashes: vec![b"big".to_vec()] }).await.unwrap_err());
    assert_eq!((long.kind, long.message, long.remedy.len()), (RefusalKind::Invalid, "é".repeat(512), 1024));
    // A message that is not one.
    let mut raw = tonic::client::Grpc::new(client::connect(&endpoint, &ivan, ivan.ca_pem().unwrap(), None).await.unwrap().0);
    raw.ready().await.unwrap();
    let codec: tonic_prost::ProstCodec<pb::PutBlobReply, pb::BlobHashes> = Default::default();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/intergrid.v1.Grid/HasBlobs");
    let malformed = raw.unary(tonic::Request::new(pb::PutBlobReply { existed: true }), path, codec).await.unwrap_err();
    says(&refusal_of(&malformed), RefusalKind::Invalid, &["decode"]);
    let big = grid.has_blobs(pb::BlobHashes { hashes: vec![vec![0; 5 << 20]] }).await.unwrap_err();
    assert_eq!(refusal_of(&big).kind, RefusalKind::OverLimit, "{big}");
}

#[tokio::test]
async fn a_child_dials_its_parent_and_serves_it() {
    let world = World::new(&["root", "leaf"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let (children, mut dialled) = mpsc::channel(4);
    let trust = world.trust(&[("leaf", &[Role::Child])]);
    let incoming = server::incoming(listener, world.site("root"), trust, Limits::default(), Some(children)).unwrap();
    tokio::spawn(server::grpc_server().serve_with_incoming(GridServer::new(WhoCalls), incoming));

    let leaf = world.site("leaf");
    let root_ca = std::fs::read(world.path("root").join("ca.pem")).unwrap();
    let connections = reverse::parent(endpoint, leaf.clone(), root_ca, world.trust(&[("root", &[Role::Delegate])]));
    tokio::spawn(server::grpc_server().serve_with_incoming(GridServer::new(WhoCalls), connections));
    // Twice: the child dials again when the connection ends.
    for _ in 0..2 {
        let conn = dialled.recv().await.unwrap();
        assert_eq!((conn.peer.id, conn.peer.label.as_str()), (leaf.id(), "leaf"));
        let (channel, _) = client::over(conn.io).await.unwrap();
        assert_eq!(who_am_i(channel).await.unwrap(), format!("site root ({:?})", world.site("root").id()));
    }
}

#[tokio::test]
async fn a_child_is_refused_as_clearly_as_a_caller() {
    let world = World::new(&["root", "leaf"]);
    let root_ca = std::fs::read(world.path("root").join("ca.pem")).unwrap();
    let delegates = world.trust(&[("root", &[Role::Delegate])]);
    let serve = async |trust: &[(&str, &[Role])], children| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let incoming = server::incoming(listener, world.site("root"), world.trust(trust), Limits::default(), children).unwrap();
        tokio::spawn(server::grpc_server().serve_with_incoming(GridServer::new(WhoCalls), incoming));
        endpoint
    };
    let dial = async |endpoint: String, trust| reverse::dial_parent(&endpoint, &world.site("leaf"), &root_ca, trust).await.err().expect("a refusal");
    let (children, _dialled) = mpsc::channel(4);
    // The parent's trust lacks `child`.
    let endpoint = serve(&[("leaf", &[Role::Delegate])], Some(children.clone())).await;
    says(&dial(endpoint, &delegates).await, RefusalKind::NotAuthorised, &["refused our certificate, site leaf", "no right there"]);
    logged(&["who=site leaf", "needs the role child, and has delegate"]).await;
    // The parent takes no children at all.
    let endpoint = serve(&[("leaf", &[Role::Child])], None).await;
    says(&dial(endpoint, &delegates).await, RefusalKind::NotAuthorised, &["takes no children"]);
    // The child does not want this parent.
    let endpoint = serve(&[("leaf", &[Role::Child])], Some(children)).await;
    let no_delegates = world.trust(&[("root", &[Role::Child])]);
    says(&dial(endpoint, &no_delegates).await, RefusalKind::NotAuthorised, &["may not place work here", "[[trust]]"]);
}

#[tokio::test]
async fn identities_are_private_and_never_overwritten() {
    let world = World::new(&["campus"]);
    let mode = |path: &str| std::fs::metadata(world.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!([mode("campus"), mode("campus/ca.key"), mode("campus/key.pem")], [0o700, 0o600, 0o600]);
    let before = std::fs::read(world.path("campus/key.pem")).unwrap();
    says(&issue::new_site(world.path("campus"), "campus", &[]).unwrap_err(), RefusalKind::Conflict, &["exists already"]);
    let judy = world.user("campus", "judy");
    says(
        &issue::issue(world.path("campus"), CertRole::User, "judy", world.path("judy"), Validity::default()).unwrap_err(),
        RefusalKind::Conflict,
        &["exists already"],
    );
    assert_eq!(before, std::fs::read(world.path("campus/key.pem")).unwrap());
    assert_eq!((judy.label(), judy.role(), judy.id()), ("judy", CertRole::User, Identity::load(world.path("judy")).unwrap().id()));
    for bad in ["", "a b", "a/b", "é", &"x".repeat(200)] {
        says(&issue::new_site(world.path("bad"), bad, &[]).unwrap_err(), RefusalKind::Invalid, &["label"]);
    }
    assert!(!world.path("bad").exists());
}

#[tokio::test]
async fn with_another_ca_s_key_nothing_is_issued() {
    let world = World::new(&["campus", "other"]);
    let (key, refused) = (world.path("campus/ca.key"), RefusalKind::Invalid);
    let csr = join::request(&world.path("m1")).unwrap();
    let all = || {
        let (site, day) = (world.path("campus"), Validity::days(1));
        let issued = issue::issue(&site, CertRole::User, "judy", world.path("judy"), day);
        [issued.err(), issue::token(&site, "m1", day).err(), issue::Csr::read(&csr).unwrap().sign(&site, CertRole::Agent, "m1", day).err()]
    };
    std::fs::copy(world.path("other/ca.key"), &key).unwrap();
    all().iter().for_each(|e| {
        says(e.as_ref().expect("refused"), refused, &["campus/ca.key: not the key of the CA in", "campus/ca.pem", "put the CA's key back"])
    });
    std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\n").unwrap();
    all().iter().for_each(|e| says(e.as_ref().expect("refused"), refused, &["campus/ca.key: not a private key", "put the CA's key back"]));
    assert!(!world.path("judy").exists());
}

#[tokio::test]
async fn a_machine_makes_its_own_key_and_a_token_may_only_join() {
    let world = World::new(&["campus"]);
    let (site, machine, token) = (world.path("campus"), world.path("m1"), world.path("m1.token"));
    let csr = join::request(&machine).unwrap();
    assert_eq!(0o600, std::fs::metadata(machine.join("key.pem")).unwrap().permissions().mode() & 0o777);
    let asked = issue::Csr::read(&csr).unwrap();
    assert_eq!(asked.id(), issue::Csr::read(&join::request(&machine).unwrap()).unwrap().id(), "the same key again");
    let id = asked.id();
    let cert = asked.sign(&site, CertRole::Agent, "m1", Validity::default()).unwrap();
    join::keep(&machine, &cert, &std::fs::read(site.join("ca.pem")).unwrap()).unwrap();
    let identity = Identity::load(&machine).unwrap();
    assert_eq!((id, CertRole::Agent, "m1"), (identity.id(), identity.role(), identity.label()));
    // What is not signed by its own key is no request.
    for at in [csr.len() - 1, 60, 2] {
        let mut bad = csr.clone();
        bad[at] ^= 1;
        assert!(issue::Csr::read(&bad).is_err(), "byte {at}");
    }
    says(&issue::Csr::read(&vec![0x30; 5_000]).err().unwrap(), RefusalKind::Invalid, &["5000 bytes", "4096"]);
    assert!(issue::Csr::read(b"").is_err());

    let text = issue::token(&site, "m1", Validity::days(1)).unwrap();
    std::fs::write(&token, &text).unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    says(&Identity::load_token(&token).unwrap_err(), RefusalKind::Invalid, &["m1.token", "0644", "chmod 600"]);
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let token = Identity::load_token(&token).unwrap();
    assert_eq!((CertRole::Join, "m1"), (token.role(), token.label()));
    assert_eq!(std::fs::read(site.join("ca.pem")).unwrap(), token.ca_pem().unwrap());
    let agents = world.campus(&[("campus", &[Role::Agent])], Limits::default()).await;
    // Let in where agents are, and nowhere else; and there it may do nothing else.
    says(&ask(&agents, &token).await.unwrap_err(), RefusalKind::NotAuthorised, &["join m1", "and has join"]);
    let users = world.campus(&[("campus", USERS)], Limits::default()).await;
    says(&ask(&users, &token).await.unwrap_err(), RefusalKind::NotAuthorised, &["it has no right there"]);
    // No `may` knows the word join.
    logged(&["who=join m1", "it needs the role join, and has none", "add \"agent\" to `may`"]).await;
    // Late, a new one is needed, and no certificate.
    let late = world.path("late.token");
    std::fs::write(&late, issue::token(&site, "m1", Validity::expired()).unwrap()).unwrap();
    std::fs::set_permissions(&late, std::fs::Permissions::from_mode(0o600)).unwrap();
    let late = Identity::load_token(&late).unwrap();
    says(&ask(&agents, &late).await.unwrap_err(), RefusalKind::NotAuthorised, &["join m1", "it expired 60 min ago", "`grid token`"]);
    // Only a token is one.
    let whole = [std::fs::read(machine.join("cert.pem")).unwrap(), std::fs::read(machine.join("key.pem")).unwrap(), token.ca_pem().unwrap().to_vec()];
    let other = world.path("other.token");
    std::fs::write(&other, whole.concat()).unwrap();
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o600)).unwrap();
    says(&Identity::load_token(&other).unwrap_err(), RefusalKind::Invalid, &["no token", "grid token"]);
}

#[tokio::test]
async fn a_broken_identity_is_named() {
    let world = World::new(&["campus"]);
    world.user("campus", "kim");
    world.user("campus", "leo");
    let refusal = |dir: &str| Identity::load(world.path(dir)).unwrap_err();
    says(&refusal("nowhere"), RefusalKind::Invalid, &["nowhere/cert.pem", "grid init"]);
    std::fs::set_permissions(world.path("leo/key.pem"), std::fs::Permissions::from_mode(0o644)).unwrap();
    says(&refusal("leo"), RefusalKind::Invalid, &["leo/key.pem", "0644", "chmod 600"]);
    std::fs::copy(world.path("campus/key.pem"), world.path("kim/key.pem")).unwrap();
    says(&refusal("kim"), RefusalKind::Invalid, &["kim/key.pem", "not the key of cert.pem"]);
    std::fs::write(world.path("kim/cert.pem"), "hello").unwrap();
    says(&refusal("kim"), RefusalKind::Invalid, &["kim/cert.pem", "no certificate in it"]);
    // A CA's certificate has no name of ours.
    std::fs::copy(world.path("campus/ca.pem"), world.path("kim/cert.pem")).unwrap();
    says(&refusal("kim"), RefusalKind::Invalid, &["kim/cert.pem", "intergrid:<role>/<label>"]);
    assert!(PeerCert::parse(b"\x30\x82garbage").is_err());
}
