//! State to dashboard, JSON API and metrics. What a [`StateSource`] knows of its groups comes in; `/` (a page for
//! people), `/api/status` (JSON), `/metrics` (Prometheus text) and `/healthz` go out. It only reads: nothing that
//! is asked of it changes a group, and it never waits longer than [`STATE_LIMIT`] for the state it shows.

use std::time::Duration;

use async_trait::async_trait;
use farsite_model::status::GroupStatus;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

mod cards;
mod metrics;
mod page;
mod server;

pub use server::{Server, WebError, serve};

/// How long an answer waits for [`StateSource::groups`] before it is 503. Below Prometheus' default
/// `scrape_timeout` of 10 s, so that a scrape sees the reason and not its own time-out.
pub const STATE_LIMIT: Duration = Duration::from_secs(8);

/// Where the state comes from.
#[async_trait]
pub trait StateSource: Send + Sync {
    /// All groups that this host knows of. Called once for each request and dropped when the caller goes away or
    /// [`STATE_LIMIT`] has passed, so it has to stay correct when it is cancelled at any `await`; an
    /// implementation that reads a replica store should answer from what it read last.
    async fn groups(&self) -> Vec<GroupStatus>;
}

/// What `/api/status` answers. New keys may be added; those that are here stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusDocument {
    /// When the answer was made, by this host's clock.
    pub generated: Timestamp,
    pub groups: Vec<GroupStatus>,
}
