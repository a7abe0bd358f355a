//! Lines of Rust per crate, code and tests apart; blank lines and comments are not counted. Tests are the files under
//! a `tests` or `benches` folder, files called `tests.rs`, and every item under `#[cfg(test)]`.

use std::fmt::Write as _;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Counted lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lines {
    code: usize,
    tests: usize,
}

impl AddAssign for Lines {
    fn add_assign(&mut self, other: Self) {
        self.code += other.code;
        self.tests += other.tests;
    }
}

/// One line per crate of the workspace at `root`, in the order of their names, and their sum.
pub fn table(root: &Path) -> Result<String, Failure> {
    let mut text = format!("{:<20} {:>8} {:>8}\n", "crate", "code", "tests");
    let mut sum = Lines::default();
    for folder in crate_folders(root)? {
        let lines = count_folder(&folder, folder == root.join("tests"))?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(text, "{name:<20} {:>8} {:>8}", lines.code, lines.tests);
        sum += lines;
    }
    let _ = writeln!(text, "{:<20} {:>8} {:>8}", "all", sum.code, sum.tests);
    Ok(text)
}

fn crate_folders(root: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut folders = entries(&root.join("crates"))?;
    folders.extend([root.join("tests"), root.join("xtask")]);
    folders.retain(|folder| folder.join("Cargo.toml").is_file());
    Ok(folders)
}

fn count_folder(folder: &Path, all_tests: bool) -> Result<Lines, Failure> {
    let mut lines = Lines::default();
    for entry in entries(folder)? {
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        if entry.is_dir() {
            lines += count_folder(&entry, all_tests || matches!(&*name, "tests" | "benches"))?;
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&entry).map_err(|e| unreadable(&entry, &e))?;
            lines += count_source(&source, all_tests || name == "tests.rs");
        }
    }
    Ok(lines)
}

fn count_source(source: &str, all_tests: bool) -> Lines {
    let mut count = Lines::default();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if !is_counted(line) {
            continue;
        }
        if all_tests {
            count.tests += 1;
        } else if line.trim() == "#[cfg(test)]" {
            count.tests += 1 + count_item(indent(line), &mut lines);
        } else {
            count.code += 1;
        }
    }
    count
}

/// The counted lines of the item that comes next. That it ends where a line at its own indent ends in `;`, `}` or `,`
/// is what rustfmt makes of every item.
fn count_item<'a>(item_indent: usize, lines: &mut impl Iterator<Item = &'a str>) -> usize {
    let mut count = 0;
    for line in lines {
        count += usize::from(is_counted(line));
        let ends = line.trim_end().ends_with([';', '}', ',']);
        if ends && indent(line) == item_indent && is_counted(line) {
            break;
        }
    }
    count
}

fn is_counted(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with("//")
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut paths = read().map_err(|e| unreadable(folder, &e))?;
    paths.sort();
    Ok(paths)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{} cannot be read: {error}", path.display()), "check that the checkout is whole")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_blank_lines_are_not_code() {
        assert_eq!(count_source("//! Docs.\n\nfn a() {}\n  // why\n", false), Lines { code: 1, tests: 0 });
    }

    #[test]
    fn what_stands_under_cfg_test_is_tests_up_to_its_end() {
        let source = "\
fn a() {}
#[cfg(test)]
use b::c;
#[cfg(test)]
mod tests {
    fn d() {
        e();
    }
}
fn f() {}
";
        assert_eq!(count_source(source, false), Lines { code: 2, tests: 8 });
    }

    #[test]
    fn an_integration_test_is_all_tests() {
        assert_eq!(count_source("use a::b;\nfn c() {}\n", true), Lines { code: 0, tests: 2 });
    }
}
