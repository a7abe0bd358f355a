//! Items of a point that become images of a Ceph pool: put there, given back, looked at. `restore_items` asks for it where a
//! place is a pool.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use farsite_model::content::ReadAt;
use farsite_model::policy::Rbd;
use farsite_model::{ItemId, ItemKind};
use farsite_replicate::pool::{self, Came};
use farsite_runbook::action::{ActionContext, ActionError};
use farsite_sources::rbd::{ImageName, Writer};
use farsite_store::manifest::ManifestItem;
use tokio::sync::Mutex;

use crate::aside::root_of;
use crate::compare;
use crate::group_run::{GroupRun, failed, guard};
use crate::room::{Coming, Room};

/// How long a dry run waits for one answer of a pool.
const LOOK_LIMIT: Duration = Duration::from_secs(20);

/// Connections that wait for the next item.
#[derive(Default)]
pub(super) struct Connections(Mutex<Vec<(Rbd, Arc<Writer>)>>);

impl Connections {
    async fn take(&self, rbd: &Rbd) -> Result<Arc<Writer>, String> {
        let mut free = self.0.lock().await;
        if let Some(at) = free.iter().position(|(to, _)| to == rbd) {
            return Ok(free.swap_remove(at).1);
        }
        drop(free);
        Writer::start(rbd).await.map(Arc::new).map_err(|error| error.to_string())
    }

    async fn give_back(&self, rbd: &Rbd, writer: Arc<Writer>) {
        self.0.lock().await.push((rbd.clone(), writer));
    }
}

/// How one item came to be in its place; `None`: the very same contents stood there.
pub(super) async fn restore(
    run: &GroupRun,
    context: &ActionContext,
    connections: &Connections,
    item: &ManifestItem,
    image: &ImageName,
) -> Result<Option<Came>, ActionError> {
    let fail = |e: String| failed(context, format!("{}: {e}", item.id));
    context.lease.check()?;
    let writer = connections.take(&image.rbd).await.map_err(fail)?;
    let (reader, root) = (&run.standby.reader, root_of(item));
    let came = if is_same(run, &writer, item, image).await.map_err(fail)? {
        None
    } else {
        let (name, guard) = (&image.name, guard(context));
        let came = pool::restore(&writer, name, reader, item, run.promotion, &root, &guard, &run.stats).await;
        Some(came.map_err(|e| fail(e.to_string()))?)
    };
    connections.give_back(&image.rbd, writer).await;
    Ok(came)
}

/// Costs a read of the image, and saves a fetch of the item and a second copy of it.
async fn is_same(
    run: &GroupRun,
    writer: &Arc<Writer>,
    item: &ManifestItem,
    image: &ImageName,
) -> Result<bool, String> {
    let opened = tokio::task::block_in_place(|| match writer.look(&image.name)? {
        Some(found) if found.size_bytes != item.data.size_bytes => Ok(None),
        // Its own work it knows by its mark.
        Some(found) if pool::Mark::of(&found).is_some_and(|mark| mark.is_of(run.promotion)) => Ok(None),
        Some(_) => writer.open_to_read(&image.name).map(Some),
        None => Ok::<_, std::io::Error>(None),
    });
    let Some(content) = opened.map_err(|error| error.to_string())? else { return Ok(false) };
    let content: Arc<dyn ReadAt> = Arc::new(content);
    let compared = compare::content(&run.standby.reader, item, content, &image.to_string()).await;
    compared.map(|difference| difference.is_none()).map_err(|error| error.to_string())
}

/// Gives a pool back: names of what the promotion had made, where it is now.
pub(super) async fn give_back(
    run: &GroupRun,
    context: &ActionContext,
    kind: ItemKind,
    rbd: &Rbd,
) -> Result<Vec<String>, ActionError> {
    let fail = |e: String| failed(context, format!("giving back the pool {}: {e}", rbd.pool));
    let writer = Arc::new(Writer::start(rbd).await.map_err(|e| fail(e.to_string()))?);
    let given =
        tokio::task::block_in_place(|| pool::give_back(&writer, kind, run.promotion, &guard(context)));
    let given = given.map_err(|e| fail(e.to_string()))?;
    Ok(given.kept.into_iter().map(|name| format!("{}/{name}", rbd.pool)).collect())
}

/// An image as it is now.
pub(super) async fn opened(image: &ImageName) -> Result<Arc<dyn ReadAt>, String> {
    let writer = Arc::new(Writer::start(&image.rbd).await.map_err(|error| error.to_string())?);
    let opened = tokio::task::block_in_place(|| writer.open_to_read(&image.name));
    Ok(Arc::new(opened.map_err(|error| error.to_string())?))
}

/// Which items of a pool this promotion took from copies that the cluster had proved untouched.
pub(super) async fn proved(
    run: &GroupRun,
    rbd: &Rbd,
    items: &[&ManifestItem],
) -> Result<BTreeSet<ItemId>, String> {
    let writer = Writer::start(rbd).await.map_err(|error| error.to_string())?;
    let looked = tokio::task::block_in_place(|| {
        let mut proved = BTreeSet::new();
        for item in items {
            let found = writer.look(item.id.name())?;
            let mark = found.as_ref().and_then(pool::Mark::of);
            if mark.is_some_and(|mark| mark.is_proved(run.promotion, &root_of(item))) {
                proved.insert(item.id.clone());
            }
        }
        Ok::<_, std::io::Error>(proved)
    });
    looked.map_err(|error| error.to_string())
}

/// Nobody should be served with this image.
pub(super) async fn note_odd(run: &GroupRun, item: &ItemId, image: &ImageName) -> Result<(), String> {
    let writer = Arc::new(Writer::start(&image.rbd).await.map_err(|error| error.to_string())?);
    let noted = tokio::task::block_in_place(|| pool::note_odd(&writer, &image.name, item, run.promotion));
    noted.map_err(|error| error.to_string())
}

/// What is in a pool before anything is restored to it.
pub(super) struct Standing<'i> {
    /// Images with the names of the items.
    pub(super) there: u64,
    /// Hydrated copies that are just what the point holds.
    pub(super) hydrated: u64,
    pub(super) room: Result<Option<Room<'i>>, String>,
}

/// `others` come to the same pool, and are asked about by another step.
pub(super) async fn standing<'i>(
    rbd: &Rbd,
    items: &[&'i ManifestItem],
    others: &[&'i ManifestItem],
) -> Result<Standing<'i>, String> {
    let writer = Writer::start_within(rbd, LOOK_LIMIT).await.map_err(|error| error.to_string())?;
    let counted = tokio::task::block_in_place(|| {
        let names = writer.names()?;
        let (mut standing, mut hydrated) = (0, 0);
        let mut coming = Coming::default();
        for (item, is_asked) in
            items.iter().map(|item| (*item, 1)).chain(others.iter().map(|item| (*item, 0)))
        {
            let is_there = names.iter().any(|name| name == item.id.name());
            standing += is_asked * u64::from(is_there);
            let found = writer.look(&pool::hydrated_name(item.id.name()))?;
            let mark = found.as_ref().and_then(pool::Mark::of);
            if mark.is_some_and(|mark| mark.says_it_holds(&item.data)) {
                hydrated += is_asked;
            } else if is_there
                && writer.look(item.id.name())?.is_some_and(|there| there.size_bytes == item.data.size_bytes)
            {
                coming.may_stand(item);
            } else {
                // How much of it a copy of an older point has, no answer tells.
                coming.add(item, if found.is_some() { u64::MAX } else { 0 });
            }
        }
        let room = writer.room().map_err(|error| error.to_string());
        let at = writer.to_string();
        let room = room.map(|free| free.map(|free_bytes| Room { at, free_bytes, coming }));
        Ok::<_, std::io::Error>(Standing { there: standing, hydrated, room })
    });
    counted.map_err(|error| error.to_string())
}
