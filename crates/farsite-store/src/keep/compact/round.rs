//! One round of a compaction: some packs in, their live blobs in new packs and one entry out. The order is the promise: pin,
//! content key, packs, reading back, entry.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use farsite_model::RunId;

use super::{GroupCompacted, Who};
use crate::StoreError;
use crate::backend::create_or_recognise;
use crate::blob::{self, BlobRef};
use crate::hex::Hex;
use crate::keep::lives::{LivePack, Spot, chunks, spot};
use crate::ledger::{GroupState, Ledger, Refusal, Statement};
use crate::moves::{self, MOST_ROWS, Row};
use crate::pack::{PackBuilder, PackId, PatchBase, object_key};
use crate::read::ReadStats;
use crate::seal::{BlobKind, Sealer, Seals};

/// Sealed bytes that are opened at once, and blobs: each may stand on eight others, which are opened with it.
const PART_BYTES: u64 = 4 << 20;
const PART_BLOBS: usize = 64;
const LEVEL: i32 = 3;

pub(in crate::keep) struct Round<'a> {
    who: Who<'a>,
    run: RunId,
    /// New packs that are durable.
    to: Vec<PackId>,
    /// Of each emptied pack those of `to` that hold something of it.
    into: BTreeMap<PackId, BTreeSet<u32>>,
    written_bytes: u64,
    filling: Option<Filling>,
    /// What is live in the packs that are emptied, and so is moved.
    live: HashMap<PackId, HashSet<Spot>>,
}

struct Filling {
    pack: PackBuilder,
    rows: Vec<Row>,
}

impl<'a> Round<'a> {
    pub(in crate::keep) fn new(who: Who<'a>) -> Self {
        let run = RunId::from_random(u64::from_le_bytes(Hex::<8>::random().0));
        Self {
            who,
            run,
            to: Vec::new(),
            into: BTreeMap::new(),
            written_bytes: 0,
            filling: None,
            live: HashMap::new(),
        }
    }

    pub(in crate::keep) async fn run(
        mut self,
        ledger: &mut Ledger,
        packs: Vec<LivePack>,
        said: &mut GroupCompacted,
    ) -> Result<(), StoreError> {
        let (who, run) = (self.who, self.run);
        let store = who.reader.store.clone();
        who.ensure_pins_count(ledger).await?;
        ledger.append(who.signer, |_| Ok(Statement::PinBegun { run, points: vec![] })).await?;
        let group = ledger.group().clone();
        let sealer = Sealer::begin_for(&store, who.signer, who.site, &group, run, Seals::Moved).await?;
        let (mut emptied, mut moved_blobs, mut moved_bytes) = (Vec::new(), 0, 0);
        let count = packs.len();
        for pack in &packs {
            let blobs = pack.live.iter().filter_map(|line| pack.blob(*line));
            self.live.insert(pack.pack, blobs.map(|blob| spot(blob.at.offset, &blob.id)).collect());
        }
        for (number, pack) in packs.into_iter().enumerate() {
            who.progress.says(&format!("{group}: emptying pack {} of {count}", number + 1));
            match self.pack(&sealer, &pack).await {
                Ok(blobs) => {
                    moved_blobs += blobs;
                    moved_bytes += pack.live_bytes();
                    emptied.push(pack);
                }
                Err(StoreError::Damaged(found)) => {
                    self.into.remove(&pack.pack);
                    said.damage.extend(found);
                }
                Err(other) => return Err(other),
            }
        }
        self.finish(&sealer).await?;
        if emptied.is_empty() {
            // What was written for it is garbage at once.
            ledger.append(who.signer, |_| Ok(Statement::PinEnded { run })).await?;
            return Ok(());
        }
        who.progress.says(&format!("{group}: telling readers"));
        ledger.append(who.signer, |state| self.remapped(state, &emptied)).await?;
        who.reader.learn(ledger.state());
        let gone = emptied.iter().filter(|emptied| !emptied.stays);
        let emptied_bytes: u64 = gone.clone().map(|emptied| emptied.size_bytes).sum();
        said.emptied.objects += gone.count() as u64;
        said.emptied.bytes += emptied_bytes;
        said.moved_blobs += moved_blobs;
        said.moved_bytes += moved_bytes;
        said.written.objects += self.to.len() as u64;
        said.written.bytes += self.written_bytes;
        said.freed_bytes += emptied_bytes.saturating_sub(self.written_bytes);
        said.rounds += 1;
        Ok(())
    }

    /// The entry that tells readers. Where a pack was emptied into before is told again: a later entry replaces an earlier one.
    fn remapped(&self, state: &GroupState, emptied: &[LivePack]) -> Result<Statement, Refusal> {
        let (mut to, mut from, mut into) = (self.to.clone(), Vec::new(), Vec::new());
        let mut kept = Vec::new();
        for LivePack { pack, stays, homes, .. } in emptied {
            if state.remapped.get(pack).map_or(&[][..], Vec::as_slice) != homes {
                return Err(Refusal::Other(format!(
                    "another compaction has emptied {} meanwhile; what this one wrote is left to collection",
                    object_key(pack)
                )));
            }
            let mut these = self.into.get(pack).cloned().unwrap_or_default();
            let before = if homes.is_empty() { Vec::new() } else { state.now_in(*pack) };
            for home in before.into_iter().filter(|home| !state.remapped.contains_key(home)) {
                if emptied.iter().any(|emptied| emptied.pack == home) {
                    these.extend(self.into.get(&home).into_iter().flatten());
                    continue;
                }
                let number = to.iter().position(|known| *known == home).unwrap_or(to.len());
                if number == to.len() {
                    to.push(home);
                }
                these.insert(number as u32);
            }
            from.push(*pack);
            into.push(these.into_iter().collect());
            kept.extend(stays.then_some(*pack));
        }
        Ok(Statement::PointRemapped { run: self.run, points: vec![], from, to, into, kept })
    }

    /// Moves what is live in one pack. Returns how many blobs that were.
    async fn pack(&mut self, sealer: &Sealer, pack: &LivePack) -> Result<u64, StoreError> {
        let reader = self.who.reader;
        // A pack that compaction wrote hands on the places that its blobs had before.
        let mut former: HashMap<u32, Vec<Row>> = HashMap::new();
        if pack.entries.iter().any(|entry| entry.kind == BlobKind::Moves as u8) {
            for row in reader.moved_index(pack.pack).await?.former() {
                former.entry(row.line).or_default().push(*row);
            }
        }
        let line_of: HashMap<_, u32> =
            pack.entries.iter().enumerate().map(|(line, e)| (spot(e.offset, &e.id), line as u32)).collect();
        let mut seen: HashSet<u32> = pack.live.iter().copied().collect();
        let mut lines = pack.live.clone();
        let mut moved = 0;
        while !lines.is_empty() {
            let mut below = Vec::new();
            for kind in [BlobKind::Block, BlobKind::Node] {
                let of_kind = lines.iter().filter(|line| pack.kind(**line) == Some(kind));
                let blobs: Vec<BlobRef> = of_kind.filter_map(|line| pack.blob(*line)).collect();
                for some in chunks(&blobs, PART_BYTES, PART_BLOBS) {
                    let mut bases = Vec::new();
                    let (others, here): (Vec<BlobRef>, Vec<BlobRef>) = some.iter().partition(|blob| {
                        let line = line_of.get(&spot(blob.at.offset, &blob.id));
                        line.is_some_and(|line| pack.elsewhere.contains_key(line))
                    });
                    let mut parts = reader.parts(kind, here, &ReadStats::default()).await?;
                    for blob in others {
                        let line = line_of[&spot(blob.at.offset, &blob.id)];
                        let same = vec![pack.elsewhere[&line]];
                        let read = reader.wholes(kind, same, &ReadStats::default()).await?;
                        parts.extend(read.into_iter().map(|(_, part)| (blob, part)));
                    }
                    for (blob, part) in parts {
                        let part = part.map_err(|damage| StoreError::Damaged(vec![damage]))?;
                        let line = line_of.get(&spot(blob.at.offset, &blob.id)).copied();
                        // What a patch stands on in its own pack stands in no list.
                        if let Some((base, _)) = part.base.filter(|(base, _)| base.at.pack == pack.pack) {
                            let base = line_of.get(&spot(base.at.offset, &base.id)).copied();
                            below.extend(base.filter(|line| seen.insert(*line)));
                        } else {
                            bases.extend(part.base.map(|(base, _)| base));
                        }
                        let sealed = sealer.seal(kind, &blob.id.0, &part.plain);
                        let base = part.base.map(|(base, depth)| PatchBase::new(&base, depth));
                        let rows = line.and_then(|line| former.get(&line)).map_or(&[][..], Vec::as_slice);
                        self.push(sealer, kind, &blob, &sealed, base, rows).await?;
                        moved += 1;
                    }
                    self.bases_are_live(kind, &bases).await?;
                }
            }
            lines = below;
        }
        Ok(moved)
    }

    /// What a moved patch stands on is moved as well, or stays: anything else would be a fault of this program, and is found
    /// out before a reader is told.
    async fn bases_are_live(&self, kind: BlobKind, bases: &[BlobRef]) -> Result<(), StoreError> {
        for base in self.who.reader.now_at(kind, bases).await? {
            let left = |live: &HashSet<Spot>| !live.contains(&spot(base.at.offset, &base.id));
            if self.live.get(&base.at.pack).is_some_and(left) {
                return Err(Refusal::Other(format!(
                    "a patch stands on what would be left behind in {}; no reader was told, nothing was removed",
                    object_key(&base.at.pack)
                ))
                .into());
            }
        }
        Ok(())
    }

    async fn push(
        &mut self,
        sealer: &Sealer,
        kind: BlobKind,
        blob: &BlobRef,
        sealed: &[u8],
        base: Option<PatchBase>,
        former: &[Row],
    ) -> Result<(), StoreError> {
        let target = self.who.options.pack_bytes;
        let is_full =
            |f: &Filling| f.pack.len_bytes() + sealed.len() > target || f.rows.len() >= 4 * MOST_ROWS;
        if self.filling.as_ref().is_some_and(is_full) {
            self.finish(sealer).await?;
        }
        let number = self.to.len() as u32;
        let filling = self.filling.get_or_insert_with(|| Filling {
            pack: PackBuilder::new(sealer.content_key(), target),
            rows: Vec::new(),
        });
        let line = filling.pack.blobs();
        filling.pack.push(kind, blob.id, sealed, base);
        filling.rows.push(Row { pack: blob.at.pack, offset: blob.at.offset, line });
        filling.rows.extend(former.iter().map(|row| Row { line, ..*row }));
        self.into.entry(blob.at.pack).or_default().insert(number);
        Ok(())
    }

    /// The pack that is being filled is durable, and was read back, when this returns.
    async fn finish(&mut self, sealer: &Sealer) -> Result<(), StoreError> {
        let Some(Filling { mut pack, rows }) = self.filling.take() else { return Ok(()) };
        for (number, rows) in rows.chunks(MOST_ROWS).enumerate() {
            let id = moves::table_id(&pack.id(), number as u32);
            let plain = blob::encode(&moves::encode(rows), LEVEL);
            pack.push(BlobKind::Moves, id, &sealer.seal(BlobKind::Moves, &id.0, &plain), None);
        }
        let finished = pack.finish(sealer);
        let (store, key) = (&self.who.reader.store, object_key(&finished.id));
        if create_or_recognise(&*store.backend, &key, finished.bytes.clone()).await?.is_none() {
            return Err(StoreError::Conflict { key });
        }
        if store.backend.get(&key).await?.bytes != finished.bytes {
            return Err(Refusal::Other(format!(
                "{key}, read back at once, is not what was written; no reader was told of it, and collection removes it
  hint: the store's medium is not to be trusted; `farsite store check --depth full`"
            ))
            .into());
        }
        self.written_bytes += finished.bytes.len() as u64;
        self.to.push(finished.id);
        Ok(())
    }
}
