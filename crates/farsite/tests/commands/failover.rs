//! The site is lost: failover, what comes after it, and drills, as an operator types them.

use crate::common::{IMAGE, World};

const LOST: [&str; 6] = ["failover", "--site", "north", "--assume-site-lost", "--reason", "fire"];

fn lost<'a>(more: &[&'a str]) -> Vec<&'a str> {
    LOST.iter().chain(more).copied().collect()
}

#[test]
fn a_dry_run_shows_the_plan_and_changes_nothing() {
    let world = World::new();
    let point = world.replicate();
    let before = world.store_files();
    let ended = world.south(&lost(&["--dry-run"])).expect(0);
    ended.says(&[
        "restore-database",
        "verify-contents",
        &point[..8],
        "taken by default",
        "nothing was changed",
    ]);
    let plan = world.south(&lost(&["--dry-run", "--json"])).expect(0).json();
    assert_eq!(plan["groups"][0]["point"], point.as_str());
    world.south(&["failover", "--site", "north", "--dry-run"]).expect(1).says(&["may still serve"]);
    assert_eq!(world.store_files(), before);
    assert!(!world.at("restored").exists());
}

#[test]
fn a_failover_promotes_south_and_leaves_a_report() {
    let world = World::new();
    world.replicate();
    world.beat(2);
    let point = world.replicate();
    world.beat(3);
    let ended = world.south(&lost(&["--yes"])).expect(0);
    ended.says(&[&point[..8], "south is primary now", "achieved RPO", "RTO", ".html", "farsite accept"]);
    let database = rusqlite::Connection::open(world.at("restored/cloud.db")).unwrap();
    let beats: i64 = database.query_row("SELECT max(n) FROM heartbeat", [], |row| row.get(0)).unwrap();
    let url: String = database.query_row("SELECT url FROM endpoint", [], |row| row.get(0)).unwrap();
    assert_eq!((beats, url.as_str()), (2, "http://south.example:5000/v3"));
    assert_eq!(std::fs::read(world.at("restored/images").join(IMAGE)).unwrap(), vec![7; 300_000]);
    assert_eq!(std::fs::read(world.at("restored/volumes/volume-1")).unwrap(), vec![9; 500_000]);

    let listed = world.south(&["promotion", "list", "--json"]).expect(0).json();
    let id = listed[0]["promotion"].as_str().unwrap().to_owned();
    assert_eq!(listed[0]["result"], "completed");
    for ending in ["html", "json"] {
        assert!(world.at("south/state/reports").join(format!("{id}.{ending}")).is_file(), "{ending}");
    }
    let report = world.south(&["promotion", "report", &id[..6], "--json"]).expect(0).json();
    let rpo = &report["groups"][0]["rpo"]["total"];
    assert!(rpo["at_least_s"].as_f64().unwrap() <= rpo["at_most_s"].as_f64().unwrap(), "{rpo}");
    world.south(&["promotion", "report", "--format", "junit", "--out", "-"]).expect(0).says(&["<testsuite"]);
    world.south(&["promotion", "show"]).expect(0).says(&["restore-database", "completed"]);
    world.south(&["status"]).expect(0).says(&["promoted", "waiting for accept"]);

    // The old primary is fenced, and nobody can promote it twice.
    world.north(&["replicate"]).expect(4).says(&["can commit nothing"]);
    let again = world.south(&lost(&["--yes"]));
    assert_ne!(again.code, 0);
    world.south(&["accept", "--yes"]).expect(0);
    world.south(&["rollback", "--yes"]).expect(4).says(&["accept"]);
}

#[test]
fn a_rollback_gives_the_primary_back() {
    let world = World::new();
    world.replicate();
    world.south(&lost(&["--yes", "--level", "data"])).expect(0);
    world.south(&["rollback"]).expect(4).says(&["--yes"]);
    world
        .south(&["rollback", "--yes", "--reason", "it was not lost"])
        .expect(0)
        .says(&["north is primary again"]);
    assert!(!world.at("restored/cloud.db").exists());
    world.replicate();
    assert_eq!(world.south(&["promotion", "list", "--json"]).expect(0).json()[0]["result"], "rolled-back");
}

#[test]
fn a_partial_point_is_not_taken_silently() {
    let world = World::new();
    let whole = world.replicate();
    std::fs::rename(world.at("cloud/cloud.db"), world.at("cloud/gone.db")).unwrap();
    world.north(&["replicate"]).expect(1);
    let listed = world.south(&["points", "list", "--json"]).expect(0).json();
    let partial = listed[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(listed[0]["whole"], false);
    let plan = world.south(&lost(&["--dry-run", "--json"])).expect(0).json();
    assert_eq!(plan["groups"][0]["point"], whole.as_str());
    // A person may name it; what is wrong is said.
    world.south(&lost(&["--yes", "--level", "data", "--point", &partial])).expect(0).says(&["partial"]);
}

#[test]
fn a_person_confirms_what_is_not_it() {
    let world = World::new();
    world.replicate();
    let gate = "name: gated\nstages:\n  - name: people\n    steps:\n      \
                - id: telephones\n        action: person-confirms\n        runs: real-only\n        \
                gate: { who: telephony, prompt: 'Are calls routed?', timeout: 1h }\n";
    std::fs::write(world.at("gated.yaml"), gate).unwrap();
    world
        .south(&lost(&["--yes", "--runbook", "gated.yaml"]))
        .expect(5)
        .says(&["telephony", "promotion confirm"]);
    world.south(&["promotion", "confirm", "--step", "telefones"]).expect(2).says(&["telephones"]);
    world.south(&["promotion", "confirm", "--step", "telephones"]).expect(0);
    world
        .south(&["failover", "--site", "north", "--resume", "--yes"])
        .expect(0)
        .says(&["south is primary now"]);
}

#[test]
fn a_driver_that_was_killed_on_this_host_keeps_nobody_waiting() {
    let world = World::new();
    world.replicate();
    let hangs = "name: hangs\nstages:\n  - name: only\n    steps:\n      - id: wait\n        action: command\n        \
                 timeout: 5m\n        with: { run: [/bin/sh, -c, 'test -e cured || { touch begun; sleep 3; touch went-on; sleep 20; }'], idempotent: true }\n";
    std::fs::write(world.at("hangs.yaml"), hangs).unwrap();
    let mut driver = world.begin_south(&lost(&["--yes", "--runbook", "hangs.yaml"]));
    let begun = std::time::Instant::now();
    while !world.at("begun").exists() {
        assert!(begun.elapsed().as_secs() < 60, "its step never began");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    // Its parent does not ask for it: it stays in the list of processes, dead.
    driver.kill().unwrap();
    std::fs::write(world.at("cured"), "").unwrap();
    let begun = std::time::Instant::now();
    world
        .south(&["failover", "--site", "north", "--resume", "--yes"])
        .expect(0)
        .says(&["south is primary now"]);
    assert!(begun.elapsed().as_secs() < 30, "the dead one's time was not waited for");
    driver.wait().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(!world.at("went-on").exists(), "what the dead one ran did not go on beside it");
}

#[test]
fn a_drill_passes_leaves_nothing_and_proves_its_point() {
    let world = World::new();
    let point = world.replicate();
    let ended = world.south(&["drill", "run"]).expect(0);
    ended.says(&["passed", "RTO", ".html"]);
    assert!(!world.at("restored").exists(), "nothing of production was touched");
    assert_eq!(std::fs::read_dir(world.at("south/state/drills")).map_or(0, Iterator::count), 0);
    world.south(&["points", "list"]).expect(0).says(&["proven"]);
    let status = world.south(&["status", "--json"]).expect(0).json();
    assert_eq!(status["groups"][0]["newest_proven"], point.as_str());
    world.south(&["drill", "list"]).expect(0).says(&["passed"]);
    world.south(&["drill", "show"]).expect(0).says(&["verify-contents"]);
    let report = world.south(&["drill", "report", "--json"]).expect(0).json();
    assert_eq!(report["mode"], "drill");
    world.south(&["drill", "cleanup"]).expect(0);
    // Replication was not disturbed.
    world.replicate();
}

#[test]
fn a_drill_that_finds_something_wrong_goes_red() {
    let world = World::new();
    world.replicate();
    world.edit("south/farsite.yaml", |text| {
        text + "      database_assert: \"SELECT count(*) = 0 FROM heartbeat\"\n"
    });
    world.south(&["drill", "run"]).expect(1).says(&["FAILED", "assert-database"]);
    world.south(&["drill", "list"]).expect(0).says(&["failed"]);
    assert!(!world.at("restored").exists());
    let listed = world.south(&["points", "list", "--json"]).expect(0).json();
    assert_eq!(listed[0]["proven"], false);
}
