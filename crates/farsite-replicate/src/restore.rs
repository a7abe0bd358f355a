//! One item of a point, written to a place: anew, or over an older copy of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use farsite_model::PointId;
use farsite_model::content::{ReadAt, TreeEntry, WriteAt};
use farsite_sources::extent::FileTarget;
use farsite_store::manifest::ManifestItem;
use farsite_store::map::MapRoot;
use farsite_store::read::{ReadStats, Reader};
use farsite_store::{Damage, StoreError};
use jiff::Timestamp;

use crate::ReplicateError;
use crate::tree::TreeTarget;
use crate::unfinished::{Unfinished, sync_folder};

/// A write that takes longer hangs with its disk.
const STOPS_WITHIN: Duration = Duration::from_secs(10);
/// A directory of more than this is not believed.
const DIRECTORY_LIMIT_BYTES: u64 = 256 << 20;

/// Wraps every target, so that a caller can stop a restore between two blocks: the lease of a promotion step.
pub type Guard = Arc<dyn Fn() -> std::io::Result<()> + Send + Sync>;

struct Guarded<T> {
    target: Arc<T>,
    guard: Guard,
}

impl<T> Guarded<T> {
    fn new(target: Arc<T>, guard: &Guard) -> Arc<Self> {
        Arc::new(Self { target, guard: guard.clone() })
    }
}

impl<T: WriteAt> WriteAt for Guarded<T> {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        (self.guard)()?;
        self.target.write_all_at(bytes, offset)
    }
    fn punch_hole(&self, range: std::ops::Range<u64>) -> std::io::Result<()> {
        (self.guard)()?;
        self.target.punch_hole(range)
    }
    fn finish(&self, size_bytes: u64) -> std::io::Result<()> {
        (self.guard)()?;
        self.target.finish(size_bytes)
    }
}

impl<T: ReadAt> ReadAt for Guarded<T> {
    fn size_bytes(&self) -> u64 {
        self.target.size_bytes()
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        (self.guard)()?;
        self.target.read_exact_at(buffer, offset)
    }
    fn next_data(&self, offset: u64) -> std::io::Result<Option<std::ops::Range<u64>>> {
        self.target.next_data(offset)
    }
}

/// No guard.
pub fn unguarded() -> Guard {
    Arc::new(|| Ok(()))
}

/// Writes an item: a tree below the folder `to`, anything else as the file `to`. What stands there under the same name
/// is replaced by a new inode; nothing is ever half-visible under its final name: files are written beside it and renamed.
/// What an attempt that was killed left beside it is gone on with: each block of it is hashed before it is believed.
/// Of a block device all is put right, its holes too.
pub async fn item(
    reader: &Reader,
    item: &ManifestItem,
    to: &Path,
    guard: &Guard,
    stats: &ReadStats,
) -> Result<(), ReplicateError> {
    item_from(reader, item, to, None, guard, stats).await
}

/// The same, where `known` is the map of what was left beside the place, vouched for by the caller: then that is not read.
pub async fn item_from(
    reader: &Reader,
    item: &ManifestItem,
    to: &Path,
    known: Option<&MapRoot>,
    guard: &Guard,
    stats: &ReadStats,
) -> Result<(), ReplicateError> {
    if let Some(directory) = &item.directory {
        let entries = entries(reader, item, directory).await?;
        guard().map_err(ReplicateError::io(format!("writing {}", to.display())))?;
        let target = TreeTarget::create(to, entries).map_err(ReplicateError::io(format!(
            "creating the files of {} below {}",
            item.id,
            to.display()
        )))?;
        let target = Guarded::new(Arc::new(target), guard);
        return Ok(reader.restore(&item.data, target, stats).await?);
    }
    if is_block_device(to) {
        let target = FileTarget::open_device(to, item.data.size_bytes)?;
        let target = Guarded::new(Arc::new(target), guard);
        return Ok(reader.restore_over(&item.data, target, None, stats).await?);
    }
    let partial = partial_of(to);
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)
            .map_err(ReplicateError::io(format!("creating {}", parent.display())))?;
    }
    guard().map_err(ReplicateError::io(format!("writing {}", to.display())))?;
    let (target, left_over) = match left_over_at(&partial) {
        Some(target) => {
            let known = known.filter(|known| known.size_bytes == target.size_bytes());
            (target.sized(item.data.size_bytes)?, Some(known))
        }
        None => (FileTarget::create(&partial, item.data.size_bytes)?.keep_unfinished(), None),
    };
    let target = Arc::new(target);
    let guarded = Guarded::new(target.clone(), guard);
    let restored = match left_over {
        Some(known) => reader.restore_over(&item.data, guarded, known, stats).await,
        None => reader.restore(&item.data, guarded, stats).await,
    };
    if let Err(error) = restored {
        // Only where another attempt can go on with it does it stay: a full disk must not stay full of it.
        if !matches!(error, StoreError::Backend(_) | StoreError::Cancelled) {
            target.remove_unless_finished();
        }
        return Err(error.into());
    }
    guard().map_err(ReplicateError::io(format!("writing {}", to.display())))?;
    std::fs::rename(&partial, to).map_err(ReplicateError::io(format!("naming {}", to.display())))?;
    sync_folder(to).map_err(ReplicateError::io(format!("syncing the folder of {}", to.display())))
}

/// Where a file is written until it is whole.
pub(crate) fn partial_of(place: &Path) -> PathBuf {
    let name = place.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    place.with_file_name(format!(".{name}.farsite-partial"))
}

/// What a killed attempt left: a regular file of our own making, under one name only. One that another process still holds
/// (a driver that was frozen and taken over) is not waited for: it is replaced by a new inode.
fn left_over_at(partial: &Path) -> Option<FileTarget> {
    use std::os::unix::fs::MetadataExt;
    let own = rustix::process::geteuid().as_raw();
    let there = std::fs::symlink_metadata(partial).ok()?;
    if !there.is_file() || there.nlink() != 1 || there.uid() != own {
        return None;
    }
    FileTarget::open_standing(partial).ok()
}

/// What is known of a copy before it is written over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// By the difference of two block maps: somebody vouched for what stands there.
    Maps,
    /// By reading and hashing what stands there.
    Contents,
}

/// Makes the older copy at `to` (a file or a block device) what `item` of `point` is, writing only what differs. `known` is
/// the map of what somebody says stands there; it is not believed of a copy that another attempt left half-way, that has
/// another size, or that is a device (where no note of such an attempt would outlive a restart).
pub async fn over(
    reader: &Reader,
    item: &ManifestItem,
    point: PointId,
    to: &Path,
    known: Option<&MapRoot>,
    guard: &Guard,
    stats: &ReadStats,
) -> Result<Compared, ReplicateError> {
    let io = |error| ReplicateError::Io { what: format!("writing {}", to.display()), source: error };
    if item.directory.is_some() {
        return Err(ReplicateError::Setup(format!(
            "{} is a folder of files, and only one file or device is written over in place\n  hint: restore it into an empty folder",
            item.id
        )));
    }
    guard().map_err(io)?;
    if is_block_device(to) {
        let target = FileTarget::open_device(to, item.data.size_bytes)?;
        let target = Guarded::new(Arc::new(target), guard);
        reader.restore_over(&item.data, target, None, stats).await?;
        return Ok(Compared::Contents);
    }
    let there = std::fs::symlink_metadata(to).map_err(io)?;
    let unfinished = Unfinished::beside(to).map_err(io)?.is_some();
    let known = known.filter(|known| !unfinished && there.len() == known.size_bytes);
    // Refuses what another process writes before anything is noted.
    let target = FileTarget::open_standing(to)?;
    Unfinished { point, item: item.id.clone(), began: Timestamp::now() }.write(to).map_err(io)?;
    put_right(reader, item, target, known, guard, stats).await?;
    Unfinished::remove(to).map_err(io)?;
    Ok(if known.is_some() { Compared::Maps } else { Compared::Contents })
}

fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device())
}

/// Makes the file at `path` what `item` is. The caller keeps a note of its own of what is under way.
pub(crate) async fn write_over(
    reader: &Reader,
    item: &ManifestItem,
    path: &Path,
    known: Option<&MapRoot>,
    guard: &Guard,
    stats: &ReadStats,
) -> Result<(), ReplicateError> {
    put_right(reader, item, FileTarget::open_standing(path)?, known, guard, stats).await
}

async fn put_right(
    reader: &Reader,
    item: &ManifestItem,
    target: FileTarget,
    known: Option<&MapRoot>,
    guard: &Guard,
    stats: &ReadStats,
) -> Result<(), ReplicateError> {
    over_standing(reader, item, Arc::new(target.sized(item.data.size_bytes)?), known, guard, stats).await
}

/// Makes a copy that is open, and has the item's size, what `item` is. The caller vouches for `known`.
pub(crate) async fn over_standing<T: ReadAt + WriteAt + 'static>(
    reader: &Reader,
    item: &ManifestItem,
    copy: Arc<T>,
    known: Option<&MapRoot>,
    guard: &Guard,
    stats: &ReadStats,
) -> Result<(), ReplicateError> {
    let held_before = Arc::strong_count(&copy);
    let result = reader.restore_over(&item.data, Guarded::new(copy.clone(), guard), known, stats).await;
    // A block that was under way when it stopped is still being written: nobody shall find the copy free before that ends.
    let begun = std::time::Instant::now();
    while result.is_err() && Arc::strong_count(&copy) > held_before && begun.elapsed() < STOPS_WITHIN {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(result?)
}

/// The files of a tree item.
pub async fn entries(
    reader: &Reader,
    item: &ManifestItem,
    directory: &farsite_store::map::MapRoot,
) -> Result<Vec<TreeEntry>, ReplicateError> {
    let bytes = reader.read_small(directory, DIRECTORY_LIMIT_BYTES).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        StoreError::Damaged(vec![Damage::new(
            item.id.as_str(),
            format!("its directory makes no sense: {error}"),
        )])
        .into()
    })
}

/// Opens and re-hashes everything that an item needs.
pub async fn verify(
    reader: &Reader,
    item: &ManifestItem,
    stats: &ReadStats,
) -> Result<Vec<Damage>, ReplicateError> {
    let mut damage = reader.verify(&item.data, stats).await?;
    if let Some(directory) = &item.directory {
        damage.extend(reader.verify(directory, stats).await?);
    }
    Ok(damage)
}
