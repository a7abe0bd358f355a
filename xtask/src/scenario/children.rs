//! Processes that a scenario starts and ends itself: by their handle, so that no other one can be hit.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::step;

/// A process that runs beside the scenario; it is killed when this is dropped.
pub struct Running {
    what: &'static str,
    child: Child,
    log: PathBuf,
}

impl Running {
    pub fn start(what: &'static str, mut command: Command, log: &Path) -> Result<Self, Failure> {
        let fail =
            |e: std::io::Error| Failure::new(format!("{what} could not be started: {e}"), "is it built?");
        let out = File::create(log).map_err(fail)?;
        let errors = out.try_clone().map_err(fail)?;
        let child = command.stdin(Stdio::null()).stdout(out).stderr(errors).spawn().map_err(fail)?;
        Ok(Self { what, child, log: log.to_owned() })
    }

    /// An error when it has ended by itself.
    pub fn lives(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            ended => Err(Failure::new(
                format!("{} has ended ({ended:?}):\n{}", self.what, self.said()),
                format!("its log is {}", self.log.display()),
            )),
        }
    }

    /// Waits for its end; false when it failed.
    pub fn ended_well(&mut self, limit: Duration) -> Result<bool, Failure> {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status.success()),
                Ok(None) if Instant::now() < deadline => sleep(Duration::from_millis(200)),
                _ => {
                    let what =
                        format!("{} did not end in {} s:\n{}", self.what, limit.as_secs(), self.said());
                    return Err(Failure::new(what, "with --keep everything is left to look at"));
                }
            }
        }
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `STOP` or `CONT`, for instance.
    pub fn signal(&self, name: &str) -> Result<(), Failure> {
        let mut kill = Command::new("kill");
        kill.arg(format!("-{name}")).arg(self.child.id().to_string());
        step::run(kill, Duration::from_secs(5), "has it ended?")
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `outer` runs `command`, with the environment that was meant for it.
fn within(mut outer: Command, command: &Command) -> Command {
    outer.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

/// Runs a command to its end; all that it said: errors are told on standard error.
pub fn all_output(command: &Command, limit: Duration, next: &str) -> Result<(Option<i32>, String), Failure> {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" 2>&1", "sh"]);
    output(within(shell, command), limit, next)
}

/// Runs a command to its end; its standard output.
pub fn output(command: Command, limit: Duration, next: &str) -> Result<(Option<i32>, String), Failure> {
    let line = step::shown(&command);
    let mut timed = Command::new("timeout");
    timed.arg("--kill-after=5").arg(limit.as_secs().to_string());
    let ended = within(timed, &command)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| Failure::new(format!("`{line}` could not be started: {e}"), next))?;
    Ok((ended.status.code(), String::from_utf8_lossy(&ended.stdout).into_owned()))
}

/// Looks every half second until it is so; an error when the process ends, or the time.
pub fn wait_for(
    process: &mut Running,
    is_there: impl Fn(&Running) -> bool,
    limit: Duration,
    what: &str,
) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    while !is_there(process) {
        process.lives()?;
        if Instant::now() > deadline {
            return Err(Failure::new(
                format!("{what} did not come in {} s; the log's end:\n{}", limit.as_secs(), process.said()),
                "with --keep everything is left to look at",
            ));
        }
        sleep(Duration::from_millis(500));
    }
    Ok(())
}
