//! A failover's order, as the operator gave it.

use std::path::PathBuf;

use farsite_model::{GroupName, Level, PromotionId, SiteName};
use jiff::Timestamp;

use crate::PromoteError;
use crate::choose::PointChoice;

/// Everything that an operator says; nothing of it is inferred later.
#[derive(Debug, Clone)]
pub struct Order {
    /// Drawn by the caller (`new_promotion_id`).
    pub promotion: PromotionId,
    /// The site that is lost.
    pub from: SiteName,
    /// Empty: all groups whose primary is that site.
    pub groups: Vec<GroupName>,
    pub level: Level,
    pub point: PointChoice,
    /// A person has seen what is wrong with the point that they named, and wants it all the same.
    pub take_flawed: bool,
    /// When disaster struck, as far as people know.
    pub disaster_at: Option<Timestamp>,
    /// A file, or a runbook's name; none for the level's own.
    pub runbook: Option<PathBuf>,
    /// The operator's word that the old site serves nobody: it cannot be reached to make sure.
    pub assume_site_lost: bool,
    /// How the old site was kept from serving by hand, in words.
    pub fenced_by: Option<String>,
    pub reason: String,
    pub who: String,
}

impl Order {
    /// What the journal keeps about the old site. Refuses an order that leaves two sites serving.
    pub fn fencing(&self) -> Result<String, PromoteError> {
        let said = |text: &str| !text.trim().is_empty();
        match &self.fenced_by {
            Some(how) if said(how) => Ok(format!("manually-fenced: {how} ({})", self.who)),
            _ if self.assume_site_lost && said(&self.reason) => {
                Ok(format!("unfenced: {} says that the site is lost: {}", self.who, self.reason))
            }
            _ if self.assume_site_lost => Err(PromoteError::Usage(
                "--assume-site-lost needs --reason: the journal keeps who said so and why".into(),
            )),
            _ => Err(PromoteError::Refused(format!(
                "site {} may still serve: nothing here can keep it from that; nothing was changed\n  hint: say --assume-site-lost --reason TEXT when it is gone, or --fenced-by TEXT when somebody has cut it off",
                self.from
            ))),
        }
    }
}
