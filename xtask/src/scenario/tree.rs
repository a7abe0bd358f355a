//! Which source a result is of.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::failure::Failure;

/// The commit; where the tree differs from it, `dirty` and a hash of the difference too. Of files that git does not know the names
/// alone are in it.
pub fn tree(root: &Path) -> Result<String, Failure> {
    let commit = git(root, &["rev-parse", "HEAD"], "")?;
    let status = git(root, &["status", "--porcelain"], "")?;
    if status.is_empty() {
        return Ok(commit);
    }
    let difference = git(root, &["diff", "HEAD", "--binary"], "")?;
    let hash = git(root, &["hash-object", "--stdin"], &format!("{status}\n{difference}"))?;
    Ok(format!("{commit} dirty {}", hash.get(..12).unwrap_or(&hash)))
}

fn git(root: &Path, words: &[&str], input: &str) -> Result<String, Failure> {
    let line = format!("git {}", words.join(" "));
    let fail = |why: String| {
        Failure::new(
            format!("`{line}` in {}: {why}", root.display()),
            "a result is kept with the commit that it is of: run this in a clone, with git installed",
        )
    };
    let mut git = Command::new("timeout");
    git.args(["60", "git"]).args(words).current_dir(root);
    git.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = git.spawn().map_err(|e| fail(e.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read it says so by its end.
        let _ = stdin.write_all(input.as_bytes());
    }
    let ended = child.wait_with_output().map_err(|e| fail(e.to_string()))?;
    if !ended.status.success() {
        return Err(fail(String::from_utf8_lossy(&ended.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&ended.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_tree_is_told_from_its_commit_and_from_another_change() {
        let folder = std::env::temp_dir().join(format!("farsite-xtask-tree-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        assert!(tree(&folder).unwrap_err().to_string().contains("run this in a clone"));
        let file = folder.join("file");
        std::fs::write(&file, "one").unwrap();
        for words in [
            &["init", "-q"][..],
            &["add", "file"],
            &["-c", "user.name=n", "-c", "user.email=n@localhost", "commit", "-qm", "first"],
        ] {
            git(&folder, words, "").unwrap();
        }
        let clean = tree(&folder).unwrap();
        assert_eq!(clean.len(), 40, "{clean}");
        std::fs::write(&file, "two").unwrap();
        let two = tree(&folder).unwrap();
        assert!(two.starts_with(&format!("{clean} dirty ")), "{two}");
        std::fs::write(&file, "three").unwrap();
        assert_ne!(tree(&folder).unwrap(), two);
        std::fs::write(&file, "one").unwrap();
        assert_eq!(tree(&folder).unwrap(), clean);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
