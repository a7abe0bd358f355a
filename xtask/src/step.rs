//! One external command: announced, run in the foreground, and stopped when it takes too long. An interrupt from
//! the terminal reaches the command directly, because it stays in this process's group.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::failure::Failure;

const POLL: Duration = Duration::from_millis(50);
/// What a command gets to end its own children (nextest: its tests) before it is killed.
const GRACE: Duration = Duration::from_secs(20);

pub fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

/// Prints the command line to stderr and runs it; an error unless it exits 0 within `limit`. `next` is the hint for
/// when it does not.
pub fn run(mut command: Command, limit: Duration, next: &str) -> Result<(), Failure> {
    let line = shown(&command);
    eprintln!("== {line}");
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .map_err(|e| Failure::new(format!("`{line}` could not be started: {e}"), next))?;
    match wait(&mut child, limit) {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(Failure::new(format!("`{line}` failed ({status})"), next)),
        Ok(None) => {
            Err(Failure::new(format!("`{line}` was stopped: it ran past {} s", limit.as_secs()), next))
        }
        Err(e) => Err(Failure::new(format!("`{line}` could not be waited for: {e}"), next)),
    }
}

/// The exit status, or `None` when the command had to be stopped.
pub fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    if let Some(status) = wait_until(child, Instant::now() + limit)? {
        return Ok(Some(status));
    }
    // SIGTERM first: nextest and the install script clean up on it. The standard library sends only SIGKILL.
    let _ = Command::new("sh").args(["-c", "kill -TERM \"$0\""]).arg(child.id().to_string()).status();
    if wait_until(child, Instant::now() + GRACE)?.is_none() {
        child.kill()?;
        child.wait()?;
    }
    Ok(None)
}

fn wait_until(child: &mut Child, deadline: Instant) -> std::io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        sleep(POLL);
    }
}

pub fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_command_that_fails_is_named_with_its_hint() {
        let text = run(sh("exit 3"), minutes(1), "look there").unwrap_err().to_string();
        assert!(text.contains("sh -c exit 3") && text.contains("hint: look there"), "{text}");
    }

    #[test]
    fn a_command_that_runs_past_its_limit_is_stopped() {
        let started = Instant::now();
        let text = run(sh("exec sleep 60"), Duration::from_millis(100), "").unwrap_err().to_string();
        assert!(text.contains("ran past"), "{text}");
        assert!(started.elapsed() < GRACE, "SIGTERM did not end it");
    }
}
