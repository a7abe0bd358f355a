//! What `check` looks at in one store: whether it can be reached and trusted, whether this host's keys fit, whether
//! the identity opens what lies there.

use std::path::PathBuf;
use std::time::Duration;

use farsite_model::SiteName;
use farsite_model::config::Config;
use farsite_replicate::connect;
use farsite_store::backend::provider::Weight;
use farsite_store::backend::race;
use farsite_store::hex::Hex;
use farsite_store::keys::{BlockSecret, Role, Signer, describe};
use farsite_store::ledger::{self, Ledger};
use farsite_store::manifest::Manifest;
use farsite_store::{Store, StoreError};

use super::Lines;
use crate::failure::Failure;

const RACE_ROUNDS: usize = 20;
const RACE_WRITERS: usize = 8;
/// What all requests of one look may take.
const LOOK_LIMIT: Duration = Duration::from_mins(2);

pub async fn look(config: &Config, site: &SiteName, lines: &mut Lines) {
    let area = format!("store {site}");
    if tokio::time::timeout(LOOK_LIMIT, all(config, site, &area, lines)).await.is_err() {
        lines.wrong(&area, "reaching", format!("no end within {}s", LOOK_LIMIT.as_secs()));
    }
}

async fn all(config: &Config, site: &SiteName, area: &str, lines: &mut Lines) {
    let store = match connect::store(config, site).await {
        Ok(store) => store,
        Err(error) => return lines.wrong(area, "reaching", error.to_string()),
    };
    let format = &store.format();
    lines.ok(
        area,
        "reaching",
        format!("{}, id {}, format version {}", store.backend.describe(), store.id, format.version),
    );
    settings(config, site, &store, area, lines);
    trust(&store, area, lines).await;
    keys(config, &store, area, lines);
    opens(config, site, &store, area, lines).await;
}

/// What the configuration says about the store, against what the store says about itself.
fn settings(config: &Config, site: &SiteName, store: &Store, area: &str, lines: &mut Lines) {
    let Ok(configured) = connect::store_config(config, site) else { return };
    if configured.id.is_none() {
        let says = format!(
            "the configuration pins no id: a replaced store would not be noticed; add `id: {}`",
            store.id
        );
        lines.warn(area, "id", says);
    }
    let theirs = &store.format().recipients;
    for unknown in configured.recipients.iter().filter(|one| !theirs.contains(one)) {
        lines.wrong(
            area,
            "recipients",
            format!("{unknown} is configured, and the store does not seal for it"),
        );
    }
    match theirs.len() {
        0 => lines.wrong(area, "recipients", "the store seals for nobody"),
        1 if !configured.single_recipient => lines.warn(
            area,
            "recipients",
            "one only: who loses its identity loses the store; say `single-recipient: true` if that is meant",
        ),
        many => lines.ok(area, "recipients", format!("{many} can open it")),
    }
}

/// Create-only writes, and what a thief with these credentials could do.
async fn trust(store: &Store, area: &str, lines: &mut Lines) {
    let tag = Hex::<8>::random().to_string();
    match race::race(&store.backend, &tag, RACE_ROUNDS, RACE_WRITERS).await {
        Ok(()) => lines.ok(
            area,
            "create-only writes",
            format!("exactly one winner in {RACE_ROUNDS} rounds of {RACE_WRITERS} writers"),
        ),
        Err(error) => return lines.wrong(area, "create-only writes", error.to_string()),
    }
    match race::probe_tampering(&store.backend, &tag).await {
        Ok(probe) if probe.is_tamper_resistant() => lines.ok(area, "tampering", probe.in_words()),
        Ok(probe) => lines.warn(area, "tampering", probe.in_words()),
        Err(error) => lines.wrong(area, "tampering", error.to_string()),
    }
    match store.backend.provider().await {
        // A folder.
        Ok(None) => {}
        Ok(Some(provider)) => {
            for finding in provider.findings() {
                match finding.weight {
                    Weight::Fine => lines.ok(area, finding.subject, finding.says),
                    Weight::Warning => lines.warn(area, finding.subject, finding.says),
                    Weight::Wrong => lines.wrong(area, finding.subject, finding.says),
                }
            }
        }
        Err(error) => lines.wrong(area, "provider", error.to_string()),
    }
}

/// Each key of this host: readable, private, and listed in the format object with the role that it is used for.
fn keys(config: &Config, store: &Store, area: &str, lines: &mut Lines) {
    let signing: [(&str, &Option<PathBuf>, Role); 3] = [
        ("operator", &config.keys.operator, Role::Operator),
        ("standby-agent", &config.keys.standby_agent, Role::StandbyAgent),
        ("source-agent", &config.keys.source_agent, Role::SourceAgent),
    ];
    for (name, path, role) in signing {
        let Some(path) = path else { continue };
        let subject = format!("key {name}");
        let signer = match Signer::load(&config.resolve(path)) {
            Ok(signer) => signer,
            Err(error) => {
                lines.wrong(area, &subject, error.to_string());
                continue;
            }
        };
        match store.format().in_force(&signer.key_id()) {
            None => lines.wrong(
                area,
                &subject,
                format!(
                    "key {} is not listed in this store, or was retired: nothing that it signs counts",
                    signer.key_id()
                ),
            ),
            Some(known) if known.role != role => lines.wrong(
                area,
                &subject,
                format!(
                    "this is the key of a {}, and a {role} is needed here: were two files mixed up?",
                    known.role
                ),
            ),
            Some(known) if role == Role::SourceAgent && known.site.as_ref() != Some(&config.site) => lines
                .wrong(
                    area,
                    &subject,
                    format!("speaks for {}, and this host is at {}", describe(known), config.site),
                ),
            Some(known) => lines.ok(area, &subject, describe(known)),
        }
    }
    if let Some(path) = &config.keys.block_secret {
        match BlockSecret::load(&config.resolve(path)) {
            Ok(_) => lines.ok(area, "key block-secret", "readable and private"),
            Err(error) => lines.wrong(area, "key block-secret", error.to_string()),
        }
    }
}

/// The identity, if this host has one, opens the newest point of every group.
async fn opens(config: &Config, site: &SiteName, store: &Store, area: &str, lines: &mut Lines) {
    let groups = match ledger::groups(store).await {
        Ok(groups) => groups,
        Err(error) => return lines.wrong(area, "ledgers", error.to_string()),
    };
    let has_identity =
        connect::store_config(config, site).is_ok_and(|configured| configured.identity.is_some());
    if !has_identity {
        lines.ok(area, "identity", "none here: this host can add, and cannot open");
        if config.site == *site {
            lines.warn(
                area,
                "identity",
                "this host is at the store's site; a failover from here needs the identity",
            );
        }
        return;
    }
    let reader = match connect::reader(config, site, store).await {
        Ok(reader) => reader,
        Err(error) => return lines.wrong(area, "identity", error.to_string()),
    };
    lines.ok(area, "identity", "opens this store");
    for group in groups {
        let subject = format!("group {group}");
        let newest = async {
            let ledger = Ledger::open(store, &group).await?;
            if !ledger.state().damage.is_empty() {
                return Err(Failure::from(StoreError::Damaged(ledger.state().damage.clone())));
            }
            let Some(point) = ledger.state().default_points().next() else {
                return Ok("no point yet that a failover would take".to_owned());
            };
            let manifest = Manifest::read(store, &group, point.id(), &point.said.manifest).await?;
            for item in &manifest.items {
                if let Some(root) = item.data.root {
                    reader.node(&root, item.data.root_level()).await?;
                }
            }
            Ok(format!("its newest point {} opens ({} items)", point.id().short(), manifest.items.len()))
        };
        match newest.await {
            Ok(says) => lines.ok(area, &subject, says),
            Err(failure) => lines.wrong(area, &subject, failure.text),
        }
    }
}
