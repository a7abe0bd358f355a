//! Two block maps in, the bytes that differ between them out. Both trees are walked together; a subtree with the same id on
//! both sides is not read. Memory: one node's children for each level.

use crate::StoreError;
use crate::blob::BlobRef;
use crate::map::{Child, MapRoot};
use crate::read::Reader;

/// A node of one side with its own level, which is lower than the level looked at where that side's tree is lower.
type Side = Option<(BlobRef, u8)>;

impl Reader {
    /// How many bytes of `new` lie in blocks that are not what they are in `old`; what was cut off the end counts too.
    /// Of maps with other block sizes nothing can be compared: then it is the larger of the two sizes, and `false`.
    pub async fn changed_bytes(&self, old: &MapRoot, new: &MapRoot) -> Result<(u64, bool), StoreError> {
        let size = old.size_bytes.max(new.size_bytes);
        if old.block_bytes != new.block_bytes {
            return Ok((size, old.root == new.root && old.size_bytes == new.size_bytes));
        }
        let side = |map: &MapRoot| map.root.map(|root| (root, map.root_level()));
        let level = old.root_level().max(new.root_level());
        let block = u64::from(new.block_bytes);
        let mut changed = 0;
        let mut open = vec![(side(old), side(new), level, 0u64)];
        while let Some((a, b, level, index)) = open.pop() {
            if a.map(|(node, level)| (node.id, level)) == b.map(|(node, level)| (node.id, level)) {
                continue;
            }
            let (a, b) = (self.below(a, level).await?, self.below(b, level).await?);
            for i in 0..a.len().max(b.len()) {
                let (a, b) = (a.get(i).copied().flatten(), b.get(i).copied().flatten());
                let here = index * crate::map::FAN_OUT + i as u64;
                if level > 0 {
                    open.push((a, b, level - 1, here));
                } else if a.map(|(blob, _)| blob.id) != b.map(|(blob, _)| blob.id) {
                    changed += block.min(size.saturating_sub(here * block));
                }
            }
        }
        Ok((changed, true))
    }

    /// A side's children at `level`. A lower tree is the first child of the levels above it.
    async fn below(&self, side: Side, level: u8) -> Result<Vec<Side>, StoreError> {
        let Some((node, own)) = side else { return Ok(Vec::new()) };
        if own < level {
            return Ok(vec![Some((node, own))]);
        }
        let child = |child: &Child| child.map(|child| (child, level.saturating_sub(1)));
        Ok(self.node(&node, level).await?.children.iter().map(child).collect())
    }
}
