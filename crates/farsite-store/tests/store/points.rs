//! What a point is worth: how old it is at most, and whether it can still be kept or gone back to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::faulty::Fate;
use crate::common::{World, committed, founded, group};
use farsite_model::{CaptureTime, Epoch, PointId, PromotionId};
use farsite_store::StoreError;
use farsite_store::hex::Hex;
use farsite_store::ledger::{Ledger, Refusal, Statement};
use jiff::SignedDuration;

async fn with_points(world: &World, count: u64) -> Ledger {
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    for id in 1..=count {
        let said = committed(world, id, 1, Hex([0; 32])).await;
        ledger.append(&world.source, |_| Ok(Statement::PointCommitted(said.clone()))).await.unwrap();
    }
    ledger
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_is_never_younger_than_its_entry_whatever_its_agent_says() {
    for (place, world) in World::everywhere().await {
        let mut ledger = with_points(&world, 0).await;
        let mut said = committed(&world, 1, 1, Hex([0; 32])).await;
        // A stolen key, or a broken clock: captured a year from now.
        for stamp in said.by_kind.values_mut() {
            stamp.captured = CaptureTime(stamp.captured.0 + SignedDuration::from_hours(24 * 365));
        }
        ledger.append(&world.source, |_| Ok(Statement::PointCommitted(said.clone()))).await.unwrap();
        let point = &ledger.state().points[0];
        let mut later = point.committed;
        later.0 += SignedDuration::from_secs(500);
        assert_eq!(point.exposure(later), SignedDuration::from_secs(500), "{place}");
        assert_eq!(point.stands_for(), point.committed, "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_point_can_be_neither_held_nor_gone_back_to() {
    let world = World::in_folder().await;
    let mut ledger = with_points(&world, 3).await;
    let [gone, kept] = [1, 2].map(PointId::from_random);
    ledger
        .append(&world.standby, |_| Ok(Statement::GcBegun { released: vec![gone], runs: vec![] }))
        .await
        .unwrap();
    let begun = |point| Statement::EpochBegun {
        epoch: Epoch(2),
        primary: crate::common::site("south"),
        promotion: PromotionId::from_random(1),
        point: Some(point),
        logs: vec![],
        who: "ann".into(),
        reason: "north burns".into(),
    };
    let rechosen = |point| Statement::PointRechosen {
        promotion: PromotionId::from_random(1),
        point,
        who: "ann".into(),
        reason: "better".into(),
    };
    let hold = Statement::Hold { point: gone, who: "ann".into(), reason: "audit".into() };
    for statement in [hold, begun(gone)] {
        let refused = ledger.append(&world.operator, |_| Ok(statement.clone())).await;
        let Err(StoreError::Refused(Refusal::Other(why))) = refused else { panic!("{}", statement.name()) };
        assert!(why.contains("has expired") && why.contains("hint"), "{why}");
    }
    ledger.append(&world.operator, |_| Ok(begun(kept))).await.unwrap();
    assert!(ledger.append(&world.operator, |_| Ok(rechosen(gone))).await.is_err());
    // And what a promotion restores cannot expire under it.
    ledger
        .append(&world.standby, |_| Ok(Statement::GcBegun { released: vec![kept], runs: vec![] }))
        .await
        .unwrap();
    assert!(!ledger.state().point(kept).unwrap().expired);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_written_and_cannot_be_read_back_is_not_called_failed() {
    let world = World::in_folder().await;
    with_points(&world, 1).await;
    // From the moment the entry is written, nothing can be listed any more.
    let written = AtomicBool::new(false);
    let store = world.with_faults(Arc::new(move |operation| {
        let entry = operation.name == "create" && operation.key.starts_with("ledger/");
        if written.fetch_or(entry, Ordering::SeqCst) && operation.name == "list" {
            return Fate::Unreachable;
        }
        Fate::Pass
    }));
    let mut ledger = Ledger::open(&store, &group()).await.unwrap();
    let said = committed(&world, 2, 1, Hex([0; 32])).await;
    let (number, _) =
        ledger.append(&world.source, |_| Ok(Statement::PointCommitted(said.clone()))).await.unwrap();
    assert_eq!(number, 2);
    let after = Ledger::open(&world.store, &group()).await.unwrap();
    assert_eq!(after.state().points.len(), 2);
}
