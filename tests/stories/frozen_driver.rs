//! A failover stands still in the middle of a step, as a suspended virtual machine does; a second machine waits its time
//! out and finishes. When the first one goes on it does nothing more.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use farsite_scenarios::listing::Listing;
use farsite_scenarios::process::{Running, comes_true};
use farsite_scenarios::{Random, TwoSites, said};
use rustix::process::Signal;

/// Long enough for everything here; a step's time is seconds.
const LIMIT: Duration = Duration::from_mins(1);
const VOLUME_BYTES: usize = 96 << 20;

/// Real effects, and times so short that a driver's right to act runs out while it is frozen.
const RUNBOOK: &str = "
name: hasty
stages:
  - name: restore
    steps:
      - { id: restore-database, action: restore-database, timeout: 3s }
      - { id: restore-volumes, action: restore-volumes, timeout: 3s }
  - name: mark
    steps:
      - id: mark
        action: command
        timeout: 3s
        with:
          run: [/bin/sh, -c, \"sleep 1; echo {{ promotion }} >> PLACES/marks\"]
          check: [/bin/sh, -c, \"grep -q {{ promotion }} PLACES/marks\"]
      - id: and-again
        action: command
        needs: [mark]
        timeout: 3s
        with: { run: [/bin/sh, -c, \"echo last >> PLACES/marks\"], idempotent: true }
";

const ITEMS: &str = "  - sqlite: { path: NORTH/cloud.db }\n  - cinder: { path: NORTH/volumes }\n";

async fn a_lost_site() -> TwoSites {
    let sites = TwoSites::founded(ITEMS).await;
    std::fs::create_dir(sites.data("volumes")).unwrap();
    std::fs::write(sites.data("volumes/volume-a"), volume()).unwrap();
    let database = rusqlite::Connection::open(sites.data("cloud.db")).unwrap();
    database.execute_batch("CREATE TABLE beat (n INTEGER PRIMARY KEY); INSERT INTO beat VALUES (7)").unwrap();
    drop(database);
    assert!(sites.replicate().await.whole);
    // What stood at the places before is moved aside, and must stay there as well.
    std::fs::create_dir_all(sites.path("south/places/volumes")).unwrap();
    std::fs::write(sites.path("south/places/volumes/volume-a"), "an older promotion's").unwrap();
    let places = sites.path("south/places").display().to_string();
    std::fs::write(sites.path("hasty.yaml"), RUNBOOK.replace("PLACES", &places)).unwrap();
    sites.edit("south/policies/cloud.yaml", |text| text.replace("rpo: 20s", "rpo: 20m"));
    sites
}

fn volume() -> Vec<u8> {
    let mut bytes = vec![0; VOLUME_BYTES];
    Random(5).fill(&mut bytes);
    bytes
}

fn failover(sites: &TwoSites) -> Running {
    let args = [
        "failover",
        "--site",
        "north",
        "--level",
        "data",
        "--assume-site-lost",
        "--reason",
        "fire",
        "--yes",
        "--runbook",
        "hasty.yaml",
    ];
    Running::start(sites.command("south/farsite.yaml", &args), &sites.path("first.log"))
}

/// The journal's entries as texts, in order.
fn journal(sites: &TwoSites) -> Vec<String> {
    let mut found: Vec<(PathBuf, Vec<u8>)> = Listing::of(&sites.path("south/replica/journal"))
        .0
        .into_iter()
        .filter_map(|(path, (_, bytes))| Some((path, bytes?)))
        .collect();
    found.sort();
    found.into_iter().map(|(_, bytes)| String::from_utf8_lossy(&bytes).into_owned()).collect()
}

fn is_begun(sites: &TwoSites, step: &str) -> bool {
    journal(sites).iter().any(|entry| entry.contains("\"intent\"") && entry.contains(step))
}

/// How the first driver ended after it was thawed.
struct Thawed {
    sites: TwoSites,
    /// What the second driver needed.
    took: Duration,
    code: Option<i32>,
    said: String,
}

impl Thawed {
    #[track_caller]
    fn assert_it_was_told(&self) {
        assert_eq!(self.code, Some(1), "{}", self.said);
        assert!(self.said.contains("another driver has taken over"), "{}", self.said);
        // Nobody had said that the first one was dead.
        assert!(self.took > Duration::from_secs(2), "the second waited for the first one's time to be over");
        let takeovers = journal(&self.sites).iter().filter(|entry| entry.contains("\"takeover\"")).count();
        assert_eq!(takeovers, 1);
    }
}

/// Freezes the first driver when `now` says so, lets a second machine finish, and thaws the first one: the places, the
/// ledger and the journal stay as the second one left them.
async fn frozen_and_taken_over(now: impl Fn(&TwoSites) -> bool) -> Thawed {
    let sites = a_lost_site().await;
    let mut first = failover(&sites);
    let came = comes_true(LIMIT, || now(&sites) || first.ended().is_some());
    first.signal(Signal::STOP);
    assert!(came && first.ended().is_none(), "{}", first.said());

    let second = sites.another_machine("second");
    let begun = Instant::now();
    let output =
        sites.command(&second, &["failover", "--site", "north", "--resume", "--yes"]).output().unwrap();
    let took = begun.elapsed();
    assert_eq!(output.status.code(), Some(0), "{}\nthe first:\n{}", said(&output), first.said());
    assert!(said(&output).contains("south is primary now"), "{}", said(&output));
    assert_restored(&sites);

    // A file that was being written into the store when it froze has no name there yet: no reader sees it.
    let everything = || Listing::of(&sites.path("south")).without("replica/.tmp").without("state");
    let before = everything();
    let length = journal(&sites).len();
    first.signal(Signal::CONT);
    let code = first.ends_within(LIMIT);
    let changes = everything().changes_since(&before);
    assert!(changes.is_empty(), "the thawed driver did something: {changes:?}");
    assert_eq!(journal(&sites).len(), length, "and it said nothing");
    Thawed { sites, took, code, said: first.said() }
}

fn assert_restored(sites: &TwoSites) {
    let places = sites.path("south/places");
    assert!(std::fs::read(places.join("volumes/volume-a")).unwrap() == volume(), "the volume is whole");
    let database = rusqlite::Connection::open(places.join("cloud.db")).unwrap();
    let row: i64 = database.query_row("SELECT n FROM beat", [], |row| row.get(0)).unwrap();
    assert_eq!(row, 7);
    let marks = std::fs::read_to_string(places.join("marks")).unwrap();
    assert_eq!(marks.lines().count(), 2, "each mark was made once: {marks}");
}

fn half_written(sites: &TwoSites) -> bool {
    let partial = sites.path("south/places/volumes/.volume-a.farsite-partial");
    partial.metadata().is_ok_and(|m| m.blocks() > 2048)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_frozen_while_it_writes_a_volume_does_nothing_when_thawed() {
    frozen_and_taken_over(half_written).await.assert_it_was_told();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_frozen_while_its_command_runs_does_nothing_when_thawed() {
    // The command itself is not frozen and ends; its check tells the second driver so.
    frozen_and_taken_over(|sites| is_begun(sites, "\"mark\"")).await.assert_it_was_told();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_frozen_before_its_first_step_does_nothing_when_thawed() {
    // Only the order and the journal's beginning stand in the store, or an intent or two: wherever it was caught.
    let thawed = frozen_and_taken_over(|sites| !journal(sites).is_empty()).await;
    match thawed.code {
        // It had begun nothing yet: it reads that all is done, and says so.
        Some(0) => assert!(thawed.said.contains("south is primary now"), "{}", thawed.said),
        _ => thawed.assert_it_was_told(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_thawed_while_the_second_one_writes_the_same_volume_spoils_nothing() {
    let sites = a_lost_site().await;
    let mut first = failover(&sites);
    assert!(comes_true(LIMIT, || half_written(&sites)), "{}", first.said());
    first.signal(Signal::STOP);
    let own = |sites: &TwoSites| {
        journal(sites).iter().filter(|e| e.contains(&format!("pid {} ", first.pid()))).count()
    };
    let second = sites.another_machine("second");
    let args = ["failover", "--site", "north", "--resume", "--yes"];
    let mut second = Running::start(sites.command(&second, &args), &sites.path("second.log"));
    let taken_over = |entry: &String| entry.contains("\"takeover\"");
    assert!(comes_true(LIMIT, || journal(&sites).iter().any(taken_over)), "{}", second.said());
    let said_before = own(&sites);
    assert!(comes_true(LIMIT, || half_written(&sites)), "{}", second.said());
    first.signal(Signal::CONT);
    assert_eq!(second.ends_within(LIMIT), Some(0), "{}", second.said());
    assert_eq!(own(&sites), said_before, "the first one says nothing behind the takeover");
    assert_eq!(first.ends_within(LIMIT), Some(1), "{}", first.said());
    assert!(first.said().contains("another driver has taken over"), "{}", first.said());
    assert_restored(&sites);
    assert!(!half_written(&sites), "nothing is left beside the volume");
}
