//! A place in a database's log: a file name and an offset come in, an order goes out. What must hold: files compare
//! by their number, because names stop comparing as text when the number gets one digit more.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A position in a database's log: file and byte offset, ordered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogPosition {
    /// `mariadb-bin.000017`; MariaDB pads numbers, and [`LogPosition`] compares by number, then offset.
    pub file: String,
    pub offset: u64,
}

impl LogPosition {
    pub fn new(file: impl Into<String>, offset: u64) -> Self {
        Self { file: file.into(), offset }
    }

    /// The number behind the file name's last dot.
    pub fn number(&self) -> Option<u64> {
        number(&self.file)
    }
}

fn number(file: &str) -> Option<u64> {
    let (_, digits) = file.rsplit_once('.')?;
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

impl Ord for LogPosition {
    fn cmp(&self, other: &Self) -> Ordering {
        // Names come last: positions of one number are equal only when all is equal.
        (self.number(), self.offset, &self.file).cmp(&(other.number(), other.offset, &other.file))
    }
}
impl PartialOrd for LogPosition {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_compare_by_number_then_offset() {
        let at = LogPosition::new;
        assert!(at("mariadb-bin.999999", 9) < at("mariadb-bin.1000000", 4));
        assert!(at("mariadb-bin.000009", 900) < at("mariadb-bin.000010", 4));
        assert!(at("mariadb-bin.000010", 4) < at("mariadb-bin.000010", 5));
        assert!(at("my.log.bin.000002", 4) > at("my.log.bin.000001", 4));
        assert_eq!(at("a.000001", 4).cmp(&at("a.000001", 4)), Ordering::Equal);
        assert_ne!(at("a.000001", 4).cmp(&at("b.000001", 4)), Ordering::Equal);
    }
}
