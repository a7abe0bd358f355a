//! What the demo's northern site has promised to its users, written outside that site after each promise: the truth
//! that the restored standby is compared with.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Unix time in milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// One promise: what it is about, its value, and when it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// A volume's or an image's name; `heartbeat` for rows.
    pub what: String,
    /// A row's or a page's number; an image's SHA-512.
    pub value: String,
    pub at_ms: u64,
}

impl Promise {
    pub fn number(&self) -> u64 {
        self.value.parse().unwrap_or(0)
    }
}

/// The kinds of promises; a file each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Book {
    Heartbeat,
    Volumes,
    Images,
    Keys,
}

impl Book {
    fn path(self, folder: &Path) -> PathBuf {
        folder.join(match self {
            Self::Heartbeat => "heartbeat",
            Self::Volumes => "volumes",
            Self::Images => "images",
            Self::Keys => "keys",
        })
    }
}

/// Appends promises. Each is one write: a reader after the disaster finds whole lines, or one cut at the end.
pub struct Ink {
    file: File,
}

impl Ink {
    pub fn open(folder: &Path, book: Book) -> std::io::Result<Self> {
        Ok(Self { file: File::options().create(true).append(true).open(book.path(folder))? })
    }

    pub fn write(&mut self, what: &str, value: &str) -> std::io::Result<()> {
        self.file.write_all(format!("{what} {value} {}\n", now_ms()).as_bytes())
    }
}

/// Reads all promises of a kind, in order. A cut last line was never a promise.
pub fn read(folder: &Path, book: Book) -> std::io::Result<Vec<Promise>> {
    let path = book.path(folder);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    Ok(whole
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (what, value) = (words.next()?.to_owned(), words.next()?.to_owned());
            Some(Promise { what, value, at_ms: words.next()?.parse().ok()? })
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_is_no_promise() {
        let folder = tempfile::tempdir().unwrap();
        Ink::open(folder.path(), Book::Volumes).unwrap().write("volume-1", "7").unwrap();
        let path = folder.path().join("volumes");
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("volume-1 8 17");
        std::fs::write(&path, text).unwrap();
        let read = read(folder.path(), Book::Volumes).unwrap();
        assert_eq!(read.iter().map(Promise::number).collect::<Vec<_>>(), [7]);
    }
}
