//! A program that runs beside the benchmark and belongs to it: a command comes in, a running process goes out. It ends with
//! this, and with the benchmark, however that ends.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::at;
use crate::failure::Failure;

const LOOK: Duration = Duration::from_millis(20);

pub struct Daemon {
    line: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// What it prints is appended to `log`.
    pub fn start(command: &Command, log: &Path) -> Result<Self, Failure> {
        let out = std::fs::File::options().create(true).append(true).open(log).map_err(|e| at(log, &e))?;
        let err = out.try_clone().map_err(|e| at(log, &e))?;
        // The kernel ends it with the thread that starts it, which is this process's only one.
        let mut tied = Command::new("setpriv");
        tied.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        let line = format!("{command:?}");
        let child = tied.stdin(Stdio::null()).stdout(out).stderr(err).spawn().map_err(|e| {
            Failure::new(format!("setpriv(1) could not be started: {e}"), "install the package `util-linux`")
        })?;
        Ok(Self { line, child, log: log.to_owned() })
    }

    /// Waits until it is as it should be; an error with all that it printed when it ends before or takes too long.
    pub fn becomes(
        &mut self,
        what: &str,
        limit: Duration,
        mut is_so: impl FnMut() -> bool,
    ) -> Result<(), Failure> {
        let until = Instant::now() + limit;
        while !is_so() {
            let has_ended = !matches!(self.child.try_wait(), Ok(None));
            if has_ended || Instant::now() > until {
                let said = std::fs::read_to_string(&self.log).unwrap_or_default();
                let how = if has_ended { "ended" } else { "runs" };
                return Err(Failure::new(
                    format!("{} {how} and is not {what}:\n{said}", self.line),
                    "nothing was compared",
                ));
            }
            sleep(LOOK);
        }
        Ok(())
    }

    /// Asks it to end (SIGTERM), and waits for that.
    pub fn end(mut self, limit: Duration) -> Result<(), Failure> {
        // The standard library sends only SIGKILL.
        let _ =
            Command::new("sh").args(["-c", "kill -TERM \"$0\""]).arg(self.child.id().to_string()).status();
        let until = Instant::now() + limit;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > until {
                return Err(Failure::new(
                    format!("{} does not end and is killed", self.line),
                    "nothing was compared",
                ));
            }
            sleep(LOOK);
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str, log: &Path) -> Daemon {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Daemon::start(&command, log).unwrap()
    }

    #[test]
    fn a_daemon_that_ends_too_soon_says_what_it_printed_and_one_that_is_asked_ends() {
        let log = std::env::temp_dir().join(format!("farsite-xtask-daemon-{}", std::process::id()));
        let minute = Duration::from_mins(1);
        let failure = start("echo no room; exit 3", &log).becomes("ready", minute, || false).unwrap_err();
        assert!(failure.to_string().contains("no room"), "{failure}");
        let mut daemon = start("echo ready; exec sleep 60", &log);
        let says_so = || std::fs::read_to_string(&log).unwrap().contains("ready");
        daemon.becomes("ready", minute, says_so).unwrap();
        daemon.end(minute).unwrap();
        std::fs::remove_file(log).unwrap();
    }
}
