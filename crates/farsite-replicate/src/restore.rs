//! One item of a point, written to a place.

use std::path::Path;
use std::sync::Arc;

use farsite_model::content::{TreeEntry, WriteAt};
use farsite_sources::extent::FileTarget;
use farsite_store::manifest::ManifestItem;
use farsite_store::read::{ReadStats, Reader};
use farsite_store::{Damage, StoreError};

use crate::ReplicateError;
use crate::tree::TreeTarget;

/// A directory of more than this is not believed.
const DIRECTORY_LIMIT_BYTES: u64 = 256 << 20;

/// Wraps every target, so that a caller can stop a restore between two blocks: the lease of a promotion step.
pub type Guard = Arc<dyn Fn() -> std::io::Result<()> + Send + Sync>;

struct Guarded {
    target: Arc<dyn WriteAt>,
    guard: Guard,
}

impl WriteAt for Guarded {
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

/// No guard.
pub fn unguarded() -> Guard {
    Arc::new(|| Ok(()))
}

/// Writes an item: a tree below the folder `to`, anything else as the file `to`. What stands there under the same name
/// is replaced by a new inode; nothing is ever half-visible under its final name: files are written beside it and renamed.
pub async fn item(
    reader: &Reader,
    item: &ManifestItem,
    to: &Path,
    guard: &Guard,
    stats: &ReadStats,
) -> Result<(), ReplicateError> {
    let wrap =
        |target: Arc<dyn WriteAt>| -> Arc<dyn WriteAt> { Arc::new(Guarded { target, guard: guard.clone() }) };
    if let Some(directory) = &item.directory {
        let entries = entries(reader, item, directory).await?;
        guard().map_err(ReplicateError::io(format!("writing {}", to.display())))?;
        let target = TreeTarget::create(to, entries).map_err(ReplicateError::io(format!(
            "creating the files of {} below {}",
            item.id,
            to.display()
        )))?;
        return Ok(reader.restore(&item.data, wrap(Arc::new(target)), stats).await?);
    }
    if is_block_device(to) {
        let target = FileTarget::open_device(to)?;
        return Ok(reader.restore(&item.data, wrap(Arc::new(target)), stats).await?);
    }
    let name = to.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let partial = to.with_file_name(format!(".{name}.farsite-partial"));
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)
            .map_err(ReplicateError::io(format!("creating {}", parent.display())))?;
    }
    guard().map_err(ReplicateError::io(format!("writing {}", to.display())))?;
    let target = FileTarget::create(&partial, item.data.size_bytes)?;
    reader.restore(&item.data, wrap(Arc::new(target)), stats).await?;
    guard().map_err(ReplicateError::io(format!("writing {}", to.display())))?;
    std::fs::rename(&partial, to).map_err(ReplicateError::io(format!("naming {}", to.display())))?;
    if let Some(parent) = to.parent() {
        std::fs::File::open(parent)
            .and_then(|dir| dir.sync_all())
            .map_err(ReplicateError::io(format!("syncing {}", parent.display())))?;
    }
    Ok(())
}

fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device())
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
