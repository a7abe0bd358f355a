//! What volumes were made from: image → volume → snapshot → clone, as Cinder tells. It is asked when a volume comes up that is
//! not known, and then for what changed since the last look: what a volume was made from never changes.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::records::Volume;
use crate::{AskError, Client, Wanted};

/// Clocks of several controllers differ, and an update is stamped before it can be seen.
const LATE: SignedDuration = SignedDuration::from_mins(5);
/// A volume that is not told of is not asked for at once again.
const PAUSE: Duration = Duration::from_mins(1);
/// What is gone is forgotten when everything is read anew.
const ANEW: Duration = Duration::from_hours(24);
/// A chain of clones that is longer than this is cut: the nearest ones are worth most.
const LONGEST: usize = 16;

/// What something was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MadeFrom {
    /// The id that the volume's file or image is named after.
    Volume(String),
    /// An image's id.
    Image(String),
}

/// What is known of the volumes of a cloud.
#[derive(Debug, Default)]
pub(crate) struct Origins {
    /// By the volume's id.
    volumes: BTreeMap<String, Origin>,
    /// Ids of volumes by what their files are named after, where that is another id.
    stored_as: BTreeMap<String, String>,
    /// Which volume a snapshot is of.
    snapshots: BTreeMap<String, String>,
    newest: Option<Timestamp>,
    looked: Option<Instant>,
    read_anew: Option<Instant>,
}

#[derive(Debug)]
struct Origin {
    stored_as: String,
    source: Option<String>,
    snapshot: Option<String>,
    image: Option<String>,
}

impl Origins {
    /// What a volume was made from, the nearest first, given what its file is named after.
    pub(crate) async fn of(&mut self, stored_as: &str, client: &Client) -> Result<Vec<MadeFrom>, AskError> {
        let is_due = self.looked.is_none_or(|looked| looked.elapsed() >= PAUSE);
        if self.origin(stored_as).is_none() && is_due {
            // Also when it fails: many volumes may wait for this answer.
            self.looked = Some(Instant::now());
            self.look(client).await?;
        }
        Ok(self.chain(stored_as))
    }

    async fn look(&mut self, client: &Client) -> Result<(), AskError> {
        let is_old = self.read_anew.is_none_or(|read| read.elapsed() >= ANEW);
        let since = self.newest.filter(|_| !is_old).map(|newest| newest - LATE);
        if since.is_none() || !client.tells_updates().await? {
            *self = Self { looked: self.looked, ..Self::default() };
        }
        let wanted = Wanted { updated_since: since, ..Wanted::default() };
        let mut pages = client.volumes(&wanted).await?;
        let mut of_unknown_snapshots = false;
        while let Some(page) = pages.next().await? {
            for volume in page {
                let snapshot = volume.snapshot_id.as_ref();
                of_unknown_snapshots |= snapshot.is_some_and(|id| !self.snapshots.contains_key(id));
                self.add(volume);
            }
        }
        if since.is_none() {
            self.read_anew = Some(Instant::now());
        }
        // Cinder cannot be asked for the snapshots of a time.
        if of_unknown_snapshots {
            let mut pages = client.snapshots();
            while let Some(page) = pages.next().await? {
                self.snapshots.extend(page.into_iter().map(|snapshot| (snapshot.id, snapshot.volume_id)));
            }
        }
        Ok(())
    }

    fn add(&mut self, volume: Volume) {
        self.newest = self.newest.max(volume.updated_at).max(volume.created_at);
        let origin = Origin {
            stored_as: volume.stored_as().to_owned(),
            image: volume.image().map(str::to_owned),
            source: volume.source_volid,
            snapshot: volume.snapshot_id,
        };
        if origin.stored_as != volume.id {
            self.stored_as.insert(origin.stored_as.clone(), volume.id.clone());
        }
        self.volumes.insert(volume.id, origin);
    }

    fn origin(&self, stored_as: &str) -> Option<&Origin> {
        self.volumes.get(self.stored_as.get(stored_as).map_or(stored_as, String::as_str))
    }

    fn chain(&self, stored_as: &str) -> Vec<MadeFrom> {
        let mut chain = Vec::new();
        let mut image = None;
        let mut at = self.origin(stored_as);
        while let Some(origin) = at.filter(|_| chain.len() < LONGEST) {
            image = image.or(origin.image.as_ref());
            let of_snapshot = || self.snapshots.get(origin.snapshot.as_ref()?);
            let Some(source) = origin.source.as_ref().or_else(of_snapshot) else { break };
            at = self.volumes.get(source);
            // One that is deleted by now may still be in a point.
            let stored_as = at.map_or(source, |origin| &origin.stored_as);
            chain.push(MadeFrom::Volume(stored_as.clone()));
        }
        chain.extend(image.map(|id| MadeFrom::Image(id.clone())));
        chain
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(id: &str, more: Value) -> Volume {
        let mut record =
            json!({ "id": id, "name": null, "status": "available", "size": 1, "created_at": null });
        record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(record).unwrap()
    }

    #[test]
    fn a_clone_of_a_snapshot_of_a_volume_of_an_image_is_made_from_all_three() {
        let mut origins = Origins::default();
        origins.add(volume("a", json!({ "volume_image_metadata": { "image_id": "i", "min_ram": "0" } })));
        origins.add(volume("b", json!({ "snapshot_id": "s", "os-vol-mig-status-attr:name_id": "b-moved" })));
        origins.add(volume("c", json!({ "source_volid": "b" })));
        origins.snapshots.insert("s".to_owned(), "a".to_owned());
        let of = |id: &str| MadeFrom::Volume(id.to_owned());
        let image = MadeFrom::Image("i".to_owned());
        assert_eq!(origins.chain("c"), [of("b-moved"), of("a"), image.clone()]);
        assert_eq!(origins.chain("b-moved"), [of("a"), image.clone()]);
        assert_eq!(origins.chain("a"), [image]);
        assert_eq!(origins.chain("unknown"), []);
    }

    #[test]
    fn what_was_deleted_is_told_and_a_circle_ends() {
        let mut origins = Origins::default();
        origins.add(volume("d", json!({ "source_volid": "gone" })));
        assert_eq!(origins.chain("d"), [MadeFrom::Volume("gone".to_owned())]);
        origins.add(volume("e", json!({ "source_volid": "e" })));
        assert_eq!(origins.chain("e").len(), LONGEST);
    }
}
