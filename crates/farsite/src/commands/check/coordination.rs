//! What `check` can tell, on a host that leaves a group to another one's agent, of whether that agent is at work: a host name
//! that nobody has makes every host leave it to another.

use std::time::Duration;

use farsite_model::SiteName;
use farsite_model::config::Config;
use farsite_model::policy::Policy;
use farsite_replicate::connect;
use farsite_store::ledger::Ledger;

use super::Lines;
use crate::failure::Failure;

/// What reading one ledger may take.
const LIMIT: Duration = Duration::from_mins(1);
const SUBJECT: &str = "coordination";

/// `why`: who coordinates it, and what this host is called.
pub async fn look(config: &Config, policy: &Policy, why: &str, lines: &mut Lines) {
    let area = format!("policy {}", policy.group);
    let hint = "`uname -n` on the host that is meant must say exactly what `on:` says: else no host replicates this group";
    let mut has_told = false;
    for to in policy.to.iter().filter(|to| config.stores.contains_key(*to)) {
        // Why a store cannot be read is said where the stores are looked at.
        let Ok(Ok(told)) = tokio::time::timeout(LIMIT, newest(config, policy, to)).await else { continue };
        has_told = true;
        match told {
            Ok(says) => lines.ok(&area, SUBJECT, format!("{why}; {says}")),
            Err(says) => lines.wrong(
                &area,
                SUBJECT,
                format!("{why}; {says}\n  hint: is that host's agent running? {hint}"),
            ),
        }
    }
    if !has_told {
        lines.warn(
            &area,
            SUBJECT,
            format!("{why}; whether it does cannot be told here, for no store of the group can be read from this host\n  hint: {hint}"),
        );
    }
}

/// In words: the group has a point there within its RPO, or what it has instead.
async fn newest(config: &Config, policy: &Policy, to: &SiteName) -> Result<Result<String, String>, Failure> {
    let store = connect::store(config, to).await.map_err(Failure::from)?;
    let ledger = Ledger::open(&store, &policy.group).await.map_err(Failure::from)?;
    let now = store.now().await.map_err(|error| Failure::from(farsite_store::StoreError::from(error)))?;
    let ages = ledger.state().live_points().map(|point| point.exposure(now));
    Ok(match ages.min() {
        None => Err(format!("and the store at {to} holds no point of the group")),
        Some(age) if age > policy.rpo.to_signed() => Err(format!(
            "and the newest point of the group at {to} is {} s old, more than its rpo of {}",
            age.as_secs(),
            policy.rpo
        )),
        Some(age) => Ok(format!("its newest point at {to} is {} s old", age.as_secs())),
    })
}
