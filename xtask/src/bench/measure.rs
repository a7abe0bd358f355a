//! One command, measured as a whole process: wall and processor time and peak memory, by time(1). The page cache is emptied
//! before it where this user may do that.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::failure::Failure;

#[derive(Debug, Clone, Copy, Default)]
pub struct Measured {
    pub wall_s: f64,
    pub cpu_s: f64,
    pub peak_mib: f64,
    pub store_bytes: u64,
}

/// Whether the page cache could be emptied.
pub fn cold_cache() -> bool {
    let synced = Command::new("sync").status().is_ok_and(|status| status.success());
    synced && std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

pub fn run(command: Command, good: &[i32], folder: &Path) -> Result<Measured, Failure> {
    cold_cache();
    let (figures, said) = (folder.join("figures"), folder.join("said"));
    let log = std::fs::File::create(&said).map_err(|e| super::at(&said, &e))?;
    let line = format!("{command:?}");
    let mut timed = Command::new("time");
    timed.args(["--quiet", "-f", "%e %U %S %M", "-o"]).arg(&figures);
    // An hour is far more than any row takes.
    timed.args(["timeout", "3600"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => timed.env(name, value),
            None => timed.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        timed.current_dir(folder);
    }
    let errors = log.try_clone().map_err(|e| super::at(&said, &e))?;
    let status = timed.stdin(Stdio::null()).stdout(log).stderr(errors).status().map_err(|e| {
        Failure::new(format!("time(1) could not be started: {e}"), "install the package `time`")
    })?;
    if !status.code().is_some_and(|code| good.contains(&code)) {
        let said = std::fs::read_to_string(&said).unwrap_or_default();
        return Err(Failure::new(format!("{line} failed ({status}):\n{said}"), "nothing was compared"));
    }
    let text = std::fs::read_to_string(&figures).map_err(|e| super::at(&figures, &e))?;
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [wall_s, user, system, peak_kib] = numbers[..] else {
        return Err(Failure::new(format!("time(1) said {text:?}"), "is it GNU time?"));
    };
    Ok(Measured { wall_s, cpu_s: user + system, peak_mib: peak_kib / 1024.0, store_bytes: 0 })
}

/// A command that adds to a store: as [`run`], with what the store grew by.
pub fn backup(command: Command, good: &[i32], folder: &Path, store: &Path) -> Result<Measured, Failure> {
    let before = size_of(store);
    let mut measured = run(command, good, folder)?;
    measured.store_bytes = size_of(store).saturating_sub(before);
    Ok(measured)
}

/// The turn with the middle wall time.
pub fn median(mut turns: Vec<Measured>) -> Measured {
    turns.sort_by(|a, b| a.wall_s.total_cmp(&b.wall_s));
    turns[turns.len() / 2]
}

/// The bytes of all files below a folder.
pub fn size_of(folder: &Path) -> u64 {
    let mut total = 0;
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(path) = waiting.pop() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => waiting.push(entry.path()),
                Ok(metadata) => total += metadata.len(),
                Err(_) => {}
            }
        }
    }
    total
}
