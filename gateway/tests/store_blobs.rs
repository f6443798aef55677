//! Blobs and outputs on a real disk.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use intergrid_gateway::backend::Content;
use intergrid_gateway::blobs::{BlobLimits, BlobStore};
use intergrid_gateway::outputs::{OutputStore, Received};
use intergrid_proto::limits::{BLOB_BYTES_MAX, BLOB_PART_BYTES};
use intergrid_proto::{BlobHash, Refusal, RefusalKind};
use tempfile::TempDir;

const LIMITS: BlobLimits = BlobLimits { blobs_bytes_max: 10 << 20, free_min_bytes: 0 };

fn blobs() -> (TempDir, BlobStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path().join("blobs"), LIMITS).unwrap();
    (dir, store)
}

fn put(store: &BlobStore, bytes: &[u8]) -> BlobHash {
    let hash = BlobHash::of(bytes);
    let mut writer = store.writer(hash, bytes.len() as u64).unwrap();
    bytes.chunks(1000).for_each(|c| writer.write(c).unwrap());
    writer.finish().unwrap();
    hash
}

fn unfinished(dir: &TempDir, store: &str) -> usize {
    std::fs::read_dir(dir.path().join(store).join("new")).unwrap().count()
}

async fn all(content: Content) -> Result<Vec<u8>, Refusal> {
    let parts: Vec<Result<Bytes, Refusal>> = content.parts.collect().await;
    let bytes = parts.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    assert_eq!((content.hash, content.size), (BlobHash::of(&bytes), bytes.len() as u64));
    Ok(bytes)
}

#[tokio::test]
async fn content_is_stored_once_and_found_after_a_restart() {
    let (dir, store) = blobs();
    let bytes: Vec<u8> = (0..BLOB_PART_BYTES * 2 + 7).map(|i| i as u8).collect();
    let hash = BlobHash::of(&bytes);
    let parts = || stream::iter(bytes.chunks(100_000).map(|c| Ok(Bytes::copy_from_slice(c))).collect::<Vec<_>>());
    assert!(!store.has(hash));
    assert_eq!(Ok(false), store.put_stream(hash, bytes.len() as u64, parts()).await);
    assert_eq!(Ok(true), store.put_stream(hash, bytes.len() as u64, parts()).await);
    let empty = put(&store, b"");
    assert_eq!(bytes.len() as u64, store.bytes());
    drop(store);
    std::fs::write(dir.path().join("blobs/new/left-behind"), "x").unwrap();
    let store = BlobStore::open(dir.path().join("blobs"), LIMITS).unwrap();
    assert_eq!((0, bytes.len() as u64), (unfinished(&dir, "blobs"), store.bytes()));
    assert_eq!(Some(0), store.size(empty));
    assert_eq!(bytes, all(store.get_stream(hash).await.unwrap()).await.unwrap());
    assert!(all(store.get_stream(empty).await.unwrap()).await.unwrap().is_empty());
    assert_eq!(bytes, std::fs::read(store.path(hash)).unwrap());
    assert_eq!((Ok(true), Ok(false), false, 0), (store.remove(hash), store.remove(hash), store.has(hash), store.bytes()));
    assert_eq!(RefusalKind::MissingBlob, store.get_stream(hash).await.err().unwrap().kind);
}

#[tokio::test]
async fn what_is_not_as_announced_is_refused_and_leaves_nothing() {
    let (dir, store) = blobs();
    let hash = BlobHash::of(b"abc");
    let attempt = async |size: u64, parts: &'static [&'static [u8]]| {
        let parts = stream::iter(parts.iter().map(|p| Ok(Bytes::from_static(p))));
        store.put_stream(hash, size, parts).await.unwrap_err()
    };
    assert!(attempt(3, &[b"ab"]).await.message.contains("ended after 2 of 3 bytes"));
    assert!(attempt(3, &[b"ab", b"cd"]).await.message.contains("longer than the 3 bytes announced"));
    assert!(attempt(3, &[b"abd"]).await.message.contains("has hash"));
    let cut = stream::iter([Ok(Bytes::from_static(b"a")), Err(Refusal::invalid("cut"))]);
    assert_eq!("cut", store.put_stream(hash, 3, cut).await.unwrap_err().message);
    drop(store.writer(hash, 3).unwrap());
    assert_eq!((false, 0, 0), (store.has(hash), store.bytes(), unfinished(&dir, "blobs")));
    put(&store, b"abc");
    assert!(attempt(4, &[b"abcd"]).await.message.contains("has 3 bytes, not 4"));
    assert!(attempt(3, &[b"abcd"]).await.message.contains("longer than announced"));
}

#[test]
fn total_bytes_are_bounded_and_what_is_only_announced_takes_no_room() {
    let (_dir, store) = blobs();
    let max = LIMITS.blobs_bytes_max;
    let over =
        |refused: Refusal| assert!(refused.kind == RefusalKind::OverLimit && refused.message.contains("blobs_bytes_max is 10485760"), "{refused}");
    // Announced, and never sent: others come first.
    let mut first = store.writer(BlobHash([1; 32]), max - 10).unwrap();
    let mut second = store.writer(BlobHash([2; 32]), 11).unwrap();
    second.write(&[0; 11]).unwrap();
    over(store.writer(BlobHash([3; 32]), max - 10).err().unwrap());
    over(first.write(&vec![0; max as usize - 10]).unwrap_err());
    drop(second);
    first.write(&vec![0; max as usize - 10]).unwrap();
    over(store.writer(BlobHash([2; 32]), 11).err().unwrap());
    assert!(store.writer(BlobHash([2; 32]), 10).is_ok());
    drop(first);
    assert_eq!(0, store.bytes());
    assert_eq!(RefusalKind::OverLimit, store.writer(BlobHash([3; 32]), BLOB_BYTES_MAX + 1).err().unwrap().kind);
    // The same content twice at once counts once.
    let hash = BlobHash::of(b"abc");
    let mut both = [store.writer(hash, 3).unwrap(), store.writer(hash, 3).unwrap()];
    both.iter_mut().for_each(|w| w.write(b"abc").unwrap());
    both.into_iter().for_each(|w| assert!(!w.finish().unwrap()));
    assert_eq!(3, store.bytes());

    let dir = tempfile::tempdir().unwrap();
    let full = BlobStore::open(dir.path(), BlobLimits { blobs_bytes_max: u64::MAX, free_min_bytes: u64::MAX / 2 }).unwrap();
    assert!(full.writer(hash, 3).err().unwrap().message.contains("store_free_min_bytes is"));
    assert_eq!(0, full.bytes());
}

#[tokio::test]
async fn who_waits_is_woken_by_the_arrival() {
    let (_dir, store) = blobs();
    let hash = BlobHash::of(b"late");
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            tokio::spawn({
                let store = store.clone();
                async move { store.wait_for(hash, Duration::from_secs(20)).await }
            })
        })
        .collect();
    while store.waited_for() != [hash] {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let began = Instant::now();
    put(&store, b"late");
    for waiter in waiting {
        assert_eq!(Ok(4), waiter.await.unwrap());
    }
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(Ok(4), store.wait_for(hash, Duration::ZERO).await);
    assert!(store.waited_for().is_empty());
    // In vain: a refusal that says so, and nothing is left in the registry; also not of a waiter that was dropped.
    let other = BlobHash::of(b"never");
    let refused = store.wait_for(other, Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(RefusalKind::MissingBlob, refused.kind);
    assert!(refused.message.contains("waited 20 ms"), "{refused}");
    assert!(tokio::time::timeout(Duration::from_millis(20), store.wait_for(other, Duration::from_secs(20))).await.is_err());
    assert!(store.waited_for().is_empty());
}

fn receive(store: &OutputStore, job: u64, task: u32, name: &str, bytes: &[u8]) -> Received {
    let mut writer = store.writer(job, task, name, BlobHash::of(bytes), bytes.len() as u64).unwrap();
    writer.write(bytes).unwrap();
    writer.verify().unwrap()
}

#[tokio::test]
async fn outputs_are_kept_by_task_and_name_and_replaced_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = OutputStore::open(dir.path().join("outputs"), 0).unwrap();
    store.settle(receive(&store, 7, 0, "stdout", b"first")).await.unwrap();
    store.finish(vec![receive(&store, 7, 0, "out/tile.png", b"png"), receive(&store, 7, 0, "stdout", b"second")]).unwrap();
    store.finish(vec![receive(&store, 7, 1, "stderr", b"")]).unwrap();
    drop(store);
    let store = OutputStore::open(dir.path().join("outputs"), 0).unwrap();
    assert_eq!(Ok(Some((BlobHash::of(b"second"), 6))), store.head(7, 0, "stdout"));
    assert_eq!(Ok(None), store.head(7, 2, "stdout"));
    for (task, name, want) in [(0, "stdout", &b"second"[..]), (0, "out/tile.png", b"png"), (1, "stderr", b"")] {
        assert_eq!(want, all(store.get(7, task, name).await.unwrap()).await.unwrap(), "{name}");
    }
    assert_eq!(RefusalKind::NotFound, store.get(7, 1, "stdout").await.err().unwrap().kind);
    std::fs::write(dir.path().join("outputs/7/0/stdout"), [0; 60]).unwrap();
    assert!(store.get(7, 0, "stdout").await.err().unwrap().message.contains("damaged"));
    store.remove_job(7).unwrap();
    store.remove_job(7).unwrap();
    assert_eq!(Ok(None), store.head(7, 0, "out/tile.png"));
}

#[test]
fn an_output_cannot_leave_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = OutputStore::open(dir.path().join("outputs"), 0).unwrap();
    for name in ["", "x", "out", "out/", "out/..", "out/../x", "out/a/b", "/etc/passwd", "../stdout", "stdout/", "out/stdout", "out/a\0b", "out//x"] {
        assert_eq!(RefusalKind::Invalid, store.writer(1, 1, name, BlobHash::of(b""), 0).unwrap_err().kind, "{name:?}");
        assert_eq!(RefusalKind::Invalid, store.head(1, 1, name).unwrap_err().kind, "{name:?}");
    }
    let mut wrong = store.writer(1, 1, "stdout", BlobHash::of(b"x"), 1).unwrap();
    wrong.write(b"y").unwrap();
    assert!(wrong.verify().unwrap_err().message.contains("has hash"));
    drop(receive(&store, 1, 1, "stdout", b"never finished"));
    assert_eq!(0, unfinished(&dir, "outputs"));
    assert_eq!(Ok(None), store.head(1, 1, "stdout"));
}

#[tokio::test]
async fn a_thousand_small_outputs_share_their_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let store = OutputStore::open(dir.path().join("outputs"), 0).unwrap();
    let began = Instant::now();
    let uploads = (0..1_000u32).map(|task| {
        let store = store.clone();
        async move {
            let received = receive(&store, 1, task, "stdout", format!("task {task}\n").as_bytes());
            store.settle(received).await
        }
    });
    stream::iter(uploads).buffer_unordered(256).for_each(|done| async move { done.unwrap() }).await;
    println!("1000 outputs in {:?}", began.elapsed());
    assert_eq!(b"task 999\n", all(store.get(1, 999, "stdout").await.unwrap()).await.unwrap().as_slice());
    assert_eq!(0, unfinished(&dir, "outputs"));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}
