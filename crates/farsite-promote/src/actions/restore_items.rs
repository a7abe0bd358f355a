//! `restore-images`, `restore-volumes`, `restore-files`: the point's items of some kinds into their places, two at a time.
//!
//! What must hold: an item that stands in its place under its own name is complete; what differs from the point is moved
//! aside, what is the same is left alone; a resumed run skips what its list says is done.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use farsite_model::ItemKind;
use farsite_replicate::hydrate::{self, Copy};
use farsite_replicate::spot::Spot;
use farsite_replicate::{pool, restore};
use farsite_runbook::action::{Action, ActionContext, ActionError, Done, Foreseen, Outcome};
use farsite_store::manifest::ManifestItem;
use futures::stream::{self, StreamExt, TryStreamExt};
use rustix::io::Errno;
use serde_json::Value;
use tokio::sync::Mutex;

use super::pool_items::{self, Connections};
use super::restore_database::undone;
use super::{Held, RESTORE_LIMIT, no_parameters};
use crate::aside::{Stamps, beside, exists, in_folder, remove, root_of};
use crate::group_run::{GroupRun, failed, guard};
use crate::{compare, encrypted, owner};

/// Items under way at once; each has its own fetches in flight.
const AT_ONCE: usize = 2;

pub(super) struct RestoreItems {
    pub held: Held,
    pub name: &'static str,
    pub kinds: &'static [ItemKind],
}

/// How one item came to be in its place.
enum Came {
    Restored,
    /// Out of a hydrated copy: only what differed was written.
    Hydrated,
    Already,
    /// The very same contents stood there.
    Same,
}

/// The lists of what was restored, by folder.
type Lists = Mutex<BTreeMap<(PathBuf, ItemKind), Stamps>>;

/// What to do where there is no room.
fn full(why: &str) -> &'static str {
    let is_full =
        [Errno::NOSPC, Errno::DQUOT].iter().any(|e| why.contains(&format!("os error {}", e.raw_os_error())));
    if is_full && !why.contains("hint:") {
        "\n  hint: make room there, then `farsite failover --resume`: what is restored is gone on with, and what stood in the places before is kept beside them"
    } else {
        ""
    }
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device())
}

/// What stands in places of its own: a file, or the outermost files and folders of a tree.
async fn parts(
    run: &GroupRun,
    context: &ActionContext,
    item: &ManifestItem,
) -> Result<Vec<PathBuf>, ActionError> {
    let place = run.path(item)?;
    let Some(directory) = &item.directory else { return Ok(vec![place]) };
    let entries = restore::entries(&run.standby.reader, item, directory)
        .await
        .map_err(|e| failed(context, format!("{}: {e}", item.id)))?;
    let mut outermost: Vec<PathBuf> = Vec::new();
    let mut paths: Vec<PathBuf> = entries.iter().map(|entry| PathBuf::from(&entry.path)).collect();
    paths.sort();
    for path in paths {
        if outermost.last().is_none_or(|last| !path.starts_with(last)) {
            outermost.push(path);
        }
    }
    Ok(outermost.into_iter().map(|path| place.join(path)).collect())
}

/// The folder that the list of an item's places lies in.
pub(super) fn folder_of(item: &ManifestItem, place: &Path) -> PathBuf {
    match item.kind {
        ItemKind::Files => place.to_owned(),
        _ => place.parent().unwrap_or(place).to_owned(),
    }
}

fn aside_of(run: &GroupRun, item: &ManifestItem, part: &Path) -> PathBuf {
    match item.kind {
        // Beside it: another part of the tree may be on another file system.
        ItemKind::Files => beside(part, run.promotion),
        _ => in_folder(part, run.promotion),
    }
}

impl RestoreItems {
    /// Does something with the list that an item belongs to.
    async fn with_list<T>(
        &self,
        run: &GroupRun,
        context: &ActionContext,
        lists: &Lists,
        item: &ManifestItem,
        work: impl FnOnce(&mut Stamps) -> std::io::Result<T>,
    ) -> Result<T, ActionError> {
        let folder = folder_of(item, &run.path(item)?);
        let fail =
            |error: std::io::Error| failed(context, format!("{} in {}: {error}", item.id, folder.display()));
        let mut lists = lists.lock().await;
        let key = (folder.clone(), item.kind);
        if !lists.contains_key(&key) {
            let opened = Stamps::open(&folder, item.kind, run.promotion).map_err(fail)?;
            lists.insert(key.clone(), opened);
        }
        match lists.get_mut(&key) {
            Some(list) => work(list).map_err(fail),
            None => Err(ActionError::failed("a list that was just opened is gone")),
        }
    }

    async fn one(
        &self,
        run: &GroupRun,
        context: &ActionContext,
        lists: &Lists,
        connections: &Connections,
        kept: &AtomicUsize,
        item: &ManifestItem,
    ) -> Result<Came, ActionError> {
        let place = match run.spot(item)? {
            Spot::File(path) => path,
            Spot::Image(image) => {
                return Ok(match pool_items::restore(run, context, connections, item, &image).await? {
                    None => Came::Same,
                    Some(pool::Came::Restored) => Came::Restored,
                    Some(pool::Came::Hydrated) => Came::Hydrated,
                    Some(pool::Came::Already) => Came::Already,
                });
            }
        };
        let (id, root) = (item.id.as_str(), root_of(item));
        let parts = parts(run, context, item).await?;
        let done = self
            .with_list(run, context, lists, item, |list| {
                Ok(parts.iter().all(|part| exists(part) && list.is_done(part, &root)))
            })
            .await?;
        if done {
            return Ok(Came::Already);
        }
        let known = self
            .with_list(run, context, lists, item, |list| Ok(parts.iter().any(|p| list.get(p).is_some())))
            .await?;
        // A tree is small, and a folder with one file too many is another tree: it is always written anew.
        if item.directory.is_none()
            && !known
            && exists(&place)
            && self.is_same(run, context, item, &place).await?
        {
            self.with_list(run, context, lists, item, |list| {
                list.keep(&place, id, &root, &aside_of(run, item, &place))
            })
            .await?;
            return Ok(Came::Same);
        }
        context.lease.check()?;
        if !is_device(&place) {
            self.with_list(run, context, lists, item, |list| {
                for part in &parts {
                    list.make_room(part, id, &root, &aside_of(run, item, part))?;
                    if item.directory.is_some() {
                        // Half of an earlier attempt; a file is replaced by a rename instead.
                        remove(part)?;
                    }
                }
                Ok(())
            })
            .await?;
        }
        // What the standby's agent hydrated goes into the place; only what differs from the point is written.
        let hydrated = if item.directory.is_none() && !is_device(&place) {
            hydrate::hand_over(item, &place).await.map_err(|e| failed(context, format!("{id}: {e}")))?
        } else {
            None
        };
        let known = hydrated.clone().flatten();
        restore::item_from(&run.standby.reader, item, &place, known.as_ref(), &guard(context), &run.stats)
            .await
            .map_err(|e| failed(context, format!("{id}: {e}{}", full(&e.to_string()))))?;
        context.lease.check()?;
        if item.directory.is_none() && !is_device(&place) {
            let given = owner::hand_over(item, &place).map_err(|e| failed(context, format!("{id}: {e}")))?;
            if !given {
                kept.fetch_add(1, Ordering::Relaxed);
            }
        }
        if !is_device(&place) {
            self.with_list(run, context, lists, item, |list| {
                let is_proved = known.is_some();
                parts
                    .iter()
                    .try_for_each(|part| if is_proved { list.done_hydrated(part) } else { list.done(part) })
            })
            .await?;
        }
        Ok(if hydrated.is_some() { Came::Hydrated } else { Came::Restored })
    }

    /// Costs a read of the file, and saves a fetch of the item and a second copy of it.
    async fn is_same(
        &self,
        run: &GroupRun,
        context: &ActionContext,
        item: &ManifestItem,
        place: &Path,
    ) -> Result<bool, ActionError> {
        let size = std::fs::symlink_metadata(place).map(|m| if m.is_file() { Some(m.len()) } else { None });
        if !is_device(place) && !matches!(size, Ok(Some(size)) if size == item.data.size_bytes) {
            return Ok(false);
        }
        match compare::item(&run.standby.reader, item, place).await {
            Ok(difference) => Ok(difference.is_none()),
            // A device that is too small, say: the restore says it better.
            Err(farsite_replicate::ReplicateError::Io { .. }) => Ok(false),
            Err(error) => Err(failed(context, format!("{}: {error}", item.id))),
        }
    }
}

#[async_trait]
impl Action for RestoreItems {
    fn name(&self) -> &'static str {
        self.name
    }
    fn summary(&self) -> &'static str {
        match self.name {
            "restore-images" => "the point's images into Glance's store, a folder or a Ceph pool",
            "restore-volumes" => "the point's volumes into their folder, Ceph pool or device",
            _ => "the point's file sets below their folder",
        }
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        no_parameters(with)
    }
    fn idempotent(&self) -> bool {
        true
    }
    fn undoable(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        RESTORE_LIMIT
    }
    async fn check(&self, _: &ActionContext, _: &Value) -> Result<Done, ActionError> {
        // Running it again skips what is there.
        Ok(Done::No)
    }
    async fn run(&self, context: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        let run: Arc<GroupRun> = self.held.run()?.clone();
        let run = &*run;
        let (lists, connections) = (Lists::default(), Connections::default());
        // Files that could not be given to whom their folder is of.
        let kept = AtomicUsize::new(0);
        let mut work = Vec::new();
        for item in run.items(self.kinds) {
            let one = self.one(run, context, &lists, &connections, &kept, item);
            work.push(async move { one.await.map(|came| (item.data.size_bytes, came)) });
        }
        let came: Vec<(u64, Came)> = stream::iter(work).buffer_unordered(AT_ONCE).try_collect().await?;
        let count = |wanted: fn(&Came) -> bool| came.iter().filter(|(_, came)| wanted(came)).count();
        let restored = count(|c| matches!(c, Came::Restored));
        let (already, same) = (count(|c| matches!(c, Came::Already)), count(|c| matches!(c, Came::Same)));
        let bytes: u64 =
            came.iter().filter(|(_, c)| matches!(c, Came::Restored)).map(|(bytes, _)| bytes).sum();
        let hydrated = count(|c| matches!(c, Came::Hydrated));
        let mut detail = format!("{restored} restored");
        if hydrated > 0 {
            detail = format!("{detail}, {hydrated} were hydrated");
        }
        if already > 0 {
            detail = format!("{detail}, {already} done already");
        }
        if same > 0 {
            detail = format!("{detail}, {same} stood there with the same contents");
        }
        if came.is_empty() {
            detail = "the point holds none".into();
        }
        let mut outcome = Outcome::said(detail).with("items", came.len()).with("bytes", bytes);
        let kept = kept.into_inner();
        if kept > 0 {
            let words = format!(
                "{kept} files belong to this process's user, who may not give them to the owner of their folder: its service may not be able to read them"
            );
            outcome = outcome.with("not theirs", words);
        }
        let devices: Vec<String> = run
            .items(self.kinds)
            .filter_map(|item| run.path(item).ok())
            .filter(|path| is_device(path))
            .map(|path| path.display().to_string())
            .collect();
        if !devices.is_empty() {
            outcome = outcome.with("overwritten", devices.join(", "));
        }
        if self.kinds.contains(&ItemKind::Cinder) {
            // A failover goes on: all else is worth having, and keys may be found.
            for (n, why) in encrypted::look(&run.manifest).problems.into_iter().enumerate() {
                outcome = outcome.with(&format!("without-keys-{}", n + 1), why);
            }
        }
        let aside: usize = lists
            .lock()
            .await
            .values()
            .map(|list| list.places().iter().filter(|place| list.moved_aside(place).is_some()).count())
            .sum();
        Ok(if aside > 0 { outcome.with("moved-aside", aside) } else { outcome })
    }
    async fn undo(&self, context: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        let run = self.held.run()?;
        let mut kept = Vec::new();
        let mut devices = Vec::new();
        let mut folders: Vec<(PathBuf, ItemKind)> = Vec::new();
        for item in run.items(self.kinds) {
            let Spot::File(place) = run.spot(item)? else { continue };
            if is_device(&place) {
                devices.push(place.display().to_string());
            }
            let key = (folder_of(item, &place), item.kind);
            if !folders.contains(&key) {
                folders.push(key);
            }
        }
        for (folder, kind) in folders {
            let fail =
                |error: std::io::Error| failed(context, format!("giving back {}: {error}", folder.display()));
            // The list counts, not the point: a half-done promotion may have held another one.
            let mut list = Stamps::open(&folder, kind, run.promotion).map_err(fail)?;
            for place in list.places() {
                context.lease.check()?;
                let undone = list.give_back(&place, run.is_drill()).map_err(fail)?;
                kept.extend(undone.map(|path| path.display().to_string()));
            }
            list.forget().map_err(fail)?;
        }
        for (kind, rbd) in run.targets.pools() {
            if self.kinds.contains(&kind) {
                kept.extend(pool_items::give_back(run, context, kind, rbd).await?);
            }
        }
        let outcome = undone(&kept);
        Ok(if devices.is_empty() {
            outcome
        } else {
            outcome
                .with("not put back", format!("{}: a device keeps what the point holds", devices.join(", ")))
        })
    }
    async fn dry_run(&self, _: &ActionContext, _: &Value) -> Result<Foreseen, ActionError> {
        let run = self.held.run()?;
        let (mut items, mut bytes, mut standing, mut hydrated) = (0u64, 0u64, 0u64, 0u64);
        let mut notes = Vec::new();
        for item in run.items(self.kinds) {
            items += 1;
            bytes += item.data.size_bytes;
            let Spot::File(place) = run.spot(item)? else { continue };
            standing += u64::from(exists(&place));
            let copy = Copy::of(&item.id, &place).untouched().ok().flatten();
            hydrated += u64::from(copy.is_some_and(|version| version.is_same_content(&item.data)));
        }
        if items == 0 {
            return Ok("the point holds none".into());
        }
        for (kind, rbd) in run.targets.pools() {
            if !self.kinds.contains(&kind) {
                continue;
            }
            let wanted: Vec<&ManifestItem> = run.items(self.kinds).filter(|item| item.kind == kind).collect();
            // What else comes to the same pool needs its room too.
            let same = run.targets.pools().into_iter().filter(|(other, to)| *other != kind && *to == rbd);
            let same: Vec<ItemKind> = same.map(|(other, _)| other).collect();
            let others: Vec<&ManifestItem> = run.items(&same).collect();
            let found = pool_items::standing(rbd, &wanted, &others).await.map_err(ActionError::Failed)?;
            standing += found.there;
            hydrated += found.hydrated;
            match found.room {
                Ok(Some(room)) => {
                    let found = room.findings(run).await;
                    if !found.problems.is_empty() {
                        return Err(ActionError::Failed(found.problems.join("\n")));
                    }
                    notes.extend(found.notes);
                }
                Ok(None) => {}
                Err(why) => notes.push(format!("how much is free is not known: {why}")),
            }
        }
        let hydrated = match hydrated {
            0 => String::new(),
            some => format!("; {some} are hydrated to this very point"),
        };
        let says = format!("{items} items, {bytes} bytes; {standing} places hold something now{hydrated}");
        Ok(Foreseen { says, notes })
    }
}
