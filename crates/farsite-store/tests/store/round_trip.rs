//! What goes into the store comes out again, byte for byte, and only what changed is shipped.

use std::sync::Arc;

use crate::common::{World, noise};
use farsite_model::{ItemId, ItemKind};
use farsite_store::StoreError;
use farsite_store::ingest::{IngestOptions, Input};
use farsite_store::read::ReadStats;

fn item() -> ItemId {
    ItemId::new(ItemKind::Volume, "v")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_of_any_length_survives_the_round_trip() {
    let world = World::in_folder().await;
    let reader = world.reader();
    for (run, len) in [0, 1, 65_535, 65_536, 65_537, 3 * 65_536 + 5].into_iter().enumerate() {
        let content = noise(run as u64, len);
        let id = ItemId::new(ItemKind::Volume, &format!("v{len}"));
        let (map, ..) = world.replicate(run as u64, &id, content.clone()).await;
        assert_eq!(reader.read_small(&map, 1 << 20).await.unwrap(), content, "length {len}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_of_several_levels_survives_the_round_trip() {
    let world = World::in_folder().await;
    // 4 KiB blocks: one leaf spans 4 MiB, so 9 MiB take three leaves and a node above them.
    let mut content = noise(1, 9 << 20);
    content[(4 << 20)..(8 << 20)].fill(0);
    let mut writer = world.writer(1, IngestOptions::within(64 << 20, (3, 3))).await;
    let mut out = farsite_store::local_map::LocalMapWriter::create(&world.maps(), &item()).unwrap();
    let source: Arc<dyn farsite_model::content::ReadAt> =
        Arc::new(farsite_model::content::InMemory(content.clone()));
    let map = writer.ingest(&Input::first("v", &*source, 4096), &mut out).unwrap();
    writer.flush().await.unwrap();
    assert_eq!(map.root_level(), 1);
    assert_eq!(world.reader().read_small(&map, 16 << 20).await.unwrap(), content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_ships_only_what_changed() {
    let world = World::in_folder().await;
    let mut content = noise(2, 8 << 20);
    let (_, first, _) = world.replicate(1, &item(), content.clone()).await;
    assert!(first > 8 << 20);
    let (same, shipped, changed) = world.replicate(2, &item(), content.clone()).await;
    assert_eq!((shipped, changed), (0, 0), "an unchanged item ships nothing");
    content[5 << 20] ^= 1;
    let (map, shipped, changed) = world.replicate(3, &item(), content.clone()).await;
    assert_eq!(changed, 65_536);
    assert!(shipped < 80_000, "one block and one leaf: {shipped}");
    assert_eq!(world.reader().read_small(&map, 16 << 20).await.unwrap(), content);
    assert!(same.root.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_cost_nothing() {
    let world = World::in_folder().await;
    let (map, shipped, _) = world.replicate(1, &item(), vec![0; 8 << 20]).await;
    assert_eq!((map.root, shipped), (None, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn complete_packs_are_not_sent_again_after_a_crash() {
    let world = World::in_folder().await;
    let content = noise(3, 40 << 20);
    let options = IngestOptions { pack_bytes: 4 << 20, ..IngestOptions::within(64 << 20, (3, 3)) };
    let source: Arc<dyn farsite_model::content::ReadAt> =
        Arc::new(farsite_model::content::InMemory(content.clone()));
    {
        // The process dies without a flush, a commit or a local map.
        let mut writer = world.writer(9, options).await;
        let mut out = farsite_store::local_map::LocalMapWriter::create(&world.maps(), &item()).unwrap();
        writer.ingest(&Input::first("v", &*source, 65_536), &mut out).unwrap();
    }
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let mut writer = world.writer(9, options).await;
    let mut out = farsite_store::local_map::LocalMapWriter::create(&world.maps(), &item()).unwrap();
    let map = writer.ingest(&Input::first("v", &*source, 65_536), &mut out).unwrap();
    writer.flush().await.unwrap();
    let shipped = writer.stats.shipped_bytes.load(std::sync::atomic::Ordering::Relaxed);
    assert!(shipped < 10 << 20, "only what was not durable is sent again: {shipped}");
    assert_eq!(world.reader().read_small(&map, 64 << 20).await.unwrap(), content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_any_pack_is_named() {
    let world = World::in_folder().await;
    let (map, ..) = world.replicate(1, &item(), noise(4, 1 << 20)).await;
    let packs: Vec<_> = crate::common::objects(&world.dir.path().join("store"))
        .into_iter()
        .filter(|p| p.to_string_lossy().contains("/packs/"))
        .collect();
    let pack = &packs[0];
    let good = std::fs::read(pack).unwrap();
    // Every region: a block, the last blob (the node).
    for position in [48 + 12, good.len() / 2] {
        let mut bad = good.clone();
        bad[position] ^= 0x40;
        std::fs::write(pack, &bad).unwrap();
        let damage = world.reader().verify(&map, &ReadStats::default()).await.unwrap();
        assert!(!damage.is_empty(), "position {position}");
        assert!(pack.to_string_lossy().ends_with(&damage[0].object), "{damage:?}");
        let error = world.reader().read_small(&map, 4 << 20).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged(_)), "{error}");
    }
    std::fs::write(pack, &good[..good.len() / 2]).unwrap();
    assert!(!world.reader().verify(&map, &ReadStats::default()).await.unwrap().is_empty(), "truncated");
    std::fs::remove_file(pack).unwrap();
    let damage = world.reader().verify(&map, &ReadStats::default()).await.unwrap();
    assert!(damage[0].why.contains("missing"), "{damage:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_keys_cannot_open_what_is_stored() {
    let world = World::in_folder().await;
    world.replicate(1, &item(), noise(5, 100_000)).await;
    // All that an agent has: its signing key, the block secret, the store. None of them is an identity; a fresh one
    // is refused.
    let stranger = age::x25519::Identity::generate();
    let error = farsite_store::seal::Opener::new(&world.store, vec![stranger]).unwrap_err().to_string();
    assert!(error.contains("not among the store's recipients"), "{error}");
}
