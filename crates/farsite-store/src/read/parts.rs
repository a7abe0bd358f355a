//! Blobs of a pack come in; what stands inside their seals goes out, so that it can be sealed again elsewhere, and what their
//! patches stand on. What must hold: what goes out has been opened, decompressed with all that it stands on, and hashed, so
//! that nothing damaged is moved as if it were whole.

use super::gather::{Batch, Room};
use super::{ReadStats, Reader, damage};
use crate::blob::{self, BlobRef};
use crate::map::Node;
use crate::read::encoded::Encoded;
use crate::seal::BlobKind;
use crate::{Damage, StoreError};

/// What cannot be taken as it is, is compressed anew: nobody waits for it.
const LEVEL: i32 = 9;

/// What is sealed again.
pub(crate) struct Part {
    pub(crate) plain: Vec<u8>,
    /// What it stands on when it is a patch, and how deep it is.
    pub(crate) base: Option<(BlobRef, u8)>,
}

impl Reader {
    /// What each of these blobs stands on, when it is a patch. Bases are not read.
    pub(crate) async fn bases_of(
        &self,
        kind: BlobKind,
        blobs: Vec<BlobRef>,
    ) -> Result<Vec<(BlobRef, Result<Option<BlobRef>, Damage>)>, StoreError> {
        let (single, grouped): (Vec<_>, Vec<_>) = blobs.into_iter().partition(|blob| !blob.at.is_grouped());
        let mut batch = Batch::of(kind);
        self.fetch(&mut batch, &single, &ReadStats::default()).await?;
        let opened = tokio::task::spawn_blocking(move || {
            batch.open(single.clone());
            let look = |blob: BlobRef| {
                let base = batch.plain(&blob).map(|plain| match Encoded::parse(plain) {
                    Some(Encoded::Patch { base, .. }) => Some(base),
                    _ => None,
                });
                (blob, base)
            };
            single.into_iter().map(look).collect::<Vec<_>>()
        });
        let mut found = opened.await.map_err(|_| StoreError::Cancelled)?;
        // No patch is in a group.
        found.extend(grouped.into_iter().map(|blob| (blob, Ok(None))));
        Ok(found)
    }

    /// Each of these blobs as it can be sealed again; or what is wrong with it.
    pub(crate) async fn parts(
        &self,
        kind: BlobKind,
        blobs: Vec<BlobRef>,
        stats: &ReadStats,
    ) -> Result<Vec<(BlobRef, Result<Part, Damage>)>, StoreError> {
        self.parts_as(kind, blobs, false, stats).await
    }

    /// The same, and none of them a patch: each stands by itself.
    pub(crate) async fn wholes(
        &self,
        kind: BlobKind,
        blobs: Vec<BlobRef>,
        stats: &ReadStats,
    ) -> Result<Vec<(BlobRef, Result<Part, Damage>)>, StoreError> {
        self.parts_as(kind, blobs, true, stats).await
    }

    async fn parts_as(
        &self,
        kind: BlobKind,
        blobs: Vec<BlobRef>,
        whole: bool,
        stats: &ReadStats,
    ) -> Result<Vec<(BlobRef, Result<Part, Damage>)>, StoreError> {
        let secret = self.opener.secret.clone();
        let wanted = blobs.clone();
        self.gather(kind, wanted, stats, move |batch| {
            let mut room = Room::default();
            let mut one = |blob: &BlobRef| {
                let now = batch.now(blob);
                let raw = batch.raw(blob, &mut room)?;
                let id = match kind {
                    BlobKind::Node => Node::parse(raw).map(|(logical, _)| secret.node_id(logical)),
                    _ => Some(secret.block_id(raw)),
                };
                if id != Some(blob.id) {
                    return Err(damage::wrong_hash(blob));
                }
                if whole || now.at.is_grouped() {
                    return Ok(Part { plain: blob::encode(raw, LEVEL), base: None });
                }
                let plain = batch.plain(&now)?;
                let base = match Encoded::parse(plain) {
                    Some(Encoded::Patch { base, depth, .. }) => Some((base, depth)),
                    _ => None,
                };
                Ok(Part { plain: plain.to_vec(), base })
            };
            blobs.into_iter().map(|blob| (blob, one(&blob))).collect()
        })
        .await
    }
}
