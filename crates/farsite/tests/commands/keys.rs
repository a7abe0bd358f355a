//! `farsite store keys` as a person types it.

use crate::common::{World, run};

/// A second identity: another store's `init` makes one. Returns its recipient.
fn stranger(world: &World, name: &str) -> String {
    let out = format!("{name}-keys");
    let store = format!("./{name}-store");
    let made = run(world.path(), &["init", &store, "--out", &out, "--json"]).expect(0).json();
    made["recipients"][0].as_str().unwrap().to_owned()
}

/// The standby's configuration with another identity.
fn as_stranger(world: &World, name: &str) {
    let south = std::fs::read_to_string(world.at("south/farsite.yaml")).unwrap();
    std::fs::create_dir_all(world.at(name)).unwrap();
    std::fs::copy(
        world.at(&format!("{name}-keys/south/south.identity")),
        world.at(&format!("{name}/south.identity")),
    )
    .unwrap();
    std::fs::copy(world.at("south/operator.key"), world.at(&format!("{name}/operator.key"))).unwrap();
    std::fs::write(world.at(&format!("{name}/farsite.yaml")), south).unwrap();
}

#[test]
fn a_recipient_is_added_opens_all_and_is_removed_again() {
    let world = World::new();
    world.replicate();
    let new = stranger(&world, "eve");
    as_stranger(&world, "eve");
    world.site("eve", &["points", "verify", "latest"]).expect(2).says(&["not among the store's recipients"]);
    let add = |more: &[&str]| {
        let mut args = vec![
            "store",
            "keys",
            "add-recipient",
            &new,
            "--name",
            "eve",
            "--reason",
            "she stands in",
            "--json",
        ];
        args.extend(more);
        world.south(&args)
    };
    let before = world.store_files();
    let dry = add(&["--dry-run"]).expect(0).json();
    assert_eq!((&dry["dry_run"], dry["wrapped"]["written"].as_u64()), (&true.into(), Some(1)), "{dry}");
    assert_eq!(dry["amendment"], serde_json::Value::Null);
    add(&[]).expect(4).says(&["not confirmed", "--yes"]);
    assert_eq!(world.store_files(), before, "neither a dry run nor a question changes anything");
    let done = add(&["--yes"]).expect(0).json();
    assert_eq!(
        (done["amendment"].as_u64(), done["wrapped"]["written"].as_u64()),
        (Some(0), Some(1)),
        "{done}"
    );
    world.site("eve", &["points", "verify", "latest"]).expect(0);
    let again = add(&["--yes"]).expect(0).json();
    assert_eq!(
        (&again["amendment"], again["wrapped"]["written"].as_u64()),
        (&serde_json::Value::Null, Some(0))
    );
    world.south(&["check"]).expect(0).says(&["3 can open it"]);

    let listed = world.south(&["store", "keys", "list", "--json"]).expect(0).json();
    let line = &listed["recipients"][2];
    assert_eq!((line["name"].as_str(), line["opens"].as_u64()), (Some("eve"), Some(1)), "{listed}");
    assert_eq!(line["added"]["reason"], "she stands in");
    assert_eq!(listed["signers"].as_array().unwrap().len(), 3);
    world.south(&["store", "keys", "list"]).expect(0).says(&[
        "1 of 1",
        "operator",
        "source agent",
        "she stands in",
    ]);

    let remove = ["store", "keys", "remove-recipient", "eve", "--reason", "she left"];
    world.south(&remove).expect(4).says(&["not confirmed", "still open what it could before (1 of 1"]);
    world.south(&[&remove[..], &["--yes"]].concat()).expect(0).says(&["Nothing more is sealed for"]);
    world.beat(2);
    world.replicate();
    let error = world.site("eve", &["points", "verify", "latest"]).expect(2);
    error.says(&["is not wrapped for this identity", "keys list"]);
    world.south(&["points", "verify", "--all", "cloud"]).expect(0);
    // Collection and checks know of wraps.
    world.south(&["store", "gc", "--dry-run"]).expect(0);
    world.south(&["store", "check", "--rounds", "5", "--depth", "full"]).expect(0);
}

#[test]
fn never_below_two_recipients_unless_it_is_said() {
    let world = World::new();
    let listed = world.south(&["store", "keys", "list", "--json"]).expect(0).json();
    let one = listed["recipients"][1]["recipient"].as_str().unwrap().to_owned();
    let args = ["store", "keys", "remove-recipient", &one, "--reason", "lost", "--yes"];
    world.south(&args).expect(4).says(&["one recipient would be left", "--single-recipient"]);
    world.south(&[&args[..], &["--dry-run"]].concat()).expect(4).says(&["one recipient would be left"]);
    world.south(&[&args[..], &["--single-recipient"]].concat()).expect(0);
    world
        .south(&["store", "keys", "remove-recipient", "age1", "--reason", "x", "--yes", "--single-recipient"])
        .expect(4)
        .says(&["last recipient"]);
}

#[test]
fn the_agent_of_a_lost_machine_is_replaced() {
    let world = World::new();
    world.replicate();
    let north = "agent at north";
    let add = [
        "store",
        "keys",
        "add-signer",
        "--role",
        "source-agent",
        "--site",
        "north",
        "--name",
        "north again",
        "--out",
        "new-north",
        "--reason",
        "the old machine was stolen",
    ];
    let dry = world.south(&[&add[..], &["--dry-run", "--json"]].concat()).expect(0).json();
    assert_eq!(dry["files"].as_array().unwrap().len(), 0);
    assert!(!world.at("new-north").exists());
    let added = world.south(&[&add[..], &["--yes"]].concat()).expect(0);
    added.says(&["may sign from now on", "source-agent.key", "block.secret"]);
    let retire = ["store", "keys", "retire-signer", north, "--reason", "stolen", "--yes"];
    let planned = world.south(&[&retire[..], &["--dry-run", "--json"]].concat()).expect(0).json();
    assert_eq!(planned["counts"]["entries"]["ledger/cloud"].as_u64(), Some(2), "{planned}");
    world.south(&retire).expect(0).says(&["signs nothing more"]);
    world.north(&["replicate"]).expect(4).says(&["this key was retired", "stolen"]);
    // The same host with the new key goes on, and sends nothing twice.
    for file in ["source-agent.key", "block.secret"] {
        let new = world.at("new-north").join(file);
        std::fs::rename(new, world.at("north").join(file)).unwrap();
    }
    world.beat(3);
    world.replicate();
    world.south(&["points", "verify", "--all", "cloud"]).expect(0);
    world.south(&["store", "keys", "list"]).expect(0).says(&["retired", "stolen", "north again"]);
    world
        .south(&["store", "keys", "retire-signer", "operator", "--reason", "x", "--yes"])
        .expect(4)
        .says(&["last operator"]);
}

#[test]
fn a_store_whose_amendments_were_rolled_back_is_found_out_by_a_host_that_had_read_them() {
    let world = World::new();
    world.replicate();
    let new = stranger(&world, "eve");
    let add = ["store", "keys", "add-recipient", &new, "--name", "eve", "--reason", "x", "--yes"];
    world.south(&add).expect(0);
    world.south(&["store", "keys", "remove-recipient", "eve", "--reason", "y", "--yes"]).expect(0);
    world.replicate();
    std::fs::remove_file(world.at("store/amendments/0000000000000001")).unwrap();
    // Nothing more is sealed: it would be sealed for eve again.
    world.north(&["replicate"]).expect(4).says(&[
        "amendments/0000000000000001",
        "it was deleted",
        "nothing was sealed",
    ]);
    world.south(&["store", "keys", "list"]).expect(1).says(&["it was deleted"]);
    world.south(&["points", "verify", "latest"]).expect(0);
    // An operator says it again, and accepts what was lost.
    world.south(&["store", "keys", "remove-recipient", "eve", "--reason", "again", "--yes"]).expect(0);
    let accept = ["store", "keys", "accept-damage", "1", "--reason", "said again", "--yes"];
    world.south(&accept).expect(0).says(&["agents seal again"]);
    world.beat(5);
    world.replicate();
    world.south(&["store", "keys", "list"]).expect(0);
}
