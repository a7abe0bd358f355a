//! Repair: what is damaged at the store is noted, the agent sends it again, and older points are mended with it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::common::keeping::{
    BLOCK, at_most, checked, count, every_live_point_is_whole, founded_world, gc, id_of, live, mend,
    replicate, restored, squeeze, stored_bytes, version,
};
use crate::common::{World, group};
use farsite_model::content::{InMemory, ReadAt};
use farsite_model::{ItemId, ItemKind};
use farsite_store::StoreError;
use farsite_store::ingest::{IngestOptions, Input};
use farsite_store::keep::{Depth, GcOptions};
use farsite_store::ledger::{Ledger, Patience, Refusal};
use farsite_store::local_map::{LocalMap, LocalMapWriter};

/// In the first pack the third block of the volume begins near here. It is the same in every version.
const CONSTANT_BLOCK: usize = 48 + 2 * 65_600 + 1000;

/// The first pack of the first run.
fn first_pack(world: &World) -> PathBuf {
    let mut packs = crate::common::objects(&world.objects.join("packs"));
    packs.sort_by_key(|path| path.file_name().map(std::ffi::OsStr::to_owned));
    packs.remove(0)
}

fn flip(path: &PathBuf, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// What the ledger says of each live point is so: one without a flaw opens and is itself, one that is damaged does not open.
async fn the_ledger_tells_the_truth(world: &World, when: &str) {
    for point in live(world).await {
        match restored(world, &point).await {
            Ok(content) => {
                assert!(content == version(id_of(&point)), "{when}: another volume came out");
                assert!(point.damaged.is_empty(), "{when}: point {} is called damaged", id_of(&point));
            }
            Err(StoreError::Damaged(_)) => {
                assert!(!point.damaged.is_empty(), "{when}: point {} is called good", id_of(&point));
            }
            Err(other) => panic!("{when}: {other}"),
        }
    }
}

async fn default_point(world: &World) -> Option<u64> {
    let ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.state().default_point().map(id_of)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_sent_again_by_the_next_run_and_mends_older_points() {
    let world = founded_world().await;
    for id in 1..=4 {
        replicate(&world, &world.store, id).await.unwrap();
    }
    flip(&first_pack(&world), CONSTANT_BLOCK);
    let before = (count(&world, "packs"), count(&world, "ledger"));
    let dry = mend(&world, &world.store, true).await.unwrap();
    assert_eq!((dry.noted.len(), dry.lost_blobs, dry.healed_blobs), (4, 1, 0), "{dry:?}");
    assert_eq!((count(&world, "packs"), count(&world, "ledger")), before, "a dry run writes nothing");

    let noted = mend(&world, &world.store, false).await.unwrap();
    assert!(!noted.is_whole() && noted.newest_good.is_none(), "{noted:?}");
    assert_eq!((noted.noted.len(), noted.lost_blobs, noted.mended.len()), (4, 1, 0), "{noted:?}");
    assert_eq!(default_point(&world).await, None, "no failover takes one of them by itself");
    the_ledger_tells_the_truth(&world, "noted").await;

    let bytes = stored_bytes(&world);
    replicate(&world, &world.store, 5).await.unwrap();
    let shipped = stored_bytes(&world) - bytes;
    assert!(shipped < 1_200_000, "the four blocks of that pack and what changed: {shipped}");
    assert_eq!(default_point(&world).await, Some(5));
    assert!(restored(&world, &live(&world).await[4]).await.unwrap() == version(5));

    let mended = mend(&world, &world.store, false).await.unwrap();
    assert!(mended.is_whole() && mended.healed_blobs == 1, "{mended:?}");
    assert_eq!(mended.mended.len(), 4, "{mended:?}");
    every_live_point_is_whole(&world).await;
    assert!(checked(&world, Depth::Full).await.is_ok());
    let packs = count(&world, "packs");
    gc(&world, &world.store, 5, &GcOptions::default()).await.unwrap();
    assert_eq!(count(&world, "packs"), packs - 1, "the damaged pack is garbage");
    squeeze(&world, &world.store, &at_most(95)).await.unwrap();
    replicate(&world, &world.store, 6).await.unwrap();
    every_live_point_is_whole(&world).await;
    let again = mend(&world, &world.store, false).await.unwrap();
    assert!(again.is_whole() && again.noted.is_empty() && again.mended.is_empty(), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_damaged_the_ledger_tells_the_truth_and_new_points_are_whole() {
    type Harm = fn(&World, &PathBuf);
    let harms: [(&str, Harm); 6] = [
        ("a block", |_, pack| flip(pack, CONSTANT_BLOCK)),
        ("the index", |_, pack| flip(pack, pack.metadata().unwrap().len() as usize - 100)),
        ("the end is cut off", |_, pack| {
            let bytes = std::fs::read(pack).unwrap();
            std::fs::write(pack, &bytes[..bytes.len() - 60_000]).unwrap();
        }),
        ("a pack is gone", |_, pack| std::fs::remove_file(pack).unwrap()),
        ("a content key is gone", |world, _| {
            // That of the newest run: with it goes the root of the newest map.
            let keys = crate::common::objects(&world.objects.join("keys"));
            let newest = keys.iter().max_by_key(|key| key.metadata().unwrap().modified().unwrap()).unwrap();
            std::fs::remove_file(newest).unwrap();
        }),
        ("the root is gone", |world, _| {
            let mut packs = crate::common::objects(&world.objects.join("packs"));
            packs.sort_by_key(|path| path.file_name().map(std::ffi::OsStr::to_owned));
            std::fs::remove_file(packs.pop().unwrap()).unwrap();
        }),
    ];
    for (what, harm) in harms {
        let world = founded_world().await;
        for id in 1..=4 {
            replicate(&world, &world.store, id).await.unwrap();
        }
        harm(&world, &first_pack(&world));
        let noted = mend(&world, &world.store, false).await.unwrap();
        the_ledger_tells_the_truth(&world, what).await;
        assert!(!noted.found.is_empty(), "{what}: {noted:?}");
        replicate(&world, &world.store, 5).await.unwrap();
        assert!(restored(&world, &live(&world).await[4]).await.unwrap() == version(5), "{what}");
        let mended = mend(&world, &world.store, false).await.unwrap();
        the_ledger_tells_the_truth(&world, what).await;
        assert!(default_point(&world).await == Some(5), "{what}: {mended:?}");
        println!(
            "{what}: {} noted, {} lost, {} mended",
            noted.noted.len(),
            mended.lost_blobs,
            mended.mended.len()
        );
        // What stays damaged goes with its points; then all is well, and collection goes on.
        for id in 6..=7 {
            replicate(&world, &world.store, id).await.unwrap();
        }
        gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
        let expired = Ledger::open(&world.store, &group()).await.unwrap();
        let left: Vec<_> = expired.state().live_points().map(id_of).collect();
        assert_eq!(left, [6, 7], "{what}");
        mend(&world, &world.store, false).await.unwrap();
        let collected = gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
        assert!(collected.groups[&group()].refused.is_none(), "{what}: {collected:?}");
        let found = checked(&world, Depth::Full).await;
        assert!(found.is_ok(), "{what}: {found:?}");
        every_live_point_is_whole(&world).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_told_of_no_change_sends_what_is_damaged_all_the_same() {
    let world = founded_world().await;
    for id in 1..=2 {
        replicate(&world, &world.store, id).await.unwrap();
    }
    flip(&first_pack(&world), CONSTANT_BLOCK);
    mend(&world, &world.store, false).await.unwrap();
    let state = Ledger::open(&world.store, &group()).await.unwrap().state().clone();
    let item = ItemId::new(ItemKind::Volume, "v");
    let previous = LocalMap::open(&world.maps(), &item).unwrap().unwrap();
    let previous = previous.without(&state.damaged_packs(), state.damage_told).unwrap();
    assert!(previous.is_hit());
    let mut writer = world.writer(3, IngestOptions::within(64 << 20, (3, 3))).await;
    let mut out = LocalMapWriter::create(&world.maps(), &item).unwrap();
    out.without_damage_until(state.damage_told);
    let content: Arc<dyn ReadAt> = Arc::new(InMemory(version(2)));
    let input = Input { changed: Some(&[]), ..Input::first("v", &*content, BLOCK as u32) };
    let map = writer.ingest(&input.since(Some(&previous)), &mut out).unwrap();
    writer.flush().await.unwrap();
    out.commit().unwrap();
    assert!(world.reader().read_small(&map, 1 << 30).await.unwrap() == version(2));
    let now = LocalMap::open(&world.maps(), &item).unwrap().unwrap();
    let now = now.without(&state.damaged_packs(), state.damage_told + 1).unwrap();
    assert!(!now.is_hit(), "nothing of it lies there any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_is_cut_off_anywhere_harms_nothing_and_the_next_one_ends_it() {
    let impatient = GcOptions {
        give_up: Patience { compactions: jiff::SignedDuration::ZERO, ..Patience::default() },
        ..GcOptions::default()
    };
    let mut cut = 1;
    loop {
        let world = founded_world().await;
        for id in 1..=3 {
            replicate(&world, &world.store, id).await.unwrap();
        }
        flip(&first_pack(&world), CONSTANT_BLOCK);
        mend(&world, &world.store, false).await.unwrap();
        replicate(&world, &world.store, 4).await.unwrap();
        let (store, writes) = world.cut_off(cut);
        let ended = mend(&world, &store, false).await.is_ok_and(|done| done.is_whole());
        let uncut = writes.load(Ordering::SeqCst) < cut;
        for point in live(&world).await.iter().filter(|point| point.damaged.is_empty()) {
            assert!(
                restored(&world, point).await.unwrap() == version(id_of(point)),
                "cut off at write {cut}"
            );
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        gc(&world, &world.store, 4, &impatient).await.unwrap();
        let done = mend(&world, &world.store, false).await.unwrap();
        assert!(done.is_whole(), "cut off at write {cut}: {done:?}");
        every_live_point_is_whole(&world).await;
        assert!(live(&world).await.iter().all(|point| point.damaged.is_empty()), "cut off at write {cut}");
        let ledger = Ledger::open(&world.store, &group()).await.unwrap();
        assert!(ledger.state().pins.is_empty(), "cut off at write {cut}");
        if uncut {
            assert!(ended);
            break;
        }
        cut += 1;
    }
    assert!(cut > 6, "{cut}");
}

#[tokio::test(flavor = "multi_thread")]
async fn repair_racing_an_agent_collection_and_compaction_never_loses_a_block() {
    let world = Arc::new(founded_world().await);
    for id in 1..=3 {
        replicate(&world, &world.store, id).await.unwrap();
    }
    flip(&first_pack(&world), CONSTANT_BLOCK);
    mend(&world, &world.store, false).await.unwrap();
    let agent = {
        let world = world.clone();
        tokio::spawn(async move {
            for id in 4..=12 {
                match replicate(&world, &world.store, id).await {
                    Ok(_) | Err(StoreError::Refused(Refusal::PinReleased { .. })) => {}
                    Err(other) => panic!("run {id}: {other}"),
                }
            }
        })
    };
    let collector = {
        let (world, agent) = (world.clone(), agent.abort_handle());
        tokio::spawn(async move {
            while !agent.is_finished() {
                gc(&world, &world.store, 3, &GcOptions::default()).await.unwrap();
                squeeze(&world, &world.store, &at_most(60)).await.unwrap();
            }
        })
    };
    while !agent.is_finished() {
        mend(&world, &world.store, false).await.unwrap();
    }
    agent.await.unwrap();
    collector.await.unwrap();
    let done = mend(&world, &world.store, false).await.unwrap();
    assert!(done.is_whole(), "{done:?}");
    every_live_point_is_whole(&world).await;
}
