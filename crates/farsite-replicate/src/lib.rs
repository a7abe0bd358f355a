//! Policies and sources come in; committed recovery points, shipped logs and a record of the RPO achieved go out.
//!
//! What must hold: a point is committed only when every block and every log byte it needs is durable; a failed item
//! never stops the others and is never passed off as new; a run that was killed goes on without re-sending complete
//! packs; capture times come from a clock that cannot jump while a run is under way.

pub mod agent;
mod ancestry;
mod anomaly;
mod basis;
pub mod capture;
pub mod connect;
pub mod coverage;
pub mod databases;
mod frozen;
pub mod group;
mod hooks;
pub mod hosts;
pub mod hydrate;
mod keeper;
mod kept;
mod lent;
pub mod logship;
mod member;
mod patience;
pub mod pin;
mod point;
pub mod pool;
pub mod record;
pub mod restore;
pub mod restore_log;
pub mod round;
pub mod run;
pub mod run_clock;
mod run_state;
mod seat;
mod shared;
pub mod spot;
pub mod status;
mod throttle;
mod tracked;
pub mod tree;
pub mod unfinished;

use farsite_model::SiteName;
use farsite_model::yaml::YamlError;
use farsite_sources::SourceError;
use farsite_store::StoreError;
use farsite_store::backend::BackendError;
use farsite_store::keys::KeyError;
use farsite_store::ledger::Refusal;

/// Why replication did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ReplicateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Config(#[from] YamlError),
    #[error("{0}")]
    Setup(String),
    #[error(
        "group {group} is worked on by another process (pid {pid})\n  hint: the agent replicates by itself; stop it first, or wait for its next run"
    )]
    Busy { group: String, pid: String },
    #[error(
        "group {group}: the store at {to} held the others up for {}s, and the round went on without it; what it has is complete and counts when it goes on by itself",
        .patience.as_secs_f64()
    )]
    CutOff { group: String, to: SiteName, patience: std::time::Duration },
    #[error(
        "group {group}: nothing is committed anywhere, for the store at {at} says: {why}\n  hint: that counts until that store names this site primary again, or {at} is taken out of the policy's `to:`"
    )]
    FencedAt { group: String, at: SiteName, why: String },
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("the record in {path}: {source}")]
    Record { path: String, source: rusqlite::Error },
}

impl From<BackendError> for ReplicateError {
    fn from(error: BackendError) -> Self {
        Self::Store(error.into())
    }
}
impl From<KeyError> for ReplicateError {
    fn from(error: KeyError) -> Self {
        Self::Store(error.into())
    }
}
impl From<Refusal> for ReplicateError {
    fn from(refusal: Refusal) -> Self {
        Self::Store(refusal.into())
    }
}

impl ReplicateError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The group was promoted elsewhere: this agent must stop, not try again.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Store(StoreError::Refused(Refusal::Fenced { .. })) | Self::FencedAt { .. })
    }
}
