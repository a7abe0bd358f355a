//! Several at once: agents of two epochs, operators, and stores whose create-only writes are none.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{World, committed, epoch, founded, group, noise, site};
use async_trait::async_trait;
use bytes::Bytes;
use farsite_model::{Epoch, Level, Mode, PromotionId, StoreTime};
use farsite_store::StoreError;
use farsite_store::backend::folder::Folder;
use farsite_store::backend::race::{RaceError, probe_tampering, race};
use farsite_store::backend::{Backend, BackendError, Listed, Object, SharedBackend};
use farsite_store::hex::Hex;
use farsite_store::ledger::{Ledger, Refusal, SiteLedger, SiteStatement, Statement};

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_of_two_epochs_racing_to_commit_never_both_win() {
    let mut came_first = 0;
    for round in 0..25u64 {
        for (place, world) in World::everywhere().await {
            let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
            ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
            let mut old = Ledger::open(&world.store, &group()).await.unwrap();
            let mut operator = Ledger::open(&world.store, &group()).await.unwrap();
            let commit = Statement::PointCommitted(committed(&world, 7, 1, Hex([0; 32])).await);
            // The seed says who starts how much earlier.
            let waits = noise(round, 2);
            let wait = |w: u8| tokio::time::sleep(Duration::from_micros(u64::from(w) * 20));
            let (committed, begun) = tokio::join!(
                async {
                    wait(waits[0]).await;
                    old.append(&world.source, |_| Ok(commit.clone())).await
                },
                async {
                    wait(waits[1]).await;
                    operator.append(&world.operator, |_| Ok(epoch(2))).await
                }
            );
            begun.unwrap();
            let after = Ledger::open(&world.store, &group()).await.unwrap();
            match committed {
                // It came before the epoch: the promotion, which lost the number, has read it.
                Ok((number, _)) => {
                    came_first += 1;
                    assert_eq!(number, 1, "{place}, round {round}");
                    assert!(after.state().points[0].superseded);
                    assert_eq!(operator.state().points.len(), 1, "the promotion knows the late commit");
                }
                Err(StoreError::Refused(Refusal::Fenced { mine, current, .. })) => {
                    assert_eq!((mine, current), (Epoch(1), Epoch(2)), "{place}, round {round}");
                    assert!(after.state().points.is_empty());
                }
                Err(other) => panic!("{place}, round {round}: {other}"),
            }
            assert!(after.state().default_point().is_none(), "no point of the old epoch is picked by itself");
        }
    }
    assert!(came_first > 0 && came_first < 50, "both outcomes were met: {came_first} of 50");
}

fn begun(who: &str, id: u64) -> SiteStatement {
    SiteStatement::PromotionBegun {
        promotion: PromotionId::from_random(id),
        from: site("north"),
        to: site("south"),
        mode: Mode::Failover,
        level: Level::Application,
        groups: vec![],
        runbook: "application".into(),
        runbook_text: String::new(),
        who: who.into(),
        reason: "fire".into(),
        fencing: "assumed lost".into(),
        disaster_at: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_at_once_one_wins_and_the_other_is_told_who_and_when() {
    for (place, world) in World::everywhere().await {
        let mut ann = SiteLedger::open(&world.store, &site("north")).await.unwrap();
        let mut bob = SiteLedger::open(&world.store, &site("north")).await.unwrap();
        let (a, b) = tokio::join!(
            ann.begin(&world.operator, begun("ann", 1)),
            bob.begin(&world.second_operator, begun("bob", 2))
        );
        assert!(a.is_ok() != b.is_ok(), "{place}: exactly one wins");
        let (winner, at, told) = match (a, b) {
            (Ok(at), Err(told)) => ("ann", at, told),
            (Err(told), Ok(at)) => ("bob", at, told),
            _ => unreachable!("asserted above"),
        };
        let StoreError::Refused(Refusal::PromotionOpen { who, at: told_at, .. }) = &told else {
            panic!("{place}: {told}")
        };
        assert_eq!(who, winner);
        assert!((told_at.0.as_second() - at.0.as_second()).abs() <= 1, "{place}: {told_at} and {at}");
        assert!(told.to_string().contains("--resume"), "{told}");
        // Once it has ended, the next one may begin.
        let (ledger, signer, id) = if winner == "ann" {
            (&mut ann, &world.operator, 1)
        } else {
            (&mut bob, &world.second_operator, 2)
        };
        ledger.end(signer, PromotionId::from_random(id), "cancelled", winner).await.unwrap();
        ledger.begin(signer, begun(winner, 3)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_newest_entry_does_not_let_a_second_promotion_begin_unseen() {
    let world = World::in_folder().await;
    let mut ann = SiteLedger::open(&world.store, &site("north")).await.unwrap();
    ann.begin(&world.operator, begun("ann", 1)).await.unwrap();
    let path = world.path("sites/north/0000000000000000");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let mut bob = SiteLedger::open(&world.store, &site("north")).await.unwrap();
    let error = bob.begin(&world.second_operator, begun("bob", 2)).await.unwrap_err().to_string();
    assert!(error.contains("sites/north/0000000000000000") && error.contains("hint"), "{error}");
    bob.begin_behind_damage(&world.second_operator, begun("bob", 2)).await.unwrap();
    assert_eq!(bob.state().open_promotion().unwrap().id(), PromotionId::from_random(2));
}

/// Looks first and writes afterwards, or does not look at all.
struct Loose {
    folder: Folder,
    looks: bool,
}

#[async_trait]
impl Backend for Loose {
    fn describe(&self) -> String {
        "loose store".into()
    }
    fn clock_grain_ms(&self) -> u64 {
        10
    }
    async fn time(&self) -> Result<StoreTime, BackendError> {
        self.folder.time().await
    }
    async fn create(&self, key: &str, bytes: Bytes) -> Result<StoreTime, BackendError> {
        if self.looks && self.folder.size(key).await.is_ok() {
            return Err(BackendError::Exists { store: self.describe(), key: key.into() });
        }
        match self.folder.create(key, bytes.clone()).await {
            Err(BackendError::Exists { .. }) => self.folder.try_overwrite(key, bytes).await?,
            other => return other,
        }
        self.folder.time().await
    }
    async fn get(&self, key: &str) -> Result<Object, BackendError> {
        self.folder.get(key).await
    }
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BackendError> {
        self.folder.get_range(key, range).await
    }
    async fn size(&self, key: &str) -> Result<u64, BackendError> {
        self.folder.size(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>, BackendError> {
        self.folder.list(prefix, after).await
    }
    async fn delete(&self, key: &str) -> Result<(), BackendError> {
        self.folder.delete(key).await
    }
    async fn try_overwrite(&self, key: &str, bytes: Bytes) -> Result<(), BackendError> {
        self.folder.try_overwrite(key, bytes).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_look_or_looks_first_and_writes_afterwards_is_refused() {
    for looks in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let loose: SharedBackend = Arc::new(Loose { folder, looks });
        let error = race(&loose, "t", 50, 8).await.unwrap_err().to_string();
        assert!(error.contains("does not honour create-only writes") && error.contains("hint"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s3s_fs_without_a_lock_per_key_is_refused_by_the_race() {
    let world = World::in_s3().await;
    race(&world.store.backend, "locked", 20, 8).await.unwrap();
    world.server.as_ref().unwrap().write_carelessly();
    let error = race(&world.store.backend, "loose", 100, 8).await.unwrap_err();
    assert!(matches!(error, RaceError::NotAtomic { .. } | RaceError::NotProven { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_race_in_which_nobody_wins_proves_nothing() {
    let world = World::in_folder().await;
    // The probe's name is taken, by something that no writer wrote.
    world.store.backend.create("probe/t/0000", Bytes::from_static(b"other")).await.unwrap();
    let error = race(&world.store.backend, "t", 1, 4).await.unwrap_err();
    assert!(matches!(error, RaceError::NotProven { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_answer_is_not_called_tamper_resistant() {
    let world = World::in_folder().await;
    let store = world.with_faults(Arc::new(|operation| match operation.name {
        "overwrite" | "delete" => crate::common::faulty::Fate::Unreachable,
        _ => crate::common::faulty::Fate::Pass,
    }));
    assert!(probe_tampering(&store.backend, "t").await.is_err());
}
