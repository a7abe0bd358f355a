//! The format object: written once by `farsite init`, it names version, block size, hash and cipher suites, and
//! which key may write which kind of entry. In memory it stands as amended since (see [`crate::amendments`]): its
//! recipients are those of now, its keys are all that ever were listed.

use bytes::Bytes;
use farsite_model::quantity::ByteSize;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::amendments::{Amended, Retired};
use crate::backend::{BackendError, SharedBackend, create_or_recognise};
use crate::hex::{Hex, HexBytes};
use crate::keys::{self, BlockSecret, KeyId, KeyRole, Role};

/// The version that this code writes, and the only one it reads.
pub const FORMAT_VERSION: u32 = 1;
/// The suites of version 1.
const HASH: &str = "blake3-keyed-256";
const CIPHER: &str = "aes-256-gcm";
const COMPRESSION: &str = "zstd";
const SIGNATURE: &str = "ed25519";

/// The key of the format object.
pub const FORMAT_KEY: &str = "format";

/// Contents of the format object (JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    pub version: u32,
    /// Random; part of every signature.
    pub store: Hex<16>,
    pub created: Timestamp,
    /// Block size for items whose policy says nothing, in bytes.
    pub block_bytes: u32,
    /// `blake3-keyed-256`
    pub hash: String,
    /// `aes-256-gcm`
    pub cipher: String,
    /// `zstd`
    pub compression: String,
    /// `ed25519`
    pub signature: String,
    /// age recipients; whoever holds one of their identities can open what is sealed from now on.
    pub recipients: Vec<String>,
    /// The block secret, wrapped for the recipients, so that the standby can check block ids with its identity alone.
    pub block_secret: HexBytes,
    /// Which key may write which kind of entry; retired keys as well, for what they signed before.
    pub keys: Vec<KeyRole>,
    /// What the amendments say. No part of the object.
    #[serde(skip)]
    pub amended: Amended,
}

impl Format {
    pub fn new(
        recipients: Vec<String>,
        keys: Vec<KeyRole>,
        secret: &BlockSecret,
        created: Timestamp,
    ) -> Result<Self, keys::KeyError> {
        Ok(Self {
            version: FORMAT_VERSION,
            store: Hex::random(),
            created,
            block_bytes: 64 << 10,
            hash: HASH.into(),
            cipher: CIPHER.into(),
            compression: COMPRESSION.into(),
            signature: SIGNATURE.into(),
            block_secret: HexBytes(keys::wrap(secret.secret_bytes(), &recipients)?),
            recipients,
            keys,
            amended: Amended::default(),
        })
    }

    /// A key that is or was listed.
    pub fn key(&self, id: &KeyId) -> Option<&KeyRole> {
        self.keys.iter().find(|role| keys::key_id(&role.key) == *id)
    }

    /// A key that may sign now.
    pub fn in_force(&self, id: &KeyId) -> Option<&KeyRole> {
        self.key(id).filter(|_| self.retired(id).is_none())
    }

    pub fn retired(&self, id: &KeyId) -> Option<&Retired> {
        self.amended.retired.get(id)
    }

    /// Keys of this role that may sign now.
    pub fn holder(&self, role: Role) -> impl Iterator<Item = &KeyRole> {
        self.keys.iter().filter(move |k| k.role == role && self.retired(&keys::key_id(&k.key)).is_none())
    }

    /// Hash of the object's bytes: pinned in configurations, so that a replaced format object is found out.
    pub fn fingerprint(bytes: &[u8]) -> Hex<16> {
        Hex(blake3::hash(bytes).as_bytes()[..16].try_into().expect("a hash has 32 bytes"))
    }

    pub async fn create(&self, backend: &SharedBackend) -> Result<Hex<16>, StoreError> {
        let bytes = Bytes::from(serde_json::to_vec_pretty(self).expect("a format is valid JSON"));
        let fingerprint = Self::fingerprint(&bytes);
        match create_or_recognise(&**backend, FORMAT_KEY, bytes).await? {
            Some(_) => Ok(fingerprint),
            None => Err(StoreError::AlreadyInitialised { store: backend.describe() }),
        }
    }

    /// Reads the format object; `pinned` is the fingerprint that the configuration expects.
    pub async fn read(
        backend: &SharedBackend,
        pinned: Option<&Hex<16>>,
    ) -> Result<(Self, Hex<16>), StoreError> {
        let store = backend.describe();
        let object = match backend.get(FORMAT_KEY).await {
            Err(BackendError::Missing { .. }) => return Err(StoreError::NotInitialised { store }),
            Err(BackendError::Unreadable { why, .. }) => {
                return Err(StoreError::Damaged(vec![crate::Damage::new(FORMAT_KEY, why)]));
            }
            other => other?,
        };
        let fingerprint = Self::fingerprint(&object.bytes);
        if let Some(pinned) = pinned
            && *pinned != fingerprint
        {
            return Err(StoreError::WrongStore { store, expected: *pinned, found: fingerprint });
        }
        let damaged = |why: String| StoreError::Damaged(vec![crate::Damage::new(FORMAT_KEY, why)]);
        let version: Version = serde_json::from_slice(&object.bytes).map_err(|e| damaged(e.to_string()))?;
        if version.version != FORMAT_VERSION {
            return Err(StoreError::UnknownVersion { store, found: version.version });
        }
        let format: Self = serde_json::from_slice(&object.bytes).map_err(|e| damaged(e.to_string()))?;
        let sane = ByteSize(u64::from(format.block_bytes));
        if !format.block_bytes.is_power_of_two() || !(4 << 10..=4 << 20).contains(&format.block_bytes) {
            return Err(damaged(format!("a block size of {sane} is not possible")));
        }
        for (what, said, known) in [
            ("hash", &format.hash, HASH),
            ("cipher", &format.cipher, CIPHER),
            ("compression", &format.compression, COMPRESSION),
            ("signature", &format.signature, SIGNATURE),
        ] {
            if said != known {
                return Err(damaged(format!("the {what} {said:?} is not known; use a newer farsite")));
            }
        }
        Ok((format, fingerprint))
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}
