//! A share of volumes that is a Btrfs subvolume, as a filer may keep it: all of its files are of one instant, and so are the rows of
//! the database that tells of them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use farsite_scenarios::mounts::{self, Mounted};
use farsite_scenarios::process::{Running, comes_true};
use farsite_scenarios::{TwoSites, noise, said};

const ITEMS: &str = "  - cinder: { path: NORTH/volumes }\n";
/// Btrfs lives in an image file here, which only root may mount.
const PROBE: [&str; 3] = ["sh", "-c", "test -w /dev/loop-control && mount -t tmpfs tmpfs /mnt"];
const SLOTS: u64 = 512;

async fn a_share() -> (TwoSites, Mounted) {
    let sites = TwoSites::founded(ITEMS).await;
    fs::create_dir(sites.data("volumes")).unwrap();
    let disk = Mounted::btrfs(&sites.data("volumes"), &sites.path("btrfs.image"), 600);
    for name in ["volume-a", "volume-b"] {
        fs::write(sites.data("volumes").join(name), noise(7, 8 << 20)).unwrap();
    }
    (sites, disk)
}

#[track_caller]
fn replicate(sites: &TwoSites) -> serde_json::Value {
    let output = sites.farsite("north", &["replicate", "--json"]);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}", said(&output));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    answer[0]["report"].clone()
}

/// Writes a counter into the first disk and only then into the second, as a database does with its log and its data.
fn writes(volumes: &Path, stop: &AtomicBool) {
    // As a hypervisor writes for a guest that flushes: what was acknowledged is on the disk.
    let flushed = rustix::fs::OFlags::DSYNC.bits().cast_signed();
    let open = |name| File::options().write(true).custom_flags(flushed).open(volumes.join(name)).unwrap();
    let disks = ["volume-a", "volume-b"].map(open);
    let mut count = 0u64;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        for disk in &disks {
            disk.write_all_at(&count.to_le_bytes(), count % SLOTS * 4096).unwrap();
        }
    }
}

struct Stopped<'s>(&'s AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The highest number in a disk's slots. What was there before is noise, in which no eight bytes make so small a number.
fn counter(path: &Path) -> u64 {
    let disk = File::open(path).unwrap();
    let numbers = (0..SLOTS).map(|slot| {
        let mut bytes = [0; 8];
        disk.read_exact_at(&mut bytes, slot * 4096).unwrap();
        u64::from_le_bytes(bytes)
    });
    numbers.filter(|number| *number < 1 << 40).max().unwrap_or(0)
}

fn snapshots(volumes: &Path) -> Vec<String> {
    let names =
        fs::read_dir(volumes).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(".farsite-snapshot-")).collect()
}

#[test]
fn all_volumes_of_a_share_are_of_one_instant() {
    if !mounts::are_own() {
        return mounts::with_own(module_path!(), "all_volumes_of_a_share_are_of_one_instant", &PROBE);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (sites, _disk) = a_share().await;
        let (stop, volumes) = (AtomicBool::new(false), sites.data("volumes"));
        std::thread::scope(|scope| {
            scope.spawn(|| writes(&volumes, &stop));
            // Also when this panics: the scope waits for the writer.
            let _stop = Stopped(&stop);
            for _ in 0..3 {
                std::thread::sleep(Duration::from_millis(50));
                let report = replicate(&sites);
                assert_eq!(report["whole"], true, "{report}");
                let counts = ["volume-a", "volume-b"].map(|name| {
                    let to = sites.path(&format!("restored-{name}"));
                    let (point, item) = (report["point"].as_str().unwrap(), format!("cinder/{name}"));
                    let words =
                        ["restore", point, &item, "--in-place", "--yes", "--to", to.to_str().unwrap()];
                    fs::write(&to, b"").unwrap();
                    let output = sites.farsite("south", &words);
                    assert!(output.status.success(), "{}", said(&output));
                    counter(&to)
                });
                let [first, second] = counts;
                assert!(second > 0 && (second..=second + 1).contains(&first), "{first} and {second}");
            }
        });
        assert_eq!(snapshots(&volumes), Vec::<String>::new(), "a run leaves no snapshot of the share");
        // What changed is known by where it lies, as with snapshots of single files.
        let report = replicate(&sites);
        assert!(report["read_bytes"].as_u64().unwrap() <= 2 * SLOTS * 4096, "{report}");
    });
}

#[test]
fn a_snapshot_of_the_share_that_a_killed_agent_left_is_removed_by_the_next_run() {
    if !mounts::are_own() {
        let name = "a_snapshot_of_the_share_that_a_killed_agent_left_is_removed_by_the_next_run";
        return mounts::with_own(module_path!(), name, &PROBE);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (sites, _disk) = a_share().await;
        let volumes = sites.data("volumes");
        // Slow enough that the kill comes while it reads.
        sites.edit("north/policies/cloud.yaml", |text| format!("{text}\nbandwidth: {{ limit: 1MiB/s }}\n"));
        let mut run =
            Running::start(sites.command("north/farsite.yaml", &["replicate"]), &sites.path("killed.log"));
        assert!(comes_true(Duration::from_secs(30), || snapshots(&volumes).len() == 1), "{}", run.said());
        run.kill();
        assert_eq!(snapshots(&volumes).len(), 1, "nobody was there to remove it");
        sites.edit("north/policies/cloud.yaml", |text| text.replace("\nbandwidth: { limit: 1MiB/s }\n", ""));
        let report = replicate(&sites);
        assert_eq!(report["whole"], true, "{report}");
        assert_eq!(snapshots(&volumes), Vec::<String>::new());
    });
}
