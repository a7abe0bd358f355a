//! Keeping the store from the command line: retention and collection, expiry, differences, checks and figures.

use crate::common::World;

/// Keeps two points.
const LAST_TWO: &str = "rto: 10m\nretention: { last: 2, keep: none }\n";

fn with_retention() -> World {
    let world = World::new();
    for site in ["north", "south"] {
        world.edit(&format!("{site}/policies/cloud.yaml"), |text| text.replace("rto: 10m\n", LAST_TWO));
    }
    world
}

fn changed(world: &World, round: u8) -> String {
    let bytes: Vec<u8> =
        (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 ^ round).collect();
    std::fs::write(world.at("cloud/volumes/volume-2"), bytes).unwrap();
    world.replicate()
}

#[test]
fn retention_lets_points_go_and_collection_removes_what_only_they_needed() {
    let world = with_retention();
    let points: Vec<String> = (0..4).map(|round| changed(&world, round)).collect();
    let before = world.store_files();
    let dry = world.south(&["store", "gc", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(world.store_files(), before, "a dry run changes nothing");
    let group = &dry["groups"]["cloud"];
    assert_eq!(group["released"].as_array().unwrap().len(), 2, "{dry}");
    assert_eq!(dry["retention"]["cloud"][3]["kept"][0], "last-whole", "{dry}");
    world.south(&["store", "gc"]).expect(4).says(&["Release 2 points", "--yes"]);
    assert_eq!(world.store_files(), before, "nobody could be asked");
    let done = world.south(&["store", "gc", "--yes", "--json"]).expect(0).json();
    assert_eq!(done["groups"]["cloud"]["packs"], group["packs"], "what was foreseen");
    assert!(world.store_files().len() < before.len());
    let listed = world.south(&["points", "list", "--json"]).expect(0).json();
    let ids: Vec<&str> = listed.as_array().unwrap().iter().map(|p| p["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [points[3].as_str(), points[2].as_str()]);
    world.south(&["points", "verify", "--all", "cloud"]).expect(0);
    world.south(&["store", "gc"]).expect(0).says(&["0 packs"]);
    // Replication goes on behind it.
    changed(&world, 9);
    world.south(&["points", "verify", "latest"]).expect(0);
}

#[test]
fn a_host_without_the_policy_releases_nothing() {
    let world = with_retention();
    for round in 0..3 {
        changed(&world, round);
    }
    std::fs::remove_file(world.at("south/policies/cloud.yaml")).unwrap();
    world.south(&["store", "gc", "--yes"]).expect(0).says(&["no policy for cloud", "3 points stay"]);
}

#[test]
fn a_person_lets_a_point_go_but_never_the_last_one() {
    let world = World::new();
    let first = changed(&world, 1);
    let second = changed(&world, 2);
    world.south(&["points", "hold", &first, "--reason", "audit"]).expect(0);
    world.south(&["points", "expire", &first, "--yes"]).expect(4).says(&["stays", "points release"]);
    world.south(&["points", "release", &first]).expect(0);
    world.south(&["points", "expire", &first]).expect(4).says(&["not confirmed"]);
    world.south(&["points", "expire", &first, "--yes"]).expect(0);
    world.south(&["points", "expire", &second, "--yes"]).expect(4).says(&["stays"]);
    let listed = world.south(&["points", "list", "--json"]).expect(0).json();
    assert_eq!(listed.as_array().unwrap().len(), 1);
}

#[test]
fn differences_between_two_points_are_told_by_item() {
    let world = World::new();
    changed(&world, 1);
    std::fs::write(world.at("cloud/volumes/volume-3"), vec![7; 10_000]).unwrap();
    std::fs::remove_file(world.at("cloud/volumes/volume-1")).unwrap();
    let second = changed(&world, 2);
    let first =
        world.south(&["points", "list", "--json"]).expect(0).json()[1]["id"].as_str().unwrap().to_owned();
    let diff = world.south(&["points", "diff", &first, &second, "--json"]).expect(0).json();
    let of = |name: &str| {
        let items = diff["items"].as_array().unwrap();
        items.iter().find(|line| line["item"] == name).unwrap_or_else(|| panic!("{name}: {diff}")).clone()
    };
    assert_eq!(of("cinder/volume-1")["change"], "removed");
    assert_eq!(of("cinder/volume-3")["change"], "added");
    assert_eq!(of("cinder/volume-2")["change"], "changed");
    assert_eq!(of("cinder/volume-2")["changed_bytes"], 300_000);
    assert_eq!(of("files/keystone")["change"], "same");
    world
        .south(&["points", "diff", &first, &second])
        .expect(0)
        .says(&["+ cinder/volume-3", "- cinder/volume-1"]);
}

#[test]
fn a_check_names_what_is_damaged_whom_it_touches_and_whom_not() {
    let world = World::new();
    let first = changed(&world, 1);
    let before = world.store_files();
    let second = changed(&world, 2);
    for depth in ["structure", "sample", "full"] {
        let checked = world
            .south(&["store", "check", "--rounds", "5", "--depth", depth, "--sample", "100", "--json"])
            .expect(0)
            .json();
        let group = &checked["contents"]["cloud"];
        assert_eq!(
            (group["points"].as_u64(), group["damage"].as_array().unwrap().len()),
            (Some(2), 0),
            "{depth}"
        );
        assert_eq!(group["bytes_opened"].as_u64().unwrap() > 0, depth != "structure", "{depth}: {checked}");
    }
    let pack = world
        .store_files()
        .into_iter()
        .find(|file| !before.contains(file) && file.to_str().unwrap().contains("pack"))
        .unwrap();
    let bytes = std::fs::read(&pack).unwrap();
    let mut flipped = bytes.clone();
    flipped[100] ^= 1;
    std::fs::remove_file(&pack).unwrap();
    std::fs::write(&pack, flipped).unwrap();
    let name = pack.file_name().unwrap().to_str().unwrap();
    let ended = world.south(&["store", "check", "--rounds", "5", "--depth", "full"]).expect(1);
    ended.says(&["is damaged", name, "needed by cinder/volume-2", &second[..8]]);
    ended.says(&[&format!("Untouched points: {}", &first[..8])]);
    // Cut short, it is found without reading it.
    std::fs::remove_file(&pack).unwrap();
    std::fs::write(&pack, &bytes[..bytes.len() - 7]).unwrap();
    world.south(&["store", "check", "--rounds", "5", "--depth", "structure"]).expect(1).says(&[name]);
    world.south(&["store", "gc", "--yes"]).expect(4).says(&["nothing of cloud was removed"]);
}

#[test]
fn figures_of_the_store_add_up() {
    let world = with_retention();
    for round in 0..3 {
        changed(&world, round);
    }
    let stats = |world: &World| {
        world.south(&["store", "stats", "--json"]).expect(0).json()["groups"]["cloud"].clone()
    };
    let before = stats(&world);
    assert_eq!(
        (before["points"].as_u64(), before["garbage_packs"]["objects"].as_u64()),
        (Some(3), Some(0)),
        "{before}"
    );
    assert!(before["ratio"].as_f64().unwrap() > 1.0, "{before}");
    let middle =
        world.south(&["points", "list", "--json"]).expect(0).json()[1]["id"].as_str().unwrap().to_owned();
    world.south(&["points", "expire", &middle, "--yes"]).expect(0);
    let after = stats(&world);
    assert_eq!(after["expired_points"], 1);
    assert!(after["garbage_packs"]["bytes"].as_u64().unwrap() > 0, "{after}");
    world.south(&["store", "stats"]).expect(0).says(&["GARBAGE", "cloud"]);
}

#[test]
fn packs_with_little_that_is_live_are_emptied_and_every_point_stays_whole() {
    let world = with_retention();
    // One volume with two halves: one that stays, one that is new each time.
    for round in 0..4u64 {
        let mut bytes: Vec<u8> = Vec::with_capacity(2 << 20);
        for block in 0..32u64 {
            let seed = if block % 4 == 0 { block } else { 1000 + 100 * round + block };
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            for _ in 0..8192 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                bytes.extend_from_slice(&state.to_le_bytes());
            }
        }
        std::fs::write(world.at("cloud/volumes/volume-2"), bytes).unwrap();
        world.replicate();
    }
    world.south(&["store", "gc", "--yes"]).expect(0);
    let before = world.store_files();
    world.south(&["store", "compact", "--max-live", "100%"]).expect(2).says(&["between 1% and 99%"]);
    let dry = world.south(&["store", "compact", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(world.store_files(), before, "a dry run changes nothing");
    let foreseen = &dry["groups"]["cloud"];
    assert!(foreseen["emptied"]["objects"].as_u64().unwrap() > 0, "{dry}");
    assert!(foreseen["freed_bytes"].as_u64().unwrap() > 1 << 20, "{dry}");
    let done = world.south(&["store", "compact", "--json"]).expect(0).json();
    assert_eq!(done["groups"]["cloud"]["emptied"], foreseen["emptied"], "what was foreseen");
    world.south(&["points", "verify", "--all", "cloud"]).expect(0);
    let gone = world.south(&["store", "gc", "--yes", "--json"]).expect(0).json();
    assert_eq!(gone["groups"]["cloud"]["packs"]["objects"], foreseen["emptied"]["objects"], "{gone}");
    world.south(&["points", "verify", "--all", "cloud"]).expect(0);
    world.south(&["store", "check", "--rounds", "5", "--depth", "full"]).expect(0);
    changed(&world, 9);
    world.south(&["points", "verify", "latest"]).expect(0);
    world.south(&["store", "compact"]).expect(0).says(&["cloud", "0 packs"]);
}

#[test]
fn a_damaged_store_is_mended_by_a_run_at_the_source_and_a_repair_behind_it() {
    let world = World::new();
    let points = [changed(&world, 1), changed(&world, 1)];
    let packs = world.store_files().into_iter().filter(|file| file.to_str().unwrap().contains("/packs/"));
    let pack = packs.max_by_key(|file| file.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&pack).unwrap();
    std::fs::write(&pack, bytes).unwrap();
    let check = ["store", "check", "--rounds", "5", "--depth", "full"];
    world.south(&check).expect(1).says(&["is damaged", "farsite store repair"]);
    let before = world.store_files();
    let dry = world.south(&["store", "repair", "--dry-run", "--json"]).expect(1).json();
    assert_eq!(world.store_files(), before, "a dry run changes nothing");
    assert_eq!(dry["groups"]["cloud"]["noted"].as_array().unwrap().len(), 2, "{dry}");
    let name = pack.file_name().unwrap().to_str().unwrap();
    world.south(&["store", "repair"]).expect(1).says(&[
        "noted as damaged",
        name,
        "needed by",
        "at the source",
    ]);
    let listed = world.south(&["points", "list", "--json"]).expect(0).json();
    let flaws = |point: &serde_json::Value| point["flaws"].as_array().unwrap().len();
    assert!(listed.as_array().unwrap().iter().all(|point| flaws(point) == 1), "{listed}");

    let third = world.replicate();
    world.south(&["points", "verify", "latest"]).expect(0).says(&[&third[..8]]);
    let ended = world.south(&["store", "repair"]).expect(0);
    ended.says(&["mended", &points[0][..8], &points[1][..8], "newest undamaged whole point", &third[..8]]);
    world.south(&["points", "verify", "--all", "cloud"]).expect(0);
    world.south(&check).expect(0);
    world.south(&["store", "gc", "--yes"]).expect(0).says(&["1 packs"]);
    world.south(&["store", "repair"]).expect(0).says(&["nothing is damaged (3 points"]);
}
