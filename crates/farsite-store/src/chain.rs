//! Numbered, hash-chained, create-only entries: the form of ledgers and journals. Each entry is created at the next
//! number or not at all, carries the hash of the one before and a nonce, and is signed. No lock, no clock.

use std::marker::PhantomData;
use std::sync::Arc;

use farsite_model::StoreTime;
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backend::create_or_recognise;
use crate::format::Format;
use crate::hex::Hex;
use crate::keys::{KeyRole, Signer};
use crate::signed::{self, Kind, SignatureError};
use crate::{Store, StoreError};

/// Hash of an entry's whole object.
pub type EntryHash = Hex<32>;

/// What the first entry carries as the hash of the one before.
pub const GENESIS: EntryHash = Hex([0; 32]);

/// Entries read at once.
const READS: usize = 8;

/// A hole in the numbers is deleted entries up to this width. An object further out is no entry of this chain: anybody who
/// may create objects could put one there, and it must not keep a failover from reading the rest.
const WIDEST_GAP: u64 = 1000;

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
    /// False: both this entry and the one before it are well signed, and yet this one was written after another one.
    /// One of the two was replaced: damage. It has its effect all the same, because voiding it could undo an epoch.
    pub follows: bool,
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
    /// Signed, and of a version or kind that this program does not know: written by a newer one.
    #[error("{0}")]
    Unknown(String),
    /// Signed by a key that had been retired: whoever holds it has written behind its end.
    #[error("{0}")]
    Retired(String),
}

/// The end of a chain: the number that the next entry takes, and what it must name as the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub next: u64,
    pub prev: EntryHash,
}

impl Head {
    pub const START: Head = Head { next: 0, prev: GENESIS };
}

impl Default for Head {
    fn default() -> Self {
        Self::START
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Takes a chain's entries in order, and says by which keys the next one is judged.
pub(crate) trait Fold<T> {
    fn format(&self) -> Arc<Format>;
    fn apply(&mut self, entry: Entry<T>);
    /// The next entry is signed by a key that [`Fold::format`] does not list.
    fn meets_a_stranger(&mut self) {}
}

/// All entries, judged by the keys that are known now.
struct All<T> {
    format: Arc<Format>,
    entries: Vec<Entry<T>>,
    strangers: bool,
}

impl<T> Fold<T> for All<T> {
    fn format(&self) -> Arc<Format> {
        self.format.clone()
    }
    fn apply(&mut self, entry: Entry<T>) {
        self.entries.push(entry);
    }
    fn meets_a_stranger(&mut self) {
        self.strangers = true;
    }
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

    /// All entries from `from` on, in order, and the new end. An entry with a wrong signature or number is returned as
    /// void. So is one that is missing while a later one exists: it was deleted, and the rest still counts.
    pub async fn read(&self, from: Head) -> Result<(Vec<Entry<T>>, Head), StoreError> {
        let mut all = All { format: self.store.format(), entries: Vec::new(), strangers: false };
        let mut head = self.read_into(from, &mut all).await?;
        if all.strangers {
            // A key may have been added since the amendments were read.
            let known = all.format.amended.head;
            self.store.refresh_keys().await?;
            let format = self.store.format();
            if format.amended.head != known {
                all = All { format, entries: Vec::new(), strangers: false };
                head = self.read_into(from, &mut all).await?;
            }
        }
        Ok((all.entries, head))
    }

    /// The same into a fold that changes with each entry.
    pub(crate) async fn read_into(&self, from: Head, fold: &mut impl Fold<T>) -> Result<Head, StoreError> {
        let numbers = self.numbers(from.next).await?;
        let objects: Vec<_> = stream::iter(numbers)
            .map(|(number, there)| async move {
                let key = self.key(number);
                if there {
                    self.store.get(&key).await.map(|object| (key, Ok(object)))
                } else {
                    Ok((key, Err("missing, and a later entry exists: it was deleted".to_owned())))
                }
            })
            .buffered(READS)
            .collect()
            .await;
        let mut head = from;
        let mut after_unreadable = false;
        for result in objects {
            let (hash, written, said) = match result {
                Ok((key, Ok(object))) => {
                    let hash = Hex(*blake3::hash(&object.bytes).as_bytes());
                    (hash, object.written, self.open(fold, &key, head, &object.bytes))
                }
                Ok((_, Err(why))) => (GENESIS, StoreTime(Timestamp::UNIX_EPOCH), Err(Void::Unreadable(why))),
                // Listed, and its bytes are not to be had.
                Err(StoreError::Damaged(found)) => {
                    let why = found.first().map_or_else(String::new, |damage| damage.why.clone());
                    (GENESIS, StoreTime(Timestamp::UNIX_EPOCH), Err(Void::Unreadable(why)))
                }
                Err(other) => return Err(other),
            };
            // Behind an entry whose bytes were changed, the hash cannot match: that one is the damage, not this.
            let follows =
                after_unreadable || !matches!(&said, Ok((envelope, _)) if envelope.prev != head.prev);
            after_unreadable = matches!(said, Err(Void::Unreadable(_)));
            fold.apply(Entry { number: head.next, hash, written, said, follows });
            head = Head { next: head.next + 1, prev: hash };
        }
        Ok(head)
    }

    /// The numbers from `first` on, and whether each is there.
    pub(crate) async fn numbers(&self, first: u64) -> Result<Vec<(u64, bool)>, StoreError> {
        let after = first.checked_sub(1).map(|n| self.key(n));
        let listed = self.store.backend.list(&format!("{}/", self.prefix), after.as_deref()).await?;
        let mut numbers = Vec::with_capacity(listed.len());
        let mut expected = first;
        for object in &listed {
            // Only what this program would write is an entry: a stray file must not hide the rest.
            let Some(number) = self.number(&object.key).filter(|number| *number >= expected) else {
                continue;
            };
            if number - expected > WIDEST_GAP {
                tracing::warn!("{} is no entry of its ledger: it lies far behind the last one", object.key);
                break;
            }
            for between in expected..number {
                // A listing is not one instant: an entry that was created meanwhile may be left out of it.
                let there = match self.store.backend.size(&self.key(between)).await {
                    Ok(_) => true,
                    Err(error) if error.is_missing() => false,
                    Err(error) => return Err(error.into()),
                };
                numbers.push((between, there));
            }
            numbers.push((number, true));
            expected = number + 1;
        }
        Ok(numbers)
    }

    fn number(&self, key: &str) -> Option<u64> {
        let number = key.rsplit('/').next()?.parse().ok()?;
        (self.key(number) == key).then_some(number)
    }

    fn open(
        &self,
        fold: &mut impl Fold<T>,
        key: &str,
        head: Head,
        bytes: &bytes::Bytes,
    ) -> Result<(Envelope<T>, KeyRole), Void> {
        let format = fold.format();
        let (body, role) = signed::open(&format, self.kind, key, bytes).map_err(|error| {
            if matches!(error, SignatureError::UnknownKey(_)) {
                fold.meets_a_stranger();
            }
            Void::Unreadable(error.to_string())
        })?;
        let Version { version } =
            serde_json::from_slice(&body).map_err(|error| Void::Unknown(error.to_string()))?;
        if version != 1 {
            return Err(Void::Unknown(format!("entry version {version} is not known; use a newer farsite")));
        }
        let envelope: Envelope<T> = serde_json::from_slice(&body).map_err(|error| {
            Void::Unknown(format!("this program does not know what it says ({error}); use a newer farsite"))
        })?;
        if envelope.number != head.next {
            return Err(Void::Misplaced(format!("it says it is number {}", envelope.number)));
        }
        if let Some(retired) = format.retired(&crate::keys::key_id(&role.key))
            && !retired.counts(&self.prefix, head.next)
        {
            return Err(Void::Retired(format!(
                "{} was retired by amendment {}, and this lies behind what still counts",
                crate::keys::describe(role),
                retired.said.number
            )));
        }
        Ok((envelope, role.clone()))
    }

    /// Creates the entry at exactly `head`. `None`: somebody else has that number.
    pub async fn append(
        &self,
        head: Head,
        signer: &Signer,
        says: T,
    ) -> Result<Option<(Head, StoreTime)>, StoreError> {
        // A store that was emptied or replaced under a running process would take the number as free.
        if let Some(before) = head.next.checked_sub(1)
            && let Err(error) = self.store.backend.size(&self.key(before)).await
        {
            return Err(crate::named(&self.key(before), error));
        }
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
        let object = signed::seal(signer, self.kind, &self.store.format().store, &key, &body);
        let hash = Hex(*blake3::hash(&object).as_bytes());
        let written = create_or_recognise(&*self.store.backend, &key, object).await?;
        Ok(written.map(|time| (Head { next: head.next + 1, prev: hash }, time)))
    }
}
