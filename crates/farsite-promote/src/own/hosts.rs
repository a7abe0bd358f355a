//! What this site's own volume services are called: their hosts, with the back end (`ctl-south@nfs`), and clusters of several.

use std::collections::{BTreeMap, BTreeSet};

use farsite_sources::mariadb::account::{Door, ask_as};

use crate::driver;
use crate::site::Accounts;

const QUESTION: &str = "SELECT DISTINCT name FROM (SELECT host AS name FROM cinder.services WHERE deleted = 0 AND `binary` = 'cinder-volume' UNION SELECT cluster_name FROM cinder.services WHERE deleted = 0 AND `binary` = 'cinder-volume') AS names WHERE name <> '' ORDER BY name";
/// The key of the evidence that a step notes them under.
const DETAIL: &str = "volume hosts";

/// What Cinder's database of this site says now, to whichever account may see it; none where it tells nobody.
pub async fn volume_hosts(accounts: &Accounts, doors: &[Door]) -> Option<BTreeSet<String>> {
    let user = driver::process_account();
    let named = accounts.database().iter().map(|(name, secret)| (name.as_str(), Some(secret)));
    for (name, secret) in named.chain([(user.as_str(), None)]) {
        for door in doors {
            if let Ok(rows) = ask_as(door, name, secret, QUESTION).await {
                return Some(rows.into_iter().flatten().flatten().collect());
            }
        }
    }
    None
}

pub fn as_detail(hosts: &BTreeSet<String>) -> (String, String) {
    (DETAIL.to_owned(), hosts.iter().cloned().collect::<Vec<_>>().join(", "))
}

/// None where nothing was noted.
pub fn of_detail(evidence: &BTreeMap<String, String>) -> Option<BTreeSet<String>> {
    let noted = evidence.get(DETAIL)?;
    Some(noted.split(", ").filter(|host| !host.is_empty()).map(str::to_owned).collect())
}
