//! /proc, as far as the agent needs it: who is in a process group, how much memory it uses, which process belongs to a task directory.

use std::fs::{self, File};
use std::io::Read;

/// One line of /proc/PID/stat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The process.
    pub pid: i32,
    /// Its group.
    pub group: i32,
    /// Its session.
    pub session: i32,
    /// Dead, and only not yet reaped.
    pub zombie: bool,
    /// Start, in clock ticks since boot.
    pub ticks: u64,
    /// Resident memory.
    pub resident_bytes: u64,
}

/// One process; None: it is gone.
pub fn stat(pid: i32) -> Option<Stat> {
    let mut line = [0; 1024];
    read(pid, &mut line)
}

/// The process of this pid that began at these ticks, not a later one; it may be a zombie. None: it is gone.
pub fn began(pid: i32, ticks: u64) -> Option<Stat> {
    stat(pid).filter(|s| s.ticks == ticks)
}

fn read(pid: i32, buffer: &mut [u8]) -> Option<Stat> {
    let n = File::open(format!("/proc/{pid}/stat")).ok()?.read(buffer).ok()?;
    parse(buffer.get(..n)?)
}

/// The name is in parentheses and may hold anything, so what counts begins behind the last one.
fn parse(line: &[u8]) -> Option<Stat> {
    let pid = std::str::from_utf8(line).ok().or_else(|| std::str::from_utf8(&line[..16.min(line.len())]).ok());
    let pid = pid?.split(' ').next()?.parse().ok()?;
    let close = line.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(line.get(close + 2..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().take(22).collect();
    let number = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok());
    Some(Stat {
        pid,
        group: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        zombie: matches!(*fields.first()?, "Z" | "X"),
        ticks: number(19)?,
        resident_bytes: number(21)? * PAGE_BYTES,
    })
}

/// The kernel counts resident memory in pages of this size on every machine that we build for.
const PAGE_BYTES: u64 = 4096;

/// All processes that we may see.
pub fn all() -> impl Iterator<Item = Stat> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let mut buffer = [0; 1024];
    pids.filter_map(move |pid| read(pid, &mut buffer))
}

/// Does anything live in this group? Zombies don't: they can do nothing any more, and a lazy parent may keep them for ever.
pub fn group_lives(group: i32) -> bool {
    all().any(|s| s.group == group && !s.zombie)
}

/// Live processes that were started with this variable in their environment: its value, when they started, their group. Those of a session of their own
/// have left what they were started in, and are not among them.
pub fn with_variable(variable: &str) -> Vec<(Vec<u8>, u64, i32)> {
    let prefix = format!("{variable}=");
    let value = |s: Stat| {
        let environ = fs::read(format!("/proc/{}/environ", s.pid)).ok()?;
        let value = environ.split(|b| *b == 0).find_map(|v| v.strip_prefix(prefix.as_bytes()))?;
        Some((value.to_vec(), s.ticks, s.group))
    };
    all().filter(|s| !s.zombie && s.session != s.group).filter_map(value).collect()
}

/// Of those with this value the group of the oldest, which started the others.
pub fn oldest_group(found: &[(Vec<u8>, u64, i32)], value: &[u8]) -> Option<i32> {
    found.iter().filter(|(v, ..)| v == value).map(|(_, ticks, group)| (*ticks, *group)).min().map(|(_, group)| group)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    #[test]
    fn a_name_can_hold_anything() {
        let line = "42 (a) R 1 (b) S 1 7 7 0 -1 4194560 100 0 0 0 0 0 0 0 20 0 1 0 237428 3133440 394 184467 1 1 0";
        assert_eq!(Some(Stat { pid: 42, group: 7, session: 7, zombie: false, ticks: 237_428, resident_bytes: 394 * 4096 }), parse(line.as_bytes()));
        assert_eq!(None, parse(b""));
        assert_eq!(None, parse(b"1 (x"));
    }

    #[test]
    fn this_process_is_seen() {
        let me = stat(std::process::id() as i32).unwrap();
        assert!(!me.zombie && me.ticks > 0 && me.resident_bytes > 100_000 && group_lives(me.group));
        assert!(all().any(|s| s.pid == me.pid));
        // Of a group of its own, and of our session.
        let mut child = std::process::Command::new("/bin/sleep").arg("1000").env("OF_THIS_TEST", "here").process_group(0).spawn().unwrap();
        // Its environment can be read a moment after it has begun.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let found = || oldest_group(&with_variable("OF_THIS_TEST"), b"here");
        while found().is_none() && std::time::Instant::now() < until {}
        assert_eq!(Some(child.id() as i32), found());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
