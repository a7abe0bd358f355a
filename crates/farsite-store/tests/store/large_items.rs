//! Items so large that their block map has three levels, and so damaged that the list of it must stay short.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use crate::common::{World, noise};
use farsite_model::content::{ReadAt, WriteAt};
use farsite_model::{ItemId, ItemKind};
use farsite_store::ingest::{IngestOptions, Input};
use farsite_store::local_map::{LocalMap, LocalMapWriter};
use farsite_store::map::FAN_OUT;
use farsite_store::read::ReadStats;

const BLOCK: u64 = 4096;
/// One block more than two levels can name, and a short one behind it.
const SIZE: u64 = FAN_OUT * FAN_OUT * BLOCK + BLOCK + 100;

/// Data in a few blocks, holes everywhere else.
struct Sparse(BTreeMap<u64, Vec<u8>>);

impl Sparse {
    fn new(seed: u64) -> Self {
        let blocks = [0, FAN_OUT - 1, FAN_OUT, FAN_OUT * FAN_OUT - 1, FAN_OUT * FAN_OUT];
        let mut data: BTreeMap<u64, Vec<u8>> =
            blocks.into_iter().map(|block| (block, noise(seed + block, BLOCK as usize))).collect();
        data.insert(FAN_OUT * FAN_OUT + 1, noise(seed + 7, 100));
        Self(data)
    }
}

impl ReadAt for Sparse {
    fn size_bytes(&self) -> u64 {
        SIZE
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        for (i, chunk) in buffer.chunks_mut(BLOCK as usize).enumerate() {
            match self.0.get(&(offset / BLOCK + i as u64)) {
                Some(data) => chunk.copy_from_slice(&data[..chunk.len()]),
                None => chunk.fill(0),
            }
        }
        Ok(())
    }
    fn next_data(&self, offset: u64) -> std::io::Result<Option<Range<u64>>> {
        let next = self.0.range(offset.div_ceil(BLOCK)..).next();
        Ok(next.map(|(block, data)| block * BLOCK..block * BLOCK + data.len() as u64))
    }
}

#[derive(Default)]
struct Written(Mutex<BTreeMap<u64, Vec<u8>>>);

impl WriteAt for Written {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.0.lock().unwrap().insert(offset / BLOCK, bytes.to_vec());
        Ok(())
    }
    fn punch_hole(&self, _: Range<u64>) -> std::io::Result<()> {
        Ok(())
    }
    fn finish(&self, size_bytes: u64) -> std::io::Result<()> {
        assert_eq!(size_bytes, SIZE);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_of_three_levels_is_restored_and_an_unchanged_one_ships_nothing() {
    let world = World::in_folder().await;
    let item = ItemId::new(ItemKind::Volume, "v");
    for (run, seed) in [(1, 1), (2, 1), (3, 50)] {
        let mut writer = world.writer(run, IngestOptions::within(64 << 20, (3, 3))).await;
        let previous = LocalMap::open(&world.maps(), &item).unwrap();
        let mut out = LocalMapWriter::create(&world.maps(), &item).unwrap();
        let content = Sparse::new(seed);
        let expected = content.0.clone();
        let content: Arc<dyn ReadAt> = Arc::new(content);
        let map = writer
            .ingest(&Input::first("v", &*content, BLOCK as u32).since(previous.as_ref()), &mut out)
            .unwrap();
        writer.flush().await.unwrap();
        out.commit().unwrap();
        assert_eq!(map.root_level(), 2);
        let shipped = writer.stats.shipped_bytes.load(Ordering::Relaxed);
        assert_eq!(shipped == 0, run == 2, "run {run} shipped {shipped} bytes");
        let target = Arc::new(Written::default());
        world.reader().restore(&map, target.clone(), &ReadStats::default()).await.unwrap();
        assert!(*target.0.lock().unwrap() == expected, "run {run}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_many_blocks_is_a_few_lines_for_each_object() {
    let world = World::in_folder().await;
    let (map, ..) = world.replicate(1, &ItemId::new(ItemKind::Volume, "v"), noise(1, 50 * 65_536)).await;
    let pack = crate::common::objects(&world.objects.join("packs")).remove(0);
    let mut bytes = std::fs::read(&pack).unwrap();
    for block in 0..50 {
        bytes[100 + block * 65_569] ^= 1;
    }
    std::fs::write(&pack, bytes).unwrap();
    let damage = world.reader().verify(&map, &ReadStats::default()).await.unwrap();
    assert!((1..=8).contains(&damage.len()), "{damage:?}");
    assert!(damage.iter().all(|d| pack.ends_with(&d.object)), "{damage:?}");
    // One lost content key spoils every block, and is one line.
    let key = crate::common::objects(&world.objects.join("keys")).remove(0);
    std::fs::remove_file(&key).unwrap();
    let damage = world.reader().verify(&map, &ReadStats::default()).await.unwrap();
    assert_eq!(damage.len(), 1, "{damage:?}");
    assert!(key.ends_with(&damage[0].object), "{damage:?}");
}
