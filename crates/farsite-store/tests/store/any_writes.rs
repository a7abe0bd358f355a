//! Any sequence of writes to a small volume, replicated through several runs, restores each point exactly.

use std::sync::Arc;

use crate::common::{World, noise, text};
use farsite_model::content::ReadAt;
use farsite_model::{ItemId, ItemKind, RunId};
use farsite_store::ingest::{IngestOptions, Input, RunWriter};
use farsite_store::local_map::{LocalMap, LocalMapWriter};
use farsite_store::map::MapRoot;
use farsite_store::shipped::Shipped;
use proptest::prelude::*;

const BLOCK: u64 = 4096;

#[derive(Debug, Clone)]
enum Write {
    /// Random bytes from a seed.
    Noise {
        at: u64,
        len: usize,
        seed: u64,
    },
    /// The same bytes again and again: blocks that the run has sent already.
    Repeat {
        at: u64,
        len: usize,
        byte: u8,
    },
    /// Different everywhere, and compressible: blocks that are sealed as one.
    Text {
        at: u64,
        len: usize,
        seed: u64,
    },
    Zeros {
        at: u64,
        len: usize,
    },
    Resize {
        to: u64,
    },
}

fn write() -> impl Strategy<Value = Write> {
    let at = 0u64..120_000;
    prop_oneof![
        (at.clone(), 1usize..20_000, 0u64..6).prop_map(|(at, len, seed)| Write::Noise { at, len, seed }),
        (at.clone(), 1usize..40_000, 1u8..3).prop_map(|(at, len, byte)| Write::Repeat { at, len, byte }),
        (at.clone(), 1usize..40_000, 0u64..6).prop_map(|(at, len, seed)| Write::Text { at, len, seed }),
        (at, 1usize..40_000).prop_map(|(at, len)| Write::Zeros { at, len }),
        (0u64..160_000).prop_map(|to| Write::Resize { to }),
    ]
}

fn apply(volume: &mut Vec<u8>, write: &Write) {
    let (at, bytes) = match write {
        Write::Resize { to } => return volume.resize(*to as usize, 0),
        Write::Noise { at, len, seed } => (*at, noise(*seed, *len)),
        Write::Repeat { at, len, byte } => (*at, vec![*byte; *len]),
        Write::Text { at, len, seed } => (*at, text(*seed, *len)),
        Write::Zeros { at, len } => (*at, vec![0; *len]),
    };
    let at = at as usize;
    let end = volume.len().min(at + bytes.len());
    if at < end {
        volume[at..end].copy_from_slice(&bytes[..end - at]);
    }
}

/// A volume that tells its holes, at odd boundaries: every run of zeros of at least 1000 bytes.
struct Holey(Vec<u8>);

impl ReadAt for Holey {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        farsite_model::content::InMemory(self.0[offset as usize..offset as usize + buffer.len()].to_vec())
            .read_exact_at(buffer, 0)
    }
    fn next_data(&self, offset: u64) -> std::io::Result<Option<std::ops::Range<u64>>> {
        let Some(start) = self.0.iter().skip(offset as usize).position(|b| *b != 0) else { return Ok(None) };
        let start = offset as usize + start;
        let mut end = start;
        let mut zeros = 0;
        for (i, byte) in self.0[start..].iter().enumerate() {
            zeros = if *byte == 0 { zeros + 1 } else { 0 };
            if zeros == 1000 {
                break;
            }
            if zeros == 0 {
                end = start + i + 1;
            }
        }
        Ok(Some(start as u64..end as u64))
    }
}

async fn replicate(world: &World, run: u64, content: Vec<u8>, small: bool) -> MapRoot {
    replicate_since(world, run, content, small, None).await
}

/// How a run learns of changes: it reads all, or its source tells it and still has the version before.
struct Told {
    before: Vec<u8>,
    /// What a source may say without need.
    more: Vec<std::ops::Range<u64>>,
    /// It can be read as well.
    readable: bool,
}

impl Told {
    /// Every page of 512 bytes that differs, as a device would tell it, in no order, with overlaps.
    fn extents(&self, now: &[u8]) -> Vec<std::ops::Range<u64>> {
        let page =
            |bytes: &[u8], i: usize| bytes.get(i * 512..bytes.len().min(i * 512 + 512)).map(<[u8]>::to_vec);
        let mut said = self.more.clone();
        for i in (0..now.len().div_ceil(512)).rev() {
            if page(now, i) != page(&self.before, i) {
                said.push(i as u64 * 512..(i as u64 + 1) * 512);
            }
        }
        said
    }
}

async fn replicate_since(
    world: &World,
    run: u64,
    content: Vec<u8>,
    small: bool,
    told: Option<Told>,
) -> MapRoot {
    let item = ItemId::new(ItemKind::Volume, "v");
    // Limits so small that packs are cut, the queue fills, and the run forgets what it has sent.
    let options = IngestOptions {
        pack_bytes: if small { 10_000 } else { 1 << 20 },
        uploads: 2,
        batch_bytes: if small { 4096 } else { 1 << 20 },
        known_blocks: if small { 3 } else { 10_000 },
        levels: (1, 1),
    };
    let mut writer: RunWriter = world.writer(run, options).await;
    let previous = LocalMap::open(&world.maps(), &item).unwrap();
    let mut out = LocalMapWriter::create(&world.maps(), &item).unwrap();
    let extents = told.as_ref().map(|told| told.extents(&content));
    let before = told.filter(|told| told.readable).map(|told| Holey(told.before));
    // Room for a few blocks only, so that some are there and others are not.
    let shipped =
        Shipped::open(&world.dir.path().join("shipped"), if small { 5 << 20 } else { 64 << 20 }).unwrap();
    let copies = shipped.item(&item, BLOCK as u32).unwrap();
    let content = Holey(content);
    let input = Input {
        previous: previous.as_ref(),
        changed: extents.as_deref(),
        before: before.as_ref().map(|before| -> &dyn ReadAt { before }),
        copies: Some(&copies),
        ..Input::first("v", &content, BLOCK as u32)
    };
    let map = writer.ingest(&input, &mut out).unwrap();
    writer.flush().await.unwrap();
    out.commit().unwrap();
    map
}

/// `FARSITE_CASES=5000` for a long run; see `cargo xtask fuzz`.
fn cases() -> u32 {
    std::env::var("FARSITE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]
    #[test]
    fn any_writes_through_several_runs_restore_each_point_exactly(
        first in 0u64..160_000,
        runs in prop::collection::vec(prop::collection::vec(write(), 0..6), 1..5),
        small in any::<bool>(),
        tells in prop::collection::vec((any::<bool>(), any::<bool>(), 0u64..160_000, 0u64..20_000), 5),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::in_folder().await;
            let mut volume = vec![0; first as usize];
            let mut points = Vec::new();
            for (run, writes) in runs.iter().enumerate() {
                let before = volume.clone();
                for write in writes {
                    apply(&mut volume, write);
                }
                let (tells, readable, from, length) = tells[run];
                let told = Told { before, more: std::iter::once(from..from + length).collect(), readable };
                let told = Some(told).filter(|_| tells && run > 0);
                let map = replicate_since(&world, run as u64, volume.clone(), small, told).await;
                points.push((map, volume.clone()));
            }
            // Every point, not only the last: a later run must not have touched what an earlier one needs.
            for (index, (map, expected)) in points.iter().enumerate() {
                let back = world.reader().read_small(map, 1 << 20).await.unwrap();
                assert!(back == *expected, "point {index} of {}", points.len());
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_map_that_lost_bytes_costs_a_copy_and_spoils_no_point() {
    let world = World::in_folder().await;
    let content = noise(1, 100_000);
    replicate(&world, 1, content.clone(), false).await;
    let records =
        crate::common::objects(&world.maps()).into_iter().find(|p| p.extension().unwrap() != "json").unwrap();
    let mut bytes = std::fs::read(&records).unwrap();
    // In the location of a block: nothing but its hash tells that it is wrong.
    bytes[89 + 32 + 3] ^= 1;
    std::fs::write(&records, bytes).unwrap();
    let map = replicate(&world, 2, content.clone(), false).await;
    assert!(world.reader().read_small(&map, 1 << 20).await.unwrap() == content);
    // The same for the small file beside it: no map at all is used.
    let json =
        crate::common::objects(&world.maps()).into_iter().find(|p| p.extension().unwrap() == "json").unwrap();
    let text = std::fs::read_to_string(&json).unwrap().replacen("\"offset\":", "\"offset\":1", 1);
    std::fs::write(&json, text).unwrap();
    assert!(LocalMap::open(&world.maps(), &ItemId::new(ItemKind::Volume, "v")).unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_map_and_a_resume_log_of_another_store_are_not_believed() {
    let old = World::in_folder().await;
    let content = noise(1, 300_000);
    replicate(&old, 1, content.clone(), false).await;
    // The store was made anew, and the agent kept its state.
    let new = World::in_folder().await;
    std::fs::create_dir_all(new.maps()).unwrap();
    for path in crate::common::objects(&old.maps()) {
        std::fs::copy(&path, new.maps().join(path.file_name().unwrap())).unwrap();
    }
    let log = format!("resume-{}", RunId::from_random(1));
    std::fs::copy(old.dir.path().join(&log), new.dir.path().join(&log)).unwrap();
    let map = replicate(&new, 1, content.clone(), false).await;
    assert!(new.reader().read_small(&map, 1 << 20).await.unwrap() == content);
}

struct Confused;

impl ReadAt for Confused {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }
    fn read_exact_at(&self, buffer: &mut [u8], _: u64) -> std::io::Result<()> {
        buffer.fill(1);
        Ok(())
    }
    fn next_data(&self, offset: u64) -> std::io::Result<Option<std::ops::Range<u64>>> {
        Ok(Some(offset..offset))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_tells_nonsense_about_its_holes_fails_and_its_data_is_not_taken_for_a_hole() {
    let world = World::in_folder().await;
    let mut writer = world.writer(1, IngestOptions::within(64 << 20, (3, 3))).await;
    let item = ItemId::new(ItemKind::Volume, "v");
    let mut out = LocalMapWriter::create(&world.maps(), &item).unwrap();
    let content: Arc<dyn ReadAt> = Arc::new(Confused);
    let error = writer.ingest(&Input::first("v", &*content, 65_536), &mut out).unwrap_err().to_string();
    assert!(error.contains("its source said"), "{error}");
}
