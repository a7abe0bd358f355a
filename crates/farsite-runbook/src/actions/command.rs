//! `command`: runs a program on this machine.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncReadExt;

use crate::action::{Action, ActionContext, ActionError, Done, Outcome, parameters};

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
}

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
    let mut child = tokio::process::Command::new("timeout")
        .args(["--kill-after=2", &seconds.to_string()])
        .args(argv)
        .envs(env)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .process_group(0)
        .spawn()
        .map_err(|error| ActionError::failed(format!("{program}: cannot be started: {error}")))?;
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
    let (status, bytes) = tokio::select! {
        done = work => done,
        () = context.cancel.cancelled() => return Err(ActionError::Cancelled),
    };
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
        "runs a program on this machine: `run: [argv…]`, optional `check`, `undo`, `env`, `idempotent`"
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
        let tail = run_command(&with.run, &with.env, context).await?;
        if tail.ok {
            Ok(Outcome::said(format!("{} ended well", with.run[0])).with("output", tail.text))
        } else {
            let code = tail.code.map_or("a signal".to_owned(), |c| format!("exit code {c}"));
            Err(ActionError::failed(format!("{} ended with {code}: {}", with.run[0], tail.text)))
        }
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
}
