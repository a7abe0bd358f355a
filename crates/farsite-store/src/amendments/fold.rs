//! The fold: the format object and its amendments in, the keys of now out. Pure; an amendment that its signer may not
//! say, or that does not fit, keeps its number and has no effect.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use farsite_model::StoreTime;

use super::{Amendment, Counts, LogEnd, PREFIX};
use crate::Damage;
use crate::chain::{Entry, EntryHash, Fold, Head, Void};
use crate::format::Format;
use crate::hex::HexBytes;
use crate::keys::{self, KeyId, KeyRole, Role};
use crate::ledger::Refusal;

/// Who said something, when and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Said {
    /// Of the amendment.
    pub number: u64,
    /// The store's time when it was written.
    pub at: StoreTime,
    pub who: String,
    pub reason: String,
    /// The key that signed it.
    pub by: String,
}

/// A recipient that is or was one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Recipient {
    pub recipient: String,
    pub name: String,
    /// Absent: since `farsite init`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub added: Option<Said>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removed: Option<Said>,
}

/// A signing key's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retired {
    pub said: Said,
    pub counts: Counts,
}

impl Retired {
    /// Whether an entry that the key signed counts: no more than its retirement names.
    pub fn counts(&self, chain: &str, number: u64) -> bool {
        // Its amendments up to the one that retired it.
        let last = if chain == PREFIX { Some(&self.said.number) } else { self.counts.entries.get(chain) };
        last.is_some_and(|last| number <= *last)
    }

    /// The end of a log timeline that the key has shipped.
    pub fn log(&self, group: &str, timeline: &str) -> Option<&LogEnd> {
        self.counts.logs.get(&format!("{group}/{timeline}"))
    }
}

/// All that the amendments say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Amended {
    /// The end of the chain.
    pub head: Head,
    /// All that ever were; in force are those of [`Format::recipients`].
    pub recipients: Vec<Recipient>,
    /// Signing keys that were added, by whom and when.
    pub added: BTreeMap<KeyId, Said>,
    pub retired: BTreeMap<KeyId, Retired>,
    /// The block secret for recipients that were added.
    pub block_secrets: Vec<HexBytes>,
    /// Amendments without effect: number and why.
    pub void: Vec<(u64, String)>,
    /// Amendments whose bytes are not what was written, or that are gone. Nobody seals behind damage.
    pub damage: Vec<Damage>,
}

/// The same rules for writers and for the fold.
pub(super) fn may_say(format: &Format, amendment: &Amendment, by: &KeyRole) -> Result<(), Refusal> {
    if by.role != Role::Operator {
        let role = format!("{} {}; needs an operator", by.role, by.name);
        return Err(Refusal::Role { what: amendment.name(), role });
    }
    let refused = |why: String| Err(Refusal::Unsafe(why));
    match amendment {
        Amendment::RecipientAdded { recipient, .. } => {
            if let Err(why) = recipient.parse::<age::x25519::Recipient>() {
                return refused(format!("{recipient} is no age recipient: {why}; nothing was changed"));
            }
            if format.recipients.contains(recipient) {
                return refused(format!("{recipient} is a recipient already; nothing was changed"));
            }
        }
        Amendment::RecipientRemoved { recipient, single_recipient, .. } => {
            if !format.recipients.contains(recipient) {
                return refused(format!("{recipient} is no recipient now; nothing was changed"));
            }
            match format.recipients.len() - 1 {
                0 => {
                    return refused(format!(
                        "{recipient} is the last recipient: nobody could open what is sealed; nothing was changed\n  hint: add another one first with `farsite store keys add-recipient`"
                    ));
                }
                1 if !single_recipient => {
                    return refused(
                        "one recipient would be left: who loses its identity loses the store; nothing was changed\n  hint: add another one first, or say --single-recipient".to_owned(),
                    );
                }
                _ => {}
            }
        }
        Amendment::SignerAdded { signer, .. } => {
            let id = keys::key_id(&signer.key);
            if let Some(known) = format.key(&id) {
                return refused(format!(
                    "{} is listed already, and a key that was retired never comes back; nothing was changed",
                    keys::describe(known)
                ));
            }
            if (signer.role == Role::Operator) != signer.site.is_none() {
                return refused("an agent's key speaks for a site, an operator's for none".to_owned());
            }
        }
        Amendment::SignerRetired { key, .. } => {
            let Some(role) = format.in_force(key) else {
                return refused(format!("no key {key} is in force; nothing was changed"));
            };
            if role.role == Role::Operator && format.holder(Role::Operator).count() < 2 {
                return refused(format!(
                    "{} is the last operator's key: nobody could fail over; nothing was changed\n  hint: add another one first with `farsite store keys add-signer`",
                    keys::describe(role)
                ));
            }
        }
        Amendment::DamageAccepted { numbers, .. } => {
            if numbers.is_empty() {
                return refused("no number is named".to_owned());
            }
        }
    }
    Ok(())
}

/// A fold under way.
pub(super) struct Folding {
    format: Arc<Format>,
    hashes: Vec<EntryHash>,
    damage: BTreeMap<u64, String>,
    accepted: BTreeSet<u64>,
}

impl Folding {
    pub(super) fn over(object: &Arc<Format>) -> Self {
        let mut format = (**object).clone();
        format.amended = Amended::default();
        format.amended.recipients = format
            .recipients
            .iter()
            .map(|recipient| Recipient {
                recipient: recipient.clone(),
                name: String::new(),
                added: None,
                removed: None,
            })
            .collect();
        let (hashes, damage, accepted) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
        Self { format: Arc::new(format), hashes, damage, accepted }
    }

    fn damaged(&mut self, number: u64, why: &str) {
        self.damage.entry(number).or_insert_with(|| why.to_owned());
    }

    pub(super) fn finish(mut self, head: Head, seen: Head) -> Format {
        if let Some(last) = seen.next.checked_sub(1) {
            match usize::try_from(last).ok().and_then(|last| self.hashes.get(last)) {
                None => {
                    for number in self.hashes.len() as u64..seen.next {
                        self.damaged(number, "missing, and it has been read here before: it was deleted");
                    }
                }
                Some(hash) if *hash != seen.prev => {
                    self.damaged(last, "it is not what has been read here before: it was replaced");
                }
                Some(_) => {}
            }
        }
        let mut format = Arc::unwrap_or_clone(self.format);
        format.amended.head = head;
        format.amended.damage = self
            .damage
            .into_iter()
            .filter(|(number, _)| !self.accepted.contains(number))
            .map(|(number, why)| Damage::new(format!("{PREFIX}/{number:016}"), why))
            .collect();
        format
    }
}

impl Fold<Amendment> for Folding {
    fn format(&self) -> Arc<Format> {
        self.format.clone()
    }

    fn apply(&mut self, entry: Entry<Amendment>) {
        self.hashes.push(entry.hash);
        if !entry.follows {
            let why = "the amendment behind it was written after another one: one of the two was replaced";
            self.damaged(entry.number.saturating_sub(1), why);
        }
        let (envelope, by) = match entry.said {
            Ok(said) => said,
            Err(void) => {
                if let Void::Unreadable(why) | Void::Unknown(why) = &void {
                    self.damaged(entry.number, why);
                }
                let format = Arc::make_mut(&mut self.format);
                return format.amended.void.push((entry.number, void.to_string()));
            }
        };
        let format = Arc::make_mut(&mut self.format);
        let amendment = envelope.says;
        if let Err(refusal) = may_say(format, &amendment, &by) {
            return format.amended.void.push((entry.number, refusal.to_string()));
        }
        let (who, reason) = amendment.who();
        let said = Said {
            number: entry.number,
            at: entry.written,
            who: who.to_owned(),
            reason: reason.to_owned(),
            by: keys::describe(&by),
        };
        match amendment {
            Amendment::RecipientAdded { recipient, name, block_secret, .. } => {
                format.recipients.push(recipient.clone());
                format.amended.block_secrets.push(block_secret);
                let added = Recipient { recipient, name, added: Some(said), removed: None };
                format.amended.recipients.push(added);
            }
            Amendment::RecipientRemoved { recipient, .. } => {
                format.recipients.retain(|other| *other != recipient);
                let mut known = format.amended.recipients.iter_mut().rev();
                if let Some(known) = known.find(|known| known.recipient == recipient) {
                    known.removed = Some(said);
                }
            }
            Amendment::SignerAdded { signer, .. } => {
                format.amended.added.insert(keys::key_id(&signer.key), said);
                format.keys.push(signer);
            }
            Amendment::SignerRetired { key, counts, .. } => {
                format.amended.retired.insert(key, Retired { said, counts });
            }
            Amendment::DamageAccepted { numbers, .. } => self.accepted.extend(numbers),
        }
    }
}
