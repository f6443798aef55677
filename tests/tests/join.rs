//! Machines that join a gateway with a token: real processes, real certificates.

#[allow(dead_code)]
#[path = "faults/tree.rs"]
mod tree;
#[allow(dead_code)]
#[path = "faults/user.rs"]
mod user;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use intergrid_proto::net::issue::{self, Validity};
use intergrid_proto::net::join::request;
use intergrid_proto::net::{CertRole, Identity, client, refusal_of};
use intergrid_proto::pb;
use intergrid_proto::pb::pool_client::PoolClient;
use intergrid_tests::ec2::python;

use tree::{Tree, binary, until};

const PATIENCE: Duration = Duration::from_secs(30);
/// A certificate that is over before the test is: long enough for the start of an agent, and for its renewal at half of it.
const SHORT: Duration = Duration::from_secs(16);

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
    tree.gateway("campus", None, RENTS);
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

/// A gateway that rents one machine at a time, and ends it when it has had no work for a second.
const RENTS: &str = "\n[cloud]\nprovider = \"process\"\nslots_max = 1\nidle = \"1s\"\ncurrency = \"EUR\"\nbudget = { hour = \"1\" }\n\
    [[cloud.type]]\nname = \"small\"\nslots = 1\nmemory = \"64M\"\nprice = \"0.10\"\nbilling = \"second\"\nmin_seconds = 1\n";

/// As somebody would who has read a token: by hand, over a connection of his own.
async fn stolen(tree: &Tree, token: &Path, name: &str, wait: Duration) -> String {
    asked(tree, token, name, wait).await.unwrap_err()
}

/// The certificate that is given for it, or why none is.
async fn asked(tree: &Tree, token: &Path, name: &str, wait: Duration) -> Result<String, String> {
    let token = Identity::load_token(token).unwrap();
    let ca = fs::read(tree.identity("campus").join("ca.pem")).unwrap();
    let (channel, ..) = client::connect(&tree.endpoint("campus"), &token, &ca, None).await.unwrap();
    let csr = request(&tree.path(name).join("identity")).unwrap();
    tokio::time::sleep(wait).await;
    let reply = PoolClient::new(channel).join(pb::JoinRequest { csr }).await;
    reply.map(|reply| reply.into_inner().certificate).map_err(|status| refusal_of(&status).to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_of_a_machine_that_has_been_ended_is_refused_and_that_is_logged() {
    let mut tree = Tree::new().alone();
    tree.gateway("campus", None, RENTS);
    let user = tree.user("campus");
    user.until_slots(1, PATIENCE);
    let job = user.submit(&["--yes", "--", "/bin/sleep", "600"]);
    user.until_phase(&job, "running", 1);
    let name = user.json(&["machines"])["machines"][0]["machine"].as_str().unwrap().to_string();
    let (one, two) = (token(&tree, &name, "1h"), tree.path("tokens").join("kept.token"));
    fs::rename(one, &two).unwrap();
    let one = token(&tree, &name, "1h");
    let given = asked(&tree, &one, "first", Duration::ZERO).await;
    assert!(given.is_ok_and(|certificate| certificate.contains("BEGIN CERTIFICATE")), "while its machine may exist");
    user.run(&["cancel", &job]).well();
    until("the machine is gone", 2 * PATIENCE, || match user.json(&["machines"])["machines"].as_array().unwrap().len() {
        0 => Ok(()),
        n => Err(format!("{n} are there\n{}", tree.log("campus"))),
    });
    let before = tree.log("campus").len();
    let said = stolen(&tree, &two, "second", Duration::ZERO).await;
    assert!(said.contains("is not a machine that this gateway has rented, or it has been ended"), "{said}");
    // Nor does the one that was used give its machine another certificate.
    let again = stolen(&tree, &one, "first", Duration::ZERO).await;
    assert!(again.contains("has been ended"), "{again}");
    let log = tree.log("campus")[before..].to_string();
    let refused: Vec<&str> =
        log.lines().filter(|l| l.contains("refused a certificate") && l.contains(&name) && l.contains("has been ended")).collect();
    assert_eq!(2, refused.len(), "{log}");
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

#[test]
fn a_certificate_is_renewed_before_it_is_over_and_the_new_one_is_used() {
    let mut tree = Tree::new();
    tree.gateway("campus", None, "");
    let user = tree.user("campus");
    let id = tree.path("m9").join("identity");
    _ = fs::remove_dir(&id);
    issue::issue(tree.identity("campus"), CertRole::Agent, "m9", &id, Validity::of(SHORT)).unwrap();
    let until_of = |id: &Path| Identity::load(id).unwrap().cert().not_after;
    let (first, key) = (until_of(&id), fs::read(id.join("key.pem")).unwrap());
    let one = token(&tree, "m9", "1h");
    machine(&mut tree, "m9", "m9", &one);
    user.until_slots(1, PATIENCE);
    until("it is renewed", PATIENCE, || match until_of(&id) {
        second if second > first + Duration::from_secs(86_400) => Ok(()),
        _ => Err(tree.log("m9")),
    });
    assert_eq!(key, fs::read(id.join("key.pem")).unwrap(), "it is who it was");
    until("both say so", PATIENCE, || match (tree.log("campus"), tree.log("m9")) {
        (campus, m9) if campus.contains("certified") && m9.contains("the certificate is renewed") => Ok(()),
        (campus, m9) => Err(campus + &m9),
    });

    // With the first one nobody comes in any more; the machine does, without having been started again.
    std::thread::sleep(first.duration_since(SystemTime::now()).unwrap_or_default() + Duration::from_secs(1));
    tree.kill("campus");
    tree.start("campus");
    user.until_slots(1, PATIENCE);
    let job = user.submit(&["--", "/bin/true"]);
    assert_eq!(0, user.wait(&job), "{}", tree.log("m9"));
}

/// What cloud-init does with it on a machine, in a directory: files, then commands.
#[test]
fn cloud_init_makes_a_machine_an_agent() {
    let repository = Path::new("..");
    let read = |path: &str| fs::read_to_string(repository.join(path)).unwrap();
    let mut tree = Tree::new();
    tree.gateway("campus", None, "");
    let (user, root) = (tree.user("campus"), tree.path("machine"));
    let token = fs::read_to_string(token(&tree, "vm-1", "1h")).unwrap();
    let sum = Command::new("sha256sum").arg(binary("grid-agent")).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap()[..64].to_string();
    let text = read("deploy/cloud-init/agent.yaml");
    let line = |with: &str| text.lines().find(|l| l.contains("<--") && l.contains(with)).unwrap_or_else(|| panic!("no line to change with {with}"));
    let indented: Vec<String> = token.lines().map(|l| format!("      {l}")).collect();
    let told = text
        .replace(line("vm-1.token"), &indented.join("\n"))
        .replace(line("gateway ="), &format!("      gateway = \"{}\"\n      slots = 1\n      memory = \"64M\"", tree.endpoint("campus")))
        .replace(line("url="), &format!("      url='file://{}'", binary("grid-agent").display()))
        .replace(line("sha256="), &format!("      sha256={sum}"))
        .replace("\"1h\"", "\"3s\"");
    let yaml = root.join("user-data");
    fs::write(&yaml, told).unwrap();
    let words = "import sys, json, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let parsed = Command::new(python()).args(["-c", words]).arg(&yaml).output().unwrap();
    assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stderr));
    let parsed: serde_json::Value = serde_json::from_slice(&parsed.stdout).unwrap();

    let below = |path: &str| root.join(path.trim_start_matches('/'));
    for file in parsed["write_files"].as_array().unwrap() {
        let (path, content) = (file["path"].as_str().unwrap(), file["content"].as_str().unwrap());
        fs::create_dir_all(below(path).parent().unwrap()).unwrap();
        fs::write(below(path), content.replace("\"/var/", &format!("\"{}/var/", root.display()))).unwrap();
        let mode = u32::from_str_radix(file["permissions"].as_str().unwrap(), 8).unwrap();
        fs::set_permissions(below(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let held = below("/var/lib/intergrid-agent/token.pem");
    assert_eq!(0o600, fs::metadata(&held).unwrap().permissions().mode() & 0o777);
    let unit = fs::read_to_string(below("/etc/systemd/system/intergrid-agent.service")).unwrap();
    let own = |l: &&str| l.starts_with('#') || l.starts_with("Documentation=") || l.starts_with("ExecStart=") || unit.lines().any(|u| u == *l);
    let missing: Vec<String> = read("deploy/systemd/intergrid-agent.service").lines().filter(|l| !own(l)).map(String::from).collect();
    assert!(missing.is_empty(), "lines of the unit that this one has not: {missing:?}");

    fs::create_dir_all(root.join("sbin")).unwrap();
    let (poweroff, off) = (root.join("sbin/poweroff"), root.join("off"));
    fs::write(&poweroff, format!("#!/bin/sh\n: > '{}'\n", off.display())).unwrap();
    fs::set_permissions(&poweroff, fs::Permissions::from_mode(0o755)).unwrap();
    let command: Vec<&str> = parsed["runcmd"][0].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    let run = |script: &str| {
        let log = fs::File::create(root.join("log")).unwrap();
        let mut boot = Command::new(command[0]);
        boot.args([command[1], script]).env_clear().env("PATH", std::env::var("PATH").unwrap()).env("INTERGRID_ROOT", &root);
        boot.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    };
    let said = || fs::read_to_string(root.join("log")).unwrap();
    // Another program than the one that was named is not run, nor kept.
    let wrong = command[2].replace(&sum, &"0".repeat(64)).replace("sleep 3", "sleep 0");
    assert_eq!(Some(1), run(&wrong).wait().unwrap().code(), "{}", said());
    assert!(said().contains("is not what it should be") && !root.join("usr/local/bin/grid-agent.new").exists(), "{}", said());
    assert!(!root.join("usr/local/bin/grid-agent").exists() && held.exists());

    let mut machine = run(command[2]);
    user.until_slots(1, PATIENCE);
    assert!(!held.exists(), "a used token is deleted");
    let job = user.submit(&["--", "/bin/true"]);
    assert_eq!(0, user.wait(&job), "{}", said());
    tree.kill("campus");
    until("it is switched off", PATIENCE, || if off.exists() { Ok(()) } else { Err(said()) });
    assert_eq!(Some(0), machine.wait().unwrap().code(), "{}", said());
}
