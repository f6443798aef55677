//! Power cuts: before and after each sync there is, what a disk might hold then is put together elsewhere and opened. What was synced is there; of what was
//! only written, nothing, everything, or any blocks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::super::disk::witness;
use super::super::sled::SledStore;
use super::super::{Batch, Store};
use super::{Content, Model, content, scratch};

const BLOCK_BYTES: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Unsynced {
    Lost,
    Kept,
    Mixed(u64),
}

impl Unsynced {
    /// Is the next piece there?
    fn keeps(&mut self) -> bool {
        match self {
            Unsynced::Lost => false,
            Unsynced::Kept => true,
            Unsynced::Mixed(random) => {
                *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *random >> 63 == 1
            }
        }
    }
}

/// What is synced: entries of directories and bytes of files, by inode.
#[derive(Default)]
struct Synced {
    entries: BTreeMap<u64, BTreeMap<String, u64>>,
    bytes: BTreeMap<u64, Vec<u8>>,
}

fn inode(path: &Path) -> u64 {
    path.metadata().unwrap().ino()
}

fn entries(dir: &Path) -> BTreeMap<String, u64> {
    let entry = |e: std::io::Result<std::fs::DirEntry>| e.ok().and_then(|e| Some((e.file_name().into_string().ok()?, e.metadata().ok()?.ino())));
    std::fs::read_dir(dir).map(|d| d.filter_map(entry).collect()).unwrap_or_default()
}

/// Where everything below a directory is now, by inode.
fn paths(dir: &Path, out: &mut BTreeMap<u64, PathBuf>) {
    for (name, inode) in entries(dir) {
        let path = dir.join(name);
        if path.is_dir() {
            paths(&path, out);
        }
        out.insert(inode, path);
    }
}

impl Synced {
    fn sync(&mut self, path: &Path) {
        if path.is_dir() {
            self.entries.insert(inode(path), entries(path));
        } else {
            self.bytes.insert(inode(path), std::fs::read(path).unwrap());
        }
    }

    /// What might be on the disk now, put into `to`.
    fn image(&self, home: &Path, to: &Path, mut unsynced: Unsynced) {
        let mut now = BTreeMap::from([(inode(home), home.to_path_buf())]);
        paths(home, &mut now);
        self.image_of(inode(home), &now, to, &mut unsynced);
    }

    fn image_of(&self, dir: u64, now: &BTreeMap<u64, PathBuf>, to: &Path, unsynced: &mut Unsynced) {
        std::fs::create_dir_all(to).unwrap();
        let there = now.get(&dir).filter(|_| unsynced.keeps()).map(|path| entries(path));
        for (name, inode) in there.or_else(|| self.entries.get(&dir).cloned()).unwrap_or_default() {
            let to = to.join(&name);
            match now.get(&inode) {
                Some(path) if name == "sled" => self.image_of_sled(path, &to, unsynced),
                _ if name == "blobs" => {}
                Some(path) if path.is_dir() => self.image_of(inode, now, &to, unsynced),
                path => {
                    let synced = self.bytes.get(&inode).cloned().unwrap_or_default();
                    // One that is gone by now has been synced.
                    let now = path.map_or_else(|| synced.clone(), |path| std::fs::read(path).unwrap());
                    std::fs::write(to, mix(&synced, &now, unsynced)).unwrap();
                }
            }
        }
    }

    /// sled's own files are taken as they are, but for the one that we sync.
    fn image_of_sled(&self, home: &Path, to: &Path, unsynced: &mut Unsynced) {
        std::fs::create_dir_all(to.join("blobs")).unwrap();
        for (name, inode) in entries(home).into_iter().filter(|(name, _)| name != "blobs") {
            let now = std::fs::read(home.join(&name)).unwrap();
            let synced = self.bytes.get(&inode).filter(|_| name == "db");
            let bytes = synced.map_or_else(|| now.clone(), |synced| mix(synced, &now, unsynced));
            std::fs::write(to.join(name), bytes).unwrap();
        }
    }
}

fn mix(synced: &[u8], now: &[u8], unsynced: &mut Unsynced) -> Vec<u8> {
    let bytes = if unsynced.keeps() { now.len() } else { synced.len() };
    let mut out = vec![0; bytes];
    for (k, block) in out.chunks_mut(BLOCK_BYTES).enumerate() {
        let from = if unsynced.keeps() { now } else { synced };
        let from = from.get(k * BLOCK_BYTES..).unwrap_or_default();
        let n = from.len().min(block.len());
        block[..n].copy_from_slice(&from[..n]);
    }
    out
}

/// Look at what a power cut would leave, at every sync while `work` goes on. `may` says what may be found then.
fn cut_everywhere(home: &Path, may: Rc<RefCell<Vec<Content>>>, work: impl FnOnce()) -> usize {
    let (home, images) = (home.to_path_buf(), scratch());
    let count = Rc::new(RefCell::new(0usize));
    let (mut synced, counter) = (Synced::default(), count.clone());
    for dir in [home.clone(), home.join("log"), home.join("sled")] {
        entries(&dir).keys().map(|f| dir.join(f)).filter(|f| f.is_file()).for_each(|f| synced.sync(&f));
        if dir.is_dir() {
            synced.sync(&dir);
        }
    }
    witness::call(move |path, done| {
        if !path.starts_with(&home) {
            return;
        }
        if done {
            synced.sync(path);
        }
        let n = *counter.borrow();
        for unsynced in [Unsynced::Lost, if n.is_multiple_of(5) { Unsynced::Kept } else { Unsynced::Mixed(n as u64) }] {
            *counter.borrow_mut() += 1;
            let to = images.path().join(n.to_string());
            synced.image(&home, &to, unsynced);
            let what = format!("cut {n}, {unsynced:?}, {} {path:?}", if done { "after" } else { "before" });
            let mut store = SledStore::open(&to).unwrap_or_else(|e| panic!("{what}: {e}"));
            let found = content(&store);
            assert!(may.borrow().contains(&found), "{what}");
            // It goes on from there, and what comes next stays.
            let mut model = Model { content: found, ..Model::default() };
            let next = store.last_change().map_or(1, |n| n + 1);
            let batch = Batch { rows: vec![(b"new".to_vec(), Some(vec![1; 700]))], changes: vec![(next, vec![2; 700])], ..Batch::default() };
            store.commit(&batch).unwrap();
            model.take(&batch);
            drop(store);
            assert_eq!(model.content, content(&SledStore::open(&to).unwrap()), "{what}");
            std::fs::remove_dir_all(&to).unwrap();
        }
    });
    work();
    witness::dismiss();
    count.take()
}

/// Batch `n`: rows that come, change and go, changes behind those before, most of them forgotten soon.
fn batch(n: u64) -> Batch {
    let value = |k: u64| !(n + k).is_multiple_of(5);
    let rows = (0..8).map(|k| (vec![b'r', (n * 13 + k * 11) as u8 % 90], value(k).then(|| vec![n as u8; 40 + (n * k) as usize % 300]))).collect();
    let changes = (0..3).map(|k| (n * 3 + k, vec![n as u8; 100])).collect();
    Batch { rows, changes, truncate_below: n.is_multiple_of(4).then(|| n * 3 - 5) }
}

#[test]
fn no_acknowledged_batch_is_lost_and_none_is_torn() {
    let dir = scratch();
    let home = dir.path().join("store");
    let mut store = SledStore::open(&home).unwrap();
    store.bounds(6_000, 5_000, 16);
    let may = Rc::new(RefCell::new(vec![Content::default()]));
    let known = may.clone();
    let cuts = cut_everywhere(&home, may, move || {
        let mut model = Model::default();
        for n in 1..=24 {
            // While it is under way it is there or not; then it is.
            let before = model.content.clone();
            model.take(&batch(n));
            *known.borrow_mut() = vec![before, model.content.clone()];
            store.commit(&batch(n)).unwrap();
            *known.borrow_mut() = vec![model.content.clone()];
        }
    });
    println!("{cuts} power cuts");
    assert!(cuts > 150, "{cuts}");
}

#[test]
fn a_new_store_and_one_of_format_1_survive_a_cut_while_they_are_made() {
    let dir = scratch();
    let home = dir.path().join("store");
    let may = Rc::new(RefCell::new(vec![Content::default()]));
    let cuts = cut_everywhere(&home, may, || drop(SledStore::open(&home).unwrap()));
    assert!(cuts > 10, "{cuts}");
    let home = dir.path().join("old");
    std::fs::create_dir(&home).unwrap();
    let want = super::store::format_1(&home);
    let cuts = cut_everywhere(&home, Rc::new(RefCell::new(vec![want])), || drop(SledStore::open(&home).unwrap()));
    assert!(cuts > 20, "{cuts}");
}
