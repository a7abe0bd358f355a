//! What is written on an image of ours: whose it is, and what it holds.

use farsite_model::{ItemId, PromotionId};
use farsite_sources::rbd::{Found, OpenImage};
use farsite_store::map::MapRoot;
use serde::{Deserialize, Serialize};

use crate::hydrate::Version;

/// Of a mark; one of another format says that nothing is known.
const FORMAT: u32 = 1;

/// The mark of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mark {
    format: u32,
    /// The cluster's own name of the image. A clone inherits what is written on its parent, and has another one.
    image: String,
    pub item: ItemId,
    /// It is this version, as long as nothing was written since the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds: Option<Holds>,
    /// A promotion makes it, or has made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
    /// A promotion found that it is what its point holds, and not what its service had recorded: nobody is served with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub odd: Option<PromotionId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds {
    pub version: Version,
    pub snapshot: String,
    /// A snapshot that was made anew under that name is another one.
    pub snapshot_id: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    pub promotion: PromotionId,
    /// Names the version.
    pub root: String,
    /// All of it is there and durable.
    pub whole: bool,
    /// It was hydrated, and the cluster had told that nothing was written to it since.
    #[serde(default)]
    pub proved: bool,
}

impl Restored {
    pub(super) fn begun(promotion: PromotionId, root: &str) -> Self {
        Self { promotion, root: root.to_owned(), whole: false, proved: false }
    }
}

impl Mark {
    pub(super) fn new(image: &str, item: &ItemId) -> Self {
        Self {
            format: FORMAT,
            image: image.to_owned(),
            item: item.clone(),
            holds: None,
            restored: None,
            odd: None,
        }
    }

    /// The mark of just this image, if it has one that makes sense.
    pub fn of(found: &Found) -> Option<Self> {
        let mark: Self = serde_json::from_str(found.mark.as_ref()?).ok()?;
        (mark.format == FORMAT && mark.image == found.id).then_some(mark)
    }

    /// Durable when this returns.
    pub(super) fn write(&self, image: &OpenImage) -> std::io::Result<()> {
        image.mark(&serde_json::to_string(self)?)
    }

    /// Whether it is these bytes, if nothing was written since: for a forecast, no more.
    pub fn says_it_holds(&self, map: &MapRoot) -> bool {
        self.holds.as_ref().is_some_and(|holds| holds.version.is_same_content(map))
    }

    /// Whether this promotion made it.
    pub fn is_of(&self, promotion: PromotionId) -> bool {
        self.restored.as_ref().is_some_and(|restored| restored.promotion == promotion)
    }

    /// Whether this promotion made it out of a copy that was proved.
    pub fn is_proved(&self, promotion: PromotionId, root: &str) -> bool {
        self.is_whole(promotion, root) && self.restored.as_ref().is_some_and(|restored| restored.proved)
    }

    /// Whether this promotion found that nobody should be served with it, whoever made it.
    pub fn is_odd(&self, promotion: PromotionId) -> bool {
        self.odd == Some(promotion)
    }

    /// Whether this promotion made it, and it is this version.
    pub fn is_whole(&self, promotion: PromotionId, root: &str) -> bool {
        let is_it = |restored: &Restored| restored.whole && restored.root == root;
        self.is_of(promotion) && self.restored.as_ref().is_some_and(is_it)
    }
}

#[cfg(test)]
mod tests {
    use farsite_model::ItemKind;

    use super::*;

    #[test]
    fn the_mark_that_a_clone_has_of_its_parent_is_not_its_own() {
        let mut mark = Mark::new("1a", &ItemId::new(ItemKind::Cinder, "volume-1"));
        let promotion = PromotionId::from_random(3);
        mark.restored = Some(Restored { whole: true, ..Restored::begun(promotion, "r") });
        let mut found = Found {
            id: "1a".into(),
            size_bytes: 1,
            mark: Some(serde_json::to_string(&mark).unwrap()),
            snapshots: Vec::new(),
        };
        assert!(Mark::of(&found).is_some_and(|mark| mark.is_whole(promotion, "r")));
        assert!(!mark.is_whole(promotion, "another version"));
        assert!(!mark.is_proved(promotion, "r") && !mark.is_odd(promotion));
        // One that says no more than that is of no promotion's making.
        let odd = Mark { odd: Some(promotion), ..Mark::new("1a", &mark.item) };
        assert!(odd.is_odd(promotion) && !odd.is_of(promotion));
        found.id = "1b".into();
        assert_eq!(Mark::of(&found), None);
        found.mark = Some("{}".into());
        assert_eq!(Mark::of(&found), None);
    }
}
