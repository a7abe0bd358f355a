//! What the policy of a group promises, where it is known on this host; a promotion itself needs no policy.

use farsite_model::config::Config;
use farsite_model::{GroupName, Level};
use serde::{Deserialize, Serialize};

/// Targets out of a policy; `None` is not known here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Promises {
    pub rpo_s: Option<f64>,
    pub rto_s: Option<f64>,
    pub level: Option<Level>,
}

/// Reads the promises of a group out of the policies of this host. An unreadable policy stops no failover.
pub fn promises(config: &Config, group: &GroupName) -> Promises {
    let policies = config.load_policies().unwrap_or_else(|error| {
        tracing::warn!("the targets are not known here: {error}");
        Vec::new()
    });
    policies.iter().map(|(_, policy)| policy).find(|policy| policy.group == *group).map_or_else(
        Promises::default,
        |policy| Promises {
            rpo_s: Some(policy.rpo.duration().as_secs_f64()),
            rto_s: policy.rto.map(|rto| rto.duration().as_secs_f64()),
            level: Some(policy.level),
        },
    )
}

/// The highest level that the policies of these groups promise, else `application`.
pub fn level_of<'g>(config: &Config, groups: impl IntoIterator<Item = &'g GroupName>) -> Level {
    groups.into_iter().filter_map(|group| promises(config, group).level).max().unwrap_or(Level::Application)
}
