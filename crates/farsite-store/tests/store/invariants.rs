//! The invariants of the architecture that a store can break or keep, each tried by a test of its name.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::faulty::Fate;
use crate::common::{World, committed, epoch, founded, group, noise, restore, run_to_commit};
use farsite_model::PointId;
use farsite_store::StoreError;
use farsite_store::backend::BackendError;
use farsite_store::backend::folder::Folder;
use farsite_store::hex::Hex;
use farsite_store::ledger::{Ledger, Refusal, Statement};

/// A new world each time, with its group founded.
async fn fresh(s3: bool) -> (World, Ledger) {
    let world = if s3 { World::in_s3().await } else { World::in_folder().await };
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    (world, ledger)
}

/// After whatever happened: what is visible can be restored, and nothing is damaged.
async fn visible_is_durable(world: &World, ledger: &mut Ledger, what: &str) -> usize {
    ledger.refresh().await.unwrap();
    assert!(ledger.state().damage.is_empty(), "{what}");
    for point in &ledger.state().points {
        let back = restore(world, point).await.unwrap();
        assert!(back == noise(1, 400_000), "{what}: the point is visible and not whole");
    }
    ledger.state().points.len()
}

/// A run meets `fate` at its n-th operation on the store (and, when the store is `gone`, at all that follow), for every
/// n until a run gets through without.
async fn fails_at_every_operation(s3: bool, fate: Fate, gone: bool) {
    let mut failed = 0;
    for n in 1..200u64 {
        let (world, mut ledger) = fresh(s3).await;
        let reached = Arc::new(AtomicBool::new(false));
        let seen = reached.clone();
        let faulty = world.with_faults(Arc::new(move |operation| {
            let hit = operation.number == n || (gone && operation.number > n);
            seen.fetch_or(hit, Ordering::SeqCst);
            if hit { fate } else { Fate::Pass }
        }));
        let result = run_to_commit(&world, &faulty, 1, noise(1, 400_000)).await;
        failed += u32::from(result.is_err());
        let points = visible_is_durable(&world, &mut ledger, &format!("{fate:?} at operation {n}")).await;
        assert!(result.is_err() || points == 1, "a run that says ok is visible");
        if !reached.load(Ordering::SeqCst) {
            assert!(
                n > 8 && failed > 4,
                "a run takes several operations ({n}), most faults end it ({failed})"
            );
            return;
        }
    }
    panic!("a run of a small volume takes fewer operations than this");
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_1_a_point_is_visible_only_when_every_block_it_needs_is_durable() {
    for fate in [Fate::Unreachable, Fate::Full, Fate::LoseAnswer, Fate::NoAnswer] {
        fails_at_every_operation(false, fate, false).await;
    }
    fails_at_every_operation(false, Fate::Unreachable, true).await;
    fails_at_every_operation(true, Fate::Unreachable, true).await;
}

/// The process dies while its n-th operation is under way: the operation is done and its answer never read, or it is not
/// done. The child is this test again, in a process of its own that ends in the middle of the operation.
#[test]
fn invariant_1_holds_when_the_process_dies_between_any_two_operations() {
    const CHILD: &str = "FARSITE_TEST_DIES_AT";
    const NAME: &str = "invariants::invariant_1_holds_when_the_process_dies_between_any_two_operations";
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Ok(order) = std::env::var(CHILD) {
        let words: Vec<&str> = order.splitn(3, ' ').collect();
        return runtime.block_on(die(words[0].parse().unwrap(), words[1] == "done", Path::new(words[2])));
    }
    for n in 1..200u64 {
        let mut through = true;
        for when in ["before", "done"] {
            let (world, mut ledger) = runtime.block_on(fresh(false));
            // The child needs the keys of this world.
            let secrets = world.dir.path().join("child");
            world.hand_over(&secrets);
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", NAME, "--nocapture"])
                .env(CHILD, format!("{n} {when} {}", world.dir.path().display()))
                .output()
                .unwrap();
            let died = output.status.code() == Some(77);
            assert!(died || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            through &= !died;
            runtime.block_on(visible_is_durable(&world, &mut ledger, &format!("{when} {n}")));
        }
        if through {
            assert!(n > 8, "a run takes several operations: {n}");
            return;
        }
    }
    panic!("a run of a small volume takes fewer operations than this");
}

async fn die(n: u64, done: bool, dir: &Path) {
    let world = World::taken_over(dir).await;
    let fate = if done { Fate::DieDone } else { Fate::Die };
    let dying =
        world.with_faults(Arc::new(move |operation| if operation.number == n { fate } else { Fate::Pass }));
    run_to_commit(&world, &dying, 1, noise(1, 400_000)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_2_a_store_object_is_immutable_and_two_agents_at_once_corrupt_nothing() {
    for (place, world) in World::everywhere().await {
        let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
        ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
        let bytes_of = |world: &World| -> Vec<(std::path::PathBuf, Vec<u8>)> {
            crate::common::objects(&world.objects)
                .into_iter()
                .map(|path| (path.clone(), std::fs::read(path).unwrap()))
                .collect()
        };
        run_to_commit(&world, &world.store, 1, noise(1, 300_000)).await.unwrap();
        let before = bytes_of(&world);
        // Two runs at once, of the same volume and of the same site.
        let (a, b) = tokio::join!(
            run_to_commit(&world, &world.store, 2, noise(2, 300_000)),
            run_to_commit(&world, &world.store, 3, noise(3, 300_000))
        );
        a.unwrap();
        b.unwrap();
        for (path, bytes) in before {
            assert!(std::fs::read(&path).unwrap() == bytes, "{place}: {} was changed", path.display());
        }
        ledger.refresh().await.unwrap();
        assert_eq!(ledger.state().points.len(), 3);
        for point in &ledger.state().points {
            let id = (1..=3).find(|id| PointId::from_random(*id) == point.id()).unwrap();
            assert!(restore(&world, point).await.unwrap() == noise(id, 300_000), "{place}: point {id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_3_nothing_at_the_primary_is_needed_to_recover() {
    let world = World::in_folder().await;
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    run_to_commit(&world, &world.store, 1, noise(1, 300_000)).await.unwrap();
    // The primary's own files are gone; all that is left is the store and the standby's identity.
    std::fs::remove_dir_all(world.maps()).unwrap();
    for entry in std::fs::read_dir(world.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::remove_file(path).unwrap();
        }
    }
    ledger.refresh().await.unwrap();
    assert_eq!(restore(&world, &ledger.state().points[0]).await.unwrap(), noise(1, 300_000));
    // (That its keys can add and neither open nor speak for others is told in `stolen_key.rs`.)
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_4_every_byte_is_authenticated_and_damage_is_named_and_another_point_offered() {
    let world = World::in_folder().await;
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    run_to_commit(&world, &world.store, 1, noise(1, 300_000)).await.unwrap();
    let old: Vec<_> = packs(&world.objects);
    run_to_commit(&world, &world.store, 2, noise(2, 300_000)).await.unwrap();
    let pack = packs(&world.objects).into_iter().find(|p| !old.contains(p)).unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[1000] ^= 4;
    std::fs::write(&pack, bytes).unwrap();
    ledger.refresh().await.unwrap();
    let [older, newer] = [PointId::from_random(1), PointId::from_random(2)];
    let error = restore(&world, ledger.state().point(newer).unwrap()).await.unwrap_err();
    let StoreError::Damaged(found) = error else { panic!("{error}") };
    assert!(pack.ends_with(&found[0].object), "{found:?}");
    // Once the standby has said so, the failover's default is the newest point that does not need it.
    let says =
        Statement::PointDamaged { point: newer, objects: vec![found[0].object.clone()], packs: vec![] };
    ledger.append(&world.standby, |_| Ok(says.clone())).await.unwrap();
    assert_eq!(ledger.state().default_point().unwrap().id(), older);
    assert_eq!(restore(&world, ledger.state().point(older).unwrap()).await.unwrap(), noise(1, 300_000));
    // Collection cannot take it either: the newest whole point is damaged, so this is the one that is left.
    ledger
        .append(&world.standby, |_| Ok(Statement::GcBegun { released: vec![older], runs: vec![] }))
        .await
        .unwrap();
    assert_eq!(ledger.state().default_point().unwrap().id(), older);
}

fn packs(root: &Path) -> Vec<std::path::PathBuf> {
    crate::common::objects(&root.join("packs"))
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_5_after_an_epoch_change_no_agent_of_the_old_epoch_commits() {
    for (place, world) in World::everywhere().await {
        let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
        ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
        run_to_commit(&world, &world.store, 1, noise(1, 100_000)).await.unwrap();
        ledger.append(&world.operator, |_| Ok(epoch(2))).await.unwrap();
        let refused = run_to_commit(&world, &world.store, 2, noise(2, 100_000)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Refused(Refusal::Fenced { .. })), "{place}: {refused}");
        for claimed in [1, 2, 3] {
            let late =
                Statement::PointCommitted(committed(&world, 10 + claimed, claimed, Hex([0; 32])).await);
            ledger.append_unchecked(&world.source, late).await.unwrap();
        }
        assert_eq!(ledger.state().points.len(), 1, "{place}");
        assert!(ledger.state().default_point().is_none(), "{place}: the old point is not picked by itself");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_epoch_entry_does_not_bring_the_old_primarys_points_back() {
    let world = World::in_folder().await;
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    run_to_commit(&world, &world.store, 1, noise(1, 100_000)).await.unwrap();
    let north = Statement::EpochBegun {
        epoch: farsite_model::Epoch(2),
        primary: crate::common::site("north"),
        promotion: farsite_model::PromotionId::from_random(1),
        point: None,
        logs: vec![],
        who: "ann".into(),
        reason: "moved".into(),
    };
    ledger.append(&world.operator, |_| Ok(north.clone())).await.unwrap();
    let next = Statement::PointCommitted(committed(&world, 2, 2, Hex([0; 32])).await);
    ledger.append(&world.source, |_| Ok(next.clone())).await.unwrap();
    let path = world.path("ledger/cloud/0000000000000002");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    assert!(ledger.state().epoch_in_doubt);
    assert!(ledger.state().default_point().is_none(), "point 1 may be of before a failover");
    // An operator's next epoch is believed, whatever number the damaged one had.
    ledger.append(&world.operator, |_| Ok(epoch(3))).await.unwrap();
    assert_eq!(ledger.state().epoch(), farsite_model::Epoch(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_keeps_nothing_half_written_and_the_same_run_goes_on() {
    for (place, world) in World::everywhere().await {
        let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
        ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
        let room = Arc::new(std::sync::atomic::AtomicU32::new(2));
        let full = world.with_faults(Arc::new(move |operation| {
            let pack = operation.name == "create" && operation.key.starts_with("packs/");
            let order = std::sync::atomic::Ordering::SeqCst;
            let fits = !pack || room.fetch_update(order, order, |n| n.checked_sub(1)).is_ok();
            if fits { Fate::Pass } else { Fate::Full }
        }));
        let error = run_to_commit(&world, &full, 1, noise(1, 2 << 20)).await.unwrap_err();
        assert!(matches!(error, StoreError::Backend(BackendError::Full { .. })), "{place}: {error}");
        assert_eq!(crate::common::objects(&world.objects.join("packs")).len(), 2, "{place}");
        ledger.refresh().await.unwrap();
        assert!(ledger.state().points.is_empty(), "{place}");
        run_to_commit(&world, &world.store, 1, noise(1, 2 << 20)).await.unwrap();
        ledger.refresh().await.unwrap();
        assert_eq!(restore(&world, &ledger.state().points[0]).await.unwrap(), noise(1, 2 << 20));
        let sent: u64 = crate::common::objects(&world.objects.join("packs"))
            .iter()
            .map(|path| std::fs::metadata(path).unwrap().len())
            .sum();
        assert!(sent < (2 << 20) + 200_000, "{place}: complete packs were not sent again: {sent}");
    }
}

/// A real file system of 4 MiB that is really full. Mounting needs root; without it the same is told with an injected fault.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_file_system_keeps_nothing_half_written_and_when_root_it_is_a_real_tmpfs() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    std::fs::create_dir(&root).unwrap();
    let mount = |args: &[&str]| std::process::Command::new(args[0]).args(&args[1..]).status();
    let path = root.to_str().unwrap();
    let mounted = mount(&["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path]).is_ok_and(|s| s.success());
    if !mounted {
        // What this machine can show is shown by the test above.
        return;
    }
    let result = {
        let world = World::on(dir, Arc::new(Folder::open(&root).unwrap())).await;
        let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
        ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
        std::fs::write(root.join("ballast"), noise(9, 2 << 20)).unwrap();
        let error = run_to_commit(&world, &world.store, 1, noise(1, 3 << 20)).await.unwrap_err();
        let full = matches!(error, StoreError::Backend(BackendError::Full { .. }));
        let whole = packs(&root).iter().all(|path| {
            let id = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            farsite_store::pack::check_whole(&id, &std::fs::read(path).unwrap()).is_ok()
        });
        let litter = std::fs::read_dir(root.join(".tmp")).unwrap().count();
        std::fs::remove_file(root.join("ballast")).unwrap();
        let again = run_to_commit(&world, &world.store, 1, noise(1, 3 << 20)).await;
        ledger.refresh().await.unwrap();
        let back = match ledger.state().points.first() {
            Some(point) => restore(&world, point).await.is_ok_and(|bytes| bytes == noise(1, 3 << 20)),
            None => false,
        };
        // Unmounted under a process that has it open: nothing may be written into the bare folder.
        let _ = mount(&["umount", path]);
        let bare = world.store.backend.create("x", bytes::Bytes::new()).await;
        let empty = std::fs::read_dir(&root).unwrap().count() == 0;
        (error, full, whole, litter, again.map(|_| ()), back, bare.map(|_| ()), empty)
    };
    let (error, full, whole, litter, again, back, bare, empty) = result;
    assert!(full, "{error}");
    assert!(whole && litter == 0, "nothing half-written: {litter} temporary files");
    again.expect("the same run goes on once there is room");
    assert!(back);
    assert!(matches!(bare, Err(BackendError::Unreachable { .. })) && empty, "{bare:?}");
}
