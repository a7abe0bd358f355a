//! Shipped log segments: the run that a replay uses, whatever arrived twice, late, or from a stranger.

use crate::common::{World, east, group, site};
use bytes::Bytes;
use farsite_model::{Epoch, ItemId, ItemKind, RunId};
use farsite_store::StoreError;
use farsite_store::amendments;
use farsite_store::hex::Hex;
use farsite_store::keys::{Signer, key_id};
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
async fn what_a_retired_key_has_shipped_counts_up_to_its_end_and_no_further() {
    for (place, world) in World::everywhere().await {
        let north = Shipper::of(&world, &world.source, "north").await;
        for (sequence, first, last) in [(0, 0, 100), (1, 100, 250), (2, 250, 300), (1, 100, 200)] {
            north.ship(sequence, first, last).await.unwrap();
        }
        let key = key_id(&world.source.public());
        let retired =
            amendments::retire(&world.store, &world.operator, &key, "ann", "stolen").await.unwrap().1;
        let end = &retired.logs[&format!("{}/{TIMELINE}", group())];
        assert_eq!(
            (end.last, end.chosen.len()),
            (2, 1),
            "{place}: of two with one sequence it names the one"
        );
        // The thief goes on with it, behind the end.
        north.ship(3, 300, 310).await.unwrap();
        let (bytes, error) = replayed_until_damage(&world).await;
        assert_eq!(bytes, up_to(300), "{place}");
        assert!(error.unwrap().contains("was retired by amendment 0"), "{place}");
        // And beside what was shipped: the end names which of two counts. Where it names none there was one, and which one
        // that was is not told any more: the log ends before it.
        north.ship(1, 100, 249).await.unwrap();
        assert_eq!(replayed_until_damage(&world).await.0, up_to(300), "{place}");
        north.ship(2, 250, 400).await.unwrap();
        assert_eq!(replayed_until_damage(&world).await, (up_to(250), None), "{place}");
    }
}

fn up_to(end: u64) -> Vec<u8> {
    (0..end).map(|at| at as u8).collect()
}

/// What a replay reads until it finds damage, and what is said of that.
async fn replayed_until_damage(world: &World) -> (Vec<u8>, Option<String>) {
    let segments = logs::list_of_site(&world.store, &group(), &TIMELINE, None, &site("north")).await.unwrap();
    let opener = world.reader().opener;
    let mut bytes = Vec::new();
    for segment in &segments {
        match logs::read(&world.store, &opener, segment).await {
            Ok((_, read)) => bytes.extend(read),
            Err(error) => return (bytes, Some(error.to_string())),
        }
    }
    (bytes, None)
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
