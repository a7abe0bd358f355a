//! What has changed about the store's keys since `farsite init`: recipients come and go, signing keys are added and
//! retired. The format object is never changed and its pin holds; numbered, signed amendments (in the form of ledger
//! entries) are folded over it in order.
//!
//! What must hold: an amendment counts when an operator's key signed it that is in force at its number; whoever is about
//! to seal has read the amendments and found them undamaged; a shorter or other chain than was seen before is damage.

mod fold;
mod retire;
mod roster;
mod wraps;

use std::sync::Arc;

use farsite_model::StoreTime;
use serde::{Deserialize, Serialize};

pub use fold::{Amended, Recipient, Retired, Said};
pub use retire::{plan_retirement, retire, would};
pub use roster::{Roster, roster};
pub use wraps::{Wrapped, fingerprint, wrap_missing};
pub(crate) use wraps::{find as find_wrap, wrap_of};

use crate::chain::{Chain, Head};
use crate::format::Format;
use crate::hex::HexBytes;
use crate::keys::{KeyId, KeyRole, Signer};
use crate::ledger::Refusal;
use crate::signed::Kind;
use crate::{Store, StoreError};

/// The folder of the amendments.
pub const PREFIX: &str = "amendments";

/// An amendment that lost its number to another operator this often meets a store that lists wrongly.
const MOST_LOST_RACES: u64 = 100;

/// One change; `type` names it in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Amendment {
    /// From here on content keys are wrapped for it as well.
    RecipientAdded {
        recipient: String,
        name: String,
        /// The block secret, encrypted for this recipient alone.
        block_secret: HexBytes,
        who: String,
        reason: String,
    },
    /// From here on no content key is wrapped for it. What it could open it still can.
    RecipientRemoved {
        recipient: String,
        /// One recipient may be left.
        single_recipient: bool,
        who: String,
        reason: String,
    },
    SignerAdded {
        signer: KeyRole,
        who: String,
        reason: String,
    },
    /// From here on the key signs nothing.
    SignerRetired {
        key: KeyId,
        /// What it signed before and still counts.
        counts: Counts,
        who: String,
        reason: String,
    },
    /// What these numbers said has been said again, or was nothing: they are damage no more.
    DamageAccepted {
        numbers: Vec<u64>,
        who: String,
        reason: String,
    },
}

/// How far what a retired key signed still counts. What is not named here does not count at all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// By chain (`ledger/cloud`, `sites/north`, `journal/…`): the number of the last entry.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub entries: std::collections::BTreeMap<String, u64>,
    /// By timeline (`<group>/<timeline>`).
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub logs: std::collections::BTreeMap<String, LogEnd>,
}

/// The end of a log that a retired key has shipped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    /// The last sequence.
    pub last: u64,
    /// Where several segments had one sequence: the name of the one that counts. (No map by number: a statement that is told
    /// by its `type` reads none back from JSON.)
    #[serde(default, skip_serializing_if = "std::collections::BTreeSet::is_empty")]
    pub chosen: std::collections::BTreeSet<String>,
}

impl Amendment {
    pub fn who(&self) -> (&str, &str) {
        match self {
            Self::RecipientAdded { who, reason, .. }
            | Self::RecipientRemoved { who, reason, .. }
            | Self::SignerAdded { who, reason, .. }
            | Self::SignerRetired { who, reason, .. }
            | Self::DamageAccepted { who, reason, .. } => (who, reason),
        }
    }

    /// For messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::RecipientAdded { .. } => "recipient added",
            Self::RecipientRemoved { .. } => "recipient removed",
            Self::SignerAdded { .. } => "signer added",
            Self::SignerRetired { .. } => "signer retired",
            Self::DamageAccepted { .. } => "damage accepted",
        }
    }
}

fn chain(store: &Store) -> Chain<Amendment> {
    Chain::new(store, PREFIX.to_owned(), Kind::Amendment)
}

/// The format object with all its amendments. `seen` is how far they have been read before.
pub(crate) async fn read(store: &Store, object: &Arc<Format>, seen: Head) -> Result<Format, StoreError> {
    let mut fold = fold::Folding::over(object);
    let head = chain(store).read_into(Head::START, &mut fold).await?;
    Ok(fold.finish(head, seen))
}

/// Appends what `decide` says about the newest state. When another operator takes the number first, the amendments are read
/// on and `decide` is asked again. An amendment that would have no effect is not written.
pub async fn append(
    store: &Store,
    signer: &Signer,
    mut decide: impl FnMut(&Format) -> Result<Amendment, Refusal> + Send,
) -> Result<(u64, StoreTime), StoreError> {
    for round in 0..MOST_LOST_RACES {
        if round > 0 {
            // The winner's entry may take a moment to be listed.
            tokio::time::sleep(std::time::Duration::from_millis(round.min(20))).await;
        }
        store.refresh_keys().await?;
        let format = store.format();
        let amendment = decide(&format)?;
        let Some(by) = format.in_force(&signer.key_id()) else {
            let role = "this key is not listed in the store, or was retired".into();
            return Err(Refusal::Role { what: "an amendment", role }.into());
        };
        fold::may_say(&format, &amendment, by)?;
        let head = format.amended.head;
        if let Some((_, written)) = chain(store).append(head, signer, amendment).await? {
            // It is durable: what cannot be read back now is no reason to call it failed.
            if let Err(error) = store.refresh_keys().await {
                tracing::warn!(number = head.next, "written, and not read back: {error}");
            }
            return Ok((head.next, written));
        }
    }
    Err(StoreError::Conflict { key: format!("{PREFIX}/{:016}", store.format().amended.head.next) })
}

/// Appends without asking: what a thief would do. Only tests call this.
#[doc(hidden)]
pub async fn append_unchecked(
    store: &Store,
    signer: &Signer,
    amendment: Amendment,
) -> Result<u64, StoreError> {
    loop {
        store.refresh_keys().await?;
        let head = store.format().amended.head;
        if chain(store).append(head, signer, amendment.clone()).await?.is_some() {
            store.refresh_keys().await?;
            return Ok(head.next);
        }
    }
}
