//! The laws of a provider of machines, kept by `process`: real agents, as processes on this machine.

#[allow(dead_code)]
#[path = "faults/tree.rs"]
mod tree;
#[allow(dead_code)]
#[path = "faults/user.rs"]
mod user;

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use intergrid_gateway::backends::agents::ProcessConfig;
use intergrid_gateway::laws::cloud::{GATEWAY, Place, check};
use intergrid_gateway::rent::{Cloud, ProcessCloud};
use intergrid_proto::net::issue::new_site;

struct Machine {
    dir: tempfile::TempDir,
    /// Agents end with the first that started them.
    all: Mutex<Vec<Arc<dyn Cloud>>>,
}

impl Machine {
    fn agents(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join("state/agents")
    }
}

impl Place for Machine {
    fn machine_type(&self) -> String {
        "small".into()
    }

    fn open(&self, other: bool) -> Pin<Box<dyn Future<Output = Arc<dyn Cloud>> + Send + '_>> {
        let config = ProcessConfig {
            gateway: if other { "other".into() } else { GATEWAY.into() },
            agents: 0,
            slots: None,
            memory_bytes: None,
            gpus: None,
            program: Some(tree::binary("grid-agent")),
            state: self.dir.path().join("state"),
            identity: self.dir.path().join("id"),
            die_with_parent: true,
            alone_ms: None,
            stop_ends_tasks: false,
        };
        let cloud: Arc<dyn Cloud> = ProcessCloud::new(config);
        self.all.lock().unwrap().push(cloud.clone());
        Box::pin(async move { cloud })
    }

    /// Processes that have a configuration of ours on their command line.
    fn running(&self) -> usize {
        let ours = |line: &[u8]| line.split(|b| *b == 0).any(|word| Path::new(&*String::from_utf8_lossy(word)).starts_with(self.agents()));
        let pids = fs::read_dir("/proc").unwrap().flatten().filter(|e| e.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()));
        pids.filter(|e| fs::read(e.path().join("cmdline")).is_ok_and(|line| ours(&line))).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_keep_the_laws_of_every_provider() {
    let machine = Machine { dir: tempfile::tempdir().unwrap(), all: Mutex::default() };
    new_site(machine.dir.path().join("id"), GATEWAY, &[]).unwrap();
    check(&machine).await.unwrap();
    let left: Vec<String> = fs::read_dir(machine.agents()).unwrap().flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    assert!(left.contains(&format!("{GATEWAY}-m1.ended")) && !left.contains(&format!("{GATEWAY}-m1")), "a mark is all that is left: {left:?}");
}
