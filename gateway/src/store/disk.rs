//! Syncs: the only moments at which something becomes durable. Under test a witness sees each, before and after, and can tell what a power cut would leave.

use std::fs::File;
use std::io;
use std::path::Path;

/// A file's bytes and length.
pub fn sync_data(file: &File, path: &Path) -> io::Result<()> {
    around(path, || Ok(rustix::fs::fdatasync(file)?))
}

/// A directory's entries.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    around(path, || File::open(path)?.sync_all())
}

#[cfg(not(test))]
fn around(_: &Path, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    sync()
}

#[cfg(test)]
fn around(path: &Path, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    witness::see(path, false);
    sync()?;
    witness::see(path, true);
    Ok(())
}

/// Who is told of each sync of this thread: the path, and whether it is done.
#[cfg(test)]
pub mod witness {
    use std::cell::RefCell;
    use std::path::Path;

    type Witness = Box<dyn FnMut(&Path, bool)>;

    thread_local! {
        static WITNESS: RefCell<Option<Witness>> = const { RefCell::new(None) };
    }

    /// Tell this one from now on.
    pub fn call(witness: impl FnMut(&Path, bool) + 'static) {
        WITNESS.set(Some(Box::new(witness)));
    }

    /// Tell nobody.
    pub fn dismiss() {
        WITNESS.set(None);
    }

    pub(super) fn see(path: &Path, done: bool) {
        // Out of its place while it looks, so that it may open a store itself.
        let Some(mut witness) = WITNESS.take() else { return };
        witness(path, done);
        WITNESS.set(Some(witness));
    }
}
