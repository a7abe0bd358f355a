//! The ledger's rules, told as races, thefts and accidents.

use crate::common::{World, epoch, founded, group, objects};
use farsite_model::{PointId, RunId};
use farsite_store::StoreError;
use farsite_store::hex::Hex;
use farsite_store::ledger::{Ledger, Refusal, Statement};

async fn point(world: &World, id: u64, epoch: u64) -> Statement {
    Statement::PointCommitted(crate::common::committed(world, id, epoch, Hex([0; 32])).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_primarys_agent_commits_nothing_after_the_epoch() {
    let world = World::in_folder().await;
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    ledger.append(&world.operator, |_| Ok(epoch(2))).await.unwrap();
    for claimed in [1, 2] {
        let late = point(&world, claimed, claimed).await;
        assert!(ledger.append(&world.source, |_| Ok(late.clone())).await.is_err());
        ledger.append_unchecked(&world.source, late).await.unwrap();
        assert!(ledger.state().points.is_empty(), "claiming epoch {claimed} does not help");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_a_ledger_entry_is_damage_and_stops_agents() {
    let world = World::in_folder().await;
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    for id in 1..=3 {
        let commit = point(&world, id, 1).await;
        ledger.append(&world.source, |_| Ok(commit.clone())).await.unwrap();
    }
    let path = objects(&world.dir.path().join("store"))
        .into_iter()
        .find(|p| p.ends_with("ledger/cloud/0000000000000002"))
        .unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 10;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let ledger = Ledger::open(&world.store, &group()).await.unwrap();
    assert_eq!(ledger.state().damage.len(), 1);
    assert!(ledger.state().damage[0].object.ends_with("0000000000000002"));
    assert!(ledger.state().refuse_damage().is_err());
    let left: Vec<u64> = ledger.state().points.iter().map(|p| p.number).collect();
    assert_eq!(left, [1, 3], "the entries around it still count");
    std::fs::remove_file(&path).unwrap();
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    assert!(ledger.state().damage[0].why.contains("deleted"), "{:?}", ledger.state().damage);
    let left: Vec<u64> = ledger.state().points.iter().map(|p| p.number).collect();
    assert_eq!((left, ledger.head().next), (vec![1, 3], 4), "nor does a deleted one hide the rest");
    let commit = point(&world, 9, 1).await;
    let refused = ledger.append(&world.source, |_| Ok(commit.clone())).await;
    assert!(matches!(refused, Err(StoreError::Refused(Refusal::Damaged { .. }))), "an agent stops");
    ledger.append(&world.operator, |_| Ok(epoch(2))).await.expect("a failover goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_collection_ended_voids_the_commit_that_built_on_it() {
    let world = World::in_folder().await;
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    for id in 1..=2 {
        let commit = point(&world, id, 1).await;
        ledger.append(&world.source, |_| Ok(commit.clone())).await.unwrap();
    }
    let first = PointId::from_random(1);
    let run = RunId::from_random(3);
    ledger.append(&world.source, |_| Ok(Statement::PinBegun { run, points: vec![first] })).await.unwrap();
    ledger
        .append(&world.standby, |_| Ok(Statement::GcBegun { released: vec![first], runs: vec![] }))
        .await
        .unwrap();
    let commit = point(&world, 3, 1).await;
    let refused = ledger.append(&world.source, |_| Ok(commit.clone())).await;
    assert!(matches!(refused, Err(StoreError::Refused(Refusal::PinReleased { .. }))));
    ledger.append_unchecked(&world.source, commit).await.unwrap();
    assert_eq!(ledger.state().points.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_whole_point_and_a_held_one_are_never_expired() {
    let world = World::in_folder().await;
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    for id in 1..=3 {
        let commit = point(&world, id, 1).await;
        ledger.append(&world.source, |_| Ok(commit.clone())).await.unwrap();
    }
    let [held, gone, last] = [1, 2, 3].map(PointId::from_random);
    let hold = Statement::Hold { point: held, who: "ann".into(), reason: "audit".into() };
    ledger.append(&world.operator, |_| Ok(hold.clone())).await.unwrap();
    ledger
        .append(&world.standby, |_| Ok(Statement::GcBegun { released: vec![held, gone, last], runs: vec![] }))
        .await
        .unwrap();
    let expired: Vec<bool> = ledger.state().points.iter().map(|p| p.expired).collect();
    assert_eq!(expired, [false, true, false]);
}
