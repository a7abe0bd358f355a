//! Whether what a point holds fits into its places, on a file system that is really small.

mod common;
#[path = "common/drives.rs"]
mod drives;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{World, north};
use drives::{driving, order};
use farsite_model::ItemKind;
use farsite_promote::drive::drive;
use farsite_promote::dry_run::dry_run;
use farsite_promote::failover::{begin, open};
use farsite_replicate::hydrate::Copy;
use farsite_replicate::restore::unguarded;
use farsite_store::read::ReadStats;

/// A file system of 256 KiB, unmounted whatever the test came to.
struct Small(PathBuf);

impl Small {
    /// Mounting needs root.
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(at).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_hydrated_to_an_older_point_needs_no_room_in_full_when_root() {
    let world = World::new().await;
    let Some(small) = Small::mount(&world.south("volumes")) else { return };
    world.point(1).await;
    let volume = world
        .manifest(3, farsite_model::CaptureTime(jiff::Timestamp::now()), |_| {})
        .await
        .items
        .into_iter()
        .find(|item| item.kind == ItemKind::Cinder)
        .unwrap();
    let standby = world.standby("one").await;
    let copy = Copy::of(&volume.id, &small.0.join(common::VOLUME));
    let point = farsite_model::PointId::from_random(3);
    let stats = ReadStats::default();
    copy.apply(&standby.reader, &volume, point, &unguarded(), &stats).await.unwrap().unwrap();

    let dry = dry_run(&standby, &order(1)).await.unwrap();
    let group = &dry.groups[0];
    assert!(!group.problems.iter().any(|why| why.contains("are free")), "{}: {:?}", north(), group.problems);
    assert!(group.notes.iter().any(|note| note.contains("hydrated to an older point")), "{:?}", group.notes);

    // Without the copy the same volume does not fit beside what lies there instead.
    let allocated = std::fs::read(copy.path()).unwrap();
    std::fs::remove_file(copy.path()).unwrap();
    std::fs::write(small.0.join("other"), &allocated[..160_000]).unwrap();
    let dry = dry_run(&standby, &order(1)).await.unwrap();
    assert!(dry.groups[0].problems.iter().any(|why| why.contains("the restore would fill it")), "{dry:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_whose_place_is_full_stops_with_a_sentence_and_goes_on_when_there_is_room_when_root() {
    let world = World::new().await;
    let Some(small) = Small::mount(&world.south("volumes")) else { return };
    world.point(1).await;
    let other = small.0.join("other");
    std::fs::write(&other, vec![1; 160_000]).unwrap();
    let standby = world.standby("one").await;
    let dry = dry_run(&standby, &order(1)).await.unwrap();
    assert!(dry.groups[0].problems.iter().any(|why| why.contains("the restore would fill it")), "{dry:#?}");

    let promotion = begin(&standby, &world.operator, &order(1)).await.unwrap();
    let ended = drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    let [(step, why)] = &ended.groups[0].failed[..] else { panic!("{ended:?}") };
    assert!(
        step == "restore-volumes" && why.contains("No space left") && why.contains("hint:"),
        "{step}: {why}"
    );
    std::fs::remove_file(&other).unwrap();
    let promotion = open(&standby, &north()).await.unwrap();
    let ended = drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    assert!(ended.is_completed(), "{ended:?}");
    world.assert_restored(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_room_for_the_journal_is_found_when_root() {
    let world = World::new().await;
    let Some(small) = Small::mount(&world.south("store")) else { return };
    world.point(1).await;
    let mut standby = world.standby("one").await;
    let mut config = (*standby.config).clone();
    config.stores.get_mut(&common::south()).unwrap().url = small.0.display().to_string();
    standby.config = std::sync::Arc::new(config);
    let dry = dry_run(&standby, &order(1)).await.unwrap();
    assert!(
        dry.problems.iter().any(|why| why.contains("writes its journal there") && why.contains("hint:")),
        "{dry:#?}"
    );
}
