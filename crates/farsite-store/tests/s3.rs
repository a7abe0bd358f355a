//! The S3 backend against a real S3 server on loopback, with its faults.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use common::{World, group, noise, site};
use farsite_model::{ItemId, ItemKind};
use farsite_s3server::{Credentials, Fault, Server};
use farsite_store::backend::{
    Backend, BackendError, S3Access, SharedBackend, create_or_recognise, open, race,
};
use farsite_store::ledger::{Ledger, Statement};

struct S3World {
    server: Server,
    dir: tempfile::TempDir,
    backend: SharedBackend,
    agent: SharedBackend,
}

fn access(server: &Server, who: &str) -> S3Access {
    S3Access {
        endpoint: Some(server.endpoint()),
        region: "south".into(),
        access_key: who.into(),
        secret_key: "secret-secret".into(),
        session_token: None,
        path_style: true,
    }
}

async fn s3() -> S3World {
    let dir = tempfile::tempdir().unwrap();
    let credentials = |name: &str, may_only_add| Credentials {
        access_key: name.into(),
        secret_key: "secret-secret".into(),
        may_only_add,
    };
    let server = Server::start(dir.path(), 0, vec![credentials("owner", false), credentials("agent", true)])
        .await
        .unwrap();
    Server::create_bucket(dir.path(), "replica").unwrap();
    let backend = open("s3://replica/north", &access(&server, "owner"), false).unwrap();
    let agent = open("s3://replica/north", &access(&server, "agent"), false).unwrap();
    S3World { server, dir, backend, agent }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_small_interface_holds_on_s3() {
    let world = s3().await;
    let store = &world.backend;
    let before = store.time().await.unwrap();
    assert!((jiff::Timestamp::now().as_second() - before.0.as_second()).abs() <= 2);
    store.create("a/1", Bytes::from_static(b"hello")).await.unwrap();
    assert!(matches!(
        store.create("a/1", Bytes::from_static(b"other")).await,
        Err(BackendError::Exists { .. })
    ));
    assert_eq!(&store.get("a/1").await.unwrap().bytes[..], b"hello");
    assert_eq!(&store.get_range("a/1", 1..4).await.unwrap()[..], b"ell");
    assert!(store.get_range("a/1", 1..40).await.is_err(), "a short answer is an error");
    assert_eq!(store.size("a/1").await.unwrap(), 5);
    assert!(store.get("a/none").await.unwrap_err().is_missing());
    assert!(store.size("a/none").await.unwrap_err().is_missing());
    store.create("a/2", Bytes::new()).await.unwrap();
    let keys: Vec<String> = store.list("a/", Some("a/1")).await.unwrap().into_iter().map(|l| l.key).collect();
    assert_eq!(keys, ["a/2"]);
    store.delete("a/2").await.unwrap();
    assert_eq!(store.list("a/", None).await.unwrap().len(), 1);
    drop(world.dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn create_only_writes_have_one_winner_in_100_rounds_of_8_writers() {
    let world = s3().await;
    race::race(&world.backend, "t", 100, 8).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_succeeded_but_whose_answer_was_lost_is_recognised_as_ones_own() {
    let world = s3().await;
    let lost = Arc::new(AtomicBool::new(false));
    let once = lost.clone();
    world.server.set_faults(Arc::new(move |call| {
        let hit = call.method == "PUT" && call.path.contains("ledger") && !once.swap(true, Ordering::SeqCst);
        if hit { Fault::LoseAnswer(500) } else { Fault::None }
    }));
    let stored = World::on(tempfile::tempdir().unwrap(), world.backend.clone()).await;
    let mut ledger = Ledger::open(&stored.store, &group()).await.unwrap();
    let (number, _) = ledger
        .append(&stored.source, |_| Ok(Statement::GroupFounded { group: group(), primary: site("north") }))
        .await
        .unwrap();
    assert!(lost.load(Ordering::SeqCst), "the fault was injected");
    assert_eq!((number, ledger.head().next), (0, 1), "one entry, ours");
    // And somebody else's entry under the same key is not taken for ours.
    world.backend.create("x", Bytes::from_static(b"theirs")).await.unwrap();
    assert!(create_or_recognise(&*world.backend, "x", Bytes::from_static(b"ours")).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_credentials_can_neither_overwrite_nor_delete() {
    let world = s3().await;
    let probe = race::probe_tampering(&world.agent, "agent").await.unwrap();
    assert!(probe.is_tamper_resistant(), "{probe:?}");
    let owner = race::probe_tampering(&world.backend, "owner").await.unwrap();
    assert!(owner.can_overwrite && owner.can_delete, "the owner can, and that is said: {}", owner.in_words());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_and_a_dead_one_are_said() {
    let world = s3().await;
    world
        .server
        .set_faults(Arc::new(|call| if call.method == "PUT" { Fault::Refuse(507) } else { Fault::None }));
    let error = world.backend.create("f", Bytes::new()).await.unwrap_err();
    assert!(matches!(error, BackendError::Full { .. }), "{error:?}");
    let gone = access(&world.server, "owner");
    drop(world);
    // The server's task ends at its next turn.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let gone: Box<dyn Backend> = Box::new(farsite_store::backend::s3::S3::new("replica", "north", &gone));
    let error = gone.time().await.unwrap_err();
    assert!(matches!(error, BackendError::Unreachable { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_survives_the_round_trip_through_s3() {
    let s3 = s3().await;
    let world = World::on(tempfile::tempdir().unwrap(), s3.backend.clone()).await;
    let content = noise(1, 10 << 20);
    let (map, ..) = world.replicate(1, &ItemId::new(ItemKind::Volume, "v"), content.clone()).await;
    assert_eq!(world.reader().read_small(&map, 16 << 20).await.unwrap(), content);
}
