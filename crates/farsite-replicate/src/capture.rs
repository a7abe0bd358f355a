//! One run's captures: every entry of the policy is frozen, read and put into packs. An entry's items come in; for each
//! a [`Taken`] goes out, or the reason why there is none. Nothing here makes a point: that is `run`'s last step.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use farsite_model::content::{InMemory, ReadAt, TreeEntry};
use farsite_model::policy::Item;
use farsite_model::{CaptureTime, Consistency, ItemId, ItemKind, RunId};
use farsite_sources::tracking::ChangeTracking;
use farsite_sources::{Capture, CaptureContext, Content, Source};
use farsite_store::StoreError;
use farsite_store::ingest::{Input, RunWriter};
use farsite_store::local_map::{LocalMap, LocalMapWriter};
use farsite_store::manifest::{ItemLog, ManifestItem};
use farsite_store::map::MapRoot;
use farsite_store::shipped::Shipped;
use farsite_store::signals::{Meter, Signals};

use crate::ReplicateError;
use crate::ancestry::{self, Ancestor};
use crate::basis::Basis;
use crate::frozen;
use crate::group::Group;
use crate::tracked::{self, KeptVersion, Told};
use crate::tree::{self, Layout, TreeContent};

/// The key in an item's details that names the policy's entry it belongs to.
pub(crate) const ENTRY: &str = "entry";

/// An item of this run, read to its end. Its blocks are durable after the writer's next flush.
pub(crate) struct Taken {
    pub(crate) id: ItemId,
    pub(crate) kind: ItemKind,
    pub(crate) captured: CaptureTime,
    pub(crate) consistency: Consistency,
    pub(crate) data: MapRoot,
    pub(crate) directory: Option<MapRoot>,
    pub(crate) ancestor: Option<ItemId>,
    pub(crate) details: std::collections::BTreeMap<String, String>,
    pub(crate) log: Option<ItemLog>,
    pub(crate) signals: Option<Signals>,
}

/// What becomes this host's memory of the run once its point is committed.
#[derive(Default)]
pub(crate) struct Memory {
    maps: Vec<LocalMapWriter>,
    layouts: Vec<(PathBuf, Layout)>,
    versions: Vec<KeptVersion>,
}

impl Memory {
    /// The point exists: its maps are what the next run compares with.
    pub(crate) fn commit(self) -> std::io::Result<()> {
        for map in self.maps {
            map.commit()?;
        }
        for (path, layout) in self.layouts {
            write_layout(&path, &layout)?;
        }
        self.versions.into_iter().for_each(KeptVersion::commit);
        Ok(())
    }
    pub(crate) fn discard(self) {
        self.maps.into_iter().for_each(LocalMapWriter::discard);
        drop(self.versions);
    }
}

/// What all captures of a run share.
pub(crate) struct Intake<'g> {
    pub(crate) group: &'g Group,
    pub(crate) run: RunId,
    pub(crate) writer: RunWriter,
    /// Copies of what was shipped last.
    pub(crate) shipped: &'g Shipped,
    pub(crate) basis: Basis,
    pub(crate) memory: Memory,
    pub(crate) full: bool,
}

/// What is known of an item besides its bytes.
#[derive(Default)]
struct Heard {
    tracking: Option<Box<dyn ChangeTracking>>,
    made_from: Option<Ancestor>,
}

/// How one entry of the policy ended.
#[derive(Default)]
pub(crate) struct EntryOutcome {
    pub(crate) taken: Vec<Taken>,
    /// Items that exist and could not be captured, and why.
    pub(crate) failed: Vec<(ItemId, String)>,
    /// Items of the entry whose own source does not list them any more.
    pub(crate) absent: Vec<ItemId>,
}

impl Intake<'_> {
    /// Captures all items of an entry. A failed item never stops the others; only a failing store does.
    pub(crate) async fn entry(
        &mut self,
        item: &Item,
        context: &CaptureContext,
    ) -> Result<EntryOutcome, ReplicateError> {
        let mut outcome = EntryOutcome::default();
        let before = self.items_before(item);
        let fail_all = |why: String, outcome: &mut EntryOutcome| {
            let ids = if before.is_empty() { vec![item.id()] } else { before.iter().cloned().collect() };
            outcome.failed.extend(ids.into_iter().map(|id| (id, why.clone())));
        };
        if let Some(host) = item.on()
            && host != host_name()
        {
            let why = format!("it is read on host {host}, and this agent runs on {}", host_name());
            fail_all(why, &mut outcome);
            return Ok(outcome);
        }
        let source = match farsite_sources::source(item) {
            Ok(source) => source,
            Err(error) => {
                fail_all(error.to_string(), &mut outcome);
                return Ok(outcome);
            }
        };
        let ids = match tokio::time::timeout(context.timeout, source.items()).await {
            Ok(Ok(ids)) => ids,
            Ok(Err(error)) => {
                fail_all(error.to_string(), &mut outcome);
                return Ok(outcome);
            }
            Err(_) => {
                fail_all(format!("{} could not be listed in time", source.describe()), &mut outcome);
                return Ok(outcome);
            }
        };
        if ids.is_empty() && !before.is_empty() {
            let why = format!(
                "{} is empty, and the point before holds {} items of it: is it mounted?",
                source.describe(),
                before.len()
            );
            fail_all(why, &mut outcome);
            return Ok(outcome);
        }
        let now: BTreeSet<&ItemId> = ids.iter().collect();
        outcome.absent = before.iter().filter(|id| !now.contains(id)).cloned().collect();
        for gone in &outcome.absent {
            source.forget(gone, context).await;
        }
        self.frozen(item, &*source, ids, context, &mut outcome).await?;
        Ok(outcome)
    }

    /// Captures an entry's items between its hooks. What is still by itself is read after the thaw.
    async fn frozen(
        &mut self,
        item: &Item,
        source: &dyn Source,
        ids: Vec<ItemId>,
        context: &CaptureContext,
        outcome: &mut EntryOutcome,
    ) -> Result<(), ReplicateError> {
        let hooks = item.hooks();
        let mut context = context.clone();
        context.frozen = !hooks.before_capture.is_empty();
        let name = item.id();
        if let Err(why) =
            frozen::freeze(self.group, name.as_str(), &hooks.before_capture, &hooks.after_capture).await
        {
            outcome.failed.extend(ids.into_iter().map(|id| (id, why.clone())));
            return Ok(());
        }
        let mut still = Vec::new();
        let mut result = Ok(());
        for id in ids {
            match source.capture(&id, &context).await {
                Ok(capture) if capture.still => still.push(capture),
                Ok(capture) => {
                    result = self.take_or_fail(item, capture, outcome).await;
                    if result.is_err() {
                        break;
                    }
                }
                Err(error) => outcome.failed.push((id, error.to_string())),
            }
        }
        frozen::thaw(self.group, name.as_str(), &hooks.after_capture).await;
        result?;
        for capture in still {
            self.take_or_fail(item, capture, outcome).await?;
        }
        Ok(())
    }

    async fn take_or_fail(
        &mut self,
        item: &Item,
        capture: Capture,
        outcome: &mut EntryOutcome,
    ) -> Result<(), ReplicateError> {
        let id = capture.item.clone();
        if let Some(least) = item.consistency()
            && capture.consistency < least
        {
            let why = format!(
                "its capture is {}, and the policy demands {least}: it is not used",
                capture.consistency
            );
            outcome.failed.push((id, why));
            return Ok(());
        }
        let block_bytes = match item {
            Item::Volume(volume) => volume.block_size.unwrap_or(self.group.policy.block_size),
            _ => self.group.policy.block_size,
        };
        match self.take(capture, block_bytes.0 as u32).await {
            Ok(mut taken) => {
                taken.details.insert(ENTRY.to_owned(), item.id().to_string());
                outcome.taken.push(taken);
                Ok(())
            }
            // The item could not be read: that is its own failure, and the packs begun are still good.
            Err(ReplicateError::Store(error @ StoreError::Content { .. })) => {
                outcome.failed.push((id, error.to_string()));
                Ok(())
            }
            Err(ReplicateError::Io { what, source }) => {
                outcome.failed.push((id, format!("{what}: {source}")));
                Ok(())
            }
            Err(other) => Err(other),
        }
    }

    /// Reads one capture into packs.
    pub(crate) async fn take(&mut self, capture: Capture, block_bytes: u32) -> Result<Taken, ReplicateError> {
        let Capture {
            item, kind, captured, consistency, content, ancestor, details, tracking, guard, ..
        } = capture;
        let mut ancestor = ancestor;
        let (data, directory, signals) = match content {
            Content::Volume(content) => {
                let made_from = self.made_from(&item, &mut ancestor, &*content, block_bytes);
                let (data, signals) =
                    self.ingest(&item, &item, &content, block_bytes, Heard { tracking, made_from }, |i| {
                        Some(&i.data)
                    })?;
                (data, None, signals)
            }
            Content::Tree { root, paths } => {
                let layout_path = self.group.file_of("layouts", &item, ".json");
                let previous = read_layout(&layout_path);
                let (entries, layout) = tokio::task::block_in_place(|| {
                    tree::scan(&root, &paths, u64::from(block_bytes), &previous)
                })
                .map_err(ReplicateError::io(format!("listing the files of {item}")))?;
                let content: Arc<dyn ReadAt> = Arc::new(TreeContent::new(&root, &entries));
                let (data, signals) =
                    self.ingest(&item, &item, &content, block_bytes, Heard::default(), |i| Some(&i.data))?;
                let directory = self.directory(&item, &entries, block_bytes)?;
                let files_before = previous.len() as u64;
                let files_gone = previous.keys().filter(|path| !layout.contains_key(*path)).count() as u64;
                self.memory.layouts.push((layout_path, layout));
                (data, Some(directory), Signals { files_before, files_gone, ..signals })
            }
        };
        drop(guard);
        Ok(Taken {
            id: item,
            kind,
            captured,
            consistency,
            data,
            directory,
            ancestor,
            details,
            log: None,
            signals: Some(signals),
        })
    }

    fn directory(
        &mut self,
        item: &ItemId,
        entries: &[TreeEntry],
        block_bytes: u32,
    ) -> Result<MapRoot, ReplicateError> {
        let bytes = serde_json::to_vec(entries).expect("a directory is valid JSON");
        let content: Arc<dyn ReadAt> = Arc::new(InMemory(bytes));
        let id = directory_id(item);
        Ok(self.ingest(&id, item, &content, block_bytes, Heard::default(), |i| i.directory.as_ref())?.0)
    }

    /// What a volume without a map of its own was made from; `said` is what its source knows, and learns what was found.
    fn made_from(
        &self,
        item: &ItemId,
        said: &mut Option<ItemId>,
        content: &dyn ReadAt,
        block_bytes: u32,
    ) -> Option<Ancestor> {
        let before = self.basis.manifests.iter().find_map(|m| m.item(item));
        if let Some(known) = before.and_then(|item| item.ancestor.clone()) {
            said.get_or_insert(known);
        }
        if self.full || self.basis.local_map(self.group, item, |i| Some(&i.data), item).is_some() {
            return None;
        }
        let found = tokio::task::block_in_place(|| {
            ancestry::find(self.group, &self.basis, item, said.as_ref(), content, block_bytes)
        })?;
        *said = Some(found.item.clone());
        Some(found)
    }

    /// `id` names the local map, `item` the item that it is part of.
    fn ingest(
        &mut self,
        id: &ItemId,
        item: &ItemId,
        content: &Arc<dyn ReadAt>,
        block_bytes: u32,
        heard: Heard,
        of: impl Fn(&ManifestItem) -> Option<&MapRoot>,
    ) -> Result<(MapRoot, Signals), ReplicateError> {
        let Heard { tracking, made_from } = heard;
        let previous = if self.full { None } else { self.basis.local_map(self.group, id, of, item) };
        let maps = self.group.maps();
        let mut out = LocalMapWriter::create(&maps, id)
            .map_err(ReplicateError::io(format!("the local block map of {id} in {}", maps.display())))?;
        out.without_damage_until(self.basis.damage_told);
        let told = match (&previous, &tracking) {
            (Some(previous), Some(tracking)) => Told::of(self.group, id, previous, &**tracking),
            _ => Told::default(),
        };
        // Changed blocks are sent as patches against these, where the source keeps no version of its own; without either
        // they are sent whole.
        let copies = match &tracking {
            Some(tracking) if tracking.keeps_versions() => None,
            _ => self
                .shipped
                .item(id, block_bytes)
                .inspect_err(|error| tracing::warn!(item = %id, "no copies of its blocks are kept: {error}"))
                .ok(),
        };
        let ancestors_copies = made_from.as_ref().and_then(|ancestor| {
            let copies = self.shipped.item(&ancestor.item, block_bytes).ok()?;
            Some(ancestry::Shipped { copies, size_bytes: ancestor.map.map().size_bytes, block_bytes })
        });
        let before = match &ancestors_copies {
            Some(copies) => Some(copies as &dyn ReadAt),
            None => told.before.as_deref(),
        };
        let meter = Meter::default();
        let input = Input {
            previous: previous.as_ref().or(made_from.as_ref().map(|ancestor| &ancestor.map)),
            changed: told.changed.as_deref(),
            claims: told.claims.as_ref(),
            before,
            copies: copies.as_ref(),
            meter: Some(&meter),
            ..Input::first(id.as_str(), &**content, block_bytes)
        };
        let map = match self.writer.ingest(&input, &mut out) {
            Ok(map) => map,
            Err(error) => {
                out.discard();
                return Err(error.into());
            }
        };
        if let (Some(_), Some(previous)) = (&told.changed, &previous) {
            out.read_in_full_at(previous.read_in_full());
        }
        if let Some(claims) = &told.claims {
            tracked::judge(self.group, id, claims);
        }
        if let Some(tracking) = tracking {
            let before = previous.as_ref().and_then(LocalMap::token).map(str::to_owned);
            match KeptVersion::keep(tracking, before) {
                Ok(version) => {
                    out.set_token(Some(version.token().to_owned()));
                    self.memory.versions.push(version);
                }
                Err(error) => {
                    tracing::warn!(item = %id, "its version is not kept ({error}): the next run reads all of it");
                }
            }
        }
        self.memory.maps.push(out);
        let before = match (&previous, &made_from) {
            (Some(previous), _) => self.basis.data_blocks(item, previous.map()),
            (None, Some(ancestor)) => self.basis.data_blocks(&ancestor.item, ancestor.map.map()),
            (None, None) => None,
        };
        let mut signals = meter.signals(before, map.blocks());
        // What differs from its ancestor is no change of its own.
        signals.first_copy |= previous.as_ref().is_none_or(LocalMap::is_hit);
        Ok((map, signals))
    }

    /// The entry's items in the newest point that this run builds on.
    fn items_before(&self, item: &Item) -> BTreeSet<ItemId> {
        let entry = item.id().to_string();
        let items = self.basis.newest().into_iter().flat_map(|m| &m.items);
        items.filter(|i| i.details.get(ENTRY) == Some(&entry)).map(|i| i.id.clone()).collect()
    }
}

/// The id under which a tree's directory has its local map.
pub(crate) fn directory_id(item: &ItemId) -> ItemId {
    ItemId::parse(format!("{item}#directory"))
}

/// This host's name, as policies call it in `on:`.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A layout that cannot be read costs a full copy, nothing else.
fn read_layout(path: &std::path::Path) -> Layout {
    std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn write_layout(path: &std::path::Path, layout: &Layout) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, serde_json::to_vec(layout).map_err(std::io::Error::other)?)?;
    std::fs::rename(&temporary, path)
}
