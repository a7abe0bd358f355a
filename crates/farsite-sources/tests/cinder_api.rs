//! Volumes that Cinder's API selects, against a fake of it: what is selected is captured or fails, and is never left out in
//! silence.

#[path = "../../farsite-openstack/tests/asking/fake.rs"]
#[allow(dead_code, reason = "shared with the tests of the client")]
mod fake;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fake::{Fake, Fault, volume};
use farsite_model::clock::SystemClock;
use farsite_model::{ItemId, ItemKind};
use farsite_openstack::{Client, Clouds, Limits, SiteCloud};
use farsite_sources::{CaptureContext, Source};
use serde_json::{Value, json};

const A: &str = "0a1b2c3d-0000-4000-8000-00000000000a";
const B: &str = "0a1b2c3d-0000-4000-8000-00000000000b";
const MOVED: &str = "0a1b2c3d-0000-4000-8000-00000000000c";

/// Two volumes, of which the second has moved, with their files; the second one's overlay; and a file that nobody knows.
async fn site() -> (tempfile::TempDir, Fake) {
    let folder = tempfile::tempdir().unwrap();
    let volumes = folder.path().join("volumes");
    std::fs::create_dir(&volumes).unwrap();
    for name in [A.to_owned(), MOVED.to_owned(), format!("{MOVED}.info"), "stray".to_owned()] {
        std::fs::write(volumes.join(format!("volume-{name}")), vec![1; 4096]).unwrap();
    }
    let fake = Fake::start().await;
    fake.change(|content| {
        content.volumes = vec![
            volume(
                A,
                json!({ "metadata": { "dr": "yes" }, "name": "db",
                              "volume_image_metadata": { "image_id": "image-1" } }),
            ),
            volume(
                B,
                json!({ "metadata": { "dr": "yes" }, "name": "web", "source_volid": A,
                              "os-vol-mig-status-attr:name_id": MOVED }),
            ),
        ];
    });
    (folder, fake)
}

fn source(folder: &Path, fake: &Fake, select: Value) -> Box<dyn Source> {
    source_of(folder, fake, json!({ "select": select }))
}

/// The entry has these words beside its folder.
fn source_of(folder: &Path, fake: &Fake, mut entry: Value) -> Box<dyn Source> {
    let clouds = Clouds::read(&fake.clouds_yaml(folder)).unwrap();
    let cloud = clouds.find("north").unwrap();
    let limits = Limits { tries: 1, call: Duration::from_secs(5), ..Limits::default() };
    let client = Client::new(cloud, None, limits, move || clouds.credentials("north")).unwrap();
    let cloud = Arc::new(SiteCloud::with(&"north".parse().unwrap(), client));
    entry["path"] = json!(folder.join("volumes"));
    let entry = json!({ "cinder": entry });
    farsite_sources::source(&serde_json::from_value(entry).unwrap(), &cloud).unwrap()
}

async fn names(source: &dyn Source) -> Vec<String> {
    source.items().await.unwrap().iter().map(|id| id.name().to_owned()).collect()
}

#[tokio::test]
async fn what_cinder_selects_is_captured_under_the_names_of_its_files() {
    let (folder, fake) = site().await;
    let all = [format!("volume-{A}"), format!("volume-{MOVED}"), format!("volume-{MOVED}.info")];
    let by_metadata = source(folder.path(), &fake, json!({ "metadata": { "dr": "yes" } }));
    assert_eq!(names(&*by_metadata).await, all);
    let by_name = source(folder.path(), &fake, json!({ "names": ["we*"] }));
    assert_eq!(names(&*by_name).await, all[1..]);
    let by_both = source(folder.path(), &fake, json!({ "metadata": { "dr": "yes" }, "files": ["*.info"] }));
    assert_eq!(names(&*by_both).await, all[2..]);
    let lines = by_metadata.check().await;
    assert!(
        lines.iter().any(|line| line.result.as_ref().is_ok_and(|says| says.starts_with("3 volumes"))),
        "{lines:?}"
    );
}

#[tokio::test]
async fn a_selected_volume_without_a_file_is_listed_and_its_capture_fails() {
    let (folder, fake) = site().await;
    std::fs::remove_file(folder.path().join(format!("volumes/volume-{A}"))).unwrap();
    let source = source(folder.path(), &fake, json!({ "metadata": { "dr": "yes" } }));
    let lost = format!("volume-{A}");
    assert!(names(&*source).await.contains(&lost));
    let context = context(folder.path());
    assert!(source.capture(&ItemId::new(ItemKind::Cinder, &lost), &context).await.is_err());
    // One that is not there yet is nobody's failure.
    fake.change(|content| content.volumes[0]["status"] = json!("creating"));
    assert!(!names(&*source).await.contains(&lost));
}

#[tokio::test]
async fn a_cloud_that_cannot_be_asked_fails_the_entry_and_selects_no_fewer() {
    let (folder, fake) = site().await;
    let source = source(folder.path(), &fake, json!({ "metadata": { "dr": "yes" } }));
    // What captures do without is asked first.
    fake.fails("/volume", [Fault::Status(503), Fault::Status(503)]);
    let error = source.items().await.unwrap_err().to_string();
    assert!(error.contains("without which none is captured") && error.contains("503"), "{error}");
    assert_eq!(names(&*source).await.len(), 3, "it is asked again the next time");
    fake.change(|content| content.volumes.clear());
    let lines = source.check().await;
    assert!(
        lines.iter().any(|line| line.result.as_ref().is_err_and(|why| why.contains("no volume"))),
        "{lines:?}"
    );
}

#[tokio::test]
async fn names_that_were_written_for_files_are_refused_and_not_answered_with_less() {
    let (folder, fake) = site().await;
    let source = source(folder.path(), &fake, json!({ "names": ["volume-*"] }));
    let error = source.items().await.unwrap_err().to_string();
    assert!(error.contains("`files: [volume-*]`"), "{error}");
}

#[tokio::test]
async fn a_capture_knows_what_its_volume_was_made_from() {
    let (folder, fake) = site().await;
    let source = source(folder.path(), &fake, Value::Null);
    let context = context(folder.path());
    let ancestor = async |name: String| {
        source.capture(&ItemId::new(ItemKind::Cinder, &name), &context).await.unwrap().ancestor
    };
    assert_eq!(
        ancestor(format!("volume-{MOVED}")).await,
        Some(ItemId::new(ItemKind::Cinder, &format!("volume-{A}")))
    );
    assert_eq!(ancestor(format!("volume-{A}")).await, Some(ItemId::new(ItemKind::Glance, "image-1")));
    assert_eq!(ancestor("volume-stray".to_owned()).await, None);
    std::fs::remove_file(folder.path().join(format!("volumes/volume-{A}"))).unwrap();
    let image = Some(ItemId::new(ItemKind::Glance, "image-1"));
    assert_eq!(ancestor(format!("volume-{MOVED}")).await, None.or(image), "the volume between them is gone");
}

#[tokio::test]
async fn a_capture_knows_whether_cinder_encrypts_its_volume_and_which_items_hold_the_keys() {
    let (folder, fake) = site().await;
    let keys = json!(["mariadb/main", "files/barbican"]);
    let with_keys = source_of(folder.path(), &fake, json!({ "encryption-keys": keys }));
    let without = source_of(folder.path(), &fake, json!({}));
    let context = context(folder.path());
    let details = async |source: &dyn Source, name: &str| {
        let mut details =
            source.capture(&ItemId::new(ItemKind::Cinder, name), &context).await.unwrap().details;
        ["encrypted", "encryption-keys"].map(|key| details.remove(key))
    };
    fake.change(|content| content.volumes[0]["encrypted"] = json!(true));
    let volume = format!("volume-{A}");
    assert_eq!(details(&*with_keys, &volume).await, [Some("cinder".to_owned()), Some(keys.to_string())]);
    assert_eq!(details(&*without, &volume).await, [Some("cinder".to_owned()), None]);
    // What begins like an encrypted volume is one where the cloud does not tell; where it does, its guest did it.
    let luks =
        |name: &str| std::fs::write(folder.path().join("volumes").join(name), b"LUKS\xba\xbe\0\x02").unwrap();
    luks("volume-stray");
    assert_eq!(details(&*without, "volume-stray").await, [Some("luks".to_owned()), None]);
    let moved = format!("volume-{MOVED}");
    luks(&moved);
    assert_eq!(details(&*without, &moved).await, [None, None]);
}

fn context(folder: &Path) -> CaptureContext {
    let scratch = folder.join("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    CaptureContext {
        clock: Arc::new(SystemClock),
        kept: scratch.join("kept"),
        scratch,
        timeout: Duration::from_mins(1),
        frozen: false,
        owner: "test".to_owned(),
    }
}
