//! What a restored database says of images and volumes, and what lies in their places, are brought together. Rows and files come
//! in; statements that put rows right go out, and a line for everything that is not as it should be.
//!
//! What must hold: no row is left that promises data which is not there; nothing is attached whose format, size or chain is not
//! what its row says; no file is removed or written.

pub(crate) mod backups;
pub(crate) mod images;
pub(crate) mod qcow2;
mod states;
pub(crate) mod volumes;

use std::collections::BTreeMap;
use std::path::Path;

/// What has to be done, and why.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) statements: Vec<String>,
    /// What it is about (`volume 4f…`), and what was found and done, in words.
    pub(crate) lines: Vec<(String, String)>,
    /// Rows that were looked at.
    pub(crate) looked: usize,
}

impl Plan {
    fn say(&mut self, subject: String, line: impl Into<String>) {
        self.lines.push((subject, line.into()));
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.statements.append(&mut other.statements);
        self.lines.append(&mut other.lines);
        self.looked += other.looked;
    }
}

/// Names and sizes of the plain files in a folder; hidden ones left out.
pub(crate) fn files(folder: &Path) -> std::io::Result<BTreeMap<String, u64>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (name, metadata) = (entry.file_name().to_string_lossy().into_owned(), entry.metadata()?);
        if metadata.is_file() && !name.starts_with('.') {
            files.insert(name, metadata.len());
        }
    }
    Ok(files)
}

/// An id as it may stand in a statement: nothing else comes out of these databases' id columns.
fn is_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}
