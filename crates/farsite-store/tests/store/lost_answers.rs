//! A write that took effect and whose answer was lost is recognised as one's own: by a status that says nothing, and by a
//! connection that is cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::common::faulty::Fate;
use crate::common::{World, committed, founded, group, manifest, noise, run_to_commit, site};
use bytes::Bytes;
use farsite_model::{Epoch, ItemId, ItemKind, RunId};
use farsite_s3server::Fault;
use farsite_store::backend::{BackendError, create_or_recognise};
use farsite_store::hex::Hex;
use farsite_store::ledger::{Ledger, Statement};
use farsite_store::logs::{self, SegmentHeader};
use farsite_store::map::MapRoot;
use farsite_store::seal::Sealer;

/// What each kind of object is called in a key.
const KINDS: [&str; 5] = ["keys/", "packs/", "manifests/", "ledger/", "logs/"];

/// Writes one object of every kind.
async fn write_all(world: &World) {
    let store = &world.store;
    let mut ledger = Ledger::open(store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    run_to_commit(world, store, 1, noise(1, 300_000)).await.unwrap();
    let run = RunId::from_random(2);
    let sealer = Sealer::begin(store, &world.source, &site("north"), &group(), run).await.unwrap();
    logs::write(store, &world.source, &sealer, &segment(&sealer, 0, 5), b"hello").await.unwrap();
    ledger.refresh().await.unwrap();
    assert_eq!((ledger.head().next, ledger.state().points.len()), (2, 1), "each entry once, ours");
    let segments = logs::list(store, &group(), &Hex([7; 8]), None).await.unwrap();
    let (_, bytes) = logs::read(store, &world.reader().opener, &segments[0]).await.unwrap();
    assert_eq!(bytes, b"hello");
    let point = &ledger.state().points[0];
    assert_eq!(crate::common::restore(world, point).await.unwrap(), noise(1, 300_000));
}

fn segment(sealer: &Sealer, first: u64, last: u64) -> SegmentHeader {
    SegmentHeader {
        version: 1,
        group: group(),
        site: site("north"),
        item: ItemId::new(ItemKind::Mariadb, "main"),
        epoch: Epoch(1),
        timeline: Hex([7; 8]),
        sequence: 0,
        file: "bin.000001".into(),
        first,
        last,
        covers: None,
        content_key: sealer.content_key(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_succeeded_but_whose_answer_was_lost_is_recognised_for_every_kind_of_object() {
    for fault in [Fault::LoseAnswer(500), Fault::LoseAnswer(503), Fault::HangUp] {
        for kind in KINDS {
            let world = World::in_s3().await;
            let hit = Arc::new(AtomicBool::new(false));
            let once = hit.clone();
            world.server.as_ref().unwrap().set_faults(Arc::new(move |call| {
                let here = call.method == "PUT" && call.path.contains(kind);
                if here && !once.swap(true, Ordering::SeqCst) { fault } else { Fault::None }
            }));
            write_all(&world).await;
            assert!(hit.load(Ordering::SeqCst), "{kind}: {fault:?} was injected");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_whose_every_answer_is_lost_is_recognised_by_reading_back() {
    // The client library tries four times by itself; here it never gets an answer to a PUT of a ledger entry.
    for fault in [Fault::LoseAnswer(500), Fault::HangUp] {
        let world = World::in_s3().await;
        let left = Arc::new(AtomicU32::new(4));
        let budget = left.clone();
        world.server.as_ref().unwrap().set_faults(Arc::new(move |call| {
            let here = call.method == "PUT" && call.path.contains("ledger/");
            let spend = |n: u32| n.checked_sub(1);
            let lost = here && budget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend).is_ok();
            if lost { fault } else { Fault::None }
        }));
        let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
        let (number, _) = ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
        assert_eq!((number, ledger.head().next, left.load(Ordering::SeqCst)), (0, 1, 0), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_never_called_a_store_where_nothing_was_changed() {
    let world = World::in_s3().await;
    world
        .server
        .as_ref()
        .unwrap()
        .set_faults(Arc::new(|call| if call.method == "PUT" { Fault::HangUp } else { Fault::None }));
    let error = world.store.backend.create("x", Bytes::from_static(b"ours")).await.unwrap_err();
    // The first attempt was done; a later one found it.
    assert!(matches!(error, BackendError::Uncertain { .. } | BackendError::Exists { .. }), "{error:?}");
    let back = create_or_recognise(&*world.store.backend, "x", Bytes::from_static(b"ours")).await.unwrap();
    assert!(back.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_lost_answer_of_a_folder_is_recognised_too() {
    for kind in KINDS {
        let mut world = World::in_folder().await;
        let hit = Arc::new(AtomicBool::new(false));
        let once = hit.clone();
        world.store = world.with_faults(Arc::new(move |operation| {
            let here = operation.name == "create" && operation.key.starts_with(kind);
            if here && !once.swap(true, Ordering::SeqCst) { Fate::LoseAnswer } else { Fate::Pass }
        }));
        write_all(&world).await;
        assert!(hit.load(Ordering::SeqCst), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_wrote_is_not_taken_for_ones_own() {
    for (place, world) in World::everywhere().await {
        let backend = &*world.store.backend;
        for (key, len) in [("small", 10), ("large", 3 << 20)] {
            backend.create(key, noise(1, len).into()).await.unwrap();
            assert!(
                create_or_recognise(backend, key, noise(2, len).into()).await.unwrap().is_none(),
                "{place} {key}"
            );
            assert!(
                create_or_recognise(backend, key, noise(1, len).into()).await.unwrap().is_some(),
                "{place} {key}"
            );
        }
        // A manifest of that point exists already with other contents: nothing is overwritten.
        let empty = MapRoot { size_bytes: 0, block_bytes: 65_536, root: None };
        manifest(1, empty.clone()).write(&world.store, &world.source).await.unwrap();
        let mut other = manifest(1, empty);
        other.read_bytes = 7;
        assert!(other.write(&world.store, &world.source).await.is_err(), "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_not_done_is_tried_again_and_one_that_never_is_is_said() {
    for (place, world) in World::everywhere().await {
        let count = Arc::new(AtomicU32::new(0));
        let counted = count.clone();
        let store = world.with_faults(Arc::new(move |operation| {
            let first = operation.name == "create" && counted.fetch_add(1, Ordering::SeqCst) == 0;
            if first { Fate::NoAnswer } else { Fate::Pass }
        }));
        assert!(create_or_recognise(&*store.backend, "a", Bytes::new()).await.unwrap().is_some(), "{place}");
        let never = world.with_faults(Arc::new(|operation| match operation.name {
            "create" => Fate::NoAnswer,
            _ => Fate::Pass,
        }));
        let error = create_or_recognise(&*never.backend, "b", Bytes::new()).await.unwrap_err();
        assert!(matches!(error, BackendError::Uncertain { .. }), "{place}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_and_reading_back_fail_is_an_error_and_counts_all_the_same() {
    let world = World::in_folder().await;
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    let store = world.with_faults(Arc::new(|operation| match (operation.name, operation.key) {
        ("create", _) => Fate::LoseAnswer,
        ("get", key) if key.ends_with("0001") => Fate::Unreachable,
        _ => Fate::Pass,
    }));
    let said = Statement::PointCommitted(committed(&world, 1, 1, Hex([0; 32])).await);
    let mut dying = Ledger::open(&store, &group()).await.unwrap();
    let error = dying.append(&world.source, |_| Ok(said.clone())).await.unwrap_err().to_string();
    assert!(error.contains("whether it took effect is not known"), "{error}");
    ledger.refresh().await.unwrap();
    assert_eq!(ledger.state().points.len(), 1, "whoever reads on finds it");
}

/// A server that answers every request with success and no `Date`.
async fn timeless() -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(1..) = socket.read(&mut buffer).await {
                    let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            });
        }
    });
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_tell_its_time_is_not_used_and_its_writes_are_read_back() {
    let access = farsite_store::backend::S3Access {
        endpoint: Some(timeless().await),
        region: "south".into(),
        access_key: "owner".into(),
        secret_key: "secret-secret".into(),
        session_token: None,
        path_style: true,
    };
    let store = farsite_store::backend::open("s3://replica/north", &access, false).unwrap();
    let error = store.time().await.unwrap_err().to_string();
    assert!(error.contains("no valid Date"), "{error}");
    // The write may well be done: the caller has to look.
    let error = store.create("x", Bytes::new()).await.unwrap_err();
    assert!(matches!(error, BackendError::Uncertain { .. }), "{error:?}");
}
