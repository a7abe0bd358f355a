//! The server process of one data directory: found, asked to end, ended. A data directory comes in; a process goes out
//! only when it is a MariaDB server of exactly that directory, by its own command line or by where it works. What must hold: no other
//! process is ever signalled, whatever a pid file says and however pids are reused.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

const SERVER_PROGRAMS: [&str; 2] = ["mariadbd", "mysqld"];
const POLL: Duration = Duration::from_millis(50);

/// A server process, held by a descriptor that stays its own when its pid is reused.
#[derive(Debug)]
pub(super) struct ServerProcess {
    pub(super) pid: i32,
    descriptor: OwnedFd,
    datadir: PathBuf,
}

/// The server that runs on this directory.
pub(super) fn find(datadir: &Path) -> Option<ServerProcess> {
    let wanted = std::fs::canonicalize(datadir).ok()?;
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        if !serves(pid, &wanted) {
            return None;
        }
        let descriptor = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        // Opened first, looked at second: now the descriptor is known to be the server's.
        serves(pid, &wanted).then(|| ServerProcess { pid, descriptor, datadir: wanted.clone() })
    })
}

/// Whether a process is a server of this directory: by what its command line says, or because it works there, as a server does
/// whose directory stands in an option file. A dead one's command line is empty.
fn serves(pid: i32, datadir: &Path) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut arguments = line.split(|byte| *byte == 0);
    let program = PathBuf::from(std::ffi::OsStr::from_bytes(arguments.next().unwrap_or_default()));
    let is_server = program.file_name().is_some_and(|name| SERVER_PROGRAMS.iter().any(|s| name == *s));
    let works_there = || std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|folder| folder == datadir);
    is_server
        && (works_there()
            || arguments.any(|argument| {
                argument.strip_prefix(b"--datadir=").is_some_and(|path| {
                    let path = Path::new(std::ffi::OsStr::from_bytes(path));
                    std::fs::canonicalize(path).is_ok_and(|path| path == datadir)
                })
            }))
}

impl ServerProcess {
    pub(super) fn signal(&self, signal: Signal) -> std::io::Result<()> {
        match pidfd_send_signal(&self.descriptor, signal) {
            // It has ended by itself.
            Err(Errno::SRCH) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether this argument stands on its command line.
    pub(super) fn is_told(&self, argument: &str) -> bool {
        let line = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|given| given == argument.as_bytes())
    }

    pub(super) fn has_ended(&self) -> bool {
        !serves(self.pid, &self.datadir)
    }

    /// Whether it ended within this time.
    pub(super) async fn ends_within(&self, limit: Duration) -> bool {
        let ended = async {
            while !self.has_ended() {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(limit, ended).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::Instant;

    use super::*;

    /// A process that ends with its test, whatever the test came to.
    struct Ended(Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[tokio::test]
    async fn only_a_server_of_this_very_directory_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, other) = (dir.path().join("ours"), dir.path().join("other"));
        std::fs::create_dir(&ours).unwrap();
        std::fs::create_dir(&other).unwrap();
        // A shell under a server's name, and one that only mentions the directory.
        let server = dir.path().join("mariadbd");
        std::fs::copy("/bin/sh", &server).unwrap();
        let sleep = ["-c", "while :; do sleep 0.05; done", "x"];
        let datadir = format!("--datadir={}", ours.display());
        let run = |program: &Path| Ended(Command::new(program).args(sleep).arg(&datadir).spawn().unwrap());
        let mut decoy = run(Path::new("/bin/sh"));
        assert!(find(&ours).is_none(), "a shell is no server");
        let mut real = run(&server);
        // A process shows its command line a moment after it has begun.
        let begun = Instant::now();
        let found = loop {
            match find(&ours) {
                Some(found) => break found,
                None => assert!(begun.elapsed() < Duration::from_secs(10), "it runs and is not found"),
            }
        };
        assert_eq!(found.pid, i32::try_from(real.0.id()).unwrap());
        assert!(find(&other).is_none());
        found.signal(Signal::KILL).unwrap();
        assert!(found.ends_within(Duration::from_secs(5)).await);
        real.0.wait().unwrap();
        assert!(found.signal(Signal::KILL).is_ok(), "a second time does no harm");
        // A child that it had just forked looks like it until it becomes another program.
        let begun = Instant::now();
        while find(&ours).is_some() {
            assert!(begun.elapsed() < Duration::from_secs(10), "it has ended and is found");
        }
        // Its directory may stand in an option file: then it is where the server works.
        let unnamed = Ended(Command::new(&server).args(sleep).current_dir(&other).spawn().unwrap());
        let begun = Instant::now();
        while find(&other).is_none() {
            assert!(begun.elapsed() < Duration::from_secs(10), "it works there and is not found");
        }
        drop(unnamed);
        assert!(decoy.0.try_wait().unwrap().is_none(), "the other one still runs");
    }
}
