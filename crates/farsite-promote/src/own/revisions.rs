//! Of which release the schemas are: those of the lost site, and those that this site's services had until now. A service whose
//! schema is of another release does not start, or starts and breaks what it does not know.

use std::collections::BTreeSet;

use farsite_sources::mariadb::account::{Door, NoRows, ask_as};
use farsite_sources::mariadb::revisions::{self, Revisions};

use crate::driver;
use crate::site::Accounts;
use crate::sql::Database;

/// Revisions of two sides, compared by database.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Compared {
    /// `glance: 2024_1_contract01`, the same at both.
    pub same: Vec<String>,
    /// Whole sentences.
    pub differ: Vec<String>,
    /// Databases whose revision is known at one side only.
    pub unknown: Vec<String>,
}

/// What brings a service's schema to its own release.
fn sync(database: &str) -> String {
    match database {
        "keystone" | "glance" => format!("`{database}-manage db_sync`"),
        "cinder" => "`cinder-manage db sync`".to_owned(),
        other => format!("{other}'s own db sync"),
    }
}

/// Those that `theirs` has count: services of this site that the other one does not have are not promoted.
pub fn compare(from: &str, theirs: &Revisions, here: &str, own: &Revisions) -> Compared {
    let mut compared = Compared::default();
    for (database, their) in theirs {
        match own.get(database) {
            None => compared.unknown.push(database.clone()),
            Some(our) if our == their => compared.same.push(format!("{database}: {their}")),
            Some(our) => compared.differ.push(format!(
                "{from}'s {database} is at revision {their}, and {here}'s own services have {our}: they are of another release\n  hint: where {here}'s release is the newer one, {} after the restore; where it is the older one, install {from}'s release",
                sync(database)
            )),
        }
    }
    compared
}

/// What a restored or running database says.
pub async fn of_database(database: &Database) -> Result<Revisions, String> {
    let places = database.query(&revisions::question()).await?;
    match revisions::second_question(&places) {
        Some(second) => Ok(revisions::answered(&database.query(&second).await?)),
        None => Ok(Revisions::new()),
    }
}

/// What this site's own database says now, as far as the accounts of `rewrite` and this process's user may see it, and why it says
/// no more.
pub async fn own(accounts: &Accounts, doors: &[Door]) -> (Revisions, Vec<String>) {
    let (mut found, mut why_not) = (Revisions::new(), BTreeSet::new());
    let user = driver::process_account();
    let named = accounts.database().iter().map(|(name, secret)| (name.as_str(), Some(secret)));
    for (name, secret) in named.chain([(user.as_str(), None)]) {
        for door in doors {
            let asked = async {
                let places = ask_as(door, name, secret, &revisions::question()).await?;
                match revisions::second_question(&places) {
                    Some(second) => ask_as(door, name, secret, &second).await,
                    None => Ok(Vec::new()),
                }
            };
            match asked.await {
                Ok(rows) => {
                    found.extend(revisions::answered(&rows));
                    break;
                }
                // That the process's own user has no account there says nothing.
                Err(NoRows::Refused(_)) if secret.is_none() => {}
                Err(error) => {
                    why_not.insert(error.to_string());
                }
            }
        }
    }
    (found, why_not.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_revisions_are_named_and_what_only_one_side_knows_is_not_called_the_same() {
        let revisions = |pairs: &[(&str, &str)]| -> Revisions {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        let theirs = revisions(&[("glance", "2023_2"), ("keystone", "a"), ("nova", "n")]);
        let compared =
            compare("north", &theirs, "south", &revisions(&[("glance", "2024_1"), ("keystone", "a")]));
        assert_eq!(compared.same, ["keystone: a"]);
        assert_eq!(compared.unknown, ["nova"]);
        let [told] = &compared.differ[..] else { panic!("{compared:?}") };
        assert!(
            told.contains("2023_2") && told.contains("2024_1") && told.contains("glance-manage db_sync"),
            "{told}"
        );
    }
}
