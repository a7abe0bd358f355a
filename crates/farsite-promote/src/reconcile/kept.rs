//! The whole list of what was not as its row said, kept in the restored database itself: in the transaction that puts the rows
//! right, so that it is there whenever they are, and however long it is. A journal's entry holds the gravest of it.

use super::{Gravity, Line};
use crate::sql::{Database, quoted};

/// Beside the notes of promotions.
const TABLE: &str = "farsite.farsite_reconciled";
/// Lines in one statement.
const AT_ONCE: usize = 100;

/// Makes the table; that cannot be done within a transaction.
pub(crate) async fn make_room(database: &Database) -> Result<(), String> {
    let table = format!(
        "CREATE TABLE IF NOT EXISTS {TABLE} (promotion VARCHAR(32) NOT NULL, place INT NOT NULL, gravity INT NOT NULL, subject TEXT NOT NULL, line TEXT NOT NULL, PRIMARY KEY (promotion, place)) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4"
    );
    database.execute(&["CREATE DATABASE IF NOT EXISTS farsite".to_owned(), table]).await
}

/// Writes `lines` down in their order.
pub(crate) fn statements(promotion: &str, lines: &[Line]) -> Vec<String> {
    let mut place = 0;
    let mut row = |line: &Line| {
        place += 1;
        let (gravity, subject, line) = (line.gravity as u8, quoted(&line.subject), quoted(&line.said));
        format!("({}, {place}, {gravity}, {subject}, {line})", quoted(promotion))
    };
    lines
        .chunks(AT_ONCE)
        .map(|lines| {
            let rows: Vec<String> = lines.iter().map(&mut row).collect();
            format!(
                "INSERT INTO {TABLE} (promotion, place, gravity, subject, line) VALUES {}",
                rows.join(", ")
            )
        })
        .collect()
}

/// What is kept of a promotion.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) found: usize,
    pub(crate) held_back: usize,
    /// Subjects and what was found, the gravest first; no more than were asked for.
    pub(crate) first: Vec<(String, String)>,
}

/// `None`: nothing was ever kept there.
pub(crate) async fn read(
    database: &Database,
    promotion: &str,
    at_most: usize,
) -> Result<Option<Kept>, String> {
    if !database.has_table("farsite", "farsite_reconciled").await? {
        return Ok(None);
    }
    let of = format!("FROM {TABLE} WHERE promotion = {}", quoted(promotion));
    let counted = format!("SELECT COUNT(*), COALESCE(SUM(gravity = {}), 0) {of}", Gravity::HeldBack as u8);
    let mut counts = database.query(&counted).await?.into_iter().flatten().flatten();
    let mut count = || counts.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    let (found, held_back) = (count(), count());
    let rows = database.query(&format!("SELECT subject, line {of} ORDER BY place LIMIT {at_most}")).await?;
    let first = rows.into_iter().filter_map(|row| {
        let mut cells = row.into_iter().flatten();
        cells.next().zip(cells.next())
    });
    Ok(Some(Kept { found, held_back, first: first.collect() }))
}

/// The question that a person asks for all of it.
pub(crate) fn question(promotion: &str) -> String {
    format!("SELECT subject, line FROM {TABLE} WHERE promotion = {} ORDER BY place", quoted(promotion))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_back_goes_before_whatever_else_there_is() {
        let line = |gravity, subject: &str| Line { gravity, subject: subject.into(), said: "it's".into() };
        let mut lines: Vec<Line> =
            (0..150).map(|n| line(Gravity::Marked, &format!("snapshot {n:03}"))).collect();
        lines.push(line(Gravity::HeldBack, "volume z"));
        lines.sort();
        let statements = statements("p", &lines);
        assert_eq!(statements.len(), 2, "100 and 51 lines");
        assert!(
            statements[0].contains("VALUES ('p', 1, 0, 'volume z', 'it''s'), ('p', 2, 1, 'snapshot 000'")
        );
        assert!(statements[1].contains("('p', 151, 1, 'snapshot 149'"), "{}", statements[1]);
    }
}
