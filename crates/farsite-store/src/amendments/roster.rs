//! Who can open and who may sign: for `farsite store keys list`, and for what must be known before a recipient goes.
//! Needs no identity: a content key names the recipients that it was wrapped for, and wraps are signed.

use std::collections::BTreeMap;

use futures::stream::{self, StreamExt};
use serde::Serialize;

use super::fold::{Recipient, Said};
use super::wraps::{self, Known};
use crate::hex::Hex;
use crate::keys::{self, KeyId, PublicKey, Role};
use crate::seal::{ContentKeyId, ContentKeyObject};
use crate::{Damage, Store, StoreError};

/// Requests under way at once.
const REQUESTS: usize = 16;

/// A recipient and what it can open.
#[derive(Debug, Clone, Serialize)]
pub struct RecipientLine {
    #[serde(flatten)]
    pub recipient: Recipient,
    /// What is sealed from now on is sealed for it.
    pub in_force: bool,
    /// How many content keys it can open.
    pub opens: u64,
}

/// A signing key.
#[derive(Debug, Clone, Serialize)]
pub struct SignerLine {
    pub id: KeyId,
    pub key: PublicKey,
    pub role: Role,
    pub site: Option<farsite_model::SiteName>,
    pub name: String,
    pub in_force: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub added: Option<Said>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retired: Option<Said>,
}

/// Recipients, signing keys, and content keys by who can open them.
#[derive(Debug, Clone, Serialize)]
pub struct Roster {
    pub store: String,
    /// The fingerprint of the format object: no amendment changes it.
    pub id: Hex<16>,
    pub created: jiff::Timestamp,
    /// How many there are.
    pub amendments: u64,
    pub recipients: Vec<RecipientLine>,
    pub signers: Vec<SignerLine>,
    pub content_keys: u64,
    /// Content keys that no recipient in force can open.
    pub opened_by_nobody: Vec<ContentKeyId>,
    /// Amendments without effect: number and why.
    pub void: Vec<(u64, String)>,
    pub damage: Vec<Damage>,
    /// For each recipient in force the content keys that it alone can open.
    #[serde(skip)]
    pub only: BTreeMap<String, Vec<ContentKeyId>>,
}

/// Reads every content key's object.
pub async fn roster(store: &Store) -> Result<Roster, StoreError> {
    store.refresh_keys().await?;
    let format = store.format();
    // A recipient that came, went and came again stands once.
    let mut recipients: Vec<RecipientLine> = Vec::new();
    for recipient in &format.amended.recipients {
        recipients.retain(|line| line.recipient.recipient != recipient.recipient);
        let in_force = format.recipients.contains(&recipient.recipient);
        recipients.push(RecipientLine { recipient: recipient.clone(), in_force, opens: 0 });
    }
    let everybody: Vec<String> = recipients.iter().map(|line| line.recipient.recipient.clone()).collect();
    let known = Known::list(store, &everybody).await?;
    let mut roster = Roster {
        store: store.backend.describe(),
        id: store.id,
        created: format.created,
        amendments: format.amended.head.next,
        recipients,
        signers: format
            .keys
            .iter()
            .map(|role| {
                let id = keys::key_id(&role.key);
                let retired = format.retired(&id).map(|retired| retired.said.clone());
                SignerLine {
                    id,
                    key: role.key,
                    role: role.role,
                    site: role.site.clone(),
                    name: role.name.clone(),
                    in_force: retired.is_none(),
                    added: format.amended.added.get(&id).cloned(),
                    retired,
                }
            })
            .collect(),
        content_keys: known.keys.len() as u64,
        opened_by_nobody: Vec::new(),
        void: format.amended.void.clone(),
        damage: format.amended.damage.clone(),
        only: BTreeMap::new(),
    };
    let mut work = stream::iter(known.keys.clone())
        .map(|id| {
            let (known, everybody) = (&known, &everybody);
            async move { (id, openers(store, known, everybody, id).await) }
        })
        .buffered(REQUESTS);
    while let Some((id, result)) = work.next().await {
        let openers = match result {
            Ok(openers) => openers,
            Err(StoreError::Damaged(damage)) => {
                roster.damage.extend(damage);
                continue;
            }
            Err(other) => return Err(other),
        };
        let mut in_force = Vec::new();
        for line in &mut roster.recipients {
            if openers.contains(&line.recipient.recipient) {
                line.opens += 1;
                if line.in_force {
                    in_force.push(line.recipient.recipient.clone());
                }
            }
        }
        match in_force.as_slice() {
            [] => roster.opened_by_nobody.push(id),
            [alone] => roster.only.entry(alone.clone()).or_default().push(id),
            _ => {}
        }
    }
    Ok(roster)
}

/// Which of these recipients can open a content key.
async fn openers(
    store: &Store,
    known: &Known,
    everybody: &[String],
    id: ContentKeyId,
) -> Result<Vec<String>, StoreError> {
    let body = ContentKeyObject::read(store, id).await?;
    let mut openers = Vec::new();
    for recipient in everybody {
        let opens = body.recipients.contains(recipient)
            || (known.may_wrap(recipient, id) && !wraps::find(store, recipient, id).await?.good.is_empty());
        if opens {
            openers.push(recipient.clone());
        }
    }
    Ok(openers)
}
