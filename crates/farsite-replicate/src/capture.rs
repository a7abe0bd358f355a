//! One member's part in a round's captures: a capture that is lent comes in, is read and put into packs; a [`Taken`] goes out,
//! or the reason why there is none. Nothing here makes a point: that is a member's last step.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use farsite_model::content::{InMemory, ReadAt, TreeEntry};
use farsite_model::policy::Item;
use farsite_model::{CaptureTime, Consistency, ItemId, ItemKind, RunId};
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
use crate::group::Group;
use crate::lent::{Bytes, Lent};
use crate::shared::{Reader, Shared};
use crate::tracked::{self, Told, Version};
use crate::tree::Layout;

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
    maps: Vec<(LocalMapWriter, Option<Arc<Version>>)>,
    layouts: Vec<(PathBuf, Arc<Layout>)>,
}

impl Memory {
    /// The point exists: its maps are what the next run compares with.
    pub(crate) fn commit(self, group: &Group) -> std::io::Result<()> {
        let mut versions = Vec::new();
        for (mut map, version) in self.maps {
            map.set_token(version.as_ref().and_then(|version| version.token().map(str::to_owned)));
            map.commit()?;
            versions.extend(version);
        }
        for (path, layout) in self.layouts {
            write_layout(&path, &layout)?;
        }
        group.forget_noted_versions();
        drop(versions);
        Ok(())
    }
    pub(crate) fn discard(self, group: &Group) {
        group.forget_noted_versions();
        self.maps.into_iter().for_each(|(map, _)| map.discard());
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
    /// This member's number within the round.
    pub(crate) number: usize,
}

/// What is known of an item besides its bytes.
#[derive(Default)]
struct Heard {
    version: Option<Arc<Version>>,
    made_from: Option<Ancestor>,
}

/// An entry's source in words and the items that it lists now, or why it cannot.
pub(crate) type Listed = Result<(String, BTreeSet<ItemId>), String>;

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
    /// What becomes of an entry whose items could not be captured: all that the point before has of it.
    fn fail_all(&self, item: &Item, why: &str, outcome: &mut EntryOutcome) {
        let before = self.items_before(item);
        let ids = if before.is_empty() { vec![item.id()] } else { before.into_iter().collect() };
        outcome.failed.extend(ids.into_iter().map(|id| (id, why.to_owned())));
    }

    /// An entry's items as they are listed now. What the point before has and the list has not is absent, and told; a list
    /// that is not to be believed is a failure.
    pub(crate) fn listed(&self, item: &Item, listed: &Listed, outcome: &mut EntryOutcome) -> Vec<ItemId> {
        let (from, ids) = match listed {
            Ok(listed) => listed,
            Err(why) => {
                self.fail_all(item, why, outcome);
                return Vec::new();
            }
        };
        let before = self.items_before(item);
        if ids.is_empty() && !before.is_empty() {
            let why = format!(
                "{from} is empty, and the point before holds {} items of it: is it mounted?",
                before.len()
            );
            self.fail_all(item, &why, outcome);
            return Vec::new();
        }
        let absent: Vec<ItemId> = before.into_iter().filter(|id| !ids.contains(id)).collect();
        outcome.absent.extend(absent.iter().cloned());
        absent
    }

    /// An item that was listed was gone before it could be read: it has not failed. Who has read it before that keeps it. Some:
    /// the point before has it.
    pub(crate) fn gone(&self, item: &Item, id: &ItemId, outcome: &mut EntryOutcome) -> Option<ItemId> {
        if outcome.taken.iter().any(|taken| taken.id == *id) {
            return None;
        }
        outcome.failed.retain(|(failed, _)| failed != id);
        tracing::info!(item = %id, "it went while this run was under way");
        if !self.items_before(item).contains(id) || outcome.absent.contains(id) {
            return None;
        }
        outcome.absent.push(id.clone());
        Some(id.clone())
    }

    /// Reads what the round has captured of an entry. False: it could not be read. Only a failing store is an error.
    pub(crate) fn take_or_fail(
        &mut self,
        item: &Item,
        lent: &Lent,
        outcome: &mut EntryOutcome,
    ) -> Result<bool, ReplicateError> {
        match self.take(lent) {
            Ok(mut taken) => {
                taken.details.insert(ENTRY.to_owned(), item.id().to_string());
                outcome.taken.push(taken);
                Ok(true)
            }
            // The item could not be read: that is its own failure, and the packs begun are still good.
            Err(ReplicateError::Store(error @ StoreError::Content { .. })) => {
                outcome.failed.push((lent.item.clone(), error.to_string()));
                Ok(false)
            }
            Err(ReplicateError::Io { what, source }) => {
                outcome.failed.push((lent.item.clone(), format!("{what}: {source}")));
                Ok(false)
            }
            Err(other) => Err(other),
        }
    }

    /// Reads one capture into packs.
    pub(crate) fn take(&mut self, lent: &Lent) -> Result<Taken, ReplicateError> {
        let Lent { item, kind, captured, consistency, details, block_bytes, .. } = lent;
        let block_bytes = *block_bytes;
        let mut ancestor = lent.ancestor.clone();
        let (data, directory, signals) = match &lent.bytes {
            Bytes::Volume(shared) => {
                let made_from = self.made_from(item, &mut ancestor, &**shared, block_bytes);
                let heard = Heard { version: lent.version.clone(), made_from };
                let content = self.reader(shared);
                let (data, signals) =
                    self.ingest(item, item, &content, block_bytes, heard, |i| Some(&i.data))?;
                (data, None, signals)
            }
            Bytes::Tree(tree) => {
                let layout_path = self.group.file_of("layouts", item, ".json");
                let previous = read_layout(&layout_path);
                let laid_out = tokio::task::block_in_place(|| lent.lay_out(tree, &previous, self.number))
                    .map_err(ReplicateError::io(format!("listing the files of {item}")))?;
                let content = self.reader(&laid_out.bytes);
                let (data, signals) =
                    self.ingest(item, item, &content, block_bytes, Heard::default(), |i| Some(&i.data))?;
                let directory = self.directory(item, &laid_out.entries, block_bytes)?;
                let layout = laid_out.layout;
                let files_before = previous.len() as u64;
                let files_gone = previous.keys().filter(|path| !layout.contains_key(*path)).count() as u64;
                self.memory.layouts.push((layout_path, layout));
                (data, Some(directory), Signals { files_before, files_gone, ..signals })
            }
        };
        Ok(Taken {
            id: item.clone(),
            kind: *kind,
            captured: *captured,
            consistency: *consistency,
            data,
            directory,
            ancestor,
            details: details.clone(),
            log: None,
            signals: Some(signals),
        })
    }

    fn reader(&self, shared: &Arc<Shared>) -> Reader {
        Reader::new(shared.clone(), self.number, self.writer.stats.clone())
    }

    fn directory(
        &mut self,
        item: &ItemId,
        entries: &[TreeEntry],
        block_bytes: u32,
    ) -> Result<MapRoot, ReplicateError> {
        let bytes = serde_json::to_vec(entries).expect("a directory is valid JSON");
        let id = directory_id(item);
        Ok(self
            .ingest(&id, item, &InMemory(bytes), block_bytes, Heard::default(), |i| i.directory.as_ref())?
            .0)
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
        content: &dyn ReadAt,
        block_bytes: u32,
        heard: Heard,
        of: impl Fn(&ManifestItem) -> Option<&MapRoot>,
    ) -> Result<(MapRoot, Signals), ReplicateError> {
        let Heard { version, made_from } = heard;
        let tracking = version.as_ref().map(|version| &*version.tracking);
        let previous = if self.full { None } else { self.basis.local_map(self.group, id, of, item) };
        if previous.as_ref().is_some_and(LocalMap::is_hit) {
            tracing::warn!(item = %id, "packs that hold some of it are damaged at the store: what lies in them is sent again");
        }
        let maps = self.group.maps();
        let mut out = LocalMapWriter::create(&maps, id)
            .map_err(ReplicateError::io(format!("the local block map of {id} in {}", maps.display())))?;
        out.without_damage_until(self.basis.damage_told);
        let told = match (&previous, tracking) {
            (Some(previous), Some(tracking)) => Told::of(self.group, id, previous, tracking),
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
            ..Input::first(id.as_str(), content, block_bytes)
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
        self.memory.maps.push((out, version));
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
        let items = self.basis.before().into_iter().flat_map(|m| &m.items);
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
