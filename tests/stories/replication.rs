//! Stories of one site being replicated: what a point holds, what happens when an item fails or a clock is wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farsite_model::clock::{Clock, SkewedClock, SystemClock};
use farsite_model::{Consistency, Epoch, ItemId, PromotionId};
use farsite_replicate::agent::{self, AgentOptions, Board};
use farsite_replicate::run::{Observer, RunOptions};
use farsite_replicate::{ReplicateError, restore, status};
use farsite_scenarios::{TwoSites, cloud, noise, run, site};
use farsite_store::StoreError;
use farsite_store::ingest::RunStats;
use farsite_store::ledger::{GroupState, Ledger, Statement};
use farsite_store::read::ReadStats;
use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;

const TWO_VOLUMES: &str =
    "  - cinder: { path: NORTH/volumes }\n  - files: { name: keys, paths: [NORTH/keys] }\n";

/// Two volumes and a folder of keys.
async fn two_volumes() -> TwoSites {
    let sites = TwoSites::founded(TWO_VOLUMES).await;
    std::fs::create_dir_all(sites.data("volumes")).unwrap();
    std::fs::create_dir_all(sites.data("keys")).unwrap();
    std::fs::write(sites.data("volumes/volume-a"), noise(1, 3 << 20)).unwrap();
    std::fs::write(sites.data("volumes/volume-b"), noise(2, 3 << 20)).unwrap();
    std::fs::write(sites.data("keys/0"), b"not a key").unwrap();
    sites
}

fn item(name: &str) -> ItemId {
    ItemId::parse(name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_replicated_is_what_is_restored() {
    let sites = two_volumes().await;
    let first = sites.replicate().await;
    assert!(first.whole && first.items == 3, "{first:?}");
    let mut bytes = noise(1, 3 << 20);
    bytes[1 << 20..(1 << 20) + 4096].fill(7);
    std::fs::write(sites.data("volumes/volume-a"), &bytes).unwrap();
    let second = sites.replicate().await;
    assert_eq!(second.changed_bytes, 65536, "one block of one volume has changed");
    assert!(second.shipped_bytes < first.shipped_bytes / 20, "{second:?}");

    let manifest = sites.manifest(second.point).await;
    let to = sites.path("restored");
    let reader = sites.reader().await;
    for one in &manifest.items {
        let to = to.join(one.id.name());
        restore::item(&reader, one, &to, &restore::unguarded(), &ReadStats::default()).await.unwrap();
    }
    assert!(std::fs::read(to.join("volume-a")).unwrap() == bytes);
    assert!(std::fs::read(to.join("volume-b")).unwrap() == noise(2, 3 << 20));
    let key = walk(&to.join("keys")).into_iter().find(|p| p.ends_with("keys/0")).unwrap();
    assert_eq!(std::fs::read(key).unwrap(), b"not a key");
    // The older point is as it was.
    let manifest = sites.manifest(first.point).await;
    let old = manifest.item(&item("cinder/volume-a")).unwrap();
    restore::item(&reader, old, &to.join("old"), &restore::unguarded(), &ReadStats::default()).await.unwrap();
    assert!(std::fs::read(to.join("old")).unwrap() == noise(1, 3 << 20));
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_item_makes_the_point_partial_and_is_carried_with_its_own_capture_time() {
    let sites = two_volumes().await;
    let first = sites.replicate().await;
    // One volume becomes something that is no file.
    sites.policy(&TWO_VOLUMES.replace("NORTH/keys]", "NORTH/gone]"));
    std::fs::write(sites.data("volumes/volume-a"), noise(3, 3 << 20)).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let second = sites.replicate().await;
    assert!(!second.whole && second.failed.len() == 1 && second.items == 3, "{second:?}");
    let (old, new) = (sites.manifest(first.point).await, sites.manifest(second.point).await);
    let (old_keys, keys) = (old.item(&item("files/keys")).unwrap(), new.item(&item("files/keys")).unwrap());
    assert_eq!(keys.carried_from, Some(first.point));
    assert_eq!(keys.stamp, old_keys.stamp, "the version that is carried keeps its own capture time");
    assert!(second.exposure_at_commit_s > 1.4, "exposure counts the oldest item: {second:?}");
    // A failover does not take it by itself.
    let ledger = sites.ledger().await;
    assert_eq!(ledger.state().default_point().unwrap().id(), first.point);
    // A second failure still names the point that the version is really of.
    let third = sites.replicate().await;
    let third = sites.manifest(third.point).await;
    assert_eq!(third.item(&item("files/keys")).unwrap().carried_from, Some(first.point));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_suddenly_empty_is_a_failure_and_not_a_deletion() {
    let sites = two_volumes().await;
    sites.replicate().await;
    std::fs::rename(sites.data("volumes"), sites.data("unmounted")).unwrap();
    std::fs::create_dir(sites.data("volumes")).unwrap();
    let second = sites.replicate().await;
    assert!(!second.whole && second.failed.len() == 2, "{second:?}");
    assert!(second.failed[0].why.contains("is it mounted?"), "{second:?}");
    assert_eq!(second.items, 3, "what was there is carried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_empty_when_a_promotion_was_given_back_is_no_deletion_either() {
    let sites = two_volumes().await;
    sites.replicate().await;
    let operator = farsite_replicate::connect::operator(&sites.config("south")).unwrap();
    let mut ledger = sites.ledger().await;
    for primary in ["south", "north"] {
        let begun = |state: &GroupState| Statement::EpochBegun {
            epoch: state.epoch().next(),
            primary: site(primary),
            promotion: PromotionId::from_random(1),
            point: None,
            logs: Vec::new(),
            who: "ann".into(),
            reason: "a test".into(),
        };
        ledger.append(&operator, |state| Ok(begun(state))).await.unwrap();
    }
    // The site comes back, and its share is not mounted yet.
    std::fs::rename(sites.data("volumes"), sites.data("unmounted")).unwrap();
    std::fs::create_dir(sites.data("volumes")).unwrap();
    let second = sites.replicate().await;
    assert!(!second.whole && second.failed[0].why.contains("is it mounted?"), "{second:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_volume_is_absent_and_the_point_is_whole() {
    let sites = two_volumes().await;
    sites.replicate().await;
    std::fs::remove_file(sites.data("volumes/volume-b")).unwrap();
    let second = sites.replicate().await;
    assert!(second.whole && second.items == 2, "{second:?}");
    assert_eq!(second.absent, [item("cinder/volume-b")]);
    // It comes back under the same name: what it was compared with is forgotten, and it is sent in full.
    std::fs::write(sites.data("volumes/volume-b"), noise(2, 3 << 20)).unwrap();
    let third = sites.replicate().await;
    assert!(third.shipped_bytes > 3 << 20, "{third:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_that_is_less_consistent_than_the_policy_demands_is_not_used() {
    let sites = TwoSites::founded("  - cinder: { path: NORTH/volumes, consistency: application }\n").await;
    std::fs::create_dir_all(sites.data("volumes")).unwrap();
    std::fs::write(sites.data("volumes/volume-a"), noise(1, 1 << 20)).unwrap();
    let group = sites.group(Arc::new(SystemClock)).await;
    let error = run(group, RunOptions::default()).await.unwrap_err().to_string();
    assert!(error.contains("the policy demands application"), "{error}");
    assert!(sites.ledger().await.state().points.is_empty(), "nothing was committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_freeze_before_and_thaw_after_whatever_happens() {
    let items = "  - cinder:
      path: NORTH/volumes
      hooks: { before-capture: ['echo freeze >> NORTH/log'], after-capture: ['echo thaw >> NORTH/log'] }
";
    let sites = TwoSites::founded(items).await;
    std::fs::create_dir_all(sites.data("volumes")).unwrap();
    std::fs::write(sites.data("volumes/volume-a"), noise(1, 1 << 20)).unwrap();
    let report = sites.replicate().await;
    assert_eq!(std::fs::read_to_string(sites.data("log")).unwrap(), "freeze\nthaw\n");
    assert_eq!(report.weakest, Consistency::Crash, "what was frozen is one instant of its storage");
    // A run was killed while it was frozen: the next one thaws first.
    let note = sites.path("north/state/groups/cloud/.frozen");
    std::fs::create_dir_all(&note).unwrap();
    std::fs::write(note.join("left"), "cinder/main").unwrap();
    sites.replicate().await;
    let log = std::fs::read_to_string(sites.data("log")).unwrap();
    assert_eq!(log, "freeze\nthaw\nthaw\nfreeze\nthaw\n");
}

/// Jumps the clock when the run comes to a stage.
struct Jump {
    clock: SkewedClock,
    at: &'static str,
    to: SignedDuration,
}
impl Observer for Jump {
    fn stage(&self, words: &str) {
        if words.starts_with(self.at) {
            self.clock.jump_to(self.to);
        }
    }
    fn counters(&self, _: Arc<RunStats>) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_8_the_rpo_is_never_better_than_the_truth_whatever_the_source_clock_does() {
    let hour = SignedDuration::from_secs(3600);
    type Case = (&'static str, SignedDuration, Option<(&'static str, SignedDuration)>);
    let cases: [Case; 7] = [
        ("right", SignedDuration::ZERO, None),
        ("an hour ahead", hour, None),
        ("an hour behind", -hour, None),
        ("jumps ahead before capture", SignedDuration::ZERO, Some(("capturing", hour))),
        ("jumps back before capture", SignedDuration::ZERO, Some(("capturing", -hour))),
        ("jumps ahead before commit", SignedDuration::ZERO, Some(("making it durable", hour))),
        ("jumps back before commit", hour, Some(("making it durable", -hour))),
    ];
    for (name, offset, jump) in cases {
        let sites = two_volumes().await;
        let clock = SkewedClock::ahead_by(offset);
        let mut options = RunOptions::default();
        if let Some((at, to)) = jump {
            options.observer = Arc::new(Jump { clock: clock.clone(), at, to });
        }
        let group = sites.group(Arc::new(clock)).await;
        // The true age of the oldest capture is at least the time since the run began, less what came before capture:
        // the state that is captured cannot be younger than the moment when the run ends its captures.
        let truly_begun = std::time::Instant::now();
        run(group, options).await.unwrap();
        let truly_ended = std::time::Instant::now();
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        let store = sites.store().await;
        let now = store.now().await.unwrap();
        let least = truly_ended.elapsed();
        let ledger = sites.ledger().await;
        let policy = sites.the_policy();
        let status =
            status::of_group(&store, &site("south"), ledger.state(), Some(&policy), now).await.unwrap();
        let reported = status.exposure_s.unwrap();
        assert!(reported >= least.as_secs_f64(), "{name}: {reported} s reported, {least:?} true");
        let most = truly_begun.elapsed().as_secs_f64() + 7205.0;
        assert!(reported <= most, "{name}: {reported} s is no measurement any more");
        if offset.is_zero() && jump.is_none() {
            assert!(
                reported < truly_begun.elapsed().as_secs_f64() + 1.0,
                "a right clock costs next to nothing"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_was_stopped_goes_on_without_sending_complete_packs_again() {
    let sites = TwoSites::founded("  - volume: { path: NORTH/big }\n").await;
    std::fs::write(sites.data("big"), noise(9, 96 << 20)).unwrap();
    /// Stops the run when some packs are durable.
    struct StopAfter {
        cancel: Arc<AtomicBool>,
    }
    impl Observer for StopAfter {
        fn stage(&self, _: &str) {}
        fn counters(&self, stats: Arc<RunStats>) {
            let cancel = self.cancel.clone();
            std::thread::spawn(move || {
                while stats.packs.load(Ordering::Relaxed) < 1 {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                cancel.store(true, Ordering::Relaxed);
            });
        }
    }
    let cancel = Arc::new(AtomicBool::new(false));
    let observer = Arc::new(StopAfter { cancel: cancel.clone() });
    let group = sites.group(Arc::new(SystemClock)).await;
    let stopped = run(group, RunOptions { full: false, cancel, observer }).await.unwrap_err();
    assert!(matches!(stopped, ReplicateError::Store(StoreError::Cancelled)), "{stopped}");
    assert!(sites.ledger().await.state().points.is_empty());
    // Uploads that were under way when the run stopped still land.
    let count = || walk(&sites.path("south/replica/packs")).len() as u64;
    let mut packs = count();
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        if count() == packs {
            break;
        }
        packs = count();
    }
    assert!(packs >= 1);
    let report = sites.replicate().await;
    assert!(report.resumed && report.whole, "{report:?}");
    let all = walk(&sites.path("south/replica/packs")).len() as u64;
    assert_eq!(all, packs + report.packs, "no pack was sent twice");
    let sent: u64 =
        walk(&sites.path("south/replica/packs")).iter().map(|p| p.metadata().unwrap().len()).sum();
    assert!(sent < (96 << 20) + (40 << 20), "{sent} bytes for 96 MiB of data");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_at_a_time_replicates_a_group() {
    let sites = two_volumes().await;
    let held = sites.group(Arc::new(SystemClock)).await;
    let (config, policy) = (sites.config("north"), sites.the_policy());
    let second =
        farsite_replicate::group::Group::open(&config, &policy, &site("south"), Arc::new(SystemClock)).await;
    let error = second.err().unwrap().to_string();
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    drop(held);
    sites.group(Arc::new(SystemClock)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_database_is_captured_while_it_is_written() {
    let sites = TwoSites::founded("  - sqlite: { path: NORTH/cloud.db }\n").await;
    let path = sites.data("cloud.db");
    let writer = rusqlite::Connection::open(&path).unwrap();
    writer.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE beat (n INTEGER PRIMARY KEY)").unwrap();
    for n in 0..500 {
        writer.execute("INSERT INTO beat VALUES (?1)", [n]).unwrap();
    }
    let report = sites.replicate().await;
    assert_eq!(report.weakest, Consistency::Application);
    writer.execute("INSERT INTO beat VALUES (1000)", []).unwrap();
    let manifest = sites.manifest(report.point).await;
    let to = sites.path("restored.db");
    let reader = sites.reader().await;
    restore::item(&reader, &manifest.items[0], &to, &restore::unguarded(), &ReadStats::default())
        .await
        .unwrap();
    let restored = rusqlite::Connection::open(&to).unwrap();
    let (count, most): (i64, i64) = restored
        .query_row("SELECT count(*), max(n) FROM beat", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    assert_eq!((count, most), (500, 499));
    let ledger = sites.ledger().await;
    assert_eq!(*ledger.group(), cloud());
    let _: &dyn Clock = &SystemClock;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_was_fenced_goes_on_when_its_site_is_given_the_group_back() {
    let sites = two_volumes().await;
    let (config, policy) = (sites.config("north"), sites.the_policy());
    let board = Arc::new(Board::default());
    let cancel = CancellationToken::new();
    let options = AgentOptions {
        load: Arc::new(move || Ok(((*config).clone(), vec![policy.clone()]))),
        clock: Arc::new(SystemClock),
        cancel: cancel.clone(),
        reload: Arc::default(),
        board: board.clone(),
    };
    let agent = tokio::spawn(agent::run(options));
    let operator = farsite_replicate::connect::operator(&sites.config("south")).unwrap();
    let mut ledger = sites.ledger().await;
    let points = async |ledger: &mut Ledger, epoch: u64| {
        for _ in 0..300 {
            ledger.refresh().await.unwrap();
            if ledger.state().points.iter().any(|p| p.said.epoch == Epoch(epoch)) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("no point of epoch {epoch}: {:?}", ledger.state().epochs);
    };
    points(&mut ledger, 1).await;
    let begin = |primary: &str, state: &GroupState| Statement::EpochBegun {
        epoch: state.epoch().next(),
        primary: site(primary),
        promotion: PromotionId::from_random(1),
        point: None,
        logs: Vec::new(),
        who: "ann".into(),
        reason: "a test".into(),
    };
    ledger.append(&operator, |state| Ok(begin("south", state))).await.unwrap();
    let fenced = || board.read().values().any(|doing| doing.fenced);
    for _ in 0..100 {
        if fenced() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(fenced(), "the agent has seen that another site is primary");
    ledger.append(&operator, |state| Ok(begin("north", state))).await.unwrap();
    points(&mut ledger, 3).await;
    assert!(!fenced() && ledger.state().points.iter().all(|p| p.said.epoch != Epoch(2)));
    cancel.cancel();
    agent.await.unwrap().unwrap();
}
