//! Starts of payloads, as these count them themselves: a line for each, in a file for each task, outside of everything that is ours.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A directory of such files.
pub struct Starts(PathBuf);

impl Starts {
    /// In a directory that is made, and that every account can write to.
    pub fn new(path: &Path) -> Self {
        Starts(dir_of_all(path))
    }

    /// A shell's words that count this start, with others after them. Each line is where it ran.
    pub fn counted(&self, then: &str) -> String {
        format!("echo $GRID_SITE >> {}/$GRID_TASK_ID; {then}", self.0.display())
    }

    /// Where each task was started.
    pub fn of_each(&self) -> BTreeMap<u32, Vec<String>> {
        let read = |e: fs::DirEntry| {
            let text = fs::read_to_string(e.path()).expect("a file of starts");
            (e.file_name().to_str().and_then(|n| n.parse().ok()).expect("a task"), text.lines().map(String::from).collect())
        };
        fs::read_dir(&self.0).expect("the directory of starts").flatten().map(read).collect()
    }

    /// Every one of so many tasks was started exactly once.
    #[track_caller]
    pub fn assert_each_once(&self, tasks: u32) {
        let starts = self.of_each();
        let odd: Vec<_> = (0..tasks).map(|n| (n, starts.get(&n).map_or(0, Vec::len))).filter(|(_, n)| *n != 1).collect();
        assert!(odd.is_empty(), "of {tasks} tasks, not started exactly once (task, starts): {odd:?}");
    }
}

/// A new directory that every account can write to.
pub fn dir_of_all(path: &Path) -> PathBuf {
    fs::create_dir(path).expect("a directory");
    fs::set_permissions(path, Permissions::from_mode(0o1777)).expect("permissions");
    path.to_path_buf()
}
