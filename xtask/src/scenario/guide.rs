//! Every command of the operator's guide, run word for word and in its order, as one shell.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::Options;
use super::children::output;
use super::world::{at, farsite};
use crate::failure::Failure;
use crate::lab;
use crate::step::minutes;

const GUIDE: &str = "docs/operator-guide.md";
/// Where the guide works, as it says itself.
const FOLDER: &str = "/var/tmp/farsite-guide";

pub fn guide(root: &Path, options: &Options) -> Result<(), Failure> {
    let path = root.join(GUIDE);
    let text = fs::read_to_string(&path).map_err(|e| at(&path, &e))?;
    let script = script(&text);
    let farsite = farsite(root, options)?;
    let tools = lab::environment(root).join("bin");
    let folder = Path::new(FOLDER);
    clear(root, folder)?;
    fs::create_dir_all(folder).map_err(|e| at(folder, &e))?;
    let file = folder.join("guide.sh");
    fs::write(&file, script).map_err(|e| at(&file, &e))?;

    let mut path: Vec<_> = farsite.parent().map(Path::to_owned).into_iter().chain([tools]).collect();
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let path = std::env::join_paths(path)
        .map_err(|e| Failure::new(format!("PATH: {e}"), "is there a colon in a folder's name?"))?;
    let mut shell = Command::new("sh");
    shell.arg("-e").arg(&file).current_dir(root).env("PATH", path);
    shell.env("NO_COLOR", "1").env("PYTHONWARNINGS", "ignore").env_remove("FARSITE_CONFIG");
    let result = output(shell, minutes(9), "");
    let passed = matches!(result, Ok((Some(0), _)));
    if options.keep && !passed {
        eprintln!("everything is left in {}", folder.display());
    } else {
        clear(root, folder)?;
    }
    let (code, said) = result?;
    if passed {
        println!("{said}");
        return Ok(());
    }
    let last: Vec<&str> = said.lines().collect();
    Err(Failure::new(
        format!("the guide ended with {code:?}:\n{}", last[last.len().saturating_sub(60)..].join("\n")),
        "with --keep everything is left to look at",
    ))
}

/// Agents that the guide started and a failure left running, the sites, and the folder.
fn clear(root: &Path, folder: &Path) -> Result<(), Failure> {
    for pid in ["north", "south"] {
        if let Ok(pid) = fs::read_to_string(folder.join(format!("dr/{pid}.pid"))) {
            let is_ours = fs::read(format!("/proc/{}/cmdline", pid.trim()))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(FOLDER));
            if is_ours {
                let _ = Command::new("kill").arg(pid.trim()).status();
            }
        }
    }
    let lab = folder.join("lab");
    if lab.exists() {
        lab::lab(root, &["down", "--purge", "--folder", &lab.display().to_string()])?;
    }
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(at(folder, &e)),
        _ => Ok(()),
    }
}

/// All blocks marked `sh`, each behind a line that says where it stands.
fn script(text: &str) -> String {
    let mut script = String::new();
    let mut inside = false;
    for (n, line) in text.lines().enumerate() {
        match (inside, line) {
            (false, "```sh") => {
                inside = true;
                let _ = writeln!(script, "echo '== {GUIDE}:{}'", n + 1);
            }
            (true, "```") => inside = false,
            (true, line) => {
                let _ = writeln!(script, "{line}");
            }
            _ => {}
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_is_one_script_of_all_its_blocks() {
        let text = "words\n```sh\ntrue\n```\n```text\nfalse\n```\n```sh\necho a\necho b\n```\n";
        let due = format!("echo '== {GUIDE}:2'\ntrue\necho '== {GUIDE}:8'\necho a\necho b\n");
        assert_eq!(script(text), due);
    }
}
