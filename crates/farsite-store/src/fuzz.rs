//! Every parser of stored or local bytes gets arbitrary bytes and mutated valid bytes. What must hold: no panic, memory
//! within a bound, and no changed object is taken for what was written. `FARSITE_CASES` says how many of each; `cargo
//! xtask fuzz` runs many, with other seeds each time.

use std::collections::BTreeMap;
use std::sync::Arc;

use farsite_model::content::{InMemory, ReadAt};
use farsite_model::{Epoch, GroupName, ItemId, ItemKind, PointId, RunId, SiteName, StoreTime};
use proptest::prelude::*;

use crate::amendments::{self, Amendment};
use crate::backend::SharedBackend;
use crate::backend::folder::Folder;
use crate::blob::{self, BlobRef, Location};
use crate::chain::{Chain, Head};
use crate::format::Format;
use crate::hex::Hex;
use crate::ingest::{IngestOptions, Input, RunWriter};
use crate::keys::{BlockSecret, KeyRole, Role, Signer};
use crate::ledger::{Ledger, Statement};
use crate::local_map::{LocalMap, LocalMapWriter};
use crate::logs::{self, SegmentHeader};
use crate::manifest::Manifest;
use crate::map::{MapRoot, Node};
use crate::pack::{self, PackBuilder, PatchBase};
use crate::read::encoded::{self, Encoded};
use crate::seal::{BlobKind, ContentKey, ContentKeyObject, Opener, Sealer};
use crate::shipped::Shipped;
use crate::signed::{self, Kind};
use crate::{Store, StoreError};

/// No parser takes more than this at once: the largest block twice, and what the test itself holds.
const MOST_MEMORY_KIB: u64 = 96 << 10;

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("FARSITE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// A change of valid bytes.
#[derive(Debug, Clone)]
enum Mutation {
    Flip(usize, u8),
    Set(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Repeat(usize, usize),
    /// A little-endian number that a length or an offset may be.
    Number(usize, u32),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = 0usize..1 << 20;
    prop_oneof![
        (at.clone(), 0u8..8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        (at.clone(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        at.clone().prop_map(Mutation::Cut),
        (at.clone(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, b)| Mutation::Insert(at, b)),
        (at.clone(), 1usize..60).prop_map(|(at, len)| Mutation::Remove(at, len)),
        (at.clone(), 1usize..60).prop_map(|(at, len)| Mutation::Repeat(at, len)),
        (at, prop_oneof![Just(0), Just(u32::MAX), Just(1 << 31), any::<u32>()])
            .prop_map(|(at, number)| Mutation::Number(at, number)),
    ]
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    prop::collection::vec(mutation(), 1..4)
}

fn mutated(good: &[u8], mutations: &[Mutation]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for mutation in mutations {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        match mutation {
            Mutation::Flip(at, bit) => bytes[at % len] ^= 1 << bit,
            Mutation::Set(at, byte) => bytes[at % len] = *byte,
            Mutation::Cut(at) => bytes.truncate(at % len),
            Mutation::Insert(at, more) => drop(bytes.splice(at % len..at % len, more.iter().copied())),
            Mutation::Remove(at, count) => drop(bytes.drain(at % len..len.min(at % len + count))),
            Mutation::Repeat(at, count) => {
                let part = bytes[at % len..len.min(at % len + count)].to_vec();
                drop(bytes.splice(at % len..at % len, part));
            }
            Mutation::Number(at, number) => {
                let at = at % len;
                let end = len.min(at + 4);
                bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
        }
    }
    bytes
}

fn arbitrary() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..600)
}

/// The most memory that this process has taken.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn within_memory(work: impl FnOnce()) {
    let before = peak_kib();
    work();
    let grown = peak_kib() - before;
    assert!(grown < MOST_MEMORY_KIB, "{grown} KiB more");
}

fn text(len: usize) -> Vec<u8> {
    (0..len as u32).flat_map(|n| (n / 7).to_le_bytes()).take(len).collect()
}

fn child(n: u8) -> BlobRef {
    let at = Location { pack: Hex([n % 3; 16]), key: Hex([7; 16]), offset: u32::from(n) * 100, len: 50 };
    BlobRef { id: Hex([n; 32]), at }
}

/// What an opened blob may hold: it must be decoded within its bound or refused.
fn decode(plain: &[u8]) {
    let mut out = Vec::new();
    match Encoded::parse(plain) {
        Some(Encoded::Raw(raw)) => assert!(raw.len() < plain.len()),
        Some(Encoded::Zstd { raw_len, payload }) => {
            let opened = encoded::inflate(payload, raw_len, &mut out);
            assert!(!opened || out.len() == raw_len);
        }
        Some(Encoded::Patch { raw_len, payload, depth, .. }) => {
            assert!((1..=blob::MAX_PATCH_DEPTH).contains(&depth));
            let opened = encoded::patch(&text(5000), payload, raw_len, &mut out);
            assert!(!opened || out.len() == raw_len);
        }
        None => {}
    }
    assert!(out.capacity() <= 4 << 20, "{} bytes", out.capacity());
    assert!(encoded::whole(plain).is_none_or(|raw| raw.len() <= 4 << 20));
}

#[test]
fn any_bytes_in_the_place_of_a_blob_are_decoded_within_the_largest_block_or_refused() {
    let raw = text(9000);
    let patch = blob::encode_patch(&raw, &child(4), &text(5000), 1, 3).unwrap();
    let seeds = [blob::encode(&raw, 3), blob::encode(b"short", 3), patch];
    within_memory(|| {
        proptest!(cases(1000), |(any in arbitrary(), codec in 0u8..8, seed in 0usize..3, how in mutations())| {
            decode(&any);
            decode(&[&[codec][..], &any].concat());
            decode(&mutated(&seeds[seed], &how));
        });
    });
}

#[test]
fn any_bytes_in_the_place_of_a_node_are_a_node_or_refused() {
    let node = Node { level: 1, children: vec![Some(child(1)), None, Some(child(2)), Some(child(4)), None] };
    let good = node.raw(&node.logical());
    let secret = BlockSecret::from_bytes([1; 32]);
    let id = secret.node_id(&node.logical());
    let check = |raw: &[u8]| {
        let Some((logical, parsed)) = Node::parse(raw) else { return };
        assert!(parsed.children.len() as u64 <= crate::map::FAN_OUT);
        // What has the node's id names the node's children, wherever they lie.
        if secret.node_id(logical) == id {
            let ids = |node: &Node| node.children.iter().map(|c| c.map(|c| c.id)).collect::<Vec<_>>();
            assert_eq!(ids(&parsed), ids(&node));
        }
    };
    within_memory(|| {
        proptest!(cases(2000), |(any in arbitrary(), how in mutations())| {
            check(&any);
            check(&mutated(&good, &how));
        });
    });
}

#[test]
fn a_changed_pack_is_never_believed_and_any_index_is_read_or_refused() {
    let (key, secret) = (Hex([7; 16]), [1; 32]);
    let sealer = Sealer::known(key, &secret);
    let opens = ContentKey::known(key, &secret);
    let mut builder = PackBuilder::with_id(Hex([5; 16]), key, 0);
    for n in 0..20 {
        let sealed = sealer.seal(BlobKind::Block, &[n; 32], &blob::encode(&text(300), 3));
        let base = (n % 3 == 1).then(|| PatchBase { pack: Hex([9; 16]), key, depth: n % 8 + 1 });
        builder.push(BlobKind::Block, Hex([n; 32]), &sealed, base);
    }
    let good = builder.finish(&sealer);
    pack::read_index(&good.id, &good.bytes, &opens).unwrap();
    within_memory(|| {
        proptest!(cases(1000), |(any in arbitrary(), version in 0u32..4, how in mutations())| {
            assert!(pack::check_whole(&good.id, &any).is_err());
            let bad = mutated(&good.bytes, &how);
            if bad != good.bytes {
                assert!(pack::read_index(&good.id, &bad, &opens).is_err());
                // Somebody who can compute a hash and holds no key.
                if let Some(body) = bad.len().checked_sub(32) {
                    let mut forged = bad.clone();
                    let hash = *blake3::hash(&bad[..body]).as_bytes();
                    forged[body..].copy_from_slice(&hash);
                    if let Ok(index) = pack::read_index(&good.id, &forged, &opens) {
                        assert_eq!(index.entries, good.index, "the index is sealed");
                    }
                }
            }
            // What stands inside the seal.
            if let Some(index) = pack::parse_index(&any, version) {
                assert!(index.entries.len() * 41 <= any.len() && index.bases.len() * 33 <= any.len());
            }
            let _ = pack::trailer_makes_sense(&any);
        });
    });
}

#[test]
fn a_changed_sealed_blob_never_opens() {
    let (key, secret) = (Hex([7; 16]), [1; 32]);
    let good = Sealer::known(key, &secret).seal(BlobKind::Node, &[3; 32], &text(500));
    let opens = ContentKey::known(key, &secret);
    proptest!(cases(2000), |(any in arbitrary(), how in mutations(), kind in 0usize..4)| {
        assert!(opens.open(BlobKind::Node, &[3; 32], &any).is_none());
        let bad = mutated(&good, &how);
        assert!(bad == good || opens.open(BlobKind::Node, &[3; 32], &bad).is_none());
        let kind = [BlobKind::Block, BlobKind::PackIndex, BlobKind::LogSegment, BlobKind::Node][kind];
        assert_eq!(opens.open(kind, &[3; 32], &good).is_some(), kind == BlobKind::Node);
    });
}

#[test]
fn a_changed_signed_object_is_never_believed() {
    let (signer, _) = Signer::generate();
    let role = KeyRole { key: signer.public(), role: Role::Operator, site: None, name: "ann".into() };
    let (_, recipient) = crate::keys::generate_identity();
    let secret = BlockSecret::from_bytes([1; 32]);
    let format = Format::new(vec![recipient], vec![role], &secret, jiff::Timestamp::UNIX_EPOCH).unwrap();
    let good = signed::seal(&signer, Kind::Ledger, &format.store, "ledger/cloud/0", b"{\"version\":1}");
    signed::open(&format, Kind::Ledger, "ledger/cloud/0", &good).unwrap();
    proptest!(cases(2000), |(any in arbitrary(), how in mutations(), key in "[a-z/0-9]{1,20}")| {
        assert!(signed::open(&format, Kind::Ledger, "ledger/cloud/0", &any.clone().into()).is_err());
        let line = [b"farsite/1 ledger ", &any[..], b"\n"].concat();
        assert!(signed::open(&format, Kind::Ledger, "ledger/cloud/0", &line.into()).is_err());
        let bad = mutated(&good, &how);
        let same = bad == good;
        assert!(same || signed::open(&format, Kind::Ledger, "ledger/cloud/0", &bad.into()).is_err());
        assert!(key == "ledger/cloud/0" || signed::open(&format, Kind::Ledger, &key, &good).is_err());
        for kind in [Kind::ContentKey, Kind::Manifest, Kind::LogSegment, Kind::Journal, Kind::Amendment, Kind::Wrap] {
            assert!(signed::open(&format, kind, "ledger/cloud/0", &good).is_err());
        }
    });
}

#[test]
fn any_name_of_an_object_is_understood_or_left_alone() {
    proptest!(cases(2000), |(any in "\\PC{0,60}", sequence in any::<u64>(), rest in "[0-9a-z.e-]{0,40}")| {
        for key in [any.clone(), format!("logs/cloud/x/{sequence}.e{rest}"), format!("wraps/{rest}/{any}")] {
            let _ = logs::parse_name(&key, StoreTime(jiff::Timestamp::UNIX_EPOCH));
            let _ = amendments::wrap_of(&key);
            let _ = any.parse::<Hex<16>>();
        }
    });
}

/// A small store that holds one object of every kind, with its keys.
struct Small {
    dir: tempfile::TempDir,
    store: Store,
    opener: Opener,
    source: Signer,
    secret: BlockSecret,
    objects: Vec<String>,
    head: Head,
    timeline: Hex<8>,
    manifest: (PointId, Hex<32>),
    content_key: crate::seal::ContentKeyId,
    recipient: String,
}

fn site() -> SiteName {
    SiteName::new("north").unwrap()
}
fn group() -> GroupName {
    GroupName::new("cloud").unwrap()
}

impl Small {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backend: SharedBackend = Arc::new(Folder::create_root(dir.path().join("store")).unwrap());
        let [(operator, _), (source, _), (standby, _)] = std::array::from_fn(|_| Signer::generate());
        let identity = age::x25519::Identity::generate();
        let late = age::x25519::Identity::generate();
        let secret = BlockSecret::from_bytes([1; 32]);
        let role = |signer: &Signer, role, site: Option<SiteName>| KeyRole {
            key: signer.public(),
            role,
            site,
            name: "x".into(),
        };
        let roles = vec![
            role(&operator, Role::Operator, None),
            role(&source, Role::SourceAgent, Some(site())),
            role(&standby, Role::StandbyAgent, Some(SiteName::new("south").unwrap())),
        ];
        let recipients = vec![identity.to_public().to_string()];
        Format::new(recipients, roles, &secret, jiff::Timestamp::now())
            .unwrap()
            .create(&backend)
            .await
            .unwrap();
        let store = Store::open(backend, None).await.unwrap();
        let opener = Opener::new(&store, vec![identity]).unwrap();
        let run = RunId::from_random(1);
        let sealer = Sealer::begin(&store, &source, &site(), &group(), run).await.unwrap();
        let timeline = Hex([7; 8]);
        let header = SegmentHeader {
            version: 1,
            group: group(),
            site: site(),
            item: ItemId::new(ItemKind::Mariadb, "main"),
            epoch: Epoch(1),
            timeline,
            sequence: 0,
            file: "bin.000001".into(),
            first: 0,
            last: 500,
            covers: None,
            content_key: sealer.content_key(),
        };
        logs::write(&store, &source, &sealer, &header, &text(500)).await.unwrap();
        let point = PointId::from_random(1);
        let manifest = Manifest {
            version: 1,
            point,
            group: group(),
            site: site(),
            epoch: Epoch(1),
            run,
            parent: None,
            started: farsite_model::CaptureTime(jiff::Timestamp::now()),
            skews: vec![],
            items: vec![],
            absent: vec![],
            failed: vec![],
            read_bytes: 0,
            changed_bytes: 0,
            shipped_bytes: 0,
        };
        let hash = manifest.write(&store, &source).await.unwrap();
        let mut ledger = Ledger::open(&store, &group()).await.unwrap();
        let says = Statement::GroupFounded { group: group(), primary: site() };
        ledger.append(&source, |_| Ok(says.clone())).await.unwrap();
        let recipient = late.to_public().to_string();
        let says = Amendment::RecipientAdded {
            block_secret: opener.wrap_block_secret(&recipient).unwrap(),
            recipient: recipient.clone(),
            name: "late".into(),
            who: "ann".into(),
            reason: "x".into(),
        };
        amendments::append(&store, &operator, |_| Ok(says.clone())).await.unwrap();
        let recipients = store.format().recipients.clone();
        amendments::wrap_missing(&store, &opener, &standby, &recipients, false, &()).await.unwrap();
        let listed = store.backend.list("", None).await.unwrap();
        let objects = listed.into_iter().map(|object| object.key).collect();
        let (content_key, head) = (sealer.content_key(), store.format().amended.head);
        let manifest = (point, hash);
        Self { dir, store, opener, source, secret, objects, head, timeline, manifest, content_key, recipient }
    }

    /// Reads the object through whatever reads it in earnest. True: it was believed.
    async fn believes(&self, object: &str) -> bool {
        let damaged = |result: Result<(), StoreError>| match result {
            Ok(()) => true,
            Err(
                StoreError::Damaged(_)
                | StoreError::WrongStore { .. }
                | StoreError::UnknownVersion { .. }
                | StoreError::Key(_),
            ) => false,
            Err(other) => panic!("{object}: {other}"),
        };
        let store = &self.store;
        match object.split('/').next().unwrap() {
            "format" => {
                // Without its pin anything may come out, but no panic; with it nothing but itself.
                let _ = Format::read(&store.backend, None).await;
                damaged(Format::read(&store.backend, Some(&store.id)).await.map(|_| ()))
            }
            "keys" => {
                let read = ContentKeyObject::read(store, self.content_key).await.map(|_| ());
                let opened = self.opener.raw_key(store, self.content_key).await.map(|_| ());
                damaged(read) & damaged(opened)
            }
            "wraps" => {
                let found = amendments::find_wrap(store, &self.recipient, self.content_key).await.unwrap();
                !found.good.is_empty()
            }
            "manifests" => {
                damaged(Manifest::read(store, &group(), self.manifest.0, &self.manifest.1).await.map(|_| ()))
            }
            "ledger" => {
                let chain: Chain<Statement> = Chain::new(store, "ledger/cloud".into(), Kind::Ledger);
                chain.read(Head::START).await.unwrap().0[0].said.is_ok()
            }
            "amendments" => {
                store.expect_amendments(self.head).await.unwrap();
                let format = store.format();
                format.amended.damage.is_empty() && format.recipients.len() == 2
            }
            "logs" => {
                let segments = logs::list(store, &group(), &self.timeline, None).await.unwrap();
                damaged(logs::read(store, &self.opener, &segments[0]).await.map(|_| ()))
            }
            other => panic!("{other} is no kind of object"),
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn any_bytes_in_the_place_of_any_object_are_never_believed() {
    let runtime = runtime();
    let small = runtime.block_on(Small::new());
    let kinds: std::collections::BTreeSet<&str> =
        small.objects.iter().map(|object| object.split('/').next().unwrap()).collect();
    assert_eq!(
        Vec::from_iter(kinds),
        ["amendments", "format", "keys", "ledger", "logs", "manifests", "wraps"]
    );
    let good: BTreeMap<&String, Vec<u8>> = small
        .objects
        .iter()
        .map(|object| (object, std::fs::read(small.dir.path().join("store").join(object)).unwrap()))
        .collect();
    within_memory(|| {
        proptest!(cases(150), |(any in arbitrary(), which in 0usize..7, how in mutations(), whole in any::<bool>())| {
            let object = &small.objects[which];
            let path = small.dir.path().join("store").join(object);
            let bad = if whole { any } else { mutated(&good[object], &how) };
            std::fs::write(&path, &bad).unwrap();
            let believed = runtime.block_on(small.believes(object));
            std::fs::write(&path, &good[object]).unwrap();
            assert_eq!(believed, bad == good[object], "{object}");
        });
    });
    for object in &small.objects {
        assert!(runtime.block_on(small.believes(object)), "{object} is mended");
    }
}

/// One run over `content` with everything that this host keeps; what a reader gets back.
async fn replicated(small: &Small, run: u64, content: &[u8]) -> Vec<u8> {
    let folder = small.dir.path().join("host");
    let item = ItemId::new(ItemKind::Volume, "v");
    let run = RunId::from_random(run);
    let sealer = Sealer::begin(&small.store, &small.source, &site(), &group(), run).await.unwrap();
    let options = IngestOptions { pack_bytes: 10_000, ..IngestOptions::within(64 << 20, (1, 1)) };
    let log = folder.join("run.packs");
    let mut writer =
        RunWriter::begin(&small.store, sealer, small.secret.clone(), options, &log, Arc::default()).unwrap();
    let maps = folder.join("maps");
    let previous = LocalMap::open(&maps, &item).unwrap();
    let mut out = LocalMapWriter::create(&maps, &item).unwrap();
    let shipped = Shipped::open(&folder.join("shipped"), 16 << 20).unwrap();
    let copies = shipped.item(&item, 4096).unwrap();
    let content: Arc<dyn ReadAt> = Arc::new(InMemory(content.to_vec()));
    let input =
        Input { previous: previous.as_ref(), copies: Some(&copies), ..Input::first("v", &*content, 4096) };
    let map: MapRoot = writer.ingest(&input, &mut out).unwrap();
    writer.flush().await.unwrap();
    out.commit().unwrap();
    let secret = Opener::new(&small.store, small.opener.identities()).unwrap();
    let reader = crate::read::Reader::new(small.store.clone(), Arc::new(secret));
    reader.read_small(&map, 1 << 20).await.unwrap()
}

fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn any_bytes_in_the_place_of_a_file_of_this_host_cost_work_and_spoil_no_point() {
    let runtime = runtime();
    let small = runtime.block_on(Small::new());
    let host = small.dir.path().join("host");
    let first = text(30_000);
    let mut second = first.clone();
    second[5000] ^= 1;
    assert!(runtime.block_on(replicated(&small, 100, &first)) == first);
    let good: Vec<_> =
        files(&host).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    // The small file and the leaves of the block map, the resume log, the copies.
    assert_eq!(good.len(), 4);
    within_memory(|| {
        proptest!(cases(40), |(any in arbitrary(), which in 0usize..4, how in mutations(), way in 0u8..4)| {
            let (path, bytes) = &good[which];
            match way {
                0 => std::fs::write(path, &any).unwrap(),
                1 => std::fs::remove_file(path).unwrap(),
                _ => std::fs::write(path, mutated(bytes, &how)).unwrap(),
            }
            assert!(runtime.block_on(replicated(&small, 101, &second)) == second, "{}", path.display());
            for (path, bytes) in &good {
                std::fs::write(path, bytes).unwrap();
            }
        });
    });
}
