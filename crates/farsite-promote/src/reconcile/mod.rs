//! What a restored database says of images and volumes, and what lies in their places, are brought together. Rows and files come
//! in; statements that put rows right go out, and a line for everything that is not as it should be.
//!
//! What must hold: no row is left that promises data which is not there; nothing is attached whose format, size or chain is not
//! what its row says; no file is removed or written.

mod backups;
mod exports;
mod folders;
mod hosts;
mod images;
pub(crate) mod kept;
mod look;
mod qcow2;
mod share;
mod states;
mod volumes;

use std::collections::BTreeMap;
use std::path::Path;

pub(crate) use look::look;

/// What has to be done, and why.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) statements: Vec<String>,
    pub(crate) lines: Vec<Line>,
    /// Rows that were looked at.
    pub(crate) looked: usize,
}

/// One thing that was not as its row said. The gravest are the first in order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Line {
    pub(crate) gravity: Gravity,
    /// `volume 4f…`
    pub(crate) subject: String,
    /// What was found and done, in words.
    pub(crate) said: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Gravity {
    /// What users had is not here, or not as it should be: it cannot be used.
    HeldBack,
    /// What was under way has failed; a snapshot is lost.
    Marked,
    /// The row says now what is here.
    PutRight,
    /// Nothing was done.
    Noted,
}

impl Plan {
    fn say(&mut self, gravity: Gravity, subject: String, said: impl Into<String>) {
        self.lines.push(Line { gravity, subject, said: said.into() });
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
