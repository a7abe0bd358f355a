//! Volumes on a file system with reflinks: a run reads what was written since the last one, and nothing else; what the file
//! system says is held against a full read, and not believed any more once it was wrong.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use farsite_scenarios::mounts::{self, Mounted};
use farsite_scenarios::process::{Running, comes_true};
use farsite_scenarios::{TwoSites, noise, said};

const MIB: usize = 1 << 20;
const BLOCK: u64 = 64 << 10;
/// More than one leaf of the block map.
const VOLUME_BYTES: usize = 96 * MIB;
const ITEMS: &str = "  - cinder: { path: NORTH/volumes }\n";
/// XFS lives in an image file here, which only root may mount.
const PROBE: [&str; 3] = ["sh", "-c", "test -w /dev/loop-control && mount -t tmpfs tmpfs /mnt"];

async fn a_site() -> (TwoSites, Mounted) {
    let sites = TwoSites::founded(ITEMS).await;
    fs::create_dir(sites.data("volumes")).unwrap();
    let disk = Mounted::xfs(&sites.data("volumes"), &sites.path("xfs.image"), 400);
    fs::write(sites.data("volumes/volume-a"), noise(1, VOLUME_BYTES)).unwrap();
    (sites, disk)
}

fn write_at(sites: &TwoSites, offset: usize, bytes: &[u8]) {
    let volume = File::options().write(true).open(sites.data("volumes/volume-a")).unwrap();
    volume.write_all_at(bytes, offset as u64).unwrap();
}

/// A run's report.
#[track_caller]
fn replicate(sites: &TwoSites) -> serde_json::Value {
    let output = sites.farsite("north", &["replicate", "--json"]);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}", said(&output));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    answer[0]["report"].clone()
}

#[track_caller]
fn assert_restores(sites: &TwoSites, report: &serde_json::Value) {
    let to = sites.path("restored");
    let _ = fs::remove_file(&to);
    let point = report["point"].as_str().unwrap();
    let output = sites.farsite("south", &["restore", point, "cinder/volume-a", "--to", to.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(fs::read(&to).unwrap() == fs::read(sites.data("volumes/volume-a")).unwrap());
}

fn kept(sites: &TwoSites) -> Vec<PathBuf> {
    let entries = fs::read_dir(sites.data("volumes")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(".farsite-")).collect()
}

fn verify_tracking(sites: &TwoSites, after: &str) {
    sites.edit("north/policies/cloud.yaml", |text| {
        let lines = text.lines().filter(|line| !line.starts_with("verify-tracking"));
        lines.collect::<Vec<_>>().join("\n") + &format!("\nverify-tracking: {after}\n")
    });
}

#[test]
fn a_run_reads_what_was_written_and_nothing_else() {
    if !mounts::are_own() {
        return mounts::with_own(module_path!(), "a_run_reads_what_was_written_and_nothing_else", &PROBE);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (sites, _disk) = a_site().await;
        assert_eq!(replicate(&sites)["read_bytes"], VOLUME_BYTES);
        write_at(&sites, 70 * MIB + 5, b"a few bytes");
        let report = replicate(&sites);
        assert_eq!((&report["read_bytes"], &report["changed_bytes"]), (&BLOCK.into(), &BLOCK.into()));
        // A page of the block had changed: a patch against the version that is kept.
        assert!(report["shipped_bytes"].as_u64().unwrap() < 3_000, "{report}");
        assert_restores(&sites, &report);
        let nothing = replicate(&sites);
        assert_eq!((&nothing["read_bytes"], &nothing["changed_bytes"]), (&0.into(), &0.into()));
        assert_eq!(kept(&sites).len(), 1, "one version is kept: {:?}", kept(&sites));

        // Grown, with a hole and a new end; and a hole punched into old data.
        let volume = File::options().write(true).open(sites.data("volumes/volume-a")).unwrap();
        volume.set_len(150 * MIB as u64).unwrap();
        write_at(&sites, 149 * MIB, &noise(2, 1000));
        let holes = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&volume, holes, 10 * MIB as u64, 2 * MIB as u64).unwrap();
        let report = replicate(&sites);
        assert!(report["read_bytes"].as_u64().unwrap() <= 2 * BLOCK, "{report}");
        assert_restores(&sites, &report);
        // And shrunken.
        volume.set_len(33 * MIB as u64 + 7).unwrap();
        let report = replicate(&sites);
        assert!(report["read_bytes"].as_u64().unwrap() <= BLOCK, "{report}");
        assert_restores(&sites, &report);

        // A version that is gone costs reading, nothing else.
        for path in kept(&sites) {
            fs::remove_file(path).unwrap();
        }
        write_at(&sites, 0, b"x");
        let report = replicate(&sites);
        assert_eq!(
            (&report["read_bytes"], &report["changed_bytes"]),
            (&(31 * MIB + 7).into(), &BLOCK.into())
        );
        assert_restores(&sites, &report);
        // A volume that is deleted leaves nothing behind. (Another one stays: an empty folder would be a failure.)
        fs::write(sites.data("volumes/volume-b"), noise(3, 100_000)).unwrap();
        replicate(&sites);
        fs::remove_file(sites.data("volumes/volume-a")).unwrap();
        replicate(&sites);
        assert_eq!(kept(&sites).len(), 1, "{:?}", kept(&sites));
    });
}

#[test]
fn a_standby_that_missed_points_is_told_all_that_changed_since_its_own() {
    if !mounts::are_own() {
        return mounts::with_own(
            module_path!(),
            "a_standby_that_missed_points_is_told_all_that_changed_since_its_own",
            &PROBE,
        );
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (sites, _disk) = a_site().await;
        sites.one_more_standby("west", "./west/replica", "");
        let run = |args: &[&str]| -> BTreeMap<String, serde_json::Value> {
            let output = sites.farsite("north", &[&["replicate", "--json"], args].concat());
            assert!(matches!(output.status.code(), Some(0 | 3)), "{}", said(&output));
            let answer: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
            let to = |run: &serde_json::Value| run["to"].as_str().unwrap().to_owned();
            answer.into_iter().map(|run| (to(&run), run["report"].clone())).collect()
        };
        let restores = |at: &str, report: &serde_json::Value| {
            let to = sites.path("restored");
            let _ = fs::remove_file(&to);
            let args = [
                "restore",
                report["point"].as_str().unwrap(),
                "cinder/volume-a",
                "--to",
                to.to_str().unwrap(),
            ];
            let output = sites.command(at, &args).output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
            assert!(fs::read(&to).unwrap() == fs::read(sites.data("volumes/volume-a")).unwrap(), "{at}");
        };
        run(&[]);
        assert_eq!(kept(&sites).len(), 1, "both stand on one version: {:?}", kept(&sites));
        for at in [5, 20] {
            write_at(&sites, at * MIB, &noise(at as u64, 4096));
            run(&["--to", "south"]);
            assert_eq!(kept(&sites).len(), 2, "each stands on its own: {:?}", kept(&sites));
        }
        write_at(&sites, 50 * MIB, &noise(50, 4096));
        let both = run(&[]);
        // West has missed two of the three changes.
        assert_eq!(both["south"]["read_bytes"], BLOCK);
        assert_eq!(both["west"]["read_bytes"], 3 * BLOCK);
        restores("south/farsite.yaml", &both["south"]);
        restores("west/operator/farsite.yaml", &both["west"]);
        assert_eq!(kept(&sites).len(), 1, "{:?}", kept(&sites));
        // A run to one of them that comes to no point takes nothing from the other.
        fs::rename(sites.path("west/replica/packs"), sites.path("west/replica/away")).unwrap();
        fs::write(sites.path("west/replica/packs"), "no folder").unwrap();
        write_at(&sites, 60 * MIB, &noise(60, 4096));
        let output = sites.farsite("north", &["replicate", "--json"]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        fs::remove_file(sites.path("west/replica/packs")).unwrap();
        fs::rename(sites.path("west/replica/away"), sites.path("west/replica/packs")).unwrap();
        let both = run(&[]);
        assert_eq!((&both["south"]["read_bytes"], &both["west"]["read_bytes"]), (&0.into(), &BLOCK.into()));
        restores("west/operator/farsite.yaml", &both["west"]);
        assert_eq!(kept(&sites).len(), 1, "{:?}", kept(&sites));
    });
}

#[test]
fn invariant_10_change_tracking_is_checked_against_a_full_read_and_a_source_that_lied_is_distrusted() {
    const NAME: &str =
        "invariant_10_change_tracking_is_checked_against_a_full_read_and_a_source_that_lied_is_distrusted";
    if !mounts::are_own() {
        return mounts::with_own(module_path!(), NAME, &PROBE);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (sites, _disk) = a_site().await;
        replicate(&sites);
        // A check that finds all well.
        write_at(&sites, 5 * MIB, b"told");
        verify_tracking(&sites, "0s");
        let report = replicate(&sites);
        assert_eq!((&report["read_bytes"], &report["changed_bytes"]), (&VOLUME_BYTES.into(), &BLOCK.into()));
        verify_tracking(&sites, "7d");

        // The kept version is exchanged for one in which the change is there already: nothing seems to have changed.
        write_at(&sites, 7 * MIB, b"untold");
        let version = kept(&sites).remove(0);
        fs::remove_file(&version).unwrap();
        let clone = File::options().write(true).create_new(true).open(&version).unwrap();
        let volume = File::open(sites.data("volumes/volume-a")).unwrap();
        rustix::fs::ioctl_ficlone(&clone, &volume).unwrap();
        let fooled = replicate(&sites);
        assert_eq!(fooled["changed_bytes"], 0, "the lie is not seen without a full read");

        verify_tracking(&sites, "0s");
        let output = sites.farsite("north", &["replicate"]);
        let words = said(&output);
        assert!(words.contains("65536 bytes of cinder/volume-a had changed"), "{words}");
        assert!(words.contains("not believed again"), "{words}");
        verify_tracking(&sites, "7d");
        write_at(&sites, 9 * MIB, b"more");
        let report = replicate(&sites);
        assert_eq!(report["read_bytes"], VOLUME_BYTES, "it reads everything from now on");
        assert_restores(&sites, &report);
    });
}

#[test]
fn a_kept_version_that_holds_too_much_is_let_go_and_a_dead_store_does_not_make_it_grow() {
    if !mounts::are_own() {
        return mounts::with_own(
            module_path!(),
            "a_kept_version_that_holds_too_much_is_let_go_and_a_dead_store_does_not_make_it_grow",
            &PROBE,
        );
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (sites, _disk) = a_site().await;
        sites.edit("north/policies/cloud.yaml", |text| text + "keep-versions: 8MiB\n");
        replicate(&sites);
        write_at(&sites, 0, &noise(4, MIB));
        assert_eq!(replicate(&sites)["read_bytes"], MIB, "what it held was allowed");
        let status = |word: &str| {
            let output = sites.farsite("north", &["status", "--json"]);
            let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            status["groups"][0]["kept"][word].clone()
        };
        assert_eq!((status("bytes"), status("versions"), status("let_go")), (MIB.into(), 1.into(), 0.into()));

        write_at(&sites, 20 * MIB, &noise(5, 16 * MIB));
        let output = sites.farsite("north", &["replicate", "--json"]);
        let words = said(&output);
        assert!(words.contains("held 16MiB and is let go"), "{words}");
        assert!(words.contains(&format!("\"read_bytes\": {VOLUME_BYTES}")), "{words}");
        let human = said(&sites.farsite("north", &["status"]));
        assert!(human.contains("kept at source") && human.contains("1 let go"), "{human}");
        // The new one tells again.
        write_at(&sites, 0, b"x");
        assert_eq!(replicate(&sites)["read_bytes"], BLOCK);

        // While no run succeeds it is measured as well.
        fs::rename(sites.path("south/replica"), sites.path("south/away")).unwrap();
        write_at(&sites, 20 * MIB, &noise(6, 16 * MIB));
        assert_eq!(kept(&sites).len(), 1);
        let agent = Running::start(sites.command("north/farsite.yaml", &["agent"]), &sites.path("agent.log"));
        let is_let_go = comes_true(Duration::from_secs(20), || kept(&sites).is_empty());
        assert!(is_let_go, "{}", agent.said());
        drop(agent);
        fs::rename(sites.path("south/away"), sites.path("south/replica")).unwrap();
        let report = replicate(&sites);
        assert_eq!(report["read_bytes"], VOLUME_BYTES);
        assert_restores(&sites, &report);
    });
}
