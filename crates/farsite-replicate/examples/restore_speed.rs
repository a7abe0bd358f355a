//! How fast a volume comes back: makes one (40 % holes, 30 % incompressible, 30 % text), replicates it into a folder, restores
//! it anew and into an older copy, and writes the same bytes plainly for comparison.
//! `cargo run --example restore_speed -p farsite-replicate -- FOLDER [MIB]`

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use farsite_model::content::ReadAt;
use farsite_model::{GroupName, ItemId, ItemKind, RunId, SiteName};
use farsite_replicate::ReplicateError;
use farsite_sources::extent::{FileContent, FileTarget};
use farsite_store::backend::SharedBackend;
use farsite_store::backend::folder::Folder;
use farsite_store::format::Format;
use farsite_store::ingest::{IngestOptions, RunWriter};
use farsite_store::keys::{BlockSecret, KeyRole, Role, Signer};
use farsite_store::local_map::{LocalMap, LocalMapWriter};
use farsite_store::map::MapRoot;
use farsite_store::read::{ReadLimits, ReadStats, Reader};
use farsite_store::seal::{Opener, Sealer};
use farsite_store::{Store, StoreError};

const MIB: u64 = 1 << 20;

fn noise(seed: u64, bytes: &mut [u8]) {
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(bytes);
}

fn volume(path: &Path, mib: u64) -> std::io::Result<()> {
    let file = File::create(path)?;
    file.set_len(mib * MIB)?;
    let mut buffer = vec![0u8; MIB as usize];
    let words: Vec<String> = (0..997u32).map(|n| format!("word{} ", n.wrapping_mul(2_654_435_761))).collect();
    for at in 0..mib {
        match at % 10 {
            0 | 3 | 6 => noise(at, &mut buffer),
            1 | 4 | 8 => {
                let mut random = vec![0u8; 400_000];
                noise(at, &mut random);
                let mut out = &mut buffer[..];
                for pair in random.chunks(2).cycle() {
                    let word = &words[usize::from(u16::from_le_bytes([pair[0], pair[1]])) % words.len()];
                    if out.write(word.as_bytes())? < word.len() {
                        break;
                    }
                }
            }
            _ => continue,
        }
        file.write_all_at(&buffer, at * MIB)?;
    }
    file.sync_all()
}

struct World {
    folder: std::path::PathBuf,
    store: Store,
    signer: Signer,
    secret: BlockSecret,
}

impl World {
    async fn replicate(&self, run: u64, volume: &Path) -> Result<MapRoot, Box<dyn std::error::Error>> {
        let (site, group) = (SiteName::new("north")?, GroupName::new("cloud")?);
        let run = RunId::from_random(run);
        let item = ItemId::new(ItemKind::Volume, "v");
        let sealer = Sealer::begin(&self.store, &self.signer, &site, &group, run).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let options = IngestOptions::within(128 << 20);
        let log = self.folder.join("resume");
        let mut writer = RunWriter::begin(&self.store, sealer, self.secret.clone(), options, &log, stop)?;
        let maps = self.folder.join("maps");
        let previous = LocalMap::open(&maps, &item)?;
        let mut out = LocalMapWriter::create(&maps, &item, run)?;
        let content: Arc<dyn ReadAt> = Arc::new(FileContent::open(volume)?);
        let map = tokio::task::block_in_place(|| {
            writer.ingest("v", &content, 65_536, previous.as_ref(), &mut out)
        })?;
        writer.flush().await?;
        out.commit()?;
        Ok(map)
    }
}

fn drop_caches() {
    // Only root may; without it the packs are read from memory.
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
}

fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .skip(11)
        .take(2)
        .flat_map(str::parse)
        .collect();
    fields.iter().sum::<u64>() as f64 / 100.0
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

async fn timed<T>(what: &str, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    drop_caches();
    let (began, cpu) = (Instant::now(), cpu_s());
    let done = work.await?;
    println!("{what:42} {:6.2} s wall, {:6.2} s cpu", began.elapsed().as_secs_f64(), cpu_s() - cpu);
    Ok(done)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = std::path::PathBuf::from(args.next().ok_or("which folder?")?);
    let mib: u64 = args.next().map_or(Ok(2048), |mib| mib.parse())?;
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("volume");
    volume(&path, mib)?;
    let identity = age::x25519::Identity::generate();
    let (signer, _) = Signer::generate();
    let (secret, _) = BlockSecret::generate();
    let roles = vec![
        KeyRole { key: Signer::generate().0.public(), role: Role::Operator, site: None, name: "ann".into() },
        KeyRole {
            key: signer.public(),
            role: Role::SourceAgent,
            site: Some(SiteName::new("north")?),
            name: "north".into(),
        },
    ];
    let backend: SharedBackend = Arc::new(Folder::create_root(folder.join("store"))?);
    let format = Format::new(vec![identity.to_public().to_string()], roles, &secret, jiff::Timestamp::now())?;
    format.create(&backend).await?;
    let store = Store::open(backend, None).await?;
    let world = World { folder: folder.clone(), store: store.clone(), signer, secret };
    let first = world.replicate(1, &path).await?;
    // 1 % of the 4 KiB pages, anew.
    let file = File::options().write(true).open(&path)?;
    let pages = mib * 256;
    let mut page = vec![0u8; 4096];
    for n in 0..pages / 100 {
        noise(n + 1_000_000, &mut page);
        let place = u64::from_le_bytes(page[..8].try_into()?) % pages;
        file.write_all_at(&page, place * 4096)?;
    }
    let second = world.replicate(2, &path).await?;

    let mut reader = Reader::new(store.clone(), Arc::new(Opener::new(&store, vec![identity])?));
    reader.limits = ReadLimits::within(64 << 20);
    let to = folder.join("restored");
    let stats = ReadStats::default();
    timed("verify (read, open, inflate, hash)", reader.verify(&first, &stats)).await?;
    for _ in 0..3 {
        let target = FileTarget::create(&to, first.size_bytes)?;
        timed("restore, anew", reader.restore(&first, Arc::new(target), &stats)).await?;
    }
    let fetched = stats.fetched_bytes.load(Ordering::Relaxed) / MIB / 4;
    println!("{:42} {fetched} MiB in {} requests", "  fetched", stats.requests.load(Ordering::Relaxed) / 4);
    let written = stats.written_bytes.load(Ordering::Relaxed) / MIB / 4;
    for _ in 0..3 {
        std::fs::remove_file(&to)?;
        drop_caches();
        let mut buffer = vec![0u8; MIB as usize];
        noise(1, &mut buffer);
        let (began, cpu) = (Instant::now(), cpu_s());
        let file = File::create(&to)?;
        file.set_len(mib * MIB)?;
        for at in 0..written {
            file.write_all_at(&buffer, at * MIB)?;
        }
        file.sync_all()?;
        println!(
            "{:42} {:6.2} s wall, {:6.2} s cpu ({written} MiB)",
            "limit: write and fsync",
            began.elapsed().as_secs_f64(),
            cpu_s() - cpu
        );
    }
    let target = FileTarget::create(&to, first.size_bytes)?;
    reader.restore(&first, Arc::new(target), &stats).await?;
    let over = |known: bool, map: MapRoot, from: MapRoot| {
        let (reader, to) = (reader.clone(), to.clone());
        async move {
            let stats = ReadStats::default();
            let target = FileTarget::open_standing(&to).map_err(|e| StoreError::Destination {
                what: "the copy".into(),
                source: std::io::Error::other(ReplicateError::from(e)),
            })?;
            reader.restore_over(&map, Arc::new(target), known.then_some(&from), &stats).await?;
            Ok(stats)
        }
    };
    let stats = timed("into an older copy, by maps", over(true, second.clone(), first.clone())).await?;
    println!("{:42} {} MiB", "  written", stats.written_bytes.load(Ordering::Relaxed) / MIB);
    timed("back again, by contents", over(false, first.clone(), second)).await?;
    timed("and once more, nothing differs", over(false, first.clone(), first.clone())).await?;
    println!("peak memory {} MiB", peak_mib());
    Ok(())
}
