//! An item of a point as an image: written under a hidden name, named when it is whole. A copy that was kept hydrated is taken
//! for it, and a killed attempt is gone on with.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use farsite_model::{ItemId, ItemKind, PromotionId};
use farsite_sources::rbd::Writer;
use farsite_store::manifest::ManifestItem;
use farsite_store::map::MapRoot;
use farsite_store::read::{ReadStats, Reader};

use super::hydrated::{Taken, blocking, known, remove_snapshots};
use super::make_room;
use super::mark::{Mark, Restored};
use super::names::{hydrated_name, partial};
use crate::ReplicateError;
use crate::restore::{Guard, over_standing};

/// Glance's own snapshot of each of its images, from which Cinder makes clones (`DEFAULT_SNAPNAME` of its RBD store).
const GLANCE_SNAPSHOT: &str = "snap";
/// Whoever hydrates lets go between two blocks. One that does not, for it was killed or stands still, is shut out.
pub(super) const LETS_GO: Duration = Duration::from_secs(10);

/// How an image came to be what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    Restored,
    /// Out of a hydrated copy: only what differed was written.
    Hydrated,
    /// This promotion had made it already.
    Already,
}

/// Puts `item` under the name `name` for a promotion. What stands there and is not this promotion's own is moved aside; `root`
/// names the version.
#[allow(clippy::too_many_arguments, reason = "a place, a version, and who may stop it")]
pub async fn restore(
    writer: &Arc<Writer>,
    name: &str,
    reader: &Reader,
    item: &ManifestItem,
    promotion: PromotionId,
    root: &str,
    guard: &Guard,
    stats: &ReadStats,
) -> Result<Came, ReplicateError> {
    let io = |source| ReplicateError::Io { what: format!("restoring {}", item.id), source };
    let restored = Restored::begun(promotion, root);
    guard().map_err(io)?;
    let begun = blocking(|| -> io::Result<Option<bool>> {
        let hidden = partial(name);
        if let Some(found) = writer.look(name)? {
            let mark = Mark::of(&found).filter(|mark| mark.item == item.id && mark.is_of(promotion));
            match mark {
                Some(mark) if mark.is_whole(promotion, root) && found.size_bytes == item.data.size_bytes => {
                    return Ok(None);
                }
                // Another version: of a point that was chosen before this one.
                Some(_) => {
                    if writer.look(&hidden)?.is_some() {
                        writer.remove(&hidden)?;
                    }
                    writer.rename(name, &hidden)?;
                }
                None => make_room(writer, name, promotion)?,
            }
        }
        if writer.look(&hidden)?.is_some() {
            return Ok(Some(false));
        }
        hand_over(writer, name, item, &restored).map(Some)
    });
    let Some(hydrated) = begun.map_err(io)? else { return Ok(Came::Already) };
    write(writer, name, reader, item, Some(restored), guard, stats).await?;
    Ok(if hydrated { Came::Hydrated } else { Came::Restored })
}

/// The same for a person who wants an image of its own: the name must be free.
pub async fn restore_anew(
    writer: &Arc<Writer>,
    name: &str,
    reader: &Reader,
    item: &ManifestItem,
    guard: &Guard,
    stats: &ReadStats,
) -> Result<(), ReplicateError> {
    write(writer, name, reader, item, None, guard, stats).await
}

/// Gives the hydrated copy, where there is one to be had, the name of what is being made. Killed at any instant, its mark still
/// says what it is.
fn hand_over(writer: &Arc<Writer>, name: &str, item: &ManifestItem, restored: &Restored) -> io::Result<bool> {
    let hidden = hydrated_name(name);
    if writer.look(&hidden)?.is_none() {
        return Ok(false);
    }
    writer.want(&hidden, LETS_GO * 2)?;
    let Some(image) = writer.take(&hidden, LETS_GO)? else {
        tracing::warn!("{hidden} is being hydrated and not let go of: {} is restored anew", item.id);
        return Ok(false);
    };
    let Taken { image, mut mark, .. } = Taken::of(writer, &hidden, &item.id, image, true)?;
    mark.restored = Some(restored.clone());
    mark.write(&image)?;
    image.forget_wanted()?;
    drop(image);
    writer.rename(&hidden, &partial(name))?;
    Ok(true)
}

/// Makes the hidden image what the item is, and names it.
async fn write(
    writer: &Arc<Writer>,
    name: &str,
    reader: &Reader,
    item: &ManifestItem,
    restored: Option<Restored>,
    guard: &Guard,
    stats: &ReadStats,
) -> Result<(), ReplicateError> {
    let io = |source| ReplicateError::Io { what: format!("restoring {}", item.id), source };
    let hidden = partial(name);
    let (image, mut mark, known, proved) = blocking(|| {
        let stood = writer.look(&hidden)?.is_some();
        if !stood {
            writer.create(&hidden, item.data.size_bytes)?;
        }
        if stood {
            writer.want(&hidden, LETS_GO * 2)?;
        }
        let Some(image) = writer.take(&hidden, LETS_GO)? else {
            return Err(io::Error::other(format!(
                "{hidden} is being written to by another process\n  hint: nothing was changed; let the other restore end, then run this again"
            )));
        };
        let Taken { mut image, mut mark, stood } = Taken::of(writer, &hidden, &item.id, image, stood)?;
        image.forget_wanted()?;
        let known = known(&mut image, &mark, &item.id)?;
        let proved = known.is_some();
        let known = known.or_else(|| {
            // Empty and all holes: known, so nothing of it is read.
            (!stood).then_some(MapRoot { size_bytes: 0, block_bytes: item.data.block_bytes, root: None })
        });
        mark.restored.clone_from(&restored);
        mark.write(&image)?;
        image.resize(item.data.size_bytes)?;
        Ok((Arc::new(image), mark, known, proved))
    })
    .map_err(io)?;
    over_standing(reader, item, image.clone(), known.as_ref(), guard, stats).await?;
    guard().map_err(io)?;
    blocking(move || {
        if item.kind == ItemKind::Glance {
            let found = writer.look(&hidden)?.map(|found| found.snapshots).unwrap_or_default();
            if found.iter().any(|snapshot| snapshot.name == GLANCE_SNAPSHOT) {
                // Of an earlier attempt, or of another version.
                image.remove_snapshot(GLANCE_SNAPSHOT)?;
            }
            image.snapshot(GLANCE_SNAPSHOT)?;
            image.protect(GLANCE_SNAPSHOT)?;
        }
        mark.holds = None;
        mark.restored = restored.map(|restored| Restored { whole: true, proved, ..restored });
        mark.write(&image)?;
        // Whoever deletes the volume must not be hindered by them.
        remove_snapshots(writer, &hidden, &image, None)?;
        drop(image);
        writer.rename(&hidden, name)
    })
    .map_err(io)
}

/// Notes on an image that a promotion made, or found standing there with the same contents, that nobody should be served with it.
pub fn note_odd(writer: &Arc<Writer>, name: &str, item: &ItemId, promotion: PromotionId) -> io::Result<()> {
    let Some(found) = writer.look(name)? else { return Ok(()) };
    let mut mark = Mark::of(&found).unwrap_or_else(|| Mark::new(&found.id, item));
    mark.odd = Some(promotion);
    let busy = || io::Error::other(format!("{name} is being written to by another process"));
    let image = writer.take(name, LETS_GO)?.ok_or_else(busy)?;
    mark.write(&image)
}
