//! Blocks that are new and lie side by side are sealed as one, and each of them can still be read by itself.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use crate::common::{World, noise, text};
use farsite_model::content::InMemory;
use farsite_model::{ItemId, ItemKind};
use farsite_store::blob::{self, BlobRef};
use farsite_store::hex::Hex;
use farsite_store::ingest::{IngestOptions, Input};
use farsite_store::local_map::{LocalMap, LocalMapWriter};
use farsite_store::map::MapRoot;
use farsite_store::pack::object_key;
use farsite_store::read::{LazyItem, ReadStats};

const BLOCK: usize = 65_536;
const GROUP: usize = 8;

/// One run: its map, and the bytes of its packs.
async fn run(world: &World, number: u64, content: &[u8], before: Option<&[u8]>) -> (MapRoot, u64) {
    let item = ItemId::new(ItemKind::Volume, "v");
    let mut writer = world.writer(number, IngestOptions::within(64 << 20, (3, 3))).await;
    let previous = LocalMap::open(&world.maps(), &item).unwrap();
    let mut out = LocalMapWriter::create(&world.maps(), &item).unwrap();
    let content = InMemory(content.to_vec());
    let before = before.map(|bytes| InMemory(bytes.to_vec()));
    let input = Input {
        previous: previous.as_ref(),
        before: before.as_ref().map(|before| -> &dyn farsite_model::content::ReadAt { before }),
        ..Input::first("v", &content, BLOCK as u32)
    };
    let map = writer.ingest(&input, &mut out).unwrap();
    writer.flush().await.unwrap();
    out.commit().unwrap();
    (map, writer.stats.shipped_bytes.load(Ordering::Relaxed))
}

async fn blocks_of(world: &World, map: &MapRoot) -> Vec<Option<BlobRef>> {
    world.reader().node(&map.root.unwrap(), 0).await.unwrap().children
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_are_sealed_as_one_and_each_is_read_by_itself() {
    let world = World::in_folder().await;
    let content = text(1, 40 * BLOCK + 777);
    let (map, shipped) = run(&world, 1, &content, None).await;
    let apart: usize = content.chunks(BLOCK).map(|block| blob::encode(block, 3).len()).sum();
    assert!(shipped < apart as u64 * 95 / 100, "{shipped} bytes, {apart} block by block");

    let blocks = blocks_of(&world, &map).await;
    let grouped = blocks.iter().flatten().filter(|block| block.at.is_grouped());
    assert!(grouped.count() >= 40, "all but the last few");
    let places: BTreeSet<u32> = blocks.iter().flatten().map(|block| block.at.offset).collect();
    assert_eq!(places.len(), blocks.len().div_ceil(GROUP));

    let item = LazyItem::new(world.reader(), map.clone(), 16 << 20).unwrap();
    for offset in [0usize, 5 * BLOCK + 9, 39 * BLOCK, 40 * BLOCK + 700] {
        let read = item.read(offset as u64..offset as u64 + 77).await.unwrap();
        assert!(read == content[offset..offset + 77], "at {offset}");
    }
    assert!(world.reader().read_small(&map, 64 << 20).await.unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_compress_stays_by_itself() {
    let world = World::in_folder().await;
    let mut content = text(1, 64 * BLOCK);
    for block in [3, 4, 5, 30] {
        content[block * BLOCK..(block + 1) * BLOCK].copy_from_slice(&noise(block as u64, BLOCK));
    }
    let (map, _) = run(&world, 1, &content, None).await;
    for (i, block) in blocks_of(&world, &map).await.into_iter().enumerate() {
        assert_eq!(block.unwrap().at.is_grouped(), ![3, 4, 5, 30].contains(&i), "block {i}");
    }
    assert!(world.reader().read_small(&map, 64 << 20).await.unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_stands_on_a_member_of_a_group() {
    let world = World::in_folder().await;
    let first = text(1, 32 * BLOCK);
    let (old, _) = run(&world, 1, &first, None).await;
    let mut second = first.clone();
    for block in [2, 9, 31] {
        second[block * BLOCK + 100..block * BLOCK + 200].copy_from_slice(&noise(block as u64, 100));
    }
    let (new, shipped) = run(&world, 2, &second, Some(&first)).await;
    assert!(shipped < 3000, "{shipped} bytes");
    for (map, content) in [(&old, &first), (&new, &second)] {
        assert!(world.reader().read_small(map, 64 << 20).await.unwrap() == *content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_rewritten_is_a_patch_only_where_that_is_smaller_than_its_share_of_a_group() {
    let world = World::in_folder().await;
    let first = text(1, 32 * BLOCK);
    run(&world, 1, &first, None).await;
    let second = [text(2, 16 * BLOCK), first[16 * BLOCK..].to_vec()].concat();
    let (map, shipped) = run(&world, 2, &second, Some(&first)).await;
    let blocks = blocks_of(&world, &map).await;
    assert!(blocks[..16].iter().flatten().all(|block| block.at.is_grouped()));
    let frames = second[..16 * BLOCK].chunks(GROUP * BLOCK).map(|part| blob::encode(part, 3).len() as u64);
    let together: u64 = frames.sum();
    assert!(shipped < together * 103 / 100, "{shipped} bytes, {together} in two frames");
    assert!(world.reader().read_small(&map, 64 << 20).await.unwrap() == second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_group_is_named_and_no_other_is_touched() {
    let world = World::in_folder().await;
    let content = text(1, 32 * BLOCK);
    let (map, _) = run(&world, 1, &content, None).await;
    let hit = blocks_of(&world, &map).await[9].unwrap();
    let pack = world.path(&object_key(&hit.at.pack));
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[hit.at.offset as usize + 1000] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let damage = world.reader().verify(&map, &ReadStats::default()).await.unwrap();
    let [one] = &damage[..] else { panic!("{damage:?}") };
    assert!(one.why.starts_with("the group at"), "{one:?}");
    let item = LazyItem::new(world.reader(), map, 16 << 20).unwrap();
    for (i, block) in content.chunks(BLOCK).enumerate() {
        let range = (i * BLOCK) as u64..((i + 1) * BLOCK) as u64;
        match item.read(range).await {
            Ok(read) => assert!(read == block && i / GROUP != 1, "block {i}"),
            Err(_) => assert_eq!(i / GROUP, 1, "block {i}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_gives_no_block_that_it_does_not_hold_and_no_node() {
    let world = World::in_folder().await;
    let (map, _) = run(&world, 1, &text(1, 32 * BLOCK), None).await;
    let blocks = blocks_of(&world, &map).await;
    // A node at the place of a group: it is no node, whatever id it is asked for by.
    let node = BlobRef { id: blocks[0].unwrap().id, at: blocks[0].unwrap().at };
    let error = world.reader().node(&node, 0).await.unwrap_err();
    assert!(error.to_string().contains("is no block"), "{error}");
    // A map that says so of a block.
    let stranger = BlobRef { id: Hex([9; 32]), at: blocks[0].unwrap().at };
    let mut node = world.reader().node(&map.root.unwrap(), 0).await.unwrap();
    node.children[0] = Some(stranger);
    let map = crate::common::patched::lone_node(&world, 9, &node, &map).await;
    let damage = world.reader().verify(&map, &ReadStats::default()).await.unwrap();
    assert!(damage.iter().any(|one| one.why.contains("does not hold")), "{damage:?}");
}
