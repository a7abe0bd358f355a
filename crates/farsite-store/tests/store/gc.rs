//! Collection: what nothing needs goes, what anything needs stays, whatever runs beside it and wherever it is cut off.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::faulty::Fate;
use crate::common::{World, committed, founded, group, manifest, noise, restore, run_to_commit, site};
use farsite_model::{PointId, RunId};
use farsite_store::blob::{self, BlobRef};
use farsite_store::hex::Hex;
use farsite_store::keep::{Collected, GcOptions, MarkOptions, collect};
use farsite_store::ledger::{CommittedPoint, GroupState, Ledger, Patience, Refusal, Statement};
use farsite_store::map::{MapRoot, Node};
use farsite_store::pack::{PackBuilder, PatchBase, object_key};
use farsite_store::seal::{BlobKind, Sealer};
use farsite_store::{Store, StoreError};

const BLOCK: usize = 65_536;

/// Keeps the newest `last` points.
fn keeping(last: usize) -> impl Fn(&GroupState) -> Vec<PointId> + Sync {
    move |state| {
        let live: Vec<PointId> = state.live_points().map(CommittedPoint::id).collect();
        live[..live.len().saturating_sub(last)].to_vec()
    }
}

async fn founded_world() -> World {
    let world = World::in_folder().await;
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    world
}

/// Pins as an agent does, then runs to its commit.
async fn replicate(world: &World, store: &Store, id: u64, content: Vec<u8>) -> Result<MapRoot, StoreError> {
    let mut ledger = Ledger::open(store, &group()).await?;
    let points: Vec<PointId> = ledger.state().live_points().map(CommittedPoint::id).collect();
    let points = points[points.len().saturating_sub(2)..].to_vec();
    let run = RunId::from_random(id);
    ledger.append(&world.source, |_| Ok(Statement::PinBegun { run, points: points.clone() })).await?;
    run_to_commit(world, store, id, content).await
}

async fn gc(world: &World, store: &Store, last: usize, options: &GcOptions) -> Result<Collected, StoreError> {
    let mut reader = world.reader();
    reader.store = store.clone();
    let ledger = Ledger::open(store, &group()).await?;
    collect(&reader, vec![ledger], &world.standby, &keeping(last), options, &()).await
}

/// The content of version `id`: a fixed half, and blocks of its own.
fn version(id: u64) -> Vec<u8> {
    let mut content = noise(0, 20 * BLOCK);
    content.extend(noise(1000 + id, 10 * BLOCK));
    content
}

async fn live(world: &World) -> Vec<CommittedPoint> {
    Ledger::open(&world.store, &group()).await.unwrap().state().live_points().cloned().collect()
}

fn id_of(point: &CommittedPoint) -> u64 {
    u64::from_str_radix(&point.id().to_string(), 16).unwrap()
}

async fn every_live_point_is_whole(world: &World) {
    for point in live(world).await {
        assert_eq!(restore(world, &point).await.unwrap(), version(id_of(&point)), "point {}", point.id());
    }
}

fn count(world: &World, folder: &str) -> usize {
    let path = world.path(folder);
    if path.exists() { crate::common::objects(&path).len() } else { 0 }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_released_points_needed_is_removed_and_all_else_stays() {
    for (place, world) in World::everywhere().await {
        let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
        ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
        for id in 1..=5 {
            replicate(&world, &world.store, id, version(id)).await.unwrap();
        }
        let packs = count(&world, "packs");
        let dry = GcOptions { dry_run: true, ..GcOptions::default() };
        let foreseen = gc(&world, &world.store, 2, &dry).await.unwrap();
        assert_eq!((count(&world, "packs"), live(&world).await.len()), (packs, 5), "{place}: a dry run");
        let done = gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
        let of = |collected: &Collected| collected.groups[&group()].clone();
        assert_eq!(of(&done).released, [1, 2, 3].map(PointId::from_random), "{place}");
        assert_eq!(of(&foreseen).packs, of(&done).packs, "{place}: what was foreseen");
        assert_eq!(of(&foreseen).keys, of(&done).keys, "{place}");
        assert!(of(&done).packs.objects > 0 && of(&done).refused.is_none(), "{place}: {done:?}");
        assert_eq!(of(&done).manifests.objects, 3, "{place}");
        assert_eq!(count(&world, "packs") as u64, packs as u64 - of(&done).packs.objects, "{place}");
        every_live_point_is_whole(&world).await;
        let entries = count(&world, "ledger");
        let again = gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
        assert_eq!(again.removed().objects, 0, "{place}: {again:?}");
        assert_eq!(count(&world, "ledger"), entries, "{place}: nothing to say, nothing said");
        // The run after it builds on what stayed.
        replicate(&world, &world.store, 6, version(6)).await.unwrap();
        every_live_point_is_whole(&world).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn marking_with_hardly_any_memory_finds_the_same() {
    let world = founded_world().await;
    for id in 1..=4 {
        replicate(&world, &world.store, id, version(id)).await.unwrap();
    }
    let dry = GcOptions { dry_run: true, ..GcOptions::default() };
    let tight = GcOptions { mark: MarkOptions { memory_bytes: 0, entries_for_tests: Some(2) }, ..dry };
    let plenty = gc(&world, &world.store, 1, &dry).await.unwrap();
    let little = gc(&world, &world.store, 1, &tight).await.unwrap();
    assert!(plenty.removed().objects > 0);
    assert_eq!(plenty.removed(), little.removed());
    let live = |collected: &Collected| collected.groups[&group()].live_packs;
    assert_eq!(live(&plenty), live(&little));
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_of_a_run_that_is_under_way_stay_while_its_pin_lives() {
    let world = founded_world().await;
    replicate(&world, &world.store, 1, version(1)).await.unwrap();
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    let run = RunId::from_random(9);
    let pin = Statement::PinBegun { run, points: vec![PointId::from_random(1)] };
    ledger.append(&world.source, |_| Ok(pin.clone())).await.unwrap();
    world
        .replicate(9, &farsite_model::ItemId::new(farsite_model::ItemKind::Volume, "w"), noise(77, 4 * BLOCK))
        .await;
    let before = count(&world, "packs");
    let done = gc(&world, &world.store, 1, &GcOptions::default()).await.unwrap();
    assert_eq!(done.groups[&group()].of_open_runs.objects, 1, "{done:?}");
    assert_eq!(count(&world, "packs"), before);
    // Given up: it goes, and the run cannot commit any more.
    let impatient = GcOptions {
        give_up: Patience { runs: jiff::SignedDuration::ZERO, ..Patience::default() },
        ..GcOptions::default()
    };
    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    let done = gc(&world, &world.store, 1, &impatient).await.unwrap();
    assert_eq!(done.groups[&group()].given_up, [run]);
    assert_eq!(count(&world, "packs"), before - 1);
    let late = committed(&world, 9, 1, Hex([0; 32])).await;
    let refused = ledger.append(&world.source, |_| Ok(Statement::PointCommitted(late.clone()))).await;
    assert!(matches!(refused, Err(StoreError::Refused(Refusal::PinReleased { .. }))), "{refused:?}");
    every_live_point_is_whole(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_readers_pin_keeps_its_point_until_it_ends_or_is_given_up() {
    let world = founded_world().await;
    for id in 1..4 {
        replicate(&world, &world.store, id, version(id)).await.unwrap();
    }
    let first = PointId::from_random(1);
    let (reader, writer) = (RunId::from_random(90), RunId::from_random(91));
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    let pin = |run| move |_: &GroupState| Ok(Statement::PinBegun { run, points: vec![first] });
    ledger.append(&world.standby, pin(reader)).await.unwrap();
    let is_pinned =
        |state: &GroupState| state.facts().iter().find(|facts| facts.id == first).map(|facts| facts.pinned);
    assert_eq!(is_pinned(ledger.state()), Some(true));
    // An agent neither ends another's pin, nor does anybody end that of a run in this way.
    let end = |run| move |_: &GroupState| Ok(Statement::PinEnded { run });
    let refused = ledger.append(&world.source, end(reader)).await;
    assert!(matches!(refused, Err(StoreError::Refused(Refusal::Role { .. }))), "{refused:?}");
    ledger.append(&world.source, pin(writer)).await.unwrap();
    let refused = ledger.append(&world.standby, end(writer)).await;
    assert!(matches!(refused, Err(StoreError::Refused(Refusal::Other(_)))), "{refused:?}");
    ledger.append(&world.standby, end(reader)).await.unwrap();
    assert_eq!(ledger.state().pins.keys().collect::<Vec<_>>(), [&writer]);
    // One that was killed.
    ledger.append(&world.standby, pin(reader)).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    let now = world.store.backend.time().await.unwrap();
    assert!(ledger.state().abandoned(now, &Patience::default()).is_empty());
    let impatient = Patience { readers: jiff::SignedDuration::ZERO, ..Patience::default() };
    assert_eq!(ledger.state().abandoned(now, &impatient), [reader]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_a_pin_cannot_commit_behind_a_collection() {
    let world = founded_world().await;
    run_to_commit(&world, &world.store, 1, version(1)).await.unwrap();
    gc(&world, &world.store, 1, &GcOptions::default()).await.unwrap();
    let refused = run_to_commit(&world, &world.store, 2, version(2)).await;
    assert!(matches!(refused, Err(StoreError::Refused(Refusal::PinReleased { .. }))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_cut_off_anywhere_harms_nothing_and_the_next_one_finishes() {
    let world = founded_world().await;
    let mut next = 1;
    for cut in (1..400u64).step_by(23) {
        for _ in 0..3 {
            replicate(&world, &world.store, next, version(next)).await.unwrap();
            next += 1;
        }
        let seen = Arc::new(AtomicU64::new(0));
        let counted = seen.clone();
        let store = world.with_faults(Arc::new(move |operation| {
            // Reads fail as well as writes; a deletion may happen and its answer be lost.
            let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
            match (number > cut, operation.name) {
                (true, "delete") if number.is_multiple_of(2) => Fate::LoseAnswer,
                (true, _) => Fate::Unreachable,
                (false, _) => Fate::Pass,
            }
        }));
        let _ = gc(&world, &store, 2, &GcOptions::default()).await;
        every_live_point_is_whole(&world).await;
    }
    gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
    every_live_point_is_whole(&world).await;
    assert_eq!(live(&world).await.len(), 2);
    assert_eq!(count(&world, "manifests"), 2);
    // As if only these two had ever been made: the fixed half, and two halves of their own.
    let done = gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
    assert_eq!(
        (done.removed().objects, done.groups[&group()].live_packs.objects),
        (0, count(&world, "packs") as u64)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn collection_racing_an_agent_and_restores_never_removes_a_needed_block() {
    let world = Arc::new(founded_world().await);
    replicate(&world, &world.store, 1, version(1)).await.unwrap();
    let agent = {
        let world = world.clone();
        tokio::spawn(async move {
            let mut released = 0;
            for id in 2..=25 {
                match replicate(&world, &world.store, id, version(id)).await {
                    Ok(_) => {}
                    Err(StoreError::Refused(Refusal::PinReleased { .. })) => released += 1,
                    Err(other) => panic!("run {id}: {other}"),
                }
            }
            released
        })
    };
    let mut rounds = 0;
    while !agent.is_finished() {
        gc(&world, &world.store, 1, &GcOptions::default()).await.unwrap();
        every_point_that_stays_is_whole(&world).await;
        rounds += 1;
    }
    let released = agent.await.unwrap();
    every_live_point_is_whole(&world).await;
    assert!(rounds > 1 && released < 24, "{rounds} collections, {released} runs lost their pin");
}

/// The same beside a running agent and collector of this test: what expires while it is read may be gone.
async fn every_point_that_stays_is_whole(world: &World) {
    for point in live(world).await {
        if let Err(error) = restore(world, &point).await {
            let now = Ledger::open(&world.store, &group()).await.unwrap();
            assert!(now.state().point(point.id()).unwrap().expired, "point {}: {error}", point.id());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_when_what_a_live_point_needs_cannot_be_told() {
    let world = founded_world().await;
    for id in 1..=3 {
        replicate(&world, &world.store, id, version(id)).await.unwrap();
    }
    let path = world.path(&format!("manifests/cloud/{}", PointId::from_random(2)));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let packs = count(&world, "packs");
    let done = gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
    let refused = done.groups[&group()].refused.clone().unwrap();
    assert!(refused.contains("nothing of cloud was removed") && refused.contains("hint"), "{refused}");
    assert_eq!(count(&world, "packs"), packs);
    // A person lets the point go: then it goes on.
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    let expired = Statement::PointExpired { point: PointId::from_random(2) };
    ledger.append(&world.operator, |_| Ok(expired.clone())).await.unwrap();
    let done = gc(&world, &world.store, 2, &GcOptions::default()).await.unwrap();
    assert!(done.groups[&group()].refused.is_none() && done.removed().objects > 0, "{done:?}");
    every_live_point_is_whole(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_ledger_is_not_collected() {
    let world = founded_world().await;
    for id in 1..=3 {
        replicate(&world, &world.store, id, version(id)).await.unwrap();
    }
    // It may have been a hold.
    let path = world.path("ledger/cloud/0000000000000003");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len() - 5;
    bytes[end] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let packs = count(&world, "packs");
    let done = gc(&world, &world.store, 1, &GcOptions::default()).await.unwrap();
    assert!(done.groups[&group()].refused.is_some());
    assert_eq!(count(&world, "packs"), packs);
}

/// Blocks that are patches on blocks of another pack, which are patches themselves: what they stand on stays.
#[tokio::test(flavor = "multi_thread")]
async fn collection_marks_through_patch_bases() {
    let world = founded_world().await;
    let mut base: Option<(BlobRef, Vec<u8>, u8)> = None;
    let mut contents = Vec::new();
    for id in 1..=6u64 {
        let mut content = noise(5, BLOCK);
        content[..8].copy_from_slice(&id.to_le_bytes());
        let run = RunId::from_random(id);
        let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
        let points: Vec<PointId> = ledger.state().live_points().map(CommittedPoint::id).collect();
        ledger
            .append(&world.source, |_| Ok(Statement::PinBegun { run, points: points.clone() }))
            .await
            .unwrap();
        let sealer = Sealer::begin(&world.store, &world.source, &site("north"), &group(), run).await.unwrap();
        let mut pack = PackBuilder::new(sealer.content_key(), 0);
        let block = world.secret.block_id(&content);
        // Run 4 begins a new chain.
        let (encoded, on, depth) = match &base {
            Some((at, raw, depth)) if id != 4 => {
                let patch = blob::encode_patch(&content, at, raw, depth + 1, 3).unwrap();
                (patch, Some(PatchBase::new(at, depth + 1)), depth + 1)
            }
            _ => (blob::encode(&content, 3), None, 0),
        };
        let at = pack.push(BlobKind::Block, block, &sealer.seal(BlobKind::Block, &block.0, &encoded), on);
        let block = BlobRef { id: block, at };
        let node = Node { level: 0, children: vec![Some(block)] };
        let logical = node.logical();
        let node_id = world.secret.node_id(&logical);
        let sealed = sealer.seal(BlobKind::Node, &node_id.0, &blob::encode(&node.raw(&logical), 3));
        let root = BlobRef { id: node_id, at: pack.push(BlobKind::Node, node_id, &sealed, None) };
        let finished = pack.finish(&sealer);
        world.store.backend.create(&object_key(&finished.id), finished.bytes).await.unwrap();
        let map = MapRoot { size_bytes: BLOCK as u64, block_bytes: BLOCK as u32, root: Some(root) };
        let hash = manifest(id, map).write(&world.store, &world.source).await.unwrap();
        let said = committed(&world, id, 1, hash).await;
        ledger.append(&world.source, |_| Ok(Statement::PointCommitted(said.clone()))).await.unwrap();
        base = Some((block, content.clone(), depth));
        contents.push(content);
    }
    // 6 stands on 5 and 4; 3 stands on 2 and 1.
    for (last, packs) in [(2, 3), (1, 3)] {
        gc(&world, &world.store, last, &GcOptions::default()).await.unwrap();
        assert_eq!(count(&world, "packs"), packs);
        for point in live(&world).await {
            assert_eq!(restore(&world, &point).await.unwrap(), contents[id_of(&point) as usize - 1]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_holds_stays_with_all_its_data() {
    let world = founded_world().await;
    for id in 1..=4 {
        replicate(&world, &world.store, id, version(id)).await.unwrap();
    }
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    let point = PointId::from_random(1);
    let hold = Statement::Hold { point, who: "ann".into(), reason: "audit".into() };
    ledger.append(&world.operator, |_| Ok(hold.clone())).await.unwrap();
    gc(&world, &world.store, 1, &GcOptions::default()).await.unwrap();
    let ids: Vec<u64> = live(&world).await.iter().map(id_of).collect();
    assert_eq!(ids, [1, 4]);
    every_live_point_is_whole(&world).await;
}
