//! What the C library keeps of memory that was freed, and what the system keeps of programs for us. glibc gives back what is free at the end of a heap by
//! itself; what lies between things that are still in use, only when it is told to. With another C library that does nothing.

use std::ops::Range;

/// Bytes that are free and kept, among them those whose pages were given back already; modulo 4 GiB, as old systems have no `mallinfo2` to link with
/// (glibc 2.33).
pub fn free_bytes() -> usize {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the library's own locks, and returns numbers.
    return unsafe { libc::mallinfo() }.fordblks as u32 as usize;
    #[cfg(not(target_env = "gnu"))]
    0
}

/// Give whole pages of it back to the system.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the library's own locks, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Take no more part in the pages of program files that this process has looked at: what is needed still comes back from the system's cache, and what only
/// a start needed, most of a program, does not. Files that are not there any more, those on other machines, and those of which a page is our own, stay as
/// they are. Not to be called by a process that unloads libraries.
pub fn forget_programs() {
    for (range, path) in std::fs::read_to_string("/proc/self/smaps").map(|text| programs(&text)).unwrap_or_default() {
        if !is_here(&path) {
            continue;
        }
        // SAFETY: a whole mapping of this process, which unmaps none, of a file, which nobody can write to by it and nobody has changed in it: the same
        // bytes are there at the next look.
        unsafe {
            libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED);
        }
    }
}

/// Is a file on a disk of this machine? Elsewhere it may be replaced, and then its pages can't be read again.
fn is_here(path: &str) -> bool {
    /// As statfs(2) has them: ext2 to ext4, XFS, Btrfs, tmpfs, overlayfs.
    const LOCAL: [u32; 5] = [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x794C_7630];
    let Ok(path) = std::ffi::CString::new(path) else { return false };
    let mut found = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: a C string and an object of ours; zeroed is a valid statfs.
    let (done, kind) = unsafe {
        let done = libc::statfs(path.as_ptr(), found.as_mut_ptr());
        (done, found.assume_init().f_type)
    };
    done == 0 && LOCAL.contains(&(kind as u32))
}

/// The mappings of files that can be executed, and of which no page is our own, as the system says it of a process.
fn programs(smaps: &str) -> Vec<(Range<usize>, String)> {
    let mut found = Vec::new();
    for line in smaps.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            // Its head: range, rights, offset, device, inode, path.
            [range, rights, _, _, inode, ref path @ ..] if range.contains('-') => {
                let ends = range.split_once('-').map(|(from, to)| (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16)));
                let is_program = rights == "r-xp" && inode != "0" && path.len() == 1;
                found.push(match ends {
                    Some((Ok(from), Ok(to))) if is_program => (from..to, path.concat()),
                    _ => (0..0, String::new()),
                });
            }
            // In memory, or swapped out.
            ["Anonymous:" | "Swap:", kib, "kB"] if kib != "0" => {
                found.pop();
                found.push((0..0, String::new()));
            }
            _ => {}
        }
    }
    found.retain(|(range, _)| !range.is_empty());
    found
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0000000-55d0c0002000 r--p 00000000 fe:00 77 /usr/bin/grid
Anonymous:             0 kB
55d0c0002000-55d0c0009000 r-xp 00002000 fe:00 77 /usr/bin/grid
Rss:                  28 kB
Private_Dirty:         8 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
55d0c0010000-55d0c0019000 r-xp 00002000 fe:00 78 /usr/lib/patched.so
Private_Dirty:         4 kB
Anonymous:             4 kB
55d0c001a000-55d0c001b000 r-xp 00002000 fe:00 78 /usr/lib/swapped.so
Anonymous:             0 kB
Swap:                  4 kB
55d0c0020000-55d0c0029000 r-xp 00002000 fe:00 79 /usr/bin/grid (deleted)
55d0c0030000-55d0c0039000 rwxp 00002000 fe:00 80 /usr/lib/odd.so
7ffc58ffc000-7ffc58ffe000 r-xp 00000000 00:00 0 [vdso]
";

    #[test]
    fn of_a_program_only_what_nobody_has_changed_is_forgotten() {
        assert_eq!(vec![(0x55d0_c000_2000..0x55d0_c000_9000, "/usr/bin/grid".to_string())], programs(SMAPS));
        let own = programs(&std::fs::read_to_string("/proc/self/smaps").unwrap());
        let here = of_a_program_only_what_nobody_has_changed_is_forgotten as fn() as usize;
        let program = std::env::current_exe().unwrap();
        assert!(own.iter().any(|(range, path)| range.contains(&here) && program == std::path::Path::new(path)), "{own:?}");
        forget_programs();
        assert_eq!(own, programs(&std::fs::read_to_string("/proc/self/smaps").unwrap()));
        assert!(!is_here("/proc/self/exe-that-is-not-there") && !is_here("/proc/self/status"));
    }

    fn resident_bytes() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    #[test]
    fn what_is_free_between_what_is_used_goes_back() {
        const BYTES: usize = 1 << 10;
        let mut all: Vec<Option<Box<[u8]>>> = (0..65_536).map(|i| Some(vec![i as u8; BYTES].into())).collect();
        let free = free_bytes();
        all.iter_mut().enumerate().filter(|(i, _)| i % 64 != 0).for_each(|(_, one)| *one = None);
        assert!(free_bytes() > free + (48 << 20), "{} and {free} bytes", free_bytes());
        let before = resident_bytes();
        give_back();
        assert!(resident_bytes() + (32 << 20) < before, "{} and {before} bytes", resident_bytes());
        assert!(all.iter().flatten().all(|one| one.len() == BYTES));
    }
}
