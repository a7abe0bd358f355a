//! Every kind of object, damaged in every way: it is named, nothing wrong is ever returned, and the newest undamaged whole
//! point is known.

mod common;

use std::path::Path;

use common::{World, founded, group, noise, restore, run_to_commit, site};
use farsite_model::{Epoch, ItemId, ItemKind, PointId, RunId};
use farsite_store::backend::race;
use farsite_store::hex::Hex;
use farsite_store::ledger::{CommittedPoint, Ledger};
use farsite_store::logs::{self, SegmentHeader};
use farsite_store::seal::Sealer;
use farsite_store::{Store, StoreError};

const TIMELINE: Hex<8> = Hex([7; 8]);

/// Three points of one volume, and two log segments.
async fn filled(world: &World) {
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    for id in 1..=3 {
        // Nothing in common, so that each point has packs of its own.
        run_to_commit(world, &world.store, id, content(id)).await.unwrap();
    }
    let run = RunId::from_random(9);
    let sealer = Sealer::begin(&world.store, &world.source, &site("north"), &group(), run).await.unwrap();
    for sequence in 0..2 {
        let header = SegmentHeader {
            version: 1,
            group: group(),
            site: site("north"),
            item: ItemId::new(ItemKind::Mariadb, "main"),
            epoch: Epoch(1),
            timeline: TIMELINE,
            sequence,
            file: "bin.000001".into(),
            first: sequence * 1000,
            last: (sequence + 1) * 1000,
            covers: None,
            content_key: sealer.content_key(),
        };
        logs::write(&world.store, &world.source, &sealer, &header, &noise(sequence, 1000)).await.unwrap();
    }
}

fn content(id: u64) -> Vec<u8> {
    noise(id, 400_000)
}

/// Reads everything. Returns the objects that were named; panics when anything wrong comes out.
async fn read_all(world: &World) -> Vec<String> {
    let mut named = Vec::new();
    let mut note = |error: StoreError| match error {
        StoreError::Damaged(found) => named.extend(found.into_iter().map(|d| d.object)),
        other => panic!("not named as damage: {other}"),
    };
    let store = match Store::open(world.store.backend.clone(), Some(&world.store.id)).await {
        Ok(store) => store,
        Err(StoreError::NotInitialised { .. } | StoreError::WrongStore { .. }) => {
            return vec!["format".into()];
        }
        Err(error) => {
            note(error);
            return named;
        }
    };
    let ledger = Ledger::open(&store, &group()).await.unwrap();
    ledger.state().damage.iter().for_each(|d| note(StoreError::Damaged(vec![d.clone()])));
    let mut good = Vec::new();
    for point in &ledger.state().points {
        match restore(world, point).await {
            Ok(bytes) => {
                let id = (1..=3).find(|id| PointId::from_random(*id) == point.id()).unwrap();
                assert!(bytes == content(id), "a wrong volume came out of point {id}");
                good.push(point.id());
            }
            Err(error) => note(error),
        }
    }
    // The newest undamaged whole point: what a failover may offer.
    let newest: Option<&CommittedPoint> =
        ledger.state().points.iter().rev().find(|p| p.said.whole && good.contains(&p.id()));
    assert!(newest.is_some(), "one damaged object leaves an undamaged point");
    let segments = logs::list(&store, &group(), &TIMELINE, None).await.unwrap();
    if segments.len() < 2 {
        named.push(format!("logs/cloud/{TIMELINE}/"));
    }
    for (index, segment) in segments.iter().enumerate() {
        match logs::read(&store, &world.reader().opener, segment).await {
            Ok((_, bytes)) => assert!(bytes == noise(index as u64, 1000), "a wrong log came out"),
            Err(StoreError::Damaged(found)) => named.extend(found.into_iter().map(|d| d.object)),
            Err(other) => panic!("{other}"),
        }
    }
    named
}

fn of_kind(world: &World, kind: &str) -> Vec<String> {
    let root = &world.objects;
    let key = |path: &Path| path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
    common::objects(root).iter().map(|path| key(path)).filter(|key| key.starts_with(kind)).collect()
}

fn check(place: &str, what: &str, object: &str, named: &[String]) {
    // A removed log segment shows as the end of its timeline; all else is named itself.
    let hit = named.iter().any(|n| n == object || (n.ends_with('/') && object.starts_with(n.as_str())));
    assert!(hit, "{place}: {what} of {object} was not named: {named:?}");
}

const KINDS: [&str; 6] = ["format", "keys/", "packs/", "manifests/", "ledger/", "logs/"];

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_flipped_byte_anywhere_in_any_kind_of_object_is_named() {
    for (place, world) in World::everywhere().await {
        filled(&world).await;
        assert!(read_all(&world).await.is_empty());
        for kind in KINDS {
            let objects = of_kind(&world, kind);
            assert!(!objects.is_empty(), "{kind}");
            let object = &objects[objects.len() / 2];
            let path = world.path(object);
            let good = std::fs::read(&path).unwrap();
            let last = good.len() - 1;
            // The header, the signature, the body, the end. A pack's header and trailer are not read by a restore: they are
            // checked by `pack::check_whole` below.
            let offsets: Vec<usize> = match kind {
                "packs/" => vec![48, 60, last / 3, last / 2],
                _ => vec![0, 12, 40, 100, 170, last / 2, last],
            };
            for offset in offsets {
                for bit in [0x01, 0x20, 0x80] {
                    let mut bad = good.clone();
                    bad[offset] ^= bit;
                    std::fs::write(&path, &bad).unwrap();
                    let named = read_all(&world).await;
                    check(place, &format!("bit {bit:#x} at {offset}"), object, &named);
                }
            }
            std::fs::write(&path, &good).unwrap();
        }
        assert!(read_all(&world).await.is_empty(), "{place}: all is mended");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_or_removed_object_of_any_kind_is_named() {
    for (place, world) in World::everywhere().await {
        filled(&world).await;
        for kind in KINDS {
            let objects = of_kind(&world, kind);
            let object = &objects[objects.len() / 2];
            let path = world.path(object);
            let good = std::fs::read(&path).unwrap();
            // (What is cut off a pack's end is its index, which a restore does not need; `check_whole` tells.)
            let little = if kind == "packs/" { good.len() / 4 } else { good.len() - 60 };
            for keep in [0, 10, good.len() / 2, little] {
                std::fs::write(&path, &good[..keep]).unwrap();
                check(place, &format!("cutting to {keep}"), object, &read_all(&world).await);
            }
            std::fs::remove_file(&path).unwrap();
            check(place, "removal", object, &read_all(&world).await);
            std::fs::write(&path, &good).unwrap();
        }
        assert!(read_all(&world).await.is_empty(), "{place}: all is mended");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_swapped_objects_of_any_kind_and_an_older_one_in_the_place_of_a_newer_are_named() {
    for (place, world) in World::everywhere().await {
        filled(&world).await;
        for kind in ["keys/", "packs/", "manifests/", "ledger/", "logs/"] {
            let objects = of_kind(&world, kind);
            let (a, b) = (&objects[0], &objects[1]);
            let (path_a, path_b) = (world.path(a), world.path(b));
            let (good_a, good_b) = (std::fs::read(&path_a).unwrap(), std::fs::read(&path_b).unwrap());
            std::fs::write(&path_b, &good_a).unwrap();
            check(place, "replacement", b, &read_all_tolerant(&world, kind).await);
            std::fs::write(&path_a, &good_b).unwrap();
            let named = read_all_tolerant(&world, kind).await;
            // Of two packs of one point the one with the block map's root hides the other.
            let seen = if kind == "packs/" && named.contains(a) { a } else { b };
            check(place, "the swap", seen, &named);
            std::fs::write(&path_a, &good_a).unwrap();
            std::fs::write(&path_b, &good_b).unwrap();
        }
        assert!(read_all(&world).await.is_empty(), "{place}: all is mended");
    }
}

/// Two swapped ledger entries may be the founding and a point: then no point is left, and that is said.
async fn read_all_tolerant(world: &World, kind: &str) -> Vec<String> {
    if kind != "ledger/" {
        return read_all(world).await;
    }
    let ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.state().damage.iter().map(|d| d.object.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_well_signed_entry_in_the_place_of_another_is_found_out_by_the_chain() {
    let world = World::in_folder().await;
    filled(&world).await;
    // Signed for number 1 of this very ledger, and yet not what number 2 was written after.
    let chain: farsite_store::chain::Chain<farsite_store::ledger::Statement> =
        farsite_store::chain::Chain::new(
            &world.store,
            "ledger/cloud".into(),
            farsite_store::signed::Kind::Ledger,
        );
    let (entries, _) = chain.read(farsite_store::chain::Head::START).await.unwrap();
    let head = farsite_store::chain::Head { next: 1, prev: entries[0].hash };
    let path = world.path("ledger/cloud/0000000000000001");
    std::fs::remove_file(&path).unwrap();
    let says = farsite_store::ledger::Statement::PinBegun { run: RunId::from_random(5), points: vec![] };
    chain.append(head, &world.source, says).await.unwrap().unwrap();
    let ledger = Ledger::open(&world.store, &group()).await.unwrap();
    assert_eq!(ledger.state().damage.len(), 1);
    assert!(ledger.state().damage[0].object.ends_with("0000000000000001"));
    assert!(ledger.state().damage[0].why.contains("replaced"));
    assert_eq!(ledger.state().points.len(), 2, "what was written behind it still counts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_checks_itself_without_any_key() {
    let world = World::in_folder().await;
    filled(&world).await;
    let object = &of_kind(&world, "packs/")[0];
    let id: Hex<16> = object.rsplit('/').next().unwrap().parse().unwrap();
    let good = std::fs::read(world.path(object)).unwrap();
    farsite_store::pack::check_whole(&id, &good).unwrap();
    for offset in [0, 9, 17, 33, 48, good.len() / 2, good.len() - 48, good.len() - 33, good.len() - 1] {
        let mut bad = good.clone();
        bad[offset] ^= 0x10;
        assert!(farsite_store::pack::check_whole(&id, &bad).is_err(), "offset {offset}");
    }
    assert!(farsite_store::pack::check_whole(&id, &good[..good.len() - 60]).is_err(), "its end is cut off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_is_not_called_damage() {
    let world = World::in_folder().await;
    filled(&world).await;
    let ledger = Ledger::open(&world.store, &group()).await.unwrap();
    let point = ledger.state().points[0].clone();
    let mut shaky = world.reader();
    shaky.store = world.with_faults(std::sync::Arc::new(|operation| match operation.name {
        "get_range" => common::faulty::Fate::NoAnswer,
        _ => common::faulty::Fate::Pass,
    }));
    let manifest =
        farsite_store::manifest::Manifest::read(&world.store, &group(), point.id(), &point.said.manifest)
            .await
            .unwrap();
    let error =
        shaky.verify(&manifest.items[0].data, &farsite_store::read::ReadStats::default()).await.unwrap_err();
    assert!(matches!(error, StoreError::Backend(_)), "{error}");
    race::race(&world.store.backend, "x", 1, 2).await.unwrap();
}
