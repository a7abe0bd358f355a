//! Which revision the schema of each database has, as the services' own migrations note it: `alembic_version`, or
//! `migrate_version` in old releases. Two questions to a server go out, its answers come in; what comes of them goes by the
//! database's name. A service of another release than its schema does not start, or damages what it does not know.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::{fs, io};

use super::literal;

/// Table and column. Where a database has both, the first one counts: the other was left behind by a migration.
const TABLES: [(&str, &str); 2] = [("alembic_version", "version_num"), ("migrate_version", "version")];

/// Revisions by database; several heads stand side by side with a comma between them.
pub type Revisions = BTreeMap<String, String>;

/// What the keys of an item's details begin with that tell a revision: `revision.glance`.
pub const DETAIL: &str = "revision.";

/// For a manifest.
pub fn as_details(revisions: &Revisions) -> impl Iterator<Item = (String, String)> {
    revisions.iter().map(|(schema, revision)| (format!("{DETAIL}{schema}"), revision.clone()))
}

/// Out of a manifest; none where they were not known at the capture.
pub fn of_details(details: &BTreeMap<String, String>) -> Revisions {
    let named =
        |(key, revision): (&String, &String)| Some((key.strip_prefix(DETAIL)?.to_owned(), revision.clone()));
    details.iter().filter_map(named).collect()
}

/// The databases in a server's folder that note a revision, by the names of their own folders; none where there is no such folder.
/// Nobody has to let anybody in for that, and the server may be stopped.
pub fn on_disk(datadir: &Path) -> io::Result<Vec<String>> {
    let folders = match fs::read_dir(datadir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        folders => folders?,
    };
    let mut found = Vec::new();
    for folder in folders {
        let path = folder?.path();
        if !path.is_dir() {
            continue;
        }
        let mut notes_one = false;
        for file in fs::read_dir(&path)? {
            let stem = Path::new(&file?.file_name()).file_stem().map(OsStr::to_owned);
            notes_one |= TABLES.iter().any(|(table, _)| stem.as_deref() == Some(OsStr::new(table)));
        }
        if notes_one {
            found.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    found.sort();
    Ok(found)
}

/// Asks which databases note a revision; its rows belong to [`second_question`].
pub fn question() -> String {
    let names: Vec<String> = TABLES.iter().map(|(table, _)| literal(table)).collect();
    format!(
        "SELECT table_schema, table_name FROM information_schema.tables WHERE table_name IN ({}) ORDER BY table_schema",
        names.join(", ")
    )
}

/// The second question; `None`: nothing notes a revision.
pub fn second_question(places: &[Vec<Option<String>>]) -> Option<String> {
    let parts: Vec<String> = places
        .iter()
        .filter_map(|row| match row.as_slice() {
            [Some(schema), Some(table)] => {
                let (rank, (table, column)) =
                    TABLES.iter().enumerate().find(|(_, (known, _))| known == table)?;
                let name = schema.replace('`', "``");
                Some(format!(
                    "SELECT {} AS name, {rank} AS place, CONVERT(CAST(`{column}` AS CHAR) USING utf8mb4) AS revision FROM `{name}`.`{table}`",
                    literal(schema)
                ))
            }
            _ => None,
        })
        .collect();
    (!parts.is_empty()).then(|| format!("{} ORDER BY name, place, revision", parts.join(" UNION ALL ")))
}

/// What the second answer says.
pub fn answered(rows: &[Vec<Option<String>>]) -> Revisions {
    let mut found: BTreeMap<String, (String, String)> = BTreeMap::new();
    for row in rows {
        let [Some(schema), Some(place), Some(revision)] = row.as_slice() else { continue };
        match found.get_mut(schema) {
            None => {
                found.insert(schema.clone(), (place.clone(), revision.clone()));
            }
            Some((known, heads)) if known == place => {
                heads.push_str(", ");
                heads.push_str(revision);
            }
            // The rows are in order: the better place was there first.
            Some(_) => {}
        }
    }
    found.into_iter().map(|(schema, (_, revision))| (schema, revision)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<Option<String>> {
        cells.iter().map(|cell| Some((*cell).to_owned())).collect()
    }

    #[test]
    fn what_an_old_migration_left_behind_does_not_count_and_heads_stand_side_by_side() {
        let rows = [
            row(&["keystone", "0", "742c857f1dfb"]),
            row(&["keystone", "1", "109"]),
            row(&["neutron", "0", "aaa"]),
            row(&["neutron", "0", "bbb"]),
            row(&["old", "1", "44"]),
        ];
        let found = answered(&rows);
        assert_eq!(found["keystone"], "742c857f1dfb");
        assert_eq!((found["neutron"].as_str(), found["old"].as_str()), ("aaa, bbb", "44"));
    }

    #[test]
    fn a_database_is_asked_by_its_name_and_one_that_notes_nothing_is_not_asked() {
        assert_eq!(second_question(&[]), None);
        let asked = second_question(&[row(&["gl`ance", "alembic_version"])]).unwrap();
        assert!(asked.contains("FROM `gl``ance`.`alembic_version`"), "{asked}");
    }
}
