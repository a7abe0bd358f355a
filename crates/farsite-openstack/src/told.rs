//! What Cinder tells of volumes beside their data: what they were made from (image → volume → snapshot → clone), which never
//! changes, and whether it encrypts them, which a retype changes. It is asked for what changed since the last look.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::records::Volume;
use crate::{AskError, Client, Wanted};

/// Clocks of several controllers differ, and an update is stamped before it can be seen.
const LATE: SignedDuration = SignedDuration::from_mins(5);
/// What was told counts so long, and a volume that was not told of is not asked for again before.
const PAUSE: Duration = Duration::from_mins(1);
/// The same where Cinder cannot tell what changed, and lists everything.
const LONG_PAUSE: Duration = Duration::from_hours(1);
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

/// What a cloud tells of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// The nearest first.
    pub made_from: Vec<MadeFrom>,
    /// Cinder encrypts it; none where that is not known.
    pub is_encrypted: Option<bool>,
}

/// What is known of the volumes of a cloud.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// By the volume's id.
    volumes: BTreeMap<String, Origin>,
    /// Ids of volumes by what their files are named after, where that is another id.
    stored_as: BTreeMap<String, String>,
    /// Which volume a snapshot is of.
    snapshots: BTreeMap<String, String>,
    newest: Option<Timestamp>,
    /// Cinder can be asked for what changed.
    tells_updates: bool,
    looked: Option<Instant>,
    read_anew: Option<Instant>,
}

#[derive(Debug)]
struct Origin {
    stored_as: String,
    source: Option<String>,
    snapshot: Option<String>,
    image: Option<String>,
    is_encrypted: bool,
}

impl Known {
    /// Nothing was ever told.
    pub(crate) fn is_empty(&self) -> bool {
        self.read_anew.is_none()
    }

    /// Asks what changed, where that is due: for all, or for a volume that is not known, given what its file is named after.
    pub(crate) async fn refresh(&mut self, stored_as: Option<&str>, client: &Client) -> Result<(), AskError> {
        let is_unknown = stored_as.is_some_and(|stored_as| self.origin(stored_as).is_none());
        let pause = if is_unknown || self.tells_updates || self.is_empty() { PAUSE } else { LONG_PAUSE };
        if self.looked.is_some_and(|looked| looked.elapsed() < pause) {
            return Ok(());
        }
        // Also when it fails: many volumes may wait for this answer.
        self.looked = Some(Instant::now());
        self.look(client).await
    }

    /// What is known without asking.
    pub(crate) fn recall(&self, stored_as: &str) -> Told {
        let is_encrypted = self.origin(stored_as).map(|origin| origin.is_encrypted);
        Told { made_from: self.chain(stored_as), is_encrypted }
    }

    async fn look(&mut self, client: &Client) -> Result<(), AskError> {
        let is_old = self.read_anew.is_none_or(|read| read.elapsed() >= ANEW);
        let tells_updates = client.tells_updates().await?;
        match self.newest {
            Some(newest) if tells_updates && !is_old => self.read(client, Some(newest - LATE)).await,
            _ => {
                let mut anew = Self { looked: self.looked, tells_updates, ..Self::default() };
                anew.read(client, None).await?;
                anew.read_anew = Some(Instant::now());
                *self = anew;
                Ok(())
            }
        }
    }

    /// All of it, or nothing: what is known up to a moment is not taken for known beyond it.
    async fn read(&mut self, client: &Client, since: Option<Timestamp>) -> Result<(), AskError> {
        let wanted = Wanted { updated_since: since, ..Wanted::default() };
        let volumes = client.volumes(&wanted).await?.all().await?;
        let is_of_unknown = |volume: &Volume| {
            let is_new = !self.volumes.contains_key(&volume.id);
            is_new && volume.snapshot_id.as_ref().is_some_and(|id| !self.snapshots.contains_key(id))
        };
        // Cinder cannot be asked for the snapshots of a time.
        if volumes.iter().any(is_of_unknown) {
            let snapshots = client.snapshots().all().await?;
            self.snapshots.extend(snapshots.into_iter().map(|snapshot| (snapshot.id, snapshot.volume_id)));
        }
        for volume in volumes {
            self.add(volume);
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
            is_encrypted: volume.encrypted,
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
        let mut known = Known::default();
        known.add(volume("a", json!({ "volume_image_metadata": { "image_id": "i", "min_ram": "0" } })));
        known.add(volume("b", json!({ "snapshot_id": "s", "os-vol-mig-status-attr:name_id": "b-moved" })));
        known.add(volume("c", json!({ "source_volid": "b" })));
        known.snapshots.insert("s".to_owned(), "a".to_owned());
        let of = |id: &str| MadeFrom::Volume(id.to_owned());
        let image = MadeFrom::Image("i".to_owned());
        assert_eq!(known.chain("c"), [of("b-moved"), of("a"), image.clone()]);
        assert_eq!(known.chain("b-moved"), [of("a"), image.clone()]);
        assert_eq!(known.chain("a"), [image]);
        assert_eq!(known.chain("unknown"), []);
    }

    #[test]
    fn what_was_deleted_is_told_and_a_circle_ends() {
        let mut known = Known::default();
        known.add(volume("d", json!({ "source_volid": "gone" })));
        assert_eq!(known.chain("d"), [MadeFrom::Volume("gone".to_owned())]);
        known.add(volume("e", json!({ "source_volid": "e" })));
        assert_eq!(known.chain("e").len(), LONGEST);
    }
}
