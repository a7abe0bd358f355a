//! `check-keys`: whether the keys that were carried open what the database holds. Keystone writes beside each credential the SHA-1
//! of the key that encrypted it; without that key it can never be read again, and its API answers 500.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::digest;
use farsite_model::content::{TreeEntry, TreeEntryKind};
use farsite_runbook::action::{Action, ActionContext, ActionError, Foreseen, Outcome, parameters};
use farsite_store::hex;
use serde::Deserialize;
use serde_json::Value;

use super::Held;
use crate::group_run::failed;
use crate::sql::Database;

pub(crate) struct CheckKeys(pub(super) Held);

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct With {
    /// Keystone's folders (`key_repository`); an empty one is not looked at.
    #[serde(default)]
    credential_keys: String,
    #[serde(default)]
    fernet_keys: String,
}

/// SHA-1 of each key of a folder, by the file's name.
fn hashes(folder: &Path) -> Result<BTreeMap<String, String>, String> {
    let fail = |e: std::io::Error| {
        format!("{}: {e}\n  hint: are Keystone's key folders among the policy's `files`?", folder.display())
    };
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Keys are called by numbers.
        if !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit()) {
            let key = std::fs::read_to_string(entry.path()).map_err(fail)?;
            let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, key.trim().as_bytes());
            found.insert(name, hex::encode(hash.as_ref()));
        }
    }
    if found.is_empty() { Err(format!("{} holds no key", folder.display())) } else { Ok(found) }
}

async fn used(database: &Database) -> Result<Vec<(String, u64)>, String> {
    let there = "SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = 'keystone' AND table_name = 'credential' AND column_name = 'key_hash'";
    if crate::sql::first(&database.query(there).await?) != Some("1") {
        return Ok(Vec::new());
    }
    let sql =
        "SELECT key_hash, COUNT(*) FROM keystone.credential WHERE key_hash IS NOT NULL GROUP BY key_hash";
    let rows = database.query(sql).await?.into_iter().filter_map(|row| match &row[..] {
        [Some(hash), Some(count)] => Some((hash.clone(), count.parse().unwrap_or(1))),
        _ => None,
    });
    Ok(rows.collect())
}

#[async_trait]
impl Action for CheckKeys {
    fn name(&self) -> &'static str {
        "check-keys"
    }
    fn summary(&self) -> &'static str {
        "Keystone's key folders (`credential-keys`, `fernet-keys`) hold the keys that the restored database was encrypted with"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        parameters::<With>(with).map(|_| ())
    }
    fn changes_nothing(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_mins(2)
    }
    async fn run(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        let mut outcome = Outcome::said("no key folder is named: nothing was looked at");
        if !with.fernet_keys.is_empty() {
            let keys = hashes(Path::new(&with.fernet_keys)).map_err(|e| failed(context, e))?;
            outcome.detail = format!("{} keys of tokens", keys.len());
        }
        if with.credential_keys.is_empty() {
            // Not a fault by itself; but nobody shall take it for a good answer.
            if let Ok((database @ Database::Mariadb(_), item)) = run.database(None) {
                let used = used(&database).await.map_err(|e| failed(context, format!("{}: {e}", item.id)))?;
                let count: u64 = used.iter().map(|(_, count)| count).sum();
                if count > 0 {
                    let words =
                        format!("the keys of {count} credentials: the variable credential_keys is empty");
                    outcome = outcome.with("not checked", words);
                }
            }
        } else {
            let there = hashes(Path::new(&with.credential_keys)).map_err(|e| failed(context, e))?;
            let there: BTreeSet<&String> = there.values().collect();
            let (database, item) = run.database(None)?;
            let used = match database {
                Database::Mariadb(_) => {
                    used(&database).await.map_err(|e| failed(context, format!("{}: {e}", item.id)))?
                }
                Database::Sqlite(_) => Vec::new(),
            };
            let lost: u64 =
                used.iter().filter(|(hash, _)| !there.contains(hash)).map(|(_, count)| count).sum();
            if lost > 0 {
                return Err(failed(
                    context,
                    format!(
                        "{lost} credentials are encrypted with a key that {} does not hold: they can never be read without it\n  hint: the keys were rotated twice between the point's files and its database; take the point without the log behind it (`--point latest`), or an earlier one",
                        with.credential_keys
                    ),
                ));
            }
            let count: u64 = used.iter().map(|(_, count)| count).sum();
            outcome.detail = format!("{} keys open all {count} credentials", there.len());
        }
        Ok(outcome)
    }
    async fn dry_run(&self, _: &ActionContext, with: &Value) -> Result<Foreseen, ActionError> {
        let run = self.0.run()?;
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        let carried = run.carried_files().await.map_err(ActionError::Failed)?;
        let mut said = Vec::new();
        for (kind, folder) in [("tokens", &with.fernet_keys), ("credentials", &with.credential_keys)] {
            if folder.is_empty() {
                continue;
            }
            let folder = Path::new(folder);
            let below = run.targets.files.as_ref().and_then(|root| folder.strip_prefix(root).ok());
            let keys = match below {
                // As it will stand there.
                Some(below) => keys_below(&carried, below).map_err(|why| {
                    ActionError::failed(format!(
                        "the point holds no key of {kind} in /{}: {why}\n  hint: put Keystone's key folders among the policy's `files`, and take a new point; or correct the variable",
                        below.display()
                    ))
                })?,
                None => hashes(folder).map_err(ActionError::Failed)?.len(),
            };
            said.push(format!("{keys} keys of {kind}"));
        }
        let says = if said.is_empty() { "no key folder is named".to_owned() } else { said.join(", ") };
        let says = Foreseen::from(says);
        let has_server = run.databases().iter().any(|item| item.kind == farsite_model::ItemKind::Mariadb);
        Ok(if with.credential_keys.is_empty() && has_server {
            says.noting("whether the keys of credentials come with the point is not looked at: the variable credential_keys is empty")
        } else if with.credential_keys.is_empty() {
            says
        } else {
            says.noting("which keys the database was encrypted with shows only when it is restored; a drill tells it before")
        })
    }
}

/// How many keys the point has in a folder; keys are called by numbers, and none is empty.
fn keys_below(carried: &[TreeEntry], folder: &Path) -> Result<usize, String> {
    let mut keys = 0;
    for entry in carried {
        let path = Path::new(&entry.path);
        let is_key = path.parent() == Some(folder)
            && path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
        match entry.kind {
            TreeEntryKind::File { size_bytes: 0, .. } if is_key => {
                return Err(format!("{} is empty", entry.path));
            }
            TreeEntryKind::File { .. } if is_key => keys += 1,
            _ => {}
        }
    }
    if keys == 0 { Err("no file there is called by a number".into()) } else { Ok(keys) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_sha1_and_a_folder_without_keys_is_no_folder_of_keys() {
        let dir = tempfile::tempdir().unwrap();
        assert!(hashes(dir.path()).unwrap_err().contains("holds no key"));
        std::fs::write(dir.path().join("0"), "abc\n").unwrap();
        std::fs::write(dir.path().join("README"), "no key").unwrap();
        let found = hashes(dir.path()).unwrap();
        assert_eq!(found.len(), 1);
        // FIPS 180-2, example of SHA-1 ("abc")
        assert_eq!(found["0"], "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert!(hashes(&dir.path().join("gone")).unwrap_err().contains("hint:"));
    }
}
