//! The store's ledger of site promotions: a whole site's failover first takes one entry here, which the groups' epochs
//! name, so that two operators cannot each win half a site.

use farsite_model::{GroupName, Level, Mode, PointId, PromotionId, SiteName, StoreTime};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::chain::{Chain, Entry, Head};
use crate::keys::{Role, Signer};
use crate::signed::Kind;
use crate::{Store, StoreError};

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
}

/// The newest promotion of a site.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteState {
    pub promotions: Vec<SitePromotion>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SitePromotion {
    pub begun: SiteStatement,
    pub at: StoreTime,
    pub ended: Option<(String, StoreTime)>,
}

impl SitePromotion {
    pub fn id(&self) -> PromotionId {
        match &self.begun {
            SiteStatement::PromotionBegun { promotion, .. } | SiteStatement::PromotionEnded { promotion, .. } => *promotion,
        }
    }
}

impl SiteState {
    pub fn open_promotion(&self) -> Option<&SitePromotion> {
        self.promotions.iter().rev().find(|p| p.ended.is_none())
    }

    fn apply(&mut self, entry: &Entry<SiteStatement>) {
        let Ok((envelope, by)) = &entry.said else { return };
        if by.role != Role::Operator {
            return;
        }
        match &envelope.says {
            SiteStatement::PromotionBegun { .. } => {
                // A second one while one is open lost the race.
                if self.open_promotion().is_none() {
                    self.promotions.push(SitePromotion { begun: envelope.says.clone(), at: entry.written, ended: None });
                }
            }
            SiteStatement::PromotionEnded { promotion, result, .. } => {
                if let Some(open) = self.promotions.iter_mut().find(|p| p.id() == *promotion && p.ended.is_none()) {
                    open.ended = Some((result.clone(), entry.written));
                }
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
            state: SiteState { promotions: Vec::new() },
        };
        ledger.refresh().await?;
        Ok(ledger)
    }

    pub fn state(&self) -> &SiteState {
        &self.state
    }

    pub async fn refresh(&mut self) -> Result<(), StoreError> {
        let (entries, head) = self.chain.read(self.head).await?;
        entries.iter().for_each(|entry| self.state.apply(entry));
        self.head = head;
        Ok(())
    }

    /// Begins a promotion, unless one is open: of several operators exactly one wins, the others are told who did.
    pub async fn begin(&mut self, signer: &Signer, begun: SiteStatement) -> Result<StoreTime, StoreError> {
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
            if let Some((head, written)) = self.chain.append(self.head, signer, begun.clone()).await? {
                let _ = head;
                self.refresh().await?;
                return Ok(written);
            }
        }
    }

    pub async fn end(&mut self, signer: &Signer, promotion: PromotionId, result: &str, who: &str) -> Result<(), StoreError> {
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

    fn require_operator(&self, signer: &Signer) -> Result<(), StoreError> {
        match self.chain.store().format.key(&signer.key_id()) {
            Some(role) if role.role == Role::Operator => Ok(()),
            Some(role) => Err(Refusal::Role { what: "site promotion", role: format!("{}; needs an operator", role.role) }.into()),
            None => Err(Refusal::Role { what: "site promotion", role: "this key is not in the store's format object".into() }.into()),
        }
    }
}
