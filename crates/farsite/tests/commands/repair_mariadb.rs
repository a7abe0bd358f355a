//! A database's base is shipped once, and points stand on it for days: what becomes of it when it is damaged.

#[allow(dead_code, reason = "the sources' own tests use the rest")]
#[path = "../../../farsite-sources/tests/common/mod.rs"]
mod server;

use crate::common::World;
use server::{Root, Server};

#[test]
fn heavy_a_database_whose_base_is_damaged_gets_a_new_one() {
    let world = World::new();
    // Short, because a socket's path may have 107 bytes only.
    let folder = tempfile::Builder::new().prefix("fr").tempdir_in("/tmp").unwrap();
    let server = Server::start(folder.path(), Root::Password, &["--log-bin=bin", "--server-id=7"]);
    let entry = format!(
        "  - mariadb: {{ name: main, socket: {}, user: root, password: 'file:{}', log: continuous }}\n",
        server.socket().display(),
        folder.path().join("password").display()
    );
    for site in ["north", "south"] {
        world.edit(&format!("{site}/policies/cloud.yaml"), |text| {
            text.replace("items:\n", &format!("items:\n{entry}"))
        });
    }
    world.replicate();
    let packs = world.store_files().into_iter().filter(|file| file.to_str().unwrap().contains("/packs/"));
    let pack = packs.max_by_key(|file| file.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&pack).unwrap();
    std::fs::write(&pack, bytes).unwrap();
    world.south(&["store", "repair"]).expect(1).says(&["needed by mariadb/main"]);
    // The log goes on by itself; the base does not.
    let second = world.replicate();
    world.south(&["points", "verify", "latest"]).expect(0).says(&[&second[..8]]);
    world.south(&["store", "repair"]).expect(0).says(&["mended"]);
    world.south(&["points", "verify", "--all", "cloud"]).expect(0);
}
