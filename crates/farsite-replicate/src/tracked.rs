//! Change tracking as a run uses it: what a source says of its changes goes in; which of it is believed comes out. What must
//! hold (invariant 10): it is believed only against the very version that the last point was made of, is compared with a
//! full read from time to time, and a source that was wrong once is not believed again until a person says so.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use farsite_model::ItemId;
use farsite_model::content::ReadAt;
use farsite_sources::tracking::ChangeTracking;
use farsite_store::ingest::Claims;
use farsite_store::local_map::LocalMap;
use jiff::Timestamp;

use crate::group::{Group, Home};

/// What a run makes of its source's word.
#[derive(Default)]
pub(crate) struct Told {
    /// Only this is read.
    pub(crate) changed: Option<Vec<Range<u64>>>,
    /// Everything is read, and held against this.
    pub(crate) claims: Option<Claims>,
    /// The version before, to make patches against.
    pub(crate) before: Option<Arc<dyn ReadAt>>,
}

impl Told {
    pub(crate) fn of(group: &Group, id: &ItemId, previous: &LocalMap, tracking: &dyn ChangeTracking) -> Self {
        let Some(token) = previous.token() else { return Self::default() };
        // At another host, that is a question and its answer.
        let before = tokio::task::block_in_place(|| tracking.version(token));
        if previous.is_hit() {
            // What is sent again because it is damaged at the store says nothing about what the source tells.
            return Self { before, ..Self::default() };
        }
        let extents = match tokio::task::block_in_place(|| tracking.changed_since(token)) {
            Ok(Some(extents)) => extents,
            Ok(None) => return Self { before, ..Self::default() },
            Err(error) => {
                tracing::warn!(item = %id, "its source cannot tell what has changed ({error}): all of it is read");
                return Self { before, ..Self::default() };
            }
        };
        let note = note(group, id);
        if note.exists() {
            tracing::warn!(
                item = %id,
                "its change tracking was wrong once and is not used: all of it is read\n  hint: find out why, then remove {}",
                note.display()
            );
            return Self { before, ..Self::default() };
        }
        if is_due(previous.read_in_full(), Timestamp::now(), group.policy.verify_tracking.to_signed()) {
            return Self { claims: Some(Claims::new(extents)), before, changed: None };
        }
        Self { changed: Some(extents), claims: None, before }
    }
}

/// A clock that went back makes it due as well.
fn is_due(last: Timestamp, now: Timestamp, after: jiff::SignedDuration) -> bool {
    let age = now.duration_since(last);
    age >= after || age.is_negative()
}

fn note(group: &Group, id: &ItemId) -> PathBuf {
    group.file_of("distrusted", id, ".txt")
}

/// A full read was compared with what the source had said.
pub(crate) fn judge(group: &Group, id: &ItemId, claims: &Claims) {
    let untold = claims.untold_bytes();
    if untold == 0 {
        tracing::info!(item = %id, "its change tracking was compared with a full read, and is right");
        return;
    }
    let why = format!(
        "{untold} bytes of {id} had changed of which its change tracking said nothing; this point has them all, points before it may lack some"
    );
    tracing::error!(item = %id, "{why}; it is not believed again");
    let path = note(group, id);
    let noted = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&path, format!("{}\n{why}\n", Timestamp::now())))
        .and_then(|()| std::fs::File::open(&path)?.sync_all());
    if let Err(error) = noted {
        tracing::error!(item = %id, "that could not be noted in {}: {error}", path.display());
    }
}

/// A version of an item that its source may keep for the next run, as all who read the capture share it.
///
/// When the last of them lets go of it, the versions that no standby needs are let go at the source: a block map on this
/// disk, or the note of a run under way, names those that one does.
pub(crate) struct Version {
    pub(crate) tracking: Box<dyn ChangeTracking>,
    item: ItemId,
    home: Home,
    kept: OnceLock<String>,
}

impl Version {
    pub(crate) fn new(tracking: Box<dyn ChangeTracking>, item: ItemId, home: Home) -> Self {
        Self { tracking, item, home, kept: OnceLock::new() }
    }

    /// All bytes were read, and nothing is asked any more: it is kept for the points of these groups.
    pub(crate) fn keep(&self, groups: &[Arc<Group>]) {
        let kept = self.home.hold_versions().and_then(|_held| {
            let token = self.tracking.keep()?;
            for group in groups {
                group.note_version(&self.item, &token)?;
            }
            Ok(token)
        });
        match kept {
            Ok(token) => {
                let _ = self.kept.set(token);
            }
            Err(error) => {
                tracing::warn!(item = %self.item, "its version is not kept ({error}): the next run reads all of it");
            }
        }
    }

    /// None when it is not kept.
    pub(crate) fn token(&self) -> Option<&str> {
        self.kept.get().map(String::as_str)
    }
}

impl Drop for Version {
    fn drop(&mut self) {
        tokio::task::block_in_place(|| match self.home.hold_versions() {
            Ok(_held) => self.tracking.forget_others(&self.home.needed_versions(&self.item)),
            Err(error) => {
                tracing::warn!(item = %self.item, "its old versions stay until the next run: {error}");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_read_is_due_after_its_time_and_when_the_clock_went_back() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let week = jiff::SignedDuration::from_hours(7 * 24);
        let last = at("2026-11-01T00:00:00Z");
        assert!(!is_due(last, at("2026-11-07T23:59:59Z"), week));
        assert!(is_due(last, at("2026-11-08T00:00:00Z"), week));
        assert!(is_due(last, at("2026-10-31T23:59:59Z"), week));
        assert!(is_due(last, last, jiff::SignedDuration::ZERO));
    }
}
