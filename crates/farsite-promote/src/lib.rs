//! A store's ledger and a runbook come in; a promoted site, a passed or failed drill, and a report that proves it go
//! out.
//!
//! What must hold: of several operators exactly one begins; the epoch is the first effect, and everything else comes
//! behind it; every step is journaled in the store before and after its effect, so that any machine can go on; a
//! drill touches nothing of production and leaves nothing behind; no figure is better than the truth.

pub mod accept;
pub mod actions;
mod aside;
pub mod choose;
mod cloud;
pub mod compare;
pub mod drill;
pub mod drive;
pub mod driver;
pub mod dry_run;
mod encrypted;
pub mod failover;
pub mod group_run;
pub mod journal;
mod leaks;
pub mod list;
pub mod order;
mod own;
mod owner;
pub mod people;
pub mod place;
pub mod promises;
mod reconcile;
pub mod report;
mod room;
pub mod rpo;
pub mod runbooks;
pub mod site;
mod sql;
mod survey;

use std::sync::Arc;

use farsite_model::config::Config;
use farsite_model::yaml::YamlError;
use farsite_model::{GroupName, PromotionId, SiteName};
use farsite_replicate::{ReplicateError, connect};
use farsite_runbook::engine::EngineError;
use farsite_store::backend::BackendError;
use farsite_store::hex::Hex;
use farsite_store::ledger::Refusal;
use farsite_store::read::Reader;
use farsite_store::{Store, StoreError};

/// Why a promotion did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Setup(#[from] ReplicateError),
    #[error(transparent)]
    Yaml(#[from] YamlError),
    #[error("group {group}: {source}")]
    Engine { group: GroupName, source: EngineError },
    /// The order makes no sense as it was given; nothing was changed.
    #[error("{0}")]
    Usage(String),
    /// It could be done, and is not safe; nothing was changed.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
}

impl PromoteError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// 1 failed, 2 wrong usage or configuration, 4 refused because unsafe, 5 waiting for a person, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Yaml(_)
            | Self::Usage(_)
            | Self::Setup(ReplicateError::Config(_) | ReplicateError::Setup(_)) => 2,
            Self::Refused(_)
            | Self::Store(StoreError::Refused(_))
            | Self::Setup(ReplicateError::Store(StoreError::Refused(_))) => 4,
            Self::Engine { source: EngineError::WaitingForPerson { .. }, .. } => 5,
            Self::Engine { source: EngineError::Interrupted, .. } => 130,
            Self::Engine { .. } | Self::Store(_) | Self::Setup(_) | Self::Failed(_) | Self::Io { .. } => 1,
        }
    }
}

impl From<BackendError> for PromoteError {
    fn from(error: BackendError) -> Self {
        Self::Store(error.into())
    }
}
impl From<Refusal> for PromoteError {
    fn from(refusal: Refusal) -> Self {
        Self::Store(refusal.into())
    }
}

/// The standby, with all that a promotion needs to read: its configuration, its store, the identity that opens it.
#[derive(Clone)]
pub struct Standby {
    pub config: Arc<Config>,
    pub site: SiteName,
    pub store: Store,
    pub reader: Reader,
}

impl Standby {
    /// Opens the store at `to` with the identity of this host.
    pub async fn open(config: &Arc<Config>, to: &SiteName) -> Result<Self, PromoteError> {
        config.site(to).map_err(PromoteError::Usage)?;
        let store = connect::store(config, to).await?;
        let reader = connect::reader(config, to, &store).await?;
        Ok(Self { config: config.clone(), site: to.clone(), store, reader })
    }
}

/// A new promotion's id. Orders take it as a parameter, so that a test can replay one.
pub fn new_promotion_id() -> PromotionId {
    PromotionId::from_random(u64::from_le_bytes(Hex::<8>::random().0))
}

/// The shipped runbooks, by name.
pub fn built_in_runbooks() -> std::collections::BTreeMap<String, String> {
    runbooks::built_in()
}

/// All actions that a runbook may name, to check it with; they cannot be run.
pub fn registry_for_checks() -> farsite_runbook::action::Registry {
    actions::registry(None)
}
