//! Reading back what is stored as patches, and into older copies: all bytes right, few requests, only what differs.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::common::patched::{self, Version};
use crate::common::{World, noise};
use farsite_model::content::{ReadAt, WriteAt};
use farsite_store::StoreError;
use farsite_store::map::MapRoot;
use farsite_store::read::{ReadStats, Reader};

const BLOCK: usize = 4096;

/// A copy in memory that counts what is written to it.
struct Copy {
    bytes: Mutex<Vec<u8>>,
    written_bytes: AtomicU64,
    read_bytes: AtomicU64,
}

impl Copy {
    fn of(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(bytes),
            written_bytes: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
        })
    }
    fn written(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }
}

impl ReadAt for Copy {
    fn size_bytes(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.read_bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        let start = offset as usize;
        buffer.copy_from_slice(&self.bytes.lock().unwrap()[start..start + buffer.len()]);
        Ok(())
    }
}

impl WriteAt for Copy {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.written_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let start = offset as usize;
        self.bytes.lock().unwrap()[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn punch_hole(&self, range: Range<u64>) -> std::io::Result<()> {
        self.bytes.lock().unwrap()[range.start as usize..range.end as usize].fill(0);
        Ok(())
    }
    fn finish(&self, size_bytes: u64) -> std::io::Result<()> {
        assert_eq!(size_bytes, self.size_bytes());
        Ok(())
    }
}

/// Changes 100 bytes in every `step`th block.
fn changed(content: &[u8], seed: u64, step: usize) -> Vec<u8> {
    let mut content = content.to_vec();
    for (i, block) in content.chunks_mut(BLOCK).enumerate() {
        if i % step == seed as usize % step {
            let at = (seed as usize * 97) % (block.len() - 100);
            block[at..at + 100].copy_from_slice(&noise(seed + i as u64, 100));
        }
    }
    content
}

/// Ten versions of 9 MiB: three leaves and a root, every change a patch, chains up to their limit and beyond.
async fn versions(world: &World) -> Vec<Version> {
    let mut content = noise(1, 9 << 20);
    content[(5 << 20)..(6 << 20)].fill(0);
    let mut versions = vec![patched::write(world, 0, content, BLOCK, None).await];
    for run in 1..=10u64 {
        let last = versions.last().unwrap();
        // Every block of the last leaf changes each time, so that its chain is as deep as it may be.
        let mut content = changed(&last.content, run, 50);
        let tail = changed(&content[(8 << 20)..], run, 1);
        content[(8 << 20)..].copy_from_slice(&tail);
        let next = patched::write(world, run, content, BLOCK, Some(last)).await;
        versions.push(next);
    }
    versions
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_of_blocks_and_of_nodes_are_followed_to_their_bases() {
    for (place, world) in World::everywhere().await {
        let versions = versions(&world).await;
        let deepest = versions.iter().flat_map(|v| v.blocks.iter().flatten()).map(|b| b.depth).max();
        assert_eq!(deepest, Some(8), "{place}");
        for (i, version) in versions.iter().enumerate() {
            let read = world.reader().read_small(&version.map, 16 << 20).await.unwrap();
            assert!(read == version.content, "{place}: version {i}");
            let damage = world.reader().verify(&version.map, &ReadStats::default()).await.unwrap();
            assert!(damage.is_empty(), "{place}: {damage:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bases_of_patches_are_gathered_in_waves_and_not_one_by_one() {
    let world = World::in_folder().await;
    let versions = versions(&world).await;
    let version = &versions[8];
    let blocks = version.blocks.iter().flatten().count() as u64;
    let opened: u64 = version.blocks.iter().flatten().map(|b| u64::from(b.depth) + 1).sum();
    let stats = ReadStats::default();
    world.reader().verify(&version.map, &stats).await.unwrap();
    let requests = stats.requests.load(Ordering::Relaxed);
    assert!(opened > blocks + 1500, "{opened} blobs for {blocks} blocks");
    assert!(requests < opened / 10, "{requests} requests for {opened} blobs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_base_spoils_only_what_stands_on_it() {
    let world = World::in_folder().await;
    let versions = versions(&world).await;
    let first = &versions[0];
    let base = first.blocks[7].as_ref().unwrap().blob;
    let pack = world.path(&farsite_store::pack::object_key(&base.at.pack));
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[base.at.offset as usize + 20] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let newest = versions.last().unwrap();
    assert!(newest.blocks[7].as_ref().unwrap().depth > 0, "the newest version of this block stands on it");
    let copy = Copy::of(vec![0; newest.content.len()]);
    let error = world.reader().restore_over(&newest.map, copy.clone(), None, &ReadStats::default()).await;
    let Err(StoreError::Damaged(damage)) = error else { panic!("the damage was not found") };
    assert!(damage.iter().all(|d| pack.ends_with(&d.object)), "{damage:?}");
    let restored = copy.bytes.lock().unwrap();
    for (i, (is, should)) in restored.chunks(BLOCK).zip(newest.content.chunks(BLOCK)).enumerate() {
        assert_eq!(is == should, i != 7, "block {i}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn into_an_older_copy_only_what_differs_is_written_whether_the_copy_is_known_or_read() {
    let world = World::in_folder().await;
    let versions = versions(&world).await;
    for (from, to) in [(0, 1), (3, 9), (9, 3), (10, 0)] {
        let (old, new) = (&versions[from], &versions[to]);
        // What became zeros is punched, not written.
        let differs = old.content.chunks(BLOCK).zip(new.content.chunks(BLOCK)).filter(|(a, b)| a != b);
        let expected = differs.filter(|(_, b)| b.iter().any(|b| *b != 0)).count() as u64 * BLOCK as u64;
        for known in [Some(&old.map), None] {
            let copy = Copy::of(old.content.clone());
            let stats = ReadStats::default();
            world.reader().restore_over(&new.map, copy.clone(), known, &stats).await.unwrap();
            assert!(*copy.bytes.lock().unwrap() == new.content, "{from} to {to}, {}", known.is_some());
            assert_eq!(copy.written(), expected, "{from} to {to}, known: {}", known.is_some());
            let read = copy.read_bytes.load(Ordering::Relaxed);
            // Of what is known only that is read which a patch may stand on.
            assert_eq!(read <= expected, known.is_some(), "{from} to {to}: {read} bytes");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_of_what_stands_there_is_fetched_without_its_base() {
    let world = World::in_folder().await;
    let versions = versions(&world).await;
    let fetched = |stats: &ReadStats| stats.fetched_bytes.load(Ordering::Relaxed);
    for (from, to) in [(0, 1), (2, 5)] {
        let (old, new) = (&versions[from], &versions[to]);
        let (with, without) = (ReadStats::default(), ReadStats::default());
        let copy = Copy::of(old.content.clone());
        world.reader().restore_over(&new.map, copy.clone(), Some(&old.map), &with).await.unwrap();
        assert!(*copy.bytes.lock().unwrap() == new.content, "{from} to {to}");
        // A copy that is not what was said of it costs more, and spoils nothing: it is written all over.
        let mut wrong = old.content.clone();
        let changed = |i: &usize| old.content[i * BLOCK..][..BLOCK] != new.content[i * BLOCK..][..BLOCK];
        for i in (0..old.content.len() / BLOCK).filter(changed) {
            wrong[i * BLOCK] ^= 1;
        }
        let copy = Copy::of(wrong);
        world.reader().restore_over(&new.map, copy.clone(), Some(&old.map), &without).await.unwrap();
        assert!(*copy.bytes.lock().unwrap() == new.content, "{from} to {to}");
        assert!(fetched(&with) * 2 < fetched(&without), "{} and {}", fetched(&with), fetched(&without));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_another_size_is_put_right() {
    let world = World::in_folder().await;
    let sizes = [100, BLOCK * 3 + 17, BLOCK * 1024, BLOCK * 1024 * 2 + 5, BLOCK * 1024 * 2 + 5000];
    let mut versions = Vec::new();
    for (i, size) in sizes.into_iter().enumerate() {
        let mut content = noise(7, size);
        if size > BLOCK * 500 {
            content[BLOCK * 10..BLOCK * 400].fill(0);
        }
        versions.push(patched::write(&world, i as u64, content, BLOCK, None).await);
    }
    for old in &versions {
        for new in &versions {
            let mut standing = old.content.clone();
            standing.resize(new.content.len(), 0);
            for known in [Some(&old.map), None] {
                let copy = Copy::of(standing.clone());
                world
                    .reader()
                    .restore_over(&new.map, copy.clone(), known, &ReadStats::default())
                    .await
                    .unwrap();
                let sizes = (old.content.len(), new.content.len());
                assert!(*copy.bytes.lock().unwrap() == new.content, "{sizes:?}, {}", known.is_some());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_of_the_item_become_holes_of_the_copy() {
    let world = World::in_folder().await;
    let mut content = noise(3, 9 << 20);
    content[BLOCK..(8 << 20)].fill(0);
    let version = patched::write(&world, 1, content, BLOCK, None).await;
    let copy = Copy::of(noise(4, 9 << 20));
    let stats = ReadStats::default();
    world.reader().restore_over(&version.map, copy.clone(), None, &stats).await.unwrap();
    assert!(*copy.bytes.lock().unwrap() == version.content);
    assert_eq!(stats.punched_bytes.load(Ordering::Relaxed), (8 << 20) - BLOCK as u64);
    let empty = patched::write(&world, 2, vec![0; 9 << 20], BLOCK, None).await;
    assert!(empty.map.root.is_none());
    world.reader().restore_over(&empty.map, copy.clone(), Some(&version.map), &stats).await.unwrap();
    assert!(copy.bytes.lock().unwrap().iter().all(|b| *b == 0));
}

/// Compiles only while reading may be a part of a task that moves between threads.
#[tokio::test(flavor = "multi_thread")]
async fn an_item_is_read_from_within_a_task() {
    type Boxed<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
    fn both<'a>(
        reader: &'a Reader,
        map: &'a MapRoot,
        copy: &'a Arc<Copy>,
        stats: &'a ReadStats,
    ) -> Boxed<'a, Result<(), StoreError>> {
        Box::pin(async move {
            reader.restore(map, copy.clone(), stats).await?;
            reader.restore_over(map, copy.clone(), Some(map), stats).await?;
            reader.restore_over(map, copy.clone(), None, stats).await
        })
    }
    let world = World::in_folder().await;
    let version = patched::write(&world, 1, noise(1, 100_000), BLOCK, None).await;
    let copy = Copy::of(vec![0; 100_000]);
    let (reader, into) = (world.reader(), copy.clone());
    let map = version.map.clone();
    let task = tokio::spawn(async move { both(&reader, &map, &into, &ReadStats::default()).await });
    task.await.unwrap().unwrap();
    assert!(*copy.bytes.lock().unwrap() == version.content);
}
