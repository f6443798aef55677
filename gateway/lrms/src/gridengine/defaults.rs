//! Files of options that qstat takes without being told: of the cell, and of the account. Any text is taken.
//!
//! What a command line says itself is not taken from them (`-s`, `-u`). For some options it has no neutral word: these hide jobs, and a task that runs
//! looks gone.

use std::io::Read;
use std::path::{Path, PathBuf};

/// Options with which qstat shows some jobs only, or something else.
const HIDING: [&str; 7] = ["-help", "-j", "-l", "-pe", "-q", "-qs", "-U"];
/// Such a file is a few words; of one that is longer the rest is not looked at.
const FILE_BYTES_MAX: u64 = 1 << 16;

/// The file of a cell, whose `common` this is.
pub fn of_cell(common: &Path) -> PathBuf {
    common.join("sge_qstat")
}

/// The file of an account with this home.
pub fn of_account(home: &Path) -> PathBuf {
    home.join(".sge_qstat")
}

/// The first of these files in which an option hides jobs: what it is, and what helps.
pub fn hidden(files: &[PathBuf]) -> Option<String> {
    files.iter().find_map(|path| {
        // What qstat can't read either, it says itself.
        let mut bytes = Vec::new();
        std::fs::File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        let option = hiding(&String::from_utf8_lossy(&bytes))?;
        Some(format!("{} has {option}, with which qstat does not show all jobs: take it out of this file", path.display()))
    })
}

/// An option among these that hides jobs. Lines that begin with `#` are none, and quotes mean nothing.
fn hiding(text: &str) -> Option<&'static str> {
    let mut option = "";
    for word in text.lines().filter(|l| !l.starts_with('#')).flat_map(|l| l.split([' ', '\t'])) {
        if let Some(found) = HIDING.iter().find(|o| **o == word) {
            return Some(found);
        }
        match word.starts_with('-') {
            true => option = word,
            false if option == "-g" && word.contains('c') => return Some("-g c"),
            false => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_hides_is_told_from_what_does_not() {
        for (text, option) in [
            ("-q short\n", "-q"),
            ("# all of it\n-ext\n-u a\t-qs d", "-qs"),
            ("-g\nd\n-g c", "-g c"),
            ("-j 5", "-j"),
            ("-f -U ann", "-U"),
            ("-ext # -q short", "-q"),
        ] {
            assert_eq!(Some(option), hiding(text), "{text:?}");
        }
        for text in ["", "-ext -pri\n-g d\n-F -f -u ann", "# -q short\n-s p", "-s r -u c", "-qshort", "\"-q\" short"] {
            assert_eq!(None, hiding(text), "{text:?}");
        }
    }

    #[test]
    fn the_file_and_its_option_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let files = [of_cell(dir.path()), of_account(dir.path())];
        assert_eq!(None, hidden(&files));
        std::fs::write(&files[0], "-s p\n").unwrap();
        assert_eq!(None, hidden(&files));
        std::fs::write(&files[1], "-q short\n").unwrap();
        let said = hidden(&files).unwrap();
        assert!(said.contains("/.sge_qstat has -q, "), "{said}");
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "(?s).{0,100}", words in "[-gqcs \n#]{0,20}") {
            let _ = (hiding(&text), hiding(&words));
        }
    }
}
