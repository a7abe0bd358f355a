//! The main job, end to end, by the program itself: two sites, a disaster, a failover, and a count of what was lost.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn farsite(args: &[&str], temporary: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_farsite")).args(args).env("TMPDIR", temporary).output().unwrap()
}

/// Socket paths are short, so a test's folder has a short name.
fn short_folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("fd").tempdir_in("/tmp").unwrap()
}

fn played(database: &str, store: &str, seed: &str) {
    let folder = short_folder();
    let output =
        farsite(&["demo", "--database", database, "--store", store, "--seed", seed, "--json"], folder.path());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}\n{said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(figures["failures"], Value::Array(Vec::new()), "{figures}");
    let rpo = figures["reported"]["rpo"]["at_most_s"].as_f64().unwrap();
    let losses = figures["true_loss"]["losses"].as_array().unwrap();
    assert_eq!(losses.len(), 4);
    for loss in losses {
        assert!(loss["true_loss_s"].as_f64().unwrap() <= rpo, "{loss} against a reported RPO of {rpo}s");
    }
    assert!(figures["points"].as_u64().unwrap() >= 3);
    assert_eq!(figures["true_loss"]["volumes_of_one_instant"], true);
    let report = std::fs::read_to_string(figures["report"].as_str().unwrap()).unwrap();
    assert!(report.contains("<html"));
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().flatten().filter(|entry| entry.path().is_dir()).collect();
    assert!(left.is_empty(), "the demo left {left:?}");
}

#[test]
fn heavy_a_site_on_sqlite_is_lost_and_promoted_within_its_reported_rpo() {
    played("sqlite", "folder", "11");
}

#[test]
fn heavy_a_site_on_sqlite_replicates_to_s3_and_is_promoted_within_its_reported_rpo() {
    played("sqlite", "s3", "12");
}

#[test]
fn heavy_a_site_on_mariadb_is_lost_and_promoted_within_its_reported_rpo() {
    played("mariadb", "s3", "13");
}

#[test]
fn a_folder_that_is_no_demo_is_never_removed() {
    let folder = short_folder();
    std::fs::write(folder.path().join("precious"), "x").unwrap();
    let output = farsite(&["demo", "--remove", folder.path().to_str().unwrap()], folder.path());
    assert_eq!(output.status.code(), Some(2));
    assert!(folder.path().join("precious").is_file());
}
