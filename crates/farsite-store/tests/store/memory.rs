//! Memory is bounded by configuration, not by the volume.

use std::ops::Range;
use std::process::Command;
use std::sync::Arc;

use crate::common::{World, noise};
use farsite_model::content::{ReadAt, WriteAt};
use farsite_model::{ItemId, ItemKind};
use farsite_store::ingest::{IngestOptions, Input};
use farsite_store::local_map::LocalMapWriter;
use farsite_store::read::ReadStats;

const SIZE_BYTES: u64 = 4 << 30;
const MIB: u64 = 1 << 20;
/// Set in the child process whose memory is measured.
const CHILD: &str = "FARSITE_TEST_MEMORY_CHILD";

/// 4 GiB: of each 16 MiB the first is incompressible and unlike any other, the second repeats one pattern, the rest is
/// a hole. So 256 MiB are hashed, compressed, sealed and shipped, 256 MiB are hashed and found known.
struct Large {
    pattern: Vec<u8>,
}

impl ReadAt for Large {
    fn size_bytes(&self) -> u64 {
        SIZE_BYTES
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        for (i, chunk) in buffer.chunks_mut(4096).enumerate() {
            let at = offset + i as u64 * 4096;
            match at / MIB % 16 {
                0 => chunk.copy_from_slice(&noise(at, chunk.len())),
                1 => chunk.copy_from_slice(&self.pattern[..chunk.len()]),
                _ => chunk.fill(0),
            }
        }
        Ok(())
    }
    fn next_data(&self, offset: u64) -> std::io::Result<Option<Range<u64>>> {
        let (part, inside) = (offset / (16 * MIB) * 16 * MIB, offset % (16 * MIB));
        let start = if inside < 2 * MIB { offset } else { part + 16 * MIB };
        let end = start / (16 * MIB) * 16 * MIB + 2 * MIB;
        Ok((start < SIZE_BYTES).then_some(start..end))
    }
}

struct Nowhere;

impl WriteAt for Nowhere {
    fn write_all_at(&self, _: &[u8], _: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn punch_hole(&self, _: Range<u64>) -> std::io::Result<()> {
        Ok(())
    }
    fn finish(&self, _: u64) -> std::io::Result<()> {
        Ok(())
    }
}

fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Replicates and restores; prints the peak of this process.
async fn measure() {
    let world = World::in_folder().await;
    let mut writer = world.writer(1, IngestOptions::within(64 << 20, (3, 3))).await;
    let item = ItemId::new(ItemKind::Volume, "v");
    let mut out = LocalMapWriter::create(&world.maps(), &item).unwrap();
    let content: Arc<dyn ReadAt> = Arc::new(Large { pattern: noise(0, 4096) });
    let map = writer.ingest(&Input::first("v", &*content, 65_536), &mut out).unwrap();
    writer.flush().await.unwrap();
    out.commit().unwrap();
    let shipped = writer.stats.shipped_bytes.load(std::sync::atomic::Ordering::Relaxed);
    assert!((256 * MIB..260 * MIB).contains(&shipped), "{shipped}");
    println!("replicate={}", peak_bytes());
    world.reader().restore(&map, Arc::new(Nowhere), &ReadStats::default()).await.unwrap();
    println!("restore={}", peak_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_9_memory_is_bounded_by_configuration_and_not_by_volume_size() {
    if std::env::var_os(CHILD).is_some() {
        return measure().await;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "memory::invariant_9_memory_is_bounded_by_configuration_and_not_by_volume_size",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for what in ["replicate=", "restore="] {
        let start = text.find(what).unwrap_or_else(|| panic!("{text}")) + what.len();
        let peak: u64 = text[start..].split_whitespace().next().unwrap().parse().unwrap();
        println!("{what}{} MiB", peak / MIB);
        assert!(peak < 256 * MIB, "{what} {} MiB", peak / MIB);
    }
}
