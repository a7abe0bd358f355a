//! A MariaDB server is lost; the standby's own comes up with exactly the rows of the point, or with all that the log
//! brought; a drill does the same in its isolated place.

mod common;
#[path = "common/drives.rs"]
mod drives;
#[allow(dead_code, reason = "the sources' own tests use the rest")]
#[path = "../../farsite-sources/tests/common/mod.rs"]
mod server;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::{World, cloud, north};
use drives::{back, driving, id, order};
use farsite_model::clock::SystemClock;
use farsite_model::config::MariadbPlace;
use farsite_model::content::{InMemory, ReadAt};
use farsite_model::rpo::{CaptureStamp, ClockSkew};
use farsite_model::{CaptureTime, Consistency, Epoch, ItemId, ItemKind, Level, RunId};
use farsite_promote::accept::rollback;
use farsite_promote::choose::PointChoice;
use farsite_promote::drill::{DrillOptions, drill};
use farsite_promote::drive::drive;
use farsite_promote::failover::begin;
use farsite_promote::place::drills_folder;
use farsite_promote::report::Report;
use farsite_promote::{Standby, dry_run};
use farsite_replicate::tree;
use farsite_sources::mariadb::instance::Instance;
use farsite_sources::tree::{LocalTree, TreeFiles};
use farsite_sources::{BaseBackup, LogPosition, LoggedDatabase};
use farsite_store::hex::Hex;
use farsite_store::ingest::{IngestOptions, Input, RunWriter};
use farsite_store::ledger::{Ledger, Statement};
use farsite_store::local_map::LocalMapWriter;
use farsite_store::logs::{self, SegmentHeader};
use farsite_store::manifest::{ItemLog, LogPoint, ManifestItem};
use farsite_store::seal::Sealer;
use server::{Root, Server, Stopped, context, log_files, shipped};

fn log_point(position: &LogPosition) -> LogPoint {
    LogPoint { file: position.file.clone(), offset: position.offset }
}

/// South with a place for MariaDB instead of SQLite.
fn with_mariadb(world: &World, standby: &Standby, variables: &[(&str, &str)]) -> (Standby, Instance) {
    let mut config = (*standby.config).clone();
    let places = config.places.get_mut(&cloud()).unwrap();
    let place = MariadbPlace {
        datadir: world.south("db"),
        socket: world.dir.path().join("south.sock"),
        port: None,
        server_args: vec!["--innodb-buffer-pool-size=16M".into()],
    };
    let instance = Instance {
        datadir: place.datadir.clone(),
        socket: place.socket.clone(),
        port: None,
        server_args: Vec::new(),
    };
    places.sqlite = None;
    places.mariadb = Some(place);
    places.variables.extend(variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    (Standby { config: Arc::new(config), ..standby.clone() }, instance)
}

/// Puts base and log into the store, as replication does, and commits a point with them.
async fn replicate(world: &World, base: &BaseBackup, spool: &Path, p1: &LogPosition, p2: &LogPosition) {
    let run = RunId::from_random(77);
    let sealer = Sealer::begin(&world.store, &world.source, &north(), &cloud(), run).await.unwrap();
    let mut writer = RunWriter::begin(
        &world.store,
        sealer,
        world.secret.clone(),
        IngestOptions::within(64 << 20, (3, 3)),
        &world.dir.path().join("resume-base"),
        Arc::new(AtomicBool::new(false)),
    )
    .unwrap();
    let mut put = |name: &str, content: Arc<dyn ReadAt>| {
        let item = ItemId::new(ItemKind::Mariadb, name);
        let mut out = LocalMapWriter::create(&world.dir.path().join("maps"), &item).unwrap();
        let map = writer.ingest(&Input::first(item.as_str(), &*content, 65536), &mut out).unwrap();
        out.commit().unwrap();
        map
    };
    let (entries, _) = tree::place(
        LocalTree::new(&base.root, base.paths.clone()).entries().unwrap(),
        65536,
        &tree::Layout::new(),
    );
    let data = put("main", Arc::new(tree::TreeContent::new(&base.root, &entries)));
    let directory = put("main#directory", Arc::new(InMemory(serde_json::to_vec(&entries).unwrap())));
    writer.flush().await.unwrap();
    let timeline = Hex::<8>::random();
    let log_sealer =
        Sealer::begin(&world.store, &world.source, &north(), &cloud(), RunId::from_random(78)).await.unwrap();
    let captured = CaptureTime(world.store.backend.time().await.unwrap().0);
    let stamp =
        CaptureStamp::at_commit(captured, &[ClockSkew::ZERO], world.store.backend.time().await.unwrap());
    let mut files = log_files(spool);
    files.sort();
    for (sequence, file) in files.into_iter().enumerate() {
        let bytes = std::fs::read(&file).unwrap();
        let header = SegmentHeader {
            version: 1,
            group: cloud(),
            site: north(),
            item: ItemId::new(ItemKind::Mariadb, "main"),
            epoch: Epoch(1),
            timeline,
            sequence: sequence as u64,
            file: file.file_name().unwrap().to_str().unwrap().to_owned(),
            first: 0,
            last: bytes.len() as u64,
            covers: Some(stamp),
            content_key: log_sealer.content_key(),
        };
        logs::write(&world.store, &world.source, &log_sealer, &header, &bytes).await.unwrap();
    }
    let item = ManifestItem {
        id: ItemId::new(ItemKind::Mariadb, "main"),
        kind: ItemKind::Mariadb,
        stamp,
        consistency: Consistency::Application,
        data,
        directory: Some(directory),
        ancestor: None,
        details: base.details.clone(),
        carried_from: None,
        signals: None,
        log: Some(ItemLog {
            timeline,
            base: log_point(&base.position),
            p1: log_point(p1),
            p2: log_point(p2),
        }),
    };
    let manifest = world
        .manifest(1, captured, |m| {
            m.items.retain(|item| item.kind != ItemKind::Sqlite);
            m.items.push(item);
        })
        .await;
    let hash = manifest.write(&world.store, &world.source).await.unwrap();
    let committed = farsite_store::ledger::Committed {
        point: manifest.point,
        epoch: Epoch(1),
        run,
        manifest: hash,
        by_kind: manifest.by_kind(),
        whole: true,
        items: manifest.items.len() as u64,
        weakest: manifest.weakest(),
        changed_bytes: 1,
        shipped_bytes: 1,
        suspicious: Vec::new(),
        timelines: vec![timeline],
    };
    let mut ledger = Ledger::open(&world.store, &cloud()).await.unwrap();
    ledger.append(&world.source, |_| Ok(Statement::PointCommitted(committed.clone()))).await.unwrap();
}

async fn value(instance: &Instance, sql: &str) -> String {
    instance.query(sql).await.unwrap()[0][0].clone().unwrap()
}

const VARIABLES: [(&str, &str); 5] = [
    ("database_query", "SELECT COUNT(*) FROM keystone.endpoint"),
    ("database_expect", "1"),
    ("old_endpoint", "http://north:"),
    ("new_endpoint", "http://south:"),
    ("database_assert", "SELECT COUNT(*) >= 200 FROM d.t"),
];

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_lost_mariadb_comes_up_at_the_standby_with_exactly_the_points_rows() {
    let world = World::new().await;
    let logged = ["--log-bin=mariadb-bin", "--binlog-format=ROW", "--server-id=7"];
    let north_server = Server::start(&world.dir.path().join("n"), Root::Password, &logged);
    north_server.sql(
        "CREATE DATABASE d; CREATE TABLE d.t (n INT PRIMARY KEY) ENGINE=InnoDB; CREATE DATABASE keystone; CREATE TABLE keystone.endpoint (id INT PRIMARY KEY, url TEXT) ENGINE=InnoDB; INSERT INTO keystone.endpoint VALUES (1, 'http://north:5000'); USE d; INSERT INTO t SELECT seq FROM seq_1_to_100",
    );
    let entry = north_server.item("continuous");
    let database: Arc<dyn LoggedDatabase> = farsite_sources::logged(&entry).unwrap();
    let scratch = world.dir.path().join("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    let base = database.base_backup(&context(&scratch), scratch.join("base")).await.unwrap();
    let spool = world.dir.path().join("spool");
    let mut stream = database.stream_log(spool.clone(), &base.position).await.unwrap();
    north_server.sql("USE d; INSERT INTO t SELECT seq FROM seq_101_to_200");
    let p1 = database.position(&SystemClock).await.unwrap().1;
    north_server.sql("FLUSH BINARY LOGS; USE d; INSERT INTO t SELECT seq FROM seq_201_to_250");
    let p2 = database.position(&SystemClock).await.unwrap().1;
    shipped(&mut stream, &p2.file, p2.offset).await;
    drop(stream);
    drop(north_server);
    replicate(&world, &base, &spool, &p1, &p2).await;

    let (standby, instance) = with_mariadb(&world, &world.standby("one").await, &VARIABLES);
    let _stopped = Stopped(instance.clone());

    // A drill first: its own instance, no TCP, nothing left.
    let options = DrillOptions {
        promotion: id(9),
        point: PointChoice::Latest,
        runbook: None,
        forced: false,
        who: "carol".into(),
        driving: driving("carol"),
    };
    let drilled =
        drill(&standby, &world.standby_agent, &cloud(), Some(Level::Application), &options).await.unwrap();
    assert!(drilled.passed, "{drilled:?}");
    assert!(
        !world.south("db").exists()
            && std::fs::read_dir(drills_folder(&standby.config)).unwrap().next().is_none()
    );

    // The point: 200 rows, not the 250 that the log brought.
    let dry = dry_run::dry_run(&standby, &order(1)).await.unwrap();
    assert!(dry.is_clear(), "{dry:#?}");
    let promotion = begin(&standby, &world.operator, &order(1)).await.unwrap();
    let ended = drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    assert!(ended.is_completed(), "{ended:?}");
    assert_eq!(value(&instance, "SELECT CONCAT(COUNT(*), '/', MAX(n)) FROM d.t").await, "200/200");
    assert_eq!(value(&instance, "SELECT url FROM keystone.endpoint").await, "http://south:5000");
    let report = Report::of(&standby, id(1)).await.unwrap();
    assert!(report.groups[0].rpo.as_ref().unwrap().by_kind.contains_key("mariadb"));

    // Taken back: the server is stopped, its data kept beside the place.
    rollback(&standby, &world.operator, id(1), &back("ann")).await.unwrap();
    assert!(!instance.is_running().await.unwrap() && !world.south("db").exists());

    // Lost again; this time with everything that the log brought.
    let mut all = order(2);
    all.point = PointChoice::Id(promotion.groups[0].1.to_string());
    all.take_flawed = true;
    begin(&standby, &world.operator, &all).await.unwrap();
    let promotion = farsite_promote::failover::open(&standby, &north()).await.unwrap();
    let ended = drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    assert!(ended.is_completed(), "{ended:?}");
    assert_eq!(value(&instance, "SELECT COUNT(*) FROM d.t").await, "200", "an id means the point itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_the_latest_log_brings_everything_that_was_shipped() {
    let world = World::new().await;
    let logged = ["--log-bin=mariadb-bin", "--binlog-format=ROW", "--server-id=7"];
    let north_server = Server::start(&world.dir.path().join("n"), Root::UnixSocket, &logged);
    north_server.sql("CREATE DATABASE d; CREATE TABLE d.t (n INT PRIMARY KEY) ENGINE=InnoDB");
    let entry = north_server.item("continuous");
    let database = farsite_sources::logged(&entry).unwrap();
    let scratch = world.dir.path().join("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    let base = database.base_backup(&context(&scratch), scratch.join("base")).await.unwrap();
    let spool = world.dir.path().join("spool");
    let mut stream = database.stream_log(spool.clone(), &base.position).await.unwrap();
    north_server.sql("INSERT INTO d.t VALUES (1)");
    let p1 = database.position(&SystemClock).await.unwrap().1;
    north_server.sql("INSERT INTO d.t VALUES (2)");
    let p2 = database.position(&SystemClock).await.unwrap().1;
    shipped(&mut stream, &p2.file, p2.offset).await;
    drop(stream);
    drop(north_server);
    replicate(&world, &base, &spool, &p1, &p2).await;
    let (standby, instance) = with_mariadb(&world, &world.standby("one").await, &[]);
    let _stopped = Stopped(instance.clone());
    let mut all = order(1);
    all.point = PointChoice::LatestLog;
    let promotion = begin(&standby, &world.operator, &all).await.unwrap();
    let ended = drive(&standby, &world.operator, &promotion, &driving("ann")).await.unwrap();
    assert!(ended.is_completed(), "{ended:?}");
    assert_eq!(value(&instance, "SELECT MAX(n) FROM d.t").await, "2");
}
