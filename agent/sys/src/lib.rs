//! The only unsafe code of Intergrid: starting a process, `wait4`, and giving freed memory back, as safe functions.
//!
//! A process is started as `posix_spawn` does it, but for two things that cost more than the rest of it: a stack mapped anew for each child, and a system
//! call for each of 64 signals in it.
//!
//! Invariants: a child is the leader of its own process group, has default signal dispositions and an empty signal mask, its standard streams and no
//! other descriptor of ours (everything that Rust opens is close-on-exec). No search path, no limits, no policy: that is the caller's.

#![deny(unsafe_op_in_unsafe_fn)]

pub mod memory;

use std::ffi::{CStr, CString};
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use libc::{c_char, c_int, c_void, pid_t};

/// NUL-terminated strings in one buffer, to be reused from spawn to spawn.
#[derive(Default, Clone, Debug)]
pub struct CStrings {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl CStrings {
    /// Forget all, keep the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.starts.clear();
    }

    /// Append one string, given in parts. Error: a part has a NUL byte; then nothing is appended.
    pub fn push(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        if parts.iter().any(|p| p.contains(&0)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an argument or variable has a NUL byte"));
        }
        self.starts.push(self.bytes.len());
        parts.iter().for_each(|p| self.bytes.extend_from_slice(p));
        self.bytes.push(0);
        Ok(())
    }

    /// The strings.
    pub fn iter(&self) -> impl Iterator<Item = &CStr> {
        self.starts.iter().filter_map(|s| CStr::from_bytes_until_nul(&self.bytes[*s..]).ok())
    }

    /// The null-terminated list that exec wants; valid while self is not changed.
    fn pointers(&self) -> Vec<*mut c_char> {
        let own = self.starts.iter().map(|s| self.bytes[*s..].as_ptr().cast::<c_char>().cast_mut());
        own.chain([std::ptr::null_mut()]).collect()
    }
}

/// What to start.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    /// The file to execute; not searched for.
    pub program: &'a CStr,
    /// argv, the program's name first.
    pub argv: &'a CStrings,
    /// The whole environment, `NAME=value`.
    pub env: &'a CStrings,
    /// The directory that it starts in. None of these may be one of the first three.
    pub cwd: BorrowedFd<'a>,
    /// What it reads.
    pub stdin: BorrowedFd<'a>,
    /// What it writes.
    pub stdout: BorrowedFd<'a>,
    /// As `stdout`.
    pub stderr: BorrowedFd<'a>,
}

/// How a child ended, and what it used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// exit(2)'s code, or the signal that killed it.
    pub exit: Result<u8, u8>,
    /// User + system time of it and its reaped children, microseconds.
    pub cpu_us: u64,
}

/// What the child is told, in memory that it shares with its parent until it is another program.
struct Orders<'a> {
    program: *const c_char,
    argv: *const *mut c_char,
    env: *const *mut c_char,
    cwd: c_int,
    /// Its first three.
    streams: [c_int; 3],
    reset: &'a [c_int],
    descriptors: Option<&'static libc::rlimit>,
    /// The first step that failed; 0: none.
    errno: c_int,
}

/// The child's part, up to exec. It shares all memory with a parent whose thread waits, so it only makes system calls.
extern "C" fn child(orders: *mut c_void) -> c_int {
    // SAFETY: the parent passes a pointer to its orders, which live as long as it waits for us.
    let orders = unsafe { &mut *orders.cast::<Orders<'_>>() };
    // SAFETY: all pointers in the orders are valid, for the same reason.
    orders.errno = unsafe { follow(orders) }.raw_os_error().unwrap_or(libc::EINVAL);
    // SAFETY: ends the child and runs nothing of its parent's.
    unsafe { libc::_exit(127) }
}

/// # Safety
/// To be called in a child of its own descriptors, with valid orders.
unsafe fn follow(orders: &Orders<'_>) -> io::Error {
    let failed = io::Error::last_os_error;
    // SAFETY: system calls on strings and lists that the caller vouches for, and on objects of this function; zeroed is a valid sigaction: the default.
    unsafe {
        if libc::setpgid(0, 0) != 0 {
            return failed();
        }
        // All is blocked until here, so that no handler of the parent's has run in its memory; from here on there is none.
        let default = MaybeUninit::<libc::sigaction>::zeroed();
        for signal in orders.reset {
            libc::sigaction(*signal, default.as_ptr(), std::ptr::null_mut());
        }
        if libc::fchdir(orders.cwd) != 0 {
            return failed();
        }
        for (to, from) in (0..).zip(orders.streams) {
            if libc::dup2(from, to) < 0 {
                return failed();
            }
        }
        if let Some(limit) = orders.descriptors {
            // An administrator may have lowered it meanwhile: then it stays so.
            libc::setrlimit(libc::RLIMIT_NOFILE, limit);
        }
        let mut none = MaybeUninit::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        if libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) != 0 {
            return failed();
        }
        libc::execve(orders.program, orders.argv.cast(), orders.env.cast());
        failed()
    }
}

/// Starts processes from the thread that it was made in.
#[derive(Debug)]
pub struct Spawner {
    /// The child's, until exec. Kept, because to map and unmap one for each start costs as much as all else that the parent does.
    stack: Box<[MaybeUninit<u128>]>,
    /// Signals to be set to their default.
    reset: Vec<c_int>,
    /// Bound to its thread, in which signals are blocked.
    _here: PhantomData<*const ()>,
}

impl Spawner {
    /// Blocks all signals in this thread, for good: a handler of ours must not run in a child that still shares our memory. But for SIGCHLD where nothing
    /// handles it: of a thread that blocks it the kernel keeps it, and wakes another thread for each child that ends.
    pub fn new() -> io::Result<Self> {
        let mut all = MaybeUninit::uninit();
        // SAFETY: sigfillset writes the whole set, sigdelset changes it, pthread_sigmask reads it.
        check(unsafe {
            libc::sigfillset(all.as_mut_ptr());
            if is_default(libc::SIGCHLD) {
                libc::sigdelset(all.as_mut_ptr(), libc::SIGCHLD);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut())
        })?;
        // What is not default now, and what programs like ours may set later. (exec resets handlers, but what is ignored stays so.)
        let usual = [libc::SIGPIPE, libc::SIGCHLD, libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];
        let reset = (1..=libc::SIGRTMAX()).filter(|s| usual.contains(s) || !is_default(*s)).collect();
        Ok(Spawner { stack: Box::new_uninit_slice(SPAWN_STACK_BYTES / size_of::<u128>()), reset, _here: PhantomData })
    }

    /// Start it. Returns its pid, which is its process group too. An error is that of the first step that failed, exec among them: `NotFound` where the
    /// program (or its interpreter) does not exist.
    pub fn spawn(&mut self, command: &Command<'_>) -> io::Result<i32> {
        let streams = [command.stdin, command.stdout, command.stderr].map(|fd| fd.as_raw_fd());
        if streams.into_iter().any(|fd| fd < 3) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a stream for a child is one of our own"));
        }
        let (argv, env) = (command.argv.pointers(), command.env.pointers());
        let mut orders = Orders {
            program: command.program.as_ptr(),
            argv: argv.as_ptr(),
            env: env.as_ptr(),
            cwd: command.cwd.as_raw_fd(),
            streams,
            reset: &self.reset,
            descriptors: DESCRIPTORS.get(),
            errno: 0,
        };
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: the top of a stack that is ours alone and 16-byte aligned, growing down; the child runs `child` on it with orders whose pointers outlive
        // the call: CLONE_VFORK has this thread wait until the child has executed a program or is gone. argv and env are null-terminated lists of C
        // strings, and exec does not write to them, whatever its signature says. No signal handler can run in the child: see `new`.
        let pid = unsafe {
            let top = self.stack.as_mut_ptr().add(self.stack.len());
            libc::clone(child, top.cast(), flags, (&raw mut orders).cast())
        };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the child wrote it before it was gone, behind the compiler's back.
        match unsafe { (&raw const orders.errno).read_volatile() } {
            0 => Ok(pid),
            errno => {
                let _ = wait4(pid, 0);
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }
}

/// Of a child up to exec: a few frames of system calls, no signal handler.
const SPAWN_STACK_BYTES: usize = 32 << 10;

fn is_default(signal: c_int) -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: writes to an object of ours, of which zeroed is a valid value. The numbers that belong to the C library are refused.
    unsafe { libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) != 0 || now.assume_init().sa_sigaction == libc::SIG_DFL }
}

/// Wait until this child has ended; it stays to be reaped, and its pid stays its own. Error: it is not (or no longer) a child of ours.
pub fn await_end(pid: i32) -> io::Result<()> {
    loop {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: the pointer is to an object of ours.
        if unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, info.as_mut_ptr(), libc::WEXITED | libc::WNOWAIT) } == 0 {
            return Ok(());
        }
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
}

/// Have ended children wait to be reaped, also where this process was started with SIGCHLD ignored. A handler stays.
pub fn keep_ended() -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: writes to and reads from an object of ours; zeroed is a valid sigaction, the default.
    let done = unsafe {
        match libc::sigaction(libc::SIGCHLD, std::ptr::null(), action.as_mut_ptr()) {
            0 if action.assume_init_ref().sa_sigaction == libc::SIG_IGN => {
                action = MaybeUninit::zeroed();
                libc::sigaction(libc::SIGCHLD, action.as_ptr(), std::ptr::null_mut())
            }
            done => done,
        }
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How this child ended, where it has; reaps it. None: it still runs. Error: it is not (or no longer) a child of ours.
pub fn wait(pid: i32) -> io::Result<Option<Ended>> {
    wait4(pid, libc::WNOHANG)
}

/// Reap one ended child of ours in this process group, for groups whose leader is gone. Some: one was reaped, and its use.
pub fn wait_group(pgid: i32) -> io::Result<Option<Ended>> {
    wait4(-pgid, libc::WNOHANG)
}

/// A child of this process that has ended and is not reaped; it stays so. None: there is none.
pub fn peek_ended() -> io::Result<Option<i32>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the pointer is to an object of ours; zeroed is a valid siginfo_t, and has pid 0 where no child has ended.
    let (done, pid) = unsafe {
        let done = libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), flags);
        (done, info.assume_init().si_pid())
    };
    if done == 0 { Ok((pid != 0).then_some(pid)) } else { Err(io::Error::last_os_error()) }
}

fn wait4(which: pid_t, flags: c_int) -> io::Result<Option<Ended>> {
    let mut status: c_int = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to objects of ours; zeroed is a valid rusage, so that it may be read even where wait4 does not write it.
    let (got, usage) = unsafe {
        let got = libc::wait4(which, &mut status, flags, usage.as_mut_ptr());
        (got, usage.assume_init())
    };
    match got {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        _ => {
            let exit = if libc::WIFEXITED(status) { Ok(libc::WEXITSTATUS(status) as u8) } else { Err(libc::WTERMSIG(status) as u8) };
            let us = |t: libc::timeval| t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64;
            Ok(Some(Ended { exit, cpu_us: us(usage.ru_utime) + us(usage.ru_stime) }))
        }
    }
}

/// Mark every descriptor beyond the standard streams close-on-exec, so that what this process itself inherited goes no further. Needs Linux 5.11; on an
/// older one nothing is changed and the error says so.
pub fn seal_inherited() -> io::Result<()> {
    // SAFETY: a plain system call on numbers; it closes nothing, it only sets a flag.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What tasks may have open, where this process may have more.
static DESCRIPTORS: OnceLock<libc::rlimit> = OnceLock::new();

/// Have as many descriptors as the system lets this process; what it starts from now on has as few as before. Some programs look at each that may be open.
pub fn raise_descriptors() -> io::Result<()> {
    let mut limit = MaybeUninit::<libc::rlimit>::zeroed();
    // SAFETY: writes to an object of ours, of which zeroed is a valid value.
    let (done, before) = unsafe {
        let done = libc::getrlimit(libc::RLIMIT_NOFILE, limit.as_mut_ptr());
        (done, limit.assume_init())
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // The first time is before any other.
    let _ = DESCRIPTORS.set(before);
    let more = libc::rlimit { rlim_cur: before.rlim_max, ..before };
    // SAFETY: reads an object of ours.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &more) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The file that a name without '/' stands for in a search path; the name itself where it has one. Errors as exec's: `NotFound`, or `PermissionDenied`
/// where there is only a file that can't be executed.
pub fn search(name: &str, path: &str) -> io::Result<CString> {
    if name.contains('/') {
        return Ok(CString::new(name)?);
    }
    let mut seen = io::ErrorKind::NotFound;
    for dir in path.split(':').filter(|d| d.starts_with('/')) {
        let file = CString::new(format!("{dir}/{name}"))?;
        // SAFETY: a C string of ours.
        if unsafe { libc::access(file.as_ptr(), libc::X_OK) } == 0 && !std::path::Path::new(&format!("{dir}/{name}")).is_dir() {
            return Ok(file);
        }
        if io::Error::last_os_error().kind() == io::ErrorKind::PermissionDenied {
            seen = io::ErrorKind::PermissionDenied;
        }
    }
    Err(seen.into())
}

fn check(errno: c_int) -> io::Result<()> {
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    fn run(argv: &[&str], env: &[&str], dir: &std::path::Path) -> io::Result<Ended> {
        let list = |items: &[&str]| {
            let mut s = CStrings::default();
            items.iter().for_each(|i| s.push(&[i.as_bytes()]).unwrap());
            s
        };
        let program = search(argv[0], "/usr/bin:/bin")?;
        let (argv, env) = (list(argv), list(env));
        let write = |name: &str| std::fs::File::create(dir.join(name));
        let (cwd, stdin, stdout, stderr) = (std::fs::File::open(dir)?, std::fs::File::open("/dev/null")?, write("stdout")?, write("stderr")?);
        let (cwd, stdin, stdout, stderr) = (cwd.as_fd(), stdin.as_fd(), stdout.as_fd(), stderr.as_fd());
        let pid = Spawner::new()?.spawn(&Command { program: &program, argv: &argv, env: &env, cwd, stdin, stdout, stderr })?;
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            await_end(pid)?;
            if let Some(ended) = wait(pid)? {
                return Ok(ended);
            }
            assert!(Instant::now() < until, "it does not end");
        }
    }

    fn dir(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("agent-sys-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn codes_signals_streams_and_a_clean_child() {
        let d = dir("spawn");
        seal_inherited().unwrap();
        let own = || {
            let text = std::fs::read_to_string("/proc/self/limits").unwrap();
            let line = text.lines().find(|l| l.starts_with("Max open files")).unwrap().to_string();
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[3].to_string(), words[4].to_string())
        };
        let (before, most) = own();
        raise_descriptors().unwrap();
        assert_eq!((&most, &most), (&own().0, &own().1));
        assert_eq!(Ok(0), run(&["sh", "-c", &format!("test $(ulimit -n) = {before}")], &[], &d).unwrap().exit);
        assert_eq!(Ok(7), run(&["sh", "-c", "exit 7"], &[], &d).unwrap().exit);
        assert_eq!(Err(9), run(&["sh", "-c", "kill -9 $$"], &[], &d).unwrap().exit);
        let script = "pwd; echo err >&2; ls /proc/self/fd | wc -l; env | grep -c ^A=; trap; cat; awk '/^Sig(Blk|Ign)/ {print $2}' /proc/self/status";
        assert_eq!(Ok(0), run(&["sh", "-c", script], &["A=1", "PATH=/usr/bin:/bin"], &d).unwrap().exit);
        let out = std::fs::read_to_string(d.join("stdout")).unwrap();
        let mut lines = out.lines();
        // Three streams and the directory that ls reads; one A; no blocked and no ignored signal but 32 and 33, which belong to the C library.
        assert_eq!(Some(d.canonicalize().unwrap().to_str().unwrap()), lines.next());
        assert_eq!((Some("4"), Some("1"), Some("0000000000000000")), (lines.next(), lines.next(), lines.next()));
        assert_eq!(0, u64::from_str_radix(lines.next().unwrap(), 16).unwrap() & !(3 << 31));
        assert_eq!("err\n", std::fs::read_to_string(d.join("stderr")).unwrap());
        std::fs::remove_dir_all(d).unwrap();
    }

    #[test]
    fn what_starts_processes_is_woken_by_no_signal() {
        let blocked = || {
            let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = text.lines().find_map(|l| l.strip_prefix("SigBlk:")).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        let bit = |signal: c_int| 1 << (signal - 1);
        let _here = Spawner::new().unwrap();
        let usual = bit(libc::SIGTERM) | bit(libc::SIGINT) | bit(libc::SIGHUP) | bit(libc::SIGUSR1);
        assert_eq!((usual, 0), (blocked() & usual, blocked() & bit(libc::SIGCHLD)));
    }

    #[test]
    fn leads_its_own_group() {
        let d = dir("group");
        run(&["sh", "-c", "test $(cut -d' ' -f5 /proc/$$/stat) = $$"], &["PATH=/usr/bin:/bin"], &d).map(|e| assert_eq!(Ok(0), e.exit)).unwrap();
        std::fs::remove_dir_all(d).unwrap();
    }

    #[test]
    fn errors_are_those_of_exec() {
        let d = dir("errors");
        let kind = |program: &str| run(&[program], &[], &d).unwrap_err();
        assert_eq!(io::ErrorKind::NotFound, kind("no-such-program-here").kind());
        assert_eq!(io::ErrorKind::NotFound, kind("./absent").kind());
        std::fs::write(d.join("plain"), "x").unwrap();
        assert_eq!(io::ErrorKind::PermissionDenied, kind("./plain").kind());
        std::fs::set_permissions(d.join("plain"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(Some(libc::ENOEXEC), kind("./plain").raw_os_error());
        assert!(CStrings::default().push(&[b"a\0b"]).is_err());
        assert!(wait(1).is_err(), "not our child");
        std::fs::remove_dir_all(d).unwrap();
    }
}
