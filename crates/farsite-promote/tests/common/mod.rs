//! Two sites without a network: north is a generator of recovery points whose every byte is known, south is a folder with
//! places and keys. A "machine" of south has a configuration and a state folder of its own.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use farsite_model::config::Config;
use farsite_model::content::{InMemory, ReadAt};
use farsite_model::rpo::{CaptureStamp, ClockSkew};
use farsite_model::{CaptureTime, Consistency, GroupName, ItemId, ItemKind, PointId, RunId, SiteName};
use farsite_promote::Standby;
use farsite_replicate::tree;
use farsite_sources::tree::{LocalTree, TreeFiles};
use farsite_store::Store;
use farsite_store::backend::SharedBackend;
use farsite_store::backend::folder::Folder;
use farsite_store::format::Format;
use farsite_store::ingest::{IngestOptions, Input, RunWriter};
use farsite_store::keys::{self, BlockSecret, KeyRole, Role, Signer};
use farsite_store::ledger::{Committed, GroupState, Ledger, Statement};
use farsite_store::local_map::LocalMapWriter;
use farsite_store::manifest::{FailedItem, MANIFEST_VERSION, Manifest, ManifestItem};
use farsite_store::map::MapRoot;
use farsite_store::seal::Sealer;
use jiff::{SignedDuration, Timestamp};

pub const IMAGES: [&str; 2] =
    ["4f0a1f6e-0000-4000-8000-000000000001", "4f0a1f6e-0000-4000-8000-000000000002"];
pub const VOLUME: &str = "volume-aa";
const KEYS: &str = "etc/keystone/fernet-keys";

pub fn north() -> SiteName {
    SiteName::new("north").unwrap()
}
pub fn south() -> SiteName {
    SiteName::new("south").unwrap()
}
pub fn cloud() -> GroupName {
    GroupName::new("cloud").unwrap()
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub operator: Arc<Signer>,
    pub second_operator: Arc<Signer>,
    pub standby_agent: Arc<Signer>,
    pub source: Arc<Signer>,
    pub secret: BlockSecret,
    /// Runbook variables at south: `name: value` lines.
    pub variables: BTreeMap<String, String>,
    /// The policy's promises.
    pub rpo: &'static str,
    pub rto: &'static str,
}

impl World {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backend: SharedBackend = Arc::new(Folder::create_root(dir.path().join("store")).unwrap());
        let [operator, second_operator, standby_agent, source] =
            std::array::from_fn(|_| Arc::new(Signer::generate().0));
        let (identity, recipient) = keys::generate_identity();
        identity.write_new(&dir.path().join("keys/south.identity"), "opens the store").unwrap();
        let (secret, _) = BlockSecret::generate();
        let role = |signer: &Signer, role, site: Option<SiteName>, name: &str| KeyRole {
            key: signer.public(),
            role,
            site,
            name: name.into(),
        };
        let roles = vec![
            role(&operator, Role::Operator, None, "ann"),
            role(&second_operator, Role::Operator, None, "bob"),
            role(&standby_agent, Role::StandbyAgent, Some(south()), "south"),
            role(&source, Role::SourceAgent, Some(north()), "north"),
        ];
        let format = Format::new(vec![recipient], roles, &secret, Timestamp::now()).unwrap();
        format.create(&backend).await.unwrap();
        let store = Store::open(backend, None).await.unwrap();
        let world = Self {
            dir,
            store,
            operator,
            second_operator,
            standby_agent,
            source,
            secret,
            variables: BTreeMap::new(),
            rpo: "2h",
            rto: "1h",
        };
        world.say(&world.source, Statement::GroupFounded { group: cloud(), primary: north() }).await;
        world
    }

    /// Writes an entry into the group's ledger.
    pub async fn say(&self, signer: &Signer, statement: Statement) {
        let mut ledger = Ledger::open(&self.store, &cloud()).await.unwrap();
        ledger.append(signer, |_| Ok(statement.clone())).await.unwrap();
    }

    pub async fn state(&self) -> GroupState {
        Ledger::open(&self.store, &cloud()).await.unwrap().state().clone()
    }

    /// South as one machine sees it. The places are the same for all machines, the state is not.
    pub async fn standby(&self, machine: &str) -> Standby {
        let config = Arc::new(self.config(machine));
        Standby::open(&config, &south()).await.unwrap()
    }

    pub fn config(&self, machine: &str) -> Config {
        let folder = self.dir.path().join("machines").join(machine);
        std::fs::create_dir_all(folder.join("policies")).unwrap();
        let lines: Vec<String> =
            self.variables.iter().map(|(name, value)| format!("      {name}: {value:?}\n")).collect();
        let variables = lines.concat();
        let variables =
            if variables.is_empty() { String::new() } else { format!("    variables:\n{variables}") };
        let root = self.dir.path().display();
        let text = format!(
            "site: south\nsites: {{ north: {{}}, south: {{}} }}\nstate: ./state\nstores:\n  south:\n    url: {root}/store\n    identity: {root}/keys/south.identity\nplaces:\n  cloud:\n    sqlite: {{ path: {root}/south/cloud.db }}\n    glance: {{ path: {root}/south/images }}\n    cinder: {{ path: {root}/south/volumes }}\n    files: {{ path: {root}/south/files }}\n{variables}"
        );
        std::fs::write(folder.join("farsite.yaml"), text).unwrap();
        let policy = format!(
            "group: cloud\nsite: north\nto: [south]\nlevel: application\nschedule: \"@hourly\"\nrpo: {}\nrto: {}\nitems:\n  - sqlite: {{ path: /nowhere/cloud.db }}\n",
            self.rpo, self.rto
        );
        std::fs::write(folder.join("policies/cloud.yaml"), policy).unwrap();
        Config::load(&folder.join("farsite.yaml")).unwrap()
    }

    pub fn south(&self, path: &str) -> PathBuf {
        self.dir.path().join("south").join(path)
    }

    /// What the database holds at point `n`: a table with the numbers up to `n`, and Keystone's endpoints.
    fn database(&self, n: u64) -> Vec<u8> {
        let path = self.dir.path().join(format!("north-{n}.db"));
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE heartbeat (n INTEGER PRIMARY KEY);
                 CREATE TABLE keystone_endpoint (id INTEGER PRIMARY KEY, url TEXT NOT NULL);
                 INSERT INTO keystone_endpoint (url) VALUES ('http://north:5000'), ('http://north:9292');
                 CREATE TABLE images (id TEXT PRIMARY KEY)",
            )
            .unwrap();
        for number in 1..=n {
            connection.execute("INSERT INTO heartbeat VALUES (?1)", [number as i64]).unwrap();
        }
        for image in IMAGES {
            connection.execute("INSERT INTO images VALUES (?1)", [image]).unwrap();
        }
        connection.close().unwrap();
        std::fs::read(path).unwrap()
    }

    /// A whole point of state `n`, captured now.
    pub async fn point(&self, n: u64) -> PointId {
        self.point_with(n, |_| {}).await
    }

    /// The same with a manifest that a test may spoil; a point with a failed or carried item is committed as partial.
    pub async fn point_with(&self, n: u64, spoil: impl FnOnce(&mut Manifest)) -> PointId {
        let captured = self.store.backend.time().await.unwrap();
        let manifest = self.manifest(n, CaptureTime(captured.0), spoil).await;
        self.commit(&manifest).await
    }

    /// Writes the data and the manifest of a point that is not committed yet.
    pub async fn manifest(
        &self,
        n: u64,
        captured: CaptureTime,
        spoil: impl FnOnce(&mut Manifest),
    ) -> Manifest {
        let state = self.state().await;
        let run = RunId::from_random(1_000 + n);
        let sealer = Sealer::begin(&self.store, &self.source, &north(), &cloud(), run).await.unwrap();
        let mut writer = RunWriter::begin(
            &self.store,
            sealer,
            self.secret.clone(),
            IngestOptions::within(64 << 20, (3, 3)),
            &self.dir.path().join(format!("resume-{run}")),
            Arc::new(AtomicBool::new(false)),
        )
        .unwrap();
        let mut put = |item: &ItemId, content: Arc<dyn ReadAt>| -> MapRoot {
            let maps = self.dir.path().join("maps");
            let mut out = LocalMapWriter::create(&maps, item).unwrap();
            let map = writer.ingest(&Input::first(item.as_str(), &*content, 65536), &mut out).unwrap();
            out.commit().unwrap();
            map
        };
        let stamp =
            CaptureStamp::at_commit(captured, &[ClockSkew::ZERO], self.store.backend.time().await.unwrap());
        let item = |id: ItemId, kind, data, directory| ManifestItem {
            id,
            kind,
            stamp,
            consistency: Consistency::Crash,
            data,
            directory,
            ancestor: None,
            details: BTreeMap::new(),
            carried_from: None,
            signals: None,
            log: None,
        };
        let mut items = Vec::new();
        let id = ItemId::new(ItemKind::Sqlite, "cloud");
        let data = put(&id, Arc::new(InMemory(self.database(n))));
        items.push(item(id, ItemKind::Sqlite, data, None));
        for (index, image) in IMAGES.iter().enumerate() {
            let id = ItemId::new(ItemKind::Glance, image);
            let bytes = noise(index as u64, 150_000);
            let sha512 = {
                let path = self.dir.path().join("image-to-hash");
                std::fs::write(&path, &bytes).unwrap();
                farsite_promote::compare::sha512(&path).unwrap()
            };
            let data = put(&id, Arc::new(InMemory(bytes)));
            let mut image = item(id, ItemKind::Glance, data, None);
            image.details.insert("sha512".into(), sha512);
            items.push(image);
        }
        let id = ItemId::new(ItemKind::Cinder, VOLUME);
        let data = put(&id, Arc::new(InMemory(volume(n))));
        items.push(item(id, ItemKind::Cinder, data, None));
        let (root, paths) = self.key_files(n);
        let (entries, _) =
            tree::place(LocalTree::new(&root, paths).entries().unwrap(), 65536, &tree::Layout::new());
        let id = ItemId::new(ItemKind::Files, "keystone");
        let data = put(&id, Arc::new(tree::TreeContent::new(&root, &entries)));
        let directory = put(
            &ItemId::new(ItemKind::Files, "keystone#directory"),
            Arc::new(InMemory(serde_json::to_vec(&entries).unwrap())),
        );
        items.push(item(id, ItemKind::Files, data, Some(directory)));
        writer.flush().await.unwrap();
        let mut manifest = Manifest {
            version: MANIFEST_VERSION,
            point: PointId::from_random(0xabc0_0000_0000_0000 + n),
            group: cloud(),
            site: north(),
            epoch: state.epoch(),
            run,
            parent: None,
            started: captured,
            skews: vec![ClockSkew::ZERO],
            items,
            absent: Vec::new(),
            failed: Vec::new(),
            read_bytes: 1,
            changed_bytes: 1,
            shipped_bytes: 1,
        };
        spoil(&mut manifest);
        manifest
    }

    /// A point becomes visible.
    pub async fn commit(&self, manifest: &Manifest) -> PointId {
        let hash = manifest.write(&self.store, &self.source).await.unwrap();
        let committed = Committed {
            point: manifest.point,
            epoch: manifest.epoch,
            run: manifest.run,
            manifest: hash,
            by_kind: manifest.by_kind(),
            whole: manifest.is_whole(),
            items: manifest.items.len() as u64,
            weakest: manifest.weakest(),
            changed_bytes: 1,
            shipped_bytes: 1,
            suspicious: Vec::new(),
            timelines: Vec::new(),
        };
        self.say(&self.source, Statement::PointCommitted(committed)).await;
        manifest.point
    }

    /// Keystone's keys as north has them: number and contents change from point to point.
    fn key_files(&self, n: u64) -> (PathBuf, Vec<PathBuf>) {
        let root = self.dir.path().join(format!("north-keys-{n}"));
        std::fs::create_dir_all(root.join(KEYS)).unwrap();
        let mut paths = vec![PathBuf::from(KEYS)];
        for key in 0..=n % 3 {
            let path = Path::new(KEYS).join(key.to_string());
            std::fs::write(root.join(&path), format!("key {key} of point {n}")).unwrap();
            std::fs::set_permissions(root.join(&path), std::fs::Permissions::from_mode(0o600)).unwrap();
            paths.push(path);
        }
        (root, paths)
    }

    /// South holds exactly what point `n` holds.
    pub fn assert_restored(&self, n: u64) {
        assert_eq!(heartbeats(&self.south("cloud.db")), n as i64);
        for (index, image) in IMAGES.iter().enumerate() {
            assert!(std::fs::read(self.south("images").join(image)).unwrap() == noise(index as u64, 150_000));
        }
        assert!(std::fs::read(self.south("volumes").join(VOLUME)).unwrap() == volume(n));
        let keys = std::fs::read_dir(self.south("files").join(KEYS)).unwrap().count() as u64;
        assert_eq!(keys, n % 3 + 1, "no key of another point is left");
        let key = std::fs::read_to_string(self.south("files").join(KEYS).join("0")).unwrap();
        assert_eq!(key, format!("key 0 of point {n}"));
    }

    /// Nothing stands in south's places.
    pub fn assert_empty(&self) {
        for path in ["cloud.db", "images", "volumes", &format!("files/{KEYS}")] {
            let path = self.south(path);
            let left: Vec<PathBuf> = match std::fs::read_dir(&path) {
                Ok(entries) => entries
                    .map(|e| e.unwrap().path())
                    .filter(|p| !p.display().to_string().contains(".undone-"))
                    .collect(),
                Err(_) if path.exists() => vec![path],
                Err(_) => Vec::new(),
            };
            assert!(left.is_empty(), "{left:?}");
        }
    }

    /// Overwrites one byte in the middle of an object, as a failing disk does.
    pub fn spoil_object(&self, key: &str) {
        let path = self.dir.path().join("store").join(key);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let mut permissions = std::fs::metadata(&path).unwrap().permissions();
        permissions.set_mode(0o600);
        std::fs::set_permissions(&path, permissions).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
}

/// Marks an item as failed in this run: the point carries an earlier version of it.
pub fn carried(manifest: &mut Manifest, item: &str, from: PointId, age: SignedDuration) {
    let id = ItemId::parse(item);
    let found = manifest.items.iter_mut().find(|i| i.id == id).unwrap();
    found.carried_from = Some(from);
    found.stamp.captured = CaptureTime(found.stamp.captured.0 - age);
    manifest.failed.push(FailedItem { id, why: "a test said so".into() });
}

/// The last number in a database's table.
pub fn heartbeats(database: &Path) -> i64 {
    let connection = rusqlite::Connection::open(database).unwrap();
    connection.query_row("SELECT MAX(n) FROM heartbeat", [], |row| row.get(0)).unwrap()
}

/// Contents of the volume at point `n`: a changing block, a hole, a fixed end.
pub fn volume(n: u64) -> Vec<u8> {
    let mut bytes = noise(100 + n, 100_000);
    bytes.resize(400_000, 0);
    bytes.extend(noise(99, 50_001));
    bytes
}

/// Incompressible bytes from a seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
