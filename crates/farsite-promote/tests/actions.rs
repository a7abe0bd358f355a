//! The actions that restore, check and rewrite, against a point whose every byte is known.

mod common;

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use common::{IMAGES, VOLUME, World, cloud, north};
use farsite_model::{Epoch, Level, Mode, PointId, PromotionId};
use farsite_promote::actions;
use farsite_promote::choose::Replay;
use farsite_promote::group_run::GroupRun;
use farsite_promote::people::Nobody;
use farsite_promote::place::Targets;
use farsite_runbook::action::{ActionContext, ActionError, Done, Lease, Outcome, Registry};
use farsite_store::manifest::Manifest;
use farsite_store::read::ReadStats;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const RESTORES: [&str; 4] = ["restore-database", "restore-images", "restore-volumes", "restore-files"];

async fn group_run(world: &World, point: PointId, promotion: u64, term: u64) -> Arc<GroupRun> {
    let standby = world.standby("a").await;
    let state = world.state().await;
    let hash = state.point(point).unwrap().said.manifest;
    let promotion = PromotionId::from_random(promotion);
    Arc::new(GroupRun {
        targets: Targets::real(&standby.config, &cloud(), promotion).unwrap(),
        manifest: Manifest::read(&world.store, &cloud(), point, &hash).await.unwrap(),
        standby,
        promotion,
        group: cloud(),
        from: north(),
        mode: Mode::Failover,
        level: Level::Application,
        term: Epoch(term),
        point,
        logs: Vec::new(),
        replay: Replay::Point,
        stats: ReadStats::default(),
    })
}

fn context(lease: Duration) -> ActionContext {
    ActionContext {
        step: "a step".into(),
        mode: Mode::Failover,
        level: Level::Application,
        lease: Lease::until(lease),
        timeout: Duration::from_mins(1),
        cancel: CancellationToken::new(),
        people: Arc::new(Nobody),
    }
}

async fn run(registry: &Registry, action: &str, with: Value) -> Result<Outcome, ActionError> {
    registry.get(action).unwrap().run(&context(Duration::from_mins(1)), &with).await
}

async fn restore(registry: &Registry) {
    for action in RESTORES {
        run(registry, action, json!({})).await.unwrap_or_else(|e| panic!("{action}: {e}"));
    }
}

async fn undo(registry: &Registry) {
    for action in RESTORES.iter().rev() {
        let action = registry.get(action).unwrap();
        action.undo(&context(Duration::from_mins(1)), &json!({})).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_is_restored_verified_and_taken_back() {
    let world = World::new().await;
    let point = world.point(4).await;
    let registry = actions::registry(Some(group_run(&world, point, 1, 2).await));
    restore(&registry).await;
    world.assert_restored(4);
    let verified = run(&registry, "verify-contents", json!({})).await.unwrap();
    assert_eq!(verified.evidence["items"], "5");
    assert_eq!(verified.evidence["checksums"], "2");
    undo(&registry).await;
    undo(&registry).await;
    world.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stood_in_the_places_comes_back_and_what_users_wrote_meanwhile_is_kept() {
    let world = World::new().await;
    let (old, new) = (world.point(3).await, world.point(5).await);
    let first = actions::registry(Some(group_run(&world, old, 1, 2).await));
    restore(&first).await;
    std::fs::write(world.south("cloud.db-wal"), "an old write-ahead log").unwrap();
    let second = actions::registry(Some(group_run(&world, new, 2, 3).await));
    restore(&second).await;
    world.assert_restored(5);
    assert!(!world.south("cloud.db-wal").exists(), "it would be taken for the restored database's own");
    undo(&second).await;
    // (Looked at first: SQLite removes a log that makes no sense when the database is opened.)
    assert_eq!(std::fs::read_to_string(world.south("cloud.db-wal")).unwrap(), "an old write-ahead log");
    world.assert_restored(3);
    let kept = world.south(&format!("cloud.db.undone-{}", PromotionId::from_random(2)));
    assert_eq!(common::heartbeats(&kept), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_was_cut_off_is_completed_and_never_taken_for_a_whole_one() {
    let world = World::new().await;
    let point = world.point(4).await;
    let registry = actions::registry(Some(group_run(&world, point, 1, 2).await));
    for action in RESTORES {
        let action = registry.get(action).unwrap();
        for lease_ms in [0, 1, 3, 5, 8] {
            match action.run(&context(Duration::from_millis(lease_ms)), &json!({})).await {
                Ok(_) | Err(ActionError::LeaseLost) => {}
                Err(other) => panic!("{}: {other}", action.name()),
            }
            let images = std::fs::read_dir(world.south("images")).into_iter().flatten().flatten();
            for image in images.filter(|i| !i.file_name().to_string_lossy().starts_with('.')) {
                assert_eq!(image.metadata().unwrap().len(), 150_000, "nothing half-done has its final name");
            }
        }
    }
    restore(&registry).await;
    world.assert_restored(4);
    run(&registry, "verify-contents", json!({})).await.unwrap();
    let database = registry.get("restore-database").unwrap();
    let done = database.check(&context(Duration::from_secs(9)), &json!({})).await.unwrap();
    assert!(matches!(done, Done::Yes(_)), "{done:?}");
    let again = run(&registry, "restore-images", json!({})).await.unwrap();
    assert!(again.detail.contains("2 done already"), "{}", again.detail);
    undo(&registry).await;
    world.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_there_already_is_left_alone() {
    let world = World::new().await;
    let (one, two) = (world.point(1).await, world.point(2).await);
    let first = actions::registry(Some(group_run(&world, one, 1, 2).await));
    restore(&first).await;
    let inode = |name: &str| std::fs::metadata(world.south("images").join(name)).unwrap().ino();
    let before = IMAGES.map(inode);
    std::fs::write(world.south("images").join(IMAGES[1]), "somebody else's").unwrap();
    let second = actions::registry(Some(group_run(&world, two, 2, 3).await));
    let said = run(&second, "restore-images", json!({})).await.unwrap();
    assert!(said.detail.contains("1 restored") && said.detail.contains("1 stood there"), "{}", said.detail);
    assert_eq!(said.evidence["moved-aside"], "1");
    assert_eq!(inode(IMAGES[0]), before[0]);
    second.get("restore-images").unwrap().undo(&context(Duration::from_secs(9)), &json!({})).await.unwrap();
    assert_eq!(inode(IMAGES[0]), before[0], "undo leaves alone what the promotion left alone");
    assert_eq!(std::fs::read_to_string(world.south("images").join(IMAGES[1])).unwrap(), "somebody else's");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_difference_is_named_by_its_item_and_place() {
    let world = World::new().await;
    let point = world.point(5).await;
    let registry = actions::registry(Some(group_run(&world, point, 1, 2).await));
    restore(&registry).await;
    let volume = world.south("volumes").join(VOLUME);
    let mut bytes = std::fs::read(&volume).unwrap();
    bytes[200_000] = 1;
    std::fs::write(&volume, bytes).unwrap();
    std::fs::write(world.south("images").join(IMAGES[0]), "cut").unwrap();
    std::fs::remove_file(world.south("files/etc/keystone/fernet-keys/1")).unwrap();
    let why = run(&registry, "verify-contents", json!({})).await.unwrap_err().to_string();
    for part in ["cinder/volume-aa", "at byte 196608", "has 3 bytes", "fernet-keys/1", "No such file"] {
        assert!(why.contains(part), "{part}: {why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_is_named_and_nothing_damaged_gets_its_final_name() {
    let world = World::new().await;
    let point = world.point(4).await;
    let run_of = group_run(&world, point, 1, 2).await;
    let item = run_of.manifest.items.iter().find(|i| i.id.as_str() == "cinder/volume-aa").unwrap();
    let packs = run_of.standby.reader.packs_of(&item.data).await.unwrap();
    for pack in packs.keys() {
        world.spoil_object(&farsite_store::pack::object_key(pack));
    }
    let registry = actions::registry(Some(run_of));
    let mut damaged = Vec::new();
    for action in RESTORES {
        if let Err(error) = run(&registry, action, json!({})).await {
            damaged.push(error.to_string());
        }
    }
    assert!(!damaged.is_empty() && damaged.iter().all(|why| why.contains("packs/")), "{damaged:?}");
    undo(&registry).await;
    world.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_writes_nothing() {
    let world = World::new().await;
    let point = world.point(1).await;
    let registry = actions::registry(Some(group_run(&world, point, 1, 2).await));
    for action in RESTORES {
        let action = registry.get(action).unwrap();
        let lost = action.run(&context(Duration::ZERO), &json!({})).await;
        assert_eq!(lost, Err(ActionError::LeaseLost), "{}", action.name());
    }
    assert!(!world.south("").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_asked_and_rewritten_once() {
    let world = World::new().await;
    let point = world.point(6).await;
    let registry = actions::registry(Some(group_run(&world, point, 1, 5).await));
    run(&registry, "restore-database", json!({})).await.unwrap();
    run(&registry, "start-database", json!({})).await.unwrap();
    let query = |expect: &str| json!({ "query": "SELECT MAX(n) FROM heartbeat", "expect": expect });
    run(&registry, "check-database", query("6")).await.unwrap();
    let why = run(&registry, "check-database", query("7")).await.unwrap_err().to_string();
    assert!(why.contains("the answer is 6, not 7"), "{why}");
    let assert = json!({ "assert": "SELECT COUNT(*) = 0 FROM images WHERE id = 'dangling'" });
    run(&registry, "check-database", assert).await.unwrap();
    let untrue = json!({ "assert": "SELECT COUNT(*) = 0 FROM images" });
    assert!(run(&registry, "check-database", untrue).await.is_err());
    let rewrite = json!({
        "statements": ["UPDATE keystone_endpoint SET url = REPLACE(url, 'north', 'south')"],
        "count": "SELECT COUNT(*) FROM keystone_endpoint WHERE url LIKE '%north%'",
    });
    let said = run(&registry, "rewrite-database", rewrite.clone()).await.unwrap();
    assert_eq!((said.evidence["before"].as_str(), said.evidence["after"].as_str()), ("2", "0"));
    let again = run(&registry, "rewrite-database", rewrite.clone()).await.unwrap();
    assert!(again.detail.contains("done already"), "{}", again.detail);
    let older = actions::registry(Some(group_run(&world, point, 2, 4).await));
    let why = run(&older, "rewrite-database", rewrite).await.unwrap_err().to_string();
    assert!(why.contains("a newer promotion"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_that_make_no_sense_are_refused_before_a_run() {
    let registry = actions::registry(None);
    for (action, with) in [
        ("restore-database", json!({ "to": "x" })),
        ("check-database", json!({})),
        ("check-database", json!({ "query": "a", "assert": "b" })),
        ("check-database", json!({ "assert": "b", "expect": "1" })),
        ("rewrite-database", json!({ "statements": [] })),
    ] {
        assert!(registry.get(action).unwrap().validate(&with).is_err(), "{action} {with}");
    }
    let why = run(&registry, "restore-database", json!({})).await.unwrap_err().to_string();
    assert!(why.contains("to be checked"), "{why}");
}
