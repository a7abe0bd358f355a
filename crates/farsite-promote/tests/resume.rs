//! A promotion that is cut off anywhere goes on from the store alone, on another machine, and ends as if it had not
//! been cut off.

mod common;
#[path = "common/drives.rs"]
mod drives;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use common::{World, cloud, north, south};
use drives::{driving, id, order, watched};
use farsite_model::{Epoch, GroupName};
use farsite_promote::drive::drive;
use farsite_promote::failover::{begin, open};
use farsite_promote::journal::StoreJournal;
use farsite_promote::people::Watch;
use farsite_runbook::journal::{JournalEntry, RunResult, StepStatus, What};
use farsite_store::ledger::SiteLedger;

/// Stops its thread for good after the entry that it waits for, as kill -9 would.
struct KillAfter {
    entries: u64,
    seen: AtomicU64,
    dead: Sender<()>,
}
impl Watch for KillAfter {
    fn journaled(&self, _: &GroupName, _: u64, _: &JournalEntry) {
        if self.seen.fetch_add(1, Ordering::SeqCst) + 1 == self.entries {
            let _ = self.dead.send(());
            loop {
                std::thread::park();
            }
        }
    }
}

/// Drives until the entry is durable; false when the promotion ended before.
fn drive_and_kill(world: &Arc<World>, entries: u64) -> bool {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (dead, died) = channel();
    let ended = dead.clone();
    let world = world.clone();
    let done = Arc::new(AtomicU64::new(0));
    let flag = done.clone();
    runtime.spawn(async move {
        let standby = world.standby("first").await;
        let promotion = begin(&standby, &world.operator, &order(1)).await.unwrap();
        let watch = Arc::new(KillAfter { entries, seen: AtomicU64::new(0), dead });
        drive(&standby, &world.operator, &promotion, &watched("first", watch)).await.unwrap();
        flag.store(1, Ordering::SeqCst);
        let _ = ended.send(());
    });
    died.recv_timeout(Duration::from_mins(1)).expect("the driver ends or is killed");
    runtime.shutdown_background();
    done.load(Ordering::SeqCst) == 0
}

async fn assert_ended_well(world: &World, what: &str) {
    world.assert_restored(1);
    let connection = rusqlite::Connection::open(world.south("cloud.db")).unwrap();
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT COUNT(*) FROM keystone_endpoint WHERE url LIKE 'http://south:%'"), 2, "{what}");
    assert_eq!(count("SELECT COUNT(*) FROM farsite_promotion"), 1, "{what}: rewritten once");
    let state = world.state().await;
    let epoch = state.current().unwrap();
    assert_eq!((epoch.epoch, &epoch.primary, epoch.promoted), (Epoch(2), &south(), true), "{what}");
    let site = SiteLedger::open(&world.store, &north()).await.unwrap();
    assert_eq!(site.state().promotions.len(), 1);
    assert_eq!(site.state().promotions[0].ended.as_ref().unwrap().0, "completed", "{what}");
    let entries = StoreJournal::reading(&world.store, id(1), &cloud()).entries().await.unwrap();
    let mut completed: Vec<&str> = entries
        .iter()
        .filter_map(|(_, entry)| match entry {
            JournalEntry::Outcome { step, what: What::Do, status: StepStatus::Completed, .. } => {
                Some(step.as_str())
            }
            _ => None,
        })
        .collect();
    let all = completed.len();
    completed.sort_unstable();
    completed.dedup();
    assert_eq!(all, completed.len(), "{what}: no step completed twice");
    let finished = entries
        .iter()
        .filter(|(_, e)| matches!(e, JournalEntry::Finished { result: RunResult::Completed, .. }));
    assert_eq!(finished.count(), 1, "{what}");
}

fn fresh_world(runtime: &tokio::runtime::Runtime) -> Arc<World> {
    runtime.block_on(async {
        let mut world = World::new().await;
        let variables = [
            ("endpoint_table", "keystone_endpoint"),
            ("old_endpoint", "http://north:"),
            ("new_endpoint", "http://south:"),
        ];
        world.variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        world.point(1).await;
        Arc::new(world)
    })
}

#[test]
fn a_driver_killed_after_every_entry_in_turn_ends_the_same_from_another_machine() {
    let next = AtomicU64::new(1);
    let over = AtomicU64::new(u64::MAX);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let entries = next.fetch_add(1, Ordering::SeqCst);
                    if entries > over.load(Ordering::SeqCst) {
                        return;
                    }
                    let runtime = tokio::runtime::Runtime::new().unwrap();
                    let world = fresh_world(&runtime);
                    if !drive_and_kill(&world, entries) {
                        over.fetch_min(entries, Ordering::SeqCst);
                        return;
                    }
                    runtime.block_on(async {
                        let standby = world.standby("second").await;
                        let promotion = open(&standby, &north()).await.unwrap();
                        let mut resumed = driving("second");
                        // Whoever killed it knows that it is dead.
                        resumed.others_are_dead = true;
                        let ended = drive(&standby, &world.operator, &promotion, &resumed).await.unwrap();
                        assert!(ended.is_completed(), "killed after {entries}: {ended:?}");
                        assert_ended_well(&world, &format!("killed after {entries}")).await;
                    });
                }
            });
        }
    });
    assert!(over.load(Ordering::SeqCst) > 15, "the promotion has many entries");
}

/// Holds its thread at the first intent of a step until it is let go.
struct Frozen {
    step: &'static str,
    reached: Sender<()>,
    thaw: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
}
impl Watch for Frozen {
    fn journaled(&self, _: &GroupName, _: u64, entry: &JournalEntry) {
        if matches!(entry, JournalEntry::Intent { step, attempt: 1, .. } if step == self.step) {
            let _ = self.reached.send(());
            let _ = self.thaw.lock().unwrap().recv_timeout(Duration::from_mins(1));
        }
    }
}

const MARKS: &str = "
name: marks
stages:
  - name: only
    steps:
      - id: mark
        action: command
        timeout: 1s
        with:
          run: [/bin/sh, -c, \"echo {{ promotion }} >> FILE\"]
          idempotent: true
";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_driver_that_was_frozen_and_taken_over_does_nothing_when_thawed() {
    let world = Arc::new(World::new().await);
    world.point(1).await;
    let marks = world.dir.path().join("marks");
    let runbook = world.dir.path().join("marks.yaml");
    std::fs::write(&runbook, MARKS.replace("FILE", &marks.display().to_string())).unwrap();
    let mut given = order(1);
    given.runbook = Some(runbook);
    let standby = world.standby("first").await;
    let promotion = begin(&standby, &world.operator, &given).await.unwrap();
    let (reached, is_frozen) = channel();
    let (let_go, thaw) = channel();
    let frozen = {
        let watch = Arc::new(Frozen { step: "mark", reached, thaw: std::sync::Mutex::new(thaw) });
        let (world, promotion, standby) = (world.clone(), promotion.clone(), standby.clone());
        tokio::spawn(
            async move { drive(&standby, &world.operator, &promotion, &watched("first", watch)).await },
        )
    };
    tokio::task::spawn_blocking(move || is_frozen.recv_timeout(Duration::from_secs(30)).unwrap())
        .await
        .unwrap();
    // The other one waits until the frozen one's time is over; nobody has to say that it is dead.
    let other = world.standby("second").await;
    let ended = drive(&other, &world.operator, &promotion, &driving("second")).await.unwrap();
    assert!(ended.is_completed(), "{ended:?}");
    let length = StoreJournal::reading(&world.store, id(1), &cloud()).entries().await.unwrap().len();
    let_go.send(()).unwrap();
    let told = frozen.await.unwrap().unwrap_err();
    assert!(told.to_string().contains("taken over"), "{told}");
    assert_eq!(std::fs::read_to_string(&marks).unwrap().lines().count(), 1, "the thawed one did nothing");
    let after = StoreJournal::reading(&world.store, id(1), &cloud()).entries().await.unwrap().len();
    assert_eq!(after, length, "and said nothing");
}
