//! An image that its own service has made a snapshot of and writes no more, as Glance does: that snapshot is read, and none is
//! made. What must hold: as long as the snapshot is the same one, nothing has changed.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use farsite_model::content::ReadAt;
use farsite_model::policy::Rbd;

use super::image::Image;
use super::pool;
use super::reader::{NOW, Reader, SnapshotContent};
use crate::SourceError;
use crate::tracking::ChangeTracking;
use crate::volume::blocking;

/// The bytes of an image at the snapshot that its service made, and their tracking; those of now and none where it has not.
pub(crate) async fn standing(
    rbd: &Rbd,
    name: &str,
    snapshot: &'static str,
) -> Result<(Arc<dyn ReadAt>, Option<Box<dyn ChangeTracking>>), SourceError> {
    let image = Image { pool: pool(rbd), name: name.to_owned() };
    let reader = Arc::new(Reader::start(&image).await?);
    blocking(move || {
        let id = image.snapshot_id(snapshot)?;
        let content = SnapshotContent::open(reader.clone(), id.map_or(NOW, |_| snapshot).to_owned());
        let content = content.map_err(|error| SourceError::new(format!("reading {image}"), error))?;
        let tracking = id.map(|id| {
            let token = format!("{id:016x}");
            let tracking = Standing { snapshot, token, reader: Mutex::new(Some(reader)) };
            Box::new(tracking) as Box<dyn ChangeTracking>
        });
        Ok((Arc::new(content) as Arc<dyn ReadAt>, tracking))
    })
    .await
}

struct Standing {
    snapshot: &'static str,
    /// The snapshot's id, of which a pool never has another one.
    token: String,
    reader: Mutex<Option<Arc<Reader>>>,
}

impl ChangeTracking for Standing {
    fn kind(&self) -> &'static str {
        "its own snapshot"
    }
    fn changed_since(&self, token: &str) -> io::Result<Option<Vec<Range<u64>>>> {
        Ok((token == self.token).then(Vec::new))
    }
    fn version(&self, token: &str) -> Option<Arc<dyn ReadAt>> {
        let reader = self.reader.lock().expect("no holder of this lock panics").clone()?;
        let content = SnapshotContent::open(reader, self.snapshot.to_owned()).ok()?;
        (token == self.token).then(|| Arc::new(content) as Arc<dyn ReadAt>)
    }
    fn token(&self) -> Option<&str> {
        Some(&self.token)
    }
    fn keep(&self) -> io::Result<String> {
        self.reader.lock().expect("no holder of this lock panics").take();
        Ok(self.token.clone())
    }
    /// It is not ours.
    fn forget_others(&self, _: &[String]) {}
}
