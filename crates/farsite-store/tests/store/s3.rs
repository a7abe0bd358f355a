//! The S3 backend against a real S3 server on loopback, with its faults.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::{World, group, noise, site};
use bytes::Bytes;
use farsite_model::{ItemId, ItemKind};
use farsite_s3server::{Call, Credentials, Fault, Server};
use farsite_store::backend::provider::LargeUploads;
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
    tokio::time::sleep(Duration::from_millis(200)).await;
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

/// Calls that a rule was shown, by method and query.
fn watched(
    world: &S3World,
    fault: impl Fn(&Call, u32) -> Fault + Send + Sync + 'static,
) -> Arc<Mutex<Vec<Call>>> {
    let seen: Arc<Mutex<Vec<Call>>> = Arc::default();
    let log = seen.clone();
    world.server.set_faults(Arc::new(move |call| {
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|c| c.method == call.method && c.path == call.path).count();
        log.push(call.clone());
        fault(call, before as u32)
    }));
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_asks_to_slow_down_is_asked_again() {
    let world = s3().await;
    for status in [429, 500, 503] {
        let seen =
            watched(&world, move |_, before| if before < 2 { Fault::Refuse(status) } else { Fault::None });
        let key = format!("slow/{status}");
        world.backend.create(&key, Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(seen.lock().unwrap().len(), 3, "{status}");
        assert_eq!(&world.backend.get(&key).await.unwrap().bytes[..], b"x");
    }
    // And not for ever; nor is it called a refusal.
    let seen = watched(&world, |_, _| Fault::Refuse(429));
    let error = world.backend.create("slow/never", Bytes::new()).await.unwrap_err();
    assert!(matches!(error, BackendError::Uncertain { .. }), "{error:?}");
    assert_eq!(seen.lock().unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_meets_another_one_is_tried_again_and_never_called_lost() {
    let world = s3().await;
    watched(
        &world,
        |call, before| {
            if call.method == "PUT" && before == 0 { Fault::Refuse(409) } else { Fault::None }
        },
    );
    world.backend.create("busy", Bytes::from_static(b"ours")).await.unwrap();
    watched(&world, |call, _| if call.method == "PUT" { Fault::Refuse(409) } else { Fault::None });
    let error = world.backend.create("busier", Bytes::new()).await.unwrap_err();
    assert!(matches!(error, BackendError::Uncertain { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_never_answers_is_given_up_in_time() {
    let world = s3().await;
    let access = access(&world.server, "owner");
    let store = open("s3://replica/north?answer-timeout=1s", &access, false).unwrap();
    watched(&world, |_, _| Fault::Delay(Duration::from_hours(1)));
    let start = Instant::now();
    let error = store.create("silent", Bytes::from_static(b"x")).await.unwrap_err();
    assert!(matches!(error, BackendError::Uncertain { .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_cut_is_gone_on_with_where_it_broke_off() {
    let world = s3().await;
    let content = noise(4, 3 << 20);
    world.backend.create("big", content.clone().into()).await.unwrap();
    let seen =
        watched(
            &world,
            |call, before| {
                if call.method == "GET" && before < 2 { Fault::CutAnswer } else { Fault::None }
            },
        );
    assert!(world.backend.get("big").await.unwrap().bytes == content);
    assert_eq!(seen.lock().unwrap().len(), 3);
    watched(
        &world,
        |call, before| {
            if call.method == "GET" && before == 0 { Fault::CutAnswer } else { Fault::None }
        },
    );
    assert!(world.backend.get_range("big", 1000..2_000_000).await.unwrap() == content[1000..2_000_000]);
    watched(&world, |_, _| Fault::CutAnswer);
    let error = world.backend.get_range("big", 0..2_000_000).await.unwrap_err();
    assert!(matches!(error, BackendError::Uncertain { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_those_of_the_servers_checksum_are_not_given_out() {
    let world = s3().await;
    let content = noise(5, 100_000);
    world.backend.create("rotten", content.clone().into()).await.unwrap();
    let path = world.dir.path().join("replica/north/rotten");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[50_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = world.backend.get("rotten").await.unwrap_err();
    assert!(matches!(error, BackendError::Unreadable { .. }), "{error:?}");
}

/// Uploads in parts that the server still keeps.
fn uploads(world: &S3World) -> usize {
    let files = std::fs::read_dir(world.dir.path()).unwrap();
    files.filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().starts_with(".upload")).count()
}

fn in_parts(world: &S3World, who: &str) -> SharedBackend {
    open("s3://replica/north?part-size=5MiB", &access(&world.server, who), false).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_pack_goes_up_in_parts_even_with_credentials_that_may_only_add() {
    let world = s3().await;
    let store = in_parts(&world, "agent");
    let seen = watched(&world, |call, before| {
        // One part fails at first, and is sent again alone.
        if call.query.contains("partNumber=2") && before < 2 { Fault::CutRequest } else { Fault::None }
    });
    let content = noise(6, 11 << 20);
    store.create("packs/00/x", content.clone().into()).await.unwrap();
    let count = |what: &str| seen.lock().unwrap().iter().filter(|c| c.query.contains(what)).count();
    assert_eq!(count("partNumber=3"), 1, "{:?}", seen.lock().unwrap());
    assert!(store.get("packs/00/x").await.unwrap().bytes == content);
    // It is create-only all the same.
    let again = store.create("packs/00/x", noise(7, 11 << 20).into()).await;
    assert!(matches!(again, Err(BackendError::Exists { .. })), "{again:?}");
    assert!(store.get("packs/00/x").await.unwrap().bytes == content);
    assert_eq!(uploads(&world), 0, "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_completion_has_a_lost_answer_is_recognised_as_ones_own() {
    for fault in [Fault::LoseAnswer(500), Fault::HangUp, Fault::Twice, Fault::CutAnswer] {
        let world = s3().await;
        let store = in_parts(&world, "owner");
        watched(&world, move |call, _| {
            let completes = call.method == "POST" && call.query.contains("uploadId");
            if completes && call.path.contains("packs/") { fault } else { Fault::None }
        });
        let content = Bytes::from(noise(8, 11 << 20));
        let done = create_or_recognise(&*store, "packs/00/y", content.clone()).await.unwrap();
        assert!(done.is_some(), "{fault:?}");
        assert!(store.get("packs/00/y").await.unwrap().bytes == content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_fails_or_is_given_up_leaves_nothing_behind() {
    let world = s3().await;
    let store = in_parts(&world, "owner");
    watched(
        &world,
        |call, _| {
            if call.query.contains("partNumber=2") { Fault::Refuse(403) } else { Fault::None }
        },
    );
    let error = store.create("packs/00/z", noise(9, 11 << 20).into()).await.unwrap_err();
    assert!(matches!(error, BackendError::Denied { .. }), "{error:?}");
    assert_eq!(uploads(&world), 0);
    assert!(store.size("packs/00/z").await.unwrap_err().is_missing());
    // Dropped in the middle.
    watched(&world, |call, _| {
        if call.query.contains("partNumber=2") { Fault::Delay(Duration::from_hours(1)) } else { Fault::None }
    });
    let create = store.create("packs/00/z", noise(9, 11 << 20).into());
    assert!(tokio::time::timeout(Duration::from_secs(3), create).await.is_err());
    for _ in 0..100 {
        if uploads(&world) == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(uploads(&world), 0, "it is ended behind the back of who dropped it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_completions_would_overwrite_gets_packs_in_one_piece() {
    let world = s3().await;
    world.server.complete_blindly();
    let store = in_parts(&world, "owner");
    let seen = watched(&world, |_, _| Fault::None);
    store.create("packs/00/w", noise(10, 11 << 20).into()).await.unwrap();
    let parts =
        seen.lock().unwrap().iter().filter(|c| c.path.contains("packs/") && c.query.contains("part")).count();
    assert_eq!(parts, 0);
    let again = store.create("packs/00/w", noise(11, 11 << 20).into()).await;
    // A server that answers before it has read the body may cut the line: then nobody knows, and the caller reads back.
    let refused = matches!(again, Err(BackendError::Exists { .. } | BackendError::Uncertain { .. }));
    assert!(refused, "{again:?}");
    assert!(store.get("packs/00/w").await.unwrap().bytes == noise(10, 11 << 20), "nothing was overwritten");
    let provider = store.provider().await.unwrap().unwrap();
    assert_eq!(provider.large_uploads, LargeUploads::Whole);
}
