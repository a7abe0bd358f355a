//! One small interface to the place where a replica store's objects lie, and one file per implementation.
//!
//! There is no way to change an object here: nothing in the format needs one. `create` is the only write, and its
//! atomicity is what the ledger stands on; [`race`] proves it before a store is used.

pub mod folder;
pub mod provider;
pub mod race;
pub mod s3;
mod url;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use farsite_model::StoreTime;

pub use url::{S3Access, open};

/// What went wrong at the store, by what the caller can do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BackendError {
    #[error("{key} exists already in {store}")]
    Exists { store: String, key: String },
    #[error("{key} is missing in {store}")]
    Missing { store: String, key: String },
    #[error(
        "{store} refused {operation} {key}: {why}\n  hint: check the credentials' rights on this bucket or folder"
    )]
    Denied { store: String, operation: &'static str, key: String, why: String },
    #[error(
        "{store} is full: writing {key} failed ({why})\n  hint: nothing half-written is visible; free space at the store, then run again"
    )]
    Full { store: String, key: String, why: String },
    #[error(
        "{store} cannot be reached: {operation} {key}: {why}\n  hint: check the address and the network; nothing was changed"
    )]
    Unreachable { store: String, operation: &'static str, key: String, why: String },
    /// The answer was lost: the effect may or may not have happened. Callers read back.
    #[error("{store} gave no answer to {operation} {key}: {why}; whether it took effect is not known")]
    Uncertain { store: String, operation: &'static str, key: String, why: String },
    /// The object is there, and its bytes are not to be had: it is shorter than it must be, or the medium fails.
    #[error("{key} in {store} cannot be read in full: {why}")]
    Unreadable { store: String, key: String, why: String },
    #[error("{store}: {operation} {key}: {why}")]
    Other { store: String, operation: &'static str, key: String, why: String },
}

impl BackendError {
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}

/// An object as read, with the store's own time of writing.
#[derive(Debug, Clone)]
pub struct Object {
    pub bytes: Bytes,
    pub written: StoreTime,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub size_bytes: u64,
    pub written: StoreTime,
}

/// Where objects lie. Keys are relative to the store's root, `/` between parts, never starting with one.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// `./replica` or `s3://bucket/prefix at http://…`: for messages; never holds a secret.
    fn describe(&self) -> String;
    /// How finely the store's clock is told, in milliseconds (1000 for an HTTP `Date`).
    fn clock_grain_ms(&self) -> u64;
    /// The store's time now; one request.
    async fn time(&self) -> Result<StoreTime, BackendError>;
    /// Creates an object, durable when this returns. Of several callers exactly one succeeds; all others get
    /// [`BackendError::Exists`]. Returns the store's time.
    async fn create(&self, key: &str, bytes: Bytes) -> Result<StoreTime, BackendError>;
    async fn get(&self, key: &str) -> Result<Object, BackendError>;
    /// Exactly the bytes of `range`; a shorter object is an error.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BackendError>;
    async fn size(&self, key: &str) -> Result<u64, BackendError>;
    /// All objects whose key starts with `prefix` and comes after `after`, in order of key.
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>, BackendError>;
    async fn delete(&self, key: &str) -> Result<(), BackendError>;
    /// Tries to overwrite an object without any condition: only `farsite check` does this, on a probe of its
    /// own, to learn whether a thief with these credentials could.
    async fn try_overwrite(&self, key: &str, bytes: Bytes) -> Result<(), BackendError>;

    // What only some stores have. A backend that wraps another one passes these on.

    /// What the provider offers beyond this interface; `None` where there is no provider (a folder).
    async fn provider(&self) -> Result<Option<provider::Provider>, BackendError> {
        Ok(None)
    }
    /// Until when the store itself refuses to destroy an object; `None`: it does not refuse.
    async fn locked_until(&self, _key: &str) -> Result<Option<StoreTime>, BackendError> {
        Ok(None)
    }
    /// Has the store refuse to destroy an object until `until` at least. Never shortens a lock that is there.
    async fn extend_lock(&self, key: &str, _until: StoreTime) -> Result<(), BackendError> {
        Err(BackendError::Other {
            store: self.describe(),
            operation: "lengthening the lock of",
            key: key.to_owned(),
            why: "this kind of store has no Object Lock; nothing was locked".into(),
        })
    }
    /// Ends uploads that killed agents left behind, begun longer ago than `older_than` by the store's clock; says how many.
    /// Nothing that is visible is touched. An upload that lives is never older than [`UPLOAD_LIVES_AT_MOST`].
    async fn end_abandoned_uploads(&self, _older_than: Duration) -> Result<usize, BackendError> {
        Ok(0)
    }
}

/// No upload goes on for longer than this: what is older was left behind.
pub const UPLOAD_LIVES_AT_MOST: Duration = Duration::from_hours(24);

/// Creates an object, and recognises its own write when the answer was lost: after `Exists` or no answer the object is
/// read back, and equal bytes mean success (every signed object carries a nonce, every pack a random id).
/// `Ok(None)` means that somebody else holds the key.
pub async fn create_or_recognise(
    backend: &dyn Backend,
    key: &str,
    bytes: Bytes,
) -> Result<Option<StoreTime>, BackendError> {
    let mut last = None;
    // An uncertain answer may also mean that nothing was written: then it is tried again.
    for round in 0..4u64 {
        if round > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(50 << round)).await;
        }
        match backend.create(key, bytes.clone()).await {
            Ok(time) => return Ok(Some(time)),
            Err(error @ (BackendError::Exists { .. } | BackendError::Uncertain { .. })) => {
                match holds(backend, key, &bytes).await {
                    Ok(Some(written)) => return Ok(Some(written)),
                    Ok(None) => return Ok(None),
                    Err(BackendError::Missing { .. }) => last = Some(error),
                    // Reading back failed as well: what is there is still not known.
                    Err(read @ (BackendError::Uncertain { .. } | BackendError::Unreachable { .. })) => {
                        last = Some(uncertain(read));
                    }
                    Err(other) => return Err(other),
                }
            }
            // An earlier round may have taken effect, so "nothing was changed" would not be true any more.
            Err(error @ BackendError::Unreachable { .. }) if last.is_some() => last = Some(uncertain(error)),
            Err(other) => return Err(other),
        }
    }
    Err(last.expect("the loop ran at least once"))
}

fn uncertain(error: BackendError) -> BackendError {
    match error {
        BackendError::Unreachable { store, operation, key, why } => {
            BackendError::Uncertain { store, operation, key, why }
        }
        other => other,
    }
}

/// Objects larger than this are compared by size and by both ends: a pack ends with a hash of itself, and what is signed
/// begins with its signature.
const COMPARE_WHOLE_BYTES: usize = 1 << 20;
const COMPARE_END_BYTES: usize = 512;

async fn holds(backend: &dyn Backend, key: &str, bytes: &Bytes) -> Result<Option<StoreTime>, BackendError> {
    if bytes.len() <= COMPARE_WHOLE_BYTES {
        let object = backend.get(key).await?;
        return Ok((object.bytes == *bytes).then_some(object.written));
    }
    if backend.size(key).await? != bytes.len() as u64 {
        return Ok(None);
    }
    for end in [0..COMPARE_END_BYTES, bytes.len() - COMPARE_END_BYTES..bytes.len()] {
        let stored = backend.get_range(key, end.start as u64..end.end as u64).await?;
        if stored[..] != bytes[end] {
            return Ok(None);
        }
    }
    backend.time().await.map(Some)
}

/// A shared backend.
pub type SharedBackend = Arc<dyn Backend>;
