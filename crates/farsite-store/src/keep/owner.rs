//! Whose an object is: content keys say of which group and run, and a run is alive or not by the group's ledger.

use std::collections::{BTreeMap, HashMap};

use farsite_model::{GroupName, RunId};

use crate::ledger::{GroupState, Ledger};
use crate::pack::{self, PackId};
use crate::seal::{ContentKeyId, ContentKeyObject, Seals};
use crate::{Store, StoreError};

/// Content keys that are remembered; beyond that some are read again.
const REMEMBERED: usize = 50_000;

/// Whose a content key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) group: GroupName,
    pub(crate) run: RunId,
    pub(crate) seals: Option<Seals>,
}

/// Content keys' owners, as far as they were asked for. `None`: the key's object is missing or damaged.
#[derive(Default)]
pub(crate) struct Owners {
    known: std::sync::Mutex<HashMap<ContentKeyId, Option<Owner>>>,
}

impl Owners {
    pub(crate) async fn of_key(&self, store: &Store, key: ContentKeyId) -> Result<Option<Owner>, StoreError> {
        if let Some(known) = self.known.lock().expect("no holder of this lock panics").get(&key) {
            return Ok(known.clone());
        }
        let owner = match ContentKeyObject::read(store, key).await {
            Ok(body) => Some(Owner { group: body.group, run: body.run, seals: body.seals }),
            Err(StoreError::Damaged(_)) => None,
            Err(other) => return Err(other),
        };
        let mut known = self.known.lock().expect("no holder of this lock panics");
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(key, owner.clone());
        Ok(owner)
    }

    /// The content key that a pack's header names, and its owner. `None`: the pack went meanwhile.
    pub(crate) async fn of_pack(
        &self,
        store: &Store,
        pack: PackId,
    ) -> Result<Option<(Option<ContentKeyId>, Option<Owner>)>, StoreError> {
        let key = match pack::read_header(store, &pack).await {
            Ok(key) => key,
            Err(StoreError::Damaged(_)) => {
                let gone = match store.backend.size(&pack::object_key(&pack)).await {
                    Ok(_) => false,
                    Err(error) if error.is_missing() => true,
                    Err(other) => return Err(other.into()),
                };
                return Ok((!gone).then_some((None, None)));
            }
            Err(other) => return Err(other),
        };
        Ok(Some((Some(key), self.of_key(store, key).await?)))
    }
}

/// A group while it is collected.
pub(crate) struct Kept {
    pub(crate) ledger: Ledger,
    /// The state that the marks are of: behind `gc-begun`, or as it would be in a dry run.
    pub(crate) marked: GroupState,
    dry_run: bool,
}

impl Kept {
    pub(crate) fn new(ledger: Ledger, marked: GroupState, dry_run: bool) -> Self {
        Self { ledger, marked, dry_run }
    }

    /// The state to judge by what was listed: the newest, in which a dry run has released nothing.
    pub(crate) fn state(&self) -> &GroupState {
        if self.dry_run { &self.marked } else { self.ledger.state() }
    }

    /// Whether what a run wrote may still be needed though no mark reaches it: its pin lived when the marks were made, or
    /// lives now, or it has committed since. To be asked only after the ledger was read behind the listing that named
    /// the object: whoever had written it had pinned before.
    pub(crate) fn may_need(&self, run: RunId) -> bool {
        let since = self.ledger.state().points.iter().skip(self.marked.points.len());
        // A compaction that was begun and done since the marks were made has emptied packs that are marked.
        let moved_since = self.ledger.state().has_moved(run) && !self.marked.has_moved(run);
        moved_since
            || self.marked.pins.contains_key(&run)
            || self.state().pins.contains_key(&run)
            || since.into_iter().any(|point| point.said.run == run)
    }
}

/// Reads all ledgers on, and refuses to go on behind damage.
pub(crate) async fn read_on(groups: &mut BTreeMap<GroupName, Kept>) -> Result<(), StoreError> {
    for kept in groups.values_mut() {
        kept.ledger.refresh().await?;
        kept.ledger.state().refuse_damage()?;
    }
    Ok(())
}
