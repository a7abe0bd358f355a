//! `farsite init` as a person types it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::common::{World, run};

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn init_makes_private_keys_for_each_machine_and_prints_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    for (args, out) in
        [(vec!["init", "./a", "--out", "ka"], "ka"), (vec!["init", "./b", "--out", "kb", "--json"], "kb")]
    {
        let ended = run(folder.path(), &args).expect(0);
        let said = ended.stdout + &ended.stderr;
        let mut secrets = 0;
        for file in files(&folder.path().join(out)) {
            let text = std::fs::read_to_string(&file).unwrap();
            let is_key = file.extension().is_some_and(|e| e == "key" || e == "secret" || e == "identity");
            if !is_key {
                assert!(
                    !text.contains("SECRET-KEY-1") && !text.contains("SIGNING-KEY-1"),
                    "{}",
                    file.display()
                );
                continue;
            }
            secrets += 1;
            let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", file.display());
            let secret = text.lines().find(|line| !line.starts_with('#')).unwrap();
            assert!(!said.contains(secret), "{} was printed", file.display());
        }
        assert!(secrets >= 6, "{secrets} key files");
        assert!(said.contains("north") && said.contains("south") && said.contains("operator"), "{said}");
    }
}

#[test]
fn a_store_that_is_one_already_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &["init", "./store", "--out", "one"]).expect(0);
    let before = std::fs::read(folder.path().join("store/format")).unwrap();
    let again = run(folder.path(), &["init", "./store", "--out", "two"]).expect(4);
    again.says(&["already", "nothing was changed"]);
    assert_eq!(std::fs::read(folder.path().join("store/format")).unwrap(), before);
    assert!(!folder.path().join("two").exists(), "no keys of a store that was not made");
}

#[test]
fn keys_are_never_overwritten_and_a_failed_init_leaves_no_store() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &["init", "./store", "--out", "keys"]).expect(0);
    let ended = run(folder.path(), &["init", "./other", "--out", "keys"]).expect(4);
    ended.says(&["keys", "nothing was changed", "hint:"]);
    assert!(!folder.path().join("other/format").exists());
}

#[test]
fn a_single_recipient_is_said_aloud() {
    let folder = tempfile::tempdir().unwrap();
    let ended = run(folder.path(), &["init", "./store", "--out", "keys", "--single-recipient"]).expect(0);
    ended.says(&["One recipient", "loses"]);
    assert!(!folder.path().join("keys/offline").exists());
}

#[test]
fn a_site_is_not_its_own_standby() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &["init", "./store", "--site", "x", "--source", "x"]).expect(2).says(&["own standby"]);
    assert!(!folder.path().join("store").exists());
}

#[test]
fn the_starter_configurations_are_read_and_pin_the_store() {
    let world = World::new();
    let north = world.north(&["check"]).expect(0);
    north.says(&["exactly one winner", "source agent of north", "NOT tamper-resistant"]);
    let south = world.south(&["check", "--json"]).expect(0).json();
    assert_eq!(south["ok"], true, "{south}");
    world.edit("north/farsite.yaml", |text| {
        let at = text.find("id: ").unwrap();
        format!("{}id: {}{}", &text[..at], "00".repeat(16), &text[at + 36..])
    });
    world.north(&["status"]).expect(4).says(&["not the store that the configuration names"]);
}

#[test]
fn one_more_standby_is_founded_with_the_keys_that_the_source_has() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &["init", "./a", "--out", "keys"]).expect(0);
    let more = ["init", "./b", "--site", "west", "--out", "new", "--source-keys"];
    let wrong = run(folder.path(), &[&more[..], &["keys/offline"]].concat());
    assert_ne!(wrong.code, 0);
    wrong.says(&["source-agent.key"]);
    assert!(!folder.path().join("b/format").exists(), "without the source's keys there is no store");

    let ended = run(folder.path(), &[&more[..], &["keys/north"]].concat()).expect(0);
    ended.says(&["The source keeps its keys", "add-to-farsite.yaml", "`to:`"]);
    let north: Vec<_> = files(&folder.path().join("new/north"));
    assert_eq!(north, [folder.path().join("new/north/add-to-farsite.yaml")]);
    let said = std::fs::read_to_string(&north[0]).unwrap();
    assert!(said.contains("stores:\n  west:") && said.contains("sites:\n  west: {}"), "{said}");
    assert!(folder.path().join("new/operator/west.identity").exists());
    // Both stores know the same agent of north.
    let agent = |store: &str| -> serde_json::Value {
        let format = std::fs::read(folder.path().join(store).join("format")).unwrap();
        let format: serde_json::Value = serde_json::from_slice(&format).unwrap();
        let keys = format["keys"].as_array().unwrap();
        keys.iter().find(|key| key["site"] == "north").unwrap()["key"].clone()
    };
    assert_eq!(agent("a"), agent("b"));
}
