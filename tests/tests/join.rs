//! Machines that join a gateway with a token: real processes, real certificates.

#[allow(dead_code)]
#[path = "faults/tree.rs"]
mod tree;
#[allow(dead_code)]
#[path = "faults/user.rs"]
mod user;

use std::fs;
use std::path::Path;
use std::time::Duration;

use intergrid_proto::net::issue::{self, Validity};
use intergrid_proto::net::join::request;
use intergrid_proto::net::{CertRole, Identity, client, refusal_of};
use intergrid_proto::pb;
use intergrid_proto::pb::pool_client::PoolClient;

use tree::{Tree, until};

const PATIENCE: Duration = Duration::from_secs(30);

fn token(tree: &Tree, name: &str, valid: &str) -> std::path::PathBuf {
    let (site, out) = (tree.identity("campus"), tree.path("tokens").join(format!("{name}.token")));
    _ = fs::remove_file(&out);
    let words = ["token", name, "--site", site.to_str().unwrap(), "--out", out.to_str().unwrap(), "--valid", valid];
    assert!(user::grid(&words).status().unwrap().success());
    out
}

/// A machine with this token, in a directory of its own; it has no identity yet.
fn machine(tree: &mut Tree, dir: &str, name: &str, token: &Path) {
    let home = tree.path(dir);
    fs::copy(token, home.join("token")).unwrap();
    tree.joining(dir, name, "campus", "slots = 1\nmemory = \"64M\"\n");
}

#[test]
fn a_machine_joins_once_with_a_key_of_its_own() {
    let mut tree = Tree::new();
    tree.gateway("campus", None, "");
    let user = tree.user("campus");
    let one = token(&tree, "m1", "1h");
    machine(&mut tree, "m1", "m1", &one);
    user.until_slots(1, PATIENCE);
    let id = tree.path("m1").join("identity");
    assert!(id.join("cert.pem").exists() && !tree.path("m1").join("token").exists(), "a used token is deleted");
    assert!(!fs::read_to_string(&one).unwrap().contains(fs::read_to_string(id.join("key.pem")).unwrap().lines().nth(1).unwrap()));
    let job = user.submit(&["--", "/bin/true"]);
    assert_eq!(0, user.wait(&job));

    // Started again: it is who it was.
    tree.kill("m1");
    tree.start("m1");
    user.until_slots(1, PATIENCE);

    // Its answer was lost: the same key may ask again.
    tree.kill("m1");
    fs::remove_file(id.join("cert.pem")).unwrap();
    fs::copy(&one, tree.path("m1").join("token")).unwrap();
    tree.start("m1");
    user.until_slots(1, PATIENCE);
    tree.kill("m1");

    // Somebody has read the token: it was used, also after a restart of the gateway.
    tree.kill("campus");
    tree.start("campus");
    machine(&mut tree, "thief", "m1", &one);
    until("the thief is told", PATIENCE, || match tree.log("thief") {
        log if log.contains("used before, for another key") => Ok(()),
        log => Err(log),
    });
    assert!(tree.ended("thief"), "it gives up");
    let log = tree.log("campus");
    assert!(log.contains("refused a certificate") && log.contains("join m1"), "{log}");
    assert!(!log.contains("PRIVATE KEY"));
}

#[test]
fn a_token_is_for_its_machine_and_its_time() {
    let mut tree = Tree::new();
    tree.gateway("campus", None, "");
    let late = token(&tree, "m2", "1s");
    std::thread::sleep(Duration::from_secs(2));
    machine(&mut tree, "late", "m2", &late);
    until("the late one is told", PATIENCE, || match tree.log("late") {
        log if log.contains("expired") => Ok(()),
        log => Err(log),
    });
    let other = token(&tree, "m3", "1h");
    machine(&mut tree, "other", "m4", &other);
    until("it is for another machine", PATIENCE, || match tree.log("other") {
        log if log.contains("a token for m3, not for m4") => Ok(()),
        log => Err(log),
    });
    assert!(!tree.path("late").join("identity/cert.pem").exists() && !tree.path("other").join("identity/cert.pem").exists());

    // A rented machine that nobody wants costs money for nothing.
    let mut tree = Tree::new();
    tree.gateway(
        "campus",
        None,
        "\n[cloud]\nprovider = \"process\"\nslots_max = 1\ncurrency = \"EUR\"\nbudget = { hour = \"1\" }\n\
        [[cloud.type]]\nname = \"small\"\nslots = 1\nmemory = \"64M\"\nprice = \"0.10\"\nbilling = \"second\"\n",
    );
    let gone = token(&tree, "campus-m7", "1h");
    let off = tree.path("gone").join("off");
    fs::copy(&gone, tree.path("gone").join("token")).unwrap();
    let more = format!("alone_max = \"10m\"\non_alone = [\"/bin/touch\", \"{}\"]\n", off.display());
    tree.joining("gone", "campus-m7", "campus", &more);
    until("it switches itself off", PATIENCE, || if off.exists() { Ok(()) } else { Err(tree.log("gone")) });
    until("it says why", PATIENCE, || match tree.log("gone") {
        log if log.contains("not a machine that this gateway has rented") => Ok(()),
        log => Err(log),
    });
}

/// As somebody would who has read a token: by hand, over a connection of his own.
async fn stolen(tree: &Tree, token: &Path, name: &str, wait: Duration) -> String {
    let token = Identity::load_token(token).unwrap();
    let ca = fs::read(tree.identity("campus").join("ca.pem")).unwrap();
    let (channel, _) = client::connect(&tree.endpoint("campus"), &token, &ca, None).await.unwrap();
    let csr = request(&tree.path(name).join("identity")).unwrap();
    tokio::time::sleep(wait).await;
    refusal_of(&PoolClient::new(channel).join(pb::JoinRequest { csr }).await.unwrap_err()).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_held_open_and_another_s_ca_give_no_certificate() {
    let mut tree = Tree::new();
    let partner = tree.identity("partner");
    tree.gateway("campus", None, &format!("\n[[trust]]\nca = \"{}\"\nmay = [\"agent\"]\n", partner.join("ca.pem").display()));
    let late = token(&tree, "m5", "2s");
    let said = stolen(&tree, &late, "m5", Duration::from_millis(2_500)).await;
    assert!(said.contains("the token of m5 has expired"), "{said}");
    let out = tree.path("tokens").join("m6.token");
    let words = ["token", "m6", "--site", partner.to_str().unwrap(), "--out", out.to_str().unwrap()];
    assert!(user::grid(&words).status().unwrap().success());
    let said = stolen(&tree, &out, "m6", Duration::ZERO).await;
    assert!(said.contains("another CA than this site's"), "{said}");
}

#[test]
fn a_machine_that_was_off_for_too_long_joins_again_with_a_new_token() {
    let mut tree = Tree::new();
    tree.gateway("campus", None, "");
    let user = tree.user("campus");
    let id = tree.path("m8").join("identity");
    _ = fs::remove_dir(&id);
    issue::issue(tree.identity("campus"), CertRole::Agent, "m8", &id, Validity::expired()).unwrap();
    let key = fs::read(id.join("key.pem")).unwrap();
    let one = token(&tree, "m8", "1h");
    machine(&mut tree, "m8", "m8", &one);
    user.until_slots(1, PATIENCE);
    assert_eq!(key, fs::read(id.join("key.pem")).unwrap(), "it is who it was");
    assert!(!tree.path("m8").join("token").exists());
    // A token that is left beside a good certificate is not needed, and goes.
    tree.kill("m8");
    fs::copy(&one, tree.path("m8").join("token")).unwrap();
    tree.start("m8");
    user.until_slots(1, PATIENCE);
    assert!(!tree.path("m8").join("token").exists());
}
