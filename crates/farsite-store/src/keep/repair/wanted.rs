//! Damaged packs come in; what live points need of them goes out, by what block maps name and by what patches stand on: a
//! damaged pack cannot always tell itself what lay in it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::StoreError;
use crate::blob::{BlobRef, MAX_PATCH_DEPTH};
use crate::keep::gc::Progress;
use crate::keep::mark::MarkOptions;
use crate::keep::walk::{Visited, each_blob};
use crate::ledger::GroupState;
use crate::manifest::Manifest;
use crate::pack::{PackId, PackIndex};
use crate::read::Reader;
use crate::seal::BlobKind;

#[derive(Default)]
pub(in crate::keep) struct Wanted {
    /// What block maps name.
    pub(in crate::keep) named: BTreeMap<PackId, HashSet<(BlobKind, BlobRef)>>,
    /// What patches stand on.
    pub(in crate::keep) bases: BTreeMap<PackId, HashSet<(BlobKind, BlobRef)>>,
    /// Every block map could be read.
    pub(in crate::keep) is_complete: bool,
}

impl Wanted {
    pub(in crate::keep) async fn of(
        reader: &Reader,
        state: &GroupState,
        packs: &BTreeSet<PackId>,
        options: &MarkOptions,
        progress: &dyn Progress,
    ) -> Result<Self, StoreError> {
        progress.says(&format!("{}: what its points need of damaged packs", state.group));
        reader.learn(state);
        let mut wanted = Self { is_complete: true, ..Self::default() };
        let mut visited = Visited::within(options.memory_bytes / 4);
        for point in state.live_points() {
            let hash = &point.said.manifest;
            let manifest = match Manifest::read(&reader.store, &state.group, point.id(), hash).await {
                Ok(manifest) => manifest,
                Err(StoreError::Damaged(_)) => {
                    wanted.is_complete = false;
                    continue;
                }
                Err(other) => return Err(other),
            };
            for item in &manifest.items {
                for map in std::iter::once(&item.data).chain(&item.directory) {
                    let named = &mut wanted.named;
                    let mut reach = |kind, blobs: &[BlobRef]| {
                        for blob in blobs.iter().filter(|blob| packs.contains(&blob.at.pack)) {
                            named.entry(blob.at.pack).or_default().insert((kind, *blob));
                        }
                        Ok(())
                    };
                    let damage = each_blob(reader, map, &mut visited, &mut reach).await?;
                    wanted.is_complete &= damage.is_empty();
                }
            }
        }
        Ok(wanted)
    }

    /// What patches that are named themselves stand on, down their chains.
    pub(in crate::keep) async fn add_bases_of_named(
        &mut self,
        reader: &Reader,
        packs: &BTreeSet<PackId>,
    ) -> Result<(), StoreError> {
        let mut patches: Vec<(BlobKind, BlobRef)> = self.named.values().flatten().copied().collect();
        for _ in 0..MAX_PATCH_DEPTH {
            let mut below = Vec::new();
            for kind in [BlobKind::Block, BlobKind::Node] {
                let of_kind = patches.iter().filter(|(is, _)| *is == kind);
                let blobs: Vec<BlobRef> = of_kind.map(|(_, blob)| *blob).collect();
                below.extend(self.add_bases(reader, packs, kind, &blobs).await?);
            }
            patches = below;
            if patches.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// What the patches of another pack stand on.
    pub(in crate::keep) async fn add_bases_of_pack(
        &mut self,
        reader: &Reader,
        packs: &BTreeSet<PackId>,
        blobs: &[(BlobKind, BlobRef)],
        index: &PackIndex,
    ) -> Result<(), StoreError> {
        if !index.bases.iter().any(|base| packs.contains(&base.pack)) {
            return Ok(());
        }
        for kind in [BlobKind::Block, BlobKind::Node] {
            let of_kind = blobs.iter().filter(|(is, _)| *is == kind);
            let blobs: Vec<BlobRef> = of_kind.map(|(_, blob)| *blob).collect();
            self.add_bases(reader, packs, kind, &blobs).await?;
        }
        Ok(())
    }

    async fn add_bases(
        &mut self,
        reader: &Reader,
        packs: &BTreeSet<PackId>,
        kind: BlobKind,
        blobs: &[BlobRef],
    ) -> Result<Vec<(BlobKind, BlobRef)>, StoreError> {
        let mut added = Vec::new();
        for some in crate::keep::lives::chunks(blobs, 8 << 20, 4096) {
            let read = reader.bases_of(kind, some.to_vec()).await?;
            let bases: Vec<BlobRef> = read.into_iter().filter_map(|(_, base)| base.ok().flatten()).collect();
            for base in reader.now_at(kind, &bases).await? {
                let here = packs.contains(&base.at.pack);
                if here && self.bases.entry(base.at.pack).or_default().insert((kind, base)) {
                    added.push((kind, base));
                }
            }
        }
        Ok(added)
    }
}
