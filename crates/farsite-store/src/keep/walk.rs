//! An item's block map comes in; what it names goes out, each blob where it lies now, with those of the nodes themselves.
//! Shared subtrees are visited once while the set of visited nodes fits into its memory; beyond that some are read again.

use std::collections::HashSet;

use futures::stream::{self, StreamExt};

use crate::blob::BlobRef;
use crate::map::MapRoot;
use crate::pack::PackId;
use crate::read::Reader;
use crate::seal::BlobKind;
use crate::{Damage, StoreError};

/// Nodes read at once.
const READS: usize = 16;
/// What a place takes in a hash set.
const PLACE_BYTES: usize = 24;

/// Nodes that need not be read again.
pub(super) struct Visited {
    nodes: HashSet<(PackId, u32)>,
    most: usize,
}

impl Visited {
    pub(super) fn within(memory_bytes: usize) -> Self {
        Self { nodes: HashSet::new(), most: memory_bytes / PLACE_BYTES }
    }

    fn insert(&mut self, node: &BlobRef) -> bool {
        if self.nodes.len() >= self.most {
            self.nodes.clear();
        }
        self.nodes.insert((node.at.pack, node.at.offset))
    }
}

/// Is told of blobs of one kind.
pub(super) type Reach<'a> = dyn FnMut(BlobKind, &[BlobRef]) -> Result<(), StoreError> + Send + 'a;

/// Calls `reach` with everything that a map names. Returns the first damage of each node that cannot be read: what lies
/// below it was not told.
pub(super) async fn each_blob(
    reader: &Reader,
    map: &MapRoot,
    visited: &mut Visited,
    reach: &mut Reach<'_>,
) -> Result<Vec<Damage>, StoreError> {
    let roots: Vec<BlobRef> = map.root.into_iter().collect();
    let root_level = map.root_level();
    reach(BlobKind::Node, &reader.now_at(BlobKind::Node, &roots).await?)?;
    let mut open: Vec<(BlobRef, u8)> = roots.into_iter().map(|root| (root, root_level)).collect();
    let mut damage = Vec::new();
    while !open.is_empty() {
        let mut batch = Vec::with_capacity(READS);
        while batch.len() < READS
            && let Some((node, level)) = open.pop()
        {
            if visited.insert(&node) {
                batch.push((node, level));
            }
        }
        let nodes: Vec<_> = stream::iter(batch)
            .map(|(node, level)| async move { (level, reader.node(&node, level).await) })
            .buffered(READS)
            .collect()
            .await;
        for (level, node) in nodes {
            let node = match node {
                Ok(node) => node,
                Err(StoreError::Damaged(found)) => {
                    damage.extend(found.into_iter().take(1));
                    continue;
                }
                Err(other) => return Err(other),
            };
            let children: Vec<BlobRef> = node.children.into_iter().flatten().collect();
            let kind = if level > 0 { BlobKind::Node } else { BlobKind::Block };
            reach(kind, &reader.now_at(kind, &children).await?)?;
            if level > 0 {
                open.extend(children.into_iter().map(|child| (child, level - 1)));
            }
        }
    }
    Ok(damage)
}
