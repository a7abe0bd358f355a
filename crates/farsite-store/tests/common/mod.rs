//! A store in a folder with one key of each role, and content whose every byte is known.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use farsite_model::content::{InMemory, ReadAt};
use farsite_model::{GroupName, ItemId, RunId, SiteName};
use farsite_store::Store;
use farsite_store::backend::SharedBackend;
use farsite_store::backend::folder::Folder;
use farsite_store::format::Format;
use farsite_store::ingest::{IngestOptions, RunWriter};
use farsite_store::keys::{self, BlockSecret, KeyRole, Role, Signer};
use farsite_store::local_map::{LocalMap, LocalMapWriter};
use farsite_store::map::MapRoot;
use farsite_store::read::Reader;
use farsite_store::seal::{Opener, Sealer};

pub struct World {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub operator: Signer,
    pub standby: Signer,
    pub source: Signer,
    pub second_operator: Signer,
    pub secret: BlockSecret,
    pub identity: age::x25519::Identity,
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

    pub async fn on(dir: tempfile::TempDir, backend: SharedBackend) -> Self {
        let [operator, standby, source, second_operator] = std::array::from_fn(|_| Signer::generate().0);
        let identity = age::x25519::Identity::generate();
        let (secret, _) = BlockSecret::generate();
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
        ];
        let format =
            Format::new(vec![identity.to_public().to_string()], roles, &secret, jiff::Timestamp::now()).unwrap();
        format.create(&backend).await.unwrap();
        let store = Store::open(backend, None).await.unwrap();
        Self { dir, store, operator, standby, source, second_operator, secret, identity }
    }

    pub fn reader(&self) -> Reader {
        let opener = Opener::new(&self.store, vec![self.identity.clone()]).unwrap();
        Reader { store: self.store.clone(), opener: Arc::new(opener) }
    }

    pub fn maps(&self) -> PathBuf {
        self.dir.path().join("maps")
    }

    pub async fn writer(&self, run: u64, options: IngestOptions) -> RunWriter {
        let run = RunId::from_random(run);
        let sealer = Sealer::begin(&self.store, &self.source, &site("north"), &group(), run).await.unwrap();
        let log = self.dir.path().join(format!("resume-{run}"));
        RunWriter::begin(&self.store, sealer, self.secret.clone(), options, &log, Arc::new(AtomicBool::new(false)))
            .unwrap()
    }

    /// One run over one item; returns the root, shipped bytes and changed bytes.
    pub async fn replicate(&self, run: u64, item: &ItemId, content: Vec<u8>) -> (MapRoot, u64, u64) {
        let mut writer = self.writer(run, IngestOptions::within(64 << 20)).await;
        let previous = LocalMap::open(&self.maps(), item).unwrap();
        let mut out = LocalMapWriter::create(&self.maps(), item, RunId::from_random(run)).unwrap();
        let content: Arc<dyn ReadAt> = Arc::new(InMemory(content));
        let map = writer.ingest(item.as_str(), &content, 65536, previous.as_ref(), &mut out).unwrap();
        writer.flush().await.unwrap();
        out.commit().unwrap();
        let load = |n: &std::sync::atomic::AtomicU64| n.load(std::sync::atomic::Ordering::Relaxed);
        (map, load(&writer.stats.shipped_bytes), load(&writer.stats.changed_bytes))
    }
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
