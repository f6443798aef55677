//! The only unsafe code of Intergrid: `posix_spawn` and `wait4` as safe functions.
//!
//! Invariants: a child is the leader of its own process group, has default signal dispositions and an empty signal mask, its standard streams and no
//! other descriptor of ours (everything that Rust opens is close-on-exec). No search path, no limits, no policy: that is the caller's.

#![deny(unsafe_op_in_unsafe_fn)]

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;

use libc::{c_char, c_int, pid_t};

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
    /// Where it starts.
    pub cwd: &'a CStr,
    /// Created or emptied, and appended to. Relative to `cwd`.
    pub stdout: &'a CStr,
    /// As `stdout`.
    pub stderr: &'a CStr,
}

/// How a child ended, and what it used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// exit(2)'s code, or the signal that killed it.
    pub exit: Result<u8, u8>,
    /// User + system time of it and its reaped children, microseconds.
    pub cpu_us: u64,
}

/// An initialised `posix_spawn_file_actions_t`.
struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: init writes to the pointed-to object, which is ours.
        check(unsafe { libc::posix_spawn_file_actions_init(raw.as_mut_ptr()) })?;
        // SAFETY: init succeeded.
        Ok(Actions(unsafe { raw.assume_init() }))
    }

    fn open(&mut self, fd: c_int, path: &CStr, flags: c_int) -> io::Result<()> {
        // SAFETY: the object is initialised; the path is a C string, which glibc and musl copy.
        check(unsafe { libc::posix_spawn_file_actions_addopen(&mut self.0, fd, path.as_ptr(), flags, 0o644) })
    }

    fn chdir(&mut self, path: &CStr) -> io::Result<()> {
        // SAFETY: as in `open`.
        check(unsafe { libc::posix_spawn_file_actions_addchdir_np(&mut self.0, path.as_ptr()) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once. It can't fail for an initialised object.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut self.0) };
    }
}

/// An initialised `posix_spawnattr_t`: own process group, all signals default and unblocked.
struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: init writes to the pointed-to object, which is ours.
        check(unsafe { libc::posix_spawnattr_init(raw.as_mut_ptr()) })?;
        // SAFETY: init succeeded.
        let mut own = Attributes(unsafe { raw.assume_init() });
        let (mut none, mut all) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: both calls write a whole sigset_t, and can't fail for a valid pointer.
        let (none, all) = unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigfillset(all.as_mut_ptr());
            (none.assume_init(), all.assume_init())
        };
        let flags = libc::POSIX_SPAWN_SETPGROUP | libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        // SAFETY: the attributes and both sets are initialised.
        unsafe {
            check(libc::posix_spawnattr_setflags(&mut own.0, flags as libc::c_short))?;
            check(libc::posix_spawnattr_setpgroup(&mut own.0, 0))?;
            check(libc::posix_spawnattr_setsigmask(&mut own.0, &none))?;
            check(libc::posix_spawnattr_setsigdefault(&mut own.0, &all))?;
        }
        Ok(own)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(&mut self.0) };
    }
}

/// Start it, with /dev/null as its stdin. Returns its pid, which is its process group too. An error is that of the first step that failed, exec among
/// them: `NotFound` where the program (or its interpreter) does not exist.
pub fn spawn(command: &Command<'_>) -> io::Result<i32> {
    let mut actions = Actions::new()?;
    actions.chdir(command.cwd)?;
    actions.open(0, c"/dev/null", libc::O_RDONLY)?;
    let out = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND;
    actions.open(1, command.stdout, out)?;
    actions.open(2, command.stderr, out)?;
    let attributes = Attributes::new()?;
    let (argv, env) = (command.argv.pointers(), command.env.pointers());
    let mut pid: pid_t = 0;
    // SAFETY: all objects are initialised; argv and env are null-terminated lists of C strings that outlive the call (borrowed through `command`), and
    // exec does not write to them, whatever its signature says.
    check(unsafe { libc::posix_spawn(&mut pid, command.program.as_ptr(), &actions.0, &attributes.0, argv.as_ptr(), env.as_ptr()) })?;
    Ok(pid)
}

/// How this child ended, where it has; reaps it. None: it still runs. Error: it is not (or no longer) a child of ours.
pub fn wait(pid: i32) -> io::Result<Option<Ended>> {
    wait4(pid).map(|ended| ended.map(|(_, e)| e))
}

/// Reap one ended child of ours in this process group, for groups whose leader is gone. Some: one was reaped, and its use.
pub fn wait_group(pgid: i32) -> io::Result<Option<Ended>> {
    wait4(-pgid).map(|ended| ended.map(|(_, e)| e))
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

fn wait4(which: pid_t) -> io::Result<Option<(pid_t, Ended)>> {
    let mut status: c_int = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to objects of ours; zeroed is a valid rusage, so that it may be read even where wait4 does not write it.
    let (got, usage) = unsafe {
        let got = libc::wait4(which, &mut status, libc::WNOHANG, usage.as_mut_ptr());
        (got, usage.assume_init())
    };
    match got {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => {
            let exit = if libc::WIFEXITED(status) { Ok(libc::WEXITSTATUS(status) as u8) } else { Err(libc::WTERMSIG(status) as u8) };
            let us = |t: libc::timeval| t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64;
            Ok(Some((pid, Ended { exit, cpu_us: us(usage.ru_utime) + us(usage.ru_stime) })))
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
    use std::time::{Duration, Instant};

    fn run(argv: &[&str], env: &[&str], dir: &std::path::Path) -> io::Result<Ended> {
        let list = |items: &[&str]| {
            let mut s = CStrings::default();
            items.iter().for_each(|i| s.push(&[i.as_bytes()]).unwrap());
            s
        };
        let program = search(argv[0], "/usr/bin:/bin")?;
        let cwd = CString::new(dir.to_str().unwrap()).unwrap();
        let (argv, env) = (list(argv), list(env));
        let pid = spawn(&Command { program: &program, argv: &argv, env: &env, cwd: &cwd, stdout: c"stdout", stderr: c"stderr" })?;
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(ended) = wait(pid)? {
                return Ok(ended);
            }
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
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
