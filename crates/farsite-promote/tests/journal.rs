//! The journal in the store: who may write, what counts, and that numbers never shift.

mod common;

use std::sync::Arc;

use common::{World, cloud};
use farsite_model::{Level, Mode, PromotionId};
use farsite_promote::journal::{StoreJournal, groups_of};
use farsite_runbook::journal::{Journal, JournalEntry, JournalError, RunResult, What};
use farsite_runbook::state::RunState;
use farsite_store::keys::Signer;
use jiff::Timestamp;

fn id() -> PromotionId {
    PromotionId::from_random(77)
}

fn begun() -> JournalEntry {
    JournalEntry::Begun {
        promotion: id(),
        runbook: "data".into(),
        runbook_text: "{}".into(),
        mode: Mode::Failover,
        level: Level::Data,
        variables: [("at".to_owned(), "a variable".to_owned())].into(),
        who: "ann".into(),
    }
}

fn intent(driver: &str, seconds: i64) -> JournalEntry {
    JournalEntry::Intent {
        step: "a".into(),
        what: What::Do,
        attempt: 1,
        driver: driver.into(),
        deadline: Timestamp::now() + jiff::SignedDuration::from_secs(seconds),
    }
}

fn journal(world: &World, signer: &Arc<Signer>) -> StoreJournal {
    StoreJournal::writing(&world.store, id(), &cloud(), signer)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_entry_can_be_read_back() {
    let world = World::new().await;
    let at = Timestamp::now();
    let who = || "ann".to_owned();
    let all = [
        begun(),
        intent("d", 5),
        JournalEntry::Takeover { driver: "e".into(), from: "d".into(), reason: "gone".into(), at },
        JournalEntry::Gate { step: "a".into(), answer: true, who: who(), at },
        JournalEntry::Skipped { step: "a".into(), who: who(), reason: "r".into(), at },
        JournalEntry::CancelRequested { who: who(), at },
        JournalEntry::Finished { result: RunResult::Failed, driver: "e".into(), at },
    ];
    let writer = journal(&world, &world.operator);
    for (number, entry) in all.iter().enumerate() {
        writer.append(number as u64, entry).await.unwrap();
    }
    let read = StoreJournal::reading(&world.store, id(), &cloud()).entries().await.unwrap();
    assert_eq!(read.into_iter().map(|(_, entry)| entry).collect::<Vec<_>>(), all);
    assert_eq!(groups_of(&world.store, id()).await.unwrap(), [cloud()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_of_a_number_one_wins() {
    let world = World::new().await;
    let (one, two) = (journal(&world, &world.operator), journal(&world, &world.second_operator));
    one.append(0, &begun()).await.unwrap();
    let (mine, theirs) = (intent("one", 5), intent("two", 5));
    let (a, b) = tokio::join!(one.append(1, &mine), two.append(1, &theirs));
    assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
    let loser = a.err().or(b.err()).unwrap();
    assert!(matches!(loser, JournalError::Taken { number: 1 }), "{loser}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_source_agent_writes_keeps_its_number_and_says_nothing() {
    let world = World::new().await;
    let operator = journal(&world, &world.operator);
    operator.append(0, &begun()).await.unwrap();
    operator.append(1, &intent("d", 5)).await.unwrap();
    let stolen = JournalEntry::CancelRequested { who: "thief".into(), at: Timestamp::now() };
    journal(&world, &world.source).append(2, &stolen).await.unwrap();
    let refused = operator.append(2, &intent("d", 5)).await.unwrap_err();
    assert!(matches!(refused, JournalError::Taken { .. }), "{refused}");
    let entries = operator.entries().await.unwrap();
    let state = RunState::fold(&entries);
    assert_eq!((state.next, &state.cancelled), (3, &None));
    assert_eq!(state.open_intents().count(), 1, "the intent before it still counts");
    let record = operator.record().await.unwrap();
    assert!(record[2].said.as_ref().unwrap_err().contains("source agent"), "{:?}", record[2].said);
    operator
        .append(
            3,
            &JournalEntry::Finished {
                result: RunResult::Completed,
                driver: "d".into(),
                at: Timestamp::now(),
            },
        )
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_whose_bytes_were_changed_does_not_shift_the_others() {
    let world = World::new().await;
    let operator = journal(&world, &world.operator);
    for (number, entry) in [begun(), intent("d", 5), intent("d", 6)].iter().enumerate() {
        operator.append(number as u64, entry).await.unwrap();
    }
    world.spoil_object(&format!("journal/{}/cloud/{:016}", id(), 1));
    let fresh = journal(&world, &world.operator);
    let entries = fresh.entries().await.unwrap();
    assert_eq!(entries.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(matches!(entries[2].1, JournalEntry::Intent { .. }), "{:?}", entries[2].1);
    fresh.append(3, &intent("d", 7)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_driver_that_is_known_to_be_dead() {
    let world = World::new().await;
    let operator = journal(&world, &world.operator);
    operator.append(0, &begun()).await.unwrap();
    operator.append(1, &intent("an old driver", 3600)).await.unwrap();
    let deadline = async |journal: &StoreJournal| {
        let entries = journal.entries().await.unwrap();
        RunState::fold(&entries).open_intents().map(|(_, open)| open.deadline).next().unwrap()
    };
    assert!(deadline(&operator).await > Timestamp::now(), "nothing says that it is dead");
    let told = journal(&world, &world.operator).driven_by("me", true);
    assert!(deadline(&told).await <= Timestamp::now());
    let own = journal(&world, &world.operator).driven_by("an old driver", true);
    assert!(deadline(&own).await > Timestamp::now(), "one's own deadline always counts");
}
