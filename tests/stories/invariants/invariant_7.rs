//! A drill changes nothing that production, replication or a later failover can see, and proves afterwards that nothing
//! is left behind.

use std::path::Path;
use std::time::Duration;

use farsite_model::{Epoch, PointId};
use farsite_scenarios::listing::Listing;
use farsite_scenarios::process::{Running, comes_true};
use farsite_scenarios::{TwoSites, noise, said, site};
use farsite_store::ledger::{CommittedPoint, SiteLedger};

const LIMIT: Duration = Duration::from_mins(1);

const ITEMS: &str = "  - sqlite: { path: NORTH/cloud.db }\n  - cinder: { path: NORTH/volumes }\n";
/// The drill's service takes longer to start than replication needs for several points, and reads on in the drill's own
/// database until it is stopped. The real service must not be touched.
const VARIABLES: &str = "    variables:
      service_start: 'touch SOUTH/real-service-was-started'
      drill_service_start: 'tail -f -n0 {{ place.sqlite }} >/dev/null 2>&1 & echo $! > SOUTH/drill.pid; sleep 4'
      drill_service_status: 'kill -0 $(cat SOUTH/drill.pid)'
      drill_service_stop: 'kill $(cat SOUTH/drill.pid) && rm SOUTH/drill.pid'
";

async fn two_sites() -> TwoSites {
    let sites = TwoSites::founded(ITEMS).await;
    std::fs::create_dir(sites.data("volumes")).unwrap();
    std::fs::write(sites.data("volumes/volume-a"), noise(2, 8 << 20)).unwrap();
    let database = rusqlite::Connection::open(sites.data("cloud.db")).unwrap();
    database.execute_batch("CREATE TABLE beat (n INTEGER PRIMARY KEY); INSERT INTO beat VALUES (7)").unwrap();
    // The standby serves things of its own in the places of a promotion.
    std::fs::create_dir_all(sites.path("south/places/volumes")).unwrap();
    std::fs::write(sites.path("south/places/volumes/volume-of-south"), noise(3, 1 << 20)).unwrap();
    std::fs::write(sites.path("south/places/cloud.db"), "south's own").unwrap();
    let south = sites.path("south").display().to_string();
    sites.edit("south/farsite.yaml", |text| text + &VARIABLES.replace("SOUTH", &south));
    sites
}

/// Processes whose command line or working folder names a path.
fn processes_of(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let folder = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if command.contains(&path.display().to_string()) || folder.starts_with(path) {
            found.push(command);
        }
    }
    found
}

/// What a failover would do now, without its figures.
fn plan(sites: &TwoSites) -> serde_json::Value {
    let args =
        ["failover", "--site", "north", "--assume-site-lost", "--reason", "fire", "--dry-run", "--json"];
    let output = sites.farsite("south", &args);
    assert!(output.status.success(), "{}", said(&output));
    let mut plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    without_figures(&mut plan);
    plan
}

/// How long things took, how old a point is by now, and whether it is proven.
fn without_figures(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|name, _| !name.ends_with("_s") && name != "proven" && name != "expected_rpo");
            fields.values_mut().for_each(without_figures);
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(without_figures),
        _ => {}
    }
}

#[track_caller]
fn assert_nothing_is_left(sites: &TwoSites) {
    let drills = std::fs::read_dir(sites.path("south/state/drills")).map_or(0, Iterator::count);
    assert_eq!(drills, 0, "the drill's folder is gone");
    assert!(!sites.path("south/drill.pid").exists(), "its service was stopped");
    assert!(!sites.path("south/real-service-was-started").exists(), "the real service was left alone");
    let processes = processes_of(&sites.path("south"));
    assert!(processes.is_empty(), "{processes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_7_a_drill_beside_a_running_agent_leaves_nothing_but_its_proof() {
    let sites = two_sites().await;
    // The agent itself makes snapshots that have a name for an instant: of north's folders only the files are compared.
    let production = || {
        let (north, south) = (sites.path("north/data"), sites.path("south/places"));
        (Listing::of(&north).files(), Listing::of(&south))
    };
    let before = production();
    let mut agent = Running::start(sites.command("north/farsite.yaml", &["agent"]), &sites.path("agent.log"));
    let committed =
        || std::fs::read_to_string(sites.path("agent.log")).unwrap().matches("point committed").count();
    assert!(comes_true(LIMIT, || committed() >= 2), "{}", agent.said());

    let mut drill =
        Running::start(sites.command("south/farsite.yaml", &["drill", "run"]), &sites.path("drill.log"));
    let runs = comes_true(LIMIT, || sites.path("south/drill.pid").exists() || drill.ended().is_some());
    assert!(runs && drill.ended().is_none(), "{}", drill.said());
    let while_it_runs = (committed(), processes_of(&sites.path("south/state/drills")).len());
    assert!(while_it_runs.1 > 0, "the drill's service reads in the drill's folder");
    assert_eq!(drill.ends_within(LIMIT), Some(0), "{}", drill.said());
    assert!(committed() >= while_it_runs.0 + 2, "points kept coming during the drill: {}", agent.said());
    assert_eq!(agent.ended(), None, "{}", agent.said());
    assert_nothing_is_left(&sites);

    let now = committed();
    assert!(comes_true(LIMIT, || committed() > now), "replication goes on after it: {}", agent.said());
    agent.signal(rustix::process::Signal::TERM);
    assert_eq!(agent.ends_within(LIMIT), Some(0), "{}", agent.said());
    let after = production();
    let changes = [after.0.changes_since(&before.0), after.1.changes_since(&before.1)].concat();
    assert!(changes.is_empty(), "{changes:?}");
    let log = agent.said();
    assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
    let ledger = sites.ledger().await;
    let state = ledger.state();
    assert!(state.damage.is_empty() && state.void.is_empty());
    assert_eq!((state.epochs.len(), state.epoch()), (1, Epoch(1)), "no epoch began");
    let proven: Vec<PointId> =
        state.points.iter().filter(|p| p.proven.is_some()).map(CommittedPoint::id).collect();
    assert_eq!(proven.len(), 1, "the drill proved its point");
    let site_ledger = SiteLedger::open(&sites.store().await, &site("north")).await.unwrap();
    assert!(site_ledger.state().promotions.is_empty(), "a drill is no promotion of the site");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_7_a_later_failover_sees_nothing_of_a_drill_but_its_proof() {
    let sites = two_sites().await;
    assert!(sites.replicate().await.whole);
    let before = plan(&sites);
    let drill = sites.farsite("south", &["drill", "run"]);
    assert_eq!(drill.status.code(), Some(0), "{}", said(&drill));
    assert_nothing_is_left(&sites);
    assert_eq!(plan(&sites), before);
    let proven = sites.ledger().await.state().points[0].proven.clone();
    assert!(proven.is_some_and(|how| how.starts_with("drill ")));

    let args = ["failover", "--site", "north", "--assume-site-lost", "--reason", "fire", "--yes"];
    let failover = sites.farsite("south", &args);
    assert_eq!(failover.status.code(), Some(0), "{}", said(&failover));
    let places = sites.path("south/places");
    assert!(std::fs::read(places.join("volumes/volume-a")).unwrap() == noise(2, 8 << 20));
    assert!(std::fs::read(places.join("volumes/volume-of-south")).unwrap() == noise(3, 1 << 20));
    let database = rusqlite::Connection::open(places.join("cloud.db")).unwrap();
    let row: i64 = database.query_row("SELECT n FROM beat", [], |row| row.get(0)).unwrap();
    assert_eq!(row, 7);
    assert!(sites.path("south/real-service-was-started").exists(), "now the real service starts");
    let listed = sites.farsite("south", &["promotion", "list", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1, "drills are listed apart: {listed}");
}
