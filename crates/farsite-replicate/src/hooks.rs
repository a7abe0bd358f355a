//! Runs the commands that a policy puts around captures and commits.

use std::process::Stdio;

use farsite_model::policy::Hook;
use tokio::io::AsyncReadExt;

/// What is kept of a hook's output for a message.
const TAIL_BYTES: u64 = 1000;
/// How long the rest of a hook's output is waited for once the hook itself has ended.
const STDERR_WAIT: std::time::Duration = std::time::Duration::from_millis(200);

/// Runs hooks in order; the first one that fails ends it, with its name and what it said.
pub(crate) async fn run(hooks: &[Hook]) -> Result<(), String> {
    for hook in hooks {
        one(hook).await?;
    }
    Ok(())
}

/// Runs every hook whatever the others do: what was frozen must be thawed.
pub(crate) async fn run_all(hooks: &[Hook]) -> Result<(), String> {
    let mut failures = Vec::new();
    for hook in hooks {
        if let Err(why) = one(hook).await {
            failures.push(why);
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}

async fn one(hook: &Hook) -> Result<(), String> {
    let [program, args @ ..] = hook.run.as_slice() else { return Err("a hook names no program".into()) };
    let mut child = tokio::process::Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("hook {program}: cannot be started: {error}"))?;
    let mut said = Vec::new();
    let stderr = child.stderr.take();
    let work = async {
        let status = child.wait().await;
        if let Some(stderr) = stderr {
            let mut tail = stderr.take(TAIL_BYTES);
            // What the hook left running may hold its end open: that is not waited for.
            let _ = tokio::time::timeout(STDERR_WAIT, tail.read_to_end(&mut said)).await;
        }
        status
    };
    match tokio::time::timeout(hook.timeout.duration(), work).await {
        Err(_) => Err(format!("hook {program}: no end within {}", hook.timeout)),
        Ok(Err(error)) => Err(format!("hook {program}: {error}")),
        Ok(Ok(status)) if !status.success() => {
            Err(format!("hook {program}: {status}: {}", String::from_utf8_lossy(&said).trim()))
        }
        Ok(Ok(_)) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farsite_model::quantity::Span;

    fn hook(script: &str, timeout: Span) -> Hook {
        Hook { run: vec!["/bin/sh".into(), "-c".into(), script.into()], timeout }
    }

    #[tokio::test]
    async fn a_hook_that_fails_says_what_it_printed() {
        let why = run(&[hook("echo no such volume >&2; exit 3", Span::from_secs(5))]).await.unwrap_err();
        assert!(why.contains("exit status: 3") && why.contains("no such volume"), "{why}");
    }

    #[tokio::test]
    async fn a_hook_that_hangs_is_ended() {
        let why = run(&[hook("sleep 60", Span::from_millis(100))]).await.unwrap_err();
        assert!(why.contains("no end within 100ms"), "{why}");
    }

    #[tokio::test]
    async fn thawing_goes_on_after_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("thawed");
        let hooks = [
            hook("exit 1", Span::from_secs(5)),
            hook(&format!("touch {}", mark.display()), Span::from_secs(5)),
        ];
        assert!(run_all(&hooks).await.is_err());
        assert!(mark.exists());
    }
}
