//! Looks for the names of a lost site, in every column of text of the services' databases and in every file of their
//! configuration. What must hold: a new name that has an old one within it is no find; what lies in deleted rows is told
//! apart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::table::table;
use super::{DATABASES, literal};
use crate::sql::Database;

/// Longest file that is looked at: a configuration is no longer.
const FILE_BYTES: u64 = 4 << 20;

/// A place that holds a name of the lost site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// `cinder.volumes.host`, or a path with its line.
    pub place: String,
    pub name: String,
    /// Rows or lines that count.
    pub rows: u64,
    /// Rows that are marked as deleted.
    pub gone: u64,
    pub example: String,
}

/// Pairs of old and new names of all kinds, the old ones once each.
fn all<'n>(names: &'n BTreeMap<&'static str, Vec<(String, String)>>) -> Vec<&'n (String, String)> {
    let mut all: Vec<&(String, String)> = names.values().flatten().collect();
    all.sort();
    all.dedup_by(|a, b| a.0 == b.0);
    all
}

/// Every find in the databases.
pub async fn scan_databases(
    database: &Database,
    names: &BTreeMap<&'static str, Vec<(String, String)>>,
) -> Result<Vec<Found>, String> {
    let (pairs, is_gone) = (all(names), table()?.is_gone);
    let quoted: Vec<String> = DATABASES.iter().map(|name| literal(name)).collect();
    let sql = format!(
        "SELECT table_schema, table_name, column_name, data_type FROM information_schema.columns WHERE table_schema IN ({}) ORDER BY 1, 2, ordinal_position",
        quoted.join(", ")
    );
    let mut tables: BTreeMap<(String, String), (Vec<String>, bool)> = BTreeMap::new();
    for row in database.query(&sql).await? {
        let [Some(schema), Some(table), Some(column), Some(kind)] = &row[..] else { continue };
        let entry = tables.entry((schema.clone(), table.clone())).or_default();
        entry.1 |= column == "deleted";
        if ["char", "text", "blob", "json"].iter().any(|word| kind.ends_with(word)) {
            entry.0.push(column.clone());
        }
    }
    let mut found = Vec::new();
    for ((schema, table), (columns, can_be_gone)) in tables {
        let gone = is_gone.get(&schema).filter(|_| can_be_gone).map_or("FALSE", |rows| rows.as_str());
        // One question for each table; a row of the answer for each column and name that is in it.
        let questions: Vec<String> = columns
            .iter()
            .flat_map(|column| {
                let (schema, table) = (&schema, &table);
                pairs.iter().map(move |(old, new)| {
                    let (value, old_text) = (format!("CAST(`{column}` AS CHAR)"), literal(old));
                    // What the new name is, is not looked at.
                    let value = if new.contains(old.as_str()) {
                        format!("REPLACE({value}, {}, '')", literal(new))
                    } else {
                        value
                    };
                    format!(
                        "SELECT {}, {old_text}, COALESCE(SUM(NOT ({gone})), 0), COALESCE(SUM({gone}), 0), MIN(LEFT(CAST(`{column}` AS CHAR), 120)) FROM `{schema}`.`{table}` WHERE INSTR({value}, {old_text}) > 0 HAVING COUNT(*) > 0",
                        literal(column)
                    )
                })
            })
            .collect();
        if questions.is_empty() {
            continue;
        }
        for row in database.query(&questions.join(" UNION ALL ")).await? {
            let [Some(column), Some(name), Some(rows), Some(gone), example] = &row[..] else { continue };
            found.push(Found {
                place: format!("{schema}.{table}.{column}"),
                name: name.clone(),
                rows: rows.parse().unwrap_or(1),
                gone: gone.parse().unwrap_or(0),
                example: example.clone().unwrap_or_default(),
            });
        }
    }
    Ok(found)
}

/// Every find in files below these paths. Files that are no text are left out, and so are lines that are comments.
pub fn scan_files(
    paths: &[PathBuf],
    names: &BTreeMap<&'static str, Vec<(String, String)>>,
) -> Result<Vec<Found>, String> {
    let mut found = Vec::new();
    for path in paths {
        scan_path(path, &all(names), &mut found)?;
    }
    Ok(found)
}

fn scan_path(path: &Path, pairs: &[&(String, String)], found: &mut Vec<Found>) -> Result<(), String> {
    each_text(path, "looking for the lost site's names in", &mut |path, text| {
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with(['#', ';']) {
                continue;
            }
            for (old, new) in pairs {
                let rest =
                    if new.contains(old.as_str()) { line.replace(new.as_str(), "") } else { line.to_owned() };
                if rest.contains(old.as_str()) {
                    found.push(Found {
                        place: format!("{}:{}", path.display(), number + 1),
                        name: old.clone(),
                        rows: 1,
                        gone: 0,
                        // A line of a configuration may hold a password.
                        example: line.split_once('=').map_or("", |(key, _)| key.trim()).to_owned(),
                    });
                }
            }
        }
    })
}

/// Reads every file of text below a path, one after the other, in the order of their names; `what` begins an error. Links are not
/// followed.
pub(crate) fn each_text(path: &Path, what: &str, see: &mut dyn FnMut(&Path, &str)) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("{what} {}: {error}", path.display());
    let metadata = std::fs::symlink_metadata(path).map_err(fail)?;
    if metadata.is_dir() {
        let mut entries: Vec<PathBuf> = std::fs::read_dir(path)
            .map_err(fail)?
            .map(|entry| entry.map(|e| e.path()))
            .collect::<Result<_, _>>()
            .map_err(fail)?;
        entries.sort();
        return entries.iter().try_for_each(|entry| each_text(entry, what, see));
    }
    if !metadata.is_file() || metadata.len() > FILE_BYTES {
        return Ok(());
    }
    if let Ok(text) = String::from_utf8(std::fs::read(path).map_err(fail)?) {
        see(path, &text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_configuration_is_found_and_its_value_is_not_told() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("cinder.conf"),
            "# was ctl-north\nhost = ctl-south\nconnection = mysql://x:secret@ctl-north/cinder\n",
        )
        .unwrap();
        let names = BTreeMap::from([("hosts", vec![("ctl-north".to_owned(), "ctl-south".to_owned())])]);
        let found = scan_files(&[dir.path().to_owned()], &names).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].place.ends_with("cinder.conf:3"));
        assert_eq!((found[0].name.as_str(), found[0].example.as_str()), ("ctl-north", "connection"));
    }

    #[test]
    fn a_new_name_that_has_the_old_one_within_it_is_no_find() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "host = ctl-2\n").unwrap();
        let names = BTreeMap::from([("hosts", vec![("ctl".to_owned(), "ctl-2".to_owned())])]);
        assert_eq!(scan_files(&[dir.path().to_owned()], &names).unwrap(), []);
        std::fs::write(dir.path().join("a"), "host = ctl\n").unwrap();
        assert_eq!(scan_files(&[dir.path().to_owned()], &names).unwrap().len(), 1);
    }
}
