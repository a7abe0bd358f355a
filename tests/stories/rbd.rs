//! Volumes in a real Ceph pool: a run reads what differs from the snapshot of the last point and nothing else; snapshots
//! never outlive their use, also after a kill; what RBD does not tell is found by the full read.

use std::fs;
use std::path::Path;
use std::time::Duration;

use farsite_scenarios::ceph::Ceph;
use farsite_scenarios::process::{Running, comes_true};
use farsite_scenarios::{TwoSites, noise, said};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 64 << 10;

struct Site {
    sites: TwoSites,
    ceph: Ceph,
}

impl Site {
    async fn new() -> Self {
        let sites = TwoSites::founded("").await;
        let ceph = Ceph::start(&sites.path("ceph"));
        let conf = ceph.conf.display();
        sites.policy(&format!(
            "  - cinder: {{ rbd: {{ pool: volumes, conf: {conf}, user: admin }}, select: {{ files: ['volume-*'] }} }}\n"
        ));
        Self { sites, ceph }
    }

    /// What a guest writes.
    #[track_caller]
    fn write(&self, offset: u64, bytes: &[u8]) {
        self.ceph.write("volumes/volume-a", offset, bytes);
    }

    #[track_caller]
    fn rbd(&self, args: &[&str]) -> String {
        self.ceph.run("rbd", args)
    }

    fn snapshots(&self) -> Vec<String> {
        self.ceph.names(&["snap", "ls", "volumes/volume-a"])
    }

    /// A run that reads so many blocks, and whose point holds what the image holds.
    #[track_caller]
    fn reads(&self, blocks: u64) -> serde_json::Value {
        let output = self.sites.farsite("north", &["replicate", "--json"]);
        assert!(matches!(output.status.code(), Some(0 | 3)), "{}", said(&output));
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let report = answer[0]["report"].clone();
        assert_eq!(report["failed"], serde_json::json!([]), "{}", said(&output));
        assert_eq!(report["read_bytes"], blocks * BLOCK, "{report}");
        self.assert_restores(report["point"].as_str().unwrap());
        let ours = self.snapshots().into_iter().filter(|name| name.starts_with("farsite-"));
        assert_eq!(ours.count(), 1, "{:?}", self.snapshots());
        report
    }

    #[track_caller]
    fn assert_restores(&self, point: &str) {
        let [restored, expected] = ["restored", "expected"].map(|name| self.sites.path(name));
        for file in [&restored, &expected] {
            let _ = fs::remove_file(file);
        }
        let to = path(&restored);
        let output = self.sites.farsite("south", &["restore", point, "cinder/volume-a", "--to", to]);
        assert!(output.status.success(), "{}", said(&output));
        self.rbd(&["export", "volumes/volume-a", path(&expected)]);
        assert!(fs::read(&restored).unwrap() == fs::read(&expected).unwrap(), "it restores as another disk");
    }

    fn policy(&self, change: impl Fn(&str) -> String) {
        self.sites.edit("north/policies/cloud.yaml", |text| change(&text));
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_images_of_a_ceph_pool_are_read_by_what_differs_and_their_snapshots_do_not_outlive_their_use() {
    let site = Site::new().await;
    site.rbd(&["create", "volumes/volume-a", "--size", "64M"]);
    site.rbd(&["create", "volumes/other", "--size", "1M"]);
    site.rbd(&["snap", "create", "volumes/volume-a@somebody-else"]);
    site.write(0, &noise(1, 9 * MIB as usize));
    let first = site.reads(9 * MIB / BLOCK);
    assert_eq!((&first["items"], &first["weakest"]), (&1.into(), &"crash".into()), "{first}");
    let nothing = site.reads(0);
    assert_eq!(nothing["changed_bytes"], 0, "{nothing}");
    // Less than an object, less than a block: a block is read, and a patch against the last snapshot is sent.
    site.write(5 * MIB + 4096, &noise(2, 4096));
    let report = site.reads(1);
    assert_eq!(report["changed_bytes"], BLOCK, "{report}");
    assert!(report["shipped_bytes"].as_u64().unwrap() < 8_000, "{report}");
    site.write(40 * MIB, &noise(3, 3 * BLOCK as usize));
    site.reads(3);

    // What the last snapshot holds for itself is more than it may: it is let go, and all is read.
    site.write(48 * MIB, &noise(10, 2 * MIB as usize));
    site.policy(|text| format!("{text}keep-versions: 1MiB\n"));
    let report = site.replicate_and_restore();
    assert!(report["read_bytes"].as_u64().unwrap() >= 11 * MIB, "{report}");
    let status = said(&site.sites.farsite("north", &["status"]));
    assert!(status.contains("kept at source") && status.contains("1 let go"), "{status}");
    site.policy(|text| text.replace("keep-versions: 1MiB\n", ""));

    // Longer; shorter and longer again; and back to what it was before.
    site.rbd(&["resize", "volumes/volume-a", "--size", "80M"]);
    // At the start of an object: RBD tells of a new one all that lies before its last byte.
    site.write(76 * MIB, &noise(4, 1000));
    site.reads(1);
    site.rbd(&["resize", "volumes/volume-a", "--size", "6M", "--allow-shrink"]);
    site.rbd(&["resize", "volumes/volume-a", "--size", "64M"]);
    site.replicate_and_restore();
    site.write(MIB, &noise(5, BLOCK as usize));
    site.reads(1);
    site.rbd(&["snap", "create", "volumes/volume-a@before"]);
    site.write(2 * MIB, &noise(6, 2 * BLOCK as usize));
    site.replicate_and_restore();
    site.rbd(&["snap", "rollback", "volumes/volume-a@before"]);
    site.replicate_and_restore();

    // Killed with its snapshot made and its point not yet.
    site.write(3 * MIB, &noise(7, BLOCK as usize));
    site.policy(|text| format!("{text}hooks: {{ after-capture: ['sleep 30'] }}\n"));
    let log = site.sites.path("killed.log");
    let mut run = Running::start(site.sites.command("north/farsite.yaml", &["replicate"]), &log);
    let ours = || site.snapshots().iter().filter(|name| name.starts_with("farsite-")).count();
    assert!(comes_true(Duration::from_secs(30), || ours() == 2), "{}", run.said());
    run.kill();
    site.policy(|text| {
        text.lines().filter(|l| !l.starts_with("hooks")).collect::<Vec<_>>().join("\n") + "\n"
    });
    site.write(4 * MIB, &noise(8, BLOCK as usize));
    site.reads(2);

    // The snapshot of the last point is lost: all is read.
    let name = site.snapshots().into_iter().find(|name| name.starts_with("farsite-")).unwrap();
    site.rbd(&["snap", "rm", &format!("volumes/volume-a@{name}")]);
    let report = site.replicate_and_restore();
    assert!(report["read_bytes"].as_u64().unwrap() >= 6 * MIB, "{report}");

    // A snapshot in which a change is already: nothing seems to differ, until everything is read.
    site.write(0, &noise(9, BLOCK as usize));
    let name = site.snapshots().into_iter().find(|name| name.starts_with("farsite-")).unwrap();
    site.rbd(&["snap", "rm", &format!("volumes/volume-a@{name}")]);
    site.rbd(&["snap", "create", &format!("volumes/volume-a@{name}")]);
    let fooled = site.sites.farsite("north", &["replicate", "--json"]);
    assert!(said(&fooled).contains("\"changed_bytes\": 0"), "{}", said(&fooled));
    site.policy(|text| format!("{text}verify-tracking: 0s\n"));
    let words = said(&site.sites.farsite("north", &["replicate"]));
    assert!(words.contains("65536 bytes of cinder/volume-a had changed"), "{words}");
    assert!(words.contains("not believed again"), "{words}");
    site.replicate_and_restore();

    // It leaves the policy: our snapshots go, and nobody else's.
    site.policy(|text| text.replace("volume-*", "other"));
    let output = site.sites.farsite("north", &["replicate"]);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}", said(&output));
    assert_eq!(site.snapshots(), ["somebody-else", "before"]);
}

impl Site {
    #[track_caller]
    fn replicate_and_restore(&self) -> serde_json::Value {
        let output = self.sites.farsite("north", &["replicate", "--json"]);
        assert!(matches!(output.status.code(), Some(0 | 3)), "{}", said(&output));
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let report = answer[0]["report"].clone();
        self.assert_restores(report["point"].as_str().unwrap());
        report
    }
}
