//! The store's ledger of site promotions: a whole site's failover first takes one entry here, which the groups' epochs
//! name, so that two operators cannot each win half a site.

use std::collections::BTreeMap;

use farsite_model::{GroupName, Level, Mode, PointId, PromotionId, SiteName, StoreTime};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::chain::{Chain, Entry, Head, Void};
use crate::keys::{self, KeyId, Role, Signer};
use crate::signed::Kind;
use crate::{Damage, Store, StoreError};

/// Entries of a site's ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum SiteStatement {
    /// Everything that a resuming machine needs to know of the order that was given.
    PromotionBegun {
        promotion: PromotionId,
        from: SiteName,
        to: SiteName,
        mode: Mode,
        level: Level,
        groups: Vec<(GroupName, PointId)>,
        /// Name and full text of the runbook, so that a resume runs the same one.
        runbook: String,
        runbook_text: String,
        who: String,
        reason: String,
        /// What the operator said about the old site: fenced, or a waiver in words.
        fencing: String,
        disaster_at: Option<Timestamp>,
    },
    /// `completed`, `rolled-back`, `cancelled` or `accepted`.
    PromotionEnded { promotion: PromotionId, result: String, who: String },
    /// Behind this entry the key says nothing here; an amendment of the store's keys ends it everywhere.
    SignerRetired { key: KeyId, who: String, reason: String },
}

/// The newest promotion of a site.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteState {
    pub promotions: Vec<SitePromotion>,
    /// Keys that say nothing more here, and the number of the entry from which on.
    pub retired: BTreeMap<KeyId, u64>,
    /// Entries whose bytes are not what was written.
    pub damage: Vec<Damage>,
    /// The newest entries are damaged: one of them may have begun a promotion.
    pub open_in_doubt: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SitePromotion {
    promotion: PromotionId,
    pub begun: SiteStatement,
    pub at: StoreTime,
    pub ended: Option<(String, StoreTime)>,
}

impl SitePromotion {
    pub fn id(&self) -> PromotionId {
        self.promotion
    }
}

impl SiteState {
    pub fn open_promotion(&self) -> Option<&SitePromotion> {
        self.promotions.iter().rev().find(|p| p.ended.is_none())
    }

    fn apply(&mut self, site: &SiteName, entry: &Entry<SiteStatement>) {
        let object = |number: u64| format!("sites/{site}/{number:016}");
        if !entry.follows {
            let why = "the entry behind it was written after another one: one of the two was replaced";
            self.damage.push(Damage::new(object(entry.number.saturating_sub(1)), why));
        }
        let (envelope, by) = match &entry.said {
            Ok(said) => said,
            Err(Void::Unreadable(why) | Void::Unknown(why)) => {
                self.damage.push(Damage::new(object(entry.number), why));
                self.open_in_doubt = true;
                return;
            }
            Err(Void::Misplaced(_) | Void::Retired(_)) => return,
        };
        if by.role != Role::Operator || self.retired.contains_key(&keys::key_id(&by.key)) {
            return;
        }
        // An operator who wrote behind the damage knew what it says, or decided.
        self.open_in_doubt = false;
        match &envelope.says {
            SiteStatement::PromotionBegun { promotion, .. } => {
                // A second one while one is open lost the race.
                if self.open_promotion().is_none() {
                    self.promotions.push(SitePromotion {
                        promotion: *promotion,
                        begun: envelope.says.clone(),
                        at: entry.written,
                        ended: None,
                    });
                }
            }
            SiteStatement::PromotionEnded { promotion, result, .. } => {
                if let Some(open) =
                    self.promotions.iter_mut().find(|p| p.id() == *promotion && p.ended.is_none())
                {
                    open.ended = Some((result.clone(), entry.written));
                }
            }
            SiteStatement::SignerRetired { key, .. } => {
                self.retired.entry(*key).or_insert(entry.number);
            }
        }
    }
}

/// A site's ledger of promotions.
pub struct SiteLedger {
    chain: Chain<SiteStatement>,
    site: SiteName,
    head: Head,
    state: SiteState,
}

impl SiteLedger {
    pub async fn open(store: &Store, site: &SiteName) -> Result<Self, StoreError> {
        let mut ledger = Self {
            chain: Chain::new(store, format!("sites/{site}"), Kind::Ledger),
            site: site.clone(),
            head: Head::START,
            state: SiteState {
                promotions: Vec::new(),
                retired: BTreeMap::new(),
                damage: Vec::new(),
                open_in_doubt: false,
            },
        };
        ledger.refresh().await?;
        Ok(ledger)
    }

    pub fn state(&self) -> &SiteState {
        &self.state
    }

    pub fn head(&self) -> Head {
        self.head
    }

    pub async fn refresh(&mut self) -> Result<(), StoreError> {
        let (entries, head) = self.chain.read(self.head).await?;
        for entry in &entries {
            self.state.apply(&self.site, entry);
        }
        self.head = head;
        Ok(())
    }

    /// Begins a promotion, unless one is open: of several operators exactly one wins, the others are told who did.
    /// Refused when the newest entry is damaged: it may have begun a promotion.
    pub async fn begin(&mut self, signer: &Signer, begun: SiteStatement) -> Result<StoreTime, StoreError> {
        self.refresh().await?;
        if self.state.open_in_doubt {
            let damage = self.state.damage.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            return Err(Refusal::Other(format!(
                "the ledger of promotions of {} is damaged at its end ({damage}): whether a promotion is under way is not known; nothing was changed\n  hint: ask the other operators, and look at the journals of promotions in the store",
                self.site
            ))
            .into());
        }
        self.begin_behind_damage(signer, begun).await
    }

    /// Begins a promotion though the newest entry may be damaged: a person has made sure that none is under way.
    pub async fn begin_behind_damage(
        &mut self,
        signer: &Signer,
        begun: SiteStatement,
    ) -> Result<StoreTime, StoreError> {
        loop {
            self.refresh().await?;
            if let Some(open) = self.state.open_promotion() {
                let SiteStatement::PromotionBegun { promotion, to, who, .. } = &open.begun else {
                    return Err(StoreError::Cancelled);
                };
                return Err(Refusal::PromotionOpen {
                    site: self.site.clone(),
                    promotion: *promotion,
                    to: to.clone(),
                    who: who.clone(),
                    at: open.at,
                }
                .into());
            }
            self.require_operator(signer)?;
            if let Some((_, written)) = self.chain.append(self.head, signer, begun.clone()).await? {
                // It is durable: what cannot be read back now is no reason to call it failed.
                if let Err(error) = self.refresh().await {
                    tracing::warn!(site = %self.site, "written, and not read back: {error}");
                }
                return Ok(written);
            }
        }
    }

    pub async fn end(
        &mut self,
        signer: &Signer,
        promotion: PromotionId,
        result: &str,
        who: &str,
    ) -> Result<(), StoreError> {
        self.require_operator(signer)?;
        loop {
            self.refresh().await?;
            if self.state.open_promotion().is_none_or(|open| open.id() != promotion) {
                return Ok(());
            }
            let says =
                SiteStatement::PromotionEnded { promotion, result: result.to_owned(), who: who.to_owned() };
            if self.chain.append(self.head, signer, says).await?.is_some() {
                return self.refresh().await;
            }
        }
    }

    /// Ends a key here. Returns the number of the entry, whoever wrote it.
    pub(crate) async fn retire(
        &mut self,
        signer: &Signer,
        key: KeyId,
        who: &str,
        reason: &str,
    ) -> Result<u64, StoreError> {
        self.require_operator(signer)?;
        loop {
            self.refresh().await?;
            if let Some(number) = self.state.retired.get(&key) {
                return Ok(*number);
            }
            let says = SiteStatement::SignerRetired { key, who: who.to_owned(), reason: reason.to_owned() };
            let number = self.head.next;
            if self.chain.append(self.head, signer, says).await?.is_some() {
                return Ok(number);
            }
        }
    }

    fn require_operator(&self, signer: &Signer) -> Result<(), StoreError> {
        let format = self.chain.store().format();
        match format.in_force(&signer.key_id()) {
            Some(role) if role.role == Role::Operator => Ok(()),
            Some(role) => Err(Refusal::Role {
                what: "site promotion",
                role: format!("{}; needs an operator", role.role),
            }
            .into()),
            None => {
                let role = super::unknown_key(&format, signer);
                Err(Refusal::Role { what: "site promotion", role }.into())
            }
        }
    }
}
