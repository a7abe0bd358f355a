//! Cinder's volumes of all projects. What must hold: a part of them is never taken for all. Cinder leaves `all_tenants` unheeded,
//! without a word, for those who are not its administrators, so whoever cannot see the scheduler's pools is told so first.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;

use crate::paging::Pages;
use crate::records::Volume;
use crate::{AskError, Client, Service};

/// Listings can be asked for what changed since a moment.
const UPDATED_SINCE: u32 = 60;
/// Listings tell which key a volume is encrypted with.
const KEY_IDS: u32 = 64;

/// What this Cinder can be asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Abilities {
    /// The microversion that is spoken: 3.`minor`.
    minor: u32,
}

/// What volumes are asked for; everything that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The project's id.
    pub project: Option<String>,
    pub metadata: BTreeMap<String, String>,
    /// Updated at that moment or later. Metadata is kept apart from its volume: a change of it is no update.
    pub updated_since: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Versions {
    versions: Vec<Version>,
}
#[derive(Deserialize)]
struct Version {
    id: String,
    #[serde(default)]
    version: String,
}

impl Client {
    /// What this Cinder can do, and that it shows us everything; asked once.
    async fn abilities(&self) -> Result<Abilities, AskError> {
        let ask = || async {
            match self.pools().await {
                Err(AskError::Forbidden { cloud, user, .. }) => {
                    return Err(AskError::NotAll { cloud, user, what: "volumes" });
                }
                pools => pools?,
            };
            let endpoint = self.endpoint(Service::BlockStorage).await?;
            let root = endpoint.split_once("/v3").map_or(endpoint.as_str(), |(root, _)| root);
            let found: Versions =
                self.get_at(Service::BlockStorage, &format!("{root}/v3/"), &[], None).await?;
            let newest = found.versions.iter().filter(|version| version.id.starts_with("v3")).find_map(|v| {
                let (_, minor) = v.version.split_once('.')?;
                minor.parse::<u32>().ok()
            });
            Ok(Abilities { minor: newest.unwrap_or(0).min(KEY_IDS) })
        };
        self.block_storage.get_or_try_init(ask).await.copied()
    }

    /// Whether volumes can be asked for by the time of their last update.
    pub async fn tells_updates(&self) -> Result<bool, AskError> {
        Ok(self.abilities().await?.minor >= UPDATED_SINCE)
    }

    /// Volumes of all projects, or of one.
    pub async fn volumes(&self, wanted: &Wanted) -> Result<Pages<'_, Volume>, AskError> {
        let minor = self.abilities().await?.minor;
        let mut query = vec![("all_tenants".to_owned(), "1".to_owned())];
        if let Some(project) = &wanted.project {
            query.push(("project_id".to_owned(), project.clone()));
        }
        if !wanted.metadata.is_empty() {
            query.push(("metadata".to_owned(), python(&wanted.metadata)));
        }
        if let Some(since) = wanted.updated_since.filter(|_| minor >= UPDATED_SINCE) {
            // Cinder reads no fractions and no zone but `Z`.
            query.push(("updated_at".to_owned(), format!("gte:{since:.0}")));
        }
        let version = Some(format!("volume 3.{minor}"));
        Ok(Pages::new(self, Service::BlockStorage, "/volumes/detail", "volumes", query, version))
    }
}

/// Cinder reads this filter as Python writes a dictionary.
fn python(metadata: &BTreeMap<String, String>) -> String {
    let quoted =
        |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n"));
    let pairs: Vec<String> =
        metadata.iter().map(|(key, value)| format!("{}: {}", quoted(key), quoted(value))).collect();
    format!("{{{}}}", pairs.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_asked_for_as_python_writes_it() {
        let metadata = [("dr", "yes"), ("it's", "a\\b")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(python(&metadata.into()), r"{'dr': 'yes', 'it\'s': 'a\\b'}");
    }
}
