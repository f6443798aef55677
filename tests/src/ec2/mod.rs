//! An EC2 on this machine: a real moto server, which keeps instances in its memory and takes the real SDK's calls; [`Proxy`] stands in front of it with what
//! moto does not do (idempotency, faults, pages, listings that lag behind); [`Machines`] runs what instances are told, as fresh machines would.
//!
//! Nothing is skipped: where moto is missing, that is said in a panic. All ends with the [`Moto`], also when the test is killed.

mod http;
mod machines;
mod proxy;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::form_of;
pub use http::{Answer, Call, all, call, first, form};
pub use machines::Machines;
pub use proxy::{Fault, Launched, Proxy};

/// Where `moto_server` is, as `tests/run` says it.
const PROGRAM: &str = "INTERGRID_MOTO_SERVER";
/// Where `tests/run` puts it by itself, below the home directory.
const INSTALLED: &str = ".cache/intergrid-moto/bin/moto_server";
/// A server that does not answer by then does not.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Everything that belongs to one test bears this in its environment, with a path below its directory.
const MARK: &str = "INTERGRID_ROOT";
/// An account's credentials, for the environment of a gateway. moto takes any.
pub const CREDENTIALS: [(&str, &str); 3] =
    [("AWS_ACCESS_KEY_ID", "AKIATEST"), ("AWS_SECRET_ACCESS_KEY", "a-secret-of-the-test"), ("AWS_EC2_METADATA_DISABLED", "true")];

/// The Python of moto's installation, which has PyYAML.
pub fn python() -> PathBuf {
    program().with_file_name("python")
}

/// A moto server.
pub struct Moto {
    endpoint: String,
    dir: PathBuf,
    child: Child,
    guard: Child,
}

impl Moto {
    /// With the images, types and subnets that it brings.
    pub fn start() -> Moto {
        let dir = tempfile::Builder::new().prefix("moto-").tempdir().unwrap().keep();
        let guard = crate::slurm::guard(&dir, MARK);
        let port = crate::slurm::ports(1)[0];
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let mut command = Command::new(program());
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).env(MARK, dir.join("moto")).env("MOTO_DOCKER_NETWORK_MODE", "none");
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let moto = Moto { endpoint: format!("127.0.0.1:{port}"), dir, child, guard };
        let deadline = Instant::now() + START_TIMEOUT;
        while call(&moto.endpoint, &form("DescribeRegions", &[])).is_none_or(|answer| answer.status != 200) {
            let log = || std::fs::read_to_string(moto.dir.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "moto does not answer within {START_TIMEOUT:?}: {}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
        moto
    }

    /// `host:port`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What EC2 would say.
    pub fn ask(&self, action: &str, more: &[(&str, &str)]) -> String {
        self.ask_of("ec2", action, more)
    }

    /// What another service of that account would say.
    pub fn ask_of(&self, service: &str, action: &str, more: &[(&str, &str)]) -> String {
        let answer = call(&self.endpoint, &form_of(service, action, more)).unwrap_or_else(|| panic!("moto does not answer {action}"));
        assert_eq!(200, answer.status, "{action}: {}", answer.text());
        answer.text()
    }

    /// Images that it has.
    pub fn images(&self) -> Vec<String> {
        all(&self.ask("DescribeImages", &[("Owner.1", "amazon")]), "imageId")
    }

    /// One of them.
    pub fn image(&self) -> String {
        self.images().swap_remove(0)
    }

    /// Subnets that it has.
    pub fn subnets(&self) -> Vec<String> {
        all(&self.ask("DescribeSubnets", &[]), "subnetId")
    }

    /// All instances: id, state.
    pub fn instances(&self) -> Vec<(String, String)> {
        let said = self.ask("DescribeInstances", &[]);
        let states = all(&said, "instanceState").into_iter().map(|state| first(&state, "name").unwrap_or_default());
        let ids: Vec<String> = all(&said, "instancesSet").iter().flat_map(|set| first(set, "instanceId")).collect();
        let states: Vec<String> = states.collect();
        assert_eq!(ids.len(), states.len(), "{said}");
        ids.into_iter().zip(states).collect()
    }

    /// Instances that cost.
    pub fn running(&self) -> Vec<String> {
        self.instances().into_iter().filter(|(_, state)| state != "terminated").map(|(id, _)| id).collect()
    }

    /// One attribute of an instance.
    pub fn attribute(&self, id: &str, name: &str) -> String {
        first(&self.ask("DescribeInstanceAttribute", &[("InstanceId", id), ("Attribute", name)]), "value").unwrap_or_default()
    }

    /// What an instance was told when it was launched.
    pub fn user_data(&self, id: &str) -> String {
        let mut decode = Command::new("base64").arg("-d").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("base64");
        decode.stdin.take().unwrap().write_all(self.attribute(id, "userData").as_bytes()).unwrap();
        String::from_utf8(decode.wait_with_output().unwrap().stdout).unwrap()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        // It ends what is left when its input does.
        drop(self.guard.stdin.take());
        _ = self.guard.wait();
    }
}

fn program() -> PathBuf {
    let installed = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(INSTALLED));
    let program = std::env::var_os(PROGRAM).map(PathBuf::from).or(installed).unwrap_or_default();
    assert!(program.is_file(), "there is no moto_server at {}; `tests/run --prepare` installs it", program.display());
    program
}
