//! What would stop a failover is found by its dry run; the failover stops there with a sentence, and goes on after the cure.

mod common;
#[path = "common/drives.rs"]
mod drives;
#[path = "common/lost_server.rs"]
mod lost_server;
#[allow(dead_code, reason = "the sources' own tests use the rest")]
#[path = "../../farsite-sources/tests/common/mod.rs"]
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use common::{World, cloud, north, south};
use drives::{driving, id, order};
use farsite_model::config::SiteRewrite;
use farsite_promote::accept::skip;
use farsite_promote::drive::{Ended, drive};
use farsite_promote::dry_run::{DryRun, dry_run};
use farsite_promote::failover::begin;
use farsite_promote::{PromoteError, Standby};
use lost_server::{point_of, restored, with_own_server, write_secret};
use server::{Root, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a dry run says of one step.
fn step<'d>(dry: &'d DryRun, id: &str) -> &'d farsite_promote::dry_run::StepPlan {
    dry.groups[0].steps.iter().find(|step| step.id == id).unwrap()
}

fn is_found(dry: &DryRun, id: &str, words: &[&str]) {
    let why = step(dry, id).precondition.as_ref().unwrap_err();
    assert!(words.iter().all(|word| why.contains(word)), "{id}: {why}");
    assert!(!dry.is_clear());
}

fn stopped_at(ended: &Ended, id: &str, words: &[&str]) {
    let [(step, why)] = &ended.groups[0].failed[..] else { panic!("{ended:?}") };
    assert!(step == id && words.iter().all(|word| why.contains(word)), "{step}: {why}");
}

async fn go_on(world: &World, standby: &Standby) -> Result<Ended, PromoteError> {
    let promotion = farsite_promote::failover::open(standby, &north()).await?;
    drive(standby, &world.operator, &promotion, &driving("ann")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_down_at_the_standby_is_found_before_and_nothing_is_changed_until_it_is_up() {
    let mut world = World::new().await;
    let up = world.dir.path().join("broker-is-up");
    let check = format!("test -e {} || {{ echo checking; echo broker: no answer; exit 1; }}", up.display());
    world.variables.insert("standby_check".into(), check);
    world.point(1).await;
    let standby = world.standby("one").await;
    is_found(&dry_run(&standby, &order(1)).await.unwrap(), "check-standby", &["broker: no answer"]);

    let promotion = begin(&standby, &world.operator, &order(1)).await.unwrap();
    let ended = drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    stopped_at(&ended, "check-standby", &["broker: no answer"]);
    world.assert_empty();
    std::fs::write(&up, "").unwrap();
    assert!(go_on(&world, &standby).await.unwrap().is_completed());
    world.assert_restored(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_files_that_the_point_does_not_hold_are_found_before_anything_is_restored() {
    let mut world = World::new().await;
    let keys = |name: &str| format!("{{{{ place.files }}}}/etc/keystone/{name}-keys");
    world.variables.insert("fernet_keys".into(), keys("fernet"));
    world.point(1).await;
    let standby = world.standby("one").await;
    let dry = dry_run(&standby, &order(1)).await.unwrap();
    assert_eq!(step(&dry, "check-keys").precondition, Ok("2 keys of tokens".into()));

    world.variables.insert("credential_keys".into(), keys("credential"));
    let standby = world.standby("one").await;
    let dry = dry_run(&standby, &order(1)).await.unwrap();
    is_found(&dry, "check-keys", &["/etc/keystone/credential-keys", "hint:"]);

    let rewrite = |standby: &Standby, from: &str| {
        let mut config = (*standby.config).clone();
        let files = [(from.into(), world.south("etc/keys"))].into();
        config.places.get_mut(&cloud()).unwrap().rewrite = Some(SiteRewrite { files, ..Default::default() });
        Standby { config: Arc::new(config), ..standby.clone() }
    };
    let dry = dry_run(&rewrite(&standby, "/etc/keystone/fernet-keys"), &order(1)).await.unwrap();
    assert!(step(&dry, "install-files").precondition.is_ok(), "{dry:#?}");
    let dry = dry_run(&rewrite(&standby, "/etc/barbican/kek"), &order(1)).await.unwrap();
    is_found(&dry, "install-files", &["/etc/barbican/kek", "hint:"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_cannot_be_asked_is_found() {
    let world = World::new().await;
    world.point(1).await;
    let standby = world.standby("one").await;
    let mut config = (*standby.config).clone();
    config.sites.get_mut(&south()).unwrap().cloud = Some("no-such-cloud".into());
    let standby = Standby { config: Arc::new(config), ..standby };
    let dry = dry_run(&standby, &order(1)).await.unwrap();
    assert!(!dry.is_clear());
    assert!(
        dry.problems.iter().any(|why| why.contains("no-such-cloud") && why.contains("hint:")),
        "{dry:#?}"
    );
}

const ASKS: &str = "name: asks\nstages:\n  - name: only\n    steps:\n      - id: answers\n        action: http-check\n        timeout: 3s\n        with: { url: 'http://ADDRESS/v3' }\n";

/// Answers every request with the status that stands in `status`.
async fn api(status: Arc<AtomicU16>) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let head = format!("HTTP/1.1 {} said\r\n\r\n", status.load(Ordering::SeqCst));
            let _ = stream.write_all(head.as_bytes()).await;
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_answers_500_stops_the_failover_with_what_it_said_and_a_resume_asks_again() {
    let world = World::new().await;
    world.point(1).await;
    let status = Arc::new(AtomicU16::new(500));
    let runbook = world.dir.path().join("asks.yaml");
    let address = api(status.clone()).await;
    std::fs::write(&runbook, ASKS.replace("ADDRESS", &address.to_string())).unwrap();
    let mut given = order(1);
    given.runbook = Some(runbook);
    let standby = world.standby("one").await;
    let promotion = begin(&standby, &world.operator, &given).await.unwrap();
    let ended = drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    stopped_at(&ended, "answers", &["it answered 500, not 200"]);
    status.store(200, Ordering::SeqCst);
    assert!(go_on(&world, &standby).await.unwrap().is_completed());
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_ceph_that_does_not_answer_is_found_in_time() {
    let world = World::new().await;
    world.point(1).await;
    let conf = world.dir.path().join("ceph.conf");
    // Takes connections and says nothing.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = silent.local_addr().unwrap();
    std::fs::write(&conf, format!("[global]\nmon_host = v1:{address}\nauth_client_required = none\n"))
        .unwrap();
    let standby = world.standby("one").await;
    let mut config = (*standby.config).clone();
    let place = serde_json::json!({"rbd": {"pool": "volumes", "conf": conf}});
    config.places.get_mut(&cloud()).unwrap().cinder = Some(serde_json::from_value(place).unwrap());
    let standby = Standby { config: Arc::new(config), ..standby };
    let begun = std::time::Instant::now();
    let dry = dry_run(&standby, &order(1)).await.unwrap();
    is_found(&dry, "restore-volumes", &["volumes", "ceph -s"]);
    assert!(begun.elapsed() < std::time::Duration::from_secs(55), "{:?}", begun.elapsed());
}

const SCHEMA: &str = "CREATE DATABASE glance; CREATE TABLE glance.alembic_version (version_num VARCHAR(32) NOT NULL) ENGINE=InnoDB; CREATE TABLE glance.t (n INT PRIMARY KEY) ENGINE=InnoDB; ";

fn schema(server: &Server, revision: &str, password: &str) {
    server.sql(&format!(
        "{SCHEMA} INSERT INTO glance.alembic_version VALUES ('{revision}'); CREATE USER glance@localhost IDENTIFIED BY '{password}'; GRANT ALL ON glance.* TO glance@localhost"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_wrong_password_and_another_release_are_found_before_and_mended_in_the_middle() {
    let world = World::new().await;
    let logged = ["--log-bin=mariadb-bin", "--binlog-format=ROW", "--server-id=7"];
    let lost = Server::start(&world.dir.path().join("n"), Root::UnixSocket, &logged);
    schema(&lost, "2023_2_contract01", "north-pass");
    point_of(&world, &lost).await;
    drop(lost);
    let own = Server::start(&world.dir.path().join("s"), Root::UnixSocket, &[]);
    schema(&own, "2024_1_contract01", "south-pass");
    let standby = with_own_server(&world, &world.standby("one").await, &own);
    let secret = world.dir.path().join("db.password");

    // A password that neither the database nor the configuration knows.
    write_secret(&secret, "old-pass");
    let dry = dry_run(&standby, &order(1)).await.unwrap();
    is_found(&dry, "check-site", &["refuses the account glance", "glance-api.conf:2", "hint:"]);
    is_found(&dry, "check-release", &["2023_2_contract01", "2024_1_contract01", "glance-manage db_sync"]);
    let said = format!("{dry:?}");
    assert!(!said.contains("old-pass") && !said.contains("south-pass"), "{said}");

    write_secret(&secret, "south-pass");
    let dry = dry_run(&standby, &order(1)).await.unwrap();
    assert!(step(&dry, "check-site").precondition.is_ok(), "{dry:#?}");

    write_secret(&secret, "old-pass");
    let promotion = begin(&standby, &world.operator, &order(1)).await.unwrap();
    let ended = drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    stopped_at(&ended, "check-site", &["refuses the account glance"]);
    assert_eq!(
        own.sql("SELECT version_num FROM glance.alembic_version"),
        "2024_1_contract01",
        "it still serves"
    );

    write_secret(&secret, "south-pass");
    let instance = farsite_sources::mariadb::instance::Instance {
        datadir: own.data(),
        socket: own.socket(),
        port: None,
        server_args: Vec::new(),
    };
    let _stopped = server::Stopped(instance.clone());
    let ended = go_on(&world, &standby).await.unwrap();
    stopped_at(&ended, "check-release", &["2023_2_contract01", "2024_1_contract01", "promotion skip"]);

    // What the service's own db sync does.
    instance.execute(&["UPDATE glance.alembic_version SET version_num = '2024_1_contract01'"]).await.unwrap();
    let ended = go_on(&world, &standby).await.unwrap();
    assert!(ended.is_completed(), "{ended:?}");
    let door = farsite_sources::mariadb::account::Door::Socket(instance.socket.clone());
    let secret = farsite_model::secret::Secret::new("south-pass");
    let asked = farsite_sources::mariadb::account::ask_as(&door, "glance", Some(&secret), "SELECT 1").await;
    assert_eq!(asked, Ok(vec![vec![Some("1".to_owned())]]), "south's services are let in");
}

/// A point of north's Glance of one release, and south with its own of another, which serves.
async fn two_releases() -> (World, Server, Standby) {
    let world = World::new().await;
    let logged = ["--log-bin=mariadb-bin", "--binlog-format=ROW", "--server-id=7"];
    let lost = Server::start(&world.dir.path().join("n"), Root::UnixSocket, &logged);
    schema(&lost, "2023_2_contract01", "north-pass");
    point_of(&world, &lost).await;
    let own = Server::start(&world.dir.path().join("s"), Root::UnixSocket, &[]);
    schema(&own, "2024_1_contract01", "south-pass");
    let standby = with_own_server(&world, &world.standby("one").await, &own);
    (world, own, standby)
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_whoever_skips_the_passwords_is_still_told_of_another_release() {
    let (world, own, standby) = two_releases().await;
    write_secret(&world.dir.path().join("db.password"), "old-pass");
    let promotion = begin(&standby, &world.operator, &order(1)).await.unwrap();
    let ended = drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    stopped_at(&ended, "check-site", &["refuses the account glance"]);
    skip(&standby, &world.operator, id(1), None, "check-site", "ann", "not to be tried from here")
        .await
        .unwrap();
    let _stopped = restored(&own);
    let ended = go_on(&world, &standby).await.unwrap();
    stopped_at(&ended, "check-release", &["2023_2_contract01", "2024_1_contract01", "promotion skip"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_release_that_nobody_could_note_is_asked_about_before_and_not_taken_for_the_same() {
    let (world, mut own, mut standby) = two_releases().await;
    own.kill();
    let mut config = (*standby.config).clone();
    config.places.get_mut(&cloud()).unwrap().variables.insert("standby_stop".into(), "true".into());
    standby.config = Arc::new(config);
    write_secret(&world.dir.path().join("db.password"), "south-pass");
    let unknown = ["its database has glance", "nothing is changed yet", "hint:"];
    is_found(&dry_run(&standby, &order(1)).await.unwrap(), "note-release", &unknown);
    let promotion = begin(&standby, &world.operator, &order(1)).await.unwrap();
    let ended = drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    stopped_at(&ended, "note-release", &unknown);
    skip(&standby, &world.operator, id(1), None, "note-release", "ann", "it sleeps").await.unwrap();
    let _stopped = restored(&own);
    let ended = go_on(&world, &standby).await.unwrap();
    stopped_at(&ended, "check-release", &["was not noted", "glance at 2023_2_contract01", "promotion skip"]);
    skip(&standby, &world.operator, id(1), None, "check-release", "ann", "compared by hand").await.unwrap();
    let ended = go_on(&world, &standby).await.unwrap();
    assert!(ended.is_completed(), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_only_the_way_in_that_a_service_uses_judges_its_password() {
    let world = World::new().await;
    world.point(1).await;
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let listens =
        ["--skip-networking=0", "--bind-address=127.0.0.1", &format!("--port={port}"), "--skip-name-resolve"];
    let own = Server::start(&world.dir.path().join("s"), Root::UnixSocket, &listens);
    own.sql("CREATE USER glance@localhost IDENTIFIED BY 'another'; CREATE USER glance@127.0.0.1 IDENTIFIED BY 'south-pass'");
    let mut standby = with_own_server(&world, &world.standby("one").await, &own);
    let mut config = (*standby.config).clone();
    config.places.get_mut(&cloud()).unwrap().mariadb.as_mut().unwrap().port = Some(port);
    standby.config = Arc::new(config);
    write_secret(&world.dir.path().join("db.password"), "south-pass");
    // The socket, which its configuration names, refuses; that the port lets it in helps the service nothing.
    let dry = dry_run(&standby, &order(1)).await.unwrap();
    is_found(&dry, "check-site", &["refuses the account glance", "where its service logs in"]);

    let logs_in_at = |port: u16| {
        let url = format!("mysql+pymysql://glance:south-pass@127.0.0.1:{port}/glance");
        let file = world.dir.path().join("etc-south/glance-api.conf");
        std::fs::write(file, format!("[database]\nconnection = {url}\n")).unwrap();
    };
    // The socket would refuse it, and nobody asks there.
    logs_in_at(port);
    let dry = dry_run(&standby, &order(1)).await.unwrap();
    let said = step(&dry, "check-site");
    assert!(said.precondition.as_ref().is_ok_and(|said| said.contains("glance is let in")), "{said:?}");
    assert_eq!(said.notes, [""; 0]);

    // Its own way in is silent: what the socket says of another account is a note.
    logs_in_at(1);
    own.sql("DROP USER glance@127.0.0.1");
    let dry = dry_run(&standby, &order(1)).await.unwrap();
    let said = step(&dry, "check-site");
    assert!(said.precondition.as_ref().is_ok_and(|said| !said.contains("is let in")), "{said:?}");
    let note = said.notes.iter().find(|note| note.contains("could not be tried by its own way in"));
    assert!(note.is_some_and(|note| note.contains("says nothing of its own way in")), "{said:?}");
}

/// The database serves, and its catalog is followed.
const FOLLOWED: &str = "
name: followed
include: data
stages:
  - name: catalog
    steps:
      - { id: serve, action: start-database, with: { stopped-by: 'true' } }
      - id: follow
        action: check-catalog
        needs: [serve]
        timeout: 3s
        with: { interfaces: 'public internal' }
";

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_catalog_that_sends_clients_to_the_lost_site_stops_the_failover_until_it_is_right() {
    let world = World::new().await;
    let [south, north] = [0, 0].map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).unwrap());
    let [here, gone] = [&south, &north].map(|listener| listener.local_addr().unwrap());
    let logged = ["--log-bin=mariadb-bin", "--binlog-format=ROW", "--server-id=7"];
    let lost = Server::start(&world.dir.path().join("n"), Root::UnixSocket, &logged);
    lost.sql(&format!(
        "CREATE DATABASE keystone; CREATE TABLE keystone.alembic_version (version_num VARCHAR(32) NOT NULL); CREATE TABLE keystone.endpoint (interface VARCHAR(8), url TEXT, enabled TINYINT); INSERT INTO keystone.endpoint VALUES ('public', 'http://{here}/v3', 1), ('internal', 'http://{gone}/v3', 1), ('admin', 'http://{gone}/v3', 1), ('public', 'http://{gone}/v2', 0)"
    ));
    point_of(&world, &lost).await;
    drop((lost, north));
    let own = Server::start(&world.dir.path().join("s"), Root::UnixSocket, &[]);
    let mut standby = with_own_server(&world, &world.standby("one").await, &own);
    let mut config = (*standby.config).clone();
    config.places.get_mut(&cloud()).unwrap().rewrite = None;
    standby.config = Arc::new(config);
    let runbook = world.dir.path().join("followed.yaml");
    std::fs::write(&runbook, FOLLOWED).unwrap();
    let mut given = order(1);
    given.runbook = Some(runbook);
    let promotion = begin(&standby, &world.operator, &given).await.unwrap();
    let stopped = restored(&own);
    let ended = drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    let lost_at = format!("{gone} (1 internal)");
    stopped_at(&ended, "follow", &["where nobody answers", &lost_at, "rewrite.urls", "--resume"]);
    assert!(!format!("{ended:?}").contains(&format!("{here} (")), "who answers is not named: {ended:?}");

    let moved = format!("UPDATE keystone.endpoint SET url = 'http://{here}/v3' WHERE interface = 'internal'");
    stopped.0.execute(&[&moved]).await.unwrap();
    let ended = go_on(&world, &standby).await.unwrap();
    assert!(ended.is_completed(), "{ended:?}");
}
