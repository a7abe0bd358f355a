//! What the commands around promotions share: the standby, the operator's key, and which promotion is meant.

use std::sync::Arc;

use farsite_model::config::Config;
use farsite_model::ids::find_short;
use farsite_model::{Mode, PromotionId, SiteName};
use farsite_promote::Standby;
use farsite_promote::list::{self, Summary};
use farsite_replicate::connect;
use farsite_store::keys::Signer;

use crate::failure::Failure;
use crate::stores;

/// The standby that is meant: the one that was named, this host's site, or the only store's.
pub async fn standby(config: &Arc<Config>, named: Option<&SiteName>) -> Result<Standby, Failure> {
    let site = stores::store_site(config, named)?;
    Ok(Standby::open(config, &site).await?)
}

pub fn operator(config: &Config) -> Result<Arc<Signer>, Failure> {
    Ok(Arc::new(connect::operator(config)?))
}

/// Which journals a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Promotions,
    Drills,
}

impl Which {
    fn fits(self, summary: &Summary) -> bool {
        (summary.mode == Mode::Drill) == (self == Self::Drills)
    }
    fn word(self) -> &'static str {
        match self {
            Self::Promotions => "promotion",
            Self::Drills => "drill",
        }
    }
}

/// All of a kind, newest first.
pub async fn all(standby: &Standby, which: Which) -> Result<Vec<Summary>, Failure> {
    let mut found = list::list(standby, None).await?;
    found.retain(|summary| which.fits(summary));
    Ok(found)
}

/// The one whose id begins as typed; without an id the open one, else the newest.
pub async fn one(standby: &Standby, which: Which, typed: Option<&str>) -> Result<PromotionId, Failure> {
    let found = all(standby, which).await?;
    let ids: Vec<PromotionId> = found.iter().map(|summary| summary.promotion).collect();
    if let Some(text) = typed {
        return find_short(which.word(), text, &ids).copied().map_err(|error| {
            Failure::from(error).hint(format!("`farsite {} list` shows what there is", which.word()))
        });
    }
    let open = found.iter().find(|summary| summary.result == "open");
    open.or(found.first())
        .map(|summary| summary.promotion)
        .ok_or_else(|| Failure::failed(format!("this store holds no {} yet", which.word())))
}
