//! One site, two standbys: a folder at south and an S3 store at west. Every round captures once for both; whatever one of the
//! stores does, the other one has its points.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use farsite_model::clock::SystemClock;
use farsite_model::config::Config;
use farsite_model::policy::Policy;
use farsite_model::{Epoch, PromotionId, SiteName, StoreTime};
use farsite_replicate::agent::{self, AgentOptions, Board};
use farsite_replicate::group::Group;
use farsite_replicate::round::{Ended, Member};
use farsite_replicate::run::{Observer, RunOptions, RunReport};
use farsite_replicate::{ReplicateError, connect, restore};
use farsite_s3server::{Credentials, Server};
use farsite_scenarios::{TwoSites, cloud, ends, noise, site};
use farsite_store::backend::{Backend, BackendError, Listed, Object, SharedBackend};
use farsite_store::ingest::RunStats;
use farsite_store::keys::Signer;
use farsite_store::ledger::{GroupState, Ledger, Statement};
use farsite_store::manifest::Manifest;
use farsite_store::read::ReadStats;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const MIB: usize = 1 << 20;
const VOLUME: &str = "  - volume: { path: NORTH/volume }\n";

struct Story {
    sites: TwoSites,
    _server: Server,
}

async fn story(items: &str) -> Story {
    let sites = TwoSites::founded(items).await;
    std::fs::create_dir_all(sites.path("west/replica")).unwrap();
    let owner =
        Credentials { access_key: "owner".into(), secret_key: "secret-secret".into(), may_only_add: false };
    let server = Server::start(&sites.path("west"), 0, vec![owner]).await.unwrap();
    let url = format!("s3://replica?endpoint={}&answer-timeout=5s", server.endpoint());
    for (file, text) in [("access", "owner"), ("secret", "secret-secret")] {
        let private = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
        std::fs::write(sites.path(file), text).unwrap();
        std::fs::set_permissions(sites.path(file), private).unwrap();
    }
    let access = format!(
        "    access-key: \"file:{}\"\n    secret-key: \"file:{}\"\n",
        sites.path("access").display(),
        sites.path("secret").display()
    );
    sites.one_more_standby("west", &url, &access);
    sites.edit("north/policies/cloud.yaml", |text| text.replace("rpo: 20s", "rpo: 20m"));
    Story { sites, _server: server }
}

/// Half of it can be compressed.
fn content(seed: u64, mib: usize) -> Vec<u8> {
    let mut bytes = noise(seed, mib * MIB / 2);
    bytes.extend((0..mib * MIB / 8).flat_map(|n| ((n as u32 / 64) ^ seed as u32).to_le_bytes()));
    bytes
}

/// Sees what each run has counted.
#[derive(Default)]
struct Counters(Mutex<Option<Arc<RunStats>>>);

impl Observer for Counters {
    fn stage(&self, _: &str) {}
    fn counters(&self, stats: Arc<RunStats>) {
        *self.0.lock().unwrap() = Some(stats);
    }
}

type Reports = BTreeMap<SiteName, Result<RunReport, ReplicateError>>;

impl Story {
    fn write(&self, bytes: &[u8]) {
        std::fs::write(self.sites.data("volume"), bytes).unwrap();
    }

    async fn open(&self, to: &str) -> Group {
        let (config, policy) = (self.sites.config("north"), self.sites.the_policy());
        Group::open(&config, &policy, &site(to), Arc::new(SystemClock)).await.unwrap()
    }

    async fn both(&self) -> Vec<Group> {
        vec![self.open("south").await, self.open("west").await]
    }

    fn config_of(&self, at: &str) -> Arc<Config> {
        self.sites.config(if at == "west" { "west/operator" } else { at })
    }

    async fn ledger(&self, at: &str) -> Ledger {
        let store = connect::store(&self.config_of(at), &site(at)).await.unwrap();
        Ledger::open(&store, &cloud()).await.unwrap()
    }

    async fn points(&self, at: &str) -> usize {
        self.ledger(at).await.state().points.len()
    }

    async fn manifest(&self, at: &str, report: &RunReport) -> Manifest {
        let ledger = self.ledger(at).await;
        let said = &ledger.state().point(report.point).unwrap().said;
        Manifest::read(ledger.store(), &cloud(), report.point, &said.manifest).await.unwrap()
    }

    /// The point holds the volume as it is now.
    async fn assert_restores(&self, at: &str, report: &RunReport) {
        let config = self.config_of(at);
        let store = connect::store(&config, &site(at)).await.unwrap();
        let reader = connect::reader(&config, &site(at), &store).await.unwrap();
        let manifest = self.manifest(at, report).await;
        let to = self.sites.path("restored");
        let _ = std::fs::remove_file(&to);
        let stats = ReadStats::default();
        restore::item(&reader, &manifest.items[0], &to, &restore::unguarded(), &stats).await.unwrap();
        assert!(
            std::fs::read(&to).unwrap() == std::fs::read(self.sites.data("volume")).unwrap(),
            "what {at} has is not what was captured"
        );
    }
}

fn begun(primary: &str, state: &GroupState) -> Statement {
    Statement::EpochBegun {
        epoch: state.epoch().next(),
        primary: site(primary),
        promotion: PromotionId::from_random(1),
        point: None,
        logs: Vec::new(),
        who: "ann".into(),
        reason: "a test".into(),
    }
}

fn members(groups: impl IntoIterator<Item = Group>) -> Vec<Member> {
    let member = |group| Member { group: Arc::new(group), options: RunOptions::default() };
    groups.into_iter().map(member).collect()
}

fn reports(ends: Vec<Ended>) -> Reports {
    ends.into_iter().map(|end| (end.to, end.result)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_capture_is_read_and_compressed_once_for_two_stores() {
    let story = story(VOLUME).await;
    // What has a last version is tried as a patch of it, and by itself.
    for (round, expected_mib) in [24, 36].into_iter().enumerate() {
        story.write(&content(round as u64, 24));
        let counters: Vec<Arc<Counters>> = vec![Arc::default(), Arc::default()];
        let mut members = members(story.both().await);
        for (member, counters) in members.iter_mut().zip(&counters) {
            member.options.observer = counters.clone();
        }
        let reports = reports(ends(members).await);
        let (south, west) =
            (reports[&site("south")].as_ref().unwrap(), reports[&site("west")].as_ref().unwrap());
        let sum = |of: fn(&RunStats) -> &AtomicU64| -> u64 {
            let counters = counters.iter().map(|counters| counters.0.lock().unwrap().clone().unwrap());
            counters.map(|stats| of(&stats).load(Ordering::Relaxed)).sum()
        };
        assert_eq!(
            sum(|stats| &stats.source_bytes),
            24 * MIB as u64,
            "round {round}: each byte is read once"
        );
        assert_eq!(sum(|stats| &stats.read_bytes), 48 * MIB as u64, "and looked at for each store");
        let pressed = sum(|stats| &stats.pressed_bytes);
        let expected = expected_mib * MIB as u64;
        assert!(pressed <= expected + MIB as u64, "round {round}: {pressed} bytes compressed for both");
        let manifests = [story.manifest("south", south).await, story.manifest("west", west).await];
        assert_eq!(manifests[0].items[0].stamp.captured, manifests[1].items[0].stamp.captured);
        story.assert_restores("south", south).await;
        story.assert_restores("west", west).await;
    }
}

/// A store as the network makes it now and then.
struct Gate {
    inner: SharedBackend,
    is_dead: AtomicBool,
    /// Packs wait at the door until it is opened.
    is_shut: AtomicBool,
    opened: Notify,
}

impl Gate {
    fn before(group: &mut Group) -> Arc<Self> {
        let gate = Arc::new(Self {
            inner: group.store.backend.clone(),
            is_dead: AtomicBool::new(false),
            is_shut: AtomicBool::new(false),
            opened: Notify::new(),
        });
        group.store.backend = gate.clone();
        gate
    }
    fn open(&self) {
        self.is_shut.store(false, Ordering::Relaxed);
        self.opened.notify_waiters();
    }
    fn check(&self, operation: &'static str, key: &str) -> Result<(), BackendError> {
        if self.is_dead.load(Ordering::Relaxed) {
            let (store, key, why) = (self.describe(), key.to_owned(), "the cable is cut".into());
            return Err(BackendError::Unreachable { store, operation, key, why });
        }
        Ok(())
    }
}

#[async_trait]
impl Backend for Gate {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn clock_grain_ms(&self) -> u64 {
        self.inner.clock_grain_ms()
    }
    async fn time(&self) -> Result<StoreTime, BackendError> {
        self.check("asking the time of", "")?;
        self.inner.time().await
    }
    async fn create(&self, key: &str, bytes: Bytes) -> Result<StoreTime, BackendError> {
        self.check("creating", key)?;
        while key.starts_with("packs/") && self.is_shut.load(Ordering::Relaxed) {
            let _ = tokio::time::timeout(Duration::from_millis(100), self.opened.notified()).await;
        }
        self.inner.create(key, bytes).await
    }
    async fn get(&self, key: &str) -> Result<Object, BackendError> {
        self.check("reading", key)?;
        self.inner.get(key).await
    }
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BackendError> {
        self.check("reading", key)?;
        self.inner.get_range(key, range).await
    }
    async fn size(&self, key: &str) -> Result<u64, BackendError> {
        self.check("looking at", key)?;
        self.inner.size(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>, BackendError> {
        self.check("listing", prefix)?;
        self.inner.list(prefix, after).await
    }
    async fn delete(&self, key: &str) -> Result<(), BackendError> {
        self.check("deleting", key)?;
        self.inner.delete(key).await
    }
    async fn try_overwrite(&self, key: &str, bytes: Bytes) -> Result<(), BackendError> {
        self.inner.try_overwrite(key, bytes).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_dead_fails_alone_and_catches_up_later() {
    let story = story(VOLUME).await;
    let [south, mut west] = <[Group; 2]>::try_from(story.both().await).ok().unwrap();
    let gate = Gate::before(&mut west);
    let (south, west) = (Arc::new(south), Arc::new(west));
    let members = || {
        let member = |group: &Arc<Group>| Member { group: group.clone(), options: RunOptions::default() };
        vec![member(&south), member(&west)]
    };
    let mut at_south = Vec::new();
    for round in 0..3 {
        story.write(&content(round, 2));
        gate.is_dead.store(round == 1, Ordering::Relaxed);
        let reports = reports(ends(members()).await);
        let report = reports[&site("south")].as_ref().unwrap();
        story.assert_restores("south", report).await;
        at_south.push(report.point);
        match &reports[&site("west")] {
            Ok(report) if round != 1 => story.assert_restores("west", report).await,
            Err(error) if round == 1 => assert!(error.to_string().contains("cable"), "{error}"),
            other => panic!("round {round}: {other:?}"),
        }
    }
    assert_eq!((story.points("south").await, story.points("west").await), (3, 2));
    let last = |to: &str| south.record.last_success("cloud", to).unwrap();
    assert!(last("south").is_some() && last("west").is_some());
    assert_eq!(last("east"), None, "what one standby has says nothing of another");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_holds_the_others_up_is_left_behind_and_goes_on_by_itself() {
    let story = story(VOLUME).await;
    story.sites.edit("north/policies/cloud.yaml", |text| text.replace("rpo: 20m", "rpo: 20s\nmemory: 64MiB"));
    story.write(&noise(3, 64 * MIB));
    let [south, mut west] = <[Group; 2]>::try_from(story.both().await).ok().unwrap();
    let gate = Gate::before(&mut west);
    gate.is_shut.store(true, Ordering::Relaxed);
    let west = Arc::new(west);
    let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let both = vec![
        Member { group: Arc::new(south), options: RunOptions::default() },
        Member { group: west.clone(), options: RunOptions::default() },
    ];
    farsite_replicate::round::round(both, ended).await;
    // The round is over, and west has not come to its end.
    let first = ends.recv().await.unwrap();
    assert_eq!(first.to, site("south"));
    story.assert_restores("south", &first.result.unwrap()).await;
    gate.open();
    let second = ends.recv().await.unwrap();
    assert!(second.was_cut, "{:?}", second.result);
    let why = second.result.unwrap_err().to_string();
    assert!(why.contains("west held the others up for 2s"), "{why}");
    assert_eq!(story.points("west").await, 0, "a capture that was taken back makes no point");

    let alone = vec![Member { group: west, options: RunOptions::default() }];
    let reports = reports(farsite_scenarios::ends(alone).await);
    let report = reports[&site("west")].as_ref().unwrap();
    assert!(report.resumed, "{report:?}");
    assert!(report.shipped_bytes < 60 * MIB as u64, "packs that were complete count: {report:?}");
    story.assert_restores("west", report).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_run_once_for_all_standbys() {
    let items = "  - volume:
      path: NORTH/volume
      hooks: { before-capture: ['echo freeze >> NORTH/log'], after-capture: ['echo thaw >> NORTH/log'] }
hooks:
  before-capture: ['echo stop >> NORTH/log']
  after-capture: ['echo go >> NORTH/log']
  after-commit: ['echo committed >> NORTH/log']
";
    let story = story(items).await;
    story.write(&content(1, 1));
    let reports = reports(ends(members(story.both().await)).await);
    for (to, report) in &reports {
        story.assert_restores(to.as_str(), report.as_ref().unwrap()).await;
    }
    let log = std::fs::read_to_string(story.sites.data("log")).unwrap();
    assert_eq!(log, "stop\nfreeze\nthaw\ngo\ncommitted\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_one_store_knows_to_be_promoted_is_committed_to_none() {
    let story = story(VOLUME).await;
    story.write(&content(1, 1));
    let first = reports(ends(members(story.both().await)).await);
    assert!(first.values().all(Result::is_ok), "{first:?}");
    // West takes over, and tells only its own store.
    let mut ledger = story.ledger("west").await;
    let operator = Signer::load(&story.sites.path("west/operator/operator.key")).unwrap();
    ledger.append(&operator, |state| Ok(begun("west", state))).await.unwrap();

    let second = reports(ends(members(story.both().await)).await);
    for (to, result) in &second {
        let error = result.as_ref().unwrap_err();
        assert!(error.is_fenced(), "{to}: {error}");
    }
    let why = second[&site("south")].as_ref().unwrap_err().to_string();
    assert!(why.contains("the store at west says"), "{why}");
    assert_eq!(story.points("south").await, 1, "the old primary adds nothing anywhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_keeps_every_standby_and_stops_for_all_when_one_is_promoted() {
    let story = story(VOLUME).await;
    story.write(&content(1, 1));
    // West's store is not there when the agent begins.
    let (there, away) = (story.sites.path("west/replica"), story.sites.path("west/away"));
    std::fs::rename(&there, &away).unwrap();
    let config = story.sites.path("north/farsite.yaml");
    let policy = story.sites.path("north/policies/cloud.yaml");
    let (board, cancel): (Arc<Board>, CancellationToken) = Default::default();
    let agent = tokio::spawn(agent::run(AgentOptions {
        load: Arc::new(move || Ok((Config::load(&config)?, vec![Policy::load(&policy)?]))),
        clock: Arc::new(SystemClock),
        cancel: cancel.clone(),
        reload: Arc::default(),
        board: board.clone(),
    }));
    let comes_true = async |what: &str, is_true: &dyn Fn() -> bool| {
        for _ in 0..600 {
            if is_true() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!(
            "{what}: {:?}",
            board.read().values().map(|doing| doing.last_error.clone()).collect::<Vec<_>>()
        );
    };
    let points_of = |ledger: &Ledger, epoch: u64| {
        ledger.state().points.iter().filter(|p| p.said.epoch == Epoch(epoch)).count()
    };
    let comes_to = async |ledger: &mut Ledger, epoch: u64, points: usize| {
        for _ in 0..600 {
            ledger.refresh().await.unwrap();
            if points_of(ledger, epoch) >= points {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("epoch {epoch} has not {points} points: {:?}", ledger.state().epochs);
    };
    let mut south = story.ledger("south").await;
    comes_to(&mut south, 1, 2).await;
    std::fs::rename(&away, &there).unwrap();
    let mut west = story.ledger("west").await;
    comes_to(&mut west, 1, 2).await;

    let operator = Signer::load(&story.sites.path("west/operator/operator.key")).unwrap();
    west.append(&operator, |state| Ok(begun("west", state))).await.unwrap();
    let fenced = || board.read().values().filter(|doing| doing.fenced).count();
    comes_true("both stop", &|| fenced() == 2).await;
    comes_true("what was under way has ended", &|| {
        board.read().values().all(|doing| doing.words.starts_with("fenced"))
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    south.refresh().await.unwrap();
    let before = points_of(&south, 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    south.refresh().await.unwrap();
    assert_eq!(points_of(&south, 1), before, "an old primary adds nothing to the other store either");

    west.refresh().await.unwrap();
    west.append(&operator, |state| Ok(begun("north", state))).await.unwrap();
    comes_to(&mut south, 1, before + 1).await;
    comes_to(&mut west, 3, 1).await;
    assert_eq!(fenced(), 0);
    cancel.cancel();
    agent.await.unwrap().unwrap();
}
