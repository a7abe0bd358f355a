//! The end of a signing key. What it signed before still counts, in an order that nobody can go behind: each group's
//! ledger (and each site's, for an operator's key) gets an entry of its own behind which the key says nothing, and the
//! amendment that ends it everywhere names the number of that entry in each chain. A chain or a log that it does not name
//! counts nothing of that key: it did not exist, or only the thief wrote it.
//!
//! Cut off anywhere, it is begun again: entries that are there are not written twice. Until the amendment exists the
//! key counts where its end has not been written yet.

use std::collections::BTreeSet;

use farsite_model::{GroupName, SiteName};

use super::{Amendment, Counts, append, fold};
use crate::chain::Chain;
use crate::format::Format;
use crate::keys::{KeyId, KeyRole, Role, Signer};
use crate::ledger::{self, Ledger, Refusal, SiteLedger, Statement};
use crate::logs::{self, TimelineId};
use crate::signed::Kind;
use crate::{Store, StoreError};

/// Whether an amendment would be written: refused for the same reasons, and nothing is.
pub async fn would(
    store: &Store,
    signer: &Signer,
    says: impl Fn(&Format) -> Result<Amendment, Refusal>,
) -> Result<(), StoreError> {
    store.refresh_keys().await?;
    let format = store.format();
    let Some(by) = format.in_force(&signer.key_id()) else {
        let role = "this key is not listed in the store, or was retired".into();
        return Err(Refusal::Role { what: "an amendment", role }.into());
    };
    Ok(fold::may_say(&format, &says(&format)?, by)?)
}

fn retired(key: KeyId, counts: Counts, who: &str, reason: &str) -> Amendment {
    Amendment::SignerRetired { key, counts, who: who.to_owned(), reason: reason.to_owned() }
}

async fn allowed(store: &Store, signer: &Signer, key: &KeyId) -> Result<KeyRole, StoreError> {
    would(store, signer, |_| Ok(retired(*key, Counts::default(), "", ""))).await?;
    let format = store.format();
    let known = format.in_force(key).cloned();
    known.ok_or_else(|| Refusal::Unsafe(format!("no key {key} is in force; nothing was changed")).into())
}

/// What would still count if the key were retired now.
pub async fn plan_retirement(store: &Store, signer: &Signer, key: &KeyId) -> Result<Counts, StoreError> {
    let role = allowed(store, signer, key).await?;
    let mut counts = Counts::default();
    for group in ledger::groups(store).await? {
        if let Some(last) = Ledger::open(store, &group).await?.head().next.checked_sub(1) {
            counts.entries.insert(format!("ledger/{group}"), last);
        }
    }
    if role.role == Role::Operator {
        for site in sites(store).await? {
            if let Some(last) = SiteLedger::open(store, &site).await?.head().next.checked_sub(1) {
                counts.entries.insert(format!("sites/{site}"), last);
            }
        }
    }
    rest(store, &role, &mut counts).await?;
    Ok(counts)
}

/// Retires a signing key. Returns the number of the amendment and what still counts.
pub async fn retire(
    store: &Store,
    signer: &Signer,
    key: &KeyId,
    who: &str,
    reason: &str,
) -> Result<(u64, Counts), StoreError> {
    let role = allowed(store, signer, key).await?;
    let mut counts = Counts::default();
    for group in ledger::groups(store).await? {
        let mut ledger = Ledger::open(store, &group).await?;
        let says = Statement::SignerRetired { key: *key, who: who.to_owned(), reason: reason.to_owned() };
        let number = match ledger.state().retired.get(key) {
            Some(number) => *number,
            None => ledger.append(signer, |_| Ok(says.clone())).await?.0,
        };
        // Another operator may have been first: the earlier entry is the end.
        let number = ledger.state().retired.get(key).copied().unwrap_or(number);
        counts.entries.insert(format!("ledger/{group}"), number);
    }
    // Only operators speak there.
    if role.role == Role::Operator {
        for site in sites(store).await? {
            let number = SiteLedger::open(store, &site).await?.retire(signer, *key, who, reason).await?;
            counts.entries.insert(format!("sites/{site}"), number);
        }
    }
    rest(store, &role, &mut counts).await?;
    let (number, _) = append(store, signer, |_| Ok(retired(*key, counts.clone(), who, reason))).await?;
    Ok((number, counts))
}

/// Journals and logs have no entry that ends the key: what is listed now counts.
async fn rest(store: &Store, role: &KeyRole, counts: &mut Counts) -> Result<(), StoreError> {
    match &role.site {
        Some(site) if role.role == Role::SourceAgent => {
            for (group, timeline) in timelines(store).await? {
                if let Some(end) = logs::end_of_site(store, &group, &timeline, site).await? {
                    counts.logs.insert(format!("{group}/{timeline}"), end);
                }
            }
        }
        _ => {
            let listed = store.backend.list("journal/", None).await?;
            let prefixes: BTreeSet<&str> =
                listed.iter().filter_map(|object| Some(object.key.rsplit_once('/')?.0)).collect();
            for prefix in prefixes {
                let chain: Chain<serde_json::Value> = Chain::new(store, prefix.to_owned(), Kind::Journal);
                if let Some((last, _)) = chain.numbers(0).await?.last() {
                    counts.entries.insert(prefix.to_owned(), *last);
                }
            }
        }
    }
    Ok(())
}

async fn sites(store: &Store) -> Result<BTreeSet<SiteName>, StoreError> {
    let listed = store.backend.list("sites/", None).await?;
    Ok(listed.iter().filter_map(|object| SiteName::new(object.key.split('/').nth(1)?).ok()).collect())
}

async fn timelines(store: &Store) -> Result<BTreeSet<(GroupName, TimelineId)>, StoreError> {
    let listed = store.backend.list("logs/", None).await?;
    let of = |key: &str| {
        let mut parts = key.split('/').skip(1);
        Some((GroupName::new(parts.next()?).ok()?, parts.next()?.parse().ok()?))
    };
    Ok(listed.iter().filter_map(|object| of(&object.key)).collect())
}
