//! What changed is what is read and what is shipped: patches, told changes, and the local map that both stand on.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::{World, noise};
use farsite_model::content::{InMemory, ReadAt};
use farsite_model::{ItemId, ItemKind};
use farsite_store::ingest::{IngestOptions, Input};
use farsite_store::local_map::{LocalMap, LocalMapWriter};
use farsite_store::map::MapRoot;
use farsite_store::shipped::Shipped;

const BLOCK: usize = 4096;
/// Three leaves and a node above them.
const BYTES: usize = 10 << 20;

fn item() -> ItemId {
    ItemId::new(ItemKind::Volume, "v")
}

/// Counts what is read.
struct Counted<'a>(&'a [u8], AtomicU64);

impl ReadAt for Counted<'_> {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.1.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        let start = offset as usize;
        buffer.copy_from_slice(&self.0[start..start + buffer.len()]);
        Ok(())
    }
}

struct Ran {
    map: MapRoot,
    read_bytes: u64,
    changed_bytes: u64,
    shipped_bytes: u64,
}

/// One run; `told` are the extents that its source says have changed, `before` the version that it can still read.
async fn run(
    world: &World,
    number: u64,
    block_bytes: usize,
    content: &[u8],
    told: Option<&[Range<u64>]>,
    before: Option<&[u8]>,
) -> Ran {
    let mut writer = world.writer(number, IngestOptions::within(64 << 20, (3, 3))).await;
    let previous = LocalMap::open(&world.maps(), &item()).unwrap();
    let mut out = LocalMapWriter::create(&world.maps(), &item()).unwrap();
    let shipped = Shipped::open(&world.dir.path().join("shipped"), 64 << 20).unwrap();
    let copies = shipped.item(&item(), block_bytes as u32).unwrap();
    let counted = Counted(content, AtomicU64::new(0));
    let before = before.map(|bytes| InMemory(bytes.to_vec()));
    let input = Input {
        previous: previous.as_ref(),
        changed: told,
        before: before.as_ref().map(|before| -> &dyn ReadAt { before }),
        // A source that keeps its versions needs no copies.
        copies: before.is_none().then_some(&copies),
        ..Input::first("v", &counted, block_bytes as u32)
    };
    let map = writer.ingest(&input, &mut out).unwrap();
    writer.flush().await.unwrap();
    out.commit().unwrap();
    let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
    Ran {
        map,
        read_bytes: load(&counted.1),
        changed_bytes: load(&writer.stats.changed_bytes),
        shipped_bytes: load(&writer.stats.shipped_bytes),
    }
}

async fn assert_restores(world: &World, map: &MapRoot, expected: &[u8]) {
    assert!(world.reader().read_small(map, 64 << 20).await.unwrap() == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_change_is_shipped_as_a_patch_and_every_version_stays_readable() {
    let world = World::in_folder().await;
    let mut content = noise(1, 4 << 20);
    let mut versions = vec![(run(&world, 1, 65_536, &content, None, None).await.map, content.clone())];
    // Longer than any chain of patches may be.
    for number in 2..=20u64 {
        content[700_000..700_100].copy_from_slice(&noise(number, 100));
        let ran = run(&world, number, 65_536, &content, None, None).await;
        assert_eq!(ran.changed_bytes, 65_536);
        let whole = (number - 1).is_multiple_of(9);
        assert_eq!(ran.shipped_bytes > 65_536, whole, "run {number} shipped {} bytes", ran.shipped_bytes);
        assert!(whole || ran.shipped_bytes < 1_500, "run {number} shipped {} bytes", ran.shipped_bytes);
        versions.push((ran.map, content.clone()));
    }
    for (map, expected) in &versions {
        assert_restores(&world, map, expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_lost_or_changed_costs_bytes_and_spoils_nothing() {
    let world = World::in_folder().await;
    let mut content = noise(1, 1 << 20);
    run(&world, 1, 65_536, &content, None, None).await;
    let copies = world.dir.path().join("shipped");
    let file = std::fs::read_dir(&copies).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[3 * 65_536 + 7] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    for block in [2, 3] {
        content[block * 65_536] ^= 1;
    }
    let ran = run(&world, 2, 65_536, &content, None, None).await;
    // One patch, and one whole block.
    assert!((65_536..69_000).contains(&ran.shipped_bytes), "{}", ran.shipped_bytes);
    assert_restores(&world, &ran.map, &content).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_a_source_tells_is_read_and_unchanged_leaves_are_not_touched() {
    let world = World::in_folder().await;
    let first = noise(1, BYTES);
    run(&world, 1, BLOCK, &first, None, None).await;
    let leaves = crate::common::objects(&world.maps())
        .into_iter()
        .find(|p| p.extension().unwrap() == "leaves")
        .unwrap();
    let size = leaves.metadata().unwrap().len();

    let mut content = first.clone();
    content[5 << 20..(5 << 20) + 100].fill(9);
    let told = (5u64 << 20)..(5 << 20) + 100;
    let ran = run(&world, 2, BLOCK, &content, Some(std::slice::from_ref(&told)), Some(&first)).await;
    assert_eq!((ran.read_bytes, ran.changed_bytes), (BLOCK as u64, BLOCK as u64));
    // A patch of the block, of its leaf, and of the node above.
    assert!(ran.shipped_bytes < 2_500, "{}", ran.shipped_bytes);
    assert_restores(&world, &ran.map, &content).await;
    // One more leaf record, in a slot of its own; the other two stay where they are.
    assert_eq!(leaves.metadata().unwrap().len(), size / 3 * 4);

    let nothing = run(&world, 3, BLOCK, &content, Some(&[]), Some(&content)).await;
    assert_eq!((nothing.read_bytes, nothing.changed_bytes), (0, 0));
    assert_eq!(nothing.map, ran.map);

    // The slot that the second run freed is used again.
    content[0] ^= 1;
    let ran = run(&world, 4, BLOCK, &content, Some(std::slice::from_ref(&(0..1))), Some(&content)).await;
    assert_eq!(ran.read_bytes, BLOCK as u64);
    assert_restores(&world, &ran.map, &content).await;
    assert_eq!(leaves.metadata().unwrap().len(), size / 3 * 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_grows_or_shrinks_between_told_changes_is_whole() {
    let world = World::in_folder().await;
    let mut content = noise(1, BYTES);
    run(&world, 1, BLOCK, &content, None, None).await;
    for (number, size) in [(2, BYTES + 1), (3, (4 << 20) + 5), (4, 17 << 20), (5, 100), (6, 0), (7, 9 << 20)]
    {
        let before = content.clone();
        content.resize(size, 0);
        let ran = run(&world, number, BLOCK, &content, Some(&[]), Some(&before)).await;
        assert_restores(&world, &ran.map, &content).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_map_that_lost_a_leaf_beside_a_told_change_is_not_built_upon() {
    // In the changed leaf, in one beside it, and in the node above.
    for record in [0u64, 2] {
        let world = World::in_folder().await;
        let mut content = noise(1, BYTES);
        run(&world, 1, BLOCK, &content, None, None).await;
        let path = crate::common::objects(&world.maps())
            .into_iter()
            .find(|p| p.extension().unwrap() == "leaves")
            .unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let size = bytes.len() as u64 / 3;
        // In the location of the leaf's own node.
        bytes[(record * size) as usize + 40] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        content[17] ^= 1;
        let told = std::slice::from_ref(&(17..18u64));
        let ran = run(&world, 2, BLOCK, &content, Some(told), None).await;
        assert!(ran.read_bytes >= 4 << 20, "record {record}: {} bytes were read", ran.read_bytes);
        assert_restores(&world, &ran.map, &content).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_cleared_counts_once_whether_its_zeros_are_read_or_not() {
    for told in [None, Some(0..3 * BLOCK as u64)] {
        let world = World::in_folder().await;
        let mut content = noise(1, BYTES);
        run(&world, 1, BLOCK, &content, None, None).await;
        content[..2 * BLOCK].fill(0);
        let ran = run(&world, 2, BLOCK, &content, told.as_ref().map(std::slice::from_ref), None).await;
        assert_eq!(ran.changed_bytes, 2 * BLOCK as u64, "{told:?}");
        assert_restores(&world, &ran.map, &content).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ancestor_that_lost_a_leaf_costs_a_full_copy_and_no_more() {
    let world = World::in_folder().await;
    let content = noise(1, BYTES);
    run(&world, 1, BLOCK, &content, None, None).await;
    let path = crate::common::objects(&world.maps())
        .into_iter()
        .find(|p| p.extension().unwrap() == "leaves")
        .unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let third = bytes.len() / 3;
    bytes[third + 40] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let ancestor = LocalMap::open(&world.maps(), &item()).unwrap();
    let clone = ItemId::new(ItemKind::Volume, "clone");
    let mut writer = world.writer(2, IngestOptions::within(64 << 20, (3, 3))).await;
    let mut out = LocalMapWriter::create(&world.maps(), &clone).unwrap();
    let bytes = InMemory(content.clone());
    let input = Input::first("clone", &bytes, BLOCK as u32).since(ancestor.as_ref());
    let map = writer.ingest(&input, &mut out).unwrap();
    writer.flush().await.unwrap();
    out.commit().unwrap();
    assert_restores(&world, &map, &content).await;
}
