//! A group whose points share packs, whose blocks and nodes are patches, and whose retention lets points go: what
//! collection and compaction are tried on.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use farsite_model::content::{InMemory, ReadAt};
use farsite_model::{ItemId, ItemKind, PointId, RunId};
use farsite_store::ingest::{IngestOptions, Input, RunWriter};
use farsite_store::keep::{
    Checked, Collected, CompactOptions, Compacted, Depth, GcOptions, GroupRepaired, MarkOptions,
    RepairOptions, check, collect, compact, repair,
};
use farsite_store::ledger::{CommittedPoint, GroupState, Ledger, Statement};
use farsite_store::local_map::{LocalMap, LocalMapWriter};
use farsite_store::manifest::Manifest;
use farsite_store::map::MapRoot;
use farsite_store::seal::Sealer;
use farsite_store::{Store, StoreError};

use super::{World, committed, founded, group, manifest, noise, site};

pub const BLOCK: usize = 65_536;
const BLOCKS: u64 = 30;

/// The content of version `id`. Every third block of the two thirds that are noise is of its own, so that no pack is all
/// dead or all live; of the others some bytes are, so that they are patches.
pub fn version(id: u64) -> Vec<u8> {
    let mut content = Vec::new();
    for block in 0..BLOCKS {
        let mut bytes = noise(block, BLOCK);
        match block % 3 {
            0 => bytes = noise(1000 * (id - id % 2) + block, BLOCK),
            1 if (block + id).is_multiple_of(4) => bytes[100..108].copy_from_slice(&id.to_le_bytes()),
            _ => {}
        }
        content.extend(bytes);
    }
    content
}

pub async fn founded_world() -> World {
    let world = World::in_folder().await;
    found(&world).await;
    world
}

pub async fn found(world: &World) {
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
}

/// A whole run as an agent does it: pin, content key, packs, manifest, entry. The version before can be read at the source.
pub async fn replicate(world: &World, store: &Store, id: u64) -> Result<MapRoot, StoreError> {
    let mut ledger = Ledger::open(store, &group()).await?;
    let points: Vec<PointId> = ledger.state().live_points().map(CommittedPoint::id).collect();
    let points = points[points.len().saturating_sub(2)..].to_vec();
    let run = RunId::from_random(id);
    ledger.append(&world.source, |_| Ok(Statement::PinBegun { run, points: points.clone() })).await?;
    let item = ItemId::new(ItemKind::Volume, "v");
    let sealer = Sealer::begin(store, &world.source, &site("north"), &group(), run).await?;
    let log = world.dir.path().join(format!("resume-{run}"));
    let options = IngestOptions { pack_bytes: 300 << 10, ..IngestOptions::within(64 << 20, (3, 3)) };
    let stop = Arc::new(AtomicBool::new(false));
    let mut writer = RunWriter::begin(store, sealer, world.secret.clone(), options, &log, stop)?;
    let (damaged, told) = (ledger.state().damaged_packs(), ledger.state().damage_told);
    // The map is of the newest point. Of one that is damaged nobody knows where, nothing is built on.
    let newest = ledger.state().live_points().last();
    let is_no_basis = newest.is_some_and(|point| !point.damaged.is_empty() && !point.damage_is_known);
    let previous = LocalMap::open(&world.maps(), &item).unwrap().filter(|_| !is_no_basis);
    let previous = previous.map(|map| map.without(&damaged, told).unwrap());
    let mut out = LocalMapWriter::create(&world.maps(), &item).unwrap();
    out.without_damage_until(told);
    let content: Arc<dyn ReadAt> = Arc::new(InMemory(version(id)));
    let before: Arc<dyn ReadAt> = Arc::new(InMemory(version(id - 1)));
    let input = Input { before: Some(&*before), ..Input::first("v", &*content, BLOCK as u32) };
    let map = writer.ingest(&input.since(previous.as_ref()), &mut out)?;
    writer.flush().await?;
    let hash = manifest(id, map.clone()).write(store, &world.source).await?;
    let said = committed(world, id, 1, hash).await;
    ledger.append(&world.source, |_| Ok(Statement::PointCommitted(said.clone()))).await?;
    out.commit().unwrap();
    Ok(map)
}

/// Keeps the newest `last` points.
pub fn keeping(last: usize) -> impl Fn(&GroupState) -> Vec<PointId> + Sync {
    move |state| {
        let live: Vec<PointId> = state.live_points().map(CommittedPoint::id).collect();
        live[..live.len().saturating_sub(last)].to_vec()
    }
}

pub async fn gc(
    world: &World,
    store: &Store,
    last: usize,
    options: &GcOptions,
) -> Result<Collected, StoreError> {
    let mut reader = world.reader();
    reader.store = store.clone();
    let ledger = Ledger::open(store, &group()).await?;
    collect(&reader, vec![ledger], &world.standby, &keeping(last), options, &()).await
}

/// Packs are small here, as the runs' are.
pub fn at_most(max_live_percent: u8) -> CompactOptions {
    CompactOptions { max_live_percent, pack_bytes: 300 << 10, ..CompactOptions::default() }
}

pub async fn squeeze(
    world: &World,
    store: &Store,
    options: &CompactOptions,
) -> Result<Compacted, StoreError> {
    let mut reader = world.reader();
    reader.store = store.clone();
    let ledger = Ledger::open(store, &group()).await?;
    compact(&reader, vec![ledger], &world.standby, &site("south"), options, &()).await
}

pub async fn mend(world: &World, store: &Store, dry_run: bool) -> Result<GroupRepaired, StoreError> {
    let mut reader = world.reader();
    reader.store = store.clone();
    let ledger = Ledger::open(store, &group()).await?;
    let options = RepairOptions { dry_run, ..RepairOptions::default() };
    let mut done = repair(&reader, vec![ledger], &world.standby, &site("south"), &options, &()).await?;
    Ok(done.groups.remove(&group()).unwrap())
}

pub async fn live(world: &World) -> Vec<CommittedPoint> {
    Ledger::open(&world.store, &group()).await.unwrap().state().live_points().cloned().collect()
}

pub fn id_of(point: &CommittedPoint) -> u64 {
    u64::from_str_radix(&point.id().to_string(), 16).unwrap()
}

/// By a reader that knows nothing yet.
pub async fn restored(world: &World, point: &CommittedPoint) -> Result<Vec<u8>, StoreError> {
    super::restore(world, point).await
}

pub async fn map_of(world: &World, point: &CommittedPoint) -> MapRoot {
    let manifest = Manifest::read(&world.store, &group(), point.id(), &point.said.manifest).await.unwrap();
    manifest.items[0].data.clone()
}

pub async fn every_live_point_is_whole(world: &World) {
    for point in live(world).await {
        let id = id_of(&point);
        assert!(restored(world, &point).await.unwrap() == version(id), "point {id} is another one");
    }
}

pub async fn checked(world: &World, depth: Depth) -> Checked {
    let ledger = Ledger::open(&world.store, &group()).await.unwrap();
    check(&world.reader(), &ledger, depth, &MarkOptions::default(), &()).await.unwrap()
}

pub fn count(world: &World, folder: &str) -> usize {
    let path = world.objects.join(folder);
    if path.exists() { super::objects(&path).len() } else { 0 }
}

pub fn stored_bytes(world: &World) -> u64 {
    super::objects(&world.objects.join("packs")).iter().map(|path| path.metadata().unwrap().len()).sum()
}
