//! Stories of ancestry: a volume that was made from an image, and a clone that was made from the volume, ship what differs
//! and nothing else.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use farsite_model::ItemId;
use farsite_replicate::restore;
use farsite_replicate::run::RunReport;
use farsite_scenarios::{TwoSites, noise};
use farsite_store::read::ReadStats;

const MIB: usize = 1 << 20;
const IMAGE: &str = "0a1b2c3d-0000-4000-8000-00000000000a";
const ITEMS: &str = "  - glance: { store: NORTH/images }\n  - cinder: { path: NORTH/volumes }\n";

/// An image of 70 MiB (more than one leaf of its block map), and a volume that has nothing to do with it.
async fn a_site() -> TwoSites {
    let sites = TwoSites::founded(ITEMS).await;
    fs::create_dir_all(sites.data("images")).unwrap();
    fs::create_dir_all(sites.data("volumes")).unwrap();
    fs::write(sites.data(&format!("images/{IMAGE}")), noise(1, 70 * MIB)).unwrap();
    fs::write(sites.data("volumes/volume-other"), noise(2, MIB)).unwrap();
    sites
}

fn write_at(sites: &TwoSites, volume: &str, offset: usize, bytes: &[u8]) {
    let volume = File::options().write(true).open(sites.data(&format!("volumes/{volume}"))).unwrap();
    volume.write_all_at(bytes, offset as u64).unwrap();
}

async fn assert_restores(sites: &TwoSites, report: &RunReport, volume: &str) {
    let manifest = sites.manifest(report.point).await;
    let item = manifest.item(&ItemId::parse(format!("cinder/{volume}"))).unwrap();
    let to = sites.path(&format!("restored-{volume}-{}", report.point));
    let reader = sites.reader().await;
    restore::item(&reader, item, &to, &restore::unguarded(), &ReadStats::default()).await.unwrap();
    assert!(fs::read(to).unwrap() == fs::read(sites.data(&format!("volumes/{volume}"))).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_ships_what_differs_from_its_image_and_a_clone_what_differs_from_its_volume() {
    let sites = a_site().await;
    let first = sites.replicate().await;
    assert!(first.shipped_bytes > 70 << 20, "{first:?}");
    // A volume is made from the image, is larger, and has been written to in three places.
    fs::copy(sites.data(&format!("images/{IMAGE}")), sites.data("volumes/volume-a")).unwrap();
    let volume = File::options().write(true).open(sites.data("volumes/volume-a")).unwrap();
    volume.set_len(80 * MIB as u64).unwrap();
    write_at(&sites, "volume-a", 5 * MIB, &noise(3, 300_000));
    write_at(&sites, "volume-a", 69 * MIB, b"a few bytes");
    write_at(&sites, "volume-a", 79 * MIB, &noise(4, 50_000));
    let second = sites.replicate().await;
    println!("the volume: {} changed, {} shipped", second.changed_bytes, second.shipped_bytes);
    assert!(second.changed_bytes <= 8 * 65536, "{second:?}");
    assert!(second.shipped_bytes < 600_000, "{second:?}");
    assert!(second.suspicious.is_empty(), "{second:?}");
    assert_restores(&sites, &second, "volume-a").await;
    let manifest = sites.manifest(second.point).await;
    let volume = manifest.item(&ItemId::parse("cinder/volume-a")).unwrap();
    assert_eq!(volume.ancestor, Some(ItemId::parse(format!("glance/{IMAGE}"))));
    assert_eq!(manifest.item(&ItemId::parse("cinder/volume-other")).unwrap().ancestor, None);

    // A clone of the volume, and a person says of what.
    fs::copy(sites.data("volumes/volume-a"), sites.data("volumes/volume-b")).unwrap();
    write_at(&sites, "volume-b", 30 * MIB, &noise(5, 100_000));
    sites.policy(&format!("{ITEMS}ancestors: {{ cinder/volume-b: cinder/volume-a }}\n"));
    let third = sites.replicate().await;
    println!("the clone: {} changed, {} shipped", third.changed_bytes, third.shipped_bytes);
    assert!(third.changed_bytes <= 3 * 65536 && third.shipped_bytes < 250_000, "{third:?}");
    assert_restores(&sites, &third, "volume-b").await;
    let manifest = sites.manifest(third.point).await;
    let clone = manifest.item(&ItemId::parse("cinder/volume-b")).unwrap();
    assert_eq!(clone.ancestor, Some(ItemId::parse("cinder/volume-a")));

    // From now on each has its own map: nothing is read in vain, and the ancestor may go.
    fs::remove_file(sites.data("volumes/volume-a")).unwrap();
    write_at(&sites, "volume-b", 31 * MIB, b"own");
    let fourth = sites.replicate().await;
    assert_eq!(fourth.changed_bytes, 65536, "{fourth:?}");
    assert_restores(&sites, &fourth, "volume-b").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_word_about_an_ancestor_costs_bytes_and_nothing_else() {
    let sites = a_site().await;
    sites.replicate().await;
    fs::write(sites.data("volumes/volume-c"), noise(6, 2 * MIB)).unwrap();
    sites.policy(&format!("{ITEMS}ancestors: {{ cinder/volume-c: cinder/volume-other }}\n"));
    let report = sites.replicate().await;
    assert_eq!(report.changed_bytes, 2 << 20, "{report:?}");
    assert_restores(&sites, &report, "volume-c").await;
}
