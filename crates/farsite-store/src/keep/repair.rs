//! Repair: the live points of a group come in; what is damaged in their packs is read elsewhere, where the same lies once
//! more, and goes into new packs together with what is still good beside it. Which points are damaged and which are mended
//! goes into the ledger.
//!
//! A standby can open what is stored and has no source; an agent has the source and can open nothing. So repair notes the
//! damaged packs in the ledger, the agent's next run sends again what lies in them, and then repair finds it. What must
//! hold: a point is called mended only when every byte that it reaches was read behind the last change; blobs are moved as
//! compaction moves them, by rounds of it, so that a crash anywhere changes nothing that a reader sees.

mod plan;
pub(super) mod wanted;

use std::collections::{BTreeMap, BTreeSet};

use farsite_model::{GroupName, PointId, SiteName};
use serde::Serialize;

use self::plan::Plan;
use super::check::{Checked, Depth, Found, check};
use super::compact::round::Round;
use super::compact::{CompactOptions, GroupCompacted, Who};
use super::gc::{Progress, Removed};
use super::mark::MarkOptions;
use crate::StoreError;
use crate::keys::Signer;
use crate::ledger::{CommittedPoint, Ledger, Refusal, Statement};
use crate::read::Reader;

/// Damaged packs that are looked into at once, and emptied by one round.
const ROUND_PACKS: usize = 64;

/// How repair is done.
#[derive(Debug, Clone, Copy, Default)]
pub struct RepairOptions {
    /// Nothing is written; what would be is counted.
    pub dry_run: bool,
    pub mark: MarkOptions,
}

/// What repair did to one group, or would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct GroupRepaired {
    /// Why it stopped: what was done until then counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    pub live_points: usize,
    /// What was found at first, and whom it touches.
    pub found: Vec<Found>,
    /// Points that are now noted as damaged in the ledger, and were not before, or not with all of it.
    pub noted: Vec<PointId>,
    /// Packs of which something cannot be read.
    pub damaged_packs: u64,
    /// Blobs of them that could not be read there, and were read elsewhere.
    pub healed_blobs: u64,
    /// Blobs that were still good, and were moved with them.
    pub moved_blobs: u64,
    /// Blobs that live points need and that lie nowhere whole.
    pub lost_blobs: u64,
    /// Packs that were written for it.
    pub written: Removed,
    /// Points that were noted as damaged, and of which every byte opens now. A dry run does not foresee them.
    pub mended: Vec<PointId>,
    /// What is damaged still, and whom it touches.
    pub left: Vec<Found>,
    /// The newest point without damage that a failover would take by itself.
    pub newest_good: Option<PointId>,
}

impl GroupRepaired {
    pub fn is_whole(&self) -> bool {
        self.refused.is_none() && self.left.is_empty()
    }
}

/// What repair did, or would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Repaired {
    pub dry_run: bool,
    pub groups: BTreeMap<GroupName, GroupRepaired>,
}

/// Repairs these groups. `signer` is a standby agent of `site`, or an operator. A group that is refused leaves the others
/// alone.
pub async fn repair(
    reader: &Reader,
    ledgers: Vec<Ledger>,
    signer: &Signer,
    site: &SiteName,
    options: &RepairOptions,
    progress: &dyn Progress,
) -> Result<Repaired, StoreError> {
    let mut done = Repaired { dry_run: options.dry_run, ..Repaired::default() };
    let moving = CompactOptions { mark: options.mark, ..CompactOptions::default() };
    for mut ledger in ledgers {
        let mut said = GroupRepaired::default();
        let who = Who { reader, signer, site, options: &moving, progress };
        match (Repair { who, options }).group(&mut ledger, &mut said).await {
            Ok(()) => {}
            Err(StoreError::Refused(refusal)) => said.refused = Some(refusal.to_string()),
            Err(other) => return Err(other),
        }
        done.groups.insert(ledger.group().clone(), said);
    }
    Ok(done)
}

struct Repair<'a> {
    who: Who<'a>,
    options: &'a RepairOptions,
}

impl Repair<'_> {
    async fn group(&self, ledger: &mut Ledger, said: &mut GroupRepaired) -> Result<(), StoreError> {
        let mut checked = self.look(ledger).await?;
        ledger.state().refuse_damage()?;
        said.live_points = checked.points;
        said.found.clone_from(&checked.damage);
        said.damaged_packs = checked.damaged_packs.len() as u64;
        // First of all, so that no failover takes one while the rest is done.
        self.note(ledger, &checked, said).await?;
        while !checked.damaged_packs.is_empty() {
            let healed = self.salvage(ledger, &checked.damaged_packs, said).await?;
            if !healed || self.options.dry_run {
                break;
            }
            checked = self.look(ledger).await?;
            self.note(ledger, &checked, said).await?;
        }
        said.left.clone_from(&checked.damage);
        said.newest_good = checked.newest_good;
        self.call_mended(ledger, &checked, said).await
    }

    /// Reads every byte that live points need.
    async fn look(&self, ledger: &mut Ledger) -> Result<Checked, StoreError> {
        ledger.refresh().await?;
        check(self.who.reader, ledger, Depth::Full, &self.options.mark, self.who.progress).await
    }

    /// Notes in the ledger which points are damaged, where that is not said yet.
    async fn note(
        &self,
        ledger: &mut Ledger,
        checked: &Checked,
        said: &mut GroupRepaired,
    ) -> Result<(), StoreError> {
        let mut touched: BTreeMap<PointId, BTreeSet<String>> = BTreeMap::new();
        for found in &checked.damage {
            for (point, _) in &found.touches {
                touched.entry(*point).or_default().insert(found.damage.object.clone());
            }
        }
        for (point, objects) in touched {
            let objects: Vec<String> = objects.into_iter().collect();
            // With none of them an agent builds on nothing of the point.
            let told = checked.damaged_packs.iter().filter(|_| checked.packs_are_told);
            let packs: Vec<_> = told.copied().collect();
            let is_noted = |known: &CommittedPoint| {
                known.damaged == objects && packs.iter().all(|pack| known.damaged_packs.contains(pack))
            };
            if ledger.state().point(point).is_some_and(is_noted) {
                continue;
            }
            if !self.options.dry_run {
                let says = |_: &_| {
                    Ok(Statement::PointDamaged { point, objects: objects.clone(), packs: packs.clone() })
                };
                ledger.append(self.who.signer, says).await?;
            }
            if !said.noted.contains(&point) {
                said.noted.push(point);
            }
        }
        Ok(())
    }

    /// Moves what can be read of damaged packs, here or elsewhere. Returns whether anything is other than before.
    async fn salvage(
        &self,
        ledger: &mut Ledger,
        damaged: &BTreeSet<crate::pack::PackId>,
        said: &mut GroupRepaired,
    ) -> Result<bool, StoreError> {
        // What lay in packs that are gone, and should lie in these, is looked for as well.
        let strayed = ledger.state().emptied_into(damaged);
        let all: BTreeSet<_> = damaged.iter().copied().chain(strayed).collect();
        let all: Vec<_> = all.into_iter().collect();
        let mut changed = false;
        said.lost_blobs = 0;
        for some in all.chunks(ROUND_PACKS) {
            let some: BTreeSet<_> = some.iter().copied().collect();
            let state = ledger.state().clone();
            let plan =
                Plan::of(self.who.reader, &state, &some, &self.options.mark, self.who.progress).await?;
            said.lost_blobs += plan.lost;
            if plan.packs.is_empty() {
                continue;
            }
            if self.options.dry_run {
                said.healed_blobs += plan.healed;
                said.moved_blobs += plan.good;
                continue;
            }
            let mut moved = GroupCompacted::default();
            Round::new(self.who).run(ledger, plan.packs, &mut moved).await?;
            changed |= moved.rounds > 0;
            if moved.rounds > 0 {
                said.healed_blobs += plan.healed;
                said.moved_blobs += moved.moved_blobs.saturating_sub(plan.healed);
                said.written.objects += moved.written.objects;
                said.written.bytes += moved.written.bytes;
            }
        }
        Ok(changed)
    }

    /// Points that were noted as damaged and are not: the proof is the full check that was just made.
    async fn call_mended(
        &self,
        ledger: &mut Ledger,
        checked: &Checked,
        said: &mut GroupRepaired,
    ) -> Result<(), StoreError> {
        let noted = |point: &&CommittedPoint| !point.damaged.is_empty();
        let mended: Vec<PointId> =
            ledger.state().live_points().filter(noted).map(CommittedPoint::id).collect();
        let mended = mended.into_iter().filter(|point| checked.untouched.contains(point));
        for point in mended {
            let evidence = format!(
                "{} blobs ({} bytes) and {} log segments opened and hashed again; no damage touches it",
                checked.blobs_opened, checked.bytes_opened, checked.log_segments_opened
            );
            if !self.options.dry_run {
                let says = |state: &crate::ledger::GroupState| {
                    if state.point(point).is_none_or(|point| point.expired) {
                        return Err(Refusal::Other(format!("point {point} has expired meanwhile")));
                    }
                    Ok(Statement::PointMended { point, evidence: evidence.clone() })
                };
                ledger.append(self.who.signer, says).await?;
            }
            said.mended.push(point);
        }
        // What is called mended now is one that a failover would take.
        said.newest_good = ledger
            .state()
            .default_points()
            .map(CommittedPoint::id)
            .find(|point| checked.untouched.contains(point));
        Ok(())
    }
}
