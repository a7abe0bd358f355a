//! The store's disk is full in the middle of a run: the run says so, nothing half-written is visible, and when there is
//! room again the next run goes on with what had arrived.

use farsite_scenarios::listing::Listing;
use farsite_scenarios::mounts::{self, Mounted};
use farsite_scenarios::{Random, TwoSites, said};

const MIB: usize = 1 << 20;
/// Room for the first point and for some packs (of 8 MiB) of the second one.
const SMALL: &str = "size=36m";
const ROOMY: &str = "size=256m";
const FIRST_BYTES: usize = 4 * MIB;
const SECOND_BYTES: usize = 80 * MIB;

const NAME: &str = "a_full_store_is_said_and_the_next_run_goes_on_when_there_is_room";

/// What readers can see of the store.
fn visible(sites: &TwoSites, folder: &str) -> Listing {
    Listing::of(&sites.path("south/replica").join(folder))
}

fn packs(sites: &TwoSites) -> usize {
    visible(sites, "packs").0.values().filter(|(_, bytes)| bytes.is_some()).count()
}

#[test]
fn a_full_store_is_said_and_the_next_run_goes_on_when_there_is_room() {
    if !mounts::are_own() {
        return mounts::with_own(module_path!(), NAME, &[]);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(story());
}

async fn story() {
    let sites = TwoSites::founded("  - cinder: { path: NORTH/volumes }\nmemory: 64MiB\n").await;
    let disk = Mounted::over(&sites.path("south/replica"), SMALL);
    let mut bytes = vec![0; SECOND_BYTES];
    Random(3).fill(&mut bytes);
    std::fs::create_dir(sites.data("volumes")).unwrap();
    let volume = sites.data("volumes/volume-a");
    std::fs::write(&volume, &bytes[..FIRST_BYTES]).unwrap();
    let first = sites.farsite("north", &["replicate"]);
    assert_eq!(first.status.code(), Some(0), "{}", said(&first));
    let point = sites.ledger().await.state().points[0].id();

    // More than fits.
    std::fs::write(&volume, &bytes).unwrap();
    let full = sites.farsite("north", &["replicate"]);
    assert_eq!(full.status.code(), Some(1), "{}", said(&full));
    for words in ["is full", "nothing half-written is visible", "free space at the store, then run again"] {
        assert!(said(&full).contains(words), "{words:?} is not in {}", said(&full));
    }
    let ledger = sites.ledger().await;
    assert!(ledger.state().damage.is_empty() && ledger.state().void.is_empty());
    let there: Vec<_> = ledger.state().points.iter().map(farsite_store::ledger::CommittedPoint::id).collect();
    assert_eq!(there, [point], "no point was committed");
    assert!(visible(&sites, ".tmp").0.is_empty(), "what did not fit was removed");
    let verified = sites.farsite("south", &["points", "verify", "--all"]);
    assert!(verified.status.success(), "{}", said(&verified));
    // The same again while it is full: nothing gets worse, and what arrived stays.
    let arrived = visible(&sites, "packs");
    let again = sites.farsite("north", &["replicate"]);
    assert_eq!(again.status.code(), Some(1), "{}", said(&again));
    let gone = arrived.0.keys().filter(|path| !visible(&sites, "packs").0.contains_key(*path)).count();
    assert_eq!(gone, 0);

    disk.resize(ROOMY);
    let before = packs(&sites);
    assert!(before >= 3, "some packs of the second point had arrived: {before}");
    let output = sites.farsite("north", &["replicate", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let report = &answer[0]["report"];
    assert!(report["resumed"] == true && report["whole"] == true, "{report}");
    assert_eq!(packs(&sites) as u64, before as u64 + report["packs"].as_u64().unwrap(), "{report}");
    let sent: usize =
        visible(&sites, "packs").0.values().filter_map(|(_, bytes)| Some(bytes.as_ref()?.len())).sum();
    // Both points' data, their maps, and nothing twice.
    assert!(sent < SECOND_BYTES + 4 * MIB, "{sent} bytes were sent for {SECOND_BYTES} bytes of data");
    let verified = sites.farsite("south", &["points", "verify", "--all"]);
    assert!(verified.status.success(), "{}", said(&verified));
}
