//! The replica store: frozen bytes come in; sealed packs, block maps, manifests and signed ledger entries go out
//! to a bucket or a folder at the standby, and come back authenticated. It is the only truth that a failover
//! reads.
//!
//! What must hold: an object is immutable once written; a point is visible only through its ledger entry, written
//! last; nothing read back is used before it is authenticated; an agent's keys can add and cannot open.
//! The bytes are described in `docs/store-format.md`.

pub mod amendments;
pub mod backend;
pub mod blob;
pub mod chain;
pub mod diff;
pub mod format;
#[cfg(test)]
mod fuzz;
mod group;
pub mod hex;
pub mod ingest;
pub mod journal;
pub mod keep;
pub mod keys;
pub mod ledger;
pub mod local_map;
pub mod logs;
pub mod manifest;
pub mod map;
mod moves;
pub mod pack;
pub mod print;
pub mod read;
pub mod seal;
pub mod shipped;
pub mod signals;
pub mod signed;
#[cfg(test)]
mod worked_example;

use std::sync::{Arc, RwLock};

use backend::{BackendError, Object, SharedBackend};
use chain::Head;
use farsite_model::StoreTime;
use format::Format;
use hex::Hex;
use jiff::SignedDuration;

/// One object that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Damage {
    /// The object's key in the store.
    pub object: String,
    pub why: String,
}

impl Damage {
    pub fn new(object: impl Into<String>, why: impl Into<String>) -> Self {
        Self { object: object.into(), why: why.into() }
    }
}
impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.object, self.why)
    }
}

/// What went wrong with the replica store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Key(#[from] keys::KeyError),
    #[error(transparent)]
    Race(#[from] backend::race::RaceError),
    #[error(
        "{store} is not a replica store yet\n  hint: `farsite init` creates one; if it was one, its format object is missing"
    )]
    NotInitialised { store: String },
    #[error("{store} is a replica store already; nothing was changed")]
    AlreadyInitialised { store: String },
    #[error(
        "{store} is not the store that the configuration names: its id is {found}, expected {expected}\n  hint: wrong address, or somebody replaced the format object; nothing was read or written"
    )]
    WrongStore { store: String, expected: Hex<16>, found: Hex<16> },
    #[error(
        "{store} has format version {found}; this program reads version {}\n  hint: use a newer farsite",
        format::FORMAT_VERSION
    )]
    UnknownVersion { store: String, found: u32 },
    #[error("damaged in the store: {}", list(.0))]
    Damaged(Vec<Damage>),
    #[error("{key} exists already with other contents; nothing was overwritten")]
    Conflict { key: String },
    #[error("reading {what}: {source}")]
    Content { what: String, source: std::io::Error },
    #[error("writing {what}: {source}")]
    Destination { what: String, source: std::io::Error },
    #[error("{0}")]
    Refused(#[from] ledger::Refusal),
    #[error("stopped")]
    Cancelled,
}

fn list(damage: &[Damage]) -> String {
    damage.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// An opened store: its format is known, nothing can be opened or signed with it alone.
#[derive(Clone)]
pub struct Store {
    pub backend: SharedBackend,
    /// Fingerprint of the format object.
    pub id: Hex<16>,
    /// Shared by all clones: whoever reads the amendments on, reads them on for all.
    keys: Arc<RwLock<Keys>>,
}

/// The format object, and what it is now.
struct Keys {
    object: Arc<Format>,
    now: Arc<Format>,
    /// The end of the amendments as somebody here has seen it: what is shorter was rolled back.
    seen: Head,
}

impl Store {
    pub async fn open(backend: SharedBackend, pinned: Option<&Hex<16>>) -> Result<Self, StoreError> {
        let (format, id) = Format::read(&backend, pinned).await?;
        let object = Arc::new(format);
        let keys = Keys { object: object.clone(), now: object, seen: Head::START };
        let store = Self { backend, id, keys: Arc::new(RwLock::new(keys)) };
        store.refresh_keys().await?;
        Ok(store)
    }

    /// The format object with all amendments that were read.
    pub fn format(&self) -> Arc<Format> {
        self.keys.read().expect("no holder of this lock panics").now.clone()
    }

    /// Reads the amendments again. Whoever is about to seal calls this first.
    pub async fn refresh_keys(&self) -> Result<(), StoreError> {
        let (object, seen) = {
            let keys = self.keys.read().expect("no holder of this lock panics");
            (keys.object.clone(), keys.seen)
        };
        let now = amendments::read(self, &object, seen).await?;
        let mut keys = self.keys.write().expect("no holder of this lock panics");
        if now.amended.head.next >= keys.seen.next {
            keys.seen = now.amended.head;
        } else if keys.seen != seen {
            // Somebody else has read further meanwhile.
            return Ok(());
        }
        keys.now = Arc::new(now);
        Ok(())
    }

    /// How far somebody on this host has read the amendments before: when they are shorter now, or others, that is damage.
    pub async fn expect_amendments(&self, seen: Head) -> Result<(), StoreError> {
        {
            let mut keys = self.keys.write().expect("no holder of this lock panics");
            keys.seen = seen;
        }
        self.refresh_keys().await
    }

    /// The latest moment that a time told by this store can stand for. A store tells its time in grains (whole seconds in
    /// an HTTP `Date`), rounded down; whoever states an age counts up to here, or states it too young by up to a grain.
    pub fn latest(&self, told: StoreTime) -> StoreTime {
        let grain_ms = i64::try_from(self.backend.clock_grain_ms()).unwrap_or(0);
        StoreTime(told.0 + SignedDuration::from_millis(grain_ms))
    }

    /// The store's time now, at the latest. One request.
    pub async fn now(&self) -> Result<StoreTime, BackendError> {
        Ok(self.latest(self.backend.time().await?))
    }

    /// An object that must be there: one that is missing is damage, and named.
    pub(crate) async fn get(&self, key: &str) -> Result<Object, StoreError> {
        self.backend.get(key).await.map_err(|error| named(key, error))
    }
    pub(crate) async fn size(&self, key: &str) -> Result<u64, StoreError> {
        self.backend.size(key).await.map_err(|error| named(key, error))
    }
    pub(crate) async fn get_range(
        &self,
        key: &str,
        range: std::ops::Range<u64>,
    ) -> Result<bytes::Bytes, StoreError> {
        self.backend.get_range(key, range).await.map_err(|error| named(key, error))
    }
}

pub(crate) fn named(key: &str, error: BackendError) -> StoreError {
    match error {
        BackendError::Missing { .. } => StoreError::Damaged(vec![Damage::new(key, "missing")]),
        BackendError::Unreadable { why, .. } => StoreError::Damaged(vec![Damage::new(key, why)]),
        other => other.into(),
    }
}
