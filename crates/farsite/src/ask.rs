//! Questions that a promotion asks the person at the terminal: gates, and what happens after a failed step.

use std::io::{IsTerminal, Write};

use async_trait::async_trait;
use farsite_runbook::action::{ActionError, People};
use farsite_runbook::engine::{Decider, Decision};

use crate::context::who;

/// Whether somebody can be asked.
pub fn somebody_is_there() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

fn read_line(prompt: &str) -> Option<String> {
    let _ = write!(std::io::stderr(), "{prompt}");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).ok().filter(|read| *read > 0).map(|_| answer)
}

async fn read_line_async(prompt: String) -> Option<String> {
    tokio::task::spawn_blocking(move || read_line(&prompt)).await.ok().flatten()
}

/// Gates are asked at the terminal. Without one the run ends waiting, and `promotion confirm` answers.
pub struct AtTerminal;

#[async_trait]
impl People for AtTerminal {
    async fn answer(&self, step: &str, who: &str, prompt: &str) -> Result<Option<bool>, ActionError> {
        let question = format!("\n{step} needs {who}: {prompt} [y/n, Enter to be asked again] ");
        let Some(answer) = read_line_async(question).await else { return Ok(None) };
        Ok(match answer.trim().to_lowercase().as_str() {
            "y" | "yes" => Some(true),
            "n" | "no" => Some(false),
            _ => None,
        })
    }
    fn waits(&self) -> bool {
        true
    }
}

/// What happens after a failed step, asked at the terminal.
pub struct DecideAtTerminal;

#[async_trait]
impl Decider for DecideAtTerminal {
    async fn decide(&self, step: &str, why: &str) -> Decision {
        loop {
            let question = format!("\nstep {step} failed: {why}\n  [r]etry, [s]kip with a reason, s[t]op? ");
            let Some(answer) = read_line_async(question).await else { return Decision::Stop };
            match answer.trim() {
                "r" | "retry" => return Decision::Retry,
                "t" | "stop" => return Decision::Stop,
                "s" | "skip" => {
                    let reason = read_line_async("  reason: ".to_owned()).await.unwrap_or_default();
                    let reason = reason.trim();
                    if !reason.is_empty() {
                        return Decision::Skip { who: who(), reason: reason.to_owned() };
                    }
                }
                _ => {}
            }
        }
    }
}
