//! Shipped log segments: the run that a replay uses, whatever arrived twice, late, or from a stranger.

mod common;

use bytes::Bytes;
use common::{World, east, group, site};
use farsite_model::{Epoch, ItemId, ItemKind, RunId};
use farsite_store::StoreError;
use farsite_store::hex::Hex;
use farsite_store::keys::Signer;
use farsite_store::logs::{self, SegmentHeader, TimelineId};
use farsite_store::seal::Sealer;

const TIMELINE: TimelineId = Hex([7; 8]);

struct Shipper<'w> {
    world: &'w World,
    signer: &'w Signer,
    of: &'static str,
    sealer: Sealer,
}

impl<'w> Shipper<'w> {
    async fn of(world: &'w World, signer: &'w Signer, of: &'static str) -> Self {
        let run = RunId::from_random(1);
        let sealer = Sealer::begin(&world.store, signer, &site(of), &group(), run).await.unwrap();
        Self { world, signer, of, sealer }
    }

    /// Ships `first..last` of one file; every byte says where it stands.
    async fn ship(&self, sequence: u64, first: u64, last: u64) -> Result<(), StoreError> {
        let header = SegmentHeader {
            version: 1,
            group: group(),
            site: site(self.of),
            item: ItemId::new(ItemKind::Mariadb, "main"),
            epoch: Epoch(1),
            timeline: TIMELINE,
            sequence,
            file: "bin.000001".into(),
            first,
            last,
            covers: None,
            content_key: self.sealer.content_key(),
        };
        let bytes: Vec<u8> = (first..last).map(|at| at as u8).collect();
        logs::write(&self.world.store, self.signer, &self.sealer, &header, &bytes).await.map(|_| ())
    }
}

async fn run(world: &World, up_to: Option<u64>) -> Vec<(u64, u64, u64)> {
    let segments =
        logs::list_of_site(&world.store, &group(), &TIMELINE, up_to, &site("north")).await.unwrap();
    segments.iter().map(|s| (s.sequence, s.first, s.last)).collect()
}

/// What a replay reads, one segment after the other.
async fn replayed(world: &World) -> Vec<u8> {
    let segments = logs::list_of_site(&world.store, &group(), &TIMELINE, None, &site("north")).await.unwrap();
    let opener = world.reader().opener;
    let mut bytes = Vec::new();
    for segment in &segments {
        bytes.extend(logs::read(&world.store, &opener, segment).await.unwrap().1);
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_lands_behind_another_one_of_its_sequence_breaks_nothing() {
    for (place, world) in World::everywhere().await {
        let north = Shipper::of(&world, &world.source, "north").await;
        north.ship(0, 0, 100).await.unwrap();
        north.ship(1, 100, 250).await.unwrap();
        north.ship(2, 250, 300).await.unwrap();
        // Its answer was lost, the stretch was shipped again with more bytes, and now it lands after all.
        north.ship(1, 100, 200).await.unwrap();
        assert_eq!(run(&world, None).await, [(0, 0, 100), (1, 100, 250), (2, 250, 300)], "{place}");
        let expected: Vec<u8> = (0..300u64).map(|at| at as u8).collect();
        assert_eq!(replayed(&world).await, expected, "{place}");
        // The other way round: the agent went on from the shorter one.
        north.ship(3, 300, 310).await.unwrap();
        north.ship(3, 300, 390).await.unwrap();
        assert_eq!(run(&world, None).await[3], (3, 300, 390), "{place}: at the end the longer one counts");
        north.ship(4, 310, 320).await.unwrap();
        assert_eq!(run(&world, None).await[3..], [(3, 300, 310), (4, 310, 320)], "{place}");
        assert_eq!(run(&world, Some(2)).await.len(), 3, "{place}: an epoch accepted no more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_segment_shipped_twice_is_one_and_another_one_in_its_place_is_a_conflict() {
    for (place, world) in World::everywhere().await {
        let north = Shipper::of(&world, &world.source, "north").await;
        north.ship(0, 0, 100).await.unwrap();
        let again = Shipper::of(&world, &world.source, "north").await.ship(0, 0, 100).await;
        assert!(matches!(again, Err(StoreError::Conflict { .. })), "{place}: sealed with another key");
        assert_eq!(run(&world, None).await, [(0, 0, 100)], "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_segment_does_not_take_the_place_of_the_agents() {
    for (place, world) in World::everywhere().await {
        let north = Shipper::of(&world, &world.source, "north").await;
        north.ship(0, 0, 100).await.unwrap();
        north.ship(1, 100, 200).await.unwrap();
        // Who may create objects and holds no key at all: a longer run of names.
        let name = |sequence: u64, first: u64, last: u64| {
            format!("logs/cloud/{TIMELINE}/{sequence:010}.e1.bin.000001.{first:010}-{last:010}")
        };
        for (sequence, first, last) in [(1, 100, 500), (2, 500, 900), (3, 900, 950)] {
            let garbage = Bytes::from_static(b"garbage");
            world.store.backend.create(&name(sequence, first, last), garbage).await.unwrap();
        }
        // And the key of another site.
        let thief = east();
        let east = Shipper::of(&world, &thief, "east").await;
        east.ship(1, 100, 600).await.unwrap();
        assert_eq!(run(&world, None).await, [(0, 0, 100), (1, 100, 200)], "{place}");
        north.ship(2, 200, 210).await.unwrap();
        assert_eq!(run(&world, None).await, [(0, 0, 100), (1, 100, 200), (2, 200, 210)], "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_could_not_be_read_back_is_not_written() {
    let world = World::in_folder().await;
    let north = Shipper::of(&world, &world.source, "north").await;
    let size = logs::SEGMENT_BYTES as u64;
    assert!(north.ship(0, 0, size + 1).await.is_err(), "too large");
    north.ship(0, 0, size).await.unwrap();
    assert_eq!(replayed(&world).await.len() as u64, size);
}
