//! A standby whose back ends keep volumes and images in Ceph pools: they are hydrated there, promoted by a rename, compared,
//! and given back. And what Cinder does with a volume that has our snapshot.

use std::time::Duration;

use farsite_openstack::{Limits, SiteCloud};
use farsite_scenarios::ceph::Ceph;
use farsite_scenarios::process::{Running, comes_true};
use farsite_scenarios::{TwoSites, noise, said};
use rustix::process::Signal;
use serde_json::Value;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 64 << 10;
const IMAGE: &str = "0a1b2c3d-0000-4000-8000-00000000000a";
const HYDRATED: &str = "south/.farsite-hydrated.volume-a";

/// Only what is about volumes and images.
const RUNBOOK: &str = "
name: storage
stages:
  - name: restore
    steps:
      - { id: volumes, action: restore-volumes }
      - { id: images, action: restore-images, needs: [volumes] }
      - { id: verify, action: verify-contents, needs: [images] }
      - { id: trust, action: verify-contents, needs: [verify], with: { hydrated: trust } }
";

const FAILOVER: [&str; 11] = [
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
    "storage.yaml",
];

struct Cloud {
    sites: TwoSites,
    ceph: Ceph,
}

impl Cloud {
    async fn new() -> Self {
        let sites = TwoSites::founded("").await;
        let ceph = Ceph::start(&sites.path("ceph"));
        for pool in ["images", "south", "south-images"] {
            ceph.pool(pool);
        }
        let rbd = |pool: &str| format!("rbd: {{ pool: {pool}, conf: {}, user: admin }}", ceph.conf.display());
        sites.policy(&format!(
            "  - cinder: {{ {}, select: {{ files: ['volume-*'] }} }}\n  - glance: {{ {} }}\n",
            rbd("volumes"),
            rbd("images")
        ));
        sites.edit("south/farsite.yaml", |text| {
            let places = sites.path("south/places").display().to_string();
            text.replace(
                &format!("glance: {{ path: {places}/images }}"),
                &format!("glance: {{ {} }}", rbd("south-images")),
            )
            .replace(
                &format!("cinder: {{ path: {places}/volumes }}"),
                &format!("cinder: {{ {} }}", rbd("south")),
            )
        });
        std::fs::write(sites.path("storage.yaml"), RUNBOOK).unwrap();
        sites.edit("south/policies/cloud.yaml", |text| text.replace("rpo: 20s", "rpo: 20m"));
        ceph.run("rbd", &["create", "volumes/volume-a", "--size", "40M"]);
        ceph.write("volumes/volume-a", 0, &noise(1, 9 * MIB as usize));
        Self { sites, ceph }
    }

    #[track_caller]
    fn json(&self, at: &str, args: &[&str]) -> Value {
        let output = self.sites.farsite(at, args);
        eprintln!("{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(matches!(output.status.code(), Some(0 | 3)), "{args:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{args:?}: {}", said(&output)))
    }

    #[track_caller]
    fn replicate(&self) -> Value {
        let report = self.json("north", &["replicate", "--json"])[0]["report"].clone();
        assert_eq!(report["failed"], serde_json::json!([]), "{report}");
        report
    }

    /// How the volume's copy came to be what it is, and what was written for it.
    #[track_caller]
    fn hydrate(&self) -> (String, u64) {
        let done = self.json("south", &["hydrate", "--json"]);
        let items = done[0]["items"].as_array().unwrap();
        let of = items.iter().find(|item| item["item"] == "cinder/volume-a").unwrap();
        (
            of["how"].as_str().unwrap_or_else(|| panic!("{done}")).to_owned(),
            of["written_bytes"].as_u64().unwrap(),
        )
    }

    #[track_caller]
    fn assert_hydrated(&self) {
        assert!(self.ceph.read(HYDRATED) == self.ceph.read("volumes/volume-a"), "the copy is another disk");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_volumes_are_hydrated_in_a_pool_promoted_by_a_rename_and_given_back() {
    let cloud = Cloud::new().await;
    let ceph = &cloud.ceph;
    ceph.run("rbd", &["create", &format!("images/{IMAGE}"), "--size", "6M"]);
    ceph.write(&format!("images/{IMAGE}"), 0, &noise(2, 2 * MIB as usize));
    ceph.run("rbd", &["snap", "create", &format!("images/{IMAGE}@snap")]);
    ceph.run("rbd", &["snap", "protect", &format!("images/{IMAGE}@snap")]);

    cloud.replicate();
    // What the pool has no room for is found before.
    let dry_run = [&FAILOVER[..], &["--dry-run"]].concat();
    ceph.run("ceph", &["osd", "pool", "set-quota", "south", "max_bytes", "1048576"]);
    let foreseen = cloud.sites.farsite("south", &dry_run);
    let why = "at the pool south 1MiB are free, and 9MiB of data come there";
    assert_eq!(foreseen.status.code(), Some(1), "{}", said(&foreseen));
    assert!(said(&foreseen).contains(why), "{}", said(&foreseen));
    ceph.run("ceph", &["osd", "pool", "set-quota", "south", "max_bytes", "0"]);
    let foreseen = cloud.sites.farsite("south", &dry_run);
    assert_eq!(foreseen.status.code(), Some(0), "{}", said(&foreseen));

    assert_eq!(cloud.hydrate(), ("anew".to_owned(), 9 * MIB));
    assert_eq!(ceph.names(&["ls", "south"]), [".farsite-hydrated.volume-a"]);
    cloud.assert_hydrated();
    let used = ceph.run("rbd", &["du", HYDRATED, "--format", "json"]);
    let used: Value = serde_json::from_str(&used).unwrap();
    let used: u64 = used["images"].as_array().unwrap().iter().map(|i| i["used_size"].as_u64().unwrap()).sum();
    assert_eq!(used, 12 * MIB, "what was never written takes no room");
    assert_eq!(cloud.hydrate(), ("already".to_owned(), 0));

    // Only what differs is written: a block, and zeros where there was data. An image that nobody writes is read once.
    ceph.write("volumes/volume-a", 5 * MIB, &noise(3, BLOCK as usize));
    ceph.write("volumes/volume-a", MIB, &vec![0; 2 * BLOCK as usize]);
    let report = cloud.replicate();
    assert_eq!(report["read_bytes"], 3 * BLOCK, "{report}");
    assert_eq!(cloud.hydrate(), ("difference".to_owned(), 3 * BLOCK));
    cloud.assert_hydrated();

    // Somebody wrote into the copy: the cluster tells, and takes it back.
    ceph.write(HYDRATED, 7 * MIB, b"a stranger's");
    let (how, _) = cloud.hydrate();
    assert_eq!(how, "difference");
    cloud.assert_hydrated();

    // Killed in the middle, it is what it was before or what it was to be, never something between that passes for one.
    ceph.write("volumes/volume-a", 0, &noise(4, 24 * MIB as usize));
    cloud.replicate();
    let mut cut_off = 0;
    for wait_ms in [500, 700, 900, 1100] {
        let log = cloud.sites.path("killed.log");
        let mut hydrating = Running::start(cloud.sites.command("south/farsite.yaml", &["hydrate"]), &log);
        std::thread::sleep(Duration::from_millis(wait_ms));
        cut_off += u32::from(hydrating.ended().is_none());
        hydrating.kill();
    }
    assert!(cut_off > 0, "no round was killed in the middle");
    // The cluster lets go of what the killed one held after three seconds here.
    std::thread::sleep(Duration::from_secs(4));
    cloud.hydrate();
    cloud.assert_hydrated();

    // A promotion: what stood there goes aside; what is hydrated is renamed, what is not is restored.
    ceph.run("rbd", &["create", "south/volume-a", "--size", "1M"]);
    ceph.write("south/volume-a", 0, b"what stood there");
    ceph.write("volumes/volume-a", 30 * MIB, &noise(5, BLOCK as usize));
    cloud.replicate();
    let promoted = cloud.sites.farsite("south", &FAILOVER);
    assert_eq!(promoted.status.code(), Some(0), "{}", said(&promoted));
    assert!(said(&promoted).contains("1 were hydrated"), "{}", said(&promoted));
    let report = cloud.json("south", &["promotion", "report", "--json"]);
    let steps = report["groups"][0]["steps"].as_array().unwrap();
    let trusted = steps.iter().find(|step| step["id"] == "trust").unwrap()["evidence"].clone();
    assert!(trusted["not read again"].as_str().is_some_and(|said| said.starts_with("1 items")), "{trusted}");
    assert!(ceph.read("south/volume-a") == ceph.read("volumes/volume-a"), "another disk was promoted");
    assert_eq!(ceph.names(&["snap", "ls", "south/volume-a"]), [""; 0], "Cinder may delete it");
    let there = ceph.names(&["ls", "south"]);
    assert_eq!(there.len(), 2, "{there:?}");
    assert!(there[0].starts_with(".farsite-before-") && there[0].ends_with(".volume-a"), "{there:?}");
    // Cinder makes a clone of an image as it always does.
    let image = format!("south-images/{IMAGE}");
    assert!(ceph.read(&image) == ceph.read(&format!("images/{IMAGE}")), "another image was promoted");
    ceph.run("rbd", &["clone", &format!("{image}@snap"), "south/volume-b"]);

    let rolled = cloud.sites.farsite("south", &["rollback", "--reason", "a trial", "--yes"]);
    assert_eq!(rolled.status.code(), Some(0), "{}", said(&rolled));
    assert!(ceph.read("south/volume-a").starts_with(b"what stood there"), "it did not come back");
    let there = ceph.names(&["ls", "south"]);
    assert_eq!(there.len(), 3, "a clone is its maker's: {there:?}");
    assert!(there[0].starts_with(".farsite-undone-") && there[0].ends_with(".volume-a"), "{there:?}");

    // And by hand.
    let to = format!("rbd:south/by-hand@{}", ceph.conf.display());
    let restored = cloud.sites.farsite("south", &["restore", "latest", "cinder/volume-a", "--to", &to]);
    assert_eq!(restored.status.code(), Some(0), "{}", said(&restored));
    assert!(ceph.read("south/by-hand") == ceph.read("volumes/volume-a"), "another disk was restored");
    let again = cloud.sites.farsite("south", &["restore", "latest", "cinder/volume-a", "--to", &to]);
    assert!(said(&again).contains("exists already"), "{}", said(&again));
}

/// It holds the image's lock, and could go on at any time.
#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_driver_that_stands_still_is_shut_out_of_the_pool() {
    let cloud = Cloud::new().await;
    let ceph = &cloud.ceph;
    ceph.run("rbd", &["resize", "volumes/volume-a", "--size", "160M", "--no-progress"]);
    ceph.write("volumes/volume-a", 0, &noise(8, 160 * MIB as usize));
    cloud.replicate();
    let log = cloud.sites.path("first.log");
    let mut first = Running::start(cloud.sites.command("south/farsite.yaml", &FAILOVER), &log);
    let partial = ".farsite-partial.volume-a";
    let is_half = || ceph.names(&["ls", "south"]).iter().any(|name| name == partial);
    assert!(comes_true(Duration::from_secs(30), is_half), "{}", first.said());
    first.signal(Signal::STOP);
    assert!(is_half() && first.ended().is_none(), "it was too quick: {}", first.said());

    let second = cloud.sites.another_machine("second");
    let args = ["failover", "--site", "north", "--resume", "--yes", "--others-are-dead"];
    let output = cloud.sites.command(&second, &args).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}\nthe first:\n{}", said(&output), first.said());
    assert!(ceph.read("south/volume-a") == ceph.read("volumes/volume-a"), "another disk was promoted");
    first.signal(Signal::CONT);
    assert_eq!(first.ends_within(Duration::from_secs(30)), Some(1), "{}", first.said());
    assert!(ceph.read("south/volume-a") == ceph.read("volumes/volume-a"), "the first one wrote to it");
    assert_eq!(ceph.names(&["ls", "south"]), ["volume-a"]);
}

/// What Cinder's RBD driver does, by the same calls: a volume is extended, gets a snapshot, is reverted to it, and is deleted
/// by its removal, by moving it to the trash where that fails, or, when it has clones, by another name.
#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_volume_with_our_snapshot_is_still_its_users_to_extend_revert_and_delete() {
    let cloud = Cloud::new().await;
    let ceph = &cloud.ceph;
    let ours = |image: &str| {
        let names = ceph.names(&["snap", "ls", image]);
        names.into_iter().filter(|name| name.starts_with("farsite-")).collect::<Vec<_>>()
    };
    ceph.run("rbd", &["create", "volumes/volume-parent", "--size", "8M"]);
    cloud.replicate();
    let snapshot = ours("volumes/volume-a").remove(0);
    let owner = snapshot.split('-').nth(1).unwrap().to_owned();
    ceph.run("rbd", &["resize", "volumes/volume-a", "--size", "48M", "--no-progress"]);
    ceph.run("rbd", &["snap", "create", "volumes/volume-a@snapshot-1"]);
    ceph.run("rbd", &["snap", "protect", "volumes/volume-a@snapshot-1"]);
    ceph.write("volumes/volume-a", 0, &noise(7, MIB as usize));
    ceph.run("rbd", &["snap", "rollback", "--no-progress", "volumes/volume-a@snapshot-1"]);
    ceph.run("rbd", &["snap", "unprotect", "volumes/volume-a@snapshot-1"]);
    ceph.run("rbd", &["snap", "rm", "--no-progress", "volumes/volume-a@snapshot-1"]);
    ceph.run("rbd", &["snap", "create", "volumes/volume-parent@volume-clone.clone_snap"]);
    ceph.run("rbd", &["snap", "protect", "volumes/volume-parent@volume-clone.clone_snap"]);
    ceph.run("rbd", &["clone", "volumes/volume-parent@volume-clone.clone_snap", "volumes/volume-clone"]);
    cloud.replicate();

    // Deleted: its removal fails, for it has our snapshot; the trash takes it.
    ceph.run("rbd", &["trash", "mv", "volumes/volume-a"]);
    ceph.run("rbd", &["rename", "volumes/volume-parent", "volumes/volume-parent.deleted"]);
    cloud.replicate();
    assert_eq!(ours("volumes/volume-parent.deleted"), [""; 0], "Cinder removes it with its last clone");
    assert_eq!(ceph.names(&["trash", "ls", "volumes"]), ["volume-a"], "it can be taken back for a while");
    let rbd: farsite_model::policy::Rbd = serde_json::from_value(serde_json::json!({
        "pool": "volumes", "conf": ceph.conf, "user": "admin"
    }))
    .unwrap();
    // No cloud is named, so nobody can say that it was Cinder: only what is ours goes, and then a person may remove the rest.
    let north = farsite_model::SiteName::new("north").unwrap();
    let unnamed = SiteCloud::new(&north, farsite_model::config::Site::default(), Limits::default());
    let removed = farsite_sources::rbd::sweep(&rbd, &owner, Duration::ZERO, &unnamed).await.unwrap();
    assert_eq!(removed, [""; 0]);
    assert_eq!(ceph.names(&["trash", "ls", "volumes"]), ["volume-a"]);
    ceph.run("rbd", &["trash", "purge", "--no-progress", "volumes"]);
    assert_eq!(ceph.names(&["trash", "ls", "volumes"]), [""; 0]);
}
