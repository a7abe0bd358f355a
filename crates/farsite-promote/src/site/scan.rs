//! Looks for the names of a lost site, in every column of text of the services' databases and in every file of their
//! configuration. What must hold: a new name that has an old one within it is no find; what lies in deleted rows, and what people
//! wrote where no service reads it, is told apart; no password is in an example.

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
    /// No service goes by what stands there.
    pub is_free_text: bool,
    /// Empty where it may hold a password.
    pub example: String,
}

type Names = BTreeMap<&'static str, Vec<(String, String)>>;

/// Words like `nova`, which stand for much else: they are looked for as whole values where zones are.
const ZONES: &str = "zones";

/// Pairs of old and new names of all other kinds, the old ones once each.
fn all(names: &Names) -> Vec<&(String, String)> {
    let others = names.iter().filter(|(kind, _)| **kind != ZONES);
    let mut all: Vec<&(String, String)> = others.flat_map(|(_, pairs)| pairs).collect();
    all.sort();
    all.dedup_by(|a, b| a.0 == b.0);
    all
}

fn zones(names: &Names) -> impl Iterator<Item = &str> {
    names.get(ZONES).into_iter().flatten().map(|(old, _)| old.as_str())
}

/// Whether a column or an option of a configuration (`storage_availability_zone`) holds zones.
fn holds_zones(name: &str) -> bool {
    name.contains("availability_zone")
}

/// Every find in the databases.
pub async fn scan_databases(database: &Database, names: &Names) -> Result<Vec<Found>, String> {
    let (pairs, table) = (all(names), table()?);
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
    for ((schema, of), (columns, can_be_gone)) in tables {
        let gone = table.is_gone.get(&schema).filter(|_| can_be_gone).map_or("FALSE", |rows| rows.as_str());
        let from = format!("`{schema}`.`{of}`");
        // One question for each table; a row of the answer for each column and name that is in it.
        let mut questions = Vec::new();
        for column in &columns {
            let example = example(&of, column);
            let mut ask = |old: &str, holds: &str| {
                questions.push(format!(
                    "SELECT {}, {old}, COALESCE(SUM(NOT ({gone})), 0), COALESCE(SUM({gone}), 0), {example} FROM {from} WHERE {holds} HAVING COUNT(*) > 0",
                    literal(column)
                ));
            };
            let value = format!("CAST(`{column}` AS CHAR)");
            for (old, new) in &pairs {
                let old_text = literal(old);
                // What the new name is, is not looked at.
                let rest = if new.contains(old.as_str()) {
                    format!("REPLACE({value}, {}, '')", literal(new))
                } else {
                    value.clone()
                };
                ask(&old_text, &format!("INSTR({rest}, {old_text}) > 0"));
            }
            for old in zones(names).map(literal).filter(|_| holds_zones(column)) {
                ask(&old, &format!("{value} = {old}"));
            }
        }
        if questions.is_empty() {
            continue;
        }
        for row in database.query(&questions.join(" UNION ALL ")).await? {
            let [Some(column), Some(name), Some(rows), Some(gone), example] = &row[..] else { continue };
            found.push(Found {
                place: format!("{schema}.{of}.{column}"),
                name: name.clone(),
                rows: rows.parse().unwrap_or(1),
                gone: gone.parse().unwrap_or(0),
                is_free_text: table
                    .free_texts
                    .get(&schema)
                    .is_some_and(|columns| columns.contains(&format!("{of}.{column}"))),
                example: example.clone().unwrap_or_default(),
            });
        }
    }
    Ok(found)
}

/// The SQL of an example that may be told: an address without its user and password, and nothing of a column that holds secrets.
fn example(table: &str, column: &str) -> String {
    let secrets = ["auth", "secret", "password", "blob", "connection_info", "crypt"];
    if table == "sensitive_config" || secrets.iter().any(|word| column.contains(word)) {
        return "''".to_owned();
    }
    format!("MIN(LEFT(REGEXP_REPLACE(CAST(`{column}` AS CHAR), '://[^/@ ]*@', '://'), 120))")
}

/// Every find in files below these paths. Files that are no text are left out, and so are lines that are comments.
pub fn scan_files(paths: &[PathBuf], names: &Names) -> Result<Vec<Found>, String> {
    let mut found = Vec::new();
    for path in paths {
        each_text(path, "looking for the lost site's names in", &mut |path, text| {
            for (number, line) in text.lines().enumerate() {
                found.extend(in_line(line, names).into_iter().map(|name| Found {
                    place: format!("{}:{}", path.display(), number + 1),
                    name,
                    rows: 1,
                    gone: 0,
                    is_free_text: false,
                    // A line of a configuration may hold a password.
                    example: line.split_once('=').map_or("", |(key, _)| key.trim()).to_owned(),
                }));
            }
        })?;
    }
    Ok(found)
}

fn in_line(line: &str, names: &Names) -> Vec<String> {
    if line.trim_start().starts_with(['#', ';']) {
        return Vec::new();
    }
    let mut found: Vec<String> = all(names)
        .into_iter()
        .filter(|(old, new)| {
            let rest =
                if new.contains(old.as_str()) { line.replace(new.as_str(), "") } else { line.to_owned() };
            rest.contains(old.as_str())
        })
        .map(|(old, _)| old.clone())
        .collect();
    // An option may hold several.
    if let Some((_, values)) = line.split_once(['=', ':']).filter(|(key, _)| holds_zones(key)) {
        let of_line =
            |zone: &&str| values.split(',').any(|value| value.trim().trim_matches(['"', '\'']) == *zone);
        found.extend(zones(names).filter(of_line).map(str::to_owned));
    }
    found
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
    fn a_zone_is_found_where_zones_are_and_not_in_whatever_else_has_its_name() {
        let names = BTreeMap::from([("zones", vec![("nova".to_owned(), "south".to_owned())])]);
        for line in ["[nova]", "username = nova", "enabled = nova", "allow_availability_zone_fallback = true"]
        {
            assert_eq!(in_line(line, &names), [""; 0], "{line}");
        }
        for line in [
            "storage_availability_zone = nova",
            "default_availability_zone=\"nova\"",
            "az_availability_zones = a, nova",
        ] {
            assert_eq!(in_line(line, &names), ["nova"], "{line}");
        }
        assert_eq!(in_line("storage_availability_zone = nova-2", &names), [""; 0]);
    }

    #[test]
    fn no_example_is_told_of_a_column_that_holds_secrets() {
        for (table, column) in
            [("volumes", "provider_auth"), ("sensitive_config", "value"), ("credential", "encrypted_blob")]
        {
            assert_eq!(example(table, column), "''");
        }
        assert!(example("endpoint", "url").contains("`url`"));
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
