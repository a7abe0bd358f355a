//! Every kind of object, damaged in every way, as a table whose cells are all executed and printed: each either names the
//! object, or (for files that are a cache of this host) costs nothing but work. Nothing wrong is ever returned, and one
//! damaged object leaves an undamaged point.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::common::{World, founded, group, noise, run_to_commit, site};
use farsite_model::{Epoch, ItemId, ItemKind, Level, Mode, PromotionId, RunId};
use farsite_store::amendments::{self, Amendment, Roster, roster, wrap_missing};
use farsite_store::chain::{Chain, Head};
use farsite_store::hex::Hex;
use farsite_store::journal::journal;
use farsite_store::ledger::{Ledger, SiteLedger, SiteStatement};
use farsite_store::logs::{self, SegmentHeader};
use farsite_store::manifest::Manifest;
use farsite_store::pack;
use farsite_store::read::Reader;
use farsite_store::seal::{Opener, Sealer};
use farsite_store::signed::Kind;
use farsite_store::{Store, StoreError};

const TIMELINE: Hex<8> = Hex([7; 8]);
const POINTS: u64 = 3;
const BYTES: usize = 100_000;

const KINDS: [&str; 10] = [
    "format",
    "amendments/",
    "keys/",
    "wraps/",
    "packs/",
    "manifests/",
    "ledger/",
    "sites/",
    "journal/",
    "logs/",
];
const WAYS: [&str; 6] = ["flip", "truncate", "remove", "swap", "roll back", "roll back the end"];

/// A store that holds every kind of object, at least two of each (but the format object).
struct Filled {
    world: World,
    /// Was added after the first point: it needs wraps for that one.
    late: age::x25519::Identity,
    /// Read when all was whole: it knows how far each chain had come.
    seen: Head,
    other_format: Vec<u8>,
}

fn promotion() -> PromotionId {
    PromotionId::from_random(1)
}

fn content(id: u64) -> Vec<u8> {
    noise(id, BYTES)
}

async fn add_recipient(world: &World, identity: &age::x25519::Identity) {
    let recipient = identity.to_public().to_string();
    let block_secret = world.reader().opener.wrap_block_secret(&recipient).unwrap();
    let says = Amendment::RecipientAdded {
        recipient,
        name: "late".into(),
        block_secret,
        who: "ann".into(),
        reason: "test".into(),
    };
    amendments::append(&world.store, &world.operator, |_| Ok(says.clone())).await.unwrap();
}

fn begun() -> SiteStatement {
    SiteStatement::PromotionBegun {
        promotion: promotion(),
        from: site("north"),
        to: site("south"),
        mode: Mode::Failover,
        level: Level::Data,
        groups: vec![],
        runbook: "data".into(),
        runbook_text: String::new(),
        who: "ann".into(),
        reason: "test".into(),
        fencing: "unfenced".into(),
        disaster_at: None,
    }
}

async fn filled(world: World) -> Filled {
    let mut ledger = Ledger::open(&world.store, &group()).await.unwrap();
    ledger.append(&world.source, |_| Ok(founded())).await.unwrap();
    // Nothing in common, so that each point has packs of its own.
    for id in 1..=2 {
        run_to_commit(&world, &world.store, id, content(id)).await.unwrap();
    }
    let late = age::x25519::Identity::generate();
    add_recipient(&world, &late).await;
    add_recipient(&world, &age::x25519::Identity::generate()).await;
    let recipients = world.store.format().recipients.clone();
    wrap_missing(&world.store, &world.reader().opener, &world.standby, &recipients, false, &())
        .await
        .unwrap();
    run_to_commit(&world, &world.store, 3, content(3)).await.unwrap();
    let run = RunId::from_random(9);
    let sealer = Sealer::begin(&world.store, &world.source, &site("north"), &group(), run).await.unwrap();
    for sequence in 0..2 {
        let header = SegmentHeader {
            version: 1,
            group: group(),
            site: site("north"),
            item: ItemId::new(ItemKind::Mariadb, "main"),
            epoch: Epoch(1),
            timeline: TIMELINE,
            sequence,
            file: "bin.000001".into(),
            first: sequence * 1000,
            last: (sequence + 1) * 1000,
            covers: None,
            content_key: sealer.content_key(),
        };
        logs::write(&world.store, &world.source, &sealer, &header, &noise(sequence, 1000)).await.unwrap();
    }
    let mut site_ledger = SiteLedger::open(&world.store, &site("north")).await.unwrap();
    site_ledger.begin(&world.operator, begun()).await.unwrap();
    site_ledger.end(&world.operator, promotion(), "accepted", "ann").await.unwrap();
    let chain = journal::<Amendment>(&world.store, promotion());
    let mut head = Head::START;
    for _ in 0..3 {
        let says = Amendment::DamageAccepted { numbers: vec![1], who: "a".into(), reason: "b".into() };
        head = chain.append(head, &world.operator, says).await.unwrap().unwrap().0;
    }
    let seen = world.store.format().amended.head;
    let other = World::in_folder().await;
    let other_format = std::fs::read(other.path("format")).unwrap();
    Filled { world, late, seen, other_format }
}

/// What reading everything named; panics when anything wrong comes out.
struct Named {
    objects: Vec<String>,
    /// Points that were read whole.
    good: usize,
}

impl Named {
    fn note(&mut self, error: StoreError) {
        match error {
            StoreError::Damaged(found) => self.objects.extend(found.into_iter().map(|d| d.object)),
            StoreError::Refused(refusal) => panic!("not named as damage: {refusal}"),
            other => panic!("not named as damage: {other}"),
        }
    }
}

impl Filled {
    async fn read_all(&self) -> Named {
        let mut named = Named { objects: Vec::new(), good: 0 };
        let world = &self.world;
        let store = match Store::open(world.store.backend.clone(), Some(&world.store.id)).await {
            Ok(store) => store,
            Err(StoreError::NotInitialised { .. } | StoreError::WrongStore { .. }) => {
                named.objects.push("format".into());
                named.good = 1;
                return named;
            }
            // Found by the checksum that the server keeps.
            Err(StoreError::Damaged(found)) => {
                named.objects.extend(found.into_iter().map(|damage| damage.object));
                named.good = 1;
                return named;
            }
            Err(error) => panic!("{error}"),
        };
        store.expect_amendments(self.seen).await.unwrap();
        let amended = store.format().amended.damage.clone();
        named.objects.extend(amended.into_iter().map(|d| d.object));
        let ledger = Ledger::open(&store, &group()).await.unwrap();
        named.objects.extend(ledger.state().damage.iter().map(|d| d.object.clone()));
        // The standby's identity needs what the agents wrapped, the late one what was wrapped for it.
        for identity in [&world.identity, &self.late] {
            let Ok(opener) = Opener::new(&store, vec![identity.clone()]) else { continue };
            let reader = Reader::new(store.clone(), Arc::new(opener));
            for point in &ledger.state().points {
                let read = async {
                    let hash = &point.said.manifest;
                    let manifest = Manifest::read(&store, &group(), point.id(), hash).await?;
                    reader.read_small(&manifest.items[0].data, 1 << 30).await
                };
                match read.await {
                    Ok(bytes) => {
                        let whose = (1..=POINTS).find(|id| content(*id) == bytes);
                        let right = whose.map(farsite_model::PointId::from_random) == Some(point.id());
                        assert!(right, "a wrong volume came out of point {}", point.id());
                        named.good += 1;
                    }
                    // A wrap that is not to be had is no damage for this identity, but for whoever counts.
                    Err(StoreError::Key(_)) => {}
                    Err(error) => named.note(error),
                }
            }
            let segments = logs::list(&store, &group(), &TIMELINE, None).await.unwrap();
            if segments.len() < 2 {
                named.objects.push(format!("logs/cloud/{TIMELINE}/"));
            }
            for (index, segment) in segments.iter().enumerate() {
                match logs::read(&store, &reader.opener, segment).await {
                    Ok((_, bytes)) => assert!(bytes == noise(index as u64, 1000), "a wrong log came out"),
                    Err(StoreError::Key(_)) => {}
                    Err(error) => named.note(error),
                }
            }
        }
        // Who can open what, by the objects alone.
        let Roster { recipients, content_keys, damage, .. } = roster(&store).await.unwrap();
        named.objects.extend(damage.into_iter().map(|d| d.object));
        for line in recipients.iter().filter(|line| line.in_force && line.opens < content_keys) {
            let folder = amendments::fingerprint(&line.recipient.recipient);
            named.objects.push(format!("wraps/{folder}/"));
        }
        let sites = SiteLedger::open(&store, &site("north")).await.unwrap();
        named.objects.extend(sites.state().damage.iter().map(|d| d.object.clone()));
        if sites.state().promotions.iter().any(|promotion| promotion.ended.is_none()) {
            named.objects.push("sites/north/".into());
        }
        let chain: Chain<Amendment> = journal(&store, promotion());
        let (entries, _) = chain.read(Head::START).await.unwrap();
        for entry in &entries {
            let behind = entry.number.saturating_sub(u64::from(!entry.follows));
            if entry.said.is_err() || !entry.follows {
                named.objects.push(format!("journal/{}/{behind:016}", promotion()));
            }
        }
        // A pack's own hash covers what a restore does not read.
        for object in self.of_kind("packs/") {
            let id = object.rsplit('/').next().unwrap().parse().unwrap();
            if pack::check_whole(&id, &std::fs::read(world.path(&object)).unwrap()).is_err() {
                named.objects.push(object);
            }
        }
        named
    }

    fn of_kind(&self, kind: &str) -> Vec<String> {
        let root = &self.world.objects;
        let key = |path: &Path| path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        let all = crate::common::objects(root);
        all.iter().map(|path| key(path)).filter(|key| key.starts_with(kind)).collect()
    }

    fn path(&self, object: &str) -> PathBuf {
        self.world.path(object)
    }

    /// Puts `bytes` in the place of an object (`None`: nothing), reads everything, and puts the object back.
    async fn with(&self, changes: &[(&str, Option<&[u8]>)]) -> Named {
        let mut good = Vec::new();
        for (object, bytes) in changes {
            let path = self.path(object);
            good.push((path.clone(), std::fs::read(&path).unwrap()));
            match bytes {
                Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
        }
        let named = self.read_all().await;
        for (path, bytes) in good {
            std::fs::write(path, bytes).unwrap();
        }
        named
    }

    /// Executes one cell. Returns how many damages were tried; all were named.
    async fn cell(&self, kind: &str, way: &str, bits: &[u8]) -> usize {
        let objects = self.of_kind(kind);
        assert!(kind == "format" || objects.len() > 1, "{kind}: {objects:?}");
        let object = &objects[objects.len() / 2];
        let bytes = |object: &String| std::fs::read(self.path(object)).unwrap();
        let good = bytes(object);
        let last = good.len() - 1;
        let mut tried = Vec::new();
        match way {
            "flip" => {
                // The header, the signature, the body, the end.
                for offset in [0, 12, 40, 100, 170, last / 2, last] {
                    for bit in bits {
                        let mut bad = good.clone();
                        bad[offset.min(last)] ^= bit;
                        tried.push((
                            format!("bit {bit:#x} at {offset}"),
                            object.clone(),
                            self.with(&[(object, Some(&bad))]).await,
                        ));
                    }
                }
            }
            "truncate" => {
                for keep in [0, 10, last / 2, last] {
                    let named = self.with(&[(object, Some(&good[..keep]))]).await;
                    tried.push((format!("cut to {keep}"), object.clone(), named));
                }
            }
            "remove" => tried.push((way.into(), object.clone(), self.with(&[(object, None)]).await)),
            "swap" if kind == "format" => {
                let named = self.with(&[(object, Some(&self.other_format))]).await;
                tried.push(("another store's".into(), object.clone(), named));
            }
            "swap" => {
                let (a, b) = (&objects[0], &objects[1]);
                let named = self.with(&[(a, Some(&bytes(b))), (b, Some(&bytes(a)))]).await;
                // What is named first may hide the other.
                let seen = if named.objects.contains(a) { a } else { b };
                tried.push((way.into(), seen.clone(), named));
            }
            "roll back" if kind == "format" => {
                // As it was when it had one key less.
                let mut older: serde_json::Value = serde_json::from_slice(&good).unwrap();
                older["keys"].as_array_mut().unwrap().pop();
                let older = serde_json::to_vec_pretty(&older).unwrap();
                tried.push((way.into(), object.clone(), self.with(&[(object, Some(&older))]).await));
            }
            "roll back" => {
                let (older, newer) = (&objects[0], objects.last().unwrap());
                let named = self.with(&[(newer, Some(&bytes(older)))]).await;
                tried.push((way.into(), newer.clone(), named));
            }
            "roll back the end" => return self.without_the_end(kind, objects.last().unwrap()).await,
            other => panic!("{other}"),
        }
        for (what, object, named) in &tried {
            let hit =
                named.objects.iter().any(|n| n == object || (n.ends_with('/') && object.starts_with(n)));
            assert!(hit, "{what} of {object} was not named: {:?}", named.objects);
            assert!(named.good > 0 || kind == "ledger/", "{what} of {object} leaves no point");
        }
        tried.len()
    }

    /// The newest object of a kind is gone. Of a chain that is a whole, older chain: whoever had read it finds out.
    async fn without_the_end(&self, kind: &str, object: &str) -> usize {
        let signed = if kind == "journal/" { Kind::Journal } else { Kind::Ledger };
        let prefix = object.rsplit_once('/').map_or(object, |(prefix, _)| prefix).to_owned();
        let chain: Chain<serde_json::Value> = Chain::new(&self.world.store, prefix, signed);
        let is_ledger = matches!(kind, "ledger/" | "sites/" | "journal/");
        let head = if is_ledger { chain.read(Head::START).await.unwrap().1 } else { Head::START };
        let bytes = std::fs::read(self.path(object)).unwrap();
        std::fs::remove_file(self.path(object)).unwrap();
        let named = if is_ledger {
            match chain.append(head, &self.world.operator, serde_json::json!({ "type": "x" })).await {
                Err(StoreError::Damaged(found)) => found.into_iter().map(|d| d.object).collect(),
                other => panic!("{kind}: {other:?}"),
            }
        } else {
            self.read_all().await.objects
        };
        std::fs::write(self.path(object), bytes).unwrap();
        let hit = named.iter().any(|n| n == object || (n.ends_with('/') && object.starts_with(n)));
        assert!(hit, "{object}: {named:?}");
        1
    }
}

/// Executes and prints the whole table.
async fn table(place: &str, world: World, bits: &[u8]) {
    let filled = filled(world).await;
    let whole = filled.read_all().await;
    assert!(whole.objects.is_empty(), "{place}: {:?}", whole.objects);
    let mut lines = format!("{place:12}");
    for way in WAYS {
        write!(lines, " {way:>18}").unwrap();
    }
    let mut cells = 0;
    for kind in KINDS {
        write!(lines, "\n{kind:12}").unwrap();
        for way in WAYS {
            let tried = filled.cell(kind, way, bits).await;
            assert!(tried > 0);
            cells += 1;
            write!(lines, " {:>18}", format!("{tried} of {tried}")).unwrap();
        }
    }
    assert_eq!(cells, KINDS.len() * WAYS.len());
    assert!(filled.read_all().await.objects.is_empty(), "{place}: all is mended");
    println!("named, of those tried:\n{lines}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_object_damaged_in_every_way_is_named() {
    table("folder", World::in_folder().await, &[0x01]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_every_kind_of_object_damaged_in_every_way_is_named_in_s3_too() {
    table("folder", World::in_folder().await, &[0x01, 0x20, 0x80]).await;
    table("s3", World::in_s3().await, &[0x01, 0x20, 0x80]).await;
}
