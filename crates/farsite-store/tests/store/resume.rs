//! A run that was interrupted goes on: what it has in the store counts, and only that.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use crate::common::faulty::Fate;
use crate::common::{World, group, noise, site};
use farsite_model::content::{InMemory, ReadAt};
use farsite_model::{ItemId, ItemKind, RunId};
use farsite_store::ingest::{IngestOptions, Input, RunWriter};
use farsite_store::local_map::LocalMapWriter;
use farsite_store::map::MapRoot;
use farsite_store::seal::Sealer;
use farsite_store::{Store, StoreError};

const BLOCK: usize = 65_536;

/// One attempt of run 1; what it shipped, and the map if it got through.
async fn attempt(world: &World, store: &Store, content: &[u8]) -> (u64, Result<MapRoot, StoreError>) {
    let run = RunId::from_random(1);
    let sealer = Sealer::begin(store, &world.source, &site("north"), &group(), run).await.unwrap();
    // Three blocks fill a pack; the node that names all six lies behind the last of them.
    let options = IngestOptions { pack_bytes: 4 * BLOCK, ..IngestOptions::within(64 << 20, (3, 3)) };
    let log = world.dir.path().join("resume");
    let mut writer =
        RunWriter::begin(store, sealer, world.secret.clone(), options, &log, Arc::default()).unwrap();
    let item = ItemId::new(ItemKind::Volume, "v");
    let mut out = LocalMapWriter::create(&world.maps(), &item).unwrap();
    let content: Arc<dyn ReadAt> = Arc::new(InMemory(content.to_vec()));
    let map = writer.ingest(&Input::first("v", &*content, BLOCK as u32), &mut out);
    let result = match map {
        Ok(map) => writer.flush().await.map(|()| map),
        Err(error) => Err(error),
    };
    (writer.stats.shipped_bytes.load(Ordering::Relaxed), result)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_blocks_never_arrived_is_not_taken_from_the_interrupted_run() {
    for (place, world) in World::everywhere().await {
        let content = noise(1, 6 * BLOCK);
        // The first pack is lost on its way, the second one, which holds the node, arrives.
        let lost: Mutex<Option<String>> = Mutex::default();
        let store = world.with_faults(Arc::new(move |operation| {
            if operation.name != "create" || !operation.key.starts_with("packs/") {
                return Fate::Pass;
            }
            let mut lost = lost.lock().unwrap();
            let lost = lost.get_or_insert_with(|| operation.key.to_owned());
            if lost == operation.key { Fate::NoAnswer } else { Fate::Pass }
        }));
        let (shipped, result) = attempt(&world, &store, &content).await;
        assert!(result.is_err() && shipped > 0, "{place}: one pack arrived, the run failed");
        let (again, map) = attempt(&world, &world.store, &content).await;
        assert!(again < 5 * BLOCK as u64, "{place}: the pack that arrived counts");
        let back = world.reader().read_small(&map.unwrap(), 1 << 20).await.unwrap();
        assert!(back == content, "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_log_that_was_cut_or_changed_costs_sending_again_and_nothing_else() {
    let world = World::in_folder().await;
    let content = noise(2, 6 * BLOCK);
    let (_, map) = attempt(&world, &world.store, &content).await;
    map.unwrap();
    let path = world.dir.path().join("resume");
    let good = std::fs::read(&path).unwrap();
    let mut places: HashSet<usize> = (0..good.len()).step_by(97).collect();
    places.insert(good.len() - 1);
    for place in places {
        let mut flipped = good.clone();
        flipped[place] ^= 0x01;
        for bad in [flipped, good[..place].to_vec()] {
            std::fs::write(&path, &bad).unwrap();
            let (_, map) = attempt(&world, &world.store, &content).await;
            let back = world.reader().read_small(&map.unwrap(), 1 << 20).await.unwrap();
            assert!(back == content, "changed at {place}");
        }
    }
}
