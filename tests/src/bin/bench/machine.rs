//! The machine: what it is, how fast it spawns without us, and what a process of it uses.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use crate::record::Result;

/// Ticks of a second in /proc/PID/stat: the same on every Linux.
const TICKS: f64 = 100.0;
/// A directory in memory, where there is one.
pub const IN_MEMORY: &str = "/dev/shm";

/// CPU seconds of a process so far, without its children.
pub fn cpu(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = text.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    fields.skip(11).take(2).filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// Resident memory of a process, MiB.
pub fn resident(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// Load average of the last minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|w| w.parse().ok()).unwrap_or(0.0)
}

/// Cores that we may use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, |n| n.get())
}

/// mkdir, posix_spawn of /bin/true there in a process group of its own, wait, rmdir; by so many threads. Tasks a second.
pub fn plain_loop(dir: &Path, tasks: usize, threads: usize) -> Result<f64> {
    let base = tempfile::tempdir_in(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let one = |cwd: &Path| -> std::io::Result<()> {
        fs::create_dir(cwd)?;
        // Without a change of its streams and environment, the standard library takes posix_spawn.
        let status = Command::new("/bin/true").current_dir(cwd).process_group(0).status()?;
        fs::remove_dir(cwd)?;
        if status.success() { Ok(()) } else { Err(std::io::Error::other("/bin/true failed")) }
    };
    let began = Instant::now();
    let ended: std::io::Result<()> = thread::scope(|s| {
        let each = tasks / threads;
        let all: Vec<_> = (0..threads)
            .map(|t| {
                let (base, one) = (base.path(), &one);
                s.spawn(move || (0..each).try_for_each(|i| one(&base.join(format!("{t}-{i}")))))
            })
            .collect();
        all.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| Err(std::io::Error::other("a thread of the loop ended early"))))
    });
    ended.map_err(|e| format!("the plain loop: {e}"))?;
    Ok((tasks / threads * threads) as f64 / began.elapsed().as_secs_f64())
}

/// The plain loop in all its forms: what, tasks a second.
pub fn loops(work: &Path, tasks: usize) -> Result<Vec<(String, f64)>> {
    let mut out = Vec::new();
    let memory = Some(PathBuf::from(IN_MEMORY)).filter(|p| p.is_dir());
    for (place, dir) in [("on disk", Some(work.to_owned())), ("in memory", memory)] {
        let Some(dir) = dir else { continue };
        let mut threads = vec![1, cores()];
        threads.dedup();
        for t in threads {
            out.push((format!("directories {place}, {t} thread{}", if t == 1 { "" } else { "s" }), plain_loop(&dir, tasks, t)?));
        }
    }
    Ok(out)
}

/// The kind of the file system that a directory is on.
fn file_system(dir: &Path) -> String {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>());
    let holding = fields.filter(|f| f.len() > 2 && dir.starts_with(f[1]));
    holding.max_by_key(|f| f[1].len()).map_or_else(|| "unknown".into(), |f| f[2].to_string())
}

/// What is stated beside the numbers: the machine, and the programs that are not ours.
pub fn describe(work: &Path, hq: Option<&Path>) -> String {
    let first = |text: String| text.lines().next().unwrap_or_default().trim().to_string();
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let said = |program: &Path| {
        let out = Command::new(program).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
        out.map_or(String::new(), |o| first(String::from_utf8_lossy(&o.stdout).into_owned()))
    };
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|l| l.strip_prefix("model name")).map_or("unknown", |l| l.trim_start_matches([' ', '\t', ':']));
    let memory = read("/proc/meminfo").lines().next().and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) >> 20;
    let kernel = read("/proc/sys/kernel/osrelease");
    let mut all = vec![
        format!("{model} with {} cores and {memory} GiB", cores()),
        format!("Linux {}", kernel.trim()),
        file_system(work),
        said(Path::new("rustc")),
    ];
    all.extend(hq.map(said));
    all.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_measured() {
        assert!(resident(std::process::id()) > 1.0 && load() >= 0.0);
        assert!(plain_loop(&std::env::temp_dir(), 10, 2).unwrap() > 1.0);
        assert_eq!(0.0, cpu(u32::MAX));
    }
}
