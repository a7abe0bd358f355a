//! What Cinder has deleted and our snapshots still hold. Cinder moves a volume that has snapshots to RBD's trash (its RBD driver
//! does so without a delay unless deferred deletion is on, and then purges the trash itself), and renames one that has clones.
//!
//! What must hold: of an image in the trash only our own snapshots go. The image itself goes only where Cinder has been asked and has no
//! such volume any more, nobody but us held it, nobody put a time of his own on it, and a while has passed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use farsite_model::policy::Rbd;
use farsite_openstack::SiteCloud;
use serde::Deserialize;

use super::prefix_of;
use super::writer::Writer;
use crate::SourceError;
use crate::volume::blocking;

/// An image stays so long after it was deleted: by hand it may have been moved there by mistake.
pub(super) const GRACE: Duration = Duration::from_hours(1);
/// Cinder's own name of a volume that has clones and was deleted.
const DELETED: &str = ".deleted";
/// Two times that Ceph took one after the other are the same within this.
const SAME: f64 = 2.0;

/// An image in the trash.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Trashed {
    pub(super) id: String,
    pub(super) name: String,
    /// A user or service moved it there, not the cluster itself.
    pub(super) by_user: bool,
    /// Seconds since the Unix epoch.
    pub(super) deleted: f64,
    pub(super) until: f64,
    /// Names of its snapshots; `null` for one that has none of its own (of a group, in the trash).
    pub(super) snapshots: Vec<Option<String>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    /// Our snapshots go: whoever put a time on it removes it then.
    LetGo,
    Removed,
}

/// `living`: what Cinder has volumes of, by what their images are named after; `None` where there is no Cinder to ask.
fn fate(image: &Trashed, prefix: &str, now: f64, grace: Duration, living: Option<&BTreeSet<String>>) -> Fate {
    let is_ours = |name: &Option<String>| name.as_ref().is_some_and(|name| name.starts_with(prefix));
    let ours = image.snapshots.iter().filter(|name| is_ours(name)).count();
    let volume = image.name.strip_prefix("volume-");
    if ours == 0 || !image.by_user {
        return Fate::Stays;
    }
    if image.until > image.deleted + SAME || ours < image.snapshots.len() {
        return Fate::LetGo;
    }
    match (volume, living) {
        _ if now < image.deleted + grace.as_secs_f64() => Fate::Stays,
        // Somebody else put it there, and may want it back as it is.
        (Some(volume), Some(living)) if living.contains(volume) => Fate::Stays,
        (Some(_), Some(_)) => Fate::Removed,
        _ => Fate::LetGo,
    }
}

/// Lets go of what was deleted: names of what is removed for good. `owner` tells our snapshots.
pub async fn sweep(
    rbd: &Rbd,
    owner: &str,
    grace: Duration,
    cloud: &SiteCloud,
) -> Result<Vec<String>, SourceError> {
    let what = "letting go of what Cinder deleted";
    let prefix = prefix_of(owner);
    let writer = Arc::new(Writer::start(rbd).await?);
    let (asked, ours) = (writer.clone(), prefix.clone());
    let trash = blocking(move || {
        let fail = |error| SourceError::new(what, error);
        for name in asked.names().map_err(fail)?.iter().filter(|name| name.ends_with(DELETED)) {
            asked.remove_snapshots(name, &ours).map_err(fail)?;
        }
        asked.trash().map_err(fail)
    })
    .await?;
    if trash.is_empty() {
        return Ok(Vec::new());
    }
    let living = cloud.living_volumes().await.map_err(|error| SourceError::new(what, error))?;
    blocking(move || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let mut removed = Vec::new();
        for image in trash {
            let fate = fate(&image, &prefix, now, grace, living.as_deref());
            if fate == Fate::Stays {
                continue;
            }
            let gone = writer.let_go_of_trash(&image.id, &prefix, fate == Fate::Removed);
            match gone {
                Ok(()) if fate == Fate::Removed => {
                    tracing::info!(
                        "{} was deleted and only our snapshot held it: its space is free",
                        image.name
                    );
                    removed.push(image.name);
                }
                Ok(()) => tracing::info!(
                    "{} is in the trash, and nothing of ours holds it any more: `rbd trash rm` frees its space",
                    image.name
                ),
                // A client still has it open, or a clone stands on it.
                Err(error) => tracing::warn!("{} stays in the trash: {error}", image.name),
            }
        }
        Ok(removed)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, delay: f64, snapshots: &[Option<&str>]) -> Trashed {
        Trashed {
            id: "1a".into(),
            name: name.into(),
            by_user: true,
            deleted: 1000.0,
            until: 1000.0 + delay,
            snapshots: snapshots.iter().map(|name| name.map(str::to_owned)).collect(),
        }
    }

    #[test]
    fn only_what_nobody_but_us_holds_is_removed_and_only_after_a_while() {
        let (prefix, grace, later) = ("farsite-o-", Duration::from_mins(1), 1060.0);
        let others = BTreeSet::from(["2".to_owned()]);
        let fate = |image: &Trashed, now| fate(image, prefix, now, grace, Some(&others));
        let ours = Some("farsite-o-1");
        let alone = image("volume-1", 0.0, &[ours]);
        assert_eq!((fate(&alone, 1059.0), fate(&alone, later)), (Fate::Stays, Fate::Removed));
        assert_eq!(fate(&image("volume-1", 0.0, &[]), later), Fate::Stays, "we never held it");
        assert_eq!(fate(&image("volume-2", 0.0, &[ours]), later), Fate::Stays, "Cinder has that volume");
        let unasked = super::fate(&alone, prefix, later, grace, None);
        assert_eq!(unasked, Fate::LetGo, "nobody has said that it was Cinder who deleted it");
        for other in [Some("snapshot-1"), Some("farsite-p-1"), None] {
            assert_eq!(fate(&image("volume-1", 0.0, &[ours, other]), later), Fate::LetGo);
        }
        assert_eq!(fate(&image("volume-1", 3600.0, &[ours]), later), Fate::LetGo, "somebody chose a time");
        assert_eq!(fate(&image("disk", 0.0, &[ours]), later), Fate::LetGo, "no volume of Cinder's");
        let by_the_cluster = Trashed { by_user: false, ..alone };
        assert_eq!(fate(&by_the_cluster, later), Fate::Stays);
    }
}
