//! Images whose checksums stand in a real MariaDB, as in a cloud.

#[allow(dead_code, reason = "shared with the other test files, which use the rest")]
mod common;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use common::{Root, Server, context};
use farsite_model::Consistency;
use farsite_model::policy::Item;
use serde_json::json;

const ACTIVE: &str = "0a1b2c3d-0000-4000-8000-00000000000a";
const DELETED: &str = "0a1b2c3d-0000-4000-8000-00000000000b";
const LOST: &str = "0a1b2c3d-0000-4000-8000-00000000000c";

#[tokio::test(flavor = "multi_thread")]
async fn heavy_images_are_compared_with_glances_own_table_in_mariadb() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("n"), Root::UnixSocket, &["--skip-log-bin"]);
    server.sql(
        "CREATE DATABASE glance; CREATE TABLE glance.images (id VARCHAR(36) PRIMARY KEY, status VARCHAR(30), \
         size BIGINT, os_hash_algo VARCHAR(64), os_hash_value VARCHAR(128), checksum VARCHAR(32), \
         disk_format VARCHAR(20), deleted TINYINT(1), created_at DATETIME)",
    );
    for (id, deleted) in [(ACTIVE, 0), (DELETED, 1), (LOST, 0)] {
        server.sql(&format!(
            "INSERT INTO glance.images VALUES ('{id}', 'active', 700, 'sha512', 'beef', NULL, 'qcow2', {deleted}, NOW())"
        ));
    }
    let images = dir.path().join("images");
    std::fs::create_dir(&images).unwrap();
    for id in [ACTIVE, DELETED] {
        std::fs::write(images.join(id), vec![1; 700]).unwrap();
        let file = std::fs::File::options().write(true).open(images.join(id)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_mins(1)).unwrap();
    }
    let checksums = json!({"mariadb": {"socket": server.socket(), "user": "root"}});
    let item: Item =
        serde_json::from_value(json!({"glance": {"store": images, "checksums": checksums}})).unwrap();
    let source = farsite_sources::source(&item, &no_cloud()).unwrap();

    let lines = source.check().await;
    let wrong: Vec<_> = lines.iter().filter_map(|line| line.result.clone().err()).collect();
    assert_eq!(wrong.len(), 1, "{lines:?}");
    assert!(wrong[0].contains(LOST), "{wrong:?}");
    let ids = source.items().await.unwrap();
    let active = source.capture(&ids[0], &context(dir.path())).await.unwrap();
    assert_eq!((active.consistency, active.still), (Consistency::Application, true));
    let details: Vec<(&str, &str)> = active.details.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let mode = format!("{:o}", std::fs::metadata(images.join(ACTIVE)).unwrap().permissions().mode() & 0o777);
    let expected = [("disk_format", "qcow2"), ("mode", &mode), ("sha512", "beef"), ("status", "active")];
    assert_eq!(details, expected);
    let deleted = source.capture(&ids[1], &context(dir.path())).await.unwrap();
    assert_eq!(deleted.consistency, Consistency::Crash, "Glance does not vouch for it any more");
}

/// A site whose cloud cannot be asked.
fn no_cloud() -> std::sync::Arc<farsite_openstack::SiteCloud> {
    let (site, about) = ("north".parse().unwrap(), farsite_model::config::Site::default());
    std::sync::Arc::new(farsite_openstack::SiteCloud::new(&site, about, farsite_openstack::Limits::default()))
}
