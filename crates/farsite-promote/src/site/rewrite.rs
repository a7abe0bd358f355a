//! The table and the names become statements for the columns that a database really has.

use std::collections::{BTreeMap, BTreeSet};

use super::table::{Change, How, table};
use super::{DATABASES, literal};
use crate::sql::{Database, first};

/// Statements in their order, and what each step of the table is about.
#[derive(Debug, Default)]
pub struct Prepared {
    pub statements: Vec<String>,
    /// Questions for how many rows hold an old name: `cinder.volumes.host`, and the SQL.
    pub counts: Vec<(String, String)>,
    /// What is rewritten besides single columns, in words.
    pub also: Vec<String>,
    /// Databases whose schema the table was not tried with.
    pub unknown: Vec<String>,
}

/// What has to be done in this database. Columns that its release does not have are left out.
pub async fn prepare(
    database: &Database,
    names: &BTreeMap<&'static str, Vec<(String, String)>>,
) -> Result<Prepared, String> {
    let table = table()?;
    let mut there = columns(database).await?;
    let mut prepared = Prepared::default();
    for (name, releases) in &table.releases {
        if !there.iter().any(|column| column.starts_with(&format!("{name}."))) {
            continue;
        }
        let (column, table) = (&releases.column, &releases.table);
        let revision = if there.contains(&format!("{name}.{table}.{column}")) {
            first(&database.query(&format!("SELECT {column} FROM {name}.{table}")).await?)
                .unwrap_or("none")
                .to_owned()
        } else {
            // Not of OpenStack's making: what its columns mean is not known.
            prepared.unknown.push(format!("{name}, which has no {table}, is left as it is"));
            there.retain(|column| !column.starts_with(&format!("{name}.")));
            continue;
        };
        if !releases.known.contains(&revision) {
            prepared.unknown.push(format!("{name} {revision}"));
        }
    }
    for change in &table.changes {
        let none = Vec::new();
        let pairs = change.names.as_ref().map(|kind| names.get(kind.as_str()).unwrap_or(&none));
        if let (Some(column), Some(how), Some(pairs)) = (&change.column, change.how, pairs) {
            let full = format!("{}.{column}", change.database);
            if there.contains(&full) && !pairs.is_empty() {
                column_change(&full, how, pairs, &mut prepared);
            }
        } else {
            statement_change(change, pairs.map(Vec::as_slice), &there, &mut prepared);
        }
    }
    Ok(prepared)
}

/// `database.table.column` of everything that is there.
async fn columns(database: &Database) -> Result<BTreeSet<String>, String> {
    let quoted: Vec<String> = DATABASES.iter().map(|name| literal(name)).collect();
    let sql = format!(
        "SELECT CONCAT(table_schema, '.', table_name, '.', column_name) FROM information_schema.columns WHERE table_schema IN ({})",
        quoted.join(", ")
    );
    Ok(database.query(&sql).await?.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

fn column_change(full: &str, how: How, pairs: &[(String, String)], prepared: &mut Prepared) {
    let Some((table, column)) = full.rsplit_once('.') else { return };
    let holds = |old: &str| {
        let (old, length) = (literal(old), old.chars().count());
        match how {
            How::Whole => format!("`{column}` = {old}"),
            How::Begins => format!("LEFT(`{column}`, {length}) = {old}"),
            How::Host => format!(
                "(`{column}` = {old} OR (LEFT(`{column}`, {length}) = {old} AND SUBSTRING(`{column}`, {}, 1) IN ('@', '#')))",
                length + 1
            ),
            How::Within => format!("INSTR(`{column}`, {old}) > 0"),
        }
    };
    for (old, new) in pairs {
        let value = match how {
            How::Whole => literal(new),
            How::Begins | How::Host => {
                format!("CONCAT({}, SUBSTRING(`{column}`, {}))", literal(new), old.chars().count() + 1)
            }
            How::Within => format!("REPLACE(`{column}`, {}, {})", literal(old), literal(new)),
        };
        prepared.statements.push(format!("UPDATE {table} SET `{column}` = {value} WHERE {}", holds(old)));
    }
    let any: Vec<String> = pairs.iter().map(|(old, _)| holds(old)).collect();
    prepared
        .counts
        .push((full.to_owned(), format!("SELECT COUNT(*) FROM {table} WHERE {}", any.join(" OR "))));
}

/// Statements of tables that a release does not have are left out.
fn statement_change(
    change: &Change,
    pairs: Option<&[(String, String)]>,
    there: &BTreeSet<String>,
    prepared: &mut Prepared,
) {
    let is_there = |statement: &str| {
        let tables =
            statement.split([' ', '(']).filter(|word| word.starts_with(&format!("{}.", change.database)));
        tables.into_iter().all(|table| there.iter().any(|column| column.starts_with(&format!("{table}."))))
    };
    let statements = change.statements.iter().filter(|statement| is_there(statement));
    if statements.clone().next().is_some() && pairs.is_none_or(|pairs| !pairs.is_empty()) {
        prepared.also.extend(change.what.clone());
    }
    match pairs {
        None => prepared.statements.extend(statements.cloned()),
        Some(pairs) => {
            for (old, new) in pairs {
                prepared.statements.extend(statements.clone().map(|statement| {
                    statement.replace("{old}", &literal(old)).replace("{new}", &literal(new))
                }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_not_taken_for_one_whose_name_goes_on() {
        let mut prepared = Prepared::default();
        let pairs = [("ctl".to_owned(), "south".to_owned())];
        column_change("cinder.volumes.host", How::Host, &pairs, &mut prepared);
        let [statement] = &prepared.statements[..] else { panic!("one statement") };
        assert!(statement.starts_with("UPDATE cinder.volumes SET `host` = CONCAT("), "{statement}");
        assert!(statement.contains("SUBSTRING(`host`, 4, 1) IN ('@', '#')"), "{statement}");
    }

    #[test]
    fn statements_of_tables_that_are_not_there_are_left_out() {
        let change = Change {
            database: "cinder".into(),
            column: None,
            how: None,
            names: None,
            what: Some("x".into()),
            statements: vec![
                "DELETE FROM cinder.workers".into(),
                "DELETE FROM cinder.gone WHERE a = 1".into(),
            ],
        };
        let there = BTreeSet::from(["cinder.workers.id".to_owned()]);
        let mut prepared = Prepared::default();
        statement_change(&change, None, &there, &mut prepared);
        assert_eq!(prepared.statements, ["DELETE FROM cinder.workers"]);
    }
}
