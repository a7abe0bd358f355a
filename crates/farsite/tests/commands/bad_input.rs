//! Bad input: each ends with a clear message and a documented exit code, and nothing is half-written.

use crate::common::{World, run};

#[test]
fn an_unknown_key_is_placed_and_the_nearest_is_offered() {
    let world = World::new();
    world.edit("north/policies/cloud.yaml", |text| text.replace("rpo: 20m", "rpoo: 20m"));
    let ended = world.north(&["policy", "check", "north/policies/cloud.yaml"]).expect(2);
    ended.says(&["cloud.yaml:7:1: unknown key \"rpoo\"", "did you mean rpo?"]);
    let ended = world.north(&["replicate"]).expect(2);
    ended.says(&["cloud.yaml:7:1"]);
    world.edit("north/farsite.yaml", |text| text.replace("state:", "stat:"));
    world.north(&["status"]).expect(2).says(&[
        "farsite.yaml:",
        "unknown key \"stat\"",
        "did you mean state?",
    ]);
}

#[test]
fn a_wrong_type_is_placed() {
    let world = World::new();
    world.edit("north/policies/cloud.yaml", |text| text.replace("to: [south]", "to: 7"));
    world.north(&["policy", "check", "north/policies/cloud.yaml"]).expect(2).says(&["cloud.yaml:4:5"]);
}

#[test]
fn a_policy_whose_schedule_never_fires_is_refused() {
    let world = World::new();
    world.edit("north/policies/cloud.yaml", |text| text.replace("'*/15 * * * *'", "'0 0 30 2 *'"));
    let ended = world.north(&["policy", "check", "north/policies/cloud.yaml"]).expect(2);
    ended.says(&["cloud.yaml:6:"]);
    world.north(&["agent"]).expect(2).says(&["cloud.yaml:6:"]);
}

#[test]
fn a_runbook_with_a_cycle_is_refused() {
    let world = World::new();
    let text = "name: loop\nstages:\n  - name: one\n    steps:\n      \
                - { id: a, action: wait, with: { for: 1s }, needs: [b] }\n      \
                - { id: b, action: wait, with: { for: 1s }, needs: [a] }\n";
    std::fs::write(world.at("loop.yaml"), text).unwrap();
    let ended = world.north(&["runbook", "check", "loop.yaml"]).expect(2);
    ended.says(&["loop.yaml:5:", "need each other"]);
    world.north(&["runbook", "check", "applicaton"]).expect(2).says(&["did you mean application?"]);
    world.north(&["runbook", "check"]).expect(0).says(&["business", "application", "data"]);
}

#[test]
fn a_store_that_is_missing_is_said() {
    let world = World::new();
    std::fs::rename(world.at("store"), world.at("elsewhere")).unwrap();
    world.north(&["status"]).expect(1).says(&["no such folder", "hint:"]);
    world.north(&["replicate"]).expect(1).says(&["no such folder"]);
    assert!(!world.at("store").exists(), "nothing is created by looking");
    std::fs::create_dir(world.at("store")).unwrap();
    world.north(&["replicate"]).expect(2).says(&["is not a replica store yet", "farsite init"]);
    let ended = world.north(&["check"]).expect(1);
    ended.says(&["✗", "is not a replica store yet"]);
}

#[test]
fn an_identity_that_does_not_open_the_store_is_said() {
    let world = World::new();
    world.replicate();
    run(world.path(), &["init", "./other", "--out", "other-keys"]).expect(0);
    std::fs::copy(world.at("other-keys/south/south.identity"), world.at("south/south.identity")).unwrap();
    let ended = world.south(&["points", "verify"]);
    assert!(matches!(ended.code, 1 | 2), "{}", ended.stderr);
    ended.says(&["identit"]);
    world.south(&["check"]).expect(1).says(&["✗ identity"]);
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let key = world.at("north/source-agent.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    world.north(&["replicate"]).expect(2).says(&["others may read it", "chmod 600"]);
    world.north(&["check"]).expect(1).says(&["others may read it"]);
}

#[test]
fn a_source_agents_key_cannot_hold_a_point_or_begin_a_failover() {
    let world = World::new();
    world.replicate();
    let before = world.store_files();
    world.edit("south/farsite.yaml", |text| {
        text.replace(
            "operator: operator.key",
            &format!("operator: {}", world.at("north/source-agent.key").display()),
        )
    });
    let ended = world.south(&["points", "hold", "latest", "--reason", "theft"]).expect(4);
    ended.says(&["not signed by a key that may say it"]);
    let ended = world
        .south(&["failover", "--site", "north", "--assume-site-lost", "--reason", "theft", "--yes"])
        .expect(4);
    ended.says(&["source agent"]);
    assert_eq!(world.store_files(), before, "nothing was written");
}

#[test]
fn an_unknown_site_or_group_gets_the_nearest_names() {
    let world = World::new();
    world.replicate();
    let args = ["failover", "--site", "nroth", "--assume-site-lost", "--reason", "x", "--yes"];
    world.south(&args).expect(2).says(&["did you mean north?"]);
    world.south(&["status", "clowd"]).expect(2).says(&["did you mean cloud?"]);
    world.south(&["points", "list", "clod"]).expect(2).says(&["did you mean cloud?"]);
    world
        .south(&["failover", "--site", "north", "--level", "bussiness"])
        .expect(2)
        .says(&["did you mean business?"]);
    world.south(&["restore", "latest", "cinder/volume-2", "--to", "x"]).expect(2).says(&["cinder/volume-1"]);
    world.south(&["points", "show", "ffff"]).expect(2).says(&["no point starts with", "hint:"]);
    world.south(&["failovr"]).expect(2);
}

#[test]
fn a_dangerous_command_refuses_without_a_terminal_and_without_yes() {
    let world = World::new();
    world.replicate();
    let before = world.store_files();
    let ended =
        world.south(&["failover", "--site", "north", "--assume-site-lost", "--reason", "fire"]).expect(4);
    ended.says(&["nobody can be asked here", "--yes"]);
    let ended = world.south(&["failover", "--site", "north", "--yes"]).expect(4);
    ended.says(&["--assume-site-lost"]);
    let ended = world.south(&["failover", "--site", "north", "--assume-site-lost", "--yes"]).expect(2);
    ended.says(&["--reason"]);
    assert_eq!(world.store_files(), before, "nothing was written");
}

#[test]
fn an_unreachable_database_makes_the_point_partial_and_says_so() {
    let world = World::new();
    world.replicate();
    std::fs::rename(world.at("cloud/cloud.db"), world.at("cloud/gone.db")).unwrap();
    let ended = world.north(&["replicate"]).expect(1);
    ended.says(&["PARTIAL", "sqlite/cloud", "cloud.db"]);
    world.north(&["check"]).expect(1).says(&["✗"]);
    let listed = world.south(&["points", "list", "--json"]).expect(0).json();
    assert_eq!(listed[0]["whole"], false);
    assert_eq!(listed[1]["whole"], true);
}

#[test]
fn there_is_a_word_when_no_configuration_is_found() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &["status", "--config", "nowhere.yaml"])
        .expect(2)
        .says(&["nowhere.yaml", "cannot be read"]);
}

#[test]
fn an_agent_alone_at_its_group_is_told_of_by_a_second_one() {
    let world = World::new();
    world.replicate();
    let lock = world.at("north/state/groups/cloud/south/lock");
    let file = std::fs::File::options().write(true).open(&lock).unwrap();
    file.lock().unwrap();
    world.north(&["replicate"]).expect(1).says(&["another process"]);
}
