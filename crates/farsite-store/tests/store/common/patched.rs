//! Versions of an item in which every changed block and every changed node is a patch against its previous version: what
//! a reader must be able to follow, written by hand.

use std::sync::Arc;

use farsite_model::RunId;
use farsite_store::blob::{self, BlobRef, MAX_PATCH_DEPTH};
use farsite_store::keys::BlobId;
use farsite_store::map::{FAN_OUT, MapRoot, Node, root_level};
use farsite_store::pack::{self, PackBuilder, PatchBase};
use farsite_store::seal::{BlobKind, Sealer};

use super::{World, group, site};

/// A blob as the next version patches against it.
#[derive(Clone)]
pub struct Base {
    pub blob: BlobRef,
    raw: Arc<Vec<u8>>,
    pub depth: u8,
}

pub struct Version {
    pub content: Vec<u8>,
    pub map: MapRoot,
    pub blocks: Vec<Option<Base>>,
    /// By level, then by index.
    nodes: Vec<Vec<Option<Base>>>,
}

struct Writer {
    sealer: Sealer,
    pack: PackBuilder,
}

impl Writer {
    fn put(&mut self, kind: BlobKind, id: BlobId, raw: Vec<u8>, base: Option<&Base>) -> Base {
        if let Some(base) = base.filter(|base| base.blob.id == id && *base.raw == raw) {
            return base.clone();
        }
        let base = base.filter(|base| base.depth < MAX_PATCH_DEPTH && base.blob.id != id);
        let (plain, depth) = match base {
            Some(base) => {
                let depth = base.depth + 1;
                (blob::encode_patch(&raw, &base.blob, &base.raw, depth, 3).unwrap(), depth)
            }
            None => (blob::encode(&raw, 3), 0),
        };
        let stands_on = base.map(|base| PatchBase::new(&base.blob, depth));
        let at = self.pack.push(kind, id, &self.sealer.seal(kind, &id.0, &plain), stands_on);
        Base { blob: BlobRef { id, at }, raw: Arc::new(raw), depth }
    }
}

/// Writes a version as one pack.
pub async fn write(
    world: &World,
    run: u64,
    content: Vec<u8>,
    block_bytes: usize,
    previous: Option<&Version>,
) -> Version {
    let run = RunId::from_random(run);
    let sealer = Sealer::begin(&world.store, &world.source, &site("north"), &group(), run).await.unwrap();
    let pack = PackBuilder::new(sealer.content_key(), 1 << 20);
    let mut writer = Writer { sealer, pack };
    let mut blocks: Vec<Option<Base>> = Vec::new();
    for (i, raw) in content.chunks(block_bytes).enumerate() {
        let base = previous.and_then(|p| p.blocks.get(i)).and_then(Option::as_ref);
        let hole = raw.iter().all(|b| *b == 0);
        blocks.push(
            (!hole).then(|| writer.put(BlobKind::Block, world.secret.block_id(raw), raw.to_vec(), base)),
        );
    }
    let top = root_level(blocks.len() as u64);
    let mut children: Vec<Option<BlobRef>> = blocks.iter().map(|b| b.as_ref().map(|b| b.blob)).collect();
    let mut nodes = Vec::new();
    for level in 0..=top {
        let mut row: Vec<Option<Base>> = Vec::new();
        for (i, children) in children.chunks(FAN_OUT as usize).enumerate() {
            let node = Node { level, children: children.to_vec() };
            let logical = node.logical();
            let base = previous
                .and_then(|p| p.nodes.get(usize::from(level)))
                .and_then(|row| row.get(i))
                .and_then(Option::as_ref);
            row.push((!node.is_hole()).then(|| {
                writer.put(BlobKind::Node, world.secret.node_id(&logical), node.raw(&logical), base)
            }));
        }
        children = row.iter().map(|n| n.as_ref().map(|n| n.blob)).collect();
        nodes.push(row);
    }
    let finished = writer.pack.finish(&writer.sealer);
    world.store.backend.create(&pack::object_key(&finished.id), finished.bytes).await.unwrap();
    let map = MapRoot {
        size_bytes: content.len() as u64,
        block_bytes: block_bytes as u32,
        root: children.first().copied().flatten(),
    };
    Version { content, map, blocks, nodes }
}

/// A map of one leaf, written by hand, beside what `map` says of its item.
pub async fn lone_node(world: &World, run: u64, node: &Node, map: &MapRoot) -> MapRoot {
    let run = RunId::from_random(run);
    let sealer = Sealer::begin(&world.store, &world.source, &site("north"), &group(), run).await.unwrap();
    let pack = PackBuilder::new(sealer.content_key(), 1 << 20);
    let mut writer = Writer { sealer, pack };
    let logical = node.logical();
    let root = writer.put(BlobKind::Node, world.secret.node_id(&logical), node.raw(&logical), None).blob;
    let finished = writer.pack.finish(&writer.sealer);
    world.store.backend.create(&pack::object_key(&finished.id), finished.bytes).await.unwrap();
    MapRoot { root: Some(root), ..map.clone() }
}
