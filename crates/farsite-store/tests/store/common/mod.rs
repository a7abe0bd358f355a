//! A store in a folder or in S3 with one key of each role, and content whose every byte is known.
#![allow(dead_code)]

pub mod faulty;
pub mod keeping;
pub mod moto;
pub mod patched;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use farsite_model::content::{InMemory, ReadAt};
use farsite_model::rpo::{CaptureStamp, ClockSkew};
use farsite_model::{
    CaptureTime, Consistency, Epoch, GroupName, ItemId, ItemKind, PointId, PromotionId, RunId, SiteName,
};
use farsite_store::backend::SharedBackend;
use farsite_store::backend::folder::Folder;
use farsite_store::format::Format;
use farsite_store::hex::Hex;
use farsite_store::ingest::{IngestOptions, Input, RunWriter};
use farsite_store::keys::{self, BlockSecret, KeyRole, Role, SecretText, Signer};
use farsite_store::ledger::{Committed, CommittedPoint, Ledger, Statement};
use farsite_store::local_map::{LocalMap, LocalMapWriter};
use farsite_store::manifest::{Manifest, ManifestItem};
use farsite_store::map::MapRoot;
use farsite_store::read::Reader;
use farsite_store::seal::{Opener, Sealer};
use farsite_store::{Store, StoreError};

use self::faulty::Fate;

pub struct World {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub operator: Signer,
    pub standby: Signer,
    pub source: Signer,
    pub second_operator: Signer,
    pub secret: BlockSecret,
    pub identity: age::x25519::Identity,
    source_text: SecretText,
    secret_text: SecretText,
    /// Where the objects lie on this disk, whatever the backend: for those who damage them.
    pub objects: PathBuf,
    /// The S3 server, if there is one.
    pub server: Option<farsite_s3server::Server>,
}

pub fn site(name: &str) -> SiteName {
    SiteName::new(name).unwrap()
}
pub fn group() -> GroupName {
    GroupName::new("cloud").unwrap()
}

impl World {
    pub async fn in_folder() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backend: SharedBackend = Arc::new(Folder::create_root(dir.path().join("store")).unwrap());
        Self::on(dir, backend).await
    }

    /// A bucket of an S3 server of its own.
    pub async fn in_s3() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s3");
        farsite_s3server::Server::create_bucket(&root, "replica").unwrap();
        let owner = farsite_s3server::Credentials {
            access_key: "owner".into(),
            secret_key: "secret-secret".into(),
            may_only_add: false,
        };
        let server = farsite_s3server::Server::start(&root, 0, vec![owner]).await.unwrap();
        let access = farsite_store::backend::S3Access {
            endpoint: Some(server.endpoint()),
            region: "south".into(),
            access_key: "owner".into(),
            secret_key: "secret-secret".into(),
            session_token: None,
            path_style: true,
        };
        let backend = farsite_store::backend::open("s3://replica/north", &access, false).unwrap();
        let mut world = Self::on(dir, backend).await;
        world.objects = root.join("replica/north");
        world.server = Some(server);
        world
    }

    /// Writes the source agent's keys for a child process that plays it.
    pub fn hand_over(&self, to: &Path) {
        self.source_text.write_new(&to.join("source.key"), "source").unwrap();
        self.secret_text.write_new(&to.join("block.secret"), "blocks").unwrap();
    }

    /// The world of a parent process, as its source agent sees it: its other keys are not known here.
    pub async fn taken_over(dir: &Path) -> Self {
        let backend: SharedBackend = Arc::new(Folder::open(dir.join("store")).unwrap());
        let other = tempfile::tempdir().unwrap();
        let elsewhere: SharedBackend = Arc::new(Folder::create_root(other.path().join("store")).unwrap());
        let mut world = Self::on(other, elsewhere).await;
        world.source = Signer::load(&dir.join("child/source.key")).unwrap();
        world.secret = BlockSecret::load(&dir.join("child/block.secret")).unwrap();
        world.store = Store::open(backend, None).await.unwrap();
        world.objects = dir.join("store");
        world
    }

    /// One world of each kind, named for messages.
    pub async fn everywhere() -> [(&'static str, Self); 2] {
        [("folder", Self::in_folder().await), ("s3", Self::in_s3().await)]
    }

    /// The same store with faults: what `rule` says of each operation.
    pub fn with_faults(&self, rule: faulty::Rule) -> Store {
        let mut store = self.store.clone();
        store.backend = Arc::new(faulty::FaultyBackend::around(store.backend.clone(), rule));
        store
    }

    /// The store cut off at its `cut`-th write, and how many were tried: of every second cut the write is done and its answer
    /// lost; behind it nothing is done or read any more.
    pub fn cut_off(&self, cut: u64) -> (Store, Arc<AtomicU64>) {
        let writes = Arc::new(AtomicU64::new(0));
        let counted = writes.clone();
        let store = self.with_faults(Arc::new(move |operation| {
            if operation.name != "create" {
                let is_cut = counted.load(Ordering::SeqCst) >= cut;
                return if is_cut { Fate::Unreachable } else { Fate::Pass };
            }
            match counted.fetch_add(1, Ordering::SeqCst) + 1 {
                number if number < cut => Fate::Pass,
                number if number == cut && cut.is_multiple_of(2) => Fate::LoseAnswer,
                _ => Fate::Unreachable,
            }
        }));
        (store, writes)
    }

    pub fn path(&self, key: &str) -> PathBuf {
        self.objects.join(key)
    }

    pub async fn on(dir: tempfile::TempDir, backend: SharedBackend) -> Self {
        let [operator, standby, second_operator] = std::array::from_fn(|_| Signer::generate().0);
        let (source, source_text) = Signer::generate();
        let identity = age::x25519::Identity::generate();
        let (secret, secret_text) = BlockSecret::generate();
        let role = |signer: &Signer, role, at: Option<&str>, name: &str| KeyRole {
            key: signer.public(),
            role,
            site: at.map(site),
            name: name.into(),
        };
        let roles = vec![
            role(&operator, Role::Operator, None, "ann"),
            role(&second_operator, Role::Operator, None, "bob"),
            role(&standby, Role::StandbyAgent, Some("south"), "south"),
            role(&source, Role::SourceAgent, Some("north"), "north"),
            role(&east(), Role::SourceAgent, Some("east"), "east"),
        ];
        let format =
            Format::new(vec![identity.to_public().to_string()], roles, &secret, jiff::Timestamp::now())
                .unwrap();
        format.create(&backend).await.unwrap();
        let store = Store::open(backend, None).await.unwrap();
        let (objects, server) = (dir.path().join("store"), None);
        Self {
            dir,
            store,
            operator,
            standby,
            source,
            second_operator,
            secret,
            identity,
            source_text,
            secret_text,
            objects,
            server,
        }
    }

    pub fn reader(&self) -> Reader {
        let opener = Opener::new(&self.store, vec![self.identity.clone()]).unwrap();
        Reader::new(self.store.clone(), Arc::new(opener))
    }

    pub fn maps(&self) -> PathBuf {
        self.dir.path().join("maps")
    }

    pub async fn writer(&self, run: u64, options: IngestOptions) -> RunWriter {
        let run = RunId::from_random(run);
        let sealer = Sealer::begin(&self.store, &self.source, &site("north"), &group(), run).await.unwrap();
        let log = self.dir.path().join(format!("resume-{run}"));
        RunWriter::begin(
            &self.store,
            sealer,
            self.secret.clone(),
            options,
            &log,
            Arc::new(AtomicBool::new(false)),
        )
        .unwrap()
    }

    /// One run over one item; returns the root, shipped bytes and changed bytes.
    pub async fn replicate(&self, run: u64, item: &ItemId, content: Vec<u8>) -> (MapRoot, u64, u64) {
        let mut writer = self.writer(run, IngestOptions::within(64 << 20, (3, 3))).await;
        let previous = LocalMap::open(&self.maps(), item).unwrap();
        let mut out = LocalMapWriter::create(&self.maps(), item).unwrap();
        let content: Arc<dyn ReadAt> = Arc::new(InMemory(content));
        let map = writer
            .ingest(&Input::first(item.as_str(), &*content, 65536).since(previous.as_ref()), &mut out)
            .unwrap();
        writer.flush().await.unwrap();
        out.commit().unwrap();
        let load = |n: &std::sync::atomic::AtomicU64| n.load(std::sync::atomic::Ordering::Relaxed);
        (map, load(&writer.stats.shipped_bytes), load(&writer.stats.changed_bytes))
    }
}

/// The source agent of a third site that shares the store; the same key each time.
pub fn east() -> Signer {
    use std::sync::OnceLock;
    static TEXT: OnceLock<PathBuf> = OnceLock::new();
    let path = TEXT.get_or_init(|| {
        let path = tempfile::tempdir().unwrap().keep().join("east.key");
        Signer::generate().1.write_new(&path, "east").unwrap();
        path
    });
    Signer::load(path).unwrap()
}

pub fn founded() -> Statement {
    Statement::GroupFounded { group: group(), primary: site("north") }
}

/// An epoch that south begins.
pub fn epoch(number: u64) -> Statement {
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

/// A commit of a whole point with one volume, captured now.
pub async fn committed(world: &World, id: u64, epoch: u64, manifest: Hex<32>) -> Committed {
    let now = world.store.backend.time().await.unwrap();
    let stamp = CaptureStamp::at_commit(CaptureTime(now.0), &[], now);
    Committed {
        point: PointId::from_random(id),
        epoch: Epoch(epoch),
        run: RunId::from_random(id),
        manifest,
        by_kind: BTreeMap::from([(ItemKind::Volume, stamp)]),
        whole: true,
        items: 1,
        weakest: Consistency::Crash,
        changed_bytes: 0,
        shipped_bytes: 0,
        suspicious: vec![],
        timelines: vec![],
    }
}

/// A manifest of one volume.
pub fn manifest(id: u64, map: MapRoot) -> Manifest {
    let captured = CaptureTime(jiff::Timestamp::now());
    let item = ItemId::new(ItemKind::Volume, "v");
    Manifest {
        version: 1,
        point: PointId::from_random(id),
        group: group(),
        site: site("north"),
        epoch: Epoch(1),
        run: RunId::from_random(id),
        parent: None,
        started: captured,
        skews: vec![],
        items: vec![ManifestItem {
            id: item,
            kind: ItemKind::Volume,
            stamp: CaptureStamp { captured, skew: ClockSkew::ZERO, clamped: false },
            consistency: Consistency::Crash,
            data: map,
            directory: None,
            ancestor: None,
            details: BTreeMap::new(),
            carried_from: None,
            signals: None,
            log: None,
        }],
        absent: vec![],
        failed: vec![],
        read_bytes: 0,
        changed_bytes: 0,
        shipped_bytes: 0,
    }
}

/// One whole run over the volume `v`, as an agent does it: content key, packs, manifest, and last the ledger entry.
pub async fn run_to_commit(
    world: &World,
    store: &Store,
    id: u64,
    content: Vec<u8>,
) -> Result<MapRoot, StoreError> {
    let run = RunId::from_random(id);
    let item = ItemId::new(ItemKind::Volume, "v");
    let sealer = Sealer::begin(store, &world.source, &site("north"), &group(), run).await?;
    let log = world.dir.path().join(format!("resume-{run}"));
    let stop = Arc::new(AtomicBool::new(false));
    let options = IngestOptions { pack_bytes: 256 << 10, ..IngestOptions::within(64 << 20, (3, 3)) };
    let mut writer = RunWriter::begin(store, sealer, world.secret.clone(), options, &log, stop)?;
    let previous = LocalMap::open(&world.maps(), &item).unwrap();
    let mut out = LocalMapWriter::create(&world.maps(), &item).unwrap();
    let content: Arc<dyn ReadAt> = Arc::new(InMemory(content));
    let map = writer.ingest(&Input::first("v", &*content, 65_536).since(previous.as_ref()), &mut out)?;
    writer.flush().await?;
    let hash = manifest(id, map.clone()).write(store, &world.source).await?;
    let said = committed(world, id, 1, hash).await;
    let mut ledger = Ledger::open(store, &group()).await?;
    ledger.append(&world.source, |_| Ok(Statement::PointCommitted(said.clone()))).await?;
    out.commit().unwrap();
    Ok(map)
}

/// Reads a committed point's volume, all the way from its ledger entry.
pub async fn restore(world: &World, point: &CommittedPoint) -> Result<Vec<u8>, StoreError> {
    let manifest = Manifest::read(&world.store, &group(), point.id(), &point.said.manifest).await?;
    world.reader().read_small(&manifest.items[0].data, 1 << 30).await
}

pub fn key_of(signer: &Signer) -> String {
    keys::key_id(&signer.public()).to_string()
}

/// Incompressible bytes from a seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Words out of a seed's own vocabulary, of which no block of 64 KiB has all: neighbours have much in common.
pub fn text(seed: u64, len: usize) -> Vec<u8> {
    const WORDS: u64 = 4096;
    let mut bytes = Vec::with_capacity(len + 64);
    let mut draws = noise(seed, len);
    while bytes.len() < len {
        let draw = u16::from_le_bytes([draws.pop().unwrap_or(7), draws.pop().unwrap_or(7)]);
        let word = blake3::hash(&(seed * WORDS + u64::from(draw) % WORDS).to_le_bytes()).to_hex();
        bytes.extend_from_slice(&word.as_bytes()[..24]);
        bytes.push(b' ');
    }
    bytes.truncate(len);
    bytes
}

/// All objects of a folder store, relative to its root.
pub fn objects(root: &Path) -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let mut found = Vec::new();
    walk(root, &mut found);
    found.sort();
    found
}
