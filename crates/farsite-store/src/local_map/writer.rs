//! A local map being written by a run. It takes the old one's place only when [`LocalMapWriter::commit`] is called, after
//! the point's ledger entry exists; until then the old one's leaves keep their slots.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use farsite_model::ItemId;
use jiff::Timestamp;

use super::{
    HASH_BYTES, Known, KnownChild, Leaf, LocalMap, Meta, NO_SLOT, RECORD_BYTES, VERSION, leaves_path,
    meta_path, push_child, record_hash,
};
use crate::hex::Hex;
use crate::map::MapRoot;

#[derive(Debug)]
pub struct LocalMapWriter {
    folder: PathBuf,
    item: ItemId,
    leaves: File,
    /// Which slots the old map's leaves lie in.
    taken: Vec<bool>,
    /// No slot before this one is free.
    free_from: usize,
    slots: BTreeMap<u64, u32>,
    inner: BTreeMap<(u8, u64), Known>,
    token: Option<String>,
    read_in_full: Option<Timestamp>,
    damage_told: u64,
    map: Option<(MapRoot, Hex<16>)>,
    /// There is no old map: what is not committed leaves no file.
    is_first: bool,
}

impl LocalMapWriter {
    /// One run at a time may write an item's map.
    pub fn create(folder: &Path, item: &ItemId) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let old = Meta::read(folder, item)?;
        let mut taken = Vec::new();
        for slot in old.iter().flat_map(|meta| &meta.slots).filter(|slot| **slot != NO_SLOT) {
            let slot = *slot as usize;
            if taken.len() <= slot {
                taken.resize(slot + 1, false);
            }
            taken[slot] = true;
        }
        let path = leaves_path(folder, item);
        let leaves = File::options().write(true).create(true).truncate(false).open(path)?;
        Ok(Self {
            folder: folder.to_owned(),
            item: item.clone(),
            leaves,
            taken,
            free_from: 0,
            slots: BTreeMap::new(),
            inner: BTreeMap::new(),
            token: None,
            read_in_full: None,
            damage_told: 0,
            map: None,
            is_first: old.is_none(),
        })
    }

    fn free_slot(&mut self) -> io::Result<u32> {
        while self.taken.get(self.free_from).is_some_and(|taken| *taken) {
            self.free_from += 1;
        }
        if self.taken.len() <= self.free_from {
            self.taken.resize(self.free_from + 1, false);
        }
        self.taken[self.free_from] = true;
        u32::try_from(self.free_from)
            .ok()
            .filter(|slot| *slot != NO_SLOT)
            .ok_or_else(|| io::Error::other("the item has more leaves than a local map can hold"))
    }

    /// A leaf that is all holes now.
    pub(crate) fn drop_leaf(&mut self, index: u64) {
        self.slots.remove(&index);
    }

    /// A leaf that is not as it was.
    pub(crate) fn leaf(&mut self, index: u64, leaf: &Leaf) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(RECORD_BYTES as usize);
        push_child(&mut bytes, &leaf.node);
        for child in &leaf.blocks {
            push_child(&mut bytes, child);
        }
        bytes.resize(RECORD_BYTES as usize - HASH_BYTES, 0);
        let hash = record_hash(index, &bytes);
        bytes.extend_from_slice(&hash);
        let slot = self.free_slot()?;
        self.leaves.write_all_at(&bytes, u64::from(slot) * RECORD_BYTES)?;
        self.slots.insert(index, slot);
        Ok(())
    }

    /// A leaf that is as it was in an old map: of this item, where it keeps its slot, or of the item that it was made from.
    /// Of the latter one that is damaged is `InvalidData`.
    pub(crate) fn keep_leaf(&mut self, old: &LocalMap, index: u64) -> io::Result<()> {
        let Some(slot) = old.slot(index) else { return Ok(()) };
        if old.meta.item == self.item {
            self.slots.insert(index, slot);
            return Ok(());
        }
        match old.leaf(index)? {
            Some(leaf) => self.leaf(index, &leaf),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Begins again: what was written is forgotten, its slots are not used again by this run.
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
        self.inner.clear();
    }

    /// All inner nodes of the old map, for a run that changes some of them.
    pub(crate) fn keep_inner(&mut self, old: &LocalMap) {
        for (level, index, blob, depth, print) in &old.meta.inner {
            self.inner.insert((*level, *index), Known { blob: *blob, depth: *depth, print: print.0 });
        }
    }

    /// An inner node; none when all below it are holes now.
    pub(crate) fn inner(&mut self, level: u8, index: u64, node: KnownChild) {
        match node {
            Some(node) => self.inner.insert((level, index), node),
            None => self.inner.remove(&(level, index)),
        };
    }

    pub(crate) fn finish(&mut self, map: MapRoot, store: Hex<16>) {
        self.map = Some((map, store));
    }

    /// What the source calls this version: a later run asks it what has changed since.
    pub fn set_token(&mut self, token: Option<String>) {
        self.token = token;
    }

    /// Not everything was read by this run: when it was, for the last time.
    pub fn read_in_full_at(&mut self, when: Timestamp) {
        self.read_in_full = Some(when);
    }

    /// Nothing in it lies in a pack that the group's ledger called damaged up to this entry.
    pub fn without_damage_until(&mut self, told: u64) {
        self.damage_told = told;
    }

    /// Makes this the item's last map. Call it only once the point is committed.
    pub fn commit(self) -> io::Result<()> {
        let Some((map, store)) = self.map else {
            return Err(io::Error::other("the item was not read to its end"));
        };
        self.leaves.sync_data()?;
        let mut slots = vec![NO_SLOT; self.slots.last_key_value().map_or(0, |(last, _)| *last as usize + 1)];
        for (index, slot) in self.slots {
            slots[index as usize] = slot;
        }
        let inner = self.inner.into_iter();
        let inner = inner.map(|((level, index), n)| (level, index, n.blob, n.depth, Hex(n.print))).collect();
        let read_in_full = self.read_in_full.unwrap_or_else(Timestamp::now);
        let (item, token, damage_told) = (self.item, self.token, self.damage_told);
        let meta =
            Meta { version: VERSION, store, item, map, token, read_in_full, damage_told, inner, slots };
        let path = meta_path(&self.folder, &meta.item);
        let temporary = path.with_extension("json.new");
        fs::write(&temporary, meta.to_bytes().map_err(io::Error::other)?)?;
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, &path)
    }

    /// Forgets this map; the old one stays.
    pub fn discard(self) {
        if self.is_first {
            let _ = fs::remove_file(leaves_path(&self.folder, &self.item));
        }
    }
}
