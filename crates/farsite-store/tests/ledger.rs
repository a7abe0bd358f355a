//! The ledger's rules, told as races, thefts and accidents.

mod common;

use std::collections::BTreeMap;

use common::{World, group, objects, site};
use farsite_model::rpo::CaptureStamp;
use farsite_model::{CaptureTime, Consistency, Epoch, ItemKind, Level, Mode, PointId, PromotionId, RunId};
use farsite_store::StoreError;
use farsite_store::hex::Hex;
use farsite_store::ledger::{Committed, Ledger, Refusal, SiteLedger, SiteStatement, Statement};

fn founded() -> Statement {
    Statement::GroupFounded { group: group(), primary: site("north") }
}

async fn point(world: &World, id: u64, epoch: u64) -> Statement {
    let now = world.store.backend.time().await.unwrap();
    let stamp = CaptureStamp::at_commit(CaptureTime(now.0), &[], now);
    Statement::PointCommitted(Committed {
        point: PointId::from_random(id),
        epoch: Epoch(epoch),
        run: RunId::from_random(id),
        manifest: Hex([0; 32]),
        by_kind: BTreeMap::from([(ItemKind::Volume, stamp)]),
        whole: true,
        items: 1,
        weakest: Consistency::Crash,
        changed_bytes: 0,
        shipped_bytes: 0,
        suspicious: vec![],
        timelines: vec![],
    })
}

fn epoch(number: u64) -> Statement {
    Statement::EpochBegun {
        epoch: Epoch(number),
        primary: site("south"),
        promotion: PromotionId::from_random(number),
        point: None,
        logs: vec![],
        who: "ann".into(),
        reason: "north burns".into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_of_two_epochs_racing_to_commit_never_both_win() {
    for round in 0..20 {
        let world = World::in_folder().await;
        Ledger::open(&world.store, &group()).await.unwrap().append(&world.source, |_| Ok(founded())).await.unwrap();
        let mut old = Ledger::open(&world.store, &group()).await.unwrap();
        let mut operator = Ledger::open(&world.store, &group()).await.unwrap();
        let commit = point(&world, 7, 1).await;
        let (committed, begun) = tokio::join!(
            old.append(&world.source, |_| Ok(commit.clone())),
            operator.append(&world.operator, |_| Ok(epoch(2)))
        );
        begun.unwrap();
        let after = Ledger::open(&world.store, &group()).await.unwrap();
        match committed {
            // It came before the epoch: the promotion, which lost the number, has read it.
            Ok((number, _)) => {
                assert_eq!(number, 1, "round {round}");
                assert!(after.state().points[0].superseded);
            }
            Err(StoreError::Refused(Refusal::Fenced { mine, current, .. })) => {
                assert_eq!((mine, current), (Epoch(1), Epoch(2)), "round {round}");
                assert!(after.state().points.is_empty());
            }
            Err(other) => panic!("round {round}: {other}"),
        }
        assert!(after.state().default_point().is_none(), "no point of the old epoch is picked by itself");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_at_once_one_wins_and_the_other_is_told_who() {
    let world = World::in_folder().await;
    let begun = |who: &str, id: u64| SiteStatement::PromotionBegun {
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
    };
    let mut ann = SiteLedger::open(&world.store, &site("north")).await.unwrap();
    let mut bob = SiteLedger::open(&world.store, &site("north")).await.unwrap();
    let (a, b) = tokio::join!(
        ann.begin(&world.operator, begun("ann", 1)),
        bob.begin(&world.second_operator, begun("bob", 2))
    );
    assert!(a.is_ok() != b.is_ok(), "exactly one wins");
    let (winner, told) = if a.is_ok() { ("ann", b) } else { ("bob", a) };
    let told = told.unwrap_err().to_string();
    assert!(told.contains(&format!("begun by {winner}")) && told.contains("--resume"), "{told}");
    // Once it has ended, the next one may begin.
    let (ledger, signer, id) = if winner == "ann" { (&mut ann, &world.operator, 1) } else { (&mut bob, &world.second_operator, 2) };
    ledger.end(signer, PromotionId::from_random(id), "cancelled", winner).await.unwrap();
    ledger.begin(signer, begun(winner, 3)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_agent_key_can_add_points_for_its_site_and_nothing_else() {
    let world = World::in_folder().await;
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    let commit = point(&world, 1, 1).await;
    ledger.append(&world.source, |_| Ok(commit.clone())).await.unwrap();
    let id = PointId::from_random(1);
    let forbidden = [
        epoch(2),
        Statement::PointProven { point: id, how: "trust me".into() },
        Statement::PointExpired { point: id },
        Statement::PointDamaged { point: id, objects: vec!["x".into()] },
        Statement::Hold { point: id, who: "thief".into(), reason: String::new() },
        Statement::Release { point: id, who: "thief".into() },
        Statement::GcBegun { released: vec![id] },
        Statement::AuthorityMoved { store: Hex([1; 16]) },
        Statement::Promoted { promotion: PromotionId::from_random(1) },
    ];
    let before = ledger.state().clone();
    for statement in forbidden {
        let name = statement.name();
        // The library refuses …
        let refused = ledger.append(&world.source, |_| Ok(statement.clone())).await;
        assert!(matches!(refused, Err(StoreError::Refused(Refusal::Role { .. }))), "{name}");
        // … and an entry that was written all the same keeps its number and has no effect.
        ledger.append_unchecked(&world.source, statement).await.unwrap();
        let state = ledger.state();
        assert_eq!((&state.epochs, &state.points), (&before.epochs, &before.points), "{name}");
    }
    assert_eq!(ledger.state().void.len(), 9);
    assert!(ledger.state().damage.is_empty(), "a forged entry is not damage: the group goes on");
    let next = point(&world, 2, 1).await;
    ledger.append(&world.source, |_| Ok(next.clone())).await.unwrap();
    // Nor can it begin a site's promotion, or speak for another site.
    let mut other = Ledger::open(&world.store, &farsite_model::GroupName::new("other").unwrap()).await.unwrap();
    let foreign = Statement::GroupFounded { group: other.group().clone(), primary: site("south") };
    assert!(other.append(&world.source, |_| Ok(foreign.clone())).await.is_err());
    let mut north = SiteLedger::open(&world.store, &site("north")).await.unwrap();
    assert!(north.end(&world.source, PromotionId::from_random(1), "x", "thief").await.is_err());
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
    let path = objects(&world.dir.path().join("store")).into_iter().find(|p| p.ends_with("ledger/cloud/0000000000000002")).unwrap();
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
    let Err(error) = Ledger::open(&world.store, &group()).await else { panic!("a deleted entry is damage") };
    assert!(error.to_string().contains("missing"), "{error}");
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
    ledger.append(&world.standby, |_| Ok(Statement::GcBegun { released: vec![first] })).await.unwrap();
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
    ledger.append(&world.standby, |_| Ok(Statement::GcBegun { released: vec![held, gone, last] })).await.unwrap();
    let expired: Vec<bool> = ledger.state().points.iter().map(|p| p.expired).collect();
    assert_eq!(expired, [false, true, false]);
}
