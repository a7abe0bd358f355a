//! The block map above the blocks, grown from left to right: a leaf that is finished goes in, and of every level only the
//! node that is being filled is kept. A node that is not as it was is stored, as a patch of its last version where that is
//! smaller.

use super::RunWriter;
use crate::blob;
use crate::local_map::{Known, KnownChild, LocalMap, LocalMapWriter, node_of, raw_print};
use crate::map::{FAN_OUT, MapRoot};
use crate::seal::BlobKind;
use crate::{StoreError, blob::BlobRef};

/// Why a tree cannot be grown from the old one.
pub(super) enum TreeError {
    Store(StoreError),
    Local(std::io::Error),
    /// The local map has lost what stands unchanged beside a change: all must be read.
    Lost,
}

impl From<StoreError> for TreeError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
impl From<std::io::Error> for TreeError {
    fn from(error: std::io::Error) -> Self {
        Self::Local(error)
    }
}

/// A node that is being filled: its index in its level, and the children that were put.
#[derive(Default)]
struct Filling {
    index: u64,
    put: Vec<(u64, KnownChild)>,
}

pub(super) struct Tree<'a> {
    map: &'a MapRoot,
    previous: Option<&'a LocalMap>,
    /// What is not put stays as it was; else it is a hole.
    keeps: bool,
    /// From level 1 up.
    levels: Vec<Filling>,
    root: Option<KnownChild>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(
        map: &'a MapRoot,
        previous: Option<&'a LocalMap>,
        keeps: bool,
        out: &mut LocalMapWriter,
    ) -> Self {
        if let Some(previous) = previous.filter(|_| keeps) {
            out.keep_inner(previous);
        }
        let levels = (0..map.root_level()).map(|_| Filling::default()).collect();
        Self { map, previous, keeps, levels, root: None }
    }

    /// Children of a level are put in order.
    pub(super) fn put(
        &mut self,
        writer: &mut RunWriter,
        out: &mut LocalMapWriter,
        level: u8,
        index: u64,
        child: KnownChild,
    ) -> Result<(), TreeError> {
        if level == self.map.root_level() {
            self.root = Some(child);
            return Ok(());
        }
        let parent = index / FAN_OUT;
        if !self.levels[usize::from(level)].put.is_empty() && self.levels[usize::from(level)].index != parent
        {
            self.close(writer, out, level)?;
        }
        let filling = &mut self.levels[usize::from(level)];
        filling.index = parent;
        filling.put.push((index, child));
        Ok(())
    }

    /// The node above `level` that was being filled is complete.
    fn close(
        &mut self,
        writer: &mut RunWriter,
        out: &mut LocalMapWriter,
        level: u8,
    ) -> Result<(), TreeError> {
        let Filling { index, put } = std::mem::take(&mut self.levels[usize::from(level)]);
        let above = level + 1;
        let old = match self.previous {
            Some(previous) if previous.map().root_level() >= above => previous.children(above, index)?,
            _ => None,
        };
        let mut children: Vec<KnownChild> = vec![None; self.map.children_at(above, index) as usize];
        if self.keeps {
            match &old {
                Some((_, old)) if old.len() == children.len() => children.copy_from_slice(old),
                Some(_) => return Err(TreeError::Lost),
                None if self.previous.map_or(Ok(None), |p| p.node(above, index))?.is_some() => {
                    return Err(TreeError::Lost);
                }
                None => {}
            }
        }
        for (child_index, child) in put {
            children[(child_index % FAN_OUT) as usize] = child;
        }
        let old = old.as_ref().map(|(node, children)| (*node, &children[..]));
        let node = writer.store_node(above, &children, old)?;
        out.inner(above, index, node);
        self.put(writer, out, above, index, node)
    }

    /// The root of the whole.
    pub(super) fn finish(
        mut self,
        writer: &mut RunWriter,
        out: &mut LocalMapWriter,
    ) -> Result<Option<BlobRef>, TreeError> {
        for level in 0..self.map.root_level() {
            if !self.levels[usize::from(level)].put.is_empty() {
                self.close(writer, out, level)?;
            }
        }
        Ok(match self.root {
            Some(root) => root.map(|root| root.blob),
            None if self.keeps => self.previous.and_then(|previous| previous.map().root),
            None => None,
        })
    }
}

impl RunWriter {
    /// Stores a node unless it is a hole or the same as before.
    pub(super) fn store_node(
        &mut self,
        level: u8,
        children: &[KnownChild],
        old: Option<(Known, &[KnownChild])>,
    ) -> Result<KnownChild, StoreError> {
        let node = node_of(level, children);
        if node.is_hole() {
            return Ok(None);
        }
        let logical = node.logical();
        let id = self.secret.node_id(&logical);
        let raw = node.raw(&logical);
        // The same children in other places are another node.
        let is_it = |(old, _): &(Known, &[KnownChild])| old.blob.id == id && old.print == raw_print(&node);
        if let Some((old, _)) = old.filter(is_it) {
            return Ok(Some(old));
        }
        // The base of a patch must be what lies in the store to the last byte.
        let base = old.and_then(|(old, children)| {
            let before = node_of(level, children);
            (raw_print(&before) == old.print).then(|| (old, before.raw(&before.logical())))
        });
        let with = base.as_ref().map(|(old, raw)| (&old.blob, &raw[..], old.depth));
        let (depth, blob) = blob::encode_best(&raw, with, self.seat.press.level());
        let sealed = self.sealer.seal(BlobKind::Node, &id.0, &blob);
        let stands_on = base.map(|(old, _)| old).filter(|_| depth > 0);
        let at = self.push(BlobKind::Node, id, &sealed, stands_on)?;
        Ok(Some(Known { blob: BlobRef { id, at }, depth, print: raw_print(&node) }))
    }
}
