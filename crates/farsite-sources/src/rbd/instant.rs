//! All volumes of a pool at one instant, as near as a pool has one: their images are opened ahead, and snapshotted all at once.
//! Names come in; a source of the same volumes goes out, that has their snapshots already.
//!
//! What must hold: each snapshot is owned before it is made, so that none outlives a hold that failed half-way; where one
//! image cannot be had, all are let go.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use farsite_model::policy::Rbd;
use farsite_model::{CaptureTime, ItemId, ItemKind};

use super::image::Image;
use super::snapshots::Snapshots;
use super::writer::Writer;
use super::{captured_from, claim, pool, prefix, shown, token};
use crate::volume::blocking;
use crate::{Capture, CaptureContext, CheckLine, Source, SourceError};

/// A pool whose images are open and wait for their snapshots.
pub(crate) struct Ready {
    rbd: Rbd,
    writer: Arc<Writer>,
    names: Vec<String>,
}

/// Opens the images; `None` when there are none.
pub(crate) async fn prepare(rbd: &Rbd, names: Vec<String>) -> Result<Option<Ready>, SourceError> {
    if names.is_empty() {
        return Ok(None);
    }
    let writer = Arc::new(Writer::start(rbd).await?);
    let (open, all) = (writer.clone(), names.clone());
    blocking(move || {
        open.open_all(&all).map_err(|error| SourceError::new("opening the volumes to snapshot them", error))
    })
    .await?;
    Ok(Some(Ready { rbd: rbd.clone(), writer, names }))
}

impl Ready {
    /// Snapshots all of them.
    pub(crate) async fn take(self, context: &CaptureContext) -> Result<Box<dyn Source>, SourceError> {
        let captured = context.clock.capture_time();
        let (prefix, token, rbd) = (prefix(context), token()?, self.rbd.clone());
        let claim = claim(context, &token)?;
        let held = blocking(move || {
            let owned = |name: &String| {
                let image = Image { pool: pool(&self.rbd), name: name.clone() };
                (name.clone(), Mutex::new(Some(Snapshots::new(&image, &prefix, &token, &claim))))
            };
            let mut held: BTreeMap<_, _> = self.names.iter().map(owned).collect();
            let snapshot = format!("{prefix}{token}");
            let gone = self.writer.snapshot_all(&snapshot).map_err(|error| {
                SourceError::new(format!("snapshots of the volumes of {}", shown(&self.rbd)), error)
            })?;
            held.retain(|name, _| !gone.contains(name));
            // Nothing waits until the images are closed.
            tokio::task::spawn_blocking(move || drop(self));
            Ok(held)
        });
        Ok(Box::new(Held { rbd, captured, images: held.await? }))
    }
}

/// The volumes of a pool, all of them snapshotted.
struct Held {
    rbd: Rbd,
    captured: CaptureTime,
    images: BTreeMap<String, Mutex<Option<Snapshots>>>,
}

#[async_trait]
impl Source for Held {
    fn describe(&self) -> String {
        format!("cinder: {}", shown(&self.rbd))
    }

    async fn check(&self) -> Vec<CheckLine> {
        Vec::new()
    }

    async fn items(&self) -> Result<Vec<ItemId>, SourceError> {
        Ok(self.images.keys().map(|name| ItemId::new(ItemKind::Cinder, name)).collect())
    }

    async fn capture(&self, item: &ItemId, context: &CaptureContext) -> Result<Capture, SourceError> {
        let name = crate::plain_name(item)?;
        let snapshot =
            self.images.get(name).and_then(|held| held.lock().expect("no holder of this lock panics").take());
        match snapshot {
            Some(snapshot) => captured_from(snapshot, self.captured, item).await,
            // It was captured once already.
            None => super::capture(&self.rbd, name, item, context).await,
        }
    }
}
