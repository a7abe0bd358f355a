//! A promotion killed at any instant resumes from its journal, on any machine, and ends as if it had not been killed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use farsite_model::PromotionId;
use farsite_promote::journal::StoreJournal;
use farsite_runbook::journal::{JournalEntry, RunResult, StepStatus, What};
use farsite_scenarios::listing::Listing;
use farsite_scenarios::process::{Running, comes_true};
use farsite_scenarios::{Random, TwoSites, cloud, noise, said, seed, site};
use farsite_store::ledger::SiteLedger;

const LIMIT: Duration = Duration::from_mins(1);
/// Tries to hit the instant behind one entry exactly: this process is not always awake in time.
const TRIES: usize = 12;

const ITEMS: &str = "  - sqlite: { path: NORTH/cloud.db }\n  - glance: { store: NORTH/images }\n  - cinder: { path: NORTH/volumes }\n  - files: { name: keys, paths: [NORTH/keys] }\n";
const IMAGE: &str = "6b9f0a4e-0f5e-4c3a-9d55-0d1d6f6f9a01";
const VARIABLES: &str = "    variables:
      endpoint_table: endpoint
      old_endpoint: north.example
      new_endpoint: south.example
";

/// A site with one point, and a standby whose places hold older things; all of it is kept aside, to begin anew.
async fn a_lost_site() -> TwoSites {
    let sites = TwoSites::founded(ITEMS).await;
    for folder in ["images", "volumes", "keys"] {
        std::fs::create_dir(sites.data(folder)).unwrap();
    }
    let database = rusqlite::Connection::open(sites.data("cloud.db")).unwrap();
    database
        .execute_batch(
            "CREATE TABLE endpoint (id INTEGER PRIMARY KEY, url TEXT);
             INSERT INTO endpoint VALUES (1, 'http://north.example:5000/v3'), (2, 'http://north.example:9292');",
        )
        .unwrap();
    drop(database);
    std::fs::write(sites.data("images").join(IMAGE), noise(1, 300_000)).unwrap();
    std::fs::write(sites.data("volumes/volume-a"), noise(2, 2 << 20)).unwrap();
    std::fs::write(sites.data("keys/0"), "a key").unwrap();
    // An image whose file is this young could still be written to.
    let old = std::time::SystemTime::now() - Duration::from_mins(1);
    let image = std::fs::File::options().write(true).open(sites.data("images").join(IMAGE)).unwrap();
    image.set_modified(old).unwrap();
    assert!(sites.replicate().await.whole);
    sites.edit("south/farsite.yaml", |text| text + VARIABLES);
    sites.edit("south/policies/cloud.yaml", |text| text.replace("rpo: 20s", "rpo: 20m"));
    std::fs::create_dir_all(sites.path("south/places/volumes")).unwrap();
    std::fs::write(sites.path("south/places/volumes/volume-a"), "an older one").unwrap();
    std::fs::write(sites.path("south/places/cloud.db"), "an older one").unwrap();
    copy(&sites, "south", "template");
    sites
}

/// With times: those of the store's objects are its clock.
fn copy(sites: &TwoSites, from: &str, to: &str) {
    let _ = std::fs::remove_dir_all(sites.path(to));
    let copied = Command::new("cp").arg("-a").arg(sites.path(from)).arg(sites.path(to)).status().unwrap();
    assert!(copied.success());
}

/// The entries that the promotion has written: site, group and journal.
fn entries(sites: &TwoSites) -> usize {
    let new = |chain: &str| {
        let files = Listing::of(&sites.path("south/replica").join(chain)).0;
        files.values().filter(|(_, bytes)| bytes.is_some()).count()
    };
    let before = Listing::of(&sites.path("template/replica/ledger")).0;
    new("sites") + new("ledger") + new("journal") - before.values().filter(|(_, b)| b.is_some()).count()
}

/// Everything that a person would look at afterwards. The promotion's id, which differs, is called ID.
#[derive(Debug, PartialEq, Eq)]
struct End {
    places: BTreeMap<PathBuf, Vec<u8>>,
    endpoints: Vec<String>,
    epochs: Vec<String>,
    site_says: Vec<String>,
    completed: BTreeSet<String>,
}

async fn end(sites: &TwoSites, when: &str) -> End {
    let site_ledger = SiteLedger::open(&sites.store().await, &site("north")).await.unwrap();
    let [promotion] = site_ledger.state().promotions.as_slice() else { panic!("{when}: one promotion") };
    let site_says = vec![promotion.ended.as_ref().map_or("open", |(result, _)| result).to_owned()];
    let id = id_of(sites);
    let ledger = sites.ledger().await;
    assert!(ledger.state().damage.is_empty() && ledger.state().void.is_empty(), "{when}");
    let epochs = ledger.state().epochs.iter().map(|e| format!("{} {} {}", e.epoch, e.primary, e.promoted));
    let journal = StoreJournal::reading(&sites.store().await, id, &cloud()).entries().await.unwrap();
    let mut completed = BTreeSet::new();
    let mut finished = 0;
    for (number, entry) in &journal {
        match entry {
            JournalEntry::Outcome { step, what: What::Do, status, .. } => {
                assert!(
                    matches!(status, StepStatus::Completed | StepStatus::Skipped),
                    "{when}: entry {number}: {entry:?}"
                );
                assert!(completed.insert(step.clone()), "{when}: step {step} ended twice");
            }
            JournalEntry::Finished { result, .. } => {
                assert_eq!(*result, RunResult::Completed, "{when}");
                finished += 1;
            }
            _ => {}
        }
    }
    assert_eq!(finished, 1, "{when}");
    let database = rusqlite::Connection::open(sites.path("south/places/cloud.db")).unwrap();
    let text = |sql: &str| -> Vec<String> {
        let mut query = database.prepare(sql).unwrap();
        query.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let rewritten: i64 =
        database.query_row("SELECT count(*) FROM farsite_promotion", [], |row| row.get(0)).unwrap();
    assert_eq!(rewritten, 1, "{when}: the addresses were rewritten once");
    let endpoints = text("SELECT url FROM endpoint ORDER BY id");
    drop(database);
    let places = Listing::of(&sites.path("south/places")).0.into_iter().filter_map(|(path, (_, bytes))| {
        let name = path.to_string_lossy().replace(&id.to_string(), "ID");
        // The database is compared by its rows, and Farsite's own notes hold times.
        let own = name.contains("farsite-") || name == "cloud.db";
        Some((PathBuf::from(name), if own { Vec::new() } else { bytes? }))
    });
    End { places: places.collect(), endpoints, epochs: epochs.collect(), site_says, completed }
}

fn id_of(sites: &TwoSites) -> PromotionId {
    let journals = std::fs::read_dir(sites.path("south/replica/journal")).unwrap();
    let ids: Vec<_> = journals.map(|e| e.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    assert_eq!(ids.len(), 1, "one promotion has a journal");
    ids[0]
}

const BEGIN: [&str; 7] = ["failover", "--site", "north", "--assume-site-lost", "--reason", "fire", "--yes"];
const RESUME: [&str; 5] = ["failover", "--site", "north", "--resume", "--yes"];

/// Starts a failover on a machine, and kills it as soon as so many entries stand in the store. Gives how many stood there in
/// the end; none when it ended before, and well.
fn killed_at(sites: &TwoSites, config: &str, args: &[&str], wanted: usize) -> Option<usize> {
    let log = sites.path("failover.log");
    let _ = std::fs::remove_file(&log);
    let mut failover = Running::start(sites.command(config, args), &log);
    let mut code = None;
    let came = comes_true(LIMIT, || {
        code = failover.ended();
        code.is_some() || entries(sites) >= wanted
    });
    failover.kill();
    assert!(came, "neither {wanted} entries nor an end: {}", failover.said());
    if let Some(status) = code {
        assert_eq!(status.code(), Some(0), "{}", failover.said());
        return None;
    }
    Some(entries(sites))
}

/// The first driver, in a store that knows of no promotion yet.
fn failover_killed_after(sites: &TwoSites, wanted: usize) -> Option<usize> {
    copy(sites, "template", "south");
    killed_at(sites, "south/farsite.yaml", &BEGIN, wanted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_6_a_failover_killed_after_any_entry_ends_the_same_from_another_machine() {
    let sites = a_lost_site().await;
    assert_eq!(failover_killed_after(&sites, usize::MAX), None);
    let (whole, all) = (end(&sites, "not killed").await, entries(&sites));
    assert_eq!(whole.site_says, ["completed"]);
    assert_eq!(whole.endpoints, ["http://south.example:5000/v3", "http://south.example:9292"]);
    assert!(whole.completed.len() >= 8, "{:?}", whole.completed);

    let mut hit = BTreeSet::new();
    for wanted in 1..=all {
        let mut tries = 0;
        while !hit.contains(&wanted) && tries < TRIES {
            tries += 1;
            let Some(reached) = failover_killed_after(&sites, wanted) else { continue };
            // Later than meant is an instant as well, but one is enough.
            if !hit.insert(reached) {
                continue;
            }
            let when = format!("killed with {reached} of {all} entries");
            resume(&sites, &when).await;
            assert_eq!(end(&sites, &when).await, whole, "{when}");
        }
    }
    let missed: Vec<usize> = (1..all).filter(|n| !hit.contains(n)).collect();
    println!("{all} entries, killed behind {} of them; not hit: {missed:?}", hit.len());
    assert!(missed.len() <= all / 5, "the kills came too late to prove anything: {missed:?} of {all}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_6_a_failover_whose_every_driver_is_killed_ends_the_same() {
    let mut random = Random(seed());
    let sites = a_lost_site().await;
    assert_eq!(failover_killed_after(&sites, usize::MAX), None);
    let whole = end(&sites, "not killed").await;
    for round in 1..=5 {
        // A driver that wrote no more than its takeover brings nothing on: each comes some entries further.
        let Some(mut reached) = failover_killed_after(&sites, random.between(1, 6) as usize) else {
            continue;
        };
        let mut drivers = 1;
        loop {
            let other = sites.another_machine(&format!("machine-{drivers}"));
            drivers += 1;
            assert!(drivers < 40, "round {round}: no end");
            match killed_at(&sites, &other, &RESUME, reached + random.between(2, 7) as usize) {
                Some(further) => reached = further,
                None => break,
            }
            if is_over(&sites).await {
                break;
            }
        }
        println!("round {round}: {drivers} drivers");
        assert_eq!(end(&sites, &format!("round {round}, {drivers} drivers")).await, whole);
    }
}

async fn is_over(sites: &TwoSites) -> bool {
    let site_ledger = SiteLedger::open(&sites.store().await, &site("north")).await.unwrap();
    site_ledger.state().promotions.iter().all(|promotion| promotion.ended.is_some())
}

/// On a machine that has nothing but the store, keys and places.
async fn resume(sites: &TwoSites, when: &str) {
    if is_over(sites).await {
        return;
    }
    let other = sites.another_machine("other");
    let output = sites.command(&other, &RESUME).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{when}: {}", said(&output));
    assert!(said(&output).contains("south is primary now"), "{when}: {}", said(&output));
}
