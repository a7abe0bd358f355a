//! An agent that is restarted again and again in the middle of its captures: what it made at the source to hold things still is
//! gone when it has been let run once, whether that is a snapshot of a Btrfs share or snapshots in a Ceph pool.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use farsite_model::ItemId;
use farsite_scenarios::ceph::Ceph;
use farsite_scenarios::mounts::{self, Mounted};
use farsite_scenarios::process::{Running, comes_true};
use farsite_scenarios::{TwoSites, noise, said};

const RESTARTS: u64 = 8;
const MIB: usize = 1 << 20;
/// Slow enough that a kill comes while it reads.
const SLOW: &str = "bandwidth: { limit: 1MiB/s }\n";
const PROBE: [&str; 3] = ["sh", "-c", "test -w /dev/loop-control && mount -t tmpfs tmpfs /mnt"];

/// Kills an agent as soon as it has made something of its own, `RESTARTS` times; then lets it make one whole point.
fn restart_again_and_again(sites: &TwoSites, write: impl Fn(u64), ours: impl Fn() -> BTreeSet<String>) {
    sites.edit("north/policies/cloud.yaml", |text| format!("{text}{SLOW}"));
    let (mut most, mut said_last) = (0, String::new());
    for restart in 1..=RESTARTS {
        write(restart);
        let before = ours();
        let log = sites.path(&format!("agent-{restart}.log"));
        let mut agent = Running::start(sites.command("north/farsite.yaml", &["agent"]), &log);
        let is_under_way = || ours().iter().any(|name| !before.contains(name));
        assert!(comes_true(Duration::from_mins(1), is_under_way), "restart {restart}: {}", agent.said());
        // Sometimes at once, sometimes when it reads already.
        std::thread::sleep(Duration::from_millis(restart % 4 * 150));
        agent.kill();
        most = most.max(ours().len());
        said_last = agent.said();
    }
    println!("{RESTARTS} restarts, at most {most} left over between two of them");
    // Of each of the two items: what the run under way made, what the one before left, what a killed run's point was to stand on;
    // and what was still being made when its run was killed. It does not grow with the kills.
    assert!(most <= 12 && most < 2 * RESTARTS as usize, "{most} heaped up: {said_last}");
    sites.edit("north/policies/cloud.yaml", |text| text.replace(SLOW, ""));
    let output = sites.farsite("north", &["replicate", "--json"]);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}", said(&output));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer[0]["report"]["whole"], true, "{answer}");
    let state = sites.path("north/state/groups/cloud/south");
    assert!(!state.join("scratch").exists(), "the run's scratch folder is there");
    let runs = fs::read_dir(state.join("runs")).into_iter().flatten().count();
    assert_eq!(runs, 0, "notes of runs are there");
}

fn names(folder: &Path, start: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(start)).collect()
}

#[test]
fn heavy_an_agent_restarted_again_and_again_leaves_no_snapshot_of_a_share() {
    if !mounts::are_own() {
        let name = "heavy_an_agent_restarted_again_and_again_leaves_no_snapshot_of_a_share";
        return mounts::with_own(module_path!(), name, &PROBE);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let sites = TwoSites::founded("  - cinder: { path: NORTH/volumes }\n").await;
        let volumes = sites.data("volumes");
        fs::create_dir(&volumes).unwrap();
        let _disk = Mounted::btrfs(&volumes, &sites.path("btrfs.image"), 600);
        for name in ["volume-a", "volume-b"] {
            fs::write(volumes.join(name), noise(7, 4 * MIB)).unwrap();
        }
        let write = |n| fs::write(volumes.join("volume-a"), noise(100 + n, 4 * MIB)).unwrap();
        restart_again_and_again(&sites, write, || names(&volumes, ".farsite-snapshot-"));
        assert_eq!(names(&volumes, ".farsite-snapshot-"), BTreeSet::new());
        // A version of each volume, to tell what changes.
        let kept = names(&volumes, ".farsite-");
        assert_eq!(kept.len(), 2, "{kept:?}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_an_agent_restarted_again_and_again_leaves_one_snapshot_of_each_image_of_a_pool() {
    let sites = TwoSites::founded("").await;
    let ceph = Ceph::start(&sites.path("ceph"));
    sites.policy(&format!(
        "  - cinder: {{ rbd: {{ pool: volumes, conf: {}, user: admin }}, select: {{ files: ['volume-*'] }} }}\n",
        ceph.conf.display()
    ));
    let volumes = ["volumes/volume-a", "volumes/volume-b"];
    for volume in volumes {
        ceph.run("rbd", &["create", volume, "--size", "16M"]);
        ceph.write(volume, 0, &noise(7, 4 * MIB));
        ceph.run("rbd", &["snap", "create", &format!("{volume}@somebody-else")]);
    }
    // What encrypted volumes begin with is seen whichever way they are captured.
    ceph.write(volumes[1], 0, b"LUKS\xba\xbe");
    let ours = || {
        let all = volumes.iter().flat_map(|volume| {
            let names = ceph.names(&["snap", "ls", volume]).into_iter();
            names.filter(|name| name.starts_with("farsite-")).map(move |name| format!("{volume}@{name}"))
        });
        all.collect::<BTreeSet<String>>()
    };
    restart_again_and_again(&sites, |n| ceph.write(volumes[0], 0, &noise(100 + n, 4 * MIB)), ours);
    assert_eq!(ours().len(), 2, "{:?}", ours());
    for volume in volumes {
        assert!(ceph.names(&["snap", "ls", volume]).contains(&"somebody-else".to_owned()), "it was not ours");
    }
    assert_eq!(ceph.names(&["ls", "volumes"]), ["volume-a", "volume-b"]);
    let newest = sites.ledger().await.state().points.last().unwrap().said.point;
    let manifest = sites.manifest(newest).await;
    let encrypted =
        |name: &str| manifest.item(&ItemId::parse(name)).unwrap().details.get("encrypted").cloned();
    assert_eq!(encrypted("cinder/volume-a"), None);
    assert_eq!(encrypted("cinder/volume-b").as_deref(), Some("luks"));
    assert_eq!(ceph.names(&["trash", "ls", "volumes"]), [""; 0]);
}
