//! The command line's own words: help, completions, manual pages, for every command.

use crate::common::run;

const COMMANDS: [&[&str]; 36] = [
    &["init"],
    &["check"],
    &["agent"],
    &["replicate"],
    &["status"],
    &["points"],
    &["points", "list"],
    &["points", "show"],
    &["points", "verify"],
    &["points", "hold"],
    &["points", "release"],
    &["restore"],
    &["failover"],
    &["accept"],
    &["rollback"],
    &["promotion"],
    &["promotion", "list"],
    &["promotion", "show"],
    &["promotion", "confirm"],
    &["promotion", "skip"],
    &["promotion", "cancel"],
    &["promotion", "report"],
    &["drill"],
    &["drill", "run"],
    &["drill", "list"],
    &["drill", "show"],
    &["drill", "report"],
    &["drill", "cleanup"],
    &["runbook"],
    &["runbook", "check"],
    &["runbook", "graph"],
    &["runbook", "schema"],
    &["policy", "check"],
    &["policy", "schema"],
    &["store", "check"],
    &["demo"],
];

#[test]
fn every_command_has_help() {
    let folder = tempfile::tempdir().unwrap();
    for command in COMMANDS {
        let mut args = command.to_vec();
        args.push("--help");
        let ended = run(folder.path(), &args).expect(0);
        assert!(ended.stdout.contains("Usage:"), "{command:?}");
    }
}

#[test]
fn the_help_names_the_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &["--help"]).expect(0).says(&[
        "refused because unsafe",
        "waiting for a person",
        "130",
    ]);
}

#[test]
fn completions_are_printed_for_every_shell() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = run(folder.path(), &["completions", shell]).expect(0);
        assert!(ended.stdout.contains("failover"), "{shell}");
    }
    run(folder.path(), &["completions", "csh"]).expect(2);
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    assert!(run(folder.path(), &["man"]).expect(0).stdout.contains(".TH farsite"));
    run(folder.path(), &["man", "--out", "man"]).expect(0);
    for page in ["farsite.1", "farsite-failover.1", "farsite-points-verify.1", "farsite-drill-run.1"] {
        assert!(folder.path().join("man").join(page).is_file(), "{page}");
    }
    assert!(!folder.path().join("man/farsite-demo-north.1").exists(), "hidden commands have no page");
}

#[test]
fn schemas_are_json() {
    let folder = tempfile::tempdir().unwrap();
    for what in ["policy", "runbook"] {
        let schema = run(folder.path(), &[what, "schema"]).expect(0).json();
        assert!(schema["properties"].is_object(), "{what}");
    }
}
