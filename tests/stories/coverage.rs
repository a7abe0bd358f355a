//! Stories of what a cloud has and who protects it. The cloud is a fake of Keystone, Glance and Cinder.

#[path = "../../crates/farsite-openstack/tests/asking/fake.rs"]
#[allow(dead_code, reason = "shared with the tests of the client")]
pub(crate) mod fake;

use std::process::Output;

use fake::{Fake, Fault, image, volume};
use farsite_model::ItemId;
use farsite_scenarios::{TwoSites, noise};
use serde_json::{Value, json};

const IMAGE: &str = "0a1b2c3d-0000-4000-8000-00000000000a";
const DB: &str = "0a1b2c3d-0000-4000-8000-0000000000db";
const WEB: &str = "0a1b2c3d-0000-4000-8000-0000000000eb";
const ITEMS: &str = "  - glance: { store: NORTH/images }\n  - cinder: { path: NORTH/volumes, select: { metadata: { dr: \"yes\" } } }\n";

async fn a_site_with_a_cloud() -> (TwoSites, Fake) {
    let sites = TwoSites::founded(ITEMS).await;
    sites
        .edit("north/farsite.yaml", |text| text.replace("north: {}", "north: { cloud: north, region: One }"));
    for (file, seed) in [
        (format!("images/{IMAGE}"), 1),
        (format!("volumes/volume-{DB}"), 2),
        (format!("volumes/volume-{WEB}"), 3),
    ] {
        let path = sites.data(&file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, noise(seed, 300_000)).unwrap();
    }
    let fake = Fake::start().await;
    fake.change(|content| {
        content.images = vec![image(IMAGE, json!({}))];
        content.projects = vec![json!({ "id": fake::PROJECT, "name": "shop" })];
        content.volumes = vec![
            volume(
                DB,
                json!({ "name": "db", "metadata": { "dr": "yes" },
                               "volume_image_metadata": { "image_id": IMAGE } }),
            ),
            volume(WEB, json!({ "name": "web" })),
        ];
    });
    fake.clouds_yaml(&sites.path("north"));
    (sites, fake)
}

async fn farsite(sites: &TwoSites, args: &[&str]) -> (Option<i32>, Value, String) {
    farsite_at(sites, "north", args).await
}

/// Another thread keeps the fake going meanwhile.
async fn farsite_at(sites: &TwoSites, site: &str, args: &[&str]) -> (Option<i32>, Value, String) {
    let mut command = sites.command(&format!("{site}/farsite.yaml"), args);
    command.env("OS_CLIENT_CONFIG_FILE", sites.path("north/clouds.yaml"));
    let Output { status, stdout, stderr } =
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let (text, errors) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(!text.contains(fake::PASSWORD) && !errors.contains(fake::PASSWORD), "{text} {errors}");
    (status.code(), serde_json::from_str(&text).unwrap_or(Value::Null), format!("{text}{errors}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unprotected_volume_is_named_until_somebody_marks_it() {
    let (sites, fake) = a_site_with_a_cloud().await;
    let (code, found, said) = farsite(&sites, &["coverage", "--json"]).await;
    assert_eq!(code, Some(3), "{said}");
    assert_eq!(
        (&found["images"]["protected"], &found["volumes"]["protected"]),
        (&json!(1), &json!(1)),
        "{said}"
    );
    let [web] = found["unprotected"].as_array().unwrap().as_slice() else { panic!("{said}") };
    assert_eq!((&web["id"], &web["name"], &web["project"]), (&json!(WEB), &json!("web"), &json!("shop")));
    let (_, _, said) = farsite(&sites, &["coverage"]).await;
    assert!(said.contains("1 not (1GiB)") && said.contains("no policy selects it"), "{said}");

    fake.change(|content| content.volumes[1]["metadata"] = json!({ "dr": "yes" }));
    let (code, found, said) = farsite(&sites, &["coverage", "--json"]).await;
    assert_eq!((code, &found["unprotected"]), (Some(0), &json!([])), "{said}");
    let (_, found, said) = farsite(&sites, &["check", "--json"]).await;
    let lines = found["lines"].as_array().unwrap();
    let says = |words: &str| lines.iter().any(|line| line["says"].as_str().unwrap().contains(words));
    assert!(says("gives a token to user farsite, project dr") && says("block-storage is at"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_captures_what_cinder_selects_and_nothing_less_when_it_cannot_be_asked() {
    let (sites, fake) = a_site_with_a_cloud().await;
    let newest = async || {
        let ledger = sites.ledger().await;
        let point = ledger.state().points.last().unwrap().said.point;
        sites.manifest(point).await
    };
    let (code, _, said) = farsite(&sites, &["replicate"]).await;
    assert_eq!(code, Some(0), "{said}");
    let manifest = newest().await;
    let db = ItemId::parse(format!("cinder/volume-{DB}"));
    assert_eq!(manifest.item(&db).unwrap().ancestor, Some(ItemId::parse(format!("glance/{IMAGE}"))));
    assert!(manifest.item(&ItemId::parse(format!("cinder/volume-{WEB}"))).is_none(), "nobody marked it");

    // Cinder is away for longer than anybody asks again.
    fake.fails("/volume", (0..40).map(|_| Fault::Status(503)));
    let (code, _, said) = farsite(&sites, &["replicate"]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("PARTIAL") && said.contains("without which none is captured"), "{said}");
    assert!(newest().await.item(&db).is_some(), "it is carried");
    fake.change(|content| content.faults.clear());
    let (code, _, said) = farsite(&sites, &["replicate"]).await;
    assert_eq!(code, Some(0), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_of_the_standby_that_is_slow_or_fails_half_way_is_found_by_the_dry_run() {
    let (sites, fake) = a_site_with_a_cloud().await;
    let (code, _, said) = farsite(&sites, &["replicate"]).await;
    assert_eq!(code, Some(0), "{said}");
    // The fake stands for south's own cloud now.
    sites
        .edit("south/farsite.yaml", |text| text.replace("south: {}", "south: { cloud: north, region: One }"));
    let lost = ["--level", "data", "--assume-site-lost", "--reason", "fire", "--dry-run"];
    let dry_run = async || {
        let words = [&["failover", "--site", "north"], &lost[..]].concat();
        let (code, _, said) = farsite_at(&sites, "south", &words).await;
        (code, said)
    };
    let (code, said) = dry_run().await;
    assert!(code == Some(0) && !said.contains("cannot be asked"), "{said}");
    let volumes: &'static str = format!("/volume/v3/{}/volumes", fake::PROJECT).leak();
    for (path, fault, why) in [
        ("/v2/images", Fault::Slow(std::time::Duration::from_secs(15)), "did not end within 10 s"),
        // It has given its version and its pools.
        (volumes, Fault::Status(500), "status 500"),
    ] {
        fake.fails(path, [fault]);
        let (code, said) = dry_run().await;
        assert!(code == Some(1) && said.contains("the cloud north of south cannot be asked"), "{said}");
        assert!(said.contains(why) && said.contains("hint:"), "{said}");
        fake.change(|content| content.faults.clear());
    }
}
