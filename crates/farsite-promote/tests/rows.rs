//! A site is lost in the middle of everything that Cinder and Glance can do, and its names stand in more places than were thought of.
//! What its rows say is put right at the standby, or the failover stops with a sentence and goes on after the cure.

mod common;
#[path = "common/drives.rs"]
mod drives;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "common/lost_server.rs"]
mod lost_server;
#[allow(dead_code, reason = "the sources' own tests use the rest")]
#[path = "../../farsite-sources/tests/common/mod.rs"]
mod server;

use std::sync::Arc;

use common::{IMAGES, World, cloud, north};
use drives::{driving, id, order};
use farsite_model::config::SiteRewrite;
use farsite_promote::Standby;
use farsite_promote::drive::{Ended, drive};
use farsite_promote::failover::begin;
use farsite_promote::report::{Report, StepReport};
use lost_server::{point_of, restored, with_own_server};
use server::{Root, Server};

/// The columns of Cinder 29, Glance 33 and Keystone 30 that are asked for.
const SCHEMAS: &str = "
CREATE DATABASE keystone; USE keystone;
CREATE TABLE alembic_version (version_num VARCHAR(32)); INSERT INTO alembic_version VALUES ('742c857f1dfb');
CREATE TABLE region (id VARCHAR(255) PRIMARY KEY, description VARCHAR(255), parent_region_id VARCHAR(255), extra TEXT);
CREATE TABLE endpoint (id VARCHAR(64) PRIMARY KEY, region_id VARCHAR(255), url TEXT);
CREATE TABLE endpoint_group (id VARCHAR(64) PRIMARY KEY, name VARCHAR(255), filters TEXT);
CREATE TABLE project (id VARCHAR(64) PRIMARY KEY, name VARCHAR(64), description TEXT);
CREATE TABLE local_user (id INT PRIMARY KEY, name VARCHAR(255));
CREATE TABLE service (id VARCHAR(64) PRIMARY KEY, type VARCHAR(255));
CREATE DATABASE glance; USE glance;
CREATE TABLE alembic_version (version_num VARCHAR(32)); INSERT INTO alembic_version VALUES ('2024_1_contract01');
CREATE TABLE images (id VARCHAR(36) PRIMARY KEY, name VARCHAR(255), status VARCHAR(30), size BIGINT, deleted TINYINT DEFAULT 0);
CREATE TABLE image_locations (id INT AUTO_INCREMENT PRIMARY KEY, image_id VARCHAR(36), value TEXT, meta_data TEXT, deleted TINYINT DEFAULT 0);
CREATE DATABASE cinder; USE cinder;
CREATE TABLE alembic_version (version_num VARCHAR(32)); INSERT INTO alembic_version VALUES ('9c74c1c6971f');
CREATE TABLE services (id INT PRIMARY KEY, host VARCHAR(255), cluster_name VARCHAR(255), `binary` VARCHAR(255), availability_zone VARCHAR(255), deleted TINYINT DEFAULT 0);
CREATE TABLE volumes (id VARCHAR(36) PRIMARY KEY, _name_id VARCHAR(36), status VARCHAR(255), attach_status VARCHAR(255), previous_status VARCHAR(255), migration_status VARCHAR(255), size INT DEFAULT 1, host VARCHAR(255) DEFAULT 'ctl-north@nfs#pool', cluster_name VARCHAR(255), availability_zone VARCHAR(255), provider_location VARCHAR(255), display_name VARCHAR(255), deleted TINYINT DEFAULT 0);
CREATE TABLE volume_admin_metadata (id INT AUTO_INCREMENT PRIMARY KEY, created_at DATETIME, volume_id VARCHAR(36), `key` VARCHAR(255), value VARCHAR(255), deleted TINYINT DEFAULT 0);
CREATE TABLE volume_attachment (id VARCHAR(36) PRIMARY KEY, volume_id VARCHAR(36), instance_uuid VARCHAR(36), attached_host VARCHAR(255), attach_status VARCHAR(255), detach_time DATETIME, connection_info TEXT, deleted_at DATETIME, deleted TINYINT DEFAULT 0);
CREATE TABLE volume_type_extra_specs (id INT PRIMARY KEY, `key` VARCHAR(255), value VARCHAR(255), deleted TINYINT DEFAULT 0);
CREATE TABLE snapshots (id VARCHAR(36) PRIMARY KEY, volume_id VARCHAR(36), status VARCHAR(255), deleted TINYINT DEFAULT 0);
CREATE TABLE workers (id INT AUTO_INCREMENT PRIMARY KEY, resource_type VARCHAR(40), resource_id VARCHAR(36), status VARCHAR(255), service_id INT, deleted TINYINT DEFAULT 0);
CREATE TABLE backups (id VARCHAR(36) PRIMARY KEY, status VARCHAR(255), host VARCHAR(255), availability_zone VARCHAR(255), deleted TINYINT DEFAULT 0);
CREATE TABLE `groups` (id VARCHAR(36) PRIMARY KEY, status VARCHAR(255), deleted TINYINT DEFAULT 0);
CREATE TABLE group_snapshots (id VARCHAR(36) PRIMARY KEY, status VARCHAR(255), deleted TINYINT DEFAULT 0);
INSERT INTO services VALUES (3, 'ctl-north@nfs', NULL, 'cinder-volume', 'nova', 0);
";

/// The database serves, names are rewritten, rows are put right, and what still names the lost site is looked for.
const RUNBOOK: &str = "
name: rows
include: data
stages:
  - name: rows
    steps:
      - { id: serve, action: start-database, with: { stopped-by: 'true' } }
      - { id: site, action: rewrite-site, needs: [serve] }
      - { id: rows, action: reconcile, needs: [site] }
      - { id: again, action: reconcile, needs: [rows] }
      - { id: look, action: scan-site, needs: [again] }
";

/// An id that a person can read in a failed test.
fn uuid(n: u32) -> String {
    format!("{n:08}-0000-4000-8000-000000000000")
}

struct Lost {
    world: World,
    standby: Standby,
    own: Server,
}

/// North's server with these rows is in a point, and gone; `own` is what south's own server has.
async fn lost(rows: &str, own_rows: &str) -> Lost {
    let world = World::new().await;
    let logged = ["--log-bin=mariadb-bin", "--binlog-format=ROW", "--server-id=7"];
    let server = Server::start(&world.dir.path().join("n"), Root::UnixSocket, &logged);
    server.sql(&format!("{SCHEMAS} {rows}"));
    point_of(&world, &server).await;
    drop(server);
    let own = Server::start(&world.dir.path().join("s"), Root::UnixSocket, &[]);
    if !own_rows.is_empty() {
        own.sql(own_rows);
    }
    let standby = with_own_server(&world, &world.standby("one").await, &own);
    Lost { world, standby, own }
}

impl Lost {
    fn rewrites(&mut self, rewrite: serde_json::Value) {
        let mut config = (*self.standby.config).clone();
        let rewrite: SiteRewrite = serde_json::from_value(rewrite).unwrap();
        config.places.get_mut(&cloud()).unwrap().rewrite = Some(rewrite);
        self.standby.config = Arc::new(config);
    }

    async fn begin(&self) -> Ended {
        let mut given = order(1);
        let runbook = self.world.dir.path().join("rows.yaml");
        std::fs::write(&runbook, RUNBOOK).unwrap();
        given.runbook = Some(runbook);
        let promotion = begin(&self.standby, &self.world.operator, &given).await.unwrap();
        drive(&self.standby, &self.world.operator, &promotion, &driving("ann")).await.unwrap()
    }

    async fn go_on(&self) -> Ended {
        let promotion = farsite_promote::failover::open(&self.standby, &north()).await.unwrap();
        drive(&self.standby, &self.world.operator, &promotion, &driving("ann")).await.unwrap()
    }

    async fn step(&self, id_of_step: &str) -> StepReport {
        let report = Report::of(&self.standby, id(1)).await.unwrap();
        report.groups[0].steps.iter().find(|step| step.id == id_of_step).unwrap().clone()
    }
}

fn stopped_at(ended: &Ended, id: &str, words: &[&str]) {
    let [(step, why)] = &ended.groups[0].failed[..] else { panic!("{ended:?}") };
    assert!(step == id && words.iter().all(|word| why.contains(word)), "{step}: {why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_nothing_stays_in_a_state_that_nobody_ends_and_what_people_wrote_stops_no_failover() {
    let volumes = [
        ("in-use", "attached", "available", "available"),
        ("uploading", "attached", "in-use", "available"),
        ("extending", "attached", "in-use", "error_extending"),
        ("maintenance", "attached", "available", "available"),
        ("error", "attached", "in-use", "error"),
        ("unmanaging", "detached", "available", "available"),
        ("managing", "detached", "available", "error_managing"),
        ("awaiting-transfer", "detached", "available", "awaiting-transfer"),
        ("deleting", "detached", "available", "deleting"),
        ("deleting", "detached", "available", "error_deleting"),
    ];
    let [going_on, of_first] = [uuid(8), uuid(0)];
    let mut rows = Vec::new();
    for (n, (status, attached, before, _)) in (0u32..).zip(&volumes) {
        rows.push(format!(
            "INSERT INTO volumes (id, status, attach_status, previous_status, availability_zone, display_name) VALUES ('{}', '{status}', '{attached}', '{before}', 'nova', 'disk of ctl-north')",
            uuid(n)
        ));
    }
    let snapshots = ["restoring", "backing-up", "unmanaging", "updating", "available"];
    for (n, status) in (100u32..).zip(snapshots) {
        rows.push(format!("INSERT INTO snapshots VALUES ('{}', '{of_first}', '{status}', 0)", uuid(n)));
    }
    rows.push(format!(
        "INSERT INTO snapshots VALUES ('{}', '{going_on}', 'deleting', 0), ('{}', '{of_first}', 'deleting', 0);
        INSERT INTO workers (resource_type, resource_id, status, service_id) VALUES ('Volume', '{going_on}', 'deleting', 3), ('Volume', '{}', 'deleting', NULL);
        INSERT INTO volume_attachment (id, volume_id, attach_status, connection_info) VALUES ('{}', '{of_first}', 'attached', 'a secret of ctl-north');
        INSERT INTO backups VALUES ('{}', 'creating', NULL, 'nova', 0), ('{}', 'restoring', 'ctl-north', 'nova', 0), ('{}', 'deleting', 'ctl-north', 'nova', 0);
        INSERT INTO `groups` VALUES ('{}', 'updating', 0); INSERT INTO group_snapshots VALUES ('{}', 'creating', 0);
        INSERT INTO volume_type_extra_specs VALUES (1, 'RESKEY:availability_zones', 'east,nova', 0), (2, 'volume_backend_name', 'RegionNorth', 0);
        INSERT INTO glance.images VALUES ('{}', 'RegionNorth', 'saving', NULL, 0);
        INSERT INTO keystone.region VALUES ('RegionNorth', 'about RegionNorth', NULL, '{{}}'); INSERT INTO keystone.endpoint VALUES ('e', 'RegionNorth', 'http://north:5000');
        INSERT INTO keystone.endpoint_group VALUES ('g', 'of RegionNorth', '{{\"region_id\": \"RegionNorth\", \"interface\": \"public\"}}');
        INSERT INTO keystone.project VALUES ('p', 'RegionNorth', 'runs on ctl-north'); INSERT INTO keystone.local_user VALUES (1, 'nova'); INSERT INTO keystone.service VALUES ('s', 'nova')",
        uuid(110), uuid(111), uuid(9), uuid(120), uuid(130), uuid(131), uuid(132), uuid(140), uuid(141), uuid(150)
    ));
    let mut lost = lost(&rows.join(";"), "").await;
    lost.rewrites(serde_json::json!({
        "regions": {"RegionNorth": "RegionSouth"}, "hosts": {"ctl-north": "ctl-south"}, "zones": {"nova": "south"}
    }));
    let server = restored(&lost.own);
    let ended = lost.begin().await;
    // A specification of a volume type is no free text: the scheduler goes by it.
    let extra = "cinder.volume_type_extra_specs.value holds RegionNorth";
    stopped_at(&ended, "look", &[extra, "by hand", "promotion skip --step look", "--resume"]);
    let [(_, why)] = &ended.groups[0].failed[..] else { panic!() };
    for word in ["display_name", "project", "local_user", "nova", "disk of", "secret", "region"] {
        assert!(!why.contains(word), "{word}: {why}");
    }

    let put_right = "UPDATE cinder.volume_type_extra_specs SET value = 'south' WHERE id = 2";
    server.0.execute(&[put_right]).await.unwrap();
    let ended = lost.go_on().await;
    assert!(ended.is_completed(), "{ended:?}");
    let ended_ones = format!("1: volume {of_first} of somebody (attached)");
    assert_eq!(lost.step("site").await.evidence["attachments ended"], ended_ones);
    let look = lost.step("look").await;
    assert_eq!(look.evidence["cinder.volumes.display_name"], "10 rows of free text hold ctl-north");
    assert!(look.evidence["cinder.volume_attachment.connection_info"].contains("1 deleted rows still hold"));

    let one = async |sql: &str| server.0.query(sql).await.unwrap()[0][0].clone().unwrap_or_default();
    for (n, (status, _, _, due)) in (0u32..).zip(&volumes) {
        let of = format!("FROM cinder.volumes WHERE id = '{}'", uuid(n));
        assert_eq!(one(&format!("SELECT status {of}")).await, *due, "{status}");
        assert_eq!(one(&format!("SELECT attach_status {of}")).await, "detached", "{status}");
        assert_eq!(one(&format!("SELECT previous_status {of}")).await, "available", "{status}");
    }
    let all = async |column: &str, of: &str| {
        one(&format!("SELECT GROUP_CONCAT({column} ORDER BY id) FROM {of}")).await
    };
    let available = ["available"; 5].join(",");
    assert_eq!(all("status", "cinder.snapshots").await, format!("{available},deleting,error_deleting"));
    assert_eq!(all("status", "cinder.backups").await, "error,available,error_deleting");
    assert_eq!(
        all("status", "cinder.`groups`").await + &all("status", "cinder.group_snapshots").await,
        "errorerror"
    );
    assert_eq!(all("status", "glance.images").await, "killed");
    assert_eq!(all("DISTINCT availability_zone", "cinder.backups").await, "south");
    assert_eq!(one("SELECT value FROM cinder.volume_type_extra_specs WHERE id = 1").await, "east,south");
    let filters = one("SELECT filters FROM keystone.endpoint_group").await;
    assert_eq!(filters, r#"{"region_id": "RegionSouth", "interface": "public"}"#);

    let rows = lost.step("rows").await;
    let kept = one("SELECT COUNT(*) FROM farsite.farsite_reconciled").await;
    assert!(rows.detail.contains(&format!("{kept} things not as they should be")), "{kept}: {rows:?}");
    assert!(rows.evidence["hosts of volumes"].contains("not known"), "{rows:?}");
    // Whoever comes behind a driver that died with it done tells the same list.
    let again = lost.step("again").await;
    assert!(again.detail.starts_with("done already"), "{again:?}");
    assert_eq!(again.evidence, rows.evidence);
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_rewrite_that_nobody_thought_of_stops_the_failover_before_a_service_looks_in_the_wrong_place()
{
    let mut rows = Vec::new();
    for n in 0..3 {
        rows.push(format!(
            "INSERT INTO volumes (id, status, attach_status, provider_location) VALUES ('{}', 'available', 'detached', IF({n} = 2, 'nfs.north:/cinder', NULL))",
            uuid(n)
        ));
    }
    for image in IMAGES {
        rows.push(format!(
            "INSERT INTO glance.images VALUES ('{image}', 'golden', 'active', NULL, 0); INSERT INTO glance.image_locations (image_id, value, meta_data) VALUES ('{image}', 'file:///north/images/{image}', '{{}}')"
        ));
    }
    let south = "UPDATE services SET host = 'ctl-south@nfs'";
    let mut lost = lost(&rows.join(";"), &format!("{SCHEMAS} {south}")).await;
    lost.rewrites(serde_json::json!({}));
    let server = restored(&lost.own);
    let ended = lost.begin().await;
    let place = lost.world.south("images").display().to_string();
    stopped_at(
        &ended,
        "rows",
        &["/north/images (2), of 2", &place, "promotion cancel", "paths: { /north/images:"],
    );
    assert_eq!(lost.step("note-release").await.evidence["volume hosts"], "ctl-south@nfs");

    // This site's Glance knows the place by that name, says a person.
    lost.rewrites(serde_json::json!({"paths": {"/north/images": "/north/images"}}));
    let ended = lost.go_on().await;
    stopped_at(
        &ended,
        "rows",
        &["all 3 volumes", "ctl-north@nfs (3)", "called ctl-south@nfs", "rewrite.hosts"],
    );
    let unchanged =
        server.0.query("SELECT COUNT(*) FROM cinder.volumes WHERE status = 'available'").await.unwrap();
    assert_eq!(unchanged[0][0].as_deref(), Some("3"));

    let by_hand = format!("UPDATE cinder.volumes SET host = 'ctl-south@nfs#pool' WHERE id = '{}'", uuid(0));
    server.0.execute(&[&by_hand]).await.unwrap();
    let ended = lost.go_on().await;
    assert!(ended.is_completed(), "{ended:?}");
    let rows = lost.step("rows").await;
    assert!(rows.evidence["host ctl-north@nfs"].starts_with("2 volumes are on it"), "{rows:?}");
    // The volume on that export has no file here either.
    assert!(rows.evidence["export nfs.north:/cinder"].contains("1 volumes"), "{rows:?}");
    assert!(rows.detail.ends_with("2 of them held back"), "{rows:?}");
}
