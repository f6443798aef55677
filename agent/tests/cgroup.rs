//! Memory cgroups of both versions, for real. A kernel gives its memory controller to one version only; so each test runs here where this machine's kernel
//! has the version and lets us make a cgroup, and else in a kernel of its own: `linux.uml`, the user-mode kernel of Debian, with this machine's files. Where
//! neither can be had the test fails.

mod pool;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use intergrid_proto::{Exit, Phase, ReasonKind};
use pool::{Gateway, sh};

/// Set in the kernel of its own.
const INSIDE: &str = "INTERGRID_TEST_INSIDE_UML";
/// Boots in 5 s; a machine may be busy.
const UML_SECONDS_MAX: &str = "100";

#[derive(Clone, Copy, PartialEq, Debug)]
enum Version {
    One,
    Two,
}

#[test]
fn version_1_limits_and_measures() {
    here_or_in_a_kernel_of_its_own(Version::One, "version_1_limits_and_measures");
}

#[test]
fn version_2_limits_and_measures() {
    here_or_in_a_kernel_of_its_own(Version::Two, "version_2_limits_and_measures");
}

#[test]
fn what_is_no_memory_cgroup_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| intergrid_agent::exec::cgroup::Cgroup::open(path).unwrap_err();
    let absent = dir.path().join("absent");
    for (what, path) in [("no such directory", absent.as_path()), ("a plain directory", dir.path())] {
        let refused = open(path).to_string();
        assert!(refused.contains("not usable as a memory cgroup") && refused.contains("Delegate=memory"), "{what}: {refused}");
    }
    // Version 2 without the memory controller, as on a machine that mixes both versions.
    std::fs::write(dir.path().join("cgroup.controllers"), "cpu pids\n").unwrap();
    let refused = open(dir.path()).to_string();
    assert!(refused.contains("the memory controller is not here; there are: cpu pids"), "{refused}");
}

fn here_or_in_a_kernel_of_its_own(version: Version, name: &str) {
    match delegated(version) {
        Ok(dir) => tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(limits_and_measures(dir)),
        Err(why) if std::env::var_os(INSIDE).is_some() => panic!("{version:?} in a kernel of its own: {why}"),
        Err(why) => in_a_kernel_of_its_own(version, name, &why),
    }
}

async fn limits_and_measures(dir: PathBuf) {
    let g = Gateway::new().await;
    let mut agent = g.agent(&format!("slots = 2\nmemory = \"2G\"\ncgroup = {dir:?}"));
    g.attached().await;
    let mut modest = sh("x=$(head -c 5000000 /dev/zero | tr '\\0' x)");
    modest.shape.memory_bytes = 100 << 20;
    let e = g.run(1, &modest).await;
    assert_eq!((Phase::Done, "cgroup"), (e.phase, e.measured.as_str()), "{:?}", e.reason);
    assert!((5_000_000..100 << 20).contains(&e.peak_bytes[0]), "{:?}", e.peak_bytes);
    // One process that grows for ever: nobody else can be killed in its place.
    let mut greedy = sh("exec tail /dev/zero");
    greedy.shape.memory_bytes = 50 << 20;
    let e = g.run(2, &greedy).await;
    assert_eq!((Some(ReasonKind::MemoryLimit), Exit::Signal(9), "cgroup"), (e.reason.as_ref().map(|r| r.kind), e.exit_at(0), e.measured.as_str()));
    assert!((40 << 20..=50 << 20).contains(&e.peak_bytes[0]), "{:?}", e.peak_bytes);
    agent.terminate();
    let left: Vec<_> = std::fs::read_dir(&dir).unwrap().flatten().filter(|e| e.path().is_dir()).collect();
    assert!(left.is_empty(), "cgroups of tasks are left: {left:?}");
    std::fs::remove_dir(dir).unwrap();
}

/// A cgroup of our own with the memory controller: below the one that this process is in or one above it, as far as we may write there.
fn delegated(version: Version) -> Result<PathBuf, String> {
    let read = |path: &str| std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
    let (mounts, mine) = (read("/proc/self/mounts")?, read("/proc/self/cgroup")?);
    let mount = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>()).find(|w| match version {
        Version::One => w.get(2) == Some(&"cgroup") && w.get(3).is_some_and(|o| o.split(',').any(|o| o == "memory")),
        Version::Two => w.get(2) == Some(&"cgroup2"),
    });
    let root = PathBuf::from(mount.and_then(|w| w.get(1).copied()).ok_or("not mounted")?);
    let mine = mine.lines().map(|l| l.splitn(3, ':').collect::<Vec<_>>()).find(|w| match version {
        Version::One => w.get(1).is_some_and(|c| c.split(',').any(|c| c == "memory")),
        Version::Two => w.first() == Some(&"0"),
    });
    let mine = root.join(mine.and_then(|w| w.get(2).copied()).unwrap_or("/").trim_start_matches('/'));
    let mut why = "no directory of it can be seen".to_string();
    for parent in mine.ancestors().take_while(|a| a.starts_with(&root)).filter(|a| a.is_dir()) {
        let dir = parent.join(format!("intergrid-test-{}-{version:?}", std::process::id()));
        match make(version, parent, &dir) {
            Ok(()) => return Ok(dir),
            Err(e) => why = format!("{}: {e}", dir.display()),
        }
        let _ = std::fs::remove_dir(&dir);
    }
    Err(why)
}

fn make(version: Version, parent: &Path, dir: &Path) -> std::io::Result<()> {
    if version == Version::Two {
        // Where it is on already, that changes nothing.
        let _ = std::fs::write(parent.join("cgroup.subtree_control"), "+memory");
    }
    std::fs::create_dir(dir)?;
    let limit = match version {
        Version::One => "memory.limit_in_bytes",
        Version::Two => "memory.max",
    };
    std::fs::metadata(dir.join(limit)).map_err(|_| std::io::Error::other("the kernel has not put its memory controller there"))?;
    // May we enter it?
    let mut child = Command::new("sleep").arg("60").spawn()?;
    let entered = std::fs::write(dir.join("cgroup.procs"), child.id().to_string());
    child.kill()?;
    child.wait()?;
    entered
}

/// Boot one, and run this same test in it.
fn in_a_kernel_of_its_own(version: Version, name: &str, why: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (init, me) = (dir.path().join("init"), std::env::current_exe().unwrap());
    let mount = match version {
        Version::One => "-t cgroup -o memory",
        Version::Two => "-t cgroup2",
    };
    let script = format!(
        "#!/bin/sh\nexport PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nmount -t proc proc /proc\nmount -t tmpfs tmpfs /mnt\n\
         mkdir /mnt/cgroup && mount {mount} cgroup /mnt/cgroup\nip link set lo up\ncd /mnt\n\
         TMPDIR=/mnt {INSIDE}=1 {me:?} --exact {name} --nocapture < /dev/null\necho \"the test ended with $?\"\necho o > /proc/sysrq-trigger\nsleep 60\n"
    );
    std::fs::write(&init, script).unwrap();
    std::fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let kernel = Command::new("timeout")
        .args(["--kill-after=5", UML_SECONDS_MAX, "linux.uml", "mem=512M", "rootfstype=hostfs", "rootflags=/", "ro"])
        .arg(format!("init={}", init.display()))
        .args(["con=null", "con0=null,fd:1", "quiet"])
        .env("HOME", dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&kernel.stdout).into_owned() + &String::from_utf8_lossy(&kernel.stderr);
    let missing = kernel.status.code() == Some(127);
    assert!(
        !missing,
        "this machine has no usable memory cgroup of version {version:?} ({why}), and no linux.uml to try it in: install user-mode-linux"
    );
    assert!(said.contains("the test ended with 0") && said.contains("1 passed"), "{version:?} (here: {why}) in a kernel of its own:\n{said}");
}
