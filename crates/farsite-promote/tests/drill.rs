//! Drills: one that passes proves its point and leaves nothing; one that should fail does.

mod common;
#[path = "common/drives.rs"]
mod drives;

use common::{World, cloud, north};
use drives::{driving, id, order};
use farsite_model::{Epoch, ItemKind, Level, Mode, PointId};
use farsite_promote::choose::PointChoice;
use farsite_promote::drill::{DrillEnded, DrillOptions, cleanup, drill};
use farsite_promote::dry_run::dry_run;
use farsite_promote::place::{Targets, drill_folder};
use farsite_promote::report::Report;
use farsite_promote::{PromoteError, list};

fn options(n: u64) -> DrillOptions {
    DrillOptions {
        promotion: id(n),
        point: PointChoice::Latest,
        runbook: None,
        forced: false,
        who: "carol".into(),
        driving: driving("carol"),
    }
}

async fn run(world: &World, n: u64) -> Result<DrillEnded, PromoteError> {
    let standby = world.standby("one").await;
    drill(&standby, &world.standby_agent, &cloud(), Some(Level::Application), &options(n)).await
}

async fn world_with(variables: &[(&str, &str)]) -> World {
    let mut world = World::new().await;
    for (name, value) in variables {
        world.variables.insert((*name).into(), (*value).into());
    }
    world
}

/// Nothing of a drill is left on this machine.
async fn assert_gone(world: &World, n: u64) {
    let standby = world.standby("one").await;
    let targets = Targets::drill(&standby.config, &cloud(), id(n));
    assert!(!drill_folder(&standby.config, id(n)).exists());
    assert!(!targets.sockets.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_proves_its_point_and_leaves_nothing_behind() {
    let world = world_with(&[
        ("endpoint_table", "keystone_endpoint"),
        ("old_endpoint", "http://north:"),
        ("new_endpoint", "http://south:"),
        ("database_query", "SELECT COUNT(*) FROM keystone_endpoint"),
        ("database_expect", "2"),
        ("drill_service_start", "test -s {{ place.sqlite }} && touch {{ place.folder }}/served"),
        ("drill_service_status", "test -e {{ place.folder }}/served"),
    ])
    .await;
    let point = world.point(3).await;
    std::fs::create_dir_all(world.south("images")).unwrap();
    std::fs::write(world.south("images/production"), "untouched").unwrap();
    std::fs::write(world.south("cloud.db"), "production").unwrap();
    let ended = run(&world, 1).await.unwrap();
    assert!(ended.passed, "{ended:?}");
    assert_gone(&world, 1).await;
    assert_eq!(std::fs::read_to_string(world.south("cloud.db")).unwrap(), "production");
    let state = world.state().await;
    assert_eq!((state.epoch(), state.primary()), (Epoch(1), Some(&north())), "no epoch began");
    let how = state.point(point).unwrap().proven.clone().unwrap();
    assert!(how.contains(&id(1).to_string()), "{how}");
    // Replication goes on.
    world.point(4).await;

    let standby = world.standby("two").await;
    let report = Report::of(&standby, id(1)).await.unwrap();
    assert_eq!((report.result.as_str(), report.mode), ("passed", Mode::Drill));
    let group = &report.groups[0];
    assert!(group.clean_up.as_ref().unwrap().well && group.verdict.as_ref().unwrap().well);
    assert!(group.rto_s.is_some() && group.rpo_met == Some(true), "{group:?}");
    assert!(report.html().contains("nothing left"));
    let listed = list::list(&standby, Some(Mode::Drill)).await.unwrap();
    assert_eq!((listed.len(), listed[0].result.as_str()), (1, "passed"));
}

/// The drill fails, says why, proves nothing, and leaves nothing.
async fn assert_red(world: &World, point: PointId, why: &str) {
    let ended = run(world, 1).await.unwrap();
    assert!(!ended.passed && ended.reasons.join("\n").contains(why), "{ended:?}");
    assert!(world.state().await.point(point).unwrap().proven.is_none());
    assert_gone(world, 1).await;
    let report = Report::of(&world.standby("two").await, id(1)).await.unwrap();
    assert_eq!(report.result, "failed");
    assert!(!report.junit().contains("failures=\"0\""), "{}", report.junit());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_without_what_it_points_at_turns_a_drill_red() {
    let assert = "SELECT NOT EXISTS (SELECT 1 FROM images WHERE id NOT IN (SELECT 'x'))";
    let world = world_with(&[("database_assert", assert)]).await;
    let point = world.point(1).await;
    assert_red(&world, point, "assert-database").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_query_turns_a_drill_red() {
    let world = world_with(&[("database_query", "SELECT n FROM no_such_table")]).await;
    let point = world.point(1).await;
    assert_red(&world, point, "check-database").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_pack_turns_a_drill_red_and_is_named() {
    let world = World::new().await;
    let point = world.point(1).await;
    let packs = world.store.backend.list("packs/", None).await.unwrap();
    assert!(!packs.is_empty());
    for pack in &packs {
        world.store.backend.delete(&pack.key).await.unwrap();
    }
    assert_red(&world, point, &packs[0].key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missed_target_turns_a_drill_red() {
    let mut world = World::new().await;
    world.rto = "1ms";
    let point = world.point(1).await;
    assert_red(&world, point, "RTO").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_left_behind_turns_a_drill_red_and_can_be_cleaned_up_later() {
    let world = world_with(&[(
        "drill_service_start",
        "(exec sh -c 'sleep 60 & wait' {{ place.folder }}/service) >/dev/null 2>&1 & echo $! > {{ place.files }}/../../pid-{{ promotion }}",
    )])
    .await;
    world.point(1).await;
    let ended = run(&world, 1).await.unwrap();
    let standby = world.standby("one").await;
    let pid_file = drill_folder(&standby.config, id(1)).parent().unwrap().join(format!("pid-{}", id(1)));
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    assert!(
        !ended.passed && ended.reasons.join("\n").contains(&format!("process {}", pid.trim())),
        "{ended:?}"
    );
    assert!(drill_folder(&standby.config, id(1)).exists(), "nothing is removed under a running process");
    // Its parent was told to wait; both go.
    let _ = std::process::Command::new("sh")
        .args(["-c", &format!("kill $(ps -o pid= --ppid {0}) {0}", pid.trim())])
        .status();
    let driving = driving("carol");
    for _ in 0..50 {
        let left = cleanup(&standby, &world.standby_agent, id(1), false, &driving).await.unwrap();
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_gone(&world, 1).await;
    assert_eq!(
        list::show(&standby, id(1)).await.unwrap().result,
        "failed",
        "cleaning up later does not make it pass"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_drill_changes_in_the_real_places_turns_it_red() {
    let mut world = World::new().await;
    let outside = world.south("images").display().to_string();
    world
        .variables
        .insert("drill_service_start".into(), format!("mkdir -p {outside} && touch {outside}/stray"));
    world.point(1).await;
    let ended = run(&world, 1).await.unwrap();
    assert!(!ended.passed && ended.reasons.join("\n").contains("stray is new"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_does_not_start_on_old_data_or_far_behind() {
    let mut world = World::new().await;
    world.rpo = "100ms";
    world.point(1).await;
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    let refused = run(&world, 1).await.unwrap_err();
    assert!(refused.exit_code() == 4 && refused.to_string().contains("lags"), "{refused}");
    world.rpo = "2h";
    let standby = world.standby("one").await;
    let folder = drill_folder(&standby.config, id(2));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("database.sqlite"), "old").unwrap();
    let refused = run(&world, 2).await.unwrap_err();
    assert!(refused.exit_code() == 4 && refused.to_string().contains("not empty"), "{refused}");
    assert!(list::list(&standby, None).await.unwrap().is_empty(), "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_stolen_key_can_drill_and_prove_nothing() {
    let world = World::new().await;
    let point = world.point(1).await;
    let standby = world.standby("one").await;
    let refused = drill(&standby, &world.source, &cloud(), None, &options(1)).await;
    assert!(refused.is_err());
    assert!(world.state().await.point(point).unwrap().proven.is_none());
}

/// A point whose volume is encrypted, with such keys by its policy.
async fn encrypted(world: &World, n: u64, by: &str, keys: &[&str]) -> PointId {
    let details = [("encrypted", by.to_owned()), ("encryption-keys", serde_json::json!(keys).to_string())];
    let details = details.map(|(key, value)| (key.to_owned(), value));
    world
        .point_with(n, |manifest| {
            let volume = manifest.items.iter_mut().find(|item| item.kind == ItemKind::Cinder).unwrap();
            volume.details.extend(details);
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_volume_whose_keys_are_not_in_the_point_fails_the_dry_run_and_turns_a_drill_red() {
    let world = World::new().await;
    encrypted(&world, 1, "cinder", &[]).await;
    let standby = world.standby("one").await;
    let dry = dry_run(&standby, &order(1)).await.unwrap();
    assert!(!dry.is_clear());
    let [why] = &dry.groups[0].problems[..] else { panic!("{dry:#?}") };
    assert!(
        ["nobody could read volume-aa", "names no items", "hint:"].iter().all(|w| why.contains(w)),
        "{why}"
    );
    let drilled = run(&world, 1).await.unwrap();
    assert!(!drilled.passed && drilled.reasons.iter().any(|why| why.contains("volume-aa")), "{drilled:?}");
    let report = Report::of(&standby, id(1)).await.unwrap();
    let mut steps = report.groups[0].steps.iter();
    let restored = steps.find(|step| step.id == "restore-volumes").unwrap();
    assert!(restored.evidence["without-keys-1"].contains("volume-aa"), "{restored:?}");

    encrypted(&world, 2, "cinder", &["sqlite/cloud", "files/barbican"]).await;
    let dry = dry_run(&standby, &order(1)).await.unwrap();
    let [why] = &dry.groups[0].problems[..] else { panic!("{dry:#?}") };
    assert!(why.contains("lacks files/barbican,"), "{why}");

    encrypted(&world, 3, "cinder", &["sqlite/cloud", "files/keystone"]).await;
    let dry = dry_run(&standby, &order(1)).await.unwrap();
    assert!(dry.is_clear(), "{dry:#?}");
    assert!(run(&world, 2).await.unwrap().passed);

    // Its guest may have done it: nothing is wrong, and a person should know.
    encrypted(&world, 4, "luks", &[]).await;
    let dry = dry_run(&standby, &order(1)).await.unwrap();
    assert!(dry.is_clear() && dry.groups[0].notes.iter().any(|note| note.contains("volume-aa")), "{dry:#?}");
}
