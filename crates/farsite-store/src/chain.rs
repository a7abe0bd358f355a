//! Numbered, hash-chained, create-only entries: the form of ledgers and journals. Each entry is created at the next
//! number or not at all, carries the hash of the one before and a nonce, and is signed. No lock, no clock.

use std::marker::PhantomData;

use farsite_model::StoreTime;
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backend::create_or_recognise;
use crate::hex::Hex;
use crate::keys::{KeyRole, Signer};
use crate::signed::{self, Kind};
use crate::{Store, StoreError};

/// Hash of an entry's whole object.
pub type EntryHash = Hex<32>;

/// What the first entry carries as the hash of the one before.
pub const GENESIS: EntryHash = Hex([0; 32]);

/// Entries read at once.
const READS: usize = 8;

/// An entry's envelope (JSON); `T` is what it says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope<T> {
    pub version: u32,
    pub number: u64,
    pub prev: EntryHash,
    /// The writer's own random value: after a lost answer it recognises its entry by it.
    pub nonce: Hex<8>,
    /// The store's time as the writer saw it last.
    pub store_time: StoreTime,
    /// The writer's own clock.
    pub at: Timestamp,
    #[serde(flatten)]
    pub says: T,
}

/// One entry as read back.
#[derive(Debug, Clone)]
pub struct Entry<T> {
    pub number: u64,
    pub hash: EntryHash,
    /// The store's time of writing.
    pub written: StoreTime,
    /// `Err` says why the entry has no effect; it keeps its number all the same.
    pub said: Result<(Envelope<T>, KeyRole), Void>,
}

/// Why an entry has no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Void {
    /// No valid signature: its bytes were changed, or they never were an entry.
    #[error("{0}")]
    Unreadable(String),
    /// Signed, but not for this place.
    #[error("{0}")]
    Misplaced(String),
}

/// The end of a chain: the number that the next entry takes, and what it must name as the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub next: u64,
    pub prev: EntryHash,
}

impl Head {
    pub const START: Head = Head { next: 0, prev: GENESIS };
}

/// A chain in a store.
#[derive(Clone)]
pub struct Chain<T> {
    store: Store,
    /// `ledger/cloud`, `journal/<promotion>`; no trailing slash.
    prefix: String,
    kind: Kind,
    says: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned + Send> Chain<T> {
    pub fn new(store: &Store, prefix: String, kind: Kind) -> Self {
        Self { store: store.clone(), prefix, kind, says: PhantomData }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Numbers are padded so that listings are in order; the format keeps room for 10^16 entries.
    pub fn key(&self, number: u64) -> String {
        format!("{}/{number:016}", self.prefix)
    }

    /// All entries from `from` on, in order, and the new end. An entry with a wrong signature, number or
    /// predecessor is returned as void. A gap in the numbers means that an object was deleted: damage.
    pub async fn read(&self, from: Head) -> Result<(Vec<Entry<T>>, Head), StoreError> {
        let after = from.next.checked_sub(1).map(|n| self.key(n));
        let listed = self.store.backend.list(&format!("{}/", self.prefix), after.as_deref()).await?;
        let mut expected = from.next;
        for object in &listed {
            if object.key != self.key(expected) {
                return Err(StoreError::Damaged(vec![crate::Damage::new(
                    self.key(expected),
                    format!("missing: {} exists, so an entry of this chain was deleted", object.key),
                )]));
            }
            expected += 1;
        }
        let objects: Vec<_> = stream::iter(listed)
            .map(|listed| async move { self.store.get(&listed.key).await.map(|object| (listed.key, object)) })
            .buffered(READS)
            .collect()
            .await;
        let mut head = from;
        let mut after_unreadable = false;
        let mut entries = Vec::with_capacity(objects.len());
        for result in objects {
            let (key, object) = result?;
            let hash = Hex(*blake3::hash(&object.bytes).as_bytes());
            let mut said = self.open(&key, head, &object.bytes);
            if let Ok((envelope, _)) = &said
                && envelope.prev != head.prev
                && !after_unreadable
            {
                // (Behind an entry whose bytes were changed, the hash cannot match: that one is the damage, not this.)
                said = Err(Void::Misplaced("the entry before it is not the one that it was written after".into()));
            }
            after_unreadable = matches!(said, Err(Void::Unreadable(_)));
            entries.push(Entry { number: head.next, hash, written: object.written, said });
            head = Head { next: head.next + 1, prev: hash };
        }
        Ok((entries, head))
    }

    fn open(&self, key: &str, head: Head, bytes: &bytes::Bytes) -> Result<(Envelope<T>, KeyRole), Void> {
        let (body, role) = signed::open(&self.store.format, self.kind, key, bytes)
            .map_err(|error| Void::Unreadable(error.to_string()))?;
        let envelope: Envelope<T> =
            serde_json::from_slice(&body).map_err(|error| Void::Misplaced(error.to_string()))?;
        if envelope.version != 1 {
            return Err(Void::Misplaced(format!("entry version {} is not known", envelope.version)));
        }
        if envelope.number != head.next {
            return Err(Void::Misplaced(format!("it says it is number {}", envelope.number)));
        }
        Ok((envelope, role.clone()))
    }

    /// Creates the entry at exactly `head`. `None`: somebody else has that number.
    pub async fn append(&self, head: Head, signer: &Signer, says: T) -> Result<Option<(Head, StoreTime)>, StoreError> {
        let envelope = Envelope {
            version: 1,
            number: head.next,
            prev: head.prev,
            nonce: Hex::random(),
            store_time: self.store.backend.time().await?,
            at: Timestamp::now(),
            says,
        };
        let key = self.key(head.next);
        let body = serde_json::to_vec(&envelope).expect("an entry is valid JSON");
        let object = signed::seal(signer, self.kind, &self.store.format.store, &key, &body);
        let hash = Hex(*blake3::hash(&object).as_bytes());
        let written = create_or_recognise(&*self.store.backend, &key, object).await?;
        Ok(written.map(|time| (Head { next: head.next + 1, prev: hash }, time)))
    }
}
