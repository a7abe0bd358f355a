//! What damage is, beyond the table of `damage_table.rs`, and what is no damage.

use std::path::Path;

use crate::common::{World, founded, group, noise, run_to_commit};
use farsite_model::RunId;
use farsite_store::StoreError;
use farsite_store::backend::race;
use farsite_store::hex::Hex;
use farsite_store::ledger::Ledger;

/// Three points of one volume.
async fn filled(world: &World) {
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    for id in 1..=3 {
        // Nothing in common, so that each point has packs of its own.
        run_to_commit(world, &world.store, id, content(id)).await.unwrap();
    }
}

fn content(id: u64) -> Vec<u8> {
    noise(id, 400_000)
}

fn of_kind(world: &World, kind: &str) -> Vec<String> {
    let root = &world.objects;
    let key = |path: &Path| path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
    crate::common::objects(root).iter().map(|path| key(path)).filter(|key| key.starts_with(kind)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_well_signed_entry_in_the_place_of_another_is_found_out_by_the_chain() {
    let world = World::in_folder().await;
    filled(&world).await;
    // Signed for number 1 of this very ledger, and yet not what number 2 was written after.
    let chain: farsite_store::chain::Chain<farsite_store::ledger::Statement> =
        farsite_store::chain::Chain::new(
            &world.store,
            "ledger/cloud".into(),
            farsite_store::signed::Kind::Ledger,
        );
    let (entries, _) = chain.read(farsite_store::chain::Head::START).await.unwrap();
    let head = farsite_store::chain::Head { next: 1, prev: entries[0].hash };
    let path = world.path("ledger/cloud/0000000000000001");
    std::fs::remove_file(&path).unwrap();
    let says = farsite_store::ledger::Statement::PinBegun { run: RunId::from_random(5), points: vec![] };
    chain.append(head, &world.source, says).await.unwrap().unwrap();
    let ledger = Ledger::open(&world.store, &group()).await.unwrap();
    assert_eq!(ledger.state().damage.len(), 1);
    assert!(ledger.state().damage[0].object.ends_with("0000000000000001"));
    assert!(ledger.state().damage[0].why.contains("replaced"));
    assert_eq!(ledger.state().points.len(), 2, "what was written behind it still counts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_checks_itself_without_any_key() {
    let world = World::in_folder().await;
    filled(&world).await;
    let object = &of_kind(&world, "packs/")[0];
    let id: Hex<16> = object.rsplit('/').next().unwrap().parse().unwrap();
    let good = std::fs::read(world.path(object)).unwrap();
    farsite_store::pack::check_whole(&id, &good).unwrap();
    for offset in [0, 9, 17, 33, 48, good.len() / 2, good.len() - 48, good.len() - 33, good.len() - 1] {
        let mut bad = good.clone();
        bad[offset] ^= 0x10;
        assert!(farsite_store::pack::check_whole(&id, &bad).is_err(), "offset {offset}");
    }
    assert!(farsite_store::pack::check_whole(&id, &good[..good.len() - 60]).is_err(), "its end is cut off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_is_not_called_damage() {
    let world = World::in_folder().await;
    filled(&world).await;
    let ledger = Ledger::open(&world.store, &group()).await.unwrap();
    let point = ledger.state().points[0].clone();
    let mut shaky = world.reader();
    shaky.store = world.with_faults(std::sync::Arc::new(|operation| match operation.name {
        "get_range" => crate::common::faulty::Fate::NoAnswer,
        _ => crate::common::faulty::Fate::Pass,
    }));
    let manifest =
        farsite_store::manifest::Manifest::read(&world.store, &group(), point.id(), &point.said.manifest)
            .await
            .unwrap();
    let error =
        shaky.verify(&manifest.items[0].data, &farsite_store::read::ReadStats::default()).await.unwrap_err();
    assert!(matches!(error, StoreError::Backend(_)), "{error}");
    race::race(&world.store.backend, "x", 1, 2).await.unwrap();
}
