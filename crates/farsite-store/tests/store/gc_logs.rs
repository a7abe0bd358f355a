//! Collection of shipped logs and of the keys that they are sealed with.

use crate::common::{World, committed, founded, group, manifest, site};
use farsite_model::{Epoch, ItemId, ItemKind, PointId, RunId};
use farsite_store::hex::Hex;
use farsite_store::keep::{Collected, GcOptions, collect};
use farsite_store::ledger::{CommittedPoint, GroupState, Ledger, Statement};
use farsite_store::logs::{self, SegmentHeader, TimelineId};
use farsite_store::manifest::{ItemLog, LogPoint};
use farsite_store::map::MapRoot;
use farsite_store::seal::{Sealer, Seals};

/// A shipper of `timeline`, started in `run`.
async fn shipper(world: &World, run: u64, timeline: TimelineId) -> Sealer {
    let (run, seals) = (RunId::from_random(run), Seals::Log(timeline));
    Sealer::begin_for(&world.store, &world.source, &site("north"), &group(), run, seals).await.unwrap()
}

async fn ship(world: &World, sealer: &Sealer, timeline: TimelineId, sequence: u64) {
    let (first, last) = (sequence * 10, sequence * 10 + 10);
    let header = SegmentHeader {
        version: 1,
        group: group(),
        site: site("north"),
        item: ItemId::new(ItemKind::Mariadb, "main"),
        epoch: Epoch(1),
        timeline,
        sequence,
        file: "bin.000001".into(),
        first,
        last,
        covers: None,
        content_key: sealer.content_key(),
    };
    logs::write(&world.store, &world.source, sealer, &header, &[sequence as u8; 10]).await.unwrap();
}

async fn pin(world: &World, run: u64) {
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    let pin = Statement::PinBegun { run: RunId::from_random(run), points: vec![] };
    ledger.append(&world.source, |_| Ok(pin.clone())).await.unwrap();
}

/// A point of one empty volume, whose log goes on in `timeline`.
async fn commit(world: &World, id: u64, timeline: Option<TimelineId>) {
    let mut manifest = manifest(id, MapRoot { size_bytes: 65_536, block_bytes: 65_536, root: None });
    let at = LogPoint { file: "bin.000001".into(), offset: 0 };
    manifest.items[0].log =
        timeline.map(|timeline| ItemLog { timeline, base: at.clone(), p1: at.clone(), p2: at });
    let hash = manifest.write(&world.store, &world.source).await.unwrap();
    let said = committed(world, id, 1, hash).await;
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(Statement::PointCommitted(said.clone()))).await.unwrap();
}

async fn gc_to_the_last(world: &World) -> Collected {
    let ledger = Ledger::open(&world.store, &group()).await.unwrap();
    let last = |state: &GroupState| -> Vec<PointId> {
        let live: Vec<PointId> = state.live_points().map(CommittedPoint::id).collect();
        live[..live.len() - 1].to_vec()
    };
    collect(&world.reader(), vec![ledger], &world.standby, &last, &GcOptions::default(), &()).await.unwrap()
}

async fn replayed(world: &World, timeline: TimelineId) -> Vec<u8> {
    let opener = world.reader().opener;
    let mut bytes = Vec::new();
    for segment in logs::list_of_site(&world.store, &group(), &timeline, None, &site("north")).await.unwrap()
    {
        bytes.extend(logs::read(&world.store, &opener, &segment).await.unwrap().1);
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_stays_while_a_point_or_a_run_under_way_needs_it_and_so_do_its_keys() {
    let world = World::in_folder().await;
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    let [continued, begun, orphaned] = [1, 2, 3].map(|n| Hex([n; 8]));
    pin(&world, 1).await;
    let first = shipper(&world, 1, continued).await;
    ship(&world, &first, continued, 0).await;
    commit(&world, 1, Some(continued)).await;
    // A shipper that has started and written nothing yet: its key is named by nothing.
    let restarted = shipper(&world, 1, continued).await;
    // A run under way with a new base, and one that was never heard of again.
    pin(&world, 2).await;
    let under_way = shipper(&world, 2, begun).await;
    ship(&world, &under_way, begun, 0).await;
    let lost = shipper(&world, 77, orphaned).await;
    ship(&world, &lost, orphaned, 0).await;

    let done = gc_to_the_last(&world).await.groups[&group()].clone();
    assert_eq!((done.log_segments.objects, done.keys.objects), (1, 1), "{done:?}");
    assert!(replayed(&world, orphaned).await.is_empty());
    ship(&world, &restarted, continued, 1).await;
    ship(&world, &under_way, begun, 1).await;
    for timeline in [continued, begun] {
        assert_eq!(replayed(&world, timeline).await, [[0; 10], [1; 10]].concat());
    }

    // Run 2 commits with its own timeline: now the old one ends with its point.
    commit(&world, 2, Some(begun)).await;
    let done = gc_to_the_last(&world).await.groups[&group()].clone();
    assert_eq!((done.log_segments.objects, done.keys.objects), (2, 2), "{done:?}");
    assert_eq!(replayed(&world, begun).await.len(), 20);
    ship(&world, &under_way, begun, 2).await;
    assert_eq!(replayed(&world, begun).await.len(), 30);
}
