//! Content keys wrapped again, for recipients that were added after the key was drawn. Somebody who can open the key (a
//! standby agent, an operator with an identity) comes in; one small signed object for each key and recipient goes out.
//!
//! Key: `wraps/<fingerprint of the recipient>/<content key id>.<try>`. The try grows where an object of that name exists
//! already and is no good: whoever may create objects could have put it there.

use std::collections::{HashMap, HashSet};

use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::backend::{BackendError, create_or_recognise};
use crate::format::Format;
use crate::hex::{Hex, HexBytes};
use crate::keys::{self, Role, Signer};
use crate::seal::{self, ContentKeyId, ContentKeyObject, Opener};
use crate::signed::{self, Kind};
use crate::{Damage, Store, StoreError};

/// Requests under way at once.
const REQUESTS: usize = 16;
/// So many objects of one name may be no good before it is given up.
const MOST_TRIES: u32 = 100;

/// Names a recipient in keys of objects.
pub fn fingerprint(recipient: &str) -> Hex<16> {
    let hash = blake3::hash(recipient.as_bytes());
    Hex(hash.as_bytes()[..16].try_into().expect("a hash has 32 bytes"))
}

fn folder(recipient: &str) -> String {
    format!("wraps/{}/", fingerprint(recipient))
}

fn object_key(recipient: &str, id: &ContentKeyId, attempt: u32) -> String {
    format!("{}{id}.{attempt}", folder(recipient))
}

/// The content key that an object of this name wraps.
pub(crate) fn wrap_of(key: &str) -> Option<ContentKeyId> {
    let mut parts = key.strip_prefix("wraps/")?.split('/');
    let (_, name) = (parts.next()?.parse::<Hex<16>>().ok()?, parts.next()?);
    let (id, attempt) = name.split_once('.')?;
    (parts.next().is_none() && attempt.parse::<u32>().is_ok()).then(|| id.parse().ok())?
}

/// Body of a wrap.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Wrap {
    content_key: ContentKeyId,
    recipient: String,
    created: Timestamp,
    wrapped: HexBytes,
}

/// The wrapped key of one object, and whether its signer may still sign. `Err` says why it is no good.
fn parse(
    format: &Format,
    name: &str,
    object: &bytes::Bytes,
    recipient: &str,
    id: ContentKeyId,
) -> Result<(Vec<u8>, bool), String> {
    let (body, role) = signed::open(format, Kind::Wrap, name, object).map_err(|error| error.to_string())?;
    if role.role == Role::SourceAgent {
        return Err(format!("signed by a {}, which can open nothing", role.role));
    }
    let wrap: Wrap = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    if wrap.content_key != id || wrap.recipient != recipient {
        return Err("it is of another key or recipient".to_owned());
    }
    let in_force = format.in_force(&keys::key_id(&role.key)).is_some();
    Ok((wrap.wrapped.0, in_force))
}

/// What was found under the names of one wrap.
#[derive(Default)]
pub(crate) struct FoundWraps {
    /// Signed by keys in force first.
    pub(crate) good: Vec<Vec<u8>>,
    /// One of them at least is signed by a key in force.
    pub(crate) sure: bool,
    pub(crate) damage: Vec<Damage>,
    next_try: u32,
}

/// The wraps of a content key for one recipient.
pub(crate) async fn find(store: &Store, recipient: &str, id: ContentKeyId) -> Result<FoundWraps, StoreError> {
    let listed = store.backend.list(&format!("{}{id}.", folder(recipient)), None).await?;
    let (format, mut found, mut retired) = (store.format(), FoundWraps::default(), Vec::new());
    for object in listed {
        let Some(attempt) = object.key.rsplit('.').next().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        found.next_try = found.next_try.max(attempt.saturating_add(1));
        let bytes = match store.backend.get(&object.key).await {
            Ok(read) => read.bytes,
            Err(BackendError::Missing { .. }) => continue,
            Err(BackendError::Unreadable { why, .. }) => {
                found.damage.push(Damage::new(object.key, why));
                continue;
            }
            Err(other) => return Err(other.into()),
        };
        match parse(&format, &object.key, &bytes, recipient, id) {
            Ok((wrapped, true)) => found.good.push(wrapped),
            Ok((wrapped, false)) => retired.push(wrapped),
            Err(why) => found.damage.push(Damage::new(object.key, why)),
        }
    }
    found.sure = !found.good.is_empty();
    found.good.extend(retired);
    Ok(found)
}

/// What wrapping again came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Wrapped {
    pub content_keys: u64,
    /// Wraps that were written, or would be.
    pub written: u64,
    /// Content keys that all of them can open already.
    pub complete: u64,
    /// Content keys that the identities here cannot open, or that are damaged: others must wrap them.
    pub not_opened: Vec<Damage>,
}

/// Sees to it that each of these recipients can open every content key. What is there already is left alone, so it can be
/// cut off anywhere and begun again. `dry_run` counts only.
pub async fn wrap_missing(
    store: &Store,
    opener: &Opener,
    signer: &Signer,
    recipients: &[String],
    dry_run: bool,
    progress: &dyn crate::keep::Progress,
) -> Result<Wrapped, StoreError> {
    let known = Known::list(store, recipients).await?;
    let ids: Vec<ContentKeyId> = known.keys.clone();
    let count = ids.len();
    let mut done = Wrapped { content_keys: count as u64, ..Wrapped::default() };
    let mut work = stream::iter(ids)
        .map(|id| {
            let known = &known;
            async move { one(store, opener, signer, recipients, known, id, dry_run).await }
        })
        .buffered(REQUESTS);
    let mut seen = 0;
    while let Some(result) = work.next().await {
        seen += 1;
        progress.says(&format!("content key {seen} of {count}"));
        match result {
            Ok(0) => done.complete += 1,
            Ok(written) => done.written += written,
            Err(StoreError::Damaged(damage)) => done.not_opened.extend(damage),
            Err(StoreError::Key(error)) => done.not_opened.push(Damage::new("keys/", error.to_string())),
            Err(other) => return Err(other),
        }
    }
    Ok(done)
}

/// Wraps that are missing of one key. Zero: none.
async fn one(
    store: &Store,
    opener: &Opener,
    signer: &Signer,
    recipients: &[String],
    known: &Known,
    id: ContentKeyId,
    dry_run: bool,
) -> Result<u64, StoreError> {
    // One that collection has removed meanwhile needs no wrap.
    let body = match ContentKeyObject::read(store, id).await {
        Err(StoreError::Damaged(damage)) => {
            return match store.backend.size(&seal::object_key(&id)).await {
                Err(error) if error.is_missing() => Ok(0),
                _ => Err(StoreError::Damaged(damage)),
            };
        }
        other => other?,
    };
    let mut missing = Vec::new();
    for recipient in recipients.iter().filter(|one| !body.recipients.contains(one)) {
        let wraps = if known.may_wrap(recipient, id) {
            find(store, recipient, id).await?
        } else {
            FoundWraps::default()
        };
        if !wraps.sure {
            missing.push((recipient, wraps.next_try));
        }
    }
    if missing.is_empty() {
        return Ok(0);
    }
    let key = opener.raw_key(store, id).await?;
    if dry_run {
        return Ok(missing.len() as u64);
    }
    for (recipient, attempt) in &missing {
        write(store, signer, recipient, id, &key, *attempt).await?;
    }
    Ok(missing.len() as u64)
}

async fn write(
    store: &Store,
    signer: &Signer,
    recipient: &str,
    id: ContentKeyId,
    key: &[u8; 32],
    from: u32,
) -> Result<(), StoreError> {
    let wrap = Wrap {
        content_key: id,
        recipient: recipient.to_owned(),
        created: Timestamp::now(),
        wrapped: HexBytes(keys::wrap(key, std::slice::from_ref(&recipient.to_owned()))?),
    };
    let body = serde_json::to_vec(&wrap).expect("a wrap is valid JSON");
    for attempt in from..MOST_TRIES {
        let name = object_key(recipient, &id, attempt);
        let object = signed::seal(signer, Kind::Wrap, &store.format().store, &name, &body);
        if create_or_recognise(&*store.backend, &name, object).await?.is_some() {
            return Ok(());
        }
        // Somebody else was first: another operator who does the same, or somebody who is up to no good.
        let there = store.get(&name).await?;
        if parse(&store.format(), &name, &there.bytes, recipient, id).is_ok_and(|(_, in_force)| in_force) {
            return Ok(());
        }
    }
    Err(StoreError::Conflict { key: object_key(recipient, &id, MOST_TRIES) })
}

/// Content keys, and which recipients have objects that could be wraps of them. Takes 16 bytes for each.
pub(super) struct Known {
    pub(super) keys: Vec<ContentKeyId>,
    wraps: HashMap<Hex<16>, HashSet<ContentKeyId>>,
}

impl Known {
    pub(super) async fn list(store: &Store, recipients: &[String]) -> Result<Self, StoreError> {
        let mut wraps = HashMap::new();
        for recipient in recipients {
            let listed = store.backend.list(&folder(recipient), None).await?;
            let of = listed.iter().filter_map(|object| wrap_of(&object.key)).collect();
            wraps.insert(fingerprint(recipient), of);
        }
        let listed = store.backend.list("keys/", None).await?;
        let id = |key: &str| key.strip_prefix("keys/")?.parse().ok();
        Ok(Self { keys: listed.iter().filter_map(|object| id(&object.key)).collect(), wraps })
    }

    pub(super) fn may_wrap(&self, recipient: &str, id: ContentKeyId) -> bool {
        self.wraps.get(&fingerprint(recipient)).is_some_and(|of| of.contains(&id))
    }
}
