//! The store's keys change while it is used: recipients come and go, signing keys are added and retired. Proved by trying.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::common::{World, committed, epoch, founded, group, noise, restore, run_to_commit, site};
use farsite_model::RunId;
use farsite_store::amendments::{self, Amendment, Wrapped, roster, wrap_missing};
use farsite_store::hex::Hex;
use farsite_store::keys::{KeyRole, Role, Signer, key_id};
use farsite_store::ledger::{Ledger, Refusal, Statement};
use farsite_store::manifest::Manifest;
use farsite_store::read::Reader;
use farsite_store::seal::{Opener, Sealer};
use farsite_store::{Store, StoreError};

type Identity = age::x25519::Identity;

fn recipient(identity: &Identity) -> String {
    identity.to_public().to_string()
}

fn said() -> (String, String) {
    ("ann".to_owned(), "a test".to_owned())
}

fn added(world: &World, identity: &Identity) -> Amendment {
    let (who, reason) = said();
    let recipient = recipient(identity);
    let block_secret = world.reader().opener.wrap_block_secret(&recipient).unwrap();
    Amendment::RecipientAdded { recipient, name: "new".into(), block_secret, who, reason }
}

fn removed(identity: &Identity, single_recipient: bool) -> Amendment {
    let (who, reason) = said();
    Amendment::RecipientRemoved { recipient: recipient(identity), single_recipient, who, reason }
}

async fn amend(world: &World, amendment: Amendment) -> Result<u64, StoreError> {
    let answer = amendments::append(&world.store, &world.operator, |_| Ok(amendment.clone())).await;
    answer.map(|(number, _)| number)
}

async fn rotate(world: &World, store: &Store) -> Result<Wrapped, StoreError> {
    let recipients = store.format().recipients.clone();
    let opener = Opener::new(store, vec![world.identity.clone()])?;
    wrap_missing(store, &opener, &world.standby, &recipients, false, &()).await
}

/// A founded group with one point.
async fn with_a_point(world: &World) {
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    run_to_commit(world, &world.store, 1, noise(1, 200_000)).await.unwrap();
}

/// What an identity gets out of point `id`, from a store that it opens anew.
async fn opened(world: &World, identity: &Identity, id: u64) -> Result<Vec<u8>, StoreError> {
    let store = Store::open(world.store.backend.clone(), Some(&world.store.id)).await?;
    let reader = Reader::new(store.clone(), Arc::new(Opener::new(&store, vec![identity.clone()])?));
    let ledger = Ledger::open(&store, &group()).await?;
    let point = &ledger.state().points[id as usize - 1];
    let manifest = Manifest::read(&store, &group(), point.id(), &point.said.manifest).await?;
    reader.read_small(&manifest.items[0].data, 1 << 30).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_added_recipient_opens_old_and_new_points() {
    for (place, world) in World::everywhere().await {
        with_a_point(&world).await;
        let new = Identity::generate();
        assert!(opened(&world, &new, 1).await.is_err(), "{place}");
        amend(&world, added(&world, &new)).await.unwrap();
        // Not yet wrapped for it: that is said, and not called damage.
        let error = opened(&world, &new, 1).await.unwrap_err();
        assert!(matches!(error, StoreError::Key(_)), "{place}: {error}");
        assert!(error.to_string().contains("keys rotate"), "{error}");
        let done = rotate(&world, &world.store).await.unwrap();
        assert_eq!((done.content_keys, done.written, done.complete), (1, 1, 0), "{place}");
        let again = rotate(&world, &world.store).await.unwrap();
        assert_eq!((again.written, again.complete), (0, 1), "{place}: nothing is written twice");
        run_to_commit(&world, &world.store, 2, noise(2, 200_000)).await.unwrap();
        for id in [1, 2] {
            assert!(opened(&world, &new, id).await.unwrap() == noise(id, 200_000), "{place}: {id}");
            assert!(opened(&world, &world.identity, id).await.unwrap() == noise(id, 200_000), "{place}");
        }
        let roster = roster(&world.store).await.unwrap();
        assert_eq!(roster.recipients.iter().map(|line| line.opens).collect::<Vec<_>>(), [2, 2], "{place}");
        assert!(roster.only.is_empty() && roster.damage.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_recipient_opens_nothing_that_is_sealed_later() {
    for (place, world) in World::everywhere().await {
        let old = Identity::generate();
        amend(&world, added(&world, &old)).await.unwrap();
        with_a_point(&world).await;
        // The agent's own view of the store is older than the removal.
        let agents = Store::open(world.store.backend.clone(), None).await.unwrap();
        amend(&world, removed(&old, true)).await.unwrap();
        run_to_commit(&world, &agents, 2, noise(2, 200_000)).await.unwrap();
        assert!(opened(&world, &old, 1).await.unwrap() == noise(1, 200_000), "{place}: what it could before");
        let error = opened(&world, &old, 2).await.unwrap_err();
        assert!(matches!(error, StoreError::Key(_)), "{place}: {error}");
        // Nor after somebody wraps again for all of now.
        rotate(&world, &world.store).await.unwrap();
        assert!(opened(&world, &old, 2).await.is_err(), "{place}");
        assert!(opened(&world, &world.identity, 2).await.unwrap() == noise(2, 200_000), "{place}");
        let roster = roster(&world.store).await.unwrap();
        let line = &roster.recipients[1];
        assert_eq!((line.in_force, line.opens), (false, 1), "{place}");
        assert_eq!(roster.only[&recipient(&world.identity)].len(), 2, "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_recipient_and_the_last_operator_stay() {
    let world = World::in_folder().await;
    let second = Identity::generate();
    let refused = |error: StoreError| {
        assert!(matches!(error, StoreError::Refused(Refusal::Unsafe(_))), "{error}");
        error.to_string()
    };
    assert!(
        refused(amend(&world, removed(&world.identity, true)).await.unwrap_err()).contains("last recipient")
    );
    amend(&world, added(&world, &second)).await.unwrap();
    let error = amend(&world, removed(&world.identity, false)).await.unwrap_err();
    assert!(refused(error).contains("--single-recipient"));
    refused(amend(&world, added(&world, &second)).await.unwrap_err());
    amend(&world, removed(&world.identity, true)).await.unwrap();
    assert_eq!(world.store.format().recipients, [recipient(&second)]);
    let (who, reason) = said();
    let retire = |signer: &Signer| {
        let signer = key_id(&signer.public());
        let (store, operator, who, reason) = (&world.store, &world.operator, &who, &reason);
        async move { amendments::retire(store, operator, &signer, who, reason).await }
    };
    retire(&world.second_operator).await.unwrap();
    assert!(refused(retire(&world.operator).await.unwrap_err()).contains("last operator"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pinned_id_of_a_store_holds_through_all_amendments() {
    let world = World::in_folder().await;
    amend(&world, added(&world, &Identity::generate())).await.unwrap();
    let store = Store::open(world.store.backend.clone(), Some(&world.store.id)).await.unwrap();
    assert_eq!((store.id, store.format().recipients.len()), (world.store.id, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_operator_in_force_amends() {
    for (place, world) in World::everywhere().await {
        let thief = added(&world, &Identity::generate());
        for signer in [&world.source, &world.standby, &Signer::generate().0] {
            let answer = amendments::append(&world.store, signer, |_| Ok(thief.clone())).await;
            assert!(matches!(answer, Err(StoreError::Refused(Refusal::Role { .. }))), "{place}");
        }
        // Written all the same: it keeps its number, has no effect, and is no damage.
        for signer in [&world.source, &world.standby] {
            amendments::append_unchecked(&world.store, signer, thief.clone()).await.unwrap();
        }
        let format = world.store.format();
        assert_eq!((format.recipients.len(), format.amended.void.len()), (1, 2), "{place}");
        assert!(format.amended.damage.is_empty(), "{place}");
        // An operator's key that was added amends; one that was retired does not.
        let (new, _) = Signer::generate();
        let (who, reason) = said();
        let signer = KeyRole { key: new.public(), role: Role::Operator, site: None, name: "eve".into() };
        amend(&world, Amendment::SignerAdded { signer, who: who.clone(), reason: reason.clone() })
            .await
            .unwrap();
        let id = key_id(&world.second_operator.public());
        amendments::retire(&world.store, &new, &id, &who, &reason).await.unwrap();
        amendments::append_unchecked(&world.store, &world.second_operator, thief.clone()).await.unwrap();
        let store = Store::open(world.store.backend.clone(), None).await.unwrap();
        assert_eq!(store.format().recipients.len(), 1, "{place}");
        assert!(store.format().amended.damage.is_empty(), "{place}");
        assert!(
            Sealer::begin(&store, &world.source, &site("north"), &group(), RunId::from_random(1))
                .await
                .is_ok()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_amend_at_once_and_both_count() {
    for (place, world) in World::everywhere().await {
        let identities: Vec<Identity> = (0..6).map(|_| Identity::generate()).collect();
        let says: Vec<Amendment> = identities.iter().map(|identity| added(&world, identity)).collect();
        let stores: Vec<Store> = futures_open(&world, says.len()).await;
        let work = says.iter().zip(&stores).enumerate().map(|(i, (says, store))| {
            let signer = if i % 2 == 0 { &world.operator } else { &world.second_operator };
            amendments::append(store, signer, move |_| Ok(says.clone()))
        });
        let numbers: std::collections::BTreeSet<u64> =
            futures::future::join_all(work).await.into_iter().map(|answer| answer.unwrap().0).collect();
        assert_eq!(numbers.len(), 6, "{place}");
        world.store.refresh_keys().await.unwrap();
        assert_eq!(world.store.format().recipients.len(), 7, "{place}");
        // The same removal by two: one wins, the other is told.
        let says = removed(&identities[0], false);
        let both = [(&world.operator, &stores[0]), (&world.second_operator, &stores[1])]
            .map(|(signer, store)| amendments::append(store, signer, |_| Ok(says.clone())));
        let won = futures::future::join_all(both).await.into_iter().flatten().count();
        assert_eq!(won, 1, "{place}");
    }
}

async fn futures_open(world: &World, count: usize) -> Vec<Store> {
    let mut stores = Vec::new();
    for _ in 0..count {
        stores.push(Store::open(world.store.backend.clone(), None).await.unwrap());
    }
    stores
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_a_new_site_is_believed_by_whoever_had_the_store_open_before() {
    let world = World::in_folder().await;
    let readers = Store::open(world.store.backend.clone(), None).await.unwrap();
    let mut ledger = Ledger::open(&readers, &group()).await.unwrap();
    let (agent, _) = Signer::generate();
    let signer =
        KeyRole { key: agent.public(), role: Role::SourceAgent, site: Some(site("north")), name: "b".into() };
    let (who, reason) = said();
    amend(&world, Amendment::SignerAdded { signer, who, reason }).await.unwrap();
    let mut agents = Ledger::open(&world.store, &group()).await.unwrap();
    agents.append(&agent, |_| Ok(founded())).await.unwrap();
    ledger.refresh().await.unwrap();
    assert_eq!(ledger.state().epochs.len(), 1);
    assert!(ledger.state().damage.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retired_key_says_nothing_more_and_what_it_said_before_counts() {
    for (place, world) in World::everywhere().await {
        with_a_point(&world).await;
        let (who, reason) = said();
        let key = key_id(&world.source.public());
        let plan = amendments::plan_retirement(&world.store, &world.operator, &key).await.unwrap();
        assert_eq!(plan.entries["ledger/cloud"], 1, "{place}");
        assert_eq!(world.store.format().amended.head.next, 0, "{place}: a plan changes nothing");
        let (number, counts) =
            amendments::retire(&world.store, &world.operator, &key, &who, &reason).await.unwrap();
        assert_eq!((number, counts.entries["ledger/cloud"]), (0, 2), "{place}");
        let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
        assert_eq!(ledger.state().points.len(), 1, "{place}: what it said before");
        assert_eq!(restore(&world, &ledger.state().points[0]).await.unwrap(), noise(1, 200_000), "{place}");
        let next = Statement::PointCommitted(committed(&world, 2, 1, Hex([0; 32])).await);
        let error = ledger.append(&world.source, |_| Ok(next.clone())).await.unwrap_err();
        assert!(error.to_string().contains("was retired by ann: a test"), "{place}: {error}");
        ledger.append_unchecked(&world.source, next.clone()).await.unwrap();
        assert_eq!(ledger.state().points.len(), 1, "{place}");
        // A group that the thief founds now does not exist.
        let name = farsite_model::GroupName::new("other").unwrap();
        let mut other = Ledger::open(&world.store, &name).await.unwrap();
        let says = Statement::GroupFounded { group: name, primary: site("north") };
        other.append_unchecked(&world.source, says).await.unwrap();
        assert!(other.state().epochs.is_empty(), "{place}");
        // Nor where the ledger's own entry was deleted: the amendment names its number.
        std::fs::remove_file(world.path("ledger/cloud/0000000000000002")).unwrap();
        let ledger = Ledger::open(&world.store, &group()).await.unwrap();
        assert_eq!((ledger.state().points.len(), ledger.state().damage.len()), (1, 1), "{place}");
        // A new key for the same site goes on; an operator writes behind the damage.
        let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
        ledger.append(&world.operator, |_| Ok(epoch(2))).await.unwrap();
    }
}

/// One recipient in place of another, as `store keys` does it. Whatever is done already is not done again.
async fn exchange(world: &World, store: &Store, old: &Identity, new: &Identity) -> Result<(), StoreError> {
    store.refresh_keys().await?;
    if !store.format().recipients.contains(&recipient(new)) {
        let says = added(world, new);
        amendments::append(store, &world.operator, |_| Ok(says.clone())).await?;
    }
    rotate(world, store).await?;
    if store.format().recipients.contains(&recipient(old)) {
        let says = removed(old, false);
        amendments::append(store, &world.operator, |_| Ok(says.clone())).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_of_recipients_cut_off_at_any_write_locks_nobody_out() {
    let mut cut = 1;
    loop {
        let world = World::in_folder().await;
        let (old, new) = (Identity::generate(), Identity::generate());
        amend(&world, added(&world, &old)).await.unwrap();
        with_a_point(&world).await;
        let (store, writes) = world.cut_off(cut);
        let ended = exchange(&world, &store, &old, &new).await.is_ok();
        let uncut = writes.load(Ordering::SeqCst) < cut;
        // What was there opens, and what is sealed now opens for all of now.
        let now = Store::open(world.store.backend.clone(), Some(&world.store.id)).await.unwrap();
        assert!(now.format().amended.damage.is_empty(), "cut off at write {cut}");
        for identity in [&world.identity, &old] {
            assert!(
                opened(&world, identity, 1).await.unwrap() == noise(1, 200_000),
                "cut off at write {cut}"
            );
        }
        run_to_commit(&world, &now, 2, noise(2, 200_000)).await.unwrap();
        for identity in [&world.identity, &old, &new] {
            let is_one = now.format().recipients.contains(&recipient(identity));
            let opens = opened(&world, identity, 2).await.is_ok_and(|bytes| bytes == noise(2, 200_000));
            assert_eq!(opens, is_one, "cut off at write {cut}");
        }
        exchange(&world, &world.store, &old, &new).await.unwrap();
        run_to_commit(&world, &world.store, 3, noise(3, 200_000)).await.unwrap();
        for id in 1..=3 {
            assert!(
                opened(&world, &new, id).await.unwrap() == noise(id, 200_000),
                "cut off at write {cut}: {id}"
            );
        }
        assert!(opened(&world, &old, 3).await.is_err(), "cut off at write {cut}");
        if uncut {
            assert!(ended);
            break;
        }
        cut += 1;
    }
    assert!(cut > 3, "{cut}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retirement_cut_off_at_any_write_is_gone_on_with() {
    let mut cut = 1;
    loop {
        let world = World::in_folder().await;
        with_a_point(&world).await;
        let (who, reason) = said();
        let key = key_id(&world.source.public());
        let (store, writes) = world.cut_off(cut);
        let ended = amendments::retire(&store, &world.operator, &key, &who, &reason).await.is_ok();
        let uncut = writes.load(Ordering::SeqCst) < cut;
        let done = amendments::retire(&world.store, &world.operator, &key, &who, &reason).await;
        // Only when all of it was done is there nothing left to retire.
        let was_done =
            matches!(&done, Err(StoreError::Refused(Refusal::Unsafe(why))) if why.contains("is in force"));
        assert!(done.is_ok() || was_done, "cut off at write {cut}: {done:?}");
        let store = Store::open(world.store.backend.clone(), Some(&world.store.id)).await.unwrap();
        assert!(store.format().in_force(&key).is_none(), "cut off at write {cut}");
        let mut ledger = Ledger::open(&store, &group()).await.unwrap();
        let state = ledger.state();
        assert_eq!(
            (state.points.len(), state.retired.len(), state.damage.len()),
            (1, 1, 0),
            "cut off at {cut}"
        );
        assert_eq!(ledger.head().next, 3, "cut off at write {cut}: its end stands there once");
        assert!(restore(&world, &ledger.state().points[0]).await.unwrap() == noise(1, 200_000));
        let next = Statement::PointCommitted(committed(&world, 2, 1, Hex([0; 32])).await);
        assert!(ledger.append(&world.source, |_| Ok(next.clone())).await.is_err(), "cut off at write {cut}");
        if uncut {
            assert!(ended);
            break;
        }
        cut += 1;
    }
    assert!(cut > 2, "{cut}");
}
