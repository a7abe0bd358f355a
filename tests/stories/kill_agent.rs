//! The agent is killed at any instant: what it acknowledged stays, the store is never damaged, and the next run goes on
//! with the packs that were complete.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use farsite_model::{PointId, RunId};
use farsite_replicate::restore;
use farsite_scenarios::process::{Running, comes_true};
use farsite_scenarios::{Random, TwoSites, cloud, said, seed};
use farsite_store::read::ReadStats;

const KILLS: u64 = 50;
const PAGE: usize = 4096;
/// Three packs of the smallest size for each volume.
const VOLUME_BYTES: usize = 24 << 20;
const VOLUMES: [&str; 2] = ["volume-a", "volume-b"];
/// The smallest packs that there are (8 MiB), so that a run is killed between some of them.
const ITEMS: &str =
    "  - sqlite: { path: NORTH/cloud.db }\n  - cinder: { path: NORTH/volumes }\nmemory: 64MiB\n";

/// Writes numbered rows and numbered pages, faster than a run can follow.
struct Writer {
    stop: Arc<AtomicBool>,
    /// Held while one number is written: whoever takes it stops the clock of the site.
    quiet: Arc<Mutex<()>>,
    /// The newest number that is in the database and in both volumes.
    written: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    fn start(sites: &TwoSites, random: Random) -> Self {
        let (stop, quiet, written) = (Arc::default(), Arc::default(), Arc::default());
        let database = sites.data("cloud.db");
        let volumes = VOLUMES.map(|name| sites.data("volumes").join(name));
        let thread = {
            let (stop, quiet, written) = (Arc::clone(&stop), Arc::clone(&quiet), Arc::clone(&written));
            std::thread::spawn(move || write(&database, &volumes, random, &stop, &quiet, &written))
        };
        Self { stop, quiet, written, thread: Some(thread) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_some_and(|e| e.is_ok()), "the writer wrote to the end");
    }
}

fn write(
    database: &Path,
    volumes: &[PathBuf],
    mut random: Random,
    stop: &AtomicBool,
    quiet: &Mutex<()>,
    written: &AtomicU64,
) {
    let database = rusqlite::Connection::open(database).unwrap();
    database.busy_timeout(Duration::from_secs(10)).unwrap();
    let volumes: Vec<std::fs::File> =
        volumes.iter().map(|path| std::fs::File::options().write(true).open(path).unwrap()).collect();
    for n in 1.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let one_at_a_time = quiet.lock().unwrap();
        database.execute("INSERT INTO beat VALUES (?1)", [n]).unwrap();
        for volume in &volumes {
            let index = random.between(0, (VOLUME_BYTES / PAGE) as u64);
            volume.write_all_at(&page(index, n as u64, &mut random), index * PAGE as u64).unwrap();
        }
        written.store(n as u64, Ordering::Release);
        drop(one_at_a_time);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A page says where it belongs and when it was written.
fn page(index: u64, number: u64, random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    random.fill(&mut bytes);
    bytes[..8].copy_from_slice(&index.to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes
}

async fn a_site(random: &mut Random) -> TwoSites {
    let sites = TwoSites::founded(ITEMS).await;
    std::fs::create_dir(sites.data("volumes")).unwrap();
    let database = rusqlite::Connection::open(sites.data("cloud.db")).unwrap();
    database
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; CREATE TABLE beat (n INTEGER PRIMARY KEY)",
        )
        .unwrap();
    for name in VOLUMES {
        let pages = (0..VOLUME_BYTES / PAGE).flat_map(|index| page(index as u64, 0, random));
        std::fs::write(sites.data("volumes").join(name), pages.collect::<Vec<u8>>()).unwrap();
    }
    sites
}

/// All of a volume is written anew: the next run has some packs to send.
fn write_all_of_a_volume(sites: &TwoSites, writer: &Writer, random: &mut Random) {
    let _quiet = writer.quiet.lock().unwrap();
    let number = writer.written.load(Ordering::Acquire);
    let volume = std::fs::File::options().write(true).open(sites.data("volumes").join(VOLUMES[0])).unwrap();
    for index in 0..(VOLUME_BYTES / PAGE) as u64 {
        volume.write_all_at(&page(index, number, random), index * PAGE as u64).unwrap();
    }
}

/// The lines, one for each complete pack, in the logs of runs under way.
fn packs_of_runs_under_way(sites: &TwoSites) -> BTreeSet<String> {
    let runs = sites.path("north/state/groups/cloud/south/runs");
    let logs = std::fs::read_dir(runs).into_iter().flatten().flatten().map(|entry| entry.path());
    let logs = logs.filter(|path| path.extension().is_some_and(|e| e == "packs"));
    // A log goes away when its run ends.
    let texts = logs.filter_map(|log| std::fs::read_to_string(log).ok());
    texts.flat_map(|log| log.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// What was seen of the site's points and runs so far.
#[derive(Default)]
struct Seen {
    acknowledged: Vec<PointId>,
    /// Runs that were killed with complete packs.
    killed_with_packs: BTreeSet<RunId>,
}

impl Seen {
    /// After a kill: nothing that was acknowledged is gone, and the ledger is sound.
    async fn look(&mut self, sites: &TwoSites, agent_said: &str, when: &str) {
        let ledger = sites.ledger().await;
        let state = ledger.state();
        assert!(state.damage.is_empty(), "{when}: {:?}", state.damage);
        assert!(state.void.is_empty(), "{when}: {:?}", state.void);
        let there: Vec<PointId> =
            state.points.iter().map(farsite_store::ledger::CommittedPoint::id).collect();
        for point in acknowledged(agent_said) {
            assert!(there.contains(&point), "{when}: the agent said that {point} was committed");
        }
        assert!(there.starts_with(&self.acknowledged), "{when}: {:?} became {there:?}", self.acknowledged);
        self.acknowledged = there;
        self.keep_logs_of_runs(sites);
    }

    /// A second name for the log of a run under way: what later processes of the same run add to it can be read after
    /// the run has ended and removed its own.
    fn keep_logs_of_runs(&mut self, sites: &TwoSites) {
        let runs = sites.path("north/state/groups/cloud/south/runs");
        for entry in std::fs::read_dir(runs).into_iter().flatten().flatten() {
            let path = entry.path();
            let Some(run) = path.file_name().and_then(|n| n.to_str()?.strip_suffix(".packs")) else {
                continue;
            };
            let kept = sites.path("kept").join(run);
            if !kept.exists() {
                std::fs::hard_link(&path, &kept).unwrap();
            }
            if !packs_of(&kept).is_empty() {
                self.killed_with_packs.insert(run.parse().unwrap());
            }
        }
    }
}

/// What an agent's log calls committed.
fn acknowledged(log: &str) -> impl Iterator<Item = PointId> {
    let lines = log.lines().filter(|line| line.contains("recovery point committed"));
    lines.filter_map(|line| line.split("point=").nth(1)?.split_whitespace().next()?.parse().ok())
}

/// The complete packs that a run's log names, each with its blocks.
fn packs_of(log: &Path) -> BTreeMap<String, Vec<String>> {
    let text = std::fs::read_to_string(log).unwrap();
    let whole_lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let packs = whole_lines.map(|line| {
        let (json, _) = line.trim_end().rsplit_once(' ').expect("a line and its hash");
        let said: serde_json::Value = serde_json::from_str(json).unwrap();
        let blocks = said["blobs"].as_array().unwrap().iter().map(|b| b[0].as_str().unwrap().to_owned());
        (said["pack"].as_str().unwrap().to_owned(), blocks.collect())
    });
    packs.collect()
}

/// No run sent a block twice that lay in one of its complete packs.
fn assert_nothing_was_sent_twice(log: &Path) {
    let mut blocks: BTreeMap<String, String> = BTreeMap::new();
    for (pack, its) in packs_of(log) {
        for block in its {
            if let Some(first) = blocks.insert(block.clone(), pack.clone()) {
                panic!("{}: block {block} of pack {first} was sent again in {pack}", log.display());
            }
        }
    }
}

/// Every byte of the newest point opens; what it holds is one moment of the database, and pages that were written.
async fn newest_point_is_sound(sites: &TwoSites, written: u64, when: &str) {
    let ledger = sites.ledger().await;
    let Some(newest) = ledger.state().points.last().map(farsite_store::ledger::CommittedPoint::id) else {
        return;
    };
    let (manifest, reader) = (sites.manifest(newest).await, sites.reader().await);
    assert!(manifest.is_whole(), "{when}: {:?}", manifest.failed);
    for item in &manifest.items {
        let damage = restore::verify(&reader, item, &ReadStats::default()).await.unwrap();
        assert!(damage.is_empty(), "{when}: {}: {damage:?}", item.id);
    }
    let to = restored(sites, newest).await;
    let rows = rows(&to.join("cloud"));
    assert!(rows.iter().copied().eq(1..=rows.len() as u64), "{when}: rows are missing between others");
    assert!(rows.len() as u64 <= written + 1, "{when}");
    for name in VOLUMES {
        let bytes = std::fs::read(to.join(name)).unwrap();
        for (index, page) in bytes.chunks(PAGE).enumerate() {
            let number = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
            assert_eq!(number(0), index as u64, "{when}: {name} has a page in a wrong place");
            assert!(number(8) <= written + 1, "{when}: {name} has a page that was never written");
        }
    }
}

fn rows(database: &Path) -> Vec<u64> {
    let database = rusqlite::Connection::open(database).unwrap();
    let mut query = database.prepare("SELECT n FROM beat ORDER BY n").unwrap();
    let rows = query.query_map([], |row| row.get::<_, i64>(0)).unwrap();
    rows.map(|n| n.unwrap().unsigned_abs()).collect()
}

/// All items of a point in a fresh folder, by name.
async fn restored(sites: &TwoSites, point: PointId) -> PathBuf {
    let to = sites.path("restored");
    let _ = std::fs::remove_dir_all(&to);
    let (manifest, reader) = (sites.manifest(point).await, sites.reader().await);
    for item in &manifest.items {
        let place = to.join(item.id.name());
        restore::item(&reader, item, &place, &restore::unguarded(), &ReadStats::default()).await.unwrap();
    }
    to
}

/// Nothing is written while a run goes over what the killed agent left: the point is the site, byte for byte.
#[allow(
    clippy::await_holding_lock,
    reason = "the writer, a thread of its own, is to stand still all the time"
)]
async fn a_quiet_run_is_the_site_itself(sites: &TwoSites, writer: &Writer, when: &str) {
    let _quiet = writer.quiet.lock().unwrap();
    let output = sites.farsite("north", &["replicate", "--json"]);
    // The target of the RPO is missed where this machine is slow; the point is there.
    assert!(matches!(output.status.code(), Some(0 | 3)), "{when}: {}", said(&output));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let point = answer[0]["report"]["point"].as_str().unwrap().parse().unwrap();
    let to = restored(sites, point).await;
    for name in VOLUMES {
        let same =
            std::fs::read(to.join(name)).unwrap() == std::fs::read(sites.data("volumes").join(name)).unwrap();
        assert!(same, "{when}: {name} of point {point} is not what stands at the source");
    }
    assert!(rows(&to.join("cloud")) == rows(&sites.data("cloud.db")), "{when}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_the_agent_killed_at_fifty_random_instants_loses_nothing_acknowledged() {
    let mut random = Random(seed());
    let sites = a_site(&mut random).await;
    std::fs::create_dir(sites.path("kept")).unwrap();
    let writer = Writer::start(&sites, Random(random.draw()));
    let mut seen = Seen::default();
    for kill in 1..=KILLS {
        let log = sites.path(&format!("agent-{kill}.log"));
        // On a fast machine an instant between two packs is rare: every fifth kill waits for one.
        let between_packs = kill % 5 == 0;
        if between_packs {
            write_all_of_a_volume(&sites, &writer, &mut random);
        }
        let before = packs_of_runs_under_way(&sites);
        let mut agent = Running::start(sites.command("north/farsite.yaml", &["agent"]), &log);
        let lives = if between_packs {
            let began = Instant::now();
            comes_true(Duration::from_secs(30), || !packs_of_runs_under_way(&sites).is_subset(&before));
            began.elapsed()
        } else {
            let lives = Duration::from_millis(random.between(50, 1500));
            std::thread::sleep(lives);
            lives
        };
        assert_eq!(agent.ended(), None, "kill {kill}: the agent ended by itself: {}", agent.said());
        agent.kill();
        let when = format!("after kill {kill}, at {lives:?}");
        seen.look(&sites, &agent.said(), &when).await;
        if kill % 10 == 0 {
            newest_point_is_sound(&sites, writer.written.load(Ordering::Acquire), &when).await;
            a_quiet_run_is_the_site_itself(&sites, &writer, &when).await;
            seen.look(&sites, "", &when).await;
        }
    }
    drop(writer);
    let verified = sites.farsite("south", &["points", "verify", "--all"]);
    assert!(verified.status.success(), "{}", said(&verified));

    let ledger = sites.ledger().await;
    let committed: BTreeSet<RunId> = ledger.state().points.iter().map(|p| p.said.run).collect();
    let went_on = seen.killed_with_packs.intersection(&committed).count();
    println!(
        "{KILLS} kills, {} points; {} runs were killed with complete packs, {went_on} of them went on to their point",
        committed.len(),
        seen.killed_with_packs.len()
    );
    assert!(
        committed.len() >= 5 && went_on >= 2,
        "too few runs were cut off in their middle to prove anything"
    );
    for run in &seen.killed_with_packs {
        assert_nothing_was_sent_twice(&sites.path("kept").join(run.to_string()));
    }
}

fn packs_in_store(sites: &TwoSites) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![sites.path("south/replica/packs")];
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                found.insert(path.clone(), path.metadata().map_or(0, |m| m.len()));
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_killed_again_and_again_sends_no_complete_pack_twice() {
    const DATA_BYTES: usize = 160 << 20;
    const PACK_BYTES: u64 = 8 << 20;
    let mut random = Random(seed());
    let sites = TwoSites::founded("  - cinder: { path: NORTH/volumes }\nmemory: 64MiB\n").await;
    std::fs::create_dir(sites.data("volumes")).unwrap();
    let mut bytes = vec![0; DATA_BYTES];
    random.fill(&mut bytes);
    std::fs::write(sites.data("volumes/volume-a"), &bytes).unwrap();
    std::fs::create_dir(sites.path("kept")).unwrap();
    let mut seen = Seen::default();
    let mut kills = 0;
    for attempt in 1..=4 {
        let before = packs_in_store(&sites).len();
        let log = sites.path(&format!("replicate-{attempt}.log"));
        let mut run = Running::start(sites.command("north/farsite.yaml", &["replicate"]), &log);
        let grew = comes_true(Duration::from_mins(1), || packs_in_store(&sites).len() >= before + 2);
        assert!(grew, "no packs come: {}", run.said());
        std::thread::sleep(Duration::from_millis(random.between(0, 60)));
        run.kill();
        kills += 1;
        seen.look(&sites, "", &format!("attempt {attempt}")).await;
        assert!(seen.acknowledged.is_empty(), "four attempts of some packs each end before the point");
    }
    assert_eq!(seen.killed_with_packs.len(), 1, "it is one run all the time");
    let run = *seen.killed_with_packs.first().unwrap();
    let kept = sites.path("kept").join(run.to_string());
    let (noted, before) = (packs_of(&kept), packs_in_store(&sites));
    assert!(noted.len() as u64 >= kills, "every attempt left complete packs behind: {}", noted.len());

    let output = sites.farsite("north", &["replicate", "--json"]);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}", said(&output));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let report = &answer[0]["report"];
    assert_eq!(report["resumed"], true, "{report}");
    let after = packs_in_store(&sites);
    assert_eq!(after.len() as u64, before.len() as u64 + report["packs"].as_u64().unwrap(), "{report}");
    let ledger = sites.ledger().await;
    assert_eq!((ledger.group(), ledger.state().points.len()), (&cloud(), 1));
    assert_eq!(ledger.state().points[0].said.run, run);
    assert_nothing_was_sent_twice(&kept);
    // What was durable and not yet noted at a kill, two packs at most, may be sent again.
    let sent: u64 = after.values().sum();
    let most = DATA_BYTES as u64 + DATA_BYTES as u64 / 100 + (2 * kills + 1) * PACK_BYTES;
    println!("{kills} kills: {sent} bytes sent for {DATA_BYTES} bytes of data");
    assert!(sent <= most, "{sent} bytes were sent for {DATA_BYTES} bytes of data and {kills} kills");
    let to = restored(&sites, ledger.state().points[0].id()).await;
    assert!(std::fs::read(to.join("volume-a")).unwrap() == bytes);
}
