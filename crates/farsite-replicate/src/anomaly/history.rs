//! What was seen of a group's items in earlier points, in this host's record. The truth stands in the manifests: what this
//! host lost of it is read from there again. Only points in which an item changed are kept of it, so that what is usual is
//! what it does when it does something.

use std::sync::Arc;

use farsite_model::{ItemId, PointId};
use farsite_store::ledger::GroupState;
use farsite_store::manifest::Manifest;
use jiff::Timestamp;
use rusqlite::params;

use super::{Earlier, LEAST_BLOCKS};
use crate::ReplicateError;
use crate::group::Group;
use crate::record::Record;

/// So many changes of an item are what it is compared with: with a point every quarter of an hour and changes in each of
/// them, five days.
const KEPT_CHANGES: u32 = 500;
/// Of a host that has lost its record: so many points are read from the store.
const READ_POINTS: usize = 32;

/// One group's history at one standby.
pub(crate) struct History {
    record: Arc<Record>,
    store: String,
    group: String,
}

impl History {
    pub(crate) fn open(group: &Group) -> Result<Self, ReplicateError> {
        group.record.with(|connection| {
            connection.execute_batch(
                "CREATE TABLE IF NOT EXISTS seen_points (
                   store TEXT NOT NULL, group_name TEXT NOT NULL, point TEXT NOT NULL,
                   PRIMARY KEY (store, group_name, point)) WITHOUT ROWID;
                 CREATE TABLE IF NOT EXISTS signals (
                   store TEXT NOT NULL, group_name TEXT NOT NULL, item TEXT NOT NULL, at_ms INTEGER NOT NULL,
                   suspicious INTEGER NOT NULL, signals TEXT NOT NULL,
                   PRIMARY KEY (store, group_name, item, at_ms)) WITHOUT ROWID;",
            )
        })?;
        Ok(Self {
            record: group.record.clone(),
            store: group.store.format().store.to_string(),
            group: group.policy.group.to_string(),
        })
    }

    /// The point exists.
    pub(crate) fn add(&self, manifest: &Manifest, suspicious: &[String]) -> Result<(), ReplicateError> {
        self.record.with(|connection| {
            let all = connection.unchecked_transaction()?;
            let mut put =
                all.prepare_cached("INSERT OR REPLACE INTO signals VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
            let mut forget = all.prepare_cached(
                "DELETE FROM signals WHERE store = ?1 AND group_name = ?2 AND item = ?3 AND at_ms <= (
                   SELECT at_ms FROM signals WHERE store = ?1 AND group_name = ?2 AND item = ?3
                   ORDER BY at_ms DESC LIMIT 1 OFFSET ?4)",
            )?;
            for item in manifest.items.iter().filter(|item| item.carried_from.is_none()) {
                let Some(signals) = item.signals else { continue };
                if signals.new_blocks() + signals.cleared_blocks < LEAST_BLOCKS && signals.files_gone == 0 {
                    continue;
                }
                let text = serde_json::to_string(&signals).expect("counts are valid JSON");
                let id = item.id.as_str();
                let at_ms = item.stamp.captured.0.as_millisecond();
                let odd = !suspicious.is_empty();
                put.execute(params![self.store, self.group, id, at_ms, odd, text])?;
                forget.execute(params![self.store, self.group, id, KEPT_CHANGES])?;
            }
            for gone in &manifest.absent {
                all.execute(
                    "DELETE FROM signals WHERE store = ?1 AND group_name = ?2 AND item = ?3",
                    params![self.store, self.group, gone.as_str()],
                )?;
            }
            all.execute(
                "INSERT OR REPLACE INTO seen_points VALUES (?1, ?2, ?3)",
                params![self.store, self.group, manifest.point.to_string()],
            )?;
            drop((put, forget));
            all.commit()
        })
    }

    /// Reads what this host does not know of the newest points.
    pub(super) async fn fill(&self, group: &Group, state: &GroupState) -> Result<(), ReplicateError> {
        let live = state.points.iter().rev().filter(|p| !p.expired && p.damaged.is_empty());
        for point in live.take(READ_POINTS) {
            if self.knows(point.id())? {
                continue;
            }
            match Manifest::read(&group.store, &group.policy.group, point.id(), &point.said.manifest).await {
                Ok(manifest) if manifest.site == group.config.site => {
                    self.add(&manifest, &point.said.suspicious)?;
                }
                // Another site's points say nothing of what is usual here; damage is for others to name.
                Ok(_) | Err(farsite_store::StoreError::Damaged(_)) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Ok(())
    }

    fn knows(&self, point: PointId) -> Result<bool, ReplicateError> {
        self.record.with(|connection| {
            let sql = "SELECT count(*) FROM seen_points WHERE store = ?1 AND group_name = ?2 AND point = ?3";
            connection.query_row(sql, params![self.store, self.group, point.to_string()], |row| {
                Ok(row.get::<_, i64>(0)? > 0)
            })
        })
    }

    /// What was seen of an item, oldest first.
    pub(super) fn of(&self, item: &ItemId) -> Result<Vec<Earlier>, ReplicateError> {
        self.record.with(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT at_ms, suspicious, signals FROM signals WHERE store = ?1 AND group_name = ?2 AND item = ?3
                 ORDER BY at_ms",
            )?;
            let rows = statement.query_map(params![self.store, self.group, item.as_str()], |row| {
                Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get::<_, String>(2)?))
            })?;
            let mut earlier = Vec::new();
            for row in rows {
                let (at_ms, suspicious, text) = row?;
                if let (Ok(at), Ok(signals)) =
                    (Timestamp::from_millisecond(at_ms), serde_json::from_str(&text))
                {
                    earlier.push(Earlier { at, signals, suspicious });
                }
            }
            Ok(earlier)
        })
    }
}
