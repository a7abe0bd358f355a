//! `command`: runs a program on this machine.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncReadExt;

use super::tied;
use crate::action::{Action, ActionContext, ActionError, Done, Foreseen, Outcome, parameters};

/// How long the end of a program is waited for that was told to end; `timeout` kills it two seconds after.
const END_LIMIT: Duration = Duration::from_secs(5);
/// What is kept of a program's output.
const TAIL_BYTES: usize = 2_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct With {
    /// Argument vector.
    run: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Ends with 0 when the work is done already.
    #[serde(default)]
    check: Option<Vec<String>>,
    #[serde(default)]
    undo: Option<Vec<String>>,
    /// Says that running it twice is as good as once.
    #[serde(default)]
    idempotent: bool,
    /// Says that it only looks: a dry run runs it too.
    #[serde(default)]
    probe: bool,
}

impl With {
    async fn to_its_end(&self, context: &ActionContext) -> Result<String, ActionError> {
        let tail = run_command(&self.run, &self.env, context).await?;
        if tail.ok {
            return Ok(tail.text);
        }
        let code = tail.code.map_or("a signal".to_owned(), |c| format!("exit code {c}"));
        Err(ActionError::failed(format!("{} ended with {code}: {}", self.run[0], tail.text)))
    }

    /// What keeps it from being started at all.
    async fn cannot_begin(&self, context: &ActionContext) -> Result<Option<String>, ActionError> {
        let Some(program) = self.run.first() else { return Ok(Some("`run` is empty".into())) };
        if tied::find(program).is_none() {
            return Ok(Some(format!("there is no program {program} on this host")));
        }
        // A shell that is asked to read only: what it cannot read it would not run either.
        if let [shell, dash_c, script] = &self.run[..]
            && dash_c == "-c"
            && SHELLS.iter().any(|known| shell.ends_with(known))
        {
            let argv = [shell, "-n", "-c", script].map(str::to_owned);
            let tail = run_command(&argv, &self.env, context).await?;
            if !tail.ok {
                return Ok(Some(format!("{shell} does not understand it: {}", tail.text)));
            }
        }
        Ok(None)
    }
}

/// Shells whose `-n` reads and does not run.
const SHELLS: [&str; 4] = ["/sh", "/bash", "/dash", "/ksh"];

pub(crate) struct Command;

/// Output of a program that has ended.
pub struct Tail {
    pub ok: bool,
    pub code: Option<i32>,
    /// The last bytes of stdout and stderr together.
    pub text: String,
}

/// Runs a program with a time limit that holds even while this process is frozen: coreutils' `timeout` ends it.
pub async fn run_command(
    argv: &[String],
    env: &BTreeMap<String, String>,
    context: &ActionContext,
) -> Result<Tail, ActionError> {
    let Some(program) = argv.first() else { return Err(ActionError::failed("an empty command")) };
    context.lease.check()?;
    let seconds = context.timeout.as_secs().max(1);
    let mut command = tied::timeout();
    command.args(["--kill-after=2", &seconds.to_string()]).args(argv).envs(env).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = tied::spawn(command)
        .await
        .map_err(|error| ActionError::failed(format!("{program}: cannot be started: {error}")))?;
    let waited = tied::Waited::of(&child);
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let out = async {
        match &mut stdout {
            Some(pipe) => tail(pipe).await,
            None => Vec::new(),
        }
    };
    let err = async {
        match &mut stderr {
            Some(pipe) => tail(pipe).await,
            None => Vec::new(),
        }
    };
    let work = async {
        let (out, err) = tokio::join!(out, err);
        let status = child.wait().await;
        (status, [out, err].concat())
    };
    let done = tokio::select! {
        done = work => Some(done),
        () = context.cancel.cancelled() => None,
    };
    let Some((status, bytes)) = done else {
        // It is told to end, and all that it runs; what undoes it must not run beside it.
        drop(waited);
        let _ = tokio::time::timeout(END_LIMIT, child.wait()).await;
        return Err(ActionError::Cancelled);
    };
    waited.has_ended();
    let status = status.map_err(|error| ActionError::failed(format!("{program}: {error}")))?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    if status.code() == Some(124) {
        return Err(ActionError::failed(format!("{program}: no end within {seconds}s\n{text}")));
    }
    Ok(Tail { ok: status.success(), code: status.code(), text })
}

async fn tail(pipe: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 4096];
    while let Ok(n) = pipe.read(&mut buffer).await {
        if n == 0 {
            break;
        }
        kept.extend_from_slice(&buffer[..n]);
        if kept.len() > 2 * TAIL_BYTES {
            kept.drain(..kept.len() - TAIL_BYTES);
        }
    }
    let excess = kept.len().saturating_sub(TAIL_BYTES);
    kept.drain(..excess);
    kept
}

#[async_trait]
impl Action for Command {
    fn name(&self) -> &'static str {
        "command"
    }
    fn summary(&self) -> &'static str {
        "runs a program on this machine: `run: [argv…]`, optional `check`, `undo`, `env`, `idempotent`; with `probe: true` a dry run runs it too"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        let with: With = parameters(with)?;
        if with.run.is_empty() { Err("`run` is empty".into()) } else { Ok(()) }
    }
    fn idempotent(&self) -> bool {
        false
    }
    fn undoable(&self) -> bool {
        // A command without `undo` leaves nothing that Farsite knows of; `undo:` beside it says otherwise.
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_mins(2)
    }
    async fn check(&self, context: &ActionContext, with: &Value) -> Result<Done, ActionError> {
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        match &with.check {
            Some(check) => {
                let tail = run_command(check, &with.env, context).await?;
                Ok(if tail.ok { Done::Yes(tail.text) } else { Done::No })
            }
            None if with.idempotent => Ok(Done::No),
            None => Ok(Done::Unknown),
        }
    }
    async fn run(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        let output = with.to_its_end(context).await?;
        Ok(Outcome::said(format!("{} ended well", with.run[0])).with("output", output))
    }
    async fn undo(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        match &with.undo {
            None => Ok(Outcome::said("nothing to undo")),
            Some(undo) => {
                let tail = run_command(undo, &with.env, context).await?;
                if tail.ok { Ok(Outcome::said("undone")) } else { Err(ActionError::failed(tail.text)) }
            }
        }
    }
    async fn dry_run(&self, context: &ActionContext, with: &Value) -> Result<Foreseen, ActionError> {
        let with: With = parameters(with).map_err(ActionError::Failed)?;
        if let Some(why) = with.cannot_begin(context).await? {
            return Err(ActionError::Failed(why));
        }
        if !with.probe {
            return Ok("it can be started; what it does shows only when it runs".into());
        }
        let output = with.to_its_end(context).await?;
        let last = output.lines().last().unwrap_or_default().to_owned();
        Ok(Foreseen::from(if last.is_empty() { "it ended well".to_owned() } else { last }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn context() -> ActionContext {
        crate::actions::tests::context(Duration::from_secs(5))
    }

    async fn foreseen(with: Value) -> Result<Foreseen, ActionError> {
        Command.dry_run(&context(), &with).await
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_does_not_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let (begun, mark) = (dir.path().join("begun"), dir.path().join("mark"));
        // It takes a moment to end, and has ended when the step has.
        let ended = dir.path().join("ended");
        let script = format!(
            "trap 'sleep 0.3; touch {}; exit' TERM; touch {}; sleep 1 & wait; touch {}",
            ended.display(),
            begun.display(),
            mark.display()
        );
        let context = context();
        let cancel = context.cancel.clone();
        let with = json!({"run": ["/bin/sh", "-c", script]});
        let running = tokio::spawn(async move { Command.run(&context, &with).await });
        while !begun.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        cancel.cancel();
        assert_eq!(running.await.unwrap(), Err(ActionError::Cancelled));
        assert!(ended.exists(), "nothing that undoes it runs beside it");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(!mark.exists(), "it was told to end");
    }

    #[tokio::test]
    async fn a_dry_run_runs_what_only_looks_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let touch = json!({"run": ["/bin/sh", "-c", format!("touch {}", mark.display())]});
        foreseen(touch).await.unwrap();
        assert!(!mark.exists(), "a dry run changes nothing");
        let probe = |script: &str| json!({"run": ["/bin/sh", "-c", script], "probe": true});
        assert_eq!(foreseen(probe("echo a; echo all is up")).await.unwrap().says, "all is up");
        let why = foreseen(probe("echo broker: no answer; exit 3")).await.unwrap_err().to_string();
        assert!(why.contains("exit code 3") && why.contains("broker: no answer"), "{why}");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_and_a_script_that_no_shell_understands_are_found_before() {
        let why = foreseen(json!({"run": ["no-such-program"]})).await.unwrap_err().to_string();
        assert!(why.contains("no-such-program"), "{why}");
        let why = foreseen(json!({"run": ["/bin/sh", "-c", "if true; then"]})).await.unwrap_err().to_string();
        assert!(why.contains("does not understand"), "{why}");
    }
}
