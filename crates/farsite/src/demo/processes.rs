//! The demo's processes: each has a log file and a process group of its own, and none outlives the demo.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// One child.
pub struct Process {
    pub name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program; what it prints goes to `log`.
    pub fn start(name: &'static str, mut command: Command, log: &Path) -> Result<Self, String> {
        let fail = |error: std::io::Error| format!("{name}: {error}");
        let out = File::options().create(true).append(true).open(log).map_err(fail)?;
        let err = out.try_clone().map_err(fail)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .map_err(|error| format!("{name} cannot be started: {error}"))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    /// An error with the end of its log once it has ended.
    pub fn lives(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("{} ended by itself ({status}):\n{}", self.name, self.said())),
            Err(error) => Err(format!("{}: {error}", self.name)),
        }
    }

    /// The end of its log.
    pub fn said(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(3000)..]).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// SIGKILL to it and to its group.
    pub fn kill(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.kill();
    }

    /// After [`Self::kill`].
    pub fn reap(&mut self) {
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        self.reap();
    }
}

/// All processes whose command line names something below `folder`, but this one: whatever was started there.
pub fn below(folder: &Path) -> Vec<i32> {
    let needle = folder.as_os_str().as_encoded_bytes();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| u32::try_from(*pid).is_ok_and(|pid| pid != std::process::id()))
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.windows(needle.len().max(1)).any(|window| window == needle)
        })
        .collect()
}

/// Ends every process that was started below `folder`.
pub fn sweep(folder: &Path, signal: Signal) {
    for pid in below(folder).into_iter().filter_map(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Asks them to end, then makes them.
pub fn end_all(folder: &Path) {
    sweep(folder, Signal::TERM);
    let give_up = Instant::now() + Duration::from_secs(5);
    while !below(folder).is_empty() && Instant::now() < give_up {
        std::thread::sleep(Duration::from_millis(50));
    }
    sweep(folder, Signal::KILL);
}
