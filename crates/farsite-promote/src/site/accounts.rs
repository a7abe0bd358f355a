//! Passwords that a promoted database brings from the old site, where the services of this one hold others: those of the
//! database's own accounts, and of the services' users in Keystone. What must hold: no password is in a statement, only what
//! is made of it and cannot be turned back.

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use farsite_model::config::SiteRewrite;
use farsite_model::secret::{Secret, SecretRef};

use super::literal;
use crate::sql::{Database, first};

/// Work factor of a password's hash, Keystone's own default (`[identity] password_hash_rounds`).
const BCRYPT_COST: u32 = 12;

/// Passwords that are known to be there.
#[derive(Debug)]
pub struct Accounts {
    database: Vec<(String, Secret)>,
    services: Vec<(String, Secret)>,
}

impl Accounts {
    /// Fetches them all, so that one that is missing is found before anything is changed.
    pub fn fetch(rewrite: &SiteRewrite) -> Result<Self, String> {
        let fetch = |kind: &str, secrets: &BTreeMap<String, SecretRef>| {
            secrets
                .iter()
                .map(|(name, secret)| match secret.resolve() {
                    Ok(secret) => Ok((name.clone(), secret)),
                    Err(error) => Err(format!("the password of the {kind} {name}: {error}")),
                })
                .collect::<Result<Vec<_>, String>>()
        };
        Ok(Self {
            database: fetch("database account", &rewrite.database_passwords)?,
            services: fetch("service user", &rewrite.service_passwords)?,
        })
    }

    /// Accounts of the database with their passwords.
    pub fn database(&self) -> &[(String, Secret)] {
        &self.database
    }

    /// Users in Keystone with their passwords.
    pub fn services(&self) -> &[(String, Secret)] {
        &self.services
    }

    pub fn is_empty(&self) -> bool {
        self.database.is_empty() && self.services.is_empty()
    }

    /// In words, without a secret.
    pub fn named(&self) -> String {
        let names =
            |all: &[(String, Secret)]| all.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", ");
        format!("database accounts: {}; service users: {}", names(&self.database), names(&self.services))
    }
}

/// Gives the accounts the passwords that this site's services have. It may be done again and again.
pub async fn set_accounts(database: &Database, accounts: &Accounts) -> Result<(), String> {
    let mut statements = Vec::new();
    for (name, secret) in &accounts.database {
        let sql = format!("SELECT host FROM mysql.user WHERE user = {}", literal(name));
        let hosts: Vec<String> = database
            .query(&sql)
            .await?
            .into_iter()
            .filter_map(|row| row.into_iter().next().flatten())
            .collect();
        if hosts.is_empty() {
            return Err(format!(
                "the restored database has no account {name}\n  hint: look at `rewrite.database-passwords` in farsite.yaml"
            ));
        }
        let hash = native_hash(secret.expose());
        statements.extend(hosts.iter().map(|host| {
            format!("ALTER USER '{}'@'{}' IDENTIFIED BY PASSWORD '{hash}'", plain(name), plain(host))
        }));
    }
    for (name, secret) in &accounts.services {
        let user =
            format!("FROM keystone.local_user WHERE name = {} AND domain_id = 'default'", literal(name));
        if first(&database.query(&format!("SELECT COUNT(*) {user}")).await?) != Some("1") {
            return Err(format!(
                "Keystone's database has no user {name} in its default domain\n  hint: look at `rewrite.service-passwords` in farsite.yaml"
            ));
        }
        let secret = secret.clone();
        let hash = tokio::task::spawn_blocking(move || bcrypt::hash(secret.expose(), BCRYPT_COST))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("hashing the password of {name}: {error}"))?;
        statements.push(format!(
            "UPDATE keystone.password SET password_hash = {} WHERE local_user_id IN (SELECT id {user})",
            literal(&hash)
        ));
    }
    database.execute(&statements).await
}

/// What `mysql_native_password` keeps: SHA-1 of SHA-1.
fn native_hash(password: &str) -> String {
    use std::fmt::Write;
    let once = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, password.as_bytes());
    let twice = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, once.as_ref());
    let mut text = String::from("*");
    for byte in twice.as_ref() {
        let _ = write!(text, "{byte:02X}");
    }
    text
}

/// Names of accounts stand in quotes.
fn plain(name: &str) -> String {
    name.replace('\\', "\\\\").replace('\'', "''")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_one_that_the_server_makes() {
        // SELECT PASSWORD('password') in MariaDB 10.11
        assert_eq!(native_hash("password"), "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19");
    }

    #[test]
    fn a_password_that_cannot_be_fetched_is_named_and_nothing_is_changed() {
        let rewrite: SiteRewrite = serde_json::from_value(
            serde_json::json!({"service-passwords": {"glance": "file:/nonexistent/p"}}),
        )
        .unwrap();
        let error = Accounts::fetch(&rewrite).unwrap_err();
        assert!(error.contains("glance") && error.contains("/nonexistent/p"), "{error}");
    }
}
