//! Compaction: what is live moves, everything that reads finds it, and the packs that were emptied go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::faulty::Fate;
use crate::common::keeping::{
    at_most, checked, count, every_live_point_is_whole, found, founded_world, gc, id_of, live, map_of,
    replicate, restored, squeeze, stored_bytes, version,
};
use crate::common::{World, group, site};
use farsite_store::StoreError;
use farsite_store::keep::{CompactOptions, Compacted, Depth, GcOptions, MarkOptions, stats};
use farsite_store::ledger::{Ledger, Patience, Refusal, Statement};
use farsite_store::pack::object_key;
use farsite_store::read::LazyItem;
use farsite_store::seal::{ContentKeyObject, Sealer, Seals};

#[tokio::test(flavor = "multi_thread")]
async fn heavy_what_is_live_moves_and_everything_that_reads_finds_it() {
    for (place, world) in World::everywhere().await {
        found(&world).await;
        for id in 1..=6 {
            replicate(&world, &world.store, id).await.unwrap();
        }
        gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
        let (packs, bytes) = (count(&world, "packs"), stored_bytes(&world));
        let foreseen = CompactOptions { dry_run: true, ..at_most(90) };
        let dry = squeeze(&world, &world.store, &foreseen).await.unwrap();
        assert_eq!(count(&world, "packs"), packs, "{place}: a dry run writes nothing");
        let done = squeeze(&world, &world.store, &at_most(90)).await.unwrap();
        let of = |compacted: &Compacted| compacted.groups[&group()].clone();
        assert!(of(&done).refused.is_none() && of(&done).emptied.objects > 2, "{place}: {done:?}");
        assert_eq!(of(&dry).emptied, of(&done).emptied, "{place}: what was foreseen");
        assert_eq!(of(&dry).moved_bytes, of(&done).moved_bytes, "{place}");
        every_live_point_is_whole(&world).await;
        let collected = gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
        let gone = collected.groups[&group()].packs;
        assert_eq!(gone.objects, of(&done).emptied.objects, "{place}: {collected:?}");
        assert!(stored_bytes(&world) < bytes, "{place}");
        every_live_point_is_whole(&world).await;
        for depth in [Depth::Structure, Depth::Full] {
            let checked = checked(&world, depth).await;
            assert!(checked.is_ok() && checked.points == 2, "{place}: {checked:?}");
        }
        let points = live(&world).await;
        let (old, new) = (map_of(&world, &points[0]).await, map_of(&world, &points[1]).await);
        let (changed, exact) = world.reader().changed_bytes(&old, &new).await.unwrap();
        assert!(changed > 0 && exact, "{place}");
        let lazy = LazyItem::new(world.reader(), new, 16 << 20).unwrap();
        assert!(lazy.read(100_000..1_000_000).await.unwrap() == version(6)[100_000..1_000_000], "{place}");
        let ledger = Ledger::open(&world.store, &group()).await.unwrap();
        let (stats, of_nobody) = stats(&world.reader(), vec![ledger], &()).await.unwrap();
        assert_eq!((stats[&group()].garbage_packs.objects, of_nobody.objects), (0, 0), "{place}");
        // The agent goes on naming the packs that are gone, in its nodes and in its patches.
        for id in 7..=9 {
            replicate(&world, &world.store, id).await.unwrap();
            every_live_point_is_whole(&world).await;
        }
        // What was moved is moved again, and again.
        for id in 10..=if place == "s3" { 10 } else { 13 } {
            gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
            let again = squeeze(&world, &world.store, &at_most(95)).await.unwrap();
            assert!(of(&again).refused.is_none(), "{place}: {again:?}");
            gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
            every_live_point_is_whole(&world).await;
            let found = checked(&world, Depth::Full).await;
            assert!(found.is_ok(), "{place}: {found:?}");
            replicate(&world, &world.store, id).await.unwrap();
        }
        every_live_point_is_whole(&world).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_compaction_that_is_cut_off_anywhere_harms_nothing_and_collection_removes_what_it_left() {
    let world = founded_world().await;
    for id in 1..=5 {
        replicate(&world, &world.store, id).await.unwrap();
    }
    gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
    let impatient = GcOptions {
        give_up: Patience { compactions: jiff::SignedDuration::ZERO, ..Patience::default() },
        ..GcOptions::default()
    };
    let (mut cut, mut finished) = (1, false);
    while !finished {
        let (store, writes) = world.cut_off(cut);
        finished = squeeze(&world, &store, &at_most(90))
            .await
            .is_ok_and(|done| done.groups[&group()].refused.is_none() && writes.load(Ordering::SeqCst) < cut);
        every_live_point_is_whole(&world).await;
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        gc(&world, &world.store, 2, &impatient).await.unwrap();
        every_live_point_is_whole(&world).await;
        assert!(checked(&world, Depth::Full).await.is_ok(), "cut off at write {cut}");
        let ledger = Ledger::open(&world.store, &group()).await.unwrap();
        assert!(ledger.state().pins.is_empty(), "cut off at write {cut}");
        let (stats, _) = stats(&world.reader(), vec![ledger], &()).await.unwrap();
        let stats = &stats[&group()];
        assert_eq!(
            (stats.live_packs.objects, stats.of_open_runs.objects),
            (count(&world, "packs") as u64, 0),
            "cut off at write {cut}: {stats:?}"
        );
        cut += 1;
    }
    assert!(cut > 6, "{cut}");
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_racing_an_agent_restores_and_collection_never_loses_a_block() {
    let world = Arc::new(founded_world().await);
    replicate(&world, &world.store, 1).await.unwrap();
    let agent = {
        let world = world.clone();
        tokio::spawn(async move {
            let mut released = 0;
            for id in 2..=22 {
                match replicate(&world, &world.store, id).await {
                    Ok(_) => {}
                    Err(StoreError::Refused(Refusal::PinReleased { .. })) => released += 1,
                    Err(other) => panic!("run {id}: {other}"),
                }
            }
            released
        })
    };
    let collector = {
        let (world, agent) = (world.clone(), agent.abort_handle());
        tokio::spawn(async move {
            while !agent.is_finished() {
                gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
            }
        })
    };
    let mut rounds = 0;
    while !agent.is_finished() {
        let done = squeeze(&world, &world.store, &at_most(90)).await.unwrap();
        rounds += done.groups[&group()].rounds;
        for point in live(&world).await {
            let id = id_of(&point);
            match restored(&world, &point).await {
                Ok(content) => assert!(content == version(id), "point {id}"),
                Err(error) => {
                    let now = Ledger::open(&world.store, &group()).await.unwrap();
                    assert!(now.state().point(point.id()).unwrap().expired, "point {id}: {error}");
                }
            }
        }
    }
    let released = agent.await.unwrap();
    collector.await.unwrap();
    every_live_point_is_whole(&world).await;
    assert!(checked(&world, Depth::Full).await.is_ok());
    assert!(rounds > 1 && released < 20, "{rounds} rounds, {released} runs lost their pin");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_when_packs_are_moved_and_removed_goes_on() {
    let world = founded_world().await;
    for id in 1..=6 {
        replicate(&world, &world.store, id).await.unwrap();
    }
    gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
    let point = live(&world).await.remove(0);
    let (reader, map) = (world.reader(), map_of(&world, &point).await);
    let mounted = LazyItem::new(reader.clone(), map.clone(), 16 << 20).unwrap();
    let first = mounted.read(0..65_536).await.unwrap();
    assert!(first == version(5)[..65_536]);
    squeeze(&world, &world.store, &at_most(95)).await.unwrap();
    gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
    for offset in (0..map.size_bytes).step_by(65_536) {
        let read = mounted.read(offset..offset + 65_536).await.unwrap();
        assert!(read == version(5)[offset as usize..offset as usize + 65_536], "at {offset}");
    }
    assert!(reader.read_small(&map, 1 << 30).await.unwrap() == version(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_whose_pin_was_given_up_tells_readers_nothing() {
    let world = founded_world().await;
    for id in 1..=5 {
        replicate(&world, &world.store, id).await.unwrap();
    }
    gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
    // The pin goes when the first pack arrives.
    let world = Arc::new(world);
    let other = world.clone();
    let seen = Arc::new(AtomicU64::new(0));
    let store = world.with_faults(Arc::new(move |operation| {
        if operation.name == "create"
            && operation.key.starts_with("packs/")
            && seen.fetch_add(1, Ordering::SeqCst) == 0
        {
            let other = other.clone();
            let give_up = async move {
                let mut ledger = Ledger::open(&other.store, &group()).await.unwrap();
                let runs: Vec<_> = ledger.state().pins.keys().copied().collect();
                let given_up = Statement::GcBegun { released: vec![], runs };
                ledger.append(&other.standby, |_| Ok(given_up.clone())).await.unwrap();
            };
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(give_up));
        }
        Fate::Pass
    }));
    let done = squeeze(&world, &store, &at_most(90)).await.unwrap();
    let of = &done.groups[&group()];
    assert!(of.refused.is_some() && of.rounds == 0, "{done:?}");
    assert!(Ledger::open(&world.store, &group()).await.unwrap().state().remapped.is_empty());
    gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
    every_live_point_is_whole(&world).await;
    assert!(checked(&world, Depth::Full).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_compactions_at_once_move_everything_once() {
    let world = Arc::new(founded_world().await);
    for id in 1..=6 {
        replicate(&world, &world.store, id).await.unwrap();
    }
    gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
    let both = (0..2).map(|_| {
        let world = world.clone();
        tokio::spawn(async move { squeeze(&world, &world.store, &at_most(90)).await.unwrap() })
    });
    let both: Vec<_> = both.collect();
    let mut done = 0;
    for one in both {
        done += one.await.unwrap().groups[&group()].rounds;
    }
    assert!(done >= 1);
    every_live_point_is_whole(&world).await;
    gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
    every_live_point_is_whole(&world).await;
    assert!(checked(&world, Depth::Full).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_a_compacted_pack_is_found_and_whom_it_touches_is_told() {
    let world = founded_world().await;
    for id in 1..=6 {
        replicate(&world, &world.store, id).await.unwrap();
    }
    gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
    squeeze(&world, &world.store, &at_most(95)).await.unwrap();
    gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
    let ledger = Ledger::open(&world.store, &group()).await.unwrap();
    let home = *ledger.state().remapped.values().flatten().next().unwrap();
    let path = world.path(&object_key(&home));
    let good = std::fs::read(&path).unwrap();
    for at in [60, good.len() / 2, good.len() - 60, good.len() - 400] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let checked = checked(&world, Depth::Full).await;
        assert!(!checked.is_ok(), "a flip at {at}");
        let broken: Vec<_> =
            live(&world).await.iter().map(farsite_store::ledger::CommittedPoint::id).collect();
        for point in live(&world).await {
            // Whoever cannot be restored is named, and whoever is called untouched can be.
            match restored(&world, &point).await {
                Ok(content) => assert!(content == version(id_of(&point)), "a flip at {at}"),
                Err(StoreError::Damaged(_)) => {
                    assert!(!checked.untouched.contains(&point.id()), "a flip at {at}: {checked:?}");
                }
                Err(other) => panic!("{other}"),
            }
        }
        let touched: Vec<_> =
            checked.damage.iter().flat_map(|found| found.touches.iter().map(|(point, _)| *point)).collect();
        assert!(touched.iter().all(|point| broken.contains(point)) && !touched.is_empty(), "{checked:?}");
        std::fs::write(&path, &good).unwrap();
    }
    std::fs::remove_file(&path).unwrap();
    let found = checked(&world, Depth::Structure).await;
    assert!(!found.is_ok() && found.damage.iter().any(|found| !found.touches.is_empty()), "{found:?}");
    let refused = gc(&world, &world.store, 1, &GcOptions::default()).await.unwrap();
    assert!(refused.groups[&group()].refused.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_live_is_found_with_hardly_any_memory_as_well() {
    let world = founded_world().await;
    for id in 1..=6 {
        replicate(&world, &world.store, id).await.unwrap();
    }
    gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
    let plenty = CompactOptions { dry_run: true, ..at_most(90) };
    let tight = MarkOptions { memory_bytes: 0, entries_for_tests: Some(60) };
    let little = CompactOptions { mark: tight, ..plenty };
    let (plenty, little) = (
        squeeze(&world, &world.store, &plenty).await.unwrap(),
        squeeze(&world, &world.store, &little).await.unwrap(),
    );
    let of = |done: &Compacted| done.groups[&group()].clone();
    assert!(of(&little).refused.is_none(), "{little:?}");
    assert_eq!(of(&plenty).live_packs, of(&little).live_packs);
    // What cannot be told to be dead counts as live: less is moved, never too much.
    assert!(of(&little).emptied.objects <= of(&plenty).emptied.objects, "{little:?}");
    let done = squeeze(&world, &world.store, &CompactOptions { mark: tight, ..at_most(90) }).await.unwrap();
    assert!(of(&done).refused.is_none(), "{done:?}");
    gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
    every_live_point_is_whole(&world).await;
    assert!(checked(&world, Depth::Full).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_standby_or_an_operator_may_seal_what_is_moved() {
    let world = founded_world().await;
    let run = farsite_model::RunId::from_random(1);
    let begin = async |signer, at: &str, seals| {
        let sealer = Sealer::begin_for(&world.store, signer, &site(at), &group(), run, seals).await.unwrap();
        ContentKeyObject::read(&world.store, sealer.content_key()).await
    };
    assert!(begin(&world.standby, "south", Seals::Moved).await.is_ok());
    assert!(begin(&world.operator, "south", Seals::Moved).await.is_ok());
    assert!(begin(&world.source, "north", Seals::Packs).await.is_ok());
    for (signer, at, seals) in [
        (&world.source, "north", Seals::Moved),
        (&world.standby, "north", Seals::Moved),
        (&world.standby, "south", Seals::Packs),
        (&world.operator, "north", Seals::Packs),
    ] {
        let refused = begin(signer, at, seals).await;
        assert!(matches!(refused, Err(StoreError::Damaged(_))), "{at} {seals:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn collection_ends_uploads_that_were_left_behind_and_a_store_that_cannot_stops_it_not() {
    let world = founded_world().await;
    for id in 1..=3 {
        replicate(&world, &world.store, id).await.unwrap();
    }
    let asked = Arc::new(AtomicU64::new(0));
    let counted = asked.clone();
    let store = world.with_faults(Arc::new(move |operation| {
        if operation.name != "end_uploads" {
            return Fate::Pass;
        }
        counted.fetch_add(1, Ordering::SeqCst);
        Fate::Unreachable
    }));
    let dry = GcOptions { dry_run: true, ..GcOptions::default() };
    gc(&world, &store, 1, &dry).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 0, "a dry run ends nothing");
    let done = gc(&world, &store, 1, &GcOptions::default()).await.unwrap();
    assert!(done.removed().objects > 0 && asked.load(Ordering::SeqCst) == 1, "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_of_live_packs_are_lengthened_when_little_of_them_is_left() {
    let world = founded_world().await;
    for id in 1..=4 {
        replicate(&world, &world.store, id).await.unwrap();
    }
    let now = world.store.backend.time().await.unwrap();
    let day = jiff::SignedDuration::from_hours(24);
    let options = GcOptions { extend_locks: Some(day * 30), ..GcOptions::default() };
    for (days_left, lengthened) in [(9, true), (11, false)] {
        let until = farsite_model::StoreTime(now.0 + day * days_left);
        let asked = Arc::new(AtomicU64::new(0));
        let counted = asked.clone();
        let store = world.with_faults(Arc::new(move |operation| match operation.name {
            "locked" => Fate::LockedUntil(until),
            "lock" => {
                counted.fetch_add(1, Ordering::SeqCst);
                Fate::LockedUntil(until)
            }
            _ => Fate::Pass,
        }));
        let done = gc(&world, &store, 2, &options).await.unwrap();
        let of = &done.groups[&group()];
        let expected = if lengthened { of.live_packs } else { farsite_store::keep::Removed::default() };
        assert_eq!(
            (of.relocked, asked.load(Ordering::SeqCst)),
            (expected, expected.objects),
            "{days_left} days"
        );
    }
    // A store without locks is left alone.
    let done = gc(&world, &world.store, 2, &options).await.unwrap();
    assert_eq!(done.groups[&group()].relocked.objects, 0);
    assert!(done.unlocked_because.is_none());
}
