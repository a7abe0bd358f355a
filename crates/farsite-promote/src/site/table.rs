//! The table of what names a site, as it is written.

use std::collections::{BTreeMap, BTreeSet};

use farsite_model::yaml;
use serde::Deserialize;

const TEXT: &str = include_str!("table.yaml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Table {
    pub(super) releases: BTreeMap<String, Releases>,
    pub(super) changes: Vec<Change>,
    /// Which rows of a database's tables count as deleted.
    pub(super) is_gone: BTreeMap<String, String>,
    /// `table.column` of a database that people write what they like into.
    pub(super) free_texts: BTreeMap<String, BTreeSet<String>>,
}

/// Where a database's schema says its revision, and with which ones the table was tried.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Releases {
    pub(super) table: String,
    pub(super) column: String,
    pub(super) known: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    /// The database.
    #[serde(rename = "in")]
    pub(super) database: String,
    /// `table.column`; or else `what` and `statements`.
    pub(super) column: Option<String>,
    pub(super) how: Option<How>,
    pub(super) names: Option<String>,
    pub(super) what: Option<String>,
    #[serde(default)]
    pub(super) statements: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum How {
    Whole,
    Begins,
    Host,
    Within,
}

/// The table that is built in.
pub(super) fn table() -> Result<Table, String> {
    yaml::parse("table.yaml", TEXT).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_a_column_with_a_way_or_statements_with_a_word() {
        let kinds = ["regions", "urls", "hosts", "exports", "paths", "clusters", "zones"];
        for change in table().unwrap().changes {
            let is_column = change.column.is_some() && change.how.is_some() && change.names.is_some();
            let is_statement = change.what.is_some() && !change.statements.is_empty();
            assert!(is_column != is_statement, "{change:?}");
            assert!(super::super::DATABASES.contains(&&*change.database), "{change:?}");
            assert!(change.names.iter().all(|kind| kinds.contains(&kind.as_str())), "{change:?}");
            assert!(change.column.iter().all(|column| column.split('.').count() == 2), "{change:?}");
        }
    }

    #[test]
    fn no_column_that_is_rewritten_or_that_a_service_goes_by_is_a_free_text() {
        let table = table().unwrap();
        for (database, columns) in &table.free_texts {
            assert!(super::super::DATABASES.contains(&&**database), "{database}");
            for full in columns {
                let (of, column) = full.split_once('.').unwrap();
                let people_write =
                    ["name", "description", "extra", "metadata", "reason", "properties", "tag"];
                assert!(
                    people_write.iter().any(|word| full.contains(word))
                        || of.starts_with("metadef_")
                        || of == "task_info",
                    "{full}"
                );
                let services_read =
                    ["host", "url", "region_id", "zone", "location", "specs", "config", "admin"];
                assert!(!services_read.iter().any(|word| full.contains(word)), "{full}");
                assert!(!matches!(column, "cluster_name" | "resource_name"), "{full}");
                let is_rewritten =
                    |change: &Change| change.database == *database && change.column.as_ref() == Some(full);
                assert!(!table.changes.iter().any(is_rewritten), "{full}");
            }
        }
    }
}
