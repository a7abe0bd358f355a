//! The way of a database, on real servers: base, streamed log, loss, restore, replay.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{PASSWORD, Root, Server, Stopped, context, log_files, restore, shipped};
use farsite_model::clock::SystemClock;
use farsite_model::{Consistency, ItemKind};
use farsite_sources::mariadb::instance::{Instance, ReplayEnd};
use farsite_sources::{CheckLine, Content, LogPosition, LoggedDatabase};
use jiff::Timestamp;

const LOGGED: [&str; 3] = ["--log-bin=mariadb-bin", "--binlog-format=ROW", "--server-id=7"];

fn instance(folder: &Path, name: &str) -> Instance {
    Instance {
        datadir: folder.join(name),
        socket: folder.join(format!("{name}.s")),
        port: None,
        server_args: vec![],
    }
}

async fn number(instance: &Instance, sql: &str) -> u64 {
    instance.query(sql).await.unwrap()[0][0].as_deref().unwrap().parse().unwrap()
}

/// A restored, prepared and running copy of a base.
async fn standby(instance: &Instance, base: &farsite_sources::BaseBackup) {
    restore(&base.root, &base.paths, &instance.datadir);
    instance.prepare().await.unwrap();
    instance.prepare().await.unwrap();
    instance.start(&instance.datadir.join("e.log"), &[]).await.unwrap();
}

async fn position(database: &dyn LoggedDatabase) -> LogPosition {
    database.position(&SystemClock).await.unwrap().1
}

fn wrong(lines: &[CheckLine]) -> Vec<String> {
    lines.iter().filter_map(|line| line.result.clone().err()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_replay_to_a_position_gives_exactly_the_rows_up_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("n"), Root::Password, &LOGGED);
    server.sql("CREATE DATABASE d; CREATE TABLE d.t (n INT PRIMARY KEY, blob_ BLOB) ENGINE=InnoDB");
    server.sql("USE d; INSERT INTO d.t SELECT seq, 'base' FROM seq_1_to_100");
    let item = server.item("continuous");
    let database = farsite_sources::logged(&item).unwrap();
    let lines = database.check().await;
    assert!(wrong(&lines).is_empty(), "{lines:?}");

    let base = database.base_backup(&context(dir.path()), dir.path().join("base")).await.unwrap();
    assert_eq!(base.details["log-position"], base.position.to_string());
    assert!(base.details["server-version"].contains("MariaDB"));
    let mut stream = database.stream_log(dir.path().join("spool"), &base.position).await.unwrap();
    // Rows with every byte that a client could take for something else, over two log files.
    server.sql(
        r"USE d; INSERT INTO d.t SELECT seq, CONCAT(CHAR(seq % 256), '\r\n\\g;\0''') FROM seq_101_to_500",
    );
    server.sql(
        "FLUSH BINARY LOGS; INSERT INTO d.t VALUES (501, 'last'); UPDATE d.t SET blob_ = 'new' WHERE n = 7",
    );
    let wanted = server.sql("CHECKSUM TABLE d.t");
    let p1 = position(&*database).await;
    server.sql("INSERT INTO d.t VALUES (999, 'too late'); DROP DATABASE IF EXISTS nothing");
    let p2 = position(&*database).await;
    assert!(base.position < p1 && p1 < p2);
    shipped(&mut stream, &p2.file, p2.offset).await;
    drop(stream);
    drop(server);

    let instance = instance(dir.path(), "standby");
    let _stopped = Stopped(instance.clone());
    standby(&instance, &base).await;
    let files = log_files(&dir.path().join("spool"));
    assert_eq!(files.len(), 2);
    assert_eq!(number(&instance, "SELECT COUNT(*) FROM d.t").await, 100);
    let end = ReplayEnd::Position(p1.clone());
    instance.replay(&files, &base.position, &end).await.unwrap();
    instance.replay(&files, &base.position, &end).await.unwrap();
    assert_eq!(number(&instance, "SELECT COUNT(*) FROM d.t").await, 501);
    let found = instance.query("CHECKSUM TABLE d.t").await.unwrap();
    assert_eq!(format!("{}\t{}", found[0][0].as_deref().unwrap(), found[0][1].as_deref().unwrap()), wanted);
    let error = instance.replay(&files, &base.position, &ReplayEnd::End).await.unwrap_err().to_string();
    assert!(error.contains("already"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_killed_servers_log_replays_to_its_last_complete_event() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir.path().join("n"), Root::UnixSocket, &LOGGED);
    server.sql(
        "CREATE DATABASE d; CREATE TABLE d.t (n INT AUTO_INCREMENT PRIMARY KEY, twin INT) ENGINE=InnoDB",
    );
    let item = server.item("continuous");
    let database = farsite_sources::logged(&item).unwrap();
    let base = database.base_backup(&context(dir.path()), dir.path().join("base")).await.unwrap();
    let mut stream = database.stream_log(dir.path().join("spool"), &base.position).await.unwrap();
    for _ in 0..20 {
        server.sql("INSERT INTO d.t (twin) VALUES (1), (2), (3)");
    }
    let p1 = position(&*database).await;
    shipped(&mut stream, &p1.file, p1.offset).await;
    let moment = Timestamp::now();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    server.sql("INSERT INTO d.t (twin) VALUES (4), (5), (6)");
    let p2 = position(&*database).await;
    shipped(&mut stream, &p2.file, p2.offset).await;
    server.kill();
    let pid = stream.child.id();
    drop(stream);
    let spooled = dir.path().join("spool").join(&p2.file);
    // Cut within the last transaction, as a line that breaks would.
    std::fs::File::options().write(true).open(&spooled).unwrap().set_len(p2.offset - 5).unwrap();

    let files = log_files(&dir.path().join("spool"));
    let cases =
        [("end", ReplayEnd::End), ("time", ReplayEnd::Time(moment)), ("place", ReplayEnd::Position(p1))];
    for (name, end) in cases {
        let instance = instance(dir.path(), name);
        let _stopped = Stopped(instance.clone());
        standby(&instance, &base).await;
        instance.replay(&files, &base.position, &end).await.unwrap();
        let rows = number(&instance, "SELECT COUNT(*) FROM d.t").await;
        // The log knows whole seconds: at a moment, what is of its own second is left out.
        assert!(if name == "time" { rows <= 60 && rows % 3 == 0 } else { rows == 60 }, "{name}: {rows} rows");
        instance.stop().await.unwrap();
    }
    let late = instance(dir.path(), "late");
    let _stopped = Stopped(late.clone());
    standby(&late, &base).await;
    let beyond = ReplayEnd::Position(p2);
    assert!(late.replay(&files, &base.position, &beyond).await.is_err(), "it is not shipped");
    late.stop().await.unwrap();
    assert!(
        pid.is_none_or(|pid| !Path::new(&format!("/proc/{pid}/exe")).exists()),
        "the client outlived its stream"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_purged_log_is_a_gap_and_a_log_that_is_off_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("n"), Root::Password, &LOGGED);
    let item = server.item("continuous");
    let database = farsite_sources::logged(&item).unwrap();
    let first = position(&*database).await;
    server.sql("FLUSH BINARY LOGS; FLUSH BINARY LOGS");
    let newest = position(&*database).await.file;
    // A log stays, without a word, until the server's background checkpoint has passed it.
    let begin = Instant::now();
    while server.sql("SHOW BINARY LOGS").contains(&first.file) {
        assert!(begin.elapsed() < Duration::from_secs(30), "{} is not purged", first.file);
        server.sql(&format!("PURGE BINARY LOGS TO '{newest}'"));
    }
    let error = database.stream_log(dir.path().join("spool"), &first).await.unwrap_err();
    assert!(error.is_gap(), "{error}");
    let now = position(&*database).await;
    let beyond = LogPosition::new(now.file.clone(), now.offset + 1000);
    assert!(database.stream_log(dir.path().join("spool"), &beyond).await.unwrap_err().is_gap());
    drop(server);

    let error = database.position(&SystemClock).await.unwrap_err().to_string();
    assert!(error.contains("hint:") && !error.contains(PASSWORD), "{error}");
    let unlogged = Server::start(&dir.path().join("u"), Root::Password, &[]);
    unlogged.sql("CREATE DATABASE d; CREATE TABLE d.old (n INT) ENGINE=MyISAM; CREATE USER weak@localhost");
    let item = unlogged.item("continuous");
    let database = farsite_sources::logged(&item).unwrap();
    assert!(database.position(&SystemClock).await.unwrap_err().to_string().contains("log_bin"));
    let lines = database.check().await;
    assert!(wrong(&lines).iter().any(|line| line.contains("log_bin")), "{lines:?}");
    assert!(
        lines.iter().any(|line| line.result.as_ref().is_ok_and(|text| text.contains("d.old"))),
        "{lines:?}"
    );
    let entry = serde_json::json!({"mariadb": {"socket": unlogged.socket(), "user": "weak"}});
    let weak = farsite_sources::source(&serde_json::from_value(entry).unwrap(), &no_cloud()).unwrap();
    assert!(wrong(&weak.check().await).iter().any(|line| line.contains("lacks RELOAD")));
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_server_without_a_log_is_captured_and_put_into_service() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("n"), Root::Password, &[]);
    server.sql(
        "CREATE DATABASE d; CREATE TABLE d.t (n INT PRIMARY KEY) ENGINE=InnoDB; INSERT INTO d.t VALUES (1)",
    );
    let item = server.item("none");
    assert!(farsite_sources::logged(&item).is_none());
    let source = farsite_sources::source(&item, &no_cloud()).unwrap();
    let ids = source.items().await.unwrap();
    let context = context(dir.path());
    let capture = source.capture(&ids[0], &context).await.unwrap();
    assert_eq!((capture.kind, capture.consistency), (ItemKind::Mariadb, Consistency::Application));
    assert!(capture.still && !capture.details.contains_key("log-position"));
    let instance = Instance { port: Some(free_port()), ..instance(dir.path(), "standby") };
    let _stopped = Stopped(instance.clone());
    let Content::Tree { root, paths } = &capture.content else { panic!("it is a tree") };
    restore(root, paths, &instance.datadir);
    drop(capture);
    assert_eq!(std::fs::read_dir(&context.scratch).unwrap().count(), 0, "the backup is gone");

    let log = dir.path().join("logs/e.log");
    instance.prepare().await.unwrap();
    instance.start(&log, &[]).await.unwrap();
    instance.start(&log, &[]).await.unwrap();
    let elsewhere = Instance { socket: dir.path().join("x.s"), ..instance.clone() };
    assert!(elsewhere.start(&log, &[]).await.is_err(), "it runs with another socket");
    let other = Instance { datadir: server.data(), ..instance.clone() };
    assert!(other.query("SELECT 1").await.is_err(), "another server's folder");
    instance.execute(&["INSERT INTO d.t VALUES (2)", "INSERT INTO d.t VALUES (3)"]).await.unwrap();
    assert!(instance.execute(&["INSERT INTO d.t VALUES (4)", "INSERT INTO d.t VALUES (1)"]).await.is_err());
    assert_eq!(number(&instance, "SELECT SUM(n) FROM d.t").await, 6);
    assert_eq!(number(&instance, "SELECT @@log_bin").await, 1);
    assert!(instance.prepare().await.is_err(), "not while it runs");
    instance.stop().await.unwrap();
    instance.stop().await.unwrap();
    assert!(!instance.is_running().await.unwrap());
    // What was committed stays, and each start has a password of its own.
    instance.start(&log, &[]).await.unwrap();
    assert_eq!(number(&instance, "SELECT SUM(n) FROM d.t").await, 6);
    let secrets = std::fs::read_to_string(&log).unwrap();
    assert!(!secrets.contains("Fs_"), "no password in the log");
    instance.drop_local_account().await.unwrap();
    instance.drop_local_account().await.unwrap();
    assert!(instance.query("SELECT 1").await.is_err());
    assert!(instance.is_running().await.unwrap());
    instance.stop().await.unwrap();
    assert_eq!(server.sql("SELECT SUM(n) FROM d.t"), "1", "the source has not changed");
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A site whose cloud cannot be asked.
fn no_cloud() -> std::sync::Arc<farsite_openstack::SiteCloud> {
    let (site, about) = ("north".parse().unwrap(), farsite_model::config::Site::default());
    std::sync::Arc::new(farsite_openstack::SiteCloud::new(&site, about, farsite_openstack::Limits::default()))
}
