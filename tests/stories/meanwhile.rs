//! Stories of what changes while it is read: images and volumes that are deleted between a listing and their copy, or under
//! the copy; volumes that have grown since the last point. Hooks run between an entry's listing and its captures: they delete
//! here. The cloud of the images that come through an API is a fake.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use farsite_model::ItemId;
use farsite_model::clock::SystemClock;
use farsite_replicate::restore;
use farsite_replicate::run::{Observer, RunOptions};
use farsite_scenarios::ceph::Ceph;
use farsite_scenarios::images::{io, tool};
use farsite_scenarios::process::{Running, comes_true};
use farsite_scenarios::{TwoSites, noise, run, said};
use farsite_store::ingest::RunStats;
use farsite_store::read::ReadStats;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::coverage::fake::{self, Cut, Fake, image};

const A: &str = "0a1b2c3d-0000-4000-8000-00000000000a";
const B: &str = "0a1b2c3d-0000-4000-8000-00000000000b";
const C: &str = "0a1b2c3d-0000-4000-8000-00000000000c";
const MIB: usize = 1 << 20;
const BLOCK: u64 = 64 << 10;

fn glance(id: &str) -> ItemId {
    ItemId::parse(format!("glance/{id}"))
}

fn sha512(data: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), data).unwrap();
    farsite_promote::compare::sha512(file.path()).unwrap()
}

/// Images that only an API can tell, and a key.
struct Cloud {
    sites: TwoSites,
    fake: Fake,
}

impl Cloud {
    async fn new() -> Self {
        let items = "  - glance: { api: true }\n  - files: { name: keys, paths: [NORTH/keys] }\n";
        let sites = TwoSites::founded(items).await;
        sites.edit("north/farsite.yaml", |text| {
            text.replace("north: {}", "north: { cloud: north, region: One }")
        });
        fs::create_dir_all(sites.data("keys")).unwrap();
        fs::write(sites.data("keys/0"), b"not a key").unwrap();
        let fake = Fake::start().await;
        fake.clouds_yaml(&sites.path("north"));
        let cloud = Self { sites, fake };
        cloud.uploads(A, &noise(1, 3 * MIB));
        cloud.uploads(B, &noise(2, 2 * MIB));
        cloud
    }

    fn uploads(&self, id: &str, data: &[u8]) {
        let record = image(id, json!({ "size": data.len(), "os_hash_value": sha512(data) }));
        self.fake.change(|content| {
            content.images.push(record);
            content.data.insert(id.to_owned(), data.to_vec());
        });
    }

    fn downloads(&self) -> Vec<usize> {
        [A, B, C].iter().map(|id| self.fake.asked(&format!("GET /v2/images/{id}/file"))).collect()
    }

    /// A run's report.
    async fn replicate(&self) -> Value {
        let mut command = self.sites.command("north/farsite.yaml", &["replicate", "--json"]);
        command.env("OS_CLIENT_CONFIG_FILE", self.sites.path("north/clouds.yaml"));
        let Output { stdout, stderr, .. } =
            tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let (text, errors) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(!text.contains(fake::PASSWORD) && !errors.contains(fake::PASSWORD), "{text} {errors}");
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text} {errors}"));
        answer[0]["report"].clone()
    }

    fn reads_all_again(&self) {
        self.sites.edit("north/policies/cloud.yaml", |text| format!("{text}verify-tracking: 0s\n"));
    }
}

fn point(report: &Value) -> farsite_model::PointId {
    report["point"].as_str().unwrap_or_else(|| panic!("{report}")).parse().unwrap()
}

/// The bytes of an item in a point.
async fn restored(sites: &TwoSites, report: &Value, item: &ItemId) -> Vec<u8> {
    let manifest = sites.manifest(point(report)).await;
    let one = manifest.item(item).unwrap_or_else(|| panic!("{item} is not in {report}"));
    let to = sites.path("restored");
    let _ = fs::remove_file(&to);
    let reader = sites.reader().await;
    restore::item(&reader, one, &to, &restore::unguarded(), &ReadStats::default()).await.unwrap();
    fs::read(to).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_of_an_api_is_downloaded_once_and_is_what_glance_has_recorded() {
    let cloud = Cloud::new().await;
    let first = cloud.replicate().await;
    assert_eq!(
        (&first["whole"], &first["items"], &first["weakest"]),
        (&json!(true), &json!(3), &json!("crash"))
    );
    assert_eq!(cloud.downloads(), [1, 1, 0]);
    assert!(restored(&cloud.sites, &first, &glance(A)).await == noise(1, 3 * MIB));

    // Nothing is asked for again but a new one.
    cloud.uploads(C, &noise(3, MIB));
    let second = cloud.replicate().await;
    assert_eq!((&second["whole"], &second["items"]), (&json!(true), &json!(4)), "{second}");
    assert_eq!(cloud.downloads(), [1, 1, 1]);
    assert!(second["read_bytes"].as_u64().unwrap() <= MIB as u64 + BLOCK, "{second}");
    assert!(restored(&cloud.sites, &second, &glance(A)).await == noise(1, 3 * MIB));
    let manifest = cloud.sites.manifest(point(&second)).await;
    let told = manifest.item(&glance(C)).unwrap();
    assert_eq!(told.details["sha512"], sha512(&noise(3, MIB)));
    assert_eq!(told.consistency, farsite_model::Consistency::Application);

    // From time to time all of it is read; a store that gives out something else by then is found out, and what was captured
    // stands in.
    cloud.reads_all_again();
    cloud.fake.change(|content| content.cuts = [Cut::Flipped(MIB)].into());
    let third = cloud.replicate().await;
    assert_eq!(cloud.downloads(), [2, 2, 2]);
    assert_eq!((&third["whole"], &third["items"]), (&json!(false), &json!(4)), "{third}");
    let failed = third["failed"].as_array().unwrap();
    assert_eq!((failed.len(), &failed[0]["id"]), (1, &json!(format!("glance/{A}"))), "{third}");
    assert!(failed[0]["why"].as_str().unwrap().contains("Glance has recorded"), "{third}");
    let manifest = cloud.sites.manifest(point(&third)).await;
    assert!(manifest.item(&glance(A)).unwrap().carried_from.is_some());
    assert!(restored(&cloud.sites, &third, &glance(A)).await == noise(1, 3 * MIB));
    assert!(restored(&cloud.sites, &third, &glance(B)).await == noise(2, 2 * MIB));
    assert!(!cloud.sites.path("north/state/groups/cloud/south/scratch").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_is_deleted_while_it_is_downloaded_is_absent_and_one_that_is_only_lost_has_failed() {
    let cloud = Cloud::new().await;
    cloud.replicate().await;
    // A new one: it was in no point, and is in none.
    cloud.uploads(C, &noise(3, 2 * MIB));
    cloud.fake.change(|content| content.cuts = [Cut::DeletedAfter(MIB)].into());
    let report = cloud.replicate().await;
    assert_eq!(cloud.downloads()[2], 2, "cut off, and not found when it was asked again");
    let none: [&str; 0] = [];
    assert_eq!((&report["whole"], &report["items"]), (&json!(true), &json!(3)), "{report}");
    assert_eq!((&report["absent"], &report["failed"]), (&json!(none), &json!(none)), "{report}");
    // One that the point before has.
    cloud.reads_all_again();
    cloud.fake.change(|content| content.cuts = [Cut::After(usize::MAX), Cut::DeletedAfter(MIB)].into());
    let report = cloud.replicate().await;
    assert_eq!((&report["whole"], &report["items"]), (&json!(true), &json!(2)), "{report}");
    assert_eq!(report["absent"], json!([format!("glance/{B}")]), "{report}");
    // Its record is there, and its bytes are not.
    cloud.uploads(B, &noise(2, 2 * MIB));
    cloud.replicate().await;
    cloud.fake.change(|content| content.data.remove(A));
    let report = cloud.replicate().await;
    assert_eq!((&report["whole"], &report["items"]), (&json!(false), &json!(3)), "{report}");
    assert!(report["failed"][0]["why"].as_str().unwrap().contains("has no data of it"), "{report}");
    assert!(restored(&cloud.sites, &report, &glance(A)).await == noise(1, 3 * MIB));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_waits_for_an_image_ends_when_it_is_told_to() {
    let cloud = Cloud::new().await;
    cloud.fake.change(|content| content.cuts = vec![Cut::StuckAfter(MIB); 5].into());
    let mut command = cloud.sites.command("north/farsite.yaml", &["agent"]);
    command.env("OS_CLIENT_CONFIG_FILE", cloud.sites.path("north/clouds.yaml"));
    let log = cloud.sites.path("agent.log");
    tokio::task::spawn_blocking(move || {
        let mut agent = Running::start(command, &log);
        assert!(comes_true(Duration::from_secs(30), || cloud.downloads()[0] == 1), "{}", agent.said());
        // All that comes has come.
        std::thread::sleep(Duration::from_millis(500));
        agent.signal(Signal::TERM);
        // It lets a run under way end by itself for ten seconds; the download would wait for a minute, and ask again.
        assert_eq!(agent.ends_within(Duration::from_secs(20)), Some(0), "{}", agent.said());
    })
    .await
    .unwrap();
}

/// The hooks of an entry that delete behind its listing.
fn deletes(command: &str) -> String {
    format!("hooks: {{ before-capture: [\"{command}\"], after-capture: ['true'] }}")
}

async fn images_and_volumes() -> TwoSites {
    let sites = TwoSites::founded("").await;
    for (file, seed) in [(A, 1), (B, 2)] {
        fs::create_dir_all(sites.data("images")).unwrap();
        fs::write(sites.data("images").join(file), noise(seed, MIB)).unwrap();
    }
    fs::create_dir_all(sites.data("volumes")).unwrap();
    for (file, seed) in [("volume-a", 3), ("volume-b", 4)] {
        fs::write(sites.data("volumes").join(file), noise(seed, MIB)).unwrap();
    }
    sites
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_between_its_listing_and_its_copy_is_absent_and_the_point_is_whole() {
    let sites = images_and_volumes().await;
    let policy = |images: &str, volumes: &str| {
        sites.policy(&format!(
            "  - glance: {{ store: NORTH/images, {images} }}\n  - cinder: {{ path: NORTH/volumes, {volumes} }}\n"
        ));
    };
    policy("name: main", "name: main");
    let first = sites.replicate().await;
    assert!(first.whole && first.items == 4, "{first:?}");
    let (image, volume) = (sites.data("images").join(B), sites.data("volumes/volume-b"));
    policy(&deletes(&format!("rm {}", image.display())), &deletes(&format!("rm {}", volume.display())));
    let second = sites.replicate().await;
    assert!(second.whole && second.items == 2, "{second:?}");
    assert_eq!(
        second.absent,
        [ItemId::parse("cinder/volume-b"), glance(B)].into_iter().rev().collect::<Vec<_>>()
    );
    // A folder that has nothing in it all at once was not emptied by users.
    policy(
        "name: main",
        &deletes(&format!("mv {0} {0}-unmounted; mkdir {0}", sites.data("volumes").display())),
    );
    let third = sites.replicate().await;
    assert!(!third.whole && third.items == 2, "{third:?}");
    assert_eq!(third.failed.len(), 1, "{third:?}");
    assert_eq!(third.failed[0].id, ItemId::parse("cinder/volume-a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_was_lost_is_told_from_one_that_was_deleted() {
    let sites = images_and_volumes().await;
    fs::write(sites.data("images").join(C), noise(9, MIB)).unwrap();
    let database = sites.data("glance.db");
    let glance_database = rusqlite::Connection::open(&database).unwrap();
    let table = "CREATE TABLE images (id TEXT, status TEXT, size INTEGER, os_hash_algo TEXT, os_hash_value TEXT, \
                 checksum TEXT, deleted INTEGER)";
    glance_database.execute(table, []).unwrap();
    for id in [A, B, C] {
        let row = "INSERT INTO images VALUES (?1, 'active', 1048576, 'sha512', 'abc', 'md', 0)";
        glance_database.execute(row, [id]).unwrap();
    }
    sites.policy("  - glance: { store: NORTH/images, checksums: { sqlite: NORTH/glance.db } }\n");
    assert!(sites.replicate().await.whole);
    glance_database.execute("UPDATE images SET status = 'deleted', deleted = 1 WHERE id = ?1", [B]).unwrap();
    for id in [A, B] {
        fs::remove_file(sites.data("images").join(id)).unwrap();
    }
    for _ in 0..2 {
        let report = sites.replicate().await;
        assert!(!report.whole && report.items == 2, "{report:?}");
        assert_eq!(report.failed.len(), 1, "{report:?}");
        assert!(report.failed[0].id == glance(A) && report.failed[0].why.contains("own row"), "{report:?}");
        let told = json!({ "point": report.point.to_string() });
        assert!(restored(&sites, &told, &glance(A)).await == noise(1, MIB));
    }
    // Somebody gives it up.
    glance_database.execute("UPDATE images SET status = 'deleted', deleted = 1 WHERE id = ?1", [A]).unwrap();
    let report = sites.replicate().await;
    assert!(report.whole && report.absent == [glance(A)], "{report:?}");
}

/// Hands out the counters of a run.
#[derive(Default)]
struct Counters(Mutex<Option<Arc<RunStats>>>);

impl Observer for Counters {
    fn stage(&self, _: &str) {}
    fn counters(&self, stats: Arc<RunStats>) {
        *self.0.lock().unwrap() = Some(stats);
    }
}

impl Counters {
    fn read_bytes(&self) -> u64 {
        self.0.lock().unwrap().as_ref().map_or(0, |stats| stats.read_bytes.load(Ordering::Relaxed))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_is_deleted_while_it_is_read_is_in_the_point_with_all_its_bytes() {
    let sites = TwoSites::founded("  - cinder: { path: NORTH/volumes }\n").await;
    fs::create_dir_all(sites.data("volumes")).unwrap();
    let bytes = noise(5, 48 * MIB);
    let volume = sites.data("volumes/volume-a");
    fs::write(&volume, &bytes).unwrap();
    fs::write(sites.data("volumes/volume-b"), noise(6, MIB)).unwrap();
    let counters = Arc::new(Counters::default());
    let options = RunOptions { observer: counters.clone(), ..RunOptions::default() };
    let (watched, gone) = (counters.clone(), volume.clone());
    let deleted = std::thread::spawn(move || {
        assert!(comes_true(Duration::from_mins(1), || watched.read_bytes() >= MIB as u64));
        fs::remove_file(gone).unwrap();
        watched.read_bytes()
    });
    let group = sites.group(Arc::new(SystemClock)).await;
    let report = run(group, options).await.unwrap();
    let at = deleted.join().unwrap();
    assert!(at < bytes.len() as u64, "it was read before it was deleted: {at}");
    assert!(report.whole && report.items == 2, "{report:?}");
    let report = json!({ "point": report.point.to_string() });
    assert!(restored(&sites, &report, &ItemId::parse("cinder/volume-a")).await == bytes);
    let next = sites.replicate().await;
    assert!(next.whole && next.absent == [ItemId::parse("cinder/volume-a")], "{next:?}");
}

#[track_caller]
fn farsite(sites: &TwoSites, at: &str, args: &[&str]) -> Value {
    let output = sites.farsite(at, args);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{args:?}: {}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{args:?}: {}", said(&output)))
}

/// A whole point's report.
#[track_caller]
fn replicate(sites: &TwoSites) -> Value {
    let report = farsite(sites, "north", &["replicate", "--json"])[0]["report"].clone();
    assert_eq!(report["whole"], true, "{report}");
    report
}

fn hydrated_size(done: &Value) -> String {
    let items = done[0]["items"].as_array().unwrap_or_else(|| panic!("{done}"));
    items
        .iter()
        .map(|item| item["how"].as_str().unwrap_or_else(|| panic!("{done}")))
        .collect::<Vec<_>>()
        .join(" ")
}

fn write_at(path: &Path, offset: usize, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset as u64).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_has_grown_is_as_long_in_the_next_point_and_in_its_hydrated_copy() {
    let sites = TwoSites::founded(
        "  - cinder: { path: NORTH/volumes }\n  - cinder: { path: NORTH/qcow2, format: qcow2, name: qcow2 }\n",
    )
    .await;
    sites.edit("south/policies/cloud.yaml", |text| text.replace("rpo: 20s", "rpo: 20m"));
    for folder in ["volumes", "qcow2"] {
        fs::create_dir_all(sites.data(folder)).unwrap();
    }
    let (raw, qcow2) = (sites.data("volumes/volume-raw"), sites.data("qcow2/volume-qcow2"));
    // Neither ends with a block.
    fs::write(&raw, noise(7, 3 * MIB + 700)).unwrap();
    let at = qcow2.to_str().unwrap();
    tool("qemu-img", &["create", "-q", "-f", "qcow2", at, "6292480"]);
    io("qcow2", at, &["write -P 17 0 2M", "write -P 18 6291456 1024"]);
    replicate(&sites);
    farsite(&sites, "south", &["hydrate", "--json"]);

    File::options().write(true).open(&raw).unwrap().set_len(9 * MIB as u64 + 5).unwrap();
    write_at(&raw, 9 * MIB, b"12345");
    tool("qemu-img", &["resize", "-q", "-f", "qcow2", at, "20M"]);
    io("qcow2", at, &["write -P 19 19M 64k"]);
    let report = replicate(&sites);
    let done = farsite(&sites, "south", &["hydrate", "--json"]);
    assert_eq!(hydrated_size(&done), "difference difference", "{done}");
    let expected = sites.path("expected");
    tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", at, expected.to_str().unwrap()]);
    for (name, bytes) in
        [("volume-raw", fs::read(&raw).unwrap()), ("volume-qcow2", fs::read(&expected).unwrap())]
    {
        let item = ItemId::parse(format!("cinder/{name}"));
        assert!(restored(&sites, &report, &item).await == bytes, "{name} restores as another disk");
        let copy = sites.path("south/places/volumes/.farsite-hydrated").join(name);
        assert!(fs::read(&copy).unwrap() == bytes, "the copy of {name} is another disk");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_what_leaves_a_pool_while_it_is_read_is_whole_or_absent_and_what_grows_is_as_long_at_the_standby()
 {
    let sites = TwoSites::founded("").await;
    let ceph = Ceph::start(&sites.path("ceph"));
    for pool in ["images", "south"] {
        ceph.pool(pool);
    }
    let rbd = |pool: &str| format!("rbd: {{ pool: {pool}, conf: {}, user: admin }}", ceph.conf.display());
    let policy = |hooks: &str| {
        sites.policy(&format!(
            "  - cinder: {{ {}, select: {{ files: ['volume-*'] }} }}\n  - glance: {{ {}, {hooks} }}\n",
            rbd("volumes"),
            rbd("images")
        ));
        sites.edit("south/policies/cloud.yaml", |text| text.replace("rpo: 20s", "rpo: 20m"));
    };
    policy("name: main");
    let places = sites.path("south/places").display().to_string();
    sites.edit("south/farsite.yaml", |text| {
        text.replace(
            &format!("cinder: {{ path: {places}/volumes }}"),
            &format!("cinder: {{ {} }}", rbd("south")),
        )
    });
    for name in ["volume-a", "volume-b"] {
        ceph.run("rbd", &["create", &format!("volumes/{name}"), "--size", "40M"]);
        ceph.write(&format!("volumes/{name}"), 0, &noise(8, 32 * MIB));
    }
    for id in [A, B] {
        let image = format!("images/{id}");
        ceph.run("rbd", &["create", &image, "--size", "4M"]);
        ceph.write(&image, 0, &noise(9, 2 * MIB));
        ceph.run("rbd", &["snap", "create", &format!("{image}@snap")]);
        ceph.run("rbd", &["snap", "protect", &format!("{image}@snap")]);
    }
    replicate(&sites);
    farsite(&sites, "south", &["hydrate", "--json"]);

    // Grown, with data at its new end.
    ceph.run("rbd", &["resize", "volumes/volume-b", "--size", "60M", "--no-progress"]);
    ceph.write("volumes/volume-b", 59 * MIB as u64, &noise(10, MIB));
    let report = replicate(&sites);
    farsite(&sites, "south", &["hydrate", "--json"]);
    let grown = ceph.read("volumes/volume-b");
    assert_eq!(grown.len(), 60 * MIB);
    assert!(restored(&sites, &report, &ItemId::parse("cinder/volume-b")).await == grown);
    assert!(ceph.read("south/.farsite-hydrated.volume-b") == grown, "the copy is another disk");

    // An image goes between the listing and its capture.
    let conf = ceph.conf.display();
    let remove = |id: &str| {
        let rbd = format!("timeout 60 rbd --conf {conf}");
        format!(
            "{rbd} snap unprotect images/{id}@snap && {rbd} snap rm images/{id}@snap && {rbd} rm images/{id}"
        )
    };
    policy(&deletes(&remove(B)));
    let report = replicate(&sites);
    assert_eq!(
        (&report["absent"], &report["items"]),
        (&json!([format!("glance/{B}")]), &json!(3)),
        "{report}"
    );
    policy("name: main");

    // Cinder gives up a volume that is being read, as it does when it cannot remove it: by the trash.
    ceph.write("volumes/volume-a", 0, &noise(11, 32 * MIB));
    let expected = ceph.read("volumes/volume-a");
    sites.edit("north/policies/cloud.yaml", |text| format!("{text}bandwidth: {{ limit: 8MiB/s }}\n"));
    let ours = || ceph.names(&["snap", "ls", "volumes/volume-a"]).len();
    let before = ours();
    let log = sites.path("reads.log");
    let mut reading = Running::start(sites.command("north/farsite.yaml", &["replicate", "--json"]), &log);
    assert!(comes_true(Duration::from_secs(30), || ours() > before), "{}", reading.said());
    ceph.run("rbd", &["trash", "mv", "volumes/volume-a"]);
    assert!(reading.ended().is_none(), "it was too quick: {}", reading.said());
    let code = reading.ends_within(Duration::from_mins(2));
    assert!(matches!(code, Some(0 | 3)), "{code:?}: {}", reading.said());
    let ledger = sites.ledger().await;
    let newest = ledger.state().points.last().unwrap().said.clone();
    assert!(newest.whole, "{}", reading.said());
    let manifest = sites.manifest(newest.point).await;
    let item = ItemId::parse("cinder/volume-a");
    if manifest.item(&item).is_some() {
        let report = json!({ "point": newest.point.to_string() });
        assert!(restored(&sites, &report, &item).await == expected, "half a volume");
        println!("read to its end");
    } else {
        assert!(manifest.absent.contains(&item), "{manifest:?}");
        println!("absent");
    }
}
