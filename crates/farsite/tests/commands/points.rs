//! From a run to what a person sees of it: status, points, restore, verify, hold.

use crate::common::{IMAGE, World};

#[test]
fn a_run_is_seen_in_status_and_points() {
    let world = World::new();
    world.south(&["status"]).expect(0).says(&["no point that a failover would take"]);
    let point = world.replicate();
    let status = world.south(&["status", "--json"]).expect(0).json();
    let group = &status["groups"][0];
    assert_eq!(group["group"], "cloud");
    assert_eq!(group["newest_point"]["id"], point.as_str());
    assert_eq!(group["rpo_target_s"], 1200.0);
    assert!(group["exposure_s"].as_f64().unwrap() < 60.0, "{group}");
    world.north(&["status"]).expect(0).says(&["replicating", &point[..8], "met"]);
    let shown = world.south(&["points", "show", &point[..6], "--json"]).expect(0).json();
    let items: Vec<&str> = shown["manifest"]["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["id"].as_str().unwrap())
        .collect();
    let image = format!("glance/{IMAGE}");
    assert_eq!(items, ["cinder/volume-1", "files/keystone", image.as_str(), "sqlite/cloud"]);
}

#[test]
fn an_rpo_that_is_missed_is_exit_code_3() {
    let world = World::new();
    for site in ["north", "south"] {
        world.edit(&format!("{site}/policies/cloud.yaml"), |text| text.replace("rpo: 20m", "rpo: 1ms"));
    }
    world.north(&["replicate"]).expect(3);
    world.south(&["status"]).expect(3).says(&["MISSED"]);
}

#[test]
fn a_dry_run_writes_nothing() {
    let world = World::new();
    let before = world.store_files();
    world.north(&["replicate", "--dry-run"]).expect(0).says(&["sqlite/cloud", "1 items"]);
    assert_eq!(world.store_files(), before);
}

#[test]
fn items_come_back_as_they_were_and_nothing_is_overwritten_by_mistake() {
    let world = World::new();
    world.replicate();
    let to = world.at("volume.raw");
    let to = to.to_str().unwrap();
    world.south(&["restore", "latest", "volume-1", "--to", to]).expect(0).says(&["cinder/volume-1"]);
    assert_eq!(std::fs::read(to).unwrap(), vec![9; 500_000]);
    world
        .south(&["restore", "latest", "volume-1", "--to", to])
        .expect(4)
        .says(&["exists already", "--force"]);
    world.south(&["restore", "latest", "volume-1", "--to", to, "--force"]).expect(0);
    let keys = world.at("keys-again");
    world.south(&["restore", "latest", "keystone", "--to", keys.to_str().unwrap()]).expect(0);
    let key = keys.join(world.at("cloud/keystone/0").strip_prefix("/").unwrap());
    assert_eq!(std::fs::read_to_string(key).unwrap(), "a fernet key");
    let ended = world.south(&["restore", "latest", "volume-1", "--at", "1h ago", "--to", "x"]).expect(2);
    ended.says(&["no shipped log"]);
    world.north(&["restore", "latest", "volume-1", "--to", "y"]).expect(2).says(&["no identity"]);
}

#[test]
fn a_flipped_byte_is_named_and_the_newest_undamaged_point_is_offered() {
    let world = World::new();
    let first = world.replicate();
    let before = world.store_files();
    world.beat(2);
    std::fs::write(world.at("cloud/volumes/volume-2"), vec![5; 200_000]).unwrap();
    let second = world.replicate();
    let pack = world
        .store_files()
        .into_iter()
        .find(|file| !before.contains(file) && file.to_str().unwrap().contains("pack"))
        .unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[100] ^= 1;
    std::fs::remove_file(&pack).unwrap();
    std::fs::write(&pack, bytes).unwrap();
    let name = pack.file_name().unwrap().to_str().unwrap();
    let ended = world.south(&["points", "verify", "latest", "--record"]).expect(1);
    ended.says(&["is damaged", name, &first[..8]]);
    let listed = world.south(&["points", "list", "--json"]).expect(0).json();
    assert_eq!(listed[0]["id"], second.as_str());
    assert!(listed[0]["flaws"][0].as_str().unwrap().starts_with("damaged: packs/"), "{listed}");
    world.south(&["points", "verify", &first]).expect(0);
    let shown = world.south(&["status", "--json"]).expect(0).json();
    assert!(shown["groups"][0]["warnings"].to_string().contains("damaged"), "{shown}");
}

#[test]
fn a_point_is_held_and_released_by_the_operator() {
    let world = World::new();
    let point = world.replicate();
    world.south(&["points", "hold", &point[..8], "--reason", "audit"]).expect(0);
    world.south(&["points", "list"]).expect(0).says(&["held"]);
    world.south(&["points", "release", "cloud", "latest"]).expect(0);
    assert_eq!(world.south(&["points", "list", "--json"]).expect(0).json()[0]["held"], false);
    world.north(&["points", "hold", "latest", "--reason", "x"]).expect(2).says(&["keys.operator"]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let world = World::new();
    world.replicate();
    let mut command = crate::common::program(world.path());
    command.args(["points", "list", "--config"]).arg(world.at("south/farsite.yaml"));
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert!(!String::from_utf8_lossy(&ended.stderr).contains("panicked"));
    assert_eq!(ended.status.code(), Some(0));
}

#[test]
fn the_store_can_be_checked() {
    let world = World::new();
    world.replicate();
    let checked = world.south(&["store", "check", "--rounds", "5", "--json"]).expect(0).json();
    assert_eq!(checked["groups"], 1);
    assert_eq!(checked["can_overwrite"], true);
}
