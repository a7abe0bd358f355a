//! Compaction: packs of which only a small part is live come in; new packs that hold the live part go out, and one
//! `point-remapped` entry for each round of it, behind which readers look there. The packs that were emptied are left to the
//! next collection.
//!
//! What must hold: a round pins before it writes, so that collection keeps its packs; its entry comes last, when all that it
//! wrote is durable and was read back. Cut off anywhere, it has changed nothing that a reader could see, and what it left is
//! garbage. Blobs are moved as they are: their ids, the bytes of block-map nodes and what patches stand on stay the same,
//! because agents cannot open anything and go on naming the old places.

pub(super) mod round;

use std::collections::BTreeMap;

use farsite_model::{GroupName, SiteName};
use serde::Serialize;

use self::round::Round;
use super::gc::{Progress, Removed};
use super::lives::{LivePack, Lives};
use super::mark::MarkOptions;
use crate::keys::Signer;
use crate::ledger::{GroupState, Ledger, Refusal, Statement};
use crate::read::Reader;
use crate::{Damage, StoreError};

/// What one round moves at most: it is done in minutes, and what a crash costs is one round.
const ROUND_BYTES: u64 = 256 << 20;
const ROUND_PACKS: usize = 64;
const ROUND_BLOBS: usize = 500_000;

/// How compaction is done.
#[derive(Debug, Clone, Copy)]
pub struct CompactOptions {
    /// Nothing is written; what would be is counted.
    pub dry_run: bool,
    /// Packs of which at most so many percent are live are emptied.
    pub max_live_percent: u8,
    pub mark: MarkOptions,
    /// Size of the packs that are written.
    pub pack_bytes: usize,
}

impl Default for CompactOptions {
    fn default() -> Self {
        Self { dry_run: false, max_live_percent: 50, mark: MarkOptions::default(), pack_bytes: 32 << 20 }
    }
}

/// What compaction did to one group, or would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct GroupCompacted {
    /// Why nothing of this group was moved, or why it stopped: what was moved until then counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Packs that some live point needs.
    pub live_packs: Removed,
    /// Those that were emptied: the next collection removes them.
    pub emptied: Removed,
    /// What of their bytes is live: it is read, and written again.
    pub moved_bytes: u64,
    pub moved_blobs: u64,
    /// Packs that were written for it.
    pub written: Removed,
    /// What the next collection frees by it.
    pub freed_bytes: u64,
    /// Rounds whose entry is in the ledger.
    pub rounds: u64,
    /// What could not be moved because it is damaged; its packs stay as they are.
    pub damage: Vec<Damage>,
}

/// What compaction did, or would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Compacted {
    pub dry_run: bool,
    pub max_live_percent: u8,
    pub groups: BTreeMap<GroupName, GroupCompacted>,
}

/// Compacts these groups. `signer` is a standby agent of `site`, or an operator. A group that is refused leaves the others
/// alone.
pub async fn compact(
    reader: &Reader,
    ledgers: Vec<Ledger>,
    signer: &Signer,
    site: &SiteName,
    options: &CompactOptions,
    progress: &dyn Progress,
) -> Result<Compacted, StoreError> {
    let mut done = Compacted {
        dry_run: options.dry_run,
        max_live_percent: options.max_live_percent,
        ..Compacted::default()
    };
    for ledger in ledgers {
        let name = ledger.group().clone();
        let mut said = GroupCompacted::default();
        let worked = {
            let who = Who { reader, signer, site, options, progress };
            who.group(ledger, &mut said).await
        };
        match worked {
            Ok(()) => {}
            Err(StoreError::Refused(refusal)) => said.refused = Some(refusal.to_string()),
            Err(other) => return Err(other),
        }
        done.groups.insert(name, said);
    }
    Ok(done)
}

/// With what it is done.
#[derive(Clone, Copy)]
pub(super) struct Who<'a> {
    pub(super) reader: &'a Reader,
    pub(super) signer: &'a Signer,
    pub(super) site: &'a SiteName,
    pub(super) options: &'a CompactOptions,
    pub(super) progress: &'a dyn Progress,
}

impl Who<'_> {
    async fn group(&self, mut ledger: Ledger, said: &mut GroupCompacted) -> Result<(), StoreError> {
        ledger.refresh().await?;
        ledger.state().refuse_damage()?;
        let mut from = 0;
        loop {
            // Later points are made of what these hold and of their own packs, so what is not live now never will be.
            let state = ledger.state().clone();
            self.progress.says(&format!("{}: what is live in its packs", state.group));
            let lives = Lives::of(self.reader, &state, from, &self.options.mark, self.progress).await?;
            if !lives.damage.is_empty() {
                return Err(incomplete(&state, &lives));
            }
            self.packs(&mut ledger, &state, &lives, said).await?;
            match lives.range.end().checked_add(1) {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }

    /// Empties packs of one range, round by round.
    async fn packs(
        &self,
        ledger: &mut Ledger,
        state: &GroupState,
        lives: &Lives,
        said: &mut GroupCompacted,
    ) -> Result<(), StoreError> {
        let mut waiting: Vec<LivePack> = Vec::new();
        let full = |packs: &[LivePack]| {
            packs.len() >= ROUND_PACKS
                || packs.iter().map(LivePack::live_bytes).sum::<u64>() >= ROUND_BYTES
                || packs.iter().map(|pack| pack.entries.len()).sum::<usize>() >= ROUND_BLOBS
        };
        for pack in lives.packs() {
            let pack = match lives.pack(self.reader, pack).await {
                Ok(pack) => pack,
                Err(StoreError::Damaged(found)) => {
                    said.damage.extend(found);
                    continue;
                }
                Err(other) => return Err(other),
            };
            said.live_packs.add(pack.size_bytes);
            let live_bytes = pack.live_bytes();
            let much = u128::from(live_bytes) * 100
                > u128::from(pack.size_bytes) * u128::from(self.options.max_live_percent);
            if much || state.remapped.contains_key(&pack.pack) {
                continue;
            }
            if self.options.dry_run {
                said.emptied.add(pack.size_bytes);
                said.moved_bytes += live_bytes;
                said.moved_blobs += pack.live.len() as u64;
                said.freed_bytes += pack.size_bytes.saturating_sub(live_bytes);
                continue;
            }
            waiting.push(pack);
            if full(&waiting) {
                Round::new(*self).run(ledger, std::mem::take(&mut waiting), said).await?;
            }
        }
        if waiting.is_empty() { Ok(()) } else { Round::new(*self).run(ledger, waiting, said).await }
    }

    /// From the first `gc-begun` on, no run without a pin can commit: what none that is pinned needs is needed by nobody.
    pub(super) async fn ensure_pins_count(&self, ledger: &mut Ledger) -> Result<(), StoreError> {
        if !ledger.state().has_been_collected() {
            ledger.append(self.signer, |_| Ok(Statement::GcBegun { released: vec![], runs: vec![] })).await?;
        }
        Ok(())
    }
}

fn incomplete(state: &GroupState, lives: &Lives) -> StoreError {
    let what: Vec<String> = lives.damage.iter().take(3).map(|(_, damage)| damage.to_string()).collect();
    Refusal::Other(format!(
        "what the points of {} need cannot be told ({}); nothing was moved\n  hint: `farsite store check --depth full` names what is damaged and whom it touches; `farsite points expire` lets a point go that cannot be mended",
        state.group,
        what.join("; ")
    ))
    .into()
}
