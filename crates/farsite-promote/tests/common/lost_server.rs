//! A site whose database server is lost, and another one that has a server of its own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use farsite_model::config::MariadbPlace;
use farsite_model::content::{InMemory, ReadAt};
use farsite_model::{Consistency, ItemId, ItemKind, RunId};
use farsite_promote::Standby;
use farsite_replicate::tree;
use farsite_sources::tree::{LocalTree, TreeFiles};
use farsite_store::ingest::{IngestOptions, Input, RunWriter};
use farsite_store::local_map::LocalMapWriter;
use farsite_store::seal::Sealer;

use crate::common::{World, cloud, north};
use crate::server::{self, Server};

pub fn write_secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, mode).unwrap();
}

/// South with a database server of its own that runs, and services with a configuration.
pub fn with_own_server(world: &World, standby: &Standby, own: &Server) -> Standby {
    let secret = world.dir.path().join("db.password");
    let etc = world.dir.path().join("etc-south");
    std::fs::create_dir_all(&etc).unwrap();
    let socket = own.socket();
    let url = format!("mysql+pymysql://glance:south-pass@/glance?unix_socket={}", socket.display());
    std::fs::write(etc.join("glance-api.conf"), format!("[database]\nconnection = {url}\n")).unwrap();
    let at = format!("file:{}", secret.display());
    let rewrite = serde_json::from_value(serde_json::json!({"database-passwords": {"glance": at}})).unwrap();
    let mut config = (*standby.config).clone();
    let places = config.places.get_mut(&cloud()).unwrap();
    places.sqlite = None;
    places.rewrite = Some(rewrite);
    places.mariadb = Some(MariadbPlace {
        datadir: own.data(),
        socket: socket.clone(),
        port: None,
        server_args: vec!["--innodb-buffer-pool-size=16M".into(), "--user=root".into()],
    });
    let client = farsite_sources::commands::find(&["mariadb-admin", "mysqladmin"]).unwrap();
    let stop = format!("{} --no-defaults -S {} shutdown", client.display(), socket.display());
    let all = [("configuration", etc.display().to_string()), ("standby_stop", stop)];
    places.variables.extend(all.map(|(name, value)| (name.to_owned(), value)));
    Standby { config: Arc::new(config), ..standby.clone() }
}

/// A point with the server's database instead of SQLite's, without a log behind it.
pub async fn point_of(world: &World, server: &Server) {
    let database = farsite_sources::logged(&server.item("continuous")).unwrap();
    let scratch = world.dir.path().join("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    let base = database.base_backup(&server::context(&scratch), scratch.join("base")).await.unwrap();
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
    let entries = LocalTree::new(&base.root, base.paths.clone()).entries().unwrap();
    let (entries, _) = tree::place(entries, 65536, &tree::Layout::new());
    let data = put("main", Arc::new(tree::TreeContent::new(&base.root, &entries)));
    let directory = put("main#directory", Arc::new(InMemory(serde_json::to_vec(&entries).unwrap())));
    writer.flush().await.unwrap();
    world
        .point_with(1, |manifest| {
            let sqlite = manifest.items.iter().position(|item| item.kind == ItemKind::Sqlite).unwrap();
            let item = &mut manifest.items[sqlite];
            item.id = ItemId::new(ItemKind::Mariadb, "main");
            item.kind = ItemKind::Mariadb;
            item.consistency = Consistency::Application;
            (item.data, item.directory, item.details) = (data, Some(directory), base.details);
        })
        .await;
}

/// The restored server, to be asked; it ends with its value.
pub fn restored(own: &Server) -> server::Stopped {
    server::Stopped(farsite_sources::mariadb::instance::Instance {
        datadir: own.data(),
        socket: own.socket(),
        port: None,
        server_args: Vec::new(),
    })
}
