//! `farsite hydrate`: the copies of the standby are brought to the newest point by hand, where no agent runs.

use crate::common::World;

#[test]
fn a_person_hydrates_the_standby_and_only_what_differs_is_written_the_next_time() {
    let world = World::new();
    world.replicate();
    let copy = world.at("restored/volumes/.farsite-hydrated/volume-1");
    let written = |how: &str| -> u64 {
        let said = world.south(&["hydrate", "--json"]).expect(0).json();
        let items = said[0]["items"].as_array().unwrap();
        let item = items.iter().find(|item| item["item"] == "cinder/volume-1").unwrap();
        assert_eq!(item["how"], how, "{said}");
        assert!(said[0]["point"].is_string(), "{said}");
        item["written_bytes"].as_u64().unwrap()
    };
    assert!(written("anew") >= 500_000);
    assert_eq!(std::fs::read(&copy).unwrap(), vec![9; 500_000]);
    assert_eq!(written("already"), 0);
    let mut bytes = vec![9; 500_000];
    bytes[100_000..100_100].fill(1);
    std::fs::write(world.at("cloud/volumes/volume-1"), &bytes).unwrap();
    world.replicate();
    assert_eq!(written("difference"), 65_536);
    assert_eq!(std::fs::read(&copy).unwrap(), bytes);
    // What somebody changed by hand is found out.
    std::fs::write(&copy, vec![0; 500_000]).unwrap();
    assert!(written("compared") > 0);
    assert_eq!(std::fs::read(&copy).unwrap(), bytes);

    world.south(&["hydrate", "cluod"]).expect(2).says(&["no group cluod has places at this site", "cloud"]);
    world.north(&["hydrate"]).expect(2).says(&["no group has places at this site"]);
}
