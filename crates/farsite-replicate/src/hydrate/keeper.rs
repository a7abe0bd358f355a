//! What the standby agent does all the time: the configuration of this site comes in; the newest whole point of each group
//! that has places here is kept hydrated, item by item. What must hold: a group that this site is primary of is left alone;
//! one item that cannot be hydrated keeps no other from it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use farsite_model::config::Config;
use farsite_model::policy::Rbd;
use farsite_model::{GroupName, ItemId, ItemKind, PointId, SiteName};
use farsite_sources::rbd::Writer;
use farsite_store::Store;
use farsite_store::ledger::Ledger;
use farsite_store::manifest::{Manifest, ManifestItem};
use farsite_store::read::{ReadStats, Reader};
use tokio_util::sync::CancellationToken;

use super::copy::{Applied, Copy, How};
use crate::pin::LaterPin;
use crate::restore::Guard;
use crate::spot::Spot;
use crate::{ReplicateError, connect, pool};

/// How often the ledgers are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// A group that could not be hydrated is tried again after this, doubled up to the limit.
const RETRY_FIRST: Duration = Duration::from_secs(15);
const RETRY_LIMIT: Duration = Duration::from_mins(10);

/// Where a promotion would put an item; the error says why nowhere.
pub type Place =
    Arc<dyn Fn(&Config, &GroupName, &Manifest, &ManifestItem) -> Result<Spot, String> + Send + Sync>;

/// A pool is asked what its copies are after this at the latest, though no point is newer.
const PROVE_AGAIN: Duration = Duration::from_mins(10);

/// What one look at a group did.
#[derive(Debug, Default)]
pub struct Hydrated {
    /// The point that all hydrated items are of now; `None` when there is none, or not of this site to hydrate.
    pub point: Option<PointId>,
    pub items: Vec<(ItemId, Applied)>,
    /// Some of them are in a pool.
    pub in_pools: bool,
    /// Items that were not hydrated, and why.
    pub failed: Vec<(ItemId, String)>,
}

/// Single files are hydrated; a tree is small, or a database whose log a promotion replays anyway.
fn is_hydrated(item: &ManifestItem) -> bool {
    matches!(item.kind, ItemKind::Glance | ItemKind::Cinder | ItemKind::Volume) && item.directory.is_none()
}

/// A device is no file that could be moved into its place: a restore writes only what differs of it.
fn is_device(place: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(place).is_ok_and(|m| m.file_type().is_block_device())
}

/// Brings the copies of one group to its newest whole point. `known`: copies in pools were of that point moments ago, so that
/// no pool need be asked.
pub async fn hydrate_group(
    config: &Config,
    store: &Store,
    reader: &Reader,
    group: &GroupName,
    place: &Place,
    known: Option<PointId>,
    guard: &Guard,
) -> Result<Hydrated, ReplicateError> {
    let ledger = Ledger::open(store, group).await?;
    let state = ledger.state();
    let mut hydrated = Hydrated::default();
    // Here the places hold what services write to.
    if state.primary().is_none_or(|primary| *primary == config.site) {
        return Ok(hydrated);
    }
    let Some(point) = state.default_point() else { return Ok(hydrated) };
    let manifest = Manifest::read(store, group, point.id(), &point.said.manifest).await?;
    let pin = LaterPin::of_host(config, store, group, point.id());
    let spots = spots(config, group, &manifest, place, &mut hydrated);
    let in_pools = spots.iter().any(|(_, spot)| matches!(spot, Spot::Image(_)));
    let result = hydrate_items(reader, manifest.point, &spots, known, guard, &mut hydrated).await;
    pin.end().await;
    result?;
    if hydrated.failed.is_empty() {
        hydrated.point = Some(point.id());
        hydrated.in_pools = in_pools;
    }
    Ok(hydrated)
}

/// The items that are hydrated, and where a promotion would put each.
fn spots<'m>(
    config: &Config,
    group: &GroupName,
    manifest: &'m Manifest,
    place: &Place,
    hydrated: &mut Hydrated,
) -> Vec<(&'m ManifestItem, Spot)> {
    let mut spots = Vec::new();
    for item in manifest.items.iter().filter(|item| is_hydrated(item)) {
        match place(config, group, manifest, item) {
            Ok(Spot::File(path)) if is_device(&path) => {}
            Ok(spot) => spots.push((item, spot)),
            Err(why) => hydrated.failed.push((item.id.clone(), why)),
        }
    }
    spots
}

async fn hydrate_items(
    reader: &Reader,
    point: PointId,
    spots: &[(&ManifestItem, Spot)],
    known: Option<PointId>,
    guard: &Guard,
    hydrated: &mut Hydrated,
) -> Result<(), ReplicateError> {
    let mut connected: Option<(Rbd, Arc<Writer>)> = None;
    for (item, spot) in spots {
        let stats = ReadStats::default();
        let applied = match spot {
            Spot::File(path) => Copy::of(&item.id, path).apply(reader, item, point, guard, &stats).await,
            Spot::Image(_) if known == Some(point) => continue,
            Spot::Image(image) => match writer(&mut connected, &image.rbd).await {
                Ok(writer) => pool::apply(&writer, &image.name, reader, item, point, guard, &stats).await,
                Err(error) => Err(error),
            },
        };
        match applied {
            Ok(Some(applied)) => hydrated.items.push((item.id.clone(), applied)),
            Ok(None) => hydrated.failed.push((item.id.clone(), "another process works on its copy".into())),
            Err(error) => {
                // Whatever state its connection is in, the next item has another.
                connected = None;
                hydrated.failed.push((item.id.clone(), error.to_string()));
            }
        }
        guard().map_err(ReplicateError::io("hydrating"))?;
    }
    Ok(())
}

/// The connection to a pool, made when it is needed.
async fn writer(
    connected: &mut Option<(Rbd, Arc<Writer>)>,
    rbd: &Rbd,
) -> Result<Arc<Writer>, ReplicateError> {
    if let Some((_, writer)) = connected.as_ref().filter(|(to, _)| to == rbd) {
        return Ok(writer.clone());
    }
    let writer = Arc::new(Writer::start(rbd).await?);
    *connected = Some((rbd.clone(), writer.clone()));
    Ok(writer)
}

/// Keeps all groups of this site hydrated until it is cancelled.
pub struct Keeper {
    /// The configuration as it is now, and the groups that are to be hydrated.
    pub now: Arc<dyn Fn() -> (Arc<Config>, Vec<GroupName>) + Send + Sync>,
    pub place: Place,
    pub cancel: CancellationToken,
}

impl Keeper {
    pub async fn keep(self) {
        let mut open: Option<Opened> = None;
        let mut waits: BTreeMap<GroupName, (tokio::time::Instant, Duration)> = BTreeMap::new();
        let mut proved: BTreeMap<GroupName, (PointId, tokio::time::Instant)> = BTreeMap::new();
        let mut connect_wait: Option<(tokio::time::Instant, Duration)> = None;
        let cancelled = self.cancel.clone();
        let guard: Guard = Arc::new(move || {
            if cancelled.is_cancelled() {
                return Err(std::io::Error::new(std::io::ErrorKind::Interrupted, "the agent stops"));
            }
            Ok(())
        });
        while !self.cancel.is_cancelled() {
            let (config, groups) = (self.now)();
            // A configuration that was read again may name another store, or another key.
            if open.as_ref().is_some_and(|opened| !Arc::ptr_eq(&opened.config, &config)) {
                open = None;
                proved.clear();
            }
            let now = tokio::time::Instant::now();
            if !groups.is_empty() && open.is_none() && connect_wait.is_none_or(|(until, _)| now >= until) {
                match connect_here(&config).await {
                    Ok(opened) => (open, connect_wait) = (opened, None),
                    Err(error) => {
                        tracing::warn!("nothing can be hydrated now: {error}");
                        let pause = connect_wait.map_or(RETRY_FIRST, |(_, p)| (p * 2).min(RETRY_LIMIT));
                        connect_wait = Some((now + pause, pause));
                    }
                }
            }
            for group in &groups {
                let Some(Opened { store, reader, .. }) = &open else { break };
                let site = &config.site;
                let now = tokio::time::Instant::now();
                if self.cancel.is_cancelled() || waits.get(group).is_some_and(|(until, _)| now < *until) {
                    continue;
                }
                let known = proved.get(group).filter(|(_, at)| now < *at + PROVE_AGAIN);
                let known = known.map(|(point, _)| *point);
                let looked = hydrate_group(&config, store, reader, group, &self.place, known, &guard).await;
                match looked.as_ref().ok().and_then(|hydrated| hydrated.point.filter(|_| hydrated.in_pools)) {
                    Some(point) if known == Some(point) => {}
                    Some(point) => drop(proved.insert(group.clone(), (point, now))),
                    None => drop(proved.remove(group)),
                }
                let good = said(group, site, &looked);
                if good || self.cancel.is_cancelled() {
                    waits.remove(group);
                } else {
                    let pause = waits.get(group).map_or(RETRY_FIRST, |(_, p)| (*p * 2).min(RETRY_LIMIT));
                    waits.insert(group.clone(), (now + pause, pause));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.cancel.cancelled() => return,
            }
        }
    }
}

struct Opened {
    config: Arc<Config>,
    store: Store,
    reader: Reader,
}

/// The store of this site, where this host can open it.
async fn connect_here(config: &Arc<Config>) -> Result<Option<Opened>, ReplicateError> {
    let site = &config.site;
    if !config.stores.contains_key(site) {
        return Ok(None);
    }
    let store = connect::store(config, site).await?;
    let reader = connect::reader(config, site, &store).await?;
    Ok(Some(Opened { config: config.clone(), store, reader }))
}

/// Writes what was done into the log. False when something is to be tried again.
fn said(group: &GroupName, site: &SiteName, looked: &Result<Hydrated, ReplicateError>) -> bool {
    match looked {
        Err(error) => {
            tracing::warn!(%group, %site, "not hydrated: {error}");
            false
        }
        Ok(hydrated) => {
            for (item, why) in &hydrated.failed {
                tracing::warn!(%group, %item, "not hydrated: {why}");
            }
            for (item, applied) in hydrated.items.iter().filter(|(_, applied)| applied.how != How::Already) {
                tracing::info!(%group, %item, how = ?applied.how, written_bytes = applied.written_bytes, "hydrated");
            }
            hydrated.failed.is_empty()
        }
    }
}
