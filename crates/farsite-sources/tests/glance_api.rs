//! Images through Glance's API, against a fake of it: what is read is what Glance has recorded, or the image fails with the
//! reason; and nothing is downloaded that nobody reads.

#[path = "../../farsite-openstack/tests/asking/fake.rs"]
#[allow(dead_code, reason = "shared with the tests of the client")]
mod fake;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fake::{Cut, Fake, Fault, image};
use farsite_model::clock::SystemClock;
use farsite_model::config::Site;
use farsite_model::content::ReadAt;
use farsite_model::{Consistency, ItemId, ItemKind};
use farsite_openstack::{Client, Clouds, Limits, SiteCloud};
use farsite_sources::{Capture, CaptureContext, Content, Source};
use serde_json::json;

const A: &str = "0a1b2c3d-0000-4000-8000-00000000000a";
const B: &str = "0a1b2c3d-0000-4000-8000-00000000000b";
const C: &str = "0a1b2c3d-0000-4000-8000-00000000000c";
const MIB: usize = 1 << 20;

/// Three MiB of which one is zeros.
fn data() -> Vec<u8> {
    (0..3 * MIB).map(|at| if at / MIB == 1 { 0 } else { (at / 251) as u8 }).collect()
}

fn hash(data: &[u8]) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, data);
    hash.as_ref().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

struct Cloud {
    folder: tempfile::TempDir,
    fake: Fake,
}

impl Cloud {
    async fn with(data: &[u8]) -> Self {
        let fake = Fake::start().await;
        fake.change(|content| {
            content.images = vec![image(
                A,
                json!({ "size": data.len(), "os_hash_value": hash(data), "container_format": "bare" }),
            )];
            content.data.insert(A.to_owned(), data.to_vec());
        });
        Self { folder: tempfile::tempdir().unwrap(), fake }
    }

    fn source(&self) -> Box<dyn Source> {
        let clouds = Clouds::read(&self.fake.clouds_yaml(self.folder.path())).unwrap();
        let cloud = clouds.find("north").unwrap();
        let limits = Limits {
            tries: 3,
            call: Duration::from_millis(800),
            pause: Duration::from_millis(10),
            ..Limits::default()
        };
        let client = Client::new(cloud, None, limits, move || clouds.credentials("north")).unwrap();
        source(SiteCloud::with(&"north".parse().unwrap(), client))
    }

    fn downloads(&self) -> usize {
        self.fake.asked(&format!("GET /v2/images/{A}/file"))
    }

    async fn capture(&self) -> Capture {
        let source = self.source();
        source.items().await.unwrap();
        source.capture(&ItemId::new(ItemKind::Glance, A), &context(self.folder.path())).await.unwrap()
    }

    async fn content(&self) -> (Arc<dyn ReadAt>, Box<dyn Send + Sync>) {
        let Capture { content: Content::Volume(content), guard, .. } = self.capture().await else {
            panic!("it is a volume")
        };
        (content, guard.unwrap())
    }

    /// Reads A as a run does, block by block on a thread of its own.
    async fn read(&self) -> Result<Vec<u8>, String> {
        let (content, _guard) = self.content().await;
        tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; content.size_bytes() as usize];
            for (number, block) in bytes.chunks_mut(64 << 10).enumerate() {
                content
                    .read_exact_at(block, number as u64 * (64 << 10))
                    .map_err(|error| error.to_string())?;
            }
            Ok(bytes)
        })
        .await
        .unwrap()
    }
}

fn source(cloud: SiteCloud) -> Box<dyn Source> {
    let entry = serde_json::from_value(json!({ "glance": { "api": true } })).unwrap();
    farsite_sources::source(&entry, &Arc::new(cloud)).unwrap()
}

fn context(folder: &Path) -> CaptureContext {
    let scratch = folder.join("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    CaptureContext {
        clock: Arc::new(SystemClock),
        kept: scratch.join("kept"),
        scratch,
        timeout: Duration::from_secs(20),
        frozen: false,
        owner: "test".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_downloaded_when_it_is_read_and_not_before() {
    let cloud = Cloud::with(&data()).await;
    let capture = cloud.capture().await;
    assert_eq!((capture.consistency, capture.still), (Consistency::Application, true));
    assert_eq!(capture.details["sha512"], hash(&data()));
    assert_eq!(
        capture.details["backend"], "api",
        "the standby knows that it would be here whatever its store was"
    );
    assert_eq!(
        (capture.details["status"].as_str(), capture.details["container_format"].as_str()),
        ("active", "bare")
    );
    let tracking = capture.tracking.as_ref().unwrap();
    let token = tracking.keep().unwrap();
    assert_eq!(tracking.changed_since(&token).unwrap(), Some(Vec::new()));
    assert_eq!(tracking.changed_since("sha512-other-3145728").unwrap(), None);
    assert_eq!(cloud.downloads(), 0);
    assert!(cloud.read().await.unwrap() == data());
    assert_eq!(cloud.downloads(), 1);
    let left = std::fs::read_dir(cloud.folder.path().join("scratch")).unwrap().count();
    assert_eq!(left, 0, "the download's file has no name");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_download_goes_on_where_it_was_cut() {
    let cloud = Cloud::with(&data()).await;
    cloud.fake.change(|content| content.cuts = [Cut::After(MIB), Cut::After(MIB + 5), Cut::After(1)].into());
    assert!(cloud.read().await.unwrap() == data());
    assert_eq!(cloud.downloads(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_download_begins_anew_where_the_store_cannot_begin_in_the_middle() {
    let cloud = Cloud::with(&data()).await;
    cloud.fake.change(|content| {
        content.has_ranges = false;
        content.cuts = [Cut::After(MIB)].into();
    });
    assert!(cloud.read().await.unwrap() == data());
    assert_eq!(cloud.downloads(), 3, "cut, refused in the middle, whole");
    // A second time that differs in what was given out already is not taken.
    cloud.fake.change(|content| content.cuts = [Cut::After(MIB), Cut::Flipped(77)].into());
    let why = cloud.read().await.unwrap_err();
    assert!(why.contains("not the same both times"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_what_glance_has_recorded_is_not_read_to_its_end() {
    let cloud = Cloud::with(&data()).await;
    cloud.fake.change(|content| content.cuts = [Cut::Flipped(2 * MIB)].into());
    let why = cloud.read().await.unwrap_err();
    assert!(why.contains("Glance has recorded") && why.contains("an earlier point"), "{why}");
    // The next one is right.
    assert!(cloud.read().await.unwrap() == data());
    for recorded in [4 * MIB, MIB] {
        cloud.fake.change(|content| content.images[0]["size"] = json!(recorded));
        let why = cloud.read().await.unwrap_err();
        assert!(why.contains(&format!("3145728 bytes long, and Glance's record says {recorded}")), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_bytes_and_one_that_cannot_be_told_fail_with_the_reason() {
    let cloud = Cloud::with(&data()).await;
    let file = "/v2/images/0a1b2c3d-0000-4000-8000-00000000000a/file";
    cloud.fake.fails(file, vec![Fault::Status(500); 3]);
    let why = cloud.read().await.unwrap_err();
    assert!(why.contains("status 500") && why.contains("the fake was told to fail"), "{why}");
    // Busy once, and once with a token that has ended.
    cloud.fake.fails(file, [Fault::Busy, Fault::Status(401)]);
    assert!(cloud.read().await.unwrap() == data());
    cloud.fake.change(|content| content.cuts = vec![Cut::After(100); 3].into());
    let why = cloud.read().await.unwrap_err();
    assert!(why.contains("the data of image") || why.contains("failed"), "{why}");
    cloud.fake.change(|content| content.data.clear());
    let why = cloud.read().await.unwrap_err();
    assert!(why.contains("its store has no data of it"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_stands_still_or_crawls_is_given_up() {
    let cloud = Cloud::with(&data()).await;
    cloud.fake.change(|content| content.cuts = [Cut::StuckAfter(MIB)].into());
    assert!(cloud.read().await.unwrap() == data(), "asked again, it goes on");
    cloud.fake.change(|content| content.cuts = vec![Cut::StuckAfter(0); 3].into());
    let why = cloud.read().await.unwrap_err();
    assert!(why.contains("did not end within") && why.contains("at byte 0 of 3145728"), "{why}");
    let crawl = Cut::Trickle(100, Duration::from_millis(50));
    cloud.fake.change(|content| content.cuts = vec![crawl; 3].into());
    let why = cloud.read().await.unwrap_err();
    assert!(why.contains("did not end within"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_images_with_data_are_items_and_deactivated_and_hidden_ones_are_among_them() {
    let cloud = Cloud::with(&data()).await;
    cloud.fake.change(|content| {
        content.images.push(image(B, json!({ "status": "deactivated", "os_hidden": true })));
        for (n, status) in
            ["queued", "saving", "importing", "uploading", "killed", "pending_delete", "deleted"]
                .into_iter()
                .enumerate()
        {
            let id = format!("0a1b2c3d-0000-4000-8000-0000000001{n:02}");
            content.images.push(image(&id, json!({ "status": status, "size": null })));
        }
        // No hash, and no length.
        content.images.push(image(C, json!({ "os_hash_algo": null, "os_hash_value": null })));
    });
    let source = cloud.source();
    let ids: Vec<String> = source.items().await.unwrap().iter().map(|id| id.name().to_owned()).collect();
    assert_eq!(ids, [A, B, C]);
    let unhashed =
        source.capture(&ItemId::new(ItemKind::Glance, C), &context(cloud.folder.path())).await.unwrap();
    assert_eq!((unhashed.consistency, unhashed.tracking.is_none()), (Consistency::Crash, true));
    let lines = source.check().await;
    let said =
        |text: &str| lines.iter().any(|line| line.result.as_ref().is_ok_and(|said| said.contains(text)));
    assert!(
        said("3 images through Glance's API of cloud north; 7 more are queued or being uploaded"),
        "{lines:?}"
    );
    assert!(said(C), "{lines:?}");
    cloud.fake.change(|content| content.images[0]["size"] = json!(null));
    let lines = source.check().await;
    assert!(lines.iter().any(|line| line.result.as_ref().is_err_and(|why| why.contains(A))), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_may_be_a_part_is_an_error_and_so_is_a_site_without_a_cloud() {
    let cloud = Cloud::with(&data()).await;
    cloud.fake.change(|content| content.is_admin = false);
    let why = cloud.source().items().await.unwrap_err().to_string();
    assert!(why.contains("does not see the images of all projects"), "{why}");
    let nowhere = source(SiteCloud::new(&"north".parse().unwrap(), Site::default(), Limits::default()));
    assert!(nowhere.items().await.unwrap_err().to_string().contains("`cloud:`"));
    assert!(nowhere.check().await[0].result.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_larger_than_what_is_free_is_not_begun() {
    let cloud = Cloud::with(&data()).await;
    cloud.fake.change(|content| content.images[0]["size"] = json!(1u64 << 60));
    let (content, _guard) = cloud.content().await;
    let read = tokio::task::spawn_blocking(move || content.read_exact_at(&mut [0; 10], 0));
    let why = read.await.unwrap().unwrap_err().to_string();
    assert!(why.contains("are free") && why.contains("make room"), "{why}");
    assert_eq!(cloud.downloads(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_an_image_is_told_when_its_capture_is_taken_back() {
    let cloud = Cloud::with(&data()).await;
    cloud.fake.change(|content| content.cuts = vec![Cut::StuckAfter(MIB); 9].into());
    let (content, guard) = cloud.content().await;
    let reader = content.clone();
    let waits = tokio::task::spawn_blocking(move || reader.read_exact_at(&mut [0; 10], 2 * MIB as u64));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waits.is_finished());
    drop(guard);
    let why = tokio::time::timeout(Duration::from_millis(300), waits).await.unwrap().unwrap().unwrap_err();
    assert!(why.to_string().contains("was stopped"), "{why}");
    assert!(content.read_exact_at(&mut [0; 10], 0).is_err(), "it is not begun again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_is_let_go_downloads_no_further() {
    let cloud = Cloud::with(&data()).await;
    cloud.fake.change(|content| content.cuts = [Cut::Trickle(100 << 10, Duration::from_millis(100))].into());
    let (content, _guard) = cloud.content().await;
    let reader = content.clone();
    tokio::task::spawn_blocking(move || reader.read_exact_at(&mut [0; 10], 0)).await.unwrap().unwrap();
    drop(content);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let told = cloud.fake.change(|content| content.told);
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!((cloud.downloads(), cloud.fake.change(|content| content.told)), (1, told));
    assert!(told < data().len(), "{told}");
}
