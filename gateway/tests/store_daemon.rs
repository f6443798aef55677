//! A daemon's port, ready file and end, with real processes where it takes them.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use intergrid_gateway::daemon_files::{Ready, Stop, bind, end_by_force_after, stop};
use intergrid_proto::SiteId;

const DAEMON_ENV: &str = "INTERGRID_TEST_DAEMON";

#[tokio::test]
async fn port_0_is_the_same_port_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (listener, first) = bind("127.0.0.1:0", dir.path()).await.unwrap();
    assert_eq!(listener.local_addr().unwrap().to_string(), first);
    drop(listener);
    let (listener, second) = bind("127.0.0.1:0", dir.path()).await.unwrap();
    assert_eq!(first, second);
    let refused = bind("127.0.0.1:0", dir.path()).await.unwrap_err();
    assert!(refused.to_string().contains("remove") && refused.message.contains("in use"), "{refused}");
    drop(listener);
    let other = tempfile::tempdir().unwrap();
    let (_listener, wildcard) = bind("0.0.0.0:0", other.path()).await.unwrap();
    assert!(wildcard.starts_with("127.0.0.1:"), "{wildcard}");
    assert_eq!(format!("cannot listen on {wildcard}"), bind(&wildcard, other.path()).await.unwrap_err().message.split_once(": ").unwrap().0);
    std::fs::write(dir.path().join("port"), "x").unwrap();
    assert!(bind("127.0.0.1:0", dir.path()).await.unwrap_err().message.contains("does not hold a port"));
}

#[test]
fn the_ready_file_is_one_object() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ready.json");
    Ready::new("127.0.0.1:1", SiteId([1; 16]), "campus").write(&path).unwrap();
    Ready::new("127.0.0.1:2", SiteId([1; 16]), "campus").write(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let want = format!("{{\"endpoint\":\"127.0.0.1:2\",\"pid\":{},\"site\":\"{}\",\"name\":\"campus\"}}\n", std::process::id(), "01".repeat(16));
    assert_eq!(want, text);
    assert_eq!(1, std::fs::read_dir(dir.path()).unwrap().count());
    assert!(Ready::new("", SiteId([1; 16]), "").write(&dir.path().join("no/where")).is_err());
}

/// Not a test of its own: the process that is told to end. `stuck` does not end by itself.
#[test]
fn daemon() {
    let Ok(mode) = std::env::var(DAEMON_ENV) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let why = runtime.block_on(async {
        let stop = stop(true).unwrap();
        println!("ready.");
        stop.await
    });
    println!("{why:?}.");
    if mode == "stuck" {
        end_by_force_after(Duration::from_millis(300));
        std::thread::sleep(Duration::from_secs(60));
    }
}

struct Daemon(Child, std::io::Lines<BufReader<std::process::ChildStdout>>);

impl Daemon {
    fn start(mode: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "daemon", "--nocapture"]).env(DAEMON_ENV, mode).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut daemon = Daemon(child, lines);
        daemon.says("ready.");
        daemon
    }

    fn says(&mut self, what: &str) {
        assert!(self.1.any(|line| line.unwrap().ends_with(what)), "{what}");
    }

    fn kill(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.0.id() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn code(&mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

#[test]
fn ends_on_signals_and_with_its_parent() {
    let began = Instant::now();
    let mut daemon = Daemon::start("good");
    daemon.kill(rustix::process::Signal::TERM);
    daemon.says(&format!("{:?}.", Stop::Terminated));
    assert_eq!(Some(0), daemon.code());
    let mut daemon = Daemon::start("good");
    daemon.kill(rustix::process::Signal::INT);
    daemon.says(&format!("{:?}.", Stop::Interrupted));
    assert_eq!(Some(0), daemon.code());
    let mut daemon = Daemon::start("good");
    drop(daemon.0.stdin.take());
    daemon.says(&format!("{:?}.", Stop::ParentGone));
    assert_eq!(Some(0), daemon.code());
    let mut daemon = Daemon::start("stuck");
    drop(daemon.0.stdin.take());
    daemon.says(&format!("{:?}.", Stop::ParentGone));
    assert_eq!(Some(130), daemon.code());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let began = Instant::now();
    let mut daemon = Daemon::start("stuck");
    daemon.kill(rustix::process::Signal::TERM);
    daemon.says(&format!("{:?}.", Stop::Terminated));
    daemon.kill(rustix::process::Signal::TERM);
    assert_eq!(Some(130), daemon.code());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}
