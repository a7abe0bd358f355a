//! The words of the two ends. What an answer holds beside its header is said at each call.

use std::collections::BTreeMap;
use std::time::Duration;

use farsite_model::policy::Item;
use farsite_model::{CaptureTime, Consistency, GroupName, ItemId, ItemKind, SiteName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{CaptureContext, SourceError};

/// The first frame in both directions, of which every version can read this much.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Opening {
    pub(super) protocol: u32,
    pub(super) version: String,
}

/// What the coordinator says of itself and of what it wants read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// The host that is meant, as it calls itself.
    pub host: String,
    pub site: SiteName,
    pub group: GroupName,
    /// Tells what this coordinator keeps there for the group from what others keep: letters and digits.
    pub owner: String,
    /// The policy's entries that are read there.
    pub items: Vec<Item>,
    /// How long either end may say nothing.
    pub patience: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub(super) enum Said {
    Hello(Box<Hello>),
    /// Something to be done; its number names what comes of it.
    Ask {
        id: u64,
        #[serde(flatten)]
        call: Call,
    },
    /// What came of a call is let go, all of it or a part; a call under way is given up.
    Release {
        id: u64,
        part: Option<Part>,
    },
    Alive,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub(super) enum Answered {
    /// Everything can be asked now.
    Ready,
    /// Nothing will be done.
    Refused(Failure),
    /// The body is an answer, or the next part of one that is followed by more.
    Answer {
        id: u64,
        more: bool,
    },
    Failed {
        id: u64,
        failure: Failure,
    },
    Alive,
}

/// What can come of a call and is held until it is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Part {
    Source,
    Content,
    Tracking,
    Guard,
}

/// A source at the serving host: what came of an earlier call, or else the policy's entry, which is there from its first use on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SourceRef {
    pub(super) id: u64,
    pub(super) entry: Option<ItemId>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub(super) enum Call {
    /// `Vec<CheckLine>`
    Check { source: SourceRef },
    /// `Vec<ItemId>`
    Items { source: SourceRef },
    /// `Vec<ItemId>`
    Lost { source: SourceRef, gone: Vec<ItemId> },
    /// `bool`
    Prepare { source: SourceRef },
    /// `bool`: whether there is a source now that is called by this call's number.
    Instant { source: SourceRef, context: Lent },
    /// [`Captured`]; content, tracking and guard are called by this call's number.
    Capture { source: SourceRef, item: ItemId, context: Lent },
    /// `Vec<KeptSpace>`
    Kept { source: SourceRef, context: Lent },
    /// `()`
    Forget { source: SourceRef, item: ItemId, context: Lent },
    /// Raw bytes, of a volume or of a file of a tree.
    Read { of: u64, file: Option<usize>, offset: u64, length: usize },
    /// [`Extents`] from there on, of a volume.
    Extents { of: u64, offset: u64 },
    /// `Vec<TreeEntry>`, of a tree.
    Entries { of: u64 },
    /// `Option<Vec<(u64, u64)>>`: starts and ends.
    ChangedSince { of: u64, token: String },
    /// `Option<u64>`: its size, when there is a volume now that is called by this call's number.
    Version { of: u64, token: String },
    /// `String`: the token.
    Keep { of: u64 },
    /// `()`
    ForgetOthers { of: u64, tokens: Vec<String> },
}

/// What a run lends to a source at another host. Its folders are that host's own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Lent {
    /// The coordinator's clock, before it asked.
    pub(super) now: Timestamp,
    pub(super) timeout: Duration,
    pub(super) frozen: bool,
}

impl Lent {
    pub(super) fn of(context: &CaptureContext) -> Self {
        Self { now: context.clock.now(), timeout: context.timeout, frozen: context.frozen }
    }
}

/// A capture without its bytes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Captured {
    pub(super) item: ItemId,
    pub(super) kind: ItemKind,
    pub(super) at: CaptureTime,
    pub(super) consistency: Consistency,
    pub(super) content: ContentIs,
    pub(super) still: bool,
    pub(super) ancestor: Option<ItemId>,
    pub(super) details: BTreeMap<String, String>,
    pub(super) tracking: Option<TrackingIs>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ContentIs {
    Volume { size_bytes: u64 },
    Tree,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TrackingIs {
    pub(super) kind: String,
    pub(super) keeps_versions: bool,
    pub(super) token: Option<String>,
}

/// Where a volume may hold data, from where it was asked up to `until`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Extents {
    pub(super) ranges: Vec<(u64, u64)>,
    pub(super) until: u64,
}

/// A [`SourceError`] on its way.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    pub(super) what: String,
    pub(super) why: String,
    pub(super) hint: Option<String>,
    pub(super) gap: bool,
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        let SourceError { what, why, hint, gap } = error;
        Self { what, why, hint, gap }
    }
}

impl Failure {
    pub(super) fn at(self, host: &str) -> SourceError {
        let Self { what, why, hint, gap } = self;
        SourceError { what: format!("host {host}: {what}"), why, hint, gap }
    }
}
