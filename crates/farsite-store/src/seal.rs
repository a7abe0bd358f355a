//! Sealing and opening. A run (or a log shipper's life) has one content key, wrapped for the recipients and then
//! known only in the agent's memory: the agent can seal, and after a restart not even read what it sealed.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use farsite_model::{GroupName, RunId, SiteName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::amendments;
use crate::backend::create_or_recognise;
use crate::hex::{Hex, HexBytes};
use crate::keys::{self, BlockSecret, KeyError, Role, Signer};
use crate::ledger::Refusal;
use crate::signed::{self, Kind};
use crate::{Damage, Store, StoreError};

pub type ContentKeyId = Hex<16>;

/// Bytes that sealing adds: nonce and tag.
pub const SEAL_OVERHEAD: usize = NONCE_BYTES + 16;
const NONCE_BYTES: usize = 12;

/// What a sealed blob is; part of what is authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BlobKind {
    Block = 1,
    Node = 2,
    PackIndex = 3,
    LogSegment = 4,
    /// Several blocks in one frame. What it holds is said inside: its id is [`GROUP`].
    Group = 5,
    /// Where the blobs of a pack lay before compaction moved them there: see [`crate::moves`].
    Moves = 6,
}

/// Body of a content key object.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContentKeyObject {
    pub id: ContentKeyId,
    pub site: SiteName,
    pub group: GroupName,
    pub run: RunId,
    pub created: Timestamp,
    pub recipients: Vec<String>,
    /// What is sealed with it. `None` in keys of programs that did not say so yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seals: Option<Seals>,
    /// The 32 bytes of the key, encrypted with age for all recipients.
    pub wrapped: HexBytes,
}

impl ContentKeyObject {
    /// Reads a content key's object: signed by an agent that may seal this for its site. Needs no identity.
    pub async fn read(store: &Store, id: ContentKeyId) -> Result<Self, StoreError> {
        let name = object_key(&id);
        let damaged = |why: String| StoreError::Damaged(vec![Damage::new(&name, why)]);
        let object = store.get(&name).await?;
        let format = store.format();
        let (body, role) = signed::open(&format, Kind::ContentKey, &name, &object.bytes)
            .map_err(|e| damaged(e.to_string()))?;
        let body: Self = serde_json::from_slice(&body).map_err(|e| damaged(e.to_string()))?;
        // What compaction moves is sealed anew where the identity lives; all else is sealed at the source.
        let of_site = role.site.as_ref() == Some(&body.site);
        let may = match (body.seals, role.role) {
            (Some(Seals::Moved), Role::Operator) => true,
            (Some(Seals::Moved), Role::StandbyAgent) => of_site,
            (Some(Seals::Moved), Role::SourceAgent) | (_, Role::StandbyAgent | Role::Operator) => false,
            (_, Role::SourceAgent) => of_site,
        };
        if !may || body.id != id {
            return Err(damaged("it is signed by a key that may not speak for its site".into()));
        }
        Ok(body)
    }
}

/// What a content key is for: collection keeps a key for as long as something can still be sealed with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seals {
    /// The packs of its run.
    Packs,
    /// Segments of this timeline, for as long as it is shipped: long after its run has ended.
    Log(crate::logs::TimelineId),
    /// Packs that a compaction wrote; signed by a standby agent of the site, or by an operator.
    Moved,
}

/// The key of a content key's object.
pub(crate) fn object_key(id: &ContentKeyId) -> String {
    format!("keys/{id}")
}

/// The id that every group is sealed under.
pub(crate) const GROUP: [u8; 32] = [0; 32];

fn aad(kind: BlobKind, key: &ContentKeyId, id: &[u8; 32]) -> [u8; 49] {
    let mut aad = [0; 49];
    aad[0] = kind as u8;
    aad[1..17].copy_from_slice(&key.0);
    aad[17..].copy_from_slice(id);
    aad
}

fn cipher(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes are an AES-256 key"))
}

/// Seals with one content key. Nonces count up from zero and the key lives no longer than this value, so no nonce is
/// ever used twice with one key.
pub struct Sealer {
    id: ContentKeyId,
    cipher: LessSafeKey,
    counter: AtomicU64,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealer({})", self.id)
    }
}

impl Sealer {
    /// Draws a content key for a run's packs and makes it durable, wrapped, before anything is sealed with it.
    pub async fn begin(
        store: &Store,
        signer: &Signer,
        site: &SiteName,
        group: &GroupName,
        run: RunId,
    ) -> Result<Self, StoreError> {
        Self::begin_for(store, signer, site, group, run, Seals::Packs).await
    }

    /// The same for what `seals` says.
    pub async fn begin_for(
        store: &Store,
        signer: &Signer,
        site: &SiteName,
        group: &GroupName,
        run: RunId,
        seals: Seals,
    ) -> Result<Self, StoreError> {
        // For whom to seal is asked anew for each content key: a recipient may have been removed.
        store.refresh_keys().await?;
        let format = store.format();
        if !format.amended.damage.is_empty() {
            return Err(Refusal::KeysDamaged(format.amended.damage.clone()).into());
        }
        let key = Hex::<32>::random();
        let id = ContentKeyId::random();
        let body = ContentKeyObject {
            id,
            site: site.clone(),
            group: group.clone(),
            run,
            created: Timestamp::now(),
            recipients: format.recipients.clone(),
            seals: Some(seals),
            wrapped: HexBytes(keys::wrap(&key.0, &format.recipients)?),
        };
        let name = object_key(&id);
        let body = serde_json::to_vec(&body).expect("a content key object is valid JSON");
        let object = signed::seal(signer, Kind::ContentKey, &format.store, &name, &body);
        if create_or_recognise(&*store.backend, &name, object).await?.is_none() {
            return Err(StoreError::Conflict { key: name });
        }
        Ok(Self { id, cipher: cipher(&key.0), counter: AtomicU64::new(0) })
    }

    /// A content key that is known: only the worked example of the format uses one.
    #[cfg(test)]
    pub(crate) fn known(id: ContentKeyId, key: &[u8; 32]) -> Self {
        Self { id, cipher: cipher(key), counter: AtomicU64::new(0) }
    }

    pub fn content_key(&self) -> ContentKeyId {
        self.id
    }

    /// `nonce ‖ ciphertext ‖ tag`
    pub fn seal(&self, kind: BlobKind, id: &[u8; 32], plaintext: &[u8]) -> Vec<u8> {
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&count.to_be_bytes());
        let mut sealed = Vec::with_capacity(plaintext.len() + SEAL_OVERHEAD);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plaintext);
        let tag = self
            .cipher
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad(kind, &self.id, id)),
                &mut sealed[12..],
            )
            .expect("AES-GCM seals any block-sized input");
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }
}

/// Opens what is sealed: lives where the identity lives, at the standby.
pub struct Opener {
    identities: Vec<age::x25519::Identity>,
    pub(crate) secret: BlockSecret,
    keys: Mutex<HashMap<ContentKeyId, Arc<ContentKey>>>,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opener(***)")
    }
}

impl Opener {
    /// The block secret for a recipient that is about to be added.
    pub fn wrap_block_secret(&self, recipient: &str) -> Result<HexBytes, KeyError> {
        Ok(HexBytes(keys::wrap(self.secret.secret_bytes(), &[recipient.to_owned()])?))
    }
    /// The secret that agents share, for the key file of a new one.
    pub fn block_secret(&self) -> &BlockSecret {
        &self.secret
    }
    #[cfg(test)]
    pub(crate) fn identities(&self) -> Vec<age::x25519::Identity> {
        self.identities.clone()
    }
    /// The id under which a block with these bytes is known in the store: what a restored copy is compared by.
    pub fn block_id(&self, bytes: &[u8]) -> crate::keys::BlobId {
        self.secret.block_id(bytes)
    }
    /// Fails when none of the identities is among the store's recipients.
    pub fn new(store: &Store, identities: Vec<age::x25519::Identity>) -> Result<Self, StoreError> {
        let format = store.format();
        let added =
            format.amended.block_secrets.iter().find_map(|secret| keys::unwrap(&secret.0, &identities).ok());
        let secret = match added {
            Some(secret) => secret,
            None => keys::unwrap(&format.block_secret.0, &identities)?,
        };
        let secret: [u8; 32] = secret.try_into().map_err(|_| {
            StoreError::Damaged(vec![Damage::new(
                crate::format::FORMAT_KEY,
                "its block secret has a wrong length",
            )])
        })?;
        Ok(Self { identities, secret: BlockSecret::from_bytes(secret), keys: Mutex::default() })
    }

    /// The content key, read and unwrapped once.
    pub async fn content_key(&self, store: &Store, id: ContentKeyId) -> Result<Arc<ContentKey>, StoreError> {
        let mut keys = self.keys.lock().await;
        if let Some(key) = keys.get(&id) {
            return Ok(key.clone());
        }
        let key = Arc::new(ContentKey { id, cipher: cipher(&self.raw_key(store, id).await?) });
        keys.insert(id, key.clone());
        Ok(key)
    }

    /// The content key's own bytes: out of its object, or out of a wrap that was made for one of these identities since.
    pub(crate) async fn raw_key(&self, store: &Store, id: ContentKeyId) -> Result<[u8; 32], StoreError> {
        let name = object_key(&id);
        let damaged = |why: &str| StoreError::Damaged(vec![Damage::new(&name, why)]);
        let sized = |plain: Vec<u8>| plain.try_into().map_err(|_| damaged("the key has a wrong length"));
        let body = ContentKeyObject::read(store, id).await?;
        if let Ok(plain) = keys::unwrap(&body.wrapped.0, &self.identities) {
            return sized(plain);
        }
        let mine: Vec<String> = self.identities.iter().map(|i| i.to_public().to_string()).collect();
        for recipient in &mine {
            let wraps = amendments::find_wrap(store, recipient, id).await?;
            if let Some(plain) = wraps.good.iter().find_map(|w| keys::unwrap(w, &self.identities).ok()) {
                return sized(plain);
            }
            if !wraps.damage.is_empty() {
                return Err(StoreError::Damaged(wraps.damage));
            }
        }
        if mine.iter().any(|recipient| body.recipients.contains(recipient)) {
            return Err(damaged("it says that it is wrapped for this identity, and is not"));
        }
        Err(KeyError::Invalid(format!(
            "{name} is not wrapped for this identity: it was drawn before the recipient was added, or after it was removed\n  hint: `farsite store keys list` counts what each recipient can open; `farsite store keys rotate`, by somebody who can open it, wraps it for all"
        ))
        .into())
    }
}

/// One unwrapped content key.
pub struct ContentKey {
    id: ContentKeyId,
    cipher: LessSafeKey,
}

impl ContentKey {
    #[cfg(test)]
    pub(crate) fn known(id: ContentKeyId, key: &[u8; 32]) -> Self {
        Self { id, cipher: cipher(key) }
    }

    /// `None` when the bytes are not what was sealed under this kind and id.
    pub fn open(&self, kind: BlobKind, id: &[u8; 32], sealed: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = sealed.to_vec();
        let plain = self.open_in_place(kind, id, &mut bytes)?;
        bytes.truncate(plain.end);
        bytes.drain(..plain.start);
        Some(bytes)
    }

    /// The same without a copy: where in `sealed` the plaintext stands now. After `None` its bytes are of no use.
    pub fn open_in_place(&self, kind: BlobKind, id: &[u8; 32], sealed: &mut [u8]) -> Option<Range<usize>> {
        if sealed.len() < SEAL_OVERHEAD {
            return None;
        }
        let nonce: [u8; NONCE_BYTES] = sealed[..NONCE_BYTES].try_into().ok()?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let aad = Aad::from(aad(kind, &self.id, id));
        let length = self.cipher.open_in_place(nonce, aad, &mut sealed[NONCE_BYTES..]).ok()?.len();
        Some(NONCE_BYTES..NONCE_BYTES + length)
    }
}
