//! Collection: retention says which points go, one `gc-begun` entry releases them, and then everything is removed that no
//! live point, pin, hold, patch base or open promotion reaches. Cut off anywhere, it leaves nothing that a reader could
//! see, and the next one finishes: what is garbage is told by the ledger and by what is listed, not by a memory of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use farsite_model::{GroupName, PointId, RunId, StoreTime};
use futures::stream::{self, StreamExt};
use jiff::SignedDuration;
use serde::Serialize;

use super::mark::{LiveSet, MarkOptions, Marked, incomplete, mark};
use super::owner::{Kept, Owner, Owners, read_on};
use crate::backend::{BackendError, Listed, UPLOAD_LIVES_AT_MOST};
use crate::hex::Hex;
use crate::keys::Signer;
use crate::ledger::{GroupState, Ledger, Patience, Refusal, Statement};
use crate::logs::TimelineId;
use crate::manifest::Manifest;
use crate::read::Reader;
use crate::seal::{ContentKeyId, Seals};
use crate::{Store, StoreError};

/// Requests under way at once.
const REQUESTS: usize = 16;

/// How collection is done.
#[derive(Debug, Clone, Copy, Default)]
pub struct GcOptions {
    /// Nothing is written and nothing removed; what would be is counted.
    pub dry_run: bool,
    pub mark: MarkOptions,
    /// A run whose pin is older is given up, and cannot commit any more.
    pub give_up: Patience,
    /// Where the store locks objects for this long: the lock of a pack that some live point needs is lengthened to this from
    /// now, once less than a third of it is left. `None`: locks are left alone.
    pub extend_locks: Option<SignedDuration>,
}

/// Is told what goes on.
pub trait Progress: Send + Sync {
    fn says(&self, words: &str);
}
impl Progress for () {
    fn says(&self, _: &str) {}
}

/// Objects and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    pub objects: u64,
    pub bytes: u64,
}

impl Removed {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// What collection did to one group, or would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct GroupCollected {
    /// Points that expired by this collection.
    pub released: Vec<PointId>,
    /// Runs whose pins it ended.
    pub given_up: Vec<RunId>,
    pub live_points: usize,
    /// Why nothing of this group was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Packs that some live point needs.
    pub live_packs: Removed,
    pub packs: Removed,
    pub manifests: Removed,
    pub log_segments: Removed,
    pub keys: Removed,
    /// Packs that no point needs and that stay, because a run that is under way wrote them.
    pub of_open_runs: Removed,
    /// Live packs whose lock was lengthened.
    pub relocked: Removed,
    /// Packs that the store would not remove: Object Lock, or rights that are missing.
    pub locked: Removed,
}

/// What collection did, or would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Collected {
    pub dry_run: bool,
    pub groups: BTreeMap<GroupName, GroupCollected>,
    /// Packs whose owner cannot be told: their content key is missing. They stay.
    pub of_nobody: Removed,
    /// Uploads that killed agents had left half-done at the store, and that were ended.
    pub ended_uploads: usize,
    /// The first reason of the store for not lengthening the lock of a live pack.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unlocked_because: Option<String>,
    /// The first reason of the store for not removing something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked_because: Option<String>,
}

impl Collected {
    /// All that was removed.
    pub fn removed(&self) -> Removed {
        let parts = self.groups.values().flat_map(|g| [g.packs, g.manifests, g.log_segments, g.keys]);
        parts.fold(Removed::default(), |sum, part| Removed {
            objects: sum.objects + part.objects,
            bytes: sum.bytes + part.bytes,
        })
    }
}

/// Collects these groups. `retention` says which points of a state it would let go; what must stay, stays whatever it
/// says. Of each group that is refused (its ledger is damaged, or what a live point needs cannot be told) nothing is
/// removed; the others are collected all the same.
pub async fn collect(
    reader: &Reader,
    ledgers: Vec<Ledger>,
    signer: &Signer,
    retention: &(dyn Fn(&GroupState) -> Vec<PointId> + Sync),
    options: &GcOptions,
    progress: &dyn Progress,
) -> Result<Collected, StoreError> {
    let mut done = Collected { dry_run: options.dry_run, ..Collected::default() };
    let mut groups = BTreeMap::new();
    for ledger in ledgers {
        let (name, mut said) = (ledger.group().clone(), GroupCollected::default());
        progress.says(&format!("releasing points of {name}"));
        match release(ledger, signer, retention, options, &mut said).await {
            Ok(kept) => {
                groups.insert(name.clone(), kept);
            }
            Err(StoreError::Refused(refusal @ Refusal::Damaged { .. })) => {
                said.refused = Some(refusal.to_string());
            }
            Err(other) => return Err(other),
        }
        done.groups.insert(name, said);
    }
    let mut sweep = Sweep::new(reader, options, progress, groups, done);
    sweep.all_packs().await?;
    sweep.all_manifests().await?;
    sweep.all_logs_and_keys().await?;
    let mut done = sweep.done;
    if !options.dry_run {
        progress.says("ending uploads that were left behind");
        match reader.store.backend.end_abandoned_uploads(UPLOAD_LIVES_AT_MOST).await {
            Ok(ended) => done.ended_uploads = ended,
            // They take room and harm nothing else; what was collected is collected.
            Err(error) => tracing::warn!("uploads that were left behind stay: {error}"),
        }
    }
    Ok(done)
}

/// Counts live packs and garbage without any key to sign with; releases and removes nothing.
pub(super) async fn count(
    reader: &Reader,
    ledgers: Vec<Ledger>,
    progress: &dyn Progress,
) -> Result<Collected, StoreError> {
    let options = GcOptions { dry_run: true, ..GcOptions::default() };
    let mut done = Collected { dry_run: true, ..Collected::default() };
    let mut groups = BTreeMap::new();
    for ledger in ledgers {
        let (name, state) = (ledger.group().clone(), ledger.state().clone());
        let mut said =
            GroupCollected { live_points: state.live_points().count(), ..GroupCollected::default() };
        match state.refuse_damage() {
            Ok(()) => {
                groups.insert(name.clone(), Kept::new(ledger, state, true));
            }
            Err(refusal) => said.refused = Some(refusal.to_string()),
        }
        done.groups.insert(name, said);
    }
    let mut sweep = Sweep::new(reader, &options, progress, groups, done);
    sweep.all_packs().await?;
    Ok(sweep.done)
}

/// Expires what retention lets go. When this returns, `gc-begun` is durable, or nothing has to be said.
async fn release(
    mut ledger: Ledger,
    signer: &Signer,
    retention: &(dyn Fn(&GroupState) -> Vec<PointId> + Sync),
    options: &GcOptions,
    said: &mut GroupCollected,
) -> Result<Kept, StoreError> {
    let now = ledger.store().backend.time().await?;
    ledger.refresh().await?;
    ledger.state().refuse_damage()?;
    let decide =
        |state: &GroupState| (state.would_expire(&retention(state)), state.abandoned(now, &options.give_up));
    let (released, runs) = decide(ledger.state());
    let needed = !released.is_empty() || !runs.is_empty() || !ledger.state().has_been_collected();
    (said.released, said.given_up) = (released, runs);
    let marked = if options.dry_run {
        ledger.state().collected_as(&said.released, &said.given_up)
    } else {
        if needed {
            let mut written = (Vec::new(), Vec::new());
            let decide = |state: &GroupState| {
                state.refuse_damage()?;
                written = decide(state);
                let (released, runs) = written.clone();
                Ok(Statement::GcBegun { released, runs })
            };
            ledger.append(signer, decide).await?;
            (said.released, said.given_up) = written;
            // The marks must be of a state behind the entry.
            ledger.refresh().await?;
            ledger.state().refuse_damage()?;
        }
        ledger.state().clone()
    };
    said.live_points = marked.live_points().count();
    Ok(Kept::new(ledger, marked, options.dry_run))
}

struct Sweep<'a> {
    reader: &'a Reader,
    options: &'a GcOptions,
    progress: &'a dyn Progress,
    /// The groups of which something may be removed.
    groups: BTreeMap<GroupName, Kept>,
    owners: Owners,
    done: Collected,
    /// Content keys that something needs which stays.
    keys: HashSet<ContentKeyId>,
    timelines: BTreeMap<GroupName, BTreeSet<TimelineId>>,
}

impl<'a> Sweep<'a> {
    fn new(
        reader: &'a Reader,
        options: &'a GcOptions,
        progress: &'a dyn Progress,
        groups: BTreeMap<GroupName, Kept>,
        done: Collected,
    ) -> Self {
        let (owners, keys, timelines) = (Owners::default(), HashSet::new(), BTreeMap::new());
        Self { reader, options, progress, groups, owners, done, keys, timelines }
    }

    fn store(&self) -> &Store {
        &self.reader.store
    }

    /// Marks, then removes what is not marked: for all packs at once, or range by range where they are too many.
    async fn all_packs(&mut self) -> Result<(), StoreError> {
        let mut from = 0;
        loop {
            let live = self.mark(from).await?;
            for first in live.range.clone() {
                self.packs(first, &live).await?;
            }
            self.keys.extend(&live.keys);
            match live.range.end().checked_add(1) {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }

    async fn mark(&mut self, from: u8) -> Result<LiveSet, StoreError> {
        let mut live = LiveSet::from(from);
        let mut refused = Vec::new();
        for (number, name) in self.done.groups.keys().enumerate() {
            let Some(kept) = self.groups.get(name) else { continue };
            self.progress.says(&format!("marking what the points of {name} need"));
            let Marked { timelines, damage } =
                mark(self.reader, &kept.marked, number as u16, &mut live, &self.options.mark).await?;
            if damage.is_empty() {
                self.timelines.entry(name.clone()).or_default().extend(timelines);
            } else {
                refused.push((name.clone(), incomplete(name, &damage).to_string()));
            }
        }
        for (name, why) in refused {
            self.groups.remove(&name);
            self.done.groups.entry(name).or_default().refused = Some(why);
        }
        Ok(live)
    }

    /// All packs in this folder.
    async fn packs(&mut self, first: u8, live: &LiveSet) -> Result<(), StoreError> {
        self.progress.says(&format!("looking through packs {first:02x}…"));
        let listed = self.store().backend.list(&format!("packs/{first:02x}/"), None).await?;
        let (mut unmarked, mut kept) = (Vec::new(), Vec::new());
        for object in listed {
            let Some(pack) = crate::pack::id_of(&object.key) else { continue };
            match live.packs.get(&pack) {
                Some(group) => {
                    if let Some(said) = self.done.groups.values_mut().nth(usize::from(*group)) {
                        said.live_packs.add(object.size_bytes);
                    }
                    kept.push((*group, object));
                }
                None => unmarked.push((pack, object)),
            }
        }
        self.extend_locks(kept).await?;
        if unmarked.is_empty() {
            return Ok(());
        }
        let (store, owners) = (self.store().clone(), &self.owners);
        let owned: Vec<_> = stream::iter(unmarked)
            .map(|(pack, object)| {
                let store = &store;
                async move { Ok((object, owners.of_pack(store, pack).await?)) }
            })
            .buffered(REQUESTS)
            .collect::<Vec<Result<_, StoreError>>>()
            .await;
        // Behind the listing: whoever wrote what was listed has pinned by now.
        read_on(&mut self.groups).await?;
        let mut garbage = Vec::new();
        for owned in owned {
            let (object, found) = owned?;
            let Some((key, owner)) = found else { continue };
            match owner {
                Some(owner) if self.is_garbage(&owner) => garbage.push((owner.group, key, object)),
                Some(owner) => {
                    self.keys.extend(key);
                    if self.groups.contains_key(&owner.group) {
                        self.said(&owner.group).of_open_runs.add(object.size_bytes);
                    }
                }
                None => {
                    self.keys.extend(key);
                    self.done.of_nobody.add(object.size_bytes);
                }
            }
        }
        let keys: Vec<_> = garbage.iter().map(|(_, key, _)| *key).collect();
        let removed =
            self.remove(garbage.into_iter().map(|(group, _, object)| (group, object)).collect()).await?;
        for ((group, bytes, gone), key) in removed.into_iter().zip(keys) {
            let said = self.said(&group);
            if gone {
                said.packs.add(bytes);
            } else {
                said.locked.add(bytes);
                self.keys.extend(key);
            }
        }
        Ok(())
    }

    /// Lengthens the locks of packs that stay. A pack without a lock gets none: whether there are locks is the store's owner's
    /// decision. What fails is said, and the next collection tries again.
    async fn extend_locks(&mut self, kept: Vec<(u16, Listed)>) -> Result<(), StoreError> {
        let Some(period) = self.options.extend_locks.filter(|_| !self.options.dry_run) else { return Ok(()) };
        let store = self.store().clone();
        let now = store.backend.time().await?;
        let answers: Vec<_> = stream::iter(kept)
            .map(|(group, object)| {
                let store = &store;
                async move {
                    let answer = match store.backend.locked_until(&object.key).await {
                        Ok(Some(until)) if until.since(now) < period / 3 => {
                            let until = StoreTime(now.0 + period);
                            store.backend.extend_lock(&object.key, until).await.map(|()| true)
                        }
                        Ok(_) => Ok(false),
                        Err(error) => Err(error),
                    };
                    (group, object.size_bytes, answer)
                }
            })
            .buffered(REQUESTS)
            .collect()
            .await;
        for (group, bytes, answer) in answers {
            match (answer, self.done.groups.values_mut().nth(usize::from(group))) {
                (Ok(true), Some(said)) => said.relocked.add(bytes),
                (Ok(_), _) => {}
                (Err(error), _) => {
                    self.done.unlocked_because.get_or_insert_with(|| error.to_string());
                }
            }
        }
        Ok(())
    }

    fn is_garbage(&self, owner: &Owner) -> bool {
        self.groups.get(&owner.group).is_some_and(|kept| !kept.may_need(owner.run))
    }

    fn said(&mut self, group: &GroupName) -> &mut GroupCollected {
        self.done.groups.entry(group.clone()).or_default()
    }

    /// Manifests of expired points, and of runs that never committed.
    async fn all_manifests(&mut self) -> Result<(), StoreError> {
        let names: Vec<GroupName> = self.groups.keys().cloned().collect();
        for name in names {
            self.progress.says(&format!("looking through manifests of {name}"));
            let listed = self.store().backend.list(&format!("manifests/{name}/"), None).await?;
            read_on(&mut self.groups).await?;
            let mut garbage = Vec::new();
            for object in listed {
                let point = object.key.rsplit('/').next().and_then(|id| id.parse::<PointId>().ok());
                let Some(point) = point else { continue };
                if self.manifest_is_garbage(&name, point, &object.key).await? {
                    garbage.push((name.clone(), object));
                }
            }
            for (group, bytes, gone) in self.remove(garbage).await? {
                let said = self.said(&group);
                if gone { said.manifests.add(bytes) } else { said.locked.add(bytes) }
            }
        }
        Ok(())
    }

    async fn manifest_is_garbage(
        &self,
        group: &GroupName,
        point: PointId,
        key: &str,
    ) -> Result<bool, StoreError> {
        let Some(kept) = self.groups.get(group) else { return Ok(false) };
        if let Some(point) = kept.state().point(point) {
            return Ok(point.expired);
        }
        // Committed while a dry run went on.
        if kept.ledger.state().point(point).is_some() {
            return Ok(false);
        }
        match Manifest::run_of(self.store(), key).await {
            Ok(run) => Ok(run.is_some_and(|run| !kept.may_need(run))),
            Err(StoreError::Damaged(_)) => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// Segments of timelines that no live point continues, and content keys that nothing is sealed with any more. Last of
    /// all: a pack without its key could not be told to whom it belongs.
    async fn all_logs_and_keys(&mut self) -> Result<(), StoreError> {
        self.progress.says("looking through content keys");
        let listed_keys = self.store().backend.list("keys/", None).await?;
        let names: Vec<GroupName> = self.groups.keys().cloned().collect();
        let mut listed_logs = Vec::new();
        for name in &names {
            for object in self.store().backend.list(&format!("logs/{name}/"), None).await? {
                listed_logs.push((name.clone(), object));
            }
        }
        let (store, owners, needed) = (self.store().clone(), &self.owners, &self.keys);
        let unmarked = listed_keys.into_iter().filter_map(|object| {
            let key = key_of(&object)?;
            (!needed.contains(&key)).then_some((key, object))
        });
        let owned: Vec<_> = stream::iter(unmarked)
            .map(|(key, object)| {
                let store = &store;
                async move { Ok((object, owners.of_key(store, key).await?)) }
            })
            .buffered(REQUESTS)
            .collect::<Vec<Result<_, StoreError>>>()
            .await;
        read_on(&mut self.groups).await?;
        let mut keys = Vec::new();
        for owned in owned {
            let (object, owner) = owned?;
            let Some(owner) = owner else { continue };
            let Some(kept) = self.groups.get(&owner.group) else { continue };
            if let (Some(Seals::Log(timeline)), true) = (owner.seals, kept.may_need(owner.run)) {
                self.timelines.entry(owner.group.clone()).or_default().insert(timeline);
            }
            keys.push((object, owner));
        }
        self.logs(listed_logs).await?;
        let garbage = keys.into_iter().filter(|(_, owner)| self.key_is_garbage(owner));
        let garbage: Vec<_> = garbage.map(|(object, owner)| (owner.group, object)).collect();
        // Wraps before their keys: a wrap without its key could not be told to be garbage. One whose key is missing stays,
        // it may be what is left of it.
        let of: HashMap<_, _> = garbage.iter().filter_map(|(g, o)| Some((key_of(o)?, g.clone()))).collect();
        let wraps = self.store().backend.list("wraps/", None).await?;
        let group = |object: &Listed| of.get(&crate::amendments::wrap_of(&object.key)?).cloned();
        let wraps = wraps.into_iter().filter_map(|object| Some((group(&object)?, object))).collect();
        for garbage in [wraps, garbage] {
            for (group, bytes, gone) in self.remove(garbage).await? {
                let said = self.said(&group);
                if gone { said.keys.add(bytes) } else { said.locked.add(bytes) }
            }
        }
        Ok(())
    }

    /// A shipper may write with its key long after its run has ended: for as long as its timeline lives.
    fn key_is_garbage(&self, owner: &Owner) -> bool {
        let timelines = self.timelines.get(&owner.group);
        let lives = match owner.seals {
            Some(Seals::Packs | Seals::Moved) => false,
            Some(Seals::Log(timeline)) => timelines.is_some_and(|all| all.contains(&timeline)),
            None => timelines.is_some_and(|all| !all.is_empty()),
        };
        !lives && self.is_garbage(owner)
    }

    async fn logs(&mut self, listed: Vec<(GroupName, Listed)>) -> Result<(), StoreError> {
        let mut dead: BTreeMap<(GroupName, TimelineId), Vec<Listed>> = BTreeMap::new();
        for (group, object) in listed {
            let timeline = object.key.split('/').nth(2).and_then(|id| id.parse::<TimelineId>().ok());
            let Some(timeline) = timeline else { continue };
            if self.timelines.get(&group).is_some_and(|live| live.contains(&timeline)) {
                continue;
            }
            dead.entry((group, timeline)).or_default().push(object);
        }
        for ((group, _), objects) in dead {
            // Keys of older programs do not say their timeline; the segment says its key.
            if let Some(key) = crate::logs::key_of(self.store(), &objects[0].key).await?
                && let Some(owner) = self.owners.of_key(self.store(), key).await?
                && self.groups.get(&group).is_none_or(|kept| kept.may_need(owner.run))
            {
                continue;
            }
            let garbage = objects.into_iter().map(|object| (group.clone(), object)).collect();
            for (group, bytes, gone) in self.remove(garbage).await? {
                let said = self.said(&group);
                if gone { said.log_segments.add(bytes) } else { said.locked.add(bytes) }
            }
        }
        Ok(())
    }

    /// Removes objects, several at once. Returns of each whether it is gone; what the store does not let go stays.
    async fn remove(
        &mut self,
        garbage: Vec<(GroupName, Listed)>,
    ) -> Result<Vec<(GroupName, u64, bool)>, StoreError> {
        let (store, dry_run) = (self.store().clone(), self.options.dry_run);
        let answers: Vec<_> = stream::iter(garbage)
            .map(|(group, object)| {
                let store = &store;
                async move {
                    let answer = if dry_run { Ok(()) } else { store.backend.delete(&object.key).await };
                    (group, object.size_bytes, answer)
                }
            })
            .buffered(REQUESTS)
            .collect()
            .await;
        let mut removed = Vec::with_capacity(answers.len());
        let mut failed = None;
        for (group, bytes, answer) in answers {
            match answer {
                Ok(()) | Err(BackendError::Missing { .. }) => removed.push((group, bytes, true)),
                Err(error @ BackendError::Denied { .. }) => {
                    self.done.locked_because.get_or_insert_with(|| error.to_string());
                    removed.push((group, bytes, false));
                }
                Err(other) => failed = failed.or(Some(other)),
            }
        }
        failed.map_or(Ok(removed), |error| Err(error.into()))
    }
}

fn key_of(object: &Listed) -> Option<ContentKeyId> {
    object.key.strip_prefix("keys/")?.parse::<Hex<16>>().ok()
}
