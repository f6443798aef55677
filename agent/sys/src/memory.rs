//! What the C library keeps of memory that was freed. glibc gives back what is free at the end of a heap by itself; what lies between things that are still
//! in use, only when it is told to. With another C library these do nothing.

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

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

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
