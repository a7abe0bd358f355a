//! What a thief can do who holds an agent's signing key, the block secret, this library, and the right to create objects.

use crate::common::{World, committed, east, epoch, founded, group, run_to_commit, site};
use farsite_model::{Epoch, GroupName, PointId, PromotionId, RunId};
use farsite_store::chain::{Chain, Head};
use farsite_store::hex::Hex;
use farsite_store::ledger::{Ledger, Refusal, SiteLedger, SiteStatement, Statement};
use farsite_store::logs::{self, SegmentHeader};
use farsite_store::seal::{Opener, Sealer};
use farsite_store::signed::Kind;
use farsite_store::{StoreError, journal};

async fn founded_with_a_point(world: &World) -> Ledger {
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    let said = committed(world, 1, 1, Hex([0; 32])).await;
    ledger.append(&world.source, |_| Ok(Statement::PointCommitted(said.clone()))).await.unwrap();
    ledger
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_agent_key_can_add_points_for_its_site_and_nothing_else() {
    for (place, world) in World::everywhere().await {
        let mut ledger = founded_with_a_point(&world).await;
        let id = PointId::from_random(1);
        let promotion = PromotionId::from_random(1);
        let who = || "thief".to_owned();
        let forbidden = [
            epoch(2),
            Statement::PointRechosen { promotion, point: id, who: who(), reason: who() },
            Statement::Promoted { promotion },
            Statement::PromotionAccepted { promotion, who: who() },
            Statement::PointProven { point: id, how: "trust me".into() },
            Statement::PointExpired { point: id },
            Statement::PointDamaged { point: id, objects: vec!["x".into()], packs: vec![] },
            Statement::Hold { point: id, who: who(), reason: who() },
            Statement::Release { point: id, who: who() },
            Statement::GcBegun { released: vec![id], runs: vec![] },
            Statement::PointRemapped {
                run: RunId::from_random(9),
                points: vec![id],
                from: vec![],
                to: vec![],
                into: vec![],
                kept: vec![],
            },
            Statement::AuthorityMoved { store: Hex([1; 16]) },
        ];
        let before = ledger.state().clone();
        let count = forbidden.len();
        for statement in forbidden {
            let name = statement.name();
            // The library refuses …
            let refused = ledger.append(&world.source, |_| Ok(statement.clone())).await;
            assert!(matches!(refused, Err(StoreError::Refused(Refusal::Role { .. }))), "{place}: {name}");
            // … and an entry that was written all the same keeps its number and has no effect.
            ledger.append_unchecked(&world.source, statement).await.unwrap();
            let state = ledger.state();
            assert_eq!((&state.epochs, &state.points), (&before.epochs, &before.points), "{place}: {name}");
        }
        assert_eq!(ledger.state().void.len(), count);
        assert!(ledger.state().damage.is_empty(), "a forged entry is not damage: the group goes on");
        let next = committed(&world, 2, 1, Hex([0; 32])).await;
        ledger.append(&world.source, |_| Ok(Statement::PointCommitted(next.clone()))).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_agent_key_speaks_for_no_other_site_and_no_other_epoch() {
    for (place, world) in World::everywhere().await {
        let mut ledger = founded_with_a_point(&world).await;
        let before = ledger.state().points.clone();
        // East's key in north's group; north's key with an epoch that is not.
        let foreign = Statement::PointCommitted(committed(&world, 5, 1, Hex([0; 32])).await);
        ledger.append_unchecked(&east(), foreign).await.unwrap();
        let pin = Statement::PinBegun { run: RunId::from_random(5), points: vec![] };
        ledger.append_unchecked(&east(), pin).await.unwrap();
        for claimed in [0, 2, 99] {
            let other = Statement::PointCommitted(committed(&world, 6, claimed, Hex([0; 32])).await);
            ledger.append_unchecked(&world.source, other).await.unwrap();
        }
        assert_eq!(ledger.state().points, before, "{place}");
        assert!(ledger.state().pins.is_empty() && !ledger.state().epoch_in_doubt, "{place}");
        // Another site's group cannot be founded with it.
        let name = GroupName::new("other").unwrap();
        let mut other = Ledger::open(&world.store, &name).await.unwrap();
        let says = Statement::GroupFounded { group: name, primary: site("south") };
        assert!(other.append(&world.source, |_| Ok(says.clone())).await.is_err());
        other.append_unchecked(&world.source, says).await.unwrap();
        assert!(other.state().epochs.is_empty(), "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_agent_key_begins_and_ends_no_promotion_of_a_site() {
    let world = World::in_folder().await;
    let promotion = PromotionId::from_random(1);
    let mut north = SiteLedger::open(&world.store, &site("north")).await.unwrap();
    assert!(north.end(&world.source, promotion, "x", "thief").await.is_err());
    let chain: Chain<SiteStatement> = Chain::new(&world.store, "sites/north".into(), Kind::Ledger);
    let says = SiteStatement::PromotionEnded { promotion, result: "accepted".into(), who: "thief".into() };
    chain.append(Head::START, &world.source, says).await.unwrap().unwrap();
    north.refresh().await.unwrap();
    assert!(north.state().promotions.is_empty());
    // In a journal an agent's entry is read with its signer's role, so that the reader can refuse it.
    let journal = journal::journal::<SiteStatement>(&world.store, promotion);
    let says = SiteStatement::PromotionEnded { promotion, result: "accepted".into(), who: "thief".into() };
    journal.append(Head::START, &world.source, says).await.unwrap().unwrap();
    let (entries, _) = journal.read(Head::START).await.unwrap();
    let (_, by) = entries[0].said.as_ref().unwrap();
    assert_eq!(by.role, farsite_store::keys::Role::SourceAgent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_agent_key_puts_nothing_into_another_sites_log() {
    let world = World::in_folder().await;
    let (thief, timeline) = (east(), Hex([7; 8]));
    let run = RunId::from_random(3);
    let sealer = Sealer::begin(&world.store, &thief, &site("east"), &group(), run).await.unwrap();
    let header = |of: &str| SegmentHeader {
        version: 1,
        group: group(),
        site: site(of),
        item: farsite_model::ItemId::new(farsite_model::ItemKind::Mariadb, "main"),
        epoch: Epoch(1),
        timeline,
        sequence: 0,
        file: "bin.000001".into(),
        first: 0,
        last: 4,
        covers: None,
        content_key: sealer.content_key(),
    };
    logs::write(&world.store, &thief, &sealer, &header("east"), b"drop").await.unwrap();
    let segments = logs::list_of_site(&world.store, &group(), &timeline, None, &site("north")).await.unwrap();
    let error = logs::read(&world.store, &world.reader().opener, &segments[0]).await.unwrap_err();
    assert!(error.to_string().contains("it is of east"), "{error}");
    // Nor when it claims to be north's.
    std::fs::remove_file(world.path(&segments[0].key)).unwrap();
    logs::write(&world.store, &thief, &sealer, &header("north"), b"drop").await.unwrap();
    let error = logs::read(&world.store, &world.reader().opener, &segments[0]).await.unwrap_err();
    assert!(error.to_string().contains("may not speak for north"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_among_a_ledgers_objects_does_not_keep_a_failover_from_reading_it() {
    for (place, world) in World::everywhere().await {
        let ledger = founded_with_a_point(&world).await;
        for key in ["ledger/cloud/9999999999999999", "ledger/cloud/x", "ledger/cloud/3"] {
            world.store.backend.create(key, bytes::Bytes::from_static(b"garbage")).await.unwrap();
        }
        let mut again = Ledger::open(&world.store, &group()).await.unwrap();
        assert_eq!(again.state().points, ledger.state().points, "{place}");
        again.append(&world.operator, |_| Ok(epoch(2))).await.unwrap();
        // At the next number it is damage: agents stop, a failover goes on.
        let next = format!("ledger/cloud/{:016}", again.head().next);
        world.store.backend.create(&next, bytes::Bytes::from_static(b"garbage")).await.unwrap();
        again.refresh().await.unwrap();
        assert_eq!(again.state().damage.len(), 1, "{place}");
        again.append(&world.operator, |_| Ok(epoch(3))).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_keys_cannot_open_a_block() {
    let world = World::in_folder().await;
    Ledger::open(&world.store, &group())
        .await
        .unwrap()
        .append(&world.source, |_| Ok(founded()))
        .await
        .unwrap();
    run_to_commit(&world, &world.store, 1, b"the secret of the house".repeat(10_000)).await.unwrap();
    // An identity that is not among the recipients is refused at once.
    let stranger = age::x25519::Identity::generate();
    let error = Opener::new(&world.store, vec![stranger]).unwrap_err().to_string();
    assert!(error.contains("not among the store's recipients"), "{error}");
    // And nothing of the content, nor the block secret, lies in any object in the clear.
    for path in crate::common::objects(&world.objects) {
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(10).any(|w| w == b"the secret"), "{}", path.display());
    }
}
