//! What a new item was made from: an image, a snapshot or a volume of the same group. A new item's bytes come in; the block
//! map of its ancestor goes out, so that the first copy sends only what differs from it. What must hold: an ancestor is a
//! guess that costs nothing when it is wrong, for every block is compared by its own hash; and only what a pinned point holds
//! is built on.

use farsite_model::content::ReadAt;
use farsite_model::{ItemId, ItemKind};
use farsite_store::local_map::LocalMap;
use farsite_store::print::{Print, Printer};
use farsite_store::shipped::Copies;

use crate::basis::Basis;
use crate::group::Group;

/// So many blocks of a new item are looked for in the maps of others.
const SAMPLES: u64 = 16;
/// From so many of them on it is called made from the other.
const LEAST_HITS: usize = 4;
/// A map in which none of the first samples is found is not looked at further.
const FIRST_SAMPLES: usize = 4;
/// In so many maps.
const CANDIDATES: usize = 64;

/// An ancestor, and its map in the newest point that has it.
pub(crate) struct Ancestor {
    pub(crate) item: ItemId,
    pub(crate) map: LocalMap,
}

/// Looks for what `item` was made from: what a person or its source says first, then what it looks like.
pub(crate) fn find(
    group: &Group,
    basis: &Basis,
    item: &ItemId,
    said: Option<&ItemId>,
    content: &dyn ReadAt,
    block_bytes: u32,
) -> Option<Ancestor> {
    let map_of = |id: &ItemId| {
        let map = basis.local_map(group, id, |i| Some(&i.data), id)?;
        (map.map().block_bytes == block_bytes).then_some(map)
    };
    let by_person = group.policy.ancestors.get(item);
    for said in [by_person, said].into_iter().flatten() {
        if let Some(map) = map_of(said) {
            return Some(Ancestor { item: said.clone(), map });
        }
        let why = "which no pinned point holds with blocks of this size";
        // A cloud tells of all ancestors, and in a first run none has a point yet; a person means something.
        if by_person == Some(said) {
            tracing::warn!(item = %item, "it is said to be made from {said}, {why}");
        } else {
            tracing::debug!(item = %item, "it was made from {said}, {why}");
        }
    }
    let samples = match samples(content, block_bytes, &Printer::new(&group.secret)) {
        Ok(samples) if samples.len() >= LEAST_HITS => samples,
        // Too small to be worth it; and what cannot be read will be said by whoever reads it.
        _ => return None,
    };
    let mut best: Option<(usize, Ancestor)> = None;
    for candidate in candidates(basis, item) {
        let Some(map) = map_of(candidate) else { continue };
        let hits = agreement(&map, &samples);
        if hits >= LEAST_HITS && best.as_ref().is_none_or(|(most, _)| hits > *most) {
            best = Some((hits, Ancestor { item: candidate.clone(), map }));
        }
        if hits == samples.len() {
            break;
        }
    }
    best.map(|(hits, ancestor)| {
        tracing::info!(item = %item, "{hits} of {} blocks are those of {}: it is taken for its ancestor", samples.len(), ancestor.item);
        ancestor
    })
}

/// A map that cannot be read is no ancestor.
fn agreement(map: &LocalMap, samples: &[(u64, Print)]) -> usize {
    // Apart from each other, so that a changed beginning does not hide the rest.
    let apart = samples.len().div_ceil(FIRST_SAMPLES).max(1);
    let first: Vec<(u64, Print)> = samples.iter().step_by(apart).copied().collect();
    match map.agrees_on(&first) {
        Ok(0) | Err(_) => 0,
        Ok(_) => map.agrees_on(samples).unwrap_or(0),
    }
}

/// Items of one address space, images first: most volumes are made from one.
fn candidates<'b>(basis: &'b Basis, item: &ItemId) -> Vec<&'b ItemId> {
    let items = basis.manifests.iter().flat_map(|m| &m.items);
    let mut found: Vec<_> = items
        .filter(|i| i.directory.is_none() && i.id != *item && i.data.root.is_some())
        .map(|i| (i.kind != ItemKind::Glance, &i.id))
        .collect();
    found.sort();
    found.dedup();
    found.into_iter().map(|(_, id)| id).take(CANDIDATES).collect()
}

/// Fingerprints of some blocks that hold data, spread over the item.
fn samples(content: &dyn ReadAt, block_bytes: u32, printer: &Printer) -> std::io::Result<Vec<(u64, Print)>> {
    let (size, block) = (content.size_bytes(), u64::from(block_bytes));
    let mut samples: Vec<(u64, Print)> = Vec::new();
    let mut bytes = Vec::new();
    for n in 0..SAMPLES {
        let from = u64::try_from(u128::from(size) * u128::from(n) / u128::from(SAMPLES)).unwrap_or(size);
        let next = samples.last().map_or(0, |(last, _)| (last + 1) * block);
        let Some(data) = content.next_data(from.max(next))? else { break };
        let number = data.start / block;
        let start = number * block;
        bytes.resize(block.min(size - start) as usize, 0);
        content.read_exact_at(&mut bytes, start)?;
        if bytes.iter().any(|byte| *byte != 0) {
            samples.push((number, printer.print(&bytes)));
        }
    }
    Ok(samples)
}

/// Copies of an ancestor's blocks, to make patches against: whoever reads them compares their hashes.
pub(crate) struct Shipped<'c> {
    pub(crate) copies: Copies<'c>,
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u32,
}

impl ReadAt for Shipped<'_> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let copy = self.copies.get(offset / u64::from(self.block_bytes), buffer.len());
        buffer.copy_from_slice(&copy.ok_or(std::io::ErrorKind::NotFound)?);
        Ok(())
    }
}
