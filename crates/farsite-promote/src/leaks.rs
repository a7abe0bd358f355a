//! What a drill left behind: processes that name its folder, the folder itself, anything new or changed in the real
//! places. Looks and never touches.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A place with more entries than this is compared at its upper levels only.
const ENTRIES: usize = 200_000;

/// Where hydrated copies wait beside their places.
const HYDRATED: &str = ".farsite-hydrated";

/// What stands in the real places: size and time of change of every entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing(BTreeMap<PathBuf, (u64, i64, i64)>);

impl Listing {
    /// Lists folders and files; a place that does not exist is an empty one. What the standby's agent keeps hydrated changes
    /// with every point and is left out.
    pub fn of(places: &[PathBuf]) -> Self {
        let mut found = BTreeMap::new();
        let mut waiting: std::collections::VecDeque<PathBuf> = places.iter().cloned().collect();
        while let Some(path) = waiting.pop_front() {
            if path.file_name().is_some_and(|name| name == HYDRATED) {
                continue;
            }
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            found.insert(path.clone(), (metadata.len(), metadata.mtime(), metadata.mtime_nsec()));
            if found.len() < ENTRIES
                && metadata.is_dir()
                && let Ok(entries) = fs::read_dir(&path)
            {
                waiting.extend(entries.flatten().map(|entry| entry.path()));
            }
        }
        Self(found)
    }

    /// What is new, gone or changed since `before`, in words.
    pub fn differences(&self, before: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (path, seen) in &self.0 {
            match before.0.get(path) {
                None => found.push(format!("{} is new", path.display())),
                Some(known) if known != seen => found.push(format!("{} was changed", path.display())),
                Some(_) => {}
            }
        }
        found.extend(
            before
                .0
                .keys()
                .filter(|path| !self.0.contains_key(*path))
                .map(|path| format!("{} is gone", path.display())),
        );
        found
    }
}

/// Processes, other than this one, whose command line names a path: id and command.
pub(crate) fn processes_naming(paths: &[&Path]) -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(bytes) = fs::read(entry.path().join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&bytes).replace('\0', " ");
        let names = paths.iter().any(|path| path.to_str().is_some_and(|text| command.contains(text)));
        if pid != own && names {
            let program = command.split(' ').next().unwrap_or_default().to_owned();
            found.push((pid, program));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_a_changed_and_a_missing_file_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["changed", "gone", "same"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let places = [dir.path().to_owned()];
        let before = Listing::of(&places);
        assert!(Listing::of(&places).differences(&before).is_empty());
        fs::write(dir.path().join("changed"), "longer").unwrap();
        fs::remove_file(dir.path().join("gone")).unwrap();
        fs::write(dir.path().join("new"), "").unwrap();
        let said = Listing::of(&places).differences(&before).join("\n");
        for (name, what) in [("new", "is new"), ("changed", "was changed"), ("gone", "is gone")] {
            assert!(said.contains(&format!("/{name} {what}")), "{said}");
        }
        assert!(!said.contains("/same"));
    }

    #[test]
    fn a_process_that_names_a_drills_folder_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let marker = dir.path().join("drill-folder");
        let mut child = std::process::Command::new("sh")
            .args(["-c", "echo up; read line", marker.to_str().unwrap()])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // What a process was started with can be seen a moment after it was started.
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
        let found = processes_naming(&[&marker]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.iter().any(|(pid, _)| *pid == child.id()), "{found:?}");
        assert!(processes_naming(&[&dir.path().join("another")]).is_empty());
    }
}
